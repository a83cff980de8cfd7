//! Rows of `f32` to a `.npy` file, version 1.0 (numpy's `numpy.lib.format`), streamed: the number of rows is written
//! into the header at the end.

use std::io::{Seek, SeekFrom, Write};

/// The header's full length, a multiple of 64 with room for any shape.
const HEADER: usize = 128;

/// A `.npy` file `[n, F]` `<f4` that is being written.
#[derive(Debug)]
pub struct NpyWriter<W> {
    out: W,
    width: usize,
    rows: usize,
}

impl<W: Write + Seek> NpyWriter<W> {
    /// Starts a table of `width` columns.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(mut out: W, width: usize) -> std::io::Result<Self> {
        out.write_all(&header(0, width))?;
        Ok(Self { out, width, rows: 0 })
    }

    /// Appends whole rows.
    ///
    /// # Errors
    /// The operating system's.
    pub fn push(&mut self, values: &[f32]) -> std::io::Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.rows += values.len() / self.width;
        self.out.write_all(&bytes)
    }

    /// Writes the number of rows and returns the underlying writer, flushed.
    ///
    /// # Errors
    /// The operating system's.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header(self.rows, self.width))?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn header(rows: usize, width: usize) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((HEADER as u16 - 10).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.resize(HEADER - 1, b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_rows_are_as_numpy_writes_them() {
        let mut file = NpyWriter::new(std::io::Cursor::new(Vec::new()), 2).unwrap();
        file.push(&[1.0, 2.0]).unwrap();
        file.push(&[3.0, 4.0, 5.0, 6.0]).unwrap();
        let bytes = file.finish().unwrap().into_inner();
        // numpy.save of a float32 array [[1, 2], [3, 4], [5, 6]], numpy 2.x.
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        let mut want = b"\x93NUMPY\x01\x00v\x00".to_vec();
        want.extend(format!("{text:<117}\n").as_bytes());
        (1..=6).for_each(|i| want.extend((i as f32).to_le_bytes()));
        assert_eq!(bytes, want);
    }
}
