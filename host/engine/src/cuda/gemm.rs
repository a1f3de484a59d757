//! Matrix products by cuBLASLt: bf16 in, `f32` sums, bf16 or `f32` out. Each shape's plan is made once.
//!
//! Matrices are row-major, as everywhere in the engine; cuBLASLt's are column-major, so each call computes the
//! transpose: `n`, `t` and the order of `a` and `b` follow [`crate::ops::matmul`].

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::sys;
use cudarc::driver::result;
use half::bf16;

use super::context::{Context, check};
use super::memory::{Element, View};
use super::tuning::Choices;
use crate::error::{EngineError, Result};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    layout: Layout,
    mnk: [usize; 3],
    strides: [usize; 4],
    wide_out: bool,
    adds: bool,
    alignment: u32,
}

#[derive(Debug)]
struct Planned {
    operation: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    /// The library's proposals, best guess first, and which of them is used.
    algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    chosen: usize,
    tuned: bool,
}

/// Plans of products, by shape.
#[derive(Debug)]
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: Option<(u64, usize)>,
    plans: HashMap<Key, Planned>,
    choices: Choices,
}

// SAFETY: handles that any thread may use while their context is current; used behind a mutex.
unsafe impl Send for Gemm {}

/// Scratch memory of the products: what cuBLAS recommends for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;
/// How many algorithms are asked for, and from which work on they are compared: some 20 µs, by operations or by traffic. Texts
/// of unlike length bring new shapes at every step, and comparing costs 48 products.
const PROPOSALS: usize = 8;
const TUNED_FROM_FLOP: f64 = 1.5e10;
const TUNED_FROM_BYTES: usize = 64_000_000;

fn lt(doing: &str, status: sys::cublasStatus_t) -> Result<()> {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(EngineError::Device { doing: doing.into(), reason: format!("{other:?}") }),
    }
}

impl Gemm {
    pub(crate) fn new(context: &Context) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle.
        lt("start cuBLASLt", unsafe { sys::cublasLtCreate(&mut handle) })?;
        // SAFETY: reads a number.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self { handle, workspace: None, plans: HashMap::new(), choices: Choices::load(context.name(), version) })
    }

    fn plan(&mut self, key: Key, data_type: sys::cudaDataType) -> Result<&mut Planned> {
        if !self.plans.contains_key(&key) {
            // SAFETY: creates descriptors from plain numbers; they live as long as the plans.
            let mut planned = unsafe { planned(self.handle, key, data_type) }?;
            if let Some(choice) = self.choices.get(&format!("{key:?}")).filter(|&c| c < planned.algorithms.len()) {
                (planned.chosen, planned.tuned) = (choice, true);
            }
            self.plans.insert(key, planned);
        }
        self.plans
            .get_mut(&key)
            .ok_or_else(|| EngineError::Device { doing: "multiply".into(), reason: "no plan".into() })
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: the context is current while its last owner drops this, and the stream is idle.
        unsafe {
            for plan in self.plans.values() {
                let _ = sys::cublasLtMatmulDescDestroy(plan.operation);
                for layout in [plan.a, plan.b, plan.c, plan.d] {
                    let _ = sys::cublasLtMatrixLayoutDestroy(layout);
                }
            }
            if let Some((ptr, _)) = self.workspace {
                let _ = result::free_sync(ptr);
            }
            let _ = sys::cublasLtDestroy(self.handle);
        }
    }
}

unsafe fn set<T>(
    operation: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: T,
) -> Result<()> {
    // SAFETY: the caller passes the attribute's type.
    lt("describe a product", unsafe {
        sys::cublasLtMatmulDescSetAttribute(operation, attribute, std::ptr::from_ref(&value).cast(), size_of::<T>())
    })
}

unsafe fn planned(handle: sys::cublasLtHandle_t, key: Key, out_type: sys::cudaDataType) -> Result<Planned> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
    let [m, n, k] = key.mnk;
    let [lda, ldb, ldc, ldd] = key.strides;
    let input = sys::cudaDataType_t::CUDA_R_16BF;
    let doing = "plan a product";
    // SAFETY: descriptors are created, filled with values of the documented types, and kept.
    unsafe {
        let mut operation = std::ptr::null_mut();
        lt(
            doing,
            sys::cublasLtMatmulDescCreate(
                &mut operation,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType_t::CUDA_R_32F,
            ),
        )?;
        let (plain, transposed) = (0_i32, 1_i32);
        // cuBLASLt's A is our b, its B our a.
        set(
            operation,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            if key.layout == Layout::Nt { transposed } else { plain },
        )?;
        set(
            operation,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            if key.layout == Layout::Tn { transposed } else { plain },
        )?;
        let layout = |data_type, rows: usize, cols: usize, stride: usize| -> Result<sys::cublasLtMatrixLayout_t> {
            let mut layout = std::ptr::null_mut();
            let status =
                sys::cublasLtMatrixLayoutCreate(&mut layout, data_type, rows as u64, cols as u64, stride as i64);
            lt(doing, status)?;
            Ok(layout)
        };
        let first = match key.layout {
            Layout::Nt => layout(input, k, n, ldb)?,
            Layout::Nn | Layout::Tn => layout(input, n, k, ldb)?,
        };
        let second = match key.layout {
            Layout::Nt | Layout::Nn => layout(input, k, m, lda)?,
            Layout::Tn => layout(input, m, k, lda)?,
        };
        let c = layout(out_type, n, m, ldc)?;
        let d = layout(out_type, n, m, ldd)?;
        let mut preference = std::ptr::null_mut();
        lt(doing, sys::cublasLtMatmulPreferenceCreate(&mut preference))?;
        let prefer = |attribute, value: *const c_void, bytes| {
            lt(doing, sys::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, bytes))
        };
        let workspace = WORKSPACE_BYTES;
        prefer(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&workspace).cast(),
            size_of::<usize>(),
        )?;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            prefer(attribute, std::ptr::from_ref(&key.alignment).cast(), size_of::<u32>())?;
        }
        let mut found = 0;
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; PROPOSALS] = std::mem::zeroed();
        let status = sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            operation,
            first,
            second,
            c,
            d,
            preference,
            PROPOSALS as i32,
            results.as_mut_ptr(),
            &mut found,
        );
        let _ = sys::cublasLtMatmulPreferenceDestroy(preference);
        if found == 0 {
            return Err(EngineError::Device {
                doing: format!("plan a product {key:?}"),
                reason: format!("cuBLASLt has no algorithm ({status:?})"),
            });
        }
        let usable = results[..found.max(0) as usize].iter();
        let usable = usable.filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let algorithms = usable.map(|result| result.algo).collect();
        Ok(Planned { operation, a: first, b: second, c, d, algorithms, chosen: 0, tuned: false })
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
    let (m, n) = (out.rows(), out.cols());
    let (inner_a, outer_a) = if layout == Layout::Tn { (a.rows(), a.cols()) } else { (a.cols(), a.rows()) };
    let (inner_b, outer_b) = if layout == Layout::Nt { (b.cols(), b.rows()) } else { (b.rows(), b.cols()) };
    assert_eq!((m, n, inner_a), (outer_a, outer_b, inner_b), "a product's shapes fit ({layout:?})");
    if context.is_dry() || m == 0 || n == 0 || inner_a == 0 {
        return Ok(());
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
        let run = |planned: &Planned, algorithm: usize| {
            let Some(algorithm) = planned.algorithms.get(algorithm) else {
                return Err(EngineError::Device { doing: "multiply".into(), reason: "no algorithm".into() });
            };
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
        let planned = gemm.plan(key, T::DATA_TYPE)?;
        // A product that reads what it writes cannot be repeated.
        let repeatable = c.ptr() != out.ptr() || !key.adds;
        let flop = 2.0 * m as f64 * n as f64 * inner_a as f64;
        let moved = 2 * inner_a * (m + n) + size_of::<T>() * m * n;
        let large = flop > TUNED_FROM_FLOP || moved > TUNED_FROM_BYTES;
        if !planned.tuned && repeatable && large && planned.algorithms.len() > 1 {
            planned.chosen = fastest(context, planned.algorithms.len(), |algorithm| run(planned, algorithm))?;
            planned.tuned = true;
            let chosen = planned.chosen;
            gemm.choices.set(format!("{key:?}"), chosen);
        }
        let planned = gemm.plan(key, T::DATA_TYPE)?;
        context.measured(|| run(planned, planned.chosen))
    })
}

/// Which of `count` ways of doing the same takes the least time, in the best of three turns.
fn fastest(context: &Context, count: usize, run: impl Fn(usize) -> Result<()>) -> Result<usize> {
    let mut best = vec![f64::INFINITY; count];
    for _ in 0..3 {
        for (algorithm, best) in best.iter_mut().enumerate() {
            context.synchronize()?;
            let started = std::time::Instant::now();
            // An algorithm that fails is none.
            if run(algorithm).and_then(|()| run(algorithm)).is_err() {
                continue;
            }
            context.synchronize()?;
            *best = best.min(started.elapsed().as_secs_f64());
        }
    }
    let fastest = best.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
    Ok(fastest.map_or(0, |(algorithm, _)| algorithm))
}
