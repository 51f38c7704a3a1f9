/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The maps hold all of Portkeep's state. A map is a table in the kernel that programs and user space can use. The maps
 * are pinned: each has a file in the BPF file system, so the state outlives every process. No map is only a cache.
 *
 * Hash maps are not preallocated: an unused element needs no memory. Their limits only bound what a runaway program
 * can use up. The array of reservations is preallocated: 10 MB.
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

/* A word of zeros. It does not fit on the stack of a program (512 bytes), so it is copied from here. */
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

/* How many ports each user of a group may hold, by gid. */
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
 * Whether this kernel knows MPTCP. The loader sets it before the programs are loaded. On a
 * kernel without MPTCP the verifier would refuse the helper that asks about it. The
 * verifier knows that this is a constant, so there it never checks the call of that helper.
 */
const volatile __u8 mptcp_known SEC(".rodata") = 0;

/* In the same way: whether a program may read the kernel's own structures, as process.h does. */
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
 * Which process causes an event. An event of the administrator program has no process: older kernels,
 * 6.12 among them, refuse programs of its type that call the helpers for this. `by` is always one of
 * these constants, so in the administrator program the verifier never checks those calls.
 */
#define BY_ADMIN 0
#define BY_PROCESS 1

/*
 * Without a reader this costs one load. If the ring buffer is full, the event is lost, but the call goes on.
 * Refusals leave half of the buffer to more important events: if a PENDING is lost, its caller has to wait.
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
