/* E-mail validation. Bytes call `validate`: an address in, "valid" or "invalid: <reason>" out.
 *
 * Convention: NUL_TERMINATED. Every answer is a C string, so the pointer that C has is the result.
 *
 * The grammar is RFC 5321's Mailbox without quoted local parts and address literals, with its
 * limits (local part 64 bytes, label 63, address 254), and the domain must have a dot. ASCII only:
 * internationalised addresses (RFC 6531) are answered "invalid". */
#include "guest.h"

enum { MAX_ADDRESS = 254, MAX_LOCAL_PART = 64, MAX_LABEL = 63 };

static bool is_alphanumeric(u8 c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool is_atom(u8 c) {
    if (is_alphanumeric(c)) return true;
    for (const char *other = "!#$%&'*+-/=?^_`{|}~"; *other; other++) {
        if (c == (u8)*other) return true;
    }
    return false;
}

/* Both checks return a null pointer, or what is wrong. */
static const char *check_local_part(const u8 *at, const u8 *end) {
    if (at == end) return "invalid: empty local part";
    if (end - at > MAX_LOCAL_PART) return "invalid: local part longer than 64 bytes";
    u8 previous = '.';
    for (; at < end; previous = *at++) {
        if (*at == '.' && previous == '.') return "invalid: misplaced dot in local part";
        if (*at != '.' && !is_atom(*at)) return "invalid: character not allowed in local part";
    }
    return previous == '.' ? "invalid: misplaced dot in local part" : 0;
}

static const char *check_domain(const u8 *at, const u8 *end) {
    if (at == end) return "invalid: empty domain";
    for (u32 labels = 1;; labels++, at++) {
        const u8 *label = at;
        for (; at < end && *at != '.'; at++) {
            if (!is_alphanumeric(*at) && *at != '-') return "invalid: character not allowed in domain";
        }
        if (at == label) return "invalid: misplaced dot in domain";
        if (at - label > MAX_LABEL) return "invalid: label longer than 63 bytes";
        if (*label == '-' || at[-1] == '-') return "invalid: label starts or ends with a hyphen";
        if (at == end) return labels < 2 ? "invalid: domain without a dot" : 0;
    }
}

EXPORT(validate) const char *validate(const u8 *input, u32 length) {
    const u8 *end = input + length, *sign = 0;
    if (length == 0) return "invalid: empty address";
    if (length > MAX_ADDRESS) return "invalid: longer than 254 bytes";
    for (const u8 *at = input; at < end; at++) {
        if (*at != '@') continue;
        if (sign) return "invalid: more than one @";
        sign = at;
    }
    if (!sign) return "invalid: no @";
    const char *reason = check_local_part(input, sign);
    if (!reason) reason = check_domain(sign + 1, end);
    return reason ? reason : "valid";
}
