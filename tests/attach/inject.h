/*
 * Included before injection.c, by an option of the compiler, where what it does is to fail or to be late: see inject.c.
 *
 * The headers that declare what it uses come first, so that only the uses are renamed.
 */
#ifndef NT_INJECT_H
#define NT_INJECT_H

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../src/nexttouch/_attach/message.h"
#include "../../src/nexttouch/_attach/thread.h"

int inject_open(const char *path, int flags);
long inject_syscall(long number, ...);
struct failure inject_message_send(int socket, const char *text, int descriptor);
struct failure inject_thread_call(struct thread *thread, struct call call, long *result);
struct failure inject_thread_clone(struct thread *thread, uint64_t flags, struct thread *clone, long *number);
struct failure inject_thread_poke(struct thread *thread, uint64_t address, const uint64_t *words, size_t count);
void inject_thread_kill(struct thread *thread);

#define open(...) inject_open(__VA_ARGS__)
#define syscall(...) inject_syscall(__VA_ARGS__, 0l, 0l, 0l)
#define message_send inject_message_send
#define thread_call inject_thread_call
#define thread_clone inject_thread_clone
#define thread_poke inject_thread_poke
#define thread_kill inject_thread_kill

#endif
