// SPDX-License-Identifier: GPL-2.0
/*
 * QEMU plugin: how often each block of guest code runs, between calls of one function.
 *
 * Arguments: mark=<address of that function>, phase=<calls of it per phase>, out=<file>. The
 * first call starts counting, the second stops it, and so on. Counts are kept apart by phase, of
 * which there are two. The file gets a line for each block: address, instructions, and how often
 * it ran in either phase.
 *
 * What is used of qemu-plugin.h, which Debian does not package, is declared here.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
		void (*cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
		void (*cb)(unsigned int vcpu, void *data), enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id,
		void (*cb)(qemu_plugin_id_t id, void *data), void *data);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

#define PHASES 2

struct block {
	struct block *next;
	uint64_t addr;
	size_t insns;
	uint64_t count[PHASES];
};

static struct block *blocks;
static uint64_t mark, calls, calls_per_phase = 1;
static const char *out = "/dev/stderr";

static void ran(unsigned int vcpu, void *data)
{
	struct block *block = data;
	uint64_t phase = calls / calls_per_phase;

	if (calls % 2 && phase < PHASES)
		block->count[phase]++;
}

static void marked(unsigned int vcpu, void *data)
{
	calls++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	struct block *block;

	if (qemu_plugin_tb_vaddr(tb) == mark) {
		qemu_plugin_register_vcpu_tb_exec_cb(tb, marked, QEMU_PLUGIN_CB_NO_REGS, NULL);
		return;
	}
	block = calloc(1, sizeof(*block));
	if (!block)
		abort();
	block->addr = qemu_plugin_tb_vaddr(tb);
	block->insns = qemu_plugin_tb_n_insns(tb);
	block->next = blocks;
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void ended(qemu_plugin_id_t id, void *data)
{
	FILE *file = fopen(out, "w");

	if (!file)
		abort();
	for (struct block *block = blocks; block; block = block->next)
		if (block->count[0] || block->count[1])
			fprintf(file, "%lx %zu %lu %lu\n", block->addr, block->insns,
				block->count[0], block->count[1]);
	fclose(file);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc,
			       char **argv)
{
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "mark=", 5))
			mark = strtoull(argv[i] + 5, NULL, 16);
		else if (!strncmp(argv[i], "phase=", 6))
			calls_per_phase = strtoull(argv[i] + 6, NULL, 10);
		else if (!strncmp(argv[i], "out=", 4))
			out = strdup(argv[i] + 4);
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
