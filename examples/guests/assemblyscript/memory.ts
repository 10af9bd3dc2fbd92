// `alloc` for the guests that do not need AssemblyScript's own heap (uppercase.ts shows that one).
//
// Every call of a guest gets a fresh instance, so nothing has to be given back: one pointer moves
// upwards and there is no `dealloc` (the ABI makes it optional). Blocks whose length is a multiple
// of 16 lie end to end; json.ts grows its output that way.

const PAGE_BYTES: u64 = 65536;

let top: usize = (__heap_base + 15) & ~15;

/** Gives `length` bytes, aligned to 16; 0 if the memory cannot grow that far. */
export function alloc(length: u32): usize {
  // 64 bits: a length close to 4 GiB must not wrap around to a small address.
  const next = (<u64>top + length + 15) & ~15;
  const have = <u64>memory.size() * PAGE_BYTES;
  if (next > have) {
    const pages = <i32>((next - have + PAGE_BYTES - 1) / PAGE_BYTES);
    if (next > <u64>u32.MAX_VALUE || memory.grow(pages) < 0) return 0;
  }
  const block = top;
  top = <usize>next;
  return block;
}

/** PACKED_I64: pointer in the high half, length in the low half. */
export function packed(pointer: usize, length: u32): u64 {
  return (<u64>pointer << 32) | length;
}

/** Writes `text`, which must be ASCII, at `to`; returns where it ends. */
export function putAscii(to: usize, text: string): usize {
  for (let i = 0; i < text.length; i++) store<u8>(to++, <u8>text.charCodeAt(i));
  return to;
}
