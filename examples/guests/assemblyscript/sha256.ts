// SHA-256 (FIPS 180-4). Bytes call `sha256`: any bytes in, the 32 bytes of the digest out.
//
// Convention: FIXED_LENGTH with 32. A digest always has the same length, so a pointer says it all,
// and the result can be static memory: one instance serves one call.

export { alloc } from "./memory";

const BLOCK_BYTES: u32 = 64;
const LENGTH_FIELD_BYTES: u32 = 8;

const K = memory.data<u32>([
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
]);

const state = memory.data<u32>([
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
]);
const schedule = memory.data(64 * 4, 16);
const tail = memory.data(2 * 64, 16);
const digest = memory.data(32, 16);

function compress(block: usize): void {
  for (let i: usize = 0; i < 16; i++) {
    store<u32>(schedule + i * 4, bswap<u32>(load<u32>(block + i * 4)));
  }
  for (let i: usize = 16; i < 64; i++) {
    const w2 = load<u32>(schedule + (i - 2) * 4);
    const w15 = load<u32>(schedule + (i - 15) * 4);
    const sum = load<u32>(schedule + (i - 16) * 4) + load<u32>(schedule + (i - 7) * 4);
    store<u32>(schedule + i * 4, sum
      + (rotr<u32>(w2, 17) ^ rotr<u32>(w2, 19) ^ (w2 >> 10))
      + (rotr<u32>(w15, 7) ^ rotr<u32>(w15, 18) ^ (w15 >> 3)));
  }

  let a = load<u32>(state, 0), b = load<u32>(state, 4), c = load<u32>(state, 8);
  let d = load<u32>(state, 12), e = load<u32>(state, 16), f = load<u32>(state, 20);
  let g = load<u32>(state, 24), h = load<u32>(state, 28);
  for (let i: usize = 0; i < 64; i++) {
    const t1 = h + (rotr<u32>(e, 6) ^ rotr<u32>(e, 11) ^ rotr<u32>(e, 25))
      + (g ^ (e & (f ^ g))) + load<u32>(K + i * 4) + load<u32>(schedule + i * 4);
    const t2 = (rotr<u32>(a, 2) ^ rotr<u32>(a, 13) ^ rotr<u32>(a, 22))
      + ((a & b) | (c & (a | b)));
    h = g; g = f; f = e; e = d + t1;
    d = c; c = b; b = a; a = t1 + t2;
  }
  add(0, a); add(1, b); add(2, c); add(3, d); add(4, e); add(5, f); add(6, g); add(7, h);
}

function add(word: usize, value: u32): void {
  store<u32>(state + word * 4, load<u32>(state + word * 4) + value);
}

export function sha256(input: usize, length: u32): usize {
  const rest = length % BLOCK_BYTES;
  const end = input + (length - rest);
  for (; input < end; input += BLOCK_BYTES) compress(input);

  // The tail: what is left, a one bit, zeros, and the length in bits as a big-endian number.
  memory.copy(tail, input, rest);
  store<u8>(tail + rest, 0x80);
  const size = rest + 1 + LENGTH_FIELD_BYTES <= BLOCK_BYTES ? BLOCK_BYTES : 2 * BLOCK_BYTES;
  store<u64>(tail + size - LENGTH_FIELD_BYTES, bswap<u64>(<u64>length * 8));
  for (let at: u32 = 0; at < size; at += BLOCK_BYTES) compress(tail + at);

  for (let word: usize = 0; word < 8; word++) {
    store<u32>(digest + word * 4, bswap<u32>(load<u32>(state + word * 4)));
  }
  return digest;
}
