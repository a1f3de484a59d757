//! Splitting work over the cores, and using their widest vector instructions.

use rayon::prelude::*;

/// Below this many elements the work is done where it is: waking another core costs more.
const MIN_PARALLEL_LEN: usize = 1 << 14;

/// Runs `work` compiled for the widest vector instructions that this processor has.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);
    impl<F: FnOnce() -> R, R> pulp::NullaryFnOnce for Work<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Work(work))
}

/// The number of rows in one piece of work over a matrix with `cols` columns.
fn rows_each(rows: usize, cols: usize) -> usize {
    if rows * cols < MIN_PARALLEL_LEN { rows } else { rows.div_ceil(4 * rayon::current_num_threads()) }.max(1)
}

/// Calls `work(first row, rows)` for pieces of `out`, in parallel. The result does not depend on the pieces as long as
/// `work` treats each row by itself.
pub(crate) fn by_rows(out: &mut [f32], cols: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let each = rows_each(out.len() / cols.max(1), cols);
    out.par_chunks_mut(each * cols.max(1)).enumerate().for_each(|(i, piece)| vectorised(|| work(i * each, piece)));
}

/// As [`by_rows`], over two matrices with the same number of rows.
pub(crate) fn by_rows2(
    (out_a, cols_a): (&mut [f32], usize),
    (out_b, cols_b): (&mut [f32], usize),
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let each = rows_each(out_a.len() / cols_a.max(1), cols_a.max(cols_b));
    out_a
        .par_chunks_mut(each * cols_a.max(1))
        .zip(out_b.par_chunks_mut(each * cols_b.max(1)))
        .enumerate()
        .for_each(|(i, (a, b))| vectorised(|| work(i * each, a, b)));
}

/// A matrix into which several workers write, each to rows and columns of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: the pointer is only written through `Shared::slice`, whose caller promises that no two workers ask for
// overlapping parts; the matrix outlives the workers because `Shared::new` is only used with scoped parallelism.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// `len` elements from `at`.
    ///
    /// # Safety
    /// No two slices that live at the same time may overlap, and the borrowed matrix must outlive them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice<'a>(&self, at: usize, len: usize) -> &'a mut [f32] {
        assert!(at + len <= self.len, "a worker's part lies inside the matrix");
        // SAFETY: in bounds by the assertion; not aliased and alive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
