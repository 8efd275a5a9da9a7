"""Tests, one folder for each kind of world that they need."""
