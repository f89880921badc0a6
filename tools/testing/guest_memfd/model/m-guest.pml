/* SPDX-License-Identifier: GPL-2.0 */
/* Steps 2 and 6 against two vCPUs that fault on one page. */
#define PAGES 1
#define FRAMES 2
#define CONVERT
#define PUNCH
#define HOLES
#define VCPUS 2
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
