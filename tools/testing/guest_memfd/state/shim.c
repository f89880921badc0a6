// SPDX-License-Identifier: GPL-2.0
/*
 * Memory and RCU for state.c in user space, see shim.h.
 */
#include <malloc.h>
#include <pthread.h>
#include <sched.h>

#include "shim.h"

static unsigned int fail_nth;
static long nr_objects;

void shim_fail_nth(unsigned int nth)
{
	fail_nth = nth;
}

long shim_nr_objects(void)
{
	return __atomic_load_n(&nr_objects, __ATOMIC_RELAXED);
}

void *kmalloc(size_t size, gfp_t gfp)
{
	void *p;

	/* Memory that a guest can make the host allocate has to be charged. */
	assert((gfp | __GFP_NOFAIL) == (GFP_KERNEL_ACCOUNT | __GFP_NOFAIL));
	might_sleep();

	if (!(gfp & __GFP_NOFAIL) && fail_nth && !--fail_nth)
		return NULL;

	p = malloc(size);
	assert(p);
	memset(p, 0x5a, size);
	__atomic_add_fetch(&nr_objects, 1, __ATOMIC_RELAXED);
	return p;
}

static void poison_and_free(void *p)
{
	memset(p, 0x6b, malloc_usable_size(p));
	/* Keep the compiler from dropping that. */
	__asm__ volatile("" : : "r" (p) : "memory");
	free(p);
}

void kfree(void *p)
{
	__atomic_sub_fetch(&nr_objects, 1, __ATOMIC_RELAXED);
	poison_and_free(p);
}

__thread unsigned int shim_stumble_every;
static __thread unsigned int steps;

void __shim_stumble(void)
{
	if (++steps % shim_stumble_every == 0)
		sched_yield();
}

/*
 * Time goes on when something is freed.  A reader notes the time at which it
 * comes.  What was freed at a time can still be seen by who came before.
 */
#define MAX_READERS	64

static u64 now = 1;
static u64 came[MAX_READERS];
static unsigned int nr_readers;

__thread unsigned int shim_rcu_nesting;
static __thread u64 *my_came;

static struct waiting {
	struct waiting *next;
	void *p;
	u64 freed;
} *waiting;
static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;

void rcu_read_lock(void)
{
	unsigned int nr;

	if (shim_rcu_nesting++)
		return;

	if (!my_came) {
		nr = __atomic_fetch_add(&nr_readers, 1, __ATOMIC_SEQ_CST);
		assert(nr < MAX_READERS);
		my_came = &came[nr];
	}

	/*
	 * A full barrier: either kvfree_rcu_mightsleep() finds this reader, or
	 * this reader finds what was unlinked before that.
	 */
	__atomic_exchange_n(my_came, __atomic_load_n(&now, __ATOMIC_SEQ_CST),
			    __ATOMIC_SEQ_CST);
}

void rcu_read_unlock(void)
{
	assert(shim_rcu_nesting);
	if (--shim_rcu_nesting)
		return;

	__atomic_store_n(my_came, 0, __ATOMIC_RELEASE);
	shim_stumble();
}

static u64 oldest_reader(void)
{
	unsigned int i, nr = __atomic_load_n(&nr_readers, __ATOMIC_SEQ_CST);
	u64 time, oldest = ULLONG_MAX;

	for (i = 0; i < nr; i++) {
		/* Again a full barrier, and all that a reader did is over. */
		time = __atomic_fetch_add(&came[i], 0, __ATOMIC_SEQ_CST);
		if (time && time < oldest)
			oldest = time;
	}

	return oldest;
}

/* Free what no reader can see anymore. */
static void drain(void)
{
	u64 oldest = oldest_reader();
	struct waiting **at, *w;

	for (at = &waiting; (w = *at);) {
		if (w->freed > oldest) {
			at = &w->next;
			continue;
		}

		*at = w->next;
		poison_and_free(w->p);
		free(w);
	}
}

void kvfree_rcu_mightsleep(void *p)
{
	struct waiting *w;

	might_sleep();
	__atomic_sub_fetch(&nr_objects, 1, __ATOMIC_RELAXED);

	w = malloc(sizeof(*w));
	assert(w);
	w->p = p;
	w->freed = __atomic_add_fetch(&now, 1, __ATOMIC_SEQ_CST);

	pthread_mutex_lock(&waiting_lock);
	w->next = waiting;
	waiting = w;
	drain();
	pthread_mutex_unlock(&waiting_lock);
}

void shim_rcu_barrier(void)
{
	pthread_mutex_lock(&waiting_lock);
	drain();
	assert(!waiting);
	pthread_mutex_unlock(&waiting_lock);
}
