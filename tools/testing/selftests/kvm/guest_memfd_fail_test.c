// SPDX-License-Identifier: GPL-2.0
/*
 * Each operation of a guest_memfd with each thing that it needs failing in turn: memory,
 * copies from and to user space, and the hooks that make pages the guest's or the host's.
 *
 * An operation runs with the first of these things failing, then with the second, and so
 * on, until it comes to its end before that.  Each time one of two is true:
 *
 *   - It fails with an errno that is documented, and nothing has changed (I3 in gmem.h).
 *     What may get a part of the way, like fallocate(), has only added pages that read as
 *     zeroes, in its range, and blocks as a whole.
 *   - It can do without what it did not get, and all is done.
 *
 * Nothing is lost at the end: no file descriptor, page of the guest's, VM or module.
 *
 *   scene   what the file is like before: pages and holes, private and shared, whole and
 *           broken blocks.  The memory of a scene is cut in units, of a block or 8 pages.
 *   point   a thing that can be made to fail, counted from when the operation begins
 *   content of a page is its first word: 0, or a number that stands for the page
 *
 * By /proc/thread-self/fail-nth, which counts the points of all kinds together.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>

#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "numaif.h"
#include "processor.h"

#define DEBUGFS		"/sys/kernel/debug/"
#define RMP		DEBUGFS "kvm/emulated-rmp/"

/* The same number for all architectures; older headers lack it. */
#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif

#define MAX_POINTS	2000
#define SLOT		10
#define GPA		SZ_4G
#define OTHER_GPA	(GPA + 2ull * SZ_1G)
#define GPA_SIZE	(4ull * SZ_1G)
#define TOKEN		0x5100000000ull		/* content of page 0, one more for each page */
#define NR_TAIL		20			/* pages behind the last block */
#define NR_POLICIES	16

/* Seconds: a debug kernel is slow. */
#define LONG		400

static size_t page_size;

/* What the processes of the cases tell each other. */
static struct {
	bool giant_tried, giant_works;
} *shared;

/* All that user space can see of a file, but for content. */
struct snapshot {
	u8 *page;			/* IS_*, for each */
	struct gmem_fdinfo info;
	char *rmp;			/* whose pages the emulated RMP says they are */
	int policy[NR_POLICIES];	/* at as many places */
	u64 mapped;			/* by the host, in bytes */
	int log;			/* 0 if pages are logged, or the errno of asking */
	int fds;
};

#define IS_PRIVATE	BIT(0)
#define IS_PRESENT	BIT(1)

/* What the machine has, and must have again. */
struct totals {
	u64 owned, leaked, injected, violations;
	long modules;
	int fds;
};

/* A VM, a file, and what is known of it. */
struct stage {
	struct kvm_vm *vm;		/* NULL when it is gone */
	struct kvm_vcpu *vcpu;
	unsigned int type;
	bool rmp;			/* has hooks */
	u64 flags;
	unsigned int block, unit;	/* in pages */
	unsigned int nr;		/* of the file */
	unsigned int grain;		/* look at the content of each so many pages */
	int fd;				/* -1 when closed */
	u8 *mem;
	u64 gpa;			/* of the memslot, 0 without */
	bool *filled;			/* those with a number in them */
	int fail_nth, populate;		/* files */
	struct totals start;
	long modules_with_vm;		/* and no file */
	u64 leaked;			/* as it may be */
	struct snapshot before, now;

	/* Of the last run of an operation: */
	int err;
	bool injected;			/* a hook has failed */
	u64 error_offset;
	unsigned int first, nr_pages;	/* where it may leave a part */
	int new_fd;
	u8 *new_mem;
	u8 *source;
	u64 *dirty;			/* a bit for each page */
	unsigned int step;		/* in "conversions" */
};

/* An operation, and how to look at it. */
struct op {
	/* The scene. */
	void (*setup)(struct __test_metadata *_metadata, struct stage *s);
	/* 0, or -1 and errno. */
	int (*run)(struct stage *s);
	/* What else is to be seen, or done, when it has failed; and when it has worked. */
	void (*failed)(struct __test_metadata *_metadata, struct stage *s);
	void (*done)(struct __test_metadata *_metadata, struct stage *s);
	/* What it has done is undone, where that takes no new scene. */
	void (*undo)(struct __test_metadata *_metadata, struct stage *s);
	int result;			/* 0, or the errno that it ends with in any case */
	int errnos[3];			/* what else it may fail with */
	bool maybe;			/* in some kernels, it can do without all that fails */
	bool part;			/* it may get a part of the way */
	const char *hook;		/* which is among its points, with an emulated RMP */
	bool loses;			/* a hook that fails loses a page */
	bool gone;			/* it leaves nothing to look at */
};

static u64 offset_of(unsigned int page)
{
	return (u64)page * page_size;
}

static u64 *word_at(struct stage *s, unsigned int page)
{
	return (u64 *)(s->mem + offset_of(page));
}

/* All of a file, to be freed by the caller.  Nothing, if there is none. */
static char *read_all(const char *path)
{
	size_t size = 0, room = SZ_4K;
	char *text = malloc(room);
	int fd = open(path, O_RDONLY);
	ssize_t len = 0;

	while (fd >= 0 && (len = read(fd, text + size, room - 1 - size)) > 0) {
		size += len;
		if (size == room - 1)
			text = realloc(text, room *= 2);
		TEST_ASSERT(text, "no memory for %s", path);
	}
	TEST_ASSERT(!len, "%s: errno %d", path, errno);
	if (fd >= 0)
		close(fd);
	text[size] = 0;
	return text;
}

/* References to KVM's modules: VMs and files have one each. */
static long module_refs(void)
{
	static const char * const names[] = { "kvm_amd", "kvm_intel" };
	char path[64], *text;
	long refs = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s/refcnt", names[i]);
		text = read_all(path);
		refs += atol(text);
		free(text);
	}
	return refs;
}

static struct totals totals_now(void)
{
	return (struct totals) {
		.owned = gmem_rmp_counter("owned"),
		.leaked = gmem_rmp_counter("leaked"),
		.injected = gmem_rmp_counter("injected"),
		.violations = gmem_rmp_counter("violations"),
		.modules = module_refs(),
		.fds = gmem_count_fds(),
	};
}

/*
 * Points
 */

/* Let everything count that can fail, quietly: the log is for what goes wrong. */
static void points_init(void)
{
	static const char * const kinds[] = {
		"failslab", "fail_page_alloc", "fail_usercopy",
		"kvm/emulated-rmp/fail_make_private", "kvm/emulated-rmp/fail_make_shared",
		"kvm/emulated-rmp/fail_reclaim",
	};
	char path[128];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		snprintf(path, sizeof(path), DEBUGFS "%s/verbose", kinds[i]);
		gmem_write_file(path, "0");
	}
	/* Allocations that may sleep included, and those of a single page. */
	gmem_write_file(DEBUGFS "failslab/ignore-gfp-wait", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/min-order", "0");
}

/* A call of a hook: those of one kind only count. */
static void fail_hook(const char *hook, int nth)
{
	char path[128], text[16];
	struct {
		const char *file, *val;
	} set[] = {
		{ "probability", "0" }, { "interval", "1" }, { "times", "1" }, { "space", text },
		{ "probability", "100" },
	};
	unsigned int i;

	snprintf(text, sizeof(text), "%d", nth);
	for (i = 0; i < (nth ? ARRAY_SIZE(set) : 1); i++) {
		snprintf(path, sizeof(path), RMP "fail_%s/%s", hook, set[i].file);
		TEST_ASSERT(!gmem_write_file(path, set[i].val), "cannot write to %s", path);
	}
}

/* Fail the @nth point from now on. */
static void fail_begin(struct __test_metadata *_metadata, struct stage *s, int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", nth);
	ASSERT_EQ((ssize_t)strlen(text), pwrite(s->fail_nth, text, strlen(text), 0));
}

/* Whether that has come. */
static bool fail_end(struct __test_metadata *_metadata, struct stage *s)
{
	char text[16] = {};

	/* If it is the answer that fails, the work did not come so far. */
	if (pread(s->fail_nth, text, sizeof(text) - 1, 0) < 0)
		text[0] = '1';
	/* It can be this that fails, with copies from user space: but only once. */
	if (pwrite(s->fail_nth, "0\n", 2, 0) < 0)
		ASSERT_EQ(2, pwrite(s->fail_nth, "0\n", 2, 0));
	return !atoi(text);
}

/*
 * What can be done to a file
 */
static int convert(struct stage *s, unsigned int first, unsigned int nr, u64 attributes)
{
	return gmem_convert(s->fd, offset_of(first), offset_of(nr), attributes, &s->error_offset);
}

static int allocate(struct stage *s, unsigned int first, unsigned int nr)
{
	return fallocate(s->fd, GMEM_ALLOC, offset_of(first), offset_of(nr));
}

static int punch(struct stage *s, unsigned int first, unsigned int nr)
{
	return fallocate(s->fd, GMEM_PUNCH, offset_of(first), offset_of(nr));
}

/* Not the library's, which makes other system calls besides: those are not to fail. */
static int set_region(struct stage *s, u64 gpa, u32 flags, unsigned int nr)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = SLOT,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = offset_of(nr),
		.guest_memfd = s->fd,
	};

	return ioctl(s->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static int set_slot(struct stage *s, u64 gpa, u32 flags)
{
	return set_region(s, gpa, KVM_MEM_GUEST_MEMFD | flags, s->nr);
}

static int bind_at(struct stage *s, u64 gpa)
{
	int ret = set_slot(s, gpa, 0);

	if (!ret)
		s->gpa = gpa;
	return ret;
}

static int unbind(struct stage *s)
{
	int ret = set_region(s, 0, 0, 0);

	if (!ret)
		s->gpa = 0;
	return ret;
}

static int get_log(struct stage *s)
{
	struct kvm_dirty_log args = { .slot = SLOT, .dirty_bitmap = s->dirty };

	return __vm_ioctl(s->vm, KVM_GET_DIRTY_LOG, &args);
}

/*
 * Looking
 */
static u64 count_present(struct stage *s, unsigned int first, unsigned int nr)
{
	u64 range[2] = { offset_of(first), offset_of(nr) }, stat[5];

	TEST_ASSERT(!syscall(__NR_cachestat, s->fd, range, stat, 0), "cachestat: errno %d", errno);
	return stat[0];
}

static void find_present(struct stage *s, u8 *page, unsigned int first, unsigned int nr)
{
	const u64 present = count_present(s, first, nr);
	unsigned int i;

	if (present && present < nr) {
		find_present(s, page, first, nr / 2);
		find_present(s, page, first + nr / 2, nr - nr / 2);
		return;
	}
	for (i = first; present && i < first + nr; i++)
		page[i] |= IS_PRESENT;
}

/* How much of the file the host has mapped, in any place. */
static u64 count_mapped(void)
{
	char *text = read_all("/proc/self/maps"), *line, *rest = text;
	unsigned long start, end;
	u64 sum = 0;

	while ((line = strsep(&rest, "\n")))
		if (strstr(line, "kvm-gmem") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			sum += end - start;
	free(text);
	return sum;
}

static void snapshot_take(struct __test_metadata *_metadata, struct stage *s, struct snapshot *snap)
{
	u64 size, attributes;
	unsigned int i, n;

	for (i = 0; i < s->nr; i += n) {
		size = offset_of(s->nr - i);
		ASSERT_WORKS(gmem_attributes(s->fd, offset_of(i), &size, &attributes));
		n = size / page_size;
		memset(snap->page + i, attributes ? IS_PRIVATE : 0, n);
	}
	find_present(s, snap->page, 0, s->nr);
	gmem_fdinfo_read(s->fd, &snap->info);
	free(snap->rmp);
	snap->rmp = read_all(RMP "dump");
	for (i = 0; i < NR_POLICIES; i++)
		if (get_mempolicy(&snap->policy[i], NULL, 0,
				  s->mem + offset_of(i * (s->nr / NR_POLICIES)), MPOL_F_ADDR))
			snap->policy[i] = -errno;
	snap->mapped = count_mapped();
	snap->log = get_log(s) ? errno : 0;
	snap->fds = gmem_count_fds();
}

static u64 number_in(const struct snapshot *snap, const char *key)
{
	u64 val = -1;

	gmem_fdinfo(&snap->info, key, &val);
	return val;
}

/* The number of pages that are all of @what, and the difference from others to them. */
static unsigned int count_pages(struct stage *s, const struct snapshot *snap, u8 what)
{
	unsigned int i, nr = 0;

	for (i = 0; i < s->nr; i++)
		nr += (snap->page[i] & what) == what;
	return nr;
}

/* Where a part may be left: around the range, as blocks come as a whole. */
static bool may_be_new(struct stage *s, unsigned int page)
{
	return page >= s->first / s->block * s->block &&
	       page / s->block <= (s->first + s->nr_pages - 1) / s->block;
}

/* What the operation left is what was there, or with parts of what is to be. */
static void expect_unchanged(struct __test_metadata *_metadata, struct stage *s, bool part)
{
	const struct snapshot *was = &s->before, *now = &s->now;
	unsigned int i, bad = 0, first_bad = 0;

	for (i = 0; i < s->nr; i++) {
		if (now->page[i] == was->page[i] ||
		    (part && may_be_new(s, i) && now->page[i] == (was->page[i] | IS_PRESENT)))
			continue;
		if (!bad++)
			first_bad = i;
	}
	EXPECT_EQ(0, bad) TH_LOG("page %u was %u, is %u (private 1, present 2)", first_bad,
				 was->page[first_bad], now->page[first_bad]);

	if (!part) {
		EXPECT_STREQ(was->info.text, now->info.text);
		EXPECT_STREQ(was->rmp, now->rmp);
	} else {
		EXPECT_EQ(number_in(was, "gmem-blocks-broken"),
			  number_in(now, "gmem-blocks-broken"));
		EXPECT_LE(number_in(was, "gmem-owned"), number_in(now, "gmem-owned"));
	}
	EXPECT_EQ(0, memcmp(was->policy, now->policy, sizeof(was->policy)));
	EXPECT_EQ(was->mapped, now->mapped);
	EXPECT_EQ(was->log, now->log);
	EXPECT_EQ(was->fds, now->fds);
}

/* What is true at all times. */
static void expect_sane(struct __test_metadata *_metadata, struct stage *s)
{
	const struct totals now = totals_now();

	EXPECT_EQ(s->start.violations, now.violations);
	EXPECT_EQ(s->start.leaked + s->leaked, now.leaked);
	EXPECT_EQ(0, gmem_rmp_verify());
	EXPECT_EQ(s->fd < 0 ? 0 : number_in(&s->now, "gmem-owned"), now.owned - s->start.owned);
}

static u64 content_of(struct stage *s, unsigned int page)
{
	return s->filled[page] ? TOKEN + page : 0;
}

/* Where the host is, and how much was not as it should be.  Static, for SIGBUS. */
static unsigned int host_at, host_bad;

static void host_walks(struct stage *s)
{
	for (host_at = 0, host_bad = 0; host_at < s->nr; host_at += s->grain)
		if (s->now.page[host_at] == IS_PRESENT)
			host_bad += READ_ONCE(*word_at(s, host_at)) != content_of(s, host_at);
}

/* The host finds its pages; not those that are private, of which it tries some. */
static void host_looks(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i;
	int code;

	code = gmem_sigbus(host_walks(s));
	EXPECT_EQ(0, code) TH_LOG("page %u", host_at);
	EXPECT_EQ(0, host_bad);

	for (i = 0; i < s->nr; i++) {
		if (!(s->now.page[i] & IS_PRIVATE) || (i && s->now.page[i - 1] & IS_PRIVATE))
			continue;
		code = gmem_touch_read(word_at(s, i));
		EXPECT_EQ(BUS_ADRERR, code) TH_LOG("page %u", i);
	}
}

/* The guest finds all that is there, by runs of pages that are alike. */
static void guest_looks(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int first = 0, i, nr;
	u64 bad;

	for (; first < s->nr; first = i) {
		i = first + s->grain;
		if (!(s->now.page[first] & IS_PRESENT))
			continue;
		while (i < s->nr && s->now.page[i] & IS_PRESENT && s->filled[i] == s->filled[first])
			i += s->grain;
		nr = (i - first) / s->grain;
		ASSERT_EQ(0, gmem_guest_check(s->vcpu, s->gpa + offset_of(first), nr,
					      offset_of(s->grain), content_of(s, first),
					      s->filled[first] ? s->grain : 0, &bad));
		EXPECT_EQ(0, bad) TH_LOG("of %u pages from %u", nr, first);
	}
}

static void expect_content(struct __test_metadata *_metadata, struct stage *s)
{
	if (s->mem)
		host_looks(_metadata, s);
	if (s->gpa)
		guest_looks(_metadata, s);
}

/*
 * Scenes
 */
static void open_file(struct stage *s)
{
	s->fd = vm_create_guest_memfd(s->vm, offset_of(s->nr), s->flags);
	s->mem = kvm_mmap(offset_of(s->nr), PROT_READ | PROT_WRITE, MAP_SHARED, s->fd);
}

static void close_mem(struct stage *s)
{
	if (s->mem)
		kvm_munmap(s->mem, offset_of(s->nr));
	s->mem = NULL;
}

static void open_vm(struct stage *s)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = s->type };
	char path[80];
	u64 val;

	s->vm = __vm_create_shape_with_one_vcpu(shape, &s->vcpu, s->nr, gmem_guest_code);
#ifdef __x86_64__
	virt_map_level(s->vm, GPA, GPA, GPA_SIZE, PG_LEVEL_1G);
#else
	virt_map(s->vm, GPA, GPA, s->nr * page_size / s->vm->page_size);
	virt_map(s->vm, OTHER_GPA, OTHER_GPA, s->nr * page_size / s->vm->page_size);
#endif
	vm_enable_cap(s->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	/* The first run needs more, and on arm64 a VM that does not get it is dead. */
	TEST_ASSERT(!gmem_guest_read(s->vcpu, (u64)&gmem_guest_cmd, &val),
		    "the guest does not run");
	snprintf(path, sizeof(path), DEBUGFS "kvm/%d-%d/gmem-populate", getpid(), s->vm->fd);
	s->populate = open(path, O_WRONLY);
}

static void close_vm(struct stage *s)
{
	if (s->populate >= 0)
		close(s->populate);
	s->populate = -1;
	if (s->vm)
		kvm_vm_free(s->vm);
	s->vm = NULL;
	s->gpa = 0;
}

static void stage_create(struct __test_metadata *_metadata, struct stage *s,
			 unsigned int type, u64 block, unsigned int units)
{
	page_size = getpagesize();
	s->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	if (s->fail_nth < 0)
		SKIP(return, "needs CONFIG_FAULT_INJECTION and root");
	points_init();
	gmem_catch_sigbus();

	s->type = type;
	s->rmp = type != VM_TYPE_DEFAULT && gmem_has_rmp();
	s->block = block / page_size;
	s->unit = max(s->block, 8u);
	s->grain = units > 1 ? 1 : 512;
	/* Room for units, and for more than a leaf of KVM's table of states. */
	s->nr = max(units * s->unit, 2048u) + NR_TAIL;
	s->flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	if (s->block > 1)
		s->flags |= (u64)__builtin_ctzll(block) << GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	s->filled = calloc(s->nr, sizeof(*s->filled));
	s->dirty = calloc(s->nr / 64 + 1, sizeof(*s->dirty));
	s->before.page = malloc(s->nr);
	s->now.page = malloc(s->nr);
	s->source = kvm_mmap(offset_of(4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1);
	s->new_fd = -1;

	s->start = totals_now();
	open_vm(s);
	s->modules_with_vm = module_refs();
	open_file(s);
}

/* Nothing is left that was not there in the beginning, but for pages that are lost. */
static void stage_destroy(struct __test_metadata *_metadata, struct stage *s)
{
	struct totals now;

	close_mem(s);
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	close_vm(s);
	expect_sane(_metadata, s);
	now = totals_now();
	EXPECT_EQ(s->start.modules, now.modules);
	EXPECT_EQ(s->start.fds, now.fds);
	close(s->fail_nth);
}

/* Nothing but holes, all of them shared; in a memslot. */
static void setup_empty(struct __test_metadata *_metadata, struct stage *s)
{
	if (!s->vm)
		open_vm(s);
	if (s->fd < 0)
		open_file(s);
	if (s->gpa)
		ASSERT_WORKS(unbind(s));
	ASSERT_WORKS(punch(s, 0, s->nr));
	ASSERT_WORKS(convert(s, 0, s->nr, GMEM_SHARED));
	memset(s->filled, 0, s->nr * sizeof(*s->filled));
	ASSERT_WORKS(bind_at(s, GPA));
}

/*
 * The first unit is there, of the second some pages, and then nothing up to the end,
 * where there are two pages again.
 */
static void setup_shared(struct __test_metadata *_metadata, struct stage *s)
{
	const unsigned int unit = s->unit;
	unsigned int i;

	setup_empty(_metadata, s);
	ASSERT_WORKS(allocate(s, 0, unit));
	if (s->grain == 1) {
		ASSERT_WORKS(allocate(s, unit, unit));
		ASSERT_WORKS(punch(s, unit + 3, 2));
		if (unit > 9)
			ASSERT_WORKS(punch(s, unit + 7, unit - 9));
	}
	ASSERT_WORKS(allocate(s, s->nr - NR_TAIL, 2));

	memset(s->now.page, 0, s->nr);
	find_present(s, s->now.page, 0, s->nr);
	for (i = 0; i < s->nr; i += s->grain) {
		s->filled[i] = s->now.page[i];
		if (s->filled[i])
			WRITE_ONCE(*word_at(s, i), TOKEN + i);
	}
}

/* A page that is there, in no whole block, and some that are not. */
static void convert_some(struct __test_metadata *_metadata, struct stage *s, u64 attributes)
{
	ASSERT_WORKS(convert(s, s->unit + 1, 1, attributes));
	ASSERT_WORKS(convert(s, s->nr - NR_TAIL / 2, 4, attributes));
}

/* The same, and some is private already. */
static void setup_mostly_shared(struct __test_metadata *_metadata, struct stage *s)
{
	setup_shared(_metadata, s);
	convert_some(_metadata, s, GMEM_PRIVATE);
}

/* The other way round. */
static void setup_mostly_private(struct __test_metadata *_metadata, struct stage *s)
{
	setup_shared(_metadata, s);
	ASSERT_WORKS(convert(s, 0, s->nr, GMEM_PRIVATE));
	convert_some(_metadata, s, GMEM_SHARED);
}

/* Pages that never were in a memslot since they became private. */
static void setup_unbound(struct __test_metadata *_metadata, struct stage *s)
{
	setup_shared(_metadata, s);
	ASSERT_WORKS(unbind(s));
	ASSERT_WORKS(convert(s, 0, s->nr, GMEM_PRIVATE));
	convert_some(_metadata, s, GMEM_SHARED);
}

/* And those that were in one. */
static void setup_unbound_owned(struct __test_metadata *_metadata, struct stage *s)
{
	setup_mostly_private(_metadata, s);
	ASSERT_WORKS(unbind(s));
}

static void setup_logged(struct __test_metadata *_metadata, struct stage *s)
{
	setup_mostly_private(_metadata, s);
	ASSERT_WORKS(set_slot(s, GPA, KVM_MEM_LOG_DIRTY_PAGES));
}

/* Only the descriptor keeps the memory. */
static void setup_unmapped(struct __test_metadata *_metadata, struct stage *s)
{
	setup_mostly_private(_metadata, s);
	close_mem(s);
}

/* And only the memory keeps the VM. */
static void setup_without_vm(struct __test_metadata *_metadata, struct stage *s)
{
	setup_unmapped(_metadata, s);
	close_vm(s);
}

/*
 * The procedure
 */
static void run_op(struct __test_metadata *_metadata, struct stage *s,
		   const struct op *op, const char *hook, int nth, bool *failed)
{
	const struct totals was = totals_now();
	struct totals now;
	u64 lost;
	int ret;

	s->err = 0;
	s->nr_pages = 0;
	if (hook)
		fail_hook(hook, nth);
	else
		fail_begin(_metadata, s, nth);
	ret = op->run(s);
	if (ret)
		s->err = errno;
	if (hook)
		fail_hook(hook, 0);
	else
		*failed = fail_end(_metadata, s);

	now = totals_now();
	s->injected = now.injected > was.injected;
	if (hook)
		*failed = s->injected;
	lost = now.leaked - was.leaked;
	EXPECT_LE(lost, op->loses ? now.injected - was.injected : 0);
	s->leaked += lost;
}

static bool is_documented(const struct op *op, int err)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(op->errnos); i++)
		if (err && op->errnos[i] == err)
			return true;
	return false;
}

/*
 * Which point fails next.  With giant blocks there are thousands, and each run takes
 * seconds: the first, one in the middle, of a hook if there is one, and none.
 */
static int next_point(struct stage *s, const struct op *op, int nth, const char **hook)
{
	*hook = NULL;
	if (s->grain == 1)
		return nth + 1;
	if (!nth)
		return 1;
	if (nth > 1)
		return INT_MAX;
	*hook = s->rmp ? op->hook : NULL;
	return *hook ? 300 : 1000;
}

/* Run with each point failing in turn.  The number of failures. */
static int sweep(struct __test_metadata *_metadata, struct stage *s, const struct op *op)
{
	const u64 injected = gmem_rmp_counter("injected");
	int nth = 0, failures = 0;
	bool failed, worked;
	const char *hook;

	op->setup(_metadata, s);
	if (!op->gone)
		snapshot_take(_metadata, s, &s->before);

	do {
		nth = next_point(s, op, nth, &hook);
		ASSERT_TRUE(nth < MAX_POINTS || nth == INT_MAX);
		run_op(_metadata, s, op, hook, nth, &failed);
		worked = s->err == op->result;

		if (!worked) {
			failures++;
			EXPECT_TRUE(failed);
			/* What a hook says is passed on. */
			EXPECT_TRUE(is_documented(op, s->err) || (op->hook && s->err == EIO))
				TH_LOG("%s", strerror(s->err));
			if (hook)
				EXPECT_EQ(EIO, s->err);
		}
		if (!op->gone) {
			snapshot_take(_metadata, s, &s->now);
			if (s->err)
				expect_unchanged(_metadata, s, op->part && !worked);
		}
		expect_sane(_metadata, s);
		if (!worked && op->failed)
			op->failed(_metadata, s);
		if (worked && op->done)
			op->done(_metadata, s);
		if (!op->gone)
			expect_content(_metadata, s);
		ASSERT_EQ(KSFT_PASS, _metadata->exit_code)
			TH_LOG("when point %d %s: %s", nth, failed ? "failed" : "was not reached",
			       s->err ? strerror(s->err) : "worked");
		if (worked && op->undo)
			op->undo(_metadata, s);
		/* Begin anew if it made a difference. */
		if (failed && ((!s->err && !op->undo) || (op->part && !worked))) {
			op->setup(_metadata, s);
			if (!op->gone)
				snapshot_take(_metadata, s, &s->before);
		}
	} while (failed);

	/* There was something to it. */
	if (op->errnos[0] && !op->maybe)
		EXPECT_LE(1, failures);
	if (op->hook && s->rmp)
		EXPECT_LT(injected, gmem_rmp_counter("injected"));
	if (s->grain == 1)
		TH_LOG("%d points, %d failures", nth - 1, failures);
	return failures;
}

/*
 * The operations
 */
FIXTURE(fail)
{
	struct stage s;
};

FIXTURE_VARIANT(fail)
{
	unsigned int type;
	bool blocks;
};

FIXTURE_VARIANT_ADD(fail, pages)
{
	.type = VM_TYPE_DEFAULT,
};

FIXTURE_VARIANT_ADD(fail, blocks)
{
	.type = VM_TYPE_DEFAULT,
	.blocks = true,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(fail, protected_pages)
{
	.type = KVM_X86_SW_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(fail, protected_blocks)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.blocks = true,
};
#endif

static bool has_type(unsigned int type)
{
	return type == VM_TYPE_DEFAULT || kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type);
}

/* Sizes of blocks, but for that of a page. */
static u64 block_sizes(void)
{
	return (u32)kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES) & ~(u32)getpagesize();
}

FIXTURE_SETUP(fail)
{
	const u64 sizes = block_sizes();

	if (!has_type(variant->type))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
	if (variant->blocks && (!sizes || (sizes & -sizes) > SZ_32M))
		SKIP(return, "no blocks, or large ones only");
	stage_create(_metadata, &self->s, variant->type,
		     variant->blocks ? sizes & -sizes : getpagesize(), 4);
}

FIXTURE_TEARDOWN(fail)
{
	if (self->s.nr)
		stage_destroy(_metadata, &self->s);
}

/* What an operation is to have reached: each page of a range is there. */
static void expect_present(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i, absent = 0;

	for (i = s->first; i < s->first + s->nr_pages; i++)
		absent += !(s->now.page[i] & IS_PRESENT);
	EXPECT_EQ(0, absent);
}

/* What is private, there and in a memslot is the guest's. */
static void expect_all_owned(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(s->rmp ? count_pages(s, &s->now, IS_PRIVATE | IS_PRESENT) : 0,
		  number_in(&s->now, "gmem-owned"));
}

/* KVM_CREATE_GUEST_MEMFD */
static int run_create(struct stage *s)
{
	s->new_fd = __vm_create_guest_memfd(s->vm, offset_of(s->nr), s->flags);
	return s->new_fd < 0 ? -1 : 0;
}

static void done_create(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(s->before.fds + 1, s->now.fds);
	EXPECT_EQ(0, gmem_fdinfo_val(s->new_fd, "gmem-present"));
}

static void undo_create(struct __test_metadata *_metadata, struct stage *s)
{
	close(s->new_fd);
}

static const struct op op_create = {
	.setup = setup_mostly_private,
	.run = run_create,
	.errnos = { ENOMEM, EFAULT },
	.done = done_create,
	.undo = undo_create,
};

TEST_F_TIMEOUT(fail, create, LONG)
{
	sweep(_metadata, &self->s, &op_create);
}

/* mmap() */
static int run_mmap(struct stage *s)
{
	s->new_mem = mmap(NULL, offset_of(s->nr), PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	return s->new_mem == MAP_FAILED ? -1 : 0;
}

static void done_mmap(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(s->before.mapped + offset_of(s->nr), s->now.mapped);
}

static void undo_mmap(struct __test_metadata *_metadata, struct stage *s)
{
	kvm_munmap(s->new_mem, offset_of(s->nr));
}

static const struct op op_mmap = {
	.setup = setup_mostly_private,
	.run = run_mmap,
	.errnos = { ENOMEM },
	.done = done_mmap,
	.undo = undo_mmap,
};

TEST_F_TIMEOUT(fail, mmap, LONG)
{
	sweep(_metadata, &self->s, &op_mmap);
}

/* mbind(), of a quarter of the file. */
static int set_policy(struct stage *s, unsigned int first, unsigned int nr, int mode)
{
	unsigned long nodes = 1;

	return mbind(s->mem + offset_of(first), offset_of(nr), mode,
		     mode == MPOL_DEFAULT ? NULL : &nodes, mode == MPOL_DEFAULT ? 0 : 64, 0);
}

static int run_mbind(struct stage *s)
{
	return set_policy(s, s->nr / 4, s->nr / 4, MPOL_BIND);
}

static void done_mbind(struct __test_metadata *_metadata, struct stage *s)
{
	int i;

	for (i = 0; i < NR_POLICIES; i++) {
		const unsigned int page = i * (s->nr / NR_POLICIES);
		const bool in = page >= s->nr / 4 && page < s->nr / 4 * 2;

		EXPECT_EQ(in ? MPOL_BIND : s->before.policy[i], s->now.policy[i])
			TH_LOG("policy of page %u", page);
	}
}

static void undo_mbind(struct __test_metadata *_metadata, struct stage *s)
{
	ASSERT_WORKS(set_policy(s, 0, s->nr, MPOL_DEFAULT));
}

static const struct op op_mbind = {
	.setup = setup_mostly_private,
	.run = run_mbind,
	.errnos = { ENOMEM, EFAULT },
	.done = done_mbind,
	.undo = undo_mbind,
};

TEST_F_TIMEOUT(fail, mbind, LONG)
{
	if (!is_numa_available())
		SKIP(return, "needs CONFIG_NUMA");
	sweep(_metadata, &self->s, &op_mbind);
}

/* KVM_GET_MEMORY_ATTRIBUTES2 */
static int run_get(struct stage *s)
{
	u64 size = offset_of(s->unit), attributes = 0;
	int ret = gmem_attributes(s->fd, offset_of(s->unit + 1), &size, &attributes);

	s->dirty[0] = size;
	s->dirty[1] = attributes;
	return ret;
}

static void done_get(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(page_size, s->dirty[0]);
	EXPECT_EQ(0, s->dirty[1]);
	EXPECT_EQ(0, memcmp(s->before.page, s->now.page, s->nr));
}

static const struct op op_get = {
	.setup = setup_mostly_private,
	.run = run_get,
	.errnos = { EFAULT },
	.done = done_get,
	.maybe = true,
};

TEST_F_TIMEOUT(fail, get, LONG)
{
	sweep(_metadata, &self->s, &op_get);
}

/* KVM_SET_USER_MEMORY_REGION2 */
static int run_bind(struct stage *s)
{
	return bind_at(s, GPA);
}

static const struct op op_bind = {
	.setup = setup_unbound,
	.run = run_bind,
	.errnos = { ENOMEM, EFAULT },
	.done = expect_all_owned,
	.hook = "make_private",
};

TEST_F_TIMEOUT(fail, bind, LONG)
{
	sweep(_metadata, &self->s, &op_bind);
}

/* At other gfns: pages that are owned move. */
static int run_rebind(struct stage *s)
{
	return bind_at(s, OTHER_GPA);
}

static const struct op op_rebind = {
	.setup = setup_unbound_owned,
	.run = run_rebind,
	.errnos = { ENOMEM, EFAULT },
	.done = expect_all_owned,
	.hook = "make_shared",
};

TEST_F_TIMEOUT(fail, rebind, LONG)
{
	sweep(_metadata, &self->s, &op_rebind);
}

/* A memslot is immutable, whatever fails. */
static int run_move(struct stage *s)
{
	return set_slot(s, OTHER_GPA, 0);
}

static const struct op op_move = {
	.setup = setup_mostly_private,
	.run = run_move,
	.errnos = { EFAULT },
	.result = EINVAL,
	.maybe = true,
};

TEST_F_TIMEOUT(fail, move, LONG)
{
	sweep(_metadata, &self->s, &op_move);
}

static void done_unbind(struct __test_metadata *_metadata, struct stage *s)
{
	/* Pages stay owned, and the memslot is really gone. */
	EXPECT_STREQ(s->before.rmp, s->now.rmp);
	EXPECT_FAILS(EINVAL, unbind(s));
}

static const struct op op_delete = {
	.setup = setup_mostly_private,
	.run = unbind,
	.errnos = { ENOMEM, EFAULT },
	.done = done_unbind,
};

TEST_F_TIMEOUT(fail, delete, LONG)
{
	sweep(_metadata, &self->s, &op_delete);
}

/* Dirty logging: on, off, look, clear.  KVM forgets nothing before it is told to. */
static int log_on(struct stage *s)
{
	return set_slot(s, GPA, KVM_MEM_LOG_DIRTY_PAGES);
}

static int log_off(struct stage *s)
{
	return set_slot(s, GPA, 0);
}

static void undo_log_on(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(ENOENT, s->before.log);
	EXPECT_EQ(0, s->now.log);
	ASSERT_WORKS(log_off(s));
}

static const struct op op_log_on = {
	.setup = setup_mostly_private,
	.run = log_on,
	.errnos = { ENOMEM, EFAULT },
	.undo = undo_log_on,
};

TEST_F_TIMEOUT(fail, log_on, LONG)
{
	sweep(_metadata, &self->s, &op_log_on);
}

static void undo_log_off(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(0, s->before.log);
	EXPECT_EQ(ENOENT, s->now.log);
	ASSERT_WORKS(log_on(s));
}

static const struct op op_log_off = {
	.setup = setup_logged,
	.run = log_off,
	.errnos = { ENOMEM, EFAULT },
	.undo = undo_log_off,
};

TEST_F_TIMEOUT(fail, log_off, LONG)
{
	sweep(_metadata, &self->s, &op_log_off);
}

/* The guest writes what was there to pages 0 and 2. */
static void setup_dirty(struct __test_metadata *_metadata, struct stage *s)
{
	setup_logged(_metadata, s);
	EXPECT_GUEST_WRITES(s->vcpu, s->gpa, content_of(s, 0));
	EXPECT_GUEST_WRITES(s->vcpu, s->gpa + offset_of(2), content_of(s, 2));
}

static void expect_dirty(struct __test_metadata *_metadata, struct stage *s)
{
	memset(s->dirty, 0, 8);
	ASSERT_WORKS(get_log(s));
	EXPECT_EQ(5, s->dirty[0] & 5);
}

static const struct op op_log_get = {
	.setup = setup_dirty,
	.run = get_log,
	.errnos = { EFAULT },
	.failed = expect_dirty,
	.done = expect_dirty,
	.maybe = true,
};

TEST_F_TIMEOUT(fail, log_get, LONG)
{
	sweep(_metadata, &self->s, &op_log_get);
}

static int run_log_clear(struct stage *s)
{
	struct kvm_clear_dirty_log args = {
		.slot = SLOT,
		.num_pages = s->nr,
		.dirty_bitmap = s->dirty,
	};

	memset(s->dirty, 0xff, s->nr / 8 + 1);
	return __vm_ioctl(s->vm, KVM_CLEAR_DIRTY_LOG, &args);
}

static void done_log_clear(struct __test_metadata *_metadata, struct stage *s)
{
	ASSERT_WORKS(get_log(s));
	EXPECT_EQ(0, s->dirty[0]);
}

static const struct op op_log_clear = {
	.setup = setup_dirty,
	.run = run_log_clear,
	.errnos = { EFAULT },
	.failed = expect_dirty,
	.done = done_log_clear,
	.maybe = true,
};

TEST_F_TIMEOUT(fail, log_clear, LONG)
{
	sweep(_metadata, &self->s, &op_log_clear);
}

/*
 * What brings pages: around the end of what is there, on into the hole and, if there are
 * blocks, into another one.
 */
static int run_allocate(struct stage *s)
{
	const bool all = s->grain > 1;

	s->first = all ? 0 : 2 * s->unit - 4;
	s->nr_pages = all ? s->nr : s->unit + s->unit / 2;
	return allocate(s, s->first, s->nr_pages);
}

static const struct op op_allocate_shared = {
	.setup = setup_mostly_shared,
	.run = run_allocate,
	.errnos = { ENOMEM },
	.done = expect_present,
	.part = true,
};

TEST_F_TIMEOUT(fail, allocate_shared, LONG)
{
	sweep(_metadata, &self->s, &op_allocate_shared);
}

static void done_allocate_private(struct __test_metadata *_metadata, struct stage *s)
{
	expect_present(_metadata, s);
	expect_all_owned(_metadata, s);
}

static const struct op op_allocate_private = {
	.setup = setup_mostly_private,
	.run = run_allocate,
	.errnos = { ENOMEM },
	.done = done_allocate_private,
	.part = true,
	.hook = "make_private",
};

TEST_F_TIMEOUT(fail, allocate_private, LONG)
{
	sweep(_metadata, &self->s, &op_allocate_private);
}

/* A few pages, the fewer if each may be a giant block. */
static void few_pages(struct stage *s)
{
	s->first = s->grain > 1 ? 4 : 2 * s->unit - 4;
	s->nr_pages = s->grain > 1 ? 1 : 8;
}

/* A user fault on behalf of a system call, which can tell what it failed with. */
static int run_user_fault(struct stage *s)
{
	few_pages(s);
	return madvise(s->mem + offset_of(s->first), offset_of(s->nr_pages), MADV_POPULATE_WRITE);
}

static const struct op op_user_fault = {
	.setup = setup_mostly_shared,
	.run = run_user_fault,
	.errnos = { ENOMEM },
	.done = expect_present,
	.part = true,
};

TEST_F_TIMEOUT(fail, user_fault, LONG)
{
	sweep(_metadata, &self->s, &op_user_fault);
}

/* And one that cannot: it happens again. */
static int run_touch(struct stage *s)
{
	unsigned int i;

	few_pages(s);
	for (i = s->first; i < s->first + s->nr_pages; i++) {
		if (gmem_touch_write((u8 *)word_at(s, i), 0)) {
			errno = EFAULT;
			return -1;
		}
	}
	return 0;
}

/* Some of what is written to had content. */
static void setup_touch(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i;

	setup_mostly_shared(_metadata, s);
	for (i = 2 * s->unit - 4; i < 2 * s->unit; i++) {
		if (s->filled[i])
			WRITE_ONCE(*word_at(s, i), 0);
		s->filled[i] = false;
	}
}

static const struct op op_touch = {
	.setup = setup_touch,
	.run = run_touch,
	.done = expect_present,
};

TEST_F_TIMEOUT(fail, touch, LONG)
{
	sweep(_metadata, &self->s, &op_touch);
}

/* The guest writes to a hole. */
static int run_guest_fault(struct stage *s)
{
	s->first = s->grain > 1 ? 0 : 2 * s->unit + 5;
	s->nr_pages = 1;
	gmem_guest_cmd = (struct gmem_guest_cmd) {
		GMEM_GUEST_WRITE, s->gpa + offset_of(s->first), TOKEN + s->first,
	};
	sync_global_to_guest(s->vm, gmem_guest_cmd);
	return __vcpu_run(s->vcpu);
}

static void expect_written(struct __test_metadata *_metadata, struct stage *s)
{
	s->filled[s->first] = true;
	EXPECT_GUEST_READS(TOKEN + s->first, s->vcpu, s->gpa + offset_of(s->first));
}

static void done_guest_fault(struct __test_metadata *_metadata, struct stage *s)
{
	ASSERT_EQ(UCALL_SYNC, get_ucall(s->vcpu, NULL));
	expect_present(_metadata, s);
	expect_written(_metadata, s);
}

/* It gets through when it is tried again. */
static void failed_guest_fault(struct __test_metadata *_metadata, struct stage *s)
{
	ASSERT_EQ(0, gmem_guest_run(s->vcpu));
	expect_written(_metadata, s);
}

static const struct op op_guest_fault_shared = {
	.setup = setup_mostly_shared,
	.run = run_guest_fault,
	.errnos = { ENOMEM, EFAULT },
	.failed = failed_guest_fault,
	.done = done_guest_fault,
	.maybe = true,
	.part = true,
};

TEST_F_TIMEOUT(fail, guest_fault_shared, LONG)
{
	sweep(_metadata, &self->s, &op_guest_fault_shared);
}

static const struct op op_guest_fault_private = {
	.setup = setup_mostly_private,
	.run = run_guest_fault,
	.errnos = { ENOMEM, EFAULT },
	.failed = failed_guest_fault,
	.done = done_guest_fault,
	.maybe = true,
	.part = true,
	.hook = "make_private",
};

TEST_F_TIMEOUT(fail, guest_fault_private, LONG)
{
	sweep(_metadata, &self->s, &op_guest_fault_private);
}

/* KVM_PRE_FAULT_MEMORY, which says how far it got instead of why it did not go on. */
static int run_pre_fault(struct stage *s)
{
	struct kvm_pre_fault_memory range = { };

	few_pages(s);
	range.gpa = s->gpa + offset_of(s->first);
	range.size = offset_of(s->nr_pages);
	while (range.size)
		if (__vcpu_ioctl(s->vcpu, KVM_PRE_FAULT_MEMORY, &range))
			return -1;
	return 0;
}

static const struct op op_pre_fault = {
	.setup = setup_mostly_private,
	.run = run_pre_fault,
	.errnos = { ENOMEM, EFAULT },
	.done = expect_present,
	.part = true,
	.hook = "make_private",
};

TEST_F_TIMEOUT(fail, pre_fault, LONG)
{
	if (!vm_check_cap(self->s.vm, KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");
	sweep(_metadata, &self->s, &op_pre_fault);
}

/* Populate three absent pages from a source. */
#define NR_POPULATED	3

static int run_populate(struct stage *s)
{
	char text[80];
	int len;

	s->first = 2 * s->unit;
	s->nr_pages = NR_POPULATED;
	len = snprintf(text, sizeof(text), "%#llx %#lx %u",
		       (unsigned long long)(s->gpa / page_size + s->first),
		       (unsigned long)s->source, NR_POPULATED);
	return write(s->populate, text, len) == len ? 0 : -1;
}

static void setup_populate(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i;

	setup_mostly_private(_metadata, s);
	for (i = 0; i < NR_POPULATED; i++)
		*(u64 *)(s->source + offset_of(i)) = TOKEN + 2 * s->unit + i;
}

static void done_populate(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i;

	for (i = 0; i < NR_POPULATED; i++)
		s->filled[s->first + i] = true;
	expect_present(_metadata, s);
	/* A block may have become the guest's as a whole. */
	EXPECT_LE(number_in(&s->before, "gmem-owned") + (s->rmp ? NR_POPULATED : 0),
		  number_in(&s->now, "gmem-owned"));
}

/*
 * What is done is owned, and there with its content: some pages with EIO, unless a hook
 * says so, and none otherwise.  Next comes a page of which nobody says what is in it, and
 * then nothing.
 */
static void failed_populate(struct __test_metadata *_metadata, struct stage *s)
{
	const u64 owned = number_in(&s->now, "gmem-owned") - number_in(&s->before, "gmem-owned");
	u64 val, with_content = 0;
	unsigned int i;

	for (i = 0; i < NR_POPULATED; i++) {
		EXPECT_EQ(0, gmem_guest_read(s->vcpu, s->gpa + offset_of(s->first + i), &val));
		s->filled[s->first + i] = val;
		EXPECT_EQ(content_of(s, s->first + i), val);
		EXPECT_EQ(with_content, val ? i : with_content);
		with_content += !!val;
	}
	if (!s->injected)
		EXPECT_TRUE(s->err == EIO ? with_content >= 1 : with_content <= 1);
	if (!s->rmp)
		return;
	if (!s->injected)
		EXPECT_EQ(s->err == EIO, owned > 0);
	EXPECT_TRUE(with_content <= owned + 1 && (with_content >= owned || s->block > 1))
		TH_LOG("%llu pages owned, %llu with content", (unsigned long long)owned,
		       (unsigned long long)with_content);
}

static const struct op op_populate = {
	.setup = setup_populate,
	.run = run_populate,
	.errnos = { ENOMEM, EFAULT, EIO },
	.failed = failed_populate,
	.done = done_populate,
	.part = true,
	.maybe = true,
	.hook = "make_private",
};

/* Ordinary VMs are not populated: that is all there is to it. */
static const struct op op_populate_ordinary = {
	.setup = setup_populate,
	.run = run_populate,
	.errnos = { EFAULT },
	.result = EINVAL,
	.maybe = true,
};

TEST_F_TIMEOUT(fail, populate, LONG)
{
	struct stage *s = &self->s;

	if (s->populate < 0)
		SKIP(return, "needs CONFIG_KVM_GUEST_MEMFD_DEBUG, debugfs and root");
	if (s->type == VM_TYPE_DEFAULT)
		sweep(_metadata, s, &op_populate_ordinary);
	else	/* What a block fails with, a page may work without. */
		EXPECT_LE(s->block == 1, sweep(_metadata, s, &op_populate));
}

/*
 * KVM_SET_MEMORY_ATTRIBUTES2, of a range that ends where all was alike: to say that it is
 * not takes memory.
 */
static unsigned int convert_end(struct stage *s)
{
	return s->nr - NR_TAIL - 480;
}

static int run_to_private(struct stage *s)
{
	return convert(s, 0, convert_end(s), GMEM_PRIVATE);
}

static int run_to_shared(struct stage *s)
{
	return convert(s, 0, convert_end(s), GMEM_SHARED);
}

/* Some errors come with an offset, of where it was. */
static void failed_convert(struct __test_metadata *_metadata, struct stage *s)
{
	if (s->err != ENOMEM && s->err != EIO) {
		EXPECT_EQ(GMEM_NO_OFFSET, s->error_offset);
		return;
	}
	EXPECT_GT(offset_of(convert_end(s)), s->error_offset);
	EXPECT_EQ(0, s->error_offset % page_size);
}

/* All of a range is @state, and nothing else has changed. */
static void expect_converted(struct __test_metadata *_metadata, struct stage *s,
			     unsigned int first, unsigned int nr, u8 state)
{
	unsigned int i, bad = 0;

	for (i = 0; i < s->nr; i++)
		bad += s->now.page[i] != (i - first >= nr ? s->before.page[i] :
					  ((s->before.page[i] & IS_PRESENT) | state));
	EXPECT_EQ(0, bad);
	EXPECT_EQ(count_pages(s, &s->now, IS_PRIVATE), number_in(&s->now, "gmem-private"));
}

static void done_to_private(struct __test_metadata *_metadata, struct stage *s)
{
	expect_converted(_metadata, s, 0, convert_end(s), IS_PRIVATE);
	expect_all_owned(_metadata, s);
}

static void done_to_shared(struct __test_metadata *_metadata, struct stage *s)
{
	expect_converted(_metadata, s, 0, convert_end(s), 0);
	expect_all_owned(_metadata, s);
}

static void undo_convert(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int first = 0, i;

	for (; first < s->nr; first = i) {
		const u8 was = s->before.page[first] & IS_PRIVATE;

		for (i = first; i < s->nr && (s->before.page[i] & IS_PRIVATE) == was; i++)
			;
		ASSERT_WORKS(convert(s, first, i - first, was ? GMEM_PRIVATE : GMEM_SHARED));
	}
}

static const struct op op_to_private = {
	.setup = setup_mostly_shared,
	.run = run_to_private,
	.errnos = { ENOMEM, EFAULT },
	.failed = failed_convert,
	.done = done_to_private,
	.undo = undo_convert,
	.hook = "make_private",
};

TEST_F_TIMEOUT(fail, to_private, LONG)
{
	sweep(_metadata, &self->s, &op_to_private);
}

static const struct op op_to_shared = {
	.setup = setup_mostly_private,
	.run = run_to_shared,
	.errnos = { ENOMEM, EFAULT },
	.failed = failed_convert,
	.done = done_to_shared,
	.undo = undo_convert,
	.hook = "make_shared",
};

TEST_F_TIMEOUT(fail, to_shared, LONG)
{
	sweep(_metadata, &self->s, &op_to_shared);
}

/* A page, for which a bitmap is needed; with one there; more than a block; back. */
static const struct conversion {
	unsigned int first, nr;		/* 0 stands for all of the file */
	u64 attributes;
} conversions[] = {
	{ 3, 1, GMEM_PRIVATE },
	{ 5, 2, GMEM_PRIVATE },
	{ 700, 600, GMEM_PRIVATE },
	{ 1, 1000, GMEM_SHARED },
	{ 0, 0, GMEM_PRIVATE },
	{ 0, 0, GMEM_SHARED },
};

static int convert_step(struct stage *s, unsigned int step)
{
	const struct conversion *c = &conversions[step];

	return convert(s, c->first, c->nr ?: s->nr, c->attributes);
}

static int run_convert_step(struct stage *s)
{
	return convert_step(s, s->step);
}

/* As the steps before this one have left it: few pages, and no memslot. */
static void setup_convert_step(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i;

	setup_empty(_metadata, s);
	ASSERT_WORKS(unbind(s));
	for (i = 0; i < 8; i++) {
		s->filled[i] = true;
		WRITE_ONCE(*word_at(s, i), TOKEN + i);
	}
	for (i = 0; i < s->step; i++)
		ASSERT_WORKS(convert_step(s, i));
}

/* It is the state that there is no memory for, which is about all of the range. */
static void failed_convert_step(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(s->err == ENOMEM ? offset_of(conversions[s->step].first) : GMEM_NO_OFFSET,
		  s->error_offset);
}

static void done_convert_step(struct __test_metadata *_metadata, struct stage *s)
{
	const struct conversion *c = &conversions[s->step];

	expect_converted(_metadata, s, c->first, c->nr ?: s->nr, c->attributes ? IS_PRIVATE : 0);
}

static const struct op op_convert_step = {
	.setup = setup_convert_step,
	.run = run_convert_step,
	.errnos = { ENOMEM, EFAULT },
	.failed = failed_convert_step,
	.done = done_convert_step,
	.undo = undo_convert,
	.maybe = true,
};

TEST_F_TIMEOUT(fail, conversions, LONG)
{
	int failures = 0;

	for (self->s.step = 0; self->s.step < ARRAY_SIZE(conversions); self->s.step++)
		failures += sweep(_metadata, &self->s, &op_convert_step);
	EXPECT_LE(3, failures);
}

/* fallocate(PUNCH_HOLE) cannot fail: hooks that do cost pages. */
static int run_punch(struct stage *s)
{
	s->first = 1;
	s->nr_pages = s->unit + 5;
	return punch(s, s->first, s->nr_pages);
}

static void done_punch(struct __test_metadata *_metadata, struct stage *s)
{
	unsigned int i, bad = 0;
	bool in;

	for (i = 0; i < s->nr; i++) {
		in = i - s->first < s->nr_pages;
		bad += s->now.page[i] != (s->before.page[i] & (in ? IS_PRIVATE : 0xff));
		s->filled[i] &= !in;
	}
	EXPECT_EQ(0, bad);
	expect_all_owned(_metadata, s);
}

static const struct op op_punch = {
	.setup = setup_mostly_private,
	.run = run_punch,
	.done = done_punch,
	.hook = "reclaim",
	.loses = true,
};

TEST_F_TIMEOUT(fail, punch, LONG)
{
	sweep(_metadata, &self->s, &op_punch);
}

/* close(), of the last descriptor of the memory; and of all that there is of the VM. */
static int run_release(struct stage *s)
{
	const int fd = s->fd;

	s->fd = -1;
	return close(fd);
}

static void done_release(struct __test_metadata *_metadata, struct stage *s)
{
	EXPECT_EQ(s->vm ? s->modules_with_vm : s->start.modules, module_refs());
}

static const struct op op_release = {
	.setup = setup_unmapped,
	.run = run_release,
	.done = done_release,
	.hook = "reclaim",
	.loses = true,
	.gone = true,
};

TEST_F_TIMEOUT(fail, release, LONG)
{
	sweep(_metadata, &self->s, &op_release);
}

static const struct op op_release_with_vm = {
	.setup = setup_without_vm,
	.run = run_release,
	.done = done_release,
	.hook = "reclaim",
	.loses = true,
	.gone = true,
};

TEST_F_TIMEOUT(fail, release_with_vm, LONG)
{
	sweep(_metadata, &self->s, &op_release_with_vm);
}

/*
 * Memory, too, is not lost: what is once too little to tell is done many times.
 *
 * As with the test of blocks, GMEM_SLACK is how many MiB of free memory come and go
 * by themselves.  With KASAN, that is more than can be lost in time; kmemleak is there
 * then.
 */
#define MAX_SLACK	(16 * SZ_1M / page_size)

static u64 slack(void)
{
	const char *text = getenv("GMEM_SLACK");

	return (text ? atoi(text) : 8) * SZ_1M / page_size;
}

/* Of the machine in pages, with those that CPUs keep. */
static u64 free_memory(void)
{
	char *text = read_all("/proc/zoneinfo"), *line, *rest = text;
	u64 sum = 0, val;

	while ((line = strsep(&rest, "\n")))
		if (sscanf(line, " nr_free_pages %lu", &val) == 1 ||
		    sscanf(line, " count: %lu", &val) == 1)
			sum += val;
	free(text);
	return sum;
}

/* Fail the first points of an operation in turn, @rounds times. */
static void fail_often(struct __test_metadata *_metadata, struct stage *s,
		       const struct op *op, unsigned int rounds)
{
	u64 before = 0, now = 0;
	unsigned int i;
	bool failed;
	int nth;

	op->setup(_metadata, s);
	for (i = 0; i < rounds; i++) {
		/* Caches are full by then. */
		if (i == rounds / 8)
			before = free_memory();
		failed = true;
		for (nth = 1; failed && nth <= 8; nth++) {
			fail_begin(_metadata, s, nth);
			s->err = op->run(s) ? errno : 0;
			failed = fail_end(_metadata, s);
			if (!s->err)
				op->undo(_metadata, s);
		}
	}

	/* Some things are freed a while later. */
	for (i = 0; i < 40; i++) {
		now = free_memory();
		if (now + slack() / 2 >= before)
			break;
		usleep(50000);
	}
	EXPECT_LE(before, now + slack()) TH_LOG("%lu pages are lost", before - now);
}

static int run_allocate_some(struct stage *s)
{
	return allocate(s, 2 * s->unit + 5, 1);
}

static void undo_allocate_some(struct __test_metadata *_metadata, struct stage *s)
{
	ASSERT_WORKS(punch(s, 2 * s->unit, s->unit));
}

static const struct op op_allocate_some = {
	.setup = setup_empty,
	.run = run_allocate_some,
	.undo = undo_allocate_some,
};

TEST_F_TIMEOUT(fail, memory, LONG)
{
	struct stage *s = &self->s;

	if (slack() > MAX_SLACK)
		SKIP(return, "too much memory comes and goes: GMEM_SLACK");

	/* Each time a page or block might be lost; or an inode, a quarter of a page at least. */
	fail_often(_metadata, s, &op_allocate_some, 16 + 3 * slack() / s->block);
	fail_often(_metadata, s, &op_create, 6 * slack());
}

/*
 * Giant blocks, of 1 GiB: the same, with points here and there.
 */
FIXTURE(giant)
{
	struct stage s;
};

FIXTURE_VARIANT(giant)
{
	unsigned int type;
};

FIXTURE_VARIANT_ADD(giant, ordinary)
{
	.type = VM_TYPE_DEFAULT,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(giant, protected)
{
	.type = KVM_X86_SW_PROTECTED_VM,
};
#endif

FIXTURE_SETUP(giant)
{
	u64 sizes = block_sizes();

	if (!has_type(variant->type))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
	sizes &= ~(sizes & -sizes);
	if (!sizes)
		SKIP(return, "no giant blocks in this kernel (CONFIG_CONTIG_ALLOC)");
	stage_create(_metadata, &self->s, variant->type, sizes, 1);
	/* Is there anything to fail? */
	if (!self->s.nr)
		return;
	/* That takes seconds: once will do. */
	if (!shared->giant_tried)
		shared->giant_works = !allocate(&self->s, 0, 1);
	shared->giant_tried = true;
	if (!shared->giant_works)
		SKIP(return, "no contiguous memory of 1 GiB is free");
}

FIXTURE_TEARDOWN(giant)
{
	if (self->s.nr)
		stage_destroy(_metadata, &self->s);
}

static void setup_empty_private(struct __test_metadata *_metadata, struct stage *s)
{
	setup_empty(_metadata, s);
	ASSERT_WORKS(convert(s, 0, s->nr, GMEM_PRIVATE));
}

static const struct op op_giant_allocate = {
	.setup = setup_empty_private,
	.run = run_allocate,
	.errnos = { ENOMEM },
	.done = done_allocate_private,
	.part = true,
	.hook = "make_private",
};

TEST_F_TIMEOUT(giant, allocate, LONG)
{
	sweep(_metadata, &self->s, &op_giant_allocate);
}

/* No other memory takes the place of a giant block: it is there, or it is an error. */
static const struct op op_giant_user_fault = {
	.setup = setup_empty,
	.run = run_user_fault,
	.errnos = { ENOMEM, EFAULT },
	.done = expect_present,
	.part = true,
};

TEST_F_TIMEOUT(giant, user_fault, LONG)
{
	sweep(_metadata, &self->s, &op_giant_user_fault);
}

static const struct op op_giant_guest_fault = {
	.setup = setup_empty_private,
	.run = run_guest_fault,
	.errnos = { ENOMEM, EFAULT },
	.failed = failed_guest_fault,
	.done = done_guest_fault,
	.part = true,
	.hook = "make_private",
};

TEST_F_TIMEOUT(giant, guest_fault, LONG)
{
	sweep(_metadata, &self->s, &op_giant_guest_fault);
}

TEST_F_TIMEOUT(giant, to_private, LONG)
{
	sweep(_metadata, &self->s, &op_to_private);
}

TEST_F_TIMEOUT(giant, to_shared, LONG)
{
	sweep(_metadata, &self->s, &op_to_shared);
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));

	page_size = getpagesize();
	shared = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	return test_harness_run(argc, argv);
}
