/* _glue.h: what the extension module adds to the C core for CPython; compiled into shmq._core only.
 *
 * Idea: one C call per put and per get, and the result made straight from shared memory.
 *
 * The GIL.  cffi releases it around every call, which costs about as much as a whole put.  Here it is kept: a
 * try never waits, and holding it makes every operation on a handle atomic among Python threads.  What may take
 * long (waits, copies of more than 64 KiB, mapping) releases it itself.
 *
 * Results.  cffi cannot return Python objects, so each handle has a box, a list that its Python owner keeps
 * alive; a call appends to it and the caller pops.  Everything in a box says by itself what it is, so two
 * threads that pop each other's results still hand every message out exactly once.
 *
 *     bytes                     a raw message
 *     (codec, payload)          in-line, payload a bytearray
 *     (codec, payload, meta)    in a block, payload a Lease or, for msgpack and pickle, bytes
 *
 * Python objects come in as their id(), which the caller keeps alive for the length of the call.
 */
#ifndef SHMQ_GLUE_H
#define SHMQ_GLUE_H

#include <string.h>

#include "core.h"

#ifdef Py_GIL_DISABLED
#error "shmq needs a CPython with the GIL"
#endif

/* Only for the wrappers that cffi generates below this header. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }

#define UNLOCK_ABOVE_BYTES (UINT64_C(64) << 10)
#define ARRAY_INLINE_BYTES 1024u /* arrays of up to this many bytes are copied, larger ones lie in blocks */
#define PART_ALIGNMENT UINT64_C(64)

/* ---- Lease: an object with the buffer protocol that ends the hold on a block when it dies ---- */

struct lease {
    PyObject_HEAD
    shmq_block *block;
};

static void lease_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    shmq_block_release(((struct lease *)self)->block);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int lease_getbuffer(PyObject *self, Py_buffer *view, int flags) {
    shmq_block *b = ((struct lease *)self)->block;
    return PyBuffer_FillInfo(view, self, b->data, (Py_ssize_t)b->bytes, 0, flags);
}

static PyObject *lease_type(void) {
    static PyObject *type; /* made once, under the GIL */
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, (void *)lease_dealloc},
        {Py_bf_getbuffer, (void *)lease_getbuffer},
        {Py_tp_doc, (void *)"Holds a block of shared memory; the memory goes back when this dies."},
        {0, NULL}};
    static PyType_Spec spec = {"shmq.Lease", sizeof(struct lease), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    if (type == NULL) type = PyType_FromSpec(&spec);
    return type;
}

/* Takes over the block, also on failure. */
static PyObject *lease_new(shmq_block *block) {
    PyObject *type = lease_type();
    struct lease *self = type == NULL ? NULL : PyObject_New(struct lease, (PyTypeObject *)type);
    if (self == NULL) {
        PyErr_Clear();
        shmq_block_release(block);
        return NULL;
    }
    self->block = block;
    return (PyObject *)self;
}

static void copy(void *to, const void *from, uint64_t bytes) {
    if (bytes > UNLOCK_ABOVE_BYTES) {
        PyThreadState *state = PyEval_SaveThread();
        memcpy(to, from, bytes);
        PyEval_RestoreThread(state);
    } else if (bytes > 0) {
        memcpy(to, from, bytes);
    }
}

/* ---- handles ---- */

static int py_create(int fd, const shmq_params *params, shmq_queue **queue) {
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_create(fd, params, queue);
    PyEval_RestoreThread(state);
    return status;
}

static int py_attach(int fd, shmq_queue **queue) {
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_attach(fd, queue);
    PyEval_RestoreThread(state);
    return status;
}

/* The name helps to find the object again after someone closed our descriptor. */
static void py_bind(shmq_queue *q, uintptr_t box, const char *name) {
    q->box = (void *)box;
    strncpy(q->segment.name, name, sizeof q->segment.name - 1);
}

/* Takes over the reference, also on failure. */
static int append(PyObject *list, PyObject *object) {
    int failed = object == NULL || PyList_Append(list, object) != 0;
    Py_XDECREF(object);
    if (failed) PyErr_Clear();
    return failed ? SHMQ_OUT_OF_SPACE : SHMQ_OK;
}

/* Blocks and loans of this handle that are still alive, views included. */
static unsigned py_held(shmq_queue *q) { return load32_acquire(&q->references) - 1; }

/* ---- put ---- */

/* A loan for a put that is to be published at once: no use without room in the ring. */
static int loan_to_put(shmq_queue *q, uint64_t bytes, shmq_block **block) {
    if (!shmq_spsc_room(&q->ring, &q->put.spsc, sizeof(uint64_t))) return SHMQ_FULL;
    return shmq_try_loan(q, bytes, block);
}

static int publish_and_release(shmq_queue *q, shmq_block *b, uint16_t codec, const void *meta,
                               uint32_t meta_bytes) {
    int status = shmq_put_begin(q); /* again: the GIL was away */
    if (status == SHMQ_OK) status = shmq_try_publish(b, codec, meta, meta_bytes, b->bytes);
    shmq_block_release(b);
    return status;
}

static int put_payload(shmq_queue *q, uint16_t codec, const void *meta, uint32_t meta_bytes,
                       const void *data, uint64_t bytes, uint64_t inline_limit) {
    shmq_block *b;
    int status = shmq_put_begin(q);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (SHMQ_LIKELY(meta_bytes + bytes <= inline_limit))
        return shmq_try_put_inline(q, codec, meta, meta_bytes, data, (uint32_t)bytes);
    if ((status = loan_to_put(q, bytes, &b)) != SHMQ_OK) return status;
    copy(b->data, data, bytes);
    return publish_and_release(q, b, codec, meta, meta_bytes);
}

static int py_put(shmq_queue *q, const char *data, size_t bytes) {
    return put_payload(q, SHMQ_RAW, NULL, 0, data, bytes, q->ring.inline_bytes);
}

static int py_put_as(shmq_queue *q, int codec, const char *data, size_t bytes) {
    return put_payload(q, (uint16_t)codec, NULL, 0, data, bytes, q->ring.inline_bytes);
}

static uint64_t array_inline_limit(const shmq_queue *q) {
    uint32_t limit = ARRAY_INLINE_BYTES + SHMQ_META_BYTES;
    return q->ring.inline_bytes < limit ? q->ring.inline_bytes : limit;
}

/* `array` exports a dense buffer, in C or Fortran order; `meta` is a shmq_tensor or empty. */
static int py_put_buffer(shmq_queue *q, int codec, const char *meta, size_t meta_bytes,
                         uintptr_t array) {
    Py_buffer view;
    if (PyObject_GetBuffer((PyObject *)array, &view, PyBUF_ANY_CONTIGUOUS) != 0) {
        PyErr_Clear();
        return SHMQ_INVALID;
    }
    int status = put_payload(q, (uint16_t)codec, meta, (uint32_t)meta_bytes, view.buf,
                             (uint64_t)view.len,
                             codec == SHMQ_TENSOR ? array_inline_limit(q) : q->ring.inline_bytes);
    PyBuffer_Release(&view);
    return status;
}

static uint64_t aligned(uint64_t n) { return (n + PART_ALIGNMENT - 1) & ~(PART_ALIGNMENT - 1); }

static void gather(uint8_t *to, const char *head, size_t head_bytes, const Py_buffer *views,
                   Py_ssize_t n) {
    uint64_t at = aligned(head_bytes);
    memcpy(to, head, head_bytes);
    for (Py_ssize_t i = 0; i < n; i++) {
        if (views[i].len > 0) memcpy(to + at, views[i].buf, (size_t)views[i].len);
        at += aligned((uint64_t)views[i].len);
    }
}

/* An envelope: `head`, then each array of the list, each at the next multiple of 64 bytes. */
static int py_put_envelope(shmq_queue *q, const char *head, size_t head_bytes, uintptr_t arrays) {
    PyObject *list = (PyObject *)arrays;
    Py_ssize_t n = PyList_Size(list), got = 0;
    Py_buffer *views = PyMem_Malloc(sizeof *views * (size_t)(n > 0 ? n : 1));
    uint64_t bytes = aligned(head_bytes);
    int status = views == NULL ? SHMQ_OUT_OF_SPACE : shmq_put_begin(q);
    for (; status == SHMQ_OK && got < n; got++) {
        if (PyObject_GetBuffer(PyList_GetItem(list, got), &views[got], PyBUF_ANY_CONTIGUOUS) != 0) {
            PyErr_Clear();
            status = SHMQ_INVALID;
            break;
        }
        bytes += aligned((uint64_t)views[got].len);
    }
    if (status == SHMQ_OK && bytes <= array_inline_limit(q)) {
        struct shmq_record r;
        status = shmq_spsc_try_reserve(&q->ring, &q->put.spsc, (uint32_t)bytes, SHMQ_ENVELOPE, 0, &r);
        if (status == SHMQ_OK) {
            gather(r.payload, head, head_bytes, views, n);
            shmq_put_commit(q, 1, bytes);
        }
    } else if (status == SHMQ_OK) {
        shmq_block *b;
        if ((status = loan_to_put(q, bytes, &b)) == SHMQ_OK) {
            PyThreadState *state = bytes > UNLOCK_ABOVE_BYTES ? PyEval_SaveThread() : NULL;
            gather(b->data, head, head_bytes, views, n);
            if (state != NULL) PyEval_RestoreThread(state);
            status = publish_and_release(q, b, SHMQ_ENVELOPE, NULL, 0);
        }
    }
    while (got > 0) PyBuffer_Release(&views[--got]);
    PyMem_Free(views);
    return status;
}

/* Puts the leading bytes objects of list[start:], all published by one store.  Stops at one that is not bytes
 * or too long to lie in the ring, and where the ring is full.  Returns how many, or -status if none. */
static Py_ssize_t py_put_many(shmq_queue *q, uintptr_t objects, Py_ssize_t start) {
    PyObject *list = (PyObject *)objects;
    Py_ssize_t n = PyList_Size(list), i = start;
    uint64_t bytes = 0;
    int status = shmq_put_begin(q);
    for (; status == SHMQ_OK && i < n; i++) {
        PyObject *item = PyList_GetItem(list, i); /* borrowed; nothing runs that could drop it */
        struct shmq_record r;
        if (!PyBytes_CheckExact(item)) break;
        Py_ssize_t len = PyBytes_Size(item);
        if ((uint64_t)len > q->ring.inline_bytes) break;
        status = shmq_spsc_try_reserve(&q->ring, &q->put.spsc, (uint32_t)len, SHMQ_RAW, 0, &r);
        if (status != SHMQ_OK) break;
        memcpy(r.payload, PyBytes_AsString(item), (size_t)len);
        bytes += (uint64_t)len;
    }
    if (i > start) shmq_put_commit(q, (uint64_t)(i - start), bytes);
    return i == start && status != SHMQ_OK ? -(Py_ssize_t)status : i - start;
}

static int py_wait_put(shmq_queue *q, uint32_t record_bytes, uint64_t block_bytes,
                       int64_t deadline_ns) {
    shmq_pin(q);
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_wait_put(q, record_bytes, block_bytes, deadline_ns);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return status;
}

/* ---- loan ---- */

/* `list` gets the loan as a Lease. */
static int py_loan(shmq_queue *q, uint64_t bytes, uintptr_t list) {
    shmq_block *b;
    int status = shmq_put_begin(q);
    if (status == SHMQ_OK) status = shmq_try_loan(q, bytes, &b);
    return status == SHMQ_OK ? append((PyObject *)list, lease_new(b)) : status;
}

static int py_publish(uintptr_t lease, int codec, const char *meta, size_t meta_bytes) {
    shmq_block *b = ((struct lease *)lease)->block;
    int status = shmq_put_begin(b->queue);
    if (status == SHMQ_OK)
        status = shmq_try_publish(b, (uint16_t)codec, meta, (uint32_t)meta_bytes, b->bytes);
    return status;
}

static void py_discard(uintptr_t lease) { shmq_block_give_back(((struct lease *)lease)->block); }

/* ---- get ---- */

/* (codec, payload[, meta]); takes over the references, also on failure. */
static PyObject *labelled(uint16_t codec, PyObject *payload, PyObject *meta, int with_meta) {
    PyObject *number = PyLong_FromLong(codec);
    PyObject *result = NULL;
    if (number != NULL && payload != NULL && (meta != NULL || !with_meta))
        result = with_meta ? PyTuple_Pack(3, number, payload, meta) : PyTuple_Pack(2, number, payload);
    Py_XDECREF(number);
    Py_XDECREF(payload);
    Py_XDECREF(meta);
    return result;
}

/* Delivers a peeked record that lies in a block, and releases it.  Arrays keep the block, the rest is copied
 * out: msgpack, pickle and bytes become objects of their own anyway. */
static int take_block(shmq_queue *q, const struct shmq_record *r, const struct shmq_spsc_side *before) {
    const struct shmq_block_header *h;
    shmq_block *b;
    int status = shmq_try_lease(q, r, &b, &h);
    if (status != SHMQ_OK) {
        q->get.spsc = *before;
        return status;
    }
    int is_array = r->codec == SHMQ_TENSOR || r->codec == SHMQ_ENVELOPE;
    uint32_t meta_bytes = h->meta_bytes <= SHMQ_META_BYTES ? h->meta_bytes : 0;
    uint64_t bytes = b->bytes;
    PyObject *object = NULL;
    PyObject *meta = PyBytes_FromStringAndSize((const char *)h->meta, (Py_ssize_t)meta_bytes);
    PyObject *payload = is_array ? NULL : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    /* No message is lost for want of memory: the block goes back in flight. */
    if (meta == NULL || (!is_array && payload == NULL)) {
        PyErr_Clear();
        Py_XDECREF(meta);
        Py_XDECREF(payload);
        shmq_unlease(b, r);
        q->get.spsc = *before;
        return SHMQ_OUT_OF_SPACE;
    }
    shmq_taken(q, 1, bytes);
    if (is_array) {
        payload = lease_new(b);
    } else {
        copy(PyBytes_AsString(payload), b->data, bytes);
        shmq_block_release(b);
    }
    if (r->codec == SHMQ_RAW) {
        object = payload;
        Py_DECREF(meta);
    } else {
        object = labelled(r->codec, payload, meta, 1);
    }
    return append((PyObject *)q->box, object);
}

static PyObject *from_record(const struct shmq_record *r) {
    if (SHMQ_LIKELY(r->codec == SHMQ_RAW))
        return PyBytes_FromStringAndSize((const char *)r->payload, (Py_ssize_t)r->bytes);
    return labelled(r->codec, PyByteArray_FromStringAndSize((const char *)r->payload, (Py_ssize_t)r->bytes),
                    NULL, 0);
}

/* Takes the next message into the box.  1: done; else -status.  Never sleeps; `spin`: may look for about a
 * microsecond. */
static int take(shmq_queue *q, int spin) {
    struct shmq_record r;
    int status = shmq_get_begin(q);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return -status;
    struct shmq_spsc_side before = q->get.spsc;
    status = shmq_try_next(q, &r);
    if (status == SHMQ_EMPTY && spin && shmq_spin_get(q)) status = shmq_try_next(q, &r);
    if (status != SHMQ_OK) return -status;
    if (SHMQ_UNLIKELY((r.flags & SHMQ_RECORD_BLOCK) != 0)) {
        status = take_block(q, &r, &before);
        return status == SHMQ_OK ? 1 : -status;
    }
    status = append((PyObject *)q->box, from_record(&r));
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) {
        q->get.spsc = before;
        return -status;
    }
    shmq_taken(q, 1, r.bytes);
    return 1;
}

static int py_take(shmq_queue *q) { return take(q, 1); }
static int py_try_take(shmq_queue *q) { return take(q, 0); }

/* Takes up to `max` messages into the box, the in-line ones of a run released by one store.  Returns how many,
 * or -status if none.  A block's record must be at the head while it is leased (recover.c), so what came
 * before it is released first. */
static Py_ssize_t py_take_many(shmq_queue *q, Py_ssize_t max) {
    Py_ssize_t done = 0, run = 0;
    uint64_t bytes = 0;
    int status = shmq_get_begin(q);
    while (status == SHMQ_OK && done + run < max) {
        struct shmq_spsc_side before = q->get.spsc;
        struct shmq_record r;
        status = shmq_try_next(q, &r);
        if (status != SHMQ_OK) break;
        if ((r.flags & SHMQ_RECORD_BLOCK) != 0) {
            if (run > 0) {
                q->get.spsc = before;
                shmq_taken(q, (uint64_t)run, bytes);
                done += run;
                run = 0;
                bytes = 0;
                continue;
            }
            status = take_block(q, &r, &before);
            if (status == SHMQ_OK) done += 1;
        } else if ((status = append((PyObject *)q->box, from_record(&r))) == SHMQ_OK) {
            bytes += r.bytes;
            run += 1;
        } else {
            q->get.spsc = before;
        }
    }
    if (run > 0) shmq_taken(q, (uint64_t)run, bytes);
    done += run;
    return done == 0 ? -(Py_ssize_t)status : done;
}

static int py_wait_get(shmq_queue *q, int64_t deadline_ns) {
    shmq_pin(q);
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_wait_get(q, deadline_ns);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return status;
}

#endif
