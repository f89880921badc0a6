/* SPDX-License-Identifier: GPL-2.0 */
/* User faults find a page that is taken back, and used elsewhere; and holes are punched. */
#define PAGES 1
#define FRAMES 2
#define PUNCH
#define HOLES
#define TAKE_BACK
#define USER_CPU
#define USER_FAULT
#define MUNMAP
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
