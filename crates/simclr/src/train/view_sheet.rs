//! Images of a run next to their augmented views, for TensorBoard.

use simclr_data::{
    DataError, Dataset,
    contact_sheet::ContactSheet,
    view_table::{Cell, ViewTable, spread},
};

use crate::Plan;

/// Images, and views of each.
const IMAGES: usize = 8;
const VIEWS: usize = 8;
/// Pixels of a side of a view in the sheet, at most.
const SIDE: usize = 128;

/// A row for each of some images across the set, as the encoder sees it and then its views. Images that cannot be decoded are left out.
pub(super) fn view_sheet(plan: &Plan, set: &Dataset) -> Result<ContactSheet, DataError> {
    let transform = plan.transform();
    let size = transform.size;
    let indices = spread(set, IMAGES);
    let mut sheet = ContactSheet::with_columns(VIEWS + 1, indices.len(), size.min(SIDE));
    let (augment, seed) = (&plan.config.augment, plan.config.train.seed);
    let table = ViewTable { set, transform, augment, seed, views: VIEWS };
    table.each(&indices, &mut |cell: &Cell<'_>| -> Result<(), DataError> {
        let (row, column) = cell.place;
        sheet.put(row * (VIEWS + 1) + column, cell.pixels, (set.channels(), size));
        Ok(())
    })?;
    Ok(sheet)
}
