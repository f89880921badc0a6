// SPDX-License-Identifier: GPL-2.0
/*
 * lib/maple_tree.c for bench.c: like tools/testing/shared/maple-shim.c, without
 * the debugging that this turns on.
 */
#include "maple-shared.h"
#undef CONFIG_DEBUG_MAPLE_TREE
#include <linux/slab.h>

#include "../../../../lib/maple_tree.c"

void maple_rcu_cb(struct rcu_head *head)
{
	kmem_cache_free(maple_node_cache, container_of(head, struct maple_node, rcu));
}
