//! Graphs of cuDNN's backend: in, tensors and the operations between them; out, a plan that a card can run.
//!
//! cuDNN recognises attention by the operations that it is made of, so that a graph here spells all of them out, from
//! the product of queries and keys to the last sum; whatever lies between inputs and outputs is virtual and never
//! reaches memory.

use std::ffi::c_void;

use cudarc::cudnn::sys;
pub(super) use sys::cudnnDataType_t as DataType;
pub(super) use sys::cudnnPointwiseMode_t as Pointwise;
pub(super) use sys::cudnnReduceTensorOp_t as Reduce;
use sys::{
    cudnnBackendAttributeName_t as Attribute, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptorType_t as Kind,
};

use crate::error::{EngineError, Result};

/// cuDNN's answer as the engine's.
pub(super) fn check(doing: &str, status: sys::cudnnStatus_t) -> Result<()> {
    if status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    Err(EngineError::Device { doing: doing.into(), reason: format!("cuDNN: {status:?}") })
}

/// A description that cuDNN holds.
#[derive(Debug)]
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Descriptor {
    fn new(kind: Kind) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes the handle.
        check("describe a graph", unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut raw) })?;
        Ok(Self(raw))
    }

    /// Sets an attribute; `T` is the type that cuDNN documents for `of`.
    fn set<T>(&self, attribute: Attribute, of: Type, values: &[T]) -> Result<()> {
        // SAFETY: reads as many values as there are, of the type that the callers below pair with `of`.
        check(&format!("describe a graph ({attribute:?})"), unsafe {
            sys::cudnnBackendSetAttribute(self.0, attribute, of, values.len() as i64, values.as_ptr().cast())
        })
    }

    fn numbers(&self, attribute: Attribute, values: &[i64]) -> Result<()> {
        self.set(attribute, Type::CUDNN_TYPE_INT64, values)
    }

    fn parts(&self, attribute: Attribute, values: &[sys::cudnnBackendDescriptor_t]) -> Result<()> {
        self.set(attribute, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, values)
    }

    fn finalize(&self) -> Result<()> {
        // SAFETY: a live descriptor.
        check("build a graph", unsafe { sys::cudnnBackendFinalize(self.0) })
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created by `new` and destroyed once.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

/// A tensor of a graph: four dimensions, batch, heads, rows and columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    raw: sys::cudnnBackendDescriptor_t,
    pub dims: [i64; 4],
    pub strides: [i64; 4],
}

/// A graph that is being put together.
#[derive(Debug, Default)]
pub(super) struct Graph {
    operations: Vec<Descriptor>,
    /// What the operations refer to.
    kept: Vec<Descriptor>,
}

/// The strides of a tensor without gaps.
pub(super) fn dense([_, b, c, d]: [i64; 4]) -> [i64; 4] {
    [b * c * d, c * d, d, 1]
}

impl Graph {
    fn tensor(
        &mut self,
        uid: Option<i64>,
        dims: [i64; 4],
        strides: [i64; 4],
        data: DataType,
        by_value: bool,
    ) -> Result<Tensor> {
        let tensor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
        tensor.set(Attribute::CUDNN_ATTR_TENSOR_DATA_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[data])?;
        tensor.numbers(Attribute::CUDNN_ATTR_TENSOR_DIMENSIONS, &dims)?;
        tensor.numbers(Attribute::CUDNN_ATTR_TENSOR_STRIDES, &strides)?;
        let own = 1000 + self.kept.len() as i64;
        tensor.numbers(Attribute::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[uid.unwrap_or(own)])?;
        tensor.numbers(Attribute::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[16])?;
        tensor.set(Attribute::CUDNN_ATTR_TENSOR_IS_VIRTUAL, Type::CUDNN_TYPE_BOOLEAN, &[uid.is_none()])?;
        if by_value {
            tensor.set(Attribute::CUDNN_ATTR_TENSOR_IS_BY_VALUE, Type::CUDNN_TYPE_BOOLEAN, &[true])?;
        }
        tensor.finalize()?;
        let raw = tensor.0;
        self.kept.push(tensor);
        Ok(Tensor { raw, dims, strides })
    }

    /// A tensor in device memory, known by `uid` (below 1000) when the plan runs.
    pub fn outside(&mut self, uid: i64, dims: [i64; 4], strides: [i64; 4], data: DataType) -> Result<Tensor> {
        self.tensor(Some(uid), dims, strides, data, false)
    }

    /// One `f32` of the host's memory.
    pub fn number(&mut self, uid: i64) -> Result<Tensor> {
        self.tensor(Some(uid), [1; 4], [1; 4], DataType::CUDNN_DATA_FLOAT, true)
    }

    /// A tensor that lives inside the graph only.
    pub fn inside(&mut self, dims: [i64; 4], strides: [i64; 4], data: DataType) -> Result<Tensor> {
        self.tensor(None, dims, strides, data, false)
    }

    fn like(&mut self, x: Tensor, data: DataType) -> Result<Tensor> {
        self.inside(x.dims, x.strides, data)
    }

    fn push(&mut self, operation: Descriptor, of: Option<Descriptor>) -> Result<()> {
        operation.finalize()?;
        self.operations.push(operation);
        self.kept.extend(of);
        Ok(())
    }

    fn elementwise(
        &mut self,
        mode: Pointwise,
        compute: DataType,
        axis: Option<i64>,
        [x, b, mask]: [Option<Tensor>; 3],
        y: Tensor,
    ) -> Result<Tensor> {
        let how = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
        how.set(Attribute::CUDNN_ATTR_POINTWISE_MODE, Type::CUDNN_TYPE_POINTWISE_MODE, &[mode])?;
        how.set(Attribute::CUDNN_ATTR_POINTWISE_MATH_PREC, Type::CUDNN_TYPE_DATA_TYPE, &[compute])?;
        if let Some(axis) = axis {
            how.numbers(Attribute::CUDNN_ATTR_POINTWISE_AXIS, &[axis])?;
        }
        how.finalize()?;
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &[how.0])?;
        let operands = [
            (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x),
            (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b),
            (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_TDESC, mask),
            (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, Some(y)),
        ];
        for (attribute, tensor) in operands {
            if let Some(tensor) = tensor {
                operation.parts(attribute, &[tensor.raw])?;
            }
        }
        self.push(operation, Some(how))?;
        Ok(y)
    }

    /// `y` = `mode` of `x`, and of `b` if there is one, element by element.
    pub fn pointwise(&mut self, mode: Pointwise, x: Tensor, b: Option<Tensor>, y: Tensor) -> Result<Tensor> {
        self.elementwise(mode, DataType::CUDNN_DATA_FLOAT, None, [Some(x), b, None], y)
    }

    /// The same into a tensor of `x`'s shape.
    pub fn map(&mut self, mode: Pointwise, x: Tensor, b: Option<Tensor>) -> Result<Tensor> {
        let y = self.like(x, DataType::CUDNN_DATA_FLOAT)?;
        self.pointwise(mode, x, b, y)
    }

    /// `x` where the row is not before the column, `other` elsewhere.
    pub fn causal(&mut self, x: Tensor, other: Tensor) -> Result<Tensor> {
        let mut index = |axis| {
            let y = self.like(x, DataType::CUDNN_DATA_INT32)?;
            let mode = Pointwise::CUDNN_POINTWISE_GEN_INDEX;
            self.elementwise(mode, DataType::CUDNN_DATA_FLOAT, Some(axis), [Some(x), None, None], y)
        };
        let (row, column) = (index(2)?, index(3)?);
        let seen = self.like(x, DataType::CUDNN_DATA_BOOLEAN)?;
        let compared = [Some(row), Some(column), None];
        self.elementwise(Pointwise::CUDNN_POINTWISE_CMP_GE, DataType::CUDNN_DATA_BOOLEAN, None, compared, seen)?;
        let y = self.like(x, DataType::CUDNN_DATA_FLOAT)?;
        let chosen = [Some(x), Some(other), Some(seen)];
        self.elementwise(Pointwise::CUDNN_POINTWISE_BINARY_SELECT, DataType::CUDNN_DATA_FLOAT, None, chosen, y)
    }

    /// `y` = `x` reduced along the dimensions in which `y` has one element, or fewer heads.
    pub fn reduce(&mut self, mode: Reduce, x: Tensor, y: Tensor) -> Result<Tensor> {
        let how = Descriptor::new(Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
        how.set(Attribute::CUDNN_ATTR_REDUCTION_COMP_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[DataType::CUDNN_DATA_FLOAT])?;
        how.set(Attribute::CUDNN_ATTR_REDUCTION_OPERATOR, Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, &[mode])?;
        how.finalize()?;
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_REDUCTION_DESC, &[how.0])?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, &[x.raw])?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, &[y.raw])?;
        self.push(operation, Some(how))?;
        Ok(y)
    }

    /// `c = a · b` of each head, with `f32` sums.
    pub fn multiply(&mut self, a: Tensor, b: Tensor, c: Tensor) -> Result<Tensor> {
        let how = Descriptor::new(Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
        how.set(Attribute::CUDNN_ATTR_MATMUL_COMP_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[DataType::CUDNN_DATA_FLOAT])?;
        how.finalize()?;
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_MATMUL_ADESC, &[a.raw])?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_MATMUL_BDESC, &[b.raw])?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_MATMUL_CDESC, &[c.raw])?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_MATMUL_DESC, &[how.0])?;
        self.push(operation, Some(how))?;
        Ok(c)
    }

    /// `y`: the elements of `x` in another shape.
    pub fn reshape(&mut self, x: Tensor, y: Tensor) -> Result<Tensor> {
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR)?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, &[x.raw])?;
        operation.parts(Attribute::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, &[y.raw])?;
        self.push(operation, None)?;
        Ok(y)
    }

    /// The first plan of cuDNN's own choice whose scratch memory is not above `most` bytes.
    ///
    /// # Errors
    /// When cuDNN has none.
    pub fn plan(self, handle: sys::cudnnHandle_t, most: usize) -> Result<Plan> {
        let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set(Attribute::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Type::CUDNN_TYPE_HANDLE, &[handle])?;
        let operations: Vec<_> = self.operations.iter().map(|operation| operation.0).collect();
        graph.parts(Attribute::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations)?;
        graph.finalize()?;
        let advice = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        advice.parts(Attribute::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[graph.0])?;
        let mode = sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A;
        advice.set(Attribute::CUDNN_ATTR_ENGINEHEUR_MODE, Type::CUDNN_TYPE_HEUR_MODE, &[mode])?;
        advice.finalize()?;
        let (mut configs, mut found) = (Vec::new(), 0_i64);
        for _ in 0..8 {
            configs.push(Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?);
        }
        let mut raw: Vec<_> = configs.iter().map(|config| config.0).collect();
        // SAFETY: writes no more descriptors than there is room for, into those made above.
        check("ask how to run a graph", unsafe {
            sys::cudnnBackendGetAttribute(
                advice.0,
                Attribute::CUDNN_ATTR_ENGINEHEUR_RESULTS,
                Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
                raw.len() as i64,
                &mut found,
                raw.as_mut_ptr().cast(),
            )
        })?;
        configs.truncate(found.max(0) as usize);
        let mut refused = EngineError::Device { doing: "plan a graph".into(), reason: "cuDNN proposes nothing".into() };
        for config in &configs {
            match planned(handle, config) {
                Ok((_, scratch)) if scratch > most => {
                    let reason = format!("cuDNN's plan takes {scratch} bytes of scratch memory, {most} are planned");
                    refused = EngineError::Device { doing: "plan a graph".into(), reason };
                }
                Ok((plan, _)) => {
                    let mut kept = self.kept;
                    kept.extend(self.operations);
                    kept.extend(configs);
                    kept.extend([graph, advice]);
                    return Ok(Plan { plan, _kept: kept });
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

/// A plan and its scratch bytes.
fn planned(handle: sys::cudnnHandle_t, config: &Descriptor) -> Result<(Descriptor, usize)> {
    let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
    plan.set(Attribute::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &[handle])?;
    plan.parts(Attribute::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[config.0])?;
    plan.finalize()?;
    let (mut scratch, mut count) = (0_i64, 0_i64);
    // SAFETY: writes one number.
    check("plan a graph", unsafe {
        sys::cudnnBackendGetAttribute(
            plan.0,
            Attribute::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
            Type::CUDNN_TYPE_INT64,
            1,
            &mut count,
            (&raw mut scratch).cast(),
        )
    })?;
    Ok((plan, scratch.max(0) as usize))
}

/// A graph compiled for a card.
#[derive(Debug)]
pub(super) struct Plan {
    plan: Descriptor,
    _kept: Vec<Descriptor>,
}

impl Plan {
    /// Queues the graph: `tensors` are the addresses of what is outside it, by uid, of the host's memory for numbers.
    ///
    /// # Safety
    /// The addresses are of live memory of the shapes that the graph was made with, and `scratch` of as many bytes as
    /// [`Graph::plan`] was told.
    pub unsafe fn run(&self, handle: sys::cudnnHandle_t, tensors: &[(i64, u64)], scratch: u64) -> Result<()> {
        let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        let uids: Vec<i64> = tensors.iter().map(|(uid, _)| *uid).collect();
        let addresses: Vec<*mut c_void> = tensors.iter().map(|(_, address)| *address as *mut c_void).collect();
        pack.numbers(Attribute::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &uids)?;
        pack.set(Attribute::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Type::CUDNN_TYPE_VOID_PTR, &addresses)?;
        let scratch = scratch as *mut c_void;
        pack.set(Attribute::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Type::CUDNN_TYPE_VOID_PTR, &[scratch])?;
        pack.finalize()?;
        // SAFETY: the caller's promise.
        check("attend", unsafe { sys::cudnnBackendExecute(handle, self.plan.0, pack.0) })
    }
}
