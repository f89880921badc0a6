// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd user mappings.
 *
 * Owns: the fault handlers, the only way of a page into a user page table, and
 * the NUMA policy operations.
 *
 * Pages that are there already are mapped under invalidate_lock.  A new one is
 * handed to core-mm locked, which maps it before it unlocks, and outside of
 * invalidate_lock.  So whoever takes that exclusively, to convert or to free
 * pages, and then locks a page, finds it mapped or keeps it from being mapped.
 *
 * The models that convert.c names show what each part of that is for: NO_FAULT_* and
 * NO_FOLIO_LOCK; and of what mm/filemap_offlru.c does, NO_AROUND_* and
 * NO_FREE_LOCK_CHECK.
 */
#include <linux/align.h>
#include <linux/filemap_offlru.h>
#include <linux/sizes.h>

#include "gmem.h"

/* What is mapped at once, if it is there and the user walks through it. */
#define GMEM_FAULT_AROUND	max(SZ_256K >> PAGE_SHIFT, 1UL)

#ifdef kvm_arch_gmem_check_host
/* Whatever the state says, no page of these may be the guest's alone. */
static void gmem_check_mapped(struct inode *inode, pgoff_t first, pgoff_t last)
{
	struct folio *folio;
	unsigned long index;

	if (!GMEM_I(inode)->owner)
		return;

	guard(rcu)();
	xa_for_each_range(&inode->i_mapping->i_pages, index, folio, first, last) {
		/* Core-mm does not map these. */
		if (!folio_test_hwpoison(folio))
			kvm_arch_gmem_check_host(folio_pfn(folio), 1, false);
	}
}
#else
static void gmem_check_mapped(struct inode *inode, pgoff_t first, pgoff_t last)
{
}
#endif

/* Map what is present and shared around a fault, if the page it is about is. */
static vm_fault_t gmem_map_around(struct vm_fault *vmf, struct inode *inode)
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	pgoff_t first = vmf->pgoff, last = first;
	unsigned int order;

	lockdep_assert_held(&inode->i_mapping->invalidate_lock);

	/* A page may be shared and still owned, where hardware has failed. */
	if (gmem_state_get(st, first, GMEM_PRIVATE | GMEM_OWNED, &order))
		return VM_FAULT_SIGBUS;

	if (!xa_load(&inode->i_mapping->i_pages, first))
		return 0;

	/* In a mixed block, a neighbour would take a lookup of its own. */
	if (BIT(order) >= GMEM_FAULT_AROUND) {
		first = ALIGN_DOWN(first, GMEM_FAULT_AROUND);
		last = first + GMEM_FAULT_AROUND - 1;
	}

	last = min(last, st->nr_pages - 1);
	gmem_check_mapped(inode, first, last);
	return filemap_offlru_map(vmf, first, last);
}

/* For reads, before gmem_fault() and under RCU: do what can be done at once. */
static vm_fault_t gmem_map_pages(struct vm_fault *vmf, pgoff_t first, pgoff_t last)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	vm_fault_t ret;

	if (vmf->pgoff >= gmem_nr_pages(inode) ||
	    !filemap_invalidate_trylock_shared(inode->i_mapping))
		return 0;

	ret = gmem_map_around(vmf, inode);
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return ret;
}

static vm_fault_t gmem_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct folio *folio;
	vm_fault_t ret;
	int err;

	if (vmf->pgoff >= gmem_nr_pages(inode))
		return VM_FAULT_SIGBUS;

retry:
	filemap_invalidate_lock_shared(inode->i_mapping);

	ret = gmem_map_around(vmf, inode);
	if (ret)
		goto out_unlock;

	folio = gmem_block_get_folio(inode, vmf->pgoff);
	if (folio == ERR_PTR(-ENODATA)) {
		filemap_invalidate_unlock_shared(inode->i_mapping);
		err = gmem_block_fill(inode, vmf->pgoff, false);
		if (!err)
			goto retry;
		/* Do not try again and again: nobody can be killed to make room for it. */
		if (gmem_block_order(inode, vmf->pgoff) > MAX_PAGE_ORDER)
			return VM_FAULT_SIGBUS;
		/*
		 * Nor if the task is being killed.  The kernel may be where it has
		 * faulted, and then it does not see to signals before it gets an answer.
		 */
		return vmf_error(err);
	}
	if (IS_ERR(folio)) {
		ret = vmf_error(PTR_ERR(folio));
		goto out_unlock;
	}

	gmem_check_mapped(inode, vmf->pgoff, vmf->pgoff);
	gmem_block_init_folio(folio);
	vmf->page = folio_file_page(folio, vmf->pgoff);
	/*
	 * Leave a page with a memory error to core-mm, which looks for it anyway:
	 * it fails to evict the page, see gmem_release_folio(), and reports.
	 */
	ret = VM_FAULT_LOCKED;

out_unlock:
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return ret;
}

#ifdef CONFIG_NUMA
/* The policy belongs to the memory and outlives the mapping it came through. */
static int gmem_set_policy(struct vm_area_struct *vma, struct mempolicy *policy)
{
	return mpol_set_shared_policy(&GMEM_I(file_inode(vma->vm_file))->policy,
				      vma, policy);
}

static struct mempolicy *gmem_get_policy(struct vm_area_struct *vma,
					 unsigned long addr, pgoff_t *ilx)
{
	struct inode *inode = file_inode(vma->vm_file);

	/*
	 * NULL stands for "none was set with mbind()".  Do not substitute the
	 * policy of the current task: get_mempolicy() must be able to tell.
	 */
	*ilx = inode->i_ino;
	return mpol_shared_policy_lookup(&GMEM_I(inode)->policy,
					 linear_page_index(vma, addr));
}
#endif

static const struct vm_operations_struct gmem_vm_ops = {
	.fault		= gmem_fault,
	.map_pages	= gmem_map_pages,
#ifdef CONFIG_NUMA
	.set_policy	= gmem_set_policy,
	.get_policy	= gmem_get_policy,
#endif
};

int gmem_mmap_file(struct file *file, struct vm_area_struct *vma)
{
	if (!(GMEM_I(file_inode(file))->flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;

	/* A private mapping would copy guest memory out of the file's control. */
	if (!(vma->vm_flags & VM_SHARED) || !(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;

	vma->vm_ops = &gmem_vm_ops;
	return 0;
}
