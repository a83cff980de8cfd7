//! `simclr completions` and `simclr man`.

use std::process::ExitCode;

use clap::CommandFactory;
use simclr::data::output;

use crate::{
    args::{Arguments, Completions, Man},
    failure::Failure,
    terminal,
};

/// A page of [`man`], and the only kind of file it replaces.
const PAGE: output::Kind = output::Kind { name: "a manual page of simclr", is_earlier: is_page };

fn is_page(path: &std::path::Path) -> bool {
    fs_err::read_to_string(path).is_ok_and(|text| text.contains(".TH simclr"))
}

/// Prints the completions of a shell.
pub fn completions(arguments: &Completions) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "simclr", &mut text);
    terminal::result(String::from_utf8_lossy(&text).trim_end());
    ExitCode::SUCCESS
}

/// Writes `simclr.1` and a page for each command, such as `simclr-pretrain.1`.
pub fn man(arguments: &Man) -> Result<ExitCode, Failure> {
    fs_err::create_dir_all(&arguments.folder)?;
    let command = Arguments::command();
    let subcommands: Vec<clap::Command> = command
        .get_subcommands()
        .map(|sub| {
            let name = format!("simclr-{}", sub.get_name());
            // clap takes names of the lifetime of the program.
            let name: &'static str = Box::leak(name.into_boxed_str());
            sub.clone().name(name).bin_name(name).display_name(name)
        })
        .collect();
    for page in std::iter::once(command).chain(subcommands) {
        let mut text = Vec::new();
        let name = page.get_name().to_owned();
        clap_mangen::Man::new(page).render(&mut text)?;
        let file = arguments.folder.join(format!("{name}.1"));
        output::check(&file, PAGE, None)?;
        fs_err::write(file, text)?;
    }
    terminal::result(&arguments.folder.display().to_string());
    Ok(ExitCode::SUCCESS)
}
