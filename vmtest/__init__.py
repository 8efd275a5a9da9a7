# SPDX-License-Identifier: Apache-2.0
"""Boots other kernels in QEMU and runs tests/kernel in them: `make test-kernels`."""
