// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd bindings: which memslots map which indices.
 *
 * Owns: gmem_inode.files, gmem_file.bindings and kvm_memory_slot.gmem.
 *
 * M1  Bindings of one file do not overlap, and lie within i_size.
 * M2  slot->gmem.file is set from before the memslot is visible until the file
 *     is released or the memslot is freed, whichever comes first.  Nobody gets a
 *     reference through it once the file's last one is gone.
 * M3  A memslot is in gmem_file.bindings from before its first guest fault until
 *     no guest page table refers to the file through it, or until its successor,
 *     with other flags for the same gfns and indices, is there in its place.
 * M4  slot->gmem.state is set when slot->gmem.file is.  The inode, with the state,
 *     is freed a grace period after the last file was, so that whoever finds the
 *     state under RCU may read it.
 * M5  A memslot is KVM_MEMSLOT_GMEM_ONLY for life if and only if its memory is
 *     converted in place.
 *
 * Files and memslots go in any order.  A memslot holds no reference to the file,
 * for the file holds one to the VM; slots_lock settles which goes first.
 *
 * Binding can fail.  Unbinding and invalidation cannot.
 */
#include <linux/cleanup.h>
#include <linux/file.h>
#include <linux/interval_tree.h>

#include "gmem.h"
#include "../guest_memfd.h"
#include "../kvm_mm.h"

/* [start, end) in gfns of the part of @slot that [start, end) in indices binds. */
static struct kvm_gfn_range gmem_slot_range(struct kvm_memory_slot *slot,
					    pgoff_t start, pgoff_t end,
					    enum kvm_gfn_range_filter filter)
{
	pgoff_t first = slot->gmem.pgoff;

	start = max(start, first);
	end = min(end, first + slot->npages);

	return (struct kvm_gfn_range) {
		.slot		= slot,
		.start		= slot->base_gfn + (start - first),
		.end		= slot->base_gfn + (end - first),
		.attr_filter	= filter,
		.may_block	= true,
	};
}

static struct interval_tree_node *gmem_first_binding(struct gmem_file *f,
						     pgoff_t start, pgoff_t end)
{
	return interval_tree_iter_first(&f->bindings, start, end - 1);
}

/* Return whether there is something to end. */
static bool gmem_file_invalidate_begin(struct gmem_file *f, pgoff_t start,
				       pgoff_t end,
				       enum kvm_gfn_range_filter filter)
{
	struct interval_tree_node *node = gmem_first_binding(f, start, end);
	struct kvm_memory_slot *slot;
	struct kvm_gfn_range range;
	bool flush = false;
	gfn_t nr;

	if (!node)
		return false;

	KVM_MMU_LOCK(f->kvm);
	kvm_mmu_invalidate_start(f->kvm);

	for (; node; node = interval_tree_iter_next(node, start, end - 1)) {
		slot = container_of(node, struct kvm_memory_slot, gmem.node);
		range = gmem_slot_range(slot, start, end, filter);

		/* Stop faults on neighbours too, that are about to map a whole block. */
		nr = BIT(kvm_gmem_block_order(slot));
		kvm_mmu_invalidate_range_add(f->kvm, round_down(range.start, nr),
					     round_up(range.end, nr));

		flush |= kvm_mmu_unmap_gfn_range(f->kvm, &range);
		kvm_arch_gmem_invalidate_range(f->kvm, &range);
	}

	if (flush)
		kvm_flush_remote_tlbs(f->kvm);
	KVM_MMU_UNLOCK(f->kvm);
	return true;
}

static void gmem_file_invalidate_end(struct gmem_file *f)
{
	KVM_MMU_LOCK(f->kvm);
	kvm_mmu_invalidate_end(f->kvm);
	KVM_MMU_UNLOCK(f->kvm);
}

/*
 * Zap what can be mapped, and nothing else: the shared pages of a gfn that has
 * private ones in an inode of the old scheme are none of the inode's business.
 */
static enum kvm_gfn_range_filter gmem_filter(struct inode *inode)
{
	return GMEM_I(inode)->in_place ? KVM_FILTER_SHARED | KVM_FILTER_PRIVATE :
					 KVM_FILTER_PRIVATE;
}

void gmem_bind_invalidate_begin(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_file *f;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	guard(mutex)(&gi->bind_lock);
	list_for_each_entry(f, &gi->files, entry) {
		f->invalidating = gmem_file_invalidate_begin(f, start, end,
							     gmem_filter(inode));
		if (f->invalidating)
			kvm_arch_guest_memory_reclaimed(f->kvm);
	}
}

void gmem_bind_convert_begin(struct inode *inode, pgoff_t start, pgoff_t end,
			     bool to_private)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_file *f;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	guard(mutex)(&gi->bind_lock);
	list_for_each_entry(f, &gi->files, entry) {
		/* Without private memory, the guest has the same page either way. */
		f->invalidating = kvm_arch_has_private_mem(f->kvm) &&
			gmem_file_invalidate_begin(f, start, end,
						   to_private ? KVM_FILTER_SHARED :
								KVM_FILTER_PRIVATE);
	}
}

void gmem_bind_invalidate_end(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_file *f;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	guard(mutex)(&gi->bind_lock);
	list_for_each_entry(f, &gi->files, entry) {
		if (f->invalidating)
			gmem_file_invalidate_end(f);
		f->invalidating = false;
	}
}

void gmem_bind_invalidate_folio(struct inode *inode, struct folio *folio)
{
	pgoff_t start = folio->index, end = folio_next_index(folio);
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_file *f;

	/*
	 * Do not take invalidate_lock: whoever holds it may wait for the folio
	 * lock, which the caller has.  Keep bindings stable by bind_lock alone,
	 * for as long as it takes to begin and to end.
	 */
	guard(mutex)(&gi->bind_lock);
	list_for_each_entry(f, &gi->files, entry) {
		if (gmem_file_invalidate_begin(f, start, end, gmem_filter(inode)))
			gmem_file_invalidate_end(f);
	}
}

void gmem_bind_add_file(struct inode *inode, struct gmem_file *f)
{
	struct gmem_inode *gi = GMEM_I(inode);

	filemap_invalidate_lock(inode->i_mapping);
	scoped_guard(mutex, &gi->bind_lock)
		list_add(&f->entry, &gi->files);
	filemap_invalidate_unlock(inode->i_mapping);
}

bool gmem_bind_remove_file(struct inode *inode, struct gmem_file *f)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct interval_tree_node *node;
	struct kvm_memory_slot *slot;
	bool last;

	/*
	 * Keep memslots from being freed while they are dereferenced below.  No
	 * guest fault has the file: the last reference is gone, so that
	 * gmem_bind_get_file() fails, and each fault held one while it needed it.
	 * A fault that has left with a pfn retries after the invalidation.
	 */
	mutex_lock(&f->kvm->slots_lock);
	filemap_invalidate_lock(inode->i_mapping);
	mutex_lock(&gi->bind_lock);

	if (gmem_file_invalidate_begin(f, 0, ULONG_MAX, gmem_filter(inode))) {
		gmem_file_invalidate_end(f);
		kvm_arch_guest_memory_reclaimed(f->kvm);
	}

	while ((node = gmem_first_binding(f, 0, ULONG_MAX))) {
		interval_tree_remove(node, &f->bindings);
		slot = container_of(node, struct kvm_memory_slot, gmem.node);
		WRITE_ONCE(slot->gmem.file, NULL);
		RCU_INIT_POINTER(slot->gmem.state, NULL);
	}
	list_del(&f->entry);
	last = list_empty(&gi->files);

	mutex_unlock(&gi->bind_lock);
	filemap_invalidate_unlock(inode->i_mapping);
	mutex_unlock(&f->kvm->slots_lock);
	return last;
}

bool gmem_bind_next(struct inode *inode, pgoff_t *start, pgoff_t end,
		    pgoff_t *last, long *delta)
{
	struct interval_tree_node *node = NULL;
	struct kvm_memory_slot *slot;
	struct gmem_file *f;

	lockdep_assert_held(&inode->i_mapping->invalidate_lock);

	if (*start >= end)
		return false;

	list_for_each_entry(f, &GMEM_I(inode)->files, entry) {
		if (f->kvm == GMEM_I(inode)->owner)
			node = gmem_first_binding(f, *start, end);
		if (node)
			break;
	}
	if (!node)
		return false;

	slot = container_of(node, struct kvm_memory_slot, gmem.node);
	*delta = gmem_slot_delta(slot);
	*start = max(*start, node->start);

	/* Memslots in a row are as good as one. */
	do {
		*last = min(node->last + 1, end);
		node = interval_tree_iter_next(node, *start, end - 1);
		if (!node)
			break;
		slot = container_of(node, struct kvm_memory_slot, gmem.node);
	} while (node->start == *last && gmem_slot_delta(slot) == *delta);

	return true;
}

bool gmem_bind_is_dead(struct inode *inode)
{
	struct gmem_file *f;

	lockdep_assert_held(&inode->i_mapping->invalidate_lock);

	list_for_each_entry(f, &GMEM_I(inode)->files, entry) {
		if (READ_ONCE(f->kvm->vm_dead))
			return true;
	}
	return false;
}

struct file *gmem_bind_get_file(struct kvm_memory_slot *slot)
{
	/* Fails between the last fput() and gmem_bind_remove_file() as well. */
	return get_file_active(&slot->gmem.file);
}

int kvm_gmem_prepare_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot,
				   unsigned int fd, uoff_t offset)
{
	uoff_t file_size, slot_size = (uoff_t)slot->npages << PAGE_SHIFT;
	struct gmem_file *f;
	struct file *file;

	/* An index is a difference of gfns, and an offset one of addresses. */
	BUILD_BUG_ON(sizeof(gfn_t) != sizeof(pgoff_t));
	BUILD_BUG_ON(sizeof(gpa_t) != sizeof(uoff_t));

	file = fget(fd);
	if (!file)
		return -EBADF;

	if (!gmem_inode_is_gmem(file_inode(file)))
		goto err_put;

	f = file->private_data;
	if (f->kvm != kvm)
		goto err_put;

	file_size = i_size_read(file_inode(file));
	if (!PAGE_ALIGNED(offset) || slot_size > file_size ||
	    offset > file_size - slot_size)
		goto err_put;

	slot->gmem.pgoff = offset >> PAGE_SHIFT;
	slot->gmem.node.start = slot->gmem.pgoff;
	slot->gmem.node.last = slot->gmem.pgoff + slot->npages - 1;

	if (GMEM_I(file_inode(file))->in_place) {
		/* What is converted in place needs no second home for shared pages. */
		slot->flags |= KVM_MEMSLOT_GMEM_ONLY;
	} else if (kvm_slot_dirty_track_enabled(slot)) {
		/* Two homes, one dirty log: it could not tell which one was written. */
		goto err_put;
	}

	/* The caller puts the reference, once the memslot is in or given up. */
	WRITE_ONCE(slot->gmem.file, file);
	rcu_assign_pointer(slot->gmem.state, &GMEM_I(file_inode(file))->state);
	return 0;

err_put:
	fput(file);
	return -EINVAL;
}

int kvm_gmem_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct gmem_file *f = slot->gmem.file->private_data;
	struct inode *inode = file_inode(slot->gmem.file);
	int ret;

	lockdep_assert_held(&kvm->slots_lock);

	filemap_invalidate_lock(inode->i_mapping);

	if (gmem_first_binding(f, slot->gmem.pgoff,
			       slot->gmem.pgoff + slot->npages))
		ret = -EEXIST;
	else
		ret = gmem_own_bind(inode, slot);

	if (!ret) {
		guard(mutex)(&GMEM_I(inode)->bind_lock);
		interval_tree_insert(&slot->gmem.node, &f->bindings);
	}

	filemap_invalidate_unlock(inode->i_mapping);
	return ret;
}

bool kvm_gmem_can_change_flags(struct kvm_memory_slot *slot, u32 flags,
			       unsigned int fd, uoff_t offset)
{
	CLASS(fd, named)(fd);
	struct file *file;

	if (!kvm_memslot_is_gmem_only(slot) ||
	    !((flags ^ slot->flags) & KVM_MEM_LOG_DIRTY_PAGES) ||
	    offset != (uoff_t)slot->gmem.pgoff << PAGE_SHIFT)
		return false;

	if (!fd_empty(named) && fd_file(named) == slot->gmem.file)
		return true;

	/*
	 * No descriptor is left of a file that is closed.  Let dirty logging end,
	 * but do not pretend that the memslot had a new file.
	 */
	file = gmem_bind_get_file(slot);
	if (file) {
		fput(file);
		return false;
	}
	return !(flags & KVM_MEM_LOG_DIRTY_PAGES);
}

void kvm_gmem_replace_memory_region(struct kvm_memory_slot *old,
				    struct kvm_memory_slot *new)
{
	struct file *file = old->gmem.file;
	struct gmem_file *f;
	struct inode *inode;

	new->gmem.pgoff = old->gmem.pgoff;
	new->gmem.node.start = old->gmem.node.start;
	new->gmem.node.last = old->gmem.node.last;

	/* The file went first. */
	if (!file)
		return;

	/* Or has lost its last reference: see kvm_gmem_unbind(). */
	f = file->private_data;
	inode = file_inode(file);
	lockdep_assert_held(&f->kvm->slots_lock);

	/*
	 * Guest faults have @old until @new is visible and all who may have seen
	 * @old are done, so it keeps its file and state.  Its file cannot be
	 * released before @old is freed: that takes slots_lock.  Invalidations
	 * have @new from here on: it has the same gfns and metadata.
	 */
	WRITE_ONCE(new->gmem.file, file);
	rcu_assign_pointer(new->gmem.state, &GMEM_I(inode)->state);

	filemap_invalidate_lock(inode->i_mapping);
	scoped_guard(mutex, &GMEM_I(inode)->bind_lock) {
		interval_tree_remove(&old->gmem.node, &f->bindings);
		interval_tree_insert(&new->gmem.node, &f->bindings);
	}
	filemap_invalidate_unlock(inode->i_mapping);
}

void kvm_gmem_unbind(struct kvm_memory_slot *slot)
{
	struct file *file = slot->gmem.file;
	struct gmem_file *f;
	struct inode *inode;

	/* The file went first. */
	if (!file)
		return;

	/*
	 * The file may have lost its last reference, but is still there: its
	 * release needs slots_lock, which the caller holds, to get past the point
	 * where it clears slot->gmem.file.  No guest fault sees the memslot
	 * anymore: it was replaced, and synchronize_srcu() followed.
	 */
	f = file->private_data;
	inode = file_inode(file);
	lockdep_assert_held(&f->kvm->slots_lock);

	filemap_invalidate_lock(inode->i_mapping);
	scoped_guard(mutex, &GMEM_I(inode)->bind_lock)
		interval_tree_remove(&slot->gmem.node, &f->bindings);
	WRITE_ONCE(slot->gmem.file, NULL);
	RCU_INIT_POINTER(slot->gmem.state, NULL);
	gmem_own_unbind(inode, slot);
	filemap_invalidate_unlock(inode->i_mapping);
}
