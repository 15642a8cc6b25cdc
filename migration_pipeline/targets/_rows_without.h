/* Takes the rows of some keys out of COPY input, as targets/known_batches.py: without_rows does in Python; it must be valid UTF-8. */
#ifndef MIGRATION_ROWS_WITHOUT_H
#define MIGRATION_ROWS_WITHOUT_H

#include "_rows_texts.h"

/* Behind the closing quote of the value that begins here; NULL where there is none. */
static const char *
behind_quotes(const char *at, const char *end)
{
    for (at++; at < end; at++) {
        if (*at == '"') {
            return at + 1;
        }
        if (*at == '\\' && ++at == end) {
            break;
        }
    }
    return NULL;
}

/* Behind the row that begins here: its newline is the first one that stands in no quotes. NULL where there is none. */
static const char *
behind_row(const char *at, const char *end)
{
    while (at != NULL && at < end) {
        if (*at == '\n') {
            return at + 1;
        }
        at = *at == '"' ? behind_quotes(at, end) : at + 1;
    }
    return NULL;
}

/* Behind a value, where its comma or newline stands; NULL where it does not end in one. */
static const char *
behind_value(const char *at, const char *end)
{
    if (*at == '"') {
        at = behind_quotes(at, end);
    }
    else {
        while (at < end && *at != '"' && *at != ',' && *at != '\n') {
            at++;
        }
    }
    return at != NULL && at < end && (*at == ',' || *at == '\n') ? at : NULL;
}

/* The text that a value stands for. */
static PyObject *
text_of(const char *at, const char *end)
{
    if (*at != '"') {
        return PyUnicode_DecodeUTF8(at, end - at, NULL);
    }
    at++;
    end--;
    if (memchr(at, '\\', (size_t)(end - at)) == NULL) {
        return PyUnicode_DecodeUTF8(at, end - at, NULL);
    }
    char *plain = PyMem_Malloc((size_t)(end - at));
    if (plain == NULL) {
        return PyErr_NoMemory();
    }
    Py_ssize_t size = 0;
    for (; at < end; at++) {
        at += *at == '\\'; /* a quote is escaped or the last, so another character follows */
        plain[size++] = *at;
    }
    PyObject *text = PyUnicode_DecodeUTF8(plain, size, NULL);
    PyMem_Free(plain);
    return text;
}

/* Whether a row's key is one of `keys`: DONE; UNKNOWN if not, or if it cannot be told. `parts` says of each of the first columns whether it is of the key. */
static int
is_among(const char *at, const char *end, PyObject *parts, PyObject *keys, Py_ssize_t width)
{
    PyObject *key = PyTuple_New(width);
    int result = key == NULL ? FAILED : DONE;
    Py_ssize_t columns = PyTuple_GET_SIZE(parts), made = 0;
    for (Py_ssize_t n = 0; n < columns && result == DONE; n++) {
        const char *behind = at < end ? behind_value(at, end) : NULL;
        if (behind == NULL || (*behind == '\n' && n < columns - 1)) {
            result = UNKNOWN;
            break;
        }
        if (PyTuple_GET_ITEM(parts, n) == Py_True) {
            PyObject *text = text_of(at, behind);
            result = text == NULL ? FAILED : DONE;
            if (text != NULL) {
                PyTuple_SET_ITEM(key, made++, text);
            }
        }
        at = behind + 1;
    }
    if (result == DONE) {
        int found = PySet_Contains(keys, key);
        result = found < 0 ? FAILED : found ? DONE : UNKNOWN;
    }
    Py_XDECREF(key);
    return result;
}

static int
take_out(Buffer *left, const char *at, const char *end, PyObject *parts, PyObject *keys)
{
    Py_ssize_t width = 0;
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(parts); n++) {
        width += PyTuple_GET_ITEM(parts, n) == Py_True;
    }
    while (at < end) {
        const char *behind = behind_row(at, end);
        if (behind == NULL) {
            return UNKNOWN;
        }
        int found = is_among(at, behind, parts, keys, width);
        if (found == FAILED || (found == UNKNOWN && put(left, at, (size_t)(behind - at)) == FAILED)) {
            return FAILED;
        }
        at = behind;
    }
    return DONE;
}

PyDoc_STRVAR(without_doc,
"without(data, parts, keys) -> data\n\n"
"Take the rows out of COPY input whose keys are in a set of tuples of texts; all of it stays where it is no whole rows.\n"
"`parts` are booleans: of each of the first columns, whether it is part of the key.");

static PyObject *
rows_without(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *data, *parts, *keys;
    if (!PyArg_ParseTuple(arguments, "SO!O!", &data, &PyTuple_Type, &parts, &PySet_Type, &keys)) {
        return NULL;
    }
    Buffer left = {0};
    const char *at = PyBytes_AS_STRING(data);
    int done = take_out(&left, at, at + PyBytes_GET_SIZE(data), parts, keys);
    PyObject *result = NULL;
    if (done == DONE) {
        result = PyBytes_FromStringAndSize(left.data, (Py_ssize_t)left.size);
    }
    else if (done == UNKNOWN) {
        result = Py_NewRef(data);
    }
    PyMem_Free(left.data);
    return result;
}

#endif
