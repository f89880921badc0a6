/* SPDX-License-Identifier: GPL-2.0 */
/* The file is closed: guest faults, dirty logging and a pinned page remain. */
#define PAGES 2
#define RELEASE
#define HOLES
#define BLOCKS
#define OWN
#define PINNED
#define VCPUS 2
#define RECOVER
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
