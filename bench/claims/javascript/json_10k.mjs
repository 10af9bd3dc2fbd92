// JSON: parse in plain JavaScript or by JSON.parse, then walk the tree. The same document gives the
// same answer as guests/json_10k.c, which tells what it is made of.

const SIMPLE = { 34: '"', 92: '\\', 47: '/', 98: '\b', 102: '\f', 110: '\n', 114: '\r', 116: '\t' };
const POWERS = Array.from({ length: 23 }, (_, power) => Number(`1e${power}`));

let bytes, at;

function fail(expected) {
  throw new SyntaxError(`expected ${expected} at ${at}`);
}

function take(byte) {
  if (bytes[at] !== byte) return false;
  at++;
  return true;
}

function skipSpace() {
  while (bytes[at] === 0x20 || bytes[at] === 0x0a || bytes[at] === 0x09 || bytes[at] === 0x0d) at++;
}

function literal(word, value) {
  for (let i = 0; i < word.length; i++) if (!take(word.charCodeAt(i))) fail(word);
  return value;
}

const isDigit = (byte) => byte >= 0x30 && byte <= 0x39;

function number() {
  const negative = take(0x2d);
  let mantissa = 0, power = 0;
  if (!isDigit(bytes[at])) fail('a value');
  for (; isDigit(bytes[at]); at++) mantissa = mantissa * 10 + bytes[at] - 0x30;
  if (take(0x2e)) {
    const start = at;
    for (; isDigit(bytes[at]); at++) mantissa = mantissa * 10 + bytes[at] - 0x30;
    if ((power = start - at) === 0) fail('a digit');
  }
  if (take(0x65) || take(0x45)) {
    const down = take(0x2d);
    if (!down) take(0x2b);
    if (!isDigit(bytes[at])) fail('a digit');
    let shift = 0;
    for (; isDigit(bytes[at]); at++) shift = shift * 10 + bytes[at] - 0x30;
    power += down ? -shift : shift;
  }
  const value = power < 0 ? mantissa / POWERS[-power] : mantissa * POWERS[power];
  return negative ? -value : value;
}

function hex4() {
  let unit = 0;
  for (let i = 0; i < 4; i++, at++) {
    const byte = bytes[at];
    if (isDigit(byte)) unit = unit * 16 + byte - 0x30;
    else if ((byte >= 0x41 && byte <= 0x46) || (byte >= 0x61 && byte <= 0x66)) unit = unit * 16 + (byte & 7) + 9;
    else fail('a hexadecimal digit');
  }
  return unit;
}

function escape() {
  const name = bytes[at++];
  if (name === 0x75) return String.fromCharCode(hex4());
  return SIMPLE[name] ?? fail('an escape');
}

function character() {
  const lead = bytes[at++];
  let more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
  let code = lead & (0x3f >> more);
  for (; more; more--) {
    if ((bytes[at] & 0xc0) !== 0x80) fail('a byte of a character');
    code = (code << 6) | (bytes[at++] & 0x3f);
  }
  return String.fromCodePoint(code);
}

function string() {
  if (!take(0x22)) fail('a string');
  let text = '';
  while (!take(0x22)) {
    const byte = bytes[at];
    if (!(byte >= 0x20)) fail('a character');
    if (take(0x5c)) text += escape();
    else if (byte < 0x80) (text += String.fromCharCode(byte)), at++;
    else text += character();
  }
  return text;
}

function object() {
  const members = {};
  at++;
  skipSpace();
  if (take(0x7d)) return members;
  do {
    skipSpace();
    const key = string();
    skipSpace();
    if (!take(0x3a)) fail(':');
    skipSpace();
    members[key] = value();
    skipSpace();
  } while (take(0x2c));
  if (!take(0x7d)) fail('}');
  return members;
}

function array() {
  const items = [];
  at++;
  skipSpace();
  if (take(0x5d)) return items;
  do {
    skipSpace();
    items.push(value());
    skipSpace();
  } while (take(0x2c));
  if (!take(0x5d)) fail(']');
  return items;
}

function value() {
  switch (bytes[at]) {
    case 0x7b: return object();
    case 0x5b: return array();
    case 0x22: return string();
    case 0x6e: return literal('null', null);
    case 0x66: return literal('false', false);
    case 0x74: return literal('true', true);
    default: return number();
  }
}

function parse(data) {
  bytes = data;
  at = 0;
  skipSpace();
  const tree = value();
  skipSpace();
  if (at !== bytes.length) fail('the end');
  return tree;
}

let nodes, checksum;

function add(number) {
  checksum = (Math.imul(checksum, 31) + number) | 0;
}

function addText(text) {
  add(text.length);
  add(text.length ? text.charCodeAt(text.length - 1) : 0);
}

function walk(tree) {
  nodes++;
  if (tree === null) add(0);
  else if (typeof tree === 'boolean') add(tree ? 2 : 1);
  else if (typeof tree === 'number') add(3), add((tree * 64) | 0);
  else if (typeof tree === 'string') add(4), addText(tree);
  else if (Array.isArray(tree)) {
    add(5);
    add(tree.length);
    for (const child of tree) walk(child);
  } else {
    const keys = Object.keys(tree);
    add(6);
    add(keys.length);
    for (const key of keys) addText(key), walk(tree[key]);
  }
}

function summed(tree) {
  nodes = checksum = 0;
  walk(tree);
  const answer = new DataView(new ArrayBuffer(8));
  answer.setUint32(0, nodes, true);
  answer.setInt32(4, checksum, true);
  return new Uint8Array(answer.buffer);
}

const decoder = new TextDecoder();

export const plain = (data) => summed(parse(data));
export const builtin = (data) => summed(JSON.parse(decoder.decode(data)));
