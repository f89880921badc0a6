/* SPDX-License-Identifier: GPL-2.0 */
/* I4: dirty logging splits the mapping of a block, and recovers it. */
#define PAGES 2
#define CONVERT
#define BLOCKS
#define VCPUS 1
#define RECOVER
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
