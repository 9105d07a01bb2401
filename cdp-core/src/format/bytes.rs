//! Reading and writing numbers at fixed offsets of a buffer that is known to be long enough, and bounded
//! reading from one that is not.

/// Copies `value` to `offset`.
pub fn put<const N: usize>(buffer: &mut [u8], offset: usize, value: [u8; N]) {
    buffer[offset..offset + N].copy_from_slice(&value);
}

/// The `N` bytes at `offset`.
pub fn get<const N: usize>(buffer: &[u8], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&buffer[offset..offset + N]);
    value
}

/// The number at `offset`.
pub fn get_u16(buffer: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(get(buffer, offset))
}

/// The number at `offset`.
pub fn get_u32(buffer: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(get(buffer, offset))
}

/// The number at `offset`.
pub fn get_u64(buffer: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(get(buffer, offset))
}

/// The number at `offset`.
pub fn get_u128(buffer: &[u8], offset: usize) -> u128 {
    u128::from_le_bytes(get(buffer, offset))
}

/// CRC-32 (IEEE 802.3), the checksum of every structure here.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Stores the CRC of everything before the last four bytes into the last four bytes.
pub fn seal_crc(buffer: &mut [u8]) {
    let at = buffer.len() - 4;
    let crc = crc32(&buffer[..at]);
    put(buffer, at, crc.to_le_bytes());
}

/// Whether the last four bytes are the CRC of everything before them.
pub fn crc_fits(buffer: &[u8]) -> bool {
    let at = buffer.len() - 4;
    get_u32(buffer, at) == crc32(&buffer[..at])
}

/// Takes fields from the front of bytes that may end at any moment.
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: bytes }
    }

    /// The next `len` bytes, if there are so many.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    /// The next two bytes as a number.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    /// The next four bytes as a number.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// The next eight bytes as a number.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// The next sixteen bytes as a number.
    pub fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take(16)?.try_into().ok()?))
    }

    /// The next `u16`-length-prefixed UTF-8 text.
    pub fn text(&mut self) -> Option<&'a str> {
        let len = self.u16()?;
        std::str::from_utf8(self.take(len as usize)?).ok()
    }

    /// How many bytes are left.
    pub fn rest(&self) -> usize {
        self.rest.len()
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Appends a `u16`-length-prefixed text. The caller has checked the length.
pub fn put_text(buffer: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= u16::MAX as usize);
    buffer.extend_from_slice(&(text.len() as u16).to_le_bytes());
    buffer.extend_from_slice(text.as_bytes());
}
