// SPDX-License-Identifier: GPL-2.0
/*
 * The guest_memfd interface for a 32-bit process of a 64-bit kernel: the same
 * structures, through the compat ioctls, with offsets that need 64 bits.
 *
 * Built with nolibc, so that no 32-bit C library is needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/kvm.h>
#include <linux/uio.h>

#define PAGE		4096ULL
/* A page that 32 bits cannot say where it is, and the file around it. */
#define FAR		(5ULL << 30)
#define SIZE		(8ULL << 30)
#define POISON		0x0123456789abcdefULL

#define EXIT_SKIP	4

static int kvm, vm, gmem;
static int nr_tests, nr_failed;

static void ok(bool good, const char *what)
{
	nr_tests++;
	nr_failed += !good;
	printf("%s %d %s\n", good ? "ok" : "not ok", nr_tests, what);
}

static void skip_all(const char *why)
{
	printf("TAP version 13\n1..0 # SKIP %s\n", why);
	exit(EXIT_SKIP);
}

static int create_gmem(__u64 flags)
{
	struct kvm_create_guest_memfd create = { .size = SIZE, .flags = flags };

	return ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
}

/* 0 or the error; error_offset is POISON if the kernel leaves it alone. */
static int convert(int fd, __u64 offset, __u64 size, __u64 attributes, __u64 *error_offset)
{
	struct kvm_memory_attributes2 args = {
		.offset = offset, .size = size, .attributes = attributes,
		.error_offset = POISON,
	};
	int ret = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &args) ? errno : 0;

	*error_offset = args.error_offset;
	return ret;
}

/* Whether the file is like this for @size bytes behind @offset, and no more. */
static bool run_is(__u64 offset, __u64 size, __u64 attributes)
{
	struct kvm_memory_attributes2 args = { .offset = offset, .size = SIZE - offset };

	return !ioctl(gmem, KVM_GET_MEMORY_ATTRIBUTES2, &args) && args.size == size &&
	       args.attributes == attributes;
}

/* How a process that reads a letter there ends: 0, or the signal. */
static int touch(const char *addr)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(*addr < 0);

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_errors(void)
{
	/* Without attributes of VMs, no file is of the old scheme. */
	const int without = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES) > 0 ?
			    ENOTTY : 0;
	__u64 where;
	int file;

	ok(convert(gmem, PAGE / 2, PAGE, 0, &where) == EINVAL && where == POISON,
	   "unaligned offset: EINVAL, error_offset not written");
	ok(convert(gmem, SIZE, PAGE, 0, &where) == EINVAL && where == POISON,
	   "past the end: EINVAL, error_offset not written");
	ok(convert(gmem, FAR, PAGE, 1ULL << 40, &where) == EINVAL,
	   "unknown attribute in the upper half: EINVAL");
	ok(ioctl(gmem, KVM_SET_MEMORY_ATTRIBUTES2, NULL) && errno == EFAULT,
	   "bad pointer: EFAULT");

	file = create_gmem(0);
	ok(file >= 0, "create a file without flags");
	ok(convert(file, 0, PAGE, 0, &where) == without,
	   without ? "convert in it: ENOTTY" : "convert in it: works");
	close(file);
}

static void test_conversion(char *view)
{
	__u64 where;

	ok(run_is(0, SIZE, 0), "all shared at first");
	view[0] = 'x';

	ok(!convert(gmem, FAR, PAGE, KVM_MEMORY_ATTRIBUTE_PRIVATE, &where) && where == POISON,
	   "page at 5 GiB to private");
	ok(run_is(0, FAR, 0), "shared below it");
	ok(run_is(FAR, PAGE, KVM_MEMORY_ATTRIBUTE_PRIVATE), "private itself");
	ok(run_is(FAR + PAGE, SIZE - FAR - PAGE, 0), "shared above it");
	ok(touch(view) == SIGBUS, "touch it: SIGBUS");
	ok(!touch(view + PAGE), "touch the page above: works");

	ok(!convert(gmem, FAR, PAGE, 0, &where), "and back to shared");
	ok(run_is(0, SIZE, 0), "all shared again");
	ok(!touch(view) && view[0] == 'x', "content is kept");
}

static void test_held(char *view)
{
	struct iovec iov = { .iov_base = view + PAGE, .iov_len = 1 };
	__u64 where;
	int pipes[2];
	char c;

	view[PAGE] = 'y';
	ok(!pipe(pipes) && syscall(__NR_vmsplice, pipes[1], &iov, 1, 0) == 1,
	   "put the second page into a pipe");
	ok(convert(gmem, FAR, 2 * PAGE, KVM_MEMORY_ATTRIBUTE_PRIVATE, &where) == EAGAIN,
	   "both to private: EAGAIN");
	ok(where == FAR + PAGE, "error_offset is the second page, all 64 bits");
	ok(run_is(0, SIZE, 0), "nothing has changed");

	ok(read(pipes[0], &c, 1) == 1 && c == 'y', "drain the pipe");
	ok(!convert(gmem, FAR, 2 * PAGE, KVM_MEMORY_ATTRIBUTE_PRIVATE, &where),
	   "both to private: works");
	ok(touch(view + PAGE) == SIGBUS, "touch the second: SIGBUS");
}

int main(void)
{
	char *view;

	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		skip_all("no /dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		skip_all("no VM");
	if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) <= 0)
		skip_all("no conversion in place");

	printf("TAP version 13\n");
	gmem = create_gmem(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_DEFAULT_SHARED);
	ok(gmem >= 0, "create a file of 8 GiB");
	view = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gmem, FAR);
	ok(view != MAP_FAILED, "mmap() it at 5 GiB");
	if (gmem >= 0 && view != MAP_FAILED) {
		test_conversion(view);
		test_errors();
		test_held(view);
	}
	printf("1..%d\n", nr_tests);
	return nr_failed ? 1 : 0;
}
