// SPDX-License-Identifier: GPL-2.0
/*
 * The least that a VMM does with a guest_memfd: a file, its memory, a conversion.
 *
 * Documentation/virt/kvm/guest_memfd.rst shows all that follows.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/kvm.h>

#define SIZE	(16ULL << 20)		/* of guest memory */
#define IMAGE	(64ULL << 10)		/* of which this much becomes private */

/* Make a range of the file private: all of it, or nothing. */
static void make_private(int gmem, __u64 offset, __u64 size)
{
	struct kvm_memory_attributes2 args = {
		.offset = offset, .size = size, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};
	int tries = 10;

	while (ioctl(gmem, KVM_SET_MEMORY_ATTRIBUTES2, &args)) {
		if (errno != EAGAIN || !tries--)
			err(1, "cannot convert");
		/* A VMM finishes, or cancels, its I/O on this page: */
		warnx("the page at %#llx is in use", args.error_offset);
	}
}

int main(void)
{
	static const char image[] = "loaded while the host may write it";
	struct kvm_create_guest_memfd create = {
		.size = SIZE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_DEFAULT_SHARED,
	};
	struct kvm_userspace_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = 0, .memory_size = SIZE,
	};
	struct kvm_memory_attributes2 run = { .offset = 0, .size = SIZE };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, type = 0;
	char *view;

#ifdef __x86_64__	/* Others have private memory too: it is what the host cannot touch. */
	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES) & 1 << KVM_X86_SW_PROTECTED_VM)
		type = KVM_X86_SW_PROTECTED_VM;
#endif
	vm = ioctl(kvm, KVM_CREATE_VM, type);
	if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) <= 0)
		errx(4, "no KVM here that converts in place");

	/* For large mappings, if gfn and offset are congruent modulo 2 MiB. */
	if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_BLOCK_SIZES) & 2 << 20)
		create.flags |= GUEST_MEMFD_BLOCK_SIZE_2MB;

	slot.guest_memfd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
	view = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, slot.guest_memfd, 0);
	slot.userspace_addr = (__u64)view;	/* for KVM's own accesses only */
	if (view == MAP_FAILED || ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &slot))
		err(1, "no guest memory");

	memcpy(view, image, sizeof(image));
	make_private(slot.guest_memfd, 0, IMAGE);	/* a touch is a SIGBUS from here on */

	if (ioctl(slot.guest_memfd, KVM_GET_MEMORY_ATTRIBUTES2, &run))
		err(1, "no attributes");
	printf("%llu of %llu bytes, from the first, are %s\n", run.size, SIZE,
	       run.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE ? "private" : "shared");
	return run.size != IMAGE;
}
