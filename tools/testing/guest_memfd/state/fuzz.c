// SPDX-License-Identifier: GPL-2.0
/*
 * fuzz: state.c against the model, with operations that libFuzzer chooses.
 */
#include "shim.h"
#include "../../../../virt/kvm/guest_memfd/tests/state_model.h"

/* The name that libFuzzer calls. */
int fuzz(const u8 *data, size_t size) __asm__("LLVMFuzzerTestOneInput");

int fuzz(const u8 *data, size_t size)
{
	static struct gmem_model m;
	bool good = true;

	m = (struct gmem_model) {
		.data		= data,
		.data_end	= data + size,
		.fail_nth	= shim_fail_nth,
		.nr_objects	= shim_nr_objects,
	};

	if (!size)
		return 0;

	model_init(&m);
	while (good && m.data < m.data_end)
		good = model_step(&m);
	good &= model_destroy(&m);
	shim_rcu_barrier();

	if (!good) {
		fprintf(stderr, "%s\n", m.error);
		abort();
	}

	return 0;
}
