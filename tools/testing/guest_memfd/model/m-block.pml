/* SPDX-License-Identifier: GPL-2.0 */
/* I4: a vCPU maps a block, which is converted or punched in part. */
#define PAGES 2
#define FRAMES 3
#define CONVERT
#define PUNCH
#define HOLES
#define BLOCKS
#define VCPUS 1
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
