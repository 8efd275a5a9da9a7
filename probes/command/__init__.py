# SPDX-License-Identifier: Apache-2.0
"""The commands: their flags, their parts and their lifetimes."""
