"""The command line: one small file a verb. Nothing heavy is imported before a verb runs."""
