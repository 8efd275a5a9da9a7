# SPDX-License-Identifier: Apache-2.0
"""Judges processes: gathers evidence, and turns it into verdicts."""
