/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All at once, which is more than fits: see "make full".  One page is less than two, and
 * one vCPU less than two.
 */
#ifndef PAGES
#define PAGES 2
#endif
#define FRAMES (PAGES + 1)
#define CONVERT
#define PUNCH
#define HOLES
#define OWN
#define HOOKS_FAIL
#define USER_FAULT
#define USER_CPU
#define MUNMAP
#define GUP_FAST
#define GUP_SLOW
#if PAGES == 2
#define BLOCKS
#define RECOVER
#endif
#ifndef VCPUS
#define VCPUS 1
#endif
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
