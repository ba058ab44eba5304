/*
 * A program of two threads that only read: each a half of every kind of memory, on a processor of its own.
 *
 * usage: readers PAGES
 *
 * It maps PAGES pages each of private, of shared, and of private memory that it may not write any more, and as many in
 * huge pages; fills them; and prints their addresses. For each line that it reads it reads its memory once and prints
 * "read", for a line "swap" the threads read each other's halves. It ends with its input: 1 if a byte was wrong.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define HUGE_SIZE (2UL << 20)
#define KINDS 4
#define THREADS 2
#define VALUE 7

static uint8_t *memory[KINDS];
static size_t size;
static int swapped;
static pthread_barrier_t begin, end;
static _Atomic int wrong;

static uint8_t *map(size_t bytes, int flags)
{
	uint8_t *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (address == MAP_FAILED) {
		perror("mmap");
		exit(3);
	}
	return address;
}

static void *read_half(void *argument)
{
	int number = (int)(intptr_t)argument;
	cpu_set_t only;
	CPU_ZERO(&only);
	CPU_SET(number, &only);
	if (sched_setaffinity(0, sizeof only, &only))
		exit(3);
	for (;;) {
		pthread_barrier_wait(&begin);
		size_t half = (size_t)(swapped ? 1 - number : number);
		for (int kind = 0; kind < KINDS; kind++)
			for (size_t at = half * size / 2; at < (half + 1) * size / 2; at += PAGE)
				wrong |= *(volatile uint8_t *)(memory[kind] + at) != VALUE;
		pthread_barrier_wait(&end);
	}
	return NULL;
}

int main(int count, char **arguments)
{
	size = (count > 1 ? strtoul(arguments[1], NULL, 10) : 1024) * PAGE;
	memory[0] = map(size, MAP_PRIVATE);
	memory[1] = map(size, MAP_SHARED);
	memory[2] = map(size, MAP_PRIVATE);
	uint8_t *room = map(size + HUGE_SIZE, MAP_PRIVATE);
	memory[3] = room + HUGE_SIZE - (uintptr_t)room % HUGE_SIZE;
	for (int kind = 0; kind < KINDS; kind++) {
		madvise(memory[kind], size, kind == 3 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		memset(memory[kind], VALUE, size);
	}
	if (mprotect(memory[2], size, PROT_READ))
		return 3;
	pthread_barrier_init(&begin, NULL, THREADS + 1);
	pthread_barrier_init(&end, NULL, THREADS + 1);
	for (intptr_t number = 0; number < THREADS; number++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, read_half, (void *)number))
			return 3;
	}
	for (int kind = 0; kind < KINDS; kind++)
		printf("%lu ", (unsigned long)(uintptr_t)memory[kind]);
	puts("");
	fflush(stdout);
	char line[16];
	while (fgets(line, sizeof line, stdin)) {
		swapped = !strcmp(line, "swap\n");
		pthread_barrier_wait(&begin);
		pthread_barrier_wait(&end);
		puts("read");
		fflush(stdout);
	}
	return wrong;
}
