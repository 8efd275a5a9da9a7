# SPDX-License-Identifier: Apache-2.0
"""The one report of this node, from which every output is made."""
