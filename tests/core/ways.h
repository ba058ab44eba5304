/*
 * How pages are trapped and who serves their faults, by name: that of a mechanism, with `-inline` behind it where the threads
 * that fault serve themselves. Whatever mechanism there is can be named.
 */
#ifndef NT_WAYS_H
#define NT_WAYS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../src/nexttouch/_core/pager.h"

/* Exit status of a program that the kernel lacks something for. */
#define CANNOT 77

/* Seconds within which a migration is done, be the machine an emulated one. */
#define DONE_SECONDS 120

/* Every page moves to node 0, wherever it is. */
static inline struct nt_options options_of(const char *way)
{
	static const int nodes[] = {0}, cpu_nodes[] = {0, 0};
	const char *suffix = strchr(way, '-');
	size_t length = suffix ? (size_t)(suffix - way) : strlen(way);
	int number = 0;
	for (const char *name; (name = nt_mechanism_name(number)); number++)
		if (strncmp(name, way, length) == 0 && !name[length])
			break;
	if (!nt_mechanism_name(number))
		exit(2);
	return (struct nt_options){.mechanism = (enum nt_mechanism)number,
				   .service = suffix ? NT_INLINE : NT_THREAD,
				   .uffd = -1,
				   .alive_fd = -1,
				   .nodes = nodes,
				   .nodes_count = 1,
				   .cpu_nodes = cpu_nodes,
				   .cpus = 2,
				   .window = 16,
				   .rate = INFINITY,
				   .deadline = INFINITY};
}

/* End here if the kernel's userfaultfd cannot do what the mechanism needs. */
static inline void need(const char *way)
{
	static int16_t anywhere = NT_ANYWHERE;
	struct nt_options options = options_of(way);
	struct nt_error error = {0};
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct nt_run run = {(uint64_t)(uintptr_t)page, 1, 1};
	struct nt_range range = {run.start, 4096};
	struct nt_pager *pager = nt_pager_new(&options, &run, 1, &range, 1, &anywhere, &error);
	if (pager)
		nt_pager_free(pager);
	else if (strcmp(error.call, "UFFDIO_API") == 0)
		exit(CANNOT);
	munmap(page, 4096);
}

#endif
