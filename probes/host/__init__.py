# SPDX-License-Identifier: Apache-2.0
"""What /proc, /sys and /dev say of this node and its processes."""
