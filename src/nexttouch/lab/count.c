/*
 * A plugin for QEMU that counts the accesses to memory of each CPU, and those that miss its cache by the node on which
 * the memory is. Each CPU has a cache of 1 MiB: lines of 64 bytes, each with one place, which its physical address says.
 * Stores of other CPUs take nothing out of it. Instructions that are fetched, and the walks through page tables, are no
 * accesses. At each mark (marks.py) what has been counted so far is written out, which counts.py reads.
 *
 * No package has a header for plugins of QEMU 7.2, so what is used of version 1 of that interface is declared below.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mark.h"

#define EXPORTED __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct plugin_info {
	const char *target;
	struct {
		int min, cur;
	} version;
};
struct block;
struct instruction;
struct hardware_address;
enum { NO_REGISTERS = 0, LOADS_AND_STORES = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*translated)(plugin_id, struct block *));
size_t qemu_plugin_tb_n_insns(const struct block *block);
struct instruction *qemu_plugin_tb_get_insn(const struct block *block, size_t index);
void qemu_plugin_register_vcpu_mem_cb(struct instruction *instruction,
				      void (*accessed)(unsigned cpu, uint32_t how, uint64_t address, void *unused),
				      int registers, int what, void *unused);
struct hardware_address *qemu_plugin_get_hwaddr(uint32_t how, uint64_t address);
bool qemu_plugin_hwaddr_is_io(const struct hardware_address *address);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct hardware_address *address);

EXPORTED extern int qemu_plugin_version;
int qemu_plugin_version = 1;

enum { LINE_BITS = 6, LINES = 1 << 14, MOST_CPUS = 8, MOST_NODES = 8, LONGEST_NAME = 64 };

/* Each CPU changes its own only. */
static struct cpu {
	uint64_t line[LINES]; /* number of the line in each place, plus one; 0: none */
	uint64_t accesses, misses[MOST_NODES];
	char apart[128]; /* no line of the host's cache is two CPUs' */
} cpus[MOST_CPUS];

static unsigned cpu_count, node_count;
static uint64_t node_size;
static FILE *output;

static pthread_mutex_t naming = PTHREAD_MUTEX_INITIALIZER;
static char name[LONGEST_NAME + 1];
static size_t length;

static void write_counts(void)
{
	fprintf(output, "mark %s\n", name);
	for (unsigned c = 0; c < cpu_count; c++) {
		fprintf(output, "%lu", cpus[c].accesses);
		for (unsigned node = 0; node < node_count; node++)
			fprintf(output, " %lu", cpus[c].misses[node]);
		fputc('\n', output);
	}
	fflush(output);
}

/* A mark spells its name: it reads the page of marks at the place of each letter, and at 0 when it is complete. */
static void spell(unsigned char letter)
{
	pthread_mutex_lock(&naming);
	if (letter && length < LONGEST_NAME) {
		name[length++] = (char)letter;
	} else if (!letter) {
		name[length] = '\0';
		write_counts();
		length = 0;
	}
	pthread_mutex_unlock(&naming);
}

static void access_memory(unsigned index, uint32_t how, uint64_t address, void *unused)
{
	(void)unused;
	if (address - MARK_PAGE < MARK_SIZE) {
		spell((unsigned char)((address - MARK_PAGE) / MARK_STRIDE));
		return;
	}
	struct hardware_address *place = qemu_plugin_get_hwaddr(how, address);
	if (!place || qemu_plugin_hwaddr_is_io(place) || index >= cpu_count)
		return;
	/*
	 * What version 1 calls physical is where the memory of a node begins within all memory, plus where QEMU has put
	 * that, which is the same where nodes have their memory from the command line, in their order; plus the offset.
	 */
	uint64_t physical = qemu_plugin_hwaddr_phys_addr(place), node = physical / (2 * node_size);
	if (node >= node_count || physical - 2 * node * node_size >= node_size)
		return; /* the firmware's */
	struct cpu *cpu = &cpus[index];
	cpu->accesses++;
	uint64_t line = ((physical - node * node_size) >> LINE_BITS) + 1;
	if (cpu->line[line % LINES] == line)
		return;
	cpu->line[line % LINES] = line;
	cpu->misses[node]++;
}

static void count_accesses(plugin_id id, struct block *block)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++)
		qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), access_memory, NO_REGISTERS,
						 LOADS_AND_STORES, NULL);
}

EXPORTED int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int count, char **options)
{
	int descriptor = -1;
	for (int i = 0; i < count; i++) {
		if (sscanf(options[i], "output=%d", &descriptor) == 1 || sscanf(options[i], "cpus=%u", &cpu_count) == 1 ||
		    sscanf(options[i], "nodes=%u", &node_count) == 1 || sscanf(options[i], "memory=%lu", &node_size) == 1)
			continue;
		return -1;
	}
	if (info->version.cur != 1) {
		fprintf(stderr, "the lab counts with QEMU 7.2 to 8.0, whose plugins are of version 1; this one's are of %d\n",
			info->version.cur);
		return -1;
	}
	output = fdopen(descriptor, "w");
	if (!output || !node_size || cpu_count > MOST_CPUS || node_count > MOST_NODES)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, count_accesses);
	return 0;
}
