//! The section on training: curves, and what they say.

use serde_json::Value;

use super::Analysis;
use crate::{
    EvalError,
    html::escaped,
    picture::Picture,
    train::recorded::{Recorded, RecordedMetrics},
};

/// Points of a curve at most; each is the mean over as many steps.
const POINTS: usize = 300;

/// Epoch, mean and spread, which is not drawn.
type Curve = Vec<(f64, f64, f64)>;

pub(super) fn section(analysis: &Analysis<'_>, plan: &Value) -> Result<String, EvalError> {
    let config = analysis.set.encoder.config();
    let (images, decides) = (config.train.batch as i64, config.chance_decides());
    let metrics = RecordedMetrics::read(analysis.run, images, decides)?;
    if metrics.steps.is_empty() {
        return Ok(
            "<p>The run recorded no steps: its weights were imported, or it has not begun.</p>\n".into()
        );
    }
    let contrastive = config.task.objective.is_contrastive();
    let mut text = String::from("<ul>\n");
    for line in statements(&metrics, contrastive) {
        text.push_str(&format!("<li>{}</li>\n", escaped(&line)));
    }
    text.push_str("</ul>\n<div class=\"curves\">\n");
    for picture in pictures(&metrics, contrastive, plan["config"]["train"]["epochs"].as_f64()) {
        text.push_str(&svg(&picture)?);
    }
    Ok(text + "</div>\n")
}

/// The picture as an element of a page.
pub(super) fn svg(picture: &Picture) -> Result<String, EvalError> {
    let text = picture.svg().map_err(|error| EvalError::encoding("a picture", error))?;
    Ok(format!("<div>{}</div>\n", text.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "")))
}

fn statements(metrics: &RecordedMetrics, contrastive: bool) -> Vec<String> {
    let (first, last) = (metrics.steps[0], metrics.steps[metrics.steps.len() - 1]);
    let mut lines = vec![format!(
        "Loss {:.3} at the first step, {:.3} at step {} (epoch {:.1}); at chance it would be {:.3}.",
        first.loss,
        last.loss,
        last.step + 1,
        last.epoch,
        last.chance_loss
    )];
    if contrastive {
        match &metrics.health[..] {
            [] => lines.push("No diagnostics of h and z were recorded (train.health_every).".into()),
            [(step, only)] => lines.push(format!("Step {}: {}.", step + 1, only.verdict())),
            [(early, first), .., (late, last)] => {
                lines.push(format!("Step {}: {}.", early + 1, first.verdict()));
                lines.push(format!("Step {}, the last diagnosis: {}.", late + 1, last.verdict()));
            }
        }
    }
    lines.extend(gradients(&metrics.steps));
    lines.push(online_knn(metrics));
    lines
}

/// The largest gradient norm against the median.
fn gradients(steps: &[Recorded]) -> Option<String> {
    let mut norms: Vec<f64> =
        steps.iter().map(|step| step.gradient_norm).filter(|norm| norm.is_finite()).collect();
    norms.sort_by(f64::total_cmp);
    let (median, largest) = (*norms.get(norms.len() / 2)?, *norms.last()?);
    let at = steps.iter().find(|step| step.gradient_norm == largest)?;
    let text = if largest > 100.0 * median { ": a jump, after which the loss may have suffered" } else { "" };
    Some(format!(
        "Gradient norm {median:.3} in the median, at most {largest:.3} (epoch {:.1}){text}.",
        at.epoch
    ))
}

fn online_knn(metrics: &RecordedMetrics) -> String {
    let (Some(first), Some(last)) = (metrics.online_knn.first(), metrics.online_knn.last()) else {
        return "No online kNN was recorded: it needs labels and train.knn_every above 0.".into();
    };
    let epoch = |step: u64| metrics.epoch(step);
    format!(
        "Online kNN on held-out training images: {:.1} % at epoch {:.0}, {:.1} % at epoch {:.0}.",
        100.0 * first.1,
        epoch(first.0),
        100.0 * last.1,
        epoch(last.0)
    )
}

fn pictures(metrics: &RecordedMetrics, contrastive: bool, epochs: Option<f64>) -> Vec<Picture> {
    let steps = &metrics.steps;
    let lines = |title: &str, series: Vec<(&str, Curve)>| Picture::Lines {
        title: title.to_owned(),
        axes: [epochs.map_or("epoch".into(), |epochs| format!("epoch of {epochs}")), String::new()],
        log: false,
        series: series.into_iter().map(|(name, curve)| (name.to_owned(), curve)).collect(),
    };
    let of = |value: fn(&Recorded) -> f64| thinned(steps.iter().map(|step| (step.epoch, value(step))));
    let accuracy = if contrastive { "contrastive accuracy, %" } else { "training accuracy, %" };
    let mut pictures = vec![
        lines("loss", vec![("loss", of(|step| step.loss)), ("chance", of(|step| step.chance_loss))]),
        lines(accuracy, vec![("", of(|step| 100.0 * step.accuracy))]),
        lines("gradient norm", vec![("", of(|step| step.gradient_norm))]),
        lines("learning rate", vec![("", of(|step| step.lr))]),
    ];
    if let Some((_, health)) = metrics.health.first().filter(|_| contrastive) {
        let points =
            metrics.health.iter().map(|(step, health)| (metrics.epoch(*step), health.effective_rank));
        pictures.push(lines(
            &format!("dimensions of h in use, of {}", health.features),
            vec![("", thinned(points))],
        ));
    }
    if !metrics.online_knn.is_empty() {
        let points = metrics.online_knn.iter().map(|(step, value)| (metrics.epoch(*step), 100.0 * value));
        pictures.push(lines("online kNN, %", vec![("", thinned(points))]));
    }
    pictures
}

/// Means over equal numbers of points.
fn thinned(points: impl Iterator<Item = (f64, f64)>) -> Curve {
    let points: Vec<(f64, f64)> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let mean = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, sum.1 / n, 0.0)
    };
    points.chunks(points.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_means() {
        let curve = thinned((0..900).map(|x| (f64::from(x), f64::from(x % 3))));
        assert_eq!((curve.len(), curve[0]), (POINTS, (1.0, 1.0, 0.0)));
        assert_eq!(thinned([(0.0, f64::NAN), (1.0, 2.0)].into_iter()), [(1.0, 2.0, 0.0)]);
    }
}
