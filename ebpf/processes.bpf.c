/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which processes become a VMM, and which end?
 *
 * A record begins at exec of a program named like QEMU (or at the first KVM
 * event of any process) and is removed when the kernel frees the process:
 * sched_process_free of the thread group leader, which is released last of all
 * its threads (kernel/exit.c, release_task). The main thread's exit alone is
 * only marked, for vCPU threads may still be on their way out of KVM_RUN.
 */

/* Where the freed thread's id stands in the tracepoint's record (tracefs "format"). */
#ifndef FREED_TID_OFFSET
#define FREED_TID_OFFSET 24
#endif

static __always_inline int named_like_qemu(void)
{
	char comm[16] = {};

	bpf_get_current_comm(comm, sizeof(comm));
	return comm[0] == 'q' && comm[1] == 'e' && comm[2] == 'm' && comm[3] == 'u';
}

/*
 * Whatever the process was before, its memory is new now, and KVM refuses the
 * old VM's file descriptors to a new address space (-EIO): a new life begins.
 */
int on_sched_process_exec(void *ctx)
{
	u32 tgid = current_tgid();
	struct ledger_process *process;

	forget(tgid);
	if (!named_like_qemu())
		return 0;
	process = process_of(tgid);
	if (process)
		process->exec_ns = bpf_ktime_get_ns();
	return 0;
}

int on_sched_process_exit(void *ctx)
{
	u64 ids = bpf_get_current_pid_tgid();
	u32 tgid = ids >> 32;
	struct ledger_process *process;

	if ((u32)ids != tgid)
		return 0;
	process = known_process(tgid);
	if (!process)
		return 0;
	process->leader_exit_ns = bpf_ktime_get_ns();
	if (process->exec_ns)
		count_total(LEDGER_DEPARTED);
	return 0;
}

/*
 * Runs some time after the process is gone. Its number may belong to a new
 * process by then, whose record carries no mark and is left alone.
 */
int on_sched_process_free(void *ctx)
{
	u32 tid = *(u32 *)(ctx + FREED_TID_OFFSET);
	struct ledger_process *process = known_process(tid);

	if (process && process->leader_exit_ns)
		forget(tid);
	return 0;
}
