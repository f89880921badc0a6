// SPDX-License-Identifier: GPL-2.0
/*
 * Who decides whether a guest's page is private: the file of its slot, or the
 * VM's attributes.  Each kind of slot has its own answer, next to each other in
 * one VM and one after the other at the same address, and none shows through
 * at another.  And what the address in the slot is for, when the file is all
 * the guest's memory: for KVM's own accesses and for nothing else.
 *
 * With kvm.vm_memory_attributes=N a VM has no attributes and every file decides.
 * Cases that need the one or the other are skipped; to see all, run it twice.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"
#ifdef __x86_64__
#include "svm_util.h"
#endif

#define NR_PAGES	16
#define SLOT		10
#define GPA		SZ_4G
#define MMIO_GPA	(GPA + SZ_1G + SZ_2G)	/* no slot */

#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define MMAP_SHARED	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* How an architecture says that it has no such ioctl for a VM. */
#ifdef __aarch64__
#define NO_IOCTL	EINVAL
#else
#define NO_IOCTL	ENOTTY
#endif

static size_t page_size;

/* Whether VMs have attributes at all. */
static bool vm_attributes;

static bool slots_vm_attributes(void)
{
#ifdef __x86_64__
	return get_kvm_param_bool("vm_memory_attributes");
#else
	return false;
#endif
}

static u64 *page_of(void *mem, int page)
{
	return mem + page * page_size;
}

static u64 gpa_of(int page)
{
	return GPA + page * page_size;
}

/* What is in a page before anybody changes it. */
static u64 first_word(int slot, int page)
{
	return 0x1000 * (slot + 1) + page;
}

static int slots_convert(int fd, int page, int nr, u64 attributes)
{
	struct kvm_memory_attributes2 attr = {
		.offset = page * page_size,
		.size = nr * page_size,
		.attributes = attributes,
	};

	return ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr);
}

/* The attributes of a page of a file, or -1. */
static s64 slots_state(int fd, int page)
{
	struct kvm_memory_attributes2 attr = {
		.offset = page * page_size,
		.size = page_size,
	};

	if (ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &attr))
		return -1;
	return attr.attributes;
}

static int delete_slot(struct kvm_vm *vm, u32 slot)
{
	return __vm_set_user_memory_region2(vm, slot, 0, 0, 0, NULL, 0, 0);
}

static int bind_file(struct kvm_vm *vm, u32 slot, u64 gpa, void *hva, int fd)
{
	return __vm_set_user_memory_region2(vm, slot, KVM_MEM_GUEST_MEMFD, gpa,
					    NR_PAGES * page_size, hva, fd, 0);
}

static void *view_of(int fd)
{
	return kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
}

static void unmap(void *mem)
{
	kvm_munmap(mem, NR_PAGES * page_size);
}

/* The host reads @want, or gets SIGBUS. */
#define EXPECT_HOST_READS(want, mem, page)					\
do {										\
	u64 *__p = page_of(mem, page);						\
	int __bus = gmem_touch_read(__p);					\
										\
	EXPECT_EQ(0, __bus);							\
	if (!__bus)								\
		EXPECT_EQ((u64)(want), READ_ONCE(*__p));			\
} while (0)

#define EXPECT_HOST_REFUSED(mem, page)						\
do {										\
	u64 *__p = page_of(mem, page);						\
										\
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(__p));				\
	EXPECT_EQ(BUS_ADRERR, gmem_touch_write(__p, 0x77));			\
} while (0)

/*
 * How many faults KVM has had to handle for a vCPU.  Other architectures do
 * not count them.
 */
static u64 faults_of(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	return vcpu_get_stat(vcpu, pf_taken);
#else
	return 0;
#endif
}

/* The guest reads all pages.  The value is what that cost in faults. */
static u64 read_all(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	u64 val, before = faults_of(vcpu);
	int i;

	for (i = 0; i < NR_PAGES; i++)
		EXPECT_EQ(0, gmem_guest_read(vcpu, gpa_of(i), &val));
	return faults_of(vcpu) - before;
}

/*
 * A VM of either type with an in-place file, whose view by the VMM is the
 * slot's address.
 */
FIXTURE(guest)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd;
	void *mem;
};

FIXTURE_VARIANT(guest)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(guest, plain)
{
	.type = VM_TYPE_DEFAULT,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(guest, protected)
{
	.type = KVM_X86_SW_PROTECTED_VM,
};
#endif

static bool has_vm_type(unsigned long type)
{
	return !type || (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type));
}

static struct kvm_vm *create_vm(unsigned long type, struct kvm_vcpu **vcpu)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = type,
	};
	struct kvm_vm *vm = __vm_create_shape_with_one_vcpu(shape, vcpu, 64, gmem_guest_code);

	gmem_catch_sigbus();
	return vm;
}

FIXTURE_SETUP(guest)
{
	int i;

	if (!has_vm_type(variant->type))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");

	self->vm = create_vm(variant->type, &self->vcpu);
	self->fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, MMAP_SHARED);
	self->mem = view_of(self->fd);
	ASSERT_WORKS(bind_file(self->vm, SLOT, GPA, self->mem, self->fd));
	virt_map(self->vm, GPA, GPA, NR_PAGES * page_size / self->vm->page_size);
	for (i = 0; i < NR_PAGES; i++)
		*page_of(self->mem, i) = first_word(0, i);
}

FIXTURE_TEARDOWN(guest)
{
	unmap(self->mem);
	close(self->fd);
	kvm_vm_free(self->vm);
}

/*
 * What happens to the VMM's mappings is nothing to the guest: it keeps the
 * pages, and KVM does not have to map them anew.
 */
TEST_F(guest, host_mapping_is_ignored)
{
	static const char * const what[] = {
		"munmap", "MADV_DONTNEED", "PROT_NONE", "another mapping",
	};
	const size_t size = NR_PAGES * page_size;
	u64 cost, least;
	int i, round, page;
	void *mem;

#ifdef __x86_64__
	/* Faults do count. */
	read_all(_metadata, self->vcpu);
	ASSERT_WORKS(fallocate(self->fd, GMEM_PUNCH, 0, size));
	EXPECT_LE(NR_PAGES, read_all(_metadata, self->vcpu));
	for (page = 0; page < NR_PAGES; page++)
		*page_of(self->mem, page) = first_word(0, page);
#endif

	for (i = 0; i < ARRAY_SIZE(what); i++) {
		/* The least of some: the guest may fault elsewhere. */
		least = ~0ull;
		for (round = 0; round < 3; round++) {
			for (page = 0; page < NR_PAGES; page++)
				EXPECT_HOST_READS(first_word(0, page), self->mem, page);
			read_all(_metadata, self->vcpu);

			switch (i) {
			case 0:
				kvm_munmap(self->mem, size);
				break;
			case 1:
				EXPECT_WORKS(madvise(self->mem, size, MADV_DONTNEED));
				break;
			case 2:
				EXPECT_WORKS(mprotect(self->mem, size, PROT_NONE));
				break;
			case 3:
				mem = mmap(self->mem, size, PROT_READ | PROT_WRITE,
					   MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
				ASSERT_EQ(self->mem, mem);
				memset(mem, 0x5a, size);
				break;
			}

			cost = read_all(_metadata, self->vcpu);
			least = min(least, cost);
			for (page = 0; page < NR_PAGES; page++)
				EXPECT_GUEST_READS(first_word(0, page), self->vcpu, gpa_of(page));

			mem = mmap(self->mem, size, PROT_READ | PROT_WRITE,
				   MAP_FIXED | MAP_SHARED, self->fd, 0);
			ASSERT_EQ(self->mem, mem);
		}
		EXPECT_EQ(0, least)
			TH_LOG("%s: %lu faults", what[i], (unsigned long)least);
	}
}

/* Pages are mapped before the guest asks, whatever they are. */
TEST_F(guest, pre_fault)
{
	const int nr = 8;
	struct kvm_pre_fault_memory range = {
		.gpa = GPA,
		.size = nr * page_size,
	};
	u64 before, val, present;
	int i;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");

	/* The guest's code and stack.  (One fault more may come from there.) */
	for (i = 0; i < 2; i++)
		EXPECT_GUEST_READS(first_word(0, NR_PAGES - 1), self->vcpu, gpa_of(NR_PAGES - 1));

	/* Pages 0, 1, 4, 5 are private and every other one is a hole. */
	for (i = 0; i < nr; i += 2)
		ASSERT_WORKS(fallocate(self->fd, GMEM_PUNCH, i * page_size, page_size));
	ASSERT_WORKS(slots_convert(self->fd, 0, 2, PRIVATE));
	ASSERT_WORKS(slots_convert(self->fd, 4, 2, PRIVATE));

	EXPECT_WORKS(__vcpu_ioctl(self->vcpu, KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_EQ(0, range.size);
	EXPECT_EQ(gpa_of(nr), range.gpa);
	if (gmem_present(self->fd, nr, &present))
		EXPECT_EQ(GENMASK_ULL(nr - 1, 0), present);

	before = faults_of(self->vcpu);
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(0, gmem_guest_read(self->vcpu, gpa_of(i), &val));
		EXPECT_EQ(i % 2 ? first_word(0, i) : 0, val);
	}
	EXPECT_GE(1, faults_of(self->vcpu) - before);

	/* It has changed nothing, and nothing that it mapped is in the way. */
	for (i = 0; i < nr; i++)
		EXPECT_EQ(i / 2 % 2 ? 0 : PRIVATE, slots_state(self->fd, i));
	EXPECT_WORKS(slots_convert(self->fd, 0, nr, PRIVATE));
	EXPECT_HOST_REFUSED(self->mem, 2);
	EXPECT_WORKS(slots_convert(self->fd, 0, nr, 0));
	for (i = 0; i < nr; i++) {
		EXPECT_HOST_READS(i % 2 ? first_word(0, i) : 0, self->mem, i);
		EXPECT_GUEST_READS(i % 2 ? first_word(0, i) : 0, self->vcpu, gpa_of(i));
	}

	/* There is no page behind the last. */
	range.gpa = gpa_of(NR_PAGES);
	range.size = page_size;
	EXPECT_FAILS(ENOENT, __vcpu_ioctl(self->vcpu, KVM_PRE_FAULT_MEMORY, &range));
}

/*
 * A vCPU maps the pages of one memslot while somebody adds and deletes another.
 * To delete it may make the vCPU's root obsolete, and then waits for all who use
 * memslots: a prefault that tries again with that root gets nobody anywhere.
 */
#define NR_ROUNDS	200
#define STUCK_POLLS	3000	/* 10 ms each */

struct round_thread {
	struct rounds *all;
	int (*round)(struct rounds *all);
	pthread_t thread;
	u64 rounds;
	int err;
	bool ended;
};

struct rounds {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	void *mem;
	struct round_thread threads[2];
	bool over;
};

static int prefault_round(struct rounds *all)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = NR_PAGES * page_size };

	return __vcpu_ioctl(all->vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

static int delete_round(struct rounds *all)
{
	return __vm_set_user_memory_region2(all->vm, SLOT + 1, 0, GPA + SZ_1G, page_size,
					    all->mem, 0, 0) ?:
	       delete_slot(all->vm, SLOT + 1);
}

/* Each thread has its rounds to do, and goes on for as long as the other has not. */
static u64 rounds_left(struct rounds *all)
{
	return 2 * NR_ROUNDS - min(READ_ONCE(all->threads[0].rounds), NR_ROUNDS) -
	       min(READ_ONCE(all->threads[1].rounds), NR_ROUNDS);
}

static void *do_rounds(void *arg)
{
	struct round_thread *t = arg;

	while (rounds_left(t->all) && !READ_ONCE(t->all->over)) {
		if (t->round(t->all) && errno != EINTR) {
			t->err = errno;
			WRITE_ONCE(t->all->over, true);
		}
		WRITE_ONCE(t->rounds, t->rounds + 1);
	}
	WRITE_ONCE(t->ended, true);
	return NULL;
}

static void interrupt(int sig)
{
}

TEST_F_TIMEOUT(guest, pre_fault_and_deletion, 200)
{
	struct rounds all = { .vm = self->vm, .vcpu = self->vcpu, .mem = self->mem };
	struct round_thread *prefault = &all.threads[0], *delete = &all.threads[1];
	const struct sigaction sa = { .sa_handler = interrupt };
	int i, running, polls = 0, cpus[2];
	u64 left, last = 0;
	cpu_set_t set;
	bool stuck = false;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");
	if (!gmem_two_cpus(cpus))
		SKIP(return, "needs two CPUs");
	ASSERT_EQ(0, sigaction(SIGUSR1, &sa, NULL));

	prefault->round = prefault_round;
	delete->round = delete_round;
	for (i = 0; i < 2; i++) {
		CPU_ZERO(&set);
		CPU_SET(cpus[i], &set);
		all.threads[i].all = &all;
		kvm_pthread_create(&all.threads[i].thread, NULL, do_rounds, &all.threads[i]);
		kvm_pthread_setaffinity(all.threads[i].thread, &set);
	}

	do {
		usleep(10000);
		running = !READ_ONCE(prefault->ended) + !READ_ONCE(delete->ended);
		left = rounds_left(&all) + running;
		polls = left == last ? polls + 1 : 0;
		last = left;
		/* No signal reaches who deletes, and it waits for the other. */
		if (polls == STUCK_POLLS) {
			stuck = true;
			WRITE_ONCE(all.over, true);
			pthread_kill(prefault->thread, SIGUSR1);
		}
	} while (running);

	EXPECT_FALSE(stuck)
		TH_LOG("nobody gets anywhere in prefault %lu and deletion %lu",
		       (unsigned long)prefault->rounds, (unsigned long)delete->rounds);
	for (i = 0; i < 2; i++) {
		kvm_pthread_join(all.threads[i].thread, NULL);
		EXPECT_EQ(0, all.threads[i].err)
			TH_LOG("%s: %s", i ? "memslot" : "prefault", strerror(all.threads[i].err));
	}
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_GUEST_READS(first_word(0, i), self->vcpu, gpa_of(i));
}

/* Nobody has the file open: the slot has no private page, and no memory. */
TEST_F(guest, closed_file)
{
	u64 val;

	ASSERT_WORKS(slots_convert(self->fd, 1, 1, PRIVATE));
	EXPECT_GUEST_READS(first_word(0, 1), self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(first_word(0, 2), self->vcpu, gpa_of(2));
	close(self->fd);
	unmap(self->mem);

	EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, gpa_of(1), &val), self->vcpu,
			    gpa_of(1), 0);
	if (vm_attributes && variant->type) {
		vm_mem_set_private(self->vm, GPA, NR_PAGES * page_size);
		EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, gpa_of(1), &val), self->vcpu,
				    gpa_of(1), 0);
	}

	self->fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, MMAP_SHARED);
	self->mem = view_of(self->fd);

	/* The guest goes on where it was with the memory it is given now. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT));
	ASSERT_WORKS(bind_file(self->vm, SLOT, GPA, NULL, self->fd));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
}

/* The first ioctl for a VM, and the second, which are the same. */
static int set_1(struct kvm_vm *vm, u64 address, u64 size, u64 attributes, u64 flags)
{
	struct kvm_memory_attributes attr = {
		.address = address,
		.size = size,
		.attributes = attributes,
		.flags = flags,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr);
}

static int set_2(struct kvm_vm *vm, u64 address, u64 size, u64 attributes, u64 flags)
{
	struct kvm_memory_attributes2 attr = {
		.address = address,
		.size = size,
		.attributes = attributes,
		.flags = flags,
		.error_offset = 0x123,
	};
	int ret = __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES2, &attr);

	TEST_ASSERT(attr.error_offset == 0x123, "error_offset has changed");
	return ret;
}

TEST_F(guest, no_vm_attributes)
{
	if (vm_attributes)
		SKIP(return, "VMs have attributes");

	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES2));
	EXPECT_EQ(0, vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES2));
	EXPECT_EQ(PRIVATE, vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));

	EXPECT_FAILS(NO_IOCTL, set_1(self->vm, GPA, page_size, 0, 0));
	EXPECT_FAILS(NO_IOCTL, set_1(self->vm, GPA, page_size, PRIVATE, 0));
	EXPECT_FAILS(NO_IOCTL, set_2(self->vm, GPA, page_size, 0, 0));
	EXPECT_FAILS(NO_IOCTL, set_2(self->vm, GPA, page_size, PRIVATE, 0));

	/* The file has its own. */
	EXPECT_WORKS(slots_convert(self->fd, 1, 1, PRIVATE));
	EXPECT_HOST_REFUSED(self->mem, 1);
	EXPECT_GUEST_READS(first_word(0, 1), self->vcpu, gpa_of(1));
}

/* Files answer KVM_GET_MEMORY_ATTRIBUTES2, VMs never have. */
TEST_F(guest, vm_has_no_getter)
{
	struct kvm_memory_attributes2 attr = { .address = GPA, .size = page_size };

	EXPECT_FAILS(NO_IOCTL, __vm_ioctl(self->vm, KVM_GET_MEMORY_ATTRIBUTES2, &attr));
}

#ifdef __x86_64__
TEST_F(guest, vm_ioctls_are_alike)
{
	const u64 p = page_size, gpa = GPA + SZ_1G;	/* where no slot is */
	const u64 known = vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES);
	const struct {
		const char *what;
		u64 address, size, attributes, flags;
		int err;
	} rows[] = {
		{ "flag 0",		gpa, p, known, BIT_ULL(0), EINVAL },
		{ "flag 63",		gpa, p, known, BIT_ULL(63), EINVAL },
		{ "no size",		gpa, 0, known, 0, EINVAL },
		{ "size 1",		gpa, 1, known, 0, EINVAL },
		{ "page and 1",		gpa, p + 1, known, 0, EINVAL },
		{ "address 1",		gpa + 1, p, known, 0, EINVAL },
		{ "half a page",	gpa + p / 2, p, known, 0, EINVAL },
		{ "halves",		gpa + p / 2, p / 2, known, 0, EINVAL },
		{ "wraps",		-2 * p, 4 * p, known, 0, EINVAL },
		{ "wraps to 0",		-2 * p, 2 * p, known, 0, EINVAL },
		{ "all there is",	p, -p, known, 0, EINVAL },
		{ "attribute 0",	gpa, p, BIT_ULL(0), 0, EINVAL },
		{ "attribute 2",	gpa, p, BIT_ULL(2), 0, EINVAL },
		{ "attribute 4",	gpa, p, BIT_ULL(4), 0, EINVAL },
		{ "attribute 63",	gpa, p, BIT_ULL(63), 0, EINVAL },
		{ "two attributes",	gpa, p, PRIVATE | BIT_ULL(0), 0, EINVAL },
		{ "none",		gpa, p, 0, 0, 0 },
		{ "those known",	gpa, p, known, 0, 0 },
		{ "private",		gpa, p, PRIVATE, 0, known & PRIVATE ? 0 : EINVAL },
		{ "over slots",		GPA - SZ_1M, SZ_2M, 0, 0, 0 },
	};
	struct kvm_memory_attributes2 attr = {};
	int i;

	if (!vm_attributes)
		SKIP(return, "VMs have no attributes");

	EXPECT_EQ(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES),
		  kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES2));
	EXPECT_EQ(known, vm_check_cap(self->vm, KVM_CAP_MEMORY_ATTRIBUTES2));
	EXPECT_EQ(variant->type ? PRIVATE : 0, known);

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		const typeof(rows[0]) *r = &rows[i];

		if (r->err) {
			__EXPECT_FAILS(r->err, set_1(self->vm, r->address, r->size,
						     r->attributes, r->flags), "1: %s", r->what);
			__EXPECT_FAILS(r->err, set_2(self->vm, r->address, r->size,
						     r->attributes, r->flags), "2: %s", r->what);
		} else {
			EXPECT_EQ(0, set_1(self->vm, r->address, r->size, r->attributes, r->flags))
				TH_LOG("1: %s: %s", r->what, strerror(errno));
			EXPECT_EQ(0, set_2(self->vm, r->address, r->size, r->attributes, r->flags))
				TH_LOG("2: %s: %s", r->what, strerror(errno));
		}
	}

	/* What only the second one has. */
	for (i = 0; i < ARRAY_SIZE(attr.reserved); i++) {
		attr = (struct kvm_memory_attributes2) { .address = gpa, .size = p };
		attr.reserved[i] = 1;
		__EXPECT_FAILS(EINVAL, __vm_ioctl(self->vm, KVM_SET_MEMORY_ATTRIBUTES2, &attr),
			       "reserved[%d]", i);
	}
	EXPECT_FAILS(EFAULT, ioctl(self->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, NULL));
	EXPECT_FAILS(EFAULT, ioctl(self->vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL));
}

/*
 * KVM's own accesses take the way through the slot's address, like the VMM's:
 * they reach shared pages only, and where they fail the guest goes on.
 */
static void update_clock(struct kvm_vm *vm)
{
	struct kvm_clock_data data = {};

	vm_ioctl(vm, KVM_GET_CLOCK, &data);
	data.flags = 0;
	data.clock += NSEC_PER_SEC;
	vm_ioctl(vm, KVM_SET_CLOCK, &data);
}

TEST_F(guest, kvm_clock)
{
	u64 version, old, i;

	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, gpa_of(1) | KVM_MSR_ENABLED);
	*page_of(self->mem, 1) = 0;
	EXPECT_EQ(0, gmem_guest_read(self->vcpu, gpa_of(1), &old));
	if (!old)
		SKIP(return, "no kvm-clock");

	for (i = 0; i < 50; i++) {
		/* The clock was written to the page a moment ago: no hindrance. */
		update_clock(self->vm);
		EXPECT_EQ(0, gmem_guest_read(self->vcpu, gpa_of(1), &version));
		EXPECT_NE(old, version);
		ASSERT_WORKS(slots_convert(self->fd, 1, 1, PRIVATE));

		update_clock(self->vm);
		EXPECT_GUEST_READS(version, self->vcpu, gpa_of(1));
		update_clock(self->vm);
		EXPECT_GUEST_READS(version, self->vcpu, gpa_of(1));

		ASSERT_WORKS(slots_convert(self->fd, 1, 1, 0));
		old = version;
	}
}

TEST_F(guest, steal_time)
{
	/* 64 bits are read: the version, which counts up, and the flags. */
	const u64 gpa = gpa_of(1) + offsetof(struct kvm_steal_time, version);
	u64 version, old, i;

	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		SKIP(return, "no steal time");

	memset(page_of(self->mem, 1), 0, page_size);
	vcpu_set_msr(self->vcpu, MSR_KVM_STEAL_TIME, gpa_of(1) | KVM_MSR_ENABLED);
	EXPECT_EQ(0, gmem_guest_read(self->vcpu, gpa, &old));

	for (i = 0; i < 50; i++) {
		EXPECT_EQ(0, gmem_guest_read(self->vcpu, gpa, &version));
		EXPECT_NE(old, version);
		ASSERT_WORKS(slots_convert(self->fd, 1, 1, PRIVATE));

		/* It was counted again if the vCPU was preempted after it had read. */
		EXPECT_EQ(0, gmem_guest_read(self->vcpu, gpa, &version));
		EXPECT_GUEST_READS(version, self->vcpu, gpa);
		EXPECT_GUEST_READS(version, self->vcpu, gpa);

		ASSERT_WORKS(slots_convert(self->fd, 1, 1, 0));
		old = version;
	}
}

/* Copies 8 bytes to where no memory is, which KVM has to do for it. */
static void copy_to_mmio(u64 *to, u64 *from)
{
	for (;;) {
		u64 *rdi = to, *rsi = from;

		asm volatile("movsq" : "+D" (rdi), "+S" (rsi) : : "memory");
		GUEST_SYNC(0);
	}
}

TEST_F(guest, emulator)
{
	const u64 secret = 0x5ec2e75ec2e7;
	struct kvm_vcpu *vcpu = vm_vcpu_add(self->vm, 1, copy_to_mmio);
	struct kvm_run *run = vcpu->run;
	u64 data;
	int i;

	virt_map(self->vm, MMIO_GPA, MMIO_GPA, 1);
	vcpu_args_set(vcpu, 2, (u64)MMIO_GPA, gpa_of(1));
	*page_of(self->mem, 1) = secret;

	/* From a shared page. */
	ASSERT_EQ(0, _vcpu_run(vcpu));
	ASSERT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	EXPECT_TRUE(run->mmio.is_write);
	EXPECT_EQ(MMIO_GPA, run->mmio.phys_addr);
	EXPECT_EQ(8, run->mmio.len);
	memcpy(&data, run->mmio.data, sizeof(data));
	EXPECT_EQ(secret, data);
	ASSERT_EQ(0, _vcpu_run(vcpu));
	ASSERT_EQ(UCALL_SYNC, get_ucall(vcpu, NULL));

	/*
	 * From a private one it cannot.  KVM may ask userspace for what it
	 * could not read, or give up; what is in the page does not get out.
	 */
	ASSERT_WORKS(slots_convert(self->fd, 1, 1, PRIVATE));
	for (i = 0; i < 4; i++) {
		if (_vcpu_run(vcpu) || run->exit_reason != KVM_EXIT_MMIO)
			break;
		memcpy(&data, run->mmio.data, sizeof(data));
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0x77, sizeof(run->mmio.data));
		else
			EXPECT_NE(secret, data);
	}
	EXPECT_GT(4, i);

	/* Nobody else has noticed. */
	EXPECT_GUEST_READS(secret, self->vcpu, gpa_of(1));
	EXPECT_WORKS(slots_convert(self->fd, 1, 1, 0));
	EXPECT_HOST_READS(secret, self->mem, 1);
}

/*
 * All three kinds of slot in one software-protected VM.  The host has a view
 * of each; that of the in-place file is not the slot's address, which leads
 * elsewhere.
 */
enum { IN_PLACE, OLD, PLAIN, NR_KINDS };

FIXTURE(slots)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	int fd[NR_KINDS];
	void *mem[NR_KINDS];
	void *decoy;
};

static int add_plain(struct kvm_vm *vm, u32 slot, u64 gpa, void *hva)
{
	return __vm_set_user_memory_region2(vm, slot, 0, gpa, NR_PAGES * page_size, hva, 0, 0);
}

static void *anonymous(void)
{
	return kvm_mmap(NR_PAGES * page_size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static u64 kind_gpa(int kind, int page)
{
	return gpa_of(page) + kind * (u64)SZ_1G;
}

FIXTURE_SETUP(slots)
{
	int kind, i;

	if (!has_vm_type(KVM_X86_SW_PROTECTED_VM))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");

	self->vm = create_vm(KVM_X86_SW_PROTECTED_VM, &self->vcpu);
	self->fd[IN_PLACE] = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, MMAP_SHARED);
	self->fd[OLD] = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, 0);
	self->mem[IN_PLACE] = view_of(self->fd[IN_PLACE]);
	self->mem[OLD] = anonymous();
	self->mem[PLAIN] = anonymous();
	self->decoy = anonymous();
	memset(self->decoy, 0x5a, NR_PAGES * page_size);

	ASSERT_WORKS(bind_file(self->vm, SLOT + IN_PLACE, kind_gpa(IN_PLACE, 0), self->decoy,
			       self->fd[IN_PLACE]));
	ASSERT_WORKS(bind_file(self->vm, SLOT + OLD, kind_gpa(OLD, 0), self->mem[OLD],
			       self->fd[OLD]));
	ASSERT_WORKS(add_plain(self->vm, SLOT + PLAIN, kind_gpa(PLAIN, 0), self->mem[PLAIN]));

	for (kind = 0; kind < NR_KINDS; kind++) {
		virt_map(self->vm, kind_gpa(kind, 0), kind_gpa(kind, 0), NR_PAGES);
		for (i = 0; i < NR_PAGES; i++)
			*page_of(self->mem[kind], i) = first_word(kind, i);
	}
}

FIXTURE_TEARDOWN(slots)
{
	EXPECT_TRUE(gmem_is_filled(self->decoy, 0x5a, NR_PAGES * page_size));
	unmap(self->mem[IN_PLACE]);
	unmap(self->mem[OLD]);
	unmap(self->mem[PLAIN]);
	unmap(self->decoy);
	close(self->fd[IN_PLACE]);
	close(self->fd[OLD]);
	kvm_vm_free(self->vm);
}

/* Host and guest have the same memory, as it was in the beginning. */
static void expect_shared(struct __test_metadata *_metadata, FIXTURE_DATA(slots) * self,
			  int kind, int first, int last)
{
	int i;

	for (i = first; i <= last; i++) {
		EXPECT_GUEST_READS(first_word(kind, i), self->vcpu, kind_gpa(kind, i));
		EXPECT_HOST_READS(first_word(kind, i), self->mem[kind], i);
		if (kind == IN_PLACE)
			EXPECT_EQ(0, slots_state(self->fd[kind], i));
	}
}

TEST_F(slots, each_has_its_own)
{
	struct kvm_memory_attributes2 attr = { .size = page_size };
	const int last = NR_PAGES - 1;
	u64 val;

	if (!vm_attributes)
		SKIP(return, "VMs have no attributes");
	expect_shared(_metadata, self, IN_PLACE, 0, last);
	expect_shared(_metadata, self, OLD, 0, last);
	expect_shared(_metadata, self, PLAIN, 0, last);

	/* The file of an in-place slot. */
	ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], 1, 1, PRIVATE));
	EXPECT_GUEST_READS(first_word(IN_PLACE, 1), self->vcpu, kind_gpa(IN_PLACE, 1));
	EXPECT_HOST_REFUSED(self->mem[IN_PLACE], 1);
	expect_shared(_metadata, self, IN_PLACE, 0, 0);
	expect_shared(_metadata, self, IN_PLACE, 2, last);
	expect_shared(_metadata, self, OLD, 0, last);
	expect_shared(_metadata, self, PLAIN, 0, last);

	/* The VM's attributes for one of the old scheme: a memory of its own. */
	ASSERT_WORKS(set_2(self->vm, kind_gpa(OLD, 2), page_size, PRIVATE, 0));
	EXPECT_GUEST_READS(0, self->vcpu, kind_gpa(OLD, 2));
	EXPECT_GUEST_WRITES(self->vcpu, kind_gpa(OLD, 2), 0x02d);
	EXPECT_HOST_READS(first_word(OLD, 2), self->mem[OLD], 2);
	expect_shared(_metadata, self, OLD, 0, 1);
	expect_shared(_metadata, self, OLD, 3, last);
	expect_shared(_metadata, self, IN_PLACE, 2, 3);
	expect_shared(_metadata, self, PLAIN, 1, 3);

	/* And where there is no file there is nothing that can be private. */
	ASSERT_WORKS(set_1(self->vm, kind_gpa(PLAIN, 3), page_size, PRIVATE, 0));
	EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, kind_gpa(PLAIN, 3), &val), self->vcpu,
			    kind_gpa(PLAIN, 3), KVM_MEMORY_EXIT_FLAG_PRIVATE);
	ASSERT_WORKS(set_2(self->vm, kind_gpa(PLAIN, 3), page_size, 0, 0));
	EXPECT_GUEST_READS(first_word(PLAIN, 3), self->vcpu, kind_gpa(PLAIN, 3));
	expect_shared(_metadata, self, PLAIN, 0, last);

	/* A file of the old scheme has no attributes. */
	EXPECT_FAILS(ENOTTY, slots_convert(self->fd[OLD], 0, 1, PRIVATE));
	EXPECT_FAILS(ENOTTY, slots_convert(self->fd[OLD], 0, 1, 0));
	EXPECT_FAILS(ENOTTY, ioctl(self->fd[OLD], KVM_GET_MEMORY_ATTRIBUTES2, &attr));

	/* Back again: each by its own. */
	EXPECT_GUEST_WRITES(self->vcpu, kind_gpa(IN_PLACE, 1), 0x1a);
	ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], 0, NR_PAGES, 0));
	EXPECT_HOST_READS(0x1a, self->mem[IN_PLACE], 1);
	EXPECT_GUEST_READS(0x02d, self->vcpu, kind_gpa(OLD, 2));
	ASSERT_WORKS(set_1(self->vm, kind_gpa(OLD, 0), NR_PAGES * page_size, 0, 0));
	expect_shared(_metadata, self, OLD, 0, last);
	ASSERT_WORKS(set_2(self->vm, kind_gpa(OLD, 2), page_size, PRIVATE, 0));
	EXPECT_GUEST_READS(0x02d, self->vcpu, kind_gpa(OLD, 2));
}

/* The in-place slot is what its file says, with all attributes set or none. */
static void expect_file_decides(struct __test_metadata *_metadata, FIXTURE_DATA(slots) * self)
{
	const int fd = self->fd[IN_PLACE];
	void *mem = self->mem[IN_PLACE];

	expect_shared(_metadata, self, IN_PLACE, 0, NR_PAGES - 1);
	EXPECT_WORKS(slots_convert(fd, 2, 1, PRIVATE));
	EXPECT_HOST_REFUSED(mem, 2);
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(2), 0xabc);
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(3), 0xabd);
	EXPECT_HOST_READS(0xabd, mem, 3);
	EXPECT_WORKS(slots_convert(fd, 2, 1, 0));
	EXPECT_HOST_READS(0xabc, mem, 2);

	*page_of(mem, 2) = first_word(IN_PLACE, 2);
	*page_of(mem, 3) = first_word(IN_PLACE, 3);
	expect_shared(_metadata, self, IN_PLACE, 0, NR_PAGES - 1);
}

TEST_F(slots, attributes_over_in_place)
{
	const u64 size = NR_PAGES * page_size;
	u64 cost, least = ~0ull;
	int i;

	if (!vm_attributes)
		SKIP(return, "VMs have no attributes");

	/* After the slot was created, whole and in part; the guest feels nothing. */
	expect_file_decides(_metadata, self);
	for (i = 0; i < 3; i++) {
		read_all(_metadata, self->vcpu);
		ASSERT_WORKS(set_2(self->vm, GPA, size, PRIVATE, 0));
		cost = read_all(_metadata, self->vcpu);
		ASSERT_WORKS(set_2(self->vm, gpa_of(1), page_size, 0, 0));
		cost += read_all(_metadata, self->vcpu);
		ASSERT_WORKS(set_2(self->vm, GPA, size, 0, 0));
		cost += read_all(_metadata, self->vcpu);
		least = min(least, cost);
	}
	EXPECT_EQ(0, least);

	ASSERT_WORKS(set_1(self->vm, GPA, size, PRIVATE, 0));
	expect_file_decides(_metadata, self);
	ASSERT_WORKS(set_1(self->vm, gpa_of(2), page_size, 0, 0));
	expect_file_decides(_metadata, self);

	/* Setting them neither converts, nor does a conversion set them. */
	ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], 5, 1, PRIVATE));
	ASSERT_WORKS(set_1(self->vm, GPA, size, 0, 0));
	EXPECT_EQ(PRIVATE, slots_state(self->fd[IN_PLACE], 5));
	EXPECT_HOST_REFUSED(self->mem[IN_PLACE], 5);
	ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], 5, 1, 0));

	/* Before. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT + IN_PLACE));
	ASSERT_WORKS(set_1(self->vm, gpa_of(2), 4 * page_size, PRIVATE, 0));
	ASSERT_WORKS(bind_file(self->vm, SLOT + IN_PLACE, GPA, self->decoy, self->fd[IN_PLACE]));
	expect_file_decides(_metadata, self);
}

/* One address, one kind of slot after the other: attributes wait for theirs. */
TEST_F(slots, one_after_the_other)
{
	u64 val;

	if (!vm_attributes)
		SKIP(return, "VMs have no attributes");
	ASSERT_WORKS(set_2(self->vm, gpa_of(1), page_size, PRIVATE, 0));
	ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], 2, 1, PRIVATE));
	EXPECT_GUEST_READS(first_word(IN_PLACE, 1), self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(first_word(IN_PLACE, 2), self->vcpu, gpa_of(2));
	EXPECT_HOST_READS(first_word(IN_PLACE, 1), self->mem[IN_PLACE], 1);

	/* Old scheme: page 1 is private now, and page 2 no longer. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT + OLD));
	ASSERT_WORKS(delete_slot(self->vm, SLOT + IN_PLACE));
	ASSERT_WORKS(bind_file(self->vm, SLOT + OLD, GPA, self->mem[OLD], self->fd[OLD]));
	EXPECT_GUEST_READS(0, self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(first_word(OLD, 2), self->vcpu, gpa_of(2));
	EXPECT_GUEST_WRITES(self->vcpu, gpa_of(1), 0x01d);

	/* No file: page 1 would have to be private. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT + OLD));
	ASSERT_WORKS(delete_slot(self->vm, SLOT + PLAIN));
	ASSERT_WORKS(add_plain(self->vm, SLOT + PLAIN, GPA, self->mem[PLAIN]));
	EXPECT_GUEST_READS(first_word(PLAIN, 2), self->vcpu, gpa_of(2));
	EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, gpa_of(1), &val), self->vcpu,
			    gpa_of(1), KVM_MEMORY_EXIT_FLAG_PRIVATE);

	/* In place again: the file has kept its state. */
	ASSERT_WORKS(delete_slot(self->vm, SLOT + PLAIN));
	ASSERT_WORKS(bind_file(self->vm, SLOT + IN_PLACE, GPA, self->decoy, self->fd[IN_PLACE]));
	EXPECT_GUEST_READS(first_word(IN_PLACE, 1), self->vcpu, gpa_of(1));
	EXPECT_GUEST_READS(first_word(IN_PLACE, 2), self->vcpu, gpa_of(2));
	EXPECT_HOST_REFUSED(self->mem[IN_PLACE], 2);

	ASSERT_WORKS(delete_slot(self->vm, SLOT + IN_PLACE));
	ASSERT_WORKS(bind_file(self->vm, SLOT + OLD, GPA, self->mem[OLD], self->fd[OLD]));
	EXPECT_GUEST_READS(0x01d, self->vcpu, gpa_of(1));
}

/* Two VMs of either scheme: what is done in the one is not done in the other. */
TEST_F(slots, side_by_side)
{
	void *mem = anonymous();
	struct kvm_vcpu *vcpu;
	struct kvm_vm *old;
	int i, fd;

	if (!vm_attributes)
		SKIP(return, "VMs have no attributes");
	old = create_vm(KVM_X86_SW_PROTECTED_VM, &vcpu);
	fd = vm_create_guest_memfd(old, NR_PAGES * page_size, 0);
	ASSERT_WORKS(bind_file(old, SLOT, GPA, mem, fd));
	virt_map(old, GPA, GPA, NR_PAGES);
	for (i = 0; i < NR_PAGES; i++)
		*page_of(mem, i) = first_word(OLD, i);

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], i, 1, PRIVATE));
		EXPECT_GUEST_READS(first_word(IN_PLACE, i), self->vcpu, gpa_of(i));
		EXPECT_HOST_REFUSED(self->mem[IN_PLACE], i);
		EXPECT_GUEST_READS(first_word(OLD, i), vcpu, gpa_of(i));

		ASSERT_WORKS(set_2(old, gpa_of(i), page_size, PRIVATE, 0));
		EXPECT_GUEST_READS(0, vcpu, gpa_of(i));
		EXPECT_GUEST_WRITES(vcpu, gpa_of(i), 0xd00 + i);
		EXPECT_HOST_READS(first_word(OLD, i), mem, i);

		ASSERT_WORKS(slots_convert(self->fd[IN_PLACE], i, 1, 0));
		expect_shared(_metadata, self, IN_PLACE, 0, NR_PAGES - 1);
		EXPECT_GUEST_READS(0xd00 + i, vcpu, gpa_of(i));
	}

	close(fd);
	kvm_vm_free(old);
	unmap(mem);
}

/* The old scheme, with its file closed: the VM's attributes decide still. */
TEST_F(slots, closed_file_of_the_old_scheme)
{
	u64 val;

	if (!vm_attributes)
		SKIP(return, "VMs have no attributes");
	ASSERT_WORKS(set_2(self->vm, kind_gpa(OLD, 1), page_size, PRIVATE, 0));
	EXPECT_GUEST_READS(0, self->vcpu, kind_gpa(OLD, 1));
	close(self->fd[OLD]);

	EXPECT_GUEST_READS(first_word(OLD, 2), self->vcpu, kind_gpa(OLD, 2));
	EXPECT_MEMORY_FAULT(gmem_guest_read(self->vcpu, kind_gpa(OLD, 1), &val), self->vcpu,
			    kind_gpa(OLD, 1), KVM_MEMORY_EXIT_FLAG_PRIVATE);
	ASSERT_WORKS(set_2(self->vm, kind_gpa(OLD, 1), page_size, 0, 0));
	EXPECT_GUEST_READS(first_word(OLD, 1), self->vcpu, kind_gpa(OLD, 1));
	self->fd[OLD] = vm_create_guest_memfd(self->vm, page_size, 0);
}

#ifdef __x86_64__
static u64 nested_saw[2];

/* Page 0 is shared, and page 1 private. */
static void nested_guest_code(void)
{
	nested_saw[0] = READ_ONCE(*(u64 *)GPA);
	nested_saw[1] = READ_ONCE(*(u64 *)(GPA + PAGE_SIZE));
	vmmcall();
}

static void nesting_guest_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, nested_guest_code);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	GUEST_DONE();
}

/*
 * Pages next to the one that a guest's guest has touched are mapped in advance, from
 * the slot's address, where private memory is not.
 */
TEST(nested_guest_and_neighbours)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	const size_t size = NR_PAGES * page_size;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	gva_t svm;
	void *mem;
	int fd, i;

	if (!has_vm_type(KVM_X86_SW_PROTECTED_VM) || !vm_attributes)
		SKIP(return, "no software-protected VMs, or they have no attributes");
	if (!kvm_cpu_has(X86_FEATURE_SVM) || !kvm_cpu_has_npt())
		SKIP(return, "no nested SVM with nested paging");

	vm = __vm_create_shape_with_one_vcpu(shape, &vcpu, 64, nesting_guest_code);
	vm_enable_tdp(vm);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);
	virt_map(vm, GPA, GPA, NR_PAGES);
	tdp_identity_map_default_memslots(vm);
	tdp_map(vm, GPA, GPA, size);
	/* What has never been accessed is not mapped in advance. */
	for (i = 0; i < NR_PAGES; i++)
		*tdp_get_pte(vm, gpa_of(i)) |= PTE_ACCESSED_MASK(&vm->stage2_mmu);

	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < NR_PAGES; i++)
		*page_of(mem, i) = first_word(0, i);
	fd = vm_create_guest_memfd(vm, size, 0);
	ASSERT_WORKS(bind_file(vm, SLOT, GPA, mem, fd));
	vm_mem_set_private(vm, gpa_of(1), page_size);

	vcpu_run(vcpu);
	EXPECT_EQ(UCALL_DONE, get_ucall(vcpu, NULL));
	sync_global_from_guest(vm, nested_saw);
	EXPECT_EQ(first_word(0, 0), nested_saw[0]);
	EXPECT_EQ(0, nested_saw[1]);

	unmap(mem);
	close(fd);
	kvm_vm_free(vm);
}
#endif

/*
 * Which files decide: those with a flag, or all.  They are all there is in
 * their slots; where the slot's address leads is never seen.
 */
TEST_F(slots, flags)
{
	u64 flags, state, gpa = kind_gpa(NR_KINDS, 0);
	int fd;

	virt_map(self->vm, gpa, gpa, NR_PAGES);
	for (flags = 0; flags <= MMAP_SHARED; flags++) {
		const bool decides = flags || !vm_attributes;

		fd = vm_create_guest_memfd(self->vm, NR_PAGES * page_size, flags);
		ASSERT_WORKS(bind_file(self->vm, SLOT + NR_KINDS, gpa, self->decoy, fd));

		if (!decides) {
			EXPECT_FAILS(ENOTTY, slots_convert(fd, 0, 1, PRIVATE));
			EXPECT_GUEST_READS(0x5a5a5a5a5a5a5a5a, self->vcpu, gpa);
			goto next;
		}

		state = flags & GUEST_MEMFD_FLAG_INIT_SHARED ? 0 : PRIVATE;
		EXPECT_EQ(state, slots_state(fd, 0));
		EXPECT_EQ(state, slots_state(fd, NR_PAGES - 1));
		EXPECT_GUEST_READS(0, self->vcpu, gpa);
		EXPECT_GUEST_WRITES(self->vcpu, gpa, 0x100 + flags);
		EXPECT_WORKS(slots_convert(fd, 0, 1, state ^ PRIVATE));
		EXPECT_EQ(state ^ PRIVATE, slots_state(fd, 0));
		EXPECT_EQ(state, slots_state(fd, 1));
		EXPECT_GUEST_READS(0x100 + flags, self->vcpu, gpa);
		EXPECT_GUEST_READS(0, self->vcpu, gpa + page_size);
		EXPECT_WORKS(slots_convert(fd, 0, NR_PAGES, state));
		EXPECT_GUEST_READS(0x100 + flags, self->vcpu, gpa);
next:
		close(fd);
		ASSERT_WORKS(delete_slot(self->vm, SLOT + NR_KINDS));
	}
}
#endif /* __x86_64__ */

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) & PRIVATE);

	page_size = getpagesize();
	vm_attributes = slots_vm_attributes();
	return test_harness_run(argc, argv);
}
