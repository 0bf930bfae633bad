//! Bytes as Java's `DataOutputStream` writes them: big endian, texts with their length before them.

use std::borrow::Cow;

/// Why bytes are no `_metadata` of Flink that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// It does not begin as one.
    #[error("is no checkpoint metadata of Flink: it does not begin with its magic number")]
    NotMetadata,
    /// It is of a version that is not known.
    #[error("is checkpoint metadata of version {0}, and only 3 to 6 can be read")]
    Version(u32),
    /// It is torn or damaged.
    #[error("is damaged at byte {at} of {len}, in {of}: {why}")]
    Damaged {
        /// The byte that cannot be read.
        at: usize,
        /// Number of bytes.
        len: usize,
        /// The part of the file.
        of: &'static str,
        /// What is wrong there.
        why: MetadataDamage,
    },
}

/// What is wrong with a byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataDamage {
    /// The file ends too early.
    #[error("{needed} bytes are needed, {left} are left")]
    Ends {
        /// Bytes that should follow.
        needed: u64,
        /// Bytes that do.
        left: usize,
    },
    /// A number that nothing has.
    #[error("{0} is not known")]
    Unknown(i64),
    /// A number that cannot be one of this kind.
    #[error("{0} is out of range")]
    Range(i64),
    /// A text that is none.
    #[error("the text is not in Java's form of UTF-8")]
    Text,
    /// Things inside of things inside of things.
    #[error("it is nested too deep")]
    Depth,
}

/// A place in bytes. It never moves beyond their end.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    of: &'static str,
}

impl<'a> Cursor<'a> {
    /// The beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, of: "the header" }
    }

    /// Says which part of the file follows, for errors.
    pub fn enter(&mut self, of: &'static str) {
        self.of = of;
    }

    /// The part of the file.
    pub fn part(&self) -> &'static str {
        self.of
    }

    /// The place of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at the byte `before` the next one.
    pub fn damaged<T>(&self, before: usize, why: MetadataDamage) -> Result<T, MetadataError> {
        Err(MetadataError::Damaged { at: self.at - before.min(self.at), len: self.bytes.len(), of: self.of, why })
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`MetadataDamage::Ends`].
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], MetadataError> {
        let Some((taken, _)) = self.bytes[self.at..].split_at_checked(count) else {
            return self.damaged(0, MetadataDamage::Ends { needed: count as u64, left: self.left() });
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MetadataError> {
        let taken = self.take(N)?;
        Ok(std::array::from_fn(|place| taken[place]))
    }

    /// `writeByte`
    ///
    /// # Errors
    /// [`MetadataDamage::Ends`].
    pub fn u8(&mut self) -> Result<u8, MetadataError> {
        Ok(self.array::<1>()?[0])
    }

    /// `writeShort`
    ///
    /// # Errors
    /// [`MetadataDamage::Ends`].
    pub fn u16(&mut self) -> Result<u16, MetadataError> {
        self.array().map(u16::from_be_bytes)
    }

    /// `writeInt`
    ///
    /// # Errors
    /// [`MetadataDamage::Ends`].
    pub fn i32(&mut self) -> Result<i32, MetadataError> {
        self.array().map(i32::from_be_bytes)
    }

    /// `writeLong`
    ///
    /// # Errors
    /// [`MetadataDamage::Ends`].
    pub fn i64(&mut self) -> Result<i64, MetadataError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A number of things that follow, each of at least `bytes_min` bytes: no more than there is room for.
    ///
    /// # Errors
    /// [`MetadataDamage::Range`], [`MetadataDamage::Ends`].
    pub fn count(&mut self, bytes_min: usize) -> Result<usize, MetadataError> {
        let count = self.i32()?;
        let Ok(things) = usize::try_from(count) else { return self.damaged(4, MetadataDamage::Range(count.into())) };
        let needed = things as u64 * bytes_min as u64;
        if needed > self.left() as u64 {
            return self.damaged(0, MetadataDamage::Ends { needed, left: self.left() });
        }
        Ok(things)
    }

    /// A number of bytes and the bytes.
    ///
    /// # Errors
    /// [`MetadataDamage::Range`], [`MetadataDamage::Ends`].
    pub fn block(&mut self) -> Result<&'a [u8], MetadataError> {
        let len = self.count(1)?;
        self.take(len)
    }

    /// `writeUTF`
    ///
    /// # Errors
    /// [`MetadataDamage::Text`], [`MetadataDamage::Ends`].
    pub fn text(&mut self) -> Result<Cow<'a, str>, MetadataError> {
        let len = usize::from(self.u16()?);
        let bytes = self.take(len)?;
        match text_of(bytes) {
            Some(text) => Ok(text),
            None => self.damaged(len, MetadataDamage::Text),
        }
    }
}

/// Reads Java's form of UTF-8: a zero has two bytes, and what UTF-16 writes as two units has three bytes for each.
///
/// # Source
/// `java.io.DataInput`, "Modified UTF-8".
fn text_of(bytes: &[u8]) -> Option<Cow<'_, str>> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(Cow::Borrowed(text));
    }
    let (mut units, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
    let low = |byte: u8| (byte & 0xc0 == 0x80).then_some(u16::from(byte & 0x3f));
    loop {
        let (unit, after) = match rest {
            [] => break,
            [one @ ..0x80, after @ ..] => (u16::from(*one), after),
            [one @ 0xc0..=0xdf, two, after @ ..] => (u16::from(one & 0x1f) << 6 | low(*two)?, after),
            [one @ 0xe0..=0xef, two, three, after @ ..] => {
                (u16::from(one & 0x0f) << 12 | low(*two)? << 6 | low(*three)?, after)
            }
            _ => return None,
        };
        units.push(unit);
        rest = after;
    }
    String::from_utf16(&units).ok().map(Cow::Owned)
}

/// Writes a text as [`Cursor::text`] reads it, with its length before it; `None` if it has more bytes than the length can say.
pub fn text_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0, 0];
    for unit in text.encode_utf16() {
        match unit {
            1..0x80 => bytes.push(low_byte(unit)),
            0 | 0x80..0x800 => bytes.extend([0xc0 | low_byte(unit >> 6), 0x80 | low_byte(unit & 0x3f)]),
            _ => bytes.extend([
                0xe0 | low_byte(unit >> 12),
                0x80 | low_byte(unit >> 6 & 0x3f),
                0x80 | low_byte(unit & 0x3f),
            ]),
        }
    }
    let len = u16::try_from(bytes.len() - 2).ok()?;
    bytes[..2].copy_from_slice(&len.to_be_bytes());
    Some(bytes)
}

fn low_byte(unit: u16) -> u8 {
    unit.to_be_bytes()[1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_big_endian_and_end_where_the_bytes_end() {
        let mut cursor = Cursor::new(&[0, 0, 0, 9, 1]);

        assert_eq!(cursor.i32().unwrap(), 9);
        let short = cursor.i64().unwrap_err().to_string();
        assert_eq!(short, "is damaged at byte 4 of 5, in the header: 8 bytes are needed, 1 are left");
        assert_eq!(cursor.u8().unwrap(), 1);
    }

    #[test]
    fn a_count_that_there_is_no_room_for_is_refused_at_once() {
        let error = Cursor::new(&[0x7f, 0xff, 0xff, 0xff, 0]).count(12).unwrap_err().to_string();
        assert_eq!(error, "is damaged at byte 4 of 5, in the header: 25769803764 bytes are needed, 1 are left");
        let error = Cursor::new(&[0xff, 0xff, 0xff, 0xff]).block().unwrap_err().to_string();
        assert_eq!(error, "is damaged at byte 0 of 4, in the header: -1 is out of range");
    }

    #[test]
    fn texts_are_in_the_form_of_java() {
        assert_eq!(text_of("aü€".as_bytes()).unwrap(), "aü€");
        // Java's form of U+0000, and of U+1F40B as the units D83D and DC0B.
        assert_eq!(text_of(&[b'a', 0xc0, 0x80]).unwrap(), "a\0");
        assert_eq!(text_of(&[0xed, 0xa0, 0xbd, 0xed, 0xb0, 0x8b]).unwrap(), "\u{1f40b}");
        for text in ["", "aü€", "a\0", "\u{1f40b}"] {
            assert_eq!(Cursor::new(&text_bytes(text).unwrap()).text().unwrap(), text);
        }
        assert_eq!(text_bytes("\u{1f40b}\0").unwrap(), [0, 8, 0xed, 0xa0, 0xbd, 0xed, 0xb0, 0x8b, 0xc0, 0x80]);
        assert_eq!(text_bytes(&"a".repeat(65_535)).unwrap().len(), 65_537);
        assert_eq!(text_bytes(&"a".repeat(65_536)), None);
        for bad in [&[0xff_u8][..], &[0xc3], &[0xe2, 0x82], &[0xed, 0xa0, 0xbd], &[0xc3, 0x41]] {
            assert_eq!(text_of(bad), None, "{bad:x?}");
        }
    }
}
