# SPDX-License-Identifier: Apache-2.0
"""What is true of a process: evidence, and the verdict it leads to."""
