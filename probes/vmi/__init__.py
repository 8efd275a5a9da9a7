# SPDX-License-Identifier: Apache-2.0
"""Which VM a process is: the VMIs of this node, and who runs them."""
