"""The checks of `audit`, one file a family; `gym_bridge.tokens.auditor` runs them over a file."""
