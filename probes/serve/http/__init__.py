# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: sockets, TLS, HTTP/1.1. Knows nothing of what is served."""
