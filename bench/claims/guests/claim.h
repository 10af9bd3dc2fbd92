/* One source, two builds: a guest of sandboxd, and a program for this machine with the same code.
 *
 * A claim includes this file first, then the source of the work, then defines
 *     static u64 work(const u8 *input, u32 length)    packed(result)
 * and ends with CLAIM(name). Both builds repeat the work inside, so that what is timed is the work and
 * not the way into it. Memory stays warm from one repetition to the next: `alloc` starts again
 * where it was, in both.
 *
 * The guest exports `name` (a bytes call, PACKED_I64, for Execute) and `repeat`. The program,
 *     program INPUT          prints the answer in hexadecimal
 *     program INPUT serve    reads `answer` and `run TIMES` from standard input, a line each, and
 *                            answers each with one line: the answer, nanoseconds
 * is what peer.py talks to. */
#ifndef CLAIM_H
#define CLAIM_H

#ifdef __wasm__

#include "../../../examples/guests/c/guest.h"

#define CLAIM(name)                                                         \
    EXPORT(name) u64 once(const u8 *input, u32 length) {                    \
        return work(input, length);                                         \
    }                                                                       \
    EXPORT(repeat) u64 repeat(const u8 *input, u32 length, u32 times) {     \
        return repeated(input, length, times);                              \
    }

#else

#define GUEST_H /* the guests' own header stays out; this is what it would have given */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define EXPORT(name) static
#define IMPORT(module, name) static
#ifndef __clang__
#define __builtin_rotateright32(x, n) ((x) >> (n) | (x) << (32 - (n)))
#endif

enum { ARENA_BYTES = 1 << 26, INPUT_BYTES_MAX = 1 << 24, ALIGN_BYTES = 16 };

static _Alignas(ALIGN_BYTES) u8 arena[ARENA_BYTES];
static u32 heap_top;
static const u8 *result;

static inline u8 *alloc(u32 length) {
    u64 next = ((u64)heap_top + length + ALIGN_BYTES - 1) & -(u64)ALIGN_BYTES;
    if (next > ARENA_BYTES) return 0;
    u8 *block = arena + heap_top;
    heap_top = (u32)next;
    return block;
}

/* A pointer does not fit into the half of it: it is kept aside. */
static inline u64 packed(const u8 *pointer, u32 length) {
    result = pointer;
    return length;
}

#define CLAIM(name) \
    int main(int argc, char **argv) { return serve(argc, argv); }

#endif

static u64 work(const u8 *input, u32 length);

static u64 repeated(const u8 *input, u32 length, u32 times) {
    u32 mark = heap_top;
    u64 answer = 0;
    while (times--) {
        heap_top = mark;
        answer = work(input, length);
        /* The compiler may not take one repetition for another. */
        __asm__ volatile("" ::: "memory");
    }
    return answer;
}

#ifndef __wasm__

static void print_answer(const u8 *input, u32 length) {
    u32 size = (u32)repeated(input, length, 1);
    for (u32 i = 0; i < size; i++) printf("%02x", result[i]);
    putchar('\n');
}

static u64 timed(const u8 *input, u32 length, u32 times) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    repeated(input, length, times);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (u64)(end.tv_sec - start.tv_sec) * 1000000000u + (u64)end.tv_nsec - (u64)start.tv_nsec;
}

static int serve(int argc, char **argv) {
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : 0;
    if (!file) return fputs("cannot read the input\n", stderr), 2;
    u8 *input = malloc(INPUT_BYTES_MAX);
    u32 length = input ? (u32)fread(input, 1, INPUT_BYTES_MAX, file) : 0;
    fclose(file);
    if (argc == 2) return print_answer(input, length), 0;
    char line[64];
    u32 times;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "run %" SCNu32, &times) == 1) printf("%" PRIu64 "\n", timed(input, length, times));
        else print_answer(input, length);
        fflush(stdout);
    }
    return 0;
}

#endif

#endif
