//! TensorBoard event files: TFRecord framing (length, masked CRC-32C, data, masked CRC-32C) around `Event` protocol
//! buffers (tensorflow/core/util/event.proto, framework/summary.proto).

/// Constant of the CRC mask (tensorflow/core/lib/hash/crc32c.h).
const MASK_DELTA: u32 = 0xa282_ead8;

/// A TFRecord with one event.
pub fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend_from_slice(event);
    bytes.extend(masked_crc(event).to_le_bytes());
    bytes
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// The first event of a file. Fields: wall_time = 1, file_version = 3.
pub fn file_version(seconds: f64) -> Vec<u8> {
    let mut event = double_field(1, seconds);
    event.extend(bytes_field(3, b"brain.Event:2"));
    event
}

/// Start of a session at `step`: TensorBoard discards scalars of this and later steps from earlier files.
/// Fields: wall_time = 1, step = 2, session_log = 7 { status = 1: START = 1 }.
pub fn session_start(seconds: f64, step: u64) -> Vec<u8> {
    let mut event = double_field(1, seconds);
    event.push(2 << 3);
    event.extend(varint(step));
    event.extend(bytes_field(7, &[1 << 3, 1]));
    event
}

/// A scalar. Fields: wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } }.
pub fn scalar(seconds: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    let mut inner = vec![2 << 3 | 5];
    inner.extend(value.to_le_bytes());
    summary(seconds, step, tag, &inner)
}

/// An image in RGB, as JPEG or PNG. Fields of a value: image = 4 { height = 1, width = 2, colorspace = 3: RGB = 3, encoded = 4 }.
pub fn image(seconds: f64, step: u64, tag: &str, [width, height]: [usize; 2], encoded: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    for (number, value) in [(1, height), (2, width), (3, 3)] {
        image.push(number << 3);
        image.extend(varint(value as u64));
    }
    image.extend(bytes_field(4, encoded));
    summary(seconds, step, tag, &bytes_field(4, &image))
}

fn summary(seconds: f64, step: u64, tag: &str, value: &[u8]) -> Vec<u8> {
    let mut inner = bytes_field(1, tag.as_bytes());
    inner.extend_from_slice(value);
    let mut event = double_field(1, seconds);
    event.push(2 << 3);
    event.extend(varint(step));
    event.extend(bytes_field(5, &bytes_field(1, &inner)));
    event
}

fn double_field(number: u8, value: f64) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 1];
    bytes.extend(value.to_le_bytes());
    bytes
}

fn bytes_field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    bytes.extend(varint(value.len() as u64));
    bytes.extend_from_slice(value);
    bytes
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_wire_format() {
        assert_eq!(varint(300), [0xac, 0x02]);
        let event = scalar(0.0, 1, "a", 1.0);
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0, 0, // wall_time
            0x10, 1, // step
            0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80,
            0x3f, // summary { value { tag, simple_value } }
        ];
        assert_eq!(event, expected);
        let event = image(0.0, 1, "a", [300, 2], b"JPEG");
        let expected = [
            0x2a, 20, 0x0a, 18, 0x0a, 1, b'a', // summary { value { tag
            0x22, 13, 0x08, 2, 0x10, 0xac, 0x02, 0x18, 3, // image { height, width, colorspace
            0x22, 4, b'J', b'P', b'E', b'G', // encoded } } }
        ];
        assert_eq!(event[11..], expected);
    }

    #[test]
    fn a_record_is_framed_by_two_checksums() {
        let bytes = record(b"abc");
        assert_eq!(bytes.len(), 8 + 4 + 3 + 4);
        assert_eq!(bytes[..8], 3u64.to_le_bytes());
        let unmask = |at: usize| {
            let masked = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            masked.wrapping_sub(MASK_DELTA).rotate_left(15)
        };
        assert_eq!(unmask(8), crc32c::crc32c(&bytes[..8]));
        assert_eq!(unmask(15), crc32c::crc32c(b"abc"));
    }
}
