/* Trains the linear layers' weights with the largest norm: a plugin in C, for the example.
 *
 *     cc -O2 -shared -fPIC -I ../../plugin-api/c -o top-norm.so top_norm.c
 */
#include <liftplan_plugin.h>

#include <stdlib.h>
#include <string.h>

LIFTPLAN_METADATA("{"
                  "\"name\": \"top-norm-c\", \"version\": \"1.0.0\", \"author\": \"Liftplan\","
                  "\"license\": \"MIT OR Apache-2.0\", \"api\": \"0.1\","
                  "\"about\": \"Trains the linear layers' weights with the largest norm.\","
                  "\"capabilities\": [\"statistics\"],"
                  "\"settings\": {\"type\": \"object\", \"properties\": {"
                  "\"percent\": {\"type\": \"number\", \"exclusiveMinimum\": 0, \"maximum\": 100, \"default\": 25,"
                  "\"description\": \"how many of the weights train, in percent, rounded down, but at least one\"},"
                  "\"norm\": {\"enum\": [\"l1\", \"l2\", \"max\"], \"default\": \"l2\","
                  "\"description\": \"which norm of a weight's elements\"}}}}")

typedef struct {
    uint32_t tensor;
    double norm;
} scored;

/* The largest norm first, and of equal ones the earlier tensor. */
static int compare(const void *left, const void *right) {
    const scored *a = left, *b = right;
    if (a->norm != b->norm)
        return a->norm < b->norm ? 1 : -1;
    return a->tensor < b->tensor ? -1 : 1;
}

static int32_t plan(const liftplan_host *host, scored *weights, uint32_t tensors) {
    double percent;
    liftplan_text norm;
    LIFTPLAN_TRY(host->setting_number(host, LIFTPLAN_TEXT("percent"), &percent));
    LIFTPLAN_TRY(host->setting_text(host, LIFTPLAN_TEXT("norm"), &norm));
    size_t count = 0;
    for (uint32_t tensor = 0; tensor < tensors; tensor++) {
        liftplan_text kind;
        LIFTPLAN_TRY(host->tensor_kind(host, tensor, &kind));
        if (kind.length != 6 || memcmp(kind.data, "linear", 6) != 0)
            continue;
        weights[count].tensor = tensor;
        LIFTPLAN_TRY(host->norm(host, tensor, norm, &weights[count].norm));
        LIFTPLAN_TRY(host->score(host, tensor, weights[count].norm));
        count++;
    }
    if (count == 0)
        return host->fail(host, 2, LIFTPLAN_TEXT("the model has no linear layers"), LIFTPLAN_TEXT(""));
    qsort(weights, count, sizeof(scored), compare);
    size_t kept = (size_t)((double)count * percent / 100);
    for (size_t i = 0; i < (kept > 0 ? kept : 1); i++)
        LIFTPLAN_TRY(host->train(host, weights[i].tensor));
    return 0;
}

static int32_t make_plan(const liftplan_host *host, liftplan_text settings) {
    uint32_t tensors;
    (void)settings;
    LIFTPLAN_TRY(host->tensor_count(host, &tensors));
    scored *weights = calloc(tensors > 0 ? tensors : 1, sizeof(scored));
    if (weights == NULL)
        return host->fail(host, 4, LIFTPLAN_TEXT("out of memory"), LIFTPLAN_TEXT(""));
    int32_t code = plan(host, weights, tensors);
    free(weights);
    return code;
}

const liftplan_policy *liftplan_plugin(void) {
    static const liftplan_policy policy = {
        .size = sizeof(liftplan_policy),
        .abi = LIFTPLAN_ABI_VERSION,
        .make_plan = make_plan,
    };
    return &policy;
}
