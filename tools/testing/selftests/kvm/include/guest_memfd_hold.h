/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Somebody who holds a page of a guest_memfd: for the tests of what that is in
 * the way of.  For use in kselftest_harness tests only.
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_HOLD_H
#define SELFTEST_KVM_GUEST_MEMFD_HOLD_H

#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/stddef.h>
#include <io_uring/mini_liburing.h>

#include "guest_memfd_util.h"

/* False if the kernel has no io_uring, or none for this user. */
static inline bool ring_init(struct io_uring *ring)
{
	return !io_uring_queue_init(4, ring, 0);
}

/* One operation from or to memory; returns what read() or write() would, or -errno. */
static inline int ring_rw(struct io_uring *ring, int op, int fd, void *addr, unsigned int len)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int ret;

	TEST_ASSERT(sqe, "io_uring: no room");
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = op;
	sqe->fd = fd;
	sqe->addr = (u64)addr;
	sqe->len = len;

	ret = io_uring_submit(ring);
	TEST_ASSERT(ret == 1, "io_uring_submit: %d", ret);
	ret = io_uring_wait_cqe(ring, &cqe);
	TEST_ASSERT(!ret, "io_uring_wait_cqe: %d", ret);
	ret = cqe->res;
	io_uring_cqe_seen(ring);
	return ret;
}

static inline int ring_unregister(struct io_uring *ring)
{
	return syscall(__NR_io_uring_register, ring->ring_fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
}

/* Somebody who holds a page: a pipe, or a ring with a registered buffer. */
struct holder {
	bool uring;
	bool holds;
	int pipe[2];
	struct io_uring ring;
};

static inline bool holder_init(struct holder *h, bool uring)
{
	h->uring = uring;
	TEST_ASSERT(!pipe(h->pipe), "pipe() failed");
	return !uring || ring_init(&h->ring);
}

static inline void hold(struct __test_metadata *_metadata, struct holder *h, void *addr, int size)
{
	struct iovec iov = { .iov_base = addr, .iov_len = size };
	int ret;

	if (h->uring)
		ret = io_uring_register_buffers(&h->ring, &iov, 1);
	else
		ret = vmsplice(h->pipe[1], &iov, 1, 0);
	ASSERT_EQ(h->uring ? 0 : size, ret) TH_LOG("%s", strerror(errno));
	h->holds = true;
}

/*
 * Let go, having looked once more: returns the first word of what is held.
 * Reading the pipe is both; of a registered buffer the ring writes a copy.
 */
static inline u64 let_go(struct __test_metadata *_metadata, struct holder *h, void *addr, int size)
{
	u64 words[4] = {};

	ASSERT_LE(size, (int)sizeof(words));
	if (h->uring)
		ASSERT_EQ(size, ring_rw(&h->ring, IORING_OP_WRITE_FIXED, h->pipe[1], addr, size));
	ASSERT_EQ(size, read(h->pipe[0], words, size));
	if (h->uring)
		ASSERT_WORKS(ring_unregister(&h->ring));
	h->holds = false;
	return words[0];
}

#endif /* SELFTEST_KVM_GUEST_MEMFD_HOLD_H */
