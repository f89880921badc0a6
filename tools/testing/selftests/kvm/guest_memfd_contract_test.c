// SPDX-License-Identifier: GPL-2.0
/*
 * The contract of a guest_memfd file with userspace: how it is created, what
 * every system call on it returns, and what its memory holds.
 *
 * Every errno of the interface has a case that provokes it, and no failure
 * changes anything: size, pages that are present, contents, open descriptors.
 * What a file does once it is bound to a memslot is in guest_memfd_bind_test.c,
 * memory errors are in guest_memfd_poison_test.c.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/magic.h>
#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "numaif.h"

#ifndef GUEST_MEMFD_MAGIC
#define GUEST_MEMFD_MAGIC	0x474d454d
#endif

#define NR_PAGES	8

static size_t page_size;

static u8 pattern(int page)
{
	return 0xa0 + page;
}

/* The largest size that a file can have: 2^63 less a page. */
static u64 max_size(void)
{
	return LLONG_MAX & ~((u64)page_size - 1);
}

static int create(struct kvm_vm *vm, u64 size, u64 flags)
{
	return __vm_create_guest_memfd(vm, size, flags);
}

static u64 supported_flags(struct kvm_vm *vm)
{
	return vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS);
}

/* Creating files: a VM without any. */
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
	/* No case leaves a descriptor behind, those that fail least of all. */
	EXPECT_EQ(self->nr_fds, gmem_count_fds());
	kvm_vm_free(self->vm);
}

TEST_F(create, sizes)
{
	const u64 bad[] = {
		0, 1, page_size - 1, page_size + 1, 2 * page_size - 1,
		max_size() + 1, LLONG_MAX,
		1ull << 63, (1ull << 63) + page_size,
		-(u64)page_size, ~0ull,
	};
	const u64 good[] = { page_size, 3 * page_size, SZ_1G, max_size() };
	struct stat st;
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		__EXPECT_FAILS(EINVAL, create(self->vm, bad[i], 0),
			       "size %#lx", (unsigned long)bad[i]);

	for (i = 0; i < ARRAY_SIZE(good); i++) {
		fd = create(self->vm, good[i], 0);
		ASSERT_GE(fd, 0) TH_LOG("size %#lx: %s",
					(unsigned long)good[i], strerror(errno));
		EXPECT_WORKS(fstat(fd, &st));
		EXPECT_EQ(good[i], st.st_size);
		close(fd);
	}
}

/* KVM_CAP_GUEST_MEMFD_FLAGS is exact, for every VM type and combination. */
TEST_F(create, flags)
{
	unsigned long types = kvm_check_cap(KVM_CAP_VM_TYPES) ?: BIT(VM_TYPE_DEFAULT);
	u64 supported, flags;
	int type, bit, fd;

	for (type = 0; type < 32; type++) {
		struct kvm_vm *vm;

		if (!(types & BIT(type)))
			continue;

		vm = vm_create_barebones_type(type);
		supported = supported_flags(vm);

		for (bit = 0; bit < 64; bit++) {
			if (supported & (1ull << bit))
				continue;
			__EXPECT_FAILS(EINVAL, create(vm, page_size, 1ull << bit),
				       "VM type %d, bit %d", type, bit);
			/* Good bits do not excuse a bad one. */
			__EXPECT_FAILS(EINVAL, create(vm, page_size, supported | 1ull << bit),
				       "VM type %d, %#lx and bit %d", type,
				       (unsigned long)supported, bit);
		}
		__EXPECT_FAILS(EINVAL, create(vm, page_size, ~0ull), "VM type %d", type);

		/* All subsets of what is supported, the empty one included. */
		flags = supported;
		for (;;) {
			fd = create(vm, page_size, flags);
			EXPECT_GE(fd, 0) TH_LOG("VM type %d, flags %#lx: %s", type,
						(unsigned long)flags, strerror(errno));
			close(fd);
			if (!flags)
				break;
			flags = (flags - 1) & supported;
		}
		kvm_vm_free(vm);
	}
}

TEST_F(create, bad_pointer)
{
	struct kvm_create_guest_memfd *arg;
	char *mem;

	/* Two pages, the second of which goes away. */
	mem = kvm_mmap(2 * page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_munmap(mem + page_size, page_size);
	arg = (void *)(mem + page_size - offsetof(typeof(*arg), reserved));
	arg->size = page_size;

	EXPECT_FAILS(EFAULT, ioctl(self->vm->fd, KVM_CREATE_GUEST_MEMFD, NULL));
	EXPECT_FAILS(EFAULT, ioctl(self->vm->fd, KVM_CREATE_GUEST_MEMFD, -1ul));
	EXPECT_FAILS(EFAULT, ioctl(self->vm->fd, KVM_CREATE_GUEST_MEMFD, mem + page_size));
	EXPECT_FAILS(EFAULT, ioctl(self->vm->fd, KVM_CREATE_GUEST_MEMFD, arg));
	kvm_munmap(mem, page_size);
}

/* The reserved fields have never been looked at. */
TEST_F(create, reserved_is_ignored)
{
	struct kvm_create_guest_memfd arg = { .size = page_size };
	int fd;

	memset(arg.reserved, 0xff, sizeof(arg.reserved));
	fd = ioctl(self->vm->fd, KVM_CREATE_GUEST_MEMFD, &arg);
	EXPECT_GE(fd, 0);
	close(fd);
}

TEST_F(create, no_descriptor_left)
{
	struct rlimit old, none;
	int i, fd;

	ASSERT_WORKS(getrlimit(RLIMIT_NOFILE, &old));
	fd = dup(STDIN_FILENO);
	ASSERT_GE(fd, 0);
	close(fd);

	none = old;
	none.rlim_cur = fd;
	ASSERT_WORKS(setrlimit(RLIMIT_NOFILE, &none));
	for (i = 0; i < 100; i++)
		EXPECT_FAILS(EMFILE, create(self->vm, page_size, 0));
	ASSERT_WORKS(setrlimit(RLIMIT_NOFILE, &old));

	/* The number that was free is still free. */
	EXPECT_EQ(fd, create(self->vm, page_size, 0));
	close(fd);
}

/* The system's limit comes late in the creation: inode and all are undone. */
TEST_F(create, no_file_left)
{
	const char *path = "/proc/sys/fs/file-max";
	int limit = open(path, O_RDWR);
	char old[32] = {};
	int i, ret, err;

	if (limit < 0 || geteuid())
		SKIP(return, "needs root and %s", path);
	ASSERT_GT(read(limit, old, sizeof(old) - 1), 0);

	/* CAP_SYS_ADMIN is above the limit: give it up for the call. */
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(1, pwrite(limit, "0", 1, 0));
		ret = seteuid(65534) ? -2 : create(self->vm, page_size, 0);
		err = errno;
		ASSERT_WORKS(seteuid(0));
		ASSERT_GT(pwrite(limit, old, strlen(old), 0), 0);

		EXPECT_EQ(-1, ret);
		EXPECT_EQ(ENFILE, err);
	}
	close(limit);
}

/* A VM obeys the process that made it. */
TEST_F(create, other_process)
{
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(create(self->vm, page_size, 0) == -1 && errno == EIO ? 0 : 1);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(create, files_are_distinct)
{
	int a = create(self->vm, page_size, 0), b = create(self->vm, page_size, 0);
	struct stat st_a, st_b;

	ASSERT_GE(a, 0);
	ASSERT_GE(b, 0);
	ASSERT_WORKS(fstat(a, &st_a));
	ASSERT_WORKS(fstat(b, &st_b));
	EXPECT_EQ(st_a.st_dev, st_b.st_dev);
	EXPECT_NE(st_a.st_ino, st_b.st_ino);
	close(a);
	close(b);
}

/* One file of NR_PAGES pages. */
struct gfile {
	struct kvm_vm *vm;
	int fd;
	size_t size;
	u8 *mem;	/* a mapping, or NULL */
	bool shared;	/* the host may touch the pages */
	char path[32];	/* in /proc */
};

static bool gfile_setup(struct gfile *f, u64 flags)
{
	f->vm = vm_create_barebones();
	if (flags & ~supported_flags(f->vm))
		return false;

	gmem_catch_sigbus();
	f->size = NR_PAGES * page_size;
	f->fd = vm_create_guest_memfd(f->vm, f->size, flags);
	if (flags & GUEST_MEMFD_FLAG_MMAP) {
		f->mem = kvm_mmap(f->size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
		f->shared = flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	}
	snprintf(f->path, sizeof(f->path), "/proc/self/fd/%d", f->fd);
	return true;
}

static void gfile_teardown(struct gfile *f)
{
	if (f->mem)
		kvm_munmap(f->mem, f->size);
	close(f->fd);
	kvm_vm_free(f->vm);
}

/* Every combination of the flags. */
FIXTURE(file)
{
	struct gfile f;
};

FIXTURE_VARIANT(file)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(file, none)
{
	.flags = 0,
};

FIXTURE_VARIANT_ADD(file, mmap)
{
	.flags = GUEST_MEMFD_FLAG_MMAP,
};

FIXTURE_VARIANT_ADD(file, init_shared)
{
	.flags = GUEST_MEMFD_FLAG_INIT_SHARED,
};

FIXTURE_VARIANT_ADD(file, mmap_init_shared)
{
	.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
};

FIXTURE_SETUP(file)
{
	if (!gfile_setup(&self->f, variant->flags))
		SKIP(return, "flags not supported");
}

FIXTURE_TEARDOWN(file)
{
	gfile_teardown(&self->f);
}

/* Files that can be mapped. */
FIXTURE(mapping)
{
	struct gfile f;
};

FIXTURE_VARIANT(mapping)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(mapping, mmap)
{
	.flags = GUEST_MEMFD_FLAG_MMAP,
};

FIXTURE_VARIANT_ADD(mapping, mmap_init_shared)
{
	.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
};

FIXTURE_SETUP(mapping)
{
	if (!gfile_setup(&self->f, variant->flags))
		SKIP(return, "flags not supported");
}

FIXTURE_TEARDOWN(mapping)
{
	gfile_teardown(&self->f);
}

/* Memory that the host may map, and not touch. */
FIXTURE(private)
{
	struct gfile f;
};

FIXTURE_SETUP(private)
{
	if (!gfile_setup(&self->f, GUEST_MEMFD_FLAG_MMAP))
		SKIP(return, "MMAP not supported");
}

FIXTURE_TEARDOWN(private)
{
	gfile_teardown(&self->f);
}

/* Memory that the host may touch. */
FIXTURE(shared)
{
	struct gfile f;
};

FIXTURE_SETUP(shared)
{
	if (!gfile_setup(&self->f, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED))
		SKIP(return, "MMAP or INIT_SHARED not supported");
}

FIXTURE_TEARDOWN(shared)
{
	gfile_teardown(&self->f);
}

/* What no failure may change. */
struct state {
	struct stat st;
	bool known;	/* present is known */
	u64 present;	/* the pages that have memory */
	u64 filled;	/* the pages that hold their pattern */
};

static void state_get(struct gfile *f, struct state *state)
{
	memset(state, 0, sizeof(*state));
	TEST_ASSERT(!fstat(f->fd, &state->st), "fstat() failed");
	state->known = gmem_present(f->fd, NR_PAGES, &state->present);
}

static void expect_state(struct __test_metadata *_metadata, struct gfile *f,
			 const struct state *want)
{
	struct state now;
	int i;

	state_get(f, &now);
	EXPECT_EQ(want->st.st_size, now.st.st_size);
	EXPECT_EQ(want->st.st_mode, now.st.st_mode);
	EXPECT_EQ(want->st.st_uid, now.st.st_uid);
	EXPECT_EQ(want->st.st_ino, now.st.st_ino);
	if (now.known)
		EXPECT_EQ(want->present, now.present);

	for (i = 0; i < NR_PAGES; i++) {
		if (!(want->filled & BIT(i)))
			continue;
		EXPECT_TRUE(gmem_is_filled(f->mem + i * page_size, pattern(i), page_size))
			TH_LOG("page %d has changed", i);
	}
}

/* Allocate pages 1, 2 and 5 and give them contents where that is possible. */
static void fill(struct __test_metadata *_metadata, struct gfile *f,
		 struct state *state)
{
	const u64 pages = BIT(1) | BIT(2) | BIT(5);
	struct state before;
	int i;

	state_get(f, &before);
	for (i = 0; i < NR_PAGES; i++) {
		if (!(pages & BIT(i)))
			continue;
		ASSERT_WORKS(fallocate(f->fd, GMEM_ALLOC, i * page_size, page_size));
		if (f->shared)
			memset(f->mem + i * page_size, pattern(i), page_size);
	}

	state_get(f, state);
	if (state->known)
		ASSERT_EQ(before.present | pages, state->present);
	if (f->shared)
		state->filled = pages;
}

TEST_F(file, attributes)
{
	struct gfile *f = &self->f;
	char link[64] = {};
	struct statfs fs;
	struct stat st;

	EXPECT_WORKS(fstat(f->fd, &st));
	EXPECT_EQ(f->size, st.st_size);
	EXPECT_EQ(page_size, st.st_blksize);
	EXPECT_EQ(S_IFREG | 0600, st.st_mode);

	EXPECT_WORKS(fstatfs(f->fd, &fs));
	EXPECT_EQ(GUEST_MEMFD_MAGIC, fs.f_type);

	EXPECT_EQ(O_RDWR, fcntl(f->fd, F_GETFL) & O_ACCMODE);
	EXPECT_EQ(0, fcntl(f->fd, F_GETFD));

	EXPECT_GT(readlink(f->path, link, sizeof(link) - 1), 0);
	EXPECT_NE(NULL, strstr(link, "kvm-gmem")) TH_LOG("it is '%s'", link);
}

TEST_F(file, fallocate_errors)
{
	struct gfile *f = &self->f;
	const loff_t p = page_size, size = f->size, max = max_size();
	const struct {
		int mode;
		loff_t offset, len;
		int err;
	} rows[] = {
		/* Only these two modes exist. */
		{ 0, 0, p, EOPNOTSUPP },
		{ FALLOC_FL_PUNCH_HOLE, 0, p, EOPNOTSUPP },
		{ FALLOC_FL_COLLAPSE_RANGE, 0, p, EOPNOTSUPP },
		{ FALLOC_FL_INSERT_RANGE, 0, p, EOPNOTSUPP },
		{ FALLOC_FL_ZERO_RANGE, 0, p, EOPNOTSUPP },
		{ FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, p, p, EOPNOTSUPP },
		{ FALLOC_FL_UNSHARE_RANGE, 0, p, EOPNOTSUPP },
		{ FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE, 0, p, EOPNOTSUPP },
		{ GMEM_PUNCH | FALLOC_FL_ZERO_RANGE, p, p, EOPNOTSUPP },
		{ GMEM_PUNCH | FALLOC_FL_NO_HIDE_STALE, p, p, EOPNOTSUPP },
		{ GMEM_ALLOC | FALLOC_FL_NO_HIDE_STALE, 0, p, EOPNOTSUPP },
		{ GMEM_ALLOC | 0x40000000, 0, p, EOPNOTSUPP },
		{ GMEM_PUNCH | 0x40000000, p, p, EOPNOTSUPP },

		/* Offset and length count in pages. */
		{ GMEM_ALLOC, 1, p, EINVAL },
		{ GMEM_ALLOC, 0, 1, EINVAL },
		{ GMEM_ALLOC, p - 1, 1, EINVAL },
		{ GMEM_ALLOC, p, p + 1, EINVAL },
		{ GMEM_ALLOC, p / 2, p / 2, EINVAL },
		{ GMEM_PUNCH, p + 1, p, EINVAL },
		{ GMEM_PUNCH, p, 1, EINVAL },
		{ GMEM_PUNCH, p, p - 1, EINVAL },
		{ GMEM_PUNCH, p, p + 1, EINVAL },
		{ GMEM_PUNCH, p + p / 2, p / 2, EINVAL },
		{ GMEM_PUNCH, p + p / 2, p, EINVAL },

		/* The file does not grow. */
		{ GMEM_ALLOC, size, p, EINVAL },
		{ GMEM_ALLOC, size - p, 2 * p, EINVAL },
		{ GMEM_ALLOC, 0, size + p, EINVAL },
		{ GMEM_ALLOC, 1000 * size, p, EINVAL },
		{ GMEM_ALLOC, 0, max, EINVAL },
		{ GMEM_ALLOC, max - p, p, EINVAL },

		/* Nothing, less than nothing, and more than there is. */
		{ GMEM_ALLOC, 0, 0, EINVAL },
		{ GMEM_PUNCH, p, 0, EINVAL },
		{ GMEM_ALLOC, -p, p, EINVAL },
		{ GMEM_PUNCH, -p, 4 * p, EINVAL },
		{ GMEM_ALLOC, 0, -p, EINVAL },
		{ GMEM_PUNCH, p, -p, EINVAL },
		{ GMEM_PUNCH, LLONG_MIN, LLONG_MIN, EINVAL },
		{ GMEM_ALLOC, max, p, EFBIG },
		{ GMEM_PUNCH, max, p, EFBIG },
		{ GMEM_ALLOC, p, max, EFBIG },
		{ GMEM_PUNCH, p, max, EFBIG },
	};
	struct state state;
	int i;

	fill(_metadata, f, &state);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(rows[i].err,
			       fallocate(f->fd, rows[i].mode, rows[i].offset, rows[i].len),
			       "mode %#x, offset %#lx, len %#lx", rows[i].mode,
			       (long)rows[i].offset, (long)rows[i].len);
		expect_state(_metadata, f, &state);
	}
}

TEST_F(file, allocate)
{
	struct gfile *f = &self->f;
	struct state state;

	/* Sparse to start with. */
	state_get(f, &state);
	EXPECT_EQ(0, state.present);

	/* Over pages and holes: pages keep what they hold, new ones are zero. */
	fill(_metadata, f, &state);
	EXPECT_WORKS(fallocate(f->fd, GMEM_ALLOC, 0, f->size));
	state.present = GENMASK(NR_PAGES - 1, 0);
	expect_state(_metadata, f, &state);

	if (f->shared)
		EXPECT_TRUE(gmem_is_filled(f->mem, 0, page_size));
}

TEST_F(file, punch_hole)
{
	struct gfile *f = &self->f;
	struct state state;

	fill(_metadata, f, &state);

	/* Holes in holes, at the end and past it: nothing happens. */
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, 0, page_size));
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, f->size - page_size, 2 * page_size));
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, f->size, page_size));
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, 100 * f->size, page_size));
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, max_size() - page_size, page_size));
	expect_state(_metadata, f, &state);

	/* One page, not its neighbour. */
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, 2 * page_size, 2 * page_size));
	state.present &= ~BIT(2);
	state.filled &= ~BIT(2);
	expect_state(_metadata, f, &state);

	/* What comes back is zero, and stays writable. */
	EXPECT_WORKS(fallocate(f->fd, GMEM_ALLOC, 2 * page_size, page_size));
	state.present |= BIT(2);
	expect_state(_metadata, f, &state);
	if (f->shared) {
		u8 *mem = f->mem + 2 * page_size;

		EXPECT_TRUE(gmem_is_filled(mem, 0, page_size));
		memset(mem, pattern(2), page_size);
		state.filled |= BIT(2);
		expect_state(_metadata, f, &state);
	}

	/* Everything, and far beyond. */
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, 0, max_size()));
	state.present = 0;
	state.filled = 0;
	expect_state(_metadata, f, &state);
}

static void no_op(int sig)
{
}

static void *pester(void *arg)
{
	pthread_t *target = arg;

	for (;;) {
		pthread_kill(*target, SIGUSR1);
		usleep(1000);
	}
	return NULL;
}

/* A long allocation gives up for a signal; what it has done is sound. */
TEST_F(file, allocate_interrupted)
{
	struct gfile *f = &self->f;
	const struct sigaction sa = { .sa_handler = no_op };
	const u64 size = SZ_512M;
	pthread_t me = pthread_self(), thread;
	int fd, i, ret = 0, err = 0;
	u8 *mem = NULL;

	if ((u64)sysconf(_SC_AVPHYS_PAGES) * page_size < 2 * size)
		SKIP(return, "needs 1 GiB of free memory");

	fd = vm_create_guest_memfd(f->vm, size, variant->flags);
	if (f->shared) {
		mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
		memset(mem, pattern(0), page_size);
	}

	ASSERT_WORKS(sigaction(SIGUSR1, &sa, NULL));
	kvm_pthread_create(&thread, NULL, pester, &me);
	for (i = 0; i < 20 && !ret; i++) {
		EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, page_size, size - page_size));
		ret = fallocate(fd, GMEM_ALLOC, 0, size);
		err = errno;
	}
	kvm_pthread_cancel_join(thread);

	EXPECT_EQ(-1, ret) TH_LOG("not once interrupted in %d times 512 MiB", i);
	EXPECT_EQ(EINTR, err);

	if (mem) {
		EXPECT_TRUE(gmem_is_filled(mem, pattern(0), page_size));
		EXPECT_TRUE(gmem_is_filled(mem + page_size, 0, page_size));
		EXPECT_TRUE(gmem_is_filled(mem + size - page_size, 0, page_size));
		kvm_munmap(mem, size);
	}
	EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, size));
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 0, 16 * page_size));
	close(fd);
}

/* It is memory with a descriptor, not a file to read, write or change. */
TEST_F(file, not_a_file)
{
	struct gfile *f = &self->f;
	struct epoll_event event = { .events = EPOLLIN };
	int pipefd[2], memfd, epoll, val;
	char buf[64] = {};
	struct iovec iov = { buf, sizeof(buf) };
	struct state state;
	off_t pos = 0;

	ASSERT_WORKS(pipe(pipefd));
	ASSERT_EQ(1, write(pipefd[1], "x", 1));
	memfd = memfd_create("other", 0);
	epoll = epoll_create1(0);
	ASSERT_WORKS(ftruncate(memfd, page_size));

	fill(_metadata, f, &state);

	EXPECT_FAILS(EINVAL, read(f->fd, buf, sizeof(buf)));
	EXPECT_FAILS(EINVAL, read(f->fd, buf, 0));
	EXPECT_FAILS(EINVAL, readv(f->fd, &iov, 1));
	EXPECT_FAILS(ESPIPE, pread(f->fd, buf, sizeof(buf), 0));
	EXPECT_FAILS(ESPIPE, preadv(f->fd, &iov, 1, 0));
	EXPECT_FAILS(ESPIPE, lseek(f->fd, 0, SEEK_SET));
	EXPECT_FAILS(ESPIPE, lseek(f->fd, 0, SEEK_DATA));
	EXPECT_FAILS(EINVAL, splice(f->fd, NULL, pipefd[1], NULL, 1, 0));
	EXPECT_FAILS(ESPIPE, sendfile(pipefd[1], f->fd, &pos, 1));
	EXPECT_FAILS(EXDEV, copy_file_range(f->fd, NULL, memfd, NULL, 1, 0));
	EXPECT_FAILS(EINVAL, readahead(f->fd, 0, page_size));

	EXPECT_FAILS(EINVAL, write(f->fd, buf, sizeof(buf)));
	EXPECT_FAILS(EINVAL, writev(f->fd, &iov, 1));
	EXPECT_FAILS(ESPIPE, pwrite(f->fd, buf, sizeof(buf), page_size));
	EXPECT_FAILS(ESPIPE, pwritev(f->fd, &iov, 1, page_size));
	EXPECT_FAILS(EINVAL, splice(pipefd[0], NULL, f->fd, NULL, 1, 0));
	EXPECT_FAILS(EINVAL, sendfile(f->fd, memfd, &pos, 1));
	EXPECT_FAILS(EXDEV, copy_file_range(memfd, NULL, f->fd, NULL, 1, 0));

	EXPECT_FAILS(EINVAL, ftruncate(f->fd, 0));
	EXPECT_FAILS(EINVAL, ftruncate(f->fd, f->size));
	EXPECT_FAILS(EINVAL, ftruncate(f->fd, 2 * f->size));
	EXPECT_FAILS(EINVAL, truncate(f->path, 0));
	EXPECT_FAILS(EINVAL, fchmod(f->fd, 0777));
	EXPECT_FAILS(EINVAL, chmod(f->path, 0777));
	EXPECT_FAILS(EINVAL, fchown(f->fd, 1, 1));
	EXPECT_FAILS(EINVAL, futimens(f->fd, NULL));
	EXPECT_FAILS(EINVAL, fsync(f->fd));
	EXPECT_FAILS(EINVAL, fdatasync(f->fd));
	EXPECT_FAILS(EINVAL, fcntl(f->fd, F_GET_SEALS));

	EXPECT_FAILS(EPERM, epoll_ctl(epoll, EPOLL_CTL_ADD, f->fd, &event));
	EXPECT_FAILS(ENOTTY, ioctl(f->fd, FIONREAD, &val));
	EXPECT_FAILS(ENOTTY, ioctl(f->fd, KVM_GET_API_VERSION, 0));
	EXPECT_FAILS(ENOTTY, ioctl(f->fd, KVM_CREATE_GUEST_MEMFD, buf));
	EXPECT_FAILS(ENOTTY, ioctl(f->fd, _IO(KVMIO, 0xff), 0));

	expect_state(_metadata, f, &state);

	close(epoll);
	close(memfd);
	close(pipefd[0]);
	close(pipefd[1]);
}

/* There is one way to the file: the descriptor, and its duplicates. */
TEST_F(file, no_second_open)
{
	struct gfile *f = &self->f;
	char *const none[] = { NULL };
	struct state state;
	int fd;

	fill(_metadata, f, &state);

	EXPECT_FAILS(ENXIO, open(f->path, O_RDWR));
	EXPECT_FAILS(ENXIO, open(f->path, O_RDONLY));
	EXPECT_FAILS(ENXIO, open(f->path, O_WRONLY));
	EXPECT_FAILS(ENXIO, open(f->path, O_RDWR | O_TRUNC));
	EXPECT_FAILS(EXDEV, linkat(AT_FDCWD, f->path, AT_FDCWD, "/tmp/gmem-link",
				   AT_SYMLINK_FOLLOW));
	EXPECT_FAILS(EACCES, syscall(__NR_execveat, f->fd, "", none, none, AT_EMPTY_PATH));
	EXPECT_FAILS(EACCES, execve(f->path, none, none));

	/* A path descriptor opens nothing. */
	fd = open(f->path, O_PATH);
	ASSERT_GE(fd, 0);
	EXPECT_FAILS(EBADF, fallocate(fd, GMEM_PUNCH, 0, f->size));
	EXPECT_FAILS(EBADF, ioctl(fd, KVM_GET_API_VERSION, 0));
	EXPECT_FAILS(EBADF, mmap(NULL, page_size, PROT_READ, MAP_SHARED, fd, 0));
	close(fd);
	expect_state(_metadata, f, &state);

	/* A duplicate is the file, and keeps it when the first is closed. */
	fd = kvm_dup(f->fd);
	close(f->fd);
	f->fd = fd;
	expect_state(_metadata, f, &state);
	EXPECT_WORKS(fallocate(f->fd, GMEM_ALLOC, 0, page_size));
}

TEST_F(file, mmap_errors)
{
	struct gfile *f = &self->f;
	const int rw = PROT_READ | PROT_WRITE;
	const bool mmap_flag = variant->flags & GUEST_MEMFD_FLAG_MMAP;
	const struct {
		size_t len;
		int prot, flags;
		u64 offset;
		int err;
	} rows[] = {
		/* No private copies, whatever they are for. */
		{ page_size, rw, MAP_PRIVATE, 0, mmap_flag ? EINVAL : ENODEV },
		{ page_size, PROT_READ, MAP_PRIVATE, 0, mmap_flag ? EINVAL : ENODEV },
		{ page_size, PROT_NONE, MAP_PRIVATE, 0, mmap_flag ? EINVAL : ENODEV },

		/* No code. */
		{ page_size, PROT_EXEC, MAP_SHARED, 0, EPERM },
		{ page_size, rw | PROT_EXEC, MAP_SHARED, 0, EPERM },
		{ page_size, rw | PROT_EXEC, MAP_PRIVATE, 0, EPERM },

		{ page_size, rw, MAP_SHARED | MAP_HUGETLB, 0, EINVAL },
		{ page_size, rw, MAP_SHARED_VALIDATE | MAP_SYNC, 0, EOPNOTSUPP },
		{ page_size, rw, MAP_SHARED, 1, EINVAL },
		{ page_size, rw, MAP_SHARED, page_size / 2, EINVAL },
		{ 0, rw, MAP_SHARED, 0, EINVAL },
		{ page_size, rw, MAP_SHARED, max_size(), EOVERFLOW },
	};
	struct state state;
	int i;

	fill(_metadata, f, &state);
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		__EXPECT_FAILS(rows[i].err,
			       mmap(NULL, rows[i].len, rows[i].prot, rows[i].flags,
				    f->fd, rows[i].offset),
			       "len %#zx, prot %#x, flags %#x, offset %#lx", rows[i].len,
			       rows[i].prot, rows[i].flags, (unsigned long)rows[i].offset);

	if (!mmap_flag) {
		EXPECT_FAILS(ENODEV, mmap(NULL, page_size, rw, MAP_SHARED, f->fd, 0));
		EXPECT_FAILS(ENODEV, mmap(NULL, page_size, PROT_READ, MAP_SHARED, f->fd, 0));
		EXPECT_FAILS(ENODEV, mmap(NULL, page_size, PROT_NONE, MAP_SHARED, f->fd, 0));
		EXPECT_FAILS(ENODEV, mmap(NULL, f->size, rw, MAP_SHARED_VALIDATE, f->fd, 0));
	} else {
		EXPECT_FAILS(EACCES, mprotect(f->mem, page_size, rw | PROT_EXEC));
	}
	expect_state(_metadata, f, &state);
}

/* The mapping may be longer than the file; the memory is not. */
TEST_F(mapping, sigbus_past_the_end)
{
	struct gfile *f = &self->f;
	struct state state;
	u8 *mem;

	fill(_metadata, f, &state);
	mem = kvm_mmap(2 * f->size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);

	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(mem + f->size));
	EXPECT_EQ(mem + f->size, (u8 *)gmem_sigbus_info.si_addr);
	EXPECT_EQ(BUS_ADRERR, gmem_touch_write(mem + f->size, 1));
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(mem + 2 * f->size - 1));
	EXPECT_EQ(f->shared ? 0 : BUS_ADRERR, gmem_touch_read(mem + f->size - 1));
	kvm_munmap(mem, 2 * f->size);

	mem = __kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd,
			 max_size() - page_size);
	EXPECT_EQ(BUS_ADRERR, gmem_touch_write(mem, 1));
	kvm_munmap(mem, page_size);

	if (f->shared)
		state.present |= BIT(NR_PAGES - 1);
	expect_state(_metadata, f, &state);
}

/* Private memory: mapped for policies and for later, never to be touched. */
TEST_F(private, sigbus_on_private)
{
	struct gfile *f = &self->f;
	struct state state;
	struct iovec local, remote;
	int pipefd[2], zero, i;
	u8 buf[1];

	fill(_metadata, f, &state);
	for (i = 0; i < NR_PAGES; i++) {
		u8 *mem = f->mem + i * page_size;

		EXPECT_EQ(BUS_ADRERR, gmem_touch_read(mem));
		EXPECT_EQ(mem, (u8 *)gmem_sigbus_info.si_addr);
		EXPECT_EQ(BUS_ADRERR, gmem_touch_write(mem, 1));
	}

	/* The kernel does not get there on behalf of the process either. */
	ASSERT_WORKS(pipe(pipefd));
	zero = open("/dev/zero", O_RDONLY);
	ASSERT_GE(zero, 0);
	local = (struct iovec) { buf, 1 };
	remote = (struct iovec) { f->mem + page_size, 1 };
	EXPECT_FAILS(EFAULT, write(pipefd[1], f->mem + page_size, 1));
	EXPECT_FAILS(EFAULT, read(zero, f->mem + page_size, 1));
	EXPECT_FAILS(EFAULT, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_FAILS(EFAULT, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_FAILS(EFAULT, vmsplice(pipefd[1], &remote, 1, 0));
	EXPECT_FAILS(EFAULT, madvise(f->mem, page_size, MADV_POPULATE_READ));
	EXPECT_FAILS(EFAULT, madvise(f->mem, page_size, MADV_POPULATE_WRITE));
	EXPECT_FAILS(ENOMEM, mlock(f->mem, page_size));

	/* And none of it has allocated anything. */
	expect_state(_metadata, f, &state);
	close(zero);
	close(pipefd[0]);
	close(pipefd[1]);
}

/* Pages are zero when they are first seen, and one file has one memory. */
TEST_F(shared, shared_memory)
{
	struct gfile *f = &self->f;
	const struct iovec remote = { f->mem + page_size, 1 };
	int status, i, pipefd[2];
	struct state state;
	u8 *other, *moved;
	u8 byte;
	pid_t pid;

	EXPECT_TRUE(gmem_is_filled(f->mem, 0, f->size));
	fill(_metadata, f, &state);
	for (i = 0; i < NR_PAGES; i++)
		memset(f->mem + i * page_size, pattern(i), page_size);
	state.present = GENMASK(NR_PAGES - 1, 0);
	state.filled = state.present;
	expect_state(_metadata, f, &state);

	/* A second mapping, at an offset. */
	other = __kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd,
			   3 * page_size);
	EXPECT_TRUE(gmem_is_filled(other, pattern(3), page_size));
	other[17] = 1;
	EXPECT_EQ(1, f->mem[3 * page_size + 17]);
	other[17] = pattern(3);
	expect_state(_metadata, f, &state);

	/* It can move, and be made again from nothing. */
	moved = mremap(other, page_size, 2 * page_size, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, moved);
	EXPECT_TRUE(gmem_is_filled(moved, pattern(3), page_size));
	EXPECT_TRUE(gmem_is_filled(moved + page_size, pattern(4), page_size));
	other = mremap(moved, 0, page_size, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, other);
	EXPECT_TRUE(gmem_is_filled(other, pattern(3), page_size));
	kvm_munmap(moved, 2 * page_size);
	kvm_munmap(other, page_size);

	/* A child has the parent's memory, not a copy. */
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		bool same = gmem_is_filled(f->mem + page_size, pattern(1), page_size);

		f->mem[page_size] = 0x77;
		_exit(same ? 0 : 1);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0x77, f->mem[page_size]);
	f->mem[page_size] = pattern(1);

	/* The kernel reads and writes it for the process. */
	ASSERT_WORKS(pipe(pipefd));
	EXPECT_EQ(1, write(pipefd[1], f->mem + page_size, 1));
	EXPECT_EQ(1, read(pipefd[0], &byte, 1));
	EXPECT_EQ(pattern(1), byte);
	EXPECT_EQ(1, process_vm_readv(getpid(), &(struct iovec) { &byte, 1 }, 1,
				      &remote, 1, 0));
	EXPECT_EQ(pattern(1), byte);
	EXPECT_EQ(1, process_vm_writev(getpid(), &(struct iovec) { &byte, 1 }, 1,
				       &remote, 1, 0));
	close(pipefd[0]);
	close(pipefd[1]);
	expect_state(_metadata, f, &state);

	/* Unmapped, mapped again: it was never in the mapping. */
	kvm_munmap(f->mem, f->size);
	f->mem = kvm_mmap(f->size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
	expect_state(_metadata, f, &state);
}

/* Only a hole takes contents away: no advice, no pressure. */
TEST_F(file, contents_stay)
{
	struct gfile *f = &self->f;
	const int advice[] = {
		MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED,
		MADV_COLD, MADV_PAGEOUT, MADV_DONTFORK, MADV_DOFORK, MADV_DONTNEED_LOCKED,
	};
	struct state state;
	int i;

	fill(_metadata, f, &state);

	for (i = POSIX_FADV_NORMAL; i <= POSIX_FADV_NOREUSE; i++)
		EXPECT_EQ(0, posix_fadvise(f->fd, 0, 0, i)) TH_LOG("advice %d", i);
	EXPECT_EQ(EINVAL, posix_fadvise(f->fd, 0, 0, 99));
	expect_state(_metadata, f, &state);

	for (i = 0; f->mem && i < ARRAY_SIZE(advice); i++) {
		EXPECT_EQ(0, madvise(f->mem, f->size, advice[i]))
			TH_LOG("advice %d: %s", advice[i], strerror(errno));
		expect_state(_metadata, f, &state);
	}
	if (f->mem) {
		EXPECT_FAILS(EINVAL, madvise(f->mem, f->size, MADV_FREE));
		EXPECT_FAILS(EINVAL, madvise(f->mem, f->size, MADV_COLLAPSE));
		expect_state(_metadata, f, &state);
	}
	if (f->shared) {
		EXPECT_WORKS(mlock(f->mem + page_size, 2 * page_size));
		expect_state(_metadata, f, &state);
		EXPECT_WORKS(munlock(f->mem + page_size, 2 * page_size));
		expect_state(_metadata, f, &state);
	}

	/* The whole system tries; needs root, and is worth it without. */
	gmem_write_file("/proc/sys/vm/drop_caches", "3");
	expect_state(_metadata, f, &state);
	gmem_write_file("/proc/sys/vm/compact_memory", "1");
	expect_state(_metadata, f, &state);

	/* This one is a hole. */
	if (f->mem) {
		EXPECT_WORKS(madvise(f->mem + 2 * page_size, page_size, MADV_REMOVE));
		state.present &= ~BIT(2);
		state.filled &= ~BIT(2);
		expect_state(_metadata, f, &state);
		if (f->shared)
			EXPECT_TRUE(gmem_is_filled(f->mem + 2 * page_size, 0, page_size));
	}
}

/* The file holds the VM: its memory outlives the VM's descriptor. */
TEST_F(file, outlives_the_vm)
{
	struct gfile *f = &self->f;
	struct state state;

	fill(_metadata, f, &state);
	kvm_vm_free(f->vm);
	f->vm = NULL;

	expect_state(_metadata, f, &state);
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, 2 * page_size, page_size));
	EXPECT_WORKS(fallocate(f->fd, GMEM_ALLOC, 6 * page_size, page_size));
	state.present ^= BIT(2) | BIT(6);
	state.filled &= ~BIT(2);
	expect_state(_metadata, f, &state);
}

/* A mapping holds the file. */
TEST_F(mapping, outlives_the_descriptor)
{
	struct gfile *f = &self->f;
	int null = open("/dev/null", O_RDWR);

	if (f->shared)
		memset(f->mem, pattern(0), f->size);
	close(f->fd);
	f->fd = null;
	EXPECT_EQ(f->shared ? 0 : BUS_ADRERR, gmem_touch_read(f->mem));
	if (f->shared)
		EXPECT_TRUE(gmem_is_filled(f->mem, pattern(0), f->size));
	EXPECT_WORKS(madvise(f->mem, page_size, MADV_REMOVE));
	if (f->shared)
		EXPECT_TRUE(gmem_is_filled(f->mem, 0, page_size));
}

/* The policy belongs to the file, not to the mapping that set it. */
TEST_F(mapping, numa_policy)
{
	struct gfile *f = &self->f;
	const unsigned long node0 = 1;
	const unsigned long maxnode = BITS_PER_LONG;
	unsigned long mask = 0;
	struct state state;
	int policy;
	u8 *mem;

	if (!is_numa_available())
		SKIP(return, "no NUMA in this kernel");

	fill(_metadata, f, &state);
	EXPECT_FAILS(EINVAL, mbind(f->mem, page_size, 99, &node0, maxnode, 0));
	EXPECT_FAILS(EINVAL, mbind(f->mem, page_size, MPOL_BIND, NULL, 0, 0));
	EXPECT_FAILS(EINVAL, mbind(f->mem, page_size, MPOL_BIND, &node0, maxnode, 0x80));
	EXPECT_FAILS(EINVAL, mbind(f->mem + 1, page_size, MPOL_BIND, &node0, maxnode, 0));

	mem = kvm_mmap(f->size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
	EXPECT_WORKS(mbind(mem + page_size, page_size, MPOL_BIND, &node0, maxnode, 0));
	kvm_munmap(mem, f->size);

	EXPECT_WORKS(get_mempolicy(&policy, &mask, maxnode, f->mem + page_size, MPOL_F_ADDR));
	EXPECT_EQ(MPOL_BIND, policy);
	EXPECT_EQ(node0, mask);
	EXPECT_WORKS(get_mempolicy(&policy, &mask, maxnode, f->mem, MPOL_F_ADDR));
	EXPECT_EQ(MPOL_DEFAULT, policy);
	EXPECT_EQ(0, mask);

	/* It stays when the page goes, and is itself taken back. */
	EXPECT_WORKS(fallocate(f->fd, GMEM_PUNCH, 0, f->size));
	EXPECT_WORKS(get_mempolicy(&policy, NULL, 0, f->mem + page_size, MPOL_F_ADDR));
	EXPECT_EQ(MPOL_BIND, policy);
	EXPECT_WORKS(mbind(f->mem, f->size, MPOL_INTERLEAVE, &node0, maxnode, 0));
	EXPECT_WORKS(get_mempolicy(&policy, NULL, 0, f->mem + page_size, MPOL_F_ADDR));
	EXPECT_EQ(MPOL_INTERLEAVE, policy);
	EXPECT_WORKS(mbind(f->mem, f->size, MPOL_DEFAULT, NULL, 0, 0));
	EXPECT_WORKS(get_mempolicy(&policy, NULL, 0, f->mem + page_size, MPOL_F_ADDR));
	EXPECT_EQ(MPOL_DEFAULT, policy);
}

/* Memory comes from where the policy says, whoever asks for it. */
TEST_F(shared, numa_placement)
{
	struct gfile *f = &self->f;
	const unsigned long maxnode = BITS_PER_LONG;
	unsigned long mask;
	void *pages[NR_PAGES];
	int status[NR_PAGES], i, round;

	if (!is_multi_numa_node_system())
		SKIP(return, "needs two NUMA nodes");

	for (round = 0; round < 2; round++) {
		for (i = 0; i < NR_PAGES; i++) {
			pages[i] = f->mem + i * page_size;
			mask = BIT((i + round) % 2);
			ASSERT_WORKS(mbind(pages[i], page_size, MPOL_BIND, &mask, maxnode, 0));
		}

		/* Half by the file, half by faults. */
		ASSERT_WORKS(fallocate(f->fd, GMEM_ALLOC, 0, f->size / 2));
		memset(f->mem, 1, f->size);

		ASSERT_WORKS(move_pages(0, NR_PAGES, pages, NULL, status, 0));
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_EQ((i + round) % 2, status[i]) TH_LOG("page %d", i);
		ASSERT_WORKS(fallocate(f->fd, GMEM_PUNCH, 0, f->size));
	}

	/* Pages that are there stay there: they cannot move. */
	memset(f->mem, 1, f->size);
	mask = BIT(0);
	EXPECT_FAILS(EIO, mbind(f->mem, f->size, MPOL_BIND, &mask, maxnode,
				MPOL_MF_MOVE | MPOL_MF_STRICT));
	EXPECT_TRUE(gmem_is_filled(f->mem, 1, f->size));
}

/* Memory is charged to whom it is allocated for, until it is freed. */
TEST_F(file, memory_cgroup)
{
	struct gfile *f = &self->f;
	const long size = SZ_32M, slack = SZ_1M;
	long before, during, after;
	char root[PATH_MAX], path[40];
	char *group;
	int fd, name;

	group = gmem_enter_cgroup("gmem_contract_test", root, sizeof(root));
	if (!group)
		SKIP(return, "no cgroup2 with a memory controller (CONFIG_MEMCG, mount)");

	fd = vm_create_guest_memfd(f->vm, size, variant->flags);
	before = cg_read_long(group, "memory.current");
	EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, 0, size));
	during = cg_read_long(group, "memory.current");
	EXPECT_GE(during - before, size - slack);
	EXPECT_LE(during - before, size + slack);

	EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, size / 2));
	after = cg_read_long(group, "memory.current");
	EXPECT_LE(after - before, size / 2 + slack);

	/* Pressure does not reach it. */
	cg_write(group, "memory.reclaim", "16M");
	after = cg_read_long(group, "memory.current");
	EXPECT_GE(after - before, size / 2 - slack);

	/* The memory goes with the last file, though somebody still holds its inode. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	name = open(path, O_PATH);
	EXPECT_LE(0, name);
	close(fd);
	after = cg_read_long(group, "memory.current");
	EXPECT_LE(after - before, slack);
	close(name);

	EXPECT_WORKS(cg_enter_current(root));
	EXPECT_WORKS(cg_destroy(group));
	free(group);
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));

	page_size = getpagesize();
	return test_harness_run(argc, argv);
}
