/* Rows as COPY input: what targets/copy_csv.py writes, byte for byte, for the values that are understood here.
 *
 * Python is the specification. A value of any other type, a subclass, an integer beyond 64 bits, a float in a document, an odd
 * time zone: its column is spelled by Python's function, or its row is encoded by Python. An exception of any kind is for the
 * caller, who encodes all the rows again in Python and so finds Python's own reason. docs/accelerator.md says more.
 */
#include "_rows_binary.h"
#include "_rows_encoder.h"
#include "_rows_sort.h"
#include "_rows_without.h"

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
    state->lines_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &lines_spec, NULL);
    state->keys_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &keys_spec, NULL);
    state->encoder_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &encoder_spec, NULL);
    if (PyErr_Occurred() || state->encoder_type == NULL || state->lines_type == NULL || state->keys_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->encoder_type) < 0 ? -1 : PyModule_AddIntMacro(module, INTERFACE);
}

static int
rows_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->encoder_type);
    Py_VISIT(state->lines_type);
    Py_VISIT(state->keys_type);
    Py_VISIT(state->decimal_type);
    Py_VISIT(state->uuid_type);
    return 0;
}

static int
rows_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->encoder_type);
    Py_CLEAR(state->lines_type);
    Py_CLEAR(state->keys_type);
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
    {"binary", rows_binary, METH_VARARGS, binary_doc},
    {"without", rows_without, METH_VARARGS, without_doc},
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
