// SPDX-License-Identifier: GPL-2.0
/*
 * Conversion with each of its allocations failing in turn: it fails with the
 * errno that is documented, and nothing has changed.  Or it does not need what
 * it did not get, and all has.
 *
 * By /proc/thread-self/fail-nth, which fails the n-th thing that can be made to
 * fail: allocations, and copies from and to user space.
 */
#include "guest_memfd_util.h"

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define NR_PAGES	2048
#define MAX_NTH		200

static size_t page_size;

FIXTURE(fail)
{
	struct kvm_vm *vm;
	int fd;
	int nth;
	u8 *mem;
	bool private[NR_PAGES];
};

FIXTURE_SETUP(fail)
{
	page_size = getpagesize();
	self->nth = open(FAIL_NTH, O_RDWR);
	if (self->nth < 0)
		SKIP(return, "needs CONFIG_FAULT_INJECTION and root");
	/* Those that may sleep included, which all of ours may. */
	gmem_write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	/* No stack traces: the log is for what goes wrong. */
	gmem_write_file("/sys/kernel/debug/failslab/verbose", "0");
	gmem_write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	gmem_write_file("/sys/kernel/debug/fail_page_alloc/verbose", "0");

	gmem_catch_sigbus();
	self->vm = vm_create_barebones();
	self->fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size,
					 GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	self->mem = kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
}

FIXTURE_TEARDOWN(fail)
{
	close(self->nth);
	close(self->fd);
	kvm_munmap(self->mem, NR_PAGES * page_size);
	kvm_vm_free(self->vm);
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
	bool old[NR_PAGES];
	char text[16];
	u64 offset;

	memcpy(old, self->private, sizeof(old));
	for (nth = 1; nth < MAX_NTH; nth++) {
		snprintf(text, sizeof(text), "%d", nth);
		ASSERT_EQ((ssize_t)strlen(text), pwrite(self->nth, text, strlen(text), 0));
		ret = gmem_convert(self->fd, first * page_size, nr * page_size,
				   attributes, &offset);
		err = errno;
		/* If it is the answer that fails, the conversion did not come so far. */
		memset(text, 0, sizeof(text));
		if (pread(self->nth, text, sizeof(text) - 1, 0) < 0)
			strcpy(text, "1");
		ASSERT_EQ(2, pwrite(self->nth, "0\n", 2, 0));

		if (!ret) {
			for (i = first; i < first + nr; i++)
				self->private[i] = private;
			expect_states(_metadata, self);
			if (atoi(text))
				break;
			/* It could do without, and again with more. */
			set_states(_metadata, self, old);
			continue;
		}

		/* It did fail, for a reason; and only one of them has an offset. */
		EXPECT_EQ(0, atoi(text));
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

TEST_HARNESS_MAIN
