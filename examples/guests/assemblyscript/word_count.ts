// Word count. A WASI command: standard input in, "lines words bytes" on standard output, as `wc`
// prints them. Lines are newlines; words are what ASCII white space separates.
//
// Convention: `_start` and standard streams. AssemblyScript brings no WASI library, so this one
// calls wasi_snapshot_preview1 itself: `fd_read` and `fd_write` take a list of buffers (pointer and
// length each), return an error number, and store how many bytes they moved.

@external("wasi_snapshot_preview1", "fd_read")
declare function fd_read(fd: i32, buffers: usize, count: i32, moved: usize): i32;
@external("wasi_snapshot_preview1", "fd_write")
declare function fd_write(fd: i32, buffers: usize, count: i32, moved: usize): i32;
@external("wasi_snapshot_preview1", "proc_exit")
declare function proc_exit(code: i32): void;

const STDIN = 0, STDOUT = 1;
const BUFFER_BYTES = 65536;

const buffer = memory.data(BUFFER_BYTES);
const vector = memory.data(8, 4); // one entry of the list: pointer, length
const moved = memory.data(4, 4);

/** Reads at most a buffer; returns 0 at the end of the input. */
function read(): u32 {
  store<u32>(vector, buffer, 0);
  store<u32>(vector, BUFFER_BYTES, 4);
  if (fd_read(STDIN, vector, 1, moved) != 0) proc_exit(1);
  return load<u32>(moved);
}

/** Writes all of the bytes; a stream may take them in parts. */
function write(at: usize, end: usize): void {
  while (at < end) {
    store<u32>(vector, at, 0);
    store<u32>(vector, end - at, 4);
    if (fd_write(STDOUT, vector, 1, moved) != 0) proc_exit(1);
    at += load<u32>(moved);
  }
}

function putNumber(to: usize, n: u64): usize {
  if (n >= 10) to = putNumber(to, n / 10);
  store<u8>(to, <u8>(0x30 + n % 10));
  return to + 1;
}

function isSpace(byte: u8): bool {
  return byte == 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

export function _start(): void {
  let lines: u64 = 0, words: u64 = 0, bytes: u64 = 0;
  let inWord = false;
  for (let count = read(); count; count = read()) {
    for (let i: u32 = 0; i < count; i++) {
      const byte = load<u8>(buffer + i);
      const space = isSpace(byte);
      if (byte == 0x0a) lines++;
      if (!space && !inWord) words++;
      inWord = !space;
    }
    bytes += count;
  }
  let end = putNumber(buffer, lines);
  store<u8>(end++, 0x20);
  end = putNumber(end, words);
  store<u8>(end++, 0x20);
  end = putNumber(end, bytes);
  store<u8>(end++, 0x0a);
  write(buffer, end);
}
