/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * struct pt_regs is what the kernel passes to a kprobe program. Its layout is
 * system call ABI: arch/x86/include/asm/ptrace.h and
 * arch/arm64/include/uapi/asm/ptrace.h (struct user_pt_regs). bpf_syscall.py
 * has the system call numbers of the same machines. BCC's macros PT_REGS_PARMn
 * read it by these field names.
 */
#ifndef HVPROBE_UAPI_LINUX_PTRACE_H
#define HVPROBE_UAPI_LINUX_PTRACE_H
#include <linux/types.h>
#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};
#elif defined(__aarch64__) || defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#else
#error "hvprobe has no struct pt_regs for this architecture: add it here"
#endif
#endif
