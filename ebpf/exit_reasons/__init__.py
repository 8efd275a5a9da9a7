"""VM exits by reason: a tool of its own, loaded only for `live --reasons`."""
