/*
 * Preloaded: move_pages(2) that fails in its first page as often as BUSY (in the environment) says, and then is done: as if
 * somebody had held a reference to the page meanwhile. The kernel leaves the status of the pages that it has not come to.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

long syscall(long number, ...)
{
	static long (*next)(long, ...);
	static long failures = -1;
	long words[6];
	va_list arguments;
	va_start(arguments, number);
	for (int word = 0; word < 6; word++)
		words[word] = va_arg(arguments, long);
	va_end(arguments);
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "syscall");
	if (number == SYS_move_pages && words[3]) {
		if (failures < 0)
			failures = atol(getenv("BUSY"));
		if (failures-- > 0) {
			*(int *)words[4] = -EBUSY;
			return words[1];
		}
	}
	return next(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
