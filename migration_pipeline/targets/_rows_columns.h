/* A value as its column spells it: scalars, bytes, arrays, documents of at most DEEPEST levels. */
#ifndef MIGRATION_ROWS_COLUMNS_H
#define MIGRATION_ROWS_COLUMNS_H

#include "_rows_values.h"

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
        if (put(out, "\\\"", 2) < 0 || put_str(out, value, IN_DOCUMENT) < 0) {
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

#endif
