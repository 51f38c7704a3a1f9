/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The wildcard search: it finds the first run of `count` free ports of the pool at
 * or after a cursor (next-fit). It looks at 64 ports a step, and only reads. The
 * ports are claimed afterwards, and the claim fails if another CPU was faster.
 */
#ifndef PORTKEEP_SEARCH_H
#define PORTKEEP_SEARCH_H

#include "table.h"

struct search {
	__u64 netns;
	__u64 pattern; /* bits of a word where an aligned block may start */
	__u32 transports;
	__u32 count;
	__u32 align;
	__u32 first, last; /* ports to look at, inclusive */
	__u32 run; /* where the free ports just below the word at hand begin */
	__u32 found; /* 0 = nothing yet */
	__u32 avoid_first, avoid_last; /* ports to leave out, inclusive; avoid_last 0: none */
	__u32 fresh; /* leave out ports that were closed lately */
	__u8 shift[8]; /* see search_prepare */
};

/*
 * If x has a run of n set bits, x & x>>1 & ... & x>>(n-1) has a set bit. Six shifts compute this for
 * any n up to 64: each one doubles the length that is covered (1, 2, 4 ...), and the last one adds
 * the rest. The shifts are the same for every word. They are computed once and kept in memory,
 * because otherwise the verifier would check every path through their computation again at each word.
 */
__inline void search_prepare(struct search *s)
{
	__u32 have = 1;

	for (int k = 0; k < 6; k++) {
		__u32 more = s->count - have;

		if (more > have)
			more = have;
		s->shift[k] = more;
		have += more;
	}
	s->pattern = 1;
	for (int k = 0; k < 6; k++) {
		__u32 step = s->align << k;

		if (step < 64)
			s->pattern |= s->pattern << step;
	}
}

__inline __u64 word_taken(struct search *s, __u32 transport, __u32 base)
{
	struct word *w = maybe_taken(transport, base) ? word_of(s->netns, transport, base) : NULL;
	__u64 taken;

	if (!w)
		return 0;
	taken = READ(w->reserved) | word_occupied(w);
	return s->fresh ? taken | expiring_get(&w->left, LEFT_SHIFT) : taken;
}

static long search_step(__u32 i, void *ctx)
{
	struct search *s = *(struct search **)ctx;
	__u32 base = ((s->first >> 6) + i) << 6;
	__u64 free;

	if (base > s->last)
		return 1;
	free = ~0ULL;
	if (s->transports & PORTKEEP_TCP)
		free &= ~word_taken(s, PORTKEEP_TCP, base);
	if (s->transports & PORTKEEP_UDP)
		free &= ~word_taken(s, PORTKEEP_UDP, base);
	if (s->avoid_last >= base && s->avoid_first <= base + 63)
		free &= ~bits(s->avoid_first > base ? s->avoid_first - base : 0,
			      s->avoid_last < base + 63 ? s->avoid_last - base : 63);
	if (base < s->first)
		free &= bits(s->first & 63, 63);
	if (base + 63 > s->last)
		free &= bits(0, s->last & 63);

	/* A run that began in a word below and goes on in this one, or begins with this one. */
	__u32 head = ~free ? __builtin_ctzll(~free) : 64;
	__u32 start = (s->run + s->align - 1) & ~(s->align - 1);

	if (base + head >= start + s->count) {
		s->found = start;
		return 1;
	}
	/* A run within the word. */
	if (s->count <= 64) {
		__u64 runs = free;

		for (int k = 0; k < 6; k++)
			runs &= runs >> (s->shift[k] & 63);
		runs &= base & (s->align - 1) ? 0 : s->pattern;
		if (runs) {
			s->found = base + __builtin_ctzll(runs);
			return 1;
		}
	}
	if (~free)
		s->run = base + 64 - __builtin_clzll(~free);
	return 0;
}

/* One round: first from the cursor up, then from the bottom to where a run would cross the cursor. */
__alone int search_run(struct search *s, __u32 first, __u32 last, __u32 cursor)
{
	if (!s)
		return 0;
	if (cursor < first || cursor > last)
		cursor = first;
	s->found = 0;
	s->run = cursor;
	s->first = cursor;
	s->last = last;
	if (!search_step(0, &s))
		bpf_loop(1024, search_step, &s, 0);
	if (s->found || cursor == first)
		return s->found;
	s->run = first;
	s->first = first;
	s->last = cursor + s->count - 2;
	if (s->last > last)
		s->last = last;
	bpf_loop(1024, search_step, &s, 0);
	return s->found;
}

#endif
