//! Export as a folder of timm and the Hugging Face hub: `model.safetensors`, `config.json` with the architecture and the input transform,
//! and a model card, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the encoder.

use std::path::Path;

use serde_json::{Value, json};
use simclr_data::{
    augment::{EvalCrop, Interpolation},
    output,
};

use super::{
    card::{self, is_card},
    encoder::{self, EXPORTED, Exported},
};
use crate::{
    EvalError,
    checkpoint::write_atomically,
    device::DeviceChoice,
    encoder::{EncoderConfig, EncoderName, Padding, ResnetD, Shortcut},
    eval::features::{FrozenEncoder, load_encoder_on},
    train::RunFolder,
};

const CONFIG: output::Kind = output::Kind { name: "a configuration of timm", is_earlier: is_config };
const CARD: output::Kind = output::Kind { name: "a model card", is_earlier: is_card };

fn is_config(path: &Path) -> bool {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    config["pretrained_cfg"]["tag"] == "simclr"
}

/// Writes the encoder of the newest checkpoint of `run` into the folder `out`. `license` is the field of the model card.
///
/// # Errors
/// An encoder or an input transform that timm does not have; see also [`super::export_encoder`].
pub fn export_timm(run: &RunFolder, out: &Path, license: Option<&str>) -> Result<Exported, EvalError> {
    let frozen = load_encoder_on(run, Some(DeviceChoice::Cpu))?;
    let config = config(&frozen).map_err(|reason| EvalError::File { path: out.to_owned(), reason })?;
    let [weights, config_file, card] =
        ["model.safetensors", "config.json", "README.md"].map(|name| out.join(name));
    for (file, kind) in [(&weights, EXPORTED), (&config_file, CONFIG), (&card, CARD)] {
        output::check(file, kind, None)?;
    }
    let _held = RunFolder::around(&weights, Some(run)).map_err(Box::new)?;
    fs_err::create_dir_all(out)?;
    let exported = encoder::write(&frozen, &weights)?;
    write_atomically(&card, card::text(run, &frozen, license)?.as_bytes())?;
    write_atomically(&config_file, format!("{config:#}\n").as_bytes())?;
    Ok(Exported { path: out.to_owned(), ..exported })
}

/// `config.json`; the error states what timm lacks.
fn config(frozen: &FrozenEncoder) -> Result<Value, String> {
    let encoder = &frozen.config().encoder;
    let (channels, side) = (frozen.channels(), frozen.image_size());
    let architecture = architecture(encoder, side as i64)?;
    let is_vit = encoder.is_vit();
    let statistics = |values: &[f64], otherwise: f64| {
        if values.is_empty() { vec![otherwise; channels as usize] } else { values.to_vec() }
    };
    let transform = frozen.transform();
    if !transform.antialias {
        return Err("timm resizes with antialiasing, this run without (transform.antialias)".into());
    }
    let (crop, mode) = match transform.crop {
        EvalCrop::Whole => (1.0, "squash"),
        EvalCrop::Share(share) => (share, "center"),
    };
    let interpolation = match transform.interpolation {
        Interpolation::Bicubic => "bicubic",
        Interpolation::Bilinear => "bilinear",
    };
    let mut arguments = json!({});
    if channels != 3 {
        arguments["in_chans"] = json!(channels);
    }
    if is_vit {
        arguments["img_size"] = json!(side);
        arguments["patch_size"] = json!(encoder.patch);
        arguments["embed_dim"] = json!(frozen.feature_dim());
    }
    Ok(json!({
        "architecture": architecture,
        "num_classes": 0,
        "num_features": frozen.feature_dim(),
        "global_pool": if is_vit { "token" } else { "avg" },
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "simclr",
            "custom_load": false,
            "input_size": [channels, side, side],
            "fixed_input_size": is_vit,
            "interpolation": interpolation,
            "crop_pct": crop,
            "crop_mode": mode,
            "mean": statistics(&encoder.input_mean, 0.0),
            "std": statistics(&encoder.input_std, 1.0),
            "num_classes": 0,
            "pool_size": if is_vit { Value::Null } else { json!(vec![side.div_ceil(32); 2]) },
            "first_conv": if is_vit { "patch_embed.proj" } else { "conv1" },
            "classifier": if is_vit { "head" } else { "fc" },
        },
    }))
}

/// timm's name of the architecture, or what it lacks.
fn architecture(config: &EncoderConfig, side: i64) -> Result<String, String> {
    let name = match config.name {
        _ if config.file.is_some() => return Err("timm has no TorchScript modules".into()),
        EncoderName::ConvC3 | EncoderName::ConvC4 | EncoderName::ConvC7 => {
            return Err(format!("timm has no {}", config.name.as_str()));
        }
        EncoderName::VitTiny => return Ok("vit_tiny_patch16_224".into()),
        EncoderName::VitSmall => return Ok("vit_small_patch16_224".into()),
        EncoderName::VitBase => return Ok("vit_base_patch16_224".into()),
        resnet => resnet.as_str(),
    };
    let basic = matches!(config.name, EncoderName::Resnet18 | EncoderName::Resnet34);
    let stem = config.imagenet_stem(side);
    let lacks = [
        (config.width != 1.0, "encoder.width other than 1"),
        (!stem, "the CIFAR stem (encoder.stem)"),
        (config.padding == Padding::Same, "encoder.padding = \"same\""),
        (config.sk_ratio > 0.0, "encoder.sk_ratio above 0 in these networks"),
        (basic && config.shortcut == Shortcut::Projection, "encoder.shortcut = \"projection\""),
        (config.effective_resnet_d() == ResnetD::Official, "encoder.resnet_d = \"official\""),
    ];
    if let Some((_, what)) = lacks.iter().find(|(lacks, _)| *lacks) {
        return Err(format!("timm lacks {what}"));
    }
    Ok(format!("{name}{}", if config.effective_resnet_d() == ResnetD::Timm { "d" } else { "" }))
}
