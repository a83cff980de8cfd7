//! ResNets and the small encoders as ONNX operators.

use super::{
    Network,
    proto::Attribute::{Float, Int, Ints},
};
use crate::encoder::{EncoderName, Padding, layers::EPSILON};

impl Network<'_> {
    /// A convolution without bias, with half of the kernel as padding.
    fn convolution(&mut self, name: &str, x: &str, stride: i64) -> String {
        let kernel = self.shape(&format!("{name}.weight"))[2];
        let weight = self.parameter(&format!("{name}.weight"));
        let attributes = [
            ("kernel_shape", Ints(vec![kernel; 2])),
            ("strides", Ints(vec![stride; 2])),
            ("pads", Ints(vec![kernel / 2; 4])),
        ];
        self.graph.node("Conv", &[x, &weight], &attributes)
    }

    fn norm(&mut self, name: &str, x: &str) -> String {
        let [scale, shift, mean, var] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| self.parameter(&format!("{name}.{part}")));
        self.graph.node(
            "BatchNormalization",
            &[x, &scale, &shift, &mean, &var],
            &[("epsilon", Float(EPSILON as f32))],
        )
    }

    fn relu(&mut self, x: &str) -> String {
        self.graph.node("Relu", &[x], &[])
    }

    fn convolution_norm(&mut self, (conv, norm): (&str, &str), x: &str, stride: i64) -> String {
        let x = self.convolution(conv, x, stride);
        self.norm(norm, &x)
    }

    fn mean_over_positions(&mut self, x: &str) -> String {
        let x = self.graph.node("GlobalAveragePool", &[x], &[]);
        self.graph.node("Flatten", &[&x], &[("axis", Int(1))])
    }

    /// conv-c3: stride 2; conv-c4: stride 1 with pooling between the layers.
    pub(super) fn small(&mut self, x: &str) -> String {
        let pooled = self.config.name == EncoderName::ConvC4;
        let layers = (1..).take_while(|layer| self.has(&format!("conv{layer}.weight"))).count();
        let mut x = x.to_owned();
        for layer in 1..=layers {
            let names = (format!("conv{layer}"), format!("bn{layer}"));
            x = self.convolution_norm((&names.0, &names.1), &x, if pooled { 1 } else { 2 });
            x = self.relu(&x);
            if pooled && layer < layers {
                let attributes = [("kernel_shape", Ints(vec![2, 2])), ("strides", Ints(vec![2, 2]))];
                x = self.graph.node("MaxPool", &[&x], &attributes);
            }
        }
        self.mean_over_positions(&x)
    }

    pub(super) fn resnet(&mut self, x: &str, side: i64) -> String {
        let imagenet = self.config.imagenet_stem(side);
        let x = self.convolution_norm(("conv1", "bn1"), x, if imagenet { 2 } else { 1 });
        let mut x = self.relu(&x);
        if imagenet {
            x = self.pool(&x, (side + 1) / 2);
        }
        for group in 1..=4 {
            let blocks =
                (0..).take_while(|block| self.has(&format!("layer{group}.{block}.conv1.weight"))).count();
            for block in 0..blocks {
                let stride = if group > 1 && block == 0 { 2 } else { 1 };
                x = self.block(&format!("layer{group}.{block}"), &x, stride);
            }
        }
        self.mean_over_positions(&x)
    }

    /// 3x3 with stride 2 on `side` positions, see [`crate::encoder::layers::max_pool`].
    fn pool(&mut self, x: &str, side: i64) -> String {
        let total = ((side + 1) / 2 - 1) * 2 + 3 - side;
        let (before, after) = match self.config.padding {
            Padding::Symmetric => (1, 1),
            Padding::Same => (total / 2, total - total / 2),
        };
        let attributes = [
            ("kernel_shape", Ints(vec![3, 3])),
            ("strides", Ints(vec![2, 2])),
            ("pads", Ints(vec![before, before, after, after])),
        ];
        self.graph.node("MaxPool", &[x], &attributes)
    }

    /// The stride is that of the first convolution of a basic block and of the second one of a bottleneck.
    fn block(&mut self, name: &str, x: &str, stride: i64) -> String {
        let name = |part: &str| format!("{name}.{part}");
        let convolutions = if self.has(&name("conv3.weight")) { 3 } else { 2 };
        let mut branch = x.to_owned();
        for at in 1..=convolutions {
            let own = if at == convolutions - 1 { stride } else { 1 };
            let names = (name(&format!("conv{at}")), name(&format!("bn{at}")));
            branch = self.convolution_norm((&names.0, &names.1), &branch, own);
            if at < convolutions {
                branch = self.relu(&branch);
            }
        }
        let shortcut = if self.has(&name("downsample.0.weight")) {
            self.convolution_norm((&name("downsample.0"), &name("downsample.1")), x, stride)
        } else {
            x.to_owned()
        };
        let sum = self.graph.node("Add", &[&branch, &shortcut], &[]);
        self.relu(&sum)
    }
}
