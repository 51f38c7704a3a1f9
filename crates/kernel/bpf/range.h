/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Private ephemeral ranges: from a process to the reservation that its bind to port 0
 * draws from. The map `ranges` has an element for each transport of such a reservation.
 * The key is whom the range is for. So a bind needs one look-up for each property of a
 * process (its user, a cgroup that it is in ...), however many ranges there are.
 *
 * An element is entered while its reservation is being claimed. It is removed after the
 * gate of the reservation is shut, and before its entry can be filled again. An element
 * is only a hint: the range is used only if the gate is ACTIVE and the process is in
 * scope (range_fits in ephemeral.h). An element is entered with NOEXIST, and removed by
 * the caller that shut the gate. So an element belongs to one reservation only.
 */
#ifndef PORTKEEP_RANGE_H
#define PORTKEEP_RANGE_H

#include "table.h"

/* Add the next 8 characters of a name to its hash. User space does the same (persistent.rs). */
__inline __u64 range_hash(__u64 hash, __u64 characters)
{
	hash = (hash ^ characters) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

/* The key of a reservation's range. False: for this scope there are no ranges. */
__inline int range_key_of(struct range_key *key, struct reservation *r)
{
	key->netns = r->netns;
	key->kind = r->scope;
	switch (r->scope) {
	case PORTKEEP_SCOPE_PROCESS:
		key->id = r->pid;
		return 1;
	case PORTKEEP_SCOPE_USER:
		key->id = r->uid;
		return 1;
	case PORTKEEP_SCOPE_CGROUP:
		key->id = r->cgroup;
		if (r->flags & PORTKEEP_PERSISTENT) {
			key->kind = PORTKEEP_RANGE_PATH;
			key->level = r->level;
		}
		return 1;
	case PORTKEEP_SCOPE_GROUP:
		key->id = r->gid;
		return 1;
	case PORTKEEP_SCOPE_UNIT:
		key->id = r->cgroup;
		return 1;
	}
	return 0;
}

__inline void range_count(struct counters *c, __u32 kind, __u32 change)
{
	__sync_fetch_and_add(&c->ranges[kind & 7], change);
	__sync_fetch_and_add(&c->ranges[PORTKEEP_RANGE_ALL], change);
}

__alone int range_leave(struct reservation *r, __u32 id)
{
	struct counters *c = the_counters();
	struct range_key key = {};
	__u32 *found;

	if (!r || !c || !range_key_of(&key, r))
		return 0;
	for (int transport = PORTKEEP_TCP; transport <= PORTKEEP_UDP; transport++) {
		key.transport = transport;
		found = bpf_map_lookup_elem(&ranges, &key);
		if (found && READ(*found) == id && !bpf_map_delete_elem(&ranges, &key))
			range_count(c, key.kind, -1);
	}
	return 0;
}

/* EEXIST: the same processes have a range already. Counted before it is entered: with a range, the count is never 0. */
__alone int range_enter(struct reservation *r, __u32 id)
{
	struct counters *c = the_counters();
	struct range_key key = {};
	int error;

	if (!r || !c)
		return ENOMEM;
	if (!range_key_of(&key, r))
		return EINVAL;
	for (int transport = PORTKEEP_TCP; transport <= PORTKEEP_UDP; transport++) {
		if (!(r->transports & transport))
			continue;
		key.transport = transport;
		range_count(c, key.kind, 1);
		error = bpf_map_update_elem(&ranges, &key, &id, BPF_NOEXIST);
		if (error) {
			range_count(c, key.kind, -1);
			range_leave(r, id);
			return error == -EEXIST ? EEXIST : ENOMEM;
		}
	}
	return 0;
}

#endif
