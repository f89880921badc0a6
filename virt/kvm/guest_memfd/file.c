// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd files: the operations of the file and KVM_CREATE_GUEST_MEMFD.
 * User input is checked here, and nowhere below.
 *
 * Owns: struct gmem_file, from creation to release.
 *
 * A file pins the VM and the module; mappings pin the file; with the last file
 * the memory goes.  There is no read, no write, and no way to open the inode a
 * second time, for i_fop is not set.
 *
 * The models that convert.c names show what the order is for in which a hole is punched,
 * and a file released: NO_INVALIDATE, NO_FILE_REF.
 */
#include <linux/array_size.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/rcupdate_wait.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include <uapi/linux/falloc.h>

#include "gmem.h"
#include "../guest_memfd.h"

static void gmem_punch_hole(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;

	filemap_invalidate_lock(mapping);

	/* Let no guest use a page that belongs to somebody else already. */
	gmem_bind_invalidate_begin(inode, start, end);
	gmem_own_free(inode, start, min(end, gmem_nr_pages(inode)));
	gmem_block_free(inode, start, end);
	gmem_bind_invalidate_end(inode);

	filemap_invalidate_unlock(mapping);
}

/* Fill a place, and if that brings a block, make all of it the guest's. */
static int gmem_fill(struct inode *inode, pgoff_t index)
{
	pgoff_t nr = BIT(gmem_block_order(inode, index)), start = round_down(index, nr);
	int ret;

	ret = gmem_block_fill(inode, index, true);
	if (ret)
		return ret;

	filemap_invalidate_lock_shared(inode->i_mapping);
	if (gmem_state_get(&GMEM_I(inode)->state, index, GMEM_BLOCK, NULL))
		ret = gmem_own_pages(inode, start, start + nr);
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return ret;
}

/* Make what is new the guest's, even if it is a part, a batch at a time. */
static int gmem_allocate(struct inode *inode, pgoff_t start, pgoff_t end)
{
	pgoff_t index, next;
	int ret, own;

	do {
		index = start;
		next = min(round_down(start, GMEM_BATCH) + GMEM_BATCH, end);

		filemap_invalidate_lock_shared(inode->i_mapping);
		ret = gmem_block_allocate(inode, &index, next);
		own = gmem_own_pages(inode, start, index);
		filemap_invalidate_unlock_shared(inode->i_mapping);

		start = index;
		if (ret == -ENODATA)
			ret = gmem_fill(inode, start);
		ret = ret ?: own;
	} while (!ret && start < end);

	return ret;
}

static long gmem_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct inode *inode = file_inode(file);
	loff_t end = offset + len;
	int ret = 0;

	/* The size is fixed, so KEEP_SIZE must be there for the sake of honesty. */
	if (mode != FALLOC_FL_KEEP_SIZE &&
	    mode != (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;

	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len))
		return -EINVAL;

	if (mode & FALLOC_FL_PUNCH_HOLE)
		gmem_punch_hole(inode, offset >> PAGE_SHIFT, end >> PAGE_SHIFT);
	else if (end > i_size_read(inode))
		ret = -EINVAL;
	else
		ret = gmem_allocate(inode, offset >> PAGE_SHIFT, end >> PAGE_SHIFT);
	if (ret)
		return ret;

	file_modified(file);
	return 0;
}

/* Copy and check what user space asks for, and in which range. */
static int gmem_copy_attributes(struct inode *inode,
				struct kvm_memory_attributes2 *attrs,
				const struct kvm_memory_attributes2 __user *uattrs,
				pgoff_t *start, pgoff_t *end)
{
	u64 size = i_size_read(inode);

	if (copy_from_user(attrs, uattrs, sizeof(*attrs)))
		return -EFAULT;

	if (attrs->flags ||
	    memchr_inv(attrs->reserved, 0, sizeof(attrs->reserved)))
		return -EINVAL;

	if (!PAGE_ALIGNED(attrs->offset) || !PAGE_ALIGNED(attrs->size))
		return -EINVAL;

	if (!attrs->size || attrs->size > size || attrs->offset > size - attrs->size)
		return -EINVAL;

	*start = attrs->offset >> PAGE_SHIFT;
	*end = *start + (attrs->size >> PAGE_SHIFT);
	return 0;
}

static int gmem_set_attributes(struct inode *inode,
			       struct kvm_memory_attributes2 __user *uattrs)
{
	struct kvm_memory_attributes2 attrs;
	pgoff_t start, end, error_index;
	u64 error_offset;
	int ret;

	ret = gmem_copy_attributes(inode, &attrs, uattrs, &start, &end);
	if (ret)
		return ret;

	if (attrs.attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE)
		return -EINVAL;

	ret = gmem_convert(inode, start, end,
			   attrs.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE,
			   &error_index);
	if (ret == -EAGAIN || ret == -ENOMEM || ret == -EIO) {
		error_offset = (u64)error_index << PAGE_SHIFT;
		if (put_user(error_offset, &uattrs->error_offset))
			return -EFAULT;
	}
	return ret;
}

static int gmem_get_attributes(struct inode *inode,
			       struct kvm_memory_attributes2 __user *uattrs)
{
	struct kvm_memory_attributes2 attrs;
	pgoff_t start, end;
	bool private;
	int ret;

	ret = gmem_copy_attributes(inode, &attrs, uattrs, &start, &end);
	if (ret)
		return ret;

	end = gmem_convert_run(inode, start, end, &private);
	attrs.size = (u64)(end - start) << PAGE_SHIFT;
	attrs.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;

	if (put_user(attrs.size, &uattrs->size) ||
	    put_user(attrs.attributes, &uattrs->attributes))
		return -EFAULT;
	return 0;
}

static long gmem_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct inode *inode = file_inode(file);
	void __user *argp = (void __user *)arg;

	/* The VM's attributes rule, see "in place" in gmem.h. */
	if (!GMEM_I(inode)->in_place)
		return -ENOTTY;

	switch (cmd) {
	case KVM_SET_MEMORY_ATTRIBUTES2:
		return gmem_set_attributes(inode, argp);
	case KVM_GET_MEMORY_ATTRIBUTES2:
		return gmem_get_attributes(inode, argp);
	default:
		return -ENOTTY;
	}
}

/* Count the pages with a memory error: look, if there ever was one. */
static unsigned long gmem_count_poisoned(struct inode *inode)
{
	XA_STATE(xas, &inode->i_mapping->i_pages, 0);
	unsigned long nr = 0;
	struct folio *folio;

	if (!READ_ONCE(GMEM_I(inode)->poisoned))
		return 0;

	rcu_read_lock();
	xas_for_each(&xas, folio, ULONG_MAX) {
		if (xas_retry(&xas, folio))
			continue;
		nr += PageHWPoison(&folio->page);
		if (need_resched()) {
			xas_pause(&xas);
			cond_resched_rcu();
		}
	}
	rcu_read_unlock();
	return nr;
}

/* Take no lock: a conversion that takes long should show. */
static void gmem_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct inode *inode = file_inode(file);
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t nr_private = READ_ONCE(gi->nr_private);
	struct gmem_block_counts blocks;

	gmem_block_count(inode, &blocks);
	seq_printf(m, "gmem-size:\t%lld\n", i_size_read(inode));
	seq_printf(m, "gmem-flags:\t0x%llx\n", gi->flags);
	seq_printf(m, "gmem-block-size:\t%lu\n", PAGE_SIZE << gi->block_order);
	seq_printf(m, "gmem-blocks-whole:\t%lu\n", blocks.whole);
	seq_printf(m, "gmem-blocks-broken:\t%lu\n", blocks.broken);
	seq_printf(m, "gmem-blocks-fallback:\t%lu\n", blocks.base);
	seq_printf(m, "gmem-present:\t%lu\n", READ_ONCE(inode->i_mapping->nrpages));
	seq_printf(m, "gmem-private:\t%lu\n", nr_private);
	seq_printf(m, "gmem-shared:\t%lu\n", gmem_nr_pages(inode) - nr_private);
	seq_printf(m, "gmem-owned:\t%lu\n", READ_ONCE(gi->nr_owned));
	seq_printf(m, "gmem-converting:\t%lu\n", READ_ONCE(gi->nr_converting));
	seq_printf(m, "gmem-poisoned:\t%lu\n", gmem_count_poisoned(inode));
}

static int gmem_release(struct inode *inode, struct file *file)
{
	struct gmem_file *f = file->private_data;

	/* Free while the module is pinned: the architecture's hooks are in it. */
	if (gmem_bind_remove_file(inode, f)) {
		filemap_invalidate_lock(inode->i_mapping);
		gmem_own_free(inode, 0, gmem_nr_pages(inode));
		gmem_block_free(inode, 0, gmem_nr_pages(inode));
		gmem_own_destroy(inode);
		gmem_state_destroy(&GMEM_I(inode)->state);
		filemap_invalidate_unlock(inode->i_mapping);
	}

	kvm_put_kvm(f->kvm);
	kfree(f);
	return 0;
}

static const struct file_operations *gmem_fops;

/* Memory that can be mapped, or need not be private, is for conversion in place. */
static bool gmem_flags_in_place(u64 flags)
{
	return flags || !kvm_vm_has_memory_attributes();
}

static struct file *gmem_create_file(struct kvm *kvm, loff_t size, u64 flags,
				     unsigned int block_order)
{
	struct gmem_file *f;
	struct inode *inode;
	struct file *file;

	f = kzalloc_obj(*f);
	if (!f)
		return ERR_PTR(-ENOMEM);

	/* Released by __fput(), or below. */
	if (!fops_get(gmem_fops)) {
		file = ERR_PTR(-ENOENT);
		goto err_free;
	}

	inode = gmem_inode_create(size, flags, block_order,
				  gmem_flags_in_place(flags), kvm);
	if (IS_ERR(inode)) {
		file = ERR_CAST(inode);
		goto err_fops;
	}

	file = gmem_inode_open(inode, gmem_fops);
	if (IS_ERR(file))
		goto err_inode;

	kvm_get_kvm(kvm);
	f->kvm = kvm;
	f->bindings = RB_ROOT_CACHED;
	gmem_bind_add_file(inode, f);
	file->private_data = f;
	return file;

err_inode:
	iput(inode);
err_fops:
	fops_put(gmem_fops);
err_free:
	kfree(f);
	return file;
}

/* The sizes of blocks that page tables have, and the capability an int for. */
unsigned long kvm_gmem_block_sizes(void)
{
	const unsigned int orders[] = { PMD_ORDER, PUD_ORDER };
	unsigned int max_order = 30 - PAGE_SHIFT, i;
	unsigned long sizes = PAGE_SIZE;

	if (!IS_ENABLED(CONFIG_HAVE_KVM_GMEM_BLOCKS))
		return sizes;

	if (!IS_ENABLED(CONFIG_CONTIG_ALLOC))
		max_order = min(max_order, MAX_PAGE_ORDER);

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		if (orders[i] <= max_order)
			sizes |= PAGE_SIZE << orders[i];
	}
	return sizes;
}

int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args)
{
	unsigned int block_shift = args->flags >> GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	u64 flags = args->flags & ~GUEST_MEMFD_BLOCK_SIZE_MASK;
	loff_t size = args->size;
	struct file *file;
	int fd;

	if (flags & ~kvm_gmem_get_supported_flags(kvm))
		return -EINVAL;

	block_shift = block_shift ?: PAGE_SHIFT;
	if (!(kvm_gmem_block_sizes() & BIT_ULL(block_shift)))
		return -EINVAL;

	if (size <= 0 || !PAGE_ALIGNED(size))
		return -EINVAL;

	fd = get_unused_fd_flags(0);
	if (fd < 0)
		return fd;

	file = gmem_create_file(kvm, size, flags, block_shift - PAGE_SHIFT);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}

	fd_install(fd, file);
	return fd;
}

int kvm_gmem_init(struct module *module)
{
	/* The owner is the vendor module, which is not known any earlier. */
	const struct file_operations fops = {
		.owner		= module,
		.release	= gmem_release,
		.mmap		= gmem_mmap_file,
		.fallocate	= gmem_fallocate,
		.unlocked_ioctl	= gmem_ioctl,
		.compat_ioctl	= compat_ptr_ioctl,
		.show_fdinfo	= PTR_IF(IS_ENABLED(CONFIG_PROC_FS), gmem_show_fdinfo),
	};
	int ret;

	gmem_fops = kmemdup(&fops, sizeof(fops), GFP_KERNEL);
	if (!gmem_fops)
		return -ENOMEM;

	ret = gmem_inode_init();
	if (ret)
		kfree(gmem_fops);
	return ret;
}

void kvm_gmem_exit(void)
{
	gmem_inode_exit();
	kfree(gmem_fops);
}
