// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd user mappings.
 *
 * Owns: the fault handler, the only way of a page into a user page table, and
 * the NUMA policy operations.
 *
 * A page is handed to core-mm locked.  Core-mm maps it before it unlocks, so
 * that whoever removes pages, and locks each, either finds it mapped or keeps
 * it from being mapped.
 */
#include "gmem.h"

static vm_fault_t gmem_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct folio *folio;

	if (vmf->pgoff >= i_size_read(inode) >> PAGE_SHIFT)
		return VM_FAULT_SIGBUS;

	filemap_invalidate_lock_shared(inode->i_mapping);

	if (gmem_is_private(inode, vmf->pgoff))
		goto out_unlock;

	folio = gmem_block_get_folio(inode, vmf->pgoff);
	if (IS_ERR(folio)) {
		ret = vmf_error(PTR_ERR(folio));
		goto out_unlock;
	}

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
