/* A userfaultfd on the memory of another process. */
#ifndef NT_INJECTION_H
#define NT_INJECTION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "failure.h"

struct target {
	pid_t pid;
	int pidfd;
};

struct request {
	struct target target;
	pid_t thread;         /* that is to stand still */
	uint64_t instruction; /* address, in that process, of an instruction that makes a system call */
	bool lend;            /* give it this process's open /dev/userfaultfd where it may not have its own */
	bool exit_word;       /* ask for the address of the word that the kernel sets to 0 when the thread ends */
};

struct taken {
	int descriptor;     /* the userfaultfd */
	int64_t stopped_ns; /* for how long the thread stood still */
	uint64_t exit_word; /* 0: there is none, it cannot be found out, or was not asked for */
};

/* Make the thread open a userfaultfd. If that fails, the target runs on as it did, if it still exists. */
struct failure take_userfaultfd(const struct request *request, struct taken *taken);

/* Interrupt what a thread waits for. */
struct failure interrupt_thread(const struct target *target, pid_t thread);

#endif
