"""What is true of a process: evidence, and the verdict it leads to."""
