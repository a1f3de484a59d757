//! A plugin's metadata, as bytes made while compiling, and the macro that puts everything together.

/// The bytes of a text, for a custom section.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N {
        bytes[i] = text.as_bytes()[i];
        i += 1;
    }
    bytes
}

/// Fails to compile if the text can't stand in JSON as it is.
pub const fn check_word(text: &str) {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        assert!(bytes[i] != b'"' && bytes[i] != b'\\' && bytes[i] >= 32, "no quotes, backslashes or line breaks here");
        i += 1;
    }
}

/// Makes a type that is a [`Policy`](crate::Policy) into a plugin: its metadata, and the functions that the host calls.
///
/// `version`, `author` and `license` may be left out, and are then those of the crate's `Cargo.toml`. `settings` is a JSON
/// Schema, as a literal or as `include_str!("settings.json")`.
#[macro_export]
macro_rules! plugin {
    (
        policy: $policy:ty,
        name: $name:literal,
        about: $about:literal,
        capabilities: [$($capability:literal),* $(,)?],
        settings: $settings:expr $(,)?
    ) => {
        $crate::plugin! {
            policy: $policy,
            name: $name,
            version: env!("CARGO_PKG_VERSION"),
            author: env!("CARGO_PKG_AUTHORS"),
            license: env!("CARGO_PKG_LICENSE"),
            about: $about,
            capabilities: [$($capability),*],
            settings: $settings,
        }
    };
    (
        policy: $policy:ty,
        name: $name:expr,
        version: $version:expr,
        author: $author:expr,
        license: $license:expr,
        about: $about:expr,
        capabilities: [$($capability:literal),* $(,)?],
        settings: $settings:expr $(,)?
    ) => {
        const _: () = {
            $crate::check_word($name);
            $crate::check_word($version);
            $crate::check_word($author);
            $crate::check_word($license);
            $crate::check_word($about);
        };
        const METADATA: &str = $crate::metadata!(
            $name, $version, $author, $license, $about, [$($capability),*], $settings
        );
        #[cfg_attr(target_family = "wasm", unsafe(link_section = "liftplan:plugin"))]
        #[cfg_attr(
            all(not(target_family = "wasm"), target_vendor = "apple"),
            unsafe(link_section = "__DATA,__liftplan")
        )]
        #[cfg_attr(
            all(not(target_family = "wasm"), not(target_vendor = "apple")),
            unsafe(link_section = ".liftplan")
        )]
        #[used]
        static METADATA_SECTION: [u8; METADATA.len()] = $crate::bytes(METADATA);
        $crate::entry!($policy, METADATA);
    };
}

/// The metadata's JSON.
#[doc(hidden)]
#[macro_export]
macro_rules! metadata {
    ($name:expr, $version:expr, $author:expr, $license:expr, $about:expr, [$($capability:literal),*], $settings:expr) => {
        concat!(
            "{\"name\":\"", $name, "\",\"version\":\"", $version, "\",\"author\":\"", $author, "\",\"license\":\"",
            $license, "\",\"about\":\"", $about, "\",\"api\":\"0.1\",\"capabilities\":[",
            $crate::commas!($($capability),*), "],\"settings\":", $settings, "}"
        )
    };
}

/// Quoted words with commas between them.
#[doc(hidden)]
#[macro_export]
macro_rules! commas {
    () => { "" };
    ($first:literal $(, $rest:literal)*) => {
        concat!("\"", $first, "\"" $(, ",\"", $rest, "\"")*)
    };
}

/// What the host calls.
#[doc(hidden)]
#[macro_export]
#[cfg(target_family = "wasm")]
macro_rules! entry {
    ($policy:ty, $metadata:ident) => {
        struct LiftplanPlugin;
        impl $crate::wasm::Guest for LiftplanPlugin {
            fn describe() -> String {
                $metadata.to_string()
            }
            fn make_plan(
                settings: String,
                view: &$crate::wasm::View,
                builder: &$crate::wasm::Builder,
            ) -> Result<(), $crate::wasm::Error> {
                $crate::wasm::report_panics();
                $crate::wasm::make_plan::<$policy>(&settings, view, builder)
            }
            fn revise(
                settings: String,
                view: &$crate::wasm::View,
                moment: &$crate::wasm::Moment,
                builder: &$crate::wasm::Builder,
            ) -> Result<(), $crate::wasm::Error> {
                $crate::wasm::report_panics();
                $crate::wasm::revise::<$policy>(&settings, view, moment, builder)
            }
        }
        $crate::bindings::export!(LiftplanPlugin with_types_in $crate::bindings);
    };
}

/// What the host calls.
#[doc(hidden)]
#[macro_export]
#[cfg(not(target_family = "wasm"))]
macro_rules! entry {
    ($policy:ty, $metadata:ident) => {
        /// The functions of this plugin, for the host.
        #[unsafe(no_mangle)]
        pub extern "C" fn liftplan_plugin() -> *const $crate::native::abi::Policy {
            static TABLE: $crate::native::abi::Policy = $crate::native::abi::Policy {
                size: size_of::<$crate::native::abi::Policy>(),
                abi: $crate::native::abi::ABI_VERSION,
                reserved: 0,
                make_plan: Some($crate::native::make_plan::<$policy>),
                revise: Some($crate::native::revise::<$policy>),
            };
            // A linker drops what nothing refers to.
            std::hint::black_box(&METADATA_SECTION);
            &TABLE
        }
    };
}
