/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The port table: claiming and freeing ports, which reservation a port belongs to, and how
 * many sockets are bound to it. Several CPUs change a word at the same time, without a lock.
 * The order of the steps keeps the data correct; comments explain the order where it matters.
 */
#ifndef PORTKEEP_TABLE_H
#define PORTKEEP_TABLE_H

#include "quota.h"

#define BIT(n) (1ULL << ((n) & 63))

/*
 * A full memory barrier: no CPU sees later accesses before earlier ones. BPF has no
 * instruction for it, but an atomic operation that returns the old value is one, on whatever
 * memory it works. x86 keeps the order of loads without a barrier; other machines do not.
 */
#define FENCE()                                                     \
	do {                                                        \
		__u64 cell = 0;                                     \
		__u64 old = __sync_fetch_and_add(&cell, 1);         \
		asm volatile("" : : "r"(old), "r"(&cell) : "memory"); \
	} while (0)

/*
 * An atomic operation that is a full barrier. If its old value were not used, the compiler
 * would emit an operation that does not return it, and that is no barrier on arm64.
 */
#define ORDERED(operation)                           \
	do {                                         \
		__u64 old = (operation);             \
		asm volatile("" : : "r"(old) : "memory"); \
	} while (0)

/* Other CPUs change this data. The compiler must read or write it once, and where the source says. */
#define READ(field) (*(volatile typeof(field) *)&(field))
#define WRITE(field, value) (*(volatile typeof(field) *)&(field) = (value))

/* The verifier must see the `& 63`. The compiler knows that it changes nothing, and must not remove it. */
__inline __u32 index64(__u32 n)
{
	asm volatile("" : "+r"(n));
	return n & 63;
}

__inline __u32 lowest(__u64 mask)
{
	return index64(__builtin_ctzll(mask));
}

__inline __u32 highest(__u64 mask)
{
	return index64(63 - __builtin_clzll(mask));
}

/* Bits a..b of a word, both inclusive, 0 <= a <= b <= 63. */
__inline __u64 bits(__u32 a, __u32 b)
{
	return (~0ULL << (a & 63)) & (~0ULL >> (63 - (b & 63)));
}

/*
 * User space removes words, and the memory of a removed word may be reused at once. So user
 * space seals the word, waits until all programs that run at that moment have ended, checks
 * the word once more, and then removes it. For programs a sealed word does not exist.
 */
__inline struct word *word_open(struct word *w)
{
	return w && READ(w->sealed) ? NULL : w;
}

/* The word, sealed or not. For a socket that is counted there: such a word cannot be removed. */
__inline struct word *word_counted(__u64 netns, __u32 transport, __u32 port)
{
	struct word_key key = {
		.netns = netns, .word = port >> 6, .transport = transport
	};
	return bpf_map_lookup_elem(&words, &key);
}

__inline struct word *word_of(__u64 netns, __u32 transport, __u32 port)
{
	return word_open(word_counted(netns, transport, port));
}

/* The room is charged to the account `payer`, which has a quota already. */
__noinline struct word *word_create(__u64 netns, __u32 transport, __u32 port, __u64 payer)
{
	struct word_key key = {
		.netns = netns, .word = port >> 6, .transport = transport
	};
	struct word *w = word_open(bpf_map_lookup_elem(&words, &key));
	struct quota *q;

	if (w)
		return w;
	q = quota_open(payer);
	/* key.zero is the index 0. (Another variable would not fit on the stack on Linux 6.1.) */
	w = bpf_map_lookup_elem(&blank, &key.zero);
	if (!w || share_charge(payer, q, 1))
		return NULL;
	if (bpf_map_update_elem(&words, &key, w, BPF_NOEXIST)) {
		/* Another CPU has entered it first, or it is sealed, or there is no memory. */
		share_return(payer, q, 1);
		return word_open(bpf_map_lookup_elem(&words, &key));
	}
	w = bpf_map_lookup_elem(&words, &key);
	if (w)
		w->payer = payer;
	return w;
}

/* Where the filter counts the word of a port. */
__inline __u32 *filter_of(__u32 transport, __u32 port)
{
	__u32 zero = 0;
	struct filter *f = bpf_map_lookup_elem(&filter, &zero);
	__u32 n = (transport == PORTKEEP_UDP) << 10 | port >> 6;

	/* As in index64. */
	asm volatile("" : "+r"(n));
	return f ? &f->words[n & 2047] : NULL;
}

/* False: the port is not reserved, in any namespace. */
__inline int maybe_reserved(__u32 transport, __u32 port)
{
	__u32 *count = filter_of(transport, port);

	return !count || READ(*count) & ~PORTKEEP_FILTER_COUNTED;
}

/* False: all ports of the word are free, in every namespace, as far as is known here. */
__inline int maybe_taken(__u32 transport, __u32 port)
{
	__u32 *count = filter_of(transport, port);

	return !count || READ(*count);
}

/* Called before a socket is counted. The bit stays set: to clear it would require a count of these sockets. */
__inline void filter_counted(__u32 transport, __u32 port)
{
	__u32 *count = filter_of(transport, port);

	if (count && !(READ(*count) & PORTKEEP_FILTER_COUNTED))
		__sync_fetch_and_or(count, PORTKEEP_FILTER_COUNTED);
}

/*
 * `reserved` changes here, and elsewhere only when admin.h removes a seal. The filter
 * counts the words in which it is not 0: it goes up before the first bit is set, and
 * down after the last bit is cleared, so that it is never 0 while a port is reserved.
 */
__inline int reserved_set(struct word *w, __u32 transport, __u32 port, __u64 old, __u64 new)
{
	__u32 *count = filter_of(transport, port);
	int done;

	if (!count)
		return 0;
	if (!old)
		__sync_fetch_and_add(count, 1);
	done = __sync_val_compare_and_swap(&w->reserved, old, new) == old;
	if (!old && !done)
		__sync_fetch_and_sub(count, 1);
	return done;
}

__inline void reserved_clear(struct word *w, __u32 transport, __u32 port, __u64 mask)
{
	__u64 old = __sync_fetch_and_and(&w->reserved, ~mask);
	__u32 *count = filter_of(transport, port);

	if (count && old && !(old & ~mask))
		__sync_fetch_and_sub(count, 1);
}

/*
 * Claim all of `mask` or nothing: of two overlapping blocks one gets the
 * word. The swap fails only if another CPU changes the same word within a few
 * nanoseconds. If it fails eight times in a row, the word counts as taken.
 */
__inline int word_claim(struct word *w, __u32 transport, __u32 port, __u64 mask)
{
	for (int i = 0; i < 8; i++) {
		__u64 old = READ(w->reserved);

		if (old & mask)
			return 0;
		if (reserved_set(w, transport, port, old, old | mask))
			return 1;
	}
	return 0;
}

/* The counts of sockets bound to a port have 16 bits. The space above this limit is for CPUs that count at once. */
#define USES_MAX 60000

__inline __u32 uses(struct word *w, __u32 port)
{
	__u32 pair = READ(w->uses[(port & 63) >> 1]);

	return port & 1 ? pair >> 16 : pair & 0xffff;
}

/* Count a socket; returns how many there were before. Reading that makes it a full barrier: later looks come after. */
__inline __u32 use_begin(struct word *w, __u32 port)
{
	__u32 old;

	__sync_fetch_and_add(&w->bound, 1);
	old = __sync_fetch_and_add(&w->uses[(port & 63) >> 1], port & 1 ? 1 << 16 : 1);
	return port & 1 ? old >> 16 : old & 0xffff;
}

/*
 * The last socket of a port whose block has ended frees the port. The bit in
 * `lingering` is cleared by an atomic operation: of the closing socket and
 * the ending reservation exactly one clears it, and then clears `reserved`.
 */
__inline void use_end(struct word *w, __u32 transport, __u32 port)
{
	__u32 one = port & 1 ? 1 << 16 : 1;
	__u32 old = __sync_fetch_and_sub(&w->uses[(port & 63) >> 1], one);

	if ((port & 1 ? old >> 16 : old & 0xffff) == 1 &&
	    __sync_fetch_and_and(&w->lingering, ~BIT(port)) & BIT(port))
		reserved_clear(w, transport, port, BIT(port));
	/* Last: from here on the word may be sealed and removed. */
	__sync_fetch_and_sub(&w->bound, 1);
}

/* Bits expire after 1 to 2 periods of 2^shift ns. If two CPUs begin one, a bit may be lost: a hint, or a rare one. */
#define LEFT_SHIFT 36 /* 69 s: longer than TIME_WAIT */
#define CLOSING_SHIFT 28 /* 0.27 s: the kernel was seen to need 81 ms at most */

/* Periods are counted from 1: period 0 is that of a word in which nothing was written yet. */
__inline __u64 period_now(__u32 shift)
{
	return (bpf_ktime_get_ns() >> shift) + 1;
}

__inline void expiring_set(struct expiring *e, __u32 port, __u32 shift)
{
	__u64 now = period_now(shift);

	if (READ(e->period) != now) {
		if (e->period + 1 != now)
			e->ports[~now & 1] = 0;
		e->ports[now & 1] = 0;
		e->period = now;
	}
	__sync_fetch_and_or(&e->ports[now & 1], BIT(port));
}

__inline __u64 expiring_get(struct expiring *e, __u32 shift)
{
	__u64 period = READ(e->period), now;

	if (!period)
		return 0;
	now = period_now(shift);
	if (now == period)
		return e->ports[0] | e->ports[1];
	return now == period + 1 ? e->ports[period & 1] : 0;
}

/*
 * Which of the 64 ports have bound sockets. This looks at four 16-bit counts at
 * a time, without a branch: with branches the verifier would check 2^64 paths.
 */
__inline __u64 word_in_use(struct word *w)
{
	const __u64 low15 = 0x7fff7fff7fff7fffULL, ones = 0x0001000100010001ULL;
	__u64 mask = 0;

	for (int i = 0; i < 16; i++) {
		__u64 four = ((volatile __u64 *)w->uses)[i];
		/* One bit at 0, 16, 32, 48 for each count that is not 0 ... */
		__u64 used = ((((four & low15) + low15) | four) >> 15) & ones;

		/* ... brought together in bits 48..51. */
		mask |= ((used * 0x0001000200040008ULL) >> 48 & 15) << (4 * i);
	}
	return mask;
}

/*
 * All ports of `mask` are marked as lingering. Returns those without a bound
 * socket, for the caller to free. The others stay claimed until their last
 * socket is closed (R7). The counts are read after the marks are made: a
 * socket that closes in between finds its mark, and frees its port itself.
 */
__inline __u64 vacant_of(struct word *w, __u64 mask)
{
	__u64 mine = mask & ~word_in_use(w);

	return mine & __sync_fetch_and_and(&w->lingering, ~mine);
}

/* Ports that some socket has, as far as is known here: bound, or in use in a way that ends unseen by any program. */
__inline __u64 word_occupied(struct word *w)
{
	__u64 mask = READ(w->aside) | expiring_get(&w->closing, CLOSING_SHIFT);

	return READ(w->bound) ? mask | word_in_use(w) : mask;
}

/*
 * The id of the reservation that a port may belong to: that of the nearest head at or
 * below the port. When a block has ended, its lingering ports have no head, and this
 * returns a neighbour. So the caller must check whether the block found contains the port.
 */
__inline __u32 word_owner(struct word *w, __u32 port)
{
	__u64 below = READ(w->heads) & bits(0, port & 63);

	if (!below)
		return READ(w->lead);
	return READ(w->owner[highest(below)]);
}

#endif
