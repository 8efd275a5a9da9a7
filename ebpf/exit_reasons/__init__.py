# SPDX-License-Identifier: Apache-2.0
"""Counts VM exits by reason: a separate tool, loaded only for ``live --reasons``."""
