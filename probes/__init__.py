# SPDX-License-Identifier: Apache-2.0
"""Turns kernel facts into named VMIs and serves them as metrics, live view, JSON and page."""
