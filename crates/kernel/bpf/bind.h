/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Bind: refuse outsiders, draw ports for associated sockets, count.
 *
 * The kernel runs two programs for each bind. The first one (bind4, bind6) decides. But after
 * it the kernel may still refuse the bind, and the reservation may end. So the first program
 * only notes what it allowed (claim_*). The second one (post_bind4, post_bind6) runs when the
 * socket has the port. It counts the socket, and then checks who has the port now; it can still
 * refuse. It also sees the port of an automatic choice, which is port 0 in the first program.
 */
#ifndef PORTKEEP_BIND_H
#define PORTKEEP_BIND_H

#include "draw.h"
#include "ephemeral.h"

#define REFUSE 0
#define PASS 1
/* For the TCP socket below an MPTCP socket: whether the MPTCP socket is counted for it. */
#define SUBFLOW_COUNTED 1
#define SUBFLOW 2

#define PASS_PRIVILEGED 3 /* also without CAP_NET_BIND_SERVICE (A8) */

/* Whether to report a refusal of the calling process. `untold`: how many before were not (threads may miscount). */
__noinline int may_report(__u32 *untold)
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
		if (may_report(&e.untold))
			publish(&e, BY_PROCESS);
	}
	bpf_set_retval(c && c->deny_errno ? -(int)c->deny_errno : -EADDRINUSE);
	return REFUSE;
}

/*
 * A connection in TIME_WAIT must not keep a socket that the reservation admits from
 * its port (A9). With SO_REUSEADDR it does not. But with that option two sockets that
 * do not listen yet could also share the port. So the option is only set if no other
 * socket is bound to the port, or if the program has asked for sharing (SO_REUSEPORT).
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

/*
 * An MPTCP socket (Go's servers use MPTCP by default) binds by a TCP socket of the kernel's
 * own. No program runs when that TCP socket is closed, but one runs when the MPTCP socket is
 * closed. So the use is counted with the MPTCP socket. It is counted before the kernel takes
 * the port, because the second program cannot find the MPTCP socket of a TCP socket. If the
 * bind then fails, the port counts as used until the MPTCP socket binds again or is closed.
 */
__noinline int count_mptcp(void *mptcp, __u64 netns, __u32 port)
{
	struct socket_state *st = bpf_sk_storage_get(&sockets, mptcp, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct word *w = in_pool(port) ? pool_word(netns, PORTKEEP_TCP, port) : word_of(netns, PORTKEEP_TCP, port);

	return st && w && use_start(st, w, netns, PORTKEEP_TCP, port, PORTKEEP_HELD_OPEN);
}

__inline void *mptcp_of(struct bpf_sock *sk, __u32 transport)
{
	return mptcp_known && transport == PORTKEEP_TCP ? bpf_skc_to_mptcp_sock(sk) : NULL;
}

__inline int refuse_with(int error)
{
	bpf_set_retval(-error);
	return REFUSE;
}

/* Note for the second program what this bind was allowed. False if the reservation has ended. */
__inline int claim(struct socket_state *st, struct reservation *r, __u64 token, __u32 port)
{
	st->claim_token = token;
	st->claim_port = port;
	st->consumer = 1;
	FENCE();
	return reservation_alive(r, token);
}

/* An associated socket binds: it gets a port of its block, or the bind is refused. */
__inline int bind_associated(struct bpf_sock_addr *ctx, struct socket_state *st, __u32 transport, __u32 port)
{
	struct reservation *r = bpf_map_lookup_elem(&reservations, &st->id);
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct word *w;

	if (!r || !reservation_alive(r, st->token) || (port && !reservation_contains(r, port)))
		return refuse_with(EACCES);
	undraw(st, netns, transport);
	if (!port) {
		port = draw(r, transport, 0);
		if (!port)
			return refuse_with(EADDRINUSE);
		st->transport = transport;
		st->drawn_port = port;
		*(volatile __u32 *)&ctx->user_port = bpf_htons((__u16)port);
	}
	w = word_of(netns, transport, port);
	if (!w || !claim(st, r, st->token, port)) {
		st->claim_port = 0;
		return refuse_with(EACCES);
	}
	allow_time_wait(ctx, transport, w, port);
	return PASS_PRIVILEGED;
}

/* A socket that is not associated binds a reserved port by its number (A7). */
__inline int bind_reserved(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct word *w, __u32 transport, __u32 port)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct socket_state *st;
	struct reservation *r;
	struct look l = {};
	__u8 scope;
	void *mptcp;
	int allowed;

	r = look_at(&l, w, netns, transport, port);
	if (!r && l.lingers)
		return refuse(netns, transport, port, 0);
	/* Not granted yet, or ended: the port is not reserved now, and the second program checks again. */
	if (!r || l.gate != l.token)
		return PASS;
	scope = READ(r->scope);
	allowed = !(READ(r->flags) & PORTKEEP_STRICT) && may_bind(r, l.id, l.token);
	FENCE();
	if (!reservation_alive(r, l.token))
		return PASS;
	/* The reservation was changed meanwhile: a part of what was read may be old. */
	if (READ(r->scope) != scope)
		allowed = 0;
	st = allowed ? bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE) : NULL;
	if (!st)
		return refuse(netns, transport, port, l.id);
	if (!claim(st, r, l.token, port)) {
		st->claim_port = 0;
		return PASS;
	}
	allow_time_wait(ctx, transport, w, port);
	mptcp = mptcp_of(sk, transport);
	st->subflow = mptcp ? SUBFLOW_COUNTED : 0;
	if (mptcp && !count_mptcp(mptcp, netns, port)) {
		st->claim_port = 0;
		return refuse(netns, transport, port, l.id);
	}
	return PASS_PRIVILEGED;
}

/*
 * A socket that is not associated binds to port 0: it gets a port of the private ephemeral range of its
 * process, if there is one (E1). If that range ends meanwhile, the next round looks for another one.
 */
__inline int bind_ephemeral(struct bpf_sock_addr *ctx, struct bpf_sock *sk, __u32 transport)
{
	struct range_search s = { .netns = bpf_get_netns_cookie(ctx), .transport = transport };
	struct socket_state *st = NULL;
	struct reservation *r;
	struct word *w = NULL;
	__u32 port = 0;
	void *mptcp;

	for (int i = 0; i < 2 && !w; i++) {
		__u32 id = range_find(&s);

		r = bpf_map_lookup_elem(&reservations, &id);
		if (!id || !r || waits_for_connect(ctx))
			return PASS;
		st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (!st)
			return refuse_with(EADDRINUSE);
		undraw(st, s.netns, transport);
		port = draw(r, transport, 0);
		if (!port && !reservation_alive(r, s.token))
			continue;
		if (!port) {
			report_exhausted(r, id);
			return refuse_with(EADDRINUSE);
		}
		st->transport = transport;
		st->drawn_port = port;
		w = word_of(s.netns, transport, port);
		if (!w || !claim(st, r, s.token, port)) {
			st->claim_port = 0;
			st->consumer = 0;
			undraw(st, s.netns, transport);
			w = NULL;
		}
	}
	if (!w || !st)
		return PASS;
	allow_time_wait(ctx, transport, w, port);
	mptcp = mptcp_of(sk, transport);
	st->subflow = mptcp ? SUBFLOW_COUNTED : 0;
	if (mptcp && !count_mptcp(mptcp, s.netns, port)) {
		st->claim_port = 0;
		return refuse_with(EADDRINUSE);
	}
	*(volatile __u32 *)&ctx->user_port = bpf_htons((__u16)port);
	return PASS_PRIVILEGED;
}

__inline int on_bind(struct bpf_sock_addr *ctx)
{
	__u32 transport = transport_of(ctx->type, ctx->protocol);
	__u32 port = bpf_ntohs((__u16)ctx->user_port);
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *st;
	struct word *w;
	int verdict;
	void *mptcp;

	if (!transport || !sk)
		return PASS;
	st = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (st && st->role)
		return PASS_PRIVILEGED;
	/* An earlier bind that was allowed here and then failed must not allow this one. */
	if (st)
		st->claim_port = 0;
	/*
	 * A second bind gets EINVAL from the kernel. But the kernel checks that only after it has unlocked
	 * the socket, which may have lost its port by then. So the answer for a reserved port is given here.
	 */
	if (sk->src_port)
		return port && reserved_word(ctx, transport, port) ? refuse_with(EINVAL) : PASS;
	if (st)
		st->consumer = 0;
	if (st && st->token)
		return bind_associated(ctx, st, transport, port);
	w = port ? reserved_word(ctx, transport, port) : NULL;
	verdict = w ? bind_reserved(ctx, sk, w, transport, port) : PASS;
	if (!port && ranges_exist())
		verdict = bind_ephemeral(ctx, sk, transport);
	if (verdict != PASS)
		return verdict;
	/*
	 * Count what the second program counts, ports of a request not granted yet included: no program sees
	 * the close of this TCP socket. By then any port may belong to such a request, so it is always marked.
	 * (is_kernel_socket does not find these sockets, because they have the file of the MPTCP socket.)
	 */
	mptcp = mptcp_of(sk, transport);
	if (mptcp) {
		st = bpf_sk_storage_get(&sockets, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (st)
			st->subflow = (w || in_pool(port)) && count_mptcp(mptcp, bpf_get_netns_cookie(ctx), port) ?
					      SUBFLOW_COUNTED : SUBFLOW;
	}
	return PASS;
}

/* How a socket is counted. */
#define COUNTED_NOT 0
#define COUNTED 1
#define COUNTED_ASIDE 2 /* by a bit that user space clears: no program sees the close */
#define COUNTED_MPTCP 3 /* already, with the MPTCP socket */

__inline int count_bound(struct bpf_sock *ctx, struct socket_state *st, struct word *w, __u64 netns, __u32 transport, __u32 port)
{
	if (st && st->subflow == SUBFLOW_COUNTED)
		return COUNTED_MPTCP;
	if (is_kernel_socket(ctx) || (st && st->subflow)) {
		filter_counted(transport, port);
		return __sync_fetch_and_or(&w->aside, BIT(port)) & BIT(port) ? COUNTED_NOT : COUNTED_ASIDE;
	}
	return st && use_start(st, w, netns, transport, port, PORTKEEP_HELD_OPEN) ? COUNTED : COUNTED_NOT;
}

/* Whether the socket may keep the port. If not, `id` is the reservation that refuses it. */
__inline int may_keep(struct socket_state *st, struct word *w, __u64 netns, __u32 transport, __u32 port, __u32 *id)
{
	struct reservation *r;
	struct look l = {};

	/* Each further round means that the reservation has been granted or ended since the last one. */
	for (int i = 0; i < 3; i++) {
		if (!(READ(w->reserved) & BIT(port)))
			return 1;
		r = look_at(&l, w, netns, transport, port);
		*id = r ? l.id : 0;
		if (!r)
			return !l.lingers || (st && st->claim_port == port);
		if (l.gate == l.token)
			return st && st->claim_port == port && st->claim_token == l.token;
		if (outrun(r, &l))
			return 1;
	}
	return 0;
}

__inline int on_post_bind(struct bpf_sock *ctx)
{
	__u32 transport = transport_of(ctx->type, ctx->protocol);
	__u32 port = ctx->src_port, id = 0;
	struct socket_state *st;
	struct word *w;
	int pool, counted, keeps;
	__u64 netns;

	/* Another program has refused: the kernel undoes the bind. */
	if (!transport || !port || bpf_get_retval() < 0)
		return PASS;
	pool = in_pool(port);
	if (!pool && !maybe_reserved(transport, port))
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	w = pool ? pool_word(netns, transport, port) : word_of(netns, transport, port);
	if (!w)
		return PASS;
	st = bpf_sk_storage_get(&sockets, ctx, NULL, 0);
	if (st && st->role)
		return PASS;
	if (!pool && !(READ(w->reserved) & BIT(port)))
		return PASS;
	if (!st)
		st = bpf_sk_storage_get(&sockets, ctx, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	/* Order: count first, look second. See reservation.h. */
	counted = count_bound(ctx, st, w, netns, transport, port);
	keeps = may_keep(st, w, netns, transport, port, &id);
	if (st && st->drawn_port == port)
		undraw(st, netns, transport);
	if (st)
		st->claim_port = 0;
	if (keeps)
		return PASS;
	if (counted == COUNTED && st)
		use_over(st, netns);
	if (counted == COUNTED_ASIDE)
		__sync_fetch_and_and(&w->aside, ~BIT(port));
	return refuse(netns, transport, port, id);
}

#endif
