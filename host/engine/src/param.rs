//! A weight of the model and, exactly while it trains, the buffer of its gradient.

use crate::error::{EngineError, Result, expect_shape};
use crate::storage::Weight;

/// One weight, `[rows, cols]`; a vector has one row.
#[derive(Debug)]
pub struct Param {
    name: String,
    rows: usize,
    cols: usize,
    /// Its numbers.
    pub value: Weight,
    grad: Option<Vec<f32>>,
    has_trained: bool,
}

impl Param {
    /// A frozen weight. The name is only shown to people and used to tell parameters apart.
    ///
    /// # Errors
    /// When `value` does not have `rows × cols` elements.
    pub fn frozen(name: impl Into<String>, rows: usize, cols: usize, value: Weight) -> Result<Self> {
        let name = name.into();
        expect_shape(&name, rows * cols, value.len())?;
        Ok(Self { name, rows, cols, value, grad: None, has_trained: false })
    }

    /// A weight that trains.
    ///
    /// # Errors
    /// When `value` does not have `rows × cols` elements, or is of a format that cannot train.
    pub fn trained(name: impl Into<String>, rows: usize, cols: usize, value: Weight) -> Result<Self> {
        let name = name.into();
        if !value.can_train() {
            return Err(EngineError::Shape {
                what: format!("storage of {name}, which trains"),
                expected: "f32 or bf16".into(),
                found: value.format().into(),
            });
        }
        let mut param = Self::frozen(name, rows, cols, value)?;
        param.set_trained(true);
        Ok(param)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether it trains.
    pub fn trains(&self) -> bool {
        self.grad.is_some()
    }

    /// Whether it trains or once did, so that it may differ from what was loaded.
    pub fn has_trained(&self) -> bool {
        self.has_trained
    }

    /// Starts or stops training it: the gradient's buffer is made or let go.
    pub fn set_trained(&mut self, trained: bool) {
        self.has_trained |= trained;
        match (trained, &self.grad) {
            (true, None) => self.grad = Some(vec![0.0; self.value.len()]),
            (false, Some(_)) => self.grad = None,
            _ => {}
        }
    }

    /// The gradient, if it trains: `[rows, cols]`, accumulated since it was last cleared.
    pub fn grad(&self) -> Option<&[f32]> {
        self.grad.as_deref()
    }

    /// The gradient to add to, if it trains.
    pub fn grad_mut(&mut self) -> Option<&mut [f32]> {
        self.grad.as_deref_mut()
    }

    /// The numbers to change and the gradient, if it trains.
    pub fn value_and_grad_mut(&mut self) -> Option<(&mut Weight, &mut [f32])> {
        Some((&mut self.value, self.grad.as_deref_mut()?))
    }
}
