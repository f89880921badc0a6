// SPDX-License-Identifier: GPL-2.0
/*
 * Whose pages a guest_memfd's are: when they become the guest's, and when the
 * host's again, as the emulated RMP of software-protected VMs records it.  See
 * CONFIG_KVM_EMULATED_RMP, whose counters, dump and sweep are what is looked at.
 *
 * Of the invariants in gmem.h: all fixtures guard I2, each page changes hands once
 * on the way in and once on the way out; "fail" guards I3, and what is left of I1
 * and I2 where undo fails as well; contents, where they are looked at, are I5.
 *
 * The counters are the machine's: run no other VM next to this.  Compared are
 * pages, not calls: how many pages share a call is up to where they lie.
 *
 * In the environment, GMEM_OWN_SEED and GMEM_OWN_STEPS are for the random walk.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"

#define RMP		"/sys/kernel/debug/kvm/emulated-rmp/"
#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"
#define UNPOISON_PFN	"/sys/kernel/debug/hwpoison/unpoison-pfn"
#define NX_HUGE_PAGES	"/sys/module/kvm/parameters/nx_huge_pages"

#define NR_PAGES	16
#define SLOT		10
#define MAPPABLE	GUEST_MEMFD_FLAG_MMAP
#define INIT_SHARED	GUEST_MEMFD_FLAG_INIT_SHARED

/* Where memslots go: as many pages as a u64 has bits.  And a large one, aside. */
#define GPA		SZ_4G
#define NR_WINDOW	64
#define LARGE		(GPA + SZ_2M)
#define NR_LARGE	512

static size_t page_size;

/* The emulated RMP's counters. */
enum {
	OWNED,
	LEAKED,
	OWNED_2M,
	MAKE_PRIVATE,
	MAKE_PRIVATE_PAGES,
	MAKE_SHARED,
	MAKE_SHARED_PAGES,
	RECLAIM,
	RECLAIM_PAGES,
	LOOKUPS,
	INJECTED,
	VIOLATIONS,
	NR_STATS,
};

static const char * const stat_names[NR_STATS] = {
	[OWNED]			= "owned",
	[LEAKED]		= "leaked",
	[OWNED_2M]		= "owned-2m",
	[MAKE_PRIVATE]		= "make-private",
	[MAKE_PRIVATE_PAGES]	= "make-private-pages",
	[MAKE_SHARED]		= "make-shared",
	[MAKE_SHARED_PAGES]	= "make-shared-pages",
	[RECLAIM]		= "reclaim",
	[RECLAIM_PAGES]		= "reclaim-pages",
	[LOOKUPS]		= "lookups",
	[INJECTED]		= "injected",
	[VIOLATIONS]		= "violations",
};

struct rmp_stats {
	u64 val[NR_STATS];
	struct gmem_fdinfo raw;		/* the same kind of lines */
};

/* When the program started. */
static struct rmp_stats at_start;

/* All of a file, to be freed by the caller. */
static char *read_all(const char *path)
{
	size_t size = 0, room = SZ_4K;
	char *text = malloc(room);
	int fd = open(path, O_RDONLY);
	ssize_t len;

	TEST_ASSERT(fd >= 0, "%s: errno %d", path, errno);
	while ((len = read(fd, text + size, room - 1 - size)) > 0) {
		size += len;
		if (size == room - 1)
			text = realloc(text, room *= 2);
		TEST_ASSERT(text, "no memory for %s", path);
	}
	TEST_ASSERT(!len, "%s: errno %d", path, errno);
	close(fd);
	text[size] = 0;
	return text;
}

static void rmp_read(struct rmp_stats *stats)
{
	char *text = read_all(RMP "stats");
	int i;

	TEST_ASSERT(strlen(text) < sizeof(stats->raw.text), "stats are long:\n%s", text);
	snprintf(stats->raw.text, sizeof(stats->raw.text), "%s", text);
	free(text);
	for (i = 0; i < NR_STATS; i++)
		TEST_ASSERT(gmem_fdinfo(&stats->raw, stat_names[i], &stats->val[i]),
			    "no %s in:\n%s", stat_names[i], stats->raw.text);
}

static u64 rmp_diff(const struct rmp_stats *now, const struct rmp_stats *then, int what)
{
	return now->val[what] - then->val[what];
}

/* Have the kernel look through table, pages and page tables. */
static void rmp_verify(struct __test_metadata *_metadata, u64 *mappings)
{
	unsigned long long entries, seen, violations;
	char *text = read_all(RMP "verify");
	int nr;

	nr = sscanf(text, "entries %llu mappings %llu violations %llu", &entries, &seen,
		    &violations);
	ASSERT_EQ(3, nr) TH_LOG("verify: %s", text);
	EXPECT_EQ(0, violations) TH_LOG("verify: %s", text);
	free(text);
	if (mappings)
		*mappings = seen;
}

/* What the table has, page by page in the order of pfns. */
struct rmp_page {
	u64 pfn;
	u64 gfn;
	u64 vm;
	bool leaked;
};

struct rmp_dump {
	unsigned int nr, nr_leaked;
	struct rmp_page *page;		/* those that are not leaked */
};

static int rmp_compare(const void *a, const void *b)
{
	const struct rmp_page *p = a, *q = b;

	return p->pfn < q->pfn ? -1 : p->pfn > q->pfn;
}

static void rmp_dump_read(struct rmp_dump *dump)
{
	char *text = read_all(RMP "dump"), *line, *rest = text;
	unsigned long long pfn, nr, vm, gfn, i;
	unsigned int room = 1024;
	char level[8];

	*dump = (struct rmp_dump) { .page = malloc(room * sizeof(*dump->page)) };
	while ((line = strsep(&rest, "\n"))) {
		if (!*line)
			continue;
		TEST_ASSERT(sscanf(line, "pfn %llx nr %llu vm %llu gfn %llx level %7s", &pfn, &nr,
				   &vm, &gfn, level) == 5, "dump: %s", line);
		if (strstr(line, "leaked")) {
			dump->nr_leaked += nr;
			continue;
		}
		while (dump->nr + nr > room)
			dump->page = realloc(dump->page, (room *= 2) * sizeof(*dump->page));
		TEST_ASSERT(dump->page, "no memory for the dump");
		for (i = 0; i < nr; i++)
			dump->page[dump->nr++] = (struct rmp_page) { pfn + i, gfn + i, vm };
	}
	free(text);
	qsort(dump->page, dump->nr, sizeof(*dump->page), rmp_compare);
}

static u64 gpa_of(unsigned int at)
{
	return GPA + at * page_size;
}

static u64 gfn_of(unsigned int at)
{
	return gpa_of(at) / page_size;
}

static u64 offset_of(unsigned int page)
{
	return page * page_size;
}

/* Where in the window a gfn is, or NR_WINDOW. */
static unsigned int window_of(u64 gfn)
{
	return gfn >= gfn_of(0) && gfn < gfn_of(NR_WINDOW) ? gfn - gfn_of(0) : NR_WINDOW;
}

static u64 bits(unsigned int first, unsigned int nr)
{
	return GENMASK_ULL(first + nr - 1, first);
}

/* A software-protected VM, a file, and what the RMP said last. */
struct own {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;			/* -1 when closed */
	u64 flags;
	bool old_scheme;
	u8 *mem;		/* the file, if it can be mapped */
	u8 *hva;		/* what the old scheme wants for its slots */
	u64 error_offset;	/* of the last conversion */
	struct rmp_stats first, last;
	u64 leaked;		/* since first */
};

static struct kvm_vm *protected_vm(struct kvm_vcpu **vcpu)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct kvm_vm *vm;

	vm = __vm_create_shape_with_one_vcpu(shape, vcpu, 1, gmem_guest_code);
	virt_map(vm, GPA, GPA, NR_WINDOW);
	return vm;
}

static void own_open(struct own *s)
{
	s->fd = vm_create_guest_memfd(s->vm, offset_of(NR_PAGES), s->flags);
	if (s->flags & MAPPABLE)
		s->mem = kvm_mmap(offset_of(NR_PAGES), PROT_READ | PROT_WRITE, MAP_SHARED, s->fd);
}

static void own_close(struct own *s)
{
	if (s->mem)
		kvm_munmap(s->mem, offset_of(NR_PAGES));
	s->mem = NULL;
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

static void own_setup(struct own *s, u64 flags)
{
	gmem_catch_sigbus();
	rmp_read(&s->first);
	s->last = s->first;
	s->vm = protected_vm(&s->vcpu);
	s->flags = flags;
	s->old_scheme = !flags && kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES);
	if (s->old_scheme) {
		s->hva = kvm_mmap(offset_of(NR_WINDOW), PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
		vm_set_memory_attributes(s->vm, GPA, offset_of(NR_WINDOW),
					 KVM_MEMORY_ATTRIBUTE_PRIVATE);
	}
	own_open(s);
}

/* Nothing is anybody's anymore, but for what is lost, and nobody complained. */
static void own_teardown(struct __test_metadata *_metadata, struct own *s)
{
	struct rmp_dump dump;
	struct rmp_stats now;

	rmp_verify(_metadata, NULL);
	own_close(s);
	kvm_vm_free(s->vm);
	if (s->hva)
		kvm_munmap(s->hva, offset_of(NR_WINDOW));
	rmp_verify(_metadata, NULL);

	rmp_read(&now);
	rmp_dump_read(&dump);
	EXPECT_EQ(0, rmp_diff(&now, &s->first, OWNED));
	EXPECT_EQ(0, rmp_diff(&now, &s->first, OWNED_2M));
	EXPECT_EQ(s->leaked, rmp_diff(&now, &s->first, LEAKED));
	EXPECT_EQ(now.val[LEAKED], dump.nr_leaked);
	EXPECT_EQ(now.val[OWNED], dump.nr);
	EXPECT_EQ(0, rmp_diff(&now, &s->first, VIOLATIONS)) TH_LOG("%s", now.raw.text);
	free(dump.page);
}

/* The pages that were handed over since the last look, and nothing else was. */
struct calls {
	u64 private, shared, reclaimed, leaked;
};

static void expect_pages(struct __test_metadata *_metadata, const struct rmp_stats *now,
			 const struct rmp_stats *then, int what, u64 want, int line)
{
	const u64 pages = rmp_diff(now, then, what + 1), nr = rmp_diff(now, then, what);

	EXPECT_EQ(want, pages) TH_LOG("line %d: pages of %s", line, stat_names[what]);
	/* A call is for a page at least; a page is in no more than one. */
	EXPECT_TRUE(nr <= pages && !nr == !pages)
		TH_LOG("line %d: %llu pages in %llu calls of %s", line, (unsigned long long)pages,
		       (unsigned long long)nr, stat_names[what]);
}

static void expect_calls(struct __test_metadata *_metadata, struct own *s, int line,
			 struct calls want)
{
	const u64 owned = want.private - want.shared - want.reclaimed - want.leaked;
	struct rmp_stats now;

	rmp_read(&now);
	expect_pages(_metadata, &now, &s->last, MAKE_PRIVATE, want.private, line);
	expect_pages(_metadata, &now, &s->last, MAKE_SHARED, want.shared, line);
	expect_pages(_metadata, &now, &s->last, RECLAIM, want.reclaimed, line);
	EXPECT_EQ(want.leaked, rmp_diff(&now, &s->last, LEAKED)) TH_LOG("line %d", line);
	EXPECT_EQ(owned, rmp_diff(&now, &s->last, OWNED)) TH_LOG("line %d", line);
	EXPECT_EQ(0, rmp_diff(&now, &s->last, VIOLATIONS))
		TH_LOG("line %d:\n%s", line, now.raw.text);
	s->last = now;
	s->leaked += want.leaked;
}

/* EXPECT_CALLS(s, .private = 1): a page was made private, none was given back. */
#define EXPECT_CALLS(s, ...)						\
	expect_calls(_metadata, s, __LINE__, (struct calls) { __VA_ARGS__ })

static u64 fdinfo_of(int fd, const char *key)
{
	struct gmem_fdinfo info;
	u64 val = -1;

	gmem_fdinfo_read(fd, &info);
	gmem_fdinfo(&info, key, &val);
	return val;
}

/* The guest has @map of the window, the file says how many pages that are. */
static void expect_owned(struct __test_metadata *_metadata, struct own *s, int line, u64 map)
{
	struct rmp_dump dump;
	u64 found = 0;
	unsigned int i;

	rmp_dump_read(&dump);
	for (i = 0; i < dump.nr; i++) {
		EXPECT_NE(NR_WINDOW, window_of(dump.page[i].gfn)) TH_LOG("line %d", line);
		found |= 1ull << (window_of(dump.page[i].gfn) % NR_WINDOW);
	}
	EXPECT_EQ(map, found) TH_LOG("line %d: have %#llx", line, (unsigned long long)found);
	EXPECT_EQ(__builtin_popcountll(map), dump.nr) TH_LOG("line %d", line);
	EXPECT_EQ(__builtin_popcountll(map), fdinfo_of(s->fd, "gmem-owned"))
		TH_LOG("line %d", line);
	free(dump.page);
}

#define EXPECT_OWNED(s, map)	expect_owned(_metadata, s, __LINE__, map)

/* The page frame that is the guest's at @at, 0 if none or more than one is. */
static u64 owned_pfn(unsigned int at)
{
	struct rmp_dump dump;
	unsigned int i, nr = 0;
	u64 pfn = 0;

	rmp_dump_read(&dump);
	for (i = 0; i < dump.nr; i++) {
		if (dump.page[i].gfn != gfn_of(at))
			continue;
		pfn = dump.page[i].pfn;
		nr++;
	}
	free(dump.page);
	return nr == 1 ? pfn : 0;
}

static int bind_fd(struct own *s, int fd, unsigned int slot, unsigned int at, unsigned int first,
		   unsigned int nr)
{
	return __vm_set_user_memory_region2(s->vm, slot, KVM_MEM_GUEST_MEMFD, gpa_of(at),
					    offset_of(nr), s->hva ? s->hva + offset_of(at) : NULL,
					    fd, offset_of(first));
}

/* Pages [@first, @first + @nr) of the file, at @at of the window. */
static int bind_at(struct own *s, unsigned int slot, unsigned int at, unsigned int first,
		   unsigned int nr)
{
	return bind_fd(s, s->fd, slot, at, first, nr);
}

static int bind_all(struct own *s)
{
	return bind_at(s, SLOT, 0, 0, NR_PAGES);
}

static int unbind(struct own *s, unsigned int slot)
{
	return __vm_set_user_memory_region2(s->vm, slot, 0, 0, 0, NULL, 0, 0);
}

static int allocate(struct own *s, unsigned int first, unsigned int nr)
{
	return fallocate(s->fd, GMEM_ALLOC, offset_of(first), offset_of(nr));
}

static int punch(struct own *s, unsigned int first, unsigned int nr)
{
	return fallocate(s->fd, GMEM_PUNCH, offset_of(first), offset_of(nr));
}

static int convert(struct own *s, unsigned int first, unsigned int nr, u64 attributes)
{
	return gmem_convert(s->fd, offset_of(first), offset_of(nr), attributes, &s->error_offset);
}

static int prefault(struct own *s, unsigned int at, unsigned int nr)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa_of(at),
		.size = offset_of(nr),
	};

	while (range.size)
		if (__vcpu_ioctl(s->vcpu, KVM_PRE_FAULT_MEMORY, &range) && errno != EINTR)
			return -1;
	return 0;
}

/* 0 or -errno. */
static int populate_at(struct own *s, unsigned int at, const void *source, unsigned int nr)
{
	char path[80], text[80];

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/gmem-populate", getpid(),
		 s->vm->fd);
	snprintf(text, sizeof(text), "%#llx %#lx %u", (unsigned long long)gfn_of(at),
		 (unsigned long)source, nr);
	return gmem_write_file(path, text);
}

static u64 token(unsigned int page)
{
	return 0x5100 + page;
}

/* The guest writes its token into each page of the file that is at @at. */
static void guest_fills(struct __test_metadata *_metadata, struct own *s, unsigned int at,
			unsigned int first, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		EXPECT_GUEST_WRITES(s->vcpu, gpa_of(at + i), token(first + i));
}

static void guest_finds(struct __test_metadata *_metadata, struct own *s, unsigned int at,
			unsigned int first, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		EXPECT_GUEST_READS(token(first + i), s->vcpu, gpa_of(at + i));
}

static void guest_finds_zeroes(struct __test_metadata *_metadata, struct own *s, unsigned int at,
			       unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		EXPECT_GUEST_READS(0, s->vcpu, gpa_of(at + i));
}

/* A file of either kind, all private, in no memslot yet. */
FIXTURE(pages)
{
	struct own s;
};

FIXTURE_VARIANT(pages)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(pages, in_place)
{
	.flags = MAPPABLE,
};

/* Old scheme, if there is one. */
FIXTURE_VARIANT_ADD(pages, no_flags)
{
};

FIXTURE_SETUP(pages)
{
	own_setup(&self->s, variant->flags);
}

FIXTURE_TEARDOWN(pages)
{
	own_teardown(_metadata, &self->s);
}

TEST_F(pages, allocated_in_a_slot)
{
	struct own *s = &self->s;

	ASSERT_WORKS(bind_all(s));
	EXPECT_CALLS(s);
	EXPECT_WORKS(allocate(s, 4, 4));
	EXPECT_CALLS(s, .private = 4);
	EXPECT_OWNED(s, bits(4, 4));

	/* Those that are there already are the guest's already. */
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 12);
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	guest_finds_zeroes(_metadata, s, 0, NR_PAGES);
	guest_fills(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, bits(0, NR_PAGES));
	rmp_verify(_metadata, NULL);

	EXPECT_WORKS(punch(s, 2, 3));
	EXPECT_CALLS(s, .reclaimed = 3);
	EXPECT_OWNED(s, bits(0, 2) | bits(5, 11));
	EXPECT_WORKS(punch(s, 0, 6));
	EXPECT_CALLS(s, .reclaimed = 3);
	EXPECT_WORKS(punch(s, 0, 6));
	EXPECT_CALLS(s);
	EXPECT_WORKS(allocate(s, 1, 2));
	EXPECT_CALLS(s, .private = 2);
	guest_finds_zeroes(_metadata, s, 1, 2);
	guest_finds(_metadata, s, 6, 6, 10);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, bits(1, 2) | bits(6, 10));

	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 12);
}

TEST_F(pages, allocated_before_it_is_in_a_slot)
{
	struct own *s = &self->s;

	EXPECT_WORKS(allocate(s, 0, 14));
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, 0);

	ASSERT_WORKS(bind_at(s, SLOT, 20, 4, 8));
	EXPECT_CALLS(s, .private = 8);
	EXPECT_OWNED(s, bits(20, 8));
	guest_finds_zeroes(_metadata, s, 20, 8);
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	EXPECT_CALLS(s);

	/* Not bound, the host's. */
	EXPECT_WORKS(punch(s, 2, 1));
	EXPECT_CALLS(s);
	EXPECT_WORKS(punch(s, 3, 2));
	EXPECT_CALLS(s, .reclaimed = 1);

	/* Holes in what is bound. */
	ASSERT_WORKS(bind_at(s, SLOT + 1, 0, 0, 4));
	EXPECT_CALLS(s, .private = 2);
	ASSERT_WORKS(bind_at(s, SLOT + 2, 40, 12, 4));
	EXPECT_CALLS(s, .private = 4);
	EXPECT_OWNED(s, bits(0, 2) | bits(21, 7) | bits(40, 4));

	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 13);
}

TEST_F(pages, allocated_by_the_guest)
{
	struct own *s = &self->s;
	u64 mappings = 0;
	unsigned int i;

	ASSERT_WORKS(bind_all(s));
	for (i = 0; i < NR_PAGES; i += 2) {
		EXPECT_GUEST_READS(0, s->vcpu, gpa_of(i));
		EXPECT_CALLS(s, .private = 1);
		EXPECT_GUEST_WRITES(s->vcpu, gpa_of(i + 1), token(i + 1));
		EXPECT_CALLS(s, .private = 1);
		EXPECT_OWNED(s, bits(0, i + 2));
	}
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(i % 2 ? token(i) : 0, s->vcpu, gpa_of(i));
	EXPECT_CALLS(s);

	/* The sweep has seen them. */
	rmp_verify(_metadata, &mappings);
	EXPECT_LE(NR_PAGES, mappings);
}

TEST_F(pages, prefaulted)
{
	struct own *s = &self->s;

	ASSERT_WORKS(bind_all(s));
	EXPECT_WORKS(prefault(s, 3, 8));
	EXPECT_CALLS(s, .private = 8);
	EXPECT_OWNED(s, bits(3, 8));
	EXPECT_WORKS(prefault(s, 0, 8));
	EXPECT_CALLS(s, .private = 3);
	guest_finds_zeroes(_metadata, s, 0, 11);
	EXPECT_CALLS(s);
}

/* Ownership is the file's, and outlives the memslot. */
TEST_F(pages, unbound_and_bound_again)
{
	struct own *s = &self->s;
	unsigned int round;
	u64 pfn;

	ASSERT_WORKS(bind_at(s, SLOT, 8, 0, NR_PAGES));
	guest_fills(_metadata, s, 8, 0, 12);
	EXPECT_CALLS(s, .private = 12);
	pfn = owned_pfn(9);
	EXPECT_NE(0, pfn);

	for (round = 0; round < 3; round++) {
		EXPECT_WORKS(unbind(s, SLOT));
		EXPECT_CALLS(s);
		EXPECT_OWNED(s, bits(8, 12));
		rmp_verify(_metadata, NULL);

		ASSERT_WORKS(bind_at(s, SLOT, 8, 0, NR_PAGES));
		EXPECT_CALLS(s);
		guest_finds(_metadata, s, 8, 0, 12);
		EXPECT_CALLS(s);
	}
	EXPECT_EQ(pfn, owned_pfn(9));

	/* In parts, and other memslots: it is the gfns that count. */
	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_at(s, SLOT + 1, 8 + 6, 6, 5));
	ASSERT_WORKS(bind_at(s, SLOT + 2, 8, 0, 6));
	EXPECT_CALLS(s);
	guest_finds(_metadata, s, 8, 0, 11);
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	EXPECT_CALLS(s);

	/* What was added when there was no memslot, and only that. */
	EXPECT_WORKS(unbind(s, SLOT + 1));
	ASSERT_WORKS(bind_at(s, SLOT, 8 + 6, 6, 10));
	EXPECT_CALLS(s, .private = 4);
	EXPECT_OWNED(s, bits(8, NR_PAGES));

	/* Freed without a memslot. */
	EXPECT_WORKS(unbind(s, SLOT));
	EXPECT_WORKS(unbind(s, SLOT + 2));
	EXPECT_WORKS(punch(s, 4, 4));
	EXPECT_CALLS(s, .reclaimed = 4);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 12);
}

/* At another gfn, the page is another page of the guest's. */
TEST_F(pages, bound_elsewhere)
{
	struct own *s = &self->s;

	ASSERT_WORKS(bind_all(s));
	guest_fills(_metadata, s, 0, 0, 14);
	EXPECT_CALLS(s, .private = 14);

	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_at(s, SLOT, 20, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 14, .shared = 14);
	EXPECT_OWNED(s, bits(20, 14));
	guest_finds(_metadata, s, 20, 0, 14);
	EXPECT_CALLS(s);
	rmp_verify(_metadata, NULL);

	/* A part of it; the rest stays where it was. */
	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_at(s, SLOT, 41, 4, 6));
	EXPECT_CALLS(s, .private = 6, .shared = 6);
	EXPECT_OWNED(s, bits(20, 4) | bits(41, 6) | bits(30, 4));
	guest_finds(_metadata, s, 41, 4, 6);
	ASSERT_WORKS(bind_at(s, SLOT + 1, 20, 0, 4));
	EXPECT_CALLS(s);
	guest_finds(_metadata, s, 20, 0, 4);

	/* Over all of it: what is at that distance already is left alone. */
	EXPECT_WORKS(unbind(s, SLOT));
	EXPECT_WORKS(unbind(s, SLOT + 1));
	EXPECT_CALLS(s);
	ASSERT_WORKS(bind_at(s, SLOT, 20, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 6, .shared = 6);
	EXPECT_OWNED(s, bits(20, 14));
	guest_finds(_metadata, s, 20, 0, 14);

	/* By one page: old place and new overlap. */
	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_at(s, SLOT, 21, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 14, .shared = 14);
	EXPECT_OWNED(s, bits(21, 14));
	guest_finds(_metadata, s, 21, 0, 14);
	EXPECT_WORKS(punch(s, 0, 1));
	EXPECT_CALLS(s, .reclaimed = 1);
	EXPECT_OWNED(s, bits(22, 13));
}

/* One file in memslots at different distances. */
TEST_F(pages, several_slots)
{
	static const unsigned int at[] = { 0, 8, 4, 12 };
	struct own *s = &self->s;
	unsigned int i;

	ASSERT_WORKS(allocate(s, 0, NR_PAGES));
	for (i = 0; i < 4; i++) {
		ASSERT_WORKS(bind_at(s, SLOT + i, at[i], 4 * i, 4));
		EXPECT_CALLS(s, .private = 4);
		guest_fills(_metadata, s, at[i], 4 * i, 4);
	}
	EXPECT_OWNED(s, bits(0, NR_PAGES));

	/* A hole over all of them, and back again. */
	EXPECT_WORKS(punch(s, 2, 12));
	EXPECT_CALLS(s, .reclaimed = 12);
	EXPECT_OWNED(s, bits(0, 2) | bits(14, 2));
	EXPECT_WORKS(allocate(s, 2, 6));
	EXPECT_CALLS(s, .private = 6);
	EXPECT_OWNED(s, bits(0, 4) | bits(8, 4) | bits(14, 2));
	guest_fills(_metadata, s, 4, 8, 4);
	guest_fills(_metadata, s, 2, 2, 2);
	guest_fills(_metadata, s, 8, 4, 4);
	guest_fills(_metadata, s, 12, 12, 2);
	EXPECT_CALLS(s, .private = 6);

	for (i = 0; i < 4; i++)
		EXPECT_WORKS(unbind(s, SLOT + i));
	EXPECT_CALLS(s);
	ASSERT_WORKS(bind_all(s));
	EXPECT_CALLS(s, .private = 8, .shared = 8);
	EXPECT_OWNED(s, bits(0, NR_PAGES));
	guest_finds(_metadata, s, 0, 0, NR_PAGES);
	rmp_verify(_metadata, NULL);
}

/* A memslot that does not come to be makes nothing anybody's. */
TEST_F(pages, refused_slots)
{
	struct own *s = &self->s;

	ASSERT_WORKS(allocate(s, 0, NR_PAGES));
	ASSERT_WORKS(bind_at(s, SLOT, 0, 0, 8));
	EXPECT_CALLS(s, .private = 8);

	EXPECT_FAILS(EEXIST, bind_at(s, SLOT + 1, 20, 0, NR_PAGES));
	EXPECT_FAILS(EEXIST, bind_at(s, SLOT + 1, 20, 7, 9));
	EXPECT_FAILS(EEXIST, bind_at(s, SLOT + 1, 7, 8, 8));
	EXPECT_FAILS(EINVAL, bind_at(s, SLOT + 1, 20, 8, 9));
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, bits(0, 8));
	ASSERT_WORKS(bind_at(s, SLOT + 1, 20, 8, 8));
	EXPECT_CALLS(s, .private = 8);
}

TEST_F(pages, closed)
{
	struct own *s = &self->s;
	u64 val;

	ASSERT_WORKS(bind_all(s));
	guest_fills(_metadata, s, 0, 0, 10);
	EXPECT_CALLS(s, .private = 10);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 10);
	rmp_verify(_metadata, NULL);
	EXPECT_EQ(-EFAULT, gmem_guest_read(s->vcpu, gpa_of(0), &val));

	/* Another one in its place. */
	EXPECT_WORKS(unbind(s, SLOT));
	EXPECT_CALLS(s);
	own_open(s);
	ASSERT_WORKS(bind_all(s));
	EXPECT_CALLS(s);
	EXPECT_EQ(0, gmem_guest_run(s->vcpu));
	EXPECT_CALLS(s, .private = 1);
	EXPECT_OWNED(s, bits(0, 1));
}

/* The file is the last one to know the VM. */
TEST_F(pages, vm_closed_first)
{
	struct own *s = &self->s;
	struct kvm_vcpu *vcpu;

	ASSERT_WORKS(bind_all(s));
	guest_fills(_metadata, s, 0, 0, 12);
	EXPECT_CALLS(s, .private = 12);

	kvm_vm_free(s->vm);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, bits(0, 12));
	rmp_verify(_metadata, NULL);
	EXPECT_WORKS(punch(s, 2, 4));
	EXPECT_CALLS(s, .reclaimed = 4);
	EXPECT_WORKS(allocate(s, 0, 4));
	EXPECT_CALLS(s, .private = 2);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 10);
	rmp_verify(_metadata, NULL);

	s->vm = protected_vm(&vcpu);
}

/* Nobody closes anything. */
TEST_F(pages, process_exits)
{
	struct own *s = &self->s, other = { };
	int status = -1;
	pid_t child;

	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		own_setup(&other, s->flags);
		ASSERT_WORKS(bind_all(&other));
		guest_fills(_metadata, &other, 0, 0, 9);
		EXPECT_CALLS(&other, .private = 9);
		_exit(0);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_CALLS(s, .private = 9, .reclaimed = 9);
	EXPECT_OWNED(s, 0);
}

/* What a launch does, which may come before or after the page does. */
TEST_F(pages, populated)
{
	struct own *s = &self->s;
	u64 *source;
	unsigned int i;

	if (populate_at(s, 0, NULL, 1) == -ENOENT)
		SKIP(return, "needs CONFIG_KVM_GUEST_MEMFD_DEBUG");

	source = kvm_mmap(offset_of(NR_PAGES), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1);
	for (i = 0; i < NR_PAGES; i++)
		source[offset_of(i) / sizeof(*source)] = token(i);

	EXPECT_EQ(-EINVAL, populate_at(s, 0, source, 1));
	ASSERT_WORKS(bind_all(s));
	EXPECT_CALLS(s);
	EXPECT_EQ(0, populate_at(s, 0, source, 6));
	EXPECT_CALLS(s, .private = 6);
	EXPECT_OWNED(s, bits(0, 6));
	guest_finds(_metadata, s, 0, 0, 6);

	/* Once more, and over pages that were there for other reasons. */
	EXPECT_EQ(0, populate_at(s, 3, source, 3));
	EXPECT_CALLS(s);
	guest_finds(_metadata, s, 3, 0, 3);
	EXPECT_WORKS(allocate(s, 8, 2));
	EXPECT_CALLS(s, .private = 2);
	EXPECT_EQ(0, populate_at(s, 7, NULL, 4));
	EXPECT_CALLS(s, .private = 2);
	EXPECT_OWNED(s, bits(0, 6) | bits(7, 4));
	guest_finds_zeroes(_metadata, s, 7, 4);
	EXPECT_CALLS(s);
	kvm_munmap(source, offset_of(NR_PAGES));
}

static bool may_break_memory(void)
{
	return !access(CORRUPT_PFN, W_OK) && !madvise(NULL, 0, MADV_HWPOISON);
}

static int break_pfn(u64 pfn)
{
	char text[32];

	snprintf(text, sizeof(text), "%#llx", (unsigned long long)pfn);
	return gmem_write_file(CORRUPT_PFN, text);
}

#define BAD	3
#define WHY_NOT	"needs CONFIG_MEMORY_FAILURE and CONFIG_HWPOISON_INJECT"

/* Nobody touches a broken page, nor what hardware has about it. */
TEST_F(pages, poisoned)
{
	struct own *s = &self->s;
	u64 pfn, val;

	if (!may_break_memory())
		SKIP(return, WHY_NOT);

	ASSERT_WORKS(bind_all(s));
	guest_fills(_metadata, s, 0, 0, 8);
	EXPECT_CALLS(s, .private = 8);
	pfn = owned_pfn(BAD);
	ASSERT_NE(0, pfn);
	ASSERT_EQ(0, break_pfn(pfn));
	ASSERT_EQ(1, fdinfo_of(s->fd, "gmem-poisoned"));
	EXPECT_EQ(-EHWPOISON, gmem_guest_read(s->vcpu, gpa_of(BAD), &val));
	EXPECT_WORKS(allocate(s, 0, 8));
	EXPECT_CALLS(s);

	/* It stays the guest's, at the gfn at which it broke. */
	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_all(s));
	EXPECT_CALLS(s);
	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_at(s, SLOT, 20, 0, 8));
	EXPECT_CALLS(s, .private = 7, .shared = 7);
	EXPECT_EQ(pfn, owned_pfn(BAD));
	rmp_verify(_metadata, NULL);

	/* And is never seen again. */
	EXPECT_WORKS(punch(s, 0, 6));
	EXPECT_CALLS(s, .reclaimed = 5, .leaked = 1);
	EXPECT_OWNED(s, bits(26, 2));
	EXPECT_WORKS(allocate(s, BAD, 1));
	EXPECT_CALLS(s, .private = 1);
	EXPECT_OWNED(s, bits(20 + BAD, 1) | bits(26, 2));

	/* The guest's access is done at last, in a memslot that is there. */
	ASSERT_WORKS(bind_at(s, SLOT + 1, BAD, 8, 1));
	EXPECT_EQ(0, gmem_guest_run(s->vcpu));
	EXPECT_EQ(0, gmem_guest_cmd.val);
	EXPECT_CALLS(s, .private = 1);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 4);
}

/* The number of pages that the guest has mapped. */
static u64 nr_mapped(struct own *s)
{
	return vm_get_stat(s->vm, pages_4k);
}

/* Write to what takes all memory from all guests when it changes, and back. */
static void zap_all_guests(struct __test_metadata *_metadata)
{
	char *was = read_all(NX_HUGE_PAGES);

	was[strcspn(was, "\n")] = 0;
	ASSERT_EQ(0, gmem_write_file(NX_HUGE_PAGES, strcmp(was, "Y") ? "Y" : "N"));
	ASSERT_EQ(0, gmem_write_file(NX_HUGE_PAGES, was));
	free(was);
}

/* How the guest has it mapped is nothing to whose it is: no call, no lookup. */
TEST_F(pages, faults_zaps_and_slots)
{
	struct own *s = &self->s;
	struct rmp_stats was;
	unsigned int round;
	u64 mapped;

	ASSERT_WORKS(bind_all(s));
	EXPECT_WORKS(allocate(s, 0, 8));
	guest_fills(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s, .private = NR_PAGES);
	rmp_read(&was);

	for (round = 0; round < 3; round++) {
		mapped = nr_mapped(s);
		EXPECT_LE(NR_PAGES, mapped);
		EXPECT_WORKS(unbind(s, SLOT));
		EXPECT_EQ(mapped - NR_PAGES, nr_mapped(s));
		ASSERT_WORKS(bind_all(s));
		guest_finds(_metadata, s, 0, 0, NR_PAGES);
		EXPECT_LE(NR_PAGES, nr_mapped(s));
		guest_fills(_metadata, s, 0, 0, NR_PAGES);
		EXPECT_WORKS(prefault(s, 0, NR_PAGES));
	}
	EXPECT_CALLS(s);

	if (!access(NX_HUGE_PAGES, W_OK)) {
		zap_all_guests(_metadata);
		EXPECT_GT(NR_PAGES, nr_mapped(s));
		guest_finds(_metadata, s, 0, 0, NR_PAGES);
		EXPECT_LE(NR_PAGES, nr_mapped(s));
		EXPECT_CALLS(s);
	}
	EXPECT_EQ(0, rmp_diff(&s->last, &was, LOOKUPS));
	EXPECT_OWNED(s, bits(0, NR_PAGES));
}

/* One page of a block in each memslot: nobody but KVM's page tables cares. */
TEST_F(pages, a_slot_for_each_page)
{
	struct own *s = &self->s;
	const size_t size = NR_LARGE * page_size;
	struct rmp_stats was;
	u8 *hva = NULL;
	unsigned int i;
	int fd;

	virt_map(s->vm, LARGE, LARGE, NR_LARGE);
	if (s->old_scheme) {
		hva = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		vm_set_memory_attributes(s->vm, LARGE, size, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	}
	fd = vm_create_guest_memfd(s->vm, size, s->flags);

	/* Half of it before. */
	ASSERT_WORKS(__vm_set_user_memory_region2(s->vm, SLOT, KVM_MEM_GUEST_MEMFD, LARGE, size,
						  hva, fd, 0));
	ASSERT_WORKS(fallocate(fd, GMEM_ALLOC, 0, size / 2));
	EXPECT_CALLS(s, .private = NR_LARGE / 2);
	EXPECT_WORKS(unbind(s, SLOT));
	rmp_read(&was);

	for (i = 0; i < NR_LARGE; i++)
		ASSERT_WORKS(__vm_set_user_memory_region2(s->vm, SLOT + i, KVM_MEM_GUEST_MEMFD,
							  LARGE + offset_of(i), page_size,
							  hva ? hva + offset_of(i) : NULL, fd,
							  offset_of(i)));
	for (i = 0; i < NR_LARGE / 2; i++)
		EXPECT_GUEST_WRITES(s->vcpu, LARGE + offset_of(i), token(i));
	EXPECT_CALLS(s);

	/* The other half now; and some of that by the guest. */
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, size / 2, size / 4));
	EXPECT_CALLS(s, .private = NR_LARGE / 4);
	for (; i < NR_LARGE; i++)
		EXPECT_GUEST_WRITES(s->vcpu, LARGE + offset_of(i), token(i));
	EXPECT_CALLS(s, .private = NR_LARGE / 4);

	for (i = 0; i < NR_LARGE; i++)
		EXPECT_GUEST_READS(token(i), s->vcpu, LARGE + offset_of(i));
	EXPECT_CALLS(s);
	EXPECT_EQ(0, rmp_diff(&s->last, &was, LOOKUPS));
	EXPECT_EQ(NR_LARGE, fdinfo_of(fd, "gmem-owned"));
	rmp_verify(_metadata, NULL);

	EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, offset_of(100), offset_of(300)));
	EXPECT_CALLS(s, .reclaimed = 300);
	close(fd);
	EXPECT_CALLS(s, .reclaimed = NR_LARGE - 300);
	if (hva)
		kvm_munmap(hva, size);
}

TEST_F(pages, two_files)
{
	struct own *s = &self->s;
	int fd = vm_create_guest_memfd(s->vm, offset_of(NR_PAGES), s->flags);

	ASSERT_WORKS(bind_all(s));
	ASSERT_WORKS(bind_fd(s, fd, SLOT + 1, 32, 0, NR_PAGES));
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 0, offset_of(6)));
	EXPECT_CALLS(s, .private = 6);
	EXPECT_EQ(0, fdinfo_of(s->fd, "gmem-owned"));
	guest_fills(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s, .private = NR_PAGES);
	EXPECT_EQ(6, fdinfo_of(fd, "gmem-owned"));
	EXPECT_EQ(NR_PAGES, fdinfo_of(s->fd, "gmem-owned"));

	EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, offset_of(2)));
	EXPECT_CALLS(s, .reclaimed = 2);
	guest_finds(_metadata, s, 0, 0, NR_PAGES);

	/* The second one takes the gfns over that the first one had. */
	EXPECT_WORKS(unbind(s, SLOT));
	EXPECT_WORKS(unbind(s, SLOT + 1));
	ASSERT_WORKS(bind_fd(s, fd, SLOT, 0, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 4, .shared = 4);
	guest_finds_zeroes(_metadata, s, 0, NR_PAGES);
	EXPECT_CALLS(s, .private = 12);
	EXPECT_EQ(NR_PAGES, fdinfo_of(fd, "gmem-owned"));
	EXPECT_EQ(NR_PAGES, fdinfo_of(s->fd, "gmem-owned"));
	guest_fills(_metadata, s, 0, 1, NR_PAGES);
	rmp_verify(_metadata, NULL);

	/* And keeps what it has when the first one goes. */
	EXPECT_WORKS(punch(s, 0, 4));
	EXPECT_CALLS(s, .reclaimed = 4);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 12);
	guest_finds(_metadata, s, 0, 1, NR_PAGES);
	EXPECT_CALLS(s);
	rmp_verify(_metadata, NULL);
	close(fd);
	EXPECT_CALLS(s, .reclaimed = NR_PAGES);
}

/* The number of VMs that have pages in the window. */
static unsigned int nr_owners(void)
{
	u64 vms[4] = { };
	unsigned int i, j, nr = 0;
	struct rmp_dump dump;

	rmp_dump_read(&dump);
	for (i = 0; i < dump.nr; i++) {
		for (j = 0; j < nr && vms[j] != dump.page[i].vm; j++)
			;
		if (j == nr && nr < ARRAY_SIZE(vms))
			vms[nr++] = dump.page[i].vm;
	}
	free(dump.page);
	return nr;
}

TEST_F(pages, two_vms)
{
	struct own *s = &self->s, other = { .flags = s->flags, .last = s->last };

	other.vm = protected_vm(&other.vcpu);
	other.hva = s->hva;
	if (s->old_scheme)
		vm_set_memory_attributes(other.vm, GPA, offset_of(NR_WINDOW),
					 KVM_MEMORY_ATTRIBUTE_PRIVATE);
	own_open(&other);
	ASSERT_WORKS(bind_all(s));
	ASSERT_WORKS(bind_all(&other));

	/* The same gfns, of different guests. */
	guest_fills(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s, .private = NR_PAGES);
	EXPECT_EQ(1, nr_owners());
	guest_fills(_metadata, &other, 0, 1, 8);
	EXPECT_CALLS(s, .private = 8);
	EXPECT_EQ(2, nr_owners());
	guest_finds(_metadata, s, 0, 0, NR_PAGES);
	guest_finds(_metadata, &other, 0, 1, 8);
	EXPECT_EQ(NR_PAGES, fdinfo_of(s->fd, "gmem-owned"));
	EXPECT_EQ(8, fdinfo_of(other.fd, "gmem-owned"));
	rmp_verify(_metadata, NULL);

	/* Whose file it is not cannot bind it, and so owns nothing of it. */
	EXPECT_FAILS(EINVAL, bind_fd(&other, s->fd, SLOT + 1, 32, 0, NR_PAGES));
	EXPECT_CALLS(s);

	kvm_vm_free(other.vm);
	EXPECT_CALLS(s);
	own_close(&other);
	EXPECT_CALLS(s, .reclaimed = 8);
	EXPECT_EQ(1, nr_owners());
	guest_finds(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s);
}

/* The VM's attributes say what a gfn is for; the pages of the file are private. */
FIXTURE(old_scheme)
{
	struct own s;
};

FIXTURE_SETUP(old_scheme)
{
	if (!kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES))
		SKIP(return, "VMs have no attributes: vm_memory_attributes=N");
	own_setup(&self->s, 0);
	ASSERT_WORKS(bind_all(&self->s));
}

FIXTURE_TEARDOWN(old_scheme)
{
	own_teardown(_metadata, &self->s);
}

TEST_F(old_scheme, attributes)
{
	struct own *s = &self->s;
	u64 *host = (u64 *)s->hva;

	guest_fills(_metadata, s, 0, 0, 8);
	EXPECT_CALLS(s, .private = 8);

	/* The page stays, and the guest does without. */
	vm_set_memory_attributes(s->vm, GPA, offset_of(NR_PAGES), 0);
	EXPECT_CALLS(s);
	EXPECT_GUEST_WRITES(s->vcpu, gpa_of(0), 0x77);
	EXPECT_EQ(0x77, READ_ONCE(*host));
	guest_finds_zeroes(_metadata, s, 8, 4);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, bits(0, 8));
	rmp_verify(_metadata, NULL);

	/* A page of the file is the guest's if the guest can have it at all. */
	EXPECT_WORKS(allocate(s, 6, 4));
	EXPECT_CALLS(s, .private = 2);
	EXPECT_WORKS(punch(s, 0, 2));
	EXPECT_CALLS(s, .reclaimed = 2);

	vm_set_memory_attributes(s->vm, GPA, offset_of(NR_PAGES), KVM_MEMORY_ATTRIBUTE_PRIVATE);
	EXPECT_CALLS(s);
	guest_finds(_metadata, s, 2, 2, 6);
	guest_finds_zeroes(_metadata, s, 8, 2);
	EXPECT_CALLS(s);
	guest_finds_zeroes(_metadata, s, 0, 2);
	EXPECT_CALLS(s, .private = 2);
	EXPECT_EQ(0x77, READ_ONCE(*host));
}

/* A file whose pages are converted in place, all private, in a memslot. */
FIXTURE(convert)
{
	struct own s;
};

FIXTURE_SETUP(convert)
{
	own_setup(&self->s, MAPPABLE);
	ASSERT_WORKS(bind_all(&self->s));
}

FIXTURE_TEARDOWN(convert)
{
	own_teardown(_metadata, &self->s);
}

static u64 *word_of(struct own *s, unsigned int page)
{
	return (u64 *)(s->mem + offset_of(page));
}

TEST_F(convert, present_pages)
{
	struct own *s = &self->s;
	unsigned int i;

	guest_fills(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s, .private = NR_PAGES);

	EXPECT_WORKS(convert(s, 3, 6, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 6);
	EXPECT_OWNED(s, bits(0, 3) | bits(9, 7));
	for (i = 3; i < 9; i++) {
		EXPECT_EQ(token(i), READ_ONCE(*word_of(s, i)));
		WRITE_ONCE(*word_of(s, i), token(i + 1));
	}
	guest_finds(_metadata, s, 3, 4, 6);
	guest_fills(_metadata, s, 3, 3, 6);
	EXPECT_CALLS(s);
	rmp_verify(_metadata, NULL);

	/* Those in between only, whatever else the range has. */
	EXPECT_WORKS(convert(s, 0, 8, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 3);
	EXPECT_WORKS(convert(s, 2, NR_PAGES - 2, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 7);
	EXPECT_OWNED(s, bits(2, NR_PAGES - 2));
	guest_finds(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_WORKS(convert(s, 2, NR_PAGES - 2, GMEM_PRIVATE));
	EXPECT_WORKS(convert(s, 0, 2, GMEM_SHARED));
	EXPECT_CALLS(s);
	rmp_verify(_metadata, NULL);

	/* Freed as what they are. */
	EXPECT_WORKS(punch(s, 1, 2));
	EXPECT_CALLS(s, .reclaimed = 1);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = NR_PAGES - 3);
}

TEST_F(convert, holes)
{
	struct own *s = &self->s;

	/* No page, no owner. */
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	EXPECT_WORKS(convert(s, 4, 8, GMEM_SHARED));
	EXPECT_CALLS(s);

	/* A shared page is the host's, whoever brought it. */
	EXPECT_WORKS(allocate(s, 4, 2));
	EXPECT_GUEST_WRITES(s->vcpu, gpa_of(6), token(6));
	WRITE_ONCE(*word_of(s, 7), token(7));
	EXPECT_WORKS(prefault(s, 8, 1));
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, 0);

	/* Then 9 to 11 are holes; so is the rest, and private. */
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 5);
	EXPECT_OWNED(s, bits(4, 5));
	guest_finds_zeroes(_metadata, s, 4, 2);
	guest_finds(_metadata, s, 6, 6, 2);
	EXPECT_CALLS(s);
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(word_of(s, 7)));

	EXPECT_WORKS(punch(s, 5, 2));
	EXPECT_CALLS(s, .reclaimed = 2);
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 3);
	EXPECT_OWNED(s, 0);
	EXPECT_EQ(token(7), READ_ONCE(*word_of(s, 7)));
	EXPECT_WORKS(punch(s, 0, NR_PAGES));
	EXPECT_CALLS(s);
}

/* In no memslot: what is the guest's can be given back, nothing can be taken. */
TEST_F(convert, unbound)
{
	struct own *s = &self->s;

	guest_fills(_metadata, s, 0, 0, 8);
	EXPECT_CALLS(s, .private = 8);
	EXPECT_WORKS(unbind(s, SLOT));

	EXPECT_WORKS(convert(s, 2, 3, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 3);
	EXPECT_OWNED(s, bits(0, 2) | bits(5, 3));
	EXPECT_EQ(token(3), READ_ONCE(*word_of(s, 3)));
	EXPECT_WORKS(convert(s, 0, 4, GMEM_PRIVATE));
	EXPECT_CALLS(s);

	/* Pages 2, 3 are private and not the guest's, 4 is shared. */
	EXPECT_WORKS(convert(s, 3, 1, GMEM_SHARED));
	EXPECT_CALLS(s);
	EXPECT_WORKS(convert(s, 3, 1, GMEM_PRIVATE));
	EXPECT_CALLS(s);
	ASSERT_WORKS(bind_at(s, SLOT, 30, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 7, .shared = 5);
	EXPECT_OWNED(s, bits(30, 4) | bits(35, 3));
	guest_finds(_metadata, s, 30, 0, 8);
	EXPECT_WORKS(convert(s, 4, 1, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 1);
	guest_finds(_metadata, s, 30, 0, 8);
	EXPECT_CALLS(s);
}

/* A range in two memslots and in none. */
TEST_F(convert, over_several_slots)
{
	struct own *s = &self->s;

	EXPECT_WORKS(unbind(s, SLOT));
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	ASSERT_WORKS(bind_at(s, SLOT, 40, 0, 6));
	ASSERT_WORKS(bind_at(s, SLOT + 1, 0, 10, 6));
	EXPECT_CALLS(s);

	EXPECT_WORKS(convert(s, 2, 12, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 8);
	EXPECT_OWNED(s, bits(42, 4) | bits(0, 4));
	guest_finds_zeroes(_metadata, s, 40, 6);
	guest_finds_zeroes(_metadata, s, 0, 6);
	EXPECT_CALLS(s);

	ASSERT_WORKS(bind_at(s, SLOT + 2, 20, 6, 4));
	EXPECT_CALLS(s, .private = 4);
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 12);
	rmp_verify(_metadata, NULL);
}

/* A page that the host holds on to stays the host's, with all of its range. */
TEST_F(convert, refused)
{
	struct own *s = &self->s;
	int pipefd[2];
	struct iovec iov;
	char byte;

	guest_fills(_metadata, s, 0, 0, 4);
	EXPECT_CALLS(s, .private = 4);
	EXPECT_WORKS(convert(s, 2, 6, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 2);
	EXPECT_WORKS(allocate(s, 0, 8));
	EXPECT_CALLS(s);

	ASSERT_WORKS(pipe(pipefd));
	iov = (struct iovec) { .iov_base = word_of(s, 5), .iov_len = 1 };
	ASSERT_EQ(1, vmsplice(pipefd[1], &iov, 1, 0));
	EXPECT_FAILS(EAGAIN, convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	EXPECT_EQ(offset_of(5), s->error_offset);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, bits(0, 2));
	rmp_verify(_metadata, NULL);

	ASSERT_EQ(1, read(pipefd[0], &byte, 1));
	close(pipefd[0]);
	close(pipefd[1]);
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 6);
	guest_finds(_metadata, s, 0, 0, 4);
}

/* A VM without private memory owns none. */
TEST_F(convert, of_an_ordinary_vm)
{
	struct own *s = &self->s;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 *host;
	int fd;

	vm = __vm_create_shape_with_one_vcpu(VM_SHAPE_DEFAULT, &vcpu, 1, gmem_guest_code);
	virt_map(vm, GPA, GPA, NR_WINDOW);
	fd = vm_create_guest_memfd(vm, offset_of(NR_PAGES), MAPPABLE);
	vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, offset_of(NR_PAGES), NULL,
				   fd, 0);
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 0, offset_of(4)));
	EXPECT_GUEST_WRITES(vcpu, gpa_of(4), token(4));
	EXPECT_WORKS(gmem_convert(fd, 0, offset_of(8), GMEM_SHARED, NULL));
	host = kvm_mmap(offset_of(NR_PAGES), PROT_READ, MAP_SHARED, fd);
	EXPECT_EQ(token(4), host[offset_of(4) / sizeof(*host)]);
	EXPECT_WORKS(gmem_convert(fd, 0, offset_of(8), GMEM_PRIVATE, NULL));
	EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, offset_of(1)));
	EXPECT_CALLS(s);
	EXPECT_EQ(0, fdinfo_of(fd, "gmem-owned"));

	kvm_munmap(host, offset_of(NR_PAGES));
	close(fd);
	kvm_vm_free(vm);
	EXPECT_CALLS(s);
}

/* Conversion does not touch a broken page, nor what hardware has about it. */
TEST_F(convert, poisoned)
{
	struct own *s = &self->s;

	if (!may_break_memory())
		SKIP(return, WHY_NOT);

	guest_fills(_metadata, s, 0, 0, 8);
	EXPECT_CALLS(s, .private = 8);
	ASSERT_NE(0, owned_pfn(BAD));
	ASSERT_EQ(0, break_pfn(owned_pfn(BAD)));
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 7, .leaked = 1);
	EXPECT_EQ(BUS_MCEERR_AR, gmem_touch_read(word_of(s, BAD)));
	EXPECT_EQ(token(BAD + 1), READ_ONCE(*word_of(s, BAD + 1)));
	rmp_verify(_metadata, NULL);
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 7);
	EXPECT_WORKS(convert(s, 2, 3, GMEM_SHARED));
	EXPECT_CALLS(s, .shared = 2);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 5);
}

/* One that broke when it was the host's never becomes the guest's. */
TEST_F(convert, poisoned_when_shared)
{
	struct own *s = &self->s;
	u64 entry = 0, val;
	char text[32];
	unsigned int i;
	int fd, ret;

	if (!may_break_memory())
		SKIP(return, WHY_NOT);

	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	for (i = 0; i < 8; i++)
		WRITE_ONCE(*word_of(s, i), token(i));
	fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_EQ(sizeof(entry), pread(fd, &entry, sizeof(entry), (unsigned long)word_of(s, BAD) /
				       page_size * sizeof(entry)));
	close(fd);
	ASSERT_EQ(0, break_pfn(entry & GENMASK_ULL(54, 0)));
	ASSERT_EQ(1, fdinfo_of(s->fd, "gmem-poisoned"));

	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 7);
	EXPECT_OWNED(s, bits(0, 8) & ~bits(BAD, 1));
	EXPECT_EQ(-EHWPOISON, gmem_guest_read(s->vcpu, gpa_of(BAD), &val));
	EXPECT_CALLS(s);
	EXPECT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_at(s, SLOT, 20, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = 7, .shared = 7);
	own_close(s);
	EXPECT_CALLS(s, .reclaimed = 7);

	/* So it is nobody's, and can be mended. */
	snprintf(text, sizeof(text), "%#llx", (unsigned long long)(entry & GENMASK_ULL(54, 0)));
	for (i = 0; i < 100; i++) {
		ret = gmem_write_file(UNPOISON_PFN, text);
		if (ret != -EBUSY)
			break;
		usleep(10000);
	}
	EXPECT_EQ(0, ret);
}

/*
 * A random walk, in step with a model of what it should cost.  Files, memslots
 * and the window are small, so that everything meets everything.
 */
#define WALK_FILES	2
#define WALK_PAGES	24
#define WALK_SLOTS	5
#define WALK_STEPS	6000

struct wpage {
	bool private, present, owned;
	unsigned int at;	/* where it is owned */
	u64 val;		/* its first word */
};

struct wfile {
	int fd;
	u8 *mem;
	struct wpage page[WALK_PAGES];
};

struct wslot {
	int file;		/* -1: no memslot */
	bool dead;		/* the file was closed */
	unsigned int at, first, nr;
};

struct walk {
	struct own s;
	struct wfile file[WALK_FILES];
	struct wslot slot[WALK_SLOTS];
	u64 rnd;
	u64 token;
	unsigned int step;
	u64 *source;
	bool can_populate;
	struct calls want;	/* by the step */
	char what[80];		/* it is */
};

FIXTURE(walk)
{
	struct walk w;
};

static u64 env_number(const char *name, u64 otherwise)
{
	const char *val = getenv(name);

	return val ? strtoull(val, NULL, 0) : otherwise;
}

static unsigned int walk_pick(struct walk *w, unsigned int below)
{
	/* Marsaglia's xorshift, of 64 bits. */
	w->rnd ^= w->rnd << 13;
	w->rnd ^= w->rnd >> 7;
	w->rnd ^= w->rnd << 17;
	return (w->rnd >> 32) % below;
}

static void walk_range(struct walk *w, unsigned int *first, unsigned int *nr)
{
	*first = walk_pick(w, WALK_PAGES);
	*nr = 1 + walk_pick(w, WALK_PAGES - *first);
	/* Mostly short ones. */
	if (walk_pick(w, 4))
		*nr = min(*nr, 4u);
}

static void walk_open(struct walk *w, unsigned int file)
{
	const u64 flags = walk_pick(w, 2) ? MAPPABLE : MAPPABLE | INIT_SHARED;
	struct wfile *f = &w->file[file];
	unsigned int i;

	memset(f, 0, sizeof(*f));
	f->fd = vm_create_guest_memfd(w->s.vm, offset_of(WALK_PAGES), flags);
	f->mem = kvm_mmap(offset_of(WALK_PAGES), PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
	for (i = 0; i < WALK_PAGES; i++)
		f->page[i].private = !(flags & INIT_SHARED);
}

static void walk_close(struct wfile *f)
{
	kvm_munmap(f->mem, offset_of(WALK_PAGES));
	close(f->fd);
}

FIXTURE_SETUP(walk)
{
	struct walk *w = &self->w;
	unsigned int i;

	own_setup(&w->s, MAPPABLE);
	w->rnd = (env_number("GMEM_OWN_SEED", 1) * 0x9e3779b97f4a7c15ull) | 1;
	w->token = 0x1000;
	w->source = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	w->can_populate = populate_at(&w->s, 0, NULL, 1) != -ENOENT;
	for (i = 0; i < WALK_FILES; i++)
		walk_open(w, i);
	for (i = 0; i < WALK_SLOTS; i++)
		w->slot[i].file = -1;
}

FIXTURE_TEARDOWN(walk)
{
	struct walk *w = &self->w;
	unsigned int i;

	for (i = 0; i < WALK_FILES; i++)
		walk_close(&w->file[i]);
	kvm_munmap(w->source, page_size);
	own_teardown(_metadata, &w->s);
}

/* The memslot that has a page of a file, or NULL. */
static struct wslot *walk_slot_of(struct walk *w, unsigned int file, unsigned int page)
{
	struct wslot *slot;

	for (slot = w->slot; slot < w->slot + WALK_SLOTS; slot++)
		if (slot->file == (int)file && !slot->dead && page >= slot->first &&
		    page < slot->first + slot->nr)
			return slot;
	return NULL;
}

/* What is private, present and bound becomes the guest's. */
static void walk_settle(struct walk *w)
{
	struct wslot *slot;
	struct wpage *p;
	unsigned int i, j;

	for (i = 0; i < WALK_FILES; i++) {
		for (j = 0; j < WALK_PAGES; j++) {
			p = &w->file[i].page[j];
			slot = walk_slot_of(w, i, j);
			if (p->owned || !p->private || !p->present || !slot)
				continue;
			p->owned = true;
			p->at = slot->at + j - slot->first;
			w->want.private++;
		}
	}
}

__printf(2, 3) static void walk_says(struct walk *w, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(w->what, sizeof(w->what), fmt, args);
	va_end(args);
}

static const char *walk_where(const struct walk *w)
{
	static char text[100];

	snprintf(text, sizeof(text), "step %u: %s", w->step, w->what);
	return text;
}

#define WALK_LOG(w)	TH_LOG("%s", walk_where(w))

/* @call, a part of the step, returns 0. */
#define WALK_WORKS(w, call)						\
do {									\
	int __ret = (call), __err = errno;				\
									\
	ASSERT_EQ(0, __ret)						\
		TH_LOG("%s: %s", walk_where(w), strerror(__err));	\
} while (0)

static void walk_allocate(struct __test_metadata *_metadata, struct walk *w,
			  unsigned int file)
{
	unsigned int first, nr, i;

	walk_range(w, &first, &nr);
	walk_says(w, "file %u: allocate %u+%u", file, first, nr);
	WALK_WORKS(w, fallocate(w->file[file].fd, GMEM_ALLOC, offset_of(first), offset_of(nr)));
	for (i = first; i < first + nr; i++)
		w->file[file].page[i].present = true;
}

static void walk_punch(struct __test_metadata *_metadata, struct walk *w,
		       unsigned int file)
{
	unsigned int first, nr, i;
	struct wpage *p;

	walk_range(w, &first, &nr);
	walk_says(w, "file %u: punch %u+%u", file, first, nr);
	WALK_WORKS(w, fallocate(w->file[file].fd, GMEM_PUNCH, offset_of(first), offset_of(nr)));
	for (i = first; i < first + nr; i++) {
		p = &w->file[file].page[i];
		w->want.reclaimed += p->owned;
		*p = (struct wpage) { .private = p->private };
	}
}

static void walk_convert(struct __test_metadata *_metadata, struct walk *w,
			 unsigned int file)
{
	const bool private = walk_pick(w, 3);
	unsigned int first, nr, i;
	struct wpage *p;

	walk_range(w, &first, &nr);
	walk_says(w, "file %u: %u+%u to %s", file, first, nr, private ? "private" : "shared");
	WALK_WORKS(w, gmem_convert(w->file[file].fd, offset_of(first), offset_of(nr),
				   private ? GMEM_PRIVATE : GMEM_SHARED, NULL));
	for (i = first; i < first + nr; i++) {
		p = &w->file[file].page[i];
		p->private = private;
		if (!private && p->owned) {
			w->want.shared++;
			p->owned = false;
		}
	}
}

/* The host reads or writes a shared page, and is kept from a private one. */
static void walk_host(struct __test_metadata *_metadata, struct walk *w,
		      unsigned int file)
{
	const unsigned int page = walk_pick(w, WALK_PAGES);
	struct wpage *p = &w->file[file].page[page];
	u64 *word = (u64 *)(w->file[file].mem + offset_of(page));

	walk_says(w, "file %u: host accesses %u", file, page);
	if (p->private) {
		ASSERT_EQ(BUS_ADRERR, gmem_touch_read(word)) WALK_LOG(w);
		return;
	}

	p->present = true;
	ASSERT_EQ(p->val, READ_ONCE(*word)) WALK_LOG(w);
	if (walk_pick(w, 2))
		WRITE_ONCE(*word, p->val = ++w->token);
}

static struct wslot *walk_pick_slot(struct walk *w)
{
	return &w->slot[walk_pick(w, WALK_SLOTS)];
}

/* One with a file behind it, or NULL. */
static struct wslot *walk_usable_slot(struct walk *w)
{
	unsigned int i, first = walk_pick(w, WALK_SLOTS);
	struct wslot *slot;

	for (i = first; i < first + WALK_SLOTS; i++) {
		slot = &w->slot[i % WALK_SLOTS];
		if (slot->file >= 0 && !slot->dead)
			return slot;
	}
	return NULL;
}

/* The guest reads or writes a page, wherever it is. */
static void walk_guest(struct __test_metadata *_metadata, struct walk *w)
{
	struct wslot *slot = walk_usable_slot(w);
	unsigned int page, at;
	struct wpage *p;
	u64 val = 0;

	walk_says(w, "the guest has nothing to access");
	if (!slot)
		return;

	page = slot->first + walk_pick(w, slot->nr);
	at = slot->at + page - slot->first;
	p = &w->file[slot->file].page[page];
	p->present = true;
	if (walk_pick(w, 2)) {
		walk_says(w, "guest writes %u, file %d: %u", at, slot->file, page);
		p->val = ++w->token;
		ASSERT_EQ(0, gmem_guest_write(w->s.vcpu, gpa_of(at), p->val)) WALK_LOG(w);
	} else {
		walk_says(w, "guest reads %u, file %d: %u", at, slot->file, page);
		ASSERT_EQ(0, gmem_guest_read(w->s.vcpu, gpa_of(at), &val)) WALK_LOG(w);
		ASSERT_EQ(p->val, val) WALK_LOG(w);
	}
}

static void walk_prefault(struct __test_metadata *_metadata, struct walk *w)
{
	struct wslot *slot = walk_usable_slot(w);
	unsigned int from, nr, i;

	walk_says(w, "nothing to prefault");
	if (!slot)
		return;

	from = walk_pick(w, slot->nr);
	nr = 1 + walk_pick(w, min(slot->nr - from, 4u));
	walk_says(w, "prefault %u+%u", slot->at + from, nr);
	WALK_WORKS(w, prefault(&w->s, slot->at + from, nr));
	for (i = slot->first + from; i < slot->first + from + nr; i++)
		w->file[slot->file].page[i].present = true;
}

static void walk_populate(struct __test_metadata *_metadata, struct walk *w)
{
	struct wslot *slot = walk_usable_slot(w);
	unsigned int page, at;
	struct wpage *p;

	walk_says(w, "nothing to populate");
	if (!slot || !w->can_populate)
		return;

	page = slot->first + walk_pick(w, slot->nr);
	at = slot->at + page - slot->first;
	p = &w->file[slot->file].page[page];
	walk_says(w, "populate %u, file %d: %u", at, slot->file, page);
	*w->source = ++w->token;
	if (p->private) {
		p->present = true;
		p->val = w->token;
	}
	ASSERT_EQ(p->private ? 0 : -EINVAL, populate_at(&w->s, at, w->source, 1)) WALK_LOG(w);
}

static void walk_unbind(struct __test_metadata *_metadata, struct walk *w,
			struct wslot *slot)
{
	walk_says(w, "unbind slot %ld", (long)(slot - w->slot));
	WALK_WORKS(w, unbind(&w->s, SLOT + (slot - w->slot)));
	slot->file = -1;
}

static bool overlap(unsigned int a, unsigned int b, unsigned int nr_a, unsigned int nr_b)
{
	return a < b + nr_b && b < a + nr_a;
}

/* Whether @new can be: its gfns and its pages are in no other memslot. */
static bool walk_may_bind(struct walk *w, const struct wslot *new)
{
	const struct wslot *slot;

	for (slot = w->slot; slot < w->slot + WALK_SLOTS; slot++) {
		if (slot->file < 0)
			continue;
		if (overlap(slot->at, new->at, slot->nr, new->nr))
			return false;
		if (slot->file == new->file && !slot->dead &&
		    overlap(slot->first, new->first, slot->nr, new->nr))
			return false;
	}
	return true;
}

static void walk_bind(struct __test_metadata *_metadata, struct walk *w,
		      struct wslot *slot)
{
	struct wslot new = { .file = walk_pick(w, WALK_FILES) };
	struct wfile *f = &w->file[new.file];
	unsigned int tries, i, at;
	struct wpage *p;
	int nr;

	/* Now and then, one that will not do. */
	for (tries = 0; tries < 3; tries++) {
		new.first = walk_pick(w, WALK_PAGES);
		new.nr = 1 + walk_pick(w, WALK_PAGES - new.first);
		new.at = walk_pick(w, NR_WINDOW - new.nr + 1);
		/* Often where its first page is owned, or by the same distance. */
		p = &f->page[new.first];
		if (p->owned && p->at + new.nr <= NR_WINDOW && walk_pick(w, 2))
			new.at = p->at;
		if (walk_may_bind(w, &new))
			break;
	}

	nr = slot - w->slot;
	walk_says(w, "bind slot %d: file %d: %u+%u at %u", nr, new.file, new.first, new.nr,
		  new.at);
	if (!walk_may_bind(w, &new)) {
		EXPECT_FAILS(EEXIST, bind_fd(&w->s, f->fd, SLOT + nr, new.at, new.first, new.nr));
		return;
	}

	WALK_WORKS(w, bind_fd(&w->s, f->fd, SLOT + nr, new.at, new.first, new.nr));
	*slot = new;
	for (i = 0; i < new.nr; i++) {
		p = &f->page[new.first + i];
		at = new.at + i;
		if (!p->owned || p->at == at)
			continue;
		w->want.shared++;
		w->want.private++;
		p->at = at;
	}
}

static void walk_reopen(struct walk *w, unsigned int file)
{
	unsigned int i;

	walk_says(w, "file %u: close, and another", file);
	for (i = 0; i < WALK_PAGES; i++)
		w->want.reclaimed += w->file[file].page[i].owned;
	for (i = 0; i < WALK_SLOTS; i++)
		if (w->slot[i].file == (int)file)
			w->slot[i].dead = true;
	walk_close(&w->file[file]);
	walk_open(w, file);
}

static void walk_step(struct __test_metadata *_metadata, struct walk *w)
{
	const unsigned int file = walk_pick(w, WALK_FILES);
	struct wslot *slot = walk_pick_slot(w);

	switch (walk_pick(w, 100)) {
	case 0 ... 14:
		walk_allocate(_metadata, w, file);
		break;
	case 15 ... 24:
		walk_punch(_metadata, w, file);
		break;
	case 25 ... 39:
		walk_convert(_metadata, w, file);
		break;
	case 40 ... 44:
		walk_host(_metadata, w, file);
		break;
	case 45 ... 59:
		walk_guest(_metadata, w);
		break;
	case 60 ... 64:
		walk_prefault(_metadata, w);
		break;
	case 65 ... 69:
		walk_populate(_metadata, w);
		break;
	case 70 ... 98:
		if (slot->file < 0)
			walk_bind(_metadata, w, slot);
		else
			walk_unbind(_metadata, w, slot);
		break;
	default:
		walk_reopen(w, file);
	}
}

/* Every page at the gfn at which the model has it, and no other. */
static void walk_compare_dump(struct __test_metadata *_metadata, struct walk *w)
{
	int balance[NR_WINDOW + 1] = { };
	struct rmp_dump dump;
	unsigned int i, j;

	for (i = 0; i < WALK_FILES; i++)
		for (j = 0; j < WALK_PAGES; j++)
			if (w->file[i].page[j].owned)
				balance[w->file[i].page[j].at]++;
	rmp_dump_read(&dump);
	for (i = 0; i < dump.nr; i++)
		balance[window_of(dump.page[i].gfn)]--;
	free(dump.page);
	for (i = 0; i <= NR_WINDOW; i++)
		ASSERT_EQ(0, balance[i]) {
			WALK_LOG(w);
			TH_LOG("gfn %u of the window", i);
		}
}

static void walk_compare(struct __test_metadata *_metadata, struct walk *w)
{
	u64 owned, present, all_owned = 0, val;
	struct gmem_fdinfo info;
	const struct wpage *p;
	struct rmp_stats now;
	unsigned int i, j;

	rmp_read(&now);
	ASSERT_EQ(w->want.private, rmp_diff(&now, &w->s.last, MAKE_PRIVATE_PAGES)) WALK_LOG(w);
	ASSERT_EQ(w->want.shared, rmp_diff(&now, &w->s.last, MAKE_SHARED_PAGES)) WALK_LOG(w);
	ASSERT_EQ(w->want.reclaimed, rmp_diff(&now, &w->s.last, RECLAIM_PAGES)) WALK_LOG(w);
	ASSERT_EQ(0, rmp_diff(&now, &w->s.first, LEAKED)) WALK_LOG(w);
	ASSERT_EQ(0, rmp_diff(&now, &w->s.first, VIOLATIONS)) WALK_LOG(w);
	w->s.last = now;

	for (i = 0; i < WALK_FILES; i++) {
		owned = 0;
		present = 0;
		for (j = 0; j < WALK_PAGES; j++) {
			p = &w->file[i].page[j];
			owned += p->owned;
			present += p->present;
		}
		all_owned += owned;

		gmem_fdinfo_read(w->file[i].fd, &info);
		ASSERT_TRUE(gmem_fdinfo(&info, "gmem-owned", &val)) WALK_LOG(w);
		ASSERT_EQ(owned, val) WALK_LOG(w);
		ASSERT_TRUE(gmem_fdinfo(&info, "gmem-present", &val)) WALK_LOG(w);
		ASSERT_EQ(present, val) WALK_LOG(w);
	}
	ASSERT_EQ(all_owned, rmp_diff(&now, &w->s.first, OWNED)) WALK_LOG(w);
}

TEST_F_TIMEOUT(walk, random, 200)
{
	const u64 seed = env_number("GMEM_OWN_SEED", 1);
	const unsigned int steps = env_number("GMEM_OWN_STEPS", WALK_STEPS);
	struct walk *w = &self->w;
	struct calls sum = { };

	TH_LOG("GMEM_OWN_SEED=%llu GMEM_OWN_STEPS=%u", (unsigned long long)seed, steps);
	for (w->step = 0; w->step < steps; w->step++) {
		w->want = (struct calls) { };
		walk_step(_metadata, w);
		walk_settle(w);
		walk_compare(_metadata, w);
		sum.private += w->want.private;
		sum.shared += w->want.shared;
		sum.reclaimed += w->want.reclaimed;

		if (w->step % 16 == 0)
			walk_compare_dump(_metadata, w);
		if (w->step % 128 == 0) {
			rmp_verify(_metadata, NULL);
			ASSERT_EQ(0, _metadata->exit_code) WALK_LOG(w);
		}
	}

	/* It went through all of it. */
	if (steps >= WALK_STEPS) {
		EXPECT_LT(steps / 6, sum.private);
		EXPECT_LT(steps / 12, sum.shared);
		EXPECT_LT(steps / 12, sum.reclaimed);
	}
}

/*
 * Hooks that fail, each call of them in turn.
 */
FIXTURE(fail)
{
	struct own s;
};

#define FAIL_PRIVATE	"fail_make_private"
#define FAIL_SHARED	"fail_make_shared"
#define FAIL_RECLAIM	"fail_reclaim"

static int fail_write(const char *hook, const char *file, const char *val)
{
	char path[128];

	snprintf(path, sizeof(path), RMP "%s/%s", hook, file);
	return gmem_write_file(path, val);
}

static void fail_never(const char *hook)
{
	fail_write(hook, "probability", "0");
}

/* Fail the @nth call from now on, and @times - 1 of those after it; -1: all. */
static void fail_nth(const char *hook, unsigned int nth, int times)
{
	char text[16];

	fail_never(hook);
	fail_write(hook, "verbose", "0");
	fail_write(hook, "interval", "1");
	snprintf(text, sizeof(text), "%d", times);
	fail_write(hook, "times", text);
	/* A call takes one of it, down to the last one. */
	snprintf(text, sizeof(text), "%u", nth);
	fail_write(hook, "space", text);
	TEST_ASSERT(!fail_write(hook, "probability", "100"), "cannot make %s", hook);
}

FIXTURE_SETUP(fail)
{
	if (access(RMP FAIL_PRIVATE "/probability", W_OK))
		SKIP(return, "needs CONFIG_FAULT_INJECTION_DEBUG_FS");
	own_setup(&self->s, MAPPABLE);
}

FIXTURE_TEARDOWN(fail)
{
	fail_never(FAIL_PRIVATE);
	fail_never(FAIL_SHARED);
	fail_never(FAIL_RECLAIM);
	own_teardown(_metadata, &self->s);
}

/* All there is to know about a file but for its content. */
struct snapshot {
	u64 private, present, owned;
	struct rmp_dump dump;
};

static void snapshot_take(struct __test_metadata *_metadata, struct own *s, struct snapshot *now)
{
	u64 size, attributes;
	unsigned int i;

	now->private = 0;
	for (i = 0; i < NR_PAGES; i++) {
		size = page_size;
		ASSERT_WORKS(gmem_attributes(s->fd, offset_of(i), &size, &attributes));
		now->private |= (u64)!!attributes << i;
	}
	ASSERT_TRUE(gmem_present(s->fd, NR_PAGES, &now->present));
	now->owned = fdinfo_of(s->fd, "gmem-owned");
	rmp_dump_read(&now->dump);
}

static void expect_snapshot(struct __test_metadata *_metadata, struct own *s, unsigned int nth,
			    const struct snapshot *want)
{
	struct snapshot now;
	unsigned int i;

	snapshot_take(_metadata, s, &now);
	EXPECT_EQ(want->private, now.private) TH_LOG("call %u", nth);
	EXPECT_EQ(want->present, now.present) TH_LOG("call %u", nth);
	EXPECT_EQ(want->owned, now.owned) TH_LOG("call %u", nth);
	EXPECT_EQ(want->dump.nr, now.dump.nr) TH_LOG("call %u", nth);
	for (i = 0; i < min(want->dump.nr, now.dump.nr); i++) {
		EXPECT_EQ(want->dump.page[i].pfn, now.dump.page[i].pfn) TH_LOG("call %u", nth);
		EXPECT_EQ(want->dump.page[i].gfn, now.dump.page[i].gfn) TH_LOG("call %u", nth);
		EXPECT_EQ(want->dump.page[i].vm, now.dump.page[i].vm) TH_LOG("call %u", nth);
	}
	free(now.dump.page);
}

/* Fragments, with holes between them: as many calls at least. */
static const u64 present_pages = 0xb367;
#define NR_FRAGMENTS	5
#define NR_PRESENT	10

static bool is_present(unsigned int page)
{
	return present_pages >> page & 1;
}

/* The guest finds what is in the fragments, private or shared, at @at. */
static void expect_fragments(struct __test_metadata *_metadata, struct own *s, unsigned int at)
{
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		if (is_present(i))
			guest_finds(_metadata, s, at + i, i, 1);
}

/* Fill them, when they are shared, and make them @attributes. */
static void setup_fragments(struct __test_metadata *_metadata, struct own *s, u64 attributes)
{
	unsigned int i;

	ASSERT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	for (i = 0; i < NR_PAGES; i++)
		if (is_present(i))
			WRITE_ONCE(*word_of(s, i), token(i));
	ASSERT_WORKS(convert(s, 0, NR_PAGES, attributes));
	rmp_read(&s->last);
}

struct failing {
	const char *hook;
	int stat;				/* its calls */
	int (*work)(struct own *s);		/* 0, or -1 and errno */
	/* Content and the like, when it has failed; can be NULL. */
	void (*check)(struct __test_metadata *_metadata, struct own *s);
};

/*
 * Let the first call fail, then the second and so on, until the work has no such
 * call anymore and gets done.  EXPECT_CALLS() is about that last time.
 */
static void expect_undone(struct __test_metadata *_metadata, struct own *s,
			  const struct failing *f)
{
	struct rmp_stats was, now;
	struct snapshot before;
	unsigned int nth;
	int ret, err;

	snapshot_take(_metadata, s, &before);
	for (nth = 1; nth < 10 * NR_PAGES; nth++) {
		rmp_read(&was);
		fail_nth(f->hook, nth, 1);
		ret = f->work(s);
		err = errno;
		fail_never(f->hook);
		rmp_read(&now);
		if (!ret)
			break;

		EXPECT_EQ(EIO, err) TH_LOG("call %u: %s", nth, strerror(err));
		EXPECT_EQ(1, rmp_diff(&now, &was, INJECTED)) TH_LOG("call %u", nth);
		/* Whatever was done was undone, and nothing else was done. */
		EXPECT_EQ(rmp_diff(&now, &was, MAKE_PRIVATE_PAGES),
			  rmp_diff(&now, &was, MAKE_SHARED_PAGES)) TH_LOG("call %u", nth);
		EXPECT_EQ(0, rmp_diff(&now, &was, RECLAIM)) TH_LOG("call %u", nth);
		EXPECT_EQ(0, rmp_diff(&now, &was, LEAKED)) TH_LOG("call %u", nth);
		EXPECT_EQ(0, rmp_diff(&now, &was, OWNED)) TH_LOG("call %u", nth);
		EXPECT_EQ(0, rmp_diff(&now, &was, VIOLATIONS)) TH_LOG("call %u", nth);
		expect_snapshot(_metadata, s, nth, &before);
		if (f->check)
			f->check(_metadata, s);
		rmp_verify(_metadata, NULL);
	}
	free(before.dump.page);

	/* Each call that there is had its turn. */
	EXPECT_EQ(0, rmp_diff(&now, &was, INJECTED));
	EXPECT_EQ(nth - 1, rmp_diff(&now, &was, f->stat));
	EXPECT_LT(NR_FRAGMENTS, nth);
	s->last = was;
}

static int all_to_private(struct own *s)
{
	return convert(s, 0, NR_PAGES, GMEM_PRIVATE);
}

static int all_to_shared(struct own *s)
{
	return convert(s, 0, NR_PAGES, GMEM_SHARED);
}

static void check_conversion(struct __test_metadata *_metadata, struct own *s)
{
	EXPECT_GT(offset_of(NR_PAGES), s->error_offset);
	EXPECT_EQ(0, s->error_offset % page_size);
	expect_fragments(_metadata, s, 0);
}

TEST_F(fail, to_private)
{
	struct own *s = &self->s;
	const struct failing f = { FAIL_PRIVATE, MAKE_PRIVATE, all_to_private, check_conversion };

	ASSERT_WORKS(bind_all(s));
	setup_fragments(_metadata, s, GMEM_SHARED);
	expect_undone(_metadata, s, &f);
	EXPECT_CALLS(s, .private = NR_PRESENT);
	EXPECT_OWNED(s, present_pages);
	expect_fragments(_metadata, s, 0);
	EXPECT_CALLS(s);
}

/* Some of it is private already. */
TEST_F(fail, to_private_in_part)
{
	struct own *s = &self->s;
	const struct failing f = { FAIL_PRIVATE, MAKE_PRIVATE, all_to_private, check_conversion };

	ASSERT_WORKS(bind_all(s));
	setup_fragments(_metadata, s, GMEM_SHARED);
	ASSERT_WORKS(convert(s, 1, 1, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 1);
	ASSERT_WORKS(convert(s, 3, 3, GMEM_PRIVATE));
	EXPECT_CALLS(s, .private = 1);
	expect_undone(_metadata, s, &f);
	EXPECT_CALLS(s, .private = NR_PRESENT - 2);
	EXPECT_OWNED(s, present_pages);
	expect_fragments(_metadata, s, 0);
	EXPECT_CALLS(s);
}

TEST_F(fail, to_shared)
{
	struct own *s = &self->s;
	const struct failing f = { FAIL_SHARED, MAKE_SHARED, all_to_shared, check_conversion };

	ASSERT_WORKS(bind_all(s));
	setup_fragments(_metadata, s, GMEM_PRIVATE);
	expect_undone(_metadata, s, &f);
	EXPECT_CALLS(s, .shared = NR_PRESENT);
	EXPECT_OWNED(s, 0);
	expect_fragments(_metadata, s, 0);
	EXPECT_CALLS(s);
}

static int bind_elsewhere(struct own *s)
{
	return bind_at(s, SLOT, 40, 0, NR_PAGES);
}

TEST_F(fail, bind)
{
	struct own *s = &self->s;
	const struct failing f = { FAIL_PRIVATE, MAKE_PRIVATE, bind_elsewhere };

	setup_fragments(_metadata, s, GMEM_PRIVATE);
	EXPECT_OWNED(s, 0);
	expect_undone(_metadata, s, &f);
	EXPECT_CALLS(s, .private = NR_PRESENT);
	EXPECT_OWNED(s, present_pages << 40);
	expect_fragments(_metadata, s, 40);
	EXPECT_CALLS(s);
}

/* The old place is as good as ever. */
static void check_old_place(struct __test_metadata *_metadata, struct own *s)
{
	rmp_read(&s->last);
	ASSERT_WORKS(bind_all(s));
	expect_fragments(_metadata, s, 0);
	EXPECT_CALLS(s);
	ASSERT_WORKS(unbind(s, SLOT));
}

/* Of a rebind, fail each call of one hook. */
static void fail_rebind(struct __test_metadata *_metadata, struct own *s,
			const struct failing *f)
{
	ASSERT_WORKS(bind_all(s));
	setup_fragments(_metadata, s, GMEM_PRIVATE);
	EXPECT_OWNED(s, present_pages);
	ASSERT_WORKS(unbind(s, SLOT));

	expect_undone(_metadata, s, f);
	EXPECT_CALLS(s, .private = NR_PRESENT, .shared = NR_PRESENT);
	EXPECT_OWNED(s, present_pages << 40);
	expect_fragments(_metadata, s, 40);
	EXPECT_CALLS(s);
}

TEST_F(fail, rebind_giving_back)
{
	const struct failing f = { FAIL_SHARED, MAKE_SHARED, bind_elsewhere, check_old_place };

	fail_rebind(_metadata, &self->s, &f);
}

TEST_F(fail, rebind_taking)
{
	const struct failing f = { FAIL_PRIVATE, MAKE_PRIVATE, bind_elsewhere, check_old_place };

	fail_rebind(_metadata, &self->s, &f);
}

/* Pages that are the guest's at two distances, and some that are not its own. */
TEST_F(fail, rebind_mixed)
{
	struct own *s = &self->s;
	const struct failing f = { FAIL_PRIVATE, MAKE_PRIVATE, bind_elsewhere };
	const u64 low = present_pages & bits(0, 6);
	const u64 high = present_pages & bits(8, 8) & ~bits(12, 2);

	setup_fragments(_metadata, s, GMEM_PRIVATE);
	ASSERT_WORKS(bind_at(s, SLOT, 0, 0, 6));
	ASSERT_WORKS(bind_at(s, SLOT + 1, 20, 8, 8));
	ASSERT_WORKS(convert(s, 12, 2, GMEM_SHARED));
	ASSERT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(unbind(s, SLOT + 1));
	ASSERT_WORKS(convert(s, 12, 2, GMEM_PRIVATE));
	rmp_read(&s->last);
	EXPECT_OWNED(s, low | high << 12);

	expect_undone(_metadata, s, &f);
	EXPECT_CALLS(s, .private = NR_PRESENT,
		     .shared = __builtin_popcountll(low) + __builtin_popcountll(high));
	EXPECT_OWNED(s, present_pages << 40);
	expect_fragments(_metadata, s, 40);
	EXPECT_CALLS(s);
}

/* fallocate() may have come some of the way; what it left is mended. */
TEST_F(fail, allocate)
{
	struct own *s = &self->s;
	struct rmp_stats was, now;
	unsigned int nth;
	u64 owned;

	ASSERT_WORKS(bind_all(s));
	ASSERT_WORKS(allocate(s, 3, 1));
	ASSERT_WORKS(allocate(s, 9, 2));
	for (nth = 1; nth < 2 * NR_PAGES; nth++) {
		rmp_read(&was);
		fail_nth(FAIL_PRIVATE, nth, 1);
		if (!allocate(s, 0, NR_PAGES))
			break;
		EXPECT_EQ(EIO, errno);
		fail_never(FAIL_PRIVATE);

		rmp_read(&now);
		owned = fdinfo_of(s->fd, "gmem-owned");
		EXPECT_EQ(1, rmp_diff(&now, &was, INJECTED));
		EXPECT_EQ(owned - 3, rmp_diff(&now, &was, MAKE_PRIVATE_PAGES) -
				     rmp_diff(&now, &was, MAKE_SHARED_PAGES));
		EXPECT_GT(NR_PAGES, owned);
		EXPECT_LE(owned, fdinfo_of(s->fd, "gmem-present"));
		rmp_verify(_metadata, NULL);

		/* Again, or by the guest, or by whoever comes. */
		s->last = now;
		switch (nth % 3) {
		case 0:
			EXPECT_WORKS(allocate(s, 0, NR_PAGES));
			break;
		case 1:
			EXPECT_WORKS(prefault(s, 0, NR_PAGES));
			break;
		default:
			guest_finds_zeroes(_metadata, s, 0, NR_PAGES);
		}
		EXPECT_CALLS(s, .private = NR_PAGES - owned);
		EXPECT_OWNED(s, bits(0, NR_PAGES));

		ASSERT_WORKS(punch(s, 0, NR_PAGES));
		EXPECT_CALLS(s, .reclaimed = NR_PAGES);
		ASSERT_WORKS(allocate(s, 3, 1));
		ASSERT_WORKS(allocate(s, 9, 2));
		EXPECT_CALLS(s, .private = 3);
	}
	fail_never(FAIL_PRIVATE);
	s->last = was;
	EXPECT_CALLS(s, .private = NR_PAGES - 3);

	/* Three holes, three calls at least.  More or fewer pages are in a row each time. */
	EXPECT_LE(3, nth - 1);
	EXPECT_GE(nth - 1, rmp_diff(&s->last, &was, MAKE_PRIVATE));
}

/* What a failed allocation left can be given up, converted, and bound anew. */
TEST_F(fail, leftovers)
{
	struct own *s = &self->s;
	u64 owned;

	ASSERT_WORKS(bind_all(s));
	rmp_read(&s->last);
	fail_nth(FAIL_PRIVATE, 1, -1);
	EXPECT_FAILS(EIO, allocate(s, 0, NR_PAGES));
	fail_never(FAIL_PRIVATE);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, 0);
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	EXPECT_CALLS(s);
	EXPECT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	owned = fdinfo_of(s->fd, "gmem-present");
	EXPECT_CALLS(s, .private = owned);
	EXPECT_WORKS(punch(s, 0, NR_PAGES));
	EXPECT_CALLS(s, .reclaimed = owned);

	fail_nth(FAIL_PRIVATE, 1, -1);
	EXPECT_FAILS(EIO, allocate(s, 0, NR_PAGES));
	fail_never(FAIL_PRIVATE);
	EXPECT_WORKS(unbind(s, SLOT));
	owned = fdinfo_of(s->fd, "gmem-present");
	ASSERT_WORKS(bind_all(s));
	EXPECT_CALLS(s, .private = owned);

	EXPECT_WORKS(punch(s, 0, NR_PAGES));
	EXPECT_CALLS(s, .reclaimed = owned);
	fail_nth(FAIL_PRIVATE, 1, -1);
	EXPECT_FAILS(EIO, allocate(s, 0, NR_PAGES));
	fail_never(FAIL_PRIVATE);
	EXPECT_WORKS(punch(s, 0, NR_PAGES));
	EXPECT_CALLS(s);
}

TEST_F(fail, faults)
{
	struct own *s = &self->s;
	struct kvm_pre_fault_memory range = {
		.gpa = gpa_of(4),
		.size = page_size,
	};

	ASSERT_WORKS(bind_all(s));
	fail_nth(FAIL_PRIVATE, 1, 2);
	EXPECT_EQ(-EIO, gmem_guest_write(s->vcpu, gpa_of(3), token(3)));
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, 0);
	EXPECT_EQ(-EIO, gmem_guest_run(s->vcpu));
	EXPECT_CALLS(s);
	EXPECT_EQ(0, gmem_guest_run(s->vcpu));
	EXPECT_CALLS(s, .private = 1);
	guest_finds(_metadata, s, 3, 3, 1);
	EXPECT_OWNED(s, bits(3, 1));

	fail_nth(FAIL_PRIVATE, 1, 1);
	EXPECT_FAILS(EIO, __vcpu_ioctl(s->vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_CALLS(s);
	EXPECT_WORKS(__vcpu_ioctl(s->vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_CALLS(s, .private = 1);
	guest_finds_zeroes(_metadata, s, 4, 1);

	/* A guest that has the page does not ask again. */
	fail_nth(FAIL_PRIVATE, 1, -1);
	ASSERT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(bind_all(s));
	guest_finds(_metadata, s, 3, 3, 1);
	fail_never(FAIL_PRIVATE);
	EXPECT_CALLS(s);
}

TEST_F(fail, populate)
{
	struct own *s = &self->s;
	u64 *source;
	int ret;

	ASSERT_WORKS(bind_all(s));
	source = kvm_mmap(2 * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	source[0] = token(0);
	source[page_size / sizeof(*source)] = token(1);

	fail_nth(FAIL_PRIVATE, 1, 1);
	ret = populate_at(s, 0, source, 1);
	if (ret == -ENOENT)
		SKIP(return, "needs CONFIG_KVM_GUEST_MEMFD_DEBUG");
	EXPECT_EQ(-EIO, ret);
	EXPECT_CALLS(s);
	EXPECT_OWNED(s, 0);
	EXPECT_EQ(0, populate_at(s, 0, source, 1));
	EXPECT_CALLS(s, .private = 1);
	guest_finds(_metadata, s, 0, 0, 1);

	/* As far as it got. */
	ASSERT_WORKS(punch(s, 0, 1));
	EXPECT_CALLS(s, .reclaimed = 1);
	fail_nth(FAIL_PRIVATE, 2, 1);
	EXPECT_EQ(-EIO, populate_at(s, 0, source, 2));
	EXPECT_CALLS(s, .private = 1);
	EXPECT_OWNED(s, bits(0, 1));
	EXPECT_EQ(0, populate_at(s, 0, source, 2));
	EXPECT_CALLS(s, .private = 1);
	guest_finds(_metadata, s, 0, 0, 2);
	kvm_munmap(source, 2 * page_size);
}

/*
 * To undo something can fail in its turn.  Then the VM is over; its pages are its
 * own until they are given up, and nobody else's.
 */
static void expect_over(struct __test_metadata *_metadata, struct own *s, u64 owned)
{
	fail_never(FAIL_PRIVATE);
	fail_never(FAIL_SHARED);
	EXPECT_EQ(owned, fdinfo_of(s->fd, "gmem-owned"));
	EXPECT_FAILS(EIO, unbind(s, SLOT));
	EXPECT_FAILS(EIO, convert(s, 0, NR_PAGES, GMEM_SHARED));
	rmp_read(&s->last);
	EXPECT_WORKS(punch(s, 0, NR_PAGES));
	EXPECT_CALLS(s, .reclaimed = owned);
}

static void setup_two_runs(struct __test_metadata *_metadata, struct own *s)
{
	ASSERT_WORKS(convert(s, 0, NR_PAGES, GMEM_PRIVATE));
	ASSERT_WORKS(allocate(s, 0, 1));
	ASSERT_WORKS(allocate(s, 2, 1));
}

TEST_F(fail, undo_of_bind)
{
	struct own *s = &self->s;

	setup_two_runs(_metadata, s);
	fail_nth(FAIL_PRIVATE, 2, 1);
	fail_nth(FAIL_SHARED, 1, 1);
	EXPECT_FAILS(EIO, bind_all(s));
	EXPECT_FAILS(EIO, convert(s, 0, 1, GMEM_SHARED));
	expect_over(_metadata, s, 1);
}

TEST_F(fail, undo_of_rebind)
{
	struct own *s = &self->s;

	setup_two_runs(_metadata, s);
	ASSERT_WORKS(bind_all(s));
	ASSERT_WORKS(unbind(s, SLOT));
	EXPECT_CALLS(s, .private = 2);
	fail_nth(FAIL_PRIVATE, 2, 1);
	fail_nth(FAIL_SHARED, 3, 1);
	EXPECT_FAILS(EIO, bind_at(s, SLOT, 20, 0, NR_PAGES));
	expect_over(_metadata, s, 2);
}

TEST_F(fail, undo_of_conversion)
{
	struct own *s = &self->s;

	ASSERT_WORKS(bind_all(s));
	ASSERT_WORKS(convert(s, 0, NR_PAGES, GMEM_SHARED));
	EXPECT_EQ(0, gmem_touch_write(word_of(s, 0), 1));
	EXPECT_EQ(0, gmem_touch_write(word_of(s, 2), 1));
	fail_nth(FAIL_PRIVATE, 2, 1);
	fail_nth(FAIL_SHARED, 1, 1);
	EXPECT_FAILS(EIO, convert(s, 0, NR_PAGES, GMEM_PRIVATE));

	/* What is the guest's is not for the host, whatever the state. */
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(word_of(s, 0)));
	EXPECT_EQ(0, gmem_touch_read(word_of(s, 2)));
	fail_never(FAIL_PRIVATE);
	ASSERT_WORKS(convert(s, 4, 4, GMEM_PRIVATE));
	expect_over(_metadata, s, 1);
	EXPECT_EQ(0, gmem_touch_read(word_of(s, 0)));
}

/*
 * Two hooks in a row fail: a page is not moved, and cannot be moved back.  If nobody
 * has it, it is the host's for the time being, private for all that, and keeps its
 * content; a memslot that is bound takes it, and so does the guest's next fault.
 */
#define NR_SINGLES	5

/* Every other page, so that each of them is a run. */
static unsigned int single(unsigned int nr)
{
	return 2 * nr;
}

/* The first @nr of them. */
static u64 singles(unsigned int nr)
{
	u64 map = 0;

	while (nr--)
		map |= bits(single(nr), 1);
	return map;
}

static void singles_fill(struct __test_metadata *_metadata, struct own *s)
{
	unsigned int i;

	for (i = 0; i < NR_SINGLES; i++)
		guest_fills(_metadata, s, single(i), single(i), 1);
}

/* The guest finds them at @at, and the host finds none. */
static void singles_find(struct __test_metadata *_metadata, struct own *s, unsigned int at)
{
	unsigned int i;

	for (i = 0; i < NR_SINGLES; i++) {
		guest_finds(_metadata, s, at + single(i), single(i), 1);
		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(word_of(s, single(i))));
	}
}

static void setup_singles(struct __test_metadata *_metadata, struct own *s)
{
	ASSERT_WORKS(bind_all(s));
	singles_fill(_metadata, s);
	EXPECT_CALLS(s, .private = NR_SINGLES);
	EXPECT_OWNED(s, singles(NR_SINGLES));
}

/* Whoever has them, all of them are there and private. */
static void expect_all_private(struct __test_metadata *_metadata, struct own *s)
{
	unsigned int i;

	EXPECT_EQ(NR_PAGES, fdinfo_of(s->fd, "gmem-private"));
	EXPECT_EQ(NR_SINGLES, fdinfo_of(s->fd, "gmem-present"));
	for (i = 0; i < NR_SINGLES; i++)
		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(word_of(s, single(i)))) TH_LOG("page %u", i);
	rmp_verify(_metadata, NULL);
}

/*
 * What can be done where nobody has @nr of the pages, and no memslot is bound.  In the
 * end, the guest has all of them at the old place, and no memslot is bound.
 */
enum again {
	AGAIN_OLD_PLACE,
	AGAIN_ELSEWHERE,
	AGAIN_BY_CONVERSION,
	AGAIN_AS_NEW,
	NR_AGAIN,
};

static void take_again(struct __test_metadata *_metadata, struct own *s, u64 owned,
		       enum again how)
{
	const unsigned int nr = NR_SINGLES - __builtin_popcountll(owned);
	unsigned int i;

	switch (how) {
	case AGAIN_OLD_PLACE:
		fail_nth(FAIL_PRIVATE, nr, 1);
		EXPECT_FAILS(EIO, bind_all(s));
		EXPECT_CALLS(s, .private = nr - 1, .shared = nr - 1);
		EXPECT_OWNED(s, owned);
		ASSERT_WORKS(bind_all(s));
		EXPECT_CALLS(s, .private = nr);
		break;
	case AGAIN_ELSEWHERE:
		ASSERT_WORKS(bind_elsewhere(s));
		EXPECT_CALLS(s, .private = NR_SINGLES, .shared = NR_SINGLES - nr);
		EXPECT_OWNED(s, singles(NR_SINGLES) << 40);
		singles_find(_metadata, s, 40);
		ASSERT_WORKS(unbind(s, SLOT));
		ASSERT_WORKS(bind_all(s));
		EXPECT_CALLS(s, .private = NR_SINGLES, .shared = NR_SINGLES);
		break;
	case AGAIN_BY_CONVERSION:
		EXPECT_WORKS(all_to_shared(s));
		EXPECT_CALLS(s, .shared = NR_SINGLES - nr);
		for (i = 0; i < NR_SINGLES; i++)
			EXPECT_EQ(token(single(i)), READ_ONCE(*word_of(s, single(i))));
		EXPECT_WORKS(all_to_private(s));
		EXPECT_CALLS(s);
		ASSERT_WORKS(bind_all(s));
		EXPECT_CALLS(s, .private = NR_SINGLES);
		break;
	default:
		EXPECT_WORKS(punch(s, 0, NR_PAGES));
		EXPECT_CALLS(s, .reclaimed = NR_SINGLES - nr);
		ASSERT_WORKS(bind_all(s));
		for (i = 0; i < NR_SINGLES; i++)
			guest_finds_zeroes(_metadata, s, single(i), 1);
		singles_fill(_metadata, s);
		EXPECT_CALLS(s, .private = NR_SINGLES);
	}

	EXPECT_OWNED(s, singles(NR_SINGLES));
	singles_find(_metadata, s, 0);
	EXPECT_CALLS(s);
	ASSERT_WORKS(unbind(s, SLOT));
	EXPECT_CALLS(s);
}

/*
 * Page @nth does not get to its new place, nor back; nor do @more - 1 of those before it,
 * which were there already.
 */
TEST_F_TIMEOUT(fail, two_in_a_rebind, 100)
{
	struct own *s = &self->s;
	unsigned int nth, more;
	u64 owned;

	setup_singles(_metadata, s);
	ASSERT_WORKS(unbind(s, SLOT));
	for (nth = 1; nth <= NR_SINGLES; nth++) {
		for (more = 1; more <= nth; more++) {
			fail_nth(FAIL_PRIVATE, nth, 1 + more);
			EXPECT_FAILS(EIO, bind_elsewhere(s));
			fail_never(FAIL_PRIVATE);
			EXPECT_CALLS(s, .shared = nth + nth - 1,
				     .private = nth - 1 + nth - more);
			owned = singles(NR_SINGLES) & ~singles(more - 1) &
				~bits(single(nth - 1), 1);
			EXPECT_OWNED(s, owned);
			expect_all_private(_metadata, s);
			take_again(_metadata, s, owned, (nth + more) % NR_AGAIN);
			ASSERT_EQ(0, _metadata->exit_code) TH_LOG("call %u, %u more", nth, more);
		}
	}
}

/* The same of runs of pages, however many: nobody has what was moved until then. */
TEST_F(fail, two_in_a_rebind_of_runs)
{
	struct own *s = &self->s;
	struct rmp_stats now;
	unsigned int nth, nr;
	u64 owned;
	int ret;

	ASSERT_WORKS(bind_all(s));
	setup_fragments(_metadata, s, GMEM_PRIVATE);
	EXPECT_OWNED(s, present_pages);
	ASSERT_WORKS(unbind(s, SLOT));
	for (nth = 1; nth < 2 * NR_PAGES; nth++) {
		fail_nth(FAIL_PRIVATE, nth, -1);
		ret = bind_elsewhere(s);
		if (!ret)
			break;

		EXPECT_EQ(EIO, errno);
		fail_never(FAIL_PRIVATE);
		rmp_read(&now);
		nr = rmp_diff(&s->last, &now, OWNED);
		EXPECT_LE(nth, nr);
		EXPECT_EQ(rmp_diff(&now, &s->last, MAKE_SHARED_PAGES) - nr,
			  rmp_diff(&now, &s->last, MAKE_PRIVATE_PAGES));
		for (owned = present_pages; nr; nr--)
			owned &= owned - 1;
		EXPECT_OWNED(s, owned);
		rmp_verify(_metadata, NULL);

		nr = rmp_diff(&s->last, &now, OWNED);
		s->last = now;
		ASSERT_WORKS(bind_all(s));
		EXPECT_CALLS(s, .private = nr);
		expect_fragments(_metadata, s, 0);
		EXPECT_CALLS(s);
		ASSERT_WORKS(unbind(s, SLOT));
		ASSERT_EQ(0, _metadata->exit_code) TH_LOG("call %u", nth);
	}
	fail_never(FAIL_PRIVATE);

	/* Each run had its turn. */
	EXPECT_LT(NR_FRAGMENTS, nth);
	EXPECT_CALLS(s, .private = NR_PRESENT, .shared = NR_PRESENT);
	EXPECT_OWNED(s, present_pages << 40);
	expect_fragments(_metadata, s, 40);
}

static int bind_blocks(struct own *s, int fd, u64 gpa)
{
	return __vm_set_user_memory_region2(s->vm, SLOT, KVM_MEM_GUEST_MEMFD, gpa,
					    2 * NR_LARGE * page_size, NULL, fd, 0);
}

/* The guest finds its token in each page of two blocks, which hardware has as two. */
static void expect_blocks(struct __test_metadata *_metadata, struct own *s, int fd, u64 gpa)
{
	struct rmp_stats now;
	u64 bad;

	EXPECT_EQ(0, gmem_guest_check(s->vcpu, gpa, 2 * NR_LARGE, page_size, token(0), 1, &bad));
	EXPECT_EQ(0, bad);
	EXPECT_CALLS(s);
	EXPECT_EQ(2 * NR_LARGE, fdinfo_of(fd, "gmem-owned"));
	rmp_read(&now);
	EXPECT_EQ(2, rmp_diff(&now, &s->first, OWNED_2M));
	rmp_verify(_metadata, NULL);
}

/* The same of blocks: a run is 2 MiB. */
TEST_F(fail, two_in_a_rebind_of_blocks)
{
	const u64 size = 2 * NR_LARGE * page_size, elsewhere = LARGE + 4 * SZ_2M;
	struct own *s = &self->s;
	int fd;

	virt_map(s->vm, LARGE, LARGE, 2 * NR_LARGE);
	virt_map(s->vm, elsewhere, elsewhere, 2 * NR_LARGE);
	fd = vm_create_guest_memfd(s->vm, size, s->flags | GUEST_MEMFD_BLOCK_SIZE_2MB);
	ASSERT_WORKS(bind_blocks(s, fd, LARGE));
	ASSERT_WORKS(fallocate(fd, GMEM_ALLOC, 0, size));
	EXPECT_CALLS(s, .private = 2 * NR_LARGE);
	ASSERT_EQ(0, gmem_guest_fill(s->vcpu, LARGE, 2 * NR_LARGE, page_size, token(0)));
	ASSERT_EQ(2, fdinfo_of(fd, "gmem-blocks-whole")) TH_LOG("no memory for blocks");
	expect_blocks(_metadata, s, fd, LARGE);

	/* The first is moved nowhere. */
	ASSERT_WORKS(unbind(s, SLOT));
	fail_nth(FAIL_PRIVATE, 1, 2);
	EXPECT_FAILS(EIO, bind_blocks(s, fd, elsewhere));
	fail_never(FAIL_PRIVATE);
	EXPECT_CALLS(s, .shared = NR_LARGE);
	EXPECT_EQ(NR_LARGE, fdinfo_of(fd, "gmem-owned"));
	rmp_verify(_metadata, NULL);
	ASSERT_WORKS(bind_blocks(s, fd, LARGE));
	EXPECT_CALLS(s, .private = NR_LARGE);
	expect_blocks(_metadata, s, fd, LARGE);

	/* The second one is not, and the first does not get back. */
	ASSERT_WORKS(unbind(s, SLOT));
	fail_nth(FAIL_PRIVATE, 2, 3);
	EXPECT_FAILS(EIO, bind_blocks(s, fd, elsewhere));
	fail_never(FAIL_PRIVATE);
	EXPECT_CALLS(s, .private = NR_LARGE, .shared = 3 * NR_LARGE);
	EXPECT_EQ(0, fdinfo_of(fd, "gmem-owned"));
	rmp_verify(_metadata, NULL);
	ASSERT_WORKS(bind_blocks(s, fd, elsewhere));
	EXPECT_CALLS(s, .private = 2 * NR_LARGE);
	expect_blocks(_metadata, s, fd, elsewhere);

	close(fd);
	EXPECT_CALLS(s, .reclaimed = 2 * NR_LARGE);
}

/* All that was owned is moved, and what comes new is not taken. */
TEST_F(fail, two_in_a_rebind_that_takes)
{
	struct own *s = &self->s;

	setup_two_runs(_metadata, s);
	ASSERT_WORKS(bind_all(s));
	guest_fills(_metadata, s, 0, 0, 1);
	guest_fills(_metadata, s, 2, 2, 1);
	ASSERT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(allocate(s, 4, 1));
	ASSERT_WORKS(allocate(s, 6, 1));
	EXPECT_CALLS(s, .private = 2);

	/* Two moved, one new; then the other new one, and the first to be moved back. */
	fail_nth(FAIL_PRIVATE, 4, 2);
	EXPECT_FAILS(EIO, bind_elsewhere(s));
	fail_never(FAIL_PRIVATE);
	EXPECT_CALLS(s, .shared = 5, .private = 4);
	EXPECT_OWNED(s, bits(2, 1));
	rmp_verify(_metadata, NULL);

	ASSERT_WORKS(bind_elsewhere(s));
	EXPECT_CALLS(s, .shared = 1, .private = 4);
	EXPECT_OWNED(s, (bits(0, 1) | bits(2, 1) | bits(4, 1) | bits(6, 1)) << 40);
	guest_finds(_metadata, s, 40, 0, 1);
	guest_finds(_metadata, s, 42, 2, 1);
	guest_finds_zeroes(_metadata, s, 44, 1);
	guest_finds_zeroes(_metadata, s, 46, 1);
	EXPECT_CALLS(s);
}

/* All stays private, in memslots: what nobody has is taken by the guest's faults. */
TEST_F_TIMEOUT(fail, two_in_a_conversion, 100)
{
	struct own *s = &self->s;
	unsigned int nth, more;
	u64 val;

	setup_singles(_metadata, s);
	for (nth = 2; nth <= NR_SINGLES; nth++) {
		for (more = 1; more < nth; more++) {
			fail_nth(FAIL_SHARED, nth, 1);
			fail_nth(FAIL_PRIVATE, 1, more);
			EXPECT_FAILS(EIO, all_to_shared(s));
			EXPECT_EQ(offset_of(single(nth - 1)), s->error_offset);
			fail_never(FAIL_SHARED);
			fail_never(FAIL_PRIVATE);
			EXPECT_CALLS(s, .shared = nth - 1, .private = nth - 1 - more);
			EXPECT_OWNED(s, singles(NR_SINGLES) & ~singles(more));
			expect_all_private(_metadata, s);

			/* A hook fails once more, and the guest's read waits for its turn. */
			fail_nth(FAIL_PRIVATE, 1, 1);
			EXPECT_EQ(-EIO, gmem_guest_read(s->vcpu, gpa_of(0), &val));
			EXPECT_CALLS(s);
			if (more % 2)
				EXPECT_WORKS(prefault(s, 0, 1));
			else
				EXPECT_EQ(0, gmem_guest_run(s->vcpu));
			EXPECT_CALLS(s, .private = 1);
			EXPECT_OWNED(s, (singles(NR_SINGLES) & ~singles(more)) | bits(0, 1));
			if (more % 2)
				EXPECT_EQ(0, gmem_guest_run(s->vcpu));
			EXPECT_EQ(token(0), gmem_guest_cmd.val);
			singles_find(_metadata, s, 0);
			EXPECT_CALLS(s, .private = more - 1);
			EXPECT_OWNED(s, singles(NR_SINGLES));
			rmp_verify(_metadata, NULL);
			ASSERT_EQ(0, _metadata->exit_code) TH_LOG("call %u, %u more", nth, more);
		}
	}

	EXPECT_WORKS(all_to_shared(s));
	EXPECT_CALLS(s, .shared = NR_SINGLES);
}

static void start_again(struct own *s)
{
	own_close(s);
	kvm_vm_free(s->vm);
	s->vm = protected_vm(&s->vcpu);
	own_open(s);
	rmp_read(&s->last);
}

/*
 * Page @nth does not get to its new place, and page @lost stays at its own: the one thing
 * that ends the VM.  All others go back, but for page @nth where that is refused, too.
 */
TEST_F_TIMEOUT(fail, lost_in_a_rebind, 100)
{
	struct own *s = &self->s;
	unsigned int nth, lost, nobodys;
	u64 owned;

	for (nth = 2; nth <= NR_SINGLES; nth++) {
		for (lost = 1; lost < nth; lost++) {
			nobodys = lost % 2;
			setup_singles(_metadata, s);
			ASSERT_WORKS(unbind(s, SLOT));
			fail_nth(FAIL_PRIVATE, nth, 1 + nobodys);
			fail_nth(FAIL_SHARED, nth + lost, 1);
			EXPECT_FAILS(EIO, bind_elsewhere(s));
			EXPECT_CALLS(s, .shared = nth + nth - 2,
				     .private = nth - 1 + nth - 1 - nobodys);

			owned = singles(NR_SINGLES) & ~bits(single(lost - 1), 1);
			if (nobodys)
				owned &= ~bits(single(nth - 1), 1);
			owned |= bits(single(lost - 1), 1) << 40;
			EXPECT_OWNED(s, owned);
			expect_all_private(_metadata, s);

			EXPECT_EQ(-EIO, gmem_guest_run(s->vcpu));
			EXPECT_FAILS(EIO, bind_all(s));
			EXPECT_FAILS(EIO, bind_elsewhere(s));
			EXPECT_OWNED(s, owned);
			expect_over(_metadata, s, NR_SINGLES - nobodys);
			EXPECT_OWNED(s, 0);
			start_again(s);
			ASSERT_EQ(0, _metadata->exit_code) TH_LOG("call %u, lost %u", nth, lost);
		}
	}
}

/* A page that is lost, and then cannot be reclaimed either. */
TEST_F(fail, lost_and_leaked)
{
	struct own *s = &self->s;
	struct rmp_dump dump;
	u64 pfn;

	setup_singles(_metadata, s);
	ASSERT_WORKS(unbind(s, SLOT));
	fail_nth(FAIL_PRIVATE, NR_SINGLES, 1);
	fail_nth(FAIL_SHARED, NR_SINGLES + 1, 1);
	EXPECT_FAILS(EIO, bind_elsewhere(s));
	EXPECT_OWNED(s, (singles(NR_SINGLES) & ~bits(0, 1)) | bits(40, 1));
	pfn = owned_pfn(40);
	EXPECT_NE(0, pfn);
	rmp_read(&s->last);

	fail_nth(FAIL_RECLAIM, 1, 1);
	own_close(s);
	fail_never(FAIL_RECLAIM);
	EXPECT_CALLS(s, .reclaimed = NR_SINGLES - 1, .leaked = 1);
	rmp_dump_read(&dump);
	EXPECT_EQ(0, dump.nr);
	free(dump.page);
	rmp_verify(_metadata, NULL);

	/* Nobody gets it again; it is no longer a page of a VM that can be asked for it. */
	fail_never(FAIL_PRIVATE);
	fail_never(FAIL_SHARED);
	start_again(s);
	ASSERT_WORKS(bind_all(s));
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = NR_PAGES);
	rmp_dump_read(&dump);
	while (dump.nr--)
		EXPECT_NE(pfn, dump.page[dump.nr].pfn);
	free(dump.page);
}

/* What is new to the memslot, and cannot be given up again. */
TEST_F(fail, lost_in_a_rebind_that_takes)
{
	struct own *s = &self->s;

	setup_two_runs(_metadata, s);
	ASSERT_WORKS(bind_all(s));
	ASSERT_WORKS(unbind(s, SLOT));
	ASSERT_WORKS(allocate(s, 4, 1));
	ASSERT_WORKS(allocate(s, 6, 1));
	EXPECT_CALLS(s, .private = 2);
	fail_nth(FAIL_PRIVATE, 4, 1);
	fail_nth(FAIL_SHARED, 3, 1);
	EXPECT_FAILS(EIO, bind_elsewhere(s));
	EXPECT_EQ(-EIO, gmem_guest_run(s->vcpu));
	expect_over(_metadata, s, 3);
}

/* What cannot be had back is lost, and that is all. */
TEST_F(fail, reclaim)
{
	struct own *s = &self->s;
	struct rmp_stats was, now;
	u64 lost;

	ASSERT_WORKS(bind_all(s));
	guest_fills(_metadata, s, 0, 0, NR_PAGES);
	EXPECT_CALLS(s, .private = NR_PAGES);

	fail_nth(FAIL_RECLAIM, 1, 1);
	EXPECT_WORKS(punch(s, 2, 1));
	EXPECT_CALLS(s, .leaked = 1);
	EXPECT_OWNED(s, bits(0, NR_PAGES) & ~bits(2, 1));
	EXPECT_EQ(NR_PAGES - 1, fdinfo_of(s->fd, "gmem-present"));
	rmp_verify(_metadata, NULL);
	EXPECT_GUEST_READS(0, s->vcpu, gpa_of(2));
	EXPECT_CALLS(s, .private = 1);
	guest_finds(_metadata, s, 3, 3, NR_PAGES - 3);

	/* One run of three at least. */
	EXPECT_WORKS(punch(s, 5, 1));
	EXPECT_WORKS(punch(s, 9, 1));
	EXPECT_CALLS(s, .reclaimed = 2);
	rmp_read(&was);
	fail_nth(FAIL_RECLAIM, 2, 1);
	own_close(s);
	fail_never(FAIL_RECLAIM);
	rmp_read(&now);
	lost = rmp_diff(&now, &was, LEAKED);
	EXPECT_EQ(1, rmp_diff(&now, &was, INJECTED));
	EXPECT_LE(1, lost);
	EXPECT_GE(6, lost);
	EXPECT_CALLS(s, .reclaimed = NR_PAGES - 2 - lost, .leaked = lost);
	rmp_verify(_metadata, NULL);
}

/* All of a file is lost; the VM goes all the same. */
TEST_F(fail, reclaim_at_close)
{
	struct own *s = &self->s;
	struct kvm_vcpu *vcpu;

	ASSERT_WORKS(bind_all(s));
	EXPECT_WORKS(allocate(s, 6, 4));
	EXPECT_CALLS(s, .private = 4);
	kvm_vm_free(s->vm);
	fail_nth(FAIL_RECLAIM, 1, -1);
	own_close(s);
	fail_never(FAIL_RECLAIM);
	EXPECT_CALLS(s, .leaked = 4);
	rmp_verify(_metadata, NULL);

	s->vm = protected_vm(&vcpu);
	own_open(s);
	ASSERT_WORKS(bind_all(s));
	EXPECT_WORKS(allocate(s, 0, NR_PAGES));
	EXPECT_CALLS(s, .private = NR_PAGES);
}

/* The last one, about all of those above. */
FIXTURE(end)
{
};

FIXTURE_SETUP(end)
{
}

FIXTURE_TEARDOWN(end)
{
}

TEST_F(end, nothing_is_left)
{
	struct rmp_dump dump;
	struct rmp_stats now;

	rmp_read(&now);
	EXPECT_EQ(0, rmp_diff(&now, &at_start, OWNED));
	EXPECT_EQ(0, rmp_diff(&now, &at_start, OWNED_2M));
	EXPECT_EQ(0, rmp_diff(&now, &at_start, VIOLATIONS)) TH_LOG("%s", now.raw.text);

	/* What the machine has taken is what it has given back, or lost. */
	EXPECT_EQ(rmp_diff(&now, &at_start, MAKE_PRIVATE_PAGES),
		  rmp_diff(&now, &at_start, MAKE_SHARED_PAGES) +
		  rmp_diff(&now, &at_start, RECLAIM_PAGES) +
		  rmp_diff(&now, &at_start, LEAKED))
		TH_LOG("%s", now.raw.text);

	rmp_dump_read(&dump);
	EXPECT_EQ(now.val[OWNED], dump.nr);
	EXPECT_EQ(now.val[LEAKED], dump.nr_leaked);
	free(dump.page);
	rmp_verify(_metadata, NULL);
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & MAPPABLE);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	__TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM),
		       "no software-protected VMs (they need the TDP MMU)");
	__TEST_REQUIRE(gmem_has_rmp(), "needs CONFIG_KVM_EMULATED_RMP, debugfs and root");

	page_size = getpagesize();
	rmp_read(&at_start);
	return test_harness_run(argc, argv);
}
