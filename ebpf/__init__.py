# SPDX-License-Identifier: Apache-2.0
"""Observes through BPF which processes run virtual machines. It knows no pods and no VMIs."""
