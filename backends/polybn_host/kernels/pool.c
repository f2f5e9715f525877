/* A pool of threads that sleep until there is work; for a moment after work they look out for more. They are created at the first
   large call, and again in a forked child, which inherits none. They hold no Python object, and end with the process. One call
   uses them at a time; another call in the meantime works alone. */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "interface.h"

/* Nanoseconds that a thread looks out for what it waits for before it sleeps. To wake a thread takes about as long, and the
   parts of a network call each other within less. It does not yield in the meantime: a thread that yields on Linux 6.18 gives up
   milliseconds of its share, and beside busy processes a step of a network took twice as long. */
enum { PATIENCE = 50000 };

#define LOOK_OUT_FOR(event) \
    for (const int64_t end = now() + PATIENCE; !(event) && now() < end;) relax()

/* Tell the processor that this is a loop that waits. */
static inline void relax(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

static struct {
    pthread_mutex_t busy; /* held by the call that uses the pool */
    pthread_mutex_t lock; /* guards the fields below */
    pthread_cond_t work_came, work_done;
    int wanted, running, active; /* number of threads: wanted, created, working */
    int open;                    /* whether a thread that wakes up may still join */
    uint64_t round;
    void (*work)(void *, int64_t);
    void *context;
    int64_t tasks, next;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wanted = 1};

void polybn_set_threads(int threads) { pool.wanted = threads < 1 ? 1 : threads; }

int pool_threads(void) { return pool.wanted; }

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void take_tasks(void) {
    for (;;) {
        const int64_t task = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED);
        if (task >= pool.tasks) return;
        pool.work(pool.context, task);
    }
}

static void *serve(void *first_round) {
    uint64_t seen = (uint64_t)(uintptr_t)first_round;
    for (;;) {
        LOOK_OUT_FOR(__atomic_load_n(&pool.round, __ATOMIC_RELAXED) != seen);
        pthread_mutex_lock(&pool.lock);
        while (pool.round == seen) pthread_cond_wait(&pool.work_came, &pool.lock);
        seen = pool.round;
        const int joins = pool.open;
        pool.active += joins;
        pthread_mutex_unlock(&pool.lock);
        if (!joins) continue;
        take_tasks();
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.work_done);
        pthread_mutex_unlock(&pool.lock);
    }
    return 0;
}

/* Create the missing threads, with all signals blocked: Python's threads handle them. */
static void start_threads(void) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (; pool.running < pool.wanted - 1; pool.running++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, serve, (void *)(uintptr_t)pool.round)) break;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

/* A forked child has its parent's memory but none of its threads, and locks in any state: start from the beginning. */
static void forget_threads(void) {
    pthread_mutex_init(&pool.busy, 0);
    pthread_mutex_init(&pool.lock, 0);
    pthread_cond_init(&pool.work_came, 0);
    pthread_cond_init(&pool.work_done, 0);
    pool.running = pool.active = pool.open = 0;
}

__attribute__((constructor)) static void watch_forks(void) {
    forget_threads();
    pthread_atfork(0, 0, forget_threads);
}

void pool_run(void (*work)(void *, int64_t), void *context, int64_t tasks) {
    if (tasks < 2 || pool.wanted < 2 || pthread_mutex_trylock(&pool.busy)) {
        for (int64_t task = 0; task < tasks; task++) work(context, task);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    start_threads();
    pool.work = work, pool.context = context, pool.tasks = tasks;
    pool.next = 0;
    pool.open = 1;
    __atomic_fetch_add(&pool.round, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&pool.work_came);
    pthread_mutex_unlock(&pool.lock);
    take_tasks();
    pthread_mutex_lock(&pool.lock);
    pool.open = 0; /* threads that are still asleep are not waited for */
    pthread_mutex_unlock(&pool.lock);
    LOOK_OUT_FOR(__atomic_load_n(&pool.active, __ATOMIC_RELAXED) == 0);
    pthread_mutex_lock(&pool.lock);
    while (pool.active) pthread_cond_wait(&pool.work_done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}
