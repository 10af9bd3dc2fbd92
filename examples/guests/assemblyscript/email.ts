// E-mail validation. Bytes call `validate`: an address in, "valid" or "invalid: <reason>" out.
//
// Convention: NUL_TERMINATED. The answer is short text, and its NUL says where it ends.
// AssemblyScript's own strings are UTF-16 with a length in front, so it is written out as bytes.
//
// The grammar is RFC 5321's Mailbox without quoted local parts and address literals, with its
// limits (local part 64 bytes, label 63, address 254), and the domain must have a dot. ASCII only:
// internationalised addresses (RFC 6531) are answered "invalid".

import { putAscii } from "./memory";

export { alloc } from "./memory";

const MAX_ADDRESS: usize = 254;
const MAX_LOCAL_PART: usize = 64;
const MAX_LABEL: usize = 63;

const answer = memory.data(64); // longer than any answer and its NUL

function isAlphanumeric(c: u8): bool {
  return (c >= 0x30 && c <= 0x39) || (c >= 0x41 && c <= 0x5a) || (c >= 0x61 && c <= 0x7a);
}

function isAtom(c: u8): bool {
  if (isAlphanumeric(c)) return true;
  const others = "!#$%&'*+-/=?^_`{|}~";
  for (let i = 0; i < others.length; i++) {
    if (<i32>c == others.charCodeAt(i)) return true;
  }
  return false;
}

// All three checks return what is wrong, or an empty string.

function checkLocalPart(at: usize, end: usize): string {
  if (at == end) return "empty local part";
  if (end - at > MAX_LOCAL_PART) return "local part longer than 64 bytes";
  let previous: u8 = 0x2e; // a dot
  for (; at < end; at++) {
    const c = load<u8>(at);
    if (c == 0x2e && previous == 0x2e) return "misplaced dot in local part";
    if (c != 0x2e && !isAtom(c)) return "character not allowed in local part";
    previous = c;
  }
  return previous == 0x2e ? "misplaced dot in local part" : "";
}

function checkDomain(at: usize, end: usize): string {
  if (at == end) return "empty domain";
  let labels = 0;
  while (true) {
    const label = at;
    labels++;
    for (; at < end && load<u8>(at) != 0x2e; at++) {
      const c = load<u8>(at);
      if (!isAlphanumeric(c) && c != 0x2d) return "character not allowed in domain";
    }
    if (at == label) return "misplaced dot in domain";
    if (at - label > MAX_LABEL) return "label longer than 63 bytes";
    if (load<u8>(label) == 0x2d || load<u8>(at - 1) == 0x2d) {
      return "label starts or ends with a hyphen";
    }
    if (at == end) return labels < 2 ? "domain without a dot" : "";
    at++; // the dot
  }
}

function checkAddress(input: usize, length: usize): string {
  const end = input + length;
  let sign: usize = 0;
  if (length == 0) return "empty address";
  if (length > MAX_ADDRESS) return "longer than 254 bytes";
  for (let at = input; at < end; at++) {
    if (load<u8>(at) != 0x40) continue;
    if (sign) return "more than one @";
    sign = at;
  }
  if (!sign) return "no @";
  const reason = checkLocalPart(input, sign);
  return reason.length ? reason : checkDomain(sign + 1, end);
}

export function validate(input: usize, length: usize): usize {
  const reason = checkAddress(input, length);
  let end = putAscii(answer, reason.length ? "invalid: " : "valid");
  end = putAscii(end, reason);
  store<u8>(end, 0);
  return answer;
}
