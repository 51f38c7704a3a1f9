/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Accounts. The quota limits the ports that an account holds, and the
 * share limits its room in the port table. User space gives room back,
 * because only user space removes words (see portkeep.h, FORGET).
 */
#ifndef PORTKEEP_QUOTA_H
#define PORTKEEP_QUOTA_H

#include "process.h"

/*
 * The account of the calling process. It depends on the process, not on a socket that
 * the process has received. A user may use all its subordinate uids, and root of a
 * container may have uid 0: without accounts for them neither would have a limit.
 */
__noinline __u64 account(__u64 netns)
{
	__u32 uid = (__u32)bpf_get_current_uid_gid();
	struct config *c = the_config();
	struct account_key key = { .prefix = 32 };
	__u64 own;
	__u32 *user;

	if (!c)
		return uid;
	if (!uid) {
		own = own_netns();
		if (!own)
			own = netns;
		return is_root() && (!c->home || own == c->home) ? 0 : PORTKEEP_ROOT_ELSEWHERE | own;
	}
	if (!c->accounts_from || uid < c->accounts_from)
		return uid;
	key.uid = bpf_htonl(uid);
	user = bpf_map_lookup_elem(&accounts, &key);
	return user ? *user : uid;
}

/* The quota of an account. NULL if there is none, or if it is sealed: it is about to be removed, see table.h. */
__inline struct quota *quota_open(__u64 payer)
{
	struct quota *q = bpf_map_lookup_elem(&quotas, &payer);

	return q && *(volatile __u32 *)&q->used >= PORTKEEP_SEALED ? NULL : q;
}

__inline struct quota *quota_of(__u64 payer)
{
	struct quota *q = quota_open(payer);

	if (!q) {
		struct quota fresh = {};

		bpf_map_update_elem(&quotas, &payer, &fresh, BPF_NOEXIST);
		q = quota_open(payer);
	}
	return q;
}

/* Charge ports to an account. They are added first and taken off if they are too many: two calls cannot both pass. */
__noinline int quota_charge(__u64 payer, __u32 ports)
{
	struct config *c = the_config();
	struct quota *q = quota_of(payer);
	__u32 limit;

	if (!c || !q)
		return ENOMEM;
	limit = q->limit;
	if (!limit && c->group_quotas) {
		__u32 gid = bpf_get_current_uid_gid() >> 32;
		__u32 *of_group = bpf_map_lookup_elem(&group_limits, &gid);

		limit = of_group ? *of_group : 0;
	}
	if (!limit && !payer)
		limit = PORTKEEP_UNLIMITED;
	else if (!limit)
		limit = payer & PORTKEEP_ROOT_ELSEWHERE ? c->quota_elsewhere : c->quota;
	if (__sync_fetch_and_add(&q->used, ports) + (__u64)ports > limit) {
		__sync_fetch_and_sub(&q->used, ports);
		return EDQUOT;
	}
	return 0;
}

/* NOBODY has no quota, so nothing is returned to it. */
__inline void quota_return(__u64 payer, __u32 ports)
{
	struct quota *q = quota_open(payer);

	if (q)
		__sync_fetch_and_sub(&q->used, ports);
}

/* Waiting requests cost the agent time and memory: each account has a limit. Charged before the request is entered. */
__inline int pending_charge(__u64 payer)
{
	struct quota *q = quota_open(payer);

	if (!payer)
		return 0;
	if (!q)
		return ENOMEM;
	if (__sync_fetch_and_add(&q->pending, 1) >= PORTKEEP_PENDING_MAX) {
		__sync_fetch_and_sub(&q->pending, 1);
		return EDQUOT;
	}
	return 0;
}

__inline void pending_return(__u64 payer)
{
	struct quota *q = quota_open(payer);

	if (payer && q)
		__sync_fetch_and_sub(&q->pending, 1);
}

/* Root owns the table, and an administrator has asked for what NOBODY pays: neither has a share. */
__inline int has_share(__u64 payer)
{
	return payer && payer != PORTKEEP_NOBODY;
}

__inline int share_charge(__u64 payer, struct quota *q, __u32 words)
{
	struct config *c = the_config();

	if (!has_share(payer))
		return 0;
	if (!c || !q)
		return ENOMEM;
	if (__sync_fetch_and_add(&q->words, words) + (__u64)words > c->share) {
		__sync_fetch_and_sub(&q->words, words);
		return EDQUOT;
	}
	return 0;
}

/* Why there was no room in the port table: an errno. */
__noinline int no_room(__u64 payer)
{
	struct config *c = the_config();
	struct quota *q = quota_open(payer);

	if (!c || !q || !has_share(payer))
		return ENOMEM;
	return q->words + PORTKEEP_SPACE_WORDS > c->share ? EDQUOT : ENOMEM;
}

__inline void share_return(__u64 payer, struct quota *q, __u32 words)
{
	if (has_share(payer) && q)
		__sync_fetch_and_sub(&q->words, words);
}

__noinline struct space *space_create(__u64 netns, __u64 payer)
{
	struct quota *q = has_share(payer) ? quota_of(payer) : NULL;
	struct space fresh = { .payer = payer };

	if (share_charge(payer, q, PORTKEEP_SPACE_WORDS))
		return NULL;
	/* Another CPU has entered it first: that one pays. */
	if (bpf_map_update_elem(&spaces, &netns, &fresh, BPF_NOEXIST))
		share_return(payer, q, PORTKEEP_SPACE_WORDS);
	return bpf_map_lookup_elem(&spaces, &netns);
}

__inline struct space *space_of(__u64 netns, __u64 payer)
{
	struct space *sp = bpf_map_lookup_elem(&spaces, &netns);

	return sp ? sp : space_create(netns, payer);
}

#endif
