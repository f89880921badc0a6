/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_EMULATED_RMP_H
#define __KVM_X86_EMULATED_RMP_H

#include <linux/kvm_host.h>

struct dentry;

#ifdef CONFIG_KVM_EMULATED_RMP
static inline bool kvm_has_emulated_rmp(struct kvm *kvm)
{
	return kvm->arch.rmp_id;
}

/**
 * emulated_rmp_init_vm() - Give a VM the id that entries know it by
 * @kvm: any VM; only those of a software-protected VM get one, and so an RMP
 *
 * Context: may sleep.
 * Return: 0, -ENOMEM, or -EBUSY if there are a million VMs.
 */
int emulated_rmp_init_vm(struct kvm *kvm);

/**
 * emulated_rmp_destroy_vm() - Take the id back; nothing may be owned anymore
 * @kvm: as for emulated_rmp_init_vm(), which has succeeded
 *
 * Context: may sleep.
 */
void emulated_rmp_destroy_vm(struct kvm *kvm);

/**
 * emulated_rmp_check_map() - See that a guest page table entry is all right
 * @kvm: any VM
 * @gfn: the first gfn that it maps
 * @pfn: the first page
 * @level: its level
 * @is_private: what the guest takes the pages for
 *
 * Context: any.
 */
void emulated_rmp_check_map(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int level,
			    bool is_private);

/**
 * emulated_rmp_check_host() - See that pages are the host's
 * @pfn: the first page
 * @nr_pages: how many
 * @freed: they go back to the allocator, as leaked pages may seem to, for their
 *	   last reference stays; or else, a user maps them
 *
 * Context: any.
 */
void emulated_rmp_check_host(kvm_pfn_t pfn, kvm_pfn_t nr_pages, bool freed);

/* @parent goes away with what is in it, and may come again. */
void emulated_rmp_create_debugfs(struct dentry *parent);

/* When KVM is unloaded. */
void emulated_rmp_exit(void);

#else /* !CONFIG_KVM_EMULATED_RMP */
static inline bool kvm_has_emulated_rmp(struct kvm *kvm)
{
	return false;
}

static inline int emulated_rmp_init_vm(struct kvm *kvm)
{
	return 0;
}

static inline void emulated_rmp_destroy_vm(struct kvm *kvm)
{
}

static inline void emulated_rmp_check_map(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
					  int level, bool is_private)
{
}

static inline void emulated_rmp_check_host(kvm_pfn_t pfn, kvm_pfn_t nr_pages,
					   bool freed)
{
}

static inline void emulated_rmp_create_debugfs(struct dentry *parent)
{
}

static inline void emulated_rmp_exit(void)
{
}
#endif /* CONFIG_KVM_EMULATED_RMP */

/* For VMs with an emulated RMP only. */

/**
 * emulated_rmp_make_private() - Assign pages to a guest, all or none
 * @kvm: the VM
 * @gfn: where the guest has the first one
 * @pfn: the first one, not mapped by any user
 * @nr_pages: how many, all of them in one aligned 2 MiB of pfns
 *
 * Pages of an aligned 2 MiB that the guest has in order, at gfns that are aligned
 * alike, become one entry, all at once or with the last of them.
 *
 * Nobody may refer to the pages but the file; so the caller has no reference.
 *
 * Context: may sleep, for a second where somebody does refer to a page.
 * Return: 0, -ENOMEM, or -EINVAL for a violation.
 */
int emulated_rmp_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			      kvm_pfn_t nr_pages);

/**
 * emulated_rmp_make_shared() - The reverse, all or none
 * @kvm: the owner
 * @gfn: where the guest has the first page
 * @pfn: the first page
 * @nr_pages: how many; a part of a 2 MiB entry splits it
 *
 * Context: may sleep.
 * Return: 0, -ENOMEM (injected), or -EINVAL for a violation.
 */
int emulated_rmp_make_shared(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			     kvm_pfn_t nr_pages);

/**
 * emulated_rmp_reclaim() - The same for memory that goes, at whichever gfn
 * @kvm: the owner
 * @pfn: the first page
 * @nr_pages: how many; a part of a 2 MiB entry splits it
 *
 * Context: may sleep.
 * Return: as emulated_rmp_make_shared().
 */
int emulated_rmp_reclaim(struct kvm *kvm, kvm_pfn_t pfn, kvm_pfn_t nr_pages);

/**
 * emulated_rmp_leak() - Note that pages are never going to be freed
 * @kvm: the owner
 * @pfn: the first page
 * @nr_pages: how many; pages that nobody owns are left alone
 *
 * Context: may sleep.
 */
void emulated_rmp_leak(struct kvm *kvm, kvm_pfn_t pfn, kvm_pfn_t nr_pages);

/**
 * emulated_rmp_max_level() - Look up how large a page the guest may map
 * @kvm: any VM
 * @pfn: the page
 * @is_private: what the guest takes it for
 *
 * Context: any.
 * Return: PG_LEVEL_4K or PG_LEVEL_2M, than which no entry is larger, or 0 if all
 *         levels are fine.
 */
int emulated_rmp_max_level(struct kvm *kvm, kvm_pfn_t pfn, bool is_private);

#endif /* __KVM_X86_EMULATED_RMP_H */
