//! Components made of WAT: a core module's text in, a component with the plugin API's types and metadata out.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Metadata of a plugin called `hostile` with every capability but calibration.
pub const METADATA: &str = r#"{"name":"hostile","version":"6.6.6","author":"nobody","license":"MIT","api":"0.1",
    "capabilities":["statistics","revise"],"settings":{"type":"object","properties":{}}}"#;

/// What a core module imports, by short names.
const IMPORTS: [(&str, &str, &str, &str); 22] = [
    ("drop-view", "model", "[resource-drop]view", "(param i32)"),
    ("drop-tensor", "model", "[resource-drop]tensor", "(param i32)"),
    ("drop-builder", "plan", "[resource-drop]builder", "(param i32)"),
    ("drop-moment", "run", "[resource-drop]moment", "(param i32)"),
    ("count", "model", "[method]view.tensor-count", "(param i32) (result i32)"),
    ("tensor", "model", "[method]view.tensor", "(param i32 i32 i32)"),
    ("find", "model", "[method]view.find", "(param i32 i32 i32 i32)"),
    ("choose", "model", "[method]view.choose", "(param i32 i32 i32 i32 i32 i32 i32 i32)"),
    ("architecture", "model", "[method]view.architecture", "(param i32 i32)"),
    ("name", "model", "[method]tensor.name", "(param i32 i32)"),
    ("quantiles", "model", "[method]tensor.quantiles", "(param i32 i32 i32 i32)"),
    ("adapter", "plan", "[constructor]adapter", "(param i32) (result i32)"),
    ("adapt", "plan", "[method]builder.adapt", "(param i32 i32 i32 i32)"),
    ("train", "plan", "[method]builder.train", "(param i32 i32 i32)"),
    ("score", "plan", "[method]builder.score", "(param i32 i32 f64 i32)"),
    ("lr-scale", "plan", "[method]builder.lr-scale", "(param i32 i32 f64 i32)"),
    ("pick-every", "plan", "[method]builder.pick-every", "(param i32 i64 i32)"),
    ("pick-at", "plan", "[method]builder.pick-at", "(param i32 i64 i32)"),
    ("storage", "plan", "[method]builder.storage", "(param i32 i32 i32 i32 i32)"),
    ("set-state", "run", "set-state", "(param i32 i32 i32 i32 i32)"),
    ("warn", "log", "warn", "(param i32 i32)"),
    ("open", "calibration", "open", "(param i32 i32 i32)"),
];

/// A component whose core module has these parts. In `make_plan`, `$view` and `$builder` are its handles, and its value is
/// the address of a result: 16 holds success, and what a call of the host answered lies at 64.
pub struct Guest {
    /// Functions, globals and data.
    pub items: String,
    /// The body of make-plan.
    pub make_plan: String,
    /// The memory's declaration.
    pub memory: &'static str,
    /// The body of the function by which the host asks for memory.
    pub realloc: &'static str,
    /// The metadata.
    pub metadata: String,
}

/// Hands out memory from 64 KiB on, growing it.
const REALLOC: &str = "
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get $size)))
    (block $fits
        (br_if $fits (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
        (drop (memory.grow (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1)))))
    (local.get $at)";

/// Lets go of both handles, as a plugin must before it returns.
pub const DROPS: &str = "(call $drop-view (local.get $view)) (call $drop-builder (local.get $builder))";

impl Guest {
    /// A plugin that does `body`, lets go of its handles, and returns the result at `result`.
    pub fn doing(body: &str, result: u32) -> Self {
        Self {
            items: String::new(),
            make_plan: format!("{body} {DROPS} (i32.const {result})"),
            memory: "(memory (export \"memory\") 2)",
            realloc: REALLOC,
            metadata: METADATA.to_string(),
        }
    }

    /// A plugin that calls the host with this, and ends with the host's answer.
    pub fn answering(call: &str) -> Self {
        Self::doing(call, 64)
    }

    /// With more functions, globals or data.
    pub fn with(mut self, items: &str) -> Self {
        self.items.push_str(items);
        self
    }

    /// The core module's text.
    fn wat(&self) -> String {
        let imports: String = IMPORTS
            .iter()
            .filter(|(short, ..)| {
                let call = format!("call ${short}");
                let used = |text: &str| {
                    text.match_indices(&call)
                        .any(|(at, _)| !text[at + call.len()..].starts_with(|c: char| c == '-' || c.is_alphanumeric()))
                };
                used(&self.make_plan) || used(&self.items) || short.starts_with("drop-")
            })
            .map(|(short, interface, name, of)| {
                format!("(import \"liftplan:policy/{interface}@0.1.0\" \"{name}\" (func ${short} {of}))\n")
            })
            .collect();
        format!(
            "(module {imports} {memory} (global $heap (mut i32) (i32.const 65536)) {items}
             (func (export \"cabi_realloc\") (param $old i32) (param $was i32) (param $align i32) (param $size i32)
                 (result i32) (local $at i32) {realloc})
             (func (export \"liftplan:policy/policy@0.1.0#describe\") (result i32) (i32.const 32))
             (func (export \"liftplan:policy/policy@0.1.0#make-plan\")
                 (param $settings i32) (param $length i32) (param $view i32) (param $builder i32) (result i32)
                 (local $i i32) (local $j i32) {make_plan})
             (func (export \"liftplan:policy/policy@0.1.0#revise\") (param i32 i32 i32 i32 i32) (result i32)
                 (call $drop-view (local.get 2)) (call $drop-moment (local.get 3)) (call $drop-builder (local.get 4))
                 (i32.const 16)))",
            memory = self.memory,
            items = self.items,
            realloc = self.realloc,
            make_plan = self.make_plan,
        )
    }

    /// The component.
    pub fn bytes(&self) -> Vec<u8> {
        let mut module = wat::parse_str(self.wat()).unwrap_or_else(|error| panic!("{error}\n{}", self.wat()));
        let mut resolve = Resolve::default();
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-api/wit/policy-0.1.0");
        let (package, _) = resolve.push_dir(wit).unwrap();
        let world = resolve.select_world(&[package], Some("plugin")).unwrap();
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        let component = ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap();
        with_metadata(component, &self.metadata)
    }
}

/// A component with a section that holds its metadata.
pub fn with_metadata(mut component: Vec<u8>, metadata: &str) -> Vec<u8> {
    let name = "liftplan:plugin";
    let content = [&[name.len() as u8], name.as_bytes(), metadata.as_bytes()].concat();
    component.push(0);
    let mut length = content.len();
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        component.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    component.extend(content);
    component
}

/// A component written as such, with metadata.
pub fn component(wat: &str) -> Vec<u8> {
    with_metadata(wat::parse_str(wat).unwrap_or_else(|error| panic!("{error}")), METADATA)
}

/// The component `bytes` with so many instances of `module` beside its own.
pub fn with_instances(mut bytes: Vec<u8>, count: u8, module: &str) -> Vec<u8> {
    const CORE_MODULE: u8 = 1;
    const CORE_INSTANCES: u8 = 2;
    let modules = sections(&bytes).into_iter().filter(|id| *id == CORE_MODULE).count() as u8;
    let module = wat::parse_str(module).unwrap();
    assert!(module.len() < 128 && count < 42, "lengths of one byte are enough here");
    bytes.extend([CORE_MODULE, module.len() as u8]);
    bytes.extend(module);
    bytes.extend([CORE_INSTANCES, 3 * count + 1, count]);
    for _ in 0..count {
        // Made from a module, this one, without arguments.
        bytes.extend([0, modules, 0]);
    }
    bytes
}

/// The numbers of a component's sections at the top.
fn sections(bytes: &[u8]) -> Vec<u8> {
    let (mut ids, mut at) = (Vec::new(), 8);
    while at < bytes.len() {
        ids.push(bytes[at]);
        at += 1;
        let (mut length, mut shift) = (0, 0);
        loop {
            length |= usize::from(bytes[at] & 0x7f) << shift;
            at += 1;
            shift += 7;
            if bytes[at - 1] & 0x80 == 0 {
                break;
            }
        }
        at += length;
    }
    ids
}
