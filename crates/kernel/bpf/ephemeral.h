/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The private ephemeral range of the calling process. The most specific
 * range wins, in the order process, nearest cgroup, unit, user, group (E4).
 */
#ifndef PORTKEEP_EPHEMERAL_H
#define PORTKEEP_EPHEMERAL_H

#include "reservation.h"

struct range_search {
	__u64 netns;
	__u64 token; /* of the range found */
	__u64 path; /* hash of the names of the cgroups down to the one at hand */
	__u64 unit; /* hash of the unit's name, 0: not met yet */
	struct cgroup *own; /* cgroup, if names are to be read */
	__u32 own_level;
	__u32 transport;
	__u32 id; /* of the range found, 0: none */
	__u32 zero;
};

/* Whether there is a range of this kind in force. */
__alone int range_look(struct range_search *s, __u32 kind, __u64 id, __u32 level)
{
	struct range_key key = { .id = id, .kind = kind, .level = level };
	struct reservation *r;
	__u32 *found, entry;
	__u64 token;

	if (!s)
		return 0;
	key.netns = s->netns;
	key.transport = s->transport;
	found = bpf_map_lookup_elem(&ranges, &key);
	if (!found)
		return 0;
	entry = READ(*found);
	r = bpf_map_lookup_elem(&reservations, &entry);
	if (!r)
		return 0;
	token = READ(r->token);
	if (!reservation_alive(r, token))
		return 0;
	s->id = entry;
	s->token = token;
	return 1;
}

/* Whether the range found is for the calling process: its reservation may just have ended or changed. */
__alone int range_fits(struct range_search *s)
{
	struct reservation *r;
	__u32 id;
	__u8 scope;
	int fits;

	if (!s)
		return 0;
	id = s->id;
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!id || !r)
		return 0;
	scope = READ(r->scope);
	fits = READ(r->flags) & PORTKEEP_EPHEMERAL && r->netns == s->netns && r->transports & s->transport &&
	       in_scope(r, id);
	FENCE();
	return fits && reservation_alive(r, s->token) && READ(r->scope) == scope;
}

/* One cgroup on the way down from the root: the last one with a range is the nearest. */
static long range_step(__u32 i, void *ctx)
{
	struct range_search *s = *(struct range_search **)ctx;
	__u64 id = bpf_get_current_ancestor_cgroup_id(i);
	struct counters *k = the_counters();
	struct config *c = the_config();

	if (!id || !k || !c)
		return 1;
	if (s->own && i && i <= s->own_level) {
		__u64 name[PORTKEEP_PLACE_NAME / 8 + 1] = {}, path = s->path, alone = 0;
		struct kernfs_node *node = NULL;
		const char *text = NULL;
		struct cgroup *at = NULL;
		long length;

		bpf_probe_read_kernel(&at, sizeof(at), (void *)&s->own->ancestors + 8 * i);
		FETCH(node, at, kn);
		FETCH(text, node, name);
		length = bpf_probe_read_kernel_str(name, PORTKEEP_PLACE_NAME + 1, text);
		for (int n = 0; n < PORTKEEP_PLACE_NAME / 8; n++) {
			path = range_hash(path, name[n]);
			alone = range_hash(alone, name[n]);
		}
		s->path = path;
		if (!s->unit && i > c->enforce_level && !is_slice(text, length))
			s->unit = alone;
		if (READ(k->ranges[PORTKEEP_RANGE_PATH]))
			range_look(s, PORTKEEP_RANGE_PATH, path, i);
	}
	if (READ(k->ranges[PORTKEEP_SCOPE_CGROUP]))
		range_look(s, PORTKEEP_SCOPE_CGROUP, id, 0);
	return 0;
}

/* Names are read only if some range is for a name. */
__inline void range_names(struct range_search *s, struct counters *k)
{
	struct task_struct *task;
	struct css_set *set = NULL;

	if (!places_known || !(READ(k->ranges[PORTKEEP_RANGE_PATH]) | READ(k->ranges[PORTKEEP_SCOPE_UNIT])))
		return;
	task = bpf_get_current_task();
	if (FETCH(set, task, cgroups) || FETCH(s->own, set, dfl_cgrp) || FETCH(s->own_level, s->own, level))
		s->own = NULL;
}

struct group_search {
	struct range_search *search;
	struct group_info *groups;
};

static long group_step(__u32 i, void *ctx)
{
	struct group_search *g = ctx;
	int found = range_look(g->search, PORTKEEP_SCOPE_GROUP, supplementary_gid(g->groups, i), 0);

	/* The verifier must see that this is 0 or 1. The compiler knows it, and must not remove the check. */
	asm volatile("" : "+r"(found));
	return found != 0;
}

/* Look for the real group, then for the effective one, then for the others in their order. */
__alone int range_of_group(struct range_search *s)
{
	struct group_search g = { .search = s };
	const struct cred *cred = NULL;
	struct task_struct *task;
	__u32 gid = 0, count = 0;

	if (!s)
		return 0;
	if (range_look(s, PORTKEEP_SCOPE_GROUP, bpf_get_current_uid_gid() >> 32, 0))
		return 1;
	if (!places_known)
		return 0;
	task = bpf_get_current_task();
	if (FETCH(cred, task, cred) || FETCH(gid, cred, egid.val))
		return 0;
	if (range_look(s, PORTKEEP_SCOPE_GROUP, gid, 0))
		return 1;
	if (FETCH(g.groups, cred, group_info) || FETCH(count, g.groups, ngroups))
		return 0;
	bpf_loop(count, group_step, &g, 0);
	return s->id != 0;
}

/* The id of the range, 0 if there is none. `s->token` is then its token. */
__alone __u32 range_find(struct range_search *s)
{
	struct counters *k = the_counters();

	if (!s || !k)
		return 0;
	if (READ(k->ranges[PORTKEEP_SCOPE_PROCESS]) &&
	    range_look(s, PORTKEEP_SCOPE_PROCESS, bpf_get_current_pid_tgid() >> 32, 0) && range_fits(s))
		return s->id;
	if (READ(k->ranges[PORTKEEP_SCOPE_CGROUP]) | READ(k->ranges[PORTKEEP_RANGE_PATH]) |
	    READ(k->ranges[PORTKEEP_SCOPE_UNIT])) {
		s->id = 0;
		s->path = s->unit = 0;
		range_names(s, k);
		bpf_loop(512, range_step, &s, 0);
		if (range_fits(s))
			return s->id;
		if (s->unit && range_look(s, PORTKEEP_SCOPE_UNIT, s->unit, 0) && range_fits(s))
			return s->id;
	}
	if (READ(k->ranges[PORTKEEP_SCOPE_USER]) &&
	    range_look(s, PORTKEEP_SCOPE_USER, (__u32)bpf_get_current_uid_gid(), 0) && range_fits(s))
		return s->id;
	s->id = 0;
	if (READ(k->ranges[PORTKEEP_SCOPE_GROUP]) && range_of_group(s) && range_fits(s))
		return s->id;
	return 0;
}

/* The block is used up: reported once a second at most, however many binds there are (E3). */
__noinline int report_exhausted(struct reservation *r, __u32 id)
{
	__u32 second, old;

	if (!r)
		return 0;
	second = (__u32)(bpf_ktime_get_ns() / 1000000000ULL) + 1;
	old = READ(r->exhausted);
	if (old != second && __sync_val_compare_and_swap(&r->exhausted, old, second) == old)
		reservation_event(PORTKEEP_EVENT_EXHAUSTED, id, r, BY_PROCESS);
	return 0;
}

/* Whether any process has a private ephemeral range: most binds to port 0 need only this check (E7). */
__inline int ranges_exist(void)
{
	struct counters *k = the_counters();

	return k && READ(k->ranges[PORTKEEP_RANGE_ALL]);
}

#endif
