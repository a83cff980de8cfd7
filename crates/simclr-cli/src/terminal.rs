//! The only place that writes to stdout and stderr. A stream that cannot be written (a closed pipe, a full disk, a terminal
//! that is gone) is no reason to end a run, so every failure to write is ignored; the macros of `std` panic on one.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// A line of a result, to stdout.
pub fn result(text: &str) {
    write(std::io::stdout(), text);
}

/// A line of progress or a message, to stderr.
pub fn message(text: &str) {
    write(std::io::stderr(), text);
}

/// An error with its way out, to stderr.
pub fn error(kind: &str, text: &str, hint: Option<&str>) {
    let hint = hint.map(|hint| format!("\n\nhint: {hint}")).unwrap_or_default();
    message(&format!("{kind}: {text}{hint}"));
}

/// Help and version to stdout, wrong usage to stderr; the exit code that belongs to it.
pub fn usage(error: &clap::Error) -> u8 {
    let _ = error.print();
    u8::try_from(error.exit_code()).unwrap_or(u8::MAX)
}

/// A progress bar on stderr, where that is a terminal. `indicatif` ignores what it cannot draw.
pub fn bar() -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
        ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    })
}

/// In one call, so that lines of several processes do not mix.
fn write(mut stream: impl Write, text: &str) {
    let _ = stream.write_all(format!("{text}\n").as_bytes()).and_then(|()| stream.flush());
}
