//! What trains on the card: its numbers, its gradient, its optimiser's states.

use half::bf16;

use super::context::Context;
use super::decoder::Decoder;
use super::memory::View;
use super::ops;
use super::slab::Slab;
use super::spec::Slot;
use crate::error::{EngineError, Result, expect_shape};
use crate::optim::LEAST_FOR_BITS8;

/// Where a gradient lies.
#[derive(Clone, Copy, Debug)]
pub enum Grad {
    /// `f32`.
    Wide(View<f32>),
    /// bf16: half the memory, for weights whose gradients are not summed over many passes.
    Narrow(View<bf16>),
}

/// How moments are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// 8 bytes a weight.
    #[default]
    Wide,
    /// 4 bytes a weight, rounded stochastically.
    Bf16,
    /// 2 bytes a weight and two maxima for 256 (arXiv 2110.02861); small tensors keep `f32`, as on the processor.
    EightBit,
}

impl MomentFormat {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Wide, Self::Bf16, Self::EightBit];

    /// Bits of a number, as the kernels are compiled for them.
    pub(crate) fn bits(self) -> i64 {
        match self {
            Self::Wide => 32,
            Self::Bf16 => 16,
            Self::EightBit => 8,
        }
    }

    /// The format for a tensor of `len` numbers where this one is asked for.
    pub(crate) fn of(self, len: usize) -> Self {
        if self == Self::EightBit && len < LEAST_FOR_BITS8 { Self::Wide } else { self }
    }
}

/// First and second moment on the card.
#[derive(Clone, Copy, Debug)]
pub enum Moments {
    /// `f32`.
    Wide([View<f32>; 2]),
    /// bf16.
    Bf16([View<bf16>; 2]),
    /// Codes of bitsandbytes' dynamic maps, and the maxima of 256.
    EightBit([View<u8>; 2], [View<f32>; 2]),
}

/// A tensor that trains.
#[derive(Debug)]
pub struct Trainable {
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// The numbers in `f32`, unless bf16 is all there is.
    pub(crate) master: Option<View<f32>>,
    /// What products read: `bf16(master · scale)`, or the numbers themselves without a master.
    pub(crate) copy: Option<View<bf16>>,
    pub(crate) scale: f32,
    /// Kept at numbers that bf16 can hold, though in `f32`: norms of a bf16 model.
    pub(crate) on_bf16_grid: bool,
    /// Whether its value is the bf16 copy, and the master a finer one beside it.
    pub(crate) value_is_copy: bool,
    pub(crate) grad: Grad,
    /// Whether the gradient lies where its block's pass puts it, and `grad` says how far from there.
    pub(crate) in_window: bool,
    pub(crate) moments: Option<Moments>,
    /// Updates so far.
    pub updates: u64,
    /// Where it stands: its weight's place, and 1 for an adapter's A, 2 for its B, 3 for its magnitudes. What trains is in this
    /// order, whenever it began.
    pub(crate) key: (Slot, u8),
    /// Whether it trains now; what stopped keeps its numbers.
    pub(crate) trains: bool,
    /// Memory of its gradient and moments, if it began to train after the model was laid out and may stop again.
    pub(crate) own: Option<Slab>,
}

impl Trainable {
    /// An adapter's matrix, of which products read `scale` times its numbers in `copy`; with its numbers and its gradient.
    pub(crate) fn of_adapter(
        name: &str,
        key: (Slot, u8),
        copy: View<bf16>,
        scale: f32,
        numbers: [View<f32>; 2],
    ) -> Self {
        Self { rows: copy.rows(), cols: copy.cols(), copy: Some(copy), scale, ..Self::of_vector(name, key, numbers) }
    }

    /// A vector, with its numbers and its gradient.
    pub(crate) fn of_vector(name: &str, key: (Slot, u8), [values, grad]: [View<f32>; 2]) -> Self {
        Self {
            name: name.into(),
            rows: 1,
            cols: values.cols(),
            master: Some(values),
            copy: None,
            scale: 1.0,
            on_bf16_grid: false,
            value_is_copy: false,
            grad: Grad::Wide(grad),
            in_window: false,
            moments: None,
            updates: 0,
            key,
            trains: true,
            own: None,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its numbers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn value(&self, context: &Context) -> Result<Vec<f32>> {
        match (self.master, self.copy) {
            (Some(master), _) => context.download(master),
            (None, Some(copy)) => Ok(context.download(copy)?.into_iter().map(bf16::to_f32).collect()),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Sets its numbers.
    ///
    /// # Errors
    /// When there are too many or too few, or the device fails.
    pub(super) fn set_value(&self, context: &Context, values: &[f32]) -> Result<()> {
        expect_shape(&self.name, self.len(), values.len())?;
        match (self.master, self.copy) {
            (Some(master), copy) => {
                context.upload(master, values)?;
                copy.map_or(Ok(()), |copy| ops::scaled_copy(context, copy, master, self.scale))
            }
            (None, Some(copy)) => context.upload(copy, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            (None, None) => Ok(()),
        }
    }

    /// Its place in the model, if it is a weight and not an adapter's matrix.
    pub fn whole(&self) -> Option<Slot> {
        (self.key.1 == 0).then_some(self.key.0)
    }

    /// Whether it trains now.
    pub fn trains(&self) -> bool {
        self.trains
    }

    /// Its gradient.
    ///
    /// # Errors
    /// When it did not outlast its pass, or the device fails.
    pub fn grad(&self, context: &Context) -> Result<Vec<f32>> {
        if self.in_window {
            let what = format!("the gradient of {}", self.name);
            let found = "a place that blocks share".into();
            return Err(EngineError::Shape { what, expected: "memory of its own".into(), found });
        }
        match self.grad {
            Grad::Wide(grad) => context.download(grad),
            Grad::Narrow(grad) => Ok(context.download(grad)?.into_iter().map(bf16::to_f32).collect()),
        }
    }

    /// Queues setting the gradient to zero, if it has memory of its own: another is replaced.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear_grad(&self, context: &Context) -> Result<()> {
        if self.in_window {
            return Ok(());
        }
        match self.grad {
            Grad::Wide(grad) => context.fill_bytes(grad, 0),
            Grad::Narrow(grad) => context.fill_bytes(grad, 0),
        }
    }

    /// Queues setting its moments to zero, if it has any.
    pub(crate) fn clear_moments(&self, context: &Context) -> Result<()> {
        match self.moments {
            None => Ok(()),
            Some(Moments::Wide(moments)) => moments.into_iter().try_for_each(|moment| context.fill_bytes(moment, 0)),
            Some(Moments::Bf16(moments)) => moments.into_iter().try_for_each(|moment| context.fill_bytes(moment, 0)),
            Some(Moments::EightBit(codes, maxima)) => {
                codes.into_iter().try_for_each(|codes| context.fill_bytes(codes, 0))?;
                maxima.into_iter().try_for_each(|maxima| context.fill_bytes(maxima, 0))
            }
        }
    }

    /// Makes its moments, of zeros, if it has none.
    pub(crate) fn make_moments(&mut self, slab: &mut Slab, format: MomentFormat) -> Result<()> {
        if self.moments.is_some() {
            return Ok(());
        }
        let (len, blocks) = (self.len(), self.len().div_ceil(256));
        let slab = self.own.as_mut().unwrap_or(slab);
        self.moments = Some(match format.of(len) {
            MomentFormat::Wide => Moments::Wide([slab.zeros(1, len, 0)?, slab.zeros(1, len, 0)?]),
            MomentFormat::Bf16 => Moments::Bf16([slab.zeros(1, len, 0)?, slab.zeros(1, len, 0)?]),
            MomentFormat::EightBit => Moments::EightBit(
                [slab.zeros(1, len, 0)?, slab.zeros(1, len, 0)?],
                [slab.zeros(1, blocks, 0)?, slab.zeros(1, blocks, 0)?],
            ),
        });
        Ok(())
    }
}

impl Decoder {
    /// Sets the numbers of something that trains or once did, by its number.
    ///
    /// # Errors
    /// When there is no such thing, there are too many or too few, or the device fails.
    pub fn set_value(&mut self, index: usize, values: &[f32]) -> Result<()> {
        self.lower();
        match self.trainables.get(index) {
            Some(trainable) => trainable.set_value(&self.context, values),
            None => Err(EngineError::Shape {
                what: "the number of what trains".into(),
                expected: format!("less than {}", self.trainables.len()),
                found: index.to_string(),
            }),
        }
    }
}
