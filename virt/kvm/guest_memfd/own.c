// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd ownership: pages that hardware records as the guest's.
 *
 * Owns: the owned bit of an inode's state, and its claims.  The only caller of
 * the architecture's hooks.
 *
 *   owned   kvm_arch_gmem_make_private() has succeeded for the page, or populate
 *           has done the same, and nobody has given the page back since.
 *   claim   The gfns that a range of indices was last bound to, as a difference.
 *           It outlives the binding: unbinding costs the guest nothing, and the
 *           page goes back under the gfn that it was taken for.
 *   run     Pages in a row, by index, gfn and pfn.  Hooks get one at a time: at
 *           most 2 MiB, and aligned if it is as much.
 *   take    Make a run the guest's; untake, undo that.
 *   move    Make an owned run the host's, or the guest's at other gfns.
 *   leak    Keep a run from being freed, for ever.
 *
 * O1  A page is owned from when it is present, private and bound, in whatever
 *     order these come true, until it is shared or freed.  If it was not taken then,
 *     because of an error, because the VM cannot own pages yet, or because a user
 *     fault on a shared page has brought the block of both, the next guest fault on
 *     it takes it.
 * O2  An absent page is not owned, nor is a shared one.
 * O3  All owned pages have claims.
 * O4  A page with a memory error is not touched: no hook gets it.  If it is owned,
 *     it is leaked when others would be made the host's.
 *
 * So a page changes hands once on the way in and once on the way out.  Guest
 * faults find the bit set; zaps, and the size of a mapping, have nothing to do
 * with it.
 *
 * A hook gives all of a run or nothing.  What has been done for other runs is
 * undone, by the reverse hook.  Where that fails too, O2 and O3 may not hold: see
 * gmem_own_lost().  To free pages cannot fail.
 *
 * The host does not write to what it does not own, so a page has its zeroes
 * before (I5).
 *
 * own_lock covers all of this among those who hold invalidate_lock shared, and is
 * for the claims in any case.
 *
 * Tests: the KVM selftest guest_memfd_own_test, on the emulated RMP.  The models that
 * convert.c names remove from here NO_OWN_*, NO_INIT_FIRST, NO_LEAK and NO_RECLAIM.
 */
#include <linux/cleanup.h>
#include <linux/maple_tree.h>
#include <linux/sched/signal.h>

#include "gmem.h"

#include <trace/events/kvm_gmem.h>

/* What hardware can record as one. */
#define GMEM_RUN_MAX	BIT(PMD_ORDER)

/* For a page that is given up, wherever the guest had it. */
#define NO_GFN		(~(gfn_t)0)

struct gmem_run {
	pgoff_t index;
	kvm_pfn_t pfn;
	unsigned int nr;
};

/* In a claim: gfn - index, a difference of numbers of less than 52 bits. */
static void *gmem_claim_entry(long delta)
{
	return xa_mk_value(delta & LONG_MAX);
}

static long gmem_claim_delta(const void *entry)
{
	return (long)entry >> 1;
}

/* Is the page at @pfn the next one of a run? */
static bool gmem_run_goes_on(const struct gmem_run *run, pgoff_t index,
			     kvm_pfn_t pfn)
{
	return index == run->index + run->nr && pfn == run->pfn + run->nr &&
	       pfn % GMEM_RUN_MAX;
}

/* Find the first run in [start, end), all of whose pages have the same state. */
static bool gmem_run_of_folios(struct inode *inode, pgoff_t start, pgoff_t end,
			       struct gmem_run *run)
{
	XA_STATE(xas, &inode->i_mapping->i_pages, start);
	struct folio *folio;

	guard(rcu)();
	run->nr = 0;
	xas_for_each(&xas, folio, end - 1) {
		if (xas_retry(&xas, folio))
			continue;

		if (folio_test_hwpoison(folio)) {
			/* gmem_poison_folio() is going to say so, but not yet. */
			WRITE_ONCE(GMEM_I(inode)->poisoned, true);
			if (run->nr)
				break;
			continue;
		}

		if (run->nr && !gmem_run_goes_on(run, xas.xa_index, folio_pfn(folio)))
			break;

		if (!run->nr++) {
			run->index = xas.xa_index;
			run->pfn = folio_pfn(folio);
		}
	}

	return run->nr;
}

/*
 * Find the first run at or behind @index of pages that have @bits of @mask in
 * @st.  invalidate_lock keeps them.
 */
static bool gmem_next_run(struct inode *inode, const struct gmem_state *st,
			  unsigned long mask, unsigned long bits, pgoff_t index,
			  pgoff_t end, struct gmem_run *run)
{
	unsigned long found;
	pgoff_t start, next;

	for (; index < end; index = next) {
		start = index;
		do {
			next = min(gmem_state_run(st, index, mask, &found), end);
			if (found != bits)
				break;
			index = next;
		} while (index < end && index - start < GMEM_RUN_MAX);

		if (index > start && gmem_run_of_folios(inode, start, index, run))
			return true;
		cond_resched();
	}

	return false;
}

static int gmem_call(struct inode *inode, enum kvm_gmem_own_op op,
		     const struct gmem_run *run, gfn_t gfn)
{
	struct kvm *kvm = GMEM_I(inode)->owner;
	int ret = 0;

	switch (op) {
	case KVM_GMEM_MAKE_PRIVATE:
		ret = kvm_arch_gmem_make_private(kvm, gfn, run->pfn, run->nr);
		break;
	case KVM_GMEM_MAKE_SHARED:
		ret = kvm_arch_gmem_make_shared(kvm, gfn, run->pfn, run->nr);
		break;
	case KVM_GMEM_RECLAIM:
		ret = kvm_arch_gmem_reclaim(kvm, run->pfn, run->nr);
		break;
	case KVM_GMEM_LEAK:
		kvm_arch_gmem_leak(kvm, run->pfn, run->nr);
		break;
	}

	trace_kvm_gmem_own(inode, op, run->index, gfn, run->pfn, run->nr, ret);
	cond_resched();
	return ret;
}

/*
 * A hook that fails, and fails to undo what it did, leaves the VM bugged.  If it was
 * bugged before, assume the worst: to reclaim too much does no harm.
 */
static bool gmem_hook_took_nothing(const struct gmem_inode *gi, int ret)
{
	return ret && !READ_ONCE(gi->owner->vm_bugged);
}

static void gmem_count_owned(struct gmem_inode *gi, long nr)
{
	WRITE_ONCE(gi->nr_owned, gi->nr_owned + nr);
}

/*
 * A page is with the guest that should not be, or at the wrong gfn.  Keep the guest
 * from using it, and others from making it shared: no user gets it.  Do not warn as
 * KVM_BUG_ON() does, for the hook may have been made to fail.
 */
static void gmem_own_lost(struct inode *inode, const struct gmem_run *run)
{
	pr_err_ratelimited("guest_memfd: VM is lost, with %u pages at pfn 0x%llx\n",
			   run->nr, run->pfn);
	kvm_vm_dead(GMEM_I(inode)->owner);
}

static void gmem_init_folio(struct folio *folio)
{
	if (folio_test_uptodate(folio))
		return;

	folio_lock(folio);
	gmem_block_init_folio(folio);
	folio_unlock(folio);
}

static void gmem_init_run(const struct gmem_run *run)
{
	unsigned int i;

	for (i = 0; i < run->nr; i++)
		gmem_init_folio(pfn_folio(run->pfn + i));
}

/* Zero pages that are going to be taken: not under own_lock, for it takes long. */
static void gmem_init_private(struct inode *inode, pgoff_t start, pgoff_t end)
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	struct folio_batch batch;
	unsigned long bits;
	pgoff_t next;
	unsigned int i;

	folio_batch_init(&batch);
	for (; start < end; start = next) {
		next = min(gmem_state_run(st, start, ~0UL, &bits), end);
		/* Owned pages have been zeroed, and blocks were when they were new. */
		if (bits != GMEM_PRIVATE)
			continue;

		while (filemap_get_folios(inode->i_mapping, &start, next - 1, &batch)) {
			for (i = 0; i < folio_batch_count(&batch); i++)
				gmem_init_folio(batch.folios[i]);
			folio_batch_release(&batch);
			cond_resched();
		}
	}
}

static int gmem_take_run(struct inode *inode, const struct gmem_run *run,
			 long delta, struct gmem_state *taken)
{
	struct gmem_state_change change, note = {};
	struct gmem_inode *gi = GMEM_I(inode);
	int ret;

	ret = gmem_state_prepare(&gi->state, &change, run->index,
				 run->index + run->nr, GMEM_OWNED, GMEM_OWNED);
	if (ret)
		return ret;

	if (taken) {
		ret = gmem_state_prepare(taken, &note, run->index,
					 run->index + run->nr, GMEM_OWNED, GMEM_OWNED);
		if (ret) {
			gmem_state_abort(&change);
			return ret;
		}
	}

	gmem_init_run(run);
	ret = gmem_call(inode, KVM_GMEM_MAKE_PRIVATE, run, run->index + delta);
	if (gmem_hook_took_nothing(gi, ret)) {
		gmem_state_abort(&note);
		gmem_state_abort(&change);
		return ret;
	}

	gmem_state_commit(&gi->state, &change);
	if (taken)
		gmem_state_commit(taken, &note);
	gmem_count_owned(gi, run->nr);
	return ret;
}

/*
 * Make those pages of a range the guest's that are private, or not private, as
 * @private says, and not owned.  Note them in @taken, for gmem_untake(), if it is
 * not NULL.  Set @start to where it fails.
 */
static int gmem_take(struct inode *inode, pgoff_t *start, pgoff_t end, long delta,
		     bool private, struct gmem_state *taken)
{
	struct gmem_run run;
	int ret;

	lockdep_assert_held(&GMEM_I(inode)->own_lock);

	while (gmem_next_run(inode, &GMEM_I(inode)->state, GMEM_PRIVATE | GMEM_OWNED,
			     private ? GMEM_PRIVATE : 0, *start, end, &run)) {
		*start = run.index;
		ret = fatal_signal_pending(current) ? -EINTR :
		      gmem_take_run(inode, &run, delta, taken);
		if (ret)
			return ret;
		*start += run.nr;
	}

	return 0;
}

/* A run is the host's now. */
static void gmem_disown_run(struct inode *inode, const struct gmem_run *run)
{
	struct gmem_inode *gi = GMEM_I(inode);

	gmem_state_set(&gi->state, run->index, run->index + run->nr, GMEM_OWNED, 0);
	gmem_count_owned(gi, -(long)run->nr);
}

/* Give the pages of a range back that are owned, and have @bits of @mask in @st. */
static void gmem_untake(struct inode *inode, const struct gmem_state *st,
			unsigned long mask, pgoff_t start, pgoff_t end, long delta)
{
	struct gmem_run run;

	while (gmem_next_run(inode, st, mask, GMEM_OWNED, start, end, &run)) {
		start = run.index + run.nr;
		if (gmem_call(inode, KVM_GMEM_MAKE_SHARED, &run, run.index + delta))
			gmem_own_lost(inode, &run);
		else
			gmem_disown_run(inode, &run);
	}
}

/*
 * Move an owned run from the gfns of @from to those of @to, or to the host if
 * that is NULL.  Its state says what it was before.
 */
static int gmem_move_run(struct inode *inode, const struct gmem_run *run,
			 long from, const long *to)
{
	int ret;

	if (fatal_signal_pending(current))
		return -EINTR;

	ret = gmem_call(inode, KVM_GMEM_MAKE_SHARED, run, run->index + from);
	if (ret || !to)
		return ret;

	ret = gmem_call(inode, KVM_GMEM_MAKE_PRIVATE, run, run->index + *to);
	if (ret && gmem_call(inode, KVM_GMEM_MAKE_PRIVATE, run, run->index + from))
		gmem_disown_run(inode, run);
	return ret;
}

static int gmem_move_run_back(struct inode *inode, const struct gmem_run *run,
			      long from, const long *to)
{
	if (to && gmem_call(inode, KVM_GMEM_MAKE_SHARED, run, run->index + *to)) {
		gmem_own_lost(inode, run);
		return 0;
	}

	/* A part of the guest's initial image comes back as something else. */
	if (!kvm_arch_gmem_can_own(GMEM_I(inode)->owner))
		gmem_own_lost(inode, run);
	/* Or else the next guest fault tries again. */
	if (gmem_call(inode, KVM_GMEM_MAKE_PRIVATE, run, run->index + from))
		gmem_disown_run(inode, run);
	return 0;
}

/* What was populated cannot be had again. */
static int gmem_keep_run(struct inode *inode, const struct gmem_run *run,
			 long from, const long *to)
{
	return -EBUSY;
}

/* Like gmem_bind_next(), for claims. */
static bool gmem_claim_next(struct inode *inode, pgoff_t *start, pgoff_t end,
			    pgoff_t *last, long *delta)
{
	MA_STATE(mas, &GMEM_I(inode)->claims, *start, *start);
	void *claim;

	lockdep_assert_held(&GMEM_I(inode)->own_lock);

	claim = *start < end ? mas_find(&mas, end - 1) : NULL;
	if (!claim)
		return false;

	*start = max(*start, mas.index);
	*delta = gmem_claim_delta(claim);

	/* Claims in a row are as good as one. */
	do {
		*last = min(mas.last + 1, end);
		claim = *last < end ? mas_next(&mas, end - 1) : NULL;
	} while (claim && mas.index == *last && gmem_claim_delta(claim) == *delta);

	return true;
}

/*
 * Call @fn for each owned run of [start, *end) that is not at the gfns of @to.
 * Set @end to where it fails.
 */
static int gmem_move(struct inode *inode, pgoff_t start, pgoff_t *end, const long *to,
		     int (*fn)(struct inode *inode, const struct gmem_run *run,
			       long from, const long *to))
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	struct gmem_run run;
	pgoff_t last;
	long from;
	int ret;

	for (; gmem_claim_next(inode, &start, *end, &last, &from); start = last) {
		if (to && *to == from)
			continue;

		while (gmem_next_run(inode, st, GMEM_OWNED, GMEM_OWNED, start, last,
				     &run)) {
			ret = fn(inode, &run, from, to);
			if (ret) {
				*end = run.index;
				return ret;
			}
			start = run.index + run.nr;
		}
	}

	return 0;
}

static pgoff_t gmem_nr_owned(struct inode *inode, pgoff_t start, pgoff_t end)
{
	const struct gmem_state *st = &GMEM_I(inode)->state;
	unsigned long bits;
	pgoff_t next, nr = 0;

	for (; start < end; start = next) {
		next = min(gmem_state_run(st, start, GMEM_OWNED, &bits), end);
		if (bits)
			nr += next - start;
		cond_resched();
	}

	return nr;
}

/* Never let go of pages that the host must not touch. */
static void gmem_leak_run(struct inode *inode, const struct gmem_run *run)
{
	unsigned int i;

	for (i = 0; i < run->nr; i++)
		folio_get(pfn_folio(run->pfn + i));
	gmem_call(inode, KVM_GMEM_LEAK, run, NO_GFN);
}

/* Whoever has poisoned pages keeps them from being freed, but not for ever. */
static void gmem_leak_poisoned(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_run run = { .nr = 1 };
	struct folio_batch batch;
	unsigned int i;

	if (!READ_ONCE(gi->poisoned))
		return;

	folio_batch_init(&batch);
	while (filemap_get_folios(inode->i_mapping, &start, end - 1, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			run.index = batch.folios[i]->index;
			run.pfn = folio_pfn(batch.folios[i]);
			if (folio_test_hwpoison(batch.folios[i]) &&
			    gmem_state_get(&gi->state, run.index, GMEM_OWNED, NULL))
				gmem_leak_run(inode, &run);
		}
		folio_batch_release(&batch);
		cond_resched();
	}
}

int gmem_own_pages(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t last;
	long delta;
	int ret;

	lockdep_assert_held(&inode->i_mapping->invalidate_lock);

	if (!gi->owner || !kvm_arch_gmem_can_own(gi->owner))
		return 0;

	gmem_init_private(inode, start, end);

	guard(mutex)(&gi->own_lock);
	for (; gmem_bind_next(inode, &start, end, &last, &delta); start = last) {
		ret = gmem_take(inode, &start, last, delta, true, NULL);
		if (ret)
			return ret;
	}
	return 0;
}

int __gmem_own_page(struct inode *inode, pgoff_t index)
{
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t start = index, nr = 1;
	int ret;

	/* The VM owns nothing but its initial image, and this is no part of it. */
	if (!kvm_arch_gmem_can_own(gi->owner))
		return -EIO;

	/* What comes as a block changes hands as one, if it can. */
	if (gmem_state_get(&gi->state, index, GMEM_BLOCK, NULL)) {
		nr = BIT(gmem_block_order(inode, index));
		start = round_down(index, nr);
	}
	ret = gmem_own_pages(inode, start, start + nr);
	if (ret && ret != -EINTR && nr > 1)
		ret = gmem_own_pages(inode, index, index + 1);
	/* If it is not owned for all that, it has got a memory error meanwhile (O4). */
	if (!ret && !gmem_state_get(&gi->state, index, GMEM_OWNED, NULL))
		ret = -EHWPOISON;
	return ret;
}

int gmem_own_to_private(struct inode *inode, pgoff_t start, pgoff_t end,
			pgoff_t *error_index)
{
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t index = start, last;
	long delta;
	int ret = 0;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (!gi->owner || !kvm_arch_gmem_can_own(gi->owner))
		return 0;

	guard(mutex)(&gi->own_lock);
	for (; gmem_bind_next(inode, &index, end, &last, &delta); index = last) {
		ret = gmem_take(inode, &index, last, delta, false, NULL);
		if (ret)
			break;
	}
	if (!ret)
		return 0;

	*error_index = index;
	/* No other page is owned and not private. */
	for (index = start; gmem_bind_next(inode, &index, end, &last, &delta); index = last)
		gmem_untake(inode, &gi->state, GMEM_PRIVATE | GMEM_OWNED, index, last,
			    delta);
	return ret;
}

int gmem_own_to_shared(struct inode *inode, pgoff_t start, pgoff_t end,
		       pgoff_t *error_index)
{
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t stop = end;
	int ret;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (!gi->owner)
		return 0;

	guard(mutex)(&gi->own_lock);
	ret = gmem_move(inode, start, &stop, NULL, gmem_move_run);
	if (ret) {
		*error_index = stop;
		gmem_move(inode, start, &stop, NULL, gmem_move_run_back);
		return ret;
	}

	gmem_leak_poisoned(inode, start, end);
	/* The bits follow when the caller commits what it has prepared for them. */
	gmem_count_owned(gi, -(long)gmem_nr_owned(inode, start, end));
	return 0;
}

static int gmem_rebind(struct inode *inode, pgoff_t start, pgoff_t end, long delta)
{
	pgoff_t index = start, stop = end;
	struct gmem_state taken;
	int ret;

	/* Only what was populated is owned yet. */
	if (!kvm_arch_gmem_can_own(GMEM_I(inode)->owner))
		return gmem_move(inode, start, &stop, &delta, gmem_keep_run);

	gmem_state_init(&taken, gmem_nr_pages(inode), 0);
	ret = gmem_move(inode, start, &stop, &delta, gmem_move_run);
	if (!ret)
		ret = gmem_take(inode, &index, end, delta, true, &taken);
	if (ret) {
		gmem_untake(inode, &taken, GMEM_OWNED, start, end, delta);
		gmem_move(inode, start, &stop, &delta, gmem_move_run_back);
	}

	gmem_state_destroy(&taken);
	return ret;
}

int gmem_own_bind(struct inode *inode, const struct kvm_memory_slot *slot)
{
	MA_STATE(mas, &GMEM_I(inode)->claims, slot->gmem.node.start, slot->gmem.node.last);
	pgoff_t start = slot->gmem.pgoff, end = start + slot->npages;
	long delta = gmem_slot_delta(slot);
	struct gmem_inode *gi = GMEM_I(inode);
	void *claim = gmem_claim_entry(delta);
	int ret;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (!gi->owner)
		return 0;

	guard(mutex)(&gi->own_lock);
	ret = mas_preallocate(&mas, claim, GFP_KERNEL_ACCOUNT);
	if (ret)
		return ret;

	ret = gmem_rebind(inode, start, end, delta);
	if (ret)
		mas_destroy(&mas);
	else
		mas_store_prealloc(&mas, claim);
	return ret;
}

void gmem_own_unbind(struct inode *inode, const struct kvm_memory_slot *slot)
{
	MA_STATE(mas, &GMEM_I(inode)->claims, slot->gmem.node.start, slot->gmem.node.last);
	pgoff_t start = slot->gmem.pgoff, end = start + slot->npages;
	struct gmem_inode *gi = GMEM_I(inode);

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (!gi->owner)
		return;

	/* To keep one for nothing does no harm, if there is no memory to drop it. */
	guard(mutex)(&gi->own_lock);
	if (!gmem_nr_owned(inode, start, end))
		mas_store_gfp(&mas, NULL, GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN);
}

int gmem_own_prepare_populate(struct inode *inode, pgoff_t index,
			      struct gmem_state_change *change)
{
	struct gmem_inode *gi = GMEM_I(inode);

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	*change = (struct gmem_state_change) {};
	if (!gi->owner || kvm_arch_gmem_can_own(gi->owner))
		return 0;

	/* Do not as much as clear a page that is the guest's already. */
	if (gmem_state_get(&gi->state, index, GMEM_OWNED, NULL))
		return -EEXIST;

	return gmem_state_prepare(&gi->state, change, index, index + 1, GMEM_OWNED,
				  GMEM_OWNED);
}

int gmem_own_end_populate(struct inode *inode, pgoff_t index,
			  struct gmem_state_change *change, int ret)
{
	struct gmem_inode *gi = GMEM_I(inode);

	if (!change->mask)
		return ret ?: gmem_own_page(inode, index);

	if (gmem_hook_took_nothing(gi, ret)) {
		gmem_state_abort(change);
		return ret;
	}

	gmem_state_commit(&gi->state, change);
	gmem_count_owned(gi, 1);
	return ret;
}

/* Leak no more than what cannot be had back. */
static void gmem_reclaim_run(struct inode *inode, const struct gmem_run *run)
{
	struct gmem_run page = { .nr = 1 };
	unsigned int i;

	if (!gmem_call(inode, KVM_GMEM_RECLAIM, run, NO_GFN))
		return;

	for (i = 0; i < run->nr; i++) {
		page.index = run->index + i;
		page.pfn = run->pfn + i;
		if (run->nr == 1 || gmem_call(inode, KVM_GMEM_RECLAIM, &page, NO_GFN))
			gmem_leak_run(inode, &page);
	}
}

void gmem_own_free(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t index = start, nr;
	struct gmem_run run;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (!gi->owner || start >= end)
		return;

	guard(mutex)(&gi->own_lock);
	while (gmem_next_run(inode, &gi->state, GMEM_OWNED, GMEM_OWNED, index, end,
			     &run)) {
		index = run.index + run.nr;
		gmem_reclaim_run(inode, &run);
	}
	gmem_leak_poisoned(inode, start, end);

	nr = gmem_nr_owned(inode, start, end);
	if (!nr)
		return;
	gmem_state_set(&gi->state, start, end, GMEM_OWNED, 0);
	gmem_count_owned(gi, -(long)nr);
}

void gmem_own_destroy(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);

	guard(mutex)(&gi->own_lock);
	__mt_destroy(&gi->claims);
}
