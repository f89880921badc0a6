// SPDX-License-Identifier: GPL-2.0
/*
 * guest_memfd, shown: the four kinds of file that KVM_CREATE_GUEST_MEMFD can
 * make, what the host may do with each, and a guest that lives in it.
 *
 * This is also the example for a VMM: vm.c has the calls to KVM, one function
 * each, and every chapter below is a use of them from beginning to end.
 *
 * Every line that is printed has been checked.  The exit status is 0 if all
 * held, 1 if one did not, 4 if there is no guest_memfd to show.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <linux/falloc.h>
#include <fcntl.h>

#include "vm.h"

#define NR_BLOCKS	8	/* of one page each */
#define TEXT_LEN	32

static size_t block;		/* bytes */
static bool colour;
static int held, failed;

/* Printing: facts are comparisons of text, so that a failure explains itself. */
static const char *paint(const char *code)
{
	return colour ? code : "";
}

#define BOLD	paint("\033[1m")
#define DIM	paint("\033[2m")
#define RED	paint("\033[1;31m")
#define GREEN	paint("\033[32m")
#define PURPLE	paint("\033[35m")
#define PLAIN	paint("\033[0m")

static void fact(const char *who, const char *what, const char *want, const char *got)
{
	if (!strcmp(want, got)) {
		held++;
		printf("  %sok%s   %-6s %s: %s\n", GREEN, PLAIN, who, what, got);
	} else {
		failed++;
		printf("  %sFAIL%s %-6s %s: expected %s, got %s\n", RED, PLAIN, who, what,
		       want, got);
	}
}

static void note(const char *s)
{
	printf("       %s(%s)%s\n", DIM, s, PLAIN);
}

static void chapter(int nr, const char *flags, const char *what)
{
	printf("\n%s%d. %s%s: %s\n", BOLD, nr, flags, PLAIN, what);
}

/* A string that lives until the eighth one after it. */
static __printf(1, 2) const char *text(const char *fmt, ...)
{
	static char ring[8][128];
	static int next;
	char *s = ring[next++ % 8];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s, sizeof(ring[0]), fmt, ap);
	va_end(ap);
	return s;
}

/* The outcome of a call: 0 or a descriptor, or -errno. */
static const char *outcome(int ret)
{
	if (ret >= 0)
		return "works";

	switch (-ret) {
	case EEXIST:
		return "EEXIST";
	case EFAULT:
		return "EFAULT";
	case EINVAL:
		return "EINVAL";
	case ENODEV:
		return "ENODEV";
	case ENOMEM:
		return "ENOMEM";
	default:
		return strerror(-ret);
	}
}

/* Contents of memory: text, or none. */
static const char *contents(const char *s)
{
	return *s ? text("\"%.*s\"", TEXT_LEN, s) : "zeroes";
}

/* The host: touches memory that may answer with SIGBUS. */
static sigjmp_buf out;

static void on_sigbus(int sig)
{
	siglongjmp(out, sig);
}

static const char *read_text(const char *addr)
{
	char copy[TEXT_LEN + 1] = {};

	if (sigsetjmp(out, 1))
		return "SIGBUS";
	memcpy(copy, addr, TEXT_LEN);
	return contents(copy);
}

static const char *write_text(char *addr, const char *words)
{
	if (sigsetjmp(out, 1))
		return "SIGBUS";
	memcpy(addr, words, strlen(words) + 1);
	return "works";
}

/* The guest: the same, four bytes at a time. */
static const char *trouble(int ret)
{
	return ret < 0 ? text("KVM_RUN: %s", outcome(ret)) : text("KVM exit %d", ret);
}

static const char *guest_read_text(struct vm *vm, __u64 gpa)
{
	char copy[TEXT_LEN + 1] = {};
	__u32 word;
	int i, ret;

	for (i = 0; i < TEXT_LEN; i += sizeof(word)) {
		ret = vm_guest_read(vm, gpa + i, &word);
		if (ret)
			return trouble(ret);
		memcpy(copy + i, &word, sizeof(word));
	}
	return contents(copy);
}

static const char *guest_write_text(struct vm *vm, __u64 gpa, const char *words)
{
	char copy[TEXT_LEN] = {};
	__u32 word;
	int i, ret;

	snprintf(copy, sizeof(copy), "%s", words);
	for (i = 0; i < TEXT_LEN; i += sizeof(word)) {
		memcpy(&word, copy + i, sizeof(word));
		ret = vm_guest_write(vm, gpa + i, word);
		if (ret)
			return trouble(ret);
	}
	return "works";
}

/* A VM with one file, and all that a chapter needs of it. */
struct scene {
	struct vm vm;
	int gmem;
	size_t size;
	char *map;		/* the file in the host, or NULL */
	bool shared;
	bool present[NR_BLOCKS];	/* what the story has touched */
};

static bool scene_begin(struct scene *s, int vm_type, __u64 flags)
{
	memset(s, 0, sizeof(*s));
	vm_create(&s->vm, vm_type);
	s->size = NR_BLOCKS * block;
	s->shared = flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	if (flags & ~vm_gmem_flags(&s->vm)) {
		note("not offered by this KVM");
		vm_destroy(&s->vm);
		return false;
	}

	s->gmem = vm_gmem_create(&s->vm, s->size, flags);
	fact("VMM", text("creates a file of %d blocks", NR_BLOCKS), "works", outcome(s->gmem));
	return s->gmem >= 0;
}

static void scene_end(struct scene *s)
{
	if (s->map)
		munmap(s->map, s->size + block);
	close(s->gmem);
	vm_destroy(&s->vm);
}

/* mmap() the file and a block more; @want is what should come of it. */
static void scene_mmap(struct scene *s, const char *want)
{
	void *map = mmap(NULL, s->size + block, PROT_READ | PROT_WRITE, MAP_SHARED, s->gmem, 0);

	fact("host", "mmap() of the file", want, outcome(map == MAP_FAILED ? -errno : 0));
	s->map = map == MAP_FAILED ? NULL : map;
}

/* Give the file to the guest.  @host is for a file that cannot be mapped. */
static bool scene_bind(struct scene *s, void *host)
{
	const bool refused = host && vm_needs_mappable();
	int ret = vm_gmem_bind(&s->vm, s->gmem, s->size, host);

	fact("VMM", text("makes it the guest's memory at %#x", GMEM_GPA),
	     refused ? "EINVAL" : "works", outcome(ret));
	if (refused)
		note("KVM on arm64 takes only files that can be mapped");
	return !ret;
}

/* What happens in block @nr; @want is the contents or "SIGBUS" or "works". */
static void guest_reads(struct scene *s, int nr, const char *want)
{
	fact("guest", text("reads block %d", nr), want,
	     guest_read_text(&s->vm, GMEM_GPA + nr * block));
}

static void guest_writes(struct scene *s, int nr, const char *words)
{
	fact("guest", text("writes \"%s\" into block %d", words, nr), "works",
	     guest_write_text(&s->vm, GMEM_GPA + nr * block, words));
	s->present[nr] = true;
}

static void host_reads(struct scene *s, int nr, const char *want)
{
	fact("host", text("reads block %d", nr), want, read_text(s->map + nr * block));
}

static void host_writes(struct scene *s, int nr, const char *words, const char *want)
{
	fact("host", text("writes \"%s\" into block %d", words, nr), want,
	     write_text(s->map + nr * block, words));
	if (!strcmp(want, "works"))
		s->present[nr] = true;
}

/*
 * Whether a block has memory, as far as the kernel tells: 1, 0, or -1 where
 * there is no cachestat() and the file is not mapped.
 */
static int block_present(const struct scene *s, int nr)
{
	__u64 range[2] = { nr * block, block }, stat[5] = {};
	unsigned char resident;

	if (!syscall(__NR_cachestat, s->gmem, range, stat, 0))
		return stat[0] != 0;
	if (s->map && !mincore(s->map + nr * block, block, &resident))
		return resident & 1;
	return -1;
}

/* The map of the file, held against what the kernel says. */
static void scene_map(const struct scene *s)
{
	char want[NR_BLOCKS + 1] = {}, got[NR_BLOCKS + 1] = {};
	bool checked = true;
	int i, present;

	for (i = 0; i < NR_BLOCKS; i++) {
		const char letter = s->shared ? 'S' : 'P';

		present = block_present(s, i);
		checked = checked && present >= 0;
		want[i] = s->present[i] ? letter : '.';
		got[i] = present < 0 ? want[i] : present ? letter : '.';
	}

	if (strcmp(want, got)) {
		fact("", "map of the file", want, got);
		return;
	}

	held += checked;
	printf("       %smap%s    ", DIM, PLAIN);
	for (i = 0; i < NR_BLOCKS; i++)
		printf("%s%c%s", got[i] == 'S' ? GREEN : got[i] == 'P' ? PURPLE : DIM, got[i],
		       PLAIN);
	puts(checked ? "" : "  (not checked: no cachestat() in this kernel)");
}

/* Memory of the VMM for the guest's shared accesses, in slots that have both. */
static void *host_memory(size_t size)
{
	void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (host == MAP_FAILED)
		give_up(1, "mmap: %s", strerror(errno));
	return host;
}

/* Private memory of a VM that has such: the file is one half of its memory. */
static void private_file(int nr)
{
	const int type = vm_private_type();
	struct scene s;
	char *host;

	chapter(nr, "No flags", "private memory that the host cannot even map");
	if (!scene_begin(&s, type, 0))
		return;
	scene_mmap(&s, "ENODEV");

	host = host_memory(s.size);
	if (scene_bind(&s, host) && type >= 0) {
		fact("VMM", "tells KVM that the guest's memory there is private", "works",
		     outcome(vm_set_private(&s.vm, GMEM_GPA, s.size)));
		guest_writes(&s, 1, "the guest's own");
		guest_reads(&s, 1, "\"the guest's own\"");
		fact("host", "reads the memory that it has in that place", "zeroes",
		     read_text(host + block));
	} else if (type < 0 && !vm_needs_mappable()) {
		note("this KVM has no VMs with private memory: the file is of no use");
	}
	scene_map(&s);
	munmap(host, s.size);
	scene_end(&s);
}

/* The hardened ordinary VM: the guest's memory is out of the VMM's reach. */
static void private_mapped_file(int nr)
{
	struct scene s;
	int pipes[2];

	chapter(nr, "MMAP", "private memory of an ordinary VM, mapped and untouchable");
	if (!scene_begin(&s, -1, GUEST_MEMFD_FLAG_MMAP))
		return;
	scene_mmap(&s, "works");

	if (s.map && scene_bind(&s, NULL)) {
		guest_writes(&s, 1, "the guest's own");
		host_reads(&s, 1, "SIGBUS");
		host_writes(&s, 1, "the host's", "SIGBUS");
		if (pipe(pipes))
			give_up(1, "pipe: %s", strerror(errno));
		fact("host", "asks the kernel to read it, with write()", "EFAULT",
		     outcome(write(pipes[1], s.map + block, TEXT_LEN) < 0 ? -errno : 0));
		close(pipes[0]);
		close(pipes[1]);
		guest_reads(&s, 1, "\"the guest's own\"");
	}
	scene_map(&s);
	scene_end(&s);
}

/* Shared memory without a way to share it: allowed, and the guest has other. */
static void shared_unmapped_file(int nr)
{
	const int type = vm_private_type();
	struct scene s;
	struct vm other;
	char *host;

	chapter(nr, "INIT_SHARED", "memory that may be shared, and that nobody can map");
	if (!scene_begin(&s, -1, GUEST_MEMFD_FLAG_INIT_SHARED))
		return;
	scene_mmap(&s, "ENODEV");

	host = host_memory(s.size);
	if (scene_bind(&s, host)) {
		guest_writes(&s, 1, "hello, host");
		s.present[1] = false;
		fact("host", "reads its own memory in that place, not the file's",
		     "\"hello, host\"", read_text(host + block));
	}
	scene_map(&s);
	munmap(host, s.size);
	scene_end(&s);

	/* Capabilities are to be asked of each VM. */
	if (type < 0)
		return;
	vm_create(&other, type);
	fact("VMM", "creates one in a VM with private memory",
	     vm_gmem_flags(&other) & GUEST_MEMFD_FLAG_INIT_SHARED ? "works" : "EINVAL",
	     outcome(vm_gmem_create(&other, block, GUEST_MEMFD_FLAG_INIT_SHARED)));
	vm_destroy(&other);
}

/* The VM whose memory is one file, for both sides. */
static void shared_mapped_file(int nr)
{
	struct scene s;

	chapter(nr, "MMAP | INIT_SHARED", "one memory for guest and host");
	if (!scene_begin(&s, -1, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED))
		return;
	scene_mmap(&s, "works");

	if (s.map && scene_bind(&s, NULL)) {
		host_writes(&s, 1, "hello, guest", "works");
		guest_reads(&s, 1, "\"hello, guest\"");
		guest_writes(&s, 4, "hello, host");
		host_reads(&s, 4, "\"hello, host\"");
		host_reads(&s, NR_BLOCKS, "SIGBUS");
		note("that one is past the end of the file");
		scene_map(&s);

		fact("VMM", "punches a hole for block 1, to have the memory back", "works",
		     outcome(fallocate(s.gmem, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				       block, block) ? -errno : 0));
		s.present[1] = false;
		scene_map(&s);
		guest_reads(&s, 1, "zeroes");
		s.present[1] = true;
		host_reads(&s, 4, "\"hello, host\"");
	}
	scene_map(&s);
	scene_end(&s);
}

static void (*const chapters[])(int nr) = {
	private_file,
	private_mapped_file,
	shared_unmapped_file,
	shared_mapped_file,
};

int main(void)
{
	const struct sigaction sa = { .sa_handler = on_sigbus };
	const char *env = getenv("GMEM_COLOR");
	size_t i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	colour = isatty(STDOUT_FILENO) || (env && !strcmp(env, "1"));
	block = sysconf(_SC_PAGESIZE);
	sigaction(SIGBUS, &sa, NULL);

	/* Says so and ends if there is no guest_memfd here. */
	vm_private_type();

	printf("%sguest_memfd%s: the memory of a virtual machine, in a file\n", BOLD, PLAIN);
	printf("map of a file, one letter per block of %zu KiB: %sP%s private, the guest's;"
	       " %sS%s shared,\nthe host may touch it; . nothing there yet\n", block >> 10,
	       PURPLE, PLAIN, GREEN, PLAIN);

	for (i = 0; i < ARRAY_SIZE(chapters); i++)
		chapters[i](i + 1);

	printf("\n%sguest_memfd demo: %d facts held, %d did not%s\n", failed ? RED : BOLD,
	       held, failed, PLAIN);
	return failed ? 1 : 0;
}
