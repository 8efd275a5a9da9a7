"""The commands: their flags, their parts and their lifetimes."""
