//! `simclr inspect`.

use std::process::ExitCode;

use simclr::data::{Dataset, dataset::Channels};

use crate::{args::Inspect, failure::Failure, terminal};

/// Describes the splits and decodes every image once.
pub fn run(arguments: &Inspect) -> Result<ExitCode, Failure> {
    let mut bad = 0;
    for split in Dataset::splits(&arguments.data) {
        let set = Dataset::open(&arguments.data, split, Channels::Auto)?;
        let labels = if set.labels().is_some() {
            format!("{} classes", set.classes().len())
        } else {
            "no labels".into()
        };
        let name = format!("{split:?}").to_lowercase();
        terminal::result(&format!(
            "{name}: {} images, {} channels, {labels}, fingerprint {}",
            set.len(),
            set.channels(),
            set.fingerprint()
        ));
        set.notes().iter().for_each(|note| terminal::result(&format!("note: {note}")));
        for index in 0..set.len() {
            if let Err(error) = set.decode(index) {
                bad += 1;
                terminal::result(&error.to_string());
            }
        }
    }
    if bad == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let hint = "training skips them: 5, up to a tenth of the set, or the share data.max_bad_share where that is more";
    Err(Failure::user(format!("{bad} images cannot be decoded"), Some(hint.into())))
}
