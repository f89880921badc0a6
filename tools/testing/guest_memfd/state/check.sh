#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Usage: DIR OPS TIME.  Run what the Makefile has built in DIR, and print TAP:
# OPS random operations for each geometry, TIME seconds of fuzzing.

dir=$1 ops=$2 time=$3
nr=0 failed=0

report() {	# STATUS NAME
	nr=$((nr + 1))
	if [ "$1" = 0 ]; then
		echo "ok $nr - $2"
	else
		echo "not ok $nr - $2 # exit status $1"
		failed=1
	fi
}

run() {		# NAME COMMAND...
	name=$1
	shift
	"$@" 2> "$dir/stderr"
	status=$?
	[ $status = 0 ] || sed 's/^/# /' "$dir/stderr"
	report $status "$name"
}

echo "TAP version 13"

for test in "$dir"/test-*; do
	run "kunit ${test#"$dir"/test-}" "$test" kunit
	run "random ${test#"$dir"/test-}" "$test" random "$ops"
done

for test in "$dir"/asan-*; do
	run "kunit ${test#"$dir"/} and ubsan" "$test" kunit
	run "random ${test#"$dir"/} and ubsan" "$test" random $((ops / 12))
done

for test in "$dir"/test-2-4 "$dir"/asan-* "$dir"/tsan-*; do
	run "readers ${test#"$dir"/}" "$test" readers 1500
done

if [ -x "$dir/fuzz" ]; then
	mkdir -p "$dir/corpus"
	run "fuzz 2-4, $time s" "$dir/fuzz" -max_total_time="$time" \
		-artifact_prefix="$dir/" "$dir/corpus"
	grep '^Done' "$dir/stderr" | sed 's/^/# /'
else
	nr=$((nr + 1))
	echo "ok $nr - fuzz # SKIP clang is not installed"
fi

echo "1..$nr"
exit $failed
