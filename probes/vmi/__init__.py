# SPDX-License-Identifier: Apache-2.0
"""Knows the VMIs of this node, and decides which process runs each of them."""
