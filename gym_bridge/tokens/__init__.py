"""Messages to token ids and back, trajectories with masks, the auditor. No torch."""
