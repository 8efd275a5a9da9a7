/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The ledger: what the kernel records about each process that uses an
 * accelerator. ledger.py reads these records and mirrors them with ctypes; a
 * test that compiles this file in plain user space compares both sides. Use
 * fixed-width types and explicit padding only.
 *
 * Counters never decrease. A record lives as long as its process.
 */
#ifndef HVPROBE_LEDGER_H
#define HVPROBE_LEDGER_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
typedef uint8_t __u8;
typedef uint32_t __u32;
typedef uint64_t __u64;
#endif

/*
 * One per process, at its slot, written rarely. Times are CLOCK_MONOTONIC
 * nanoseconds; 0 means "did not happen", and in first_ns that the slot is free.
 */
struct ledger_process {
	__u64 first_ns;	      /* when the ledger first saw the process */
	__u64 tgid;	      /* as the initial PID namespace numbers it */
	__u64 leader_exit_ns; /* when its main thread ended */
	__u64 vms_created;    /* KVM_CREATE_VM calls */
	__u64 vcpus_created;  /* KVM_CREATE_VCPU calls */
	__u64 in_places;      /* 1: some of its per-CPU counts are in places */
	__u64 in_slot;	      /* 1: some of its per-CPU counts are at its slot */
};

/*
 * One per slot, for events that take microseconds. All CPUs add to it
 * atomically. It is cleared when the process's record ends.
 */
struct ledger_activity {
	__u64 runs;	       /* KVM_RUN calls */
	__u64 userspace_exits; /* KVM_RUN returned to the VMM (kvm_userspace_exit) */
	__u64 completed_runs;  /* those returns that prove a run */
	__u64 mshv_runs;       /* MSHV_RUN_VP calls */
};

/*
 * Counters of events so short that an atomic operation would show. Only one CPU
 * writes each of them. A process's count is the sum over its places on all CPUs
 * and over the counters at its slot, of which there is one set for each CPU,
 * ordered by CPU, then by slot.
 */
struct ledger_cpu_activity {
	__u64 exits; /* the guest left the CPU (kvm_exit) */
};

/*
 * A place for the per-CPU counters of one process, found by its number alone.
 * Each CPU has the same number of places. See ledger.bpf.c.
 */
struct ledger_place {
	__u64 owner; /* slot << 32 | tgid; 0: free; LEDGER_RELEASED: to be cleared */
	struct ledger_cpu_activity activity;
};

/* The owner of a place whose owner's record has ended. No process has number 0. */
#define LEDGER_RELEASED (1ULL << 63)

/* One byte for each process and thread number; 1: a life began at this number. */
#define LEDGER_LIFE_BYTES 4096

struct ledger_lives {
	__u8 began[LEDGER_LIFE_BYTES];
};

/* The index of each total that belongs to no process. */
enum ledger_total {
	LEDGER_DROPPED,	     /* events dropped because the ledger was full */
	LEDGER_FORKS,	     /* forks that a program observed */
	LEDGER_FORKS_MARKED, /* forks whose child was marked */
	LEDGER_TOTALS,
};

#endif
