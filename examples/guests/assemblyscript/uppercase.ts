// Upper case. Bytes call `uppercase`: text in, the same text with a-z as A-Z out. Other bytes stay
// as they are, so UTF-8 stays valid.
//
// Convention: PACKED_I64, because AssemblyScript has no function with two results (the C version
// uses POINTER_LENGTH). The work is done in place: from the call on, the input buffer is the
// guest's, and it may be the result.
//
// This guest uses AssemblyScript's own heap and gives `dealloc` to the host. The heap throws for
// more than 1 GiB, and a throw is AssemblyScript's `env.abort` (message, file, line, column): the
// call ends as trapped with code ABORT. The other guests import no `abort`.

export function alloc(length: usize): usize {
  return heap.alloc(length);
}

export function dealloc(pointer: usize, length: usize): void {
  heap.free(pointer);
}

export function uppercase(input: usize, length: usize): u64 {
  for (let at = input; at < input + length; at++) {
    const byte = load<u8>(at);
    if (byte >= 0x61 && byte <= 0x7a) store<u8>(at, byte - 0x20);
  }
  return (<u64>input << 32) | length;
}
