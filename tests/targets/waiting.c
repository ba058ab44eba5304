/* A program that waits, computes, forks or has something to hide, in the way that its first word names, and says what came of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;
static void handler(int number) { (void)number; handled++; }

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void ready(void) { printf("ready\n"); fflush(stdout); }

/* What a processor computes must not depend on being stopped: integers, floating point and flags in one loop. */
static uint64_t compute(long rounds)
{
	uint64_t state = 1;
	double sum = 0;
	for (long i = 0; i < rounds; i++) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		sum += (double)(state >> 11) * 0x1p-53;
		if (state & 1)
			state ^= (uint64_t)(sum * 16);
	}
	return state;
}

static _Atomic int told;

/* The same again and again until the program is told to end; 0 if it was not the same each time. */
static void *compute_thread(void *argument)
{
	const long rounds = 1000 * 1000;
	uint64_t first = compute(rounds), same = 1;
	while (!told)
		same &= compute(rounds) == first;
	*(uint64_t *)argument = same ? first : 0;
	return NULL;
}

static void *ear(void *argument)
{
	char byte;
	told = read(0, &byte, 1) >= 0;
	return argument;
}

static void *late_reader(void *argument)
{
	char byte;
	(void)argument;
	ready();
	if (read(0, &byte, 1) == 1)
		printf("%c 0 0 0\n", byte);
	exit(0);
}

/* Forks whenever it is told to, and says what the child's number is. */
static void *forker(void *argument)
{
	char byte;
	(void)argument;
	while (read(0, &byte, 1) == 1) {
		pid_t child = fork();
		if (child == 0)
			return pause() ? NULL : argument;
		printf("%d\n", child);
		fflush(stdout);
	}
	return NULL;
}

static unsigned long spin_flag, aborts;
#ifdef __x86_64__
static void restartable(void)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
	printf("%p %p\n", (void *)&spin_flag, (void *)&aborts);
	ready();
again:
	__asm__ goto(".pushsection .data.rel.local, \"aw\"\n\t.balign 32\n"
			 "3:\n\t.long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
			 "leaq 3b(%%rip), %%rax\n\t"
			 "movq %%rax, %0\n"
			 "1:\n\tcmpq $0, %1\n\tje 1b\n"
			 "2:\n\t"
			 ".pushsection .text.unlikely, \"ax\"\n\t.byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
			 "4:\n\tjmp %l[aborted]\n\t.popsection\n\t"
			 :
			 : "m"(area->rseq_cs), "m"(spin_flag)
			 : "rax", "memory", "cc"
			 : aborted);
	return;
aborted:
	__atomic_fetch_add(&aborts, 1, __ATOMIC_RELAXED);
	goto again;
}
#else
static void restartable(void) {}
#endif

int main(int count, char **words)
{
	const char *mode = words[1];
	double limit = count > 2 ? atof(words[2]) : 0;
	struct timespec span = {(time_t)limit, (long)((limit - (time_t)limit) * 1e9)};
	char buffer[64] = "";
	long result = 0;
	sigset_t all, none;

	sigfillset(&all);
	sigemptyset(&none);
	if (strcmp(mode, "sigsuspend") == 0 || strcmp(mode, "sigwaitinfo") == 0 || strcmp(mode, "pending") == 0)
		sigprocmask(SIG_BLOCK, &all, NULL);
	signal(SIGUSR1, handler);
	signal(SIGRTMIN, handler);
	if (strcmp(mode, "leaderless") != 0 && strcmp(mode, "restartable") != 0 && strcmp(mode, "page") != 0)
		ready();
	double begin = now();
	errno = 0;
	if (strcmp(mode, "nanosleep") == 0) {
		result = nanosleep(&span, NULL);
	} else if (strcmp(mode, "poll") == 0) {
		result = poll(NULL, 0, (int)(limit * 1000));
	} else if (strcmp(mode, "ppoll") == 0) {
		result = ppoll(NULL, 0, &span, NULL);
	} else if (strcmp(mode, "select") == 0) {
		struct timeval time = {span.tv_sec, span.tv_nsec / 1000};
		result = select(0, NULL, NULL, NULL, &time);
	} else if (strcmp(mode, "futex") == 0) {
		uint32_t word = 0;
		result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &span, NULL, 0);
	} else if (strcmp(mode, "read") == 0) {
		result = read(0, buffer, sizeof(buffer));
	} else if (strcmp(mode, "recv") == 0) {
		result = recv(0, buffer, sizeof(buffer), 0);
	} else if (strcmp(mode, "pause") == 0) {
		result = pause();
	} else if (strcmp(mode, "sigsuspend") == 0) {
		result = sigsuspend(&none);
	} else if (strcmp(mode, "sigwaitinfo") == 0) {
		result = sigwaitinfo(&all, NULL);
	} else if (strcmp(mode, "epoll") == 0) {
		struct epoll_event event = {.events = EPOLLIN};
		int queue = epoll_create1(0);
		epoll_ctl(queue, EPOLL_CTL_ADD, 0, &event);
		result = epoll_wait(queue, &event, 1, limit > 0 ? (int)(limit * 1000) : -1);
	} else if (strcmp(mode, "io_uring") == 0) {
		struct io_uring_params ring = {0};
		int queue = (int)syscall(SYS_io_uring_setup, 1, &ring);
		char *head = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, queue, IORING_OFF_SQ_RING);
		struct io_uring_sqe *entry = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, queue, IORING_OFF_SQES);
		*entry = (struct io_uring_sqe){.opcode = IORING_OP_POLL_ADD, .fd = 0, .poll_events = POLLIN};
		*(unsigned *)(head + ring.sq_off.tail) = 1;
		syscall(SYS_io_uring_enter, queue, 1, 0, 0, NULL, 0);
		result = syscall(SYS_io_uring_enter, queue, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	} else if (strcmp(mode, "semop") == 0) {
		int semaphores = semget(IPC_PRIVATE, 1, 0600);
		struct sembuf down = {0, -1, 0}, up = {0, 1, 0};
		if (fork() == 0) {
			result = read(0, buffer, 1);
			return (int)semop(semaphores, &up, 1);
		}
		result = semop(semaphores, &down, 1);
		semctl(semaphores, 0, IPC_RMID);
	} else if (strcmp(mode, "waitpid") == 0) {
		pid_t child = fork();
		if (child == 0)
			return (int)read(0, buffer, 1);
		result = waitpid(child, NULL, 0) == child;
	} else if (strcmp(mode, "compute") == 0) {
		uint64_t found;
		pthread_t thread;
		pthread_create(&thread, NULL, ear, NULL);
		compute_thread(&found);
		pthread_join(thread, NULL);
		result = (long)found;
	} else if (strcmp(mode, "threads") == 0) {
		uint64_t results[3];
		pthread_t threads[3];
		for (int i = 0; i < 3; i++)
			pthread_create(&threads[i], NULL, compute_thread, &results[i]);
		ear(NULL);
		for (int i = 0; i < 3; i++)
			pthread_join(threads[i], NULL);
		result = results[0] == results[1] && results[1] == results[2] ? (long)results[0] : 0;
	} else if (strcmp(mode, "leaderless") == 0) {
		pthread_t thread;
		pthread_create(&thread, NULL, late_reader, NULL);
		pthread_exit(NULL);
	} else if (strcmp(mode, "forker") == 0) {
		pthread_t thread;
		pthread_create(&thread, NULL, forker, NULL);
		pthread_join(thread, NULL);
	} else if (strcmp(mode, "alone") == 0) {
		struct rlimit none = {0, 0};
		setrlimit(RLIMIT_NPROC, &none);
		ready();
		result = read(0, buffer, 1);
	} else if (strcmp(mode, "unshare") == 0) {
		result = unshare(CLONE_NEWPID);
		ready();
		result += read(0, buffer, 1);
	} else if (strcmp(mode, "pending") == 0) {
		result = read(0, buffer, 1);
		sigprocmask(SIG_UNBLOCK, &all, NULL);
	} else if (strcmp(mode, "count") == 0) {
		/* A handler that runs cuts the read short; what interrupts must be a handler. */
		int before;
		do {
			before = handled;
			result = read(0, buffer, 1);
		} while (result < 0 && errno == EINTR && handled > before);
	} else if (strcmp(mode, "memory") == 0) {
		size_t size = (size_t)limit << 20;
		char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(memory, 7, size);
		ready();
		result = read(0, buffer, 1);
	} else if (strcmp(mode, "page") == 0) {
		char *page = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(page, 'a', 65536);
		printf("%p\n", (void *)page);
		ready();
		result = read(0, buffer, 1);
		result = read(0, page, 1);
		memcpy(buffer, page, 2);
	} else if (strcmp(mode, "restartable") == 0) {
		restartable();
	} else if (strcmp(mode, "seccomp") == 0) {
		struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		struct sock_fprog filter = {1, &allow};
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
		ready();
		result = read(0, buffer, 1);
	} else if (strcmp(mode, "dispatch") == 0) {
		static char selector; /* allow */
		prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector);
		ready();
		result = read(0, buffer, 1);
	} else if (strcmp(mode, "undumpable") == 0) {
		prctl(PR_SET_DUMPABLE, 0);
		ready();
		result = read(0, buffer, 1);
	} else if (strcmp(mode, "full") == 0) {
		while (dup(0) >= 0)
			;
		ready();
		result = read(0, buffer, 1);
	}
	int error = result < 0 ? errno : 0;
	printf("%ld %d %.3f %d %s\n", result, error, now() - begin, (int)handled, buffer);
	return 0;
}
