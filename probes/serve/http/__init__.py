# SPDX-License-Identifier: Apache-2.0
"""Runs the HTTP server on Tornado. It does not know what is served."""
