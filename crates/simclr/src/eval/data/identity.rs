//! What figures on a set are kept under: its fingerprint, and something else from the moment on that images have changed under
//! the same names and sizes. `evaluation/images/FINGERPRINT.safetensors` records what the figures of the folder are of.

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

/// Gives `set` the identity under which figures on these very images are kept in `run`. Images whose files may have changed are
/// read and compared; `observer` hears of changes.
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
    remember(run, set)
}

/// Another identity for each content, as far as it is known.
fn changed(fingerprint: &str, set: &Dataset) -> String {
    let observed = set.observed();
    let mut hash = blake3::Hasher::new();
    for (stamp, content) in observed.stamps.iter().zip(&observed.contents) {
        let value = if *content == 0 { stamp } else { content };
        hash.update(&value.to_le_bytes());
    }
    format!("{fingerprint}-{}", &hash.finalize().to_hex()[..32])
}

/// Records the contents of the images of `set` that have been read: from then on a file that was only touched or copied is the
/// same image.
pub(crate) fn remember(run: &RunFolder, set: &Dataset) -> Result<(), EvalError> {
    let record = ImageRecord::of(set);
    let file = file(run, &record.fingerprint);
    if ImageRecord::load(&file).is_ok_and(|known| known.as_ref() == Some(&record)) {
        return Ok(());
    }
    fs_err::create_dir_all(file.parent().unwrap_or(run.path()))?;
    Ok(record.save(&file, set.content_digest().as_deref())?)
}
