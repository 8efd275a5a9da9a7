# SPDX-License-Identifier: Apache-2.0
"""Renders the report as metrics, page, checks and live view."""
