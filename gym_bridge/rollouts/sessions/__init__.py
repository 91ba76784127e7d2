"""Environment dialects, one file each."""
