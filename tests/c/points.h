/* points.h: something happens before the nth access to shared state.
 *
 * For programs that are built with a core whose every atomic access first calls lab_point(), and whose futex first
 * calls lab_before_sleep() (see c_build.py).
 */
#ifndef POINTS_H
#define POINTS_H

#include <signal.h>

#include "lab.h"

void lab_point(void);
void lab_before_sleep(void);

static struct {
    bool armed;
    uint64_t left; /* points before the chosen one */
    void (*act)(void);
} points;

static void arm(uint64_t n, void (*act)(void)) {
    points.left = n;
    points.act = act;
    points.armed = true;
}

/* True if the chosen point did not come. */
static bool disarm(void) {
    bool missed = points.armed;
    points.armed = false;
    return missed;
}

void lab_point(void) {
    if (!points.armed || points.left-- > 0) return;
    points.armed = false; /* what it does has no points itself */
    points.act();
}

/* The last moment: whoever sleeps now must still be woken. */
void lab_before_sleep(void) {
    if (!points.armed) return;
    points.armed = false;
    points.act();
    points.armed = true; /* so that the caller learns that there are no more */
    points.left = UINT64_MAX;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#endif
