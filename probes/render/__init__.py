# SPDX-License-Identifier: Apache-2.0
"""Views of the report: metrics, page, checks and the live view."""
