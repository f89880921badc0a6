// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of guest_memfd's state table.
 *
 * They run in user space too, with other orders than this kernel has, and under
 * sanitizers: tools/testing/guest_memfd/state/.
 */
#include <kunit/test.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <linux/rcupdate.h>

#include "state_model.h"

#define BLOCK		BIT(PMD_ORDER)
#define REGION		BIT(PMD_ORDER + MODEL_STEP)
#define MAX_PAGES	((pgoff_t)(MAX_LFS_FILESIZE >> PAGE_SHIFT))

/* Nodes on the way to a single page of the largest file, or more. */
#define MAX_PATH	(2 + (63 - PAGE_SHIFT - PMD_ORDER) / MODEL_STEP)

static void set(struct kunit *test, pgoff_t start, pgoff_t end,
		unsigned long mask, unsigned long bits)
{
	struct gmem_state *st = test->priv;
	struct gmem_state_change c;

	KUNIT_ASSERT_EQ(test, gmem_state_prepare(st, &c, start, end, mask, bits), 0);
	gmem_state_commit(st, &c);
	KUNIT_ASSERT_GE(test, gmem_state_check(st), 0L);
}

static unsigned long get(struct kunit *test, pgoff_t index)
{
	return gmem_state_get(test->priv, index, MODEL_ALL_BITS, NULL);
}

static unsigned int order_at(struct kunit *test, pgoff_t index, unsigned long mask)
{
	unsigned int order;

	gmem_state_get(test->priv, index, mask, &order);
	return order;
}

/* Exactly [start, end) has @bits, of all pages that are not far away. */
static void expect_only(struct kunit *test, pgoff_t start, pgoff_t end,
			unsigned long bits)
{
	struct gmem_state *st = test->priv;
	pgoff_t index, stop = min(end + 3, st->nr_pages);

	for (index = start - min(start, 3UL); index < stop; index++) {
		KUNIT_EXPECT_EQ_MSG(test, get(test, index),
				    index >= start && index < end ? bits : 0,
				    "page %#lx, range [%#lx, %#lx)", index, start, end);
		if (index == start + 3 && end > start + 6)
			index = end - 3;
	}
}

static void uniform_needs_no_node(struct kunit *test)
{
	static const pgoff_t sizes[] = {
		1, BLOCK - 1, BLOCK, BLOCK + 1, REGION, 3 * REGION + 1, MAX_PAGES,
	};
	struct gmem_state *st = test->priv;
	unsigned long i, bits, found;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (bits = 0; bits <= MODEL_ALL_BITS; bits++) {
			gmem_state_init(st, sizes[i], bits);
			KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
			KUNIT_EXPECT_EQ(test, get(test, 0), bits);
			KUNIT_EXPECT_EQ(test, get(test, sizes[i] - 1), bits);
			KUNIT_EXPECT_GE(test, BIT(order_at(test, 0, MODEL_ALL_BITS)),
					sizes[i]);
			KUNIT_EXPECT_EQ(test, gmem_state_run(st, 0, MODEL_ALL_BITS, &found),
					sizes[i]);
			KUNIT_EXPECT_EQ(test, found, bits);

			set(test, 0, sizes[i], MODEL_ALL_BITS, ~bits);
			KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
			KUNIT_EXPECT_EQ(test, get(test, 0), ~bits & MODEL_ALL_BITS);
			KUNIT_EXPECT_EQ(test, get(test, sizes[i] - 1),
					~bits & MODEL_ALL_BITS);
		}
	}
}

static void one_page_of_the_largest_file(struct kunit *test)
{
	static const pgoff_t pages[] = {
		0, 1, BLOCK - 1, MAX_PAGES / 2 - 1, MAX_PAGES / 2, MAX_PAGES / 2 + 1,
		MAX_PAGES - BLOCK, MAX_PAGES - 2, MAX_PAGES - 1,
	};
	struct gmem_state *st = test->priv;
	unsigned long i;

	gmem_state_init(st, MAX_PAGES, 0);

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		set(test, pages[i], pages[i] + 1, GMEM_PRIVATE, GMEM_PRIVATE);
		expect_only(test, pages[i], pages[i] + 1, GMEM_PRIVATE);
		KUNIT_EXPECT_GT(test, gmem_state_check(st), 0L);
		KUNIT_EXPECT_LE(test, gmem_state_check(st), (long)MAX_PATH);
		KUNIT_EXPECT_EQ(test, order_at(test, pages[i], GMEM_PRIVATE), 0);

		set(test, pages[i], pages[i] + 1, GMEM_PRIVATE, 0);
		KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
	}

	/* All at once, then flip the file over them. */
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		set(test, pages[i], pages[i] + 1, GMEM_OWNED, GMEM_OWNED);
	set(test, 0, MAX_PAGES, GMEM_OWNED, GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
	KUNIT_EXPECT_EQ(test, get(test, MAX_PAGES / 2), GMEM_OWNED);
}

static void ranges_are_exact(struct kunit *test)
{
	static const pgoff_t corners[] = {
		0, BLOCK, 2 * BLOCK, REGION, REGION + BLOCK, 2 * REGION,
	};
	struct gmem_state *st = test->priv;
	unsigned long i, j, k;
	pgoff_t start, end;

	gmem_state_init(st, 2 * REGION + 2, 0);

	for (i = 0; i < ARRAY_SIZE(corners); i++) {
		for (j = i; j < ARRAY_SIZE(corners); j++) {
			for (k = 0; k < 9; k++) {
				start = corners[i] + k / 3;
				start -= min(start, 1UL);
				end = corners[j] + k % 3;
				end -= min(end, 1UL);
				if (start >= end)
					continue;

				set(test, start, end, GMEM_PRIVATE, GMEM_PRIVATE);
				expect_only(test, start, end, GMEM_PRIVATE);
				set(test, start, end, GMEM_PRIVATE, 0);
				KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
			}
		}
	}
}

static void bits_are_independent(struct kunit *test)
{
	struct gmem_state *st = test->priv;
	unsigned long bits;

	gmem_state_init(st, REGION, GMEM_PRIVATE);
	set(test, 1, 2, GMEM_OWNED, GMEM_OWNED);

	KUNIT_EXPECT_EQ(test, get(test, 0), GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, get(test, 1), GMEM_PRIVATE | GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 1, GMEM_PRIVATE, NULL), GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 1, GMEM_OWNED, NULL), GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 1, 0, NULL), 0);

	KUNIT_EXPECT_EQ(test, order_at(test, 1, GMEM_PRIVATE), PMD_ORDER + MODEL_STEP);
	KUNIT_EXPECT_EQ(test, order_at(test, 1, GMEM_OWNED), 0);
	KUNIT_EXPECT_EQ(test, order_at(test, 1, MODEL_ALL_BITS), 0);
	KUNIT_EXPECT_EQ(test, order_at(test, BLOCK, GMEM_OWNED), PMD_ORDER);

	KUNIT_EXPECT_EQ(test, gmem_state_run(st, 0, GMEM_PRIVATE, &bits), REGION);
	KUNIT_EXPECT_EQ(test, bits, GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_run(st, 0, MODEL_ALL_BITS, &bits), 1);
	KUNIT_EXPECT_EQ(test, bits, GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_run(st, 1, MODEL_ALL_BITS, &bits), 2);
	KUNIT_EXPECT_EQ(test, bits, GMEM_PRIVATE | GMEM_OWNED);

	/* Both at once, to different values, over what is there. */
	set(test, 0, BLOCK, MODEL_ALL_BITS, GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, get(test, 0), GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, get(test, 1), GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, get(test, BLOCK - 1), GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, get(test, BLOCK), GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, order_at(test, 0, MODEL_ALL_BITS), PMD_ORDER);
}

/* Page by page, then block by block: the order goes up with the last one. */
static void uniform_spans_collapse(struct kunit *test)
{
	struct gmem_state *st = test->priv;
	pgoff_t index;

	gmem_state_init(st, REGION, 0);

	for (index = 0; index < BLOCK; index++) {
		KUNIT_EXPECT_EQ(test, order_at(test, 0, GMEM_PRIVATE),
				index ? 0 : PMD_ORDER + MODEL_STEP);
		set(test, index, index + 1, GMEM_PRIVATE, GMEM_PRIVATE);
	}

	for (index = BLOCK; index < REGION; index += BLOCK) {
		KUNIT_EXPECT_EQ(test, order_at(test, 0, GMEM_PRIVATE), PMD_ORDER);
		KUNIT_EXPECT_EQ(test, order_at(test, REGION - 1, GMEM_PRIVATE), PMD_ORDER);
		KUNIT_EXPECT_EQ(test, gmem_state_check(st), 1L);
		set(test, index, index + BLOCK, GMEM_PRIVATE, GMEM_PRIVATE);
	}

	KUNIT_EXPECT_EQ(test, order_at(test, 0, GMEM_PRIVATE), PMD_ORDER + MODEL_STEP);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
}

/* A file that ends in a part of a block is uniform like any other. */
static void a_partial_end_is_uniform(struct kunit *test)
{
	struct gmem_state *st = test->priv;
	pgoff_t size = REGION + BLOCK + 2;

	gmem_state_init(st, size, 0);

	set(test, 0, size - 1, GMEM_PRIVATE, GMEM_PRIVATE);
	expect_only(test, 0, size - 1, GMEM_PRIVATE);
	set(test, size - 1, size, GMEM_PRIVATE, GMEM_PRIVATE);
	expect_only(test, 0, size, GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);

	set(test, size - 1, size, GMEM_PRIVATE, 0);
	set(test, size - 2, size, GMEM_PRIVATE, 0);
	expect_only(test, 0, size - 2, GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, order_at(test, size - 1, GMEM_PRIVATE), PMD_ORDER);
}

static void abort_changes_nothing(struct kunit *test)
{
	struct gmem_state *st = test->priv;
	struct gmem_state_change c;
	long nr;

	gmem_state_init(st, MAX_PAGES, 0);
	set(test, 1, REGION + 1, GMEM_PRIVATE, GMEM_PRIVATE);
	nr = gmem_state_check(st);

	KUNIT_ASSERT_EQ(test, gmem_state_prepare(st, &c, BLOCK + 1, MAX_PAGES - 1,
						 MODEL_ALL_BITS, GMEM_OWNED), 0);
	expect_only(test, 1, REGION + 1, GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), nr);

	gmem_state_abort(&c);
	expect_only(test, 1, REGION + 1, GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), nr);
	KUNIT_EXPECT_EQ(test, get(test, MAX_PAGES / 2), 0);
}

static void set_is_prepare_and_commit(struct kunit *test)
{
	struct gmem_state *st = test->priv;

	gmem_state_init(st, BIT(PUD_ORDER), GMEM_PRIVATE);
	gmem_state_set(st, 3, 5, GMEM_PRIVATE | GMEM_OWNED, GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 2, ~0UL, NULL), GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 3, ~0UL, NULL), GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 4, ~0UL, NULL), GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_get(st, 5, ~0UL, NULL), GMEM_PRIVATE);

	gmem_state_set(st, 0, BIT(PUD_ORDER), GMEM_PRIVATE | GMEM_OWNED, GMEM_OWNED);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0);
}

static void no_change_needs_no_node(struct kunit *test)
{
	struct gmem_state *st = test->priv;
	struct gmem_state_change c;

	gmem_state_init(st, REGION, GMEM_PRIVATE);
	KUNIT_ASSERT_EQ(test, gmem_state_prepare(st, &c, 1, REGION - 1,
						 MODEL_ALL_BITS, GMEM_PRIVATE), 0);
	KUNIT_EXPECT_NULL(test, c.leaves);
	KUNIT_EXPECT_NULL(test, c.tables);
	gmem_state_commit(st, &c);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);

	/* The bits that are not in the mask do not matter. */
	set(test, 1, 2, 0, MODEL_ALL_BITS);
	KUNIT_EXPECT_EQ(test, get(test, 1), GMEM_PRIVATE);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
}

static void destroyed_is_clear(struct kunit *test)
{
	struct gmem_state *st = test->priv;

	gmem_state_init(st, MAX_PAGES, GMEM_PRIVATE);
	set(test, 1, MAX_PAGES - 1, MODEL_ALL_BITS, GMEM_OWNED);
	gmem_state_destroy(st);

	KUNIT_EXPECT_EQ(test, gmem_state_check(st), 0L);
	KUNIT_EXPECT_EQ(test, get(test, 0), 0);
	KUNIT_EXPECT_EQ(test, get(test, 1), 0);
}

static void check_finds_faults(struct kunit *test)
{
	struct gmem_state *st = test->priv;

	/* Behind the end, what is not equal to the last page. */
	gmem_state_init(st, BLOCK, 0);
	set(test, 1, 2, GMEM_OWNED, GMEM_OWNED);
	st->nr_pages = 1;
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), -EINVAL);
	st->nr_pages = BLOCK;
	gmem_state_destroy(st);

	/* Neither a value nor a node. */
	RCU_INIT_POINTER(st->root[1], (void *)5);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), -EINVAL);
	RCU_INIT_POINTER(st->root[1], NULL);
	KUNIT_EXPECT_EQ(test, gmem_state_check(st), -EINVAL);

	gmem_state_init(st, 1, 0);
}

static void random_changes(struct kunit *test)
{
	struct gmem_model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	u64 seed = get_random_u64();
	int round, step;

	KUNIT_ASSERT_NOT_NULL(test, m);
	m->seed = seed;

	for (round = 0; round < 50; round++) {
		model_init(m);
		for (step = 0; step < 1000 && model_step(m); step++)
			;
		if (!model_destroy(m)) {
			KUNIT_FAIL(test, "seed %#llx, orders %u and %u: %s",
				   (unsigned long long)seed, PMD_ORDER, PUD_ORDER,
				   m->error);
			return;
		}
	}
}

static int gmem_state_test_init(struct kunit *test)
{
	struct gmem_state *st = kunit_kzalloc(test, sizeof(*st), GFP_KERNEL);

	if (!st)
		return -ENOMEM;

	gmem_state_init(st, 1, 0);
	test->priv = st;
	return 0;
}

static void gmem_state_test_exit(struct kunit *test)
{
	if (test->priv)
		gmem_state_destroy(test->priv);
}

static struct kunit_case gmem_state_cases[] = {
	KUNIT_CASE(uniform_needs_no_node),
	KUNIT_CASE(one_page_of_the_largest_file),
	KUNIT_CASE(ranges_are_exact),
	KUNIT_CASE(bits_are_independent),
	KUNIT_CASE(uniform_spans_collapse),
	KUNIT_CASE(a_partial_end_is_uniform),
	KUNIT_CASE(abort_changes_nothing),
	KUNIT_CASE(set_is_prepare_and_commit),
	KUNIT_CASE(no_change_needs_no_node),
	KUNIT_CASE(destroyed_is_clear),
	KUNIT_CASE(check_finds_faults),
	KUNIT_CASE_SLOW(random_changes),
	{}
};

static struct kunit_suite gmem_state_suite = {
	.name = "guest_memfd_state",
	.init = gmem_state_test_init,
	.exit = gmem_state_test_exit,
	.test_cases = gmem_state_cases,
};

kunit_test_suite(gmem_state_suite);
