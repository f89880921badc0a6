/* SPDX-License-Identifier: GPL-2.0 */
/* A user fault brings a block for both, the guest owns its part of it. */
#define PAGES 2
#define CONVERT
#define OWN
#define BLOCKS
#define HOLES
#define VCPUS 1
#define USER_FAULT
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
