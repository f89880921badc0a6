// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd populate: the initial content of a confidential guest.
 *
 * One page at a time: get the source page, with no lock that a user fault may
 * want; then lock the destination against everybody, and let the architecture
 * copy, encrypt and measure.  Without a source, it takes what the page has: in
 * place, that is what the VMM wrote while the page was shared.
 */
#include <linux/cleanup.h>
#include <linux/file.h>
#include <linux/sched/signal.h>

#include "gmem.h"

static int gmem_populate_page(struct kvm *kvm, struct kvm_memory_slot *slot,
			      struct file *file, gfn_t gfn, struct page *src,
			      kvm_gmem_populate_cb post_populate, void *opaque)
{
	struct inode *inode = file_inode(file);
	pgoff_t index = gmem_gfn_to_index(slot, gfn);
	struct gmem_state_change change;
	struct folio *folio;
	int ret;

	/* Ask before a page is allocated in vain. */
	if (!kvm_slot_mem_is_private(kvm, slot, gfn))
		return -EINVAL;

	/* Where would the copy come from, if this page became private? */
	if (src && page_folio(src)->mapping == file->f_mapping)
		return -EINVAL;

	folio = gmem_pfn_get_folio(slot, file, gfn);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	ret = gmem_own_prepare_populate(inode, index, &change);
	if (!ret && !src)
		gmem_block_init_folio(folio);

	/* invalidate_lock keeps the page; the hook may sleep for long. */
	folio_unlock(folio);
	folio_put(folio);
	if (ret)
		return ret;

	ret = post_populate(kvm, gfn, folio_pfn(folio), src, opaque);
	if (!ret) {
		folio_mark_dirty(folio);
		folio_mark_uptodate(folio);
	}

	ret = gmem_own_end_populate(inode, index, &change, ret);

	/* The handler of memory errors does not wait for a hook that maps the page. */
	if (!ret && folio_test_hwpoison(folio)) {
		gmem_bind_invalidate_folio(inode, folio);
		ret = -EHWPOISON;
	}
	return ret;
}

/* Return -ENODATA to be called again. */
static int gmem_populate_gfn(struct kvm *kvm, struct kvm_memory_slot *slot,
			     struct file *file, gfn_t gfn, struct page *src,
			     kvm_gmem_populate_cb post_populate, void *opaque)
{
	int ret;

	filemap_invalidate_lock(file->f_mapping);
	ret = gmem_populate_page(kvm, slot, file, gfn, src, post_populate, opaque);
	filemap_invalidate_unlock(file->f_mapping);

	if (ret == -ENODATA)
		ret = gmem_block_fill(file_inode(file), gmem_gfn_to_index(slot, gfn),
				      true) ?: -ENODATA;
	return ret;
}

/* Get one page of the source, writable if the hook reports back through it. */
static struct page *gmem_populate_source(void __user *src, bool writable)
{
	struct page *page;
	int ret;

	ret = get_user_pages_fast((unsigned long)src, 1,
				  writable ? FOLL_WRITE : 0, &page);
	if (ret == 1)
		return page;

	return ERR_PTR(ret ?: -ENOMEM);
}

long kvm_gmem_populate(struct kvm *kvm, gfn_t start_gfn, void __user *src,
		       long npages, bool may_writeback_src,
		       kvm_gmem_populate_cb post_populate, void *opaque)
{
	struct page *page = NULL;
	struct kvm_memory_slot *slot;
	long done;
	int ret = 0;

	lockdep_assert_held(&kvm->slots_lock);

	if (WARN_ON_ONCE(npages <= 0 || !PAGE_ALIGNED(src)))
		return -EINVAL;

	slot = gfn_to_memslot(kvm, start_gfn);
	if (!kvm_slot_has_gmem(slot))
		return -EINVAL;

	struct file *file __free(fput) = gmem_bind_get_file(slot);
	if (!file)
		return -EFAULT;

	npages = min_t(gfn_t, npages, slot->base_gfn + slot->npages - start_gfn);

	for (done = 0; done < npages; done++) {
		if (signal_pending(current)) {
			ret = -EINTR;
			break;
		}

		if (src) {
			page = gmem_populate_source(src + done * PAGE_SIZE,
						    may_writeback_src);
			if (IS_ERR(page)) {
				ret = PTR_ERR(page);
				break;
			}
		}

		do {
			ret = gmem_populate_gfn(kvm, slot, file, start_gfn + done, page,
						post_populate, opaque);
		} while (ret == -ENODATA);

		if (page)
			put_page(page);
		if (ret)
			break;
	}

	return done ?: ret;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_populate);
