/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The administrator program. The agent and the CLI run it through BPF_PROG_TEST_RUN, a
 * command of bpf(2) that runs a program on a packet from user space. Here the packet is a
 * struct admin_request. Every process that can open the pinned program has the right to do
 * this: the program checks no socket and no process. These steps are done in the kernel
 * because other CPUs change words at the same time, so that only atomic steps are safe.
 */
#ifndef PORTKEEP_ADMIN_H
#define PORTKEEP_ADMIN_H

#include "acquire.h"

__inline int admin_confirm(struct reservation *r, struct admin_request *q)
{
	if (!r || !q->token)
		return ENOENT;
	if (!gate_step(r, q->token, PORTKEEP_GATE_PENDING, PORTKEEP_GATE_ACTIVE))
		return READ(r->gate) == gate_of(q->token, PORTKEEP_GATE_CONTESTED) ? EADDRINUSE : ENOENT;
	if (!(r->flags & PORTKEEP_PERSISTENT))
		pending_return(r->payer);
	reservation_event(PORTKEEP_EVENT_GRANTED, q->id, r, BY_ADMIN);
	return 0;
}

/* A pool port is in use by a socket that no program saw being bound: wildcard requests skip the port. */
__inline int admin_aside(struct admin_request *q)
{
	struct word *w;

	/* User space removes vacant words only in namespaces that have an element in `spaces`. */
	if (!space_of(q->netns, PORTKEEP_NOBODY))
		return ENOMEM;
	w = word_create(q->netns, q->transports, q->start, PORTKEEP_NOBODY);
	if (!w)
		return ENOMEM;
	if (READ(w->reserved) & BIT(q->start))
		return EADDRINUSE;
	filter_counted(q->transports, q->start);
	__sync_fetch_and_or(&w->aside, BIT(q->start));
	return 0;
}

__inline int admin_unaside(struct admin_request *q)
{
	struct word *w = word_of(q->netns, q->transports, q->start);

	return w && __sync_fetch_and_and(&w->aside, ~BIT(q->start)) & BIT(q->start) ? 0 : ENOENT;
}

/*
 * Seal a word that user space is about to remove (see table.h), or open it
 * again. While it is sealed it looks full, so that nothing is claimed in it.
 */
__inline int admin_seal(struct admin_request *q)
{
	struct word_key key = { .netns = q->netns, .word = q->start >> 6, .transport = q->transports };
	struct word *w = bpf_map_lookup_elem(&words, &key);
	__u32 *count = filter_of(q->transports, q->start);

	if (!w || !count)
		return ENOENT;
	if (!q->limit) {
		WRITE(w->sealed, 0);
		__sync_fetch_and_and(&w->reserved, 0);
		return 0;
	}
	if (READ(w->bound) || READ(w->aside) || READ(w->drawn))
		return EADDRINUSE;
	if (!reserved_set(w, q->transports, q->start, 0, ~0ULL))
		return EADDRINUSE;
	/* reserved_set has counted the word in the filter, but the filter must count only reservations. */
	__sync_fetch_and_sub(count, 1);
	WRITE(w->sealed, 1);
	return 0;
}

/* Seal the quota of a namespace's root in the same way: charges to it fail until it is removed. */
__inline int admin_seal_quota(struct admin_request *q)
{
	__u64 payer = q->account;
	struct quota *quota = bpf_map_lookup_elem(&quotas, &payer);

	if (!quota)
		return ENOENT;
	if (!q->limit) {
		__sync_fetch_and_sub(&quota->used, PORTKEEP_SEALED);
		return 0;
	}
	if (READ(quota->words) || READ(quota->pending) || READ(quota->limit))
		return EADDRINUSE;
	return __sync_val_compare_and_swap(&quota->used, 0, PORTKEEP_SEALED) ? EADDRINUSE : 0;
}

__inline int admin_avoid(struct admin_request *q)
{
	struct space *sp = space_of(q->netns, PORTKEEP_NOBODY);

	if (!sp || (__u32)q->start + q->count > 65536)
		return EINVAL;
	sp->avoid_first = q->start;
	sp->avoid_last = q->count ? q->start + q->count - 1 : 0;
	return 0;
}

/* The request, NULL if the packet is too short for one. */
__inline struct admin_request *request_of(struct __sk_buff *ctx)
{
	struct admin_request *in = (void *)(long)ctx->data;

	return (void *)(in + 1) > (void *)(long)ctx->data_end ? NULL : in;
}

/* Enter the others that a request admits. They follow it in the packet. */
__noinline int admit_named(struct __sk_buff *ctx, __u64 token, __u32 also)
{
	struct admin_request *in = request_of(ctx);

	return in ? admit((void *)(in + 1), (void *)(long)ctx->data_end, token, also) : EINVAL;
}

/*
 * Create a persistent reservation. It is claimed, and PENDING, until user space
 * has entered whom it is for and has looked for sockets on its ports. Then user
 * space confirms it or ends it. If a bind comes in the meantime, the bind wins.
 */
__noinline int admin_create(struct __sk_buff *ctx)
{
	struct admin_request *in = request_of(ctx);
	struct counters *k = the_counters();
	struct config *c = the_config();
	struct acquisition a = {};
	struct reservation *r;
	struct space *sp;
	__u32 ports, id;
	int error;

	if (!in || !c || !k)
		return EINVAL;
	a.ask.start = in->start;
	a.ask.count = in->count;
	a.ask.align = in->align;
	a.ask.also = in->also;
	a.ask.flags = in->flags & (PORTKEEP_BOTH | PORTKEEP_STRICT | PORTKEEP_EPHEMERAL);
	a.span.netns = in->netns;
	a.span.transports = in->transports;
	if (!request_valid(&a.ask) || !a.span.transports || a.span.transports > (PORTKEEP_TCP | PORTKEEP_UDP))
		return EINVAL;
	if (in->scope < PORTKEEP_SCOPE_USER || in->scope > PORTKEEP_SCOPE_ADMIN || in->level > PORTKEEP_PLACE_DEPTH)
		return EINVAL;
	/* A bind to port 0 would draw for only one of several audiences (E6). */
	if (in->also && in->flags & PORTKEEP_EPHEMERAL)
		return EINVAL;
	a.ask.flags |= PORTKEEP_PERSISTENT;
	a.ask.scope = in->scope;
	__builtin_memcpy(a.ask.label, in->label, sizeof(a.ask.label));
	a.cgroup = in->account;
	a.uid = in->uid;
	a.gid = in->gid;
	a.level = in->level;
	a.pending = 1;

	sp = space_of(a.span.netns, PORTKEEP_NOBODY);
	if (!sp)
		return ENOMEM;
	a.span.id = id = entry_take();
	r = bpf_map_lookup_elem(&reservations, &id);
	if (!id || !r)
		return ENOMEM;
	r->payer = PORTKEEP_NOBODY;
	a.now = bpf_ktime_get_ns();
	sp->last = a.now;
	a.token = token_next(c, r, id);
	a.span.first = a.ask.start;
	a.span.last = (__u32)a.ask.start + a.ask.count - 1;
	a.span.vacant = !a.ask.start;
	error = enter_reservation(&a, r, 0, BY_ADMIN);
	if (!error && r->also)
		error = admit_named(ctx, r->token, r->also);
	if (!error)
		error = a.ask.start ? claim_block(&a) : claim_wildcard(&a, sp);
	if (error) {
		leave_reservation(r, id);
		return error;
	}
	ports = transports_of(a.span.transports, a.ask.count);
	__sync_fetch_and_add(&k->ports, ports);
	__sync_fetch_and_add(&k->reservations, 1);
	in = request_of(ctx);
	if (!in)
		return EINVAL;
	in->id = id;
	in->token = a.token;
	in->start = a.span.first;
	return 0;
}

/* Done here because user space could only write limit and use together. Charges made meanwhile would be lost. */
__inline int admin_limit(struct admin_request *q)
{
	struct quota *quota = quota_of(q->account);

	if (!quota)
		return ENOMEM;
	quota->limit = q->limit;
	return 0;
}

/* User space removes words. It cannot subtract from a number that changes meanwhile, so this program does it. */
__inline int admin_forget(struct admin_request *q)
{
	__u64 payer = q->account;

	share_return(payer, quota_open(payer), q->limit);
	return 0;
}

/*
 * During the change the reservation is for administrators only: a bind that sees half of the change is refused.
 * User space changes and ends a persistent reservation from one thread, so its element in `ranges` has one writer.
 */
__inline int admin_change(struct __sk_buff *ctx, struct reservation *r, struct admin_request *q)
{
	__u8 fixed = PORTKEEP_PERSISTENT | PORTKEEP_BOTH;
	__u32 before, also;
	int error;

	if (!r || !reservation_alive(r, q->token) || !(r->flags & PORTKEEP_PERSISTENT))
		return ENOENT;
	if (q->scope < PORTKEEP_SCOPE_USER || q->scope > PORTKEEP_SCOPE_ADMIN || q->level > PORTKEEP_PLACE_DEPTH)
		return EINVAL;
	if (q->flags & PORTKEEP_EPHEMERAL && (q->scope == PORTKEEP_SCOPE_ADMIN || q->flags & PORTKEEP_STRICT || q->also))
		return EINVAL;
	if (q->also > PORTKEEP_ALSO_MAX)
		return EINVAL;
	/* A new value each time: a bind that has read half of the old fields must notice the change. */
	before = r->also;
	also = (before | PORTKEEP_ALSO_COUNT) + 1 + q->also;
	error = admit_named(ctx, q->token, also);
	if (error) {
		admitted_leave(q->token, also);
		return error;
	}
	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, q->id);
	*(volatile __u8 *)&r->scope = PORTKEEP_SCOPE_ADMIN;
	FENCE();
	r->flags = (r->flags & fixed) | (q->flags & (PORTKEEP_STRICT | PORTKEEP_EPHEMERAL));
	r->cgroup = q->account;
	r->uid = q->uid;
	r->gid = q->gid;
	r->level = q->level;
	WRITE(r->also, also);
	__builtin_memcpy(r->label, q->label, sizeof(r->label));
	FENCE();
	*(volatile __u8 *)&r->scope = q->scope;
	admitted_leave(q->token, before);
	if (!(r->flags & PORTKEEP_EPHEMERAL))
		return 0;
	error = range_enter(r, q->id);
	/* The reservation is in force nevertheless, and its scope may bind its ports by number. */
	if (error)
		r->flags &= ~PORTKEEP_EPHEMERAL;
	return error;
}

__noinline int admin_other(struct __sk_buff *ctx)
{
	struct admin_request *in = request_of(ctx);
	struct admin_request q;
	struct reservation *r;
	__u32 id;

	if (!in)
		return EINVAL;
	q = *in;
	id = q.id;
	r = bpf_map_lookup_elem(&reservations, &id);
	switch (q.op) {
	case PORTKEEP_ADMIN_CONFIRM:
		return admin_confirm(r, &q);
	case PORTKEEP_ADMIN_REFUSE:
		return reservation_end(r, id, q.token, q.error ? q.error : EADDRINUSE, BY_ADMIN);
	case PORTKEEP_ADMIN_END:
		return reservation_end(r, id, q.token, 0, BY_ADMIN);
	case PORTKEEP_ADMIN_ASIDE:
		return admin_aside(&q);
	case PORTKEEP_ADMIN_UNASIDE:
		return admin_unaside(&q);
	case PORTKEEP_ADMIN_CHANGE:
		return admin_change(ctx, r, &q);
	case PORTKEEP_ADMIN_LIMIT:
		return admin_limit(&q);
	case PORTKEEP_ADMIN_FORGET:
		return admin_forget(&q);
	case PORTKEEP_ADMIN_SEAL:
		return admin_seal(&q);
	case PORTKEEP_ADMIN_SEAL_QUOTA:
		return admin_seal_quota(&q);
	case PORTKEEP_ADMIN_AVOID:
		return admin_avoid(&q);
	}
	return EINVAL;
}

/* The answer is an errno, 0 for done. The result of CREATE is in the packet. */
__inline int on_admin(struct __sk_buff *ctx)
{
	struct admin_request *in = request_of(ctx);

	if (!in)
		return EINVAL;
	return in->op == PORTKEEP_ADMIN_CREATE ? admin_create(ctx) : admin_other(ctx);
}

#endif
