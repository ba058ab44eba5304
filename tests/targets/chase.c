/* usage: chase CPU NODE MIB LOADS. Follow a chain of pointers through memory on a node, one in each line, on a CPU. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LINE = 64, BIND = 2 };

int main(int count, char **words)
{
	if (count != 5)
		return 2;
	cpu_set_t cpus;
	CPU_ZERO(&cpus);
	CPU_SET(atoi(words[1]), &cpus);
	unsigned long node = 1ul << atoi(words[2]);
	if (sched_setaffinity(0, sizeof cpus, &cpus) || syscall(SYS_set_mempolicy, BIND, &node, 64))
		return 1;
	size_t size = (size_t)atol(words[3]) << 20, lines = size / LINE;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < lines; i++) /* a stride that has no factor in common with a power of two */
		*(char **)(memory + i * LINE) = memory + (i + 40503) % lines * LINE;
	char *place = memory;
	for (long loads = atol(words[4]); loads; loads--)
		place = *(char *volatile *)place;
	return !place;
}
