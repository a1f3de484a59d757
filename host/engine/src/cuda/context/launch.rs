//! How kernels are queued: on which stream, by how many threads, and how many blocks run at the same time.

use cudarc::driver::{result, sys};

use super::{Context, check, lock};
use crate::cuda::kernels::Source;
use crate::error::Result;

impl Context {
    /// Queues a kernel: `name` of `source`, compiled with `defines`. `arguments` as [`crate::cuda::kernels::args!`] makes them.
    ///
    /// # Errors
    /// When it does not compile or cannot be launched.
    pub(crate) fn launch(
        &self,
        source: &'static Source,
        defines: &[(&'static str, i64)],
        name: &'static str,
        launch: Launch,
        arguments: &[u64],
    ) -> Result<()> {
        self.measured(|| self.launch_on(self.stream(), source, defines, name, launch, arguments))
    }

    /// [`Context::launch`] on another stream, unmeasured.
    pub(crate) fn launch_on(
        &self,
        stream: sys::CUstream,
        source: &'static Source,
        defines: &[(&'static str, i64)],
        name: &'static str,
        launch: Launch,
        arguments: &[u64],
    ) -> Result<()> {
        self.queue(stream, result::launch_kernel, (source, defines, name), launch, arguments)
    }

    /// The same for a kernel whose blocks wait for each other, so that all of them must run at the same time.
    ///
    /// # Errors
    /// Also when there are more blocks than [`Context::blocks_at_once`].
    pub(crate) fn launch_together(
        &self,
        source: &'static Source,
        name: &'static str,
        launch: Launch,
        arguments: &[u64],
    ) -> Result<()> {
        let start = result::launch_cooperative_kernel;
        self.measured(|| self.queue(self.stream(), start, (source, &[], name), launch, arguments))
    }

    fn queue(
        &self,
        stream: sys::CUstream,
        start: Start,
        (source, defines, name): (&'static Source, &[(&'static str, i64)], &'static str),
        launch: Launch,
        arguments: &[u64],
    ) -> Result<()> {
        if self.is_dry() || launch.grid.contains(&0) {
            return Ok(());
        }
        let function = lock(&self.0.kernels).function(source, defines, name, launch.shared)?;
        let mut slots: Vec<*mut std::ffi::c_void> =
            arguments.iter().map(|argument| std::ptr::from_ref(argument).cast_mut().cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: each kernel's caller passes the arguments that its source declares, views of live buffers among
        // them; the driver copies the arguments before it returns.
        let queued = unsafe { start(function, (x, y, z), (launch.block, 1, 1), launch.shared, stream, &mut slots) };
        check(name, queued)
    }

    /// How many blocks of `block` threads of a kernel without dynamic shared memory a multiprocessor runs at the same time.
    ///
    /// # Errors
    /// When the kernel does not compile.
    pub(crate) fn blocks_at_once(&self, source: &'static Source, name: &'static str, block: u32) -> Result<usize> {
        let function = lock(&self.0.kernels).function(source, &[], name, 0)?;
        let mut blocks = 0;
        // SAFETY: writes a number.
        let answer = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, block as i32, 0).result()
        };
        check(name, answer)?;
        Ok(blocks.max(0) as usize)
    }
}

/// Starts a kernel: function, grid, block, shared memory, stream, arguments.
type Start = unsafe fn(
    sys::CUfunction,
    (u32, u32, u32),
    (u32, u32, u32),
    u32,
    sys::CUstream,
    &mut [*mut std::ffi::c_void],
) -> std::result::Result<(), result::DriverError>;

/// A kernel's grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    /// `blocks` blocks of `block` threads.
    pub fn new(blocks: usize, block: u32) -> Self {
        Self { grid: [blocks as u32, 1, 1], block, shared: 0 }
    }
}
