//! Names of Hugging Face's transformers (`ResNetModel`, `ViTModel`) to those of torchvision and timm.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::checkpoint::ForeignTensors;

/// `stored` under the names of torchvision or timm, if it has names of transformers.
pub(super) fn renamed(stored: ForeignTensors) -> ForeignTensors {
    let is_known = |name: &str| {
        name.ends_with("embedder.embedder.convolution.weight")
            || name.ends_with("embeddings.patch_embeddings.projection.weight")
    };
    if !stored.names().any(is_known) {
        return stored;
    }
    let mut tensors = BTreeMap::new();
    for name in stored.names() {
        let new = resnet(name).or_else(|| transformer(name)).unwrap_or_else(|| name.to_owned());
        tensors.extend(stored.get(name).map(|tensor| (new, tensor.shallow_clone())));
    }
    join_attention(&mut tensors);
    ForeignTensors::of(stored.path(), tensors)
}

/// `...encoder.stages.0.layers.1.layer.2.convolution.weight` is `layer1.1.conv3.weight`.
fn resnet(name: &str) -> Option<String> {
    if let Some((_, rest)) = name.split_once("embedder.embedder.") {
        return Some(match rest.strip_prefix("convolution.") {
            Some(part) => format!("conv1.{part}"),
            None => format!("bn1.{}", rest.strip_prefix("normalization.")?),
        });
    }
    let (_, rest) = name.split_once("encoder.stages.")?;
    let (stage, rest) = rest.split_once(".layers.")?;
    let (block, rest) = rest.split_once('.')?;
    let stage: usize = stage.parse().ok()?;
    let place = format!("layer{}.{block}", stage + 1);
    if let Some(rest) = rest.strip_prefix("shortcut.") {
        return Some(match rest.strip_prefix("convolution.") {
            Some(part) => format!("{place}.downsample.0.{part}"),
            None => format!("{place}.downsample.1.{}", rest.strip_prefix("normalization.")?),
        });
    }
    let (layer, rest) = rest.strip_prefix("layer.")?.split_once('.')?;
    let layer = layer.parse::<usize>().ok()? + 1;
    Some(match rest.strip_prefix("convolution.") {
        Some(part) => format!("{place}.conv{layer}.{part}"),
        None => format!("{place}.bn{layer}.{}", rest.strip_prefix("normalization.")?),
    })
}

/// Parts of a block, with `query`, `key` and `value` apart.
const PARTS: [(&str, &str); 8] = [
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.attention.query.", "attn.query."),
    ("attention.attention.key.", "attn.key."),
    ("attention.attention.value.", "attn.value."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
];

/// `...encoder.layer.3.intermediate.dense.weight` is `blocks.3.mlp.fc1.weight`.
fn transformer(name: &str) -> Option<String> {
    if let Some((_, rest)) = name.split_once("embeddings.") {
        return Some(match rest {
            "cls_token" => rest.to_owned(),
            "position_embeddings" => "pos_embed".to_owned(),
            _ => format!("patch_embed.proj.{}", rest.strip_prefix("patch_embeddings.projection.")?),
        });
    }
    if let Some((_, rest)) = name.split_once("encoder.layer.") {
        let (block, rest) = rest.split_once('.')?;
        let part =
            |(from, to): &(&str, &str)| Some(format!("blocks.{block}.{to}{}", rest.strip_prefix(from)?));
        return PARTS.iter().find_map(part);
    }
    let part = name.strip_prefix("vit.").unwrap_or(name).strip_prefix("layernorm.")?;
    Some(format!("norm.{part}"))
}

/// Replaces `query`, `key` and `value` by `qkv`.
fn join_attention(tensors: &mut BTreeMap<String, Tensor>) {
    let queries: Vec<String> = tensors.keys().filter(|name| name.contains(".attn.query.")).cloned().collect();
    for query in queries {
        let names = ["query", "key", "value"].map(|part| query.replace(".query.", &format!(".{part}.")));
        let parts: Option<Vec<Tensor>> = names.iter().map(|name| tensors.remove(name)).collect();
        let joined = parts.filter(|parts| parts.iter().all(|part| part.size() == parts[0].size()));
        tensors.extend(joined.map(|parts| (query.replace(".query.", ".qkv."), Tensor::cat(&parts, 0))));
    }
}
