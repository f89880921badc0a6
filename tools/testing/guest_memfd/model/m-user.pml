/* SPDX-License-Identifier: GPL-2.0 */
/* Steps 3 and 4 against all of the host but GUP-fast, and holes that are punched. */
#define PAGES 1
#define FRAMES 2
#define CONVERT
#define PUNCH
#define HOLES
#define USER_CPU
#define USER_FAULT
#define MUNMAP
#define GUP_SLOW
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
