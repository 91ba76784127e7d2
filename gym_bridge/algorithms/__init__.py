"""Losses and advantages: pure functions, no I/O, no settings."""
