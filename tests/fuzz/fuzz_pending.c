/* libFuzzer target for pending.c: bytes become calls, and every outcome is compared with a model.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -Isrc_c -Itests/c \
 *       tests/fuzz/fuzz_pending.c src_c/pending.c -o fuzz_pending
 *   ./fuzz_pending -max_total_time=60 tests/fuzz/corpus/pending
 *
 * The first four bytes are the caps; then three bytes a call: what, which id, how much. */
#include <string.h>

#include "check.h"
#include "pending.h"

enum { IDS = 64 };

typedef struct model_entry {
    int state;
    bool stored;
    size_t stored_len;
    uint8_t fill;
    uint32_t arrived;
    uint64_t order; /* larger means newer in its state */
    uint32_t waiter;
} model_entry;

typedef struct model {
    model_entry ids[IDS];
    pending_limits limits;
    uint64_t clock_order, evicted;
    uint32_t clock;
    int floods;
} model;

static uint64_t count(const model *m, int state)
{
    uint64_t n = 0;
    for (int i = 0; i < IDS; i++)
        n += m->ids[i].state == state;
    return n;
}

static uint64_t bytes(const model *m, int state)
{
    uint64_t n = 0;
    for (int i = 0; i < IDS; i++)
        if (m->ids[i].stored && (state == 0 || m->ids[i].state == state))
            n += m->ids[i].stored_len;
    return n;
}

static model_entry *oldest(model *m, int state)
{
    model_entry *found = NULL;
    for (int i = 0; i < IDS; i++)
        if (m->ids[i].state == state && (found == NULL || m->ids[i].order < found->order))
            found = &m->ids[i];
    return found;
}

static model_entry *oldest_progress(model *m)
{
    model_entry *found = NULL;
    for (int i = 0; i < IDS; i++)
        if (m->ids[i].state == PENDING_WAITING && m->ids[i].stored &&
            (found == NULL || m->ids[i].order < found->order))
            found = &m->ids[i];
    return found;
}

static void bound(model *m, int state, uint64_t most)
{
    while (count(m, state) > most)
        oldest(m, state)->state = PENDING_UNKNOWN;
}

static void become(model *m, model_entry *e, int state)
{
    e->state = state;
    e->order = ++m->clock_order;
    if (state != PENDING_WAITING && state != PENDING_UNCLAIMED)
        e->stored = false;
    bound(m, PENDING_DONE, m->limits.max_done);
    bound(m, PENDING_LOST, m->limits.max_lost);
}

static void lose(model *m, model_entry *e)
{
    e->stored = false;
    become(m, e, PENDING_LOST);
    m->evicted++;
}

static uint64_t caps(model *m, model_entry *newest)
{
    uint64_t before = m->evicted;
    uint64_t room = m->limits.max_unclaimed_bytes;
    if (newest->state == PENDING_WAITING && newest->stored_len + bytes(m, PENDING_UNCLAIMED) > room)
        newest->stored = false;
    else if (newest->stored_len > room)
        lose(m, newest);
    while (count(m, PENDING_UNCLAIMED) > m->limits.max_unclaimed)
        lose(m, oldest(m, PENDING_UNCLAIMED));
    model_entry *progress;
    while (bytes(m, 0) > room && (progress = oldest_progress(m)) != NULL)
        progress->stored = false;
    while (bytes(m, 0) > room)
        lose(m, oldest(m, PENDING_UNCLAIMED));
    return m->evicted - before;
}

/* Ids of many lengths, some of them prefixes of others. */
static wire_view id_of(unsigned which, uint8_t id[256])
{
    memset(id, (int)(which % 3), 256);
    size_t len = 1 + (which / 3) * 12;
    return (wire_view){id, len > 255 ? 255 : len};
}

static void compare(const pending *p, const model *m)
{
    uint8_t block[256];
    CHECK(pending_check(p) == 0);
    for (int state = PENDING_WAITING; state < PENDING_STATES; state++)
        CHECK(pending_count(p, state) == count(m, state));
    CHECK(pending_bytes(p) == bytes(m, 0));
    CHECK(pending_evicted(p) == m->evicted);
    for (unsigned i = 0; i < IDS; i++) {
        const pending_entry *e = pending_find(p, id_of(i, block));
        const model_entry *expected = &m->ids[i];
        CHECK((e == NULL ? PENDING_UNKNOWN : e->state) == expected->state);
        if (e == NULL)
            continue;
        CHECK(e->stored == expected->stored);
        if (e->state == PENDING_WAITING)
            CHECK(e->waiter == expected->waiter);
        if (!e->stored)
            continue;
        if (e->state == PENDING_UNCLAIMED)
            CHECK(e->arrived == expected->arrived);
        CHECK((size_t)e->format_len + e->body_len == expected->stored_len);
        for (size_t n = 0; n < expected->stored_len; n++)
            CHECK(pending_format(e).ptr[n] == expected->fill);
    }
}

static void call(pending *p, model *m, unsigned what, unsigned which, uint8_t amount)
{
    uint8_t block[256], fill[512];
    const wire_view id = id_of(which, block);
    model_entry *expected = &m->ids[which];
    pending_entry *e = pending_find(p, id), *found;
    uint32_t waiter = which + 1, got;
    switch (what) {
    case 0:
        CHECK(pending_wait(p, id, waiter, &found) == expected->state);
        CHECK((found != NULL) == (expected->state == PENDING_WAITING));
        if (expected->state == PENDING_UNKNOWN) {
            expected->waiter = waiter;
            expected->stored = false;
            become(m, expected, PENDING_WAITING);
        }
        break;
    case 1:
        if (expected->state != PENDING_WAITING)
            break;
        pending_unwait(p, e);
        if (!expected->stored || count(m, PENDING_UNCLAIMED) >= m->limits.max_unclaimed) {
            expected->state = PENDING_UNKNOWN;
            expected->stored = false;
        } else {
            expected->arrived = m->clock;
            become(m, expected, PENDING_UNCLAIMED);
        }
        break;
    case 2:
        CHECK(pending_finish(p, id, &got) == expected->state);
        CHECK(got == (expected->state == PENDING_WAITING ? waiter : 0));
        if (expected->state != PENDING_DONE)
            become(m, expected, PENDING_DONE);
        break;
    case 3:
    case 4:
    case 5: {
        size_t format_len = amount % 4, body_len = amount / 4;
        memset(fill, amount, sizeof fill);
        int64_t outcome = pending_store(p, id, (wire_view){fill, format_len},
                                        (wire_view){fill, body_len}, amount);
        if (expected->state == PENDING_DONE) {
            CHECK(outcome == PENDING_EDUPLICATE);
            break;
        }
        if (amount > m->clock)
            m->clock = amount;
        expected->stored = true;
        expected->stored_len = format_len + body_len;
        expected->fill = amount;
        expected->arrived = m->clock;
        become(m, expected,
               expected->state == PENDING_WAITING ? PENDING_WAITING : PENDING_UNCLAIMED);
        CHECK(outcome == (int64_t)caps(m, expected));
        break;
    }
    case 6:
        if (e == NULL || !e->stored)
            break;
        pending_drop_body(p, e);
        expected->stored = false;
        if (expected->state == PENDING_UNCLAIMED)
            expected->state = PENDING_UNKNOWN;
        break;
    case 7: {
        uint64_t expired = 0;
        model_entry *old;
        while ((old = oldest(m, PENDING_UNCLAIMED)) != NULL && old->arrived < amount) {
            lose(m, old);
            expired++;
        }
        CHECK(pending_expire(p, amount) == expired);
        break;
    }
    case 8:
        pending_forget(p, id);
        expected->stored = false;
        if (expected->state != PENDING_WAITING)
            expected->state = PENDING_UNKNOWN;
        break;
    case 9:
        pending_reset(p, id);
        if (expected->state == PENDING_DONE || expected->state == PENDING_LOST)
            expected->state = PENDING_UNKNOWN;
        break;
    case 10: { /* thousands more come and go: segments split and merge */
        uint8_t other_id[5] = {0xff};
        const wire_view other = {other_id, sizeof other_id};
        if (m->limits.max_done != 0 || m->floods >= 2) /* they are slow */
            break;
        m->floods++;
        for (int finish = 0; finish < 2; finish++) {
            for (uint32_t n = 0; n < (uint32_t)amount * 8; n++) {
                memcpy(other_id + 1, &n, sizeof n);
                if (finish)
                    CHECK(pending_finish(p, other, &got) == PENDING_WAITING);
                else
                    CHECK(pending_wait(p, other, 1, &found) == PENDING_UNKNOWN);
            }
            CHECK(pending_check(p) == 0);
        }
        break;
    }
    default:
        if (amount != 0xff)
            break;
        pending_clear(p);
        memset(m->ids, 0, sizeof m->ids);
        m->clock = 0;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4)
        return 0;
    static const uint8_t seed[16] = "any bytes at all";
    model m;
    memset(&m, 0, sizeof m);
    m.limits = (pending_limits){data[0] % 32, data[1] * 4u, data[2] % 16, data[3] % 16};
    pending *p = pending_new(NULL, seed, &m.limits);
    CHECK(p != NULL);
    unsigned calls = 0;
    for (size_t i = 4; i + 3 <= size && calls < 400; i += 3, calls++) {
        call(p, &m, data[i] % 12, data[i + 1] % IDS, data[i + 2]);
        if (calls % 16 == 0)
            compare(p, &m);
    }
    compare(p, &m);
    pending_free(p);
    return 0;
}
