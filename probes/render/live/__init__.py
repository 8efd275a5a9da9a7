# SPDX-License-Identifier: Apache-2.0
"""Renders reports as frames of a terminal: the live view. It does not know how reports are made."""
