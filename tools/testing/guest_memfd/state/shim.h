/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What state.c and its KUnit suite use of the kernel, for user space.
 *
 * The allocator counts, fails when told to, and poisons.  RCU is real: readers
 * announce themselves, and what is freed is handed to free() as soon as every
 * reader of that time has left, so that sanitizers see who comes too late.
 */
#ifndef GMEM_STATE_SHIM_H
#define GMEM_STATE_SHIM_H

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST	1
#define IS_ENABLED(CONFIG_OPTION)		(CONFIG_OPTION)

/* PMD_ORDER and PUD_ORDER come from the command line. */
#define PAGE_SHIFT		12
#define MAX_LFS_FILESIZE	LLONG_MAX

#define u8	unsigned char
#define u32	unsigned int
#define u64	unsigned long long
#define pgoff_t	unsigned long

#define __rcu
#define __force
#define __printf(fmt, args)

#define BITS_PER_LONG		64
#define BIT(nr)			(1UL << (nr))
#define BIT_WORD(nr)		((nr) / BITS_PER_LONG)
#define BIT_MASK(nr)		BIT((nr) % BITS_PER_LONG)
#define BITS_TO_LONGS(nr)	(((nr) + BITS_PER_LONG - 1) / BITS_PER_LONG)
#define hweight_long(word)	((unsigned int)__builtin_popcountl(word))
#define __ffs(word)		((unsigned long)__builtin_ctzl(word))

#define BITMAP_FIRST_WORD_MASK(start)	(~0UL << ((start) % BITS_PER_LONG))
#define BITMAP_LAST_WORD_MASK(bits)	(~0UL >> (-(bits) % BITS_PER_LONG))

/* The bits of a single word, below size: take one at a time. */
static inline bool take_bit(unsigned long *left, unsigned int *bit)
{
	if (!*left)
		return false;

	*bit = __ffs(*left);
	*left &= *left - 1;
	return true;
}

#define for_each_set_bit(bit, map, size)				\
	for (unsigned long __left = *(map) & (BIT(size) - 1);		\
	     take_bit(&__left, &(bit));)

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))
#define round_down(x, size)	((x) & ~((size) - 1))

#define pick(a, b, op)							\
({									\
	__typeof__(a) __a = (a);					\
	__typeof__(b) __b = (b);					\
									\
	(void)(&__a == &__b);						\
	__a op __b ? __a : __b;						\
})
#define min(a, b)		pick(a, b, <)
#define max(a, b)		pick(a, b, >)

static inline void *memset_p(void **p, void *v, size_t n)
{
	while (n--)
		p[n] = v;
	return p;
}

static inline bool bitmap_is(const unsigned long *map, unsigned long bits,
			     unsigned long value)
{
	for (; bits >= BITS_PER_LONG; bits -= BITS_PER_LONG) {
		if (*map++ != value)
			return false;
	}

	return !bits || !((*map ^ value) & BITMAP_LAST_WORD_MASK(bits));
}

#define bitmap_empty(map, bits)	bitmap_is(map, bits, 0)
#define bitmap_full(map, bits)	bitmap_is(map, bits, ~0UL)

/* Let others run where it hurts, once in so many times, if the thread wants it. */
extern __thread unsigned int shim_stumble_every;
void __shim_stumble(void);

static inline void shim_stumble(void)
{
	if (shim_stumble_every)
		__shim_stumble();
}

#define READ_ONCE(x)							\
({									\
	shim_stumble();							\
	__atomic_load_n(&(x), __ATOMIC_RELAXED);			\
})
#define WRITE_ONCE(x, value)						\
do {									\
	__atomic_store_n(&(x), value, __ATOMIC_RELAXED);		\
	shim_stumble();							\
} while (0)

#define WARN_ON_ONCE(condition)	assert(!(condition))
#define cond_resched()		do { } while (0)
#define might_sleep()		assert(!shim_rcu_nesting)

/* RCU */

extern __thread unsigned int shim_rcu_nesting;

void rcu_read_lock(void);
void rcu_read_unlock(void);
void kvfree_rcu_mightsleep(void *p);

#define rcu_dereference(p)						\
({									\
	assert(shim_rcu_nesting);					\
	shim_stumble();							\
	__atomic_load_n(&(p), __ATOMIC_ACQUIRE);			\
})
#define rcu_dereference_protected(p, condition)	((void)(condition), (p))
#define rcu_assign_pointer(p, value)					\
do {									\
	__atomic_store_n(&(p), value, __ATOMIC_RELEASE);		\
	shim_stumble();							\
} while (0)
/* A plain store, so that the thread sanitizer minds if somebody could look. */
#define RCU_INIT_POINTER(p, value)	((p) = (value))

/* Memory */

#define GFP_KERNEL		0
#define GFP_KERNEL_ACCOUNT	1
#define __GFP_NOFAIL		2

#define gfp_t	unsigned int

void *kmalloc(size_t size, gfp_t gfp);
void kfree(void *p);

/* Fail the nth allocation from now; 0 for none. */
void shim_fail_nth(unsigned int nth);
/* Free what waits for readers; there are none. */
void shim_rcu_barrier(void);
/* The number of objects that are neither freed nor waiting for a grace period. */
long shim_nr_objects(void);

#endif /* GMEM_STATE_SHIM_H */
