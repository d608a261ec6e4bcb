/* The parser alone: small deliveries from memory, one read buffer at a time.
 *     gcc -std=c11 -O3 -Isrc_c -Itests/c bench/c/parser_rate.c src_c/frame.c -o parser_rate
 *     ./parser_rate
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "amqp_bytes.h"
#include "frame.h"
#include "measured.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(void)
{
    bytes one = {0}, all = {0};
    add_deliver(&one, 1, "None4", 1, "", "6f1b6f9e-3d40-3f5e-a5a8-0f0d1a3a7a55");
    add_header(&one, 1, sizeof BODY - 1, "6d3c7a52-7c0e-4d2b-9a52-0d5b1a7c1f10");
    add_frame(&one, 3, 1, BODY, sizeof BODY - 1);
    while (all.len < 64u * 1024 * 1024)
        add_bytes(&all, one.ptr, one.len);

    double best = 0;
    for (int round = 0; round < 5; round++) {
        frame_reader *r = frame_reader_new(NULL, NULL);
        frame_event ev;
        size_t at = 0, deliveries = 0, sum = 0;
        double start = now();
        while (at < all.len) {
            uint8_t *ptr;
            size_t room;
            if (frame_reader_reserve(r, 0, &ptr, &room) < 0)
                return 1;
            if (room > all.len - at)
                room = all.len - at;
            memcpy(ptr, all.ptr + at, room);
            at += room;
            frame_reader_commit(r, room);
            while (frame_reader_next(r, &ev) == FRAME_DELIVERY) {
                sum += ev.body.len + ev.correlation_id.len;
                deliveries++;
            }
        }
        double rate = (double)deliveries / (now() - start);
        if (rate > best)
            best = rate;
        if (deliveries != all.len / one.len || sum == 0)
            return 1;
        frame_reader_free(r);
    }
    printf("%zu bytes a delivery: %.0f deliveries/s\n", one.len, best);
    free(one.ptr);
    free(all.ptr);
    return 0;
}
