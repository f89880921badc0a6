// SPDX-License-Identifier: GPL-2.0-only
/*
 * Emulated RMP: whose each page is, for software-protected VMs.
 *
 * Owns: a table of what confidential hardware would know (the Reverse Map Table
 * of SEV-SNP), behind the same hooks.  Hardware stops who gets it wrong, sooner
 * or later; here, who gets it wrong is refused, or at least counted, at once.
 *
 *   entry      A page is a guest's: VM, gfn, and whether it is one of the 512 of
 *              a 2 MiB entry.  Entries know a VM by an id, as one that is gone
 *              leaves no pointer behind.
 *   psmash     To split a 2 MiB entry.
 *   merge      To make a 2 MiB entry again of what lacks nothing anymore.  The
 *              RMP of SEV-SNP can't; a record kept in page tables, like pKVM's, can.
 *   leaked     Said of an entry that stays for ever.
 *   violation  What hardware would not have let pass.
 *
 * E1  All pages of an aligned 2 MiB are 2 MiB entries, or none is.  They are in
 *     order, of one VM, and the gfns are aligned alike.  Pages of which that is
 *     true are 2 MiB entries, whoever came last.
 * E2  Who fails has changed nothing.  All that can fail comes first: injected
 *     failure, checks, memory for the entries.  A change of an entry, like a merge,
 *     and its removal need none.
 * E3  A leaked entry is not a 2 MiB one, and nobody can have its page.
 *
 * Locks: rmp->lock is for writers.  It is taken under invalidate_lock, and the
 * only lock under it is the xarray's own.  Lookups take none, for faults do them
 * under mmu_lock.  Counters are atomic.
 *
 * It cannot see stale TLBs.  Mappings are looked at when they are made, and when
 * somebody reads "verify".  That is for when no VM does anything: else it finds
 * what is about to go away, and makes the hooks wait.
 *
 * Tests: tests/emulated_rmp_kunit.c, part of this unit.
 */
#include <linux/atomic.h>
#include <linux/bitfield.h>
#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fault-inject.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/xarray.h>

#include "emulated_rmp.h"
#include "mmu/tdp_mmu.h"

#define ENTRY_GFN	GENMASK(39, 0)
#define ENTRY_VM	GENMASK(59, 40)
#define ENTRY_2M	BIT(60)
#define ENTRY_LEAKED	BIT(61)

#define BLOCK		KVM_PAGES_PER_HPAGE(PG_LEVEL_2M)
#define ANY_GFN		(~(gfn_t)0)

/* How often to look, once a millisecond, for somebody's reference to a page. */
#define RMP_LOOKS	1000

enum rmp_counter {
	OWNED, OWNED_2M, LEAKED,
	/* Each is followed by the number of pages. */
	MAKE_PRIVATE, MAKE_PRIVATE_PAGES,
	MAKE_SHARED, MAKE_SHARED_PAGES,
	RECLAIM, RECLAIM_PAGES,
	PSMASH, MERGED, LOOKUPS, INJECTED,
	V_OWNED, V_NOT_OWNED, V_WRONG_OWNER, V_WRONG_GFN, V_LEVEL, V_MAPPED,
	V_GUEST_MAP, V_USER_MAP, V_FREED, V_LEFT,
	NR_COUNTERS,
};

static const char * const rmp_counter_names[NR_COUNTERS] = {
	"owned", "owned-2m", "leaked",
	"make-private", "make-private-pages",
	"make-shared", "make-shared-pages",
	"reclaim", "reclaim-pages",
	"psmash", "merged", "lookups", "injected",
	"v-owned", "v-not-owned", "v-wrong-owner", "v-wrong-gfn", "v-level", "v-mapped",
	"v-guest-map", "v-user-map", "v-freed", "v-left",
};

/**
 * struct emulated_rmp - a table
 * @entries: ENTRY_* by pfn
 * @vms: the ids in use.  One comes again after all the others only, so that an
 *       entry that is left over does not get a new owner.
 * @next_vm: where to look for the next id; under the lock of @vms
 * @counters: by enum rmp_counter
 * @warned: by enum rmp_counter
 * @quiet: count violations, and do not warn
 */
struct emulated_rmp {
	struct xarray entries;
	struct xarray vms;
	u32 next_vm;
	/** @lock: for writing to @entries, and counting them */
	struct mutex lock;
	atomic_long_t counters[NR_COUNTERS];
	unsigned long warned;
	bool quiet;
};

static struct emulated_rmp host_rmp = {
	.entries = XARRAY_INIT(host_rmp.entries, 0),
	.vms = XARRAY_INIT(host_rmp.vms, XA_FLAGS_ALLOC),
	.lock = __MUTEX_INITIALIZER(host_rmp.lock),
};

/* For VMs to come.  Without it, a VM costs nothing that others do not cost. */
static bool __read_mostly emulated_rmp = true;
module_param(emulated_rmp, bool, 0444);

static DECLARE_FAULT_ATTR(fail_make_private);
static DECLARE_FAULT_ATTR(fail_make_shared);
static DECLARE_FAULT_ATTR(fail_reclaim);

static void rmp_count(struct emulated_rmp *rmp, enum rmp_counter counter, long nr)
{
	atomic_long_add(nr, &rmp->counters[counter]);
}

/* 0 if the page is the host's: no VM has the id 0. */
static unsigned long rmp_get(struct emulated_rmp *rmp, kvm_pfn_t pfn)
{
	void *entry = xa_load(&rmp->entries, pfn);

	return entry ? xa_to_value(entry) : 0;
}

/* There is an entry, or room for one: this cannot fail. */
static void rmp_set(struct emulated_rmp *rmp, kvm_pfn_t pfn, unsigned long entry)
{
	lockdep_assert_held(&rmp->lock);
	WARN_ON_ONCE(xa_err(xa_store(&rmp->entries, pfn, xa_mk_value(entry), 0)));
}

static int rmp_violation(struct emulated_rmp *rmp, enum rmp_counter kind,
			 u32 vm, gfn_t gfn, kvm_pfn_t pfn)
{
	unsigned long entry = rmp_get(rmp, pfn);

	rmp_count(rmp, kind, 1);
	if (!rmp->quiet && !test_and_set_bit(kind, &rmp->warned))
		WARN(1, "emulated RMP: %s: VM %u gfn %#llx pfn %#llx; entry: VM %lu gfn %#lx%s%s\n",
		     rmp_counter_names[kind], vm, gfn, pfn,
		     FIELD_GET(ENTRY_VM, entry), FIELD_GET(ENTRY_GFN, entry),
		     entry & ENTRY_2M ? " 2M" : "", entry & ENTRY_LEAKED ? " leaked" : "");
	return -EINVAL;
}

/* All pages of an aligned 2 MiB have entries: this cannot fail. */
static void rmp_flip_2m(struct emulated_rmp *rmp, kvm_pfn_t first)
{
	XA_STATE(xas, &rmp->entries, first);
	void *entry;

	lockdep_assert_held(&rmp->lock);

	xas_lock(&xas);
	xas_for_each(&xas, entry, first + BLOCK - 1)
		xas_store(&xas, xa_mk_value(xa_to_value(entry) ^ ENTRY_2M));
	xas_unlock(&xas);
}

static void rmp_psmash(struct emulated_rmp *rmp, kvm_pfn_t pfn)
{
	if (!(rmp_get(rmp, pfn) & ENTRY_2M))
		return;

	rmp_flip_2m(rmp, round_down(pfn, BLOCK));
	rmp_count(rmp, OWNED_2M, -1);
	rmp_count(rmp, PSMASH, 1);
}

/* @pfn has been assigned: if that was all that was missing, keep to E1. */
static void rmp_merge(struct emulated_rmp *rmp, kvm_pfn_t pfn)
{
	kvm_pfn_t first = round_down(pfn, BLOCK), i;
	unsigned long entry = rmp_get(rmp, first);

	/*
	 * What is absent, leaked or another VM's is not the next value.  Mostly,
	 * one of the ends isn't.
	 */
	if (!IS_ALIGNED(FIELD_GET(ENTRY_GFN, entry), BLOCK) ||
	    rmp_get(rmp, first + BLOCK - 1) != entry + BLOCK - 1)
		return;

	for (i = 1; i < BLOCK - 1; i++) {
		if (rmp_get(rmp, first + i) != entry + i)
			return;
	}

	rmp_flip_2m(rmp, first);
	rmp_count(rmp, OWNED_2M, 1);
	rmp_count(rmp, MERGED, 1);
}

/* Have no 2 MiB entry at either end that is not in the range as a whole. */
static void rmp_split(struct emulated_rmp *rmp, kvm_pfn_t start, kvm_pfn_t end)
{
	if (!IS_ALIGNED(start, BLOCK))
		rmp_psmash(rmp, start);
	if (!IS_ALIGNED(end, BLOCK))
		rmp_psmash(rmp, end);
}

static int rmp_make_private(struct emulated_rmp *rmp, u32 vm, gfn_t gfn,
			    kvm_pfn_t pfn, kvm_pfn_t nr)
{
	bool huge = nr == BLOCK && IS_ALIGNED(gfn | pfn, BLOCK);
	unsigned long entry;
	kvm_pfn_t i;

	guard(mutex)(&rmp->lock);

	for (i = 0; i < nr; i++) {
		if (rmp_get(rmp, pfn + i))
			return rmp_violation(rmp, V_OWNED, vm, gfn + i, pfn + i);
	}

	for (i = 0; i < nr; i++) {
		if (!xa_reserve(&rmp->entries, pfn + i, GFP_KERNEL))
			continue;
		while (i--)
			xa_release(&rmp->entries, pfn + i);
		return -ENOMEM;
	}

	entry = FIELD_PREP(ENTRY_VM, vm) | (huge ? ENTRY_2M : 0);
	for (i = 0; i < nr; i++)
		rmp_set(rmp, pfn + i, entry | FIELD_PREP(ENTRY_GFN, gfn + i));

	rmp_count(rmp, OWNED, nr);
	rmp_count(rmp, OWNED_2M, huge);
	rmp_count(rmp, MAKE_PRIVATE, 1);
	rmp_count(rmp, MAKE_PRIVATE_PAGES, nr);
	if (!huge)
		rmp_merge(rmp, pfn);
	return 0;
}

/* @counter says which operation it is. */
static int rmp_give_back(struct emulated_rmp *rmp, enum rmp_counter counter, u32 vm,
			 gfn_t gfn, kvm_pfn_t pfn, kvm_pfn_t nr)
{
	enum rmp_counter kind;
	unsigned long entry;
	kvm_pfn_t i;

	guard(mutex)(&rmp->lock);

	for (i = 0; i < nr; i++) {
		entry = rmp_get(rmp, pfn + i);

		if (!entry || entry & ENTRY_LEAKED)
			kind = V_NOT_OWNED;
		else if (FIELD_GET(ENTRY_VM, entry) != vm)
			kind = V_WRONG_OWNER;
		else if (gfn != ANY_GFN && FIELD_GET(ENTRY_GFN, entry) != gfn + i)
			kind = V_WRONG_GFN;
		else
			continue;
		return rmp_violation(rmp, kind, vm, gfn == ANY_GFN ? gfn : gfn + i, pfn + i);
	}

	rmp_split(rmp, pfn, pfn + nr);
	for (i = pfn; i < pfn + nr; i++) {
		if (IS_ALIGNED(i, BLOCK) && rmp_get(rmp, i) & ENTRY_2M)
			rmp_count(rmp, OWNED_2M, -1);
		xa_erase(&rmp->entries, i);
	}

	rmp_count(rmp, OWNED, -(long)nr);
	rmp_count(rmp, counter, 1);
	rmp_count(rmp, counter + 1, nr);
	return 0;
}

static void rmp_leak(struct emulated_rmp *rmp, kvm_pfn_t pfn, kvm_pfn_t nr)
{
	unsigned long entry;
	kvm_pfn_t i;

	guard(mutex)(&rmp->lock);

	rmp_split(rmp, pfn, pfn + nr);
	for (i = pfn; i < pfn + nr; i++) {
		entry = rmp_get(rmp, i);
		if (!entry || entry & ENTRY_LEAKED)
			continue;

		if (IS_ALIGNED(i, BLOCK) && entry & ENTRY_2M)
			rmp_count(rmp, OWNED_2M, -1);
		rmp_set(rmp, i, (entry & ~ENTRY_2M) | ENTRY_LEAKED);
		rmp_count(rmp, OWNED, -1);
		rmp_count(rmp, LEAKED, 1);
	}
}

/* How large a page may map what is around the entry's (E1). */
static int rmp_level(unsigned long entry)
{
	return entry & ENTRY_2M ? PG_LEVEL_2M : PG_LEVEL_4K;
}

static int rmp_check_map(struct emulated_rmp *rmp, u32 vm, gfn_t gfn, kvm_pfn_t pfn,
			 int level, bool is_private)
{
	unsigned long entry, index = pfn;

	if (!is_private) {
		if (xa_find(&rmp->entries, &index,
			    pfn + KVM_PAGES_PER_HPAGE(level) - 1, XA_PRESENT))
			return rmp_violation(rmp, V_GUEST_MAP, vm, gfn, index);
		return 0;
	}

	entry = rmp_get(rmp, pfn);
	if (FIELD_GET(ENTRY_VM, entry) != vm || FIELD_GET(ENTRY_GFN, entry) != gfn ||
	    entry & ENTRY_LEAKED)
		return rmp_violation(rmp, V_GUEST_MAP, vm, gfn, pfn);
	if (level > rmp_level(entry))
		return rmp_violation(rmp, V_LEVEL, vm, gfn, pfn);
	return 0;
}

static void rmp_check_host(struct emulated_rmp *rmp, kvm_pfn_t pfn, kvm_pfn_t nr,
			   bool freed)
{
	unsigned long index;
	void *entry;

	xa_for_each_range(&rmp->entries, index, entry, pfn, pfn + nr - 1) {
		if (!freed)
			rmp_violation(rmp, V_USER_MAP, 0, 0, index);
		else if (!(xa_to_value(entry) & ENTRY_LEAKED))
			rmp_violation(rmp, V_FREED, 0, 0, index);
	}
}

static int rmp_init_vm(struct emulated_rmp *rmp, u32 *vm)
{
	int ret = xa_alloc_cyclic(&rmp->vms, vm, xa_mk_value(0),
				  XA_LIMIT(1, FIELD_MAX(ENTRY_VM)), &rmp->next_vm,
				  GFP_KERNEL);

	return min(ret, 0);
}

static void rmp_destroy_vm(struct emulated_rmp *rmp, u32 vm)
{
	unsigned long pfn;
	void *entry;

	xa_for_each(&rmp->entries, pfn, entry) {
		if (FIELD_GET(ENTRY_VM, xa_to_value(entry)) == vm &&
		    !(xa_to_value(entry) & ENTRY_LEAKED))
			rmp_violation(rmp, V_LEFT, vm, 0, pfn);
		cond_resched();
	}
	xa_erase(&rmp->vms, vm);
}

/*
 * Is it mapped by a user, or does somebody but its file refer to it?  An entry
 * keeps the page from being freed, or else the caller does.
 */
static bool rmp_page_in_use(kvm_pfn_t pfn)
{
	struct folio *folio = pfn_folio(pfn);

	/* memory_failure() keeps a reference. */
	if (PageHWPoison(pfn_to_page(pfn)))
		return false;

	return folio_mapped(folio) || folio_ref_count(folio) != folio_nr_pages(folio);
}

/* References from those who look at pages by pfn come and go. */
static int rmp_wait_unused(struct emulated_rmp *rmp, u32 vm, gfn_t gfn, kvm_pfn_t pfn,
			   kvm_pfn_t nr)
{
	unsigned int looks = 0;
	kvm_pfn_t i;

	for (i = 0; i < nr; i++) {
		while (rmp_page_in_use(pfn + i)) {
			if (++looks > RMP_LOOKS)
				return rmp_violation(rmp, V_MAPPED, vm, gfn + i, pfn + i);
			usleep_range(1000, 1100);
		}
	}
	return 0;
}

static bool rmp_inject(struct emulated_rmp *rmp, struct fault_attr *attr)
{
	if (!should_fail(attr, 1))
		return false;

	rmp_count(rmp, INJECTED, 1);
	return true;
}

int emulated_rmp_init_vm(struct kvm *kvm)
{
	if (!emulated_rmp || kvm->arch.vm_type != KVM_X86_SW_PROTECTED_VM)
		return 0;

	return rmp_init_vm(&host_rmp, &kvm->arch.rmp_id);
}

void emulated_rmp_destroy_vm(struct kvm *kvm)
{
	if (kvm_has_emulated_rmp(kvm))
		rmp_destroy_vm(&host_rmp, kvm->arch.rmp_id);
}

int emulated_rmp_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			      kvm_pfn_t nr_pages)
{
	u32 vm = kvm->arch.rmp_id;

	might_sleep();

	if (WARN_ON_ONCE(pfn % BLOCK + nr_pages > BLOCK))
		return -EINVAL;

	if (rmp_inject(&host_rmp, &fail_make_private))
		return -EIO;

	return rmp_wait_unused(&host_rmp, vm, gfn, pfn, nr_pages) ?:
	       rmp_make_private(&host_rmp, vm, gfn, pfn, nr_pages);
}

int emulated_rmp_make_shared(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			     kvm_pfn_t nr_pages)
{
	if (rmp_inject(&host_rmp, &fail_make_shared))
		return -EIO;

	return rmp_give_back(&host_rmp, MAKE_SHARED, kvm->arch.rmp_id, gfn, pfn, nr_pages);
}

int emulated_rmp_reclaim(struct kvm *kvm, kvm_pfn_t pfn, kvm_pfn_t nr_pages)
{
	if (rmp_inject(&host_rmp, &fail_reclaim))
		return -EIO;

	return rmp_give_back(&host_rmp, RECLAIM, kvm->arch.rmp_id, ANY_GFN, pfn, nr_pages);
}

void emulated_rmp_leak(struct kvm *kvm, kvm_pfn_t pfn, kvm_pfn_t nr_pages)
{
	rmp_leak(&host_rmp, pfn, nr_pages);
}

int emulated_rmp_max_level(struct kvm *kvm, kvm_pfn_t pfn, bool is_private)
{
	if (!is_private || !kvm_has_emulated_rmp(kvm))
		return 0;

	rmp_count(&host_rmp, LOOKUPS, 1);
	return rmp_level(rmp_get(&host_rmp, pfn));
}

void emulated_rmp_check_map(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int level,
			    bool is_private)
{
	if (!emulated_rmp)
		return;

	/* What is private to a VM with hardware of its own is for that to say. */
	if (!is_private || kvm_has_emulated_rmp(kvm))
		rmp_check_map(&host_rmp, kvm->arch.rmp_id, gfn, pfn, level, is_private);
}

void emulated_rmp_check_host(kvm_pfn_t pfn, kvm_pfn_t nr_pages, bool freed)
{
	if (emulated_rmp)
		rmp_check_host(&host_rmp, pfn, nr_pages, freed);
}

static int stats_show(struct seq_file *m, void *unused)
{
	struct emulated_rmp *rmp = m->private;
	long violations = 0;
	int i;

	for (i = 0; i < NR_COUNTERS; i++) {
		seq_printf(m, "%s:\t%ld\n", rmp_counter_names[i],
			   atomic_long_read(&rmp->counters[i]));
		if (i >= V_OWNED)
			violations += atomic_long_read(&rmp->counters[i]);
	}
	seq_printf(m, "violations:\t%ld\n", violations);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static void dump_run(struct seq_file *m, unsigned long pfn, unsigned long entry,
		     unsigned long nr)
{
	if (nr)
		seq_printf(m, "pfn %#lx nr %lu vm %lu gfn %#lx level %s%s\n", pfn, nr,
			   FIELD_GET(ENTRY_VM, entry), FIELD_GET(ENTRY_GFN, entry),
			   entry & ENTRY_2M ? "2M" : "4K",
			   entry & ENTRY_LEAKED ? " leaked" : "");
}

static int dump_show(struct seq_file *m, void *unused)
{
	unsigned long pfn, start = 0, first = 0, nr = 0;
	struct emulated_rmp *rmp = m->private;
	void *entry;

	guard(mutex)(&rmp->lock);

	xa_for_each(&rmp->entries, pfn, entry) {
		/* The next gfn is the next value. */
		if (pfn != start + nr || xa_to_value(entry) != first + nr) {
			dump_run(m, start, first, nr);
			start = pfn;
			first = xa_to_value(entry);
			nr = 0;
		}
		nr++;
		cond_resched();
	}
	dump_run(m, start, first, nr);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(dump);

struct rmp_sweep {
	struct emulated_rmp *rmp;
	unsigned long entries, mappings, violations;
};

static int sweep_entries(struct rmp_sweep *s)
{
	struct emulated_rmp *rmp = s->rmp;
	unsigned long pfn, value;
	void *entry;
	gfn_t gfn;
	u32 vm;

	guard(mutex)(&rmp->lock);

	xa_for_each(&rmp->entries, pfn, entry) {
		s->entries++;
		value = xa_to_value(entry);
		if (value & ENTRY_LEAKED)
			continue;

		vm = FIELD_GET(ENTRY_VM, value);
		gfn = FIELD_GET(ENTRY_GFN, value);
		if ((!xa_load(&rmp->vms, vm) && rmp_violation(rmp, V_LEFT, vm, gfn, pfn)) ||
		    rmp_wait_unused(rmp, vm, gfn, pfn, 1))
			s->violations++;

		if (signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static void sweep_mapping(struct kvm *kvm, int as_id, gfn_t gfn, kvm_pfn_t pfn,
			  int level, void *opaque)
{
	struct rmp_sweep *s = opaque;
	struct kvm_memory_slot *slot;

	slot = __gfn_to_memslot(__kvm_memslots(kvm, as_id), gfn);
	if (!slot || !kvm_slot_has_gmem(slot))
		return;

	s->mappings++;
	if (rmp_check_map(s->rmp, kvm->arch.rmp_id, gfn, pfn, level,
			  kvm_slot_mem_is_private(kvm, slot, gfn)))
		s->violations++;
}

static int verify_show(struct seq_file *m, void *unused)
{
	struct rmp_sweep s = { .rmp = m->private };
	struct kvm *kvm;
	int ret;

	ret = sweep_entries(&s);
	if (ret)
		return ret;

	/* A VM is in the list for as long as it is whole. */
	guard(mutex)(&kvm_lock);
	list_for_each_entry(kvm, &vm_list, vm_list) {
		if (!kvm_has_emulated_rmp(kvm))
			continue;

		guard(mutex)(&kvm->slots_lock);
		kvm_tdp_mmu_walk_leafs(kvm, sweep_mapping, &s);
	}

	seq_printf(m, "entries %lu mappings %lu violations %lu\n",
		   s.entries, s.mappings, s.violations);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(verify);

void emulated_rmp_create_debugfs(struct dentry *parent)
{
	struct dentry *dir = debugfs_create_dir("emulated-rmp", parent);

	debugfs_create_file("stats", 0400, dir, &host_rmp, &stats_fops);
	debugfs_create_file("dump", 0400, dir, &host_rmp, &dump_fops);
	debugfs_create_file("verify", 0400, dir, &host_rmp, &verify_fops);
	fault_create_debugfs_attr("fail_make_private", dir, &fail_make_private);
	fault_create_debugfs_attr("fail_make_shared", dir, &fail_make_shared);
	fault_create_debugfs_attr("fail_reclaim", dir, &fail_reclaim);
}

void emulated_rmp_exit(void)
{
	/* What is leaked stays so without an entry, too. */
	xa_destroy(&host_rmp.entries);
	xa_destroy(&host_rmp.vms);
}

#if IS_ENABLED(CONFIG_KVM_EMULATED_RMP_KUNIT_TEST)
#include "tests/emulated_rmp_kunit.c"
#endif
