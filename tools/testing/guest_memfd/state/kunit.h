/* SPDX-License-Identifier: GPL-2.0 */
/*
 * As much of KUnit as state_kunit.c uses: its suite runs in user space, too.
 */
#ifndef GMEM_STATE_KUNIT_H
#define GMEM_STATE_KUNIT_H

#include <setjmp.h>
#include <stdarg.h>

#include "shim.h"

struct kunit {
	void *priv;
	bool failed;
	jmp_buf abort;
	void *memory[8];
	unsigned int nr_memory;
};

struct kunit_case {
	void (*run_case)(struct kunit *test);
	const char *name;
};

struct kunit_suite {
	const char *name;
	int (*init)(struct kunit *test);
	void (*exit)(struct kunit *test);
	struct kunit_case *test_cases;
};

#define KUNIT_CASE(f)		{ .run_case = f, .name = #f }
#define KUNIT_CASE_SLOW(f)	KUNIT_CASE(f)
#define kunit_test_suite(s)	struct kunit_suite *const the_suite = &(s)

extern struct kunit_suite *const the_suite;

void *kunit_kzalloc(struct kunit *test, size_t size, unsigned int gfp);
__printf(2, 3) void kunit_fail(struct kunit *test, const char *fmt, ...);

#define KUNIT_FAIL(test, fmt, ...)					\
	kunit_fail(test, "%s:%d: " fmt "\n", __FILE__, __LINE__, ##__VA_ARGS__)

#define kunit_compare(test, left, op, right, fmt, ...)			\
({									\
	long long __l = (long long)(left), __r = (long long)(right);	\
	bool __holds = __l op __r;					\
									\
	if (!__holds)							\
		KUNIT_FAIL(test, "%s is %#llx, not %s %#llx; " fmt,	\
			   #left, __l, #op, __r, ##__VA_ARGS__);	\
	__holds;							\
})

#define KUNIT_EXPECT_EQ_MSG(test, left, right, fmt, ...)		\
	((void)kunit_compare(test, left, ==, right, fmt, ##__VA_ARGS__))
#define KUNIT_EXPECT_EQ(test, left, right)	((void)kunit_compare(test, left, ==, right, ""))
#define KUNIT_EXPECT_GE(test, left, right)	((void)kunit_compare(test, left, >=, right, ""))
#define KUNIT_EXPECT_GT(test, left, right)	((void)kunit_compare(test, left, >, right, ""))
#define KUNIT_EXPECT_LE(test, left, right)	((void)kunit_compare(test, left, <=, right, ""))
#define KUNIT_EXPECT_NULL(test, p)		KUNIT_EXPECT_EQ(test, (uintptr_t)(p), 0)

#define kunit_assert(test, left, op, right)				\
do {									\
	struct kunit *__test = (test);					\
									\
	if (!kunit_compare(__test, left, op, right, ""))		\
		longjmp(__test->abort, 1);				\
} while (0)

#define KUNIT_ASSERT_EQ(test, left, right)	kunit_assert(test, left, ==, right)
#define KUNIT_ASSERT_GE(test, left, right)	kunit_assert(test, left, >=, right)
#define KUNIT_ASSERT_NOT_NULL(test, p)		kunit_assert(test, (uintptr_t)(p), !=, 0)

u64 get_random_u64(void);

#endif /* GMEM_STATE_KUNIT_H */
