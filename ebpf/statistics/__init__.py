# SPDX-License-Identifier: Apache-2.0
"""Reads KVM's statistics of many vCPUs at once, where KVM keeps them."""
