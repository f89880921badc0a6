/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A naive model of struct gmem_state, and random operations on both.
 *
 * The model is an array: the indices are cut into cells, at places that are of
 * interest or everywhere, and only whole cells are written.  It knows nothing of
 * trees.  What it says of orders and of the number of nodes follows from the
 * runs of equal cells.
 *
 * Used by state_kunit.c, and in user space by tools/testing/guest_memfd/state/,
 * which can replay a failure of either from its seed.
 */
#ifndef __KVM_GMEM_STATE_MODEL_H
#define __KVM_GMEM_STATE_MODEL_H

#include <linux/bitops.h>
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/pgtable.h>

#include "../state.h"

#define MODEL_MAX_CELLS	256
#define MODEL_MAX_PAGES	(1UL << (63 - PAGE_SHIFT))
#define MODEL_ALL_BITS	(BIT(GMEM_STATE_NR_BITS) - 1)
/* The orders at which state.c splits are PMD_ORDER and multiples of this above. */
#define MODEL_STEP	(PUD_ORDER - PMD_ORDER ?: PMD_ORDER)

/**
 * struct gmem_model - a state table, and what it should say
 * @st: under test
 * @nr_cells: how many cells there are
 * @cut: where they begin, and behind the last the number of pages
 * @bits: GMEM_* of each cell
 * @top: the least order of a span that holds all indices
 * @seed: of the random numbers
 * @data: to be used instead of them, until it ends
 * @data_end: where it ends
 * @fail_nth: makes an allocation fail, the nth from now; 0 for none; optional
 * @nr_objects: gives the number of allocated nodes, if known
 * @nr_failed: how often prepare has failed
 * @max_nodes: the largest number of nodes so far
 * @error: what was found wrong first
 */
struct gmem_model {
	struct gmem_state st;

	unsigned int nr_cells;
	pgoff_t cut[MODEL_MAX_CELLS + 1];
	u8 bits[MODEL_MAX_CELLS];
	unsigned int top;

	u64 seed;
	const u8 *data, *data_end;

	void (*fail_nth)(unsigned int nth);
	long (*nr_objects)(void);
	unsigned long nr_failed;
	long max_nodes;
	char error[160];
};

#define model_error(m, ...)						\
({									\
	snprintf((m)->error, sizeof((m)->error), __VA_ARGS__);		\
	false;								\
})

static u64 model_u64(struct gmem_model *m)
{
	u64 x = 0;
	int i;

	if (m->data) {
		for (i = 0; i < 8 && m->data < m->data_end; i++)
			x = x << 8 | *m->data++;
		return x;
	}

	/* A counter with a large odd step, stirred. */
	m->seed += 0x9e3779b97f4a7c15;
	x = m->seed;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/* A number below @limit, which is not 0.  Small ones take one byte of data. */
static unsigned long model_below(struct gmem_model *m, unsigned long limit)
{
	if (m->data && limit <= 256)
		return (m->data < m->data_end ? *m->data++ : 0) % limit;
	return model_u64(m) % limit;
}

static bool model_one_in(struct gmem_model *m, unsigned int n)
{
	return model_below(m, n) == n - 1;
}

/* One of the orders that state.c knows, or 0. */
static unsigned int model_any_order(struct gmem_model *m)
{
	unsigned int nr = 2 + (m->top - PMD_ORDER) / MODEL_STEP;

	nr = model_below(m, nr);
	return nr ? PMD_ORDER + (nr - 1) * MODEL_STEP : 0;
}

static unsigned int model_cell(const struct gmem_model *m, pgoff_t index)
{
	unsigned int low = 0, high = m->nr_cells, mid;

	while (high - low > 1) {
		mid = (low + high) / 2;
		if (m->cut[mid] <= index)
			low = mid;
		else
			high = mid;
	}

	return low;
}

static void model_add_cut(struct gmem_model *m, pgoff_t at)
{
	unsigned int i, nr = m->nr_cells;

	if (!at || at >= m->cut[nr] || nr == MODEL_MAX_CELLS)
		return;

	i = model_cell(m, at);
	if (m->cut[i] == at)
		return;

	memmove(&m->cut[i + 2], &m->cut[i + 1], (nr - i) * sizeof(m->cut[0]));
	m->cut[i + 1] = at;
	m->nr_cells++;
}

/* Cut near multiples of the orders, near the ends, and near other cuts. */
static void model_add_cuts(struct gmem_model *m)
{
	unsigned int nr = 2 + model_below(m, MODEL_MAX_CELLS / 4);
	pgoff_t at, end = m->cut[m->nr_cells];

	while (nr--) {
		switch (model_below(m, 4)) {
		case 0:
			at = model_u64(m) % end;
			break;
		case 1:
			at = end;
			break;
		case 2:
			at = 0;
			break;
		default:
			at = m->cut[model_below(m, m->nr_cells)];
		}

		at = round_down(at, BIT(model_any_order(m)));
		switch (model_below(m, 4)) {
		case 0:
			at += BIT(model_any_order(m));
			break;
		case 1:
			at += model_below(m, 4);
			break;
		case 2:
			at -= model_below(m, 4);
			break;
		}

		model_add_cut(m, at);
	}
}

/* Begin with a table of random size.  It has to be destroyed later. */
static void model_init(struct gmem_model *m)
{
	bool dense = model_one_in(m, 2);
	unsigned int i, bits = model_below(m, 4);
	pgoff_t nr_pages;

	if (dense)
		nr_pages = 1 + model_below(m, MODEL_MAX_CELLS);
	else if (model_one_in(m, 4))
		nr_pages = MODEL_MAX_PAGES - model_below(m, 4);
	else
		nr_pages = 1 + model_u64(m) % BIT(model_below(m, 64 - PAGE_SHIFT));

	for (m->top = PMD_ORDER; nr_pages > BIT(m->top);)
		m->top += MODEL_STEP;

	m->nr_cells = 1;
	m->cut[0] = 0;
	m->cut[1] = nr_pages;
	if (dense) {
		m->nr_cells = nr_pages;
		for (i = 0; i <= nr_pages; i++)
			m->cut[i] = i;
	} else {
		model_add_cuts(m);
	}

	memset(m->bits, bits, sizeof(m->bits));
	m->error[0] = 0;
	gmem_state_init(&m->st, nr_pages, bits);
}

/* Find the pages around a cell that are alike. */
static void model_equal(const struct gmem_model *m, unsigned int cell,
			unsigned int mask, pgoff_t *start, pgoff_t *end)
{
	unsigned int first = cell, next = cell + 1;
	u8 bits = m->bits[cell] & mask;

	while (first > 0 && (m->bits[first - 1] & mask) == bits)
		first--;
	while (next < m->nr_cells && (m->bits[next] & mask) == bits)
		next++;

	*start = m->cut[first];
	*end = m->cut[next];
}

/* The largest order at which all pages around @index, as far as any, are alike. */
static unsigned int model_order(const struct gmem_model *m, pgoff_t index,
				unsigned int mask)
{
	pgoff_t start, end, last = m->cut[m->nr_cells] - 1;
	unsigned int order;

	model_equal(m, model_cell(m, index), mask, &start, &end);

	for (order = m->top; order >= PMD_ORDER; order -= MODEL_STEP) {
		if (round_down(index, BIT(order)) >= start &&
		    min(index | (BIT(order) - 1), last) < end)
			return order;
		if (order < MODEL_STEP)
			break;
	}

	return 0;
}

/* How many spans have both values of a bit in them?  Each is a node. */
static long model_count_nodes(const struct gmem_model *m)
{
	unsigned int bit, order, i;
	pgoff_t span, last;
	long sum = 0;

	for (bit = 0; bit < GMEM_STATE_NR_BITS; bit++) {
		for (order = PMD_ORDER; order <= m->top; order += MODEL_STEP) {
			last = -1;
			for (i = 1; i < m->nr_cells; i++) {
				if (!((m->bits[i] ^ m->bits[i - 1]) & BIT(bit)) ||
				    !(m->cut[i] % BIT(order)))
					continue;

				span = m->cut[i] >> order;
				sum += span != last;
				last = span;
			}
		}
	}

	return sum;
}

static bool model_get(struct gmem_model *m, pgoff_t index, unsigned int mask)
{
	unsigned int order, expected_order = model_order(m, index, mask);
	unsigned long bits, expected = m->bits[model_cell(m, index)] & mask;

	bits = gmem_state_get(&m->st, index, mask, &order);
	if (bits != expected || order != expected_order)
		return model_error(m, "get(%#lx, %#x) is %#lx, order %u, not %#lx, order %u",
				   index, mask, bits, order, expected, expected_order);

	if (gmem_state_get(&m->st, index, mask, NULL) != bits)
		return model_error(m, "get(%#lx, %#x) depends on order", index, mask);

	return true;
}

static bool model_run(struct gmem_model *m, pgoff_t index, unsigned int mask)
{
	unsigned int bit, order, cell = model_cell(m, index);
	pgoff_t end, start, expected = m->cut[m->nr_cells];
	unsigned long bits;

	for (bit = 0; bit < GMEM_STATE_NR_BITS; bit++) {
		if (!(mask & BIT(bit)))
			continue;

		model_equal(m, cell, BIT(bit), &start, &end);
		order = model_order(m, index, BIT(bit)) ?: PMD_ORDER;
		expected = min(expected, end);
		expected = min(expected, (index | (BIT(order) - 1)) + 1);
	}

	end = gmem_state_run(&m->st, index, mask, &bits);
	if (end != expected || bits != (m->bits[cell] & mask))
		return model_error(m, "run(%#lx, %#x) ends at %#lx with %#lx, not %#lx with %#x",
				   index, mask, end, bits, expected, m->bits[cell] & mask);

	return true;
}

/* Compare all there is to compare. */
static bool model_verify(struct gmem_model *m)
{
	long nr, expected = model_count_nodes(m);
	unsigned int i;

	nr = gmem_state_check(&m->st);
	if (nr != expected)
		return model_error(m, "check() is %ld, not %ld nodes", nr, expected);
	if (m->nr_objects && m->nr_objects() != expected)
		return model_error(m, "%ld nodes are allocated, not %ld",
				   m->nr_objects(), expected);
	m->max_nodes = max(m->max_nodes, nr);

	for (i = 0; i < m->nr_cells; i++) {
		if (!model_get(m, m->cut[i], MODEL_ALL_BITS) ||
		    !model_get(m, m->cut[i + 1] - 1, GMEM_PRIVATE) ||
		    !model_get(m, m->cut[i + 1] - 1, GMEM_OWNED) ||
		    !model_get(m, m->cut[i + 1] - 1, GMEM_OWNED | GMEM_BLOCK) ||
		    !model_run(m, m->cut[i], MODEL_ALL_BITS))
			return false;
	}

	return true;
}

/* All cells between two, or those of one span, or of the file. */
static void model_pick(struct gmem_model *m, unsigned int *first, unsigned int *next)
{
	unsigned int a = model_below(m, m->nr_cells), b, order;
	pgoff_t start;

	switch (model_below(m, 8)) {
	case 0:
		*first = 0;
		*next = m->nr_cells;
		return;
	case 1:
	case 2:
		*first = a;
		*next = a + 1;
		return;
	case 3:
	case 4:
		order = model_any_order(m);
		start = round_down(m->cut[a], BIT(order));
		a = model_cell(m, start);
		b = model_cell(m, min(start + BIT(order), m->cut[m->nr_cells]) - 1);
		break;
	case 5:
		b = m->nr_cells - 1;
		break;
	default:
		b = model_below(m, m->nr_cells);
	}

	*first = min(a, b);
	*next = max(a, b) + 1;
}

/* The proof in state.c, of one write of the bits in @mask, in numbers. */
static unsigned int model_max_reserve(const struct gmem_model *m, unsigned int mask)
{
	unsigned int levels = 1 + (m->top - PMD_ORDER) / MODEL_STEP;

	return hweight_long(mask) * (2 * levels - 1);
}

static bool model_prepare(struct gmem_model *m, struct gmem_state_change *c,
			  pgoff_t start, pgoff_t end, unsigned int mask,
			  unsigned int bits, int *ret)
{
	long nr, before = m->nr_objects ? m->nr_objects() : 0;

	*ret = gmem_state_prepare(&m->st, c, start, end, mask, bits);
	if (!m->nr_objects)
		return true;

	nr = m->nr_objects() - before;
	if (*ret && nr)
		return model_error(m, "prepare() failed and kept %ld nodes", nr);
	if (nr > model_max_reserve(m, mask))
		return model_error(m, "prepare() reserved %ld nodes, bound %u", nr,
				   model_max_reserve(m, mask));
	return true;
}

static void model_apply(struct gmem_model *m, unsigned int first,
			unsigned int next, unsigned int mask, unsigned int bits)
{
	for (; first < next; first++)
		m->bits[first] = (m->bits[first] & ~mask) | (bits & mask);
}

static bool model_change_bits(struct gmem_model *m, unsigned int mask)
{
	unsigned int first, next, bits = model_below(m, 4);
	struct gmem_state_change c;
	int ret;

	model_pick(m, &first, &next);
	if (model_one_in(m, 4)) {
		/* Not even where an allocation can. */
		if (m->fail_nth)
			m->fail_nth(1);
		gmem_state_set(&m->st, m->cut[first], m->cut[next], mask, bits);
		if (m->fail_nth)
			m->fail_nth(0);
		model_apply(m, first, next, mask, bits);
		return true;
	}

	if (!model_prepare(m, &c, m->cut[first], m->cut[next], mask, bits, &ret))
		return false;
	if (ret)
		return model_error(m, "prepare() is %d", ret);

	gmem_state_commit(&m->st, &c);
	model_apply(m, first, next, mask, bits);
	return true;
}

/* Change something, or fail to, or have second thoughts. */
static bool model_change(struct gmem_model *m)
{
	unsigned int first, next, mask = model_below(m, 4), bits = model_below(m, 4);
	bool aborted = model_one_in(m, 8), nested = model_one_in(m, 8);
	long before = m->nr_objects ? m->nr_objects() : 0;
	struct gmem_state_change c;
	int ret;

	model_pick(m, &first, &next);

	if (m->fail_nth && model_one_in(m, 8))
		m->fail_nth(1 + model_below(m, model_max_reserve(m, mask) / 2 + 1));
	if (!model_prepare(m, &c, m->cut[first], m->cut[next], mask, bits, &ret))
		return false;
	if (m->fail_nth)
		m->fail_nth(0);
	if (ret) {
		m->nr_failed++;
		return ret == -ENOMEM ? true : model_error(m, "prepare() is %d", ret);
	}

	if (aborted) {
		gmem_state_abort(&c);
		gmem_state_abort(&c);
		if (m->nr_objects && m->nr_objects() != before)
			return model_error(m, "abort() keeps %ld nodes",
					   m->nr_objects() - before);
		return true;
	}

	/* Other bits may change while one change is prepared. */
	if (nested && !model_change_bits(m, MODEL_ALL_BITS & ~mask))
		return false;

	gmem_state_commit(&m->st, &c);
	gmem_state_abort(&c);
	model_apply(m, first, next, mask, bits);
	return true;
}

/* Do something random.  False, with an error in words, if it went wrong. */
static bool model_step(struct gmem_model *m)
{
	unsigned int mask, cell;
	pgoff_t index;

	switch (model_below(m, 64)) {
	case 0:
		return model_verify(m);
	case 1 ... 31:
		return model_change(m);
	default:
		mask = model_below(m, 4);
		cell = model_below(m, m->nr_cells);
		index = m->cut[cell];
		if (m->cut[cell + 1] - index > 1)
			index += model_u64(m) % (m->cut[cell + 1] - index);
		return model_one_in(m, 2) ? model_get(m, index, mask) :
					    model_run(m, index, mask);
	}
}

/* Verify a last time, and leave nothing behind. */
static bool model_destroy(struct gmem_model *m)
{
	bool good = !m->error[0] && model_verify(m);
	unsigned int order;

	gmem_state_destroy(&m->st);

	if (!good)
		return false;
	if (gmem_state_get(&m->st, m->cut[1] - 1, ~0UL, &order) || order != m->top)
		return model_error(m, "destroyed, but not clear");
	if (m->nr_objects && m->nr_objects())
		return model_error(m, "destroy() keeps %ld nodes", m->nr_objects());
	return true;
}

#endif /* __KVM_GMEM_STATE_MODEL_H */
