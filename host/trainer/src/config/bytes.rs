//! Amounts of memory as people write them: `24GiB`, `512 MiB`, `16GB`.

use crate::{Error, Result};

/// The number of bytes that `text` names: a number above 0 and a unit, binary (KiB, MiB, GiB, TiB) or decimal (kB, MB,
/// GB, TB).
///
/// # Errors
/// It is anything else.
pub fn parse(text: &str) -> Result<u64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim());
    let factor: f64 = match unit.to_ascii_lowercase().as_str() {
        "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(unreadable(text)),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor >= 1.0 && number * factor < 2f64.powi(60) => {
            Ok((number * factor).round() as u64)
        }
        _ => Err(unreadable(text)),
    }
}

fn unreadable(text: &str) -> Error {
    Error::config(format!("\"{text}\" is not an amount of memory")).help("write a number and a unit, as in 24GiB")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::parse;

    #[test]
    fn amounts_are_read() {
        for (text, bytes) in
            [("24GiB", 24u64 << 30), ("1.5 GiB", 3 << 29), ("80GB", 80_000_000_000), ("512mib", 512 << 20), ("7 B", 7)]
        {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "24", "GiB", "-1GiB", "0GiB", "nanGiB", "infGiB", "24 gigs", "1e30TiB", "ÄGiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
