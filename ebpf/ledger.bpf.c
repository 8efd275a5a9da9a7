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

BPF_F_TABLE("hash", u32, struct ledger_process, processes, LEDGER_CAPACITY, 0);
BPF_F_TABLE("array", u32, struct ledger_activity, activity, LEDGER_CAPACITY *LEDGER_CPUS,
	    BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, totals, LEDGER_TOTALS, BPF_F_MMAPABLE);

/* Slots that no process has; filled by whoever loads the programs. */
BPF_STACK(free_slots, u32, LEDGER_CAPACITY);

/*
 * Which slot a process has, for the programs that run at every exit: half the
 * price of a look-up in the hash. Direct-mapped by tgid, the slot in the upper
 * half and the tgid in the lower, read and written as one word. Two processes
 * that meet in a place drive each other out, which costs the look-up and no
 * count: the counters stay where they are.
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

/* The record of a process, made when it has none; NULL when there is no room. */
static __always_inline struct ledger_process *process_of(u32 tgid)
{
	struct ledger_process *known = processes.lookup(&tgid);
	struct ledger_process fresh = {};
	u32 slot = 0;

	if (known)
		return known;
	if (free_slots.pop(&slot)) {
		count_total(LEDGER_DROPPED);
		return NULL;
	}
	fresh.first_ns = bpf_ktime_get_ns();
	fresh.slot = slot;
	/* Of two threads that come here at once the second gives its slot back. */
	if (processes.insert(&tgid, &fresh))
		free_slots.push(&slot, 0);
	known = processes.lookup(&tgid);
	if (!known)
		count_total(LEDGER_DROPPED);
	return known;
}

/*
 * This CPU's counters of a process. A process has counters only with a record.
 * Callers add without an atomic operation: they run with preemption disabled.
 */
static __always_inline struct ledger_activity *activity_of(u32 tgid)
{
	u32 place = tgid % RECENT_PLACES;
	u64 *recently = recent.lookup(&place);
	struct ledger_process *process;
	u64 found;
	u32 at;

	if (!recently)
		return NULL;
	found = *(volatile u64 *)recently;
	if ((u32)found != tgid) {
		process = process_of(tgid);
		if (!process)
			return NULL;
		found = (u64)process->slot << 32 | tgid;
		*(volatile u64 *)recently = found;
	}
	at = bpf_get_smp_processor_id() * LEDGER_CAPACITY + (found >> 32);
	return activity.lookup(&at);
}

/*
 * The order matters. Nothing finds the slot any more before its counters are
 * cleared, and it is cleared before anybody can have it; the record goes first
 * of all, so that a reader who still finds it has read its own counters.
 */
static __always_inline void forget(u32 tgid)
{
	struct ledger_process *known = processes.lookup(&tgid);
	struct ledger_activity *mine;
	u32 place = tgid % RECENT_PLACES, slot, at;
	u64 *recently;

	if (!known)
		return;
	slot = known->slot;
	if (processes.delete(&tgid))
		return;
	recently = recent.lookup(&place);
	if (recently && (u32)*recently == tgid)
		*(volatile u64 *)recently = 0;
	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {
		at = cpu * LEDGER_CAPACITY + slot;
		mine = activity.lookup(&at);
		if (mine)
			*mine = (struct ledger_activity){};
	}
	free_slots.push(&slot, 0);
}
