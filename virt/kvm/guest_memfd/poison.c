// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd memory errors.
 *
 * A page with an error stays where it is: what to do about it is the VMM's
 * decision.  Each access of the guest's ends in -EHWPOISON, each of the host's
 * in SIGBUS, until the page is given up; the next access gets a new one.
 */
#include "gmem.h"

/*
 * Called by memory_failure() with the folio locked, marked as poisoned, and
 * gone from user page tables.  Remove it from the guests' as well.  A guest
 * fault in flight either sees the mark, for it looks under the folio lock, or
 * looked before and retries because of the invalidation.  Nor is the page part of
 * what is mapped around others anymore.
 */
int gmem_poison_folio(struct address_space *mapping, struct folio *folio)
{
	WRITE_ONCE(GMEM_I(mapping->host)->poisoned, true);
	gmem_block_break_folio(mapping->host, folio);
	gmem_bind_invalidate_folio(mapping->host, folio);
	return MF_DELAYED;
}
