/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the guest_memfd tests share: checking errors, catching SIGBUS, asking
 * which pages of a file are present and which are private, conversion, memory
 * errors, and a guest that reads and writes what the host tells it to.
 *
 * For use in kselftest_harness tests only.  TEST_ASSERT() is for the setup:
 * it turns a failure with errno == EACCES into a skip.  What a test is about
 * goes through EXPECT_*() and ASSERT_*().
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_UTIL_H
#define SELFTEST_KVM_GUEST_MEMFD_UTIL_H

#include <ctype.h>
#include <dirent.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/falloc.h>

#include "cgroup_util.h"
#include "kvm_util.h"
#include "kselftest_harness.h"
#include "ucall_common.h"

#define GMEM_ALLOC	FALLOC_FL_KEEP_SIZE
#define GMEM_PUNCH	(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

/* @call fails with @err: returns -1 and sets errno. */
#define __EXPECT_FAILS(err, call, fmt, ...)				\
do {									\
	int __want = (err), __got;					\
	long __ret;							\
									\
	errno = 0;							\
	__ret = (long)(call);						\
	__got = errno;							\
	EXPECT_TRUE(__ret == -1 && __got == __want)			\
		TH_LOG("want -1 (%s), got %ld (%s): " fmt,		\
		       strerror(__want), __ret, strerror(__got),	\
		       ##__VA_ARGS__);					\
} while (0)

#define EXPECT_FAILS(err, call)		__EXPECT_FAILS(err, call, "%s", #call)

/* @call returns 0. */
#define EXPECT_WORKS(call)						\
do {									\
	int __ret = (call), __err = errno;				\
									\
	EXPECT_EQ(0, __ret)						\
		TH_LOG("%s: %s", #call, strerror(__err));		\
} while (0)

#define ASSERT_WORKS(call)						\
do {									\
	int __ret = (call), __err = errno;				\
									\
	ASSERT_EQ(0, __ret)						\
		TH_LOG("%s: %s", #call, strerror(__err));		\
} while (0)

/*
 * Touching memory that may answer with SIGBUS.  Per thread, as memory errors
 * are sent to the thread that ran into them.
 */
static __thread sigjmp_buf gmem_sigbus_jmp;
static __thread int gmem_sigbus_armed;
static __thread siginfo_t gmem_sigbus_info;

static inline void gmem_sigbus_handler(int sig, siginfo_t *info, void *ctx)
{
	if (!READ_ONCE(gmem_sigbus_armed)) {
		signal(SIGBUS, SIG_DFL);
		return;
	}

	gmem_sigbus_info = *info;
	siglongjmp(gmem_sigbus_jmp, 1);
}

static inline void gmem_catch_sigbus(void)
{
	struct sigaction sa = {
		.sa_sigaction = gmem_sigbus_handler,
		.sa_flags = SA_SIGINFO,
	};

	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction() failed");
}

/*
 * Run @action.  The value is 0, or the si_code of the SIGBUS that it got; the
 * rest of the signal is in gmem_sigbus_info.
 */
#define gmem_sigbus(action)						\
({									\
	int __code;							\
									\
	WRITE_ONCE(gmem_sigbus_armed, 1);				\
	if (!sigsetjmp(gmem_sigbus_jmp, 1)) {				\
		action;							\
		__code = 0;						\
	} else {							\
		__code = gmem_sigbus_info.si_code;			\
	}								\
	WRITE_ONCE(gmem_sigbus_armed, 0);				\
	__code;								\
})

static inline int gmem_touch_read(const void *addr)
{
	return gmem_sigbus((void)READ_ONCE(*(const u8 *)addr));
}

static inline int gmem_touch_write(void *addr, u8 val)
{
	return gmem_sigbus(WRITE_ONCE(*(u8 *)addr, val));
}

/* Whether all of [addr, addr + size) is @val. */
static inline bool gmem_is_filled(const void *addr, u8 val, size_t size)
{
	const u8 *p = addr;
	size_t i;

	for (i = 0; i < size; i++)
		if (READ_ONCE(p[i]) != val)
			return false;
	return true;
}

/*
 * Which of the first @nr pages of a file have memory, as a bitmap.  False if
 * the kernel has no cachestat(); mincore() will not do, it tells which pages
 * have been seen by somebody (and then are zeroed), not which are allocated.
 */
static inline bool gmem_present(int fd, int nr, u64 *present)
{
	*present = 0;
#ifdef __NR_cachestat
	for (int i = 0; i < nr; i++) {
		u64 range[2] = { i * getpagesize(), getpagesize() };
		u64 stat[5];

		if (syscall(__NR_cachestat, fd, range, stat, 0))
			return false;
		*present |= (u64)!!stat[0] << i;
	}
	return true;
#else
	return false;
#endif
}

#define GMEM_SHARED	0ull
#define GMEM_PRIVATE	KVM_MEMORY_ATTRIBUTE_PRIVATE

/* What gmem_convert() gives for an offset that the kernel did not write. */
#define GMEM_NO_OFFSET	0x5a5a5a5a5a5a5a5aull

/*
 * Make [@offset, @offset + @size) of a file private or shared.  @error_offset
 * may be NULL.
 */
static inline int gmem_convert(int fd, u64 offset, u64 size, u64 attributes,
			       u64 *error_offset)
{
	struct kvm_memory_attributes2 arg = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
		.error_offset = GMEM_NO_OFFSET,
	};
	int ret = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &arg);

	if (error_offset)
		*error_offset = arg.error_offset;
	return ret;
}

/*
 * The attributes at @offset, and how far they reach: *@size is the limit on the
 * way in.  Both are left alone by a failure.
 */
static inline int gmem_attributes(int fd, u64 offset, u64 *size, u64 *attributes)
{
	struct kvm_memory_attributes2 arg = {
		.offset = offset,
		.size = *size,
	};
	int ret = ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &arg);

	if (!ret) {
		*size = arg.size;
		*attributes = arg.attributes;
	}
	return ret;
}

/* What /proc tells about a file, all of it at one moment. */
struct gmem_fdinfo {
	char text[1024];
};

static inline void gmem_fdinfo_read(int fd, struct gmem_fdinfo *info)
{
	ssize_t len, size = 0;
	char path[40];
	int proc;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	proc = open(path, O_RDONLY);
	TEST_ASSERT(proc >= 0, "%s: errno %d", path, errno);
	do {
		len = read(proc, info->text + size, sizeof(info->text) - 1 - size);
		TEST_ASSERT(len >= 0, "%s: errno %d", path, errno);
		size += len;
	} while (len);
	close(proc);
	TEST_ASSERT(size < (ssize_t)sizeof(info->text) - 1, "%s is long", path);
	info->text[size] = 0;
}

/*
 * The number in line @key.  False if there is no such line, more than one, or
 * something else in it than a number.
 */
static inline bool gmem_fdinfo(const struct gmem_fdinfo *info, const char *key, u64 *val)
{
	const size_t len = strlen(key);
	const char *line = info->text;
	int lines = 0, good = 0;
	char *end;

	for (; *line; line = strchrnul(line, '\n'), line += !!*line) {
		if (strncmp(line, key, len) || strncmp(line + len, ":\t", 2))
			continue;
		lines++;
		if (!isxdigit(line[len + 2]))
			continue;
		*val = strtoull(line + len + 2, &end, 0);
		good += *end == '\n';
	}
	return lines == 1 && good == 1;
}

/* The number in line @key of what /proc tells now, -1 if there is none. */
static inline u64 gmem_fdinfo_val(int fd, const char *key)
{
	struct gmem_fdinfo info;
	u64 val = 0;

	gmem_fdinfo_read(fd, &info);
	return gmem_fdinfo(&info, key, &val) ? val : -1ull;
}

static inline int gmem_count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int nr = 0;

	TEST_ASSERT(dir, "/proc/self/fd: errno %d", errno);
	while (readdir(dir))
		nr++;
	closedir(dir);
	return nr;
}

/* Two CPUs, and not just any: the test may have been given some. */
static inline bool gmem_two_cpus(int cpus[2])
{
	cpu_set_t allowed;
	int i, nr = 0;

	kvm_sched_getaffinity(0, sizeof(allowed), &allowed);
	for (i = 0; i < CPU_SETSIZE && nr < 2; i++)
		if (CPU_ISSET(i, &allowed))
			cpus[nr++] = i;
	return nr == 2;
}

/* The path of a new memory cgroup, with the test in it, or NULL; @root is where to go back to. */
static inline char *gmem_enter_cgroup(const char *name, char *root, size_t size)
{
	char *group;

	if (cg_find_unified_root(root, size, NULL) ||
	    cg_read_strstr(root, "cgroup.controllers", "memory") ||
	    (cg_read_strstr(root, "cgroup.subtree_control", "memory") &&
	     cg_write(root, "cgroup.subtree_control", "+memory")))
		return NULL;

	group = cg_name(root, name);
	if (cg_create(group) || cg_enter_current(group)) {
		free(group);
		return NULL;
	}
	return group;
}

static inline int gmem_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* Whether files that have no flags are of the old scheme. */
static inline bool gmem_old_scheme(void)
{
#ifdef __x86_64__
	int fd = open("/sys/module/kvm/parameters/vm_memory_attributes", O_RDONLY);
	char val = 'Y';

	if (fd >= 0) {
		TEST_ASSERT(read(fd, &val, 1) == 1, "read() failed");
		close(fd);
	}
	return val == 'Y';
#else
	return true;
#endif
}

/* The page frames behind @nr pages of memory, 0 where nothing is mapped.  For root. */
static inline void gmem_pfns(const void *addr, size_t nr, u64 *pfns)
{
	const u64 first = (u64)addr / getpagesize();
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t done = 0;
	ssize_t len;

	TEST_ASSERT(fd >= 0, "pagemap: errno %d", errno);
	while (done < nr) {
		len = pread(fd, pfns + done, (nr - done) * sizeof(*pfns),
			    (first + done) * sizeof(*pfns));
		TEST_ASSERT(len > 0 && len % sizeof(*pfns) == 0, "pagemap: errno %d", errno);
		for (len /= sizeof(*pfns); len; len--, done++)
			pfns[done] &= pfns[done] & BIT_ULL(63) ? GENMASK_ULL(54, 0) : 0;
	}
	close(fd);
}

static inline u64 gmem_pfn(const void *addr)
{
	u64 pfn;

	gmem_pfns(addr, 1, &pfn);
	return pfn;
}

/* Memory errors, on demand. */
#define GMEM_CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"
#define GMEM_UNPOISON_PFN	"/sys/kernel/debug/hwpoison/unpoison-pfn"

static inline int gmem_write_number(const char *path, u64 number)
{
	char text[32];

	snprintf(text, sizeof(text), "%#lx", (unsigned long)number);
	return gmem_write_file(path, text);
}

/* What the kernel makes of an error in that page, 0 or -errno. */
static inline int gmem_break_pfn(u64 pfn)
{
	return gmem_write_number(GMEM_CORRUPT_PFN, pfn);
}

/* The last reference may take a moment to go. */
static inline int gmem_unpoison(u64 pfn)
{
	int i, ret;

	for (i = 0; i < 100; i++) {
		ret = gmem_write_number(GMEM_UNPOISON_PFN, pfn);
		if (ret != -EBUSY)
			break;
		usleep(10000);
	}
	return ret;
}

/* What the kernel counts as lost, in KiB. */
static inline long gmem_hardware_corrupted(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long size = -1;

	TEST_ASSERT(f, "/proc/meminfo: errno %d", errno);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "HardwareCorrupted: %ld kB", &size) == 1)
			break;
	fclose(f);
	return size;
}

/* Do software-protected VMs have an emulated RMP, and can this see it? */
static inline bool gmem_has_rmp(void)
{
	FILE *f = fopen("/sys/module/kvm/parameters/emulated_rmp", "r");
	int on = f ? fgetc(f) : 'N';

	if (f)
		fclose(f);
	return on == 'Y' && !access("/sys/kernel/debug/kvm/emulated-rmp/stats", R_OK);
}

/* A counter of the emulated RMP, or 0 where there is none. */
static inline u64 gmem_rmp_counter(const char *name)
{
	FILE *f = fopen("/sys/kernel/debug/kvm/emulated-rmp/stats", "r");
	const size_t len = strlen(name);
	char line[80];
	u64 val = 0;

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			val = strtoull(line + len + 1, NULL, 0);
	if (f)
		fclose(f);
	return val;
}

/* Violations that the emulated RMP finds now, when nothing is going on. */
static inline u64 gmem_rmp_verify(void)
{
	FILE *f = fopen("/sys/kernel/debug/kvm/emulated-rmp/verify", "r");
	unsigned long entries, mappings, violations = 0;

	if (f) {
		TEST_ASSERT(fscanf(f, "entries %lu mappings %lu violations %lu", &entries,
				   &mappings, &violations) == 3, "emulated-rmp/verify");
		fclose(f);
	}
	return violations;
}

/*
 * The guest: runs one command per KVM_RUN and reports with an empty ucall.  A
 * command that did not get through (KVM_RUN failed or exited for something
 * else) is tried again by the next KVM_RUN.
 */
enum gmem_guest_op {
	GMEM_GUEST_READ,
	GMEM_GUEST_WRITE,
	GMEM_GUEST_FILL,	/* words, @step bytes apart: @val, @val + @inc... */
	GMEM_GUEST_CHECK,	/* the same; @val is how many are something else */
};

static struct gmem_guest_cmd {
	u64 op;
	u64 gva;
	u64 val;
	u64 nr, step, inc;
} gmem_guest_cmd;

static inline void gmem_guest_code(void)
{
	struct gmem_guest_cmd *cmd = &gmem_guest_cmd;

	for (;;) {
		u64 *p = (u64 *)READ_ONCE(cmd->gva);
		u64 val = READ_ONCE(cmd->val), bad = 0, i;

		switch (READ_ONCE(cmd->op)) {
		case GMEM_GUEST_READ:
			WRITE_ONCE(cmd->val, READ_ONCE(*p));
			break;
		case GMEM_GUEST_WRITE:
			WRITE_ONCE(*p, val);
			break;
		case GMEM_GUEST_FILL:
			for (i = 0; i < READ_ONCE(cmd->nr); i++) {
				WRITE_ONCE(*p, val);
				p = (void *)p + READ_ONCE(cmd->step);
				val += READ_ONCE(cmd->inc);
			}
			break;
		case GMEM_GUEST_CHECK:
			for (i = 0; i < READ_ONCE(cmd->nr); i++) {
				bad += READ_ONCE(*p) != val;
				p = (void *)p + READ_ONCE(cmd->step);
				val += READ_ONCE(cmd->inc);
			}
			WRITE_ONCE(cmd->val, bad);
			break;
		}
		GUEST_SYNC(0);
	}
}

/* 0: done.  < 0: KVM_RUN failed, -errno.  > 0: an exit, KVM_EXIT_*. */
static inline int gmem_guest_run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	if (_vcpu_run(vcpu))
		return -errno;
	if (get_ucall(vcpu, &uc) != UCALL_SYNC)
		return vcpu->run->exit_reason;
	sync_global_from_guest(vcpu->vm, gmem_guest_cmd);
	return 0;
}

static inline int gmem_guest_write(struct kvm_vcpu *vcpu, u64 gva, u64 val)
{
	gmem_guest_cmd = (struct gmem_guest_cmd) { GMEM_GUEST_WRITE, gva, val };
	sync_global_to_guest(vcpu->vm, gmem_guest_cmd);
	return gmem_guest_run(vcpu);
}

static inline int gmem_guest_read(struct kvm_vcpu *vcpu, u64 gva, u64 *val)
{
	int ret;

	gmem_guest_cmd = (struct gmem_guest_cmd) { GMEM_GUEST_READ, gva, 0 };
	sync_global_to_guest(vcpu->vm, gmem_guest_cmd);
	ret = gmem_guest_run(vcpu);
	*val = gmem_guest_cmd.val;
	return ret;
}

/* The guest writes @val, @val + 1 and so on to @nr words that are @step bytes apart. */
static inline int gmem_guest_fill(struct kvm_vcpu *vcpu, u64 gva, u64 nr, u64 step, u64 val)
{
	gmem_guest_cmd = (struct gmem_guest_cmd) { GMEM_GUEST_FILL, gva, val, nr, step, 1 };
	sync_global_to_guest(vcpu->vm, gmem_guest_cmd);
	return gmem_guest_run(vcpu);
}

/* The guest counts in @bad how many of them are not @val, @val + @inc and so on. */
static inline int gmem_guest_check(struct kvm_vcpu *vcpu, u64 gva, u64 nr, u64 step, u64 val,
				   u64 inc, u64 *bad)
{
	int ret;

	gmem_guest_cmd = (struct gmem_guest_cmd) { GMEM_GUEST_CHECK, gva, val, nr, step, inc };
	sync_global_to_guest(vcpu->vm, gmem_guest_cmd);
	ret = gmem_guest_run(vcpu);
	*bad = ret ? nr : gmem_guest_cmd.val;
	return ret;
}

/* In a test: the guest reads @want at @gva, or writes @val there. */
#define EXPECT_GUEST_READS(want, vcpu, gva)				\
do {									\
	u64 __val = 0;							\
									\
	EXPECT_EQ(0, gmem_guest_read(vcpu, gva, &__val));		\
	EXPECT_EQ((u64)(want), __val);					\
} while (0)

#define EXPECT_GUEST_WRITES(vcpu, gva, val)				\
	EXPECT_EQ(0, gmem_guest_write(vcpu, gva, val))

/* In a test: KVM_RUN, which gave @_ret, exited for an access to the page at @_gpa. */
#define EXPECT_MEMORY_FAULT(_ret, _vcpu, _gpa, _flags)			\
do {									\
	struct kvm_run *__run = (_vcpu)->run;				\
									\
	EXPECT_EQ(-EFAULT, _ret);					\
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, __run->exit_reason);		\
	EXPECT_EQ((u64)(_gpa), __run->memory_fault.gpa);		\
	EXPECT_EQ((u64)getpagesize(), __run->memory_fault.size);	\
	EXPECT_EQ((u64)(_flags), __run->memory_fault.flags);		\
} while (0)

#endif /* SELFTEST_KVM_GUEST_MEMFD_UTIL_H */
