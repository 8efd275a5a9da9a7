/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How often does a process's guest leave the CPU, and how often does KVM_RUN
 * return to the process? Both tracepoints fire in the vCPU's own thread, so the
 * current process is the one. No argument is used: the programs depend on no
 * structure of the kernel and load as raw or as classic tracepoint programs.
 */

int on_kvm_exit(void *ctx)
{
	struct ledger_activity *mine = activity_of(current_tgid());

	if (mine)
		mine->exits += 1;
	return 0;
}

int on_kvm_userspace_exit(void *ctx)
{
	struct ledger_activity *mine = activity_of(current_tgid());

	if (mine)
		mine->userspace_exits += 1;
	return 0;
}
