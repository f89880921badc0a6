#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Usage: [NAME...].  Break state.c, one mechanism at a time, and see the tests go
# red.  Prints which ones did.  Two minutes for all.
#
# shellcheck disable=SC2016 # the dollars are Perl's

cd "$(dirname "$0")" || exit 1
gmem=../../../../virt/kvm/guest_memfd
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

make -s OUTPUT="$out" headers || exit 1

flags=(-std=gnu11 -g -O1 -w -DPMD_ORDER=2 -DPUD_ORDER=4 -pthread
       -I"$out/include" -I. -I"$gmem")
declare -A sanitize=(
	[plain]=""
	[asan]="-fsanitize=address,undefined -fno-sanitize-recover=all"
	[tsan]="-fsanitize=thread"
)

compile() {	# VARIANT SOURCE OBJECT
	# shellcheck disable=SC2086 # several flags in one word
	cc "${flags[@]}" ${sanitize[$1]} -c -o "$3" "$2"
}

for variant in "${!sanitize[@]}"; do
	for source in test.c shim.c $gmem/tests/state_kunit.c; do
		compile "$variant" "$source" "$out/$variant-$(basename "$source" .c).o" || exit 1
	done
done

link() {	# VARIANT
	# shellcheck disable=SC2086
	cc -pthread ${sanitize[$1]} -o "$out/$1" "$out/$1"-{test,shim,state_kunit,state}.o
}

red() {		# COMMAND...
	! { timeout 60 "$@" > /dev/null; } 2> /dev/null
}

missed=0 names=("$@")

mutant() {	# NAME PERL-EXPRESSION
	local name=$1 caught=()

	[ ${#names[@]} = 0 ] || [[ " ${names[*]} " == *" $name "* ]] || return
	perl -0pe "$2" $gmem/state.c > "$out/state.c"
	if [ "$name" != none ] && cmp -s $gmem/state.c "$out/state.c"; then
		echo "STALE   $name: no such code"
		missed=1
		return
	fi

	for variant in "${!sanitize[@]}"; do
		compile "$variant" "$out/state.c" "$out/$variant-state.o" || exit 1
		link "$variant" || exit 1
	done

	red "$out/plain" kunit && caught+=(kunit)
	red "$out/plain" random 200000 && caught+=(random)
	red "$out/asan" random 20000 && caught+=(random-asan)
	red "$out/asan" readers 1000 && caught+=(readers-asan)
	red "$out/tsan" readers 1000 && caught+=(readers-tsan)

	if [ "$name" = none ]; then
		[ ${#caught[@]} = 0 ] && echo "green   unchanged" && return
		echo "RED     unchanged: ${caught[*]}"
		exit 1
	elif [ ${#caught[@]} = 0 ]; then
		echo "MISSED  $name"
		missed=1
	else
		echo "caught  $name: ${caught[*]}"
	fi
}

mutant none ''

# S1
mutant no-collapse 's/else if \(node_is_uniform/else if (0 && node_is_uniform/'
mutant collapse-too-early 's/i = 0(; i < TABLE_WORDS && word_get)/i = 1$1/'
mutant collapse-to-other-value \
	's/(no nodes below it. \*\/\n\t\trcu_assign_pointer\(\*at, word_of\()/$1!/'
mutant leaf-order 's/\t\t\tspan = 0;\n//'
mutant order-of-last-bit-only 's/uniform = min\(uniform, span\)/uniform = span/'
mutant root-too-large 's/while \(BIT\(st->order\) < nr_pages\)/while (BIT(st->order) <= nr_pages)/'

# S2
mutant publish-without-release 's/rcu_assign_pointer\(\*at, node\)/RCU_INIT_POINTER(*at, node)/'
mutant publish-before-filled 's/node = (take_node\(c, order, word\));/{
	node = order == PMD_ORDER ? c->leaves : c->tables;
	rcu_assign_pointer(*at, node);
	$1;
	}/'
mutant free-without-grace-period 's/kvfree_rcu_mightsleep\(word\)/kfree(word)/'
mutant free-before-unlink 's/(\trcu_assign_pointer.*\n)(\t*retire\(word, order\);\n)/$2$1/'
mutant free-before-collapse 's/(\trcu_assign_pointer.*\n)(\t*kvfree_rcu_\w+\(node\);\n)/$2$1/'
mutant free-table-before-words \
	's/(\t\/\* The table itself.*?\n\t}\n)\n(\tkvfree_rcu_mightsleep\(word\);\n)/$2$1/s'
mutant overlay-freed-node 's/(\tkvfree_rcu_mightsleep\(word\))/\t*(void **)word = NULL;\n$1/'
mutant leave-words-behind 's/(\t\t\tretire\(word_get)/\t\t\tif (0) $1/'
mutant page-flickers 's/(\t\tWRITE_ONCE\(leaf->map\[i\], value)/
	unsigned long was = leaf->map[i];
	WRITE_ONCE(leaf->map[i], 0);
	WRITE_ONCE(leaf->map[i], was);
	$1/'
mutant plain-store 's/WRITE_ONCE\(leaf->map\[i\], (value .*?mask)\);/leaf->map[i] = $1;/s'
mutant read-leaf-twice 's/differ = \(map \^ flip\)/differ = (READ_ONCE(leaf->map[i]) ^ flip)/'
mutant no-rcu-read-lock 's/\trcu_read_(un)?lock\(\);\n//g'
mutant leaf-outside-rcu \
	's/(word = word_find\(.*index, &span\);\n)/$1rcu_read_unlock(); rcu_read_lock();\n/'

# S3
mutant no-tail 's/if \(c->end == st->nr_pages\)/if (0)/'

# Ranges
mutant last-word-missed 's/(i <= )(\(end - 1\) >> part; i\+\+)/i < $2/'
mutant one-word-more 's/\(end - 1\) >> part; i\+\+/end >> part; i++/'
mutant first-bit-missed 's/FIRST_WORD_MASK\(start\)/FIRST_WORD_MASK(start + 1)/'
mutant last-bit-missed 's/LAST_WORD_MASK\(end\)/LAST_WORD_MASK(end - 1)/'
mutant mask-ignored 's/&c->mask, GMEM/&(unsigned long){ ~0UL }, GMEM/'
mutant wrong-fill 's/memset\(leaf, word == word_of\(true\)/memset(leaf, word == word_of(false)/'
mutant run-not-clamped 's/end = st->nr_pages;/end = BIT(st->order);/'
mutant run-one-longer 's/__ffs\(differ\), LEAF_BITS/__ffs(differ) + 1, LEAF_BITS/'

# The reserve
mutant reserve-no-leaf 's/if \(split && !reserve/if (split && order > PMD_ORDER && !reserve/'
mutant reserve-first-edge-only 's/i \+= max\(last - i, 1UL\)/i = last + 1/'
mutant reserve-too-much \
	's/word == word_of\(value\) \|\| (end - start == BIT\(order\)\)\n\t\treturn true)/$1/'
mutant prepare-writes 's/(gmem_state_abort\(c\);\n)(\t\t\treturn -ENOMEM)/$1
	RCU_INIT_POINTER(((struct gmem_state *)st)->root[nr], word_of(true));
	$2/'
mutant failure-leaks 's/\t\t\tgmem_state_abort\(c\);\n(\t\t\treturn -ENOMEM)/$1/'
mutant not-charged 's/GFP_KERNEL_ACCOUNT/GFP_KERNEL/'
mutant set-may-fail 's/= __GFP_NOFAIL/= 0/'
mutant set-keeps-reserve 's/prepare\(st, &c\);\n\tgmem_state_commit/gmem_state_commit/'

exit $missed
