/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Sockets and the ports they have: which sockets are counted, and from
 * when until when. Binds of reserved ports and of pool ports are counted.
 * Pool ports are free for everybody unless they are reserved. They are
 * counted so that a wildcard request skips ports that are in use.
 */
#ifndef PORTKEEP_USE_H
#define PORTKEEP_USE_H

#include "reservation.h"

__inline __u32 transport_of(__u32 type, __u32 protocol)
{
	if (protocol == IPPROTO_TCP && type == SOCK_STREAM)
		return PORTKEEP_TCP;
	if (protocol == IPPROTO_UDP && type == SOCK_DGRAM)
		return PORTKEEP_UDP;
	return 0;
}

__inline int in_pool(__u32 port)
{
	struct config *c = the_config();

	return c && c->pool_last && port >= c->pool_first && port <= c->pool_last;
}

/* The word of the port if it is reserved, NULL if not: most binds need only this check. */
__inline struct word *reserved_word(void *ctx, __u32 transport, __u32 port)
{
	struct word *w;

	if (!maybe_reserved(transport, port))
		return NULL;
	w = word_of(bpf_get_netns_cookie(ctx), transport, port);
	return w && READ(w->reserved) & BIT(port) ? w : NULL;
}

/* The state of a reserved port at one moment. */
struct look {
	__u64 token; /* of the reservation it belongs to, 0 if there is none in force or on the way */
	__u64 gate;
	__u32 id;
	__u32 lingers; /* no reservation any more, but sockets that are still bound */
};

/*
 * One look at a claimed port. If the reservation found has the port, the transport and the namespace,
 * and its gate belongs to its token, it was in force (or on the way) at that moment. A caller that reads
 * more fields checks the gate again afterwards. If anything differs, the port has just passed from one
 * reservation to another, and was not reserved for a moment. The caller's next look says what it is now.
 */
__inline struct reservation *look_at(struct look *l, struct word *w, __u64 netns, __u32 transport, __u32 port)
{
	struct reservation *r;

	l->token = 0;
	l->gate = 0;
	l->lingers = 0;
	l->id = word_owner(w, port);
	r = bpf_map_lookup_elem(&reservations, &l->id);
	if (r) {
		l->token = READ(r->token);
		l->gate = READ(r->gate);
		FENCE();
		if (port >= READ(r->start) && port < (__u32)READ(r->start) + READ(r->count) &&
		    READ(r->netns) == netns && READ(r->transports) & transport && l->gate &&
		    (l->gate ^ l->token) <= PORTKEEP_GATE_OUTRUN)
			return r;
	}
	/* Read last: the end of a reservation sets this mark after it has shut the gate. */
	FENCE();
	l->token = 0;
	l->lingers = (READ(w->lingering) & BIT(port)) != 0;
	return NULL;
}

/* A request that is not granted yet gives way to a bind. False: it was granted (or has ended) meanwhile; look again. */
__inline int outrun(struct reservation *r, struct look *l)
{
	__u64 state = l->gate ^ l->token;

	if (state == PORTKEEP_GATE_PENDING)
		return gate_step(r, l->token, PORTKEEP_GATE_PENDING, PORTKEEP_GATE_CONTESTED);
	if (state == PORTKEEP_GATE_CLAIMING)
		return gate_step(r, l->token, PORTKEEP_GATE_CLAIMING, PORTKEEP_GATE_OUTRUN);
	return 1;
}

/* The word of a pool port, made if needed, at the cost of the calling process. Without room the port is not counted. */
__noinline struct word *pool_word(__u64 netns, __u32 transport, __u32 port)
{
	struct word *w = word_of(netns, transport, port);
	__u64 payer;

	if (w)
		return w;
	payer = account(netns);
	/* User space removes vacant words only in namespaces that have an element in `spaces`. */
	if (!space_of(netns, payer) || !quota_of(payer))
		return NULL;
	return word_create(netns, transport, port, payer);
}

/* The socket no longer counts. */
__inline void use_over(struct socket_state *st, __u64 netns)
{
	__u32 port = st->bound_port;
	struct word *w = port ? word_counted(netns, st->transport, port) : NULL;

	st->bound_port = 0;
	if (!w)
		return;
	if (in_pool(port))
		expiring_set(&w->left, port, LEFT_SHIFT);
	use_end(w, st->transport, port);
}

/* One of the reasons to count it is gone. If two CPUs remove the last two reasons, exactly one of them ends the use. */
__inline void use_less(struct socket_state *st, __u64 netns, __u32 reason)
{
	__u32 old = __sync_fetch_and_and(&st->held, ~reason);

	if (old & reason && !(old & ~reason))
		use_over(st, netns);
}

/* Count the socket at the port. An earlier count is dropped: others refused its bind after it was counted. */
__inline int use_start(struct socket_state *st, struct word *w, __u64 netns, __u32 transport, __u32 port, __u32 reason)
{
	if (st->bound_port)
		use_over(st, netns);
	st->transport = transport;
	filter_counted(transport, port);
	if (use_begin(w, port) >= USES_MAX) {
		use_end(w, transport, port);
		return 0;
	}
	st->bound_port = port;
	st->held = reason;
	return 1;
}

__inline void undraw(struct socket_state *st, __u64 netns, __u32 transport)
{
	struct word *w;

	if (!st->drawn_port)
		return;
	w = word_of(netns, transport, st->drawn_port);
	if (w)
		__sync_fetch_and_and(&w->drawn, ~BIT(st->drawn_port));
	st->drawn_port = 0;
}

#endif
