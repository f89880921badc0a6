/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * File pages off the LRU: for a file whose pages are never reclaimed and never
 * migrated, and whose owner needs to know who refers to them.
 *
 * An LRU list is of no use to such a page, and the batches in front of the lists
 * hold references for as long as they like.  Without them, the reference count
 * of a page is exact: one of the file's, one for each user page table entry, and
 * those that somebody has taken on purpose.  Only mlock() has a batch of its own,
 * which lru_cache_drain_for_folio() knows about.  A fault that has mapped a page, and
 * has yet to unlock it, has none of its own.
 *
 * The pages are order-0 folios, marked as unevictable, so that what looks at
 * pages by flag or by physical address leaves them alone.  The file's mapping
 * is AS_INACCESSIBLE, which tells its pages from others that are off the LRU
 * for a moment.  The file's ->free_folio() is filemap_offlru_free_folio(), or calls it.
 *
 * Users are exempt from nothing: pages are charged to a memory cgroup, counted
 * as file pages, and taken out of service by memory_failure().
 */
#ifndef _LINUX_FILEMAP_OFFLRU_H
#define _LINUX_FILEMAP_OFFLRU_H

#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>

/* May a page be one?  Unevictable pages on their way to an LRU list, or from it, may. */
static inline bool page_maybe_offlru(const struct page *page)
{
	return IS_ENABLED(CONFIG_FILEMAP_OFFLRU) &&
	       test_bit(PG_unevictable, &page_folio(page)->flags.f) &&
	       !PageLRU(page) && !page_has_type(page);
}

/**
 * page_is_offlru() - Whether a page is a file page off the LRU
 * @page: the page
 *
 * Context: the caller has a reference to the page.  Without the folio lock the answer
 *          may be outdated: inodes with such pages are freed after an RCU grace period.
 * Return: whether it is.
 */
static inline bool page_is_offlru(const struct page *page)
{
	struct address_space *mapping;

	if (!page_maybe_offlru(page))
		return false;

	guard(rcu)();
	mapping = READ_ONCE(page_folio(page)->mapping);
	return mapping && !((unsigned long)mapping & FOLIO_MAPPING_FLAGS) &&
	       mapping_inaccessible(mapping);
}

/**
 * page_try_get_offlru() - Get a reference to a page if it is a file page off the LRU
 * @page: any page, which may be freed and become another at any time
 *
 * Without a reference, what the page has for a mapping may be none.
 *
 * Context: any.
 * Return: whether it is, and the caller has a reference to it.
 */
static inline bool page_try_get_offlru(struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!page_maybe_offlru(page) || !folio_try_get(folio))
		return false;

	if (page_folio(page) == folio && page_is_offlru(page))
		return true;

	folio_put(folio);
	return false;
}

#ifdef CONFIG_FILEMAP_OFFLRU
int filemap_offlru_add(struct address_space *mapping, struct folio *folio,
		       pgoff_t index, gfp_t gfp);
struct page *filemap_offlru_alloc_block(gfp_t gfp, unsigned int order,
					struct mempolicy *policy, pgoff_t index,
					bool any_signal);
void filemap_offlru_free_block(struct page *page, unsigned int order);
int filemap_offlru_add_block(struct address_space *mapping, struct page *page,
			     pgoff_t index, unsigned long nr, gfp_t gfp,
			     bool any_signal);
void filemap_offlru_remove(struct address_space *mapping, pgoff_t first,
			   pgoff_t last);
void filemap_offlru_free_folio(struct folio *folio);
vm_fault_t filemap_offlru_map(struct vm_fault *vmf, pgoff_t first, pgoff_t last);
#endif

#endif /* _LINUX_FILEMAP_OFFLRU_H */
