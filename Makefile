# make help says what there is.  Each target calls a script of harness/.

ARCH ?= x86_64
CONFIG ?= small
HOURS ?= 1
$(if $(filter-out x86_64 arm64,$(ARCH)),$(error ARCH=$(ARCH): unknown; there are x86_64 and arm64))
$(if $(filter-out small debug kcsan bench coverage,$(CONFIG)),$(error CONFIG=$(CONFIG): unknown; there are small, debug, kcsan, bench and coverage))
$(if $(filter range-diff,$(MAKECMDGOALS)),$(if $(OLD),,$(error OLD=COMMIT: which commit of this repository?)))

.PHONY: help deps tree export kernel shell demo check bench mutants soak coverage lint \
	static series bisect rebase range-diff clean distclean
.NOTPARALLEL:

help:
	@sed -n 's/^#@ \{0,1\}//p' Makefile

#@ make TARGET [VARIABLE=VALUE ...]        (times: 2 cores, measured)
#@
#@   demo       boot our kernel, and watch a small VMM use it
#@              (8 min on a fresh machine, later 1 min)
#@   check      run every test; ends with "N passed, N failed, N skipped"
#@              (37 min with a warm compiler cache; cold, three kernels more)
#@   bench      measure our kernel and the base in instructions, against goals
#@              (4 min; the first time, two kernels more)
#@
#@   deps       install what is missing, through the package manager (1 min)
#@   tree       build/linux: the base kernel and the series as git commits
#@              (1 min; 1 s when nothing has changed)
#@   export     commits in build/linux back to patches/ and the overlay
#@   kernel     build the kernel, its modules and headers (7 min, debug 11; with
#@              a warm compiler cache 1 min; nothing to do 5 s)
#@   shell      boot it into a prompt, tests on board
#@   mutants    break the series in many ways, and see the tests go red (1 min each,
#@              resumable; harness/mutants NAME for some)
#@   soak       the tests for HOURS=1 in kernels that check themselves, with new seeds
#@   coverage   which lines and branches the tests reach (20 min)
#@   lint       checkpatch and other checks of the series
#@   static     sparse, W=1, clang, coccicheck, kernel-doc and htmldocs: what is
#@              new with the series
#@   series     what git send-email takes, in build/series, checked (2 min)
#@   range-diff OLD=COMMIT   what has changed since that commit of this repository
#@   bisect     build every step in 24 configurations, boot three (hours, resumable)
#@   rebase     try the series on the newest 7.2.y, or on BASE_TREE; a report (3 min)
#@   clean      remove what was built, keep build/linux and the download
#@   distclean  remove build/ with all that is in it
#@
#@   ARCH=x86_64|arm64     for kernel, shell, demo          [x86_64]
#@   CONFIG=small|debug|kcsan|bench|coverage    for kernel, shell    [small]
#@   SUITES="unit series x86 arm64"  for check              [all that exist]
#@   BOOT=npt0             for check, soak: only boots of that name
#@   HOURS=1               for soak
#@   BASE_TREE=PATH        for all: a git tree or tarball of Linux 7.3 instead
#@                         of the package that BASE names
#@   JOBS=N                for all: compilers at once       [number of cores]
#@   QEMU=PROGRAM          for demo, check, shell: another emulator

deps:
	@harness/deps

tree: deps
	@harness/tree

export:
	@harness/export

kernel: tree
	@harness/kernel "$(ARCH)" "$(CONFIG)"

shell: tree
	@harness/shell "$(ARCH)" "$(CONFIG)"

demo: tree
	@harness/demo "$(ARCH)"

check: tree
	@harness/check

bench: tree
	@harness/bench

mutants: tree
	@harness/mutants

soak: tree
	@harness/soak "$(HOURS)"

coverage: tree
	@harness/coverage

lint: tree
	@harness/lint

static: tree
	@harness/static

series: tree
	@harness/series

range-diff: tree
	@harness/series range-diff "$(OLD)"

bisect: tree
	@harness/bisect

# Without `tree`: BASE_TREE is what to try the series on, here.
rebase: deps
	@harness/rebase

clean:
	@harness/clean

distclean:
	@harness/clean all

Makefile: ;
.DEFAULT:
	@echo "error: no target $@; make help lists them" >&2; exit 2
