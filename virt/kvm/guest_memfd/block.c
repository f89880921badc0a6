// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd blocks: where physical memory comes from and where it goes.
 *
 * Owns: presence and initialisation of the pages in inode->i_mapping, and the block
 * bit of the inode's state.
 *
 *   place    The aligned range of indices that is as large as a block.  What is left
 *            behind the last place of an inode is base pages, as is all of an inode
 *            without blocks.
 *   block    Contiguous memory, aligned in itself, that was allocated for a place.
 *   base page  Memory that was allocated by itself.
 *
 * Core-mm knows nothing of blocks: all pages are order-0 folios of the page cache,
 * off the LRU, with a reference count each, so that one page can be converted, pinned
 * or freed and its neighbours stay what they are.  To be contiguous is what makes a
 * block.  Nothing is split or merged.
 *
 * B1  A page is up to date if and only if it has content: zeroes, or what a
 *     user, a guest or populate wrote.  Nobody maps a page that is not, but for
 *     the architecture while it populates it.
 * B2  Pages enter under invalidate_lock in either mode, and leave under it
 *     exclusive; but for pages of a block that fails to enter, which are locked
 *     until they have gone.
 * B3  A page with GMEM_BLOCK is present, up to date, without a memory error that
 *     has been handled, and at the same distance from the start of the block as the
 *     index is from that of the place.
 * B4  A block enters as a whole, into a place without a page.
 *
 * So what is all GMEM_BLOCK, and no larger than a place, can be mapped as one.
 *
 * A block whose pages are freed in part is broken: holes are filled with base pages,
 * which may be anywhere.  It is mended when all of the place is given up, and filled
 * anew.
 *
 * Blocks of PMD_ORDER come from the buddy allocator.  Where there is none, the place
 * gets base pages, one by one.  Larger ones are put together by moving away what is
 * there, which can take seconds.  They have no substitute: who asks for them wants to
 * know.
 *
 * Allocation can fail; freeing cannot.
 */
#include <linux/cleanup.h>
#include <linux/filemap_offlru.h>
#include <linux/highmem.h>
#include <linux/sched/signal.h>

#include "gmem.h"

#include <trace/events/kvm_gmem.h>

static struct folio *gmem_block_add_folio(struct inode *inode, pgoff_t index)
{
	struct address_space *mapping = inode->i_mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	struct mempolicy *policy;
	struct folio *folio;
	int ret;

	policy = mpol_shared_policy_lookup(&GMEM_I(inode)->policy, index);
	folio = filemap_alloc_folio(gfp, 0, policy);
	mpol_cond_put(policy);
	if (!folio)
		return ERR_PTR(-ENOMEM);

	ret = filemap_offlru_add(mapping, folio, index, gfp);
	if (ret) {
		folio_put(folio);
		return ERR_PTR(ret);
	}
	return folio;
}

struct folio *gmem_block_get_folio(struct inode *inode, pgoff_t index)
{
	struct address_space *mapping = inode->i_mapping;
	struct folio *folio;

	lockdep_assert_held(&mapping->invalidate_lock);

	/* Whoever was faster leaves the page there: B2.  It is found next time. */
	do {
		folio = filemap_lock_folio(mapping, index);
		if (!IS_ERR(folio))
			break;
		if (gmem_block_order(inode, index))
			return ERR_PTR(-ENODATA);
		folio = gmem_block_add_folio(inode, index);
	} while (folio == ERR_PTR(-EEXIST));

	return folio;
}

void gmem_block_init_folio(struct folio *folio)
{
	if (folio_test_uptodate(folio) || folio_test_hwpoison(folio))
		return;

	clear_highpage(&folio->page);
	/* There is no copy elsewhere.  memory_failure() wants to know. */
	folio_mark_dirty(folio);
	folio_mark_uptodate(folio);
}

/* Zero a block that nobody else knows.  Return -EINTR if there is no use in it. */
static int gmem_block_zero(struct page *page, unsigned int order, bool patient)
{
	unsigned long i;

	for (i = 0; i < BIT(order); i++) {
		clear_highpage(page + i);

		if ((i + 1) % GMEM_BATCH || i + 1 == BIT(order))
			continue;
		if (patient ? signal_pending(current) : fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

/*
 * A vCPU, or a user, has better things to do than to wait for compaction: it gets a
 * base page then.  But there is no other way to a large block.
 */
static gfp_t gmem_block_gfp(struct inode *inode, unsigned int order, bool patient)
{
	gfp_t gfp = mapping_gfp_mask(inode->i_mapping) | __GFP_NOWARN;

	if (order > MAX_PAGE_ORDER)
		return gfp | __GFP_RETRY_MAYFAIL;

	return patient ? gfp | __GFP_NORETRY : gfp & ~__GFP_DIRECT_RECLAIM;
}

static struct page *gmem_block_alloc(struct inode *inode, pgoff_t start,
				     unsigned int order, gfp_t gfp, bool patient)
{
	struct mempolicy *policy;
	struct page *page;

	policy = mpol_shared_policy_lookup(&GMEM_I(inode)->policy, start);
	page = filemap_offlru_alloc_block(gfp, order, policy, start, patient);
	mpol_cond_put(policy);
	return page;
}

static void gmem_block_break(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);

	end = min(end, gmem_nr_pages(inode));
	if (!gi->block_order || start >= end)
		return;

	guard(mutex)(&gi->block_lock);
	gmem_state_set(&gi->state, start, end, GMEM_BLOCK, 0);
	trace_kvm_gmem_break(inode, start, end);
}

void gmem_block_break_folio(struct inode *inode, struct folio *folio)
{
	gmem_block_break(inode, folio->index, folio_next_index(folio));
}

/* Insert a block and say that it is one; all or nothing. */
static int gmem_block_insert(struct inode *inode, struct page *page, pgoff_t start,
			     unsigned int order, gfp_t gfp, bool patient)
{
	struct address_space *mapping = inode->i_mapping;
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_state_change change;
	unsigned long i;
	int ret;

	guard(rwsem_read)(&mapping->invalidate_lock);
	/* Keep own.c from pages that may be taken back. */
	guard(mutex)(&gi->own_lock);

	scoped_guard(mutex, &gi->block_lock) {
		ret = gmem_state_prepare(&gi->state, &change, start, start + BIT(order),
					 GMEM_BLOCK, GMEM_BLOCK);
		if (ret)
			return ret;

		ret = filemap_offlru_add_block(mapping, page, start, BIT(order), gfp,
					       patient);
		if (ret) {
			gmem_state_abort(&change);
			return ret;
		}

		gmem_state_commit(&gi->state, &change);
	}

	for (i = 0; i < BIT(order); i++) {
		/* Marked before it was the inode's: nobody is going to tell. */
		if (PageHWPoison(page + i)) {
			WRITE_ONCE(gi->poisoned, true);
			gmem_block_break_folio(inode, page_folio(page + i));
		}
		folio_unlock(page_folio(page + i));
	}
	return 0;
}

static int gmem_block_fill_page(struct inode *inode, pgoff_t index)
{
	struct folio *folio;

	guard(rwsem_read)(&inode->i_mapping->invalidate_lock);
	folio = gmem_block_add_folio(inode, index);
	if (IS_ERR(folio))
		return PTR_ERR(folio) == -EEXIST ? 0 : PTR_ERR(folio);

	folio_unlock(folio);
	folio_put(folio);
	return 0;
}

static int gmem_block_fill_place(struct inode *inode, pgoff_t start,
				 unsigned int order, bool patient)
{
	gfp_t gfp = gmem_block_gfp(inode, order, patient);
	struct page *page;
	int ret;

	page = gmem_block_alloc(inode, start, order, gfp, patient);
	if (IS_ERR(page))
		return PTR_ERR(page);

	ret = want_init_on_alloc(gfp) ? 0 : gmem_block_zero(page, order, patient);
	if (!ret)
		ret = gmem_block_insert(inode, page, start, order, gfp, patient);
	if (ret)
		filemap_offlru_free_block(page, order);
	return ret;
}

/* Is there a page in a place? */
static bool gmem_block_is_used(struct inode *inode, pgoff_t start, unsigned int order)
{
	unsigned long index = start;

	return xa_find(&inode->i_mapping->i_pages, &index, start + BIT(order) - 1,
		       XA_PRESENT);
}

unsigned int gmem_block_order(struct inode *inode, pgoff_t index)
{
	unsigned int order = GMEM_I(inode)->block_order;

	return index < round_down(gmem_nr_pages(inode), BIT(order)) ? order : 0;
}

int gmem_block_fill(struct inode *inode, pgoff_t index, bool patient)
{
	unsigned int order = gmem_block_order(inode, index);
	pgoff_t start = round_down(index, BIT(order));
	struct gmem_inode *gi = GMEM_I(inode);
	int ret;

	if (gmem_block_is_used(inode, start, order))
		return gmem_block_fill_page(inode, index);

	/* Some places share a lock.  All that costs is time. */
	scoped_cond_guard(mutex_kill, return -EINTR,
			  &gi->fill_lock[(index >> order) % GMEM_NR_FILL_LOCKS]) {
		/* Whoever was faster may have brought the page, or not: see again. */
		if (gmem_block_is_used(inode, start, order))
			return 0;

		ret = gmem_block_fill_place(inode, start, order, patient);
		trace_kvm_gmem_block(inode, start, order, ret);
		if (ret == -ENOMEM && order <= MAX_PAGE_ORDER)
			ret = gmem_block_fill_page(inode, index);
	}
	return ret == -EEXIST ? 0 : ret;
}

int gmem_block_allocate(struct inode *inode, pgoff_t *start, pgoff_t end)
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	struct folio *folio;
	unsigned long block;
	pgoff_t next;

	for (; *start < end; *start = next) {
		if (signal_pending(current))
			return -EINTR;

		/* What is there already is no work. */
		next = min(gmem_state_run(st, *start, GMEM_BLOCK, &block), end);
		if (block)
			continue;

		next = *start + 1;
		folio = gmem_block_get_folio(inode, *start);
		if (IS_ERR(folio))
			return PTR_ERR(folio);

		folio_unlock(folio);
		folio_put(folio);
		cond_resched();
	}

	return 0;
}

/* Does a place have memory of a block? */
static bool gmem_block_is_broken(const struct gmem_state *st, pgoff_t start,
				 pgoff_t end)
{
	unsigned long block;

	for (; start < end; start = gmem_state_run(st, start, GMEM_BLOCK, &block)) {
		if (gmem_state_get(st, start, GMEM_BLOCK, NULL))
			return true;
	}
	return false;
}

void gmem_block_count(struct inode *inode, struct gmem_block_counts *counts)
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	unsigned long index = 0;
	unsigned int order, alike;
	pgoff_t next;

	*counts = (struct gmem_block_counts) {};
	for (; xa_find(&inode->i_mapping->i_pages, &index, ULONG_MAX, XA_PRESENT);
	     index = next) {
		order = gmem_block_order(inode, index);
		if (!order || fatal_signal_pending(current))
			break;

		index = round_down(index, BIT(order));
		next = index + BIT(order);
		if (gmem_state_get(st, index, GMEM_BLOCK, &alike) && alike >= order)
			counts->whole++;
		else if (gmem_block_is_broken(st, index, next))
			counts->broken++;
		else
			counts->base++;
		cond_resched();
	}
}

void gmem_block_free(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	gmem_block_break(inode, start, end);

	/*
	 * Remove markers as well that a memory error has left in user page tables, in
	 * place of a page.
	 */
	unmap_mapping_pages(mapping, start, end - start, true);

	/* Most pages have no other user and go at once.  Wait for the others. */
	filemap_offlru_remove(mapping, start, end - 1);
	truncate_inode_pages_range(mapping, (loff_t)start << PAGE_SHIFT,
				   ((loff_t)end << PAGE_SHIFT) - 1);
}
