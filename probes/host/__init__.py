# SPDX-License-Identifier: Apache-2.0
"""Reads what /proc, /sys and /dev say about this node and its processes."""
