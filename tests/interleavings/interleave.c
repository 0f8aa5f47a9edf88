/* A checker of interleavings. Logical threads are fibers of one thread of the system;
 * before everything that they share (interleave.h) one of them is chosen to go on. A run
 * of a scenario is a list of choices; the next run takes the last choice that has another
 * option, takes that, and goes on (depth first). What bounds that is the number of
 * departures from the plain course: giving the turn away without having to wait, and
 * keeping a store back, cost one each (CHESS: Musuvathi and Qadeer, PLDI 2007).
 *
 * Stores are kept back as an x86 processor does (TSO): a store that is no locked
 * instruction may stand in its thread's buffer, which the thread itself sees and nobody
 * else, until it is written, oldest first, at any moment; at the latest at a locked
 * instruction, a fence or a mutex. A call of the system does not write it: nothing says
 * that it must. Weaker processors, which also reorder loads, are not modelled.
 *
 * Not every access is a place to choose: those are that several fibers have made in the
 * runs of the beginning, which go by chance. Relaxed stores are none, as nothing may
 * rest on them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "interleave.h"
#undef pthread_mutex_lock
#undef pthread_mutex_unlock

enum {
    FIBERS = 5, STACK = 1 << 18, STORES = 32, MOST_CHOICES = 1 << 14, MOST_STEPS = 200000,
    MUTEXES = 64, PLACES = 1 << 14, NOTES = 400, WATCHED = 8,
};

typedef int (*Condition)(void *);

typedef struct {
    void *p;
    uint64_t value;
    size_t size;
} Store;

typedef struct {
    ucontext_t context;
    char *stack;
    void (*body)(void *);
    void *argument;
    int alive;
    Condition ready;        /* it waits for this; NULL: it does not */
    void *ready_argument;
    Store stores[STORES];   /* kept back, oldest first */
    int stored;
    int error;              /* errno, of which there is one for all fibers */
} Fiber;

static Fiber fibers[FIBERS];
static int fiber_count, current;
static __thread int here;   /* this is the thread whose fibers they are */
static int active;
static char failure[256];

static struct { uint16_t taken, options; } path[MOST_CHOICES];
static int path_length, path_at, by_chance, steps;
static int most_departures, departures;
static uint64_t dice;

static struct { void *p; int who; } places[PLACES];
static int learning;
static struct { void *mutex; int owner; } mutexes[MUTEXES];
static struct { char *base; size_t size; void *life; int dead; } watched[WATCHED];
static int watched_count;
static struct { int who; const char *what; void *p; uint64_t value; } notes[NOTES];
static int note_count;
static struct { char *base; size_t size; const char *name; } names[32];
static int name_count;

static int looking;         /* at a condition: what it reads is the memory, at once */

#define AT_WORK (active && here && !looking)

/* --- what happened ------------------------------------------------------------- */

static void note(const char *what, void *p, uint64_t value)
{
    int n = note_count++ % NOTES;
    notes[n].who = current;
    notes[n].what = what;
    notes[n].p = p;
    notes[n].value = value;
}

void il_fail(const char *why)
{
    if (here && !failure[0]) {
        snprintf(failure, sizeof failure, "%s", why);
    }
}

int il_failed(void)
{
    return failure[0] != 0;
}

void il_name(void *base, size_t size, const char *name)
{
    if (name_count < 32) {
        names[name_count].base = base;
        names[name_count].size = size;
        names[name_count++].name = name;
    }
}

static void print_place(FILE *out, char *p)
{
    for (int i = 0; i < name_count; i++) {
        if (p >= names[i].base && p < names[i].base + names[i].size) {
            fprintf(out, "%s+%zd", names[i].name, (ssize_t)(p - names[i].base));
            return;
        }
    }
    fprintf(out, "%p", (void *)p);
}

/* Why the run failed, and its last steps. The caller frees it. */
char *il_report(void)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    int first = note_count > NOTES ? note_count - NOTES : 0;
    fprintf(out, "%s\n", failure);
    for (int i = first; i < note_count; i++) {
        fprintf(out, "  %*s%d %s ", 20 * notes[i % NOTES].who, "", notes[i % NOTES].who,
                notes[i % NOTES].what);
        print_place(out, notes[i % NOTES].p);
        fprintf(out, " %llx\n", (unsigned long long)notes[i % NOTES].value);
    }
    fclose(out);
    return text;
}

/* --- memory -------------------------------------------------------------------- */

static uint64_t get(void *p, size_t size)
{
    return size == 4 ? __atomic_load_n((uint32_t *)p, __ATOMIC_SEQ_CST)
                     : __atomic_load_n((uint64_t *)p, __ATOMIC_SEQ_CST);
}

static void put(void *p, uint64_t value, size_t size)
{
    if (size == 4) {
        __atomic_store_n((uint32_t *)p, (uint32_t)value, __ATOMIC_SEQ_CST);
    } else {
        __atomic_store_n((uint64_t *)p, value, __ATOMIC_SEQ_CST);
    }
}

static void write_oldest(Fiber *fiber)
{
    Store store = fiber->stores[0];
    memmove(fiber->stores, fiber->stores + 1, (size_t)--fiber->stored * sizeof(Store));
    put(store.p, store.value, store.size);
}

static void write_all(Fiber *fiber)
{
    while (fiber->stored) {
        write_oldest(fiber);
    }
}

/* Memory that has its life by a word in it: while that is 0 nobody may touch the rest. */
void il_watch(void *base, size_t size, void *life)
{
    watched[watched_count].base = base;
    watched[watched_count].size = size;
    watched[watched_count].life = life;
    watched[watched_count++].dead = 0;
}

static void see_life(void *p, uint64_t value)
{
    for (int i = 0; i < watched_count; i++) {
        if (p == watched[i].life) {
            watched[i].dead = value == 0;
        }
    }
}

static void see_touch(void *p)
{
    for (int i = 0; i < watched_count; i++) {
        if (watched[i].dead && p != watched[i].life && (char *)p >= watched[i].base
                && (char *)p < watched[i].base + watched[i].size) {
            note("touches the dead", p, 0);
            il_fail("memory was touched after it was given back");
        }
    }
}

/* --- choosing ------------------------------------------------------------------ */

static int rolled(int sides)
{
    dice = dice * 6364136223846793005ULL + 1442695040888963407ULL;
    return (int)((dice >> 33) % (uint64_t)sides);
}

static int choose(int options)
{
    int taken;
    if (options == 1) {
        return 0;
    }
    if (by_chance) {
        return rolled(3) ? 0 : rolled(options);
    }
    if (path_at == path_length) {
        if (path_length == MOST_CHOICES) {
            il_fail("the run does not end");
            return 0;
        }
        path[path_length].taken = 0;
        path[path_length++].options = (uint16_t)options;
    }
    if (path[path_at].options != options) {
        il_fail("a run did not go as the one before it");
    }
    taken = path[path_at++].taken;
    return taken < options ? taken : options - 1;
}

static int is_shared(void *p)
{
    size_t at = ((uintptr_t)p >> 2) * 0x9E3779B97F4A7C15ULL >> 50;
    while (places[at].p != NULL && places[at].p != p) {
        at = (at + 1) % PLACES;
    }
    if (learning) {
        places[at].p = p;
        places[at].who |= 1 << current;
        return 1;
    }
    return (places[at].who & (places[at].who - 1)) != 0;
}

static int is_enabled(Fiber *fiber)
{
    int enabled;
    looking = 1;
    enabled = fiber->alive && (fiber->ready == NULL || fiber->ready(fiber->ready_argument));
    looking = 0;
    return enabled;
}

static void go_to(int next)
{
    int previous = current;
    if (next == previous) {
        return;
    }
    fibers[previous].error = errno;
    current = next;
    swapcontext(&fibers[previous].context, &fibers[next].context);
    errno = fibers[current].error;
}

/* Back to the scenario's own code, for good: it goes on alone, and ends. */
static void give_up(void)
{
    for (int i = 0; i < fiber_count; i++) {
        write_all(&fibers[i]);
    }
    memset(mutexes, 0, sizeof mutexes);
    active = 0;
    go_to(0);
}

/* Let somebody go on: the current fiber, if it can and nothing else is chosen. */
static void point(void)
{
    int runs[FIBERS], writes[FIBERS], run_count, write_count, own, taken, saved = errno;
    while (!failure[0]) {
        run_count = write_count = 0;
        own = is_enabled(&fibers[current]);
        if (own) {
            runs[run_count++] = current;
        }
        for (int i = 0; i < fiber_count; i++) {
            if (fibers[i].stored) {
                writes[write_count++] = i;
            }
            if (i != current && (!own || departures < most_departures || by_chance)
                    && is_enabled(&fibers[i])) {
                runs[run_count++] = i;
            }
        }
        if (run_count + write_count == 0) {
            il_fail("everybody waits, and nobody will come");
            break;
        }
        if (++steps > MOST_STEPS) {
            il_fail("the run does not end");
            break;
        }
        taken = choose(run_count + write_count);
        if (taken < run_count) {
            if (own && taken > 0) {
                departures++;
            }
            errno = saved;
            go_to(runs[taken]);
            if (!active) {
                return;
            }
            fibers[current].ready = NULL;
            return;
        }
        note("writes what it kept", fibers[writes[taken - run_count]].stores[0].p,
             (uint64_t)writes[taken - run_count]);
        write_oldest(&fibers[writes[taken - run_count]]);
    }
    give_up();
}

static void point_at(void *p)
{
    see_touch(p);
    if (is_shared(p)) {
        point();
    }
}

void il_wait(Condition ready, void *argument)
{
    if (!AT_WORK || failure[0]) {
        return;
    }
    fibers[current].ready = ready;
    fibers[current].ready_argument = argument;
    point();
}

/* --- what is shared ------------------------------------------------------------ */

uint64_t il_load(void *p, size_t size)
{
    uint64_t value;
    if (!AT_WORK) {
        return get(p, size);
    }
    point_at(p);
    value = get(p, size);
    for (int i = fibers[current].stored - 1; i >= 0; i--) {
        if (fibers[current].stores[i].p == p) {
            value = fibers[current].stores[i].value;
            break;
        }
    }
    note("load", p, value);
    return value;
}

void il_store(void *p, uint64_t value, size_t size, int relaxed)
{
    Fiber *fiber = &fibers[current];
    int keep = 0;
    if (!AT_WORK) {
        put(p, value, size);
        return;
    }
    see_touch(p);
    see_life(p, value);
    if (!relaxed && is_shared(p)) {
        point();
        fiber = &fibers[current];
        if (AT_WORK && fiber->stored < STORES
                && (fiber->stored || departures < most_departures || by_chance)) {
            keep = fiber->stored ? 1 : choose(2);
        }
        departures += keep && !fiber->stored;
    } else if (fiber->stored && fiber->stored < STORES) {
        keep = 1;       /* not past those before it */
    }
    note(keep ? "store, kept back" : "store", p, value);
    if (keep) {
        fiber->stores[fiber->stored].p = p;
        fiber->stores[fiber->stored].value = value;
        fiber->stores[fiber->stored++].size = size;
    } else {
        write_all(fiber);
        put(p, value, size);
    }
}

uint64_t il_change(void *p, int how, uint64_t value, size_t size)
{
    uint64_t before, after;
    if (AT_WORK) {
        point_at(p);
        write_all(&fibers[current]);
    }
    before = get(p, size);
    do {
        after = how == IL_EXCHANGE ? value : how == IL_OR ? before | value
              : how == IL_ADD ? before + value : before - value;
        if (size == 4) {
            uint32_t expected = (uint32_t)before;
            if (__atomic_compare_exchange_n((uint32_t *)p, &expected, (uint32_t)after, 0,
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
                break;
            }
            before = expected;
        } else if (__atomic_compare_exchange_n((uint64_t *)p, &before, after, 0,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            break;
        }
    } while (1);
    if (AT_WORK) {
        see_life(p, after);
        note("change", p, after);
        if (how == IL_EXCHANGE && is_shared(p)) {
            point();    /* what was taken is dealt with behind it, in plain memory */
        }
    }
    return before;
}

int il_compare(void *p, void *expected, uint64_t value, size_t size)
{
    int done;
    if (AT_WORK) {
        point_at(p);
        write_all(&fibers[current]);
    }
    if (size == 4) {
        done = __atomic_compare_exchange_n((uint32_t *)p, (uint32_t *)expected, (uint32_t)value,
                                           0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    } else {
        done = __atomic_compare_exchange_n((uint64_t *)p, (uint64_t *)expected, value, 0,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    if (AT_WORK) {
        note(done ? "compared, stored" : "compared, not stored", p, value);
    }
    return done;
}

void il_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (AT_WORK) {
        write_all(&fibers[current]);
        note("fence", NULL, 0);
    }
}

static int find_mutex(void *mutex)
{
    int empty = -1;
    for (int i = 0; i < MUTEXES; i++) {
        if (mutexes[i].mutex == mutex) {
            return i;
        }
        if (mutexes[i].mutex == NULL && empty < 0) {
            empty = i;
        }
    }
    mutexes[empty].mutex = mutex;
    mutexes[empty].owner = -1;
    return empty;
}

static int is_free(void *mutex)
{
    return mutexes[find_mutex(mutex)].owner < 0;
}

int il_lock(pthread_mutex_t *mutex)
{
    if (!AT_WORK) {
        return failure[0] && here ? 0 : pthread_mutex_lock(mutex);
    }
    point_at(mutex);
    while (AT_WORK && !is_free(mutex)) {
        il_wait(is_free, mutex);
    }
    if (!AT_WORK) {
        return 0;       /* the run has failed; nobody else goes on */
    }
    mutexes[find_mutex(mutex)].owner = current;
    write_all(&fibers[current]);
    note("lock", mutex, 0);
    return 0;
}

int il_unlock(pthread_mutex_t *mutex)
{
    int at;
    if (!AT_WORK) {
        return failure[0] && here ? 0 : pthread_mutex_unlock(mutex);
    }
    see_touch(mutex);
    at = find_mutex(mutex);
    if (mutexes[at].owner != current) {
        il_fail("a mutex was unlocked by who had not locked it");
    }
    write_all(&fibers[current]);
    mutexes[at].mutex = NULL;
    note("unlock", mutex, 0);
    /* A place, too: what is not shared by what is above may be done right behind it. */
    point_at(mutex);
    return 0;
}

/* --- runs ---------------------------------------------------------------------- */

static void run_fiber(void)
{
    fibers[current].body(fibers[current].argument);
    fibers[current].alive = 0;
    point();
    abort();
}

void il_add(void (*body)(void *), void *argument)
{
    Fiber *fiber = &fibers[fiber_count++];
    if (fiber->stack == NULL) {
        fiber->stack = malloc(STACK);
    }
    fiber->body = body;
    fiber->argument = argument;
    fiber->alive = 1;
    fiber->ready = NULL;
    fiber->stored = 0;
    fiber->error = 0;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = STACK;
    fiber->context.uc_link = NULL;
    makecontext(&fiber->context, run_fiber, 0);
}

/* Before a run's setup. */
void il_prepare(void)
{
    here = 1;
    memset(&fibers[0].stored, 0, sizeof fibers[0].stored);
    fibers[0].alive = 1;
    fibers[0].ready = NULL;
    fiber_count = 1;
    current = 0;
    path_at = steps = departures = 0;
    note_count = watched_count = name_count = 0;
    memset(mutexes, 0, sizeof mutexes);
}

void il_begin(void)
{
    active = 1;
}

static int all_ended(void *unused)
{
    (void)unused;
    for (int i = 1; i < fiber_count; i++) {
        if (fibers[i].alive) {
            return 0;
        }
    }
    return 1;
}

/* The scenario's own code has ended: wait for the others. */
void il_end(void)
{
    il_wait(all_ended, NULL);
    if (active) {
        write_all(&fibers[0]);
        for (int i = 1; i < fiber_count; i++) {
            write_all(&fibers[i]);
        }
    }
    active = 0;
}

/* Runs by chance from here on, with this seed; `learn`: they show what is shared. */
void il_by_chance(uint64_t seed, int learn)
{
    by_chance = 1;
    learning = learn;
    dice = seed * 2 + 1;
    rolled(2);
}

void il_depth_first(int departures_at_most)
{
    by_chance = learning = 0;
    most_departures = departures_at_most;
    path_length = 0;
}

/* Make the next run another one; 0: there was every one. */
int il_next(void)
{
    while (path_length && path[path_length - 1].taken + 1 >= path[path_length - 1].options) {
        path_length--;
    }
    if (path_length == 0) {
        return 0;
    }
    path[path_length - 1].taken++;
    return 1;
}

void il_forget(void)
{
    memset(places, 0, sizeof places);
    failure[0] = 0;
}
