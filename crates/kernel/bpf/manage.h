/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * RELEASE and ASSOCIATE, and the agent's mark on its own sockets.
 */
#ifndef PORTKEEP_MANAGE_H
#define PORTKEEP_MANAGE_H

#include "acquire.h"

__inline __u64 read_token(struct bpf_sockopt *ctx)
{
	void *in = ctx->optval;

	if (in + sizeof(__u64) > ctx->optval_end || ctx->optlen != sizeof(__u64))
		return 0;
	return *(__u64 *)in;
}

__inline int release(struct bpf_sockopt *ctx, struct bpf_sock *sk, __u32 transport)
{
	struct config *c = the_config();
	struct owner_state *o;
	struct reservation *r;
	__u64 token;
	__u32 id, slot;
	int error;

	if (ctx->optlen != sizeof(__u64))
		return EINVAL;
	token = read_token(ctx);
	if (!token || !c)
		return ENOENT;
	o = bpf_sk_storage_get(&owners, sk, NULL, 0);
	id = token_id_of(c, o, token);
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || READ(r->token) != token)
		return ENOENT;
	if (!(r->transports & transport) || r->netns != bpf_get_netns_cookie(ctx))
		return EINVAL;
	if (!is_owner(r))
		return EPERM;
	/* If the request was refused, this frees its entry. The answer is ENOENT all the same. */
	slot = r->slot & (PORTKEEP_OWNED - 1);
	error = reservation_end(r, id, token, 0, BY_PROCESS);
	if (o && o->token[slot] == token) {
		o->token[slot] = 0;
		o->hint = slot;
	}
	return error;
}

__inline int associate(struct bpf_sockopt *ctx, struct bpf_sock *sk, __u32 transport)
{
	struct config *c = the_config();
	struct socket_state *st;
	struct reservation *r;
	__u64 token;
	__u32 id;

	if (ctx->optlen != sizeof(__u64))
		return EINVAL;
	token = read_token(ctx);
	if (sk->src_port)
		return EINVAL;
	if (!token || !c)
		return ENOENT;
	id = token_id(c, token);
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || !reservation_alive(r, token))
		return ENOENT;
	if (!(r->transports & transport) || r->netns != bpf_get_netns_cookie(ctx))
		return EINVAL;
	if (!may_associate(r, id, token))
		return EPERM;
	st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!st)
		return ENOMEM;
	st->token = token;
	st->id = id;
	return 0;
}

__inline int agent_mark(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct portkeep_agent *in = ctx->optval;
	struct config *c = the_config();
	struct counters *k = the_counters();
	struct socket_state *st;

	if ((void *)(in + 1) > ctx->optval_end || ctx->optlen != sizeof(*in))
		return EINVAL;
	if (!c || !k)
		return ENOMEM;
	if (in->secret[0] != c->secret[0] || in->secret[1] != c->secret[1])
		return EPERM;
	if (in->zero || in->role < PORTKEEP_AGENT_BEACON || in->role > PORTKEEP_AGENT_READER)
		return EINVAL;
	st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!st)
		return ENOMEM;
	if (st->role)
		return EINVAL;
	st->role = in->role;
	if (st->role == PORTKEEP_AGENT_BEACON)
		__sync_fetch_and_add(&k->agents, 1);
	if (st->role == PORTKEEP_AGENT_READER)
		__sync_fetch_and_add(&k->listeners, 1);
	return 0;
}

#endif
