//! The recipes of `configs/`, embedded: a configuration path `recipe:NAME` denotes one of them.

use std::path::{Path, PathBuf};

use crate::ConfigError;

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../configs/", $name, ".toml")))),*]
    };
}

/// Name of the file without extension, and its text.
pub const RECIPES: &[(&str, &str)] = recipes![
    "cifar10_conv_c3",
    "cifar10_conv_c3_crop_only",
    "cifar10_fast",
    "cifar10_resnet18",
    "cifar10_resnet18_moco",
    "cifar10_resnet18_sgd",
    "fashion_mnist",
    "imagenet_resnet50_broader",
    "imagenet_resnet50_moco_v1",
    "imagenet_resnet50_moco_v2",
    "imagenet_resnet50_paper_v1",
    "imagenet_resnet50_v2",
    "imagenet_resnet50_v2_memory",
    "imagenet_vit_small",
    "imagenet_vit_small_moco_v3",
    "pathology",
    "photos_cpu",
    "photos_gpu",
    "satellite",
    "small_images_fast",
];

/// Start of a path that denotes a recipe.
const PREFIX: &str = "recipe:";

/// Path of the recipe `name`; `-` and `_` are the same.
///
/// # Errors
/// [`ConfigError::Value`] for an unknown name.
pub fn path(name: &str) -> Result<PathBuf, ConfigError> {
    let name = name.replace('-', "_");
    if RECIPES.iter().any(|(known, _)| *known == name) {
        return Ok(PathBuf::from(format!("{PREFIX}{name}")));
    }
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    Err(ConfigError::Value { key: "--recipe".into(), value: name, expected: names.join(", ") })
}

/// The text at `path`: of a recipe, or of a file.
pub(super) fn read(path: &Path) -> std::io::Result<String> {
    let name = path.to_str().and_then(|path| path.strip_prefix(PREFIX));
    match name.and_then(|name| RECIPES.iter().find(|(known, _)| *known == name)) {
        Some((_, text)) => Ok((*text).to_owned()),
        None => fs_err::read_to_string(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunConfig;

    #[test]
    fn every_file_of_configs_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let mut files: Vec<String> = fs_err::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(RECIPES.iter().map(|(name, _)| *name).collect::<Vec<_>>(), files);
        for name in files {
            let file = folder.join(format!("{name}.toml"));
            let embedded =
                RunConfig::load_written(Some(&path(&name.replace('_', "-")).unwrap()), &[]).unwrap();
            assert_eq!(embedded, RunConfig::load_written(Some(&file), &[]).unwrap(), "{name}");
        }
    }

    #[test]
    fn unknown_recipes_are_refused_with_the_names() {
        let error = path("imagenet").unwrap_err().to_string();
        assert!(error.starts_with("--recipe = imagenet") && error.contains("fashion_mnist"), "{error}");
    }
}
