//! Protocol-buffer wire format: varints and the fields of a message, without copies.

/// What is wrong with the bytes.
pub type Damage = String;

/// Takes a varint off the front of `bytes`.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64, Damage> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("a varint is cut off")?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            break;
        }
        value |= low << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a varint is longer than 64 bits".into())
}

/// Takes `count` bytes off the front of `bytes`.
pub fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Result<&'a [u8], Damage> {
    let held = bytes.len();
    let cut = usize::try_from(count).ok().and_then(|count| bytes.split_at_checked(count));
    let (front, rest) = cut.ok_or_else(|| format!("{count} bytes expected, {held} left"))?;
    *bytes = rest;
    Ok(front)
}

/// Takes a little-endian u32 off the front of `bytes`.
pub fn take_u32(bytes: &mut &[u8]) -> Result<u32, Damage> {
    Ok(u32::from_le_bytes(take(bytes, 4)?.try_into().expect("four bytes were taken")))
}

/// Value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 5.
    Fixed32(u32),
    /// Wire type 1.
    Fixed64,
    /// Wire type 2: text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// A non-negative count, size or offset.
    pub fn size(self) -> Result<i64, Damage> {
        match self {
            Self::Varint(value) => i64::try_from(value).map_err(|_| format!("a size is {}", value as i64)),
            other => Err(format!("expected a number, got {other:?}")),
        }
    }

    /// Bytes of a message.
    pub fn bytes(self) -> Result<&'a [u8], Damage> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(format!("expected a message, got {other:?}")),
        }
    }

    /// UTF-8 text.
    pub fn text(self) -> Result<String, Damage> {
        Ok(std::str::from_utf8(self.bytes()?).map_err(|error| error.to_string())?.to_owned())
    }
}

/// The fields of a message in their order: number and value.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), Damage> {
        let tag = take_varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Varint(take_varint(&mut self.0)?),
            1 => take(&mut self.0, 8).map(|_| Value::Fixed64)?,
            2 => {
                let length = take_varint(&mut self.0)?;
                Value::Bytes(take(&mut self.0, length)?)
            }
            5 => Value::Fixed32(take_u32(&mut self.0)?),
            other => return Err(format!("unknown wire type {other}")),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
