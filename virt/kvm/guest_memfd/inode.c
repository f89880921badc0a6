// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd inodes: the pseudo file system and the life of an inode.
 *
 * Owns: the mount, the inode cache, what core-mm may do with the pages.
 *
 * The inodes are on no list of their super block, which keeps drop_caches and
 * its like away, and are freed after an RCU grace period, which lets core-mm
 * look at folio->mapping of a page that it has no reference to.
 *
 * A file pins the module, an inode does not.  Release of the last file therefore
 * takes the pages along: an inode that outlives it, for as long as __fput() needs
 * to drop it, has none.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/filemap_offlru.h>
#include <linux/fs_context.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>

#include "gmem.h"

/* As seen in /proc/PID/maps and /proc/PID/fd. */
#define GMEM_NAME "[kvm-gmem]"

static struct kmem_cache *gmem_inode_cache;
static struct vfsmount *gmem_mount;

/* Pages stay where they are: architectures hold them by physical address. */
static int gmem_migrate_folio(struct address_space *mapping, struct folio *dst,
			      struct folio *src, enum migrate_mode mode)
{
	return -EINVAL;
}

/*
 * Refuse to let go of a page that is marked clean.  That says nothing about its
 * content, of which there is no copy elsewhere (I5).  Core-mm tries when a user
 * fault meets a memory error, which is then never reported, and to take a page
 * offline softly, which a guest may be using.
 */
static bool gmem_release_folio(struct folio *folio, gfp_t gfp)
{
	return false;
}

/* Called for each page that leaves the inode, whoever still refers to it. */
static void gmem_free_folio(struct folio *folio)
{
	kvm_arch_gmem_check_host(folio_pfn(folio), folio_nr_pages(folio), true);
	filemap_offlru_free_folio(folio);
}

static const struct address_space_operations gmem_aops = {
	.dirty_folio		= noop_dirty_folio,
	.migrate_folio		= gmem_migrate_folio,
	.release_folio		= gmem_release_folio,
	.error_remove_folio	= gmem_poison_folio,
	.free_folio		= gmem_free_folio,
};

/* Size, mode and owner are as they were created. */
static int gmem_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
			struct iattr *attr)
{
	return -EINVAL;
}

static const struct inode_operations gmem_iops = {
	.setattr = gmem_setattr,
};

struct inode *gmem_inode_create(loff_t size, u64 flags, unsigned int block_order,
				bool in_place, struct kvm *kvm)
{
	bool shared = flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	pgoff_t nr_pages = size >> PAGE_SHIFT;
	struct address_space *mapping;
	struct gmem_inode *gi;
	struct inode *inode;

	inode = anon_inode_make_secure_inode(gmem_mount->mnt_sb, GMEM_NAME, NULL);
	if (IS_ERR(inode))
		return inode;

	gi = GMEM_I(inode);
	gi->flags = flags;
	gi->block_order = block_order;
	gi->in_place = in_place;
	gi->owner = kvm_arch_gmem_owns_pages(kvm) ? kvm : NULL;
	gi->nr_private = shared ? 0 : nr_pages;
	gmem_state_init(&gi->state, nr_pages, shared ? 0 : GMEM_PRIVATE);

	inode->i_mode |= S_IFREG;
	inode->i_size = size;
	inode->i_op = &gmem_iops;

	mapping = inode->i_mapping;
	mapping->a_ops = &gmem_aops;
	/* Not movable: see gmem_migrate_folio(). */
	mapping_set_gfp_mask(mapping, GFP_HIGHUSER);
	/* The host may not read private pages, not even to clear part of one. */
	mapping_set_inaccessible(mapping);
	mapping_set_release_always(mapping);
	return inode;
}

bool gmem_inode_is_gmem(const struct inode *inode)
{
	return inode->i_sb == gmem_mount->mnt_sb;
}

struct file *gmem_inode_open(struct inode *inode,
			     const struct file_operations *fops)
{
	return alloc_file_pseudo(inode, gmem_mount, GMEM_NAME,
				 O_RDWR | O_LARGEFILE, fops);
}

static struct inode *gmem_alloc_inode(struct super_block *sb)
{
	struct gmem_inode *gi = alloc_inode_sb(sb, gmem_inode_cache, GFP_KERNEL);

	if (!gi)
		return NULL;

	gi->flags = 0;
	gi->nr_converting = 0;
	gi->nr_owned = 0;
	gi->poisoned = false;
	mt_init_flags(&gi->claims, MT_FLAGS_LOCK_EXTERN);
	mt_set_external_lock(&gi->claims, &gi->own_lock);
	mpol_shared_policy_init(&gi->policy, NULL);
	return &gi->vfs_inode;
}

static void gmem_destroy_inode(struct inode *inode)
{
	mpol_free_shared_policy(&GMEM_I(inode)->policy);
}

static void gmem_free_inode(struct inode *inode)
{
	kmem_cache_free(gmem_inode_cache, GMEM_I(inode));
}

static const struct super_operations gmem_sops = {
	.alloc_inode	= gmem_alloc_inode,
	.destroy_inode	= gmem_destroy_inode,
	.free_inode	= gmem_free_inode,
	.statfs		= simple_statfs,
};

static int gmem_init_fs_context(struct fs_context *fc)
{
	struct pseudo_fs_context *ctx = init_pseudo(fc, GUEST_MEMFD_MAGIC);

	if (!ctx)
		return -ENOMEM;

	ctx->ops = &gmem_sops;
	return 0;
}

static struct file_system_type gmem_fs_type = {
	.name			= "guest_memfd",
	.init_fs_context	= gmem_init_fs_context,
	.kill_sb		= kill_anon_super,
};

/* Set up what survives from one use of the object to the next. */
static void gmem_construct_inode(void *object)
{
	struct gmem_inode *gi = object;
	unsigned int i;

	inode_init_once(&gi->vfs_inode);
	mutex_init(&gi->bind_lock);
	mutex_init(&gi->block_lock);
	mutex_init(&gi->own_lock);
	for (i = 0; i < GMEM_NR_FILL_LOCKS; i++)
		mutex_init(&gi->fill_lock[i]);
	INIT_LIST_HEAD(&gi->files);
}

int gmem_inode_init(void)
{
	struct kmem_cache_args args = { .ctor = gmem_construct_inode };
	int ret;

	gmem_inode_cache = kmem_cache_create("kvm_gmem_inode_cache",
					     sizeof(struct gmem_inode), &args,
					     SLAB_ACCOUNT);
	if (!gmem_inode_cache)
		return -ENOMEM;

	gmem_mount = kern_mount(&gmem_fs_type);
	if (IS_ERR(gmem_mount)) {
		ret = PTR_ERR(gmem_mount);
		goto err_cache;
	}

	gmem_mount->mnt_flags |= MNT_NOEXEC;
	return 0;

err_cache:
	kmem_cache_destroy(gmem_inode_cache);
	return ret;
}

void gmem_inode_exit(void)
{
	kern_unmount(gmem_mount);
	/* Inodes are freed by RCU; the cache must outlive the last of them. */
	rcu_barrier();
	kmem_cache_destroy(gmem_inode_cache);
}
