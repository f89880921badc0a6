// SPDX-License-Identifier: GPL-2.0
/*
 * Random operations on guest_memfd files, by many threads, vCPUs and children, and
 * processes that are killed in the middle of it.  A model knows what each page holds.
 *
 * The program starts one process after the other: a life.  A life has two VMs, a
 * software-protected one if there are such, with some files each, and threads that
 * work on all of them.  It ends by itself, closing what it has in any order, or by
 * SIGKILL.  Whoever started it then looks whether anything is left of it.
 *
 * The pages of a file are strict ones, and then wild ones, which share a block.
 *
 * - For a strict page, the model has the state, the content and who has it pinned.
 *   Who changes one of these has its lock, and so knows exactly what each access has
 *   to give.  Everything else comes at any time: other pages of the block, and
 *   what must not change content, with no lock at all.
 * - Wild pages have no lock.  What is read from them is zero, or was written to this
 *   very page in this life.
 *
 * All words of a strict page are known: zero, or the page's stamp, of which no two are
 * alike, plus the number of the word.  What failed has changed nothing.  The emulated
 * RMP sees what no access shows.
 *
 * Each thread takes its operations from random numbers of its own, as many for each, so
 * that a seed stands for a sequence per thread, whatever the others do.  With one
 * thread (GMEM_STRESS_THREADS=1) all of a life is repeated, up to the kill.
 *
 *   -s N  GMEM_STRESS_SEED	default: the time
 *   -t N  GMEM_STRESS_SECONDS	default: 15; 0 is no limit
 *   -n N  GMEM_STRESS_OPS	stop after so many operations
 *   -j N  GMEM_STRESS_THREADS	that work, besides the vCPUs that roam
 *         GMEM_STRESS_CONFIG	words: noroam, nogiant, nokill, nopoison, nofail, plain
 *
 * A kind of operation that was tried often and has never succeeded is a failure too.
 * A failure tells the seed, and what each thread did last.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include <linux/mempolicy.h>
#include <linux/sizes.h>

#include "guest_memfd_hold.h"
#include "processor.h"

#define MAX_WORKERS	8
#define NR_VMS		2
#define MAX_THREADS	(MAX_WORKERS + NR_VMS)
#define NR_FILES	6
#define GIANT		(NR_FILES - 1)
#define CHUNK		16		/* pages per lock */
#define MAX_CHUNKS	128
#define NR_HOT		24		/* pages that are chosen most often */
#define NR_BATCH	16		/* pages that a guest does at once */
#define NR_LOG		40
#define MAIN_THREAD	(~0u)
#define SLOT		10
#define CTL_SLOT	8
#define CTL_GPA		SZ_1G
#define GPA(file)	(SZ_4G * (1 + (file)))
#define ALT_GPA(file)	(GPA(file) + SZ_2G + page_size)
#define TRIES		100		/* of what is to succeed in the end */
#define STUCK_SECONDS	150		/* nothing takes that long */
#define SETTLE_MS	20000		/* for what ends a moment later */
#define MAX_POISON	48		/* pages that a run may break */
#define MANY		40		/* tries, of which one is to succeed */

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define RMP_STATS	"/sys/kernel/debug/kvm/emulated-rmp/stats"

#ifdef __x86_64__
#define PROTECTED_VM	KVM_X86_SW_PROTECTED_VM
#else
#define PROTECTED_VM	0
#endif

enum op_kind {
	CONVERT, CONVERT_FAILING, GET, HOST_WRITE, HOST_READ, GUEST_WRITE, GUEST_READ,
	PIN_PIPE, PIN_RING, UNPIN, RING_IO, SYSCALL_IO, FORK, MREMAP, REMAP, ADVISE, MLOCK,
	ALLOCATE, PUNCH, POISON, SOFT_OFFLINE, DIRTY_LOG, MOVE_SLOT, POLICY, PREFAULT, LIMIT,
	POOR_CHILD, MIGRATE, WILD_CONVERT, WILD_TOUCH, WILD_PUNCH, WILD_PIN, ROAM,
	NR_OPS
};

static const struct {
	const char *name;
	u32 weight;
	bool maps;		/* of files that the host can map */
} ops[NR_OPS] = {
	[CONVERT]		= { "convert", 12 },
	[CONVERT_FAILING]	= { "convert failing", 3 },
	[GET]			= { "get", 3 },
	[HOST_WRITE]		= { "host write", 8, true },
	[HOST_READ]		= { "host read", 8, true },
	[GUEST_WRITE]		= { "guest write", 8 },
	[GUEST_READ]		= { "guest read", 8 },
	[PIN_PIPE]		= { "pin pipe", 3, true },
	[PIN_RING]		= { "pin ring", 3, true },
	[UNPIN]			= { "unpin", 4 },
	[RING_IO]		= { "ring io", 4, true },
	[SYSCALL_IO]		= { "syscall io", 4, true },
	[FORK]			= { "fork", 2, true },
	[MREMAP]		= { "mremap", 2, true },
	[REMAP]			= { "remap", 2, true },
	[ADVISE]		= { "advise", 6, true },
	[MLOCK]			= { "mlock", 2, true },
	[ALLOCATE]		= { "allocate", 3 },
	[PUNCH]			= { "punch", 5 },
	[POISON]		= { "poison", 2, true },
	[SOFT_OFFLINE]		= { "soft offline", 1, true },
	[DIRTY_LOG]		= { "dirty log", 3 },
	[MOVE_SLOT]		= { "move slot", 3 },
	[POLICY]		= { "policy", 2, true },
	[PREFAULT]		= { "prefault", 2 },
	[LIMIT]			= { "limit", 1 },
	[POOR_CHILD]		= { "poor child", 1 },
	[MIGRATE]		= { "migrate", 1 },
	[WILD_CONVERT]		= { "wild convert", 4 },
	[WILD_TOUCH]		= { "wild touch", 6, true },
	[WILD_PUNCH]		= { "wild punch", 2 },
	[WILD_PIN]		= { "wild pin", 1, true },
	[ROAM]			= { "roam", 0 },
};

/* What else is counted: that it happens is what the test is for. */
enum event {
	EV_SIGBUS_PRIVATE, EV_SIGBUS_POISON, EV_EFAULT_PRIVATE, EV_EAGAIN_PINNED,
	EV_GUEST_PRIVATE, EV_GUEST_SHARED, EV_GUEST_POISON, EV_OUTLIVED_HOLE, EV_NO_SLOT,
	EV_INJECTED, EV_BROKEN, EV_EARLY_NOTICE, EV_AUDIT, EV_KILLED, EV_ENDED, EV_GIANT_LIFE,
	EV_TRIED_AGAIN,
	NR_EVENTS
};

static const char * const events[NR_EVENTS] = {
	[EV_SIGBUS_PRIVATE]	= "host touches a private page: SIGBUS",
	[EV_SIGBUS_POISON]	= "host touches a poisoned page: SIGBUS",
	[EV_EFAULT_PRIVATE]	= "system call on a private page: EFAULT",
	[EV_EAGAIN_PINNED]	= "conversion of a pinned page: EAGAIN",
	[EV_GUEST_PRIVATE]	= "guest uses a private page",
	[EV_GUEST_SHARED]	= "guest uses a shared page",
	[EV_GUEST_POISON]	= "guest uses a poisoned page: EHWPOISON",
	[EV_OUTLIVED_HOLE]	= "pinned page outlives a hole",
	[EV_NO_SLOT]		= "guest meets a place without a memslot",
	[EV_INJECTED]		= "conversion fails by injection",
	[EV_BROKEN]		= "page is made to break",
	[EV_EARLY_NOTICE]	= "early notice of an error",
	[EV_AUDIT]		= "audit",
	[EV_KILLED]		= "life that was killed",
	[EV_ENDED]		= "life that came to its end",
	[EV_GIANT_LIFE]		= "life with a block of 1 GiB",
	[EV_TRIED_AGAIN]	= "conversion waits for a page once more",
};

/* One operation, with all the random numbers that it may use. */
struct op {
	u32 kind, file;
	u32 r[6];
};

struct log_entry {
	u32 life, nr;
	struct op op;
	u32 page, pages;
	u64 began;
	s32 ret;
	bool done;
};

/* What a life and the process that started it share. */
struct shared {
	u64 nr_ops;
	u64 ok[NR_OPS], refused[NR_OPS], us[NR_OPS], events[NR_EVENTS];
	u8 supported[NR_OPS];
	u64 poisoned;		/* pages, in all lives */
	long most_left;		/* bytes, of a life that is over */
	u32 failed;
	u32 failed_thread;	/* plus 1 */
	char message[400];
	u32 stop, ready;
	struct {
		u32 nr_ops, done;
		u32 in_guest;
		struct log_entry log[NR_LOG];
	} threads[MAX_THREADS];
};

static struct shared *shared;

static size_t page_size;
static size_t nr_words;		/* in a page */
static u64 huge;		/* pages in a block, 1 if there are none */
static u64 giant;
static u64 seed;
static int nr_workers = 4;
static bool no_roam, no_giant, no_kill, no_poison, no_fail, plain;
static bool has_protected, has_rmp;
static u64 rmp_violations;	/* at the start */

static u64 next_random(u64 *state)
{
	u64 x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static u64 now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

static u64 now_ms(void)
{
	return now_us() / 1000;
}

static void add(u64 *counter, u64 nr)
{
	__atomic_fetch_add(counter, nr, __ATOMIC_RELAXED);
}

static void happened(enum event event)
{
	add(&shared->events[event], 1);
}

/*
 * The content of pages.  A guest runs this too: no libc, no thread-local data, and
 * nothing that KVM could not emulate, for a memslot may be gone.
 */
struct mismatch {
	u64 found;
	u64 word, value;
};

static u64 load(const u64 *p)
{
#ifdef __aarch64__
	u64 value;

	/* Without a memslot, hardware describes simple accesses only. */
	asm volatile("ldr %0, [%1]" : "=r" (value) : "r" (p) : "memory");
	return value;
#else
	return READ_ONCE(*p);
#endif
}

static void store(u64 *p, u64 value)
{
#ifdef __aarch64__
	asm volatile("str %x0, [%1]" : : "rZ" (value), "r" (p) : "memory");
#else
	WRITE_ONCE(*p, value);
#endif
}

static u64 word_value(u64 stamp, u64 word)
{
	return stamp ? stamp + word : 0;
}

static noinline void page_fill(u64 *mem, u64 stamp, u64 words)
{
	u64 i;

	for (i = 0; i < words; i++)
		store(mem + i, word_value(stamp, i));
}

static noinline void page_compare(const u64 *mem, u64 stamp, u64 words, struct mismatch *bad)
{
	u64 i, value;

	for (i = 0; i < words; i++) {
		value = load(mem + i);
		if (value == word_value(stamp, i))
			continue;
		bad->found = 1;
		bad->word = i;
		bad->value = value;
		return;
	}
}

#define GEN_SHIFT	13

static u64 page_stamp(u64 life, u64 file, u64 page, u64 gen)
{
	return gen ? (life % 255 + 1) << 56 | file << 52 | page << 32 | gen << GEN_SHIFT : 0;
}

/* Is it something that was written to this place? */
static bool is_wild_value(u64 value, u64 any_stamp, u64 word)
{
	return !value || (value >> 32 == any_stamp >> 32 &&
			  (value & ((1 << GEN_SHIFT) - 1)) == word);
}

/* The guest: a command per exit. */
enum guest_op { GUEST_FILL, GUEST_COMPARE, GUEST_ROAM };

struct guest_ctl {
	u64 op, words;
	u64 nr;
	u64 rounds, random;	/* to roam */
	u64 leave;		/* it is over */
	struct mismatch bad;
	u64 bad_page;
	struct {
		u64 gva, stamp;
	} pages[NR_BATCH];
};

static void guest_roam(struct guest_ctl *ctl)
{
	u64 random = ctl->random, i, page, word, value, *mem;

	for (i = 0; i < ctl->rounds && !READ_ONCE(ctl->leave); i++) {
		page = next_random(&random) % ctl->nr;
		word = next_random(&random) % ctl->words;
		mem = (u64 *)ctl->pages[page].gva + word;
		if (random >> 40 & 1) {
			store(mem, ctl->pages[page].stamp + word);
			continue;
		}
		value = load(mem);
		if (is_wild_value(value, ctl->pages[page].stamp, word))
			continue;
		ctl->bad = (struct mismatch) { 1, word, value };
		ctl->bad_page = page;
		return;
	}
}

static void guest_code(struct guest_ctl *ctl)
{
	u64 i;

	for (;;) {
		ctl->bad.found = 0;
		switch (READ_ONCE(ctl->op)) {
		case GUEST_FILL:
			for (i = 0; i < ctl->nr; i++)
				page_fill((u64 *)ctl->pages[i].gva, ctl->pages[i].stamp,
					  ctl->words);
			break;
		case GUEST_COMPARE:
			for (i = 0; i < ctl->nr && !ctl->bad.found; i++) {
				page_compare((u64 *)ctl->pages[i].gva, ctl->pages[i].stamp,
					     ctl->words, &ctl->bad);
				ctl->bad_page = i;
			}
			break;
		case GUEST_ROAM:
			guest_roam(ctl);
			break;
		}
		GUEST_SYNC(0);
	}
}

/* The model. */
struct page {
	u32 gen;		/* of the content; 0 is zeroes */
	u32 last;		/* that was used: none comes twice */
	u32 pin_gen;		/* of what is pinned, if a hole came in between */
	bool private;
	bool poisoned;
	bool leaks;		/* if given up now, perhaps for ever */
	bool pinned;
	bool pin_lost;
	u64 pfn;		/* of a poisoned page */
};

/* A memslot.  A file has two, so that they come and go one by one. */
struct half {
	pthread_mutex_t lock;
	u64 start, nr;		/* in the file */
	u64 gpa;		/* now, or where it was last */
	u32 id;
	bool logging;
};

struct machine;

struct file {
	int id;
	struct machine *m;
	int fd;
	u64 flags;
	bool maps;		/* the host can map it */
	bool blocks;
	u64 total;		/* pages */
	u64 first, nr, strict;	/* that are used; the rest of them is wild */
	struct page *pages;	/* by page - first, as in all of this file */
	struct half halves[2];
	pthread_mutex_t locks[MAX_CHUNKS];
};

struct machine {
	struct kvm_vm *vm;
	bool protected;
	struct kvm_vcpu *vcpus[2];	/* one does what it is told, the other roams */
	struct guest_ctl *ctl;		/* a page for each */
	pthread_mutex_t lock;		/* of vcpus[0] */
};

struct pin {
	bool held, ring;
	struct file *file;
	u64 page;
	void *addr;		/* then */
};

struct thread {
	int id;
	pthread_t thread;
	struct op op;
	struct log_entry *entry;
	u64 random;
	u8 *views[NR_FILES];
	struct pin pin;
	int pipe[2];
	struct io_uring ring;
	bool has_ring;
	int scratch;		/* a memfd of a page */
	int nth;		/* FAIL_NTH */
	u64 *buffer;		/* of a page */
	struct machine *m;	/* of a vCPU that roams */
};

struct life {
	u32 nr;
	u64 random;
	u64 nr_ops;		/* per thread */
	u64 stop_at;		/* operations, in all */
	u64 kill_at;		/* likewise; or never */
	char *cgroup;		/* or NULL */
	struct machine machines[NR_VMS];
	struct file files[NR_FILES];
	struct thread threads[MAX_THREADS];
	u64 rmp_owned;		/* by others */
	/* Held for reading by who does something, for writing to have silence. */
	pthread_rwlock_t quiet;
	bool ending;
};

static struct life life;
static __thread struct thread *self;

/* Does not come back: everything stays as it is, until the process is killed. */
static void __noreturn __printf(1, 2) give_up(const char *fmt, ...)
{
	u32 expected = 0;
	va_list ap;

	if (__atomic_compare_exchange_n(&shared->failed_thread, &expected,
					self ? self->id + 1 : MAIN_THREAD, false,
					__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		va_start(ap, fmt);
		vsnprintf(shared->message, sizeof(shared->message), fmt, ap);
		va_end(ap);
		__atomic_store_n(&shared->failed, 1, __ATOMIC_SEQ_CST);
	}
	for (;;)
		pause();
}

#define fail(fmt, ...)							\
	give_up("line %d: " fmt " (errno %d)", __LINE__, ##__VA_ARGS__, errno)

#define require(cond, fmt, ...)						\
do {									\
	if (!(cond))							\
		fail("%s: " fmt, #cond, ##__VA_ARGS__);			\
} while (0)

static u64 bytes(u64 pages)
{
	return pages * page_size;
}

static u64 offset_of(const struct file *f, u64 page)
{
	return bytes(f->first + page);
}

static u64 *mem_of(const struct thread *t, const struct file *f, u64 page)
{
	return (u64 *)(t->views[f->id] + bytes(page));
}

static u64 stamp_of(const struct file *f, u64 page, u64 gen)
{
	return page_stamp(life.nr, f->id, page, gen);
}

static u64 content_of(const struct file *f, u64 page)
{
	return stamp_of(f, page, f->pages[page].gen);
}

static struct half *half_of(struct file *f, u64 page)
{
	return &f->halves[f->first + page >= f->halves[1].start];
}

static u64 gpa_of(struct file *f, u64 page)
{
	struct half *h = half_of(f, page);

	return READ_ONCE(h->gpa) + bytes(f->first + page - h->start);
}

/* Locks of strict pages, in order. */
static void lock_pages(struct file *f, u64 page, u64 nr)
{
	u64 i, end = min(page + nr, f->strict);

	for (i = page / CHUNK; page < end && i <= (end - 1) / CHUNK; i++)
		pthread_mutex_lock(&f->locks[i]);
}

static void unlock_pages(struct file *f, u64 page, u64 nr)
{
	u64 i, end = min(page + nr, f->strict);

	for (i = page / CHUNK; page < end && i <= (end - 1) / CHUNK; i++)
		pthread_mutex_unlock(&f->locks[i]);
}

/* Accesses by the host. */
static int host_fill(u64 *mem, u64 stamp)
{
	return gmem_sigbus(page_fill(mem, stamp, nr_words));
}

static int host_compare(const u64 *mem, u64 stamp, struct mismatch *bad)
{
	bad->found = 0;
	return gmem_sigbus(page_compare(mem, stamp, nr_words, bad));
}

/* Early notice of an error, which is no answer to an access, goes to any thread. */
static void on_sigbus(int sig, siginfo_t *info, void *ctx)
{
	if (info->si_code == BUS_MCEERR_AO)
		happened(EV_EARLY_NOTICE);
	else
		gmem_sigbus_handler(sig, info, ctx);
}

static void catch_sigbus(void)
{
	struct sigaction sa = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction() failed");
}

/* The si_code that an access by the host has to give. */
static int want_code(const struct page *p)
{
	return p->private ? BUS_ADRERR : p->poisoned ? BUS_MCEERR_AR : 0;
}

static void count_code(int code)
{
	if (code)
		happened(code == BUS_ADRERR ? EV_SIGBUS_PRIVATE : EV_SIGBUS_POISON);
}

/* Compare a page that is locked with the model. */
static int host_check(struct thread *t, struct file *f, u64 page)
{
	struct page *p = &f->pages[page];
	struct mismatch bad;
	int code;

	code = host_compare(mem_of(t, f, page), content_of(f, page), &bad);
	if (code != want_code(p))
		fail("file %d page %lu: si_code %d, not %d, for a host that reads (%s%s, gen %u)",
		     f->id, page, code, want_code(p), p->private ? "private" : "shared",
		     p->poisoned ? ", poisoned" : "", p->gen);
	if (!code && bad.found)
		fail("file %d page %lu: the host reads %#lx in word %lu, not %#lx",
		     f->id, page, bad.value, bad.word, content_of(f, page));
	count_code(code);
	return code;
}

/* Accesses by a guest. */
static struct guest_ctl *ctl_of(struct machine *m, int vcpu)
{
	return (void *)m->ctl + bytes(vcpu);
}

/*
 * Run a command once.  0: done.  ENXIO: it met a place without a memslot, so that
 * what it did there is void.  Or what KVM_RUN failed with, in the middle.
 */
static int guest_once(struct thread *t, struct machine *m, int v)
{
	struct kvm_vcpu *vcpu = m->vcpus[v];
	struct kvm_run *run = vcpu->run;
	bool void_ = false;
	struct ucall uc;
	int ret, err;

	for (;;) {
		WRITE_ONCE(shared->threads[t->id].in_guest, 1);
		ret = __vcpu_run(vcpu);
		err = errno;
		WRITE_ONCE(shared->threads[t->id].in_guest, 0);

		if (ret) {
			if (err == EINTR)
				continue;
			if (run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    (err == EHWPOISON || err == EFAULT))
				return err;
			errno = err;
			fail("VM %d: KVM_RUN, exit reason %u", (int)(m - life.machines),
			     run->exit_reason);
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			return void_ ? ENXIO : 0;
		case UCALL_NONE:
			break;
		default:
			fail("VM %d: the guest ran into an exception", (int)(m - life.machines));
		}

		if (run->exit_reason != KVM_EXIT_MMIO) {
			if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
				fail("VM %d: internal error %u", (int)(m - life.machines),
				     run->internal.suberror);
			fail("VM %d: exit reason %u", (int)(m - life.machines), run->exit_reason);
		}
		/* Zero is what any page may hold, for all that a guest knows. */
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
		if (!void_)
			happened(EV_NO_SLOT);
		void_ = true;
		WRITE_ONCE(ctl_of(m, v)->leave, 1);
	}
}

/* @nr pages from @page on, that are locked, all of one file.  Poisoned ones are left out. */
static u64 guest_pages(struct thread *t, struct file *f, u64 page, u64 nr, bool write)
{
	struct guest_ctl *ctl = ctl_of(f->m, 0);
	u64 list[NR_BATCH], i, n = 0;
	int tries = 0, ret;

	for (i = 0; i < nr && n < NR_BATCH; i++) {
		if (f->pages[page + i].poisoned)
			continue;
		list[n++] = page + i;
		if (write)
			f->pages[page + i].gen = ++f->pages[page + i].last;
	}
	if (!n)
		return 0;

	pthread_mutex_lock(&f->m->lock);
	do {
		ctl->op = write ? GUEST_FILL : GUEST_COMPARE;
		ctl->words = nr_words;
		ctl->nr = n;
		for (i = 0; i < n; i++) {
			ctl->pages[i].gva = gpa_of(f, list[i]);
			ctl->pages[i].stamp = content_of(f, list[i]);
		}
		if (tries)
			usleep(100);
		ret = guest_once(t, f->m, 0);
		if (ret && ret != ENXIO) {
			errno = ret;
			fail("file %d pages %lu...%lu: KVM_RUN stops at gpa %#lx",
			     f->id, list[0], list[n - 1],
			     (u64)f->m->vcpus[0]->run->memory_fault.gpa);
		}
	} while (ret && ++tries < 5000);

	if (ret)
		fail("file %d page %lu: no memslot, in %d tries", f->id, page, tries);
	if (ctl->bad.found) {
		const struct mismatch bad = ctl->bad;
		const u64 at = list[ctl->bad_page];

		/* Tell a page that is wrong from a look at it that was. */
		guest_once(t, f->m, 0);
		fail("file %d page %lu (%s): guest reads %#lx in word %lu, not %#lx; again: %#lx",
		     f->id, at, f->pages[at].private ? "private" : "shared", bad.value, bad.word,
		     content_of(f, at), ctl->bad.found ? ctl->bad.value : content_of(f, at));
	}
	pthread_mutex_unlock(&f->m->lock);

	for (i = 0; i < n; i++)
		happened(f->pages[list[i]].private ? EV_GUEST_PRIVATE : EV_GUEST_SHARED);
	return n;
}

/* A few pages of a range, by whoever can. */
static void check_some(struct thread *t, struct file *f, u64 page, u64 nr)
{
	const u64 end = min(page + nr, f->strict);
	u64 at[3] = { page, page + t->op.r[4] % nr, end - 1 };
	unsigned int i;

	if (page >= end)
		return;
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		if (at[i] >= end)
			continue;
		if (f->maps)
			host_check(t, f, at[i]);
		if (!f->maps || t->op.r[5] % 4 == i)
			guest_pages(t, f, at[i], 1, false);
	}
}

/* The states of all pages of a range that are strict, and locked. */
static void check_states(struct file *f, u64 page, u64 nr)
{
	u64 end = min(page + nr, f->strict), attributes, size, i;

	while (page < end) {
		size = bytes(end - page);
		require(!gmem_attributes(f->fd, offset_of(f, page), &size, &attributes),
			"file %d page %lu", f->id, page);
		require(size && size <= bytes(end - page) && size % page_size == 0,
			"file %d page %lu: %lu", f->id, page, size);
		for (i = 0; i < size / page_size; i++)
			if (f->pages[page + i].private != !!attributes)
				fail("file %d page %lu is %s", f->id, page + i,
				     attributes ? "private" : "shared");
		page += i;
		if (page < end && f->pages[page].private == !!attributes)
			fail("file %d: a run ends at page %lu, which is alike", f->id, page);
	}
}

/* Which pages: mostly a few, sometimes all. */
static void choose(struct thread *t, struct file *f, u64 limit, u64 *page, u64 *nr)
{
	const struct op *o = &t->op;
	u64 max = limit;

	switch (o->r[0] % 16) {
	case 0 ... 5:
		max = 1;
		break;
	case 6 ... 9:
		max = 8;
		break;
	case 10 ... 12:
		max = 80;
		break;
	case 13 ... 14:
		if (!f->blocks || limit < huge)
			break;
		*page = (f->first + o->r[1] % limit) / huge * huge;
		*page = max(*page, f->first) - f->first;
		*nr = min(huge, limit - *page);
		goto out;
	}
	*nr = 1 + o->r[2] % min(max, limit);
	*page = o->r[1] % (limit - *nr + 1);
	/* Some pages get more than their share, that operations meet. */
	if (o->r[5] >> 30)
		*page %= min(limit - *nr + 1, (u64)NR_HOT);
out:
	t->entry->page = *page;
	t->entry->pages = *nr;
}

/* To fail the @n-th thing that can be made to. */
static void inject(struct thread *t, u32 n)
{
	char text[16];

	snprintf(text, sizeof(text), "%u\n", n);
	/* It can be this that fails. */
	if (pwrite(t->nth, text, strlen(text), 0) < 0)
		require(pwrite(t->nth, text, strlen(text), 0) > 0, "fail-nth");
}

/* 0, or the errno of a conversion for which the model has no reason. */
static int convert(struct thread *t, struct file *f, u64 page, u64 nr, bool private, u32 nth)
{
	const u64 end = min(page + nr, f->strict), off = offset_of(f, page);
	u64 i, pinned = ~0ull, error = 0;
	int ret, err = 0, tries = 0;

	for (i = page; private && i < end && pinned == ~0ull; i++)
		if (f->pages[i].pinned && !f->pages[i].pin_lost && !f->pages[i].private)
			pinned = i;

	do {
		if (nth)
			inject(t, nth);
		ret = gmem_convert(f->fd, off, bytes(nr), private ? GMEM_PRIVATE : GMEM_SHARED,
				   &error);
		err = ret ? errno : 0;
		if (nth)
			inject(t, 0);
		if (err != EAGAIN)
			break;

		require(private, "file %d pages %lu+%lu", f->id, page, nr);
		require(error >= off && error < off + bytes(nr) && error % page_size == 0,
			"file %d pages %lu+%lu: error_offset %#lx", f->id, page, nr, error);
		error = error / page_size - f->first;
		if (error == pinned || (error >= f->strict && pinned == ~0ull))
			break;
		require(error < pinned, "file %d pages %lu+%lu: page %lu is pinned, not %lu", f->id,
			page, nr, pinned, error);
		/* Somebody who had it for a moment was not scheduled. */
		happened(EV_TRIED_AGAIN);
	} while (++tries < TRIES);

	if (!err) {
		require(pinned == ~0ull, "file %d pages %lu+%lu: private, page %lu is pinned",
			f->id, page, nr, pinned);
		for (i = page; i < end; i++) {
			f->pages[i].private = private;
			f->pages[i].leaks |= private && f->m->protected;
		}
	} else if (err == EAGAIN && error == pinned) {
		happened(EV_EAGAIN_PINNED);
	} else if (err == EAGAIN) {
		require(error >= f->strict,
			"file %d pages %lu+%lu: page %lu is in use, in %d tries", f->id, page, nr,
			error, tries);
	} else if (nth && (err == ENOMEM || err == EFAULT || err == EIO)) {
		happened(EV_INJECTED);
	} else {
		errno = err;
		fail("file %d pages %lu+%lu to %s", f->id, page, nr,
		     private ? "private" : "shared");
	}

	check_states(f, page, nr);
	return err;
}

static int do_convert(struct thread *t, struct file *f, u32 nth)
{
	u64 page, nr;
	int err;

	choose(t, f, f->nr, &page, &nr);
	lock_pages(f, page, nr);
	err = convert(t, f, page, nr, t->op.r[3] % 2, nth);
	check_some(t, f, page, nr);
	unlock_pages(f, page, nr);
	return -err;
}

/* Without a lock: all that can be told is what can be told of any file. */
static int do_get(struct thread *t, struct file *f)
{
	u64 page, nr, size, attributes = ~0ull;

	choose(t, f, f->nr, &page, &nr);
	size = bytes(nr);
	require(!gmem_attributes(f->fd, offset_of(f, page), &size, &attributes),
		"file %d pages %lu+%lu", f->id, page, nr);
	require(size && size <= bytes(nr) && size % page_size == 0 &&
		!(attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE),
		"file %d pages %lu+%lu: %#lx %#lx", f->id, page, nr, size, attributes);
	return 0;
}

static int do_host(struct thread *t, struct file *f, bool write)
{
	u64 page, nr, i, good = 0;
	struct page *p;
	int code;

	choose(t, f, f->strict, &page, &nr);
	nr = min_t(u64, nr, 24);
	lock_pages(f, page, nr);
	for (i = page; i < page + nr; i++) {
		p = &f->pages[i];
		if (!write) {
			good += !host_check(t, f, i);
			continue;
		}
		code = host_fill(mem_of(t, f, i), stamp_of(f, i, ++p->last));
		if (code != want_code(p))
			fail("file %d page %lu: si_code %d, not %d, for a host that writes (%s)",
			     f->id, i, code, want_code(p), p->private ? "private" : "shared");
		count_code(code);
		if (!code)
			p->gen = p->last;
		good += !code;
	}
	unlock_pages(f, page, nr);
	return good ? 0 : -EFAULT;
}

static int do_guest(struct thread *t, struct file *f, bool write)
{
	u64 page, nr, good;

	choose(t, f, f->strict, &page, &nr);
	nr = min_t(u64, nr, NR_BATCH);
	lock_pages(f, page, nr);
	good = guest_pages(t, f, page, nr, write);
	/* Who else looks sees the same. */
	if (good && t->op.r[3] % 4 == 0)
		check_some(t, f, page, nr);
	unlock_pages(f, page, nr);
	return good ? 0 : -EHWPOISON;
}

/* Hold a page, until somebody's UNPIN or the end of it all. */
static int do_pin(struct thread *t, struct file *f, bool ring)
{
	struct iovec iov;
	struct page *p;
	u64 page, nr;
	int ret;

	choose(t, f, f->strict, &page, &nr);
	p = &f->pages[page];
	lock_pages(f, page, 1);
	if (t->pin.held || p->pinned) {
		ret = -EBUSY;
		goto out;
	}

	iov = (struct iovec) { mem_of(t, f, page), page_size };
	if (ring) {
		ret = io_uring_register_buffers(&t->ring, &iov, 1);
		if (ret == -ENOMEM || ret == -1)
			ret = -errno;
	} else {
		ret = vmsplice(t->pipe[1], &iov, 1, 0);
		ret = ret < 0 ? -errno : ret == (int)page_size ? 0 : -EPROTO;
	}
	if (!p->private && !p->poisoned) {
		require(!ret, "file %d page %lu: cannot be pinned: %d", f->id, page, ret);
		t->pin = (struct pin) { true, ring, f, page, iov.iov_base };
		p->pinned = true;
		p->pin_lost = false;
	} else {
		require(ret == -EFAULT || (p->poisoned && ret == -EHWPOISON),
			"file %d page %lu: %d, is not to be pinned", f->id, page, ret);
		happened(EV_EFAULT_PRIVATE);
	}
out:
	unlock_pages(f, page, 1);
	return ret;
}

static int do_unpin(struct thread *t)
{
	struct pin *pin = &t->pin;
	struct file *f = pin->file;
	const u64 page = pin->page;
	struct mismatch bad = {};
	struct page *p;
	u64 stamp;
	int ret;

	if (!pin->held)
		return -ENOENT;
	t->entry->op.file = f->id;
	t->entry->page = page;
	lock_pages(f, page, 1);
	p = &f->pages[page];
	if (pin->ring) {
		ret = ring_rw(&t->ring, IORING_OP_WRITE_FIXED, t->pipe[1], pin->addr,
			      page_size);
		require(ret == (int)page_size, "WRITE_FIXED: %d", ret);
	}
	ret = read(t->pipe[0], t->buffer, page_size);
	require(ret == (int)page_size, "read: %d", ret);
	if (pin->ring)
		require(!ring_unregister(&t->ring), "io_uring_register");

	/* The page itself, or what it was when it became a hole. */
	stamp = p->pin_lost ? stamp_of(f, page, p->pin_gen) : content_of(f, page);
	page_compare(t->buffer, stamp, nr_words, &bad);
	if (bad.found)
		fail("file %d page %lu, %s: has %#lx in word %lu, not %#lx", f->id, page,
		     p->pin_lost ? "pinned before a hole was punched" : "pinned",
		     bad.value, bad.word, stamp);
	if (p->pin_lost)
		happened(EV_OUTLIVED_HOLE);
	p->pinned = false;
	pin->held = false;
	unlock_pages(f, page, 1);
	return 0;
}

/* Accesses of the kernel for its caller. */
static int io_page(struct thread *t, u64 *mem, bool write, bool ring)
{
	struct iovec local = { t->buffer, page_size }, remote = { mem, page_size };
	int ret;

	if (ring) {
		ret = ring_rw(&t->ring, write ? IORING_OP_READ : IORING_OP_WRITE, t->scratch, mem,
			      page_size);
		return ret;
	}
	switch (t->op.r[3] % 2) {
	case 0:
		ret = write ? pread(t->scratch, mem, page_size, 0) :
			      pwrite(t->scratch, mem, page_size, 0);
		break;
	default:
		ret = write ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0) :
			      process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
		break;
	}
	return ret < 0 ? -errno : ret;
}

static int do_io(struct thread *t, struct file *f, bool ring)
{
	const bool write = t->op.r[2] % 2, remote = !ring && t->op.r[3] % 2;
	struct mismatch bad = {};
	struct page *p;
	u64 page, nr;
	int ret;

	choose(t, f, f->strict, &page, &nr);
	p = &f->pages[page];
	lock_pages(f, page, 1);
	page_fill(t->buffer, write ? stamp_of(f, page, ++p->last) : ~0ull, nr_words);
	require(pwrite(t->scratch, t->buffer, page_size, 0) == (int)page_size, "memfd");

	ret = io_page(t, mem_of(t, f, page), write, ring);
	if (!p->private && !p->poisoned) {
		require(ret == (int)page_size, "file %d page %lu: %d", f->id, page, ret);
		if (write)
			p->gen = p->last;
		if (!remote)
			require(pread(t->scratch, t->buffer, page_size, 0) == (int)page_size,
				"memfd");
		page_compare(t->buffer, content_of(f, page), nr_words, &bad);
		if (bad.found)
			fail("file %d page %lu: a system call reads %#lx in word %lu, not %#lx",
			     f->id, page, bad.value, bad.word, content_of(f, page));
		ret = 0;
	} else {
		require(ret == -EFAULT || (p->poisoned && ret == -EHWPOISON),
			"file %d page %lu: %d, for a page that is %s", f->id, page, ret,
			p->private ? "private" : "poisoned");
		happened(EV_EFAULT_PRIVATE);
	}
	unlock_pages(f, page, 1);
	return ret;
}

/* The same mapping in another process, which may write. */
static int do_fork(struct thread *t, struct file *f)
{
	const bool write = t->op.r[3] % 2;
	u64 page, nr, i;
	int status;
	pid_t pid;

	choose(t, f, f->strict, &page, &nr);
	nr = min_t(u64, nr, 8);
	lock_pages(f, page, nr);
	for (i = page; i < page + nr; i++)
		f->pages[i].last++;
	pid = fork();
	require(pid >= 0, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (i = page; i < page + nr; i++) {
			struct mismatch bad = {};
			int want = want_code(&f->pages[i]);

			if (host_compare(mem_of(t, f, i), content_of(f, i), &bad) != want ||
			    bad.found)
				_exit(1);
			if (write && !want &&
			    host_fill(mem_of(t, f, i), stamp_of(f, i, f->pages[i].last)))
				_exit(2);
		}
		_exit(0);
	}
	require(waitpid(pid, &status, 0) == pid, "waitpid");
	require(!status, "file %d pages %lu+%lu: status %#x of a child", f->id, page, nr, status);
	for (i = page; write && i < page + nr; i++)
		if (!want_code(&f->pages[i]))
			f->pages[i].gen = f->pages[i].last;
	check_some(t, f, page, nr);
	unlock_pages(f, page, nr);
	return 0;
}

/* Mappings, each thread its own.  Content is nothing to them. */
static u8 *map_view(struct file *f)
{
	void *mem = mmap(NULL, bytes(f->nr), PROT_READ | PROT_WRITE, MAP_SHARED, f->fd,
			 offset_of(f, 0));

	require(mem != MAP_FAILED, "mmap of file %d", f->id);
	return mem;
}

static int do_mremap(struct thread *t, struct file *f)
{
	void *to, *mem;

	to = mmap(NULL, bytes(f->nr), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	require(to != MAP_FAILED, "mmap");
	mem = mremap(t->views[f->id], bytes(f->nr), bytes(f->nr), MREMAP_MAYMOVE | MREMAP_FIXED,
		     to);
	require(mem == to, "mremap of file %d", f->id);
	t->views[f->id] = mem;
	return 0;
}

static int do_remap(struct thread *t, struct file *f)
{
	require(!munmap(t->views[f->id], bytes(f->nr)), "munmap of file %d", f->id);
	t->views[f->id] = map_view(f);
	return 0;
}

static int do_advise(struct thread *t, struct file *f)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
		MADV_WILLNEED, MADV_RANDOM, MADV_SEQUENTIAL, MADV_NORMAL, MADV_HUGEPAGE,
		MADV_NOHUGEPAGE, MADV_COLLAPSE, MADV_DONTNEED_LOCKED,
	};
	int advice = advices[t->op.r[3] % ARRAY_SIZE(advices)], ret, code;
	u64 page, nr;

	choose(t, f, f->nr, &page, &nr);
	code = gmem_sigbus(ret = madvise(mem_of(t, f, page), bytes(nr), advice));
	require(!code, "file %d pages %lu+%lu: advice %d gets a signal", f->id, page, nr, advice);
	/* Private, poisoned or locked pages; what there is no huge page of. */
	require(!ret || errno == EFAULT || errno == EHWPOISON || errno == EINVAL ||
		errno == EAGAIN || errno == EBUSY || errno == ENOMEM,
		"file %d pages %lu+%lu: advice %d", f->id, page, nr, advice);
	return ret ? -errno : 0;
}

static int do_mlock(struct thread *t, struct file *f)
{
	u64 page, nr, *mem;
	int ret;

	choose(t, f, f->nr, &page, &nr);
	mem = mem_of(t, f, page);
	switch (t->op.r[3] % 4) {
	case 0:
		ret = mlock(mem, bytes(nr));
		break;
	case 1:
		ret = mlock2(mem, bytes(nr), MLOCK_ONFAULT);
		break;
	default:
		ret = munlock(mem, bytes(nr));
		require(!ret, "munlock");
		break;
	}
	require(!ret || errno == ENOMEM || errno == EFAULT || errno == EHWPOISON ||
		errno == EAGAIN, "mlock");
	return ret ? -errno : 0;
}

static void allocate(struct file *f, u64 page, u64 nr)
{
	int ret, tries = 0;

	/* Any notice ends it, even work that the kernel has for this thread. */
	do {
		ret = fallocate(f->fd, GMEM_ALLOC, offset_of(f, page), bytes(nr));
	} while (ret && errno == EINTR && ++tries < TRIES);
	require(!ret, "file %d pages %lu+%lu", f->id, page, nr);
}

static int do_allocate(struct thread *t, struct file *f)
{
	u64 page, nr;

	choose(t, f, f->nr, &page, &nr);
	allocate(f, page, nr);
	return 0;
}

/* Pages that are locked, by MADV_REMOVE where @mem maps all of them, or else by the file. */
static void punch(struct file *f, u64 page, u64 nr, void *mem)
{
	const u64 end = min(page + nr, f->strict);
	struct page *p;
	u64 i;

	if (mem && madvise(mem, bytes(nr), MADV_REMOVE)) {
		/* Locked. */
		require(errno == EINVAL, "file %d pages %lu+%lu: MADV_REMOVE", f->id, page, nr);
		mem = NULL;
	}
	require(mem || !fallocate(f->fd, GMEM_PUNCH, offset_of(f, page), bytes(nr)),
		"file %d pages %lu+%lu", f->id, page, nr);
	for (i = page; i < end; i++) {
		p = &f->pages[i];
		if (p->pinned && !p->pin_lost) {
			p->pin_lost = true;
			p->pin_gen = p->gen;
		}
		/* Give it back, unless it was leaked. */
		if (p->poisoned && !p->leaks)
			gmem_write_number(GMEM_UNPOISON_PFN, p->pfn);
		p->poisoned = false;
		p->leaks = p->private && f->m->protected;
		p->gen = 0;
	}
}

static int do_punch(struct thread *t, struct file *f)
{
	u64 page, nr;

	choose(t, f, f->nr, &page, &nr);
	lock_pages(f, page, nr);
	punch(f, page, nr, f->maps && t->op.r[3] & 1 ? mem_of(t, f, page) : NULL);
	check_some(t, f, page, nr);
	unlock_pages(f, page, nr);
	return 0;
}

static bool is_poisoned_pfn(u64 pfn)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	u64 flags = 0;

	require(fd >= 0 && pread(fd, &flags, sizeof(flags), pfn * sizeof(flags)) == sizeof(flags),
		"kpageflags");
	close(fd);
	return flags & BIT_ULL(19);	/* KPF_HWPOISON */
}

/* The guest runs into the error, until somebody does something about it. */
static void guest_meets_poison(struct thread *t, struct file *f, u64 page)
{
	struct guest_ctl *ctl = ctl_of(f->m, 0);
	int ret, i, tries = 0;

	pthread_mutex_lock(&f->m->lock);
	for (i = 0; i < 2; i++) {
		do {
			ctl->op = GUEST_COMPARE;
			ctl->words = nr_words;
			ctl->nr = 1;
			ctl->pages[0].gva = gpa_of(f, page);
			ctl->pages[0].stamp = 0;
			ret = guest_once(t, f->m, 0);
		} while (ret == ENXIO && ++tries < 5000);
		require(ret == EHWPOISON, "file %d page %lu: KVM_RUN on a poisoned page: %d",
			f->id, page, ret);
	}
	happened(EV_GUEST_POISON);
	punch(f, page, 1, NULL);
	do {
		/* If the memslot has moved, what is left of the command is void. */
		ret = guest_once(t, f->m, 0);
		ctl->pages[0].gva = gpa_of(f, page);
	} while (ret == ENXIO && ++tries < 5000);
	require(!ret, "file %d page %lu: KVM_RUN on what was poisoned: %d", f->id, page, ret);
	if (ctl->bad.found)
		fail("file %d page %lu: the guest reads %#lx from a new page", f->id, page,
		     ctl->bad.value);
	pthread_mutex_unlock(&f->m->lock);
}

static int do_poison(struct thread *t, struct file *f)
{
	const u32 how = t->op.r[3];
	int ret = -EBUSY, err = 0;
	struct page *p;
	u64 page, nr, pfn;

	if (f->id == GIANT)
		return -ENODEV;
	choose(t, f, f->strict, &page, &nr);
	p = &f->pages[page];
	lock_pages(f, page, 1);
	if (p->private || p->poisoned || p->pinned ||
	    __atomic_load_n(&shared->poisoned, __ATOMIC_RELAXED) >= MAX_POISON)
		goto out;

	host_check(t, f, page);
	pfn = gmem_pfn(mem_of(t, f, page));
	if (!pfn)
		goto out;
	if (how % 2)
		ret = convert(t, f, page, 1, true, 0);
	add(&shared->poisoned, 1);
	/* Who injects it that way is the one who is told. */
	if (how % 4 == 0)
		gmem_sigbus(err = madvise(mem_of(t, f, page), page_size, MADV_HWPOISON) ?
				  -errno : 0);
	else
		err = gmem_break_pfn(pfn);
	/* If somebody had a reference, that was said, but the page is broken all the same. */
	if (err && !is_poisoned_pfn(pfn)) {
		ret = err;
		host_check(t, f, page);
		goto out;
	}
	happened(EV_BROKEN);
	p->poisoned = true;
	p->pfn = pfn;
	host_check(t, f, page);
	if (how % 8 >= 4)
		guest_meets_poison(t, f, page);
	check_some(t, f, page, 1);
	ret = 0;
out:
	unlock_pages(f, page, 1);
	return ret;
}

/* Nothing may come of it but a page that stays where it is. */
static int do_soft_offline(struct thread *t, struct file *f)
{
	u64 page, nr;
	int ret, code;

	if (f->id == GIANT)
		return -ENODEV;
	choose(t, f, f->strict, &page, &nr);
	lock_pages(f, page, 1);
	code = gmem_sigbus(ret = madvise(mem_of(t, f, page), page_size, MADV_SOFT_OFFLINE));
	ret = ret ? -errno : 0;
	require(!code, "MADV_SOFT_OFFLINE gets a signal");
	require(!ret || ret == -EBUSY || ret == -EFAULT || ret == -EHWPOISON || ret == -EIO,
		"MADV_SOFT_OFFLINE: %d", ret);
	check_some(t, f, page, 1);
	unlock_pages(f, page, 1);
	return ret == -EBUSY ? 0 : ret;
}

/* Memslots. */
static int set_slot(struct file *f, struct half *h, bool logging)
{
	return __vm_set_user_memory_region2(f->m->vm, h->id, KVM_MEM_GUEST_MEMFD |
					    (logging ? KVM_MEM_LOG_DIRTY_PAGES : 0),
					    h->gpa, bytes(h->nr), NULL, f->fd, bytes(h->start));
}

static int get_log(struct file *f, struct half *h, u64 *log)
{
	struct kvm_dirty_log arg = { .slot = h->id, .dirty_bitmap = log };

	return __vm_ioctl(f->m->vm, KVM_GET_DIRTY_LOG, &arg);
}

static int do_dirty_log(struct thread *t, struct file *f)
{
	u64 page, nr, bit, *log = NULL;
	struct half *h;
	int ret = 0;

	choose(t, f, f->strict, &page, &nr);
	lock_pages(f, page, 1);
	h = half_of(f, page);
	pthread_mutex_lock(&h->lock);
	if (!h->logging || t->op.r[3] % 4 == 0) {
		require(!set_slot(f, h, !h->logging), "file %d: dirty logging %s", f->id,
			h->logging ? "off" : "on");
		h->logging = !h->logging;
	}
	if (h->logging) {
		log = calloc(1, h->nr / 8 + 8);
		require(log && !get_log(f, h, log), "KVM_GET_DIRTY_LOG");
		if (guest_pages(t, f, page, 1, true)) {
			require(!get_log(f, h, log), "KVM_GET_DIRTY_LOG");
			bit = f->first + page - h->start;
			require(log[bit / 64] >> bit % 64 & 1,
				"file %d page %lu: written, and not in the log", f->id, page);
		} else {
			ret = -EHWPOISON;
		}
	}
	pthread_mutex_unlock(&h->lock);
	check_some(t, f, page, 1);
	unlock_pages(f, page, 1);
	free(log);
	return ret;
}

/* Delete it; then it comes back, there or elsewhere. */
static int do_move_slot(struct thread *t, struct file *f)
{
	struct half *h = &f->halves[t->op.r[0] % 2];
	const u64 base = t->op.r[1] % 3 ? GPA(f->id) : ALT_GPA(f->id);

	if (!h->nr)
		return -ENOENT;
	pthread_mutex_lock(&h->lock);
	require(!__vm_set_user_memory_region2(f->m->vm, h->id, 0, 0, 0, NULL, 0, 0),
		"file %d: deletion of a memslot", f->id);
	if (t->op.r[3] % 2)
		usleep(t->op.r[3] % 1000);
	h->logging = t->op.r[2] % 4 == 0;
	WRITE_ONCE(h->gpa, base + bytes(h->start));
	require(!set_slot(f, h, h->logging), "file %d: memslot at %#lx", f->id, h->gpa);
	pthread_mutex_unlock(&h->lock);
	return 0;
}

static int do_policy(struct thread *t, struct file *f)
{
	static const int modes[] = { MPOL_DEFAULT, MPOL_INTERLEAVE, MPOL_PREFERRED, MPOL_BIND };
	int mode = modes[t->op.r[3] % ARRAY_SIZE(modes)];
	unsigned long nodes = 1 + t->op.r[4] % 3;
	u64 page, nr;
	int ret;

	if (f->id == GIANT)
		return -ENODEV;
	choose(t, f, f->nr, &page, &nr);
	if (access("/sys/devices/system/node/node1", F_OK))
		nodes = 1;
	ret = syscall(__NR_mbind, mem_of(t, f, page), bytes(nr), mode,
		      mode == MPOL_DEFAULT ? NULL : &nodes, mode == MPOL_DEFAULT ? 0 : 64, 0);
	require(!ret, "file %d pages %lu+%lu: mbind %d of %lu", f->id, page, nr, mode, nodes);
#ifdef __NR_set_mempolicy_home_node
	if (mode == MPOL_BIND) {
		ret = syscall(__NR_set_mempolicy_home_node, mem_of(t, f, page), bytes(nr),
			      nodes & 1 ? 0 : 1, 0);
		/* A policy that was set through another mapping, or for a part. */
		require(!ret || errno == EOPNOTSUPP || errno == ENOENT || errno == EINVAL,
			"set_mempolicy_home_node");
	}
#endif
	return ret ? -errno : 0;
}

static int do_prefault(struct thread *t, struct file *f)
{
#ifdef KVM_PRE_FAULT_MEMORY
	struct kvm_pre_fault_memory range;
	u64 page, nr;
	int ret;

	choose(t, f, f->nr, &page, &nr);
	nr = min_t(u64, nr, 64);
	/* To the end of a memslot at most. */
	range = (struct kvm_pre_fault_memory) {
		.gpa = gpa_of(f, page),
		.size = bytes(half_of(f, page) == half_of(f, page + nr - 1) ? nr : 1),
	};
	pthread_mutex_lock(&f->m->lock);
	do {
		ret = __vcpu_ioctl(f->m->vcpus[0], KVM_PRE_FAULT_MEMORY, &range);
	} while (ret && (errno == EINTR || errno == EAGAIN));
	pthread_mutex_unlock(&f->m->lock);
	/* No memslot for the moment, or an error in the memory. */
	require(!ret || errno == ENOENT || errno == EHWPOISON || errno == EFAULT,
		"file %d pages %lu+%lu: KVM_PRE_FAULT_MEMORY", f->id, page, nr);
	return ret ? -errno : 0;
#else
	return -EOPNOTSUPP;
#endif
}

/* Memory control groups: the life's own has "a" and "b", to be in, and "poor". */
static int write_group(const char *group, const char *name, const char *text)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s/%s", life.cgroup, group, name);
	return gmem_write_file(path, text);
}

static long read_group(const char *group, const char *name)
{
	char path[PATH_MAX], text[32] = {};
	int fd;

	snprintf(path, sizeof(path), "%s/%s/%s", life.cgroup, group, name);
	fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		fail("%s", path);
	close(fd);
	return atol(text);
}

/* Reclaim has nothing to take from a file. */
static int do_limit(struct thread *t)
{
	const char *group = t->op.r[0] % 2 ? "a" : "b";
	char text[32];
	int ret;

	snprintf(text, sizeof(text), "%ld", read_group(group, "memory.current") / 2 + SZ_1M);
	ret = write_group(group, "memory.high", text);
	usleep(2000);
	require(!write_group(group, "memory.high", "max"), "memory.high");
	return ret;
}

/*
 * A process that cannot have a whole block, and gets pages.  It is one of its own, for
 * whoever else is in such a group might be killed.
 */
static int do_poor_child(struct thread *t)
{
	static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
	struct file *f;
	u64 page, nr, i, b;
	char text[32], go;
	int status, fds[4];
	pid_t pid;

	/* Of which a whole block is strict. */
	f = &life.files[t->op.r[4] % 2 ? 0 : 3];
	t->entry->op.file = f->id;
	choose(t, f, f->strict, &page, &nr);
	b = page % (f->strict / huge) * huge;
	lock_pages(f, b, huge);
	/* The limit is for what one of them takes. */
	pthread_mutex_lock(&one_at_a_time);
	require(!pipe(fds) && !pipe(fds + 2), "pipe");
	punch(f, b, huge, NULL);

	pid = fork();
	require(pid >= 0, "fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fds[1]);
		status = write_group("poor", "cgroup.procs", "0");
		/* What the call itself takes of memory, beforehand. */
		if (fallocate(f->fd, GMEM_ALLOC, bytes(f->total), page_size) != -1)
			_exit(5);
		if (write(fds[3], &status, sizeof(status)) < 0 || read(fds[0], &go, 1) != 1)
			_exit(4);
		_exit(fallocate(f->fd, GMEM_ALLOC, offset_of(f, b + page % huge), page_size) ?
		      errno : 0);
	}
	require(read(fds[2], &status, sizeof(status)) == sizeof(status) && !status,
		"entering a cgroup: %d", status);
	snprintf(text, sizeof(text), "%ld",
		 read_group("poor", "memory.current") + (long)bytes(huge - huge / 8));
	require(!write_group("poor", "memory.max", text), "memory.max");
	require(write(fds[1], "", 1) == 1, "pipe");
	require(waitpid(pid, &status, 0) == pid && !status,
		"file %d page %lu: status %#x of a child that allocates a page", f->id,
		b + page % huge, status);
	require(!write_group("poor", "memory.max", "max"), "memory.max");
	for (i = 0; i < 4; i++)
		close(fds[i]);
	pthread_mutex_unlock(&one_at_a_time);
	check_some(t, f, b, huge);
	unlock_pages(f, b, huge);
	return 0;
}

static int do_migrate(struct thread *t)
{
	require(!write_group(t->op.r[0] % 2 ? "a" : "b", "cgroup.procs", "0"), "cgroup.procs");
	return 0;
}

/* Wild pages. */
static u64 choose_wild(struct thread *t, struct file *f, u64 *nr)
{
	const u64 wild = f->nr - f->strict;

	*nr = 1 + t->op.r[1] % (t->op.r[2] % 4 ? min_t(u64, wild, 4) : wild);
	t->entry->page = f->strict + t->op.r[0] % (wild - *nr + 1);
	t->entry->pages = *nr;
	return t->entry->page;
}

static int do_wild_convert(struct thread *t, struct file *f)
{
	u64 nr, page = choose_wild(t, f, &nr), error;
	bool private = t->op.r[3] % 2;

	if (!gmem_convert(f->fd, offset_of(f, page), bytes(nr),
			  private ? GMEM_PRIVATE : GMEM_SHARED, &error))
		return 0;
	require(errno == EAGAIN && private, "file %d pages %lu+%lu", f->id, page, nr);
	error = error / page_size - f->first;
	require(error >= page && error < page + nr, "file %d pages %lu+%lu: %lu in use", f->id,
		page, nr, error);
	return -EAGAIN;
}

static int do_wild_touch(struct thread *t, struct file *f)
{
	u64 page, nr, i, word, value = 0, *mem, good = 0;
	int code;

	page = choose_wild(t, f, &nr);
	for (i = page; i < page + nr; i++) {
		word = (t->op.r[3] + i) % nr_words;
		mem = mem_of(t, f, i) + word;
		if (t->op.r[4] % 2)
			code = gmem_sigbus(WRITE_ONCE(*mem, stamp_of(f, i, 1 + t->op.r[5] % 1000) +
						      word));
		else
			code = gmem_sigbus(value = READ_ONCE(*mem));
		require(!code || code == BUS_ADRERR, "file %d page %lu: si_code %d", f->id, i,
			code);
		if (!code && !(t->op.r[4] % 2) &&
		    !is_wild_value(value, stamp_of(f, i, 1), word))
			fail("file %d wild page %lu: the host reads %#lx in word %lu", f->id, i,
			     value, word);
		good += !code;
	}
	return good ? 0 : -EFAULT;
}

static int do_wild_punch(struct thread *t, struct file *f)
{
	u64 nr, page = choose_wild(t, f, &nr);

	if (t->op.r[3] % 3)
		require(!fallocate(f->fd, GMEM_PUNCH, offset_of(f, page), bytes(nr)),
			"file %d pages %lu+%lu", f->id, page, nr);
	else
		allocate(f, page, nr);
	return 0;
}

/* Put a page into a pipe, and look at what comes out. */
static int do_wild_pin(struct thread *t, struct file *f)
{
	struct iovec iov = { .iov_len = 8 };
	u64 nr, page, word, value;

	if (t->pin.held)
		return -EBUSY;
	page = choose_wild(t, f, &nr);
	word = t->op.r[3] % nr_words;
	iov.iov_base = mem_of(t, f, page) + word;
	if (vmsplice(t->pipe[1], &iov, 1, 0) != 8) {
		require(errno == EFAULT, "file %d wild page %lu: vmsplice", f->id, page);
		return -EFAULT;
	}
	require(read(t->pipe[0], &value, 8) == 8, "pipe");
	if (!is_wild_value(value, stamp_of(f, page, 1), word))
		fail("file %d wild page %lu: a pipe has %#lx of word %lu", f->id, page, value,
		     word);
	return 0;
}

static int execute(struct thread *t)
{
	struct file *f = &life.files[t->op.file];

	switch (t->op.kind) {
	case CONVERT:		return do_convert(t, f, 0);
	case CONVERT_FAILING:	return do_convert(t, f, 1 + t->op.r[5] % 8);
	case GET:		return do_get(t, f);
	case HOST_WRITE:	return do_host(t, f, true);
	case HOST_READ:		return do_host(t, f, false);
	case GUEST_WRITE:	return do_guest(t, f, true);
	case GUEST_READ:	return do_guest(t, f, false);
	case PIN_PIPE:		return do_pin(t, f, false);
	case PIN_RING:		return do_pin(t, f, true);
	case UNPIN:		return do_unpin(t);
	case RING_IO:		return do_io(t, f, true);
	case SYSCALL_IO:	return do_io(t, f, false);
	case FORK:		return do_fork(t, f);
	case MREMAP:		return do_mremap(t, f);
	case REMAP:		return do_remap(t, f);
	case ADVISE:		return do_advise(t, f);
	case MLOCK:		return do_mlock(t, f);
	case ALLOCATE:		return do_allocate(t, f);
	case PUNCH:		return do_punch(t, f);
	case POISON:		return do_poison(t, f);
	case SOFT_OFFLINE:	return do_soft_offline(t, f);
	case DIRTY_LOG:		return do_dirty_log(t, f);
	case MOVE_SLOT:		return do_move_slot(t, f);
	case POLICY:		return do_policy(t, f);
	case PREFAULT:		return do_prefault(t, f);
	case LIMIT:		return do_limit(t);
	case POOR_CHILD:	return do_poor_child(t);
	case MIGRATE:		return do_migrate(t);
	case WILD_CONVERT:	return do_wild_convert(t, f);
	case WILD_TOUCH:	return do_wild_touch(t, f);
	case WILD_PUNCH:	return do_wild_punch(t, f);
	case WILD_PIN:		return do_wild_pin(t, f);
	}
	return -EOPNOTSUPP;
}

/* As many random numbers for each, or else a seed would not say what comes next. */
static void draw(struct thread *t)
{
	struct op *o = &t->op;
	u32 sum = 0, pick, i;

	for (i = 0; i < NR_OPS; i++)
		sum += ops[i].weight;
	pick = next_random(&t->random) % sum;
	for (i = 0; pick >= ops[i].weight; i++)
		pick -= ops[i].weight;
	o->kind = i;
	o->file = next_random(&t->random) % NR_FILES;
	for (i = 0; i < ARRAY_SIZE(o->r); i++)
		o->r[i] = next_random(&t->random) >> 32;
	/* Not all lives have all files. */
	if (life.files[o->file].fd < 0)
		o->file = o->r[5] % GIANT;
	if (ops[o->kind].maps && !life.files[o->file].maps)
		o->file = 0;
}

static struct log_entry *log_begin(struct thread *t)
{
	u32 nr = shared->threads[t->id].nr_ops++;
	struct log_entry *e = &shared->threads[t->id].log[nr % NR_LOG];

	*e = (struct log_entry) { .life = life.nr, .nr = nr, .op = t->op, .began = now_us() };
	return e;
}

static void log_end(struct thread *t, int ret)
{
	t->entry->ret = ret;
	t->entry->done = true;
	add(ret ? &shared->refused[t->op.kind] : &shared->ok[t->op.kind], 1);
	add(&shared->us[t->op.kind], now_us() - t->entry->began);
}

static void *work(void *arg)
{
	struct thread *t = arg;
	int ret;

	self = t;
	while (shared->threads[t->id].nr_ops < life.nr_ops && !READ_ONCE(shared->stop)) {
		draw(t);
		pthread_rwlock_rdlock(&life.quiet);
		t->entry = log_begin(t);
		if (!shared->supported[t->op.kind])
			ret = -EOPNOTSUPP;
		else
			ret = execute(t);
		log_end(t, ret);
		pthread_rwlock_unlock(&life.quiet);
		if (__atomic_add_fetch(&shared->nr_ops, 1, __ATOMIC_RELAXED) >= life.stop_at)
			break;
	}
	WRITE_ONCE(shared->threads[t->id].done, 1);
	return NULL;
}

/* A vCPU that has the wild pages of its VM to itself, as everybody has. */
static void *roam(void *arg)
{
	struct thread *t = arg;
	struct guest_ctl *ctl = ctl_of(t->m, 1);
	int ret = 0, i;
	u64 page[NR_BATCH], *gen = &t->random;
	struct file *f[NR_BATCH];

	self = t;
	t->op.kind = ROAM;
	while (!READ_ONCE(shared->threads[t->id].done) && ret != EFAULT) {
		pthread_rwlock_rdlock(&life.quiet);
		t->entry = log_begin(t);
		for (i = 0; i < NR_BATCH; ) {
			f[i] = &life.files[next_random(gen) % NR_FILES];
			if (f[i]->m != t->m || f[i]->fd < 0)
				continue;
			page[i] = f[i]->strict + next_random(gen) % (f[i]->nr - f[i]->strict);
			ctl->pages[i].gva = gpa_of(f[i], page[i]);
			ctl->pages[i].stamp = stamp_of(f[i], page[i], 1 + next_random(gen) % 1000);
			i++;
		}
		ctl->op = GUEST_ROAM;
		ctl->words = nr_words;
		ctl->nr = NR_BATCH;
		ctl->random = next_random(gen);
		ctl->rounds = 500;
		ctl->leave = 0;
		ret = guest_once(t, t->m, 1);
		/* It comes again at once, and sees that it should leave. */
		if (ret == EFAULT && !READ_ONCE(life.ending)) {
			errno = ret;
			fail("a vCPU that roams stops at gpa %#lx",
			     (u64)t->m->vcpus[1]->run->memory_fault.gpa);
		}
		require(!ret || ret == ENXIO || ret == EFAULT, "a vCPU that roams: %d", ret);
		if (ctl->bad.found)
			fail("file %d wild page %lu: the guest reads %#lx in word %lu",
			     f[ctl->bad_page]->id, page[ctl->bad_page], ctl->bad.value,
			     ctl->bad.word);
		log_end(t, ret == ENXIO ? 0 : -ret);
		pthread_rwlock_unlock(&life.quiet);
		/* The others want the CPU too. */
		usleep(next_random(gen) % 3000);
	}
	return NULL;
}

/* Of which file the RMP has how many pages, by their gfns. */
static void tell_owned(void)
{
	FILE *dump = fopen("/sys/kernel/debug/kvm/emulated-rmp/dump", "r");
	unsigned long pfn, nr, vm, gfn, found[NR_FILES] = {};
	char line[128];
	u64 i;

	while (dump && fgets(line, sizeof(line), dump)) {
		if (strstr(line, "leaked") ||
		    sscanf(line, "pfn %lx nr %lu vm %lu gfn %lx", &pfn, &nr, &vm, &gfn) != 4)
			continue;
		i = bytes(gfn) / SZ_4G - 1;
		if (i < NR_FILES)
			found[i] += nr;
	}
	if (dump)
		fclose(dump);
	for (i = 0; i < NR_FILES; i++)
		if (life.files[i].fd >= 0)
			ksft_print_msg("  file %lu: the RMP has %lu pages of it, the file %lu\n", i,
				       found[i], gmem_fdinfo_val(life.files[i].fd, "gmem-owned"));
}

/* All of a file, for its guest and for the host. */
static void check_content(struct thread *t, struct file *f)
{
	u64 page, i;

	for (page = 0; page < f->strict; page += NR_BATCH) {
		guest_pages(t, f, page, min_t(u64, NR_BATCH, f->strict - page), false);
		for (i = page; f->maps && i < min(page + NR_BATCH, f->strict); i++)
			host_check(t, f, i);
	}
}

/* What a violation leaves to find out: where each file is, and in which state. */
static void tell_files(void)
{
	u64 page, size, attributes;
	struct gmem_fdinfo info;
	struct file *f;
	int i;

	tell_owned();
	for (i = 0; i < NR_FILES; i++) {
		f = &life.files[i];
		if (f->fd < 0 || !f->m->protected)
			continue;
		gmem_fdinfo_read(f->fd, &info);
		ksft_print_msg("file %d, memslots at %#lx and %#lx:\n%s", i, f->halves[0].gpa,
			       f->halves[1].gpa, info.text);
		for (page = 0; page < f->total; page += size / page_size) {
			size = bytes(f->total - page);
			if (gmem_attributes(f->fd, bytes(page), &size, &attributes))
				break;
			ksft_print_msg("  pages %lu+%lu: %s\n", page, size / page_size,
				       attributes ? "private" : "shared");
		}
	}
}

/* In silence: the kernel's numbers are the model's, and the RMP has no complaint. */
static void audit(bool thorough)
{
	u64 private, page, size, attributes, owned = 0, val = 0, mine;
	struct thread *t = &life.threads[0];
	struct gmem_fdinfo info;
	struct file *f;
	int i;

	pthread_rwlock_wrlock(&life.quiet);
	for (i = 0; i < NR_FILES; i++) {
		f = &life.files[i];
		if (f->fd < 0)
			continue;

		/* First, for this may bring pages. */
		if (thorough)
			check_content(t, f);

		check_states(f, 0, f->strict);
		for (private = 0, page = 0; page < f->total; page += size / page_size) {
			size = bytes(f->total - page);
			require(!gmem_attributes(f->fd, bytes(page), &size, &attributes), "file %d",
				i);
			private += attributes ? size / page_size : 0;
		}
		gmem_fdinfo_read(f->fd, &info);
#define expect(key, cond)						\
		require(gmem_fdinfo(&info, key, &val) && (cond), "file %d: %lu", i, val)
		expect("gmem-private", val == private);
		expect("gmem-shared", val == f->total - private);
		expect("gmem-converting", !val);
		expect("gmem-present", val <= f->total);
		for (mine = 0, page = 0; page < f->strict; page++)
			mine += f->pages[page].poisoned;
		expect("gmem-poisoned", val == mine);
		expect("gmem-owned", val <= (f->m->protected && has_rmp ? private : 0));
#undef expect
		owned += val;
	}

	if (has_rmp) {
		val = gmem_rmp_counter("owned") - life.rmp_owned;
		if (val != owned)
			tell_owned();
		require(val == owned, "the RMP has %lu pages, files have %lu", val, owned);
		if (gmem_rmp_verify()) {
			tell_files();
			/* Has somebody the wrong page? */
			for (i = 0; i < NR_FILES; i++)
				if (life.files[i].fd >= 0)
					check_content(t, &life.files[i]);
			fail("emulated-rmp/verify finds violations, content is right");
		}
		require(gmem_rmp_counter("violations") == rmp_violations, "violations: %lu",
			gmem_rmp_counter("violations"));
	}
	happened(EV_AUDIT);
	pthread_rwlock_unlock(&life.quiet);
}

/* A life. */
static u64 memory_available(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %lu kB", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib * 1024ull;
}

static void create_machine(int i)
{
	const bool protected = i == 0 && has_protected;
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = protected ? PROTECTED_VM : VM_TYPE_DEFAULT,
	};
	struct userspace_mem_region *slot0;
	struct machine *m = &life.machines[i];
	int v;

	m->protected = protected;
	m->vm = __vm_create_with_vcpus(shape, 2, 512, guest_code, m->vcpus);
	m->ctl = kvm_mmap(bytes(2), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(m->vm, CTL_SLOT, 0, CTL_GPA, bytes(2), m->ctl);
	virt_map(m->vm, CTL_GPA, CTL_GPA, bytes(2) / m->vm->page_size);
	for (v = 0; v < 2; v++)
		vcpu_args_set(m->vcpus[v], 1, CTL_GPA + bytes(v));
	pthread_mutex_init(&m->lock, NULL);

	/* A copy in a child would cost every vCPU its mappings. */
	slot0 = memslot2region(m->vm, 0);
	TEST_ASSERT(!madvise(slot0->host_mem, slot0->region.memory_size, MADV_DONTFORK) &&
		    !madvise(m->ctl, bytes(2), MADV_DONTFORK), "MADV_DONTFORK: %d", errno);
}

static void create_file(int i)
{
	const u64 both = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	const struct {
		int machine;
		u64 flags, blocks, pages, strict;
	} kinds[NR_FILES] = {
		{ 0, both, 3, 64, 1280 },
		{ 0, GUEST_MEMFD_FLAG_MMAP, 0, 192, 128 },
		{ 0, GUEST_MEMFD_FLAG_INIT_SHARED, 1, 32, 400 },
		{ 1, both, 2, 0, 768 },
		{ 1, GUEST_MEMFD_FLAG_MMAP, 0, 192, 128 },
		{ 0, both, 0, 512, 400 },
	};
	struct file *f = &life.files[i];
	u64 block = kinds[i].blocks && huge > 1 ? huge : 1, n, split, base;
	int h;

	f->id = i;
	f->m = &life.machines[kinds[i].machine];
	f->fd = -1;
	f->flags = kinds[i].flags;
	f->nr = kinds[i].pages + kinds[i].blocks * 512;
	f->strict = kinds[i].strict;
	f->total = f->nr;
	f->pages = calloc(f->nr, sizeof(*f->pages));
#ifdef __aarch64__
	/* No memslot has what cannot be mapped. */
	f->flags |= GUEST_MEMFD_FLAG_MMAP;
#endif
	f->maps = f->flags & GUEST_MEMFD_FLAG_MMAP;
	n = next_random(&life.random);
	split = f->nr / 2 + (n % 2 ? n / 2 % (f->nr / 4) : 0);
	if (i == 2 && n / 256 % 2)
		block = 1;
	if (i == GIANT) {
		if (!giant || no_giant || life.nr % 4 != 1 || memory_available() < SZ_1G * 3ull)
			return;
		block = giant;
		f->total = giant;
		/* Around a boundary of 2 MiB in the middle. */
		f->first = giant / 2 - f->nr / 2;
		split = giant;
	}
	f->blocks = block > 1;
	if (f->blocks)
		f->flags |= (u64)__builtin_ctzll(bytes(block)) << GUEST_MEMFD_BLOCK_SIZE_SHIFT;

	f->fd = vm_create_guest_memfd(f->m->vm, bytes(f->total), f->flags);
	/* All of it at once, or not at all: it may take long, or memory is in pieces. */
	if (i == GIANT && fallocate(f->fd, GMEM_ALLOC, 0, page_size)) {
		TEST_ASSERT(errno == ENOMEM, "1 GiB: errno %d", errno);
		close(f->fd);
		f->fd = -1;
		return;
	}
	if (i == GIANT)
		happened(EV_GIANT_LIFE);

	for (n = 0; n < f->strict; n++) {
		f->pages[n].private = !(f->flags & GUEST_MEMFD_FLAG_INIT_SHARED);
		f->pages[n].leaks = f->pages[n].private && f->m->protected;
	}
	for (n = 0; n < MAX_CHUNKS; n++)
		pthread_mutex_init(&f->locks[n], NULL);
	for (h = 0; h < 2; h++) {
		struct half *half = &f->halves[h];

		pthread_mutex_init(&half->lock, NULL);
		half->id = SLOT + 2 * i + h;
		half->start = h ? split : 0;
		half->nr = h ? f->total - split : split;
		half->gpa = GPA(i) + bytes(half->start);
		if (half->nr)
			TEST_ASSERT(!set_slot(f, half, false), "memslot %d: errno %d", half->id,
				    errno);
	}
	for (h = 0; h < 2; h++) {
		base = (h ? ALT_GPA(i) : GPA(i)) + bytes(f->first);
		virt_map(f->m->vm, base, base, bytes(f->nr) / f->m->vm->page_size);
	}
}

static void create_thread(int id, struct machine *m)
{
	struct thread *t = &life.threads[id];
	int i;

	t->id = id;
	t->m = m;
	t->random = seed ^ (u64)life.nr << 32 ^ (u64)id << 56;
	next_random(&t->random);
	t->nth = -1;
	if (m) {
		kvm_pthread_create(&t->thread, NULL, roam, t);
		return;
	}
	TEST_ASSERT(!pipe(t->pipe), "pipe");
	t->has_ring = ring_init(&t->ring);
	t->scratch = memfd_create("stress", 0);
	t->buffer = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	TEST_ASSERT(t->scratch >= 0 && !ftruncate(t->scratch, page_size), "memfd");
	for (i = 0; i < NR_FILES; i++)
		if (life.files[i].fd >= 0 && life.files[i].maps)
			t->views[i] = map_view(&life.files[i]);
}

static void *start_work(void *arg)
{
	struct thread *t = arg;

	/* It is the thread's own. */
	t->nth = open(FAIL_NTH, O_RDWR);
	require(t->nth >= 0 || !shared->supported[CONVERT_FAILING], FAIL_NTH);
	return work(t);
}

/* Take down what there is, in any order, while vCPUs roam. */
static void take_down(void)
{
	const int nr = NR_FILES * (MAX_WORKERS + 3);
	int order[NR_FILES * (MAX_WORKERS + 3)], i, j, what;
	struct file *f;

	for (i = 0; i < nr; i++) {
		j = next_random(&life.random) % (i + 1);
		order[i] = order[j];
		order[j] = i;
	}
	for (i = 0; i < nr; i++) {
		f = &life.files[order[i] / (MAX_WORKERS + 3)];
		what = order[i] % (MAX_WORKERS + 3);
		if (!f->total || (what < MAX_WORKERS && !life.threads[what].views[f->id]))
			continue;
		if (what < MAX_WORKERS) {
			require(!munmap(life.threads[what].views[f->id], bytes(f->nr)), "munmap");
		} else if (what == MAX_WORKERS) {
			if (f->fd >= 0)
				close(f->fd);
		} else if (f->halves[what - MAX_WORKERS - 1].nr && next_random(&life.random) % 2) {
			require(!__vm_set_user_memory_region2(f->m->vm,
							      f->halves[what - MAX_WORKERS - 1].id,
							      0, 0, 0, NULL, 0, 0), "deletion");
		}
	}
}

/* What is pinned, too, or else the process takes it along. */
static void end_life(void)
{
	const bool unpin = next_random(&life.random) % 2;
	int i;

	for (i = 0; i < nr_workers; i++) {
		struct thread *t = &life.threads[i];

		kvm_pthread_join(t->thread, NULL);
		t->entry = &shared->threads[i].log[0];
		if (unpin && t->pin.held)
			do_unpin(t);
	}
	audit(true);

	WRITE_ONCE(life.ending, true);
	take_down();
	for (i = MAX_WORKERS; i < MAX_THREADS; i++) {
		WRITE_ONCE(shared->threads[i].done, 1);
		if (life.threads[i].m)
			kvm_pthread_join(life.threads[i].thread, NULL);
	}
	if (has_rmp) {
		require(gmem_rmp_counter("owned") == life.rmp_owned,
			"the RMP has %lu pages of files that are closed",
			gmem_rmp_counter("owned") - life.rmp_owned);
		require(gmem_rmp_counter("violations") == rmp_violations, "violations");
	}
	for (i = 0; i < NR_VMS; i++)
		kvm_vm_free(life.machines[i].vm);
}

static void live(void)
{
	pthread_rwlockattr_t attr;
	u64 next = now_ms() + 700;
	int i, busy;

	self = NULL;
	if (life.cgroup)
		TEST_ASSERT(!write_group("a", "cgroup.procs", "0"), "cgroup.procs");
	pthread_rwlockattr_init(&attr);
	/* Or else nobody ever has silence. */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&life.quiet, &attr);
	life.rmp_owned = gmem_rmp_counter("owned");

	for (i = 0; i < NR_VMS; i++)
		create_machine(i);
	catch_sigbus();
	for (i = 0; i < NR_FILES; i++)
		create_file(i);
	for (i = 0; i < nr_workers; i++)
		create_thread(i, NULL);
	for (i = 0; i < nr_workers; i++)
		kvm_pthread_create(&life.threads[i].thread, NULL, start_work, &life.threads[i]);
	for (i = 0; i < NR_VMS && !no_roam; i++)
		create_thread(MAX_WORKERS + i, &life.machines[i]);
	WRITE_ONCE(shared->ready, 1);

	do {
		usleep(10000);
		if (now_ms() >= next) {
			audit(false);
			next = now_ms() + 700;
		}
		for (busy = 0, i = 0; i < nr_workers; i++)
			busy += !READ_ONCE(shared->threads[i].done);
	} while (busy);

	end_life();
	_exit(0);
}

/* From outside. */
static char *new_cgroup(void)
{
	static const char * const names[] = { "a", "b", "poor" };
	char root[PATH_MAX], path[PATH_MAX], *group;
	unsigned int i;

	if (cg_find_unified_root(root, sizeof(root), NULL) ||
	    cg_read_strstr(root, "cgroup.controllers", "memory") ||
	    (cg_read_strstr(root, "cgroup.subtree_control", "memory") &&
	     cg_write(root, "cgroup.subtree_control", "+memory")))
		return NULL;

	group = cg_name_indexed(root, "gmem_stress", life.nr);
	if (cg_create(group))
		return NULL;
	TEST_ASSERT(!cg_write(group, "cgroup.subtree_control", "+memory"), "subtree_control");
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", group, names[i]);
		TEST_ASSERT(!cg_create(path), "%s", path);
	}
	return group;
}

/* Somebody may still be on the way out. */
#define settles(cond)							\
({									\
	u64 __end = now_ms() + SETTLE_MS;				\
	bool __good;							\
									\
	while (!(__good = (cond)) && now_ms() < __end)			\
		usleep(10000);						\
	__good;								\
})

static bool remove_cgroup(char *group)
{
	static const char * const names[] = { "a", "b", "poor" };
	char path[PATH_MAX];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", group, names[i]);
		if (rmdir(path) && errno != ENOENT)
			return false;
	}
	return !rmdir(group);
}

/* Guest memory: all else that is a file's can be reclaimed. */
static long group_files(void)
{
	cg_write(life.cgroup, "memory.reclaim", "16M");
	return cg_read_key_long(life.cgroup, "memory.stat", "file ");
}

/* What is in use: a limit makes the kernel drop what it has set aside for each CPU. */
static long group_memory(void)
{
	cg_write(life.cgroup, "memory.high", "0");
	cg_write(life.cgroup, "memory.high", "max");
	return cg_read_long(life.cgroup, "memory.current");
}

/* VMs that KVM has for a process. */
static int count_vms(pid_t pid)
{
	DIR *dir = opendir("/sys/kernel/debug/kvm");
	struct dirent *entry;
	char prefix[16];
	int nr = 0;

	snprintf(prefix, sizeof(prefix), "%d-", pid);
	while (dir && (entry = readdir(dir)))
		nr += !strncmp(entry->d_name, prefix, strlen(prefix));
	if (dir)
		closedir(dir);
	return nr;
}

/* Users of KVM's module: VMs and files. */
static long count_users(void)
{
	static const char * const modules[] = { "kvm_amd", "kvm_intel" };
	char path[64];
	unsigned int i;
	long nr = 0;
	FILE *f;

	for (i = 0; i < ARRAY_SIZE(modules); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s/refcnt", modules[i]);
		f = fopen(path, "r");
		if (f && fscanf(f, "%ld", &nr) != 1)
			nr = -1;
		if (f)
			fclose(f);
	}
	return nr;
}

static void tell_log(int i)
{
	u32 end = shared->threads[i].nr_ops, nr = end > NR_LOG ? end - NR_LOG : 0;
	const struct log_entry *e;

	for (; nr < end; nr++) {
		e = &shared->threads[i].log[nr % NR_LOG];
		ksft_print_msg("  thread %d op %u: %s, file %u pages %u+%u: %s%d", i, e->nr,
			       ops[e->op.kind].name, e->op.file, e->page, e->pages,
			       e->done ? "" : "not done, ", e->ret);
		printf("  [%x %x %x %x %x %x]\n", e->op.r[0], e->op.r[1], e->op.r[2], e->op.r[3],
		       e->op.r[4], e->op.r[5]);
	}
}

static void tell_failure(const char *what)
{
	char who[32] = "";
	int i;

	if (shared->failed_thread == MAIN_THREAD)
		snprintf(who, sizeof(who), "main thread: ");
	else if (shared->failed_thread)
		snprintf(who, sizeof(who), "thread %u: ", shared->failed_thread - 1);
	ksft_print_msg("FAILED: seed %lu life %u: %s%s%s\n", seed, life.nr, who, what,
		       shared->message);
	for (i = 0; i < MAX_THREADS; i++)
		tell_log(i);
}

static bool __printf(1, 2) left_behind(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(shared->message, sizeof(shared->message), fmt, ap);
	va_end(ap);
	tell_failure("left behind: ");
	return false;
}

/* One life, and what is left of it. */
static bool one_life(u64 end, u64 stop_at)
{
	const long users = count_users(), fds = gmem_count_fds();
	const u64 owned = gmem_rmp_counter("owned"), leaked = gmem_rmp_counter("leaked");
	const u64 poisoned = shared->poisoned, before = shared->nr_ops;
	const u64 injected = gmem_rmp_counter("injected");
	u64 done, may_leak, beat = 0, beat_at = now_ms();
	bool kill_it, in_guest = false, stuck = false;
	long charged = 0;
	int status, i;
	pid_t pid;

	life.random = seed ^ (u64)life.nr << 16 ^ 0x5bd1e995;
	life.nr_ops = 30 + next_random(&life.random) % 150;
	life.stop_at = stop_at;
	kill_it = next_random(&life.random) % 2 && !no_kill;
	life.kill_at = next_random(&life.random) % (life.nr_ops * nr_workers);
	memset(shared->threads, 0, sizeof(shared->threads));
	shared->stop = 0;
	shared->ready = 0;
	shared->failed = 0;
	shared->failed_thread = 0;
	shared->message[0] = 0;
	life.cgroup = new_cgroup();
	if (life.cgroup)
		charged = group_memory();
	if (!life.cgroup) {
		shared->supported[LIMIT] = 0;
		shared->supported[POOR_CHILD] = 0;
		shared->supported[MIGRATE] = 0;
	}

	fflush(stdout);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork: errno %d", errno);
	if (!pid) {
		setpgid(0, 0);
		live();
	}
	setpgid(pid, pid);

	for (;;) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			break;
		done = READ_ONCE(shared->nr_ops) - before;
		if (READ_ONCE(shared->failed) ||
		    (kill_it && shared->ready && done >= life.kill_at)) {
			kill(-pid, SIGKILL);
			TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid");
			break;
		}
		if (now_ms() >= end)
			WRITE_ONCE(shared->stop, 1);

		/* Does anybody get anywhere? */
		done += shared->events[EV_AUDIT] + shared->ready;
		if (done != beat) {
			beat = done;
			beat_at = now_ms();
		} else if (now_ms() > beat_at + 1000 * STUCK_SECONDS) {
			stuck = true;
			for (i = 0; i < MAX_THREADS; i++)
				in_guest |= READ_ONCE(shared->threads[i].in_guest);
			kill(-pid, SIGKILL);
			TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid");
			break;
		}
		usleep(2000);
	}
	/* Its children. */
	kill(-pid, SIGKILL);

	if (stuck) {
		tell_failure(in_guest ? "a guest does not stop" : "nobody gets anywhere");
		return false;
	}
	if (shared->failed) {
		tell_failure("");
		return false;
	}
	if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL || !kill_it : status) {
		snprintf(shared->message, sizeof(shared->message), "status %#x", status);
		tell_failure("the process ended, ");
		return false;
	}
	happened(WIFSIGNALED(status) ? EV_KILLED : EV_ENDED);

	/* Whatever has become of it, nothing stays. */
	if (!settles(!count_vms(pid)))
		return left_behind("%d VMs", count_vms(pid));
	if (!settles(count_users() == users))
		return left_behind("%ld users of KVM, not %ld", count_users(), users);
	if (!settles(gmem_count_fds() == fds))
		return left_behind("%d open files, not %ld", gmem_count_fds(), fds);
	if (life.cgroup) {
		if (!settles(!group_files()))
			return left_behind("%ld bytes of files", group_files());
		if (cg_read_key_long(life.cgroup, "memory.events", "oom_kill "))
			return left_behind("a process that was killed");
		/* The kernel's own, some of which goes with time. */
		if (!settles(group_memory() - charged < SZ_512K))
			return left_behind("%ld bytes", group_memory() - charged);
		shared->most_left = max(shared->most_left, group_memory() - charged);
		if (!settles(remove_cgroup(life.cgroup)))
			return left_behind("somebody in a cgroup");
		free(life.cgroup);
	}
	if (has_rmp) {
		if (!settles(gmem_rmp_counter("owned") == owned))
			return left_behind("%lu pages in the RMP, not %lu",
					   gmem_rmp_counter("owned"), owned);
		may_leak = shared->poisoned - poisoned;
		/* A thread that is killed while something is to fail frees its memory so. */
		if (WIFSIGNALED(status))
			may_leak += gmem_rmp_counter("injected") - injected;
		if (gmem_rmp_counter("leaked") - leaked > may_leak)
			return left_behind("%lu pages, of which %lu could not be freed",
					   gmem_rmp_counter("leaked") - leaked, may_leak);
		if (gmem_rmp_verify() || gmem_rmp_counter("violations") != rmp_violations)
			return left_behind("%lu violations",
					   gmem_rmp_counter("violations") - rmp_violations);
	}
	return true;
}

static void find_out(void)
{
	static const char * const faults[] = {
		"failslab", "fail_page_alloc", "fail_usercopy",
		"kvm/emulated-rmp/fail_make_private", "kvm/emulated-rmp/fail_make_shared",
		"kvm/emulated-rmp/fail_reclaim",
	};
	u64 sizes = (u32)kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES);
	char path[PATH_MAX];
	const bool root = !geteuid();
	struct io_uring ring;
	unsigned long node;
	int i, fd;

	page_size = getpagesize();
	nr_words = page_size / sizeof(u64);
	huge = sizes & SZ_2M ? SZ_2M / page_size : 1;
	giant = sizes & SZ_1G ? SZ_1G / page_size : 0;
#ifdef __x86_64__
	has_protected = !plain && kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(PROTECTED_VM);
#endif
	has_rmp = has_protected && gmem_has_rmp();
	rmp_violations = gmem_rmp_counter("violations");

	for (i = 0; i < NR_OPS; i++)
		shared->supported[i] = 1;
	if (ring_init(&ring)) {
		io_uring_queue_exit(&ring);
	} else {
		shared->supported[PIN_RING] = 0;
		shared->supported[RING_IO] = 0;
	}
	fd = open(FAIL_NTH, O_RDWR);
	if (fd < 0 || no_fail)
		shared->supported[CONVERT_FAILING] = 0;
	else
		close(fd);
	/* Those that may sleep included, and without a word in the log. */
	gmem_write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	gmem_write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	for (i = 0; i < (int)ARRAY_SIZE(faults); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/verbose", faults[i]);
		gmem_write_file(path, "0");
	}
	if (!root || no_poison || madvise(NULL, 0, MADV_HWPOISON) ||
	    access(GMEM_CORRUPT_PFN, W_OK)) {
		shared->supported[POISON] = 0;
		shared->supported[SOFT_OFFLINE] = 0;
	}
	if (syscall(__NR_get_mempolicy, NULL, &node, 64, NULL, 0))
		shared->supported[POLICY] = 0;
	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		shared->supported[PREFAULT] = 0;
	if (huge == 1)
		shared->supported[POOR_CHILD] = 0;
	shared->supported[ROAM] = !no_roam;
}

static u64 number(const char *name, u64 def)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : def;
}

static bool word(const char *text)
{
	const char *config = getenv("GMEM_STRESS_CONFIG");

	return config && strstr(config, text);
}

int main(int argc, char **argv)
{
	u64 seconds, max_ops, start, end, lives = 0;
	bool good = true;
	int opt, i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) &
		     KVM_MEMORY_ATTRIBUTE_PRIVATE);

	seconds = number("GMEM_STRESS_SECONDS", 15);
	max_ops = number("GMEM_STRESS_OPS", 0);
	seed = number("GMEM_STRESS_SEED", time(NULL));
	nr_workers = number("GMEM_STRESS_THREADS", nr_workers);
	no_roam = word("noroam");
	no_giant = word("nogiant");
	no_kill = word("nokill");
	no_poison = word("nopoison");
	no_fail = word("nofail");
	plain = word("plain");
	while ((opt = getopt(argc, argv, "s:t:n:j:")) != -1) {
		switch (opt) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			max_ops = strtoull(optarg, NULL, 0);
			break;
		case 'j':
			nr_workers = atoi(optarg);
			break;
		default:
			ksft_exit_fail_msg("usage: %s [-s SEED] [-t SECONDS] [-n OPS] [-j NR]\n",
					   argv[0]);
		}
	}
	nr_workers = min(max(nr_workers, 1), MAX_WORKERS);

	setvbuf(stdout, NULL, _IOLBF, 0);
	ksft_print_header();
	ksft_set_plan(1);
	shared = kvm_mmap(align_up(sizeof(*shared), getpagesize()), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1);
	find_out();
	ksft_print_msg("seed %lu, %d threads, %lu s, blocks of %lu pages%s%s%s\n", seed, nr_workers,
		       seconds, huge, giant ? ", of 1 GiB" : "",
		       has_protected ? ", protected VM" : "", has_rmp ? ", RMP" : "");

	start = now_ms();
	end = seconds ? start + 1000 * seconds : ~0ull;
	while (good && now_ms() < end && (!max_ops || shared->nr_ops < max_ops)) {
		life.nr = ++lives;
		good = one_life(end, max_ops ?: ~0ull);
	}

	ksft_print_msg("%lu operations in %lu lives and %lu ms\n", shared->nr_ops, lives,
		       now_ms() - start);
	for (i = 0; i < NR_OPS; i++) {
		ksft_print_msg("  %-16s %8lu, refused %lu, %lu ms%s\n", ops[i].name, shared->ok[i],
			       shared->refused[i], shared->us[i] / 1000,
			       shared->supported[i] ? "" : " (not here)");
		/* What has not happened has not been tested.  By tries: machines are slow. */
		if (shared->supported[i] && !shared->ok[i] && shared->refused[i] >= MANY) {
			ksft_print_msg("%s has never succeeded\n", ops[i].name);
			good = false;
		}
	}
	ksft_print_msg("  memory left for a while: at most %ld bytes\n", shared->most_left);
	for (i = 0; i < NR_EVENTS; i++)
		ksft_print_msg("  %-44s %8lu\n", events[i], shared->events[i]);
	ksft_test_result(good, "stress\n");
	ksft_finished();
}
