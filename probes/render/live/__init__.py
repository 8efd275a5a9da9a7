# SPDX-License-Identifier: Apache-2.0
"""The live view: reports in, frames of a terminal out. Knows nothing of how a look is taken."""
