// SPDX-License-Identifier: GPL-2.0
/*
 * Blocks of guest_memfd: contiguous memory that the guest maps as one, and that is
 * single pages to everybody else.  How a file gets them and gives them back, what
 * becomes of them when a page is converted, pinned, punched or broken, how large the
 * guest's mappings are meanwhile, and what happens when there is no such memory.
 *
 *   page    of the host
 *   huge    a block of the smaller size, that of a PMD; what a guest maps in its place
 *   giant   a block of the larger size, that of a PUD, where there is one
 *   whole, broken, fallback
 *           said of the place for a block: memory of one block, a part of one, or
 *           nothing but pages that were allocated one by one
 *
 * Two things tell how a guest maps memory: KVM's statistics (x86), and the number of
 * guest page faults that it takes to touch each page once, by a tracepoint of KVM's
 * and hence exact.  Content of a page is its first word; where a test knows of no
 * other, that is a number which stands for this page of this file and no other.
 *
 * Giant blocks take 1 GiB of contiguous memory.  That is an eighth of this machine, or
 * all that there is: no case has two unless it wants to run out of them, and each
 * skips without the first, and says so.  Nothing else may run meanwhile, as free
 * memory is compared.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#include <linux/kernel-page-flags.h>
#include <linux/sizes.h>

#include "guest_memfd_hold.h"
#include "guest_memfd_util.h"
#include "numaif.h"
#include "processor.h"

#define MAPPABLE	GUEST_MEMFD_FLAG_MMAP
#define INIT_SHARED	GUEST_MEMFD_FLAG_INIT_SHARED

#define SLOT		10
#define GPA		SZ_4G		/* above what the library uses */
#define GPA_SIZE	SZ_4G		/* that the guest has mapped for its part */
#define NR_BLOCKS	4		/* in a file of huge blocks */
#define TOKEN		0x5100000000ull	/* content of page 0, one more for each page */

/* Seconds: a debug kernel is slow. */
#define LONG		200

#define WHY_NO_GIANT	"no giant blocks in this kernel (CONFIG_CONTIG_ALLOC)"
#define WHY_NO_MEMORY	"no contiguous memory of 1 GiB is free"
#define WHY_NO_TYPE	"no software-protected VMs (they need the TDP MMU)"
#define WHY_NO_TRACE	"needs event tracing (tracefs) and root"
#define WHY_NO_ERRORS	"needs CONFIG_MEMORY_FAILURE, CONFIG_HWPOISON_INJECT and root"

static size_t page_size;
static u64 huge, giant;			/* sizes of blocks, 0 if there is none */
static unsigned int per_huge, per_giant;	/* in pages */

static u64 block_flag(u64 block)
{
	return block == page_size ? 0 :
	       (u64)__builtin_ctzll(block) << GUEST_MEMFD_BLOCK_SIZE_SHIFT;
}

static u64 offset_of(unsigned int page)
{
	return (u64)page * page_size;
}

static unsigned long vm_types(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) ?: BIT(VM_TYPE_DEFAULT);
}

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

static u64 now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* With a priority, come before all that have less, or none. */
static void on_cpu(int cpu, int priority)
{
	const struct sched_param param = { .sched_priority = priority };
	const int policy = priority ? SCHED_FIFO : SCHED_OTHER;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity()");
	TEST_ASSERT(!sched_setscheduler(0, policy, &param), "sched_setscheduler()");
}

/* What /proc says about the blocks of a file. */
static void expect_blocks(struct __test_metadata *_metadata, int fd, int line, u64 whole,
			  u64 broken, u64 fallback)
{
	EXPECT_EQ(whole, gmem_fdinfo_val(fd, "gmem-blocks-whole")) TH_LOG("line %d", line);
	EXPECT_EQ(broken, gmem_fdinfo_val(fd, "gmem-blocks-broken")) TH_LOG("line %d", line);
	EXPECT_EQ(fallback, gmem_fdinfo_val(fd, "gmem-blocks-fallback")) TH_LOG("line %d", line);
}

#define EXPECT_BLOCKS(fd, whole, broken, fallback)			\
	expect_blocks(_metadata, fd, __LINE__, whole, broken, fallback)

#define EXPECT_PRESENT(fd, nr)						\
	EXPECT_EQ((u64)(nr), gmem_fdinfo_val(fd, "gmem-present"))

static u64 *word_at(u8 *mem, unsigned int page)
{
	return (u64 *)(mem + offset_of(page));
}

/*
 * The host walks through pages, up to one that it must not touch.  Static: SIGBUS
 * does not restore where it was.
 */
static unsigned int host_at, host_bad;

enum host_op {
	HOST_LOOK,
	HOST_FILL,	/* with what stands for each page */
	HOST_FIND,	/* the same */
	HOST_FIND_ZEROES,	/* in all of the page: this is what a block is zeroed for */
};

static void host_walks(u8 *mem, unsigned int first, unsigned int nr, enum host_op op)
{
	u64 *word;

	host_bad = 0;
	for (host_at = first; host_at < first + nr; host_at++) {
		word = word_at(mem, host_at);
		if (op == HOST_LOOK)
			READ_ONCE(*word);
		else if (op == HOST_FILL)
			WRITE_ONCE(*word, TOKEN + host_at);
		else if (op == HOST_FIND)
			host_bad += READ_ONCE(*word) != TOKEN + host_at;
		else
			host_bad += !gmem_is_filled(word, 0, page_size);
	}
}

static void expect_host(struct __test_metadata *_metadata, u8 *mem, unsigned int first,
			unsigned int nr, enum host_op op)
{
	const int code = gmem_sigbus(host_walks(mem, first, nr, op));

	EXPECT_EQ(0, code) TH_LOG("page %u of %u, %u", host_at, first, nr);
	EXPECT_EQ(0, host_bad) TH_LOG("of pages %u, %u", first, nr);
}

static void host_fills(struct __test_metadata *_metadata, u8 *mem, unsigned int first,
		       unsigned int nr)
{
	expect_host(_metadata, mem, first, nr, HOST_FILL);
}

static void host_finds(struct __test_metadata *_metadata, u8 *mem, unsigned int first,
		       unsigned int nr)
{
	expect_host(_metadata, mem, first, nr, HOST_FIND);
}

static void host_finds_zeroes(struct __test_metadata *_metadata, u8 *mem, unsigned int first,
			      unsigned int nr)
{
	expect_host(_metadata, mem, first, nr, HOST_FIND_ZEROES);
}

/* @nr pages, shared and mapped at @mem, are contiguous memory and aligned to that. */
static void expect_block_at(struct __test_metadata *_metadata, u8 *mem, unsigned int nr)
{
	u64 *pfns = malloc(nr * sizeof(*pfns));
	unsigned int i, bad = 0;

	expect_host(_metadata, mem, 0, nr, HOST_LOOK);
	gmem_pfns(mem, nr, pfns);
	ASSERT_NE(0, pfns[0]) TH_LOG("no page frame numbers: is this root?");
	EXPECT_EQ(0, pfns[0] % nr);
	for (i = 1; i < nr; i++)
		bad += pfns[i] != pfns[0] + i;
	EXPECT_EQ(0, bad);
	free(pfns);
}

/*
 * Free memory of the machine in pages, those in per-CPU lists included; that is
 * what a block comes back as if it comes back page by page.
 */
static u64 free_memory(void)
{
	FILE *f = fopen("/proc/zoneinfo", "r");
	u64 nr = 0, val;
	char line[128];

	TEST_ASSERT(f, "/proc/zoneinfo: errno %d", errno);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, " nr_free_pages %lu", &val) == 1 ||
		    sscanf(line, " count: %lu", &val) == 1)
			nr += val;
	fclose(f);
	TEST_ASSERT(nr, "no free memory in /proc/zoneinfo");
	return nr;
}

/*
 * Less than twenty huge blocks, more than caches of the kernel take in a while.  With
 * KASAN, what is freed is kept for longer: GMEM_SLACK says how many MiB.
 */
static u64 slack(void)
{
	const char *text = getenv("GMEM_SLACK");

	return (text ? atoi(text) : 8) * SZ_1M / page_size;
}

#define SLACK		slack()

/* All of @before is free again.  Tables are freed after a grace period. */
static void expect_free(struct __test_metadata *_metadata, u64 before, int line)
{
	int i;

	for (i = 0; i < 40 && free_memory() + SLACK / 4 < before; i++)
		usleep(25000);
	EXPECT_LE(before, free_memory() + SLACK) TH_LOG("line %d: memory is lost", line);
}

#define EXPECT_FREE(before)	expect_free(_metadata, before, __LINE__)

/* Free huge blocks of the machine, or of a node of it, as the allocator has them. */
static u64 free_huge_blocks(int of_node)
{
	const int order = __builtin_ctz(per_huge);
	FILE *f = fopen("/proc/buddyinfo", "r");
	char line[512], *pos;
	u64 nr = 0, val;
	int node, i, len;

	TEST_ASSERT(f, "/proc/buddyinfo: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Node %d, zone %*s%n", &node, &len) != 1)
			continue;
		pos = line + len;
		for (i = 0; sscanf(pos, " %lu%n", &val, &len) == 1; i++, pos += len)
			if (i >= order && (of_node < 0 || node == of_node))
				nr += val << (i - order);
	}
	fclose(f);
	return nr;
}

/* The sum of the lines of /proc/vmstat that begin with @prefix. */
static u64 sum_vmstat(const char *prefix)
{
	FILE *f = fopen("/proc/vmstat", "r");
	char line[128], *val;
	u64 sum = 0;

	TEST_ASSERT(f, "/proc/vmstat: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		val = strchr(line, ' ');
		if (val && !strncmp(line, prefix, strlen(prefix)))
			sum += strtoull(val, NULL, 10);
	}
	fclose(f);
	return sum;
}

/* Creating files. */
FIXTURE(create)
{
	struct kvm_vm *vm;
	int nr_fds;
};

FIXTURE_SETUP(create)
{
	self->vm = vm_create_barebones();
	self->nr_fds = gmem_count_fds();
}

FIXTURE_TEARDOWN(create)
{
	EXPECT_EQ(self->nr_fds, gmem_count_fds());
	kvm_vm_free(self->vm);
}

TEST_F(create, capability)
{
	const u64 sizes = (u32)kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES);
	unsigned long types = vm_types();
	unsigned int type;

	EXPECT_EQ(58, GUEST_MEMFD_BLOCK_SIZE_SHIFT);
	EXPECT_EQ(0xfc00000000000000ull, GUEST_MEMFD_BLOCK_SIZE_MASK);
	EXPECT_EQ(0x5400000000000000ull, GUEST_MEMFD_BLOCK_SIZE_2MB);
	EXPECT_EQ(0x7800000000000000ull, GUEST_MEMFD_BLOCK_SIZE_1GB);
	EXPECT_EQ(254, KVM_CAP_GUEST_MEMFD_BLOCK_SIZES);

	EXPECT_EQ(page_size, sizes & page_size);
	EXPECT_EQ(0, sizes & (page_size - 1));
	EXPECT_EQ(sizes, page_size | huge | giant);
	if (page_size == SZ_4K) {
		EXPECT_EQ(SZ_2M, huge);
		EXPECT_TRUE(!giant || giant == SZ_1G);
		EXPECT_EQ(GUEST_MEMFD_BLOCK_SIZE_2MB, block_flag(huge));
	}

	for (type = 0; type < 32; type++) {
		struct kvm_vm *vm;

		if (!(types & BIT(type)))
			continue;

		vm = vm_create_barebones_type(type);
		EXPECT_EQ(sizes, (u32)vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_BLOCK_SIZES))
			TH_LOG("VM type %u", type);
		/* They are a number, and no flags. */
		EXPECT_EQ(0, (s64)vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
			     GUEST_MEMFD_BLOCK_SIZE_MASK) TH_LOG("VM type %u", type);
		kvm_vm_free(vm);
	}
}

/* Every number in these bits, with all flags, on every type of VM. */
TEST_F(create, numbers)
{
	const u64 size = 3 * page_size;
	unsigned long types = vm_types();
	unsigned int type, shift;
	u64 flags, block;
	int fd;

	for (type = 0; type < 32; type++) {
		struct kvm_vm *vm;

		if (!(types & BIT(type)))
			continue;

		vm = vm_create_barebones_type(type);
		for (flags = 0; flags <= (MAPPABLE | INIT_SHARED); flags++) {
			for (shift = 0; shift < 64; shift++) {
				block = shift ? 1ull << shift : page_size;
				fd = __vm_create_guest_memfd(vm, size, flags | (u64)shift <<
							     GUEST_MEMFD_BLOCK_SIZE_SHIFT);
				if (block != page_size && block != huge && block != giant) {
					EXPECT_TRUE(fd == -1 && errno == EINVAL)
						TH_LOG("VM type %u, flags %#lx, 2^%u: %d (%s)",
						       type, (unsigned long)flags, shift, fd,
						       strerror(errno));
					if (fd >= 0)
						close(fd);
					continue;
				}

				ASSERT_GE(fd, 0)
					TH_LOG("VM type %u, flags %#lx, 2^%u: %s", type,
					       (unsigned long)flags, shift, strerror(errno));
				EXPECT_EQ(block, gmem_fdinfo_val(fd, "gmem-block-size"));
				EXPECT_EQ(size, gmem_fdinfo_val(fd, "gmem-size"));
				EXPECT_EQ(flags, gmem_fdinfo_val(fd, "gmem-flags") &
						 ~GUEST_MEMFD_BLOCK_SIZE_MASK);
				EXPECT_PRESENT(fd, 0);
				EXPECT_BLOCKS(fd, 0, 0, 0);
				close(fd);
			}
			/* A good number does not excuse a bad flag. */
			EXPECT_FAILS(EINVAL, __vm_create_guest_memfd(vm, size, flags | BIT(20) |
								     block_flag(huge)));
		}
		kvm_vm_free(vm);
	}
}

TEST_F(create, sizes)
{
	const u64 blocks[] = { huge, giant };
	struct stat st;
	unsigned int b, i;
	int fd;

	for (b = 0; b < ARRAY_SIZE(blocks); b++) {
		const u64 block = blocks[b], p = page_size;
		const u64 bad[] = { 0, 1, block / 2 + 1, block + 1, block - 1, 1ull << 63 };
		const u64 good[] = {
			p, block - p, block, block + p, 3 * block + 5 * p,
			LLONG_MAX & ~(p - 1),
		};

		if (!block)
			continue;

		for (i = 0; i < ARRAY_SIZE(bad); i++)
			__EXPECT_FAILS(EINVAL,
				       __vm_create_guest_memfd(self->vm, bad[i], MAPPABLE |
							       block_flag(block)),
				       "blocks of %#lx, size %#lx", (unsigned long)block,
				       (unsigned long)bad[i]);
		for (i = 0; i < ARRAY_SIZE(good); i++) {
			fd = vm_create_guest_memfd(self->vm, good[i],
						   MAPPABLE | block_flag(block));
			EXPECT_WORKS(fstat(fd, &st));
			EXPECT_EQ(good[i], st.st_size);
			EXPECT_EQ(good[i], gmem_fdinfo_val(fd, "gmem-size"));
			EXPECT_EQ(block, gmem_fdinfo_val(fd, "gmem-block-size"));
			EXPECT_PRESENT(fd, 0);
			EXPECT_BLOCKS(fd, 0, 0, 0);
			if (good[i] < 1ull << 62)
				EXPECT_FAILS(EINVAL, fallocate(fd, GMEM_ALLOC, good[i], p));
			close(fd);
		}
	}
}

/* What is left of a file behind its last block is base pages, and may be all of it. */
TEST_F(create, remainder)
{
	const u64 blocks[] = { huge, giant };
	unsigned int b, i;
	u8 *mem;
	int fd;

	gmem_catch_sigbus();
	for (b = 0; b < ARRAY_SIZE(blocks); b++) {
		if (!blocks[b])
			continue;

		/* Behind a place that is never looked at. */
		fd = vm_create_guest_memfd(self->vm, blocks[b] + 5 * page_size, MAPPABLE |
					   INIT_SHARED | block_flag(blocks[b]));
		mem = __kvm_mmap(5 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				 blocks[b]);
		for (i = 0; i < 4; i++) {
			EXPECT_EQ(0, gmem_touch_write(mem + offset_of(i), 1));
			EXPECT_PRESENT(fd, i + 1);
		}
		EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, blocks[b], 5 * page_size));
		EXPECT_PRESENT(fd, 5);
		EXPECT_BLOCKS(fd, 0, 0, 0);
		kvm_munmap(mem, 5 * page_size);
		close(fd);

		/* A page less than a block. */
		fd = vm_create_guest_memfd(self->vm, blocks[b] - page_size, MAPPABLE |
					   INIT_SHARED | block_flag(blocks[b]));
		EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 7 * page_size, page_size));
		EXPECT_PRESENT(fd, 1);
		EXPECT_BLOCKS(fd, 0, 0, 0);
		close(fd);
	}

	/* Both in one call. */
	fd = vm_create_guest_memfd(self->vm, 2 * huge + 3 * page_size,
				   MAPPABLE | INIT_SHARED | block_flag(huge));
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 2 * huge - page_size, 3 * page_size));
	EXPECT_PRESENT(fd, per_huge + 2);
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 0, 2 * huge + 3 * page_size));
	EXPECT_PRESENT(fd, 2 * per_huge + 3);
	EXPECT_BLOCKS(fd, 2, 0, 0);
	mem = kvm_mmap(2 * huge + 3 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	expect_block_at(_metadata, mem, per_huge);
	expect_block_at(_metadata, mem + huge, per_huge);
	host_finds_zeroes(_metadata, mem, 0, 2 * per_huge + 3);
	kvm_munmap(mem, 2 * huge + 3 * page_size);
	close(fd);
}

/* A file of huge blocks, all shared, that only the host uses. */
FIXTURE(file)
{
	struct kvm_vm *vm;
	int fd;
	u64 size;
	unsigned int nr;
	u8 *mem;
	u64 free;
};

FIXTURE_SETUP(file)
{
	gmem_catch_sigbus();
	self->vm = vm_create_barebones();
	self->free = free_memory();
	self->size = NR_BLOCKS * huge;
	self->nr = NR_BLOCKS * per_huge;
	self->fd = vm_create_guest_memfd(self->vm, self->size,
					 MAPPABLE | INIT_SHARED | block_flag(huge));
	self->mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
}

FIXTURE_TEARDOWN(file)
{
	kvm_munmap(self->mem, self->size);
	close(self->fd);
	EXPECT_FREE(self->free);
	kvm_vm_free(self->vm);
}

static int allocate(int fd, unsigned int first, unsigned int nr)
{
	return fallocate(fd, GMEM_ALLOC, offset_of(first), offset_of(nr));
}

static int punch(int fd, unsigned int first, unsigned int nr)
{
	return fallocate(fd, GMEM_PUNCH, offset_of(first), offset_of(nr));
}

static int convert(int fd, unsigned int first, unsigned int nr, u64 attributes)
{
	return gmem_convert(fd, offset_of(first), offset_of(nr), attributes, NULL);
}

/* Whoever touches a page first, and which, gets all of its block. */
TEST_F_TIMEOUT(file, first_touch, LONG)
{
	const unsigned int p = per_huge;

	EXPECT_EQ(0, gmem_touch_read(self->mem + offset_of(p + 5)));
	EXPECT_PRESENT(self->fd, p);
	EXPECT_BLOCKS(self->fd, 1, 0, 0);
	EXPECT_EQ(0, gmem_touch_write(self->mem + offset_of(4 * p - 1), 1));
	EXPECT_PRESENT(self->fd, 2 * p);
	EXPECT_BLOCKS(self->fd, 2, 0, 0);
	EXPECT_WORKS(allocate(self->fd, p - 1, 1));
	EXPECT_PRESENT(self->fd, 3 * p);
	EXPECT_WORKS(allocate(self->fd, 2 * p, p));
	EXPECT_PRESENT(self->fd, 4 * p);
	EXPECT_BLOCKS(self->fd, 4, 0, 0);

	*(self->mem + offset_of(4 * p - 1)) = 0;
	host_finds_zeroes(_metadata, self->mem, 0, self->nr);
	expect_block_at(_metadata, self->mem, p);
	expect_block_at(_metadata, self->mem + huge, p);
	expect_block_at(_metadata, self->mem + 2 * huge, p);
	expect_block_at(_metadata, self->mem + 3 * huge, p);
}

/* From within a block to within another, and what is there already stays. */
TEST_F_TIMEOUT(file, allocate, LONG)
{
	const unsigned int p = per_huge;
	u64 *pfns = malloc(2 * self->nr * sizeof(*pfns));

	EXPECT_WORKS(allocate(self->fd, p / 2, 2 * p));
	EXPECT_PRESENT(self->fd, 3 * p);
	EXPECT_BLOCKS(self->fd, 3, 0, 0);
	host_fills(_metadata, self->mem, 0, 3 * p);
	gmem_pfns(self->mem, 3 * p, pfns);

	EXPECT_WORKS(allocate(self->fd, 0, 3 * p));
	EXPECT_WORKS(allocate(self->fd, 7, 1));
	EXPECT_PRESENT(self->fd, 3 * p);
	EXPECT_WORKS(allocate(self->fd, 0, self->nr));
	EXPECT_WORKS(allocate(self->fd, 0, self->nr));
	EXPECT_PRESENT(self->fd, 4 * p);
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	host_finds(_metadata, self->mem, 0, 3 * p);
	host_finds_zeroes(_metadata, self->mem, 3 * p, p);
	gmem_pfns(self->mem, 3 * p, pfns + self->nr);
	EXPECT_EQ(0, memcmp(pfns, pfns + self->nr, 3 * p * sizeof(*pfns)));
	free(pfns);
}

/* What is private is not seen, and zero afterwards; the block does not care. */
TEST_F_TIMEOUT(file, states, LONG)
{
	const unsigned int p = per_huge;
	u64 *pfns = malloc(2 * self->nr * sizeof(*pfns)), odd = 0;
	unsigned int i;

	/* A place of both, before there is memory. */
	ASSERT_WORKS(convert(self->fd, 3, p, GMEM_PRIVATE));
	EXPECT_EQ(0, gmem_touch_read(self->mem));
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(self->mem + offset_of(3)));
	EXPECT_PRESENT(self->fd, p);
	EXPECT_WORKS(allocate(self->fd, p, self->nr - p));
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(self->mem + offset_of(p)));
	ASSERT_WORKS(convert(self->fd, 0, self->nr, GMEM_SHARED));
	host_finds_zeroes(_metadata, self->mem, 0, self->nr);
	host_fills(_metadata, self->mem, 0, self->nr);
	gmem_pfns(self->mem, self->nr, pfns);

	/* There is no way to convert that moves memory, or breaks a block. */
	for (i = 0; i < self->nr; i += 2 + i % 61)
		odd += !!convert(self->fd, i, 1, GMEM_PRIVATE);
	EXPECT_EQ(0, odd);
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	ASSERT_WORKS(convert(self->fd, 5, self->nr - 10, GMEM_PRIVATE));
	ASSERT_WORKS(convert(self->fd, p + 7, 2 * p, GMEM_SHARED));
	ASSERT_WORKS(convert(self->fd, 0, self->nr, GMEM_PRIVATE));
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	ASSERT_WORKS(convert(self->fd, 0, self->nr, GMEM_SHARED));
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	EXPECT_PRESENT(self->fd, self->nr);
	host_finds(_metadata, self->mem, 0, self->nr);
	gmem_pfns(self->mem, self->nr, pfns + self->nr);
	EXPECT_EQ(0, memcmp(pfns, pfns + self->nr, self->nr * sizeof(*pfns)));
	free(pfns);
}

/* A hole breaks the block, memory that comes there does not mend it, a new block does. */
TEST_F_TIMEOUT(file, punch, LONG)
{
	const unsigned int p = per_huge;
	u64 *old = malloc(2 * p * sizeof(*old));

	host_fills(_metadata, self->mem, 0, self->nr);
	gmem_pfns(self->mem, p, old);
	EXPECT_BLOCKS(self->fd, 4, 0, 0);

	EXPECT_WORKS(punch(self->fd, 100, 20));
	EXPECT_PRESENT(self->fd, self->nr - 20);
	EXPECT_BLOCKS(self->fd, 3, 1, 0);
	host_finds(_metadata, self->mem, 0, 100);
	host_finds(_metadata, self->mem, 120, self->nr - 120);

	/* One page by a touch, three by the file: no more than that. */
	EXPECT_EQ(0, gmem_touch_read(self->mem + offset_of(110)));
	EXPECT_PRESENT(self->fd, self->nr - 19);
	EXPECT_WORKS(allocate(self->fd, 98, 5));
	EXPECT_PRESENT(self->fd, self->nr - 16);
	EXPECT_WORKS(allocate(self->fd, 0, p));
	EXPECT_PRESENT(self->fd, self->nr);
	EXPECT_BLOCKS(self->fd, 3, 1, 0);
	host_finds_zeroes(_metadata, self->mem, 100, 20);
	host_finds(_metadata, self->mem, 0, 100);
	host_finds(_metadata, self->mem, 120, self->nr - 120);
	gmem_pfns(self->mem, p, old + p);
	EXPECT_EQ(0, memcmp(old, old + p, 100 * sizeof(*old)));
	EXPECT_EQ(0, memcmp(old + 120, old + p + 120, (p - 120) * sizeof(*old)));

	/* The old memory goes, and the place is base pages only. */
	EXPECT_WORKS(punch(self->fd, 0, 100));
	EXPECT_BLOCKS(self->fd, 3, 1, 0);
	EXPECT_WORKS(punch(self->fd, 120, p - 120));
	EXPECT_PRESENT(self->fd, self->nr - p + 20);
	EXPECT_BLOCKS(self->fd, 3, 0, 1);
	EXPECT_EQ(0, gmem_touch_read(self->mem));
	EXPECT_PRESENT(self->fd, self->nr - p + 21);
	EXPECT_BLOCKS(self->fd, 3, 0, 1);

	/* All of it, in two parts: the next to come is whole. */
	EXPECT_WORKS(punch(self->fd, 105, p - 105));
	EXPECT_WORKS(punch(self->fd, 0, 105));
	EXPECT_PRESENT(self->fd, self->nr - p);
	EXPECT_BLOCKS(self->fd, 3, 0, 0);
	EXPECT_EQ(0, gmem_touch_read(self->mem + offset_of(50)));
	EXPECT_PRESENT(self->fd, self->nr);
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	host_finds_zeroes(_metadata, self->mem, 0, p);
	expect_block_at(_metadata, self->mem, p);
	host_finds(_metadata, self->mem, p, self->nr - p);

	/* From within a block to within another. */
	EXPECT_WORKS(punch(self->fd, p - 1, 2 * p + 2));
	EXPECT_PRESENT(self->fd, 2 * p - 2);
	EXPECT_BLOCKS(self->fd, 0, 2, 0);
	host_finds(_metadata, self->mem, 3 * p + 1, p - 1);
	host_fills(_metadata, self->mem, 0, self->nr);
	EXPECT_BLOCKS(self->fd, 2, 2, 0);
	host_finds(_metadata, self->mem, 0, self->nr);
	EXPECT_WORKS(punch(self->fd, 0, self->nr));
	EXPECT_PRESENT(self->fd, 0);
	EXPECT_BLOCKS(self->fd, 0, 0, 0);
	host_finds_zeroes(_metadata, self->mem, 0, self->nr);
	EXPECT_BLOCKS(self->fd, 4, 0, 0);
	free(old);
}

/* A page that somebody holds is in nobody's way but its own. */
TEST_F_TIMEOUT(file, held_page, LONG)
{
	const unsigned int p = per_huge, held = p + 77;
	unsigned int uring;
	u64 error_offset;

	for (uring = 0; uring < 2; uring++) {
		struct holder h = { };
		u64 *word = word_at(self->mem, held);

		if (!holder_init(&h, uring))
			SKIP(return, "no io_uring");

		host_fills(_metadata, self->mem, 0, self->nr);
		EXPECT_BLOCKS(self->fd, 4, 0, 0);
		hold(_metadata, &h, word, sizeof(*word));

		EXPECT_WORKS(convert(self->fd, p, held - p, GMEM_PRIVATE));
		EXPECT_WORKS(convert(self->fd, held + 1, 2 * p - held - 1, GMEM_PRIVATE));
		EXPECT_FAILS(EAGAIN, gmem_convert(self->fd, offset_of(held), page_size,
						  GMEM_PRIVATE, &error_offset));
		EXPECT_EQ(offset_of(held), error_offset);
		EXPECT_FAILS(EAGAIN, gmem_convert(self->fd, 0, self->size, GMEM_PRIVATE,
						  &error_offset));
		EXPECT_EQ(offset_of(held), error_offset);
		EXPECT_EQ(p - 1, gmem_fdinfo_val(self->fd, "gmem-private"));
		EXPECT_BLOCKS(self->fd, 4, 0, 0);
		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(word_at(self->mem, held - 1)));
		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(word_at(self->mem, held + 1)));
		EXPECT_EQ(TOKEN + held, READ_ONCE(*word));

		/* The holder has the page for itself when the block is gone. */
		EXPECT_WORKS(punch(self->fd, p, p));
		EXPECT_BLOCKS(self->fd, 3, 0, 0);
		EXPECT_WORKS(convert(self->fd, 0, self->nr, GMEM_PRIVATE));
		EXPECT_WORKS(convert(self->fd, 0, self->nr, GMEM_SHARED));
		host_finds_zeroes(_metadata, self->mem, p, p);
		EXPECT_BLOCKS(self->fd, 4, 0, 0);
		expect_block_at(_metadata, self->mem + huge, p);
		EXPECT_EQ(TOKEN + held, let_go(_metadata, &h, word, sizeof(*word)));
		host_finds(_metadata, self->mem, 0, p);

		close(h.pipe[0]);
		close(h.pipe[1]);
		if (uring)
			io_uring_queue_exit(&h.ring);
	}
}

/* Over and over, in all the ways that there are: none of it is lost. */
TEST_F_TIMEOUT(file, all_memory_comes_back, LONG)
{
	const unsigned int p = per_huge;
	unsigned int round, i;
	u64 before = 0;
	u8 *mem;
	int fd;

	for (round = 0; round < 22; round++) {
		/* Caches have been filled by the first two. */
		if (round == 2)
			before = free_memory();

		fd = vm_create_guest_memfd(self->vm, self->size, MAPPABLE | INIT_SHARED |
					   block_flag(huge));
		mem = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
		ASSERT_WORKS(allocate(fd, 0, self->nr));
		for (i = 0; i < self->nr; i += 64)
			WRITE_ONCE(*word_at(mem, i), 1);
		ASSERT_WORKS(convert(fd, 5, 2 * p, GMEM_PRIVATE));
		ASSERT_WORKS(punch(fd, 10, 5));
		ASSERT_WORKS(punch(fd, p, p));
		ASSERT_WORKS(punch(fd, 2 * p + 100, p));
		ASSERT_WORKS(allocate(fd, 0, self->nr));
		if (round % 2)
			ASSERT_WORKS(punch(fd, 0, self->nr));
		EXPECT_BLOCKS(fd, round % 2 ? 0 : 1, round % 2 ? 0 : 3, 0);
		kvm_munmap(mem, self->size);
		close(fd);
	}
	EXPECT_FREE(before);
}

/*
 * Two allocate the same memory at once: what one of them has allocated too late goes back.
 */
#define BOTH_ROUNDS	24

struct both {
	int fd, cpu, err;
	unsigned int nr;
	pthread_barrier_t barrier;
};

static void *allocate_too(void *arg)
{
	struct both *b = arg;
	int round;

	on_cpu(b->cpu, 0);
	for (round = 0; round < BOTH_ROUNDS; round++) {
		pthread_barrier_wait(&b->barrier);
		if (allocate(b->fd, 0, b->nr))
			b->err = errno;
		pthread_barrier_wait(&b->barrier);
	}
	return NULL;
}

static void both_allocate(struct __test_metadata *_metadata, int fd, unsigned int nr)
{
	struct both b = { .fd = fd, .nr = nr };
	pthread_t other;
	u64 before = 0;
	int cpus[2], round;

	if (!gmem_two_cpus(cpus))
		SKIP(return, "needs two CPUs");
	b.cpu = cpus[1];
	ASSERT_EQ(0, pthread_barrier_init(&b.barrier, NULL, 2));
	kvm_pthread_create(&other, NULL, allocate_too, &b);
	on_cpu(cpus[0], 0);

	for (round = 0; round < BOTH_ROUNDS; round++) {
		/* Caches have been filled by the first two. */
		if (round == 2)
			before = free_memory();
		pthread_barrier_wait(&b.barrier);
		EXPECT_WORKS(allocate(fd, 0, nr));
		pthread_barrier_wait(&b.barrier);
		EXPECT_EQ(0, b.err);
		EXPECT_PRESENT(fd, nr);
		EXPECT_WORKS(punch(fd, 0, nr));
	}
	ASSERT_EQ(0, pthread_join(other, NULL));
	EXPECT_FREE(before);
}

TEST_F_TIMEOUT(file, both_allocate_pages, LONG)
{
	int fd = vm_create_guest_memfd(self->vm, self->size, MAPPABLE | INIT_SHARED);

	both_allocate(_metadata, fd, self->nr);
	close(fd);
}

TEST_F_TIMEOUT(file, both_allocate_blocks, LONG)
{
	both_allocate(_metadata, self->fd, self->nr);
}

/*
 * A block that finds a page in its way has entered the file in part, and leaves again.
 * Who maps the neighbours of another page can have met one of its pages just before, and
 * must not take it for what it has become meanwhile: free, or a page of something else.
 *
 *   filler   gives a place up and has it filled with a block, then another place
 *   mapper   allocates pages at the end of the place, and if these are in the way of the
 *            block, maps what is around them, again and again
 *   pauser   stops the mapper when it has seen that the place is in use, and until it is
 *            not: only then can there be a page in the way
 *   holder   stops the filler when its pages can be seen, until the mapper is interrupted
 *
 * A timer interrupts the mapper: so many wait for it that the memory is in the other place
 * when the fault goes on.  The pauser is on the CPU of the mapper, the holder on that of
 * the filler.  All are processes.  They share no page tables, as each would wait for the
 * other's CPU then; and whoever waits for a page that stays locked cannot be killed.
 */
#define BACK_MS		20000
#define BACK_LIMIT_MS	150000
#define BACK_WAITERS	250	/* files that wait for as many others */

struct back {
	int fd, timer, seen_fd;
	u8 *mem;
	int cpus[2];			/* of the filler and of the mapper */
	unsigned int alone;		/* first page that does not come from a block */
	unsigned int first;		/* that is mapped by a fault on the last */
	unsigned int in_the_way;	/* this page and the last */
	u64 ns;				/* to allocate these */
	/* The round that somebody has come to, or is ready for. */
	u64 wanted, busy, paused, punching, punched, held, filled, done;
	u64 steps;			/* of the mapper */
	bool ready, over;
	u64 back;			/* blocks that were seen, and taken back */
	u64 foreign, not_zero;		/* pages that were mapped */
	u64 page, word;			/* the last of them, and its content */
	int line, err;			/* of what failed */
};

/* Nobody but the parent can report. */
#define BACK_CHECK(b, cond)						\
do {									\
	struct back *__b = (b);						\
									\
	if (!(cond)) {							\
		__b->err = errno;					\
		__b->line = __LINE__;					\
		_exit(1);						\
	}								\
} while (0)

/* A timer that takes long to expire, with interrupts off, on the CPU that sets it. */
static void back_timer(struct back *b)
{
	struct epoll_event event = { .events = EPOLLIN };
	int fds[BACK_WAITERS], i, j, epoll;

	b->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	BACK_CHECK(b, b->timer >= 0);
	for (i = 0; i < BACK_WAITERS; i++) {
		fds[i] = dup(b->timer);
		BACK_CHECK(b, fds[i] >= 0);
	}
	for (i = 0; i < BACK_WAITERS; i++) {
		epoll = epoll_create1(0);
		BACK_CHECK(b, epoll >= 0);
		for (j = 0; j < BACK_WAITERS; j++)
			BACK_CHECK(b, !epoll_ctl(epoll, EPOLL_CTL_ADD, fds[j], &event));
	}
}

static void back_set_timer(struct back *b, u64 ns)
{
	const struct itimerspec timer = { .it_value.tv_nsec = 1 + ns };

	BACK_CHECK(b, !timerfd_settime(b->timer, 0, &timer, NULL));
}

static void back_unmap(struct back *b, unsigned int first)
{
	BACK_CHECK(b, !madvise(word_at(b->mem, first), offset_of(per_huge - first),
			       MADV_DONTNEED));
}

/* Which pages have content, of those that a fault maps. */
static void back_look(struct back *b, unsigned int nr, u8 *there)
{
	BACK_CHECK(b, !mincore(word_at(b->mem, b->first), offset_of(nr), there));
}

/* What is mapped now, with all quiet, is of this place, where nobody has written. */
static void back_judge(struct back *b, bool seen)
{
	const unsigned int nr = b->in_the_way - b->first;
	u64 pfns[nr], words[nr];
	u8 there[nr];
	unsigned int i;

	gmem_pfns(word_at(b->mem, b->first), nr, pfns);
	for (i = 0; i < nr; i++)
		words[i] = pfns[i] ? READ_ONCE(*word_at(b->mem, b->first + i)) : 0;
	back_unmap(b, b->first);
	back_look(b, nr, there);

	for (i = 0; i < nr; i++) {
		b->foreign += pfns[i] && !(there[i] & 1);
		b->not_zero += !!words[i];
		if (words[i] || (pfns[i] && !(there[i] & 1))) {
			b->page = b->first + i;
			b->word = words[i];
		}
	}
	b->back += seen && !(there[0] & 1);
}

static void back_map_once(struct back *b, struct kvm_random_state *rng)
{
	const unsigned int last = per_huge - 1;
	bool seen = false;
	u8 there = 0;

	do {
		BACK_CHECK(b, !punch(b->fd, b->in_the_way, per_huge - b->in_the_way));
		WRITE_ONCE(b->busy, b->wanted);
		BACK_CHECK(b, !allocate(b->fd, b->alone, per_huge - b->alone));
	} while (READ_ONCE(b->punched) != b->wanted);

	/* If the block is there before, nothing is in its way. */
	BACK_CHECK(b, !mincore(b->mem, page_size, &there));
	if (there & 1)
		goto out;

	back_unmap(b, b->first);
	/* With a neighbour on one side, a fault maps the most. */
	READ_ONCE(*word_at(b->mem, last - 1));
	READ_ONCE(*word_at(b->mem, last));

	while (!(there & 1) && READ_ONCE(b->filled) != b->wanted)
		BACK_CHECK(b, !mincore(b->mem, page_size, &there));
	if (!(there & 1))
		goto out;

	BACK_CHECK(b, !eventfd_write(b->seen_fd, 1));
	while (READ_ONCE(b->held) != b->wanted)
		;
	back_look(b, 1, &there);
	seen = there & 1;
	if (seen)
		back_set_timer(b, kvm_random_u32_in_range(rng, 0, b->ns));
	while (READ_ONCE(b->filled) != b->wanted) {
		back_unmap(b, last);
		READ_ONCE(*word_at(b->mem, last));
		WRITE_ONCE(b->steps, b->steps + 1);
	}
out:
	while (READ_ONCE(b->filled) != b->wanted)
		;
	back_judge(b, seen);
}

static void back_map(struct back *b)
{
	struct kvm_random_state rng = new_kvm_random_state(2);

	on_cpu(b->cpus[1], 0);
	back_timer(b);
	WRITE_ONCE(b->ready, true);
	while (!READ_ONCE(b->over)) {
		if (READ_ONCE(b->wanted) == b->done)
			continue;
		back_map_once(b, &rng);
		WRITE_ONCE(b->done, b->done + 1);
	}
}

static void back_pause(struct back *b)
{
	struct kvm_random_state rng = new_kvm_random_state(3);
	struct timespec t = { };
	u64 end;

	on_cpu(b->cpus[1], 1);
	while (!READ_ONCE(b->over)) {
		t.tv_nsec = kvm_random_u32_in_range(&rng, 0, 2 * b->ns);
		nanosleep(&t, NULL);
		if (READ_ONCE(b->busy) == b->paused)
			continue;

		/* Maybe while it holds the lock that the filler wants: have it wait for that. */
		WRITE_ONCE(b->paused, b->busy);
		while (READ_ONCE(b->punching) != b->busy)
			;
		for (end = now_ns() + 100000; now_ns() < end;)
			;
		/* Let it release the lock, and wait in turn. */
		t.tv_nsec = 2 * b->ns;
		nanosleep(&t, NULL);
		/* The filler comes first, but it is not worth to wait for long. */
		end = now_ns() + 3000000;
		while (READ_ONCE(b->punched) != b->busy && now_ns() < end)
			;
		for (end = now_ns() + 2 * b->ns; now_ns() < end;)
			;
	}
}

static void back_hold(struct back *b)
{
	u64 end, steps, since;
	eventfd_t val;

	on_cpu(b->cpus[0], 2);
	for (;;) {
		BACK_CHECK(b, !eventfd_read(b->seen_fd, &val));
		if (READ_ONCE(b->over))
			break;

		WRITE_ONCE(b->held, b->wanted);
		since = now_ns();
		end = since + 20000000;
		steps = READ_ONCE(b->steps);
		while (now_ns() < min(end, since + 500000)) {
			if (READ_ONCE(b->steps) != steps) {
				steps = READ_ONCE(b->steps);
				since = now_ns();
			}
		}
	}
}

static void back_fill_once(struct back *b)
{
	const unsigned int p = per_huge;
	unsigned int i;

	BACK_CHECK(b, !punch(b->fd, p, p));
	BACK_CHECK(b, !punch(b->fd, b->alone, p - b->alone));
	BACK_CHECK(b, !allocate(b->fd, b->alone, b->in_the_way - b->alone));

	/* Those who come first do not have the lock snatched away. */
	on_cpu(b->cpus[0], 1);
	WRITE_ONCE(b->wanted, b->wanted + 1);
	while (READ_ONCE(b->paused) != b->wanted)
		;
	WRITE_ONCE(b->punching, b->wanted);
	BACK_CHECK(b, !punch(b->fd, 0, p));
	WRITE_ONCE(b->punched, b->wanted);
	READ_ONCE(*word_at(b->mem, 0));
	/* The other place gets the memory that has just been freed. */
	for (i = b->first; i < p; i++)
		WRITE_ONCE(*word_at(b->mem, p + i), TOKEN + p + i);

	WRITE_ONCE(b->filled, b->wanted);
	on_cpu(b->cpus[0], 0);
	while (READ_ONCE(b->done) != b->wanted)
		;
}

/* At the end, wait for each page: none may be locked. */
static void back_fill(struct back *b)
{
	const unsigned int nr = NR_BLOCKS * per_huge;
	const u64 end = now_ms() + BACK_MS;
	unsigned int i;
	u64 ns;

	on_cpu(b->cpus[0], 0);
	READ_ONCE(*word_at(b->mem, 0));
	BACK_CHECK(b, !punch(b->fd, b->alone, per_huge - b->alone));
	BACK_CHECK(b, !allocate(b->fd, b->alone, b->in_the_way - b->alone));
	/* The least of some: more is somebody else's time. */
	b->ns = 1000000;
	for (i = 0; i < 20; i++) {
		BACK_CHECK(b, !punch(b->fd, b->in_the_way, per_huge - b->in_the_way));
		ns = now_ns();
		BACK_CHECK(b, !allocate(b->fd, b->alone, per_huge - b->alone));
		b->ns = min(b->ns, now_ns() - ns);
	}

	while (!READ_ONCE(b->ready))
		;
	while ((now_ms() < end || !b->back) && !b->foreign)
		back_fill_once(b);
	WRITE_ONCE(b->over, true);
	BACK_CHECK(b, !eventfd_write(b->seen_fd, 1));

	host_walks(b->mem, 0, nr, HOST_LOOK);
	BACK_CHECK(b, !convert(b->fd, 0, nr, GMEM_PRIVATE));
	BACK_CHECK(b, !convert(b->fd, 0, nr, GMEM_SHARED));
	BACK_CHECK(b, !punch(b->fd, 0, nr));
	host_walks(b->mem, 0, nr, HOST_FIND_ZEROES);
	BACK_CHECK(b, !host_bad);
}

TEST_F_TIMEOUT(file, taken_back, LONG)
{
	const unsigned int around = max(SZ_256K / page_size, 4);
	void (* const roles[])(struct back *b) = {
		back_fill, back_map, back_pause, back_hold,
	};
	pid_t pids[ARRAY_SIZE(roles)];
	unsigned int i, alive;
	int cpus[2];
	struct back *b;
	int null;
	u64 end;

	if (!gmem_two_cpus(cpus))
		SKIP(return, "needs two CPUs");

	b = kvm_mmap(sizeof(*b), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	memcpy(b->cpus, cpus, sizeof(cpus));
	b->fd = self->fd;
	b->seen_fd = eventfd(0, 0);
	ASSERT_LE(0, b->seen_fd);
	b->mem = self->mem;
	b->alone = per_huge - 4 * around;
	b->first = per_huge - around;
	b->in_the_way = per_huge - 2;

	for (i = 0; i < ARRAY_SIZE(roles); i++) {
		pids[i] = fork();
		ASSERT_LE(0, pids[i]);
		if (pids[i])
			continue;
		/* Keep nobody waiting for what it has to say. */
		null = open("/dev/null", O_RDWR);
		dup2(null, 1);
		dup2(null, 2);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		roles[i](b);
		_exit(0);
	}

	end = now_ms() + BACK_LIMIT_MS;
	do {
		usleep(10000);
		alive = 0;
		for (i = 0; i < ARRAY_SIZE(roles); i++) {
			if (!pids[i])
				continue;
			if (READ_ONCE(b->line) || now_ms() > end)
				kill(pids[i], SIGKILL);
			if (waitpid(pids[i], NULL, WNOHANG) == pids[i])
				pids[i] = 0;
			else
				alive++;
		}
	} while (alive && now_ms() < end + 10000);

	TH_LOG("%lu rounds of %lu us, %lu blocks seen and taken back", b->done,
	       b->ns / 1000, b->back);
	EXPECT_EQ(0, alive) TH_LOG("a page stays locked");
	EXPECT_EQ(0, b->line) TH_LOG("line %d: %s", b->line, strerror(b->err));
	EXPECT_TRUE(b->over);
	EXPECT_EQ(0, b->foreign);
	EXPECT_EQ(0, b->not_zero) TH_LOG("page %lu: %#lx", b->page, b->word);
	EXPECT_LT(0, b->back);
	close(b->seen_fd);
	kvm_munmap(b, sizeof(*b));
}

#define UNLOCK_MS	6000
#define UNLOCK_PAGES	16
#define UNLOCK_USED	256		/* so many that those are among them */

static void touch_for_ever(u64 *mem, int cpu)
{
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	on_cpu(cpu, 0);
	for (i = 0;; i++)
		WRITE_ONCE(*word_at(mem, i % UNLOCK_PAGES), i);
}

static unsigned int nr_locked(const u64 *pfns, unsigned int nr)
{
	const int fd = open("/proc/kpageflags", O_RDONLY);
	unsigned int i, locked = 0;
	u64 flags;

	TEST_ASSERT(fd >= 0, "kpageflags: errno %d", errno);
	for (i = 0; i < nr; i++) {
		TEST_ASSERT(pread(fd, &flags, sizeof(flags), pfns[i] * sizeof(flags)) ==
			    sizeof(flags), "kpageflags: errno %d", errno);
		locked += !!(flags & BIT_ULL(KPF_LOCKED));
	}
	close(fd);
	return locked;
}

/*
 * Who has mapped a page unlocks it next, and has no reference to it anymore if a hole was
 * punched in between.  Until it is unlocked, the page must not be free, or part of
 * something else, which would be locked by that from then on.  The child is stopped at any
 * point, and what it has touched is punched and used elsewhere before it goes on.
 */
TEST_F_TIMEOUT(file, punched_before_unlocked, LONG)
{
	struct kvm_random_state rng = new_kvm_random_state(4);
	const unsigned int nr = min(UNLOCK_USED, per_huge / 2), p = per_huge;
	struct timespec t = { };
	unsigned int i, locked;
	u64 end, pfns[nr];
	int cpus[2];
	pid_t pid;

	if (!gmem_two_cpus(cpus))
		SKIP(return, "needs two CPUs");

	ASSERT_EQ(0, allocate(self->fd, 0, 2 * p));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		touch_for_ever(self->mem, cpus[1]);

	on_cpu(cpus[1], 1);
	end = now_ms() + UNLOCK_MS;
	do {
		t.tv_nsec = kvm_random_u32_in_range(&rng, 1, 200000);
		nanosleep(&t, NULL);
		ASSERT_EQ(0, punch(self->fd, p, nr));
		ASSERT_EQ(0, punch(self->fd, 0, UNLOCK_PAGES));
		ASSERT_EQ(0, allocate(self->fd, p, nr));
		for (i = 0; i < nr; i++)
			WRITE_ONCE(*word_at(self->mem, p + i), TOKEN + i);
		gmem_pfns(word_at(self->mem, p), nr, pfns);

		/* The child goes on. */
		t.tv_nsec = 100000;
		nanosleep(&t, NULL);
		locked = nr_locked(pfns, nr);
	} while (!locked && now_ms() < end);
	EXPECT_EQ(0, locked);

	on_cpu(cpus[0], 0);
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
}

/*
 * How often the guest faults in its window, by KVM's tracepoint for it.  What KVM does
 * again before the guest goes on is one fault.
 */
#define TRACEFS		"/sys/kernel/tracing/"
#ifdef __x86_64__
#define FAULT_EVENT	"kvm_page_fault"
#define FAULT_FIELD	"fault_address"		/* with shadow paging, the guest's */
#else
#define FAULT_EVENT	"kvm_guest_fault"
#define FAULT_FIELD	"ipa"
#endif

/* All that there were since the beginning, in the buffers of all CPUs. */
static long faults_total(void)
{
	char path[80], line[80];
	long sum = 0, nr;
	int cpu;
	FILE *f;

	for (cpu = 0; ; cpu++) {
		snprintf(path, sizeof(path), TRACEFS "per_cpu/cpu%d/stats", cpu);
		f = fopen(path, "r");
		if (!f)
			break;
		while (fgets(line, sizeof(line), f))
			if (sscanf(line, "entries: %ld", &nr) == 1 ||
			    sscanf(line, "overrun: %ld", &nr) == 1)
				sum += nr;
		fclose(f);
	}
	TEST_ASSERT(cpu, "%s: errno %d", path, errno);
	return sum;
}

static bool faults_init(void)
{
	char filter[128];

	if (access(TRACEFS "trace", F_OK))
		mount("trace", TRACEFS, "tracefs", 0, NULL);
	snprintf(filter, sizeof(filter), FAULT_FIELD " >= %#llx && " FAULT_FIELD " < %#llx",
		 (unsigned long long)GPA, (unsigned long long)(GPA + GPA_SIZE));
	return !gmem_write_file(TRACEFS "events/kvm/" FAULT_EVENT "/filter", filter) &&
	       !gmem_write_file(TRACEFS "events/kvm/" FAULT_EVENT "/enable", "1");
}

static void faults_exit(void)
{
	gmem_write_file(TRACEFS "events/kvm/" FAULT_EVENT "/enable", "0");
	gmem_write_file(TRACEFS "events/kvm/" FAULT_EVENT "/filter", "0");
}

#define EXPECT_FAULTS(want, call)					\
do {									\
	long __before = faults_total();					\
									\
	call;								\
	EXPECT_EQ((long)(want), faults_total() - __before)		\
		TH_LOG("faults of %s", #call);				\
} while (0)

/*
 * The guest has all of the window mapped with as few entries as there can be, which
 * are dirty from the beginning: with shadow paging, the first write would be a fault.
 */
static void map_window(struct kvm_vm *vm)
{
#ifdef __x86_64__
	struct kvm_mmu *mmu = &vm->mmu;
	u64 gpa, *entry;
	int level;

	TEST_ASSERT(kvm_cpu_has(X86_FEATURE_GBPAGES), "no 1 GiB pages for guests");
	virt_map_level(vm, GPA, GPA, GPA_SIZE, PG_LEVEL_1G);
	for (gpa = GPA; gpa < GPA + GPA_SIZE; gpa += SZ_1G) {
		entry = &mmu->pgd;
		for (level = mmu->pgtable_levels; level >= PG_LEVEL_1G; level--)
			entry = (u64 *)addr_gpa2hva(vm, *entry & PHYSICAL_PAGE_MASK) +
				(gpa >> PG_LEVEL_SHIFT(level)) % 512;
		*entry |= PTE_ACCESSED_MASK(mmu) | PTE_DIRTY_MASK(mmu);
	}
#else
	const u64 size = vm->page_size * (vm->page_size / 8);
	const u64 step = vm->page_size == SZ_4K ? SZ_1G : size;
	u64 gpa, leaf;

	/* A block differs from a page in that bit, and in the level at which it is. */
	for (gpa = GPA; gpa < GPA + GPA_SIZE; gpa += step) {
		virt_pg_map(vm, gpa, gpa);
		leaf = *virt_get_pte_hva(vm, gpa);
		*virt_get_pte_hva_at_level(vm, gpa, step == SZ_1G ? 1 : 2) =
			leaf & ~PTE_TYPE_PAGE;
	}
#endif
}

/* Mappings of the guest by size, as KVM counts them (x86). */
struct levels {
	u64 giant, huge, small;
};

/* A VM, and a file that is in one memslot of it. */
struct guest {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 flags, block, size;
	unsigned int nr;	/* pages */
	int fd;
	u8 *mem;		/* the file, as the host has it */
	void *hva;		/* what the memslot was told */
	bool protected;		/* private memory is another thing than shared memory */
	bool rmp;		/* and the emulated RMP knows whose it is */
	bool tdp;		/* page tables by the TDP MMU (x86) */
	bool eager;		/* which splits what is huge when logging begins */
	struct levels base;	/* mapped besides */
	u64 violations;
};

static struct levels levels_now(struct guest *g)
{
	struct levels now = { };

#ifdef __x86_64__
	now.giant = vm_get_stat(g->vm, pages_1g) - g->base.giant;
	now.huge = vm_get_stat(g->vm, pages_2m) - g->base.huge;
	now.small = vm_get_stat(g->vm, pages_4k) - g->base.small;
#endif
	return now;
}

static void expect_levels(struct __test_metadata *_metadata, struct guest *g, int line,
			  u64 giant_want, u64 huge_want, u64 small_want)
{
#ifdef __x86_64__
	struct levels now = levels_now(g);

	EXPECT_TRUE(now.giant == giant_want && now.huge == huge_want)
		TH_LOG("line %d: mapped %lu, %lu and %lu, not %lu, %lu and %lu", line,
		       now.giant, now.huge, now.small, giant_want, huge_want, small_want);
	/* With shadow paging, page tables that are replaced are freed later. */
	if (g->tdp)
		EXPECT_EQ(small_want, now.small)
			TH_LOG("line %d: mapped %lu and %lu", line, now.giant, now.huge);
#endif
}

/* Nothing to look at on arm64: there it is the number of faults alone that tells. */
#define EXPECT_LEVELS(g, giant, huge, small)				\
	expect_levels(_metadata, g, __LINE__, giant, huge, small)

static u64 gpa_of(unsigned int at)
{
	return GPA + offset_of(at);
}

/* Pages at @at in the window, every @step-th: @val and on. */
static void guest_checks(struct __test_metadata *_metadata, struct guest *g, unsigned int at,
			 unsigned int nr, unsigned int step, u64 val, u64 inc)
{
	u64 bad;

	ASSERT_EQ(0, gmem_guest_check(g->vcpu, gpa_of(at), nr, offset_of(step), val, inc, &bad))
		TH_LOG("pages %u, %u", at, nr);
	EXPECT_EQ(0, bad) TH_LOG("of pages %u, %u", at, nr);
}

/* The guest has page @first of the file, and those that follow, at @at. */
static void guest_fills_at(struct __test_metadata *_metadata, struct guest *g, unsigned int at,
			   unsigned int first, unsigned int nr)
{
	ASSERT_EQ(0, gmem_guest_fill(g->vcpu, gpa_of(at), nr, page_size, TOKEN + first))
		TH_LOG("pages %u, %u", at, nr);
}

static void guest_finds_at(struct __test_metadata *_metadata, struct guest *g, unsigned int at,
			   unsigned int first, unsigned int nr)
{
	guest_checks(_metadata, g, at, nr, 1, TOKEN + first, 1);
}

/* The file is at the start of the window. */
static void guest_fills(struct __test_metadata *_metadata, struct guest *g, unsigned int first,
			unsigned int nr)
{
	guest_fills_at(_metadata, g, first, first, nr);
}

static void guest_finds(struct __test_metadata *_metadata, struct guest *g, unsigned int first,
			unsigned int nr)
{
	guest_finds_at(_metadata, g, first, first, nr);
}

static void guest_finds_zeroes(struct __test_metadata *_metadata, struct guest *g,
			       unsigned int at, unsigned int nr)
{
	guest_checks(_metadata, g, at, nr, 1, 0, 0);
}

#define GUEST_FILLS(...)	guest_fills(_metadata, g, __VA_ARGS__)
#define GUEST_FINDS(...)	guest_finds(_metadata, g, __VA_ARGS__)
#define GUEST_FILLS_AT(...)	guest_fills_at(_metadata, g, __VA_ARGS__)
#define GUEST_FINDS_AT(...)	guest_finds_at(_metadata, g, __VA_ARGS__)
#define GUEST_FINDS_ZEROES(...)	guest_finds_zeroes(_metadata, g, __VA_ARGS__)

/* Have the guest touch all that it uses itself, so that it counts no more. */
static void guest_settle(struct __test_metadata *_metadata, struct guest *g)
{
	static u64 scratch;
	u64 bad;

	ASSERT_EQ(0, gmem_guest_fill(g->vcpu, (u64)&scratch, 1, 8, 7));
	ASSERT_EQ(0, gmem_guest_check(g->vcpu, (u64)&scratch, 1, 8, 7, 1, &bad));
	EXPECT_EQ(0, bad);
	EXPECT_GUEST_WRITES(g->vcpu, (u64)&scratch, 9);
	EXPECT_GUEST_READS(9, g->vcpu, (u64)&scratch);
	g->base = (struct levels) { };
	g->base = levels_now(g);
}

/* @nr pages of the file, from @first on, at @at. */
static int bind(struct guest *g, unsigned int slot, u32 flags, unsigned int at,
		unsigned int first, unsigned int nr)
{
	return __vm_set_user_memory_region2(g->vm, slot, KVM_MEM_GUEST_MEMFD | flags, gpa_of(at),
					    offset_of(nr), g->hva, g->fd, offset_of(first));
}

static int bind_all(struct guest *g, u32 flags)
{
	return bind(g, SLOT, flags, 0, 0, g->nr);
}

static int unbind(struct guest *g, unsigned int slot)
{
	return __vm_set_user_memory_region2(g->vm, slot, 0, 0, 0, NULL, 0, 0);
}

static void guest_open(struct guest *g)
{
	g->nr = g->size / page_size;
	g->fd = vm_create_guest_memfd(g->vm, g->size, g->flags | block_flag(g->block));
	if (g->flags & MAPPABLE)
		g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
}

static void guest_close(struct guest *g)
{
	if (g->mem)
		kvm_munmap(g->mem, g->size);
	g->mem = NULL;
	close(g->fd);
}

/* A guest whose file is in no memslot yet. */
static void guest_create(struct guest *g, unsigned int type, u64 flags, u64 block, u64 size)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };

	g->violations = gmem_rmp_counter("violations");
	g->vm = __vm_create_shape_with_one_vcpu(shape, &g->vcpu, 512, gmem_guest_code);
	gmem_catch_sigbus();
	map_window(g->vm);

	g->protected = type != VM_TYPE_DEFAULT;
	g->rmp = g->protected && gmem_has_rmp();
#ifdef __x86_64__
	g->tdp = get_kvm_param_bool("tdp_mmu");
	g->eager = g->tdp && get_kvm_param_bool("eager_page_split");
#endif
	g->flags = flags;
	g->block = block;
	g->size = size;
	guest_open(g);
}

static void guest_destroy(struct __test_metadata *_metadata, struct guest *g)
{
	EXPECT_EQ(0, gmem_rmp_verify());
	EXPECT_EQ(g->violations, gmem_rmp_counter("violations"));
	guest_close(g);
	kvm_vm_free(g->vm);
	EXPECT_EQ(0, gmem_rmp_verify());
	EXPECT_EQ(g->violations, gmem_rmp_counter("violations"));
}

static bool starts_private(struct guest *g)
{
	return !(g->flags & INIT_SHARED);
}

/* All of the file as it was created, or shared. */
static void reset_states(struct __test_metadata *_metadata, struct guest *g)
{
	ASSERT_WORKS(convert(g->fd, 0, g->nr, starts_private(g) ? GMEM_PRIVATE : GMEM_SHARED));
}

static void all_shared(struct __test_metadata *_metadata, struct guest *g)
{
	ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_SHARED));
}

/* Huge blocks, in every kind of VM and as every kind of memory. */
FIXTURE(guest)
{
	struct guest g;
};

FIXTURE_VARIANT(guest)
{
	unsigned int type;
	u64 flags;
};

FIXTURE_VARIANT_ADD(guest, ordinary_shared)
{
	.type = VM_TYPE_DEFAULT,
	.flags = MAPPABLE | INIT_SHARED,
};

FIXTURE_VARIANT_ADD(guest, ordinary_private)
{
	.type = VM_TYPE_DEFAULT,
	.flags = MAPPABLE,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(guest, protected_shared)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE | INIT_SHARED,
};

FIXTURE_VARIANT_ADD(guest, protected_private)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE,
};
#endif

FIXTURE_SETUP(guest)
{
	if (!(vm_types() & BIT(variant->type)))
		SKIP(return, WHY_NO_TYPE);
	if (!faults_init())
		SKIP(return, WHY_NO_TRACE);
	guest_create(&self->g, variant->type, variant->flags, huge, NR_BLOCKS * huge);
	ASSERT_WORKS(bind_all(&self->g, 0));
	guest_settle(_metadata, &self->g);
}

FIXTURE_TEARDOWN(guest)
{
	faults_exit();
	guest_destroy(_metadata, &self->g);
}

/* A block is one fault, and one mapping; and the host has the same memory. */
TEST_F_TIMEOUT(guest, every_page_once, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;
	unsigned int i;

	EXPECT_LEVELS(g, 0, 0, 0);
	EXPECT_FAULTS(1, GUEST_FILLS(p + 9, 1));
	EXPECT_LEVELS(g, 0, 1, 0);
	EXPECT_PRESENT(g->fd, p);
	EXPECT_FAULTS(0, GUEST_FINDS_ZEROES(p, 9));
	EXPECT_FAULTS(0, GUEST_FINDS_ZEROES(p + 10, p - 10));
	EXPECT_FAULTS(3, GUEST_FILLS(0, g->nr));
	EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	if (!starts_private(g))
		host_finds(_metadata, g->mem, 0, g->nr);
	else
		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(g->mem + offset_of(p)));
	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
	for (i = 0; i < NR_BLOCKS; i++)
		expect_block_at(_metadata, g->mem + i * huge, p);

	/* What the file allocates is the same. */
	ASSERT_WORKS(punch(g->fd, 0, g->nr));
	EXPECT_LEVELS(g, 0, 0, 0);
	reset_states(_metadata, g);
	ASSERT_WORKS(allocate(g->fd, 0, g->nr));
	EXPECT_LEVELS(g, 0, 0, 0);
	EXPECT_FAULTS(NR_BLOCKS, GUEST_FINDS_ZEROES(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	EXPECT_FAULTS(0, GUEST_FILLS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	GUEST_FINDS(0, g->nr);
}

#define BACKWARDS_GVA	(64ull * SZ_1G)

/*
 * A guest that has the pages of a block one by one, from the last to the first, gets them
 * so, whatever the host maps: with shadow paging, its page tables are the limit.
 */
TEST_F_TIMEOUT(guest, small_guest_pages, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;
	unsigned int i, bad = 0;

	for (i = 0; i < p; i++)
		virt_pg_map(g->vm, BACKWARDS_GVA + offset_of(i), gpa_of(2 * p - 1 - i));
	GUEST_FILLS(0, g->nr);
	ASSERT_EQ(0, gmem_guest_fill(g->vcpu, BACKWARDS_GVA, p, page_size, 0x1000));
	all_shared(_metadata, g);
	for (i = 0; i < p; i++)
		bad += READ_ONCE(*word_at(g->mem, 2 * p - 1 - i)) != 0x1000 + i;
	EXPECT_EQ(0, bad);
	host_finds(_metadata, g->mem, 0, p);
	host_finds(_metadata, g->mem, 2 * p, g->nr - 2 * p);
}

/* What a memslot can have for a host address. */
enum address {
	NONE,		/* 0 */
	OF_FILE,	/* the file's mapping */
	OF_FILE_OFF,	/* the same, off by a page */
	OTHER,		/* memory that has nothing to do with it */
	OTHER_OFF,
	HOLE,		/* nothing is mapped there */
	PARTS,		/* the file's, page by page, where it is there at all */
	READONLY,	/* the file's, that the host cannot write */
	NR_ADDRESSES,
};

static const char * const address_names[NR_ADDRESSES] = {
	"none", "the file", "the file, off by a page", "other memory",
	"other memory, off by a page", "a hole", "parts of the file", "the file, read-only",
};

/* Other memory has something in every so many pages. */
static unsigned int decoy_step(struct guest *g)
{
	return g->nr / 128;
}

/* Set g->hva, in a mapping of twice the size of the file. */
static u8 *make_address(struct guest *g, enum address what)
{
	const int rw = PROT_READ | PROT_WRITE;
	const size_t size = 2 * g->size;
	unsigned int i;
	u8 *mem, *decoy;

	/* A place that is aligned, so that it is not alignment that makes a difference. */
	mem = kvm_mmap(size + g->block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	decoy = (u8 *)(((u64)mem + g->block - 1) & ~(g->block - 1));
	kvm_munmap(mem, size + g->block);
	g->hva = what == NONE ? NULL : decoy;
	if (what == OTHER_OFF || what == OF_FILE_OFF)
		g->hva += page_size;

	switch (what) {
	case NONE:
	case HOLE:
		break;
	case OTHER:
	case OTHER_OFF:
		mem = mmap(decoy, size, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			   -1, 0);
		TEST_ASSERT(mem == decoy, "mmap() failed, errno %d", errno);
		for (i = 0; i < g->nr; i += decoy_step(g))
			*word_at(decoy, i) = ~0ull;
		break;
	default:
		mem = mmap(decoy, size, what == READONLY ? PROT_READ : rw,
			   MAP_SHARED | MAP_FIXED_NOREPLACE, g->fd, 0);
		TEST_ASSERT(mem == decoy, "mmap() failed, errno %d", errno);
	}

	if (what == PARTS) {
		/* Every fifth page not mapped, others touched or not. */
		for (i = 0; i < min(g->nr, 4 * per_huge); i++) {
			if (i % 5 == 0)
				kvm_munmap(decoy + offset_of(i), page_size);
			else if (i % 3 == 0)
				gmem_touch_read(decoy + offset_of(i));
		}
	}
	return decoy;
}

/* Nobody has written there. */
static bool is_untouched(struct guest *g, u8 *decoy)
{
	unsigned int i, bad = 0;

	for (i = 0; i < g->nr; i += decoy_step(g))
		bad += READ_ONCE(*word_at(decoy, i)) != ~0ull;
	return !bad;
}

/* The guest's memory is the file, wherever the host has what. */
TEST_F_TIMEOUT(guest, host_addresses, LONG)
{
	struct guest *g = &self->g;
	enum address what;
	u8 *decoy;

	for (what = 0; what < NR_ADDRESSES; what++) {
		TH_LOG("%s", address_names[what]);
		ASSERT_WORKS(unbind(g, SLOT));
		decoy = make_address(g, what);
		ASSERT_WORKS(bind_all(g, 0));
		guest_settle(_metadata, g);

		/* New memory, and then memory that is there. */
		EXPECT_FAULTS(NR_BLOCKS, GUEST_FILLS(0, g->nr));
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
		ASSERT_WORKS(unbind(g, SLOT));
		ASSERT_WORKS(bind_all(g, 0));
		guest_settle(_metadata, g);
		EXPECT_FAULTS(NR_BLOCKS, GUEST_FINDS(0, g->nr));
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		if (!starts_private(g))
			host_finds(_metadata, g->mem, 0, g->nr);
		if (what == OTHER || what == OTHER_OFF)
			EXPECT_TRUE(is_untouched(g, decoy));

		/* It goes away, and the guest has lost nothing. */
		if (what != NONE && what != HOLE)
			EXPECT_WORKS(munmap(decoy, 2 * g->size));
		EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		ASSERT_WORKS(punch(g->fd, 0, g->nr));
	}
	g->hva = NULL;
}

/*
 * One page of a block, there and back.  Only where it makes a difference to the guest
 * is it unmapped, and then it is that page and whatever maps it.
 */
TEST_F_TIMEOUT(guest, convert_one_page, LONG)
{
	struct guest *g = &self->g;
	const u64 from = starts_private(g) ? GMEM_PRIVATE : GMEM_SHARED;
	const u64 to = GMEM_PRIVATE - from;
	const unsigned int p = per_huge;
	const unsigned int pages[] = { p + 7, 2 * p, 4 * p - 1 };
	u64 *pfns = malloc(2 * g->nr * sizeof(*pfns));
	unsigned int i;

	all_shared(_metadata, g);
	host_fills(_metadata, g->mem, 0, g->nr);
	gmem_pfns(g->mem, g->nr, pfns);
	reset_states(_metadata, g);
	EXPECT_FAULTS(NR_BLOCKS, GUEST_FINDS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		ASSERT_WORKS(convert(g->fd, pages[i], 1, to));
		if (g->protected) {
			EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, 0);
			EXPECT_FAULTS(p, GUEST_FINDS(0, g->nr));
			EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);
		} else {
			EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
			EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		}
		EXPECT_EQ(to == GMEM_PRIVATE ? BUS_ADRERR : 0,
			  gmem_touch_read(g->mem + offset_of(pages[i])));
		EXPECT_FAULTS(0, GUEST_FILLS(0, g->nr));

		/* Its place alone is empty now, and what comes there is all of the block. */
		ASSERT_WORKS(convert(g->fd, pages[i], 1, from));
		EXPECT_LEVELS(g, 0, g->protected ? NR_BLOCKS - 1 : NR_BLOCKS,
			      g->protected ? p - 1 : 0);
		EXPECT_FAULTS(g->protected, GUEST_FINDS(0, g->nr));
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	}

	/* A block, half of another, and all that there are. */
	ASSERT_WORKS(convert(g->fd, p, p, to));
	EXPECT_FAULTS(g->protected, GUEST_FINDS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	ASSERT_WORKS(convert(g->fd, p / 2, p / 2, to));
	EXPECT_FAULTS(g->protected ? p : 0, GUEST_FINDS(0, g->nr));
	EXPECT_LEVELS(g, 0, g->protected ? NR_BLOCKS - 1 : NR_BLOCKS, g->protected ? p : 0);
	ASSERT_WORKS(convert(g->fd, 0, g->nr, to));
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
	gmem_pfns(g->mem, g->nr, pfns + g->nr);
	EXPECT_EQ(0, memcmp(pfns, pfns + g->nr, g->nr * sizeof(*pfns)));
	free(pfns);
}

/* The guest goes on with its huge mapping, and the host with the page that it holds. */
TEST_F_TIMEOUT(guest, held_page, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge, held = 2 * p + 100;
	struct holder h = { };
	u64 error_offset, *word = word_at(g->mem, held);

	if (!holder_init(&h, true))
		SKIP(return, "no io_uring");

	all_shared(_metadata, g);
	GUEST_FILLS(0, g->nr);
	hold(_metadata, &h, word, sizeof(*word));
	EXPECT_FAILS(EAGAIN, gmem_convert(g->fd, 0, g->size, GMEM_PRIVATE, &error_offset));
	EXPECT_EQ(offset_of(held), error_offset);
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	ASSERT_WORKS(convert(g->fd, 0, held, GMEM_PRIVATE));
	ASSERT_WORKS(convert(g->fd, held + 1, g->nr - held - 1, GMEM_PRIVATE));
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, g->protected ? NR_BLOCKS - 1 : NR_BLOCKS, g->protected ? p : 0);
	EXPECT_FAILS(EAGAIN, gmem_convert(g->fd, offset_of(held), page_size, GMEM_PRIVATE,
					  &error_offset));
	EXPECT_EQ(offset_of(held), error_offset);
	EXPECT_GUEST_WRITES(g->vcpu, gpa_of(held), 0x77);
	EXPECT_EQ(0x77, let_go(_metadata, &h, word, sizeof(*word)));

	ASSERT_WORKS(convert(g->fd, held, 1, GMEM_PRIVATE));
	EXPECT_GUEST_READS(0x77, g->vcpu, gpa_of(held));
	GUEST_FILLS(0, g->nr);
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	close(h.pipe[0]);
	close(h.pipe[1]);
	io_uring_queue_exit(&h.ring);
}

struct neighbours {
	struct guest *g;
	unsigned int page;	/* to convert; the next one is the guest's */
	int ret, err;
	bool done;
	u64 val;
};

static void *convert_neighbour(void *arg)
{
	struct neighbours *n = arg;

	n->ret = convert(n->g->fd, n->page, 1, GMEM_PRIVATE);
	n->err = errno;
	WRITE_ONCE(n->done, true);
	return NULL;
}

static void *read_neighbour(void *arg)
{
	struct neighbours *n = arg;

	TEST_ASSERT(!gmem_guest_read(n->g->vcpu, gpa_of(n->page + 1), &n->val), "KVM_RUN");
	return NULL;
}

/*
 * A page is on its way to private, but somebody still holds it: who has a fault on its
 * neighbour in the meantime does not get the block, which is not what it was.
 */
TEST_F_TIMEOUT(guest, fault_next_to_a_conversion, LONG)
{
	struct guest *g = &self->g;
	struct neighbours n = { .g = g, .page = per_huge + 7 };
	u64 *word = word_at(g->mem, n.page);
	unsigned int round, converted = 0;
	pthread_t converter, reader;
	struct holder h = { };

	holder_init(&h, false);
	all_shared(_metadata, g);
	GUEST_FILLS(0, g->nr);
	for (round = 0; round < 100 && converted < 5; round++) {
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		hold(_metadata, &h, word, sizeof(*word));
		n.done = false;
		ASSERT_EQ(0, pthread_create(&converter, NULL, convert_neighbour, &n));
		while (!gmem_fdinfo_val(g->fd, "gmem-converting") && !READ_ONCE(n.done))
			usleep(100);
		ASSERT_EQ(0, pthread_create(&reader, NULL, read_neighbour, &n));
		usleep(20000);
		EXPECT_EQ(TOKEN + n.page, let_go(_metadata, &h, word, sizeof(*word)));
		ASSERT_EQ(0, pthread_join(converter, NULL));
		ASSERT_EQ(0, pthread_join(reader, NULL));
		EXPECT_EQ(TOKEN + n.page + 1, n.val);

		/* It can have been too late to let go. */
		if (n.ret) {
			EXPECT_EQ(EAGAIN, n.err);
		} else {
			/* The guest can have been too early: then nothing is left of it. */
			EXPECT_LEVELS(g, 0, g->protected ? NR_BLOCKS - 1 : NR_BLOCKS,
				      min(levels_now(g).small, (u64)g->protected));
			converted++;
		}
		all_shared(_metadata, g);
		GUEST_FINDS(0, g->nr);
	}
	EXPECT_EQ(5, converted);
	close(h.pipe[0]);
	close(h.pipe[1]);
}

TEST_F_TIMEOUT(guest, punch, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;

	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	ASSERT_WORKS(punch(g->fd, p + 10, 20));
	EXPECT_BLOCKS(g->fd, NR_BLOCKS - 1, 1, 0);
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, 0);
	EXPECT_FAULTS(10, GUEST_FINDS(0, p + 10));
	EXPECT_FAULTS(p - 30, GUEST_FINDS(p + 30, g->nr - p - 30));
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p - 20);
	EXPECT_FAULTS(20, GUEST_FINDS_ZEROES(p + 10, 20));
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS - 1, 1, 0);
	EXPECT_FAULTS(0, GUEST_FILLS(p, p));

	/* One more page: the others are mapped one by one anyway. */
	ASSERT_WORKS(punch(g->fd, p + 100, 1));
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p - 1);
	GUEST_FINDS(p, 100);
	GUEST_FINDS_ZEROES(p + 100, 1);
	GUEST_FINDS(p + 101, p - 101);
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);

	/* All of the place, and it is as new. */
	ASSERT_WORKS(punch(g->fd, p, p));
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, 0);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS - 1, 0, 0);
	EXPECT_FAULTS(1, GUEST_FINDS_ZEROES(p, p));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	EXPECT_FAULTS(0, GUEST_FINDS(0, p));
	EXPECT_FAULTS(0, GUEST_FINDS(2 * p, g->nr - 2 * p));

	/* From within a block to within another. */
	ASSERT_WORKS(punch(g->fd, p - 1, p + 2));
	EXPECT_LEVELS(g, 0, 1, 0);
	EXPECT_FAULTS(p - 1, GUEST_FINDS(0, p - 1));
	EXPECT_FAULTS(p - 1, GUEST_FINDS(2 * p + 1, g->nr - 2 * p - 1));
	EXPECT_FAULTS(3, GUEST_FINDS_ZEROES(p - 1, p + 2));
	EXPECT_LEVELS(g, 0, 2, 2 * p);
	EXPECT_BLOCKS(g->fd, 2, 2, 0);
}

/* Where a memslot has pages of a file, and what can be huge of them. */
TEST_F_TIMEOUT(guest, memslots, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;
	const struct {
		unsigned int at, first, nr;
		unsigned int huge;	/* mappings */
	} rows[] = {
		/* Congruent. */
		{ 0, 0, 4 * p, 4 },
		{ p, 0, 4 * p, 4 },
		{ 0, p, 3 * p, 3 },
		{ 5 * p, 2 * p, p, 1 },
		{ per_giant ? per_giant : 7 * p, p, 2 * p, 2 },
		/* Not so. */
		{ 1, 0, 2 * p, 0 },
		{ 0, 1, 2 * p, 0 },
		{ p / 2, 0, 2 * p, 0 },
		{ p, 2 * p - 1, p + 1, 0 },
		/* Parts of blocks. */
		{ 0, 0, p - 1, 0 },
		{ 1, 1, p - 1, 0 },
		{ 100, 100, p, 0 },
		{ 100, 100, 2 * p, 1 },
		{ p + 100, 100, 2 * p, 1 },
		{ p - 1, p - 1, 2 * p + 2, 2 },
		{ 0, 2 * p, p + 1, 1 },
	};
	unsigned int i, small;

	all_shared(_metadata, g);
	host_fills(_metadata, g->mem, 0, g->nr);
	reset_states(_metadata, g);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		TH_LOG("at %u: pages %u, %u", rows[i].at, rows[i].first, rows[i].nr);
		ASSERT_WORKS(unbind(g, SLOT));
		ASSERT_WORKS(bind(g, SLOT, 0, rows[i].at, rows[i].first, rows[i].nr));
		guest_settle(_metadata, g);
		small = rows[i].nr - rows[i].huge * p;
		EXPECT_FAULTS(rows[i].huge + small,
			      GUEST_FINDS_AT(rows[i].at, rows[i].first, rows[i].nr));
		EXPECT_LEVELS(g, 0, rows[i].huge, small);
		EXPECT_FAULTS(0, GUEST_FILLS_AT(rows[i].at, rows[i].first, rows[i].nr));
	}
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
}

TEST_F_TIMEOUT(guest, block_in_two_memslots, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;

	ASSERT_WORKS(unbind(g, SLOT));
	ASSERT_WORKS(bind(g, SLOT, 0, 0, 0, p + 100));
	ASSERT_WORKS(bind(g, SLOT + 1, 0, p + 100, p + 100, g->nr - p - 100));
	guest_settle(_metadata, g);
	EXPECT_FAULTS(NR_BLOCKS - 1 + p, GUEST_FILLS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);

	/* One page over the border, and what is behind it stays. */
	ASSERT_WORKS(punch(g->fd, p + 99, 2));
	GUEST_FINDS(0, p + 99);
	GUEST_FINDS_ZEROES(p + 99, 2);
	GUEST_FINDS(p + 101, g->nr - p - 101);
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);

	/* In another order, at other distances: QEMU has RAM above 4 GiB, and below. */
	ASSERT_WORKS(unbind(g, SLOT));
	ASSERT_WORKS(unbind(g, SLOT + 1));
	ASSERT_WORKS(punch(g->fd, p, p));
	ASSERT_WORKS(bind(g, SLOT, 0, 8 * p, 0, 2 * p));
	ASSERT_WORKS(bind(g, SLOT + 1, 0, p, 2 * p, 2 * p));
	guest_settle(_metadata, g);
	EXPECT_FAULTS(2, GUEST_FILLS_AT(8 * p, 0, 2 * p));
	EXPECT_FAULTS(2, GUEST_FINDS_AT(p, 2 * p, 2 * p));
	EXPECT_LEVELS(g, 0, 4, 0);
	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
	ASSERT_WORKS(unbind(g, SLOT + 1));
}

static unsigned int nr_bits(const unsigned long *map, unsigned int nr)
{
	unsigned int i, sum = 0;

	for (i = 0; i < nr / BITS_PER_LONG; i++)
		sum += __builtin_popcountl(map[i]);
	return sum;
}

/* Pages while writes are logged, blocks before and after. */
TEST_F_TIMEOUT(guest, dirty_log, LONG)
{
	struct guest *g = &self->g;
	unsigned long *map = calloc(g->nr / BITS_PER_LONG, sizeof(long));
	const unsigned int p = per_huge, step = 7, written = (g->nr + step - 1) / step;
	unsigned int i, round, bad;

	GUEST_FILLS(0, g->nr);
	for (round = 0; round < 2; round++) {
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
		/* The memory was mapped, so it still is. */
		if (g->eager)
			EXPECT_LEVELS(g, 0, 0, g->nr);
		kvm_vm_get_dirty_log(g->vm, SLOT, map);
		EXPECT_EQ(0, nr_bits(map, g->nr));

		/* Reading is not written down, and writing is, to the page. */
		GUEST_FINDS(0, g->nr);
		kvm_vm_get_dirty_log(g->vm, SLOT, map);
		EXPECT_EQ(0, nr_bits(map, g->nr));
		ASSERT_EQ(0, gmem_guest_fill(g->vcpu, GPA, written, offset_of(step), 0x77));
		kvm_vm_get_dirty_log(g->vm, SLOT, map);
		EXPECT_EQ(written, nr_bits(map, g->nr));
		for (bad = 0, i = 0; i < g->nr; i += step)
			bad += !(map[i / BITS_PER_LONG] >> i % BITS_PER_LONG & 1);
		EXPECT_EQ(0, bad);
		guest_checks(_metadata, g, 0, written, step, 0x77, 1);
		if (g->eager)
			EXPECT_LEVELS(g, 0, 0, g->nr);
		GUEST_FILLS(0, g->nr);
		kvm_vm_get_dirty_log(g->vm, SLOT, map);
		EXPECT_EQ(g->nr, nr_bits(map, g->nr));
		GUEST_FINDS(0, g->nr);
		EXPECT_LEVELS(g, 0, 0, g->nr);
		/* The file knows nothing of it. */
		EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);

		ASSERT_WORKS(bind_all(g, 0));
		if (g->tdp) {
			/* At once, without the guest. */
			EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
			EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
			GUEST_FILLS(0, g->nr);
		} else {
			/* Nothing is writable since the log was read. */
			EXPECT_FAULTS(NR_BLOCKS, GUEST_FILLS(0, g->nr));
		}
		EXPECT_FAULTS(0, GUEST_FILLS(0, g->nr));
		GUEST_FINDS(0, g->nr);
	}
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
	free(map);

	/* From the beginning. */
	ASSERT_WORKS(unbind(g, SLOT));
	reset_states(_metadata, g);
	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	guest_settle(_metadata, g);
	EXPECT_FAULTS(p + 1, GUEST_FILLS(p - 1, p + 1));
	EXPECT_LEVELS(g, 0, 0, p + 1);
	ASSERT_WORKS(bind_all(g, 0));
	if (g->tdp)
		EXPECT_LEVELS(g, 0, 2, 0);
	GUEST_FINDS(0, g->nr);
	GUEST_FILLS(0, g->nr);
	if (g->tdp)
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
}

/* What changes while writes are logged is what matters afterwards. */
TEST_F_TIMEOUT(guest, dirty_log_and_states, LONG)
{
	struct guest *g = &self->g;
	const u64 from = starts_private(g) ? GMEM_PRIVATE : GMEM_SHARED;
	const u64 to = GMEM_PRIVATE - from;
	const unsigned int p = per_huge;

	GUEST_FILLS(0, g->nr);
	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	GUEST_FILLS(0, g->nr);
	ASSERT_WORKS(convert(g->fd, p + 5, 1, to));
	ASSERT_WORKS(convert(g->fd, 2 * p, p, to));
	ASSERT_WORKS(punch(g->fd, 3 * p + 9, 1));
	GUEST_FINDS(0, 3 * p + 9);
	GUEST_FINDS_ZEROES(3 * p + 9, 1);
	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 0, 0, g->nr);

	/* The last one is broken, and the second one mixed where that counts. */
	ASSERT_WORKS(bind_all(g, 0));
	if (g->tdp && g->protected)
		EXPECT_LEVELS(g, 0, 2, 2 * p);
	else if (g->tdp)
		EXPECT_LEVELS(g, 0, 3, p);
	GUEST_FILLS(0, g->nr);
	GUEST_FINDS(0, g->nr);
	ASSERT_WORKS(convert(g->fd, p + 5, 1, from));
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, 3, p);

	/* By recovery: the others of the block are mapped, and that is enough. */
	ASSERT_WORKS(convert(g->fd, p + 5, 1, to));
	GUEST_FINDS(p, 5);
	GUEST_FINDS(p + 6, p - 6);
	ASSERT_WORKS(convert(g->fd, p + 5, 1, from));
	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	if (g->eager && g->protected)
		EXPECT_LEVELS(g, 0, 0, g->nr - 1);
	ASSERT_WORKS(bind_all(g, 0));
	if (g->tdp) {
		EXPECT_LEVELS(g, 0, 3, p);
		EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
	}
	GUEST_FILLS(0, g->nr);
	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
}

/* The one flag is all that can be changed. */
TEST_F(guest, memslot_is_immutable)
{
	struct guest *g = &self->g;
	const int other = vm_create_guest_memfd(g->vm, g->size, g->flags | block_flag(huge));
	const u64 p = page_size, gm = KVM_MEM_GUEST_MEMFD, log = KVM_MEM_LOG_DIRTY_PAGES;
	const struct {
		const char *what;
		u64 flags, gpa, size, hva;
		int fd;
		u64 offset;
	} rows[] = {
		{ "moved",	gm | log, GPA + huge, 2 * huge, 0, g->fd, huge },
		{ "longer",	gm | log, GPA, 3 * huge, 0, g->fd, huge },
		{ "shorter",	gm | log, GPA, huge, 0, g->fd, huge },
		{ "address",	gm | log, GPA, 2 * huge, p, g->fd, huge },
		{ "offset",	gm | log, GPA, 2 * huge, 0, g->fd, 2 * huge },
		{ "file",	gm | log, GPA, 2 * huge, 0, other, huge },
		{ "no file",	log, GPA, 2 * huge, 0, 0, 0 },
		{ "read-only",	gm | KVM_MEM_READONLY, GPA, 2 * huge, 0, g->fd, huge },
		{ "both",	gm | log | KVM_MEM_READONLY, GPA, 2 * huge, 0, g->fd, huge },
	};
	unsigned int i;

	ASSERT_WORKS(unbind(g, SLOT));
	EXPECT_FAILS(EINVAL, bind(g, SLOT, KVM_MEM_READONLY, 0, per_huge, 2 * per_huge));
	ASSERT_WORKS(bind(g, SLOT, 0, 0, per_huge, 2 * per_huge));
	guest_settle(_metadata, g);
	GUEST_FILLS_AT(0, per_huge, 2 * per_huge);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(EINVAL,
			       __vm_set_user_memory_region2(g->vm, SLOT, rows[i].flags,
							    rows[i].gpa, rows[i].size,
							    (void *)rows[i].hva, rows[i].fd,
							    rows[i].offset),
			       "%s", rows[i].what);
		EXPECT_LEVELS(g, 0, 2, 0);
	}
	EXPECT_FAULTS(0, GUEST_FINDS_AT(0, per_huge, 2 * per_huge));
	ASSERT_WORKS(bind(g, SLOT, KVM_MEM_LOG_DIRTY_PAGES, 0, per_huge, 2 * per_huge));
	ASSERT_WORKS(bind(g, SLOT, 0, 0, per_huge, 2 * per_huge));
	GUEST_FINDS_AT(0, per_huge, 2 * per_huge);
	close(other);
}

static bool may_break_memory(void)
{
	return !geteuid() && !access(GMEM_CORRUPT_PFN, W_OK) &&
	       !access(GMEM_UNPOISON_PFN, W_OK) && !madvise(NULL, 0, MADV_HWPOISON);
}

/* A page breaks, and its block is the others of it from then on. */
TEST_F_TIMEOUT(guest, memory_error, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge, bad = 2 * p + 33;
	u64 pfn, val, before;
	unsigned int round;
	long lost;

	if (!may_break_memory())
		SKIP(return, WHY_NO_ERRORS);

	all_shared(_metadata, g);
	before = free_memory();
	for (round = 0; round < 2; round++) {
		lost = gmem_hardware_corrupted();
		GUEST_FILLS(0, g->nr);
		host_finds(_metadata, g->mem, 0, g->nr);
		EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
		pfn = gmem_pfn(g->mem + offset_of(bad));
		ASSERT_NE(0, pfn);
		ASSERT_EQ(0, gmem_break_pfn(pfn));
		EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, 0);
		EXPECT_EQ(1, gmem_fdinfo_val(g->fd, "gmem-poisoned"));
		EXPECT_BLOCKS(g->fd, NR_BLOCKS - 1, 1, 0);

		EXPECT_FAULTS(bad - 2 * p, GUEST_FINDS(0, bad));
		EXPECT_FAULTS(3 * p - bad - 1, GUEST_FINDS(bad + 1, g->nr - bad - 1));
		EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p - 1);
		EXPECT_EQ(-EHWPOISON, gmem_guest_read(g->vcpu, gpa_of(bad), &val));
		EXPECT_EQ(BUS_MCEERR_AR, gmem_touch_read(g->mem + offset_of(bad)));
		host_finds(_metadata, g->mem, 0, bad);
		host_finds(_metadata, g->mem, bad + 1, g->nr - bad - 1);

		/* Logging comes and goes, and nobody maps it as a part of something. */
		ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
		ASSERT_WORKS(bind_all(g, 0));
		if (g->tdp)
			EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p - 1);
		EXPECT_EQ(-EHWPOISON, gmem_guest_run(g->vcpu));

		/* A hole for the page, or for all of it: the guest goes on. */
		if (round) {
			ASSERT_WORKS(punch(g->fd, 0, g->nr));
			EXPECT_BLOCKS(g->fd, 0, 0, 0);
			EXPECT_EQ(0, gmem_guest_run(g->vcpu));
			EXPECT_EQ(0, gmem_guest_cmd.val);
			EXPECT_BLOCKS(g->fd, 1, 0, 0);
			EXPECT_LEVELS(g, 0, 1, 0);
		} else {
			ASSERT_WORKS(punch(g->fd, bad, 1));
			EXPECT_EQ(0, gmem_guest_run(g->vcpu));
			EXPECT_EQ(0, gmem_guest_cmd.val);
			EXPECT_BLOCKS(g->fd, NR_BLOCKS - 1, 1, 0);
			GUEST_FINDS(0, bad);
			GUEST_FINDS(bad + 1, g->nr - bad - 1);
			EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);
		}
		ASSERT_WORKS(punch(g->fd, 0, g->nr));

		/* The rest is free, and then this page as well. */
		EXPECT_EQ(lost + page_size / SZ_1K, gmem_hardware_corrupted());
		kvm_munmap(g->mem, g->size);
		EXPECT_EQ(0, gmem_unpoison(pfn));
		EXPECT_EQ(lost, gmem_hardware_corrupted());
		EXPECT_FREE(before);
		g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
	}
}

/* The file goes with a broken page in it: that one is lost, and no other. */
TEST_F_TIMEOUT(guest, close_with_memory_error, LONG)
{
	struct guest *g = &self->g;
	unsigned int round;
	long lost;
	u64 before, pfn;

	if (!may_break_memory())
		SKIP(return, WHY_NO_ERRORS);

	ASSERT_WORKS(unbind(g, SLOT));
	before = free_memory();
	for (round = 0; round < 20; round++) {
		lost = gmem_hardware_corrupted();
		all_shared(_metadata, g);
		host_fills(_metadata, g->mem, 0, g->nr);
		pfn = gmem_pfn(g->mem + offset_of(per_huge - 1));
		ASSERT_EQ(0, gmem_break_pfn(pfn));
		guest_close(g);
		EXPECT_EQ(0, gmem_unpoison(pfn));
		EXPECT_EQ(lost, gmem_hardware_corrupted());
		guest_open(g);
	}
	EXPECT_FREE(before);
}

#ifdef __x86_64__
static int prefault(struct guest *g, unsigned int at, unsigned int nr)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa_of(at),
		.size = offset_of(nr),
	};

	while (range.size)
		if (__vcpu_ioctl(g->vcpu, KVM_PRE_FAULT_MEMORY, &range) && errno != EINTR)
			return -1;
	return 0;
}

TEST_F_TIMEOUT(guest, prefault, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "no KVM_PRE_FAULT_MEMORY");

	ASSERT_WORKS(prefault(g, p + 100, 1));
	EXPECT_LEVELS(g, 0, 1, 0);
	EXPECT_PRESENT(g->fd, p);
	ASSERT_WORKS(prefault(g, 2 * p - 1, p + 1));
	EXPECT_LEVELS(g, 0, 2, 0);
	ASSERT_WORKS(prefault(g, 0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	EXPECT_FAULTS(0, GUEST_FINDS_ZEROES(0, g->nr));
	GUEST_FILLS(0, g->nr);
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	/* In the midst of something else. */
	ASSERT_WORKS(punch(g->fd, p + 9, 1));
	ASSERT_WORKS(prefault(g, p, p));
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS - 1, 1, 0);
	EXPECT_FAULTS(0, GUEST_FINDS_ZEROES(p + 9, 1));
}

/* The old scheme: pages are private, and the VM's attributes say which gfns are. */
FIXTURE(old_scheme)
{
	struct guest g;
	u64 hva_size;
};

FIXTURE_SETUP(old_scheme)
{
	struct guest *g = &self->g;
	u64 hva;

	if (!(vm_types() & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, WHY_NO_TYPE);
	if (!kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES))
		SKIP(return, "VMs have no attributes: vm_memory_attributes=N");
	if (!faults_init())
		SKIP(return, WHY_NO_TRACE);

	guest_create(g, KVM_X86_SW_PROTECTED_VM, 0, huge, NR_BLOCKS * huge);
	self->hva_size = g->size + huge;
	hva = (u64)kvm_mmap(self->hva_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1);
	g->hva = (void *)((hva + huge - 1) & ~(huge - 1));
	ASSERT_WORKS(madvise(g->hva, g->size, MADV_NOHUGEPAGE));
	vm_set_memory_attributes(g->vm, GPA, g->size, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	ASSERT_WORKS(bind_all(g, 0));
	guest_settle(_metadata, g);
}

FIXTURE_TEARDOWN(old_scheme)
{
	faults_exit();
	guest_destroy(_metadata, &self->g);
}

TEST_F_TIMEOUT(old_scheme, sizes, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;

	EXPECT_FAULTS(NR_BLOCKS, GUEST_FILLS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);

	/* It is the gfn that is something else now, and the file stays as it is. */
	vm_set_memory_attributes(g->vm, gpa_of(p + 3), page_size, 0);
	GUEST_FINDS(0, p + 3);
	GUEST_FINDS_ZEROES(p + 3, 1);
	GUEST_FINDS(p + 4, g->nr - p - 4);
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
	vm_set_memory_attributes(g->vm, gpa_of(p + 3), page_size, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	ASSERT_WORKS(punch(g->fd, 3, 1));
	GUEST_FINDS_ZEROES(3, 1);
	GUEST_FINDS(4, g->nr - 4);
	EXPECT_LEVELS(g, 0, NR_BLOCKS - 1, p - 3);
	ASSERT_WORKS(punch(g->fd, 0, g->nr));
	EXPECT_FAULTS(NR_BLOCKS, GUEST_FILLS(0, g->nr));
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);

	/* Its writes cannot be logged. */
	EXPECT_FAILS(EINVAL, bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
}

/* Whose a block is, as the emulated RMP has it. */
FIXTURE(rmp)
{
	struct guest g;
	u64 owned, owned_2m, psmash;
};

static void rmp_look(FIXTURE_DATA(rmp) * self)
{
	self->owned = gmem_rmp_counter("owned");
	self->owned_2m = gmem_rmp_counter("owned-2m");
	self->psmash = gmem_rmp_counter("psmash");
}

static void expect_rmp(struct __test_metadata *_metadata, FIXTURE_DATA(rmp) * self, int line,
		       u64 owned, u64 owned_2m, u64 psmash)
{
	EXPECT_EQ(owned, gmem_rmp_counter("owned") - self->owned) TH_LOG("line %d", line);
	EXPECT_EQ(owned_2m, gmem_rmp_counter("owned-2m") - self->owned_2m)
		TH_LOG("line %d", line);
	EXPECT_EQ(psmash, gmem_rmp_counter("psmash") - self->psmash) TH_LOG("line %d", line);
}

#define EXPECT_RMP(owned, owned_2m, psmash)				\
	expect_rmp(_metadata, self, __LINE__, owned, owned_2m, psmash)

FIXTURE_SETUP(rmp)
{
	if (!(vm_types() & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, WHY_NO_TYPE);
	if (!gmem_has_rmp())
		SKIP(return, "needs the emulated RMP, debugfs and root");
	if (!faults_init())
		SKIP(return, WHY_NO_TRACE);
	rmp_look(self);
	guest_create(&self->g, KVM_X86_SW_PROTECTED_VM, MAPPABLE, huge, 2 * huge);
}

FIXTURE_TEARDOWN(rmp)
{
	faults_exit();
	guest_destroy(_metadata, &self->g);
	EXPECT_EQ(self->owned, gmem_rmp_counter("owned"));
	EXPECT_EQ(self->owned_2m, gmem_rmp_counter("owned-2m"));
}

/* All of a block is the guest's when one page of it is touched, and as one. */
TEST_F_TIMEOUT(rmp, entries, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;
	u64 calls;

	ASSERT_WORKS(bind_all(g, 0));
	guest_settle(_metadata, g);
	calls = gmem_rmp_counter("make-private");
	EXPECT_FAULTS(1, GUEST_FILLS(5, 1));
	EXPECT_RMP(p, 1, 0);
	EXPECT_EQ(1, gmem_rmp_counter("make-private") - calls);
	ASSERT_WORKS(allocate(g->fd, p, 1));
	EXPECT_RMP(2 * p, 2, 0);
	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 0, 2, 0);

	/* A page of it goes, and comes back. */
	ASSERT_WORKS(convert(g->fd, 9, 1, GMEM_SHARED));
	EXPECT_RMP(2 * p - 1, 1, 1);
	GUEST_FINDS(0, g->nr);
	ASSERT_WORKS(convert(g->fd, 9, 1, GMEM_PRIVATE));
	EXPECT_RMP(2 * p, 2, 1);
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, 2, 0);

	/* In several steps, and in an order of its own. */
	ASSERT_WORKS(convert(g->fd, 100, 30, GMEM_SHARED));
	EXPECT_RMP(2 * p - 30, 1, 2);
	ASSERT_WORKS(convert(g->fd, 120, 10, GMEM_PRIVATE));
	ASSERT_WORKS(convert(g->fd, 100, 10, GMEM_PRIVATE));
	EXPECT_RMP(2 * p - 10, 1, 2);
	ASSERT_WORKS(convert(g->fd, 110, 10, GMEM_PRIVATE));
	EXPECT_RMP(2 * p, 2, 2);
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, 2, 0);

	/* KVM maps smaller, and that is not to be split for it. */
	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 0, 0, 2 * p);
	EXPECT_RMP(2 * p, 2, 2);
	ASSERT_WORKS(bind_all(g, 0));
	EXPECT_LEVELS(g, 0, 2, 0);
	EXPECT_RMP(2 * p, 2, 2);

	/* A part is freed, and all of it. */
	ASSERT_WORKS(punch(g->fd, p + 3, 1));
	EXPECT_RMP(2 * p - 1, 1, 3);
	ASSERT_WORKS(punch(g->fd, 0, p));
	EXPECT_RMP(p - 1, 0, 3);
	ASSERT_WORKS(punch(g->fd, p, p));
	EXPECT_RMP(0, 0, 3);
	GUEST_FINDS_ZEROES(0, g->nr);
	EXPECT_RMP(2 * p, 2, 3);

	/* At other gfns that are aligned alike, and at some that are not. */
	ASSERT_WORKS(unbind(g, SLOT));
	ASSERT_WORKS(bind(g, SLOT, 0, 3 * p, 0, g->nr));
	EXPECT_RMP(2 * p, 2, 3);
	ASSERT_WORKS(unbind(g, SLOT));
	ASSERT_WORKS(bind(g, SLOT, 0, 7, 0, g->nr));
	EXPECT_RMP(2 * p, 0, 3);
	guest_settle(_metadata, g);
	EXPECT_FAULTS(2 * p, GUEST_FINDS_ZEROES(7, g->nr));
	EXPECT_LEVELS(g, 0, 0, 2 * p);
	ASSERT_WORKS(unbind(g, SLOT));
	ASSERT_WORKS(bind_all(g, 0));
	EXPECT_RMP(2 * p, 2, 3);
}

#define FAIL_PRIVATE	"/sys/kernel/debug/kvm/emulated-rmp/fail_make_private/"

static bool fail_make_private(bool fail)
{
	return !gmem_write_file(FAIL_PRIVATE "verbose", "0") &&
	       !gmem_write_file(FAIL_PRIVATE "interval", "1") &&
	       !gmem_write_file(FAIL_PRIVATE "times", "-1") &&
	       !gmem_write_file(FAIL_PRIVATE "probability", fail ? "100" : "0");
}

/*
 * A block that could not be made the guest's is not the guest's yet: page tables that are
 * left over from something else are no reason to map it.
 */
TEST_F_TIMEOUT(rmp, not_owned_is_not_recovered, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;

	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	guest_settle(_metadata, g);
	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 0, 0, 2 * p);
	ASSERT_WORKS(punch(g->fd, 0, p));
	EXPECT_RMP(p, 1, 0);

	if (!fail_make_private(true))
		SKIP(return, "needs CONFIG_FAULT_INJECTION_DEBUG_FS");
	EXPECT_EQ(-1, allocate(g->fd, 0, p));
	ASSERT_TRUE(fail_make_private(false));
	EXPECT_PRESENT(g->fd, 2 * p);
	EXPECT_RMP(p, 1, 0);

	ASSERT_WORKS(bind_all(g, 0));
	EXPECT_LEVELS(g, 0, 1, 0);
	EXPECT_RMP(p, 1, 0);
	GUEST_FINDS_ZEROES(0, p);
	GUEST_FINDS(p, p);
	EXPECT_RMP(2 * p, 2, 0);
}

/* As many memslots as a block has pages: page tables only. */
TEST_F_TIMEOUT(rmp, a_memslot_for_each_page, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge;
	unsigned int i;

	ASSERT_WORKS(bind_all(g, 0));
	ASSERT_WORKS(allocate(g->fd, 0, p));
	EXPECT_RMP(p, 1, 0);
	ASSERT_WORKS(unbind(g, SLOT));
	for (i = 0; i < g->nr; i++)
		ASSERT_WORKS(bind(g, SLOT + i, 0, i, i, 1));
	EXPECT_RMP(p, 1, 0);
	guest_settle(_metadata, g);
	EXPECT_FAULTS(p, GUEST_FILLS(0, p));
	EXPECT_LEVELS(g, 0, 0, p);
	EXPECT_FAULTS(0, GUEST_FINDS(0, p));
	EXPECT_RMP(p, 1, 0);

	/* The other block comes when they are there. */
	EXPECT_FAULTS(p, GUEST_FILLS(p, p));
	EXPECT_LEVELS(g, 0, 0, 2 * p);
	EXPECT_RMP(2 * p, 2, 0);
	EXPECT_BLOCKS(g->fd, 2, 0, 0);

	/* One conversion over many of them. */
	ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_SHARED));
	EXPECT_RMP(0, 0, 0);
	host_finds(_metadata, g->mem, 0, g->nr);
	ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_PRIVATE));
	EXPECT_RMP(2 * p, 2, 0);
	for (i = 0; i < g->nr; i++)
		ASSERT_WORKS(unbind(g, SLOT + i));
	EXPECT_RMP(2 * p, 2, 0);
	ASSERT_WORKS(bind_all(g, 0));
	guest_settle(_metadata, g);
	EXPECT_FAULTS(2, GUEST_FINDS(0, g->nr));
	EXPECT_LEVELS(g, 0, 2, 0);
	EXPECT_RMP(2 * p, 2, 0);
}

/*
 * Huge mappings come back when logging ends, while somebody converts pages of the
 * range.  No mapping may be larger than what is alike in it, at any time: that is
 * what the emulated RMP looks at whenever KVM makes one.
 */
#define RACE_MS		2000
#define RACE_BLOCKS	2	/* in which pages are converted, the others are left alone */

struct race {
	struct guest *g;
	pthread_mutex_t lock;
	bool over;
	u64 done;
	int err;
};

static void *race_convert(void *arg)
{
	struct kvm_random_state rng = new_kvm_random_state(1);
	struct race *r = arg;
	unsigned int first, nr;
	u64 attributes;

	while (!READ_ONCE(r->over) && !r->err) {
		/* Mostly a page; now and then more than a block, or all. */
		nr = 1 + (1u << kvm_random_u32_in_range(&rng, 0, 10)) / 2;
		if (__kvm_random_bool(&rng, 50))
			nr = 1;
		first = kvm_random_u32_in_range(&rng, 0, RACE_BLOCKS * per_huge - nr);
		attributes = kvm_random_bool(&rng) ? GMEM_PRIVATE : GMEM_SHARED;

		pthread_mutex_lock(&r->lock);
		if (convert(r->g->fd, first, nr, attributes))
			WRITE_ONCE(r->err, errno);
		r->done++;
		pthread_mutex_unlock(&r->lock);
	}
	return NULL;
}

FIXTURE(race)
{
	struct guest g;
};

FIXTURE_VARIANT(race)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(race, shared)
{
	.flags = MAPPABLE | INIT_SHARED,
};

FIXTURE_VARIANT_ADD(race, private)
{
	.flags = MAPPABLE,
};

FIXTURE_SETUP(race)
{
	if (!(vm_types() & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, WHY_NO_TYPE);
	guest_create(&self->g, KVM_X86_SW_PROTECTED_VM, variant->flags, huge, NR_BLOCKS * huge);
	ASSERT_WORKS(bind_all(&self->g, 0));
	guest_settle(_metadata, &self->g);
}

FIXTURE_TEARDOWN(race)
{
	guest_destroy(_metadata, &self->g);
}

/* Map what the guest would touch.  A page may be converted in the midst of it. */
static int prefault_racing(struct guest *g)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = g->size };
	unsigned int tries;

	for (tries = 0; range.size && tries < 100000; tries++)
		if (__vcpu_ioctl(g->vcpu, KVM_PRE_FAULT_MEMORY, &range) && errno != EINTR &&
		    errno != EAGAIN && errno != EFAULT)
			return errno;
	return range.size ? ETIME : 0;
}

TEST_F_TIMEOUT(race, log_and_conversion, LONG)
{
	struct guest *g = &self->g;
	struct race r = { .g = g, .lock = PTHREAD_MUTEX_INITIALIZER };
	u64 end, small = 0, rounds = 0;
	pthread_t thread;

	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	kvm_pthread_create(&thread, NULL, race_convert, &r);

	end = now_ms() + RACE_MS;
	for (; (now_ms() < end || rounds < 3) && !READ_ONCE(r.err); rounds++) {
		ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
		ASSERT_EQ(0, prefault_racing(g));
		small += levels_now(g).small;
		/* What nobody converts is there to be huge again. */
		ASSERT_WORKS(bind_all(g, 0));
		EXPECT_LE(NR_BLOCKS - RACE_BLOCKS, levels_now(g).huge);
		EXPECT_EQ(g->violations, gmem_rmp_counter("violations"));

		/* All that is mapped, when nothing is going on. */
		if (rounds % 8 == 0) {
			pthread_mutex_lock(&r.lock);
			EXPECT_EQ(0, gmem_rmp_verify());
			pthread_mutex_unlock(&r.lock);
		}
	}
	WRITE_ONCE(r.over, true);
	kvm_pthread_join(thread, NULL);
	TH_LOG("%lu rounds, %lu conversions", rounds, r.done);
	EXPECT_EQ(0, r.err) TH_LOG("conversion: %s", strerror(r.err));
	EXPECT_LE(10, r.done);
	EXPECT_LT(0, small);

	/* The guest has had its memory all the while. */
	EXPECT_EQ(0, gmem_rmp_verify());
	GUEST_FINDS(0, g->nr);
	ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_PRIVATE));
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	all_shared(_metadata, g);
	host_finds(_metadata, g->mem, 0, g->nr);
	EXPECT_BLOCKS(g->fd, NR_BLOCKS, 0, 0);
}

#define NEAR_CONVERTED	5
#define NEAR_FAULTING	9

struct near {
	struct guest *g;
	struct holder h;
	struct __test_metadata *metadata;
	void (*work)(struct near *n);
	unsigned int wanted, done;	/* rounds of that */
	unsigned int held, released;	/* and of the reference */
	unsigned int converted;		/* or not */
	int cpus[2];			/* the first has the race */
	bool over;
};

static void fault_near(struct near *n)
{
	struct kvm_pre_fault_memory range;
	int ret;

	do {
		range = (struct kvm_pre_fault_memory) {
			.gpa = gpa_of(NEAR_FAULTING),
			.size = page_size,
		};
		ret = __vcpu_ioctl(n->g->vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while (ret && (errno == EAGAIN || errno == EINTR));
	TEST_ASSERT(!ret, "KVM_PRE_FAULT_MEMORY: errno %d", errno);
}

static void start_logging(struct near *n)
{
	TEST_ASSERT(!bind_all(n->g, KVM_MEM_LOG_DIRTY_PAGES), "start to log");
	fault_near(n);
}

static void stop_logging(struct near *n)
{
	TEST_ASSERT(!bind_all(n->g, 0), "stop to log");
}

static void *race_work_near(void *arg)
{
	struct near *n = arg;

	on_cpu(n->cpus[0], 0);
	while (!READ_ONCE(n->over)) {
		if (READ_ONCE(n->wanted) == n->done)
			continue;
		n->work(n);
		WRITE_ONCE(n->done, n->done + 1);
	}
	return NULL;
}

/* Let go of the page once its conversion waits for that, and a fault has had its time. */
static void *race_release_near(void *arg)
{
	struct near *n = arg;

	on_cpu(n->cpus[1], 0);
	while (!READ_ONCE(n->over)) {
		if (READ_ONCE(n->held) == n->released ||
		    (READ_ONCE(n->converted) == n->released &&
		     !gmem_fdinfo_val(n->g->fd, "gmem-converting")))
			continue;
		usleep(500);
		let_go(n->metadata, &n->h, word_at(n->g->mem, NEAR_CONVERTED), sizeof(u64));
		WRITE_ONCE(n->released, n->released + 1);
	}
	return NULL;
}

/*
 * Something (@work) has found all of a block shared, and is about to map it, when a page
 * of it begins to be converted.  It is in time, and its mapping goes; or it is late, and
 * has to look again.  It is interrupted at any point, for the conversion comes first on
 * their CPU; and the conversion takes a break, for the page is held.
 */
static void race_near(struct __test_metadata *_metadata, struct guest *g,
		      void (*prepare)(struct near *n), void (*work)(struct near *n))
{
	struct kvm_random_state rng = new_kvm_random_state(1);
	struct near n = { .g = g, .metadata = _metadata, .work = work };
	u64 *word = word_at(g->mem, NEAR_CONVERTED);
	u64 end, ns, rounds = 0, huge_after = 0;
	pthread_t worker, releaser;
	struct timespec t = { };
	int ret;

	if (!gmem_two_cpus(n.cpus))
		SKIP(return, "needs two CPUs");
	holder_init(&n.h, false);
	all_shared(_metadata, g);
	GUEST_FILLS(0, g->nr);
	ASSERT_WORKS(convert(g->fd, NEAR_CONVERTED, 1, GMEM_PRIVATE));
	ASSERT_WORKS(convert(g->fd, NEAR_CONVERTED, 1, GMEM_SHARED));
	prepare(&n);
	ns = now_ns();
	work(&n);
	ns = min(4 * (now_ns() - ns), 1000000);

	kvm_pthread_create(&worker, NULL, race_work_near, &n);
	kvm_pthread_create(&releaser, NULL, race_release_near, &n);
	on_cpu(n.cpus[0], 1);
	for (end = now_ms() + RACE_MS; now_ms() < end || rounds < 3; rounds++) {
		prepare(&n);
		hold(_metadata, &n.h, word, sizeof(*word));
		WRITE_ONCE(n.held, n.held + 1);
		WRITE_ONCE(n.wanted, n.wanted + 1);
		t.tv_nsec = kvm_random_u32_in_range(&rng, 0, ns);
		nanosleep(&t, NULL);
		ret = convert(g->fd, NEAR_CONVERTED, 1, GMEM_PRIVATE);
		/* It can have been too late to let go. */
		ASSERT_TRUE(!ret || errno == EAGAIN);
		WRITE_ONCE(n.converted, n.held);
		while (READ_ONCE(n.released) != n.held || READ_ONCE(n.done) != n.wanted)
			usleep(100);
		huge_after += !ret && levels_now(g).huge > NR_BLOCKS - 1;
		ASSERT_WORKS(convert(g->fd, NEAR_CONVERTED, 1, GMEM_PRIVATE));
		ASSERT_WORKS(convert(g->fd, NEAR_CONVERTED, 1, GMEM_SHARED));
	}
	WRITE_ONCE(n.over, true);
	kvm_pthread_join(worker, NULL);
	kvm_pthread_join(releaser, NULL);
	on_cpu(n.cpus[0], 0);
	TH_LOG("%lu rounds, at any of %lu us", rounds, ns / 1000);
	EXPECT_EQ(0, huge_after);

	EXPECT_EQ(g->violations, gmem_rmp_counter("violations"));
	EXPECT_EQ(0, gmem_rmp_verify());
	GUEST_FINDS(0, g->nr);
	EXPECT_LEVELS(g, 0, NR_BLOCKS, 0);
	close(n.h.pipe[0]);
	close(n.h.pipe[1]);
}

static void do_nothing(struct near *n)
{
}

TEST_F_TIMEOUT(race, fault_and_neighbour, LONG)
{
	race_near(_metadata, &self->g, do_nothing, fault_near);
}

TEST_F_TIMEOUT(race, recovery_and_neighbour, LONG)
{
	race_near(_metadata, &self->g, start_logging, stop_logging);
}
#endif /* __x86_64__ */

/* 1 GiB that is touched page by page, in blocks of either size. */
FIXTURE(gib)
{
	struct guest g;
	u64 free;
};

FIXTURE_VARIANT(gib)
{
	unsigned int type;
	bool giant;
};

FIXTURE_VARIANT_ADD(gib, huge)
{
	.type = VM_TYPE_DEFAULT,
};

FIXTURE_VARIANT_ADD(gib, giant)
{
	.type = VM_TYPE_DEFAULT,
	.giant = true,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(gib, giant_protected)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.giant = true,
};
#endif

/* One place of giant blocks: 1 GiB that is there, or SKIP() comes next. */
static bool gib_create(struct __test_metadata *_metadata, struct guest *g, unsigned int type)
{
	guest_create(g, type, MAPPABLE | INIT_SHARED, giant, giant);
	ASSERT_WORKS(bind_all(g, 0));
	if (!allocate(g->fd, per_giant / 2, 1)) {
		/* Not before: memory of the guest's is moved to make room. */
		guest_settle(_metadata, g);
		return true;
	}

	ASSERT_EQ(ENOMEM, errno);
	EXPECT_PRESENT(g->fd, 0);
	guest_destroy(_metadata, g);
	return false;
}

FIXTURE_SETUP(gib)
{
	struct guest *g = &self->g;

	if (!(vm_types() & BIT(variant->type)))
		SKIP(return, WHY_NO_TYPE);
	if (variant->giant && !giant)
		SKIP(return, WHY_NO_GIANT);
	if (!faults_init())
		SKIP(return, WHY_NO_TRACE);

	self->free = free_memory();
	if (variant->giant) {
		if (!gib_create(_metadata, g, variant->type))
			SKIP(faults_exit(); return, WHY_NO_MEMORY);
		return;
	}

	if (free_huge_blocks(-1) * huge < SZ_1G + SZ_256M)
		gmem_write_file("/proc/sys/vm/compact_memory", "1");
	if (free_huge_blocks(-1) * huge < SZ_1G + SZ_256M)
		SKIP(faults_exit(); return, "not enough huge blocks are free for 1 GiB");
	guest_create(g, variant->type, MAPPABLE | INIT_SHARED, huge, SZ_1G);
	ASSERT_WORKS(bind_all(g, 0));
	guest_settle(_metadata, g);
}

FIXTURE_TEARDOWN(gib)
{
	faults_exit();
	guest_destroy(_metadata, &self->g);
	EXPECT_FREE(self->free);
}

TEST_F_TIMEOUT(gib, every_page_once, LONG)
{
	struct guest *g = &self->g;
	const unsigned int nr_huge = variant->giant ? 0 : SZ_1G / huge;
	const unsigned int nr_giant = variant->giant ? 1 : 0;
	u64 *pfns = malloc(2 * g->nr * sizeof(*pfns));

	/* Huge blocks are allocated by the faults, a giant one was. */
	EXPECT_FAULTS(nr_huge + nr_giant, GUEST_FILLS(0, g->nr));
	EXPECT_LEVELS(g, nr_giant, nr_huge, 0);
	EXPECT_BLOCKS(g->fd, nr_huge + nr_giant, 0, 0);
	EXPECT_PRESENT(g->fd, g->nr);
	EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
	host_finds(_metadata, g->mem, 0, g->nr);
	gmem_pfns(g->mem, g->nr, pfns);
	expect_block_at(_metadata, g->mem, g->block / page_size);

	/* As private memory: what hardware owns is 2 MiB at most, if it owns any. */
	ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_PRIVATE));
	if (g->protected) {
		EXPECT_LEVELS(g, 0, 0, 0);
		EXPECT_FAULTS(g->rmp ? per_giant / per_huge : 1, GUEST_FINDS(0, g->nr));
		EXPECT_LEVELS(g, !g->rmp, g->rmp ? per_giant / per_huge : 0, 0);
	} else {
		EXPECT_LEVELS(g, nr_giant, nr_huge, 0);
		EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));
	}
	all_shared(_metadata, g);
	EXPECT_FAULTS(g->protected ? nr_huge + nr_giant : 0, GUEST_FINDS(0, g->nr));
	EXPECT_LEVELS(g, nr_giant, nr_huge, 0);
	host_finds(_metadata, g->mem, 0, g->nr);
	gmem_pfns(g->mem, g->nr, pfns + g->nr);
	EXPECT_EQ(0, memcmp(pfns, pfns + g->nr, g->nr * sizeof(*pfns)));
	free(pfns);
}

/* A giant block and what happens to a part of it.  Each case has but one. */
FIXTURE(giant)
{
	struct guest g;
	u64 free;
};

FIXTURE_VARIANT(giant)
{
	unsigned int type;
};

FIXTURE_VARIANT_ADD(giant, ordinary)
{
	.type = VM_TYPE_DEFAULT,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(giant, protected)
{
	.type = KVM_X86_SW_PROTECTED_VM,
};
#endif

FIXTURE_SETUP(giant)
{
	if (!(vm_types() & BIT(variant->type)))
		SKIP(return, WHY_NO_TYPE);
	if (!giant)
		SKIP(return, WHY_NO_GIANT);
	if (!faults_init())
		SKIP(return, WHY_NO_TRACE);
	self->free = free_memory();
	if (!gib_create(_metadata, &self->g, variant->type))
		SKIP(faults_exit(); return, WHY_NO_MEMORY);
}

FIXTURE_TEARDOWN(giant)
{
	faults_exit();
	guest_destroy(_metadata, &self->g);
	EXPECT_FREE(self->free);
}

/* A page of each huge part, and each page of the one around @page. */
static void guest_looks(struct __test_metadata *_metadata, struct guest *g, unsigned int page)
{
	guest_checks(_metadata, g, 0, g->nr / per_huge, per_huge, TOKEN, per_huge);
	GUEST_FINDS(page / per_huge * per_huge, per_huge);
}

#define GUEST_LOOKS(page)	guest_looks(_metadata, g, page)

/* Address and memslot are nothing to the block but for their alignment. */
TEST_F_TIMEOUT(giant, addresses_and_memslots, LONG)
{
	static const enum address addresses[] = { OF_FILE, OTHER, HOLE, PARTS };
	struct guest *g = &self->g;
	const unsigned int p = per_huge, n = g->nr / p;
	unsigned int i;
	u8 *decoy;

	GUEST_FILLS(0, g->nr);
	EXPECT_LEVELS(g, 1, 0, 0);
	for (i = 0; i < ARRAY_SIZE(addresses); i++) {
		TH_LOG("%s", address_names[addresses[i]]);
		ASSERT_WORKS(unbind(g, SLOT));
		decoy = make_address(g, addresses[i]);
		ASSERT_WORKS(bind_all(g, 0));
		guest_settle(_metadata, g);
		EXPECT_FAULTS(1, GUEST_LOOKS(7));
		EXPECT_LEVELS(g, 1, 0, 0);
		if (addresses[i] == OTHER)
			EXPECT_TRUE(is_untouched(g, decoy));
		if (addresses[i] != HOLE)
			EXPECT_WORKS(munmap(decoy, 2 * g->size));
		EXPECT_FAULTS(0, GUEST_LOOKS(g->nr - 1));
	}
	g->hva = NULL;

	const struct {
		unsigned int at, first, nr;
		struct levels want;
	} rows[] = {
		{ per_giant, 0, g->nr, { 1, 0, 0 } },
		{ p, 0, g->nr, { 0, n, 0 } },
		{ 0, p, g->nr - p, { 0, n - 1, 0 } },
		{ 0, 0, g->nr / 2, { 0, n / 2, 0 } },
		{ 0, 0, g->nr - 1, { 0, n - 1, p - 1 } },
		{ 5 * p + 1, 5 * p + 1, 2 * p, { 0, 1, p } },
		{ p / 2, 0, 2 * p, { 0, 0, 2 * p } },
	};

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		TH_LOG("at %u: pages %u, %u", rows[i].at, rows[i].first, rows[i].nr);
		ASSERT_WORKS(unbind(g, SLOT));
		ASSERT_WORKS(bind(g, SLOT, 0, rows[i].at, rows[i].first, rows[i].nr));
		guest_settle(_metadata, g);
		EXPECT_FAULTS(rows[i].want.giant + rows[i].want.huge + rows[i].want.small,
			      GUEST_FINDS_AT(rows[i].at, rows[i].first, rows[i].nr));
		EXPECT_LEVELS(g, rows[i].want.giant, rows[i].want.huge, rows[i].want.small);
	}
	EXPECT_BLOCKS(g->fd, 1, 0, 0);
}

/* Convert a page: only the huge part around it is mapped small, if it counts at all. */
TEST_F_TIMEOUT(giant, convert_one_page, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge, n = g->nr / p, page = 100 * p + 7;
	u64 pfn;

	GUEST_FILLS(0, g->nr);
	EXPECT_EQ(TOKEN + page, READ_ONCE(*word_at(g->mem, page)));
	pfn = gmem_pfn(g->mem + offset_of(page));
	EXPECT_LEVELS(g, 1, 0, 0);

	ASSERT_WORKS(convert(g->fd, page, 1, GMEM_PRIVATE));
	if (!g->protected) {
		EXPECT_LEVELS(g, 1, 0, 0);
		EXPECT_FAULTS(0, GUEST_LOOKS(page));
		ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_PRIVATE));
		ASSERT_WORKS(convert(g->fd, page, 1, GMEM_SHARED));
		EXPECT_LEVELS(g, 1, 0, 0);
		EXPECT_FAULTS(0, GUEST_LOOKS(page));
		EXPECT_BLOCKS(g->fd, 1, 0, 0);
		EXPECT_EQ(TOKEN + page, READ_ONCE(*word_at(g->mem, page)));
		EXPECT_EQ(pfn, gmem_pfn(g->mem + offset_of(page)));
		return;
	}

	EXPECT_LEVELS(g, 0, 0, 0);
	EXPECT_FAULTS(n - 1 + p, GUEST_LOOKS(page));
	EXPECT_LEVELS(g, 0, n - 1, p);
	EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));

	/* Back: the next fault there is for all of it. */
	ASSERT_WORKS(convert(g->fd, page, 1, GMEM_SHARED));
	EXPECT_LEVELS(g, 0, n - 1, p - 1);
	EXPECT_FAULTS(1, GUEST_LOOKS(page));
	EXPECT_LEVELS(g, 1, 0, 0);
	EXPECT_BLOCKS(g->fd, 1, 0, 0);
	EXPECT_EQ(TOKEN + page, READ_ONCE(*word_at(g->mem, page)));
	EXPECT_EQ(pfn, gmem_pfn(g->mem + offset_of(page)));

	/* Recovery has no fault to wait for. */
	ASSERT_WORKS(convert(g->fd, page, 1, GMEM_PRIVATE));
	GUEST_LOOKS(page);
	ASSERT_WORKS(convert(g->fd, page, 1, GMEM_SHARED));
	EXPECT_LEVELS(g, 0, n - 1, p - 1);
	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	ASSERT_WORKS(bind_all(g, 0));
	EXPECT_LEVELS(g, 1, 0, 0);
	EXPECT_FAULTS(0, GUEST_LOOKS(page));

	/* A shared page in private memory. */
	ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_PRIVATE));
	GUEST_LOOKS(0);
	EXPECT_LEVELS(g, !g->rmp, g->rmp ? n : 0, 0);
	ASSERT_WORKS(convert(g->fd, page, 1, GMEM_SHARED));
	EXPECT_LEVELS(g, 0, g->rmp ? n - 1 : 0, 0);
	EXPECT_FAULTS(g->rmp ? p : n - 1 + p, GUEST_LOOKS(page));
	EXPECT_LEVELS(g, 0, n - 1, p);
	EXPECT_EQ(TOKEN + page, READ_ONCE(*word_at(g->mem, page)));
	EXPECT_EQ(pfn, gmem_pfn(g->mem + offset_of(page)));
	ASSERT_WORKS(convert(g->fd, page, 1, GMEM_PRIVATE));
	EXPECT_FAULTS(1, GUEST_LOOKS(page));
	EXPECT_LEVELS(g, !g->rmp, g->rmp ? n : 0, 0);
	GUEST_FINDS(0, g->nr);
}

TEST_F_TIMEOUT(giant, dirty_log, LONG)
{
	struct guest *g = &self->g;
	unsigned long *map = calloc(g->nr / BITS_PER_LONG, sizeof(long));
	const unsigned int p = per_huge, n = g->nr / p;

	if (g->protected)
		ASSERT_WORKS(convert(g->fd, 0, g->nr, GMEM_PRIVATE));
	GUEST_FILLS(0, g->nr);
	ASSERT_WORKS(bind_all(g, KVM_MEM_LOG_DIRTY_PAGES));
	if (g->eager)
		EXPECT_LEVELS(g, 0, 0, g->nr);

	/* One page of each huge part, and one such part. */
	ASSERT_EQ(0, gmem_guest_fill(g->vcpu, GPA, n, huge, TOKEN + 1));
	GUEST_FILLS(5 * p, p);
	if (g->tdp)
		EXPECT_LEVELS(g, 0, 0, g->eager ? g->nr : n - 1 + p);
	kvm_vm_get_dirty_log(g->vm, SLOT, map);
	EXPECT_EQ(n - 1 + p, nr_bits(map, g->nr));
	EXPECT_BLOCKS(g->fd, 1, 0, 0);
	free(map);

	ASSERT_WORKS(bind_all(g, 0));
	if (g->tdp) {
		EXPECT_LEVELS(g, !g->rmp, g->rmp ? n : 0, 0);
		EXPECT_FAULTS(0, GUEST_FINDS(5 * p, p));
		EXPECT_FAULTS(0, GUEST_FINDS(9 * p + 1, p - 1));
		GUEST_FILLS(0, g->nr);
	} else {
		EXPECT_FAULTS(1, GUEST_FILLS(0, g->nr));
	}
	EXPECT_LEVELS(g, !g->rmp, g->rmp ? n : 0, 0);
	EXPECT_FAULTS(0, GUEST_FILLS(5 * p, p));
	GUEST_FINDS(0, g->nr);
}

/* A hole, and a broken page: the parts that have neither stay huge. */
TEST_F_TIMEOUT(giant, damage, LONG)
{
	struct guest *g = &self->g;
	const unsigned int p = per_huge, n = g->nr / p, hole = 7 * p + 100, bad = 300 * p + 1;
	bool errors = may_break_memory();
	u64 pfn;

	GUEST_FILLS(0, g->nr);
	ASSERT_WORKS(punch(g->fd, hole, 1));
	EXPECT_BLOCKS(g->fd, 0, 1, 0);
	EXPECT_PRESENT(g->fd, g->nr - 1);
	EXPECT_LEVELS(g, 0, 0, 0);
	EXPECT_FAULTS(1, GUEST_FINDS_ZEROES(hole, 1));
	EXPECT_PRESENT(g->fd, g->nr);
	EXPECT_BLOCKS(g->fd, 0, 1, 0);
	GUEST_FILLS(hole, 1);
	EXPECT_FAULTS(n - 1 + p - 1, GUEST_LOOKS(hole));
	EXPECT_LEVELS(g, 0, n - 1, p);
	EXPECT_FAULTS(0, GUEST_FINDS(0, g->nr));

	if (errors) {
		EXPECT_EQ(TOKEN + bad, READ_ONCE(*word_at(g->mem, bad)));
		pfn = gmem_pfn(g->mem + offset_of(bad));
		ASSERT_NE(0, pfn);
		ASSERT_EQ(0, gmem_break_pfn(pfn));
		EXPECT_LEVELS(g, 0, n - 2, p);
		guest_checks(_metadata, g, 0, n, p, TOKEN, p);
		GUEST_FINDS(300 * p, 1);
		GUEST_FINDS(bad + 1, p - 2);
		EXPECT_LEVELS(g, 0, n - 2, 2 * p - 1);
		EXPECT_EQ(1, gmem_fdinfo_val(g->fd, "gmem-poisoned"));
		GUEST_FINDS(bad + p, g->nr - bad - p);
		EXPECT_LEVELS(g, 0, n - 2, 2 * p - 1);
	}

	/* All of the rest is given back when the file goes, see the teardown. */
	guest_close(g);
	if (errors)
		EXPECT_EQ(0, gmem_unpoison(pfn));
	EXPECT_FREE(self->free);
	ASSERT_WORKS(unbind(g, SLOT));
	g->block = huge;
	g->size = huge;
	guest_open(g);

	if (!errors)
		SKIP(return, "no memory errors: " WHY_NO_ERRORS);
}

/* Where there is not enough memory, or not of the right kind. */
FIXTURE(memory)
{
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 free;
};

FIXTURE_SETUP(memory)
{
	self->vm = __vm_create_shape_with_one_vcpu(VM_SHAPE_DEFAULT, &self->vcpu, 512,
						   gmem_guest_code);
	gmem_catch_sigbus();
	map_window(self->vm);
	self->free = free_memory();
}

/* Fail allocations of this size, of the current task and no other. */
#define FAIL_PAGES	"/sys/kernel/debug/fail_page_alloc/"

static bool fail_huge_pages(bool fail)
{
	char order[16];

	snprintf(order, sizeof(order), "%d", fail ? __builtin_ctz(per_huge) : 1);
	return !gmem_write_file(FAIL_PAGES "probability", "0") &&
	       !gmem_write_file(FAIL_PAGES "min-order", order) &&
	       !gmem_write_file(FAIL_PAGES "ignore-gfp-wait", fail ? "N" : "Y") &&
	       !gmem_write_file(FAIL_PAGES "ignore-gfp-highmem", fail ? "N" : "Y") &&
	       !gmem_write_file(FAIL_PAGES "task-filter", fail ? "Y" : "N") &&
	       !gmem_write_file(FAIL_PAGES "interval", "1") &&
	       !gmem_write_file(FAIL_PAGES "space", "0") &&
	       !gmem_write_file(FAIL_PAGES "times", "-1") &&
	       !gmem_write_file(FAIL_PAGES "verbose", "0") &&
	       !gmem_write_file("/proc/self/make-it-fail", fail ? "1" : "0") &&
	       !gmem_write_file(FAIL_PAGES "probability", fail ? "100" : "0");
}

FIXTURE_TEARDOWN(memory)
{
	fail_huge_pages(false);
	EXPECT_FREE(self->free);
	kvm_vm_free(self->vm);
}

/* Base pages take the place of a huge block, as many as are asked for. */
TEST_F_TIMEOUT(memory, fallback, LONG)
{
	const unsigned int p = per_huge;
	const u64 size = NR_BLOCKS * huge;
	unsigned int i;
	u8 *mem;
	int fd;

	if (!fail_huge_pages(false))
		SKIP(return, "needs CONFIG_FAIL_PAGE_ALLOC, CONFIG_FAULT_INJECTION_DEBUG_FS");

	fd = vm_create_guest_memfd(self->vm, size, MAPPABLE | INIT_SHARED | block_flag(huge));
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, size,
						  NULL, fd, 0));
	ASSERT_WORKS(allocate(fd, 0, p));
	EXPECT_BLOCKS(fd, 1, 0, 0);

	/* By a user, by the guest, and by the file. */
	ASSERT_TRUE(fail_huge_pages(true));
	EXPECT_EQ(0, gmem_touch_write(mem + offset_of(p + 3), 1));
	EXPECT_BLOCKS(fd, 1, 0, 1);
	EXPECT_PRESENT(fd, p + 1);
	EXPECT_GUEST_WRITES(self->vcpu, GPA + offset_of(2 * p + 3), 1);
	EXPECT_BLOCKS(fd, 1, 0, 2);
	EXPECT_PRESENT(fd, p + 2);
	EXPECT_WORKS(allocate(fd, 3 * p + 3, 5));
	EXPECT_BLOCKS(fd, 1, 0, 3);
	EXPECT_PRESENT(fd, p + 7);

	/* There is no other block for a place that has pages. */
	ASSERT_TRUE(fail_huge_pages(false));
	EXPECT_WORKS(allocate(fd, 0, 2 * p));
	EXPECT_BLOCKS(fd, 1, 0, 3);
	EXPECT_PRESENT(fd, 2 * p + 6);
	for (i = 0; i < NR_BLOCKS * p; i++) {
		EXPECT_GUEST_WRITES(self->vcpu, GPA + offset_of(i), TOKEN + i);
		if (i % p == 16)
			i += p - 32;
	}
	for (i = 0; i < NR_BLOCKS * p; i++) {
		EXPECT_EQ(TOKEN + i, READ_ONCE(*word_at(mem, i)));
		if (i % p == 16)
			i += p - 32;
	}
	EXPECT_BLOCKS(fd, 1, 0, 3);
	EXPECT_WORKS(convert(fd, 0, NR_BLOCKS * p, GMEM_PRIVATE));
	EXPECT_WORKS(convert(fd, 0, NR_BLOCKS * p, GMEM_SHARED));
	EXPECT_EQ(TOKEN + p, READ_ONCE(*word_at(mem, p)));

	/* A new start. */
	EXPECT_WORKS(punch(fd, p, p));
	EXPECT_BLOCKS(fd, 1, 0, 2);
	EXPECT_WORKS(allocate(fd, p, 1));
	EXPECT_BLOCKS(fd, 2, 0, 2);
	host_finds_zeroes(_metadata, mem, p, p);
	EXPECT_WORKS(punch(fd, 0, NR_BLOCKS * p));
	EXPECT_WORKS(allocate(fd, 0, NR_BLOCKS * p));
	EXPECT_BLOCKS(fd, NR_BLOCKS, 0, 0);

	/* All of it by the file, again and again. */
	ASSERT_TRUE(fail_huge_pages(true));
	for (i = 0; i < 5; i++) {
		EXPECT_WORKS(punch(fd, 0, NR_BLOCKS * p));
		EXPECT_WORKS(allocate(fd, 0, NR_BLOCKS * p));
		EXPECT_BLOCKS(fd, 0, 0, NR_BLOCKS);
		EXPECT_PRESENT(fd, NR_BLOCKS * p);
	}
	ASSERT_TRUE(fail_huge_pages(false));
	kvm_munmap(mem, size);
	close(fd);
}

static u64 node_free(int node)
{
	char path[80], line[128];
	u64 size = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	f = fopen(path, "r");
	TEST_ASSERT(f, "%s: errno %d", path, errno);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Node %*d MemFree: %lu kB", &size) == 1)
			break;
	fclose(f);
	return size * SZ_1K;
}

/* A file whose memory is all to be on @node. */
static int file_on_node(struct kvm_vm *vm, u64 size, u64 flags, int node, u8 **mem)
{
	const unsigned long mask = BIT(node);
	int fd = vm_create_guest_memfd(vm, size, MAPPABLE | INIT_SHARED | flags);

	*mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	TEST_ASSERT(!mbind(*mem, size, MPOL_BIND, &mask, BITS_PER_LONG, 0), "mbind() failed");
	return fd;
}

#define FRAGMENT	16	/* pages */
#define NR_FRAGMENTED	64	/* blocks */

/* The node that takes the least effort to fill, among those that are large enough. */
static int pick_node(u64 min_free)
{
	int node, picked = -1;

	for (node = 0; node <= get_max_numa_node(); node++)
		if (node_free(node) >= min_free &&
		    (picked < 0 || node_free(node) < node_free(picked)))
			picked = node;
	return picked;
}

/* A file of base pages that takes all of a node and returns a half: it cannot be moved. */
struct filler {
	int fd;
	u64 size;
	u8 *mem;
};

/* Of what is returned, @nr blocks could be put together, and more. */
static void filler_open(struct __test_metadata *_metadata, struct kvm_vm *vm, struct filler *f,
			int node, unsigned int nr)
{
	unsigned int pages, i;

	f->size = (node_free(node) - SZ_64M) & ~(u64)(huge - 1);
	f->fd = file_on_node(vm, f->size, 0, node, &f->mem);
	ASSERT_WORKS(fallocate(f->fd, GMEM_ALLOC, 0, f->size));
	pages = min(f->size, 3 * nr * huge) / page_size;
	for (i = 0; i + FRAGMENT <= pages; i += 2 * FRAGMENT)
		ASSERT_WORKS(punch(f->fd, i, FRAGMENT));
	ASSERT_GT(nr, free_huge_blocks(node)) TH_LOG("node %d is not in fragments", node);
}

static void filler_close(struct filler *f)
{
	kvm_munmap(f->mem, f->size);
	close(f->fd);
}

/* Memory in fragments: a vCPU gets what there is, and does not stop to put it together. */
TEST_F_TIMEOUT(memory, fragmented, LONG)
{
	const u64 size = NR_FRAGMENTED * huge;
	u64 stalls, whole, fallback, bad;
	struct filler filler;
	unsigned int nr;
	int node, fd;
	u8 *mem;

	if (!is_multi_numa_node_system())
		SKIP(return, "needs two NUMA nodes");
	node = pick_node(4 * size);
	if (node < 0)
		SKIP(return, "no NUMA node has enough free memory");

	filler_open(_metadata, self->vm, &filler, node, NR_FRAGMENTED);

	fd = file_on_node(self->vm, size, block_flag(huge), node, &mem);
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, size,
						  NULL, fd, 0));
	EXPECT_GUEST_READS(0, self->vcpu, GPA + size - page_size);
	nr = size / page_size / FRAGMENT;
	stalls = sum_vmstat("compact_stall") + sum_vmstat("allocstall");
	ASSERT_EQ(0, gmem_guest_fill(self->vcpu, GPA, nr, offset_of(FRAGMENT), TOKEN));
	EXPECT_EQ(stalls, sum_vmstat("compact_stall") + sum_vmstat("allocstall"));
	ASSERT_EQ(0, gmem_guest_check(self->vcpu, GPA, nr, offset_of(FRAGMENT), TOKEN, 1, &bad));
	EXPECT_EQ(0, bad);

	whole = gmem_fdinfo_val(fd, "gmem-blocks-whole");
	fallback = gmem_fdinfo_val(fd, "gmem-blocks-fallback");
	TH_LOG("%lu blocks, %lu places without one", whole, fallback);
	EXPECT_LT(0, fallback);
	EXPECT_EQ(NR_FRAGMENTED, whole + fallback);
	EXPECT_EQ(0, gmem_fdinfo_val(fd, "gmem-blocks-broken"));

	kvm_munmap(mem, size);
	close(fd);
	filler_close(&filler);
}

/* Blocks are where the policy of their place says, whoever asks for them. */
TEST_F_TIMEOUT(memory, numa_policy, LONG)
{
	const u64 size = NR_BLOCKS * huge;
	const unsigned int p = per_huge;
	unsigned int round, i, j;
	unsigned long mask;
	void *pages[NR_BLOCKS * 4];
	int status[NR_BLOCKS * 4], fd;
	u8 *mem;

	if (!is_multi_numa_node_system())
		SKIP(return, "needs two NUMA nodes");

	fd = vm_create_guest_memfd(self->vm, size, MAPPABLE | INIT_SHARED | block_flag(huge));
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (i = 0; i < NR_BLOCKS; i++) {
		pages[4 * i] = mem + i * huge;
		pages[4 * i + 1] = mem + i * huge + page_size;
		pages[4 * i + 2] = mem + i * huge + huge / 2;
		pages[4 * i + 3] = mem + (i + 1) * huge - page_size;
	}

	for (round = 0; round < 4; round++) {
		for (i = 0; i < NR_BLOCKS; i++) {
			mask = BIT((i + round) % 2);
			ASSERT_WORKS(mbind(mem + i * huge, huge, MPOL_BIND, &mask, BITS_PER_LONG,
					   0));
		}
		if (round == 3) {
			/* By turns: a block is one turn. */
			mask = BIT(0) | BIT(1);
			ASSERT_WORKS(mbind(mem, size, MPOL_INTERLEAVE, &mask, BITS_PER_LONG, 0));
		}

		/* Half by the file, half by faults; from its last page, too. */
		ASSERT_WORKS(allocate(fd, p - 1, p + 1));
		for (i = NR_BLOCKS * p; i-- > 0; )
			ASSERT_EQ(0, gmem_touch_write(mem + offset_of(i), 1));
		EXPECT_BLOCKS(fd, NR_BLOCKS, 0, 0);
		ASSERT_WORKS(move_pages(0, ARRAY_SIZE(pages), pages, NULL, status, 0));
		for (i = 0; i < NR_BLOCKS; i++) {
			for (j = 0; j < 4; j++)
				EXPECT_EQ(round == 3 ? status[4 * i] : (i + round) % 2,
					  status[4 * i + j]) TH_LOG("block %u", i);
			if (round == 3 && i)
				EXPECT_NE(status[4 * i - 4], status[4 * i]) TH_LOG("block %u", i);
		}
		ASSERT_WORKS(punch(fd, 0, NR_BLOCKS * p));
	}
	kvm_munmap(mem, size);
	close(fd);
}

static int current_node(void)
{
	unsigned int node;

	TEST_ASSERT(!syscall(__NR_getcpu, NULL, &node, NULL), "getcpu() failed");
	return node;
}

/*
 * Run on an allowed CPU that is on @node, or on none of its CPUs, as @near says: where
 * memory is wanted from can depend on it.  False if there is no such CPU.
 */
static bool run_near(const cpu_set_t *allowed, int node, bool near)
{
	int cpu;

	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, allowed))
			continue;
		on_cpu(cpu, SCHED_OTHER);
		if ((current_node() == node) == near)
			return true;
	}
	return false;
}

/* Where the page at @addr is, which has been touched. */
static int node_of(void *addr)
{
	int status;

	TEST_ASSERT(!move_pages(0, 1, &addr, NULL, &status, 0), "move_pages() failed");
	return status;
}

#define NR_PREFER	8	/* blocks */

struct prefer {
	int fd;
	u8 *mem;
	u64 block;
	unsigned int nr;	/* blocks */
};

static void prefer_open(struct kvm_vm *vm, struct prefer *f, u64 block, unsigned int nr)
{
	f->block = block;
	f->nr = nr;
	f->fd = vm_create_guest_memfd(vm, nr * block, MAPPABLE | INIT_SHARED | block_flag(block));
	f->mem = kvm_mmap(nr * block, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
}

static void prefer_close(struct prefer *f)
{
	kvm_munmap(f->mem, f->nr * f->block);
	close(f->fd);
}

/*
 * Let the file get its memory, preferably from the nodes of @mask, by a fault in each
 * block or all at once.  The value is how many of the blocks, or of the pages that stand
 * in for one, are on @node.
 */
static unsigned int prefer(struct __test_metadata *_metadata, struct prefer *f,
			   unsigned long mask, bool fault, int node)
{
	unsigned int i, nr = 0;

	EXPECT_WORKS(punch(f->fd, 0, f->nr * f->block / page_size));
	EXPECT_WORKS(mbind(f->mem, f->nr * f->block, MPOL_PREFERRED_MANY, &mask, BITS_PER_LONG,
			   0));
	if (!fault)
		EXPECT_WORKS(allocate(f->fd, 0, f->nr * f->block / page_size));
	for (i = 0; i < f->nr; i++) {
		EXPECT_EQ(0, gmem_touch_write(f->mem + i * f->block + f->block / 2, 1));
		nr += node_of(f->mem + i * f->block + f->block / 2) == node;
	}
	return nr;
}

/* All of it is blocks, and on @node. */
static void expect_preferred(struct __test_metadata *_metadata, struct prefer *f, int line,
			     unsigned long mask, int node)
{
	unsigned int nr;
	int fault;

	for (fault = 0; fault < 2; fault++) {
		nr = prefer(_metadata, f, mask, fault, node);
		EXPECT_EQ(f->nr, nr) TH_LOG("line %d: %s, on CPUs of node %d, node %d", line,
					    fault ? "faults" : "fallocate()", current_node(), node);
		expect_blocks(_metadata, f->fd, line, f->nr, 0, 0);
	}
}

#define EXPECT_PREFERRED(f, mask, node)	expect_preferred(_metadata, f, __LINE__, mask, node)

/* Where there is memory on a node that is preferred, it is from there. */
TEST_F_TIMEOUT(memory, preferred_many, LONG)
{
	const unsigned long both = BIT(0) | BIT(1);
	cpu_set_t allowed;
	unsigned int i;
	struct prefer f;
	int node;

	if (!is_multi_numa_node_system())
		SKIP(return, "needs two NUMA nodes");
	ASSERT_EQ(0, sched_getaffinity(0, sizeof(allowed), &allowed));
	prefer_open(self->vm, &f, huge, NR_PREFER);

	/* From afar, and from next to it.  Of two, it is the one that is near. */
	for (node = 0; node < 2; node++) {
		if (run_near(&allowed, node, false))
			EXPECT_PREFERRED(&f, BIT(node), node);
		if (run_near(&allowed, node, true)) {
			EXPECT_PREFERRED(&f, BIT(node), node);
			EXPECT_PREFERRED(&f, both, node);
		}
	}

	/* Or the one that is called its home. */
	for (node = 0; node < 2; node++) {
		EXPECT_WORKS(punch(f.fd, 0, NR_PREFER * per_huge));
		EXPECT_WORKS(mbind(f.mem, NR_PREFER * huge, MPOL_PREFERRED_MANY, &both,
				   BITS_PER_LONG, 0));
		EXPECT_WORKS(set_mempolicy_home_node((unsigned long)f.mem, NR_PREFER * huge, node,
						     0));
		for (i = 0; i < NR_PREFER; i++) {
			EXPECT_EQ(0, gmem_touch_write(f.mem + i * huge, 1));
			EXPECT_EQ(node, node_of(f.mem + i * huge)) TH_LOG("block %u", i);
		}
		EXPECT_BLOCKS(f.fd, NR_PREFER, 0, 0);
	}
	prefer_close(&f);
}

/* Take what blocks @node has left, as far as this CPU can have them. */
static void use_up(struct __test_metadata *_metadata, struct prefer *f, int node)
{
	const u64 fallback = gmem_fdinfo_val(f->fd, "gmem-blocks-fallback");
	const unsigned long mask = BIT(node);
	unsigned int i;

	ASSERT_WORKS(mbind(f->mem, f->nr * f->block, MPOL_BIND, &mask, BITS_PER_LONG, 0));
	for (i = 0; i < f->nr; i++) {
		ASSERT_EQ(0, gmem_touch_write(f->mem + i * f->block, 1));
		if (gmem_fdinfo_val(f->fd, "gmem-blocks-fallback") > fallback)
			return;
	}
	ASSERT_TRUE(false) TH_LOG("node %d has more and more blocks", node);
}

/*
 * Where @node, and no other, is in fragments: blocks are from elsewhere, and nobody stops to
 * put some together.  But a CPU that takes a fault gets base pages from a node that is
 * preferred, and near, rather than a block from afar.  What others free meanwhile may make
 * a block or two.
 */
static void prefer_fragments(struct __test_metadata *_metadata, struct kvm_vm *vm,
			     const cpu_set_t *allowed, int node)
{
	const unsigned int enough = NR_PREFER * 3 / 4;
	struct prefer f, rest;
	struct filler filler;
	u64 stalls;

	filler_open(_metadata, vm, &filler, node, NR_FRAGMENTED);
	prefer_open(vm, &rest, huge, NR_FRAGMENTED);
	prefer_open(vm, &f, huge, NR_PREFER);

	if (run_near(allowed, node, false)) {
		use_up(_metadata, &rest, node);
		stalls = sum_vmstat("compact_stall") + sum_vmstat("allocstall");
		EXPECT_LE(enough, prefer(_metadata, &f, BIT(node), false, !node));
		EXPECT_BLOCKS(f.fd, NR_PREFER, 0, 0);
		EXPECT_LE(enough, prefer(_metadata, &f, BIT(node), true, !node));
		EXPECT_BLOCKS(f.fd, NR_PREFER, 0, 0);
		EXPECT_EQ(stalls, sum_vmstat("compact_stall") + sum_vmstat("allocstall"));
	}
	if (run_near(allowed, node, true)) {
		use_up(_metadata, &rest, node);
		stalls = sum_vmstat("compact_stall") + sum_vmstat("allocstall");
		EXPECT_LE(enough, prefer(_metadata, &f, BIT(node), false, !node));
		EXPECT_BLOCKS(f.fd, NR_PREFER, 0, 0);
		EXPECT_LE(enough, prefer(_metadata, &f, BIT(0) | BIT(1), true, !node));
		EXPECT_BLOCKS(f.fd, NR_PREFER, 0, 0);
		EXPECT_LE(enough, prefer(_metadata, &f, BIT(node), true, node));
		EXPECT_LE(enough, gmem_fdinfo_val(f.fd, "gmem-blocks-fallback"));
		EXPECT_EQ(stalls, sum_vmstat("compact_stall") + sum_vmstat("allocstall"));
	}

	prefer_close(&f);
	prefer_close(&rest);
	filler_close(&filler);
}

/* One node after the other: all CPUs may be on one of them. */
TEST_F_TIMEOUT(memory, preferred_many_fragmented, LONG)
{
	const u64 size = 4 * NR_FRAGMENTED * huge;
	cpu_set_t allowed;
	int node;

	if (!is_multi_numa_node_system())
		SKIP(return, "needs two NUMA nodes");
	if (node_free(0) < size || node_free(1) < size)
		SKIP(return, "no two NUMA nodes have enough free memory");
	ASSERT_EQ(0, sched_getaffinity(0, sizeof(allowed), &allowed));
	for (node = 0; node < 2; node++)
		prefer_fragments(_metadata, self->vm, &allowed, node);
}

/* Is there a giant block on a node? */
static bool has_giant(struct __test_metadata *_metadata, struct prefer *f, int node)
{
	const unsigned long mask = BIT(node);
	int ret;

	ASSERT_WORKS(mbind(f->mem, giant, MPOL_BIND, &mask, BITS_PER_LONG, 0));
	ret = allocate(f->fd, 0, 1);
	if (ret) {
		ASSERT_EQ(ENOMEM, errno);
		return false;
	}
	ASSERT_WORKS(punch(f->fd, 0, per_giant));
	return true;
}

/* Giant blocks are from where they are preferred, and from elsewhere if need be. */
TEST_F_TIMEOUT(memory, preferred_many_giant, LONG)
{
	struct filler filler;
	cpu_set_t allowed;
	struct prefer f;
	int node, found = 0;	/* a bit for each node */

	if (!giant)
		SKIP(return, WHY_NO_GIANT);
	if (!is_multi_numa_node_system())
		SKIP(return, "needs two NUMA nodes");
	ASSERT_EQ(0, sched_getaffinity(0, sizeof(allowed), &allowed));
	prefer_open(self->vm, &f, giant, 1);
	for (node = 0; node < 2; node++) {
		if (!has_giant(_metadata, &f, node))
			continue;
		if (!run_near(&allowed, node, false))
			ASSERT_TRUE(run_near(&allowed, node, true));
		EXPECT_EQ(1, prefer(_metadata, &f, BIT(node), false, node));
		EXPECT_BLOCKS(f.fd, 1, 0, 0);
		found |= BIT(node);
	}
	ASSERT_WORKS(punch(f.fd, 0, per_giant));

	node = pick_node(4 * NR_FRAGMENTED * huge);
	if (node >= 0 && node < 2 && found & BIT(!node)) {
		filler_open(_metadata, self->vm, &filler, node, NR_FRAGMENTED);
		EXPECT_EQ(1, prefer(_metadata, &f, BIT(node), false, !node));
		EXPECT_BLOCKS(f.fd, 1, 0, 0);
		filler_close(&filler);
	}
	prefer_close(&f);
	if (!found)
		SKIP(return, WHY_NO_MEMORY);
}

static void leave_cgroup(struct __test_metadata *_metadata, char *root, char *group)
{
	EXPECT_EQ(0, cg_read_key_long(group, "memory.events", "oom_kill "));
	EXPECT_WORKS(cg_enter_current(root));
	EXPECT_WORKS(cg_destroy(group));
	free(group);
}

/* The limit of a memory cgroup that a block would exceed. */
TEST_F_TIMEOUT(memory, cgroup_huge, LONG)
{
	const u64 size = 2 * huge;
	const long slack = huge / 3;	/* half of a block would not get through */
	const unsigned int p = per_huge;
	char root[PATH_MAX], *group;
	long before, charged;
	unsigned int i;
	int fd;

	group = gmem_enter_cgroup("gmem_block_test", root, sizeof(root));
	if (!group)
		SKIP(return, "no cgroup2 with a memory controller (CONFIG_MEMCG, mount)");

	fd = vm_create_guest_memfd(self->vm, size, MAPPABLE | INIT_SHARED | block_flag(huge));
	before = cg_read_long(group, "memory.current");
	ASSERT_WORKS(allocate(fd, 0, p));
	charged = cg_read_long(group, "memory.current") - before;
	EXPECT_LE((long)huge - slack, charged);
	EXPECT_GE((long)huge + slack, charged);

	/* Half of another: nothing of it stays, however often, and a page will do. */
	ASSERT_WORKS(cg_write_numeric(group, "memory.max", before + charged + huge / 2));
	for (i = 0; i < 8; i++) {
		EXPECT_WORKS(allocate(fd, p + i, 1));
		EXPECT_BLOCKS(fd, 1, 0, 1);
		EXPECT_PRESENT(fd, p + 1);
		EXPECT_GE((long)huge + slack, cg_read_long(group, "memory.current") - before);
		EXPECT_WORKS(punch(fd, p, p));
		EXPECT_BLOCKS(fd, 1, 0, 0);
	}
	EXPECT_GE((long)huge + slack, cg_read_long(group, "memory.current") - before);

	ASSERT_WORKS(cg_write(group, "memory.max", "max"));
	EXPECT_WORKS(allocate(fd, p, 1));
	EXPECT_BLOCKS(fd, 2, 0, 0);
	EXPECT_WORKS(punch(fd, 0, 2 * p));
	EXPECT_GE(slack, cg_read_long(group, "memory.current") - before);
	close(fd);
	leave_cgroup(_metadata, root, group);
}

TEST_F_TIMEOUT(memory, cgroup_giant, LONG)
{
	const long slack = SZ_16M;
	char root[PATH_MAX], *group;
	u64 free_before;
	long before;
	int fd, ret;

	if (!giant)
		SKIP(return, WHY_NO_GIANT);
	group = gmem_enter_cgroup("gmem_block_test", root, sizeof(root));
	if (!group)
		SKIP(return, "no cgroup2 with a memory controller (CONFIG_MEMCG, mount)");

	fd = vm_create_guest_memfd(self->vm, giant, MAPPABLE | INIT_SHARED | block_flag(giant));
	free_before = free_memory();
	before = cg_read_long(group, "memory.current");
	ASSERT_WORKS(cg_write_numeric(group, "memory.max", before + giant / 4));
	EXPECT_FAILS(ENOMEM, allocate(fd, 5, 1));
	EXPECT_PRESENT(fd, 0);
	EXPECT_BLOCKS(fd, 0, 0, 0);
	EXPECT_GE(slack, cg_read_long(group, "memory.current") - before);
	EXPECT_FREE(free_before);

	/* It was the limit, and not memory. */
	ASSERT_WORKS(cg_write(group, "memory.max", "max"));
	ret = allocate(fd, 5, 1);
	if (!ret) {
		EXPECT_BLOCKS(fd, 1, 0, 0);
		EXPECT_LE((long)giant - slack, cg_read_long(group, "memory.current") - before);
	}
	close(fd);
	EXPECT_GE(slack, cg_read_long(group, "memory.current") - before);
	leave_cgroup(_metadata, root, group);
	if (ret)
		SKIP(return, WHY_NO_MEMORY);
}

static void on_alarm(int sig)
{
}

static void alarm_in(unsigned int ms)
{
	const struct itimerval timer = {
		.it_value = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 },
	};
	const struct sigaction sa = { .sa_handler = on_alarm };	/* no SA_RESTART */

	TEST_ASSERT(!sigaction(SIGALRM, &sa, NULL), "sigaction() failed");
	TEST_ASSERT(!setitimer(ITIMER_REAL, &timer, NULL), "setitimer() failed");
}

/* A signal comes while 1 GiB is allocated, and is answered before that is done. */
TEST_F_TIMEOUT(memory, signal_giant, LONG)
{
	u64 start, whole, ms, before;
	int fd, ret;

	if (!giant)
		SKIP(return, WHY_NO_GIANT);

	fd = vm_create_guest_memfd(self->vm, giant, MAPPABLE | INIT_SHARED | block_flag(giant));
	before = free_memory();
	start = now_ms();
	ret = allocate(fd, 0, 1);
	whole = now_ms() - start;
	if (ret) {
		close(fd);
		SKIP(return, WHY_NO_MEMORY);
	}
	EXPECT_BLOCKS(fd, 1, 0, 0);
	ASSERT_WORKS(punch(fd, 0, per_giant));
	EXPECT_FREE(before);

	start = now_ms();
	alarm_in(whole / 2 + 1);
	EXPECT_FAILS(EINTR, allocate(fd, 0, per_giant));
	ms = now_ms() - start;
	alarm_in(0);
	TH_LOG("1 GiB in %lu ms, interrupted at %lu after %lu", whole, whole / 2 + 1, ms);
	EXPECT_PRESENT(fd, 0);
	EXPECT_BLOCKS(fd, 0, 0, 0);
	EXPECT_FREE(before);
	close(fd);
}

/* With huge blocks, what has been done stays, and is blocks. */
TEST_F_TIMEOUT(memory, signal_huge, LONG)
{
	const u64 nr = SZ_1G / page_size;
	u64 present, before;
	int fd;

	if (free_huge_blocks(-1) * huge < SZ_1G + SZ_256M)
		SKIP(return, "not enough huge blocks are free for 1 GiB");

	fd = vm_create_guest_memfd(self->vm, SZ_1G, MAPPABLE | INIT_SHARED | block_flag(huge));
	before = free_memory();
	alarm_in(10);
	EXPECT_FAILS(EINTR, allocate(fd, 0, nr));
	alarm_in(0);
	present = gmem_fdinfo_val(fd, "gmem-present");
	EXPECT_GT(nr, present);
	EXPECT_EQ(0, present % per_huge);
	EXPECT_BLOCKS(fd, present / per_huge, 0, 0);

	/* It can go on from there. */
	EXPECT_WORKS(allocate(fd, 0, present + 1));
	EXPECT_BLOCKS(fd, present / per_huge + 1, 0, 0);
	close(fd);
	EXPECT_FREE(before);
}

/*
 * A system call writes to holes, and its process is killed.  Its faults have to get an
 * answer other than "again": the kernel does not look at signals in between.
 */
TEST_F_TIMEOUT(memory, killed_in_a_system_call, LONG)
{
	const size_t size = 8 * huge;
	int fd, source, round, status;
	void *mem;
	pid_t pid;

	fd = vm_create_guest_memfd(self->vm, size, MAPPABLE | INIT_SHARED | block_flag(huge));
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	source = kvm_memfd_alloc(size, false);

	for (round = 0; round < 20; round++) {
		ASSERT_WORKS(punch(fd, 0, size / page_size));
		pid = fork();
		ASSERT_LE(0, pid);
		while (!pid)
			if (pread(source, mem, size, 0) != (ssize_t)size ||
			    punch(fd, 0, size / page_size))
				_exit(1);
		while (gmem_fdinfo_val(fd, "gmem-present") < (1 + round % 6) * per_huge)
			;
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
	close(source);
	kvm_munmap(mem, size);
	close(fd);
}

/* The host touches memory that cannot be had: SIGBUS, and not for ever the same fault. */
static int touch_in_a_child(const u8 *addr, unsigned int ms)
{
	int status = -1;
	pid_t pid;

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		signal(SIGALRM, SIG_DFL);
		setitimer(ITIMER_REAL, &(struct itimerval) {
			.it_value = { .tv_sec = ms / 1000 } }, NULL);
		_exit(gmem_touch_read(addr) == BUS_ADRERR ? 0 : 1);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* More than the machine has: the first that cannot be had is ENOMEM, and costs nothing. */
TEST_F_TIMEOUT(memory, no_more_giants, LONG)
{
	struct kvm_run *run = self->vcpu->run;
	const unsigned int nr_max = 64;
	unsigned int nr, i;
	u64 before;
	u8 *mem;
	int fd;

	if (!giant)
		SKIP(return, WHY_NO_GIANT);

	fd = vm_create_guest_memfd(self->vm, nr_max * giant,
				   MAPPABLE | INIT_SHARED | block_flag(giant));
	for (nr = 0; nr < nr_max; nr++)
		if (allocate(fd, nr * per_giant, 1))
			break;
	if (!nr) {
		close(fd);
		SKIP(return, WHY_NO_MEMORY);
	}
	ASSERT_EQ(ENOMEM, errno);
	TH_LOG("%u blocks of 1 GiB", nr);
	ASSERT_LT(nr, nr_max);
	EXPECT_BLOCKS(fd, nr, 0, 0);
	EXPECT_PRESENT(fd, (u64)nr * per_giant);

	before = free_memory();
	for (i = 0; i < 3; i++)
		EXPECT_FAILS(ENOMEM, allocate(fd, nr * per_giant + i, 1));
	/* Over one that is there to one that cannot be. */
	EXPECT_FAILS(ENOMEM, allocate(fd, 0, (nr + 1) * per_giant));
	EXPECT_BLOCKS(fd, nr, 0, 0);
	EXPECT_PRESENT(fd, (u64)nr * per_giant);
	EXPECT_FREE(before);

	/* The guest's access, then the host's. */
	ASSERT_WORKS(__vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
						  giant, NULL, fd, nr * giant));
	EXPECT_EQ(-ENOMEM, gmem_guest_write(self->vcpu, GPA + 3 * page_size, 0x77));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, run->exit_reason);
	EXPECT_EQ(GPA + 3 * page_size, run->memory_fault.gpa);
	EXPECT_EQ(page_size, run->memory_fault.size);
	EXPECT_EQ(0, run->memory_fault.flags);
	mem = __kvm_mmap(giant, PROT_READ | PROT_WRITE, MAP_SHARED, fd, nr * giant);
	EXPECT_EQ(0, touch_in_a_child(mem, 20000)) TH_LOG("142 is a fault that never ends");
	EXPECT_BLOCKS(fd, nr, 0, 0);
	EXPECT_FREE(before);

	/* What is given back is one piece: there is a block for the guest now. */
	ASSERT_WORKS(punch(fd, 0, per_giant));
	EXPECT_BLOCKS(fd, nr - 1, 0, 0);
	EXPECT_EQ(0, gmem_guest_run(self->vcpu));
	EXPECT_BLOCKS(fd, nr, 0, 0);
	EXPECT_EQ(0x77, READ_ONCE(*word_at(mem, 3)));
	kvm_munmap(mem, giant);
	close(fd);
}

int main(int argc, char **argv)
{
	const int flags = MAPPABLE | INIT_SHARED;
	u64 sizes;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE((kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags);

	page_size = getpagesize();
	sizes = (u32)kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES) & ~page_size;
	huge = sizes & -sizes;
	sizes &= ~huge;
	giant = sizes & -sizes;
	per_huge = huge / page_size;
	per_giant = giant / page_size;
	TEST_REQUIRE(huge);

	return test_harness_run(argc, argv);
}
