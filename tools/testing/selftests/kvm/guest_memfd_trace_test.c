// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints of guest_memfd: what conversion, blocks and ownership leave in the
 * trace.
 */
#include <sys/mount.h>
#include <sys/stat.h>

#include "guest_memfd_util.h"

#define TRACEFS	"/sys/kernel/tracing/"

static size_t page_size;

FIXTURE(trace)
{
	struct kvm_vm *vm;
	int fd;
	u64 ino;
	char text[4096];
};

FIXTURE_SETUP(trace)
{
	struct stat st;

	page_size = getpagesize();
	mount("trace", TRACEFS, "tracefs", 0, NULL);
	if (gmem_write_file(TRACEFS "events/kvm_gmem/enable", "1"))
		SKIP(return, "needs event tracing (tracefs) and root");

	self->vm = vm_create_barebones();
	self->fd = vm_create_guest_memfd(self->vm, 16 * page_size,
					 GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	ASSERT_EQ(0, fstat(self->fd, &st));
	self->ino = st.st_ino;
	ASSERT_EQ(0, gmem_write_file(TRACEFS "trace", "\n"));
}

FIXTURE_TEARDOWN(trace)
{
	gmem_write_file(TRACEFS "events/kvm_gmem/enable", "0");
	close(self->fd);
	kvm_vm_free(self->vm);
}

/* The lines of our file, in order, less the pfns that nobody knows. */
static void read_trace(FIXTURE_DATA(trace) * self, const char *name)
{
	char line[512], mine[40], *event, *pfn, *nr;
	FILE *f;

	snprintf(mine, sizeof(mine), "%s: ino=%llu ", name, (unsigned long long)self->ino);
	self->text[0] = 0;
	f = fopen(TRACEFS "trace", "r");
	TEST_ASSERT(f, "trace: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		event = strstr(line, mine);
		pfn = strstr(line, "pfn=0x");
		nr = pfn ? strstr(pfn, "nr=") : NULL;
		if (nr)
			memmove(pfn, nr, strlen(nr) + 1);
		if (event)
			strncat(self->text, event + strlen(mine),
				sizeof(self->text) - strlen(self->text) - 1);
	}
	fclose(f);
}

TEST_F(trace, conversions)
{
	struct iovec iov;
	int pipefd[2];
	u8 *mem;

	mem = kvm_mmap(16 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
	mem[5 * page_size] = 1;
	iov = (struct iovec) { mem + 5 * page_size, 1 };
	ASSERT_WORKS(pipe(pipefd));

	ASSERT_WORKS(gmem_convert(self->fd, page_size, 2 * page_size, GMEM_PRIVATE, NULL));
	ASSERT_WORKS(gmem_convert(self->fd, 0, 16 * page_size, GMEM_SHARED, NULL));
	ASSERT_EQ(1, vmsplice(pipefd[1], &iov, 1, 0));
	EXPECT_FAILS(EAGAIN, gmem_convert(self->fd, 4 * page_size, 4 * page_size, GMEM_PRIVATE,
					  NULL));
	EXPECT_FAILS(EINVAL, gmem_convert(self->fd, 1, page_size, GMEM_PRIVATE, NULL));

	read_trace(self, "kvm_gmem_convert");
	EXPECT_STREQ("start=0x1 end=0x3 to=private ret=0\n"
		     "start=0x0 end=0x10 to=shared ret=0\n"
		     "start=0x4 end=0x8 to=private ret=-11\n", self->text);
	close(pipefd[0]);
	close(pipefd[1]);
	kvm_munmap(mem, 16 * page_size);
}

/* Two blocks, of which the second is broken and then given up, and one left over. */
TEST_F(trace, blocks)
{
	u64 sizes = kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES) & ~page_size, size, flags;
	const u64 order = sizes ? __builtin_ctzll(sizes / page_size) : 0;
	char text[200];
	struct stat st;

	if (!sizes)
		SKIP(return, "needs blocks");

	close(self->fd);
	size = page_size << order;
	flags = (u64)__builtin_ctzll(size) << GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	self->fd = vm_create_guest_memfd(self->vm, 2 * size + page_size, flags);
	ASSERT_EQ(0, fstat(self->fd, &st));
	self->ino = st.st_ino;

	ASSERT_WORKS(fallocate(self->fd, GMEM_ALLOC, 0, 2 * size + page_size));
	ASSERT_WORKS(fallocate(self->fd, GMEM_PUNCH, size + page_size, 2 * page_size));
	ASSERT_WORKS(fallocate(self->fd, GMEM_ALLOC, size, size));
	ASSERT_WORKS(fallocate(self->fd, GMEM_PUNCH, size, size));
	ASSERT_WORKS(fallocate(self->fd, GMEM_ALLOC, size, page_size));

	read_trace(self, "kvm_gmem_block");
	snprintf(text, sizeof(text), "index=0x0 order=%lu ret=0\n"
		 "index=0x%llx order=%lu ret=0\nindex=0x%llx order=%lu ret=0\n",
		 order, 1ull << order, order, 1ull << order, order);
	EXPECT_STREQ(text, self->text);

	read_trace(self, "kvm_gmem_break");
	snprintf(text, sizeof(text), "start=0x%llx end=0x%llx\nstart=0x%llx end=0x%llx\n",
		 (1ull << order) + 1, (1ull << order) + 3, 1ull << order, 2ull << order);
	EXPECT_STREQ(text, self->text);
}

#ifdef __x86_64__
#define GFN	0x100

TEST_F(trace, ownership)
{
	const u64 type = KVM_X86_SW_PROTECTED_VM;
	struct stat st;

	if (!gmem_has_rmp() || !(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type)))
		SKIP(return, "needs software-protected VMs with an emulated RMP, and root");

	close(self->fd);
	kvm_vm_free(self->vm);
	self->vm = vm_create_barebones_type(type);
	self->fd = vm_create_guest_memfd(self->vm, 16 * page_size,
					 GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	ASSERT_EQ(0, fstat(self->fd, &st));
	self->ino = st.st_ino;
	vm_set_user_memory_region2(self->vm, 0, KVM_MEM_GUEST_MEMFD, GFN * page_size,
				   16 * page_size, NULL, self->fd, 0);

	/* A page at a time: they may be one run. */
	ASSERT_WORKS(fallocate(self->fd, GMEM_ALLOC, page_size, 2 * page_size));
	ASSERT_WORKS(gmem_convert(self->fd, page_size, page_size, GMEM_PRIVATE, NULL));
	ASSERT_WORKS(gmem_convert(self->fd, 2 * page_size, 2 * page_size, GMEM_PRIVATE, NULL));
	ASSERT_WORKS(fallocate(self->fd, GMEM_ALLOC, 3 * page_size, page_size));
	ASSERT_WORKS(gmem_convert(self->fd, page_size, page_size, GMEM_SHARED, NULL));
	ASSERT_WORKS(fallocate(self->fd, GMEM_PUNCH, 2 * page_size, page_size));

	read_trace(self, "kvm_gmem_own");
	EXPECT_STREQ("op=make_private index=0x1 gfn=0x101 nr=1 ret=0\n"
		     "op=make_private index=0x2 gfn=0x102 nr=1 ret=0\n"
		     "op=make_private index=0x3 gfn=0x103 nr=1 ret=0\n"
		     "op=make_shared index=0x1 gfn=0x101 nr=1 ret=0\n"
		     "op=reclaim index=0x2 gfn=0xffffffffffffffff nr=1 ret=0\n",
		     self->text);
}
#endif

TEST_HARNESS_MAIN
