/* SPDX-License-Identifier: GPL-2.0 */
/* The host: user CPUs, and what core-mm does on behalf of user space. */

#ifdef USER_CPU
/* A CPU in user mode has page table entries in its TLB whenever it likes. */
proctype user_cpu()
{
end:	do
	:: atomic {
		pte[0] && tlb[0] != pte[0] -> tlb[0] = pte[0];
		printf("user CPU: may use page 0\n")
	}
#if PAGES == 2
	:: atomic {
		pte[1] && tlb[1] != pte[1] -> tlb[1] = pte[1];
		printf("user CPU: may use page 1\n")
	}
#endif
	od
}
#endif

#ifdef USER_FAULT
/* handle_mm_fault() for a page without entry, with mmap.c */
proctype user_fault()
{
	byte i, f;
	mtype who = User_fault;

end:	do
	:: atomic {
		if
		:: !pte[0] -> i = 0
		:: !pte[LAST] -> i = LAST
		fi
	}
		/* gmem_fault(), gmem_map_pages() */
#ifndef NO_FAULT_LOCK
		invalidate_lock_shared();
#endif
		if
#ifndef NO_FAULT_STATE
		:: atomic {
			(priv[i] || owned[i]) ->
			printf("User_fault: SIGBUS\n");
			goto out_unlock
		}
		:: atomic {
			!priv[i] && !owned[i] ->
			printf("User_fault: finds page %d shared\n", i)
		}
#else
		:: true
#endif
		fi;

		if
		/*
		 * filemap_offlru_map(), map_folio().  In the kernel, the page table lock is
		 * held all along.  Here, others may clear the entry, and nobody fills it.
		 */
		:: atomic {
			PTE_LOCK(i) && !pte[i] && pages[i] ->
			f = pages[i];
			printf("User_fault: sees page %d, which is there\n", i)
		}
#ifndef NO_AROUND_REF
			/* folio_try_get(): not if the page is free */
			atomic {
				if
				:: ref[f] ->
					ref[f]++;
					printf("User_fault: takes a reference\n")
				:: !ref[f] -> goto out_unlock
				fi
			}
#endif
#ifndef NO_AROUND_RELOOK
			/* xas_reload() */
			if
			:: pages[i] == f -> printf("User_fault: sees that it is still there\n")
			:: pages[i] != f -> goto out_put
			fi;
#endif
			/* folio_trylock() */
			atomic {
				if
				:: !folio_lock[f] ->
					folio_lock[f] = 1;
					printf("User_fault: locks it\n")
				:: folio_lock[f] -> goto out_put
				fi
			}
			if
			:: atomic {
#ifndef NO_AROUND_CHECK
				uptodate[f] && OF_FILE(i, f) && PTE_LOCK(i) ->
#else
				PTE_LOCK(i) ->
#endif
#ifdef NO_AROUND_REF
				ref[f]++;
#endif
				pte[i] = f;
				printf("User_fault: maps page %d, which is there\n", i)
			}
				folio_lock[f] = 0;
				goto out_unlock
#ifndef NO_AROUND_CHECK
			:: !uptodate[f] || !OF_FILE(i, f) -> folio_lock[f] = 0
#endif
			fi;
out_put:
#ifndef NO_AROUND_REF
			put(f);
#endif
			goto out_unlock
		:: fill(i);
			f = pages[i];
			if
			:: f
			:: !f -> goto out_unlock
			fi;
			/* filemap_lock_folio(): waits with a reference, and looks again then */
#ifdef TAKE_BACK
			atomic {
				if
				:: pages[i] == f -> ref[f]++
				:: pages[i] != f -> goto out_unlock
				fi
			}
			atomic { !folio_lock[f] -> folio_lock[f] = 1 }
			if
			:: OF_FILE(i, f)
			:: !OF_FILE(i, f) ->
				printf("User_fault: has locked page %d too late\n", i);
				folio_lock[f] = 0;
				put(f);
				goto out_unlock
			fi;
			printf("User_fault: has page %d locked\n", i);
#else
			/* That is one step if nobody takes the page away meanwhile. */
			atomic {
				!folio_lock[f] ->
				if
				:: pages[i] == f ->
					folio_lock[f] = 1;
					ref[f]++;
					printf("User_fault: has page %d locked\n", i)
				:: pages[i] != f -> goto out_unlock
				fi
			}
#endif
			atomic { init_folio(f) }
			/* VM_FAULT_LOCKED: finish_fault() maps it without invalidate_lock */
#ifndef NO_FAULT_LOCK
			invalidate_unlock_shared();
#endif
#ifdef NO_FOLIO_LOCK
			folio_lock[f] = 0;
#endif
#ifdef NO_FAULT_REF
			put(f);
#endif
			if
			:: atomic {
				PTE_LOCK(i) && !pte[i] ->
				pte[i] = f;
#ifdef NO_FAULT_REF
				ref[f]++;
#endif
				printf("User_fault: maps page %d, which it has locked\n", i)
			}
				/* The reference is the entry's now.  The page stays locked. */
#ifndef NO_FOLIO_LOCK
				atomic {
					printf("User_fault: unlocks page %d\n", i);
					folio_lock[f] = 0
				}
#endif
			:: atomic {
				PTE_LOCK(i) && pte[i] ->
#ifndef NO_FOLIO_LOCK
				folio_lock[f] = 0;
#endif
#ifndef NO_FAULT_REF
				put(f)
#endif
			}
			fi;
			goto out
		fi;
out_unlock:
#ifndef NO_FAULT_LOCK
		invalidate_unlock_shared();
#endif
out:
		atomic { i = 0; f = 0 }
	od
}
#endif

#ifdef MUNMAP
/* unmap_region(): zap_present_folio_ptes(), tlb_flush_mmu(), in this order */
proctype munmapper()
{
	byte i, f;

end:	do
	:: atomic {
		if
		:: PTE_LOCK(0) && pte[0] -> i = 0
		:: PTE_LOCK(LAST) && pte[LAST] -> i = LAST
		fi;
		f = pte[i];
		pte[i] = 0;
		printf("munmap: clears the PTE of page %d\n", i)
	}
#ifdef NO_MUNMAP_ORDER
		put(f);
#endif
		atomic {
			printf("munmap: flushes the TLB\n");
			tlb[i] = 0
		}
#ifndef NO_MUNMAP_ORDER
		put(f);
#endif
		atomic { i = 0; f = 0 }
	od
}
#endif

#ifdef GUP_SLOW
/* follow_page_pte(): takes its reference under the page table lock */
proctype gup_slow()
{
	byte i, f;

end:	do
	:: atomic {
		if
		:: PTE_LOCK(0) && pte[0] -> i = 0
		:: PTE_LOCK(LAST) && pte[LAST] -> i = LAST
		fi;
		f = pte[i];
		ref[f]++;
		held[f]++;
		printf("get_user_pages: holds page %d\n", i)
	}
		atomic {
			printf("get_user_pages: is done with it\n");
			held[f]--;
			put(f);
			i = 0;
			f = 0
		}
	od
}
#endif

#ifdef GUP_FAST
/* gup_fast_pte_range().  It has no lock, and does not see what a store buffer has. */
proctype gup_fast()
{
	byte i, f;
	bit same;

end:	do
	:: atomic {
		if
		:: pte[0] -> i = 0
		:: pte[LAST] -> i = LAST
		fi;
		f = pte[i];
		printf("GUP-fast: reads the PTE of page %d\n", i)
	}
#ifdef NO_GUP_MB
		/* What is read again may have been read before the reference is there. */
		atomic { same = (pte[i] == f); printf("GUP-fast: reads it again, ahead of time\n") }
#endif
		/* try_get_folio(): not if the page is free */
		atomic {
			if
			:: ref[f] ->
				ref[f]++;
				printf("GUP-fast: takes a reference\n")
			:: !ref[f] -> goto out
			fi
		}
		atomic {
#ifdef NO_GUP_RECHECK
			same = 1;
#elif !defined(NO_GUP_MB)
			same = (pte[i] == f);
#endif
			if
			:: same ->
				held[f]++;
				printf("GUP-fast: finds the PTE as it was, holds page %d\n", i)
			:: !same ->
				printf("GUP-fast: finds the PTE changed, gives the reference back\n");
				put(f);
				goto out
			fi
		}
		atomic {
			printf("GUP-fast: is done with it\n");
			held[f]--;
			put(f)
		}
out:		atomic { i = 0; f = 0; same = 0 }
	od
}
#endif

#ifdef PINNED
/* pin_user_pages(), long ago.  User space has gone since, with its mappings. */
proctype pinned()
{
	atomic {
		held[1] ->
		printf("get_user_pages: is done with page 0\n");
		held[1]--;
		put(1)
	}
}
#endif
