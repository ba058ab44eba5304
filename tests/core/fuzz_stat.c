/*
 * What the core reads of files: /proc/PID/task/TID/stat and status. Mutated lines must be read without a step outside of them.
 *
 * usage: fuzz_stat ROUNDS [SEED]. Built with the address sanitizer, or for libFuzzer with -DFUZZER.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cpu_in_stat(const char *text);
int innermost_in_status(const char *text);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1); /* of the exact size, so that the sanitizer sees any step too far */
	memcpy(text, data, size);
	text[size] = '\0';
	cpu_in_stat(text);
	innermost_in_status(text);
	free(text);
	return 0;
}

#ifndef FUZZER
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void check(const char *text, int expected)
{
	if (cpu_in_stat(text) != expected) {
		printf("CPU %d instead of %d in: %s\n", cpu_in_stat(text), expected, text);
		exit(1);
	}
}

static void check_status(const char *text, int expected)
{
	if (innermost_in_status(text) != expected) {
		printf("thread %d instead of %d in: %s\n", innermost_in_status(text), expected, text);
		exit(1);
	}
}

int main(int count, char **arguments)
{
	static const char line[] = "7 (a) b (c) d) R 1 7 7 0 -1 4194304 9 8 7 6 5 4 3 2 20 0 1 0 100 200 300 1844674 1 1 0 0 0 0 "
				   "0 0 0 0 0 0 17 13 0 0 0 0 0\n";
	static const char status[] = "Name:\ta\nNStgid:\t4242\t7\nNSpid:\t4242\t17\t9\nNSpgid:\t4242\t7\n";
	static const char interesting[] = " )(\n\t-9\0";
	uint64_t random = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
	check(line, 13);
	check("7 (short) R 1", -1);
	check("", -1);
	check_status(status, 9);
	check_status("Name:\tNSpid:\t3\nNSpid:\t42\n", 42);
	check_status("\nNSpid:\t4242\t7", 0); /* cut short */
	check_status("\nNSpid:\nNSsid:\t8\n", 0);
	check_status("", 0);
	for (long round = strtol(count > 1 ? arguments[1] : "1", NULL, 10); round > 0; round--) {
		uint8_t data[sizeof line];
		bool other = next_random(&random) % 2;
		size_t whole = other ? sizeof status : sizeof line, size = next_random(&random) % whole;
		memcpy(data, other ? status : line, whole);
		for (uint64_t change = next_random(&random) % 8; change; change--)
			data[next_random(&random) % whole] = (uint8_t)interesting[next_random(&random) % sizeof interesting];
		LLVMFuzzerTestOneInput(data, size);
	}
	return 0;
}
#endif
