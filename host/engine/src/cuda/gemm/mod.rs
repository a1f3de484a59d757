//! Matrix products by cuBLASLt: bf16 in, `f32` sums, bf16 or `f32` out. Each shape's plan is made once (`plan.rs`),
//! and the fastest algorithm of each class of large shapes is found by trying.
//!
//! Matrices are row-major, as everywhere in the engine; cuBLASLt's are column-major, so each call computes the
//! transpose: `n`, `t` and the order of `a` and `b` follow [`crate::ops::matmul`].

mod plan;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

use cudarc::cublaslt::sys;
use cudarc::driver::result;
use half::bf16;

use self::plan::{Class, Key, Planned, described, lt, proposals};
use super::context::{Context, check};
use super::memory::{Element, View};
use super::tuning::{Choices, fastest};
use crate::error::Result;

/// Which of the factors is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `a[m, k] · b[n, k]ᵀ`.
    Nt,
    /// `a[m, k] · b[k, n]`.
    Nn,
    /// `a[k, m]ᵀ · b[k, n]`.
    Tn,
}

/// A type that a product can write.
pub trait Output: Element {
    #[doc(hidden)]
    const DATA_TYPE: sys::cudaDataType;
}
impl Output for bf16 {
    const DATA_TYPE: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_16BF;
}
impl Output for f32 {
    const DATA_TYPE: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_32F;
}

/// Plans of products, by shape.
#[derive(Debug)]
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: Option<(u64, usize)>,
    plans: HashMap<Key, Planned>,
    classes: HashMap<Key, Class>,
    choices: Choices,
}

// SAFETY: handles that any thread may use while their context is current; used behind a mutex.
unsafe impl Send for Gemm {}

/// Scratch memory of the products: what cuBLAS recommends for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;
/// From which work on algorithms are compared: some 20 µs, by operations or by traffic. Texts of unlike length bring new classes
/// of shapes for a while, and comparing costs 32 to 256 products.
const TUNED_FROM_FLOP: f64 = 1.5e10;
const TUNED_FROM_BYTES: usize = 64_000_000;
/// The same for products of the model's own matrices, whose shapes no text changes.
const OWN_TUNED_FROM_BYTES: usize = 8_000_000;

impl Gemm {
    pub(crate) fn new(context: &Context) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle.
        lt("start cuBLASLt", unsafe { sys::cublasLtCreate(&mut handle) })?;
        // SAFETY: reads a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        let choices = Choices::load(context.name(), version);
        Ok(Self { handle, workspace: None, plans: HashMap::new(), classes: HashMap::new(), choices })
    }

    /// Has a product's descriptors, and what its class shares; `class` is the shape that stands for that.
    fn plan(&mut self, key: Key, class: Key, data_type: sys::cudaDataType) -> Result<(&mut Planned, &mut Class)> {
        let planned = match self.plans.entry(key) {
            Entry::Occupied(place) => place.into_mut(),
            // SAFETY: creates descriptors from plain numbers; they live as long as the plans.
            Entry::Vacant(place) => place.insert(unsafe { described(key, data_type) }?),
        };
        let class = match self.classes.entry(class) {
            Entry::Occupied(place) => place.into_mut(),
            Entry::Vacant(place) => {
                // SAFETY: as above; those of the shape that stands for the class are needed only for the question.
                let algorithms = unsafe {
                    let planned = described(class, data_type)?;
                    let algorithms = proposals(self.handle, class, &planned);
                    planned.destroy();
                    algorithms?
                };
                let choice = self.choices.get(&format!("{class:?}")).filter(|&choice| choice < algorithms.len());
                place.insert(Class { chosen: choice.unwrap_or(0), tuned: choice.is_some(), algorithms })
            }
        };
        Ok((planned, class))
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: the context is current while its last owner drops this, and the stream is idle.
        unsafe {
            for plan in self.plans.values() {
                plan.destroy();
            }
            if let Some((ptr, _)) = self.workspace {
                let _ = result::free_sync(ptr);
            }
            let _ = sys::cublasLtDestroy(self.handle);
        }
    }
}

/// The largest power of two up to 256 that divides an address or a stride in bytes.
fn alignment(of: u64) -> u32 {
    if of == 0 { 256 } else { 1 << of.trailing_zeros().min(8) }
}

/// `out = alpha · (a · b) + beta · add`, where `add` may be `out` itself; without `add` nothing is read from `out`.
///
/// # Errors
/// When cuBLASLt has no algorithm for the shape, or the device fails.
pub fn multiply<T: Output>(
    context: &Context,
    layout: Layout,
    out: View<T>,
    alpha: f32,
    a: View<bf16>,
    b: View<bf16>,
    add: Option<(f32, View<T>)>,
) -> Result<()> {
    queue(context, layout, out, alpha, [a, b], add, TUNED_FROM_BYTES)
}

/// `out = a · b` of the model's own matrices: the shape comes back at every step and there are few, so that comparing algorithms pays
/// for less work.
///
/// # Errors
/// As [`multiply`].
pub fn multiply_own<T: Output>(
    context: &Context,
    layout: Layout,
    out: View<T>,
    a: View<bf16>,
    b: View<bf16>,
) -> Result<()> {
    queue(context, layout, out, 1.0, [a, b], None, OWN_TUNED_FROM_BYTES)
}

fn queue<T: Output>(
    context: &Context,
    layout: Layout,
    out: View<T>,
    alpha: f32,
    [a, b]: [View<bf16>; 2],
    add: Option<(f32, View<T>)>,
    tuned_from_bytes: usize,
) -> Result<()> {
    let (m, n) = (out.rows(), out.cols());
    let (inner_a, outer_a) = if layout == Layout::Tn { (a.rows(), a.cols()) } else { (a.cols(), a.rows()) };
    let (inner_b, outer_b) = if layout == Layout::Nt { (b.cols(), b.rows()) } else { (b.rows(), b.cols()) };
    assert_eq!((m, n, inner_a), (outer_a, outer_b, inner_b), "a product's shapes fit ({layout:?})");
    if m == 0 || n == 0 || inner_a == 0 {
        return Ok(());
    }
    if context.is_dry() {
        return context.measured(|| Ok(()));
    }
    let (beta, c) = add.unwrap_or((0.0, out));
    let addresses = [a.ptr(), b.ptr(), c.ptr(), out.ptr()];
    let bytes = [2, 2, size_of::<T>(), size_of::<T>()];
    let strides = [a.stride(), b.stride(), c.stride(), out.stride()];
    let aligned = addresses.iter().copied().chain(strides.iter().zip(bytes).map(|(s, b)| (s * b) as u64));
    let key = Key {
        layout,
        mnk: [m, n, inner_a],
        strides,
        wide_out: size_of::<T>() == 4,
        adds: add.is_some(),
        alignment: aligned.map(alignment).min().unwrap_or(2),
    };
    let stream = context.stream();
    context.with_gemm(|gemm| {
        if gemm.workspace.is_none() {
            // SAFETY: freed when the plans are dropped.
            let ptr = check("allocate device memory", unsafe { result::malloc_sync(WORKSPACE_BYTES) })?;
            context.allocated(WORKSPACE_BYTES as i64);
            gemm.workspace = Some((ptr, WORKSPACE_BYTES));
        }
        let (handle, (workspace, workspace_bytes)) = (gemm.handle, gemm.workspace.unwrap_or_default());
        let pointer = |address: u64| address as *mut c_void;
        let run = |planned: &Planned, algorithm: &sys::cublasLtMatmulAlgo_t| {
            // SAFETY: the descriptors say what lies at the addresses; the views are of live buffers.
            let status = unsafe {
                sys::cublasLtMatmul(
                    handle,
                    planned.operation,
                    std::ptr::from_ref(&alpha).cast(),
                    pointer(b.ptr()),
                    planned.a,
                    pointer(a.ptr()),
                    planned.b,
                    std::ptr::from_ref(&beta).cast(),
                    pointer(c.ptr()),
                    planned.c,
                    pointer(out.ptr()),
                    planned.d,
                    algorithm,
                    pointer(workspace),
                    workspace_bytes,
                    stream.cast(),
                )
            };
            lt("multiply", status)
        };
        let class_key = key.class();
        let (planned, class) = gemm.plan(key, class_key, T::DATA_TYPE)?;
        // A product that reads what it writes cannot be repeated.
        let repeatable = c.ptr() != out.ptr() || !key.adds;
        // Asked of the class, so that all of its shapes are measured or none.
        let [m, n, k] = class_key.mnk;
        let flop = 2.0 * m as f64 * n as f64 * k as f64;
        let moved = 2 * k * (m + n) + size_of::<T>() * m * n;
        let large = flop > TUNED_FROM_FLOP || moved > tuned_from_bytes;
        let mut chosen = None;
        if !class.tuned && repeatable && large && class.algorithms.len() > 1 {
            let seconds = (flop / 7e14).max(moved as f64 / 3e12);
            class.chosen = fastest(context, &class.algorithms, seconds, |algorithm| run(planned, algorithm))?;
            class.tuned = true;
            chosen = Some(class.chosen);
        }
        let algorithm = planned.settle(handle, key, class)?;
        context.measured(|| run(planned, &algorithm))?;
        if let Some(chosen) = chosen {
            gemm.choices.set(format!("{class_key:?}"), chosen);
        }
        Ok(())
    })
}
