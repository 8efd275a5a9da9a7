# SPDX-License-Identifier: Apache-2.0
"""The cluster-wide view: what all agents answer, as one table."""
