"""The local web page: runs, groups, rollouts and tokens, read from files as they grow."""
