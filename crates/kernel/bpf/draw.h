/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Draws: a free port of a block, for a bind to port 0 or a connect.
 */
#ifndef PORTKEEP_DRAW_H
#define PORTKEEP_DRAW_H

#include "use.h"

/* The search for a free port of a block. */
struct draw {
	__u64 netns;
	__u32 transport;
	__u32 first, last; /* inclusive */
	__u32 contested; /* take ports that other binds are about to take, too */
	__u32 skip; /* a port to leave out, 0 = none */
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
		free &= ~READ(w->drawn);
	if (d->skip >> 6 == base >> 6)
		free &= ~BIT(d->skip);
	for (int k = 0; k < 8 && free; k++) {
		__u32 n = lowest(free);

		if (!(__sync_fetch_and_or(&w->drawn, BIT(n)) & BIT(n)) || d->contested) {
			/* Another CPU may have bound it since the look. It counts before it clears its mark. */
			if (!uses(w, n)) {
				d->port = base + n;
				return 1;
			}
			__sync_fetch_and_and(&w->drawn, ~BIT(n));
		}
		free &= ~BIT(n);
	}
	return 0;
}

/*
 * The search is next-fit: it begins where the last draw ended. `drawn` keeps two binds at the same
 * moment from choosing the same port. Its bit stays set if the bind fails later. So if no other port
 * is free, the third round takes such a port too, and the kernel decides whether the bind succeeds.
 */
__alone __u32 draw(struct reservation *r, __u32 transport, __u32 skip)
{
	struct draw d = {};
	__u32 last, from;

	if (!r)
		return 0;
	d.netns = r->netns;
	d.transport = transport;
	d.skip = skip;
	last = (__u32)r->start + r->count - 1;
	from = r->start + r->next;
	if (from > last)
		from = r->start;

	d.first = from;
	d.last = last;
	/* Mostly the first word has a free port, and a call of bpf_loop costs more than its first step. */
	if (!draw_step(0, &d))
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

#endif
