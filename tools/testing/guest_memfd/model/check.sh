#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# check.sh OUTPUT [MODEL|MODEL:STEP]...
#
# Verify models, and see that each of them fails with a step removed.  README says
# which, and how.  Without arguments, all that "make check" is about.  TAP.

src=$(cd "$(dirname "$0")" && pwd)
out=$1
shift

# Of one model or trail, in MB; and how deep a search goes, in steps.
memory=${MEMORY:-2500}
depth=${DEPTH:-2000000}
set_cc()
{
	cc="${CC:-gcc} -w -DSAFETY -DNOFAIR -DVECTORSZ=512 -DMEMLIM=$memory $PAN_CFLAGS"
}
set_cc

models="gup user guest block recover own own-vcpus own-block own-user release around"
nr=0
bad=0

result()	# STATUS NAME COMMENT
{
	nr=$((nr + 1))
	[ "$1" = "ok" ] || bad=$((bad + 1))
	echo "$1 $nr $2 # $3"
}

# Translate and build in a directory of its own, and run: pan.out is what comes of it.
run()		# NAME MODEL "SPIN FLAGS" "CC FLAGS" "PAN FLAGS"
{
	local dir="$out/$1"

	rm -rf "$dir"
	mkdir -p "$dir"
	(
		cd "$dir" || exit 1
		# shellcheck disable=SC2086
		spin $3 -a "$src/m-$2.pml" > spin.out 2>&1 && ! grep -q Error spin.out &&
			$cc $4 pan.c -o pan >> spin.out 2>&1 && ./pan $5 > pan.out 2>&1
	)
}

# What a search has not done that does not count as done.
incomplete='max search depth too small|Search not completed|reached limit|hashtable full|time limit'
incomplete="$incomplete|out of memory|pan: reducing|resizing|aborting|VECTORSZ"

# All is reached that an actor says it does.  What it says before an assertion fails
# begins with the name of an invariant.
says_so="printf\('(I[1-4]|O1|KIND|LOCK|EAGAIN):"

verify()	# MODEL
{
	local log="$out/$1/pan.out" states time missed

	# -o3: report each statement, though it be a part of a larger step.
	if ! run "$1" "$1" "-o3 $SPIN_FLAGS" "${OPT:--O1 -DCOLLAPSE}" "-m$depth -w${HASH:-24}"; then
		result "not ok" "$1" "spin or its verifier failed, see $out/$1"
		return
	fi

	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$log")
	time=$(sed -n 's/^pan: elapsed time \(.*\) seconds/\1 s/p' "$log")
	missed=$(sed -n '/^unreached in/,$p' "$log" | grep 'printf(' | grep -Ecv "$says_so")

	if ! grep -q 'errors: 0$' "$log"; then
		# shellcheck disable=SC2086
		(cd "$out/$1" && spin -t -T -k "m-$1.pml.trail" $SPIN_FLAGS "$src/m-$1.pml") \
			> "$out/$1/trail"
		result "not ok" "$1" "it fails: see $out/$1/trail"
	elif grep -Eq "$incomplete" "$log" || ! grep -q '^Full statespace search' "$log"; then
		result "not ok" "$1" "not all states were visited, see $log"
	elif [ "$missed" != 0 ]; then
		sed -n '/^unreached in/,$p' "$log" | grep 'printf(' | grep -Ev "$says_so" |
			sed 's/^/# /'
		result "not ok" "$1" "$missed things are never done"
	else
		result "ok" "$1" "$states states, ${time:-0 s}"
	fi
}

# Find the shortest trail, which is what -DBFS is for.
refute()	# MODEL STEP INVARIANT
{
	local name="$1-$2" last

	if ! run "$name" "$1" "-D$2" "${OPT:--O0 -DCOLLAPSE} -DBFS" "-w20"; then
		result "not ok" "$1 $2" "spin or its verifier failed, see $out/$name"
		return
	fi

	if ! grep -q 'errors: 1$' "$out/$name/pan.out"; then
		result "not ok" "$1 $2" "removed, and nobody notices"
		return
	fi

	# Of the replay, keep what actors say.  It ends with what is wrong.
	(cd "$out/$name" && spin -t -T -k "m-$1.pml.trail" "-D$2" "$src/m-$1.pml") \
		> "$out/$name/replay"
	sed -n '/^spin: .*Error\|^spin: trail ends/q; s/^ *//; p' "$out/$name/replay" |
		grep ':\|^(' > "$out/trails/$name"
	last=$(tail -n 1 "$out/trails/$name")

	if [ "${last%%:*}" = "$3" ]; then
		result "ok" "$1 $2" "$last"
	else
		result "not ok" "$1 $2" "fails, but not like $3: $last"
	fi
}

# As far as it gets: search until there is an error, or for so many minutes, each.
full()		# NAME "SPIN FLAGS" "CC FLAGS" "PAN FLAGS"
{
	local log="$out/$1/pan.out" states end="all there are"

	if ! run "$1" full "$2" "-O2 $3" "-m${DEPTH:-20000000} -Q${MINUTES:-60} $4"; then
		result "not ok" "$1" "spin or its verifier failed, see $out/$1"
		return
	fi

	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$log")
	grep -Eq "$incomplete" "$log" && end="not all"
	if grep -q 'errors: 0$' "$log"; then
		result "ok" "$1" "$states states, $end"
	else
		result "not ok" "$1" "it fails: see spin -t in $out/$1"
	fi
}

# In README, one line each: MODEL STEP INVARIANT.
all_removed()
{
	grep -E "^  [a-z-]+ +(NO|STEP)_[A-Z0-9_]+ +[A-Z0-9]+$" "$src/README"
}

mkdir -p "$out/trails" && out=$(cd "$out" && pwd) || exit 1

if [ $# = 0 ]; then
	echo "TAP version 13"
	# shellcheck disable=SC2086
	echo "1..$(($(set -- $models; echo $#) + $(all_removed | wc -l)))"
	for model in $models; do
		verify "$model"
	done
	while read -r model step invariant; do
		refute "$model" "$step" "$invariant"
	done < <(all_removed)
fi

for name; do
	case $name in
	*:*)	read -r model step invariant < <(all_removed | grep -E "^ *${name%:*} +${name#*:} ")
		if [ -n "$invariant" ]; then
			refute "$model" "$step" "$invariant"
		else
			result "not ok" "$name" "is not in README"
		fi
		;;
	full)	memory=${MEMORY:-12000}
		set_cc
		full full-1-page "-DPAGES=1" -DCOLLAPSE "-w28"
		full "full" "" -DBITSTATE "-w${HASH:-36}"
		;;
	*)	verify "$name"
		;;
	esac
done

[ $bad = 0 ]
