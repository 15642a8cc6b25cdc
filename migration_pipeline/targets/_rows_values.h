/* Numbers, times and UUIDs, each of exactly its type; what is of another one is UNKNOWN, for Python to spell. */
#ifndef MIGRATION_ROWS_VALUES_H
#define MIGRATION_ROWS_VALUES_H

#include "_rows_texts.h"

/* -- numbers, times, UUIDs -------------------------------------------------------------------- */

/* An exact int of 64 bits with a sign; UNKNOWN for others. */
static int
put_int(Buffer *out, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow) {
        return UNKNOWN;
    }
    if (number == -1 && PyErr_Occurred()) {
        return FAILED;
    }
    char digits[24], *first = digits + sizeof digits;
    unsigned long long rest = number < 0 ? 0 - (unsigned long long)number : (unsigned long long)number;
    do {
        *--first = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number < 0) {
        *--first = '-';
    }
    return put(out, first, (size_t)(digits + sizeof digits - first));
}

/* An exact float as str() spells it. */
static int
put_float(Buffer *out, PyObject *value)
{
    char *text = PyOS_double_to_string(PyFloat_AS_DOUBLE(value), 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (text == NULL) {
        return FAILED;
    }
    int done = put(out, text, strlen(text));
    PyMem_Free(text);
    return done;
}

static inline char *
digits_of(char *to, unsigned number, int width)
{
    for (int n = width - 1; n >= 0; n--) {
        to[n] = (char)('0' + number % 10);
        number /= 10;
    }
    return to + width;
}

static inline char *
date_of(char *to, PyObject *value)
{
    to = digits_of(to, (unsigned)PyDateTime_GET_YEAR(value), 4);
    *to++ = '-';
    to = digits_of(to, (unsigned)PyDateTime_GET_MONTH(value), 2);
    *to++ = '-';
    return digits_of(to, (unsigned)PyDateTime_GET_DAY(value), 2);
}

static int
put_date(Buffer *out, PyObject *value)
{
    char text[16], *to = text;
    *to++ = '"';
    to = date_of(to, value);
    *to++ = '"';
    return put(out, text, (size_t)(to - text));
}

/* Spell the offset of a time zone, if it is a `timezone` of whole minutes; UNKNOWN if not. */
static int
offset_of(State *state, PyObject *zone, char suffix[6], size_t *count)
{
    if (zone == state->datetime->TimeZone_UTC) {
        suffix[0] = 'Z', *count = 1;
        return DONE;
    }
    if (Py_TYPE(zone) != Py_TYPE(state->datetime->TimeZone_UTC)) {
        return UNKNOWN;
    }
    PyObject *offset = PyObject_CallMethodObjArgs(zone, state->name_utcoffset, Py_None, NULL);
    if (offset == NULL) {
        return FAILED;
    }
    if (Py_TYPE(offset) != state->datetime->DeltaType) {
        Py_DECREF(offset);
        return UNKNOWN;
    }
    long seconds = PyDateTime_DELTA_GET_DAYS(offset) * 86400L + PyDateTime_DELTA_GET_SECONDS(offset);
    int micro = PyDateTime_DELTA_GET_MICROSECONDS(offset);
    Py_DECREF(offset);
    if (seconds % 60 != 0 || micro != 0) {
        return UNKNOWN;
    }
    if (seconds == 0) {
        suffix[0] = 'Z', *count = 1;
        return DONE;
    }
    unsigned minutes = (unsigned)(seconds < 0 ? -seconds : seconds) / 60;
    suffix[0] = seconds < 0 ? '-' : '+';
    digits_of(suffix + 1, minutes / 60, 2);
    suffix[3] = ':';
    digits_of(suffix + 4, minutes % 60, 2);
    *count = 6;
    return DONE;
}

/* An exact datetime, with its offset, or in UTC without one. */
static int
put_time(State *state, Buffer *out, PyObject *value, int utc)
{
    char text[48], suffix[6], *to = text;
    size_t count = 0;
    PyObject *zone = PyDateTime_DATE_GET_TZINFO(value);
    if (zone != Py_None) {
        if (utc) {
            if (zone != state->datetime->TimeZone_UTC) {
                return UNKNOWN;
            }
        }
        else {
            int done = offset_of(state, zone, suffix, &count);
            if (done != DONE) {
                return done;
            }
        }
    }
    *to++ = '"';
    to = date_of(to, value);
    *to++ = 'T';
    to = digits_of(to, (unsigned)PyDateTime_DATE_GET_HOUR(value), 2);
    *to++ = ':';
    to = digits_of(to, (unsigned)PyDateTime_DATE_GET_MINUTE(value), 2);
    *to++ = ':';
    to = digits_of(to, (unsigned)PyDateTime_DATE_GET_SECOND(value), 2);
    unsigned micro = (unsigned)PyDateTime_DATE_GET_MICROSECOND(value);
    if (micro) {
        *to++ = '.';
        to = digits_of(to, micro, 6);
    }
    memcpy(to, suffix, count);
    to += count;
    *to++ = '"';
    return put(out, text, (size_t)(to - text));
}

static int
put_uuid(State *state, Buffer *out, PyObject *value)
{
    PyObject *number = PyObject_GetAttr(value, state->name_int);
    if (number == NULL) {
        return FAILED;
    }
    if (!PyLong_CheckExact(number)) {
        Py_DECREF(number);
        return UNKNOWN;
    }
    PyObject *upper = PyNumber_Rshift(number, state->sixty_four);
    unsigned long long low = PyLong_AsUnsignedLongLongMask(number);
    Py_DECREF(number);
    if (upper == NULL) {
        return FAILED;
    }
    unsigned long long high = PyLong_AsUnsignedLongLong(upper); /* a negative number fails */
    Py_DECREF(upper);
    if (PyErr_Occurred()) {
        return FAILED;
    }
    unsigned char bytes[16];
    for (int n = 0; n < 8; n++) {
        bytes[n] = (unsigned char)(high >> (56 - 8 * n));
        bytes[8 + n] = (unsigned char)(low >> (56 - 8 * n));
    }
    static const unsigned char parts[] = {0, 4, 6, 8, 10, 16};
    for (int n = 0; n < 5; n++) {
        if (put(out, n ? "-" : "\"", 1) < 0 || put_hex(out, bytes + parts[n], (size_t)(parts[n + 1] - parts[n])) < 0) {
            return FAILED;
        }
    }
    return put(out, "\"", 1);
}

#endif
