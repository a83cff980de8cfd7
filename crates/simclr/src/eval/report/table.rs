//! Tables for the terminal.

use super::{
    per_class::{ClassRecall, PerClass},
    results::{Cell, Results, TransferRow, Tuned},
};

/// Most classes of a printed confusion matrix; of more classes only the worst are printed.
const PRINTED: usize = 20;
pub(super) const WORST: usize = 10;

impl Results {
    /// Test accuracy in percent, aligned for a terminal, notes below.
    pub fn table(&self) -> String {
        let transform = self.run.transform.as_ref().map(|transform| format!("; input: {transform}"));
        let transform = transform.unwrap_or_default();
        let mut text = format!("test accuracy in %, {} test images{transform}\n", self.data.test_images);
        text.push_str(&aligned(&self.lines()));
        text.push_str(&format!("linear classifier: {}\n", self.protocol.linear));
        text.extend(self.lambdas());
        for row in &self.rows {
            let title = |name: &str| format!("\n{name} on {}, all labels", row.name);
            text.extend(row.per_class.iter().map(|(name, found)| found.text(&title(name))));
        }
        text.extend(self.protocol.trained.iter().map(|(name, protocol)| format!("{name}: {protocol}\n")));
        if !self.transfer.is_empty() {
            text.push_str("\ntransfer, test figures in %: sum cross-entropy + lambda/2 |W|^2 on features as they are, L-BFGS\n");
            text.push_str(&aligned(&self.transfer_lines()));
            text.extend(self.transfer.iter().flat_map(TransferRow::hyper_parameters));
        }
        text.extend(self.notes.iter().map(|note| format!("note: {note}\n")));
        text
    }

    fn lines(&self) -> Vec<Vec<String>> {
        let (retrieval, columns) = (self.has_retrieval(), self.columns());
        let text = |cell: Option<&Cell>| cell.map_or("-".into(), Cell::text);
        let mut lines = vec![self.headings()];
        lines.extend(self.rows.iter().map(|row| {
            let frozen = [Some(&row.knn), Some(&row.knn_plain), retrieval.then_some(&row.retrieval)];
            let frozen = frozen.into_iter().flatten().map(|cell| text(cell.as_ref()));
            let by_labels = columns.iter().map(|column| text(row.in_column_of(column)));
            std::iter::once(row.name.clone()).chain(frozen).chain(by_labels).collect()
        }));
        lines
    }

    fn headings(&self) -> Vec<String> {
        let k = self.protocol.knn_k;
        let mut headings = vec![String::new(), format!("kNN (k={k})"), "plain kNN".into()];
        if self.has_retrieval() {
            headings.push(format!("precision at {}", self.protocol.retrieval_k));
        }
        let columns = self.columns().into_iter();
        headings.extend(columns.map(|column| format!("{} ({})", column.column_name(), column.labels)));
        headings
    }

    fn has_retrieval(&self) -> bool {
        self.rows.iter().any(|row| row.retrieval.is_some())
    }

    /// A line for each row with a regularised classifier.
    fn lambdas(&self) -> impl Iterator<Item = String> {
        self.rows.iter().filter_map(|row| {
            let cell = row.by_labels.last().filter(|cell| !cell.lambdas.is_empty())?;
            let lambdas: Vec<String> = cell.lambdas.iter().map(|lambda| format!("{lambda:.0e}")).collect();
            Some(format!("lambda of {} with all labels: {}\n", row.name, lambdas.join(", ")))
        })
    }

    fn transfer_lines(&self) -> Vec<Vec<String>> {
        let mut headings =
            ["data", "metric", "images", "trained h", "random-init h", "lambda", "chosen on"].to_vec();
        let tuned = self.transfer.iter().any(|row| row.finetuned.is_some());
        if tuned {
            headings.extend(["fine-tuned", "fresh weights"]);
        }
        let headings = headings.into_iter().map(str::to_owned).collect();
        std::iter::once(headings).chain(self.transfer.iter().map(|row| row.line(tuned))).collect()
    }
}

impl TransferRow {
    fn line(&self, tuned: bool) -> Vec<String> {
        let percent =
            |figure: Option<f64>| figure.map_or("-".into(), |figure| format!("{:.1}", 100.0 * figure));
        let mut line = vec![
            self.data.clone(),
            self.metric.name().into(),
            format!("{} + {}", self.images.0, self.images.1),
            percent(Some(self.trained)),
            percent(self.random_init),
            format!("{:.1e}", self.lambda),
            self.validation.clone(),
        ];
        if tuned {
            line.extend(
                [&self.finetuned, &self.fresh].map(|tuned| percent(tuned.as_ref().map(|t| t.figure))),
            );
        }
        line
    }

    /// A line for each fine-tuned network with its chosen hyper-parameters.
    fn hyper_parameters(&self) -> impl Iterator<Item = String> {
        let line = |(name, tuned): (&str, &Option<Tuned>)| {
            let Tuned { learning_rate, weight_decay, steps, batch, .. } = tuned.as_ref()?;
            Some(format!(
                "{}, {name}: learning rate {learning_rate:.1e}, weight decay {weight_decay:.1e}, {steps} steps of {batch}\n",
                self.data
            ))
        };
        [("fine-tuned", &self.finetuned), ("fresh weights", &self.fresh)].into_iter().filter_map(line)
    }
}

impl PerClass {
    /// The figures, then the confusion matrix, or of many classes those with the lowest recall.
    pub(crate) fn text(&self, title: &str) -> String {
        let auroc = self.auroc.map_or(String::new(), |area| format!(", AUROC {area:.4}"));
        let mut text = format!("{title}: balanced accuracy {:.1}{auroc}\n", 100.0 * self.balanced_accuracy);
        let matrix = self.confusion.as_ref().filter(|_| self.classes.len() <= PRINTED);
        let lines = matrix.map_or_else(|| self.worst_lines(), |matrix| self.matrix_lines(matrix));
        text.push_str(&aligned(&lines));
        text
    }

    /// A line for each class: counts of predicted classes by their number, images and recall.
    fn matrix_lines(&self, matrix: &[Vec<u64>]) -> Vec<Vec<String>> {
        let numbers = (1..=self.classes.len()).map(|number| number.to_string());
        let headings = std::iter::once("true \\ predicted".to_owned()).chain(numbers);
        let mut lines = vec![headings.chain(["images", "recall"].map(str::to_owned)).collect::<Vec<_>>()];
        for (at, (class, row)) in self.classes.iter().zip(matrix).enumerate() {
            let name = format!("{} {}", at + 1, class.name);
            let counts = row.iter().map(u64::to_string);
            lines.push(std::iter::once(name).chain(counts).chain(class.cells()).collect());
        }
        lines
    }

    fn worst_lines(&self) -> Vec<Vec<String>> {
        let mut known: Vec<&ClassRecall> =
            self.classes.iter().filter(|class| class.recall.is_some()).collect();
        known.sort_by(|a, b| a.recall.unwrap_or(0.0).total_cmp(&b.recall.unwrap_or(0.0)));
        let heading = format!("lowest recall of {} classes", known.len());
        let mut lines = vec![vec![heading, "images".to_owned(), "recall".to_owned()]];
        let line = |class: &&ClassRecall| std::iter::once(class.name.clone()).chain(class.cells()).collect();
        lines.extend(known.iter().take(WORST).map(line));
        lines
    }
}

impl ClassRecall {
    fn cells(&self) -> [String; 2] {
        let recall = self.recall.map_or("-".into(), |recall| format!("{:.1}", 100.0 * recall));
        [self.images.to_string(), recall]
    }
}

/// First column left, all others right.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |line: &[String], column: usize| line.get(column).cloned().unwrap_or_default();
    let width =
        |column: usize| lines.iter().map(|line| cell(line, column).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, &width) in widths.iter().enumerate() {
            let cell = cell(line, column);
            text.push_str(&if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("   {cell:>width$}")
            });
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let lines = [vec![String::new(), "kNN".into()], vec!["raw pixels".into(), "8.0 ±1.0".into()]];
        assert_eq!(aligned(&lines), "                  kNN\nraw pixels   8.0 ±1.0\n");
    }
}
