// SPDX-License-Identifier: GPL-2.0
/*
 * What guest_memfd costs: user faults, guest faults, allocation, conversion.
 *
 * Made for a machine that is emulated so that its clock counts instructions
 * (QEMU's -icount shift=0,sleep=off): then a nanosecond is an instruction, of
 * the kernel, of this program, or of its guest, and a second run gives the same.
 * Elsewhere the figures are nanoseconds, with all their noise.
 *
 * Each line of the output is "NAME VALUE UNIT".  What a kernel cannot do it has
 * no line for.  Where pages cannot be converted in place, what is measured under
 * the same name is what a VMM does instead: an allocation for private memory,
 * one for shared memory, and KVM_SET_MEMORY_ATTRIBUTES.
 *
 * gmem-bench		all on one CPU
 * gmem-bench two	conversion on one CPU of memory that another one touched
 * gmem-bench blocks	memory in blocks, with 2 GiB to spare; needs debugfs
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/falloc.h>
#include <fcntl.h>

#include "vm.h"

#define KIB		1024ul
#define MIB		(1024 * KIB)
#define GIB		(1024 * MIB)
#define SHARED_FILE	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define MAX_SAMPLES	64

/* Not where the guest's code is: no page table, nor any huge page, of both. */
#define GPA		GIB
#define SLOT		1

static size_t page;		/* bytes */
static bool can_convert;	/* pages of a guest_memfd, in place */
static size_t block_sizes;	/* of a guest_memfd: a bit each, or 0 */

static void must(const char *what, int ret)
{
	if (ret < 0)
		give_up(1, "%s: %s", what, strerror(errno));
}

/* Time, and what it takes to ask for it. */

static __u64 now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static __u64 asking;

static __u64 since(__u64 start)
{
	__u64 passed = now() - start;

	return passed > asking ? passed - asking : 0;
}

struct samples {
	int nr;
	__u64 value[MAX_SAMPLES];
};

static void add(struct samples *s, __u64 value)
{
	s->value[s->nr++ % MAX_SAMPLES] = value;
}

static int compare(const void *a, const void *b)
{
	__u64 x = *(const __u64 *)a, y = *(const __u64 *)b;

	return x < y ? -1 : x > y;
}

static __u64 quantile(struct samples *s, int part, int parts)
{
	int nr = s->nr < MAX_SAMPLES ? s->nr : MAX_SAMPLES;

	qsort(s->value, nr, sizeof(s->value[0]), compare);
	return s->value[nr * part / parts];
}

static __u64 least(struct samples *s)
{
	return quantile(s, 0, 1);
}

static __u64 median(struct samples *s)
{
	return quantile(s, 1, 2);
}

static void report_in(const char *unit, const char *name, double value)
{
	printf("%s %.*f %s\n", name, value < 1000 ? 1 : 0, value, unit);
	fflush(stdout);
}

static void report(const char *name, double value)
{
	report_in("instructions", name, value);
}

/* NAME-PART */
static void report_part_in(const char *unit, const char *name, const char *part,
			   double value)
{
	char both[80];

	snprintf(both, sizeof(both), "%s-%s", name, part);
	report_in(unit, both, value);
}

static void report_part(const char *name, const char *part, double value)
{
	report_part_in("instructions", name, part, value);
}

/*
 * A VM with a file as its memory.  The host's memory is a mapping of the file,
 * or, where pages cannot be converted in place, its own.
 */
struct memory {
	struct vm vm;
	int file;
	size_t size;
	char *host;
	bool in_place;
};

/* @size 0: remove.  @flags: of the memslot, beside that it has a guest_memfd. */
static void memory_bind(const struct memory *m, size_t size, __u32 flags)
{
	const struct kvm_userspace_memory_region2 region = {
		.slot = SLOT,
		.flags = KVM_MEM_GUEST_MEMFD | flags,
		.guest_phys_addr = GPA,
		.memory_size = size,
		.userspace_addr = (unsigned long)m->host,
		.guest_memfd = m->file,
	};

	must("memslot", ioctl(m->vm.fd, KVM_SET_USER_MEMORY_REGION2, &region));
}

static char *map(struct memory *m)
{
	if (m->in_place)
		return mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->file, 0);

	return mmap(NULL, m->size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static void memory_create(struct memory *m, int type, size_t size, __u64 flags)
{
	m->size = size;
	m->in_place = flags & GUEST_MEMFD_FLAG_MMAP;
	vm_create(&m->vm, type);
	m->file = vm_gmem_create(&m->vm, size, flags);
	if (m->file < 0)
		give_up(1, "guest_memfd with flags %llx: %s", flags, strerror(-m->file));
	m->host = map(m);
	if (m->host == MAP_FAILED)
		give_up(1, "mmap: %s", strerror(errno));
	memory_bind(m, size, 0);
}

/* Memory that can be converted: in place, or the way it is done without. */
static void memory_create_convertible(struct memory *m, size_t size)
{
	memory_create(m, vm_private_type(), size, can_convert ? SHARED_FILE : 0);
}

static void memory_destroy(struct memory *m)
{
	munmap(m->host, m->size);
	close(m->file);
	vm_destroy(&m->vm);
}

/* Lose all user page tables of the memory, not the memory itself. */
static void memory_remap(struct memory *m)
{
	if (mmap(m->host, m->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 m->file, 0) != m->host)
		give_up(1, "mmap: %s", strerror(errno));
}

/* Lose all page tables of the guest. */
static void memory_rebind(struct memory *m)
{
	memory_bind(m, 0, 0);
	memory_bind(m, m->size, 0);
}

static void make_hole(struct memory *m, size_t offset, size_t size)
{
	must("punch hole", fallocate(m->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     offset, size));
}

static void allocate(struct memory *m, size_t offset, size_t size)
{
	must("fallocate", fallocate(m->file, FALLOC_FL_KEEP_SIZE, offset, size));
}

static void set_state(struct memory *m, size_t offset, size_t size, __u64 attributes)
{
	struct kvm_memory_attributes2 state = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
	};
	struct kvm_memory_attributes vm = {
		.address = GPA + offset,
		.size = size,
		.attributes = attributes,
	};

	if (m->in_place)
		must("convert", ioctl(m->file, KVM_SET_MEMORY_ATTRIBUTES2, &state));
	else
		must("set attributes", ioctl(m->vm.fd, KVM_SET_MEMORY_ATTRIBUTES, &vm));
}

static void to_private(struct memory *m, size_t offset, size_t size)
{
	set_state(m, offset, size, PRIVATE);
	if (!m->in_place) {
		allocate(m, offset, size);
		must("madvise", madvise(m->host + offset, size, MADV_DONTNEED));
	}
}

static void to_shared(struct memory *m, size_t offset, size_t size)
{
	set_state(m, offset, size, 0);
	if (!m->in_place)
		make_hole(m, offset, size);
}

static void touch(char *start, size_t size, size_t step, bool write)
{
	char *p;

	for (p = start; p < start + size; p += step) {
		if (write)
			WRITE_ONCE(*p, 1);
		else
			(void)READ_ONCE(*p);
	}
}

static __u64 time_touch(char *start, size_t size, size_t step, bool write)
{
	__u64 start_time = now();

	touch(start, size, step, write);
	return since(start_time);
}

/* The guest writes a word to each page, and comes back to the VMM each time. */
static void touch_guest(struct memory *m, size_t size, size_t step)
{
	size_t offset;

	for (offset = 0; offset < size; offset += step) {
		if (vm_guest_write(&m->vm, GPA + offset, 1))
			give_up(1, "the guest cannot write at %zx", offset);
	}
}

static __u64 time_guest(struct memory *m, size_t step)
{
	__u64 start = now();

	touch_guest(m, m->size, step);
	return since(start);
}

/* The cases */

static void bench_clock(void)
{
	struct samples s = {};
	__u64 start;
	int i;

	for (i = 0; i < MAX_SAMPLES; i++) {
		start = now();
		add(&s, now() - start);
	}
	asking = median(&s);
	report("clock", asking);
}

/* One that is refused at once; kvm's way in and out. */
static void bench_ioctl(void)
{
	struct samples s = {};
	struct memory m;
	__u64 start;
	int i;

	memory_create(&m, -1, page, SHARED_FILE);
	for (i = 0; i < MAX_SAMPLES; i++) {
		start = now();
		ioctl(m.file, KVM_GET_API_VERSION, 0);
		add(&s, since(start));
	}
	report("ioctl", median(&s));
	memory_destroy(&m);
}

static void bench_fallocate(void)
{
	struct samples s = {};
	struct memory m;
	__u64 start;
	int i;

	memory_create(&m, -1, 16 * MIB, SHARED_FILE);
	for (i = 0; i < 5; i++) {
		start = now();
		allocate(&m, 0, m.size);
		add(&s, since(start));
		make_hole(&m, 0, m.size);
	}
	report("fallocate-page", (double)median(&s) / (m.size / page));
	memory_destroy(&m);
}

/*
 * User faults, per page.  Of pages in a row, one fault may map many; "alone" is
 * a page without neighbours, in a place where there is a page table already.
 */
static void bench_user_fault(void)
{
	static const char * const access[] = { "read", "write" };
	struct samples fresh, present, alone;
	size_t nr, far = 64 * KIB;
	struct memory m;
	char name[64];
	int i, write;

	memory_create(&m, -1, 16 * MIB, SHARED_FILE);
	nr = m.size / page;

	for (write = 0; write < 2; write++) {
		fresh.nr = 0;
		present.nr = 0;
		alone.nr = 0;

		for (i = 0; i < 5; i++) {
			add(&fresh, time_touch(m.host, m.size, page, write));
			memory_remap(&m);
			add(&present, time_touch(m.host, m.size, page, write));
			make_hole(&m, 0, m.size);

			touch(m.host, m.size, far, write);
			memory_remap(&m);
			/* For the page tables; these pages are not counted. */
			touch(m.host, m.size, 2 * MIB, write);
			add(&alone, time_touch(m.host + far, m.size - far, far, write));
			make_hole(&m, 0, m.size);
		}

		snprintf(name, sizeof(name), "user-fault-%s", access[write]);
		report_part(name, "fresh", (double)median(&fresh) / nr);
		report_part(name, "present", (double)median(&present) / nr);
		report_part(name, "alone", (double)median(&alone) /
			    (m.size / far - m.size / (2 * MIB)));
	}
	memory_destroy(&m);
}

/* Guest faults, per page: what a first access costs more than the second one. */
static void guest_fault(const char *name, int type, __u64 flags, bool private)
{
	struct samples fresh = {}, present = {};
	struct memory m;
	size_t nr;
	__u64 first;
	int i;

	memory_create(&m, type, 16 * MIB, flags);
	nr = m.size / page;
	if (private)
		set_state(&m, 0, m.size, PRIVATE);

	for (i = 0; i < 3; i++) {
		first = time_guest(&m, page);
		add(&fresh, first - time_guest(&m, page));

		memory_rebind(&m);
		first = time_guest(&m, page);
		add(&present, first - time_guest(&m, page));
		make_hole(&m, 0, m.size);
	}
	report_part(name, "fresh", (double)median(&fresh) / nr);
	report_part(name, "present", (double)median(&present) / nr);
	memory_destroy(&m);
}

static void bench_guest_fault(void)
{
	int type = vm_private_type();

	guest_fault("guest-fault-default", -1, SHARED_FILE, false);
	if (type < 0)
		return;

	guest_fault("guest-fault-protected", type, 0, true);
	if (can_convert) {
		guest_fault("guest-fault-in-place-private", type, SHARED_FILE, true);
		guest_fault("guest-fault-in-place-shared", type, SHARED_FILE, false);
	}
}

/* A counter of the emulated RMP. */
static double counter(const char *name)
{
	FILE *f = fopen("/sys/kernel/debug/kvm/emulated-rmp/stats", "r");
	const size_t len = strlen(name);
	double val = -1;
	char line[80];

	if (!f)
		give_up(1, "no emulated RMP: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			val = atof(line + len + 1);
	fclose(f);
	if (val < 0)
		give_up(1, "the emulated RMP does not count %s", name);
	return val;
}

static double calls(void)
{
	return counter("make-private") + counter("make-shared") + counter("reclaim");
}

/* Do something with all of the memory.  Return the calls of hooks that it takes. */
static double count_calls(void (*what)(struct memory *m, size_t offset, size_t size),
			  struct memory *m, struct samples *s)
{
	const double before = calls();
	const __u64 start = now();

	what(m, 0, m->size);
	add(s, since(start));
	return calls() - before;
}

/* What it takes to own pages, by an emulated RMP: calls of hooks, and instructions. */
static void bench_own(void)
{
	struct samples allocated = {}, private = {}, shared = {};
	const int type = vm_private_type();
	double before, by_alloc = 0, by_private = 0, by_shared = 0;
	struct memory m;
	int i;

	memory_create(&m, type, 64 * MIB, 0);
	for (i = 0; i < 3; i++) {
		by_alloc = count_calls(allocate, &m, &allocated);
		make_hole(&m, 0, m.size);
	}
	report("own-fallocate-page", (double)median(&allocated) / (m.size / page));
	report("own-calls-allocate-1G", by_alloc * (1024 * MIB / m.size));
	memory_destroy(&m);

	memory_create(&m, type, 2 * MIB, SHARED_FILE);
	touch(m.host, m.size, page, true);
	for (i = 0; i < 9; i++) {
		by_private = count_calls(to_private, &m, &private);
		by_shared = count_calls(to_shared, &m, &shared);
		touch(m.host, m.size, page, true);
	}
	report("own-convert-2M-to-private", median(&private));
	report("own-convert-2M-to-shared", median(&shared));
	report("own-calls-convert-2M-to-private", by_private);
	report("own-calls-convert-2M-to-shared", by_shared);
	memory_destroy(&m);

	/* Faults on owned pages: no call, and no lookup. */
	memory_create(&m, type, 16 * MIB, 0);
	set_state(&m, 0, m.size, PRIVATE);
	touch_guest(&m, m.size, page);
	before = calls() + counter("lookups");
	memory_rebind(&m);
	touch_guest(&m, m.size, page);
	report("own-calls-guest-fault-present", calls() + counter("lookups") - before);
	memory_destroy(&m);

	guest_fault("own-guest-fault-protected", type, 0, true);
}

/*
 * What it costs to unmap 512 pages that were touched, beside all else that a
 * punched hole is: it has to be done, or there is nothing to unmap.  A hole in a
 * guest_memfd unmapped page by page before there was conversion, one in tmpfs
 * all at once with unmap_mapping_pages().
 */
static __u64 unmap_cost(int file, char *host, size_t size)
{
	struct samples mapped = {}, unmapped = {};
	__u64 start;
	int i;

	for (i = 0; i < 21; i++) {
		touch(host, size, page, true);
		if (mmap(host, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 file, 0) != host)
			give_up(1, "mmap: %s", strerror(errno));
		/* Or there are no page tables: the next page is not punched. */
		touch(host + size, page, page, true);

		start = now();
		must("punch hole", fallocate(file, FALLOC_FL_PUNCH_HOLE |
					     FALLOC_FL_KEEP_SIZE, 0, size));
		add(&unmapped, since(start));

		touch(host, size, page, true);
		start = now();
		must("punch hole", fallocate(file, FALLOC_FL_PUNCH_HOLE |
					     FALLOC_FL_KEEP_SIZE, 0, size));
		add(&mapped, since(start));
	}

	return least(&mapped) - least(&unmapped);
}

static void bench_unmap(void)
{
	size_t size = 512 * page;
	struct samples s = {};
	struct memory m;
	__u64 start;
	char *host;
	int i, file;

	file = memfd_create("tmpfs", 0);
	must("memfd_create", file);
	must("ftruncate", ftruncate(file, 2 * size));
	host = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (host == MAP_FAILED)
		give_up(1, "mmap: %s", strerror(errno));
	report("unmap-512", unmap_cost(file, host, size));
	munmap(host, 2 * size);
	close(file);

	memory_create(&m, -1, 2 * size, SHARED_FILE);
	report("unmap-512-punch", unmap_cost(m.file, m.host, size));

	for (i = 0; i < 21; i++) {
		touch(m.host, size, page, true);
		start = now();
		must("madvise", madvise(m.host, size, MADV_DONTNEED));
		add(&s, since(start));
	}
	report("unmap-512-madvise", least(&s));
	memory_destroy(&m);
}

/*
 * Round trips of memory that the host has touched: to private, to shared, and
 * the host touches it again.
 *
 * PLAIN	no other page is private, the whole file is shared again
 * MIXED	one of the next pages is private, and stays so
 * GUEST	the guest has touched the memory, too
 */
enum how { PLAIN, MIXED, GUEST };

static void round_trip(const char *size_name, size_t size, enum how how, int nr)
{
	static const char * const access[] = { "read", "write" };
	struct samples private, shared, touched, all;
	__u64 time[4];
	struct memory m;
	char name[64];
	int i, write;

	for (write = 1; write >= 0; write--) {
		private.nr = 0;
		shared.nr = 0;
		touched.nr = 0;
		all.nr = 0;
		/* Nothing else in the file, but there are page tables. */
		memory_create_convertible(&m, size + 4 * MIB);
		touch(m.host + size, page, page, write);
		if (how == MIXED)
			to_private(&m, size + page, page);
		touch(m.host, size, page, write);

		for (i = 0; i < nr + 2; i++) {
			if (how == GUEST)
				touch_guest(&m, size, page);
			time[0] = now();
			to_private(&m, 0, size);
			time[1] = now();
			to_shared(&m, 0, size);
			time[2] = now();
			touch(m.host, size, page, write);
			time[3] = now();
			if (i < 2)
				continue;

			add(&private, time[1] - time[0] - asking);
			add(&shared, time[2] - time[1] - asking);
			add(&touched, time[3] - time[2] - asking);
			add(&all, time[3] - time[0] - 3 * asking);
		}
		memory_destroy(&m);

		snprintf(name, sizeof(name), "convert-%s-%s", size_name, access[write]);
		report_part(name, "to-private", median(&private));
		report_part(name, "to-shared", median(&shared));
		report_part(name, "touch", median(&touched));
		report_part(name, "round-trip", median(&all));
	}
}

static void bench_round_trip(void)
{
	round_trip("4K", 4 * KIB, PLAIN, 41);
	round_trip("4K-mixed", 4 * KIB, MIXED, 41);
	round_trip("4K-guest", 4 * KIB, GUEST, 41);
	round_trip("64K", 64 * KIB, PLAIN, 41);
	round_trip("2M", 2 * MIB, PLAIN, 9);
	round_trip("2M-guest", 2 * MIB, GUEST, 9);
	round_trip("16M", 16 * MIB, PLAIN, 3);
}

static void bench_no_op(void)
{
	static const struct {
		const char *name;
		size_t size;
	} sizes[] = { { "no-op-4K", 4 * KIB }, { "no-op-2M", 2 * MIB } };
	struct samples s;
	struct memory m;
	unsigned int i, j;
	__u64 start;

	memory_create_convertible(&m, 4 * MIB);
	touch(m.host, m.size, page, true);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		s.nr = 0;
		for (j = 0; j < 21; j++) {
			start = now();
			set_state(&m, 0, sizes[i].size, 0);
			add(&s, since(start));
		}
		report(sizes[i].name, median(&s));
	}
	memory_destroy(&m);
}

/* 64 MiB, touched by the host; then every other page to private, one by one. */
#define FRAGMENT_GROUPS	64

static void bench_fragment(void)
{
	__u64 start, sum = 0, first = 0, last = 0, group = 0, took, nr, tenth, i;
	char name[64];
	struct memory m;

	memory_create_convertible(&m, 64 * MIB);
	touch(m.host, m.size, page, true);
	/* For the code's own pages, and not one of those that are counted. */
	to_private(&m, page, page);
	to_shared(&m, page, page);
	touch(m.host + page, page, page, true);

	nr = m.size / page / 2;
	tenth = nr / 10;
	for (i = 0; i < nr; i++) {
		start = now();
		to_private(&m, 2 * i * page, page);
		took = since(start);

		sum += took;
		group += took;
		if (i < tenth)
			first += took;
		if (i >= nr - tenth)
			last += took;
		if ((i + 1) % (nr / FRAGMENT_GROUPS))
			continue;

		snprintf(name, sizeof(name), "fragment-at-%02llu", i / (nr / FRAGMENT_GROUPS));
		report(name, (double)group / (nr / FRAGMENT_GROUPS));
		group = 0;
	}
	report("fragment-first", (double)first / tenth);
	report("fragment-last", (double)last / tenth);
	report("fragment-mean", (double)sum / nr);
	memory_destroy(&m);
}

/*
 * Faults on pages far apart, shared ones, in a file where every other page is
 * private, and in one where none is.  No other page is present, so that a fault
 * maps one page.  Then the host's faults on all shared pages, which a fault can
 * map together, or not.
 */
static void lookup_in(const char *kind, bool fragmented)
{
	struct samples fresh = {}, present = {}, guest_fresh = {}, guest_present = {}, row = {};
	size_t offset, far = 64 * KIB;
	struct memory m;
	char name[64];
	__u64 first;
	int i;

	memory_create(&m, can_convert ? vm_private_type() : -1, 64 * MIB, SHARED_FILE);
	for (offset = page; fragmented && offset < m.size; offset += 2 * page)
		to_private(&m, offset, page);

	for (i = 0; i < 5; i++) {
		add(&fresh, time_touch(m.host, m.size, far, true));
		memory_remap(&m);
		add(&present, time_touch(m.host, m.size, far, true));

		first = time_guest(&m, far);
		add(&guest_present, first - time_guest(&m, far));
		make_hole(&m, 0, m.size);

		first = time_guest(&m, far);
		add(&guest_fresh, first - time_guest(&m, far));
		make_hole(&m, 0, m.size);
	}
	for (i = 0; i < 3; i++) {
		touch(m.host, m.size, 2 * page, true);
		memory_remap(&m);
		add(&row, time_touch(m.host, m.size, 2 * page, true));
	}

	snprintf(name, sizeof(name), "lookup-%s", kind);
	report_part(name, "user-fresh", (double)median(&fresh) / (m.size / far));
	report_part(name, "user-present", (double)median(&present) / (m.size / far));
	report_part(name, "guest-fresh", (double)median(&guest_fresh) / (m.size / far));
	report_part(name, "guest-present", (double)median(&guest_present) / (m.size / far));
	report_part(name, "user-row", (double)median(&row) / (m.size / page / 2));
	memory_destroy(&m);
}

static void bench_lookup(void)
{
	lookup_in("uniform", false);
	if (can_convert)
		lookup_in("fragmented", true);
}

/* Bytes in objects of the kernel's allocator, or -1. */
static long slab_bytes(void)
{
	FILE *file = fopen("/proc/slabinfo", "r");
	unsigned long active, size;
	long sum = 0;
	char line[256];

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%*s %lu %*u %lu", &active, &size) == 2)
			sum += active * size;
	}
	fclose(file);
	return sum;
}

/* What 4 GiB cost in memory if every other page is private, none of them there. */
static void bench_state_size(void)
{
	size_t size = 4096 * MIB, offset;
	long before, after;
	struct memory m;

	memory_create_convertible(&m, size);
	set_state(&m, page, page, PRIVATE);
	set_state(&m, page, page, 0);
	before = slab_bytes();
	for (offset = 0; offset < size; offset += 2 * page)
		set_state(&m, offset, page, PRIVATE);
	after = slab_bytes();
	memory_destroy(&m);

	if (before >= 0)
		printf("fragment-state %.3f bytes/page\n",
		       (double)(after - before) / (size / page));
	fflush(stdout);
}

/*
 * Blocks.  They are zeroed when they are allocated, by fallocate() or by the first
 * fault on them; base pages are zeroed by the first fault on each.  Zeroing would hide
 * all else, as each iteration of a string instruction counts.  So it is measured
 * apart, and subtracted, except from what has "zeroed" in its name.
 */
static const struct block {
	const char *name;
	size_t size;
	__u64 flags;		/* of the file */
	size_t file;		/* what the guest gets: at least a block */
} blocks[] = {
	/* First the one that needs most memory in one piece. */
	{ "block-1G", GIB, GUEST_MEMFD_BLOCK_SIZE_1GB, GIB },
	{ "block-2M", 2 * MIB, GUEST_MEMFD_BLOCK_SIZE_2MB, 64 * MIB },
	{ "block-4K", 4 * KIB, 0, 64 * MIB },
};

static double zeroing;		/* instructions to zero a page */

#if defined(__x86_64__)
/* Does the kernel use a feature of the CPU? */
static bool cpu_has(const char *feature)
{
	FILE *file = fopen("/proc/cpuinfo", "r");
	bool found = false;
	char word[64];

	if (!file)
		give_up(1, "/proc/cpuinfo: %s", strerror(errno));
	while (!found && fscanf(file, "%63s", word) == 1)
		found = !strcmp(word, feature);
	fclose(file);
	return found;
}

/* With the instruction that the kernel's clear_page() takes, see asm/page_64.h. */
static __u64 time_zero(void *to)
{
	size_t bytes = page, words = page / 8;
	bool erms = cpu_has("erms");
	__u64 start;

	if (!erms && !cpu_has("rep_good"))
		give_up(1, "clear_page() takes no string instruction here");

	start = now();
	if (erms)
		asm volatile("rep stosb" : "+D" (to), "+c" (bytes) : "a" (0) : "memory");
	else
		asm volatile("rep stosq" : "+D" (to), "+c" (words) : "a" (0) : "memory");
	return since(start);
}
#else
static __u64 time_zero(void *to)
{
	__u64 start = now();

	memset(to, 0, page);
	asm volatile("" : : "r" (to) : "memory");
	return since(start);
}
#endif

static void bench_zero_page(void)
{
	struct samples s = {};
	void *to;
	int i;

	to = aligned_alloc(page, page);
	if (!to)
		give_up(1, "no memory");
	memset(to, 1, page);
	for (i = 0; i < 9; i++)
		add(&s, time_zero(to));
	free(to);

	zeroing = median(&s);
	report("zero-page", zeroing);
}

/* What it takes to have the guest write to a page that it has mapped, and come back. */
static void bench_guest_loop(void)
{
	struct memory m;

	memory_create(&m, -1, 16 * MIB, SHARED_FILE);
	touch_guest(&m, m.size, page);
	report("guest-loop-page", (double)time_guest(&m, page) / (m.size / page));
	memory_destroy(&m);
}

/* One of KVM's statistics, of all VMs that there are. */
static double kvm_stat(const char *name)
{
	char path[80];
	double value;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%s", name);
	file = fopen(path, "r");
	if (!file || fscanf(file, "%lf", &value) != 1)
		give_up(1, "%s cannot be read", path);
	fclose(file);
	return value;
}

/* What is measured has to be blocks, and not their substitute. */
static void must_be_blocks(const struct memory *m, const struct block *b)
{
	unsigned long whole = 0;
	char line[80];
	FILE *file;

	if (!b->flags)
		return;

	snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", m->file);
	file = fopen(line, "r");
	if (!file)
		give_up(1, "%s: %s", line, strerror(errno));
	while (fgets(line, sizeof(line), file) &&
	       sscanf(line, "gmem-blocks-whole: %lu", &whole) != 1)
		;
	fclose(file);
	if (whole != m->size / b->size)
		give_up(1, "%s: %lu of %zu could be had", b->name, whole, m->size / b->size);
}

/* Have the kernel's allocator give back the objects that it keeps for later. */
static void shrink_slabs(void)
{
	DIR *dir = opendir("/sys/kernel/slab");
	struct dirent *entry;
	char path[320];
	int fd;

	if (!dir)
		give_up(1, "/sys/kernel/slab: %s", strerror(errno));
	/* What waits for the end of a grace period is not free yet. */
	sleep(1);
	while ((entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", entry->d_name);
		fd = open(path, O_WRONLY);
		if (fd < 0)
			continue;
		must("shrink", write(fd, "1", 1));
		close(fd);
	}
	closedir(dir);
}

static long slab_bytes_exactly(void)
{
	long bytes;

	shrink_slabs();
	bytes = slab_bytes();
	if (bytes < 0)
		give_up(1, "/proc/slabinfo: %s", strerror(errno));
	return bytes;
}

/* A GiB of memory that nobody uses: so much that a slab or two do not matter. */
static void block_file(const struct block *b)
{
	const size_t nr = GIB / page;
	double allocated, punched;
	struct memory m;
	long before;
	__u64 start;

	memory_create(&m, -1, GIB, SHARED_FILE | b->flags);

	before = slab_bytes_exactly();
	start = now();
	allocate(&m, 0, m.size);
	allocated = (double)since(start) / nr;
	must_be_blocks(&m, b);
	report_part_in("bytes", b->name, "slab-1G", slab_bytes_exactly() - before);

	start = now();
	make_hole(&m, 0, m.size);
	punched = (double)since(start) / nr;
	memory_destroy(&m);

	/* A base page is not zeroed here. */
	if (b->flags)
		report_part(b->name, "fallocate-zeroed-page", allocated);
	report_part(b->name, "fallocate-page", allocated - (b->flags ? zeroing : 0));
	report_part(b->name, "punch-page", punched);
}

/*
 * The guest touches 64 MiB, page by page, while its writes are logged.  Then logging
 * ends, and the page tables that this took become huge mappings, of 2 MiB each, or one
 * of 1 GiB.  A part of what is measured is the system call; for base pages, of
 * which nothing becomes huge, that is nearly all.
 */
static void block_recover(const struct block *b, struct memory *m)
{
	const size_t size = 64 * MIB;
	__u64 start, took;

	memory_bind(m, 0, 0);
	memory_bind(m, m->size, KVM_MEM_LOG_DIRTY_PAGES);
	touch_guest(m, size, page);
	start = now();
	memory_bind(m, m->size, 0);
	took = since(start);

	if (b->flags && !(kvm_stat("pages_2m") + kvm_stat("pages_1g")))
		give_up(1, "%s: nothing has been recovered", b->name);
	report_part(b->name, "recover-2M", (double)took / (size / (2 * MIB)));
}

/*
 * The guest touches all pages of a file, an empty one, and one that is not: per page, of
 * which guest-loop-page is the way to the guest and back.
 */
static void block_guest(const struct block *b)
{
	double populated, touched, faults;
	struct memory m;
	size_t nr;

	memory_create(&m, -1, b->file, SHARED_FILE | b->flags);
	nr = m.size / page;

	/* Memory is allocated, and zeroed: base pages, too. */
	populated = (double)time_guest(&m, page) / nr;
	must_be_blocks(&m, b);
	report_part(b->name, "guest-populate-zeroed-page", populated);
	report_part(b->name, "guest-populate-page", populated - zeroing);

	/* It is there.  The guest's code stays mapped: that is no fault. */
	make_hole(&m, 0, m.size);
	allocate(&m, 0, m.size);
	must_be_blocks(&m, b);
	faults = kvm_stat("pf_fixed");
	touched = (double)time_guest(&m, page) / nr;
	faults = kvm_stat("pf_fixed") - faults;
	report_part(b->name, "guest-touch-page", touched);
	report_part_in("faults", b->name, "guest-faults-1G", faults * (GIB / m.size));

	if (block_sizes)
		block_recover(b, &m);
	memory_destroy(&m);
}

/* 2 MiB that the guest has mapped, as huge as can be, and the host has not. */
static void block_convert(const struct block *b)
{
	struct samples private = {}, shared = {};
	struct memory m;
	__u64 start;
	int i;

	memory_create(&m, vm_private_type(), b->file,
		      (can_convert ? SHARED_FILE : 0) | b->flags);
	for (i = 0; i < 9; i++) {
		touch_guest(&m, 2 * MIB, page);
		start = now();
		to_private(&m, 0, 2 * MIB);
		add(&private, since(start));

		touch_guest(&m, 2 * MIB, page);
		start = now();
		to_shared(&m, 0, 2 * MIB);
		add(&shared, since(start));
	}
	memory_destroy(&m);

	report_part(b->name, "convert-2M-to-private", median(&private));
	report_part(b->name, "convert-2M-to-shared", median(&shared));
}

static void bench_blocks(void)
{
	const struct block *b;

	bench_zero_page();
	bench_guest_loop();
	for (b = blocks; b < blocks + ARRAY_SIZE(blocks); b++) {
		if (b->flags && !(block_sizes & b->size))
			continue;
		block_file(b);
		block_guest(b);
		if (vm_private_type() >= 0)
			block_convert(b);
	}
}

/*
 * Two CPUs: a thread on the other one touches the memory and sleeps, then this
 * one converts it.  Whoever waits sleeps, so what is counted is ours, and what
 * ours makes the other CPU do while it waits for that.
 */
static struct {
	char *start;
	size_t size;
	int go[2], done[2];
} other;

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	must("sched_setaffinity", sched_setaffinity(0, sizeof(set), &set));
}

static void *other_thread(void *arg)
{
	char byte;

	(void)arg;
	pin(1);
	while (read(other.go[0], &byte, 1) == 1) {
		touch(other.start, other.size, page, true);
		must("write", write(other.done[1], &byte, 1));
	}
	return NULL;
}

static void touch_there(char *start, size_t size)
{
	char byte = 0;

	other.start = start;
	other.size = size;
	must("write", write(other.go[1], &byte, 1));
	must("read", read(other.done[0], &byte, 1));
}

static void two_round_trip(const char *size_name, size_t size, bool there, int nr)
{
	struct samples private = {}, shared = {};
	struct memory m;
	char name[64];
	__u64 start;
	int i;

	memory_create_convertible(&m, size + 4 * MIB);
	touch(m.host + size, page, page, true);
	for (i = 0; i < nr; i++) {
		if (there)
			touch_there(m.host, size);
		else
			touch(m.host, size, page, true);
		start = now();
		to_private(&m, 0, size);
		add(&private, since(start));
		start = now();
		to_shared(&m, 0, size);
		add(&shared, since(start));
	}
	memory_destroy(&m);

	snprintf(name, sizeof(name), "two-%s-%s", size_name, there ? "there" : "here");
	report_part(name, "to-private", median(&private));
	report_part(name, "to-shared", median(&shared));
}

static void bench_two(void)
{
	pthread_t thread;

	must("pipe", pipe(other.go));
	must("pipe", pipe(other.done));
	pin(0);
	if (pthread_create(&thread, NULL, other_thread, NULL))
		give_up(1, "no second thread");

	two_round_trip("4K", 4 * KIB, false, 41);
	two_round_trip("4K", 4 * KIB, true, 41);
	two_round_trip("2M", 2 * MIB, false, 9);
	two_round_trip("2M", 2 * MIB, true, 9);

	close(other.go[1]);
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	struct vm vm;

	page = getpagesize();
	vm_create(&vm, -1);
	can_convert = ioctl(vm.fd, KVM_CHECK_EXTENSION,
			    KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) > 0;
	block_sizes = ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_BLOCK_SIZES);
	vm_destroy(&vm);
	bench_clock();

	if (argc > 1 && !strcmp(argv[1], "two")) {
		bench_two();
		return 0;
	}

	if (argc > 1 && !strcmp(argv[1], "own")) {
		bench_own();
		return 0;
	}

	if (argc > 1 && !strcmp(argv[1], "blocks")) {
		bench_blocks();
		return 0;
	}

	bench_ioctl();
	bench_fallocate();
	bench_user_fault();
	bench_unmap();
	bench_guest_fault();
	if (vm_private_type() >= 0) {
		bench_round_trip();
		bench_no_op();
		bench_fragment();
		bench_state_size();
	}
	bench_lookup();
	return 0;
}
