// SPDX-License-Identifier: GPL-2.0
/*
 * guest_memfd, shown: the four kinds of file that KVM_CREATE_GUEST_MEMFD can
 * make, what the host may do with each, a guest that lives in it, and how its
 * memory is converted in place, from shared to private and back, be it made of
 * pages or of larger blocks.
 *
 * This is also the example for a VMM: vm.c has the calls to KVM, one function
 * each, and every chapter below is a use of them from beginning to end.
 *
 * Every line that is printed has been checked.  The exit status is 0 if all
 * held, 1 if one did not, 4 if there is no guest_memfd to show.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/falloc.h>
#include <fcntl.h>

#include "vm.h"

#define NR_BLOCKS	8	/* in each file: a letter each in its map */
#define TEXT_LEN	32

static size_t page;		/* bytes */
static bool colour;
static int held, failed;

/* Printing: facts are comparisons of text, so that a failure explains itself. */
static const char *paint(const char *code)
{
	return colour ? code : "";
}

#define BOLD	paint("\033[1m")
#define DIM	paint("\033[2m")
#define RED	paint("\033[1;31m")
#define GREEN	paint("\033[32m")
#define PURPLE	paint("\033[35m")
#define YELLOW	paint("\033[33m")
#define PLAIN	paint("\033[0m")

static void fact(const char *who, const char *what, const char *want, const char *got)
{
	if (!strcmp(want, got)) {
		held++;
		printf("  %sok%s   %-6s %s: %s\n", GREEN, PLAIN, who, what, got);
	} else {
		failed++;
		printf("  %sFAIL%s %-6s %s: expected %s, got %s\n", RED, PLAIN, who, what,
		       want, got);
	}
}

static void note(const char *s)
{
	printf("       %s(%s)%s\n", DIM, s, PLAIN);
}

static void chapter(int nr, const char *flags, const char *what)
{
	printf("\n%s%d. %s%s: %s\n", BOLD, nr, flags, PLAIN, what);
}

/* A string that lives until the eighth one after it. */
static __printf(1, 2) const char *text(const char *fmt, ...)
{
	static char ring[8][128];
	static int next;
	char *s = ring[next++ % 8];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s, sizeof(ring[0]), fmt, ap);
	va_end(ap);
	return s;
}

/* The outcome of a call: 0 or a descriptor, or -errno. */
static const char *outcome(int ret)
{
	if (ret >= 0)
		return "works";

	switch (-ret) {
	case EAGAIN:
		return "EAGAIN";
	case EEXIST:
		return "EEXIST";
	case EFAULT:
		return "EFAULT";
	case EINVAL:
		return "EINVAL";
	case ENODEV:
		return "ENODEV";
	case ENOMEM:
		return "ENOMEM";
	case ENOTTY:
		return "ENOTTY";
	default:
		return strerror(-ret);
	}
}

/* Contents of memory: text, or none. */
static const char *contents(const char *s)
{
	return *s ? text("\"%.*s\"", TEXT_LEN, s) : "zeroes";
}

/* The host: touches memory that may answer with SIGBUS. */
static sigjmp_buf out;

static void on_sigbus(int sig)
{
	siglongjmp(out, sig);
}

static const char *read_text(const char *addr)
{
	char copy[TEXT_LEN + 1] = {};

	if (sigsetjmp(out, 1))
		return "SIGBUS";
	memcpy(copy, addr, TEXT_LEN);
	return contents(copy);
}

static const char *write_bytes(char *addr, const void *bytes, size_t len)
{
	if (sigsetjmp(out, 1))
		return "SIGBUS";
	memcpy(addr, bytes, len);
	return "works";
}

static const char *write_text(char *addr, const char *words)
{
	return write_bytes(addr, words, strlen(words) + 1);
}

/* The guest: the same, four bytes at a time. */
static const char *trouble(int ret)
{
	return ret < 0 ? text("KVM_RUN: %s", outcome(ret)) : text("KVM exit %d", ret);
}

static const char *guest_read_text(struct vm *vm, __u64 gpa)
{
	char copy[TEXT_LEN + 1] = {};
	__u32 word;
	int i, ret;

	for (i = 0; i < TEXT_LEN; i += sizeof(word)) {
		ret = vm_guest_read(vm, gpa + i, &word);
		if (ret)
			return trouble(ret);
		memcpy(copy + i, &word, sizeof(word));
	}
	return contents(copy);
}

static const char *guest_write_text(struct vm *vm, __u64 gpa, const char *words)
{
	char copy[TEXT_LEN] = {};
	__u32 word;
	int i, ret;

	snprintf(copy, sizeof(copy), "%s", words);
	for (i = 0; i < TEXT_LEN; i += sizeof(word)) {
		memcpy(&word, copy + i, sizeof(word));
		ret = vm_guest_write(vm, gpa + i, word);
		if (ret)
			return trouble(ret);
	}
	return "works";
}

/* A VM with one file, and all that a chapter needs of it. */
struct scene {
	struct vm vm;
	int gmem;
	__u64 flags;
	size_t unit;		/* bytes that the file has memory in: what KVM calls a block */
	size_t block;		/* bytes */
	size_t size;
	char *map;		/* the file in the host, or NULL */
	__s64 other_2m, other_4k;	/* what the guest has mapped besides, or -1 */

	/* What the story has done to each block. */
	bool present[NR_BLOCKS];		/* touched its first page */
	bool broken[NR_BLOCKS];			/* lost a page */
	size_t private[NR_BLOCKS];		/* bytes of it that are private */
};

/* Sizes in bytes, of which each is a power of two, and their sum is given. */
static const char *sizes_text(__u64 sizes)
{
	const char *words = "";
	__u64 kib;

	for (; sizes; sizes &= sizes - 1) {
		kib = (sizes & -sizes) >> 10;
		words = text("%s%s%llu %s", words, *words ? ", " : "",
			     kib >> 20 ? kib >> 20 : kib >> 10 ? kib >> 10 : kib,
			     kib >> 20 ? "GiB" : kib >> 10 ? "MiB" : "KiB");
	}
	return words;
}

/* Can files of this VM have such flags, and memory in such units? */
static bool scene_offered(const struct scene *s)
{
	if (s->flags & ~vm_gmem_flags(&s->vm) || (s->flags && !vm_can_convert(&s->vm)))
		return false;
	return s->unit == page || vm_block_sizes(&s->vm) & s->unit;
}

static bool scene_begin(struct scene *s, int vm_type, __u64 flags, size_t block)
{
	const int unit_shift = flags >> GUEST_MEMFD_BLOCK_SIZE_SHIFT;
	__u64 sizes;
	int i;

	memset(s, 0, sizeof(*s));
	vm_create(&s->vm, vm_type);
	s->flags = flags & ~GUEST_MEMFD_BLOCK_SIZE_MASK;
	s->unit = unit_shift ? 1UL << unit_shift : page;
	s->block = block;
	s->size = NR_BLOCKS * block;
	for (i = 0; i < NR_BLOCKS; i++)
		s->private[i] = flags & GUEST_MEMFD_FLAG_INIT_SHARED ? 0 : block;
	if (!scene_offered(s)) {
		note("not offered by this KVM");
		vm_destroy(&s->vm);
		return false;
	}

	if (s->unit != page) {
		/* Whether there are blocks of 1 GiB is up to the kernel's configuration. */
		sizes = vm_block_sizes(&s->vm);
		fact("VMM", "asks which sizes of blocks there are",
		     sizes_text(page | s->unit | (sizes & 1ULL << 30)), sizes_text(sizes));
	}
	s->gmem = vm_gmem_create(&s->vm, s->size, flags);
	fact("VMM", text("creates a file of %d blocks", NR_BLOCKS), "works", outcome(s->gmem));
	if (s->gmem < 0)
		vm_destroy(&s->vm);
	return s->gmem >= 0;
}

static void scene_end(struct scene *s)
{
	if (s->map)
		munmap(s->map, s->size + s->block);
	close(s->gmem);
	vm_destroy(&s->vm);
}

/* mmap() the file and a block more; @want is what should come of it. */
static void scene_mmap(struct scene *s, const char *want)
{
	void *map = mmap(NULL, s->size + s->block, PROT_READ | PROT_WRITE, MAP_SHARED,
			 s->gmem, 0);

	fact("host", "mmap() of the file", want, outcome(map == MAP_FAILED ? -errno : 0));
	s->map = map == MAP_FAILED ? NULL : map;
}

/* Give the file to the guest.  @host is for a file that cannot be mapped. */
static bool scene_bind(struct scene *s, void *host)
{
	const bool refused = !s->flags && vm_needs_in_place();
	/* The guest can map a block as one if it is aligned there, too. */
	const __u64 gpa = s->unit > GMEM_GPA ? s->unit : GMEM_GPA;
	const struct vm_part all = { .gpa = gpa, .size = s->size, .gmem = s->gmem };
	int ret = vm_gmem_bind(&s->vm, &all, host ?: s->map);

	fact("VMM", text("makes it the guest's memory at %#llx", gpa),
	     refused ? "EINVAL" : "works", outcome(ret));
	if (refused)
		note("KVM on arm64 takes only files that decide what is private");
	return !ret;
}

/* The same in two slots: the guest's memory begins with the file's second half. */
static bool scene_bind_halves(struct scene *s)
{
	const size_t half = s->size / 2;
	const struct vm_part low = {
		.gpa = GMEM_GPA, .size = half, .gmem = s->gmem, .offset = half,
	};
	const struct vm_part high = {
		.gpa = GMEM_GPA + half, .size = half, .gmem = s->gmem, .offset = 0,
	};
	int ret = vm_gmem_bind(&s->vm, &low, s->map + low.offset);

	fact("VMM", text("makes blocks %d to %d the guest's memory at %#llx", NR_BLOCKS / 2,
			 NR_BLOCKS - 1, low.gpa), "works", outcome(ret));
	if (ret)
		return false;

	ret = vm_gmem_bind(&s->vm, &high, s->map + high.offset);
	fact("VMM", text("makes blocks 0 to %d the guest's memory at %#llx", NR_BLOCKS / 2 - 1,
			 high.gpa), "works", outcome(ret));
	return !ret;
}

static __u64 scene_gpa(const struct scene *s, int nr)
{
	return vm_find_gpa(&s->vm, s->gmem, nr * s->block);
}

/* The first page stands for the block. */
static const char *page_text(int nr, size_t index)
{
	return index ? text("page %zu of block %d", index, nr) : text("block %d", nr);
}

/* What happens in block @nr; @want is the contents or "SIGBUS" or "works". */
static void guest_reads_page(struct scene *s, int nr, size_t index, const char *want)
{
	fact("guest", text("reads %s", page_text(nr, index)), want,
	     guest_read_text(&s->vm, scene_gpa(s, nr) + index * page));
	s->present[nr] = true;
}

static void guest_reads(struct scene *s, int nr, const char *want)
{
	guest_reads_page(s, nr, 0, want);
}

static void guest_writes_page(struct scene *s, int nr, size_t index, const char *words)
{
	fact("guest", text("writes \"%s\" into %s", words, page_text(nr, index)), "works",
	     guest_write_text(&s->vm, scene_gpa(s, nr) + index * page, words));
	s->present[nr] = true;
}

static void guest_writes(struct scene *s, int nr, const char *words)
{
	guest_writes_page(s, nr, 0, words);
}

static void host_reads_page(struct scene *s, int nr, size_t index, const char *want)
{
	fact("host", text("reads %s", page_text(nr, index)), want,
	     read_text(s->map + nr * s->block + index * page));
}

static void host_reads(struct scene *s, int nr, const char *want)
{
	host_reads_page(s, nr, 0, want);
}

static void host_writes(struct scene *s, int nr, const char *words, const char *want)
{
	fact("host", text("writes \"%s\" into block %d", words, nr), want,
	     write_text(s->map + nr * s->block, words));
	if (!strcmp(want, "works"))
		s->present[nr] = true;
}

/* System calls, which the kernel does not let near private memory either. */
static void host_passes_on(struct scene *s, int nr, const char *want)
{
	int pipes[2];

	if (pipe(pipes))
		give_up(1, "pipe: %s", strerror(errno));
	fact("host", text("gives block %d to write()", nr), want,
	     outcome(write(pipes[1], s->map + nr * s->block, TEXT_LEN) < 0 ? -errno : 0));
	close(pipes[0]);
	close(pipes[1]);
}

static void host_punches(struct scene *s, int nr)
{
	fact("VMM", text("punches a hole for block %d, to have the memory back", nr), "works",
	     outcome(fallocate(s->gmem, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       nr * s->block, s->block) ? -errno : 0));
	s->present[nr] = false;
	s->broken[nr] = false;
}

/* A page of a block, of which the others stay. */
static void host_punches_page(struct scene *s, int nr, size_t index)
{
	fact("VMM", text("punches a hole for %s", page_text(nr, index)), "works",
	     outcome(fallocate(s->gmem, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       nr * s->block + index * page, page) ? -errno : 0));
	s->broken[nr] = true;
}

static void host_allocates(struct scene *s)
{
	int i;

	fact("VMM", "allocates all of it, with fallocate()", "works",
	     outcome(fallocate(s->gmem, FALLOC_FL_KEEP_SIZE, 0, s->size) ? -errno : 0));
	for (i = 0; i < NR_BLOCKS; i++)
		s->present[i] = true;
}

/* Conversion.  First what the story expects of it, then who does it. */
static void scene_converted(struct scene *s, int nr, int count, bool private)
{
	int i;

	/* Behind the last block is the first one, for scene_bind_halves(). */
	for (i = 0; i < count; i++)
		s->private[(nr + i) % NR_BLOCKS] = private ? s->block : 0;
}

static const char *blocks_text(int first, int last)
{
	return first < last ? text("blocks %d to %d", first, last) : text("block %d", first);
}

static const char *where_text(const struct scene *s, __u64 gpa, __u64 size)
{
	const char *words = "";
	struct vm_part part;
	__u64 end = gpa + size;

	for (; gpa < end && vm_find(&s->vm, gpa, end - gpa, &part); gpa += part.size) {
		words = text("%s%s%s", words, *words ? " and " : "",
			     blocks_text(part.offset / s->block,
					 (part.offset + part.size - 1) / s->block));
	}
	return *words ? words : "nothing";
}

static const char *request_text(const struct vm_request *r)
{
	return text("%llu KiB at %#llx, %s", r->size >> 10, r->gpa,
		    r->private ? "private" : "shared");
}

/* The guest asks for guest memory, wherever that may be. */
static bool guest_asks(struct scene *s, const struct vm_request *ask, struct vm_request *heard)
{
	int ret = vm_guest_ask(&s->vm, ask, heard);

	fact("guest", "makes a hypercall", request_text(ask),
	     ret ? trouble(ret) : request_text(heard));
	return !ret;
}

/* And the VMM answers what came of it. */
static void vmm_answers(struct scene *s, int answer, const char *want)
{
	__u32 word;
	int ret = vm_guest_answer(&s->vm, answer, &word);

	fact("guest", "gets the answer", want, ret ? trouble(ret) : outcome((int)word));
}

/* What a VMM does with a guest's request, from beginning to end. */
static void guest_converts(struct scene *s, int nr, int count, bool private)
{
	const struct vm_request ask = {
		.gpa = scene_gpa(s, nr), .size = count * s->block, .private = private,
	};
	struct vm_request heard;
	struct vm_part busy;
	int ret;

	if (!guest_asks(s, &ask, &heard))
		return;
	ret = vm_convert(&s->vm, heard.gpa, heard.size, heard.private, &busy);
	fact("VMM", text("converts %s of the file", where_text(s, heard.gpa, heard.size)),
	     "works", outcome(ret));
	scene_converted(s, nr, count, private);
	vmm_answers(s, ret, "works");
}

/* The VMM on its own, in the file. */
static void vmm_converts(struct scene *s, int nr, int count, bool private)
{
	__u64 where;

	fact("VMM", text("makes %s %s", blocks_text(nr, nr + count - 1),
			 private ? "private" : "shared"), "works",
	     outcome(gmem_convert(s->gmem, nr * s->block, count * s->block, private, &where)));
	scene_converted(s, nr, count, private);
}

static void vmm_converts_page(struct scene *s, int nr, size_t index, bool private)
{
	__u64 where;

	fact("VMM", text("makes %s %s", page_text(nr, index), private ? "private" : "shared"),
	     "works", outcome(gmem_convert(s->gmem, nr * s->block + index * page, page, private,
					   &where)));
	s->private[nr] += private ? page : -page;
}

/*
 * Whether a block has memory, as far as the kernel tells: 1, 0, or -1 where
 * there is no cachestat() and the file is not mapped.
 */
static int block_present(const struct scene *s, int nr)
{
	__u64 range[2] = { nr * s->block, s->block }, stat[5] = {};
	unsigned char resident;

	if (!syscall(__NR_cachestat, s->gmem, range, stat, 0))
		return stat[0] != 0;
	/* Of the first page; stories touch no other before. */
	if (s->map && !mincore(s->map + nr * s->block, page, &resident))
		return resident & 1;
	return -1;
}

/* The state of every block, run by run: S, P, M for both; ? if it fails. */
static void scene_states(const struct scene *s, char *states)
{
	__u64 offset, size;
	bool private;
	size_t nr;
	int ret;
	char c;

	memset(states, '?', NR_BLOCKS);
	for (offset = 0; offset < s->size; offset += size) {
		size = s->size - offset;
		/* Where nothing can be converted, all is private. */
		ret = gmem_run(s->gmem, offset, &size, &private);
		if (ret == -ENOTTY && !s->flags)
			private = true;
		else if (ret)
			return;

		c = private ? 'P' : 'S';
		for (nr = offset / s->block; nr * s->block < offset + size; nr++)
			states[nr] = states[nr] == '?' || states[nr] == c ? c : 'M';
	}
}

static char expected_state(const struct scene *s, int nr)
{
	if (!s->private[nr])
		return 'S';
	return s->private[nr] == s->block ? 'P' : 'M';
}

static void print_map(const char *map, const char *remark)
{
	printf("       %smap%s    ", DIM, PLAIN);
	for (; *map; map++)
		printf("%s%c%s", *map == 'S' ? GREEN : *map == 'P' ? PURPLE :
		       *map == 'M' ? YELLOW : DIM, *map, PLAIN);
	puts(remark);
}

/* The map of the file, held against what the kernel says. */
static void scene_map(const struct scene *s)
{
	char states[NR_BLOCKS + 1] = {}, want[NR_BLOCKS + 1] = {}, got[NR_BLOCKS + 1] = {};
	bool checked = true;
	int i, present;

	scene_states(s, states);
	for (i = 0; i < NR_BLOCKS; i++) {
		if (states[i] != expected_state(s, i)) {
			fact("VMM", text("asks for the state of block %d", i),
			     text("%c", expected_state(s, i)), text("%c", states[i]));
			return;
		}

		present = block_present(s, i);
		checked = checked && present >= 0;
		want[i] = s->present[i] ? states[i] : '.';
		got[i] = present < 0 ? want[i] : present ? states[i] : '.';
	}

	if (strcmp(want, got)) {
		fact("", "map of the file", want, got);
		return;
	}

	held++;
	print_map(got, checked ? "" : "  (. not checked: no cachestat() in this kernel)");
}

/* The same run by run, in pages. */
static const char *runs_text(const struct scene *s)
{
	const char *words = "";
	__u64 offset, size;
	bool private;
	int ret;

	for (offset = 0; offset < s->size; offset += size) {
		size = s->size - offset;
		ret = gmem_run(s->gmem, offset, &size, &private);
		if (ret)
			return outcome(ret);
		words = text("%s%s%llu %s", words, *words ? ", " : "", size / page,
			     private ? "private" : "shared");
	}
	return words;
}

/* What /proc/PID/fdinfo/FD says of the file. */
static const char *fdinfo_line(const struct scene *s, const char *key)
{
	const char *value = "no such line";
	char line[128];
	FILE *f;

	f = fopen(text("/proc/self/fdinfo/%d", s->gmem), "r");
	if (!f)
		return strerror(errno);

	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':')
			value = text("%s", line + strlen(key) + 1 +
				     strspn(line + strlen(key) + 1, " \t"));
	}
	fclose(f);
	return value;
}

static void fdinfo_fact(const struct scene *s, const char *key, const char *want)
{
	fact("fdinfo", key, want, fdinfo_line(s, key));
}

static void scene_fdinfo(const struct scene *s)
{
	size_t present = 0, private = 0, whole = 0, broken = 0;
	int i;

	for (i = 0; i < NR_BLOCKS; i++) {
		present += s->present[i] ? s->unit / page : 0;
		private += s->private[i] / page;
		whole += s->unit != page && s->present[i] && !s->broken[i];
		broken += s->broken[i];
	}

	fdinfo_fact(s, "gmem-size", text("%zu", s->size));
	fdinfo_fact(s, "gmem-flags", text("%#llx", s->flags));
	fdinfo_fact(s, "gmem-block-size", text("%zu", s->unit));
	if (vm_block_sizes(&s->vm)) {
		fdinfo_fact(s, "gmem-blocks-whole", text("%zu", whole));
		fdinfo_fact(s, "gmem-blocks-broken", text("%zu", broken));
		fdinfo_fact(s, "gmem-blocks-fallback", "0");
	}
	fdinfo_fact(s, "gmem-present", text("%zu", present));
	fdinfo_fact(s, "gmem-private", text("%zu", private));
	fdinfo_fact(s, "gmem-shared", text("%zu", s->size / page - private));
	fdinfo_fact(s, "gmem-converting", "0");
	fdinfo_fact(s, "gmem-poisoned", "0");
}

/* Memory of the VMM for the guest's shared accesses, in slots that have both. */
static void *host_memory(size_t size)
{
	void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (host == MAP_FAILED)
		give_up(1, "mmap: %s", strerror(errno));
	return host;
}

/* The old scheme needs it to be said in the VM; kvm.vm_memory_attributes=N ends it. */
static bool become_private(struct scene *s)
{
	__u64 size = s->size;
	bool private;

	if (!gmem_run(s->gmem, 0, &size, &private)) {
		note("by the file itself: this KVM has no attributes of VMs");
		return true;
	}

	if (vm_private_type() < 0) {
		note("this KVM has no VMs with private memory: the file is of no use");
		return false;
	}

	fact("VMM", "tells KVM that the guest's memory there is private", "works",
	     outcome(vm_set_private(&s->vm, GMEM_GPA, s->size)));
	return true;
}

/* Private memory of a VM that has such: the file is one half of its memory. */
static void private_file(int nr)
{
	struct scene s;
	char *host;

	chapter(nr, "No flags", "private memory that the host cannot even map");
	if (!scene_begin(&s, vm_private_type(), 0, page))
		return;
	scene_mmap(&s, "ENODEV");

	host = host_memory(s.size);
	if (scene_bind(&s, host) && become_private(&s)) {
		guest_writes(&s, 1, "the guest's own");
		guest_reads(&s, 1, "\"the guest's own\"");
		fact("host", "reads the memory that it has in that place", "zeroes",
		     read_text(host + s.block));
	}
	scene_map(&s);
	munmap(host, s.size);
	scene_end(&s);
}

/* The hardened ordinary VM: the guest's memory is out of the VMM's reach. */
static void private_mapped_file(int nr)
{
	struct scene s;

	chapter(nr, "MMAP", "private memory of an ordinary VM, mapped and untouchable");
	if (!scene_begin(&s, -1, GUEST_MEMFD_FLAG_MMAP, page))
		return;
	scene_mmap(&s, "works");

	if (s.map && scene_bind(&s, NULL)) {
		guest_writes(&s, 1, "the guest's own");
		host_reads(&s, 1, "SIGBUS");
		host_writes(&s, 1, "the host's", "SIGBUS");
		host_passes_on(&s, 1, "EFAULT");
		guest_reads(&s, 1, "\"the guest's own\"");
	}
	scene_map(&s);
	scene_end(&s);
}

/* All of the guest's memory is the file's, if the host can map it or not. */
static void shared_unmapped_file(int nr)
{
	const int type = vm_private_type();
	struct scene s;
	struct vm other;
	char *host;

	chapter(nr, "INIT_SHARED", "memory that may be shared, and that nobody can map");
	if (!scene_begin(&s, -1, GUEST_MEMFD_FLAG_INIT_SHARED, page))
		return;
	scene_mmap(&s, "ENODEV");

	host = host_memory(s.size);
	if (scene_bind(&s, host)) {
		guest_writes(&s, 1, "hello, file");
		fact("host", "reads the memory that it has in that place", "zeroes",
		     read_text(host + s.block));
		guest_reads(&s, 1, "\"hello, file\"");
	}
	scene_map(&s);
	munmap(host, s.size);
	scene_end(&s);

	if (type < 0)
		return;
	vm_create(&other, type);
	fact("VMM", "creates one in a VM with private memory", "works",
	     outcome(vm_gmem_create(&other, page, GUEST_MEMFD_FLAG_INIT_SHARED)));
	vm_destroy(&other);
}

/* The VM whose memory is one file, for both sides. */
static void shared_mapped_file(int nr)
{
	struct scene s;

	chapter(nr, "MMAP | INIT_SHARED", "one memory for guest and host");
	if (!scene_begin(&s, -1, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED, page))
		return;
	scene_mmap(&s, "works");

	if (s.map && scene_bind(&s, NULL)) {
		host_writes(&s, 1, "hello, guest", "works");
		guest_reads(&s, 1, "\"hello, guest\"");
		guest_writes(&s, 4, "hello, host");
		host_reads(&s, 4, "\"hello, host\"");
		host_reads(&s, NR_BLOCKS, "SIGBUS");
		note("that one is past the end of the file");
		scene_map(&s);

		host_punches(&s, 1);
		scene_map(&s);
		guest_reads(&s, 1, "zeroes");
		host_reads(&s, 4, "\"hello, host\"");
	}
	scene_map(&s);
	scene_end(&s);
}

/* Memory to be converted, in a VM that knows private memory if there is any. */
static bool scene_begin_shared(struct scene *s, __u64 flags, size_t block)
{
	const int type = vm_private_type();

	note(type < 0 ? "in an ordinary VM: private means that the host cannot touch it" :
			"in a software-protected VM");
	flags |= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_DEFAULT_SHARED;
	if (!scene_begin(s, type, flags, block))
		return false;

	scene_mmap(s, "works");
	if (s->map)
		return true;
	scene_end(s);
	return false;
}

/* A guest that has nothing to say about the world outside of its memory. */
static void guest_asks_too_much(struct scene *s)
{
	const struct vm_request ask = {
		.gpa = GMEM_GPA + s->size - s->block, .size = 2 * s->block, .private = true,
	};
	struct vm_request heard;
	struct vm_part busy;

	if (guest_asks(s, &ask, &heard))
		vmm_answers(s, vm_convert(&s->vm, heard.gpa, heard.size, heard.private, &busy),
			    "EINVAL");
	note("the second block is not the guest's, so the first stays as it was");
}

static void convert_and_back(struct scene *s)
{
	guest_writes(s, 1, "hello, host");
	host_reads(s, 1, "\"hello, host\"");

	guest_converts(s, 1, 2, true);
	host_reads(s, 1, "SIGBUS");
	host_passes_on(s, 1, "EFAULT");
	guest_reads(s, 1, "\"hello, host\"");
	guest_writes(s, 1, "among ourselves");
	scene_map(s);

	guest_converts(s, 1, 1, false);
	host_reads(s, 1, "\"among ourselves\"");
	host_writes(s, 1, "thank you", "works");
	guest_reads(s, 1, "\"thank you\"");
	host_reads(s, 2, "SIGBUS");
	note("block 2 is private still, and has no memory yet");
	scene_map(s);
}

static void convert_across_slots(struct scene *s)
{
	guest_converts(s, NR_BLOCKS - 1, 2, true);
	note("neighbours for the guest, in two slots: two calls to KVM");
	guest_writes(s, 0, "the guest's own");
	host_reads(s, 0, "SIGBUS");
	guest_asks_too_much(s);
	scene_map(s);

	host_punches(s, 0);
	host_reads(s, 0, "SIGBUS");
	note("memory goes, the state stays");
	guest_reads(s, 0, "zeroes");
	scene_map(s);
}

/* The guest decides which of its memory the host may see. */
static void converted_file(int nr)
{
	struct scene s;

	chapter(nr, "MMAP | DEFAULT_SHARED", "converted where it lies, when the guest asks");
	if (!scene_begin_shared(&s, 0, page))
		return;

	if (scene_bind_halves(&s)) {
		convert_and_back(&s);
		convert_across_slots(&s);
	}
	scene_end(&s);
}

/* Have the kernel hold a page, as for I/O that is under way. */
static void hold_page(struct scene *s, int nr, int pipes[2])
{
	struct iovec iov = { .iov_base = s->map + nr * s->block, .iov_len = TEXT_LEN };

	if (pipe(pipes))
		give_up(1, "pipe: %s", strerror(errno));
	fact("host", text("puts block %d into a pipe, with vmsplice()", nr), "works",
	     outcome(vmsplice(pipes[1], &iov, 1, 0) < 0 ? -errno : 0));
}

static void release_page(int pipes[2], const char *want)
{
	char copy[TEXT_LEN + 1] = {};
	ssize_t len = read(pipes[0], copy, TEXT_LEN);

	fact("VMM", "drains the pipe", want, len < 0 ? outcome(-errno) : contents(copy));
	close(pipes[0]);
	close(pipes[1]);
}

/* The guest asks for blocks 2 to 5, of which @pipes hold block 3. */
static void convert_held(struct scene *s, int pipes[2])
{
	const struct vm_request ask = {
		.gpa = scene_gpa(s, 2), .size = 4 * s->block, .private = true,
	};
	struct vm_request heard;
	struct vm_part busy = {};
	int ret;

	if (!guest_asks(s, &ask, &heard))
		return;

	ret = vm_convert(&s->vm, heard.gpa, heard.size, heard.private, &busy);
	fact("VMM", text("converts %s", where_text(s, heard.gpa, heard.size)), "EAGAIN",
	     outcome(ret));
	fact("VMM", "looks at error_offset", text("%zu", 3 * s->block),
	     text("%llu", busy.offset));
	note("that is block 3, and nothing has changed");
	host_reads(s, 3, "\"on its way out\"");
	host_reads(s, 4, "\"not held\"");
	scene_map(s);

	release_page(pipes, "\"on its way out\"");
	ret = vm_convert(&s->vm, heard.gpa, heard.size, heard.private, &busy);
	fact("VMM", "tries again", "works", outcome(ret));
	scene_converted(s, 2, 4, true);
	vmm_answers(s, ret, "works");
}

/* A page that something in the host still refers to does not become private. */
static void held_page(int nr)
{
	struct scene s;
	int pipes[2];

	chapter(nr, "EAGAIN", "a page that the host holds");
	if (!scene_begin_shared(&s, 0, page))
		return;

	if (scene_bind(&s, NULL)) {
		host_writes(&s, 3, "on its way out", "works");
		host_writes(&s, 4, "not held", "works");
		hold_page(&s, 3, pipes);
		convert_held(&s, pipes);
		host_reads(&s, 3, "SIGBUS");
		guest_reads(&s, 3, "\"on its way out\"");
		scene_map(&s);
	}
	scene_end(&s);
}

/* The guest's image needs no second copy. */
static void initial_image(int nr)
{
	struct scene s;
	size_t size;
	const void *program = vm_program(&size);

	chapter(nr, "Initial image", "written while it is shared, private when the guest starts");
	if (!scene_begin_shared(&s, 0, page))
		return;

	if (scene_bind(&s, NULL)) {
		fact("VMM", "writes the guest's program into block 0", "works",
		     write_bytes(s.map, program, size));
		s.present[0] = true;
		host_writes(&s, 1, "console=none", "works");
		vmm_converts(&s, 0, 2, true);
		scene_map(&s);

		fact("VMM", "starts the guest there", "works",
		     outcome(vm_start(&s.vm, scene_gpa(&s, 0)) ? -EFAULT : 0));
		guest_reads(&s, 1, "\"console=none\"");
		guest_writes(&s, 4, "up and running");
		host_reads(&s, 4, "\"up and running\"");
		host_reads(&s, 0, "SIGBUS");
	}
	scene_map(&s);
	scene_end(&s);
}

/* What the kernel tells of a larger file. */
static void larger_file(int nr)
{
	struct scene s;

	chapter(nr, "State", "a larger file, as the kernel tells it");
	if (!scene_begin_shared(&s, 0, 512 * page))
		return;

	printf("       %s(a letter is %zu KiB from here on)%s\n", DIM, s.block >> 10, PLAIN);
	if (scene_bind(&s, NULL)) {
		host_writes(&s, 0, "shared", "works");
		host_writes(&s, 2, "to be private", "works");
		guest_writes(&s, 5, "both");
		vmm_converts(&s, 2, 2, true);
		vmm_converts_page(&s, 5, 7, true);
		host_reads(&s, 5, "\"both\"");
		host_reads(&s, 2, "SIGBUS");
		scene_map(&s);
		fact("VMM", "asks for the state, run by run",
		     "1024 shared, 1024 private, 519 shared, 1 private, 1528 shared",
		     runs_text(&s));
		scene_fdinfo(&s);
	}
	scene_end(&s);
}

/* What KVM has mapped of the file for the guest, where KVM counts that. */
static void guest_maps(const struct scene *s, int nr_2m, int nr_4k)
{
	if (s->other_2m < 0)
		return;
	fact("guest", "has mapped of the file", text("%d x 2 MiB, %d x 4 KiB", nr_2m, nr_4k),
	     text("%lld x 2 MiB, %lld x 4 KiB", vm_stat(&s->vm, "pages_2m") - s->other_2m,
		  vm_stat(&s->vm, "pages_4k") - s->other_4k));
}

/* A block is one allocation, and one mapping. */
static void map_blocks(struct scene *s)
{
	const char *got = "works";
	int i;

	s->other_2m = vm_stat(&s->vm, "pages_2m");
	s->other_4k = vm_stat(&s->vm, "pages_4k");
	if (s->other_2m < 0)
		note("this KVM does not tell how large the guest's mappings are");

	host_allocates(s);
	fdinfo_fact(s, "gmem-blocks-whole", text("%d", NR_BLOCKS));
	for (i = 0; i < NR_BLOCKS && !strcmp(got, "works"); i++)
		got = guest_write_text(&s->vm, scene_gpa(s, i), text("number %d", i));
	fact("guest", text("writes \"number ...\" into each of blocks 0 to %d", NR_BLOCKS - 1),
	     "works", got);
	guest_maps(s, NR_BLOCKS, 0);
	scene_map(s);
}

/* The page is neither copied nor moved, and the block is one again afterwards. */
static void convert_in_block(struct scene *s)
{
	const size_t at = s->block / page / 2;
	/* Otherwise the guest has the same page either way. */
	const bool split = vm_private_type() >= 0;

	guest_writes_page(s, 5, at, "in the middle");
	guest_writes_page(s, 5, at + 1, "next to it");
	vmm_converts_page(s, 5, at, true);
	host_reads_page(s, 5, at, "SIGBUS");
	host_reads_page(s, 5, at + 1, "\"next to it\"");
	host_reads(s, 5, "\"number 5\"");
	guest_reads_page(s, 5, at, "\"in the middle\"");
	guest_reads_page(s, 5, at + 1, "\"next to it\"");
	guest_maps(s, NR_BLOCKS - split, 2 * split);
	note(split ? "block 5 by pages, of which the guest has touched two" :
		     "private or not is the same thing to the guest");
	fdinfo_fact(s, "gmem-blocks-whole", text("%d", NR_BLOCKS));
	scene_map(s);

	vmm_converts_page(s, 5, at, false);
	host_reads_page(s, 5, at, "\"in the middle\"");
	guest_reads_page(s, 5, at, "\"in the middle\"");
	guest_maps(s, NR_BLOCKS, 0);
	scene_map(s);
}

/* What is freed in part gets other memory in its place. */
static void break_block(struct scene *s)
{
	const size_t at = s->block / page / 2;

	guest_writes_page(s, 2, at, "to be dropped");
	host_punches_page(s, 2, at);
	fdinfo_fact(s, "gmem-blocks-whole", text("%d", NR_BLOCKS - 1));
	fdinfo_fact(s, "gmem-blocks-broken", "1");
	fdinfo_fact(s, "gmem-present", text("%zu", s->size / page - 1));
	guest_reads_page(s, 2, at, "zeroes");
	guest_reads(s, 2, "\"number 2\"");
	guest_maps(s, NR_BLOCKS - 1, 2);
	note("the page has memory of its own now: block 2 stays broken");
	scene_map(s);
	scene_fdinfo(s);
}

/* Memory that the guest maps by 2 MiB, and the host still has by pages. */
static void file_of_blocks(int nr)
{
	struct scene s;

	chapter(nr, "Blocks", "memory by 2 MiB, of which the host still has each page");
	if (!scene_begin_shared(&s, GUEST_MEMFD_BLOCK_SIZE_2MB, 1UL << 21))
		return;

	if (scene_bind(&s, NULL)) {
		map_blocks(&s);
		convert_in_block(&s);
		break_block(&s);
	}
	scene_end(&s);
}

static void (*const chapters[])(int nr) = {
	private_file,
	private_mapped_file,
	shared_unmapped_file,
	shared_mapped_file,
	converted_file,
	held_page,
	initial_image,
	larger_file,
	file_of_blocks,
};

int main(void)
{
	const struct sigaction sa = { .sa_handler = on_sigbus };
	const char *env = getenv("GMEM_COLOR");
	size_t i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	colour = isatty(STDOUT_FILENO) || (env && !strcmp(env, "1"));
	page = sysconf(_SC_PAGESIZE);
	sigaction(SIGBUS, &sa, NULL);

	/* Says so and ends if there is no guest_memfd here. */
	vm_private_type();

	printf("%sguest_memfd%s: the memory of a virtual machine, in a file\n", BOLD, PLAIN);
	printf("map of a file, one letter per block of %zu KiB: %sP%s private, the guest's;"
	       " %sS%s shared,\nthe host may touch it; %sM%s some of both;"
	       " . nothing there yet\n", page >> 10, PURPLE, PLAIN, GREEN, PLAIN, YELLOW,
	       PLAIN);

	for (i = 0; i < ARRAY_SIZE(chapters); i++)
		chapters[i](i + 1);

	printf("\n%sguest_memfd demo: %d facts held, %d did not%s\n", failed ? RED : BOLD,
	       held, failed, PLAIN);
	return failed ? 1 : 0;
}
