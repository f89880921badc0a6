/* SPDX-License-Identifier: GPL-2.0 */
/* The guest: its CPUs, their faults, and KVM when dirty logging ends. */

#ifdef VCPUS
/* TLBs of all vCPUs */
proctype guest_cpu()
{
end:	do
	:: atomic {
		!huge && spte[0] && gtlb[0] != spte[0] ->
		gtlb[0] = spte[0]; gtlb_priv[0] = spte_priv[0];
		printf("vCPU: uses page 0\n")
	}
#if PAGES == 2
	:: atomic {
		!huge && spte[1] && gtlb[1] != spte[1] ->
		gtlb[1] = spte[1]; gtlb_priv[1] = spte_priv[1];
		printf("vCPU: uses page 1\n")
	}
#endif
#ifdef BLOCKS
	:: atomic {
		huge && !ghuge -> ghuge = 1;
		gtlb[0] = spte[0]; gtlb_priv[0] = spte_priv[0];
		gtlb[1] = spte[1]; gtlb_priv[1] = spte_priv[1];
		printf("vCPU: uses both pages as one\n")
	}
#endif
	od
}

/*
 * gmem_pfn_order(): gmem_state_get() reads each bit of the block at a moment of its
 * own.  Sets big.
 */
inline mapping_order(i)
{
#ifdef BLOCKS
	d_step {
		big = (priv[0] == priv[1]);
		mine = !priv[i]
	}
#ifdef OWN
	d_step {
		big = big && owned[0] == owned[1];
		mine = mine || owned[i]
	}
#else
	mine = 1;
#endif
	d_step {
		big = big && mine && block[0] && block[1];
		mine = 0
	}
#else
	skip
#endif
}

/* gmem_own_page(), gmem_own_pages(): the pages of a block together */
inline own_page(i)
{
#ifdef OWN
	if
	:: priv[i] && !owned[i] ->
#ifndef NO_OWN_LOCK
		atomic { !own_lock -> own_lock = 1 }
#endif
		j = i;
		if
		:: block[i] -> j = 0
		:: else
		fi;
		do
		:: j > LAST || (j > i && !block[i]) -> break
		:: else ->
			/* gmem_init_run() before the hook, gmem_take_run() */
			if
#ifdef NO_OWN_PRIVATE
			:: !owned[j] && pages[j] ->
#else
			:: priv[j] && !owned[j] && pages[j] ->
#endif
				atomic {
					!folio_lock[pages[j]] ->
#ifdef NO_INIT_FIRST
					skip
#else
					init_folio(pages[j])
#endif
				}
				if
				:: make_private(j)
#ifdef HOOKS_FAIL
				:: atomic { printf("vCPU: the hook fails for page %d\n", j); failed = 1; break }
#endif
				fi
			:: else
			fi;
			j++
		od;
		own_lock = 0;
		j = 0;
		failed = (failed && !owned[i])
	:: else
	fi
#else
	skip
#endif
}

/* kvm_tdp_mmu_page_fault() */
proctype vcpu(byte me)
{
	byte i, j, f;
	bit kind, big, mine, failed;
	mtype who = vCPU;

end:	do
	:: atomic {
		if
		:: !spte[0] -> i = 0
		:: !spte[LAST] -> i = LAST
		fi
	}
		/* kvm_mmu_faultin_pfn() */
#ifdef NO_RMB
		kind = seen[i];
#endif
		atomic { stale[me] = 0; printf("vCPU: samples mmu_invalidate_seq, for page %d\n", i) }
#ifndef NO_RMB
		/* kvm_gmem_is_private(), with RCU alone */
#ifdef RELEASE
		kind = seen[i] && slot_state;
#else
		kind = seen[i];
#endif
#endif
		/* kvm_gmem_get_pfn() */
#ifdef RELEASE
		atomic {	/* gmem_bind_get_file() */
			if
#ifdef NO_FILE_REF
			:: slot_state
#else
			:: file_refs -> file_refs++
#endif
			:: else -> printf("vCPU: the file is gone\n"); goto out
			fi
		}
#endif
		invalidate_lock_shared();
		fill(i);
		f = pages[i];
		if
		:: f
		:: !f -> failed = 1; goto unlock
		fi;
		/* gmem_pfn_make_folio(): a reference, but not for long */
		atomic { !folio_lock[f] -> folio_lock[f] = 1; ref[f]++; guest_refs++ }
		atomic {
#ifndef NO_INIT_FIRST
			init_folio(f);
#endif
			folio_lock[f] = 0;
#ifndef NO_REF_DROP
			guest_refs--;
			put(f)
#endif
		}
		own_page(i);
#ifdef NO_INIT_FIRST
		atomic { !folio_lock[f] -> init_folio(f) }
#endif
		mapping_order(i);
unlock:		invalidate_unlock_shared();
#if defined(RELEASE) && !defined(NO_FILE_REF)
		file_refs--;
#endif
		if
		:: failed -> goto out
#ifdef BLOCKS
		:: !failed && big ->
			printf("vCPU: has found page %d, and that its block is alike\n", i)
#endif
		:: !failed && !big -> printf("vCPU: has found page %d\n", i)
		fi;

		atomic { !mmu_w -> mmu_r++ }
		/* is_page_fault_stale(), mmu_invalidate_retry_gfn() */
		if
#ifndef NO_VCPU_CHECK
		:: atomic {
			stale[me] || (in_progress && range_start <= i && i < range_end) ->
			printf("vCPU: retries\n")
		}
		:: !stale[me] && !(in_progress && range_start <= i && i < range_end) ->
#else
		:: true ->
#endif
			/* kvm_tdp_mmu_map() */
			atomic {
				if
#ifdef BLOCKS
				:: big ->
					huge = 1;
					spte[0] = f - i;
					spte[1] = f - i + 1;
					spte_priv[0] = kind;
					spte_priv[1] = kind;
					printf("vCPU: maps the block, as %e\n", name_of(kind))
				:: !big ->
					/* tdp_mmu_split_huge_page() */
					huge = 0;
#else
				:: true ->
#endif
					spte[i] = f;
					spte_priv[i] = kind;
					printf("vCPU: maps page %d, as %e\n", i, name_of(kind))
				fi
			}
		fi;
		mmu_r--;
#ifdef NO_REF_DROP
		atomic { guest_refs--; put(f) }
#endif
out:		atomic { i = 0; f = 0; kind = 0; big = 0; failed = 0; stale[me] = 1 }
	od
}
#endif

#ifdef RECOVER
/* Dirty logging begins and splits huge pages, ends and recovers them. */
proctype recover()
{
	bit big, mine;

end:	do
	/* kvm_tdp_mmu_try_split_huge_pages() */
	:: atomic {
		!mmu_w && huge ->
		huge = 0; ghuge = 0; gtlb[0] = 0; gtlb[1] = 0;
		printf("dirty logging: splits the huge page\n")
	}
	/* recover_huge_pages_range(): what has a present entry is worth a look */
	:: atomic {
#ifdef NO_RECOVER_LOCK
		!huge && (spte[0] || spte[1])
#else
		!mmu_w && !huge && (spte[0] || spte[1]) -> mmu_r++
#endif
	}
		/* kvm_gmem_mapping_order(), with RCU alone */
#ifdef RELEASE
		if
		:: slot_state -> mapping_order(0)
		:: !slot_state
		fi;
#else
		mapping_order(0);
#endif
#ifndef NO_RECOVER_OVERLAP
		if
		:: in_progress && range_start < PAGES && range_end > 0 ->
			big = 0;
			printf("recovery: finds an invalidation in progress\n")
		:: else
		fi;
#endif
		atomic {
			if
			/* tdp_mmu_make_huge_spte(), from the first child there is */
			:: big && !huge && (spte[0] || spte[1]) ->
				if
				:: spte[0] -> spte[1] = spte[0] + 1; spte_priv[1] = spte_priv[0]
				:: else -> spte[0] = spte[1] - 1; spte_priv[0] = spte_priv[1]
				fi;
				huge = 1;
				printf("recovery: maps the block as one\n")
			:: else
			fi
		}
#ifndef NO_RECOVER_LOCK
		atomic { mmu_r--; big = 0 }
#else
		big = 0
#endif
	od
}
#endif

init {
	atomic {
		byte i = 0;

		do
		:: i <= LAST ->
			if
			:: priv[i] = 0
			:: priv[i] = 1
			fi;
			seen[i] = priv[i];
			i++
		:: i > LAST -> break
		od;
		if
		:: true ->
			i = 0;
			do
			:: i <= LAST ->
				pages[i] = i + 1;
				ref[i + 1] = 1;
				uptodate[i + 1] = 1;
#ifdef BLOCKS
				block[i] = 1;
#endif
#ifdef OWN
				owned[i] = priv[i];
				rmp[i + 1] = priv[i];
#endif
				i++
			:: i > LAST -> break
			od
#ifdef HOLES
		:: true
#endif
		fi;
		i = 0;

		run monitor();
#ifdef CONVERT
		run converter();
#endif
#ifdef PUNCH
		run puncher();
#endif
#ifdef RELEASE
		run release();
#endif
#ifdef TAKE_BACK
		run filler();
		run other();
#endif
#ifdef GUP_FAST
		run drain();
		run gup_fast();
#endif
#ifdef GUP_SLOW
		run gup_slow();
#endif
#ifdef PINNED
		if
		:: pages[0] && !priv[0] -> ref[1]++; held[1]++; run pinned()
		:: true
		fi;
#endif
#ifdef USER_CPU
		run user_cpu();
#endif
#ifdef USER_FAULT
		run user_fault();
#endif
#ifdef MUNMAP
		run munmapper();
#endif
#ifdef VCPUS
		run guest_cpu();
		run vcpu(0);
#if VCPUS == 2
		run vcpu(1);
#endif
#endif
#ifdef RECOVER
		run recover();
#endif
	}
}
