/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * hostile.c - a process that does to the readers of its /proc files what a tenant could.
 *
 *   hostile KIND [NUMBER] [FOLDER]
 *
 * It calls itself qemu-kvm (disk-servers: qemu-nbd, which is no VMM), gives up every privilege once
 * it is set up, prints a line when it is in place, and stays until its input is closed. It dies
 * with its parent, and its helpers with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TENANT_ID 65534
#define FILE_NODE 2
#define FILE_BYTES (1 << 20)

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

/* The parent may have ended before this was asked for. */
static void die_with(pid_t parent)
{
	check(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0, "PR_SET_PDEATHSIG");
	if (getppid() != parent)
		_exit(1);
}

static pid_t first_parent;

/* A pipe to which the server of a file writes when it leaves a read unanswered. */
static int unanswered[2];

/* As a container's process: no uid, no capability. Both undo dumpable and PDEATHSIG. */
static void be_a_tenant(void)
{
	if (geteuid() == 0) {
		check(setgid(TENANT_ID) == 0 && setuid(TENANT_ID) == 0, "setuid");
		check(prctl(PR_SET_DUMPABLE, 1) == 0, "PR_SET_DUMPABLE");
	}
	die_with(first_parent);
}

/* As much as is allowed, where that is less. */
static void allow(int resource, rlim_t amount)
{
	struct rlimit limit = {amount, amount};

	if (setrlimit(resource, &limit) == 0)
		return;
	check(getrlimit(resource, &limit) == 0, "getrlimit");
	limit.rlim_cur = limit.rlim_max;
	check(setrlimit(resource, &limit) == 0, "setrlimit");
}

static void say_ready(void)
{
	puts("ready");
	fflush(stdout);
}

static void stay(void)
{
	char word;
	say_ready();
	while (read(0, &word, 1) > 0)
		;
	exit(0);
}

/* Arguments anywhere in the address space: PR_SET_MM_MAP needs no capability. */
static void move_arguments(void *to, size_t bytes)
{
	struct prctl_mm_map map = {0};
	char text[4096], *at, *save = NULL;
	unsigned long fields[52] = {0};
	FILE *stat = fopen("/proc/self/stat", "r");

	check(stat != NULL && fgets(text, sizeof(text), stat) != NULL, "stat");
	fclose(stat);
	at = strrchr(text, ')') + 2;
	for (int field = 3; field <= 52; field++) {
		char *word = strtok_r(at, " ", &save);
		at = NULL;
		fields[field - 1] = word ? strtoul(word, NULL, 10) : 0;
	}
	map.start_code = fields[25];
	map.end_code = fields[26];
	map.start_stack = fields[27];
	map.start_data = fields[44];
	map.end_data = fields[45];
	map.start_brk = fields[46];
	map.brk = (unsigned long)sbrk(0);
	map.arg_start = (unsigned long)to;
	map.arg_end = (unsigned long)to + bytes;
	map.env_start = fields[49];
	map.env_end = fields[50];
	map.exe_fd = -1;
	check(prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0) == 0, "PR_SET_MM_MAP");
}

static void *untouched(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(at != MAP_FAILED, "mmap");
	return at;
}

/* A page that is missing until its owner fills it in, which it never does. */
static void *missing_page(void)
{
	void *at = untouched(4096);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {
		.range = {(unsigned long)at, 4096},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	check(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0, "userfaultfd");
	check(ioctl(fd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
	return at;
}

static void answer(int fuse, const struct fuse_in_header *request, int error, const void *body,
		   size_t bytes)
{
	char message[512];
	struct fuse_out_header head = {
		.len = (unsigned)(sizeof(head) + bytes),
		.error = error,
		.unique = request->unique,
	};
	memcpy(message, &head, sizeof(head));
	if (bytes)
		memcpy(message + sizeof(head), body, bytes);
	if (write(fuse, message, sizeof(head) + bytes) < 0 && errno != ENOENT)
		perror("fuse answer");
}

static struct fuse_attr attributes(uint64_t node)
{
	struct fuse_attr attr = {.ino = node, .nlink = 1, .uid = TENANT_ID, .gid = TENANT_ID};

	attr.mode = node == FILE_NODE ? S_IFREG | 0777 : S_IFDIR | 0777;
	attr.size = node == FILE_NODE ? FILE_BYTES : 0;
	attr.blksize = 4096;
	return attr;
}

/*
 * A file system of one file: after some that fail its reads and its flushes are not answered. The
 * first flush is that of an execve, which now waits for its answer.
 */
static void serve(int fuse, int failed_reads)
{
	static char buffer[1 << 17];
	const struct fuse_in_header *request = (const void *)buffer;
	struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = 4096,
		.max_readahead = 4096,
	};
	struct fuse_open_out opened = {.fh = 1};

	while (read(fuse, buffer, sizeof(buffer)) > 0) {
		struct fuse_entry_out entry = {
			.nodeid = FILE_NODE,
			.entry_valid = 3600,
			.attr_valid = 3600,
			.attr = attributes(FILE_NODE),
		};
		struct fuse_attr_out attr = {.attr_valid = 3600,
					     .attr = attributes(request->nodeid)};
		switch (request->opcode) {
		case FUSE_INIT:
			answer(fuse, request, 0, &init, sizeof(init));
			break;
		case FUSE_LOOKUP:
			answer(fuse, request, 0, &entry, sizeof(entry));
			break;
		case FUSE_GETATTR:
			answer(fuse, request, 0, &attr, sizeof(attr));
			break;
		case FUSE_OPEN:
			answer(fuse, request, 0, &opened, sizeof(opened));
			break;
		case FUSE_READ:
			if (failed_reads-- > 0)
				answer(fuse, request, -EIO, NULL, 0);
			else
				check(write(unanswered[1], "x", 1) == 1, "unanswered");
			break;
		case FUSE_FLUSH:
			say_ready();
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
			break;
		default:
			answer(fuse, request, -ENOSYS, NULL, 0);
		}
	}
	exit(0);
}

/*
 * The file of that file system, open, in a child of this process, which serves it: nothing but the
 * server's end ends the waiting for its answers, so it has to be what the tests kill first.
 */
static int file_of_fuse(const char *folder, int failed_reads)
{
	char options[128];
	char path[4096];
	int fd, fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	pid_t child, self = getpid();

	check(fuse >= 0, "/dev/fuse");
	check(pipe2(unanswered, O_CLOEXEC) == 0, "pipe2");
	check(unshare(CLONE_NEWNS) == 0, "unshare");
	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private mounts");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other",
		 fuse);
	check(mount("hostile", folder, "fuse", 0, options) == 0, "mount fuse");
	child = fork();
	check(child >= 0, "fork");
	if (child > 0) {
		prctl(PR_SET_NAME, "server");
		serve(fuse, failed_reads);
	}
	close(fuse);
	first_parent = self;
	die_with(self);
	printf("hostile %d\n", (int)getpid());
	fflush(stdout);
	snprintf(path, sizeof(path), "%s/file", folder);
	fd = open(path, O_RDWR | O_CLOEXEC);
	check(fd >= 0, path);
	return fd;
}

/*
 * A lock of the address space that stays taken: a page fault that is tried again holds it for
 * reading while it waits for the file's page, and a writer that waits for it keeps new readers out.
 * The other threads must not need that lock themselves, for example to fault in a page of this
 * program.
 */
static int begin[2];
static volatile pid_t mapper_tid;
static volatile int mapped;

static void *touches(void *page)
{
	char word;
	check(read(begin[0], &word, 1) == 1, "begin");
	return (void *)(long)*(volatile char *)page;
}

static void *maps(void *unused)
{
	char word;
	check(read(unanswered[0], &word, 1) == 1, "unanswered");
	mapper_tid = (pid_t)syscall(SYS_gettid);
	untouched(4096);
	mapped = 1;
	return unused;
}

/* Whether a thread of this process sleeps uninterruptibly. This allocates no memory. */
static int waits_for_lock(pid_t tid)
{
	char path[64], text[512];
	const char *end;
	ssize_t bytes;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	check(fd >= 0, path);
	bytes = read(fd, text, sizeof(text) - 1);
	close(fd);
	check(bytes > 0, path);
	text[bytes] = '\0';
	end = strrchr(text, ')');
	return end != NULL && strncmp(end, ") D", 3) == 0;
}

static void hold_address_space(const char *folder)
{
	pthread_t toucher, mapper;
	int file = file_of_fuse(folder, 2);
	void *page;

	check(mlockall(MCL_CURRENT) == 0, "mlockall");
	page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
	check(page != MAP_FAILED, "mmap");
	check(pipe2(begin, O_CLOEXEC) == 0, "pipe2");
	be_a_tenant();
	errno = pthread_create(&mapper, NULL, maps, NULL);
	check(errno == 0, "pthread_create");
	errno = pthread_create(&toucher, NULL, touches, page);
	check(errno == 0, "pthread_create");
	check(write(begin[1], "x", 1) == 1, "begin");
	while (!mapped && !(mapper_tid && waits_for_lock(mapper_tid)))
		usleep(10000);
}

static void *sleeps(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void many_threads(long number)
{
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 16384);
	pthread_attr_setguardsize(&small, 0);
	for (long made = 0; made < number; made++) {
		pthread_t thread;
		errno = pthread_create(&thread, &small, sleeps, NULL);
		check(errno == 0, "pthread_create");
	}
}

static void many_descriptors(long number)
{
	for (long made = 0; made < number && dup(2) >= 0; made++)
		;
}

static void many_processes(long number)
{
	pid_t self = getpid();

	for (long made = 0; made < number; made++) {
		pid_t child = fork();
		check(child >= 0, "fork");
		if (child == 0) {
			die_with(self);
			sleeps(NULL);
		}
	}
}

static void many_arguments(char *self, long bytes)
{
	long words = bytes / 128;
	char **arguments = calloc((size_t)words + 3, sizeof(*arguments));
	char word[128];

	memset(word, 'x', sizeof(word) - 1);
	word[sizeof(word) - 1] = '\0';
	arguments[0] = self;
	arguments[1] = "stay";
	for (long made = 0; made < words; made++)
		arguments[made + 2] = word;
	execv("/proc/self/exe", arguments);
	check(0, "execv");
}

static pthread_barrier_t opened;

/* The accelerator in a table that only this thread has. */
static void *own_table(void *unused)
{
	check(unshare(CLONE_FILES) == 0, "unshare");
	check(open("/dev/kvm", O_RDWR) >= 0, "/dev/kvm");
	pthread_barrier_wait(&opened);
	return sleeps(unused);
}

static void hide_descriptor(void)
{
	pthread_t thread;

	pthread_barrier_init(&opened, NULL, 2);
	errno = pthread_create(&thread, NULL, own_table, NULL);
	check(errno == 0, "pthread_create");
	pthread_barrier_wait(&opened);
}

int main(int count, char **words)
{
	const char *kind = count > 1 ? words[1] : "";
	long number = count > 2 ? atol(words[2]) : 0;
	const char *folder = count > 3 ? words[3] : "";

	first_parent = getppid();
	die_with(first_parent);
	if (strcmp(kind, "hidden-descriptor") == 0) {
		prctl(PR_SET_NAME, "innocent");
		hide_descriptor();
		stay();
	}
	prctl(PR_SET_NAME, strcmp(kind, "disk-servers") ? "qemu-kvm" : "qemu-nbd");
	if (strcmp(kind, "untouched-arguments") == 0) {
		be_a_tenant();
		move_arguments(untouched((size_t)number), (size_t)number);
	} else if (strcmp(kind, "missing-arguments") == 0) {
		void *page = missing_page();
		be_a_tenant();
		move_arguments(page, 4096);
	} else if (strcmp(kind, "fuse-arguments") == 0) {
		int file = file_of_fuse(folder, 0);
		void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
		check(page != MAP_FAILED, "mmap");
		be_a_tenant();
		move_arguments(page, 4096);
	} else if (strcmp(kind, "address-space") == 0) {
		hold_address_space(folder);
	} else if (strcmp(kind, "fuse-exec") == 0) {
		char *arguments[] = {"qemu-kvm", "stay", NULL};
		file_of_fuse(folder, 0);
		be_a_tenant();
		execv("/proc/self/exe", arguments);
		check(0, "execv");
	} else if (strcmp(kind, "threads") == 0) {
		be_a_tenant();
		many_threads(number);
	} else if (strcmp(kind, "descriptors") == 0) {
		allow(RLIMIT_NOFILE, (rlim_t)number + 64);
		be_a_tenant();
		many_descriptors(number);
	} else if (strcmp(kind, "processes") == 0 || strcmp(kind, "disk-servers") == 0) {
		be_a_tenant();
		many_processes(number);
	} else if (strcmp(kind, "arguments") == 0) {
		allow(RLIMIT_STACK, 64 << 20);
		be_a_tenant();
		many_arguments(words[0], number);
	} else if (strcmp(kind, "stay") != 0) {
		fprintf(stderr, "unknown kind: %s\n", kind);
		return 2;
	}
	stay();
}
