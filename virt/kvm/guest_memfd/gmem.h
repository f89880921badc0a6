/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guest_memfd: guest memory that a file holds.
 *
 * Terms
 *
 *   file      What KVM_CREATE_GUEST_MEMFD returns: one VM's handle on memory.
 *             It pins its VM; memslots do not pin it.
 *   inode     The memory itself, with its size, creation flags and NUMA policy.
 *   index     A page's position in the inode, in units of PAGE_SIZE (pgoff_t).
 *   gfn, pfn  A page's position in the guest and in host physical memory.
 *   order     log2 of a number of pages.
 *   block     Contiguous memory of a size that suits page tables, see block.c.
 *   shared    The host may touch the page, and map it if the file has MMAP.
 *   private   The host may do neither: the page is for the guest alone.  An index
 *             is private or shared whether it has a page or not.
 *   in place  Said of an inode: its pages can be converted, and each index is
 *             what the inode's state says.  All others (the old scheme) hold
 *             private pages only, and the VM's attributes say which gfns those
 *             are for.
 *   convert   Make a private page shared or the other way round.
 *   binding   A memslot's claim on a range of indices of one file.
 *   populate  Give a page its initial content on behalf of the guest's launch.
 *   invalidate  Remove pages from every guest page table that maps them, and
 *             make guest faults in flight retry.
 *
 * Intervals are half-open, [start, end), unless an argument is called "last".
 *
 * Invariants
 *
 *   I1  A private page is in no user page table and has no reference but the
 *       inode's own, and transient ones that never touch its content.
 *   I2  A page is the guest's from the moment the architecture's hook succeeded
 *       until the reverse hook did, see own.c.  A page that returns to the
 *       allocator is the host's.  (TDX has no hooks: a page is the guest's while
 *       it is in the guest's page table.)
 *   I3  An operation that fails or is interrupted leaves state, content and
 *       ownership as they were; fallocate() and populate may have got part of the
 *       way, and populate says how far.
 *   I4  The guest maps as one what is contiguous and present, initialised, owned
 *       alike and, if it has private memory, private or shared alike.
 *   I5  Unless it was populated, a page reads as zeroes the first time that
 *       anyone sees it.  It keeps its content until somebody with the right to
 *       it writes it or gives it up.  Core-mm never drops a page on its own.
 *
 * Locks, outermost first
 *
 *   kvm->slots_lock, kvm->slots_arch_lock
 *       Memslots of one VM, and with them slot->gmem.  Release of a file takes
 *       slots_lock, so that no memslot changes while its bindings go.
 *   kvm->srcu
 *       Guest faults hold it while they wait for the locks below: never wait
 *       for its readers under any of them.
 *   mm->mmap_lock
 *       Held by the caller of the user fault handler.  Touch no user memory
 *       under any of the locks below.
 *   gmem_inode->fill_lock[]
 *       Some of the places for blocks: who is allocating one.  It takes long.
 *   mapping->invalidate_lock
 *       Exclusive: pages go away or are converted, content is populated,
 *       bindings change.
 *       Shared: a page is looked up or allocated, on behalf of a user, of a
 *       guest or of fallocate(), mapped for a user, and made the guest's own.
 *   gmem_inode->own_lock
 *       What pages are owned, among those who hold invalidate_lock shared.  A block
 *       enters under it, for its pages may be taken back.
 *   folio lock
 *       Presence and initialisation of one page.  The memory error handler
 *       arrives with it held and so cannot take the locks above.  A user fault
 *       that brings a new page holds it until the page is mapped.
 *   gmem_inode->bind_lock
 *       The inode's files and their bindings.  A writer holds invalidate_lock
 *       exclusively too, so that an invalidation, which can span other work
 *       like truncation, ends in exactly the VMs that it began in.
 *   gmem_inode->block_lock
 *       Which pages are memory of blocks.  A block enters under it, with its pages
 *       locked, which nobody else has yet.  memory_failure() waits for it, with a
 *       lock of the whole host: allocate nodes of tables under it, but no pages.
 *   kvm->mmu_lock
 *
 * State is read under RCU alone where it is a hint that an invalidation corrects,
 * like in a guest fault.  A memslot points to it, see M4 in bind.c.
 *
 * Units, each above those that it uses
 *
 *   file.c      operations on the file: create, fallocate, attributes, release
 *   debug.c     debugfs, for tests
 *   convert.c   private to shared and back
 *   mmap.c      user mappings        populate.c  initial content
 *   pfn.c       guest page faults    poison.c    memory errors
 *   own.c       whose a page is, as hardware sees it
 *   bind.c      memslots, and who maps a range
 *   block.c     physical memory; mm/filemap_offlru.c puts it into the page cache
 *   inode.c     the pseudo file system and the life of an inode
 *   state.c     what is known of each page; a data structure
 *
 * Only the table of what core-mm may do, in inode.c, names functions from above, and
 * bind.c does, which has own.c take the pages of a range before it is bound.
 *
 * The KVM selftests guest_memfd_*_test hold the interface to what
 * Documentation/virt/kvm/guest_memfd.rst says.
 */
#ifndef __KVM_GMEM_H
#define __KVM_GMEM_H

#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/maple_tree.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/rbtree.h>
#include <linux/rcupdate.h>

#include "state.h"

/* For as many CPUs that fill one inode with blocks. */
#define GMEM_NR_FILL_LOCKS	16

/**
 * struct gmem_inode - guest memory
 * @vfs_inode: i_mapping holds the pages; i_size never changes
 * @policy: NUMA policy by index; has a lock of its own
 * @state: GMEM_* by index.  Written under invalidate_lock, exclusive; GMEM_OWNED
 *         also shared, and under @own_lock; GMEM_BLOCK under @block_lock alone
 * @nr_private: number of private indices; written under invalidate_lock, exclusive
 * @nr_converting: number of indices in conversion; likewise
 * @nr_owned: number of owned pages; as @state
 * @owner: the VM whose hardware has owned pages on record, or NULL; constant
 * @claims: see own.c; under @own_lock
 * @poisoned: a page had a memory error, at some time; only ever set
 * @flags: GUEST_MEMFD_FLAG_*, constant
 * @block_order: of its blocks, or 0; constant
 * @in_place: see "Terms", constant
 * @files: every &struct gmem_file of this memory, under @bind_lock
 */
struct gmem_inode {
	struct inode vfs_inode;
	struct shared_policy policy;
	struct gmem_state state;
	pgoff_t nr_private;
	pgoff_t nr_converting;
	pgoff_t nr_owned;
	struct kvm *owner;
	/** @own_lock: see "Locks" */
	struct mutex own_lock;
	struct maple_tree claims;
	bool poisoned;
	u64 flags;
	unsigned int block_order;
	bool in_place;
	/** @fill_lock: see "Locks" */
	struct mutex fill_lock[GMEM_NR_FILL_LOCKS];
	/** @block_lock: see "Locks" */
	struct mutex block_lock;
	/** @bind_lock: of @files and their bindings, see "Locks" */
	struct mutex bind_lock;
	struct list_head files;
};

/**
 * struct gmem_file - one VM's handle on guest memory, file->private_data
 * @kvm: the VM, pinned until release
 * @bindings: kvm_memory_slot.gmem.node, keyed by index, under bind_lock
 * @entry: in gmem_inode.files, under bind_lock
 * @invalidating: between gmem_bind_invalidate_begin() and _end(), and in it
 */
struct gmem_file {
	struct kvm *kvm;
	struct rb_root_cached bindings;
	struct list_head entry;
	bool invalidating;
};

/* How many pages to handle before others get their turn. */
#define GMEM_BATCH	512

static inline struct gmem_inode *GMEM_I(const struct inode *inode)
{
	return container_of(inode, struct gmem_inode, vfs_inode);
}

/* The number of pages that the inode has room for. */
static inline pgoff_t gmem_nr_pages(const struct inode *inode)
{
	return GMEM_I(inode)->state.nr_pages;
}

static inline pgoff_t gmem_gfn_to_index(const struct kvm_memory_slot *slot,
					gfn_t gfn)
{
	return gfn - slot->base_gfn + slot->gmem.pgoff;
}

/* gfn - index, of all pages of a memslot. */
static inline long gmem_slot_delta(const struct kvm_memory_slot *slot)
{
	return slot->base_gfn - slot->gmem.pgoff;
}

/* inode.c */

/**
 * gmem_inode_init() - Set up for gmem_inode_create(), until gmem_inode_exit()
 *
 * Return: 0 or -ENOMEM.
 */
int gmem_inode_init(void);
void gmem_inode_exit(void);

/* Is it guest memory?  Then the private_data of its files is a gmem_file. */
bool gmem_inode_is_gmem(const struct inode *inode);

/**
 * gmem_inode_create() - Make guest memory, without a page yet
 * @size: in bytes, positive and page-aligned
 * @flags: GUEST_MEMFD_FLAG_*, checked by the caller
 * @block_order: PMD_ORDER, PUD_ORDER or 0
 * @in_place: whether pages can be converted
 * @kvm: the VM that the first file is for, and that has the file pin it
 *
 * Context: may sleep.
 * Return: the inode, with one reference, or an ERR_PTR.
 */
struct inode *gmem_inode_create(loff_t size, u64 flags, unsigned int block_order,
				bool in_place, struct kvm *kvm);

/**
 * gmem_inode_open() - Open guest memory
 * @inode: loses one reference on success
 * @fops: the file's operations; fops->owner is not pinned here
 *
 * Context: may sleep.
 * Return: a file that is open for reading and writing, or an ERR_PTR.
 */
struct file *gmem_inode_open(struct inode *inode,
			     const struct file_operations *fops);

/* block.c */

/**
 * gmem_block_order() - Tell how large a block is at an index
 * @inode: the memory
 * @index: within i_size
 *
 * Context: any.
 * Return: PMD_ORDER, PUD_ORDER, or 0 if there is no room for one.
 */
unsigned int gmem_block_order(struct inode *inode, pgoff_t index);

/**
 * gmem_block_get_folio() - Look a page up, allocate it where it is absent
 * @inode: the memory
 * @index: the page, within i_size
 *
 * A page that is allocated has the NUMA policy of @index, is charged to the
 * memory cgroup of the current task, and has no content yet: see
 * gmem_block_init_folio().
 *
 * Context: caller holds invalidate_lock.  May sleep.
 * Return: the folio, locked and with a reference, or an ERR_PTR: -ENODATA where
 *         the caller has to unlock, call gmem_block_fill() and try again, or
 *         -ENOMEM.
 */
struct folio *gmem_block_get_folio(struct inode *inode, pgoff_t index);

/**
 * gmem_block_init_folio() - Zero a page unless it has content already (I5)
 * @folio: locked by the caller; left alone if it has a memory error
 *
 * Context: caller holds the folio lock.  Does not sleep.
 */
void gmem_block_init_folio(struct folio *folio);

/**
 * gmem_block_fill() - Fill the place around an absent page with a block
 * @inode: the memory
 * @index: the page, with room for a block around it
 * @patient: whether to reclaim and compact memory for it, and end with any signal
 *
 * A place that has other pages, or for which there is no block, gets a base page at
 * @index, unless blocks are so large that they have no substitute.
 *
 * The block has the NUMA policy of its first index, is charged to the memory cgroup
 * of the current task, and reads as zeroes.
 *
 * Context: takes fill_lock and invalidate_lock.  May sleep, for seconds where blocks
 *          are larger than what the buddy allocator has.
 * Return: 0 (and the page may be gone again), -EINTR or -ENOMEM.
 */
int gmem_block_fill(struct inode *inode, pgoff_t index, bool patient);

/**
 * gmem_block_allocate() - Allocate what is absent in a range
 * @inode: the memory
 * @start: first index; set to where it fails
 * @end: first index behind the range, within i_size
 *
 * Context: caller holds invalidate_lock.  May sleep; a signal ends it.
 * Return: 0, -EINTR, or what gmem_block_get_folio() returns.  Pages allocated before
 *         an error remain: they hold no content, so the range still reads the same.
 */
int gmem_block_allocate(struct inode *inode, pgoff_t *start, pgoff_t end);

/**
 * gmem_block_break_folio() - A page with a memory error is not part of its block
 * @inode: the memory
 * @folio: in @inode
 *
 * Context: caller holds the folio lock.  May sleep.
 */
void gmem_block_break_folio(struct inode *inode, struct folio *folio);

/**
 * struct gmem_block_counts - places with pages
 * @whole: that have a block
 * @broken: that have a part of one
 * @base: that have base pages only
 */
struct gmem_block_counts {
	unsigned long whole, broken, base;
};

/**
 * gmem_block_count() - Count blocks
 * @inode: the memory
 * @counts: where to
 *
 * Context: may sleep.  A fatal signal ends it early.  What changes meanwhile is
 *          counted either way.
 */
void gmem_block_count(struct inode *inode, struct gmem_block_counts *counts);

/**
 * gmem_block_free() - Give the pages of a range up, with their content
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 *
 * Removes the pages from user page tables too.  A page that somebody has pinned
 * leaves the inode all the same, and is freed with its last reference.
 *
 * Context: caller holds invalidate_lock exclusively and has invalidated the
 *          range.  May sleep.
 */
void gmem_block_free(struct inode *inode, pgoff_t start, pgoff_t end);

/* bind.c */

/**
 * gmem_bind_add_file() - Add a file to its inode
 * @inode: the memory
 * @f: without bindings yet
 *
 * Context: takes invalidate_lock.
 */
void gmem_bind_add_file(struct inode *inode, struct gmem_file *f);

/**
 * gmem_bind_remove_file() - Remove a file, its bindings and its guest mappings
 * @inode: the memory, which keeps its pages
 * @f: at its last reference
 *
 * Context: takes slots_lock and invalidate_lock.
 * Return: whether it was the last file of @inode.
 */
bool gmem_bind_remove_file(struct inode *inode, struct gmem_file *f);

/**
 * gmem_bind_get_file() - Get the file that backs a memslot
 * @slot: a memslot with KVM_MEM_GUEST_MEMFD
 *
 * Context: caller holds slots_lock or kvm->srcu, for @slot.
 * Return: the file with a reference, or NULL if it is closed or being closed.
 */
struct file *gmem_bind_get_file(struct kvm_memory_slot *slot);

/**
 * gmem_bind_invalidate_begin() - Remove a range from all guest page tables
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 *
 * Guest faults on the range retry until gmem_bind_invalidate_end().
 *
 * Context: caller holds invalidate_lock exclusively until
 *          gmem_bind_invalidate_end() has returned.  May sleep.
 */
void gmem_bind_invalidate_begin(struct inode *inode, pgoff_t start, pgoff_t end);
void gmem_bind_invalidate_end(struct inode *inode);

/**
 * gmem_bind_convert_begin() - The same, for a range that is to be converted
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 * @to_private: remove what is mapped as shared, or else as private
 *
 * Spares the VMs that map private and shared pages alike.
 *
 * Context: as for gmem_bind_invalidate_begin(), until gmem_bind_invalidate_end().
 */
void gmem_bind_convert_begin(struct inode *inode, pgoff_t start, pgoff_t end,
			     bool to_private);

/**
 * gmem_bind_invalidate_folio() - Begin and end, for a caller with the folio lock
 * @inode: the memory
 * @folio: locked by the caller, in @inode
 *
 * Context: caller holds the folio lock and not invalidate_lock.  May sleep.
 */
void gmem_bind_invalidate_folio(struct inode *inode, struct folio *folio);

/**
 * gmem_bind_next() - Find what is bound of a range
 * @inode: the memory; in a file of its owner
 * @start: first index; set to the first one that is bound
 * @end: first index behind the range
 * @last: first index that is not bound any more, or not at the same distance
 *        from its gfn; at most @end
 * @delta: that distance, gfn - index
 *
 * Context: caller holds invalidate_lock.
 * Return: whether something is bound.
 */
bool gmem_bind_next(struct inode *inode, pgoff_t *start, pgoff_t end,
		    pgoff_t *last, long *delta);

/**
 * gmem_bind_is_dead() - Tell whether KVM has given up on a VM of the memory
 * @inode: the memory
 *
 * Its guest may still have pages that it should not have.
 *
 * Context: caller holds invalidate_lock.
 * Return: whether the VM of one of its files is dead, e.g. bugged.
 */
bool gmem_bind_is_dead(struct inode *inode);

/*
 * own.c: the callers hold invalidate_lock, exclusively unless noted, and may
 * sleep.  What fails has changed nothing (I3) if not noted; errors are -ENOMEM,
 * -EINTR if the task is being killed, and those of the architecture.
 */
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_CONVERT
/**
 * gmem_own_pages() - Make private pages the guest's, where they are bound
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 *
 * For pages that are new, or have not been owned for other reasons.  Where this
 * fails, a part of the pages may be owned.  The caller refers to none of them.
 *
 * Context: invalidate_lock is held in any mode.
 * Return: 0, or an error, and a part of the pages may be owned.
 */
int gmem_own_pages(struct inode *inode, pgoff_t start, pgoff_t end);

int __gmem_own_page(struct inode *inode, pgoff_t index);

/* The same for one page, on behalf of a guest fault: mostly there is nothing to do. */
static inline int gmem_own_page(struct inode *inode, pgoff_t index)
{
	const struct gmem_inode *gi = GMEM_I(inode);

	if (!gi->owner || gmem_state_get(&gi->state, index, GMEM_PRIVATE | GMEM_OWNED,
					 NULL) != GMEM_PRIVATE)
		return 0;
	return __gmem_own_page(inode, index);
}

/**
 * gmem_own_to_private() - Make shared pages the guest's, to be private afterwards
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 * @error_index: where it failed
 *
 * Context: nobody uses the pages but the guest, whose mappings are gone.
 * Return: 0, or an error, and nothing has changed.
 */
int gmem_own_to_private(struct inode *inode, pgoff_t start, pgoff_t end,
			pgoff_t *error_index);

/**
 * gmem_own_to_shared() - Make pages the host's, to be shared afterwards
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 * @error_index: where it failed
 *
 * On success, the caller clears GMEM_OWNED for the range, whatever happens.
 *
 * Context: guest mappings of the private pages are gone.
 * Return: 0, or an error, and nothing has changed.
 */
int gmem_own_to_shared(struct inode *inode, pgoff_t start, pgoff_t end,
		       pgoff_t *error_index);

/**
 * gmem_own_bind() - Make pages the guest's that are going to be bound
 * @inode: the memory
 * @slot: the memslot, not in the bindings yet
 *
 * Pages that the guest had at other gfns move.  -EBUSY if they cannot, for they
 * were populated and the guest has not been launched.
 *
 * Context: slots_lock is held too.
 * Return: 0, -EBUSY, or an error, and nothing has changed.
 */
int gmem_own_bind(struct inode *inode, const struct kvm_memory_slot *slot);

/* Forget what is of no use anymore.  Owned pages stay so. */
void gmem_own_unbind(struct inode *inode, const struct kvm_memory_slot *slot);

/**
 * gmem_own_prepare_populate() - Prepare for a page to be populated
 * @inode: the memory
 * @index: a private page
 * @change: for gmem_own_end_populate()
 *
 * Before launch, the populate hook alone makes pages the guest's.  -EEXIST if this
 * one is so already.
 * Return: 0, -EEXIST or -ENOMEM.
 */
int gmem_own_prepare_populate(struct inode *inode, pgoff_t index,
			      struct gmem_state_change *change);

/**
 * gmem_own_end_populate() - The page has its content, and is the guest's now
 * @inode: the memory
 * @index: as for gmem_own_prepare_populate(), which has succeeded
 * @change: likewise
 * @ret: what the populate hook has returned
 *
 * Return: @ret, or else an error if the page cannot be the guest's.
 */
int gmem_own_end_populate(struct inode *inode, pgoff_t index,
			  struct gmem_state_change *change, int ret);

/**
 * gmem_own_free() - Make pages the host's, to be freed, or leak them
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range
 *
 * Context: guest mappings are gone.  Cannot fail.
 */
void gmem_own_free(struct inode *inode, pgoff_t start, pgoff_t end);

/* Forget the rest, with the last page gone. */
void gmem_own_destroy(struct inode *inode);
#else
static inline int gmem_own_pages(struct inode *inode, pgoff_t start, pgoff_t end)
{
	return 0;
}

static inline int gmem_own_page(struct inode *inode, pgoff_t index)
{
	return 0;
}

static inline int gmem_own_to_private(struct inode *inode, pgoff_t start,
				      pgoff_t end, pgoff_t *error_index)
{
	return 0;
}

static inline int gmem_own_to_shared(struct inode *inode, pgoff_t start,
				     pgoff_t end, pgoff_t *error_index)
{
	return 0;
}

static inline int gmem_own_bind(struct inode *inode,
				const struct kvm_memory_slot *slot)
{
	return 0;
}

static inline void gmem_own_unbind(struct inode *inode,
				   const struct kvm_memory_slot *slot)
{
}

static inline int gmem_own_prepare_populate(struct inode *inode, pgoff_t index,
					    struct gmem_state_change *change)
{
	return 0;
}

static inline int gmem_own_end_populate(struct inode *inode, pgoff_t index,
					struct gmem_state_change *change, int ret)
{
	return ret;
}

static inline void gmem_own_free(struct inode *inode, pgoff_t start, pgoff_t end)
{
}

static inline void gmem_own_destroy(struct inode *inode)
{
}
#endif

/* convert.c */

/**
 * gmem_convert() - Make a range private or shared, in place
 * @inode: the memory, of the in-place kind
 * @start: first index
 * @end: first index behind the range, within the inode
 * @to_private: what to make of it
 * @error_index: with -EAGAIN, -ENOMEM and -EIO, the first page in the way
 *
 * Context: takes invalidate_lock.  May sleep, for 200 ms where somebody refers
 *          to a page.
 * Return: 0; -EAGAIN if somebody still refers to a page, -ENOMEM, -EINTR if the
 *         task is being killed, -EIO if a VM is dead with its memory, or what the
 *         architecture's hooks return: then nothing has changed (I3).
 */
int gmem_convert(struct inode *inode, pgoff_t start, pgoff_t end,
		 bool to_private, pgoff_t *error_index);

/**
 * gmem_convert_run() - Tell what a range starts with
 * @inode: the memory
 * @start: first index
 * @end: first index behind the range, within the inode
 * @private: whether the page at @start is private
 *
 * Context: takes invalidate_lock shared.  May sleep; a fatal signal ends it
 *          early.
 * Return: the first index at or below @end behind the pages that are alike.
 */
pgoff_t gmem_convert_run(struct inode *inode, pgoff_t start, pgoff_t end,
			 bool *private);

/* mmap.c: ->mmap() */

int gmem_mmap_file(struct file *file, struct vm_area_struct *vma);

/* poison.c: ->error_remove_folio(), with the folio locked */

int gmem_poison_folio(struct address_space *mapping, struct folio *folio);

/* pfn.c */

/**
 * gmem_pfn_get_folio() - Look up, or allocate, the page behind a gfn
 * @slot: the memslot
 * @file: the file that backs @slot, with a reference
 * @gfn: within @slot
 *
 * Context: caller holds invalidate_lock, and slots_lock or kvm->srcu for @slot.
 *          May sleep.
 * Return: the folio, locked and with a reference, or an ERR_PTR: -EHWPOISON for
 *         a memory error, or what gmem_block_get_folio() returns.
 */
struct folio *gmem_pfn_get_folio(struct kvm_memory_slot *slot,
				 struct file *file, gfn_t gfn);

/*
 * Stand-ins for hooks that no configured architecture code has, so that callers
 * need no #ifdef.
 */

/* Whether hardware keeps a record of whose pages are. */
#ifndef kvm_arch_gmem_owns_pages
static inline bool kvm_arch_gmem_owns_pages(struct kvm *kvm)
{
	return false;
}
#endif

/* Check that pages are the host's that are freed, or mapped; for debugging. */
#ifndef kvm_arch_gmem_check_host
static inline void kvm_arch_gmem_check_host(kvm_pfn_t pfn, kvm_pfn_t nr_pages,
					    bool freed)
{
}
#endif

#ifndef CONFIG_HAVE_KVM_ARCH_GMEM_INVALIDATE
static inline void kvm_arch_gmem_invalidate_range(struct kvm *kvm,
						  struct kvm_gfn_range *range)
{
}
#endif

#endif /* __KVM_GMEM_H */
