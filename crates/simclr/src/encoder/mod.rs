//! Images `[B, C, S, S]` to features h `[B, F]`.

mod block;
pub mod layers;
mod resnet;
mod script;
mod selective_kernel;
mod small;
mod statistics;
mod vit;

use std::path::PathBuf;

use resnet::ResNet;
use script::ScriptEncoder;
use serde::{Deserialize, Serialize};
use small::SmallConv;
pub use statistics::{AllReduce, BatchNormScope, BatchStatistics, MOMENTUM, Mode, group_rows};
use tch::Tensor;
pub(crate) use vit::EPSILON as VIT_EPSILON;
use vit::Vit;

use crate::{ModelError, device::Precision, params::Params};

/// `[encoder]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// Architecture. Without a GPU, `pretrain` defaults to `resnet18`.
    pub name: EncoderName,
    /// A TorchScript module (`.pt`) used instead of `name`: `[B, C, S, S]` -> `[B, F]` or `[B, F, h, w]`.
    pub file: Option<PathBuf>,
    /// Width multiplier (ResNets of the paper: 1, 2, 4).
    pub width: f64,
    /// First layers of a ResNet.
    pub stem: Stem,
    /// Start the last batch norm of each residual branch of a ResNet or of `conv-c7` at gamma 0 (google-research/simclr `resnet.py`
    /// `init_zero`).
    pub zero_gamma: bool,
    /// Padding of the stem's max-pool.
    pub padding: Padding,
    /// Shortcut of the first block of a ResNet-18 or -34.
    pub shortcut: Shortcut,
    /// Selective kernels in a ResNet: width of the layer that weighs the two streams as a share of their channels, 0 = none. SimCLR v2
    /// has 0.0625.
    pub sk_ratio: f64,
    /// Stem and projection shortcuts of ResNet-D.
    pub resnet_d: ResnetD,
    /// Imports of TensorFlow checkpoints: the moving averages (`.../ExponentialMovingAverage`) instead of the weights.
    pub import_ema: bool,
    /// Initialisation of convolution kernels.
    pub init: Init,
    /// Side of a patch of a vision transformer in pixels; it divides `train.image_size`.
    pub patch: i64,
    /// Position embedding of a vision transformer.
    pub positions: Positions,
    /// Whether the patch projection of a vision transformer stays at its random initial values (MoCo v3, arXiv 2104.02057, section 4.2).
    pub freeze_patches: bool,
    /// Mean subtracted from each channel of the images in `[0, 1]`; empty = 0. torchvision's weights: 0.485, 0.456, 0.406.
    pub input_mean: Vec<f64>,
    /// Standard deviation that divides each channel afterwards; empty = 1. torchvision's weights: 0.229, 0.224, 0.225.
    pub input_std: Vec<f64>,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            name: EncoderName::Resnet50,
            file: None,
            width: 1.0,
            stem: Stem::Auto,
            zero_gamma: true,
            padding: Padding::Symmetric,
            shortcut: Shortcut::Identity,
            sk_ratio: 0.0,
            resnet_d: ResnetD::Auto,
            import_ema: false,
            init: Init::Official,
            patch: 16,
            positions: Positions::Learned,
            freeze_patches: false,
            input_mean: Vec::new(),
            input_std: Vec::new(),
        }
    }
}

/// `encoder.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderName {
    /// Basic blocks 2,2,2,2.
    Resnet18,
    /// Basic blocks 3,4,6,3.
    Resnet34,
    /// Bottlenecks 3,4,6,3.
    Resnet50,
    /// Bottlenecks 3,4,23,3.
    Resnet101,
    /// Bottlenecks 3,8,36,3.
    Resnet152,
    /// Bottlenecks 3,24,36,3 (google-research/simclr `resnet.py`).
    Resnet200,
    /// Width 192, 12 blocks, 3 heads.
    VitTiny,
    /// Width 384, 12 blocks, 6 heads (timm; MoCo v3 has 12 heads).
    VitSmall,
    /// Width 768, 12 blocks, 12 heads.
    VitBase,
    /// Three strided convolutions, 32-64-128.
    ConvC3,
    /// Four convolutions with pooling, 16-32-64-128.
    ConvC4,
    /// Those of `conv-c4` and a residual convolution behind each pooling.
    ConvC7,
}

/// `encoder.stem`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// `cifar` for sides up to 32 px, else `imagenet` (google-research/simclr `resnet.py`).
    #[default]
    Auto,
    /// conv 7x7/2 and max-pool 3x3/2.
    Imagenet,
    /// conv 3x3/1, no pooling.
    Cifar,
}

/// `encoder.padding` of the ImageNet stem's max-pool, which differs between PyTorch and the official code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// One pixel on both sides (PyTorch, torchvision weights).
    #[default]
    Symmetric,
    /// TensorFlow's SAME: on even sides none before, one after (for weights converted from the official code).
    Same,
}

/// `encoder.shortcut` of the first block of group 1 if its input and output have the same shape, as in ResNet-18 and -34.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortcut {
    /// The block's input (torchvision).
    #[default]
    Identity,
    /// A 1x1 convolution with batch norm (google-research/simclr `resnet.py`: `use_projection` in every group's first block).
    Projection,
}

/// `encoder.resnet_d` (arXiv 1812.01187): three 3x3 convolutions instead of the ImageNet stem's 7x7 one, and 2x2 average-pooling with the
/// block's stride before the convolution of a projection shortcut, which then has stride 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResnetD {
    /// `official` with `sk_ratio` above 0, else `off` (google-research/simclr `resnet.py` has one flag for both).
    #[default]
    Auto,
    /// Neither.
    Off,
    /// As google-research/simclr: shortcuts of stride 1 are averaged over 2x2 positions, too; on odd sides zeros are averaged in.
    Official,
    /// As timm's `resnet50d`: no pooling where the stride is 1; windows are cut off at the border.
    Timm,
}

/// `encoder.positions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A parameter (timm).
    #[default]
    Learned,
    /// Sines and cosines of row and column (MoCo v3).
    Fixed,
}

/// `encoder.init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Truncated normal, variance 1 / fan-in (google-research/simclr `resnet.py`).
    #[default]
    Official,
    /// He normal, fan-out (torchvision).
    He,
}

/// An encoder f: images to h.
#[derive(Debug)]
pub struct Encoder {
    network: Network,
    /// Mean and standard deviation `[C, 1, 1]` that standardise the input.
    input: Option<(Tensor, Tensor)>,
    description: String,
}

#[derive(Debug)]
enum Network {
    ResNet(ResNet),
    Small(SmallConv),
    Vit(Vit),
    Script(ScriptEncoder),
}

impl Encoder {
    /// Builds the encoder with initial weights, drawn with the seed of `params`, under the names `encoder.*`.
    ///
    /// # Errors
    /// A TorchScript file that cannot be loaded or does not give features.
    pub fn new(
        config: &EncoderConfig,
        channels: i64,
        size: i64,
        params: &mut Params,
    ) -> Result<Self, ModelError> {
        let imagenet_stem = config.imagenet_stem(size);
        let network = if let Some(path) = &config.file {
            Network::Script(ScriptEncoder::new(path, channels, size, params)?)
        } else if let Some(resnet) = ResNet::new(config, channels, imagenet_stem, params) {
            Network::ResNet(resnet)
        } else if let Some(vit) = Vit::new(config, (channels, size), params)? {
            Network::Vit(vit)
        } else {
            let small = SmallConv::new(config, channels, params);
            Network::Small(small.expect("every name is a ResNet, a transformer or a small encoder"))
        };
        let millions = parameter_count(params) as f64 / 1e6;
        let description = match &network {
            Network::ResNet(_) => {
                let stem = if imagenet_stem { "imagenet" } else { "cifar" };
                let (name, width, tweaks) = (config.name.as_str(), config.width, config.tweaks());
                format!("{name} x{width}{tweaks}, {stem} stem, {millions:.2} M parameters")
            }
            Network::Vit(_) => {
                let (name, width, patch) = (config.name.as_str(), config.width, config.patch);
                format!("{name} x{width}, patches of {patch} px, {millions:.2} M parameters")
            }
            Network::Small(_) => {
                format!("{} x{}, {millions:.2} M parameters", config.name.as_str(), config.width)
            }
            Network::Script(_) => format!("TorchScript module, {millions:.2} M parameters"),
        };
        let input = config.input_statistics(channels, params.device())?;
        Ok(Self { network, input, description })
    }

    /// A handle to the same parameters; `None` for a TorchScript module.
    pub fn shallow_clone(&self) -> Option<Self> {
        let network = match &self.network {
            Network::ResNet(network) => Network::ResNet(network.shallow_clone()),
            Network::Small(network) => Network::Small(network.shallow_clone()),
            Network::Vit(network) => Network::Vit(network.shallow_clone()),
            Network::Script(_) => return None,
        };
        let input = self.input.as_ref().map(|(mean, std)| (mean.shallow_clone(), std.shallow_clone()));
        Some(Self { network, input, description: self.description.clone() })
    }

    /// h `[B, F]` in f32 of `images` `[B, C, S, S]`.
    ///
    /// # Errors
    /// Errors of a TorchScript module's code; see also [`layers::BatchNorm::forward`].
    pub fn forward(&self, images: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let mut x = images.shallow_clone();
        for index in 0..self.stages() {
            x = self.stage(index, &x, mode, precision)?;
        }
        Ok(x)
    }

    /// Number of stages of `forward`, between which one tensor is passed.
    pub fn stages(&self) -> usize {
        match &self.network {
            Network::ResNet(network) => network.stages(),
            Network::Small(network) => network.stages(),
            Network::Vit(network) => network.stages(),
            Network::Script(_) => 1,
        }
    }

    /// One stage of `forward`: the first takes images, the last returns h.
    ///
    /// # Errors
    /// See [`Encoder::forward`].
    pub fn stage(
        &self,
        index: usize,
        x: &Tensor,
        mode: &Mode,
        precision: Precision,
    ) -> Result<Tensor, ModelError> {
        let x = match &self.input {
            Some((mean, std)) if index == 0 => &((x - mean) / std),
            _ => x,
        };
        match &self.network {
            Network::ResNet(network) => network.stage(index, x, mode, precision),
            Network::Small(network) => network.stage(index, x, mode, precision),
            Network::Vit(network) => Ok(network.stage(index, x, precision)),
            Network::Script(network) => network.forward(x, mode, precision),
        }
    }

    /// F.
    pub fn feature_dim(&self) -> i64 {
        match &self.network {
            Network::ResNet(network) => network.features(),
            Network::Small(network) => network.features(),
            Network::Vit(network) => network.features(),
            Network::Script(network) => network.features(),
        }
    }

    /// Human-readable description: architecture, stem, number of parameters.
    pub fn describe(&self) -> String {
        format!("{}, h has {} dimensions", self.description, self.feature_dim())
    }
}

fn parameter_count(params: &Params) -> usize {
    let encoder = params.params().iter().filter(|param| param.name.starts_with("encoder."));
    encoder.map(|param| param.tensor.numel()).sum()
}

impl EncoderConfig {
    /// `input_mean` and `input_std` `[C, 1, 1]`; `None` if both are unset.
    fn input_statistics(
        &self,
        channels: i64,
        device: tch::Device,
    ) -> Result<Option<(Tensor, Tensor)>, ModelError> {
        if self.input_mean.is_empty() && self.input_std.is_empty() {
            return Ok(None);
        }
        let per_channel = |values: &[f64], otherwise: f64| {
            let values = if values.is_empty() { vec![otherwise; channels as usize] } else { values.to_vec() };
            if values.len() as i64 != channels || values.contains(&0.0) && otherwise == 1.0 {
                return Err(ModelError::Names {
                    place: "encoder.input_mean, encoder.input_std".into(),
                    reason: format!(
                        "expected {channels} values, standard deviations above 0, got {values:?}"
                    ),
                });
            }
            let tensor = Tensor::from_slice(&values).to_kind(tch::Kind::Float).to_device(device);
            Ok(tensor.view([-1, 1, 1]))
        };
        Ok(Some((per_channel(&self.input_mean, 0.0)?, per_channel(&self.input_std, 1.0)?)))
    }

    /// Whether views of `size` pixels get the ImageNet stem.
    pub fn imagenet_stem(&self, size: i64) -> bool {
        match self.stem {
            Stem::Auto => size > 32,
            Stem::Imagenet => true,
            Stem::Cifar => false,
        }
    }
}

impl EncoderConfig {
    /// `resnet_d` without `auto`.
    pub fn effective_resnet_d(&self) -> ResnetD {
        match self.resnet_d {
            ResnetD::Auto if self.sk_ratio > 0.0 => ResnetD::Official,
            ResnetD::Auto => ResnetD::Off,
            named => named,
        }
    }

    /// Such as ` + SK 0.0625 + D`.
    fn tweaks(&self) -> String {
        let selective = if self.sk_ratio > 0.0 { format!(" + SK {}", self.sk_ratio) } else { String::new() };
        let deep = if self.effective_resnet_d() == ResnetD::Off { "" } else { " + D" };
        selective + deep
    }

    /// Heads of attention of a vision transformer; 1 of other encoders.
    pub(crate) fn attention_heads(&self) -> i64 {
        vit::architecture(self.name).map_or(1, |(_, _, heads)| heads)
    }

    /// Whether the encoder is one of the vision transformers built here.
    pub fn is_vit(&self) -> bool {
        self.file.is_none() && self.name.as_str().starts_with("vit")
    }

    /// Whether the encoder is one of the ResNets built here.
    pub fn is_resnet(&self) -> bool {
        self.file.is_none() && self.name.as_str().starts_with("resnet")
    }
}

impl EncoderName {
    /// As written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resnet18 => "resnet18",
            Self::Resnet34 => "resnet34",
            Self::Resnet50 => "resnet50",
            Self::Resnet101 => "resnet101",
            Self::Resnet152 => "resnet152",
            Self::Resnet200 => "resnet200",
            Self::VitTiny => "vit-tiny",
            Self::VitSmall => "vit-small",
            Self::VitBase => "vit-base",
            Self::ConvC3 => "conv-c3",
            Self::ConvC4 => "conv-c4",
            Self::ConvC7 => "conv-c7",
        }
    }
}
