/* SHA-256 (FIPS 180-4). Bytes call `sha256`: any bytes in, the 32 bytes of the digest out.
 *
 * Convention: FIXED_LENGTH with 32. A digest always has the same length, so a pointer says it all,
 * and the result can be a static buffer: one instance serves one call. */
#include "guest.h"

enum { BLOCK_BYTES = 64, LENGTH_FIELD_BYTES = 8 };

static const u32 K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static u32 state[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};
static u8 tail[2 * BLOCK_BYTES];
static u8 digest[32];

#define rotate_right(x, n) __builtin_rotateright32(x, n)

static u32 load_big_endian(const u8 *p) {
    u32 word;
    __builtin_memcpy(&word, p, sizeof word);
    return __builtin_bswap32(word);
}

static void compress(const u8 *block) {
    u32 w[16];
    u32 a = state[0], b = state[1], c = state[2], d = state[3];
    u32 e = state[4], f = state[5], g = state[6], h = state[7];
    /* Unrolled, `w` becomes sixteen local variables and the renaming a-h costs nothing. */
#pragma clang loop unroll(full)
    for (int i = 0; i < 64; i++) {
        if (i < 16) {
            w[i] = load_big_endian(block + 4 * i);
        } else {
            u32 w2 = w[(i - 2) & 15], w15 = w[(i - 15) & 15];
            w[i & 15] += w[(i - 7) & 15]
                       + (rotate_right(w2, 17) ^ rotate_right(w2, 19) ^ w2 >> 10)
                       + (rotate_right(w15, 7) ^ rotate_right(w15, 18) ^ w15 >> 3);
        }
        u32 t1 = h + (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25))
               + (g ^ (e & (f ^ g))) + K[i] + w[i & 15];
        u32 t2 = (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22))
               + ((a & b) | (c & (a | b)));
        h = g, g = f, f = e, e = d + t1;
        d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

EXPORT(sha256) const u8 *sha256(const u8 *input, u32 length) {
    u32 rest = length % BLOCK_BYTES;
    for (const u8 *end = input + (length - rest); input < end; input += BLOCK_BYTES) compress(input);

    /* The tail: what is left, a one bit, zeros, and the length in bits as a big-endian number. */
    for (u32 i = 0; i < rest; i++) tail[i] = input[i];
    tail[rest] = 0x80;
    u32 size = rest + 1 + LENGTH_FIELD_BYTES <= BLOCK_BYTES ? BLOCK_BYTES : 2 * BLOCK_BYTES;
    u64 bits = (u64)length * 8;
    for (u32 i = 0; i < LENGTH_FIELD_BYTES; i++) tail[size - 1 - i] = (u8)(bits >> (8 * i));
    for (u32 at = 0; at < size; at += BLOCK_BYTES) compress(tail + at);

    for (u32 i = 0; i < sizeof digest; i++) digest[i] = (u8)(state[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}
