//! A native plugin whose rule panics, without the SDK.
use std::ffi::c_void;

const METADATA: &str =
    r#"{"name": "hostile", "version": "6.6.6", "author": "M", "license": "none", "api": "0.1"}"#;

#[used]
#[unsafe(link_section = ".liftplan")]
static SECTION: [u8; METADATA.len()] = {
    let mut bytes = [0; METADATA.len()];
    bytes.copy_from_slice(METADATA.as_bytes());
    bytes
};

#[repr(C)]
pub struct Policy {
    size: usize,
    abi: u32,
    reserved: u32,
    make_plan: Option<extern "C" fn(*const c_void, *const u8, usize) -> i32>,
    revise: Option<extern "C" fn(*const c_void, *const u8, usize) -> i32>,
}

extern "C" fn make_plan(_: *const c_void, _: *const u8, _: usize) -> i32 {
    std::hint::black_box(&SECTION);
    panic!("the rule fell over")
}

#[unsafe(no_mangle)]
pub extern "C" fn liftplan_plugin() -> *const Policy {
    static POLICY: Policy =
        Policy { size: size_of::<Policy>(), abi: 1, reserved: 0, make_plan: Some(make_plan), revise: None };
    &POLICY
}
