// SPDX-License-Identifier: GPL-2.0
/*
 * Dirty logging of guest_memfd memslots: when it can be switched on and off,
 * that the log has what the guest wrote and nothing else, and that a memslot is
 * bound to its file as before once its flags have changed.
 *
 * A page that the guest has not touched before may be taken for written on x86
 * when it is read: KVM maps it for writing then, as it does for other memory.
 * That is the only exception.
 *
 * The sizes of mappings are not looked at here.
 */
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"

#define NR_PAGES	64		/* of a file: its log is one word */
#define SLOT		10
#define GPA		SZ_4G		/* above what the library uses */
#define RACE_MS		2000

#define GM		KVM_MEM_GUEST_MEMFD
#define LOG		KVM_MEM_LOG_DIRTY_PAGES
#define ALL_PAGES	(~0ull)
#define EVEN_PAGES	0x5555555555555555ull
#define ODD_PAGES	(~EVEN_PAGES)

#define MAPPABLE	GUEST_MEMFD_FLAG_MMAP
#define INIT_SHARED	GUEST_MEMFD_FLAG_INIT_SHARED

static size_t page_size;

static u64 offset_of(int page)
{
	return page * page_size;
}

static u64 gpa_of(int page)
{
	return GPA + offset_of(page);
}

static int delete_slot(struct kvm_vm *vm, u32 slot)
{
	return __vm_set_user_memory_region2(vm, slot, 0, 0, 0, NULL, 0, 0);
}

static int set_slot(struct kvm_vm *vm, u32 slot, u64 flags, int fd, int first, int nr)
{
	return __vm_set_user_memory_region2(vm, slot, flags, gpa_of(first), offset_of(nr), NULL,
					    fd, offset_of(first));
}

static int get_log(struct kvm_vm *vm, u32 slot, u64 *log)
{
	struct kvm_dirty_log arg = { .slot = slot, .dirty_bitmap = log };

	return __vm_ioctl(vm, KVM_GET_DIRTY_LOG, &arg);
}

/* The interface as such: a VM that does not run, and two files. */
FIXTURE(flags)
{
	struct kvm_vm *vm;
	int fd, other;
};

FIXTURE_SETUP(flags)
{
	self->vm = vm_create_barebones();
	self->fd = vm_create_guest_memfd(self->vm, offset_of(NR_PAGES), MAPPABLE);
	self->other = vm_create_guest_memfd(self->vm, offset_of(NR_PAGES), MAPPABLE);
}

FIXTURE_TEARDOWN(flags)
{
	if (self->fd >= 0)
		close(self->fd);
	close(self->other);
	kvm_vm_free(self->vm);
}

static void expect_logging(struct __test_metadata *_metadata, struct kvm_vm *vm, u32 slot,
			   bool on, const char *when)
{
	u64 log;

	if (!on)
		__EXPECT_FAILS(ENOENT, get_log(vm, slot, &log), "%s", when);
	else
		EXPECT_EQ(0, get_log(vm, slot, &log)) TH_LOG("%s: errno %d", when, errno);
}

TEST_F(flags, creation)
{
	const int memfd = memfd_create("other", 0);
	const int fd = self->fd;
	const struct {
		const char *what;
		u64 flags;
		int fd;
		u64 offset;
		int err;
	} rows[] = {
		{ "no file",		GM | LOG, -1, 0, EBADF },
		{ "a memfd",		GM | LOG, memfd, 0, EINVAL },
		{ "over the end",	GM | LOG, fd, offset_of(1), EINVAL },
		{ "half a page",	GM | LOG, fd, page_size / 2, EINVAL },
		{ "read-only",		GM | LOG | KVM_MEM_READONLY, fd, 0, EINVAL },
		{ "read-only, no log",	GM | KVM_MEM_READONLY, fd, 0, EINVAL },
		{ "unknown flag",	GM | LOG | BIT(3), fd, 0, EINVAL },
		{ "internal flag",	GM | LOG | BIT(17), fd, 0, EINVAL },
	};
	int i;

	ASSERT_GE(memfd, 0);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(rows[i].err,
			       __vm_set_user_memory_region2(self->vm, SLOT, rows[i].flags, GPA,
							    offset_of(NR_PAGES), NULL,
							    rows[i].fd, rows[i].offset),
			       "%s", rows[i].what);

		/* Nothing of it is left. */
		EXPECT_EQ(0, set_slot(self->vm, SLOT, GM | LOG, fd, 0, NR_PAGES))
			TH_LOG("after '%s': %s", rows[i].what, strerror(errno));
		expect_logging(_metadata, self->vm, SLOT, true, rows[i].what);
		EXPECT_WORKS(delete_slot(self->vm, SLOT));
	}

	/* A page is in one slot at most, as ever. */
	ASSERT_WORKS(set_slot(self->vm, SLOT, GM | LOG, fd, 0, 8));
	EXPECT_FAILS(EEXIST, set_slot(self->vm, SLOT + 1, GM | LOG, fd, 7, 8));
	EXPECT_FAILS(EEXIST, __vm_set_user_memory_region2(self->vm, SLOT + 1, GM | LOG,
							  GPA + SZ_1G, offset_of(8), NULL, fd,
							  offset_of(7)));
	EXPECT_WORKS(set_slot(self->vm, SLOT + 1, GM | LOG, fd, 8, 8));
	close(memfd);
}

/* Nothing can change with the flag, nor instead of it. */
TEST_F(flags, changes)
{
	const u64 p = page_size, nr = 4;
	const int memfd = memfd_create("other", 0);
	const struct {
		const char *what;
		u64 flags, gpa, size, hva;
		int fd;
		u64 offset;
	} rows[] = {
		{ "moved",		GM, GPA + SZ_1G, nr * p, 0, self->fd, nr * p },
		{ "longer",		GM, GPA, nr * p + p, 0, self->fd, nr * p },
		{ "shorter",		GM, GPA, nr * p - p, 0, self->fd, nr * p },
		{ "other address",	GM, GPA, nr * p, p, self->fd, nr * p },
		{ "next page",		GM, GPA, nr * p, 0, self->fd, nr * p + p },
		{ "other pages",	GM, GPA, nr * p, 0, self->fd, 0 },
		{ "offset 2^63",	GM, GPA, nr * p, 0, self->fd, BIT_ULL(63) + nr * p },
		{ "half a page",	GM, GPA, nr * p, 0, self->fd, nr * p + p / 2 },
		{ "other file",		GM, GPA, nr * p, 0, self->other, nr * p },
		{ "a memfd",		GM, GPA, nr * p, 0, memfd, nr * p },
		{ "the VM",		GM, GPA, nr * p, 0, self->vm->fd, nr * p },
		{ "no file",		GM, GPA, nr * p, 0, -1, nr * p },
		{ "no such file",	GM, GPA, nr * p, 0, 1 << 30, nr * p },
		{ "not a guest_memfd",	0, GPA, nr * p, 0, 0, 0 },
		{ "nor that, moved",	0, GPA + SZ_1G, nr * p, 0, 0, 0 },
		{ "read-only",		GM | KVM_MEM_READONLY, GPA, nr * p, 0, self->fd, nr * p },
		{ "unknown flag",	GM | BIT(4), GPA, nr * p, 0, self->fd, nr * p },
	};
	int i, was, to;

	ASSERT_GE(memfd, 0);
	for (was = 0; was < 2; was++) {
		const u64 now = was ? GM | LOG : GM;

		ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, now, GPA, nr * p, NULL,
							  self->fd, nr * p));
		for (i = 0; i < ARRAY_SIZE(rows); i++) {
			for (to = 0; to < 2; to++) {
				u64 flags = rows[i].flags | (to ? LOG : 0);

				__EXPECT_FAILS(EINVAL,
					       __vm_set_user_memory_region2(self->vm, SLOT, flags,
									    rows[i].gpa,
									    rows[i].size,
									    (void *)rows[i].hva,
									    rows[i].fd,
									    rows[i].offset),
					       "%s, %d to %d", rows[i].what, was, to);
			}
			expect_logging(_metadata, self->vm, SLOT, was, rows[i].what);
		}

		/* The first version of the ioctl knows of no file. */
		EXPECT_FAILS(EINVAL, __vm_set_user_memory_region(self->vm, SLOT, LOG, GPA, nr * p,
								 NULL));
		EXPECT_FAILS(EINVAL, __vm_set_user_memory_region(self->vm, SLOT, 0, GPA, nr * p,
								 NULL));

		/* The binding is still what it was, neither less nor more. */
		EXPECT_FAILS(EEXIST, __vm_set_user_memory_region2(self->vm, SLOT + 1, GM,
								  GPA + SZ_1G, p, NULL, self->fd,
								  2 * nr * p - p));
		EXPECT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT + 1, GM, GPA + SZ_1G, p,
							  NULL, self->fd, 2 * nr * p));
		EXPECT_WORKS(delete_slot(self->vm, SLOT + 1));
		EXPECT_WORKS(delete_slot(self->vm, SLOT));
	}
	close(memfd);
}

/* On and off, by whatever descriptor of the file.  What is so already cannot change. */
TEST_F(flags, switching)
{
	int i, fd = kvm_dup(self->fd);

	ASSERT_WORKS(set_slot(self->vm, SLOT, GM, self->fd, 4, 4));
	expect_logging(_metadata, self->vm, SLOT, false, "at first");

	for (i = 0; i < 3; i++) {
		EXPECT_WORKS(set_slot(self->vm, SLOT, GM | LOG, self->fd, 4, 4));
		expect_logging(_metadata, self->vm, SLOT, true, "switched on");
		EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM | LOG, self->fd, 4, 4));
		expect_logging(_metadata, self->vm, SLOT, true, "switched on twice");
		EXPECT_FAILS(EEXIST, set_slot(self->vm, SLOT + 1, GM, self->fd, 7, 1));

		EXPECT_WORKS(set_slot(self->vm, SLOT, GM, fd, 4, 4));
		expect_logging(_metadata, self->vm, SLOT, false, "switched off");
		EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM, self->fd, 4, 4));
		expect_logging(_metadata, self->vm, SLOT, false, "switched off twice");
		EXPECT_FAILS(EEXIST, set_slot(self->vm, SLOT + 1, GM, self->fd, 7, 1));

		/* What else is bound has nothing to do with it. */
		EXPECT_WORKS(set_slot(self->vm, SLOT + 1, i % 2 ? GM : GM | LOG, fd, 8, 4));
		expect_logging(_metadata, self->vm, SLOT, false, "of another slot");
		EXPECT_WORKS(delete_slot(self->vm, SLOT + 1));
	}

	/* The number of the descriptor does not matter. */
	close(self->fd);
	self->fd = fd;
	EXPECT_WORKS(set_slot(self->vm, SLOT, GM | LOG, fd, 4, 4));
	EXPECT_WORKS(delete_slot(self->vm, SLOT));
	EXPECT_WORKS(set_slot(self->vm, SLOT, GM, fd, 0, NR_PAGES));
}

/* Without its file, a slot can stop logging, and nothing else. */
TEST_F(flags, closed_file)
{
	void *mem = kvm_mmap(page_size, PROT_READ, MAP_SHARED, self->fd);
	u32 i;

	for (i = 0; i < 3; i++)
		ASSERT_WORKS(set_slot(self->vm, SLOT + i, GM | (i ? LOG : 0), self->fd, i, 1));
	close(self->fd);
	self->fd = -1;

	/* A mapping has it open. */
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT + 1, GM, -1, 1, 1));
	expect_logging(_metadata, self->vm, SLOT + 1, true, "with the file mapped");
	kvm_munmap(mem, page_size);

	for (i = 0; i < 3; i++) {
		expect_logging(_metadata, self->vm, SLOT + i, i, "with the file closed");
		EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT + i, GM | LOG, -1, i, 1));
		EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT + i, GM | LOG, self->other, i, 1));
		EXPECT_FAILS(EINVAL, __vm_set_user_memory_region2(self->vm, SLOT + i, GM,
								  gpa_of(i), page_size, NULL, -1,
								  offset_of(i + 1)));
		expect_logging(_metadata, self->vm, SLOT + i, i, "with the file closed");
	}

	/* Nor does it get another one. */
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM, self->other, 0, 1));
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM, -1, 0, 1));

	/* The number is no longer this file's, and whose it is does not matter. */
	EXPECT_WORKS(set_slot(self->vm, SLOT + 1, GM, -1, 1, 1));
	EXPECT_WORKS(set_slot(self->vm, SLOT + 2, GM, self->other, 2, 1));
	for (i = 1; i < 3; i++) {
		expect_logging(_metadata, self->vm, SLOT + i, false, "switched off");
		EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT + i, GM, self->other, i, 1));
		EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT + i, GM | LOG, self->other, i, 1));
	}

	for (i = 0; i < 3; i++) {
		EXPECT_WORKS(delete_slot(self->vm, SLOT + i));
		EXPECT_WORKS(set_slot(self->vm, SLOT + i, GM | LOG, self->other, i, 1));
	}
}

/* Memory of the old scheme has no log. */
TEST_F(flags, old_scheme)
{
	int fd;

	if (!gmem_old_scheme())
		SKIP(return, "all files are in place: vm_memory_attributes=N");

	fd = vm_create_guest_memfd(self->vm, offset_of(NR_PAGES), 0);
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM | LOG, fd, 0, 4));
#ifdef __x86_64__
	/* On arm64 it has no slot either. */
	ASSERT_WORKS(set_slot(self->vm, SLOT, GM, fd, 0, 4));
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM | LOG, fd, 0, 4));
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM, fd, 0, 4));
	EXPECT_FAILS(EEXIST, set_slot(self->vm, SLOT + 1, GM, fd, 3, 1));
	expect_logging(_metadata, self->vm, SLOT, false, "of the old scheme");
#endif
	close(fd);

#ifdef __x86_64__
	EXPECT_FAILS(EINVAL, set_slot(self->vm, SLOT, GM, -1, 0, 4));
	EXPECT_WORKS(delete_slot(self->vm, SLOT));
#endif
}

/*
 * A slot that has changed its flags, its descriptor and the VM go away in every
 * order: (f)ile, (s)lot, (v)M, and (n)ot logged.
 */
TEST_F(flags, lifetimes)
{
	static const char * const orders[] = {
		"fsv", "fvs", "sfv", "svf", "vfs", "vsf", "vf", "fv",
		"nfsv", "fnsv", "vnsf", "vfns", "nvf", "vfn",
	};
	const char *step;
	int i, fd, vmfd;

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		struct kvm_vm *vm = vm_create_barebones();
		struct kvm_userspace_memory_region2 region = {
			.slot = SLOT,
			.flags = GM | LOG,
			.guest_phys_addr = GPA,
			.memory_size = offset_of(NR_PAGES),
		};

		vmfd = kvm_dup(vm->fd);
		fd = vm_create_guest_memfd(vm, offset_of(NR_PAGES), MAPPABLE);
		region.guest_memfd = fd;
		ASSERT_WORKS(fallocate(fd, GMEM_ALLOC, 0, offset_of(4)));
		ASSERT_WORKS(set_slot(vm, SLOT, GM, fd, 0, NR_PAGES));
		ASSERT_WORKS(set_slot(vm, SLOT, GM | LOG, fd, 0, NR_PAGES));

		for (step = orders[i]; *step; step++) {
			switch (*step) {
			case 'f':
				EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, page_size));
				EXPECT_WORKS(close(fd));
				break;
			case 's':
				region.memory_size = 0;
				EXPECT_WORKS(ioctl(vmfd, KVM_SET_USER_MEMORY_REGION2, &region));
				break;
			case 'n':
				region.flags = GM;
				EXPECT_EQ(0, ioctl(vmfd, KVM_SET_USER_MEMORY_REGION2, &region))
					TH_LOG("%s: %s", orders[i], strerror(errno));
				break;
			case 'v':
				kvm_vm_free(vm);
				break;
			}
		}
		close(vmfd);
	}
}

/* How the log is read. */
enum glog_mode {
	BITMAP,			/* KVM_GET_DIRTY_LOG clears it */
	MANUAL,			/* KVM_CLEAR_DIRTY_LOG does */
	ALL_SET,		/* the same, and all pages are dirty at first */
	RING,			/* the vCPU's ring */
};

/* A VM with one vCPU, with one file in up to two slots. */
struct glog {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	enum glog_mode mode;
	bool shared;
	int fd;			/* -1 when closed */
	size_t size;
	u64 *mem;		/* all of the file, or NULL */
	int first[2], nr[2];	/* pages in each slot */
	u64 logged[2];		/* what the ring had for each of them */
	u32 ring_next;
};

/* The reason why this machine cannot have such a VM, or NULL. */
static const char *glog_unavailable(unsigned long type, enum glog_mode mode)
{
	const int manual = kvm_check_cap(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	if (type && !(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type)))
		return "no software-protected VMs (they need the TDP MMU)";
	if (mode == MANUAL && !(manual & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
		return "no KVM_CLEAR_DIRTY_LOG";
	if (mode == ALL_SET && !(manual & KVM_DIRTY_LOG_INITIALLY_SET))
		return "no KVM_DIRTY_LOG_INITIALLY_SET";
	if (mode == RING && !kvm_has_cap(KVM_CAP_DIRTY_LOG_RING) &&
	    !kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		return "no dirty ring";
	return NULL;
}

static void glog_setup(struct glog *g, unsigned long type, u64 flags, enum glog_mode mode,
		       void (*guest_code)(void))
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };

	gmem_catch_sigbus();
	g->mode = mode;
	g->shared = flags & INIT_SHARED;
	g->size = offset_of(NR_PAGES);

	/* The log has to be arranged for before there is a vCPU. */
	g->vm = __vm_create(shape, 1, SZ_4M / page_size);
	if (mode == RING)
		vm_enable_dirty_ring(g->vm, max_t(u32, page_size, SZ_64K));
	else if (mode != BITMAP)
		vm_enable_cap(g->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
			      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
			      (mode == ALL_SET ? KVM_DIRTY_LOG_INITIALLY_SET : 0));
	g->vcpu = vm_vcpu_add(g->vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(g->vm);
	if (mode == RING)
		vcpu_map_dirty_ring(g->vcpu);

	g->fd = vm_create_guest_memfd(g->vm, g->size, flags);
	g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
	virt_map(g->vm, GPA, GPA, g->size / g->vm->page_size);
}

static void glog_unmap(struct glog *g)
{
	if (g->mem)
		kvm_munmap(g->mem, g->size);
	g->mem = NULL;
}

static void glog_close(struct glog *g)
{
	glog_unmap(g);
	if (g->fd >= 0)
		close(g->fd);
	g->fd = -1;
}

static void glog_teardown(struct __test_metadata *_metadata, struct glog *g)
{
	EXPECT_EQ(0, gmem_rmp_verify());
	glog_close(g);
	kvm_vm_free(g->vm);
}

static u64 *page_of(struct glog *g, int page)
{
	return (void *)g->mem + offset_of(page);
}

/* Pages of slot @n, as bits. */
static u64 pages_of(struct glog *g, int n)
{
	return g->nr[n] == NR_PAGES ? ALL_PAGES : BIT_ULL(g->nr[n]) - 1;
}

static void read_ring(struct glog *g)
{
	struct kvm_dirty_gfn *entry;
	u32 nr = 0;

	for (;; g->ring_next++, nr++) {
		entry = &g->vcpu->dirty_gfns[g->ring_next % g->vcpu->dirty_gfns_count];
		if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		TEST_ASSERT(entry->slot - SLOT < 2, "slot %u in the ring", entry->slot);
		TEST_ASSERT((int)entry->offset < g->nr[entry->slot - SLOT], "page %llu in the ring",
			    (unsigned long long)entry->offset);
		g->logged[entry->slot - SLOT] |= BIT_ULL(entry->offset);
		__atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	}
	TEST_ASSERT(kvm_vm_reset_dirty_ring(g->vm) == nr, "not as many reset as read");
}

/* What has been written in slot @n since the last time, relative to the slot. */
static u64 glog_read(struct glog *g, int n)
{
	u64 log = 0;

	if (g->mode == RING) {
		read_ring(g);
		log = g->logged[n];
		g->logged[n] = 0;
		return log;
	}

	kvm_vm_get_dirty_log(g->vm, SLOT + n, &log);
	if (g->mode != BITMAP)
		kvm_vm_clear_dirty_log(g->vm, SLOT + n, &log, 0, g->nr[n]);
	return log;
}

#define __EXPECT_LOG(want, n)							\
do {										\
	u64 __want = (want), __log = glog_read(&self->g, n);			\
										\
	EXPECT_EQ(__want, __log)						\
		TH_LOG("want %#lx, got %#lx", (long)__want, (long)__log);	\
} while (0)

#define EXPECT_LOG(want)	__EXPECT_LOG(want, 0)

/* Create slot @n, or switch its flags. */
static void glog_set(struct __test_metadata *_metadata, struct glog *g, int n, int first, int nr,
		     bool log)
{
	g->first[n] = first;
	g->nr[n] = nr;
	ASSERT_WORKS(set_slot(g->vm, SLOT + n, log ? GM | LOG : GM, g->fd, first, nr));
	if (log && g->mode == ALL_SET)
		EXPECT_EQ(pages_of(g, n), glog_read(g, n));
}

static void glog_on(struct __test_metadata *_metadata, struct glog *g, int n)
{
	glog_set(_metadata, g, n, g->first[n], g->nr[n], true);
}

static void glog_off(struct __test_metadata *_metadata, struct glog *g, int n)
{
	glog_set(_metadata, g, n, g->first[n], g->nr[n], false);
}

/* The guest writes pages of the file, a value that nobody has written before. */
static u64 glog_token;
static u64 glog_values[NR_PAGES];

static void guest_writes(struct __test_metadata *_metadata, struct glog *g, u64 pages)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (!(pages & BIT_ULL(i)))
			continue;
		glog_values[i] = ++glog_token;
		ASSERT_EQ(0, gmem_guest_write(g->vcpu, gpa_of(i), glog_values[i]))
			TH_LOG("page %d", i);
	}
}

static void guest_reads(struct __test_metadata *_metadata, struct glog *g, u64 pages)
{
	u64 val;
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (!(pages & BIT_ULL(i)))
			continue;
		ASSERT_EQ(0, gmem_guest_read(g->vcpu, gpa_of(i), &val)) TH_LOG("page %d", i);
		EXPECT_EQ(glog_values[i], val) TH_LOG("page %d", i);
	}
}

static void punch(struct __test_metadata *_metadata, struct glog *g, int first, int nr)
{
	ASSERT_WORKS(fallocate(g->fd, GMEM_PUNCH, offset_of(first), offset_of(nr)));
	memset(glog_values + first, 0, nr * sizeof(*glog_values));
}

static void convert(struct __test_metadata *_metadata, struct glog *g, u64 pages, bool private)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		if (pages & BIT_ULL(i))
			ASSERT_WORKS(gmem_convert(g->fd, offset_of(i), page_size,
						  private ? GMEM_PRIVATE : GMEM_SHARED, NULL));
}

FIXTURE(log)
{
	struct glog g;
};

FIXTURE_VARIANT(log)
{
	unsigned long type;
	u64 flags;
	enum glog_mode mode;
};

FIXTURE_VARIANT_ADD(log, shared)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = BITMAP,
};

FIXTURE_VARIANT_ADD(log, shared_manual)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = MANUAL,
};

FIXTURE_VARIANT_ADD(log, shared_all_set)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = ALL_SET,
};

FIXTURE_VARIANT_ADD(log, shared_ring)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = RING,
};

FIXTURE_VARIANT_ADD(log, private)
{
	.flags = MAPPABLE,
	.mode = BITMAP,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(log, protected_shared)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE | INIT_SHARED,
	.mode = BITMAP,
};

FIXTURE_VARIANT_ADD(log, protected_private)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE,
	.mode = BITMAP,
};

FIXTURE_VARIANT_ADD(log, protected_private_manual)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE,
	.mode = MANUAL,
};

FIXTURE_VARIANT_ADD(log, protected_private_all_set)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE,
	.mode = ALL_SET,
};

FIXTURE_VARIANT_ADD(log, protected_private_ring)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE,
	.mode = RING,
};
#endif

FIXTURE_SETUP(log)
{
	const char *why = glog_unavailable(variant->type, variant->mode);

	if (why)
		SKIP(return, "%s", why);

	glog_setup(&self->g, variant->type, variant->flags, variant->mode, gmem_guest_code);
	glog_set(_metadata, &self->g, 0, 0, NR_PAGES, false);
}

FIXTURE_TEARDOWN(log)
{
	glog_teardown(_metadata, &self->g);
}

/* Switched on when the guest has all pages mapped for writing. */
TEST_F(log, exact)
{
	static const u64 some[] = { BIT_ULL(0), BIT_ULL(63), 0xff00, EVEN_PAGES, ALL_PAGES };
	struct glog *g = &self->g;
	int i;

	guest_writes(_metadata, g, ALL_PAGES);
	glog_on(_metadata, g, 0);
	EXPECT_LOG(0);

	for (i = 0; i < NR_PAGES; i++) {
		guest_writes(_metadata, g, BIT_ULL(i));
		EXPECT_LOG(BIT_ULL(i));
	}
	EXPECT_LOG(0);

	for (i = 0; i < ARRAY_SIZE(some); i++) {
		guest_writes(_metadata, g, some[i]);
		guest_writes(_metadata, g, some[i]);
		EXPECT_LOG(some[i]);
		guest_reads(_metadata, g, ALL_PAGES);
		EXPECT_LOG(0);
	}
}

/* Switched on before the guest has any. */
TEST_F(log, from_the_start)
{
	struct glog *g = &self->g;
	u64 log;

	ASSERT_WORKS(delete_slot(g->vm, SLOT));
	glog_on(_metadata, g, 0);
	EXPECT_LOG(0);

	guest_writes(_metadata, g, ODD_PAGES);
	EXPECT_LOG(ODD_PAGES);

	/* See the top of the file. */
	guest_reads(_metadata, g, EVEN_PAGES);
	log = glog_read(g, 0);
#ifdef __x86_64__
	EXPECT_EQ(0, log & ODD_PAGES);
#else
	EXPECT_EQ(0, log);
#endif

	/* Mapped for reading is not mapped for writing. */
	guest_writes(_metadata, g, EVEN_PAGES);
	EXPECT_LOG(EVEN_PAGES);
	guest_reads(_metadata, g, ALL_PAGES);
	EXPECT_LOG(0);
}

TEST_F(log, off_and_on)
{
	struct glog *g = &self->g;
	u64 log;
	int i;

	guest_writes(_metadata, g, ALL_PAGES);
	for (i = 0; i < 3; i++) {
		glog_on(_metadata, g, 0);
		EXPECT_LOG(0);
		guest_writes(_metadata, g, 0xf0);
		EXPECT_LOG(0xf0);
		guest_writes(_metadata, g, 0xf00);

		/* What was not read is lost with the log, but not what is in a ring. */
		glog_off(_metadata, g, 0);
		if (g->mode == RING)
			EXPECT_LOG(0xf00);
		else
			EXPECT_FAILS(ENOENT, get_log(g->vm, SLOT, &log));

		guest_writes(_metadata, g, EVEN_PAGES);
		guest_reads(_metadata, g, ALL_PAGES);
		if (g->mode == RING)
			EXPECT_LOG(0);
	}
	glog_on(_metadata, g, 0);
	guest_reads(_metadata, g, ALL_PAGES);
	EXPECT_LOG(0);
	guest_writes(_metadata, g, ODD_PAGES);
	EXPECT_LOG(ODD_PAGES);
}

/* What is done to the file, or by it, is no write of the guest. */
TEST_F(log, not_the_guest)
{
	struct glog *g = &self->g;
	int i;

	guest_writes(_metadata, g, ALL_PAGES);
	glog_on(_metadata, g, 0);
	EXPECT_LOG(0);

	for (i = 0; g->shared && i < NR_PAGES; i++) {
		glog_values[i] = ++glog_token;
		WRITE_ONCE(*page_of(g, i), glog_values[i]);
	}
	guest_reads(_metadata, g, ALL_PAGES);
	EXPECT_LOG(0);

	convert(_metadata, g, ALL_PAGES, g->shared);
	EXPECT_LOG(0);
	convert(_metadata, g, EVEN_PAGES, !g->shared);
	EXPECT_LOG(0);
	punch(_metadata, g, 8, 8);
	EXPECT_LOG(0);
	ASSERT_WORKS(fallocate(g->fd, GMEM_ALLOC, offset_of(8), offset_of(4)));
	EXPECT_LOG(0);
}

TEST_F(log, convert)
{
	struct glog *g = &self->g;
	int i;

	guest_writes(_metadata, g, ALL_PAGES);
	glog_on(_metadata, g, 0);

	for (i = 0; i < 4; i++) {
		const bool private = g->shared ? !(i % 2) : i % 2;

		/* Logged and not read yet, then converted. */
		EXPECT_LOG(0);
		guest_writes(_metadata, g, 0xff);
		convert(_metadata, g, EVEN_PAGES, private);
		EXPECT_LOG(0xff);

		guest_writes(_metadata, g, EVEN_PAGES);
		EXPECT_LOG(EVEN_PAGES);
		guest_writes(_metadata, g, ODD_PAGES);
		EXPECT_LOG(ODD_PAGES);
		guest_reads(_metadata, g, ALL_PAGES);
		EXPECT_LOG(0);
	}

	/* Mapped when logging starts, converted while it is on, mapped when it ends. */
	convert(_metadata, g, ALL_PAGES, g->shared);
	glog_off(_metadata, g, 0);
	guest_reads(_metadata, g, ALL_PAGES);
	guest_writes(_metadata, g, ALL_PAGES);
	glog_on(_metadata, g, 0);
	EXPECT_LOG(0);
	guest_writes(_metadata, g, EVEN_PAGES);
	EXPECT_LOG(EVEN_PAGES);
}

TEST_F(log, punch)
{
	const u64 hole = 0xff0;
	struct glog *g = &self->g;
	int i;

	guest_writes(_metadata, g, ALL_PAGES);
	glog_on(_metadata, g, 0);

	for (i = 0; i < 3; i++) {
		punch(_metadata, g, 4, 8);
		EXPECT_LOG(0);

		/* The pages are new.  Some are read first. */
		guest_writes(_metadata, g, hole & EVEN_PAGES);
		EXPECT_LOG(hole & EVEN_PAGES);
		guest_reads(_metadata, g, ALL_PAGES);
		EXPECT_EQ(0, glog_read(g, 0) & ~(hole & ODD_PAGES));
		guest_writes(_metadata, g, hole);
		EXPECT_LOG(hole);
		guest_reads(_metadata, g, ALL_PAGES);
		EXPECT_LOG(0);
	}
}

/* Two slots of one file, with logs of their own. */
TEST_F(log, two_slots)
{
	const int half = NR_PAGES / 2;
	const u64 low = BIT_ULL(half) - 1;
	struct glog *g = &self->g;
	int on, off;

	guest_writes(_metadata, g, ALL_PAGES);
	ASSERT_WORKS(delete_slot(g->vm, SLOT));
	glog_set(_metadata, g, 0, 0, half, false);
	glog_set(_metadata, g, 1, half, half, false);
	guest_writes(_metadata, g, ALL_PAGES);

	for (on = 0; on < 2; on++) {
		off = !on;
		glog_on(_metadata, g, on);
		__EXPECT_LOG(0, on);
		guest_writes(_metadata, g, EVEN_PAGES);
		__EXPECT_LOG(EVEN_PAGES & low, on);
		if (g->mode == RING)
			__EXPECT_LOG(0, off);

		/* Holes and conversions reach both. */
		punch(_metadata, g, half - 2, 4);
		convert(_metadata, g, 0xffull << (half - 4), g->shared);
		guest_reads(_metadata, g, ALL_PAGES);
		glog_read(g, on);
		guest_writes(_metadata, g, ALL_PAGES);
		__EXPECT_LOG(low, on);
		convert(_metadata, g, 0xffull << (half - 4), !g->shared);
		guest_reads(_metadata, g, ALL_PAGES);
		guest_writes(_metadata, g, ALL_PAGES);
		glog_off(_metadata, g, on);
		if (g->mode == RING) {
			__EXPECT_LOG(low, on);
			__EXPECT_LOG(0, off);
		}
	}

	/* One goes, the other one logs on. */
	glog_on(_metadata, g, 0);
	glog_on(_metadata, g, 1);
	ASSERT_WORKS(delete_slot(g->vm, SLOT));
	guest_writes(_metadata, g, ~low);
	__EXPECT_LOG(low, 1);
	punch(_metadata, g, half, 1);
	guest_reads(_metadata, g, BIT_ULL(half));
}

/* A hole is a hole in what the guest has, whatever the flags were and are. */
TEST_F(log, holes_reach_the_guest)
{
	struct glog *g = &self->g;
	int i;

	for (i = 0; i < 6; i++) {
		guest_writes(_metadata, g, ALL_PAGES);
		glog_set(_metadata, g, 0, 0, NR_PAGES, !(i % 2));
		punch(_metadata, g, 4 * i, 3);
		guest_reads(_metadata, g, ALL_PAGES);

		/* And what is mapped since. */
		guest_writes(_metadata, g, ALL_PAGES);
		punch(_metadata, g, 4 * i + 1, 3);
		guest_reads(_metadata, g, ALL_PAGES);
	}
}

/* The emulated RMP, if there is one, would find a page that the guest still has. */
TEST_F(log, conversions_reach_the_guest)
{
	struct glog *g = &self->g;
	int i;

	for (i = 0; i < 6; i++) {
		guest_writes(_metadata, g, ALL_PAGES);
		glog_set(_metadata, g, 0, 0, NR_PAGES, !(i % 2));
		convert(_metadata, g, ALL_PAGES, i % 2);
		EXPECT_EQ(0, gmem_rmp_verify());
		guest_reads(_metadata, g, EVEN_PAGES);
		EXPECT_EQ(i % 2 ? BUS_ADRERR : 0, gmem_touch_read(page_of(g, 1)));
	}
}

TEST_F(log, close_reaches_the_guest)
{
	struct glog *g = &self->g;
	u64 val;
	int i;

	for (i = 0; i < 2; i++) {
		/* Once while it is logged, once afterwards. */
		guest_writes(_metadata, g, ALL_PAGES);
		glog_on(_metadata, g, 0);
		guest_writes(_metadata, g, EVEN_PAGES);
		if (i)
			glog_off(_metadata, g, 0);
		guest_reads(_metadata, g, ALL_PAGES);

		glog_close(g);
		EXPECT_EQ(-EFAULT, gmem_guest_read(g->vcpu, gpa_of(1), &val));
		EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, g->vcpu->run->exit_reason);
		EXPECT_EQ(gpa_of(1), g->vcpu->run->memory_fault.gpa);
		if (!i) {
			EXPECT_LOG(EVEN_PAGES);
			EXPECT_WORKS(set_slot(g->vm, SLOT, GM, -1, 0, NR_PAGES));
		}
		EXPECT_EQ(-EFAULT, gmem_guest_write(g->vcpu, gpa_of(2), 1));
		EXPECT_EQ(gpa_of(1), g->vcpu->run->memory_fault.gpa);

		/* A new file in a new slot. */
		ASSERT_WORKS(delete_slot(g->vm, SLOT));
		g->fd = vm_create_guest_memfd(g->vm, g->size, variant->flags);
		g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
		memset(glog_values, 0, sizeof(glog_values));
		glog_off(_metadata, g, 0);
		EXPECT_EQ(0, gmem_guest_run(g->vcpu));
		if (g->mode == RING)
			glog_read(g, 0);
	}
}

TEST_F(log, deletion_reaches_the_guest)
{
	struct glog *g = &self->g;
	u64 val;

	guest_writes(_metadata, g, ALL_PAGES);
	glog_on(_metadata, g, 0);
	glog_off(_metadata, g, 0);
	guest_reads(_metadata, g, ALL_PAGES);
	ASSERT_WORKS(delete_slot(g->vm, SLOT));

	/* The file has the pages, and they can be bound again. */
	glog_on(_metadata, g, 0);
	guest_reads(_metadata, g, ALL_PAGES);
	guest_writes(_metadata, g, ODD_PAGES);
	ASSERT_WORKS(delete_slot(g->vm, SLOT));
	val = glog_values[3];
	if (g->shared)
		EXPECT_EQ(val, READ_ONCE(*page_of(g, 3)));
	EXPECT_EQ(KVM_EXIT_MMIO, gmem_guest_read(g->vcpu, gpa_of(3), &val));
	EXPECT_EQ(gpa_of(3), g->vcpu->run->mmio.phys_addr);
}

TEST_F(log, memory_errors_reach_the_guest)
{
	struct glog *g = &self->g;
	u64 pfn, val;
	int i;

	if (geteuid() || madvise(NULL, 0, MADV_HWPOISON))
		SKIP(return, "needs root and CONFIG_MEMORY_FAILURE");
	if (!g->shared)
		SKIP(return, "the host cannot touch private memory");

	for (i = 0; i < 2; i++) {
		guest_writes(_metadata, g, ALL_PAGES);
		glog_set(_metadata, g, 0, 0, NR_PAGES, !i);
		if (!i)
			EXPECT_LOG(0);
		guest_reads(_metadata, g, ALL_PAGES);

		ASSERT_EQ(0, gmem_touch_read(page_of(g, 5)));
		pfn = gmem_pfn(page_of(g, 5));
		gmem_sigbus((void)madvise(page_of(g, 5), page_size, MADV_HWPOISON));
		EXPECT_EQ(-EHWPOISON, gmem_guest_read(g->vcpu, gpa_of(5), &val));
		EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, g->vcpu->run->exit_reason);
		EXPECT_EQ(gpa_of(5), g->vcpu->run->memory_fault.gpa);

		/* A hole heals it; if it can be, the page is given back. */
		punch(_metadata, g, 5, 1);
		EXPECT_EQ(0, gmem_guest_run(g->vcpu));
		guest_reads(_metadata, g, ALL_PAGES);
		gmem_unpoison(pfn);
	}
}

/* Mapped ahead of the guest's first access: its writes are still seen. */
TEST_F(log, pre_fault)
{
#ifdef __x86_64__
	struct glog *g = &self->g;
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = g->size };

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");

	glog_on(_metadata, g, 0);
	ASSERT_WORKS(__vcpu_ioctl(g->vcpu, KVM_PRE_FAULT_MEMORY, &range));
	glog_read(g, 0);
	guest_reads(_metadata, g, ALL_PAGES);
	EXPECT_LOG(0);
	guest_writes(_metadata, g, EVEN_PAGES);
	EXPECT_LOG(EVEN_PAGES);
	guest_writes(_metadata, g, ODD_PAGES);
	EXPECT_LOG(ODD_PAGES);
#else
	SKIP(return, "no KVM_PRE_FAULT_MEMORY");
#endif
}

/*
 * Races.  The guest writes one page after the other, ever higher numbers, and
 * tells of each one when it is written.  Who punches a hole tells which one was
 * the last before.  So the guest finds out if it still has a page from before
 * the hole, and nothing depends on timing.
 */
static struct race_ctl {
	u64 page_size;
	u64 stop;
	u64 pause;
	u64 stale;		/* page + 1 */
	u64 rounds;
	u64 written[NR_PAGES];
	u64 punched[NR_PAGES];
} race_ctl;

static u64 race_get(u64 *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void race_put(u64 *p, u64 val)
{
	__atomic_store_n(p, val, __ATOMIC_SEQ_CST);
}

static void race_guest_code(void)
{
	struct race_ctl *r = &race_ctl;
	u64 number = 0, before, val, *p;
	int i;

	while (!race_get(&r->stop)) {
		for (i = 0; i < NR_PAGES; i++) {
			p = (u64 *)(GPA + i * r->page_size);
			before = race_get(&r->punched[i]);
			val = race_get(p);
			if (val && val <= before)
				race_put(&r->stale, i + 1);
			race_put(p, ++number);
			race_put(&r->written[i], number);
		}
		race_put(&r->rounds, r->rounds + 1);
		if (race_get(&r->pause))
			GUEST_SYNC(0);
	}
	GUEST_DONE();
}

struct race {
	struct glog g;
	struct race_ctl *ctl;	/* the guest's */
	pthread_t threads[3];
	u64 stop, give_up, vcpu_gone;
	sem_t paused, resume;

	const char *what;	/* failed */
	int err;
};

FIXTURE(race)
{
	struct race r;
};

FIXTURE_VARIANT(race)
{
	unsigned long type;
	u64 flags;
	enum glog_mode mode;
};

FIXTURE_VARIANT_ADD(race, shared)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = BITMAP,
};

FIXTURE_VARIANT_ADD(race, shared_manual)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = MANUAL,
};

FIXTURE_VARIANT_ADD(race, shared_ring)
{
	.flags = MAPPABLE | INIT_SHARED,
	.mode = RING,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(race, protected)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE | INIT_SHARED,
	.mode = BITMAP,
};

FIXTURE_VARIANT_ADD(race, protected_all_set)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE | INIT_SHARED,
	.mode = ALL_SET,
};

FIXTURE_VARIANT_ADD(race, protected_ring)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE | INIT_SHARED,
	.mode = RING,
};
#endif

FIXTURE_SETUP(race)
{
	const char *why = glog_unavailable(variant->type, variant->mode);
	struct glog *g = &self->r.g;

	if (why)
		SKIP(return, "%s", why);

	race_ctl.page_size = page_size;
	glog_setup(g, variant->type, variant->flags, variant->mode, race_guest_code);
	glog_set(_metadata, g, 0, 0, NR_PAGES, false);
	sync_global_to_guest(g->vm, race_ctl);
	self->r.ctl = addr_gva2hva(g->vm, (gva_t)&race_ctl);
	sem_init(&self->r.paused, 0, 0);
	sem_init(&self->r.resume, 0, 0);
}

FIXTURE_TEARDOWN(race)
{
	glog_teardown(_metadata, &self->r.g);
}

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

static void race_fails(struct race *r, int err, const char *what)
{
	r->err = err;
	r->what = what;
	race_put(&r->stop, 1);
}

static void *vcpu_thread(void *arg)
{
	struct race *r = arg;
	struct kvm_vcpu *vcpu = r->g.vcpu;
	struct ucall uc;
	int ret;

	for (;;) {
		do {
			ret = __vcpu_run(vcpu);
		} while (ret && errno == EINTR && !race_get(&r->give_up));

		if (ret) {
			race_fails(r, errno, "KVM_RUN, at last");
			break;
		}
		/* Somebody reads the ring, until there is room. */
		if (vcpu->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			usleep(100);
			continue;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			sem_post(&r->paused);
			sem_wait(&r->resume);
			continue;
		case UCALL_DONE:
			break;
		default:
			race_fails(r, vcpu->run->exit_reason, "exit of KVM_RUN");
		}
		break;
	}
	race_put(&r->vcpu_gone, 1);
	return NULL;
}

/* The second half of the file is punched and converted. */
static int race_page(u64 *random, int *nr)
{
	*random = *random * 6364136223846793005ull + 1442695040888963407ull;
	*nr = 1 + (*random >> 33) % 8;
	return NR_PAGES / 2 + (*random >> 40) % (NR_PAGES / 2 - *nr + 1);
}

static void *punch_thread(void *arg)
{
	struct race *r = arg;
	u64 last[NR_PAGES], random = 1;
	int i, nr, first;

	while (!race_get(&r->stop)) {
		first = race_page(&random, &nr);
		for (i = first; i < first + nr; i++)
			last[i] = race_get(&r->ctl->written[i]);
		if (fallocate(r->g.fd, GMEM_PUNCH, offset_of(first), offset_of(nr)))
			race_fails(r, errno, "punching a hole");
		for (i = first; i < first + nr; i++)
			race_put(&r->ctl->punched[i], last[i]);
		usleep(200);
	}
	return NULL;
}

static void *convert_thread(void *arg)
{
	struct race *r = arg;
	u64 random = 2;
	int i, nr, first;

	for (i = 0; !race_get(&r->stop); i++) {
		first = race_page(&random, &nr);
		if (gmem_convert(r->g.fd, offset_of(first), offset_of(nr),
				 i % 2 ? GMEM_PRIVATE : GMEM_SHARED, NULL) &&
		    errno != EAGAIN)
			race_fails(r, errno, "converting");
		usleep(200);
	}
	return NULL;
}

static void on_signal(int sig)
{
}

/* A guest that does not stop is asked where it is, see vcpu_thread(). */
static void race_stop_vcpu(struct race *r)
{
	const struct sigaction sa = { .sa_handler = on_signal };	/* no SA_RESTART */
	const u64 end = now_ms() + 5000;

	TEST_ASSERT(!sigaction(SIGUSR1, &sa, NULL), "sigaction() failed");
	while (!race_get(&r->vcpu_gone)) {
		/* Or else a vCPU whose ring is full does not get there. */
		if (r->g.mode == RING)
			read_ring(&r->g);
		usleep(100);
		if (now_ms() < end)
			continue;

		race_put(&r->give_up, 1);
		pthread_kill(r->threads[0], SIGUSR1);
		usleep(10000);
	}
}

static void race_start(struct race *r)
{
	static void *(* const threads[])(void *) = { vcpu_thread, punch_thread, convert_thread };
	int i;

	for (i = 0; i < ARRAY_SIZE(threads); i++)
		kvm_pthread_create(&r->threads[i], NULL, threads[i], r);
}

static void race_end(struct __test_metadata *_metadata, struct race *r)
{
	int i;

	race_put(&r->stop, 1);
	race_put(&r->ctl->stop, 1);
	race_put(&r->ctl->pause, 0);
	sem_post(&r->resume);
	race_stop_vcpu(r);
	for (i = 0; i < ARRAY_SIZE(r->threads); i++)
		kvm_pthread_join(r->threads[i], NULL);

	EXPECT_EQ(NULL, r->what)
		TH_LOG("%s: %d (%s)", r->what, r->err, strerror(r->err));
	EXPECT_EQ(0, r->ctl->stale)
		TH_LOG("the guest still had page %d from before a hole", (int)r->ctl->stale - 1);
	EXPECT_NE(0, r->ctl->rounds);
}

/* Flags change all the time. */
TEST_F(race, flags)
{
	const u64 end = now_ms() + RACE_MS;
	struct race *r = &self->r;
	struct glog *g = &r->g;
	u64 val, changes = 0;
	int i;

	race_start(r);
	while (now_ms() < end && !race_get(&r->stop)) {
		ASSERT_WORKS(set_slot(g->vm, SLOT, GM | LOG, g->fd, 0, NR_PAGES));
		glog_read(g, 0);
		if (changes % 4 == 0)
			usleep(500);
		ASSERT_WORKS(set_slot(g->vm, SLOT, GM, g->fd, 0, NR_PAGES));
		if (changes % 3 == 0)
			usleep(500);
		changes++;
	}
	race_end(_metadata, r);
	EXPECT_LE(2, changes);

	/* In the end, the binding is what it was. */
	EXPECT_FAILS(EEXIST, __vm_set_user_memory_region2(g->vm, SLOT + 1, GM, GPA + SZ_1G,
							  page_size, NULL, g->fd,
							  offset_of(NR_PAGES - 1)));
	ASSERT_WORKS(gmem_convert(g->fd, 0, g->size, GMEM_SHARED, NULL));
	ASSERT_WORKS(fallocate(g->fd, GMEM_PUNCH, 0, g->size));
	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(0, gmem_sigbus(val = READ_ONCE(*page_of(g, i))));
		EXPECT_EQ(0, val);
	}
}

/* Copy the pages that the guest has written since the last time. */
static void copy_pages(struct glog *g, u64 *copy, u64 pages)
{
	int i;

	for (i = 0; i < NR_PAGES / 2; i++)
		if (pages & BIT_ULL(i))
			copy[i] = READ_ONCE(*page_of(g, i));
}

/*
 * Migration of the first half of the file: a copy that is brought up to date
 * from the log alone is right once the guest stands still.
 */
TEST_F(race, migration)
{
	const u64 end = now_ms() + RACE_MS;
	u64 copy[NR_PAGES / 2], rounds = 0;
	struct race *r = &self->r;
	struct glog *g = &r->g;
	int i;

	race_start(r);
	while ((now_ms() < end || rounds < 2) && !race_get(&r->stop)) {
		ASSERT_WORKS(set_slot(g->vm, SLOT, GM | LOG, g->fd, 0, NR_PAGES));
		copy_pages(g, copy, ALL_PAGES);
		for (i = 0; i < 5; i++) {
			usleep(1000 * (rounds % 3));
			copy_pages(g, copy, glog_read(g, 0));
		}

		race_put(&r->ctl->pause, 1);
		while (sem_trywait(&r->paused) && !race_get(&r->vcpu_gone) &&
		       now_ms() < end + 60000) {
			copy_pages(g, copy, glog_read(g, 0));
			usleep(100);
		}
		copy_pages(g, copy, glog_read(g, 0));
		for (i = 0; i < NR_PAGES / 2; i++)
			EXPECT_EQ(READ_ONCE(*page_of(g, i)), copy[i])
				TH_LOG("round %d, page %d", (int)rounds, i);

		race_put(&r->ctl->pause, 0);
		sem_post(&r->resume);
		ASSERT_WORKS(set_slot(g->vm, SLOT, GM, g->fd, 0, NR_PAGES));
		rounds++;
	}
	race_end(_metadata, r);
	EXPECT_LE(2, rounds);
}

int main(int argc, char **argv)
{
	const int flags = MAPPABLE | INIT_SHARED;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE((kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags);
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) &
		     KVM_MEMORY_ATTRIBUTE_PRIVATE);

	page_size = getpagesize();
	return test_harness_run(argc, argv);
}
