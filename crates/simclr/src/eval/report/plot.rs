//! Accuracy against the fraction of the labels as an SVG file. Series are labelled at their right ends instead of in a legend.

use plotters::{
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::picture::COLORS;

/// One plotted series.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) kind: SeriesKind,
    /// Fraction of the labels, accuracy and spread in percent, ascending in the fraction.
    pub(crate) points: Vec<(f64, f64, f64)>,
}

/// Colour by run, dash by row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeriesKind {
    /// Index of the run and of the row within it.
    Run { run: usize, row: usize },
    /// A control, drawn thin and grey.
    Control,
}

const CONTROL: RGBColor = RGBColor(120, 120, 120);

/// Pixels inside the axes.
const FIELD: (i32, i32) = (620, 480);
/// Margins.
const LEFT: i32 = 64;
const TOP: i32 = 16;
const BOTTOM: i32 = 48;
/// Minimum distance of labels and maximum width of a letter, in pixels.
const LINE_HEIGHT: i32 = 17;
const LETTER: i32 = 7;
/// Horizontal offset in pixels between neighbouring series, so that their error bars do not overlap, and between the first and
/// the last series at most.
const OFFSET: f64 = 5.0;
const TOTAL_OFFSET: f64 = 36.0;

/// Values to pixels.
struct Scale {
    /// Logarithms of the lowest and the highest fraction.
    shares: (f64, f64),
    top: f64,
}

impl Scale {
    fn of(lines: &[Series]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let lowest = points().map(|(share, ..)| *share).fold(1.0, f64::min);
        // A single column still needs a width.
        let low = lowest.log10().min(-0.3);
        let top = points().map(|(_, mean, std)| mean + std).fold(1.0, f64::max);
        Self { shares: (low, 0.0), top: (top * 1.06).min(102.0) }
    }

    fn x(&self, share: f64) -> i32 {
        // A margin on both sides for the horizontal offsets.
        let inside = f64::from(FIELD.0) * 0.88;
        let (low, high) = self.shares;
        LEFT + (f64::from(FIELD.0) * 0.06 + inside * (share.log10() - low) / (high - low)) as i32
    }

    fn y(&self, accuracy: f64) -> i32 {
        TOP + FIELD.1 - (f64::from(FIELD.1) * accuracy / self.top) as i32
    }
}

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The SVG text.
pub(crate) fn draw(lines: &[Series]) -> Result<String, Box<dyn std::error::Error>> {
    let letters = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0) as i32;
    let size = (LEFT + FIELD.0 + 28 + LETTER * letters, TOP + FIELD.1 + BOTTOM);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.0 as u32, size.1 as u32)).into_drawing_area();
        let scale = Scale::of(lines);
        let drawn = axes(&area, &scale, lines).and_then(|()| series(&area, &scale, lines));
        drawn.and_then(|()| Ok(area.present()?)).map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn font<'a>(size: i32, color: &'a RGBColor, at: Pos) -> TextStyle<'a> {
    ("sans-serif", size).into_font().color(color).pos(at)
}

/// Axes with grid lines at every fraction and at round accuracies.
fn axes(area: &Area<'_>, scale: &Scale, lines: &[Series]) -> Drawn {
    area.fill(&WHITE)?;
    let (right, bottom) = (LEFT + FIELD.0, TOP + FIELD.1);
    let (grid, below) = (BLACK.mix(0.12), Pos::new(HPos::Center, VPos::Top));
    let step = if scale.top > 50.0 { 10 } else { 5 };
    for accuracy in (0..=scale.top as i32).step_by(step) {
        let y = scale.y(f64::from(accuracy));
        area.draw(&PathElement::new([(LEFT, y), (right, y)], grid))?;
        let style = font(14, &BLACK, Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(accuracy.to_string(), (LEFT - 8, y), style))?;
    }
    let mut shares: Vec<f64> = lines.iter().flat_map(|line| &line.points).map(|point| point.0).collect();
    shares.sort_by(f64::total_cmp);
    shares.dedup();
    for share in shares {
        let x = scale.x(share);
        area.draw(&PathElement::new([(x, TOP), (x, bottom)], grid))?;
        // Three decimals: 100 * 0.07 is not exactly 7.
        let percent = (1e5 * share).round() / 1e3;
        area.draw(&Text::new(percent.to_string(), (x, bottom + 6), font(14, &BLACK, below)))?;
    }
    area.draw(&PathElement::new([(LEFT, TOP), (LEFT, bottom), (right, bottom)], BLACK))?;
    let middle = (LEFT + FIELD.0 / 2, bottom + 26);
    area.draw(&Text::new("share of the labels, %", middle, font(14, &BLACK, below)))?;
    let upwards = ("sans-serif", 14).into_font().transform(FontTransform::Rotate270).color(&BLACK);
    let upwards = upwards.pos(Pos::new(HPos::Center, VPos::Top));
    area.draw(&Text::new("test accuracy, %", (8, TOP + FIELD.1 / 2), upwards))?;
    Ok(())
}

fn series(area: &Area<'_>, scale: &Scale, lines: &[Series]) -> Drawn {
    let gaps = lines.len() as f64 - 1.0;
    let step = OFFSET.min(TOTAL_OFFSET / gaps.max(1.0));
    let offset = |index: usize| (step * (index as f64 - gaps / 2.0)).round() as i32;
    let mut ends = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let at = |share: f64, accuracy: f64| (scale.x(share) + offset(index), scale.y(accuracy));
        let color = line.kind.color();
        let path: Vec<(i32, i32)> = line.points.iter().map(|&(share, mean, _)| at(share, mean)).collect();
        stroke(area, line.kind, &path)?;
        for (&(share, mean, std), &point) in line.points.iter().zip(&path) {
            area.draw(&Circle::new(point, 3, color.filled()))?;
            let (low, high) = (at(share, mean - std), at(share, mean + std));
            for bar in [[low, high], cap(low), cap(high)].iter().filter(|_| std > 0.0) {
                area.draw(&PathElement::new(*bar, color))?;
            }
        }
        ends.extend(path.last().copied());
    }
    let wanted: Vec<i32> = ends.iter().map(|end| end.1).collect();
    for ((line, end), y) in lines.iter().zip(&ends).zip(spread(&wanted, TOP, TOP + FIELD.1)) {
        let (color, x) = (line.kind.color(), LEFT + FIELD.0 + 18);
        area.draw(&PathElement::new([(end.0 + 5, end.1), (x - 12, y), (x - 4, y)], color.mix(0.5)))?;
        let style = font(14, &color, Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(line.name.clone(), (x, y), style))?;
    }
    Ok(())
}

fn cap((x, y): (i32, i32)) -> [(i32, i32); 2] {
    [(x - 3, y), (x + 3, y)]
}

fn stroke(area: &Area<'_>, kind: SeriesKind, path: &[(i32, i32)]) -> Drawn {
    let (width, dash) = match kind {
        SeriesKind::Run { row: 0, .. } => (2, None),
        SeriesKind::Run { row, .. } => (2, Some(if row % 2 == 1 { (8, 5) } else { (2, 5) })),
        SeriesKind::Control => (1, None),
    };
    let style = kind.color().stroke_width(width);
    match dash {
        None => area.draw(&PathElement::new(path, style))?,
        Some((length, gap)) => area.draw(&DashedPathElement::new(path.to_vec(), length, gap, style))?,
    }
    Ok(())
}

impl SeriesKind {
    fn color(self) -> RGBColor {
        match self {
            Self::Run { run, .. } => COLORS[run % COLORS.len()],
            Self::Control => CONTROL,
        }
    }
}

/// The heights closest to `wanted` (least squares) that are [`LINE_HEIGHT`] apart, in the same order, and between `top` and
/// `bottom` if there is room.
fn spread(wanted: &[i32], top: i32, bottom: i32) -> Vec<i32> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&index| wanted[index]);
    // Blocks of touching labels: first height, and members.
    let mut blocks: Vec<(i32, Vec<usize>)> = Vec::new();
    for index in order {
        blocks.push((wanted[index], vec![index]));
        while let [.., (above, upper), (below, lower)] = &mut blocks[..] {
            if *above + LINE_HEIGHT * upper.len() as i32 <= *below {
                break;
            }
            upper.append(lower);
            // Height with the least squared displacement of the labels in the block.
            let free = |(place, index): (usize, &usize)| wanted[*index] - LINE_HEIGHT * place as i32;
            *above = upper.iter().enumerate().map(free).sum::<i32>() / upper.len() as i32;
            let last = bottom - LINE_HEIGHT * (upper.len() as i32 - 1);
            *above = (*above).min(last).max(top);
            blocks.pop();
        }
    }
    let mut places = vec![0; wanted.len()];
    for (first, members) in blocks {
        for (place, index) in members.into_iter().enumerate() {
            places[index] = first + LINE_HEIGHT * place as i32;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_never_overlap() {
        assert_eq!(spread(&[100, 200], 0, 480), [100, 200], "there is room");
        assert_eq!(spread(&[200, 200], 0, 480), [191, 208], "both move");
        assert_eq!(spread(&[480, 479, 478], 0, 480), [480, 463, 446], "order and borders are kept");
        let places = spread(&[50, 52, 60, 64, 300, 66], 0, 480);
        let mut sorted = places.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= LINE_HEIGHT), "{places:?}");
        assert_eq!(places[4], 300);
    }

    #[test]
    fn every_series_is_labelled_and_every_fraction_is_on_the_axis() {
        let line = |name: &str, kind, shares: &[f64]| Series {
            name: name.into(),
            kind,
            points: shares.iter().map(|share| (*share, 50.0, 1.0)).collect(),
        };
        let shares = [0.01, 0.07, 1.0];
        let run = |run, row| SeriesKind::Run { run, row };
        let lines = [
            line("a: trained h", run(0, 0), &shares),
            line("a: supervised", run(0, 1), &[1.0]),
            line("b: trained h", run(1, 0), &shares),
            line("chance", SeriesKind::Control, &shares),
        ];
        let svg = draw(&lines).unwrap();
        for text in ["a: trained h", "a: supervised", "b: trained h", "chance", "1", "7", "100"] {
            let alone = svg.lines().filter(|line| line.trim() == text).count();
            assert!(alone >= 1, "{text}: {svg}");
        }
        assert!(draw(&lines[1..2]).is_ok(), "a single column has a width");
    }
}
