// SPDX-License-Identifier: GPL-2.0
/*
 * state.c against what else the kernel has for this: the maple tree and the
 * xarray, all in user space, on tools/testing/shared and with liburcu.
 *
 * One bit is kept for each page of 4 KiB.  A maple tree holds it as ranges.  An
 * xarray holds it as KVM_SET_MEMORY_ATTRIBUTES keeps it, an entry for each page
 * that has it; only what is uniform from the start is a multi-index entry.
 *
 * Times are in nanoseconds, of the best of some runs.  A lookup is random, and
 * begins when the one before it has ended.  Memory is what is in use after a
 * grace period: nodes, at the size that the kernel allocates.
 */
#include <malloc.h>
#include <stdio.h>
#include <time.h>

#include "bench.h"
#include <linux/bug.h>
#include <linux/maple_tree.h>
#include <linux/xarray.h>

#include "../../../../virt/kvm/guest_memfd/state.h"

#define RUNS		9

/* Of the maple tree, or of the xarray.  What the former frees with kfree() counts down. */
static unsigned long nr_nodes(void)
{
	return nr_allocated + kmalloc_nr_allocated;
}

/* Memory of state.c */

static unsigned long state_bytes;

void *bench_kmalloc(size_t size)
{
	void *p;

	assert(!posix_memalign(&p, size, size));
	uatomic_add(&state_bytes, malloc_usable_size(p) / 64 * 64);
	return p;
}

void bench_kfree(void *p)
{
	uatomic_add(&state_bytes, -(malloc_usable_size(p) / 64 * 64));
	free(p);
}

/* Many at once, as kvfree_rcu_mightsleep() does it: objects have no rcu_head. */
static struct bulk {
	struct rcu_head head;
	int nr;
	void *p[500];
} *bulk;

static void bulk_free(struct rcu_head *head)
{
	struct bulk *b = container_of(head, struct bulk, head);

	while (b->nr)
		bench_kfree(b->p[--b->nr]);
	free(b);
}

static void bulk_flush(void)
{
	if (bulk)
		call_rcu(&bulk->head, bulk_free);
	bulk = NULL;
}

void kvfree_rcu_mightsleep(void *p)
{
	if (!bulk) {
		bulk = malloc(sizeof(*bulk));
		assert(bulk);
		bulk->nr = 0;
	}

	bulk->p[bulk->nr++] = p;
	if (bulk->nr == ARRAY_SIZE(bulk->p))
		bulk_flush();
}

/* The three tables.  There is one of each kind at a time. */

static struct gmem_state state;
static struct maple_tree maple;
static struct xarray xarray;

static void state_create(unsigned long nr)
{
	gmem_state_init(&state, nr, 0);
}

static void state_set(unsigned long start, unsigned long end, bool private)
{
	struct gmem_state_change change;

	assert(!gmem_state_prepare(&state, &change, start, end, GMEM_PRIVATE,
				   private ? GMEM_PRIVATE : 0));
	gmem_state_commit(&state, &change);
}

static inline bool state_get(unsigned long index)
{
	return gmem_state_get(&state, index, GMEM_PRIVATE, NULL);
}

static void state_destroy(void)
{
	gmem_state_destroy(&state);
}

static unsigned long state_memory(void)
{
	return state_bytes;
}

/* With readers under RCU, and all flags that it takes not to crash then. */
static void maple_create(unsigned long nr)
{
	mt_init_flags(&maple, MT_FLAGS_ALLOC_RANGE | MT_FLAGS_USE_RCU);
	assert(!mtree_store_range(&maple, 0, nr - 1, xa_mk_value(0), GFP_KERNEL));
}

/* Ranges that are alike have to be merged by hand, or they stay. */
static void maple_set(unsigned long start, unsigned long end, bool private)
{
	MA_STATE(mas, &maple, start, start);
	void *entry = xa_mk_value(private);
	unsigned long last = end - 1;

	mas_lock(&mas);
	if (start) {
		mas_set(&mas, start - 1);
		if (mas_walk(&mas) == entry)
			start = mas.index;
	}
	mas_set(&mas, end);
	if (mas_walk(&mas) == entry)
		last = mas.last;
	mas_set_range(&mas, start, last);
	assert(!mas_store_gfp(&mas, entry, GFP_KERNEL));
	mas_unlock(&mas);
}

static inline bool maple_get(unsigned long index)
{
	return xa_to_value(mtree_load(&maple, index));
}

static void maple_destroy(void)
{
	mtree_destroy(&maple);
}

static unsigned long maple_memory(void)
{
	return nr_nodes() * sizeof(struct maple_node);
}

static void xarray_create(unsigned long nr)
{
	xa_init(&xarray);
}

static void xarray_set(unsigned long start, unsigned long end, bool private)
{
	unsigned long i;

	for (i = start; i < end; i++)
		assert(!xa_is_err(xa_store(&xarray, i, private ? xa_mk_value(1) : NULL,
					   GFP_KERNEL)));
}

static inline bool xarray_get(unsigned long index)
{
	return xa_load(&xarray, index);
}

static void xarray_destroy(void)
{
	xa_destroy(&xarray);
}

static unsigned long xarray_memory(void)
{
	return nr_nodes() * sizeof(struct xa_node);
}

/* One entry for all; only to be looked up, as nothing can be cut out of it. */
static void xarray_set_whole(unsigned long nr)
{
	assert(!xa_is_err(xa_store_range(&xarray, 0, nr - 1, xa_mk_value(1), GFP_KERNEL)));
}

static void state_set_whole(unsigned long nr)
{
	state_set(0, nr, true);
}

static void maple_set_whole(unsigned long nr)
{
	maple_set(0, nr, true);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static inline bool nothing_get(unsigned long index)
{
	return index & 1;
}

/* Where to look depends on what was found before. */
#define DEFINE_LOOKUP(table)							\
static double table##_lookup(unsigned long nr)					\
{										\
	const long times = 1000000;						\
	double best = 1e18, start;						\
	unsigned long x = 1;							\
	int run;								\
	long i;									\
										\
	for (run = 0; run < RUNS; run++) {					\
		start = now();							\
		for (i = 0; i < times; i++) {					\
			x = x * 6364136223846793005ul + 1442695040888963407ul;	\
			x += table##_get(x >> 13 & (nr - 1));			\
		}								\
		best = min(best, (now() - start) / times);			\
	}									\
	__asm__ volatile("" : : "r" (x));					\
	return best;								\
}

DEFINE_LOOKUP(nothing)
DEFINE_LOOKUP(state)
DEFINE_LOOKUP(maple)
DEFINE_LOOKUP(xarray)

#define TABLE(table) {								\
	#table, table##_create, table##_set, table##_set_whole, table##_lookup,	\
	table##_memory, table##_destroy						\
}

static const struct table {
	const char *name;
	void (*create)(unsigned long nr);
	void (*set)(unsigned long start, unsigned long end, bool private);
	void (*set_whole)(unsigned long nr);
	double (*lookup)(unsigned long nr);
	unsigned long (*memory)(void);
	void (*destroy)(void);
} tables[] = { TABLE(state), TABLE(maple), TABLE(xarray) };

enum { STATE, MAPLE, XARRAY, NR_TABLES };

/* A row of the output.  0 is for what is not measured. */
struct row {
	double value[NR_TABLES];
};

static int missed;

static void print_value(double value)
{
	if (value > 0)
		printf(" %12.*f", value < 100 ? 1 : 0, value);
	else
		printf(" %12s", "-");
}

static void print_ratio(double other, double ours)
{
	if (other > 0 && ours > 0)
		printf(" %8.1f", other / ours);
	else
		printf(" %8s", "-");
}

/* @goal: at least so many times what state.c takes is what the maple tree takes. */
static void print_row(const char *what, const char *unit, const struct row *r, double goal)
{
	bool ok = r->value[MAPLE] >= goal * r->value[STATE];
	int i;

	printf("%-42s", what);
	for (i = 0; i < NR_TABLES; i++)
		print_value(r->value[i]);
	printf(" %-5s", unit);
	print_ratio(r->value[MAPLE], r->value[STATE]);
	print_ratio(r->value[XARRAY], r->value[STATE]);
	if (goal)
		printf(" %5.0f  %s", goal, ok ? "ok" : "MISSED");
	putchar('\n');
	fflush(stdout);
	missed += goal && !ok;
}

static void settle(void)
{
	bulk_flush();
	rcu_barrier();
}

/* Make the first of each @step pages private; none for 0. */
static void fill(const struct table *t, unsigned long nr, unsigned long step)
{
	unsigned long i;

	for (i = 0; step && i < nr; i += step)
		t->set(i, i + 1, true);
}

/* @goal: bytes a page, at most. */
static void print_size(const char *what, unsigned long nr, const struct row *bytes, double goal)
{
	bool ok = bytes->value[STATE] <= goal * nr;
	int i;

	printf("%-42s", what);
	for (i = 0; i < NR_TABLES; i++) {
		if (bytes->value[i])
			printf(" %12.3f", bytes->value[i] / nr);
		else
			printf(" %12s", "-");
	}
	printf(" %-5s", "bytes");
	print_ratio(bytes->value[MAPLE], bytes->value[STATE]);
	print_ratio(bytes->value[XARRAY], bytes->value[STATE]);
	printf(" <%.2f  %s\n", goal, ok ? "ok" : "MISSED");
	missed += !ok;
}

static void bench_lookup(const char *name, unsigned long nr, unsigned long step,
			 double overhead, double goal)
{
	struct row lookup = {}, memory = {};
	char what[64];
	int i;

	for (i = 0; i < NR_TABLES; i++) {
		tables[i].create(nr);
		if (step)
			fill(&tables[i], nr, step);
		else
			tables[i].set_whole(nr);
		settle();
		lookup.value[i] = tables[i].lookup(nr) - overhead;
		memory.value[i] = tables[i].memory();
		tables[i].destroy();
		settle();
		if (tables[i].memory())
			printf("%s: %lu bytes are left\n", tables[i].name, tables[i].memory());
	}

	snprintf(what, sizeof(what), "%s: lookup", name);
	print_row(what, "ns", &lookup, 5);
	snprintf(what, sizeof(what), "%s: memory", name);
	print_row(what, "bytes", &memory, goal);
	if (step == 2) {
		snprintf(what, sizeof(what), "%s: a page", name);
		print_size(what, nr, &memory, 0.15);
	}
}

/* Private and owned, both alternating: only state.c keeps two bits. */
static void bench_both_bits(const char *what, unsigned long nr)
{
	struct gmem_state_change change;
	struct row bytes = {};
	unsigned long i;

	state_create(nr);
	for (i = 0; i < nr; i += 2) {
		assert(!gmem_state_prepare(&state, &change, i, i + 1,
					   GMEM_PRIVATE | GMEM_OWNED, GMEM_PRIVATE | GMEM_OWNED));
		gmem_state_commit(&state, &change);
	}
	bytes.value[STATE] = state_memory();
	print_size(what, nr, &bytes, 0.30);
	state_destroy();
	settle();
}

/*
 * To private and back, again and again; the mean of both.  The range goes on
 * by @step each time, so that no two are alike.
 */
static void bench_set(const char *what, unsigned long nr, unsigned long fill_step,
		      unsigned long first, unsigned long size, unsigned long step, long times)
{
	double best, start;
	struct row r = {};
	unsigned long at;
	int i, run;
	long n;

	for (i = 0; i < NR_TABLES; i++) {
		best = 1e18;
		tables[i].create(nr);
		fill(&tables[i], nr, fill_step);
		for (run = 0; run < RUNS; run++) {
			at = first;
			start = now();
			for (n = 0; n < times; n++) {
				tables[i].set(at, at + size, true);
				tables[i].set(at, at + size, false);
				at += step;
				if (at + size > nr)
					at = first;
			}
			best = min(best, (now() - start) / times / 2);
			settle();
		}
		r.value[i] = best;
		tables[i].destroy();
		settle();
	}
	print_row(what, "ns", &r, 1);
}

/* 64 ranges of 16 MiB, in which every other page is private, become shared. */
static void bench_set_over(const char *what, unsigned long nr)
{
	double best, start;
	struct row r = {};
	unsigned long at;
	int i, run;

	for (i = 0; i < NR_TABLES; i++) {
		best = 1e18;
		tables[i].create(nr);
		for (run = 0; run < RUNS; run++) {
			fill(&tables[i], nr, 2);
			settle();
			start = now();
			for (at = 0; at < nr; at += nr / 64)
				tables[i].set(at, at + nr / 64, false);
			best = min(best, (now() - start) / 64);
			settle();
		}
		r.value[i] = best;
		tables[i].destroy();
		settle();
	}
	print_row(what, "ns", &r, 1);
}

/* How long every other page takes, one by one. */
static void bench_fragment(const char *what, unsigned long nr)
{
	double best, start;
	struct row r = {};
	int i, run;

	for (i = 0; i < NR_TABLES; i++) {
		best = 1e18;
		for (run = 0; run < RUNS; run++) {
			tables[i].create(nr);
			start = now();
			fill(&tables[i], nr, 2);
			best = min(best, (now() - start) / (nr / 2));
			settle();
			tables[i].destroy();
			settle();
		}
		r.value[i] = best;
	}
	print_row(what, "ns", &r, 1);
}

/* The largest file there is.  The xarray would take an entry for each page. */
static void bench_largest(void)
{
	unsigned long nr = LLONG_MAX / (1 << PAGE_SHIFT) + 1;
	struct row whole = {}, one = {}, memory = {};
	double best[2], start, passed;
	int i, run;

	for (i = STATE; i <= MAPLE; i++) {
		best[0] = 1e18;
		best[1] = 1e18;
		tables[i].create(nr);
		for (run = 0; run < 1000; run++) {
			start = now();
			tables[i].set(0, nr, true);
			passed = now() - start;
			best[0] = min(best[0], passed);

			start = now();
			tables[i].set(nr / 2 + 1, nr / 2 + 2, false);
			passed = now() - start;
			best[1] = min(best[1], passed);
			if (!run) {
				settle();
				memory.value[i] = tables[i].memory();
			}
			tables[i].set(0, nr, false);
		}
		whole.value[i] = best[0];
		one.value[i] = best[1];
		tables[i].destroy();
		settle();
	}

	print_row("8 EiB: set all", "ns", &whole, 0);
	print_row("8 EiB: clear a page in the middle", "ns", &one, 0);
	print_row("8 EiB: memory, for that page", "bytes", &memory, 0);
}

int main(void)
{
	const unsigned long gib = 1ul << (30 - PAGE_SHIFT);
	double overhead;

	rcu_register_thread();
	maple_tree_init();
	bench_xarray_init();
	overhead = nothing_lookup(gib);

	printf("%-42s %12s %12s %12s %-5s %8s %8s %5s\n", "", "state", "maple", "xarray", "",
	       "maple/st", "xarr/st", "goal");
	bench_lookup("1 GiB, uniform", gib, 0, overhead, 0);
	bench_lookup("1 TiB, uniform", gib * 1024, 0, overhead, 0);
	bench_lookup("1 GiB, one in 64 pages private", gib, 64, overhead, 0);
	bench_lookup("1 GiB, every other page", gib, 2, overhead, 60);
	bench_lookup("16 GiB, every other page", gib * 16, 2, overhead, 60);

	bench_both_bits("1 GiB, every other page, both bits: a page", gib);

	bench_set("1 GiB, uniform: set 4 KiB", gib, 0, 1, 1, 99, 10000);
	bench_set("1 GiB, uniform: set 64 KiB", gib, 0, 16, 16, 48, 10000);
	bench_set("1 GiB, uniform: set 1 MiB, unaligned", gib, 0, 99, 256, 300, 1000);
	bench_set("1 GiB, uniform: set 2 MiB", gib, 0, 512, 512, 512, 1000);
	bench_set("1 GiB, uniform: set 16 MiB, unaligned", gib, 0, 99, 4096, 4096, 100);
	bench_set("1 GiB, one in 4096: set 4 KiB", gib, 4096, 1, 1, 99, 10000);
	bench_set("1 GiB, one in 4096: set 64 KiB", gib, 4096, 16, 16, 48, 10000);
	bench_set("1 GiB, one in 4096: set 2 MiB", gib, 4096, 512, 512, 4096, 64);
	bench_set("1 GiB, one in 64: set 4 KiB", gib, 64, 1, 1, 64, 4096);
	bench_set("1 GiB, every other page: set 4 KiB", gib, 2, 1, 1, 98, 2000);
	bench_set_over("1 GiB, every other page: set 16 MiB", gib);
	bench_fragment("1 GiB: set every other page, each", gib);
	bench_largest();

	printf("state table: %d goals missed\n", missed);
	rcu_unregister_thread();
	return 0;
}
