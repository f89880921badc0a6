// SPDX-License-Identifier: GPL-2.0
/*
 * Conversion of guest_memfd pages while everybody else is at them: vCPUs,
 * threads of the VMM, its children, hole punching, readers of the state, and a
 * converter that gets killed.
 *
 * How a violation is seen
 *
 * For every page, memory that host and guest share has a counter which only
 * the thread that converts the page advances: before it asks for a conversion
 * and again when it has the answer.  Modulo 4 that is a phase, and two of the
 * four are certain: the page is shared (RACE_SHARED) or private (RACE_PRIVATE)
 * for as long as the counter stays the same.  So:
 *
 * - An access by the host which succeeds, and has the same counter in
 *   RACE_PRIVATE before and after, touched a private page.  One that is refused
 *   in RACE_SHARED is wrong as well.
 * - What the host wrote does not change under a guest which looks at it twice
 *   with the same counter in RACE_PRIVATE.  That catches the write of an access
 *   that began when it was still allowed.
 *
 * And for contents: each actor, a vCPU or a thread of the host, has a word of
 * its own in every page, which it alone writes, never twice the same value, and
 * which all read.  Punching is counted, too, when it begins and when it has
 * ended.  So a word
 *
 * - is not lost, unless a hole may have been punched meanwhile,
 * - is gone, when a hole was punched from beginning to end meanwhile (or else
 *   somebody has the old page still),
 * - never goes back to what it was,
 * - and belongs to this page and this actor.
 *
 * No rule relies on timing, so none can fail by chance.
 *
 * GMEM_RACE_SECONDS is how long a case may take, GMEM_RACE_ROUNDS how many
 * conversions it does at most, where conversions are counted.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include <linux/sizes.h>

#include "guest_memfd_util.h"
#include "processor.h"

#define NR_PAGES	64		/* that are raced for */
#define FILE_PAGES	1024
#define FIRST		(512 - NR_PAGES / 2)	/* across a boundary of 2 MiB */

#define SLOT		10
#define CTL_SLOT	11
#define BIG_SLOT	12
#define GPA		SZ_4G
#define CTL_GPA		(GPA + SZ_1G)
#define BIG_GPA		(GPA + SZ_2G)
#define BIG_SIZE	SZ_64M
#define NR_KILLS	50

#define MMAP_SHARED	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

static size_t page_size;

static int env_number(const char *name, int def)
{
	const char *text = getenv(name);

	return text ? atoi(text) : def;
}

static int race_seconds(void)
{
	return env_number("GMEM_RACE_SECONDS", 15);
}

/* How large the blocks of the files are that are raced for: 0, or log2 of it. */
static u64 race_flags(void)
{
	return MMAP_SHARED | (u64)env_number("GMEM_RACE_BLOCKS", 0) << GUEST_MEMFD_BLOCK_SIZE_SHIFT;
}

static int race_rounds(void)
{
	return env_number("GMEM_RACE_ROUNDS", 10000);
}

/* A case that is stuck, which includes a vCPU that does not come back. */
static int race_timeout(void)
{
	return 2 * race_seconds() + 60;
}

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

/*
 * What host and guest share.  Nothing in here has more than one writer at a
 * time, so that plain loads and stores in order are enough.
 */
enum race_phase {
	RACE_SHARED,
	RACE_GOING_PRIVATE,
	RACE_PRIVATE,
	RACE_GOING_SHARED,
};

struct race_page {
	u64 seq;		/* modulo 4 is the phase */
	u64 began, ended;	/* holes punched */
};

enum race_actor_id {
	VCPU0,
	VCPU1,
	HOST0,
	HOST1,
	HOST2,
	HOST3,
	SYSCALLS,
	NR_ACTORS,
};

/* What an actor knows of a word: the value that it wrote or saw, and when. */
struct race_word {
	u64 value;
	u64 last;	/* the last value that was not zero */
	u64 seq;
	u64 ended;	/* holes there were before, for sure */
	u64 began;	/* holes there were after, at most */
};

enum race_verdict_kind {
	FINE,
	TOUCHED_PRIVATE,
	REFUSED_SHARED,
	ODD_REFUSAL,
	HELD_PRIVATE,
	CHANGED_PRIVATE,
	LOST,
	STALE,
	WENT_BACK,
	FOREIGN,
	NR_VERDICTS,
};

static const char * const verdicts[NR_VERDICTS] = {
	[FINE]			= "fine",
	[TOUCHED_PRIVATE]	= "the host touched a private page",
	[REFUSED_SHARED]	= "the host was refused a shared page",
	[ODD_REFUSAL]		= "the host was refused in an unexpected way",
	[HELD_PRIVATE]		= "a page that the host holds became private",
	[CHANGED_PRIVATE]	= "a private page has changed without the guest",
	[LOST]			= "contents were lost",
	[STALE]			= "contents outlived a hole",
	[WENT_BACK]		= "contents are older than what was written or seen",
	[FOREIGN]		= "contents come from another page",
};

struct race_verdict {
	u64 kind;
	u64 page, owner, got, known, seq;
};

struct race_actor {
	u64 visits, refused;
	u64 written;		/* values used up */
	u64 random;
	struct race_verdict verdict;	/* the first */
	struct race_word words[NR_PAGES][NR_ACTORS];
};

enum race_role {
	ROLE_VISIT,		/* race_visit() until told to stop */
	ROLE_AUDIT,		/* read every word once */
	ROLE_PATTERN,		/* compare BIG_GPA with its pattern */
};

struct race_ctl {
	u64 stop;
	u64 role;
	u64 page_size;
	u64 nr_pages;
	u64 pins;		/* SYSCALLS takes references to pages */
	struct race_page pages[NR_PAGES];
	struct race_actor actors[NR_ACTORS];
	u64 audit[NR_PAGES][NR_ACTORS];
	u64 audited;

	/* The process that gets killed, and the one that kills it. */
	u64 target, inside, done, child_errno;
};

static u64 race_get(const u64 *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void race_put(u64 *p, u64 val)
{
	__atomic_store_n(p, val, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static u64 race_random(u64 *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 33;
}

/* Never twice the same, never zero. */
static u64 race_value(int actor, int page, u64 nr)
{
	return (u64)(actor + 1) << 56 | (u64)page << 40 | nr;
}

static bool value_belongs(u64 value, int actor, int page)
{
	return value >> 40 == race_value(actor, page, 0) >> 40;
}

static bool is_vcpu(int me)
{
	return me == VCPU0 || me == VCPU1;
}

static void race_judge(struct race_actor *a, u64 kind, int page, int owner, u64 got,
		       u64 known, u64 seq)
{
	if (a->verdict.kind)
		return;

	a->verdict.page = page;
	a->verdict.owner = owner;
	a->verdict.got = got;
	a->verdict.known = known;
	a->verdict.seq = seq;
	race_put(&a->verdict.kind, kind);
}

/*
 * Accesses of the kernel on behalf of its caller: copy_to_user() and
 * copy_from_user(), or references to pages (the "remote" process is this one).
 */
static int syscall_fd;

static noinline int race_syscall(u64 *word, u64 *val, bool write, bool pins)
{
	struct iovec local = { val, sizeof(*val) }, remote = { word, sizeof(*word) };
	ssize_t ret;

	if (pins && write)
		ret = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
	else if (pins)
		ret = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	else if (!write)
		ret = pwrite(syscall_fd, word, sizeof(*word), 0);
	else
		ret = pwrite(syscall_fd, val, sizeof(*val), 0) == sizeof(*val) ?
		      pread(syscall_fd, word, sizeof(*word), 0) : 0;

	if (ret == sizeof(*word))
		return 0;
	/* A copy byte by byte may get some way before the page is refused. */
	return ret < 0 ? errno : EFAULT;
}

/* Not inline: a guest has no thread-local data, not even for a look at it. */
static noinline int race_host(u64 *word, u64 *val, bool write)
{
	int code;

	if (write)
		code = gmem_sigbus(WRITE_ONCE(*word, *val));
	else
		code = gmem_sigbus(*val = READ_ONCE(*word));
	return code;
}

/* Read or write a word.  The value is 0, or how it was refused. */
static int race_access(struct race_ctl *ctl, int me, u64 *word, u64 *val, bool write)
{
	if (me == SYSCALLS)
		return race_syscall(word, val, write, ctl->pins);
	if (!is_vcpu(me))
		return race_host(word, val, write);

	if (write)
		WRITE_ONCE(*word, *val);
	else
		*val = READ_ONCE(*word);
	return 0;
}

/*
 * Access the word that @owner has in @page, and judge whether that was to
 * succeed.  If @seq then is not ~0, it was in force all the time.
 */
static bool race_touch(struct race_ctl *ctl, int me, void *mem, int page, int owner,
		       u64 *val, bool write, u64 *seq)
{
	u64 *word = mem + page * ctl->page_size + owner * 64;
	const int refusal = me == SYSCALLS ? EFAULT : BUS_ADRERR;
	struct race_actor *a = &ctl->actors[me];
	u64 before, after;
	int err;

	before = race_get(&ctl->pages[page].seq);
	err = race_access(ctl, me, word, val, write);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	after = race_get(&ctl->pages[page].seq);
	*seq = before == after ? before : ~0ull;

	if (err) {
		WRITE_ONCE(a->refused, a->refused + 1);
		if (err != refusal)
			race_judge(a, ODD_REFUSAL, page, owner, err, refusal, before);
		else if (before == after && before % 4 == RACE_SHARED)
			race_judge(a, REFUSED_SHARED, page, owner, err, 0, before);
	} else if (!is_vcpu(me) && before == after && before % 4 == RACE_PRIVATE) {
		race_judge(a, TOUCHED_PRIVATE, page, owner, *val, write, before);
	}
	return !err;
}

/* Read the word that @owner has in @page, and compare with what @me knows. */
static void race_read(struct race_ctl *ctl, int me, void *mem, int page, int owner)
{
	struct race_word *known = &ctl->actors[me].words[page][owner];
	struct race_page *p = &ctl->pages[page];
	struct race_actor *a = &ctl->actors[me];
	u64 val, seq, ended, began;
	bool whole, gone;

	ended = race_get(&p->ended);
	if (!race_touch(ctl, me, mem, page, owner, &val, false, &seq))
		return;
	began = race_get(&p->began);

	/* The kernel may copy bytes one by one: no value to rely on. */
	if (me == SYSCALLS)
		return;

	whole = began == known->ended;
	gone = ended > known->began;

	if (is_vcpu(me) && !is_vcpu(owner) && seq != ~0ull && seq % 4 == RACE_PRIVATE &&
	    seq == known->seq && val != known->value && (val || whole))
		race_judge(a, CHANGED_PRIVATE, page, owner, val, known->value, seq);

	if (owner == SYSCALLS)
		goto out;

	if (val && !value_belongs(val, owner, page))
		race_judge(a, FOREIGN, page, owner, val, known->value, seq);
	else if (known->value && !val && whole)
		race_judge(a, LOST, page, owner, val, known->value, seq);
	else if (known->value && val == known->value && gone)
		race_judge(a, STALE, page, owner, val, known->value, seq);
	else if (val && val < known->last)
		race_judge(a, WENT_BACK, page, owner, val, known->last, seq);
	else if (owner == me && val && val != known->value)
		race_judge(a, WENT_BACK, page, owner, val, known->value, seq);

	/* What has been written stays so; what has been seen is seen anew. */
	if (owner == me && val)
		return;
	if (val)
		known->last = val;
out:
	known->value = val;
	known->seq = seq;
	known->ended = ended;
	known->began = began;
}

static void race_write(struct race_ctl *ctl, int me, void *mem, int page)
{
	struct race_word *known = &ctl->actors[me].words[page][me];
	u64 val = race_value(me, page, ++ctl->actors[me].written);
	u64 ended = race_get(&ctl->pages[page].ended);
	u64 seq;

	if (!race_touch(ctl, me, mem, page, me, &val, true, &seq))
		return;

	known->value = val;
	known->last = val;
	known->ended = ended;
	known->began = race_get(&ctl->pages[page].began);
}

/* Everything an actor does with a page: its own word, and somebody else's. */
static void race_visit(struct race_ctl *ctl, int me, void *mem, int page)
{
	struct race_actor *a = &ctl->actors[me];

	race_read(ctl, me, mem, page, me);
	race_write(ctl, me, mem, page);
	race_read(ctl, me, mem, page, race_random(&a->random) % NR_ACTORS);
	WRITE_ONCE(a->visits, a->visits + 1);
}

static int race_any_page(struct race_ctl *ctl, int me)
{
	return race_random(&ctl->actors[me].random) % ctl->nr_pages;
}

static u64 big_pattern(u64 page)
{
	return 0x5a5a000000000000ull + page;
}

/* The guest.  The file's pages are at @mem in it. */
static void guest_code(int me, void *mem)
{
	struct race_ctl *ctl = (void *)CTL_GPA;
	struct race_actor *a = &ctl->actors[me];
	u64 page, val;
	int owner;

	for (;;) {
		switch (race_get(&ctl->role)) {
		case ROLE_VISIT:
			while (!race_get(&ctl->stop))
				race_visit(ctl, me, mem, race_any_page(ctl, me));
			break;
		case ROLE_AUDIT:
			for (page = 0; page < NR_PAGES; page++)
				for (owner = 0; owner < NR_ACTORS; owner++)
					race_touch(ctl, me, mem, page, owner,
						   &ctl->audit[page][owner], false, &val);
			race_put(&ctl->audited, 1);
			break;
		case ROLE_PATTERN:
			while (!race_get(&ctl->stop)) {
				page = race_random(&a->random) % (BIG_SIZE / ctl->page_size);
				val = READ_ONCE(*(u64 *)(BIG_GPA + page * ctl->page_size));
				if (val != big_pattern(page))
					race_judge(a, val ? FOREIGN : LOST, page, 0, val,
						   big_pattern(page), 0);
				WRITE_ONCE(a->visits, a->visits + 1);
			}
			break;
		}
		GUEST_DONE();
	}
}

/* The ioctls.  The value is 0 or an errno. */
static int race_set(int fd, u64 offset, u64 size, bool private, u64 *error_offset)
{
	struct kvm_memory_attributes2 attr = {
		.offset = offset,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.error_offset = ~0ull,
	};
	int ret = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) ? errno : 0;

	if (error_offset)
		*error_offset = attr.error_offset;
	return ret;
}

/* @size is the limit, and then the length of the run. */
static int race_run_at(int fd, u64 offset, u64 *size, bool *private)
{
	struct kvm_memory_attributes2 attr = { .offset = offset, .size = *size };

	if (ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &attr))
		return -errno;
	if (attr.offset != offset || attr.flags ||
	    (attr.attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE))
		return -EPROTO;

	*size = attr.size;
	*private = attr.attributes;
	return 0;
}

/* All of it is one run of @private. */
static bool race_is(int fd, u64 offset, u64 size, bool private)
{
	bool is_private = false;
	u64 run = size;

	return !race_run_at(fd, offset, &run, &is_private) && run == size &&
	       is_private == private;
}

struct race_info {
	u64 size, present, private, shared, converting, poisoned;
};

static bool race_fdinfo(int fd, struct race_info *info)
{
	const struct {
		const char *format;
		u64 *field;
	} lines[] = {
		{ "gmem-size:\t%lu\n", &info->size },
		{ "gmem-present:\t%lu\n", &info->present },
		{ "gmem-private:\t%lu\n", &info->private },
		{ "gmem-shared:\t%lu\n", &info->shared },
		{ "gmem-converting:\t%lu\n", &info->converting },
		{ "gmem-poisoned:\t%lu\n", &info->poisoned },
	};
	char path[40], line[128];
	unsigned int i, found = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f))
		for (i = 0; i < ARRAY_SIZE(lines); i++)
			found += sscanf(line, lines[i].format, lines[i].field) == 1;
	fclose(f);
	return found == ARRAY_SIZE(lines);
}

/* A VM with two vCPUs, a file, and the part of it that is raced for. */
struct race {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	struct race_ctl *ctl;
	size_t ctl_size;
	int fd;
	void *mem;
	size_t size;
	u64 start;		/* in the file */
};

static void *race_map(struct race *r, int flags)
{
	void *mem = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, r->fd,
			 r->start);

	TEST_ASSERT(mem != MAP_FAILED, "mmap() of the file: errno %d", errno);
	return mem;
}

static void race_create(struct race *r, unsigned long type)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = type,
	};
	struct userspace_mem_region *slot0;
	u64 gpa;
	int i;

	r->vm = __vm_create_with_vcpus(shape, 2, 512, guest_code, r->vcpus);
	gmem_catch_sigbus();

	/* Shared with children. */
	r->ctl_size = align_up(sizeof(*r->ctl), page_size);
	r->ctl = kvm_mmap(r->ctl_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	r->ctl->page_size = page_size;
	r->ctl->nr_pages = NR_PAGES;
	for (i = 0; i < NR_ACTORS; i++)
		r->ctl->actors[i].random = i;
	vm_set_user_memory_region(r->vm, CTL_SLOT, 0, CTL_GPA, r->ctl_size, r->ctl);
	virt_map(r->vm, CTL_GPA, CTL_GPA, r->ctl_size / r->vm->page_size);

	/* Not shared with children, whose copy would cost every vCPU its mappings. */
	slot0 = memslot2region(r->vm, 0);
	TEST_ASSERT(!madvise(slot0->host_mem, slot0->region.memory_size, MADV_DONTFORK),
		    "MADV_DONTFORK: errno %d", errno);

	r->fd = vm_create_guest_memfd(r->vm, FILE_PAGES * page_size, race_flags());
	r->size = NR_PAGES * page_size;
	r->start = FIRST * page_size;
	vm_set_user_memory_region2(r->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
				   FILE_PAGES * page_size, NULL, r->fd, 0);
	gpa = GPA + r->start;
	virt_map(r->vm, gpa, gpa, r->size / r->vm->page_size);
	for (i = 0; i < 2; i++)
		vcpu_args_set(r->vcpus[i], 2, (u64)i, gpa);
	r->mem = race_map(r, 0);

	syscall_fd = memfd_create("race", 0);
	TEST_ASSERT(syscall_fd >= 0, "memfd_create(): errno %d", errno);
}

static void race_destroy(struct race *r)
{
	close(syscall_fd);
	kvm_munmap(r->mem, r->size);
	close(r->fd);
	kvm_vm_free(r->vm);
	kvm_munmap(r->ctl, r->ctl_size);
}

/* Convert @nr pages that nobody else converts. */
static int race_convert(struct race *r, int first, int nr, bool private, u64 *error_offset)
{
	const u64 from = private ? RACE_SHARED : RACE_PRIVATE;
	u64 *seq, moving = 0;
	int i, err;

	for (i = 0; i < nr; i++) {
		seq = &r->ctl->pages[first + i].seq;
		if (*seq % 4 == from) {
			moving |= BIT_ULL(i);
			race_put(seq, *seq + 1);
		}
	}

	err = race_set(r->fd, r->start + first * page_size, nr * page_size, private,
		       error_offset);

	for (i = 0; i < nr; i++) {
		seq = &r->ctl->pages[first + i].seq;
		if (moving & BIT_ULL(i))
			race_put(seq, *seq + (err ? 3 : 1));
	}
	return err;
}

/* The threads. */
struct race_thread {
	struct race *r;
	pthread_t thread;
	int me;			/* actor */
	void *mem;		/* its view of the pages */

	int first, nr;		/* pages to convert */
	u64 random;
	u64 done;		/* conversions, holes, iterations */
	u64 again;		/* conversions that got EAGAIN */

	struct kvm_vcpu *vcpu;
	u64 faults;		/* KVM_EXIT_MEMORY_FAULT */
	u64 fault_gpa, fault_flags;

	int err;		/* what it gave up with */
	const char *what;
};

static bool race_stopped(struct race *r)
{
	return race_get(&r->ctl->stop);
}

static void race_give_up(struct race_thread *t, int err, const char *what)
{
	t->err = err;
	t->what = what;
	race_put(&t->r->ctl->stop, 1);
}

/* KVM_RUN until it exits, or t->what comes with a signal. */
static int race_run(struct race_thread *t)
{
	int ret;

	do {
		ret = __vcpu_run(t->vcpu);
	} while (ret && errno == EINTR && !READ_ONCE(t->what));

	assert_on_unhandled_exception(t->vcpu);
	return ret;
}

static void *vcpu_thread(void *arg)
{
	struct race_thread *t = arg;

	for (;;) {
		if (!race_run(t)) {
			if (get_ucall(t->vcpu, NULL) == UCALL_DONE)
				return NULL;
			race_give_up(t, t->vcpu->run->exit_reason, "exit of KVM_RUN");
			vcpu_dump(stderr, t->vcpu, 2);
			return NULL;
		}

		if (errno != EFAULT || t->vcpu->run->exit_reason != KVM_EXIT_MEMORY_FAULT) {
			race_give_up(t, errno, t->what ?: "KVM_RUN");
			vcpu_dump(stderr, t->vcpu, 2);
			return NULL;
		}

		t->faults++;
		t->fault_gpa = t->vcpu->run->memory_fault.gpa;
		t->fault_flags = t->vcpu->run->memory_fault.flags;
		if (race_stopped(t->r))
			return NULL;
	}
}

static void *host_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race_ctl *ctl = t->r->ctl;

	while (!race_stopped(t->r))
		race_visit(ctl, t->me, t->mem, race_any_page(ctl, t->me));
	return NULL;
}

static void *punch_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race *r = t->r;
	struct race_page *p = r->ctl->pages;
	int i, nr, first;

	while (!race_stopped(r)) {
		nr = 1 + race_random(&t->random) % (race_random(&t->random) % 8 ? 4 : NR_PAGES);
		first = race_random(&t->random) % (NR_PAGES - nr + 1);

		for (i = first; i < first + nr; i++)
			race_put(&p[i].began, p[i].began + 1);
		if (fallocate(r->fd, GMEM_PUNCH, r->start + first * page_size, nr * page_size))
			race_give_up(t, errno, "punching a hole");
		for (i = first; i < first + nr; i++)
			race_put(&p[i].ended, p[i].ended + 1);
		t->done++;

		if (race_random(&t->random) % 2 &&
		    fallocate(r->fd, GMEM_ALLOC, r->start + first * page_size, nr * page_size))
			race_give_up(t, errno, "allocating");
		usleep(500 + race_random(&t->random) % 2000);
	}
	return NULL;
}

/* One random conversion of pages that are this thread's to convert. */
static void convert_once(struct race_thread *t)
{
	const int nr = 1 + race_random(&t->random) % (race_random(&t->random) % 4 ? 4 : t->nr);
	const int first = t->first + race_random(&t->random) % (t->nr - nr + 1);
	const bool private = race_random(&t->random) % 2;
	const u64 start = t->r->start + first * page_size;
	u64 error_offset;
	int err;

	err = race_convert(t->r, first, nr, private, &error_offset);
	if (err == EAGAIN && private) {
		t->again++;
		if (error_offset % page_size || error_offset < start ||
		    error_offset >= start + nr * page_size)
			race_give_up(t, err, "converting, with a wrong error_offset");
		else if (!race_is(t->r->fd, error_offset, page_size, false))
			race_give_up(t, err, "converting, the page in the way is not shared");
		return;
	}

	if (err)
		race_give_up(t, err, "converting");
	else if (!race_is(t->r->fd, start, nr * page_size, private))
		race_give_up(t, 0, "reading back the state");
	t->done++;
}

static void *convert_thread(void *arg)
{
	struct race_thread *t = arg;

	while (!race_stopped(t->r)) {
		convert_once(t);
		if (race_random(&t->random) % 4 == 0)
			usleep(race_random(&t->random) % 2000);
	}
	return NULL;
}

/* What VMMs do to their mappings. */
static void visit_some(struct race_thread *t, void *mem)
{
	int i;

	for (i = 0; i < 8; i++)
		race_visit(t->r->ctl, t->me, mem, race_any_page(t->r->ctl, t->me));
	t->done++;
}

/* Locking stops at a page that is private: an error is no news. */
static void *mlock_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race *r = t->r;
	void *mem;

	while (!race_stopped(r)) {
		mem = race_map(r, race_random(&t->random) % 4 ? 0 : MAP_LOCKED);
		switch (race_random(&t->random) % 3) {
		case 0:
			mlock(mem, r->size);
			break;
		case 1:
			mlock2(mem, r->size, MLOCK_ONFAULT);
			break;
		}
		visit_some(t, mem);
		if (race_random(&t->random) % 2)
			munlock(mem, r->size);
		visit_some(t, mem);
		kvm_munmap(mem, r->size);
	}
	return NULL;
}

static void *populate_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race *r = t->r;
	void *mem;

	while (!race_stopped(r)) {
		mem = race_map(r, MAP_POPULATE);
		visit_some(t, mem);
		switch (race_random(&t->random) % 4) {
		case 0:
			madvise(mem, r->size, MADV_DONTNEED);
			break;
		case 1:
			madvise(mem, r->size, MADV_POPULATE_WRITE);
			break;
		case 2:
			mprotect(mem, r->size, PROT_READ);
			mprotect(mem, r->size, PROT_READ | PROT_WRITE);
			break;
		}
		visit_some(t, mem);
		kvm_munmap(mem, r->size);
	}
	return NULL;
}

/* The child works in its parent's name, who waits. */
static void *fork_thread(void *arg)
{
	struct race_thread *t = arg;
	int status;
	pid_t pid;

	while (!race_stopped(t->r)) {
		visit_some(t, t->mem);

		pid = fork();
		if (!pid) {
			if (race_random(&t->random) % 2)
				visit_some(t, t->mem);
			_exit(0);
		}
		race_random(&t->random);
		if (pid < 0)
			race_give_up(t, errno, "fork()");
		else if (waitpid(pid, &status, 0) != pid || status)
			race_give_up(t, status, "status of a child");
	}
	return NULL;
}

/* Only ever move to where a mapping of this thread is: addresses are free for all. */
static void *mremap_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race *r = t->r;
	void *mem = race_map(r, 0);
	void *to, *ret;

	while (!race_stopped(r)) {
		visit_some(t, mem);
		to = kvm_mmap(r->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		ret = mremap(mem, r->size, r->size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		if (ret == MAP_FAILED) {
			race_give_up(t, errno, "mremap()");
			break;
		}
		mem = to;
	}
	kvm_munmap(mem, r->size);
	return NULL;
}

/*
 * Hold a page for a while by putting a piece of it into a pipe.  From when it
 * is in there until it is taken out the page is not private.  For a moment: a
 * conversion may well wait for it to pass.  For long: none is to.
 */
static void *pin_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race_ctl *ctl = t->r->ctl;
	struct race_actor *a = &ctl->actors[t->me];
	u64 before, after, val;
	int pipes[2], page;
	struct iovec iov;
	u64 until;

	if (pipe(pipes)) {
		race_give_up(t, errno, "pipe()");
		return NULL;
	}

	while (!race_stopped(t->r)) {
		page = race_any_page(ctl, t->me);
		iov.iov_base = t->mem + page * page_size;
		iov.iov_len = sizeof(val);

		before = race_get(&ctl->pages[page].seq);
		if (vmsplice(pipes[1], &iov, 1, 0) != sizeof(val)) {
			if (errno != EFAULT)
				race_give_up(t, errno, "vmsplice()");
			WRITE_ONCE(a->refused, a->refused + 1);
			after = race_get(&ctl->pages[page].seq);
			if (before == after && before % 4 == RACE_SHARED)
				race_judge(a, REFUSED_SHARED, page, 0, EFAULT, 0, before);
			continue;
		}

		until = now_ms() + (race_random(&t->random) % 16 ? 1 : 1000);
		do {
			after = race_get(&ctl->pages[page].seq);
			if (after % 4 == RACE_PRIVATE)
				race_judge(a, HELD_PRIVATE, page, 0, after, before, after);
			usleep(race_random(&t->random) % 100);
		} while (now_ms() < until && !race_stopped(t->r));
		if (read(pipes[0], &val, sizeof(val)) != sizeof(val))
			race_give_up(t, errno, "reading the pipe");
		WRITE_ONCE(a->visits, a->visits + 1);
	}
	close(pipes[0]);
	close(pipes[1]);
	return NULL;
}

#define MAX_THREADS	16

struct race_crew {
	struct race_thread threads[MAX_THREADS];
	int nr;
};

static struct race_thread *race_start(struct race_crew *crew, struct race *r,
				      void *(*fn)(void *), int me)
{
	struct race_thread *t = &crew->threads[crew->nr++];

	TEST_ASSERT(crew->nr <= MAX_THREADS, "too many threads");
	t->r = r;
	t->me = me;
	t->mem = r->mem;
	t->random = me + 0x1000 * crew->nr;
	t->nr = NR_PAGES;
	if (fn == vcpu_thread)
		t->vcpu = r->vcpus[me];
	if (fn)
		kvm_pthread_create(&t->thread, NULL, fn, t);
	return t;
}

static bool race_any_verdict(struct race *r)
{
	int i;

	for (i = 0; i < NR_ACTORS; i++)
		if (race_get(&r->ctl->actors[i].verdict.kind))
			return true;
	return false;
}

/* Something is wrong already, or the time is over. */
static bool race_over(struct race *r, u64 end)
{
	return now_ms() >= end || race_stopped(r) || race_any_verdict(r);
}

static void wake_up(int sig)
{
}

/* A guest that is lost does not look whether it should stop. */
static void race_join_vcpu(struct race_thread *t)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 20;
	if (!pthread_timedjoin_np(t->thread, NULL, &ts))
		return;

	signal(SIGUSR1, wake_up);
	WRITE_ONCE(t->what, "the guest does not stop");
	pthread_kill(t->thread, SIGUSR1);
	kvm_pthread_join(t->thread, NULL);
}

/* Stop everybody.  A thread without a function is this one. */
static void race_stop(struct __test_metadata *_metadata, struct race *r,
		      struct race_crew *crew)
{
	int i;

	race_put(&r->ctl->stop, 1);
	for (i = 0; i < crew->nr; i++) {
		struct race_thread *t = &crew->threads[i];

		if (t->vcpu)
			race_join_vcpu(t);
		else if (t->thread)
			kvm_pthread_join(t->thread, NULL);
		EXPECT_EQ(NULL, t->what)
			TH_LOG("thread %d of actor %d: %s: %d (%s)", i, t->me, t->what,
			       t->err, strerror(t->err));
		EXPECT_EQ(0, t->faults)
			TH_LOG("KVM_EXIT_MEMORY_FAULT on vCPU %d, the last at %#lx, flags %#lx",
			       t->me, (unsigned long)t->fault_gpa,
			       (unsigned long)t->fault_flags);
	}
	crew->nr = 0;
}

static void race_verdicts(struct __test_metadata *_metadata, struct race *r)
{
	int i;

	for (i = 0; i < NR_ACTORS; i++) {
		const struct race_verdict *v = &r->ctl->actors[i].verdict;

		EXPECT_EQ(FINE, v->kind)
			TH_LOG("actor %d: %s: page %d, word of %d: %#lx, known %#lx, seq %ld",
			       i, verdicts[v->kind % NR_VERDICTS], (int)v->page, (int)v->owner,
			       (unsigned long)v->got, (unsigned long)v->known, (long)v->seq);
	}
}

/*
 * When all is quiet and shared: the pages hold what was last written, for the
 * host and for the guest.
 */
static void race_audit(struct __test_metadata *_metadata, struct race *r)
{
	struct race_thread t = { .r = r, .vcpu = r->vcpus[0] };
	int page, i, differ = 0;

	EXPECT_EQ(0, gmem_rmp_verify());
	ASSERT_EQ(0, race_convert(r, 0, NR_PAGES, false, NULL));
	EXPECT_TRUE(race_is(r->fd, r->start, r->size, false));

	for (page = 0; page < NR_PAGES; page++)
		for (i = 0; i < SYSCALLS; i++)
			race_read(r->ctl, i, r->mem, page, i);

	/* A vCPU that was given up may still have to be told that it is over. */
	r->ctl->role = ROLE_AUDIT;
	for (i = 0; i < 2 && !r->ctl->audited; i++)
		vcpu_thread(&t);
	EXPECT_EQ(NULL, t.what);
	EXPECT_EQ(0, t.faults);
	ASSERT_TRUE(r->ctl->audited);
	for (page = 0; page < NR_PAGES; page++)
		for (i = 0; i < NR_ACTORS; i++)
			differ += r->ctl->audit[page][i] !=
				  *(u64 *)(r->mem + page * page_size + i * 64);
	EXPECT_EQ(0, differ);
	race_verdicts(_metadata, r);
}

/* An actor that did nothing has tested nothing. */
static void race_expect_visits(struct __test_metadata *_metadata, struct race *r, int me)
{
	const struct race_actor *a = &r->ctl->actors[me];

	EXPECT_LT(0, a->visits)
		TH_LOG("actor %d never got anywhere", me);
	ksft_print_msg("  actor %d: %lu visits, refused %lu times\n", me,
		       (unsigned long)a->visits, (unsigned long)a->refused);
}

/* Whatever the VM's type, the guest has shared and private pages alike. */
FIXTURE(guest)
{
	struct race r;
};

FIXTURE_VARIANT(guest)
{
	unsigned long type;
};

FIXTURE_VARIANT_ADD(guest, plain)
{
	.type = VM_TYPE_DEFAULT,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(guest, protected)
{
	.type = KVM_X86_SW_PROTECTED_VM,
};
#endif

FIXTURE_SETUP(guest)
{
#ifdef __x86_64__
	if (variant->type && !(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(variant->type)))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
#endif
	race_create(&self->r, variant->type);
}

FIXTURE_TEARDOWN(guest)
{
	race_destroy(&self->r);
}

/*
 * One page goes back and forth while a vCPU and a thread of the host never
 * leave it alone: nobody gets in the way of anybody.
 */
TEST_F_TIMEOUT(guest, round_trips, race_timeout())
{
	const u64 end = now_ms() + 1000 * race_seconds();
	struct race *r = &self->r;
	struct race_crew crew = {};
	u64 random = 0;
	int i, err = 0, rounds = race_rounds(), again = 0;

	r->ctl->nr_pages = 1;
	race_start(&crew, r, vcpu_thread, VCPU0);
	race_start(&crew, r, host_thread, HOST0);

	for (i = 0; i < 2 * rounds && !race_over(r, end); i++) {
		err = race_convert(r, 0, 1, i % 2 == 0, NULL);
		again += err == EAGAIN;
		if (err && err != EAGAIN)
			break;
		/* Now and then leave it as it is, for somebody to notice. */
		if (race_random(&random) % 32 == 0)
			usleep(200);
	}
	EXPECT_EQ(0, err)
		TH_LOG("conversion %d: %s", i, strerror(err));
	EXPECT_EQ(0, again);
	race_stop(_metadata, r, &crew);

	ksft_print_msg("%d of %d round trips\n", i / 2, rounds);
	race_expect_visits(_metadata, r, VCPU0);
	race_expect_visits(_metadata, r, HOST0);
	race_audit(_metadata, r);
}

/* Everybody at once, over a few pages. */
TEST_F_TIMEOUT(guest, all_sides, race_timeout())
{
	const u64 end = now_ms() + 1000 * race_seconds();
	struct race_thread *converters[2], *puncher, *t;
	struct race *r = &self->r;
	struct race_crew crew = {};
	void *other = race_map(r, 0);
	int i;

	for (i = VCPU0; i <= VCPU1; i++)
		race_start(&crew, r, vcpu_thread, i);
	for (i = HOST0; i <= HOST2; i++) {
		/* One of them in a mapping of its own. */
		t = race_start(&crew, r, NULL, i);
		if (i == HOST2)
			t->mem = other;
		kvm_pthread_create(&t->thread, NULL, host_thread, t);
	}
	race_start(&crew, r, host_thread, SYSCALLS);
	puncher = race_start(&crew, r, punch_thread, -1);
	for (i = 0; i < 2; i++) {
		/* Two that meet in the middle of the pages, each has its half. */
		t = race_start(&crew, r, NULL, -1);
		t->nr = NR_PAGES / 2;
		t->first = i * t->nr;
		converters[i] = t;
		kvm_pthread_create(&t->thread, NULL, convert_thread, t);
	}

	while (!race_over(r, end))
		usleep(10000);
	race_stop(_metadata, r, &crew);

	ksft_print_msg("%lu + %lu conversions, %lu holes\n", (unsigned long)converters[0]->done,
		       (unsigned long)converters[1]->done, (unsigned long)puncher->done);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, converters[i]->again);
		EXPECT_LT(0, converters[i]->done);
	}
	EXPECT_LT(0, puncher->done);
	for (i = 0; i < NR_ACTORS; i++)
		if (i != HOST3)
			race_expect_visits(_metadata, r, i);
	kvm_munmap(other, r->size);
	race_audit(_metadata, r);
}

/* What is about files and the host more than about guests. */
FIXTURE(file)
{
	struct race r;
};

FIXTURE_SETUP(file)
{
	race_create(&self->r, VM_TYPE_DEFAULT);
}

FIXTURE_TEARDOWN(file)
{
	race_destroy(&self->r);
}

/* Nothing that a VMM does with its mappings makes a conversion fail. */
TEST_F_TIMEOUT(file, mappings, race_timeout())
{
	const struct {
		void *(*fn)(void *arg);
		int me;
		const char *what;
	} workers[] = {
		{ mlock_thread, HOST0, "mlock" },
		{ populate_thread, HOST1, "populate" },
		{ fork_thread, HOST2, "fork" },
		{ mremap_thread, HOST3, "mremap" },
	};
	const u64 end = now_ms() + 1000 * race_seconds();
	struct race_thread *threads[ARRAY_SIZE(workers)], *converter;
	struct race *r = &self->r;
	struct race_crew crew = {};
	u64 rounds = race_rounds();
	unsigned int i;

	race_start(&crew, r, vcpu_thread, VCPU0);
	for (i = 0; i < ARRAY_SIZE(workers); i++)
		threads[i] = race_start(&crew, r, workers[i].fn, workers[i].me);
	converter = race_start(&crew, r, NULL, -1);

	while (converter->done < rounds && !converter->again && !race_over(r, end))
		convert_once(converter);
	EXPECT_EQ(0, converter->again);
	race_stop(_metadata, r, &crew);

	ksft_print_msg("%lu conversions\n", (unsigned long)converter->done);
	for (i = 0; i < ARRAY_SIZE(workers); i++) {
		ksft_print_msg("  %s: %lu times\n", workers[i].what,
			       (unsigned long)threads[i]->done);
		EXPECT_LT(0, threads[i]->done);
		race_expect_visits(_metadata, r, workers[i].me);
	}
	race_expect_visits(_metadata, r, VCPU0);
	race_audit(_metadata, r);
}

/*
 * References do make it fail, and that is what they are for: whoever holds a
 * page, for long or for the moment of a copy, holds a shared page.
 */
TEST_F_TIMEOUT(file, references, race_timeout())
{
	const u64 end = now_ms() + 1000 * race_seconds();
	struct race_thread *converter;
	struct race *r = &self->r;
	struct race_crew crew = {};
	u64 rounds = race_rounds();

	r->ctl->pins = 1;
	race_start(&crew, r, vcpu_thread, VCPU0);
	race_start(&crew, r, host_thread, HOST0);
	race_start(&crew, r, pin_thread, HOST1);
	race_start(&crew, r, host_thread, SYSCALLS);
	converter = race_start(&crew, r, NULL, -1);

	while ((converter->done < rounds || !converter->again) && !race_over(r, end))
		convert_once(converter);
	race_stop(_metadata, r, &crew);

	ksft_print_msg("%lu conversions, %lu refused\n", (unsigned long)converter->done,
		       (unsigned long)converter->again);
	EXPECT_LT(0, converter->done);
	EXPECT_LT(0, converter->again);
	race_expect_visits(_metadata, r, VCPU0);
	race_expect_visits(_metadata, r, HOST0);
	race_expect_visits(_metadata, r, HOST1);
	race_expect_visits(_metadata, r, SYSCALLS);
	race_audit(_metadata, r);
}

/* To be killed: all of the file back and forth, until then. */
static void convert_until_killed(struct race_ctl *ctl, int fd, bool private)
{
	int err;

	for (;; private = !private) {
		race_put(&ctl->inside, 1);
		race_put(&ctl->target, private);
		err = race_set(fd, 0, BIG_SIZE, private, NULL);
		if (err) {
			race_put(&ctl->child_errno, err);
			_exit(1);
		}
		race_put(&ctl->inside, 0);
		race_put(&ctl->done, ctl->done + 1);
	}
}

/*
 * A process dies in the middle of a long conversion, which then is either done
 * or was never begun, for the whole range.  A vCPU looks on: to a guest it is
 * all the same.
 */
TEST_F_TIMEOUT(file, killed, race_timeout())
{
	const u64 end = now_ms() + 1000 * race_seconds();
	const u64 nr = BIG_SIZE / page_size;
	struct race *r = &self->r;
	struct race_ctl *ctl = r->ctl;
	struct race_crew crew = {};
	struct race_info info = {};
	u64 i, page, run, lost, random = 1;
	bool private, before = false;
	int fd, kills, inside = 0, status;
	u64 *mem;
	pid_t pid;

	fd = vm_create_guest_memfd(r->vm, BIG_SIZE, race_flags());
	vm_set_user_memory_region2(r->vm, BIG_SLOT, KVM_MEM_GUEST_MEMFD, BIG_GPA, BIG_SIZE,
				   NULL, fd, 0);
	virt_map(r->vm, BIG_GPA, BIG_GPA, BIG_SIZE / r->vm->page_size);
	mem = kvm_mmap(BIG_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (page = 0; page < nr; page++)
		mem[page * page_size / sizeof(*mem)] = big_pattern(page);

	ctl->role = ROLE_PATTERN;
	race_start(&crew, r, vcpu_thread, VCPU0);

	for (kills = 0; kills < NR_KILLS && !race_over(r, end); kills++) {
		/* Pages that the host has mapped take longer. */
		if (!before)
			madvise((void *)mem + race_random(&random) % 8 * SZ_8M, SZ_8M,
				MADV_POPULATE_READ);

		ctl->inside = 0;
		ctl->done = 0;
		ctl->target = before;
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			convert_until_killed(ctl, fd, !before);

		/* A few conversions in, as far as it gets. */
		i = race_random(&random) % 4;
		while (race_get(&ctl->done) < i && !ctl->child_errno && !race_over(r, end))
			usleep(200);
		usleep(race_random(&random) % 20000);
		kill(pid, SIGKILL);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
			TH_LOG("child: %s", strerror(ctl->child_errno));

		run = BIG_SIZE;
		private = false;
		ASSERT_EQ(0, race_run_at(fd, 0, &run, &private));
		EXPECT_EQ(BIG_SIZE, run);
		if (ctl->inside)
			inside++;
		else
			EXPECT_EQ(ctl->target, private);
		ASSERT_TRUE(race_fdinfo(fd, &info));
		EXPECT_EQ(private ? nr : 0, info.private);
		EXPECT_EQ(nr, info.private + info.shared);
		EXPECT_EQ(0, info.converting);

		/* It can be converted on, and has kept what it had. */
		ASSERT_EQ(0, race_set(fd, 0, BIG_SIZE, false, NULL));
		EXPECT_TRUE(race_is(fd, 0, BIG_SIZE, false));
		for (lost = 0, i = 0; i < 64; i++) {
			page = race_random(&random) % nr;
			lost += mem[page * page_size / sizeof(*mem)] != big_pattern(page);
		}
		EXPECT_EQ(0, lost);

		before = race_random(&random) % 2;
		ASSERT_EQ(0, race_set(fd, 0, BIG_SIZE, before, NULL));
		EXPECT_TRUE(race_is(fd, 0, BIG_SIZE, before));
	}
	race_stop(_metadata, r, &crew);
	race_verdicts(_metadata, r);

	ksft_print_msg("%d of %d kills, %d of them within the ioctl\n", kills, NR_KILLS, inside);
	race_expect_visits(_metadata, r, VCPU0);

	ASSERT_EQ(0, race_set(fd, 0, BIG_SIZE, false, NULL));
	for (lost = 0, page = 0; page < nr; page++)
		lost += mem[page * page_size / sizeof(*mem)] != big_pattern(page);
	EXPECT_EQ(0, lost);
	ASSERT_TRUE(race_fdinfo(fd, &info));
	EXPECT_EQ(nr, info.shared);
	EXPECT_EQ(nr, info.present);
	EXPECT_EQ(0, info.private);
	EXPECT_EQ(0, info.converting);

	kvm_munmap(mem, BIG_SIZE);
	close(fd);
}

/*
 * Readers of the state.  A quarter of the file is private and a quarter is
 * shared for good, and the other two change.
 */
#define QUARTER		1024

struct race_readers {
	int fd;
	u64 stop;
};

struct race_reader {
	struct race_readers *all;
	pthread_t thread;
	u64 random;
	u64 done;
	int quarter;		/* of a converter */
	int err;
	const char *what;
	u64 a, b, c, d;		/* what was wrong */
};

static void reader_found(struct race_reader *t, const char *what, u64 a, u64 b, u64 c, u64 d)
{
	t->what = what;
	t->a = a;
	t->b = b;
	t->c = c;
	t->d = d;
	race_put(&t->all->stop, 1);
}

/* In pages: where the run at @start that is limited by @limit may end. */
static bool run_is_right(u64 start, u64 limit, u64 run, bool private)
{
	u64 left;

	if (!run || run > limit)
		return false;
	if (start >= 2 * QUARTER)
		return true;

	left = min(limit, QUARTER - start % QUARTER);
	if (start < QUARTER)
		return private && run == left;
	return !private && run >= left;
}

static void *state_thread(void *arg)
{
	struct race_reader *t = arg;
	u64 start, limit, run;
	bool private;
	int err;

	while (!race_get(&t->all->stop)) {
		start = race_random(&t->random) % (4 * QUARTER);
		limit = 1 + race_random(&t->random) % (4 * QUARTER - start);
		run = limit * page_size;
		err = race_run_at(t->all->fd, start * page_size, &run, &private);
		if (err)
			reader_found(t, "reading a run", start, limit, -err, 0);
		else if (run % page_size || !run_is_right(start, limit, run / page_size, private))
			reader_found(t, "a run", start, limit, run, private);
		t->done++;
	}
	return NULL;
}

static void *fdinfo_thread(void *arg)
{
	struct race_reader *t = arg;
	struct race_info info;

	while (!race_get(&t->all->stop)) {
		if (!race_fdinfo(t->all->fd, &info))
			reader_found(t, "fdinfo", 0, 0, 0, 0);
		else if (info.size != 4 * QUARTER * page_size || info.poisoned ||
			 info.private + info.shared != 4 * QUARTER ||
			 info.private < QUARTER || info.shared < QUARTER ||
			 info.present > 4 * QUARTER || info.converting > QUARTER)
			reader_found(t, "fdinfo: private, shared, present, converting",
				     info.private, info.shared, info.present, info.converting);
		t->done++;
	}
	return NULL;
}

static void *quarter_thread(void *arg)
{
	struct race_reader *t = arg;
	u64 nr, start;
	bool private;
	int err;

	while (!race_get(&t->all->stop)) {
		nr = 1 + race_random(&t->random) % (race_random(&t->random) % 2 ? 8 : QUARTER);
		start = t->quarter * QUARTER + race_random(&t->random) % (QUARTER - nr + 1);
		private = race_random(&t->random) % 2;
		err = race_set(t->all->fd, start * page_size, nr * page_size, private, NULL);
		if (err)
			reader_found(t, "converting", start, nr, private, err);
		else if (!race_is(t->all->fd, start * page_size, nr * page_size, private))
			reader_found(t, "state after converting", start, nr, private, 0);
		t->done++;
	}
	return NULL;
}

static void *holes_thread(void *arg)
{
	struct race_reader *t = arg;
	u64 nr, start;

	while (!race_get(&t->all->stop)) {
		nr = 1 + race_random(&t->random) % 64;
		start = race_random(&t->random) % (4 * QUARTER - nr + 1);
		if (fallocate(t->all->fd, race_random(&t->random) % 2 ? GMEM_ALLOC : GMEM_PUNCH,
			      start * page_size, nr * page_size))
			reader_found(t, "fallocate()", start, nr, errno, 0);
		t->done++;
		usleep(1000);
	}
	return NULL;
}

TEST_F_TIMEOUT(file, readers, race_timeout())
{
	void *(* const fns[])(void *) = {
		quarter_thread, quarter_thread, holes_thread, state_thread, state_thread,
		fdinfo_thread, fdinfo_thread,
	};
	const char * const names[] = {
		"conversions", "conversions", "holes", "runs", "runs", "fdinfo", "fdinfo",
	};
	const u64 end = now_ms() + 1000 * race_seconds();
	struct race_reader threads[ARRAY_SIZE(fns)] = {};
	struct race_readers all = {};
	struct race_info info = {};
	u64 rounds = race_rounds();
	unsigned int i;

	all.fd = vm_create_guest_memfd(self->r.vm, 4 * QUARTER * page_size, race_flags());
	ASSERT_EQ(0, race_set(all.fd, 0, QUARTER * page_size, true, NULL));

	for (i = 0; i < ARRAY_SIZE(fns); i++) {
		threads[i].all = &all;
		threads[i].random = i;
		threads[i].quarter = 2 + i;
		kvm_pthread_create(&threads[i].thread, NULL, fns[i], &threads[i]);
	}
	while (now_ms() < end && !race_get(&all.stop) &&
	       READ_ONCE(threads[0].done) + READ_ONCE(threads[1].done) < rounds)
		usleep(10000);
	race_put(&all.stop, 1);

	for (i = 0; i < ARRAY_SIZE(fns); i++) {
		struct race_reader *t = &threads[i];

		kvm_pthread_join(t->thread, NULL);
		EXPECT_EQ(NULL, t->what)
			TH_LOG("%s: %ld, %ld, %ld, %ld", t->what, (long)t->a, (long)t->b,
			       (long)t->c, (long)t->d);
		EXPECT_LT(0, t->done);
		ksft_print_msg("%lu %s\n", (unsigned long)t->done, names[i]);
	}

	/* All quiet: exact. */
	ASSERT_EQ(0, race_set(all.fd, 2 * QUARTER * page_size, QUARTER * page_size, true, NULL));
	ASSERT_EQ(0, race_set(all.fd, 3 * QUARTER * page_size, QUARTER * page_size, false, NULL));
	for (i = 0; i < 4; i++)
		EXPECT_TRUE(race_is(all.fd, i * QUARTER * page_size, QUARTER * page_size,
				    i % 2 == 0));
	ASSERT_TRUE(race_fdinfo(all.fd, &info));
	EXPECT_EQ(2 * QUARTER, info.private);
	EXPECT_EQ(2 * QUARTER, info.shared);
	EXPECT_EQ(0, info.converting);
	close(all.fd);
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) &
		     KVM_MEMORY_ATTRIBUTE_PRIVATE);

	page_size = getpagesize();
	return test_harness_run(argc, argv);
}
