// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints of guest_memfd: what a conversion leaves in the trace.
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

/* The lines of our file, in order. */
static void read_trace(FIXTURE_DATA(trace) * self)
{
	char line[512], mine[40], *event;
	FILE *f;

	snprintf(mine, sizeof(mine), "kvm_gmem_convert: ino=%llu ", (unsigned long long)self->ino);
	self->text[0] = 0;
	f = fopen(TRACEFS "trace", "r");
	TEST_ASSERT(f, "trace: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		event = strstr(line, mine);
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

	read_trace(self);
	EXPECT_STREQ("start=0x1 end=0x3 to=private ret=0\n"
		     "start=0x0 end=0x10 to=shared ret=0\n"
		     "start=0x4 end=0x8 to=private ret=-11\n", self->text);
	close(pipefd[0]);
	close(pipefd[1]);
	kvm_munmap(mem, 16 * page_size);
}

TEST_HARNESS_MAIN
