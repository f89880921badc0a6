// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd pfns: what guest page faults ask.
 *
 * The answer is good until the next invalidation.  Callers sample
 * kvm->mmu_invalidate_seq before they ask, and check under mmu_lock before they
 * map.  Whatever changes the answer invalidates first; a memory error does so
 * after it has marked the page, and the mark is looked at here.
 *
 * Hence a fault needs no reference to the page.  It better has none: conversion
 * would take it for somebody's who uses the page.
 */
#include <linux/cleanup.h>
#include <linux/file.h>

#include "gmem.h"

bool kvm_gmem_is_private(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	const struct gmem_state *state;

	guard(rcu)();
	state = rcu_dereference(slot->gmem.state);
	/* Once the file is closed, nothing is private anymore: there is nothing. */
	return state && gmem_state_get(state, gmem_gfn_to_index(slot, gfn),
				       GMEM_PRIVATE, NULL);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_is_private);

struct folio *gmem_pfn_get_folio(struct kvm_memory_slot *slot,
				 struct file *file, gfn_t gfn)
{
	struct folio *folio;

	folio = gmem_block_get_folio(file_inode(file), gmem_gfn_to_index(slot, gfn));
	if (IS_ERR(folio) || !folio_test_hwpoison(folio))
		return folio;

	folio_unlock(folio);
	folio_put(folio);
	return ERR_PTR(-EHWPOISON);
}

/* Return what the guest may map: initialised, and the guest's own if private. */
static struct folio *gmem_pfn_make_folio(struct kvm_memory_slot *slot,
					 struct file *file, gfn_t gfn)
{
	struct folio *folio;
	int ret;

	folio = gmem_pfn_get_folio(slot, file, gfn);
	if (IS_ERR(folio))
		return folio;

	gmem_block_init_folio(folio);
	folio_unlock(folio);

	/* Nobody refers to what is about to become the guest's: invalidate_lock does. */
	folio_put(folio);
	ret = gmem_own_page(file_inode(file), gmem_gfn_to_index(slot, gfn));
	return ret ? ERR_PTR(ret) : folio;
}

int kvm_gmem_get_pfn(struct kvm *kvm, struct kvm_memory_slot *slot,
		     gfn_t gfn, kvm_pfn_t *pfn, struct page **page,
		     int *max_order)
{
	struct folio *folio;

	struct file *file __free(fput) = gmem_bind_get_file(slot);
	if (!file)
		return -EFAULT;

	/* Keep the page from going away, or changing hands, meanwhile. */
	filemap_invalidate_lock_shared(file->f_mapping);
	folio = gmem_pfn_make_folio(slot, file, gfn);
	if (!IS_ERR(folio) && page)
		folio_get(folio);
	filemap_invalidate_unlock_shared(file->f_mapping);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	*pfn = folio_pfn(folio);
	if (page)
		*page = &folio->page;
	if (max_order)
		*max_order = 0;
	return 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_get_pfn);
