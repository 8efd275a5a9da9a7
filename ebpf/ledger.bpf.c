/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The tables of the ledger and the only code that makes and removes records.
 * Comes first in the text that BCC compiles; LEDGER_CAPACITY is a -D flag.
 */
#include "ledger.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

BPF_F_TABLE("hash", u32, struct ledger_process, processes, LEDGER_CAPACITY, 0);
BPF_F_TABLE("percpu_hash", u32, struct ledger_activity, activity, LEDGER_CAPACITY, 0);
BPF_PERCPU_ARRAY(totals, u64, LEDGER_TOTALS);

static __always_inline void count_total(u32 which)
{
	u64 *total = totals.lookup(&which);

	if (total)
		*total += 1;
}

static __always_inline u32 current_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

/* The record of a process, made when it has none; NULL when there is no room. */
static __always_inline struct ledger_process *process_of(u32 tgid)
{
	struct ledger_process *known = processes.lookup(&tgid);

	if (known)
		return known;

	struct ledger_process fresh = {};

	fresh.first_ns = bpf_ktime_get_ns();
	known = processes.lookup_or_try_init(&tgid, &fresh);
	if (!known)
		count_total(LEDGER_DROPPED);
	return known;
}

/* This CPU's counters of a process. A process has counters only with a record. */
static __always_inline struct ledger_activity *activity_of(u32 tgid)
{
	struct ledger_activity *mine = activity.lookup(&tgid);

	if (mine)
		return mine;
	if (!process_of(tgid))
		return NULL;

	struct ledger_activity none = {};

	mine = activity.lookup_or_try_init(&tgid, &none);
	if (!mine)
		count_total(LEDGER_DROPPED);
	return mine;
}

static __always_inline void forget(u32 tgid)
{
	activity.delete(&tgid);
	processes.delete(&tgid);
}
