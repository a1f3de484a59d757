//! Finds the custom sections of a WebAssembly file by their name, without running or compiling anything.
//!
//! A component holds core modules and other components as sections of its own; they are searched too, since a compiler
//! puts an author's section into the core module. Binary format: WebAssembly Core Specification §5.5, component model
//! `Binary.md`.

use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"\0asm";
const CORE: [u8; 4] = [1, 0, 0, 0];
/// The version of components is in two bytes, and the layer that tells them from modules in two more.
const COMPONENT_LAYER: [u8; 2] = [1, 0];
const CUSTOM: u8 = 0;
const CORE_MODULE: u8 = 1;
const NESTED_COMPONENT: u8 = 4;
/// Components in components, at most.
const MAX_DEPTH: usize = 8;

/// Whether the bytes begin as WebAssembly does.
pub(super) fn is_wasm(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The contents of all custom sections called `name`, in the order of the file.
///
/// # Errors
/// The file is cut short or damaged, is a core module, or nests too deep.
pub(super) fn find<'a>(bytes: &'a [u8], name: &str) -> Result<Vec<&'a [u8]>> {
    if bytes.get(4..8) == Some(&CORE) {
        return Err(Error::plan("it is a WebAssembly module, and a plugin is a WebAssembly component")
            .help("link it with wasm-component-ld, or build it with `liftplan plugin build`"));
    }
    let mut found = Vec::new();
    walk(bytes, name, 0, &mut found)?;
    Ok(found)
}

fn walk<'a>(bytes: &'a [u8], name: &str, depth: usize, found: &mut Vec<&'a [u8]>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::plan(format!("its components are nested more than {MAX_DEPTH} deep")));
    }
    let header = bytes.get(..8).ok_or_else(cut_short)?;
    let is_component = header[6..] == COMPONENT_LAYER;
    if !header.starts_with(MAGIC) || !(is_component || header[4..] == CORE) {
        return Err(Error::plan("a part of it is neither a WebAssembly component nor a module"));
    }
    let mut reader = Reader(&bytes[8..]);
    while let Some((id, content)) = reader.section()? {
        match id {
            CUSTOM => {
                let mut section = Reader(content);
                let length = section.number()?;
                if section.take(length)? == name.as_bytes() {
                    found.push(section.0);
                }
            }
            CORE_MODULE | NESTED_COMPONENT if is_component => walk(content, name, depth + 1, found)?,
            _ => {}
        }
    }
    Ok(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next section: its id and content. `None` at the end.
    fn section(&mut self) -> Result<Option<(u8, &'a [u8])>> {
        let Some((&id, rest)) = self.0.split_first() else { return Ok(None) };
        self.0 = rest;
        let length = self.number()?;
        Ok(Some((id, self.take(length)?)))
    }

    /// An unsigned LEB128 number of at most 32 bits.
    fn number(&mut self) -> Result<usize> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or_else(cut_short)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map(|value| value as usize).map_err(|_| damaged());
            }
        }
        Err(damaged())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(cut_short)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// The component with one more custom section at its end, where sections may stand in any number.
pub(super) fn append(mut component: Vec<u8>, name: &str, content: &[u8]) -> Vec<u8> {
    let mut named = Vec::new();
    write_number(name.len(), &mut named);
    named.extend(name.as_bytes());
    named.extend(content);
    component.push(CUSTOM);
    write_number(named.len(), &mut component);
    component.extend(named);
    component
}

/// An unsigned LEB128 number.
fn write_number(mut number: usize, to: &mut Vec<u8>) {
    loop {
        let more = number >> 7 != 0;
        to.push((number & 0x7f) as u8 | u8::from(more) << 7);
        number >>= 7;
        if !more {
            return;
        }
    }
}

fn cut_short() -> Error {
    Error::plan("it ends in the middle: it is cut short or damaged").help("fetch or build it again")
}

fn damaged() -> Error {
    Error::plan("its sections make no sense: it is damaged").help("fetch or build it again")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// A section.
    pub(crate) fn section(id: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![id];
        write_number(content.len(), &mut bytes);
        bytes.extend(content);
        bytes
    }

    /// A custom section.
    pub(crate) fn custom(name: &str, content: &[u8]) -> Vec<u8> {
        append(Vec::new(), name, content)
    }

    /// A component of these sections.
    pub(crate) fn component(sections: &[Vec<u8>]) -> Vec<u8> {
        [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
    }

    fn module(sections: &[Vec<u8>]) -> Vec<u8> {
        [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
    }

    #[test]
    fn sections_are_found_at_the_top_in_modules_and_in_components() {
        let inner = module(&[section(1, b"types"), custom("liftplan:plugin", &[7; 300])]);
        let file = component(&[
            custom("name", b"x"),
            section(CORE_MODULE, &inner),
            section(NESTED_COMPONENT, &component(&[custom("liftplan:plugin", b"b")])),
            custom("liftplan:plugin", b"c"),
        ]);
        let found = find(&file, "liftplan:plugin").unwrap();
        assert_eq!(found, [&[7; 300][..], b"b", b"c"]);
        assert_eq!(find(&file, "other").unwrap(), [&[0u8; 0]; 0]);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let inner = module(&[custom("liftplan:plugin", b"a")]);
        let file = component(&[section(CORE_MODULE, &inner), custom("liftplan:plugin", b"content")]);
        for length in 0..file.len() {
            // Cutting between two sections leaves a whole file with fewer of them.
            match find(&file[..length], "liftplan:plugin") {
                Ok(found) => assert!(found.len() < 2, "{length}"),
                Err(error) => assert!(error.message().contains("ends in the middle"), "{length}: {error}"),
            }
        }
        assert!(find(&module(&[]), "x").unwrap_err().message().contains("a WebAssembly module"));
        let endless = [b"\0asm\x0d\0\x01\0".to_vec(), vec![0, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
        assert!(find(&endless, "x").unwrap_err().message().contains("make no sense"));
        let mut deep = component(&[]);
        for _ in 0..12 {
            deep = component(&[section(NESTED_COMPONENT, &deep)]);
        }
        assert!(find(&deep, "x").unwrap_err().message().contains("nested more than 8 deep"));
    }
}
