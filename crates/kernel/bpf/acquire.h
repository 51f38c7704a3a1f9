/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ACQUIRE: from a request to a reservation in force, or to one that waits
 * for the agent. The kernel holds the socket's lock while this runs, so
 * the state that is kept with a socket has one writer at a time.
 */
#ifndef PORTKEEP_ACQUIRE_H
#define PORTKEEP_ACQUIRE_H

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

/* The whole ACQUIRE, passed from step to step: a program and all functions that it calls share 512 bytes of stack. */
struct acquisition {
	struct portkeep_acquire ask;
	struct span span;
	__u64 token;
	__u64 cgroup;
	__u64 now;
	__u32 uid;
	__u32 gid;
	__u32 level;
	__u32 pending; /* the agent has to look before it is in force */
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
	/* A pointer to a type with an alignment: a copy byte by byte would need a third of the stack. */
	struct portkeep_acquire *in = ctx->optval;
	void *end = ctx->optval_end;

	if ((void *)in + 48 <= end) {
		__builtin_memcpy(ask, in, 48);
		if (ask->also)
			return ctx->optlen == 48 + ask->also * sizeof(struct portkeep_also);
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
	return !ask->also && (ctx->optlen == 8 || ctx->optlen == 16 || ctx->optlen == 24);
}

__inline int request_valid(const struct portkeep_acquire *ask)
{
	if (!ask->count || (__u32)ask->start + ask->count > 65536)
		return 0;
	if (ask->flags & ~(PORTKEEP_BOTH | PORTKEEP_STRICT | PORTKEEP_EPHEMERAL))
		return 0;
	/* A strict reservation requires association. A private ephemeral range is for sockets without association. */
	if (ask->flags & PORTKEEP_STRICT && ask->flags & PORTKEEP_EPHEMERAL)
		return 0;
	if (ask->scope > PORTKEEP_SCOPE_CGROUP || ask->also > PORTKEEP_ALSO_MAX || ask->zero)
		return 0;
	if (ask->cgroup && ask->scope != PORTKEEP_SCOPE_CGROUP)
		return 0;
	if (ask->align & (ask->align - 1))
		return 0;
	return !ask->align || !(ask->start & (ask->align - 1));
}

/* The scope's cgroup must be the caller's own or one above it: the caller is never outside its own scope. */
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

/* The block is claimed: make it ACTIVE, or PENDING for the agent. False: a bind came first, and the ports are freed. */
__inline int claim_holds(struct acquisition *a, struct reservation *r)
{
	if (gate_step(r, a->token, PORTKEEP_GATE_CLAIMING, a->pending ? PORTKEEP_GATE_PENDING : PORTKEEP_GATE_ACTIVE))
		return 1;
	/* Before others can claim the ports again: a bind that still reads this entry finds nothing in force. */
	__sync_lock_test_and_set(&r->gate, gate_of(a->token, PORTKEEP_GATE_CLAIMING));
	span_free(&a->span);
	a->span.result = EADDRINUSE;
	return 0;
}

/* Claim one block for this entry. Its start is written first, so that a bind that finds a claimed port can check it. */
__alone int claim_block(struct acquisition *a)
{
	struct reservation *r;
	__u32 id;

	if (!a)
		return ENOMEM;
	id = a->span.id;
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r)
		return ENOMEM;
	WRITE(r->start, a->span.first);
	if (!span_claim(&a->span))
		claim_holds(a, r);
	return a->span.result;
}

struct wildcard {
	struct search search;
	struct acquisition *a; /* `span.result` is the outcome: Linux 6.1 has no stack left for another */
	struct space *space;
};

/* Search with two preferences, then with one, then with none: ports for automatic choices come last. */
__inline __u32 search_preferring(struct wildcard *w, struct config *c, __u32 cursor)
{
	__u32 start;

	w->search.fresh = 1;
	w->search.avoid_first = w->space->avoid_first;
	w->search.avoid_last = w->space->avoid_last;
	start = search_run(&w->search, c->pool_first, c->pool_last, cursor);
	if (start)
		return start;
	w->search.fresh = 0;
	start = search_run(&w->search, c->pool_first, c->pool_last, cursor);
	if (start || !w->search.avoid_last)
		return start;
	w->search.avoid_first = w->search.avoid_last = 0;
	return search_run(&w->search, c->pool_first, c->pool_last, cursor);
}

/* Mostly the ports at the cursor are free. Then the search is not needed: it would find the same ports. */
__inline int claim_at_cursor(struct wildcard *w, struct config *c, __u32 which)
{
	struct span *span = &w->a->span;
	__u32 start = (w->space->cursor[which] + w->search.align - 1) & ~(w->search.align - 1);
	__u32 last = start + w->search.count - 1;

	if (start < c->pool_first || last > c->pool_last)
		return 0;
	if (start <= w->space->avoid_last && last >= w->space->avoid_first)
		return 0;
	span->first = start;
	span->last = last;
	span->fresh = 1;
	claim_block(w->a);
	span->fresh = 0;
	if (span->result)
		return 0;
	w->space->cursor[which] = last + 1;
	return 1;
}

static long wildcard_step(__u32 i, void *ctx)
{
	struct wildcard *w = ctx;
	struct span *span = &w->a->span;
	struct config *c = the_config();
	__u32 which = w->search.transports - 1, start;

	span->result = ENOSPC;
	if (which > 2 || !c)
		return 1;
	if (!i && claim_at_cursor(w, c, which))
		return 1;
	span->result = ENOSPC;
	start = search_preferring(w, c, w->space->cursor[which]);
	if (!start)
		return 1;
	w->space->cursor[which] = start + w->search.count;
	span->first = start;
	span->last = start + w->search.count - 1;
	/* EADDRINUSE: another CPU claimed the block between the search and the claim. Search again. */
	return claim_block(w->a) != EADDRINUSE;
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

static long closed_lately_step(__u32 i, void *ctx)
{
	struct span *s = ctx;
	__u32 base = ((s->first >> 6) + i) << 6;
	struct word *w;

	if (base > s->last)
		return 1;
	w = s->transports & PORTKEEP_TCP ? word_of(s->netns, PORTKEEP_TCP, base) : NULL;
	s->result = w && expiring_get(&w->left, LEFT_SHIFT) & span_mask(s, base);
	return s->result;
}

/*
 * Whether the agent has to look for sockets before a specific block is in force. For ports
 * outside the pool it has to, because binds of these ports are not counted. For ports of the
 * pool it has to if closed sockets may have left connections behind, and if an agent runs.
 */
__noinline int needs_agent(struct acquisition *a)
{
	struct config *c = the_config();
	struct counters *k = the_counters();

	if (!a || !c || !k)
		return 0;
	if (!c->pool_last || a->span.first < c->pool_first || a->span.last > c->pool_last)
		return 1;
	if (!k->agents)
		return 0;
	bpf_loop(1024, closed_lately_step, &a->span, 0);
	return a->span.result;
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

/* Fill the entry. No other CPU uses it before the ports point to it. Nothing is in force before its gate is ACTIVE. */
__noinline int enter_reservation(struct acquisition *a, struct reservation *r, __u32 slot, __u32 by)
{
	int error;

	if (!a || !r)
		return ENOMEM;
	r->netns = a->span.netns;
	r->cgroup = a->cgroup;
	r->since = a->now;
	r->pid = by == BY_PROCESS ? bpf_get_current_pid_tgid() >> 32 : 0;
	r->uid = a->uid;
	r->gid = a->gid;
	r->count = a->ask.count;
	r->transports = a->span.transports;
	r->scope = a->ask.scope;
	r->flags = a->ask.flags;
	r->level = a->level;
	r->also = a->ask.also;
	r->next = 0;
	r->slot = slot;
	r->error = 0;
	r->refusal = 0;
	if (by == BY_PROCESS)
		bpf_get_current_comm(r->comm, sizeof(r->comm));
	else
		__builtin_memset(r->comm, 0, sizeof(r->comm));
	__builtin_memcpy(r->label, a->ask.label, sizeof(r->label));
	/* Before the gate: otherwise a bind that still looks at an earlier block here would contest the new one. */
	WRITE(r->start, a->ask.start);
	WRITE(r->token, a->token);
	error = r->flags & PORTKEEP_EPHEMERAL ? range_enter(r, a->span.id) : 0;
	__sync_lock_test_and_set(&r->gate, gate_of(a->token, PORTKEEP_GATE_CLAIMING));
	return error;
}

/* Enter the others that a request admits. They follow it in the buffer. */
__noinline int admit_asked(struct bpf_sockopt *ctx, __u64 token, __u32 also)
{
	return admit(ctx->optval + sizeof(struct portkeep_acquire), ctx->optval_end, token, also);
}

/* Nothing was granted: the entry is free again. */
__inline void leave_reservation(struct reservation *r, __u32 id)
{
	__sync_lock_test_and_set(&r->gate, 0);
	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, id);
	if (r->also)
		admitted_leave(r->token, r->also);
	entry_vacate(r, id);
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

/* The token of the entry's next reservation. Tokens 0 to 7 are skipped: with a state, a gate could be 0. */
__inline __u64 token_next(const struct config *c, struct reservation *r, __u32 id)
{
	__u64 token = 0;

	for (int i = 0; i < 10; i++) {
		token = token_encrypt(c, ++r->generation << 16 | id);
		if (token > 7)
			break;
	}
	return token;
}

/* Check rights and limits, before anything is entered. */
__inline int may_acquire(struct acquisition *a, __u64 payer)
{
	struct config *c = the_config();
	struct counters *k = the_counters();

	if (!c || !k)
		return ENOMEM;
	if (!a->ask.start)
		return 0;
	a->span.first = a->ask.start;
	a->span.last = (__u32)a->ask.start + a->ask.count - 1;
	if (a->ask.start < c->unprivileged_start && a->span.netns == c->home && !may_have_privileged())
		return EACCES;
	a->pending = needs_agent(a);
	if (!a->pending)
		return 0;
	return k->agents ? pending_charge(payer) : ENETDOWN;
}

__inline int acquire(struct bpf_sockopt *ctx, struct bpf_sock *sk, __u32 transport)
{
	struct counters *k = the_counters();
	struct config *c = the_config();
	struct acquisition a = {};
	struct owner_state *o;
	struct space *sp;
	struct reservation *r;
	__u32 ports, slot, id;
	__u64 payer;
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

	/* From here on, a failure has to give back what was charged. */
	error = may_acquire(&a, payer);
	if (error) {
		quota_return(payer, ports);
		return error;
	}
	a.span.id = id = entry_take();
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!id || !r) {
		error = ENOMEM;
	} else {
		r->payer = payer;
		a.now = bpf_ktime_get_ns();
		sp->last = a.now;
		a.token = token_next(c, r, id);
		a.span.vacant = !a.pending;
		error = enter_reservation(&a, r, slot, BY_PROCESS);
		if (!error && a.ask.also)
			error = admit_asked(ctx, a.token, a.ask.also);
		if (!error)
			error = a.ask.start ? claim_block(&a) : claim_wildcard(&a, sp);
		if (error)
			leave_reservation(r, id);
	}
	if (error) {
		if (a.pending)
			pending_return(payer);
		quota_return(payer, ports);
		return error;
	}
	__sync_fetch_and_add(&k->ports, ports);
	__sync_fetch_and_add(&k->reservations, 1);
	o->token[slot & (PORTKEEP_OWNED - 1)] = a.token;
	o->hint = (slot + 1) & (PORTKEEP_OWNED - 1);
	o->last = a.token;
	o->last_id = a.span.id;
	if (k->listeners || a.pending)
		announce(&a);
	return a.pending ? EINPROGRESS : 0;
}

#endif
