/*
 * Preloaded: the first UFFDIO_REGISTER of memory to be watched registers nothing, as if its mapping had been made just behind
 * it. Each migration of one mapping makes three in the thread that begins it: for the place where pages are parked, and two
 * for the mapping.
 */
#define _GNU_SOURCE
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

int ioctl(int file, unsigned long number, ...)
{
	static unsigned calls;
	va_list arguments;
	va_start(arguments, number);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if (number == UFFDIO_REGISTER && gettid() == getpid() && calls++ % 3 == 1)
		return 0;
	return (int)syscall(SYS_ioctl, file, number, argument);
}
