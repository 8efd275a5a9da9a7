/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * BCC needs a version at compile time. hvprobe detects features, never
 * versions: this is only the oldest kernel that has what the programs need
 * (arrays mapped into memory since 5.5, hashes read in batches since 5.6).
 * Kernels since 5.0 do not compare it.
 */
#ifndef HVPROBE_LINUX_VERSION_H
#define HVPROBE_LINUX_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 6, 0)
#endif
