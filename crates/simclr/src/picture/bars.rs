//! Horizontal bars with their spread; a group for each arm, a bar for each figure.

use plotters::prelude::*;

use super::{
    Spread,
    canvas::{Area, Drawn, LEFT, LETTER, RIGHT, Svg, TITLE, color, colored, picture, text, width},
};

/// Height of a bar with its gap, and of the gap between groups.
const BAR: i32 = 18;
const GAP: i32 = 8;
/// Pixels of the longest bar.
const LENGTH: i32 = 420;
/// Room for the value at the end of a bar.
const VALUE: i32 = 110;

type Groups = [(String, Vec<Option<Spread>>)];

pub(super) fn draw(title: &str, kinds: &[String], groups: &Groups) -> Svg {
    let left = width(groups.iter().map(|(name, _)| name)) + 16;
    let group = BAR * kinds.len() as i32 + GAP;
    let top = TITLE + if kinds.len() > 1 { 24 } else { 4 };
    let size = (left + LENGTH + VALUE, top + group * groups.len() as i32 + 8);
    picture(size, title, |area| {
        if kinds.len() > 1 {
            legend(area, (left, TITLE + 6), kinds)?;
        }
        let values = groups.iter().flat_map(|(_, bars)| bars.iter().flatten());
        let top_value =
            values.map(|(mean, std)| mean + std).filter(|value| value.is_finite()).fold(0.0, f64::max);
        let scale = f64::from(LENGTH) / if top_value > 0.0 { top_value } else { 1.0 };
        for (at, (name, bars)) in groups.iter().enumerate() {
            let y = top + group * at as i32;
            text(area, name, (left - 8, y + (group - GAP) / 2), RIGHT)?;
            for (kind, spread) in bars.iter().enumerate().filter_map(|(kind, bar)| Some((kind, (*bar)?))) {
                bar(area, (left, y + BAR * kind as i32), (kind, scale), spread)?;
            }
        }
        Ok(())
    })
}

fn legend(area: &Area<'_>, (mut x, y): (i32, i32), kinds: &[String]) -> Drawn {
    for (kind, name) in kinds.iter().enumerate() {
        area.draw(&Rectangle::new([(x, y - 5), (x + 10, y + 5)], color(kind).filled()))?;
        text(area, name, (x + 16, y), LEFT)?;
        x += 32 + LETTER * name.chars().count() as i32;
    }
    Ok(())
}

fn bar(area: &Area<'_>, (x, y): (i32, i32), (kind, scale): (usize, f64), (mean, std): Spread) -> Drawn {
    let at = |value: f64| x + (scale * value.max(0.0)) as i32;
    let middle = y + BAR / 2 - 1;
    area.draw(&Rectangle::new([(x, y), (at(mean), y + BAR - 3)], color(kind).mix(0.75).filled()))?;
    let ends = (at(mean - std), at(mean + std));
    if std > 0.0 {
        area.draw(&PathElement::new([(ends.0, middle), (ends.1, middle)], BLACK))?;
        for end in [ends.0, ends.1] {
            area.draw(&PathElement::new([(end, middle - 3), (end, middle + 3)], BLACK))?;
        }
    }
    let value = if std > 0.0 { format!("{mean:.1} ± {std:.1}") } else { format!("{mean:.1}") };
    colored(area, &value, (ends.1 + 6, middle), LEFT, &BLACK)
}
