"""The policy as an OpenAI endpoint, for agents that play rollouts themselves; what it sampled is kept token for token."""
