/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The programs that a hook's cost is compared with. Each is loaded as a raw tracepoint.
 *
 *   empty             does nothing: shows what the kernel's own timing of a run costs
 *   percpu_array      the limit: adds to one counter of this CPU, at a fixed index
 *   current_process   asks for the current process and does nothing else: every program that
 *                     distinguishes processes needs this helper call
 *   percpu_hash       adds to this process's counter on this CPU, found by the process number
 *   hash_atomic       the common form: adds to this process's counter, which all CPUs share,
 *                     found by the process number
 */
BPF_PERCPU_ARRAY(one_slot, u64, 1);
BPF_F_TABLE("percpu_hash", u32, u64, by_process_and_cpu, 4096, 0);
BPF_HASH(by_process, u32, u64, 4096);

int empty(void *ctx)
{
	return 0;
}

int percpu_array(void *ctx)
{
	u32 first = 0;
	u64 *count = one_slot.lookup(&first);

	if (count)
		*count += 1;
	return 0;
}

int current_process(void *ctx)
{
	return bpf_get_current_pid_tgid() >> 32 == 1;
}

int percpu_hash(void *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 none = 0, *count = by_process_and_cpu.lookup_or_try_init(&tgid, &none);

	if (count)
		*count += 1;
	return 0;
}

int hash_atomic(void *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 none = 0, *count = by_process.lookup_or_try_init(&tgid, &none);

	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}
