# SPDX-License-Identifier: Apache-2.0
"""The API server: list and watch of this node's VMIs. Knows nothing of processes."""
