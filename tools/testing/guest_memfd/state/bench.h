/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What state.c uses of the kernel, for bench.c: tools/testing/shared, and what
 * is missing there.
 */
#ifndef GMEM_STATE_BENCH_H
#define GMEM_STATE_BENCH_H

#include <assert.h>

#include "shared.h"
#include <linux/rcupdate.h>
#include <linux/slab.h>

/* PMD_ORDER and PUD_ORDER come from the command line. */
#define MAX_LFS_FILESIZE	LLONG_MAX

#define __rcu
#ifndef __force
#define __force
#endif
#define pgoff_t			unsigned long

#ifndef GFP_KERNEL_ACCOUNT
#define GFP_KERNEL_ACCOUNT	GFP_KERNEL
#endif
#define cond_resched()		do { } while (0)
#define might_sleep()		do { } while (0)

static inline void *memset_p(void **p, void *v, size_t n)
{
	while (n--)
		p[n] = v;
	return p;
}

/* Counts bytes, and places objects as the kernel's does: aligned to their size. */
void *bench_kmalloc(size_t size);
void bench_kfree(void *p);
void kvfree_rcu_mightsleep(void *p);

/* For bench.c: objects of the maple tree or of the xarray, and other beginnings. */
extern int nr_allocated, kmalloc_nr_allocated;
void maple_tree_init(void);
void bench_xarray_init(void);

#define kmalloc(size, gfp)	((void)(gfp), bench_kmalloc(size))
#define kfree(p)		bench_kfree(p)

#endif /* GMEM_STATE_BENCH_H */
