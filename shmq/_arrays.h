/* _arrays.h: plain arrays to tensor headers and back, without Python code in between; part of _glue.h.
 *
 * A plain array is a dense numpy.ndarray of a dtype that both numpy and the buffer protocol have a name for.
 */
#ifndef SHMQ_ARRAYS_H
#define SHMQ_ARRAYS_H

#include <string.h>

#include "core.h"

static void *ndarray_type; /* numpy.ndarray; set by py_bind */

/* Describes a dense array of a native dtype by its buffer.  False for everything else. */
static int describe(const Py_buffer *v, shmq_tensor *t) {
    static const uint8_t by_size[2][9] = {{0, SHMQ_INT8, SHMQ_INT16, 0, SHMQ_INT32, 0, 0, 0, SHMQ_INT64},
                                          {0, SHMQ_UINT8, SHMQ_UINT16, 0, SHMQ_UINT32, 0, 0, 0, SHMQ_UINT64}};
    const char *f = v->format;
    memset(t, 0, sizeof *t);
    if (f == NULL || v->ndim > 11 || v->itemsize > 16) return 0;
    if (f[0] != '\0' && f[1] == '\0') {
        if (strchr("bhilq", f[0]) != NULL) t->dtype = by_size[0][v->itemsize];
        else if (strchr("BHILQ", f[0]) != NULL) t->dtype = by_size[1][v->itemsize];
        else if (f[0] == '?') t->dtype = SHMQ_BOOL;
        else if (f[0] == 'e') t->dtype = SHMQ_FLOAT16;
        else if (f[0] == 'f') t->dtype = SHMQ_FLOAT32;
        else if (f[0] == 'd') t->dtype = SHMQ_FLOAT64;
    } else if (f[0] == 'Z' && f[1] != '\0' && f[2] == '\0') {
        if (f[1] == 'f') t->dtype = SHMQ_COMPLEX64;
        else if (f[1] == 'd') t->dtype = SHMQ_COMPLEX128;
    }
    t->order = PyBuffer_IsContiguous(v, 'C') ? 'C' : PyBuffer_IsContiguous(v, 'F') ? 'F' : 0;
    t->ndim = (uint8_t)v->ndim;
    for (int i = 0; i < v->ndim; i++) t->shape[i] = (uint64_t)v->shape[i];
    return t->dtype != 0 && t->order != 0;
}

/* What np.ndarray wants for a header: made by tensor.py once, with all its checks, and remembered here, where the
 * next header with the same bytes finds it.  A place for each hash: who comes later takes the place.  Under the GIL. */
struct known_header {
    shmq_tensor header;
    PyObject *shape, *dtype, *order; /* NULL: a free place */
};

enum { KNOWN_HEADERS = 256 };

static struct known_header *place_of(const shmq_tensor *t) {
    static struct known_header known[KNOWN_HEADERS];
    uint64_t h = (uint64_t)t->dtype << 8 | (uint64_t)t->ndim << 4 | (t->order & 1u);
    for (int i = 0; i < 4; i++) h = (h ^ t->shape[i]) * UINT64_C(0x9e3779b97f4a7c15);
    return &known[h >> 56];
}

static void py_remember_header(const char *header, uintptr_t shape, uintptr_t dtype, uintptr_t order) {
    shmq_tensor t;
    memcpy(&t, header, sizeof t);
    struct known_header *k = place_of(&t), old = *k;
    k->header = t;
    k->shape = (PyObject *)shape;
    k->dtype = (PyObject *)dtype;
    k->order = (PyObject *)order;
    Py_INCREF(k->shape);
    Py_INCREF(k->dtype);
    Py_INCREF(k->order);
    Py_XDECREF(old.shape); /* last: what dies here may run code that comes back */
    Py_XDECREF(old.dtype);
    Py_XDECREF(old.order);
}

static int is_known(const shmq_tensor *t) {
    const struct known_header *k = place_of(t);
    return k->shape != NULL && memcmp(&k->header, t, sizeof *t) == 0;
}

/* The array over `payload` from its byte `at`; NULL without an error where the header is not known, or numpy
 * refuses, because the payload is too short for it: then tensor.py says what is wrong. */
static PyObject *array_over(const shmq_tensor *t, PyObject *payload, long at) {
    if (!is_known(t)) return NULL;
    struct known_header k =
        *place_of(t); /* our own references: the call may collect garbage, and that run code */
    PyObject *offset = PyLong_FromLong(at);
    PyObject *array = NULL;
    Py_INCREF(k.shape);
    Py_INCREF(k.dtype);
    Py_INCREF(k.order);
    if (offset != NULL)
        array = PyObject_CallFunctionObjArgs((PyObject *)ndarray_type, k.shape, k.dtype, payload, offset,
                                             Py_None, k.order, NULL);
    Py_XDECREF(offset);
    Py_DECREF(k.shape);
    Py_DECREF(k.dtype);
    Py_DECREF(k.order);
    if (array == NULL) PyErr_Clear();
    return array;
}

#endif
