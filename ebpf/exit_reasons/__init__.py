# SPDX-License-Identifier: Apache-2.0
"""VM exits by reason: a tool of its own, loaded only for `live --reasons`."""
