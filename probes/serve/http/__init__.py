# SPDX-License-Identifier: Apache-2.0
"""Implements the HTTP server: sockets, TLS, HTTP/1.1. It does not know what is served."""
