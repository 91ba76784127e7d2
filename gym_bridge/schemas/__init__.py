"""Every type and protocol that crosses a room's wall."""
