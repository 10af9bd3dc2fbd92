/* JSON: parse a document into a tree, walk the tree, answer with what was in it.
 *
 * The tree is a real one: strings are decoded, numbers are doubles, every value is a node. The answer
 * is two little-endian u32, the number of nodes and a checksum over all of them in order, so that
 * nothing of the parse can be left out. README.md has the checksum; javascript/json.mjs and
 * python/json_10k.py compute the same. A document that is not valid is answered with 0 nodes and the
 * offset of the byte that is wrong.
 *
 * RFC 8259 with limits that its text allows: 64 levels, and numbers of at most 15 digits and a power of
 * ten between -22 and 22, for which one multiplication or division of doubles is exact to the last bit. */
#include "claim.h"

enum { MAX_DEPTH = 64, MAX_DIGITS = 15, MAX_POWER = 22 };
enum kind { KIND_NULL, KIND_FALSE, KIND_TRUE, KIND_NUMBER, KIND_STRING, KIND_ARRAY, KIND_OBJECT };

struct text {
    const u8 *bytes;
    u32 size, characters;
};

struct node {
    u32 kind, count; /* of children */
    struct node *next, *first;
    struct text key, text;
    double number;
};

static const u8 *begin, *at, *end;
static u32 nodes, checksum;
static u8 answer_bytes[8];

static const double POWERS[MAX_POWER + 1] = {
    1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
};

/* Reading. Each function starts at its first byte and ends after its last, or returns false at the
 * byte that is wrong. */

static bool next_is(u8 low, u8 high) {
    return at < end && *at >= low && *at <= high;
}

static bool take(u8 byte) {
    if (!next_is(byte, byte)) return false;
    at++;
    return true;
}

static void skip_space(void) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) at++;
}

static bool literal(const char *word) {
    for (; *word; word++) {
        if (!take((u8)*word)) return false;
    }
    return true;
}

/* Digits are appended to `mantissa`; returns how many there were. */
static u32 digits(u64 *mantissa) {
    const u8 *start = at;
    for (; next_is('0', '9'); at++) *mantissa = *mantissa * 10 + (u64)(*at - '0');
    return (u32)(at - start);
}

static bool number(double *to) {
    u64 mantissa = 0, shift = 0;
    bool negative = take('-'), zero = next_is('0', '0');
    u32 whole = digits(&mantissa), fraction = 0;
    if (!whole || (zero && whole > 1)) return false;
    if (take('.') && !(fraction = digits(&mantissa))) return false;
    int power = -(int)fraction;
    if (take('e') || take('E')) {
        bool down = take('-');
        if (!down) take('+');
        u32 length = digits(&shift);
        if (!length || length > 3) return false;
        power += down ? -(int)shift : (int)shift;
    }
    if (whole + fraction > MAX_DIGITS || power < -MAX_POWER || power > MAX_POWER) return false;
    double value = power < 0 ? (double)mantissa / POWERS[-power] : (double)mantissa * POWERS[power];
    *to = negative ? -value : value;
    return true;
}

static bool hex4(u32 *unit) {
    *unit = 0;
    for (int i = 0; i < 4; i++, at++) {
        if (next_is('0', '9')) *unit = *unit << 4 | (u32)(*at - '0');
        else if (next_is('A', 'F') || next_is('a', 'f')) *unit = *unit << 4 | (u32)((*at & 7) + 9);
        else return false;
    }
    return true;
}

/* The character of a \u escape, of which `at` has passed the u; a surrogate needs its partner. */
static bool unicode_escape(u32 *character) {
    u32 low;
    if (!hex4(character)) return false;
    if (*character < 0xd800 || *character > 0xdfff) return true;
    if (*character > 0xdbff || !take('\\') || !take('u') || !hex4(&low)) return false;
    if (low < 0xdc00 || low > 0xdfff) return false;
    *character = 0x10000 + ((*character - 0xd800) << 10 | (low - 0xdc00));
    return true;
}

static u8 *encode(u8 *to, u32 c) {
    if (c < 0x80) return *to++ = (u8)c, to;
    if (c < 0x800) {
        *to++ = (u8)(0xc0 | c >> 6);
    } else {
        if (c < 0x10000) *to++ = (u8)(0xe0 | c >> 12);
        else *to++ = (u8)(0xf0 | c >> 18), *to++ = (u8)(0x80 | (c >> 12 & 0x3f));
        *to++ = (u8)(0x80 | (c >> 6 & 0x3f));
    }
    *to++ = (u8)(0x80 | (c & 0x3f));
    return to;
}

static bool escape(u8 **to) {
    u32 character;
    if (take('u')) {
        if (!unicode_escape(&character)) return false;
        *to = encode(*to, character);
        return true;
    }
    for (const char *name = "\"\"\\\\//b\bf\fn\nr\rt\t"; *name; name += 2) {
        if (take((u8)name[0])) return *(*to)++ = (u8)name[1], true;
    }
    return false;
}

/* One character of two to four bytes, by the table of RFC 3629, section 4. */
static bool utf8(u8 **to) {
    u8 lead = *at, low = 0x80, high = 0xbf;
    int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4) return false;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
    *(*to)++ = *at++;
    for (; more; more--, low = 0x80, high = 0xbf) {
        if (!next_is(low, high)) return false;
        *(*to)++ = *at++;
    }
    return true;
}

/* Decoded into a block of its own, which is as long as the text with its escapes at most. */
static bool string(struct text *text) {
    if (!take('"')) return false;
    const u8 *quote = at;
    while (quote < end && *quote != '"') quote += *quote == '\\' ? 2 : 1;
    if (quote >= end) return at = end, false;
    u8 *to = alloc((u32)(quote - at));
    if (!to) return false;
    text->bytes = to;
    text->characters = 0;
    for (; !take('"'); text->characters++) {
        if (*at < 0x20) return false;
        if (take('\\')) {
            if (!escape(&to)) return false;
        } else if (*at < 0x80) {
            *to++ = *at++;
        } else if (!utf8(&to)) {
            return false;
        }
    }
    text->size = (u32)(to - text->bytes);
    return true;
}

static struct node *value(u32 depth);

static bool member(struct node *parent, struct node ***last, u32 depth) {
    struct text key = {0};
    skip_space();
    if (parent->kind == KIND_OBJECT) {
        if (!string(&key)) return false;
        skip_space();
        if (!take(':')) return false;
        skip_space();
    }
    struct node *child = value(depth + 1);
    if (!child) return false;
    child->key = key;
    **last = child;
    *last = &child->next;
    parent->count++;
    skip_space();
    return true;
}

static bool container(struct node *node, u8 close, u32 depth) {
    if (depth == MAX_DEPTH) return false;
    struct node **last = &node->first;
    at++;
    skip_space();
    if (take(close)) return true;
    do {
        if (!member(node, &last, depth)) return false;
    } while (take(','));
    return take(close);
}

static bool content(struct node *node, u32 depth) {
    if (at == end) return false;
    switch (*at) {
    case '{': return node->kind = KIND_OBJECT, container(node, '}', depth);
    case '[': return node->kind = KIND_ARRAY, container(node, ']', depth);
    case '"': return node->kind = KIND_STRING, string(&node->text);
    case 'n': return node->kind = KIND_NULL, literal("null");
    case 'f': return node->kind = KIND_FALSE, literal("false");
    case 't': return node->kind = KIND_TRUE, literal("true");
    default: return node->kind = KIND_NUMBER, number(&node->number);
    }
}

static struct node *value(u32 depth) {
    struct node *node = (struct node *)alloc(sizeof *node);
    if (!node) return 0;
    *node = (struct node){0};
    return content(node, depth) ? node : 0;
}

/* Walking. */

static void add(u32 number) {
    checksum = checksum * 31 + number;
}

static u32 last_character(const struct text *text) {
    if (!text->size) return 0;
    const u8 *p = text->bytes + text->size - 1;
    u32 shift = 0, c = 0;
    for (; (*p & 0xc0) == 0x80; p--, shift += 6) c |= (u32)(*p & 0x3f) << shift;
    /* The lead byte's own bits: all but the ones that say how many bytes follow. */
    return shift ? c | (*p & (0x3fu >> shift / 6)) << shift : *p;
}

static void add_text(const struct text *text) {
    add(text->characters);
    add(last_character(text));
}

static void walk(const struct node *node) {
    nodes++;
    add(node->kind);
    if (node->kind == KIND_NUMBER) add((u32)(int64_t)(node->number * 64));
    if (node->kind == KIND_STRING) add_text(&node->text);
    if (node->kind >= KIND_ARRAY) add(node->count);
    for (const struct node *child = node->first; child; child = child->next) {
        if (node->kind == KIND_OBJECT) add_text(&child->key);
        walk(child);
    }
}

static u64 work(const u8 *input, u32 length) {
    begin = at = input;
    end = input + length;
    nodes = checksum = 0;
    skip_space();
    struct node *root = value(0);
    skip_space();
    if (root && at == end) walk(root);
    else checksum = (u32)(at - begin);
    for (u32 i = 0; i < 4; i++) {
        answer_bytes[i] = (u8)(nodes >> 8 * i);
        answer_bytes[4 + i] = (u8)(checksum >> 8 * i);
    }
    return packed(answer_bytes, sizeof answer_bytes);
}

CLAIM(parse)
