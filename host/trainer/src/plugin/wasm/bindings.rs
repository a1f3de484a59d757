//! The plugin API's types and functions, generated from `plugin-api/wit`.
#![allow(missing_docs)]

wasmtime::component::bindgen!({
    path: "../../plugin-api/wit/policy-0.1.0",
    world: "liftplan:policy/plugin@0.1.0",
    imports: { default: trappable },
    trappable_error_type: { "liftplan:policy/types.error" => crate::plugin::call::Fault },
    with: {
        "liftplan:policy/model.tensor": crate::plugin::wasm::guest::Tensor,
        "liftplan:policy/model.view": crate::plugin::wasm::guest::View,
        "liftplan:policy/calibration.session": crate::plugin::wasm::guest::Session,
        "liftplan:policy/plan.adapter": crate::plugin::wasm::guest::Adapter,
        "liftplan:policy/plan.builder": crate::plugin::wasm::guest::Builder,
        "liftplan:policy/run.moment": crate::plugin::wasm::guest::Moment,
    },
});
