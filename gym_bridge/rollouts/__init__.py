"""Collecting rollouts: the collector, the agent's turn loop, sessions with environments, model endpoints. No torch."""
