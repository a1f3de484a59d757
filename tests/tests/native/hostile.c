/* Native plugins that mean harm, or are broken: one source, a -D for each. Everything not named by one is in order. */
#define _GNU_SOURCE
#include <liftplan_plugin.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef API
#define API "0.1"
#endif
#ifndef SIZE
#define SIZE sizeof(liftplan_policy)
#endif
#ifndef ABI
#define ABI LIFTPLAN_ABI_VERSION
#endif
#ifndef ENTRY
#define ENTRY liftplan_plugin
#endif
#ifndef MAKE_PLAN
#define MAKE_PLAN make_plan
#endif
#ifndef HARM
#define HARM
#endif
#ifndef AT_LOAD
#define AT_LOAD
#endif

LIFTPLAN_METADATA("{\"name\": \"hostile\", \"version\": \"6.6.6\", \"author\": \"M\", \"license\": \"none\","
                  "\"api\": \"" API "\"}")

static volatile int sink;

/* Deeper and deeper. */
int sinks(int depth) {
    volatile char page[4096];
    page[0] = (char)depth;
    sink = page[0];
    return sinks(depth + 1) + page[0];
}

int32_t make_plan(const liftplan_host *host, liftplan_text settings) {
    (void)settings;
    (void)sinks;
    HARM;
    return host->train(host, 1);
}

__attribute__((constructor)) static void at_load(void) {
    AT_LOAD;
}

__attribute__((visibility("default"))) const liftplan_policy *ENTRY(void) {
    static const liftplan_policy policy = { .size = SIZE, .abi = ABI, .make_plan = MAKE_PLAN };
#ifdef NO_TABLE
    return NULL;
#else
    return &policy;
#endif
}
