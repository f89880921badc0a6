/* SPDX-License-Identifier: GPL-2.0 */
/*
 * As little of a virtual machine monitor as guest_memfd can be shown with: a
 * VM with one vCPU, whose guest writes or reads one word of its memory and
 * stops.
 *
 * What may be refused returns 0 or a descriptor, or -errno.  What has to work
 * ends the program if it does not.
 */
#ifndef GMEM_VM_H
#define GMEM_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/compiler.h>
#include <linux/kvm.h>
#include <linux/types.h>

/* Where the file is in the guest's memory. */
#define GMEM_GPA	0x100000

struct vm {
	int fd;
	int vcpu;
	struct kvm_run *run;
	void *low;		/* what the guest needs besides the file */
};

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* Exit status when there is nothing to show; 1 is for what went wrong. */
#define EXIT_SKIP	4

/* Say why, and exit. */
__printf(2, 3) void give_up(int status, const char *fmt, ...);

/* A VM type in which memory can be private, or -1. */
int vm_private_type(void);

/* Whether a slot takes files only that can be mapped. */
bool vm_needs_mappable(void);

void vm_create(struct vm *vm, int type);
void vm_destroy(struct vm *vm);

/* The GUEST_MEMFD_FLAG_* that files of this VM can have. */
__u64 vm_gmem_flags(const struct vm *vm);

int vm_gmem_create(const struct vm *vm, size_t size, __u64 flags);

/*
 * Make the first @size bytes of the file the guest's memory at GMEM_GPA.
 * @host is the VMM's memory at the same place, if the slot has both.
 */
int vm_gmem_bind(const struct vm *vm, int gmem, size_t size, void *host);

/* From now on, the guest has the file there and not the VMM's memory. */
int vm_set_private(const struct vm *vm, __u64 gpa, size_t size);

/* Run the guest for one word.  0, -errno of KVM_RUN, or KVM_EXIT_* > 0. */
int vm_guest_write(struct vm *vm, __u64 gpa, __u32 word);
int vm_guest_read(struct vm *vm, __u64 gpa, __u32 *word);

#endif /* GMEM_VM_H */
