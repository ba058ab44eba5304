/*
 * Preloaded: every other UFFDIO_MOVE and UFFDIO_COPY fails as if the mapping were gone, while an unmapping waits for its event
 * to be read: which one learns by asking for something that cannot be done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel.h"

int ioctl(int file, unsigned long number, ...)
{
	static _Atomic unsigned calls, changing;
	va_list arguments;
	va_start(arguments, number);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if ((number == UFFDIO_MOVE || number == UFFDIO_COPY) && calls++ % 2 == 0) {
		changing = 1;
		errno = ENOENT;
		return -1;
	}
	if (number == UFFDIO_ZEROPAGE && !((struct uffdio_zeropage *)argument)->range.len && changing) {
		changing = 0;
		errno = EAGAIN;
		return -1;
	}
	return (int)syscall(SYS_ioctl, file, number, argument);
}
