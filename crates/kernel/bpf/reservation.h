/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The life of a reservation: entered, claimed word by word, ended.
 *
 * The field `gate` decides in which state it is (see portkeep.h):
 *
 *   CLAIMING ──> ACTIVE                    by ACQUIRE, once all its ports are claimed and vacant
 *   CLAIMING ──> PENDING ──> ACTIVE        if the agent has to look for sockets first
 *   CLAIMING ──> OUTRUN                    by a bind of one of the ports: ACQUIRE gives up
 *   PENDING ──> CONTESTED                  by a bind of one of the ports: the request will be refused
 *   PENDING, CONTESTED, ACTIVE ──> 0       by its end: the gate is shut
 *
 * Each step is an atomic compare-and-exchange. So if several CPUs try different steps, exactly
 * one of them succeeds. Tokens never repeat. So a step fails, as it must, if the entry has been
 * freed and filled again meanwhile.
 *
 * A request that has not been granted keeps no process from a port. So a bind first counts itself
 * (`uses`), and then looks at the gate. ACQUIRE first claims, then checks whether any bind is
 * counted, and then changes the gate. If ACQUIRE does not see a bind, that bind looks at the gate
 * later: if it finds CLAIMING or PENDING, it changes it, and if it finds ACTIVE, it is refused.
 */
#ifndef PORTKEEP_RESERVATION_H
#define PORTKEEP_RESERVATION_H

#include "also.h"
#include "quota.h"
#include "range.h"
#include "search.h"
#include "token.h"

/* A block of ports being claimed or freed. */
struct span {
	__u64 netns;
	__u32 transports;
	__u32 first, last; /* inclusive */
	__u32 id;
	__u32 stop; /* words from here on are not claimed: base << 1, plus 1 for UDP */
	__u32 result; /* of claiming: an errno */
	__u8 vacant; /* claim only what no socket has, as far as is known here */
	__u8 fresh; /* and nothing that was closed lately */
	__u16 in_force; /* of freeing: it was, so ports with bound sockets linger (R7) */
};

__inline __u64 gate_of(__u64 token, __u32 state)
{
	return token ^ state;
}

__inline int reservation_alive(struct reservation *r, __u64 token)
{
	return token && READ(r->gate) == token;
}

/* True if this caller has taken the step. */
__inline int gate_step(struct reservation *r, __u64 token, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap(&r->gate, gate_of(token, from), gate_of(token, to)) == gate_of(token, from);
}

__inline int reservation_contains(struct reservation *r, __u32 port)
{
	return port >= r->start && port < (__u32)r->start + r->count;
}

__inline __u64 span_mask(struct span *s, __u32 base)
{
	__u32 a = s->first > base ? s->first - base : 0;
	__u32 b = s->last < base + 63 ? s->last - base : 63;

	return bits(a, b);
}

#define AT(base, udp) ((base) << 1 | (udp))

/*
 * The head or the lead is entered with an atomic operation, before the
 * counts are read: a bind that is not counted yet will find the reservation.
 */
__inline int span_claim_word(struct span *s, __u32 transport, __u32 base)
{
	__u32 id = s->id;
	struct reservation *r = bpf_map_lookup_elem(&reservations, &id);
	struct word *w = r ? word_create(s->netns, transport, base, r->payer) : NULL;
	__u64 mask = span_mask(s, base);

	s->stop = AT(base, transport == PORTKEEP_UDP);
	if (!w) {
		s->result = r ? no_room(r->payer) : ENOMEM;
		return 0;
	}
	if (!word_claim(w, transport, base, mask)) {
		s->result = EADDRINUSE;
		return 0;
	}
	if (base <= s->first) {
		w->owner[index64(s->first)] = s->id;
		/* Set the head before the look at the sockets: a bind counts itself before it looks for the head. */
		ORDERED(__sync_fetch_and_or(&w->heads, BIT(s->first)));
	} else {
		__sync_lock_test_and_set(&w->lead, s->id);
	}
	/* Marks in `drawn` from binds of a former holder mean nothing to the next holder. */
	if (READ(w->drawn) & mask)
		__sync_fetch_and_and(&w->drawn, ~mask);
	if ((s->vacant && word_occupied(w) & mask) || (s->fresh && expiring_get(&w->left, LEFT_SHIFT) & mask)) {
		s->stop++;
		s->result = EADDRINUSE;
		return 0;
	}
	return 1;
}

static long span_claim_step(__u32 i, void *ctx)
{
	struct span *s = *(struct span **)ctx;
	__u32 base = ((s->first >> 6) + i) << 6;

	if (base > s->last)
		return 1;
	if (s->transports & PORTKEEP_TCP && !span_claim_word(s, PORTKEEP_TCP, base))
		return 1;
	if (s->transports & PORTKEEP_UDP && !span_claim_word(s, PORTKEEP_UDP, base))
		return 1;
	return 0;
}

/*
 * Free the part of an ended block that lies in one word. If no socket is
 * bound, there is none to wait for: a bind that has not counted itself yet
 * looks at the gate after it has done so, and by then the gate is shut.
 */
__inline void span_free_word(struct span *s, __u32 transport, __u32 base)
{
	struct word *w = word_of(s->netns, transport, base);
	__u64 mask = span_mask(s, base);
	int linger;

	if (!w)
		return;
	/* Before the ports are freed: then another reservation may claim them, and its marks must not be removed. */
	if (base <= s->first)
		__sync_fetch_and_and(&w->heads, ~BIT(s->first));
	else
		w->lead = 0;
	linger = s->in_force && READ(w->bound);
	if (linger)
		ORDERED(__sync_fetch_and_or(&w->lingering, mask));
	reserved_clear(w, transport, base, linger ? vacant_of(w, mask) : mask);
}

static long span_free_step(__u32 i, void *ctx)
{
	struct span *s = *(struct span **)ctx;
	__u32 base = ((s->first >> 6) + i) << 6;

	if (base > s->last || AT(base, 0) >= s->stop)
		return 1;
	if (s->transports & PORTKEEP_TCP)
		span_free_word(s, PORTKEEP_TCP, base);
	if (s->transports & PORTKEEP_UDP && AT(base, 1) < s->stop)
		span_free_word(s, PORTKEEP_UDP, base);
	return 0;
}

__alone int span_free(struct span *s)
{
	if (!s)
		return 0;
	/* Most blocks are in one word. A call of bpf_loop (a helper that repeats a function) is slower than a step. */
	if (s->first >> 6 == s->last >> 6)
		span_free_step(0, &s);
	else
		bpf_loop(1024, span_free_step, &s, 0);
	return 0;
}

/* Words are claimed in ascending order, so of two overlapping claims at least one goes on. */
__alone int span_claim(struct span *s)
{
	int error;

	if (!s)
		return ENOMEM;
	s->result = 0;
	if (s->first >> 6 == s->last >> 6)
		span_claim_step(0, &s);
	else
		bpf_loop(1024, span_claim_step, &s, 0);
	error = s->result;
	if (error)
		span_free(s);
	else
		s->stop = ~0;
	return error;
}

struct entry_search {
	struct entries *entries;
	__u32 id;
};

static long entry_step(__u32 i, void *ctx)
{
	struct entry_search *s = ctx;
	__u32 word = (s->entries->hint + i) & (PORTKEEP_RESERVATIONS / 64 - 1);
	__u64 free = ~*(volatile __u64 *)&s->entries->taken[word];
	__u32 n;

	if (!word)
		free &= ~1ULL;
	if (!free)
		return 0;
	n = lowest(free);
	/* Another CPU has taken it: to try the next word is faster than to try this one again. */
	if (__sync_fetch_and_or(&s->entries->taken[word], BIT(n)) & BIT(n))
		return 0;
	s->entries->hint = word;
	s->id = word * 64 + n;
	return 1;
}

/* Take a free entry for the caller. Returns its id, 0 if there is none left. */
__noinline __u32 entry_take(void)
{
	struct entry_search s = {};
	__u32 zero = 0;

	s.entries = bpf_map_lookup_elem(&entries, &zero);
	if (!s.entries)
		return 0;
	if (!entry_step(0, &s))
		bpf_loop(PORTKEEP_RESERVATIONS / 64 + 1, entry_step, &s, 0);
	return s.id;
}

__inline void entry_free(__u32 id)
{
	__u32 zero = 0;
	struct entries *e = bpf_map_lookup_elem(&entries, &zero);

	/* The fields are hidden already (token 0). The next holder fills them: no write of ours may come after this. */
	if (e)
		ORDERED(__sync_fetch_and_and(&e->taken[(id >> 6) & (PORTKEEP_RESERVATIONS / 64 - 1)], ~BIT(id)));
}

__inline __u32 transports_of(__u32 transports, __u32 count)
{
	return transports == (PORTKEEP_TCP | PORTKEEP_UDP) ? 2 * count : count;
}

__noinline int reservation_event(__u32 kind, __u32 id, struct reservation *r, __u32 by)
{
	struct event e = { .kind = kind, .id = id };

	if (!r)
		return 0;
	e.netns = r->netns;
	e.start = r->start;
	e.count = r->count;
	e.transports = r->transports;
	e.owner = r->pid;
	return publish(&e, by);
}

#define GATE_OPEN 0xff /* not shut by this caller */

/* Shut the gate. Returns the state it had. PENDING is tried first: it can become one of the other two meanwhile. */
__inline __u32 gate_shut(struct reservation *r, __u64 token, int not_active)
{
	if (!reservation_alive(r, token)) {
		__u64 pending = gate_of(token, PORTKEEP_GATE_PENDING);
		__u64 contested = gate_of(token, PORTKEEP_GATE_CONTESTED);

		if (__sync_val_compare_and_swap(&r->gate, pending, 0) == pending)
			return PORTKEEP_GATE_PENDING;
		if (__sync_val_compare_and_swap(&r->gate, contested, 0) == contested)
			return PORTKEEP_GATE_CONTESTED;
	}
	if (not_active)
		return GATE_OPEN;
	return __sync_val_compare_and_swap(&r->gate, token, 0) == token ? PORTKEEP_GATE_ACTIVE : GATE_OPEN;
}

__inline void entry_vacate(struct reservation *r, __u32 id)
{
	WRITE(r->token, 0);
	entry_free(id);
}

/*
 * A refused entry stays, without ports, until two things have happened: the refuser has finished with it,
 * and its owner has learned of the refusal (or has closed its socket). The later of the two frees the
 * entry. The field `refusal` says which one has happened: it is the token once the refuser has finished,
 * and the complement of the token once the owner has learned of it. Any other value is left from another
 * reservation in this entry, and means neither. Until the entry is freed, one port stays charged.
 */
__inline void refusal_done(struct reservation *r, __u32 id, __u64 token)
{
	__u64 payer = r->payer;

	for (int i = 0; i < 4; i++) {
		__u64 old = READ(r->refusal);

		if (old == ~token) {
			entry_vacate(r, id);
			quota_return(payer, 1);
			return;
		}
		if (__sync_val_compare_and_swap(&r->refusal, old, token) == old)
			return;
	}
}

__inline void refusal_heard(struct reservation *r, __u32 id, __u64 token)
{
	__u64 payer = r->payer;

	for (int i = 0; i < 4; i++) {
		__u64 old = READ(r->refusal);

		if (old == ~token)
			return;
		if (old == token) {
			if (__sync_val_compare_and_swap(&r->refusal, token, 0) == token) {
				entry_vacate(r, id);
				quota_return(payer, 1);
			}
			return;
		}
		if (__sync_val_compare_and_swap(&r->refusal, old, ~token) == old)
			return;
	}
}

/* Whether it was refused, and its owner has not learned of it yet. */
__inline int is_refused(struct reservation *r, __u64 token)
{
	return READ(r->refusal) == token;
}

/*
 * End the reservation `r`, found under `id`, if `token` is still its
 * token. With an `error` it is refused: that happens only to a request
 * that is not in force yet. Returns 0, or ENOENT if it had ended already.
 */
__noinline int reservation_end(struct reservation *r, __u32 id, __u64 token, __u32 error, __u32 by)
{
	struct counters *k = the_counters();
	struct span s = { .id = id };
	__u32 ports, state;
	__u64 payer;

	if (!r || !k || !token)
		return ENOENT;
	state = gate_shut(r, token, error != 0);
	if (state == GATE_OPEN) {
		/* It was refused before, and now its owner has learned of it or no longer asks about it. */
		if (!error && READ(r->token) == token && !READ(r->gate))
			refusal_heard(r, id, token);
		return ENOENT;
	}
	s.netns = r->netns;
	s.transports = r->transports;
	s.first = r->start;
	s.last = (__u32)r->start + r->count - 1;
	s.stop = ~0;
	s.in_force = state == PORTKEEP_GATE_ACTIVE;
	span_free(&s);
	if (r->flags & PORTKEEP_EPHEMERAL)
		range_leave(r, id);
	if (r->also & PORTKEEP_ALSO_COUNT)
		admitted_leave(token, r->also);

	payer = r->payer;
	ports = transports_of(r->transports, r->count);
	if (r->flags & PORTKEEP_PERSISTENT)
		error = 0; /* no socket owns it, so nobody would ask */
	else if (state != PORTKEEP_GATE_ACTIVE)
		pending_return(payer);
	__sync_fetch_and_sub(&k->ports, ports);
	__sync_fetch_and_sub(&k->reservations, 1);
	if (k->listeners)
		reservation_event(PORTKEEP_EVENT_ENDED, id, r, by);
	if (error) {
		r->error = error;
		quota_return(payer, ports - 1);
		refusal_done(r, id, token);
	} else {
		entry_vacate(r, id);
		quota_return(payer, ports);
	}
	return 0;
}

/* Whether the calling process acquired it. A process that later got the same process id began after the ACQUIRE. */
__alone int is_owner(struct reservation *r)
{
	struct task_struct *task, *leader = NULL;
	__u64 began = 0;

	if (!r || bpf_get_current_pid_tgid() >> 32 != r->pid)
		return 0;
	if (!places_known)
		return 1;
	task = bpf_get_current_task();
	if (FETCH(leader, task, group_leader) || FETCH(began, leader, start_time))
		return 0;
	return began <= r->since;
}

/* Whether the calling process is in the scope. */
__inline int in_scope(struct reservation *r, __u32 id)
{
	struct place *unit;

	if (is_kernel_thread())
		return 0;
	switch (r->scope) {
	case PORTKEEP_SCOPE_PROCESS:
		return is_owner(r);
	case PORTKEEP_SCOPE_USER:
		return (__u32)bpf_get_current_uid_gid() == r->uid;
	case PORTKEEP_SCOPE_CGROUP:
		if (r->flags & PORTKEEP_PERSISTENT)
			return in_path(r, id);
		return bpf_get_current_ancestor_cgroup_id(r->level) == r->cgroup;
	case PORTKEEP_SCOPE_GROUP:
		return in_group(r->gid);
	case PORTKEEP_SCOPE_UNIT:
		unit = place_of(id, 0);
		return unit && in_unit(unit);
	case PORTKEEP_SCOPE_ADMIN:
		return is_administrator();
	}
	return 0;
}

/* Whether the calling process may use the reservation by an explicit bind. */
__inline int may_bind(struct reservation *r, __u32 id, __u64 token)
{
	return in_scope(r, id) || is_admitted(r, token);
}

/* Whether it may do so by association. Administrators may use every persistent reservation. */
__inline int may_associate(struct reservation *r, __u32 id, __u64 token)
{
	return may_bind(r, id, token) || (r->flags & PORTKEEP_PERSISTENT && is_administrator());
}

#endif
