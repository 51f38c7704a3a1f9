/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The administrator's door. The agent and the CLI run this program through
 * BPF_PROG_TEST_RUN on a packet that holds a struct admin_request: whoever can
 * open the pinned program may do this, no socket or process is looked at. It
 * is in the kernel because words change under many hands, and only atomic steps are safe.
 */
#ifndef PORTKEEP_ADMIN_H
#define PORTKEEP_ADMIN_H

#include "reservation.h"

__inline int admin_confirm(struct reservation *r, struct admin_request *q)
{
	__u64 token = q->token;

	if (!r || __sync_val_compare_and_swap(&r->gate, ~token, token) != ~token)
		return ENOENT;
	reservation_event(PORTKEEP_EVENT_GRANTED, q->id, r, BY_ADMIN);
	return 0;
}

__inline int admin_aside(struct admin_request *q)
{
	struct word *w;

	/* A namespace that is not known is never swept. */
	if (!space_of(q->netns))
		return ENOMEM;
	w = word_create(q->netns, q->transport, q->start);
	if (!w)
		return ENOMEM;
	if (!word_claim(w, q->transport, q->start, BIT(q->start)))
		return EADDRINUSE;
	__sync_fetch_and_or(&w->aside, BIT(q->start));
	return 0;
}

__inline int admin_unaside(struct admin_request *q)
{
	struct word *w = word_of(q->netns, q->transport, q->start);

	if (!w || !(__sync_fetch_and_and(&w->aside, ~BIT(q->start)) & BIT(q->start)))
		return ENOENT;
	reserved_clear(w, q->transport, q->start, BIT(q->start));
	return 0;
}

/* The answer is an errno, 0 for done. */
__inline int on_admin(struct __sk_buff *ctx)
{
	struct admin_request *in = (void *)(long)ctx->data;
	struct admin_request q;
	struct reservation *r;
	__u32 id;

	if ((void *)(in + 1) > (void *)(long)ctx->data_end)
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
	}
	return EINVAL;
}

#endif
