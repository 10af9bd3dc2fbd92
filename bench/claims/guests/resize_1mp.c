/* Bilinear resize of an RGBA image: examples/guests/c/resize.c, made repeatable. */
#include "claim.h"

#include "../../../examples/guests/c/resize.c"

#ifndef __wasm__
static void log_bytes(const char *message, u32 length) {
    fprintf(stderr, "%.*s\n", (int)length, message);
}
#endif

static u64 work(const u8 *input, u32 length) {
    return resize(input, length);
}

CLAIM(scale)
