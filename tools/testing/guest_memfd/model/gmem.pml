/* SPDX-License-Identifier: GPL-2.0 */
/*
 * guest_memfd in Promela: state, invariants and locks.  README says how it is meant.
 *
 * A model defines which actors there are, how many pages, and includes this file:
 *
 *   PAGES		indices of the file, 1 or 2; 2 are the place of one block
 *   FRAMES		pages of memory, at least PAGES; numbered from 1, and 0 is none.
 *			Frame 1 + i is where a block has page i.
 *   CONVERT PUNCH RELEASE		those who change what there is
 *   USER_FAULT USER_CPU MUNMAP GUP_FAST GUP_SLOW	the host, of which user faults
 *			are there if any of these is
 *   PINNED		or else somebody has page 0, and user space no mapping of it
 *   VCPUS RECOVER			the guest, and how KVM maps for it
 *   BLOCKS		the file has blocks of two pages
 *   OWN		hardware keeps a record of whose a page is
 *   HOOKS_FAIL		and can fail
 *   HOLES		the file may start without pages, and gets them one by one, too
 *   TAKE_BACK		a block fails to enter, and its memory is used elsewhere
 *
 * What is written in one atomic or d_step is one step for everybody else.  It is
 * that in the kernel because of a spinlock, an atomic operation, or since nobody
 * can look.
 */
#ifndef FRAMES
#define FRAMES		PAGES
#endif

#if PAGES == 2
#define LAST		1
#define EVERY(what)	(what(0) && what(1))
#define ANY(what)	(what(0) || what(1))
#else
#define LAST		0
#define EVERY(what)	(what(0))
#define ANY(what)	(what(0))
#endif

#if FRAMES == 3
#define EVERY_FRAME(what) (what(1) && what(2) && what(3))
#elif FRAMES == 2
#define EVERY_FRAME(what) (what(1) && what(2))
#else
#define EVERY_FRAME(what) (what(1))
#endif

/* The host has references; a converter may have to give up, for them or for a hook. */
#if defined(USER_FAULT) || defined(PINNED)
#define HOST
#endif
#if defined(GUP_FAST) || defined(GUP_SLOW) || defined(MUNMAP)
#define IN_USE
#endif
#if defined(IN_USE) || defined(HOOKS_FAIL) || defined(NO_STEP_1)
#define CAN_FAIL
#endif

/* Who speaks */
mtype = { Converter, Puncher, Release, User_fault, vCPU, private, shared };

/* By index */
byte pages[PAGES];		/* mapping->i_pages */
bit priv[PAGES];		/* GMEM_PRIVATE, as seen by who has a lock */
bit seen[PAGES];		/* the same, as seen by who has none */
bit owned[PAGES];		/* GMEM_OWNED */
bit block[PAGES];		/* GMEM_BLOCK */
byte pte[PAGES];		/* the user page table */
byte tlb[PAGES];		/* TLBs of user CPUs */
byte spte[PAGES];		/* the guest's page table */
bit spte_priv[PAGES];		/* what KVM took the page for when it mapped it */
byte gtlb[PAGES];		/* TLBs of the vCPUs */
bit gtlb_priv[PAGES];
bit huge;			/* spte[] is one entry of the next level */
bit ghuge;			/* one TLB entry covers both pages */

/* By frame */
byte ref[FRAMES + 1];		/* folio_ref_count() */
bit folio_lock[FRAMES + 1];
bit uptodate[FRAMES + 1];
byte held[FRAMES + 1];		/* references with which somebody touches the content */
bit rmp[FRAMES + 1];		/* hardware's record: the page is the guest's */

/* Locks.  The page table lock is an atomic step. */
bit inv_w;			/* mapping->invalidate_lock */
byte inv_r;
bit mmu_w;			/* kvm->mmu_lock */
byte mmu_r;
bit own_lock;

/*
 * kvm->mmu_invalidate_in_progress and the range.  mmu_invalidate_seq is only ever
 * compared with what a fault has sampled: stale[] says that it differs.
 */
bit in_progress;
byte range_start, range_end;
#ifdef VCPUS
bit stale[VCPUS];
byte guest_refs;		/* of guest faults, to pages */
#endif

#ifdef RELEASE
byte file_refs = 1;
bit slot_state = 1;		/* slot->gmem.state is not NULL */
#endif

/* Does folio->mapping say so?  It does as well for what is about to enter, see filler(). */
#ifdef TAKE_BACK
bit set_up;
#define OF_FILE(i, f)	(pages[i] == (f) || (set_up && (f) == 1))
#else
#define OF_FILE(i, f)	(pages[i] == (f))
#endif

/* See unmap_user() */
#ifdef GUP_FAST
bit store_buffer[PAGES];
#define PTE_LOCK(i)	!store_buffer[i]
#define IN_PTE(i, f)	(pte[i] == (f) && !store_buffer[i])
#else
#define PTE_LOCK(i)	true
#define IN_PTE(i, f)	(pte[i] == (f))
#endif

#define name_of(kind)	((kind) -> private : shared)

/* Invariants of gmem.h, each for an index or a frame.  The monitor watches them. */
#if PAGES == 2
#define HOST_USES(f)	(held[f] || IN_PTE(0, f) || IN_PTE(1, f) || tlb[0] == (f) || tlb[1] == (f))
#define GUEST_USES(f)	(spte[0] == (f) || spte[1] == (f) || gtlb[0] == (f) || gtlb[1] == (f))
#else
#define HOST_USES(f)	(held[f] || IN_PTE(0, f) || tlb[0] == (f))
#define GUEST_USES(f)	(spte[0] == (f) || gtlb[0] == (f))
#endif

#define I1(i)		!(priv[i] && pages[i] && HOST_USES(pages[i]))
/* The host does not use what is the guest's */
#define I2_HOST(f)	(!(rmp[f] && HOST_USES(f)))
/* The guest uses as private what is its own, and as shared what is the host's */
#ifdef OWN
#define I2_GUEST(i)	(!(spte[i] && spte_priv[i] != rmp[spte[i]]) && \
			 !(gtlb[i] && gtlb_priv[i] != rmp[gtlb[i]]))
#else
#define I2_GUEST(i)	true
#endif
/* What returns to the allocator is the host's, and nobody else uses it */
#define I2_FREE(f)	(!(ref[f] == 0 && (rmp[f] || HOST_USES(f) || GUEST_USES(f))))
/* Whoever has a page locked is going to unlock it, whatever it has become */
#define LOCK(f)		(!(ref[f] == 0 && folio_lock[f]))
/* The guest uses a page as what it is, and where it is */
#define KIND(i)		(!(spte[i] && (spte_priv[i] != priv[i] || spte[i] != pages[i])) && \
			 !(gtlb[i] && (gtlb_priv[i] != priv[i] || gtlb[i] != pages[i])))
/* So does the host.  Elsewhere this is true as well, and other invariants say more. */
#ifdef TAKE_BACK
#define KIND_HOST(i)	!(pte[i] && pte[i] != pages[i])
#else
#define KIND_HOST(i)	true
#endif
#ifdef BLOCKS
#define I4		(!((huge || ghuge) && (priv[0] != priv[1] || owned[0] != owned[1] || \
			   !block[0] || !block[1] || pages[0] != 1 || pages[1] != 2)))
#else
#define I4		true
#endif

/* What was said last in a trail is what is wrong. */
#define CHECK(good, what) \
	if :: !(good) -> printf(what); assert(false) :: else fi

proctype monitor()
{
end:	atomic {
		if
		:: !EVERY(I1) -> printf("I1: the host uses a private page\n")
		:: !EVERY_FRAME(I2_HOST) -> printf("I2: the host uses a page of the guest's\n")
		:: !EVERY(I2_GUEST) -> printf("I2: the guest uses a page as what it is not to hardware\n")
		:: !EVERY_FRAME(I2_FREE) -> printf("I2: a free page is in use\n")
		:: !EVERY_FRAME(LOCK) -> printf("LOCK: a free page is locked\n")
		:: !EVERY(KIND) -> printf("KIND: the guest uses a page as what it is not anymore\n")
		:: !EVERY(KIND_HOST) -> printf("KIND: the host maps what the file does not have there\n")
		:: !I4 -> printf("I4: the guest maps as one what is not\n")
		fi;
		assert(false)
	}
}

inline invalidate_lock()	/* filemap_invalidate_lock() */
{
	atomic { !inv_w && !inv_r -> inv_w = 1 }
}

inline invalidate_unlock()
{
	inv_w = 0
}

inline invalidate_lock_shared()	/* filemap_invalidate_lock_shared() */
{
	atomic { !inv_w -> inv_r++ }
}

inline invalidate_unlock_shared()
{
	inv_r--
}

inline mmu_lock()		/* KVM_MMU_LOCK() */
{
	atomic { !mmu_w && !mmu_r -> mmu_w = 1 }
}

inline mmu_unlock()
{
	mmu_w = 0
}

/* folio_put().  A frame that is free is anybody's: fill() may take it again. */
inline put(f)
{
	d_step {
		ref[f]--;
		if
		:: ref[f] == 0 -> uptodate[f] = 0
		:: else
		fi
	}
}

#ifdef TAKE_BACK
/* __folio_set_locked(): does not look, for nobody else can have locked a new page */
inline lock_new(f)
{
	CHECK(!folio_lock[f], "LOCK: somebody else has locked a new page\n");
	folio_lock[f] = 1
}
#endif

/* gmem_block_init_folio().  The host writes zeroes, so the page has to be its own. */
inline init_folio(f)
{
	if
	:: !uptodate[f] ->
		CHECK(!rmp[f], "I2: the host zeroes a page of the guest's\n");
		uptodate[f] = 1
	:: else
	fi
}

/*
 * gmem_block_get_folio(), gmem_block_fill(): bring a page, at worst none.  A block
 * enters as a whole (B4).  invalidate_lock is held shared; to drop it for
 * gmem_block_fill() is to start again.
 */
inline fill(i)
{
	atomic {
		if
		:: pages[i]
#if defined(BLOCKS) && defined(HOLES)
		/* gmem_block_insert(): under own_lock, zeroed, and with GMEM_BLOCK */
		:: !pages[0] && !pages[1] && !ref[1] && !ref[2] && !own_lock ->
			printf("%e: brings a block\n", who);
			pages[0] = 1; ref[1] = 1; uptodate[1] = 1; block[0] = 1;
			pages[1] = 2; ref[2] = 1; uptodate[2] = 1; block[1] = 1
#endif
#ifdef HOLES
		/* gmem_block_add_folio() */
		:: !pages[i] && !ref[FRAMES] ->
			printf("%e: brings page %d\n", who, i);
			pages[i] = FRAMES; ref[FRAMES] = 1
#if FRAMES > 1
		:: !pages[i] && !ref[1 + i] ->
			printf("%e: brings page %d\n", who, i);
			pages[i] = 1 + i; ref[1 + i] = 1
#endif
#endif
		:: !pages[i]	/* -ENOMEM */
		fi
	}
}
