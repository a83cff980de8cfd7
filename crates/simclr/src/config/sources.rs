//! Settings of published sources, for the line `differs from ...` at the start of a run and for the test of each recipe in
//! `configs/` against its source.

use serde_json::{Value, json};
use toml::Table;

use super::RunConfig;
use crate::{
    encoder::{EncoderName, Padding, Shortcut, Stem},
    task::MethodKind,
};

/// A paper or repository with a table of its settings in `sources/*.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// ImageNet, ResNet-50 (arXiv 2002.05709).
    SimclrV1,
    /// ImageNet, ResNet-50 without memory queue (arXiv 2006.10029).
    SimclrV2,
    /// CIFAR-10, ResNet-18 (README of google-research/simclr).
    SimclrCifar10,
    /// CIFAR-10, ResNet-18, 100 epochs of SGD (dkobak/simclr-cifar10).
    DkobakCifar10,
    /// ImageNet, ResNet-50 (arXiv 1911.05722; facebookresearch/moco).
    MocoV1,
    /// ImageNet, ResNet-50 (arXiv 2003.04297; facebookresearch/moco).
    MocoV2,
    /// CIFAR-10, ResNet-18 (notebook of facebookresearch/moco).
    MocoCifar10,
    /// ImageNet, ViT-S (arXiv 2104.02057; facebookresearch/moco-v3).
    MocoV3,
}

/// A key with another value than in the source.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Such as `optim.lr`.
    pub key: String,
    /// In the configuration.
    pub ours: Value,
    /// In the source.
    pub theirs: Value,
}

/// Keys for the scale of a run, which are not differences of the method.
const SCALE_KEYS: [&str; 3] = ["train.epochs", "train.batch", "train.image_size"];

impl Source {
    /// In the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::SimclrV1,
        Self::SimclrV2,
        Self::SimclrCifar10,
        Self::DkobakCifar10,
        Self::MocoV1,
        Self::MocoV2,
        Self::MocoCifar10,
        Self::MocoV3,
    ];

    /// File name of the table without extension, as in the `Table` line of recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::SimclrV1 => "simclr-v1",
            Self::SimclrV2 => "simclr-v2",
            Self::SimclrCifar10 => "simclr-cifar10",
            Self::DkobakCifar10 => "dkobak-cifar10",
            Self::MocoV1 => "moco-v1",
            Self::MocoV2 => "moco-v2",
            Self::MocoCifar10 => "moco-cifar10",
            Self::MocoV3 => "moco-v3",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::SimclrV1 => "SimCLR v1",
            Self::SimclrV2 => "SimCLR v2",
            Self::SimclrCifar10 => "SimCLR's CIFAR-10 command",
            Self::DkobakCifar10 => "dkobak/simclr-cifar10",
            Self::MocoV1 => "MoCo v1",
            Self::MocoV2 => "MoCo v2",
            Self::MocoCifar10 => "MoCo's CIFAR-10 demo",
            Self::MocoV3 => "MoCo v3",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::SimclrV1 => include_str!("sources/simclr-v1.toml"),
            Self::SimclrV2 => include_str!("sources/simclr-v2.toml"),
            Self::SimclrCifar10 => include_str!("sources/simclr-cifar10.toml"),
            Self::DkobakCifar10 => include_str!("sources/dkobak-cifar10.toml"),
            Self::MocoV1 => include_str!("sources/moco-v1.toml"),
            Self::MocoV2 => include_str!("sources/moco-v2.toml"),
            Self::MocoCifar10 => include_str!("sources/moco-cifar10.toml"),
            Self::MocoV3 => include_str!("sources/moco-v3.toml"),
        }
    }

    /// Keys of the table with another value in `config`, in the order of the table.
    pub fn differences(self, config: &RunConfig) -> Vec<Difference> {
        let table: Table = self.text().parse().expect("embedded tables are valid TOML");
        // Through `RunConfig`, so that 0.08 as f32 equals 0.08.
        let typed: RunConfig = toml::from_str(self.text()).expect("embedded tables are valid configurations");
        let ours = json!(comparable(config));
        let theirs = json!(comparable(&typed));
        // A source without this table has the same policy for both views.
        let second = [("augment", "second_view")].into_iter();
        let second = second.filter(|(section, key)| table[*section].get(key).is_none());
        let listed = table.iter().flat_map(|(section, keys)| {
            let keys = keys.as_table().into_iter().flatten();
            keys.map(move |(key, _)| (section.as_str(), key.as_str()))
        });
        let differing =
            listed.chain(second).filter(|(section, key)| ours[*section][*key] != theirs[*section][*key]);
        differing
            .map(|(section, key)| Difference {
                key: format!("{section}.{key}"),
                ours: ours[section][key].clone(),
                theirs: theirs[section][key].clone(),
            })
            .collect()
    }
}

/// `config` with settings normalised that have no effect, so that two descriptions of one network are equal.
fn comparable(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    let size = config.train.image_size as i64;
    let encoder = &mut config.encoder;
    let imagenet = encoder.imagenet_stem(size);
    encoder.stem = if imagenet { Stem::Imagenet } else { Stem::Cifar };
    if !imagenet {
        encoder.padding = Padding::Symmetric; // only the pooling of the ImageNet stem is padded
    }
    encoder.resnet_d = encoder.effective_resnet_d();
    if !matches!(encoder.name, EncoderName::Resnet18 | EncoderName::Resnet34) {
        encoder.shortcut = Shortcut::Identity; // with bottlenecks, every first block changes the shape and projects
    }
    config.head.init = config.head.effective_init();
    config
}

impl RunConfig {
    /// Such as `differs from SimCLR v1 in: head.layers = 3 (2)`, for the closest official source and without the keys of scale; `None`
    /// for supervised runs.
    pub fn differs_from_official(&self) -> Option<String> {
        let official = match self.task.objective {
            MethodKind::Supervised | MethodKind::Distillation => return None,
            MethodKind::Moco => &[Source::MocoV1, Source::MocoV2, Source::MocoCifar10][..],
            MethodKind::MocoV3 => &[Source::MocoV3],
            MethodKind::Contrastive | MethodKind::SimclrMomentum => {
                &[Source::SimclrV1, Source::SimclrV2, Source::SimclrCifar10]
            }
        };
        let of_method = |source: Source| {
            let all = source.differences(self).into_iter();
            (source, all.filter(|found| !SCALE_KEYS.contains(&found.key.as_str())).collect::<Vec<_>>())
        };
        let (source, found) = official.iter().copied().map(of_method).min_by_key(|(_, found)| found.len())?;
        if found.is_empty() {
            return Some(format!("every setting is that of {}", source.title()));
        }
        let item =
            |found: &Difference| format!("{} = {} ({})", found.key, plain(&found.ours), plain(&found.theirs));
        let items: Vec<String> = found.iter().map(item).collect();
        Some(format!("differs from {} in: {}", source.title(), items.join(", ")))
    }
}

/// Without quotes, and with the digits of an `f32`, because most settings are `f32`.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(", ")),
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or(String::new(), |x| (x as f32).to_string())
        }
        Value::Object(table) => {
            let items = table.iter().map(|(key, value)| format!("{key} = {}", plain(value)));
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}
