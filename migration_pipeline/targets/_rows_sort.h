/* Sorts the rows of a batch by key: texts, integers of 64 bits, and tuples of these; other keys, and two equal ones, are for Python. */
#ifndef MIGRATION_ROWS_SORT_H
#define MIGRATION_ROWS_SORT_H

#include "_rows_pieces.h"

/* -- a batch's rows, sorted ------------------------------------------------------------------- */

/* A part of a key, with its text. */
typedef struct {
    const char *bytes; /* NULL: a number */
    Py_ssize_t size;
    int64_t number;
} Text;

typedef struct {
    uint64_t first; /* decides most comparisons: of the first part a number, or some bytes */
    size_t place;
} Entry;

typedef struct {
    const char *bytes;
    size_t size;
} Line;

typedef struct {
    PyObject *keys, *lines; /* lists of our own: Keys and Lines, or tuples of objects, for each piece */
    size_t count, width;
    Text *parts; /* `width` for each key */
    Line *line;
    Entry *entries, *spare;
} Join;

/* Hold what a sequence has, so that nobody can change it: Keys and Lines as they are, tuples of all else. */
static PyObject *
held(PyObject *pieces, PyTypeObject *ours)
{
    PyObject *made = PySequence_List(pieces);
    for (Py_ssize_t n = 0; made != NULL && n < PyList_GET_SIZE(made); n++) {
        PyObject *piece = PyList_GET_ITEM(made, n);
        if (Py_IS_TYPE(piece, ours)) {
            continue;
        }
        PyObject *objects = PySequence_Tuple(piece);
        if (objects == NULL) {
            Py_CLEAR(made);
            break;
        }
        PyList_SET_ITEM(made, n, objects);
        Py_DECREF(piece);
    }
    return made;
}

static Py_ssize_t
size_of(PyObject *piece)
{
    return PyTuple_CheckExact(piece) ? PyTuple_GET_SIZE(piece) : PySequence_Size(piece);
}

/* Keep the objects of a piece: UNKNOWN unless each is a text or number, or a tuple of as many, of the same types in all. */
static int
keep_objects(Keys *keys, PyObject *objects)
{
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(objects); n++) {
        PyObject *key = PyTuple_GET_ITEM(objects, n);
        if (PyTuple_CheckExact(key) != keys->many || (keys->many && PyTuple_GET_SIZE(key) != keys->width)) {
            return UNKNOWN;
        }
        for (Py_ssize_t p = 0; p < keys->width; p++) {
            int done = keep_part(keys, p, keys->many ? PyTuple_GET_ITEM(key, p) : key);
            if (done != DONE) {
                return done;
            }
        }
        keys->count++;
    }
    return DONE;
}

/* Keep the objects of a piece in its place. */
static int
keep_piece(State *state, PyObject *pieces, Py_ssize_t n)
{
    PyObject *objects = PyList_GET_ITEM(pieces, n);
    Py_ssize_t width = 1;
    int many = 0;
    if (PyTuple_GET_SIZE(objects)) {
        PyObject *first = PyTuple_GET_ITEM(objects, 0);
        many = PyTuple_CheckExact(first);
        width = many ? PyTuple_GET_SIZE(first) : 1;
    }
    if (width == 0) {
        return UNKNOWN;
    }
    Keys *keys = new_keys(state, PyTuple_GET_SIZE(objects), width);
    if (keys == NULL) {
        return FAILED;
    }
    keys->many = many;
    int done = keep_objects(keys, objects);
    if (done != DONE) {
        Py_DECREF(keys);
        return done;
    }
    PyList_SET_ITEM(pieces, n, (PyObject *)keys);
    Py_DECREF(objects);
    return DONE;
}

/* Find all keys: UNKNOWN unless they are Keys, or can be, of the same types in all pieces. */
static int
find_keys(State *state, Join *join)
{
    const Keys *one = NULL;
    size_t found = 0;
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(join->keys); n++) {
        int done = PyTuple_CheckExact(PyList_GET_ITEM(join->keys, n)) ? keep_piece(state, join->keys, n) : DONE;
        if (done != DONE) {
            return done;
        }
        const Keys *keys = (const Keys *)PyList_GET_ITEM(join->keys, n);
        if (keys->count == 0) {
            continue;
        }
        if (one == NULL) {
            one = keys;
            join->width = (size_t)keys->width;
            if (join->count > (size_t)PY_SSIZE_T_MAX / sizeof(Text) / join->width ||
                (join->parts = PyMem_Malloc(join->count * join->width * sizeof(Text))) == NULL) {
                PyErr_NoMemory();
                return FAILED;
            }
        }
        if (keys->width != one->width || keys->many != one->many) {
            return UNKNOWN;
        }
        for (Py_ssize_t p = 0; p < keys->count * keys->width; p++) {
            const Part *part = &keys->parts[p];
            if ((part->size < 0) != (one->parts[p % one->width].size < 0)) {
                return UNKNOWN;
            }
            join->parts[found++] = part->size < 0 ? (Text){NULL, 0, part->number}
                                                  : (Text){keys->texts.data + part->number, part->size, 0};
        }
    }
    return DONE;
}

/* Find all lines. */
static int
find_lines(Join *join)
{
    size_t found = 0;
    if ((join->line = PyMem_Malloc((join->count + 1) * sizeof(Line))) == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(join->lines); n++) {
        PyObject *piece = PyList_GET_ITEM(join->lines, n);
        for (Py_ssize_t l = 0; l < size_of(piece); l++) {
            Line *line = &join->line[found++];
            if (!PyTuple_CheckExact(piece)) {
                line->bytes = line_at((const Lines *)piece, l, &line->size);
                continue;
            }
            PyObject *object = PyTuple_GET_ITEM(piece, l);
            if (!PyBytes_CheckExact(object)) {
                PyErr_SetString(PyExc_TypeError, "a line must be bytes");
                return FAILED;
            }
            *line = (Line){PyBytes_AS_STRING(object), (size_t)PyBytes_GET_SIZE(object)};
        }
    }
    return DONE;
}

/* How many bytes all first parts have in common. */
static Py_ssize_t
common_bytes(const Join *join)
{
    const Text *one = join->parts;
    Py_ssize_t common = one->size;
    for (size_t n = 1; n < join->count; n++) {
        const Text *other = join->parts + n * join->width;
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
        const Text *part = join->parts + n * join->width;
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
    const Text *a = join->parts + one.place * join->width, *b = join->parts + other.place * join->width;
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
        size += join->line[n].size + 1;
        if (size > (size_t)PY_SSIZE_T_MAX / 2) {
            return PyErr_NoMemory();
        }
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (data == NULL) {
        return NULL;
    }
    char *to = PyBytes_AS_STRING(data);
    Py_BEGIN_ALLOW_THREADS
    for (size_t n = 0; n < join->count; n++) {
        const Line *line = &join->line[join->entries[n].place];
        memcpy(to, line->bytes, line->size);
        to += line->size;
        *to++ = '\n';
    }
    Py_END_ALLOW_THREADS
    return data;
}

/* Sort, if the keys are understood: without Python's lock, as all that is looked at is ours, or a text that cannot change. */
static PyObject *
sorted_lines(State *state, Join *join, int twins)
{
    int done = find_keys(state, join), found;
    if (done != DONE) {
        if (done == FAILED) {
            return NULL;
        }
        Py_RETURN_NONE;
    }
    if (find_lines(join) < 0) {
        return NULL;
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

/* How many keys or lines there are in all pieces, or -1. */
static Py_ssize_t
count_of(PyObject *pieces)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(pieces); n++) {
        count += size_of(PyList_GET_ITEM(pieces, n));
    }
    return count;
}

PyDoc_STRVAR(join_doc, "join($module, keys, lines, twins, /)\n--\n\n"
"Lines in the order of their keys, each with a newline; both are given piece by piece.\n\n"
"None where that is for Python: keys that are neither texts nor integers, and two of one key, unless there may be twins.");

static PyObject *
rows_join(PyObject *module, PyObject *arguments)
{
    State *state = PyModule_GetState(module);
    PyObject *keys, *lines, *result = NULL;
    int twins;
    if (!PyArg_ParseTuple(arguments, "OOp", &keys, &lines, &twins)) {
        return NULL;
    }
    Join join = {.keys = held(keys, state->keys_type)};
    if (join.keys == NULL || (join.lines = held(lines, state->lines_type)) == NULL) {
        goto end;
    }
    join.count = (size_t)count_of(join.keys);
    if ((Py_ssize_t)join.count != count_of(join.lines)) {
        PyErr_SetString(PyExc_ValueError, "each line must have a key");
        goto end;
    }
    result = join.count ? sorted_lines(state, &join, twins) : PyBytes_FromStringAndSize(NULL, 0);
end:
    Py_XDECREF(join.keys);
    Py_XDECREF(join.lines);
    PyMem_Free(join.parts);
    PyMem_Free(join.line);
    PyMem_Free(join.entries);
    PyMem_Free(join.spare);
    return result;
}

#endif
