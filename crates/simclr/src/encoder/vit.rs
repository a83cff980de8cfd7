//! Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) with timm's parameter names: h is the class token behind the last
//! layer norm. Without dropout. Initialisation and frozen patch projection of MoCo v3 (Chen et al. 2021, arXiv 2104.02057).

use tch::{Kind, Tensor};

use super::{EncoderConfig, EncoderName, Positions};
use crate::{
    ModelError,
    device::Precision,
    params::{Params, Role},
};

/// Layer-norm epsilon of timm's vision transformers.
pub(crate) const EPSILON: f64 = 1e-6;
/// Hidden units of an MLP per input.
const MLP_RATIO: i64 = 4;
/// Base of the wavelengths of the fixed position embedding (MoCo v3 `vits.py` `build_2d_sincos_position_embedding`).
const TEMPERATURE: f64 = 10_000.0;

/// Initial standard deviation of the class token (MoCo v3 `vits.py`).
const CLASS_TOKEN_STD: f64 = 1e-6;
/// Initial standard deviation of learned positions (timm).
const POSITION_STD: f64 = 0.02;

/// Width, depth and heads.
pub(super) fn architecture(name: EncoderName) -> Option<(i64, usize, i64)> {
    match name {
        EncoderName::VitTiny => Some((192, 12, 3)),
        EncoderName::VitSmall => Some((384, 12, 6)),
        EncoderName::VitBase => Some((768, 12, 12)),
        _ => None,
    }
}

/// A vision transformer without its classifier.
#[derive(Debug)]
pub struct Vit {
    /// Patch projection `[width, C, P, P]` and `[width]`.
    patches: (Tensor, Tensor),
    patch: i64,
    class_token: Tensor, // [1, 1, width]
    positions: Tensor,   // [1, 1 + patches, width]
    blocks: Vec<Block>,
    norm: LayerNorm,
    width: i64,
}

impl Vit {
    /// Builds `config.name` for images of `size` px, or `None` if that is another architecture.
    ///
    /// # Errors
    /// A size that the patches do not divide.
    pub fn new(
        config: &EncoderConfig,
        (channels, size): (i64, i64),
        params: &mut Params,
    ) -> Result<Option<Self>, ModelError> {
        let Some((width, depth, heads)) = architecture(config.name) else { return Ok(None) };
        let width = (width as f64 * config.width / heads as f64).round() as i64 * heads;
        let patch = config.patch;
        if size % patch != 0 {
            let reason = format!("{patch} px: expected a divisor of the image's side, {size} px");
            return Err(ModelError::Names { place: "encoder.patch".into(), reason });
        }
        let class_token = normal(params, &[1, 1, width], CLASS_TOKEN_STD);
        let class_token = params.add("encoder.cls_token", Role::Weight, class_token);
        let positions = positions(config.positions, (size / patch, width), params);
        let patches = patch_projection(config, [width, channels, patch, patch], params);
        let blocks =
            (0..depth).map(|index| Block::new(params, &format!("encoder.blocks.{index}"), (width, heads)));
        let blocks = blocks.collect();
        let norm = LayerNorm::new(params, "encoder.norm", width);
        Ok(Some(Self { patches, patch, class_token, positions, blocks, norm, width }))
    }

    /// A handle to the same parameters.
    pub fn shallow_clone(&self) -> Self {
        let (weight, bias) = &self.patches;
        Self {
            patches: (weight.shallow_clone(), bias.shallow_clone()),
            patch: self.patch,
            class_token: self.class_token.shallow_clone(),
            positions: self.positions.shallow_clone(),
            blocks: self.blocks.iter().map(Block::shallow_clone).collect(),
            norm: self.norm.shallow_clone(),
            width: self.width,
        }
    }

    /// Number of stages: patches, blocks, class token.
    pub fn stages(&self) -> usize {
        self.blocks.len() + 2
    }

    /// Stage `index` of the forward pass from images to h `[B, F]`; tokens `[B, 1 + patches, width]` between.
    pub fn stage(&self, index: usize, x: &Tensor, precision: Precision) -> Tensor {
        if index == 0 {
            return self.tokens(x, precision);
        }
        match self.blocks.get(index - 1) {
            Some(block) => block.forward(x, precision),
            None => self.norm.forward(&x.select(1, 0)),
        }
    }

    fn tokens(&self, images: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        let (weight, bias) = &self.patches;
        let stride = [self.patch; 2];
        let patches = images.to_kind(kind).conv2d(
            &weight.to_kind(kind),
            Some(bias.to_kind(kind)),
            stride,
            [0, 0],
            [1, 1],
            1,
        );
        let tokens = patches.flatten(2, 3).transpose(1, 2).to_kind(Kind::Float); // [B, patches, width]
        let class_token = self.class_token.expand([tokens.size()[0], 1, self.width], false);
        Tensor::cat(&[class_token, tokens], 1) + &self.positions
    }

    /// F.
    pub fn features(&self) -> i64 {
        self.width
    }
}

/// The kernel is uniform in +-sqrt(6 / (3 P P + width)) and stays at its initial values if `config.freeze_patches` (MoCo v3 `vits.py`).
fn patch_projection(config: &EncoderConfig, shape: [i64; 4], params: &mut Params) -> (Tensor, Tensor) {
    let [width, channels, height, side] = shape;
    let bound = (6.0 / (channels * height * side + width) as f64).sqrt();
    let weight = uniform(params, &shape, bound);
    let bias = Tensor::zeros([width], (Kind::Float, params.device()));
    let names = ["encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"];
    if config.freeze_patches {
        let (weight, bias) = (weight.to_device(params.device()), bias);
        params.adopt_frozen(names[0], weight.shallow_clone());
        params.adopt_frozen(names[1], bias.shallow_clone());
        return (weight, bias);
    }
    (params.add(names[0], Role::Weight, weight), params.add(names[1], Role::Bias, bias))
}

/// Position embedding `[1, 1 + side^2, width]`: a parameter, or fixed sines and cosines of row and column.
fn positions(kind: Positions, (side, width): (i64, i64), params: &mut Params) -> Tensor {
    let name = "encoder.pos_embed";
    match kind {
        Positions::Learned => {
            let shape = [1, 1 + side * side, width];
            let initial = normal(params, &shape, POSITION_STD);
            params.add(name, Role::Weight, initial)
        }
        Positions::Fixed => {
            let fixed = sines(side, width).to_device(params.device());
            params.adopt_frozen(name, fixed.shallow_clone());
            fixed
        }
    }
}

/// Zero for the class token; for the patch at (row, column) sin and cos of column and row times 10000^(-k / (width / 4)) (MoCo v3).
fn sines(side: i64, width: i64) -> Tensor {
    let options = (Kind::Double, tch::Device::Cpu);
    let quarter = width / 4;
    let omega = (Tensor::arange(quarter, options) / quarter as f64 * -TEMPERATURE.ln()).exp();
    let places = Tensor::arange(side, options);
    let angles = |place: &Tensor| place.unsqueeze(1) * &omega; // [side^2, width / 4]
    // MoCo v3 flattens a meshgrid with the column as its first index.
    let (columns, rows) =
        (angles(&places.repeat_interleave_self_int(side, None, None)), angles(&places.repeat([side])));
    let table = Tensor::cat(&[columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1);
    let class_token = Tensor::zeros([1, width], options);
    let padded = table.constant_pad_nd([0, width - 4 * quarter]);
    Tensor::cat(&[class_token, padded], 0).unsqueeze(0).to_kind(Kind::Float)
}

fn normal(params: &Params, shape: &[i64], std: f64) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    Tensor::from_slice(&params.stream().normals(count)).view(shape) * std
}

fn uniform(params: &Params, shape: &[i64], bound: f64) -> Tensor {
    let mut stream = params.stream();
    let count = shape.iter().product::<i64>();
    let draws: Vec<f32> = (0..count).map(|_| stream.uniform(-bound as f32, bound as f32)).collect();
    Tensor::from_slice(&draws).view(shape)
}

/// A pre-norm transformer block.
#[derive(Debug)]
struct Block {
    norms: [LayerNorm; 2],
    qkv: Linear,
    projection: Linear,
    mlp: [Linear; 2],
    heads: i64,
}

impl Block {
    fn new(params: &mut Params, name: &str, (width, heads): (i64, i64)) -> Self {
        // Glorot's uniform bound; for queries, keys and values of each of them alone (MoCo v3).
        let glorot = |input: i64, output: i64| (6.0 / (input + output) as f64).sqrt();
        let hidden = MLP_RATIO * width;
        let first = LayerNorm::new(params, &format!("{name}.norm1"), width);
        let qkv = Linear::new(params, &format!("{name}.attn.qkv"), [3 * width, width], glorot(width, width));
        let projection =
            Linear::new(params, &format!("{name}.attn.proj"), [width, width], glorot(width, width));
        let second = LayerNorm::new(params, &format!("{name}.norm2"), width);
        let up = Linear::new(params, &format!("{name}.mlp.fc1"), [hidden, width], glorot(width, hidden));
        let down = Linear::new(params, &format!("{name}.mlp.fc2"), [width, hidden], glorot(hidden, width));
        Self { norms: [first, second], qkv, projection, mlp: [up, down], heads }
    }

    fn shallow_clone(&self) -> Self {
        let [first, second] = &self.norms;
        let [up, down] = &self.mlp;
        Self {
            norms: [first.shallow_clone(), second.shallow_clone()],
            qkv: self.qkv.shallow_clone(),
            projection: self.projection.shallow_clone(),
            mlp: [up.shallow_clone(), down.shallow_clone()],
            heads: self.heads,
        }
    }

    /// Tokens `[B, T, width]`, f32, as the sum of residual branches.
    fn forward(&self, x: &Tensor, precision: Precision) -> Tensor {
        let attended = self.attention(&self.norms[0].forward(x), precision);
        let x = x + attended.to_kind(Kind::Float);
        let hidden = self.mlp[0].forward(&self.norms[1].forward(&x), precision).gelu("none");
        &x + self.mlp[1].forward(&hidden, precision).to_kind(Kind::Float)
    }

    fn attention(&self, x: &Tensor, precision: Precision) -> Tensor {
        let [batch, tokens, width] = x.size()[..] else { unreachable!("tokens have three dimensions") };
        let qkv = self.qkv.forward(x, precision);
        let qkv = qkv.view([batch, tokens, 3, self.heads, width / self.heads]).permute([2, 0, 3, 1, 4]);
        let [query, key, value] = [0, 1, 2].map(|part| qkv.get(part)); // [B, heads, T, width / heads]
        let mixed = Tensor::scaled_dot_product_attention(
            &query,
            &key,
            &value,
            None::<Tensor>,
            0.0,
            false,
            None,
            false,
        );
        self.projection.forward(&mixed.transpose(1, 2).reshape([batch, tokens, width]), precision)
    }
}

#[derive(Debug)]
struct Linear {
    weight: Tensor, // [out, in]
    bias: Tensor,
}

impl Linear {
    fn new(params: &mut Params, name: &str, shape: [i64; 2], bound: f64) -> Self {
        let weight = uniform(params, &shape, bound);
        let weight = params.add(format!("{name}.weight"), Role::Weight, weight);
        let zeros = Tensor::zeros([shape[0]], (Kind::Float, tch::Device::Cpu));
        Self { weight, bias: params.add(format!("{name}.bias"), Role::Bias, zeros) }
    }

    fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    fn forward(&self, x: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        x.to_kind(kind).linear(&self.weight.to_kind(kind), Some(&self.bias.to_kind(kind)))
    }
}

#[derive(Debug)]
struct LayerNorm {
    scale: Tensor,
    shift: Tensor,
}

impl LayerNorm {
    fn new(params: &mut Params, name: &str, width: i64) -> Self {
        let options = (Kind::Float, tch::Device::Cpu);
        let scale = params.add(format!("{name}.weight"), Role::NormScale, Tensor::ones([width], options));
        let shift = params.add(format!("{name}.bias"), Role::NormShift, Tensor::zeros([width], options));
        Self { scale, shift }
    }

    fn shallow_clone(&self) -> Self {
        Self { scale: self.scale.shallow_clone(), shift: self.shift.shallow_clone() }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm([self.scale.size()[0]], Some(&self.scale), Some(&self.shift), EPSILON, true)
    }
}
