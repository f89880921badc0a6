// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd state: which pages are private, which ones the guest owns, and which
 * ones are memory of blocks.
 *
 * Owns: struct gmem_state.  It has a radix tree for each GMEM_* bit, with the
 * geometry of the page tables that are filled from it.
 *
 *   span   An aligned power of two of indices.
 *   word   What is known of a bit in a span: a value, which all indices of the
 *          span have, or a pointer to a node.
 *   node   A leaf, the bitmap of a span of PMD_ORDER; or a table, the words for
 *          equal parts of a larger span.
 *
 * S1  A node has both values in it.  What is uniform is a value, as far up as
 *     it is; so the level that answers a lookup gives the order.
 * S2  A node is complete before a reader can find it.  From then on it changes
 *     by single stores, each of which takes pages from their old value straight
 *     to the new one.  It is freed a grace period after it was unlinked, and
 *     nothing is put over it before: no link, no rcu_head.
 * S3  Indices behind the last one are equal to it, so that a size that is no
 *     multiple of anything does not keep the end of a file from being uniform.
 *
 * Writers of a bit exclude each other by a lock of the caller's, see struct
 * gmem_inode.  Readers hold nothing but the RCU read lock, which is taken here.
 *
 * Only gmem_state_prepare() can fail.  A change of one bit adds a node where it
 * covers a part of a uniform span.  Such a span has an edge of the range strictly
 * inside.  There are two edges, so two nodes per level at most, and one in the
 * first: 2 * levels - 1, each of a page or less.  The largest file has 6 levels
 * with 4K pages.  Likewise, a level never has more nodes than a bit has changes
 * of value from one index to the next.
 *
 * Why not an xarray: an inode never grows, so the depth is known from the start;
 * and a mixed block should cost its bitmap and no more.  Why a tree for each
 * bit: a block that is mixed in one bit should not pay for all, nor should the
 * order of one bit depend on the other.
 *
 * Include no mm and no KVM here: this compiles in user space too.
 *
 * Tests: tests/state_kunit.c; in user space, tools/testing/guest_memfd/state/.
 */
#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/build_bug.h>
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "state.h"

/* A page's worth of words.  Where the PUD is folded, as many as there are PTEs. */
#define TABLE_ORDER	(PUD_ORDER - PMD_ORDER ?: PMD_ORDER)
#define TABLE_WORDS	BIT(TABLE_ORDER)
#define LEAF_BITS	BIT(PMD_ORDER)

/* For BIT(gmem_state.order), of which TABLE_ORDER - 1 may be more than needed. */
static_assert(63 - PAGE_SHIFT + TABLE_ORDER <= BITS_PER_LONG);

struct gmem_leaf {
	unsigned long map[BITS_TO_LONGS(LEAF_BITS)];
};

struct gmem_table {
	void __rcu *word[TABLE_WORDS];
};

static void *word_of(bool value)
{
	return (void *)(value ? 3UL : 1UL);
}

static bool word_is_value(const void *word)
{
	return (unsigned long)word & 1;
}

/* For writers, who are alone. */
static void *word_get(void __rcu * const *at)
{
	return rcu_dereference_protected(*at, true);
}

/* Find the word that knows about @index: a value or a leaf, of a span of @order. */
static void *word_find(void __rcu * const *root, pgoff_t index,
		       unsigned int *order)
{
	void *word = rcu_dereference(*root);
	struct gmem_table *table;

	while (!word_is_value(word) && *order > PMD_ORDER) {
		table = word;
		*order -= TABLE_ORDER;
		word = rcu_dereference(table->word[(index >> *order) % TABLE_WORDS]);
	}

	return word;
}

static bool leaf_test(const struct gmem_leaf *leaf, unsigned int bit)
{
	return READ_ONCE(leaf->map[BIT_WORD(bit)]) & BIT_MASK(bit);
}

unsigned long gmem_state_get(const struct gmem_state *st, pgoff_t index,
			     unsigned long mask, unsigned int *order)
{
	unsigned int nr, span, uniform = st->order;
	unsigned long bits = 0;
	bool value;
	void *word;

	rcu_read_lock();

	for_each_set_bit(nr, &mask, GMEM_STATE_NR_BITS) {
		span = st->order;
		word = word_find(&st->root[nr], index, &span);
		if (word_is_value(word)) {
			value = word == word_of(true);
		} else {
			value = leaf_test(word, index % LEAF_BITS);
			span = 0;
		}

		if (value)
			bits |= BIT(nr);
		uniform = min(uniform, span);
	}

	rcu_read_unlock();

	if (order)
		*order = uniform;
	return bits;
}

/* Read no long of the bitmap twice: what is found must be a run, if an old one. */
static unsigned int leaf_run(const struct gmem_leaf *leaf, unsigned int first,
			     bool *value)
{
	unsigned long i = BIT_WORD(first), map, flip, differ;

	map = READ_ONCE(leaf->map[i]);
	*value = map & BIT_MASK(first);
	flip = *value ? ~0UL : 0;

	differ = (map ^ flip) & BITMAP_FIRST_WORD_MASK(first);
	while (!differ && ++i < ARRAY_SIZE(leaf->map))
		differ = READ_ONCE(leaf->map[i]) ^ flip;

	if (!differ)
		return LEAF_BITS;
	return min(i * BITS_PER_LONG + __ffs(differ), LEAF_BITS);
}

pgoff_t gmem_state_run(const struct gmem_state *st, pgoff_t index,
		       unsigned long mask, unsigned long *bits)
{
	pgoff_t base, end = st->nr_pages;
	unsigned int nr, order;
	unsigned long run;
	bool value;
	void *word;

	*bits = 0;
	rcu_read_lock();

	for_each_set_bit(nr, &mask, GMEM_STATE_NR_BITS) {
		order = st->order;
		word = word_find(&st->root[nr], index, &order);
		base = round_down(index, BIT(order));
		if (word_is_value(word)) {
			value = word == word_of(true);
			run = BIT(order);
		} else {
			run = leaf_run(word, index - base, &value);
		}

		if (value)
			*bits |= BIT(nr);
		end = min(end, base + run);
	}

	rcu_read_unlock();
	return end;
}

static bool node_is_uniform(void *node, unsigned int order, bool value)
{
	struct gmem_table *table = node;
	struct gmem_leaf *leaf = node;
	void *want = word_of(value);
	unsigned long i;

	if (order == PMD_ORDER)
		return value ? bitmap_full(leaf->map, LEAF_BITS) :
			       bitmap_empty(leaf->map, LEAF_BITS);

	for (i = 0; i < TABLE_WORDS && word_get(&table->word[i]) == want; i++)
		;
	return i == TABLE_WORDS;
}

/* Reserve and take nodes without further order: those of one kind are alike. */
static bool reserve(struct gmem_state_change *c, unsigned int order)
{
	bool is_leaf = order == PMD_ORDER;
	void **list = is_leaf ? &c->leaves : &c->tables;
	void **node;

	node = kmalloc(is_leaf ? sizeof(struct gmem_leaf) : sizeof(struct gmem_table),
		       GFP_KERNEL_ACCOUNT | c->gfp);
	if (!node)
		return false;

	*node = *list;
	*list = node;
	return true;
}

static void *take(void **list)
{
	void **node = *list;

	*list = *node;
	return node;
}

/* Take a node that says the same as the value @word. */
static void *take_node(struct gmem_state_change *c, unsigned int order, void *word)
{
	struct gmem_table *table;
	struct gmem_leaf *leaf;

	if (order == PMD_ORDER) {
		leaf = take(&c->leaves);
		memset(leaf, word == word_of(true) ? 0xff : 0, sizeof(*leaf));
		return leaf;
	}

	table = take(&c->tables);
	memset_p((__force void **)table->word, word, TABLE_WORDS);
	return table;
}

/*
 * Reserve the nodes that word_set() will take for the same arguments.  @word is
 * what it will find: a value also stands for its equal parts.
 */
static bool word_reserve(struct gmem_state_change *c, void *word,
			 unsigned int order, unsigned long start,
			 unsigned long end, bool value)
{
	bool split = word_is_value(word);
	struct gmem_table *table = word;
	unsigned long i, last, base;
	unsigned int part;

	if (word == word_of(value) || end - start == BIT(order))
		return true;

	if (split && !reserve(c, order))
		return false;

	if (order == PMD_ORDER)
		return true;

	/* Skip what is between the first word and the last: it is not split. */
	part = order - TABLE_ORDER;
	last = (end - 1) >> part;
	for (i = start >> part; i <= last; i += max(last - i, 1UL)) {
		base = i << part;
		if (!word_reserve(c, split ? word : word_get(&table->word[i]), part,
				  max(start, base) - base,
				  min(end - base, BIT(part)), value))
			return false;
	}

	return true;
}

/* Free all nodes of a word that no reader finds anymore. */
static void retire(void *word, unsigned int order)
{
	struct gmem_table *table = word;
	unsigned long i;

	if (word_is_value(word))
		return;

	/* The table itself comes last: its words are still needed here. */
	if (order > PMD_ORDER) {
		for (i = 0; i < TABLE_WORDS; i++)
			retire(word_get(&table->word[i]), order - TABLE_ORDER);
	}

	kvfree_rcu_mightsleep(word);
	cond_resched();
}

static void leaf_set(struct gmem_leaf *leaf, unsigned long start,
		     unsigned long end, bool value)
{
	unsigned long i, mask, first = BIT_WORD(start), last = BIT_WORD(end - 1);

	for (i = first; i <= last; i++) {
		mask = ~0UL;
		if (i == first)
			mask &= BITMAP_FIRST_WORD_MASK(start);
		if (i == last)
			mask &= BITMAP_LAST_WORD_MASK(end);

		WRITE_ONCE(leaf->map[i], value ? leaf->map[i] | mask :
						 leaf->map[i] & ~mask);
	}
}

/*
 * Write to all or a part of the span of the word at @at.  @start and @end are
 * relative to the span.  Calls itself, once per level at most.
 */
static void word_set(struct gmem_state_change *c, void __rcu **at,
		     unsigned int order, unsigned long start, unsigned long end,
		     bool value)
{
	void *word = word_get(at), *node = word;
	bool split = word_is_value(word);
	struct gmem_table *table;
	unsigned long i, base;
	unsigned int part;

	if (word == word_of(value))
		return;

	if (end - start == BIT(order)) {
		rcu_assign_pointer(*at, word_of(value));
		retire(word, order);
		return;
	}

	if (split)
		node = take_node(c, order, word);

	if (order == PMD_ORDER) {
		leaf_set(node, start, end, value);
	} else {
		table = node;
		part = order - TABLE_ORDER;
		for (i = start >> part; i <= (end - 1) >> part; i++) {
			base = i << part;
			word_set(c, &table->word[i], part,
				 max(start, base) - base,
				 min(end - base, BIT(part)), value);
		}
	}

	/* Covered in part, a new node has the old value and @value: both (S1). */
	if (split) {
		rcu_assign_pointer(*at, node);
	} else if (node_is_uniform(node, order, value)) {
		/* There are no nodes below it. */
		rcu_assign_pointer(*at, word_of(value));
		kvfree_rcu_mightsleep(node);
	}
}

void gmem_state_init(struct gmem_state *st, pgoff_t nr_pages,
		     unsigned long bits)
{
	unsigned int nr;

	st->nr_pages = nr_pages;
	st->order = PMD_ORDER;
	while (BIT(st->order) < nr_pages)
		st->order += TABLE_ORDER;

	for (nr = 0; nr < GMEM_STATE_NR_BITS; nr++)
		RCU_INIT_POINTER(st->root[nr], word_of(bits & BIT(nr)));
}

void gmem_state_destroy(struct gmem_state *st)
{
	struct gmem_state_change c;

	/* A uniform table needs no memory: neither to be, nor to become one. */
	gmem_state_prepare(st, &c, 0, st->nr_pages, ~0UL, 0);
	gmem_state_commit(st, &c);
}

static int prepare(const struct gmem_state *st, struct gmem_state_change *c)
{
	unsigned int nr;

	might_sleep();

	/* Include what is behind the last index (S3). */
	if (c->end == st->nr_pages)
		c->end = BIT(st->order);

	for_each_set_bit(nr, &c->mask, GMEM_STATE_NR_BITS) {
		if (!word_reserve(c, word_get(&st->root[nr]), st->order, c->start,
				  c->end, c->bits & BIT(nr))) {
			gmem_state_abort(c);
			return -ENOMEM;
		}
	}

	return 0;
}

int gmem_state_prepare(const struct gmem_state *st, struct gmem_state_change *c,
		       pgoff_t start, pgoff_t end,
		       unsigned long mask, unsigned long bits)
{
	*c = (struct gmem_state_change) {
		.start	= start,
		.end	= end,
		.mask	= mask,
		.bits	= bits,
	};

	return prepare(st, c);
}

void gmem_state_commit(struct gmem_state *st, struct gmem_state_change *c)
{
	unsigned int nr;

	might_sleep();

	for_each_set_bit(nr, &c->mask, GMEM_STATE_NR_BITS)
		word_set(c, &st->root[nr], st->order, c->start, c->end,
			 c->bits & BIT(nr));

	/* Not so if the table has changed since the change was prepared. */
	WARN_ON_ONCE(c->leaves || c->tables);
}

void gmem_state_set(struct gmem_state *st, pgoff_t start, pgoff_t end,
		    unsigned long mask, unsigned long bits)
{
	struct gmem_state_change c = {
		.start	= start,
		.end	= end,
		.mask	= mask,
		.bits	= bits,
		.gfp	= __GFP_NOFAIL,
	};

	prepare(st, &c);
	gmem_state_commit(st, &c);
}

void gmem_state_abort(struct gmem_state_change *c)
{
	while (c->leaves)
		kfree(take(&c->leaves));
	while (c->tables)
		kfree(take(&c->tables));
}

#if IS_ENABLED(CONFIG_KVM_GUEST_MEMFD_KUNIT_TEST)
/* Count the nodes of a word, all of which have to be as S1 says. */
static long word_check(void *word, unsigned int order)
{
	struct gmem_table *table = word;
	unsigned long i;
	long nr = 1, ret;

	if (word == word_of(false) || word == word_of(true))
		return 0;

	if (!word || word_is_value(word) || node_is_uniform(word, order, false) ||
	    node_is_uniform(word, order, true))
		return -EINVAL;

	for (i = 0; order > PMD_ORDER && i < TABLE_WORDS; i++) {
		ret = word_check(word_get(&table->word[i]), order - TABLE_ORDER);
		if (ret < 0)
			return ret;
		nr += ret;
	}

	cond_resched();
	return nr;
}

/* Does what the table says of all indices behind the last match that one (S3)? */
static bool tail_is_uniform(const struct gmem_state *st)
{
	struct gmem_state all = *st;
	unsigned long bits, tail;
	pgoff_t index;

	all.nr_pages = BIT(st->order);
	index = gmem_state_run(&all, st->nr_pages - 1, ~0UL, &bits);
	while (index < all.nr_pages) {
		index = gmem_state_run(&all, index, ~0UL, &tail);
		if (tail != bits)
			return false;
	}

	return true;
}

long gmem_state_check(const struct gmem_state *st)
{
	unsigned int nr;
	long sum = 0, ret;

	for (nr = 0; nr < GMEM_STATE_NR_BITS; nr++) {
		ret = word_check(word_get(&st->root[nr]), st->order);
		if (ret < 0)
			return ret;
		sum += ret;
	}

	return tail_is_uniform(st) ? sum : -EINVAL;
}
#endif
