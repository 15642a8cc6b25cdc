/* Rows as COPY input: what targets/copy_csv.py writes, byte for byte, for the values that are understood here.
 *
 * Python is the specification. A value of any other type, a subclass, an integer beyond 64 bits, a float in a document, an odd
 * time zone: its column is spelled by Python's function, or its row is encoded by Python. An exception of any kind is for the
 * caller, who encodes all the rows again in Python and so finds Python's own reason. docs/accelerator.md says more.
 */
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
    PyTypeObject *encoder_type;
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

/* -- columns ---------------------------------------------------------------------------------- */

/* A value as msgspec's JSON encoder spells it, with control characters as they are. */
static int
put_plain(State *state, Buffer *out, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type) {
        return put_quoted(out, value);
    }
    if (type == &PyLong_Type) {
        return put_int(out, value);
    }
    if (value == Py_None) {
        return put(out, "null", 4);
    }
    if (type == &PyBool_Type) {
        return value == Py_True ? put(out, "true", 4) : put(out, "false", 5);
    }
    if (type == state->decimal_type) {
        if (put(out, "\"", 1) < 0 || put_said(out, value, IN_CSV) < 0) {
            return FAILED;
        }
        return put(out, "\"", 1);
    }
    if (type == state->datetime->DateTimeType) {
        return put_time(state, out, value, 0);
    }
    if (type == state->datetime->DateType) {
        return put_date(out, value);
    }
    return type == state->uuid_type ? put_uuid(state, out, value) : UNKNOWN;
}

/* Whether str() of a value, and its order among others of its type, run no code but Python's own. */
static int
is_scalar(State *state, PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == state->datetime->DateTimeType) {
        PyObject *zone = PyDateTime_DATE_GET_TZINFO(value);
        return zone == Py_None || Py_TYPE(zone) == Py_TYPE(state->datetime->TimeZone_UTC);
    }
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type || type == &PyBool_Type ||
           type == &PyBytes_Type || type == state->decimal_type || type == state->uuid_type || type == state->datetime->DateType;
}

/* What spellings.scalar makes of a value, without quotes. */
static int
put_scalar(State *state, Buffer *out, PyObject *value, int level)
{
    if (PyUnicode_CheckExact(value)) {
        return put_str(out, value, level);
    }
    int done = PyLong_CheckExact(value) ? put_int(out, value) : PyFloat_CheckExact(value) ? put_float(out, value) : UNKNOWN;
    return done == UNKNOWN && is_scalar(state, value) ? put_said(out, value, level) : done;
}

/* What spellings.bytea makes of bytes, without quotes. */
static int
put_bytea(Buffer *out, PyObject *value, int level)
{
    if (!PyBytes_CheckExact(value)) {
        return UNKNOWN;
    }
    if ((level == IN_CSV ? put(out, "\\\\x", 3) : put(out, "\\\\\\\\x", 5)) < 0) {
        return FAILED;
    }
    return put_hex(out, (const unsigned char *)PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value));
}

/* The elements of an array in the order in which they are written: those of a set are sorted. UNKNOWN for what is Python's. */
static int
elements_of(State *state, PyObject *values, PyObject **list)
{
    int set = PyAnySet_CheckExact(values);
    if (!set && !PyList_CheckExact(values) && !PyTuple_CheckExact(values)) {
        return UNKNOWN;
    }
    *list = PySequence_List(values);
    if (*list == NULL) {
        return FAILED;
    }
    for (Py_ssize_t n = 0; set && n < PyList_GET_SIZE(*list); n++) {
        PyObject *element = PyList_GET_ITEM(*list, n);
        if (Py_TYPE(element) != Py_TYPE(PyList_GET_ITEM(*list, 0)) || !is_scalar(state, element)) {
            return UNKNOWN;
        }
    }
    return set && PyList_GET_SIZE(*list) > 1 ? PyList_Sort(*list) : DONE;
}

static int
put_elements(State *state, Buffer *out, PyObject *list, int bytea)
{
    int done = put(out, "\"{", 2);
    for (Py_ssize_t n = 0; done == DONE && n < PyList_GET_SIZE(list); n++) {
        PyObject *value = PyList_GET_ITEM(list, n);
        if (n && (done = put(out, ",", 1)) < 0) {
            break;
        }
        if (value == Py_None) {
            done = put(out, "NULL", 4);
            continue;
        }
        done = put(out, "\\\"", 2);
        if (done == DONE) {
            done = bytea ? put_bytea(out, value, IN_ARRAY) : put_scalar(state, out, value, IN_ARRAY);
        }
        if (done == DONE) {
            done = put(out, "\\\"", 2);
        }
    }
    return done == DONE ? put(out, "}\"", 2) : done;
}

static int
put_array(State *state, Buffer *out, PyObject *values, int bytea)
{
    PyObject *list = NULL;
    int done = elements_of(state, values, &list);
    if (done == DONE) {
        done = put_elements(state, out, list, bytea);
    }
    Py_XDECREF(list);
    return done;
}

static int put_member(State *, Buffer *, PyObject *, int);

static int
put_object(State *state, Buffer *out, PyObject *value, int depth)
{
    PyObject *name, *member;
    Py_ssize_t place = 0, size = PyDict_GET_SIZE(value);
    int done = put(out, "{", 1), first = 1;
    while (done == DONE && PyDict_Next(value, &place, &name, &member)) {
        if (!PyUnicode_CheckExact(name)) {
            return UNKNOWN;
        }
        Py_INCREF(name);
        Py_INCREF(member);
        if (!first) {
            done = put(out, ",", 1);
        }
        first = 0;
        if (done == DONE) {
            done = put_member(state, out, name, depth);
        }
        if (done == DONE) {
            done = put(out, ":", 1);
        }
        if (done == DONE) {
            done = put_member(state, out, member, depth);
        }
        Py_DECREF(name);
        Py_DECREF(member);
        if (done == DONE && PyDict_GET_SIZE(value) != size) {
            return UNKNOWN;
        }
    }
    return done == DONE ? put(out, "}", 1) : done;
}

static int
put_list(State *state, Buffer *out, PyObject *value, int depth)
{
    PyObject *elements = PySequence_Tuple(value);
    if (elements == NULL) {
        return FAILED;
    }
    int done = put(out, "[", 1);
    for (Py_ssize_t n = 0; done == DONE && n < PyTuple_GET_SIZE(elements); n++) {
        if (n) {
            done = put(out, ",", 1);
        }
        if (done == DONE) {
            done = put_member(state, out, PyTuple_GET_ITEM(elements, n), depth);
        }
    }
    Py_DECREF(elements);
    return done == DONE ? put(out, "]", 1) : done;
}

/* A number with all its digits; UNKNOWN for NaN and infinity. */
static int
put_number(Buffer *out, PyObject *value)
{
    size_t before = out->size;
    if (put_said(out, value, IN_CSV) < 0) {
        return FAILED;
    }
    size_t first = before + (out->size > before && out->data[before] == '-');
    return out->size > first && out->data[first] >= '0' && out->data[first] <= '9' ? DONE : UNKNOWN;
}

/* A value of a document as JSON, which is in turn escaped for CSV. */
static int
put_member(State *state, Buffer *out, PyObject *value, int depth)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type) {
        Py_ssize_t count;
        const char *bytes = PyUnicode_AsUTF8AndSize(value, &count);
        if (bytes == NULL) {
            return FAILED;
        }
        if (put(out, "\\\"", 2) < 0 || put_escaped(out, bytes, (size_t)count, IN_DOCUMENT) < 0) {
            return FAILED;
        }
        return put(out, "\\\"", 2);
    }
    if (value == Py_None) {
        return put(out, "null", 4);
    }
    if (type == &PyBool_Type) {
        return value == Py_True ? put(out, "true", 4) : put(out, "false", 5);
    }
    if (type == &PyLong_Type) {
        return put_int(out, value);
    }
    if (type == state->decimal_type) {
        return put_number(out, value);
    }
    if (depth >= DEEPEST) {
        return UNKNOWN;
    }
    if (type == &PyDict_Type) {
        return put_object(state, out, value, depth + 1);
    }
    if (type == &PyList_Type || type == &PyTuple_Type || PyAnySet_CheckExact(value)) {
        return put_list(state, out, value, depth + 1);
    }
    return UNKNOWN;
}

static int
put_column(State *state, Buffer *out, PyObject *value, int kind)
{
    int done;
    switch (kind) {
    case SCALAR:
    case BYTEA:
        if (put(out, "\"", 1) < 0) {
            return FAILED;
        }
        done = kind == SCALAR ? put_scalar(state, out, value, IN_CSV) : put_bytea(out, value, IN_CSV);
        return done == DONE ? put(out, "\"", 1) : done;
    case ARRAY:
    case BYTEA_ARRAY:
        return put_array(state, out, value, kind == BYTEA_ARRAY);
    case DOCUMENT:
        if (put(out, "\"", 1) < 0) {
            return FAILED;
        }
        done = put_member(state, out, value, 0);
        return done == DONE ? put(out, "\"", 1) : done;
    case TIME:
    case UTC:
        return Py_TYPE(value) == state->datetime->DateTimeType ? put_time(state, out, value, kind == UTC) : UNKNOWN;
    case SPELLED:
        return UNKNOWN;
    default:
        return put_plain(state, out, value);
    }
}

/* -- rows ------------------------------------------------------------------------------------- */

typedef struct {
    PyMemberDescrObject *field; /* how the class reads its attribute */
    PyObject *spell;            /* Python's function for a value that is UNKNOWN; None where JSON's spelling will do */
    int kind;
} Column;

typedef struct {
    PyObject_HEAD
    PyTypeObject *row_class;
    PyObject *line_of; /* encodes a row in Python */
    Column *columns;
    Py_ssize_t *key; /* numbers of the key's columns, in its order */
    Py_ssize_t width, key_width;
    int apart; /* whether each row is a bytes of its own */
} Encoder;

/* The spelling of a value by Python's function, which may be any object that the JSON encoder takes. */
static int
put_spelled(State *state, Buffer *out, PyObject *spell, PyObject *value)
{
    PyObject *spelled = PyObject_CallOneArg(spell, value);
    if (spelled == NULL) {
        return FAILED;
    }
    int done = put_plain(state, out, spelled);
    Py_DECREF(spelled);
    return done;
}

/* Write a row by its columns, and keep the values of its key. UNKNOWN when it is Python's. */
static int
put_row(State *state, Encoder *self, Buffer *out, PyObject *row, PyObject **values)
{
    for (Py_ssize_t n = 0; n < self->width; n++) {
        Column *column = &self->columns[n];
        PyObject *value = PyMember_GetOne((const char *)row, column->field->d_member);
        if (value == NULL) {
            return FAILED;
        }
        values[n] = value; /* the caller gives it up */
        if (n && put(out, ",", 1) < 0) {
            return FAILED;
        }
        if (value == Py_None) {
            if (put(out, "null", 4) < 0) {
                return FAILED;
            }
            continue;
        }
        size_t before = out->size;
        int done = put_column(state, out, value, column->kind);
        if (done == UNKNOWN && column->spell != Py_None) {
            out->size = before;
            done = put_spelled(state, out, column->spell, value);
        }
        if (done != DONE) {
            return done;
        }
    }
    return DONE;
}

/* Whether a value may be a key: those whose hash and equality run no foreign code. Others are Python's. */
static int
check_key(State *state, PyObject *value)
{
    if (PyUnicode_CheckExact(value) || PyLong_CheckExact(value)) {
        return DONE;
    }
    if (value == Py_None || is_scalar(state, value)) {
        return PyObject_Hash(value) == -1 && PyErr_Occurred() ? FAILED : DONE;
    }
    PyErr_SetString(PyExc_TypeError, "a key of another type is looked at in Python");
    return FAILED;
}

/* The key of a row, of the values of its columns. */
static PyObject *
key_of(State *state, Encoder *self, PyObject **values)
{
    PyObject *key = self->key_width == 1 ? NULL : PyTuple_New(self->key_width);
    if (key == NULL && self->key_width != 1) {
        return NULL;
    }
    for (Py_ssize_t n = 0; n < self->key_width; n++) {
        PyObject *value = values[self->key[n]];
        if (check_key(state, value) < 0) {
            Py_XDECREF(key);
            return NULL;
        }
        Py_INCREF(value);
        if (self->key_width == 1) {
            return value;
        }
        PyTuple_SET_ITEM(key, n, value);
    }
    return key;
}

/* Read the columns of the key alone, of a row that Python encodes. */
static int
read_key(Encoder *self, PyObject *row, PyObject **values)
{
    for (Py_ssize_t n = 0; n < self->key_width; n++) {
        Py_ssize_t column = self->key[n];
        if (values[column] == NULL) {
            values[column] = PyMember_GetOne((const char *)row, self->columns[column].field->d_member);
            if (values[column] == NULL) {
                return FAILED;
            }
        }
    }
    return DONE;
}

static int
put_row_of_python(Encoder *self, Buffer *out, PyObject *row)
{
    PyObject *line = PyObject_CallOneArg(self->line_of, row);
    if (line == NULL) {
        return FAILED;
    }
    if (!PyBytes_CheckExact(line)) {
        Py_DECREF(line);
        PyErr_SetString(PyExc_TypeError, "a line must be bytes");
        return FAILED;
    }
    int done = put(out, PyBytes_AS_STRING(line), (size_t)PyBytes_GET_SIZE(line));
    Py_DECREF(line);
    return done;
}

/* Encode a list of rows into the buffer, with the end of each; adds their keys. Returns how many Python encoded, or -1. */
static Py_ssize_t
put_rows(State *state, Encoder *self, Buffer *out, PyObject *rows, size_t *ends, PyObject *keys)
{
    Py_ssize_t given_back = 0, count = PyTuple_GET_SIZE(rows);
    PyObject **values = PyMem_Calloc((size_t)self->width, sizeof *values);
    if (values == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int done = DONE;
    for (Py_ssize_t n = 0; done == DONE && n < count; n++) {
        PyObject *row = PyTuple_GET_ITEM(rows, n);
        size_t before = out->size;
        if (Py_TYPE(row) != self->row_class) {
            PyErr_SetString(PyExc_TypeError, "a row of another class");
            done = FAILED;
            break;
        }
        done = put_row(state, self, out, row, values);
        if (done == UNKNOWN) {
            out->size = before;
            given_back++;
            done = put_row_of_python(self, out, row);
            if (done == DONE) {
                done = read_key(self, row, values);
            }
        }
        ends[n] = out->size;
        if (done == DONE && !self->apart && n + 1 < count) {
            done = put(out, "\n", 1);
        }
        if (done == DONE && self->key_width) {
            PyObject *key = key_of(state, self, values);
            if (key == NULL) {
                done = FAILED;
            }
            else {
                PyList_SET_ITEM(keys, n, key);
            }
        }
        for (Py_ssize_t c = 0; c < self->width; c++) {
            Py_CLEAR(values[c]);
        }
    }
    PyMem_Free(values);
    return done == DONE ? given_back : -1;
}

static PyObject *
lines_of(Encoder *self, Buffer *out, size_t *ends, Py_ssize_t count)
{
    if (count == 0 || self->apart == 0) {
        return count == 0 ? PyList_New(0) : Py_BuildValue("[y#]", out->data, (Py_ssize_t)out->size);
    }
    PyObject *lines = PyList_New(count);
    size_t start = 0;
    for (Py_ssize_t n = 0; lines != NULL && n < count; n++) {
        PyObject *line = PyBytes_FromStringAndSize(out->data + start, (Py_ssize_t)(ends[n] - start));
        if (line == NULL) {
            Py_CLEAR(lines);
            break;
        }
        PyList_SET_ITEM(lines, n, line);
        start = ends[n];
    }
    return lines;
}

PyDoc_STRVAR(encode_doc, "encode($self, rows, /)\n--\n\n"
"Encode rows of the class: their keys, their lines, and how many Python encoded.\n\n"
"Raises any exception for rows that are to be encoded in Python, all of them.");

static PyObject *
encoder_encode(Encoder *self, PyObject *argument)
{
    State *state = PyType_GetModuleState(Py_TYPE(self));
    if (state == NULL) {
        return NULL;
    }
    PyObject *result = NULL, *keys = NULL, *lines = NULL;
    Buffer out = {NULL, 0, 0};
    size_t *ends = NULL;
    PyObject *rows = PySequence_Tuple(argument); /* a copy of its own, as Python code may run in between */
    if (rows == NULL) {
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(rows);
    ends = PyMem_Calloc((size_t)count + 1, sizeof *ends);
    if (ends == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    keys = PyList_New(self->key_width ? count : 0);
    if (keys == NULL || reserve(&out, 64 * 1024) < 0) {
        goto end;
    }
    Py_ssize_t given_back = put_rows(state, self, &out, rows, ends, keys);
    if (given_back < 0) {
        goto end;
    }
    lines = lines_of(self, &out, ends, count);
    if (lines != NULL) {
        result = Py_BuildValue("(OOn)", keys, lines, given_back);
    }
end:
    PyMem_Free(out.data);
    PyMem_Free(ends);
    Py_XDECREF(keys);
    Py_XDECREF(lines);
    Py_DECREF(rows);
    return result;
}

/* -- the encoder of a table ------------------------------------------------------------------- */

static int
encoder_traverse(Encoder *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->row_class);
    Py_VISIT(self->line_of);
    for (Py_ssize_t n = 0; n < self->width; n++) {
        Py_VISIT(self->columns[n].field);
        Py_VISIT(self->columns[n].spell);
    }
    return 0;
}

static int
encoder_clear(Encoder *self)
{
    Py_ssize_t width = self->width;
    self->width = self->key_width = 0; /* it encodes nothing any more */
    Py_CLEAR(self->row_class);
    Py_CLEAR(self->line_of);
    for (Py_ssize_t n = 0; n < width; n++) {
        Py_CLEAR(self->columns[n].field);
        Py_CLEAR(self->columns[n].spell);
    }
    return 0;
}

static void
encoder_dealloc(Encoder *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    encoder_clear(self);
    PyMem_Free(self->columns);
    PyMem_Free(self->key);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Read one (descriptor, kind, spell). */
static int
read_column(Encoder *self, PyObject *given, Column *column)
{
    PyObject *field, *spell;
    int kind;
    if (!PyTuple_Check(given) || !PyArg_ParseTuple(given, "OiO", &field, &kind, &spell)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a column must be a tuple");
        }
        return FAILED;
    }
    /* Of an object member the type of each row decides whether it may be read, and that is checked. */
    if (!Py_IS_TYPE(field, &PyMemberDescr_Type) || ((PyMemberDescrObject *)field)->d_member->type != T_OBJECT_EX ||
        !PyType_IsSubtype(self->row_class, PyDescr_TYPE(field))) {
        PyErr_SetString(PyExc_TypeError, "a column must be read by a member of the row's class");
        return FAILED;
    }
    if (kind < 0 || kind >= KINDS || (spell != Py_None && !PyCallable_Check(spell))) {
        PyErr_SetString(PyExc_ValueError, "no such kind of column");
        return FAILED;
    }
    Py_INCREF(field);
    Py_INCREF(spell);
    *column = (Column){(PyMemberDescrObject *)field, spell, kind};
    return DONE;
}

static int
read_columns(Encoder *self, PyObject *columns, PyObject *key)
{
    Py_ssize_t width = PyTuple_GET_SIZE(columns), key_width = PyTuple_GET_SIZE(key);
    if (width == 0) {
        PyErr_SetString(PyExc_ValueError, "a row must have a column");
        return FAILED;
    }
    self->columns = PyMem_Calloc((size_t)width, sizeof *self->columns);
    self->key = PyMem_Calloc((size_t)key_width + 1, sizeof *self->key);
    if (self->columns == NULL || self->key == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    for (Py_ssize_t n = 0; n < width; n++) {
        if (read_column(self, PyTuple_GET_ITEM(columns, n), &self->columns[n]) < 0) {
            return FAILED;
        }
        self->width = n + 1;
    }
    for (Py_ssize_t n = 0; n < key_width; n++) {
        Py_ssize_t place = PyLong_AsSsize_t(PyTuple_GET_ITEM(key, n));
        if (place < 0 || place >= width) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_ValueError, "a key must name columns");
            }
            return FAILED;
        }
        self->key[n] = place;
    }
    self->key_width = key_width;
    return DONE;
}

PyDoc_STRVAR(encoder_doc, "Encoder(row_class, columns, key, line_of, apart)\n--\n\n"
"Encodes the rows of one class.\n\n"
"Columns are tuples of a member of the class, a kind, and the function that spells in Python what C does not know, or None. The\n"
"key has numbers of columns. `line_of` encodes a row in Python. Without `apart` the lines of all rows are one piece.");

static PyObject *
encoder_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    PyTypeObject *row_class;
    PyObject *columns, *key, *line_of;
    int apart;
    if (named != NULL && PyDict_GET_SIZE(named)) {
        PyErr_SetString(PyExc_TypeError, "Encoder() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "O!O!O!Op", &PyType_Type, &row_class, &PyTuple_Type, &columns, &PyTuple_Type, &key,
                          &line_of, &apart)) {
        return NULL;
    }
    Encoder *self = (Encoder *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    Py_INCREF(row_class);
    Py_INCREF(line_of);
    self->row_class = row_class;
    self->line_of = line_of;
    self->apart = apart;
    if (read_columns(self, columns, key) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyMethodDef encoder_methods[] = {
    {"encode", (PyCFunction)encoder_encode, METH_O, encode_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, (void *)encoder_doc},
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_traverse, encoder_traverse},
    {Py_tp_clear, encoder_clear},
    {Py_tp_methods, encoder_methods},
    {0, NULL},
};

static PyType_Spec encoder_spec = {
    .name = "migration_pipeline.targets._rows.Encoder",
    .basicsize = sizeof(Encoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoder_slots,
};

/* -- a batch's rows, sorted ------------------------------------------------------------------- */

/* A text or a number of a key. */
typedef struct {
    const char *bytes; /* NULL: a number */
    Py_ssize_t size;
    int64_t number;
} Part;

typedef struct {
    uint64_t first; /* decides most comparisons: of the first part a number, or some bytes */
    size_t place;
} Entry;

typedef struct {
    PyObject *keys, *lines; /* tuples of our own */
    size_t count, width;
    Part *parts; /* `width` for each key */
    Entry *entries, *spare;
} Join;

/* Read a part: UNKNOWN for all but texts and ints of 64 bits. UTF-8 has the order of code points. */
static int
read_part(PyObject *value, Part *part)
{
    if (PyUnicode_CheckExact(value)) {
        part->bytes = PyUnicode_AsUTF8AndSize(value, &part->size);
        return part->bytes == NULL ? FAILED : DONE;
    }
    if (!PyLong_CheckExact(value)) {
        return UNKNOWN;
    }
    int overflow;
    part->number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow) {
        return UNKNOWN;
    }
    return part->number == -1 && PyErr_Occurred() ? FAILED : DONE;
}

/* Read all keys: UNKNOWN unless each is a text or number, or a tuple of as many, of the same types in all. */
static int
read_keys(Join *join)
{
    for (size_t n = 0; n < join->count; n++) {
        PyObject *key = PyTuple_GET_ITEM(join->keys, n);
        int many = PyTuple_CheckExact(key);
        size_t width = many ? (size_t)PyTuple_GET_SIZE(key) : 1;
        if (n == 0) {
            join->width = width;
            if (width == 0) {
                return UNKNOWN;
            }
            if (join->count > (size_t)PY_SSIZE_T_MAX / sizeof(Part) / width ||
                (join->parts = PyMem_Calloc(join->count * width, sizeof(Part))) == NULL) {
                PyErr_NoMemory();
                return FAILED;
            }
        }
        if (width != join->width || many != PyTuple_CheckExact(PyTuple_GET_ITEM(join->keys, 0))) {
            return UNKNOWN;
        }
        Part *parts = join->parts + n * width;
        for (size_t p = 0; p < width; p++) {
            int done = read_part(many ? PyTuple_GET_ITEM(key, p) : key, &parts[p]);
            if (done != DONE) {
                return done;
            }
            if ((parts[p].bytes == NULL) != (join->parts[p].bytes == NULL)) {
                return UNKNOWN;
            }
        }
    }
    return DONE;
}

/* How many bytes all first parts have in common. */
static Py_ssize_t
common_bytes(const Join *join)
{
    const Part *one = join->parts;
    Py_ssize_t common = one->size;
    for (size_t n = 1; n < join->count; n++) {
        const Part *other = join->parts + n * join->width;
        Py_ssize_t same = 0, least = other->size < common ? other->size : common;
        while (same < least && one->bytes[same] == other->bytes[same]) {
            same++;
        }
        common = same;
    }
    return common;
}

static void
fill_entries(Join *join)
{
    int texts = join->parts->bytes != NULL;
    Py_ssize_t common = texts ? common_bytes(join) : 0;
    for (size_t n = 0; n < join->count; n++) {
        const Part *part = join->parts + n * join->width;
        uint64_t first = 0;
        if (texts) {
            for (Py_ssize_t b = common; b < common + 8; b++) {
                first = first << 8 | (b < part->size ? (unsigned char)part->bytes[b] : 0);
            }
        }
        else {
            first = (uint64_t)part->number ^ UINT64_C(1) << 63;
        }
        join->entries[n] = (Entry){first, n};
    }
}

static int
compare(const Join *join, Entry one, Entry other)
{
    if (one.first != other.first) {
        return one.first < other.first ? -1 : 1;
    }
    const Part *a = join->parts + one.place * join->width, *b = join->parts + other.place * join->width;
    for (size_t p = 0; p < join->width; p++) {
        if (a[p].bytes == NULL) {
            if (a[p].number != b[p].number) {
                return a[p].number < b[p].number ? -1 : 1;
            }
            continue;
        }
        int order = memcmp(a[p].bytes, b[p].bytes, (size_t)(a[p].size < b[p].size ? a[p].size : b[p].size));
        if (order) {
            return order;
        }
        if (a[p].size != b[p].size) {
            return a[p].size < b[p].size ? -1 : 1;
        }
    }
    return 0;
}

/* Merge two sorted runs that lie side by side; of equal ones those of the first come first. */
static void
merge(const Join *join, const Entry *from, size_t middle, size_t count, Entry *to)
{
    size_t one = 0, other = middle;
    if (middle < count && compare(join, from[middle - 1], from[middle]) <= 0) {
        memcpy(to, from, count * sizeof *to);
        return;
    }
    for (size_t n = 0; n < count; n++) {
        int first = other >= count || (one < middle && compare(join, from[one], from[other]) <= 0);
        to[n] = from[first ? one++ : other++];
    }
}

/* Sort the entries by key, stably. */
static void
sort_entries(Join *join)
{
    const size_t run = 8;
    for (size_t start = 0; start < join->count; start += run) {
        size_t end = join->count - start < run ? join->count : start + run;
        for (size_t n = start + 1; n < end; n++) {
            Entry entry = join->entries[n];
            size_t to = n;
            for (; to > start && compare(join, join->entries[to - 1], entry) > 0; to--) {
                join->entries[to] = join->entries[to - 1];
            }
            join->entries[to] = entry;
        }
    }
    for (size_t step = run; step < join->count; step *= 2) {
        for (size_t start = 0; start < join->count; start += 2 * step) {
            size_t count = join->count - start < 2 * step ? join->count - start : 2 * step;
            merge(join, join->entries + start, step < count ? step : count, count, join->spare + start);
        }
        Entry *sorted = join->spare;
        join->spare = join->entries;
        join->entries = sorted;
    }
}

static int
has_twins(const Join *join)
{
    for (size_t n = 1; n < join->count; n++) {
        if (compare(join, join->entries[n - 1], join->entries[n]) == 0) {
            return 1;
        }
    }
    return 0;
}

/* The lines in the order of the entries, each with a newline. */
static PyObject *
joined(const Join *join)
{
    size_t size = 0;
    for (size_t n = 0; n < join->count; n++) {
        PyObject *line = PyTuple_GET_ITEM(join->lines, n);
        if (!PyBytes_CheckExact(line)) {
            PyErr_SetString(PyExc_TypeError, "a line must be bytes");
            return NULL;
        }
        size += (size_t)PyBytes_GET_SIZE(line) + 1;
        if (size > (size_t)PY_SSIZE_T_MAX / 2) {
            return PyErr_NoMemory();
        }
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (data == NULL) {
        return NULL;
    }
    char *to = PyBytes_AS_STRING(data);
    for (size_t n = 0; n < join->count; n++) {
        PyObject *line = PyTuple_GET_ITEM(join->lines, join->entries[n].place);
        size_t length = (size_t)PyBytes_GET_SIZE(line);
        memcpy(to, PyBytes_AS_STRING(line), length);
        to += length;
        *to++ = '\n';
    }
    return data;
}

/* Sort, if the keys are understood: without Python's lock, as all that is looked at is ours, or a text that cannot change. */
static PyObject *
sorted_lines(Join *join, int twins)
{
    int done = read_keys(join), found;
    if (done != DONE) {
        if (done == FAILED) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    join->entries = PyMem_Calloc(join->count, sizeof *join->entries);
    join->spare = PyMem_Calloc(join->count, sizeof *join->spare);
    if (join->entries == NULL || join->spare == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    fill_entries(join);
    sort_entries(join);
    found = !twins && has_twins(join);
    Py_END_ALLOW_THREADS
    if (found) {
        Py_RETURN_NONE;
    }
    return joined(join);
}

PyDoc_STRVAR(join_doc, "join($module, keys, lines, twins, /)\n--\n\n"
"Lines in the order of their keys, each with a newline.\n\n"
"None where that is for Python: keys that are neither texts nor integers, and two of one key, unless there may be twins.");

static PyObject *
rows_join(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *keys, *lines, *result = NULL;
    int twins;
    if (!PyArg_ParseTuple(arguments, "OOp", &keys, &lines, &twins)) {
        return NULL;
    }
    Join join = {PySequence_Tuple(keys), NULL, 0, 0, NULL, NULL, NULL};
    if (join.keys == NULL || (join.lines = PySequence_Tuple(lines)) == NULL) {
        goto end;
    }
    join.count = (size_t)PyTuple_GET_SIZE(join.keys);
    if (join.count != (size_t)PyTuple_GET_SIZE(join.lines)) {
        PyErr_SetString(PyExc_ValueError, "each line must have a key");
        goto end;
    }
    result = join.count ? sorted_lines(&join, twins) : PyBytes_FromStringAndSize(NULL, 0);
end:
    Py_XDECREF(join.keys);
    Py_XDECREF(join.lines);
    PyMem_Free(join.parts);
    PyMem_Free(join.entries);
    PyMem_Free(join.spare);
    return result;
}

/* -- the module ------------------------------------------------------------------------------- */

static PyObject *
imported(const char *module, const char *name)
{
    PyObject *from = PyImport_ImportModule(module);
    if (from == NULL) {
        return NULL;
    }
    PyObject *found = PyObject_GetAttrString(from, name);
    Py_DECREF(from);
    if (found != NULL && !PyType_Check(found)) {
        PyErr_Format(PyExc_TypeError, "%s.%s is not a type", module, name);
        Py_CLEAR(found);
    }
    return found;
}

static int
rows_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    (void)PyDateTimeAPI; /* the header's; it stays empty */
    state->datetime = PyCapsule_Import(PyDateTime_CAPSULE_NAME, 0);
    state->decimal_type = (PyTypeObject *)imported("decimal", "Decimal");
    state->uuid_type = (PyTypeObject *)imported("uuid", "UUID");
    state->name_int = PyUnicode_InternFromString("int");
    state->name_utcoffset = PyUnicode_InternFromString("utcoffset");
    state->sixty_four = PyLong_FromLong(64);
    state->encoder_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &encoder_spec, NULL);
    if (PyErr_Occurred() || state->encoder_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->encoder_type);
}

static int
rows_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->encoder_type);
    Py_VISIT(state->decimal_type);
    Py_VISIT(state->uuid_type);
    return 0;
}

static int
rows_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->encoder_type);
    Py_CLEAR(state->decimal_type);
    Py_CLEAR(state->uuid_type);
    Py_CLEAR(state->name_int);
    Py_CLEAR(state->name_utcoffset);
    Py_CLEAR(state->sixty_four);
    return 0;
}

static void
rows_free(void *module)
{
    rows_clear((PyObject *)module);
}

static PyMethodDef rows_methods[] = {
    {"join", rows_join, METH_VARARGS, join_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot rows_slots[] = {
    {Py_mod_exec, rows_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef rows_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "migration_pipeline.targets._rows",
    .m_doc = "Rows as COPY input; targets/copy_csv.py says in Python what it does.",
    .m_size = sizeof(State),
    .m_methods = rows_methods,
    .m_slots = rows_slots,
    .m_traverse = rows_traverse,
    .m_clear = rows_clear,
    .m_free = rows_free,
};

PyMODINIT_FUNC
PyInit__rows(void)
{
    return PyModuleDef_Init(&rows_module);
}
