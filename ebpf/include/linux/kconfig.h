/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * BCC includes this file before everything else and stops unless the
 * configuration says that the kernel has the bpf() system call. A kernel
 * without it refuses the load itself, with a better message.
 */
#ifndef HVPROBE_LINUX_KCONFIG_H
#define HVPROBE_LINUX_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
