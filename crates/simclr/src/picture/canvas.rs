//! Areas, colours and text of the pictures.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;
pub(super) type Svg = Result<String, Box<dyn std::error::Error>>;

/// Palette for colour-blind readers (Okabe and Ito 2008), without the yellow that is hard to see on white.
pub(crate) const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
/// Colours of classes and series after the six of [`COLORS`] (Tol's muted scheme), distinct for colour-blind readers.
const MORE_COLORS: [RGBColor; 4] =
    [RGBColor(136, 34, 85), RGBColor(51, 34, 136), RGBColor(120, 120, 120), RGBColor(153, 153, 51)];

/// Maximum width of a letter in pixels.
pub(super) const LETTER: i32 = 7;
/// Height of a title.
pub(super) const TITLE: i32 = 30;

pub(crate) fn color(index: usize) -> RGBColor {
    let index = index % (COLORS.len() + MORE_COLORS.len());
    COLORS.get(index).copied().unwrap_or_else(|| MORE_COLORS[index - COLORS.len()])
}

/// Draws on white, `size` pixels wide and high, below a title.
pub(super) fn picture(size: (i32, i32), title: &str, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Svg {
    let width = size.0.max(LETTER * title.chars().count() as i32 + 20);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width as u32, size.1 as u32)).into_drawing_area();
        let drawn = area.fill(&WHITE).map_err(Into::into).and_then(|()| text(&area, title, (8, 8), LEFT_TOP));
        let drawn = drawn.and_then(|()| draw(&area)).and_then(|()| Ok(area.present()?));
        drawn.map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// Anchors of text.
pub(super) const LEFT_TOP: (HPos, VPos) = (HPos::Left, VPos::Top);
pub(super) const LEFT: (HPos, VPos) = (HPos::Left, VPos::Center);
pub(super) const RIGHT: (HPos, VPos) = (HPos::Right, VPos::Center);
pub(super) const CENTER: (HPos, VPos) = (HPos::Center, VPos::Center);

pub(super) fn text(area: &Area<'_>, text: &str, at: (i32, i32), anchor: (HPos, VPos)) -> Drawn {
    colored(area, text, at, anchor, &BLACK)
}

pub(super) fn colored(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    (horizontal, vertical): (HPos, VPos),
    color: &RGBColor,
) -> Drawn {
    let style = ("sans-serif", 13).into_font().color(color).pos(Pos::new(horizontal, vertical));
    Ok(area.draw(&Text::new(text.to_owned(), at, style))?)
}

/// Widest of `names` in pixels.
pub(super) fn width<'a>(names: impl Iterator<Item = &'a String>) -> i32 {
    LETTER * names.map(|name| name.chars().count() as i32).max().unwrap_or(0)
}

/// A linear or logarithmic map of values to pixels.
pub(super) struct Scale {
    low: f64,
    high: f64,
    pixels: (i32, i32),
    log: bool,
}

impl Scale {
    /// Covers the finite ones of `values` with a margin of a twentieth.
    pub(super) fn of(values: impl Iterator<Item = f64>, pixels: (i32, i32), log: bool) -> Self {
        let finite =
            values.map(|value| if log { value.log10() } else { value }).filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let margin = if high > low { 0.05 * (high - low) } else { 0.5 };
        Self { low: low - margin, high: high + margin, pixels, log }
    }

    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    pub(super) fn at(&self, value: f64) -> i32 {
        let value = if self.log { value.log10() } else { value };
        let share = (value - self.low) / (self.high - self.low);
        let (from, to) = self.pixels;
        from + (share * f64::from(to - from)).round() as i32
    }

    /// About five round values, in the range.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|k| k * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|k| k as f64 * step).collect()
    }
}

/// Such as `0.1` or `51`, without trailing zeros.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::of([41.0, 52.0].into_iter(), (0, 100), false);
        assert_eq!(scale.ticks(), [45.0, 50.0]);
        let log = Scale::of([0.1, 10.0].into_iter(), (0, 100), true);
        assert_eq!((log.at(1.0), log.at(0.1) < 10), (50, true));
        assert_eq!((number(0.1), number(51.0), number(-1.25)), ("0.1".into(), "51".into(), "-1.25".into()));
    }
}
