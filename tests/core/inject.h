/*
 * Included before each file of the core, by an option of the compiler, where calls are to fail: they go through inject.c.
 *
 * The headers that declare them come first, so that only their uses are renamed.
 */
#ifndef NT_INJECT_H
#define NT_INJECT_H

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

int inject_ioctl(int file, unsigned long request, void *argument);
void *inject_mmap(void *address, size_t size, int access, int flags, int file, off_t offset);
int inject_munmap(void *address, size_t size);
void *inject_mremap(void *address, size_t size, size_t new_size, int flags, void *to);
int inject_madvise(void *address, size_t size, int advice);
int inject_mprotect(void *address, size_t size, int access);
int inject_munlock(const void *address, size_t size);
ssize_t inject_read(int file, void *data, size_t size);
ssize_t inject_write(int file, const void *data, size_t size);
ssize_t inject_pread(int file, void *data, size_t size, off_t offset);
int inject_open(const char *path, int flags);
int inject_poll(struct pollfd *files, nfds_t count, int timeout);
int inject_ppoll(struct pollfd *files, nfds_t count, const struct timespec *timeout, const sigset_t *mask);
int inject_epoll_create1(int flags);
int inject_epoll_ctl(int epoll, int change, int file, struct epoll_event *event);
int inject_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout);
int inject_eventfd(unsigned value, int flags);
long inject_syscall(long number, ...);
int inject_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int inject_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int inject_sigaction(int number, const struct sigaction *action, struct sigaction *before);

#define ioctl(file, request, argument) inject_ioctl(file, request, (void *)(uintptr_t)(argument))
#define mmap(...) inject_mmap(__VA_ARGS__)
#define munmap(...) inject_munmap(__VA_ARGS__)
#define mremap(address, size, new_size, flags, to) inject_mremap(address, size, new_size, flags, to)
#define madvise(...) inject_madvise(__VA_ARGS__)
#define mprotect(...) inject_mprotect(__VA_ARGS__)
#define munlock(...) inject_munlock(__VA_ARGS__)
#define read(...) inject_read(__VA_ARGS__)
#define write(...) inject_write(__VA_ARGS__)
#define pread(...) inject_pread(__VA_ARGS__)
#define open(...) inject_open(__VA_ARGS__)
#define poll(...) inject_poll(__VA_ARGS__)
#define ppoll(...) inject_ppoll(__VA_ARGS__)
#define epoll_create1(...) inject_epoll_create1(__VA_ARGS__)
#define epoll_ctl(...) inject_epoll_ctl(__VA_ARGS__)
#define epoll_wait(...) inject_epoll_wait(__VA_ARGS__)
#define eventfd(...) inject_eventfd(__VA_ARGS__)
#define syscall(...) inject_syscall(__VA_ARGS__, 0L, 0L, 0L, 0L, 0L, 0L)
#define pthread_create(...) inject_pthread_create(__VA_ARGS__)
#define pthread_atfork(...) inject_pthread_atfork(__VA_ARGS__)
#define sigaction(...) inject_sigaction(__VA_ARGS__)

#endif
