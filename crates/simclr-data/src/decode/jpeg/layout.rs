//! Completeness of a JPEG by its markers, without decoding.

/// 64 one-bits, more than a decoder reads ahead. No Huffman code consists of ones only (T.81, C.2), and the last byte of valid
/// data is padded with ones (F.1.2.3).
const ONES: [u8; 16] = [0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0];

/// A reserved marker with an empty segment. `zune-jpeg` stops at it inside a scan and skips it after one.
const RESERVED: [u8; 4] = [0xff, 2, 0, 2];

const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];

/// The first image of a file, from its start marker to its end marker.
pub(super) struct Layout {
    /// Whether the scans contain every bit of every coefficient of every component.
    pub complete: bool,
    /// End of the entropy-coded data of the last scan.
    end: usize,
    /// Number of zero bytes before that end.
    pub zeros: usize,
    /// Whether a scan may end in raw bits (no Huffman codes) and has no restart markers.
    raw_end: bool,
    /// Whether data missing from an earlier scan than the last would leave pixels without a value: a sequential image with several
    /// scans.
    pub earlier_scans: bool,
}

impl Layout {
    /// `None` where the markers are not those of one sequential or progressive image of up to four components.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let mut frame: Option<Frame> = None;
        let (mut at, mut scan_start, mut end, mut restarts, mut scans) = (2, 0, 0, false, 0);
        loop {
            let (start, marker, after) = next_marker(bytes, at)?;
            if marker == END_OF_IMAGE[1] {
                break;
            }
            if start != at {
                return None;
            }
            let length = u16::from_be_bytes(*bytes.get(after..)?.first_chunk()?);
            at = after + usize::from(length);
            let body = bytes.get(after + 2..at)?;
            match marker {
                0xc0..=0xc2 if frame.is_some() => return None,
                0xc0..=0xc2 => frame = Some(Frame::new(marker == 0xc2, body)?),
                0xdd => restarts |= body != [0, 0],
                0xda => {
                    frame.as_mut()?.add_scan(body)?;
                    scans += 1;
                    scan_start = at;
                    end = scan_end(bytes, at)?;
                    at = end;
                }
                _ => {}
            }
        }
        let frame = frame.filter(|_| end > 0)?;
        let zeros = bytes[scan_start..end].iter().rev().take_while(|&&byte| byte == 0).count();
        let (raw_end, earlier_scans) = (frame.progressive && !restarts, !frame.progressive && scans > 1);
        Some(Self { complete: frame.is_complete(), end, zeros, raw_end, earlier_scans })
    }

    /// The image with one-bits between its pixel data and its end marker. A decoder that runs out of data finds an invalid code
    /// there; beyond an end marker it would silently read zeros.
    pub fn guarded(&self, bytes: &[u8]) -> Vec<u8> {
        let mut guarded = Vec::with_capacity(self.end + 24);
        guarded.extend_from_slice(&bytes[..self.end]);
        guarded.extend_from_slice(&ONES);
        if self.raw_end {
            guarded.extend_from_slice(&RESERVED);
        }
        guarded.extend_from_slice(&END_OF_IMAGE);
        guarded
    }

    /// The image without the last bytes of its pixel data.
    pub fn without(&self, bytes: &[u8], lost: usize) -> Vec<u8> {
        [&bytes[..self.end - lost], &END_OF_IMAGE].concat()
    }
}

/// The next marker: position of its first 0xff (including fill bytes), code, and end.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(usize, u8, usize)> {
    // Segments follow each other, and a search is not free at the size of thumbnails.
    if let &[0xff, code @ 1..=0xfe] = bytes.get(at..at + 2)? {
        return Some((at, code, at + 2));
    }
    loop {
        at += memchr::memchr(0xff, bytes.get(at..)?)?;
        let fill = bytes[at..].iter().take_while(|&&byte| byte == 0xff).count();
        let code = *bytes.get(at + fill)?;
        if code != 0 {
            return Some((at, code, at + fill + 1));
        }
        at += fill + 1;
    }
}

/// The first marker after the start of a scan that is not a restart.
fn scan_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let (start, marker, after) = next_marker(bytes, at)?;
        if !(0xd0..=0xd7).contains(&marker) {
            return Some(start);
        }
        at = after;
    }
}

/// The components of an image, and the coefficients that are still missing.
struct Frame {
    progressive: bool,
    ids: [u8; 4],
    components: usize,
    /// Per component, one bit for each coefficient that is not complete.
    missing: [u64; 4],
}

impl Frame {
    fn new(progressive: bool, header: &[u8]) -> Option<Self> {
        let components = usize::from(*header.get(5)?);
        let mut ids = [0; 4];
        for (index, id) in ids.iter_mut().enumerate().take(components) {
            *id = *header.get(6 + 3 * index)?;
        }
        let known = (1..=4).contains(&components);
        known.then_some(Self { progressive, ids, components, missing: [u64::MAX; 4] })
    }

    /// Adds the coefficients of a scan, by its header.
    fn add_scan(&mut self, header: &[u8]) -> Option<()> {
        let (&count, rest) = header.split_first()?;
        let count = usize::from(count);
        let (chosen, &[first, last, bits]) = rest.split_at_checked(2 * count)? else { return None };
        let (first, last, low) = if self.progressive { (first, last, bits & 15) } else { (0, 63, 0) };
        let band = (first <= last && last < 64).then(|| (u64::MAX >> (63 - (last - first))) << first)?;
        for (position, id) in chosen.iter().step_by(2).enumerate() {
            let mut named = (0..self.components).filter(|&index| self.ids[index] == *id);
            let index = match (named.next(), named.next()) {
                (Some(index), None) => index,
                _ if count == self.components => position,
                _ => return None,
            };
            self.missing[index] =
                if low == 0 { self.missing[index] & !band } else { self.missing[index] | band };
        }
        Some(())
    }

    fn is_complete(&self) -> bool {
        self.missing[..self.components].iter().all(|&coefficients| coefficients == 0)
    }
}
