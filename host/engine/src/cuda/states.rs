//! The optimiser's states from the card to a checkpoint and back. In and out: the same states as the CPU's optimiser has.

use std::collections::BTreeMap;

use super::decoder::Decoder;
use super::trainable::{MomentFormat, Moments};
use crate::error::{EngineError, Result, expect_shape};
use crate::optim::{Moment, State};

impl Decoder {
    /// The states of everything that trains and was updated, by name. A weight in bf16 that keeps an `f32` copy has it as its master.
    ///
    /// # Errors
    /// When the device fails.
    pub fn states(&self) -> Result<BTreeMap<String, State>> {
        let context = &self.context;
        let mut states = BTreeMap::new();
        // What stopped and may begin again has memory for moments, and none to tell of.
        for trainable in self.trainables.iter().filter(|trainable| trainable.trains) {
            let (first, second) = match trainable.moments {
                None => continue,
                Some(Moments::Wide([first, second])) => {
                    (Moment::F32(context.download(first)?.into()), Moment::F32(context.download(second)?.into()))
                }
                Some(Moments::Bf16([first, second])) => {
                    let wide = |values: Vec<half::bf16>| values.into_iter().map(|x| x.to_f32()).collect::<Vec<_>>();
                    let [first, second] = [wide(context.download(first)?), wide(context.download(second)?)];
                    (Moment::F32(first.into()), Moment::F32(second.into()))
                }
                Some(Moments::EightBit(codes, maxima)) => {
                    let moment = |at: usize| -> Result<Moment> {
                        Ok(Moment::Bits8 {
                            codes: context.download(codes[at])?.into(),
                            absmax: context.download(maxima[at])?,
                        })
                    };
                    (moment(0)?, moment(1)?)
                }
            };
            let keeps_master = self.options.masters && trainable.rows > 1 && trainable.copy.is_some();
            let master = match trainable.master.filter(|_| keeps_master) {
                Some(master) => Some(context.download(master)?.into()),
                None => None,
            };
            states.insert(trainable.name.clone(), State { first, second, master, updates: trainable.updates });
        }
        Ok(states)
    }

    /// Puts states back that [`Decoder::states`] gave.
    ///
    /// # Errors
    /// When one does not fit its tensor or the format that moments are kept in, or the device fails.
    pub fn set_states(&mut self, states: BTreeMap<String, State>) -> Result<()> {
        self.lower();
        self.context.bind()?;
        let (context, format) = (self.context.clone(), self.options.moments);
        for trainable in &mut self.trainables {
            let Some(state) = states.get(&trainable.name) else { continue };
            expect_shape(&trainable.name, trainable.len(), state.first.len())?;
            expect_shape(&trainable.name, trainable.len(), state.second.len())?;
            trainable.make_moments(&mut self.slab, format)?;
            let parts = [&state.first, &state.second];
            match (trainable.moments, format) {
                (Some(Moments::Wide(views)), _) => {
                    for (view, moment) in views.into_iter().zip(parts) {
                        match moment {
                            Moment::F32(values) => context.upload(view, values)?,
                            Moment::Bits8 { .. } => return Err(format_error(&trainable.name, "32 bits", "8 bits")),
                        }
                    }
                }
                (Some(Moments::EightBit(codes, maxima)), _) => {
                    for ((codes, maxima), moment) in codes.into_iter().zip(maxima).zip(parts) {
                        match moment {
                            Moment::Bits8 { codes: values, absmax } => {
                                context.upload(codes, values)?;
                                context.upload(maxima, absmax)?;
                            }
                            Moment::F32(_) => return Err(format_error(&trainable.name, "8 bits", "32 bits")),
                        }
                    }
                }
                (Some(Moments::Bf16(views)), _) => {
                    for (view, moment) in views.into_iter().zip(parts) {
                        match moment {
                            Moment::F32(values) => {
                                let narrow: Vec<_> = values.iter().map(|&x| half::bf16::from_f32(x)).collect();
                                context.upload(view, &narrow)?;
                            }
                            Moment::Bits8 { .. } => return Err(format_error(&trainable.name, "16 bits", "8 bits")),
                        }
                    }
                }
                (None, MomentFormat::Wide | MomentFormat::Bf16 | MomentFormat::EightBit) => {}
            }
            if let Some(master) = &state.master {
                trainable.set_value(&context, master)?;
            }
            trainable.updates = state.updates;
        }
        Ok(())
    }
}

fn format_error(name: &str, expected: &str, found: &str) -> EngineError {
    EngineError::Shape { what: format!("moments of {name}"), expected: expected.into(), found: found.into() }
}
