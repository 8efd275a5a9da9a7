/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The ledger: what the kernel writes down about each process that uses an
 * accelerator. These records are read by ledger.py, which mirrors them with
 * ctypes; both sides are compared by a test that compiles this file in plain
 * user space. Fixed-width types only, explicit padding only.
 *
 * Counters only ever grow. A record lives as long as its process.
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
 * One a process, at its slot, written rarely. Times are CLOCK_MONOTONIC
 * nanoseconds; 0 means "did not happen", and in first_ns that the slot is free.
 */
struct ledger_process {
	__u64 first_ns;	      /* when the process first came to the ledger's notice */
	__u64 tgid;	      /* as the initial PID namespace numbers it */
	__u64 leader_exit_ns; /* when its main thread ended */
	__u64 vms_created;    /* KVM_CREATE_VM asked for */
	__u64 vcpus_created;  /* KVM_CREATE_VCPU asked for */
};

/*
 * One a slot and CPU, written at every event, by that CPU alone, and cleared
 * when the process's record ends. CPU by CPU, slot by slot.
 */
struct ledger_activity {
	__u64 runs;	       /* KVM_RUN entered */
	__u64 userspace_exits; /* KVM_RUN returned to the VMM (kvm_userspace_exit) */
	__u64 completed_runs;  /* those returns that no error caused */
	__u64 exits;	       /* the guest left the CPU (kvm_exit) */
	__u64 mshv_runs;       /* MSHV_RUN_VP entered */
};

/* One byte for each process and thread number: 1 when a life began at it. */
#define LEDGER_LIFE_BYTES 4096

struct ledger_lives {
	__u8 began[LEDGER_LIFE_BYTES];
};

/* Index of each total that belongs to no process. */
enum ledger_total {
	LEDGER_DROPPED,	     /* events that found no room in the ledger */
	LEDGER_FORKS,	     /* forks that a program ran for */
	LEDGER_FORKS_MARKED, /* forks whose child was marked */
	LEDGER_TOTALS,
};

#endif
