/* c_worker.c: a worker in C beside Python processes. It takes float32 matrices from one queue and
 * publishes the scaled sum of each row to another, until the first queue is shut down:
 *
 *     Python: q.put(matrix)  --IN-->  c_worker: scale * sum of each row  --OUT-->  Python: q.get()
 *
 * Nothing is copied here: the matrix is read where Python wrote it, and the sums are written where
 * Python will read them. Build and run:
 *
 *     cc c_worker.c $(shmq include)/[the .c files] -I$(shmq include) -pthread -o c_worker
 *     ./c_worker IN OUT SCALE
 *
 * SIGTERM and SIGINT end it between two messages. When IN is shut down and empty it shuts OUT down
 * in turn and ends with 0. It ends with 1 on an error, and says on stderr which; 2: bad arguments.
 */
#if !defined(_GNU_SOURCE) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L /* sigaction, also under -std=c11 */
#endif

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shmq.h"

/* A signal that comes just before the wait in shmq_get does not end it, so waits are in slices. */
static const int64_t SLICE_NS = 500000000;

static volatile sig_atomic_t stop;

static void on_signal(int number) {
    (void)number;
    stop = 1;
}

static int failed(const char *what, int status) {
    fprintf(stderr, "c_worker: %s: %s%s%s\n", what, shmq_status_text(status),
            status == SHMQ_SYSTEM ? ": " : "", status == SHMQ_SYSTEM ? strerror(errno) : "");
    return status;
}

/* Is it a (rows, columns) matrix of float32 whose rows lie one after the other? Says why not. */
static int check_matrix(const shmq_message *message) {
    const shmq_tensor *tensor = &message->tensor;
    const char *reason = NULL;
    if (message->codec != SHMQ_TENSOR) reason = "it is not a tensor";
    else if (tensor->dtype != SHMQ_FLOAT32) reason = "its dtype is not float32";
    else if (tensor->ndim != 2) reason = "it does not have 2 axes";
    else if (tensor->order != 'C') reason = "its order is not 'C'";
    else if (tensor->shape[0] == 0) reason = "it has no rows";
    /* The shape came from another process: compare it with the bytes that are there, and divide
     * rather than multiply, since a product could wrap. */
    else if (message->bytes / sizeof(float) / tensor->shape[0] != tensor->shape[1] ||
             message->bytes % (sizeof(float) * tensor->shape[0]) != 0)
        reason = "its shape does not match its size";
    if (reason == NULL) return SHMQ_OK;
    fprintf(stderr, "c_worker: cannot use a message of %" PRIu64 " bytes: %s\n", message->bytes, reason);
    return SHMQ_INVALID;
}

static void scaled_row_sums(const float *matrix, uint64_t rows, uint64_t columns, float scale, float *sums) {
    for (uint64_t row = 0; row < rows; row++) {
        double sum = 0;
        for (uint64_t column = 0; column < columns; column++) sum += (double)matrix[row * columns + column];
        sums[row] = scale * (float)sum;
    }
}

/* Loans a block, writes the sums into it, publishes it. */
static int answer(shmq_queue *out, const shmq_message *message, float scale) {
    const uint64_t rows = message->tensor.shape[0];
    shmq_tensor header;
    shmq_block *loan;
    int status;

    memset(&header, 0, sizeof header);
    header.dtype = SHMQ_FLOAT32;
    header.order = 'C';
    header.ndim = 1;
    header.shape[0] = rows;

    /* The calls change nothing when a signal interrupts them. This message is still finished. */
    do status = shmq_loan(out, rows * sizeof(float), SHMQ_FOREVER, &loan);
    while (status == SHMQ_INTERRUPTED);
    if (status != SHMQ_OK) return failed("loan", status);

    scaled_row_sums((const float *)message->data, rows, message->tensor.shape[1], scale, (float *)loan->data);

    do status = shmq_publish(loan, &header, SHMQ_FOREVER);
    while (status == SHMQ_INTERRUPTED);
    if (status != SHMQ_OK) {
        shmq_block_release(loan); /* still ours: discard it */
        return failed("publish", status);
    }
    return SHMQ_OK;
}

/* Until IN is shut down (SHMQ_OK), a signal (SHMQ_INTERRUPTED) or an error. */
static int work(shmq_queue *in, shmq_queue *out, float scale) {
    while (!stop) {
        shmq_message message;
        int status = shmq_get(in, &message, shmq_deadline(SLICE_NS));
        if (status == SHMQ_INTERRUPTED || status == SHMQ_EMPTY) continue;
        if (status == SHMQ_SHUT_DOWN) return SHMQ_OK;
        if (status != SHMQ_OK) return failed("get", status);
        status = check_matrix(&message);
        if (status == SHMQ_OK) status = answer(out, &message, scale);
        shmq_message_release(&message); /* its memory goes back to the producer */
        if (status != SHMQ_OK) return status;
    }
    return SHMQ_INTERRUPTED;
}

int main(int argc, char **argv) {
    shmq_queue *in = NULL, *out = NULL;
    struct sigaction action;
    char *end = NULL;
    float scale;
    int status;

    if (argc != 4) {
        fprintf(stderr, "usage: %s IN OUT SCALE\n", argv[0]);
        return 2;
    }
    scale = strtof(argv[3], &end);
    if (end == argv[3] || *end != '\0') {
        fprintf(stderr, "c_worker: SCALE must be a number, not '%s'\n", argv[3]);
        return 2;
    }
    memset(&action, 0, sizeof action); /* no SA_RESTART: a signal ends the wait in shmq_get */
    action.sa_handler = on_signal;
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    status = shmq_open(argv[1], &in);
    if (status != SHMQ_OK) failed(argv[1], status);
    else if ((status = shmq_open(argv[2], &out)) != SHMQ_OK) failed(argv[2], status);
    else if ((status = work(in, out, scale)) == SHMQ_OK)
        status = shmq_shutdown(out, 0); /* passes the end on */

    shmq_free(in);
    shmq_free(out);
    return status == SHMQ_OK || status == SHMQ_INTERRUPTED ? 0 : 1;
}
