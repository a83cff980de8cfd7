//! A reader of exported models that runs their operators with libtorch, for the comparison before an export succeeds.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use crate::tensor_bundle::wire::{Damage, Fields, Value};

/// A model as read from its bytes.
#[derive(Default)]
pub(super) struct Model {
    nodes: Vec<Node>,
    values: HashMap<String, Tensor>,
}

#[derive(Default)]
struct Node {
    operator: String,
    inputs: Vec<String>,
    output: String,
    integers: HashMap<String, Vec<i64>>,
    numbers: HashMap<String, f64>,
}

impl Model {
    /// # Errors
    /// Bytes that are no model.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        const GRAPH: u64 = 7;
        const NODE: u64 = 1;
        const INITIALIZER: u64 = 5;
        let mut model = Self::default();
        for field in Fields(bytes) {
            let (GRAPH, graph) = field? else { continue };
            for field in Fields(graph.bytes()?) {
                match field? {
                    (NODE, node) => model.nodes.push(Node::parse(node.bytes()?)?),
                    (INITIALIZER, tensor) => model.values.extend([constant(tensor.bytes()?)?]),
                    _ => {}
                }
            }
        }
        Ok(model)
    }

    /// The value `output` for the value `images` of the input `input`.
    ///
    /// # Errors
    /// An operator that the exporter does not write.
    pub(super) fn run(mut self, (input, images): (&str, &Tensor), output: &str) -> Result<Tensor, Damage> {
        self.values.insert(input.to_owned(), images.shallow_clone());
        for node in &self.nodes {
            let found = |name: &String| {
                self.values.get(name).map(Tensor::shallow_clone).ok_or_else(|| format!("no value `{name}`"))
            };
            let inputs = node.inputs.iter().map(found).collect::<Result<Vec<Tensor>, Damage>>()?;
            let value = node.apply(&inputs)?;
            self.values.insert(node.output.clone(), value);
        }
        self.values.remove(output).ok_or_else(|| format!("no value `{output}`"))
    }
}

/// Name and values of a `TensorProto`.
fn constant(bytes: &[u8]) -> Result<(String, Tensor), Damage> {
    let (mut dims, mut kind, mut name, mut raw) = (Vec::new(), Kind::Float, String::new(), &[][..]);
    for field in Fields(bytes) {
        match field? {
            (1, side) => dims.push(side.size()?),
            (2, Value::Varint(7)) => kind = Kind::Int64,
            (8, text) => name = text.text()?,
            (9, bytes) => raw = bytes.bytes()?,
            _ => {}
        }
    }
    Ok((name, Tensor::from_data_size(raw, &dims, kind)))
}

impl Node {
    fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let mut node = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, input) => node.inputs.push(input.text()?),
                (2, output) => node.output = output.text()?,
                (4, operator) => node.operator = operator.text()?,
                (5, attribute) => node.attribute(attribute.bytes()?)?,
                _ => {}
            }
        }
        Ok(node)
    }

    fn attribute(&mut self, bytes: &[u8]) -> Result<(), Damage> {
        let (mut name, mut integers, mut number) = (String::new(), Vec::new(), None);
        for field in Fields(bytes) {
            match field? {
                (1, text) => name = text.text()?,
                (2, Value::Fixed32(bits)) => number = Some(f64::from(f32::from_bits(bits))),
                (3 | 8, Value::Varint(value)) => integers.push(value as i64),
                _ => {}
            }
        }
        self.numbers.extend(number.map(|number| (name.clone(), number)));
        self.integers.insert(name, integers);
        Ok(())
    }

    fn list(&self, name: &str) -> Vec<i64> {
        self.integers.get(name).cloned().unwrap_or_default()
    }

    fn axis(&self) -> i64 {
        self.list("axis").first().copied().unwrap_or(0)
    }

    fn apply(&self, inputs: &[Tensor]) -> Result<Tensor, Damage> {
        Ok(match (&self.operator[..], inputs) {
            ("Identity", [x]) => x.shallow_clone(),
            ("Add", [a, b]) => a + b,
            ("Sub", [a, b]) => a - b,
            ("Mul", [a, b]) => a * b,
            ("Div", [a, b]) => a / b,
            ("Sqrt", [x]) => x.sqrt(),
            ("Erf", [x]) => x.erf(),
            ("Relu", [x]) => x.relu(),
            ("MatMul", [a, b]) => a.matmul(b),
            ("Gemm", [x, weight, bias]) => x.linear(weight, Some(bias)),
            ("Softmax", [x]) => x.softmax(self.axis(), Kind::Float),
            ("Gather", [x, index]) => x.select(self.axis(), index.int64_value(&[])),
            ("Transpose", [x]) => x.permute(self.list("perm")),
            ("Flatten", [x]) => x.flatten(1, -1),
            ("GlobalAveragePool", [x]) => x.mean_dim([2i64, 3].as_slice(), true, Kind::Float),
            ("ReduceMean", [x]) => x.mean_dim(self.list("axes"), true, Kind::Float),
            ("Reshape", [x, shape]) => x.reshape(reshaped(x, shape)),
            ("Pad", [x, pads]) => x.constant_pad_nd(padding(pads)),
            ("BatchNormalization", [x, scale, shift, mean, var]) => {
                let epsilon = self.numbers.get("epsilon").copied().unwrap_or(1e-5);
                x.batch_norm(Some(scale), Some(shift), Some(mean), Some(var), false, 0.0, epsilon, false)
            }
            ("Conv", [x, weight, bias @ ..]) => {
                let pads = self.list("pads").into_iter().chain([0, 0]).take(2).collect::<Vec<_>>();
                x.conv2d(weight, bias.first(), self.list("strides"), pads, [1, 1], 1)
            }
            ("MaxPool", [x]) => self.max_pool(x),
            ("AveragePool", [x]) => self.average_pool(x),
            (other, inputs) => return Err(format!("operator `{other}` of {} inputs", inputs.len())),
        })
    }

    /// Zeros outside count with `count_include_pad` only.
    fn average_pool(&self, x: &Tensor) -> Tensor {
        let [top, left, bottom, right] = self.list("pads")[..] else { return x.shallow_clone() };
        let sums = |x: &Tensor| {
            let padded = x.constant_pad_nd([left, right, top, bottom]);
            padded.avg_pool2d(self.list("kernel_shape"), self.list("strides"), [0, 0], false, false, 1)
        };
        let outside = if self.list("count_include_pad") == [1] {
            sums(&x.ones_like()).max()
        } else {
            sums(&x.ones_like())
        };
        sums(x) / outside
    }

    /// Positions outside do not count.
    fn max_pool(&self, x: &Tensor) -> Tensor {
        let pads = self.list("pads");
        let padded = match pads[..] {
            [top, left, bottom, right] => x.pad([left, right, top, bottom], "constant", f64::NEG_INFINITY),
            _ => x.shallow_clone(),
        };
        padded.max_pool2d(self.list("kernel_shape"), self.list("strides"), [0, 0], [1, 1], false)
    }
}

/// The sizes of `shape`, 0 meaning that of `x`.
fn reshaped(x: &Tensor, shape: &Tensor) -> Vec<i64> {
    let own = x.size();
    let sizes = (0..shape.size()[0]).map(|at| shape.int64_value(&[at]));
    sizes.enumerate().map(|(at, size)| if size == 0 { own[at] } else { size }).collect()
}

/// From the starts and ends of all dimensions to pairs, the last dimension first.
fn padding(pads: &Tensor) -> Vec<i64> {
    let dimensions = pads.size()[0] / 2;
    let pair = |at: i64| [pads.int64_value(&[at]), pads.int64_value(&[at + dimensions])];
    (0..dimensions).rev().flat_map(pair).collect()
}
