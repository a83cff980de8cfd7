//! Points in panels, coloured by class.

use plotters::prelude::*;

use super::canvas::{CENTER, Scale, Svg, TITLE, color, picture, text};

/// Side of a panel.
const SIDE: i32 = 340;
const GAP: i32 = 20;

pub(super) fn draw(title: &str, panels: &[(String, Vec<[f64; 3]>)]) -> Svg {
    let size = (GAP + (SIDE + GAP) * panels.len() as i32, TITLE + SIDE + 2 * GAP);
    picture(size, title, |area| {
        for (at, (name, points)) in panels.iter().enumerate() {
            let (left, top) = (GAP + (SIDE + GAP) * at as i32, TITLE + GAP);
            text(area, name, (left + SIDE / 2, top - 10), CENTER)?;
            area.draw(&Rectangle::new([(left, top), (left + SIDE, top + SIDE)], BLACK.mix(0.3)))?;
            let xs = Scale::of(points.iter().map(|point| point[0]), (left, left + SIDE), false);
            let ys = Scale::of(points.iter().map(|point| point[1]), (top + SIDE, top), false);
            for [x, y, class] in points {
                let style = color(*class as usize).mix(0.7).filled();
                area.draw(&Circle::new((xs.at(*x), ys.at(*y)), 3, style))?;
            }
        }
        Ok(())
    })
}
