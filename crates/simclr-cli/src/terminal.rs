//! All output to stdout and stderr. Write errors (a closed pipe, a full disk, a closed terminal) must not end a run and are
//! ignored; the macros of `std` would panic.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use simclr::data::printable::{escaped, is_active};

/// Prints a line of a result to stdout.
pub fn result(text: &str) {
    write(std::io::stdout(), text);
}

/// Prints a line of progress or a message to stderr.
pub fn message(text: &str) {
    write(std::io::stderr(), text);
}

/// Prints an error with its hint to stderr.
pub fn error(kind: &str, text: &str, hint: Option<&str>) {
    let hint = hint.map(|hint| format!("\n\nhint: {hint}")).unwrap_or_default();
    message(&format!("{kind}: {text}{hint}"));
}

/// Prints help and version to stdout, usage errors to stderr; returns the exit code.
pub fn usage(error: &clap::Error) -> u8 {
    let _ = error.print();
    u8::try_from(error.exit_code()).unwrap_or(u8::MAX)
}

/// A progress bar if stderr is a terminal. `indicatif` ignores write errors.
pub fn bar() -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
        ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    })
}

/// A single write, so that lines of several processes do not mix. Control characters, which may come from names of files, are
/// escaped.
fn write(mut stream: impl Write, text: &str) {
    let text = escaped(text, |character| is_active(character) && !matches!(character, '\n' | '\t'));
    let _ = stream.write_all(format!("{text}\n").as_bytes()).and_then(|()| stream.flush());
}
