//! The data of handshake options: parsed from what a client sent, every length checked.

use crate::limits::STRING_BYTES_MAX;
use crate::proto::{BASE_ALLOCATION, Cursor, DIRTY_BITMAP, QEMU_NAMESPACE};

/// Why the data of an option is refused, for people.
pub type Malformed = &'static str;

/// INFO or GO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoOption<'a> {
    /// Which export.
    pub name: &'a str,
    /// What the client wants to know, as numbers of [`crate::proto::info`] or others.
    pub wanted: Vec<u16>,
}

/// LIST_META_CONTEXT or SET_META_CONTEXT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaOption<'a> {
    /// Which export.
    pub name: &'a str,
    count: u32,
    /// The queries, each checked.
    rest: &'a [u8],
}

/// What a client asks about contexts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Query<'a> {
    /// `base:allocation`.
    Allocation,
    /// `base:`: all of that namespace.
    AllOfBase,
    /// `qemu:` or `qemu:dirty-bitmap:`: all bitmaps.
    AllBitmaps,
    /// `qemu:dirty-bitmap:` and a name.
    Bitmap(&'a str),
    /// Something that we do not know; the protocol wants it skipped.
    Unknown,
}

/// A name as the protocol allows it.
pub fn export_name(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err("the export name is longer than 4096 bytes");
    }
    if bytes.contains(&0) {
        return Err("the export name contains NUL");
    }
    str::from_utf8(bytes).map_err(|_| "the export name is not UTF-8")
}

fn counted_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Malformed> {
    let len = cursor.u32().ok_or("too short for the length of an export name")?;
    if len as usize > STRING_BYTES_MAX {
        return Err("the export name is longer than 4096 bytes");
    }
    export_name(cursor.bytes(len as usize).ok_or("the export name is longer than the option")?)
}

impl<'a> InfoOption<'a> {
    /// Reads the data of INFO or GO.
    pub fn parse(data: &'a [u8]) -> Result<InfoOption<'a>, Malformed> {
        let mut cursor = Cursor(data);
        let name = counted_name(&mut cursor)?;
        let count = cursor.u16().ok_or("too short for the number of information requests")?;
        if cursor.0.len() != usize::from(count) * 2 {
            return Err("the number of information requests does not fit the option's length");
        }
        let wanted = std::iter::from_fn(|| cursor.u16()).collect();
        Ok(InfoOption { name, wanted })
    }
}

impl<'a> MetaOption<'a> {
    /// Reads the data of LIST_META_CONTEXT or SET_META_CONTEXT.
    pub fn parse(data: &'a [u8]) -> Result<MetaOption<'a>, Malformed> {
        let mut cursor = Cursor(data);
        let name = counted_name(&mut cursor)?;
        let count = cursor.u32().ok_or("too short for the number of queries")?;
        let rest = cursor.0;
        for _ in 0..count {
            let len = cursor.u32().ok_or("fewer queries than announced")?;
            query(cursor.bytes(len as usize).ok_or("a query is longer than the option")?)?;
        }
        if !cursor.0.is_empty() {
            return Err("bytes left over behind the queries");
        }
        Ok(MetaOption { name, count, rest })
    }

    /// Whether nothing is asked; in LIST that means: all there is.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What is asked, in the client's order.
    pub fn queries(&self) -> impl Iterator<Item = Query<'a>> + use<'a> {
        let mut cursor = Cursor(self.rest);
        std::iter::from_fn(move || {
            let len = cursor.u32()?;
            query(cursor.bytes(len as usize)?).ok()
        })
    }
}

fn query(bytes: &[u8]) -> Result<Query<'_>, Malformed> {
    let bitmap = bytes.strip_prefix(DIRTY_BITMAP.as_bytes());
    Ok(match (bytes, bitmap) {
        (_, Some(b"")) => Query::AllBitmaps,
        _ if bytes == QEMU_NAMESPACE.as_bytes() => Query::AllBitmaps,
        _ if bytes == BASE_ALLOCATION.as_bytes() => Query::Allocation,
        (b"base:", _) => Query::AllOfBase,
        (_, Some(name)) => {
            if bytes.len() > STRING_BYTES_MAX {
                return Err("the name of a dirty bitmap is longer than 4096 bytes");
            }
            if name.contains(&0) {
                return Err("the name of a dirty bitmap contains NUL");
            }
            Query::Bitmap(str::from_utf8(name).map_err(|_| "the name of a dirty bitmap is not UTF-8")?)
        }
        _ => Query::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lying_length_is_refused_and_never_followed() {
        // A client that lies about a length must not make us read past the option or allocate by its word.
        let mut go = Vec::new();
        go.extend(4u32.to_be_bytes());
        go.extend(b"disk");
        go.extend(1u16.to_be_bytes());
        go.extend(3u16.to_be_bytes());
        assert_eq!(InfoOption::parse(&go), Ok(InfoOption { name: "disk", wanted: vec![3] }));
        for cut in 0..go.len() {
            assert!(InfoOption::parse(&go[..cut]).is_err(), "cut at {cut}");
        }
        go[3] = 200;
        assert!(InfoOption::parse(&go).is_err());
        go[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(InfoOption::parse(&go).is_err());

        let mut meta = Vec::new();
        meta.extend(0u32.to_be_bytes());
        meta.extend(u32::MAX.to_be_bytes());
        assert!(MetaOption::parse(&meta).is_err());
        meta.extend(u32::MAX.to_be_bytes());
        assert!(MetaOption::parse(&meta).is_err());
    }

    // Whoever sends a query that is no text must not get a context for it, and what we do not know is skipped.
    #[test]
    fn queries_are_told_apart() {
        let data = |query: &[u8]| {
            let mut data = vec![0, 0, 0, 0, 0, 0, 0, 1];
            data.extend((query.len() as u32).to_be_bytes());
            data.extend(query);
            data
        };
        let long = [DIRTY_BITMAP.as_bytes(), &[b'x'; STRING_BYTES_MAX]].concat();
        for (bytes, expected) in [
            (&b"base:allocation"[..], Some(Query::Allocation)),
            (b"base:", Some(Query::AllOfBase)),
            (b"qemu:", Some(Query::AllBitmaps)),
            (b"qemu:dirty-bitmap:", Some(Query::AllBitmaps)),
            (b"qemu:dirty-bitmap:before:a b", Some(Query::Bitmap("before:a b"))),
            (b"qemu:allocation-depth", Some(Query::Unknown)),
            (b"", Some(Query::Unknown)),
            (&[0xff; 9], Some(Query::Unknown)),
            (b"qemu:dirty-bitmap:\xff", None),
            (b"qemu:dirty-bitmap:a\0", None),
            (&long, None),
        ] {
            let data = data(bytes);
            let parsed = MetaOption::parse(&data).ok().map(|option| option.queries().collect::<Vec<_>>());
            assert_eq!(parsed, expected.map(|query| vec![query]), "{bytes:?}");
        }
    }

    #[test]
    fn names_keep_to_the_protocol() {
        assert!(export_name(b"disk@-5m").is_ok());
        assert!(export_name(b"").is_ok());
        assert!(export_name(b"a\0b").is_err());
        assert!(export_name(&[0xff]).is_err());
        assert!(export_name(&[b'a'; STRING_BYTES_MAX]).is_ok());
        assert!(export_name(&[b'a'; STRING_BYTES_MAX + 1]).is_err());
    }
}
