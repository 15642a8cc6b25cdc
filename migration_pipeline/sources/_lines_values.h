/* Makes Python values of places in a line that _lines_scan.h has passed over.
 *
 * A function returns a new reference; or NULL with `s->odd` set and no exception: the value is for Python to judge; or
 * NULL with an exception that is to be raised (no memory, or an interrupt). */
#ifndef MIGRATION_LINES_VALUES_H
#define MIGRATION_LINES_VALUES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <datetime.h>

#include "_lines_scan.h"

typedef struct {
    PyObject *decimal;           /* decimal.Decimal */
    PyDateTime_CAPI *datetime;   /* of this interpreter */
    PyTypeObject *reader;
} State;

static PyObject *odd_value(Scan *s) {
    s->odd = ODD_FIELD;
    return NULL;
}

/* Turns an exception of Python code into an odd value; those that are no verdict on a value stay. */
static PyObject *odd_unless_fatal(Scan *s, Odd why) {
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError)) return NULL;
    PyErr_Clear();
    s->odd = why;
    return NULL;
}

/* Undoes escapes, which the scan has checked. `out` has room for `size` bytes: no escape is shorter than its UTF-8. */
static size_t unescape(const char *p, size_t size, char *out) {
    const char *end = p + size;
    char *o = out;
    while (p < end) {
        if (*p != '\\') {
            *o++ = *p++;
            continue;
        }
        char c = p[1];
        if (c != 'u') {
            *o++ = c == 'b' ? '\b' : c == 'f' ? '\f' : c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c;
            p += 2;
            continue;
        }
        unsigned code = (unsigned)hex4(p + 2, end);
        p += 6;
        if (code >= 0xD800 && code <= 0xDBFF) {
            code = 0x10000 + ((code - 0xD800) << 10) + ((unsigned)hex4(p + 2, end) - 0xDC00);
            p += 6;
        }
        if (code < 0x80) {
            *o++ = (char)code;
        } else if (code < 0x800) {
            *o++ = (char)(0xC0 | code >> 6);
            *o++ = (char)(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            *o++ = (char)(0xE0 | code >> 12);
            *o++ = (char)(0x80 | (code >> 6 & 0x3F));
            *o++ = (char)(0x80 | (code & 0x3F));
        } else {
            *o++ = (char)(0xF0 | code >> 18);
            *o++ = (char)(0x80 | (code >> 12 & 0x3F));
            *o++ = (char)(0x80 | (code >> 6 & 0x3F));
            *o++ = (char)(0x80 | (code & 0x3F));
        }
    }
    return (size_t)(o - out);
}

static PyObject *make_text(const char *text, size_t size, unsigned flags) {
    if (flags & ESCAPED) {
        char *buffer = PyMem_Malloc(size);
        if (!buffer) return PyErr_NoMemory();
        size_t made = unescape(text, size, buffer);
        PyObject *result = PyUnicode_DecodeUTF8(buffer, (Py_ssize_t)made, NULL);
        PyMem_Free(buffer);
        return result;
    }
    if (flags & NOT_ASCII || size == 0) return PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, NULL);
    PyObject *result = PyUnicode_New((Py_ssize_t)size, 127);
    if (result) memcpy(PyUnicode_1BYTE_DATA(result), text, size);
    return result;
}

/* Exact, as `number` in values.py: of its characters only. What Decimal refuses is odd. */
static PyObject *make_decimal(State *state, Scan *s, const char *text, size_t size, unsigned flags) {
    if (flags) return odd_value(s);
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (!((c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E')) return odd_value(s);
    }
    PyObject *digits = make_text(text, size, 0);
    if (!digits) return NULL;
    PyObject *result = PyObject_CallOneArg(state->decimal, digits);
    Py_DECREF(digits);
    return result ? result : odd_unless_fatal(s, ODD_FIELD);
}

/* The usual spelling of a whole number: up to 18 digits, with or without a minus. */
static int read_integer(const char *text, size_t size, long long *value) {
    size_t i = size > 1 && text[0] == '-';
    long long found = 0;
    if (size == 0 || size - i > 18) return 0;
    for (size_t n = i; n < size; n++) {
        if (text[n] < '0' || text[n] > '9') return 0;
        found = found * 10 + (text[n] - '0');
    }
    *value = i ? -found : found;
    return 1;
}

static int base64_digit(unsigned char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Padded base64 in the usual alphabet whose unused bits are zero. */
static PyObject *make_bytes(Scan *s, const char *text, size_t size, unsigned flags) {
    if (flags || size % 4) return odd_value(s);
    size_t padding = size == 0 ? 0 : (size_t)(text[size - 1] == '=') + (text[size - 1] == '=' && text[size - 2] == '=');
    size_t digits = size - padding;
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size / 4 * 3 - padding));
    if (!result) return NULL;
    unsigned char *o = (unsigned char *)PyBytes_AS_STRING(result);
    unsigned bits = 0;
    int held = 0;
    for (size_t i = 0; i < digits; i++) {
        int digit = base64_digit((unsigned char)text[i]);
        if (digit < 0) {
            Py_DECREF(result);
            return odd_value(s);
        }
        bits = (bits << 6 | (unsigned)digit) & 0xFFFFFF;
        held += 6;
        if (held >= 8) {
            held -= 8;
            *o++ = (unsigned char)(bits >> held);
        }
    }
    if (bits & ((1u << held) - 1)) {
        Py_DECREF(result);
        return odd_value(s);
    }
    return result;
}

static int days_in_month(int year, int month) {
    if (month == 2) return (year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)) ? 29 : 28;
    return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

static PyObject *make_utc(State *state, int year, int month, int day, int second_of_day, int microsecond) {
    PyDateTime_CAPI *api = state->datetime;
    return api->DateTime_FromDateAndTime(year, month, day, second_of_day / 3600, second_of_day / 60 % 60,
                                         second_of_day % 60, microsecond, api->TimeZone_UTC, api->DateTimeType);
}

static int two_digits(const char *p) {
    return p[0] >= '0' && p[0] <= '9' && p[1] >= '0' && p[1] <= '9' ? (p[0] - '0') * 10 + p[1] - '0' : -1;
}

/* 2024-01-31T23:59:59, up to six digits of a fraction, then Z or nothing. Other spellings of a time are odd. */
static PyObject *make_time(State *state, Scan *s, const char *p, size_t size, unsigned flags) {
    if (flags || size < 19 || size > 27 || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':')
        return odd_value(s);
    int century = two_digits(p), rest = two_digits(p + 2), month = two_digits(p + 5), day = two_digits(p + 8);
    int hour = two_digits(p + 11), minute = two_digits(p + 14), second = two_digits(p + 17), micros = 0;
    if (century < 0 || rest < 0 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23 || minute < 0 ||
        minute > 59 || second < 0 || second > 59)
        return odd_value(s);
    int year = century * 100 + rest;
    if (year < 1 || day > days_in_month(year, month)) return odd_value(s);
    if (size > 19 && p[size - 1] == 'Z') size--;
    if (size > 19) {
        if (p[19] != '.' || size < 21 || size > 26) return odd_value(s);
        int unit = 100000;
        for (size_t i = 20; i < size; i++, unit /= 10) {
            if (p[i] < '0' || p[i] > '9') return odd_value(s);
            micros += (p[i] - '0') * unit;
        }
    }
    return make_utc(state, year, month, day, hour * 3600 + minute * 60 + second, micros);
}

/* A whole number of ticks from 1970 to 9999. */
static PyObject *make_epoch(State *state, Scan *s, const char *text, size_t size, unsigned flags, long long per_second) {
    long long ticks;
    if (flags || !read_integer(text, size, &ticks) || text[0] == '-' || ticks / per_second > 253402300799LL) return odd_value(s);
    long long seconds = ticks / per_second, day = seconds / 86400 + 719468;
    /* Days to a date of the proleptic Gregorian calendar: eras of 400 years that begin in March. */
    long long era = day / 146097, of_era = day % 146097;
    long long year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    long long of_year = of_era - (365 * year + year / 4 - year / 100), month = (5 * of_year + 2) / 153;
    int in_month = (int)(of_year - (153 * month + 2) / 5 + 1);
    month += month < 10 ? 3 : -9;
    return make_utc(state, (int)(year + era * 400 + (month <= 2)), (int)month, in_month, (int)(seconds % 86400),
                    (int)(ticks % per_second * (1000000 / per_second)));
}

/* A list of the strings of an SS, NS or BS; whole numbers where `integers`. */
static PyObject *make_strings(State *state, Scan *s, Type type, int integers) {
    PyObject *list = PyList_New(0);
    if (!list) return NULL;
    s->at++; /* the bracket, which the scan has seen */
    while (!next_is(s, ']')) {
        const char *text;
        size_t size;
        unsigned flags;
        long long value;
        PyObject *element = NULL;
        if (next_is(s, ',')) s->at++;
        if (!scan_string(s, &text, &size, &flags)) break;
        if (type == T_SS) element = make_text(text, size, flags);
        else if (type == T_BS) element = make_bytes(s, text, size, flags);
        else if (!integers) element = make_decimal(state, s, text, size, flags);
        else if (!flags && read_integer(text, size, &value)) element = PyLong_FromLongLong(value);
        else element = odd_value(s);
        if (!element || PyList_Append(list, element) < 0) {
            Py_XDECREF(element);
            Py_DECREF(list);
            return NULL;
        }
        Py_DECREF(element);
    }
    if (s->odd != FINE) {
        Py_DECREF(list);
        return NULL;
    }
    s->at++;
    return list;
}

static PyObject *make_next(State *state, Scan *s);

/* A list of values, from its bracket. */
static PyObject *make_list(State *state, Scan *s) {
    PyObject *list = PyList_New(0);
    if (!list) return NULL;
    s->at++;
    while (!next_is(s, ']')) {
        if (next_is(s, ',')) s->at++;
        PyObject *element = make_next(state, s);
        if (!element || PyList_Append(list, element) < 0) {
            Py_XDECREF(element);
            Py_DECREF(list);
            return NULL;
        }
        Py_DECREF(element);
    }
    s->at++;
    return list;
}

/* Whether a member is left out of a document: attributes that a class has fields for. */
typedef int (*LeftOut)(const void *context, const char *name, size_t size);

/* A dict of names and values, from its brace. A name twice is odd. */
static PyObject *make_document(State *state, Scan *s, LeftOut left_out, const void *context) {
    PyObject *dict = PyDict_New();
    if (!dict) return NULL;
    s->at++;
    while (!next_is(s, '}')) {
        const char *text;
        size_t size;
        unsigned flags;
        Value value;
        if (next_is(s, ',')) s->at++;
        if (!scan_string(s, &text, &size, &flags) || !EAT(s, ":")) break;
        if (left_out && left_out(context, text, size)) {
            if (!scan_value(s, &value, 0)) break;
            continue;
        }
        PyObject *name = make_text(text, size, flags), *member = name ? make_next(state, s) : NULL;
        Py_ssize_t before = PyDict_GET_SIZE(dict);
        int failed = !member || PyDict_SetItem(dict, name, member) < 0;
        Py_XDECREF(name);
        Py_XDECREF(member);
        if (failed) {
            Py_DECREF(dict);
            return NULL;
        }
        if (PyDict_GET_SIZE(dict) == before) {
            s->odd = ODD_TWIN;
            break;
        }
    }
    if (s->odd != FINE) {
        Py_DECREF(dict);
        return NULL;
    }
    s->at++;
    return dict;
}

/* The value at `at`, as `plain` in values.py makes it: sets as sorted lists. Leaves `at` behind it. The depth is bounded,
 * because the scan has passed over all of it. */
static PyObject *make_next(State *state, Scan *s) {
    Type type;
    PyObject *made = NULL;
    const char *text;
    size_t size;
    unsigned flags;
    if (!scan_type(s, &type)) return NULL;
    switch (type) {
    case T_S: case T_N: case T_B:
        if (!scan_string(s, &text, &size, &flags)) return NULL;
        if (type == T_S) made = make_text(text, size, flags);
        else if (type == T_N) made = make_decimal(state, s, text, size, flags);
        else made = make_bytes(s, text, size, flags);
        break;
    case T_BOOL: case T_NULL: {
        int true_ = next_is(s, 't');
        if (!(true_ ? EAT(s, "true") : EAT(s, "false"))) return NULL;
        if (type == T_NULL && !true_) return odd_value(s);
        made = Py_NewRef(type == T_NULL ? Py_None : true_ ? Py_True : Py_False);
        break;
    }
    case T_M: made = make_document(state, s, NULL, NULL); break;
    case T_L: made = make_list(state, s); break;
    default:
        made = make_strings(state, s, type, 0);
        if (made && PyList_Sort(made) < 0) Py_CLEAR(made);
    }
    if (made && !EAT(s, "}")) Py_CLEAR(made);
    return made;
}

#endif
