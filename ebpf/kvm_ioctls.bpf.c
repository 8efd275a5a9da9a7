/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which process asks KVM for a VM, for a vCPU, and to run one?
 *
 * The probed functions are the unlocked_ioctl operations of the three kinds of
 * KVM file (virt/kvm/kvm_main.c). Their addresses are taken, so the compiler
 * never inlines them, and the ioctl number is always the second argument. The
 * programs count calls with the right number, whether or not the call succeeds.
 */
#include <uapi/linux/ptrace.h>

/* include/uapi/linux/kvm.h; the same on every architecture: _IO(KVMIO, nr). */
#define KVM_CREATE_VM 0xAE01
#define KVM_CREATE_VCPU 0xAE41
#define KVM_RUN 0xAE80

int on_kvm_dev_ioctl(struct pt_regs *ctx)
{
	struct ledger_process *process;

	if ((u32)PT_REGS_PARM2(ctx) != KVM_CREATE_VM)
		return 0;
	process = process_of(current_tgid(), SHOWS_VM);
	if (process)
		__sync_fetch_and_add(&process->vms_created, 1);
	return 0;
}

int on_kvm_vm_ioctl(struct pt_regs *ctx)
{
	struct ledger_process *process;

	if ((u32)PT_REGS_PARM2(ctx) != KVM_CREATE_VCPU)
		return 0;
	process = process_of(current_tgid(), SHOWS_VCPU);
	if (process)
		__sync_fetch_and_add(&process->vcpus_created, 1);
	return 0;
}

int on_kvm_vcpu_ioctl(struct pt_regs *ctx)
{
	struct ledger_activity *mine;

	if ((u32)PT_REGS_PARM2(ctx) != KVM_RUN)
		return 0;
	mine = activity_of(current_tgid());
	if (mine)
		__sync_fetch_and_add(&mine->runs, 1);
	return 0;
}
