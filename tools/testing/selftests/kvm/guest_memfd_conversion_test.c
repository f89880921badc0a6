// SPDX-License-Identifier: GPL-2.0
/*
 * In-place conversion of guest_memfd: pages turn private and shared where they
 * lie.  What the interface takes and refuses, that it is precise to one page,
 * what it does to user mappings, who may keep a page from turning private, and
 * what a guest sees of it all.
 *
 * Nothing here races: each conversion starts when everything before it is done,
 * and is tried once.  A kernel that needs a second attempt fails.
 *
 * Most cases keep a model of the file (state, presence and contents of each
 * page) next to the file and compare the two after each step.
 */
#include <pthread.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/sizes.h>

#include "guest_memfd_hold.h"
#include "guest_memfd_util.h"
#include "processor.h"

#define NR_PAGES	16
#define SLOT		10
#define GPA		SZ_4G		/* above what the library uses */

#define MAPPABLE	GUEST_MEMFD_FLAG_MMAP
#define INIT_SHARED	GUEST_MEMFD_FLAG_INIT_SHARED

static size_t page_size;

/* The largest size that a file can have: 2^63 less a page. */
static u64 max_size(void)
{
	return LLONG_MAX & ~((u64)page_size - 1);
}

/* Whether conversion is for a file with these flags. */
static bool is_in_place(u64 flags)
{
	return flags || !gmem_old_scheme();
}

/* Whether VMs have attributes, some of them at least. */
static bool has_vm_attributes(void)
{
	return kvm_has_cap(KVM_CAP_MEMORY_ATTRIBUTES);
}

static unsigned long vm_types(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) ?: BIT(VM_TYPE_DEFAULT);
}

/* The model of a file, next to the file. */
struct gpage {
	bool private;
	bool present;
	u64 head;	/* the first word in it */
	u64 tail;	/* the last */
};

struct gmodel {
	struct kvm_vm *vm;
	int fd;			/* -1 when closed */
	u64 flags;
	unsigned int nr;
	size_t size;
	u8 *mem;		/* a mapping of all of it, or NULL */
	struct gpage *pages;
	u64 token;		/* the last one written */
};

static void gmodel_open(struct gmodel *m, struct kvm_vm *vm, unsigned int nr, u64 flags)
{
	unsigned int i;

	m->vm = vm;
	m->nr = nr;
	m->size = nr * page_size;
	m->flags = flags;
	m->fd = vm_create_guest_memfd(vm, m->size, flags);
	m->mem = NULL;
	if (flags & MAPPABLE)
		m->mem = kvm_mmap(m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd);

	m->pages = calloc(nr, sizeof(*m->pages));
	TEST_ASSERT(m->pages, "calloc() failed");
	for (i = 0; i < nr; i++)
		m->pages[i].private = !(flags & INIT_SHARED);
}

static void gmodel_unmap(struct gmodel *m)
{
	if (m->mem)
		kvm_munmap(m->mem, m->size);
	m->mem = NULL;
}

static void gmodel_close(struct gmodel *m)
{
	gmodel_unmap(m);
	if (m->fd >= 0)
		close(m->fd);
	m->fd = -1;
	free(m->pages);
	m->pages = NULL;
}

static u8 *page_of(struct gmodel *m, unsigned int page)
{
	return m->mem + page * page_size;
}

static u64 *head_of(struct gmodel *m, unsigned int page)
{
	return (u64 *)page_of(m, page);
}

static u64 *tail_of(struct gmodel *m, unsigned int page)
{
	return (u64 *)page_of(m, page + 1) - 1;
}

static u64 offset_of(unsigned int page)
{
	return page * page_size;
}

static bool host_sees(struct gmodel *m, unsigned int page)
{
	return m->mem && !m->pages[page].private;
}

/* The first page behind @page that is in another state. */
static unsigned int run_end(struct gmodel *m, unsigned int page)
{
	bool private = m->pages[page].private;

	while (page < m->nr && m->pages[page].private == private)
		page++;
	return page;
}

/* The states, as runs: they are as long as they can be. */
static void expect_states(struct __test_metadata *_metadata, struct gmodel *m)
{
	unsigned int i, end;

	for (i = 0; i < m->nr; i = end) {
		u64 size = m->size - offset_of(i), attributes = ~0ull;

		end = run_end(m, i);
		ASSERT_WORKS(gmem_attributes(m->fd, offset_of(i), &size, &attributes));
		ASSERT_EQ(m->pages[i].private ? GMEM_PRIVATE : GMEM_SHARED, attributes)
			TH_LOG("page %u", i);
		ASSERT_EQ(offset_of(end - i), size)
			TH_LOG("run of %lu pages from page %u, not %u",
			       (unsigned long)(size / page_size), i, end - i);
	}
}

static void expect_line(struct __test_metadata *_metadata, const struct gmem_fdinfo *info,
			const char *key, u64 want)
{
	u64 got = ~want;

	EXPECT_TRUE(gmem_fdinfo(info, key, &got)) TH_LOG("%s in:\n%s", key, info->text);
	EXPECT_EQ(want, got) TH_LOG("%s", key);
}

/* What /proc tells about the file. */
static void expect_fdinfo(struct __test_metadata *_metadata, struct gmodel *m)
{
	u64 private = 0, present = 0;
	struct gmem_fdinfo info;
	unsigned int i;

	for (i = 0; i < m->nr; i++) {
		private += m->pages[i].private;
		present += m->pages[i].present;
	}

	gmem_fdinfo_read(m->fd, &info);
	expect_line(_metadata, &info, "gmem-size", m->size);
	expect_line(_metadata, &info, "gmem-flags", m->flags);
	expect_line(_metadata, &info, "gmem-block-size", page_size);
	expect_line(_metadata, &info, "gmem-present", present);
	expect_line(_metadata, &info, "gmem-private", private);
	expect_line(_metadata, &info, "gmem-shared", m->nr - private);
	expect_line(_metadata, &info, "gmem-converting", 0);
	expect_line(_metadata, &info, "gmem-poisoned", 0);
}

/* Contents, of pages that are there: looking at others would allocate them. */
static void expect_contents(struct __test_metadata *_metadata, struct gmodel *m)
{
	unsigned int i;

	for (i = 0; i < m->nr; i++) {
		if (!host_sees(m, i) || !m->pages[i].present)
			continue;
		ASSERT_EQ(m->pages[i].head, READ_ONCE(*head_of(m, i)))
			TH_LOG("start of page %u", i);
		ASSERT_EQ(m->pages[i].tail, READ_ONCE(*tail_of(m, i)))
			TH_LOG("end of page %u", i);
	}
}

/* All that there is to be known of a small file. */
static void expect_model(struct __test_metadata *_metadata, struct gmodel *m)
{
	u64 present, want = 0;
	unsigned int i;

	expect_states(_metadata, m);
	expect_contents(_metadata, m);
	expect_fdinfo(_metadata, m);

	for (i = 0; i < m->nr; i++) {
		want |= (u64)m->pages[i].present << i;
		if (m->mem && m->pages[i].private)
			ASSERT_EQ(BUS_ADRERR, gmem_touch_read(page_of(m, i)))
				TH_LOG("page %u", i);
	}
	if (gmem_present(m->fd, m->nr, &present))
		EXPECT_EQ(want, present);
}

/* A conversion works, says nothing but that, and is entered in the model. */
static void convert(struct __test_metadata *_metadata, struct gmodel *m,
		    unsigned int first, unsigned int nr, bool private)
{
	struct kvm_memory_attributes2 was, arg = {
		.offset = offset_of(first),
		.size = offset_of(nr),
		.attributes = private ? GMEM_PRIVATE : GMEM_SHARED,
		.error_offset = GMEM_NO_OFFSET,
	};
	unsigned int i;

	was = arg;
	ASSERT_EQ(0, ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg))
		TH_LOG("pages %u, %u to %s: %s, error offset %#lx", first, nr,
		       private ? "private" : "shared", strerror(errno),
		       (unsigned long)arg.error_offset);
	ASSERT_EQ(0, memcmp(&was, &arg, sizeof(arg)));

	for (i = first; i < first + nr; i++)
		m->pages[i].private = private;
}

static void to_private(struct __test_metadata *_metadata, struct gmodel *m,
		       unsigned int first, unsigned int nr)
{
	convert(_metadata, m, first, nr, true);
}

static void to_shared(struct __test_metadata *_metadata, struct gmodel *m,
		      unsigned int first, unsigned int nr)
{
	convert(_metadata, m, first, nr, false);
}

/* The host writes a shared page, the first and the last word of it. */
static void host_writes(struct __test_metadata *_metadata, struct gmodel *m,
			unsigned int page)
{
	struct gpage *p = &m->pages[page];

	p->present = true;
	p->head = ++m->token;
	p->tail = ++m->token;
	ASSERT_EQ(0, gmem_sigbus(WRITE_ONCE(*head_of(m, page), p->head)))
		TH_LOG("page %u", page);
	ASSERT_EQ(0, gmem_sigbus(WRITE_ONCE(*tail_of(m, page), p->tail)));
}

/* A hole: the memory goes, and the state stays. */
static void punch(struct __test_metadata *_metadata, struct gmodel *m,
		  unsigned int first, unsigned int nr)
{
	unsigned int i;

	ASSERT_WORKS(fallocate(m->fd, GMEM_PUNCH, offset_of(first), offset_of(nr)));
	for (i = first; i < first + nr; i++)
		m->pages[i] = (struct gpage) { .private = m->pages[i].private };
}

static void allocate(struct __test_metadata *_metadata, struct gmodel *m,
		     unsigned int first, unsigned int nr)
{
	unsigned int i;

	ASSERT_WORKS(fallocate(m->fd, GMEM_ALLOC, offset_of(first), offset_of(nr)));
	for (i = first; i < first + nr; i++)
		m->pages[i].present = true;
}

/* Some pages there, with contents if there can be any, and both states. */
static void fill(struct __test_metadata *_metadata, struct gmodel *m)
{
	static const unsigned int pages[] = { 1, 2, 5, 9, 14 };
	unsigned int i;

	to_shared(_metadata, m, 0, m->nr);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		if (m->mem)
			host_writes(_metadata, m, pages[i]);
		else
			allocate(_metadata, m, pages[i], 1);
	}
	to_private(_metadata, m, 1, 1);
	to_private(_metadata, m, 5, 2);
	to_private(_metadata, m, m->nr - 1, 1);
	expect_model(_metadata, m);
}

/* The interface as such: a VM, and files as they are needed. */
FIXTURE(interface)
{
	struct kvm_vm *vm;
	int nr_fds;
};

FIXTURE_SETUP(interface)
{
	gmem_catch_sigbus();
	self->vm = vm_create_barebones();
	self->nr_fds = gmem_count_fds();
}

FIXTURE_TEARDOWN(interface)
{
	EXPECT_EQ(self->nr_fds, gmem_count_fds());
	kvm_vm_free(self->vm);
}

TEST_F(interface, capabilities)
{
	const u64 flags = MAPPABLE | INIT_SHARED;
	unsigned long types = vm_types();
	unsigned int type;

	EXPECT_EQ(INIT_SHARED, GUEST_MEMFD_FLAG_DEFAULT_SHARED);
	EXPECT_EQ(128u, sizeof(struct kvm_memory_attributes2));
	EXPECT_EQ(0xc080aed2u, (u32)KVM_SET_MEMORY_ATTRIBUTES2);
	EXPECT_EQ(0xc080aed3u, (u32)KVM_GET_MEMORY_ATTRIBUTES2);

	EXPECT_EQ(GMEM_PRIVATE, kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	EXPECT_EQ(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES),
		  kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES2));
	if (!gmem_old_scheme())
		EXPECT_EQ(0u, kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES2));

	for (type = 0; type < 32; type++) {
		struct kvm_vm *vm;

		if (!(types & BIT(type)))
			continue;

		vm = vm_create_barebones_type(type);
		EXPECT_EQ((int)GMEM_PRIVATE,
			  vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES))
			TH_LOG("VM type %u", type);
		EXPECT_EQ(vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES),
			  vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES2))
			TH_LOG("VM type %u", type);
		if (type == VM_TYPE_DEFAULT)
			EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES2));
#ifdef __x86_64__
		if (type == KVM_X86_SW_PROTECTED_VM)
			EXPECT_EQ(gmem_old_scheme() ? (int)GMEM_PRIVATE : 0,
				  vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES2));
#endif
		EXPECT_EQ(flags, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags)
			TH_LOG("VM type %u", type);
		kvm_vm_free(vm);
	}
}

/* Every combination of the flags, on every type of VM. */
TEST_F(interface, combinations)
{
	unsigned long types = vm_types();
	unsigned int type;
	u64 flags;

	for (type = 0; type < 32; type++) {
		struct kvm_vm *vm;

		if (!(types & BIT(type)))
			continue;

		vm = vm_create_barebones_type(type);
		for (flags = 0; flags <= (MAPPABLE | INIT_SHARED); flags++) {
			struct gmodel m = {};
			u64 size, attributes;

			TH_LOG("VM type %u, flags %#lx", type, (unsigned long)flags);
			gmodel_open(&m, vm, 4, flags);
			size = m.size;
			attributes = 7;

			if (is_in_place(flags)) {
				expect_model(_metadata, &m);
				to_private(_metadata, &m, 1, 2);
				expect_model(_metadata, &m);
				to_shared(_metadata, &m, 2, 2);
				expect_model(_metadata, &m);
			} else {
				EXPECT_FAILS(ENOTTY, gmem_attributes(m.fd, 0, &size, &attributes));
				EXPECT_FAILS(ENOTTY, gmem_convert(m.fd, 0, size, 0, NULL));
				EXPECT_FAILS(ENOTTY, gmem_convert(m.fd, 0, size, GMEM_PRIVATE,
								  NULL));
			}
			gmodel_close(&m);
		}
		kvm_vm_free(vm);
	}
}

/* What KVM answers to a number that it does not know. */
static int unknown_ioctl_errno(int fd)
{
	struct kvm_memory_attributes2 arg = {};

	errno = 0;
	ioctl(fd, _IOWR(KVMIO, 0xfe, struct kvm_memory_attributes2), &arg);
	return errno;
}

TEST_F(interface, wrong_descriptors)
{
	struct kvm_memory_attributes2 was, arg = {
		.size = page_size,
		.error_offset = GMEM_NO_OFFSET,
	};
	struct gmodel m = {};
	unsigned int i;
	int pipefd[2];
	char path[32];

	gmodel_open(&m, self->vm, 4, MAPPABLE | INIT_SHARED);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", m.fd);
	ASSERT_WORKS(pipe(pipefd));

	const struct {
		const char *what;
		int fd, err;
		bool close;
	} rows[] = {
		{ "none",	-1, EBADF, false },
		{ "no such",	1 << 30, EBADF, false },
		{ "a path",	open(path, O_PATH), EBADF, true },
		{ "a pipe",	pipefd[0], ENOTTY, true },
		{ "a pipe's end", pipefd[1], ENOTTY, true },
		{ "/dev/null",	open("/dev/null", O_RDWR), ENOTTY, true },
		{ "a memfd",	memfd_create("other", 0), ENOTTY, true },
	};

	was = arg;
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		__EXPECT_FAILS(rows[i].err, ioctl(rows[i].fd, KVM_GET_MEMORY_ATTRIBUTES2, &arg),
			       "get, %s", rows[i].what);
		arg.attributes = GMEM_PRIVATE;
		__EXPECT_FAILS(rows[i].err, ioctl(rows[i].fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg),
			       "set, %s", rows[i].what);
		arg.attributes = 0;
		EXPECT_EQ(0, memcmp(&was, &arg, sizeof(arg))) TH_LOG("%s", rows[i].what);
		if (rows[i].close)
			close(rows[i].fd);
	}

	/* Only the file can be asked. */
	EXPECT_FAILS(unknown_ioctl_errno(self->vm->fd),
		     ioctl(self->vm->fd, KVM_GET_MEMORY_ATTRIBUTES2, &arg));
	EXPECT_EQ(0, memcmp(&was, &arg, sizeof(arg)));

	/* And it does not know the first version. */
	EXPECT_FAILS(ENOTTY, ioctl(m.fd, KVM_SET_MEMORY_ATTRIBUTES, &arg));
	expect_model(_metadata, &m);
	gmodel_close(&m);
}

/* On a VM the new ioctl is the old one: it does not get to the files. */
TEST_F(interface, vm_descriptor)
{
	const u64 p = page_size;
	const struct {
		u64 address, size, attributes, flags;
	} rows[] = {
		{ GPA, p, 0, 0 },		{ GPA, p, GMEM_PRIVATE, 0 },
		{ GPA, 0, 0, 0 },		{ GPA + 1, p, 0, 0 },
		{ GPA, p + 1, 0, 0 },		{ GPA, p, GMEM_PRIVATE | 1, 0 },
		{ GPA, p, 1, 0 },		{ GPA, p, 0, 1 },
		{ -p, 2 * p, 0, 0 },		{ -p, p, 0, 0 },
		{ GPA, p, BIT_ULL(63), 0 },	{ GPA, p, 0, BIT_ULL(63) },
	};
	unsigned long types = vm_types();
	unsigned int type, i, j;

	for (type = 0; type < 32; type++) {
		struct kvm_vm *vm;
		struct gmodel m = {};

		if (!(types & BIT(type)))
			continue;

		vm = vm_create_barebones_type(type);
		gmodel_open(&m, vm, 4, MAPPABLE | INIT_SHARED);
		ASSERT_WORKS(__vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA,
							  m.size, NULL, m.fd, 0));

		for (i = 0; i < ARRAY_SIZE(rows); i++) {
			struct kvm_memory_attributes2 was, new = {
				.address = rows[i].address,
				.size = rows[i].size,
				.attributes = rows[i].attributes,
				.flags = rows[i].flags,
				.error_offset = GMEM_NO_OFFSET,
			};
			struct kvm_memory_attributes old = {
				.address = rows[i].address,
				.size = rows[i].size,
				.attributes = rows[i].attributes,
				.flags = rows[i].flags,
			};
			int want, want_errno, ret;

			errno = 0;
			want = ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &old);
			want_errno = errno;
			if (!has_vm_attributes()) {
				EXPECT_EQ(-1, want);
				EXPECT_EQ(unknown_ioctl_errno(vm->fd), want_errno);
			}

			was = new;
			errno = 0;
			ret = ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, &new);
			EXPECT_EQ(want, ret) TH_LOG("VM type %u, row %u", type, i);
			EXPECT_EQ(want_errno, errno) TH_LOG("VM type %u, row %u", type, i);
			EXPECT_EQ(0, memcmp(&was, &new, sizeof(new)));

			for (j = 0; j < ARRAY_SIZE(new.reserved) && !ret; j++) {
				new = was;
				new.reserved[j] = 1;
				__EXPECT_FAILS(EINVAL,
					       ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, &new),
					       "reserved[%u]", j);
			}
			expect_states(_metadata, &m);
		}
		if (has_vm_attributes())
			EXPECT_FAILS(EFAULT, ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL));
		expect_model(_metadata, &m);
		gmodel_close(&m);
		kvm_vm_free(vm);
	}
}

/* One file, of every kind that can be converted. */
FIXTURE(file)
{
	struct gmodel m;
};

FIXTURE_VARIANT(file)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(file, mmap)
{
	.flags = MAPPABLE,
};

FIXTURE_VARIANT_ADD(file, init_shared)
{
	.flags = INIT_SHARED,
};

FIXTURE_VARIANT_ADD(file, mmap_init_shared)
{
	.flags = MAPPABLE | INIT_SHARED,
};

FIXTURE_SETUP(file)
{
	gmem_catch_sigbus();
	gmodel_open(&self->m, vm_create_barebones(), NR_PAGES, variant->flags);
}

FIXTURE_TEARDOWN(file)
{
	gmodel_close(&self->m);
	kvm_vm_free(self->m.vm);
}

/* The call fails with @err, and leaves its argument and the states alone. */
static void expect_refused(struct __test_metadata *_metadata, struct gmodel *m,
			   unsigned long cmd, const struct kvm_memory_attributes2 *arg,
			   int err, const char *what)
{
	struct kvm_memory_attributes2 copy = *arg;
	const char *name = cmd == KVM_SET_MEMORY_ATTRIBUTES2 ? "set" : "get";

	__EXPECT_FAILS(err, ioctl(m->fd, cmd, &copy), "%s, %s, attributes %#lx", name, what,
		       (unsigned long)arg->attributes);
	ASSERT_EQ(0, memcmp(arg, &copy, sizeof(copy))) TH_LOG("%s, %s", name, what);
	expect_states(_metadata, m);
}

TEST_F(file, bad_ranges)
{
	const u64 p = page_size, size = self->m.size, top = 1ull << 63;
	const struct {
		const char *what;
		u64 offset, size;
	} rows[] = {
		{ "offset 1",			1, p },
		{ "offset 4p + 1",		4 * p + 1, p },
		{ "half a page in",		p / 2, p },
		{ "page less 1",		p - 1, p },
		{ "size 1",			0, 1 },
		{ "size page less 1",		0, p - 1 },
		{ "size page and 1",		p, p + 1 },
		{ "half a page",		4 * p, p / 2 },
		{ "two halves",			p / 2, p / 2 },
		{ "sector",			512, 512 },
		{ "size 0",			0, 0 },
		{ "size 0 further in",		4 * p, 0 },
		{ "size 0 at the end",		size, 0 },
		{ "at the end",			size, p },
		{ "behind the end",		size + p, p },
		{ "over the end",		size - p, 2 * p },
		{ "file and a page",		0, size + p },
		{ "far away",			1ull << 40, p },
		{ "2^32 bytes away",		1ull << 32, p },
		{ "2^32 pages away",		p << 32, p },
		{ "size 2^32 and a page",	0, (1ull << 32) + p },
		{ "size 2^32 pages",		0, p << 32 },
		{ "largest file",		0, max_size() },
		{ "largest file, last page",	max_size() - p, p },
		{ "offset 2^63 - page",		top - p, p },
		{ "offset 2^63",		top, p },
		{ "size 2^63",			0, top },
		{ "both 2^63, sum 0",		top, top },
		{ "size -page",			0, -p },
		{ "sum 0",			p, -p },
		{ "sum a page",			2 * p, -p },
		{ "offset -page, sum 0",	-p, p },
		{ "offset -page, sum a page",	-p, 2 * p },
		{ "offset -page, sum the file",	-p, size + p },
		{ "all ones",			~0ull, ~0ull },
	};
	struct gmodel *m = &self->m;
	unsigned int i;

	fill(_metadata, m);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		struct kvm_memory_attributes2 arg = {
			.offset = rows[i].offset,
			.size = rows[i].size,
			.error_offset = GMEM_NO_OFFSET,
		};

		expect_refused(_metadata, m, KVM_GET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
			       rows[i].what);
		expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
			       rows[i].what);
		arg.attributes = GMEM_PRIVATE;
		expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
			       rows[i].what);
		expect_model(_metadata, m);
	}
}

TEST_F(file, bad_fields)
{
	struct gmodel *m = &self->m;
	const struct kvm_memory_attributes2 good = {
		.size = m->size,
		.error_offset = GMEM_NO_OFFSET,
	};
	struct kvm_memory_attributes2 arg;
	unsigned int bit, i;

	fill(_metadata, m);
	for (bit = 0; bit < 64; bit++) {
		/* Good bits do not excuse a bad one. */
		arg = good;
		arg.attributes = BIT_ULL(bit);
		if (arg.attributes != GMEM_PRIVATE) {
			expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
				       "attributes");
			arg.attributes |= GMEM_PRIVATE;
			expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
				       "attributes");
		}

		arg = good;
		arg.flags = BIT_ULL(bit);
		expect_refused(_metadata, m, KVM_GET_MEMORY_ATTRIBUTES2, &arg, EINVAL, "flags");
		expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL, "flags");
		arg.attributes = GMEM_PRIVATE;
		expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL, "flags");
	}
	expect_model(_metadata, m);

	for (i = 0; i < ARRAY_SIZE(arg.reserved); i++) {
		for (bit = 0; bit < 64; bit += 63) {
			arg = good;
			arg.reserved[i] = BIT_ULL(bit);
			expect_refused(_metadata, m, KVM_GET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
				       "reserved");
			expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
				       "reserved");
			arg.attributes = GMEM_PRIVATE;
			expect_refused(_metadata, m, KVM_SET_MEMORY_ATTRIBUTES2, &arg, EINVAL,
				       "reserved");
		}
	}
	expect_model(_metadata, m);
}

TEST_F(file, bad_pointer)
{
	const size_t half = offsetof(struct kvm_memory_attributes2, flags);
	struct gmodel *m = &self->m;
	struct kvm_memory_attributes2 *arg;
	unsigned int i;
	u8 *mem;

	/* A page that is there, one that is closed, and one that is gone. */
	mem = kvm_mmap(3 * page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ASSERT_WORKS(mprotect(mem + page_size, page_size, PROT_NONE));
	kvm_munmap(mem + 2 * page_size, page_size);

	/* The part that can be read asks for all of the file. */
	arg = (void *)(mem + page_size - half);
	arg->size = m->size;

	void * const pointers[] = {
		NULL, (void *)8, (void *)-1ul, (void *)-page_size,
		mem + page_size, mem + 2 * page_size, arg, mem + page_size - 1,
	};

	fill(_metadata, m);
	for (i = 0; i < ARRAY_SIZE(pointers); i++) {
		__EXPECT_FAILS(EFAULT, ioctl(m->fd, KVM_GET_MEMORY_ATTRIBUTES2, pointers[i]),
			       "get, pointer %u", i);
		arg->attributes = GMEM_SHARED;
		__EXPECT_FAILS(EFAULT, ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, pointers[i]),
			       "set, pointer %u", i);
		arg->attributes = GMEM_PRIVATE;
		__EXPECT_FAILS(EFAULT, ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, pointers[i]),
			       "set, pointer %u", i);
		arg->attributes = GMEM_SHARED;
		expect_model(_metadata, m);
	}
	kvm_munmap(mem, 2 * page_size);
}

/* The argument in memory that cannot be written, and in the file itself. */
TEST_F(file, unusual_pointer)
{
	struct kvm_memory_attributes2 *arg, was;
	struct gmodel *m = &self->m;

	arg = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	arg->offset = offset_of(4);
	arg->size = offset_of(2);
	arg->attributes = GMEM_PRIVATE;
	ASSERT_WORKS(mprotect(arg, page_size, PROT_READ));

	/* There is nothing to write about success or EINVAL. */
	EXPECT_WORKS(ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, arg));
	m->pages[4].private = true;
	m->pages[5].private = true;
	expect_model(_metadata, m);
	was = *arg;
	EXPECT_FAILS(EFAULT, ioctl(m->fd, KVM_GET_MEMORY_ATTRIBUTES2, arg));
	EXPECT_EQ(0, memcmp(&was, arg, sizeof(was)));
	expect_model(_metadata, m);
	kvm_munmap(arg, page_size);

	if (!m->mem)
		return;

	/* It goes away under the call: read once, and not written. */
	to_shared(_metadata, m, 0, m->nr);
	arg = (void *)page_of(m, 4);
	*arg = (struct kvm_memory_attributes2) {
		.offset = offset_of(4),
		.size = offset_of(1),
		.attributes = GMEM_PRIVATE,
	};
	was = *arg;
	m->pages[4].present = true;
	m->pages[4].head = was.offset;
	EXPECT_WORKS(ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, arg));
	m->pages[4].private = true;
	expect_model(_metadata, m);
	EXPECT_FAILS(EFAULT, ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, arg));
	EXPECT_FAILS(EFAULT, ioctl(m->fd, KVM_GET_MEMORY_ATTRIBUTES2, arg));
	to_shared(_metadata, m, 4, 1);
	expect_model(_metadata, m);
	EXPECT_EQ(0, memcmp(&was, arg, sizeof(was)));
}

/* error_offset is out only; what is in it on the way in does not matter. */
TEST_F(file, error_offset_is_ignored)
{
	struct gmodel *m = &self->m;
	const u64 values[] = { 0, 1, m->size, ~0ull };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		struct kvm_memory_attributes2 arg = {
			.size = m->size,
			.attributes = i % 2 ? GMEM_SHARED : GMEM_PRIVATE,
			.error_offset = values[i],
		};

		EXPECT_WORKS(ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg));
		EXPECT_EQ(values[i], arg.error_offset);

		arg.attributes = 0;
		EXPECT_WORKS(ioctl(m->fd, KVM_GET_MEMORY_ATTRIBUTES2, &arg));
		EXPECT_EQ(i % 2 ? GMEM_SHARED : GMEM_PRIVATE, arg.attributes);
		EXPECT_EQ(0u, arg.offset);
		EXPECT_EQ(m->size, arg.size);
		EXPECT_EQ(0u, arg.flags);
		EXPECT_EQ(values[i], arg.error_offset);
		EXPECT_TRUE(gmem_is_filled(arg.reserved, 0, sizeof(arg.reserved)));
	}
}

/* A duplicate is the file; the VM's descriptor is not needed. */
TEST_F(file, descriptors)
{
	struct gmodel *m = &self->m;
	int fd = kvm_dup(m->fd), old = m->fd;

	fill(_metadata, m);
	m->fd = fd;
	to_private(_metadata, m, 2, 1);
	m->fd = old;
	expect_model(_metadata, m);

	close(old);
	m->fd = fd;
	to_shared(_metadata, m, 1, 5);
	expect_model(_metadata, m);

	kvm_vm_free(m->vm);
	m->vm = NULL;
	to_private(_metadata, m, 8, 4);
	expect_model(_metadata, m);
	to_shared(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
}

/* Runs begin anywhere, and end where the caller says at the latest. */
TEST_F(file, runs)
{
	struct gmodel *m = &self->m;
	unsigned int i, end;

	fill(_metadata, m);
	for (i = 0; i < m->nr; i++) {
		for (end = i + 1; end <= m->nr; end++) {
			u64 size = offset_of(end - i), attributes = ~0ull;

			ASSERT_WORKS(gmem_attributes(m->fd, offset_of(i), &size, &attributes));
			ASSERT_EQ(m->pages[i].private ? GMEM_PRIVATE : GMEM_SHARED, attributes);
			ASSERT_EQ(offset_of(min(end, run_end(m, i)) - i), size)
				TH_LOG("from page %u to %u", i, end);
		}
	}
	expect_model(_metadata, m);
}

/* Every range there is, over holes and over pages, each there and back. */
TEST_F(file, every_range)
{
	const bool private = !(variant->flags & INIT_SHARED);
	struct gmodel *m = &self->m;
	unsigned int round, i, end;

	for (round = 0; round < 2; round++) {
		for (i = 0; i < m->nr; i++) {
			for (end = i + 1; end <= m->nr; end++) {
				convert(_metadata, m, i, end - i, !private);
				expect_states(_metadata, m);
				if ((i + end) % 8 == 0)
					expect_model(_metadata, m);
				convert(_metadata, m, i, end - i, private);
				expect_states(_metadata, m);
			}
		}
		expect_model(_metadata, m);

		/* Again, with some pages there. */
		allocate(_metadata, m, 1, 2);
		allocate(_metadata, m, 9, 4);
		if (host_sees(m, 15))
			host_writes(_metadata, m, 15);
	}
}

/* First page, last page, one page: its neighbours do not notice. */
TEST_F(file, one_page)
{
	struct gmodel *m = &self->m;
	unsigned int round, i;

	/* Nothing there yet, then a mix, then all of it. */
	for (round = 0; round < 3; round++) {
		to_shared(_metadata, m, 0, m->nr);
		for (i = 0; i < m->nr; i++) {
			to_private(_metadata, m, i, 1);
			expect_model(_metadata, m);
			to_shared(_metadata, m, i, 1);
		}
		to_private(_metadata, m, 0, m->nr);
		for (i = 0; i < m->nr; i++) {
			to_shared(_metadata, m, i, 1);
			expect_model(_metadata, m);
			to_private(_metadata, m, i, 1);
		}

		to_shared(_metadata, m, 0, m->nr);
		for (i = 0; i < m->nr; i += 2 - round) {
			if (round == 2)
				break;
			if (m->mem)
				host_writes(_metadata, m, i);
			else
				allocate(_metadata, m, i, 1);
		}
		expect_model(_metadata, m);
	}
}

/* What is private or shared already. */
TEST_F(file, no_op)
{
	struct gmodel *m = &self->m;
	unsigned int i;

	for (i = 0; i < 3; i++) {
		convert(_metadata, m, 0, m->nr, m->pages[0].private);
		expect_model(_metadata, m);
	}

	fill(_metadata, m);
	for (i = 0; i < m->nr; i++) {
		convert(_metadata, m, i, run_end(m, i) - i, m->pages[i].private);
		convert(_metadata, m, i, 1, m->pages[i].private);
		expect_model(_metadata, m);
	}
}

TEST_F(file, punch_hole)
{
	struct gmodel *m = &self->m;
	unsigned int i;

	fill(_metadata, m);

	/* Private and shared, there or not. */
	for (i = 0; i < m->nr; i++) {
		punch(_metadata, m, i, 1);
		expect_model(_metadata, m);
	}
	allocate(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);

	/* Nobody has seen these pages: zero, whatever they were in between. */
	to_private(_metadata, m, 0, m->nr);
	to_shared(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
	for (i = 0; m->mem && i < m->nr; i++)
		EXPECT_TRUE(gmem_is_filled(page_of(m, i), 0, page_size));

	/* In a hole the state changes, and holds for what comes there. */
	to_private(_metadata, m, 3, 9);
	punch(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
	to_shared(_metadata, m, 5, 2);
	to_private(_metadata, m, 0, 1);
	expect_model(_metadata, m);
	allocate(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
}

/* A page is zeroed before anyone sees it, and not after that. */
TEST_F(file, zero_once)
{
	struct gmodel *m = &self->m;
	unsigned int i, round;

	if (!m->mem) {
		/* Nobody to see it: a round trip allocates nothing. */
		to_private(_metadata, m, 0, m->nr);
		to_shared(_metadata, m, 0, m->nr);
		expect_model(_metadata, m);
		return;
	}

	/* Fresh pages: holes, allocated while shared, allocated while private. */
	to_shared(_metadata, m, 0, m->nr);
	allocate(_metadata, m, 4, 4);
	to_private(_metadata, m, 0, m->nr);
	allocate(_metadata, m, 8, 4);
	for (round = 0; round < 3; round++) {
		to_shared(_metadata, m, 0, m->nr);
		to_private(_metadata, m, 0, m->nr);
	}
	to_shared(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
	EXPECT_TRUE(gmem_is_filled(m->mem, 0, m->size));

	for (i = 0; i < m->nr; i++) {
		m->pages[i].present = true;
		memset(page_of(m, i), 0xc0 + i, page_size);
		m->pages[i].head = *head_of(m, i);
		m->pages[i].tail = m->pages[i].head;
	}
	for (round = 0; round < 3; round++) {
		to_private(_metadata, m, 0, m->nr);
		allocate(_metadata, m, 0, m->nr);
		expect_model(_metadata, m);
		to_shared(_metadata, m, 0, m->nr);
		expect_model(_metadata, m);
		for (i = 0; i < m->nr; i++)
			EXPECT_TRUE(gmem_is_filled(page_of(m, i), 0xc0 + i, page_size));
	}

	/* A hole makes a fresh page of it, once more. */
	to_private(_metadata, m, 3, 2);
	punch(_metadata, m, 4, 2);
	to_shared(_metadata, m, 3, 2);
	expect_model(_metadata, m);
	EXPECT_TRUE(gmem_is_filled(page_of(m, 3), 0xc3, page_size));
	EXPECT_TRUE(gmem_is_filled(page_of(m, 4), 0, 2 * page_size));
}

/* Two blocks' worth of pages, on a machine with pages of 4 KiB. */
#define NR_MANY		1024

/* Seconds, for what does something thousands of times: a debug kernel is slow. */
#define LONG		150

FIXTURE(large)
{
	struct gmodel m;
};

FIXTURE_SETUP(large)
{
	gmem_catch_sigbus();
	gmodel_open(&self->m, vm_create_barebones(), NR_MANY, MAPPABLE | INIT_SHARED);
}

FIXTURE_TEARDOWN(large)
{
	gmodel_close(&self->m);
	kvm_vm_free(self->m.vm);
}

/* Every other page: as many runs as there can be. */
TEST_F_TIMEOUT(large, alternating, LONG)
{
	struct gmodel *m = &self->m;
	unsigned int i;

	for (i = 0; i < NR_MANY; i += 37)
		host_writes(_metadata, m, i);

	for (i = 0; i < NR_MANY; i += 2)
		to_private(_metadata, m, i, 1);
	expect_states(_metadata, m);
	expect_contents(_metadata, m);
	expect_fdinfo(_metadata, m);

	/* The other way round, last page first. */
	for (i = NR_MANY; i > 0; i -= 2) {
		to_private(_metadata, m, i - 1, 1);
		to_shared(_metadata, m, i - 2, 1);
	}
	expect_states(_metadata, m);
	expect_contents(_metadata, m);
	expect_fdinfo(_metadata, m);

	/* All but the first page and the last one, from the mixed state. */
	to_private(_metadata, m, 1, NR_MANY - 2);
	expect_states(_metadata, m);
	to_private(_metadata, m, 0, 1);
	expect_states(_metadata, m);

	for (i = 1; i < NR_MANY; i += 2)
		to_shared(_metadata, m, i, 1);
	for (i = 0; i < NR_MANY; i += 2)
		to_shared(_metadata, m, i, 1);
	expect_states(_metadata, m);
	expect_contents(_metadata, m);
	expect_fdinfo(_metadata, m);
}

/* A range as tests like them: any length, any place, and often short. */
static void random_range(struct kvm_random_state *rng, unsigned int *first, unsigned int *nr)
{
	unsigned int limit = 1u << kvm_random_u32_in_range(rng, 0, 10);

	*nr = kvm_random_u32_in_range(rng, 1, limit);
	*first = kvm_random_u32_in_range(rng, 0, NR_MANY - *nr);
}

TEST_F_TIMEOUT(large, random, LONG)
{
	const u32 seed = 20240917;
	struct kvm_random_state rng = new_kvm_random_state(seed);
	struct gmodel *m = &self->m;
	unsigned int i, j, first, nr;

	for (i = 0; i < 2000; i++) {
		random_range(&rng, &first, &nr);
		convert(_metadata, m, first, nr, kvm_random_bool(&rng));

		/* Pages come, and go, and are looked at. */
		first = kvm_random_u32_in_range(&rng, 0, NR_MANY - 1);
		if (host_sees(m, first))
			host_writes(_metadata, m, first);
		else
			ASSERT_EQ(BUS_ADRERR, gmem_touch_write(page_of(m, first), 1))
				TH_LOG("page %u", first);
		if (__kvm_random_bool(&rng, 5)) {
			random_range(&rng, &first, &nr);
			punch(_metadata, m, first, nr);
		}
		if (__kvm_random_bool(&rng, 2)) {
			random_range(&rng, &first, &nr);
			allocate(_metadata, m, first, min(nr, 16u));
		}

		for (j = 0; j < 3; j++) {
			u64 size, attributes = ~0ull;

			random_range(&rng, &first, &nr);
			size = offset_of(nr);
			ASSERT_WORKS(gmem_attributes(m->fd, offset_of(first), &size,
						     &attributes));
			ASSERT_EQ(m->pages[first].private ? GMEM_PRIVATE : GMEM_SHARED,
				  attributes) TH_LOG("step %u, page %u", i, first);
			ASSERT_EQ(offset_of(min(nr, run_end(m, first) - first)), size)
				TH_LOG("step %u, pages %u, %u", i, first, nr);
		}
		if (i % 16 == 0) {
			expect_states(_metadata, m);
			expect_contents(_metadata, m);
			expect_fdinfo(_metadata, m);
		}
	}

	/* What was private all the while has kept its contents, too. */
	to_shared(_metadata, m, 0, NR_MANY);
	expect_states(_metadata, m);
	expect_contents(_metadata, m);
	expect_fdinfo(_metadata, m);
}

/* The largest file. */
FIXTURE(sparse)
{
	struct kvm_vm *vm;
	u64 size;
	int fd;
};

FIXTURE_VARIANT(sparse)
{
	u64 flags;
};

FIXTURE_VARIANT_ADD(sparse, private)
{
	.flags = MAPPABLE,
};

FIXTURE_VARIANT_ADD(sparse, shared)
{
	.flags = MAPPABLE | INIT_SHARED,
};

FIXTURE_SETUP(sparse)
{
	gmem_catch_sigbus();
	self->vm = vm_create_barebones();
	self->size = max_size();
	self->fd = vm_create_guest_memfd(self->vm, self->size, variant->flags);
}

FIXTURE_TEARDOWN(sparse)
{
	close(self->fd);
	kvm_vm_free(self->vm);
}

/*
 * @size bytes from @start on are private or shared as in @private, and then
 * comes something else, or the end of the file.
 */
static void expect_run(struct __test_metadata *_metadata, int fd, u64 file_size,
		       u64 start, u64 size, bool private)
{
	u64 got = file_size - start, attributes = ~0ull;

	ASSERT_WORKS(gmem_attributes(fd, start, &got, &attributes));
	ASSERT_EQ(private ? GMEM_PRIVATE : GMEM_SHARED, attributes)
		TH_LOG("at %#lx", (unsigned long)start);
	ASSERT_EQ(size, got) TH_LOG("at %#lx", (unsigned long)start);
}

/* What /proc counts: too much for a model. */
static void expect_counts(struct __test_metadata *_metadata, int fd, u64 size, u64 private,
			  u64 present)
{
	struct gmem_fdinfo info;

	gmem_fdinfo_read(fd, &info);
	expect_line(_metadata, &info, "gmem-size", size);
	expect_line(_metadata, &info, "gmem-present", present);
	expect_line(_metadata, &info, "gmem-private", private);
	expect_line(_metadata, &info, "gmem-shared", size / page_size - private);
}

TEST_F(sparse, one_page_in_the_middle)
{
	const bool private = !(variant->flags & INIT_SHARED);
	const u64 attrs[] = { GMEM_SHARED, GMEM_PRIVATE };
	const u64 p = page_size, size = self->size, mid = size / 2 & ~(p - 1);
	unsigned int round;
	u64 *mem;

	mem = __kvm_mmap(3 * p, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, mid - p);
	expect_run(_metadata, self->fd, size, 0, size, private);
	expect_counts(_metadata, self->fd, size, private ? size / p : 0, 0);

	for (round = 0; round < 2; round++) {
		bool most = round ^ !private;

		/* All of it, and again, then one page back. */
		ASSERT_WORKS(gmem_convert(self->fd, 0, size, attrs[most], NULL));
		expect_run(_metadata, self->fd, size, 0, size, most);
		ASSERT_WORKS(gmem_convert(self->fd, 0, size, attrs[most], NULL));
		ASSERT_WORKS(gmem_convert(self->fd, mid, p, attrs[!most], NULL));
		expect_run(_metadata, self->fd, size, 0, mid, most);
		expect_run(_metadata, self->fd, size, mid - p, p, most);
		expect_run(_metadata, self->fd, size, mid, p, !most);
		expect_run(_metadata, self->fd, size, mid + p, size - mid - p, most);
		expect_run(_metadata, self->fd, size, size - p, p, most);
		expect_counts(_metadata, self->fd, size, most ? size / p - 1 : 1,
			      round ? most ? 2 : 1 : 0);

		/* The memory agrees. */
		EXPECT_EQ(most ? BUS_ADRERR : 0, gmem_touch_write(mem, 1));
		EXPECT_EQ(!most ? BUS_ADRERR : 0, gmem_touch_write((u8 *)mem + p, 2));
		EXPECT_EQ(most ? BUS_ADRERR : 0, gmem_touch_write((u8 *)mem + 2 * p, 3));

		/* The whole but a page on either side. */
		ASSERT_WORKS(gmem_convert(self->fd, p, size - 2 * p, attrs[!most], NULL));
		expect_run(_metadata, self->fd, size, 0, p, most);
		expect_run(_metadata, self->fd, size, p, size - 2 * p, !most);
		expect_run(_metadata, self->fd, size, size - p, p, most);

		ASSERT_WORKS(gmem_convert(self->fd, 0, p, attrs[!most], NULL));
		ASSERT_WORKS(gmem_convert(self->fd, size - p, p, attrs[!most], NULL));
		expect_run(_metadata, self->fd, size, 0, size, !most);
	}

	/* Both states have been there: each page has what it got. */
	ASSERT_WORKS(gmem_convert(self->fd, 0, size, GMEM_SHARED, NULL));
	EXPECT_EQ(1, *(u8 *)mem);
	EXPECT_EQ(2, *((u8 *)mem + p));
	EXPECT_EQ(3, *((u8 *)mem + 2 * p));
	expect_counts(_metadata, self->fd, size, 0, 3);
	kvm_munmap(mem, 3 * p);
}

/* Single pages and ranges around the borders that page tables and trees have. */
TEST_F_TIMEOUT(sparse, borders, LONG)
{
	const bool private = !(variant->flags & INIT_SHARED);
	const u64 p = page_size, size = self->size, last = size / p - 1;
	const u64 other = private ? GMEM_SHARED : GMEM_PRIVATE;
	const u64 base = private ? GMEM_PRIVATE : GMEM_SHARED;
	u64 pages[4 + 3 * 48], pos, next;
	unsigned int nr = 0, shift, i;

	/* Around each power of two, in ascending order; runs of three and one. */
	pages[nr++] = 0;
	for (shift = 3; (1ull << shift) + 1 < last; shift++) {
		pages[nr++] = (1ull << shift) - 1;
		pages[nr++] = 1ull << shift;
		if (shift % 2)
			pages[nr++] = (1ull << shift) + 1;
		ASSERT_LT(nr, ARRAY_SIZE(pages) - 2);
	}
	pages[nr++] = last;

	for (i = 0; i < nr; i++)
		ASSERT_WORKS(gmem_convert(self->fd, pages[i] * p, p, other, NULL));

	for (i = 0, pos = 0; pos <= last; pos = next) {
		bool in = i < nr && pages[i] == pos;

		if (in) {
			for (next = pos; i < nr && pages[i] == next; i++)
				next++;
		} else {
			next = i < nr ? pages[i] : last + 1;
		}
		expect_run(_metadata, self->fd, size, pos * p, (next - pos) * p, private ^ in);
	}

	/* Back, from the end; and then it is as if nothing had been. */
	for (i = nr; i-- > 0; )
		ASSERT_WORKS(gmem_convert(self->fd, pages[i] * p, p, base, NULL));
	expect_run(_metadata, self->fd, size, 0, size, private);

	/* Between borders, with a page more and a page less on either side. */
	for (shift = 9; (2ull << shift) < last; shift += 9) {
		u64 start = (1ull << shift) * p, end = (2ull << shift) * p;
		int d;

		for (d = -1; d <= 1; d++) {
			u64 from = start + d * (s64)p, to = end - d * (s64)p;

			ASSERT_WORKS(gmem_convert(self->fd, from, to - from, other, NULL));
			expect_run(_metadata, self->fd, size, 0, from, private);
			expect_run(_metadata, self->fd, size, from, to - from, !private);
			expect_run(_metadata, self->fd, size, to, size - to, private);
			ASSERT_WORKS(gmem_convert(self->fd, from, to - from, base, NULL));
		}
	}
	expect_run(_metadata, self->fd, size, 0, size, private);
}

/* What the host can map and touch, and one process more. */
#define BAD		5	/* the page that turns private */

struct peer_cmd {
	u8 *addr;
	bool write;
	u8 val;
};

struct peer_reply {
	int code;	/* of the SIGBUS, or 0 */
	void *addr;	/* of the SIGBUS */
	u8 val;
};

struct peer {
	pid_t pid;
	int cmd, reply;
};

/* A child that has the parent's mappings, and touches what it is told to. */
static void peer_start(struct peer *peer)
{
	int cmd[2], reply[2];
	struct peer_reply r;
	struct peer_cmd c;

	TEST_ASSERT(!pipe(cmd) && !pipe(reply), "pipe() failed");
	peer->pid = fork();
	TEST_ASSERT(peer->pid >= 0, "fork() failed");
	if (peer->pid) {
		close(cmd[0]);
		close(reply[1]);
		peer->cmd = cmd[1];
		peer->reply = reply[0];
		return;
	}

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(cmd[1]);
	close(reply[0]);
	while (read(cmd[0], &c, sizeof(c)) == sizeof(c)) {
		memset(&r, 0, sizeof(r));
		if (c.write)
			r.code = gmem_touch_write(c.addr, c.val);
		else
			r.code = gmem_sigbus(r.val = READ_ONCE(*c.addr));
		if (r.code)
			r.addr = gmem_sigbus_info.si_addr;
		if (write(reply[1], &r, sizeof(r)) != sizeof(r))
			break;
	}
	_exit(0);
}

static struct peer_reply peer_touch(struct peer *peer, u8 *addr, bool write, u8 val)
{
	struct peer_cmd c = { addr, write, val };
	struct peer_reply r;

	test_write(peer->cmd, &c, sizeof(c));
	test_read(peer->reply, &r, sizeof(r));
	return r;
}

static void peer_stop(struct __test_metadata *_metadata, struct peer *peer)
{
	int status = -1;

	close(peer->cmd);
	close(peer->reply);
	EXPECT_EQ(peer->pid, waitpid(peer->pid, &status, 0));
	EXPECT_EQ(0, status);
}

FIXTURE(shared)
{
	struct gmodel m;
};

FIXTURE_SETUP(shared)
{
	gmem_catch_sigbus();
	gmodel_open(&self->m, vm_create_barebones(), NR_PAGES, MAPPABLE | INIT_SHARED);
}

FIXTURE_TEARDOWN(shared)
{
	gmodel_close(&self->m);
	kvm_vm_free(self->m.vm);
}

static void write_all(struct __test_metadata *_metadata, struct gmodel *m)
{
	unsigned int i;

	for (i = 0; i < m->nr; i++)
		host_writes(_metadata, m, i);
}

/* Whatever maps the page loses it, and gets it back. */
TEST_F(shared, every_mapping)
{
	const int rw = PROT_READ | PROT_WRITE;
	struct gmodel *m = &self->m;
	const u64 p = page_size;
	struct peer peer;
	u8 *old, *mem;

	struct view {
		const char *what;
		u8 *bad;	/* where it has page BAD, and the two next to it */
		bool readonly;
	} views[10] = {};
	struct peer_reply r;
	unsigned int nr = 0, i, round;

	views[nr++] = (struct view) { .what = "the first", .bad = page_of(m, BAD) };

	mem = kvm_mmap(m->size, rw, MAP_SHARED, m->fd);
	views[nr++] = (struct view) { .what = "the second", .bad = mem + offset_of(BAD) };

	mem = __kvm_mmap(3 * p, rw, MAP_SHARED, m->fd, offset_of(BAD - 1));
	views[nr++] = (struct view) { .what = "three pages", .bad = mem + p };

	mem = kvm_mmap(m->size, PROT_READ, MAP_SHARED, m->fd);
	views[nr++] = (struct view) { .what = "read-only", .bad = mem + offset_of(BAD),
				      .readonly = true };

	mem = kvm_mmap(m->size, rw, MAP_SHARED | MAP_POPULATE, m->fd);
	views[nr++] = (struct view) { .what = "populated", .bad = mem + offset_of(BAD) };

	mem = kvm_mmap(m->size, rw, MAP_SHARED, m->fd);
	ASSERT_WORKS(mlock(mem, m->size));
	views[nr++] = (struct view) { .what = "locked", .bad = mem + offset_of(BAD) };

	/* Longer than the file. */
	mem = kvm_mmap(2 * m->size, rw, MAP_SHARED, m->fd);
	views[nr++] = (struct view) { .what = "longer", .bad = mem + offset_of(BAD) };

	/* Moved with its page tables, and made from another one. */
	old = __kvm_mmap(3 * p, rw, MAP_SHARED, m->fd, offset_of(BAD - 1));
	EXPECT_EQ(0, gmem_touch_read(old + p));
	mem = kvm_mmap(3 * p, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mem = mremap(old, 3 * p, 3 * p, MREMAP_MAYMOVE | MREMAP_FIXED, mem);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_NE(old, mem);
	views[nr++] = (struct view) { .what = "moved", .bad = mem + p };
	mem = mremap(mem, 0, 3 * p, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, mem);
	views[nr++] = (struct view) { .what = "copied", .bad = mem + p };

	write_all(_metadata, m);
	peer_start(&peer);

	for (round = 0; round < 3; round++) {
		for (i = 0; i < nr; i++) {
			EXPECT_EQ(m->pages[BAD].head, READ_ONCE(*(u64 *)views[i].bad))
				TH_LOG("%s", views[i].what);
			EXPECT_EQ(m->pages[BAD - 1].head, READ_ONCE(*(u64 *)(views[i].bad - p)));
			EXPECT_EQ(m->pages[BAD + 1].head, READ_ONCE(*(u64 *)(views[i].bad + p)));

			r = peer_touch(&peer, views[i].bad, false, 0);
			EXPECT_EQ(0, r.code);
			EXPECT_EQ((u8)m->pages[BAD].head, r.val);
			if (!views[i].readonly) {
				r = peer_touch(&peer, views[i].bad, true,
					       (u8)m->pages[BAD].head);
				EXPECT_EQ(0, r.code);
			}
		}

		to_private(_metadata, m, BAD, 1);
		for (i = 0; i < nr; i++) {
			u8 *addr = views[i].bad + 24;

			EXPECT_EQ(BUS_ADRERR, gmem_touch_read(addr))
				TH_LOG("%s", views[i].what);
			EXPECT_EQ(SIGBUS, gmem_sigbus_info.si_signo);
			EXPECT_EQ(addr, (u8 *)gmem_sigbus_info.si_addr);
			r = peer_touch(&peer, addr, false, 0);
			EXPECT_EQ(BUS_ADRERR, r.code)
				TH_LOG("the child's, %s", views[i].what);
			EXPECT_EQ(addr, (u8 *)r.addr);

			/* The last byte, and then the next page. */
			addr = views[i].bad + p - 1;
			if (!views[i].readonly) {
				EXPECT_EQ(BUS_ADRERR, gmem_touch_write(addr, 1))
					TH_LOG("%s", views[i].what);
				EXPECT_EQ(addr, (u8 *)gmem_sigbus_info.si_addr);
				r = peer_touch(&peer, addr, true, 1);
				EXPECT_EQ(BUS_ADRERR, r.code);
				EXPECT_EQ(addr, (u8 *)r.addr);
			}
			EXPECT_EQ(m->pages[BAD - 1].head, READ_ONCE(*(u64 *)(views[i].bad - p)));
			EXPECT_EQ(m->pages[BAD + 1].head, READ_ONCE(*(u64 *)(views[i].bad + p)));
			r = peer_touch(&peer, views[i].bad + p, false, 0);
			EXPECT_EQ(0, r.code);
			EXPECT_EQ((u8)m->pages[BAD + 1].head, r.val);
		}
		expect_model(_metadata, m);

		to_shared(_metadata, m, BAD, 1);
		expect_model(_metadata, m);
	}

	/* The child goes on with a page that it has not touched before. */
	r = peer_touch(&peer, page_of(m, BAD) + 8, true, 0x77);
	EXPECT_EQ(0, r.code);
	EXPECT_EQ(0x77, *(page_of(m, BAD) + 8));
	peer_stop(_metadata, &peer);
}

/* Mappings that were made while the page was private are good later. */
TEST_F(shared, mapped_while_private)
{
	const int rw = PROT_READ | PROT_WRITE;
	struct gmodel *m = &self->m;
	u8 *plain, *populated;

	write_all(_metadata, m);
	to_private(_metadata, m, BAD, 2);
	plain = kvm_mmap(m->size, rw, MAP_SHARED, m->fd);
	populated = kvm_mmap(m->size, rw, MAP_SHARED | MAP_POPULATE, m->fd);
	EXPECT_FAILS(ENOMEM, mlock(plain, m->size));
	munlock(plain, m->size);

	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(plain + offset_of(BAD)));
	EXPECT_EQ(BUS_ADRERR, gmem_touch_write(populated + offset_of(BAD), 1));
	EXPECT_EQ(0, gmem_touch_read(populated + offset_of(BAD - 1)));

	to_shared(_metadata, m, BAD, 1);
	EXPECT_EQ(m->pages[BAD].head, *(u64 *)(plain + offset_of(BAD)));
	EXPECT_EQ(m->pages[BAD].head, *(u64 *)(populated + offset_of(BAD)));
	EXPECT_EQ(BUS_ADRERR, gmem_touch_read(plain + offset_of(BAD + 1)));
	EXPECT_EQ(BUS_ADRERR, gmem_touch_write(populated + offset_of(BAD + 1), 1));
	expect_model(_metadata, m);

	kvm_munmap(plain, m->size);
	kvm_munmap(populated, m->size);
}

/* Whether the address has an entry in the page table. */
static bool is_mapped(const void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	u64 entry = 0;

	TEST_ASSERT(fd >= 0, "pagemap: errno %d", errno);
	TEST_ASSERT(pread(fd, &entry, sizeof(entry),
			  (u64)addr / page_size * sizeof(entry)) == sizeof(entry),
		    "pagemap: errno %d", errno);
	close(fd);
	return entry & BIT_ULL(63);
}

/* A conversion of nothing leaves the mappings there are alone. */
TEST_F(shared, no_op_zaps_nothing)
{
	struct gmodel *m = &self->m;
	unsigned int i;

	write_all(_metadata, m);
	to_shared(_metadata, m, 0, m->nr);
	to_shared(_metadata, m, BAD, 1);
	for (i = 0; i < m->nr; i++) {
		bool mapped = is_mapped(page_of(m, i));

		EXPECT_TRUE(mapped) TH_LOG("page %u", i);
	}

	/* And a real one takes its page. */
	to_private(_metadata, m, BAD, 1);
	EXPECT_FALSE(is_mapped(page_of(m, BAD)));
	host_writes(_metadata, m, BAD - 1);
	host_writes(_metadata, m, BAD + 1);
	to_private(_metadata, m, BAD, 1);
	EXPECT_TRUE(is_mapped(page_of(m, BAD - 1)));
	EXPECT_TRUE(is_mapped(page_of(m, BAD + 1)));
	expect_model(_metadata, m);
}

/* The kernel does not get to private memory on behalf of a process. */
TEST_F(shared, system_calls)
{
	struct gmodel *m = &self->m;
	struct iovec local, remote, both, border;
	unsigned int round;
	struct peer peer;
	int pipefd[2];
	u64 word = 0, words[2];
	u8 *bad;

	bad = page_of(m, BAD);
	local = (struct iovec) { &word, sizeof(word) };
	remote = (struct iovec) { bad, sizeof(word) };
	both = (struct iovec) { words, sizeof(words) };
	border = (struct iovec) { bad - 8, sizeof(words) };
	ASSERT_WORKS(pipe(pipefd));
	write_all(_metadata, m);
	peer_start(&peer);
	EXPECT_EQ(0, peer_touch(&peer, bad, false, 0).code);

	for (round = 0; round < 3; round++) {
		to_private(_metadata, m, BAD, 1);

		/* Nothing gets out. */
		EXPECT_FAILS(EFAULT, write(pipefd[1], bad, 8));
		EXPECT_FAILS(EFAULT, write(pipefd[1], bad + page_size - 1, 1));
		EXPECT_FAILS(EFAULT, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
		EXPECT_FAILS(EFAULT, process_vm_readv(peer.pid, &local, 1, &remote, 1, 0));
		EXPECT_FAILS(EFAULT, vmsplice(pipefd[1], &remote, 1, 0));
		EXPECT_FAILS(EFAULT, madvise(bad, page_size, MADV_POPULATE_READ));

		/* Nor in: what could not be stored is still in the pipe. */
		word = 0x1234;
		ASSERT_EQ(8, write(pipefd[1], &word, 8));
		EXPECT_FAILS(EFAULT, read(pipefd[0], bad, 8));
		word = 0;
		EXPECT_EQ(8, read(pipefd[0], &word, 8));
		EXPECT_EQ(0x1234u, word);
		EXPECT_FAILS(EFAULT, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
		EXPECT_FAILS(EFAULT, process_vm_writev(peer.pid, &local, 1, &remote, 1, 0));
		EXPECT_FAILS(EFAULT, madvise(bad, page_size, MADV_POPULATE_WRITE));
		EXPECT_FAILS(ENOMEM, mlock(bad, page_size));
		munlock(bad, page_size);

		/* Up to the page, and no further. */
		words[0] = 0;
		words[1] = 0;
		EXPECT_EQ(8, process_vm_readv(getpid(), &both, 1, &border, 1, 0));
		EXPECT_EQ(m->pages[BAD - 1].tail, words[0]);
		EXPECT_EQ(0u, words[1]);
		expect_model(_metadata, m);

		to_shared(_metadata, m, BAD, 1);
		EXPECT_EQ(8, write(pipefd[1], bad, 8));
		EXPECT_EQ(8, read(pipefd[0], &word, 8));
		EXPECT_EQ(m->pages[BAD].head, word);
		EXPECT_EQ(8, process_vm_readv(peer.pid, &local, 1, &remote, 1, 0));
		EXPECT_EQ(m->pages[BAD].head, word);

		word = ++m->token;
		m->pages[BAD].head = word;
		EXPECT_EQ(8, process_vm_writev(peer.pid, &local, 1, &remote, 1, 0));
		expect_model(_metadata, m);
		word = ++m->token;
		m->pages[BAD].head = word;
		ASSERT_EQ(8, write(pipefd[1], &word, 8));
		EXPECT_EQ(8, read(pipefd[0], bad, 8));
		expect_model(_metadata, m);
	}

	peer_stop(_metadata, &peer);
	close(pipefd[0]);
	close(pipefd[1]);
}

TEST_F(shared, io_uring)
{
	struct gmodel *m = &self->m;
	struct io_uring ring;
	struct iovec iov;
	int pipefd[2];
	u64 word = 0;
	u8 *bad;

	if (!ring_init(&ring))
		SKIP(return, "no io_uring");

	bad = page_of(m, BAD);
	iov = (struct iovec) { bad, page_size };
	ASSERT_WORKS(pipe(pipefd));
	write_all(_metadata, m);
	to_private(_metadata, m, BAD, 1);

	EXPECT_EQ(-EFAULT, ring_rw(&ring, IORING_OP_WRITE, pipefd[1], bad, 8));
	word = 0x1234;
	ASSERT_EQ(8, write(pipefd[1], &word, 8));
	EXPECT_EQ(-EFAULT, ring_rw(&ring, IORING_OP_READ, pipefd[0], bad, 8));
	EXPECT_EQ(-EFAULT, io_uring_register_buffers(&ring, &iov, 1));
	expect_model(_metadata, m);

	to_shared(_metadata, m, BAD, 1);
	EXPECT_EQ(8, ring_rw(&ring, IORING_OP_READ, pipefd[0], bad, 8));
	m->pages[BAD].head = 0x1234;
	EXPECT_EQ(8, ring_rw(&ring, IORING_OP_WRITE, pipefd[1], bad, 8));
	word = 0;
	EXPECT_EQ(8, read(pipefd[0], &word, 8));
	EXPECT_EQ(0x1234u, word);
	expect_model(_metadata, m);

	/* The ring has let go of the page. */
	to_private(_metadata, m, BAD, 1);
	expect_model(_metadata, m);
	io_uring_queue_exit(&ring);
	close(pipefd[0]);
	close(pipefd[1]);
}

/* Touched a moment ago is no reason to refuse. */
TEST_F_TIMEOUT(shared, at_once, LONG)
{
	struct gmodel *m = &self->m;
	u64 i;

	/* Without the model: this is about many.  Each write is a fault. */
	for (i = 1; i <= 10000; i++) {
		WRITE_ONCE(head_of(m, BAD)[i % 64], i);
		ASSERT_WORKS(gmem_convert(m->fd, offset_of(BAD), page_size, GMEM_PRIVATE, NULL));
		ASSERT_WORKS(gmem_convert(m->fd, offset_of(BAD), page_size, GMEM_SHARED, NULL));
	}
	for (i = 10000 - 63; i <= 10000; i++)
		EXPECT_EQ(i, READ_ONCE(head_of(m, BAD)[i % 64]));
	m->pages[BAD].present = true;
	m->pages[BAD].head = 10000 / 64 * 64;
	expect_model(_metadata, m);
}

TEST_F_TIMEOUT(large, at_once, LONG)
{
	struct gmodel *m = &self->m;
	unsigned int i, round;

	for (round = 0; round < 20; round++) {
		for (i = 0; i < 512; i++)
			host_writes(_metadata, m, i);
		to_private(_metadata, m, 0, 512);
		to_shared(_metadata, m, 0, 512);
		expect_contents(_metadata, m);
	}
	expect_states(_metadata, m);
	expect_fdinfo(_metadata, m);
}

/* Nor is it if another process did it, or the kernel, or a mapping is locked. */
TEST_F(shared, at_once_whoever_it_was)
{
	const int rw = PROT_READ | PROT_WRITE;
	struct gmodel *m = &self->m;
	struct iovec local, remote;
	unsigned int round;
	struct peer peer;
	int pipefd[2];
	u8 *bad, *mem;
	pid_t pid;
	u64 word;

	bad = page_of(m, BAD);
	local = (struct iovec) { &word, sizeof(word) };
	remote = (struct iovec) { bad, sizeof(word) };
	ASSERT_WORKS(pipe(pipefd));
	write_all(_metadata, m);
	peer_start(&peer);

	for (round = 0; round < 50; round++) {
		/* Another process, which still has it mapped. */
		ASSERT_EQ(0, peer_touch(&peer, bad + 16, true, round).code);
		to_private(_metadata, m, BAD, 1);
		to_shared(_metadata, m, BAD, 1);

		/* The kernel's copies. */
		word = ++m->token;
		m->pages[BAD].head = word;
		ASSERT_EQ(8, process_vm_writev(peer.pid, &local, 1, &remote, 1, 0));
		to_private(_metadata, m, BAD, 1);
		to_shared(_metadata, m, BAD, 1);
		ASSERT_EQ(8, write(pipefd[1], bad, 8));
		to_private(_metadata, m, BAD, 1);
		to_shared(_metadata, m, BAD, 1);
		ASSERT_EQ(8, read(pipefd[0], bad, 8));
		to_private(_metadata, m, BAD, 1);
		to_shared(_metadata, m, BAD, 1);
		expect_contents(_metadata, m);

		/* Mappings of its own: populated, locked, gone. */
		mem = kvm_mmap(m->size, rw, MAP_SHARED | MAP_POPULATE, m->fd);
		to_private(_metadata, m, 0, m->nr);
		to_shared(_metadata, m, 0, m->nr);
		ASSERT_WORKS(mlock(mem, m->size));
		to_private(_metadata, m, 0, m->nr);
		to_shared(_metadata, m, 0, m->nr);
		ASSERT_EQ(m->pages[BAD].head, READ_ONCE(*(u64 *)(mem + offset_of(BAD))));
		to_private(_metadata, m, BAD, 2);
		to_shared(_metadata, m, BAD, 2);
		ASSERT_WORKS(munlock(mem, m->size));
		to_private(_metadata, m, 0, m->nr);
		to_shared(_metadata, m, 0, m->nr);
		ASSERT_EQ(0, gmem_touch_write(mem + offset_of(BAD) + 16, round));
		kvm_munmap(mem, m->size);
		to_private(_metadata, m, 0, m->nr);
		to_shared(_metadata, m, 0, m->nr);

		/* Just allocated, and never touched. */
		punch(_metadata, m, 0, 2);
		allocate(_metadata, m, 0, 2);
		to_private(_metadata, m, 0, 2);
		to_shared(_metadata, m, 0, 2);
		expect_contents(_metadata, m);
	}

	/* A child that comes, writes and goes. */
	for (round = 0; round < 10; round++) {
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			WRITE_ONCE(*(u64 *)bad, 0x5000 + round);
			_exit(0);
		}
		ASSERT_EQ(pid, waitpid(pid, NULL, 0));
		m->pages[BAD].head = 0x5000 + round;
		to_private(_metadata, m, BAD, 1);
		to_shared(_metadata, m, BAD, 1);
		expect_contents(_metadata, m);
	}

	expect_model(_metadata, m);
	peer_stop(_metadata, &peer);
	close(pipefd[0]);
	close(pipefd[1]);
}

FIXTURE(held)
{
	struct gmodel m;
	struct holder a, b;
};

FIXTURE_VARIANT(held)
{
	bool uring;
};

FIXTURE_VARIANT_ADD(held, vmsplice)
{
	.uring = false,
};

FIXTURE_VARIANT_ADD(held, fixed_buffer)
{
	.uring = true,
};

FIXTURE_SETUP(held)
{
	gmem_catch_sigbus();
	if (!holder_init(&self->a, variant->uring) || !holder_init(&self->b, variant->uring))
		SKIP(return, "no io_uring");
	gmodel_open(&self->m, vm_create_barebones(), NR_PAGES, MAPPABLE | INIT_SHARED);
}

FIXTURE_TEARDOWN(held)
{
	EXPECT_FALSE(self->a.holds);
	EXPECT_FALSE(self->b.holds);
	gmodel_close(&self->m);
	kvm_vm_free(self->m.vm);
}

/* Somebody holds page @held of the range: that is told, and all is as before. */
static void expect_held(struct __test_metadata *_metadata, struct gmodel *m,
			unsigned int first, unsigned int nr, unsigned int held)
{
	struct kvm_memory_attributes2 want, arg = {
		.offset = offset_of(first),
		.size = offset_of(nr),
		.attributes = GMEM_PRIVATE,
		.error_offset = GMEM_NO_OFFSET,
	};

	want = arg;
	want.error_offset = offset_of(held);
	__EXPECT_FAILS(EAGAIN, ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg),
		       "pages %u, %u, page %u is held", first, nr, held);
	EXPECT_EQ(want.error_offset, arg.error_offset)
		TH_LOG("page %ld, not %u", (long)arg.error_offset / (long)page_size, held);
	EXPECT_EQ(0, memcmp(&want, &arg, sizeof(arg)));
	expect_model(_metadata, m);
}

static void *let_go_soon(void *arg)
{
	struct holder *h = arg;
	u64 word;

	usleep(30000);
	return (void *)(long)read(h->pipe[0], &word, sizeof(word));
}

/* What ends by itself in a moment is waited for.  A pin is not, for that long. */
TEST_F(held, for_a_moment)
{
	struct gmodel *m = &self->m;
	pthread_t thread;
	int round;
	void *ret;

	if (variant->uring)
		return;

	write_all(_metadata, m);
	for (round = 0; round < 5; round++) {
		hold(_metadata, &self->a, page_of(m, BAD), sizeof(u64));
		ASSERT_EQ(0, pthread_create(&thread, NULL, let_go_soon, &self->a));
		to_private(_metadata, m, 0, NR_PAGES);
		ASSERT_EQ(0, pthread_join(thread, &ret));
		ASSERT_EQ(sizeof(u64), (long)ret);
		self->a.holds = false;
		to_shared(_metadata, m, 0, NR_PAGES);
	}
	expect_model(_metadata, m);
}

/*
 * One page in a range: the first, the last, or another.  A refusal may take its
 * time, in which the kernel waits for the holder: there are few of them here.
 */
TEST_F(held, one_page)
{
	static const struct {
		unsigned int first, nr, held;
		bool alone;	/* no other page is there */
	} rows[] = {
		{ 4, 8, 4, true },
		{ 4, 8, 7, false },
		{ 4, 8, 11, true },
		{ 0, NR_PAGES, 0, false },
		{ 0, NR_PAGES, 8, true },
		{ 0, NR_PAGES, NR_PAGES - 1, false },
		{ NR_PAGES - 1, 1, NR_PAGES - 1, false },
	};
	struct gmodel *m = &self->m;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		const unsigned int first = rows[i].first, held = rows[i].held;
		const unsigned int end = first + rows[i].nr;
		u64 *word = head_of(m, held);

		if (rows[i].alone)
			punch(_metadata, m, 0, m->nr);
		else
			write_all(_metadata, m);
		host_writes(_metadata, m, held);
		hold(_metadata, &self->a, word, 8);
		expect_held(_metadata, m, first, end - first, held);

		/* It is shared, so it can be made that. */
		to_shared(_metadata, m, first, end - first);

		/* Its neighbours are nobody's. */
		if (held > first)
			to_private(_metadata, m, first, held - first);
		if (held + 1 < end)
			to_private(_metadata, m, held + 1, end - held - 1);
		expect_model(_metadata, m);

		/* Refused in the midst of private pages, which stay so. */
		expect_held(_metadata, m, first, end - first, held);
		to_shared(_metadata, m, 0, m->nr);
		expect_model(_metadata, m);

		/* Both ends still have the same memory. */
		host_writes(_metadata, m, held);
		EXPECT_EQ(m->pages[held].head, let_go(_metadata, &self->a, word, 8));

		to_private(_metadata, m, first, end - first);
		expect_model(_metadata, m);
		to_shared(_metadata, m, first, end - first);
		expect_model(_metadata, m);
	}
}

/* Two of them: it is the first that counts, until it goes. */
TEST_F(held, two_pages)
{
	struct gmodel *m = &self->m;

	write_all(_metadata, m);
	hold(_metadata, &self->a, head_of(m, 9), 8);
	expect_held(_metadata, m, 2, 10, 9);
	hold(_metadata, &self->b, head_of(m, 6), 8);
	expect_held(_metadata, m, 2, 10, 6);
	to_private(_metadata, m, 7, 2);
	expect_held(_metadata, m, 7, 9, 9);
	expect_held(_metadata, m, 0, m->nr, 6);

	EXPECT_EQ(m->pages[6].head, let_go(_metadata, &self->b, head_of(m, 6), 8));
	to_private(_metadata, m, 6, 1);
	expect_held(_metadata, m, 0, m->nr, 9);

	/* The same page twice: gone is when both are. */
	hold(_metadata, &self->b, head_of(m, 9), 8);
	EXPECT_EQ(m->pages[9].head, let_go(_metadata, &self->a, head_of(m, 9), 8));
	expect_held(_metadata, m, 0, m->nr, 9);
	EXPECT_EQ(m->pages[9].head, let_go(_metadata, &self->b, head_of(m, 9), 8));

	to_private(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
	to_shared(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
}

/* The buffer is in two pages; and one byte is enough to hold a page. */
TEST_F(held, part_of_a_page)
{
	struct gmodel *m = &self->m;
	u64 *border = head_of(m, 6) - 1;
	u8 *byte = page_of(m, 3) + 100;

	write_all(_metadata, m);
	hold(_metadata, &self->a, border, 16);
	expect_held(_metadata, m, 0, m->nr, 5);
	expect_held(_metadata, m, 6, 4, 6);
	to_private(_metadata, m, 7, 2);
	to_private(_metadata, m, 0, 5);
	expect_held(_metadata, m, 0, m->nr, 5);
	EXPECT_EQ(m->pages[5].tail, let_go(_metadata, &self->a, border, 16));
	to_private(_metadata, m, 0, m->nr);
	to_shared(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);

	WRITE_ONCE(*byte, 0x9a);
	hold(_metadata, &self->a, byte, 1);
	expect_held(_metadata, m, 0, m->nr, 3);
	EXPECT_EQ(0x9au, let_go(_metadata, &self->a, byte, 1));
	to_private(_metadata, m, 3, 1);
	expect_model(_metadata, m);
}

/* The mapping may go; a hole lets the page go, and the holder has it alone. */
TEST_F(held, unmapped_and_punched)
{
	struct gmodel *m = &self->m;
	u64 *word, old;

	write_all(_metadata, m);
	word = head_of(m, BAD);
	hold(_metadata, &self->a, word, 8);
	gmodel_unmap(m);
	expect_held(_metadata, m, 0, m->nr, BAD);
	m->mem = kvm_mmap(m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd);
	expect_model(_metadata, m);

	old = m->pages[BAD].head;
	punch(_metadata, m, BAD, 1);
	to_private(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
	to_shared(_metadata, m, 0, m->nr);
	host_writes(_metadata, m, BAD);
	to_private(_metadata, m, 0, m->nr);
	EXPECT_EQ(old, let_go(_metadata, &self->a, word, 8));
	to_shared(_metadata, m, 0, m->nr);
	expect_model(_metadata, m);
}

/* The offset has nowhere to go: nothing changes all the same. */
TEST_F(held, readonly_argument)
{
	struct kvm_memory_attributes2 *arg, was;
	struct gmodel *m = &self->m;
	int ret, err;

	write_all(_metadata, m);
	hold(_metadata, &self->a, head_of(m, BAD), 8);

	arg = kvm_mmap(page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	arg->size = m->size;
	arg->attributes = GMEM_PRIVATE;
	was = *arg;
	ASSERT_WORKS(mprotect(arg, page_size, PROT_READ));
	ret = ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, arg);
	err = errno;
	EXPECT_EQ(-1, ret);
	EXPECT_TRUE(err == EFAULT || err == EAGAIN) TH_LOG("%s", strerror(err));
	EXPECT_EQ(0, memcmp(&was, arg, sizeof(was)));
	expect_model(_metadata, m);

	EXPECT_EQ(m->pages[BAD].head, let_go(_metadata, &self->a, head_of(m, BAD), 8));
	EXPECT_WORKS(ioctl(m->fd, KVM_SET_MEMORY_ATTRIBUTES2, arg));
	kvm_munmap(arg, page_size);
}

/* A VM that runs, with the file in one slot. */
struct gguest {
	struct gmodel m;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 gpa[NR_PAGES];	/* where the guest has each page, 0: nowhere */
};

static u64 gpa_of(unsigned int page)
{
	return GPA + page * page_size;
}

static int delete_slot(struct gguest *g, unsigned int slot)
{
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		g->gpa[i] = 0;
	return __vm_set_user_memory_region2(g->vm, slot, 0, 0, 0, NULL, 0, 0);
}

/* Bind @nr pages from @first on, where @at says and with that host address. */
static int bind_slot_hva(struct gguest *g, unsigned int slot, unsigned int at,
			 unsigned int first, unsigned int nr, void *hva)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		g->gpa[first + i] = gpa_of(at + i);
	return __vm_set_user_memory_region2(g->vm, slot, KVM_MEM_GUEST_MEMFD, gpa_of(at),
					    offset_of(nr), hva, g->m.fd, offset_of(first));
}

static int bind_slot(struct gguest *g, unsigned int slot, unsigned int at,
		     unsigned int first, unsigned int nr)
{
	return bind_slot_hva(g, slot, at, first, nr, NULL);
}

static void gguest_setup(struct __test_metadata *_metadata, struct gguest *g,
			 unsigned int type, u64 flags)
{
	struct vm_shape shape = VM_SHAPE_DEFAULT;

	shape.type = type;
	g->vm = __vm_create_shape_with_one_vcpu(shape, &g->vcpu, 1, gmem_guest_code);
	gmem_catch_sigbus();
	gmodel_open(&g->m, g->vm, NR_PAGES, flags);
	ASSERT_WORKS(bind_slot(g, SLOT, 0, 0, NR_PAGES));

	/* Twice as much as there is, for slots that come later. */
	virt_map(g->vm, GPA, GPA, 2 * NR_PAGES * page_size / g->vm->page_size);
}

static void gguest_teardown(struct gguest *g)
{
	gmodel_close(&g->m);
	kvm_vm_free(g->vm);
}

/* The guest writes the first word of a page, private or shared. */
static void guest_writes(struct __test_metadata *_metadata, struct gguest *g, unsigned int page)
{
	struct gpage *p = &g->m.pages[page];

	p->present = true;
	p->head = ++g->m.token;
	ASSERT_EQ(0, gmem_guest_write(g->vcpu, g->gpa[page], p->head))
		TH_LOG("page %u, %s", page, p->private ? "private" : "shared");
}

/* The guest reads a page, and finds what it or the host wrote. */
static void guest_reads(struct __test_metadata *_metadata, struct gguest *g, unsigned int page)
{
	struct gpage *p = &g->m.pages[page];
	u64 val = ~p->head;

	p->present = true;
	ASSERT_EQ(0, gmem_guest_read(g->vcpu, g->gpa[page], &val))
		TH_LOG("page %u, %s", page, p->private ? "private" : "shared");
	ASSERT_EQ(p->head, val)
		TH_LOG("page %u, %s", page, p->private ? "private" : "shared");
}

/* Host and guest see what the model says, in all pages that each can see. */
static void expect_guest(struct __test_metadata *_metadata, struct gguest *g)
{
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		if (g->gpa[i])
			guest_reads(_metadata, g, i);
	expect_model(_metadata, &g->m);
}

FIXTURE(guest)
{
	struct gguest g;
};

FIXTURE_VARIANT(guest)
{
	unsigned int type;
	u64 flags;
};

FIXTURE_VARIANT_ADD(guest, mmap)
{
	.type = VM_TYPE_DEFAULT,
	.flags = MAPPABLE,
};

FIXTURE_VARIANT_ADD(guest, init_shared)
{
	.type = VM_TYPE_DEFAULT,
	.flags = INIT_SHARED,
};

FIXTURE_VARIANT_ADD(guest, mmap_init_shared)
{
	.type = VM_TYPE_DEFAULT,
	.flags = MAPPABLE | INIT_SHARED,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(guest, protected_mmap)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE,
};

FIXTURE_VARIANT_ADD(guest, protected_init_shared)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = INIT_SHARED,
};

FIXTURE_VARIANT_ADD(guest, protected_mmap_init_shared)
{
	.type = KVM_X86_SW_PROTECTED_VM,
	.flags = MAPPABLE | INIT_SHARED,
};
#endif

FIXTURE_SETUP(guest)
{
	if (!(vm_types() & BIT(variant->type)))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
	gguest_setup(_metadata, &self->g, variant->type, variant->flags);
}

FIXTURE_TEARDOWN(guest)
{
	gguest_teardown(&self->g);
}

/* Whoever writes, whatever the page is and becomes: it stays. */
TEST_F(guest, contents_both_ways)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int round, i;

	/* As the file starts: zero. */
	expect_guest(_metadata, g);

	for (round = 0; round < 2; round++) {
		for (i = 0; i < NR_PAGES; i++)
			guest_writes(_metadata, g, i);
		expect_model(_metadata, m);

		/* Half of them. */
		to_private(_metadata, m, 0, NR_PAGES / 2);
		to_shared(_metadata, m, NR_PAGES / 2, NR_PAGES / 2);
		expect_guest(_metadata, g);
		for (i = 0; i < NR_PAGES; i++) {
			if (i % 2)
				guest_writes(_metadata, g, i);
			else if (host_sees(m, i))
				host_writes(_metadata, m, i);
		}
		expect_guest(_metadata, g);

		/* The other half, and one at a time. */
		for (i = 0; i < NR_PAGES; i++) {
			convert(_metadata, m, i, 1, !m->pages[i].private);
			guest_reads(_metadata, g, i);
			guest_writes(_metadata, g, i);
			expect_model(_metadata, m);
		}
		expect_guest(_metadata, g);

		to_shared(_metadata, m, 0, NR_PAGES);
		expect_guest(_metadata, g);
	}
}

/* The vCPU has just been there, each time: no conversion fails, no exit comes. */
TEST_F(guest, at_once)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int round;

	to_shared(_metadata, m, 0, NR_PAGES);
	for (round = 0; round < 100; round++) {
		guest_writes(_metadata, g, BAD);
		to_private(_metadata, m, BAD, 1);
		guest_reads(_metadata, g, BAD);
		guest_writes(_metadata, g, BAD);
		to_shared(_metadata, m, BAD, 1);
		expect_contents(_metadata, m);
		if (m->mem) {
			host_writes(_metadata, m, BAD);
			to_private(_metadata, m, BAD, 1);
			to_shared(_metadata, m, BAD, 1);
			guest_reads(_metadata, g, BAD);
		}
	}
	expect_guest(_metadata, g);
}

/* The guest is the first to see a page, in either state. */
TEST_F(guest, fresh_pages)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i;

	to_private(_metadata, m, 0, 8);
	to_shared(_metadata, m, 8, 8);

	/* Read, and written, and one left alone; then the other state. */
	for (i = 0; i < NR_PAGES; i += 4) {
		guest_reads(_metadata, g, i);
		guest_writes(_metadata, g, i + 1);
		allocate(_metadata, m, i + 2, 1);
	}
	expect_model(_metadata, m);
	to_shared(_metadata, m, 0, 8);
	to_private(_metadata, m, 8, 8);
	expect_model(_metadata, m);
	expect_guest(_metadata, g);
	to_shared(_metadata, m, 0, NR_PAGES);
	expect_guest(_metadata, g);
	for (i = 0; m->mem && i < NR_PAGES; i++)
		EXPECT_TRUE(gmem_is_filled(head_of(m, i) + 1, 0, page_size - 8));
}

TEST_F(guest, punch_hole)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i, round;

	to_private(_metadata, m, 0, NR_PAGES);
	to_shared(_metadata, m, 10, 4);
	for (round = 0; round < 2; round++) {
		for (i = 0; i < NR_PAGES; i++)
			guest_writes(_metadata, g, i);

		/* Of private pages, of shared ones, and of both. */
		punch(_metadata, m, 4, 2);
		punch(_metadata, m, 11, 1);
		punch(_metadata, m, 13, 2);
		expect_model(_metadata, m);
		expect_guest(_metadata, g);

		/* New pages in the old states, and they turn as any others. */
		guest_writes(_metadata, g, 4);
		guest_writes(_metadata, g, 11);
		to_shared(_metadata, m, 4, 2);
		to_private(_metadata, m, 10, 4);
		expect_guest(_metadata, g);
		to_private(_metadata, m, 4, 2);
		to_shared(_metadata, m, 10, 4);
		expect_guest(_metadata, g);
	}
}

/* A slot with pages 4 to 11: conversions begin and end on all sides of it. */
TEST_F(guest, part_of_the_file)
{
	static const struct {
		unsigned int first, nr;
	} rows[] = {
		{ 0, 4 }, { 0, 5 }, { 2, 4 }, { 3, 1 }, { 4, 1 }, { 4, 8 }, { 6, 2 },
		{ 11, 1 }, { 11, 2 }, { 10, 6 }, { 12, 4 }, { 3, 10 }, { 0, NR_PAGES },
	};
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i, j;

	ASSERT_WORKS(delete_slot(g, SLOT));
	ASSERT_WORKS(bind_slot(g, SLOT, 0, 4, 8));
	to_shared(_metadata, m, 0, NR_PAGES);

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		for (j = 4; j < 12; j++)
			guest_writes(_metadata, g, j);
		to_private(_metadata, m, rows[i].first, rows[i].nr);
		expect_guest(_metadata, g);
		for (j = 4; j < 12; j++)
			guest_writes(_metadata, g, j);
		to_shared(_metadata, m, rows[i].first, rows[i].nr);
		expect_guest(_metadata, g);
	}
}

/* Two slots, with the halves of the file changed over. */
TEST_F(guest, two_slots)
{
	const unsigned int half = NR_PAGES / 2;
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i, d;

	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	ASSERT_WORKS(delete_slot(g, SLOT));
	ASSERT_WORKS(bind_slot(g, SLOT, 0, half, half));
	ASSERT_WORKS(bind_slot(g, SLOT + 1, half, 0, half));
	expect_guest(_metadata, g);

	/* Across the border, and up to it from either side. */
	for (d = 1; d <= half; d += 3) {
		to_private(_metadata, m, half - d, 2 * d);
		expect_guest(_metadata, g);
		for (i = 0; i < NR_PAGES; i++)
			guest_writes(_metadata, g, i);
		to_shared(_metadata, m, half - d, d);
		expect_guest(_metadata, g);
		to_shared(_metadata, m, half, d);
		expect_guest(_metadata, g);
	}

	/* The state is the file's: slots come and go. */
	to_private(_metadata, m, half - 2, 4);
	ASSERT_WORKS(delete_slot(g, SLOT));
	ASSERT_WORKS(delete_slot(g, SLOT + 1));
	expect_model(_metadata, m);
	to_shared(_metadata, m, half - 1, 1);
	to_private(_metadata, m, 0, 1);
	ASSERT_WORKS(bind_slot(g, SLOT, NR_PAGES, 0, NR_PAGES));
	expect_guest(_metadata, g);
	to_shared(_metadata, m, 0, NR_PAGES);
	expect_guest(_metadata, g);
}

/* The mapping in the host is nothing to the guest, in any state. */
TEST_F(guest, unmapped_by_the_host)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	to_private(_metadata, m, 0, 8);
	to_shared(_metadata, m, 8, 8);
	gmodel_unmap(m);
	expect_guest(_metadata, g);
	to_private(_metadata, m, 4, 8);
	expect_guest(_metadata, g);
	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	to_shared(_metadata, m, 0, NR_PAGES);
	expect_guest(_metadata, g);

	if (variant->flags & MAPPABLE) {
		m->mem = kvm_mmap(m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd);
		expect_guest(_metadata, g);
	}
}

/* The slot's host address: other memory, which nobody touches. */
TEST_F(guest, host_address)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i;
	u8 *decoy;

	decoy = kvm_mmap(m->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(decoy, 0x5a, m->size);
	ASSERT_WORKS(delete_slot(g, SLOT));
	ASSERT_WORKS(bind_slot_hva(g, SLOT, 0, 0, NR_PAGES, decoy));

	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	to_private(_metadata, m, 0, 6);
	to_shared(_metadata, m, 6, 10);
	expect_guest(_metadata, g);
	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	to_shared(_metadata, m, 0, 6);
	expect_guest(_metadata, g);
	EXPECT_TRUE(gmem_is_filled(decoy, 0x5a, m->size));

	kvm_munmap(decoy, m->size);
	to_private(_metadata, m, 2, 12);
	expect_guest(_metadata, g);
	to_shared(_metadata, m, 0, NR_PAGES);
	expect_guest(_metadata, g);

	if (!(variant->flags & MAPPABLE))
		return;

	/* The file itself, and off by a page. */
	decoy = kvm_mmap(2 * m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd);
	ASSERT_WORKS(delete_slot(g, SLOT));
	ASSERT_WORKS(bind_slot_hva(g, SLOT, 0, 0, NR_PAGES, decoy + page_size));
	expect_guest(_metadata, g);
	to_private(_metadata, m, 3, 8);
	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	expect_guest(_metadata, g);
	to_shared(_metadata, m, 0, NR_PAGES);
	expect_guest(_metadata, g);
	kvm_munmap(decoy, 2 * m->size);
	expect_guest(_metadata, g);
}

/* The last close takes the memory, and the states, from a guest that has it. */
TEST_F(guest, close)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int round;
	u64 val;

	for (round = 0; round < 4; round++) {
		struct kvm_run *run = g->vcpu->run;
		int fd, ret;

		to_shared(_metadata, m, 0, NR_PAGES);
		if (m->mem)
			host_writes(_metadata, m, BAD);
		else
			guest_writes(_metadata, g, BAD);
		convert(_metadata, m, BAD, 1, round % 2);

		/* Not the last one; the guest has the page mapped, or not. */
		fd = kvm_dup(m->fd);
		close(m->fd);
		m->fd = fd;
		if (round / 2)
			guest_reads(_metadata, g, BAD);
		gmodel_close(m);

		ret = gmem_guest_read(g->vcpu, g->gpa[BAD], &val);
		EXPECT_EQ(-EFAULT, ret);
		EXPECT_EQ((u32)KVM_EXIT_MEMORY_FAULT, run->exit_reason);
		EXPECT_EQ(g->gpa[BAD], run->memory_fault.gpa);
		EXPECT_EQ(page_size, run->memory_fault.size);
		EXPECT_EQ(0u, run->memory_fault.flags);

		/* A new file in its place; the guest ends its access, and goes on. */
		ASSERT_WORKS(delete_slot(g, SLOT));
		gmodel_open(m, g->vm, NR_PAGES, variant->flags);
		ASSERT_WORKS(bind_slot(g, SLOT, 0, 0, NR_PAGES));
		ASSERT_EQ(0, gmem_guest_run(g->vcpu));
		m->pages[BAD].present = true;
		expect_guest(_metadata, g);
	}
}

#ifdef __x86_64__
/* The guest keeps what it has mapped if nothing changes. */
TEST_F(guest, no_op_zaps_nothing)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i;
	u64 before;

	to_private(_metadata, m, 0, 8);
	to_shared(_metadata, m, 8, 8);
	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);

	before = vm_get_stat(g->vm, pages_4k);
	EXPECT_GE(before, (u64)NR_PAGES);
	to_private(_metadata, m, 0, 8);
	to_private(_metadata, m, BAD, 1);
	to_shared(_metadata, m, 8, 8);
	EXPECT_EQ(before, vm_get_stat(g->vm, pages_4k));

	/* The number means something: a hole takes a page. */
	punch(_metadata, m, BAD, 1);
	EXPECT_EQ(before - 1, vm_get_stat(g->vm, pages_4k));
	expect_guest(_metadata, g);
}

/* The software-protected VM has attributes, too. */
FIXTURE(protected)
{
	struct gguest g;
};

FIXTURE_SETUP(protected)
{
	if (!(vm_types() & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "no software-protected VMs (they need the TDP MMU)");
	gguest_setup(_metadata, &self->g, KVM_X86_SW_PROTECTED_VM, MAPPABLE | INIT_SHARED);
}

FIXTURE_TEARDOWN(protected)
{
	gguest_teardown(&self->g);
}

/* The VM's attributes, through either ioctl, if there are any. */
static void vm_attributes(struct __test_metadata *_metadata, struct kvm_vm *vm, u64 gpa,
			  u64 size, u64 attributes, bool new)
{
	struct kvm_memory_attributes2 arg2 = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
	};
	struct kvm_memory_attributes arg = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
	};

	if (!has_vm_attributes()) {
		EXPECT_FAILS(ENOTTY, ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &arg));
		EXPECT_FAILS(ENOTTY, ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg2));
	} else if (new) {
		ASSERT_WORKS(ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg2));
	} else {
		ASSERT_WORKS(ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &arg));
	}
}

/*
 * What the guest has mapped in one way must not stay so: each page converted leaves
 * its tables, at once and alone.  Here it would do no harm, with RMP or HKID it would.
 */
TEST_F(protected, conversion_zaps)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int i;
	u64 before;

	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);

	before = vm_get_stat(g->vm, pages_4k);
	to_private(_metadata, m, 2, 3);
	EXPECT_EQ(before - 3, vm_get_stat(g->vm, pages_4k));
	for (i = 0; i < NR_PAGES; i++)
		guest_writes(_metadata, g, i);
	EXPECT_EQ(before, vm_get_stat(g->vm, pages_4k));

	to_shared(_metadata, m, 3, 1);
	EXPECT_EQ(before - 1, vm_get_stat(g->vm, pages_4k));
	expect_guest(_metadata, g);
}

/* In the slot of such a file they say nothing, before and after it is made. */
TEST_F(protected, vm_attributes_mean_nothing)
{
	struct gguest *g = &self->g;
	struct gmodel *m = &g->m;
	unsigned int round, i;

	for (round = 0; round < 2; round++) {
		for (i = 0; i < NR_PAGES; i++)
			guest_writes(_metadata, g, i);
		to_private(_metadata, m, 4, 4);

		vm_attributes(_metadata, g->vm, gpa_of(2), offset_of(4), GMEM_PRIVATE, round);
		expect_guest(_metadata, g);
		vm_attributes(_metadata, g->vm, gpa_of(0), offset_of(NR_PAGES), 0, round);
		expect_guest(_metadata, g);
		vm_attributes(_metadata, g->vm, gpa_of(0), offset_of(NR_PAGES), GMEM_PRIVATE,
			      round);
		expect_guest(_metadata, g);
		to_private(_metadata, m, 0, 2);
		to_shared(_metadata, m, 5, 2);
		expect_guest(_metadata, g);

		/* The slot is made over attributes that are there. */
		ASSERT_WORKS(delete_slot(g, SLOT));
		ASSERT_WORKS(bind_slot(g, SLOT, 0, 0, NR_PAGES));
		for (i = 0; i < NR_PAGES; i++)
			guest_writes(_metadata, g, i);
		expect_guest(_metadata, g);
		to_shared(_metadata, m, 0, NR_PAGES);
		expect_guest(_metadata, g);
		vm_attributes(_metadata, g->vm, gpa_of(0), offset_of(NR_PAGES), 0, round);
	}
}

/* A slot of the old kind next to it: attributes there, states here. */
TEST_F(protected, side_by_side)
{
	struct gguest *g = &self->g;
	const u64 gpa = gpa_of(NR_PAGES);
	struct gmodel *m = &g->m;
	unsigned int round;
	u64 *host;
	int fd;

	if (!has_vm_attributes())
		SKIP(return, "no files of the old scheme: vm_memory_attributes=N");

	fd = vm_create_guest_memfd(g->vm, m->size, 0);
	host = kvm_mmap(m->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ASSERT_WORKS(__vm_set_user_memory_region2(g->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, gpa,
						  m->size, host, fd, 0));

	for (round = 0; round < 2; round++) {
		/* Shared is the host's there, and private the file's. */
		EXPECT_GUEST_WRITES(g->vcpu, gpa, 0x2001 + round);
		guest_writes(_metadata, g, 0);
		EXPECT_EQ(0x2001 + round, *host);

		vm_attributes(_metadata, g->vm, gpa_of(0), 2 * m->size, GMEM_PRIVATE, round);
		EXPECT_GUEST_READS(round ? 0x1000 : 0, g->vcpu, gpa);
		EXPECT_GUEST_WRITES(g->vcpu, gpa, 0x1001 + round);
		EXPECT_EQ(0x2001 + round, *host);
		expect_guest(_metadata, g);

		/* Conversion here leaves that slot alone. */
		to_private(_metadata, m, 0, NR_PAGES);
		EXPECT_GUEST_READS(0x1001 + round, g->vcpu, gpa);
		vm_attributes(_metadata, g->vm, gpa_of(0), 2 * m->size, 0, round);
		EXPECT_GUEST_READS(0x2001 + round, g->vcpu, gpa);
		expect_guest(_metadata, g);
		to_shared(_metadata, m, 0, NR_PAGES);
		EXPECT_GUEST_READS(0x2001 + round, g->vcpu, gpa);
		expect_guest(_metadata, g);

		vm_attributes(_metadata, g->vm, gpa, m->size, GMEM_PRIVATE, round);
		EXPECT_GUEST_WRITES(g->vcpu, gpa, 0x1000);
		vm_attributes(_metadata, g->vm, gpa, m->size, 0, round);
	}
	close(fd);
	kvm_munmap(host, m->size);
}
#endif /* __x86_64__ */

int main(int argc, char **argv)
{
	const unsigned int flags = MAPPABLE | INIT_SHARED;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	TEST_REQUIRE((kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));

	page_size = getpagesize();
	return test_harness_run(argc, argv);
}
