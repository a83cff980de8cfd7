//! The `.index` file: a table of sorted keys and values in LevelDB's format (`tensorflow/tsl/lib/io/table.cc`). Blocks are
//! not compressed (`BundleWriter` sets `kNoCompression`) and have checksums.

use super::wire::{Damage, take, take_u32, take_varint};

/// Two block handles, padded with zeros, and the magic number.
const FOOTER: usize = 48;
const MAGIC: u64 = 0xdb47_7524_8b80_fb57;
/// Type of compression and checksum behind each block.
const TRAILER: u64 = 5;
/// Bytes of keys per byte of the file, at most: prefixes are shared, so that a small file could claim any number.
const KEY_BYTES: usize = 64;

/// Keys and values, in the order of the keys.
pub fn entries(file: &[u8]) -> Result<Vec<(Vec<u8>, &[u8])>, Damage> {
    let start = file.len().checked_sub(FOOTER).ok_or("shorter than the footer of an index file")?;
    let (body, footer) = file.split_at(start);
    let (mut handles, magic) = footer.split_at(FOOTER - 8);
    if magic != MAGIC.to_le_bytes() {
        return Err("no index file: its last bytes differ".into());
    }
    let handles = &mut handles;
    block(body, handles)?; // of meta information, which has no entries here
    let index = block(body, handles)?;
    if handles.iter().any(|&byte| byte != 0) {
        return Err("the footer has other bytes than two handles".into());
    }
    let mut allowance = KEY_BYTES.saturating_mul(file.len());
    let mut read = 0;
    let mut found = Vec::new();
    for (_, mut handle) in block_entries(index, &mut allowance)? {
        let block = block(body, &mut handle)?;
        read += block.len();
        if read > body.len() {
            return Err("its blocks overlap".into());
        }
        found.extend(block_entries(block, &mut allowance)?);
    }
    if found.is_sorted_by(|(a, _), (b, _)| a < b) { Ok(found) } else { Err("its keys are not sorted".into()) }
}

/// The checked contents of the block with the handle (offset, size) at the front of `handle`.
fn block<'a>(body: &'a [u8], handle: &mut &[u8]) -> Result<&'a [u8], Damage> {
    let (offset, size) = (take_varint(handle)?, take_varint(handle)?);
    let mut rest = body;
    take(&mut rest, offset)?;
    let whole = take(&mut rest, size.saturating_add(TRAILER))?;
    let (checked, mut checksum) = whole.split_at(whole.len() - 4);
    if take_u32(&mut checksum)? != masked(crc32c::crc32c(checked)) {
        return Err(format!("the block at byte {offset} is damaged"));
    }
    match checked.split_last() {
        Some((0, contents)) => Ok(contents),
        _ => Err(format!("the block at byte {offset} is compressed, expected none as TensorFlow writes it")),
    }
}

/// Entries of a block. A key is a number of bytes of the key before it and further ones.
fn block_entries<'a>(block: &'a [u8], allowance: &mut usize) -> Result<Vec<(Vec<u8>, &'a [u8])>, Damage> {
    let cut = || "a block is shorter than its list of restarts";
    let counted = block.len().checked_sub(4).ok_or_else(cut)?;
    let restarts = take_u32(&mut &block[counted..])? as usize;
    let end = restarts.checked_mul(4).and_then(|bytes| counted.checked_sub(bytes)).ok_or_else(cut)?;
    let mut rest = &block[..end];
    let mut found: Vec<(Vec<u8>, &[u8])> = Vec::new();
    while !rest.is_empty() {
        let [shared, more, value] =
            [take_varint(&mut rest)?, take_varint(&mut rest)?, take_varint(&mut rest)?];
        let last = found.last().map_or(&[][..], |(key, _)| key);
        let shared = usize::try_from(shared).ok().and_then(|shared| last.get(..shared));
        let shared = shared.ok_or("a key shares more bytes than the key before it has")?;
        let key = [shared, take(&mut rest, more)?].concat();
        *allowance = allowance.checked_sub(key.len()).ok_or("its keys are longer than the file allows")?;
        found.push((key, take(&mut rest, value)?));
    }
    Ok(found)
}

/// LevelDB's form of a CRC-32C that is stored next to the bytes it covers.
pub fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contents with entries `(shared, rest of the key, value)`, and the trailer.
    fn sealed(entries: &[(u8, &str, &[u8])], kind: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (shared, key, value) in entries {
            bytes.extend([*shared, key.len() as u8, value.len() as u8]);
            bytes.extend(key.bytes().chain(value.iter().copied()));
        }
        bytes.extend([0, 0, 0, 0, 1, 0, 0, 0, kind]);
        let checksum = masked(crc32c::crc32c(&bytes));
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// A table of one data block; `data` are its entries.
    fn table(data: &[(u8, &str, &[u8])], kind: u8) -> Vec<u8> {
        let mut file = sealed(data, kind);
        let size = file.len() as u8 - 5;
        let index = file.len() as u8;
        file.extend(sealed(&[(0, "z", &[0, size])], 0));
        let meta = file.len() as u8;
        file.extend(sealed(&[], 0));
        let mut footer = vec![meta, 8, index, meta - index - 5];
        footer.resize(40, 0);
        file.extend(footer);
        file.extend(MAGIC.to_le_bytes());
        file
    }

    #[test]
    fn keys_share_prefixes() {
        let file = table(&[(0, "conv/a", b"1"), (5, "b", b"22"), (0, "d", b"")], 0);
        let found: Vec<(String, Vec<u8>)> = entries(&file)
            .unwrap()
            .into_iter()
            .map(|(key, value)| (String::from_utf8(key).unwrap(), value.to_vec()))
            .collect();
        let expected = [("conv/a", &b"1"[..]), ("conv/b", b"22"), ("d", b"")];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_vec())));
    }

    #[test]
    fn invalid_tables_are_refused() {
        let refused = |file: &[u8], part: &str| {
            let reason = entries(file).unwrap_err();
            assert!(reason.contains(part), "{reason}, expected {part}");
        };
        refused(&table(&[(0, "a", b"1")], 1), "compressed");
        refused(&table(&[(0, "b", b"1"), (0, "a", b"1")], 0), "sorted");
        refused(&table(&[(0, "b", b"1"), (2, "a", b"1")], 0), "shares more");
        refused(b"short", "footer");
        refused(&[0; 60], "last bytes");
    }

    /// crc32c.h of LevelDB: a check value of the mask.
    #[test]
    fn checksums_are_masked() {
        assert_eq!(masked(0), 0xa282_ead8);
        assert_eq!(masked(1 << 15), 0xa282_ead9);
    }
}
