/* Translates lines of an export in Ion text to lines of DynamoDB JSON.
 *
 * ion_text.py is its specification. What this does not take, it gives back to Python, a line at a time: so whatever is wrong with
 * a line, its reason is Python's. It takes nothing that Python refuses, and writes the same bytes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define MAX_DEPTH 100 /* as ion_text.py has it; DynamoDB's own limit is 32 */
#define MAX_WHOLE 126 /* digits of the greatest number, 9.99…E+125 */
#define MAX_PLACES 170 /* digits behind the point of the least one, 1E-130 with 38 digits, and a few */
#define MAX_NAMES 64

typedef struct {
    const unsigned char *at, *end;
    char *out; /* what was written, from `out` to `to` */
    char *to, *limit;
    char *heap; /* where `out` is, once it is not the stack's any more */
} Line;

#define FAIL return 0 /* not taken; with an exception only where memory has run out */

/* -- output ------------------------------------------------------------------------------------------------ */

static int grow(Line *line, size_t more) {
    size_t used = (size_t)(line->to - line->out), room = (size_t)(line->limit - line->out);
    if (more > PY_SSIZE_T_MAX / 4 || room > PY_SSIZE_T_MAX / 4) {
        PyErr_NoMemory();
        FAIL;
    }
    room = 2 * room + more;
    char *memory = PyMem_Realloc(line->heap, room);
    if (!memory) {
        PyErr_NoMemory();
        FAIL;
    }
    if (!line->heap) memcpy(memory, line->out, used);
    line->heap = line->out = memory;
    line->to = memory + used;
    line->limit = memory + room;
    return 1;
}

static inline int need(Line *line, size_t more) {
    return (size_t)(line->limit - line->to) >= more || grow(line, more);
}

static inline int put(Line *line, const void *text, size_t size) {
    if (!need(line, size)) FAIL;
    memcpy(line->to, text, size);
    line->to += size;
    return 1;
}

#define PUT(line, text) put(line, text, sizeof(text) - 1)

static int put_zeros(Line *line, size_t count) {
    if (!need(line, count)) FAIL;
    memset(line->to, '0', count);
    line->to += count;
    return 1;
}

static int put_unit(Line *line, unsigned unit) { /* a UTF-16 code unit, escaped */
    static const char digits[] = "0123456789abcdef";
    char text[6] = {'\\', 'u', digits[unit >> 12 & 15], digits[unit >> 8 & 15], digits[unit >> 4 & 15], digits[unit & 15]};
    return put(line, text, 6);
}

/* -- input ------------------------------------------------------------------------------------------------- */

static inline int peek(const Line *line) { return line->at < line->end ? *line->at : -1; }

static inline int is_space(int c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static inline int is_digit(int c) { return c >= '0' && c <= '9'; }

static inline int is_part(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' || is_digit(c);
}

static inline void space(Line *line) {
    while (line->at < line->end && is_space(*line->at)) line->at++;
}

static inline int take(Line *line, int c) {
    if (peek(line) != c) FAIL;
    line->at++;
    return 1;
}

static size_t word(Line *line) { /* the size of the identifier here, which is passed over */
    const unsigned char *start = line->at;
    while (line->at < line->end && is_part(*line->at)) line->at++;
    return (size_t)(line->at - start);
}

static inline int is_word(const unsigned char *start, size_t size, const char *text) {
    return size == strlen(text) && !memcmp(start, text, size);
}

/* -- texts ------------------------------------------------------------------------------------------------- */

static int hex(Line *line, int digits, unsigned long *value) {
    *value = 0;
    for (int n = 0; n < digits; n++) {
        int c = peek(line), digit;
        if (is_digit(c)) digit = c - '0';
        else if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
        else if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
        else FAIL;
        *value = *value << 4 | (unsigned long)digit;
        line->at++;
    }
    return 1;
}

static int escape(Line *line) { /* behind the backslash */
    unsigned long value;
    int c = peek(line);
    if (c < 0) FAIL;
    line->at++;
    switch (c) {
    case '"': return PUT(line, "\\\"");
    case '\\': return PUT(line, "\\\\");
    case '/': return PUT(line, "/");
    case '\'': return PUT(line, "'");
    case '?': return PUT(line, "?");
    case 'b': return PUT(line, "\\b");
    case 'f': return PUT(line, "\\f");
    case 'n': return PUT(line, "\\n");
    case 'r': return PUT(line, "\\r");
    case 't': return PUT(line, "\\t");
    case '0': return put_unit(line, 0);
    case 'a': return put_unit(line, 7);
    case 'v': return put_unit(line, 11);
    case 'x': return hex(line, 2, &value) && put_unit(line, (unsigned)value);
    case 'u': return hex(line, 4, &value) && put_unit(line, (unsigned)value);
    case 'U':
        if (!hex(line, 8, &value) || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) FAIL;
        if (value < 0x10000) return put_unit(line, (unsigned)value);
        value -= 0x10000;
        return put_unit(line, 0xd800 | (unsigned)(value >> 10)) && put_unit(line, 0xdc00 | (unsigned)(value & 0x3ff));
    }
    FAIL;
}

static int text(Line *line) { /* from its quote, which is the one that ends it, to behind that */
    int quote = *line->at++;
    if (!PUT(line, "\"")) FAIL;
    for (;;) {
        const unsigned char *start = line->at, *at = start;
        while (at < line->end && *at >= ' ' && *at != '"' && *at != '\'' && *at != '\\') at++;
        line->at = at;
        if (at > start && !put(line, start, (size_t)(at - start))) FAIL;
        if (at == line->end) FAIL;
        line->at++;
        if (*at == quote) return PUT(line, "\"");
        int done;
        switch (*at) {
        case '\\': done = escape(line); break;
        case '"': done = PUT(line, "\\\""); break;
        case '\'': done = PUT(line, "'"); break;
        case '\t': done = PUT(line, "\\t"); break;
        case '\f': done = PUT(line, "\\f"); break;
        case '\v': done = put_unit(line, 11); break;
        default: FAIL;
        }
        if (!done) FAIL;
    }
}

/* A name's bytes, where none of them is escaped; its size is that of the name, or -1. It is left behind the colon. */
static int name(Line *line, const unsigned char **start, Py_ssize_t *size) {
    int c = peek(line);
    const unsigned char *from = line->at;
    if (c == '\'' || c == '"') {
        if (c == '\'' && line->end - from >= 3 && from[1] == '\'' && from[2] == '\'') FAIL;
        char *before = line->to;
        size_t written = (size_t)(before - line->out);
        if (!text(line)) FAIL;
        *start = from + 1;
        *size = line->at - from - 2;
        if ((size_t)(line->to - line->out) - written != (size_t)*size + 2 || memchr(*start, '\\', (size_t)*size)) *size = -1;
    } else {
        if (!is_part(c) || is_digit(c)) FAIL;
        size_t length = word(line), digits = 1;
        if (is_word(from, length, "null") || is_word(from, length, "true") || is_word(from, length, "false") ||
            is_word(from, length, "nan"))
            FAIL;
        while (digits < length && is_digit(from[digits])) digits++;
        if (c == '$' && digits == length && length > 1) FAIL; /* the number of a symbol */
        *start = from;
        *size = (Py_ssize_t)length;
        if (!PUT(line, "\"") || !put(line, from, length) || !PUT(line, "\"")) FAIL;
    }
    space(line);
    if (!take(line, ':') || !PUT(line, ":")) FAIL;
    space(line);
    return 1;
}

/* -- values ------------------------------------------------------------------------------------------------ */

static int put_plain(Line *line, const unsigned char *whole, size_t wholes, const unsigned char *places, size_t count,
                     long exponent) {
    /* The digits of `whole` and of `places` together, times 10 to the `exponent`. */
    while (wholes && *whole == '0') whole++, wholes--;
    if (!wholes)
        while (count && *places == '0') places++, count--;
    size_t digits = wholes + count;
    if (exponent >= 0 && !digits) return PUT(line, "0");
    if (exponent >= 0 && digits + (size_t)exponent <= MAX_WHOLE)
        return put(line, whole, wholes) && put(line, places, count) && put_zeros(line, (size_t)exponent);
    if (exponent < 0 && exponent >= -MAX_PLACES && digits <= MAX_PLACES) {
        size_t behind = (size_t)-exponent;
        char all[MAX_PLACES];
        memcpy(all, whole, wholes);
        memcpy(all + wholes, places, count);
        if (digits <= behind) return PUT(line, "0.") && put_zeros(line, behind - digits) && put(line, all, digits);
        return put(line, all, digits - behind) && PUT(line, ".") && put(line, all + digits - behind, behind);
    }
    char power[32];
    int size = PyOS_snprintf(power, sizeof(power), "E%ld", exponent);
    if (!digits) return PUT(line, "0") && put(line, power, (size_t)size);
    return put(line, whole, wholes) && put(line, places, count) && put(line, power, (size_t)size);
}

static int number(Line *line) {
    if (!PUT(line, "\"")) FAIL;
    if (peek(line) == '-') {
        line->at++;
        if (!PUT(line, "-")) FAIL;
    }
    const unsigned char *whole = line->at, *places;
    while (is_digit(peek(line))) line->at++;
    size_t wholes = (size_t)(line->at - whole), count = 0;
    if (!wholes || (wholes > 1 && *whole == '0')) FAIL;
    places = line->at;
    if (peek(line) == '.') {
        places = ++line->at;
        while (is_digit(peek(line))) line->at++;
        count = (size_t)(line->at - places);
    }
    int c = peek(line);
    if (c == 'd' || c == 'D') {
        line->at++;
        int negative = peek(line) == '-';
        if (negative || peek(line) == '+') line->at++;
        long power = 0;
        const unsigned char *start = line->at;
        while (is_digit(peek(line))) {
            if (power > 99) FAIL; /* beyond 999 Python says what it is */
            power = 10 * power + (*line->at++ - '0');
        }
        if (line->at == start || line->at - start > 18 || count > 1000000) FAIL;
        if (!put_plain(line, whole, wholes, places, count, (negative ? -power : power) - (long)count)) FAIL;
    } else {
        if (!put(line, whole, wholes)) FAIL;
        if (count && (!PUT(line, ".") || !put(line, places, count))) FAIL;
    }
    return PUT(line, "\"");
}

static int blob(Line *line) { /* from its first brace */
    if (!take(line, '{') || !take(line, '{')) FAIL;
    space(line);
    const unsigned char *start = line->at;
    for (int c; (c = peek(line)) == '+' || c == '/' || (is_part(c) && c != '_' && c != '$'); line->at++) {}
    for (int n = 0; n < 2 && peek(line) == '='; n++) line->at++;
    size_t size = (size_t)(line->at - start);
    space(line);
    if (size % 4 || !take(line, '}') || !take(line, '}')) FAIL;
    return PUT(line, "\"") && put(line, start, size) && PUT(line, "\"");
}

static int element_of_set(Line *line, char letter) {
    int c = peek(line);
    if (letter == 'S') return c == '"' && text(line);
    return letter == 'N' ? number(line) : blob(line);
}

static int value(Line *line, int depth);

static int list(Line *line, int depth, char letter) { /* of a set, whose type has a letter; 0 for any values */
    if (!take(line, '[') || !PUT(line, "[")) FAIL;
    space(line);
    if (peek(line) == ']') {
        line->at++;
        return PUT(line, "]}");
    }
    for (;;) {
        if (!(letter ? element_of_set(line, letter) : value(line, depth + 1))) FAIL;
        space(line);
        if (peek(line) == ']') {
            line->at++;
            return PUT(line, "]}");
        }
        if (!take(line, ',') || !PUT(line, ",")) FAIL;
        space(line);
    }
}

static int set(Line *line) {
    const unsigned char *start = line->at;
    size_t size = word(line);
    if (size != 12 || memcmp(start, "$dynamodb_", 10) || start[11] != 'S') FAIL;
    char letter = (char)start[10];
    if (letter != 'S' && letter != 'N' && letter != 'B') FAIL;
    space(line);
    if (!take(line, ':') || !take(line, ':')) FAIL;
    space(line);
    char head[6] = {'{', '"', letter, 'S', '"', ':'};
    return put(line, head, 6) && list(line, 0, letter);
}

static int members(Line *line, int depth) { /* a struct, written as an object */
    const unsigned char *start;
    Py_ssize_t size;
    if (!take(line, '{') || !PUT(line, "{")) FAIL;
    space(line);
    if (peek(line) == '}') {
        line->at++;
        return PUT(line, "}");
    }
    for (;;) {
        if (!name(line, &start, &size) || !value(line, depth + 1)) FAIL;
        space(line);
        if (peek(line) == '}') {
            line->at++;
            return PUT(line, "}");
        }
        if (!take(line, ',') || !PUT(line, ",")) FAIL;
        space(line);
    }
}

static int value(Line *line, int depth) {
    if (depth > MAX_DEPTH) FAIL;
    int c = peek(line);
    switch (c) {
    case '"': return PUT(line, "{\"S\":") && text(line) && PUT(line, "}");
    case '[': return PUT(line, "{\"L\":") && list(line, depth, 0);
    case '$': return set(line);
    case '{':
        if (line->end - line->at >= 2 && line->at[1] == '{') return PUT(line, "{\"B\":") && blob(line) && PUT(line, "}");
        return PUT(line, "{\"M\":") && members(line, depth) && PUT(line, "}");
    case 'n': case 't': case 'f': {
        const unsigned char *start = line->at;
        size_t size = word(line);
        if (is_word(start, size, "null")) return peek(line) != '.' && PUT(line, "{\"NULL\":true}");
        if (is_word(start, size, "true")) return PUT(line, "{\"BOOL\":true}");
        return is_word(start, size, "false") && PUT(line, "{\"BOOL\":false}");
    }
    }
    return (c == '-' || is_digit(c)) && PUT(line, "{\"N\":") && number(line) && PUT(line, "}");
}

/* -- lines ------------------------------------------------------------------------------------------------- */

static int head(Line *line) { /* up to the item's own brace */
    space(line);
    if (peek(line) == '$') {
        const unsigned char *start = line->at;
        size_t size = word(line);
        if (!is_word(start, size, "$ion_1_0")) FAIL;
        space(line);
    }
    if (!take(line, '{')) FAIL;
    space(line);
    const unsigned char *start = line->at;
    size_t size = word(line);
    if (!is_word(start, size, "Item")) FAIL;
    space(line);
    if (!take(line, ':') || !PUT(line, "{\"Item\":")) FAIL;
    space(line);
    return peek(line) == '{' && !(line->end - line->at >= 2 && line->at[1] == '{');
}

static int tail(Line *line) { /* from behind the item */
    space(line);
    if (!take(line, '}')) FAIL;
    space(line);
    return line->at == line->end && PUT(line, "}");
}

static int whole(Line *line, PyObject *names) {
    (void)names;
    return head(line) && members(line, 0) && tail(line);
}

static int pass_over(Line *line) { /* a value, of which nothing but its end matters */
    Py_ssize_t depth = 0;
    for (; line->at < line->end; line->at++) {
        switch (*line->at) {
        case '"': case '\'': {
            int quote = *line->at++;
            while (line->at < line->end && *line->at != quote) line->at += 1 + (*line->at == '\\');
            if (line->at >= line->end) FAIL;
            break;
        }
        case '{': case '[': depth++; break;
        case '}': case ']':
            if (!depth) return 1;
            depth--;
            break;
        case ',':
            if (!depth) return 1;
        }
    }
    FAIL;
}

static int ends_well(const Line *line) { /* as a line does that nothing was cut off; it need not be read for that */
    const unsigned char *at = line->end;
    for (int n = 0; n < 2; n++) {
        while (at > line->at && is_space(at[-1])) at--;
        if (at == line->at || *--at != '}') return 0;
    }
    return 1;
}

static int some(Line *line, PyObject *names) { /* the attributes of some names; nothing behind the last of them is read */
    Py_ssize_t wanted = PyTuple_GET_SIZE(names);
    unsigned long long found = 0, all = wanted < MAX_NAMES ? (1ULL << wanted) - 1 : ~0ULL;
    if (wanted > MAX_NAMES || !head(line) || !take(line, '{') || !PUT(line, "{")) FAIL;
    space(line);
    while (found != all) {
        const unsigned char *start;
        Py_ssize_t size, n = 0, before = line->to - line->out;
        if (peek(line) == '}') break;
        if (found && !PUT(line, ",")) FAIL;
        if (!name(line, &start, &size) || size < 0) FAIL;
        while (n < wanted) {
            PyObject *each = PyTuple_GET_ITEM(names, n);
            if (PyBytes_GET_SIZE(each) == size && !memcmp(PyBytes_AS_STRING(each), start, (size_t)size)) break;
            n++;
        }
        if (n < wanted && !(found >> n & 1)) {
            if (!value(line, 1)) FAIL;
            found |= 1ULL << n;
        } else {
            line->to = line->out + before;
            if (!pass_over(line)) FAIL;
        }
        space(line);
        if (peek(line) == '}') break;
        if (!take(line, ',')) FAIL;
        space(line);
        if (peek(line) == '}') FAIL;
    }
    return ends_well(line) && PUT(line, "}}");
}

static PyObject *each(PyObject *lines, PyObject *fallback, int (*translate)(Line *, PyObject *), PyObject *names) {
    PyObject *fast = PySequence_Fast(lines, "lines are no sequence");
    if (!fast) return NULL;
    PyObject *made = PyList_New(0);
    for (Py_ssize_t n = 0; made && n < PySequence_Fast_GET_SIZE(fast); n++) {
        char stack[8192];
        PyObject *given = Py_NewRef(PySequence_Fast_GET_ITEM(fast, n)), *one = NULL;
        if (PyBytes_Check(given)) {
            const unsigned char *start = (const unsigned char *)PyBytes_AS_STRING(given);
            Line line = {start, start + PyBytes_GET_SIZE(given), stack, stack, stack + sizeof(stack), NULL};
            if (translate(&line, names)) one = PyBytes_FromStringAndSize(line.out, line.to - line.out);
            PyMem_Free(line.heap);
        }
        if (!one && !PyErr_Occurred()) one = PyObject_CallOneArg(fallback, given);
        Py_DECREF(given);
        if (!one || PyList_Append(made, one) < 0) Py_CLEAR(made);
        Py_XDECREF(one);
    }
    Py_DECREF(fast);
    return made;
}

PyDoc_STRVAR(items_doc, "items(lines, fallback, /)\n--\n\n"
"Translates lines; what is not taken, `fallback` translates, or raises.");

static PyObject *items(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *lines, *fallback;
    if (!PyArg_ParseTuple(args, "OO", &lines, &fallback)) return NULL;
    return each(lines, fallback, whole, NULL);
}

PyDoc_STRVAR(attributes_doc, "attributes(lines, names, fallback, /)\n--\n\n"
"Translates the attributes of some names, and reads no further than the last of them.");

static PyObject *attributes(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *lines, *names, *fallback;
    if (!PyArg_ParseTuple(args, "OO!O", &lines, &PyTuple_Type, &names, &fallback)) return NULL;
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(names); n++) {
        if (!PyBytes_CheckExact(PyTuple_GET_ITEM(names, n))) {
            PyErr_SetString(PyExc_ValueError, "a name is not bytes");
            return NULL;
        }
    }
    return each(lines, fallback, some, names);
}

static PyMethodDef methods[] = {
    {"items", items, METH_VARARGS, items_doc},
    {"attributes", attributes, METH_VARARGS, attributes_doc},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module) { return PyModule_AddIntMacro(module, INTERFACE); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "migration_pipeline.sources._ion",
    .m_doc = "Translates lines in Ion to DynamoDB JSON; migration_pipeline/sources/ion_text.py says what it takes.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__ion(void) { return PyModuleDef_Init(&module_def); }
