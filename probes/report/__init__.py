# SPDX-License-Identifier: Apache-2.0
"""Builds the one report of this node, from which every output is made."""
