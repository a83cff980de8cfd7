//! The similarity matrix of this process's rows with all rows, tile by tile: it is never stored.

use tch::{Kind, Tensor};

use super::gather::AllGather;

/// Side of a tile of similarities: two tiles in f32 are 8 MiB, which fits the last-level cache.
pub(super) const TILE: i64 = 1024;

/// Similarities of the local rows with all rows, divided by the temperature.
pub(super) struct Similarities {
    /// Local rows divided by the temperature, `[2m, D]`.
    own: Tensor,
    /// `[2N, D]`.
    pub all: Tensor,
    /// Images on lower ranks.
    first: i64,
    /// Buffers for two tiles.
    room: [Tensor; 2],
    /// Whether the similarities of two first or two second views are left out.
    crossed_only: bool,
}

/// A rectangle of the similarity matrix within one view in rows and one view in columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// First local row, and number of rows.
    pub row: (i64, i64),
    /// First column, and number of columns.
    pub column: (i64, i64),
    /// Number of the first row among the 2N rows of all processes.
    pub row_among_all: i64,
    /// Diagonal of the tile that holds self-similarities.
    itself: i64,
    /// Diagonal of the tile that holds positive pairs.
    partner: i64,
    /// Whether the tile also represents its transpose.
    pub mirrored: bool,
    /// Whether rows are first views and columns second views.
    pub crossed: bool,
}

impl Tile {
    /// The entries of positive pairs in `values`, a tensor of the tile's shape. Empty in most tiles.
    pub fn positives(&self, values: &Tensor) -> Tensor {
        values.diagonal(self.partner, 0, 1)
    }

    pub fn has_positives(&self) -> bool {
        self.partner < self.column.1 && -self.partner < self.row.1
    }

    /// Local rows of [`Tile::positives`], of which there are `count`.
    pub fn rows_of_positives(&self, count: i64) -> (i64, i64) {
        (self.row.0 + (-self.partner).max(0), count)
    }

    /// Columns of [`Tile::positives`], of which there are `count`.
    pub fn columns_of_positives(&self, count: i64) -> (i64, i64) {
        (self.column.0 + self.partner.max(0), count)
    }
}

impl Similarities {
    pub fn new(own: &Tensor, group: &dyn AllGather, temperature: f64, crossed_only: bool) -> Self {
        let all = group.all_gather(own);
        let side = TILE.min(all.size()[0] / 2);
        let room = [(); 2].map(|()| Tensor::empty([side * side], (Kind::Float, own.device())));
        Self { own: own / temperature, all, first: group.first_image(), room, crossed_only }
    }

    /// Number of local images and of all images.
    pub fn images(&self) -> (i64, i64) {
        (self.own.size()[0] / 2, self.all.size()[0] / 2)
    }

    /// A value per local row, `[2m]`.
    pub fn per_anchor(&self, value: f64) -> Tensor {
        Tensor::full([self.own.size()[0]], value, (Kind::Float, self.own.device()))
    }

    /// All tiles; if all rows are local, only those on and above the diagonal.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> {
        let ((own, all), first) = (self.images(), self.first);
        let starts = |images: i64| {
            (0..2).flat_map(move |view| (0..images).step_by(TILE as usize).map(move |i| (view, i)))
        };
        let (whole, crossed_only) = (own == all, self.crossed_only);
        let tile = move |(view, i): (i64, i64), (other, k): (i64, i64)| {
            let (row, column) = (view * own + i, other * all + k);
            let row_among_all = view * all + first + i;
            let tile = Tile {
                row: (row, TILE.min(own - i)),
                column: (column, TILE.min(all - k)),
                row_among_all,
                itself: row_among_all - column,
                partner: (row_among_all + all) % (2 * all) - column,
                mirrored: whole && column > row,
                crossed: (view, other) == (0, 1),
            };
            let is_needed = !whole || column >= row;
            (is_needed && !(crossed_only && view == other)).then_some(tile)
        };
        starts(own).flat_map(move |row| starts(all).filter_map(move |column| tile(row, column)))
    }

    /// A buffer for a tile.
    pub fn room(&self, index: usize, tile: Tile) -> Tensor {
        let (rows, columns) = (tile.row.1, tile.column.1);
        self.room[index].narrow(0, 0, rows * columns).view([rows, columns])
    }

    /// Similarities divided by the temperature, in buffer 0; self-similarities are masked to minus infinity.
    pub fn logits(&self, tile: Tile) -> Tensor {
        let (rows, columns) = (narrow(&self.own, tile.row), narrow(&self.all, tile.column));
        let logits = rows.mm_out(&self.room(0, tile), &columns.tr());
        let _ = logits.diagonal(tile.itself, 0, 1).fill_(f64::NEG_INFINITY);
        logits
    }
}

/// Rows `start` to `start + length`.
pub(super) fn narrow(tensor: &Tensor, (start, length): (i64, i64)) -> Tensor {
    tensor.narrow(0, start, length)
}
