/* SPDX-License-Identifier: GPL-2.0 */
/* I3: conversion of a part of a block, the pages of which change hands together. */
#define PAGES 2
#define CONVERT
#define OWN
#define BLOCKS
#define HOLES
#define HOOKS_FAIL
#define VCPUS 1
#include "gmem.pml"
#include "convert.pml"
#include "host.pml"
#include "guest.pml"
