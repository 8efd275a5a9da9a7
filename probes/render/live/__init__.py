"""The live view: reports in, frames of a terminal out. Knows nothing of how a look is taken."""
