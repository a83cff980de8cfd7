//! Post-activation ResNets with the stride in the 3x3 convolution ("v1.5"), torchvision's topology and names
//! (google-research/simclr `resnet.py`, which has a projection shortcut also in the first group of basic-block nets:
//! [`Shortcut::Projection`]). timm's names for the deep stem of ResNet-D.

use tch::Tensor;

use super::{
    EncoderConfig, EncoderName, Mode, ResnetD, Shortcut,
    block::{Block, Shape},
    layers::{BatchNorm, Conv, global_mean, max_pool},
};
use crate::{ModelError, device::Precision, params::Params};

/// Blocks per group and whether they are bottlenecks.
fn architecture(name: EncoderName) -> Option<([usize; 4], bool)> {
    match name {
        EncoderName::Resnet18 => Some(([2, 2, 2, 2], false)),
        EncoderName::Resnet34 => Some(([3, 4, 6, 3], false)),
        EncoderName::Resnet50 => Some(([3, 4, 6, 3], true)),
        EncoderName::Resnet101 => Some(([3, 4, 23, 3], true)),
        EncoderName::Resnet152 => Some(([3, 8, 36, 3], true)),
        EncoderName::Resnet200 => Some(([3, 24, 36, 3], true)),
        _ => None,
    }
}

/// A ResNet without its classifier.
#[derive(Debug)]
pub struct ResNet {
    config: EncoderConfig,
    stem: Vec<(Conv, BatchNorm)>,
    pool: bool,
    blocks: Vec<Block>,
    features: i64,
}

impl ResNet {
    /// Builds `config.name`, or `None` if that is not a ResNet.
    pub fn new(
        config: &EncoderConfig,
        channels: i64,
        imagenet_stem: bool,
        params: &mut Params,
    ) -> Option<Self> {
        let (groups, bottleneck) = architecture(config.name)?;
        let base = (64.0 * config.width).round() as i64;
        let stem = stem(params, config, (channels, base), imagenet_stem);
        let mut blocks = Vec::new();
        let mut input = base;
        for (group, &count) in groups.iter().enumerate() {
            let width = base << group;
            for index in 0..count {
                let stride = if group > 0 && index == 0 { 2 } else { 1 };
                let name = format!("encoder.layer{}.{index}", group + 1);
                let project = index == 0 && config.shortcut == Shortcut::Projection;
                let shape = Shape { input, width, stride, bottleneck, project };
                blocks.push(Block::new(params, &name, config, shape));
                input = shape.output();
            }
        }
        Some(Self { config: config.clone(), stem, pool: imagenet_stem, blocks, features: input })
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        let pair = |(conv, norm): &(Conv, BatchNorm)| (conv.shallow_clone(), norm.shallow_clone());
        Self {
            config: self.config.clone(),
            stem: self.stem.iter().map(pair).collect(),
            pool: self.pool,
            blocks: self.blocks.iter().map(Block::shallow_clone).collect(),
            features: self.features,
        }
    }

    /// Number of stages: stem, blocks, mean over positions.
    pub fn stages(&self) -> usize {
        self.blocks.len() + 2
    }

    /// Stage `index` of the forward pass from images to h `[B, F]`.
    pub fn stage(
        &self,
        index: usize,
        x: &Tensor,
        mode: &Mode,
        precision: Precision,
    ) -> Result<Tensor, ModelError> {
        if index > 0 {
            let block = self.blocks.get(index - 1);
            return block.map_or_else(|| Ok(global_mean(x)), |block| block.forward(x, mode, precision));
        }
        let mut x = x.shallow_clone();
        for (conv, norm) in &self.stem {
            x = norm.forward_relu(&conv.forward(&x, precision)?, mode)?;
        }
        Ok(if self.pool { max_pool(&x, self.config.padding) } else { x })
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.features
    }
}

/// The convolutions before the first group. The CIFAR stem is the same with ResNet-D (google-research/simclr `resnet.py`).
fn stem(
    params: &mut Params,
    config: &EncoderConfig,
    (channels, base): (i64, i64),
    imagenet_stem: bool,
) -> Vec<(Conv, BatchNorm)> {
    let half = base / 2;
    let layers: &[_] = match (imagenet_stem, config.effective_resnet_d() != ResnetD::Off) {
        (false, _) => &[("conv1", "bn1", (channels, base), (3, 1))],
        (true, false) => &[("conv1", "bn1", (channels, base), (7, 2))],
        (true, true) => &[
            ("conv1.0", "conv1.1", (channels, half), (3, 2)),
            ("conv1.3", "conv1.4", (half, half), (3, 1)),
            ("conv1.6", "bn1", (half, base), (3, 1)),
        ],
    };
    let mut built = Vec::new();
    for &(conv, norm, channels, geometry) in layers {
        let conv = Conv::new(params, &format!("encoder.{conv}"), channels, geometry, config.init);
        built.push((conv, BatchNorm::new(params, &format!("encoder.{norm}"), channels.1, 1.0)));
    }
    built
}
