//! The token cipher, Speck64/128.
//!
//! The BPF programs number reservations and encrypt the number into the token (`crates/kernel/bpf/token.h` says why).
//! This module has the key expansion, which they leave to user space, and the cipher itself for tests.
//!
//! Beaulieu et al., *The SIMON and SPECK Families of Lightweight Block
//! Ciphers*, 2013, <https://eprint.iacr.org/2013/404>.

/// Rounds of Speck64/128.
pub const ROUNDS: usize = 27;

/// The round keys of a 128-bit key, given as the words K\[0\]..K\[3\] of the paper.
pub const fn expand(key: [u32; 4]) -> [u32; ROUNDS] {
    let mut keys = [0; ROUNDS];
    let mut l = [key[1], key[2], key[3]];
    let mut k = key[0];
    let mut i = 0;
    while i < ROUNDS {
        keys[i] = k;
        let next = l[i % 3].rotate_right(8).wrapping_add(k) ^ i as u32;
        l[i % 3] = next;
        k = k.rotate_left(3) ^ next;
        i += 1;
    }
    keys
}

/// The token of the `n`-th reservation: the upper half of the block is the paper's x.
pub fn encrypt(keys: &[u32; ROUNDS], n: u64) -> u64 {
    let (mut x, mut y) = ((n >> 32) as u32, n as u32);
    for key in keys {
        x = x.rotate_right(8).wrapping_add(y) ^ key;
        y = y.rotate_left(3) ^ x;
    }
    u64::from(x) << 32 | u64::from(y)
}

/// The number a token was made from.
pub fn decrypt(keys: &[u32; ROUNDS], token: u64) -> u64 {
    let (mut x, mut y) = ((token >> 32) as u32, token as u32);
    for key in keys.iter().rev() {
        y = (y ^ x).rotate_right(3);
        x = (x ^ key).wrapping_sub(y).rotate_left(8);
    }
    u64::from(x) << 32 | u64::from(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's test vector for Speck64/128.
    #[test]
    fn the_published_vector() {
        let keys = expand([0x0302_0100, 0x0b0a_0908, 0x1312_1110, 0x1b1a_1918]);
        let plain = 0x3b72_6574_7475_432d;
        let cipher = 0x8c6f_a548_454e_028b;
        assert_eq!(encrypt(&keys, plain), cipher);
        assert_eq!(decrypt(&keys, cipher), plain);
    }
}
