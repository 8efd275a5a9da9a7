# SPDX-License-Identifier: Apache-2.0
"""Puts defects into a copy of the tree and shows which tests notice: ``make mutants``."""
