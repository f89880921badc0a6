/* SPDX-License-Identifier: GPL-2.0 */
/* Step 4 against GUP-fast, with its memory ordering; munmap() and slow GUP besides. */
#define PAGES 1
#define CONVERT
#define USER_FAULT
#define MUNMAP
#define GUP_FAST
#define GUP_SLOW
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
