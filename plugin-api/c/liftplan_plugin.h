/* The C ABI of Liftplan's native plugins. Made from plugin-api/rust/src/abi.rs; do not edit.
 *
 * A plugin is a dynamic library that exports liftplan_plugin() and has its metadata, one JSON object, in the section
 * ".liftplan" (macOS: "__DATA,__liftplan"); LIFTPLAN_METADATA puts it there.
 *
 * Every function of the host gives 0 when it did what it was asked, and writes its answer to `out`. Any other number is an
 * error's code, and last_failure says more; returning it from make_plan or revise hands the error on to the user. Texts
 * are UTF-8 without a zero at the end. What the host hands out stays where it is until the plugin's function returns. All
 * calls must come from the thread that the host called on. */
#ifndef LIFTPLAN_PLUGIN_H
#define LIFTPLAN_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this ABI. A plugin and a host with different ones do not fit together. */
#define LIFTPLAN_ABI_VERSION 1

typedef struct liftplan_host liftplan_host;

/* A text, or bytes: where it begins and how many bytes it has. */
typedef struct liftplan_text {
    const uint8_t *data;
    size_t length;
} liftplan_text;

/* Several texts. */
typedef struct liftplan_texts {
    const liftplan_text *data;
    size_t length;
} liftplan_texts;

/* Several numbers. */
typedef struct liftplan_numbers {
    const double *data;
    size_t length;
} liftplan_numbers;

/* Several tensors, by their numbers. */
typedef struct liftplan_tensors {
    const uint32_t *data;
    size_t length;
} liftplan_tensors;

/* A tensor's shape. */
typedef struct liftplan_shape {
    const uint64_t *data;
    size_t length;
} liftplan_shape;

/* A number that may be absent. */
typedef struct liftplan_maybe_number {
    double value;
    bool known;
} liftplan_maybe_number;

/* A whole number that may be absent. */
typedef struct liftplan_maybe_count {
    uint64_t value;
    bool known;
} liftplan_maybe_count;

/* Bytes that may be absent. */
typedef struct liftplan_maybe_text {
    liftplan_text value;
    bool known;
} liftplan_maybe_text;

/* A low-rank adapter. */
typedef struct liftplan_adapter {
    /* Between 1 and the weight's smaller dimension. */
    uint32_t rank;
    /* Scale by alpha / sqrt(rank) (arXiv 2312.03732). */
    bool rank_stabilised;
    /* Train magnitude and direction apart: DoRA (arXiv 2402.09353). */
    bool dora;
    /* Numerator of the scale alpha / rank. */
    double alpha;
    /* Probability in [0, 1) that an input is dropped. */
    double dropout;
} liftplan_adapter;

/* What went wrong, for a person to read. */
typedef struct liftplan_failure {
    /* 1: the settings are wrong. 2: no plan can be made. 3: not available here. 4: a defect. */
    uint32_t code;
    /* What was wrong, where, and what was expected. About a setting it begins with its path in backquotes. */
    liftplan_text message;
    /* What to do about it; may be empty. */
    liftplan_text help;
} liftplan_failure;

/* What a plugin gives to the host. A `make_plan` or `revise` that returns anything but 0 has failed, for the reason that
 * it gave to `fail`, or else for that of the last question that failed. */
typedef struct liftplan_policy {
    /* `sizeof(liftplan_policy)` when the plugin was compiled. */
    size_t size;
    /* `LIFTPLAN_ABI_VERSION` when the plugin was compiled. */
    uint32_t abi;
    /* 0. */
    uint32_t reserved;
    /* Makes the first plan. `settings` is a JSON object that fits the plugin's schema, defaults filled in. */
    int32_t (*make_plan)(const liftplan_host *host, liftplan_text settings);
    /* Revises the plan at a pick that the plan asked for; null in a plugin without the capability `revise`. */
    int32_t (*revise)(const liftplan_host *host, liftplan_text settings);
} liftplan_policy;

/* What the host gives to a plugin's functions. */
struct liftplan_host {
    /* `sizeof(liftplan_host)` of this host: functions beyond it are not there. */
    size_t size;
    /* The host's `LIFTPLAN_ABI_VERSION`. */
    uint32_t abi;
    /* 0. */
    uint32_t reserved;
    /* The host's own. */
    void *context;
    /* Why the last question failed. */
    int32_t (*last_failure)(const liftplan_host *host, liftplan_failure *out);
    /* Says why the plugin fails; its function then returns the code. */
    int32_t (*fail)(const liftplan_host *host, uint32_t code, liftplan_text message, liftplan_text help);
    /* A number of the settings, by its path with dots. */
    int32_t (*setting_number)(const liftplan_host *host, liftplan_text path, double *out);
    /* A text of the settings. */
    int32_t (*setting_text)(const liftplan_host *host, liftplan_text path, liftplan_text *out);
    /* A boolean of the settings. */
    int32_t (*setting_flag)(const liftplan_host *host, liftplan_text path, bool *out);
    /* A list of texts of the settings; a single text counts as a list of one. */
    int32_t (*setting_texts)(const liftplan_host *host, liftplan_text path, liftplan_texts *out);
    /* The family's name, `llama`, `qwen3`. */
    int32_t (*architecture)(const liftplan_host *host, liftplan_text *out);
    /* The number of decoder blocks, which count from 0. */
    int32_t (*blocks)(const liftplan_host *host, uint32_t *out);
    /* Whether the output head is the embedding. */
    int32_t (*tied)(const liftplan_host *host, bool *out);
    /* The number of tensors, which count from 0 in the order of the forward pass. */
    int32_t (*tensor_count)(const liftplan_host *host, uint32_t *out);
    /* The tensor of this name; one that the model lacks is an error that names the nearest. */
    int32_t (*find)(const liftplan_host *host, liftplan_text name, uint32_t *out);
    /* The run's seed. */
    int32_t (*seed)(const liftplan_host *host, uint64_t *out);
    /* The `draw`-th of the first plan's random numbers, which depend on the seed alone. */
    int32_t (*random)(const liftplan_host *host, uint64_t draw, uint64_t *out);
    /* The bytes of memory that the run may use, if the user set a limit. */
    int32_t (*memory_budget)(const liftplan_host *host, liftplan_maybe_count *out);
    /* The tensors of these kinds (of any, if there are none) that the patterns match, for the setting at this path. */
    int32_t (*choose)(const liftplan_host *host, liftplan_text setting, liftplan_texts patterns, liftplan_texts kinds, liftplan_tensors *out);
    /* Those of `among` that the patterns match. Each pattern must match one of them. */
    int32_t (*matching)(const liftplan_host *host, liftplan_text setting, liftplan_texts patterns, liftplan_tensors among, liftplan_tensors *out);
    /* Computes a statistic of many tensors at once: `singular-values` or `elements`. */
    int32_t (*prepare)(const liftplan_host *host, liftplan_text statistic, liftplan_tensors tensors);
    /* The canonical Hugging Face name. */
    int32_t (*tensor_name)(const liftplan_host *host, uint32_t tensor, liftplan_text *out);
    /* Its part in a block or in the model, `q_proj`, `embed_tokens`. */
    int32_t (*tensor_role)(const liftplan_host *host, uint32_t tensor, liftplan_text *out);
    /* `embedding`, `linear`, `bias`, `norm` or `head`. */
    int32_t (*tensor_kind)(const liftplan_host *host, uint32_t tensor, liftplan_text *out);
    /* The decoder block it belongs to, or -1. */
    int32_t (*tensor_block)(const liftplan_host *host, uint32_t tensor, int64_t *out);
    /* Outermost dimension first; a linear layer's weight is `[out, in]`. */
    int32_t (*tensor_shape)(const liftplan_host *host, uint32_t tensor, liftplan_shape *out);
    /* The number of elements. */
    int32_t (*tensor_elements)(const liftplan_host *host, uint32_t tensor, uint64_t *out);
    /* How the checkpoint stores it. */
    int32_t (*tensor_dtype)(const liftplan_host *host, uint32_t tensor, liftplan_text *out);
    /* How the run keeps it unless the plan says otherwise. */
    int32_t (*tensor_storage)(const liftplan_host *host, uint32_t tensor, liftplan_text *out);
    /* Whether it is the embedding and the output head at once. */
    int32_t (*tensor_tied)(const liftplan_host *host, uint32_t tensor, bool *out);
    /* All singular values of a two-dimensional weight, descending. */
    int32_t (*singular_values)(const liftplan_host *host, uint32_t tensor, liftplan_numbers *out);
    /* The singular value above which Spectrum (arXiv 2406.06623) counts as signal. */
    int32_t (*spectral_threshold)(const liftplan_host *host, uint32_t tensor, double *out);
    /* Spectrum's signal-to-noise ratio. */
    int32_t (*snr)(const liftplan_host *host, uint32_t tensor, double *out);
    /* `snr`, `spectral_norm`, `nuclear_norm`, `stable_rank` or `effective_rank`. */
    int32_t (*spectral)(const liftplan_host *host, uint32_t tensor, liftplan_text name, double *out);
    /* A norm of the elements: `l1`, `l2` or `max`. */
    int32_t (*norm)(const liftplan_host *host, uint32_t tensor, liftplan_text name, double *out);
    /* Quantiles of the elements at these parts (0 to 1). */
    int32_t (*quantiles)(const liftplan_host *host, uint32_t tensor, liftplan_numbers parts, liftplan_numbers *out);
    /* Quantiles of the elements' magnitudes. */
    int32_t (*magnitude_quantiles)(const liftplan_host *host, uint32_t tensor, liftplan_numbers parts, liftplan_numbers *out);
    /* Mean, variance, skewness and excess kurtosis of the elements. */
    int32_t (*moments)(const liftplan_host *host, uint32_t tensor, liftplan_numbers *out);
    /* Measures the model, as it was before training, on so many batches; needs the capability `calibration`. */
    int32_t (*calibrate)(const liftplan_host *host, uint32_t batches);
    /* Target tokens that it was measured on. */
    int32_t (*calibration_tokens)(const liftplan_host *host, uint64_t *out);
    /* Mean loss of a target token, in nats. */
    int32_t (*calibration_loss)(const liftplan_host *host, double *out);
    /* The same without one decoder block. */
    int32_t (*loss_without_block)(const liftplan_host *host, uint32_t block, double *out);
    /* The mean cosine of a block's input and output. */
    int32_t (*block_cosine)(const liftplan_host *host, uint32_t block, double *out);
    /* Norm of the gradient of the mean loss. */
    int32_t (*gradient_norm)(const liftplan_host *host, uint32_t tensor, double *out);
    /* Sum over the elements of the squared gradient, a mean over the batches. */
    int32_t (*squared_gradient)(const liftplan_host *host, uint32_t tensor, double *out);
    /* Sum over the elements of |weight · gradient|. */
    int32_t (*weight_gradient)(const liftplan_host *host, uint32_t tensor, double *out);
    /* Mean, mean square, mean magnitude and largest magnitude of a linear layer's input. */
    int32_t (*input_moments)(const liftplan_host *host, uint32_t tensor, liftplan_numbers *out);
    /* Leaves the tensor as it is. */
    int32_t (*freeze)(const liftplan_host *host, uint32_t tensor);
    /* Trains all of the tensor. */
    int32_t (*train)(const liftplan_host *host, uint32_t tensor);
    /* Trains a low-rank adapter beside a linear layer's weight. */
    int32_t (*adapt)(const liftplan_host *host, uint32_t tensor, const liftplan_adapter *adapter);
    /* How a tensor is kept: `f32`, `bf16`, `nf4`. */
    int32_t (*storage)(const liftplan_host *host, uint32_t tensor, liftplan_text storage);
    /* A factor on the learning rate, above 0, set after the treatment. */
    int32_t (*lr_scale)(const liftplan_host *host, uint32_t tensor, double factor);
    /* A further factor for an adapter's B matrix and magnitude (LoRA+). */
    int32_t (*lr_scale_b)(const liftplan_host *host, uint32_t tensor, double factor);
    /* A score, for reports. It must be finite. */
    int32_t (*score)(const liftplan_host *host, uint32_t tensor, double score);
    /* Asks for a revision after every so many steps. */
    int32_t (*pick_every)(const liftplan_host *host, uint64_t steps);
    /* Asks for a revision before this step, 2 or later. */
    int32_t (*pick_at)(const liftplan_host *host, uint64_t step);
    /* What happens to the tensor as things stand: `frozen`, `train` or `adapt`. */
    int32_t (*treatment)(const liftplan_host *host, uint32_t tensor, liftplan_text *out);
    /* Parameters that train as things stand, those of adapters included. */
    int32_t (*trainable_parameters)(const liftplan_host *host, uint64_t *out);
    /* An estimate of the bytes that weights, gradients and optimiser states take as things stand. */
    int32_t (*memory_estimate)(const liftplan_host *host, uint64_t *out);
    /* In a revision: the step about to be done, from 1. */
    int32_t (*step)(const liftplan_host *host, uint64_t *out);
    /* Steps planned in all. */
    int32_t (*total_steps)(const liftplan_host *host, uint64_t *out);
    /* The step that was the first one after the last pick, or 1. */
    int32_t (*since)(const liftplan_host *host, uint64_t *out);
    /* The losses of up to `count` steps from `first` on, in nats a target token, as far as they are done. */
    int32_t (*losses)(const liftplan_host *host, uint64_t first, uint32_t count, liftplan_numbers *out);
    /* Root mean square since the last pick of the norm of the tensor's gradient, if it trained. */
    int32_t (*run_gradient_norm)(const liftplan_host *host, uint32_t tensor, liftplan_maybe_number *out);
    /* The same of the change that each step made. */
    int32_t (*run_update_norm)(const liftplan_host *host, uint32_t tensor, liftplan_maybe_number *out);
    /* The `draw`-th random number of this pick: it depends on seed, step and `draw` alone. */
    int32_t (*pick_random)(const liftplan_host *host, uint64_t draw, uint64_t *out);
    /* What the policy kept under this key. It is part of every checkpoint. */
    int32_t (*get_state)(const liftplan_host *host, liftplan_text key, liftplan_maybe_text *out);
    /* Keeps the value; an empty one removes the key. */
    int32_t (*set_state)(const liftplan_host *host, liftplan_text key, liftplan_text value);
    /* A message to the user: 0 for the author of the plugin, 1 to inform, 2 to warn. */
    int32_t (*log)(const liftplan_host *host, uint32_t level, liftplan_text message);
};

/* Asks the host, and hands its error on if it refuses. */
#define LIFTPLAN_TRY(call)           \
    do {                             \
        int32_t liftplan_code = (call); \
        if (liftplan_code != 0)      \
            return liftplan_code;    \
    } while (0)

/* A text from a string literal. */
#define LIFTPLAN_TEXT(literal) ((liftplan_text){ (const uint8_t *)(literal), sizeof(literal) - 1 })

/* The plugin's metadata: JSON as a string literal, once in a library. */
#ifdef __APPLE__
#define LIFTPLAN_SECTION "__DATA,__liftplan"
#else
#define LIFTPLAN_SECTION ".liftplan"
#endif
#define LIFTPLAN_METADATA(json) \
    __attribute__((used, section(LIFTPLAN_SECTION))) static const char liftplan_metadata[] = json;

/* What a plugin exports. */
__attribute__((visibility("default"))) const liftplan_policy *liftplan_plugin(void);

#ifdef __cplusplus
}
#endif

#endif
