// SPDX-License-Identifier: GPL-2.0
/*
 * lib/xarray.c for bench.c, without the debugging that tools/testing/shared
 * turns on; and the cache of its nodes, which is lib/radix-tree.c's.
 */
#include "shared.h"
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "../../../../lib/xarray.c"

struct kmem_cache *radix_tree_node_cachep;

void radix_tree_node_rcu_free(struct rcu_head *head)
{
	struct xa_node *node = container_of(head, struct xa_node, rcu_head);

	memset(node->slots, 0, sizeof(node->slots));
	memset(node->tags, 0, sizeof(node->tags));
	INIT_LIST_HEAD(&node->private_list);
	kmem_cache_free(radix_tree_node_cachep, node);
}

static void init_node(void *node)
{
	memset(node, 0, sizeof(struct xa_node));
	INIT_LIST_HEAD(&((struct xa_node *)node)->private_list);
}

void bench_xarray_init(void)
{
	struct kmem_cache_args args = { .ctor = init_node };

	radix_tree_node_cachep = __kmem_cache_create_args("radix_tree_node",
							  sizeof(struct xa_node), &args, 0);
}
