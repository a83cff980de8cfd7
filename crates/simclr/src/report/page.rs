//! The page: its sections in order, within the limit of bytes.

use super::{
    Analysis, MARK, evaluation, facts, findings, map,
    thumbnails::{Look, Thumbnails},
    training, views,
};
use crate::{
    EvalError,
    html::{escaped, page},
    train::Observer,
};

const STYLE: &str = "body{max-width:84rem}nav a{margin-right:1rem}figure{margin:0;display:inline-block;vertical-align:top}\
figcaption{font-size:12px;text-align:center;min-height:1.2em}.row{display:flex;gap:8px;align-items:flex-start;margin:10px 0;\
flex-wrap:wrap}.text{width:15rem;font-size:13px;overflow-wrap:anywhere}.pairs{display:grid;\
grid-template-columns:repeat(auto-fill,minmax(24rem,1fr))}.pair{margin:4px 0}.curves{display:grid;\
grid-template-columns:repeat(auto-fit,minmax(34rem,1fr));gap:8px}.maps{display:flex;flex-wrap:wrap;gap:12px}\
.maps svg{border:1px solid #ccc}.tiles{position:relative;width:640px;height:640px;border:1px solid #ccc;overflow:hidden}\
.tiles i{position:absolute}#tip{display:none;position:absolute;background:#fff;border:1px solid #888;padding:6px;\
font-size:13px;max-width:20rem;overflow-wrap:anywhere;pointer-events:none}#tip i{zoom:3}#legend span{cursor:pointer;white-space:nowrap;\
margin-right:.6rem}#legend b{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem}\
.facts td,.facts th{text-align:left;overflow-wrap:anywhere}.facts td:first-child{white-space:nowrap}pre{font-size:12px;background:#f6f6f6;padding:1rem}\n";

/// Thumbnails of the map and of the galleries; base64 is a third larger than bytes, and the rest of the page has two megabytes.
const ON_MAP: Look = Look { name: "m", side: 32, budget: 4_000_000 };
const IN_GALLERIES: Look = Look { name: "g", side: 64, budget: 2_500_000 };

/// The page with at most `points` images on its map, and the number of these with a thumbnail.
pub(super) fn html(
    analysis: &Analysis<'_>,
    points: usize,
    observer: &mut dyn Observer,
) -> Result<(String, usize), EvalError> {
    let [plan, environment] = facts::recorded(analysis);
    observer.message("thumbnails");
    let threads = analysis.threads();
    let points = map::rows(analysis, points);
    let on_map = Thumbnails::of(&analysis.set, points.clone(), &ON_MAP, threads)?;
    let large = Thumbnails::of(&analysis.set, findings::rows(analysis), &IN_GALLERIES, threads)?;
    observer.message("views");
    let [views, style_of_views] = views::section(analysis)?;
    let sections = [
        ("Training", training::section(analysis, &plan)?),
        ("Augmented views", views),
        ("Map", map::section(analysis, &points, &on_map)),
        ("Nearest neighbours", findings::examples(analysis, &large)),
        ("Odd images", findings::odd(analysis, &large)),
        ("Label efficiency", evaluation::section(analysis)?),
        ("Near-duplicates", findings::duplicates(analysis, &large)),
        ("Possible label errors", findings::suspects(analysis, &large)),
        ("Facts", facts::section(analysis, &plan, &environment)?),
    ];
    let name =
        analysis.run.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let title = format!("simclr report: {name}");
    let style = [STYLE, &on_map.style(), &large.style(), &style_of_views].concat();
    let html = page(&title, &style, &body(analysis, &title, &sections));
    Ok((html + MARK, on_map.len()))
}

fn body(analysis: &Analysis<'_>, title: &str, sections: &[(&str, String)]) -> String {
    let set = &analysis.set;
    let mut body = format!("<h1>{}</h1>\n", escaped(title));
    let classes = if analysis.agreement.is_some() {
        format!(", {} classes", set.classes.len())
    } else {
        ", no labels".into()
    };
    let summary = format!(
        "{}: {} of {} images analysed{classes}. h has {} dimensions; similarities are cosines of h.",
        analysis.data.display(),
        set.members.len(),
        set.total,
        set.h.size()[1]
    );
    body.push_str(&format!("<p>{}</p>\n<nav>", escaped(&summary)));
    for (at, (name, _)) in sections.iter().enumerate() {
        body.push_str(&format!("<a href=\"#s{at}\">{name}</a>"));
    }
    body.push_str("</nav>\n");
    for (at, (name, text)) in sections.iter().enumerate() {
        body.push_str(&format!("<h2 id=\"s{at}\">{name}</h2>\n{text}"));
    }
    body
}
