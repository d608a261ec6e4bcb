/* Packs each result into one buffer, as for one write. */
#include "measured.h"
#include "publish.h"

static char ids[OPERATIONS][37];
static publish_template template;
static uint8_t out[4096];
static size_t written;

MEASURED
{
    const wire_view queue = view("6f1b6f9e-3d40-3f5e-a5a8-0f0d1a3a7a55", 36);
    for (unsigned n = 0; n < OPERATIONS; n++) {
        const publish_message m = {queue, view(ids[n], 36), view(BODY, sizeof BODY - 1)};
        size_t size;
        CHECK(publish_size(&template, &m, &size) == 0 && size <= sizeof out);
        CHECK(publish_write(&template, &m, out, size) == 0);
        written += size;
    }
}

int main(void)
{
    const publish_options options = {
        .channel = 1,
        .mandatory = true,
        .exchange = view("", 0),
        .content_type = view("application/json", 16),
        .content_encoding = view("utf-8", 5),
        .headers = view("\0\0\0\0", 4),
        .delivery_mode = 1,
        .priority = 0,
    };
    for (unsigned n = 0; n < OPERATIONS; n++)
        make_id(ids[n], n);
    CHECK(publish_template_init(&template, &options, NULL) == 0);
    measured();
    CHECK(written > OPERATIONS * (sizeof BODY - 1));
    publish_template_free(&template);
    printf("%d\n", OPERATIONS);
    return 0;
}
