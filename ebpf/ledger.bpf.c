/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The tables of the ledger and the only code that makes and removes records.
 * Comes first in the text that BCC compiles, with these -D flags:
 *
 *   LEDGER_CAPACITY  processes there is room for
 *   LEDGER_CPUS      above the greatest number a CPU can have on this node
 *   RECENT_PLACES    processes whose slots are found at once, see below
 */
#include "ledger.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define BPF_F_MMAPABLE (1U << 10)

/*
 * Records and counters are arrays that the reader maps into its memory: while
 * a process is in a system call on a map, the kernel runs no kprobe and no
 * tracepoint program on its CPU (bpf_disable_instrumentation), not even when
 * it is preempted there. A reader that made such calls would lose events.
 */
BPF_F_TABLE("array", u32, struct ledger_process, records, LEDGER_CAPACITY, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct ledger_activity, activity, LEDGER_CAPACITY *LEDGER_CPUS,
	    BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, totals, LEDGER_TOTALS, BPF_F_MMAPABLE);

/* The slot of each process, by tgid. */
BPF_F_TABLE("hash", u32, u32, slots, LEDGER_CAPACITY, 0);

/* Slots that no process has; filled by whoever loads the programs. */
BPF_STACK(free_slots, u32, LEDGER_CAPACITY);

/*
 * Which slot a process has, for the programs that run at every exit: cheaper
 * than a look-up in the hash. Direct-mapped by tgid, the slot in the upper half
 * and the tgid in the lower, read and written as one word. Two processes that
 * meet in a place drive each other out, which costs the look-up and no count:
 * the counters stay where they are.
 */
BPF_F_TABLE("array", u32, u64, recent, RECENT_PLACES, BPF_F_MMAPABLE);

static __always_inline void count_total(u32 which)
{
	u64 *total = totals.lookup(&which);

	if (total)
		__sync_fetch_and_add(total, 1);
}

static __always_inline u32 current_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static __always_inline struct ledger_process *known_process(u32 tgid)
{
	u32 *slot = slots.lookup(&tgid);

	return slot ? records.lookup(slot) : NULL;
}

/* The slot of a process, with a record made when it has none; NULL when there is no room. */
static __always_inline u32 *slot_of(u32 tgid)
{
	u32 *known = slots.lookup(&tgid), slot = 0;
	struct ledger_process *record;

	if (known)
		return known;
	if (free_slots.pop(&slot)) {
		count_total(LEDGER_DROPPED);
		return NULL;
	}
	/* Of two threads that come here at once the second gives its slot back. */
	if (slots.insert(&tgid, &slot)) {
		free_slots.push(&slot, 0);
	} else {
		record = records.lookup(&slot);
		if (record) {
			record->tgid = tgid;
			*(volatile u64 *)&record->first_ns = bpf_ktime_get_ns();
		}
	}
	known = slots.lookup(&tgid);
	if (!known)
		count_total(LEDGER_DROPPED);
	return known;
}

static __always_inline struct ledger_process *process_of(u32 tgid)
{
	u32 *slot = slot_of(tgid);

	return slot ? records.lookup(slot) : NULL;
}

/*
 * This CPU's counters of a process. A process has counters only with a record.
 * Callers add without an atomic operation: they run with preemption disabled.
 */
static __always_inline struct ledger_activity *activity_of(u32 tgid)
{
	u32 place = tgid % RECENT_PLACES;
	u64 *recently = recent.lookup(&place);
	u64 found;
	u32 *slot, at;

	if (!recently)
		return NULL;
	found = *(volatile u64 *)recently;
	if ((u32)found != tgid) {
		slot = slot_of(tgid);
		if (!slot)
			return NULL;
		found = (u64)*slot << 32 | tgid;
		*(volatile u64 *)recently = found;
	}
	at = bpf_get_smp_processor_id() * LEDGER_CAPACITY + (found >> 32);
	return activity.lookup(&at);
}

/*
 * The order matters. The record's end is seen before its counters are cleared,
 * so a reader who finds the record after it has read the counters has read its
 * own; and everything is cleared before another process can have the slot.
 */
static __always_inline void forget(u32 tgid)
{
	u32 *known = slots.lookup(&tgid), place = tgid % RECENT_PLACES, slot, at;
	struct ledger_process *record;
	struct ledger_activity *mine;
	u64 *recently;

	if (!known)
		return;
	slot = *known;
	if (slots.delete(&tgid))
		return;
	recently = recent.lookup(&place);
	if (recently && (u32)*recently == tgid)
		*(volatile u64 *)recently = 0;
	record = records.lookup(&slot);
	if (record) {
		*(volatile u64 *)&record->first_ns = 0;
		record->exec_ns = 0;
		record->leader_exit_ns = 0;
		record->vms_created = 0;
		record->vcpus_created = 0;
	}
	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {
		at = cpu * LEDGER_CAPACITY + slot;
		mine = activity.lookup(&at);
		if (mine)
			*mine = (struct ledger_activity){};
	}
	free_slots.push(&slot, 0);
}
