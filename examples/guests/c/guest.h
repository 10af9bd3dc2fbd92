/* What every bytes guest in this folder needs: integer names, the attributes that export and import
 * functions, and `alloc`. There is no C library behind it, so a module that includes it imports
 * nothing but what it declares itself.
 *
 * Memory. Every call of a guest gets a fresh instance, so nothing has to live on, or be given back:
 * `alloc` moves one pointer upwards and there is no `dealloc` (the ABI makes it optional). Blocks
 * whose length is a multiple of 16 lie end to end; json.c grows its output that way. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define EXPORT(name) __attribute__((export_name(#name)))
#define IMPORT(module, name) __attribute__((import_module(#module), import_name(#name)))

enum { PAGE_BYTES = 65536, ALIGN_BYTES = 16 };

extern u8 __heap_base; /* the linker's: the first byte after data and stack */
static u32 heap_top;

/* Gives `length` bytes, aligned to 16; a null pointer if the memory cannot grow that far. */
EXPORT(alloc) u8 *alloc(u32 length) {
    if (heap_top == 0) heap_top = ((u32)&__heap_base + ALIGN_BYTES - 1) & -(u32)ALIGN_BYTES;
    /* 64 bits: a length close to 4 GiB must not wrap around to a small address. */
    u64 next = ((u64)heap_top + length + ALIGN_BYTES - 1) & -(u64)ALIGN_BYTES;
    u64 have = (u64)__builtin_wasm_memory_size(0) * PAGE_BYTES;
    if (next > have) {
        u32 pages = (u32)((next - have + PAGE_BYTES - 1) / PAGE_BYTES);
        if (next > UINT32_MAX || __builtin_wasm_memory_grow(0, pages) == (__SIZE_TYPE__)-1) return 0;
    }
    u8 *block = (u8 *)heap_top;
    heap_top = (u32)next;
    return block;
}

/* PACKED_I64: pointer in the high half, length in the low half. */
static inline u64 packed(const u8 *pointer, u32 length) {
    return (u64)(u32)pointer << 32 | length;
}

#endif
