//! The element types of a written GGUF file, and how f32 becomes them.

use half::f16;

use crate::Result;
use crate::export::hf::to_f16;

/// Elements of a Q8_0 block.
const BLOCK: usize = 32;

/// A tensor's element type in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GgmlType {
    F32,
    F16,
    /// Blocks of 32: an f16 scale and 32 signed bytes.
    Q8_0,
}

impl GgmlType {
    /// Its number in the format.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
        }
    }

    /// `general.file_type` of a model whose matrices have this type.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
        }
    }

    /// As llama.cpp has it in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// The bytes of so many elements.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => elements * 4,
            Self::F16 => elements * 2,
            Self::Q8_0 => elements / BLOCK * (2 + BLOCK),
        }
    }
}

/// The type of a tensor in a file whose matrices are `matrices`: vectors are F32, and rows that don't divide into blocks
/// are F16.
pub(super) fn type_of(shape: &[usize], matrices: GgmlType) -> GgmlType {
    match shape {
        [_] => GgmlType::F32,
        [.., width] if matrices == GgmlType::Q8_0 && !width.is_multiple_of(BLOCK) => GgmlType::F16,
        _ => matrices,
    }
}

/// The little-endian bytes of `values` in the given type.
///
/// # Errors
/// When a value is beyond the range of F16.
pub(super) fn encode(name: &str, values: &[f32], kind: GgmlType) -> Result<Vec<u8>> {
    Ok(match kind {
        GgmlType::F32 => bytemuck::cast_slice(values).to_vec(),
        GgmlType::F16 => bytemuck::cast_slice(&to_f16(name, values)?).to_vec(),
        GgmlType::Q8_0 => {
            let mut out = Vec::with_capacity(kind.bytes(values.len()));
            for block in values.chunks_exact(BLOCK) {
                let largest = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                let scale = largest / 127.0;
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                // Scales beyond f16 would need weights above eight million; they are refused like any other.
                let halves = to_f16(name, &[scale])?;
                out.extend(halves.first().copied().unwrap_or(f16::ZERO).to_le_bytes());
                out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
            }
            out
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_keeps_the_largest_value_of_a_block_and_the_rest_within_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin() * if i < 32 { 3.0 } else { 0.01 }).collect();
        let bytes = encode("w", &values, GgmlType::Q8_0).unwrap();
        assert_eq!(bytes.len(), GgmlType::Q8_0.bytes(64));
        for (block, expected) in bytes.chunks(34).zip(values.chunks(32)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (q, v) in block[2..].iter().zip(expected) {
                let back = f32::from(*q as i8) * scale;
                assert!((back - v).abs() <= 0.5 * scale + 127.0 * scale * 0.0005, "{v} became {back}");
            }
        }
        assert_eq!(encode("w", &[0.0; 32], GgmlType::Q8_0).unwrap(), [0; 34]);
    }

    #[test]
    fn a_value_beyond_f16_is_an_error_that_names_the_tensor() {
        let error = encode("blk.0.attn_q.weight", &[1.0, 1e6], GgmlType::F16).unwrap_err();
        assert!(error.message().contains("blk.0.attn_q.weight holds 1000000"), "{error}");
    }

    #[test]
    fn vectors_stay_f32_and_odd_rows_f16() {
        assert_eq!(type_of(&[64], GgmlType::Q8_0), GgmlType::F32);
        assert_eq!(type_of(&[64, 48], GgmlType::Q8_0), GgmlType::F16);
        assert_eq!(type_of(&[48, 64], GgmlType::Q8_0), GgmlType::Q8_0);
    }
}
