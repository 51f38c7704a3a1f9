/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Close: the port is given up, and the reservations that the socket owned end.
 */
#ifndef PORTKEEP_CLOSE_H
#define PORTKEEP_CLOSE_H

#include "connect.h"

static long close_step(__u32 i, void *ctx)
{
	struct slot_search *s = ctx;
	__u64 token = s->owner->token[i & (PORTKEEP_OWNED - 1)];
	__u32 id;

	if (token) {
		id = token_id_of(s->config, s->owner, token);
		reservation_end(bpf_map_lookup_elem(&reservations, &id), id, token, 0, BY_PROCESS);
	}
	return 0;
}

/*
 * A connection that was accepted on a reserved port must not keep the next holder
 * of the port from binding it. With SO_REUSEADDR it does not, and its listener
 * was given that option. So the option stays on, even after the end of the
 * reservation. A program that switches it off gets success, but the option stays.
 */
__inline int keeps_reuseaddr(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	__u32 *on = ctx->optval;
	__u32 port = sk->src_port;
	struct socket_state *st;

	if ((sk->protocol != IPPROTO_TCP && sk->protocol != IPPROTO_MPTCP) || !port)
		return 0;
	if ((void *)(on + 1) > ctx->optval_end || *on)
		return 0;
	st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	return (st && st->consumer) || reserved_word(ctx, PORTKEEP_TCP, port);
}

/* The last descriptor is closed, by a close call or by the end of its process. */
__inline int on_release(struct bpf_sock *ctx)
{
	struct socket_state *st = bpf_sk_storage_get(&sockets, ctx, NULL, 0);
	struct owner_state *o = bpf_sk_storage_get(&owners, ctx, NULL, 0);
	struct counters *k = the_counters();

	if (st) {
		__u64 netns = bpf_get_netns_cookie(ctx);

		undraw(st, netns, st->transport);
		if (st->bound_port && in_pool(st->bound_port) && leaves_multicast(ctx)) {
			struct word *w = word_of(netns, st->transport, st->bound_port);

			if (w)
				expiring_set(&w->closing, st->bound_port, CLOSING_SHIFT);
		}
		use_less(st, netns, PORTKEEP_HELD_OPEN);
		if (st->role == PORTKEEP_AGENT_BEACON && k)
			__sync_fetch_and_sub(&k->agents, 1);
		if (st->role == PORTKEEP_AGENT_READER && k)
			__sync_fetch_and_sub(&k->listeners, 1);
	}
	if (o) {
		struct slot_search s = { .owner = o, .config = the_config() };

		if (s.config)
			bpf_loop(PORTKEEP_OWNED, close_step, &s, 0);
	}
	return PASS;
}

#endif
