//! The encoder that a file's tensors belong to, by their names and shapes: ResNets of torchvision and timm, vision transformers of timm.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use crate::checkpoint::ForeignTensors;

/// Channel means that torchvision's and timm's ImageNet weights expect, of values in `[0, 1]`.
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Channel standard deviations; see [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// A key of the configuration, and its value.
pub(super) type Key = (&'static str, Value);

/// Names that only encoders have.
const ANCHORS: [&str; 9] = [
    "conv1.weight",
    "conv1.0.weight",
    "bn1.weight",
    "layer1.0.conv1.weight",
    "layer2.0.conv1.weight",
    "layer4.0.conv1.weight",
    "cls_token",
    "patch_embed.proj.weight",
    "blocks.0.norm1.weight",
];

/// Prefixes that are preferred if several networks of the file fit equally well: MoCo's trained encoder, DINO's teacher.
const PREFERRED: [&str; 2] = ["encoder_q.", "teacher."];

/// The prefix of most of the `wanted` names in `stored`, such as `module.encoder_q.`.
pub fn prefix<'a>(stored: &'a ForeignTensors, wanted: &HashSet<&str>) -> &'a str {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in stored.names() {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts.filter(|start| wanted.contains(&name[*start..])) {
            *counts.entry(&name[..start]).or_default() += 1;
        }
    }
    let preferred = |prefix: &str| PREFERRED.iter().any(|known| prefix.contains(known));
    let best = counts
        .into_iter()
        .max_by_key(|(prefix, count)| (*count, preferred(prefix), std::cmp::Reverse(prefix.len())));
    best.map_or("", |(prefix, _)| prefix)
}

/// Keys that names and shapes determine; none for an unknown architecture.
pub(super) fn keys(stored: &ForeignTensors) -> Vec<Key> {
    let prefix = prefix(stored, &ANCHORS.into_iter().collect());
    let shape = |name: &str| stored.shape(&format!("{prefix}{name}"));
    resnet(&shape).or_else(|| transformer(&shape)).unwrap_or_default()
}

/// Blocks per group, and whether they are bottlenecks.
const RESNETS: [([usize; 4], bool, &str); 6] = [
    ([2, 2, 2, 2], false, "resnet18"),
    ([3, 4, 6, 3], false, "resnet34"),
    ([3, 4, 6, 3], true, "resnet50"),
    ([3, 4, 23, 3], true, "resnet101"),
    ([3, 8, 36, 3], true, "resnet152"),
    ([3, 24, 36, 3], true, "resnet200"),
];

fn resnet(shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Option<Vec<Key>> {
    const MOST_BLOCKS: usize = 64;
    let blocks = |group: usize| {
        let has = |block: &usize| shape(&format!("layer{group}.{block}.conv1.weight")).is_some();
        (0..MOST_BLOCKS).take_while(has).count()
    };
    let groups = [1, 2, 3, 4].map(blocks);
    let bottleneck = shape("layer1.0.conv3.weight").is_some();
    let known = RESNETS.iter().find(|(found, deep, _)| *found == groups && *deep == bottleneck)?;
    let deep_stem = shape("conv1.0.weight").is_some();
    let first = shape(if deep_stem { "conv1.0.weight" } else { "conv1.weight" })?;
    let base = shape("bn1.weight").filter(|shape| shape.len() == 1)?[0];
    let mut keys = vec![("encoder.name", json!(known.2)), ("encoder.width", json!(base as f64 / 64.0))];
    let small = !deep_stem && first.get(2) == Some(&3);
    keys.push(("encoder.stem", json!(if small { "cifar" } else { "imagenet" })));
    if deep_stem {
        keys.push(("encoder.resnet_d", json!("timm")));
    }
    Some(keys)
}

/// Width of a head of attention in all of timm's vision transformers.
const TRANSFORMERS: [(i64, &str); 3] = [(192, "vit-tiny"), (384, "vit-small"), (768, "vit-base")];

fn transformer(shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Option<Vec<Key>> {
    let [1, 1, width] = shape("cls_token")?[..] else { return None };
    let [_, _, patch, _] = shape("patch_embed.proj.weight")?[..] else { return None };
    let [1, tokens, _] = shape("pos_embed")?[..] else { return None };
    let (_, name) = TRANSFORMERS.iter().find(|(known, _)| *known == width)?;
    let side = (tokens - 1).isqrt();
    Some(vec![
        ("encoder.name", json!(name)),
        ("encoder.width", json!(1.0)),
        ("encoder.patch", json!(patch)),
        ("train.image_size", json!(side * patch)),
    ])
}
