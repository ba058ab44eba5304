/* The calls of the core, counted; one of them fails, or is delayed, others are held. See injection.h. */
#include "inject.h"

#undef ioctl
#undef mmap
#undef munmap
#undef mremap
#undef madvise
#undef mprotect
#undef munlock
#undef read
#undef write
#undef pread
#undef open
#undef poll
#undef ppoll
#undef epoll_create1
#undef epoll_ctl
#undef epoll_wait
#undef eventfd
#undef syscall
#undef pthread_create
#undef pthread_atfork
#undef sigaction

#include <errno.h>
#include <sched.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "../../src/nexttouch/_core/kernel.h"
#include "injection.h"

#define YIELDS 50
#define PAUSE_NS 2000000
#define PAGE 4096
#define UNREADABLE 0x10000ul /* an address at which nothing is mapped */

const struct call_kind call_kinds[CALLS] = {
	[CALL_API] = {"UFFDIO_API", {EINVAL, EPERM}},
	[CALL_REGISTER] = {"UFFDIO_REGISTER", {ENOMEM, EINVAL, EBUSY}},
	[CALL_UNREGISTER] = {"UFFDIO_UNREGISTER", {ENOMEM}},
	[CALL_WAKE] = {"UFFDIO_WAKE", {0}},
	[CALL_COPY] = {"UFFDIO_COPY", {EAGAIN, ENOMEM}}, /* EEXIST it says for certain, or not at all */
	[CALL_ZEROPAGE] = {"UFFDIO_ZEROPAGE", {EAGAIN, EEXIST, ENOMEM}},
	[CALL_MOVE] = {"UFFDIO_MOVE", {EAGAIN, EEXIST, ENOMEM, ENOENT, EBUSY, EINVAL}},
	[CALL_WRITEPROTECT] = {"UFFDIO_WRITEPROTECT", {EAGAIN, ENOMEM}},
	[CALL_RWPROTECT] = {"UFFDIO_RWPROTECT", {EAGAIN, ENOMEM, ENOENT}},
	[CALL_OTHER_IOCTL] = {"ioctl", {ENOMEM}},
	[CALL_MMAP] = {"mmap", {ENOMEM}},
	[CALL_MUNMAP] = {"munmap", {ENOMEM}},
	[CALL_MREMAP] = {"mremap", {ENOMEM}},
	[CALL_MADVISE] = {"madvise", {EAGAIN, ENOMEM}},
	[CALL_MPROTECT] = {"mprotect", {ENOMEM}},
	[CALL_MUNLOCK] = {"munlock", {ENOMEM}},
	[CALL_READ] = {"read", {EAGAIN, ENOMEM}},
	[CALL_WRITE] = {"write", {EINTR}},
	[CALL_PREAD] = {"pread", {EINTR, ENOMEM}},
	[CALL_OPEN] = {"open", {EMFILE, ENOMEM, EACCES}},
	[CALL_POLL] = {"poll", {EINTR, ENOMEM}},
	[CALL_PPOLL] = {"ppoll", {EINTR, ENOMEM}},
	[CALL_EPOLL_CREATE] = {"epoll_create1", {EMFILE, ENOMEM}},
	[CALL_EPOLL_CTL] = {"epoll_ctl", {ENOMEM, ENOSPC}},
	[CALL_EPOLL_WAIT] = {"epoll_wait", {EINTR}},
	[CALL_EVENTFD] = {"eventfd", {EMFILE, ENOMEM}},
	[CALL_USERFAULTFD] = {"userfaultfd", {EPERM, EMFILE, ENOMEM}},
	[CALL_MOVE_PAGES] = {"move_pages", {ENOMEM, NOT_ATTEMPTED}},
	[CALL_SET_MEMPOLICY] = {"set_mempolicy", {ENOMEM}},
	[CALL_GET_MEMPOLICY] = {"get_mempolicy", {0}},
	[CALL_MBIND] = {"mbind", {ENOMEM, EIO}},
	[CALL_FUTEX] = {"futex", {0}},
	[CALL_PTHREAD_CREATE] = {"pthread_create", {EAGAIN}},
	[CALL_PTHREAD_ATFORK] = {"pthread_atfork", {ENOMEM}},
	[CALL_SIGACTION] = {"sigaction", {0}},
};

static struct {
	enum call call;
	uint64_t nth;
	int fault;
	uint64_t start, size;
} injection;
static _Atomic uint64_t calls[CALLS];
static struct {
	_Atomic uint64_t nth;
	sem_t waits, goes_on;
} held[CALLS];

void inject(enum call call, uint64_t nth, int fault)
{
	injection.call = call;
	injection.nth = nth;
	injection.fault = fault;
	for (unsigned number = 0; number < CALLS; number++)
		atomic_store(&calls[number], 0);
}

void inject_memory(uint64_t start, uint64_t size)
{
	injection.start = start;
	injection.size = size;
}

uint64_t injected_calls(enum call call)
{
	return atomic_load(&calls[call]);
}

static void wait_for(sem_t *semaphore)
{
	while (sem_wait(semaphore))
		;
}

void hold(enum call call, uint64_t nth)
{
	sem_init(&held[call].waits, 0, 0);
	sem_init(&held[call].goes_on, 0, 0);
	atomic_store(&held[call].nth, injected_calls(call) + nth);
}

void await_held(enum call call)
{
	wait_for(&held[call].waits);
}

void let_on(enum call call)
{
	sem_post(&held[call].goes_on);
}

/* What happens to this call: 0 is nothing. */
static int fault_of(enum call call)
{
	uint64_t number = atomic_fetch_add(&calls[call], 1) + 1;
	if (number == atomic_load(&held[call].nth)) {
		sem_post(&held[call].waits);
		wait_for(&held[call].goes_on);
	}
	return number == injection.nth && call == injection.call ? injection.fault : 0;
}

static void pause_if(bool condition)
{
	struct timespec pause = {.tv_nsec = PAUSE_NS};
	int number = errno;
	for (unsigned turn = 0; condition && turn < YIELDS; turn++)
		sched_yield();
	if (condition)
		nanosleep(&pause, NULL);
	errno = number;
}

/* The value of a `call` of kind `kind`, or `failed` with errno. */
#define DO(type, kind, call, failed)                                                                                           \
	do {                                                                                                                   \
		int fault = fault_of(kind);                                                                                    \
		if (fault > 0) {                                                                                               \
			errno = fault;                                                                                         \
			return failed;                                                                                         \
		}                                                                                                              \
		pause_if(fault == PAUSE_BEFORE);                                                                               \
		type result = call;                                                                                            \
		pause_if(fault == PAUSE_AFTER);                                                                                \
		return result;                                                                                                 \
	} while (0)

static enum call ioctl_call(unsigned long request)
{
	switch (request) {
	case UFFDIO_API:
		return CALL_API;
	case UFFDIO_REGISTER:
		return CALL_REGISTER;
	case UFFDIO_UNREGISTER:
		return CALL_UNREGISTER;
	case UFFDIO_WAKE:
		return CALL_WAKE;
	case UFFDIO_COPY:
		return CALL_COPY;
	case UFFDIO_ZEROPAGE:
		return CALL_ZEROPAGE;
	case UFFDIO_MOVE:
		return CALL_MOVE;
	case UFFDIO_WRITEPROTECT:
		return CALL_WRITEPROTECT;
	case UFFDIO_RWPROTECT:
		return CALL_RWPROTECT;
	default:
		return CALL_OTHER_IOCTL;
	}
}

/* Whether memory at `address` is watched: then the kernel gets as far as reading what it cannot. */
static bool is_watched(int file, uint64_t address)
{
	struct uffdio_copy unreadable = {.dst = address, .src = UNREADABLE, .len = PAGE, .mode = UFFDIO_COPY_MODE_DONTWAKE};
	return ioctl(file, UFFDIO_COPY, &unreadable) && errno != ENOENT;
}

/* Whether the kernel could answer so, and if it can, what else it says: nothing was done. */
static bool answer(enum call call, int file, void *argument, int fault)
{
	struct uffdio_register *range = argument;
	struct uffdio_copy *copy = argument;
	struct uffdio_zeropage *zero = argument;
	struct uffdio_move *move = argument;
	bool parked, asking;
	switch (call) {
	case CALL_REGISTER: /* what is watched already is refused for want of memory alone */
		return fault == ENOMEM || !is_watched(file, range->range.start);
	case CALL_COPY:
		copy->copy = -fault;
		return true;
	case CALL_ZEROPAGE:
		if (!zero->range.len && fault != EAGAIN)
			return false;
		zero->zeropage = -fault;
		return true;
	case CALL_MOVE: /* the program can have discarded, pinned or locked its page, but none that is parked */
		parked = move->src - injection.start >= injection.size;
		asking = move->mode & UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES; /* what is there, by moving nothing: no page in a hole */
		if ((parked && (fault == ENOENT || fault == EBUSY || fault == EINVAL)) || (asking && fault == EEXIST))
			return false;
		move->move = -fault;
		return true;
	default:
		return true;
	}
}

int inject_ioctl(int file, unsigned long request, void *argument)
{
	enum call call = ioctl_call(request);
	int fault = fault_of(call);
	if (fault > 0 && answer(call, file, argument, fault)) {
		errno = fault;
		return -1;
	}
	pause_if(fault == PAUSE_BEFORE);
	int result = ioctl(file, request, argument);
	pause_if(fault == PAUSE_AFTER);
	return result;
}

void *inject_mmap(void *address, size_t size, int access, int flags, int file, off_t offset)
{
	DO(void *, CALL_MMAP, mmap(address, size, access, flags, file, offset), MAP_FAILED);
}

int inject_munmap(void *address, size_t size)
{
	DO(int, CALL_MUNMAP, munmap(address, size), -1);
}

void *inject_mremap(void *address, size_t size, size_t new_size, int flags, void *to)
{
	DO(void *, CALL_MREMAP, mremap(address, size, new_size, flags, to), MAP_FAILED);
}

int inject_madvise(void *address, size_t size, int advice)
{
	DO(int, CALL_MADVISE, madvise(address, size, advice), -1);
}

int inject_mprotect(void *address, size_t size, int access)
{
	DO(int, CALL_MPROTECT, mprotect(address, size, access), -1);
}

int inject_munlock(const void *address, size_t size)
{
	DO(int, CALL_MUNLOCK, munlock(address, size), -1);
}

ssize_t inject_read(int file, void *data, size_t size)
{
	int fault = fault_of(CALL_READ);
	bool blocks = !(fcntl(file, F_GETFL) & O_NONBLOCK);
	if (fault > 0 && (fault == EAGAIN) != blocks) { /* of what blocks only files in /proc are read */
		errno = fault;
		return -1;
	}
	pause_if(fault == PAUSE_BEFORE);
	ssize_t result = read(file, data, size);
	pause_if(fault == PAUSE_AFTER);
	return result;
}

ssize_t inject_write(int file, const void *data, size_t size)
{
	DO(ssize_t, CALL_WRITE, write(file, data, size), -1);
}

ssize_t inject_pread(int file, void *data, size_t size, off_t offset)
{
	DO(ssize_t, CALL_PREAD, pread(file, data, size, offset), -1);
}

int inject_open(const char *path, int flags)
{
	DO(int, CALL_OPEN, open(path, flags), -1);
}

int inject_poll(struct pollfd *files, nfds_t count, int timeout)
{
	DO(int, CALL_POLL, poll(files, count, timeout), -1);
}

int inject_ppoll(struct pollfd *files, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	DO(int, CALL_PPOLL, ppoll(files, count, timeout, mask), -1);
}

int inject_epoll_create1(int flags)
{
	DO(int, CALL_EPOLL_CREATE, epoll_create1(flags), -1);
}

int inject_epoll_ctl(int epoll, int change, int file, struct epoll_event *event)
{
	DO(int, CALL_EPOLL_CTL, epoll_ctl(epoll, change, file, event), -1);
}

int inject_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
	DO(int, CALL_EPOLL_WAIT, epoll_wait(epoll, events, most, timeout), -1);
}

int inject_eventfd(unsigned value, int flags)
{
	DO(int, CALL_EVENTFD, eventfd(value, flags), -1);
}

static enum call syscall_call(long number)
{
	switch (number) {
	case SYS_userfaultfd:
		return CALL_USERFAULTFD;
	case SYS_move_pages:
		return CALL_MOVE_PAGES;
	case SYS_set_mempolicy:
		return CALL_SET_MEMPOLICY;
	case SYS_get_mempolicy:
		return CALL_GET_MEMPOLICY;
	case SYS_mbind:
		return CALL_MBIND;
	default: /* SYS_futex */
		return CALL_FUTEX;
	}
}

long inject_syscall(long number, ...)
{
	long a[6];
	va_list arguments;
	va_start(arguments, number);
	for (unsigned place = 0; place < 6; place++)
		a[place] = va_arg(arguments, long);
	va_end(arguments);
	enum call call = syscall_call(number);
	int fault = fault_of(call);
	if (fault == NOT_ATTEMPTED && a[3]) /* of a move, not of a question: as many as it did not look at */
		return a[1];
	if (fault > 0) {
		errno = fault;
		return -1;
	}
	pause_if(fault == PAUSE_BEFORE);
	long result = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	pause_if(fault == PAUSE_AFTER);
	return result;
}

int inject_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	DO(int, CALL_PTHREAD_CREATE, pthread_create(thread, attributes, start, argument), errno);
}

int inject_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
	DO(int, CALL_PTHREAD_ATFORK, pthread_atfork(prepare, parent, child), errno);
}

int inject_sigaction(int number, const struct sigaction *action, struct sigaction *before)
{
	DO(int, CALL_SIGACTION, sigaction(number, action, before), -1);
}
