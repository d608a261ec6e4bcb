/* Test helper: conditions that must hold. If one does not, the program prints it and aborts. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

/* CHECK(what) or CHECK(what, format, ...), to say more. */
#define CHECK(what, ...)                                                                           \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: %s", __FILE__, __LINE__, #what);                               \
            fprintf(stderr, "\n" __VA_ARGS__);                                                     \
            fputc('\n', stderr);                                                                   \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
