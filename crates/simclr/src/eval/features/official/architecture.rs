//! The architecture of an official checkpoint from the shapes of its kernels, and the names of its layers here.

use crate::encoder::{EncoderName, Stem};

/// Blocks per group of the official ResNets (`resnet.py`), and whether they are bottlenecks.
const DEPTHS: [(EncoderName, [usize; 4], bool); 6] = [
    (EncoderName::Resnet18, [2, 2, 2, 2], false),
    (EncoderName::Resnet34, [3, 4, 6, 3], false),
    (EncoderName::Resnet50, [3, 4, 6, 3], true),
    (EncoderName::Resnet101, [3, 4, 23, 3], true),
    (EncoderName::Resnet152, [3, 8, 36, 3], true),
    (EncoderName::Resnet200, [3, 24, 36, 3], true),
];
/// Recommended `sk_ratio` of the official code.
const RATIO: f64 = 0.0625;

/// An official ResNet.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Depth.
    pub name: EncoderName,
    groups: [usize; 4],
    /// Whether its blocks are bottlenecks.
    pub bottleneck: bool,
    /// Width multiplier.
    pub width: f64,
    /// First layers.
    pub stem: Stem,
    deep_stem: bool,
    /// 0 without selective kernels.
    pub sk_ratio: f64,
    /// Whether shortcuts pool (ResNet-D).
    pub pools: bool,
}

impl Architecture {
    /// That of the kernels `[height, width, in, out]` in the official order; `pools` if the checkpoint records it.
    pub fn identify(kernels: &[&[i64]], pools: Option<bool>) -> Result<Self, String> {
        let side = |index: usize| kernels.get(index).and_then(|kernel| kernel.first()).copied().unwrap_or(0);
        let deep_stem = side(0) == 3 && side(1) == 3;
        let stem_layers = if deep_stem { 3 } else { 1 };
        // The first block: shortcut, then 1x1 in a bottleneck, 3x3 in a basic block.
        let bottleneck = side(stem_layers + 1) == 1;
        let count =
            |groups: [usize; 4], per_block: usize| stem_layers + 4 + per_block * groups.iter().sum::<usize>();
        let matching =
            DEPTHS.iter().filter(|(_, _, wide)| *wide == bottleneck).find_map(|(name, groups, _)| {
                let plain = if bottleneck { 3 } else { 2 };
                let selective = bottleneck && count(*groups, plain + 2) == kernels.len();
                (selective || count(*groups, plain) == kernels.len()).then_some((*name, *groups, selective))
            });
        let (name, groups, selective) = matching
            .ok_or_else(|| format!("{} convolutions, expected those of an official ResNet", kernels.len()))?;
        let base = kernels[stem_layers - 1].last().copied().unwrap_or(0);
        let stem = if deep_stem || side(0) == 7 { Stem::Imagenet } else { Stem::Cifar };
        let found = Self {
            name,
            groups,
            bottleneck,
            width: base as f64 / 64.0,
            stem,
            deep_stem,
            sk_ratio: if selective { ratio(kernels, base) } else { 0.0 },
            pools: pools.unwrap_or(deep_stem || selective),
        };
        Ok(found)
    }

    /// Names of convolution and batch norm of each layer in the official order, without `encoder.`.
    pub fn layers(&self) -> Vec<(String, Option<String>)> {
        let mut found = Vec::new();
        let mut add = |conv: String, norm: String| found.push((conv, Some(norm)));
        if self.deep_stem {
            add("conv1.0".into(), "conv1.1".into());
            add("conv1.3".into(), "conv1.4".into());
            add("conv1.6".into(), "bn1".into());
        } else {
            add("conv1".into(), "bn1".into());
        }
        let shortcut = usize::from(self.pools);
        for (group, blocks) in self.groups.into_iter().enumerate() {
            for block in 0..blocks {
                let place = format!("layer{}.{block}", group + 1);
                if block == 0 {
                    found.push((
                        format!("{place}.downsample.{shortcut}"),
                        Some(format!("{place}.downsample.{}", shortcut + 1)),
                    ));
                }
                found.extend(self.branch(&place));
            }
        }
        found
    }

    /// The layers of the residual branch of the block `place`.
    fn branch(&self, place: &str) -> Vec<(String, Option<String>)> {
        let mut found = Vec::new();
        for number in 1..=if self.bottleneck { 3 } else { 2 } {
            let conv = format!("{place}.conv{number}");
            if number == 2 && self.sk_ratio > 0.0 {
                found.push((format!("{conv}.conv"), Some(format!("{conv}.bn"))));
                found.push((format!("{conv}.reduce"), Some(format!("{conv}.reduce_bn"))));
                found.push((format!("{conv}.select"), None));
            } else {
                found.push((conv, Some(format!("{place}.bn{number}"))));
            }
        }
        found
    }
}

/// `sk_ratio` from the kernels that reduce; narrow ones have 32 outputs at any small ratio.
fn ratio(kernels: &[&[i64]], base: i64) -> f64 {
    let width = 8 * base;
    // In the last block: [1, 1, width, out], after the two streams and before the selection.
    let reduced = kernels[kernels.len() - 3].last().copied().unwrap_or(0);
    let usual = ((width as f64 * RATIO) as i64).max(32);
    if reduced == usual { RATIO } else { reduced as f64 / width as f64 }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::{
        encoder::{Encoder, EncoderConfig, ResnetD, Shortcut},
        params::Params,
    };

    /// The kernels of our encoder in the official order and TensorFlow's layout give the architecture back, and every parameter has
    /// a layer.
    #[test]
    fn every_official_network_is_identified() {
        for (name, _, bottleneck) in DEPTHS {
            for (sk, stem, width) in
                [(false, Stem::Imagenet, 4), (true, Stem::Imagenet, 8), (true, Stem::Cifar, 4)]
            {
                let config = EncoderConfig {
                    name,
                    stem,
                    width: f64::from(width) / 64.0,
                    sk_ratio: if sk && bottleneck { RATIO } else { 0.0 },
                    resnet_d: if sk { ResnetD::Official } else { ResnetD::Off },
                    shortcut: Shortcut::Projection,
                    ..EncoderConfig::default()
                };
                check(&config, bottleneck, sk);
            }
        }
    }

    fn check(config: &EncoderConfig, bottleneck: bool, pools: bool) {
        let mut params = Params::new(Device::Cpu, 0);
        Encoder::new(config, 3, 64, &mut params).unwrap();
        let groups = DEPTHS.iter().find(|(name, ..)| *name == config.name).unwrap().1;
        let expected = Architecture {
            name: config.name,
            groups,
            bottleneck,
            width: config.width,
            stem: config.stem,
            deep_stem: pools && config.stem == Stem::Imagenet,
            sk_ratio: config.sk_ratio,
            pools,
        };
        let kernels: Vec<Vec<i64>> =
            expected.layers().iter().map(|(conv, _)| kernel(&params, conv)).collect();
        let kernels: Vec<&[i64]> = kernels.iter().map(Vec::as_slice).collect();
        assert_eq!(Architecture::identify(&kernels, Some(pools)), Ok(expected.clone()));
        let convolutions = params.params().iter().filter(|param| param.tensor.dim() == 4).count();
        assert_eq!(kernels.len(), convolutions);
        let norms = expected.layers().iter().filter(|(_, norm)| norm.is_some()).count();
        assert_eq!(2 * norms, params.buffers().len());
        assert!(Architecture::identify(&kernels[1..], None).is_err());
    }

    /// `[height, width, in, out]`
    fn kernel(params: &Params, name: &str) -> Vec<i64> {
        let full = format!("encoder.{name}.weight");
        let found = params.params().iter().find(|param| param.name == full);
        let size = found.unwrap_or_else(|| panic!("no {full}")).tensor.size();
        vec![size[2], size[3], size[1], size[0]]
    }

    #[test]
    fn other_networks_are_refused() {
        assert!(Architecture::identify(&[], None).is_err());
        assert!(Architecture::identify(&[&[3, 3, 3, 64][..]; 20], None).is_err());
        assert!(Architecture::identify(&[&[][..]; 21], None).unwrap().width == 0.0);
    }
}
