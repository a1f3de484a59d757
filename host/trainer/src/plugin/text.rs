//! Text from plugins and their authors, made fit for a terminal.

use std::fmt::Write;

/// `text` without anything that a terminal could take for a command: control characters, line breaks and characters that
/// turn the direction of writing are written as `\u{…}`. At most `limit` characters are shown, then `…`.
pub fn escaped(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * limit));
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            shown.push('…');
            break;
        }
        match c {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            c if is_unsafe(c) => {
                // Writing to a string can't fail.
                let _ = write!(shown, "\\u{{{:x}}}", c as u32);
            }
            c => shown.push(c),
        }
    }
    shown
}

/// Control characters, and the ones that are invisible or reorder what stands around them.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(escaped("\u{1b}[31mred\u{1b}[0m\r\nnext", 100), "\\u{1b}[31mred\\u{1b}[0m\\u{d}\\nnext");
        assert_eq!(escaped("abc\u{202e}fed", 100), "abc\\u{202e}fed");
        assert_eq!(escaped("größer: 数", 100), "größer: 数");
        assert_eq!(escaped("abcdef", 3), "abc…");
        assert_eq!(escaped("abc", 3), "abc");
    }
}
