//! Which tensors of a checkpoint are the layers of the official model: TF1 by the numbers in their names, TF2 by the object graph.

use crate::{
    BundleError,
    tensor_bundle::{Bundle, ObjectGraph},
};

/// Layers in the order in which the official code creates them: stem, then each block with its shortcut first.
#[derive(Debug, Default)]
pub struct Variables {
    /// Kernels of convolutions.
    pub convs: Vec<String>,
    /// Batch norms; a convolution that selects has none.
    pub norms: Vec<Norm>,
    /// Whether projection shortcuts average-pool, if that is recorded.
    pub pools: Option<bool>,
    /// Kernel and batch norm of the layers of the projection head.
    pub head: Vec<(String, Norm)>,
    /// Kernel and bias of the supervised classifier.
    pub classifier: Option<(String, String)>,
}

/// Tensors of a batch norm by kind, the shift only where there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// gamma
    pub weight: String,
    /// beta
    pub bias: Option<String>,
    /// moving_mean
    pub running_mean: String,
    /// moving_variance
    pub running_var: String,
}

impl Norm {
    fn of(find: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Some(Self {
            weight: find("gamma")?,
            bias: find("beta"),
            running_mean: find("moving_mean")?,
            running_var: find("moving_variance")?,
        })
    }
}

/// The variables of `bundle`; its shadow variables with `averaged`. `None` without layers of the official model.
pub fn find(bundle: &Bundle, averaged: bool) -> Result<Option<Variables>, BundleError> {
    let found = match bundle.object_graph()? {
        Some(graph) => of_graph(&graph),
        None => Some(of_names(bundle, averaged)),
    };
    Ok(found.filter(|found| !found.convs.is_empty()))
}

/// Ending of the shadow variables of `tf.train.ExponentialMovingAverage`.
pub const SHADOW: &str = "/ExponentialMovingAverage";

/// TF1 (`resnet.py`, `model_util.py`): `base_model/conv2d_N/kernel`, `base_model/batch_normalization_N/gamma`,
/// `head_contrastive/nl_N/dense/kernel`, `head_supervised/linear_layer/dense/kernel`.
fn of_names(bundle: &Bundle, averaged: bool) -> Variables {
    // A hub module may put all of it below another scope.
    let scope =
        bundle.names().find_map(|name| name.strip_suffix("base_model/conv2d/kernel")).unwrap_or_default();
    let held = |name: String| {
        let name = format!("{scope}{name}");
        let shadow = format!("{name}{SHADOW}");
        let name = if averaged && bundle.shape(&shadow).is_some() { shadow } else { name };
        bundle.shape(&name).is_some().then_some(name)
    };
    let numbered = |layer: &str, number: usize| {
        let ending = if number == 0 { String::new() } else { format!("_{number}") };
        format!("base_model/{layer}{ending}")
    };
    let norm = |place: String| Norm::of(|kind| held(format!("{place}/{kind}")));
    let head = |number: usize| {
        let places = [format!("head_contrastive/nl_{number}"), format!("head_contrastive/l_{number}")];
        let layer = |place: &String| {
            Some((held(format!("{place}/dense/kernel"))?, norm(format!("{place}/batch_normalization"))?))
        };
        places.iter().find_map(layer)
    };
    let classifier = |kind: &str| held(format!("head_supervised/linear_layer/dense/{kind}"));
    Variables {
        convs: (0..).map_while(|n| held(format!("{}/kernel", numbered("conv2d", n)))).collect(),
        norms: (0..).map_while(|n| norm(numbered("batch_normalization", n))).collect(),
        pools: None,
        head: (0..).map_while(head).collect(),
        classifier: classifier("kernel").zip(classifier("bias")),
    }
}

/// TF2 (`tf2/resnet.py`, `tf2/model.py`): attributes of `Model` and its layers.
fn of_graph(graph: &ObjectGraph) -> Option<Variables> {
    // A SavedModel and a training checkpoint hold the model in an attribute; a checkpoint of the model alone is the model.
    let model = graph.descend(0, "model").unwrap_or(0);
    let resnet = graph.descend(model, "resnet_model")?;
    let mut found = Variables::default();
    let layers = |place, name| graph.list(place, name);
    found.add_all(graph, &layers(resnet, "initial_conv_relu_max_pool"));
    for group in graph.list(resnet, "block_groups") {
        for block in graph.list(group, "layers") {
            let shortcut = [layers(block, "shortcut_layers"), layers(block, "projection_layers")].concat();
            // With pooling, the convolution is not the first layer.
            let conv = shortcut.iter().position(|&layer| graph.descend(layer, "conv2d").is_some());
            found.pools = conv.map(|at| at > 0).or(found.pools);
            found.add_all(graph, &shortcut);
            let branch = ["conv2d_bn_layers", "conv_relu_dropblock_layers"].map(|name| layers(block, name));
            found.add_all(graph, &branch.concat());
        }
    }
    let variable = |object, path: &str| graph.variable(object, path).map(str::to_owned);
    for layer in
        graph.descend(model, "_projection_head").map_or_else(Vec::new, |head| layers(head, "linear_layers"))
    {
        let kernel = variable(layer, "dense/kernel");
        found.head.extend(kernel.zip(norm(graph, layer, "bn_relu/bn")));
    }
    let classifier = |kind: &str| variable(model, &format!("supervised_head/linear_layer/dense/{kind}"));
    found.classifier = classifier("kernel").zip(classifier("bias"));
    Some(found)
}

fn norm(graph: &ObjectGraph, object: usize, path: &str) -> Option<Norm> {
    Norm::of(|kind| graph.variable(object, &format!("{path}/{kind}")).map(str::to_owned))
}

impl Variables {
    /// Adds the convolutions and batch norms of `Conv2dFixedPadding`, `BatchNormRelu` and `SK_Conv2D` among `layers`.
    fn add_all(&mut self, graph: &ObjectGraph, layers: &[usize]) {
        for &layer in layers {
            for path in ["conv2d", "conv2d_fixed_padding/conv2d", "conv2d_0", "conv2d_1"] {
                self.convs.extend(graph.variable(layer, &format!("{path}/kernel")).map(str::to_owned));
            }
            for path in ["bn", "batch_norm_relu/bn", "batch_norm_relu_1/bn"] {
                self.norms.extend(norm(graph, layer, path));
            }
        }
    }
}
