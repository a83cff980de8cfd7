//! Streaming writer of `f32` rows to `.npy` version 1.0 (`numpy.lib.format`): the number of rows is written into the header
//! at the end.

use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

/// The header's full length, a multiple of 64 with room for any shape.
const HEADER: usize = 128;

/// Writer of a `.npy` file `[n, F]` `<f4`.
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

/// Rows of a file of [`NpyWriter`]; none for any other file.
pub fn rows(path: &Path) -> Option<usize> {
    let mut file = fs_err::File::open(path).ok()?;
    let mut start = [0; HEADER];
    file.read_exact(&mut start).ok()?;
    let text = std::str::from_utf8(&start[10..]).ok()?;
    let (rows, rest) = text.split_once("'shape': (")?.1.split_once(", ")?;
    let (rows, width): (usize, usize) = (rows.parse().ok()?, rest.split_once(')')?.0.parse().ok()?);
    let bytes = (4 * rows as u64).checked_mul(width as u64)?.checked_add(HEADER as u64)?;
    (start[..] == header(rows, width) && file.metadata().ok()?.len() == bytes).then_some(rows)
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
    fn own_files_are_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h.npy");
        let mut file = NpyWriter::new(fs_err::File::create(&path).unwrap(), 3).unwrap();
        file.push(&[0.0; 12]).unwrap();
        drop(file.finish().unwrap());
        assert_eq!(rows(&path), Some(4));
        let whole = fs_err::read(&path).unwrap();
        fs_err::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(rows(&path), None, "cut");
        // An array of another program: f64, and a header of another length.
        for (from, to) in [("<f4", "<f8"), ("False", "True ")] {
            let text = String::from_utf8_lossy(&whole[10..HEADER]).replace(from, to);
            let other = [&whole[..10], text.as_bytes(), &whole[HEADER..]].concat();
            fs_err::write(&path, other).unwrap();
            assert_eq!(rows(&path), None, "{to}");
        }
    }

    #[test]
    fn files_equal_those_of_numpy() {
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
