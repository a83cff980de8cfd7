//! The messages of ONNX (onnx.proto of version 1.12) that an encoder needs, encoded as protocol buffers.

use tch::{Device, Kind, Tensor};

/// IR version of ONNX 1.12, and its operator set.
const IR_VERSION: u64 = 8;
const OPSET: u64 = 17;
/// `TensorProto.DataType`.
const FLOAT: u64 = 1;
const INT64: u64 = 7;
/// `AttributeProto.AttributeType`.
const FLOAT_ATTRIBUTE: u64 = 1;
const INT_ATTRIBUTE: u64 = 2;
const INTS_ATTRIBUTE: u64 = 7;

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// An attribute of an operator.
pub(super) enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
}

/// Operators and constants in the order of execution.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<Message>,
    constants: Vec<Message>,
    /// Names of outputs are numbered.
    count: usize,
}

impl Graph {
    /// A constant of type f32 or i64; returns its name.
    pub(super) fn constant(&mut self, name: &str, value: &Tensor) -> String {
        let is_int = value.kind() == Kind::Int64;
        let kind = if is_int { Kind::Int64 } else { Kind::Float };
        let value = value.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
        let mut raw = vec![0; value.numel() * kind.elt_size_in_bytes()];
        value.copy_data_u8(&mut raw, value.numel());
        let dims =
            value.size().into_iter().fold(Message::default(), |message, side| message.number(1, side as u64));
        let tensor = dims.number(2, if is_int { INT64 } else { FLOAT }).text(8, name).bytes(9, &raw);
        self.constants.push(tensor);
        name.to_owned()
    }

    /// A constant list of integers.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        self.count += 1;
        self.constant(&format!("integers_{}", self.count), &Tensor::from_slice(values))
    }

    /// A constant index without dimensions.
    pub(super) fn scalar_index(&mut self, index: i64) -> String {
        self.count += 1;
        self.constant(&format!("index_{}", self.count), &Tensor::from(index))
    }

    /// A constant number.
    pub(super) fn scalar(&mut self, value: f64) -> String {
        self.count += 1;
        self.constant(&format!("number_{}", self.count), &Tensor::from(value as f32))
    }

    /// An operator with one output, the name of which is returned.
    pub(super) fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        self.count += 1;
        let output = format!("{}_{}", operator.to_lowercase(), self.count);
        self.node_to(&output, operator, inputs, attributes);
        output
    }

    /// [`Graph::node`] with a given name of the output.
    pub(super) fn node_to(
        &mut self,
        output: &str,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        let node = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
        let node = node.text(2, output).text(3, output).text(4, operator);
        let node = attributes.iter().fold(node, |node, (name, value)| {
            let attribute = Message::default().text(1, name);
            let attribute = match value {
                Attribute::Float(value) => attribute.float(2, *value).number(20, FLOAT_ATTRIBUTE),
                Attribute::Int(value) => attribute.number(3, *value as u64).number(20, INT_ATTRIBUTE),
                Attribute::Ints(values) => {
                    let filled =
                        values.iter().fold(attribute, |message, &value| message.number(8, value as u64));
                    filled.number(20, INTS_ATTRIBUTE)
                }
            };
            node.message(5, &attribute)
        });
        self.nodes.push(node);
    }

    /// The model: input `input` `[N, shape]` and outputs `[N, width]`, with a batch of any size.
    pub(super) fn into_model(
        self,
        (input, shape): (&str, &[i64]),
        outputs: &[(&str, i64)],
        metadata: impl Iterator<Item = (String, String)>,
    ) -> Vec<u8> {
        let graph = self.nodes.iter().fold(Message::default(), |graph, node| graph.message(1, node));
        let graph =
            self.constants.iter().fold(graph.text(2, "encoder"), |graph, tensor| graph.message(5, tensor));
        let graph = graph.message(11, &value_info(input, shape));
        let graph = outputs
            .iter()
            .fold(graph, |graph, (name, width)| graph.message(12, &value_info(name, &[*width])));
        let opset = Message::default().text(1, "").number(2, OPSET);
        let model =
            Message::default().number(1, IR_VERSION).text(2, "simclr").text(3, env!("CARGO_PKG_VERSION"));
        let model = model.message(7, &graph).message(8, &opset);
        let entry = |(key, value): (String, String)| Message::default().text(1, &key).text(2, &value);
        metadata.map(entry).fold(model, |model, entry| model.message(14, &entry)).0
    }
}

/// A `ValueInfoProto` of f32 values `[N, shape]`.
fn value_info(name: &str, shape: &[i64]) -> Message {
    let batch = Message::default().text(2, "N");
    let sides = shape.iter().map(|&side| Message::default().number(1, side as u64));
    let shape = std::iter::once(batch).chain(sides);
    let shape = shape.fold(Message::default(), |message, side| message.message(1, &side));
    let tensor = Message::default().number(1, FLOAT).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}
