/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The identity of a process, beyond its uid: its groups, capabilities, systemd unit
 * and cgroup by name, its network namespace, the time when it began. No helper (kernel
 * function for programs) reports these. So the programs read the kernel's own
 * structures. Their fields are at different offsets in each kernel: the loader finds
 * the offsets in the type information (BTF) of the running kernel and writes them into
 * the program. Only fields named below are used. If a read fails, the answer is "no".
 */
#ifndef PORTKEEP_PROCESS_H
#define PORTKEEP_PROCESS_H

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
	struct cgroup *ancestors[]; /* from the root down to itself */
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

/* 64 bits, the low 32 first. The type depends on the kernel (Linux commit f122a08b197d). */
typedef struct {
	__u64 val;
} RELOCATED kernel_cap_t;

struct user_namespace {
	int level; /* 0: the first one */
} RELOCATED;

struct cred {
	kgid_t egid;
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
	struct group_info *group_info;
} RELOCATED;

struct net {
	__u64 net_cookie;
} RELOCATED;

struct nsproxy {
	struct net *net_ns;
} RELOCATED;

struct task_struct {
	unsigned int flags;
	struct task_struct *group_leader;
	__u64 start_time; /* CLOCK_MONOTONIC, ns; exec does not change it */
	const struct cred *cred;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
} RELOCATED;

struct socket {
	struct file *file;
} RELOCATED;

struct sock {
	struct socket *sk_socket;
} RELOCATED;

struct inet_sock {
	struct ip_mc_socklist *mc_list;
	unsigned long inet_flags; /* since Linux 6.6 ... */
	__u8 bind_address_no_port : 1; /* ... before */
} RELOCATED;
#define INET_FLAGS_BIND_ADDRESS_NO_PORT 18

/* The kernel's structure behind a struct bpf_sock_addr. */
struct bpf_sock_addr_kern {
	struct sock *sk;
} RELOCATED;

#define PF_KTHREAD 0x00200000
#define CAP_NET_BIND_SERVICE 10
#define CAP_NET_ADMIN 12
#define CAP_SYS_ADMIN 21

/* to = from->field; 0 if it cannot be read. The value of FETCH is not 0 then. */
#define FETCH(to, from, field) bpf_probe_read_kernel(&(to), sizeof(to), &(from)->field)

__inline __u32 supplementary_gid(struct group_info *groups, __u32 n)
{
	__u32 gid = 0;

	bpf_probe_read_kernel(&gid, sizeof(gid), (void *)&groups->gid + 4 * n);
	return gid;
}

/*
 * Threads of the kernel itself (NFS clients and servers, for example) have uid 0.
 * But they do not act for an administrator or for a service: they are in no scope.
 */
__inline int is_kernel_thread(void)
{
	struct task_struct *task;
	unsigned int flags = 0;

	if (!places_known)
		return 0;
	task = bpf_get_current_task();
	FETCH(flags, task, flags);
	return (flags & PF_KTHREAD) != 0;
}

/* Whether the calling process has a capability of the set over the machine, not only in a user namespace of its own. */
__alone int has_capability(__u64 set)
{
	const struct cred *cred = NULL;
	struct user_namespace *ns = NULL;
	struct task_struct *task;
	__u64 effective = 0;
	int level = 1;

	if (!places_known)
		return 0;
	task = bpf_get_current_task();
	if (FETCH(cred, task, cred) || FETCH(effective, cred, cap_effective) || FETCH(ns, cred, user_ns) ||
	    FETCH(level, ns, level))
		return 0;
	return !level && (effective & set) != 0;
}

/* Root of a container without capabilities has uid 0, but no other right of root: it does not count as root. */
__inline int is_root(void)
{
	if ((__u32)bpf_get_current_uid_gid())
		return 0;
	return !places_known ||
	       has_capability(1ULL << CAP_NET_BIND_SERVICE | 1ULL << CAP_NET_ADMIN | 1ULL << CAP_SYS_ADMIN);
}

/* The network namespace of the calling process. A socket that it received may be in another one. 0: not known. */
__alone __u64 own_netns(void)
{
	struct nsproxy *proxy = NULL;
	struct net *net = NULL;
	struct task_struct *task;
	__u64 cookie = 0;

	if (!places_known)
		return 0;
	task = bpf_get_current_task();
	if (FETCH(proxy, task, nsproxy) || FETCH(net, proxy, net_ns) || FETCH(cookie, net, net_cookie))
		return 0;
	return cookie;
}

/*
 * Sockets that the kernel made for itself have no file, and no program runs when they close. If the
 * context of a program is a struct bpf_sock, it is in fact a pointer to the kernel's struct sock.
 */
__inline int is_kernel_socket(struct bpf_sock *ctx)
{
	struct socket *socket = NULL;
	struct file *file = NULL;

	if (!places_known || FETCH(socket, (struct sock *)ctx, sk_socket) || !socket || FETCH(file, socket, file))
		return 0;
	return !file;
}

/* Whether a close of the socket waits for others before the port is free (ip_mc_drop_socket in net/ipv4/igmp.c). */
__inline int leaves_multicast(struct bpf_sock *ctx)
{
	struct ip_mc_socklist *list = NULL;

	return places_known && !FETCH(list, (struct inet_sock *)ctx, mc_list) && list;
}

/* Facts about a field in the running kernel, see the enum bpf_core_relo_kind. */
#define FIELD_OFFSET 0
#define FIELD_SIZE 1
#define FIELD_EXISTS 2
#define FIELD_LEFT 4
#define FIELD_RIGHT 5
#define FIELD(field, what) __builtin_preserve_field_info(field, what)

/* Whether the socket has IP_BIND_ADDRESS_NO_PORT: it gets its port when it connects (E5). */
__inline int waits_for_connect(struct bpf_sock_addr *ctx)
{
	struct inet_sock *inet = NULL;
	__u64 flags = 0;

	if (!places_known || FETCH(inet, (struct bpf_sock_addr_kern *)ctx, sk))
		return 0;
	if (FIELD(inet->inet_flags, FIELD_EXISTS))
		return !FETCH(flags, inet, inet_flags) && flags >> INET_FLAGS_BIND_ADDRESS_NO_PORT & 1;
	if (!FIELD(inet->bind_address_no_port, FIELD_EXISTS))
		return 0;
	bpf_probe_read_kernel(&flags, FIELD(inet->bind_address_no_port, FIELD_SIZE),
			      (void *)inet + FIELD(inet->bind_address_no_port, FIELD_OFFSET));
	return flags << FIELD(inet->bind_address_no_port, FIELD_LEFT) >>
	       FIELD(inet->bind_address_no_port, FIELD_RIGHT);
}

/* Whether `wanted` is the real or the effective group of the calling process, or a supplementary one. */
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
	/* The groups are sorted, and there are at most 65,536: 17 halvings suffice. */
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

/* The state of a walk from the process's cgroup up to the root. */
struct climb {
	struct cgroup *at;
	struct place *unit; /* the name to compare that of the process's unit with */
	__u32 level; /* of `at` */
	__u32 top; /* stop here */
	__u32 id; /* without `unit`: the reservation whose path is compared */
	__u32 bottom; /* ... from here up */
	__u32 matches;
	__u32 zero;
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

__inline struct place *place_of(__u32 id, __u32 level)
{
	struct place_key key = { .id = id, .level = level };

	return bpf_map_lookup_elem(&places, &key);
}

__inline int name_equals(struct climb *c, struct place *place)
{
	__u64 differs = 0;

	if (!place)
		return 0;
	for (int i = 0; i < PORTKEEP_PLACE_NAME / 8; i++) {
		differs |= place->name[i] ^ c->name[i];
		/* Without this the compiler compares with branches, and the verifier checks 2^16 paths. */
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
	if (c->unit || c->level <= c->bottom) {
		FETCH(node, c->at, kn);
		FETCH(name, node, name);
		__builtin_memset(c->name, 0, sizeof(c->name));
		length = bpf_probe_read_kernel_str(c->name, PORTKEEP_PLACE_NAME + 1, name);
		/* A name that was cut matches nothing: declared names are shorter. */
		if (length <= 0 || length > PORTKEEP_PLACE_NAME)
			c->name[0] = 0;
		if (!c->unit) {
			c->matches = name_equals(c, place_of(c->id, c->level));
			if (!c->matches)
				return 1;
		} else if (!is_slice(name, length)) {
			c->matches = name_equals(c, c->unit);
		}
	}
	FETCH(up, c->at, self.parent);
	if (FETCH(c->at, up, cgroup))
		c->at = NULL;
	c->level--;
	return 0;
}

__inline int climb_begin(struct climb *c)
{
	struct task_struct *task = bpf_get_current_task();
	struct css_set *set = NULL;

	return !FETCH(set, task, cgroups) && !FETCH(c->at, set, dfl_cgrp) && !FETCH(c->level, c->at, level);
}

/*
 * Whether the calling process is in the unit of this name.
 *
 * A unit is a cgroup: the topmost one that is no slice, below the cgroup in which Portkeep
 * enforces. Slices are the folders of the service manager. The cgroups below a unit belong
 * to the processes of the unit. So a container, or a user with cgroups of their own,
 * cannot make a unit called "postgresql.service": their cgroups are below a unit already.
 */
__alone int in_unit(struct place *unit)
{
	struct config *config = the_config();
	struct climb c = { .unit = unit };

	if (!places_known || !unit || !config || !climb_begin(&c))
		return 0;
	c.top = config->enforce_level;
	bpf_loop(512, climb_step, &c, 0);
	return c.matches && c.level == c.top;
}

/* Whether the calling process is in the cgroup that a persistent reservation is for. */
__alone int in_path(struct reservation *r, __u32 id)
{
	struct climb c = { .id = id };

	if (!places_known || !r || !climb_begin(&c))
		return 0;
	c.bottom = r->level;
	if (!c.bottom || c.level < c.bottom)
		return 0;
	bpf_loop(512, climb_step, &c, 0);
	return c.matches && c.level == c.top;
}

/* Root, or a member of the group that the configuration names. */
__inline int is_administrator(void)
{
	struct config *c = the_config();

	return is_root() || (c && c->admin_gid && in_group(c->admin_gid));
}

/* Whether the calling process may acquire ports below `ip_unprivileged_port_start` of the machine's own namespace. */
__alone int may_have_privileged(void)
{
	struct config *c = the_config();
	__u32 uid = (__u32)bpf_get_current_uid_gid();

	if (is_root() || has_capability(1ULL << CAP_NET_BIND_SERVICE))
		return 1;
	if (!c)
		return 0;
	if (c->privileged_users && bpf_map_lookup_elem(&privileged, &uid))
		return 1;
	for (int i = 0; i < PORTKEEP_PRIVILEGED_GROUPS; i++) {
		__u32 gid = c->privileged_gids[i];

		if (gid && in_group(gid))
			return 1;
	}
	return 0;
}

#endif
