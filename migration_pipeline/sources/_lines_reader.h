/* Makes a reader of what lines.py tells of a profile, and frees it. */
#ifndef MIGRATION_LINES_READER_H
#define MIGRATION_LINES_READER_H

#include "_lines_items.h"

static int reader_traverse(PyObject *self, visitproc visit, void *arg) {
    Reader *reader = (Reader *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(reader->which);
    for (Py_ssize_t n = 0; n < reader->classes; n++) {
        Class *class_ = &reader->class_[n];
        Py_VISIT(class_->item_class);
        Py_VISIT(class_->fallback);
        for (Py_ssize_t f = 0; f < class_->count; f++) {
            Py_VISIT(class_->fields[f].absent);
            Py_VISIT(class_->fields[f].convert);
        }
    }
    return 0;
}

static int reader_clear(PyObject *self) {
    Reader *reader = (Reader *)self;
    Py_CLEAR(reader->which);
    for (Py_ssize_t n = 0; n < reader->classes; n++) {
        Class *class_ = &reader->class_[n];
        Py_CLEAR(class_->item_class);
        Py_CLEAR(class_->fallback);
        for (Py_ssize_t f = 0; f < class_->count; f++) {
            Py_CLEAR(class_->fields[f].absent);
            Py_CLEAR(class_->fields[f].convert);
        }
    }
    return 0;
}

static void reader_dealloc(PyObject *self) {
    Reader *reader = (Reader *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    reader_clear(self);
    for (Py_ssize_t n = 0; n < reader->names; n++) Py_XDECREF(reader->name[n]);
    for (Py_ssize_t n = 0; n < reader->rules; n++) {
        for (Py_ssize_t c = 0; c < reader->rule[n].count; c++) Py_XDECREF(reader->rule[n].conditions[c].constant);
        PyMem_Free(reader->rule[n].conditions);
    }
    for (Py_ssize_t n = 0; n < reader->classes; n++) {
        PyMem_Free(reader->class_[n].fields);
        PyMem_Free(reader->class_[n].field_of);
    }
    PyMem_Free(reader->name);
    PyMem_Free(reader->typed);
    PyMem_Free(reader->rule);
    PyMem_Free(reader->class_);
    PyMem_Free(reader->slot);
    type->tp_free(self);
    Py_DECREF(type);
}

static int refuse(const char *why) {
    PyErr_SetString(PyExc_ValueError, why);
    return -1;
}

static void *room(Py_ssize_t count, size_t size) {
    void *memory = PyMem_Calloc((size_t)count + 1, size);
    if (!memory) PyErr_NoMemory();
    return memory;
}

static int take_names(Reader *reader, PyObject *names) {
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    if (count > 10000) return refuse("too many names");
    if (!(reader->name = room(count, sizeof(*reader->name)))) return -1;
    for (reader->slots = 16; reader->slots < 4 * count; reader->slots *= 2) {}
    if (!(reader->slot = room(reader->slots, sizeof(short)))) return -1;
    for (Py_ssize_t n = 0; n < reader->slots; n++) reader->slot[n] = -1;
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *name = PyTuple_GET_ITEM(names, n);
        if (!PyBytes_CheckExact(name)) return refuse("a name is not bytes");
        const char *text = PyBytes_AS_STRING(name);
        size_t size = (size_t)PyBytes_GET_SIZE(name);
        if (name_of(reader, text, size) >= 0) return refuse("a name twice");
        reader->name[n] = Py_NewRef(name);
        reader->names = n + 1;
        unsigned at = hash_name(text, size);
        while (reader->slot[at & (reader->slots - 1)] >= 0) at++;
        reader->slot[at & (reader->slots - 1)] = (short)n;
    }
    return 0;
}

static int take_rules(Reader *reader, PyObject *rules) {
    Py_ssize_t count = PyTuple_GET_SIZE(rules);
    if (!(reader->rule = room(count, sizeof(*reader->rule)))) return -1;
    for (Py_ssize_t n = 0; n < count; n++) {
        Rule *rule = &reader->rule[n];
        PyObject *conditions;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(rules, n), "nO!", &rule->class_, &PyTuple_Type, &conditions)) return -1;
        if (rule->class_ < -1 || rule->class_ >= reader->classes) return refuse("there is no such class");
        if (!(rule->conditions = room(PyTuple_GET_SIZE(conditions), sizeof(Condition)))) return -1;
        reader->rules = n + 1;
        for (Py_ssize_t c = 0; c < PyTuple_GET_SIZE(conditions); c++) {
            Condition *condition = &rule->conditions[c];
            if (!PyArg_ParseTuple(PyTuple_GET_ITEM(conditions, c), "iiS", &condition->key, &condition->kind, &condition->constant)) {
                condition->constant = NULL;
                return -1;
            }
            Py_INCREF(condition->constant);
            rule->count = c + 1;
            if (condition->key < 0 || condition->key >= reader->keys || condition->kind < TEXT || condition->kind > BOOLEAN)
                return refuse("there is no such condition");
        }
    }
    return 0;
}

static int take_fields(Reader *reader, Class *class_, PyObject *fields) {
    Py_ssize_t count = PyTuple_GET_SIZE(fields);
    if (!(class_->fields = room(count, sizeof(Field)))) return -1;
    if (count > 10000) return refuse("too many fields");
    for (Py_ssize_t f = 0; f < count; f++) {
        Field *field = &class_->fields[f];
        int kind;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fields, f), "iiippOO", &field->name, &field->types, &kind, &field->optional,
                              &field->required, &field->absent, &field->convert)) {
            field->absent = field->convert = NULL;
            return -1;
        }
        Py_INCREF(field->absent);
        Py_INCREF(field->convert);
        class_->count = f + 1;
        if (kind < 0 || kind >= F_KINDS || field->name < -1 || field->name >= reader->names ||
            (field->name < 0) != (kind == F_WHOLE || kind == F_REST))
            return refuse("there is no such field");
        field->kind = (Kind)kind;
        if (field->name >= 0) class_->field_of[field->name] = (short)f;
    }
    if (reader->widest < count) reader->widest = count;
    return 0;
}

static int take_classes(Reader *reader, PyObject *classes) {
    Py_ssize_t count = PyTuple_GET_SIZE(classes);
    if (!(reader->class_ = room(count, sizeof(*reader->class_)))) return -1;
    for (Py_ssize_t n = 0; n < count; n++) {
        Class *class_ = &reader->class_[n];
        PyObject *item_class, *fields, *fallback;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(classes, n), "OOO", &item_class, &fields, &fallback)) return -1;
        class_->item_class = Py_NewRef(item_class);
        class_->fallback = Py_NewRef(fallback);
        reader->classes = n + 1;
        if (!(class_->field_of = room(reader->names, sizeof(short)))) return -1;
        for (Py_ssize_t name = 0; name < reader->names; name++) class_->field_of[name] = -1;
        if (!PyTuple_CheckExact(fields)) return refuse("fields are not a tuple");
        if (take_fields(reader, class_, fields) < 0) return -1;
    }
    return 0;
}

#endif
