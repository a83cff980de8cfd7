//! Vision transformers as ONNX operators. Layer norm and GELU are written out, so that runtimes without these operators run them.

use tch::Tensor;

use super::{
    Network,
    proto::Attribute::{Int, Ints},
};
use crate::encoder::VIT_EPSILON;

impl Network<'_> {
    pub(super) fn transformer(&mut self, x: &str) -> String {
        let mut x = self.tokens(x);
        let blocks = (0..).take_while(|block| self.has(&format!("blocks.{block}.norm1.weight"))).count();
        for block in 0..blocks {
            let name = format!("blocks.{block}");
            let normed = self.layer_norm(&format!("{name}.norm1"), &x);
            let attended = self.attention(&format!("{name}.attn"), &normed);
            x = self.graph.node("Add", &[&x, &attended], &[]);
            let normed = self.layer_norm(&format!("{name}.norm2"), &x);
            let hidden = self.dense(&format!("{name}.mlp.fc1"), &normed);
            let hidden = self.gelu(&hidden);
            let added = self.dense(&format!("{name}.mlp.fc2"), &hidden);
            x = self.graph.node("Add", &[&x, &added], &[]);
        }
        let first = self.graph.scalar_index(0);
        let class_token = self.graph.node("Gather", &[&x, &first], &[("axis", Int(1))]);
        self.layer_norm("norm", &class_token)
    }

    /// Patches `[N, 1 + patches, width]` behind a row of zeros, to which class token and positions are added.
    fn tokens(&mut self, x: &str) -> String {
        let [width, _, patch, _] = self.shape("patch_embed.proj.weight")[..] else { return x.to_owned() };
        let (weight, bias) =
            (self.parameter("patch_embed.proj.weight"), self.parameter("patch_embed.proj.bias"));
        let attributes = [("kernel_shape", Ints(vec![patch; 2])), ("strides", Ints(vec![patch; 2]))];
        let patches = self.graph.node("Conv", &[x, &weight, &bias], &attributes);
        let shape = self.graph.integers(&[0, width, -1]);
        let patches = self.graph.node("Reshape", &[&patches, &shape], &[]);
        let tokens = self.graph.node("Transpose", &[&patches], &[("perm", Ints(vec![0, 2, 1]))]);
        let pads = self.graph.integers(&[0, 1, 0, 0, 0, 0]);
        let tokens = self.graph.node("Pad", &[&tokens, &pads], &[]);
        let positions = self.tensor("pos_embed").copy();
        let class = positions.narrow(1, 0, 1) + self.tensor("cls_token");
        let rest = positions.narrow(1, 1, positions.size()[1] - 1);
        let positions = self.graph.constant("positions", &Tensor::cat(&[class, rest], 1));
        self.graph.node("Add", &[&tokens, &positions], &[])
    }

    /// x W^T + b over the last dimension.
    fn dense(&mut self, name: &str, x: &str) -> String {
        let weight = self.tensor(&format!("{name}.weight")).tr();
        let weight = self.graph.constant(&format!("{name}.weight"), &weight);
        let bias = self.parameter(&format!("{name}.bias"));
        let product = self.graph.node("MatMul", &[x, &weight], &[]);
        self.graph.node("Add", &[&product, &bias], &[])
    }

    fn layer_norm(&mut self, name: &str, x: &str) -> String {
        let mean_of = |network: &mut Self, x: &str| {
            network.graph.node("ReduceMean", &[x], &[("axes", Ints(vec![-1])), ("keepdims", Int(1))])
        };
        let mean = mean_of(self, x);
        let centred = self.graph.node("Sub", &[x, &mean], &[]);
        let square = self.graph.node("Mul", &[&centred, &centred], &[]);
        let variance = mean_of(self, &square);
        let epsilon = self.graph.scalar(VIT_EPSILON);
        let variance = self.graph.node("Add", &[&variance, &epsilon], &[]);
        let deviation = self.graph.node("Sqrt", &[&variance], &[]);
        let normed = self.graph.node("Div", &[&centred, &deviation], &[]);
        let (scale, shift) =
            (self.parameter(&format!("{name}.weight")), self.parameter(&format!("{name}.bias")));
        let scaled = self.graph.node("Mul", &[&normed, &scale], &[]);
        self.graph.node("Add", &[&scaled, &shift], &[])
    }

    /// x / 2 (1 + erf(x / sqrt 2)).
    fn gelu(&mut self, x: &str) -> String {
        let (root, one, half) =
            (self.graph.scalar(2f64.sqrt()), self.graph.scalar(1.0), self.graph.scalar(0.5));
        let scaled = self.graph.node("Div", &[x, &root], &[]);
        let erf = self.graph.node("Erf", &[&scaled], &[]);
        let more = self.graph.node("Add", &[&erf, &one], &[]);
        let product = self.graph.node("Mul", &[x, &more], &[]);
        self.graph.node("Mul", &[&product, &half], &[])
    }

    fn attention(&mut self, name: &str, x: &str) -> String {
        let width = self.shape(&format!("{name}.proj.bias"))[0];
        let heads = self.config.attention_heads();
        let qkv = self.dense(&format!("{name}.qkv"), x);
        let shape = self.graph.integers(&[0, 0, 3, heads, width / heads]);
        let qkv = self.graph.node("Reshape", &[&qkv, &shape], &[]);
        let qkv = self.graph.node("Transpose", &[&qkv], &[("perm", Ints(vec![2, 0, 3, 1, 4]))]);
        let [query, key, value] = [0, 1, 2].map(|part| {
            let part = self.graph.scalar_index(part);
            self.graph.node("Gather", &[&qkv, &part], &[("axis", Int(0))])
        });
        let key = self.graph.node("Transpose", &[&key], &[("perm", Ints(vec![0, 1, 3, 2]))]);
        let scores = self.graph.node("MatMul", &[&query, &key], &[]);
        let scale = self.graph.scalar(((width / heads) as f64).powf(-0.5));
        let scores = self.graph.node("Mul", &[&scores, &scale], &[]);
        let weights = self.graph.node("Softmax", &[&scores], &[("axis", Int(-1))]);
        let mixed = self.graph.node("MatMul", &[&weights, &value], &[]);
        let mixed = self.graph.node("Transpose", &[&mixed], &[("perm", Ints(vec![0, 2, 1, 3]))]);
        let shape = self.graph.integers(&[0, 0, width]);
        let mixed = self.graph.node("Reshape", &[&mixed, &shape], &[]);
        self.dense(&format!("{name}.proj"), &mixed)
    }
}
