// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of mm/filemap_offlru.c: what user space is not fast enough to see.
 */
#include <kunit/test.h>
#include <linux/cpumask.h>
#include <linux/filemap_offlru.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/pagemap.h>
#include <linux/poison.h>
#include <linux/sched.h>

#define ROUNDS		2000u
#define PATIENCE	(5 * HZ)

static const struct address_space_operations aops = {
	.free_folio = filemap_offlru_free_folio,
};

/* An inode as far as the page cache looks at it. */
static struct address_space *create_mapping(struct kunit *test)
{
	struct inode *inode = kunit_kzalloc(test, sizeof(*inode), GFP_KERNEL);
	struct address_space *mapping;

	KUNIT_ASSERT_NOT_NULL(test, inode);
	inode_init_once(inode);
	spin_lock_init(&inode->i_lock);
	atomic_set(&inode->i_count, 1);

	mapping = &inode->i_data;
	mapping->host = inode;
	mapping->a_ops = &aops;
	mapping_set_unevictable(mapping);
	mapping_set_inaccessible(mapping);
	inode->i_mapping = mapping;
	return mapping;
}

/**
 * struct waiter - somebody who waits for a folio lock in each round
 * @folio: the folio
 * @round: what the other begins to do
 * @done: what the other has done: there is nothing more to see
 * @woken: what the waiter has seen, and had the lock
 */
struct waiter {
	struct folio *folio;
	unsigned int round, done, woken;
};

static int wait_for_folio(void *data)
{
	struct waiter *w = data;
	unsigned int round = 1;

	for (; !kthread_should_stop(); cond_resched()) {
		if (READ_ONCE(w->round) != round)
			continue;

		while (!folio_test_locked(w->folio) && READ_ONCE(w->done) != round)
			cpu_relax();
		folio_lock(w->folio);
		folio_unlock(w->folio);
		/* Pairs with is_woken(): the folio is let go of. */
		smp_store_release(&w->woken, round++);
	}
	return 0;
}

static bool is_woken(struct waiter *w, unsigned int round)
{
	unsigned long end = jiffies + PATIENCE;

	/* Pairs with wait_for_folio(): leave the folio alone until then. */
	while (smp_load_acquire(&w->woken) != round) {
		if (time_after(jiffies, end))
			return false;
		cond_resched();
	}
	return true;
}

/* Nobody else is going to wake whoever is still there. */
static void wake(struct waiter *w, unsigned int round)
{
	do {
		folio_lock(w->folio);
		folio_set_waiters(w->folio);
		folio_unlock(w->folio);
	} while (!is_woken(w, round));
}

/*
 * A page that does not get into the file has been locked for a moment, and looked
 * like the file's.  memory_failure() may have found it by its address, and wait.
 */
static void who_waits_for_a_page_that_fails_is_woken(struct kunit *test)
{
	struct address_space *mapping = create_mapping(test);
	struct task_struct *task;
	struct folio *first;
	struct waiter w = {};
	bool woken = true;
	int ret = -EEXIST;
	unsigned int i;

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two CPUs");

	first = filemap_alloc_folio(GFP_KERNEL, 0, NULL);
	KUNIT_ASSERT_NOT_NULL(test, first);
	KUNIT_ASSERT_EQ(test, filemap_offlru_add(mapping, first, 0, GFP_KERNEL), 0);
	folio_unlock(first);
	folio_put(first);

	w.folio = filemap_alloc_folio(GFP_KERNEL, 0, NULL);
	KUNIT_EXPECT_NOT_NULL(test, w.folio);
	task = w.folio ? kthread_run(wait_for_folio, &w, "gmem-waiter") : NULL;
	KUNIT_EXPECT_FALSE(test, IS_ERR(task));

	for (i = 1; !IS_ERR_OR_NULL(task) && woken && ret == -EEXIST && i <= ROUNDS; i++) {
		WRITE_ONCE(w.round, i);
		ret = filemap_offlru_add(mapping, w.folio, 0, GFP_KERNEL);
		WRITE_ONCE(w.done, i);

		woken = is_woken(&w, i);
		if (!woken)
			wake(&w, i);
	}
	KUNIT_EXPECT_EQ(test, ret, -EEXIST);
	KUNIT_EXPECT_TRUE_MSG(test, woken, "round %u", i - 1);
	KUNIT_EXPECT_FALSE(test, w.folio && folio_test_unevictable(w.folio));

	if (!IS_ERR_OR_NULL(task))
		kthread_stop(task);
	if (w.folio)
		folio_put(w.folio);
	filemap_offlru_remove(mapping, 0, 0);
	KUNIT_EXPECT_EQ(test, mapping->nrpages, 0UL);
}

static int look_at_page(void *page)
{
	int found = 0;

	for (; !kthread_should_stop(); cond_resched()) {
		if (!page_try_get_offlru(page))
			continue;
		put_page(page);
		found |= 1;
	}
	return found;
}

/*
 * A page is the file's, and then a part of a huge page, over and over, while somebody
 * wants to know.  What is no address of a mapping must not be looked into.
 */
static void page_becomes_another(struct kunit *test)
{
	struct address_space *mapping = create_mapping(test);
	struct folio *folio = filemap_alloc_folio(GFP_KERNEL, 0, NULL);
	struct task_struct *task;
	unsigned long end;

	KUNIT_ASSERT_NOT_NULL(test, folio);
	task = kthread_run(look_at_page, &folio->page, "gmem-looker");
	KUNIT_EXPECT_FALSE(test, IS_ERR(task));

	for (end = jiffies + HZ; !IS_ERR(task) && time_before(jiffies, end); cond_resched()) {
		WRITE_ONCE(folio->mapping, mapping);
		folio_set_unevictable(folio);
		cpu_relax();
		WRITE_ONCE(folio->mapping, NULL);
		filemap_offlru_free_folio(folio);

		/* Who has a reference keeps it from that. */
		if (!folio_ref_freeze(folio, 1))
			continue;
		WRITE_ONCE(folio->mapping, TAIL_MAPPING);
		cpu_relax();
		WRITE_ONCE(folio->mapping, NULL);
		folio_ref_unfreeze(folio, 1);
	}

	if (!IS_ERR(task))
		KUNIT_EXPECT_EQ(test, kthread_stop(task), num_online_cpus() > 1);
	folio_put(folio);
}

static struct kunit_case filemap_offlru_cases[] = {
	KUNIT_CASE(page_becomes_another),
	KUNIT_CASE(who_waits_for_a_page_that_fails_is_woken),
	{}
};

static struct kunit_suite filemap_offlru_suite = {
	.name = "filemap_offlru",
	.test_cases = filemap_offlru_cases,
};

kunit_test_suite(filemap_offlru_suite);
