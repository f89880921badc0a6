// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the emulated RMP.
 *
 * Part of emulated_rmp.c, for its statics.  Each test has a table of its own, and
 * VM ids and pfns that exist nowhere else.
 */
#include <kunit/test.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/slab.h>

/* A VM, another one, and where they have their memory. */
#define VM	7
#define VM2	8
#define GFN	(16 * BLOCK)
#define PFN	(32 * BLOCK)
#define GIB	KVM_PAGES_PER_HPAGE(PG_LEVEL_1G)

/* Pages that the model knows, and VMs. */
#define MODEL_PAGES	(4 * BLOCK)
#define MODEL_VMS	3

struct rmp_test {
	struct emulated_rmp rmp;
	/* What there should be, by enum rmp_counter. */
	long violations[NR_COUNTERS];
};

struct rmp_model {
	unsigned long entry[MODEL_PAGES];
	long counters[NR_COUNTERS];
};

static long counter(struct kunit *test, enum rmp_counter nr)
{
	struct emulated_rmp *rmp = test->priv;

	return atomic_long_read(&rmp->counters[nr]);
}

static unsigned long value(u32 vm, gfn_t gfn, unsigned long flags)
{
	return FIELD_PREP(ENTRY_VM, vm) | FIELD_PREP(ENTRY_GFN, gfn) | flags;
}

/* The table is as E1 and E3 say, and the counters know what is in it. */
static void check_table(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;
	unsigned long pfn, block = -1, first = 0, in_order = 0, v;
	long owned = 0, owned_2m = 0, leaked = 0;
	void *entry;

	xa_for_each(&rmp->entries, pfn, entry) {
		v = xa_to_value(entry);
		if (block != round_down(pfn, BLOCK)) {
			block = round_down(pfn, BLOCK);
			first = rmp_get(rmp, block);
			in_order = 0;
		}
		if (v & ENTRY_LEAKED) {
			KUNIT_EXPECT_FALSE(test, v & ENTRY_2M);
			leaked++;
			continue;
		}
		owned++;
		in_order += v == first + in_order;
		if (v & ENTRY_2M) {
			KUNIT_EXPECT_EQ(test, v, first + pfn % BLOCK);
			KUNIT_EXPECT_TRUE(test, IS_ALIGNED(FIELD_GET(ENTRY_GFN, first), BLOCK));
			owned_2m++;
		} else {
			KUNIT_EXPECT_FALSE(test, in_order == BLOCK &&
					   IS_ALIGNED(FIELD_GET(ENTRY_GFN, first), BLOCK));
		}
	}
	KUNIT_EXPECT_EQ(test, owned, counter(test, OWNED));
	KUNIT_EXPECT_EQ(test, owned_2m, BLOCK * counter(test, OWNED_2M));
	KUNIT_EXPECT_EQ(test, leaked, counter(test, LEAKED));
}

/* Exactly the pages in [pfn, pfn + nr) have entries, which start with @first. */
static void expect_only(struct kunit *test, kvm_pfn_t pfn, kvm_pfn_t nr, unsigned long first)
{
	struct emulated_rmp *rmp = test->priv;
	unsigned long index, found = 0;
	void *entry;

	xa_for_each(&rmp->entries, index, entry) {
		KUNIT_EXPECT_EQ(test, index, pfn + found);
		KUNIT_EXPECT_EQ(test, xa_to_value(entry), first + found);
		found++;
	}
	KUNIT_EXPECT_EQ(test, found, nr);
	check_table(test);
}

/* There were the violations that were looked for, and none else. */
static void check_violations(struct kunit *test)
{
	struct rmp_test *t = container_of(test->priv, struct rmp_test, rmp);
	int i;

	for (i = V_OWNED; i < NR_COUNTERS; i++)
		KUNIT_EXPECT_EQ_MSG(test, counter(test, i), t->violations[i], "%s",
				    rmp_counter_names[i]);
}

static void expect_violation(struct kunit *test, enum rmp_counter kind)
{
	struct rmp_test *t = container_of(test->priv, struct rmp_test, rmp);

	t->violations[kind]++;
	check_violations(test);
	check_table(test);
}

static void expect_refused(struct kunit *test, enum rmp_counter kind, int ret)
{
	KUNIT_EXPECT_EQ_MSG(test, ret, -EINVAL, "%s", rmp_counter_names[kind]);
	expect_violation(test, kind);
}

static void own(struct kunit *test, u32 vm, gfn_t gfn, kvm_pfn_t pfn, kvm_pfn_t nr)
{
	KUNIT_ASSERT_EQ(test, rmp_make_private(test->priv, vm, gfn, pfn, nr), 0);
}

static int share(struct kunit *test, u32 vm, gfn_t gfn, kvm_pfn_t pfn, kvm_pfn_t nr)
{
	return rmp_give_back(test->priv, MAKE_SHARED, vm, gfn, pfn, nr);
}

static int reclaim(struct kunit *test, u32 vm, kvm_pfn_t pfn, kvm_pfn_t nr)
{
	return rmp_give_back(test->priv, RECLAIM, vm, ANY_GFN, pfn, nr);
}

static void there_and_back(struct kunit *test)
{
	own(test, VM, GFN + 1, PFN + 3, 2);
	expect_only(test, PFN + 3, 2, value(VM, GFN + 1, 0));
	KUNIT_EXPECT_EQ(test, counter(test, MAKE_PRIVATE), 1);
	KUNIT_EXPECT_EQ(test, counter(test, MAKE_PRIVATE_PAGES), 2);

	KUNIT_EXPECT_EQ(test, share(test, VM, GFN + 1, PFN + 3, 1), 0);
	expect_only(test, PFN + 4, 1, value(VM, GFN + 2, 0));
	KUNIT_EXPECT_EQ(test, counter(test, MAKE_SHARED), 1);
	KUNIT_EXPECT_EQ(test, counter(test, MAKE_SHARED_PAGES), 1);

	KUNIT_EXPECT_EQ(test, reclaim(test, VM, PFN + 4, 1), 0);
	expect_only(test, 0, 0, 0);
	KUNIT_EXPECT_EQ(test, counter(test, RECLAIM), 1);
	KUNIT_EXPECT_EQ(test, counter(test, RECLAIM_PAGES), 1);
}

static void only_aligned_blocks_are_huge(struct kunit *test)
{
	static const struct {
		gfn_t gfn;
		kvm_pfn_t pfn, nr;
		bool huge;
	} runs[] = {
		{ GFN, PFN, BLOCK, true },
		{ GFN, PFN, BLOCK - 1 },
		{ GFN + 1, PFN, BLOCK },
		{ GFN + 1, PFN + 1, BLOCK - 1 },
		{ GFN, PFN + 1, BLOCK - 1 },
		{ GFN, PFN, 1 },
		{ 0, PFN, BLOCK, true },
		{ BIT(40) - BLOCK, PFN, BLOCK, true },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(runs); i++) {
		own(test, VM, runs[i].gfn, runs[i].pfn, runs[i].nr);
		expect_only(test, runs[i].pfn, runs[i].nr,
			    value(VM, runs[i].gfn, runs[i].huge ? ENTRY_2M : 0));
		KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), runs[i].huge);

		KUNIT_EXPECT_EQ(test, reclaim(test, VM, runs[i].pfn, runs[i].nr), 0);
		expect_only(test, 0, 0, 0);
	}
	KUNIT_EXPECT_EQ(test, counter(test, PSMASH), 0);
	KUNIT_EXPECT_EQ(test, counter(test, MERGED), 0);
}

/* What is allowed is elsewhere: each of these fails, and changes nothing. */
static void forbidden_is_refused(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	/* Nobody's. */
	expect_refused(test, V_NOT_OWNED, share(test, VM, GFN, PFN, 1));
	expect_refused(test, V_NOT_OWNED, reclaim(test, VM, PFN, 1));

	/* Somebody's. */
	own(test, VM, GFN, PFN, 1);
	expect_refused(test, V_OWNED, rmp_make_private(rmp, VM, GFN, PFN, 1));
	expect_refused(test, V_OWNED, rmp_make_private(rmp, VM2, GFN, PFN, 1));
	expect_refused(test, V_WRONG_OWNER, share(test, VM2, GFN, PFN, 1));
	expect_refused(test, V_WRONG_OWNER, reclaim(test, VM2, PFN, 1));
	expect_refused(test, V_WRONG_GFN, share(test, VM, GFN + 1, PFN, 1));
	expect_only(test, PFN, 1, value(VM, GFN, 0));

	/* Lost. */
	rmp_leak(rmp, PFN, 1);
	expect_refused(test, V_OWNED, rmp_make_private(rmp, VM, GFN, PFN, 1));
	expect_refused(test, V_NOT_OWNED, share(test, VM, GFN, PFN, 1));
	expect_refused(test, V_NOT_OWNED, reclaim(test, VM, PFN, 1));
	expect_only(test, PFN, 1, value(VM, GFN, ENTRY_LEAKED));
}

/* The last page of a run is in the way. */
static void all_or_nothing(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	own(test, VM, GFN + BLOCK - 1, PFN + BLOCK - 1, 1);
	expect_refused(test, V_OWNED, rmp_make_private(rmp, VM, GFN, PFN, BLOCK));
	expect_refused(test, V_NOT_OWNED, share(test, VM, GFN + BLOCK - 1, PFN + BLOCK - 1, 2));
	expect_refused(test, V_NOT_OWNED, reclaim(test, VM, PFN + BLOCK - 1, 2));
	expect_only(test, PFN + BLOCK - 1, 1, value(VM, GFN + BLOCK - 1, 0));

	/* Nor is a 2 MiB entry split. */
	KUNIT_EXPECT_EQ(test, reclaim(test, VM, PFN + BLOCK - 1, 1), 0);
	own(test, VM, GFN, PFN, BLOCK);
	expect_refused(test, V_NOT_OWNED, reclaim(test, VM, PFN + BLOCK - 1, 2));
	expect_refused(test, V_WRONG_GFN, share(test, VM, GFN + 1, PFN, 2));
	expect_only(test, PFN, BLOCK, value(VM, GFN, ENTRY_2M));
}

static void a_part_splits(struct kunit *test)
{
	static const struct {
		kvm_pfn_t start, nr;
	} parts[] = {
		{ 0, 1 }, { 1, 1 }, { BLOCK - 1, 1 }, { 0, BLOCK - 1 }, { 1, BLOCK - 1 },
	};
	struct emulated_rmp *rmp = test->priv;
	int i, op;

	for (i = 0; i < 3 * ARRAY_SIZE(parts); i++) {
		kvm_pfn_t start = PFN + parts[i / 3].start, nr = parts[i / 3].nr, pfn;

		own(test, VM, GFN, PFN, BLOCK);
		op = i % 3;
		if (op == 0)
			KUNIT_EXPECT_EQ(test, share(test, VM, GFN + start - PFN, start, nr), 0);
		else if (op == 1)
			KUNIT_EXPECT_EQ(test, reclaim(test, VM, start, nr), 0);
		else
			rmp_leak(rmp, start, nr);
		KUNIT_EXPECT_EQ(test, counter(test, PSMASH), i + 1);
		KUNIT_EXPECT_EQ(test, counter(test, OWNED), BLOCK - nr);
		check_table(test);

		for (pfn = PFN; pfn < PFN + BLOCK; pfn++) {
			bool part = pfn >= start && pfn < start + nr;

			KUNIT_EXPECT_EQ(test, rmp_get(rmp, pfn), part && op != 2 ? 0 :
					value(VM, GFN + pfn - PFN, part ? ENTRY_LEAKED : 0));
			xa_erase(&rmp->entries, pfn);
		}
		atomic_long_set(&rmp->counters[OWNED], 0);
		atomic_long_set(&rmp->counters[LEAKED], 0);
	}
}

/* The whole of it is there with the last part, whichever that is, again and again. */
static void parts_are_merged(struct kunit *test)
{
	static const struct {
		kvm_pfn_t start, nr;
	} last[] = {
		{ 0, 1 }, { 1, 1 }, { 300, 7 }, { BLOCK - 1, 1 },
		{ 0, BLOCK - 1 }, { 1, BLOCK - 1 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(last); i++) {
		kvm_pfn_t start = last[i].start, end = start + last[i].nr;

		if (start)
			own(test, VM, GFN, PFN, start);
		if (end < BLOCK)
			own(test, VM, GFN + end, PFN + end, BLOCK - end);
		KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), 0);
		own(test, VM, GFN + start, PFN + start, end - start);
		expect_only(test, PFN, BLOCK, value(VM, GFN, ENTRY_2M));
		KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), 1);
		KUNIT_EXPECT_EQ(test, counter(test, MERGED), 2 * i + 1);

		KUNIT_EXPECT_EQ(test, share(test, VM, GFN + start, PFN + start, end - start), 0);
		KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), 0);
		KUNIT_EXPECT_EQ(test, counter(test, PSMASH), i + 1);
		own(test, VM, GFN + start, PFN + start, end - start);
		expect_only(test, PFN, BLOCK, value(VM, GFN, ENTRY_2M));
		KUNIT_EXPECT_EQ(test, counter(test, MERGED), 2 * i + 2);

		/* As good as one that has never been in parts. */
		KUNIT_EXPECT_EQ(test, reclaim(test, VM, PFN, BLOCK), 0);
		expect_only(test, 0, 0, 0);
		KUNIT_EXPECT_EQ(test, counter(test, PSMASH), i + 1);
	}
}

/* All pages are there, but the one that comes last does not go with the others. */
static void others_are_not_merged(struct kunit *test)
{
	static const kvm_pfn_t last[] = { 0, 1, 100, BLOCK - 2, BLOCK - 1 };
	static const struct {
		u32 vm;
		int gfn;
	} others[] = {
		{ VM2, 0 }, { VM, 1 }, { VM, -1 }, { VM, BLOCK }, { VM, -(int)BLOCK },
	};
	int i, j;

	for (i = 0; i < ARRAY_SIZE(last); i++) {
		kvm_pfn_t at = last[i];

		if (at)
			own(test, VM, GFN, PFN, at);
		if (at < BLOCK - 1)
			own(test, VM, GFN + at + 1, PFN + at + 1, BLOCK - 1 - at);
		for (j = 0; j < ARRAY_SIZE(others); j++) {
			own(test, others[j].vm, GFN + at + others[j].gfn, PFN + at, 1);
			KUNIT_EXPECT_EQ(test, counter(test, OWNED), BLOCK);
			KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), 0);
			check_table(test);
			KUNIT_EXPECT_EQ(test, reclaim(test, others[j].vm, PFN + at, 1), 0);
		}
		KUNIT_EXPECT_EQ(test, counter(test, MERGED), i);

		own(test, VM, GFN + at, PFN + at, 1);
		expect_only(test, PFN, BLOCK, value(VM, GFN, ENTRY_2M));
		KUNIT_EXPECT_EQ(test, reclaim(test, VM, PFN, BLOCK), 0);
	}
}

static void unaligned_gfns_are_not_merged(struct kunit *test)
{
	own(test, VM, GFN + 1, PFN, BLOCK - 1);
	own(test, VM, GFN + BLOCK, PFN + BLOCK - 1, 1);
	expect_only(test, PFN, BLOCK, value(VM, GFN + 1, 0));
	KUNIT_EXPECT_EQ(test, reclaim(test, VM, PFN, BLOCK), 0);

	/* Nor 512 pages that are in order, and aligned in gfn alone. */
	own(test, VM, GFN, PFN + 1, BLOCK - 1);
	own(test, VM, GFN + BLOCK - 1, PFN + BLOCK, 1);
	expect_only(test, PFN + 1, BLOCK, value(VM, GFN, 0));
	KUNIT_EXPECT_EQ(test, counter(test, MERGED), 0);
}

static void leaked_is_not_merged(struct kunit *test)
{
	static const kvm_pfn_t leaked[] = { 0, 100, BLOCK - 1 };
	struct emulated_rmp *rmp = test->priv;
	int i;

	for (i = 0; i < ARRAY_SIZE(leaked); i++) {
		kvm_pfn_t pfn = PFN + i * BLOCK;

		own(test, VM, GFN, pfn, BLOCK);
		rmp_leak(rmp, pfn + leaked[i], 1);
		KUNIT_EXPECT_EQ(test, share(test, VM, GFN + 50, pfn + 50, 1), 0);
		own(test, VM, GFN + 50, pfn + 50, 1);
		KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), 0);
		check_table(test);
	}
	KUNIT_EXPECT_EQ(test, counter(test, MERGED), 0);
}

static void a_range_splits_at_its_ends(struct kunit *test)
{
	int i;

	for (i = 0; i < 3; i++)
		own(test, VM, GFN + i * BLOCK, PFN + i * BLOCK, BLOCK);
	expect_only(test, PFN, 3 * BLOCK, value(VM, GFN, ENTRY_2M));

	KUNIT_EXPECT_EQ(test, share(test, VM, GFN + 1, PFN + 1, 3 * BLOCK - 2), 0);
	KUNIT_EXPECT_EQ(test, counter(test, PSMASH), 2);
	KUNIT_EXPECT_EQ(test, counter(test, OWNED), 2);
	KUNIT_EXPECT_EQ(test, counter(test, OWNED_2M), 0);
	check_table(test);
}

static void leaked_stays(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	own(test, VM, GFN, PFN, BLOCK);
	rmp_leak(rmp, PFN - 1, BLOCK + 2);
	rmp_leak(rmp, PFN, BLOCK);
	expect_only(test, PFN, BLOCK, value(VM, GFN, ENTRY_LEAKED));
	KUNIT_EXPECT_EQ(test, counter(test, LEAKED), BLOCK);
	KUNIT_EXPECT_EQ(test, counter(test, PSMASH), 0);

	rmp_check_host(rmp, PFN, BLOCK, true);
	rmp_destroy_vm(rmp, VM);
	KUNIT_EXPECT_EQ(test, counter(test, V_FREED), 0);
	KUNIT_EXPECT_EQ(test, counter(test, V_LEFT), 0);
	rmp_check_host(rmp, PFN, 1, false);
	expect_violation(test, V_USER_MAP);
	expect_refused(test, V_GUEST_MAP,
		       rmp_check_map(rmp, VM, GFN, PFN, PG_LEVEL_4K, true));
	expect_refused(test, V_GUEST_MAP,
		       rmp_check_map(rmp, VM, GFN, PFN, PG_LEVEL_4K, false));
}

static void the_guest_maps_what_it_owns(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	own(test, VM, GFN, PFN, BLOCK);
	own(test, VM, GFN + BLOCK, PFN + BLOCK, BLOCK - 1);

	KUNIT_EXPECT_EQ(test, rmp_check_map(rmp, VM, GFN, PFN, PG_LEVEL_2M, true), 0);
	KUNIT_EXPECT_EQ(test, rmp_check_map(rmp, VM, GFN + 1, PFN + 1, PG_LEVEL_4K, true), 0);
	KUNIT_EXPECT_EQ(test, rmp_check_map(rmp, VM, GFN + BLOCK, PFN + BLOCK,
					    PG_LEVEL_4K, true), 0);
	KUNIT_EXPECT_EQ(test, rmp_check_map(rmp, VM, 0, PFN + 2 * BLOCK - 1,
					    PG_LEVEL_4K, false), 0);
	KUNIT_EXPECT_EQ(test, rmp_check_map(rmp, VM, 0, PFN + 2 * BLOCK,
					    PG_LEVEL_2M, false), 0);

	/* Too large. */
	expect_refused(test, V_LEVEL, rmp_check_map(rmp, VM, GFN + BLOCK, PFN + BLOCK,
						    PG_LEVEL_2M, true));
	expect_refused(test, V_LEVEL, rmp_check_map(rmp, VM, GFN, PFN, PG_LEVEL_1G, true));
	/* Of another VM, at another gfn, or nobody's. */
	expect_refused(test, V_GUEST_MAP, rmp_check_map(rmp, VM2, GFN, PFN, PG_LEVEL_4K, true));
	expect_refused(test, V_GUEST_MAP,
		       rmp_check_map(rmp, VM, GFN + 1, PFN, PG_LEVEL_4K, true));
	expect_refused(test, V_GUEST_MAP,
		       rmp_check_map(rmp, VM, 0, PFN - 1, PG_LEVEL_4K, true));
	/* Shared, but somebody's, if only the last page of it. */
	expect_refused(test, V_GUEST_MAP, rmp_check_map(rmp, VM, GFN, PFN, PG_LEVEL_4K, false));
	own(test, VM2, GFN, PFN + 3 * BLOCK - 1, 1);
	expect_refused(test, V_GUEST_MAP, rmp_check_map(rmp, VM, GFN, PFN + 2 * BLOCK,
							PG_LEVEL_2M, false));

	/* What is shared has no level, what is private none above 2 MiB. */
	KUNIT_EXPECT_EQ(test, rmp_check_map(rmp, VM, GIB, GIB, PG_LEVEL_1G, false), 0);
	own(test, VM2, GFN, 2 * GIB - 1, 1);
	expect_refused(test, V_GUEST_MAP, rmp_check_map(rmp, VM, GIB, GIB, PG_LEVEL_1G, false));
	own(test, VM, 2 * GIB, 2 * GIB, BLOCK);
	own(test, VM, 2 * GIB + BLOCK, 2 * GIB + BLOCK, BLOCK);
	expect_refused(test, V_LEVEL,
		       rmp_check_map(rmp, VM, 2 * GIB, 2 * GIB, PG_LEVEL_1G, true));
}

static void the_host_uses_what_it_owns(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	own(test, VM, GFN, PFN, 1);
	rmp_check_host(rmp, PFN - 1, 1, false);
	rmp_check_host(rmp, PFN + 1, BLOCK, true);
	rmp_check_host(rmp, PFN - 1, 2, false);
	expect_violation(test, V_USER_MAP);
	rmp_check_host(rmp, PFN, 1, true);
	expect_violation(test, V_FREED);
}

static void entries_tell_the_level(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	own(test, VM, GFN, PFN, BLOCK);
	own(test, VM, GFN, PFN + BLOCK, 1);
	KUNIT_EXPECT_EQ(test, rmp_level(rmp_get(rmp, PFN)), PG_LEVEL_2M);
	KUNIT_EXPECT_EQ(test, rmp_level(rmp_get(rmp, PFN + BLOCK - 1)), PG_LEVEL_2M);
	KUNIT_EXPECT_EQ(test, rmp_level(rmp_get(rmp, PFN + BLOCK)), PG_LEVEL_4K);
	KUNIT_EXPECT_EQ(test, rmp_level(rmp_get(rmp, PFN + BLOCK + 1)), PG_LEVEL_4K);
}

static void ids_do_not_come_again(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;
	u32 a = 0, b = 0, c = 0;

	KUNIT_ASSERT_EQ(test, rmp_init_vm(rmp, &a), 0);
	KUNIT_ASSERT_EQ(test, rmp_init_vm(rmp, &b), 0);
	KUNIT_EXPECT_EQ(test, a, 1);
	KUNIT_EXPECT_EQ(test, b, 2);

	own(test, a, GFN, PFN, 2);
	own(test, b, GFN, PFN + 2, 1);
	rmp_leak(rmp, PFN, 1);
	rmp_destroy_vm(rmp, a);
	expect_violation(test, V_LEFT);
	KUNIT_EXPECT_NULL(test, xa_load(&rmp->vms, a));
	KUNIT_EXPECT_NOT_NULL(test, xa_load(&rmp->vms, b));

	KUNIT_ASSERT_EQ(test, rmp_init_vm(rmp, &c), 0);
	KUNIT_EXPECT_EQ(test, c, 3);

	/* The last one that there is, and the first one again. */
	rmp->next_vm = FIELD_MAX(ENTRY_VM);
	KUNIT_ASSERT_EQ(test, rmp_init_vm(rmp, &c), 0);
	KUNIT_EXPECT_EQ(test, c, FIELD_MAX(ENTRY_VM));
	KUNIT_ASSERT_EQ(test, rmp_init_vm(rmp, &c), 0);
	KUNIT_EXPECT_EQ(test, c, 1);
}

static void references_are_in_the_way(struct kunit *test)
{
	struct page *page = alloc_page(GFP_KERNEL);
	struct emulated_rmp *rmp = test->priv;
	kvm_pfn_t pfn;

	KUNIT_ASSERT_NOT_NULL(test, page);
	pfn = page_to_pfn(page);

	KUNIT_EXPECT_EQ(test, rmp_wait_unused(rmp, VM, GFN, pfn, 1), 0);
	get_page(page);
	expect_refused(test, V_MAPPED, rmp_wait_unused(rmp, VM, GFN, pfn, 1));
	put_page(page);
	KUNIT_EXPECT_EQ(test, rmp_wait_unused(rmp, VM, GFN, pfn, 1), 0);
	__free_page(page);
}

static void model_merge(struct rmp_model *m, unsigned long first)
{
	u32 vm = FIELD_GET(ENTRY_VM, m->entry[first]);
	gfn_t gfn = FIELD_GET(ENTRY_GFN, m->entry[first]);
	unsigned long i;

	if (!vm || gfn % BLOCK)
		return;
	for (i = 0; i < BLOCK; i++) {
		if (m->entry[first + i] != value(vm, gfn + i, 0))
			return;
	}
	for (i = 0; i < BLOCK; i++)
		m->entry[first + i] |= ENTRY_2M;
	m->counters[MERGED]++;
}

/* What an operation does to the model: 0, or the kind of violation. */
static int model_assign(struct rmp_model *m, u32 vm, gfn_t gfn, unsigned long at,
			unsigned long nr)
{
	bool huge = nr == BLOCK && at % BLOCK == 0 && gfn % BLOCK == 0;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (m->entry[at + i])
			return V_OWNED;
	}
	for (i = 0; i < nr; i++)
		m->entry[at + i] = value(vm, gfn + i, huge ? ENTRY_2M : 0);
	m->counters[MAKE_PRIVATE]++;
	m->counters[MAKE_PRIVATE_PAGES] += nr;
	if (!huge)
		model_merge(m, round_down(at, BLOCK));
	return 0;
}

static void model_split(struct rmp_model *m, unsigned long at, unsigned long nr)
{
	unsigned long i, j;

	for (i = 0; i < MODEL_PAGES; i += BLOCK) {
		if (!(m->entry[i] & ENTRY_2M) || at >= i + BLOCK || at + nr <= i ||
		    (at <= i && at + nr >= i + BLOCK))
			continue;
		for (j = i; j < i + BLOCK; j++)
			m->entry[j] &= ~ENTRY_2M;
		m->counters[PSMASH]++;
	}
}

static int model_give_back(struct rmp_model *m, enum rmp_counter op, u32 vm, gfn_t gfn,
			   unsigned long at, unsigned long nr)
{
	unsigned long i;

	for (i = at; i < at + nr; i++) {
		if (!m->entry[i] || m->entry[i] & ENTRY_LEAKED)
			return V_NOT_OWNED;
		if (FIELD_GET(ENTRY_VM, m->entry[i]) != vm)
			return V_WRONG_OWNER;
		if (op == MAKE_SHARED && FIELD_GET(ENTRY_GFN, m->entry[i]) != gfn + i - at)
			return V_WRONG_GFN;
	}
	model_split(m, at, nr);
	for (i = at; i < at + nr; i++)
		m->entry[i] = 0;
	m->counters[op]++;
	m->counters[op + 1] += nr;
	return 0;
}

static void model_leak(struct rmp_model *m, unsigned long at, unsigned long nr)
{
	unsigned long i;

	model_split(m, at, nr);
	for (i = at; i < at + nr; i++) {
		if (m->entry[i])
			m->entry[i] = (m->entry[i] & ~ENTRY_2M) | ENTRY_LEAKED;
	}
}

/* Find something that can be assigned, close to @at; return how much it is. */
static unsigned long model_hole(const struct rmp_model *m, unsigned long *at)
{
	unsigned long nr;

	while (m->entry[*at] && (*at + 1) % BLOCK)
		++*at;
	for (nr = 1; (*at + nr) % BLOCK && !m->entry[*at + nr]; nr++)
		;
	return nr;
}

/* Return whether table and model agree, after one operation on both. */
static bool model_step(struct rmp_model *m, struct emulated_rmp *rmp, struct rnd_state *rnd)
{
	unsigned long at = prandom_u32_state(rnd) % MODEL_PAGES;
	unsigned long nr = prandom_u32_state(rnd) % BLOCK + 1, i;
	u32 vm = prandom_u32_state(rnd) % MODEL_VMS + 1;
	int op = prandom_u32_state(rnd) % 32, kind = 0, ret = 0;
	gfn_t gfn;

	/* Mostly what makes sense: blocks, and gfns that go with pages. */
	if (prandom_u32_state(rnd) % 2) {
		at = round_down(at, BLOCK);
		nr = BLOCK;
	}
	nr = min(nr, MODEL_PAGES - at);
	if (op < 14) {
		nr = min(nr, BLOCK - at % BLOCK);
		if (prandom_u32_state(rnd) % 2)
			nr = model_hole(m, &at);
	}
	gfn = GFN + at + !(prandom_u32_state(rnd) % 8);
	if (prandom_u32_state(rnd) % 4 && m->entry[at])
		vm = FIELD_GET(ENTRY_VM, m->entry[at]);
	else if (prandom_u32_state(rnd) % 4 && m->entry[round_down(at, BLOCK)])
		vm = FIELD_GET(ENTRY_VM, m->entry[round_down(at, BLOCK)]);

	if (op < 14) {
		kind = model_assign(m, vm, gfn, at, nr);
		ret = rmp_make_private(rmp, vm, gfn, PFN + at, nr);
	} else if (op < 22) {
		kind = model_give_back(m, MAKE_SHARED, vm, gfn, at, nr);
		ret = rmp_give_back(rmp, MAKE_SHARED, vm, gfn, PFN + at, nr);
	} else if (op < 31) {
		kind = model_give_back(m, RECLAIM, vm, ANY_GFN, at, nr);
		ret = rmp_give_back(rmp, RECLAIM, vm, ANY_GFN, PFN + at, nr);
	} else {
		/* Few, for they stay. */
		nr = min(nr, 2UL);
		model_leak(m, at, nr);
		rmp_leak(rmp, PFN + at, nr);
	}

	if (kind)
		m->counters[kind]++;
	if (ret != (kind ? -EINVAL : 0))
		return false;

	memset(m->counters, 0, 3 * sizeof(m->counters[0]));
	for (i = 0; i < MODEL_PAGES; i++) {
		if (rmp_get(rmp, PFN + i) != m->entry[i])
			return false;
		m->counters[OWNED] += m->entry[i] && !(m->entry[i] & ENTRY_LEAKED);
		m->counters[OWNED_2M] += i % BLOCK == 0 && m->entry[i] & ENTRY_2M;
		m->counters[LEAKED] += !!(m->entry[i] & ENTRY_LEAKED);
	}
	for (i = 0; i < NR_COUNTERS; i++) {
		if (atomic_long_read(&rmp->counters[i]) != m->counters[i])
			return false;
	}
	return true;
}

static void random_operations(struct kunit *test)
{
	struct rmp_model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	struct emulated_rmp *rmp = test->priv;
	u64 seed = get_random_u64();
	struct rnd_state rnd;
	int round, step;

	KUNIT_ASSERT_NOT_NULL(test, m);
	prandom_seed_state(&rnd, seed);

	for (round = 0; round < 20; round++) {
		for (step = 0; step < 200; step++) {
			if (!model_step(m, rmp, &rnd)) {
				KUNIT_FAIL(test, "seed %#llx round %d step %d", seed, round, step);
				return;
			}
		}
		check_table(test);

		/* Let nothing leaked be in the way. */
		xa_destroy(&rmp->entries);
		memset(rmp->counters, 0, sizeof(rmp->counters));
		memset(m, 0, sizeof(*m));
		cond_resched();
	}
}

static int emulated_rmp_test_init(struct kunit *test)
{
	struct rmp_test *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	struct emulated_rmp *rmp;

	if (!t)
		return -ENOMEM;

	rmp = &t->rmp;
	xa_init(&rmp->entries);
	xa_init_flags(&rmp->vms, XA_FLAGS_ALLOC);
	mutex_init(&rmp->lock);
	rmp->quiet = true;
	test->priv = rmp;
	return 0;
}

static void emulated_rmp_test_exit(struct kunit *test)
{
	struct emulated_rmp *rmp = test->priv;

	if (!rmp)
		return;

	check_violations(test);
	check_table(test);
	xa_destroy(&rmp->entries);
	xa_destroy(&rmp->vms);
}

static struct kunit_case emulated_rmp_cases[] = {
	KUNIT_CASE(there_and_back),
	KUNIT_CASE(only_aligned_blocks_are_huge),
	KUNIT_CASE(forbidden_is_refused),
	KUNIT_CASE(all_or_nothing),
	KUNIT_CASE(a_part_splits),
	KUNIT_CASE(parts_are_merged),
	KUNIT_CASE(others_are_not_merged),
	KUNIT_CASE(unaligned_gfns_are_not_merged),
	KUNIT_CASE(leaked_is_not_merged),
	KUNIT_CASE(a_range_splits_at_its_ends),
	KUNIT_CASE(leaked_stays),
	KUNIT_CASE(the_guest_maps_what_it_owns),
	KUNIT_CASE(the_host_uses_what_it_owns),
	KUNIT_CASE(entries_tell_the_level),
	KUNIT_CASE(ids_do_not_come_again),
	KUNIT_CASE(references_are_in_the_way),
	KUNIT_CASE_SLOW(random_operations),
	{}
};

static struct kunit_suite emulated_rmp_suite = {
	.name = "kvm_emulated_rmp",
	.init = emulated_rmp_test_init,
	.exit = emulated_rmp_test_exit,
	.test_cases = emulated_rmp_cases,
};

kunit_test_suite(emulated_rmp_suite);
