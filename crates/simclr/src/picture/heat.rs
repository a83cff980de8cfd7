//! A matrix as coloured cells with their values.

use plotters::prelude::*;

use super::canvas::{Area, CENTER, Drawn, RIGHT, Svg, TITLE, colored, picture, text, width};

/// Width and height of a cell.
const CELL: (i32, i32) = (64, 36);
/// Colours of the lowest and the highest value.
const LOW: [f64; 3] = [247.0, 251.0, 255.0];
const HIGH: [f64; 3] = [8.0, 69.0, 148.0];

type Cells = [Vec<Option<f64>>];

pub(super) fn draw(title: &str, (rows, columns): (&[String], &[String]), cells: &Cells) -> Svg {
    let left = width(rows.iter()) + 16;
    let top = TITLE + 24;
    let size = (left + CELL.0 * columns.len() as i32 + 12, top + CELL.1 * rows.len() as i32 + 12);
    picture(size, title, |area| {
        for (at, name) in columns.iter().enumerate() {
            text(area, name, (left + CELL.0 * at as i32 + CELL.0 / 2, top - 12), CENTER)?;
        }
        for (at, name) in rows.iter().enumerate() {
            text(area, name, (left - 8, top + CELL.1 * at as i32 + CELL.1 / 2), RIGHT)?;
        }
        matrix(area, (left, top), cells)
    })
}

fn matrix(area: &Area<'_>, (left, top): (i32, i32), cells: &Cells) -> Drawn {
    let all = || cells.iter().flatten().flatten().copied().filter(|value| value.is_finite());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    for (row, values) in cells.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let corner = (left + CELL.0 * column as i32, top + CELL.1 * row as i32);
            let share = if high > low { (value - low) / (high - low) } else { 0.0 };
            let place = [corner, (corner.0 + CELL.0 - 2, corner.1 + CELL.1 - 2)];
            area.draw(&Rectangle::new(place, shade(share).filled()))?;
            let ink = if share > 0.55 { WHITE } else { BLACK };
            let middle = (corner.0 + CELL.0 / 2, corner.1 + CELL.1 / 2);
            colored(area, &format!("{value:.1}"), middle, CENTER, &ink)?;
        }
    }
    Ok(())
}

fn shade(share: f64) -> RGBColor {
    let mixed = |at: usize| (LOW[at] + share.clamp(0.0, 1.0) * (HIGH[at] - LOW[at])) as u8;
    RGBColor(mixed(0), mixed(1), mixed(2))
}
