# Sourced by every script of the harness: where things are, how to speak, how
# to fail.  The scripts run from the top of the repository.
# shellcheck shell=bash

set -euo pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$TOP"

BUILD=${BUILD:-$TOP/build}
LINUX=${LINUX:-$BUILD/linux}	# the base and the series, as git commits
LOGS=$BUILD/log
JOBS=${JOBS:-$(nproc)}

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' YELLOW=$'\e[33m' RESET=$'\e[0m' TERMINAL=y
else
	BOLD='' GREEN='' RED='' YELLOW='' RESET='' TERMINAL=''
fi

say()	{ printf '%s==>%s %s\n' "$BOLD" "$RESET" "$*"; }
warn()	{ printf '%swarning:%s %s\n' "$YELLOW" "$RESET" "$*" >&2; }
# One clear line, then out.
die()	{ printf '%serror:%s %s\n' "$RED" "$RESET" "$*" >&2; exit 1; }
# A line that overwrites itself on a terminal and is silent elsewhere.
progress() { [ -z "$TERMINAL" ] || printf '\r\e[K%.*s' "${COLUMNS:-100}" "$*"; }
progress_end() { [ -z "$TERMINAL" ] || printf '\r\e[K'; }

# minutes SECONDS: 3:07
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Is a failure that of a full disk?
disk_full() { [ "$(df --output=avail -k "$BUILD" | tail -1)" -lt 20480 ]; }

# die, with the reason that a tool left in its log: stop WHAT LOG
stop()
{
	local reason
	reason=$(grep -m 1 -E '^(E|error|fatal):' "$2" || grep -m 1 ': ' "$2") 2>/dev/null || true
	disk_full && reason="the disk of $BUILD is full"
	die "$1${reason:+: $reason}"
}

mkdir -p "$LOGS" || die "cannot write to $BUILD"

# What `make ARCH=... -jN` here means is not meant for the makes started below.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

# ccache: the directory outlives the clone, so paths must not enter the hash.
export CCACHE_BASEDIR=$BUILD CCACHE_NOHASHDIR=1
export CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-5G}

# What differs between the two architectures, in one place.
arch_is() # arch_is NAME: sets karch, image, cross for kbuild, and qemu, or fails
{
	case $1 in
	x86_64)	karch=x86_64 image=arch/x86/boot/bzImage cross='' qemu=qemu-system-x86_64 ;;
	arm64)	karch=arm64 image=arch/arm64/boot/Image cross=aarch64-linux-gnu- qemu=qemu-system-aarch64 ;;
	*)	die "ARCH=$1: unknown; there are x86_64 and arm64" ;;
	esac
}

emulator_is_there() # after arch_is
{
	qemu=${QEMU:-$qemu}
	command -v "$qemu" >/dev/null || die "no emulator $qemu: make deps installs QEMU, QEMU= names another"
}

# The programs that run on ARCH: those of its lists, of soak.list, and the demo's.
list_programs() # list_programs ARCH
{
	awk -v arch="$1" '
		$1 == "kernel" { mine = $2 == arch }
		mine && $1 ~ /^(pass|part|skip|known)$/ && $3 !~ /^(unload-modules|kunit)$/ { print $3 }
	' harness/tests/*.list harness/soak.list | sort -u
	[ ! -e "$LINUX/tools/testing/guest_memfd/Makefile" ] || echo gmem-demo
}
