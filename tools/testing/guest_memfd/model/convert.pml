/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Those who change what there is: convert.c, and in file.c those who punch holes and
 * close files.  Numbers are those of the steps at the top of convert.c.
 */

/*
 * kvm_mmu_invalidate_start(), kvm_mmu_invalidate_range_add(), in
 * gmem_file_invalidate_begin().  Faults on neighbours are stopped, too.
 */
inline start_invalidation(start, stop)
{
	d_step {
#ifndef NO_STEP_2_RETRY
		in_progress = 1;
#endif
#if defined(BLOCKS) && !defined(NO_STEP_2_WIDEN)
		range_start = 0;
		range_end = PAGES
#else
		range_start = start;
		range_end = stop
#endif
	}
}

/* tdp_mmu_zap_leafs(): one huge entry is one leaf. */
inline zap(i)
{
#ifndef NO_STEP_2_ZAP
	d_step {
		if
		:: huge ->
			huge = 0; spte[0] = 0; spte[LAST] = 0;
			flush = 1
		:: !huge && spte[i] -> spte[i] = 0; flush = 1
		:: else
		fi
	}
#else
	skip
#endif
}

/* kvm_flush_remote_tlbs() */
inline flush_guest()
{
#ifndef NO_STEP_2_FLUSH
	d_step {
		if
		:: flush -> gtlb[0] = 0; gtlb[LAST] = 0; ghuge = 0; flush = 0
		:: else
		fi
	}
#else
	skip
#endif
}

/*
 * gmem_bind_invalidate_begin() and gmem_bind_convert_begin().  mmu_lock may be
 * dropped between pages: tdp_mmu_iter_cond_resched().
 */
inline invalidate_begin(start, stop)
{
	mmu_lock();
	start_invalidation(start, stop);
	i = start;
	do
	:: i < stop ->
		zap(i);
		i++;
		if
		:: i < stop -> flush_guest(); mmu_unlock(); mmu_lock()
		:: true
		fi
	:: i >= stop -> break
	od;
	flush_guest();
	atomic {
		printf("%e: 2. begins an invalidation, zaps from page %d up to %d\n", who, start, stop);
		mmu_unlock()
	}
}

/* gmem_bind_invalidate_end(), kvm_mmu_invalidate_end() */
inline invalidate_end()
{
	mmu_lock();
	d_step {
#if defined(VCPUS) && !defined(NO_STEP_6_SEQ)
		stale[0] = 1; stale[VCPUS - 1] = 1;
#endif
		in_progress = 0;
		range_start = 0;
		range_end = 0
	}
#ifdef NO_STEP_6_WMB
	d_step {
		seen[0] = priv[0];
		seen[LAST] = priv[LAST]
	}
#endif
	atomic {
		printf("%e: 6. ends the invalidation\n", who);
		mmu_unlock()
	}
}

/*
 * unmap_mapping_pages() for one page: zap_present_folio_ptes() under the page table
 * lock, then the TLB, then the reference, by tlb_finish_mmu().
 *
 * What is stored may wait in a store buffer while loads that follow are done: so it
 * is with the cleared entry, for those who look at it without the page table lock.
 * Nothing but smp_mb() is taken to end that.  (Today to drop a reference does too, and
 * where a TLB is flushed, its CPU does not find the entry again.)
 */
inline unmap_user(i)
{
	atomic {
		PTE_LOCK(i) -> g = pte[i];
		if
		:: g ->
			printf("%e: 3. clears the PTE of page %d\n", who, i);
#ifdef GUP_FAST
			store_buffer[i] = 1
#else
			pte[i] = 0
#endif
		:: else
		fi
	}
	if
	:: g ->
		d_step {
#if defined(USER_CPU) && defined(GUP_FAST)
			store_buffer[i] = 0;
			pte[i] = 0;
#endif
			tlb[i] = 0
		}
		put(g);
		g = 0
	:: else
	fi
}

#ifdef GUP_FAST
#define smp_mb()	EVERY(PTE_LOCK)
#define WAITS(i)	store_buffer[i]
/* The CPU of who has cleared an entry writes it back, some time. */
proctype drain()
{
	byte i;

end:	do
	:: atomic {
		ANY(WAITS) ->
		if
		:: store_buffer[0] -> i = 0
		:: store_buffer[LAST] -> i = LAST
		fi;
		printf("(now all CPUs see page %d's PTE cleared)\n", i);
		store_buffer[i] = 0;
		pte[i] = 0;
		i = 0
	}
	od
}
#else
#define smp_mb()	skip
#endif

/* The hook kvm_arch_gmem_make_private(), and gmem_take_run() around it */
inline make_private(i)
{
	atomic {
		CHECK(!rmp[pages[i]], "I2: a page is made the guest's twice\n");
		printf("%e: 5. makes page %d the guest's\n", who, i);
		rmp[pages[i]] = 1;
		owned[i] = 1
	}
}

#ifdef CONVERT
/* gmem_own_to_private(): all of the range, or nothing */
inline own_to_private()
{
	i = start;
	do
	:: i < stop && pages[i] && !owned[i] ->
		if
		:: make_private(i); i++
#ifdef HOOKS_FAIL
		:: atomic {
			printf("Converter: 5. the hook fails for page %d\n", i);
			failed = 1;
#ifndef NO_STEP_5_UNTAKE
			do	/* gmem_untake() */
			:: i > start ->
				i--;
				if
				:: pages[i] -> rmp[pages[i]] = 0; owned[i] = 0
				:: else
				fi
			:: i == start -> break
			od;
#endif
			break
		}
#endif
		fi
	:: i < stop && (!pages[i] || owned[i]) -> i++
	:: i >= stop -> break
	od
}

/* gmem_own_to_shared().  The bits follow with the commit. */
inline own_to_shared()
{
	i = start;
	do
	:: i < stop && pages[i] && owned[i] ->
		if
		:: atomic {
			printf("Converter: 5. makes page %d the host's\n", i);
			rmp[pages[i]] = 0;
			i++
		}
#ifdef HOOKS_FAIL
		:: atomic {
			printf("Converter: 5. the hook fails for page %d\n", i);
			failed = 1;
			do	/* gmem_move_run_back() */
			:: i > start ->
				i--;
				if
				:: pages[i] && owned[i] -> rmp[pages[i]] = 1
				:: else
				fi
			:: i == start -> break
			od;
			break
		}
#endif
		fi
	:: i < stop && (!pages[i] || !owned[i]) -> i++
	:: i >= stop -> break
	od
}

inline step_3()
{
#if defined(USER_FAULT) && !defined(NO_STEP_3)
	i = start;
	do
	:: i < stop -> unmap_user(i); i++
	:: i >= stop -> break
	od
#else
	skip
#endif
}

/* gmem_convert_check() and, for a page with references, gmem_convert_wait() */
inline step_4()
{
#if defined(HOST) && !defined(NO_STEP_4)
#ifndef NO_STEP_4_MB
	smp_mb();
#endif
	i = start;
	do
	:: i < stop && !failed ->
		f = pages[i];
		do
		:: f == 0 -> break
		:: f && ref[f] == 1 -> break
		:: f && ref[f] != 1 ->
#if !defined(NO_STEP_3) && !defined(NO_STEP_4_UNMAP)
#ifdef NO_STEP_4_LOCK
			unmap_user(i);
#else
			atomic { !folio_lock[f] -> folio_lock[f] = 1 }
			unmap_user(i);
			folio_lock[f] = 0;
#endif
#endif
#ifndef NO_STEP_4_WAIT_MB
			smp_mb();
#endif
			if
			:: ref[f] == 1 -> break
			:: atomic {
				ref[f] != 1 ->
				if
				:: true		/* wait for it to go away */
#if defined(IN_USE) || defined(NO_REF_DROP)
				:: true ->	/* no longer */
					printf("Converter: 4. -EAGAIN, page %d has %d references\n", i, ref[f]);
#ifndef NO_FAULT_LOCK		/* That fails as well then, and sooner, but I1 is the point. */
					CHECK(!IN_PTE(i, f), "EAGAIN: a page that is merely mapped cannot be converted\n");
#endif
#ifdef VCPUS
					CHECK(!guest_refs, "EAGAIN: a guest fault keeps its page from being converted\n");
#endif
					failed = 1;
					break
#endif
				fi
			}
			fi
		od;
		i++
	:: i >= stop || failed -> break
	od;
	f = 0
#else
	skip
#endif
}

inline step_5()
{
#ifdef OWN
	if
#ifndef NO_STEP_5
	:: to_private -> own_to_private()
#else
	:: to_private
#endif
#ifndef NO_STEP_5_BACK
	:: !to_private -> own_to_shared()
#else
	:: !to_private
#endif
	fi
#else
	skip
#endif
}

/* gmem_state_commit(): the pages change one by one, in no particular order */
inline commit()
{
	i = start;
	do
	:: i < stop ->
		atomic {
			printf("Converter: 6. page %d is %e now\n", i,
			       name_of(to_private));
			priv[i] = to_private;
#ifndef NO_STEP_6_WMB
			seen[i] = to_private;
#endif
#ifdef OWN
			if
			:: !to_private -> owned[i] = 0
			:: else
			fi
#endif
		}
		i++
	:: i >= stop -> break
	od
}

/* I3: who fails has changed nothing.  O1: and who does not leaves the page its owner. */
#ifdef OWN
#define OUTSIDE(i)	(start > (i) || stop <= (i) || !pages[i])
#define AS_BEFORE(i)	(OUTSIDE(i) || rmp[pages[i]] == was[i])
#define AS_WANTED(i)	(OUTSIDE(i) || rmp[pages[i]] == to_private)
#endif

/* gmem_convert() */
proctype converter()
{
	byte start, stop, i, f, g;
	bit to_private, failed, flush;
#ifdef OWN
	bit was[PAGES];
#endif
	mtype who = Converter;

end:	do
	:: atomic {
		!inv_w && !inv_r -> inv_w = 1;
		if
		:: to_private = 0
		:: to_private = 1
		fi;
		/* gmem_convert_trim(): what is left does need it, for two pages */
		if
		:: priv[0] != to_private -> start = 0; stop = 1
#if PAGES == 2
		:: priv[1] != to_private -> start = 1; stop = 2
		:: priv[0] != to_private && priv[1] != to_private -> start = 0; stop = 2
#endif
		:: else -> goto unlock
		fi;
#ifdef OWN
		was[0] = rmp[pages[0]];
		was[LAST] = rmp[pages[LAST]];
#endif
		printf("Converter: has invalidate_lock, makes pages from %d up to %d %e\n", start, stop,
		       name_of(to_private))
	}
		/* Step 1: gmem_state_prepare().  Who fails, for want of memory, is done. */
#ifndef NO_STEP_2
		invalidate_begin(start, stop);
#endif
		if
#ifndef STEP_5_EARLY
		:: to_private -> step_3(); step_4()
#else
		:: to_private -> step_3(); step_5(); step_4()
#endif
		:: else
		fi;
		if
#ifndef STEP_5_EARLY
		:: !failed -> step_5()
#else
		:: !to_private && !failed -> step_5()
#endif
		:: else
		fi;
#ifdef NO_STEP_1
		if
		:: !failed -> failed = 1; printf("Converter: 6. cannot commit for want of memory\n")
		:: true
		fi;
#endif
#ifndef STEP_6_LATE
		if
		:: !failed -> commit()
		:: else
		fi;
#endif
#ifndef NO_STEP_2
		invalidate_end();
#endif
#ifdef STEP_6_LATE
		if
		:: !failed -> commit()
		:: else
		fi;
#endif
#ifdef OWN
		atomic {
			if
#ifdef CAN_FAIL
			:: failed ->
				printf("Converter: has failed\n");
				CHECK(EVERY(AS_BEFORE), "I3: an operation that failed has changed whose a page is\n");
#endif
			:: else ->
				CHECK(EVERY(AS_WANTED), "O1: a page is converted, and not with its owner\n");
			fi
		}
#endif
unlock:
		atomic {
			start = 0; stop = 0; i = 0; failed = 0; to_private = 0;
#ifdef OWN
			was[0] = 0; was[LAST] = 0;
#endif
			invalidate_unlock()
		}
	od
}
#endif

#if defined(PUNCH) || defined(RELEASE)
/* gmem_own_free(): gmem_reclaim_run(), or gmem_leak_run() */
inline own_free(i)
{
#if defined(OWN) && !defined(NO_RECLAIM)
	if
	:: atomic {
		owned[i] && pages[i] ->
		printf("%e: page %d is the host's again\n", who, i);
		rmp[pages[i]] = 0;
		owned[i] = 0
	}
#ifdef HOOKS_FAIL
	:: atomic {
		owned[i] && pages[i] ->
		printf("%e: page %d cannot be had back, and is leaked\n", who, i);
#ifndef NO_LEAK
		ref[pages[i]]++;
#endif
		owned[i] = 0
	}
#endif
	:: else
	fi
#else
	owned[i] = 0
#endif
}

/*
 * filemap_offlru_remove(): folio_ref_freeze(), then folio_test_locked().  Nobody can lock
 * a page whose reference is frozen, so this is one look.
 */
#ifdef NO_FREE_LOCK_CHECK
#define CAN_FREE(f)	(ref[f] == 1)
#else
#define CAN_FREE(f)	(ref[f] == 1 && !folio_lock[f])
#endif

/* gmem_block_free(): filemap_offlru_remove(), or else truncate_inode_folio() */
inline block_free(i)
{
	block[i] = 0;
#ifdef USER_FAULT
	unmap_user(i);
#endif
	f = pages[i];
	if
	:: f == 0
	:: atomic {
		f && CAN_FREE(f) ->
		printf("%e: frees page %d\n", who, i);
		pages[i] = 0;
		put(f)
	}
	:: f && !CAN_FREE(f) ->
		atomic { !folio_lock[f] -> folio_lock[f] = 1 }
#ifdef USER_FAULT
		unmap_user(i);
#endif
#ifdef HOST
		atomic {
			printf("%e: page %d leaves the file, with %d references left\n", who, i, ref[f] - 1);
			pages[i] = 0;
			folio_lock[f] = 0
		}
#endif
		put(f)
	fi;
	f = 0
}
#endif

#ifdef PUNCH
/* gmem_punch_hole() */
proctype puncher()
{
	byte start, stop, i, j, f, g;
	bit flush;
	mtype who = Puncher;

end:	do
	:: atomic {
		!inv_w && !inv_r && (pages[0] || pages[LAST]) -> inv_w = 1;
		if
		:: pages[0] -> start = 0; stop = 1
#if PAGES == 2
		:: pages[1] -> start = 1; stop = 2
		:: pages[0] && pages[1] -> start = 0; stop = 2
#endif
		fi;
		printf("Puncher: has invalidate_lock, frees pages from %d up to %d\n", start, stop)
	}
#ifndef NO_INVALIDATE
		invalidate_begin(start, stop);
#endif
		for (j : start .. stop - 1) {
			own_free(j)
		}
		for (j : start .. stop - 1) {
			block_free(j)
		}
#ifndef NO_INVALIDATE
		invalidate_end();
#endif
		atomic {
			start = 0; stop = 0; i = 0; j = 0;
			invalidate_unlock()
		}
	od
}
#endif

#ifdef RELEASE
/* gmem_release(), after the last fput().  User mappings keep the file: there is none. */
proctype release()
{
	byte i, j, f, g;
	bit flush;
	mtype who = Release;

	atomic {
		file_refs--;
		printf("Release: closes the last descriptor\n")
	}
	file_refs == 0;

	/* gmem_bind_remove_file(): to end the invalidation does not wait for the rest. */
	invalidate_lock();
#ifndef NO_INVALIDATE
	invalidate_begin(0, PAGES);
	invalidate_end();
#endif
	atomic {
		printf("Release: unbinds the memslot\n");
		slot_state = 0;
		invalidate_unlock()
	}

	invalidate_lock();
	for (j : 0 .. LAST) {
		own_free(j)
	}
	for (j : 0 .. LAST) {
		block_free(j)
	}
	invalidate_unlock();
	printf("Release: has freed all\n")
}
#endif

#ifdef TAKE_BACK
/*
 * gmem_block_fill_place(), with a block of which page 1 cannot enter: page 0 is seen in the
 * file, and taken back.
 */
proctype filler()
{
end:	do
	/* filemap_offlru_alloc_block() */
	:: atomic {
		!ref[1] -> ref[1] = 1;
		printf("Filler: allocates a block\n")
	}
		invalidate_lock_shared();
		/* filemap_offlru_add_block(): set_up_page(), insert_pages() */
		atomic { lock_new(1); set_up = 1; uptodate[1] = 1 }
		atomic {
			set_up = 0;
			if
			:: !pages[0] ->
				pages[0] = 1;
				printf("Filler: page 0 of it is in the file\n")
			:: pages[0]
			fi
		}
		/* take_pages_back() */
		atomic {
			if
			:: pages[0] == 1 ->
				pages[0] = 0;
				printf("Filler: takes it back\n")
			:: else
			fi
		}
		d_step { uptodate[1] = 0; folio_lock[1] = 0 }
		invalidate_unlock_shared();
		/* filemap_offlru_free_block() */
		atomic { printf("Filler: frees the block\n"); put(1) }
	od
}

/* What is free is anybody's: here of somebody who has pages in a file, too. */
proctype other()
{
end:	do
	:: atomic {
		!ref[1] -> ref[1] = 1;
		printf("Other: allocates what was a page of the block\n")
	}
		atomic { lock_new(1); uptodate[1] = 1 }
		folio_lock[1] = 0;
		put(1)
	od
}
#endif
