// SPDX-License-Identifier: GPL-2.0-only
/*
 * File pages off the LRU.  linux/filemap_offlru.h says what and why.
 */
#include <linux/align.h>
#include <linux/export.h>
#include <linux/filemap_offlru.h>
#include <linux/memcontrol.h>
#include <linux/sizes.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"

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
		__folio_clear_unevictable(folio);
		__folio_clear_locked(folio);
		mem_cgroup_uncharge(folio);
	}
	return ret;
}
EXPORT_SYMBOL_FOR_MODULES(filemap_offlru_add, "kvm");

/* Map a page unless it has to be left to ->fault(). */
static bool map_folio(struct vm_fault *vmf, struct folio *folio,
		      unsigned long addr)
{
	bool mapped = false;

	if (!pte_none(ptep_get(vmf->pte)) || !folio_trylock(folio))
		return false;

	/* memory_failure() marks the page, then waits for the lock and unmaps. */
	if (folio_test_uptodate(folio) && !folio_test_hwpoison(folio)) {
		folio_get(folio);
		set_pte_range(vmf, folio, &folio->page, 1, addr);
		mapped = true;
	}

	folio_unlock(folio);
	return mapped;
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
 *          the file, and wants the user to have each page of the range.  Does
 *          not sleep.
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
		if (map_folio(vmf, folio, vmf->address + ((index - pgoff) << PAGE_SHIFT))) {
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
