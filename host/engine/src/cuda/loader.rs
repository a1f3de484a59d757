//! The way of weights to their places on the card, one by one, so that no more than one is ever held on the host. In: numbers of the
//! host. Out: the same on the card, packed where they are to be.

use half::bf16;

use super::builder::{Place, unfit};
use super::context::Context;
use super::decoder::Decoder;
use super::memory::{Buffer, View};
use super::nf4::Parts;
use super::packed::Packed;
use super::spec::{Role, Slot};
use super::staging::Staging;
use crate::error::{Result, expect_shape};

/// What weights go through on their way.
#[derive(Debug, Default)]
pub struct Loader {
    // Goes first: its copies end before what they go through does.
    pub(super) staging: Staging,
    scratch: Option<Buffer>,
}

/// A weight's numbers on the host.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// 4 bits, as bitsandbytes packs them.
    Nf4(Parts<'a>),
    /// 8-bit codes and each row's largest magnitude.
    Int8(&'a [i8], &'a [f32]),
}

impl Loader {
    /// Copies a weight to its place, packing it if it is to be kept in 4 bits.
    ///
    /// # Errors
    /// When there is no such weight, the numbers do not fit it, or the device fails.
    pub fn load(&mut self, decoder: &Decoder, slot: Slot, data: Data<'_>) -> Result<()> {
        decoder.lower();
        let context = &decoder.context;
        let [rows, cols] = decoder.shape.shape_of(slot.1);
        let found = match data {
            Data::F32(values) => values.len(),
            Data::Bf16(values) => values.len(),
            Data::Nf4(Parts::Single(codes, ..) | Parts::Double(codes, ..)) => codes.len() * 2,
            Data::Int8(codes, _) => codes.len(),
        };
        expect_shape(&format!("{slot:?}"), rows * cols, found)?;
        let narrow = |data: Data<'_>| match data {
            Data::F32(values) => Ok(values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            Data::Bf16(values) => Ok(values.to_vec()),
            Data::Nf4(_) | Data::Int8(..) => Err(unfit(slot, "numbers of 16 or 32 bits", "codes")),
        };
        let wide = |data: Data<'_>| match data {
            Data::F32(values) => Ok(values.to_vec()),
            Data::Bf16(values) => Ok(values.iter().map(|x| x.to_f32()).collect::<Vec<_>>()),
            Data::Nf4(_) | Data::Int8(..) => Err(unfit(slot, "numbers of 16 or 32 bits", "codes")),
        };
        match decoder.places.get(&slot) {
            Some(Place::Matrix { trained: Some(index), .. } | Place::Vector { trained: Some(index), .. }) => {
                decoder.trainables[*index].set_value(context, &wide(data)?)
            }
            Some(Place::Matrix { view, .. }) => {
                let put = |values: &[bf16]| match decoder.home(slot) {
                    Some(home) => home.write(values),
                    None => context.upload(*view, values),
                };
                match data {
                    Data::Bf16(values) => put(values),
                    data => put(&narrow(data)?),
                }
            }
            Some(Place::Vector { view, .. }) => context.upload(*view, &wide(data)?),
            Some(Place::Packed(packed)) => match (packed, data) {
                (Packed::Nf4(packed), Data::Nf4(parts)) => packed.load(context, parts),
                (Packed::Int8(packed), Data::Int8(codes, absmax)) => packed.load(context, codes, absmax),
                (Packed::Int8(_), _) => Err(unfit(slot, "8-bit codes", "other numbers")),
                (Packed::Nf4(packed), data) => {
                    let (packed, values) = (*packed, narrow(data)?);
                    let (whole, maxima) = self.scratch(context, rows, cols, packed.scratch_len())?;
                    context.upload(whole, &values)?;
                    packed.pack(context, whole, maxima)
                }
            },
            None => Err(unfit(slot, "a weight of this model", "none")),
        }
    }

    /// Memory for a whole weight in bf16, and for so many numbers of its packed form.
    pub(super) fn scratch(
        &mut self,
        context: &Context,
        rows: usize,
        cols: usize,
        numbers: usize,
    ) -> Result<(View<bf16>, View<f32>)> {
        let weight = rows * cols * 2;
        let bytes = weight.next_multiple_of(256) + numbers * 4;
        if self.scratch.as_ref().is_none_or(|buffer| buffer.bytes() < bytes) {
            self.scratch = None;
            self.scratch = Some(Buffer::new(context, bytes)?);
        }
        match &self.scratch {
            Some(buffer) => Ok((buffer.view(rows, cols), buffer.part(weight.next_multiple_of(256), 1, numbers))),
            None => Err(unfit((None, Role::Embedding), "scratch memory", "none")),
        }
    }
}
