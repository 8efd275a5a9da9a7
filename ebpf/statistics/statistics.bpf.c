/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What do KVM's statistics of many vCPUs say now? This program reads them where
 * KVM keeps them, those of all vCPUs in one system call of the reader. No
 * descriptor is copied, so nothing holds a VM, and no process can delay it.
 *
 * It is an iterator: the kernel runs it once for each element of `vcpus`. An
 * element names a process and one of its descriptors. Which file that is, the
 * kernel itself says: the file's name, and the file system that has only files
 * without a place (anon_inode:kvm-vcpu-stats:0 in /proc). Nothing else is
 * believed: not an address that was seen before, not a number that was reused.
 *
 * Everything is read with bpf_probe_read_kernel, in an RCU read-side section.
 * The process may end or close the descriptor on another CPU, and then what was
 * read may be of something else. So the file and its vCPU are looked up again
 * after the counts. A table of files loses a file before the file, and much
 * later the vCPU, are freed: what is the same before and after existed between.
 *
 * The offsets are -D flags, from the kernel's description of its types. COUNTS
 * is the number of wanted counts, and TICK_NS the unit of start times in /proc.
 * The two functions of the kernel exist since Linux 3f0e6f2b41d3 ("bpf: Add
 * bpf_task_from_pid() kfunc") (v6.2). The loader puts them in place of the
 * numbers that stand for them here.
 */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define BPF_F_MMAPABLE (1U << 10)
/* include/uapi/linux/magic.h */
#define ANON_INODE_FS_MAGIC 0x09041934
/* Of a file's name: more than the name of any vCPU has. */
#define NAME_WORDS 4
#define NOT_WANTED (~0ULL)

struct vcpu_statistics {
	u32 tgid; /* 0: this element is behind the last one */
	u32 fd;
	u64 start_ticks;
	u64 name[NAME_WORDS];
	u64 found; /* 1: the counts are those of this call */
	u64 counts[COUNTS];
};

struct wanted_counts {
	u64 offset[COUNTS]; /* among the statistics; NOT_WANTED: there are fewer */
};

/* What the kernel gives to an iterator: include/linux/bpf.h, kernel/bpf/map_iter.c. */
struct bpf_iter__bpf_map_elem {
	u64 *meta; /* struct bpf_iter_meta, which begins with the output */
	void *map;
	void *key;
	struct vcpu_statistics *value;
};

BPF_F_TABLE("array", u32, struct vcpu_statistics, vcpus, VCPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct wanted_counts, wanted, 1, BPF_F_MMAPABLE);

static void *(*task_from_pid)(s32 pid) = (void *)TASK_FROM_PID;
static void (*task_release)(void *task) = (void *)TASK_RELEASE;

#define READ(to, base, offset)                                                                     \
	bpf_probe_read_kernel(&(to), sizeof(to), (void *)((u64)(base) + (offset)))

/* Returns the file that a task has at a descriptor; 0: there is none. */
static __always_inline u64 file_at(void *task, u32 fd)
{
	u64 files = 0, table = 0, slots = 0, file = 0;
	u32 size = 0;

	READ(files, task, TASK_FILES);
	READ(table, files, FILES_TABLE);
	READ(size, table, TABLE_SIZE);
	READ(slots, table, TABLE_SLOTS);
	if (fd < size)
		READ(file, slots, 8 * (u64)fd);
	return file;
}

/* Whether the kernel calls a file what an element says. */
static __always_inline int is_named(u64 file, const u64 *name)
{
	u64 entry = 0, superblock = 0, magic = 0, text = 0, found[NAME_WORDS] = {};

	READ(entry, file, FILE_ENTRY);
	READ(superblock, entry, ENTRY_SUPERBLOCK);
	READ(magic, superblock, SUPERBLOCK_MAGIC);
	READ(text, entry, ENTRY_NAME);
	if (magic != ANON_INODE_FS_MAGIC)
		return 0;
	bpf_probe_read_kernel_str(found, sizeof(found), (void *)text);
	return found[0] == name[0] && found[1] == name[1] && found[2] == name[2] &&
	       found[3] == name[3];
}

static __always_inline void read_counts(void *task, struct vcpu_statistics *vcpu)
{
	u64 start_ns = 0, file, kvm_vcpu = 0, again = 0, count;
	struct wanted_counts *counts;
	u32 first = 0, at;

	counts = wanted.lookup(&first);
	READ(start_ns, task, TASK_START);
	file = file_at(task, vcpu->fd);
	if (!counts || !file || start_ns / TICK_NS != vcpu->start_ticks ||
	    !is_named(file, vcpu->name))
		return;
	READ(kvm_vcpu, file, FILE_VCPU);
#pragma unroll
	for (at = 0; at < COUNTS; at++) {
		count = 0;
		if (counts->offset[at] != NOT_WANTED &&
		    READ(count, kvm_vcpu, VCPU_STATISTICS + counts->offset[at]))
			return;
		vcpu->counts[at] = count;
	}
	if (file_at(task, vcpu->fd) != file)
		return;
	READ(again, file, FILE_VCPU);
	vcpu->found = again == kvm_vcpu;
}

int bpf_iter__bpf_map_elem(struct bpf_iter__bpf_map_elem *ctx)
{
	struct vcpu_statistics *vcpu = ctx->value;
	u8 end = 1;
	void *task;

	if (!vcpu)
		return 0;
	if (!vcpu->tgid) {
		bpf_seq_write((void *)ctx->meta[0], &end, sizeof(end));
		return 0;
	}
	task = task_from_pid(vcpu->tgid);
	if (!task)
		return 0;
	read_counts(task, vcpu);
	task_release(task);
	return 0;
}
