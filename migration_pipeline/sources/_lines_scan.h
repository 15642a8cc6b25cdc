/* Reads the bytes of one line: where its attributes are. No Python object is touched here, so no GIL is needed.
 *
 * It accepts compact DynamoDB JSON only:
 *
 *     {"Item":{"name":{"S":"text"},"other":{"M":{"a":{"L":[{"N":"1"}]}}}}}
 *
 * No whitespace, one type a value, nothing before or after, valid UTF-8, valid escapes, at most MAX_DEPTH levels. Anything
 * else is *odd*: not wrong, but for Python to judge. Every function checks the bytes that are left before it reads one. */
#ifndef MIGRATION_LINES_SCAN_H
#define MIGRATION_LINES_SCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MAX_DEPTH 48 /* DynamoDB's own limit is 32 levels */

/* Why a line is handed to Python. The names are told by ODD_NAMES. */
typedef enum {
    FINE,
    ODD_SHAPE,
    ODD_NAME,
    ODD_TWIN,
    ODD_STRING,
    ODD_DEPTH,
    ODD_KEY,
    ODD_FIELD,
    ODD_ITEM,
    ODD_REASONS
} Odd;

static const char *const ODD_NAMES[ODD_REASONS] = {
    "",
    "not compact DynamoDB JSON",
    "an attribute name with escapes",
    "an attribute twice",
    "invalid UTF-8 or escapes",
    "nested deeply",
    "an unusual routing attribute",
    "an unusual or missing attribute",
    "its Item raised",
};

typedef enum { T_S, T_N, T_B, T_BOOL, T_NULL, T_M, T_L, T_SS, T_NS, T_BS, T_TYPES } Type;

enum { ESCAPED = 1, NOT_ASCII = 2 };

/* A place in a line. `seen` collects the flags of all its strings. */
typedef struct {
    const char *at, *end;
    unsigned seen;
    Odd odd;
} Scan;

/* One value. `from`..`to` is all of it, with its braces. */
typedef struct {
    const char *from, *to;
    const char *text; /* S, N, B: what is between the quotes. Others: where the payload begins */
    size_t size;      /* S, N, B: bytes of text. BOOL, NULL: 1 for true */
    unsigned char type, flags;
} Value;

static inline int odd(Scan *s, Odd why) {
    s->odd = why;
    return 0;
}

static inline int eat(Scan *s, const char *literal, size_t size) {
    if ((size_t)(s->end - s->at) < size || memcmp(s->at, literal, size) != 0) return odd(s, ODD_SHAPE);
    s->at += size;
    return 1;
}
#define EAT(s, literal) eat(s, literal, sizeof(literal) - 1)

static inline int next_is(const Scan *s, char c) { return s->at < s->end && *s->at == c; }

/* The 16 bits of four hexadecimal digits, or -1. */
static int hex4(const char *p, const char *end) {
    int value = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        unsigned char c = (unsigned char)p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Passes over the escape at `at`, which is a backslash; half of a surrogate pair is odd. */
static int scan_escape(Scan *s) {
    if (s->end - s->at < 2) return odd(s, ODD_STRING);
    switch (s->at[1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
        s->at += 2;
        return 1;
    case 'u': {
        int unit = hex4(s->at + 2, s->end);
        if (unit < 0 || (unit >= 0xDC00 && unit <= 0xDFFF)) return odd(s, ODD_STRING);
        s->at += 6;
        if (unit >= 0xD800 && unit <= 0xDBFF) {
            if (s->end - s->at < 6 || s->at[0] != '\\' || s->at[1] != 'u') return odd(s, ODD_STRING);
            int low = hex4(s->at + 2, s->end);
            if (low < 0xDC00 || low > 0xDFFF) return odd(s, ODD_STRING);
            s->at += 6;
        }
        return 1;
    }
    default:
        return odd(s, ODD_STRING);
    }
}

#define EACH(byte) (0x0101010101010101ULL * (byte))

/* Passes over a string, from its opening quote; gives what is inside and its flags. */
static inline int scan_string(Scan *s, const char **text, size_t *size, unsigned *flags) {
    unsigned found = 0;
    if (!EAT(s, "\"")) return 0;
    const char *p = s->at;
    for (;;) {
        while (s->end - p >= 8) {
            uint64_t word, quote, slash;
            memcpy(&word, p, 8);
            quote = word ^ EACH('"');
            slash = word ^ EACH('\\');
            /* The high bit of each byte that is a quote, a backslash or a control character. There may be false ones
             * after the first true one, so the byte itself is looked at below. */
            uint64_t stop = ((quote - EACH(1)) & ~quote) | ((slash - EACH(1)) & ~slash) | ((word - EACH(0x20)) & ~word);
            if (word & EACH(0x80)) found |= NOT_ASCII;
            if (stop & EACH(0x80)) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && defined(__GNUC__)
                p += __builtin_ctzll(stop & EACH(0x80)) >> 3;
#endif
                break;
            }
            p += 8;
        }
        while (p < s->end && (unsigned char)*p >= 0x20 && *p != '"' && *p != '\\') {
            if ((unsigned char)*p >= 0x80) found |= NOT_ASCII;
            p++;
        }
        if (p >= s->end || (unsigned char)*p < 0x20) return odd(s, ODD_STRING);
        if (*p == '"') break;
        const char *begin = s->at;
        s->at = p;
        if (!scan_escape(s)) return 0;
        p = s->at;
        s->at = begin;
        found |= ESCAPED;
    }
    *text = s->at;
    *size = (size_t)(p - s->at);
    *flags = found;
    s->seen |= found;
    s->at = p + 1;
    return 1;
}

static int scan_value(Scan *s, Value *value, int depth);

/* Passes over [ … ] of strings, or of values. */
static int scan_list(Scan *s, int values, int depth) {
    if (!EAT(s, "[")) return 0;
    if (next_is(s, ']')) return EAT(s, "]");
    for (;;) {
        if (values) {
            Value inner;
            if (!scan_value(s, &inner, depth)) return 0;
        } else {
            const char *text;
            size_t size;
            unsigned flags;
            if (!scan_string(s, &text, &size, &flags)) return 0;
        }
        if (next_is(s, ']')) return EAT(s, "]");
        if (!EAT(s, ",")) return 0;
    }
}

/* Passes over { … } of names and values. */
static int scan_members(Scan *s, int depth) {
    if (!EAT(s, "{")) return 0;
    if (next_is(s, '}')) return EAT(s, "}");
    for (;;) {
        const char *text;
        size_t size;
        unsigned flags;
        Value inner;
        if (!scan_string(s, &text, &size, &flags) || !EAT(s, ":") || !scan_value(s, &inner, depth)) return 0;
        if (next_is(s, '}')) return EAT(s, "}");
        if (!EAT(s, ",")) return 0;
    }
}

static inline int scan_type(Scan *s, Type *type) {
    const char *p = s->at;
    size_t left = (size_t)(s->end - p);
    /* The shortest value is {"S":""}. */
    if (left < 8 || p[0] != '{' || p[1] != '"') return odd(s, ODD_SHAPE);
    size_t size = 1;
    switch (p[2]) {
    case 'S': *type = p[3] == 'S' ? (size = 2, T_SS) : T_S; break;
    case 'N': *type = p[3] == 'S' ? (size = 2, T_NS) : p[3] == 'U' ? (size = 4, T_NULL) : T_N; break;
    case 'B': *type = p[3] == 'S' ? (size = 2, T_BS) : p[3] == 'O' ? (size = 4, T_BOOL) : T_B; break;
    case 'M': *type = T_M; break;
    case 'L': *type = T_L; break;
    default: return odd(s, ODD_SHAPE);
    }
    if (size == 4 && memcmp(p + 2, *type == T_NULL ? "NULL" : "BOOL", 4) != 0) return odd(s, ODD_SHAPE);
    s->at = p + 2 + size;
    return EAT(s, "\":");
}

/* Passes over {"T":…}, whatever it holds. */
static int scan_value(Scan *s, Value *value, int depth) {
    Type type;
    unsigned flags = 0;
    if (depth > MAX_DEPTH) return odd(s, ODD_DEPTH);
    value->from = s->at;
    if (!scan_type(s, &type)) return 0;
    value->type = (unsigned char)type;
    value->text = s->at;
    value->size = 0;
    switch (type) {
    case T_S: case T_N: case T_B:
        if (!scan_string(s, &value->text, &value->size, &flags)) return 0;
        break;
    case T_BOOL: case T_NULL:
        value->size = next_is(s, 't');
        if (!(value->size ? EAT(s, "true") : EAT(s, "false"))) return 0;
        break;
    case T_M:
        if (!scan_members(s, depth + 1)) return 0;
        break;
    default:
        if (!scan_list(s, type == T_L, depth + 1)) return 0;
    }
    value->flags = (unsigned char)flags;
    if (!EAT(s, "}")) return 0;
    value->to = s->at;
    return 1;
}

/* Whether bytes are UTF-8 as RFC 3629 has it: shortest forms, no surrogates, nothing above U+10FFFF. */
static int valid_utf8(const unsigned char *p, const unsigned char *end) {
    while (p < end) {
        if (*p < 0x80) {
            uint64_t word;
            while (end - p >= 8 && (memcpy(&word, p, 8), !(word & EACH(0x80)))) p += 8;
            while (p < end && *p < 0x80) p++;
            continue;
        }
        ptrdiff_t left = end - p;
        unsigned char first = *p, low = 0x80, high = 0xBF;
        int more;
        if (first >= 0xC2 && first <= 0xDF) more = 1;
        else if ((first & 0xF0) == 0xE0) more = 2;
        else if (first >= 0xF0 && first <= 0xF4) more = 3;
        else return 0;
        if (left <= more) return 0;
        if (first == 0xE0) low = 0xA0;
        else if (first == 0xED) high = 0x9F;
        else if (first == 0xF0) low = 0x90;
        else if (first == 0xF4) high = 0x8F;
        if (p[1] < low || p[1] > high) return 0;
        for (int i = 2; i <= more; i++)
            if ((p[i] & 0xC0) != 0x80) return 0;
        p += more + 1;
    }
    return 1;
}

#endif
