/*
 * Which node the frames that this thread allocates come from.
 *
 * The policies fall back to other nodes when theirs are full (MPOL_BIND would call the OOM killer instead).
 */
#include "internal.h"

/* What this thread's policy was last set to: a node, -1 a target set, -2 unknown. */
static _Thread_local int current __attribute__((tls_model("initial-exec"))) = -2;

void forget_node(void)
{
	current = -2;
}

/* Allocate on `node` from now on, or on the pager's target nodes if it is negative. */
void use_node(struct nt_pager *pager, int node)
{
	if (node < 0)
		node = -1;
	if (current == node)
		return;
	current = node;
	struct nt_nodemask mask = {{0}};
	if (node >= 0)
		mask.words[node / 64] = (uint64_t)1 << (node % 64);
	else if (pager->options.nodes_count)
		mask = pager->target;
	else {
		nt_set_mempolicy(NT_MPOL_DEFAULT, NULL);
		return;
	}
	bool several = node < 0 && pager->options.nodes_count > 1;
	nt_set_mempolicy(several ? NT_MPOL_INTERLEAVE : NT_MPOL_PREFERRED, &mask);
}
