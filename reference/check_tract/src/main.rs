use ndarray::{Array2, s};
use ndarray_npy::read_npy;
use tract_onnx::{
    prelude::*,
    tract_hir::internal::{DimLike, Factoid},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [model, views, h] = std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "expected MODEL.onnx VIEWS.npy H.npy")?;
    let model = tract_onnx::onnx().model_for_path(&model)?;
    let shape = model.input_fact(0)?.shape.clone();
    let [_, channels, side, _] = [0, 1, 2, 3].map(|axis| shape.dim(axis).and_then(|dim| dim.concretize()?.to_usize().ok()).unwrap_or(0));
    let model = model.into_optimized()?.into_runnable()?;
    let (views, h): (Array2<f32>, Array2<f32>) = (read_npy(views)?, read_npy(h)?);
    let mut worst = 0.0f32;
    for (row, expected) in h.outer_iter().enumerate() {
        let pixels = views.slice(s![2 * row, ..]).to_vec();
        let input = Tensor::from_shape(&[1, channels, side, side], &pixels)?;
        let outputs = model.run(tvec!(input.into()))?;
        let found = outputs[0].to_array_view::<f32>()?;
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        worst = differences.fold(worst, f32::max);
    }
    println!("{} images, {channels} channels, {side} px: tract differs by at most {worst:.1e}", h.nrows());
    Ok(())
}
