&[
    (
        "a bind looks first and counts itself second",
        "acquire-automatic",
        "bind.h",
        "	counted = count_bound(ctx, st, w, netns, transport, port);
	keeps = may_keep(st, w, netns, transport, port, &id);
",
        "	keeps = may_keep(st, w, netns, transport, port, &id);
	counted = count_bound(ctx, st, w, netns, transport, port);
",
    ),
    (
        "a bind does not look a second time",
        "acquire-automatic",
        "bind.h",
        "	keeps = may_keep(st, w, netns, transport, port, &id);
",
        "	keeps = 1;
",
    ),
    (
        "a bind is admitted by the port it was allowed, even if another owner has reserved it by now",
        "associate-bind-number",
        "bind.h",
        "st->claim_port == port && st->claim_token == l.token;",
        "st->claim_port == port;",
    ),
    (
        "a look does not check that the reservation found has the port",
        "ephemeral-bind-fails",
        "use.h",
        "if (port >= READ(r->start) && port < (__u32)READ(r->start) + READ(r->count) &&
		    READ(r->netns) == netns && READ(r->transports) & transport && l->gate &&",
        "if (l->gate &&",
    ),
    (
        "a request is in force although a bind was quicker",
        "acquire-automatic",
        "acquire.h",
        "	if (gate_step(r, a->token, PORTKEEP_GATE_CLAIMING, a->pending ? PORTKEEP_GATE_PENDING : PORTKEEP_GATE_ACTIVE))
		return 1;
",
        "	__sync_lock_test_and_set(&r->gate, gate_of(a->token, a->pending ? PORTKEEP_GATE_PENDING : PORTKEEP_GATE_ACTIVE));
	if (a)
		return 1;
",
    ),
    (
        "a request does not check whether its ports are in use",
        "accept-acquire",
        "reservation.h",
        "(s->vacant && word_occupied(w) & mask)",
        "(0 && word_occupied(w) & mask)",
    ),
    (
        "a request checks whether its ports are in use before it claims them",
        "accept-acquire",
        "reservation.h",
        "	if (!word_claim(w, transport, base, mask)) {",
        "	if (s->vacant && word_occupied(w) & mask) {
		s->result = EADDRINUSE;
		return 0;
	}
	s->vacant = 0;
	if (!word_claim(w, transport, base, mask)) {",
    ),
    (
        "a bind does not contest a request that waits",
        "confirm-bind",
        "use.h",
        "		return gate_step(r, l->token, PORTKEEP_GATE_PENDING, PORTKEEP_GATE_CONTESTED);",
        "		return 1;",
    ),
    (
        "a bind does not contest a request under way",
        "acquire-automatic",
        "use.h",
        "		return gate_step(r, l->token, PORTKEEP_GATE_CLAIMING, PORTKEEP_GATE_OUTRUN);",
        "		return 1;",
    ),
    (
        "a confirmation does not see that the request is contested",
        "confirm-bind",
        "admin.h",
        "	if (!gate_step(r, q->token, PORTKEEP_GATE_PENDING, PORTKEEP_GATE_ACTIVE))
",
        "	if (READ(r->gate) == gate_of(q->token, PORTKEEP_GATE_CONTESTED))
		WRITE(r->gate, gate_of(q->token, PORTKEEP_GATE_PENDING));
	if (!gate_step(r, q->token, PORTKEEP_GATE_PENDING, PORTKEEP_GATE_ACTIVE))
",
    ),
    (
        "a confirmation forgets to return what waiting costs",
        "confirm-bind",
        "admin.h",
        "		pending_return(r->payer);
	reservation_event(",
        "		(void)0;
	reservation_event(",
    ),
    (
        "a contested request cannot be ended",
        "confirm-bind",
        "reservation.h",
        "		if (__sync_val_compare_and_swap(&r->gate, contested, 0) == contested)
			return PORTKEEP_GATE_CONTESTED;
",
        "",
    ),
    (
        "the gate is shut by two at once",
        "close-end",
        "reservation.h",
        "	return __sync_val_compare_and_swap(&r->gate, token, 0) == token ? PORTKEEP_GATE_ACTIVE : GATE_OPEN;",
        "	if (READ(r->gate) != token)
		return GATE_OPEN;
	WRITE(r->gate, 0);
	return PORTKEEP_GATE_ACTIVE;",
    ),
    (
        "the refuser does not see that the owner is gone",
        "refuse-acquire",
        "reservation.h",
        "		if (old == ~token) {
			entry_vacate(r, id);
			quota_return(payer, 1);
			return;
		}
",
        "",
    ),
    (
        "the owner that is gone does not see that the refuser has done",
        "confirm-bind",
        "reservation.h",
        "			if (__sync_val_compare_and_swap(&r->refusal, token, 0) == token) {",
        "			if (0) {",
    ),
    (
        "a socket with a port is trusted to keep it",
        "disconnect-bind",
        "bind.h",
        "port && reserved_word(ctx, transport, port) ? refuse_with(EINVAL) : PASS;",
        "PASS;",
    ),
    (
        "a second use forgets the first",
        "bind-twice-after",
        "use.h",
        "	if (st->bound_port)
		use_over(st, netns);
	st->transport",
        "	st->transport",
    ),
    (
        "a draw does not check whether the port has been bound meanwhile",
        "draw-draw",
        "draw.h",
        "			if (!uses(w, n)) {",
        "			if (1) {",
    ),
    (
        "a draw marks its port in two steps",
        "draw-draw",
        "draw.h",
        "if (!(__sync_fetch_and_or(&w->drawn, BIT(n)) & BIT(n)) || d->contested) {",
        "__u64 drawn = READ(w->drawn);

		WRITE(w->drawn, drawn | BIT(n));
		if (!(drawn & BIT(n)) || d->contested) {",
    ),
    (
        "lingering is marked after the counts are read",
        "bind-twice-after",
        "reservation.h",
        "	if (linger)
		ORDERED(__sync_fetch_and_or(&w->lingering, mask));
	reserved_clear(w, transport, base, linger ? vacant_of(w, mask) : mask);
",
        "	if (linger) {
		__u64 mine = mask & ~word_in_use(w);

		ORDERED(__sync_fetch_and_or(&w->lingering, mask));
		mask = mine & __sync_fetch_and_and(&w->lingering, ~mine);
	}
	reserved_clear(w, transport, base, mask);
",
    ),
    (
        "the last socket frees the port although its block is in force",
        "accept-acquire",
        "table.h",
        "	    __sync_fetch_and_and(&w->lingering, ~BIT(port)) & BIT(port))
		reserved_clear(w, transport, port, BIT(port));
	/* Last",
        "	    (__sync_fetch_and_and(&w->lingering, ~BIT(port)), 1))
		reserved_clear(w, transport, port, BIT(port));
	/* Last",
    ),
    (
        "the last socket forgets that the port lingers",
        "accept-release",
        "table.h",
        "	    __sync_fetch_and_and(&w->lingering, ~BIT(port)) & BIT(port))
		reserved_clear(w, transport, port, BIT(port));
	/* Last",
        "	    0)
		reserved_clear(w, transport, port, BIT(port));
	/* Last",
    ),
    (
        "ports are claimed in two steps",
        "accept-acquire-fails",
        "table.h",
        "	done = __sync_val_compare_and_swap(&w->reserved, old, new) == old;",
        "	done = READ(w->reserved) == old;
	if (done)
		WRITE(w->reserved, new);",
    ),
    (
        "a claim that fails in its second word keeps the first",
        "accept-acquire",
        "reservation.h",
        "	if (error)
		span_free(s);
	else",
        "	if (!error)",
    ),
    (
        "a head is removed after its port can be claimed anew",
        "accept-acquire-fails",
        "reservation.h",
        "	if (base <= s->first)
		__sync_fetch_and_and(&w->heads, ~BIT(s->first));
	else
		w->lead = 0;
	linger = s->in_force && READ(w->bound);
	if (linger)
		ORDERED(__sync_fetch_and_or(&w->lingering, mask));
	reserved_clear(w, transport, base, linger ? vacant_of(w, mask) : mask);
",
        "	linger = s->in_force && READ(w->bound);
	if (linger)
		ORDERED(__sync_fetch_and_or(&w->lingering, mask));
	reserved_clear(w, transport, base, linger ? vacant_of(w, mask) : mask);
	if (base <= s->first)
		__sync_fetch_and_and(&w->heads, ~BIT(s->first));
	else
		w->lead = 0;
",
    ),
    (
        "an entry is taken in two steps",
        "accept-acquire-fails",
        "reservation.h",
        "	if (__sync_fetch_and_or(&s->entries->taken[word], BIT(n)) & BIT(n))
		return 0;
",
        "	if (READ(s->entries->taken[word]) & BIT(n))
		return 0;
	WRITE(s->entries->taken[word], READ(s->entries->taken[word]) | BIT(n));
",
    ),
    (
        "a request that fails keeps its entry",
        "accept-acquire",
        "acquire.h",
        "		admitted_leave(r->token, r->also);
	entry_vacate(r, id);
",
        "		admitted_leave(r->token, r->also);
",
    ),
    (
        "a quota is looked at first and charged second",
        "quota",
        "quota.h",
        "	if (__sync_fetch_and_add(&q->used, ports) + (__u64)ports > limit) {
		__sync_fetch_and_sub(&q->used, ports);
		return EDQUOT;
	}
",
        "	if (*(volatile __u32 *)&q->used + (__u64)ports > limit)
		return EDQUOT;
	__sync_fetch_and_add(&q->used, ports);
",
    ),
    (
        "an entry is free before its ports are",
        "acquire-wildcard",
        "reservation.h",
        "	s.in_force = state == PORTKEEP_GATE_ACTIVE;
	span_free(&s);
",
        "	s.in_force = state == PORTKEEP_GATE_ACTIVE;
	if (!error)
		entry_vacate(r, id);
	span_free(&s);
",
    ),
    (
        "ports of a request that was never in force linger",
        "confirm-bind",
        "reservation.h",
        "	s.in_force = state == PORTKEEP_GATE_ACTIVE;
",
        "	s.in_force = 1;
",
    ),
    (
        "ports with bound sockets are not kept when their block ends",
        "lingering-bound",
        "reservation.h",
        "	s.in_force = state == PORTKEEP_GATE_ACTIVE;
",
        "	s.in_force = 0;
",
    ),
    (
        "the last two reasons to count a socket are taken off in two steps",
        "connection-close",
        "use.h",
        "	__u32 old = __sync_fetch_and_and(&st->held, ~reason);
",
        "	__u32 old = READ(st->held);

	WRITE(st->held, old & ~reason);
",
    ),
    (
        "a connection does not count longer than its descriptor",
        "connection-again",
        "connect.h",
        "	__sync_fetch_and_or(&st->held, PORTKEEP_HELD_CONNECTION);
",
        "",
    ),
    (
        "the end of a connection is not noticed",
        "connection-again",
        "connect.h",
        "	__sync_fetch_and_or(&st->held, PORTKEEP_HELD_CONNECTION);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
",
        "	__sync_fetch_and_or(&st->held, PORTKEEP_HELD_CONNECTION);
",
    ),
    (
        "an accepted connection is not counted",
        "accept-acquire",
        "connect.h",
        "		if (!in_pool(port) || !st || !use_start(",
        "		if (1 || !use_start(",
    ),
    (
        "an accepted connection counts until its descriptor is closed",
        "accepted-acquire",
        "connect.h",
        "use_start(st, w, netns, PORTKEEP_TCP, port, PORTKEEP_HELD_CONNECTION)",
        "use_start(st, w, netns, PORTKEEP_TCP, port, PORTKEEP_HELD_OPEN)",
    ),
    (
        "an MPTCP socket is taken for a TCP socket",
        "mptcp-acquire",
        "bind.h",
        "	return mptcp_known && transport == PORTKEEP_TCP ? bpf_skc_to_mptcp_sock(sk) : NULL;",
        "	return NULL;",
    ),
    (
        "an automatic choice of an MPTCP socket is counted with the TCP socket under it",
        "mptcp-acquire-automatic",
        "bind.h",
        "	mptcp = mptcp_of(sk, transport);
	if (mptcp) {",
        "	mptcp = w || in_pool(port) ? mptcp_of(sk, transport) : NULL;
	if (mptcp) {",
    ),
    (
        "a port of an MPTCP socket that is requested meanwhile is counted with the TCP socket under it",
        "mptcp-pending",
        "bind.h",
        "	mptcp = mptcp_of(sk, transport);
	if (mptcp) {",
        "	mptcp = w || in_pool(port) || !port ? mptcp_of(sk, transport) : NULL;
	if (mptcp) {",
    ),
    (
        "an accepted connection looks first and counts itself second",
        "accept-acquire",
        "connect.h",
        "		/* Order: count first, look second. See reservation.h. */
		if (!(READ(w->reserved) & BIT(port)))
			return;
		use_over(st, netns);
",
        "		return;
",
    ),
    (
        "an MPTCP socket that a reservation admits is not counted",
        "mptcp-close",
        "bind.h",
        "	if (mptcp && !count_mptcp(mptcp, netns, port)) {",
        "	if (0) {",
    ),
    (
        "a private ephemeral range is found after its end",
        "ephemeral-acquire-acquire",
        "reservation.h",
        "	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, id);
	if (r->also & PORTKEEP_ALSO_COUNT)",
        "	if (r->also & PORTKEEP_ALSO_COUNT)",
    ),
    (
        "a private ephemeral range is taken off after its entry can be refilled",
        "acquire-wildcard",
        "reservation.h",
        "	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, id);
	if (r->also & PORTKEEP_ALSO_COUNT)",
        "	entry_vacate(r, id);
	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, id);
	entry_free(0);
	if (r->also & PORTKEEP_ALSO_COUNT)",
    ),
    (
        "a private ephemeral range that was not granted keeps the next one away",
        "ephemeral-bind-fails",
        "acquire.h",
        "	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, id);
	if (r->also)
		admitted_leave",
        "	if (r->also)
		admitted_leave",
    ),
    (
        "a draw from a private ephemeral range is not noted for the second program",
        "ephemeral-draw-draw",
        "bind.h",
        "		if (!w || !claim(st, r, s.token, port)) {",
        "		if (!w || !reservation_alive(r, s.token)) {",
    ),
    (
        "others are admitted by a reservation that has ended",
        "also-refilled",
        "reservation.h",
        "	if (r->also & PORTKEEP_ALSO_COUNT)
		admitted_leave(token, r->also);

",
        "",
    ),
    (
        "others that a failed request named stay behind",
        "also-bind",
        "acquire.h",
        "	if (r->also)
		admitted_leave(r->token, r->also);
",
        "",
    ),
    (
        "others that a change took off stay behind",
        "also-change",
        "admin.h",
        "	admitted_leave(q->token, before);
",
        "",
    ),
    (
        "a bind that checks whether another is admitted does not see a change",
        "also-change",
        "also.h",
        "		return READ(r->also) == key.also;
",
        "		return 1;
",
    ),
    (
        "the seal of a quota overwrites a charge",
        "forget-quota",
        "admin.h",
        "	return __sync_val_compare_and_swap(&quota->used, 0, PORTKEEP_SEALED) ? EADDRINUSE : 0;
",
        "	if (READ(quota->used))
		return EADDRINUSE;
	WRITE(quota->used, PORTKEEP_SEALED);
	return 0;
",
    ),
]
