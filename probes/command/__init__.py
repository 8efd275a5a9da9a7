# SPDX-License-Identifier: Apache-2.0
"""Defines the commands: their flags, their parts and their lifetimes."""
