/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Who a process is, beyond its uid: its groups, its systemd unit, its cgroup by
 * name, when it began. Helpers tell none of these, so the kernel's own structures are read.
 * Where their fields are differs between kernels; the loader looks it up in the
 * running kernel's type information (BTF) and writes the offsets into the
 * program. Only fields named below are used. A read that fails counts as "no".
 */
#ifndef PORTKEEP_PLACE_H
#define PORTKEEP_PLACE_H

#include "maps.h"

#define RELOCATED __attribute__((preserve_access_index))

struct kernfs_node {
	const char *name;
} RELOCATED;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} RELOCATED;

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
} RELOCATED;

struct css_set {
	struct cgroup *dfl_cgrp;
} RELOCATED;

typedef struct {
	__u32 val;
} RELOCATED kgid_t;

struct group_info {
	int ngroups;
	kgid_t gid[];
} RELOCATED;

struct cred {
	kgid_t egid;
	struct group_info *group_info;
} RELOCATED;

struct task_struct {
	struct task_struct *group_leader;
	__u64 start_time; /* CLOCK_MONOTONIC, ns; exec does not change it */
	const struct cred *cred;
	struct css_set *cgroups;
} RELOCATED;

/* to = from->field, 0 if it cannot be read. */
#define FETCH(to, from, field) bpf_probe_read_kernel(&(to), sizeof(to), &(from)->field)

__inline __u32 supplementary_gid(struct group_info *groups, __u32 n)
{
	__u32 gid = 0;

	bpf_probe_read_kernel(&gid, sizeof(gid), (void *)&groups->gid + 4 * n);
	return gid;
}

/* The real or the effective group of the process at hand, or one of its supplementary ones. */
__alone int in_group(__u32 wanted)
{
	const struct cred *cred = NULL;
	struct group_info *groups = NULL;
	struct task_struct *task;
	__u32 gid = 0, low = 0, high = 0;

	if (bpf_get_current_uid_gid() >> 32 == wanted)
		return 1;
	if (!places_known)
		return 0;
	task = bpf_get_current_task();
	if (FETCH(cred, task, cred) || FETCH(gid, cred, egid.val))
		return 0;
	if (gid == wanted)
		return 1;
	if (FETCH(groups, cred, group_info) || FETCH(high, groups, ngroups))
		return 0;
	/* They are sorted, and at most 65,536: 17 halvings. */
	for (int i = 0; i < 17 && low < high; i++) {
		__u32 middle = (low + high) / 2;

		gid = supplementary_gid(groups, middle);
		if (gid == wanted)
			return 1;
		if (gid < wanted)
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

/* On the way from the process's cgroup up to the root. */
struct climb {
	struct cgroup *at;
	__u32 level; /* of `at` */
	__u32 id; /* the reservation whose place is compared */
	__u32 top; /* stop here */
	__u32 bottom; /* compare from here up; 0: look for the unit */
	__u32 matches;
	__u64 name[PORTKEEP_PLACE_NAME / 8 + 1]; /* characters; one too many shows that there are too many */
};

__inline int is_slice(const char *name, __u32 length)
{
	struct {
		__u32 front; /* ".sli" */
		__u16 back; /* "ce" */
	} end = {};

	if (length < 8)
		return 0;
	bpf_probe_read_kernel(&end, 6, name + length - 7);
	return end.front == 0x696c732e && end.back == 0x6563;
}

__inline int name_equals(struct climb *c, __u32 level)
{
	struct place_key key = { .id = c->id, .level = level };
	struct place *place = bpf_map_lookup_elem(&places, &key);
	__u64 differs = 0;

	if (!place)
		return 0;
	for (int i = 0; i < PORTKEEP_PLACE_NAME / 8; i++) {
		differs |= place->name[i] ^ c->name[i];
		/* Or the compiler compares with branches, and the verifier follows 2^16 ways through. */
		asm volatile("" : "+r"(differs));
	}
	return !differs;
}

static long climb_step(__u32 i, void *ctx)
{
	struct climb *c = ctx;
	struct cgroup_subsys_state *up = NULL;
	struct kernfs_node *node = NULL;
	const char *name = NULL;
	long length;

	if (c->level <= c->top)
		return 1;
	if (!c->bottom || c->level <= c->bottom) {
		FETCH(node, c->at, kn);
		FETCH(name, node, name);
		__builtin_memset(c->name, 0, sizeof(c->name));
		length = bpf_probe_read_kernel_str(c->name, PORTKEEP_PLACE_NAME + 1, name);
		/* One that was cut is as good as none: declared names are shorter. */
		if (length <= 0 || length > PORTKEEP_PLACE_NAME)
			c->name[0] = 0;
		if (c->bottom) {
			c->matches = name_equals(c, c->level);
			if (!c->matches)
				return 1;
		} else if (!is_slice(name, length)) {
			c->matches = name_equals(c, 0);
		}
	}
	FETCH(up, c->at, self.parent);
	if (FETCH(c->at, up, cgroup))
		c->at = NULL;
	c->level--;
	return 0;
}

/*
 * Whether the process at hand is where the reservation is for.
 *
 * A unit is the topmost cgroup below the one enforced in that is no slice:
 * slices are the service manager's folders, and what is below a unit belongs to
 * whoever runs in it. So a container or a user with cgroups of their own cannot
 * make themselves one called "postgresql.service": theirs are below a unit already.
 */
__alone int in_place(struct reservation *r, __u32 id)
{
	struct config *config = the_config();
	struct climb c = { .id = id };
	struct css_set *set = NULL;
	struct task_struct *task;

	if (!places_known || !r || !config)
		return 0;
	task = bpf_get_current_task();
	if (FETCH(set, task, cgroups) || FETCH(c.at, set, dfl_cgrp) || FETCH(c.level, c.at, level))
		return 0;
	if (r->scope == PORTKEEP_SCOPE_UNIT) {
		c.top = config->enforce_level;
	} else {
		c.bottom = r->level;
		if (!c.bottom || c.level < c.bottom)
			return 0;
	}
	bpf_loop(512, climb_step, &c, 0);
	return c.matches && c.level == c.top;
}

/* Root, or a member of the group the configuration names. */
__inline int is_administrator(void)
{
	struct config *c = the_config();

	if (!(__u32)bpf_get_current_uid_gid())
		return 1;
	return c && c->admin_gid && in_group(c->admin_gid);
}

#endif
