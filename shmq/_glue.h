/* _glue.h: what the extension module adds to the C core for CPython; compiled into shmq._core only.
 *
 * Idea: one C call per put and per get, and the result made straight from shared memory.
 *
 * The GIL.  cffi releases it around every call, which costs about as much as a whole put.  Here it is kept: a
 * try never waits, and holding it makes its steps on a handle's private state atomic among Python threads.  What
 * may take long (waits, copies of more than 64 KiB, mapping) releases it, and asks again afterwards whether the
 * handle may go on.  For the same reason nothing between a peek and its release may run Python code.
 *
 * The hot three.  A put of bytes or of a plain array, a take and a take of many are built-in functions bound to
 * their handle (py_bind makes them), because cffi's conversion of three arguments costs more than the put itself
 * and it cannot return objects.  Everything else is an ordinary cffi function.
 *
 *     put(obj)         None: done; > 0: status; PY_ENCODE: not bytes or a plain array, encode it in Python
 *     take(wait)       a message, or an int, the status.  True: waits, up to 100 ms; False: may look for about a
 *                      microsecond, never sleeps
 *     try_take()       the same, without looking twice
 *     take_many(n)     a list of bytes; or (list,), a mixed one; or an int, the status
 *
 * A message is bytes (raw), a numpy.ndarray (a plain array whose header was met before, see _arrays.h), or a tuple
 * that starts with codec and payload:
 *
 *     (codec, payload)                        what lay in-line; payload is a bytearray (topic: bytes)
 *     (codec, payload, meta)                  what lay in a block; payload is a Lease for arrays, else bytes
 *     (ENVELOPE, payload, table, body, at)    from either; the arrays start at the payload's byte `at`
 *
 * Python objects come in as their id(), which the caller keeps alive for the length of the call.
 */
#ifndef SHMQ_GLUE_H
#define SHMQ_GLUE_H

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "_arrays.h"
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
#define PY_ENCODE (-1)

/* ---- Lease: an object with the buffer protocol that ends the hold on a block when it dies ---- */

struct lease {
    PyObject_HEAD shmq_block *block;
    uint8_t meta[SHMQ_META_BYTES]; /* a loan's: what it will be published as */
    uint32_t meta_bytes;
    uint16_t codec;
    uint16_t read_only; /* a topic's: others read it, too */
};

static void lease_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    shmq_block_release(((struct lease *)self)->block);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int lease_getbuffer(PyObject *self, Py_buffer *view, int flags) {
    shmq_block *b = ((struct lease *)self)->block;
    return PyBuffer_FillInfo(view, self, b->data, (Py_ssize_t)b->bytes, ((struct lease *)self)->read_only,
                             flags);
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

/* Takes over the block.  NULL where memory ran out: then it is still the caller's. */
static PyObject *lease_new(shmq_block *block) {
    PyObject *type = lease_type();
    struct lease *self = type == NULL ? NULL : PyObject_New(struct lease, (PyTypeObject *)type);
    if (self != NULL) {
        self->block = block;
        self->read_only = 0;
    }
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

/* In a forked child: a handle of its own on the parent's segment, also where its name is gone. */
static int py_reattach(const shmq_queue *inherited, shmq_queue **queue) {
    errno = 0;
    int fd = shmq_segment_reopen(&inherited->segment);
    if (fd < 0) {
        if (errno != EMFILE && errno != ENFILE) errno = 0; /* it cannot be found any more */
        return SHMQ_SYSTEM;
    }
    int status = py_attach(fd, queue);
    close(fd);
    return status;
}

/* Takes over the reference, also on failure. */
static int append(PyObject *list, PyObject *object) {
    int failed = object == NULL || PyList_Append(list, object) != 0;
    Py_XDECREF(object);
    if (failed) PyErr_Clear();
    return failed ? SHMQ_OUT_OF_SPACE : SHMQ_OK;
}

/* Loans and leases of this handle that are still alive. */
static unsigned py_held(shmq_queue *q) { return load32_acquire(&q->held); }

/* ---- put ---- */

/* `urgent`, in what follows: the lane, see lanes.c.  Threads share a handle, so the handle has it only while the GIL is
 * kept (q->put.ring.urgent, else 0); beyond that the block has it. */

/* A loan for a put that is to be published at once: no use without room in the ring. */
static int loan_to_put(shmq_queue *q, int urgent, uint64_t bytes, shmq_block **block) {
    uint64_t wish = shmq_ring_wish(&q->ring, &q->put.ring, (uint32_t)urgent);
    if (!shmq_ring_room(&q->ring, wish, sizeof(uint64_t))) return SHMQ_FULL;
    int status = shmq_try_loan(q, bytes, block);
    if (status == SHMQ_OK) (*block)->urgent = (uint32_t)urgent;
    return status;
}

SHMQ_APART static int put_inline_as(shmq_queue *q, int urgent, uint64_t key, uint16_t codec, const void *meta,
                                    uint32_t meta_bytes, const void *data, uint32_t bytes) {
    int status = shmq_key_begin(q, key);
    if (status != SHMQ_OK) return status;
    q->put.ring.urgent = (uint32_t)urgent;
    status = shmq_try_put_inline(q, codec, meta, meta_bytes, data, bytes);
    q->put.ring.urgent = 0;
    shmq_key_end(q);
    return status;
}

/* With a key, 0: none.  Its turn (keys.c) ends before the GIL may be given away. */
static int publish_with(shmq_block *b, uint64_t key, uint16_t codec, const void *meta, uint32_t meta_bytes) {
    int status = shmq_put_begin(b->queue);
    if (status == SHMQ_OK) status = shmq_key_begin(b->queue, key);
    if (status != SHMQ_OK) return status;
    status = shmq_try_publish(b, codec, meta, meta_bytes, b->bytes);
    shmq_key_end(b->queue);
    return status;
}

static int publish_and_release(shmq_block *b, uint64_t key, uint16_t codec, const void *meta,
                               uint32_t meta_bytes) {
    int status =
        publish_with(b, key, codec, meta, meta_bytes); /* asks whether it may, again: the GIL was away */
    shmq_block_release(b);
    return status;
}

static int put_payload(shmq_queue *q, int urgent, uint64_t key, uint16_t codec, const void *meta,
                       uint32_t meta_bytes, const void *data, uint64_t bytes, uint64_t inline_limit) {
    shmq_block *b;
    int status = shmq_put_begin(q);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (SHMQ_LIKELY(meta_bytes + bytes <= inline_limit)) {
        if (SHMQ_UNLIKELY(((uint64_t)urgent | key) != 0))
            return put_inline_as(q, urgent, key, codec, meta, meta_bytes, data, (uint32_t)bytes);
        return shmq_try_put_inline(q, codec, meta, meta_bytes, data, (uint32_t)bytes);
    }
    if (shmq_key_known(q, key)) return SHMQ_REPEAT;
    if ((status = loan_to_put(q, urgent, bytes, &b)) != SHMQ_OK) return status;
    copy(b->data, data, bytes);
    return publish_and_release(b, key, codec, meta, meta_bytes);
}

static int py_put_as(shmq_queue *q, int urgent, int codec, const char *data, size_t bytes, uint64_t key) {
    return put_payload(q, urgent, key, (uint16_t)codec, NULL, 0, data, bytes, q->ring.inline_bytes);
}

static uint64_t array_inline_limit(const shmq_queue *q) {
    uint32_t limit = ARRAY_INLINE_BYTES + SHMQ_META_BYTES;
    return q->ring.inline_bytes < limit ? q->ring.inline_bytes : limit;
}

/* `array` exports a dense buffer, in C or Fortran order; `meta` is a shmq_tensor or empty. */
static int py_put_buffer(shmq_queue *q, int urgent, int codec, const char *meta, size_t meta_bytes,
                         uintptr_t array, uint64_t key) {
    Py_buffer view;
    if (PyObject_GetBuffer((PyObject *)array, &view, PyBUF_ANY_CONTIGUOUS) != 0) {
        PyErr_Clear();
        return SHMQ_INVALID;
    }
    int status =
        put_payload(q, urgent, key, (uint16_t)codec, meta, (uint32_t)meta_bytes, view.buf, (uint64_t)view.len,
                    codec == SHMQ_TENSOR ? array_inline_limit(q) : q->ring.inline_bytes);
    PyBuffer_Release(&view);
    return status;
}

/* One plain array: any exporter whose type the caller knows to be numpy's. */
static int put_array(shmq_queue *q, PyObject *array) {
    Py_buffer view;
    shmq_tensor t;
    if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO) != 0) {
        PyErr_Clear();
        return PY_ENCODE;
    }
    int status = PY_ENCODE;
    if (describe(&view, &t))
        status = put_payload(q, 0, 0, SHMQ_TENSOR, &t, sizeof t, view.buf, (uint64_t)view.len,
                             array_inline_limit(q));
    PyBuffer_Release(&view);
    return status;
}

static uint64_t aligned(uint64_t n) { return (n + PART_ALIGNMENT - 1) & ~(PART_ALIGNMENT - 1); }

/* What an envelope is made of: bytes before the arrays, then the arrays, each at a multiple of 64. */
struct parts {
    const void *pieces[3];
    size_t piece_bytes[3];
    Py_buffer *views;
    Py_ssize_t count;
    uint64_t bytes;
};

static void gather(uint8_t *to, const struct parts *p) {
    uint64_t at = 0;
    for (int i = 0; i < 3; i++) {
        if (p->piece_bytes[i] > 0) memcpy(to + at, p->pieces[i], p->piece_bytes[i]);
        at += p->piece_bytes[i];
    }
    for (Py_ssize_t i = 0; i < p->count; i++) {
        at = aligned(at);
        if (p->views[i].len > 0) memcpy(to + at, p->views[i].buf, (size_t)p->views[i].len);
        at += (uint64_t)p->views[i].len;
    }
}

static int put_gathered(shmq_queue *q, int urgent, uint64_t key, const struct parts *p) {
    int status = shmq_put_begin(q);
    if (status != SHMQ_OK) return status;
    if (p->bytes <= array_inline_limit(q)) {
        struct shmq_record r;
        if ((status = shmq_key_begin(q, key)) != SHMQ_OK) return status;
        q->put.ring.urgent = (uint32_t)urgent;
        status = shmq_try_reserve(q, (uint32_t)p->bytes, SHMQ_ENVELOPE, 0, &r);
        if (status == SHMQ_OK) {
            gather(r.payload, p);
            shmq_put_commit(q, 1, p->bytes);
        }
        q->put.ring.urgent = 0;
        shmq_key_end(q);
        return status;
    }
    shmq_block *b;
    if (shmq_key_known(q, key)) return SHMQ_REPEAT;
    if ((status = loan_to_put(q, urgent, p->bytes, &b)) != SHMQ_OK) return status;
    PyThreadState *state = p->bytes > UNLOCK_ABOVE_BYTES ? PyEval_SaveThread() : NULL;
    gather(b->data, p);
    if (state != NULL) PyEval_RestoreThread(state);
    return publish_and_release(b, key, SHMQ_ENVELOPE, NULL, 0);
}

/* Puts an envelope.  With a head, that is table sizes, table and body, made in Python; without one `body` is
 * the msgpack body, and sizes and table are made here, or PY_ENCODE returned where an array is not plain. */
static int put_envelope(shmq_queue *q, int urgent, const char *head, size_t head_bytes, const char *body,
                        size_t body_bytes, PyObject *list, uint64_t key) {
    Py_ssize_t n = PyList_Size(list), got = 0;
    struct shmq_envelope_entry {
        uint8_t dtype, order, ndim, flags;
        uint32_t description_bytes;
        uint64_t shape[11];
    } entry;
    size_t table_bytes = 0;
    uint8_t *table = PyMem_Malloc(8 + (size_t)n * sizeof entry);
    Py_buffer *views = PyMem_Malloc((size_t)(n + 1) * sizeof *views);
    int status = table == NULL || views == NULL ? SHMQ_OUT_OF_SPACE : SHMQ_OK;
    uint64_t arrays_bytes = 0;
    for (; status == SHMQ_OK && got < n; got++) {
        shmq_tensor t;
        if (PyObject_GetBuffer(PyList_GetItem(list, got), &views[got], PyBUF_FULL_RO) != 0) {
            PyErr_Clear();
            status = PY_ENCODE;
            break;
        }
        if (head == NULL) {
            if (!describe(&views[got], &t)) {
                PyBuffer_Release(&views[got]);
                status = PY_ENCODE;
                break;
            }
            size_t entry_bytes = 8 + 8 * (size_t)t.ndim;
            memcpy(table + 8 + table_bytes, &t, entry_bytes); /* the tensor header, cut to its axes */
            table_bytes += entry_bytes;
        }
        arrays_bytes = aligned(arrays_bytes) + (uint64_t)views[got].len;
    }
    if (status == SHMQ_OK) {
        uint32_t sizes[2] = {(uint32_t)table_bytes, (uint32_t)body_bytes};
        if (head == NULL) {
            memcpy(table, sizes, sizeof sizes);
            head = (const char *)table;
            head_bytes = sizeof sizes + table_bytes;
        }
        uint64_t before = head_bytes + body_bytes;
        struct parts p = {{head, body, NULL},
                          {head_bytes, body_bytes, 0},
                          views,
                          n,
                          n > 0 ? aligned(before) + arrays_bytes : before};
        status = put_gathered(q, urgent, key, &p);
    }
    while (got > 0) PyBuffer_Release(&views[--got]);
    PyMem_Free(views);
    PyMem_Free(table);
    return status;
}

static int py_put_envelope(shmq_queue *q, int urgent, const char *body, size_t body_bytes, uintptr_t arrays,
                           uint64_t key) {
    return put_envelope(q, urgent, NULL, 0, body, body_bytes, (PyObject *)arrays, key);
}

static int py_put_described(shmq_queue *q, int urgent, const char *head, size_t head_bytes, uintptr_t arrays,
                            uint64_t key) {
    return put_envelope(q, urgent, head, head_bytes, NULL, 0, (PyObject *)arrays, key);
}

/* Puts the leading bytes objects of list[start:]: all published by one store (spsc), or a slot at a time with
 * one wake-up.  Stops at one that is not bytes or too long to lie in the ring, and where the ring is full.  Returns
 * how many, or -status if none. */
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
        status = shmq_try_reserve(q, (uint32_t)len, SHMQ_RAW, 0, &r);
        if (status != SHMQ_OK) break;
        memcpy(r.payload, PyBytes_AsString(item), (size_t)len);
        if (!q->ring.is_spsc) shmq_commit(q); /* a slot at a time */
        bytes += (uint64_t)len;
    }
    if (i > start && q->ring.is_spsc) shmq_commit(q);
    if (i > start) shmq_put_done(q, (uint64_t)(i - start), bytes);
    return i == start && status != SHMQ_OK ? -(Py_ssize_t)status : i - start;
}

static int py_settle_roles(shmq_queue *q) {
    if (!shmq_try_pin(q)) return SHMQ_CLOSED;
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_settle_roles(q);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return status;
}

static int py_wait_put(shmq_queue *q, int urgent, int lacks, uint64_t bytes, int64_t deadline_ns) {
    uint64_t wish = shmq_ring_wish(&q->ring, &q->put.ring, (uint32_t)urgent); /* under the GIL */
    if (!shmq_try_pin(q)) return SHMQ_CLOSED;
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_wait_put(q, wish, (enum shmq_lacking)lacks, bytes, deadline_ns);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return status;
}

/* ---- loan ---- */

/* None: published; else the status.  Everything was prepared by py_loan: whoever has just filled a large array
 * has little of this left in the caches. */
static PyObject *lease_publish(PyObject *self, PyObject *Py_UNUSED(none)) {
    struct lease *l = (struct lease *)self;
    int status = publish_with(l->block, 0, l->codec, l->meta, l->meta_bytes);
    if (status != SHMQ_OK) return PyLong_FromLong(status);
    Py_INCREF(Py_None);
    return Py_None;
}

static int py_publish_keyed(uintptr_t lease, uint64_t key) {
    struct lease *l = (struct lease *)lease;
    return publish_with(l->block, key, l->codec, l->meta, l->meta_bytes);
}

static void py_describe(uintptr_t lease, const char *meta, size_t meta_bytes) {
    struct lease *l = (struct lease *)lease;
    l->meta_bytes = (uint32_t)(meta_bytes <= SHMQ_META_BYTES ? meta_bytes : 0);
    memcpy(l->meta, meta, l->meta_bytes);
}

/* Without a turn, before anything is copied. */
static int py_key_known(shmq_queue *q, uint64_t key) {
    return shmq_put_begin(q) == SHMQ_OK && shmq_key_known(q, key);
}

/* `list` gets the loan as a Lease, and the function without arguments that publishes it. */
static int py_loan(shmq_queue *q, int urgent, uint64_t bytes, int codec, const char *meta, size_t meta_bytes,
                   uintptr_t list) {
    static PyMethodDef method = {"publish", lease_publish, METH_NOARGS, NULL};
    shmq_block *b;
    int status = shmq_put_begin(q);
    if (status == SHMQ_OK) status = shmq_try_loan(q, bytes, &b);
    if (status != SHMQ_OK) return status;
    b->urgent = (uint32_t)urgent;
    PyObject *lease = lease_new(b);
    if (lease == NULL) {
        PyErr_Clear();
        shmq_block_release(b);
        return SHMQ_OUT_OF_SPACE;
    }
    ((struct lease *)lease)->codec = (uint16_t)codec;
    py_describe((uintptr_t)lease, meta, meta_bytes);
    PyObject *publish = PyCFunction_New(&method, lease);
    status = append((PyObject *)list, lease);
    int second = append((PyObject *)list, publish);
    return status == SHMQ_OK ? second : status;
}

static void py_discard(uintptr_t lease) { shmq_block_give_back(((struct lease *)lease)->block); }

/* ---- get ---- */

/* A tuple of up to 5 parts, the first NULL ends it.  Takes over the references, also on failure.  CPython up to
 * 3.11 may collect garbage here, and a finaliser may run any code on our handle, between a peek and its release. */
static PyObject *tuple_of(PyObject *parts[5]) {
    Py_ssize_t n = 0;
    while (n < 5 && parts[n] != NULL) n++;
    int collecting = PyGC_Disable();
    PyObject *tuple = PyTuple_New(n);
    if (collecting) PyGC_Enable();
    for (Py_ssize_t i = 0; i < n; i++) {
        if (tuple == NULL) Py_DECREF(parts[i]);
        else PyTuple_SetItem(tuple, i, parts[i]);
    }
    return tuple;
}

/* `data` is what `payload` holds.  An envelope whose sizes do not fit goes up as (codec, payload): an error. */
static PyObject *labelled(uint16_t codec, PyObject *payload, PyObject *meta, const uint8_t *data,
                          uint64_t bytes) {
    PyObject *parts[5] = {PyLong_FromLong(codec), payload, meta, NULL, NULL};
    uint32_t sizes[2];
    if (parts[0] == NULL || payload == NULL) {
        Py_XDECREF(parts[0]);
        Py_XDECREF(payload);
        Py_XDECREF(meta);
        return NULL;
    }
    if (codec == SHMQ_ENVELOPE) {
        Py_XDECREF(meta);
        parts[2] = NULL;
        if (bytes >= sizeof sizes) memcpy(sizes, data, sizeof sizes);
        uint64_t at = bytes >= sizeof sizes ? sizeof sizes + (uint64_t)sizes[0] + sizes[1] : UINT64_MAX;
        if (at <= bytes) {
            const char *table = (const char *)data + sizeof sizes;
            parts[2] = PyBytes_FromStringAndSize(table, (Py_ssize_t)sizes[0]);
            parts[3] = PyBytes_FromStringAndSize(table + sizes[0], (Py_ssize_t)sizes[1]);
            parts[4] = PyLong_FromUnsignedLongLong(aligned(at));
            if (parts[2] == NULL || parts[3] == NULL || parts[4] == NULL) {
                for (int i = 0; i < 5; i++) Py_XDECREF(parts[i]);
                return NULL;
            }
        }
    }
    return tuple_of(parts);
}

/* The array over what was taken, or (codec, payload[, meta]) where it is not a plain one.  Takes over `payload`. */
static PyObject *array_or_labelled(const shmq_tensor *t, PyObject *payload, long at) {
    PyObject *array = array_over(t, payload, at);
    if (SHMQ_UNLIKELY(array == NULL)) {
        PyObject *meta = at == 0 ? PyBytes_FromStringAndSize((const char *)t, sizeof *t) : NULL;
        return labelled(SHMQ_TENSOR, payload, meta, NULL, 0);
    }
    Py_DECREF(payload);
    return array;
}

/* A peeked record that lies in a block, taken.  Arrays keep the block, the rest is copied out: msgpack, pickle
 * and bytes become objects of their own anyway.  NULL and *status where it could not be taken: it is still
 * the next one then, so nothing is lost for want of memory. */
static PyObject *take_block(shmq_queue *q, const struct shmq_record *r, const struct shmq_spsc_side *before,
                            int *status) {
    const struct shmq_block_header *h;
    shmq_block *b;
    if ((*status = shmq_try_lease(q, r, NULL, &b, &h)) != SHMQ_OK) {
        shmq_put_back(q, before);
        return NULL;
    }
    int is_array = r->codec == SHMQ_TENSOR || r->codec == SHMQ_ENVELOPE;
    uint32_t meta_bytes = *(const volatile uint32_t *)&h->meta_bytes; /* once */
    if (meta_bytes > SHMQ_META_BYTES) meta_bytes = 0;
    shmq_tensor t;
    _Static_assert(sizeof t == SHMQ_META_BYTES, "a header fills the place");
    memcpy(&t, h->meta, sizeof t);
    int build = r->codec == SHMQ_TENSOR && meta_bytes == sizeof t && q->builds_arrays && is_known(&t);
    uint64_t bytes = b->bytes;
    PyObject *meta = build ? NULL : PyBytes_FromStringAndSize((const char *)&t, (Py_ssize_t)meta_bytes);
    PyObject *payload = is_array ? lease_new(b) : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    if ((meta == NULL && !build) || payload == NULL) {
        *status = SHMQ_OUT_OF_SPACE;
        PyErr_Clear();
        if (is_array && payload != NULL) ((struct lease *)payload)->block = NULL;
        shmq_unlease(b, r); /* first: the message must not be there again before its block is */
        shmq_put_back(q, before);
        Py_XDECREF(meta);
        Py_XDECREF(payload);
        return NULL;
    }
    shmq_taken(q, 1, bytes);
    if (is_array) ((struct lease *)payload)->read_only = q->ring.is_topic;
    if (!is_array) {
        copy(PyBytes_AsString(payload), b->data, bytes);
        shmq_block_release(b);
        b = NULL;
    }
    if (r->codec == SHMQ_RAW) {
        Py_DECREF(meta);
        return payload;
    }
    PyObject *object = build ? array_or_labelled(&t, payload, 0)
                             : labelled(r->codec, payload, meta, is_array ? b->data : NULL, bytes);
    if (object == NULL) { /* taken, and no memory left to hand it out */
        PyErr_Clear();
        *status = SHMQ_OUT_OF_SPACE;
    }
    return object;
}

/* Arrays from a queue may be written to; those from a topic may not, wherever they lie. */
static PyObject *copy_of(const shmq_queue *q, const struct shmq_record *r) {
    const char *payload = (const char *)r->payload;
    Py_ssize_t bytes = (Py_ssize_t)r->bytes;
    return q->ring.is_topic ? PyBytes_FromStringAndSize(payload, bytes)
                            : PyByteArray_FromStringAndSize(payload, bytes);
}

static PyObject *from_record(const shmq_queue *q, const struct shmq_record *r) {
    if (SHMQ_LIKELY(r->codec == SHMQ_RAW))
        return PyBytes_FromStringAndSize((const char *)r->payload, (Py_ssize_t)r->bytes);
    return labelled(r->codec, copy_of(q, r), NULL, r->payload, r->bytes);
}

/* Is it a plain array that lies in the ring, with a header that is known?  The header comes out, copied. */
static int is_plain_array(const shmq_queue *q, const struct shmq_record *r, shmq_tensor *t) {
    if (r->codec != SHMQ_TENSOR || r->bytes < sizeof *t || !q->builds_arrays) return 0;
    memcpy(t, r->payload, sizeof *t);
    return is_known(t);
}

/* The next message, or NULL and *status. */
static PyObject *take(shmq_queue *q, int spin, int *status) {
    for (;;) {
        struct shmq_record r;
        if (SHMQ_UNLIKELY((*status = shmq_get_begin(q)) != SHMQ_OK)) return NULL;
        struct shmq_spsc_side before = q->get.ring.spsc;
        *status = shmq_try_next(q, &r);
        if (*status == SHMQ_EMPTY && spin && shmq_spin_get(q)) *status = shmq_try_next(q, &r);
        if (*status != SHMQ_OK) return NULL;
        if (SHMQ_UNLIKELY((r.flags & SHMQ_RECORD_BLOCK) != 0)) {
            PyObject *object = take_block(q, &r, &before, status);
            if (*status == SHMQ_LOOK_AGAIN) continue;
            return object;
        }
        shmq_tensor t;
        int build = is_plain_array(q, &r, &t);
        PyObject *object = build ? copy_of(q, &r) : from_record(q, &r);
        if (SHMQ_UNLIKELY(object == NULL)) {
            PyErr_Clear();
            shmq_put_back(q, &before);
            *status = SHMQ_OUT_OF_SPACE;
            return NULL;
        }
        shmq_taken(q, 1, r.bytes);
        if (build && (object = array_or_labelled(&t, object, sizeof t)) == NULL) {
            PyErr_Clear();
            *status = SHMQ_OUT_OF_SPACE;
        }
        return object;
    }
}

/* Drops the oldest message of a lane, for a producer that finds no room.  SHMQ_EMPTY: what fills it is in others'
 * hands. */
static int py_drop_from(shmq_queue *q, int urgent) {
    const struct shmq_block_header *h;
    struct shmq_record r;
    shmq_block *b = NULL;
    int status = shmq_get_begin(q);
    if (status == SHMQ_OK) status = shmq_lanes_try_peek_in(&q->ring, &q->get.ring, (uint32_t)urgent, &r);
    if (q->get.ring.mpmc.tombs != 0) { /* room that no message left behind, as in shmq_try_next */
        q->get.ring.mpmc.tombs = 0;
        (void)shmq_wake(q, &q->control->not_full);
    }
    if (status != SHMQ_OK) return status;
    if ((r.flags & SHMQ_RECORD_BLOCK) != 0) status = shmq_try_lease(q, &r, NULL, &b, &h);
    if (status != SHMQ_OK) {
        shmq_put_back(q, &q->get.ring.spsc);
        return status;
    }
    shmq_taken(q, 1, b != NULL ? b->bytes : r.bytes);
    shmq_block_release(b);
    return SHMQ_OK;
}

/* A batch ends behind so many bytes that were copied out of shared memory.  Who drops a larger one at once gives memory
 * back to the kernel, which malloc then asks for again: a page fault for each 4 KiB (measured: four times the cost). */
enum { BATCH_BYTES = 1 << 16 };

static uint64_t copied_bytes(PyObject *object) {
    return PyBytes_CheckExact(object) ? (uint64_t)PyBytes_Size(object) : 0;
}

/* Up to `max` messages of an spsc queue, appended to `list`; the in-line ones of a run are released by one store.
 * A block's record must be at the head while it is leased (recover.c), so what came before it is released first. */
static Py_ssize_t take_spsc_run(shmq_queue *q, PyObject *list, Py_ssize_t max, int *status, int *mixed) {
    Py_ssize_t done = 0, run = 0;
    uint64_t bytes = 0, copied = 0;
    *status = shmq_get_begin(q);
    while (*status == SHMQ_OK && done + run < max && copied < BATCH_BYTES) {
        struct shmq_spsc_side before = q->get.ring.spsc;
        struct shmq_record r;
        if ((*status = shmq_try_next(q, &r)) != SHMQ_OK) break;
        *mixed |= r.codec != SHMQ_RAW;
        if ((r.flags & SHMQ_RECORD_BLOCK) != 0) {
            q->get.ring.spsc = before;
            if (run > 0) shmq_taken(q, (uint64_t)run, bytes);
            done += run;
            run = 0;
            bytes = 0;
            PyObject *object = take(q, 0, status);
            if (object != NULL && (*status = append(list, object)) == SHMQ_OK) {
                copied += copied_bytes(object);
                done += 1;
                *status = shmq_get_begin(q); /* again: the GIL may have been away */
            }
        } else if ((*status = append(list, from_record(q, &r))) == SHMQ_OK) {
            bytes += r.bytes;
            copied += r.bytes;
            run += 1;
        } else {
            q->get.ring.spsc = before;
        }
    }
    if (run > 0) shmq_taken(q, (uint64_t)run, bytes);
    return done + run;
}

static Py_ssize_t take_run(shmq_queue *q, PyObject *list, Py_ssize_t max, int *status, int *mixed) {
    if (q->ring.is_spsc) return take_spsc_run(q, list, max, status, mixed);
    Py_ssize_t done = 0;
    uint64_t copied = 0;
    for (PyObject *object; done < max && copied < BATCH_BYTES && (object = take(q, 0, status)) != NULL;
         done++) {
        *mixed |= !PyBytes_CheckExact(object);
        if ((*status = append(list, object)) != SHMQ_OK) break;
        copied += copied_bytes(object);
    }
    return done;
}

/* ---- lease ---- */

/* What lies in the ring or in the pending table, copied; read-only, as it may be delivered again. */
static PyObject *leased_inline(const struct shmq_record *r) {
    PyObject *payload = PyBytes_FromStringAndSize((const char *)r->payload, (Py_ssize_t)r->bytes);
    return r->codec == SHMQ_RAW ? payload : labelled(r->codec, payload, NULL, r->payload, r->bytes);
}

/* Leases the next message: `list` gets it, as take has it.  Where memory runs out it waits again, not lost. */
static int py_lease(shmq_queue *q, shmq_delivery *d, uintptr_t list) {
    struct shmq_record r;
    shmq_block *b = NULL;
    const struct shmq_block_header *h;
    int status = shmq_get_begin(q);
    if (status == SHMQ_OK) status = shmq_lease_begin(q, d, &r, &b, &h);
    if (status != SHMQ_OK) return status;
    int is_array = b != NULL && (r.codec == SHMQ_TENSOR || r.codec == SHMQ_ENVELOPE);
    uint64_t bytes = b != NULL ? b->bytes : r.bytes;
    PyObject *meta = NULL, *object;
    if (b != NULL) {
        uint32_t meta_bytes = *(const volatile uint32_t *)&h->meta_bytes; /* once */
        meta =
            PyBytes_FromStringAndSize((const char *)h->meta, meta_bytes <= SHMQ_META_BYTES ? meta_bytes : 0);
        object = is_array ? lease_new(b) : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    } else {
        object = leased_inline(&r);
    }
    if (object == NULL || (b != NULL && meta == NULL)) {
        PyErr_Clear();
        if (is_array && object != NULL) ((struct lease *)object)->block = NULL;
        shmq_lease_cancel(q, d, &r, b);
        Py_XDECREF(object);
        Py_XDECREF(meta);
        return SHMQ_OUT_OF_SPACE;
    }
    status = shmq_lease_done(q, d, &r, bytes);
    if (is_array) {
        ((struct lease *)object)->read_only = 1;
        object = labelled(r.codec, object, meta, b->data, bytes);
    } else if (b != NULL) {
        copy(PyBytes_AsString(object), b->data, bytes);
        shmq_block_release(b);
        if (r.codec != SHMQ_RAW) object = labelled(r.codec, object, meta, NULL, bytes);
        else Py_DECREF(meta);
    }
    int appended = append((PyObject *)list, object);
    if (status == SHMQ_OK && appended != SHMQ_OK) (void)shmq_nack(q, d, 0);
    return status != SHMQ_OK ? status : appended;
}

static int py_join(shmq_queue *q, int64_t deadline_ns) {
    if (!shmq_try_pin(q)) return SHMQ_CLOSED;
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_wait_done(q, deadline_ns);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return status;
}

/* ---- the hot three, as built-in functions bound to a handle ---- */

static shmq_queue *bound_to(PyObject *self) { return PyCapsule_GetPointer(self, NULL); }

static PyObject *fast_put(PyObject *self, PyObject *obj) {
    shmq_queue *q = bound_to(self);
    int status = PY_ENCODE;
    if (PyBytes_CheckExact(obj))
        status = put_payload(q, 0, 0, SHMQ_RAW, NULL, 0, PyBytes_AsString(obj), (uint64_t)PyBytes_Size(obj),
                             q->ring.inline_bytes);
    else if ((void *)Py_TYPE(obj) == ndarray_type) status = put_array(q, obj);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return PyLong_FromLong(status);
    Py_INCREF(Py_None);
    return Py_None;
}

static int py_wait_get(shmq_queue *q, int64_t deadline_ns) {
    uint64_t cursor = shmq_ring_cursor(&q->ring, &q->get.ring); /* under the GIL */
    if (!shmq_try_pin(q)) return SHMQ_CLOSED;
    PyThreadState *state = PyEval_SaveThread();
    int status = shmq_wait_get(q, cursor, deadline_ns);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return status;
}

/* One slice of waiting, then a look.  SHMQ_OK: no message; the caller tries again with what is bound now, since the
 * handle may have been closed, or bound anew by reattach(), meanwhile.
 * Who was asleep has little of the interpreter left in the caches, so none of it runs between wake-up and message. */
static PyObject *take_after_wait(shmq_queue *q, int *status) {
    int waited = py_wait_get(q, shmq_now_ns() + SHMQ_SLICE_NS);
    *status = waited == SHMQ_PEER_DEAD ? SHMQ_PEER_DEAD : SHMQ_OK;
    if (waited == SHMQ_PEER_DEAD || PyErr_CheckSignals() != 0) return NULL;
    int ignored;
    return take(q, 0, &ignored);
}

/* `wait`: Py_True waits, a slice at most. */
static PyObject *fast_take(PyObject *self, PyObject *wait) {
    int status;
    /* Serve a signal before a message is taken: behind the call its exception would drop it. */
    if (SHMQ_UNLIKELY(PyErr_CheckSignals() != 0)) return NULL;
    PyObject *object = take(bound_to(self), 1, &status);
    if (SHMQ_LIKELY(object != NULL)) return object;
    if (status == SHMQ_EMPTY && wait == Py_True) {
        object = take_after_wait(bound_to(self), &status);
        if (object != NULL || PyErr_Occurred() != NULL) return object;
    }
    return PyLong_FromLong(status);
}

static PyObject *fast_try_take(PyObject *self, PyObject *Py_UNUSED(none)) {
    int status;
    if (SHMQ_UNLIKELY(PyErr_CheckSignals() != 0)) return NULL;
    PyObject *object = take(bound_to(self), 0, &status);
    return object != NULL ? object : PyLong_FromLong(status);
}

static PyObject *fast_take_many(PyObject *self, PyObject *max) {
    int status, mixed = 0;
    Py_ssize_t n = PyLong_AsSsize_t(max);
    if ((n == -1 && PyErr_Occurred() != NULL) || PyErr_CheckSignals() != 0) return NULL;
    PyObject *list = PyList_New(0);
    if (list == NULL || take_run(bound_to(self), list, n, &status, &mixed) > 0) {
        if (list == NULL || !mixed) return list;
        PyObject *wrapped = PyTuple_Pack(1, list);
        Py_DECREF(list);
        return wrapped;
    }
    Py_DECREF(list);
    return PyLong_FromLong(status);
}

static void unbind(PyObject *capsule) { shmq_release_struct(PyCapsule_GetPointer(capsule, NULL)); }

/* Appends put, take, try_take and take_many, bound to q, to `list`.  They keep the struct q alive, not the
 * handle open.  builds_arrays: plain arrays come as numpy.ndarray.  The name helps to find the object again after someone closed our descriptor. */
static int py_bind(shmq_queue *q, uintptr_t list, uintptr_t ndarray, int builds_arrays, const char *name) {
    static PyMethodDef methods[] = {{"put", fast_put, METH_O, NULL},
                                    {"take", fast_take, METH_O, NULL},
                                    {"try_take", fast_try_take, METH_NOARGS, NULL},
                                    {"take_many", fast_take_many, METH_O, NULL}};
    ndarray_type = (void *)ndarray;
    q->builds_arrays = builds_arrays != 0;
    strncpy(q->segment.name, name, sizeof q->segment.name - 1);
    PyObject *capsule = PyCapsule_New(q, NULL, unbind);
    if (capsule == NULL) return SHMQ_OUT_OF_SPACE;
    shmq_hold_struct(q);
    int status = SHMQ_OK;
    for (int i = 0; i < 4 && status == SHMQ_OK; i++)
        status = append((PyObject *)list, PyCFunction_New(&methods[i], capsule));
    Py_DECREF(capsule);
    return status;
}

/* ---- wait in an event loop: see shmq_arm_put and shmq_arm_get ---- */

static int py_arm_get(shmq_queue *q, uint64_t doorbell, int how) {
    if (!shmq_try_pin(q)) return SHMQ_OK; /* the next try says that it is closed */
    int status = shmq_arm_get(q, shmq_ring_cursor(&q->ring, &q->get.ring), doorbell, (enum shmq_arming)how);
    shmq_unpin(q);
    return status;
}

static int py_arm_put(shmq_queue *q, uint64_t doorbell, int how, int urgent, int lacks, uint64_t bytes) {
    if (!shmq_try_pin(q)) return SHMQ_OK;
    uint64_t wish = shmq_ring_wish(&q->ring, &q->put.ring, (uint32_t)urgent);
    int status = shmq_arm_put(q, wish, (enum shmq_lacking)lacks, bytes, doorbell, (enum shmq_arming)how);
    shmq_unpin(q);
    return status;
}

/* How often a peer has joined; negative: closed. */
static int64_t py_joined(shmq_queue *q) {
    if (!shmq_try_pin(q)) return -1;
    int64_t joined = load32_acquire(&q->control->roles.joined);
    shmq_unpin(q);
    return joined;
}

/* (pid, start time) of each peer, at the end of a list.  Negative: no memory. */
static int py_roster(shmq_queue *q, uintptr_t list) {
    if (!shmq_try_pin(q)) return 0;
    uint32_t n = 0, capacity = q->segment.geometry.peers;
    struct shmq_process *roster = malloc(capacity * sizeof *roster);
    if (roster != NULL) n = shmq_peers_roster(&q->segment, roster, capacity);
    shmq_unpin(q);
    int failed = roster == NULL;
    for (uint32_t i = 0; i < n && !failed; i++) {
        PyObject *one =
            Py_BuildValue("KK", (unsigned long long)roster[i].pid, (unsigned long long)roster[i].start_ticks);
        failed = one == NULL || PyList_Append((PyObject *)list, one) != 0;
        Py_XDECREF(one);
    }
    free(roster);
    if (failed) PyErr_Clear();
    return -failed;
}

/* When a message of an at_least_once queue is delivered again, or INT64_MAX. */
static int64_t py_next_due(shmq_queue *q) {
    if (!shmq_try_pin(q)) return INT64_MAX;
    uint64_t due = q->pending.count > 0 ? load_relaxed(q->pending.next_due) : SHMQ_NEVER;
    shmq_unpin(q);
    return due < (uint64_t)INT64_MAX ? (int64_t)due : INT64_MAX;
}

static void py_look_now(shmq_queue *q) {
    if (!shmq_try_pin(q)) return;
    PyThreadState *state = PyEval_SaveThread();
    shmq_look_now(q);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
}

/* True if another try makes sense. */
static int py_look_around(shmq_queue *q) {
    if (!shmq_try_pin(q)) return 1;
    PyThreadState *state = PyEval_SaveThread();
    int again = shmq_look_around(q);
    PyEval_RestoreThread(state);
    shmq_unpin(q);
    return again;
}

#endif
