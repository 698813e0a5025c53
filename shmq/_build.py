"""cffi builder of ``shmq._core``, nothing else.

The C declarations are the part of ``csrc/shmq.h`` between its two markers, so the public header is written
once.  The functions ``py_*`` come from ``_glue.h``.
"""

from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    "segment",
    "wait",
    "recorder",
    "peers",
    "doorbell",
    "spsc",
    "mpmc",
    "topic",
    "arena",
    "pending",
    "keys",
    "share",
    "keep",
    "lanes",
    "ring",
    "recover",
    "handle",
    "message",
    "shmq",
    "lease",
    "look",
]

GLUE = """
int py_create(int fd, const shmq_params *params, shmq_queue **queue);
int py_attach(int fd, shmq_queue **queue);
int py_reattach(const shmq_queue *inherited, shmq_queue **queue);
int py_bind(shmq_queue *q, uintptr_t list, uintptr_t ndarray, int builds_arrays, const char *name);
void py_remember_header(const char *header, uintptr_t shape, uintptr_t dtype, uintptr_t order);
unsigned py_held(shmq_queue *q);
int shmq_usable(const shmq_queue *q);
int shmq_put_begin(shmq_queue *q);
int shmq_get_begin(shmq_queue *q);
int py_settle_roles(shmq_queue *q);
int py_put_as(shmq_queue *q, int urgent, int codec, const char *data, size_t bytes, uint64_t key);
int py_put_buffer(shmq_queue *q, int urgent, int codec, const char *meta, size_t meta_bytes, uintptr_t array,
                  uint64_t key);
int py_put_envelope(shmq_queue *q, int urgent, const char *body, size_t body_bytes, uintptr_t arrays,
                    uint64_t key);
int py_put_described(shmq_queue *q, int urgent, const char *head, size_t head_bytes, uintptr_t arrays,
                     uint64_t key);
int py_key_known(shmq_queue *q, uint64_t key);
int shmq_key_begin(shmq_queue *q, uint64_t key);
void shmq_key_end(shmq_queue *q);
int py_publish_keyed(uintptr_t lease, uint64_t key);
ssize_t py_put_many(shmq_queue *q, uintptr_t objects, ssize_t start);
int py_wait_put(shmq_queue *q, int urgent, int lacks, uint64_t bytes, int64_t deadline_ns);
int py_loan(shmq_queue *q, int urgent, uint64_t bytes, int codec, const char *meta, size_t meta_bytes,
            uintptr_t list);
void py_describe(uintptr_t lease, const char *meta, size_t meta_bytes);
void py_discard(uintptr_t lease);
int py_wait_get(shmq_queue *q, int64_t deadline_ns);
int py_lease(shmq_queue *q, shmq_delivery *d, uintptr_t list);
int py_drop_from(shmq_queue *q, int urgent);
void shmq_count_dropped(shmq_queue *q, int newest);
void shmq_begin_task(shmq_queue *q);
int shmq_end_task(shmq_queue *q);
int py_join(shmq_queue *q, int64_t deadline_ns);
int py_look_around(shmq_queue *q);
int64_t py_joined(shmq_queue *q);
int py_roster(shmq_queue *q, uintptr_t list);
int64_t py_next_due(shmq_queue *q);
int py_arm_get(shmq_queue *q, uint64_t doorbell, int how);
int py_arm_put(shmq_queue *q, uint64_t doorbell, int how, int urgent, int lacks, uint64_t bytes);
void py_look_now(shmq_queue *q);
int shmq_doorbell_open(uint64_t *number, int *fd);
void shmq_doorbell_close(uint64_t number, int fd);
void shmq_doorbell_remove(uint64_t number);
#define PY_ENCODE -1
enum shmq_arming { SHMQ_ARM, SHMQ_ARM_AGAIN, SHMQ_ARM_SURELY };
enum shmq_lacking { SHMQ_LACKS_ROOM, SHMQ_LACKS_PAGES, SHMQ_LACKS_TURN };
"""


def declarations() -> str:
    """The public part of the header, as cffi reads it."""
    header = (ROOT / "csrc" / "shmq.h").read_text()
    return header.split("/* cdef-begin */")[1].split("/* cdef-end */")[0]


ffibuilder = FFI()
ffibuilder.cdef(declarations() + GLUE)
ffibuilder.set_source(
    "shmq._core",
    # One translation unit, so that a put is one function to the compiler.
    "".join(f'#include "{name}.c"\n' for name in SOURCES) + '#include "../shmq/_glue.h"\n',
    include_dirs=["csrc"],
    depends=[
        "shmq/_glue.h",
        "shmq/_arrays.h",
        *(f"csrc/{name}.c" for name in SOURCES),
        *(f"csrc/{name}.h" for name in ("shmq", "core", "slots", "layout", "atomics")),
    ],
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden"],
    py_limited_api=True,
)
