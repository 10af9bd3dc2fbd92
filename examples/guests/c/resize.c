/* Image resize. Bytes call `resize`: four little-endian u32 (source width, source height, target
 * width, target height) and the source's RGBA pixels in; the target's RGBA pixels out.
 *
 * Convention: PACKED_I64. A target has at least one pixel, so an empty result can say "refused":
 * then the reason is in the log. `log` is `env.log` with bytes of this module's memory.
 *
 * Bilinear: the centre of each target pixel is mapped into the source, clamped to the centres of
 * its border pixels, and the four nearest pixels are mixed, each channel on its own (premultiply
 * alpha if the edges of transparency matter). Positions have 16 fractional bits, so that every
 * language gets the same bytes. Each side is 1 to 16,384, each image at most 16,777,216 pixels. */
#include "guest.h"

enum { HEADER_BYTES = 16, PIXEL_BYTES = 4, MAX_SIDE = 1 << 14, MAX_PIXELS = 1 << 24 };
enum { ONE = 1 << 16 };

IMPORT(env, log) void log_bytes(const char *message, u32 length);

/* Where a target coordinate falls: between source coordinates `low` and `high`, `weight` of ONE
 * parts towards `high`. */
struct tap {
    u32 low, high, weight;
};

/* `reason` is a literal: its size is its length and the NUL. */
#define refuse(reason) (log_bytes(reason, sizeof reason - 1), packed(0, 0))

static bool is_size(u32 width, u32 height) {
    return width >= 1 && width <= MAX_SIDE && height >= 1 && height <= MAX_SIDE
        && (u64)width * height <= MAX_PIXELS;
}

static struct tap tap_at(u32 target, u32 target_side, u32 source_side) {
    /* (target + 1/2) * source_side / target_side - 1/2, at most 2^45 before the division. */
    int64_t at = (int64_t)((u64)(2 * target + 1) * source_side * ONE / (2 * target_side)) - ONE / 2;
    int64_t last = (int64_t)(source_side - 1) * ONE;
    if (at < 0) at = 0;
    if (at > last) at = last;
    u32 low = (u32)(at / ONE), high = low + 1 < source_side ? low + 1 : low;
    return (struct tap){low, high, (u32)(at % ONE)};
}

static u8 mix(u64 a, u64 b, u64 c, u64 d, u32 x_weight, u32 y_weight) {
    u64 top = a * (ONE - x_weight) + b * x_weight;
    u64 bottom = c * (ONE - x_weight) + d * x_weight;
    return (u8)((top * (ONE - y_weight) + bottom * y_weight + (1ull << 31)) >> 32);
}

EXPORT(resize) u64 resize(const u8 *input, u32 length) {
    u32 sides[4];
    if (length < HEADER_BYTES) return refuse("header is shorter than 16 bytes");
    __builtin_memcpy(sides, input, HEADER_BYTES);
    u32 source_width = sides[0], source_height = sides[1], width = sides[2], height = sides[3];
    if (!is_size(source_width, source_height)) return refuse("source size is out of range");
    if (!is_size(width, height)) return refuse("target size is out of range");
    if (length - HEADER_BYTES != source_width * source_height * PIXEL_BYTES) {
        return refuse("pixels do not match the source size");
    }
    u32 output_bytes = width * height * PIXEL_BYTES;
    u8 *output = alloc(output_bytes);
    struct tap *columns = (struct tap *)alloc(width * sizeof(struct tap));
    if (!output || !columns) return refuse("out of memory");

    for (u32 x = 0; x < width; x++) columns[x] = tap_at(x, width, source_width);
    const u8 *pixels = input + HEADER_BYTES;
    u8 *out = output;
    for (u32 y = 0; y < height; y++) {
        struct tap row = tap_at(y, height, source_height);
        const u8 *upper = pixels + row.low * source_width * PIXEL_BYTES;
        const u8 *lower = pixels + row.high * source_width * PIXEL_BYTES;
        for (u32 x = 0; x < width; x++) {
            u32 left = columns[x].low * PIXEL_BYTES, right = columns[x].high * PIXEL_BYTES;
            for (u32 c = 0; c < PIXEL_BYTES; c++) {
                *out++ = mix(upper[left + c], upper[right + c], lower[left + c], lower[right + c],
                             columns[x].weight, row.weight);
            }
        }
    }
    return packed(output, output_bytes);
}
