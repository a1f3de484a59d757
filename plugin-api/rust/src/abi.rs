//! The C ABI between the host and a native plugin: the same questions and answers as `plugin-api/wit`, as one struct of
//! function pointers that only ever grows at its end.
//!
//! This file is the one source: the host and the SDK both compile it, and `plugin-api/c/liftplan_plugin.h` is generated
//! from it (`cargo test --test plugin_header`). A function, once released, keeps its place, name and type; new ones are
//! added at the end, and whoever calls one looks at `Host::size` first.
//!
//! Every function gives 0 when it did what it was asked, and writes its answer to `out`. Any other number is an error's
//! code, and `last_failure` says more. Texts are UTF-8 without a zero at the end. What the host hands out stays where it
//! is until the plugin's function returns. All calls come from the thread that the host called on.

use core::ffi::c_void;

/// The version of this ABI. A plugin and a host with different ones do not fit together.
pub const ABI_VERSION: u32 = 1;
/// The name of the function that a plugin exports: `const liftplan_policy *liftplan_plugin(void)`.
#[allow(dead_code)]
pub const ENTRY: &str = "liftplan_plugin";

/// A text, or bytes: where it begins and how many bytes it has.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    pub data: *const u8,
    pub length: usize,
}

/// Several texts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Texts {
    pub data: *const Text,
    pub length: usize,
}

/// Several numbers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Numbers {
    pub data: *const f64,
    pub length: usize,
}

/// Several tensors, by their numbers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tensors {
    pub data: *const u32,
    pub length: usize,
}

/// A tensor's shape.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Shape {
    pub data: *const u64,
    pub length: usize,
}

/// A number that may be absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MaybeNumber {
    pub value: f64,
    pub known: bool,
}

/// A whole number that may be absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MaybeCount {
    pub value: u64,
    pub known: bool,
}

/// Bytes that may be absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MaybeText {
    pub value: Text,
    pub known: bool,
}

/// A low-rank adapter.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Adapter {
    /// Between 1 and the weight's smaller dimension.
    pub rank: u32,
    /// Scale by alpha / sqrt(rank) (arXiv 2312.03732).
    pub rank_stabilised: bool,
    /// Train magnitude and direction apart: DoRA (arXiv 2402.09353).
    pub dora: bool,
    /// Numerator of the scale alpha / rank.
    pub alpha: f64,
    /// Probability in [0, 1) that an input is dropped.
    pub dropout: f64,
}

/// What went wrong, for a person to read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Failure {
    /// 1: the settings are wrong. 2: no plan can be made. 3: not available here. 4: a defect.
    pub code: u32,
    /// What was wrong, where, and what was expected. About a setting it begins with its path in backquotes.
    pub message: Text,
    /// What to do about it; may be empty.
    pub help: Text,
}

/// What a plugin gives to the host. A `make_plan` or `revise` that returns anything but 0 has failed, for the reason that
/// it gave to `fail`, or else for that of the last question that failed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Policy {
    /// `sizeof(liftplan_policy)` when the plugin was compiled.
    pub size: usize,
    /// `LIFTPLAN_ABI_VERSION` when the plugin was compiled.
    pub abi: u32,
    /// 0.
    pub reserved: u32,
    /// Makes the first plan. `settings` is a JSON object that fits the plugin's schema, defaults filled in.
    pub make_plan: Option<unsafe extern "C" fn(host: *const Host, settings: Text) -> i32>,
    /// Revises the plan at a pick that the plan asked for; null in a plugin without the capability `revise`.
    pub revise: Option<unsafe extern "C" fn(host: *const Host, settings: Text) -> i32>,
}

/// The functions that a plugin can call, in their order in [`Host`].
macro_rules! host_functions {
    ($with:ident) => {
        $with! {
            /// The family's name, `llama`, `qwen3`.
            architecture() -> Text;
            /// The number of decoder blocks, which count from 0.
            blocks() -> u32;
            /// Whether the output head is the embedding.
            tied() -> bool;
            /// The number of tensors, which count from 0 in the order of the forward pass.
            tensor_count() -> u32;
            /// The tensor of this name; one that the model lacks is an error that names the nearest.
            find(name: Text) -> u32;
            /// The run's seed.
            seed() -> u64;
            /// The `draw`-th of the first plan's random numbers, which depend on the seed alone.
            random(draw: u64) -> u64;
            /// The bytes of memory that the run may use, if the user set a limit.
            memory_budget() -> MaybeCount;
            /// The tensors of these kinds (of any, if there are none) that the patterns match, for the setting at this path.
            choose(setting: Text, patterns: Texts, kinds: Texts) -> Tensors;
            /// Those of `among` that the patterns match. Each pattern must match one of them.
            matching(setting: Text, patterns: Texts, among: Tensors) -> Tensors;
            /// Computes a statistic of many tensors at once: `singular-values` or `elements`.
            prepare(statistic: Text, tensors: Tensors);

            /// The canonical Hugging Face name.
            tensor_name(tensor: u32) -> Text;
            /// Its part in a block or in the model, `q_proj`, `embed_tokens`.
            tensor_role(tensor: u32) -> Text;
            /// `embedding`, `linear`, `bias`, `norm` or `head`.
            tensor_kind(tensor: u32) -> Text;
            /// The decoder block it belongs to, or -1.
            tensor_block(tensor: u32) -> i64;
            /// Outermost dimension first; a linear layer's weight is `[out, in]`.
            tensor_shape(tensor: u32) -> Shape;
            /// The number of elements.
            tensor_elements(tensor: u32) -> u64;
            /// How the checkpoint stores it.
            tensor_dtype(tensor: u32) -> Text;
            /// How the run keeps it unless the plan says otherwise.
            tensor_storage(tensor: u32) -> Text;
            /// Whether it is the embedding and the output head at once.
            tensor_tied(tensor: u32) -> bool;
            /// All singular values of a two-dimensional weight, descending.
            singular_values(tensor: u32) -> Numbers;
            /// The singular value above which Spectrum (arXiv 2406.06623) counts as signal.
            spectral_threshold(tensor: u32) -> f64;
            /// Spectrum's signal-to-noise ratio.
            snr(tensor: u32) -> f64;
            /// `snr`, `spectral_norm`, `nuclear_norm`, `stable_rank` or `effective_rank`.
            spectral(tensor: u32, name: Text) -> f64;
            /// A norm of the elements: `l1`, `l2` or `max`.
            norm(tensor: u32, name: Text) -> f64;
            /// Quantiles of the elements at these parts (0 to 1).
            quantiles(tensor: u32, parts: Numbers) -> Numbers;
            /// Quantiles of the elements' magnitudes.
            magnitude_quantiles(tensor: u32, parts: Numbers) -> Numbers;
            /// Mean, variance, skewness and excess kurtosis of the elements.
            moments(tensor: u32) -> Numbers;

            /// Measures the model, as it was before training, on so many batches; needs the capability `calibration`.
            calibrate(batches: u32);
            /// Target tokens that it was measured on.
            calibration_tokens() -> u64;
            /// Mean loss of a target token, in nats.
            calibration_loss() -> f64;
            /// The same without one decoder block.
            loss_without_block(block: u32) -> f64;
            /// The mean cosine of a block's input and output.
            block_cosine(block: u32) -> f64;
            /// Norm of the gradient of the mean loss.
            gradient_norm(tensor: u32) -> f64;
            /// Sum over the elements of the squared gradient, a mean over the batches.
            squared_gradient(tensor: u32) -> f64;
            /// Sum over the elements of |weight · gradient|.
            weight_gradient(tensor: u32) -> f64;
            /// Mean, mean square, mean magnitude and largest magnitude of a linear layer's input.
            input_moments(tensor: u32) -> Numbers;

            /// Leaves the tensor as it is.
            freeze(tensor: u32);
            /// Trains all of the tensor.
            train(tensor: u32);
            /// Trains a low-rank adapter beside a linear layer's weight.
            adapt(tensor: u32, adapter: *const Adapter);
            /// How a tensor is kept: `f32`, `bf16`, `nf4`.
            storage(tensor: u32, storage: Text);
            /// A factor on the learning rate, above 0, set after the treatment.
            lr_scale(tensor: u32, factor: f64);
            /// A further factor for an adapter's B matrix and magnitude (LoRA+).
            lr_scale_b(tensor: u32, factor: f64);
            /// A score, for reports. It must be finite.
            score(tensor: u32, score: f64);
            /// Asks for a revision after every so many steps.
            pick_every(steps: u64);
            /// Asks for a revision before this step, 2 or later.
            pick_at(step: u64);
            /// What happens to the tensor as things stand: `frozen`, `train` or `adapt`.
            treatment(tensor: u32) -> Text;
            /// Parameters that train as things stand, those of adapters included.
            trainable_parameters() -> u64;
            /// An estimate of the bytes that weights, gradients and optimiser states take as things stand.
            memory_estimate() -> u64;

            /// In a revision: the step about to be done, from 1.
            step() -> u64;
            /// Steps planned in all.
            total_steps() -> u64;
            /// The step that was the first one after the last pick, or 1.
            since() -> u64;
            /// The losses of up to `count` steps from `first` on, in nats a target token, as far as they are done.
            losses(first: u64, count: u32) -> Numbers;
            /// Root mean square since the last pick of the norm of the tensor's gradient, if it trained.
            run_gradient_norm(tensor: u32) -> MaybeNumber;
            /// The same of the change that each step made.
            run_update_norm(tensor: u32) -> MaybeNumber;
            /// The `draw`-th random number of this pick: it depends on seed, step and `draw` alone.
            pick_random(draw: u64) -> u64;
            /// What the policy kept under this key. It is part of every checkpoint.
            get_state(key: Text) -> MaybeText;
            /// Keeps the value; an empty one removes the key.
            set_state(key: Text, value: Text);

            /// A message to the user: 0 for the author of the plugin, 1 to inform, 2 to warn.
            log(level: u32, message: Text);
        }
    };
}
#[allow(unused_imports)]
pub(crate) use host_functions;

macro_rules! define_host {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $type:ty),* ) $(-> $out:ty)?;)*) => {
        /// What the host gives to a plugin's functions.
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct Host {
            /// `sizeof(liftplan_host)` of this host: functions beyond it are not there.
            pub size: usize,
            /// The host's `LIFTPLAN_ABI_VERSION`.
            pub abi: u32,
            /// 0.
            pub reserved: u32,
            /// The host's own.
            pub context: *mut c_void,
            /// Why the last question failed.
            pub last_failure: unsafe extern "C" fn(host: *const Host, out: *mut Failure) -> i32,
            /// Says why the plugin fails; its function then returns the code.
            pub fail: unsafe extern "C" fn(host: *const Host, code: u32, message: Text, help: Text) -> i32,
            /// A number of the settings, by its path with dots.
            pub setting_number: unsafe extern "C" fn(host: *const Host, path: Text, out: *mut f64) -> i32,
            /// A text of the settings.
            pub setting_text: unsafe extern "C" fn(host: *const Host, path: Text, out: *mut Text) -> i32,
            /// A boolean of the settings.
            pub setting_flag: unsafe extern "C" fn(host: *const Host, path: Text, out: *mut bool) -> i32,
            /// A list of texts of the settings; a single text counts as a list of one.
            pub setting_texts: unsafe extern "C" fn(host: *const Host, path: Text, out: *mut Texts) -> i32,
            $(
                $(#[$doc])*
                pub $name: unsafe extern "C" fn(host: *const Host $(, $arg: $type)* $(, out: *mut $out)?) -> i32,
            )*
        }
    };
}
host_functions!(define_host);
