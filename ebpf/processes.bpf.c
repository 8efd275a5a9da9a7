/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * When does a process begin a life, and when does it end?
 *
 * A record begins at the first accelerator event and describes one life of one
 * process. A life begins at fork, before the child runs, and at exec; the
 * record of the number's previous life is removed there. The record of a
 * process that has ended is removed when the kernel frees the process: at
 * sched_process_free of the thread group leader, which is released after all
 * its threads (kernel/exit.c, release_task). The exit of the main thread alone
 * is only noted, because vCPU threads may still be on their way out of KVM_RUN.
 * That exit also marks the number, so that the agent checks a process that has
 * ended but whose parent has not collected it yet.
 *
 * The programs of exec and exit may run twice for one event, in either form.
 *
 * The offset of a number in a tracepoint's record differs between kernels. The
 * offsets are -D flags, read from tracefs ("format").
 */

/* Threads begin here too: they share one range of numbers with processes. */
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
 * map on its CPU, but not this one. This program cannot read the child's number
 * without a kernel structure, but its count shows the reader that a fork was
 * missed.
 */
int on_sched_process_fork_seen(void *ctx)
{
	count_total(LEDGER_FORKS);
	return 0;
}

/*
 * After exec the process has new memory, and KVM refuses the old VM's file
 * descriptors to a new address space (-EIO), so a new life begins.
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
 * Runs some time after the process has ended. By then its number may belong to
 * a new process, whose record has no end and therefore stays.
 */
int on_sched_process_free(void *ctx)
{
	forget(*(u32 *)(ctx + SCHED_PROCESS_FREE_PID), REMOVE_ENDED);
	return 0;
}
