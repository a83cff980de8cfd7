//! ResNets and the small encoders as ONNX operators.

use super::{
    Network,
    proto::Attribute::{Float, Int, Ints},
};
use crate::encoder::{EncoderName, Padding, ResnetD, layers::EPSILON};

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

    /// conv-c3: stride 2; conv-c4: stride 1 with pooling between the layers; conv-c7: also a residual convolution there.
    pub(super) fn small(&mut self, x: &str) -> String {
        let pooled = self.config.name != EncoderName::ConvC3;
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
            if self.has(&format!("residual_conv{layer}.weight")) {
                let names = (format!("residual_conv{layer}"), format!("residual_bn{layer}"));
                let branch = self.convolution_norm((&names.0, &names.1), &x, 1);
                x = self.graph.node("Add", &[&branch, &x], &[]);
                x = self.relu(&x);
            }
        }
        self.mean_over_positions(&x)
    }

    pub(super) fn resnet(&mut self, x: &str, side: i64) -> String {
        let imagenet = self.config.imagenet_stem(side);
        let (mut x, mut side) = self.stem(x, imagenet, side);
        for group in 1..=4 {
            let name = |block: usize| format!("layer{group}.{block}");
            let blocks = (0..).take_while(|&block| self.has_block(&name(block))).count();
            for block in 0..blocks {
                let stride = if group > 1 && block == 0 { 2 } else { 1 };
                x = self.block(&name(block), &x, (stride, side));
                side = (side + stride - 1) / stride;
            }
        }
        self.mean_over_positions(&x)
    }

    /// One convolution or the three of ResNet-D, and with the ImageNet stem the pooling; also returns the side of the result.
    fn stem(&mut self, x: &str, imagenet: bool, side: i64) -> (String, i64) {
        let deep = [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")];
        let layers = if self.has("conv1.0.weight") { &deep[..] } else { &[("conv1", "bn1")] };
        let mut x = x.to_owned();
        for (at, &names) in layers.iter().enumerate() {
            x = self.convolution_norm(names, &x, if imagenet && at == 0 { 2 } else { 1 });
            x = self.relu(&x);
        }
        if !imagenet {
            return (x, side);
        }
        let side = (side + 1) / 2;
        (self.pool(&x, side), (side + 1) / 2)
    }

    fn has_block(&self, name: &str) -> bool {
        self.has(&format!("{name}.conv1.weight")) || self.has(&format!("{name}.conv1.conv.weight"))
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
    fn block(&mut self, name: &str, x: &str, (stride, side): (i64, i64)) -> String {
        let name = |part: &str| format!("{name}.{part}");
        let convolutions = if self.has(&name("conv3.weight")) { 3 } else { 2 };
        let mut branch = x.to_owned();
        for at in 1..=convolutions {
            let strided = at == convolutions - 1;
            let conv = name(&format!("conv{at}"));
            if self.has(&format!("{conv}.conv.weight")) {
                branch = self.selective_kernel(&conv, &branch, (stride, (side + stride - 1) / stride));
                continue;
            }
            let norm = name(&format!("bn{at}"));
            branch = self.convolution_norm((&conv, &norm), &branch, if strided { stride } else { 1 });
            if at < convolutions {
                branch = self.relu(&branch);
            }
        }
        let shortcut = self.shortcut(&name("downsample"), x, (stride, side));
        let sum = self.graph.node("Add", &[&branch, &shortcut], &[]);
        self.relu(&sum)
    }

    fn shortcut(&mut self, name: &str, x: &str, (stride, side): (i64, i64)) -> String {
        let part = |index: usize| format!("{name}.{index}");
        if self.has(&format!("{name}.0.weight")) {
            return self.convolution_norm((&part(0), &part(1)), x, stride);
        }
        if self.has(&format!("{name}.2.weight")) {
            let pooled = self.average_pool(x, (stride, side));
            return self.convolution_norm((&part(1), &part(2)), &pooled, 1);
        }
        x.to_owned()
    }

    /// Of 2x2 positions, as [`crate::encoder::block`] does it.
    fn average_pool(&mut self, x: &str, (stride, side): (i64, i64)) -> String {
        let official = self.config.effective_resnet_d() == ResnetD::Official;
        if stride == 1 && !official {
            return x.to_owned();
        }
        let after = if stride == 1 { 1 } else { side % 2 };
        let attributes = [
            ("kernel_shape", Ints(vec![2, 2])),
            ("strides", Ints(vec![stride; 2])),
            ("pads", Ints(vec![0, 0, after, after])),
            ("count_include_pad", Int(i64::from(official && stride > 1))),
        ];
        self.graph.node("AveragePool", &[x], &attributes)
    }

    /// [`crate::encoder::selective_kernel`], with a result of `side` positions.
    fn selective_kernel(&mut self, name: &str, x: &str, (stride, side): (i64, i64)) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let x = self.convolution_norm((&part("conv"), &part("bn")), x, stride);
        let streams = self.relu(&x);
        let channels = self.shape(&part("select.weight"))[0] / 2;
        let mean = self.graph.node("GlobalAveragePool", &[&streams], &[]);
        let sum = {
            let by_stream = self.reshaped(&mean, &[0, 2, channels, 1, 1]);
            let mean = self.graph.node("ReduceMean", &[&by_stream], &[("axes", Ints(vec![1]))]);
            let two = self.graph.scalar(2.0);
            let sum = self.graph.node("Mul", &[&mean, &two], &[]);
            self.reshaped(&sum, &[0, channels, 1, 1])
        };
        let reduced = self.convolution_norm((&part("reduce"), &part("reduce_bn")), &sum, 1);
        let reduced = self.relu(&reduced);
        let logits = self.convolution(&part("select"), &reduced, 1);
        let logits = self.reshaped(&logits, &[0, 2, channels, 1, 1]);
        let shares = self.graph.node("Softmax", &[&logits], &[("axis", Int(1))]);
        let streams = self.reshaped(&streams, &[0, 2, channels, side, side]);
        let [one, other] = [0, 1].map(|index| {
            let index = self.graph.scalar_index(index);
            let [stream, share] =
                [&streams, &shares].map(|x| self.graph.node("Gather", &[x, &index], &[("axis", Int(1))]));
            self.graph.node("Mul", &[&stream, &share], &[])
        });
        self.graph.node("Add", &[&one, &other], &[])
    }

    /// A size of 0 keeps that of `x`.
    fn reshaped(&mut self, x: &str, sizes: &[i64]) -> String {
        let sizes = self.graph.integers(sizes);
        self.graph.node("Reshape", &[x, &sizes], &[])
    }
}
