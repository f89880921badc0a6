// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd in debugfs, for tests: CONFIG_KVM_GUEST_MEMFD_DEBUG.
 *
 * kvm/PID-FD/gmem-populate takes "GFN SOURCE NPAGES" and does what the launch of
 * a confidential guest does, with a copy for encryption, in a software-protected
 * VM.  A SOURCE of 0 leaves the pages what they have.  write() fails as
 * kvm_gmem_populate() does, and with -EIO if that did a part only.
 */
#include <linux/debugfs.h>
#include <linux/highmem.h>
#include <linux/uaccess.h>

#include "gmem.h"
#include "../guest_memfd.h"

static int gmem_debug_post_populate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
				    struct page *src, void *opaque)
{
	if (src)
		copy_highpage(pfn_to_page(pfn), src);
	return 0;
}

static ssize_t gmem_debug_populate(struct file *file, const char __user *ubuf,
				   size_t count, loff_t *pos)
{
	struct kvm *kvm = file->private_data;
	unsigned long gfn, source;
	long npages, done;
	char buf[80];

	/* Hardware does not let the host write to what it protects. */
	if (kvm->arch.vm_type != KVM_X86_SW_PROTECTED_VM)
		return -EINVAL;

	if (count >= sizeof(buf))
		return -EINVAL;
	if (copy_from_user(buf, ubuf, count))
		return -EFAULT;
	buf[count] = '\0';

	if (sscanf(buf, "%li %li %li", &gfn, &source, &npages) != 3 || npages <= 0 ||
	    !PAGE_ALIGNED(source))
		return -EINVAL;

	guard(mutex)(&kvm->slots_lock);
	done = kvm_gmem_populate(kvm, gfn, (void __user *)source, npages, false,
				 gmem_debug_post_populate, NULL);
	if (done < 0)
		return done;

	return done == npages ? count : -EIO;
}

static int gmem_debug_open(struct inode *inode, struct file *file)
{
	struct kvm *kvm = inode->i_private;

	if (!kvm_get_kvm_safe(kvm))
		return -ENOENT;

	file->private_data = kvm;
	return 0;
}

static int gmem_debug_release(struct inode *inode, struct file *file)
{
	kvm_put_kvm(file->private_data);
	return 0;
}

static const struct file_operations gmem_debug_populate_fops = {
	.owner		= THIS_MODULE,
	.open		= gmem_debug_open,
	.write		= gmem_debug_populate,
	.release	= gmem_debug_release,
};

void kvm_gmem_create_debugfs(struct kvm *kvm)
{
	debugfs_create_file("gmem-populate", 0200, kvm->debugfs_dentry, kvm,
			    &gmem_debug_populate_fops);
}
