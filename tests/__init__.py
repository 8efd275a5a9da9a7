# SPDX-License-Identifier: Apache-2.0
"""Tests, one folder for each kind of world that they need."""
