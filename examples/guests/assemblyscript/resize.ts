// Image resize. Bytes call `resize`: four little-endian u32 (source width, source height, target
// width, target height) and the source's RGBA pixels in; the target's RGBA pixels out.
//
// Convention: PACKED_I64. A target has at least one pixel, so an empty result can say "refused":
// then the reason is in the log. `log` is `env.log` with bytes of this module's memory.
//
// Bilinear: the centre of each target pixel is mapped into the source, clamped to the centres of
// its border pixels, and the four nearest pixels are mixed, each channel on its own (premultiply
// alpha if the edges of transparency matter). Positions have 16 fractional bits, so that every
// language gets the same bytes. Each side is 1 to 16,384, each image at most 16,777,216 pixels.

import { alloc, packed, putAscii } from "./memory";

export { alloc } from "./memory";

@external("env", "log")
declare function log(message: usize, length: u32): void;

const HEADER_BYTES: u32 = 16;
const PIXEL_BYTES: u32 = 4;
const MAX_SIDE: u32 = 1 << 14;
const MAX_PIXELS: u64 = 1 << 24;
const ONE: u32 = 1 << 16;

const message = memory.data(64); // longer than any reason

function refuse(reason: string): u64 {
  log(message, <u32>(putAscii(message, reason) - message));
  return packed(0, 0);
}

function isSize(width: u32, height: u32): bool {
  return width >= 1 && width <= MAX_SIDE && height >= 1 && height <= MAX_SIDE
    && <u64>width * height <= MAX_PIXELS;
}

/** Where a target coordinate falls in the source: a whole number of ONEs, and a weight towards the
 * next one. */
function positionOf(target: u32, targetSide: u32, sourceSide: u32): u32 {
  // (target + 1/2) * sourceSide / targetSide - 1/2, at most 2^45 before the division.
  const at = <i64>(<u64>(2 * target + 1) * sourceSide * ONE / (2 * targetSide)) - ONE / 2;
  const last = <i64>(sourceSide - 1) * ONE;
  return <u32>min<i64>(max<i64>(at, 0), last);
}

function neighbour(low: u32, side: u32): u32 {
  return low + 1 < side ? low + 1 : low;
}

function mix(a: u64, b: u64, c: u64, d: u64, xWeight: u64, yWeight: u64): u8 {
  const top = a * (ONE - xWeight) + b * xWeight;
  const bottom = c * (ONE - xWeight) + d * xWeight;
  return <u8>((top * (ONE - yWeight) + bottom * yWeight + (1 << 31)) >> 32);
}

export function resize(input: usize, length: u32): u64 {
  if (length < HEADER_BYTES) return refuse("header is shorter than 16 bytes");
  const sourceWidth = load<u32>(input, 0), sourceHeight = load<u32>(input, 4);
  const width = load<u32>(input, 8), height = load<u32>(input, 12);
  if (!isSize(sourceWidth, sourceHeight)) return refuse("source size is out of range");
  if (!isSize(width, height)) return refuse("target size is out of range");
  if (length - HEADER_BYTES != sourceWidth * sourceHeight * PIXEL_BYTES) {
    return refuse("pixels do not match the source size");
  }
  const outputBytes = width * height * PIXEL_BYTES;
  const output = alloc(outputBytes);
  const columns = alloc(width * sizeof<u32>()); // the position of each target column
  if (!output || !columns) return refuse("out of memory");

  for (let x: u32 = 0; x < width; x++) {
    store<u32>(columns + x * sizeof<u32>(), positionOf(x, width, sourceWidth));
  }
  const pixels = input + HEADER_BYTES;
  let out = output;
  for (let y: u32 = 0; y < height; y++) {
    const row = positionOf(y, height, sourceHeight);
    const upper = pixels + (row / ONE) * sourceWidth * PIXEL_BYTES;
    const lower = pixels + neighbour(row / ONE, sourceHeight) * sourceWidth * PIXEL_BYTES;
    for (let x: u32 = 0; x < width; x++) {
      const column = load<u32>(columns + x * sizeof<u32>());
      const left = (column / ONE) * PIXEL_BYTES;
      const right = neighbour(column / ONE, sourceWidth) * PIXEL_BYTES;
      for (let c: u32 = 0; c < PIXEL_BYTES; c++) {
        store<u8>(out++, mix(
          load<u8>(upper + left + c), load<u8>(upper + right + c),
          load<u8>(lower + left + c), load<u8>(lower + right + c),
          column % ONE, row % ONE,
        ));
      }
    }
  }
  return packed(output, outputBytes);
}
