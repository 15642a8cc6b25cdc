/* Sorts the rows of a batch by key: texts, integers of 64 bits, and tuples of these; other keys, and two equal ones, are for Python. */
#ifndef MIGRATION_ROWS_SORT_H
#define MIGRATION_ROWS_SORT_H

#include "_rows_columns.h"

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

#endif
