// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd conversion: private to shared and back, in place.
 *
 * Owns: the private bit of an inode's state, once the inode is there.
 *
 * The state of a page decides who may use it, so nobody may still be using it in
 * the old way once the state has changed.  Each step below is there for a race
 * with somebody who is about to, and stays until the end: who comes later waits,
 * or retries, and finds the new state.
 *
 * To private:
 *
 *   1. Prepare the state.  Last thing that can fail for want of memory.
 *   2. Begin an invalidation: remove the pages from guest page tables, and make
 *      guest faults retry that have looked at the state before, however long ago.
 *   3. Remove the pages from user page tables.  User faults, and get_user_pages()
 *      by way of them, wait for invalidate_lock.
 *   4. See that nobody refers to the pages but the file.  get_user_pages_fast()
 *      takes no lock: it takes a reference, and gives it back if the page table
 *      has changed in the meantime.  Step 3 changes the page table, then step 4
 *      looks for a reference.  So one of the two sees the other.
 *   5. Make the pages the guest's, where hardware keeps a record of whose they
 *      are: no sooner than the last user is gone, whom the hardware would stop.
 *   6. Commit the state, which cannot fail, and end the invalidation.
 *
 * To shared, there is no user to look for, so steps 3 to 5 make way for giving the
 * pages back to the host.
 *
 * References do not go away with the page table entries.  Some are on their way
 * out, with somebody who must not notice (see gmem_convert_wait()); some stay for
 * as long as their owner likes, who is told.
 *
 * tools/testing/guest_memfd/model has models of these races, for spin.  It can
 * remove each step, NO_STEP_1 (model "own"), NO_STEP_2* ("guest", "block"),
 * NO_STEP_3 ("user"), NO_STEP_4* ("user", "gup"), NO_STEP_5* ("own", "own-block")
 * and NO_STEP_6* ("guest"); or move one, STEP_5_EARLY ("own"), STEP_6_LATE ("guest");
 * or what the other side does, NO_GUP_* ("gup"), NO_RMB and NO_VCPU_CHECK ("guest").
 * It shows what happens then: see README there.
 */
#include <linux/cleanup.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>

#include "gmem.h"

#define CREATE_TRACE_POINTS
#include <trace/events/kvm_gmem.h>

/* How long to wait for references in all of a conversion, in ms. */
#define GMEM_WAIT		200
/* And for a page that is pinned, which I/O in progress is a part of, at most. */
#define GMEM_WAIT_PINNED	10

struct gmem_conversion {
	struct inode *inode;
	pgoff_t start, end;
	bool to_private;
	/* While waiting for references; 0 before. */
	unsigned long wait_since;
	pgoff_t error_index;
};

/*
 * Cut off what needs no conversion at either end.  Return the number of indices
 * that do need it, or -EINTR.
 */
static long gmem_convert_trim(struct gmem_conversion *c)
{
	const struct gmem_state *st = &GMEM_I(c->inode)->state;
	unsigned long want = c->to_private ? GMEM_PRIVATE : 0, bits;
	pgoff_t index = c->start, end = c->end, next;
	long nr = 0;

	for (c->end = index; index < end; index = next) {
		next = min(gmem_state_run(st, index, GMEM_PRIVATE, &bits), end);
		if (bits != want) {
			if (!nr)
				c->start = index;
			c->end = next;
			nr += next - index;
		}

		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return nr;
}

/*
 * Wait until nobody but the file refers to a page, if that is a matter of time:
 *
 *   - a user fault that has brought the page, and not mapped it yet.  It has the
 *     page locked; once it is mapped, unmap it;
 *   - munmap() and the like, which drop the page after they have flushed the TLB,
 *     that is, when nobody can use the page through it anymore;
 *   - batches of pages to be munlocked, per CPU.  To unmap may add to them;
 *   - get_user_pages_fast(), which is going to change its mind;
 *   - those who look at pages by pfn and do not touch their content;
 *   - I/O and system calls in progress, which mostly end soon.
 */
static int gmem_convert_wait(struct gmem_conversion *c, struct folio *folio)
{
	enum lru_cache_drained drained = LRU_CACHE_NOT_DRAINED;
	struct address_space *mapping = c->inode->i_mapping;
	unsigned long now, pinned_since = 0;
	unsigned int round, nap = 20;
	bool give_up;

	if (!c->wait_since)
		c->wait_since = jiffies ?: 1;

	for (round = 1; ; round++) {
		folio_lock(folio);
		if (folio_mapped(folio)) {
			unmap_mapping_pages(mapping, folio->index, 1, true);
			drained = LRU_CACHE_NOT_DRAINED;
		}
		folio_unlock(folio);

		/* To drain disturbs all CPUs: do it again now and then only. */
		if (round % 16 == 0)
			drained = LRU_CACHE_NOT_DRAINED;
		lru_cache_drain_for_folio(folio, 0, &drained);

		/* As in gmem_convert_check(), which says why. */
		smp_mb();
		if (folio_ref_count(folio) == 1)
			return 0;

		/* memory_failure() keeps a reference; the content is lost anyway. */
		if (folio_test_hwpoison(folio))
			return 0;

		if (fatal_signal_pending(current))
			return -EINTR;

		now = jiffies;
		give_up = time_after(now, c->wait_since + msecs_to_jiffies(GMEM_WAIT));
		if (folio_maybe_dma_pinned(folio)) {
			pinned_since = pinned_since ?: now ?: 1;
			give_up |= time_after(now, pinned_since +
						   msecs_to_jiffies(GMEM_WAIT_PINNED));
		}
		if (give_up) {
			c->error_index = folio->index;
			return -EAGAIN;
		}

		usleep_range(nap, 2 * nap);
		nap = min(2 * nap, 1000U);
	}
}

/* See that the file has the only reference to each page. */
static int gmem_convert_check(struct gmem_conversion *c)
{
	XA_STATE(xas, &c->inode->i_mapping->i_pages, c->start);
	unsigned int batch = 0;
	struct folio *folio;
	int ret = 0;

	/*
	 * Order the removal of page table entries before the look at reference
	 * counts.  Pairs with the atomic operation by which gup_fast_pte_range()
	 * takes a reference before it reads the entry again.
	 */
	smp_mb();

	/*
	 * Take no reference and no lock.  invalidate_lock keeps the pages in the
	 * file, which keeps them from being freed.  A page without references but
	 * the file's is not mapped, nor about to be.
	 */
	rcu_read_lock();
	xas_for_each(&xas, folio, c->end - 1) {
		if (xas_retry(&xas, folio))
			continue;

		if (likely(folio_ref_count(folio) == 1) && ++batch < GMEM_BATCH) {
			if (xas.xa_index == c->end - 1)
				break;
			continue;
		}

		batch = 0;
		xas_pause(&xas);
		rcu_read_unlock();

		if (folio_ref_count(folio) != 1)
			ret = gmem_convert_wait(c, folio);
		else if (fatal_signal_pending(current))
			ret = -EINTR;
		else
			cond_resched();

		rcu_read_lock();
		if (ret)
			break;
	}
	rcu_read_unlock();

	return ret;
}

static int gmem_convert_pages(struct gmem_conversion *c)
{
	int ret;

	if (!c->to_private) {
		/* A page may be left with the guest.  TDX has no other way to say so. */
		if (gmem_bind_is_dead(c->inode))
			return -EIO;
		return gmem_own_to_shared(c->inode, c->start, c->end, &c->error_index);
	}

	/* Together with the markers that memory errors have left. */
	unmap_mapping_pages(c->inode->i_mapping, c->start, c->end - c->start, true);
	ret = gmem_convert_check(c);
	if (ret)
		return ret;

	return gmem_own_to_private(c->inode, c->start, c->end, &c->error_index);
}

static int gmem_convert_locked(struct gmem_conversion *c)
{
	struct gmem_inode *gi = GMEM_I(c->inode);
	struct gmem_state_change change;
	long nr;
	int ret;

	lockdep_assert_held_write(&c->inode->i_mapping->invalidate_lock);

	nr = gmem_convert_trim(c);
	if (nr <= 0)
		return nr;

	/* What becomes shared is not owned anymore.  The rest is up to own.c. */
	if (c->to_private)
		ret = gmem_state_prepare(&gi->state, &change, c->start, c->end,
					 GMEM_PRIVATE, GMEM_PRIVATE);
	else
		ret = gmem_state_prepare(&gi->state, &change, c->start, c->end,
					 GMEM_PRIVATE | GMEM_OWNED, 0);
	if (ret)
		return ret;

	WRITE_ONCE(gi->nr_converting, nr);
	gmem_bind_convert_begin(c->inode, c->start, c->end, c->to_private);

	ret = gmem_convert_pages(c);
	if (ret) {
		gmem_state_abort(&change);
	} else {
		gmem_state_commit(&gi->state, &change);
		WRITE_ONCE(gi->nr_private, c->to_private ? gi->nr_private + nr :
							   gi->nr_private - nr);
	}

	/*
	 * Who looks at the state without a lock, and then sees no invalidation,
	 * has seen the new state.  Pairs with the smp_rmb() after a guest fault
	 * has sampled mmu_invalidate_seq.
	 */
	smp_wmb();
	gmem_bind_invalidate_end(c->inode);
	WRITE_ONCE(gi->nr_converting, 0);
	return ret;
}

int gmem_convert(struct inode *inode, pgoff_t start, pgoff_t end,
		 bool to_private, pgoff_t *error_index)
{
	struct gmem_conversion c = {
		.inode		= inode,
		.start		= start,
		.end		= end,
		.to_private	= to_private,
		.error_index	= start,
	};
	int ret;

	ret = down_write_killable(&inode->i_mapping->invalidate_lock);
	if (!ret) {
		ret = gmem_convert_locked(&c);
		filemap_invalidate_unlock(inode->i_mapping);
	}

	trace_kvm_gmem_convert(inode, start, end, to_private, ret);
	*error_index = c.error_index;
	return ret;
}

pgoff_t gmem_convert_run(struct inode *inode, pgoff_t start, pgoff_t end,
			 bool *private)
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	unsigned long first, bits;
	pgoff_t index, next;

	filemap_invalidate_lock_shared(inode->i_mapping);

	index = gmem_state_run(st, start, GMEM_PRIVATE, &first);
	while (index < end && !fatal_signal_pending(current)) {
		next = gmem_state_run(st, index, GMEM_PRIVATE, &bits);
		if (bits != first)
			break;

		index = next;
		cond_resched();
	}

	filemap_invalidate_unlock_shared(inode->i_mapping);

	*private = first;
	return min(index, end);
}
