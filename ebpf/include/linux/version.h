/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * BCC wants a version at compile time. hvprobe detects features, never versions:
 * this is only the oldest kernel the programs are written for. Kernels that
 * compare the number (before 5.0) are told the running one by BCC at load.
 */
#ifndef HVPROBE_LINUX_VERSION_H
#define HVPROBE_LINUX_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(4, 18, 0)
#endif
