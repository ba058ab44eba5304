/* usage: mark NAME. Set a mark in the counts of the lab (marks.py has the same for Python). */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "mark.h"

int main(int count, char **words)
{
	if (count != 2 || !*words[1]) {
		fputs("usage: mark NAME\n", stderr);
		return 2;
	}
	/* Populated: the plugin is to see each read once, and not its fault as well. */
	volatile const char *page = mmap((void *)MARK_PAGE, MARK_SIZE, PROT_READ,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
	if (page != (void *)MARK_PAGE) {
		perror("mark");
		return 1;
	}
	for (size_t i = 0; i <= strlen(words[1]); i++)
		(void)page[(unsigned char)words[1][i] * MARK_STRIDE];
	return 0;
}
