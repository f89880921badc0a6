/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guest_memfd state: what is recorded of every page of an inode, present or
 * not.  state.c says how.
 */
#ifndef __KVM_GMEM_STATE_H
#define __KVM_GMEM_STATE_H

#include <linux/bits.h>
#include <linux/compiler.h>
#include <linux/types.h>

/* The page is for the guest alone: the host neither maps nor touches it. */
#define GMEM_PRIVATE		BIT(0)
/* The architecture's hook has made the page the guest's. */
#define GMEM_OWNED		BIT(1)
/* The page is memory of the block that was allocated for its place, see block.c. */
#define GMEM_BLOCK		BIT(2)

#define GMEM_STATE_NR_BITS	3

/**
 * struct gmem_state - GMEM_* of every index of an inode
 * @nr_pages: the size of the inode, constant
 * @order: of the span that a root stands for; not less than @nr_pages, constant
 * @root: a word for each GMEM_* bit; written by a writer, read under RCU
 */
struct gmem_state {
	pgoff_t nr_pages;
	unsigned int order;
	void __rcu *root[GMEM_STATE_NR_BITS];
};

/**
 * struct gmem_state_change - one write to a range, from prepare to commit
 * @start: first index
 * @end: first index behind the range
 * @mask: the GMEM_* bits to write
 * @bits: what to write to them
 * @gfp: how to allocate, besides GFP_KERNEL_ACCOUNT
 * @leaves: nodes in reserve, each linked to the next by its first word
 * @tables: the same for the other kind of node
 */
struct gmem_state_change {
	pgoff_t start, end;
	unsigned long mask, bits;
	gfp_t gfp;
	void *leaves;
	void *tables;
};

/**
 * gmem_state_init() - Give all pages the same state
 * @st: the table; nobody can see it yet
 * @nr_pages: positive, and in bytes no more than a loff_t can hold
 * @bits: GMEM_* of all pages
 *
 * Allocates nothing, whatever the size.
 */
void gmem_state_init(struct gmem_state *st, pgoff_t nr_pages,
		     unsigned long bits);

/**
 * gmem_state_destroy() - Free all that the table has allocated
 * @st: the table; readers may still look, and find all bits clear
 *
 * Context: no writer is left.  May sleep.
 */
void gmem_state_destroy(struct gmem_state *st);

/**
 * gmem_state_get() - Look a page up
 * @st: the table
 * @index: the page, below nr_pages
 * @mask: the GMEM_* bits to look at
 * @order: where to store the order at which those bits are uniform around
 *         @index, or NULL
 *
 * The order is 0, PMD_ORDER, PUD_ORDER, or one of a level above.  Pages behind
 * the last one count as equal to it: clamp the order to what is there.
 *
 * Context: any; takes the RCU read lock.  Without the writers' lock the answer
 *          may be outdated, and each bit was read at a moment of its own.
 * Return: the bits of @mask that are set.
 */
unsigned long gmem_state_get(const struct gmem_state *st, pgoff_t index,
			     unsigned long mask, unsigned int *order);

/**
 * gmem_state_run() - Find pages in a row that are alike
 * @st: the table
 * @index: the first of them, below nr_pages
 * @mask: the GMEM_* bits to compare
 * @bits: where to store those bits of the pages
 *
 * Takes bounded time.  For that it can stop too early, at a multiple of the
 * order that gmem_state_get() gives, or in a mixed block of PMD_ORDER: compare
 * with the bits of the run that follows.
 *
 * Context: any, like gmem_state_get().
 * Return: the first index behind the run; greater than @index, and at most
 *         nr_pages.
 */
pgoff_t gmem_state_run(const struct gmem_state *st, pgoff_t index,
		       unsigned long mask, unsigned long *bits);

/**
 * gmem_state_prepare() - Reserve what a change needs
 * @st: the table, which stays as it is
 * @c: the change, to be handed to gmem_state_commit() or gmem_state_abort()
 * @start: first index
 * @end: first index behind the range, at most nr_pages, greater than @start
 * @mask: the GMEM_* bits to write
 * @bits: what to write to them
 *
 * A prepared change expires when somebody else writes bits of its @mask.  Other
 * bits may be written before it is committed.
 *
 * Context: caller excludes other writers until it has committed or aborted.
 *          May sleep.
 * Return: 0 or -ENOMEM; then there is nothing to abort.
 */
int gmem_state_prepare(const struct gmem_state *st, struct gmem_state_change *c,
		       pgoff_t start, pgoff_t end,
		       unsigned long mask, unsigned long bits);

/**
 * gmem_state_commit() - Make a prepared change; cannot fail
 * @st: the table
 * @c: the change, which is used up
 *
 * A reader finds each page as it was or as it will be, and the pages change in
 * no particular order.
 *
 * Context: the same critical section as gmem_state_prepare().  May sleep, and
 *          if memory is short that can be for an RCU grace period.
 */
void gmem_state_commit(struct gmem_state *st, struct gmem_state_change *c);

/**
 * gmem_state_set() - Change a range at once; cannot fail
 * @st: the table
 * @start: first index
 * @end: first index behind the range, at most nr_pages, greater than @start
 * @mask: the GMEM_* bits to write
 * @bits: what to write to them
 *
 * For error paths, and where memory is given up.  Everywhere else prepare first:
 * what this allocates, a node per level at each end of the range, it waits for,
 * however short memory is.
 *
 * Context: caller excludes other writers.  May sleep, for long.
 */
void gmem_state_set(struct gmem_state *st, pgoff_t start, pgoff_t end,
		    unsigned long mask, unsigned long bits);

/**
 * gmem_state_abort() - Give a prepared change up
 * @c: the change; may be committed or aborted already
 */
void gmem_state_abort(struct gmem_state_change *c);

/**
 * gmem_state_check() - Check the invariants; for tests
 * @st: the table
 *
 * Context: caller excludes writers.  May sleep.
 * Return: the number of nodes, or -EINVAL.
 */
long gmem_state_check(const struct gmem_state *st);

#endif /* __KVM_GMEM_STATE_H */
