/*
 * Waiting for a number to be reached, without a lock: a signal handler of the program that forks in the middle of a wait,
 * or of the change that ends it, finds nothing taken (futex(2)).
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>

#include "internal.h"

void futex_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void futex_set(_Atomic uint32_t *word, uint32_t value)
{
	atomic_store(word, value);
	futex_wake(word);
}

/* Wait until the word is no longer `seen`, or some time before that. */
void futex_wait_change(_Atomic uint32_t *word, uint32_t seen)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

/* Wait until the word is at least `value`, or until a time of the monotonic clock (NULL: for ever); whether it is. */
bool futex_wait_at_least(_Atomic uint32_t *word, uint32_t value, const struct timespec *until)
{
	for (;;) {
		uint32_t now = atomic_load(word);
		if (now >= value)
			return true;
		if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, now, until, NULL, FUTEX_BITSET_MATCH_ANY) && errno == ETIMEDOUT)
			return atomic_load(word) >= value;
	}
}
