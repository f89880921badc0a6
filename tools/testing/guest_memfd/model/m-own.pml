/* SPDX-License-Identifier: GPL-2.0 */
/* Step 5 and the way back, with the host and the guest after one page. */
#define PAGES 1
#define FRAMES 2
#define CONVERT
#define PUNCH
#define HOLES
#define OWN
#define HOOKS_FAIL
#define USER_CPU
#define USER_FAULT
#define VCPUS 1
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
