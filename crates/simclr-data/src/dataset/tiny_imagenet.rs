//! Tiny ImageNet: the classes of `val/images/val_0.JPEG` are in the table `val/val_annotations.txt` (file, class and box,
//! separated by tabs), `test/images/test_0.JPEG` has no label, and the training split has class folders.

use std::{collections::HashMap, path::Path};

const FILE: &str = "val_annotations.txt";
/// The folder of the images of a split.
const IMAGES: &str = "images/";

/// By the name of a file.
pub fn is_table(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == FILE)
}

/// The images `names` under the paths of a set with class folders, `val/CLASS/val_0.JPEG` and `test/test_0.JPEG`, if
/// `annotations` has a table; and notes.
pub fn as_class_folders(
    root: &Path,
    names: &[String],
    annotations: &[String],
) -> (Option<Vec<String>>, Vec<String>) {
    let mut paths: Option<Vec<String>> = None;
    let mut notes = Vec::new();
    for table in annotations {
        let part = table.strip_suffix(FILE).unwrap_or(table);
        let images = format!("{part}{IMAGES}");
        if !names.iter().any(|name| name.starts_with(&images)) {
            continue;
        }
        let text = fs_err::read_to_string(root.join(table)).map_err(|error| error.to_string());
        let classes = match text.as_ref().map_err(Clone::clone).and_then(|text| classes_of(text)) {
            Ok(classes) => {
                notes.push(format!("labels of the images in `{images}` are those of `{table}`"));
                classes
            }
            Err(reason) => {
                notes.push(format!("`{table}` cannot be used, so that its images have no labels: {reason}"));
                HashMap::new()
            }
        };
        for (path, name) in paths.get_or_insert_with(|| names.to_vec()).iter_mut().zip(names) {
            if let Some(renamed) = in_part(name, part, &classes).or_else(|| in_another(name, part)) {
                *path = renamed;
            }
        }
    }
    (paths, notes)
}

/// Class by file name.
fn classes_of(text: &str) -> Result<HashMap<&str, &str>, String> {
    let mut classes = HashMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut fields = line.split('\t').map(str::trim);
        let file = fields.next().unwrap_or_default();
        let class = fields.next().unwrap_or_default();
        if class.is_empty() || class.contains('/') {
            return Err(format!("line {}: expected a file and its class, separated by a tab", at + 1));
        }
        if classes.insert(file, class).is_some_and(|earlier| earlier != class) {
            return Err(format!("line {}: `{file}` has two classes", at + 1));
        }
    }
    Ok(classes)
}

/// The path of an image in the part with the table.
fn in_part(name: &str, part: &str, classes: &HashMap<&str, &str>) -> Option<String> {
    let file = name.strip_prefix(part)?.strip_prefix(IMAGES)?;
    Some(match classes.get(file) {
        Some(class) => format!("{part}{class}/{file}"),
        None => format!("{part}{file}"),
    })
}

/// The path of an image directly in the folder `images` of another part.
fn in_another(name: &str, part: &str) -> Option<String> {
    let parts = part.strip_suffix('/')?;
    let around = parts.rfind('/').map_or("", |at| &parts[..=at]);
    let (other, rest) = name.strip_prefix(around)?.split_once('/')?;
    let file = rest.strip_prefix(IMAGES).filter(|file| !file.contains('/'))?;
    Some(format!("{around}{other}/{file}"))
}
