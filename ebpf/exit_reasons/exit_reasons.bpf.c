/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Why do the guests of chosen processes leave the CPU? This program is for
 * debugging: it is loaded only while a live view asks for reasons, and it
 * counts nothing for processes that were not chosen.
 *
 * The answer is in the record of the tracepoint kvm:kvm_exit. The offset of
 * each field differs between kernels, so the offsets are -D flags, read from
 * the kernel's own description of the record (tracefs "format").
 *
 *   REASON_OFFSET  x86: exit_reason; arm64: ret, the cause of the exit
 *   ISA_OFFSET     x86: isa, VMX or SVM; undefined elsewhere
 *   DETAIL_OFFSET  arm64: esr_ec, the class of the trap; undefined elsewhere
 */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

struct reason_key {
	u32 tgid;
	u32 isa;
	u32 reason;
	u32 detail;
};

BPF_HASH(chosen, u32, u32, CHOSEN_CAPACITY);
BPF_F_TABLE("percpu_hash", struct reason_key, u64, reasons, REASONS_CAPACITY, 0);
BPF_F_TABLE("array", u32, u64, lost, 1, 1U << 10); /* BPF_F_MMAPABLE */

static __always_inline u32 field_at(void *ctx, int offset)
{
	return *(u32 *)(ctx + offset);
}

int on_kvm_exit_reason(void *ctx)
{
	struct reason_key key = {};
	u64 none = 0, *count;
	u32 first = 0;

	key.tgid = bpf_get_current_pid_tgid() >> 32;
	if (!chosen.lookup(&key.tgid))
		return 0;
	key.reason = field_at(ctx, REASON_OFFSET);
#ifdef ISA_OFFSET
	key.isa = field_at(ctx, ISA_OFFSET);
#endif
#ifdef DETAIL_OFFSET
	key.detail = field_at(ctx, DETAIL_OFFSET);
#endif
	count = reasons.lookup_or_try_init(&key, &none);
	if (count) {
		*count += 1;
		return 0;
	}
	count = lost.lookup(&first);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}
