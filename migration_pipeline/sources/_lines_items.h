/* With the GIL: makes the Item of a line, of the places of its attributes. */
#ifndef MIGRATION_LINES_ITEMS_H
#define MIGRATION_LINES_ITEMS_H

#include "_lines_routes.h"

typedef struct {
    const Reader *reader;
    const Class *class_;
} Rest;

static int has_field(const void *context, const char *name, size_t size) {
    const Rest *rest = context;
    int known = name_of(rest->reader, name, size);
    return known >= 0 && rest->class_->field_of[known] >= 0;
}

/* A frozenset of an SS, NS or BS, made as Python makes it of the same list: in the same order. */
static PyObject *make_set(State *state, Scan *s, Type type, int integers) {
    PyObject *list = make_strings(state, s, type, integers);
    PyObject *set = list ? PyFrozenSet_New(list) : NULL;
    Py_XDECREF(list);
    return set;
}

static PyObject *make_field(State *state, Scan *s, const Field *field, const char *line, const Place *place) {
    const char *text = line + place->text;
    size_t size = place->size;
    unsigned flags = place->flags;
    long long value;
    PyObject *made = NULL;
    if (place->type == T_NULL && field->optional && size) Py_RETURN_NONE;
    if (!(field->types & 1 << place->type)) return odd_value(s);
    s->at = text;
    switch (field->kind) {
    case F_TEXT: return make_text(text, size, flags);
    case F_BOOL: return PyBool_FromLong((long)size);
    case F_INTEGER:
        if (!flags && read_integer(text, size, &value)) return PyLong_FromLongLong(value);
        s->odd = ODD_FIELD;
        break;
    case F_DECIMAL: made = make_decimal(state, s, text, size, flags); break;
    case F_TIME: made = make_time(state, s, text, size, flags); break;
    case F_SECONDS: made = make_epoch(state, s, text, size, flags, 1); break;
    case F_MILLIS: made = make_epoch(state, s, text, size, flags, 1000); break;
    case F_BYTES: made = make_bytes(s, text, size, flags); break;
    case F_SET: made = make_set(state, s, place->type, 0); break;
    case F_INTEGERS: made = make_set(state, s, place->type, 1); break;
    case F_DOCUMENT: made = make_document(state, s, NULL, NULL); break;
    case F_LIST: made = make_list(state, s); break;
    case F_ANY:
        s->at = line + place->from;
        made = make_next(state, s);
        break;
    default: s->odd = ODD_FIELD;
    }
    if (made || s->odd != ODD_FIELD) return made;
    /* An unusual spelling: the field's own code reads it. It would not notice twins in a document. */
    if (place->type == T_M || place->type == T_L) return NULL;
    s->odd = FINE;
    made = PyObject_CallFunction(field->convert, "y#", line + place->from, (Py_ssize_t)(place->to - place->from));
    return made ? made : odd_unless_fatal(s, ODD_FIELD);
}

/* Makes the Item of a line. Without one, an exception is set, or `why` tells what Python has to read it for. */
static PyObject *make_item(State *state, const Reader *reader, const Class *class_, const Line *line, const Place *places,
                           Py_ssize_t count, PyObject **values, Odd *why) {
    const char *bytes = line->at;
    Scan s = {bytes, bytes + line->size, 0, FINE};
    PyObject *item = NULL;
    int failed = 0;
    memset(values, 0, (size_t)class_->count * sizeof(*values));
    for (Py_ssize_t n = 0; n < count && !failed; n++) {
        int field = class_->field_of[places[n].name];
        if (field >= 0) failed = !(values[field] = make_field(state, &s, &class_->fields[field], bytes, &places[n]));
    }
    for (Py_ssize_t n = 0; n < class_->count && !failed; n++) {
        const Field *field = &class_->fields[n];
        if (values[n]) continue;
        if (field->name < 0) {
            Rest rest = {reader, class_};
            s.at = bytes + sizeof(ITEM) - 1;
            values[n] = make_document(state, &s, field->kind == F_REST ? has_field : NULL, &rest);
        } else if (field->required) {
            s.odd = ODD_FIELD;
        } else {
            values[n] = Py_NewRef(field->absent);
        }
        failed = !values[n];
    }
    if (!failed) {
        item = PyObject_Vectorcall(class_->item_class, values, (size_t)class_->count, NULL);
        if (!item) odd_unless_fatal(&s, ODD_ITEM);
    }
    for (Py_ssize_t n = 0; n < class_->count; n++) Py_XDECREF(values[n]);
    *why = s.odd;
    return item;
}

#endif
