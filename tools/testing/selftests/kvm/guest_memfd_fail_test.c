// SPDX-License-Identifier: GPL-2.0
/*
 * Creation, allocation, guest faults and conversion with each of their allocations
 * failing in turn: they fail with the errno that is documented, and nothing has
 * changed.  Or they do not need what they did not get, and all has.
 *
 * By /proc/thread-self/fail-nth, which fails the n-th thing that can be made to
 * fail: allocations, and copies from and to user space.
 */
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define NR_PAGES	2048
#define MAX_NTH		200
#define SLOT		10
#define GPA		SZ_4G

static size_t page_size;

FIXTURE(fail)
{
	struct kvm_vm *vm;
	u64 flags;
	u64 block;		/* in pages */
	int fd;
	int nth;
	u8 *mem;
	bool private[NR_PAGES];
};

FIXTURE_VARIANT(fail)
{
	bool blocks;
};

FIXTURE_VARIANT_ADD(fail, pages)
{
};

FIXTURE_VARIANT_ADD(fail, blocks)
{
	.blocks = true,
};

FIXTURE_SETUP(fail)
{
	u64 sizes;

	page_size = getpagesize();
	self->flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	self->block = 1;
	if (variant->blocks) {
		/* The smaller ones: those have something to fall back to. */
		sizes = (u32)kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES) & ~page_size;
		self->block = (sizes & -sizes) / page_size;
		if (!sizes || self->block > NR_PAGES / 2)
			SKIP(return, "no blocks, or large ones only");
		self->flags |= (u64)__builtin_ctzll(sizes) << GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	}
	self->nth = open(FAIL_NTH, O_RDWR);
	if (self->nth < 0)
		SKIP(return, "needs CONFIG_FAULT_INJECTION and root");
	/* Those that may sleep included, which all of ours may. */
	gmem_write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	/* No stack traces: the log is for what goes wrong. */
	gmem_write_file("/sys/kernel/debug/failslab/verbose", "0");
	/* Copies from and to user space: there are such only in a kernel that can fail them. */
	gmem_write_file("/sys/kernel/debug/fail_usercopy/verbose", "0");
	gmem_write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	gmem_write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	gmem_write_file("/sys/kernel/debug/fail_page_alloc/verbose", "0");

	gmem_catch_sigbus();
	self->vm = vm_create_barebones();
	self->fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, self->flags);
	self->mem = kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
}

FIXTURE_TEARDOWN(fail)
{
	close(self->nth);
	close(self->fd);
	kvm_munmap(self->mem, NR_PAGES * page_size);
	kvm_vm_free(self->vm);
}

/* Fail the @nth thing from now on. */
static void fail_begin(struct __test_metadata *_metadata, FIXTURE_DATA(fail) * self, int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", nth);
	ASSERT_EQ((ssize_t)strlen(text), pwrite(self->nth, text, strlen(text), 0));
}

/* Whether that has come. */
static bool fail_end(struct __test_metadata *_metadata, FIXTURE_DATA(fail) * self)
{
	char text[16] = {};

	/* If it is the answer that fails, the work did not come so far. */
	if (pread(self->nth, text, sizeof(text) - 1, 0) < 0)
		strcpy(text, "1");
	/* It can be this that fails, with copies from user space: but only once. */
	if (pwrite(self->nth, "0\n", 2, 0) < 0)
		ASSERT_EQ(2, pwrite(self->nth, "0\n", 2, 0));
	return !atoi(text);
}

static void expect_states(struct __test_metadata *_metadata, FIXTURE_DATA(fail) * self)
{
	u64 size, attributes;
	int i, n, bad = 0;

	for (i = 0; i < NR_PAGES; i += n) {
		size = (NR_PAGES - i) * page_size;
		ASSERT_WORKS(gmem_attributes(self->fd, i * page_size, &size, &attributes));
		for (n = 0; n < (int)(size / page_size); n++)
			bad += self->private[i + n] != !!attributes;
	}
	EXPECT_EQ(0, bad);
}

static void set_states(struct __test_metadata *_metadata, FIXTURE_DATA(fail) * self,
		       const bool *private)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (self->private[i] != private[i])
			ASSERT_WORKS(gmem_convert(self->fd, i * page_size, page_size,
						  private[i] ? GMEM_PRIVATE : GMEM_SHARED, NULL));
		self->private[i] = private[i];
	}
}

/* Convert, with more and more of it working.  The number of failures. */
static int convert_failing(struct __test_metadata *_metadata, FIXTURE_DATA(fail) * self,
			   int first, int nr, bool private)
{
	const u64 attributes = private ? GMEM_PRIVATE : GMEM_SHARED;
	int nth, ret, err, failures = 0, i;
	bool old[NR_PAGES], failed;
	u64 offset;

	memcpy(old, self->private, sizeof(old));
	for (nth = 1; nth < MAX_NTH; nth++) {
		fail_begin(_metadata, self, nth);
		ret = gmem_convert(self->fd, first * page_size, nr * page_size,
				   attributes, &offset);
		err = errno;
		failed = fail_end(_metadata, self);

		if (!ret) {
			for (i = first; i < first + nr; i++)
				self->private[i] = private;
			expect_states(_metadata, self);
			if (!failed)
				break;
			/* It could do without, and again with more. */
			set_states(_metadata, self, old);
			continue;
		}

		/* It did fail, for a reason; and only one of them has an offset. */
		EXPECT_TRUE(failed);
		EXPECT_TRUE(err == ENOMEM || err == EFAULT) TH_LOG("%s", strerror(err));
		EXPECT_EQ(err == ENOMEM ? first * page_size : GMEM_NO_OFFSET, offset);
		failures++;
		expect_states(_metadata, self);
	}
	EXPECT_LT(nth, MAX_NTH);
	return failures;
}

TEST_F(fail, conversions)
{
	int failures = 0;

	memset(self->mem, 0x5a, 8 * page_size);

	/* A page, which needs a bitmap; with one there; more than a block; back. */
	failures += convert_failing(_metadata, self, 3, 1, true);
	failures += convert_failing(_metadata, self, 5, 2, true);
	failures += convert_failing(_metadata, self, 700, 600, true);
	failures += convert_failing(_metadata, self, 1, 1000, false);
	failures += convert_failing(_metadata, self, 0, NR_PAGES, true);
	failures += convert_failing(_metadata, self, 0, NR_PAGES, false);
	EXPECT_LE(3, failures);

	EXPECT_TRUE(gmem_is_filled(self->mem, 0x5a, 8 * page_size));
}

/* No file, and nothing that it would have had. */
TEST_F(fail, creation)
{
	const int nr_fds = gmem_count_fds();
	int nth, fd, err, failures = 0;
	bool failed;

	for (nth = 1; nth < MAX_NTH; nth++) {
		fail_begin(_metadata, self, nth);
		fd = __vm_create_guest_memfd(self->vm, NR_PAGES * page_size, self->flags);
		err = errno;
		failed = fail_end(_metadata, self);
		if (fd >= 0) {
			close(fd);
			if (!failed)
				break;
			continue;
		}

		EXPECT_TRUE(failed);
		EXPECT_TRUE(err == ENOMEM || err == EFAULT || err == EMFILE || err == ENFILE)
			TH_LOG("%s", strerror(err));
		EXPECT_EQ(nr_fds, gmem_count_fds());
		failures++;
	}
	EXPECT_LT(nth, MAX_NTH);
	EXPECT_LE(1, failures);
	EXPECT_EQ(nr_fds, gmem_count_fds());
}

/*
 * What there is of a file, and no block in parts: it has all of its pages, or they are
 * base pages.  All of it can be given up.
 */
static void expect_blocks(struct __test_metadata *_metadata, FIXTURE_DATA(fail) * self, int nth)
{
	const u64 whole = gmem_fdinfo_val(self->fd, "gmem-blocks-whole");
	const u64 present = gmem_fdinfo_val(self->fd, "gmem-present");

	EXPECT_EQ(0, gmem_fdinfo_val(self->fd, "gmem-blocks-broken")) TH_LOG("%d", nth);
	EXPECT_GE(NR_PAGES, present) TH_LOG("%d", nth);
	if (self->block > 1) {
		EXPECT_LE(whole * self->block, present) TH_LOG("%d", nth);
		if (!gmem_fdinfo_val(self->fd, "gmem-blocks-fallback"))
			EXPECT_EQ(whole * self->block, present) TH_LOG("%d", nth);
	}
	ASSERT_WORKS(fallocate(self->fd, GMEM_PUNCH, 0, NR_PAGES * page_size));
	EXPECT_EQ(0, gmem_fdinfo_val(self->fd, "gmem-present")) TH_LOG("%d", nth);
}

TEST_F(fail, allocation)
{
	const u64 nr = self->block + self->block / 2 + 20;
	int nth, ret, err, failures = 0;
	bool failed;

	for (nth = 1; nth < MAX_NTH; nth++) {
		fail_begin(_metadata, self, nth);
		ret = fallocate(self->fd, GMEM_ALLOC, 0, nr * page_size);
		err = errno;
		failed = fail_end(_metadata, self);
		if (!ret) {
			EXPECT_LE(nr, gmem_fdinfo_val(self->fd, "gmem-present"));
			EXPECT_TRUE(gmem_is_filled(self->mem + (nr - 20) * page_size, 0,
						   20 * page_size));
			expect_blocks(_metadata, self, nth);
			if (!failed)
				break;
			failures++;
			continue;
		}

		EXPECT_TRUE(failed);
		EXPECT_EQ(ENOMEM, err) TH_LOG("%s", strerror(err));
		expect_blocks(_metadata, self, nth);
		failures++;
	}
	EXPECT_LT(nth, MAX_NTH);
	EXPECT_LE(1, failures);
}

/* The guest's access fails, and gets through when it is tried again. */
TEST_F(fail, guest_fault)
{
	const u64 gpa = GPA + (self->block + 5) * page_size;
	struct kvm_vcpu *vcpu;
	int nth, ret;
	bool failed;

	kvm_munmap(self->mem, NR_PAGES * page_size);
	close(self->fd);
	kvm_vm_free(self->vm);
	self->vm = __vm_create_shape_with_one_vcpu(VM_SHAPE_DEFAULT, &vcpu, 1, gmem_guest_code);
	self->fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, self->flags);
	self->mem = kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, NR_PAGES * page_size,
				   NULL, self->fd, 0);
	virt_map(self->vm, GPA, GPA, NR_PAGES * page_size / self->vm->page_size);

	/* What the guest needs besides. */
	EXPECT_GUEST_WRITES(vcpu, gpa, 1);
	expect_blocks(_metadata, self, 0);

	for (nth = 1; nth < MAX_NTH; nth++) {
		gmem_guest_cmd = (struct gmem_guest_cmd) { GMEM_GUEST_WRITE, gpa, 0x1000 + nth };
		sync_global_to_guest(self->vm, gmem_guest_cmd);
		fail_begin(_metadata, self, nth);
		ret = __vcpu_run(vcpu) ? -errno : 0;
		failed = fail_end(_metadata, self);
		if (ret) {
			EXPECT_TRUE(failed);
			EXPECT_TRUE(ret == -ENOMEM || ret == -EFAULT) TH_LOG("%s", strerror(-ret));
			EXPECT_EQ(0, gmem_guest_run(vcpu));
		} else {
			EXPECT_EQ(UCALL_SYNC, get_ucall(vcpu, NULL));
		}
		EXPECT_EQ(0x1000 + nth, READ_ONCE(*(u64 *)(self->mem + gpa - GPA)));
		expect_blocks(_metadata, self, nth);
		if (!failed)
			break;
	}
	/* There was something that could fail; a block would have its substitute. */
	EXPECT_LT(1, nth);
	EXPECT_LT(nth, MAX_NTH);
}

TEST_HARNESS_MAIN
