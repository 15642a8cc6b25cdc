/* What a reader knows of a profile; and, without the GIL, where the attributes of lines are and which rule takes each. */
#ifndef MIGRATION_LINES_ROUTES_H
#define MIGRATION_LINES_ROUTES_H

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
    Py_ssize_t count;
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
    const char *at;
    size_t size;
    PyObject *bytes; /* NULL until somebody needs it */
    Py_ssize_t rule; /* the one that took it, or -1 */
} Line;

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

static void route_lines(const Reader *reader, Work *work, Routed *routed, const Line *lines, Py_ssize_t count) {
    for (Py_ssize_t n = 0; n < count; n++) {
        Routed *one = &routed[n];
        one->first = work->count;
        one->odd = route_line(reader, work, one, lines[n].at, lines[n].size, (uint32_t)n + 1);
        /* The places of lines that become no Item here are of no more use. */
        if (one->odd != FINE || one->rule == reader->rules || reader->rule[one->rule].class_ < 0) work->count = one->first;
        one->count = work->count - one->first;
    }
}

#endif
