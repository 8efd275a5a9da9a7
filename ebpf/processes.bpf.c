/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * When does a process begin a life, and when does it end?
 *
 * A record begins at the first event of an accelerator and makes sense for one
 * life of one process. A life begins at fork, before the child runs, and at
 * exec; what the number's record said of the life before is removed there. The
 * record of a process that is gone is removed when the kernel frees it:
 * sched_process_free of the thread group leader, which is released last of all
 * its threads (kernel/exit.c, release_task). The main thread's exit alone is
 * only marked, for vCPU threads may still be on their way out of KVM_RUN. Its
 * number is marked with it, so that a process that has ended and is not yet
 * collected by its parent is looked at again.
 *
 * The programs of exec and exit may run twice for one event, in either form.
 *
 * Where a number stands in a tracepoint's record differs between kernels: the
 * offsets are -D flags, read from tracefs ("format").
 */

/* Threads begin here as well: their numbers and those of processes are one set. */
int on_sched_process_fork(void *ctx)
{
	u32 number = *(u32 *)(ctx + SCHED_PROCESS_FORK_CHILD_PID);

	forget(number, REMOVE_ANY);
	mark_life(number);
	count_total(LEDGER_FORKS_MARKED);
	return 0;
}

/*
 * The kernel skips the program above while another process is in a call on a
 * map on its CPU; this one it does not skip then. It cannot tell the child's
 * number without a structure of the kernel, but the reader learns of the loss.
 */
int on_sched_process_fork_seen(void *ctx)
{
	count_total(LEDGER_FORKS);
	return 0;
}

/*
 * Whatever the process was before, its memory is new now, and KVM refuses the
 * old VM's file descriptors to a new address space (-EIO): a new life begins.
 */
int on_sched_process_exec(void *ctx)
{
	u32 tgid = current_tgid();

	forget(tgid, REMOVE_ANY);
	mark_life(tgid);
	return 0;
}

int on_sched_process_exit(void *ctx)
{
	u64 ids = bpf_get_current_pid_tgid();
	u32 tgid = ids >> 32;
	struct ledger_process *process;

	if ((u32)ids != tgid)
		return 0;
	mark_life(tgid);
	process = known_process(tgid);
	if (process)
		process->leader_exit_ns = bpf_ktime_get_ns();
	return 0;
}

/*
 * Runs some time after the process is gone. Its number may belong to a new
 * process by then, whose record carries no mark and is left alone.
 */
int on_sched_process_free(void *ctx)
{
	forget(*(u32 *)(ctx + SCHED_PROCESS_FREE_PID), REMOVE_ENDED);
	return 0;
}
