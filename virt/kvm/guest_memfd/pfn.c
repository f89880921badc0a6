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
 *
 * The models that convert.c names show what happens otherwise: NO_RMB, NO_VCPU_CHECK,
 * NO_REF_DROP, and for the size of mappings, NO_RECOVER_*.
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

static struct gmem_inode *gmem_slot_inode(const struct kvm_memory_slot *slot)
{
	struct gmem_state *state = rcu_dereference(slot->gmem.state);

	return state ? container_of(state, struct gmem_inode, state) : NULL;
}

u8 kvm_gmem_block_order(const struct kvm_memory_slot *slot)
{
	const struct gmem_inode *gi;

	guard(rcu)();
	gi = gmem_slot_inode(slot);
	return gi ? gi->block_order : 0;
}

/* Has a memslot all of what is around a gfn, with gfns and indices aligned alike? */
static bool gmem_slot_fits(const struct kvm_memory_slot *slot, gfn_t gfn,
			   unsigned int order)
{
	gfn_t nr = BIT(order), start = round_down(gfn, nr);

	return IS_ALIGNED(gmem_slot_delta(slot), nr) && start >= slot->base_gfn &&
	       start + nr <= slot->base_gfn + slot->npages;
}

/*
 * The order at which a guest may map what is around a gfn (I4).  The page there is one
 * that the guest may map: if it is private, it is the guest's already.
 */
static unsigned int gmem_pfn_order(struct kvm *kvm, const struct kvm_memory_slot *slot,
				   const struct gmem_inode *gi, gfn_t gfn)
{
	unsigned long mask = GMEM_OWNED | GMEM_BLOCK, bits;
	unsigned int order;

	if (!gi->block_order)
		return 0;

	/* Without private memory, the guest has the same page either way. */
	if (kvm_arch_has_private_mem(kvm))
		mask |= GMEM_PRIVATE;

	bits = gmem_state_get(&gi->state, gmem_gfn_to_index(slot, gfn), mask, &order);
	if (!(bits & GMEM_BLOCK))
		return 0;

	order = min(order, gi->block_order);
	if (order > PMD_ORDER && !gmem_slot_fits(slot, gfn, order))
		order = PMD_ORDER;
	return gmem_slot_fits(slot, gfn, order) ? order : 0;
}

int kvm_gmem_mapping_order(struct kvm *kvm, const struct kvm_memory_slot *slot,
			   gfn_t gfn, kvm_pfn_t *pfn)
{
	const struct gmem_inode *gi;
	struct folio *folio;
	unsigned int order;
	gfn_t start, end;

	lockdep_assert_held(&kvm->mmu_lock);

	guard(rcu)();
	gi = gmem_slot_inode(slot);
	if (!gi)
		return 0;

	order = gmem_pfn_order(kvm, slot, gi, gfn);
	if (!order)
		return 0;

	/*
	 * What changes the answer begins an invalidation first, under mmu_lock: if
	 * there is none in progress, it is going to zap what is mapped now.
	 */
	start = round_down(gfn, BIT(order));
	end = start + BIT(order);
	if (kvm->mmu_invalidate_in_progress && start < kvm->mmu_invalidate_range_end &&
	    end > kvm->mmu_invalidate_range_start)
		return 0;

	folio = xa_load(&gi->vfs_inode.i_mapping->i_pages, gmem_gfn_to_index(slot, gfn));
	if (!folio)
		return 0;

	*pfn = folio_pfn(folio);
	return order;
}

struct folio *gmem_pfn_get_folio(struct kvm_memory_slot *slot,
				 struct file *file, gfn_t gfn)
{
	struct folio *folio;

	folio = gmem_block_get_folio(file_inode(file), gmem_gfn_to_index(slot, gfn));
	if (IS_ERR(folio) || !folio_test_hwpoison(folio))
		return folio;

	/* It may have been marked before it was the inode's. */
	WRITE_ONCE(GMEM_I(file_inode(file))->poisoned, true);
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
	int ret;

	struct file *file __free(fput) = gmem_bind_get_file(slot);
	if (!file)
		return -EFAULT;

retry:
	/* Keep the page from going away, or changing hands, meanwhile. */
	filemap_invalidate_lock_shared(file->f_mapping);
	folio = gmem_pfn_make_folio(slot, file, gfn);
	if (!IS_ERR(folio) && page)
		folio_get(folio);
	if (!IS_ERR(folio) && max_order)
		*max_order = gmem_pfn_order(kvm, slot, GMEM_I(file_inode(file)), gfn);
	filemap_invalidate_unlock_shared(file->f_mapping);

	if (folio == ERR_PTR(-ENODATA)) {
		ret = gmem_block_fill(file_inode(file), gmem_gfn_to_index(slot, gfn),
				      false);
		if (ret)
			return ret;
		goto retry;
	}
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	*pfn = folio_pfn(folio);
	if (page)
		*page = &folio->page;
	return 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_get_pfn);
