/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC brings its own definitions of the bpf() system call, those it was built for. */
#ifndef HVPROBE_LINUX_BPF_H
#define HVPROBE_LINUX_BPF_H
#include <bcc/bpf.h>
#endif
