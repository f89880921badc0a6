// SPDX-License-Identifier: GPL-2.0-only
/*
 * File pages off the LRU.  linux/filemap_offlru.h says what and why.
 */
#include <linux/align.h>
#include <linux/cpuset.h>
#include <linux/export.h>
#include <linux/filemap_offlru.h>
#include <linux/folio_batch.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/userfaultfd_k.h>

#include <trace/events/filemap.h>

#include "internal.h"
#include "page_alloc.h"

/* How many pages to handle under a spinlock. */
#define OFFLRU_BATCH	512UL

/**
 * filemap_offlru_add() - Put a page into a file, but not on the LRU
 * @mapping: the file's, with AS_INACCESSIBLE set
 * @folio: new, of order 0; gets a reference more, which is the file's
 * @index: where to put it
 * @gfp: how to allocate what is needed for that
 *
 * The page is charged to the memory cgroup of the current task.
 *
 * Context: may sleep, depending on @gfp.
 * Return: 0, with @folio locked; -EEXIST if another page is there; or -ENOMEM.
 *         After an error, @folio is as it was.
 */
int filemap_offlru_add(struct address_space *mapping, struct folio *folio,
		       pgoff_t index, gfp_t gfp)
{
	void *shadow = NULL;
	int ret;

	VM_WARN_ON_ONCE(folio_test_large(folio) || !mapping_inaccessible(mapping));

	ret = mem_cgroup_charge(folio, NULL, gfp);
	if (ret)
		return ret;

	__folio_set_locked(folio);
	folio_set_unevictable(folio);

	ret = __filemap_add_folio(mapping, folio, index, gfp, &shadow);
	if (ret) {
		/* memory_failure() may have taken it for the file's, and wait. */
		folio_clear_unevictable(folio);
		mem_cgroup_uncharge(folio);
		folio_unlock(folio);
	}
	return ret;
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_add, "kvm");

static struct page *alloc_block_on(gfp_t gfp, unsigned int order, int nid,
				   const nodemask_t *nodemask)
{
	nodemask_t allowed = cpuset_current_mems_allowed;
	struct page *page;

	if (nodemask)
		nodes_and(allowed, allowed, *nodemask);

#ifdef CONFIG_CONTIG_ALLOC
	/* This knows nothing of cpusets. */
	if (order > MAX_PAGE_ORDER)
		return alloc_contig_pages(1UL << order, gfp, nid, &allowed);
#endif
	/* Rather have none than one that is far away, unless it is worth an effort. */
	if (!nodemask && !(gfp & __GFP_DIRECT_RECLAIM) && node_state(nid, N_MEMORY) &&
	    node_isset(nid, allowed))
		gfp |= __GFP_THISNODE;

	page = __alloc_pages(gfp, order, nid, nodemask ? &allowed : NULL, ALLOC_DEFAULT);
	if (page)
		split_page(page, order);
	return page;
}

static struct page *alloc_block(gfp_t gfp, unsigned int order,
				struct mempolicy *policy, pgoff_t index)
{
	nodemask_t *nodemask = NULL;
	int nid = numa_node_id();

#ifdef CONFIG_NUMA
	if (!policy)
		policy = get_task_policy(current);
	nodemask = policy_nodemask(gfp, policy, index >> order, &nid);

	/* What is preferred is preferred to others, not to the trouble of reclaim. */
	if (policy->mode == MPOL_PREFERRED_MANY) {
		struct page *page;

		page = alloc_block_on((gfp | __GFP_NOWARN) & ~__GFP_DIRECT_RECLAIM,
				      order, nid, nodemask);
		if (page)
			return page;
		nodemask = NULL;
	}
#endif
	return alloc_block_on(gfp, order, nid, nodemask);
}

static void free_pages_in_turn(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i += OFFLRU_BATCH) {
		__free_contig_range(page_to_pfn(page) + i, min(nr - i, OFFLRU_BATCH));
		cond_resched();
	}
}

/* Are two pages counted in the same place? */
static bool same_lruvec(const struct folio *a, const struct folio *b)
{
#ifdef CONFIG_MEMCG
	if (a->memcg_data != b->memcg_data)
		return false;
#endif
	return folio_pgdat(a) == folio_pgdat(b);
}

/* Count file pages, as many at once as there are alike. */
static void count_pages(struct page *page, unsigned long nr, int sign)
{
	struct folio *first = page_folio(page);
	unsigned long i, since = 0;

	for (i = 1; i <= nr; i++) {
		if (i < nr && same_lruvec(first, page_folio(page + i)))
			continue;

		lruvec_stat_mod_folio(first, NR_FILE_PAGES, sign * (int)(i - since));
		if (i < nr)
			first = page_folio(page + i);
		since = i;
	}
}

static void uncharge_pages(struct page *page, unsigned long nr)
{
	struct folio_batch batch;
	unsigned long i;

	folio_batch_init(&batch);
	for (i = 0; i < nr; i++) {
		if (folio_batch_add(&batch, page_folio(page + i)))
			continue;
		mem_cgroup_uncharge_folios(&batch);
		folio_batch_reinit(&batch);
		cond_resched();
	}
	mem_cgroup_uncharge_folios(&batch);
}

static int check_signals(bool any)
{
	cond_resched();
	return (any ? signal_pending(current) : fatal_signal_pending(current)) ? -EINTR : 0;
}

static int charge_pages(struct page *page, unsigned long nr, bool any_signal)
{
	const gfp_t gfp = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;
	unsigned long i;
	int ret = 0;

	for (i = 0; i < nr; i++) {
		if (i % OFFLRU_BATCH == 0)
			ret = check_signals(any_signal);
		ret = ret ?: mem_cgroup_charge(page_folio(page + i), NULL, gfp);
		if (ret) {
			uncharge_pages(page, i);
			return ret;
		}
	}
	return 0;
}

/**
 * filemap_offlru_alloc_block() - Allocate contiguous memory for pages of a file
 * @gfp: how, without __GFP_COMP and __GFP_MOVABLE
 * @order: how many, as a power of two; the memory is aligned alike
 * @policy: where, or NULL for the policy of the current task
 * @index: where in the file, which is how interleaving takes turns
 * @any_signal: whether to give up for any signal, or only if the task is killed
 *
 * The pages are charged to the memory cgroup of the current task.  If need be, it is
 * reclaimed for that, whatever @gfp, but nobody is killed.
 *
 * Context: may sleep, and for long above MAX_PAGE_ORDER.
 * Return: pages of order 0, each with a reference, for filemap_offlru_add_block() or
 *         filemap_offlru_free_block(); or an ERR_PTR: -ENOMEM or -EINTR.
 */
struct page *filemap_offlru_alloc_block(gfp_t gfp, unsigned int order,
					struct mempolicy *policy, pgoff_t index,
					bool any_signal)
{
	struct page *page = alloc_block(gfp, order, policy, index);
	int ret;

	if (!page)
		return ERR_PTR(-ENOMEM);

	ret = charge_pages(page, 1UL << order, any_signal);
	if (ret) {
		free_pages_in_turn(page, 1UL << order);
		return ERR_PTR(ret);
	}
	return page;
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_alloc_block, "kvm");

/**
 * filemap_offlru_free_block() - Free contiguous memory that is in no file
 * @page: from filemap_offlru_alloc_block()
 * @order: as there
 *
 * Context: may sleep.
 */
void filemap_offlru_free_block(struct page *page, unsigned int order)
{
	uncharge_pages(page, 1UL << order);
	free_pages_in_turn(page, 1UL << order);
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_free_block, "kvm");

static void set_up_page(struct address_space *mapping, struct folio *folio,
			pgoff_t index)
{
	folio->mapping = mapping;
	folio->index = index;
	/* memory_failure() leaves the page alone until it is unevictable. */
	__folio_set_locked(folio);
	__folio_mark_uptodate(folio);
	folio_set_dirty(folio);
	folio_set_unevictable(folio);
}

/*
 * Insert pages while there is no other and there is memory; count them in @done.
 * There is no need for mapping_set_update(), here and when they are removed: what is
 * never reclaimed leaves no shadow entries.
 */
static int insert_pages(struct address_space *mapping, struct page *page,
			pgoff_t index, unsigned long nr, unsigned long *done,
			gfp_t gfp)
{
	XA_STATE(xas, &mapping->i_pages, index);
	unsigned long start = *done, end = start + nr;
	struct folio *folio;

	do {
		xas_set(&xas, index + *done);
		xas_lock_irq(&xas);
		for (; *done < end; ++*done, xas_next(&xas)) {
			if (xas_load(&xas)) {
				xas_set_err(&xas, -EEXIST);
				break;
			}

			folio = page_folio(page + *done);
			xas_store(&xas, folio);
			if (xas_error(&xas))
				break;

			trace_mm_filemap_add_to_page_cache(folio);
			mapping->nrpages++;
		}
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, gfp & GFP_RECLAIM_MASK));

	if (*done > start)
		count_pages(page + start, *done - start, 1);
	return xas_error(&xas);
}

/* The first @done of @nr pages are in the file.  Make it as if nothing had happened. */
static void take_pages_back(struct page *page, unsigned long nr, unsigned long done)
{
	struct folio *folio;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		folio = page_folio(page + i);
		if (i < done) {
			folio_get(folio);
			filemap_remove_folio(folio);
		}

		folio->mapping = NULL;
		folio_clear_unevictable(folio);
		folio_clear_dirty(folio);
		folio_clear_uptodate(folio);
		folio_unlock(folio);
		if (i % OFFLRU_BATCH == 0)
			cond_resched();
	}
}

/**
 * filemap_offlru_add_block() - Put contiguous pages into a file, all or none
 * @mapping: the file's, with AS_INACCESSIBLE set
 * @page: the first of them, from filemap_offlru_alloc_block(), with its content
 * @index: where to put it
 * @nr: how many
 * @gfp: how to allocate what is needed for that
 * @any_signal: whether to give up for any signal, or only if the task is killed
 *
 * The file takes over the reference to each page, and the charge.
 *
 * Where this fails, others may have seen some of the pages.  They wait for the folio
 * lock, and then find that the page is not the file's.
 *
 * Context: may sleep, depending on @gfp.
 * Return: 0, with the pages locked, up to date and dirty; -EEXIST if there is a
 *         page already; -ENOMEM; or -EINTR.  After an error, the pages are the
 *         caller's as they were.
 */
int filemap_offlru_add_block(struct address_space *mapping, struct page *page,
			     pgoff_t index, unsigned long nr, gfp_t gfp,
			     bool any_signal)
{
	unsigned long i, done = 0, end;
	int ret;

	VM_WARN_ON_ONCE(!mapping_inaccessible(mapping));

	do {
		end = min(done + OFFLRU_BATCH, nr);
		for (i = done; i < end; i++)
			set_up_page(mapping, page_folio(page + i), index + i);

		ret = insert_pages(mapping, page, index, end - done, &done, gfp);
		if (!ret && done < nr)
			ret = check_signals(any_signal);
		if (ret) {
			/* The rest has not been set up. */
			take_pages_back(page, end, done);
			return ret;
		}
	} while (done < nr);

	return 0;
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_add_block, "kvm");

/**
 * filemap_offlru_free_folio() - Say goodbye to a page that has left its file
 * @folio: the page; others may still refer to it
 *
 * Context: no spinlock is held.
 */
void filemap_offlru_free_folio(struct folio *folio)
{
	folio_clear_unevictable(folio);
	/* memory_failure() has a reference for ever: the page is not going to be freed. */
	if (folio_test_hwpoison(folio))
		mem_cgroup_uncharge(folio);
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_free_folio, "kvm");

/* Free pages in a row, to which nobody refers anymore. */
static void free_pages_in_row(struct address_space *mapping, struct page *page,
			      unsigned long nr)
{
	unsigned long i;

	count_pages(page, nr, -1);
	for (i = 0; i < nr; i++)
		mapping->a_ops->free_folio(page_folio(page + i));

	uncharge_pages(page, nr);
	set_pages_refcounted(page, nr);
	__free_contig_range(page_to_pfn(page), nr);
}

/**
 * filemap_offlru_remove() - Remove pages from a file, and free them
 * @mapping: the file's
 * @first: first index to remove
 * @last: last index to remove
 *
 * Pages that were allocated as a block are freed as one.  Pages that somebody maps,
 * refers to or has locked remain: truncate_inode_pages_range() waits for them.
 *
 * Context: may sleep.  The caller keeps pages from being added.
 */
void filemap_offlru_remove(struct address_space *mapping, pgoff_t first,
			   pgoff_t last)
{
	XA_STATE(xas, &mapping->i_pages, first);
	struct page *page = NULL;
	unsigned long nr, nr_seen;
	struct folio *folio;

	do {
		nr = 0;
		nr_seen = 0;
		xas_lock_irq(&xas);
		xas_for_each(&xas, folio, last) {
			if (nr && (&folio->page != page + nr || nr == OFFLRU_BATCH))
				break;
			if (nr_seen++ == OFFLRU_BATCH)
				break;
			/* Whoever maps it has a reference, too. */
			if (!folio_ref_freeze(folio, 1))
				continue;

			/* A fault that has mapped it has but the lock, if it is unmapped again. */
			if (folio_test_locked(folio)) {
				folio_ref_unfreeze(folio, 1);
				continue;
			}

			if (!nr++)
				page = &folio->page;
			trace_mm_filemap_delete_from_page_cache(folio);
			xas_store(&xas, NULL);
			folio->mapping = NULL;
			mapping->nrpages--;
		}
		/* A page that is not done yet is met again. */
		if (folio)
			xas_set(&xas, xas.xa_index);
		xas_unlock_irq(&xas);

		if (nr)
			free_pages_in_row(mapping, page, nr);
		cond_resched();
	} while (folio);
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_remove, "kvm");

/* Map a page unless it has to be left to ->fault(). */
static bool map_folio(struct vm_fault *vmf, struct xa_state *xas,
		      struct folio *folio, unsigned long addr)
{
	if (!pte_none(ptep_get(vmf->pte)) || !folio_try_get(folio))
		return false;

	/* A block that does not get in as a whole may just have been taken back. */
	if (folio != xas_reload(xas) || !folio_trylock(folio))
		goto out_put;

	/* memory_failure() marks the page, then waits for the lock and unmaps. */
	if (!folio_test_uptodate(folio) || folio_test_hwpoison(folio) ||
	    folio->mapping != vmf->vma->vm_file->f_mapping)
		goto out_unlock;

	set_pte_range(vmf, folio, &folio->page, 1, addr);
	folio_unlock(folio);
	return true;

out_unlock:
	folio_unlock(folio);
out_put:
	folio_put(folio);
	return false;
}

/* What is mapped around a fault in the middle of nowhere: as much as elsewhere. */
#define OFFLRU_AROUND	max(SZ_64K >> PAGE_SHIFT, 1UL)

/**
 * filemap_offlru_map() - Map the pages around a fault that a file has
 * @vmf: the fault, in a shared mapping of a file whose pages are off the LRU
 * @first: first index to map
 * @last: last index to map
 *
 * Maps what is in the same VMA and page table as the fault, and up to date.  A
 * fault on memory that has been there for long is likely to have neighbours that
 * are touched next, be it to read or to write, and to map a page is little work
 * compared to taking a fault.  Where the fault is a write, neighbours are mapped
 * dirty, so that architectures need no second fault to find out.
 *
 * Maps all of the range if one neighbour of the page is mapped, as in a walk
 * through memory; the page alone if both are, as it is the one that was missing;
 * and 64 KiB otherwise.
 *
 * Context: for ->fault() and ->map_pages().  The caller keeps pages from leaving
 *          the file, but for those of a block that fails to enter, and wants the
 *          user to have each page of the range.  Does not sleep.
 * Return: VM_FAULT_NOPAGE if that resolves the fault, or 0.
 */
vm_fault_t filemap_offlru_map(struct vm_fault *vmf, pgoff_t first, pgoff_t last)
{
	struct vm_area_struct *vma = vmf->vma;
	struct address_space *mapping = vma->vm_file->f_mapping;
	unsigned long before = pte_index(vmf->address);
	unsigned long after = PTRS_PER_PTE - 1 - before;
	pgoff_t pgoff = vmf->pgoff, index;
	bool mapped_before, mapped_after;
	unsigned int nr_mapped = 0;
	struct folio *folio;
	vm_fault_t ret = 0;
	pte_t *pte;

	before = min(before, pgoff - vma_start_pgoff(vma));
	after = min(after, vma_start_pgoff(vma) + vma_pages(vma) - 1 - pgoff);

	if (pmd_none(*vmf->pmd)) {
		if (!vmf->prealloc_pte)
			return 0;
		pmd_install(vma->vm_mm, vmf->pmd, &vmf->prealloc_pte);
	}

	pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, vmf->address, &vmf->ptl);
	if (!pte)
		return 0;

	mapped_before = before && !pte_none(ptep_get(pte - 1));
	mapped_after = after && !pte_none(ptep_get(pte + 1));
	if ((mapped_before && mapped_after) || uffd_disable_fault_around(vma)) {
		first = pgoff;
		last = pgoff;
	} else if (!mapped_before && !mapped_after) {
		first = max(first, ALIGN_DOWN(pgoff, OFFLRU_AROUND));
		last = min(last, ALIGN_DOWN(pgoff, OFFLRU_AROUND) + OFFLRU_AROUND - 1);
	}
	first = max(first, pgoff - before);
	last = min(last, pgoff + after);

	XA_STATE(xas, &mapping->i_pages, first);

	rcu_read_lock();
	xas_for_each(&xas, folio, last) {
		if (xas_retry(&xas, folio))
			continue;

		index = xas.xa_index;
		vmf->pte = pte + index - pgoff;
		if (map_folio(vmf, &xas, folio,
			      vmf->address + ((index - pgoff) << PAGE_SHIFT))) {
			nr_mapped++;
			if (index == pgoff)
				ret = VM_FAULT_NOPAGE;
		}

		if (index == last)
			break;
	}
	rcu_read_unlock();

	add_mm_counter(vma->vm_mm, MM_FILEPAGES, nr_mapped);
	pte_unmap_unlock(pte, vmf->ptl);
	return ret;
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_map, "kvm");
