//! Post-activation ResNets with the stride in the 3x3 convolution ("v1.5"), torchvision's topology and names
//! (google-research/simclr `resnet.py`, which has a projection shortcut also in the first group of basic-block nets:
//! [`Shortcut::Projection`]).

use tch::Tensor;

use super::{
    EncoderConfig, EncoderName, Mode, Shortcut,
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
        EncoderName::ConvC3 | EncoderName::ConvC4 => None,
    }
}

/// A ResNet without its classifier.
#[derive(Debug)]
pub struct ResNet {
    config: EncoderConfig,
    conv1: Conv,
    bn1: BatchNorm,
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
        let (kernel, stride) = if imagenet_stem { (7, 2) } else { (3, 1) };
        let init = config.init;
        let conv1 = Conv::new(params, "encoder.conv1", (channels, base), (kernel, stride), init);
        let bn1 = BatchNorm::new(params, "encoder.bn1", base, 1.0);
        let mut blocks = Vec::new();
        let mut input = base;
        for (group, &count) in groups.iter().enumerate() {
            let width = base << group;
            for index in 0..count {
                let stride = if group > 0 && index == 0 { 2 } else { 1 };
                let name = format!("encoder.layer{}.{index}", group + 1);
                let project = index == 0 && config.shortcut == Shortcut::Projection;
                let block = Block::new(params, &name, config, (bottleneck, project), (input, width, stride));
                input = width * if bottleneck { 4 } else { 1 };
                blocks.push(block);
            }
        }
        Some(Self { config: config.clone(), conv1, bn1, pool: imagenet_stem, blocks, features: input })
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            conv1: self.conv1.shallow_clone(),
            bn1: self.bn1.shallow_clone(),
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
        let x = self.bn1.forward_relu(&self.conv1.forward(x, precision), mode)?;
        Ok(if self.pool { max_pool(&x, self.config.padding) } else { x })
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.features
    }
}

/// A residual block: convolutions with batch norm, and a projection if shapes differ.
#[derive(Debug)]
struct Block {
    layers: Vec<(Conv, BatchNorm)>,
    shortcut: Option<(Conv, BatchNorm)>,
}

impl Block {
    fn new(
        params: &mut Params,
        name: &str,
        config: &EncoderConfig,
        (bottleneck, project): (bool, bool),
        (input, width, stride): (i64, i64, i64),
    ) -> Self {
        let output = width * if bottleneck { 4 } else { 1 };
        // (in, out), (kernel, stride) of each convolution.
        let shapes: &[_] = if bottleneck {
            &[((input, width), (1, 1)), ((width, width), (3, stride)), ((width, output), (1, 1))]
        } else {
            &[((input, width), (3, stride)), ((width, width), (3, 1))]
        };
        let init = config.init;
        let mut layers = Vec::new();
        for (index, &(channels, geometry)) in shapes.iter().enumerate() {
            let last = index + 1 == shapes.len();
            let gamma = if last && config.zero_gamma { 0.0 } else { 1.0 };
            let conv = Conv::new(params, &format!("{name}.conv{}", index + 1), channels, geometry, init);
            layers
                .push((conv, BatchNorm::new(params, &format!("{name}.bn{}", index + 1), channels.1, gamma)));
        }
        let shortcut = (project || stride != 1 || input != output).then(|| {
            let conv = Conv::new(params, &format!("{name}.downsample.0"), (input, output), (1, stride), init);
            (conv, BatchNorm::new(params, &format!("{name}.downsample.1"), output, 1.0))
        });
        Self { layers, shortcut }
    }

    fn shallow_clone(&self) -> Self {
        let pair = |(conv, norm): &(Conv, BatchNorm)| (conv.shallow_clone(), norm.shallow_clone());
        Self { layers: self.layers.iter().map(pair).collect(), shortcut: self.shortcut.as_ref().map(pair) }
    }

    fn forward(&self, x: &Tensor, mode: &Mode, precision: Precision) -> Result<Tensor, ModelError> {
        let project = |(conv, norm): &(Conv, BatchNorm)| norm.forward(&conv.forward(x, precision), mode);
        let short = self.shortcut.as_ref().map(project).transpose()?;
        let ((last_conv, last_norm), first) = self.layers.split_last().expect("a block has convolutions");
        let mut y = x.shallow_clone();
        for (conv, norm) in first {
            y = norm.forward_relu(&conv.forward(&y, precision), mode)?;
        }
        last_norm.forward_add_relu(&last_conv.forward(&y, precision), short.as_ref().unwrap_or(x), mode)
    }
}
