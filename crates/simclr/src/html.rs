//! Pieces of an HTML page that needs no other file.

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}\
td:first-child,th:first-child{text-align:left}.verdict{font-size:1.3rem;font-weight:bold}svg{max-width:100%;height:auto}\
code{background:#f3f3f3;padding:.1rem .3rem}.overflow{overflow-x:auto}";

/// Rows of cells, the first of them headings.
pub type Rows = Vec<Vec<String>>;

/// A whole page; `title` is text, `style` CSS after the common rules, `body` HTML.
pub fn page(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title><style>{STYLE}{style}</style></head><body>\n\
         {body}</body></html>\n",
        escaped(title)
    )
}

/// Text for an element or for an attribute in double quotes.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A table that scrolls where it is wider than the page; cells are text.
pub fn table(rows: &[Vec<String>]) -> String {
    let row = |(at, cells): (usize, &Vec<String>)| {
        let tag = if at == 0 { "th" } else { "td" };
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let rows: String = rows.iter().enumerate().map(row).collect();
    format!("<div class=\"overflow\"><table>\n{rows}</table></div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_everywhere() {
        let rows = vec![vec!["x<y".to_owned(), "\"&\"".to_owned()], vec!["1".to_owned(), "2".to_owned()]];
        let table = table(&rows);
        assert!(table.contains("<th>x&lt;y</th><th>&quot;&amp;&quot;</th>"), "{table}");
        assert!(page("a<b", "", "<p>c</p>\n").contains("<title>a&lt;b</title>"));
    }
}
