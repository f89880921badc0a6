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
#define SLOT_GMEM	1	/* and above */

/* What the guest counts pages in, whatever they are in the host. */
#define GUEST_PAGE	4096

/* What the guest is told to do, and what the VMM hears from it. */
enum command { READ, WRITE, ASK };
enum channel { RESULT, HYPERCALL };

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
 * an access that nobody else can answer; the VMM puts a command, an address and
 * a word into registers, and the guest writes or reads and comes back.
 *
 * Told to ask, the guest makes a hypercall: another such access, with the number
 * of a page, how many, and private or not, in registers.  A real guest has
 * what the platform defines, with the same arguments: KVM_HC_MAP_GPA_RANGE (x86,
 * KVM_EXIT_HYPERCALL), the page state change of SEV-SNP, MapGPA of TDX, the
 * memory sharing calls of pKVM.  Where the hardware knows how a guest means an
 * access, KVM_EXIT_MEMORY_FAULT asks the same thing without words.
 */
#if defined(__x86_64__)

/* 16-bit code, but with 32-bit operands and segments of 4 GiB. */
static const __u8 guest_code[] = {
	0x66, 0xe7, 0x10,		/* next:  out %eax, $0x10 */
	0xe3, 0x0e,			/*        jcxz read */
	0x49,				/*        dec %cx */
	0xe3, 0x05,			/*        jcxz write */
	0x66, 0xe7, 0x11,		/*        out %eax, $0x11 */
	0xeb, 0xf3,			/*        jmp next */
	0x67, 0x66, 0x89, 0x03,		/* write: mov %eax, (%ebx) */
	0xeb, 0xed,			/*        jmp next */
	0x67, 0x66, 0x8b, 0x03,		/* read:  mov (%ebx), %eax */
	0xeb, 0xe7,			/*        jmp next */
};

#define PORT(channel)	(0x10 + (channel))

int vm_private_type(void)
{
	int types = kvm_ioctl(kvm_dev(), KVM_CHECK_EXTENSION, (void *)KVM_CAP_VM_TYPES);

	return types > 0 && types & 1 << KVM_X86_SW_PROTECTED_VM ? KVM_X86_SW_PROTECTED_VM : -1;
}

bool vm_needs_in_place(void)
{
	return false;
}

static unsigned long default_type(void)
{
	return KVM_X86_DEFAULT_VM;
}

static void vcpu_setup(struct vm *vm)
{
	struct kvm_sregs sregs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_SREGS, &sregs));
	sregs.ds.base = 0;
	sregs.ds.limit = 0xffffffff;
	sregs.ds.g = 1;
	must(kvm_ioctl(vm->vcpu, KVM_SET_SREGS, &sregs));
}

/* In real mode, where segments reach 64 KiB above the first MiB. */
static void vcpu_jump(struct vm *vm, __u64 gpa)
{
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.selector = gpa >> 4 < 0xffff ? gpa >> 4 : 0xffff;
	sregs.cs.base = sregs.cs.selector << 4;
	must(kvm_ioctl(vm->vcpu, KVM_SET_SREGS, &sregs));

	regs.rip = gpa - sregs.cs.base;
	must(kvm_ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}

static void vcpu_command(struct vm *vm, enum command what, __u32 word, __u64 address,
			 __u64 count)
{
	struct kvm_regs regs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_REGS, &regs));
	regs.rax = word;
	regs.rbx = address;
	regs.rcx = what;
	regs.rdx = count;
	must(kvm_ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}

/* What the guest hands over, if it is that what it stopped for. */
static void *vcpu_word(struct vm *vm, enum channel from)
{
	if (vm->run->exit_reason != KVM_EXIT_IO || vm->run->io.port != PORT(from))
		return NULL;
	return (void *)vm->run + vm->run->io.data_offset;
}

static void vcpu_arguments(struct vm *vm, __u64 *gfn, __u64 *count)
{
	struct kvm_regs regs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_REGS, &regs));
	*gfn = regs.rbx;
	*count = regs.rdx;
}

static void vcpu_answer(struct vm *vm, __u32 word)
{
	struct kvm_regs regs;

	must(kvm_ioctl(vm->vcpu, KVM_GET_REGS, &regs));
	regs.rax = word;
	must(kvm_ioctl(vm->vcpu, KVM_SET_REGS, &regs));
}

#elif defined(__aarch64__)

static const __u32 guest_code[] = {
	0xb9000040,			/* next: str w0, [x2] */
	0x340000c3,			/*       cbz w3, read */
	0x37080063,			/*       tbnz w3, #1, ask */
	0xb9000020,			/*       str w0, [x1] */
	0x17fffffc,			/*       b next */
	0xb9000440,			/* ask:  str w0, [x2, #4] */
	0x17fffffa,			/*       b next */
	0xb9400020,			/* read: ldr w0, [x1] */
	0x17fffff8,			/*       b next */
};

#define MMIO_GPA	0x40000000	/* no slot there: the VMM's */
#define ADDRESS(channel) (MMIO_GPA + 4 * (channel))
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

bool vm_needs_in_place(void)
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

static __u64 get_reg(struct vm *vm, __u64 id)
{
	__u64 value = 0;
	struct kvm_one_reg reg = { .id = id, .addr = (unsigned long)&value };

	must(kvm_ioctl(vm->vcpu, KVM_GET_ONE_REG, &reg));
	return value;
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

	set_reg(vm, CORE_REG(regs.regs[2]), MMIO_GPA);
}

static void vcpu_jump(struct vm *vm, __u64 gpa)
{
	set_reg(vm, CORE_REG(regs.pc), gpa);
}

static void vcpu_command(struct vm *vm, enum command what, __u32 word, __u64 address,
			 __u64 count)
{
	set_reg(vm, CORE_REG(regs.regs[0]), word);
	set_reg(vm, CORE_REG(regs.regs[1]), address);
	set_reg(vm, CORE_REG(regs.regs[3]), what);
	set_reg(vm, CORE_REG(regs.regs[4]), count);
}

/* What the guest hands over, if it is that what it stopped for. */
static void *vcpu_word(struct vm *vm, enum channel from)
{
	if (vm->run->exit_reason != KVM_EXIT_MMIO || vm->run->mmio.phys_addr != ADDRESS(from))
		return NULL;
	return vm->run->mmio.data;
}

static void vcpu_arguments(struct vm *vm, __u64 *gfn, __u64 *count)
{
	*gfn = get_reg(vm, CORE_REG(regs.regs[1]));
	*count = get_reg(vm, CORE_REG(regs.regs[4]));
}

static void vcpu_answer(struct vm *vm, __u32 word)
{
	set_reg(vm, CORE_REG(regs.regs[0]), word);
}

#else
#error "gmem-demo knows x86-64 and arm64"
#endif

/* Run the guest until it says something. */
static int vm_run(struct vm *vm, enum channel from, __u32 *word)
{
	int ret = kvm_ioctl(vm->vcpu, KVM_RUN, 0);
	void *said;

	if (ret < 0)
		return ret;

	said = vcpu_word(vm, from);
	if (!said)
		return (int)vm->run->exit_reason ?: -EIO;
	memcpy(word, said, sizeof(*word));
	return 0;
}

const void *vm_program(size_t *size)
{
	*size = sizeof(guest_code);
	return guest_code;
}

/*
 * Have KVM finish the instruction that the guest has stopped at, which it does
 * upon entry only: it would do it to the registers of the new start.
 */
static void vcpu_finish(struct vm *vm)
{
	vm->run->immediate_exit = 1;
	if (!ioctl(vm->vcpu, KVM_RUN, 0) || errno != EINTR)
		give_up(1, "the guest does not stop, exit %d", vm->run->exit_reason);
	vm->run->immediate_exit = 0;
}

/* To where it waits for the first command. */
int vm_start(struct vm *vm, __u64 gpa)
{
	__u32 word;

	vcpu_finish(vm);
	vcpu_jump(vm, gpa);
	return vm_run(vm, RESULT, &word);
}

void vm_create(struct vm *vm, int type)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = SLOT_LOW,
		.guest_phys_addr = LOW_GPA,
		.memory_size = LOW_SIZE,
	};
	int size;

	vm->nr_slots = 0;
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

	if (vm_start(vm, LOW_GPA))
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

__u64 vm_block_sizes(const struct vm *vm)
{
	return must(kvm_ioctl(vm->fd, KVM_CHECK_EXTENSION,
			      (void *)KVM_CAP_GUEST_MEMFD_BLOCK_SIZES));
}

/* KVM_CAP_MEMORY_ATTRIBUTES2 is another thing: it is about the VM's ioctl. */
bool vm_can_convert(const struct vm *vm)
{
	int ret = kvm_ioctl(vm->fd, KVM_CHECK_EXTENSION,
			    (void *)KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES);

	return ret > 0 && ret & KVM_MEMORY_ATTRIBUTE_PRIVATE;
}

int vm_gmem_create(const struct vm *vm, size_t size, __u64 flags)
{
	struct kvm_create_guest_memfd gmem = { .size = size, .flags = flags };

	return kvm_ioctl(vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
}

int vm_gmem_bind(struct vm *vm, const struct vm_part *part, void *host)
{
	const struct kvm_userspace_memory_region2 region = {
		.slot = SLOT_GMEM + vm->nr_slots,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = part->gpa,
		.memory_size = part->size,
		.userspace_addr = (unsigned long)host,
		.guest_memfd = part->gmem,
		.guest_memfd_offset = part->offset,
	};
	int ret;

	if (vm->nr_slots == VM_MAX_SLOTS)
		return -ENOSPC;

	ret = set_slot(vm, &region);
	if (!ret)
		vm->slots[vm->nr_slots++] = *part;
	return ret;
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

bool vm_find(const struct vm *vm, __u64 gpa, __u64 size, struct vm_part *part)
{
	const struct vm_part *slot;
	__u64 delta;

	for (slot = vm->slots; slot < vm->slots + vm->nr_slots; slot++) {
		delta = gpa - slot->gpa;
		if (gpa < slot->gpa || delta >= slot->size)
			continue;

		part->gpa = gpa;
		part->size = size < slot->size - delta ? size : slot->size - delta;
		part->gmem = slot->gmem;
		part->offset = slot->offset + delta;
		return true;
	}
	return false;
}

__u64 vm_find_gpa(const struct vm *vm, int gmem, __u64 offset)
{
	const struct vm_part *slot;

	for (slot = vm->slots; slot < vm->slots + vm->nr_slots; slot++) {
		if (slot->gmem == gmem && offset >= slot->offset &&
		    offset - slot->offset < slot->size)
			return slot->gpa + (offset - slot->offset);
	}
	return -1;
}

int gmem_convert(int gmem, __u64 offset, __u64 size, bool private, __u64 *error_offset)
{
	struct kvm_memory_attributes2 attributes = {
		.offset = offset,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		/* The kernel writes it with -EAGAIN and -ENOMEM only. */
		.error_offset = offset,
	};
	int ret = kvm_ioctl(gmem, KVM_SET_MEMORY_ATTRIBUTES2, &attributes);

	*error_offset = attributes.error_offset;
	return ret;
}

int gmem_run(int gmem, __u64 offset, __u64 *size, bool *private)
{
	struct kvm_memory_attributes2 attributes = { .offset = offset, .size = *size };
	int ret = kvm_ioctl(gmem, KVM_GET_MEMORY_ATTRIBUTES2, &attributes);

	if (ret)
		return ret;

	*size = attributes.size;
	*private = attributes.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
	return 0;
}

/*
 * One call to KVM changes all or nothing.  A range in several slots takes several
 * calls, so rule out first what a guest could have asked for by mistake, or to
 * see what happens: an error would leave it with half of its memory converted.
 */
static bool vm_can_be_converted(const struct vm *vm, __u64 gpa, __u64 size)
{
	const __u64 page = sysconf(_SC_PAGESIZE);
	struct vm_part part;
	__u64 done;

	if (!size || gpa + size < gpa || (gpa | size) % page)
		return false;

	for (done = 0; done < size; done += part.size) {
		if (!vm_find(vm, gpa + done, size - done, &part))
			return false;
	}
	return true;
}

int vm_convert(const struct vm *vm, __u64 gpa, __u64 size, bool private,
	       struct vm_part *busy)
{
	struct vm_part part;
	__u64 done, where;
	int ret;

	if (!vm_can_be_converted(vm, gpa, size))
		return -EINVAL;

	for (done = 0; done < size; done += part.size) {
		vm_find(vm, gpa + done, size - done, &part);
		ret = gmem_convert(part.gmem, part.offset, part.size, private, &where);
		if (ret) {
			vm_find(vm, part.gpa + (where - part.offset), GUEST_PAGE, busy);
			return ret;
		}
	}
	return 0;
}

static void read_stats(int fd, void *to, size_t size, off_t offset)
{
	if (pread(fd, to, size, offset) != (ssize_t)size)
		give_up(1, "cannot read the statistics of the VM");
}

/* The file has a header, which says where the descriptors and the values are. */
__s64 vm_stat(const struct vm *vm, const char *name)
{
	int fd = kvm_ioctl(vm->fd, KVM_GET_STATS_FD, NULL);
	struct kvm_stats_header header;
	struct kvm_stats_desc *desc;
	__s64 value = -1;
	size_t size;
	__u32 i;

	if (fd < 0)
		return -1;

	read_stats(fd, &header, sizeof(header), 0);
	size = sizeof(*desc) + header.name_size;
	desc = malloc(size);
	if (!desc)
		give_up(1, "malloc: %s", strerror(errno));

	for (i = 0; i < header.num_desc; i++) {
		read_stats(fd, desc, size, header.desc_offset + i * size);
		if (strncmp(desc->name, name, header.name_size))
			continue;
		read_stats(fd, &value, sizeof(value), header.data_offset + desc->offset);
		break;
	}

	free(desc);
	close(fd);
	return value;
}

int vm_guest_write(struct vm *vm, __u64 gpa, __u32 word)
{
	vcpu_command(vm, WRITE, word, gpa, 0);
	return vm_run(vm, RESULT, &word);
}

int vm_guest_read(struct vm *vm, __u64 gpa, __u32 *word)
{
	vcpu_command(vm, READ, 0, gpa, 0);
	return vm_run(vm, RESULT, word);
}

int vm_guest_ask(struct vm *vm, const struct vm_request *ask, struct vm_request *heard)
{
	__u64 gfn, count;
	__u32 word;
	int ret;

	vcpu_command(vm, ASK, ask->private, ask->gpa / GUEST_PAGE, ask->size / GUEST_PAGE);
	ret = vm_run(vm, HYPERCALL, &word);
	if (ret)
		return ret;

	/* Numbers that do not fit make a request for no memory, which is refused. */
	memset(heard, 0, sizeof(*heard));
	vcpu_arguments(vm, &gfn, &count);
	if (gfn <= -1ULL / GUEST_PAGE && count <= -1ULL / GUEST_PAGE) {
		heard->gpa = gfn * GUEST_PAGE;
		heard->size = count * GUEST_PAGE;
	}
	heard->private = word & 1;
	return 0;
}

int vm_guest_answer(struct vm *vm, int answer, __u32 *word)
{
	vcpu_answer(vm, answer);
	return vm_run(vm, RESULT, word);
}
