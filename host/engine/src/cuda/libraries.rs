//! Which of NVIDIA's libraries can be opened. In: a library's name. Out: nothing, or how to get it.

use crate::error::{EngineError, Result};

/// What the engine opens at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver, `libcuda`.
    Driver,
    /// Matrix products, `libcublasLt`.
    CublasLt,
    /// The compiler of kernels, `libnvrtc`.
    Nvrtc,
    /// Fused attention, `libcudnn`.
    Cudnn,
}

impl Library {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Driver, Self::CublasLt, Self::Nvrtc, Self::Cudnn];

    /// Those that the engine can't do without: cuDNN only makes attention faster.
    pub const REQUIRED: [Self; 3] = [Self::Driver, Self::CublasLt, Self::Nvrtc];

    /// Its file's name without `lib` and `.so`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "cuda",
            Self::CublasLt => "cublasLt",
            Self::Nvrtc => "nvrtc",
            Self::Cudnn => "cudnn",
        }
    }

    /// Whether it can be opened.
    pub fn is_present(self) -> bool {
        // SAFETY: these open the library and close it again; NVIDIA's libraries run no code that we could break then.
        unsafe {
            match self {
                Self::Driver => cudarc::driver::sys::is_culib_present(),
                Self::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
                Self::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Self::Cudnn => cudarc::cudnn::sys::is_culib_present(),
            }
        }
    }

    /// Fails with a way out unless it can be opened: cudarc would panic at the first call.
    ///
    /// # Errors
    /// [`EngineError::MissingLibrary`].
    pub fn require(self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        let get = match self {
            Self::Driver => "install NVIDIA's driver (it brings libcuda)",
            Self::CublasLt => {
                "`pip install nvidia-cublas`, and add its folder (site-packages/nvidia/cu13/lib) to LD_LIBRARY_PATH"
            }
            Self::Nvrtc => {
                "`pip install nvidia-cuda-nvrtc`, and add its folder (site-packages/nvidia/cu13/lib) to LD_LIBRARY_PATH"
            }
            Self::Cudnn => {
                "`pip install nvidia-cudnn-cu13`, and add its folder (site-packages/nvidia/cudnn/lib) to LD_LIBRARY_PATH"
            }
        };
        Err(EngineError::MissingLibrary { name: format!("lib{}", self.name()), help: get.into() })
    }
}
