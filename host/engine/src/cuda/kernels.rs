//! Kernels: their sources, compiled by NVRTC for the card at hand and kept on disk as machine code.
//!
//! The cache is `kernels/` in `LIFTPLAN_CACHE`, or `liftplan` in `XDG_CACHE_HOME`, or `~/.cache/liftplan`; an empty
//! `LIFTPLAN_CACHE` turns it off. A file's name is the hash of all that the code depends on.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;

use cudarc::driver::{result, sys as driver};
use cudarc::nvrtc::{result as nvrtc, sys};

use super::context::check;
use super::memory::{Element, View};
use crate::error::{EngineError, Result};

/// A file of kernels.
#[derive(Debug)]
pub struct Source {
    /// Its name in `host/engine/kernels`.
    pub name: &'static str,
    /// Its text, behind which `common.cuh` is put.
    pub text: &'static str,
    /// Whether it uses instructions that only Hopper has.
    pub hopper: bool,
    /// Constants it must be compiled with, each with the values that the test of compilation takes.
    pub defines: &'static [&'static [(&'static str, i64)]],
}

/// What every kernel file may use.
const COMMON: &str = include_str!("../../kernels/common.cuh");

/// The kernel files of the engine.
pub mod sources {
    use super::Source;

    macro_rules! sources {
        ($($name:ident = $file:literal $(, $defines:expr)*;)*) => {
            $(
                #[doc = concat!("`", $file, "`.")]
                pub static $name: Source = Source {
                    name: $file,
                    text: include_str!(concat!("../../kernels/", $file)),
                    hopper: false,
                    defines: &[&[] $(, &$defines)*],
                };
            )*
            /// Those with nothing to choose.
            pub static PLAIN: &[&Source] = &[$(&$name),*];
        };
    }

    sources! {
        ATTENTION_PLAIN = "attention_plain.cu";
        NORM = "norm.cu", [("GROUPS", 1)], [("GROUPS", 4)];
        ROPE = "rope.cu", [("PARTS", 1)], [("FACTORS", 1)], [("PARTS", 1), ("FACTORS", 1)];
        SWIGLU = "swiglu.cu";
        LOSS = "loss.cu";
        EMBEDDING = "embedding.cu";
        ADAMW = "adamw.cu", [("MOMENTS", 16)], [("MOMENTS", 8)];
        NF4 = "nf4.cu", [("BLOCK", 32)], [("BLOCK", 4096)];
        DROPOUT = "dropout.cu", [("ADD", 1)];
        DORA = "dora.cu";
        INT8 = "int8.cu";
        BIAS = "bias.cu";
        GRAM = "gram.cu";
        TRIDIAGONAL = "tridiagonal.cu";
        BISECTION = "bisection.cu";
    }
}

/// All kernel files, for the test that compiles each.
pub fn all() -> Vec<&'static Source> {
    sources::PLAIN.iter().copied().chain(super::attention::SOURCES.iter().copied()).collect()
}

/// A kernel's argument in a slot of 8 bytes.
pub(crate) trait Argument {
    fn slot(self) -> u64;
}
impl<T: Element> Argument for View<T> {
    fn slot(self) -> u64 {
        self.ptr()
    }
}
impl<T: Element> Argument for Option<View<T>> {
    fn slot(self) -> u64 {
        self.map_or(0, |view| view.ptr())
    }
}
impl Argument for u64 {
    fn slot(self) -> u64 {
        self
    }
}
impl Argument for i32 {
    fn slot(self) -> u64 {
        u64::from(self as u32)
    }
}
impl Argument for u32 {
    fn slot(self) -> u64 {
        u64::from(self)
    }
}
impl Argument for f32 {
    fn slot(self) -> u64 {
        u64::from(self.to_bits())
    }
}
/// Sizes are `int` in the kernels; what is larger is passed as `u64`.
impl Argument for usize {
    fn slot(self) -> u64 {
        assert!(self <= i32::MAX as usize, "a kernel's size {self} fits an int");
        self as u64
    }
}

/// The arguments of a kernel as slots.
macro_rules! args {
    ($($argument:expr),* $(,)?) => { &[$($crate::cuda::kernels::Argument::slot($argument)),*] };
}
pub(crate) use args;

/// A file and the constants it is compiled with.
type Compiled = (&'static str, Vec<(&'static str, i64)>);

/// The kernels of one card.
#[derive(Debug)]
pub(crate) struct Kernels {
    arch: String,
    modules: HashMap<Compiled, driver::CUmodule>,
    /// With the bytes of shared memory that each may take.
    functions: HashMap<(Compiled, &'static str), (driver::CUfunction, u32)>,
}

// SAFETY: modules and functions are handles that any thread may use while their context is current.
unsafe impl Send for Kernels {}

impl Kernels {
    pub(crate) fn new(capability: (u32, u32)) -> Self {
        Self { arch: arch(capability), modules: HashMap::new(), functions: HashMap::new() }
    }

    pub(crate) fn function(
        &mut self,
        source: &'static Source,
        defines: &[(&'static str, i64)],
        name: &'static str,
        shared: u32,
    ) -> Result<driver::CUfunction> {
        let key = ((source.name, defines.to_vec()), name);
        if let Some((function, allowed)) = self.functions.get(&key)
            && shared <= *allowed
        {
            return Ok(*function);
        }
        let module = self.module(source, defines)?;
        let c_name = CString::new(name).map_err(|_| compile_error(source.name, "a name with a zero byte"))?;
        // SAFETY: the module is loaded and never unloaded.
        let function = check(name, unsafe { result::module::get_function(module, c_name) })?;
        if shared > 48 << 10 {
            let attribute = driver::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is valid.
            check(name, unsafe { result::function::set_function_attribute(function, attribute, shared as i32) })?;
        }
        self.functions.insert(key, (function, shared.max(48 << 10)));
        Ok(function)
    }

    fn module(&mut self, source: &'static Source, defines: &[(&'static str, i64)]) -> Result<driver::CUmodule> {
        let key = (source.name, defines.to_vec());
        if let Some(module) = self.modules.get(&key) {
            return Ok(*module);
        }
        let path = cached(source, defines, &self.arch);
        let load = |code: &[u8]| {
            // SAFETY: the driver checks the image; it is copied before the call returns.
            unsafe { result::module::load_data(code.as_ptr().cast()) }
        };
        // A damaged file of the cache is made again.
        let kept = path.as_ref().and_then(|path| std::fs::read(path).ok()).and_then(|code| load(&code).ok());
        let module = match kept {
            Some(module) => module,
            None => {
                let code = compile(source, defines, &self.arch)?;
                if let Some(path) = &path {
                    keep(path, &code);
                }
                check("load a kernel", load(&code))?
            }
        };
        self.modules.insert(key, module);
        Ok(module)
    }
}

/// The compiler's name for an architecture; Hopper's and newer ones' own instructions need the `a`.
pub fn arch((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major == 9 { "a" } else { "" })
}

fn compile_error(kernel: &str, log: &str) -> EngineError {
    EngineError::Device { doing: format!("compile {kernel}"), reason: log.trim_end_matches(['\0', '\n']).into() }
}

/// The architectures that NVRTC knows, such as 80 or 90.
///
/// # Errors
/// When NVRTC cannot be opened.
pub fn supported_archs() -> Result<Vec<u32>> {
    super::libraries::Library::Nvrtc.require()?;
    let mut count: c_int = 0;
    // SAFETY: the first call gives the number that the second writes.
    unsafe {
        sys::nvrtcGetNumSupportedArchs(&mut count).result().map_err(|e| compile_error("a kernel", &e.to_string()))?;
        let mut archs = vec![0 as c_int; count.max(0) as usize];
        sys::nvrtcGetSupportedArchs(archs.as_mut_ptr())
            .result()
            .map_err(|e| compile_error("a kernel", &e.to_string()))?;
        Ok(archs.into_iter().map(|arch| arch as u32).collect())
    }
}

fn version() -> (i32, i32) {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: writes two integers.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// Machine code of a kernel file for an architecture such as `sm_90a`.
///
/// # Errors
/// With the compiler's messages.
pub fn compile(source: &Source, defines: &[(&str, i64)], arch: &str) -> Result<Vec<u8>> {
    super::libraries::Library::Nvrtc.require()?;
    let text = CString::new(format!("{COMMON}\n#line 1 \"{}\"\n{}", source.name, source.text))
        .map_err(|_| compile_error(source.name, "a zero byte in the source"))?;
    let name = CString::new(source.name).map_err(|_| compile_error(source.name, "a zero byte in the name"))?;
    let program = nvrtc::create_program(&text, Some(&name)).map_err(|e| compile_error(source.name, &e.to_string()))?;
    let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-default-device".into()];
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    // SAFETY: the program was made above and is destroyed once, at the end.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let log = nvrtc::get_program_log(program).unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
        let code = compiled.map_err(|error| {
            compile_error(source.name, &format!("{error} for {arch}\n{}", String::from_utf8_lossy(&log)))
        });
        let code = code.and_then(|()| {
            let mut bytes = 0;
            let failed = |error: nvrtc::NvrtcError| compile_error(source.name, &error.to_string());
            sys::nvrtcGetCUBINSize(program, &mut bytes).result().map_err(failed)?;
            let mut code = vec![0_u8; bytes];
            sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()).result().map_err(failed)?;
            Ok(code)
        });
        let _ = nvrtc::destroy_program(program);
        code
    }
}

/// The user's cache, if there is to be one.
pub(crate) fn cache_root() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match std::env::var_os("LIFTPLAN_CACHE") {
        Some(root) if root.is_empty() => None,
        Some(root) => Some(PathBuf::from(root)),
        None => {
            let root = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
            Some(root.join("liftplan"))
        }
    }
}

/// Where a kernel's code is kept, if anywhere.
fn cached(source: &Source, defines: &[(&str, i64)], arch: &str) -> Option<PathBuf> {
    let root = cache_root()?;
    let (major, minor) = version();
    let key = format!("{COMMON}\n{}\n{}\n{defines:?}\n{arch}\n{major}.{minor}", source.name, source.text);
    // FNV-1a, 128 bits.
    let hash = key.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    Some(root.join("kernels").join(format!("{hash:032x}.cubin")))
}

/// Keeps code for the next run; a cache that cannot be written costs time, not the run.
fn keep(path: &std::path::Path, code: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&unfinished, code))
        .and_then(|()| std::fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
}
