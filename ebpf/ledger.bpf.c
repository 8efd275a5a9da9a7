/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The tables of the ledger, and the only code that makes and removes records.
 * This file comes first in the text that BCC compiles, with these -D flags:
 *
 *   LEDGER_CAPACITY  processes that the ledger has room for
 *   LEDGER_COMMON    the number of slots, the lowest ones, that any process can
 *                    have; the others are reserved for processes that use a vCPU
 *   LEDGER_CPUS      one more than the greatest number of a CPU on this node
 *   EXIT_PLACES    places on each CPU, a power of 2, see below
 *   LIFE_PAGES       times LEDGER_LIFE_BYTES: above the greatest process number
 */
#include "ledger.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define BPF_F_MMAPABLE (1U << 10)

/*
 * Records and counters are arrays that the reader maps into its memory. While a
 * process is in a system call on a map, the kernel runs no kprobe and no
 * tracepoint program on its CPU (bpf_disable_instrumentation), not even when
 * the process is preempted there. A reader that made such calls would lose
 * events.
 */
BPF_F_TABLE("array", u32, struct ledger_process, records, LEDGER_CAPACITY, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct ledger_activity, activity, LEDGER_CAPACITY, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct ledger_cpu_activity, cpu_activity, LEDGER_CAPACITY *LEDGER_CPUS,
	    BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, totals, LEDGER_TOTALS, BPF_F_MMAPABLE);

/* The slot of each process, by tgid. */
BPF_F_TABLE("hash", u32, u32, slots, LEDGER_CAPACITY, 0);

/* Free slots. The process that loads the programs fills these stacks. */
BPF_STACK(free_slots, u32, LEDGER_CAPACITY);
BPF_STACK(reserved_slots, u32, LEDGER_CAPACITY);

/*
 * Removals in progress, by tgid, with the time at which each began. If two
 * removals reach one record at the same time, only one removes it. There is
 * room for as many as can run at once: one on each CPU, and the reader's.
 */
BPF_F_TABLE("hash", u32, u64, claims, LEDGER_CPUS + 16, 0);

/*
 * Where a VM exit is counted, because one lookup in an array is cheaper than a
 * lookup in the hash and another one at the slot. A CPU's places are one entry,
 * direct-mapped by tgid. A place belongs to the first process that takes it until
 * that process's record is removed. Others count at their slots. Counts never move.
 *
 * Only the place's own CPU writes its counters. Of `owner`, that CPU writes the
 * change from free to owned and from released to free, and the removal of the
 * owner's record the change from owned to released. So no write can undo
 * another one, and none needs an atomic operation.
 */
struct ledger_places {
	struct ledger_place of[EXIT_PLACES];
};
BPF_F_TABLE("array", u32, struct ledger_places, places, LEDGER_CPUS, BPF_F_MMAPABLE);

/*
 * Numbers at which a process or thread began its life or a process ended, and 1
 * for each page of them that was written to. The reader clears the page's mark
 * first and then the bytes that it takes; the programs set the byte first.
 */
BPF_F_TABLE("array", u32, struct ledger_lives, lives, LIFE_PAGES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, life_pages, LIFE_PAGES, BPF_F_MMAPABLE);

/* What an event shows about its process: only a vCPU entitles it to a reserved slot. */
enum shows { SHOWS_VM, SHOWS_VCPU };

/* Which records a removal applies to. */
enum removal { REMOVE_ANY, REMOVE_ENDED };

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

static __always_inline void mark_life(u32 number)
{
	u32 page = number / LEDGER_LIFE_BYTES;
	struct ledger_lives *numbers = lives.lookup(&page);
	u64 *written = life_pages.lookup(&page);

	if (!numbers || !written)
		return;
	*(volatile u8 *)&numbers->began[number % LEDGER_LIFE_BYTES] = 1;
	*(volatile u64 *)written = 1;
}

static __always_inline struct ledger_process *known_process(u32 tgid)
{
	u32 *slot = slots.lookup(&tgid);

	return slot ? records.lookup(slot) : NULL;
}

/* Returns 0 on success. pop() returns an int in some releases of BCC and a pointer in others. */
static __always_inline int take_slot(u32 *slot, enum shows shows)
{
	if (!free_slots.pop(slot))
		return 0;
	if (shows == SHOWS_VCPU && !reserved_slots.pop(slot))
		return 0;
	return -1;
}

static __always_inline void give_slot_back(u32 slot)
{
	if (slot < LEDGER_COMMON)
		free_slots.push(&slot, 0);
	else
		reserved_slots.push(&slot, 0);
}

/* Returns the slot of a process and makes a record if it has none; NULL: the ledger is full. */
static __always_inline u32 *slot_of(u32 tgid, enum shows shows)
{
	u32 *known = slots.lookup(&tgid), slot = 0;
	struct ledger_process *record;

	if (known)
		return known;
	if (take_slot(&slot, shows)) {
		count_total(LEDGER_DROPPED);
		return NULL;
	}
	record = records.lookup(&slot);
	if (record)
		record->tgid = tgid;
	/* If two threads get here at once, the second gives its slot back. */
	if (slots.insert(&tgid, &slot))
		give_slot_back(slot);
	else if (record)
		*(volatile u64 *)&record->first_ns = bpf_ktime_get_ns();
	known = slots.lookup(&tgid);
	if (!known)
		count_total(LEDGER_DROPPED);
	return known;
}

static __always_inline struct ledger_process *process_of(u32 tgid, enum shows shows)
{
	u32 *slot = slot_of(tgid, shows);

	return slot ? records.lookup(slot) : NULL;
}

/*
 * Returns the counters that a process that uses a vCPU has on all CPUs together.
 * A process has counters only with a record. Callers add atomically.
 */
static __always_inline struct ledger_activity *activity_of(u32 tgid)
{
	u32 *slot = slot_of(tgid, SHOWS_VCPU);

	return slot ? activity.lookup(slot) : NULL;
}

static __always_inline void mark(u64 *where)
{
	/* A write at each event would take the record away from all other CPUs. */
	if (!*(volatile u64 *)where)
		*(volatile u64 *)where = 1;
}

/*
 * Returns this CPU's counters of a process that does not own the place. A
 * process takes a free place. It clears one that was released and counts at its
 * slot this time: on a CPU that reorders writes, the reader might otherwise see
 * the new owner before the cleared counters. A later event takes the place, and
 * KVM orders memory before each guest entry (smp_store_mb() of vcpu->mode in
 * kvm_arch_vcpu_ioctl_run(), arch/arm64/kvm/arm.c; x86 keeps writes in order).
 */
static __always_inline struct ledger_cpu_activity *
activity_beside(u32 tgid, u32 cpu, struct ledger_place *place, u64 owner)
{
	u32 *known = slot_of(tgid, SHOWS_VCPU), slot, at;
	struct ledger_process *record;

	if (!known)
		return NULL;
	slot = *known;
	record = records.lookup(&slot);
	/* While the reader removes the record, its entry in the hash may become another's. */
	if (!record || record->tgid != tgid)
		return NULL;
	if (!owner) {
		mark(&record->in_places);
		*(volatile u64 *)&place->owner = (u64)slot << 32 | tgid;
		return &place->activity;
	}
	if (owner == LEDGER_RELEASED) {
		place->activity = (struct ledger_cpu_activity){};
		*(volatile u64 *)&place->owner = 0;
	}
	mark(&record->in_slot);
	at = cpu * LEDGER_CAPACITY + slot;
	return cpu_activity.lookup(&at);
}

/*
 * Counts an exit of a process that uses a vCPU. Nothing here is atomic, because
 * callers run with preemption disabled and never inside each other. The usual
 * case compares the owner's low half (hvprobe's machines are little-endian) and
 * returns at once, because the rare case's end lies in another cache line.
 */
static __always_inline void count_exit(u32 tgid)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct ledger_places *here = places.lookup(&cpu);
	struct ledger_cpu_activity *mine;
	struct ledger_place *place;

	if (!here)
		return;
	place = &here->of[tgid % EXIT_PLACES];
	if (*(volatile u32 *)&place->owner == tgid) {
		*(volatile u64 *)&place->activity.exits += 1;
		return;
	}
	mine = activity_beside(tgid, cpu, place, *(volatile u64 *)&place->owner);
	if (mine)
		mine->exits += 1;
}

/*
 * Releases the places of a process on all CPUs and clears the counters of its
 * slot there. Only the removal of this very record may release a place, so the
 * complete owner is compared. The number is volatile because the verifier forgets
 * the bounds of what is kept on the stack (before Linux 354e8f1970f8 ("bpf:
 * Support <8-byte scalar spill and refill") (v5.16)).
 */
static __always_inline void recycle_on_cpus(u32 tgid, u32 slot)
{
	volatile u32 number = tgid;
	struct ledger_cpu_activity *mine;
	struct ledger_places *there;
	struct ledger_place *place;
	u32 at;

	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {
		at = cpu;
		there = places.lookup(&at);
		place = there ? &there->of[number % EXIT_PLACES] : NULL;
		if (place && *(volatile u64 *)&place->owner == ((u64)slot << 32 | tgid))
			*(volatile u64 *)&place->owner = LEDGER_RELEASED;
		at = cpu * LEDGER_CAPACITY + slot;
		mine = cpu_activity.lookup(&at);
		if (mine)
			*mine = (struct ledger_cpu_activity){};
	}
}

/*
 * The order matters. The record ends before its counters are cleared, so a
 * reader that still finds the record after it has read the counters has read
 * the record's own. Everything is cleared before another process can get the
 * slot. By then the process has no thread in a guest.
 */
static __always_inline void recycle(u32 tgid, u32 slot, struct ledger_process *record)
{
	struct ledger_activity *mine = activity.lookup(&slot);

	*(volatile u64 *)&record->first_ns = 0;
	record->leader_exit_ns = 0;
	record->vms_created = 0;
	record->vcpus_created = 0;
	if (mine)
		*mine = (struct ledger_activity){};
	if (record->in_places || record->in_slot)
		recycle_on_cpus(tgid, slot);
	record->in_places = 0;
	record->in_slot = 0;
	give_slot_back(slot);
}

/*
 * Removes the record of a process. The holder of the claim is the only one that
 * removes it, so the slot it looks up is the slot that the deletion frees. If
 * another removal holds the claim, that one removes the record; it may also
 * remove an event of the new life that comes earlier, which is counted as a
 * loss.
 */
static __always_inline void forget(u32 tgid, enum removal which)
{
	struct ledger_process *record;
	u32 *known, slot;
	u64 now;

	if (!slots.lookup(&tgid))
		return;
	now = bpf_ktime_get_ns();
	if (claims.insert(&tgid, &now)) {
		if (which == REMOVE_ANY)
			count_total(LEDGER_DROPPED);
		return;
	}
	known = slots.lookup(&tgid);
	if (known) {
		slot = *known;
		record = records.lookup(&slot);
		if (record && (which == REMOVE_ANY || record->leader_exit_ns) &&
		    !slots.delete(&tgid))
			recycle(tgid, slot, record);
	}
	claims.delete(&tgid);
}
