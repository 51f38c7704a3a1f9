/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Bind, connect and close: refuse strangers, draw ports for associates, count
 * who uses what.
 *
 * A bind passes here twice. The first program decides, but whether the bind
 * then succeeds is up to the kernel, and the reservation may end in between. So
 * it only notes what it allowed (claim_*); the second program, which runs once
 * the port is really taken, counts the use and then looks whether the
 * reservation is still in force. It also catches automatic choices, which the
 * first program only sees as port 0.
 */
#ifndef PORTKEEP_CONSUME_H
#define PORTKEEP_CONSUME_H

#include "control.h"

#define REFUSE 0
#define PASS 1
#define PASS_PRIVILEGED 3 /* also without CAP_NET_BIND_SERVICE (A8) */

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

/* The word of the port if anybody has reserved it, NULL if not: for most binds this is all there is to do. */
__inline struct word *reserved_word(void *ctx, __u32 transport, __u32 port)
{
	struct word *w;

	if (!maybe_reserved(transport, port))
		return NULL;
	w = word_of(bpf_get_netns_cookie(ctx), transport, port);
	return w && *(volatile __u64 *)&w->reserved & BIT(port) ? w : NULL;
}

/* Whether a refusal of the process at hand is told, and how many before it were not. Two threads may miscount by a few. */
__noinline int may_tell(__u32 *untold)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	__u64 now = bpf_ktime_get_ns();
	struct offender *o = bpf_map_lookup_elem(&offenders, &pid);

	if (!o) {
		struct offender fresh = { .second = now, .told = 1 };

		bpf_map_update_elem(&offenders, &pid, &fresh, BPF_ANY);
		return 1;
	}
	if (now - o->second >= 1000000000ULL) {
		o->second = now;
		o->told = 0;
	}
	if (o->told >= PORTKEEP_REFUSALS) {
		__sync_fetch_and_add(&o->untold, 1);
		return 0;
	}
	o->told++;
	*untold = o->untold;
	o->untold = 0;
	return 1;
}

__noinline int refuse(__u64 netns, __u32 transport, __u32 port, __u32 id)
{
	struct config *c = the_config();
	struct counters *k = the_counters();

	if (k)
		__sync_fetch_and_add(&k->refused, 1);
	if (k && k->listeners) {
		struct event e = { .kind = PORTKEEP_EVENT_REFUSED, .id = id, .count = 1 };
		struct reservation *r = bpf_map_lookup_elem(&reservations, &id);

		e.netns = netns;
		e.transports = transport;
		e.start = port;
		if (r && reservation_contains(r, port))
			e.owner = r->pid;
		if (may_tell(&e.untold))
			publish(&e, BY_PROCESS);
	}
	bpf_set_retval(c && c->deny_errno ? -(int)c->deny_errno : -EADDRINUSE);
	return REFUSE;
}

/* A free port of a block. */
struct draw {
	__u64 netns;
	__u32 transport;
	__u32 first, last; /* inclusive */
	__u32 contested; /* take ports others are about to bind, too */
	__u32 port; /* 0 = none */
};

static long draw_step(__u32 i, void *ctx)
{
	struct draw *d = ctx;
	__u32 base = ((d->first >> 6) + i) << 6;
	__u32 a = d->first > base ? d->first - base : 0;
	__u32 b = d->last < base + 63 ? d->last - base : 63;
	struct word *w;
	__u64 free;

	if (base > d->last)
		return 1;
	w = word_of(d->netns, d->transport, base);
	if (!w)
		return 1;
	free = bits(a, b) & ~word_in_use(w);
	if (!d->contested)
		free &= ~*(volatile __u64 *)&w->drawn;
	for (int k = 0; k < 8 && free; k++) {
		__u32 n = lowest(free);

		if (!(__sync_fetch_and_or(&w->drawn, BIT(n)) & BIT(n)) || d->contested) {
			d->port = base + n;
			return 1;
		}
		free &= ~BIT(n);
	}
	return 0;
}

/*
 * Next-fit from where the last draw ended. `drawn` keeps two binds at the same
 * moment apart; it stays behind when a bind fails later on, so if nothing else
 * is left the third round takes such a port all the same and the kernel has the last word.
 */
__alone __u32 draw(struct reservation *r, __u32 transport)
{
	struct draw d = {};
	__u32 last, from;

	if (!r)
		return 0;
	d.netns = r->netns;
	d.transport = transport;
	last = (__u32)r->start + r->count - 1;
	from = r->start + r->next;
	if (from > last)
		from = r->start;

	d.first = from;
	d.last = last;
	bpf_loop(1024, draw_step, &d, 0);
	if (!d.port && from > r->start) {
		d.first = r->start;
		d.last = from - 1;
		bpf_loop(1024, draw_step, &d, 0);
	}
	if (!d.port) {
		d.contested = 1;
		d.first = r->start;
		d.last = last;
		bpf_loop(1024, draw_step, &d, 0);
	}
	if (d.port)
		r->next = d.port + 1 - r->start;
	return d.port;
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

/*
 * TIME_WAIT must not keep a consumer from its port (A9). With SO_REUSEADDR it
 * does not; but the option would also let two sockets that do not listen yet
 * share the port, so it is only set where no other is bound, or where sharing is
 * what the program asked for.
 */
__inline void allow_time_wait(struct bpf_sock_addr *ctx, __u32 transport, struct word *w, __u32 port)
{
	int on = 1, reuseport = 0;

	if (transport != PORTKEEP_TCP)
		return;
	if (uses(w, port)) {
		bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEPORT, &reuseport, sizeof(reuseport));
		if (!reuseport)
			return;
	}
	bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
}

/* False if the reservation has ended: what was read of `r` may then be of another. */
__inline int claim(struct socket_state *st, struct reservation *r, __u64 token, __u32 id, __u32 port, __u32 transport)
{
	st->payer = *(volatile __u32 *)&r->payer;
	st->claim_token = token;
	st->claim_id = id;
	st->claim_port = port;
	st->transport = transport;
	return reservation_alive(r, token);
}

/* The socket no longer uses the port. If that frees it, its reservation having ended, it is paid for no longer. */
__inline void use_end_paid(struct socket_state *st, struct word *w, __u32 port)
{
	if (use_end(w, st->transport, port))
		quota_return(st->payer, 1);
}

/* The port is taken, or about to be: count it, unless the reservation has ended meanwhile. */
__inline int settle(struct socket_state *st, struct word *w, __u32 port)
{
	struct reservation *r = bpf_map_lookup_elem(&reservations, &st->claim_id);

	if (st->subflow)
		return r && reservation_alive(r, st->claim_token);
	/* A claim gone stale may meet another's block: the count is then not ours to touch, nor the quota behind it. */
	if (!r || !reservation_alive(r, st->claim_token))
		return 0;
	/* Order: count first, look second. An end that comes later sees the count and leaves the port to us. */
	if (use_begin(w, port) >= USES_MAX || !reservation_alive(r, st->claim_token)) {
		use_end_paid(st, w, port);
		return 0;
	}
	st->bound_port = port;
	st->claim_port = 0;
	return 1;
}

/*
 * MPTCP (Go's servers ask for it by default) binds by a TCP socket of the
 * kernel's own, whose close passes no program; that of the MPTCP socket does.
 * So the use is counted with that one, and now: the second program cannot get
 * from the one to the other. If the bind fails after all, the port counts as
 * used until the MPTCP socket binds again or is closed.
 */
__noinline int bind_subflow(void *mptcp, struct reservation *r, __u64 token, __u32 id, __u32 port)
{
	struct socket_state *st = bpf_sk_storage_get(&sockets, mptcp, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct word *w;

	if (!st || !r)
		return 0;
	if (st->bound_port) {
		w = word_of(r->netns, PORTKEEP_TCP, st->bound_port);
		if (w)
			use_end_paid(st, w, st->bound_port);
		st->bound_port = 0;
	}
	w = word_of(r->netns, PORTKEEP_TCP, port);
	return w && claim(st, r, token, id, port, PORTKEEP_TCP) && settle(st, w, port);
}

/* An associated socket binds: out of its block or not at all. */
__inline int bind_associated(struct bpf_sock_addr *ctx, struct socket_state *st, __u32 transport, __u32 port)
{
	struct reservation *r = bpf_map_lookup_elem(&reservations, &st->id);
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct word *w;

	if (!r || !reservation_alive(r, st->token) || (port && !reservation_contains(r, port))) {
		bpf_set_retval(-EACCES);
		return REFUSE;
	}
	undraw(st, netns, transport);
	if (!port) {
		port = draw(r, transport);
		if (!port) {
			bpf_set_retval(-EADDRINUSE);
			return REFUSE;
		}
		st->drawn_port = port;
		*(volatile __u32 *)&ctx->user_port = bpf_htons((__u16)port);
	}
	w = word_of(netns, transport, port);
	if (!w) {
		bpf_set_retval(-EACCES);
		return REFUSE;
	}
	allow_time_wait(ctx, transport, w, port);
	if (!claim(st, r, st->token, st->id, port, transport)) {
		bpf_set_retval(-EACCES);
		return REFUSE;
	}
	return PASS_PRIVILEGED;
}

__inline int on_bind(struct bpf_sock_addr *ctx)
{
	__u32 transport = transport_of(ctx->type, ctx->protocol);
	__u32 port = bpf_ntohs((__u16)ctx->user_port);
	struct socket_state *st;
	struct reservation *r;
	struct bpf_sock *sk = ctx->sk;
	struct word *w;
	void *mptcp;
	__u64 netns, token;
	__u32 id;

	if (!transport || !sk)
		return PASS;
	/* Bound already: the kernel answers EINVAL, whatever port is asked for. */
	if (sk->src_port)
		return PASS;
	st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (st && st->role)
		return PASS_PRIVILEGED;
	/* What an earlier bind was allowed and did not get must not open the way for an automatic choice. */
	if (st)
		st->claim_port = 0;
	if (st && st->token)
		return bind_associated(ctx, st, transport, port);
	if (!port)
		return PASS;
	w = reserved_word(ctx, transport, port);
	if (!w && !in_pool(port))
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	if (!w)
		return refuse(netns, transport, port, 0);

	id = word_owner(w, port);
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!r || !reservation_contains(r, port))
		return refuse(netns, transport, port, 0);
	token = r->token;
	if (!reservation_alive(r, token) || r->flags & PORTKEEP_STRICT || !in_scope(r, id))
		return refuse(netns, transport, port, id);
	st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!st)
		return refuse(netns, transport, port, id);
	allow_time_wait(ctx, transport, w, port);
	if (!claim(st, r, token, id, port, transport))
		return refuse(netns, transport, port, id);
	mptcp = mptcp_known && transport == PORTKEEP_TCP ? bpf_skc_to_mptcp_sock(sk) : NULL;
	st->subflow = mptcp != NULL;
	if (mptcp && !bind_subflow(mptcp, r, token, id, port))
		return refuse(netns, transport, port, id);
	return PASS_PRIVILEGED;
}

__inline int on_post_bind(struct bpf_sock *ctx)
{
	__u32 transport = transport_of(ctx->type, ctx->protocol);
	__u32 port = ctx->src_port;
	struct socket_state *st;
	struct word *w;
	__u64 netns;

	if (!transport || !port)
		return PASS;
	w = reserved_word(ctx, transport, port);
	if (!w && !in_pool(port))
		return PASS;
	st = bpf_sk_storage_get(&sockets, ctx, NULL, 0);
	if (st && st->role)
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	if (!w)
		return refuse(netns, transport, port, 0);
	if (st && st->claim_port == port && settle(st, w, port)) {
		if (st->drawn_port == port)
			undraw(st, netns, transport);
		return PASS;
	}
	return refuse(netns, transport, port, word_owner(w, port));
}

struct sockaddr_in {
	__u16 family;
	__u16 port; /* network byte order */
	__u8 rest[12];
};

struct sockaddr_in6 {
	__u16 family;
	__u16 port; /* network byte order */
	__u8 rest[24];
};

/*
 * bpf_bind passes neither bind program, so a port drawn here is counted here,
 * and before it is bound: what is bound cannot be undone, so an end that comes
 * in between has to find it counted and leave the port to this socket.
 */
__inline int on_connect(struct bpf_sock_addr *ctx)
{
	__u32 transport = transport_of(ctx->type, ctx->protocol);
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *st;
	struct reservation *r;
	struct word *w;
	__u64 netns;

	if (!transport || !sk)
		return PASS;
	st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!st || !st->token || st->bound_port || sk->src_port)
		return PASS;
	r = bpf_map_lookup_elem(&reservations, &st->id);
	if (!r || !reservation_alive(r, st->token)) {
		bpf_set_retval(-EACCES);
		return REFUSE;
	}
	netns = bpf_get_netns_cookie(ctx);
	/* Whatever fails below, a close must find what was drawn. */
	st->transport = transport;
	for (int i = 0; i < 4; i++) {
		__u32 port;
		long failed;

		undraw(st, netns, transport);
		port = draw(r, transport);
		if (!port)
			break;
		st->drawn_port = port;
		w = word_of(netns, transport, port);
		if (!w)
			break;
		allow_time_wait(ctx, transport, w, port);
		if (!claim(st, r, st->token, st->id, port, transport) || !settle(st, w, port)) {
			bpf_set_retval(-EACCES);
			return REFUSE;
		}
		if (sk->family == AF_INET6) {
			struct sockaddr_in6 any = { .family = AF_INET6, .port = bpf_htons((__u16)port) };

			failed = bpf_bind(ctx, &any, sizeof(any));
		} else {
			struct sockaddr_in any = { .family = AF_INET, .port = bpf_htons((__u16)port) };

			failed = bpf_bind(ctx, &any, sizeof(any));
		}
		if (!failed) {
			undraw(st, netns, transport);
			return PASS;
		}
		st->bound_port = 0;
		use_end_paid(st, w, port);
		/*
		 * A8 ends here: bpf_bind asks for CAP_NET_BIND_SERVICE, and no program can lift that. Who has not got it
		 * binds to port 0 first.
		 */
		if (failed == -EACCES) {
			bpf_set_retval(-EACCES);
			return REFUSE;
		}
	}
	bpf_set_retval(-EADDRINUSE);
	return REFUSE;
}

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
 * A connection that was accepted on a port of the pool must not keep the next
 * holder from binding it: with SO_REUSEADDR, which its listener was given, it
 * does not. So the option stays on; who takes it off is told that it is done.
 */
__inline int keeps_reuseaddr(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	__u32 *on = ctx->optval;
	__u32 port = sk->src_port;

	if ((sk->protocol != IPPROTO_TCP && sk->protocol != IPPROTO_MPTCP) || !port)
		return 0;
	if ((void *)(on + 1) > ctx->optval_end || *on)
		return 0;
	return in_pool(port) || reserved_word(ctx, PORTKEEP_TCP, port);
}

/* The last descriptor is gone, by close or with its process. */
__inline int on_release(struct bpf_sock *ctx)
{
	struct socket_state *st = bpf_sk_storage_get(&sockets, ctx, NULL, 0);
	struct owner_state *o = bpf_sk_storage_get(&owners, ctx, NULL, 0);
	struct counters *k = the_counters();

	if (st) {
		__u64 netns = bpf_get_netns_cookie(ctx);
		struct word *w;

		undraw(st, netns, st->transport);
		if (st->bound_port) {
			w = word_of(netns, st->transport, st->bound_port);
			if (w)
				use_end_paid(st, w, st->bound_port);
		}
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
