/* Upper case. Bytes call `uppercase`: text in, the same text with a-z as A-Z out. Other bytes stay
 * as they are, so UTF-8 stays valid.
 *
 * Convention: POINTER_LENGTH. The export returns two numbers, which WebAssembly calls multi-value;
 * clang returns a struct of two words that way if it is told to (see `build`). The work is done in
 * place: from the call on, the input buffer is the guest's, and it may be the result. */
#include "guest.h"

struct bytes {
    u8 *pointer;
    u32 length;
};

EXPORT(uppercase) struct bytes uppercase(u8 *input, u32 length) {
    for (u32 i = 0; i < length; i++) {
        if (input[i] >= 'a' && input[i] <= 'z') input[i] -= 'a' - 'A';
    }
    return (struct bytes){input, length};
}
