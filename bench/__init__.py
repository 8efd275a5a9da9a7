"""The benchmark program: `make bench`."""
