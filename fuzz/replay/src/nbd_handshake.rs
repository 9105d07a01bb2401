//! The NBD handshake: what any client may send before it has an export.
//!
//! The first byte chooses the sizes in which the rest arrives. However it is cut, the answers are the same.

use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::error::{Error, Kind};
use cdp_core::ids::SessionId;
use cdp_nbd::contexts::{BitmapInfo, Bitmaps};
use cdp_nbd::exports::{ExportInfo, ExportSummary, Exports, OpenExport, Peer};
use cdp_nbd::handshake::{Handshake, Negotiated, Opened, Step};

use crate::bytes::{be32, be64};
use crate::ram::{AllDirty, Ram};

const GREETING_BYTES: usize = 18;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_HEADER_BYTES: usize = 20;
const OPTION_HEADER_BYTES: usize = 16;
/// What one option of 16 bytes or more can make the server say, in bytes.
const REPLIES_BYTES_MAX: usize = 32 << 10;
/// Size and flags, alone and with the old padding.
const EXPORT_NAME_REPLIES: [usize; 2] = [10, 134];
const DISK_BYTES: usize = 64 << 10;

/// How a handshake ended.
#[derive(PartialEq, Eq, Debug)]
enum End {
    /// The server waits for more.
    Waiting,
    Closed,
    /// So many bytes were the handshake's.
    Open(usize, Negotiated, String),
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let [cut, bytes @ ..] = data else { return };
    let whole = converse(bytes, bytes.len().max(1));
    well_formed(&whole.0, &whole.1, bytes.len());
    for cut in [1, usize::from(*cut) + 1] {
        assert!(converse(bytes, cut) == whole, "other answers when {cut} bytes come at a time");
    }
}

fn converse(bytes: &[u8], cut: usize) -> (Vec<u8>, End) {
    let peer = Peer::Unix { pid: 1, uid: 0 };
    let mut out = Vec::new();
    let mut handshake = Handshake::new(&mut out);
    let (mut at, mut available) = (0, 0);
    loop {
        match handshake.step(&bytes[at..available], &Shelf, &peer, &mut out) {
            Step::Need(wanted) => {
                assert!(wanted > available - at, "{wanted} bytes are wanted, {} are there", available - at);
                if available == bytes.len() {
                    return (out, End::Waiting);
                }
                available = bytes.len().min(available + cut);
            }
            Step::Consumed(used) => {
                assert!(used > 0 && used <= available - at, "used {used} of {}", available - at);
                at += used;
            }
            Step::Close => return (out, End::Closed),
            Step::Transmission(used, negotiated, Opened { export, .. }) => {
                assert!(used <= available - at, "used {used} of {}", available - at);
                return (out, End::Open(at + used, negotiated, export.canonical_name));
            }
        }
    }
}

/// Every reply carries its magic and a length that fits; only EXPORT_NAME is answered without.
fn well_formed(out: &[u8], end: &End, sent: usize) {
    assert_eq!(&out[..GREETING_BYTES], b"NBDMAGICIHAVEOPT\x00\x03");
    let options = sent / OPTION_HEADER_BYTES + 1;
    assert!(
        out.len() <= GREETING_BYTES + options * REPLIES_BYTES_MAX,
        "{} bytes in reply to {sent}",
        out.len()
    );
    let mut rest = &out[GREETING_BYTES..];
    while !rest.is_empty() {
        if rest.len() < REPLY_HEADER_BYTES || be64(&rest[0..8]) != REPLY_MAGIC {
            assert!(matches!(end, End::Open(..)), "an answer without magic, and no export is open");
            assert!(EXPORT_NAME_REPLIES.contains(&rest.len()), "{} bytes behind the last reply", rest.len());
            assert_eq!(be64(&rest[0..8]), DISK_BYTES as u64);
            return;
        }
        let len = be32(&rest[16..20]) as usize;
        assert!(rest.len() >= REPLY_HEADER_BYTES + len, "a reply ends before its length says so");
        rest = &rest[REPLY_HEADER_BYTES + len..];
    }
}

/// A live disk, which is also the default export, and a view of it.
struct Shelf;

const VIEW: &str = "disk@lsn:5";

impl Exports for Shelf {
    fn list(&self) -> Vec<ExportSummary> {
        [("disk", "live"), (VIEW, "before the upgrade")]
            .map(|(name, description)| ExportSummary {
                name: name.to_owned(),
                description: description.to_owned(),
            })
            .into()
    }

    fn info(&self, name: &str, peer: &Peer) -> Result<ExportInfo, Error> {
        self.open(name, peer).map(|export| export.info())
    }

    fn open(&self, name: &str, _peer: &Peer) -> Result<OpenExport, Error> {
        assert!(!name.contains('\0'), "a NUL in a name gets through");
        let canonical = match name {
            "" | "disk" => "disk",
            VIEW => VIEW,
            _ => {
                return Err(Error::new(Kind::NotFound, format!("no export {name:?}")).hint("there is `disk`"));
            }
        };
        let device: Arc<dyn Device> = Arc::new(Ram::new(DISK_BYTES, canonical == VIEW));
        Ok(OpenExport {
            device,
            session: SessionId(1),
            canonical_name: canonical.to_owned(),
            description: String::new(),
            multi_conn: true,
            bitmaps: (canonical == VIEW).then(|| Arc::new(AllDirty) as Arc<dyn Bitmaps>),
            on_close: None,
        })
    }

    fn bitmap(&self, export: &str, name: &str, _peer: &Peer) -> Result<Option<BitmapInfo>, Error> {
        assert!(!name.contains('\0') && !name.is_empty(), "a name that is none gets through");
        match (export, name.chars().next()) {
            (VIEW, Some('a'..='m')) => {
                Ok(Some(BitmapInfo { name: name.to_owned(), key: name.to_uppercase() }))
            }
            (VIEW, Some('n'..='z')) => Err(Error::new(Kind::NotFound, "no such point")),
            (VIEW, _) => Err(Error::new(Kind::Invalid, "no point at all")),
            _ => Ok(None),
        }
    }

    fn bitmaps(&self, export: &str, _peer: &Peer) -> Result<Vec<String>, Error> {
        Ok(if export == VIEW { vec!["before".to_owned(), "early".to_owned()] } else { Vec::new() })
    }
}
