//! Singular values on the card, many matrices at a time. In: matrices of `f32`. Out: in f64, the eigenvalues of the
//! smaller square of each (the singular values' squares), or the singular values themselves from the matrix as a whole.
//!
//! ```text
//! upload ─► square: A·Aᵀ or Aᵀ·A            ─► 32 columns' reflections, update, … ─► bisection ─► download
//!           or whole: [[0, Aᵀ], [A, 0]]         `panel`            `update`
//! ```
//!
//! While a batch computes, the next one is uploaded. All memory is one buffer of a size that [`Solver::new`] is given a
//! bound for; a batch lays out its part of it anew.

use super::context::{Context, Launch};
use super::kernels::{args, sources};
use super::memory::{Buffer, Element, View};
use super::profile::Kind;
use crate::error::{EngineError, Result};

/// The side of a tile of `tridiagonal.cu`, the columns of its panels, and its constants.
const TILE: usize = 64;
const PANEL: usize = 32;
const MOST_BLOCKS: usize = 512;
/// Columns of a square in memory are a multiple of this: the side of a tile of `gram.cu`.
const EDGE: usize = 128;
/// Threads of a block in all of the kernels.
const THREADS: u32 = 256;
/// Threads that find one eigenvalue in `bisection.cu`.
const SIDES: usize = 4;
/// More matrices than this at a time bring nothing, however small they are.
const MOST_LANES: usize = 16;

/// What is made of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The smaller of `A·Aᵀ` and `Aᵀ·A`, summed in f64: fast, but small singular values lose half of their digits.
    Squared,
    /// `[[0, Aᵀ], [A, 0]]`: each value within a few roundings of the largest one, for the time and the memory of a
    /// square matrix of rows + cols.
    Whole,
}

impl Way {
    /// The side of the symmetric matrix that is made of one of `rows × cols`.
    fn side(self, [rows, cols]: [usize; 2]) -> usize {
        match self {
            Self::Squared => rows.min(cols),
            Self::Whole => rows + cols,
        }
    }
}

/// A matrix on the host: row-major, finite.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// `rows × cols` numbers.
    pub elements: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// What was found of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The largest `min(rows, cols)` eigenvalues, from the largest on: squares of the singular values after
    /// [`Way::Squared`], singular values after [`Way::Whole`]. Those near zero may have come out below it.
    pub values: Vec<f64>,
    /// The sum of all eigenvalues: after [`Way::Squared`] that of all squares of elements.
    pub trace: f64,
}

/// Bytes for one matrix beside its elements: the symmetric matrix, `work`, and some vectors.
fn lane_bytes(side: usize) -> usize {
    let ld = side.next_multiple_of(EDGE);
    8 * (ld * ld + work_numbers(ld) + 3 * ld) + LANE_SLACK
}
/// For the alignment of a lane's parts.
const LANE_SLACK: usize = 4096;

/// Numbers of work space, as `tridiagonal.cu` lays them out.
fn work_numbers(ld: usize) -> usize {
    let tiles = ld / TILE;
    2 * PANEL * ld + ld + ld / 32 + 2 * PANEL + MOST_BLOCKS + tiles * tiles * TILE
}

/// Elements as they are kept: starts are multiples of 256 bytes.
fn element_bytes(elements: usize) -> usize {
    (4 * elements).next_multiple_of(256)
}

/// How the memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes for the elements of one batch; there are two such parts.
    input: usize,
    /// Bytes for a batch's work.
    work: usize,
}

/// For lists of sizes and counters.
const SMALL_BYTES: usize = 64 << 10;

impl Memory {
    /// Memory for as many matrices of these shapes at a time as `budget` bytes hold and are of use, or nothing if the
    /// largest does not fit.
    pub fn plan(way: Way, shapes: &[[usize; 2]], budget: usize) -> Option<Self> {
        let elements = shapes.iter().map(|[rows, cols]| element_bytes(rows * cols)).max()?;
        let side = shapes.iter().map(|shape| lane_bytes(way.side(*shape))).max()?;
        let fit = budget.checked_sub(SMALL_BYTES)? / (2 * elements + side);
        // Large matrices fill the card with few lanes; small ones take more, of which each needs little.
        let useful = (SMALL_LANES_BYTES / (2 * elements + side)).clamp(LARGE_LANES, MOST_LANES);
        let lanes = fit.min(useful).min(shapes.len());
        (lanes > 0).then_some(Self { input: lanes * elements, work: lanes * side })
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        2 * self.input + self.work + SMALL_BYTES
    }

    /// How many matrices up to this shape fit at a time.
    fn lanes(&self, way: Way, shape: [usize; 2]) -> usize {
        (self.input / element_bytes(shape[0] * shape[1])).min(self.work / lane_bytes(way.side(shape)))
    }
}
/// Matrices that need all multiprocessors are worked on so many at a time: each multiprocessor runs four blocks of
/// `panel`.
const LARGE_LANES: usize = 4;

/// Up to so many bytes are taken for more lanes than that.
const SMALL_LANES_BYTES: usize = 512 << 20;

/// Finds singular values on one card.
#[derive(Debug)]
pub struct Solver {
    context: Context,
    way: Way,
    memory: Memory,
    buffer: Buffer,
    /// Blocks of `panel` that run at the same time on the whole card.
    resident: usize,
    /// Which of the two parts for elements is used next.
    part: usize,
    /// The shapes of the batch that computes.
    computing: Option<Batch>,
}

/// A batch in memory.
#[derive(Clone, Debug)]
pub struct Batch {
    part: usize,
    shapes: Vec<[usize; 2]>,
    ld: usize,
    stride: usize,
}

/// The addresses of a batch's work.
struct Places {
    shapes: View<i32>,
    sizes: View<i32>,
    wanted: View<i32>,
    arrivals: View<u32>,
    matrices: View<f64>,
    works: View<f64>,
    diagonals: View<f64>,
    besides: View<f64>,
    found: View<f64>,
}

impl Solver {
    /// For matrices of `shapes`, with the memory that [`Memory::plan`] says.
    ///
    /// # Errors
    /// When there is no such memory, or the kernels do not compile.
    pub fn new(context: &Context, way: Way, memory: Memory) -> Result<Self> {
        let resident = match context.is_dry() {
            true => 4,
            false => context.blocks_at_once(&sources::TRIDIAGONAL, "panel", THREADS)?,
        };
        let resident = resident * context.multiprocessors();
        let buffer = Buffer::new(context, memory.bytes())?;
        Ok(Self { context: context.clone(), way, memory, buffer, resident, part: 0, computing: None })
    }

    /// How many matrices of a shape one batch may have.
    pub fn lanes(&self, shape: [usize; 2]) -> usize {
        let blocks = self.blocks(self.way.side(shape).next_multiple_of(EDGE), 1);
        self.memory.lanes(self.way, shape).min(MOST_LANES).min(self.resident / blocks).max(1)
    }

    /// Blocks of `panel` for each of `lanes` matrices: one a multiprocessor, or one a tile if there are fewer.
    fn blocks(&self, ld: usize, lanes: usize) -> usize {
        let tiles = ld / TILE * (ld / TILE + 1) / 2;
        tiles.min(self.context.multiprocessors()).min(self.resident / lanes).clamp(1, MOST_BLOCKS)
    }

    /// Waits for the batch that computes and gives what was found.
    ///
    /// # Errors
    /// When the device fails.
    pub fn finish(&mut self) -> Result<Vec<Found>> {
        let Some(batch) = self.computing.take() else { return Ok(Vec::new()) };
        let places = self.places(&batch);
        let found = self.context.download(places.found)?;
        let diagonals = self.context.download(places.diagonals)?;
        let lanes = batch.shapes.iter().zip(found.chunks(batch.ld).zip(diagonals.chunks(batch.ld)));
        Ok(lanes
            .map(|(shape, (found, diagonal))| Found {
                values: found[..shape[0].min(shape[1])].to_vec(),
                trace: diagonal[..self.way.side(*shape)].iter().sum(),
            })
            .collect())
    }

    /// Uploads a batch while the one before computes. It must be started before another is uploaded.
    ///
    /// # Errors
    /// When the batch is larger than [`Solver::lanes`] allows, or the device fails.
    pub fn upload(&mut self, matrices: &[Matrix<'_>]) -> Result<Batch> {
        let shapes: Vec<_> = matrices.iter().map(|matrix| [matrix.rows, matrix.cols]).collect();
        let stride = shapes.iter().map(|[rows, cols]| element_bytes(rows * cols) / 4).max().unwrap_or(0);
        let side = shapes.iter().map(|shape| self.way.side(*shape)).max().unwrap_or(0);
        let ld = side.next_multiple_of(EDGE);
        let fits = 4 * stride * shapes.len() <= self.memory.input
            && lane_bytes(side) * shapes.len() <= self.memory.work
            && shapes.len() <= MOST_LANES.min(self.resident)
            && matrices
                .iter()
                .all(|matrix| matrix.elements.len() == matrix.rows * matrix.cols && !matrix.elements.is_empty());
        if !fits {
            return Err(EngineError::Shape {
                what: "a batch of matrices".into(),
                expected: format!("what fits {:?}, with as many elements as each shape says", self.memory),
                found: format!("{shapes:?}"),
            });
        }
        self.part ^= 1;
        for (lane, matrix) in matrices.iter().enumerate() {
            let to = self.buffer.part(self.part * self.memory.input + 4 * stride * lane, 1, matrix.elements.len());
            self.context.upload_beside(to, matrix.elements)?;
        }
        Ok(Batch { part: self.part, shapes, ld, stride })
    }

    fn places(&self, batch: &Batch) -> Places {
        let lanes = batch.shapes.len();
        let small = 2 * self.memory.input + self.memory.work;
        let mut at = 2 * self.memory.input;
        Places {
            shapes: self.buffer.part(small, lanes, 2),
            sizes: self.buffer.part(small + 256, 1, lanes),
            wanted: self.buffer.part(small + 512, 1, lanes),
            arrivals: self.buffer.part(small + 1024, lanes, 32),
            matrices: take(&self.buffer, &mut at, lanes, batch.ld * batch.ld),
            works: take(&self.buffer, &mut at, lanes, work_numbers(batch.ld)),
            diagonals: take(&self.buffer, &mut at, lanes, batch.ld),
            besides: take(&self.buffer, &mut at, lanes, batch.ld),
            found: take(&self.buffer, &mut at, lanes, batch.ld),
        }
    }

    /// Starts the batch that was uploaded last, once [`Solver::finish`] has given what was found of the one before.
    ///
    /// # Errors
    /// When that was not asked for, or the device fails.
    pub fn start(&mut self, batch: Batch) -> Result<()> {
        if self.computing.is_some() || batch.part != self.part {
            return Err(EngineError::Device { doing: "start a batch".into(), reason: "another one computes".into() });
        }
        let (context, places, ld, lanes) = (&self.context, self.places(&batch), batch.ld, batch.shapes.len());
        let list = |numbers: &mut dyn Iterator<Item = usize>| numbers.map(|number| number as i32).collect::<Vec<_>>();
        let sides: Vec<usize> = batch.shapes.iter().map(|shape| self.way.side(*shape)).collect();
        context.upload(places.shapes, &list(&mut batch.shapes.iter().flatten().copied()))?;
        context.upload(places.sizes, &list(&mut sides.iter().copied()))?;
        context.upload(places.wanted, &list(&mut batch.shapes.iter().map(|[rows, cols]| *rows.min(cols))))?;
        context.fill_bytes(places.arrivals, 0)?;
        context.fill_bytes(places.works, 0)?;

        let elements = self.buffer.part::<f32>(self.part * self.memory.input, lanes, batch.stride);
        let launch = |x: usize, y: usize| Launch { grid: [x as u32, y as u32, 1], block: THREADS, shared: 0 };
        let triangle = |side: usize| side * (side + 1) / 2;
        let made = args![elements, batch.stride, places.shapes, places.matrices, (ld * ld) as u64, ld];
        context.kind(Kind::Square);
        match self.way {
            Way::Squared => context.launch(&sources::GRAM, &[], "square", launch(triangle(ld / EDGE), lanes), made)?,
            Way::Whole => context.launch(&sources::GRAM, &[], "whole", launch(ld, lanes), made)?,
        }
        let (stride, work_stride) = ((ld * ld) as u64, work_numbers(ld) as u64);
        let blocks = self.blocks(ld, lanes);
        let most = sides.iter().max().copied().unwrap_or(0);
        for first in (0..most).step_by(PANEL) {
            let arguments = args![
                places.matrices,
                stride,
                places.works,
                work_stride,
                places.sizes,
                ld,
                first,
                blocks,
                places.diagonals,
                places.besides,
                places.arrivals
            ];
            context.kind(Kind::Reflections);
            context.launch_together(&sources::TRIDIAGONAL, "panel", launch(blocks * lanes, 1), arguments)?;
            let tiles = most.div_ceil(TILE).saturating_sub((first + PANEL) / TILE);
            let arguments = args![places.matrices, stride, places.works, work_stride, places.sizes, ld, first];
            context.kind(Kind::Reflected);
            context.launch(&sources::TRIDIAGONAL, &[], "update", launch(triangle(tiles), lanes), arguments)?;
        }
        let most = batch.shapes.iter().map(|[rows, cols]| *rows.min(cols)).max().unwrap_or(0);
        let grid = launch((SIDES * most).div_ceil(THREADS as usize), lanes);
        let arguments = args![places.diagonals, places.besides, places.sizes, places.wanted, ld, places.found];
        context.kind(Kind::Bisection);
        context.launch(&sources::BISECTION, &[], "bisect", grid, arguments)?;
        context.kind(Kind::Other);
        self.computing = Some(batch);
        Ok(())
    }
}

/// The next part of the buffer: a row of `numbers` for each lane.
fn take<T: Element>(buffer: &Buffer, at: &mut usize, lanes: usize, numbers: usize) -> View<T> {
    let view = buffer.part(*at, lanes, numbers);
    *at = (*at + lanes * numbers * size_of::<T>()).next_multiple_of(256);
    view
}

impl Drop for Solver {
    fn drop(&mut self) {
        // What is queued uses the buffer, which goes now.
        let _ = self.context.synchronize();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_is_that_of_the_largest_matrices_and_stays_in_its_bound() {
        // The linear weights of Qwen3-8B.
        let shapes = [[4096, 4096], [1024, 4096], [12288, 4096], [4096, 12288]];
        let memory = Memory::plan(Way::Squared, &shapes, 3072 * MIB).unwrap();
        assert_eq!(memory.lanes(Way::Squared, [4096, 12288]), 4);
        assert!(memory.bytes() > 2000 * MIB && memory.bytes() < 2200 * MIB, "{}", memory.bytes() / MIB);
        assert!(memory.lanes(Way::Squared, [1024, 4096]) >= 16);
        // With less there are fewer at a time, and with too little none.
        for (budget, lanes) in [(600, 1), (1100, 2), (1600, 3)] {
            let memory = Memory::plan(Way::Squared, &shapes, budget * MIB).unwrap();
            assert!(memory.bytes() <= budget * MIB && memory.lanes(Way::Squared, shapes[3]) == lanes);
        }
        assert_eq!(Memory::plan(Way::Squared, &shapes, 500 * MIB), None);
        assert_eq!(Memory::plan(Way::Squared, &[], 500 * MIB), None);
        assert_eq!(Memory::plan(Way::Squared, &shapes, 0), None);
        // 16384 × 16384 numbers, the elements twice, and the work.
        let whole = Memory::plan(Way::Whole, &shapes, 3072 * MIB).unwrap();
        assert!(whole.bytes() > 2432 * MIB && whole.bytes() < 2500 * MIB, "{}", whole.bytes() / MIB);
        assert!(Memory::plan(Way::Whole, &[[12288, 5120]], 3072 * MIB).is_some());
        assert!(Memory::plan(Way::Whole, &[[25600, 5120]], 3072 * MIB).is_none());
        // Many small ones at a time, as many as there are at most.
        let memory = Memory::plan(Way::Squared, &[[576, 1536]; 40], 3072 * MIB).unwrap();
        assert_eq!(memory.lanes(Way::Squared, [576, 1536]), MOST_LANES);
        assert_eq!(Memory::plan(Way::Squared, &[[8, 8]], 3072 * MIB).unwrap().lanes(Way::Squared, [8, 8]), 1);
    }

    #[test]
    fn every_batch_that_fits_lies_inside_the_memory() {
        for way in [Way::Squared, Way::Whole] {
            for shapes in
                [vec![[1, 1]], vec![[640, 130], [64, 999], [1, 5]], vec![[129, 129]; 16], vec![[576, 1536]; 3]]
            {
                let context = Context::dry((9, 0));
                let mut solver = Solver::new(&context, way, Memory::plan(way, &shapes, 600 * MIB).unwrap()).unwrap();
                let largest = shapes.iter().copied().max_by_key(|shape| way.side(*shape)).unwrap();
                let lanes = solver.lanes(largest).min(shapes.len());
                let elements: Vec<Vec<f32>> = shapes.iter().map(|[rows, cols]| vec![0.0; rows * cols]).collect();
                let matrices = shapes.iter().zip(&elements).take(lanes);
                let batch: Vec<_> =
                    matrices.map(|([rows, cols], elements)| Matrix { elements, rows: *rows, cols: *cols }).collect();
                let batch = solver.upload(&batch).unwrap();
                solver.start(batch.clone()).unwrap();
                let error = solver.start(batch.clone()).unwrap_err().to_string();
                assert_eq!(error, "could not start a batch: another one computes");
                let mut at = 2 * solver.memory.input;
                for numbers in [batch.ld * batch.ld, work_numbers(batch.ld), batch.ld, batch.ld, batch.ld] {
                    at = (at + 8 * lanes * numbers).next_multiple_of(256);
                }
                assert!(at <= 2 * solver.memory.input + solver.memory.work, "{way:?} {shapes:?}");
                assert!(batch.ld >= way.side(largest) && lanes * solver.blocks(batch.ld, lanes) <= solver.resident);
            }
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_an_error() {
        let context = Context::dry((9, 0));
        let memory = Memory::plan(Way::Squared, &[[64, 64]], MIB).unwrap();
        let mut solver = Solver::new(&context, Way::Squared, memory).unwrap();
        let elements = vec![1.0; 300 * 300];
        let matrix = |rows: usize, cols: usize, count: usize| Matrix { elements: &elements[..count], rows, cols };
        for batch in [vec![matrix(300, 300, 90000)], vec![matrix(64, 64, 4095)], vec![matrix(0, 64, 0)]] {
            let error = solver.upload(&batch).unwrap_err().to_string();
            assert!(error.starts_with("a batch of matrices: expected what fits"), "{error}");
        }
        assert_eq!(solver.lanes([64, 64]), 1);
        assert_eq!(solver.lanes([4096, 4096]), 1);
    }
}
