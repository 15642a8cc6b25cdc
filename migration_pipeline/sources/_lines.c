/* The accelerator of a full export's lines: routes them, and makes Items of those that a route takes.
 *
 * dynamodb_json.py and transform.py are its specification. What it does not understand completely it hands to them, a line at
 * a time; docs/accelerator.md says why the results are the same. */
#include "_lines_values.h"

/* -- what a reader knows of a profile -------------------------------------------------------------- */

enum { TEXT, PREFIX, NUMBER, BOOLEAN }; /* what a condition compares with */

typedef struct {
    int key, kind;
    PyObject *constant; /* bytes */
} Condition;

typedef struct {
    Py_ssize_t class_; /* -1: counted, not taken */
    Py_ssize_t count;
    Condition *conditions;
} Rule;

typedef enum { F_TEXT, F_INTEGER, F_DECIMAL, F_TIME, F_SECONDS, F_MILLIS, F_BOOL, F_BYTES, F_SET, F_INTEGERS, F_DOCUMENT,
               F_LIST, F_ANY, F_WHOLE, F_REST, F_OTHER, F_KINDS } Kind;

typedef struct {
    int name; /* -1: all attributes, or the rest */
    int types; /* bits of the types that it accepts */
    Kind kind;
    int optional, required;
    PyObject *absent; /* what it is without its attribute */
    PyObject *convert; /* from the raw value, where the kind is F_OTHER or the spelling unusual */
} Field;

typedef struct {
    PyObject *item_class, *fallback;
    Py_ssize_t count; /* -1: its Items are made in Python */
    Field *fields;
    short *field_of; /* by name: the field that reads it, or -1 */
} Class;

typedef struct {
    PyObject_HEAD
    Py_ssize_t names, keys, rules, classes, widest;
    PyObject **name; /* bytes; the routing attributes first */
    char *typed;
    Rule *rule;
    Class *class_;
    PyObject *which;
    Py_ssize_t slots; /* of the hash table: a power of 2 */
    short *slot;
} Reader;

static unsigned hash_name(const char *name, size_t size) {
    unsigned hash = 2166136261u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    return hash ^ hash >> 15;
}

/* The number of a name; -1 if no route or field has it. */
static int name_of(const Reader *reader, const char *name, size_t size) {
    for (unsigned at = hash_name(name, size);; at++) {
        int found = reader->slot[at & (reader->slots - 1)];
        if (found < 0) return -1;
        PyObject *known = reader->name[found];
        if ((size_t)PyBytes_GET_SIZE(known) == size && memcmp(PyBytes_AS_STRING(known), name, size) == 0) return found;
    }
}

/* -- without the GIL: where the attributes are, and which rule takes the line ------------------------ */

typedef struct {
    uint32_t from, text, size, to;
    short name;
    unsigned char type, flags;
} Place;

typedef struct {
    Py_ssize_t first, count; /* of its places */
    Py_ssize_t rule; /* the number of rules: none takes it */
    Odd odd;
} Routed;

typedef struct {
    Place *places;
    Py_ssize_t count, room;
    Py_ssize_t *at; /* by name: its place in this line */
    uint32_t *stamp; /* by name: the last line that has it */
} Work;

static const char ITEM[] = "{\"Item\":";

/* Whether the decimal text is the only spelling of its whole number. */
static int canonical(const char *p, size_t size) {
    size_t i = size > 1 && *p == '-';
    if (size == i || (p[i] == '0' && size > 1)) return 0;
    for (; i < size; i++)
        if (p[i] < '0' || p[i] > '9') return 0;
    return 1;
}

static int holds(const Reader *reader, const Condition *condition, const char *line, const Place *place) {
    const char *constant = PyBytes_AS_STRING(condition->constant);
    size_t size = (size_t)PyBytes_GET_SIZE(condition->constant);
    /* What is there as a type that no rule compares is "", as what is missing. */
    int text = !place || place->type == T_S ||
               !(reader->typed[condition->key] && (place->type == T_N || place->type == T_BOOL));
    int none = !place || place->type != T_S;
    size_t length = text ? (none ? 0 : place->size) : place->size;
    switch (condition->kind) {
    case TEXT: return text && length == size && (none || memcmp(line + place->text, constant, size) == 0);
    case PREFIX: return text && length >= size && (none || memcmp(line + place->text, constant, size) == 0);
    case NUMBER: return place && place->type == T_N && length == size && memcmp(line + place->text, constant, size) == 0;
    default: return place && place->type == T_BOOL && place->size == (size_t)(*constant == '1');
    }
}

static Odd route_line(const Reader *reader, Work *work, Routed *routed, const char *line, size_t size, uint32_t stamp) {
    Scan s = {line, line + size, 0, FINE};
    if (size > UINT32_MAX / 2) return ODD_SHAPE;
    if (!EAT(&s, ITEM) || !EAT(&s, "{")) return ODD_SHAPE;
    for (int more = !next_is(&s, '}'); more;) {
        const char *text;
        size_t length;
        unsigned flags;
        Value value;
        if (!scan_string(&s, &text, &length, &flags)) return s.odd;
        if (flags & ESCAPED) return ODD_NAME;
        if (!EAT(&s, ":") || !scan_value(&s, &value, 0)) return s.odd;
        int name = name_of(reader, text, length);
        if (name >= 0) {
            if (work->stamp[name] == stamp) return ODD_TWIN;
            work->stamp[name] = stamp;
            if (work->count == work->room) {
                Py_ssize_t room = work->room * 2;
                Place *grown = PyMem_RawRealloc(work->places, (size_t)room * sizeof(Place));
                if (!grown) return ODD_ITEM; /* Python will say that there is no memory */
                work->places = grown;
                work->room = room;
            }
            work->at[name] = work->count;
            work->places[work->count++] = (Place){
                (uint32_t)(value.from - line), (uint32_t)(value.text - line), (uint32_t)value.size,
                (uint32_t)(value.to - line), (short)name, value.type, value.flags};
            if (name < reader->keys) {
                if (value.type == T_S && value.flags & ESCAPED) return ODD_KEY;
                if (value.type == T_N && reader->typed[name] && !canonical(value.text, value.size)) return ODD_KEY;
            }
        }
        more = next_is(&s, ',');
        if (more) s.at++;
    }
    if (!EAT(&s, "}}") || s.at != s.end) return ODD_SHAPE;
    if (s.seen & NOT_ASCII && !valid_utf8((const unsigned char *)line, (const unsigned char *)line + size)) return ODD_STRING;
    for (routed->rule = 0; routed->rule < reader->rules; routed->rule++) {
        const Rule *rule = &reader->rule[routed->rule];
        Py_ssize_t n = 0;
        for (; n < rule->count; n++) {
            int key = rule->conditions[n].key;
            if (!holds(reader, &rule->conditions[n], line, work->stamp[key] == stamp ? &work->places[work->at[key]] : NULL)) break;
        }
        if (n == rule->count) break;
    }
    return FINE;
}

static void route_lines(const Reader *reader, Work *work, Routed *routed, PyObject **lines, Py_ssize_t count) {
    for (Py_ssize_t n = 0; n < count; n++) {
        Routed *one = &routed[n];
        one->first = work->count;
        one->odd = route_line(reader, work, one, PyBytes_AS_STRING(lines[n]), (size_t)PyBytes_GET_SIZE(lines[n]), (uint32_t)n + 1);
        /* The places of lines that become no Item here are of no more use. */
        if (one->odd != FINE || one->rule == reader->rules || reader->rule[one->rule].class_ < 0 ||
            reader->class_[reader->rule[one->rule].class_].count < 0)
            work->count = one->first;
        one->count = work->count - one->first;
    }
}

/* -- with the GIL: Items ----------------------------------------------------------------------------- */

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

/* Makes the Item of a line, or hands it to Python; `why` is set then. */
static PyObject *make_item(State *state, const Reader *reader, const Class *class_, PyObject *line, const Place *places,
                           Py_ssize_t count, PyObject **values, Odd *why) {
    const char *bytes = PyBytes_AS_STRING(line);
    Scan s = {bytes, bytes + PyBytes_GET_SIZE(line), 0, FINE};
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
    return item || s.odd == FINE ? item : PyObject_CallOneArg(class_->fallback, line);
}

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
    PyObject *taken, *places, *items, *unrouted;
    Py_ssize_t *counts;
    Py_ssize_t odd[ODD_REASONS];
} Found;

static int collect_line(State *state, const Reader *reader, const Work *work, Routed *routed, PyObject *line, PyObject *number,
                        PyObject **values, Found *found) {
    Py_ssize_t rule = routed->rule;
    found->odd[routed->odd]++;
    if (routed->odd != FINE) {
        PyObject *which = PyObject_CallOneArg(reader->which, line);
        if (!which) return -1;
        rule = PyLong_AsSsize_t(which);
        Py_DECREF(which);
        if (PyErr_Occurred()) return -1;
        if (rule < 0 || rule > reader->rules) {
            PyErr_SetString(PyExc_ValueError, "there is no such rule");
            return -1;
        }
    }
    if (rule == reader->rules) return PyList_Append(found->unrouted, line);
    Py_ssize_t number_of = reader->rule[rule].class_;
    if (number_of < 0) {
        found->counts[rule]++;
        return 0;
    }
    if (PyList_Append(PyList_GET_ITEM(found->taken, rule), line) < 0 ||
        PyList_Append(PyList_GET_ITEM(found->places, rule), number) < 0)
        return -1;
    const Class *class_ = &reader->class_[number_of];
    if (class_->count < 0) return 0;
    PyObject *item;
    if (routed->odd != FINE) {
        item = PyObject_CallOneArg(class_->fallback, line);
    } else {
        Odd why = FINE;
        item = make_item(state, reader, class_, line, work->places + routed->first, routed->count, values, &why);
        if (why != FINE) found->odd[FINE]--, found->odd[why]++;
    }
    if (!item) return -1;
    int failed = PyList_Append(PyList_GET_ITEM(found->items, rule), item);
    Py_DECREF(item);
    return failed;
}

static PyObject *told(const Reader *reader, const Found *found) {
    PyObject *counts = PyList_New(reader->rules), *odd = PyDict_New(), *result = NULL;
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
    if (counts && odd) result = PyTuple_Pack(6, found->taken, found->places, counts, found->unrouted, found->items, odd);
done:
    Py_XDECREF(counts);
    Py_XDECREF(odd);
    return result;
}

PyDoc_STRVAR(read_doc, "read(lines, numbers)\n--\n\n"
"Route lines, with their numbers, and make Items of those that a rule with a function takes.\n\n"
"Gives lists of lines, and of numbers, for each rule; counts for each; the lines that no rule takes; lists of Items for\n"
"each rule, empty where Python makes them; and how many lines Python judged, by reason. Raises what Python raises for one.");

static PyObject *reader_read(PyObject *self, PyTypeObject *defining, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    State *state = PyType_GetModuleState(defining);
    Reader *reader = (Reader *)self;
    if (nargs != 2 || (kwnames && PyTuple_GET_SIZE(kwnames))) {
        PyErr_SetString(PyExc_TypeError, "read takes lines and numbers");
        return NULL;
    }
    /* Tuples, so that nobody can change them while the GIL is not held. */
    PyObject *lines = PySequence_Tuple(args[0]), *numbers = lines ? PySequence_Tuple(args[1]) : NULL, *result = NULL;
    Py_ssize_t count = lines ? PyTuple_GET_SIZE(lines) : 0;
    Found found = {0};
    Work work = {0};
    Routed *routed = NULL;
    PyObject **values = NULL, **line;
    if (!numbers) goto done;
    line = ((PyTupleObject *)lines)->ob_item;
    if (PyTuple_GET_SIZE(numbers) != count || count > UINT32_MAX / 2) {
        PyErr_SetString(PyExc_ValueError, "there is not one number for each line");
        goto done;
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        if (!PyBytes_CheckExact(line[n])) {
            PyErr_SetString(PyExc_TypeError, "a line is not bytes");
            goto done;
        }
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
    found.taken = lists(reader->rules);
    found.places = lists(reader->rules);
    found.items = lists(reader->rules);
    found.unrouted = PyList_New(0);
    if (!found.taken || !found.places || !found.items || !found.unrouted) goto done;
    Py_BEGIN_ALLOW_THREADS
    route_lines(reader, &work, routed, line, count);
    Py_END_ALLOW_THREADS
    for (Py_ssize_t n = 0; n < count; n++)
        if (collect_line(state, reader, &work, &routed[n], line[n], PyTuple_GET_ITEM(numbers, n), values, &found) < 0) goto done;
    result = told(reader, &found);
done:
    PyMem_RawFree(work.places);
    PyMem_Free(work.at);
    PyMem_Free(work.stamp);
    PyMem_Free(routed);
    PyMem_Free(values);
    PyMem_Free(found.counts);
    Py_XDECREF(found.taken);
    Py_XDECREF(found.places);
    Py_XDECREF(found.items);
    Py_XDECREF(found.unrouted);
    Py_XDECREF(lines);
    Py_XDECREF(numbers);
    return result;
}

/* -- the type ------------------------------------------------------------------------------------------- */

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
        class_->count = fields == Py_None ? -1 : 0;
        reader->classes = n + 1;
        if (!(class_->field_of = room(reader->names, sizeof(short)))) return -1;
        for (Py_ssize_t name = 0; name < reader->names; name++) class_->field_of[name] = -1;
        if (fields == Py_None) continue;
        if (!PyTuple_CheckExact(fields)) return refuse("fields are not a tuple");
        if (take_fields(reader, class_, fields) < 0) return -1;
    }
    return 0;
}

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
    return PyModule_AddType(module, state->reader);
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
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__lines(void) { return PyModuleDef_Init(&module_def); }
