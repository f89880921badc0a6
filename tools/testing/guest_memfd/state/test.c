// SPDX-License-Identifier: GPL-2.0
/*
 * test: state.c against its KUnit suite, a model, and readers in other threads.
 *
 *   test kunit		the suite that the kernel runs
 *   test random OPS	as many random operations, each compared with the model
 *   test readers MS	threads look while one writes, for as many milliseconds
 *
 * SEED=N in the environment repeats a run of the first two; the seed is printed.
 * PMD_ORDER and PUD_ORDER are fixed when this is compiled.
 */
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "kunit.h"
#include "../../../../virt/kvm/guest_memfd/tests/state_model.h"

static u64 seed;

u64 get_random_u64(void)
{
	return seed;
}

/* kunit */

void *kunit_kzalloc(struct kunit *test, size_t size, unsigned int gfp)
{
	void *p = calloc(1, size);

	assert(p && gfp == GFP_KERNEL && test->nr_memory < ARRAY_SIZE(test->memory));
	test->memory[test->nr_memory++] = p;
	return p;
}

void kunit_fail(struct kunit *test, const char *fmt, ...)
{
	va_list ap;

	test->failed = true;
	printf("# ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
}

static bool run_case(const struct kunit_case *c)
{
	struct kunit test = {};

	if (!setjmp(test.abort)) {
		assert(!the_suite->init(&test));
		c->run_case(&test);
	}
	the_suite->exit(&test);
	shim_rcu_barrier();

	while (test.nr_memory)
		free(test.memory[--test.nr_memory]);
	if (shim_nr_objects())
		KUNIT_FAIL(&test, "%s leaks %ld nodes", c->name, shim_nr_objects());
	if (test.failed)
		printf("# %s failed\n", c->name);
	return !test.failed;
}

static bool run_kunit(void)
{
	const struct kunit_case *c;
	unsigned int nr = 0;
	bool good = true;

	for (c = the_suite->test_cases; c->run_case; c++, nr++)
		good &= run_case(c);

	printf("# %u cases, SEED=%llu\n", nr, seed);
	return good;
}

/* random */

#define OPS_PER_TABLE	2000

static bool run_random(unsigned long ops)
{
	struct gmem_model m = {
		.seed		= seed,
		.fail_nth	= shim_fail_nth,
		.nr_objects	= shim_nr_objects,
	};
	unsigned long done = 0, tables = 0, i;
	bool good = true;

	while (good && done < ops) {
		model_init(&m);
		for (i = 0; i < OPS_PER_TABLE && model_step(&m); i++)
			;
		good = model_destroy(&m);
		done += i;
		tables++;
	}
	shim_rcu_barrier();

	if (!good)
		printf("# after %lu operations: %s\n", done, m.error);
	printf("# %lu operations on %lu tables, up to %ld nodes, %lu without memory, SEED=%llu\n",
	       done, tables, m.max_nodes, m.nr_failed, seed);
	return good;
}

/*
 * readers
 *
 * One thread makes all pages private in ascending order, then shared, and so on.
 * It announces a write before it begins and after it has ended.  A page that was
 * behind the writer before it was looked up must be new, a page that was before
 * it afterwards must be old, and so must all pages in the span or run that a
 * lookup claims to be alike.  The other bit changes at random: its readers can
 * only see what is not freed in time.
 */
#define NR_READERS	3

static struct gmem_state st;
static bool stop;
/* The sweep in the upper half; in the lower, the first page not written. */
#define position(sweep, index)	((u64)(sweep) << 32 | (index))
static u64 begun = position(1, 0), ended = position(1, 0);

static void write_range(pgoff_t start, pgoff_t end, unsigned long mask,
			unsigned long bits)
{
	struct gmem_state_change c;

	assert(!gmem_state_prepare(&st, &c, start, end, mask, bits));
	gmem_state_commit(&st, &c);
}

static void *write_all(void *arg)
{
	struct gmem_model m = { .seed = seed };
	unsigned long *nr_writes = arg;
	pgoff_t start, end, a, b;
	unsigned int sweep;

	/* A prime: not at the same place over and over. */
	shim_stumble_every = 1009;

	for (sweep = 1; !__atomic_load_n(&stop, __ATOMIC_RELAXED); sweep++) {
		__atomic_store_n(&begun, position(sweep, 0), __ATOMIC_SEQ_CST);
		__atomic_store_n(&ended, position(sweep, 0), __ATOMIC_SEQ_CST);

		for (start = 0; start < st.nr_pages; start = end) {
			end = 1 + model_below(&m, BIT(model_below(&m, PMD_ORDER + 3)));
			end = min(start + end, st.nr_pages);

			/* Exchange: no store of the write may overtake it. */
			__atomic_exchange_n(&begun, position(sweep, end), __ATOMIC_SEQ_CST);
			write_range(start, end, GMEM_PRIVATE, sweep & 1 ? GMEM_PRIVATE : 0);
			__atomic_store_n(&ended, position(sweep, end), __ATOMIC_SEQ_CST);

			a = model_below(&m, st.nr_pages);
			b = model_below(&m, st.nr_pages);
			write_range(min(a, b), max(a, b) + 1, GMEM_OWNED,
				    model_below(&m, 2) ? GMEM_OWNED : 0);
			*nr_writes += 2;
		}
	}

	return NULL;
}

static void must(bool condition, const char *what, pgoff_t index)
{
	if (condition)
		return;

	printf("# page %#lx: %s\n", index, what);
	fflush(stdout);
	abort();
}

static void *read_all(void *arg)
{
	struct gmem_model m = { .seed = seed + (uintptr_t)arg };
	pgoff_t index, first, next, low, high;
	unsigned long private, bits, seen;
	unsigned long nr_facts = 0;
	unsigned int order;
	u64 before, after;

	/* One runs at full speed. */
	if ((uintptr_t)arg > 1)
		shim_stumble_every = 61;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		/* Look close to the writer more often than not. */
		before = __atomic_load_n(&ended, __ATOMIC_SEQ_CST);
		index = model_below(&m, st.nr_pages);
		if (model_below(&m, 4)) {
			index = (u32)before + model_below(&m, BIT(PMD_ORDER));
			index -= min(index, BIT(PMD_ORDER - 1));
			index = min(index, st.nr_pages - 1);
		}

		if (model_below(&m, 2)) {
			bits = gmem_state_get(&st, index, GMEM_PRIVATE, &order);
			first = round_down(index, BIT(order));
			next = min(first + BIT(order), st.nr_pages);
		} else {
			first = index;
			next = gmem_state_run(&st, index, GMEM_PRIVATE, &bits);
			must(next > index && next <= st.nr_pages, "impossible run", index);
		}
		after = __atomic_fetch_add(&begun, 0, __ATOMIC_SEQ_CST);

		seen = gmem_state_get(&st, index, MODEL_ALL_BITS, &order);
		must(!(seen & ~MODEL_ALL_BITS) && order <= st.order, "impossible state", index);
		must(!(bits & ~GMEM_PRIVATE), "bits that nobody asked for", index);

		/* The writer has begun anew meanwhile. */
		if (before >> 32 != after >> 32)
			continue;

		private = before >> 32 & 1 ? GMEM_PRIVATE : 0;
		low = (u32)before;
		high = (u32)after;
		if (bits == private)
			must(next <= high, "new, but not written yet", index);
		else
			must(first >= low, "old, but written already", index);
		nr_facts++;
	}

	return (void *)nr_facts;
}

static bool run_readers(unsigned long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
	unsigned long nr_writes = 0, nr_facts = 0;
	pthread_t writer, readers[NR_READERS];
	void *nr;
	int i;

	gmem_state_init(&st, 3 * BIT(PMD_ORDER + MODEL_STEP) / 2 + 1, 0);
	if (st.nr_pages > 16 * BIT(PMD_ORDER))
		st.nr_pages = 16 * BIT(PMD_ORDER) + 1;

	pthread_create(&writer, NULL, write_all, &nr_writes);
	for (i = 0; i < NR_READERS; i++)
		pthread_create(&readers[i], NULL, read_all, (void *)(uintptr_t)(i + 1));

	nanosleep(&time, NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);

	pthread_join(writer, NULL);
	for (i = 0; i < NR_READERS; i++) {
		pthread_join(readers[i], &nr);
		nr_facts += (uintptr_t)nr;
	}

	printf("# %lu writes, %lu lookups judged\n", nr_writes, nr_facts);
	assert(gmem_state_check(&st) >= 0);
	gmem_state_destroy(&st);
	shim_rcu_barrier();
	return nr_writes && nr_facts && !shim_nr_objects();
}

int main(int argc, char **argv)
{
	const char *env = getenv("SEED"), *what = argc > 1 ? argv[1] : "";
	unsigned long amount = argc > 2 ? strtoul(argv[2], NULL, 0) : 1000;
	bool good;

	seed = env && *env ? strtoull(env, NULL, 0) : (u64)time(NULL) << 20 ^ getpid();
	/* What aborts should still tell its seed. */
	fprintf(stderr, "SEED=%llu\n", seed);

	if (!strcmp(what, "kunit"))
		good = run_kunit();
	else if (!strcmp(what, "random"))
		good = run_random(amount);
	else if (!strcmp(what, "readers"))
		good = run_readers(amount);
	else
		return 2;

	return !good;
}
