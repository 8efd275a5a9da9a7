/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * kvmload - a KVM user that is no QEMU and makes exactly known exits.
 *
 * Build: gcc -O2 -Wall -Wextra -Werror -static -pthread -o kvmload kvmload.c
 *
 * It makes M VMs of V vCPUs, a thread named vcpu<n> for each vCPU (n counts through all VMs;
 * --threads gives another name than vcpu). The vCPUs first make N userspace exits, shared out so
 * that their sum is exactly N, then K exits that KVM handles inside the kernel, shared out
 * likewise. This is the counted part. Then, if wanted, come the churn children. Then one line is
 * printed, and --then says how the vCPUs go on.
 *
 * The guest's programs, and what they cost:
 *   userspace exit   x86: out to port 0x10 (KVM_EXIT_IO); arm64: store outside memory
 *                    (KVM_EXIT_MMIO). Each is one KVM_RUN that returns.
 *   kernel exit      x86: in from port 0x21, the in-kernel interrupt controller's; arm64: HVC
 *                    with PSCI_VERSION. No KVM_RUN returns. The loop ends with one userspace
 *                    exit, so the kernel exits ADD one KVM_RUN and one userspace exit for each
 *                    vCPU that has a share of them (with K >= M * V: for each vCPU).
 *   halt             x86: HLT, interrupts off, in-kernel interrupt controller; arm64: WFI with no
 *                    interrupt source. The thread sleeps inside its last KVM_RUN.
 *   spin             a jump to itself. The thread computes inside its last KVM_RUN.
 *
 * The line is one JSON object, by this process alone (children count for themselves):
 *   tgid             this process
 *   vms, vcpus       VMs, and vCPUs of all VMs together, that it made and holds open
 *   kvm_run          KVM_RUN calls: userspace_exits + eintr, and with halt or spin one more per
 *                    vCPU, which is entered right after the line is printed
 *   userspace_exits  KVM_RUN calls that returned 0, with the exit that the guest was to make
 *   refused          KVM_RUN calls that ran no guest, as was wanted; tracepoints see them, too
 *   eintr            KVM_RUN calls that a signal or a stop interrupted; they were repeated.
 *                    The kernel's tracepoint kvm_userspace_exit sees userspace_exits + eintr.
 *   kernel_exits     exits that the guests made and KVM handled inside the kernel: K
 *   churn_children   children forked, ended and reaped; each had a VM and a vCPU of its own and
 *                    made exactly 7 KVM_RUN calls that were 7 userspace exits
 *   exits            with --statistics, VM exits by KVM's own count, those of closed statistics
 *                    and of ended VMs included
 *   state            hold, halt, spin, quit or leave-leader as given; paused (until the first
 *                    --step); vm-only
 * Should a counted part be impossible to do exactly, no line is printed: the program fails.
 *
 * With --statistics it holds the statistics of each vCPU open, as QEMU does. With --step, a line on
 * stdin may then be one of these words, and the line of results is printed again:
 *   close            close the statistics of the last vCPU, as QEMU does when a vCPU is unplugged
 *   open             open them again, as QEMU does when it is plugged in again
 *   plug             make one more vCPU of the last VM, with statistics, that never runs
 *   reset            end all VMs and make them and their vCPUs again, as QEMU does to reset a
 *                    confidential guest
 *
 * If the environment has KVMLOAD_OPTIONS, its lines are the options, and the command line, which is
 * another program's, means nothing.
 *
 * With a PROGRAM the process executes that at the next line on stdin, whatever it was until then;
 * with --keep its descriptors stay open.
 *
 * It also misbehaves, to try those who judge it. After what takes effect behind the line above, it
 * prints a further one: "done", or "child" and a process number.
 *   --tenant         no uid and no capability once the vCPUs are made
 *   --burn           a thread CPU 0/TCG that computes now and then, as one that emulates does
 *   --hide           closed: the descriptors are closed while the vCPUs are halted in KVM_RUN;
 *                    unshared: they are in no table but the vCPU threads'; own-table: they were
 *                    never in the main thread's. All want --then halt.
 *   --refused        instead of userspace exits, N calls of KVM_RUN that run no guest: interrupted
 *                    (immediate_exit, -EINTR), registers (wrong kvm_valid_regs, -EINVAL; x86) or
 *                    internal-error (what KVM cannot emulate, KVM_EXIT_INTERNAL_ERROR; x86)
 *   --child          forked: a child that has copies of the descriptors; runner: a process with
 *                    the same memory, which is the one that runs vCPU 0
 *
 * It ends with 0 when stdin reaches EOF or SIGTERM comes, with 1 and one line on stderr when
 * something fails, with 2 on wrong usage, and with 3 and a line when a guest made another exit than
 * it was to make: its processor went astray.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST_BASE 0x10000  /* guest physical address of the only memory */
#define GUEST_BYTES 0x10000 /* one page of the largest page size; a single 4 KiB is touched */
#define STACK_BYTES 0x10000
#define CHURN_EXITS 7
#define TENANT_ID 65534
#define MAX_PLUGGED 8
#define MAX_WORDS 64
#define KEPT 64 /* above the descriptors that --keep is for */

enum program { USERSPACE_LOOP, KERNEL_LOOP, HALT, SPIN, IMPOSSIBLE, PROGRAMS };
enum then { THEN_HOLD, THEN_HALT, THEN_SPIN, THEN_QUIT, THEN_LEAVE_LEADER };

static const char *const then_names[] = {"hold", "halt", "spin", "quit", "leave-leader"};

enum hide { HIDE_NOTHING, HIDE_CLOSED, HIDE_UNSHARED, HIDE_OWN_TABLE };
enum refusal { REFUSED_NOTHING, REFUSED_INTERRUPTED, REFUSED_REGISTERS, REFUSED_INTERNAL_ERROR };
enum child { CHILD_NONE, CHILD_FORKED, CHILD_RUNNER };

static const char *const hide_names[] = {"nothing", "closed", "unshared", "own-table", NULL};
static const char *const refusal_names[] = {"nothing", "interrupted", "registers", "internal-error",
					    NULL};
static const char *const child_names[] = {"none", "forked", "runner", NULL};

struct load {
	uint64_t vms, vcpus; /* vcpus: of each VM */
	uint64_t userspace_exits;
	uint64_t kernel_exits;
	uint64_t churn;
	uint64_t processes; /* 0: this process does the work itself */
	enum then then;
	const char *threads; /* what the vCPUs' threads are called before their number */
	char **program;	     /* what to execute at the next line on stdin; NULL: nothing */
	bool paused, create_vm_only, step, statistics;
	bool tenant, burn, keep;
	enum hide hide;
	enum refusal refused;
	enum child child;
};

struct vcpu {
	int fd;
	unsigned int index; /* through all VMs */
	struct kvm_run *run;
	uint64_t userspace_share; /* to be made */
	uint64_t kernel_share;
	uint64_t userspace_exits; /* made */
	uint64_t eintr;
	uint64_t refused;
	int statistics;	     /* descriptor; 0: none is open */
	uint64_t seen_exits; /* by its statistics when they were closed */
	volatile pid_t tid;  /* once it is about to enter its last KVM_RUN */
};

static struct load load = {.vms = 1, .vcpus = 1, .threads = "vcpu"};
static struct vcpu *vcpus;
static unsigned int vcpus_total;
static int kvm_device, *vms;
static uint64_t exits_of_ended_vms;
static pthread_barrier_t phase;
static sem_t step_wanted, step_made;
static uint64_t step_exits;

__attribute__((noreturn, format(printf, 2, 3))) static void die(const char *what, const char *on,
								...)
{
	int error = errno;
	char object[96];
	va_list args;

	va_start(args, on);
	vsnprintf(object, sizeof(object), on, args);
	va_end(args);
	dprintf(STDERR_FILENO, "kvmload: %s: %s: %s\n", what, object, strerror(error));
	_exit(error == EPROTO ? 3 : 1);
}

static int must_ioctl(int fd, unsigned long request, const char *name, const void *argument)
{
	int result = ioctl(fd, request, argument);

	if (result < 0)
		die(name, "fd %d", fd);
	return result;
}

#define IOCTL(fd, request, argument) must_ioctl(fd, request, #request, (const void *)(argument))

/* What differs between the architectures: the programs, and how a vCPU is set on one. */

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif
#if defined(__x86_64__)

/* 16-bit real-mode code */
static const uint8_t programs[PROGRAMS][64] = {
	[USERSPACE_LOOP] =
		{
			0xe6, 0x10, /* 1: out %al, $0x10 */
			0xeb, 0xfc, /*    jmp 1b */
		},
	[KERNEL_LOOP] =
		{
			0xe4, 0x21, /* 1: in $0x21, %al */
			0x66, 0x49, /*    dec %ecx */
			0x75, 0xfa, /*    jnz 1b */
			0xe6, 0x10, /* 2: out %al, $0x10 */
			0xeb, 0xfc, /*    jmp 2b */
		},
	[HALT] =
		{
			0xfa,	    /* 1: cli */
			0xf4,	    /*    hlt */
			0xeb, 0xfc, /*    jmp 1b */
		},
	[SPIN] =
		{
			0xeb, 0xfe, /* 1: jmp 1b */
		},
	[IMPOSSIBLE] =
		{
			0xdb, 0x2e, 0, 0, /* fldt 0: KVM emulates it nowhere, and has to */
		},
};

static void prepare_vm(int vm)
{
	/* Intel processors without unrestricted guest need a place for real mode's task state. */
	IOCTL(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	/* Without it, port 0x21 and HLT would return to user space. */
	if (load.kernel_exits || load.then == THEN_HALT)
		IOCTL(vm, KVM_CREATE_IRQCHIP, 0);
}

static void prepare_vcpu(int vm, int vcpu)
{
	struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
	struct kvm_sregs sregs;

	(void)vm;
	IOCTL(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = GUEST_BASE;
	sregs.cs.selector = GUEST_BASE >> 4;
	IOCTL(vcpu, KVM_SET_SREGS, &sregs);
	/* With an in-kernel APIC, every vCPU but the first would wait for the start-up IPI. */
	if (load.kernel_exits || load.then == THEN_HALT)
		IOCTL(vcpu, KVM_SET_MP_STATE, &runnable);
}

static void set_program(const struct vcpu *vcpu, enum program program, uint64_t count)
{
	struct kvm_regs regs = {
		.rip = sizeof(programs[0]) * program,
		.rcx = count,
		.rflags = 2, /* the bit that is always set; interrupts off */
	};

	IOCTL(vcpu->fd, KVM_SET_REGS, &regs);
}

static bool is_wanted_exit(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT &&
	       run->io.port == 0x10 && run->io.count == 1;
}

#elif defined(__aarch64__)

/*
 * Each program begins with a nop: after an MMIO exit KVM adds 4 to the program counter at the next
 * KVM_RUN, even if it was set again in between.
 */
static const uint32_t programs[PROGRAMS][16] = {
	[USERSPACE_LOOP] =
		{
			0xd503201f, /*    nop */
			0xb9000280, /* 1: str w0, [x20] */
			0x17ffffff, /*    b 1b */
		},
	[KERNEL_LOOP] =
		{
			0xd503201f, /*    nop */
			0x52b08000, /* 1: mov w0, #0x84000000 (PSCI_VERSION) */
			0xd4000002, /*    hvc #0 */
			0xf1000673, /*    subs x19, x19, #1 */
			0x54ffffa1, /*    b.ne 1b */
			0xb9000280, /* 2: str w0, [x20] */
			0x17ffffff, /*    b 2b */
		},
	[HALT] =
		{
			0xd503201f, /*    nop */
			0xd503207f, /* 1: wfi */
			0x17ffffff, /*    b 1b */
		},
	[SPIN] =
		{
			0xd503201f, /*    nop */
			0x14000000, /* 1: b 1b */
		},
};

static void prepare_vm(int vm)
{
	/* PSCI and WFI need no interrupt controller to be handled in the kernel. */
	(void)vm;
}

static void prepare_vcpu(int vm, int vcpu)
{
	struct kvm_vcpu_init init;

	IOCTL(vm, KVM_ARM_PREFERRED_TARGET, &init);
	init.features[0] |= 1U << KVM_ARM_VCPU_PSCI_0_2;
	IOCTL(vcpu, KVM_ARM_VCPU_INIT, &init);
}

static void set_register(const struct vcpu *vcpu, size_t offset, uint64_t value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |
		      offset / sizeof(uint32_t),
		.addr = (uintptr_t)&value,
	};

	IOCTL(vcpu->fd, KVM_SET_ONE_REG, &reg);
}

static void set_program(const struct vcpu *vcpu, enum program program, uint64_t count)
{
	set_register(vcpu, offsetof(struct kvm_regs, regs.regs[19]), count);
	set_register(vcpu, offsetof(struct kvm_regs, regs.regs[20]), GUEST_BASE + GUEST_BYTES);
	set_register(vcpu, offsetof(struct kvm_regs, regs.pc),
		     GUEST_BASE + sizeof(programs[0]) * program);
}

static bool is_wanted_exit(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == GUEST_BASE + GUEST_BYTES;
}

#else
#error "kvmload knows x86-64 and arm64 only"
#endif

static int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		die("open", "/dev/kvm");
	return kvm;
}

/* The guests only read their memory: one piece serves all VMs of the process. */
static void *map_guest_memory(void)
{
	void *memory =
		mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap", "guest memory");
	return memcpy(memory, programs, sizeof(programs));
}

static int create_vm(int kvm, const void *memory)
{
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = GUEST_BASE,
		.memory_size = GUEST_BYTES,
		.userspace_addr = (uintptr_t)memory,
	};
	int vm = IOCTL(kvm, KVM_CREATE_VM, 0);

	IOCTL(vm, KVM_SET_USER_MEMORY_REGION, &region);
	prepare_vm(vm);
	return vm;
}

static void create_vcpu(int kvm, int vm, unsigned long id, struct vcpu *vcpu)
{
	vcpu->fd = IOCTL(vm, KVM_CREATE_VCPU, id);
	vcpu->run = mmap(NULL, IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
			 MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		die("mmap", "vcpu%u", vcpu->index);
	prepare_vcpu(vm, vcpu->fd);
}

/* Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD */
static uint64_t exits_in(int statistics)
{
	static char file[65536];
	const struct kvm_stats_header *header = (const void *)file;
	const struct kvm_stats_desc *found;
	uint64_t exits;

	if (pread(statistics, file, sizeof(file), 0) < (ssize_t)sizeof(*header))
		die("pread", "statistics");
	for (unsigned int i = 0; i < header->num_desc; i++) {
		found = (const void *)(file + header->desc_offset +
				       i * (sizeof(*found) + header->name_size));
		if (!strcmp((const char *)(found + 1), "exits")) {
			memcpy(&exits, file + header->data_offset + found->offset, sizeof(exits));
			return exits;
		}
	}
	errno = ENOENT;
	die("statistic", "exits");
}

static void open_statistics(struct vcpu *vcpu)
{
	if (!vcpu->statistics)
		vcpu->statistics = IOCTL(vcpu->fd, KVM_GET_STATS_FD, 0);
}

static void close_statistics(struct vcpu *vcpu)
{
	vcpu->seen_exits = exits_in(vcpu->statistics);
	close(vcpu->statistics);
	vcpu->statistics = 0;
}

static uint64_t all_exits(void)
{
	uint64_t exits = exits_of_ended_vms;

	for (unsigned int i = 0; i < vcpus_total; i++)
		exits += vcpus[i].statistics ? exits_in(vcpus[i].statistics) : vcpus[i].seen_exits;
	return exits;
}

/* One KVM_RUN that returns with the exit which the guest is to make. */
static void run_to_userspace_exit(struct vcpu *vcpu)
{
	while (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
		if (errno != EINTR)
			die("KVM_RUN", "vcpu%u", vcpu->index);
		vcpu->eintr++;
	}
	if (!is_wanted_exit(vcpu->run)) {
		errno = EPROTO;
		die("KVM_RUN", "vcpu%u, exit reason %u", vcpu->index, vcpu->run->exit_reason);
	}
	vcpu->userspace_exits++;
}

static void make_userspace_exits(struct vcpu *vcpu, uint64_t exits)
{
	while (exits--)
		run_to_userspace_exit(vcpu);
}

/* A KVM_RUN that runs no guest. */
static void be_refused(struct vcpu *vcpu)
{
	int result, wanted = 0;

	if (load.refused == REFUSED_INTERRUPTED) {
		vcpu->run->immediate_exit = 1;
		wanted = EINTR;
	} else if (load.refused == REFUSED_REGISTERS) {
		vcpu->run->kvm_valid_regs = ~0ULL;
		wanted = EINVAL;
	} else {
		set_program(vcpu, IMPOSSIBLE, 0);
	}
	result = ioctl(vcpu->fd, KVM_RUN, 0);
	if (wanted ? result == 0 || errno != wanted
		   : result < 0 || vcpu->run->exit_reason != KVM_EXIT_INTERNAL_ERROR) {
		dprintf(STDERR_FILENO, "kvmload: result %d, errno %d, exit reason %u\n", result,
			errno, vcpu->run->exit_reason);
		errno = EPROTO;
		die("KVM_RUN", "vcpu%u is not refused", vcpu->index);
	}
	vcpu->refused++;
}

static void make_counted_exits(struct vcpu *vcpu)
{
	if (load.refused) {
		while (vcpu->refused < vcpu->userspace_share)
			be_refused(vcpu);
		return;
	}
	set_program(vcpu, USERSPACE_LOOP, 0);
	make_userspace_exits(vcpu, vcpu->userspace_share);
	if (!vcpu->kernel_share)
		return;
	set_program(vcpu, KERNEL_LOOP, vcpu->kernel_share);
	run_to_userspace_exit(vcpu);
}

/* The last KVM_RUN, which only the end of the process ends. */
static void run_for_ever(struct vcpu *vcpu)
{
	vcpu->tid = syscall(SYS_gettid);
	while (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			die("KVM_RUN", "vcpu%u", vcpu->index);
	errno = EPROTO;
	die("KVM_RUN", "vcpu%u, exit reason %u", vcpu->index, vcpu->run->exit_reason);
}

/* Outside KVM_RUN for good; only --step wakes vCPU 0 up. */
static void hold(struct vcpu *vcpu)
{
	while (vcpu->index)
		pause();
	for (;;) {
		while (sem_wait(&step_wanted))
			;
		make_userspace_exits(vcpu, step_exits);
		sem_post(&step_made);
	}
}

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;
	char name[16];

	snprintf(name, sizeof(name), "%.11s%u", load.threads, vcpu->index);
	pthread_setname_np(pthread_self(), name);
	make_counted_exits(vcpu);
	if (load.then == THEN_HALT)
		set_program(vcpu, HALT, 0);
	else if (load.then == THEN_SPIN)
		set_program(vcpu, SPIN, 0);
	else
		set_program(vcpu, USERSPACE_LOOP, 0);
	pthread_barrier_wait(&phase); /* the counted part is done */
	pthread_barrier_wait(&phase); /* the line is printed */
	if (load.then == THEN_HALT || load.then == THEN_SPIN)
		run_for_ever(vcpu);
	while (load.then == THEN_LEAVE_LEADER)
		run_to_userspace_exit(vcpu);
	hold(vcpu);
	return NULL;
}

static void start_thread(void *(*function)(void *), void *argument)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	errno = pthread_create(&thread, &attributes, function, argument);
	if (errno)
		die("pthread_create", "process %d", getpid());
	pthread_attr_destroy(&attributes);
}

/* The index-th share of a total that is cut into equal shares, the rest to the first ones. */
static uint64_t share(uint64_t total, unsigned int index)
{
	return total / vcpus_total + (index < total % vcpus_total);
}

static void create_vms(int kvm)
{
	const void *memory = map_guest_memory();
	unsigned int index = 0;

	kvm_device = kvm;
	vcpus_total = load.create_vm_only ? 0 : load.vms * load.vcpus;
	vcpus = calloc(vcpus_total + MAX_PLUGGED + 1, sizeof(*vcpus));
	vms = calloc(load.vms, sizeof(*vms));
	if (!vcpus || !vms)
		die("calloc", "%u vCPUs", vcpus_total);
	for (uint64_t i = 0; i < load.vms; i++) {
		int vm;

		if (load.create_vm_only) {
			IOCTL(kvm, KVM_CREATE_VM, 0);
			continue;
		}
		vm = vms[i] = create_vm(kvm, memory);
		for (uint64_t id = 0; id < load.vcpus; id++, index++) {
			vcpus[index].index = index;
			vcpus[index].userspace_share = share(load.userspace_exits, index);
			vcpus[index].kernel_share = share(load.kernel_exits, index);
			create_vcpu(kvm, vm, id, &vcpus[index]);
			if (load.statistics)
				open_statistics(&vcpus[index]);
		}
	}
}

static void plug(void)
{
	struct vcpu *vcpu = &vcpus[vcpus_total];

	if (vcpus_total - load.vms * load.vcpus == MAX_PLUGGED)
		die("plug", "%d vCPUs", MAX_PLUGGED);
	vcpu->index = vcpus_total;
	create_vcpu(kvm_device, vms[load.vms - 1], load.vcpus + vcpu->index, vcpu);
	open_statistics(vcpu);
	vcpus_total++;
}

/* No vCPU is in KVM_RUN now: all wait for a step. */
static void reset(void)
{
	const void *memory = map_guest_memory();
	int run_bytes = IOCTL(kvm_device, KVM_GET_VCPU_MMAP_SIZE, 0);

	exits_of_ended_vms = all_exits();
	for (unsigned int i = 0; i < vcpus_total; i++) {
		munmap(vcpus[i].run, run_bytes);
		if (vcpus[i].statistics)
			close(vcpus[i].statistics);
		close(vcpus[i].fd);
		vcpus[i].statistics = 0;
		vcpus[i].seen_exits = 0;
	}
	for (uint64_t i = 0; i < load.vms; i++) {
		close(vms[i]);
		vms[i] = create_vm(kvm_device, memory);
	}
	for (unsigned int i = 0; i < vcpus_total; i++) {
		uint64_t vm = i / load.vcpus < load.vms ? i / load.vcpus : load.vms - 1;

		create_vcpu(kvm_device, vms[vm], i - vm * load.vcpus, &vcpus[i]);
		set_program(&vcpus[i], USERSPACE_LOOP, 0);
		open_statistics(&vcpus[i]);
	}
}

__attribute__((noreturn)) static void churn_child(void)
{
	struct vcpu vcpu = {.index = 0};
	int kvm;

	/* What is inherited belongs to the parent's VMs. */
	if (close_range(STDERR_FILENO + 1, ~0U, 0))
		die("close_range", "child %d", getpid());
	kvm = open_kvm();
	create_vcpu(kvm, create_vm(kvm, map_guest_memory()), 0, &vcpu);
	set_program(&vcpu, USERSPACE_LOOP, 0);
	make_userspace_exits(&vcpu, CHURN_EXITS);
	if (vcpu.eintr) {
		errno = EINTR;
		die("KVM_RUN", "child %d, its exits are not exact", getpid());
	}
	_exit(0);
}

static pid_t must_fork(void)
{
	pid_t child = fork();

	if (child < 0)
		die("fork", "process %d", getpid());
	return child;
}

static void must_end_well(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid", "child %d", child);
	if (status) {
		errno = ECHILD;
		die("waitpid", "child %d ended with wait status %#x", child, (unsigned int)status);
	}
}

static void churn(void)
{
	for (uint64_t i = 0; i < load.churn; i++) {
		pid_t child = must_fork();

		if (!child)
			churn_child();
		must_end_well(child);
	}
}

static void print_line(void);
static void wait_for_eof(void);

static void *burn(void *unused)
{
	volatile uint64_t work = 0;

	pthread_setname_np(pthread_self(), "CPU 0/TCG");
	for (;;) {
		while (++work % 20000000)
			;
		usleep(50000);
	}
	return unused;
}

/* As a container's process that was given /dev/kvm. setuid undoes what is asked for after it. */
static void be_a_tenant(void)
{
	if (!load.tenant || geteuid())
		return;
	if (setgid(TENANT_ID) || setuid(TENANT_ID) || prctl(PR_SET_DUMPABLE, 1) ||
	    prctl(PR_SET_PDEATHSIG, SIGKILL))
		die("setuid", "%d", TENANT_ID);
}

static void wait_until_inside_kvm_run(const struct vcpu *vcpu)
{
	char path[64], call[32] = "";
	FILE *file;

	do {
		usleep(10000);
		snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", (int)vcpu->tid);
		file = vcpu->tid ? fopen(path, "r") : NULL;
		if (file && !fgets(call, sizeof(call), file))
			die("read", "%s", path);
		if (file)
			fclose(file);
	} while (atoi(call) != SYS_ioctl);
}

static void hide(void)
{
	unsigned int flags = load.hide == HIDE_UNSHARED ? CLOSE_RANGE_UNSHARE : 0;

	if (load.hide == HIDE_NOTHING)
		return;
	for (unsigned int i = 0; i < vcpus_total; i++)
		wait_until_inside_kvm_run(&vcpus[i]);
	if (load.hide != HIDE_OWN_TABLE && close_range(STDERR_FILENO + 1, ~0U, flags))
		die("close_range", "process %d", getpid());
	puts("done");
	fflush(stdout);
}

/* It has descriptors of vCPUs that KVM lets only its parent run. */
static void fork_child(void)
{
	pid_t self = getpid(), child;

	if (load.child != CHILD_FORKED)
		return;
	child = must_fork();
	if (!child) {
		if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != self)
			_exit(1);
		for (;;)
			pause();
	}
	printf("child %d\n", child);
	fflush(stdout);
}

static int run_in_child(void *of_main)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != *(pid_t *)of_main)
		_exit(1);
	make_counted_exits(&vcpus[0]);
	vcpus[0].tid = getpid();
	for (;;)
		pause();
}

/* The vCPU is this process's, as are the descriptors; what runs it is another one. */
static void run_vcpu_in_child(void)
{
	static char stack[STACK_BYTES] __attribute__((aligned(64)));
	pid_t self = getpid(), child;

	child = clone(run_in_child, stack + sizeof(stack), CLONE_VM | SIGCHLD, &self);
	if (child < 0)
		die("clone", "process %d", self);
	while (!vcpus[0].tid)
		usleep(1000);
	print_line();
	printf("child %d\n", child);
	fflush(stdout);
	wait_for_eof();
}

static void print_line(void)
{
	bool last_run = load.then == THEN_HALT || load.then == THEN_SPIN;
	const char *state = then_names[load.then];
	uint64_t userspace_exits = 0, eintr = 0, refused = 0;

	for (unsigned int i = 0; i < vcpus_total; i++) {
		userspace_exits += vcpus[i].userspace_exits;
		eintr += vcpus[i].eintr;
		refused += vcpus[i].refused;
	}
	if (load.paused && !userspace_exits)
		state = "paused";
	if (load.create_vm_only)
		state = "vm-only";
	printf("{\"tgid\": %d, \"vms\": %" PRIu64 ", \"vcpus\": %u, \"kvm_run\": %" PRIu64
	       ", \"userspace_exits\": %" PRIu64 ", \"eintr\": %" PRIu64 ", \"refused\": %" PRIu64
	       ", \"kernel_exits\": %" PRIu64 ", \"exits\": %" PRIu64
	       ", \"churn_children\": %" PRIu64 ", \"state\": \"%s\"}\n",
	       getpid(), load.vms, vcpus_total,
	       userspace_exits + eintr + refused + (last_run ? vcpus_total : 0), userspace_exits,
	       eintr, refused, load.kernel_exits, load.statistics ? all_exits() : 0, load.churn,
	       state);
	if (fflush(stdout))
		die("write", "stdout");
}

__attribute__((noreturn)) static void wrong_usage(const char *why)
{
	dprintf(STDERR_FILENO,
		"kvmload: %s\n"
		"usage: kvmload [--vms M] [--vcpus V] [--userspace-exits N] [--kernel-exits K]\n"
		"               [--then hold|halt|spin|quit|leave-leader] [--churn N] [--step]\n"
		"               [--paused | --create-vm-only] [--processes P] [-name IGNORED]\n"
		"               [--statistics] [--tenant] [--burn] [--hide "
		"closed|unshared|own-table] [--keep]\n"
		"               [--refused interrupted|registers|internal-error]\n"
		"               [--child forked|runner] [-- PROGRAM ARGUMENT...]\n",
		why);
	_exit(2);
}

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || (*end && *end != '\n') || value < least ||
	    value > most)
		wrong_usage("a number is not one, or too small or too large");
	return value;
}

/* Whether the line is one of the words that --statistics adds. */
static bool change(const char *line)
{
	if (!strcmp(line, "close\n"))
		close_statistics(&vcpus[vcpus_total - 1]);
	else if (!strcmp(line, "open\n"))
		open_statistics(&vcpus[vcpus_total - 1]);
	else if (!strcmp(line, "plug\n"))
		plug();
	else if (!strcmp(line, "reset\n"))
		reset();
	else
		return false;
	return true;
}

static void step(uint64_t exits)
{
	step_exits = exits;
	sem_post(&step_wanted);
	while (sem_wait(&step_made))
		;
}

/* Until stdin reaches EOF. With --step each line is a number of further userspace exits. */
static void wait_for_eof(void)
{
	char line[32];

	while (fgets(line, sizeof(line), stdin)) {
		for (int fd = STDERR_FILENO + 1; load.keep && fd < KEPT; fd++)
			fcntl(fd, F_SETFD, 0);
		if (load.program && execvp(load.program[0], load.program))
			die("exec", "%s", load.program[0]);
		if (!load.step)
			continue;
		if (!load.statistics || !change(line))
			step(number(line, 1, UINT32_MAX));
		print_line();
	}
}

static void *end_at_eof(void *unused)
{
	(void)unused;
	wait_for_eof();
	_exit(0);
}

static void do_load(void)
{
	if (load.burn)
		start_thread(burn, NULL);
	create_vms(open_kvm());
	be_a_tenant();
	if (load.child == CHILD_RUNNER) {
		run_vcpu_in_child();
		return;
	}
	pthread_barrier_init(&phase, NULL, vcpus_total + 1);
	sem_init(&step_wanted, 0, 0);
	sem_init(&step_made, 0, 0);
	for (unsigned int i = 0; i < vcpus_total; i++)
		start_thread(vcpu_thread, &vcpus[i]);
	pthread_barrier_wait(&phase);
	churn();
	print_line();
	if (load.then == THEN_QUIT)
		_exit(0);
	if (load.then == THEN_LEAVE_LEADER)
		start_thread(end_at_eof, NULL);
	pthread_barrier_wait(&phase);
	if (load.then == THEN_LEAVE_LEADER)
		pthread_exit(NULL);
	hide();
	fork_child();
	wait_for_eof();
}

/* All but the main thread, which has been left behind, shares a table. */
static void *load_in_own_table(void *unused)
{
	(void)unused;
	if (unshare(CLONE_FILES))
		die("unshare", "process %d", getpid());
	do_load();
	_exit(0);
}

static void end_at_once(int number)
{
	(void)number;
	_exit(0);
}

/* Until stdin reaches EOF or SIGTERM, which must be blocked, comes. */
static void wait_for_eof_or_sigterm(const sigset_t *sigterm)
{
	struct pollfd wanted[] = {
		{.fd = STDIN_FILENO, .events = POLLIN},
		{.fd = signalfd(-1, sigterm, SFD_CLOEXEC), .events = POLLIN},
	};
	char discarded[64];

	if (wanted[1].fd < 0)
		die("signalfd", "SIGTERM");
	for (;;) {
		if (poll(wanted, 2, -1) < 0 && errno != EINTR)
			die("poll", "stdin");
		if (wanted[1].revents)
			return;
		if (wanted[0].revents && read(STDIN_FILENO, discarded, sizeof(discarded)) <= 0)
			return;
	}
}

/* The children's stdin is a pipe that only the parent can write to: it ends when the parent does.
 */
static void do_load_in_children(const sigset_t *sigterm)
{
	pid_t *children = calloc(load.processes, sizeof(*children));
	int ends[2];

	if (!children || pipe2(ends, O_CLOEXEC))
		die("pipe", "children's stdin");
	sigprocmask(SIG_BLOCK, sigterm, NULL);
	for (uint64_t i = 0; i < load.processes; i++) {
		children[i] = must_fork();
		if (children[i])
			continue;
		if (dup2(ends[0], STDIN_FILENO) < 0)
			die("dup2", "child %d", getpid());
		close(ends[0]);
		close(ends[1]);
		sigprocmask(SIG_UNBLOCK, sigterm, NULL);
		do_load();
		_exit(0);
	}
	wait_for_eof_or_sigterm(sigterm);
	for (uint64_t i = 0; i < load.processes; i++)
		kill(children[i], SIGTERM);
	for (uint64_t i = 0; i < load.processes; i++)
		must_end_well(children[i]);
}

static enum then parse_then(const char *name)
{
	for (unsigned int i = 0; i < sizeof(then_names) / sizeof(*then_names); i++)
		if (!strcmp(name, then_names[i]))
			return i;
	wrong_usage("--then wants hold, halt, spin, quit or leave-leader");
}

static unsigned int choice(const char *name, const char *const names[])
{
	for (unsigned int i = 0; names[i]; i++)
		if (!strcmp(name, names[i]))
			return i;
	wrong_usage("an option has a value that is none of its values");
}

static void parse_option(int option)
{
	switch (option) {
	case 'm':
		load.vms = number(optarg, 1, 1024);
		break;
	case 'v':
		load.vcpus = number(optarg, 1, 1024);
		break;
	case 'u':
		load.userspace_exits = number(optarg, 0, UINT32_MAX);
		break;
	case 'k':
		load.kernel_exits = number(optarg, 0, UINT32_MAX);
		break;
	case 't':
		load.then = parse_then(optarg);
		break;
	case 'c':
		load.churn = number(optarg, 0, UINT32_MAX);
		break;
	case 'P':
		load.processes = number(optarg, 1, 100000);
		break;
	case 'p':
		load.paused = true;
		break;
	case 'o':
		load.create_vm_only = true;
		break;
	case 's':
		load.step = true;
		break;
	case 'S':
		load.statistics = true;
		break;
	case 'T':
		load.tenant = true;
		break;
	case 'b':
		load.burn = true;
		break;
	case 'K':
		load.keep = true;
		break;
	case 'h':
		load.hide = choice(optarg, hide_names);
		break;
	case 'r':
		load.refused = choice(optarg, refusal_names);
		break;
	case 'C':
		load.child = choice(optarg, child_names);
		break;
	case 'N':
		load.threads = optarg;
		break;
	case 'n': /* QEMU's; only for who reads the command line */
		break;
	default:
		wrong_usage("unknown option, or its value is missing");
	}
}

static void parse_command_line(int argc, char **argv)
{
	static const struct option options[] = {{"vms", required_argument, NULL, 'm'},
						{"vcpus", required_argument, NULL, 'v'},
						{"userspace-exits", required_argument, NULL, 'u'},
						{"kernel-exits", required_argument, NULL, 'k'},
						{"then", required_argument, NULL, 't'},
						{"churn", required_argument, NULL, 'c'},
						{"processes", required_argument, NULL, 'P'},
						{"paused", no_argument, NULL, 'p'},
						{"create-vm-only", no_argument, NULL, 'o'},
						{"step", no_argument, NULL, 's'},
						{"statistics", no_argument, NULL, 'S'},
						{"tenant", no_argument, NULL, 'T'},
						{"burn", no_argument, NULL, 'b'},
						{"keep", no_argument, NULL, 'K'},
						{"hide", required_argument, NULL, 'h'},
						{"refused", required_argument, NULL, 'r'},
						{"child", required_argument, NULL, 'C'},
						{"threads", required_argument, NULL, 'N'},
						{"name", required_argument, NULL, 'n'},
						{}};
	int option;

	opterr = 0;
	while ((option = getopt_long_only(argc, argv, "", options, NULL)) != -1)
		parse_option(option);
	if (optind < argc && strcmp(argv[optind - 1], "--"))
		wrong_usage("there is an argument that belongs to no option");
	if (optind < argc)
		load.program = argv + optind;
	if (load.program && (load.step || load.processes))
		wrong_usage("a program is executed in one process, without --step");
	if (load.paused && load.create_vm_only)
		wrong_usage("--paused has vCPUs, --create-vm-only has none");
	if ((load.paused || load.create_vm_only) &&
	    (load.userspace_exits || load.kernel_exits || load.then != THEN_HOLD))
		wrong_usage("--paused and --create-vm-only run nothing");
	if (load.hide && load.then != THEN_HALT)
		wrong_usage("--hide wants --then halt");
	if (load.step && (load.create_vm_only || load.processes || load.then != THEN_HOLD))
		wrong_usage("--step wants --then hold or --paused, in one process");
}

static void parse_lines(char *program, char *lines)
{
	static char *words[MAX_WORDS] = {NULL};
	int count = 1;

	words[0] = program;
	for (char *word = strtok(lines, "\n"); word && count < MAX_WORDS - 1;
	     word = strtok(NULL, "\n"))
		words[count++] = word;
	parse_command_line(count, words);
}

int main(int argc, char **argv)
{
	struct sigaction end = {.sa_handler = end_at_once};
	char *lines = getenv("KVMLOAD_OPTIONS");
	sigset_t sigterm;

	if (lines)
		parse_lines(argv[0], lines);
	else
		parse_command_line(argc, argv);
	sigemptyset(&sigterm);
	sigaddset(&sigterm, SIGTERM);
	sigaction(SIGTERM, &end, NULL);
	if (load.processes)
		do_load_in_children(&sigterm);
	else if (load.hide == HIDE_OWN_TABLE) {
		start_thread(load_in_own_table, NULL);
		for (;;)
			pause();
	} else
		do_load();
	return 0;
}
