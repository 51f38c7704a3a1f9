/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The maps: all of Portkeep's state. They are pinned, so the state outlives
 * every process; nothing below is a cache of something kept elsewhere.
 *
 * Hashes are not preallocated: what is not in use costs nothing. Their limits
 * only bound what a runaway can take. The array of reservations is: 10 MB.
 */
#ifndef PORTKEEP_MAPS_H
#define PORTKEEP_MAPS_H

#include "portkeep.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* A word of zeros: too large for the 512-byte stack, so it is copied from here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct word);
} blank SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct word_key);
	__type(value, struct word);
} words SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct filter);
} filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTKEEP_RESERVATIONS);
	__type(key, __u32);
	__type(value, struct reservation);
} reservations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct entries);
} entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PORTKEEP_ALSO_MAX * PORTKEEP_RESERVATIONS);
	__type(key, struct admitted_key);
	__type(value, struct portkeep_also);
} admitted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 17);
	__type(key, __u64);
	__type(value, struct space);
} spaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 17);
	__type(key, __u64);
	__type(value, struct quota);
} quotas SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct account_key);
	__type(value, __u32);
} accounts SEC(".maps");

/* Ports each user of a group may hold, by gid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 12);
	__type(key, __u32);
	__type(value, __u32);
} group_limits SEC(".maps");

/* Users who may acquire privileged ports, by uid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 12);
	__type(key, __u32);
	__type(value, __u32);
} privileged SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct place_key);
	__type(value, struct place);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2 * PORTKEEP_RESERVATIONS);
	__type(key, struct range_key);
	__type(value, __u32);
} ranges SEC(".maps");

/* By process id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct offender);
} offenders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct owner_state);
} owners SEC(".maps");

#define RING_SIZE (256 * 1024)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_SIZE);
} events SEC(".maps");

/*
 * Whether this kernel knows MPTCP, set before loading. Where it does not, the
 * verifier would refuse the helper that asks about it; as a constant it lets
 * the verifier drop that call unseen.
 */
const volatile __u8 mptcp_known SEC(".rodata") = 0;

/* Likewise whether a program may read the kernel's own structures, as process.h does. */
const volatile __u8 places_known SEC(".rodata") = 0;

__inline struct config *the_config(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&config, &zero);
}

__inline struct counters *the_counters(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&counters, &zero);
}

/*
 * The process that causes an event. Events of the administrator's program have
 * no process: older kernels, 6.12 among them, let no program of that type ask about it.
 * Always a constant, so that there the verifier does not even see them.
 */
#define BY_ADMIN 0
#define BY_PROCESS 1

/*
 * Nobody listening costs one load; a full ring loses the event, never the call.
 * Refusals leave half of the ring to what matters more: a lost PENDING makes its caller wait.
 */
__noinline int publish(struct event *e, __u32 by)
{
	struct counters *c = the_counters();

	if (!c || !e)
		return 0;
	if (!c->listeners && !(e->kind == PORTKEEP_EVENT_PENDING && c->agents))
		return 0;
	e->when = bpf_ktime_get_ns();
	if (by == BY_PROCESS) {
		__u64 pid = bpf_get_current_pid_tgid();

		e->pid = pid >> 32;
		e->tid = (__u32)pid;
		e->uid = (__u32)bpf_get_current_uid_gid();
		e->cgroup = bpf_get_current_cgroup_id();
		bpf_get_current_comm(e->comm, sizeof(e->comm));
	}
	if ((e->kind == PORTKEEP_EVENT_REFUSED && bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > RING_SIZE / 2) ||
	    bpf_ringbuf_output(&events, e, sizeof(*e), 0))
		__sync_fetch_and_add(&c->lost, 1);
	return 0;
}

#endif
