/* NT_WRITE_PROTECT: pages stay where they are, write-protected; a store is the signal to move them (5.7; all memory 5.19). */
#include "internal.h"

static int protect(int uffd, uint64_t address, uint64_t size, bool on)
{
	struct uffdio_writeprotect request = {.range = {.start = address, .len = size},
					      .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &request) ? errno : 0;
}

const struct mechanism write_protect = {
	.name = "write_protect",
	.features = UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	.more_features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM, /* before 5.19 only anonymous memory can be protected */
	.register_mode = UFFDIO_REGISTER_MODE_WP,
	.arm = arm_in_place,
	.give_back = give_back_in_place,
	.resolve_stray = resolve_stray_in_place,
	.protect = protect,
};
