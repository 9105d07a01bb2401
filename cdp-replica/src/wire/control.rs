//! Control messages: the only place that names `bincode`. PROTOCOL.md, "Frames".

use bincode::{Decode, Encode, config};
use cdp_core::format::epoch::Epoch;
use cdp_core::format::record::Chain;
use cdp_core::history::epochs::Epochs;
use cdp_core::ids::{EpochNumber, Lsn, VolumeId};
use cdp_core::limits::EPOCHS_MAX;

use super::frame::{FrameType, FrameWriter};
use crate::fault::{Fault, FaultKind};
use crate::limits::{CONTROL_BYTES_MAX, ERROR_TEXT_BYTES, GROUP_MEMBERS_MAX, GROUPS_MAX, NAME_BYTES_MAX};

/// Protocol versions that this program speaks.
pub const VERSIONS: (u16, u16) = (1, 1);
/// Bit of [`Hello::codings`]: bodies in LZ4.
pub const CODING_LZ4: u32 = 1;
/// Bit of [`Hello::codings`]: bodies in zstd.
pub const CODING_ZSTD: u32 = 2;
/// Bit of [`Hello::codings`]: payloads as the sectors that differ from what their blocks held before, or as zeros.
pub const CODING_SECTORS: u32 = 4;
/// Bit of [`Hello::codings`]: such sectors XOR what they were.
pub const CODING_DIFFERENCES: u32 = 8;

/// Bit of [`Hello::codings`]: takes [`Groups`].
pub const TAKES_GROUPS: u32 = 16;
/// Bit of [`Hello::codings`]: it can compare ranges.
pub const CODING_RANGES: u32 = 32;
/// Bit of [`Hello::codings`]: of a receiver, that it takes a newest state ahead of the history; of a sender, that it may
/// send one.
pub const TAKES_AHEAD: u32 = 64;
/// Bit of [`Hello::codings`]: payloads by the numbers of blocks that have their content.
pub const CODING_REFERENCES: u32 = 128;

/// Those that need what blocks held before at the other side.
pub const CODING_AGAINST_OLDER: u32 = CODING_SECTORS | CODING_DIFFERENCES | CODING_REFERENCES;

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Hello {
    /// The lowest version it speaks.
    pub lowest: u16,
    /// The highest.
    pub highest: u16,
    /// Codings that it can undo.
    pub codings: u32,
    /// Name and version of the program, for people.
    pub program: String,
}

/// An epoch, as on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WireEpoch {
    /// Its number.
    pub number: u32,
    /// Its random id.
    pub id: u128,
    /// The record it begins with.
    pub start_lsn: u64,
    /// The chain value before that record.
    pub chain: [u8; 16],
}

impl From<&Epoch> for WireEpoch {
    fn from(epoch: &Epoch) -> WireEpoch {
        WireEpoch { number: epoch.number.0, id: epoch.id, start_lsn: epoch.start.0, chain: epoch.chain.0 }
    }
}

impl From<&WireEpoch> for Epoch {
    fn from(epoch: &WireEpoch) -> Epoch {
        Epoch {
            number: EpochNumber(epoch.number),
            id: epoch.id,
            start: Lsn(epoch.start_lsn),
            chain: Chain(epoch.chain),
        }
    }
}

/// A volume's epochs for the wire: without the first, which follows from its id.
pub fn list_epochs(epochs: &Epochs) -> Vec<WireEpoch> {
    epochs.list()[1..].iter().map(WireEpoch::from).collect()
}

/// A volume's epochs from the wire.
pub fn read_epochs(volume: VolumeId, list: &[WireEpoch]) -> Result<Epochs, Fault> {
    let list: Vec<Epoch> = list.iter().map(Epoch::from).collect();
    Epochs::of(volume, &list).ok_or_else(|| Fault::protocol("epochs that do not follow each other"))
}

/// Which volume, and what is there of it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Open {
    /// Its id.
    pub volume: u128,
    /// Its name.
    pub name: String,
    /// When it was made, in Unix nanoseconds.
    pub created_ns: u64,
    /// The size it was made with, in bytes.
    pub first_size_bytes: u64,
    /// Size of its segments in bytes.
    pub segment_bytes: u64,
    /// How often it is marked, in nanoseconds.
    pub marker_interval_ns: u64,
    /// Its oldest state.
    pub oldest_lsn: u64,
    /// Its newest durable record.
    pub durable_lsn: u64,
    /// Its epochs; none where nothing was ever promoted.
    pub epochs: Vec<WireEpoch>,
}

/// What the receiver has of it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum State {
    /// Nothing.
    Absent,
    /// A replica.
    Here {
        /// Its newest durable record.
        durable_lsn: u64,
        /// That record's timestamp.
        durable_ns: u64,
        /// The chain value after it.
        chain: [u8; 16],
        /// Its oldest state.
        oldest_lsn: u64,
        /// Its epochs.
        epochs: Vec<WireEpoch>,
    },
    /// A first copy that was broken off.
    Copying {
        /// The record whose state it is.
        lsn: u64,
        /// The chain value after it.
        chain: [u8; 16],
        /// It is durable up to this byte.
        done_bytes: u64,
    },
    /// Something to compare a state with; and of the copy that was begun the same as in [`State::Copying`], zeros if none
    /// was.
    Seeded {
        /// The record whose state it is.
        lsn: u64,
        /// The chain value after it.
        chain: [u8; 16],
        /// It is durable up to this byte.
        done_bytes: u64,
    },
    /// A replica that has something of a newest state, too. To a sender that may send one.
    Ahead {
        /// As in [`State::Here`].
        durable_lsn: u64,
        /// The same.
        durable_ns: u64,
        /// The same.
        chain: [u8; 16],
        /// The same.
        oldest_lsn: u64,
        /// The same.
        epochs: Vec<WireEpoch>,
        /// The newest state.
        ahead: WireAhead,
    },
}

/// A newest state that came ahead of the history, or comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WireAhead {
    /// The record whose state it is.
    pub lsn: u64,
    /// The chain value after it.
    pub chain: [u8; 16],
    /// The record over whose state it lies.
    pub from_lsn: u64,
    /// Everything before this block has come, durably.
    pub done_block: u64,
    /// How far it is.
    pub progress: WireProgress,
}

/// How far a newest state is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum WireProgress {
    /// Its blocks come.
    Begun,
    /// It is shown.
    Whole,
    /// The receiver gave it up, and wants none before its history has arrived there.
    GivenUp,
}

/// Where it begins.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Start {
    /// With records.
    Log {
        /// The first.
        from_lsn: u64,
        /// The chain value before it.
        chain_before: [u8; 16],
    },
    /// With a copy of a state.
    Copy {
        /// The record whose state it is.
        lsn: u64,
        /// Its timestamp.
        ns: u64,
        /// The chain value after it.
        chain: [u8; 16],
        /// The volume's size then, in bytes.
        size_bytes: u64,
        /// From this byte on.
        from_byte: u64,
    },
    /// The same, by comparing ranges with what is there.
    Compare {
        /// The record whose state it is.
        lsn: u64,
        /// Its timestamp.
        ns: u64,
        /// The chain value after it.
        chain: [u8; 16],
        /// The volume's size then, in bytes.
        size_bytes: u64,
        /// From this byte on.
        from_byte: u64,
    },
    /// With the blocks of a newest state that differ from what is there; records follow when it is whole.
    Ahead {
        /// The record whose state it is.
        lsn: u64,
        /// Its timestamp.
        ns: u64,
        /// The chain value after it.
        chain: [u8; 16],
        /// The volume's size then, in bytes.
        size_bytes: u64,
        /// The newest record there, from which it differs.
        from_lsn: u64,
        /// The chain value after that.
        chain_before: [u8; 16],
        /// From this block on.
        from_block: u64,
    },
}

/// What is durable at the receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Ack {
    /// Its newest durable record.
    pub durable_lsn: u64,
    /// The chain value after it.
    pub chain: [u8; 16],
    /// Everything up to this instant is durable.
    pub complete_ns: u64,
    /// Its oldest state.
    pub oldest_lsn: u64,
    /// That record's timestamp.
    pub oldest_ns: u64,
    /// So many bytes of frames may be sent beyond what is acknowledged.
    pub window_bytes: u64,
    /// A first copy is durable up to this byte.
    pub copied_bytes: u64,
}

/// Up to when everything was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Complete {
    /// Unix nanoseconds.
    pub ns: u64,
}

/// A group that the volume is a member of.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WireGroup {
    /// Its name.
    pub name: String,
    /// The ids of its members, in the group's order.
    pub members: Vec<u128>,
}

/// The groups that the volume is a member of.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Groups {
    /// By name.
    pub list: Vec<WireGroup>,
}

/// The connection ends.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Failed {
    /// A [`FaultKind`].
    pub kind: u16,
    /// For people.
    pub text: String,
}

/// A control message.
pub trait Control: Encode + Decode<()> {
    /// The frame it travels in.
    const TYPE: FrameType;

    /// Whether its lists and texts are within their bounds.
    fn is_within_bounds(&self) -> bool {
        true
    }
}

impl Control for Hello {
    const TYPE: FrameType = FrameType::Hello;
    fn is_within_bounds(&self) -> bool {
        self.program.len() <= NAME_BYTES_MAX && self.lowest <= self.highest
    }
}
impl Control for Open {
    const TYPE: FrameType = FrameType::Open;
    fn is_within_bounds(&self) -> bool {
        self.name.len() <= NAME_BYTES_MAX && self.epochs.len() <= EPOCHS_MAX
    }
}
impl Control for State {
    const TYPE: FrameType = FrameType::State;
    fn is_within_bounds(&self) -> bool {
        !matches!(self, State::Here { epochs, .. } | State::Ahead { epochs, .. } if epochs.len() > EPOCHS_MAX)
    }
}
impl Control for Start {
    const TYPE: FrameType = FrameType::Start;
}
impl Control for Ack {
    const TYPE: FrameType = FrameType::Ack;
}
impl Control for Complete {
    const TYPE: FrameType = FrameType::Complete;
}
impl Control for Groups {
    const TYPE: FrameType = FrameType::Groups;
    fn is_within_bounds(&self) -> bool {
        self.list.len() <= GROUPS_MAX
            && self.list.iter().all(|group| group.name.len() <= NAME_BYTES_MAX)
            && self.list.iter().map(|group| group.members.len()).sum::<usize>() <= GROUP_MEMBERS_MAX
    }
}
impl Control for WireEpoch {
    const TYPE: FrameType = FrameType::Epoch;
}
impl Control for Failed {
    const TYPE: FrameType = FrameType::Error;
    fn is_within_bounds(&self) -> bool {
        self.text.len() <= ERROR_TEXT_BYTES
    }
}

fn bounded() -> impl config::Config {
    config::legacy().with_limit::<CONTROL_BYTES_MAX>()
}

/// Appends a message as a frame.
pub fn send<M: Control>(writer: &mut FrameWriter, out: &mut Vec<u8>, message: &M) {
    let body = bincode::encode_to_vec(message, bounded()).expect("what is sent is within its bounds");
    writer.frame(out, M::TYPE, &body);
}

/// Reads a message from a frame's body.
pub fn read<M: Control>(body: &[u8]) -> Result<M, Fault> {
    let wrong = || Fault::protocol(format!("a {:?} message that makes no sense", M::TYPE));
    match bincode::decode_from_slice::<M, _>(body, bounded()) {
        Ok((message, len)) if len == body.len() && message.is_within_bounds() => Ok(message),
        _ => Err(wrong()),
    }
}

/// Appends what a fault is to the other side.
pub fn send_fault(writer: &mut FrameWriter, out: &mut Vec<u8>, fault: &Fault) {
    let mut text = fault.text.clone();
    while text.len() > ERROR_TEXT_BYTES {
        text.pop();
    }
    send(writer, out, &Failed { kind: fault.kind as u16, text });
}

/// A fault that the other side tells of.
pub fn read_fault(body: &[u8]) -> Fault {
    match read::<Failed>(body) {
        Ok(failed) => Fault { kind: FaultKind::from_u16(failed.kind), text: failed.text, from_peer: true },
        Err(fault) => fault,
    }
}

/// What we say first; `more` may be [`TAKES_AHEAD`].
pub fn hello(more: u32) -> Hello {
    Hello {
        lowest: VERSIONS.0,
        highest: VERSIONS.1,
        codings: CODING_LZ4
            | CODING_ZSTD
            | CODING_SECTORS
            | CODING_DIFFERENCES
            | TAKES_GROUPS
            | CODING_RANGES
            | CODING_REFERENCES
            | more,
        program: concat!("cdp ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Whether the two can speak with each other.
pub fn check_hello(hello: &Hello) -> Result<(), Fault> {
    if hello.highest < VERSIONS.0 || hello.lowest > VERSIONS.1 {
        let text = format!(
            "{} speaks versions {} to {} of the protocol, this program {} to {}",
            hello.program, hello.lowest, hello.highest, VERSIONS.0, VERSIONS.1
        );
        return Err(Fault::new(FaultKind::Rights, text));
    }
    Ok(())
}
