/* Rows of one table with their keys: the Encoder, which takes rows of its class alone. */
#ifndef MIGRATION_ROWS_ENCODER_H
#define MIGRATION_ROWS_ENCODER_H

#include "_rows_pieces.h"

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

/* What PyMember_GetOne does for an object, without a call where it is there. */
static PyObject *
member_of(PyObject *row, PyMemberDef *member)
{
#ifndef Py_GIL_DISABLED
    PyObject *value = *(PyObject **)((char *)row + member->offset);
    if (value != NULL) {
        return Py_NewRef(value);
    }
#endif
    return PyMember_GetOne((const char *)row, member);
}

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
        PyObject *value = member_of(row, column->field->d_member);
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
            values[column] = member_of(row, self->columns[column].field->d_member);
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

/* The keys of some rows: kept as bytes and numbers while that can be, and as objects from the first other one on. */
typedef struct {
    Keys *kept;
    PyObject *list;
} Found;

static int
add_object(State *state, Encoder *self, Found *found, PyObject **values)
{
    PyObject *key = key_of(state, self, values);
    int failed = key == NULL || PyList_Append(found->list, key) < 0;
    Py_XDECREF(key);
    return failed ? FAILED : DONE;
}

static int
add_key(State *state, Encoder *self, Found *found, PyObject **values)
{
    int done = found->list == NULL ? DONE : UNKNOWN;
    for (Py_ssize_t p = 0; done == DONE && p < self->key_width; p++) {
        done = keep_part(found->kept, p, values[self->key[p]]);
    }
    if (done == DONE) {
        found->kept->count++;
    }
    if (done != UNKNOWN) {
        return done;
    }
    if (found->list == NULL && (found->list = PySequence_List((PyObject *)found->kept)) == NULL) {
        return FAILED;
    }
    return add_object(state, self, found, values);
}

/* Encode a list of rows into the buffer, with the end of each; adds their keys. Returns how many Python encoded, or -1. */
static Py_ssize_t
put_rows(State *state, Encoder *self, Buffer *out, PyObject *rows, size_t *ends, Found *found)
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
            done = add_key(state, self, found, values);
        }
        for (Py_ssize_t c = 0; c < self->width; c++) {
            Py_CLEAR(values[c]);
        }
    }
    PyMem_Free(values);
    return done == DONE ? given_back : -1;
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
    PyObject *result = NULL;
    Found found = {NULL, NULL};
    Buffer out = {NULL, 0, 0};
    PyObject *rows = PySequence_Tuple(argument); /* a copy of its own, as Python code may run in between */
    if (rows == NULL) {
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(rows);
    Lines *lines = (Lines *)state->lines_type->tp_alloc(state->lines_type, 0);
    if (lines == NULL || (lines->ends = PyMem_Calloc((size_t)count + 1, sizeof *lines->ends)) == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    found.kept = new_keys(state, count, self->key_width);
    if (found.kept == NULL || reserve(&out, 64 * 1024) < 0) {
        goto end;
    }
    Py_ssize_t given_back = put_rows(state, self, &out, rows, lines->ends, &found);
    if (given_back < 0) {
        goto end;
    }
    lines->count = self->apart || count == 0 ? count : 1;
    if (count) {
        lines->ends[lines->count - 1] = out.size;
    }
    /* They wait for the rest of their batch, so what is too much goes back. */
    lines->data = PyMem_Realloc(out.data, out.size + 1);
    if (lines->data == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    out.data = NULL;
    result = Py_BuildValue("(OOn)", found.list ? found.list : (PyObject *)found.kept, lines, given_back);
end:
    PyMem_Free(out.data);
    Py_XDECREF(found.kept);
    Py_XDECREF(found.list);
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

#endif
