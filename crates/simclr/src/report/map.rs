//! The section with the map: a picture of points with thumbnails on hover, and one of thumbnails.

use simclr_data::rng::Key;

use super::{
    Analysis,
    gallery::{named, shortened},
    thumbnails::Thumbnails,
};
use crate::{html::escaped, picture::color};

/// Pixels of a side of both pictures.
const SIDE: f64 = 640.0;
const MARGIN: f64 = 12.0;
/// Letters of a name in the page at most.
const LETTERS: usize = 120;
/// Classes in the legend at most.
const LEGEND: usize = 40;

/// Shows name, class and thumbnail of the point below the mouse, and one class alone after a click in the legend.
const SCRIPT: &str = "const dots=document.querySelectorAll('#map circle'),tip=document.getElementById('tip'),\
thumb=tip.querySelector('i'),words=tip.querySelector('span');dots.forEach((dot,at)=>{dot.addEventListener('mouseenter',event=>{\
words.textContent=names[at]+(kinds[at]<0?'':', '+classes[kinds[at]]);thumb.style.backgroundPosition=tiles[at]<0?'-99999px 0':\
'-'+tiles[at]%grid[0]*grid[1]+'px -'+Math.floor(tiles[at]/grid[0])*grid[1]+'px';tip.style.display='block';\
tip.style.left=event.pageX+14+'px';tip.style.top=event.pageY+14+'px'});dot.addEventListener('mouseleave',()=>{\
tip.style.display='none'})});let only=-1;document.querySelectorAll('#legend span').forEach((entry,at)=>{\
entry.addEventListener('click',()=>{only=only===at?-1:at;dots.forEach((dot,i)=>{\
dot.style.opacity=only<0||kinds[i]===only?'':'.06'})})});";

/// At most `points` rows on the map, in random order, so that no class covers the others.
pub(super) fn rows(analysis: &Analysis<'_>, points: usize) -> Vec<usize> {
    let mut rows =
        Key::choice(analysis.options.explore.seed, 2).stream().permutation(analysis.set.members.len());
    rows.truncate(points);
    rows
}

/// The section on `rows`; `thumbnails` may lack some of them.
pub(super) fn section(analysis: &Analysis<'_>, rows: &[usize], thumbnails: &Thumbnails) -> String {
    let set = &analysis.set;
    let mut text = format!(
        "<p>{} of {} images by {}. {} of the points have a thumbnail: move the mouse over one. A click on a class shows it alone.</p>\n",
        rows.len(),
        set.total,
        projection(analysis.variance),
        thumbnails.len()
    );
    text.push_str(&legend(analysis));
    let places = places(analysis, rows);
    text.push_str(&format!("<div class=\"maps\"><svg id=\"map\" viewBox=\"0 0 {SIDE} {SIDE}\" width=\"{SIDE}\" height=\"{SIDE}\">\n"));
    for (row, [x, y]) in rows.iter().zip(&places) {
        let fill = fill(set.labels[*row], set.classes.len());
        text.push_str(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{fill}\"/>"));
    }
    text.push_str("</svg>\n<div class=\"tiles\">\n");
    for (row, [x, y]) in apart(rows, &places, thumbnails.grid()[1] as f64) {
        let style = format!(
            ";left:{x:.0}px;top:{y:.0}px;outline:2px solid {}",
            fill(set.labels[row], set.classes.len())
        );
        text.push_str(&thumbnails.tile(row, &named(analysis, row), &style));
    }
    let data = script_data(analysis, rows, thumbnails);
    text + &format!(
        "</div></div>\n<div id=\"tip\"><i class=\"m\"></i> <span></span></div>\n<script>{data}{SCRIPT}</script>\n"
    )
}

/// What the places are, and how to read them.
fn projection(variance: Option<[f64; 2]>) -> String {
    match variance.map(|shares| shares.map(|share| 100.0 * share)) {
        Some([x, y]) => format!(
            "the first two principal components of h of unit length, which hold {x:.1} % and {y:.1} % of its variance. It is a linear view: \
             points that are apart are different, points that lie together may differ in the other components"
        ),
        None => "UMAP (15 neighbours by the cosine of h). Neighbours of h mostly lie together; sizes of groups and distances between them \
                 mean little"
            .into(),
    }
}

/// Numbers and names for the script. `<` is written as an escape, so that no name can end the script.
fn script_data(analysis: &Analysis<'_>, rows: &[usize], thumbnails: &Thumbnails) -> String {
    let set = &analysis.set;
    let names: Vec<String> = rows.iter().map(|row| shortened(set.name(*row), LETTERS)).collect();
    let kinds: Vec<i64> = rows.iter().map(|row| set.labels[*row].map_or(-1, |label| label as i64)).collect();
    let tiles: Vec<i64> = rows.iter().map(|row| thumbnails.place(*row).map_or(-1, |at| at as i64)).collect();
    let data = serde_json::json!([names, kinds, tiles, set.classes, thumbnails.grid()]);
    format!("const [names,kinds,tiles,classes,grid]={};", data.to_string().replace('<', "\\u003c"))
}

fn legend(analysis: &Analysis<'_>) -> String {
    let classes = &analysis.set.classes;
    if analysis.agreement.is_none() {
        return "<p>The set has no labels, so all points have one colour.</p>\n".into();
    }
    let entry = |(at, class): (usize, &String)| {
        format!(
            "<span><b style=\"background:{}\"></b>{}</span> ",
            fill(Some(at), classes.len()),
            escaped(&shortened(class, LETTERS))
        )
    };
    let entries: String = classes.iter().enumerate().take(LEGEND).map(entry).collect();
    let more = classes.len().saturating_sub(LEGEND);
    let more = if more > 0 { format!("and {more} more") } else { String::new() };
    format!("<p id=\"legend\">{entries}{more}</p>\n")
}

/// The palette while it suffices, else hues at the golden angle.
fn fill(label: Option<usize>, classes: usize) -> String {
    match label {
        None => "#888".into(),
        Some(at) if classes <= 10 => {
            let color = color(at);
            format!("#{:02x}{:02x}{:02x}", color.0, color.1, color.2)
        }
        Some(at) => format!("hsl({:.0} 65% 45%)", (at as f64 * 137.508) % 360.0),
    }
}

/// Pixels of the points, with the same scale on both axes.
fn places(analysis: &Analysis<'_>, rows: &[usize]) -> Vec<[f64; 2]> {
    let points: Vec<[f64; 2]> = rows.iter().map(|row| analysis.places[*row]).collect();
    let range = |axis: usize| {
        let values = points.iter().map(|point| point[axis]);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let ranges = [range(0), range(1)];
    let width = ranges.iter().map(|(low, high)| high - low).fold(1e-12, f64::max);
    let at = |point: &[f64; 2], axis: usize| {
        let (low, high) = ranges[axis];
        0.5 * SIDE + (point[axis] - 0.5 * (low + high)) / width * (SIDE - 2.0 * MARGIN)
    };
    points.iter().map(|point| [at(point, 0), SIDE - at(point, 1)]).collect()
}

/// At most one row of each cell of a grid, with the corner of its tile.
fn apart(rows: &[usize], places: &[[f64; 2]], tile: f64) -> Vec<(usize, [f64; 2])> {
    let mut taken = std::collections::HashSet::new();
    let mut found = Vec::new();
    for (row, place) in rows.iter().zip(places) {
        let cell = place.map(|at| (at / (tile + 4.0)) as i64);
        if taken.insert(cell) {
            found.push((*row, cell.map(|at| at as f64 * (tile + 4.0))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_do_not_overlap() {
        let found = apart(&[3, 4, 5], &[[1.0, 1.0], [30.0, 2.0], [37.0, 2.0]], 32.0);
        assert_eq!(found, [(3, [0.0, 0.0]), (5, [36.0, 0.0])]);
    }

    #[test]
    fn many_classes_have_colours_of_their_own() {
        let colors: std::collections::HashSet<String> = (0..100).map(|at| fill(Some(at), 100)).collect();
        assert!(colors.len() > 90, "{}", colors.len());
        assert_eq!((fill(Some(0), 10), fill(None, 10)), ("#0072b2".to_owned(), "#888".to_owned()));
    }
}
