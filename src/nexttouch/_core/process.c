/*
 * What a process has only once: its fork handlers and its SIGBUS handler, and so the list of its pagers.
 *
 * fork: a child would find holes where pages are parked, so every relocating pager gives everything back first and ends.
 * The child closes its copies of the descriptors: a copy that stays open would keep traps alive after their pager's end.
 *
 * SIGBUS (NT_INLINE): the faulting thread serves itself. The handler reads the list without a lock; a pager that leaves
 * waits until no handler is inside.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "internal.h"

#define MOST_PAGERS 256

static _Atomic(struct nt_pager *) pagers[MOST_PAGERS];
static _Atomic unsigned handlers_inside;
static pthread_mutex_t joining = PTHREAD_MUTEX_INITIALIZER;
static bool fork_handled, sigbus_handled;
static struct sigaction previous;
static _Thread_local struct toucher self __attribute__((tls_model("initial-exec")));

/* ---- fork ---- */

static void before_fork(void)
{
	pthread_mutex_lock(&joining);
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *pager = atomic_load(&pagers[slot]);
		int none = NT_NONE;
		if (!pager || pager->options.mechanism != NT_RELOCATE)
			continue;
		atomic_compare_exchange_strong(&pager->request, &none, NT_FORK);
		wake_thread(pager);
		/* The pager leaves the list when all is given back, before it needs anything of ours. */
		while (atomic_load(&pagers[slot]) == pager)
			sched_yield();
	}
}

static void after_fork_in_parent(void)
{
	pthread_mutex_unlock(&joining);
}

static void after_fork_in_child(void)
{
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *pager = atomic_exchange(&pagers[slot], NULL);
		if (!pager)
			continue;
		close(pager->uffd);
		pager->uffd = -1;
	}
	atomic_store(&handlers_inside, 0);
	pthread_mutex_unlock(&joining);
}

/* ---- SIGBUS ---- */

/* Save the thread's memory policy, serve on its own node, put the policy back. */
static int serve_self(struct nt_pager *pager, uint64_t address)
{
	struct nt_nodemask nodes = {{0}};
	int mode = NT_MPOL_DEFAULT;
	unsigned cpu = 0;
	nt_get_mempolicy(&mode, &nodes);
	getcpu(&cpu, NULL);
	self.node = node_of_cpu(pager, (int)cpu);
	forget_node();
	uint64_t began = now_ns();
	int number = serve(pager, address & ~(pager->page_size - 1), &self);
	record_service(pager, now_ns() - began);
	nt_set_mempolicy(mode, mode == NT_MPOL_DEFAULT ? NULL : &nodes);
	if (atomic_load(&pager->unfinished) == 0)
		wake_thread(pager); /* it may close down */
	return number;
}

static bool watches(const struct nt_pager *pager, uint64_t address)
{
	for (size_t number = 0; number < pager->ranges_count; number++)
		if (address - pager->ranges[number].start < pager->ranges[number].size)
			return true;
	return false;
}

/* Whether events wait to be handled: a mapping may have moved to an address that is not known yet. */
static bool is_changing(struct nt_pager *pager)
{
	struct pollfd file = {.fd = pager->uffd, .events = POLLIN};
	return atomic_load(&pager->gate_shut) || poll(&file, 1, 0) > 0;
}

/* Whether the fault at `address` was one of `pager`'s, which makes the thread redo its access. */
static bool serve_for(struct nt_pager *pager, uint64_t address)
{
	bool served = true;
	atomic_fetch_add(&pager->inside, 1);
	if (is_changing(pager)) {
		sched_yield();
	} else if (watches(pager, address)) {
		int number = serve_self(pager, address);
		served = number == 0 || number == EEXIST || number == EAGAIN;
	} else {
		served = false;
	}
	atomic_fetch_sub(&pager->inside, 1);
	return served;
}

static bool serve_inline(uint64_t address)
{
	bool served = false;
	for (size_t slot = 0; slot < MOST_PAGERS && !served; slot++) {
		struct nt_pager *pager = atomic_load(&pagers[slot]);
		served = pager && pager->options.service == NT_INLINE && serve_for(pager, address);
	}
	return served;
}

static void on_sigbus(int signal, siginfo_t *information, void *context)
{
	int number = errno;
	atomic_fetch_add(&handlers_inside, 1);
	bool served = serve_inline((uint64_t)(uintptr_t)information->si_addr);
	atomic_fetch_sub(&handlers_inside, 1);
	errno = number;
	if (served)
		return;
	if (previous.sa_flags & SA_SIGINFO)
		previous.sa_sigaction(signal, information, context);
	else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN)
		sigaction(SIGBUS, &previous, NULL); /* the access is redone, and this time it is the program's own */
	else
		previous.sa_handler(signal);
}

static int handle_sigbus(struct nt_error *error)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigemptyset(&action.sa_mask);
	if (!sigbus_handled && sigaction(SIGBUS, &action, &previous)) {
		*error = (struct nt_error){.call = "sigaction", .number = errno};
		return -1;
	}
	sigbus_handled = true;
	return 0;
}

/* ---- the list ---- */

static int take_slot(struct nt_pager *pager)
{
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *nobody = NULL;
		if (atomic_compare_exchange_strong(&pagers[slot], &nobody, pager))
			return 0;
	}
	return -1;
}

int process_join(struct nt_pager *pager, struct nt_error *error)
{
	int result = 0;
	pthread_mutex_lock(&joining);
	if (!fork_handled) {
		int number = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
		fork_handled = number == 0;
		if (number) {
			*error = (struct nt_error){.call = "pthread_atfork", .number = number};
			result = -1;
		}
	}
	if (!result && pager->options.service == NT_INLINE)
		result = handle_sigbus(error);
	if (!result && take_slot(pager)) {
		*error = (struct nt_error){.call = "nexttouch", .number = EMFILE, .detail = "256 migrations are running already"};
		result = -1;
	}
	pthread_mutex_unlock(&joining);
	return result;
}

void process_leave(struct nt_pager *pager)
{
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *expected = pager;
		if (atomic_compare_exchange_strong(&pagers[slot], &expected, NULL))
			break;
	}
	while (atomic_load(&handlers_inside))
		sched_yield();
}
