/* What went wrong. */
#ifndef NT_FAILURE_H
#define NT_FAILURE_H

/* Each has a word in main.c, by which nexttouch.live.injection knows it. */
enum failed {
	NOTHING,
	ENDED,        /* the process, or the thread that has to stand still */
	FORBIDDEN,    /* to trace it */
	TRACED,       /* by process `number` */
	UNSTOPPED,    /* frozen, or in an uninterruptible wait */
	NOT_64_BIT,   /* the code that it runs */
	REPLACED,     /* its program, since the address was looked up */
	DISPATCHES,   /* its own system calls */
	SECCOMP,      /* has it since it was looked at */
	NAMESPACE,    /* begins with its next child */
	PROCESSES,    /* it may have no more */
	DESCRIPTORS,  /* it may have no more */
	USERFAULTFD,  /* its user may not have */
	CALL,         /* `call` failed with errno `number` */
	FAILURES,
};

struct failure {
	enum failed what;
	const char *call;
	long number;
};

static inline struct failure failure(enum failed what)
{
	return (struct failure){.what = what};
}

static inline struct failure failed_call(const char *call, long number)
{
	return (struct failure){CALL, call, number};
}

/* Return what failed, if it did. */
#define TRY(...)                                                                                                               \
	do {                                                                                                                   \
		struct failure tried = __VA_ARGS__;                                                                            \
		if (tried.what)                                                                                                \
			return tried;                                                                                          \
	} while (0)

#endif
