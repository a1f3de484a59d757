//! Laying out a model on the card: what each weight is becomes memory, groups of linear layers, and a list of what trains.

use std::cell::Cell;
use std::collections::BTreeMap;

use half::bf16;

use super::attention;
use super::block::{Block, Scale};
use super::builder::{Place, unfit};
use super::context::Context;
use super::decoder::Table;
use super::group::{Group, Part, PartAdapter, Standing, padded};
use super::locked::Locked;
use super::magnitudes::{Factors, Magnitude};
use super::memory::{Element, View};
use super::packed::{Map, Packed};
use super::slab::Slab;
use super::spec::{ModelShape, Options, Role, Slot, Storage, TensorSpec, Treatment};
use super::trainable::{Grad, Trainable};
use crate::error::Result;

/// A model that is being laid out.
pub(super) struct Maker<'a> {
    pub context: &'a Context,
    pub shape: &'a ModelShape,
    pub options: Options,
    pub specs: BTreeMap<Slot, &'a TensorSpec>,
    pub slab: Slab,
    pub trainables: Vec<Trainable>,
    pub places: BTreeMap<Slot, Place>,
    pub map: Map,
    /// The embedding's memory, if that is the host's.
    pub embedding_home: Option<Locked>,
    /// Bytes of the block's gradients so far, where blocks share a place for them.
    pub window: Option<usize>,
}

impl<'a> Maker<'a> {
    fn spec(&self, slot: Slot) -> Result<&'a TensorSpec> {
        self.specs.get(&slot).copied().ok_or_else(|| unfit(slot, "a specification", "none"))
    }

    fn has(&self, slot: Slot) -> bool {
        self.specs.contains_key(&slot)
    }

    pub fn table(&mut self, slot: Slot) -> Result<Table> {
        let spec = self.spec(slot)?;
        let [rows, cols] = self.shape.shape_of(slot.1);
        let view = match slot.1 == Role::Embedding && self.options.embedding_on_host {
            true => self.on_host(spec, [rows, cols])?,
            false => self.slab.take::<bf16>(rows, cols, 0)?,
        };
        let trained = match &spec.treatment {
            Treatment::Frozen => None,
            Treatment::Train => Some(self.trained_matrix(spec, view)?),
            Treatment::Adapt(_) => return Err(unfit(slot, "frozen or trained on a GPU", "an adapter")),
        };
        self.places.insert(slot, Place::Matrix { view, trained });
        Ok(Table { view, trained })
    }

    /// The embedding in the host's memory.
    fn on_host(&mut self, spec: &TensorSpec, [rows, cols]: [usize; 2]) -> Result<View<bf16>> {
        if self.shape.tied {
            return Err(unfit(spec.slot, "on the card, since it is the head too", "in the host's memory"));
        }
        if spec.treatment == Treatment::Train {
            return Err(unfit(spec.slot, "on the card, since it trains", "in the host's memory"));
        }
        let home = Locked::new(self.context, rows * cols * size_of::<bf16>())?;
        let view = home.view(rows, cols);
        self.embedding_home = Some(home);
        Ok(view)
    }

    fn trained_matrix(&mut self, spec: &TensorSpec, view: View<bf16>) -> Result<usize> {
        let (rows, cols) = (view.rows(), view.cols());
        let summed = spec.slot.1 == Role::Embedding || (spec.slot.1 == Role::Head && self.shape.tied);
        let grad = match self.options.narrow_grads && !summed {
            true => Grad::Narrow(self.gradient(rows, cols)?),
            false => Grad::Wide(self.gradient(rows, cols)?),
        };
        let wide = match spec.storage {
            Storage::F32 => true,
            Storage::Bf16 => self.options.masters,
            Storage::Nf4 { .. } | Storage::Int8 => {
                return Err(unfit(spec.slot, "16 or 32 bits, since it trains", "fewer"));
            }
        };
        let master = if wide { Some(self.slab.take(rows, cols, 0)?) } else { None };
        Ok(self.push(Trainable {
            name: spec.name.clone(),
            rows,
            cols,
            master,
            copy: Some(view),
            scale: 1.0,
            on_bf16_grid: false,
            value_is_copy: spec.storage != Storage::F32,
            grad,
            in_window: self.window.is_some(),
            moments: None,
            updates: 0,
            key: (spec.slot, 0),
            trains: true,
            own: None,
        }))
    }

    /// Memory for a matrix's gradient, or how far from its block's place it is to lie.
    fn gradient<T: Element>(&mut self, rows: usize, cols: usize) -> Result<View<T>> {
        let Some(used) = &mut self.window else { return self.slab.take(rows, cols, 0) };
        let view = View::at(*used as u64, rows, cols, cols);
        *used += (rows * cols * size_of::<T>()).next_multiple_of(256);
        Ok(view)
    }

    fn push(&mut self, trainable: Trainable) -> usize {
        self.trainables.push(trainable);
        self.trainables.len() - 1
    }

    fn vector(&mut self, slot: Slot, view: View<f32>) -> Result<Option<usize>> {
        let spec = self.spec(slot)?;
        let trained = match &spec.treatment {
            Treatment::Frozen => None,
            Treatment::Train => {
                let grad = self.slab.zeros(1, view.cols(), 0)?;
                let on_bf16_grid = spec.storage == Storage::Bf16;
                Some(self.push(Trainable { on_bf16_grid, ..Trainable::of_vector(&spec.name, (slot, 0), [view, grad]) }))
            }
            Treatment::Adapt(_) => return Err(unfit(slot, "frozen or trained", "an adapter")),
        };
        self.places.insert(slot, Place::Vector { view, trained });
        Ok(trained)
    }

    pub fn scale(&mut self, slot: Slot) -> Result<Scale> {
        let view = self.slab.take::<f32>(1, self.shape.shape_of(slot.1)[1], 0)?;
        Ok(Scale { view, trained: self.vector(slot, view)? })
    }

    pub fn block(&mut self, index: usize) -> Result<Block> {
        let (block, shape) = (Some(index), self.shape);
        self.window = self.options.update_in_backward.then_some(0);
        let input_norm = self.scale((block, Role::InputNorm))?;
        let qkv = self.group(
            block,
            &[(Role::Q, Some(Role::QBias)), (Role::K, Some(Role::KBias)), (Role::V, Some(Role::VBias))],
        )?;
        let mut head_norm = |role| match self.has((block, role)) {
            true => self.scale((block, role)).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (head_norm(Role::QNorm)?, head_norm(Role::KNorm)?);
        let block = Block {
            attention: attention::Shape {
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                dim: shape.dim,
                window: shape.windows.get(index).copied().flatten(),
                scale: 1.0 / (shape.dim as f32).sqrt(),
                unordered: self.options.unordered,
            },
            eps: shape.rms_eps,
            hidden: shape.hidden,
            intermediate: shape.intermediate,
            input_norm,
            q_norm,
            k_norm,
            qkv,
            o: self.group(block, &[(Role::O, Some(Role::OBias))])?,
            post_norm: self.scale((block, Role::PostNorm))?,
            gate_up: self.group(block, &[(Role::Gate, Some(Role::GateBias)), (Role::Up, Some(Role::UpBias))])?,
            down: self.group(block, &[(Role::Down, Some(Role::DownBias))])?,
            window_bytes: 0,
        };
        Ok(Block { window_bytes: self.window.take().unwrap_or(0), ..block })
    }

    fn group(&mut self, block: Option<usize>, roles: &[(Role, Option<Role>)]) -> Result<Group> {
        let specs = roles.iter().map(|(role, _)| self.spec((block, *role))).collect::<Result<Vec<_>>>()?;
        let inputs = self.shape.shape_of(roles[0].0)[1];
        let outputs: usize = roles.iter().map(|(role, _)| self.shape.shape_of(*role)[0]).sum();
        let rank_of = |spec: &TensorSpec| match &spec.treatment {
            Treatment::Adapt(adapter) => adapter.rank,
            _ => 0,
        };
        let ranks: usize = specs.iter().map(|spec| rank_of(spec)).sum();
        let rank = padded(ranks, &self.options);
        // One weight in 4 bits makes the whole group be put together for each product.
        let assembled = specs.iter().any(|spec| spec.storage.is_packed());
        let standing = Standing::take(&mut self.slab, [outputs, inputs, rank], assembled)?;
        let Standing { weight, a, b } = standing;
        let a_grad = if ranks > 0 { Some(self.gradient::<f32>(ranks, inputs)?) } else { None };
        let has_bias = roles.iter().any(|(_, bias)| bias.is_some_and(|bias| self.has((block, bias))));
        let bias = if has_bias { Some(self.slab.zeros::<f32>(1, outputs, 0)?) } else { None };
        let (mut parts, mut at, mut rank_at) = (Vec::new(), 0, 0);
        for (spec, (role, bias_role)) in specs.into_iter().zip(roles) {
            let rows = self.shape.shape_of(*role)[0];
            let mut part =
                Part { at, outputs: rows, trained: None, adapter: None, packed: None, own: None, bias: None };
            let mut view = weight.map(|weight| weight.slice_rows(at, rows).slice_cols(0, inputs));
            if view.is_none() && !spec.storage.is_packed() {
                part.own = Some(self.slab.take::<bf16>(rows, inputs, 0)?);
                view = part.own;
            }
            match view {
                Some(view) => {
                    if spec.treatment == Treatment::Train {
                        part.trained = Some(self.trained_matrix(spec, view)?);
                    }
                    self.places.insert(spec.slot, Place::Matrix { view, trained: part.trained });
                }
                None => {
                    let map = self.map.wanted(self.context, &mut self.slab, spec.storage)?;
                    let packed = Packed::take(&mut self.slab, [rows, inputs], spec.storage, map)?;
                    let packed = packed.ok_or_else(|| unfit(spec.slot, "4 or 8 bits", "another format"))?;
                    self.places.insert(spec.slot, Place::Packed(packed));
                    part.packed = Some(packed);
                }
            }
            if let (Some(bias), Some(bias_role)) = (bias, *bias_role)
                && self.has((block, bias_role))
            {
                part.bias = self.vector((block, bias_role), bias.slice_cols(at, rows).reshaped(1, rows))?;
            }
            if let (Treatment::Adapt(adapter), Some(a_grad)) = (&spec.treatment, a_grad) {
                let rank = adapter.rank;
                let [a_copy, b_copy] = standing
                    .adapter([outputs, inputs], (at, rows), (rank_at, rank))
                    .ok_or_else(|| unfit(spec.slot, "room for an adapter", "none"))?;
                let a_grad = a_grad.slice_rows(rank_at, rank);
                self.adapter_matrix((&adapter.a, (spec.slot, 1)), a_copy, 1.0, Some(a_grad))?;
                let b = self.adapter_matrix((&adapter.b, (spec.slot, 2)), b_copy, adapter.scale, None)?;
                let magnitude = match &adapter.magnitude {
                    Some(name) => Some(self.magnitude(name, (spec.slot, 3), rows)?),
                    None => None,
                };
                part.adapter = Some(PartAdapter::new(adapter, rank_at, b, magnitude));
                rank_at += rank;
            }
            at += rows;
            parts.push(part);
        }
        let has_magnitudes = parts.iter().filter_map(|part| part.adapter.as_ref()).any(|a| a.magnitude.is_some());
        let factors = if has_magnitudes { Some(Factors::take(self.context, &mut self.slab, outputs)?) } else { None };
        let bias_elsewhere = roles.first().is_some_and(|(role, _)| *role == Role::Q);
        Ok(Group {
            inputs,
            outputs,
            rank,
            ranks,
            weight,
            a,
            b,
            a_grad,
            bias,
            bias_elsewhere,
            factors,
            holds: Cell::default(),
            parts,
        })
    }

    /// An adapter's magnitudes.
    fn magnitude(&mut self, name: &str, key: (Slot, u8), outputs: usize) -> Result<Magnitude> {
        let numbers = [self.slab.zeros(1, outputs, 0)?, self.slab.zeros(1, outputs, 0)?];
        Ok(Magnitude { trained: self.push(Trainable::of_vector(name, key, numbers)), values: numbers[0] })
    }

    fn adapter_matrix(
        &mut self,
        (name, key): (&str, (Slot, u8)),
        copy: View<bf16>,
        scale: f32,
        grad: Option<View<f32>>,
    ) -> Result<usize> {
        let (rows, cols) = (copy.rows(), copy.cols());
        let grad = match grad {
            Some(grad) => grad,
            None => self.gradient(rows, cols)?,
        };
        let master = self.slab.zeros(rows, cols, 0)?;
        let in_window = self.window.is_some();
        Ok(self.push(Trainable { in_window, ..Trainable::of_adapter(name, key, copy, scale, [master, grad]) }))
    }
}
