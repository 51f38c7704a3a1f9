/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The control codes: ACQUIRE, RELEASE and ASSOCIATE, and what getsockopt tells
 * afterwards. The kernel holds the socket's lock while these programs run, so
 * what a socket knows about itself has one writer.
 */
#ifndef PORTKEEP_CONTROL_H
#define PORTKEEP_CONTROL_H

#include "reservation.h"

#define WILDCARD_TRIES 64

/* TCP, UDP, or 0: every other kind of socket is refused. */
__inline __u32 socket_transport(struct bpf_sock *sk)
{
	if (sk->family != AF_INET && sk->family != AF_INET6)
		return 0;
	if (sk->protocol == IPPROTO_TCP && sk->type == SOCK_STREAM)
		return PORTKEEP_TCP;
	if (sk->protocol == IPPROTO_UDP && sk->type == SOCK_DGRAM)
		return PORTKEEP_UDP;
	return 0;
}

/* The whole ACQUIRE, passed from step to step: the stack of a program and all it calls is 512 bytes. */
struct acquisition {
	struct portkeep_acquire ask;
	struct span span;
	__u64 token;
	__u64 cgroup;
	__u64 now;
	__u32 uid;
	__u32 gid;
	__u32 level;
	__u32 pending;
};

__inline int all_zero_beyond(struct bpf_sockopt *ctx)
{
	__u8 *p = ctx->optval;

	for (int i = sizeof(struct portkeep_acquire); i < 256; i++) {
		if ((void *)(p + i + 1) > ctx->optval_end)
			return 1;
		if (p[i])
			return 0;
	}
	return (void *)(p + 256) >= ctx->optval_end;
}

__inline int read_request(struct bpf_sockopt *ctx, struct portkeep_acquire *ask)
{
	/* A pointer with an alignment: copying byte by byte would take a third of the stack. */
	struct portkeep_acquire *in = ctx->optval;
	void *end = ctx->optval_end;

	if ((void *)in + 48 <= end) {
		__builtin_memcpy(ask, in, 48);
		return ctx->optlen == 48 || all_zero_beyond(ctx);
	}
	if ((void *)in + 24 <= end)
		__builtin_memcpy(ask, in, 24);
	else if ((void *)in + 16 <= end)
		__builtin_memcpy(ask, in, 16);
	else if ((void *)in + 8 <= end)
		__builtin_memcpy(ask, in, 8);
	else
		return 0;
	return ctx->optlen == 8 || ctx->optlen == 16 || ctx->optlen == 24;
}

__inline int request_valid(const struct portkeep_acquire *ask)
{
	if (!ask->count || (__u32)ask->start + ask->count > 65536)
		return 0;
	if (ask->flags & ~(PORTKEEP_BOTH | PORTKEEP_STRICT))
		return 0;
	if (ask->scope > PORTKEEP_SCOPE_CGROUP || ask->zero)
		return 0;
	if (ask->cgroup && ask->scope != PORTKEEP_SCOPE_CGROUP)
		return 0;
	if (ask->align & (ask->align - 1))
		return 0;
	return !ask->align || !(ask->start & (ask->align - 1));
}

/* The scope's cgroup must be the caller's own or one above it: nobody hands ports to strangers. */
__alone int find_cgroup(struct acquisition *a)
{
	__u64 own = bpf_get_current_cgroup_id();

	if (!a)
		return EINVAL;
	a->cgroup = own;
	a->level = 0;
	if (a->ask.scope != PORTKEEP_SCOPE_CGROUP)
		return 0;
	if (a->ask.cgroup)
		a->cgroup = a->ask.cgroup;
	for (int level = 0; level < 64; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);

		if (!id)
			break;
		if (id == a->cgroup) {
			a->level = level;
			return 0;
		}
	}
	return EINVAL;
}

struct wildcard {
	struct search search;
	struct acquisition *a; /* `span.result` is the outcome: Linux 6.1 has no stack left for another */
	struct space *space;
};

static long wildcard_step(__u32 i, void *ctx)
{
	struct wildcard *w = ctx;
	struct span *span = &w->a->span;
	struct config *c = the_config();
	__u32 which = w->search.transports - 1, start;

	span->result = ENOSPC;
	if (which > 2 || !c)
		return 1;
	start = search_run(&w->search, c->pool_first, c->pool_last, w->space->cursor[which]);
	if (!start)
		return 1;
	w->space->cursor[which] = start + w->search.count;
	span->first = start;
	span->last = start + w->search.count - 1;
	/* Lost the block to another CPU between the search and the claim: once more. */
	return span_claim(span) != EADDRINUSE;
}

/* Choose and claim a block of the pool. */
__noinline int claim_wildcard(struct acquisition *a, struct space *sp)
{
	struct wildcard w = { .a = a, .space = sp };
	struct config *c = the_config();

	if (!a || !sp || !c)
		return ENOMEM;
	if (!c->pool_last)
		return ENOSPC;
	w.search.netns = a->span.netns;
	w.search.transports = a->span.transports;
	w.search.count = a->ask.count;
	w.search.align = a->ask.align ? a->ask.align : 1;
	search_prepare(&w.search);
	if (!wildcard_step(0, &w))
		bpf_loop(WILDCARD_TRIES, wildcard_step, &w, 0);
	return a->span.result == EADDRINUSE ? ENOSPC : a->span.result;
}

__noinline int claim_specific(struct acquisition *a)
{
	struct config *c = the_config();
	struct counters *k = the_counters();
	__u32 first, last;

	if (!a || !c || !k)
		return ENOMEM;
	first = a->ask.start;
	last = first + a->ask.count - 1;
	/* Pool ports are vacant unless claimed. Elsewhere the agent has to look, and without it nobody can. */
	if (!c->pool_last || first < c->pool_first || last > c->pool_last) {
		if (!k->agents)
			return ENETDOWN;
		a->pending = 1;
	}
	a->span.first = first;
	a->span.last = last;
	return span_claim(&a->span);
}

struct slot_search {
	struct owner_state *owner;
	struct config *config;
	__u32 slot;
};

static long slot_step(__u32 i, void *ctx)
{
	struct slot_search *s = ctx;
	struct owner_state *o = s->owner;
	struct config *c = s->config;
	__u32 slot = (o->hint + i) & (PORTKEEP_OWNED - 1);
	__u64 token = o->token[slot];

	if (token) {
		__u32 id = token_id(c, token);
		struct reservation *r = bpf_map_lookup_elem(&reservations, &id);

		if (r && r->token == token && (r->gate || token == o->last))
			return 0;
		if (r && r->token == token)
			reservation_end(r, id, token, 0, BY_PROCESS);
	}
	s->slot = slot;
	return 1;
}

/* A place in the socket's list, PORTKEEP_OWNED if it is full. */
__noinline __u32 find_slot(struct owner_state *o)
{
	struct slot_search s = { .owner = o, .slot = PORTKEEP_OWNED };

	if (!o)
		return PORTKEEP_OWNED;
	s.config = the_config();
	if (!s.config)
		return PORTKEEP_OWNED;
	if (!o->token[o->hint & (PORTKEEP_OWNED - 1)])
		return o->hint & (PORTKEEP_OWNED - 1);
	bpf_loop(PORTKEEP_OWNED, slot_step, &s, 0);
	return s.slot;
}

/* The entry is ours alone until `gate` is set; with that the reservation is in force. */
__noinline int enter_reservation(struct acquisition *a, struct reservation *r, __u32 slot, __u32 by)
{
	if (!a || !r)
		return ENOMEM;
	r->netns = a->span.netns;
	r->cgroup = a->cgroup;
	r->since = a->now;
	r->pid = by == BY_PROCESS ? bpf_get_current_pid_tgid() >> 32 : 0;
	r->uid = a->uid;
	r->gid = a->gid;
	r->start = a->span.first;
	r->count = a->ask.count;
	r->transports = a->span.transports;
	r->scope = a->ask.scope;
	r->flags = a->ask.flags;
	r->level = a->level;
	r->next = 0;
	r->slot = slot;
	r->error = 0;
	if (by == BY_PROCESS)
		bpf_get_current_comm(r->comm, sizeof(r->comm));
	else
		__builtin_memset(r->comm, 0, sizeof(r->comm));
	__builtin_memcpy(r->label, a->ask.label, sizeof(r->label));
	r->token = a->token;
	__sync_lock_test_and_set(&r->gate, a->pending ? ~a->token : a->token);
	return 0;
}

__noinline int announce(struct acquisition *a)
{
	struct reservation *r;
	__u32 id;

	if (!a)
		return 0;
	id = a->span.id;
	r = bpf_map_lookup_elem(&reservations, &id);
	if (r)
		reservation_event(a->pending ? PORTKEEP_EVENT_PENDING : PORTKEEP_EVENT_GRANTED, id, r, BY_PROCESS);
	return 0;
}

/* The token of the entry's next reservation. 0 is no token, and its complement would pass for "ended": of 2^64 each comes up once. */
__inline __u64 token_next(const struct config *c, struct reservation *r, __u32 id)
{
	__u64 token = 0;

	for (int i = 0; i < 3; i++) {
		token = token_encrypt(c, ++r->generation << 16 | id);
		if (token + 1 > 1)
			break;
	}
	return token;
}

__inline int acquire(struct bpf_sockopt *ctx, struct bpf_sock *sk, __u32 transport)
{
	struct config *c = the_config();
	struct counters *k = the_counters();
	struct acquisition a = {};
	struct owner_state *o;
	struct space *sp;
	struct reservation *r;
	__u32 payer, ports, slot, id;
	int error;

	if (!c || !k)
		return ENOMEM;
	if (!read_request(ctx, &a.ask) || !request_valid(&a.ask))
		return EINVAL;
	error = find_cgroup(&a);
	if (error)
		return error;
	a.span.netns = bpf_get_netns_cookie(ctx);
	a.span.transports = a.ask.flags & PORTKEEP_BOTH ? PORTKEEP_TCP | PORTKEEP_UDP : transport;

	o = bpf_sk_storage_get(&owners, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	payer = account(a.span.netns);
	sp = space_of(a.span.netns, payer);
	if (!o)
		return ENOMEM;
	if (!sp)
		return no_room(payer);
	slot = find_slot(o);
	if (slot >= PORTKEEP_OWNED)
		return EDQUOT;
	a.uid = (__u32)bpf_get_current_uid_gid();
	ports = transports_of(a.span.transports, a.ask.count);
	error = quota_charge(payer, ports);
	if (error)
		return error;

	/* From here on whatever fails gives back what was taken. */
	a.span.id = id = entry_take();
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!id || !r) {
		quota_return(payer, ports);
		return ENOMEM;
	}
	r->payer = payer;
	a.now = bpf_ktime_get_ns();
	sp->last = a.now;
	a.token = token_next(c, r, id);
	error = a.ask.start ? claim_specific(&a) : claim_wildcard(&a, sp);
	if (error) {
		entry_free(id);
		quota_return(payer, ports);
		return error;
	}
	__sync_fetch_and_add(&k->ports, ports);
	__sync_fetch_and_add(&k->reservations, 1);
	enter_reservation(&a, r, slot, BY_PROCESS);
	o->token[slot & (PORTKEEP_OWNED - 1)] = a.token;
	o->hint = (slot + 1) & (PORTKEEP_OWNED - 1);
	o->last = a.token;
	o->last_id = a.span.id;
	if (k->listeners || a.pending)
		announce(&a);
	return a.pending ? EINPROGRESS : 0;
}

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
	if (!r || r->token != token || !r->gate)
		return ENOENT;
	if (!(r->transports & transport) || r->netns != bpf_get_netns_cookie(ctx))
		return EINVAL;
	if (!is_owner(r))
		return EPERM;
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
	if (!may_associate(r, id))
		return EPERM;
	st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!st)
		return ENOMEM;
	st->token = token;
	st->id = id;
	return 0;
}

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

/* ---- what getsockopt tells ------------------------------------------------ */

/* Stores to neighbouring context fields must stay two 32-bit stores: the verifier refuses one of 64. */
#define ANSWER(ctx, size)                                 \
	do {                                              \
		*(volatile __s32 *)&(ctx)->optlen = size; \
		*(volatile __s32 *)&(ctx)->retval = 0;    \
	} while (0)

__inline int tell_version(struct bpf_sockopt *ctx)
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

/* The reason is written last: without one the verdict has not been given yet. It is read once, as all that is told must agree. */
__inline __u8 state_of(struct reservation *r, __u64 gate, __u16 error)
{
	if (gate && gate == r->token)
		return PORTKEEP_ACTIVE;
	return gate || !error ? PORTKEEP_PENDING : PORTKEEP_REFUSED;
}

__inline int tell_granted(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct portkeep_grant *out = ctx->optval;
	struct owner_state *o = bpf_sk_storage_get(&owners, sk, NULL, 0);
	struct config *c = the_config();
	struct reservation *r;
	__u64 gate;
	__u32 id;
	__u16 error;

	if ((void *)(out + 1) > ctx->optval_end)
		return EINVAL;
	if (!o || !o->last || !c)
		return ENOENT;
	id = o->last_id;
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || r->token != o->last)
		return ENOENT;
	gate = *(volatile __u64 *)&r->gate;
	error = *(volatile __u16 *)&r->error;
	out->token = r->token;
	out->start = r->start;
	out->count = r->count;
	out->transports = r->transports;
	out->state = state_of(r, gate, error);
	out->error = error;
	/* The bad news is told once; with it goes the last trace of the request. */
	if (!gate && error) {
		reservation_end(r, id, o->last, 0, BY_PROCESS);
		o->last = 0;
	}
	ANSWER(ctx, sizeof(*out));
	return 0;
}

struct next_search {
	__u64 netns;
	__u32 transport;
	__u32 from;
	__u32 id;
};

/* One candidate a step: a head may be that of a block just being entered or ended, then it is the next one's turn. */
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
	if (r && r->gate && r->start == (from & ~63) + n) {
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

/* What ended otherwise than through this socket has left its token over, and does not count. */
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
		if (!w || !(w->reserved & BIT(st->select.port)))
			return 0;
		s.id = word_owner(w, st->select.port);
		r = bpf_map_lookup_elem(&reservations, &s.id);
		return r && reservation_contains(r, st->select.port) ? s.id : 0;
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
		s->stop += __builtin_popcountll(word_in_use(w) & span_mask(s, base));
	w = s->transports & PORTKEEP_UDP ? word_of(s->netns, PORTKEEP_UDP, base) : NULL;
	if (w)
		s->stop += __builtin_popcountll(word_in_use(w) & span_mask(s, base));
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

__inline int tell_state(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct portkeep_state *out = ctx->optval;
	struct socket_state *st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	struct owner_state *o = bpf_sk_storage_get(&owners, sk, NULL, 0);
	struct reservation *r;
	__u64 netns, gate, token;
	__u32 id;
	__u16 error;

	if ((void *)(out + 1) > ctx->optval_end)
		return EINVAL;
	if (!st || !st->select.by)
		return EINVAL;
	netns = bpf_get_netns_cookie(ctx);
	id = selected(st, o, netns);
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || !r->token || r->netns != netns)
		return ENOENT;
	token = r->token;
	gate = *(volatile __u64 *)&r->gate;
	error = *(volatile __u16 *)&r->error;
	/* That of a persistent one is no secret: who may consume it is asked when it is. */
	out->token = r->flags & PORTKEEP_PERSISTENT || in_scope(r, id) ? r->token : 0;
	out->netns = r->netns;
	out->cgroup = r->cgroup;
	out->since = r->since;
	out->pid = r->pid;
	out->uid = r->uid;
	out->start = r->start;
	out->count = r->count;
	out->transports = r->transports;
	out->state = state_of(r, gate, error);
	out->scope = r->scope;
	out->flags = r->flags;
	out->bound = bound_ports(r);
	out->error = error;
	out->zero = 0;
	__builtin_memcpy(out->comm, r->comm, sizeof(out->comm));
	__builtin_memcpy(out->label, r->label, sizeof(out->label));
	out->gid = r->gid;
	out->zero2 = 0;
	/* Ended and replaced while we read. */
	if (*(volatile __u64 *)&r->token != token)
		return ENOENT;
	ANSWER(ctx, sizeof(*out));
	return 0;
}

#endif
