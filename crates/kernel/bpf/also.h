/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Others that a reservation admits beside its scope (R11). They are checked only if the scope refuses a process,
 * so they cost nothing if the scope admits it.
 *
 * They are entered before the reservation is in force, and removed after its gate is shut. The memory of a removed
 * element may be reused at once. So a caller checks the gate after this, as it does for every other field.
 */
#ifndef PORTKEEP_ALSO_H
#define PORTKEEP_ALSO_H

#include "table.h"

__inline int is_meant(struct portkeep_also *other)
{
	switch (other->kind) {
	case PORTKEEP_SCOPE_USER:
		return (__u32)bpf_get_current_uid_gid() == other->id;
	case PORTKEEP_SCOPE_GROUP:
		return in_group(other->id);
	case PORTKEEP_SCOPE_UNIT:
		return in_unit((struct place *)other->name);
	}
	return 0;
}

/* Whether the calling process is one of them. */
__alone int is_admitted(struct reservation *r, __u64 token)
{
	struct admitted_key key = { .token = token };

	if (!r)
		return 0;
	key.also = READ(r->also);
	if (!(key.also & PORTKEEP_ALSO_COUNT) || is_kernel_thread())
		return 0;
	for (int n = 0; n < PORTKEEP_ALSO_MAX; n++) {
		struct portkeep_also *other;

		key.n = n;
		other = bpf_map_lookup_elem(&admitted, &key);
		if (!other)
			return 0;
		if (!is_meant(other))
			continue;
		/* If it was changed meanwhile, the element that was compared may belong to another reservation. */
		FENCE();
		return READ(r->also) == key.also;
	}
	return 0;
}

/* Enter those that `also` counts; they are at `from`, in memory that ends at `end`. */
__inline int admit(struct portkeep_also *from, void *end, __u64 token, __u32 also)
{
	struct admitted_key key = { .token = token, .also = also };

	for (int n = 0; n < PORTKEEP_ALSO_MAX && n < (also & PORTKEEP_ALSO_COUNT); n++) {
		struct portkeep_also *other = from + n;

		if ((void *)(other + 1) > end)
			return EINVAL;
		if (other->kind != PORTKEEP_SCOPE_USER && other->kind != PORTKEEP_SCOPE_GROUP &&
		    other->kind != PORTKEEP_SCOPE_UNIT)
			return EINVAL;
		key.n = n;
		if (bpf_map_update_elem(&admitted, &key, other, BPF_NOEXIST))
			return ENOMEM;
	}
	return 0;
}

/* Remove what was entered with this token and `also`. */
__alone int admitted_leave(__u64 token, __u32 also)
{
	struct admitted_key key = { .token = token, .also = also };

	for (int n = 0; n < PORTKEEP_ALSO_MAX; n++) {
		key.n = n;
		if (bpf_map_delete_elem(&admitted, &key))
			break;
	}
	return 0;
}

#endif
