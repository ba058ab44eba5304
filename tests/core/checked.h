/* How the programs of this folder fail: they say what is wrong and where they were, and end; and so do they when they hang. */
#ifndef NT_CHECKED_H
#define NT_CHECKED_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))

/* Each program's own: what it was doing. Called by a signal handler, too. */
static void say_where(void);

#define CHECK(condition, ...)                                                                                                  \
	do {                                                                                                                   \
		if (!(condition)) {                                                                                            \
			dprintf(STDOUT_FILENO, __VA_ARGS__);                                                                   \
			dprintf(STDOUT_FILENO, " (%s:%d)\n", __FILE__, __LINE__);                                              \
			say_where();                                                                                           \
			_exit(1);                                                                                              \
		}                                                                                                              \
	} while (0)

static void on_alarm(int signal)
{
	(void)signal;
	dprintf(STDOUT_FILENO, "it hangs\n");
	say_where();
	_exit(3);
}

/* Fail `seconds` from now unless this is called again before. */
static inline void hang_after(unsigned seconds)
{
	signal(SIGALRM, on_alarm);
	alarm(seconds);
}

static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* A number below `limit`. */
static inline unsigned below(uint64_t *state, uint64_t limit)
{
	return (unsigned)((next_random(state) >> 16) % limit);
}

#endif
