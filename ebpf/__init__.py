# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of the processes that run virtual machines. Knows no pods and no VMIs."""
