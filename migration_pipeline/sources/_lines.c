/* The accelerator of a full export's lines: routes them, and makes Items of those that a route takes.
 *
 * dynamodb_json.py and transform.py are its specification. What it does not understand completely it hands to them, a line at
 * a time; docs/accelerator.md says why the results are the same. */
#include "_lines_reader.h"

/* -- the method ---------------------------------------------------------------------------------------- */

static PyObject *lists(Py_ssize_t count) {
    PyObject *all = PyList_New(count);
    for (Py_ssize_t n = 0; all && n < count; n++) {
        PyObject *one = PyList_New(0);
        if (!one) Py_CLEAR(all);
        else PyList_SET_ITEM(all, n, one);
    }
    return all;
}

typedef struct {
    PyObject *places, *items, *unrouted, *bad;
    Py_ssize_t *counts;
    Py_ssize_t odd[ODD_REASONS];
} Found;

/* What is read: lines, or a block of them. A block's line becomes an object when it is needed, and so does its number. */
typedef struct {
    PyObject *kept; /* a tuple of lines, so that nobody can change it while the GIL is not held, or the block */
    PyObject *numbers; /* a tuple, or NULL: of a block */
    Py_ssize_t first, count;
    Line *line;
} Input;

static PyObject *bytes_of(Line *line) { /* borrowed */
    if (!line->bytes) line->bytes = PyBytes_FromStringAndSize(line->at, (Py_ssize_t)line->size);
    return line->bytes;
}

static PyObject *number_of(const Input *input, Py_ssize_t n) {
    return input->numbers ? Py_NewRef(PyTuple_GET_ITEM(input->numbers, n)) : PyLong_FromSsize_t(input->first + n);
}

static int take_lines(Input *input, PyObject *lines, PyObject *numbers) {
    if (!(input->kept = PySequence_Tuple(lines)) || !(input->numbers = PySequence_Tuple(numbers))) return -1;
    input->count = PyTuple_GET_SIZE(input->kept);
    if (PyTuple_GET_SIZE(input->numbers) != input->count) return refuse("there is not one number for each line");
    if (!(input->line = room(input->count, sizeof(Line)))) return -1;
    for (Py_ssize_t n = 0; n < input->count; n++) {
        PyObject *line = PyTuple_GET_ITEM(input->kept, n);
        if (!PyBytes_CheckExact(line)) {
            PyErr_SetString(PyExc_TypeError, "a line is not bytes");
            return -1;
        }
        input->line[n] = (Line){PyBytes_AS_STRING(line), (size_t)PyBytes_GET_SIZE(line), Py_NewRef(line), -1};
    }
    return 0;
}

static Py_ssize_t newlines(const char *at, const char *end) {
    Py_ssize_t count = 0;
    for (; (at = memchr(at, '\n', (size_t)(end - at))); at++) count++;
    return count;
}

static int take_block(Input *input, PyObject *block, PyObject *first) {
    const char *at = PyBytes_AS_STRING(block), *end = at + PyBytes_GET_SIZE(block), *newline;
    input->kept = Py_NewRef(block);
    input->first = PyLong_AsSsize_t(first);
    if (PyErr_Occurred()) return -1;
    Py_ssize_t count = newlines(at, end) + 1;
    if (!(input->line = room(count, sizeof(Line)))) return -1;
    for (; input->count < count; at = newline + 1) {
        newline = memchr(at, '\n', (size_t)(end - at));
        input->line[input->count++] = (Line){at, (size_t)((newline ? newline : end) - at), NULL, -1};
        if (!newline) break;
    }
    return 0;
}

static void drop(Input *input) {
    for (Py_ssize_t n = 0; input->line && n < input->count; n++) Py_XDECREF(input->line[n].bytes);
    PyMem_Free(input->line);
    Py_XDECREF(input->kept);
    Py_XDECREF(input->numbers);
}

/* Appends to one of a list of lists; takes the reference. */
static int append(PyObject *lists, Py_ssize_t at, PyObject *value) {
    int failed = !value || PyList_Append(PyList_GET_ITEM(lists, at), value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* Notes a line that Python finds bad, and why; `rule` is the one that takes it, or -1. */
static int note_bad(Found *found, const Input *input, Py_ssize_t n, PyObject *why, Py_ssize_t rule) {
    PyObject *line = bytes_of(&input->line[n]), *number = line ? number_of(input, n) : NULL;
    PyObject *bad = number ? Py_BuildValue("NOOn", number, line, why, rule) : NULL;
    int failed = !bad || PyList_Append(found->bad, bad) < 0;
    Py_XDECREF(bad);
    return failed ? -1 : 0;
}

/* Asks Python which rule takes a line that C did not understand; -1 with an exception, or -2 if it is bad, which is noted. */
static Py_ssize_t rule_by_python(const Reader *reader, Found *found, const Input *input, Py_ssize_t n) {
    PyObject *line = bytes_of(&input->line[n]), *which = line ? PyObject_CallOneArg(reader->which, line) : NULL;
    if (!which) return -1;
    if (PyExceptionInstance_Check(which)) {
        int failed = note_bad(found, input, n, which, -1);
        Py_DECREF(which);
        return failed ? -1 : -2;
    }
    Py_ssize_t rule = PyLong_AsSsize_t(which);
    Py_DECREF(which);
    if (!PyErr_Occurred() && (rule < 0 || rule > reader->rules)) refuse("there is no such rule");
    return PyErr_Occurred() ? -1 : rule;
}

static int collect_line(State *state, const Reader *reader, const Work *work, const Routed *routed, Input *input, Py_ssize_t n,
                        PyObject **values, Found *found) {
    Line *line = &input->line[n];
    Py_ssize_t rule = routed->rule;
    found->odd[routed->odd]++;
    if (routed->odd != FINE && (rule = rule_by_python(reader, found, input, n)) < 0) return rule == -2 ? 0 : -1;
    if (rule == reader->rules) return bytes_of(line) ? PyList_Append(found->unrouted, line->bytes) : -1;
    Py_ssize_t number_of_class = reader->rule[rule].class_;
    if (number_of_class < 0) {
        found->counts[rule]++;
        return 0;
    }
    const Class *class_ = &reader->class_[number_of_class];
    Odd why = routed->odd;
    PyObject *item = NULL;
    if (why == FINE) {
        item = make_item(state, reader, class_, line, work->places + routed->first, routed->count, values, &why);
        if (why != FINE) found->odd[FINE]--, found->odd[why]++;
    }
    if (!item && why != FINE && bytes_of(line)) item = PyObject_CallOneArg(class_->fallback, line->bytes);
    if (!item) return -1;
    if (PyExceptionInstance_Check(item)) {
        int failed = note_bad(found, input, n, item, rule);
        Py_DECREF(item);
        return failed;
    }
    line->rule = rule;
    return append(found->items, rule, item) < 0 || append(found->places, rule, number_of(input, n)) < 0 ? -1 : 0;
}

/* The lines that a rule took: those of a block as one, unless it took the whole block. */
static PyObject *taken_by(const Input *input, Py_ssize_t rule) {
    size_t size = 0, at = 0;
    Py_ssize_t count = 0;
    for (Py_ssize_t n = 0; n < input->count; n++)
        if (input->line[n].rule == rule) size += input->line[n].size, count++;
    if (input->numbers) {
        PyObject *lines = PyList_New(count);
        for (Py_ssize_t n = 0, to = 0; lines && n < input->count; n++)
            if (input->line[n].rule == rule) PyList_SET_ITEM(lines, to++, Py_NewRef(input->line[n].bytes));
        return lines;
    }
    if (count == input->count) return Py_NewRef(input->kept);
    PyObject *lines = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size + (count ? count - 1 : 0));
    if (!lines) return NULL;
    char *to = PyBytes_AS_STRING(lines);
    for (Py_ssize_t n = 0; n < input->count; n++) {
        if (input->line[n].rule != rule) continue;
        if (at) to[at - 1] = '\n';
        memcpy(to + at, input->line[n].at, input->line[n].size);
        at += input->line[n].size + 1;
    }
    return lines;
}

static PyObject *told(const Reader *reader, const Input *input, const Found *found) {
    PyObject *counts = PyList_New(reader->rules), *odd = PyDict_New(), *taken = PyList_New(reader->rules), *result = NULL;
    for (Py_ssize_t n = 0; taken && n < reader->rules; n++) {
        PyObject *lines = taken_by(input, n);
        if (!lines) goto done;
        PyList_SET_ITEM(taken, n, lines);
    }
    for (Py_ssize_t n = 0; counts && n < reader->rules; n++) {
        PyObject *count = PyLong_FromSsize_t(found->counts[n]);
        if (!count) goto done;
        PyList_SET_ITEM(counts, n, count);
    }
    for (int why = FINE + 1; odd && why < ODD_REASONS; why++) {
        if (!found->odd[why]) continue;
        PyObject *count = PyLong_FromSsize_t(found->odd[why]);
        int failed = !count || PyDict_SetItemString(odd, ODD_NAMES[why], count) < 0;
        Py_XDECREF(count);
        if (failed) goto done;
    }
    if (counts && odd && taken) result = PyTuple_Pack(7, taken, found->places, counts, found->unrouted, found->items, found->bad, odd);
done:
    Py_XDECREF(counts);
    Py_XDECREF(odd);
    Py_XDECREF(taken);
    return result;
}

PyDoc_STRVAR(read_doc, "read(lines, numbers)\n--\n\n"
"Route lines, with their numbers, and make Items of those that a rule with a function takes. In place of lines it reads a\n"
"block of them as well, which is bytes with newlines between; then `numbers` is the first line's.\n\n"
"Gives for each rule the lines that it took, as a list or, of a block, with newlines between; lists of their numbers; counts\n"
"for each; the lines that no rule takes; lists of Items for each rule; bad lines, as tuples of number, line, reason, and\n"
"rule or -1; and how many lines Python judged, by reason.");

static PyObject *reader_read(PyObject *self, PyTypeObject *defining, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    State *state = PyType_GetModuleState(defining);
    Reader *reader = (Reader *)self;
    if (nargs != 2 || (kwnames && PyTuple_GET_SIZE(kwnames))) {
        PyErr_SetString(PyExc_TypeError, "read takes lines and numbers");
        return NULL;
    }
    Input input = {0};
    Found found = {0};
    Work work = {0};
    Routed *routed = NULL;
    PyObject **values = NULL, *result = NULL;
    if ((PyBytes_CheckExact(args[0]) ? take_block : take_lines)(&input, args[0], args[1]) < 0) goto done;
    Py_ssize_t count = input.count;
    if (count > UINT32_MAX / 2) {
        refuse("too many lines");
        goto done;
    }
    work.room = 16 * (count + 1);
    work.places = PyMem_RawMalloc((size_t)work.room * sizeof(Place));
    work.at = PyMem_Calloc((size_t)reader->names + 1, sizeof(*work.at));
    work.stamp = PyMem_Calloc((size_t)reader->names + 1, sizeof(*work.stamp));
    routed = PyMem_Calloc((size_t)count + 1, sizeof(Routed));
    values = PyMem_Calloc((size_t)reader->widest + 1, sizeof(*values));
    found.counts = PyMem_Calloc((size_t)reader->rules + 1, sizeof(*found.counts));
    if (!work.places || !work.at || !work.stamp || !routed || !values || !found.counts) {
        PyErr_NoMemory();
        goto done;
    }
    found.places = lists(reader->rules);
    found.items = lists(reader->rules);
    found.unrouted = PyList_New(0);
    found.bad = PyList_New(0);
    if (!found.places || !found.items || !found.unrouted || !found.bad) goto done;
    Py_BEGIN_ALLOW_THREADS
    route_lines(reader, &work, routed, input.line, count);
    Py_END_ALLOW_THREADS
    for (Py_ssize_t n = 0; n < count; n++)
        if (collect_line(state, reader, &work, &routed[n], &input, n, values, &found) < 0) goto done;
    result = told(reader, &input, &found);
done:
    PyMem_RawFree(work.places);
    PyMem_Free(work.at);
    PyMem_Free(work.stamp);
    PyMem_Free(routed);
    PyMem_Free(values);
    PyMem_Free(found.counts);
    Py_XDECREF(found.places);
    Py_XDECREF(found.items);
    Py_XDECREF(found.unrouted);
    Py_XDECREF(found.bad);
    drop(&input);
    return result;
}

/* -- the type ---------------------------------------------------------------------------------------- */

PyDoc_STRVAR(reader_doc, "Reader(names, typed, rules, classes, which)\n--\n\n"
"Reads the lines of one profile; migration_pipeline/sources/lines.py says what it takes.");

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *names, *typed, *rules, *classes, *which;
    if (kwargs && PyDict_GET_SIZE(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "Reader takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!O!O!O!O", &PyTuple_Type, &names, &PyTuple_Type, &typed, &PyTuple_Type, &rules,
                          &PyTuple_Type, &classes, &which))
        return NULL;
    Reader *reader = (Reader *)type->tp_alloc(type, 0);
    if (!reader) return NULL;
    reader->which = Py_NewRef(which);
    reader->keys = PyTuple_GET_SIZE(typed);
    if (reader->keys > PyTuple_GET_SIZE(names)) {
        refuse("there are fewer names than routing attributes");
        goto failed;
    }
    if (!(reader->typed = room(reader->keys, 1))) goto failed;
    for (Py_ssize_t n = 0; n < reader->keys; n++) {
        int truth = PyObject_IsTrue(PyTuple_GET_ITEM(typed, n));
        if (truth < 0) goto failed;
        reader->typed[n] = (char)truth;
    }
    if (take_names(reader, names) < 0 || take_classes(reader, classes) < 0 || take_rules(reader, rules) < 0) goto failed;
    return (PyObject *)reader;
failed:
    Py_DECREF(reader);
    return NULL;
}

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)(void (*)(void))reader_read, METH_METHOD | METH_FASTCALL | METH_KEYWORDS, read_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, (void *)reader_doc},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_methods, reader_methods},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "migration_pipeline.sources._lines.Reader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

/* -- the module ------------------------------------------------------------------------------------------ */

static int module_exec(PyObject *module) {
    State *state = PyModule_GetState(module);
    PyObject *decimal = PyImport_ImportModule("decimal");
    if (!decimal) return -1;
    state->decimal = PyObject_GetAttrString(decimal, "Decimal");
    Py_DECREF(decimal);
    if (!state->decimal) return -1;
    state->datetime = PyCapsule_Import(PyDateTime_CAPSULE_NAME, 0);
    if (!state->datetime) return -1;
    state->reader = (PyTypeObject *)PyType_FromModuleAndSpec(module, &reader_spec, NULL);
    if (!state->reader) return -1;
    return PyModule_AddType(module, state->reader) < 0 ? -1 : PyModule_AddIntMacro(module, INTERFACE);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = PyModule_GetState(module);
    Py_VISIT(state->decimal);
    Py_VISIT(state->reader);
    return 0;
}

static int module_clear(PyObject *module) {
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->decimal);
    Py_CLEAR(state->reader);
    return 0;
}

PyDoc_STRVAR(newlines_doc, "newlines(data)\n--\n\nCount the newlines of some bytes.");

static PyObject *count_newlines(PyObject *Py_UNUSED(module), PyObject *data) {
    char *at;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &at, &size) < 0) return NULL;
    return PyLong_FromSsize_t(newlines(at, at + size));
}

static PyMethodDef module_methods[] = {
    {"newlines", count_newlines, METH_O, newlines_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "migration_pipeline.sources._lines",
    .m_doc = "Routes lines of DynamoDB JSON and makes Items of them; migration_pipeline/sources/lines.py calls it.",
    .m_size = sizeof(State),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__lines(void) { return PyModuleDef_Init(&module_def); }
