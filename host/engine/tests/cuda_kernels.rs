//! Every kernel compiles for every architecture that the engine supports. NVRTC needs no GPU; where it is not installed
//! the test says so, and with `LIFTPLAN_NEED_NVRTC` set (as in CI) it fails.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use liftplan_engine::cuda::kernels::{all, compile, supported_archs};
use liftplan_engine::cuda::libraries::Library;
use rayon::prelude::*;

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if !Library::Nvrtc.is_present() {
        let error = Library::Nvrtc.require().unwrap_err();
        assert!(std::env::var_os("LIFTPLAN_NEED_NVRTC").is_none(), "{error}");
        eprintln!("skipped: {error}");
        return;
    }
    let known = supported_archs().unwrap();
    let mut work = Vec::new();
    for (arch, number, hopper) in
        [("sm_80", 80, false), ("sm_90a", 90, true), ("sm_100", 100, false), ("sm_120", 120, false)]
    {
        if !known.contains(&number) {
            assert!(number > 90, "NVRTC does not know {arch}");
            continue;
        }
        for source in all().into_iter().filter(|source| hopper || !source.hopper) {
            work.extend(source.defines.iter().map(|defines| (source, *defines, arch)));
        }
    }
    work.par_iter().for_each(|(source, defines, arch)| {
        let code = compile(source, defines, arch).unwrap_or_else(|error| panic!("{error}"));
        assert!(code.starts_with(b"\x7fELF"), "{} for {arch} is not machine code", source.name);
    });
    let compiled = work.len();
    assert!(compiled >= 2 * all().len());
}

#[test]
fn errors_of_a_kernel_name_the_file_and_the_line() {
    if !Library::Nvrtc.is_present() {
        return;
    }
    let source = liftplan_engine::cuda::kernels::Source {
        name: "broken.cu",
        text: "extern \"C\" __global__ void f() {\n    undefined_thing();\n}\n",
        hopper: false,
        defines: &[&[]],
    };
    let error = compile(&source, &[], "sm_80").unwrap_err().to_string();
    assert!(error.starts_with("could not compile broken.cu: "), "{error}");
    assert!(error.contains("(2)") && error.contains("undefined_thing"), "{error}");
}
