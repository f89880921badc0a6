// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd blocks: where physical memory comes from and where it goes.
 *
 * Owns: presence and initialisation of the pages in inode->i_mapping.  A block
 * is a single page so far: an order-0 folio of the page cache, off the LRU.
 *
 * B1  A page is up to date if and only if it has content: zeroes, or what a
 *     user, a guest or populate wrote.  Nobody maps a page that is not, but for
 *     the architecture while it populates it.
 * B2  Pages enter under invalidate_lock in either mode, and leave under it
 *     exclusive.
 *
 * Allocation can fail; freeing cannot.
 */
#include <linux/filemap_offlru.h>
#include <linux/highmem.h>
#include <linux/sched/signal.h>

#include "gmem.h"

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
		if (IS_ERR(folio))
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

int gmem_block_allocate(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct folio *folio;
	pgoff_t index;

	for (index = start; index < end; index++) {
		if (signal_pending(current))
			return -EINTR;

		folio = gmem_block_get_folio(inode, index);
		if (IS_ERR(folio))
			return PTR_ERR(folio);

		folio_unlock(folio);
		folio_put(folio);
		cond_resched();
	}

	return 0;
}

void gmem_block_free(struct inode *inode, pgoff_t start, pgoff_t end)
{
	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	/*
	 * Truncation removes pages from user page tables, but not the markers
	 * that a memory error has left there in place of a page.
	 */
	unmap_mapping_pages(inode->i_mapping, start, end - start, true);
	truncate_inode_pages_range(inode->i_mapping, (loff_t)start << PAGE_SHIFT,
				   ((loff_t)end << PAGE_SHIFT) - 1);
}
