/*
 * What a process has only once: its fork handlers and its SIGBUS handler, and so the list of its pagers.
 *
 * fork: a child would find holes where pages are parked, so every relocating pager gives everything back first and ends.
 * The child closes its copies of the descriptors, also of those that no pager has yet: a copy that stays open would keep
 * traps alive after their pager's end.
 *
 * SIGBUS (NT_INLINE): the faulting thread serves itself. The handler reads the list without a lock; a pager that leaves
 * waits until no handler is inside. What is not for a pager is the business of whoever had the signal before. Others
 * may take it over at any time, so each pager that joins looks whether it is ours. Whoever took it over may hand back
 * what it found, as faulthandler does: that has to lead to the action before, and never in a circle. So there are two
 * handlers, installed in turn: the latest passes on to the action it replaced, the other one to the very first.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <ucontext.h>

#include "internal.h"

#define MOST_PAGERS 256

static _Atomic(struct nt_pager *) pagers[MOST_PAGERS];
static _Atomic unsigned handlers_inside, departures;
static pthread_mutex_t joining = PTHREAD_MUTEX_INITIALIZER;
static bool fork_handled;
static int received[MOST_PAGERS]; /* descriptors that no pager has yet */
static size_t received_count;
static struct sigaction first, replaced[2]; /* actions of SIGBUS before ours: the very first, and that of each handler */
static _Atomic unsigned latest = 1; /* the handler installed last, if any was */
static _Thread_local struct toucher self __attribute__((tls_model("initial-exec")));
static _Thread_local unsigned departures_seen __attribute__((tls_model("initial-exec")));

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
	while (received_count)
		close(received[--received_count]);
	atomic_store(&handlers_inside, 0);
	pthread_mutex_unlock(&joining);
}

/* 0 or an errno. */
static int handle_fork(void)
{
	int number = fork_handled ? 0 : pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
	fork_handled = number == 0;
	return number;
}

/* ---- descriptors on their way to a pager ---- */

static int descriptor_in(struct msghdr *message)
{
	int descriptor = -1;
	struct cmsghdr *header = CMSG_FIRSTHDR(message);
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
		memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
	return descriptor;
}

ssize_t nt_receive(int socket, void *data, size_t size, int *descriptor)
{
	union {
		char bytes[CMSG_SPACE(sizeof *descriptor)];
		struct cmsghdr aligned;
	} control;
	struct iovec vector = {data, size};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t got = -1;
	*descriptor = -1;
	pthread_mutex_lock(&joining);
	int number = handle_fork();
	if (!number && received_count == MOST_PAGERS)
		number = EMFILE;
	if (!number && (got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) < 0)
		number = errno;
	if (got >= 0)
		*descriptor = descriptor_in(&message);
	if (*descriptor >= 0)
		received[received_count++] = *descriptor;
	pthread_mutex_unlock(&joining);
	errno = number;
	return got;
}

static void forget(int descriptor)
{
	size_t number = 0;
	while (number < received_count && received[number] != descriptor)
		number++;
	if (number < received_count)
		received[number] = received[--received_count];
}

void nt_forget(int descriptor)
{
	pthread_mutex_lock(&joining);
	forget(descriptor);
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
static bool has_events(const struct nt_pager *pager)
{
	if (atomic_load(&pager->gate_shut)) /* first: behind the gate the descriptor may be closed */
		return true;
	struct pollfd file = {.fd = pager->uffd, .events = POLLIN};
	return poll(&file, 1, 0) > 0;
}

/* Go in, unless the thread is about to change what we would look at: handlers that wait outside do not hold it up. */
static bool enter(struct nt_pager *pager)
{
	if (!atomic_load(&pager->gate_shut)) {
		atomic_fetch_add(&pager->inside, 1);
		if (!has_events(pager))
			return true;
		atomic_fetch_sub(&pager->inside, 1);
	}
	sched_yield();
	return false;
}

/*
 * What comes of the fault at `address`, if it is for `pager` to serve: 0, EEXIST or EAGAIN make the thread redo its access.
 * `strayed`: no pager watches the address, so it is memory that grew or moved and has nothing of ours in it.
 */
static int serve_for(struct nt_pager *pager, uint64_t address, bool strayed)
{
	int number = ENOENT;
	if (!enter(pager))
		return EAGAIN;
	if (watches(pager, address))
		number = serve_self(pager, address);
	else if (strayed)
		number = pager->mechanism->let_go(pager, address & ~(pager->page_size - 1));
	atomic_fetch_sub(&pager->inside, 1);
	return number;
}

/* Whether the fault at `address` was one of the pagers', which makes the thread redo its access. */
static bool serve_inline(uint64_t address)
{
	int number = ENOENT;
	for (int strayed = 0; strayed < 2; strayed++)
		for (size_t slot = 0; slot < MOST_PAGERS && number && number != EEXIST && number != EAGAIN; slot++) {
			struct nt_pager *pager = atomic_load(&pagers[slot]);
			if (pager && pager->options.service == NT_INLINE)
				number = serve_for(pager, address, strayed);
		}
	return number == 0 || number == EEXIST || number == EAGAIN;
}

/*
 * Do what the kernel would have done by `action`. An access is redone when we return, a signal that somebody sent is not
 * sent again.
 */
static void pass_on(const struct sigaction *action, int signal, siginfo_t *information, ucontext_t *context)
{
	struct sigaction fallback = {.sa_handler = SIG_DFL};
	bool function = action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN, sent = information->si_code <= 0;
	if (sent && action->sa_handler == SIG_IGN)
		return;
	if (!function || action->sa_flags & (int)SA_RESETHAND)
		sigaction(SIGBUS, &fallback, NULL);
	if (!function && sent)
		raise(signal); /* once this handler returns */
	if (!function)
		return;
	sigset_t blocked = context->uc_sigmask;
	sigorset(&blocked, &blocked, &action->sa_mask);
	if (!(action->sa_flags & SA_NODEFER))
		sigaddset(&blocked, signal);
	pthread_sigmask(SIG_SETMASK, &blocked, NULL);
	if (action->sa_flags & SA_SIGINFO)
		action->sa_sigaction(signal, information, context);
	else
		action->sa_handler(signal);
}

/* Only an access makes BUS_ADRERR: all else is sent, or a broken frame. */
static void on_sigbus(unsigned handler, int signal, siginfo_t *information, void *context)
{
	int number = errno, cancellable;
	bool access = information->si_code == BUS_ADRERR;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancellable); /* what is called here would be where the thread ends */
	atomic_fetch_add(&handlers_inside, 1);
	bool served = access && serve_inline((uint64_t)(uintptr_t)information->si_addr);
	struct sigaction action = handler == atomic_load(&latest) ? replaced[handler] : first;
	atomic_fetch_sub(&handlers_inside, 1);
	pthread_setcancelstate(cancellable, NULL);
	/* The pager may have left, or let go of what had moved, between the fault and this: redo the access once for each time. */
	unsigned departed = atomic_load(&departures);
	if (!served && !(access && departed != departures_seen))
		pass_on(&action, signal, information, context);
	else
		departures_seen = departed;
	errno = number;
}

static void on_sigbus_0(int signal, siginfo_t *information, void *context)
{
	on_sigbus(0, signal, information, context);
}

static void on_sigbus_1(int signal, siginfo_t *information, void *context)
{
	on_sigbus(1, signal, information, context);
}

static bool is_ours(const struct sigaction *action)
{
	return action->sa_flags & SA_SIGINFO && (action->sa_sigaction == on_sigbus_0 || action->sa_sigaction == on_sigbus_1);
}

/* No other handler may run in ours: with SIGBUS blocked, it could not touch an armed page. */
static int handle_sigbus(struct nt_error *error)
{
	static bool handled;
	struct sigaction now, action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
	unsigned next = 1 - atomic_load(&latest);
	if (sigaction(SIGBUS, NULL, &now) || is_ours(&now))
		return 0;
	while (atomic_load(&handlers_inside)) /* they read what is written here */
		sched_yield();
	replaced[next] = now;
	if (!handled)
		first = now;
	handled = true;
	atomic_store(&latest, next);
	action.sa_sigaction = next ? on_sigbus_1 : on_sigbus_0;
	sigfillset(&action.sa_mask);
	if (sigaction(SIGBUS, &action, NULL)) {
		*error = (struct nt_error){.call = "sigaction", .number = errno};
		return -1;
	}
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

/* Of a pager that is done one may hear before it has left the list. */
static bool somebody_leaves(void)
{
	bool found = false;
	atomic_fetch_add(&handlers_inside, 1); /* none that is in the list goes away meanwhile */
	for (size_t slot = 0; slot < MOST_PAGERS && !found; slot++) {
		struct nt_pager *pager = atomic_load(&pagers[slot]);
		found = !pager || nt_pager_phase(pager) == NT_DONE;
	}
	atomic_fetch_sub(&handlers_inside, 1);
	return found;
}

int process_join(struct nt_pager *pager, struct nt_error *error)
{
	int result = 0;
	pthread_mutex_lock(&joining);
	int number = handle_fork();
	if (number) {
		*error = (struct nt_error){.call = "pthread_atfork", .number = number};
		result = -1;
	}
	if (!result && pager->options.service == NT_INLINE)
		result = handle_sigbus(error);
	while (!result && take_slot(pager)) {
		if (somebody_leaves()) {
			sched_yield();
			continue;
		}
		*error = (struct nt_error){.call = "nexttouch", .number = EMFILE, .detail = "256 migrations are running already"};
		result = -1;
	}
	if (!result)
		forget(pager->uffd); /* from here on the list has it */
	pthread_mutex_unlock(&joining);
	return result;
}

void process_let_go(void)
{
	atomic_fetch_add(&departures, 1);
}

void process_leave(struct nt_pager *pager)
{
	process_let_go(); /* first: who finds the list without us has to see it */
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *expected = pager;
		if (atomic_compare_exchange_strong(&pagers[slot], &expected, NULL))
			break;
	}
	while (atomic_load(&handlers_inside))
		sched_yield();
}
