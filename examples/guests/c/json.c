/* JSON: parse and pretty-print. Bytes call `format`: a document in, the same document with two
 * spaces of indentation out.
 *
 * Convention: PACKED_I64. The output's length is only known at the end, and 64 bits hold it and the
 * pointer. A document that is not valid is answered with one line,
 *     {"error": "<reason>", "offset": <byte>}
 * which no pretty-printed document looks like: there, `{` is followed by a newline or by `}`.
 *
 * Strict RFC 8259: UTF-8 without byte order mark, no other white space, literals or numbers than the
 * grammar has. Stricter than it where it warns: an escaped surrogate without its partner is refused,
 * and so are more than 256 levels. Numbers and strings keep their text, duplicate keys stay. */
#include "guest.h"

enum { MAX_DEPTH = 256, CHUNK_BYTES = PAGE_BYTES };

static const u8 *begin, *at, *end; /* the input, and how far it has been read */
static u8 *output;
static u32 output_length, output_capacity;
static const char *failure; /* the first reason, found at `at` */
static u8 error_line[128];

static bool fail(const char *reason) {
    if (!failure) failure = reason;
    return false;
}

/* Writing. The output is the last block, so allocating again extends it in place. */

static bool put(u8 byte) {
    if (output_length == output_capacity) {
        u8 *chunk = alloc(CHUNK_BYTES);
        if (!chunk) return fail("out of memory");
        if (!output) output = chunk;
        output_capacity += CHUNK_BYTES;
    }
    output[output_length++] = byte;
    return true;
}

static bool put_since(const u8 *start) {
    while (start < at) {
        if (!put(*start++)) return false;
    }
    return true;
}

static bool put_newline(u32 depth) {
    if (!put('\n')) return false;
    for (u32 i = 0; i < 2 * depth; i++) {
        if (!put(' ')) return false;
    }
    return true;
}

/* Reading. Each function starts at its first byte and ends after its last, or fails at the byte that
 * is wrong. */

static bool next_is(u8 low, u8 high) {
    return at < end && *at >= low && *at <= high;
}

static bool take(u8 byte) {
    if (!next_is(byte, byte)) return false;
    at++;
    return true;
}

static void skip_space(void) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) at++;
}

static bool literal(const char *word) {
    const u8 *start = at;
    for (; *word; word++) {
        if (!take((u8)*word)) return fail("unknown literal");
    }
    return put_since(start);
}

static bool digits(void) {
    if (!next_is('0', '9')) return fail("expected a digit");
    while (next_is('0', '9')) at++;
    return true;
}

static bool number(void) {
    const u8 *start = at;
    take('-');
    if (take('0')) {
        if (next_is('0', '9')) return fail("number starts with 0");
    } else if (!digits()) {
        return false;
    }
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
        if (!take('-')) take('+');
        if (!digits()) return false;
    }
    return put_since(start);
}

static bool hex4(u32 *unit) {
    *unit = 0;
    for (int i = 0; i < 4; i++, at++) {
        if (next_is('0', '9')) *unit = *unit << 4 | (u32)(*at - '0');
        else if (next_is('A', 'F') || next_is('a', 'f')) *unit = *unit << 4 | (u32)((*at & 7) + 9);
        else return fail("expected four hexadecimal digits");
    }
    return true;
}

static bool unicode_escape(void) {
    const u8 *start = at - 2; /* the backslash: where a bad surrogate is reported */
    u32 unit, low;
    if (!hex4(&unit)) return false;
    if (unit < 0xd800 || unit > 0xdfff) return true;
    if (unit < 0xdc00 && take('\\') && take('u')) {
        if (!hex4(&low)) return false;
        if (low >= 0xdc00 && low <= 0xdfff) return true;
    }
    at = start;
    return fail("unpaired surrogate");
}

static bool escape(void) {
    if (take('u')) return unicode_escape();
    for (const char *simple = "\"\\/bfnrt"; *simple; simple++) {
        if (take((u8)*simple)) return true;
    }
    return fail("unknown escape");
}

/* One character of two to four bytes, by the table of RFC 3629, section 4: no overlong forms, no
 * surrogates, nothing above U+10FFFF. */
static bool utf8(void) {
    u8 lead = *at, low = 0x80, high = 0xbf;
    int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4) return fail("invalid UTF-8");
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
    at++;
    for (; more; more--, at++, low = 0x80, high = 0xbf) {
        if (!next_is(low, high)) return fail("invalid UTF-8");
    }
    return true;
}

static bool string(void) {
    const u8 *start = at;
    if (!take('"')) return fail("expected a string");
    while (!take('"')) {
        if (at == end) return fail("unterminated string");
        if (*at < 0x20) return fail("control character in a string");
        if (take('\\')) {
            if (!escape()) return false;
        } else if (*at < 0x80) {
            at++;
        } else if (!utf8()) {
            return false;
        }
    }
    return put_since(start);
}

static bool key(void) {
    if (!string()) return false;
    skip_space();
    if (!take(':')) return fail("expected ':'");
    skip_space();
    return put(':') && put(' ');
}

static bool value(u32 depth);

static bool container(u32 depth, u8 close) {
    if (depth == MAX_DEPTH) return fail("more than 256 levels");
    if (!put(*at++)) return false;
    skip_space();
    if (take(close)) return put(close);
    for (;;) {
        if (!put_newline(depth + 1)) return false;
        if (close == '}' && !key()) return false;
        if (!value(depth + 1)) return false;
        skip_space();
        if (take(close)) return put_newline(depth) && put(close);
        if (!take(',')) return fail(close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
        if (!put(',')) return false;
        skip_space();
    }
}

static bool value(u32 depth) {
    if (at == end) return fail("expected a value");
    switch (*at) {
    case '{': return container(depth, '}');
    case '[': return container(depth, ']');
    case '"': return string();
    case 't': return literal("true");
    case 'f': return literal("false");
    case 'n': return literal("null");
    default: return *at == '-' || next_is('0', '9') ? number() : fail("expected a value");
    }
}

static bool document(void) {
    skip_space();
    if (!value(0)) return false;
    skip_space();
    return at == end || fail("data after the document");
}

static u8 *append(u8 *to, const char *text) {
    while (*text) *to++ = (u8)*text++;
    return to;
}

static u8 *append_number(u8 *to, u32 n) {
    if (n >= 10) to = append_number(to, n / 10);
    *to++ = (u8)('0' + n % 10);
    return to;
}

/* In a static buffer: the reason may be that there is no memory left. */
static u64 error(void) {
    u8 *to = append(error_line, "{\"error\": \"");
    to = append(append(to, failure), "\", \"offset\": ");
    to = append(append_number(to, (u32)(at - begin)), "}");
    return packed(error_line, (u32)(to - error_line));
}

EXPORT(format) u64 format(const u8 *input, u32 length) {
    begin = at = input;
    end = input + length;
    return document() ? packed(output, output_length) : error();
}
