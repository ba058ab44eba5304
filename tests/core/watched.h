/* What of the program's memory a userfaultfd watches, or is kept from children: the flags of /proc/self/smaps. */
#ifndef NT_WATCHED_H
#define NT_WATCHED_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Mappings in [low, high) that are watched for missing (um) or protected (uw, ur) pages, or carry MADV_DONTFORK (dc). */
static inline unsigned watched_mappings(const void *low, const void *high)
{
	static const char *const flags[] = {" um", " uw", " ur", " dc"};
	unsigned found = 0;
	bool within = false;
	char line[512], mapping[512] = "";
	FILE *file = fopen("/proc/self/smaps", "r");
	while (file && fgets(line, sizeof line, file)) {
		unsigned long start, end;
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
			strcpy(mapping, line);
			within = start >= (uintptr_t)low && end <= (uintptr_t)high;
		}
		if (!within || strncmp(line, "VmFlags:", strlen("VmFlags:")))
			continue;
		bool watched = false;
		for (unsigned flag = 0; flag < sizeof flags / sizeof *flags; flag++)
			watched |= strstr(line, flags[flag]) != NULL;
		if (watched)
			printf("%s%s", mapping, line);
		found += watched;
	}
	if (file)
		fclose(file);
	fflush(stdout);
	return found;
}

#endif
