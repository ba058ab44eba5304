/*
 * The pace of the sweep against a clock that is only a number: a step takes STEP, faults come every so often.
 *
 * Exit 0, or 1 with what was not as expected.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../src/nexttouch/_core/internal.h"

#define STEP 100u
#define NEVER UINT64_MAX
#define SECOND 1000000000u

/* How many steps begin in `time`, with a fault of `service` every `interval` (0: none), one step due in `pause` seconds. */
static uint64_t steps(uint64_t time, uint64_t interval, uint64_t service, double pause)
{
	struct pace pace;
	uint64_t now = SECOND, end = now + time, fault = interval ? now + interval : NEVER, done = 0;
	pace_begin(&pace, now, INFINITY, INFINITY);
	for (uint64_t next = now; lesser(next, fault) < end; next = greater(now, pace_next(&pace))) {
		if (fault <= next) { /* one that came during a step is served behind it, before the next */
			uint64_t began = greater(now, fault);
			now = began + service;
			fault += interval;
			pace_fault(&pace, began, now);
		} else {
			now = next + STEP;
			pace_step(&pace, next, now, pause);
			done++;
		}
	}
	return done;
}

static void expect(const char *what, uint64_t found, uint64_t expected)
{
	if (found != expected) {
		printf("%s: %lu instead of %lu\n", what, (unsigned long)found, (unsigned long)expected);
		exit(1);
	}
}

int main(void)
{
	struct pace pace;
	pace_begin(&pace, 5, INFINITY, INFINITY);
	expect("the first step", pace_next(&pace), 5);
	pace_fault(&pace, 50, 50);
	expect("nothing was swept yet that a fault could wait for", pace_next(&pace), 5);
	pace_begin(&pace, 5, 0, INFINITY);
	expect("without a rate", pace_next(&pace), NEVER);
	pace_begin(&pace, 5, 0, 2);
	expect("without a rate, until the deadline", pace_next(&pace), 5 + 2ull * SECOND);
	pace_begin(&pace, 5, 1, 1);
	pace_step(&pace, 5, 5 + SECOND / 2, 3);
	pace_fault(&pace, SECOND - 10, SECOND - 10);
	expect("the deadline waits for nobody", pace_next(&pace), 5 + SECOND);
	expect("no fault", steps(100 * STEP, 0, 0, 0), 100);
	expect("one step in two seconds", steps(20ull * SECOND, 0, 0, 2), 10);
	expect("a short fault every ten steps costs one", steps(1000 * STEP, 10 * STEP, 1, 0), 1000 - 99);
	expect("a fault as long as a step costs itself", steps(1000 * STEP, 10 * STEP, STEP, 0), 1000 - 99);
	expect("a short fault during every other step", steps(100 * STEP, 2 * STEP, 1, 0), 51);
	expect("short faults without an end", steps(5 * 100 * STEP, STEP / 2, 1, 0), 100);
	return 0;
}
