/* SPDX-License-Identifier: GPL-2.0 */
/*
 * As little of a virtual machine monitor as guest_memfd can be shown with: a
 * VM with one vCPU, whose guest writes or reads one word of its memory, or asks
 * for a conversion, and stops.
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

/* Where files begin in the guest's memory, if their blocks can be there. */
#define GMEM_GPA	0x100000

/*
 * Guest memory that lies together in a file.  A VMM needs the list of its slots
 * for conversion: guests speak of guest physical addresses, KVM of a file and an
 * offset in it, and where one slot ends the next may be anywhere.
 */
struct vm_part {
	__u64 gpa;
	__u64 size;
	int gmem;
	__u64 offset;		/* of @gpa, in the file */
};

#define VM_MAX_SLOTS	4

struct vm {
	int fd;
	int vcpu;
	struct kvm_run *run;
	void *low;		/* what the guest needs besides the files */
	struct vm_part slots[VM_MAX_SLOTS];
	int nr_slots;
};

/* What a guest asks for in its hypercall; nothing in it can be trusted. */
struct vm_request {
	__u64 gpa;
	__u64 size;
	bool private;
};

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* Exit status when there is nothing to show; 1 is for what went wrong. */
#define EXIT_SKIP	4

/* Say why, and exit. */
__printf(2, 3) void give_up(int status, const char *fmt, ...);

/* A VM type in which memory can be private, or -1. */
int vm_private_type(void);

/* Whether a slot takes files only that decide themselves what is private. */
bool vm_needs_in_place(void);

void vm_create(struct vm *vm, int type);
void vm_destroy(struct vm *vm);

/* The GUEST_MEMFD_FLAG_* that files of this VM can have. */
__u64 vm_gmem_flags(const struct vm *vm);

/* The sizes of blocks that files of this VM can have: the sum, in bytes, or 0. */
__u64 vm_block_sizes(const struct vm *vm);

/* Whether files of this VM can be converted in place. */
bool vm_can_convert(const struct vm *vm);

int vm_gmem_create(const struct vm *vm, size_t size, __u64 flags);

/*
 * Make a part of a file the guest's memory.  @host is the VMM's memory for the
 * same place: the guest's shared memory if @part->gmem is a file of the old
 * scheme.  Otherwise it is for accesses by KVM itself, like to a kvm-clock page,
 * and best the VMM's mapping of the file.
 */
int vm_gmem_bind(struct vm *vm, const struct vm_part *part, void *host);

/* The old scheme: from now on, the guest has the file there, not @host. */
int vm_set_private(const struct vm *vm, __u64 gpa, size_t size);

/* Where guest memory is: the first part of it.  Is there any? */
bool vm_find(const struct vm *vm, __u64 gpa, __u64 size, struct vm_part *part);

/* And the way back: the guest physical address of an offset, or -1. */
__u64 vm_find_gpa(const struct vm *vm, int gmem, __u64 offset);

/*
 * Convert a range of one file: all of it or nothing.  With -EAGAIN,
 * @error_offset is the first page that somebody in the host still holds.
 */
int gmem_convert(int gmem, __u64 offset, __u64 size, bool private, __u64 *error_offset);

/*
 * Tell whether the file is private at @offset, and reduce @size to how much
 * behind @offset is the same.  -ENOTTY with a file of the old scheme.
 */
int gmem_run(int gmem, __u64 offset, __u64 *size, bool *private);

/*
 * Convert guest memory, wherever it is.  With -EAGAIN, @busy is the page that is
 * held: release it and call again, with the same range.  What has been converted
 * by then takes no harm.  -EINVAL if a part is in no file.
 */
int vm_convert(const struct vm *vm, __u64 gpa, __u64 size, bool private,
	       struct vm_part *busy);

/*
 * One of KVM's statistics of the VM, or -1 if it has none of that name.  Those of
 * what the guest has mapped count the pages of all memslots.
 */
__s64 vm_stat(const struct vm *vm, const char *name);

/* The guest's program, which can lie anywhere, and to start the vCPU in it. */
const void *vm_program(size_t *size);
int vm_start(struct vm *vm, __u64 gpa);

/* Run the guest for one word.  0, -errno of KVM_RUN, or KVM_EXIT_* > 0. */
int vm_guest_write(struct vm *vm, __u64 gpa, __u32 word);
int vm_guest_read(struct vm *vm, __u64 gpa, __u32 *word);

/*
 * Have the guest ask for something, which comes back as @heard, out of the
 * guest's hypercall; and answer, which it hands back in @word.
 */
int vm_guest_ask(struct vm *vm, const struct vm_request *ask, struct vm_request *heard);
int vm_guest_answer(struct vm *vm, int answer, __u32 *word);

#endif /* GMEM_VM_H */
