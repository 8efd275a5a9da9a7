# SPDX-License-Identifier: Apache-2.0
"""Serves the agent's endpoints."""
