/* What the encoder makes of some rows: their lines in one buffer, and their keys. Either becomes objects when it is asked for. */
#ifndef MIGRATION_ROWS_PIECES_H
#define MIGRATION_ROWS_PIECES_H

#include "_rows_columns.h"

/* -- lines ------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    char *data;
    size_t *ends; /* of each line; none has a newline at its end, but values may have one */
    Py_ssize_t count;
} Lines;

static void
lines_dealloc(Lines *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(self->data);
    PyMem_Free(self->ends);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static Py_ssize_t
lines_length(Lines *self)
{
    return self->count;
}

/* Where a line begins, and how long it is. */
static const char *
line_at(const Lines *self, Py_ssize_t n, size_t *size)
{
    size_t start = n ? self->ends[n - 1] : 0;
    *size = self->ends[n] - start;
    return self->data + start;
}

static PyObject *
lines_item(Lines *self, Py_ssize_t n)
{
    if (n < 0 || n >= self->count) {
        PyErr_SetString(PyExc_IndexError, "there is no such line");
        return NULL;
    }
    size_t size;
    const char *line = line_at(self, n, &size);
    return PyBytes_FromStringAndSize(line, (Py_ssize_t)size);
}

/* All lines, with nothing between: they do not change. */
static int
lines_buffer(PyObject *self, Py_buffer *view, int flags)
{
    const Lines *lines = (const Lines *)self;
    size_t size = lines->count ? lines->ends[lines->count - 1] : 0;
    return PyBuffer_FillInfo(view, self, lines->data, (Py_ssize_t)size, 1, flags);
}

static PyType_Slot lines_slots[] = {
    {Py_tp_doc, "Lines of encoded rows: a sequence of bytes, and as a buffer all of them, with nothing between."},
    {Py_tp_dealloc, lines_dealloc},
    {Py_bf_getbuffer, lines_buffer},
    {Py_sq_length, lines_length},
    {Py_sq_item, lines_item},
    {0, NULL},
};

static PyType_Spec lines_spec = {
    .name = "migration_pipeline.targets._rows.Lines",
    .basicsize = sizeof(Lines),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lines_slots,
};

/* -- keys ------------------------------------------------------------------------------------- */

/* A text or a number of a key. */
typedef struct {
    Py_ssize_t size; /* -1: a number */
    int64_t number;  /* or where the text begins */
} Part;

/* Keys that are texts or integers of 64 bits, or tuples of these: as many, and of the same types, in all of them. */
typedef struct {
    PyObject_HEAD
    Buffer texts; /* in UTF-8, one after another */
    Part *parts;  /* `width` for each key */
    Py_ssize_t count, width;
    int many; /* whether they are tuples */
} Keys;

static void
keys_dealloc(Keys *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(self->texts.data);
    PyMem_Free(self->parts);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static Py_ssize_t
keys_length(Keys *self)
{
    return self->count;
}

static PyObject *
part_as_object(const Keys *self, const Part *part)
{
    return part->size < 0 ? PyLong_FromLongLong(part->number)
                          : PyUnicode_DecodeUTF8(self->texts.data + part->number, part->size, NULL);
}

static PyObject *
keys_item(Keys *self, Py_ssize_t n)
{
    if (n < 0 || n >= self->count) {
        PyErr_SetString(PyExc_IndexError, "there is no such key");
        return NULL;
    }
    const Part *parts = self->parts + n * self->width;
    if (!self->many) {
        return part_as_object(self, parts);
    }
    PyObject *key = PyTuple_New(self->width);
    for (Py_ssize_t p = 0; key != NULL && p < self->width; p++) {
        PyObject *value = part_as_object(self, &parts[p]);
        if (value == NULL) {
            Py_CLEAR(key);
            break;
        }
        PyTuple_SET_ITEM(key, p, value);
    }
    return key;
}

static PyType_Slot keys_slots[] = {
    {Py_tp_doc, "Keys of encoded rows: a sequence of texts, integers, or tuples of them."},
    {Py_tp_dealloc, keys_dealloc},
    {Py_sq_length, keys_length},
    {Py_sq_item, keys_item},
    {0, NULL},
};

static PyType_Spec keys_spec = {
    .name = "migration_pipeline.targets._rows.Keys",
    .basicsize = sizeof(Keys),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = keys_slots,
};

/* Make room for so many keys. */
static Keys *
new_keys(State *state, Py_ssize_t room, Py_ssize_t width)
{
    Keys *keys = (Keys *)state->keys_type->tp_alloc(state->keys_type, 0);
    if (keys == NULL) {
        return NULL;
    }
    keys->width = width;
    keys->many = width != 1;
    if (room > PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(Part) / (width + 1) ||
        (keys->parts = PyMem_Malloc((size_t)(room * width + 1) * sizeof(Part))) == NULL) {
        PyErr_NoMemory();
        Py_CLEAR(keys);
    }
    else if (reserve(&keys->texts, (size_t)(room * width + 1) * 8) < 0) { /* also where all texts are empty */
        Py_CLEAR(keys);
    }
    return keys;
}

/* Keep a part of the next key: UNKNOWN for all but a text or an integer of 64 bits, as that part is in the first key. */
static int
keep_part(Keys *keys, Py_ssize_t p, PyObject *value)
{
    Part *part = keys->parts + keys->count * keys->width + p;
    if (PyUnicode_CheckExact(value)) {
        const char *bytes = PyUnicode_AsUTF8AndSize(value, &part->size);
        part->number = (int64_t)keys->texts.size;
        if (bytes == NULL || put(&keys->texts, bytes, (size_t)part->size) < 0) {
            return FAILED;
        }
    }
    else if (PyLong_CheckExact(value)) {
        int overflow;
        part->size = -1;
        part->number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow) {
            return UNKNOWN;
        }
        if (part->number == -1 && PyErr_Occurred()) {
            return FAILED;
        }
    }
    else {
        return UNKNOWN;
    }
    return (part->size < 0) == (keys->parts[p].size < 0) ? DONE : UNKNOWN;
}

#endif
