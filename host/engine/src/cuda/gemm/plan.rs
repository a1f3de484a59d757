//! What cuBLASLt is told and asked about a product: its descriptors, proposals for it, and which shapes share what was chosen.

use std::ffi::c_void;

use cudarc::cublaslt::sys;

use super::{Layout, WORKSPACE_BYTES};
use crate::error::{EngineError, Result};

/// How many algorithms are asked for.
const PROPOSALS: usize = 8;

/// What makes one product another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub layout: Layout,
    pub mnk: [usize; 3],
    pub strides: [usize; 4],
    pub wide_out: bool,
    pub adds: bool,
    pub alignment: u32,
}

impl Key {
    /// The shape that stands for all whose number of tokens is alike, up to an eighth: texts of unlike length make a new
    /// number at every step, and what is fastest for one is so for its neighbours.
    pub fn class(mut self) -> Self {
        let tokens = match self.layout {
            Layout::Nt | Layout::Nn => &mut self.mnk[0],
            Layout::Tn => &mut self.mnk[2],
        };
        let grain = (1_usize << (*tokens).max(1).ilog2()) / 8;
        *tokens = tokens.next_multiple_of(grain.max(1));
        self
    }
}

/// A product's descriptors.
#[derive(Debug)]
pub(super) struct Planned {
    pub operation: sys::cublasLtMatmulDesc_t,
    pub a: sys::cublasLtMatrixLayout_t,
    pub b: sys::cublasLtMatrixLayout_t,
    pub c: sys::cublasLtMatrixLayout_t,
    pub d: sys::cublasLtMatrixLayout_t,
    /// The algorithm that is used, and which of its class's proposals it comes from.
    way: Option<(usize, sys::cublasLtMatmulAlgo_t)>,
}

/// The library's proposals for the shapes of a class, best guess first, and which of them is used.
#[derive(Debug)]
pub(super) struct Class {
    pub algorithms: Vec<sys::cublasLtMatmulAlgo_t>,
    pub chosen: usize,
    pub tuned: bool,
}

impl Planned {
    /// Has the algorithm that its class chose, or the library's best guess where that does not serve these very numbers.
    pub fn settle(
        &mut self,
        handle: sys::cublasLtHandle_t,
        key: Key,
        class: &Class,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        if let Some((chosen, algorithm)) = self.way
            && chosen == class.chosen
        {
            return Ok(algorithm);
        }
        let chosen = class.algorithms.get(class.chosen).copied().filter(|algorithm| {
            // SAFETY: the call writes one result, which is plain numbers; the descriptors are this product's.
            unsafe {
                let mut result: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
                let (a, b, c, d) = (self.a, self.b, self.c, self.d);
                let status = sys::cublasLtMatmulAlgoCheck(handle, self.operation, a, b, c, d, algorithm, &mut result);
                status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE_BYTES
            }
        });
        let algorithm = match chosen {
            Some(algorithm) => algorithm,
            // SAFETY: asks about this product's own descriptors.
            None => unsafe { proposals(handle, key, self) }?.swap_remove(0),
        };
        self.way = Some((class.chosen, algorithm));
        Ok(algorithm)
    }

    /// Lets the library forget it.
    pub unsafe fn destroy(&self) {
        // SAFETY: the caller does not use it again.
        unsafe {
            let _ = sys::cublasLtMatmulDescDestroy(self.operation);
            for layout in [self.a, self.b, self.c, self.d] {
                let _ = sys::cublasLtMatrixLayoutDestroy(layout);
            }
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

/// A product's descriptors, to be destroyed by who asks for them.
pub(super) unsafe fn described(key: Key, out_type: sys::cudaDataType) -> Result<Planned> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
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
        Ok(Planned { operation, a: first, b: second, c, d, way: None })
    }
}

/// The library's proposals for a product, at least one.
pub(super) unsafe fn proposals(
    handle: sys::cublasLtHandle_t,
    key: Key,
    planned: &Planned,
) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
    let doing = "plan a product";
    // SAFETY: asks about descriptors that the caller keeps, with values of the documented types.
    unsafe {
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
            planned.operation,
            planned.a,
            planned.b,
            planned.c,
            planned.d,
            preference,
            PROPOSALS as i32,
            results.as_mut_ptr(),
            &mut found,
        );
        let _ = sys::cublasLtMatmulPreferenceDestroy(preference);
        let usable = results[..found.max(0) as usize].iter();
        let usable = usable.filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
        if algorithms.is_empty() {
            return Err(EngineError::Device {
                doing: format!("plan a product {key:?}"),
                reason: format!("cuBLASLt has no algorithm ({status:?})"),
            });
        }
        Ok(algorithms)
    }
}

/// What a call of the library came to.
pub(super) fn lt(doing: &str, status: sys::cublasStatus_t) -> Result<()> {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(EngineError::Device { doing: doing.into(), reason: format!("{other:?}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_nearly_as_many_tokens_share_a_class() {
        let key = |layout, mnk| {
            Key { layout, mnk, strides: [1, 2, 3, 4], wide_out: false, adds: false, alignment: 256 }.class().mnk
        };
        assert_eq!(key(Layout::Nt, [8192, 6, 7]), [8192, 6, 7]);
        assert_eq!(key(Layout::Nt, [4097, 6, 7]), key(Layout::Nn, [4607, 6, 7]));
        assert_eq!(key(Layout::Nn, [4608, 6, 7]), [4608, 6, 7]);
        assert_eq!(key(Layout::Tn, [5, 6, 1025]), [5, 6, 1152]);
        // A token or a few have a shape of their own.
        assert_eq!([1, 2, 15].map(|tokens| key(Layout::Nt, [tokens, 6, 7])[0]), [1, 2, 15]);
    }
}
