/*
 * Preloaded: the first UFFDIO_REGISTER of memory to be watched registers nothing, as if its mapping had been made just behind
 * it. (The pager's own thread registers the memory that it parks pages in.)
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
	if (number == UFFDIO_REGISTER && gettid() == getpid() && calls++ % 2 == 0)
		return 0;
	return (int)syscall(SYS_ioctl, file, number, argument);
}
