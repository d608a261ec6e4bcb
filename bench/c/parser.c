/* Parses small deliveries from a buffer, as they arrive from a socket. */
#include "amqp_bytes.h"
#include "frame.h"
#include "measured.h"

enum { READ = 65536 };

static bytes stream;
static size_t seen;

MEASURED
{
    frame_reader *r = frame_reader_new(NULL, NULL);
    frame_event ev;
    for (size_t at = 0; at < stream.len;) {
        uint8_t *ptr;
        size_t room, left = stream.len - at;
        CHECK(frame_reader_reserve(r, 0, &ptr, &room) == 0);
        room = room < READ ? room : READ;
        room = room < left ? room : left;
        memcpy(ptr, stream.ptr + at, room);
        at += room;
        CHECK(frame_reader_commit(r, room) == 0);
        while (frame_reader_next(r, &ev) == FRAME_DELIVERY)
            seen += ev.body.len == sizeof BODY - 1;
    }
    frame_reader_free(r);
}

int main(void)
{
    char id[37];
    for (unsigned n = 0; n < OPERATIONS; n++) {
        make_id(id, n);
        add_deliver(&stream, 1, "None4", n + 1, "", "6f1b6f9e-3d40-3f5e-a5a8-0f0d1a3a7a55");
        add_header(&stream, 1, sizeof BODY - 1, id);
        add_frame(&stream, 3, 1, BODY, sizeof BODY - 1);
    }
    measured();
    CHECK(seen == OPERATIONS);
    free(stream.ptr);
    printf("%d\n", OPERATIONS);
    return 0;
}
