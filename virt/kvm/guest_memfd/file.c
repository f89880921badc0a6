// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd files: the operations of the file and KVM_CREATE_GUEST_MEMFD.
 *
 * Owns: struct gmem_file, from creation to release.
 *
 * A file pins the VM and the module; mappings pin the file; with the last file
 * the memory goes.  There is no read, no write, and no way to open the inode a
 * second time, for i_fop is not set.
 */
#include <linux/file.h>
#include <linux/slab.h>

#include <uapi/linux/falloc.h>

#include "gmem.h"
#include "../guest_memfd.h"

static void gmem_punch_hole(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;

	filemap_invalidate_lock(mapping);

	/* Let no guest use a page that belongs to somebody else already. */
	gmem_bind_invalidate_begin(inode, start, end);
	gmem_block_free(inode, start, end);
	gmem_bind_invalidate_end(inode, start, end);

	filemap_invalidate_unlock(mapping);
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
		ret = gmem_block_allocate(inode, offset >> PAGE_SHIFT,
					  end >> PAGE_SHIFT);
	if (ret)
		return ret;

	file_modified(file);
	return 0;
}

static int gmem_release(struct inode *inode, struct file *file)
{
	struct gmem_file *f = file->private_data;

	/* Free while the module is pinned: reclaim by the architecture is in it. */
	if (gmem_bind_remove_file(inode, f)) {
		filemap_invalidate_lock(inode->i_mapping);
		gmem_block_free(inode, 0, i_size_read(inode) >> PAGE_SHIFT);
		filemap_invalidate_unlock(inode->i_mapping);
	}

	kvm_put_kvm(f->kvm);
	kfree(f);
	return 0;
}

static const struct file_operations *gmem_fops;

/* Every VM can have memory that starts shared, unless its architecture objects. */
bool __weak kvm_arch_supports_gmem_init_shared(struct kvm *kvm)
{
	return true;
}

static struct file *gmem_create_file(struct kvm *kvm, loff_t size, u64 flags)
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

	inode = gmem_inode_create(size, flags);
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

int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args)
{
	loff_t size = args->size;
	struct file *file;
	int fd;

	if (args->flags & ~kvm_gmem_get_supported_flags(kvm))
		return -EINVAL;

	if (size <= 0 || !PAGE_ALIGNED(size))
		return -EINVAL;

	fd = get_unused_fd_flags(0);
	if (fd < 0)
		return fd;

	file = gmem_create_file(kvm, size, args->flags);
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
