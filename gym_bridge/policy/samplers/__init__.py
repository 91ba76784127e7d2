"""The in-process sampler and the ways to push weights to a sampler."""
