"""The one training loop, and the algorithms that give it steps and a loss."""
