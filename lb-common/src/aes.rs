//! AES with a key of 128 bits (FIPS 197), one block at a time: what QUIC-LB connection ids are encrypted with.
//!
//! Written with tables, each index one byte, so that the kernel's verifier sees every bound by itself. Tables answer in
//! a time that depends on what they are asked, so this is good for what hides a server's id from an observer, and for
//! nothing whose key must survive somebody on the same processor.

/// Rounds of a key of 128 bits.
const ROUNDS: usize = 10;
/// The keys of all rounds: four columns each, the first byte of a column lowest.
pub type RoundKeys = [u32; 4 * (ROUNDS + 1)];
/// A block as two words, the first byte lowest.
pub type Block = [u64; 2];

/// Multiplication by x in GF(2⁸) (FIPS 197 §4.2.1).
const fn double(byte: u8) -> u8 {
    byte << 1 ^ ((byte >> 7) * 0x1b)
}

/// Multiplication in GF(2⁸).
const fn times(a: u8, b: u8) -> u8 {
    let (mut product, mut a, mut b) = (0, a, b);
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

/// The S-box (FIPS 197 §5.1.1): `p` goes through all powers of 3, `q` through their inverses.
const SBOX: [u8; 256] = {
    let mut sbox = [0; 256];
    let (mut p, mut q) = (1_u8, 1_u8);
    loop {
        p ^= double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        q ^= (q >> 7) * 0x09;
        sbox[p as usize] =
            q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    sbox[0] = 0x63;
    sbox
};

/// The inverse of the S-box.
const UNBOX: [u8; 256] = {
    let mut inverse = [0; 256];
    let mut i = 0;
    while i < 256 {
        inverse[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    inverse
};

/// What a byte adds to a column, for each row that it can stand in: a substitution and then its multiples.
const fn table(boxed: &[u8; 256], multiples: [u8; 4]) -> [[u32; 256]; 4] {
    let mut table = [[0; 256]; 4];
    let mut i = 0;
    while i < 256 {
        let byte = boxed[i];
        let column = u32::from_le_bytes([
            times(byte, multiples[0]),
            times(byte, multiples[1]),
            times(byte, multiples[2]),
            times(byte, multiples[3]),
        ]);
        let mut row = 0;
        while row < 4 {
            table[row][i] = column.rotate_left(8 * row as u32);
            row += 1;
        }
        i += 1;
    }
    table
}

static BOX: [u8; 256] = SBOX;
static INVERSE_BOX: [u8; 256] = UNBOX;
/// SubBytes and MixColumns in one.
static MIX: [[u32; 256]; 4] = table(&SBOX, [2, 1, 1, 3]);
/// InvSubBytes and InvMixColumns in one.
static UNMIX: [[u32; 256]; 4] = table(&UNBOX, [14, 9, 13, 11]);

/// The round keys of a key (FIPS 197 §5.2).
pub const fn expand(key: &[u8; 16]) -> RoundKeys {
    let mut keys = [0; 4 * (ROUNDS + 1)];
    let mut power = 1;
    let mut i = 0;
    while i < keys.len() {
        keys[i] = if i < 4 {
            u32::from_le_bytes([key[4 * i], key[4 * i + 1], key[4 * i + 2], key[4 * i + 3]])
        } else if i % 4 == 0 {
            let turned = substitute(keys[i - 1].rotate_right(8)) ^ power as u32;
            power = double(power);
            keys[i - 4] ^ turned
        } else {
            keys[i - 4] ^ keys[i - 1]
        };
        i += 1;
    }
    keys
}

const fn substitute(column: u32) -> u32 {
    let [a, b, c, d] = column.to_le_bytes();
    u32::from_le_bytes([SBOX[a as usize], SBOX[b as usize], SBOX[c as usize], SBOX[d as usize]])
}

/// The round keys in the order in which [`decrypt`] needs them (FIPS 197 §5.3.5, the equivalent inverse cipher).
pub fn invert(keys: &RoundKeys) -> RoundKeys {
    let mut inverse = [0; 4 * (ROUNDS + 1)];
    for (i, column) in inverse.iter_mut().enumerate() {
        let (round, at) = (i / 4, i % 4);
        let key = keys[4 * (ROUNDS - round) + at];
        *column = if round == 0 || round == ROUNDS {
            key
        } else {
            let rows = key.to_le_bytes().into_iter().enumerate();
            rows.fold(0, |sum, (row, byte)| sum ^ UNMIX[row][usize::from(SBOX[usize::from(byte)])])
        };
    }
    inverse
}

/// Encrypts a block.
#[inline(always)]
pub fn encrypt(keys: &RoundKeys, block: Block) -> Block {
    // A row of a column comes from as many columns further on: ShiftRows.
    cipher(keys, block, &MIX, &BOX, 1)
}

/// Decrypts a block; the keys are those of [`invert`].
#[inline(always)]
pub fn decrypt(keys: &RoundKeys, block: Block) -> Block {
    cipher(keys, block, &UNMIX, &INVERSE_BOX, 3)
}

#[inline(always)]
fn cipher(
    keys: &RoundKeys,
    block: Block,
    mix: &'static [[u32; 256]; 4],
    last: &'static [u8; 256],
    shift: usize,
) -> Block {
    let mut state = [
        block[0] as u32 ^ keys[0],
        (block[0] >> 32) as u32 ^ keys[1],
        block[1] as u32 ^ keys[2],
        (block[1] >> 32) as u32 ^ keys[3],
    ];
    // The byte of a row of a column, as an index that cannot be too large.
    let byte = |state: &[u32; 4], column: usize, row: usize| (state[column & 3] >> (8 * row)) as u8 as usize;
    let mut round = 1;
    while round < ROUNDS {
        let mut next = [0; 4];
        let mut column = 0;
        while column < 4 {
            next[column] = mix[0][byte(&state, column, 0)]
                ^ mix[1][byte(&state, column + shift, 1)]
                ^ mix[2][byte(&state, column + 2 * shift, 2)]
                ^ mix[3][byte(&state, column + 3 * shift, 3)]
                ^ keys[4 * round + column];
            column += 1;
        }
        state = next;
        round += 1;
    }
    let mut out = [0; 4];
    let mut column = 0;
    while column < 4 {
        out[column] = u32::from(last[byte(&state, column, 0)])
            ^ u32::from(last[byte(&state, column + shift, 1)]) << 8
            ^ u32::from(last[byte(&state, column + 2 * shift, 2)]) << 16
            ^ u32::from(last[byte(&state, column + 3 * shift, 3)]) << 24
            ^ keys[4 * ROUNDS + column];
        column += 1;
    }
    [u64::from(out[0]) | u64::from(out[1]) << 32, u64::from(out[2]) | u64::from(out[3]) << 32]
}

/// Sixteen bytes as a block.
#[inline(always)]
pub const fn block(bytes: [u8; 16]) -> Block {
    let word = u128::from_le_bytes(bytes);
    [word as u64, (word >> 64) as u64]
}

/// A block as its bytes.
#[inline(always)]
pub const fn bytes(block: Block) -> [u8; 16] {
    (block[0] as u128 | (block[1] as u128) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::aes::cipher::{Array, BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
    use proptest::prelude::*;

    fn hex(text: &str) -> [u8; 16] {
        u128::from_str_radix(text, 16).unwrap().to_be_bytes()
    }

    /// FIPS 197, appendix A.1 (the last word that is expanded), B and C.1.
    #[test]
    fn the_standard_s_own_examples() {
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        assert_eq!(expand(&key)[43].to_be(), 0xb663_0ca6);
        for (key, plain, cipher) in [
            (
                "2b7e151628aed2a6abf7158809cf4f3c",
                "3243f6a8885a308d313198a2e0370734",
                "3925841d02dc09fbdc118597196a0b32",
            ),
            (
                "000102030405060708090a0b0c0d0e0f",
                "00112233445566778899aabbccddeeff",
                "69c4e0d86a7b0430d8cdb78070b4c55a",
            ),
        ] {
            let keys = expand(&hex(key));
            assert_eq!(bytes(encrypt(&keys, block(hex(plain)))), hex(cipher));
            assert_eq!(bytes(decrypt(&invert(&keys), block(hex(cipher)))), hex(plain));
        }
    }

    proptest! {
        #[test]
        fn blocks_are_those_of_the_reference_crate(key: [u8; 16], plain: [u8; 16]) {
            let reference = ::aes::Aes128::new(&Array::from(key));
            let mut expected = Array::from(plain);
            reference.encrypt_block(&mut expected);
            let keys = expand(&key);
            let cipher = encrypt(&keys, block(plain));
            prop_assert_eq!(bytes(cipher), <[u8; 16]>::from(expected));
            prop_assert_eq!(bytes(decrypt(&invert(&keys), cipher)), plain);
            let mut undone = Array::from(plain);
            reference.decrypt_block(&mut undone);
            prop_assert_eq!(bytes(decrypt(&invert(&keys), block(plain))), <[u8; 16]>::from(undone));
        }
    }
}
