/* A program of which callgrind counts only `measured` (--toggle-collect=measured), not the
 * preparation. It prints the number of operations. */
#ifndef MEASURED_H
#define MEASURED_H

#include <stdio.h>
#include <string.h>

#include "check.h"
#include "wire.h"

enum { OPERATIONS = 20000 };

#define MEASURED __attribute__((noinline)) void measured(void)

static inline void make_id(char id[37], unsigned n)
{
    snprintf(id, 37, "%08x-7c0e-4d2b-9a52-0d5b1a7c1f10", n * 2654435761u);
}

static inline wire_view view(const char *text, size_t len)
{
    return (wire_view){(const uint8_t *)text, len};
}

static const char BODY[] =
    "{\"task_id\":\"6d3c7a52-7c0e-4d2b-9a52-0d5b1a7c1f10\",\"status\":\"SUCCESS\",\"result\":42,"
    "\"traceback\":null,\"children\":[]}";

#endif
