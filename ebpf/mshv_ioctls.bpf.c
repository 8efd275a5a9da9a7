/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which process runs a virtual processor of the Microsoft hypervisor?
 *
 * mshv_vp_ioctl is the unlocked_ioctl operation of a virtual processor's file
 * (drivers/hv/mshv_root_main.c). The driver reuses ioctl numbers for its
 * different kinds of file, so only the function and the complete number
 * together identify the call.
 */
#include <uapi/linux/ptrace.h>

/* include/uapi/linux/mshv.h: _IOR(MSHV_IOCTL, 0x00, struct mshv_run_vp), 256 bytes. */
#define MSHV_RUN_VP 0x8100B800

int on_mshv_vp_ioctl(struct pt_regs *ctx)
{
	struct ledger_activity *mine;

	if ((u32)PT_REGS_PARM2(ctx) != MSHV_RUN_VP)
		return 0;
	mine = activity_of(current_tgid());
	if (mine)
		__sync_fetch_and_add(&mine->mshv_runs, 1);
	return 0;
}
