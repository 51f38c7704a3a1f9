/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A token is E(generation << 16 | id). `id` says which entry it is, and `generation`
 * says how many reservations this entry has had. E encrypts this number with the
 * block cipher Speck64/128 and a key drawn at `up`. A cipher is a permutation, so
 * tokens never repeat. Without the key they look like random numbers, so nobody can
 * guess them. (bpf_get_prandom_u32 is not good enough: a few of its outputs give away
 * its state.) The inverse D(token) gives the id back, so no second index is needed.
 *
 * Beaulieu et al., "The SIMON and SPECK Families of Lightweight Block Ciphers", 2013,
 * https://eprint.iacr.org/2013/404. User space computes the round keys.
 */
#ifndef PORTKEEP_TOKEN_H
#define PORTKEEP_TOKEN_H

#include "maps.h"

#define ROL(x, r) (((x) << (r)) | ((x) >> (32 - (r))))
#define ROR(x, r) (((x) >> (r)) | ((x) << (32 - (r))))

__inline __u64 token_encrypt(const struct config *c, __u64 n)
{
	__u32 x = n >> 32, y = (__u32)n;

	for (int i = 0; i < 27; i++) {
		x = (ROR(x, 8) + y) ^ c->round_keys[i];
		y = ROL(y, 3) ^ x;
	}
	return (__u64)x << 32 | y;
}

__inline __u64 token_decrypt(const struct config *c, __u64 token)
{
	__u32 x = token >> 32, y = (__u32)token;

	for (int i = 26; i >= 0; i--) {
		y = ROR(y ^ x, 3);
		x = ROL((x ^ c->round_keys[i]) - y, 8);
	}
	return (__u64)x << 32 | y;
}

__inline __u32 token_id(const struct config *c, __u64 token)
{
	return token_decrypt(c, token) & (PORTKEEP_RESERVATIONS - 1);
}

/* The same, but faster for the latest token of a socket, which is asked for most often: the socket stores its id. */
__inline __u32 token_id_of(const struct config *c, const struct owner_state *o, __u64 token)
{
	return o && o->last == token ? o->last_id : token_id(c, token);
}

#endif
