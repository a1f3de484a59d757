//! The model as a policy sees it: everything but the weights, of which it can ask for statistics.

use std::cell::OnceCell;

use crate::{Result, host};

/// The model.
pub struct Model<'a> {
    view: &'a host::View,
}

/// One weight of the model.
pub struct Tensor {
    tensor: host::Tensor,
    id: u32,
    // Each is asked for when it is first needed: a model has hundreds of tensors, and most policies look at little of them.
    name: OnceCell<String>,
    role: OnceCell<String>,
    kind: OnceCell<Kind>,
    block: OnceCell<Option<u32>>,
}

/// What kind of weight a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The token embedding, `[vocab, hidden]`.
    Embedding,
    /// A linear layer's weight, `[out, in]`. Only these can be adapted.
    Linear,
    /// A linear layer's bias.
    Bias,
    /// A normalisation's scale.
    Norm,
    /// The output head, `[vocab, hidden]`.
    Head,
    /// A kind that came after this SDK.
    Other(String),
}

/// Moments of a weight's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Their mean.
    pub mean: f64,
    /// Mean squared distance from the mean.
    pub variance: f64,
    /// Third standardised moment.
    pub skewness: f64,
    /// Fourth standardised moment less 3.
    pub excess_kurtosis: f64,
}

impl<'a> Model<'a> {
    pub(crate) fn new(view: &'a host::View) -> Self {
        Self { view }
    }

    /// The family's name, `llama`, `qwen3`.
    pub fn architecture(&self) -> String {
        self.view.architecture()
    }

    /// The number of decoder blocks.
    pub fn blocks(&self) -> u32 {
        self.view.blocks()
    }

    /// Whether the output head is the embedding.
    pub fn tied(&self) -> bool {
        self.view.tied()
    }

    /// The number of tensors.
    pub fn tensor_count(&self) -> u32 {
        self.view.tensor_count()
    }

    /// All tensors, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<Tensor> {
        (0..self.tensor_count()).filter_map(|id| self.tensor(id).ok()).collect()
    }

    /// The linear layers' weights, in the order of the forward pass.
    pub fn linear(&self) -> Vec<Tensor> {
        let mut tensors = self.tensors();
        tensors.retain(|tensor| *tensor.kind() == Kind::Linear);
        tensors
    }

    /// The tensor with this number.
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, id: u32) -> Result<Tensor> {
        Ok(Tensor::new(id, self.view.tensor(id)?))
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// There is none; the error names the nearest.
    pub fn find(&self, name: &str) -> Result<Tensor> {
        let tensor = self.view.find(name)?;
        Ok(Tensor::new(tensor.id(), tensor))
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.view.seed()
    }

    /// The `draw`-th random number for a first plan: it depends on the seed alone.
    pub fn random(&self, draw: u64) -> u64 {
        self.view.random(draw)
    }

    /// The bytes of memory that the run may use, if the user set a limit.
    pub fn memory_budget(&self) -> Option<u64> {
        self.view.memory_budget()
    }

    /// The tensors that patterns choose, among those of these kinds (`linear`, …; of any if there are none): `all`,
    /// `all-linear`, roles, ends of names, globs, `re:` and an expression, as in built-in policies. `setting` is the path
    /// of the setting that holds them, `policy.targets`.
    ///
    /// # Errors
    /// A pattern makes no sense, or matches nothing.
    pub fn choose(&self, setting: &str, patterns: &[String], kinds: &[&str]) -> Result<Vec<u32>> {
        let kinds: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
        Ok(self.view.choose(setting, patterns, &kinds)?)
    }

    /// Those of `among` that patterns match.
    ///
    /// # Errors
    /// A pattern makes no sense, or matches none of them.
    pub fn matching(&self, setting: &str, patterns: &[String], among: &[u32]) -> Result<Vec<u32>> {
        Ok(self.view.matching(setting, patterns, among)?)
    }

    /// Computes the singular values of all these tensors at once, which is faster than one by one.
    ///
    /// # Errors
    /// One has not two dimensions, or can't be read.
    pub fn prepare_singular_values(&self, tensors: &[u32]) -> Result<()> {
        Ok(self.view.prepare("singular-values", tensors)?)
    }

    /// Computes norms and moments of all these tensors at once.
    ///
    /// # Errors
    /// One can't be read.
    pub fn prepare_elements(&self, tensors: &[u32]) -> Result<()> {
        Ok(self.view.prepare("elements", tensors)?)
    }

    /// Measures the untrained model on so many batches of the training data.
    ///
    /// # Errors
    /// The plugin doesn't name the capability `calibration`, or there is no data here.
    pub fn calibrate(&self, batches: u32) -> Result<Calibration> {
        Ok(Calibration { session: host::open(self.view, batches)? })
    }
}

impl Tensor {
    fn new(id: u32, tensor: host::Tensor) -> Self {
        Self {
            tensor,
            id,
            name: OnceCell::new(),
            role: OnceCell::new(),
            kind: OnceCell::new(),
            block: OnceCell::new(),
        }
    }

    /// Its number, by which a plan calls it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The canonical Hugging Face name, `model.layers.3.mlp.up_proj.weight`.
    pub fn name(&self) -> &str {
        self.name.get_or_init(|| self.tensor.name())
    }

    /// Its part in a block (`q_proj`) or in the model (`embed_tokens`, `norm`, `lm_head`).
    pub fn role(&self) -> &str {
        self.role.get_or_init(|| self.tensor.role())
    }

    /// What kind of weight it is.
    pub fn kind(&self) -> &Kind {
        self.kind.get_or_init(|| match self.tensor.kind().as_str() {
            "embedding" => Kind::Embedding,
            "linear" => Kind::Linear,
            "bias" => Kind::Bias,
            "norm" => Kind::Norm,
            "head" => Kind::Head,
            other => Kind::Other(other.to_string()),
        })
    }

    /// The decoder block it belongs to, if any.
    pub fn block(&self) -> Option<u32> {
        *self.block.get_or_init(|| self.tensor.block())
    }

    /// Its shape, outermost dimension first.
    pub fn shape(&self) -> Vec<u64> {
        self.tensor.shape()
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.tensor.elements()
    }

    /// How the checkpoint stores it: `f32`, `bf16`, `q4_k`.
    pub fn dtype(&self) -> String {
        self.tensor.dtype()
    }

    /// How the run keeps it unless the plan says otherwise: `f32`, `bf16`, `nf4`.
    pub fn storage(&self) -> String {
        self.tensor.storage()
    }

    /// Whether it is the embedding and the output head at once.
    pub fn tied(&self) -> bool {
        self.tensor.tied()
    }

    /// All singular values, descending. Their last digits depend on the processor: round what you make of them.
    ///
    /// # Errors
    /// It has not two dimensions, or can't be read, as for all statistics.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        Ok(self.tensor.singular_values()?)
    }

    /// The singular value above which Spectrum (arXiv 2406.06623) counts as signal.
    ///
    /// # Errors
    /// As [`Tensor::singular_values`].
    pub fn spectral_threshold(&self) -> Result<f64> {
        Ok(self.tensor.spectral_threshold()?)
    }

    /// Spectrum's signal-to-noise ratio.
    ///
    /// # Errors
    /// As [`Tensor::singular_values`].
    pub fn snr(&self) -> Result<f64> {
        Ok(self.tensor.snr()?)
    }

    /// A number made of the singular values: `snr`, `spectral_norm`, `nuclear_norm`, `stable_rank`, `effective_rank`.
    ///
    /// # Errors
    /// The name is unknown, or as [`Tensor::singular_values`].
    pub fn spectral(&self, name: &str) -> Result<f64> {
        Ok(self.tensor.spectral(name)?)
    }

    /// A norm of the elements: `l1`, `l2` or `max`.
    ///
    /// # Errors
    /// The name is unknown, or the weight can't be read.
    pub fn norm(&self, name: &str) -> Result<f64> {
        Ok(self.tensor.norm(name)?)
    }

    /// Quantiles of the elements at these parts (0 to 1).
    ///
    /// # Errors
    /// A part is outside 0 to 1, or the weight can't be read.
    pub fn quantiles(&self, parts: &[f64]) -> Result<Vec<f64>> {
        Ok(self.tensor.quantiles(parts)?)
    }

    /// Quantiles of the elements' magnitudes.
    ///
    /// # Errors
    /// As [`Tensor::quantiles`].
    pub fn magnitude_quantiles(&self, parts: &[f64]) -> Result<Vec<f64>> {
        Ok(self.tensor.magnitude_quantiles(parts)?)
    }

    /// Moments of the elements.
    ///
    /// # Errors
    /// The weight can't be read.
    pub fn moments(&self) -> Result<Moments> {
        let moments = self.tensor.moments()?;
        let at = |i: usize| moments.get(i).copied().unwrap_or(0.0);
        Ok(Moments { mean: at(0), variance: at(1), skewness: at(2), excess_kurtosis: at(3) })
    }
}

/// Statistics that depend on data: the untrained model on a few batches of the training data.
pub struct Calibration {
    session: host::Session,
}

impl Calibration {
    /// Target tokens that it was measured on.
    pub fn tokens(&self) -> u64 {
        self.session.tokens()
    }

    /// Mean loss of a target token, in nats.
    ///
    /// # Errors
    /// The model can't be run, as for everything below.
    pub fn loss(&self) -> Result<f64> {
        Ok(self.session.loss()?)
    }

    /// The same without one decoder block.
    ///
    /// # Errors
    /// There is no such block.
    pub fn loss_without_block(&self, block: u32) -> Result<f64> {
        Ok(self.session.loss_without_block(block)?)
    }

    /// Mean cosine of a block's input and output.
    ///
    /// # Errors
    /// There is no such block.
    pub fn block_cosine(&self, block: u32) -> Result<f64> {
        Ok(self.session.block_cosine(block)?)
    }

    /// Norm of the gradient of the mean loss.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn gradient_norm(&self, tensor: u32) -> Result<f64> {
        Ok(self.session.gradient_norm(tensor)?)
    }

    /// Sum of the squared gradient, a mean over the batches: the trace of the empirical Fisher matrix.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn squared_gradient(&self, tensor: u32) -> Result<f64> {
        Ok(self.session.squared_gradient(tensor)?)
    }

    /// Sum over the elements of |weight · gradient|.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn weight_gradient(&self, tensor: u32) -> Result<f64> {
        Ok(self.session.weight_gradient(tensor)?)
    }

    /// Mean, mean square, mean magnitude and largest magnitude of a linear layer's input.
    ///
    /// # Errors
    /// The tensor is no linear layer's weight.
    pub fn input_moments(&self, tensor: u32) -> Result<[f64; 4]> {
        let moments = self.session.input_moments(tensor)?;
        Ok(std::array::from_fn(|i| moments.get(i).copied().unwrap_or(0.0)))
    }
}
