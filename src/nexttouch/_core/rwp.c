/*
 * NT_RWP: pages stay where they are, without permission for any access (PROT_NONE entries that carry the userfaultfd bit);
 * any touch is the signal to move them (7.3). The frame, its mapcount and its dirty bit stay; the kernel's own migration
 * takes the mark along, swapping too.
 */
#include "internal.h"

static int protect(int uffd, uint64_t address, uint64_t size, bool on)
{
	struct uffdio_rwprotect request = {.range = {.start = address, .len = size},
					   .mode = on ? UFFDIO_RWPROTECT_MODE_RWP : 0};
	return ioctl(uffd, UFFDIO_RWPROTECT, &request) ? errno : 0;
}

const struct mechanism rwp = {
	.name = "rwp",
	.features = UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_RWP,
	.register_mode = UFFDIO_REGISTER_MODE_RWP,
	.arm = arm_in_place,
	.give_back = give_back_in_place,
	.resolve_stray = resolve_stray_in_place,
	.protect = protect,
};
