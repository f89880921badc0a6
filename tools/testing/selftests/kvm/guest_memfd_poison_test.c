// SPDX-License-Identifier: GPL-2.0
/*
 * Memory errors in guest_memfd: a page that is reported broken is not read
 * again by anybody, host or guest, and never turns into a page of zeroes
 * unasked.  Punching a hole is how userspace asks.
 *
 * Errors are simulated, the way a process can (madvise) and the way hardware
 * does (debugfs), on pages that are mapped by the host or not, and written or
 * not: core mm treats all of these differently.  Every page is given back to
 * the system in the end, if the kernel has CONFIG_HWPOISON_INJECT.
 *
 * "Memory failure:" lines in the kernel log are this test.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include <linux/kernel-page-flags.h>
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"

#define NR_PAGES	8
#define BAD		3		/* the page that breaks */
#define NR_CHARGED	64		/* more than is charged in advance */
#define SLOT		10
#define GPA		SZ_4G

#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"

static size_t page_size;

static bool can_unpoison(void)
{
	return !access(GMEM_UNPOISON_PFN, W_OK);
}

/* A file that the host has mapped and a VM with two vCPUs has in a slot. */
struct gpoison {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	int fd;
	size_t size;
	u8 *mem;
	u64 pfn;	/* of the page that breaks */
	u64 token;	/* what its first word holds before */
	long lost;	/* what the system had lost before */
	u64 leaked;	/* pages that guests have taken along before */
	bool poisoned;
};

static u8 pattern(int page)
{
	return 0xb0 + page;
}

static u64 gpa_of(int page)
{
	return GPA + page * page_size;
}

static void map_file(struct gpoison *g)
{
	g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
}

static void unmap_file(struct gpoison *g)
{
	kvm_munmap(g->mem, g->size);
	g->mem = NULL;
}

static u8 *bad_page(struct gpoison *g)
{
	return g->mem + BAD * page_size;
}

static void gpoison_setup(struct gpoison *g, unsigned long type, bool dirty)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	int i;

	g->lost = gmem_hardware_corrupted();
	g->leaked = gmem_rmp_counter("leaked");
	g->vm = __vm_create_with_vcpus(shape, 2, 1, gmem_guest_code, g->vcpus);
	gmem_catch_sigbus();

	g->size = NR_PAGES * page_size;
	g->fd = vm_create_guest_memfd(g->vm, g->size, GUEST_MEMFD_FLAG_MMAP |
						      GUEST_MEMFD_FLAG_INIT_SHARED);
	vm_set_user_memory_region2(g->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, g->size, NULL,
				   g->fd, 0);
	virt_map(g->vm, GPA, GPA, g->size / g->vm->page_size);

	map_file(g);
	for (i = 0; i < NR_PAGES; i++)
		if (i != BAD || dirty)
			memset(g->mem + i * page_size, pattern(i), page_size);
	g->token = READ_ONCE(*(u64 *)bad_page(g));
	g->pfn = gmem_pfn(bad_page(g));
	TEST_ASSERT(g->pfn, "no page frame number: is this root?");
}

static void gpoison_teardown(struct __test_metadata *_metadata, struct gpoison *g)
{
	fallocate(g->fd, GMEM_PUNCH, 0, g->size);
	if (g->mem)
		unmap_file(g);
	close(g->fd);
	kvm_vm_free(g->vm);

	if (!can_unpoison())
		return;

	/* A page that hardware takes for the guest's is not given back broken. */
	if (gmem_rmp_counter("leaked") > g->leaked) {
		EXPECT_EQ(g->leaked + 1, gmem_rmp_counter("leaked"));
		g->lost += page_size / 1024;
		g->poisoned = false;
	}

	/* Else it is nobody's now, and the system has all of its memory. */
	if (g->poisoned)
		EXPECT_EQ(0, gmem_unpoison(g->pfn))
			TH_LOG("page %#lx stays lost", (unsigned long)g->pfn);
	EXPECT_EQ(g->lost, gmem_hardware_corrupted());
}

static bool may_break_memory(void)
{
	/* With length 0 the answer is whether the kernel knows it. */
	return !geteuid() && !madvise(NULL, 0, MADV_HWPOISON);
}

#define WHY_NOT	"needs root and CONFIG_MEMORY_FAILURE"

FIXTURE(poison)
{
	struct gpoison g;
};

FIXTURE_VARIANT(poison)
{
	bool madvise;	/* else debugfs */
	bool unmapped;	/* from the host, at the time */
	bool dirty;
};

FIXTURE_VARIANT_ADD(poison, madvise_dirty)
{
	.madvise = true,
	.dirty = true,
};

FIXTURE_VARIANT_ADD(poison, madvise_clean)
{
	.madvise = true,
};

FIXTURE_VARIANT_ADD(poison, debugfs_dirty)
{
	.dirty = true,
};

FIXTURE_VARIANT_ADD(poison, debugfs_clean)
{
};

FIXTURE_VARIANT_ADD(poison, debugfs_unmapped_dirty)
{
	.unmapped = true,
	.dirty = true,
};

FIXTURE_VARIANT_ADD(poison, debugfs_unmapped_clean)
{
	.unmapped = true,
};

FIXTURE_SETUP(poison)
{
	if (!may_break_memory())
		SKIP(return, WHY_NOT);
	if (!variant->madvise && access(GMEM_CORRUPT_PFN, W_OK))
		SKIP(return, "needs " GMEM_CORRUPT_PFN " (CONFIG_HWPOISON_INJECT, debugfs)");

	gpoison_setup(&self->g, 0, variant->dirty);
}

FIXTURE_TEARDOWN(poison)
{
	gpoison_teardown(_metadata, &self->g);
}

/*
 * Break page BAD.  Returns what the kernel makes of it, 0 or -errno.  The
 * process that asks for the error may be told at once, with SIGBUS, which then
 * is the answer.
 */
static int inject(struct __test_metadata *_metadata, struct gpoison *g,
		  const FIXTURE_VARIANT(poison) * variant)
{
	int ret = 0, code;

	g->poisoned = true;
	if (variant->madvise) {
		u8 *bad = bad_page(g);

		code = gmem_sigbus(ret = madvise(bad, page_size, MADV_HWPOISON) ? -errno : 0);
		if (code) {
			EXPECT_EQ(BUS_MCEERR_AR, code);
			EXPECT_EQ(bad, (u8 *)gmem_sigbus_info.si_addr);
			return 0;
		}
		return ret;
	}

	if (variant->unmapped)
		unmap_file(g);
	ret = gmem_break_pfn(g->pfn);
	if (variant->unmapped)
		map_file(g);
	return ret;
}

static void expect_host_refused(struct __test_metadata *_metadata, struct gpoison *g)
{
	u8 *bad = bad_page(g) + 8;
	int pipefd[2];

	EXPECT_EQ(BUS_MCEERR_AR, gmem_touch_read(bad));
	EXPECT_EQ(bad, (u8 *)gmem_sigbus_info.si_addr);
	EXPECT_EQ(page_size, 1ul << gmem_sigbus_info.si_addr_lsb);
	EXPECT_EQ(BUS_MCEERR_AR, gmem_touch_write(bad, 1));
	EXPECT_EQ(bad, (u8 *)gmem_sigbus_info.si_addr);

	ASSERT_WORKS(pipe(pipefd));
	EXPECT_FAILS(EFAULT, write(pipefd[1], bad, 1));
	close(pipefd[0]);
	close(pipefd[1]);
}

static void expect_neighbours_well(struct __test_metadata *_metadata, struct gpoison *g)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (i == BAD)
			continue;
		EXPECT_TRUE(gmem_is_filled(g->mem + i * page_size, pattern(i), page_size))
			TH_LOG("page %d", i);
	}
}

/* The report is taken for handled: what can be done was done. */
TEST_F(poison, report_is_handled)
{
	EXPECT_EQ(0, inject(_metadata, &self->g, variant))
		TH_LOG("memory_failure() says that it failed");
	if (gmem_hardware_corrupted() >= 0)
		EXPECT_EQ(self->g.lost + page_size / SZ_1K, gmem_hardware_corrupted());
}

/* Through the mapping that was there, through a new one, and another. */
TEST_F(poison, host_access)
{
	struct gpoison *g = &self->g;
	int i;

	inject(_metadata, g, variant);
	expect_host_refused(_metadata, g);
	expect_neighbours_well(_metadata, g);

	for (i = 0; i < 3; i++) {
		unmap_file(g);
		map_file(g);
		expect_host_refused(_metadata, g);
		expect_neighbours_well(_metadata, g);
	}
	EXPECT_WORKS(madvise(g->mem, g->size, MADV_DONTNEED));
	expect_host_refused(_metadata, g);
}

static void expect_guest_refused(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
				 int ret)
{
	struct kvm_run *run = vcpu->run;

	EXPECT_EQ(-EHWPOISON, ret);
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
	EXPECT_EQ(gpa_of(BAD), run->memory_fault.gpa);
	EXPECT_EQ(page_size, run->memory_fault.size);
	EXPECT_EQ(0, run->memory_fault.flags);
}

/* The guest has the page in its tables, and loses it. */
TEST_F(poison, guest_access)
{
	struct gpoison *g = &self->g;
	struct kvm_vcpu *vcpu = g->vcpus[0], *other = g->vcpus[1];
	u64 val;
	int i;

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(READ_ONCE(*(u64 *)(g->mem + i * page_size)), vcpu, gpa_of(i));

	inject(_metadata, g, variant);
	expect_guest_refused(_metadata, vcpu, gmem_guest_read(vcpu, gpa_of(BAD), &val));
	/* Again, for the same access. */
	expect_guest_refused(_metadata, vcpu, gmem_guest_run(vcpu));

	/* The other one has the neighbours, and cannot write that page. */
	EXPECT_GUEST_READS(*(u64 *)(g->mem + (BAD + 1) * page_size), other, gpa_of(BAD + 1));
	EXPECT_GUEST_READS(*(u64 *)(g->mem + (BAD - 1) * page_size), other, gpa_of(BAD - 1));
	expect_guest_refused(_metadata, other, gmem_guest_write(other, gpa_of(BAD), 1));
	expect_host_refused(_metadata, g);

	/* A hole, and both go on: the read is done again, then the write. */
	ASSERT_WORKS(fallocate(g->fd, GMEM_PUNCH, BAD * page_size, page_size));
	EXPECT_EQ(0, gmem_guest_run(vcpu));
	EXPECT_EQ(0, gmem_guest_cmd.val);
	EXPECT_EQ(0, gmem_guest_run(other));
	unmap_file(g);
	map_file(g);
	EXPECT_EQ(1, READ_ONCE(*(u64 *)bad_page(g)));
	expect_neighbours_well(_metadata, g);
}

/* The page is not replaced by asking for one that is there already. */
TEST_F(poison, allocate_does_not_heal)
{
	struct gpoison *g = &self->g;

	inject(_metadata, g, variant);
	EXPECT_WORKS(fallocate(g->fd, GMEM_ALLOC, 0, g->size));
	EXPECT_WORKS(fallocate(g->fd, GMEM_ALLOC, BAD * page_size, page_size));
	expect_host_refused(_metadata, g);

	/* Holes elsewhere do not either. */
	EXPECT_WORKS(fallocate(g->fd, GMEM_PUNCH, (BAD + 1) * page_size, page_size));
	memset(g->mem + (BAD + 1) * page_size, pattern(BAD + 1), page_size);
	expect_host_refused(_metadata, g);
	expect_neighbours_well(_metadata, g);
}

/*
 * A hole takes it away; what comes instead is another page, and is zero, through
 * the mapping that was there when the error came as well.
 */
TEST_F(poison, hole_heals)
{
	struct gpoison *g = &self->g;

	inject(_metadata, g, variant);
	expect_host_refused(_metadata, g);

	EXPECT_WORKS(fallocate(g->fd, GMEM_PUNCH, BAD * page_size, page_size));
	ASSERT_EQ(0, gmem_touch_read(bad_page(g)));
	EXPECT_TRUE(gmem_is_filled(bad_page(g), 0, page_size));
	EXPECT_NE(g->pfn, gmem_pfn(bad_page(g)));
	memset(bad_page(g), pattern(BAD), page_size);
	EXPECT_TRUE(gmem_is_filled(bad_page(g), pattern(BAD), page_size));
	expect_neighbours_well(_metadata, g);
	EXPECT_GUEST_READS(*(u64 *)bad_page(g), g->vcpus[0], gpa_of(BAD));
}

/* Nothing is left behind by a file that goes away with a broken page. */
TEST_F(poison, close_with_broken_page)
{
	struct gpoison *g = &self->g;

	inject(_metadata, g, variant);
	unmap_file(g);
	close(g->fd);
	g->fd = open("/dev/null", O_RDWR);
}

/* Who has given broken pages up has their memory to spend, though the system has not. */
TEST(broken_pages_are_not_charged)
{
	const long size = NR_CHARGED * page_size, slack = size / 4;
	long before, lost = gmem_hardware_corrupted();
	char root[PATH_MAX], *group;
	u64 pfns[NR_CHARGED];
	struct kvm_vm *vm;
	unsigned int i;
	u8 *mem;
	int fd;

	if (!may_break_memory() || !can_unpoison())
		SKIP(return, WHY_NOT " and CONFIG_HWPOISON_INJECT");
	group = gmem_enter_cgroup("gmem_poison_test", root, sizeof(root));
	if (!group)
		SKIP(return, "no cgroup2 with a memory controller (CONFIG_MEMCG, mount)");

	vm = vm_create_barebones();
	fd = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_MMAP |
					     GUEST_MEMFD_FLAG_INIT_SHARED);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	memset(mem, 1, size);
	gmem_pfns(mem, NR_CHARGED, pfns);
	kvm_munmap(mem, size);

	for (i = 0; i < NR_CHARGED; i++)
		EXPECT_EQ(0, gmem_break_pfn(pfns[i]));
	before = cg_read_long(group, "memory.current");
	EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, size));
	EXPECT_LE(size - slack, before - cg_read_long(group, "memory.current"));

	for (i = 0; i < NR_CHARGED; i++)
		EXPECT_EQ(0, gmem_unpoison(pfns[i]));
	EXPECT_EQ(lost, gmem_hardware_corrupted());
	close(fd);
	kvm_vm_free(vm);
	EXPECT_WORKS(cg_enter_current(root));
	EXPECT_WORKS(cg_destroy(group));
	free(group);
}

/*
 * A private page, which no user has mapped and only the guest uses.  The error
 * is the page's, whatever it is converted to.
 */
FIXTURE(converted)
{
	struct gpoison g;
	u64 exit_flags;
};

FIXTURE_VARIANT(converted)
{
	bool protected;
};

FIXTURE_VARIANT_ADD(converted, ordinary_vm)
{
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(converted, protected_vm)
{
	.protected = true,
};
#endif

FIXTURE_SETUP(converted)
{
	unsigned long type = 0;

	if (!may_break_memory())
		SKIP(return, WHY_NOT);
	if (access(GMEM_CORRUPT_PFN, W_OK))
		SKIP(return, "needs " GMEM_CORRUPT_PFN " (CONFIG_HWPOISON_INJECT, debugfs)");
#ifdef __x86_64__
	if (variant->protected) {
		type = KVM_X86_SW_PROTECTED_VM;
		if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
			SKIP(return, "no software-protected VMs (they need the TDP MMU)");
		self->exit_flags = KVM_MEMORY_EXIT_FLAG_PRIVATE;
	}
#endif
	gpoison_setup(&self->g, type, true);
	ASSERT_WORKS(gmem_convert(self->g.fd, 0, self->g.size, GMEM_PRIVATE, NULL));
}

FIXTURE_TEARDOWN(converted)
{
	gpoison_teardown(_metadata, &self->g);
}

static u64 count_poisoned(struct gpoison *g)
{
	struct gmem_fdinfo info;
	u64 nr = -1;

	gmem_fdinfo_read(g->fd, &info);
	gmem_fdinfo(&info, "gmem-poisoned", &nr);
	return nr;
}

TEST_F(converted, private_page)
{
	struct gpoison *g = &self->g;
	struct kvm_vcpu *vcpu = g->vcpus[0];
	u64 val;
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		EXPECT_EQ(0, gmem_guest_read(vcpu, gpa_of(i), &val));
		EXPECT_EQ(pattern(i), (u8)val);
	}
	EXPECT_EQ(0, count_poisoned(g));

	g->poisoned = true;
	EXPECT_EQ(0, gmem_break_pfn(g->pfn));
	EXPECT_EQ(1, count_poisoned(g));
	EXPECT_EQ(-EHWPOISON, gmem_guest_read(vcpu, gpa_of(BAD), &val));
	EXPECT_EQ(self->exit_flags, vcpu->run->memory_fault.flags);
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(bad_page(g)));

	/* Conversion neither waits for the page nor brings it back. */
	for (i = 0; i < 3; i++) {
		EXPECT_WORKS(gmem_convert(g->fd, 0, g->size, GMEM_SHARED, NULL));
		expect_host_refused(_metadata, g);
		expect_neighbours_well(_metadata, g);
		expect_guest_refused(_metadata, vcpu, gmem_guest_run(vcpu));

		EXPECT_WORKS(gmem_convert(g->fd, BAD * page_size, page_size, GMEM_PRIVATE, NULL));
		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(bad_page(g)));
		EXPECT_EQ(-EHWPOISON, gmem_guest_run(vcpu));
		EXPECT_EQ(self->exit_flags, vcpu->run->memory_fault.flags);
	}
	EXPECT_EQ(1, count_poisoned(g));

	/* A hole does, and leaves the state. */
	EXPECT_WORKS(fallocate(g->fd, GMEM_PUNCH, BAD * page_size, page_size));
	EXPECT_EQ(0, count_poisoned(g));
	EXPECT_EQ(0, gmem_guest_run(vcpu));
	EXPECT_EQ(0, gmem_guest_cmd.val);
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(bad_page(g)));
	EXPECT_WORKS(gmem_convert(g->fd, 0, g->size, GMEM_SHARED, NULL));
	EXPECT_TRUE(gmem_is_filled(bad_page(g), 0, page_size));
	expect_neighbours_well(_metadata, g);
}

/* A page that breaks while it is shared, and is converted in all haste. */
TEST_F(converted, shared_page)
{
	struct gpoison *g = &self->g;
	u64 val;

	ASSERT_WORKS(gmem_convert(g->fd, 0, g->size, GMEM_SHARED, NULL));
	EXPECT_EQ(0, gmem_touch_write(bad_page(g), 1));
	g->poisoned = true;
	EXPECT_EQ(0, gmem_break_pfn(g->pfn));
	EXPECT_WORKS(gmem_convert(g->fd, 0, g->size, GMEM_PRIVATE, NULL));
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(bad_page(g)));
	EXPECT_EQ(-EHWPOISON, gmem_guest_read(g->vcpus[0], gpa_of(BAD), &val));
	EXPECT_EQ(self->exit_flags, g->vcpus[0]->run->memory_fault.flags);
}

/*
 * Soft offlining wants the page empty before it breaks.  guest_memfd does not
 * move memory, so a page that was written stays; above all nothing is lost.
 */
FIXTURE(offline)
{
	struct gpoison g;
};

FIXTURE_VARIANT(offline)
{
	bool madvise;		/* else by sysfs, and not mapped */
	bool host_wrote;
	bool guest_wrote;
};

FIXTURE_VARIANT_ADD(offline, madvise)
{
	.madvise = true,
	.host_wrote = true,
};

FIXTURE_VARIANT_ADD(offline, sysfs_host_wrote)
{
	.host_wrote = true,
};

FIXTURE_VARIANT_ADD(offline, sysfs_guest_wrote)
{
	.guest_wrote = true,
};

FIXTURE_VARIANT_ADD(offline, sysfs_clean)
{
};

FIXTURE_SETUP(offline)
{
	if (!may_break_memory())
		SKIP(return, WHY_NOT);
	if (!variant->madvise && access(SOFT_OFFLINE, W_OK))
		SKIP(return, "needs " SOFT_OFFLINE " (CONFIG_MEMORY_HOTPLUG)");

	gpoison_setup(&self->g, 0, variant->host_wrote);
}

FIXTURE_TEARDOWN(offline)
{
	gpoison_teardown(_metadata, &self->g);
}

TEST_F(offline, contents_stay)
{
	struct gpoison *g = &self->g;
	u64 want = g->token;

	if (variant->guest_wrote) {
		want = 0x1234567890;
		EXPECT_GUEST_WRITES(g->vcpus[0], gpa_of(BAD), want);
	}

	if (variant->madvise) {
		EXPECT_EQ(0, gmem_sigbus(madvise(bad_page(g), page_size, MADV_SOFT_OFFLINE)));
	} else {
		unmap_file(g);
		gmem_write_number(SOFT_OFFLINE, g->pfn * page_size);
		map_file(g);
	}

	EXPECT_GUEST_READS(want, g->vcpus[0], gpa_of(BAD));
	EXPECT_EQ(want, READ_ONCE(*(u64 *)bad_page(g)));

	/* Host and guest still have one page, not one each. */
	EXPECT_GUEST_WRITES(g->vcpus[0], gpa_of(BAD), 0x77);
	EXPECT_EQ(0x77, READ_ONCE(*(u64 *)bad_page(g)));

	/* The kernel may have taken the page for bad; then it is not ours. */
	g->poisoned = g->pfn != gmem_pfn(bad_page(g));
	memset(bad_page(g), pattern(BAD), page_size);
	expect_neighbours_well(_metadata, g);
}

/*
 * Errors and holes at the same time.  The error has the page locked when it
 * comes to guest_memfd, the hole has the file locked when it comes to the
 * page: each waiting for the other would be for ever, with the machine's only
 * lock for memory errors held.  Keep this test the last one.
 */
FIXTURE(race)
{
	struct gpoison g;
};

FIXTURE_SETUP(race)
{
	if (!may_break_memory())
		SKIP(return, WHY_NOT);
	if (!can_unpoison())
		SKIP(return, "the pages would be lost: no " GMEM_UNPOISON_PFN);
	if (gmem_hardware_corrupted() != gmem_rmp_counter("leaked") * page_size / 1024)
		SKIP(return, "there is broken memory, which is not to be mixed up with ours");

	gpoison_setup(&self->g, 0, true);
}

FIXTURE_TEARDOWN(race)
{
	gpoison_teardown(_metadata, &self->g);
}

#define RACE_ROUNDS	200
#define RACE_SECONDS	10

static bool race_over;

static void *punch_holes(void *arg)
{
	struct gpoison *g = arg;

	while (!READ_ONCE(race_over))
		fallocate(g->fd, GMEM_PUNCH, 0, g->size);
	return NULL;
}

static void *break_pages(void *arg)
{
	struct gpoison *g = arg;
	u8 *bad;
	int i;

	for (i = 0; i < RACE_ROUNDS && !READ_ONCE(race_over); i++) {
		/* A new mapping each time: one that met an error keeps it. */
		bad = __kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd,
				 BAD * page_size);
		if (!gmem_touch_write(bad, 1))
			gmem_sigbus((void)madvise(bad, page_size, MADV_HWPOISON));
		kvm_munmap(bad, page_size);
	}
	return NULL;
}

static bool join_until(pthread_t thread, time_t end)
{
	struct timespec ts = { .tv_sec = end };

	return !pthread_timedjoin_np(thread, NULL, &ts);
}

/* Which page an error hit is not known here, so look for all of them. */
static int unpoison_all(void)
{
	int fd = open("/proc/kpageflags", O_RDONLY), failed = 0;
	const size_t chunk = SZ_512K;
	u64 *flags, pfn = 0;
	ssize_t len;
	int i;

	TEST_ASSERT(fd >= 0, "kpageflags: errno %d", errno);
	/* Not on the stack or static, which the guest would get a copy of. */
	flags = malloc(chunk);
	while ((len = pread(fd, flags, chunk, pfn * sizeof(u64))) > 0) {
		for (i = 0; i < len / sizeof(u64); i++, pfn++)
			if (flags[i] & BIT(KPF_HWPOISON))
				failed += !!gmem_unpoison(pfn);
	}
	free(flags);
	close(fd);
	return failed;
}

/* To look at the flags of all pages takes a debug kernel that long. */
TEST_F_TIMEOUT(race, errors_and_holes, 12 * RACE_SECONDS)
{
	struct gpoison *g = &self->g;
	const time_t end = time(NULL) + RACE_SECONDS;
	pthread_t puncher, breaker;
	bool joined;

	kvm_pthread_create(&puncher, NULL, punch_holes, g);
	kvm_pthread_create(&breaker, NULL, break_pages, g);
	joined = join_until(breaker, end);
	WRITE_ONCE(race_over, true);

	if (!join_until(puncher, end + RACE_SECONDS)) {
		TH_LOG("deadlock: the thread that punches holes does not come back");
		/* The threads cannot be killed, and the teardown would join them. */
		_exit(KSFT_FAIL);
	}
	if (!joined)
		kvm_pthread_join(breaker, NULL);

	EXPECT_LT(g->lost, gmem_hardware_corrupted()) TH_LOG("not one error got through");
	EXPECT_WORKS(fallocate(g->fd, GMEM_PUNCH, 0, g->size));
	unmap_file(g);
	EXPECT_EQ(g->leaked, unpoison_all());
	map_file(g);
	EXPECT_EQ(0, gmem_touch_read(bad_page(g)));
	EXPECT_TRUE(gmem_is_filled(g->mem, 0, g->size));
	EXPECT_GUEST_READS(0, g->vcpus[0], gpa_of(BAD));
}

int main(int argc, char **argv)
{
	const int flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE((kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags);

	page_size = getpagesize();
	return test_harness_run(argc, argv);
}
