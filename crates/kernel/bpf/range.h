/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Private ephemeral ranges: from a process to the reservation that its bind to
 * port 0 draws from. `ranges` has an element for each transport of such a
 * reservation, by whom it is for, so that a bind needs a look-up for each thing
 * a process is (a user, in a cgroup ...), however many ranges there are.
 *
 * An element is entered while its reservation is being claimed, and removed
 * once its gate is shut and before its entry can be refilled. It is only a
 * hint: what counts is that the gate is open, and that the process is in scope
 * (range_fits in ephemeral.h). Entered with NOEXIST, and removed by the one who
 * shut the gate, an element belongs to its reservation alone.
 */
#ifndef PORTKEEP_RANGE_H
#define PORTKEEP_RANGE_H

#include "table.h"

/* The next 8 characters of a name. User space does the same (persistent.rs). */
__inline __u64 range_hash(__u64 hash, __u64 characters)
{
	hash = (hash ^ characters) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

/* False: such a reservation serves nobody. */
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

/* EEXIST: there is another one for the same processes. Counted before it is entered, so that the count is never 0 too soon. */
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
