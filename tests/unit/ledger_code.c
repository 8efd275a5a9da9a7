/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The ledger's BPF text as an ordinary program. Each table is a small one in
 * this process that can fail, or be changed by another CPU, at a chosen moment.
 * So each run reproduces what a kernel does once in a million events.
 * test_ledger_code.py compiles and runs it. The first argument names a
 * scenario; without an argument the program prints all names. One scenario has
 * a thread for each CPU, all others run in one thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define LEDGER_CAPACITY 7
#define LEDGER_COMMON 4
#define LEDGER_CPUS 3
#define EXIT_PLACES 4
#define LIFE_PAGES 3
#define SCHED_PROCESS_FORK_CHILD_PID 20
#define SCHED_PROCESS_FREE_PID 12
#define KVM_USERSPACE_EXIT_REASON 8
#define KVM_USERSPACE_EXIT_ERRNO 12
#define PT_REGS_PARM2(ctx) ((ctx)->second)
#define ROOM 64

struct pt_regs {
	u64 second;
};

static u64 now;
static _Thread_local u64 current;
static _Thread_local u32 cpu_number;

static u64 bpf_ktime_get_ns(void)
{
	return __atomic_add_fetch(&now, 1, __ATOMIC_RELAXED);
}

static u64 bpf_get_current_pid_tgid(void)
{
	return current;
}

static u32 bpf_get_smp_processor_id(void)
{
	return cpu_number;
}

/* A table of either kind. An array has every key, a hash only the inserted ones. */
struct table {
	bool is_array, fail_insert, fail_delete;
	void (*before_insert)(void); /* called once, in place of another CPU */
	u32 room;
	size_t bytes;
	u32 keys[ROOM];
	bool used[ROOM];
	u8 *values;
};

static void *table_lookup(struct table *table, u32 key)
{
	if (!table->values)
		table->values = calloc(table->is_array ? table->room : ROOM, table->bytes);
	if (table->is_array)
		return key < table->room ? table->values + key * table->bytes : NULL;
	for (u32 i = 0; i < ROOM; i++)
		if (table->used[i] && table->keys[i] == key)
			return table->values + i * table->bytes;
	return NULL;
}

static int table_insert(struct table *table, u32 key, const void *value)
{
	void (*other)(void) = table->before_insert;

	table->before_insert = NULL;
	if (other)
		other();
	if (table_lookup(table, key))
		return -EEXIST;
	for (u32 i = 0; i < ROOM && !table->fail_insert; i++) {
		if (table->used[i])
			continue;
		table->used[i] = true;
		table->keys[i] = key;
		memcpy(table->values + i * table->bytes, value, table->bytes);
		return 0;
	}
	return -E2BIG;
}

static int table_delete(struct table *table, u32 key)
{
	for (u32 i = 0; i < ROOM && !table->fail_delete; i++)
		if (table->used[i] && table->keys[i] == key)
			return table->used[i] = false;
	return -ENOENT;
}

/* Calls on hashes and stacks exclude each other, as in the kernel; those on arrays do not. */
static pthread_mutex_t locked = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

#define LOCKED(call)                                                                               \
	({                                                                                         \
		pthread_mutex_lock(&locked);                                                       \
		__typeof__(call) result = call;                                                    \
		pthread_mutex_unlock(&locked);                                                     \
		result;                                                                            \
	})

struct stack {
	u32 numbers[ROOM], depth;
};

static int stack_push(struct stack *stack, u32 number)
{
	if (stack->depth == LEDGER_CAPACITY)
		return -E2BIG;
	stack->numbers[stack->depth++] = number;
	return 0;
}

static int stack_pop(struct stack *stack, u32 *number)
{
	if (!stack->depth)
		return -ENOENT;
	*number = stack->numbers[--stack->depth];
	return 0;
}

#define UNUSED __attribute__((unused))
#define BPF_F_TABLE(kind, key_type, value_type, name, size, flags)                                 \
	static struct table name##_table = {.bytes = sizeof(value_type), .room = (size)};          \
	static value_type *name##_lookup(key_type *key)                                            \
	{                                                                                          \
		if (!strcmp(kind, "array") && name##_table.values)                                 \
			return table_lookup(&name##_table, *key);                                  \
		name##_table.is_array = !strcmp(kind, "array");                                    \
		return LOCKED(table_lookup(&name##_table, *key));                                  \
	}                                                                                          \
	static int name##_insert(key_type *key, value_type *value)                                 \
	{                                                                                          \
		name##_lookup(key);                                                                \
		return LOCKED(table_insert(&name##_table, *key, value));                           \
	}                                                                                          \
	static int name##_delete(key_type *key)                                                    \
	{                                                                                          \
		return LOCKED(table_delete(&name##_table, *key));                                  \
	}                                                                                          \
	static UNUSED struct {                                                                     \
		value_type *(*lookup)(key_type *);                                                 \
		int (*insert)(key_type *, value_type *);                                           \
		int (*delete)(key_type *);                                                         \
	} name = {name##_lookup, name##_insert, name##_delete}

#define BPF_STACK(name, type, size)                                                                \
	static struct stack name##_stack;                                                          \
	static int name##_push(type *number, u64 flags)                                            \
	{                                                                                          \
		return flags ? -EINVAL : LOCKED(stack_push(&name##_stack, *number));               \
	}                                                                                          \
	static int name##_pop(type *number)                                                        \
	{                                                                                          \
		return LOCKED(stack_pop(&name##_stack, number));                                   \
	}                                                                                          \
	static struct {                                                                            \
		int (*push)(type *, u64);                                                          \
		int (*pop)(type *);                                                                \
	} name = {name##_push, name##_pop}

/* In the order of hooks.PROGRAM_FILES. */
#include "ledger.bpf.c"

#include "kvm_ioctls.bpf.c"
#include "mshv_ioctls.bpf.c"
#include "vm_exits.bpf.c"
#include "processes.bpf.c"

#define TGID 42 /* the current process */
#define MEETS (TGID + EXIT_PLACES)
#define BYSTANDER 77

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			printf("line %d: not so: %s\n", __LINE__, #condition);                     \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static u8 tracepoint_record[64];

static void *with(size_t offset, u32 number)
{
	memcpy(tracepoint_record + offset, &number, sizeof(number));
	return tracepoint_record;
}

static void be(u32 tgid, u32 tid)
{
	current = (u64)tgid << 32 | tid;
}

static void asks(u32 tgid, int (*program)(struct pt_regs *), u64 number)
{
	struct pt_regs registers = {.second = number};

	be(tgid, tgid + 1);
	program(&registers);
}

static void creates_vm(u32 tgid)
{
	asks(tgid, on_kvm_dev_ioctl, KVM_CREATE_VM);
}

static void runs(u32 tgid)
{
	asks(tgid, on_kvm_vcpu_ioctl, KVM_RUN);
}

static void forks(u32 number)
{
	be(1, 1);
	on_sched_process_fork_seen(NULL);
	on_sched_process_fork(with(SCHED_PROCESS_FORK_CHILD_PID, number));
}

static void executes(u32 tgid)
{
	be(tgid, tgid);
	on_sched_process_exec(tracepoint_record);
	on_sched_process_exec(NULL); /* the other attach point fires as well */
}

static void ends(u32 tgid, u32 tid)
{
	be(tgid, tid);
	on_sched_process_exit(tracepoint_record);
	on_sched_process_exit(NULL); /* the other attach point fires as well */
}

static void is_freed(u32 number)
{
	be(0, 0);
	on_sched_process_free(with(SCHED_PROCESS_FREE_PID, number));
}

static struct ledger_process *record_of(u32 tgid)
{
	return known_process(tgid);
}

static void exits_guest(u32 tgid, u32 cpu)
{
	be(tgid, tgid + 1);
	cpu_number = cpu;
	on_kvm_exit(NULL);
	cpu_number = 0;
}

static u32 slot_number(u32 tgid)
{
	return *slots.lookup(&tgid);
}

static struct ledger_activity *counters(u32 slot)
{
	return activity.lookup(&slot);
}

/* The counters of a CPU at a slot. */
static struct ledger_cpu_activity *beside(u32 slot, u32 cpu)
{
	u32 at = cpu * LEDGER_CAPACITY + slot;

	return cpu_activity.lookup(&at);
}

static struct ledger_place *place_of(u32 tgid, u32 cpu)
{
	return &places.lookup(&cpu)->of[tgid % EXIT_PLACES];
}

static u64 owner_in(u32 tgid, u32 slot)
{
	return (u64)slot << 32 | tgid;
}

/* All exits that a process has at its slot, as the reader adds them up: ledger_arrays.py. */
static u64 exits_at(u32 tgid, u32 slot)
{
	const volatile struct ledger_process *record = records.lookup(&slot);
	bool in_places = record->in_places, in_slot = record->in_slot;
	u64 sum = 0;

	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {
		const volatile struct ledger_place *place = place_of(tgid, cpu);

		if (in_slot)
			sum += ((volatile struct ledger_cpu_activity *)beside(slot, cpu))->exits;
		if (in_places && place->owner == owner_in(tgid, slot))
			sum += place->activity.exits;
	}
	return sum;
}

static u64 exits_of(u32 tgid)
{
	return exits_at(tgid, slot_number(tgid));
}

static u64 total(u32 which)
{
	return *totals.lookup(&which);
}

static u64 dropped(void)
{
	return total(LEDGER_DROPPED);
}

static u32 in_use(const struct table *table)
{
	u32 count = 0;

	for (u32 i = 0; i < ROOM; i++)
		count += table->used[i];
	return count;
}

/* Each slot is either once in its own stack or owned by one process, and no removal is pending. */
static void check_slots(void)
{
	bool seen[LEDGER_CAPACITY] = {};
	const struct stack *stacks[] = {&free_slots_stack, &reserved_slots_stack};

	for (u32 which = 0; which < 2; which++) {
		for (u32 i = 0; i < stacks[which]->depth; i++) {
			u32 slot = stacks[which]->numbers[i];

			CHECK(slot < LEDGER_CAPACITY);
			CHECK((slot >= LEDGER_COMMON) == which);
			CHECK(!seen[slot]);
			seen[slot] = true;
		}
	}
	for (u32 i = 0; i < ROOM; i++) {
		u32 slot = slots_table.used[i] ? *(u32 *)(slots_table.values + 4 * i) : 0;

		if (!slots_table.used[i])
			continue;
		CHECK(!seen[slot]);
		seen[slot] = true;
	}
	for (u32 slot = 0; slot < LEDGER_CAPACITY; slot++)
		CHECK(seen[slot]);
	CHECK(!in_use(&claims_table));
}

static void a_record_begins_with_the_first_event(void)
{
	creates_vm(TGID);
	CHECK(record_of(TGID)->tgid == TGID && record_of(TGID)->vms_created == 1);
	CHECK(record_of(TGID)->first_ns == now);
	asks(TGID, on_kvm_vm_ioctl, KVM_CREATE_VCPU);
	asks(TGID, on_kvm_vm_ioctl, KVM_CREATE_VCPU + 1);
	CHECK(record_of(TGID)->vcpus_created == 1);
	executes(BYSTANDER);
	forks(BYSTANDER + 1);
	ends(BYSTANDER, BYSTANDER);
	CHECK(in_use(&slots_table) == 1);
}

static void other_thread_makes_the_record(void)
{
	u32 tgid = TGID, slot = 0;

	CHECK(!free_slots.pop(&slot));
	CHECK(!table_insert(&slots_table, tgid, &slot));
	*records.lookup(&slot) = (struct ledger_process){.tgid = tgid, .first_ns = 5};
}

/* When two threads call slot_of() at the same time, the second returns its slot. */
static void two_threads_race_for_a_record(void)
{
	slots_table.before_insert = other_thread_makes_the_record;
	runs(TGID);
	CHECK(record_of(TGID)->first_ns == 5);
	CHECK(counters(slot_number(TGID))->runs == 1);
	CHECK(!dropped());
}

static void no_room_in_the_hash(void)
{
	slots_table.fail_insert = true;
	runs(TGID);
	creates_vm(BYSTANDER);
	CHECK(dropped() == 2);
	CHECK(free_slots_stack.depth == LEDGER_COMMON);
}

static void a_removal_leaves_nothing(void)
{
	u32 slot, other;

	creates_vm(BYSTANDER);
	creates_vm(TGID);
	slot = slot_number(TGID);
	other = slot_number(BYSTANDER);
	runs(BYSTANDER);
	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {
		exits_guest(TGID, cpu);
		exits_guest(BYSTANDER, cpu);
		*beside(slot, cpu) = (struct ledger_cpu_activity){1};
		*beside(other, cpu) = (struct ledger_cpu_activity){1};
	}
	memset(counters(slot), 1, sizeof(struct ledger_activity));
	record_of(TGID)->vcpus_created = 3;
	record_of(TGID)->in_slot = record_of(BYSTANDER)->in_slot = 1;
	ends(TGID, TGID);
	is_freed(TGID);
	CHECK(!record_of(TGID));
	records.lookup(&slot)->tgid = 0;
	CHECK(!memcmp(records.lookup(&slot), &(struct ledger_process){},
		      sizeof(struct ledger_process)));
	CHECK(!memcmp(counters(slot), &(struct ledger_activity){}, sizeof(struct ledger_activity)));
	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {
		CHECK(!beside(slot, cpu)->exits);
		CHECK(place_of(TGID, cpu)->owner == LEDGER_RELEASED);
	}
	CHECK(counters(other)->runs == 1 && exits_of(BYSTANDER) == 2 * LEDGER_CPUS);
	CHECK(!dropped());
}

/* A record without counts of single CPUs costs its removal no memory of theirs. */
static void a_removal_without_exits_touches_no_cpu(void)
{
	u32 slot;

	runs(TGID);
	slot = slot_number(TGID);
	CHECK(!record_of(TGID)->in_places && !record_of(TGID)->in_slot);
	beside(slot, 1)->exits = 7;
	executes(TGID);
	CHECK(beside(slot, 1)->exits == 7);
	beside(slot, 1)->exits = 0;
	exits_guest(TGID, 1);
	CHECK(record_of(TGID)->in_places && !record_of(TGID)->in_slot);
	executes(TGID);
	CHECK(place_of(TGID, 1)->owner == LEDGER_RELEASED && !place_of(TGID, 0)->owner);
	CHECK(!records.lookup(&slot)->in_places);
}

/* The other one counts at its slot, on that CPU, until the record ends. */
static void a_place_belongs_to_the_first(void)
{
	exits_guest(TGID, 1);
	exits_guest(MEETS, 1);
	exits_guest(TGID, 1);
	exits_guest(MEETS, 1);
	exits_guest(MEETS, 1);
	exits_guest(MEETS, 2);
	CHECK(place_of(TGID, 1)->owner == owner_in(TGID, slot_number(TGID)));
	CHECK(place_of(TGID, 1)->activity.exits == 2);
	CHECK(beside(slot_number(MEETS), 1)->exits == 3);
	CHECK(place_of(MEETS, 2)->activity.exits == 1);
	CHECK(exits_of(TGID) == 2 && exits_of(MEETS) == 4);
	CHECK(!record_of(TGID)->in_slot && record_of(MEETS)->in_slot);
	executes(MEETS);
	CHECK(exits_of(TGID) == 2);
	CHECK(place_of(TGID, 1)->owner == owner_in(TGID, slot_number(TGID)));
	CHECK(place_of(MEETS, 2)->owner == LEDGER_RELEASED);
}

/* Its counters are cleared at one exit and used from the next one on; none is lost. */
static void a_released_place_is_cleared_before_it_is_taken(void)
{
	for (u32 i = 0; i < 5; i++)
		exits_guest(TGID, 2);
	executes(TGID);
	CHECK(place_of(TGID, 2)->owner == LEDGER_RELEASED);
	exits_guest(MEETS, 2);
	CHECK(!place_of(MEETS, 2)->owner && !place_of(MEETS, 2)->activity.exits);
	CHECK(exits_of(MEETS) == 1 && beside(slot_number(MEETS), 2)->exits == 1);
	exits_guest(TGID, 2);
	CHECK(place_of(TGID, 2)->owner == owner_in(TGID, slot_number(TGID)));
	exits_guest(MEETS, 2);
	exits_guest(TGID, 2);
	CHECK(exits_of(MEETS) == 2 && exits_of(TGID) == 2);
}

/* The new life of a number begins at 0, also in the slot that it had before. */
static void a_new_record_does_not_get_the_old_exits(void)
{
	u32 slot;

	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++)
		exits_guest(TGID, cpu);
	slot = slot_number(TGID);
	executes(TGID);
	runs(TGID);
	CHECK(slot_number(TGID) == slot && !exits_of(TGID));
	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++)
		exits_guest(TGID, cpu);
	exits_guest(TGID, 0);
	CHECK(exits_of(TGID) == LEDGER_CPUS + 1);
}

/*
 * A removal by the reader left a place that names another slot. Its process counts there until the
 * reader releases it; a removal of the process's new record does not touch it.
 */
static void only_its_own_removal_releases_a_place(void)
{
	u32 stale = LEDGER_CAPACITY - 1;

	runs(TGID);
	place_of(TGID, 0)->owner = owner_in(TGID, stale);
	exits_guest(TGID, 0);
	exits_guest(TGID, 1);
	CHECK(place_of(TGID, 0)->activity.exits == 1 && exits_of(TGID) == 1);
	executes(TGID);
	CHECK(place_of(TGID, 0)->owner == owner_in(TGID, stale));
	CHECK(place_of(TGID, 1)->owner == LEDGER_RELEASED);
}

/* The entry of a removed record in the hash becomes another process's while a program holds it. */
static void a_slot_of_another_process_is_not_used(void)
{
	u32 slot;

	runs(BYSTANDER);
	runs(TGID);
	slot = slot_number(TGID);
	*slots.lookup(&(u32){TGID}) = slot_number(BYSTANDER);
	exits_guest(TGID, 0);
	CHECK(!place_of(TGID, 0)->owner && !exits_of(BYSTANDER));
	place_of(TGID, 0)->owner = LEDGER_RELEASED;
	exits_guest(TGID, 0);
	CHECK(!exits_of(BYSTANDER));
	*slots.lookup(&(u32){TGID}) = slot;
}

static void no_room_for_a_process_that_exits(void)
{
	slots_table.fail_insert = true;
	exits_guest(TGID, 0);
	CHECK(dropped() == 1 && !place_of(TGID, 0)->owner);
}

static void a_deletion_that_fails(void)
{
	u64 first_ns;

	runs(TGID);
	exits_guest(TGID, 1);
	first_ns = record_of(TGID)->first_ns;
	slots_table.fail_delete = true;
	executes(TGID);
	slots_table.fail_delete = false;
	CHECK(record_of(TGID)->first_ns == first_ns);
	CHECK(exits_of(TGID) == 1);
	CHECK(counters(slot_number(TGID))->runs == 1);
	check_slots();
	executes(TGID);
	CHECK(!record_of(TGID));
}

static void a_freed_number_that_is_used_again(void)
{
	runs(TGID);
	ends(TGID, TGID);
	CHECK(record_of(TGID)->leader_exit_ns == now);
	forks(TGID); /* the kernel frees the old owner afterwards */
	CHECK(!record_of(TGID));
	runs(TGID);
	is_freed(TGID);
	CHECK(counters(slot_number(TGID))->runs == 1);
	ends(TGID, TGID);
	is_freed(TGID);
	CHECK(!record_of(TGID));
}

static void only_the_main_thread_ends_the_process(void)
{
	runs(TGID);
	ends(TGID, TGID + 1);
	CHECK(!record_of(TGID)->leader_exit_ns);
	is_freed(TGID + 1);
	is_freed(TGID);
	CHECK(record_of(TGID));
}

static bool began(u32 number)
{
	u32 page = number / LEDGER_LIFE_BYTES;
	bool is = lives.lookup(&page)->began[number % LEDGER_LIFE_BYTES];

	CHECK(!is || *life_pages.lookup(&page));
	lives.lookup(&page)->began[number % LEDGER_LIFE_BYTES] = 0;
	return is;
}

static void lives_are_marked(void)
{
	const u32 greatest = LIFE_PAGES * LEDGER_LIFE_BYTES - 1;

	runs(TGID);
	CHECK(!began(TGID));
	forks(TGID);
	CHECK(began(TGID) && !record_of(TGID));
	runs(TGID);
	executes(TGID);
	CHECK(began(TGID) && !record_of(TGID));
	forks(greatest);
	forks(greatest + 1); /* pid_max was raised */
	CHECK(total(LEDGER_FORKS) == 3 && total(LEDGER_FORKS_MARKED) == 3);
	on_sched_process_fork_seen(NULL);
	CHECK(total(LEDGER_FORKS) == 4 && total(LEDGER_FORKS_MARKED) == 3);
	CHECK(began(greatest));
	ends(TGID, TGID + 1); /* a thread */
	CHECK(!began(TGID) && !began(TGID + 1));
	ends(TGID, TGID);
	CHECK(began(TGID));
	is_freed(TGID);
	CHECK(!began(TGID) && !began(TGID - 1) && !began(TGID + 1));
}

static void another_removal_has_the_claim(void)
{
	u32 tgid = TGID;

	runs(TGID);
	CHECK(!claims.insert(&tgid, &now));
	executes(TGID);
	CHECK(record_of(TGID) && dropped() == 2);
	forks(TGID);
	CHECK(record_of(TGID) && dropped() == 3);
	ends(TGID, TGID);
	is_freed(TGID);
	CHECK(record_of(TGID) && dropped() == 3);
	CHECK(claims.lookup(&tgid));
	CHECK(!claims.delete(&tgid));
	is_freed(TGID);
	CHECK(!record_of(TGID));
}

static void other_removal_and_a_new_record(void)
{
	u32 tgid = TGID, slot = *slots.lookup(&tgid);

	CHECK(!slots.delete(&tgid));
	recycle(tgid, slot, records.lookup(&slot));
	creates_vm(BYSTANDER); /* which gets that slot */
	runs(TGID);
	CHECK(*slots.lookup(&tgid) != slot);
}

/* The returned slot is the one that the deletion frees, not one that was read earlier. */
static void a_record_replaced_before_the_claim(void)
{
	runs(TGID);
	claims_table.before_insert = other_removal_and_a_new_record;
	executes(TGID);
	CHECK(!record_of(TGID) && record_of(BYSTANDER)->vms_created == 1);
}

static void half_is_kept_for_vcpus(void)
{
	for (u32 tgid = 100; tgid < 100 + LEDGER_CAPACITY; tgid++)
		creates_vm(tgid);
	CHECK(in_use(&slots_table) == LEDGER_COMMON);
	CHECK(dropped() == LEDGER_CAPACITY - LEDGER_COMMON);
	runs(TGID);
	asks(TGID + 1, on_kvm_vm_ioctl, KVM_CREATE_VCPU);
	CHECK(*slots.lookup(&(u32){TGID}) >= LEDGER_COMMON && record_of(TGID + 1));
	check_slots();
	for (u32 tgid = 100; tgid < 100 + LEDGER_COMMON; tgid++)
		executes(tgid);
	executes(TGID);
	executes(TGID + 1);
	CHECK(free_slots_stack.depth == LEDGER_COMMON);
	runs(TGID);
	CHECK(*slots.lookup(&(u32){TGID}) < LEDGER_COMMON);
}

static void returns(u32 tgid, u32 reason, int error)
{
	u64 arguments[] = {reason, (u32)error};

	be(tgid, tgid + 1);
	with(KVM_USERSPACE_EXIT_REASON, reason);
	on_kvm_userspace_exit_record(with(KVM_USERSPACE_EXIT_ERRNO, error));
	on_kvm_userspace_exit_raw(arguments);
	on_kvm_userspace_exit(NULL);
}

/* Each return counts in all three forms. Two of them count only completed runs as completed. */
static void returns_that_prove_a_run(void)
{
	const struct ledger_activity *mine;

	returns(TGID, 10, -EINTR);
	mine = counters(slot_number(TGID));
	returns(TGID, 2, -EINVAL);
	returns(TGID, KVM_EXIT_FAIL_ENTRY, 0);
	returns(TGID, KVM_EXIT_INTERNAL_ERROR, 0);
	CHECK(mine->userspace_exits == 12 && !mine->completed_runs);
	returns(TGID, 2, 0);
	CHECK(mine->userspace_exits == 15 && mine->completed_runs == 2);
	be(TGID, TGID);
	on_kvm_exit(NULL);
	asks(TGID, on_mshv_vp_ioctl, MSHV_RUN_VP);
	CHECK(exits_of(TGID) == 1 && mine->mshv_runs == 1 && !mine->runs);
}

#define GUESTS 5
#define EVENTS 60000

/* A process whose vCPU runs on one CPU at a time, and how many exits it has made in this life. */
static struct guest {
	pthread_mutex_t on_a_cpu;
	u32 tgid;
	u64 life;    /* odd while one ends and the next one begins */
	u64 started; /* exits, counted before each */
	u64 ended;   /* exits, counted after each */
} guests[GUESTS];

static u32 cpus_at_work;

static u64 seen(const u64 *number)
{
	return __atomic_load_n(number, __ATOMIC_SEQ_CST);
}

static void becomes(u64 *number, u64 value)
{
	__atomic_store_n(number, value, __ATOMIC_SEQ_CST);
}

static void begins_a_new_life(struct guest *guest)
{
	becomes(&guest->life, guest->life + 1);
	executes(guest->tgid);
	becomes(&guest->started, 0);
	becomes(&guest->ended, 0);
	becomes(&guest->life, guest->life + 1);
}

static void *one_cpu(void *cpu)
{
	unsigned int seed = (uintptr_t)cpu;

	for (u32 i = 0; i < EVENTS; i++) {
		struct guest *guest = &guests[rand_r(&seed) % GUESTS];

		if (pthread_mutex_trylock(&guest->on_a_cpu))
			continue;
		becomes(&guest->started, guest->started + 1);
		exits_guest(guest->tgid, (uintptr_t)cpu);
		becomes(&guest->ended, guest->ended + 1);
		/* The first two live for ever, so that places are shared by old and new records. */
		if (guest > &guests[1] && !(rand_r(&seed) % 32))
			begins_a_new_life(guest);
		pthread_mutex_unlock(&guest->on_a_cpu);
	}
	__atomic_sub_fetch(&cpus_at_work, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Reads one process in the order of the reader, and checks what it may believe. */
static bool is_read_exactly(struct guest *guest)
{
	u64 life = seen(&guest->life), ended = seen(&guest->ended), first_ns, found = 0, started;
	u32 *slot = slots.lookup(&guest->tgid), at = slot ? *slot : 0;
	struct ledger_process *record = records.lookup(&at);

	if (slot) {
		first_ns = seen(&record->first_ns);
		found = exits_at(guest->tgid, at);
		if (!first_ns || seen(&record->first_ns) != first_ns || record->tgid != guest->tgid)
			return false;
	}
	started = seen(&guest->started);
	if (life % 2 || seen(&guest->life) != life)
		return false;
	CHECK(ended <= found && found <= started);
	return true;
}

static void exits_on_all_cpus_are_exact(void)
{
	pthread_t threads[LEDGER_CPUS];
	u64 readings = 0;

	for (u32 i = 0; i < GUESTS; i++) {
		guests[i] = (struct guest){.tgid = TGID + i * EXIT_PLACES};
		pthread_mutex_init(&guests[i].on_a_cpu, NULL);
	}
	cpus_at_work = LEDGER_CPUS;
	for (uintptr_t cpu = 0; cpu < LEDGER_CPUS; cpu++)
		CHECK(!pthread_create(&threads[cpu], NULL, one_cpu, (void *)cpu));
	while (__atomic_load_n(&cpus_at_work, __ATOMIC_SEQ_CST))
		for (u32 i = 0; i < GUESTS; i++)
			readings += is_read_exactly(&guests[i]);
	for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++)
		pthread_join(threads[cpu], NULL);
	for (u32 i = 0; i < GUESTS; i++)
		CHECK(is_read_exactly(&guests[i]));
	CHECK(readings && !dropped());
}

static const struct {
	const char *name;
	void (*run)(void);
} scenarios[] = {
#define SCENARIO(name) {#name, name}
	SCENARIO(a_record_begins_with_the_first_event),
	SCENARIO(two_threads_race_for_a_record),
	SCENARIO(no_room_in_the_hash),
	SCENARIO(a_removal_leaves_nothing),
	SCENARIO(a_removal_without_exits_touches_no_cpu),
	SCENARIO(a_place_belongs_to_the_first),
	SCENARIO(a_released_place_is_cleared_before_it_is_taken),
	SCENARIO(a_new_record_does_not_get_the_old_exits),
	SCENARIO(only_its_own_removal_releases_a_place),
	SCENARIO(a_slot_of_another_process_is_not_used),
	SCENARIO(no_room_for_a_process_that_exits),
	SCENARIO(a_deletion_that_fails),
	SCENARIO(a_freed_number_that_is_used_again),
	SCENARIO(only_the_main_thread_ends_the_process),
	SCENARIO(lives_are_marked),
	SCENARIO(another_removal_has_the_claim),
	SCENARIO(a_record_replaced_before_the_claim),
	SCENARIO(half_is_kept_for_vcpus),
	SCENARIO(returns_that_prove_a_run),
	SCENARIO(exits_on_all_cpus_are_exact),
};

int main(int argc, char **argv)
{
	u32 first = 0;

	claims.lookup(&first);
	slots.lookup(&first);
	records.lookup(&first);
	places.lookup(&first);
	cpu_activity.lookup(&first);
	activity.lookup(&first);
	totals.lookup(&first);
	lives.lookup(&first);
	life_pages.lookup(&first);
	for (u32 slot = LEDGER_CAPACITY; slot--;)
		give_slot_back(slot);
	for (size_t i = 0; i < sizeof(scenarios) / sizeof(*scenarios); i++) {
		if (argc < 2) {
			puts(scenarios[i].name);
		} else if (!strcmp(argv[1], scenarios[i].name)) {
			scenarios[i].run();
			check_slots();
			return 0;
		}
	}
	return argc < 2 ? 0 : 2;
}
