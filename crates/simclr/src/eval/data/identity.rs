//! Identity that the figures on a set are cached under: its fingerprint, or a digest of its contents once images have changed
//! under the same names and sizes. `evaluation/images/FINGERPRINT.safetensors` records the images of the cached figures.

use std::path::PathBuf;

use simclr_data::Dataset;

use crate::{
    EvalError,
    train::{
        Observer, RunFolder,
        images::{ImageRecord, named},
    },
};

fn file(run: &RunFolder, fingerprint: &str) -> PathBuf {
    run.path().join(format!("evaluation/images/{fingerprint}.safetensors"))
}

/// Sets the identity of `set` that figures on exactly these images are cached under in `run`. Images in files that may have
/// changed are read and compared; changes are reported to `observer`.
pub(crate) fn identify(
    run: &RunFolder,
    set: &mut Dataset,
    observer: &mut dyn Observer,
) -> Result<(), EvalError> {
    let fingerprint = set.fingerprint();
    let identity = match ImageRecord::load(&file(run, &fingerprint)) {
        Ok(None) => fingerprint,
        Ok(Some(earlier)) => {
            let changes = set.changes_since(&earlier.observed);
            if changes.is_none() {
                earlier.identity
            } else {
                let all = [changes.changed, changes.unknown].concat();
                observer.message(&format!("{} have changed since the last evaluation", named(set, &all)));
                changed(&fingerprint, set)
            }
        }
        Err(error) => {
            observer.message(&format!("figures of earlier evaluations are not used: {error}"));
            changed(&fingerprint, set)
        }
    };
    set.set_identity(identity);
    record(run, set)
}

/// A different identity for each content, or for each file stamp where the content is unknown.
fn changed(fingerprint: &str, set: &Dataset) -> String {
    let observed = set.observed();
    let mut hash = blake3::Hasher::new();
    for (stamp, content) in observed.stamps.iter().zip(&observed.contents) {
        let value = if *content == 0 { stamp } else { content };
        hash.update(&value.to_le_bytes());
    }
    format!("{fingerprint}-{}", &hash.finalize().to_hex()[..32])
}

/// Records the contents of the images of `set` read so far: from then on a file that was only touched or copied counts as the
/// same image.
pub(crate) fn record(run: &RunFolder, set: &Dataset) -> Result<(), EvalError> {
    let current = ImageRecord::of(set);
    let file = file(run, &current.fingerprint);
    if ImageRecord::load(&file).is_ok_and(|known| known.as_ref() == Some(&current)) {
        return Ok(());
    }
    fs_err::create_dir_all(file.parent().unwrap_or(run.path()))?;
    Ok(current.save(&file, set.content_digest().as_deref())?)
}
