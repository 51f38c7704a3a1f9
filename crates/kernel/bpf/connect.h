/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Connections: the source port of an associated socket, and the ports
 * that TCP connections still use after their sockets have been closed.
 */
#ifndef PORTKEEP_CONNECT_H
#define PORTKEEP_CONNECT_H

#include "bind.h"

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

/* Whether the destination is surely this machine. A program may read its own address family only: `v6` is fixed. */
__inline int to_loopback(struct bpf_sock_addr *ctx, int v6)
{
	__u32 last;

	if (!v6) {
		__u32 v4 = ctx->user_ip4;

		return !v4 || (v4 & 0xff) == 127;
	}
	last = ctx->user_ip6[3];
	if (ctx->user_ip6[0] | ctx->user_ip6[1])
		return 0;
	if (ctx->user_ip6[2] == bpf_htonl(0xffff))
		return (last & 0xff) == 127;
	return !ctx->user_ip6[2] && (!last || last == bpf_htonl(1));
}

/* A socket must not connect to itself: the destination's port is drawn last, and never if it is on this machine. */
__inline __u32 draw_source(struct bpf_sock_addr *ctx, int v6, struct reservation *r, __u32 transport)
{
	__u32 port = draw(r, transport, bpf_ntohs((__u16)ctx->user_port));

	return port || to_loopback(ctx, v6) ? port : draw(r, transport, 0);
}

/*
 * A socket that has a port connects. If the port is reserved and the
 * process is an outsider, the bind programs did not see the bind: another
 * BPF program for connect has bound the socket. (Sockets that were bound
 * before a reservation with `around` are in its scope, or counted.)
 */
__inline int connect_bound(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct socket_state *st, __u32 transport)
{
	__u32 port = sk->src_port;
	struct word *w = reserved_word(ctx, transport, port);
	struct reservation *r;
	struct look l = {};
	__u64 netns;

	if (!w || (st && (st->bound_port == port || st->subflow || st->role)))
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	r = look_at(&l, w, netns, transport, port);
	if (!r || l.gate != l.token || in_scope(r, l.id))
		return PASS;
	return refuse(netns, transport, port, l.id);
}

/*
 * The helper bpf_bind runs neither bind program, so a port that is drawn here is counted
 * here, and before it is bound. A bind that is done cannot be undone. So if the reservation
 * ends between these steps, it must find the port counted, and leave it to this socket.
 */
__inline int on_connect(struct bpf_sock_addr *ctx, int v6)
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
	if (sk->src_port)
		return connect_bound(ctx, sk, st, transport);
	if (!st || !st->token)
		return PASS;
	r = bpf_map_lookup_elem(&reservations, &st->id);
	if (!r || !reservation_alive(r, st->token))
		return refuse_with(EACCES);
	netns = bpf_get_netns_cookie(ctx);
	/* If a later step fails, a close must find what was drawn. */
	st->transport = transport;
	for (int i = 0; i < 4; i++) {
		__u32 port;
		long failed;

		undraw(st, netns, transport);
		port = draw_source(ctx, v6, r, transport);
		if (!port)
			break;
		st->drawn_port = port;
		w = word_of(netns, transport, port);
		if (!w)
			break;
		allow_time_wait(ctx, transport, w, port);
		st->consumer = 1;
		if (!use_start(st, w, netns, transport, port, PORTKEEP_HELD_OPEN))
			break;
		if (!reservation_alive(r, st->token)) {
			use_over(st, netns);
			return refuse_with(EACCES);
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
		use_over(st, netns);
		/*
		 * A8 ends here: bpf_bind requires CAP_NET_BIND_SERVICE, and no program
		 * can change that. A process without it has to bind to port 0 first.
		 */
		if (failed == -EACCES)
			return refuse_with(EACCES);
	}
	return refuse_with(EADDRINUSE);
}

/* With SO_REUSEADDR a listener and its connections do not keep the next holder from binding the port. */
__inline void share_port(struct bpf_sock_ops *ctx)
{
	int on = 1;

	bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
}

/* A connection was accepted. On a pool port that is not reserved it counts until it is over. */
__inline void on_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u32 port = ctx->local_port;
	struct socket_state *st;
	struct word *w;
	__u64 netns;

	if (!in_pool(port) && !maybe_reserved(PORTKEEP_TCP, port))
		return;
	netns = bpf_get_netns_cookie(ctx);
	w = word_of(netns, PORTKEEP_TCP, port);
	if (!w)
		return;
	st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!(READ(w->reserved) & BIT(port))) {
		if (!in_pool(port) || !st || !use_start(st, w, netns, PORTKEEP_TCP, port, PORTKEEP_HELD_CONNECTION))
			return;
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		/* Order: count first, look second. See reservation.h. */
		if (!(READ(w->reserved) & BIT(port)))
			return;
		use_over(st, netns);
	}
	share_port(ctx);
	if (st)
		st->consumer = 1;
}

/* A socket with a port connects. If no reservation admitted it, its connection may use the port after the close. */
__inline void on_connecting(struct bpf_sock_ops *ctx, struct socket_state *st)
{
	if (st->consumer) {
		share_port(ctx);
		return;
	}
	__sync_fetch_and_or(&st->held, PORTKEEP_HELD_CONNECTION);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Changes of TCP connections. Sockets whose port is neither reserved nor in the pool are ignored. */
__inline int on_tcp(struct bpf_sock_ops *ctx)
{
	struct socket_state *st;
	struct bpf_sock *sk;
	__u32 op = ctx->op;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_TCP_LISTEN_CB && op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		on_accepted(ctx, sk);
		return 1;
	}
	st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!st || !st->bound_port)
		return 1;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		on_connecting(ctx, st);
	else if (op == BPF_SOCK_OPS_TCP_LISTEN_CB && st->consumer)
		share_port(ctx);
	else if (op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		use_less(st, bpf_get_netns_cookie(ctx), PORTKEEP_HELD_CONNECTION);
	return 1;
}

#endif
