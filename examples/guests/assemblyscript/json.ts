// JSON: parse and pretty-print. Bytes call `format`: a document in, the same document with two
// spaces of indentation out.
//
// Convention: PACKED_I64. The output's length is only known at the end, and 64 bits hold it and the
// pointer. A document that is not valid is answered with one line,
//     {"error": "<reason>", "offset": <byte>}
// which no pretty-printed document looks like: there, `{` is followed by a newline or by `}`.
//
// Strict RFC 8259: UTF-8 without byte order mark, no other white space, literals or numbers than the
// grammar has. Stricter than it where it warns: an escaped surrogate without its partner is refused,
// and so are more than 256 levels. Numbers and strings keep their text, duplicate keys stay.

import { alloc, packed, putAscii } from "./memory";

export { alloc } from "./memory";

const MAX_DEPTH: u32 = 256;
const CHUNK_BYTES: u32 = 65536;

// The input, and how far it has been read.
let at: usize = 0;
let end: usize = 0;

let output: usize = 0;
let outputLength: u32 = 0;
let outputCapacity: u32 = 0;

let failure: string = ""; // the first reason, found at `at`
const errorLine = memory.data(128);

function fail(reason: string): bool {
  if (!failure.length) failure = reason;
  return false;
}

// Writing. The output is the last block, so allocating again extends it in place.

function put(byte: u8): bool {
  if (outputLength == outputCapacity) {
    const chunk = alloc(CHUNK_BYTES);
    if (!chunk) return fail("out of memory");
    if (!output) output = chunk;
    outputCapacity += CHUNK_BYTES;
  }
  store<u8>(output + outputLength++, byte);
  return true;
}

function putSince(start: usize): bool {
  while (start < at) {
    if (!put(load<u8>(start++))) return false;
  }
  return true;
}

function putNewline(depth: u32): bool {
  if (!put(0x0a)) return false;
  for (let i: u32 = 0; i < 2 * depth; i++) {
    if (!put(0x20)) return false;
  }
  return true;
}

// Reading. Each function starts at its first byte and ends after its last, or fails at the byte that
// is wrong.

function nextIs(low: u8, high: u8): bool {
  return at < end && load<u8>(at) >= low && load<u8>(at) <= high;
}

function take(byte: u8): bool {
  if (!nextIs(byte, byte)) return false;
  at++;
  return true;
}

function skipSpace(): void {
  while (take(0x20) || take(0x09) || take(0x0a) || take(0x0d)) {}
}

function literal(word: string): bool {
  const start = at;
  for (let i = 0; i < word.length; i++) {
    if (!take(<u8>word.charCodeAt(i))) return fail("unknown literal");
  }
  return putSince(start);
}

function isDigitNext(): bool {
  return nextIs(0x30, 0x39);
}

function digits(): bool {
  if (!isDigitNext()) return fail("expected a digit");
  while (isDigitNext()) at++;
  return true;
}

function number(): bool {
  const start = at;
  take(0x2d); // -
  if (take(0x30)) {
    if (isDigitNext()) return fail("number starts with 0");
  } else if (!digits()) {
    return false;
  }
  if (take(0x2e) && !digits()) return false; // .
  if (take(0x65) || take(0x45)) { // e E
    if (!take(0x2d)) take(0x2b); // - +
    if (!digits()) return false;
  }
  return putSince(start);
}

/** The value of four hexadecimal digits; -1 if they are not. */
function hex4(): i32 {
  let unit = 0;
  for (let i = 0; i < 4; i++, at++) {
    if (isDigitNext()) {
      unit = (unit << 4) | (load<u8>(at) - 0x30);
    } else if (nextIs(0x41, 0x46) || nextIs(0x61, 0x66)) {
      unit = (unit << 4) | ((load<u8>(at) & 7) + 9);
    } else {
      fail("expected four hexadecimal digits");
      return -1;
    }
  }
  return unit;
}

function unicodeEscape(): bool {
  const start = at - 2; // the backslash: where a bad surrogate is reported
  const unit = hex4();
  if (unit < 0) return false;
  if (unit < 0xd800 || unit > 0xdfff) return true;
  if (unit < 0xdc00 && take(0x5c) && take(0x75)) { // \ u
    const low = hex4();
    if (low < 0) return false;
    if (low >= 0xdc00 && low <= 0xdfff) return true;
  }
  at = start;
  return fail("unpaired surrogate");
}

function escape(): bool {
  if (take(0x75)) return unicodeEscape();
  const simple = "\"\\/bfnrt";
  for (let i = 0; i < simple.length; i++) {
    if (take(<u8>simple.charCodeAt(i))) return true;
  }
  return fail("unknown escape");
}

/** One character of two to four bytes, by the table of RFC 3629, section 4: no overlong forms, no
 * surrogates, nothing above U+10FFFF. */
function utf8(): bool {
  const lead = load<u8>(at);
  if (lead < 0xc2 || lead > 0xf4) return fail("invalid UTF-8");
  let low: u8 = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  let high: u8 = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  at++;
  for (let more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1; more; more--) {
    if (!nextIs(low, high)) return fail("invalid UTF-8");
    at++;
    low = 0x80;
    high = 0xbf;
  }
  return true;
}

function stringLiteral(): bool {
  const start = at;
  if (!take(0x22)) return fail("expected a string");
  while (!take(0x22)) {
    if (at == end) return fail("unterminated string");
    const byte = load<u8>(at);
    if (byte < 0x20) return fail("control character in a string");
    if (take(0x5c)) {
      if (!escape()) return false;
    } else if (byte < 0x80) {
      at++;
    } else if (!utf8()) {
      return false;
    }
  }
  return putSince(start);
}

function key(): bool {
  if (!stringLiteral()) return false;
  skipSpace();
  if (!take(0x3a)) return fail("expected ':'");
  skipSpace();
  return put(0x3a) && put(0x20);
}

function container(depth: u32, close: u8): bool {
  const isObject = close == 0x7d;
  if (depth == MAX_DEPTH) return fail("more than 256 levels");
  if (!put(load<u8>(at++))) return false;
  skipSpace();
  if (take(close)) return put(close);
  while (true) {
    if (!putNewline(depth + 1)) return false;
    if (isObject && !key()) return false;
    if (!value(depth + 1)) return false;
    skipSpace();
    if (take(close)) return putNewline(depth) && put(close);
    if (!take(0x2c)) return fail(isObject ? "expected ',' or '}'" : "expected ',' or ']'");
    if (!put(0x2c)) return false;
    skipSpace();
  }
}

function value(depth: u32): bool {
  if (at == end) return fail("expected a value");
  const byte = load<u8>(at);
  switch (byte) {
    case 0x7b: return container(depth, 0x7d); // { }
    case 0x5b: return container(depth, 0x5d); // [ ]
    case 0x22: return stringLiteral();
    case 0x74: return literal("true");
    case 0x66: return literal("false");
    case 0x6e: return literal("null");
    default: return byte == 0x2d || isDigitNext() ? number() : fail("expected a value");
  }
}

function document(): bool {
  skipSpace();
  if (!value(0)) return false;
  skipSpace();
  return at == end || fail("data after the document");
}

function putNumber(to: usize, n: u32): usize {
  if (n >= 10) to = putNumber(to, n / 10);
  store<u8>(to, <u8>(0x30 + n % 10));
  return to + 1;
}

/** In static memory: the reason may be that there is no memory left. */
function error(offset: u32): u64 {
  let to = putAscii(errorLine, "{\"error\": \"");
  to = putAscii(putAscii(to, failure), "\", \"offset\": ");
  to = putAscii(putNumber(to, offset), "}");
  return packed(errorLine, <u32>(to - errorLine));
}

export function format(input: usize, length: u32): u64 {
  at = input;
  end = input + length;
  return document() ? packed(output, outputLength) : error(<u32>(at - input));
}
