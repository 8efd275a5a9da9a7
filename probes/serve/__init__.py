"""The agent's endpoint."""
