//! Names of files and classes in messages: they come from outside and must neither control a terminal nor forge lines.

use std::borrow::Cow;

/// Whether a terminal acts on `character` instead of showing it: control characters, and marks that reorder text (Unicode
/// bidirectional embeddings, overrides and isolates; "Trojan Source", CVE-2021-42574).
pub fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` on one line, with active characters as `\u{..}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_active)
}

/// `text` with the characters that `is_escaped` selects as `\u{..}`.
pub fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character) { safe.extend(character.escape_unicode()) } else { safe.push(character) }
    }
    safe.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_characters_are_escaped() {
        assert!(matches!(printable("caf\u{e9} 7/\u{65e5}.png"), Cow::Borrowed(_)));
        assert_eq!(printable("a\u{1b}[31mb\nerror: c\td"), "a\\u{1b}[31mb\\u{a}error: c\\u{9}d");
        assert_eq!(printable("x\u{202e}gnp.exe"), "x\\u{202e}gnp.exe");
        assert_eq!(escaped("a\nb\u{7}", |c| is_active(c) && c != '\n'), "a\nb\\u{7}");
    }
}
