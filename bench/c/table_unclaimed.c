/* Results without a waiter: store, then find and drop. */
#include "measured.h"
#include "pending.h"

static char ids[OPERATIONS][37];
static pending *table;

MEASURED
{
    for (unsigned n = 0; n < OPERATIONS; n++)
        CHECK(pending_store(table, view(ids[n], 36), view("", 0), view(BODY, sizeof BODY - 1), 1) ==
              0);
    for (unsigned n = 0; n < OPERATIONS; n++) {
        pending_entry *e = pending_find(table, view(ids[n], 36));
        CHECK(e != NULL && e->body_len == sizeof BODY - 1);
        pending_drop_body(table, e);
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
    CHECK(pending_count(table, PENDING_UNCLAIMED) == 0);
    pending_free(table);
    printf("%d\n", OPERATIONS);
    return 0;
}
