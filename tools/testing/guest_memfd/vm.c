// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "vm.h"

#define KVM_PATH	"/dev/kvm"

/* The guest's code and tables: ordinary memory of the VMM, in slot 0. */
#define LOW_GPA		0x10000
#define LOW_SIZE	0x10000
#define SLOT_LOW	0
#define SLOT_GMEM	1

void give_up(int status, const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("gmem-demo: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(status);
}

/* ioctl() with the error in the return value. */
static int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int ret;

	do {
		ret = ioctl(fd, request, arg);
	} while (ret < 0 && errno == EINTR);

	return ret < 0 ? -errno : ret;
}

#define must(call)							\
({									\
	int __ret = (call);						\
									\
	if (__ret < 0)							\
		give_up(1, "%s: %s", #call, strerror(-__ret));		\
	__ret;								\
})

static int kvm_dev(void)
{
	static int fd = -1;

	if (fd >= 0)
		return fd;

	fd = open(KVM_PATH, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		give_up(EXIT_SKIP, "skipped, no " KVM_PATH " here: %s", strerror(errno));
	if (kvm_ioctl(fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_GUEST_MEMFD) <= 0)
		give_up(EXIT_SKIP, "skipped, this KVM has no guest_memfd");
	return fd;
}

static int set_slot(const struct vm *vm, const struct kvm_userspace_memory_region2 *region)
{
	return kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, (void *)region);
}

/*
 * The architecture: which VMs there are, how the vCPU starts, how it is told
 * what to do.  The guest is a loop.  It hands its last result to the VMM, with
 * an access that nobody else can answer; the VMM puts an address and a word
 * into registers, and the guest writes or reads and comes back.
 */
#if defined(__x86_64__)

/* 16-bit code, but with 32-bit operands and segments of 4 GiB. */
static const __u8 guest_code[] = {
	0x66, 0xe7, 0x10,		/* next: out %eax, $0x10 */
	0xe3, 0x06,			/*       jcxz read */
	0x67, 0x66, 0x89, 0x03,		/*       mov %eax, (%ebx) */
	0xeb, 0xf5,			/*       jmp next */
	0x67, 0x66, 0x8b, 0x03,		/* read: mov (%ebx), %eax */
	0xeb, 0xef,			/*       jmp next */
};

int vm_private_type(void)
{
	int types = kvm_ioctl(kvm_dev(), KVM_CHECK_EXTENSION, (void *)KVM_CAP_VM_TYPES);

	return types > 0 && types & 1 << KVM_X86_SW_PROTECTED_VM ? KVM_X86_SW_PROTECTED_VM : -1;
}

bool vm_needs_mappable(void)
{
	return false;
}

static unsigned long default_type(void)
{
	return KVM_X86_DEFAULT_VM;
}

static void vcpu_setup(struct vm *vm)
{
	struct kvm_regs regs = { .rflags = 2, .rip = 0 };
	struct kvm_sregs sregs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = LOW_GPA;
	sregs.cs.selector = LOW_GPA >> 4;
	sregs.ds.base = 0;
	sregs.ds.limit = 0xffffffff;
	sregs.ds.g = 1;
	must(kvm_ioctl(vm->vcpu, KVM_SET_SREGS, &sregs));
	must(kvm_ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}

static void vcpu_command(struct vm *vm, bool write, __u64 gpa, __u32 word)
{
	struct kvm_regs regs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_REGS, &regs));
	regs.rax = word;
	regs.rbx = gpa;
	regs.rcx = write;
	must(kvm_ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}

/* What the guest hands over, if it is that what it stopped for. */
static void *vcpu_result(struct vm *vm)
{
	if (vm->run->exit_reason != KVM_EXIT_IO || vm->run->io.port != 0x10)
		return NULL;
	return (void *)vm->run + vm->run->io.data_offset;
}

#elif defined(__aarch64__)

static const __u32 guest_code[] = {
	0xb9000040,			/* next: str w0, [x2] */
	0x34000063,			/*       cbz w3, read */
	0xb9000020,			/*       str w0, [x1] */
	0x17fffffd,			/*       b next */
	0xb9400020,			/* read: ldr w0, [x1] */
	0x17fffffb,			/*       b next */
};

#define MMIO_GPA	0x40000000	/* no slot there: the VMM's */
#define TABLE_OFFSET	0x1000		/* in slot 0 */

#define CORE_REG(name)	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |	\
			 KVM_REG_ARM_CORE_REG(name))
#define MAIR_EL1	ARM64_SYS_REG(3, 0, 10, 2, 0)
#define TCR_EL1		ARM64_SYS_REG(3, 0, 2, 0, 2)
#define TTBR0_EL1	ARM64_SYS_REG(3, 0, 2, 0, 0)
#define SCTLR_EL1	ARM64_SYS_REG(3, 0, 1, 0, 0)

/* Private memory of guests is not for KVM on arm64, except with pKVM. */
int vm_private_type(void)
{
	return -1;
}

bool vm_needs_mappable(void)
{
	return true;
}

static unsigned long default_type(void)
{
	int bits = kvm_ioctl(kvm_dev(), KVM_CHECK_EXTENSION, (void *)KVM_CAP_ARM_VM_IPA_SIZE);

	return bits > 0 ? KVM_VM_TYPE_ARM_IPA_SIZE(bits) : 0;
}

static void set_reg(struct vm *vm, __u64 id, __u64 value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (unsigned long)&value };

	must(kvm_ioctl(vm->vcpu, KVM_SET_ONE_REG, &reg));
}

/*
 * With its MMU off, a guest would go past the caches that host and guest meet
 * in.  So it gets a table: the first GiB is memory, the second one devices.
 */
static void vcpu_setup(struct vm *vm)
{
	const __u64 block = 1 | 1 << 10, inner_shareable = 3 << 8, device = 1 << 2;
	__u64 *table = vm->low + TABLE_OFFSET;
	struct kvm_vcpu_init init;

	must(kvm_ioctl(vm->fd, KVM_ARM_PREFERRED_TARGET, &init));
	must(kvm_ioctl(vm->vcpu, KVM_ARM_VCPU_INIT, &init));

	table[0] = block | inner_shareable;
	table[1] = MMIO_GPA | block | device;

	set_reg(vm, MAIR_EL1, 0x00ff);			/* 0: write-back, 1: device */
	set_reg(vm, TCR_EL1, 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2ull << 32);
	set_reg(vm, TTBR0_EL1, LOW_GPA + TABLE_OFFSET);
	set_reg(vm, SCTLR_EL1, 0x30d01804 | 1);		/* caches and MMU on */

	set_reg(vm, CORE_REG(regs.pc), LOW_GPA);
	set_reg(vm, CORE_REG(regs.regs[2]), MMIO_GPA);
}

static void vcpu_command(struct vm *vm, bool write, __u64 gpa, __u32 word)
{
	set_reg(vm, CORE_REG(regs.regs[0]), word);
	set_reg(vm, CORE_REG(regs.regs[1]), gpa);
	set_reg(vm, CORE_REG(regs.regs[3]), write);
}

/* What the guest hands over, if it is that what it stopped for. */
static void *vcpu_result(struct vm *vm)
{
	if (vm->run->exit_reason != KVM_EXIT_MMIO || vm->run->mmio.phys_addr != MMIO_GPA)
		return NULL;
	return vm->run->mmio.data;
}

#else
#error "gmem-demo knows x86-64 and arm64"
#endif

/* Run the guest until it has a result. */
static int vm_run(struct vm *vm, __u32 *word)
{
	int ret = kvm_ioctl(vm->vcpu, KVM_RUN, 0);
	void *result;

	if (ret < 0)
		return ret;

	result = vcpu_result(vm);
	if (!result)
		return vm->run->exit_reason;
	memcpy(word, result, sizeof(*word));
	return 0;
}

void vm_create(struct vm *vm, int type)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = SLOT_LOW,
		.guest_phys_addr = LOW_GPA,
		.memory_size = LOW_SIZE,
	};
	__u32 word;
	int size;

	vm->fd = must(kvm_ioctl(kvm_dev(), KVM_CREATE_VM,
				(void *)(type < 0 ? default_type() : (unsigned long)type)));

	vm->low = mmap(NULL, LOW_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm->low == MAP_FAILED)
		give_up(1, "mmap: %s", strerror(errno));
	memcpy(vm->low, guest_code, sizeof(guest_code));
	region.userspace_addr = (unsigned long)vm->low;
	must(set_slot(vm, &region));

	vm->vcpu = must(kvm_ioctl(vm->fd, KVM_CREATE_VCPU, 0));
	size = must(kvm_ioctl(kvm_dev(), KVM_GET_VCPU_MMAP_SIZE, 0));
	vm->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	if (vm->run == MAP_FAILED)
		give_up(1, "mmap of the vCPU: %s", strerror(errno));
	vcpu_setup(vm);

	/* To where it waits for the first command. */
	if (vm_run(vm, &word))
		give_up(1, "the guest does not start, exit %d", vm->run->exit_reason);
}

void vm_destroy(struct vm *vm)
{
	munmap(vm->run, must(kvm_ioctl(kvm_dev(), KVM_GET_VCPU_MMAP_SIZE, 0)));
	munmap(vm->low, LOW_SIZE);
	close(vm->vcpu);
	close(vm->fd);
}

__u64 vm_gmem_flags(const struct vm *vm)
{
	return must(kvm_ioctl(vm->fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_GUEST_MEMFD_FLAGS));
}

int vm_gmem_create(const struct vm *vm, size_t size, __u64 flags)
{
	struct kvm_create_guest_memfd gmem = { .size = size, .flags = flags };

	return kvm_ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
}

int vm_gmem_bind(const struct vm *vm, int gmem, size_t size, void *host)
{
	const struct kvm_userspace_memory_region2 region = {
		.slot = SLOT_GMEM,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = GMEM_GPA,
		.memory_size = size,
		.userspace_addr = (unsigned long)host,
		.guest_memfd = gmem,
		.guest_memfd_offset = 0,
	};

	return set_slot(vm, &region);
}

int vm_set_private(const struct vm *vm, __u64 gpa, size_t size)
{
	struct kvm_memory_attributes attributes = {
		.address = gpa,
		.size = size,
		.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};

	return kvm_ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes);
}

int vm_guest_write(struct vm *vm, __u64 gpa, __u32 word)
{
	vcpu_command(vm, true, gpa, word);
	return vm_run(vm, &word);
}

int vm_guest_read(struct vm *vm, __u64 gpa, __u32 *word)
{
	vcpu_command(vm, false, gpa, 0);
	return vm_run(vm, word);
}
