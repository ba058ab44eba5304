/*
 * Preloaded: UFFDIO_MOVE as Linux 6.18 does it where entries change under it, at every call. A request of several pages stops
 * at half, and the last page that was moved is not counted; a request of one page, every other time, is done and refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel.h"

static int request(int file, unsigned long number, void *argument)
{
	return (int)syscall(SYS_ioctl, file, number, argument);
}

static int move(int file, struct uffdio_move *asked)
{
	static _Atomic unsigned calls;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = asked->len / page, done = (pages + 1) / 2;
	struct uffdio_move part = {.dst = asked->dst, .src = asked->src, .len = done * page, .mode = asked->mode};
	if (pages == 1 && calls++ % 2)
		return request(file, UFFDIO_MOVE, asked);
	if (request(file, UFFDIO_MOVE, &part)) {
		asked->move = part.move;
		return -1;
	}
	asked->move = done > 1 ? (int64_t)((done - 1) * page) : -EEXIST;
	errno = done > 1 ? EAGAIN : EEXIST;
	return -1;
}

int ioctl(int file, unsigned long number, ...)
{
	va_list arguments;
	va_start(arguments, number);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	return number == UFFDIO_MOVE ? move(file, argument) : request(file, number, argument);
}
