// SPDX-License-Identifier: GPL-2.0
/*
 * Populating guest_memfd, as the launch of a confidential guest does, with a
 * software-protected VM in its place: through the file gmem-populate in the VM's
 * debugfs directory, see CONFIG_KVM_GUEST_MEMFD_DEBUG.
 */
#include "guest_memfd_util.h"

#define GPA		0x100000000ull
#define NR_PAGES	8
#define SLOT		8

static size_t page_size;

static u64 gpa_of(int page)
{
	return GPA + page * page_size;
}

FIXTURE(populate)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	int debug;
	size_t size;
	u8 *mem;	/* the file, or what stands for its shared pages */
	u8 *source;
};

FIXTURE_VARIANT(populate)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(populate, in_place)
{
	.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
};

FIXTURE_VARIANT_ADD(populate, old_scheme)
{
};

static int open_debug(struct kvm_vm *vm)
{
	char path[80];

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/gmem-populate", getpid(),
		 vm->fd);
	return open(path, O_WRONLY);
}

FIXTURE_SETUP(populate)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
	if (!variant->flags && !kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES))
		SKIP(return, "VMs have no attributes: vm_memory_attributes=N");

	page_size = getpagesize();
	gmem_catch_sigbus();
	self->vm = __vm_create_shape_with_one_vcpu(shape, &self->vcpu, 1, gmem_guest_code);
	self->debug = open_debug(self->vm);
	if (self->debug < 0)
		SKIP(return, "needs CONFIG_KVM_GUEST_MEMFD_DEBUG, debugfs and root");

	self->size = NR_PAGES * page_size;
	self->fd = vm_create_guest_memfd(self->vm, self->size, variant->flags);
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE,
			     variant->flags ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
			     variant->flags ? self->fd : -1);
	self->source = kvm_mmap(self->size, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, self->size,
				   self->mem, self->fd, 0);
	virt_map(self->vm, GPA, GPA, NR_PAGES);
}

FIXTURE_TEARDOWN(populate)
{
	close(self->debug);
	close(self->fd);
	kvm_munmap(self->mem, self->size);
	kvm_munmap(self->source, self->size);
	kvm_vm_free(self->vm);
}

static void set_private(FIXTURE_DATA(populate) * self, const FIXTURE_VARIANT(populate) * variant,
			int first, int nr, bool private)
{
	if (variant->flags)
		TEST_ASSERT(!gmem_convert(self->fd, first * page_size, nr * page_size,
					  private ? GMEM_PRIVATE : GMEM_SHARED, NULL),
			    "conversion: errno %d", errno);
	else
		vm_set_memory_attributes(self->vm, gpa_of(first), nr * page_size,
					 private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
}

/* 0 or -errno. */
static int populate_gfn(FIXTURE_DATA(populate) * self, u64 gfn, const void *source, int nr)
{
	char text[80];
	int len;

	len = snprintf(text, sizeof(text), "%#lx %#lx %d", (unsigned long)gfn,
		       (unsigned long)source, nr);
	return write(self->debug, text, len) == len ? 0 : -errno;
}

static int populate(FIXTURE_DATA(populate) * self, int page, const void *source, int nr)
{
	return populate_gfn(self, gpa_of(page) / page_size, source, nr);
}

TEST_F(populate, copies_a_source)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		memset(self->source + i * page_size, 0x10 + i, page_size);
	set_private(self, variant, 0, NR_PAGES, true);
	EXPECT_EQ(0, populate(self, 0, self->source, NR_PAGES));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(0x0101010101010101 * (0x10 + i), self->vcpu, gpa_of(i));

	/* The source is let go of, and stays what it was. */
	EXPECT_TRUE(gmem_is_filled(self->source, 0x10, page_size));
	EXPECT_WORKS(munmap(self->source, page_size));
	self->source = kvm_mmap(self->size, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* What the VMM wrote while the page was shared; zeroes where it wrote nothing. */
TEST_F(populate, takes_what_is_there)
{
	u64 present = 0;

	if (variant->flags) {
		memset(self->mem + page_size, 0x21, page_size);
		memset(self->mem + 3 * page_size, 0x23, page_size);
	}
	set_private(self, variant, 0, NR_PAGES, true);
	EXPECT_EQ(0, populate(self, 1, NULL, 3));
	EXPECT_TRUE(gmem_present(self->fd, NR_PAGES, &present));
	EXPECT_EQ(0xe, present);

	if (variant->flags) {
		EXPECT_GUEST_READS(0x2121212121212121, self->vcpu, gpa_of(1));
		EXPECT_GUEST_READS(0x2323232323232323, self->vcpu, gpa_of(3));
	} else {
		EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
	}
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(2));
}

TEST_F(populate, refuses_shared_pages)
{
	u64 present = 0;

	EXPECT_EQ(-EINVAL, populate(self, 0, self->source, 1));
	EXPECT_EQ(-EINVAL, populate(self, 0, NULL, NR_PAGES));
	EXPECT_TRUE(gmem_present(self->fd, NR_PAGES, &present));
	EXPECT_EQ(0, present);

	/* It stops at the first, and has done those before. */
	memset(self->source, 0x31, self->size);
	set_private(self, variant, 0, 2, true);
	EXPECT_EQ(-EIO, populate(self, 0, self->source, 4));
	EXPECT_GUEST_READS(0x3131313131313131, self->vcpu, gpa_of(1));
	EXPECT_TRUE(gmem_present(self->fd, NR_PAGES, &present));
	EXPECT_EQ(3, present);
}

TEST_F(populate, bad_arguments)
{
	const u8 *hole = self->source + page_size;

	set_private(self, variant, 0, NR_PAGES, true);
	EXPECT_WORKS(mprotect((void *)hole, page_size, PROT_NONE));
	EXPECT_EQ(-EFAULT, populate(self, 0, hole, 1));
	EXPECT_EQ(-EIO, populate(self, 0, self->source, 2));
	EXPECT_EQ(-EFAULT, populate(self, 0, (void *)(1ul << 63), 1));
	EXPECT_EQ(-EINVAL, populate(self, 0, self->source + 8, 1));
	EXPECT_EQ(-EINVAL, populate(self, 0, self->source, 0));
	EXPECT_EQ(-EINVAL, populate(self, 0, self->source, -1));

	/* No memslot; one without guest_memfd; more than there is. */
	EXPECT_EQ(-EINVAL, populate_gfn(self, 0x80000000 / page_size, self->source, 1));
	EXPECT_EQ(-EINVAL, populate_gfn(self, 0, self->source, 1));
	EXPECT_EQ(-EIO, populate(self, NR_PAGES - 1, NULL, 2));

	close(self->fd);
	self->fd = open("/dev/null", O_RDWR);
	if (variant->flags)
		kvm_munmap(self->mem, self->size);
	EXPECT_EQ(-EFAULT, populate(self, 0, self->source, 1));
	if (variant->flags)
		self->mem = kvm_mmap(self->size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* Nothing can be its own source: not the page, nor another page of the file. */
TEST_F(populate, source_in_the_file)
{
	int fd;
	u8 *other;

	if (!variant->flags)
		SKIP(return, "such a file cannot be mapped");

	memset(self->mem, 0x41, self->size);
	set_private(self, variant, 0, 2, true);
	EXPECT_EQ(-EFAULT, populate(self, 0, self->mem, 1));
	EXPECT_EQ(-EFAULT, populate(self, 0, self->mem + page_size, 1));
	EXPECT_EQ(-EINVAL, populate(self, 0, self->mem + 2 * page_size, 1));
	EXPECT_GUEST_READS(0x4141414141414141, self->vcpu, gpa_of(0));

	/* Another file is as good as any memory. */
	fd = vm_create_guest_memfd(self->vm, page_size, variant->flags);
	other = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	memset(other, 0x42, page_size);
	EXPECT_EQ(0, populate(self, 0, other, 1));
	EXPECT_GUEST_READS(0x4242424242424242, self->vcpu, gpa_of(0));
	kvm_munmap(other, page_size);
	close(fd);
}

/* No reference is left behind, and holes and conversions go on as ever. */
TEST_F(populate, then_convert)
{
	if (!variant->flags)
		SKIP(return, "there is nothing to convert");

	memset(self->source, 0x51, self->size);
	set_private(self, variant, 0, NR_PAGES, true);
	EXPECT_EQ(0, populate(self, 0, self->source, NR_PAGES));
	set_private(self, variant, 0, NR_PAGES, false);
	EXPECT_TRUE(gmem_is_filled(self->mem, 0x51, self->size));
	set_private(self, variant, 0, NR_PAGES, true);
	EXPECT_EQ(0, populate(self, 0, NULL, NR_PAGES));
	EXPECT_GUEST_READS(0x5151515151515151, self->vcpu, gpa_of(7));
	EXPECT_WORKS(fallocate(self->fd, GMEM_PUNCH, 0, self->size));
	EXPECT_EQ(0, populate(self, 0, NULL, NR_PAGES));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(7));
}

TEST_HARNESS_MAIN
