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
		/* filemap_offlru_map(), map_folio(): under the page table lock */
		:: atomic {
			PTE_LOCK(i) && !pte[i] && pages[i] && !folio_lock[pages[i]] && uptodate[pages[i]] ->
			ref[pages[i]]++;
			pte[i] = pages[i];
			printf("User_fault: maps page %d, which is there\n", i)
		}
		:: fill(i);
			f = pages[i];
			if
			:: f
			:: !f -> goto out_unlock
			fi;
			/* filemap_lock_folio() */
			atomic {
				!folio_lock[f] -> folio_lock[f] = 1;
				ref[f]++;
				printf("User_fault: has page %d locked\n", i)
			}
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
			atomic {
				PTE_LOCK(i);
				if
				:: !pte[i] ->
					pte[i] = f;
#ifdef NO_FAULT_REF
					ref[f]++;
#endif
					folio_lock[f] = 0;
					printf("User_fault: maps page %d, which it has locked\n", i)
				:: pte[i] ->
					folio_lock[f] = 0;
#ifndef NO_FAULT_REF
					put(f)
#endif
				fi
			}
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
