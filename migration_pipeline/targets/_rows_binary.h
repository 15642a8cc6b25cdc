/* COPY input in PostgreSQL's binary format, made of the CSV that is written here: the server need not read it then.
 *
 * It takes whole rows of values in the spellings that copy_csv.py makes. Anything else is UNKNOWN: the CSV is sent, and what it
 * means the server says. targets/copy_binary.py names the types. */
#ifndef MIGRATION_ROWS_BINARY_H
#define MIGRATION_ROWS_BINARY_H

#include "_rows_texts.h"

#define FIELD_ROOM 16 /* bytes that a field may have more than its CSV: 4 for its size, 12 at most for a number of one digit */
#define JSONB_VERSION 1
#define DAYS_TO_2000 730425 /* from 0000-03-01, in the proleptic Gregorian calendar */

static const char SIGNATURE[19] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0";

/* Between quotes, or up to the comma or newline. */
typedef struct {
    const char *at, *end;
} Span;

static char *
put_big(char *to, uint64_t value, int bytes)
{
    for (int n = bytes; n-- > 0; value >>= 8) {
        to[n] = (char)value;
    }
    return to + bytes;
}

/* A whole number of 64 bits. */
static int
read_whole(Span text, int64_t *value)
{
    uint64_t negative = text.at < text.end && *text.at == '-', found = 0;
    const char *at = text.at + negative;
    if (at == text.end || text.end - at > 19) {
        return UNKNOWN;
    }
    for (; at < text.end; at++) {
        unsigned digit = (unsigned char)*at - (unsigned)'0';
        if (digit > 9) {
            return UNKNOWN;
        }
        found = found * 10 + digit; /* 19 digits are less than 2 ** 64 */
    }
    if (found > (uint64_t)INT64_MAX + negative) {
        return UNKNOWN;
    }
    *value = (int64_t)(negative ? 0 - found : found);
    return DONE;
}

/* Some digits and nothing else; -1 for anything else. */
static int
digits_at(const char *at, int count)
{
    int value = 0;
    for (int n = 0; n < count; n++) {
        unsigned digit = (unsigned char)at[n] - (unsigned)'0';
        if (digit > 9) {
            return -1;
        }
        value = value * 10 + (int)digit;
    }
    return value;
}

static char *
put_integer(char *to, Span text, int bytes)
{
    int64_t value;
    if (read_whole(text, &value) != DONE || (bytes == 2 && value != (int16_t)value) || (bytes == 4 && value != (int32_t)value)) {
        return NULL;
    }
    to = put_big(to, (uint64_t)bytes, 4);
    return put_big(to, (uint64_t)value, bytes);
}

#define MOST_DIGITS 1000 /* of a number, and the most that its exponent may be; beyond them PostgreSQL has limits of its own */

/* A decimal number as text: its digits without the point, which is before digit `point` of them. */
typedef struct {
    const char *whole, *fraction;
    ptrdiff_t before, count, point;
} Digits;

/* Digits with at most one point among them, and perhaps E and an exponent. */
static int
read_digits(Span text, Digits *found)
{
    const char *at = text.at, *end;
    while (at < text.end && (unsigned char)*at - (unsigned)'0' <= 9) {
        at++;
    }
    *found = (Digits){text.at, at, at - text.at, at - text.at, at - text.at};
    end = at;
    if (at < text.end && *at == '.') {
        found->fraction = end = ++at;
        while (end < text.end && (unsigned char)*end - (unsigned)'0' <= 9) {
            end++;
        }
        found->count += end - at;
        if (end == at) {
            return UNKNOWN;
        }
    }
    if (end < text.end) {
        int64_t exponent;
        if (*end++ != 'E') {
            return UNKNOWN;
        }
        int plus = end < text.end && *end == '+';
        end += plus;
        if (read_whole((Span){end, text.end}, &exponent) != DONE || exponent > MOST_DIGITS || exponent < -MOST_DIGITS ||
            (plus && *end == '-')) {
            return UNKNOWN;
        }
        found->point += exponent;
    }
    return found->before && found->count <= MOST_DIGITS ? DONE : UNKNOWN;
}

/* A number in groups of four digits: their count, the weight of the first, sign, scale, groups. */
static char *
put_numeric(char *to, Span text)
{
    int negative = text.at < text.end && *text.at == '-';
    Digits digits;
    text.at += negative;
    if (read_digits(text, &digits) != DONE) {
        return NULL;
    }
    char *head = to, *groups = to + 12;
    ptrdiff_t scale = digits.count - digits.point, first = digits.point & 3, weight = 0, count = 0;
    to = groups;
    /* Groups begin at each fourth digit from the point on, so the first one may begin before the first digit. */
    for (ptrdiff_t at = first ? first - 4 : 0; at < digits.count; at += 4) {
        int value = 0;
        for (ptrdiff_t n = at; n < at + 4; n++) {
            char digit = n < 0 || n >= digits.count ? '0' : n < digits.before ? digits.whole[n] : digits.fraction[n - digits.before];
            value = value * 10 + (digit - '0');
        }
        if (count == 0) {
            if (value == 0) {
                continue;
            }
            weight = (digits.point - at) / 4 - 1;
        }
        to = put_big(to, (uint64_t)value, 2);
        count++;
    }
    while (count && to[-1] == 0 && to[-2] == 0) {
        to -= 2;
        count--;
    }
    put_big(head, (uint64_t)(to - head - 4), 4);
    put_big(head + 4, (uint64_t)count, 2);
    put_big(head + 6, (uint64_t)weight, 2);
    put_big(head + 8, count && negative ? 0x4000 : 0, 2);
    put_big(head + 10, scale > 0 ? (uint64_t)scale : 0, 2);
    return to;
}

/* Days since 2000 of YYYY-MM-DD; UNKNOWN for what is no date. */
static int
read_days(const char *at, int64_t *days)
{
    static const char lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int year = digits_at(at, 4), month = digits_at(at + 5, 2), day = digits_at(at + 8, 2);
    if (at[4] != '-' || at[7] != '-' || year < 1 || month < 1 || month > 12 || day < 1) {
        return UNKNOWN;
    }
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > lengths[month - 1] + (month == 2 && leap)) {
        return UNKNOWN;
    }
    /* Years that begin in March, so that the leap day is the last one. */
    int64_t y = year - (month <= 2), m = month + (month <= 2 ? 9 : -3);
    *days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - DAYS_TO_2000;
    return DONE;
}

static char *
put_binary_date(char *to, Span text)
{
    int64_t days;
    if (text.end - text.at != 10 || read_days(text.at, &days) != DONE) {
        return NULL;
    }
    return put_big(put_big(to, 4, 4), (uint64_t)days, 4);
}

/* 2024-01-31T23:59:59, up to six digits of a fraction, and Z or +HH:MM. */
static char *
put_binary_time(char *to, Span text)
{
    const char *at = text.at;
    int64_t days;
    if (text.end - at < 20 || at[10] != 'T' || at[13] != ':' || at[16] != ':' || read_days(at, &days) != DONE) {
        return NULL;
    }
    int hour = digits_at(at + 11, 2), minute = digits_at(at + 14, 2), second = digits_at(at + 17, 2);
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59) {
        return NULL;
    }
    int64_t micros = 0;
    at += 19;
    if (*at == '.') {
        int unit = 100000;
        for (at++; at < text.end && *at >= '0' && *at <= '9'; at++, unit /= 10) {
            if (unit == 0) {
                return NULL;
            }
            micros += (*at - '0') * unit;
        }
        if (unit == 100000) {
            return NULL;
        }
    }
    int64_t offset = 0;
    if (text.end - at == 6 && (*at == '+' || *at == '-') && at[3] == ':') {
        int hours = digits_at(at + 1, 2), minutes = digits_at(at + 4, 2);
        if (hours < 0 || hours > 15 || minutes < 0 || minutes > 59) {
            return NULL;
        }
        offset = (hours * 60 + minutes) * (*at == '-' ? -60 : 60);
    }
    else if (text.end - at != 1 || *at != 'Z') {
        return NULL;
    }
    int64_t seconds = days * 86400 + hour * 3600 + minute * 60 + second - offset;
    return put_big(put_big(to, 8, 4), (uint64_t)(seconds * 1000000 + micros), 8);
}

static int
hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static char *
put_binary_uuid(char *to, Span text)
{
    if (text.end - text.at != 36) {
        return NULL;
    }
    to = put_big(to, 16, 4);
    for (int n = 0; n < 36;) {
        if (n == 8 || n == 13 || n == 18 || n == 23) {
            if (text.at[n++] != '-') {
                return NULL;
            }
            continue;
        }
        int high = hex_digit(text.at[n]), low = hex_digit(text.at[n + 1]);
        if (high < 0 || low < 0) {
            return NULL;
        }
        *to++ = (char)(high << 4 | low);
        n += 2;
    }
    return to;
}

static char *
put_binary_bool(char *to, Span text)
{
    size_t size = (size_t)(text.end - text.at);
    if (!(size == 4 && memcmp(text.at, "true", 4) == 0) && !(size == 5 && memcmp(text.at, "false", 5) == 0)) {
        return NULL;
    }
    to = put_big(to, 1, 4);
    *to++ = size == 4;
    return to;
}

/* A value of a column that is no text, whose CSV has no escapes. */
static char *
put_value(char *to, Span text, char type)
{
    switch (type) {
    case '2': return put_integer(to, text, 2);
    case '4': return put_integer(to, text, 4);
    case '8': return put_integer(to, text, 8);
    case 'n': return put_numeric(to, text);
    case 'z': return put_binary_time(to, text);
    case 'd': return put_binary_date(to, text);
    case 'u': return put_binary_uuid(to, text);
    case 'b': return put_binary_bool(to, text);
    default: return NULL;
    }
}

/* Copy a text up to its closing quote, without its backslashes; `at` is left behind the quote. NULL where there is none. */
static char *
put_unquoted(char *to, const char **from, const char *end)
{
    const char *at = *from;
    for (;;) {
        while (end - at >= 8) {
            uint64_t eight;
            memcpy(&eight, at, 8);
            if (any_special(eight, IN_CSV)) {
                break;
            }
            memcpy(to, &eight, 8);
            to += 8;
            at += 8;
        }
        for (int n = 0; n < 8; n++) {
            if (at == end) {
                return NULL;
            }
            if (*at == '"') {
                *from = at + 1;
                return to;
            }
            if (*at == '\\' && (++at == end || (*at != '"' && *at != '\\'))) {
                return NULL;
            }
            *to++ = *at++;
        }
    }
}

/* Up to the first quote or backslash. */
static const char *
up_to_special(const char *at, const char *end)
{
    uint64_t eight;
    while (end - at >= 8 && (memcpy(&eight, at, 8), !any_special(eight, IN_CSV))) {
        at += 8;
    }
    while (at < end && *at != '"' && *at != '\\') {
        at++;
    }
    return at;
}

/* One field; `from` is left at its comma or newline. NULL for what is not understood. */
static char *
put_field(char *to, const char **from, const char *end, char type)
{
    const char *at = *from;
    char *head = to;
    int document = type == 'j', text = document || type == 't';
    Span span;
    if (at < end && *at == '"') {
        at++;
        if (text) {
            to += 4;
            if (document) {
                *to++ = JSONB_VERSION;
            }
            to = put_unquoted(to, &at, end);
            if (to != NULL) {
                put_big(head, (uint64_t)(to - head - 4), 4);
            }
            *from = at;
            return to;
        }
        span = (Span){at, up_to_special(at, end)};
        if (span.end == end || *span.end != '"') {
            return NULL;
        }
        *from = span.end + 1;
        return put_value(to, span, type);
    }
    span = (Span){at, at};
    while (span.end < end && *span.end != ',' && *span.end != '\n' && *span.end != '\r' && *span.end != '"' && *span.end != '\\') {
        span.end++;
    }
    *from = span.end;
    size_t size = (size_t)(span.end - at);
    if (size == 4 && memcmp(at, "null", 4) == 0) {
        return put_big(to, UINT32_MAX, 4);
    }
    if (!text) {
        return put_value(to, span, type);
    }
    to = put_big(to, size + (size_t)document, 4);
    if (document) {
        *to++ = JSONB_VERSION;
    }
    memcpy(to, at, size);
    return to + size;
}

/* All rows. NULL for what is not understood. */
static char *
put_binary(char *to, const char *at, const char *end, Py_ssize_t rows, const char *types, Py_ssize_t width)
{
    memcpy(to, SIGNATURE, sizeof SIGNATURE);
    to += sizeof SIGNATURE;
    for (Py_ssize_t row = 0; row < rows; row++) {
        to = put_big(to, (uint64_t)width, 2);
        for (Py_ssize_t n = 0; n < width; n++) {
            to = put_field(to, &at, end, types[n]);
            if (to == NULL || at == end || *at++ != (n + 1 < width ? ',' : '\n')) {
                return NULL;
            }
        }
    }
    return at == end ? put_big(to, UINT16_MAX, 2) : NULL;
}

PyDoc_STRVAR(binary_doc,
"binary(data, rows, types) -> data or None\n\n"
"Make COPY input in the binary format of so many rows of CSV; None for what is not understood. `types` has a byte for each column:\n"
"t text, j jsonb, b boolean, 2, 4 and 8 integers of so many bytes, n numeric, z timestamp with time zone, d date, u uuid.");

static PyObject *
rows_binary(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *data, *types;
    Py_ssize_t rows;
    if (!PyArg_ParseTuple(arguments, "SnS", &data, &rows, &types)) {
        return NULL;
    }
    Py_ssize_t width = PyBytes_GET_SIZE(types), size = PyBytes_GET_SIZE(data);
    if (rows < 0 || width == 0 || width > INT16_MAX || rows > PY_SSIZE_T_MAX / 2 / (width * FIELD_ROOM + 2) ||
        size > PY_SSIZE_T_MAX / 4) {
        PyErr_SetString(PyExc_ValueError, "no such rows");
        return NULL;
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizeof SIGNATURE + 2 + size + rows * (width * FIELD_ROOM + 2));
    if (made == NULL) {
        return NULL;
    }
    const char *at = PyBytes_AS_STRING(data), *of = PyBytes_AS_STRING(types);
    char *to = PyBytes_AS_STRING(made), *behind;
    Py_BEGIN_ALLOW_THREADS
    behind = put_binary(to, at, at + size, rows, of, width);
    Py_END_ALLOW_THREADS
    if (behind == NULL) {
        Py_DECREF(made);
        Py_RETURN_NONE;
    }
    return _PyBytes_Resize(&made, behind - to) < 0 ? NULL : made;
}

#endif
