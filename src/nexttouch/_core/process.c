/*
 * What a process has only once: its fork handlers and its SIGBUS handler, and so the list of its pagers.
 *
 * fork: a child would find holes where pages are parked, so every relocating pager gives everything back first and ends.
 * The child closes its copies of the descriptors, also of those that no pager has yet: a copy that stays open would keep
 * traps alive after their pager's end.
 *
 * SIGBUS (NT_INLINE): the faulting thread serves itself. The handler reads the list without a lock; a pager that leaves
 * waits until no handler is inside. What is not for a pager goes to the handler that was there before. The program
 * may take it over at any time, so each pager that joins looks whether it is ours. Code that took it over may hand back
 * what it found, as faulthandler does: that has to lead to the action before, and never in a circle. So there are two
 * handlers, installed in turn: the latest passes on to the action it replaced, the other one to the very first.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <ucontext.h>

#include "internal.h"

#define MOST_PAGERS 256

static _Atomic(struct nt_pager *) pagers[MOST_PAGERS];
static _Atomic unsigned handlers_inside, handlers_waiting, departures;
static _Atomic uint32_t settlings; /* a futex: how often a pager has worked off its events, or left */
static pthread_mutex_t joining = PTHREAD_MUTEX_INITIALIZER;
static sigset_t mask_before_fork; /* of the thread that forks, which has the lock */
static bool fork_handled;
static int received[MOST_PAGERS]; /* descriptors that no pager has yet */
static size_t received_count;
static struct sigaction first, replaced[2]; /* actions of SIGBUS before ours: the very first, and that of each handler */
static _Atomic unsigned latest = 1; /* the handler installed last, if any was */
static _Thread_local struct toucher self __attribute__((tls_model("initial-exec")));
static _Thread_local unsigned departures_seen __attribute__((tls_model("initial-exec")));

/* All that other programs or threads send; not those that an instruction of this thread raises, which would kill it. */
void block_signals(sigset_t *before)
{
	static const int raised[] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP};
	sigset_t sent;
	sigfillset(&sent);
	for (size_t number = 0; number < sizeof raised / sizeof *raised; number++)
		sigdelset(&sent, raised[number]);
	pthread_sigmask(SIG_BLOCK, &sent, before);
}

/* ---- fork ---- */

/*
 * No signal handler of a thread that has the lock may fork: it would wait for the lock, and the thread for the handler.
 * So signals are blocked before it is taken, here and wherever else it is.
 */
static void lock_joining(sigset_t *before)
{
	block_signals(before);
	pthread_mutex_lock(&joining);
}

static void unlock_joining(const sigset_t *before)
{
	pthread_mutex_unlock(&joining);
	pthread_sigmask(SIG_SETMASK, before, NULL);
}

/*
 * Ask the pager of a slot to let go of everything; whether there is one that has not yet. It cannot be freed meanwhile: a
 * pager that leaves the list waits until no thread is inside.
 */
static bool holds_on(size_t slot)
{
	int none = NT_NONE;
	atomic_fetch_add(&handlers_inside, 1);
	struct nt_pager *pager = atomic_load(&pagers[slot]);
	bool holding = pager && pager->mechanism->out_of_place && !atomic_load(&pager->let_go);
	if (holding && atomic_compare_exchange_strong(&pager->request, &none, NT_FORK))
		wake_thread(pager);
	atomic_fetch_sub(&handlers_inside, 1);
	return holding;
}

static void before_fork(void)
{
	sigset_t before;
	lock_joining(&before);
	mask_before_fork = before;
	for (size_t slot = 0; slot < MOST_PAGERS; slot++)
		while (holds_on(slot))
			sched_yield();
}

static void after_fork_in_parent(void)
{
	sigset_t before = mask_before_fork;
	unlock_joining(&before);
}

static void after_fork_in_child(void)
{
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *pager = atomic_exchange(&pagers[slot], NULL);
		if (!pager)
			continue;
		close_descriptors(pager);
	}
	while (received_count)
		close(received[--received_count]);
	atomic_store(&handlers_inside, 0);
	atomic_store(&handlers_waiting, 0);
	after_fork_in_parent();
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
	sigset_t before;
	lock_joining(&before);
	int number = handle_fork();
	if (!number && received_count == MOST_PAGERS)
		number = EMFILE;
	if (!number && (got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) < 0)
		number = errno;
	if (got >= 0)
		*descriptor = descriptor_in(&message);
	if (*descriptor >= 0)
		received[received_count++] = *descriptor;
	unlock_joining(&before);
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

static void forget_all(const struct nt_pager *pager)
{
	for (size_t number = 0; number < pager->descriptors_count; number++)
		forget(pager->descriptors[number].uffd);
}

void nt_forget(int descriptor)
{
	sigset_t before;
	lock_joining(&before);
	forget(descriptor);
	unlock_joining(&before);
}

/* ---- SIGBUS ---- */

/* Serve the faulting thread's own fault. */
static int serve_self(struct nt_pager *pager, uint64_t address)
{
	unsigned cpu = 0;
	getcpu(&cpu, NULL);
	self.node = node_of_cpu(pager, (int)cpu);
	uint64_t began = now_ns();
	int number = serve(pager, segment_at(pager, address)->descriptor, address, &self);
	record_service(pager, now_ns() - began);
	if (!atomic_load(&pager->unreturned))
		wake_thread(pager); /* it may close down */
	return number;
}

/* Whether the page at `address` is one that the pager has yet to deal with. */
static bool has_page(const struct nt_pager *pager, uint64_t address)
{
	const struct segment *segment = segment_at(pager, address);
	return segment && state_of(pager, segment, (address - segment->start) / pager->page_size) <= NT_RETURNING;
}

/* Whether events wait to be handled: a mapping may have moved to an address that is not known yet. */
static bool has_events(const struct nt_pager *pager)
{
	return atomic_load(&pager->gate_shut) /* first: behind the gate the descriptors may be closed */ || is_readable(pager->ready_fd);
}

/* Go in, unless the thread is about to change what we would look at: handlers that wait outside do not hold it up. */
static bool enter(struct nt_pager *pager)
{
	if (atomic_load(&pager->gate_shut))
		return false;
	atomic_fetch_add(&pager->inside, 1);
	if (!has_events(pager))
		return true;
	atomic_fetch_sub(&pager->inside, 1);
	return false;
}

static int resolve_stray(struct nt_pager *pager, uint64_t page)
{
	int number = ENOENT;
	for (size_t descriptor = 0; descriptor < pager->descriptors_count && number == ENOENT; descriptor++)
		number = pager->mechanism->resolve_stray(pager, pager->descriptors[descriptor].uffd, page);
	if (number != ENOENT) {
		count(&pager->counts.faults, 1);
		count(&pager->counts.hole_faults, 1);
	}
	return number;
}

/*
 * What comes of the fault at `address`, if it is for `pager` to serve: 0, EEXIST or EAGAIN make the thread redo its access,
 * EBUSY when the pager has worked off what it has to before. `strayed`: no pager has such a page, so it is memory that has nothing of ours in it, or not any more.
 */
static int serve_for(struct nt_pager *pager, uint64_t address, bool strayed)
{
	int number = ENOENT;
	uint64_t page = address & ~(pager->page_size - 1);
	if (!enter(pager))
		return EBUSY;
	if (strayed)
		number = resolve_stray(pager, page);
	else if (has_page(pager, page))
		number = serve_self(pager, page);
	atomic_fetch_sub(&pager->inside, 1);
	return number;
}

/* What comes of the fault at `address`: as `serve_for`, of whichever pager it is for. */
static int serve_inline(uint64_t address)
{
	int number = ENOENT;
	for (int strayed = 0; strayed < 2; strayed++) /* first all pagers that may have the page, as none may if events wait */
		for (size_t slot = 0; slot < MOST_PAGERS && number == ENOENT; slot++) {
			struct nt_pager *pager = atomic_load(&pagers[slot]);
			if (pager && pager->options.service == NT_INLINE && !atomic_load(&pager->let_go))
				number = serve_for(pager, address, strayed);
		}
	return number;
}

/*
 * Whether the fault at `address` was one of the pagers', which makes the thread redo its access. Where a pager has events to
 * work off first, the thread sleeps until one has worked off some, or left: threads that looked again and again would keep
 * it from the CPU. Asleep it is not inside, so that no pager waits for it.
 */
static bool serve_fault(uint64_t address)
{
	atomic_fetch_add(&handlers_waiting, 1);
	uint32_t seen = atomic_load(&settlings);
	atomic_fetch_add(&handlers_inside, 1);
	int number = serve_inline(address);
	atomic_fetch_sub(&handlers_inside, 1);
	if (number == EBUSY)
		futex_wait_change(&settlings, seen);
	atomic_fetch_sub(&handlers_waiting, 1);
	return number == 0 || number == EEXIST || number == EAGAIN || number == EBUSY;
}

void process_settled(void)
{
	atomic_fetch_add(&settlings, 1);
	if (atomic_load(&handlers_waiting))
		futex_wake(&settlings);
}

/*
 * Do what the kernel would have done by `action`. An access is redone when we return, a signal that was sent is not
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
	bool served = access && serve_fault((uint64_t)(uintptr_t)information->si_addr);
	atomic_fetch_add(&handlers_inside, 1);
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
		struct nt_pager *none = NULL;
		if (atomic_compare_exchange_strong(&pagers[slot], &none, pager))
			return 0;
	}
	return -1;
}

/* Of a pager that is done a thread may hear before it has left the list. */
static bool one_leaves(void)
{
	bool found = false;
	atomic_fetch_add(&handlers_inside, 1); /* none that is in the list goes away meanwhile */
	for (size_t slot = 0; slot < MOST_PAGERS && !found; slot++) {
		struct nt_pager *pager = atomic_load(&pagers[slot]);
		found = !pager || atomic_load(&pager->phase) == NT_DONE;
	}
	atomic_fetch_sub(&handlers_inside, 1);
	return found;
}

int process_join(struct nt_pager *pager, struct nt_error *error)
{
	int result = 0;
	sigset_t before;
	lock_joining(&before);
	int number = handle_fork();
	if (number) {
		*error = (struct nt_error){.call = "pthread_atfork", .number = number};
		result = -1;
	}
	if (!result && pager->options.service == NT_INLINE)
		result = handle_sigbus(error);
	while (!result && take_slot(pager)) {
		if (one_leaves()) {
			sched_yield();
			continue;
		}
		*error = (struct nt_error){.call = "nexttouch", .number = EMFILE, .detail = "256 migrations are running already"};
		result = -1;
	}
	if (!result)
		forget_all(pager); /* from here on the list has them */
	unlock_joining(&before);
	return result;
}

void process_let_go(void)
{
	atomic_fetch_add(&departures, 1);
}

void process_leave(struct nt_pager *pager)
{
	process_let_go(); /* first: a thread that finds the list without us has to see it */
	for (size_t slot = 0; slot < MOST_PAGERS; slot++) {
		struct nt_pager *expected = pager;
		if (atomic_compare_exchange_strong(&pagers[slot], &expected, NULL))
			break;
	}
	process_settled(); /* handlers that wait for us look at the list again */
	while (atomic_load(&handlers_inside))
		sched_yield();
}
