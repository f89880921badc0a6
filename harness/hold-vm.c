// SPDX-License-Identifier: GPL-2.0-only
/* hold-vm: makes a VM and leaves it behind, in a process that waits for ever. */
#include <err.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/kvm.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR);

	if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0)
		err(1, "/dev/kvm");
	if (daemon(0, 0))
		err(1, "fork");
	for (;;)
		pause();
}
