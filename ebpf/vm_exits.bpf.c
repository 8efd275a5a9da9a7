/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How often does a process's guest leave the CPU, and how often does KVM_RUN
 * return to the process? Both tracepoints fire in the vCPU's own thread, so the
 * current process is the right one. No kernel structure is used.
 *
 * Each return is counted. A return proves that the vCPU ran if KVM_RUN did not
 * fail and KVM could continue with the guest, which the tracepoint's arguments
 * show (TP_PROTO(__u32 reason, int errno), include/trace/events/kvm.h). The
 * classic form reads them from the record at offsets that tracefs gives, the
 * raw form from the arguments; a third form reads neither, for kernels where
 * that is impossible.
 *
 * Cost of an exit in on_kvm_exit, over an empty program: 25 ns at a guest's
 * real exits, 10 ns run in a loop (python -m bench.run --only hook).
 */

/* include/uapi/linux/kvm.h */
#define KVM_EXIT_FAIL_ENTRY 9
#define KVM_EXIT_INTERNAL_ERROR 17

int on_kvm_exit(void *ctx)
{
	count_exit(current_tgid());
	return 0;
}

static __always_inline void count_return(u32 reason, int error)
{
	struct ledger_activity *mine = activity_of(current_tgid());

	if (!mine)
		return;
	__sync_fetch_and_add(&mine->userspace_exits, 1);
	if (error >= 0 && reason != KVM_EXIT_FAIL_ENTRY && reason != KVM_EXIT_INTERNAL_ERROR)
		__sync_fetch_and_add(&mine->completed_runs, 1);
}

int on_kvm_userspace_exit_record(void *ctx)
{
	count_return(*(u32 *)(ctx + KVM_USERSPACE_EXIT_REASON),
		     *(int *)(ctx + KVM_USERSPACE_EXIT_ERRNO));
	return 0;
}

int on_kvm_userspace_exit_raw(void *ctx)
{
	count_return(*(u64 *)ctx, *(u64 *)(ctx + 8));
	return 0;
}

int on_kvm_userspace_exit(void *ctx)
{
	struct ledger_activity *mine = activity_of(current_tgid());

	if (mine)
		__sync_fetch_and_add(&mine->userspace_exits, 1);
	return 0;
}
