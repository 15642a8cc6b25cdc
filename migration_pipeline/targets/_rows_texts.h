/* The growing buffer, and texts as CSV, arrays and documents escape them: every function makes room before it writes. */
#ifndef MIGRATION_ROWS_TEXTS_H
#define MIGRATION_ROWS_TEXTS_H


#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <datetime.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

#define DEEPEST 100 /* levels of a document; deeper ones are Python's */

/* What a function made of a value. */
enum { FAILED = -1, DONE = 0, UNKNOWN = 1 };

/* How a column's values are spelled; targets/accelerated_rows.py has the same numbers. */
enum { PLAIN, SCALAR, BYTEA, ARRAY, BYTEA_ARRAY, DOCUMENT, TIME, UTC, SPELLED, KINDS };

/* How often a text is escaped: CSV alone; an element of an array, in CSV; a text of a document, in CSV. */
enum { IN_CSV, IN_ARRAY, IN_DOCUMENT };

typedef struct {
    PyTypeObject *encoder_type, *lines_type, *keys_type;
    PyTypeObject *decimal_type, *uuid_type;
    PyDateTime_CAPI *datetime; /* in place of the header's static variable */
    PyObject *name_int, *name_utcoffset, *sixty_four;
} State;

/* -- a growing buffer ------------------------------------------------------------------------- */

typedef struct {
    char *data;
    size_t size, room;
} Buffer;

static int
grow(Buffer *out, size_t more)
{
    if (more > (size_t)PY_SSIZE_T_MAX / 4 || out->size > (size_t)PY_SSIZE_T_MAX / 4) {
        PyErr_NoMemory();
        return FAILED;
    }
    size_t room = (out->size + more) * 2;
    char *data = PyMem_Realloc(out->data, room);
    if (data == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    out->data = data;
    out->room = room;
    return DONE;
}

/* Make room for some more bytes. */
static inline int
reserve(Buffer *out, size_t more)
{
    return out->room - out->size >= more ? DONE : grow(out, more);
}

static inline int
put(Buffer *out, const char *bytes, size_t count)
{
    if (reserve(out, count) < 0) {
        return FAILED;
    }
    memcpy(out->data + out->size, bytes, count);
    out->size += count;
    return DONE;
}

/* -- texts ------------------------------------------------------------------------------------ */

#define ONES UINT64_C(0x0101010101010101)
#define HIGH UINT64_C(0x8080808080808080)

/* Whether a byte of eight is a quote, a backslash, or (in a document) a control character. */
static inline int
any_special(uint64_t eight, int level)
{
    uint64_t quote = eight ^ (ONES * '"'), backslash = eight ^ (ONES * '\\');
    uint64_t found = ((quote - ONES) & ~quote) | ((backslash - ONES) & ~backslash);
    if (level == IN_DOCUMENT) {
        found |= (eight - ONES * 0x20) & ~eight;
    }
    return (found & HIGH) != 0;
}

/* Escape one byte; there is room for 8. */
static inline size_t
escape(char *to, unsigned char byte, int level)
{
    static const char hex[] = "0123456789abcdef";
    if (byte == '"' || byte == '\\') {
        if (level == IN_CSV) {
            to[0] = '\\', to[1] = (char)byte;
            return 2;
        }
        to[0] = to[1] = to[2] = '\\', to[3] = (char)byte;
        return 4;
    }
    if (level != IN_DOCUMENT || byte >= 0x20) {
        to[0] = (char)byte;
        return 1;
    }
    to[0] = to[1] = '\\';
    switch (byte) {
    case '\b': to[2] = 'b'; return 3;
    case '\f': to[2] = 'f'; return 3;
    case '\n': to[2] = 'n'; return 3;
    case '\r': to[2] = 'r'; return 3;
    case '\t': to[2] = 't'; return 3;
    default: break;
    }
    memcpy(to + 2, "u00", 3);
    to[5] = hex[byte >> 4], to[6] = hex[byte & 15];
    return 7;
}

static int
put_escaped(Buffer *out, const char *bytes, size_t count, int level)
{
    const char *end = bytes + count;
    if (reserve(out, count + 8) < 0) {
        return FAILED;
    }
    while (bytes < end) {
        size_t step = (size_t)(end - bytes) < 8 ? (size_t)(end - bytes) : 8;
        uint64_t eight = ONES * 'x';
        memcpy(&eight, bytes, step);
        if (!any_special(eight, level)) {
            memcpy(out->data + out->size, &eight, 8);
            out->size += step;
        }
        else {
            /* The rest as it is, these escaped, and the 8 of the next store. */
            if (reserve(out, (size_t)(end - bytes) + 8 * 8 + 8) < 0) {
                return FAILED;
            }
            for (size_t n = 0; n < step; n++) {
                out->size += escape(out->data + out->size, (unsigned char)bytes[n], level);
            }
        }
        bytes += step;
    }
    return DONE;
}

/* A str, its quotes left to the caller. Lone surrogates fail. */
static int
put_str(Buffer *out, PyObject *text, int level)
{
    Py_ssize_t count;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &count);
    return bytes == NULL ? FAILED : put_escaped(out, bytes, (size_t)count, level);
}

static int
put_quoted(Buffer *out, PyObject *text)
{
    if (put(out, "\"", 1) < 0 || put_str(out, text, IN_CSV) < 0) {
        return FAILED;
    }
    return put(out, "\"", 1);
}

/* What str() says of an object, escaped but without quotes. */
static int
put_said(Buffer *out, PyObject *value, int level)
{
    PyObject *text = PyObject_Str(value);
    if (text == NULL) {
        return FAILED;
    }
    int done = put_str(out, text, level);
    Py_DECREF(text);
    return done;
}

static int
put_hex(Buffer *out, const unsigned char *bytes, size_t count)
{
    static const char hex[] = "0123456789abcdef";
    if (count > (size_t)PY_SSIZE_T_MAX / 8) {
        PyErr_NoMemory();
        return FAILED;
    }
    if (reserve(out, count * 2) < 0) {
        return FAILED;
    }
    char *to = out->data + out->size;
    for (size_t n = 0; n < count; n++) {
        *to++ = hex[bytes[n] >> 4];
        *to++ = hex[bytes[n] & 15];
    }
    out->size += count * 2;
    return DONE;
}

#endif
