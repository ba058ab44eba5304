/* When the sweep may take its next step: by its rate, by its deadline, and after faults. Times are those of the monotonic clock. */
#include "internal.h"

#define NS 1e9
/* How much longer than a fault a step has to be for faults to go first: a step of huge pages is, one of small ones is not. */
#define LONG 8
/* For how many steps they do: there are programs that fault for ever. */
#define PATIENCE 4

/* The time `seconds` after `from`; UINT64_MAX, which is never, if that is further off than the clock will get. */
static uint64_t later(uint64_t from, double seconds)
{
	double limit = (double)((UINT64_MAX - from) / 2);
	return seconds * NS < limit ? from + (uint64_t)(seconds * NS) : UINT64_MAX;
}

/* All is armed. With `rate` 0 nothing is due before the deadline. */
void pace_begin(struct pace *pace, uint64_t now, double rate, double deadline)
{
	*pace = (struct pace){.due = rate > 0 ? now : UINT64_MAX, .deadline = later(now, deadline)};
}

/* A step was taken, of which there shall be one in `pause` seconds. */
void pace_step(struct pace *pace, uint64_t began, uint64_t ended, double pause)
{
	/* What the sweep could not do while faults had the thread is not made up for beyond one pause. */
	uint64_t due = later(pace->due, pause);
	pace->due = due > began ? due : later(began, pause);
	pace->took = ended - began;
	pace->patience = ended + PATIENCE * pace->took;
}

/*
 * Faults were served, from `began` to `ended`. A program that goes on after one often meets the next page soon; behind a
 * step of the sweep each of these would wait for much longer than it takes. So there is none before as much time has passed
 * without a fault as a step takes.
 */
void pace_fault(struct pace *pace, uint64_t began, uint64_t ended)
{
	if (pace->took > LONG * (ended - began))
		pace->quiet = ended + pace->took;
}

/* When the next step is due, UINT64_MAX for never. */
uint64_t pace_next(const struct pace *pace)
{
	uint64_t quiet = lesser(pace->quiet, pace->patience);
	return lesser(greater(pace->due, quiet), pace->deadline);
}
