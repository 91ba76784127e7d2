"""Model endpoints, one file a wire."""
