//! Lines with their spread; each is named at its right end.

use plotters::prelude::*;

use super::canvas::{
    Area, CENTER, Drawn, LEFT, LEFT_TOP, RIGHT, Scale, Svg, TITLE, color, colored, number, picture, text,
    width,
};

/// Pixels inside the axes.
const FIELD: (i32, i32) = (520, 300);
const MARGIN_LEFT: i32 = 64;
const BOTTOM: i32 = 56;
/// Most ticks of the first axis.
const MANY: usize = 12;
/// Least distance of two names.
const LINE: i32 = 16;

type Series = [(String, Vec<(f64, f64, f64)>)];

pub(super) fn draw(title: &str, axes: &[String; 2], log: bool, series: &Series) -> Svg {
    let (left, top) = (MARGIN_LEFT, TITLE + 24);
    let (right, bottom) = (left + FIELD.0, top + FIELD.1);
    let points = || series.iter().flat_map(|(_, points)| points.iter().copied());
    let xs = Scale::of(points().map(|(x, ..)| x), (left, right), log);
    let ends = points().flat_map(|(_, y, spread)| [y - spread, y + spread]);
    let ys = Scale::of(ends, (bottom, top), false);
    let names = width(series.iter().map(|(name, _)| name));
    picture((right + names + 30, bottom + BOTTOM), title, |area| {
        grid(area, (&xs, &ys), points().map(|(x, ..)| x).collect(), ((left, right), (top, bottom)))?;
        text(area, &axes[1], (8, TITLE), LEFT_TOP)?;
        text(area, &axes[0], ((left + right) / 2, bottom + 36), CENTER)?;
        let mut taken = Vec::new();
        for (at, (name, points)) in series.iter().enumerate() {
            line(area, (&xs, &ys), at, points)?;
            let Some(end) = points.iter().rev().find(|(_, y, _)| y.is_finite()) else { continue };
            let y = free(ys.at(end.1), &taken);
            taken.push(y);
            colored(area, name, (right + 10, y), LEFT, &color(at))?;
        }
        Ok(())
    })
}

/// The height nearest to `wanted` that is [`LINE`] away from all in `taken`.
fn free(wanted: i32, taken: &[i32]) -> i32 {
    let is_free = |y: &i32| taken.iter().all(|other| (other - y).abs() >= LINE);
    (0..1000).flat_map(|step| [wanted - step, wanted + step]).find(is_free).unwrap_or(wanted)
}

fn grid(
    area: &Area<'_>,
    (xs, ys): (&Scale, &Scale),
    mut values: Vec<f64>,
    ((left, right), (top, bottom)): ((i32, i32), (i32, i32)),
) -> Drawn {
    let faint = BLACK.mix(0.12);
    for tick in ys.ticks() {
        let y = ys.at(tick);
        area.draw(&PathElement::new([(left, y), (right, y)], faint))?;
        text(area, &number(tick), (left - 8, y), RIGHT)?;
    }
    values.sort_by(f64::total_cmp);
    values.dedup();
    // Every value is a tick while they are few, else round ones; on a logarithmic axis an even choice.
    if values.len() > MANY && !xs.is_log() {
        values = xs.ticks();
    }
    for value in values.iter().step_by(values.len().div_ceil(MANY).max(1)) {
        let x = xs.at(*value);
        area.draw(&PathElement::new([(x, top), (x, bottom)], faint))?;
        text(area, &number(*value), (x, bottom + 14), CENTER)?;
    }
    Ok(area.draw(&PathElement::new([(left, top), (left, bottom), (right, bottom)], BLACK))?)
}

fn line(area: &Area<'_>, (xs, ys): (&Scale, &Scale), at: usize, points: &[(f64, f64, f64)]) -> Drawn {
    let finite: Vec<_> = points.iter().filter(|(_, y, _)| y.is_finite()).collect();
    let path: Vec<(i32, i32)> = finite.iter().map(|(x, y, _)| (xs.at(*x), ys.at(*y))).collect();
    area.draw(&PathElement::new(path.clone(), color(at).stroke_width(2)))?;
    for ((_, y, spread), point) in finite.iter().zip(&path) {
        if points.len() <= 20 {
            area.draw(&Circle::new(*point, 3, color(at).filled()))?;
        }
        if *spread > 0.0 {
            let (low, high) = (ys.at(y - spread), ys.at(y + spread));
            area.draw(&PathElement::new([(point.0, low), (point.0, high)], color(at)))?;
        }
    }
    Ok(())
}
