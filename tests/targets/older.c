/* Preloaded: userfaultfd(2) as it was before Linux 5.19, which protects anonymous memory only. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROTECTS_SHARED (1u << 12) /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM */

int ioctl(int file, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	struct uffdio_api *api = argument;
	if (request == UFFDIO_API && api->features & PROTECTS_SHARED) {
		errno = EINVAL;
		return -1;
	}
	int result = (int)syscall(SYS_ioctl, file, request, argument);
	if (request == UFFDIO_API && !result)
		api->features &= ~(__u64)PROTECTS_SHARED;
	return result;
}
