// SPDX-License-Identifier: GPL-2.0
/*
 * Hostile user space: random and boundary arguments for all that takes a
 * guest_memfd, and what a process must not be able to do with one.
 *
 * hostile.random runs programs, each in a process of its own, half of them without
 * privileges.  A program is a sequence of calls; a call is an operation and some
 * random words, which choose resources (VMs, files, mappings, memslots) and values
 * when it is made.  A model follows: the private pages of each file, what is in them,
 * memslots, mappings.  So it is known of each call whether it has to fail, with which
 * errors, and what it must have changed.
 *
 *   GMEM_FUZZ_SECONDS	how long (20)
 *   GMEM_FUZZ_PROGRAMS	how many programs (as many as there is time for)
 *   GMEM_FUZZ_CALLS	calls in a program (150)
 *   GMEM_FUZZ_SEED	where to begin (random; printed)
 *   GMEM_FUZZ_ONLY	one program, as a failure prints it
 *   GMEM_FUZZ_PLAIN	1: see what is reached, but do not use it
 *
 * If the kernel reports coverage (CONFIG_KCOV, and the objects compiled for that),
 * programs that reached something new are kept, and changed.  A program is named by
 * the seeds of all its changes: 1f-2-a37 is made from 1f, changed by 2, then a37.
 *
 * The other cases are about what no amount of random calls would tell: memory that a
 * file takes which is large and empty, and calls whose process is killed.
 */
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "guest_memfd_util.h"

#define MAX_CALLS	400
#define MAX_FILES	6
#define MAX_MAPS	8
#define MAX_SLOTS	8
#define MAX_RUNS	300
#define MAX_LINEAGE	12
#define NR_WORDS	10
#define NR_VMS		2
#define NOBODY		65534

/* What a call may allocate; files may be larger, if sparse. */
#define MAX_BYTES	SZ_16M
#define MAX_SIZE	(BIT_ULL(63) - page_size)
/* Beyond that, a VM may have no room for a memslot, nor a process for a mapping. */
#define GPA_LIMIT	BIT_ULL(36)
#define MAP_LIMIT	BIT_ULL(46)
/* A program that has not ended by then is killed, and if that takes as long, stuck. */
#define STUCK		150
/* Enough for the slowest emulator. */
#define LONG		3600

#define KCOV_INIT_TRACE	_IOR('c', 1, unsigned long)
#define KCOV_ENABLE	_IO('c', 100)
#define KCOV_SIZE	(64 << 10)

#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif
#ifndef __NR_set_mempolicy_home_node
#define __NR_set_mempolicy_home_node 450
#endif

static size_t page_size;
static int kvm_fd;
static u64 flags_supported, block_sizes;
static bool has_protected, old_scheme;
static const char *cgroup;	/* for programs, or NULL */

static u64 mix(u64 x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static u64 rng_state;

static u64 rng(void)
{
	return mix(rng_state++);
}

static u64 env_number(const char *name, u64 def)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : def;
}

/* The clock will not do: without a battery, it begins with 0 at each boot. */
static u64 some_number(void)
{
	u32 n = 0;

	if (getrandom(&n, sizeof(n), GRND_INSECURE) != sizeof(n))
		n = time(NULL) << 16 ^ getpid();
	return n;
}

static int create_vm(bool protected)
{
	int type = 0;

#ifdef __x86_64__
	if (protected)
		type = KVM_X86_SW_PROTECTED_VM;
#endif
	return ioctl(kvm_fd, KVM_CREATE_VM, type);
}

/* Programs */

struct call {
	u32 op;
	u32 word[NR_WORDS];
};

#define MODE_NOBODY	1	/* without privileges */
#define MODE_FLIP	2	/* a thread that changes arguments under the call */
#define MODE_RACE	4	/* two processes make the calls in turn, at once */
#define MODE_SIGNALS	8	/* signals come */

struct program {
	u32 mode;
	int nr;
	struct call call[MAX_CALLS];
};

struct lineage {
	int nr;
	u64 seed[MAX_LINEAGE];
};

#define OP_CREATE	0	/* in ops[] */

static void random_call(struct call *call);

static void change_program(struct program *p)
{
	int times = 1 + rng() % 6, at;

	while (times--) {
		at = rng() % p->nr;
		switch (rng() % 8) {
		case 0:		/* insert */
			if (p->nr == MAX_CALLS)
				break;
			memmove(&p->call[at + 1], &p->call[at], (p->nr++ - at) * sizeof(*p->call));
			random_call(&p->call[at]);
			break;
		case 1:		/* remove */
			if (p->nr < 2)
				break;
			memmove(&p->call[at], &p->call[at + 1], (--p->nr - at) * sizeof(*p->call));
			break;
		case 2:		/* repeat later */
			p->call[at + rng() % (p->nr - at)] = p->call[at];
			break;
		case 3:
			random_call(&p->call[at]);
			break;
		case 4:
			p->mode ^= 1 << rng() % 4;
			break;
		default:
			p->call[at].word[rng() % NR_WORDS] = rng();
			break;
		}
	}
}

static void make_program(struct program *p, const struct lineage *line)
{
	int i;

	rng_state = line->seed[0];
	p->nr = min_t(u64, max_t(u64, env_number("GMEM_FUZZ_CALLS", 150), 8), MAX_CALLS);
	p->mode = rng() % 2 ? MODE_NOBODY : 0;
	p->mode |= rng() % 8 ? 0 : MODE_FLIP;
	p->mode |= rng() % 5 ? 0 : MODE_RACE;
	p->mode |= rng() % 6 ? 0 : MODE_SIGNALS;
	for (i = 0; i < p->nr; i++)
		random_call(&p->call[i]);
	/* There is little to do without a file. */
	p->call[0].op = OP_CREATE;
	p->call[1].op = OP_CREATE;
	for (i = 1; i < line->nr; i++) {
		rng_state = line->seed[i];
		change_program(p);
	}
}

/* What the test and a program share. */
static struct shared {
	u64 calls, failed_calls, sigbus;
	char failure[600];
	char line[MAX_CALLS][240];
} *shared;

/* The model */

struct runs {
	int nr;
	bool lost;		/* too many, or it cannot be known */
	struct { u64 end; bool private; } run[MAX_RUNS];
};

struct file {
	int fd, fd2;		/* -1: closed */
	int vm;			/* -1: gone */
	u64 size, flags, block;
	bool in_place;
	bool fuzzy;		/* who knows how many pages are there */
	u64 present;
	struct runs runs;
	short *content;		/* the first byte of each page, -1: who knows; or NULL */
};

struct map {
	u8 *addr;
	u64 len, offset;
	struct file *file;
};

struct slot {
	bool used;
	int vm;
	struct file *file;
	u32 id, flags;
	u64 gpa, size, uaddr, offset;
};

struct vm {
	int fd, vcpu;
	bool protected;
};

enum { PIPE_READ, PIPE_WRITE, MEMFD, NULL_FD, PATH_FD, DIR_FD, NR_OTHERS };

static struct ctx {
	const struct program *p;
	const struct call *call;
	int nr, next_word;
	struct vm vm[NR_VMS];
	struct file file[MAX_FILES];
	int nr_files;
	struct map map[MAX_MAPS];
	int nr_maps;
	struct slot slot[MAX_SLOTS];
	int other[NR_OTHERS];
	u8 *page;		/* a page for arguments, with nothing behind it */
	u8 *readonly, *nothing;
	bool hostile;		/* the call may have odd arguments */
	bool racing;		/* somebody else makes calls, too */
	bool pinned;		/* there are references to pages, in a pipe */
	struct file *target;	/* what a call is about, or NULL */
	/* Of the arguments of a call, as the kernel sees them. */
	bool readable, writable;
	/* The errors that there is reason for: see judge(). */
	int must[24], nr_must, may[24], nr_may;
} *c;

static void __noreturn __printf(1, 2) wrong(const char *fmt, ...)
{
	va_list ap;

	if (!shared->failure[0]) {
		va_start(ap, fmt);
		vsnprintf(shared->failure, sizeof(shared->failure), fmt, ap);
		va_end(ap);
	}
	_exit(1);
}

#define SURE(cond, fmt, ...)						\
do {									\
	if (!(cond))							\
		wrong("call %d: %s: " fmt, c->nr, #cond, ##__VA_ARGS__);	\
} while (0)

static void __printf(1, 2) say(const char *fmt, ...)
{
	char *line = shared->line[c->nr];
	size_t len = strlen(line);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line + len, sizeof(shared->line[0]) - len, fmt, ap);
	va_end(ap);
}

static int file_nr(const struct file *f)
{
	return f ? f - c->file : -1;
}

static u32 word(void)
{
	int i = c->next_word++;

	return i < NR_WORDS ? c->call->word[i] : mix(c->call->word[0] + i);
}

static u64 word64(void)
{
	u64 high = word();

	return high << 32 | word();
}

static u32 pick(u32 n)
{
	return word() % n;
}

static bool chance(u32 n)
{
	return !pick(n);
}

/* Is this to be wrong?  Not for half of the calls, or hardly any would work. */
static bool odd(u32 n)
{
	return c->hostile && chance(n);
}

static u64 odd_number(void)
{
	switch (pick(12)) {
	case 0: return 0;
	case 1: return 1;
	case 2: return page_size - 1;
	case 3: return page_size;
	case 4: return page_size + 1;
	case 5: return 1ull << pick(64);
	case 6: return (1ull << pick(64)) - 1;
	case 7: return -(u64)page_size;
	case 8: return 1ull << 63;
	case 9: return MAX_SIZE;
	case 10: return word64();
	default: return word64() & -(u64)page_size;
	}
}

static bool aligned(u64 x)
{
	return x % page_size == 0;
}

/* An error of core code, whichever that is. */
#define ANY	0

/* There is reason for a call to fail, if @when. */
static void must(bool when, int err)
{
	if (when && c->nr_must < (int)ARRAY_SIZE(c->must))
		c->must[c->nr_must++] = err;
}

/* It may fail, and for another reason if it must. */
static void may(bool when, int err)
{
	if (when && c->nr_may < (int)ARRAY_SIZE(c->may))
		c->may[c->nr_may++] = err;
}

static bool is_reason(const int *list, int nr, int err)
{
	while (nr--)
		if (list[nr] == err || list[nr] == ANY)
			return true;
	return false;
}

static const char *why_must(void)
{
	return !c->nr_must ? "nothing" : c->must[0] == ANY ? "something" : strerror(c->must[0]);
}

/*
 * A call that must fail does, and with an error that there is reason for.  Anything
 * goes where arguments change under it, or others make calls.  Return whether it worked.
 */
static bool judge(long ret, int err)
{
	__atomic_fetch_add(&shared->calls, 1, __ATOMIC_RELAXED);
	if (ret != -1) {
		say(" = %#lx", ret);
		SURE(ret >= 0, "returns %ld", ret);
		if (c->nr_must && !c->racing && !(c->p->mode & MODE_FLIP))
			wrong("call %d: works, and should fail (%s)", c->nr, why_must());
		return true;
	}

	say(" = %s", strerrorname_np(err) ?: "?");
	__atomic_fetch_add(&shared->failed_calls, 1, __ATOMIC_RELAXED);
	if (!is_reason(c->must, c->nr_must, err) && !is_reason(c->may, c->nr_may, err) &&
	    !c->racing && !(c->p->mode & MODE_FLIP))
		wrong("call %d: fails (%s); what there is reason for: %s", c->nr, strerror(err),
		      why_must());
	return false;
}

/* Make a call, and judge it. */
#define JUDGE(call)							\
({									\
	long __r;							\
									\
	errno = 0;							\
	__r = (long)(call);						\
	judge(__r, errno);						\
})

static void runs_add(struct runs *r, u64 end, bool private)
{
	if (r->nr && r->run[r->nr - 1].private == private)
		r->nr--;
	if (r->nr == MAX_RUNS) {
		r->lost = true;
		return;
	}
	r->run[r->nr].end = end;
	r->run[r->nr++].private = private;
}

static void runs_set(struct runs *r, u64 start, u64 end, bool private)
{
	static struct runs old;
	u64 at = 0, stop;
	int i;

	if (r->lost)
		return;

	old = *r;
	r->nr = 0;
	for (i = 0; i < old.nr; i++, at = stop) {
		stop = old.run[i].end;
		if (at < start)
			runs_add(r, min_t(u64, stop, start), old.run[i].private);
		if (stop > start && at < end)
			runs_add(r, min_t(u64, stop, end), private);
		if (stop > end)
			runs_add(r, stop, old.run[i].private);
	}
}

/* Is what is at @offset of a file private?  Behind its end it is like that.  -1: who knows. */
static int is_private(const struct file *f, u64 offset)
{
	const struct runs *r = &f->runs;
	int i;

	if (offset >= f->size)
		return 1;
	for (i = 0; !r->lost && i < r->nr; i++)
		if (offset / page_size < r->run[i].end)
			return r->run[i].private;
	return -1;
}

static u64 runs_private(const struct runs *r)
{
	u64 at = 0, nr = 0;
	int i;

	for (i = 0; i < r->nr; at = r->run[i++].end)
		nr += r->run[i].private ? r->run[i].end - at : 0;
	return nr;
}

/* What the kernel says; false if there is too much of it. */
static bool runs_read(const struct file *f, struct runs *r)
{
	u64 at, size, attributes;

	r->nr = 0;
	r->lost = false;
	for (at = 0; at < f->size && r->nr < MAX_RUNS; at += size) {
		size = f->size - at;
		SURE(!gmem_attributes(f->fd, at, &size, &attributes), "errno %d", errno);
		SURE(size && aligned(size) && size <= f->size - at, "size %#lx", size);
		SURE(!(attributes & ~GMEM_PRIVATE), "attributes %#lx", attributes);
		runs_add(r, (at + size) / page_size, attributes);
	}
	return at == f->size;
}

/* What each page of a range begins with. */
static void set_content(struct file *f, u64 offset, u64 len, short byte)
{
	u64 i, end = min_t(u64, offset + len, f->size) / page_size;

	for (i = offset / page_size; f->content && i < end; i++)
		f->content[i] = byte;
}

/* Like gmem_fdinfo_read(), where the root directory may be for others, and signals come. */
static void read_info(int fd, struct gmem_fdinfo *info)
{
	ssize_t len = 0, more;
	char path[40];
	int proc;

	snprintf(path, sizeof(path), "self/fdinfo/%d", fd);
	proc = open(path, O_RDONLY);
	SURE(proc >= 0, "errno %d", errno);
	do {
		more = read(proc, info->text + len, sizeof(info->text) - 1 - len);
		if (more < 0 && errno == EINTR)
			continue;
		SURE(more >= 0, "errno %d", errno);
		len += more;
	} while (more);
	info->text[len] = 0;
	close(proc);
}

static u64 info_number(const struct gmem_fdinfo *info, const char *key)
{
	u64 val = 0;

	SURE(gmem_fdinfo(info, key, &val), "%s", key);
	return val;
}

/* Is a file as it should be? */
static void check_file(struct file *f)
{
	u64 nr = f->size / page_size, present, private;
	static struct runs now;
	struct gmem_fdinfo info;
	int i;

	if (f->fd < 0)
		return;

	read_info(f->fd, &info);
	present = info_number(&info, "gmem-present");
	private = info_number(&info, "gmem-private");
	SURE(info_number(&info, "gmem-size") == f->size, "gmem%d", file_nr(f));
	SURE(info_number(&info, "gmem-flags") == f->flags, "gmem%d", file_nr(f));
	SURE(info_number(&info, "gmem-block-size") == f->block, "gmem%d", file_nr(f));
	SURE(info_number(&info, "gmem-poisoned") == 0, "gmem%d", file_nr(f));
	SURE(present <= nr && private <= nr, "%#lx, %#lx of %#lx", present, private, nr);
	if (c->racing) {
		/* It says how much there is to make room for, and nothing more. */
		f->present = present;
		f->runs.lost = true;
		f->fuzzy = true;
		set_content(f, 0, f->size, -1);
		return;
	}

	SURE(info_number(&info, "gmem-shared") == nr - private, "%#lx of %#lx", private, nr);
	SURE(info_number(&info, "gmem-converting") == 0, "gmem%d", file_nr(f));
	SURE(info_number(&info, "gmem-owned") <= min_t(u64, present, private), "%#lx, %#lx",
	     present, private);
	SURE(info_number(&info, "gmem-blocks-whole") <= present / (f->block / page_size),
	     "%#lx present", present);
	SURE(f->fuzzy || present == f->present, "gmem%d: %lu pages, was %lu", file_nr(f), present,
	     f->present);
	f->present = present;
	f->fuzzy = false;

	if (!f->in_place) {
		SURE(private == nr, "%#lx of %#lx", private, nr);
		return;
	}

	if (!runs_read(f, &now)) {
		f->runs.lost = true;
		return;
	}
	SURE(runs_private(&now) == private, "gmem%d: GET %#lx, fdinfo %#lx", file_nr(f),
	     runs_private(&now), private);
	for (i = 0; i < now.nr && !f->runs.lost; i++)
		SURE(i < f->runs.nr && now.run[i].end == f->runs.run[i].end &&
		     now.run[i].private == f->runs.run[i].private,
		     "gmem%d: run %d ends at %#lx", file_nr(f), i, (u64)now.run[i].end);
	f->runs = now;
}

/* A call may have brought pages, of whichever file. */
static void all_fuzzy(void)
{
	int i;

	for (i = 0; i < c->nr_files; i++)
		c->file[i].fuzzy = true;
}

/* Resources */

static struct file *pick_file(void)
{
	u32 n = word();
	int i;

	/* One that is open, if there is one. */
	for (i = 0; i < c->nr_files; i++) {
		struct file *f = &c->file[(n + i) % c->nr_files];

		if (f->fd >= 0) {
			c->target = f;
			return f;
		}
	}
	return NULL;
}

/* One that is in use, if there is one. */
static struct slot *pick_slot(void)
{
	u32 n = word(), i;

	for (i = 0; i < MAX_SLOTS; i++)
		if (c->slot[(n + i) % MAX_SLOTS].used)
			break;
	return &c->slot[(n + i) % MAX_SLOTS];
}

static struct map *pick_map(void)
{
	u32 n = word();

	return c->nr_maps ? &c->map[n % c->nr_maps] : NULL;
}

/* A part of a mapping. */
static u8 *pick_part(const struct map *m, u64 *len)
{
	u64 nr = m->len / page_size, first = word() % nr;

	*len = chance(3) ? page_size : (1 + word() % (nr - first)) * page_size;
	return m->addr + first * page_size;
}

static int pick_other_fd(void)
{
	u32 n = pick(NR_OTHERS + 5);

	if (n < NR_OTHERS)
		return c->other[n];
	switch (n - NR_OTHERS) {
	case 0: return -1;
	case 1: return INT_MAX;
	case 2: return kvm_fd;
	case 3: return c->vm[pick(NR_VMS)].fd;
	default: return c->vm[pick(NR_VMS)].vcpu;
	}
}

/* A descriptor of a file; without one, of something else. */
static int fd_of_file(const struct file *f)
{
	if (!f)
		return pick_other_fd();
	return f->fd2 >= 0 && chance(2) ? f->fd2 : f->fd;
}

static struct file *file_of_fd(int fd)
{
	int i;

	for (i = 0; fd >= 0 && i < c->nr_files; i++)
		if (c->file[i].fd == fd || c->file[i].fd2 == fd)
			return &c->file[i];
	return NULL;
}

/* A place in a file; or a number that is none. */
static void pick_range(u64 size, u64 *offset, u64 *len)
{
	const u64 nr = size / page_size;
	u64 start, n;

	if (odd(3)) {
		/* Often a page too much. */
		*offset = chance(2) ? odd_number() : word() % nr * page_size;
		*len = chance(2) ? odd_number() : size - *offset + page_size;
		return;
	}

	start = word() % min_t(u64, nr, SZ_1M);
	if (chance(4))
		start -= start % 512;
	if (nr > SZ_1M && chance(3))
		start = nr - 1 - pick(4096);
	else if (nr > SZ_1M && chance(2))
		start += nr / 2;

	switch (pick(6)) {
	case 0:
		n = 1;
		break;
	case 1:
		n = nr - start;
		break;
	case 2:
		n = 512;
		break;
	case 3:
		n = nr;
		start = 0;
		break;
	case 4:
		n = 1 + pick(3);
		break;
	default:
		n = 1 + pick(2048);
		break;
	}
	*offset = start * page_size;
	*len = min_t(u64, n, nr - start) * page_size;
}

/*
 * Put the arguments in @arg somewhere, most often where there is nothing wrong with it,
 * and say in c->readable and c->writable what the kernel can do with them there.
 */
static void *pointer(const void *arg, size_t size)
{
	u8 *p = c->page + page_size - size;
	struct map *m;
	u64 at;

	c->readable = true;
	c->writable = true;
	switch (c->hostile ? pick(24) : 24) {
	case 0:
		say(" nowhere");
		p = (u8 *)(u64)pick(2);
		goto bad;
	case 1:
		say(" PROT_NONE");
		p = c->nothing + pick(page_size / 8) * 8;
		goto bad;
	case 2:
		say(" kernel");
		p = (u8 *)(1ull << 63 | word64());
		goto bad;
	case 3:
		say(" over the end");
		p += 8;
		memcpy(p, arg, size - 8);
		goto bad;
	case 4:
		say(" odd");
		p -= 1 + pick(7);
		break;
	case 5:
		say(" read-only");
		memcpy(c->readonly + page_size, arg, size);
		c->writable = false;
		return c->readonly;
	case 6:
	case 7:
		m = pick_map();
		if (!m)
			break;
		/* It is a page that may come in, or not be there for anyone. */
		at = pick(m->len / page_size) * page_size;
		all_fuzzy();
		set_content(m->file, m->offset + at, page_size, -1);
		if (!gmem_sigbus(memcpy(m->addr + at, arg, size))) {
			say(" gmem");
			return m->addr + at;
		}
		if (is_private(m->file, m->offset + at) == 1) {
			say(" private");
			p = m->addr + at;
			goto bad;
		}
		break;
	}
	memcpy(p, arg, size);
	return p;

bad:
	c->readable = false;
	c->writable = false;
	return p;
}

/* Calls: KVM */

static void new_vm(struct vm *vm, bool protected)
{
	vm->protected = protected;
	do {
		vm->fd = create_vm(protected);
	} while (vm->fd < 0 && errno == EINTR);
	SURE(vm->fd >= 0, "errno %d", errno);
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	SURE(vm->vcpu >= 0, "errno %d", errno);
}

/* A VM goes, with its memslots.  Its files stay, and are no good for the next one. */
static void do_new_vm(void)
{
	int vm = pick(NR_VMS), i;

	say("close and KVM_CREATE_VM vm%d", vm);
	close(c->vm[vm].vcpu);
	close(c->vm[vm].fd);
	for (i = 0; i < MAX_SLOTS; i++)
		if (c->slot[i].vm == vm)
			c->slot[i].used = false;
	for (i = 0; i < c->nr_files; i++)
		if (c->file[i].vm == vm)
			c->file[i].vm = -1;
	new_vm(&c->vm[vm], has_protected && chance(2));
}

static u64 random_flags(void)
{
	u64 flags = chance(3) ? pick(4) : GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;

	if (odd(4))
		return chance(2) ? flags ^ 1ull << pick(64) : odd_number();
	/* Not so large that there is a block of 1 GiB, which takes seconds: see do_create(). */
	if (chance(8))
		return flags | 30ull << GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	return chance(4) ? flags | GUEST_MEMFD_BLOCK_SIZE_2MB : flags;
}

static u64 random_size(void)
{
	if (odd(4))
		return odd_number();
	switch (pick(8)) {
	case 0: return page_size * (1 + pick(8));
	case 1: return SZ_2M;
	case 2: return SZ_4M + page_size;
	case 3: return SZ_2M - page_size;
	case 4: return MAX_SIZE;
	default: return page_size * (1 + pick(4096));
	}
}

static void do_create(void)
{
	struct kvm_create_guest_memfd arg = {}, *p;
	struct file *f = &c->file[c->nr_files];
	u64 flags, shift;
	int vm, fd;
	bool ok;

	vm = pick(NR_VMS);
	arg.flags = random_flags();
	arg.size = random_size();
	if (odd(4))
		arg.reserved[pick(ARRAY_SIZE(arg.reserved))] = odd_number();
	say("KVM_CREATE_GUEST_MEMFD vm%d flags %#llx size %#llx", vm, arg.flags, arg.size);
	p = pointer(&arg, sizeof(arg));

	flags = arg.flags & ~GUEST_MEMFD_BLOCK_SIZE_MASK;
	shift = arg.flags >> GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	must(!c->readable, EFAULT);
	must(flags & ~flags_supported, EINVAL);
	must(shift && !(block_sizes & 1ull << shift), EINVAL);
	must(!arg.size || !aligned(arg.size) || arg.size >> 63, EINVAL);
	may(true, ENOMEM);
	ok = JUDGE(fd = ioctl(c->vm[vm].fd, KVM_CREATE_GUEST_MEMFD, p));
	if (!ok)
		return;

	/* Keep no more than there is room for, nor what may be something else by now. */
	if (c->p->mode & MODE_FLIP || c->nr_files == MAX_FILES ||
	    (shift == 30 && arg.size >= SZ_1G)) {
		close(fd);
		return;
	}

	*f = (struct file) {
		.fd = fd, .fd2 = -1, .vm = vm, .size = arg.size, .flags = flags,
		.block = shift ? 1ull << shift : page_size, .in_place = flags || !old_scheme,
	};
	runs_add(&f->runs, f->size / page_size, !(flags & GUEST_MEMFD_FLAG_INIT_SHARED));
	if (f->size <= MAX_BYTES)
		f->content = calloc(f->size / page_size, sizeof(*f->content));
	say(" gmem%d", c->nr_files);
	c->target = f;
	c->nr_files++;
}

static struct slot *find_slot(int vm, u32 id)
{
	int i;

	for (i = 0; i < MAX_SLOTS; i++)
		if (c->slot[i].used && c->slot[i].vm == vm && c->slot[i].id == id)
			return &c->slot[i];
	return NULL;
}

static bool overlap(u64 a, u64 a_size, u64 b, u64 b_size)
{
	return a < b + b_size && b < a + a_size;
}

/* The same again, with a difference. */
static void random_change(struct kvm_userspace_memory_region2 *arg, const struct slot *old)
{
	*arg = (struct kvm_userspace_memory_region2) {
		.slot = old->id, .flags = old->flags, .guest_phys_addr = old->gpa,
		.memory_size = old->size, .userspace_addr = old->uaddr,
		.guest_memfd_offset = old->offset, .guest_memfd = old->file ? old->file->fd : -1,
	};
	switch (pick(8)) {
	case 0:
		arg->memory_size = 0;
		break;
	case 1:
		arg->flags ^= KVM_MEM_READONLY;
		break;
	case 2:
		arg->guest_phys_addr += SZ_2M;
		break;
	case 3:
		arg->guest_memfd = pick_other_fd();
		break;
	case 4:
		arg->guest_memfd_offset += page_size;
		break;
	default:
		arg->flags ^= KVM_MEM_LOG_DIRTY_PAGES;
		break;
	}
}

static void random_region(struct kvm_userspace_memory_region2 *arg, const struct file *f)
{
	struct map *m = pick_map();
	u64 offset, len;

	pick_range(f ? f->size : SZ_4M, &offset, &len);
	arg->flags = f ? KVM_MEM_GUEST_MEMFD : 0;
	if (chance(5))
		arg->flags |= KVM_MEM_LOG_DIRTY_PAGES;
	if (odd(4))
		arg->flags ^= 1u << pick(32);
	arg->guest_memfd = fd_of_file(f);
	arg->guest_memfd_offset = offset;
	arg->memory_size = chance(12) ? 0 : odd(4) ? odd_number() : len;
	arg->guest_phys_addr = odd(4) ? odd_number() :
			       pick(6) * (u64)SZ_2M + (chance(2) ? offset % SZ_2M : 0);
	arg->userspace_addr = odd(4) ? odd_number() : m ? (u64)m->addr : 0x10000000;
	if (odd(4))
		arg->pad2[pick(14)] = odd_number();

	/* Memory for memslots is charged, but a program has to make do with little. */
	if (arg->memory_size > 4ull * SZ_1G && arg->memory_size <= 8ull << 40)
		arg->memory_size = SZ_1G;
}

/* What is wrong with a memslot, whatever there is already? */
static void must_region(const struct kvm_userspace_memory_region2 *arg, int vm)
{
	const u32 known = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD;
	u64 gpa = arg->guest_phys_addr, len = arg->memory_size;

	must(!c->readable, EFAULT);
	must(arg->flags & ~known, EINVAL);
	must(arg->flags & KVM_MEM_GUEST_MEMFD && arg->flags & KVM_MEM_READONLY, EINVAL);
	must(!aligned(len) || !aligned(gpa) || !aligned(arg->userspace_addr), EINVAL);
	must(arg->userspace_addr >> 63 || gpa + len < len, EINVAL);
	must(len / page_size > INT_MAX, EINVAL);
	must((u16)arg->slot >= 32767, EINVAL);
	must(arg->slot >> 16 > 1 || (arg->slot >> 16 && c->vm[vm].protected), EINVAL);
	/* What depends on the architecture. */
	may(arg->slot >> 16 || (u16)arg->slot >= 32764, EINVAL);
	may(gpa + len > GPA_LIMIT || arg->userspace_addr >> 46, EINVAL);
	may(gpa + len > GPA_LIMIT, EFAULT);
}

static void do_region(void)
{
	struct kvm_userspace_memory_region2 arg = {}, *p;
	struct slot *s, *old, *space = NULL;
	struct file *f = odd(8) ? NULL : pick_file();
	int vm = pick(NR_VMS), i;
	u64 gpa, len, offset;
	bool gmem;

	if (f && f->vm >= 0 && !odd(4))
		vm = f->vm;
	arg.slot = odd(8) ? word() : pick(MAX_SLOTS / 2);
	old = find_slot(vm, arg.slot);
	if (old && chance(2))
		random_change(&arg, old);
	else
		random_region(&arg, f);
	f = file_of_fd(arg.guest_memfd);
	say("KVM_SET_USER_MEMORY_REGION2 vm%d slot %#x flags %#x gpa %#llx size %#llx hva %#llx",
	    vm, arg.slot, arg.flags, arg.guest_phys_addr, arg.memory_size, arg.userspace_addr);
	say(" fd %d (gmem%d) offset %#llx", arg.guest_memfd, file_nr(f), arg.guest_memfd_offset);
	p = pointer(&arg, sizeof(arg));

	gmem = arg.flags & KVM_MEM_GUEST_MEMFD;
	gpa = arg.guest_phys_addr;
	len = arg.memory_size;
	offset = arg.guest_memfd_offset;
	must_region(&arg, vm);
	must(gmem && (!aligned(offset) || offset + len < len), EINVAL);
	must(!len && !old, EINVAL);
	for (i = 0; i < MAX_SLOTS && len; i++) {
		s = &c->slot[i];
		if (!s->used)
			space = s;
		if (!s->used || s == old)
			continue;
		must(s->vm == vm && s->id >> 16 == arg.slot >> 16 && (!old || gpa != old->gpa) &&
		     overlap(s->gpa, s->size, gpa, len), EEXIST);
		must(gmem && !old && f && s->file == f && overlap(s->offset, s->size, offset, len),
		     EEXIST);
	}
	if (len && !old && gmem) {
		must(!f, EBADF);
		must(!f, EINVAL);
		must(f && f->vm != vm, EINVAL);
		must(f && offset + len > f->size, EINVAL);
		must(f && !f->in_place && arg.flags & KVM_MEM_LOG_DIRTY_PAGES, EINVAL);
#ifndef __x86_64__
		must(f && !f->in_place, EINVAL);
#endif
	}
	if (len && old) {
		must(arg.userspace_addr != old->uaddr || len != old->size, EINVAL);
		must((arg.flags ^ old->flags) & (KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD), EINVAL);
	}
	if (len && old && old->file) {
		must(gpa != old->gpa || arg.flags == old->flags, EINVAL);
		must(offset != old->offset || !old->file->in_place, EINVAL);
		must(f != old->file && (old->file->fd >= 0 || arg.flags & KVM_MEM_LOG_DIRTY_PAGES),
		     EINVAL);
		/* It depends on whether mappings are left. */
		may(old->file->fd < 0, EINVAL);
	}
	may(true, ENOMEM);
	/* More than the model has room for. */
	if (len && !old && !space && !c->nr_must)
		return;
	if (!JUDGE(ioctl(c->vm[vm].fd, KVM_SET_USER_MEMORY_REGION2, p)))
		return;

	if (c->p->mode & MODE_FLIP) {
		/* It is something, somewhere. */
		for (i = 0; i < MAX_SLOTS; i++)
			c->slot[i].used = false;
	} else if (!len) {
		old->used = false;
	} else if (old) {
		old->gpa = gpa;
		old->flags = arg.flags;
	} else if (space) {
		*space = (struct slot) {
			.used = true, .vm = vm, .id = arg.slot, .flags = arg.flags, .gpa = gpa,
			.size = len, .uaddr = arg.userspace_addr, .offset = offset,
			.file = gmem ? f : NULL,
		};
	}
}

static void random_attributes(struct kvm_memory_attributes2 *arg, u64 size)
{
	u64 offset, len;

	pick_range(size, &offset, &len);
	*arg = (struct kvm_memory_attributes2) {
		.offset = offset, .size = len, .error_offset = GMEM_NO_OFFSET,
		.attributes = chance(2) ? GMEM_PRIVATE : GMEM_SHARED,
	};
	switch (c->hostile ? pick(8) : 8) {
	case 0:
		arg->attributes ^= 1ull << pick(64);
		break;
	case 1:
		arg->flags = odd_number();
		break;
	case 2:
		arg->reserved[pick(ARRAY_SIZE(arg->reserved))] = odd_number();
		break;
	}
}

/* What is wrong with the arguments, for a file or a VM of that size? */
static void must_attributes(const struct kvm_memory_attributes2 *arg, u64 size, u64 attributes)
{
	u64 junk = arg->flags | (arg->attributes & ~attributes);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(arg->reserved); i++)
		junk |= arg->reserved[i];
	must(junk, EINVAL);
	must(!aligned(arg->offset) || !aligned(arg->size) || !arg->size, EINVAL);
	must(arg->size > size || arg->offset > size - arg->size, EINVAL);
}

static void do_set(void)
{
	struct file *f = odd(4) ? NULL : pick_file();
	struct kvm_memory_attributes2 arg, *p;
	int fd = fd_of_file(f);
	bool ok;

	random_attributes(&arg, f ? f->size : SZ_2M);
	/* It may be a VM, which does have to do something for each page. */
	if (!f)
		arg.size = min_t(u64, arg.size, SZ_2M);
	say("KVM_SET_MEMORY_ATTRIBUTES2 fd %d (gmem%d) %#llx+%#llx %#llx", fd, file_nr(f),
	    arg.offset, arg.size, arg.attributes);
	p = pointer(&arg, sizeof(arg));

	may(!f, ANY);
	must(f && !f->in_place, ENOTTY);
	must(f && !c->readable, EFAULT);
	if (f)
		must_attributes(&arg, f->size, GMEM_PRIVATE);
	may(arg.attributes && c->pinned, c->writable ? EAGAIN : EFAULT);
	may(true, c->writable ? ENOMEM : EFAULT);
	/* EINTR is for those who are being killed: they do not see it. */
	ok = JUDGE(ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, p));
	if (!f)
		return;
	if (c->p->mode & MODE_FLIP)
		f->runs.lost = true;
	else if (ok)
		runs_set(&f->runs, arg.offset / page_size, (arg.offset + arg.size) / page_size,
			 arg.attributes);

	if (!c->readable || !c->writable || c->racing || c->p->mode & MODE_FLIP ||
	    gmem_sigbus(memcpy(&arg, p, sizeof(arg))))
		return;
	if (!ok && (errno == EAGAIN || errno == ENOMEM))
		SURE(aligned(arg.error_offset) && arg.error_offset - arg.offset < arg.size,
		     "offset %#llx", arg.error_offset);
	else
		SURE(arg.error_offset == GMEM_NO_OFFSET, "offset %#llx", arg.error_offset);
}

static void do_get(void)
{
	struct file *f = odd(4) ? NULL : pick_file();
	struct kvm_memory_attributes2 arg, got, *p;
	int fd = fd_of_file(f), private;

	random_attributes(&arg, f ? f->size : SZ_2M);
	say("KVM_GET_MEMORY_ATTRIBUTES2 fd %d (gmem%d) %#llx+%#llx", fd, file_nr(f), arg.offset,
	    arg.size);
	p = pointer(&arg, sizeof(arg));

	must(!f, ANY);
	must(f && !f->in_place, ENOTTY);
	must(!c->readable || !c->writable, EFAULT);
	if (f)
		must_attributes(&arg, f->size, -1ull);
	if (!JUDGE(ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, p)) || c->racing ||
	    c->p->mode & MODE_FLIP || gmem_sigbus(memcpy(&got, p, sizeof(got))))
		return;

	SURE(got.size && aligned(got.size) && got.size <= arg.size, "size %#llx", got.size);
	private = is_private(f, arg.offset);
	SURE(private < 0 || got.attributes == (private ? GMEM_PRIVATE : 0), "%#llx",
	     got.attributes);
	got.size = arg.size;
	got.attributes = arg.attributes;
	SURE(!memcmp(&got, &arg, sizeof(got)), "other fields are written");
}

/* The attributes of a VM: they do not change what is converted in place. */
static void do_vm_set(void)
{
	struct kvm_memory_attributes2 arg, *p;
	int vm = pick(NR_VMS), supported;
	bool two = chance(2);

	random_attributes(&arg, 1ull << 34);
	if (!two)
		memset(arg.reserved, 0, sizeof(arg.reserved));
	/* It takes time and memory for each page, and is not for killing. */
	if (arg.size > SZ_16M)
		arg.size = SZ_16M;
	say("KVM_SET_MEMORY_ATTRIBUTES%s vm%d %#llx+%#llx %#llx", two ? "2" : "", vm, arg.address,
	    arg.size, arg.attributes);
	p = pointer(&arg, sizeof(arg));

	supported = ioctl(c->vm[vm].fd, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES);
	must(supported <= 0 && !old_scheme, ENOTTY);
#ifndef __x86_64__
	must(true, ANY);
#endif
	/* The old one has fewer fields: what is behind does not matter. */
	must(two && !c->readable, EFAULT);
	may(!c->readable, EFAULT);
	must_attributes(&arg, -1ull, supported > 0 ? supported : 0);
	may(true, ENOMEM);
	JUDGE(ioctl(c->vm[vm].fd, two ? KVM_SET_MEMORY_ATTRIBUTES2 : KVM_SET_MEMORY_ATTRIBUTES, p));
}

static void do_prefault(void)
{
	struct slot *s = pick_slot();
	struct kvm_pre_fault_memory arg = {}, *p;
	int vm = s->used ? s->vm : (int)pick(NR_VMS);

	arg.gpa = odd(4) ? odd_number() : s->used ? s->gpa + pick(64) * page_size : 0;
	arg.size = odd(4) ? odd_number() : page_size * (1 + pick(64));
	if (odd(8))
		arg.flags = odd_number();
	if (aligned(arg.size) && arg.size > SZ_2M && arg.gpa + arg.size > arg.gpa)
		arg.size = SZ_2M;
	say("KVM_PRE_FAULT_MEMORY vm%d %#llx+%#llx%s", vm, arg.gpa, arg.size,
	    arg.flags ? " flags" : "");
	p = pointer(&arg, sizeof(arg));

	all_fuzzy();
	must(!c->readable || !c->writable, EFAULT);
	must(arg.flags || !aligned(arg.gpa) || !aligned(arg.size), EINVAL);
	must(arg.gpa + arg.size <= arg.gpa, EINVAL);
	may(arg.gpa + arg.size > GPA_LIMIT, EINVAL);
	may(true, ENOENT);
	may(true, EFAULT);
	may(true, EOPNOTSUPP);
	may(true, ENOMEM);
	may(true, EAGAIN);
	may(true, EINTR);
#ifndef __x86_64__
	may(true, ANY);
#endif
	JUDGE(ioctl(c->vm[vm].vcpu, KVM_PRE_FAULT_MEMORY, p));
}

/* Which pages were written to, or that it is known, of a memslot that logs that or not. */
static void do_dirty_log(void)
{
	static u64 bitmap[SZ_4G / SZ_4K / 64];
	struct slot *s = pick_slot();
	struct kvm_clear_dirty_log clear = {};
	struct kvm_dirty_log get = {};
	bool usual = s->used && !odd(4);
	int vm = usual ? s->vm : (int)pick(NR_VMS);
	u32 id = usual ? s->id : odd(2) ? word() : pick(MAX_SLOTS);
	void *p, *to = odd(4) ? (void *)c->nothing : bitmap;
	u64 nr, first, pages;
	int i;

	/* The log would go anywhere. */
	if (c->p->mode & MODE_FLIP)
		return;
	/* Mostly one that logs, if there is one. */
	for (i = 0; i < MAX_SLOTS && usual && !(s->flags & KVM_MEM_LOG_DIRTY_PAGES); i++) {
		if (!c->slot[i].used)
			continue;
		s = &c->slot[i];
		vm = s->vm;
		id = s->id;
	}
	s = find_slot(vm, id);
	pages = s ? s->size / page_size : 0;
	must(!s, ENOENT);
	must(!s, EINVAL);
	must(s && !(s->flags & KVM_MEM_LOG_DIRTY_PAGES), ENOENT);
	may(true, ENOMEM);

	if (chance(2)) {
		get.slot = id;
		get.dirty_bitmap = to;
		say("KVM_GET_DIRTY_LOG vm%d slot %#x", vm, id);
		p = pointer(&get, sizeof(get));
		must(!c->readable || to != bitmap, EFAULT);
		JUDGE(ioctl(c->vm[vm].fd, KVM_GET_DIRTY_LOG, p));
		return;
	}

	first = odd(4) ? odd_number() : pick(8) * (chance(4) ? 1 : 64);
	nr = odd(4) ? odd_number() : chance(2) && first < pages ? pages - first : pick(8) * 64;
	clear.slot = id;
	clear.first_page = first;
	clear.num_pages = nr;
	clear.dirty_bitmap = to;
	first = clear.first_page;
	nr = clear.num_pages;
	memset(bitmap, 0xff, sizeof(bitmap));
	say("KVM_CLEAR_DIRTY_LOG vm%d slot %#x %#lx+%#lx", vm, id, first, nr);
	p = pointer(&clear, sizeof(clear));
	must(!c->readable || (nr && to != bitmap), EFAULT);
	must(first % 64 || first > pages || nr > pages - first ||
	     (nr < pages - first && nr % 64), EINVAL);
	JUDGE(ioctl(c->vm[vm].fd, KVM_CLEAR_DIRTY_LOG, p));
}

#ifdef __x86_64__
/*
 * Let a guest run in real mode, at the begin of a memslot, for some milliseconds.  What it
 * finds there is what somebody has written, or zeroes, which add to what ds:bx+si is.
 */
static void do_run(void)
{
	struct itimerval soon = { { 0, 10000 }, { 0, 10000 } }, before;
	struct kvm_regs regs = { .rflags = 2 };
	struct slot *code = pick_slot(), *data = pick_slot();
	int vm = code->used ? code->vm : (int)pick(NR_VMS);
	int fd = c->vm[vm].vcpu, times = 1 + pick(4), i;
	struct kvm_sregs sregs;
	struct kvm_run *run;

	regs.rbx = pick(SZ_32K);
	regs.rsi = pick(SZ_32K);
	regs.rax = word();
	say("KVM_RUN vm%d cs %#lx ds %#lx", vm, code->gpa, data->gpa);
	for (i = 0; i < c->nr_files; i++)
		if (c->file[i].vm == vm)
			set_content(&c->file[i], 0, c->file[i].size, -1);
	all_fuzzy();
	may(true, ANY);

	run = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED || ioctl(fd, KVM_GET_SREGS, &sregs))
		goto out;
	sregs.cs.base = code->gpa;
	sregs.cs.selector = code->gpa >> 4;
	sregs.ds.base = data->gpa;
	sregs.ds.selector = data->gpa >> 4;
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		goto out;
	run->immediate_exit = chance(8);
	setitimer(ITIMER_REAL, &soon, &before);
	while (times-- && JUDGE(ioctl(fd, KVM_RUN, NULL)))
		say(" exit %d", run->exit_reason);
	setitimer(ITIMER_REAL, &before, NULL);
out:
	if (run != MAP_FAILED)
		munmap(run, page_size);
}
#endif

/* Calls: the file */

static u64 cached(const struct file *f, u64 offset, u64 len)
{
	u64 range[2] = { offset, len }, stat[5];

	return syscall(__NR_cachestat, f->fd, range, stat, 0) ? -1ull : stat[0];
}

static void do_fallocate(void)
{
	struct file *f = odd(4) ? NULL : pick_file();
	int fd = fd_of_file(f), mode = chance(3) ? GMEM_PUNCH : GMEM_ALLOC;
	u64 off, size, nr;

	if (odd(4))
		mode = chance(2) ? 1 << pick(32) : pick(256);
	pick_range(f ? f->size : SZ_2M, &off, &size);
	if (mode != GMEM_PUNCH && size > MAX_BYTES && aligned(size))
		size = MAX_BYTES;
	if (!f)
		size = min_t(u64, size, SZ_2M);
	say("fallocate fd %d (gmem%d) mode %#x %#lx+%#lx", fd, file_nr(f), mode, off, size);

	may(!f, ANY);
	if (f) {
		must(off >> 63 || size >> 63 || !size, EINVAL);
		must((off + size) >> 63 && !(off >> 63 || size >> 63 || !size), EFBIG);
		must(mode != GMEM_ALLOC && mode != GMEM_PUNCH, EOPNOTSUPP);
		must(!aligned(off) || !aligned(size), EINVAL);
		must(mode != GMEM_PUNCH && off + size > f->size, EINVAL);
		/* Some of it may have come. */
		f->fuzzy |= !c->nr_must;
	}
	may(mode == GMEM_ALLOC && c->p->mode & MODE_SIGNALS, EINTR);
	may(mode == GMEM_ALLOC, ENOMEM);
	if (!JUDGE(fallocate(fd, mode, off, size)) || !f || c->racing)
		return;

	nr = cached(f, off, size);
	if (mode == GMEM_PUNCH)
		set_content(f, off, size, 0);
	if (nr != -1ull)
		SURE(nr == (mode == GMEM_PUNCH ? 0 : size / page_size), "%lu pages", nr);
}

static void do_mmap(void)
{
	static const int odd_flags[] = {
		0, MAP_PRIVATE, MAP_PRIVATE | MAP_POPULATE, MAP_SHARED_VALIDATE,
		MAP_SHARED_VALIDATE | MAP_SYNC, MAP_SHARED | MAP_POPULATE, MAP_SHARED | MAP_LOCKED,
		MAP_SHARED | MAP_HUGETLB, MAP_SHARED | MAP_NORESERVE, MAP_SHARED | MAP_GROWSDOWN,
	};
	int prot, flags = MAP_SHARED;
	struct file *f = pick_file();
	struct map *m = NULL;
	u64 offset, len;
	u8 *addr = NULL;
	bool ok;

	if (!f)
		return;
	prot = odd(4) ? pick(8) : chance(3) ? PROT_READ : PROT_READ | PROT_WRITE;
	pick_range(f->size, &offset, &len);
	if (odd(4))
		len = odd_number();
	if (odd(2))
		flags = odd_flags[pick(ARRAY_SIZE(odd_flags))];
	else if (chance(8))
		m = pick_map();
	if (len > MAX_BYTES && (len < MAP_LIMIT || flags & (MAP_POPULATE | MAP_LOCKED)))
		len = MAX_BYTES;
	if (m) {
		/* In place of another one. */
		addr = m->addr;
		len = m->len;
	}
	say("mmap gmem%d prot %d flags %#x %#lx+%#lx%s", file_nr(f), prot, flags, offset, len,
	    m ? " over another" : "");

	must(!(f->flags & GUEST_MEMFD_FLAG_MMAP), ENODEV);
	must((flags & MAP_TYPE) != MAP_SHARED && (flags & MAP_TYPE) != MAP_SHARED_VALIDATE, EINVAL);
	must(prot & PROT_EXEC, EPERM);
	must(!aligned(offset) || !len || flags & MAP_HUGETLB, EINVAL);
	must(len > 2 * MAP_LIMIT, ENOMEM);
	must(offset + len < offset, EOVERFLOW);
	/* It is not about guest memory then. */
	may(flags != MAP_SHARED || len > MAP_LIMIT || offset + len > MAX_SIZE - page_size, ANY);
	may(true, ENOMEM);
	if (c->nr_maps == MAX_MAPS && !m)
		return;

	all_fuzzy();
	ok = JUDGE(addr = mmap(addr, len, prot, flags | (m ? MAP_FIXED : 0), f->fd, offset));
	if (!ok && m) {
		/* The other one may have gone, or not: get rid of it. */
		munmap(m->addr, m->len);
		*m = c->map[--c->nr_maps];
	}
	if (!ok)
		return;
	if (len > MAX_BYTES) {
		munmap(addr, len);
		return;
	}
	if (!m)
		m = &c->map[c->nr_maps++];
	*m = (struct map) {
		.addr = addr, .len = (len + page_size - 1) / page_size * page_size,
		.offset = offset, .file = f,
	};
	say(" map%d", (int)(m - c->map));
}

#define CALL(call)	(say(" %s", #call), (long)(call))

/* What guest memory does not do: it is not read, written, resized, named, or run. */
static long call_never(int fd, u64 x)
{
	struct iovec iov = { c->page, page_size };
	static const struct timespec times[2];
	static char *const args[2] = { "x" };
	struct epoll_event event = {};
	void *page = c->page;
	loff_t in = 0, out = 0;
	char path[40];

	snprintf(path, sizeof(path), "self/fd/%d", fd);
	memset(page, 0, 8);
	switch (pick(36)) {
	case 0: return CALL(read(fd, page, page_size));
	case 1: return CALL(write(fd, page, page_size));
	case 2: return CALL(readv(fd, &iov, 1));
	case 3: return CALL(writev(fd, &iov, 1));
	case 4: return CALL(pread(fd, page, page_size, x));
	case 5: return CALL(pwrite(fd, page, page_size, x));
	case 6: return CALL(preadv2(fd, &iov, 1, 0, RWF_NOWAIT));
	case 7: return CALL(pwritev2(fd, &iov, 1, -1, RWF_APPEND));
	case 8: return CALL(sendfile(c->other[PIPE_WRITE], fd, &in, page_size));
	case 9: return CALL(sendfile(fd, c->other[MEMFD], &in, page_size));
	case 10: return CALL(splice(fd, &in, c->other[PIPE_WRITE], NULL, 1, SPLICE_F_NONBLOCK));
	case 11: return CALL(splice(c->other[PIPE_READ], NULL, fd, &out, 1, SPLICE_F_NONBLOCK));
	case 12: return CALL(copy_file_range(fd, &in, c->other[MEMFD], &out, page_size, 0));
	case 13: return CALL(copy_file_range(c->other[MEMFD], &in, fd, &out, page_size, 0));
	case 14: return CALL(copy_file_range(fd, &in, fd, NULL, page_size, 0));
	case 15: return CALL(ftruncate(fd, x));
	case 16: return CALL(truncate(path, x));
	case 17: return CALL(fchmod(fd, 0777));
	case 18: return CALL(fchown(fd, 0, 0));
	case 19: return CALL(futimens(fd, times));
	case 20: return CALL(open(path, O_RDWR));
	case 21: return CALL(open(path, O_RDONLY));
	case 22: return CALL(open(path, O_WRONLY | O_TRUNC));
	case 23: return CALL(open(path, O_RDWR | O_CREAT, 0600));
	case 24: return CALL(syscall(__NR_execveat, fd, "", args, args, AT_EMPTY_PATH));
	case 25: return CALL(linkat(fd, "", AT_FDCWD, "/tmp/gmem", AT_EMPTY_PATH));
	case 26: return CALL(fchdir(fd));
	case 27: return CALL(fsync(fd));
	case 28: return CALL(readahead(fd, x, page_size));
	case 29: return CALL(epoll_ctl(c->other[NULL_FD], EPOLL_CTL_ADD, fd, &event));
	case 30: return CALL(lseek(fd, x, SEEK_DATA));
	case 31: return CALL(syscall(__NR_name_to_handle_at, fd, "", page, page, AT_EMPTY_PATH));
	case 32: return CALL(fsetxattr(fd, "user.x", "x", 1, 0));
	case 33: return CALL(fcntl(fd, F_ADD_SEALS, (int)x));
	case 34: return CALL(fcntl(fd, F_SETFL, O_DIRECT));
	default: return CALL(fcntl(fd, F_NOTIFY, DN_ACCESS));
	}
}

/* What may work, or not, and changes nothing.  @x is no pointer, whatever is taken for one. */
static long call_maybe(int fd, u64 x)
{
	u64 kernel = 1ull << 63 | x;

	switch (pick(12)) {
	case 0: return CALL(fcntl(fd, F_SETLEASE, x));
	case 1: return CALL(fcntl(fd, F_SETLK, kernel));
	case 2: return CALL(fcntl(fd, F_OFD_GETLK, kernel));
	case 3: return CALL(fcntl(fd, F_SET_RW_HINT, kernel));
	case 4: return CALL(syscall(__NR_cachestat, fd, kernel, kernel, 0));
	case 5: return CALL(sync_file_range(fd, x, x, 7));
	case 6: return CALL(syscall(__NR_fadvise64, fd, x, x, pick(8)));
	case 7: return CALL(flock(fd, pick(16) | LOCK_NB));
	case 8: return CALL(fgetxattr(fd, "security.selinux", c->page, 64));
	case 9: return CALL(flistxattr(fd, (char *)c->page, 64));
	case 10: return CALL(ioctl(fd, _IOC(pick(4), pick(128), pick(256), pick(256)), kernel));
	default: return CALL(ioctl(fd, word(), c->page + page_size - 512));
	}
}

static void do_file_call(void)
{
	static const u32 kvm[] = {
		KVM_RUN, KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_GUEST_MEMFD,
		KVM_CHECK_EXTENSION, KVM_SET_USER_MEMORY_REGION2, KVM_SET_MEMORY_ATTRIBUTES,
		KVM_PRE_FAULT_MEMORY,
	};
	struct file *f = pick_file();
	u64 x = odd_number();
	u32 cmd;

	if (!f)
		return;
	say("gmem%d %#lx:", file_nr(f), x);
	switch (pick(4)) {
	case 0:
		may(true, ANY);
		JUDGE(call_maybe(f->fd, x));
		break;
	case 1:
		/* What others of KVM's take, and what none does. */
		cmd = chance(2) ? kvm[pick(ARRAY_SIZE(kvm))] : _IOC(3, KVMIO, pick(256), pick(256));
		if (cmd == KVM_SET_MEMORY_ATTRIBUTES2 || cmd == KVM_GET_MEMORY_ATTRIBUTES2)
			return;
		say(" %#x", cmd);
		must(true, ENOTTY);
		JUDGE(ioctl(f->fd, cmd, c->page));
		break;
	default:
		must(true, ANY);
		JUDGE(call_never(f->fd, x));
		break;
	}
}

static void do_dup(void)
{
	struct file *f = pick_file();

	if (!f || f->fd2 >= 0)
		return;
	say("dup gmem%d", file_nr(f));
	JUDGE(f->fd2 = dup(f->fd));
}

static void do_close(void)
{
	struct file *f = pick_file();

	if (!f)
		return;
	say("close gmem%d", file_nr(f));
	JUDGE(close(f->fd));
	f->fd = f->fd2;
	f->fd2 = -1;
}

/* What another process can do with a file, and what it cannot. */
static void do_fork(void)
{
	struct kvm_create_guest_memfd create = { .size = page_size };
	struct file *f = pick_file();
	u64 size = page_size, attributes;
	int status = 0;
	pid_t pid;

	if (!f)
		return;
	say("fork gmem%d", file_nr(f));
	all_fuzzy();
	set_content(f, 0, page_size, 0);
	pid = fork();
	if (pid < 0)
		return;
	if (!pid) {
		SURE(ioctl(c->vm[0].fd, KVM_CREATE_GUEST_MEMFD, &create) == -1 && errno == EIO,
		     "errno %d", errno);
		if (f->in_place)
			SURE(!gmem_attributes(f->fd, 0, &size, &attributes), "errno %d", errno);
		SURE(!fallocate(f->fd, GMEM_PUNCH, 0, page_size), "errno %d", errno);
		if (c->nr_maps)
			gmem_touch_read(c->map[0].addr);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	SURE(WIFSIGNALED(status) || !WEXITSTATUS(status), "status %#x", status);
}

/* Calls: mappings */

static void do_touch(void)
{
	struct map *m = pick_map();
	bool write = chance(2), segv;
	int code, private, want;
	struct file *f;
	u8 *p, byte;
	u64 at;

	if (!m)
		return;
	f = m->file;
	byte = word();
	at = word() % m->len;
	/* Often where it can be told what is there. */
	if (!chance(4))
		at -= at % page_size;
	p = m->addr + at;
	at += m->offset;
	say("%s map%d gmem%d at %#lx", write ? "write" : "read", (int)(m - c->map), file_nr(f), at);
	all_fuzzy();
	if (write)
		code = gmem_sigbus(WRITE_ONCE(*p, byte));
	else
		code = gmem_sigbus(byte = READ_ONCE(*p));
	segv = code && gmem_sigbus_info.si_signo == SIGSEGV;
	say(" = %s", segv ? "SIGSEGV" : code ? "SIGBUS" : "works");
	__atomic_fetch_add(&shared->calls, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&shared->sigbus, code && !segv, __ATOMIC_RELAXED);
	private = is_private(f, at);
	if (c->racing || segv || private < 0)
		return;

	SURE(!code == !private, "private: %d", private);
	SURE(!code || code == BUS_ADRERR, "code %d", code);
	if (code || !f->content || at % page_size)
		return;
	want = f->content[at / page_size];
	SURE(write || want < 0 || byte == want, "%#x is there, not %#x", byte, want);
	f->content[at / page_size] = byte;
}

static void do_unmap(void)
{
	struct map *m = pick_map();
	u64 len;

	if (!m)
		return;
	/* All, or the end. */
	len = chance(2) ? m->len : (1 + word() % (m->len / page_size)) * page_size;
	say("munmap map%d %#lx", (int)(m - c->map), len);
	may(true, ENOMEM);
	if (!JUDGE(munmap(m->addr + m->len - len, len)))
		return;
	m->len -= len;
	if (!m->len)
		*m = c->map[--c->nr_maps];
}

static void do_remap(void)
{
	static const int flags[] = { 0, MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP };
	struct map *m = pick_map();
	int how = flags[pick(ARRAY_SIZE(flags))];
	u64 len = (1 + pick(64)) * page_size;
	u8 *addr;
	bool ok;

	if (!m)
		return;
	if (chance(2) || how & MREMAP_DONTUNMAP)
		len = m->len;
	say("mremap map%d %#lx, %#x", (int)(m - c->map), len, how);
	all_fuzzy();
	may(true, ANY);
	ok = JUDGE(addr = mremap(m->addr, m->len, len, how));
	if (!ok)
		return;
	if (how & MREMAP_DONTUNMAP && addr != m->addr)
		munmap(m->addr, m->len);
	m->addr = addr;
	m->len = len;
}

static long register_uffd(struct map *m)
{
	struct uffdio_register reg = {
		.range = { (u64)m->addr, m->len }, .mode = 1 + pick(7),
	};
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY), ret;

	if (fd < 0)
		return -1;
	ret = ioctl(fd, UFFDIO_API, &api) ? -1 : ioctl(fd, UFFDIO_REGISTER, &reg);
	close(fd);
	return ret;
}

/* All that takes a part of a mapping; what it does to guest memory is nothing. */
static void do_map_call(void)
{
	struct map *m = pick_map();
	unsigned long nodes = 1 + pick(3), all = 3;
	int node = pick(3), status, mode;
	void *p, *page = c->page;
	u64 len;

	if (!m)
		return;
	p = pick_part(m, &len);
	mode = pick(8);
	say("map%d %p+%#lx %d:", (int)(m - c->map), p, len, mode);
	all_fuzzy();
	may(true, ANY);
	switch (pick(14)) {
	case 0:
		must(true, EACCES);
		JUDGE(CALL(mprotect(p, len, PROT_READ | PROT_EXEC)));
		break;
	case 1:
		must(true, ANY);
		JUDGE(CALL(register_uffd(m)));
		break;
	case 2:
		JUDGE(CALL(mprotect(p, len, mode & 3)));
		break;
	case 3:
		JUDGE(CALL(mlock(p, len)));
		break;
	case 4:
		JUDGE(CALL(mlock2(p, len, MLOCK_ONFAULT)));
		break;
	case 5:
		JUDGE(CALL(munlock(p, len)));
		break;
	case 6:
		JUDGE(CALL(msync(p, len, mode)));
		break;
	case 7:
		/* A byte a page. */
		JUDGE(CALL(mincore(p, min_t(u64, len, SZ_1M), page)));
		break;
	case 8:
	case 9:
		JUDGE(CALL(syscall(__NR_mbind, p, len, mode, &nodes, 64, pick(16))));
		break;
	case 10:
		JUDGE(CALL(syscall(__NR_set_mempolicy_home_node, p, len, node, 0)));
		break;
	case 11:
		JUDGE(CALL(syscall(__NR_get_mempolicy, page, page + 64, 64, p, mode)));
		break;
	case 12:
		JUDGE(CALL(syscall(__NR_migrate_pages, 0, 64, &all, &nodes)));
		break;
	default:
		JUDGE(CALL(syscall(__NR_move_pages, 0, 1ul, &p, &node, &status, 2)));
		break;
	}
}

static void do_advise(void)
{
	/* Not those that break memory: what is broken stays so. */
	static const int advice[] = {
		MADV_REMOVE, MADV_REMOVE, MADV_DONTNEED, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
		MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE, MADV_FREE, 102, 103,
	};
	struct map *m = pick_map();
	int what;
	u64 len;
	u8 *p;

	if (!m)
		return;
	what = chance(3) ? pick(100) : advice[pick(ARRAY_SIZE(advice))];
	p = pick_part(m, &len);
	say("madvise map%d %ld+%#lx %d", (int)(m - c->map), p - m->addr, len, what);
	all_fuzzy();
	may(true, ANY);
	/* What is private goes like the rest. */
	if (JUDGE(madvise(p, len, what)) && what == MADV_REMOVE)
		set_content(m->file, m->offset + (p - m->addr), len, 0);
	else if (what == MADV_REMOVE)
		set_content(m->file, m->offset + (p - m->addr), len, -1);
}

/* The kernel touches it, for whom it is no more there than for the process. */
static void do_copy(void)
{
	struct map *m = pick_map();
	struct iovec here, there;
	struct file *f;
	u64 at;

	if (!m || chance(4)) {
		say("drain the pipe");
		while (read(c->other[PIPE_READ], c->page, page_size) > 0)
			;
		c->pinned = false;
		return;
	}

	f = m->file;
	at = word() % (m->len / page_size) * page_size;
	here = (struct iovec) { c->page, 64 };
	there = (struct iovec) { m->addr + at, 64 };
	at += m->offset;
	say("gmem%d at %#lx:", file_nr(f), at);
	all_fuzzy();
	must(is_private(f, at) == 1, ANY);
	may(true, ANY);
	switch (pick(4)) {
	case 0:
		JUDGE(CALL(process_vm_readv(getpid(), &here, 1, &there, 1, 0)));
		break;
	case 1:
		set_content(f, at, page_size, -1);
		JUDGE(CALL(process_vm_writev(getpid(), &here, 1, &there, 1, 0)));
		break;
	case 2:
		c->pinned = true;
		JUDGE(CALL(vmsplice(c->other[PIPE_WRITE], &there, 1, SPLICE_F_NONBLOCK)));
		break;
	default:
		JUDGE(CALL(write(c->other[PIPE_WRITE], there.iov_base, 64)));
		break;
	}
}

static const struct {
	void (*call)(void);
	u32 weight;
} ops[] = {
	[OP_CREATE] = { do_create, 6 },
	{ do_region, 14 }, { do_set, 18 }, { do_get, 6 }, { do_vm_set, 4 }, { do_prefault, 5 },
	{ do_new_vm, 1 }, { do_fallocate, 10 }, { do_mmap, 7 }, { do_file_call, 10 },
	{ do_dup, 2 }, { do_close, 2 }, { do_fork, 1 }, { do_touch, 12 }, { do_unmap, 2 },
	{ do_remap, 2 }, { do_map_call, 8 }, { do_advise, 6 }, { do_copy, 5 }, { do_dirty_log, 3 },
#ifdef __x86_64__
	{ do_run, 3 },
#endif
};

static void random_call(struct call *call)
{
	u32 sum = 0, i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		sum += ops[i].weight;
	sum = rng() % sum;
	for (i = 0; sum >= ops[i].weight; i++)
		sum -= ops[i].weight;
	call->op = i;
	for (i = 0; i < NR_WORDS; i++)
		call->word[i] = rng();
}

/* Coverage: a set of the places in the kernel that programs have reached. */

#define MAX_PCS		SZ_64K

static struct coverage {
	u64 nr;
	u64 pc[MAX_PCS];
} *coverage;

static int kcov_fd = -1;
static unsigned long *kcov_area;	/* the number of pcs, and the pcs */

static void coverage_open(void)
{
	kcov_fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	if (kcov_fd < 0 || ioctl(kcov_fd, KCOV_INIT_TRACE, KCOV_SIZE))
		return;
	kcov_area = mmap(NULL, KCOV_SIZE * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED,
			 kcov_fd, 0);
	if (kcov_area == MAP_FAILED)
		kcov_area = NULL;
}

static void coverage_close(void)
{
	if (kcov_area)
		munmap(kcov_area, KCOV_SIZE * sizeof(long));
	if (kcov_fd >= 0)
		close(kcov_fd);
	kcov_area = NULL;
}

/* Take what there is. */
static void coverage_take(void)
{
	unsigned long i, nr, at;

	if (!kcov_area)
		return;
	nr = min_t(unsigned long, READ_ONCE(kcov_area[0]), KCOV_SIZE - 1);
	for (i = 1; i <= nr && coverage->nr < MAX_PCS / 2; i++) {
		at = mix(kcov_area[i]) % MAX_PCS;
		while (coverage->pc[at] && coverage->pc[at] != kcov_area[i])
			at = (at + 1) % MAX_PCS;
		coverage->nr += !coverage->pc[at];
		coverage->pc[at] = kcov_area[i];
	}
	WRITE_ONCE(kcov_area[0], 0);
}

/* One program */

static void on_signal(int sig, siginfo_t *info, void *ucontext)
{
	if (gmem_sigbus_armed)
		gmem_sigbus_handler(sig, info, ucontext);
	wrong("call %d: signal %d, code %d, at %p", c->nr, sig, info->si_code, info->si_addr);
}

static void on_alarm(int sig)
{
}

/* Change a bit of the arguments, and change it back, for ever. */
static void *flip(void *arg)
{
	u64 *end = (u64 *)(c->page + page_size), seed = 0, bit, *at;

	for (;;) {
		seed = mix(seed);
		at = end - 1 - seed % 20;
		/* Sizes stay small. */
		bit = 1ull << (seed >> 8) % 23;
		__atomic_xor_fetch(at, bit, __ATOMIC_RELAXED);
		sched_yield();
		__atomic_xor_fetch(at, bit, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void limit(int what, rlim_t max)
{
	struct rlimit r = { max, max };

	SURE(!setrlimit(what, &r), "errno %d", errno);
}

static void drop_privileges(void)
{
	limit(RLIMIT_MEMLOCK, SZ_64K);
	if (getuid())
		return;
	SURE(!setgroups(0, NULL) && !setresgid(NOBODY, NOBODY, NOBODY) &&
	     !setresuid(NOBODY, NOBODY, NOBODY), "errno %d", errno);
	/* For what is in /proc/self. */
	prctl(PR_SET_DUMPABLE, 1);
}

static void make_resources(void)
{
	int i, *o = c->other;

	c->page = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	c->nothing = mmap(NULL, page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	SURE(c->page != MAP_FAILED && c->nothing != MAP_FAILED, "errno %d", errno);
	SURE(!mprotect(c->page + page_size, page_size, PROT_NONE), "errno %d", errno);

	/* Two views of a page: one to read, and behind it one to write. */
	o[MEMFD] = memfd_create("fuzz", MFD_ALLOW_SEALING);
	SURE(o[MEMFD] >= 0 && !ftruncate(o[MEMFD], page_size), "errno %d", errno);
	c->readonly = mmap(NULL, 2 * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mmap(c->readonly, page_size, PROT_READ, MAP_SHARED | MAP_FIXED, o[MEMFD], 0);
	mmap(c->readonly + page_size, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
	     o[MEMFD], 0);

	SURE(!pipe2(&o[PIPE_READ], O_NONBLOCK), "errno %d", errno);
	o[NULL_FD] = open("/dev/null", O_RDWR);
	o[PATH_FD] = open("/proc/self/exe", O_PATH);
	o[DIR_FD] = open("/", O_RDONLY | O_DIRECTORY);

	for (i = 0; i < NR_VMS; i++)
		new_vm(&c->vm[i], has_protected && i % 2);
}

/* Do not let what is there add up. */
static void make_room(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < c->nr_files; i++)
		sum += c->file[i].fd >= 0 ? c->file[i].present : 0;
	for (i = 0; i < c->nr_files && sum > SZ_64M / page_size; i++) {
		if (c->file[i].fd < 0)
			continue;
		SURE(!fallocate(c->file[i].fd, GMEM_PUNCH, 0, c->file[i].size), "errno %d", errno);
		set_content(&c->file[i], 0, c->file[i].size, 0);
		c->file[i].fuzzy = true;
		check_file(&c->file[i]);
	}
}

static void make_call(const struct call *call)
{
	c->call = call;
	c->next_word = 0;
	c->nr_must = 0;
	c->nr_may = 0;
	c->target = NULL;
	c->hostile = chance(2);
	make_room();
	ops[call->op].call();
	coverage_take();

	/* What it was about, and another one in turn. */
	if (c->target)
		check_file(c->target);
	if (c->nr_files)
		check_file(&c->file[c->nr % c->nr_files]);
}

static void __noreturn run_program(const struct program *p)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	struct itimerval timer = { { 0, 300000 }, { 0, 300000 } };
	int me = 0, status = 0, i;
	pid_t other = 0;
	pthread_t thread;

	c = calloc(1, sizeof(*c));
	c->p = p;
	setpgid(0, 0);
	if (cgroup)
		SURE(!cg_enter_current(cgroup), "errno %d", errno);
	/* Nobody need be able to get there. */
	SURE(!chdir("/proc"), "errno %d", errno);
	limit(RLIMIT_NOFILE, 256);
	limit(RLIMIT_CORE, 0);
	if (p->mode & MODE_NOBODY)
		drop_privileges();
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN);
	make_resources();
	if (p->mode & MODE_FLIP)
		SURE(!pthread_create(&thread, NULL, flip, NULL), "no thread");
	sigaction(SIGALRM, &(struct sigaction) { .sa_handler = on_alarm }, NULL);
	if (p->mode & MODE_SIGNALS)
		setitimer(ITIMER_REAL, &timer, NULL);
	if (kcov_area)
		ioctl(kcov_fd, KCOV_ENABLE, 0);

	for (c->nr = 0; c->nr < p->nr; c->nr++) {
		if (p->mode & MODE_RACE && c->nr == p->nr / 3) {
			c->racing = true;
			other = fork();
			SURE(other >= 0, "errno %d", errno);
			me = !other;
			/* Coverage is that of one process. */
			if (me)
				kcov_area = NULL;
		}
		/* A VM is for the process that made it, and tells nobody else anything. */
		if (!c->racing || (c->nr & 1) == me)
			make_call(&p->call[c->nr]);
	}

	if (me)
		_exit(0);
	if (c->racing) {
		while (waitpid(other, &status, 0) < 0 && errno == EINTR)
			;
		SURE(WIFEXITED(status) && !WEXITSTATUS(status), "status %#x", status);
		/* Nothing is known of files that only the other one has changed, either. */
		for (i = 0; i < c->nr_files; i++)
			check_file(&c->file[i]);
		c->racing = false;
	}
	c->nr--;
	for (i = 0; i < c->nr_files; i++)
		check_file(&c->file[i]);
	_exit(0);
}

/*
 * What became of a program: NULL, or what is wrong.  One may be killed after so many
 * milliseconds, wherever that finds it.
 */
static const char *start_program(const struct program *p, int kill_after)
{
	static char why[100];
	struct pollfd gone = {};
	int status, ended;
	pid_t pid;

	memset(shared->line, 0, sizeof(shared->line));
	shared->failure[0] = 0;
	fflush(NULL);
	pid = fork();
	if (!pid)
		run_program(p);
	if (pid < 0)
		return "no process";

	/* Whoever comes first. */
	setpgid(pid, pid);
	gone.fd = syscall(__NR_pidfd_open, pid, 0);
	gone.events = POLLIN;
	ended = poll(&gone, 1, kill_after ?: STUCK * 1000);
	kill(-pid, SIGKILL);
	if (!ended && poll(&gone, 1, STUCK * 1000) != 1)
		return "it does not end, and cannot be killed";
	close(gone.fd);
	waitpid(pid, &status, 0);
	coverage_take();

	if (shared->failure[0])
		return shared->failure;
	if (!ended)
		return kill_after ? NULL : "it does not end";
	snprintf(why, sizeof(why), "status %#x", status);
	return status ? why : NULL;
}

static void print_program(const struct program *p, const struct lineage *line, const char *why)
{
	char name[17 * MAX_LINEAGE + 1] = "";
	int i;

	for (i = 0; i < line->nr; i++)
		sprintf(name + strlen(name), "%s%lx", i ? "-" : "", (unsigned long)line->seed[i]);
	ksft_print_msg("GMEM_FUZZ_CALLS=%d GMEM_FUZZ_ONLY=%s:%s%s%s%s: %s\n",
		       (int)env_number("GMEM_FUZZ_CALLS", 150), name,
		       p->mode & MODE_NOBODY ? " nobody" : "", p->mode & MODE_FLIP ? " flip" : "",
		       p->mode & MODE_RACE ? " race" : "",
		       p->mode & MODE_SIGNALS ? " signals" : "", why);
	for (i = 0; i < MAX_CALLS; i++)
		if (shared->line[i][0])
			ksft_print_msg("%3d %s\n", i, shared->line[i]);
}

static void parse_program(const char *name, struct lineage *line)
{
	char *end;

	line->nr = 0;
	do {
		line->seed[line->nr++] = strtoull(name, &end, 16);
		name = end + 1;
	} while (*end == '-' && line->nr < MAX_LINEAGE);
}

/* Cases */

/* A number of /proc/meminfo, in bytes. */
static long slab_size(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long size = 0;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "SUnreclaim: %ld kB", &size) == 1)
			break;
	if (f)
		fclose(f);
	return size * 1024;
}

static long memory_current(void)
{
	return cgroup ? cg_read_long(cgroup, "memory.current") : 0;
}

static u64 seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

FIXTURE(hostile)
{
	char root[PATH_MAX];
	u64 owned;
	int fds;
};

FIXTURE_SETUP(hostile)
{
	char *group;

	/* Out of every open file, so that it is the same before and after. */
	fflush(NULL);
	self->owned = gmem_rmp_counter("owned");
	self->fds = gmem_count_fds();
	if (getuid() || cg_find_unified_root(self->root, sizeof(self->root), NULL) ||
	    cg_read_strstr(self->root, "cgroup.controllers", "memory") ||
	    (cg_read_strstr(self->root, "cgroup.subtree_control", "memory") &&
	     cg_write(self->root, "cgroup.subtree_control", "+memory")))
		return;

	group = cg_name(self->root, "gmem_fuzz_test");
	/* The log says so if anyone needs more. */
	if (!cg_create(group) && !cg_write(group, "memory.max", "768M"))
		cgroup = group;
}

FIXTURE_TEARDOWN(hostile)
{
	int i;

	EXPECT_EQ(0, gmem_rmp_verify());
	EXPECT_EQ(self->owned, gmem_rmp_counter("owned"));
	EXPECT_EQ(self->fds, gmem_count_fds());
	if (!cgroup)
		return;
	/* What is freed a grace period later. */
	for (i = 0; i < 200 && memory_current() > SZ_4M; i++)
		usleep(100000);
	EXPECT_LE(memory_current(), SZ_4M);
	EXPECT_EQ(0, cg_read_key_long(cgroup, "memory.events", "oom_kill "));
	EXPECT_EQ(0, cg_destroy(cgroup));
}

TEST_F_TIMEOUT(hostile, random, LONG)
{
	const u64 end = seconds_now() + env_number("GMEM_FUZZ_SECONDS", 20);
	const u64 max = env_number("GMEM_FUZZ_PROGRAMS", INT_MAX);
	const u64 seed = env_number("GMEM_FUZZ_SEED", some_number());
	const char *only = getenv("GMEM_FUZZ_ONLY"), *why = NULL;
	const bool plain = env_number("GMEM_FUZZ_PLAIN", 0);
	static struct lineage corpus[1000], line;
	static struct program p;
	u64 nr_corpus = 0, n = 0, before, choice;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	coverage = mmap(NULL, sizeof(*coverage), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(shared != MAP_FAILED && coverage != MAP_FAILED);
	coverage_open();

	do {
		choice = mix(mix(seed) + n++);
		if (only) {
			parse_program(only, &line);
		} else if (nr_corpus && !plain && choice % 4) {
			line = corpus[(choice >> 8) % nr_corpus];
			if (line.nr == MAX_LINEAGE)
				line.nr = 1;
			line.seed[line.nr++] = choice >> 40;
		} else {
			line.nr = 1;
			line.seed[0] = choice >> 32;
		}

		make_program(&p, &line);
		before = coverage->nr;
		why = start_program(&p, only || choice >> 16 & 15 ? 0 : 1 + (choice >> 20) % 100);
		if (why || only)
			print_program(&p, &line, why ?: "works");
		if (coverage->nr > before && nr_corpus < ARRAY_SIZE(corpus))
			corpus[nr_corpus++] = line;
	} while (!why && !only && n < max && seconds_now() < end);

	ksft_print_msg("GMEM_FUZZ_SEED=%#lx: %lu programs, %lu calls, %lu failed, %lu SIGBUS\n",
		       (unsigned long)seed, (unsigned long)n, (unsigned long)shared->calls,
		       (unsigned long)shared->failed_calls, (unsigned long)shared->sigbus);
	if (cgroup)
		ksft_print_msg("at most %ld MiB\n", cg_read_long(cgroup, "memory.peak") / SZ_1M);
	if (kcov_area)
		ksft_print_msg("%lu pcs reached, %lu programs kept\n", (unsigned long)coverage->nr,
			       (unsigned long)nr_corpus);
	EXPECT_EQ(NULL, why) TH_LOG("%s", why);
	coverage_close();
}

static int hostile_gmem(int vm, u64 size, u64 flags)
{
	struct kvm_create_guest_memfd arg = { .size = size, .flags = flags };

	return ioctl(vm, KVM_CREATE_GUEST_MEMFD, &arg);
}

static int hostile_bind(int vm, int fd, u64 gpa, u64 size, u64 offset)
{
	struct kvm_userspace_memory_region2 arg = {
		.flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = gpa, .memory_size = size,
		.guest_memfd = fd, .guest_memfd_offset = offset,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &arg);
}

#define HOSTILE_FLAGS	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* What a step may take: a few nodes for each change of state, and what CPUs keep ready. */
#define STEP		(2 * SZ_1M)

#define EXPECT_CHEAP(what)						\
do {									\
	long __more = max_t(long, memory_current() - memory, slab_size() - slab);	\
									\
	EXPECT_LE(__more, STEP) TH_LOG("%s", what);			\
	most = max_t(long, most, __more);				\
} while (0)

/* A file as large as can be costs nothing, whatever is done to it. */
TEST_F_TIMEOUT(hostile, huge_file, LONG)
{
	const u64 size = MAX_SIZE, middle = 1ull << 62;
	u64 at, len, attributes, private;
	long memory, slab, most = 0;
	int vm, fd, i, runs;
	u8 *mem;

	if (cgroup)
		ASSERT_EQ(0, cg_enter_current(cgroup));
	for (i = 0; i <= has_protected; i++) {
		vm = create_vm(i);
		ASSERT_LE(0, vm);
		memory = memory_current();
		slab = slab_size();

		EXPECT_FAILS(EINVAL, hostile_gmem(vm, size + page_size, HOSTILE_FLAGS));
		fd = hostile_gmem(vm, size, HOSTILE_FLAGS);
		ASSERT_LE(0, fd);
		EXPECT_CHEAP("create");
		EXPECT_WORKS(hostile_bind(vm, fd, SZ_4G, SZ_1G * 4ull, middle));
		EXPECT_CHEAP("bind");

		/* One private page in shared ones, at the end and in the middle. */
		EXPECT_WORKS(gmem_convert(fd, middle, page_size, GMEM_PRIVATE, NULL));
		EXPECT_WORKS(gmem_convert(fd, size - page_size, page_size, GMEM_PRIVATE, NULL));
		EXPECT_CHEAP("convert a page");
		EXPECT_WORKS(gmem_convert(fd, 0, size, GMEM_PRIVATE, NULL));
		EXPECT_WORKS(gmem_convert(fd, middle, page_size, GMEM_SHARED, NULL));
		EXPECT_CHEAP("convert all but a page");

		for (at = private = runs = 0; at < size && runs < 10; at += len, runs++) {
			len = size - at;
			ASSERT_WORKS(gmem_attributes(fd, at, &len, &attributes));
			private += attributes ? len : 0;
		}
		EXPECT_EQ(3, runs);
		EXPECT_EQ(size - page_size, private);
		EXPECT_EQ((size - page_size) / page_size, gmem_fdinfo_val(fd, "gmem-private"));

		mem = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, middle);
		ASSERT_NE(MAP_FAILED, mem);
		EXPECT_EQ(0, gmem_touch_write(mem, 1));
		munmap(mem, page_size);
		EXPECT_CHEAP("touch a page");
		EXPECT_WORKS(fallocate(fd, GMEM_ALLOC, size - 4 * page_size, 4 * page_size));
		EXPECT_FAILS(EFBIG, fallocate(fd, GMEM_ALLOC, size - page_size, 2 * page_size));
		EXPECT_EQ(5, gmem_fdinfo_val(fd, "gmem-present"));

		EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, size));
		EXPECT_EQ(0, gmem_fdinfo_val(fd, "gmem-present"));
		EXPECT_CHEAP("punch all");
		EXPECT_WORKS(gmem_convert(fd, 0, size, GMEM_SHARED, NULL));
		EXPECT_EQ(0, gmem_fdinfo_val(fd, "gmem-private"));
		EXPECT_CHEAP("convert all back");

		EXPECT_WORKS(close(fd));
		EXPECT_WORKS(close(vm));
		EXPECT_CHEAP("close");
	}
	if (cgroup)
		ASSERT_EQ(0, cg_enter_current(self->root));
	ksft_print_msg("at most %ld KiB\n", most / 1024);
}

/* Kill a process, and wait until it is gone: false if that does not happen. */
static bool kill_process(pid_t pid)
{
	struct pollfd gone = { .fd = syscall(__NR_pidfd_open, pid, 0), .events = POLLIN };
	bool ret;

	kill(pid, SIGKILL);
	ret = poll(&gone, 1, STUCK * 1000) == 1;
	close(gone.fd);
	if (ret)
		waitpid(pid, NULL, 0);
	return ret;
}

static bool is_alive(pid_t pid)
{
	siginfo_t info = {};

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid;
}

/* More than a program needs between two looks for a signal: a few batches. */
#define SOON		2048
#define NR_KILL		(SZ_1G / page_size)

/*
 * Kill the process that brings pages, when there are some.  Those that come after the
 * signal are few, however slow anything is.
 */
static void expect_killed_soon(struct __test_metadata *_metadata, pid_t pid, int fd,
			       const char *what)
{
	u64 then, after;

	while (gmem_fdinfo_val(fd, "gmem-present") < 4096 && is_alive(pid))
		;
	kill(pid, SIGKILL);
	then = gmem_fdinfo_val(fd, "gmem-present");
	ASSERT_TRUE(kill_process(pid)) TH_LOG("%s: stuck", what);
	after = gmem_fdinfo_val(fd, "gmem-present");
	ksft_print_msg("%s: %lu pages, %lu more after the signal\n", what, (unsigned long)then,
		       (unsigned long)(after - then));
	EXPECT_LE(4096, then) TH_LOG("%s: it has ended", what);
	EXPECT_LT(then, (u64)NR_KILL) TH_LOG("%s: it was too fast", what);
	EXPECT_LE(after, then + SOON) TH_LOG("%s", what);
}

TEST_F_TIMEOUT(hostile, killed_allocating, LONG)
{
	static const char *const names[] = { "private", "shared", "blocks", "all of 2^63" };
	const u64 flags[] = {
		GUEST_MEMFD_FLAG_MMAP, HOSTILE_FLAGS, HOSTILE_FLAGS | GUEST_MEMFD_BLOCK_SIZE_2MB,
		HOSTILE_FLAGS,
	};
	int vm, fd, i;
	pid_t pid;
	u64 size;

	for (i = 0; i < (int)ARRAY_SIZE(names); i++) {
		if (i == 2 && !(block_sizes & SZ_2M))
			continue;
		size = i == 3 ? MAX_SIZE : NR_KILL * page_size;
		vm = create_vm(!i && has_protected);
		fd = hostile_gmem(vm, size, flags[i]);
		ASSERT_LE(0, fd);
		EXPECT_WORKS(hostile_bind(vm, fd, 0, NR_KILL * page_size, 0));

		pid = fork();
		if (!pid) {
			if (cgroup && cg_enter_current(cgroup))
				_exit(1);
			setresuid(NOBODY, NOBODY, NOBODY);
			fallocate(fd, GMEM_ALLOC, 0, size);
			_exit(0);
		}
		expect_killed_soon(_metadata, pid, fd, names[i]);
		EXPECT_WORKS(fallocate(fd, GMEM_PUNCH, 0, size));
		EXPECT_EQ(0, gmem_fdinfo_val(fd, "gmem-present"));
		EXPECT_EQ(0, gmem_fdinfo_val(fd, "gmem-owned"));
		close(fd);
		close(vm);
	}
}

#ifdef __x86_64__
/* What a process tells that has its files in common with the test. */
struct told {
	int vm, vcpu, fd;
	bool ready;
};

/* A VM is of use to none but the process that made it. */
static void __noreturn prefault(struct told *told, bool protected)
{
	struct kvm_pre_fault_memory arg = { .size = NR_KILL * page_size };

	told->vm = create_vm(protected);
	told->vcpu = ioctl(told->vm, KVM_CREATE_VCPU, 0);
	told->fd = hostile_gmem(told->vm, arg.size, GUEST_MEMFD_FLAG_MMAP);
	if (cgroup && cg_enter_current(cgroup))
		_exit(1);
	setresuid(NOBODY, NOBODY, NOBODY);
	if (hostile_bind(told->vm, told->fd, 0, arg.size, 0))
		_exit(1);
	WRITE_ONCE(told->ready, true);
	ioctl(told->vcpu, KVM_PRE_FAULT_MEMORY, &arg);
	_exit(0);
}

TEST_F_TIMEOUT(hostile, killed_prefaulting, LONG)
{
	struct told *told;
	int protected;
	pid_t pid;

	if (kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "KVM cannot pre-fault memory");
	told = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, told);

	for (protected = 0; protected <= has_protected; protected++) {
		memset(told, 0, sizeof(*told));
		pid = syscall(__NR_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
		if (!pid)
			prefault(told, protected);
		while (!READ_ONCE(told->ready) && is_alive(pid))
			;
		ASSERT_TRUE(told->ready);
		expect_killed_soon(_metadata, pid, told->fd, protected ? "protected" : "ordinary");
		close(told->fd);
		close(told->vcpu);
		close(told->vm);
	}
	munmap(told, page_size);
}
#endif

/*
 * Kill the process that converts, when the conversion is under way and nothing of it
 * is done: all stays as it was, but for the odd one that was about to be done.
 */
TEST_F_TIMEOUT(hostile, killed_converting, LONG)
{
	const u64 nr = SZ_256M / page_size, size = SZ_256M;
	int vm, fd, protected, tries, caught, cancelled;
	u64 len, attributes;
	bool busy;
	pid_t pid;

	for (protected = 0; protected <= has_protected; protected++) {
		vm = create_vm(protected);
		fd = hostile_gmem(vm, size, HOSTILE_FLAGS);
		ASSERT_LE(0, fd);
		ASSERT_WORKS(hostile_bind(vm, fd, 0, size, 0));
		ASSERT_WORKS(fallocate(fd, GMEM_ALLOC, 0, size));

		caught = 0;
		cancelled = 0;
		for (tries = 0; tries < 500 && caught < 20 && cancelled < 2; tries++) {
			pid = fork();
			if (!pid) {
				setresuid(NOBODY, NOBODY, NOBODY);
				gmem_convert(fd, 0, size, GMEM_PRIVATE, NULL);
				_exit(0);
			}
			while (!gmem_fdinfo_val(fd, "gmem-converting") && is_alive(pid))
				;
			kill(pid, SIGKILL);
			busy = gmem_fdinfo_val(fd, "gmem-converting") &&
			       !gmem_fdinfo_val(fd, "gmem-private");
			ASSERT_TRUE(kill_process(pid)) TH_LOG("stuck");

			len = size;
			ASSERT_WORKS(gmem_attributes(fd, 0, &len, &attributes));
			EXPECT_EQ(size, len);
			EXPECT_EQ(0, gmem_fdinfo_val(fd, "gmem-converting"));
			EXPECT_EQ(attributes ? nr : 0, gmem_fdinfo_val(fd, "gmem-private"));
			EXPECT_EQ(attributes && protected && gmem_has_rmp() ? nr : 0,
				  gmem_fdinfo_val(fd, "gmem-owned"));
			caught += busy;
			cancelled += busy && !attributes;
			ASSERT_WORKS(gmem_convert(fd, 0, size, GMEM_SHARED, NULL));
		}
		ksft_print_msg("%s: of %d killed while they converted, %d were cancelled\n",
			       protected ? "protected" : "ordinary", caught, cancelled);
		EXPECT_LT(0, caught) TH_LOG("none was seen at work");
		EXPECT_LT(0, cancelled) TH_LOG("they go on to the end");
		close(fd);
		close(vm);
	}
}

static char process_state(pid_t pid)
{
	char path[40], state = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "r");
	if (f && fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
		state = 0;
	if (f)
		fclose(f);
	return state;
}

/* A conversion that waits for another one can be killed, and then does nothing. */
TEST_F_TIMEOUT(hostile, killed_waiting, LONG)
{
	const u64 size = 64 * page_size, other = 8 * page_size;
	int vm, fd, pipes[2], tries, cancelled = 0;
	pid_t holder, waiter;
	u64 len, attributes;
	struct iovec iov;
	u8 *mem;

	vm = create_vm(false);
	fd = hostile_gmem(vm, size, HOSTILE_FLAGS);
	ASSERT_LE(0, fd);
	mem = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	memset(mem, 1, page_size);
	ASSERT_EQ(0, pipe(pipes));
	iov = (struct iovec) { mem, page_size };
	ASSERT_EQ((ssize_t)page_size, vmsplice(pipes[1], &iov, 1, 0));

	/* It waits for a page that is in a pipe, again and again. */
	holder = fork();
	if (!holder) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			gmem_convert(fd, 0, page_size, GMEM_PRIVATE, NULL);
	}

	for (tries = 0; tries < 100 && !cancelled; tries++) {
		while (!gmem_fdinfo_val(fd, "gmem-converting"))
			;
		waiter = fork();
		if (!waiter) {
			gmem_convert(fd, other, page_size, GMEM_PRIVATE, NULL);
			_exit(0);
		}
		while (process_state(waiter) != 'D' && is_alive(waiter))
			;
		ASSERT_TRUE(kill_process(waiter)) TH_LOG("stuck");
		len = page_size;
		ASSERT_WORKS(gmem_attributes(fd, other, &len, &attributes));
		if (attributes)
			ASSERT_WORKS(gmem_convert(fd, other, page_size, GMEM_SHARED, NULL));
		cancelled += !attributes;
	}
	EXPECT_LT(0, cancelled);
	EXPECT_TRUE(kill_process(holder));
	len = size;
	EXPECT_WORKS(gmem_attributes(fd, 0, &len, &attributes));
	EXPECT_EQ(size, len);
	EXPECT_EQ(GMEM_SHARED, attributes);

	close(pipes[0]);
	close(pipes[1]);
	EXPECT_WORKS(gmem_convert(fd, 0, size, GMEM_PRIVATE, NULL));
	munmap(mem, page_size);
	close(fd);
	close(vm);
}

/*
 * The attributes of a VM take memory and time for each page.  To set more than there can
 * ever be ends with the process, and so does clearing that, when there is one.
 */
TEST_F_TIMEOUT(hostile, killed_setting_attributes, LONG)
{
	struct kvm_memory_attributes one = {
		.size = page_size, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	};
	struct kvm_memory_attributes all = { .size = MAX_SIZE };
	int clear, pipes[2];
	long start;
	pid_t pid;
	char byte;

	if (!cgroup || !has_protected || !old_scheme)
		SKIP(return, "needs a memory cgroup, and a VM with attributes");
	for (clear = 0; clear < 2; clear++) {
		all.attributes = clear ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE;
		ASSERT_EQ(0, pipe(pipes));
		start = memory_current();
		pid = fork();
		if (!pid) {
			int vm = create_vm(true);

			if (cg_enter_current(cgroup) || setresuid(NOBODY, NOBODY, NOBODY) ||
			    (clear && ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &one)) ||
			    write(pipes[1], "", 1) != 1)
				_exit(1);
			ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &all);
			_exit(0);
		}
		EXPECT_EQ(1, read(pipes[0], &byte, 1));
		close(pipes[0]);
		close(pipes[1]);
		while (!clear && memory_current() < start + SZ_4M && is_alive(pid))
			;
		/* To clear what is not there takes no time; the signal may even come first. */
		if (!clear)
			EXPECT_TRUE(is_alive(pid));
		usleep(100000);
		ASSERT_TRUE(kill_process(pid)) TH_LOG("stuck, clear %d", clear);
	}
}

int main(int argc, char **argv)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) &
		     KVM_MEMORY_ATTRIBUTE_PRIVATE);

	page_size = getpagesize();
	kvm_fd = open_kvm_dev_path_or_exit();
	flags_supported = kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS);
	block_sizes = (u32)kvm_check_cap(KVM_CAP_GUEST_MEMFD_BLOCK_SIZES);
#ifdef __x86_64__
	has_protected = kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
#endif
	old_scheme = gmem_old_scheme();
	gmem_catch_sigbus();
	return test_harness_run(argc, argv);
}
