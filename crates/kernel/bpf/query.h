/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Queries: what getsockopt reports. SELECT says which reservation is meant.
 */
#ifndef PORTKEEP_QUERY_H
#define PORTKEEP_QUERY_H

#include "reservation.h"

__inline int select(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct portkeep_select *in = ctx->optval;
	struct socket_state *st;

	if ((void *)(in + 1) > ctx->optval_end || ctx->optlen != sizeof(*in))
		return EINVAL;
	if (in->by < PORTKEEP_BY_TOKEN || in->by > PORTKEEP_BY_ASSOCIATED)
		return EINVAL;
	if (in->zero[0] | in->zero[1] | in->zero[2])
		return EINVAL;
	if ((in->by == PORTKEEP_BY_PORT || in->by == PORTKEEP_BY_NEXT) &&
	    in->transport != PORTKEEP_TCP && in->transport != PORTKEEP_UDP)
		return EINVAL;
	st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!st)
		return ENOMEM;
	st->select = *in;
	return 0;
}

/* These must stay two 32-bit stores: the verifier refuses one 64-bit store to two fields of the context. */
#define ANSWER(ctx, size)                                 \
	do {                                              \
		*(volatile __s32 *)&(ctx)->optlen = size; \
		*(volatile __s32 *)&(ctx)->retval = 0;    \
	} while (0)

__inline int report_version(struct bpf_sockopt *ctx)
{
	struct portkeep_version *out = ctx->optval;
	struct config *c = the_config();
	struct counters *k = the_counters();

	if (!c || !k)
		return ENOPROTOOPT;
	if ((void *)(out + 1) > ctx->optval_end)
		return EINVAL;
	out->abi = c->abi;
	out->agent = k->agents != 0;
	out->pool_first = c->pool_first;
	out->pool_last = c->pool_last;
	out->reservations = k->reservations;
	out->ports = k->ports;
	out->since = c->since;
	ANSWER(ctx, sizeof(*out));
	return 0;
}

/* The state of a reservation, read once, so that all that is reported agrees. */
struct standing {
	__u8 state; /* PORTKEEP_PENDING ... */
	__u16 error;
};

__inline void standing_of(struct reservation *r, __u64 token, struct standing *s)
{
	__u64 gate = READ(r->gate);

	s->error = 0;
	s->state = PORTKEEP_PENDING;
	if (gate == token) {
		s->state = PORTKEEP_ACTIVE;
	} else if (gate == gate_of(token, PORTKEEP_GATE_CONTESTED)) {
		s->state = PORTKEEP_REFUSED;
		s->error = EADDRINUSE;
	} else if (!gate && is_refused(r, token)) {
		s->state = PORTKEEP_REFUSED;
		s->error = READ(r->error);
	}
}

__inline int report_granted(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct portkeep_grant *out = ctx->optval;
	struct owner_state *o = bpf_sk_storage_get(&owners, sk, NULL, 0);
	struct config *c = the_config();
	struct standing now;
	struct reservation *r;
	__u64 token;
	__u32 id;

	if ((void *)(out + 1) > ctx->optval_end)
		return EINVAL;
	if (!o || !o->last || !c)
		return ENOENT;
	id = o->last_id;
	token = o->last;
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || READ(r->token) != token)
		return ENOENT;
	standing_of(r, token, &now);
	out->token = token;
	out->start = r->start;
	out->count = r->count;
	out->transports = r->transports;
	out->state = now.state;
	out->error = now.error;
	/* The reservation may have ended, and another may have taken its entry, while it was read. */
	FENCE();
	if (READ(r->token) != token)
		return ENOENT;
	/* A refusal is reported once. Then the entry of the request is freed. */
	if (now.state == PORTKEEP_REFUSED) {
		reservation_end(r, id, token, 0, BY_PROCESS);
		o->last = 0;
	}
	ANSWER(ctx, sizeof(*out));
	return 0;
}

/* Neither ended nor still being claimed. */
__inline int is_entered(struct reservation *r)
{
	__u64 gate = READ(r->gate);

	return gate && (gate ^ READ(r->token)) < PORTKEEP_GATE_CLAIMING;
}

struct next_search {
	__u64 netns;
	__u32 transport;
	__u32 from;
	__u32 id;
};

/* One candidate a step. If its block is just being entered or ended, the next step takes the next candidate. */
static long next_step(__u32 i, void *ctx)
{
	struct next_search *s = ctx;
	__u32 from = s->from, id, n;
	struct reservation *r;
	struct word *w;
	__u64 heads;

	if (from > 65535)
		return 1;
	w = word_of(s->netns, s->transport, from);
	heads = w ? w->heads & bits(from & 63, 63) : 0;
	if (!heads) {
		s->from = (from | 63) + 1;
		return 0;
	}
	n = lowest(heads);
	id = w->owner[n];
	r = bpf_map_lookup_elem(&reservations, &id);
	if (r && is_entered(r) && READ(r->start) == (from & ~63) + n) {
		s->id = id;
		return 1;
	}
	s->from = (from & ~63) + n + 1;
	return 0;
}

struct index_search {
	struct owner_state *owner;
	struct config *config;
	__u32 left;
	__u32 id;
};

/* The list may still have tokens of reservations that ended in another way. They do not count. */
static long index_step(__u32 i, void *ctx)
{
	struct index_search *s = ctx;
	struct reservation *r;
	__u64 token = s->owner->token[i & (PORTKEEP_OWNED - 1)];
	__u32 id;

	if (!token)
		return 0;
	id = token_id(s->config, token);
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || r->token != token)
		return 0;
	if (s->left--)
		return 0;
	s->id = id;
	return 1;
}

/* The id of the reservation a SELECT means, 0 if there is none. */
__noinline __u32 selected(struct socket_state *st, struct owner_state *o, __u64 netns)
{
	struct config *c = the_config();
	struct next_search s = { .netns = netns };
	struct reservation *r;
	struct word *w;

	if (!st || !c)
		return 0;
	switch (st->select.by) {
	case PORTKEEP_BY_TOKEN:
		s.id = token_id(c, st->select.token);
		r = bpf_map_lookup_elem(&reservations, &s.id);
		return r && r->token == st->select.token ? s.id : 0;
	case PORTKEEP_BY_PORT:
		w = word_of(netns, st->select.transport, st->select.port);
		if (!w || !(READ(w->reserved) & BIT(st->select.port)))
			return 0;
		s.id = word_owner(w, st->select.port);
		r = bpf_map_lookup_elem(&reservations, &s.id);
		return r && is_entered(r) && reservation_contains(r, st->select.port) ? s.id : 0;
	case PORTKEEP_BY_NEXT:
		s.transport = st->select.transport;
		s.from = st->select.port;
		bpf_loop(2048, next_step, &s, 0);
		return s.id;
	case PORTKEEP_BY_INDEX:
		if (!o)
			return 0;
		struct index_search n = { .owner = o, .config = c, .left = st->select.port };

		bpf_loop(PORTKEEP_OWNED, index_step, &n, 0);
		return n.id;
	case PORTKEEP_BY_ASSOCIATED:
		r = bpf_map_lookup_elem(&reservations, &st->id);
		return r && st->token && r->token == st->token ? st->id : 0;
	}
	return 0;
}

static long bound_step(__u32 i, void *ctx)
{
	struct span *s = ctx;
	__u32 base = ((s->first >> 6) + i) << 6;
	struct word *w;

	if (base > s->last)
		return 1;
	w = s->transports & PORTKEEP_TCP ? word_of(s->netns, PORTKEEP_TCP, base) : NULL;
	if (w)
		s->stop += __builtin_popcountll((word_in_use(w) | READ(w->aside)) & span_mask(s, base));
	w = s->transports & PORTKEEP_UDP ? word_of(s->netns, PORTKEEP_UDP, base) : NULL;
	if (w)
		s->stop += __builtin_popcountll((word_in_use(w) | READ(w->aside)) & span_mask(s, base));
	return 0;
}

__noinline __u32 bound_ports(struct reservation *r)
{
	struct span s = {};

	if (!r)
		return 0;
	s.netns = r->netns;
	s.transports = r->transports;
	s.first = r->start;
	s.last = (__u32)r->start + r->count - 1;
	bpf_loop(1024, bound_step, &s, 0);
	return s.stop;
}

/* After the state, write the others that the reservation admits. Returns how many there was room for. */
__noinline __u32 report_also(struct bpf_sockopt *ctx, __u64 token, __u32 also)
{
	struct portkeep_also *out = ctx->optval + sizeof(struct portkeep_state);
	struct admitted_key key = { .token = token, .also = also };

	for (int n = 0; n < PORTKEEP_ALSO_MAX; n++) {
		struct portkeep_also *other;

		key.n = n;
		other = bpf_map_lookup_elem(&admitted, &key);
		if (!other || (void *)(out + n + 1) > ctx->optval_end)
			return n;
		__builtin_memcpy(out + n, other, sizeof(*other));
	}
	return PORTKEEP_ALSO_MAX;
}

__inline int report_state(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct portkeep_state *out = ctx->optval;
	struct socket_state *st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	struct owner_state *o = bpf_sk_storage_get(&owners, sk, NULL, 0);
	struct standing now;
	struct reservation *r;
	__u64 netns, token;
	__u32 id, also, written;

	if ((void *)(out + 1) > ctx->optval_end)
		return EINVAL;
	if (!st || !st->select.by)
		return EINVAL;
	netns = bpf_get_netns_cookie(ctx);
	id = selected(st, o, netns);
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r)
		return ENOENT;
	token = READ(r->token);
	if (!token || r->netns != netns)
		return ENOENT;
	standing_of(r, token, &now);
	also = READ(r->also);
	/* The token of a persistent reservation is no secret: the right to use it is checked at each use. */
	out->token = r->flags & PORTKEEP_PERSISTENT || may_bind(r, id, token) ? token : 0;
	out->netns = r->netns;
	out->cgroup = r->flags & PORTKEEP_PERSISTENT ? 0 : r->cgroup;
	out->since = r->since;
	out->pid = r->pid;
	out->uid = r->uid;
	out->start = r->start;
	out->count = r->count;
	out->transports = r->transports;
	out->state = now.state;
	out->scope = r->scope;
	out->flags = r->flags;
	out->bound = bound_ports(r);
	out->error = now.error;
	out->also = also & PORTKEEP_ALSO_COUNT;
	__builtin_memcpy(out->comm, r->comm, sizeof(out->comm));
	__builtin_memcpy(out->label, r->label, sizeof(out->label));
	out->gid = r->gid;
	out->zero2 = 0;
	written = also ? report_also(ctx, token, also) : 0;
	/* The reservation may have ended, and another may have taken its entry, while it was read. */
	FENCE();
	if (READ(r->token) != token)
		return ENOENT;
	if (READ(r->also) != also)
		written = 0;
	ANSWER(ctx, sizeof(*out) + written * sizeof(struct portkeep_also));
	return 0;
}

#endif
