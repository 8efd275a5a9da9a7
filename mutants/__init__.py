"""Puts defects into a copy of the tree and tells which tests notice: `make mutants`."""
