// SPDX-License-Identifier: GPL-2.0
/*
 * guest_memfd files in memslots: which bindings are refused and that a refused
 * one leaves no trace, in which order file, slot and VM may go away, and what
 * a guest sees of the file.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"

#define NR_PAGES	16
#define SLOT		10
#define GPA		SZ_4G		/* above what the library uses */

static size_t page_size;

static int gmem_create(struct kvm_vm *vm, u64 flags)
{
	return vm_create_guest_memfd(vm, NR_PAGES * page_size, flags);
}

/* Bind @nr pages of @fd from page @first on. */
static int gmem_bind(struct kvm_vm *vm, u32 slot, u64 gpa, int fd, int first, int nr)
{
	return __vm_set_user_memory_region2(vm, slot, KVM_MEM_GUEST_MEMFD, gpa,
					    nr * page_size, NULL, fd, first * page_size);
}

static int delete_slot(struct kvm_vm *vm, u32 slot)
{
	return __vm_set_user_memory_region2(vm, slot, 0, 0, 0, NULL, 0, 0);
}

/* A VM that does not run, and a file. */
FIXTURE(bind)
{
	struct kvm_vm *vm;
	int fd;
};

FIXTURE_SETUP(bind)
{
	self->vm = vm_create_barebones();
	self->fd = gmem_create(self->vm, GUEST_MEMFD_FLAG_MMAP);
}

FIXTURE_TEARDOWN(bind)
{
	close(self->fd);
	kvm_vm_free(self->vm);
}

TEST_F(bind, errors)
{
	const u64 p = page_size, size = NR_PAGES * p, gm = KVM_MEM_GUEST_MEMFD;
	struct kvm_vm *other = vm_create_barebones();
	const int foreign = gmem_create(other, GUEST_MEMFD_FLAG_MMAP);
	const int memfd = memfd_create("other", 0);
	const int fd = self->fd;
	char path[32];
	int pathfd, i;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	pathfd = open(path, O_PATH);
	ASSERT_GE(pathfd, 0);
	ASSERT_GE(memfd, 0);
	ASSERT_WORKS(ftruncate(memfd, size));

	const struct {
		const char *what;
		u64 flags, gpa, size, hva;
		int fd;
		u64 offset;
		int err;
	} rows[] = {
		{ "no file",		gm, GPA, 4 * p, 0, -1, 0, EBADF },
		{ "no such file",	gm, GPA, 4 * p, 0, 1 << 30, 0, EBADF },
		{ "a path",		gm, GPA, 4 * p, 0, pathfd, 0, EBADF },
		{ "a memfd",		gm, GPA, 4 * p, 0, memfd, 0, EINVAL },
		{ "a VM",		gm, GPA, 4 * p, 0, self->vm->fd, 0, EINVAL },
		{ "another VM's file",	gm, GPA, 4 * p, 0, foreign, 0, EINVAL },

		{ "offset 1",		gm, GPA, 4 * p, 0, fd, 1, EINVAL },
		{ "half a page",	gm, GPA, 4 * p, 0, fd, p / 2, EINVAL },
		{ "page less 1",	gm, GPA, 4 * p, 0, fd, p - 1, EINVAL },
		{ "at the end",		gm, GPA, 4 * p, 0, fd, size, EINVAL },
		{ "over the end",	gm, GPA, 4 * p, 0, fd, size - 3 * p, EINVAL },
		{ "file and a page",	gm, GPA, size + p, 0, fd, 0, EINVAL },
		{ "far away",		gm, GPA, 4 * p, 0, fd, 1ull << 40, EINVAL },
		{ "offset 2^63",	gm, GPA, 4 * p, 0, fd, 1ull << 63, EINVAL },
		{ "2^63 less a page",	gm, GPA, 4 * p, 0, fd, (1ull << 63) - p, EINVAL },
		{ "sum is 0",		gm, GPA, 4 * p, 0, fd, -4 * p, EINVAL },
		{ "sum is a page",	gm, GPA, 4 * p, 0, fd, -3 * p, EINVAL },

		{ "address 1",		gm, GPA + 1, 4 * p, 0, fd, 0, EINVAL },
		{ "address wraps",	gm, -2 * p, 4 * p, 0, fd, 0, EINVAL },
		{ "size 0",		gm, GPA, 0, 0, fd, 0, EINVAL },
		{ "size 1",		gm, GPA, 1, 0, fd, 0, EINVAL },
		{ "page and 1",		gm, GPA, p + 1, 0, fd, 0, EINVAL },
		{ "host address 1",	gm, GPA, 4 * p, 1, fd, 0, EINVAL },
		{ "kernel address",	gm, GPA, 4 * p, -4 * p, fd, 0, EINVAL },

		{ "read-only",		gm | KVM_MEM_READONLY, GPA, 4 * p, 0, fd, 0, EINVAL },
		{ "unknown flag",	gm | BIT(3), GPA, 4 * p, 0, fd, 0, EINVAL },
		{ "last flag",		gm | BIT(31), GPA, 4 * p, 0, fd, 0, EINVAL },
	};

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(rows[i].err,
			       __vm_set_user_memory_region2(self->vm, SLOT, rows[i].flags,
							    rows[i].gpa, rows[i].size,
							    (void *)rows[i].hva, rows[i].fd,
							    rows[i].offset),
			       "%s", rows[i].what);

		/* Slot, addresses and the whole file are as free as before. */
		EXPECT_EQ(0, gmem_bind(self->vm, SLOT, GPA, fd, 0, NR_PAGES))
			TH_LOG("after '%s': %s", rows[i].what, strerror(errno));
		EXPECT_WORKS(delete_slot(self->vm, SLOT));
	}

	/* The first version of the ioctl knows of no file. */
	EXPECT_FAILS(EINVAL, __vm_set_user_memory_region(self->vm, SLOT, gm, GPA, p, NULL));

	close(foreign);
	kvm_vm_free(other);
	close(memfd);
	close(pathfd);
}

/* The padding has never been looked at. */
TEST_F(bind, padding_is_ignored)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = SLOT,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = GPA,
		.memory_size = page_size,
		.guest_memfd = self->fd,
		.pad1 = ~0,
	};

	memset(region.pad2, 0xff, sizeof(region.pad2));
	EXPECT_WORKS(__vm_ioctl(self->vm, KVM_SET_USER_MEMORY_REGION2, &region));
}

/* A page of a file is in one slot at most. */
TEST_F(bind, overlap)
{
	/* Pages 4 to 7 are taken. */
	const struct {
		int first, nr;
	} rows[] = {
		{ 4, 4 }, { 4, 1 }, { 7, 1 }, { 5, 2 }, { 3, 2 }, { 7, 2 }, { 3, 6 },
		{ 0, 5 }, { 7, 9 }, { 0, NR_PAGES },
	};
	const u64 gpa2 = GPA + SZ_1G;
	int i;

	ASSERT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 4, 4));

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, gpa2, self->fd,
						 rows[i].first, rows[i].nr),
			       "pages %d, %d", rows[i].first, rows[i].nr);

		/* Slot, addresses and the rest of the file are still free. */
		EXPECT_WORKS(gmem_bind(self->vm, SLOT + 1, gpa2, self->fd, 8, 8));
		EXPECT_WORKS(gmem_bind(self->vm, SLOT + 2, gpa2 + SZ_1G, self->fd, 0, 4));
		EXPECT_WORKS(delete_slot(self->vm, SLOT + 1));
		EXPECT_WORKS(delete_slot(self->vm, SLOT + 2));
	}

	/* Guest addresses that are taken: the pages remain free. */
	EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, GPA, self->fd, 8, 1));
	EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, GPA + 3 * page_size, self->fd, 8, 2));
	EXPECT_WORKS(gmem_bind(self->vm, SLOT + 1, GPA + 4 * page_size, self->fd, 8, 2));

	/* Another file has pages of its own. */
	close(self->fd);
	self->fd = gmem_create(self->vm, GUEST_MEMFD_FLAG_MMAP);
	EXPECT_WORKS(gmem_bind(self->vm, SLOT + 2, gpa2, self->fd, 4, 4));
}

/* A bound slot can be deleted, and nothing else. */
TEST_F(bind, immutable)
{
	const int other = gmem_create(self->vm, GUEST_MEMFD_FLAG_MMAP);
	const u64 p = page_size, gm = KVM_MEM_GUEST_MEMFD;
	const struct {
		const char *what;
		u64 flags, gpa, size, hva;
		int fd;
		u64 offset;
	} rows[] = {
		{ "the same",		gm, GPA, 4 * p, 0, self->fd, 4 * p },
		{ "moved",		gm, GPA + SZ_1G, 4 * p, 0, self->fd, 4 * p },
		{ "longer",		gm, GPA, 5 * p, 0, self->fd, 4 * p },
		{ "shorter",		gm, GPA, 3 * p, 0, self->fd, 4 * p },
		{ "other pages",	gm, GPA, 4 * p, 0, self->fd, 8 * p },
		{ "other file",		gm, GPA, 4 * p, 0, other, 4 * p },
		{ "other address",	gm, GPA, 4 * p, p, self->fd, 4 * p },
		{ "no file",		0, GPA, 4 * p, 0, 0, 0 },
		{ "moved, no file",	0, GPA + SZ_1G, 4 * p, 0, 0, 0 },
		{ "logged, no file",	KVM_MEM_LOG_DIRTY_PAGES, GPA, 4 * p, 0, 0, 0 },
		{ "logged, other pages", gm | KVM_MEM_LOG_DIRTY_PAGES, GPA, 4 * p, 0,
					self->fd, 8 * p },
		{ "logged, other file",	gm | KVM_MEM_LOG_DIRTY_PAGES, GPA, 4 * p, 0,
					other, 4 * p },
		{ "read-only",		gm | KVM_MEM_READONLY, GPA, 4 * p, 0,
					self->fd, 4 * p },
	};
	void *mem;
	int i;

	ASSERT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 4, 4));
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(EINVAL,
			       __vm_set_user_memory_region2(self->vm, SLOT, rows[i].flags,
							    rows[i].gpa, rows[i].size,
							    (void *)rows[i].hva, rows[i].fd,
							    rows[i].offset),
			       "%s", rows[i].what);

		/* The binding is still what it was, neither less nor more. */
		EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, GPA + SZ_1G, self->fd, 7, 1));
		EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, GPA + 3 * p, self->fd, 8, 1));
		EXPECT_WORKS(gmem_bind(self->vm, SLOT + 1, GPA + SZ_1G, self->fd, 8, 4));
		EXPECT_WORKS(gmem_bind(self->vm, SLOT + 2, GPA + 4 * p, other, 4, 4));
		EXPECT_WORKS(delete_slot(self->vm, SLOT + 1));
		EXPECT_WORKS(delete_slot(self->vm, SLOT + 2));
	}
	EXPECT_WORKS(delete_slot(self->vm, SLOT));
	EXPECT_FAILS(EINVAL, delete_slot(self->vm, SLOT));

	/* An ordinary slot does not become one with a file. */
	mem = kvm_mmap(4 * p, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, 0, GPA, 4 * p, mem, 0, 0));
	EXPECT_FAILS(EINVAL, __vm_set_user_memory_region2(self->vm, SLOT, gm, GPA, 4 * p, mem,
							  self->fd, 0));
	EXPECT_WORKS(gmem_bind(self->vm, SLOT + 1, GPA + SZ_1G, self->fd, 0, NR_PAGES));
	close(other);
}

/* What a deleted slot had is free again, in any arrangement. */
TEST_F(bind, rebind)
{
	int i, round;

	for (round = 0; round < 10; round++) {
		/* All pages, one slot each, last one first. */
		for (i = NR_PAGES - 1; i >= 0; i--)
			ASSERT_WORKS(gmem_bind(self->vm, SLOT + i, GPA + i * page_size, self->fd,
					       NR_PAGES - 1 - i, 1));
		EXPECT_FAILS(EEXIST, gmem_bind(self->vm, 1, GPA + SZ_1G, self->fd, 0, NR_PAGES));

		/* Every pair gives one page back, and gets it again elsewhere. */
		for (i = 0; i < NR_PAGES; i += 2)
			ASSERT_WORKS(delete_slot(self->vm, SLOT + i));
		for (i = 0; i < NR_PAGES; i += 2) {
			EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + i, GPA + SZ_1G, self->fd,
						       NR_PAGES - 2 - i, 2));
			ASSERT_WORKS(gmem_bind(self->vm, SLOT + i, GPA + SZ_1G + i * page_size,
					       self->fd, NR_PAGES - 1 - i, 1));
		}
		for (i = 0; i < NR_PAGES; i++)
			ASSERT_WORKS(delete_slot(self->vm, SLOT + i));

		ASSERT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 0, NR_PAGES));
		ASSERT_WORKS(delete_slot(self->vm, SLOT));
	}
}

/* Descriptor, slot and VM go away in every order. */
TEST_F(bind, lifetimes)
{
	static const char * const orders[] = {
		"fsv", "fvs", "sfv", "svf", "vfs", "vsf", "vf", "fv",
	};
	struct kvm_userspace_memory_region2 none = { .slot = SLOT };
	const char *step;
	struct kvm_vm *vm;
	int i, fd, vmfd;

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		vm = vm_create_barebones();
		vmfd = kvm_dup(vm->fd);
		fd = gmem_create(vm, GUEST_MEMFD_FLAG_MMAP);
		ASSERT_WORKS(fallocate(fd, GMEM_ALLOC, 0, 4 * page_size));
		ASSERT_WORKS(gmem_bind(vm, SLOT, GPA, fd, 0, NR_PAGES));

		for (step = orders[i]; *step; step++) {
			switch (*step) {
			case 'f':
				EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, page_size));
				EXPECT_WORKS(close(fd));
				break;
			case 's':
				EXPECT_WORKS(ioctl(vmfd, KVM_SET_USER_MEMORY_REGION2, &none));
				break;
			case 'v':
				kvm_vm_free(vm);
				break;
			}
		}
		close(vmfd);
	}
}

/* A slot whose file is gone is a slot still, until it is deleted. */
TEST_F(bind, closed_file_keeps_slot)
{
	int fd = kvm_dup(self->fd);

	ASSERT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 0, 4));

	/* Not the last descriptor: the binding is there. */
	close(self->fd);
	EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, GPA + SZ_1G, fd, 3, 1));

	close(fd);
	self->fd = gmem_create(self->vm, GUEST_MEMFD_FLAG_MMAP);
	EXPECT_FAILS(EEXIST, gmem_bind(self->vm, SLOT + 1, GPA, self->fd, 0, 4));
	EXPECT_FAILS(EINVAL, gmem_bind(self->vm, SLOT, GPA, self->fd, 0, 4));
	EXPECT_WORKS(delete_slot(self->vm, SLOT));
	EXPECT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 0, 4));
}

/* arm64 takes files only that can be mapped; x86 takes all. */
TEST_F(bind, not_mappable)
{
	int fd = gmem_create(self->vm, 0);

#ifdef __aarch64__
	EXPECT_FAILS(EINVAL, gmem_bind(self->vm, SLOT, GPA, fd, 0, 4));
	EXPECT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 0, 4));
#else
	EXPECT_WORKS(gmem_bind(self->vm, SLOT, GPA, fd, 0, 4));
#endif
	close(fd);
}

/*
 * A VM that runs, with one file in one slot, and the file mapped in the host.
 * VMs without private memory: the guest has all of it, the host what is shared.
 */
FIXTURE(guest)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	u64 *mem;
	size_t size;
	bool shared;
};

FIXTURE_VARIANT(guest)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(guest, private)
{
	.flags = GUEST_MEMFD_FLAG_MMAP,
};

FIXTURE_VARIANT_ADD(guest, shared)
{
	.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
};

FIXTURE_SETUP(guest)
{
	self->vm = __vm_create_shape_with_one_vcpu(VM_SHAPE_DEFAULT, &self->vcpu, 1,
						   gmem_guest_code);
	gmem_catch_sigbus();

	self->size = NR_PAGES * page_size;
	self->shared = variant->flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	self->fd = gmem_create(self->vm, variant->flags);
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	ASSERT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 0, NR_PAGES));

	/* Twice as much as there is, for slots that come later. */
	virt_map(self->vm, GPA, GPA, 2 * self->size / self->vm->page_size);
}

FIXTURE_TEARDOWN(guest)
{
	kvm_munmap(self->mem, self->size);
	close(self->fd);
	kvm_vm_free(self->vm);
}

static u64 *page_of(u64 *mem, int page)
{
	return (void *)mem + page * page_size;
}

static u64 gpa_of(int page)
{
	return GPA + page * page_size;
}

/* What the host has at the start of a page: @val, or no access. */
#define EXPECT_HOST_SEES(val, page)						\
do {										\
	u64 *__p = page_of(self->mem, page);					\
										\
	EXPECT_EQ(self->shared ? 0 : BUS_ADRERR, gmem_touch_read(__p));		\
	if (self->shared)							\
		EXPECT_EQ(val, READ_ONCE(*__p));				\
} while (0)

TEST_F(guest, zero_at_first)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(0, self->vcpu, gpa_of(i));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_HOST_SEES(0, i);
}

TEST_F(guest, contents)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_WRITES(self->vcpu, gpa_of(i), 0x1000 + i);
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_HOST_SEES(0x1000 + i, i);

	/* The host writes, or tries to. */
	for (i = 0; i < NR_PAGES; i += 2)
		EXPECT_EQ(self->shared ? 0 : BUS_ADRERR,
			  gmem_touch_write(page_of(self->mem, i), 0xff));

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(self->shared && !(i % 2) ? 0x10ff : 0x1000 + i,
				   self->vcpu, gpa_of(i));

	/* The mapping in the host is nothing to the guest. */
	kvm_munmap(self->mem, self->size);
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(1));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x2001);
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	EXPECT_HOST_SEES(0x2001, 1);
}

/* A hole takes the page from the guest's tables, too. */
TEST_F(guest, punch_hole)
{
	int i, round;

	for (round = 0; round < 3; round++) {
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_GUEST_WRITES(self->vcpu, gpa_of(i), 0x1000 + i);
		EXPECT_WORKS(fallocate(self->fd, GMEM_PUNCH, 4 * page_size, 2 * page_size));

		EXPECT_GUEST_READS(0x1003, self->vcpu, gpa_of(3));
		EXPECT_GUEST_READS(0, self->vcpu, gpa_of(4));
		EXPECT_HOST_SEES(0, 5);
		EXPECT_GUEST_READS(0x1006, self->vcpu, gpa_of(6));

		/* Both sides have the same new pages. */
		EXPECT_GUEST_WRITES(self->vcpu, gpa_of(4), 0x3004);
		EXPECT_GUEST_WRITES(self->vcpu, gpa_of(5), 0x3005);
		EXPECT_HOST_SEES(0x3004, 4);
		EXPECT_HOST_SEES(0x3005, 5);
	}
}

/* The slot's host address is not where the guest's memory comes from. */
TEST_F(guest, host_address_is_ignored)
{
	void *decoy = kvm_mmap(self->size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1);

	memset(decoy, 0x5a, self->size);
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1001);
	ASSERT_WORKS(delete_slot(self->vm, SLOT));
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
						  self->size, decoy, self->fd, 0));

	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(0));
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(1));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(2), 0x1002);
	EXPECT_HOST_SEES(0x1002, 2);
	EXPECT_TRUE(gmem_is_filled(decoy, 0x5a, self->size));
	kvm_munmap(decoy, self->size);
	EXPECT_GUEST_READS(0x1002, self->vcpu, gpa_of(2));
}

/* Slots come and go, the memory is the file's. */
TEST_F(guest, slots_on_one_file)
{
	const int half = NR_PAGES / 2;
	int i;

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_WRITES(self->vcpu, gpa_of(i), 0x1000 + i);
	ASSERT_WORKS(delete_slot(self->vm, SLOT));

	/* Two slots with the halves of the file changed over. */
	ASSERT_WORKS(gmem_bind(self->vm, SLOT, gpa_of(0), self->fd, half, half));
	ASSERT_WORKS(gmem_bind(self->vm, SLOT + 1, gpa_of(half), self->fd, 0, half));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(0x1000 + (i + half) % NR_PAGES, self->vcpu, gpa_of(i));

	/* A hole reaches the guest in the slot that has the page. */
	EXPECT_WORKS(fallocate(self->fd, GMEM_PUNCH, 0, page_size));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(half));
	EXPECT_GUEST_READS(0x1000 + half, self->vcpu, gpa_of(0));

	/* And deleting one slot leaves the other. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT));
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(half + 1));
	ASSERT_WORKS(gmem_bind(self->vm, SLOT, gpa_of(NR_PAGES), self->fd, half, half));
	EXPECT_GUEST_READS(0x1000 + half, self->vcpu, gpa_of(NR_PAGES));
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(half + 1));
}

/* The last close takes the memory from a guest that has it mapped. */
TEST_F(guest, close_under_the_guest)
{
	int fd = kvm_dup(self->fd);
	u64 val;

	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1001);
	close(self->fd);
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(1));

	/* A mapping has the file open as well. */
	close(fd);
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(1));
	kvm_munmap(self->mem, self->size);

	EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, gpa_of(1), &val), self->vcpu,
			    gpa_of(1), 0);
	EXPECT_MEMORY_FAULT(gmem_guest_write(self->vcpu, gpa_of(2), 1), self->vcpu,
			    gpa_of(1), 0);

	/* A new file in its place: the guest goes on, with the first access. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT));
	self->fd = gmem_create(self->vm, variant->flags);
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	ASSERT_WORKS(gmem_bind(self->vm, SLOT, GPA, self->fd, 0, NR_PAGES));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(2), 0x1002);
	EXPECT_HOST_SEES(0x1002, 2);
}

/* Without a slot it is no memory at all, though the file is there. */
TEST_F(guest, delete_under_the_guest)
{
	u64 val;

	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1001);
	ASSERT_WORKS(delete_slot(self->vm, SLOT));
	EXPECT_EQ(KVM_EXIT_MMIO, gmem_guest_read(self->vcpu, gpa_of(1), &val));
	EXPECT_EQ(gpa_of(1), self->vcpu->run->mmio.phys_addr);
	EXPECT_HOST_SEES(0x1001, 1);
}

#ifdef __x86_64__
/* The software-protected VM: attributes choose between file and host memory. */
FIXTURE(protected)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	u64 *host;
	size_t size;
};

FIXTURE_SETUP(protected)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
	if (!kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES))
		SKIP(return, "VMs have no attributes: vm_memory_attributes=N");

	self->vm = __vm_create_shape_with_one_vcpu(shape, &self->vcpu, 1, gmem_guest_code);
	gmem_catch_sigbus();

	self->size = NR_PAGES * page_size;
	self->fd = gmem_create(self->vm, 0);
	self->host = kvm_mmap(self->size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
						  self->size, self->host, self->fd, 0));
	virt_map(self->vm, GPA, GPA, self->size / self->vm->page_size);
}

FIXTURE_TEARDOWN(protected)
{
	close(self->fd);
	kvm_munmap(self->host, self->size);
	kvm_vm_free(self->vm);
}

/* The memory of any VM may start out shared. */
TEST_F(protected, init_shared)
{
	EXPECT_NE(0, vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
		     GUEST_MEMFD_FLAG_INIT_SHARED);
	close(gmem_create(self->vm, GUEST_MEMFD_FLAG_INIT_SHARED));
	close(gmem_create(self->vm, GUEST_MEMFD_FLAG_INIT_SHARED |
				    GUEST_MEMFD_FLAG_MMAP));
}

TEST_F(protected, two_memories)
{
	struct kvm_vm *vm = self->vm;

	/* Shared: the host's. */
	WRITE_ONCE(*page_of(self->host, 1), 0x2001);
	EXPECT_GUEST_READS(0x2001, self->vcpu, gpa_of(1));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(2), 0x2002);
	EXPECT_EQ(0x2002, READ_ONCE(*page_of(self->host, 2)));

	/* Private: the file's, zero at first. */
	vm_mem_set_private(vm, gpa_of(1), 2 * page_size);
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1001);
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(2), 0x1002);
	EXPECT_EQ(0x2001, READ_ONCE(*page_of(self->host, 1)));
	EXPECT_EQ(0x2002, READ_ONCE(*page_of(self->host, 2)));

	/* Back and forth, each keeps what it has. */
	vm_mem_set_shared(vm, gpa_of(1), page_size);
	EXPECT_GUEST_READS(0x2001, self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(0x1002, self->vcpu, gpa_of(2));
	vm_mem_set_private(vm, gpa_of(1), page_size);
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(1));

	/* A hole is a hole in the file. */
	EXPECT_WORKS(fallocate(self->fd, GMEM_PUNCH, page_size, page_size));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(0x1002, self->vcpu, gpa_of(2));
	EXPECT_EQ(0x2001, READ_ONCE(*page_of(self->host, 1)));
}

TEST_F(protected, close_under_the_guest)
{
	u64 val;

	vm_mem_set_private(self->vm, gpa_of(1), page_size);
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1001);
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(2), 0x2002);
	close(self->fd);
	EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, gpa_of(1), &val), self->vcpu,
			    gpa_of(1), KVM_MEMORY_EXIT_FLAG_PRIVATE);

	/* Shared memory was never in the file. */
	vm_mem_set_shared(self->vm, gpa_of(1), page_size);
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(0x2002, self->vcpu, gpa_of(2));
	self->fd = gmem_create(self->vm, 0);
}

/* A file that can be mapped is the only memory of its slot. */
TEST_F(protected, mappable_file)
{
	ASSERT_WORKS(delete_slot(self->vm, SLOT));
	close(self->fd);
	self->fd = gmem_create(self->vm, GUEST_MEMFD_FLAG_MMAP);
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
						  self->size, self->host, self->fd, 0));

	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1001);
	vm_mem_set_private(self->vm, gpa_of(1), page_size);
	EXPECT_GUEST_READS(0x1001, self->vcpu, gpa_of(1));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x1002);
	vm_mem_set_shared(self->vm, gpa_of(1), page_size);
	EXPECT_GUEST_READS(0x1002, self->vcpu, gpa_of(1));
	EXPECT_EQ(0, READ_ONCE(*page_of(self->host, 1)));

	EXPECT_WORKS(fallocate(self->fd, GMEM_PUNCH, 0, self->size));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
}
#endif /* __x86_64__ */

int main(int argc, char **argv)
{
	const int flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE((kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags);

	page_size = getpagesize();
	return test_harness_run(argc, argv);
}
