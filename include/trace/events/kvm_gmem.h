/* SPDX-License-Identifier: GPL-2.0-only */
/* guest_memfd tracepoints, in tracefs as events/kvm_gmem/. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_gmem

#if !defined(_TRACE_KVM_GMEM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_GMEM_H

#include <linux/tracepoint.h>

#include <linux/kvm_types.h>

#ifndef __KVM_GMEM_OWN_OP
#define __KVM_GMEM_OWN_OP
/* The hooks that make pages the guest's, or the host's. */
enum kvm_gmem_own_op {
	KVM_GMEM_MAKE_PRIVATE,
	KVM_GMEM_MAKE_SHARED,
	KVM_GMEM_RECLAIM,
	KVM_GMEM_LEAK,
};
#endif

TRACE_DEFINE_ENUM(KVM_GMEM_MAKE_PRIVATE);
TRACE_DEFINE_ENUM(KVM_GMEM_MAKE_SHARED);
TRACE_DEFINE_ENUM(KVM_GMEM_RECLAIM);
TRACE_DEFINE_ENUM(KVM_GMEM_LEAK);

/* The file by the inode number that /proc/PID/fdinfo has too; [start, end) in pages. */
TRACE_EVENT(kvm_gmem_convert,
	    TP_PROTO(const struct inode *inode, pgoff_t start, pgoff_t end,
		     bool to_private, int ret),
	    TP_ARGS(inode, start, end, to_private, ret),

	    TP_STRUCT__entry(__field(u64, ino)
			     __field(u64, start)
			     __field(u64, end)
			     __field(bool, to_private)
			     __field(int, ret)),

	    TP_fast_assign(__entry->ino = inode->i_ino;
			   __entry->start = start;
			   __entry->end = end;
			   __entry->to_private = to_private;
			   __entry->ret = ret;),

	    TP_printk("ino=%llu start=0x%llx end=0x%llx to=%s ret=%d",
		      __entry->ino, __entry->start, __entry->end,
		      __entry->to_private ? "private" : "shared", __entry->ret)
);

/* The index is in pages; the gfn is ~0 where pages are given up. */
TRACE_EVENT(kvm_gmem_own,
	    TP_PROTO(const struct inode *inode, enum kvm_gmem_own_op op,
		     pgoff_t index, gfn_t gfn, kvm_pfn_t pfn, unsigned int nr, int ret),
	    TP_ARGS(inode, op, index, gfn, pfn, nr, ret),

	    TP_STRUCT__entry(__field(u64, ino)
			     __field(unsigned int, op)
			     __field(u64, index)
			     __field(u64, gfn)
			     __field(u64, pfn)
			     __field(unsigned int, nr)
			     __field(int, ret)),

	    TP_fast_assign(__entry->ino = inode->i_ino;
			   __entry->op = op;
			   __entry->index = index;
			   __entry->gfn = gfn;
			   __entry->pfn = pfn;
			   __entry->nr = nr;
			   __entry->ret = ret;),

	    TP_printk("ino=%llu op=%s index=0x%llx gfn=0x%llx pfn=0x%llx nr=%u ret=%d",
		      __entry->ino, __print_symbolic(__entry->op,
				      { KVM_GMEM_MAKE_PRIVATE, "make_private" },
				      { KVM_GMEM_MAKE_SHARED, "make_shared" },
				      { KVM_GMEM_RECLAIM, "reclaim" },
				      { KVM_GMEM_LEAK, "leak" }),
		      __entry->index, __entry->gfn, __entry->pfn, __entry->nr,
		      __entry->ret)
);

/* What was [start, end) of blocks is not so anymore: punched, or with an error. */
TRACE_EVENT(kvm_gmem_break,
	    TP_PROTO(const struct inode *inode, pgoff_t start, pgoff_t end),
	    TP_ARGS(inode, start, end),

	    TP_STRUCT__entry(__field(u64, ino)
			     __field(u64, start)
			     __field(u64, end)),

	    TP_fast_assign(__entry->ino = inode->i_ino;
			   __entry->start = start;
			   __entry->end = end;),

	    TP_printk("ino=%llu start=0x%llx end=0x%llx", __entry->ino, __entry->start,
		      __entry->end)
);

/* To fill an aligned place for 2^order pages: with a block, or -ENOMEM, -EINTR. */
TRACE_EVENT(kvm_gmem_block,
	    TP_PROTO(const struct inode *inode, pgoff_t index, unsigned int order,
		     int ret),
	    TP_ARGS(inode, index, order, ret),

	    TP_STRUCT__entry(__field(u64, ino)
			     __field(u64, index)
			     __field(unsigned int, order)
			     __field(int, ret)),

	    TP_fast_assign(__entry->ino = inode->i_ino;
			   __entry->index = index;
			   __entry->order = order;
			   __entry->ret = ret;),

	    TP_printk("ino=%llu index=0x%llx order=%u ret=%d", __entry->ino,
		      __entry->index, __entry->order, __entry->ret)
);

#endif /* _TRACE_KVM_GMEM_H */

/* This part must be outside protection. */
#include <trace/define_trace.h>
