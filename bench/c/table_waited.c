/* Results with a waiter: wait, find, finish; the oldest DONE ids are forgotten. */
#include "measured.h"
#include "pending.h"

static char ids[OPERATIONS][37];
static pending *table;
static size_t seen;

MEASURED
{
    pending_entry *e;
    for (unsigned n = 0; n < OPERATIONS; n++)
        CHECK(pending_wait(table, view(ids[n], 36), n + 1, &e) == PENDING_UNKNOWN);
    for (unsigned n = 0; n < OPERATIONS; n++) {
        uint32_t waiter;
        e = pending_find(table, view(ids[n], 36));
        CHECK(e != NULL && e->waiter == n + 1);
        seen += pending_finish(table, view(ids[n], 36), &waiter) == PENDING_WAITING;
    }
}

int main(void)
{
    const uint8_t seed[16] = {1, 2, 3, 4};
    const pending_limits limits = {1000000, 1 << 28, 10000, 1000000};
    for (unsigned n = 0; n < OPERATIONS; n++)
        make_id(ids[n], n);
    table = pending_new(NULL, seed, &limits);
    CHECK(table != NULL);
    measured();
    CHECK(seen == OPERATIONS);
    pending_free(table);
    printf("%d\n", OPERATIONS);
    return 0;
}
