/* Unit tests of src_c/pending.c; a failure prints its line and aborts. */
#include <string.h>

#include "check.h"
#include "memory.h"
#include "pending.h"

#define SOUND(p)                                                                                   \
    do {                                                                                           \
        int wrong_ = pending_check(p);                                                             \
        if (wrong_) {                                                                              \
            fprintf(stderr, "%s:%d: rule in pending.c line %d\n", __FILE__, __LINE__, wrong_);     \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static const uint8_t SEED[16] = "0123456789abcdef";
static const pending_limits ROOMY = {1000000, 1 << 28, 1000000, 1000000};
static const wire_view none = {NULL, 0};
static const uint32_t W1 = 1, W2 = UINT32_MAX; /* waiters */

static pending *make(pending_limits limits)
{
    pending *p = pending_new(NULL, SEED, &limits);
    CHECK(p != NULL);
    return p;
}

static wire_view view(const void *ptr, size_t len)
{
    return (wire_view){ptr, len};
}

static wire_view str(const char *s)
{
    return view(s, strlen(s));
}

static int wait_for(pending *p, const char *id, uint32_t waiter)
{
    pending_entry *e;
    return pending_wait(p, str(id), waiter, &e);
}

static int64_t keep(pending *p, const char *id, const char *body, uint32_t now)
{
    return pending_store(p, str(id), str("f"), str(body), now);
}

static int state(pending *p, const char *id)
{
    pending_entry *e = pending_find(p, str(id));
    return e == NULL ? PENDING_UNKNOWN : e->state;
}

static int finish(pending *p, const char *id, uint32_t *waiter)
{
    return pending_finish(p, str(id), waiter);
}

static pending_entry *entry(pending *p, const char *id)
{
    pending_entry *e = pending_find(p, str(id));
    CHECK(e != NULL);
    return e;
}

static void test_waiting_is_finished_once(void)
{
    pending *p = make(ROOMY);
    uint32_t waiter;
    pending_entry *e;
    CHECK(wait_for(p, "a", W1) == PENDING_UNKNOWN);
    CHECK(pending_wait(p, str("a"), W2, &e) == PENDING_WAITING && e->waiter == W1);
    CHECK(pending_count(p, PENDING_WAITING) == 1);
    SOUND(p);
    CHECK(finish(p, "a", &waiter) == PENDING_WAITING && waiter == W1);
    CHECK(finish(p, "a", &waiter) == PENDING_DONE && waiter == 0);
    CHECK(keep(p, "a", "late", 1) == PENDING_EDUPLICATE);
    CHECK(wait_for(p, "a", W1) == PENDING_DONE);
    CHECK(pending_count(p, PENDING_WAITING) == 0 && pending_count(p, PENDING_DONE) == 1);
    SOUND(p);
    pending_free(p);
}

static void test_finish_of_the_unknown_is_remembered(void)
{
    pending *p = make(ROOMY);
    uint32_t waiter = W1;
    CHECK(finish(p, "a", &waiter) == PENDING_UNKNOWN && waiter == 0);
    CHECK(state(p, "a") == PENDING_DONE);
    pending_reset(p, str("a"));
    CHECK(state(p, "a") == PENDING_UNKNOWN);
    SOUND(p);
    pending_free(p);
}

static void test_stored_bytes_come_back(void)
{
    pending *p = make(ROOMY);
    CHECK(keep(p, "a", "body", 7) == 0);
    pending_entry *e = entry(p, "a");
    CHECK(e->state == PENDING_UNCLAIMED && e->stored && e->arrived == 7);
    CHECK(e->format_len == 1 && memcmp(pending_format(e).ptr, "f", 1) == 0);
    CHECK(e->body_len == 4 && memcmp(pending_body(e).ptr, "body", 4) == 0);
    CHECK(e->id_len == 1 && *pending_id(e).ptr == 'a');
    CHECK(pending_bytes(p) == 5);
    CHECK(wait_for(p, "a", W1) == PENDING_UNCLAIMED);
    CHECK(keep(p, "a", "a longer body", 8) == 0 && pending_bytes(p) == 14);
    pending_drop_body(p, entry(p, "a"));
    CHECK(state(p, "a") == PENDING_UNKNOWN && pending_bytes(p) == 0);
    /* An empty body is a body. */
    CHECK(pending_store(p, str("b"), none, none, 9) == 0);
    CHECK(entry(p, "b")->stored && pending_count(p, PENDING_UNCLAIMED) == 1);
    SOUND(p);
    pending_free(p);
}

static void test_progress_of_a_waiting_id(void)
{
    pending *p = make(ROOMY);
    uint32_t waiter;
    wait_for(p, "a", W1);
    CHECK(keep(p, "a", "progress", 1) == 0);
    CHECK(state(p, "a") == PENDING_WAITING && entry(p, "a")->waiter == W1);
    CHECK(pending_count(p, PENDING_UNCLAIMED) == 0 && pending_bytes(p) == 9);
    pending_drop_body(p, entry(p, "a"));
    CHECK(state(p, "a") == PENDING_WAITING && entry(p, "a")->waiter == W1);
    keep(p, "a", "progress", 1);
    pending_forget(p, str("a"));
    CHECK(state(p, "a") == PENDING_WAITING && !entry(p, "a")->stored);
    keep(p, "a", "progress", 1);
    CHECK(finish(p, "a", &waiter) == PENDING_WAITING && waiter == W1 && pending_bytes(p) == 0);
    SOUND(p);
    wait_for(p, "b", W1);
    pending_unwait(p, entry(p, "b"));
    CHECK(state(p, "b") == PENDING_UNKNOWN);
    wait_for(p, "b", W1);
    keep(p, "b", "progress", 2);
    pending_unwait(p, entry(p, "b"));
    CHECK(state(p, "b") == PENDING_UNCLAIMED && entry(p, "b")->arrived == 2);
    SOUND(p);
    pending_free(p);
}

static void test_the_oldest_goes_over_the_count(void)
{
    pending *p = make((pending_limits){2, 1000, 10, 10});
    CHECK(keep(p, "a", "1", 1) == 0 && keep(p, "b", "2", 1) == 0);
    CHECK(keep(p, "a", "3", 2) == 0); /* newest again */
    CHECK(keep(p, "c", "4", 2) == 1);
    CHECK(state(p, "b") == PENDING_LOST && state(p, "a") == PENDING_UNCLAIMED);
    CHECK(wait_for(p, "b", W1) == PENDING_LOST);
    CHECK(pending_evicted(p) == 1);
    CHECK(keep(p, "b", "5", 2) == 1); /* a LOST id arrives again */
    CHECK(state(p, "b") == PENDING_UNCLAIMED && state(p, "a") == PENDING_LOST);
    SOUND(p);
    pending_free(p);
}

static void test_the_oldest_go_over_the_bytes(void)
{
    pending *p = make((pending_limits){100, 10, 10, 10});
    keep(p, "a", "12", 1); /* and a byte of format each */
    keep(p, "b", "12", 1);
    keep(p, "c", "12", 1);
    CHECK(keep(p, "d", "12345", 1) == 2 && pending_bytes(p) == 9);
    CHECK(state(p, "c") == PENDING_UNCLAIMED);
    /* Too large by itself: nothing else is dropped. */
    CHECK(keep(p, "e", "1234567890", 1) == 1 && state(p, "e") == PENDING_LOST);
    CHECK(pending_count(p, PENDING_UNCLAIMED) == 2);
    SOUND(p);
    pending_free(p);
}

/* Bodies of WAITING ids (progress) are dropped for results, never the other way round. */
static void test_progress_goes_before_results(void)
{
    pending *p = make((pending_limits){100, 20, 10, 10});
    uint32_t waiter;
    wait_for(p, "v", W1);
    wait_for(p, "w", W2);
    CHECK(keep(p, "v", "1234", 1) == 0 && keep(p, "w", "1234", 1) == 0);
    CHECK(keep(p, "a", "1234", 1) == 0 && keep(p, "b", "1234", 1) == 0 && pending_bytes(p) == 20);
    CHECK(keep(p, "v", "4321", 2) == 0 && pending_bytes(p) == 20); /* now the newest progress */
    SOUND(p);
    /* The oldest progress is dropped for a result, and its id stays WAITING. */
    CHECK(keep(p, "c", "1234", 2) == 0 && pending_bytes(p) == 20);
    CHECK(!entry(p, "w")->stored && state(p, "w") == PENDING_WAITING && entry(p, "v")->stored);
    SOUND(p);
    /* Progress replaces older progress, but no results. */
    CHECK(keep(p, "w", "1", 2) == 0 && !entry(p, "v")->stored && entry(p, "w")->stored);
    CHECK(keep(p, "v", "12", 2) == 0 && entry(p, "v")->stored && entry(p, "w")->stored);
    CHECK(keep(p, "v", "123456", 2) == 0 && !entry(p, "v")->stored && entry(p, "w")->stored);
    CHECK(pending_count(p, PENDING_UNCLAIMED) == 3 && pending_evicted(p) == 0);
    SOUND(p);
    /* Without progress left, the oldest results are dropped. */
    CHECK(keep(p, "d", "12345678", 2) == 1 && state(p, "a") == PENDING_LOST);
    CHECK(!entry(p, "w")->stored && pending_bytes(p) == 19);
    /* A body that can never fit, of either kind, drops nothing else. */
    CHECK(keep(p, "w", "", 2) == 0 && keep(p, "e", "12345678901234567890", 2) == 1);
    CHECK(state(p, "e") == PENDING_LOST && entry(p, "w")->stored);
    CHECK(finish(p, "v", &waiter) == PENDING_WAITING && waiter == W1);
    CHECK(finish(p, "w", &waiter) == PENDING_WAITING && waiter == W2);
    SOUND(p);
    pending_free(p);
}

static void test_progress_alone_over_the_bytes(void)
{
    pending *p = make((pending_limits){100, 1000, 10, 10});
    char id[16], body[200] = {0};
    memset(body, 'x', sizeof body - 1);
    for (int i = 0; i < 20; i++) {
        snprintf(id, sizeof id, "w%d", i);
        wait_for(p, id, W1);
        CHECK(keep(p, id, body, 1) == 0 && pending_bytes(p) <= 1000);
    }
    CHECK(pending_bytes(p) == 1000 && pending_count(p, PENDING_WAITING) == 20);
    CHECK(!entry(p, "w14")->stored && entry(p, "w15")->stored && pending_evicted(p) == 0);
    SOUND(p);
    pending_free(p);
}

/* Progress without a waiter is still not a result. */
static void test_abandoned_progress_costs_no_result(void)
{
    pending *p = make((pending_limits){2, 1000, 10, 10});
    for (int i = 0; i < 2; i++) {
        wait_for(p, "w", W1);
        keep(p, "w", "progress", 1);
        keep(p, i == 0 ? "a" : "b", "1", 1);
        pending_unwait(p, entry(p, "w"));
        CHECK(state(p, "a") == PENDING_UNCLAIMED);
        CHECK(state(p, "w") == (i == 0 ? PENDING_UNCLAIMED : PENDING_UNKNOWN));
        pending_forget(p, str("w"));
        SOUND(p);
    }
    CHECK(pending_count(p, PENDING_UNCLAIMED) == 2 && pending_evicted(p) == 0);
    pending_free(p);
}

static void test_limits_of_zero(void)
{
    pending *p = make((pending_limits){0, 0, 0, 0});
    uint32_t waiter;
    CHECK(keep(p, "a", "1", 1) == 1 && state(p, "a") == PENDING_UNKNOWN);
    CHECK(finish(p, "a", &waiter) == PENDING_UNKNOWN && state(p, "a") == PENDING_UNKNOWN);
    wait_for(p, "a", W1);
    CHECK(finish(p, "a", &waiter) == PENDING_WAITING && waiter == W1);
    CHECK(state(p, "a") == PENDING_UNKNOWN);
    SOUND(p);
    pending_free(p);
}

static void test_done_and_lost_are_bounded(void)
{
    pending *p = make((pending_limits){1, 1000, 3, 2});
    char id[16];
    uint32_t waiter;
    for (int i = 0; i < 10; i++) {
        snprintf(id, sizeof id, "d%d", i);
        finish(p, id, &waiter);
        snprintf(id, sizeof id, "l%d", i);
        keep(p, id, "x", 1);
    }
    CHECK(pending_count(p, PENDING_DONE) == 3 && state(p, "d7") == PENDING_DONE);
    CHECK(state(p, "d6") == PENDING_UNKNOWN);
    CHECK(pending_count(p, PENDING_LOST) == 2 && state(p, "l7") == PENDING_LOST);
    CHECK(state(p, "l6") == PENDING_UNKNOWN && state(p, "l9") == PENDING_UNCLAIMED);
    SOUND(p);
    pending_free(p);
}

static void test_expiry_by_age(void)
{
    pending *p = make(ROOMY);
    keep(p, "a", "1", 10);
    keep(p, "b", "1", 20);
    keep(p, "c", "1", 15); /* the clock went back: counts as 20 */
    keep(p, "d", "1", 30);
    wait_for(p, "w", W1);
    keep(p, "w", "1", 30);
    CHECK(pending_expire(p, 10) == 0);
    CHECK(pending_expire(p, 20) == 1 && state(p, "a") == PENDING_LOST);
    CHECK(pending_expire(p, 21) == 2 && state(p, "c") == PENDING_LOST);
    CHECK(pending_expire(p, UINT32_MAX) == 1 && state(p, "w") == PENDING_WAITING);
    CHECK(pending_evicted(p) == 4);
    SOUND(p);
    pending_free(p);
}

static void test_forget_and_reset(void)
{
    pending *p = make((pending_limits){1, 1000, 10, 10});
    uint32_t waiter;
    finish(p, "done", &waiter);
    keep(p, "lost", "1", 1);
    keep(p, "kept", "1", 1);
    wait_for(p, "wait", W1);
    const char *ids[] = {"done", "lost", "kept", "wait", "none"};
    for (int i = 0; i < 5; i++)
        pending_reset(p, str(ids[i]));
    CHECK(state(p, "done") == PENDING_UNKNOWN && state(p, "lost") == PENDING_UNKNOWN);
    CHECK(state(p, "kept") == PENDING_UNCLAIMED && state(p, "wait") == PENDING_WAITING);
    finish(p, "done", &waiter);
    for (int i = 0; i < 5; i++)
        pending_forget(p, str(ids[i]));
    CHECK(state(p, "done") == PENDING_UNKNOWN && state(p, "kept") == PENDING_UNKNOWN);
    CHECK(state(p, "wait") == PENDING_WAITING);
    SOUND(p);
    pending_free(p);
}

static void test_ids_of_every_length(void)
{
    pending *p = make(ROOMY);
    uint8_t id[256];
    pending_entry *e;
    uint32_t waiter;
    memset(id, 0, sizeof id); /* zeros: only the lengths differ */
    for (size_t len = 1; len <= 255; len++)
        CHECK(pending_wait(p, view(id, len), W1, &e) == PENDING_UNKNOWN);
    SOUND(p);
    for (size_t len = 0; len <= 256; len += 256) {
        CHECK(pending_wait(p, view(id, len), W1, &e) == PENDING_EINVALID);
        CHECK(pending_finish(p, view(id, len), &waiter) == PENDING_EINVALID);
        CHECK(pending_store(p, view(id, len), none, none, 0) == PENDING_EINVALID);
        CHECK(pending_find(p, view(id, len)) == NULL);
        pending_forget(p, view(id, len));
        pending_reset(p, view(id, len));
    }
    CHECK(pending_store(p, view(id, 1), view(id, 256), none, 0) == PENDING_EINVALID);
    CHECK(pending_store(p, view(id, 1), none, view(id, UINT32_MAX), 0) == PENDING_EINVALID);
    for (size_t len = 1; len <= 255; len++)
        CHECK(pending_finish(p, view(id, len), &waiter) == PENDING_WAITING);
    pending_free(p);
}

static void test_grows_and_shrinks_again(void)
{
    enum { MANY = 60000 };
    pending *p = make(ROOMY);
    char id[40];
    size_t empty = pending_memory(p), most;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MANY; i++) {
            snprintf(id, sizeof id, "%08x-1111-2222-3333-444444444444", i);
            CHECK(keep(p, id, "body", 1) == 0);
        }
        SOUND(p);
        most = pending_table_memory(p);
        CHECK(most / MANY < 45);
        pending_cursor cursor = {0, 0};
        long seen = 0;
        while (pending_next(p, &cursor) != NULL)
            seen++;
        CHECK(seen == MANY);
        for (int i = 0; i < MANY; i++) {
            snprintf(id, sizeof id, "%08x-1111-2222-3333-444444444444", i);
            pending_drop_body(p, entry(p, id));
            if (i % 10000 == 0)
                SOUND(p);
        }
        CHECK(pending_memory(p) == empty);
        SOUND(p);
    }
    for (int i = 0; i < MANY; i++) {
        snprintf(id, sizeof id, "%d", i);
        wait_for(p, id, W1);
    }
    pending_clear(p);
    SOUND(p);
    CHECK(pending_memory(p) == empty && pending_count(p, PENDING_WAITING) == 0);
    CHECK(keep(p, "a", "1", 1) == 0);
    pending_free(p);
}

/* All calls, over enough ids to split and merge. A failed call must have changed nothing. */
static long scenario(memory *m)
{
    const allocator a = memory_allocator(m);
    pending_limits limits = {900, 100000, 300, 200};
    pending *p = pending_new(&a, SEED, &limits);
    if (p == NULL)
        return m->blocks;
    char id[16];
    uint32_t waiter;
    for (int i = 0; i < 2500; i++) {
        snprintf(id, sizeof id, "id%d", i);
        int before = state(p, id);
        uint64_t bytes = pending_bytes(p);
        int64_t outcome = i % 2 ? wait_for(p, id, W1) : keep(p, id, "some body", (uint32_t)i);
        if (outcome < 0)
            CHECK(outcome == PENDING_ENOMEM && state(p, id) == before && pending_bytes(p) == bytes);
        if (i % 4 == 1 && keep(p, id, "progress", (uint32_t)i) < 0)
            CHECK(pending_bytes(p) == bytes);
        if (i % 500 == 0)
            SOUND(p);
    }
    SOUND(p);
    for (int i = 0; i < 2600; i++) {
        snprintf(id, sizeof id, "id%d", i);
        pending_entry *e = pending_find(p, str(id));
        if (e != NULL && e->state == PENDING_WAITING && i % 3 == 0)
            pending_unwait(p, e);
        else if (e != NULL && e->stored && i % 3 == 1)
            pending_drop_body(p, e);
        else if (finish(p, id, &waiter) < 0)
            CHECK(e == NULL);
        if (i % 500 == 0)
            SOUND(p);
    }
    pending_expire(p, 2000);
    SOUND(p);
    for (int i = 0; i < 2600; i++) {
        snprintf(id, sizeof id, "id%d", i);
        pending_reset(p, str(id));
        pending_forget(p, str(id));
    }
    SOUND(p);
    pending_free(p);
    return m->blocks;
}

static void test_an_allocator_that_fails(void)
{
    for (int not_entries = 0; not_entries < 2; not_entries++) {
        /* Entries are recognised by their size: segments and small directories have others. */
        const memory fresh = {.spared_above = not_entries ? sizeof(pending_entry) : 0,
                              .spared_below = not_entries ? 1000 : 0};
        memory whole = fresh;
        CHECK(scenario(&whole) == 0);
        CHECK(whole.calls > 10);
        for (int for_good = 0; for_good < 2; for_good++) {
            /* Fail every allocation for the table itself, and a sample of those for entries. */
            for (long at = 1; at <= whole.calls; at += not_entries || at < 64 ? 1 : 37) {
                memory m = fresh;
                m.fail_at = at;
                m.for_good = for_good;
                CHECK(scenario(&m) == 0);
            }
        }
    }
}

/* A small table in which every single allocation fails once. */
static void test_every_allocation_of_each_call(void)
{
    for (long at = 1; at < 64; at++) {
        memory m = {.fail_at = at};
        const allocator a = memory_allocator(&m);
        pending_limits limits = {2, 100, 2, 2};
        pending *p = pending_new(&a, SEED, &limits);
        if (p == NULL) {
            CHECK(m.blocks == 0);
            continue;
        }
        const char *ids[] = {"a", "b", "c", "d"};
        uint32_t waiter;
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < 4; i++) {
                wait_for(p, ids[i], W1);
                SOUND(p);
                keep(p, ids[i], "body", 1);
                SOUND(p);
                pending_entry *e = pending_find(p, str(ids[i]));
                if (e != NULL && e->state == PENDING_WAITING)
                    pending_unwait(p, e);
                SOUND(p);
                keep(p, ids[i], "another", 1);
                SOUND(p);
            }
            for (int i = 0; i < 4; i++) {
                finish(p, ids[i], &waiter);
                SOUND(p);
                pending_reset(p, str(ids[i]));
            }
        }
        pending_clear(p);
        SOUND(p);
        pending_free(p);
        CHECK(m.blocks == 0);
    }
}

/* Without memory for a segment, the table stays usable until its last slot is full. */
static void test_no_memory_to_split(void)
{
    memory m = {0};
    const allocator a = memory_allocator(&m);
    pending *p = pending_new(&a, SEED, &ROOMY);
    char id[16];
    pending_entry *e;
    long held = 0;
    for (int i = 0; i < 4000; i++) {
        int len = snprintf(id, sizeof id, "id%d", i);
        /* The entry is one allocation; every other one fails. */
        m.fail_at = m.calls + 2;
        m.for_good = true;
        int outcome = pending_wait(p, view(id, (size_t)len), W1, &e);
        m.fail_at = 0;
        if (outcome == PENDING_UNKNOWN)
            held++;
        else
            CHECK(outcome == PENDING_ENOMEM);
    }
    CHECK(held == 1280 && pending_count(p, PENDING_WAITING) == 1280);
    SOUND(p);
    CHECK(wait_for(p, "nobody", W1) == PENDING_UNKNOWN); /* memory again: it splits */
    SOUND(p);
    pending_free(p);
    CHECK(m.blocks == 0);
}

int main(void)
{
    test_waiting_is_finished_once();
    test_finish_of_the_unknown_is_remembered();
    test_stored_bytes_come_back();
    test_progress_of_a_waiting_id();
    test_the_oldest_goes_over_the_count();
    test_the_oldest_go_over_the_bytes();
    test_progress_goes_before_results();
    test_progress_alone_over_the_bytes();
    test_abandoned_progress_costs_no_result();
    test_limits_of_zero();
    test_done_and_lost_are_bounded();
    test_expiry_by_age();
    test_forget_and_reset();
    test_ids_of_every_length();
    test_grows_and_shrinks_again();
    test_an_allocator_that_fails();
    test_every_allocation_of_each_call();
    test_no_memory_to_split();
    return 0;
}
