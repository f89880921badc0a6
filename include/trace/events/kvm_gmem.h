/* SPDX-License-Identifier: GPL-2.0-only */
/* guest_memfd tracepoints, in tracefs as events/kvm_gmem/. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm_gmem

#if !defined(_TRACE_KVM_GMEM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_GMEM_H

#include <linux/tracepoint.h>

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

#endif /* _TRACE_KVM_GMEM_H */

/* This part must be outside protection. */
#include <trace/define_trace.h>
