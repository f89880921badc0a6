/* SPDX-License-Identifier: GPL-2.0 */
/* Two vCPUs make one page the guest's. */
#define PAGES 1
#define CONVERT
#define OWN
#define HOLES
#define VCPUS 2
#define HOOKS_FAIL
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
