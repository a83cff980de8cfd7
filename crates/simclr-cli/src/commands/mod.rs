//! One file per command: arguments to library calls to output.

pub mod compare;
pub mod doctor;
pub mod embed;
pub mod evaluate;
pub mod export;
pub mod inspect;
pub mod pack;
pub mod pretrain;
pub mod views;

/// Prints a result. A closed pipe (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
