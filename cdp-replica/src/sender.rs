//! The sending side of a link: reads durable records where the receiver's history ends, and sends them.
//!
//! ```text
//! Greeting ─ HELLO ─▶ Asking ─ STATE ─▶ Streaming
//!                          ├─ STATE ─▶ Copying ─ ACK of the whole ─▶ Streaming
//!                          ├─ STATE ─▶ Comparing ─ ACK of the whole ─▶ Streaming
//!                          └─ STATE ─▶ Weighing ─ it pays ─▶ Telling ─ ACK of the whole ─▶ Streaming
//!                                         └─ it does not ─▶ Streaming
//! ```
//!
//! Nothing is queued here: what the window or the output has no room for stays in the journal.

use std::collections::VecDeque;
use std::sync::Arc;

use cdp_core::device::Device;
use cdp_core::error::Kind;
use cdp_core::format::codec::Codec;
use cdp_core::format::epoch::Epoch;
use cdp_core::format::record::{Chain, RECORD_HEADER_BYTES};
use cdp_core::history::epochs::Standing;
use cdp_core::ids::*;
use cdp_core::journal::append::{Position, Verbatim};
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::stream::LogReader;

use crate::coalesce::again::Again;
use crate::coalesce::teller::{Teller as AheadTeller, Weight};
use crate::coder::Coder;
use crate::copying::Copying;
use crate::fault::{Fault, FaultKind};
use crate::limits::*;
use crate::reseed::teller::Teller;
use crate::status::{LinkState, LinkStatus};
use crate::wire::control::{
    self, Ack, CODING_DIFFERENCES, CODING_LZ4, CODING_RANGES, CODING_REFERENCES, CODING_SECTORS, CODING_ZSTD,
    Complete, Control, Groups, Hello, Open, Start, State, TAKES_AHEAD, TAKES_GROUPS, WireAhead, WireEpoch,
    WireGroup, WireProgress,
};
use crate::wire::frame::{FrameReader, FrameType, FrameWriter};
use crate::wire::records::{self, Rest};

enum Phase {
    Greeting,
    Asking,
    Copying(Box<Copying>),
    Comparing(Box<Teller>),
    Weighing(Box<AheadTeller>),
    Telling(Box<AheadTeller>),
    Streaming(Box<Stream>),
}

struct Stream {
    reader: LogReader,
    rest: Option<Rest>,
    // The newest record of each frame that is not acknowledged, and the bytes sent up to it.
    unacknowledged: VecDeque<(Lsn, u64)>,
    sent_bytes: u64,
    acknowledged_bytes: u64,
    window_bytes: u64,
    // To be said once the record was sent.
    complete: Option<(Lsn, Timestamp)>,
    complete_said: Timestamp,
    complete_at_ns: u64,
}

/// The sending side of one connection.
pub struct Sender {
    volume: Arc<Volume>,
    address: String,
    phase: Phase,
    frames: FrameReader,
    writer: FrameWriter,
    out: Vec<u8>,
    heard_ns: u64,
    ack: Ack,
    coder: Coder,
    // Codings that may be used; once it is known, of those that the other side can undo.
    codings: u32,
    journal_bytes: u64,
    // The groups of the volume: as they are, and as the other side was told; none if it takes none.
    groups: Groups,
    groups_told: Option<Groups>,
    // Where more of the journal than this waits, in bytes, the newest state may go first.
    coalesces: Option<u64>,
    // The other side takes one.
    takes_ahead: bool,
    // Shown there ahead of the history.
    shown: Option<(Lsn, Timestamp)>,
    // Whether another one should go there.
    again: Again,
}

/// Of a copy that was broken off: its record, chain value, and the byte up to which it is durable.
type Begun = (Lsn, Chain, u64);

/// The densest that may be used: who allows zstd wants it.
fn body_codec(codings: u32) -> Codec {
    match codings {
        _ if codings & CODING_ZSTD != 0 => Codec::Zstd,
        _ if codings & CODING_LZ4 != 0 => Codec::Lz4,
        _ => Codec::None,
    }
}

impl Sender {
    /// Begins to feed the replica of `volume` that is known by this address; `now_ns` counts elapsed time.
    pub fn new(volume: Arc<Volume>, address: &str, now_ns: u64) -> Sender {
        let mut sender = Sender {
            volume,
            address: address.to_owned(),
            phase: Phase::Greeting,
            frames: FrameReader::default(),
            writer: FrameWriter::default(),
            out: Vec::new(),
            heard_ns: now_ns,
            ack: Ack::default(),
            coder: Coder::default(),
            codings: u32::MAX,
            journal_bytes: 0,
            groups: Groups::default(),
            groups_told: None,
            coalesces: None,
            takes_ahead: false,
            shown: None,
            again: Again::default(),
        };
        control::send(&mut sender.writer, &mut sender.out, &control::hello(0));
        sender
    }

    /// Where more than `bytes` of the journal wait for the replica, and it pays, the newest state goes first, and history
    /// is filled in behind it. Before any output was taken.
    pub fn coalesce(&mut self, bytes: u64) {
        self.coalesces = Some(bytes);
        self.out.clear();
        control::send(&mut self.writer, &mut self.out, &control::hello(TAKES_AHEAD));
    }

    /// Uses these codings only, a mask as in [`Hello::codings`]. Before anything was received.
    pub fn restrict_codings(&mut self, mask: u32) {
        self.codings = mask;
    }

    /// The groups that the volume is a member of, now. What is beyond the bounds of a message is not told.
    pub fn set_groups(&mut self, groups: &[(String, Vec<VolumeId>)]) {
        let wire = |(name, members): &(String, Vec<VolumeId>)| WireGroup {
            name: name.clone(),
            members: members.iter().map(|id| id.0).collect(),
        };
        self.groups = Groups { list: groups.iter().map(wire).collect() };
        while !self.groups.is_within_bounds() {
            self.groups.list.pop();
        }
    }

    /// What waits for the socket; whoever writes it takes it from the front.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Takes in what the receiver sent. After an error nothing but the output is of use.
    pub fn receive(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Fault> {
        let outcome = self.take_in(bytes, now_ns);
        self.tell(outcome)
    }

    /// Makes more output if there is room, and looks at the time. To be called every few milliseconds.
    pub fn poll(&mut self, now_ns: u64) -> Result<(), Fault> {
        let outcome = self.make_output(now_ns);
        self.tell(outcome)
    }

    /// What is known of the other side.
    pub fn fill_status(&mut self, status: &mut LinkStatus) {
        status.state = match &self.phase {
            Phase::Greeting | Phase::Asking => LinkState::Joining,
            Phase::Copying(copying) => {
                let (done_bytes, total_bytes) = copying.progress();
                LinkState::Copying { done_bytes, total_bytes }
            }
            Phase::Comparing(teller) => {
                let (done_bytes, total_bytes) = teller.progress();
                LinkState::Comparing { done_bytes, total_bytes }
            }
            Phase::Weighing(_) => LinkState::Joining,
            Phase::Telling(teller) => {
                let (sent_bytes, total_bytes) = teller.progress();
                LinkState::Coalescing { sent_bytes, total_bytes }
            }
            Phase::Streaming(_) => LinkState::Streaming,
        };
        status.shown = self.shown.filter(|(lsn, _)| *lsn > Lsn(self.ack.durable_lsn));
        status.journal_bytes += std::mem::take(&mut self.journal_bytes);
        status.coded_records += std::mem::take(&mut self.coder.coded);
        if self.ack.window_bytes > 0 {
            status.acknowledged = Lsn(self.ack.durable_lsn);
            status.complete = Timestamp(self.ack.complete_ns);
            status.oldest = (Lsn(self.ack.oldest_lsn), Timestamp(self.ack.oldest_ns));
        }
    }

    /// The other side hears of a fault that was found here.
    fn tell(&mut self, outcome: Result<(), Fault>) -> Result<(), Fault> {
        if let Err(fault) = &outcome
            && !fault.from_peer
        {
            control::send_fault(&mut self.writer, &mut self.out, fault);
        }
        outcome
    }

    fn take_in(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Fault> {
        // Over a thin line one frame may take minutes.
        if !bytes.is_empty() {
            self.heard_ns = now_ns;
        }
        self.frames.push(bytes);
        let mut frames = std::mem::take(&mut self.frames);
        while let Some((kind, body)) = frames.next_frame()? {
            self.take_frame(kind, body)?;
        }
        self.frames = frames;
        Ok(())
    }

    fn take_frame(&mut self, kind: FrameType, body: &[u8]) -> Result<(), Fault> {
        match (&mut self.phase, kind) {
            (_, FrameType::Error) => Err(control::read_fault(body)),
            (_, FrameType::Epoch) => self.hear(&Epoch::from(&control::read::<WireEpoch>(body)?)),
            (Phase::Greeting, FrameType::Hello) => {
                let hello = control::read::<Hello>(body)?;
                control::check_hello(&hello)?;
                self.codings &= hello.codings;
                let codings = self.codings;
                self.writer.codec = body_codec(codings);
                self.coder.is_on = codings & CODING_SECTORS != 0;
                self.coder.differences = codings & CODING_DIFFERENCES != 0;
                self.coder.references = codings & CODING_REFERENCES != 0;
                self.groups_told = (codings & TAKES_GROUPS != 0).then(Groups::default);
                self.takes_ahead = hello.codings & TAKES_AHEAD != 0;
                self.open();
                self.phase = Phase::Asking;
                Ok(())
            }
            (Phase::Asking, FrameType::State) => self.join(control::read(body)?),
            (Phase::Copying(_), FrameType::Ack) => self.copied(control::read(body)?),
            (Phase::Comparing(_), FrameType::Ack) => self.compared(control::read(body)?),
            (Phase::Comparing(teller), FrameType::Differs) => teller.answered(body),
            (Phase::Telling(_), FrameType::Ack) => self.told(control::read(body)?),
            (Phase::Streaming(_), FrameType::Ack) => self.acknowledged(control::read(body)?),
            _ => Err(Fault::protocol(format!("a {kind:?} frame out of turn"))),
        }
    }

    fn open(&mut self) {
        let identity = self.volume.identity();
        let open = Open {
            volume: identity.id.0,
            name: identity.name.clone(),
            created_ns: identity.created.0,
            first_size_bytes: identity.first_size_bytes,
            segment_bytes: identity.segment_bytes,
            marker_interval_ns: identity.marker_interval_ns,
            oldest_lsn: self.volume.oldest().0.0,
            durable_lsn: self.volume.durable_lsn().0,
            epochs: control::list_epochs(&self.volume.epochs()),
        };
        control::send(&mut self.writer, &mut self.out, &open);
    }

    /// The other side tells of an epoch. A primary that is not the newest one any more stops writing here.
    fn hear(&self, theirs: &Epoch) -> Result<(), Fault> {
        let name = self.volume.name();
        let kind = match self.volume.hear_of(theirs, &format!("the replica at {}", self.address))? {
            Standing::Same | Standing::Above => return Ok(()),
            Standing::Fenced => FaultKind::Fenced,
            Standing::SplitBrain => FaultKind::Fork,
        };
        let ours = self.volume.epochs().newest().number.0;
        let text = format!(
            "volume {name} has epoch {} at {}, and epoch {ours} here: nothing is sent, both histories are kept",
            theirs.number.0, self.address
        );
        Err(Fault::new(kind, text))
    }

    /// Whether what the receiver has, up to `durable`, is the beginning of what is here, as far as epochs tell.
    fn check_epochs(&self, durable: Lsn, list: &[WireEpoch]) -> Result<(), Fault> {
        let theirs = control::read_epochs(self.volume.identity().id, list)?;
        self.hear(&theirs.newest())?;
        let join = self.volume.epochs().join(self.volume.durable_lsn(), &theirs, durable);
        if !join.theirs_beyond {
            return Ok(());
        }
        let text = format!(
            "volume {} and its replica part behind {:?}: the replica goes on to {durable:?} with what is not here; nothing is sent, both histories are kept",
            self.volume.name(),
            join.common
        );
        Err(Fault::new(FaultKind::Fork, text))
    }

    /// Where the two histories join, if they do.
    fn join(&mut self, state: State) -> Result<(), Fault> {
        let (mut there, mut is_absent) = (None, false);
        let (lsn, chain) = match state {
            State::Absent if self.volume.is_whole() => {
                is_absent = true;
                (Lsn::ZERO, Chain::default())
            }
            State::Here { durable_lsn, chain, epochs, .. } => {
                self.check_epochs(Lsn(durable_lsn), &epochs)?;
                (Lsn(durable_lsn), Chain(chain))
            }
            State::Ahead { durable_lsn, chain, epochs, ahead, .. } => {
                self.check_epochs(Lsn(durable_lsn), &epochs)?;
                there = Some(ahead);
                (Lsn(durable_lsn), Chain(chain))
            }
            State::Absent => {
                let held = self.volume.hold_for_copy(&self.address)?;
                return self.copy(held, None);
            }
            State::Copying { lsn, chain, done_bytes } => {
                let held = self.volume.hold_for_copy(&self.address)?;
                return self.copy(held, Some((Lsn(lsn), Chain(chain), done_bytes)));
            }
            State::Seeded { lsn, chain, done_bytes } => {
                let begun = (chain != [0; 16]).then_some((Lsn(lsn), Chain(chain), done_bytes));
                let held = self.volume.hold_for_reseed(&self.address, begun.map(|(lsn, ..)| lsn))?;
                return match self.codings & CODING_RANGES {
                    0 => self.copy(held, begun),
                    _ => self.compare(held, begun),
                };
            }
        };
        let name = self.volume.name();
        let durable = self.volume.durable_lsn();
        if lsn > durable {
            let text = format!(
                "the replica of volume {name} is ahead: it has {lsn:?}, and {durable:?} is the newest here; both histories are kept"
            );
            return Err(Fault::new(FaultKind::Fork, text));
        }
        let reader = LogReader::behind(&self.volume, lsn).map_err(|error| match error.kind() {
            Kind::OutOfRange => {
                let text = format!(
                    "the replica of volume {name} has the history up to {lsn:?}, and what follows is not kept here any more; remove the replica and add it again, or, to be sent only what differs, ask for that there: `cdp replica reseed`"
                );
                Fault::new(FaultKind::Behind, text)
            }
            _ => Fault::from(error),
        })?;
        if reader.position().chain != chain {
            let text = format!(
                "a fork of volume {name}: both sides have {lsn:?}, but not the same history up to it; nothing is sent, both histories are kept"
            );
            return Err(Fault::new(FaultKind::Fork, text));
        }
        // Held from where the replica really is, before anything moves on.
        self.volume.hold_replica(&self.address, lsn)?;
        // Where there is no volume yet a newest state has nothing to lie over.
        let ahead = if is_absent { None } else { self.ahead_of(reader.position(), there)? };
        match ahead {
            Some(teller) => self.phase = Phase::Weighing(Box::new(teller)),
            None => self.start_log(reader),
        }
        Ok(())
    }

    fn start_log(&mut self, reader: LogReader) {
        let Position { lsn, chain, .. } = reader.position();
        let start = Start::Log { from_lsn: lsn.next().0, chain_before: chain.0 };
        control::send(&mut self.writer, &mut self.out, &start);
        self.stream(reader);
    }

    /// The newest state that may go ahead of the history behind `from`, if one may; `there` is what the replica has of one.
    fn ahead_of(&mut self, from: Position, there: Option<WireAhead>) -> Result<Option<AheadTeller>, Fault> {
        let Some(bytes_min) = self.coalesces.filter(|_| self.takes_ahead) else { return Ok(None) };
        let begun = match there.map(|ahead| (ahead, ahead.progress)) {
            Some((ahead, WireProgress::Whole)) => {
                let to = self.check_ahead(&ahead)?;
                self.shown = Some((to.lsn, to.timestamp));
                return Ok(None);
            }
            Some((_, WireProgress::GivenUp)) => return Ok(None),
            // One of another history is begun anew.
            Some((ahead, WireProgress::Begun)) if ahead.from_lsn == from.lsn.0 => {
                self.check_ahead(&ahead).ok().map(|to| (to, ahead.done_block))
            }
            _ => None,
        };
        let (to, done_block, limit_blocks) = match begun {
            Some((to, done_block)) => (to, done_block, u64::MAX),
            None => {
                let behind = self.volume.bytes_behind(from.lsn);
                let newest = self.volume.durable_lsn();
                if behind < bytes_min || newest <= from.lsn {
                    return Ok(None);
                }
                // Of a site that took over and has not all of its newest state yet, or sends it to one that has not.
                let course = self.volume.course();
                if [from.lsn, newest].iter().any(|lsn| course.gap_of(*lsn).is_some()) {
                    return Ok(None);
                }
                (self.volume.position_at(newest)?, 0, behind / AHEAD_SHARE / BLOCK_BYTES)
            }
        };
        let holder = format!("the newest state for {}", self.address);
        let open = |lsn| View::open(self.volume.clone(), lsn, &holder);
        let views = (open(from.lsn)?, open(to.lsn)?);
        AheadTeller::new((from, to), views, done_block, limit_blocks).map(Some)
    }

    /// A connection that lives, on a line that stalled: where history alone would take long, the next one begins with the newest
    /// state. Not as long as the last one is shown ahead of the history.
    fn end_if_far_behind(&mut self, now_ns: u64) -> Result<(), Fault> {
        let (Some(bytes_min), Phase::Streaming(stream)) = (self.coalesces, &self.phase) else {
            return Ok(());
        };
        if self.shown.is_some_and(|(lsn, _)| lsn > Lsn(self.ack.durable_lsn)) {
            self.again.was_sent();
            return Ok(());
        }
        let sent = stream.reader.position().lsn;
        if !self.takes_ahead || !self.again.is_due(bytes_min, now_ns, || self.volume.bytes_behind(sent)) {
            return Ok(());
        }
        let text = format!("volume {} is far behind there: its newest state goes first", self.volume.name());
        Err(Fault::new(FaultKind::Closing, text))
    }

    /// What the replica shows, or is going to, has to be of the history here.
    fn check_ahead(&self, ahead: &WireAhead) -> Result<Position, Fault> {
        let (lsn, durable) = (Lsn(ahead.lsn), self.volume.durable_lsn());
        let position = if lsn <= durable { Some(self.volume.position_at(lsn)?) } else { None };
        position.filter(|position| position.chain.0 == ahead.chain).ok_or_else(|| {
            let text = format!(
                "a fork of volume {}: its replica shows the state after {lsn:?} ahead of its history, and that is not of the history here, which ends with {durable:?}; nothing is sent, both are kept. There, `cdp replica newest {0} --drop` lets that state go",
                self.volume.name()
            );
            Fault::new(FaultKind::Fork, text)
        })
    }

    fn weigh(&mut self, now_ns: u64) -> Result<(), Fault> {
        let Phase::Weighing(teller) = &mut self.phase else { unreachable!("the caller looked") };
        match teller.weigh(&mut self.writer, &mut self.out, now_ns)? {
            Weight::NotYet => {}
            Weight::Heavy => {
                let reader = LogReader::behind(&self.volume, teller.from().lsn)?;
                self.start_log(reader);
            }
            Weight::Light => {
                control::send(&mut self.writer, &mut self.out, &teller.start());
                let weighing = std::mem::replace(&mut self.phase, Phase::Asking);
                let Phase::Weighing(teller) = weighing else { unreachable!("it was looked at") };
                self.phase = Phase::Telling(teller);
            }
        }
        Ok(())
    }

    fn told(&mut self, ack: Ack) -> Result<(), Fault> {
        let Phase::Telling(teller) = &mut self.phase else { unreachable!("the caller looked") };
        if !teller.acknowledged(&ack)? {
            return Ok(());
        }
        let (from, to) = (teller.from(), teller.to());
        self.shown = Some((to.lsn, to.timestamp));
        self.follow(from)
    }

    /// The state after `held`, where it stands, and the byte to go on at, of one that was begun.
    fn state_at(&self, held: Lsn, begun: Option<Begun>) -> Result<(View, Position, u64), Fault> {
        let view = View::open(self.volume.clone(), held, &format!("the first copy at {}", self.address))?;
        let position = LogReader::behind(&self.volume, held)?.position();
        let at = match begun {
            Some((lsn, chain, done)) if lsn == held && chain == position.chain => done,
            _ => 0,
        };
        Ok((view, position, at))
    }

    /// As [`Sender::copy`], but of what the replica has already only what differs.
    fn compare(&mut self, held: Lsn, begun: Option<Begun>) -> Result<(), Fault> {
        let (view, position, at) = self.state_at(held, begun)?;
        let start = Start::Compare {
            lsn: held.0,
            ns: position.timestamp.0,
            chain: position.chain.0,
            size_bytes: view.size_bytes(),
            from_byte: at,
        };
        let teller = Teller::new(view, position, at)?;
        control::send(&mut self.writer, &mut self.out, &start);
        self.phase = Phase::Comparing(Box::new(teller));
        Ok(())
    }

    fn compared(&mut self, ack: Ack) -> Result<(), Fault> {
        let Phase::Comparing(teller) = &mut self.phase else { unreachable!("the caller looked") };
        if !teller.acknowledged(&ack)? {
            return Ok(());
        }
        let position = teller.position();
        self.follow(position)
    }

    /// The state that is held for the replica goes there first. `begun` is what it has of one already.
    fn copy(&mut self, held: Lsn, begun: Option<Begun>) -> Result<(), Fault> {
        let (view, position, at) = self.state_at(held, begun)?;
        let start = Start::Copy {
            lsn: held.0,
            ns: position.timestamp.0,
            chain: position.chain.0,
            size_bytes: view.size_bytes(),
            from_byte: at,
        };
        let copying = Copying::new(view, position, at)?;
        control::send(&mut self.writer, &mut self.out, &start);
        self.phase = Phase::Copying(Box::new(copying));
        Ok(())
    }

    fn copied(&mut self, ack: Ack) -> Result<(), Fault> {
        let Phase::Copying(copying) = &mut self.phase else { unreachable!("the caller looked") };
        if !copying.acknowledged(&ack)? {
            return Ok(());
        }
        let position = copying.position();
        self.follow(position)
    }

    /// The copied state is a volume there: records follow.
    fn follow(&mut self, position: Position) -> Result<(), Fault> {
        let reader = LogReader::behind(&self.volume, position.lsn)?;
        self.volume.hold_replica(&self.address, position.lsn)?;
        self.stream(reader);
        Ok(())
    }

    fn stream(&mut self, reader: LogReader) {
        let Position { lsn, chain, .. } = reader.position();
        self.ack = Ack { durable_lsn: lsn.0, chain: chain.0, ..Ack::default() };
        self.phase = Phase::Streaming(Box::new(Stream {
            reader,
            rest: None,
            unacknowledged: VecDeque::new(),
            sent_bytes: 0,
            acknowledged_bytes: 0,
            // The receiver says more with its first acknowledgement.
            window_bytes: FRAME_PAYLOAD_BYTES as u64,
            complete: None,
            complete_said: Timestamp(0),
            complete_at_ns: 0,
        }));
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), Fault> {
        let Phase::Streaming(stream) = &mut self.phase else { unreachable!("the caller looked") };
        let lsn = Lsn(ack.durable_lsn);
        if lsn < Lsn(self.ack.durable_lsn) || lsn > stream.reader.position().lsn {
            return Err(Fault::protocol(format!("an acknowledgement of {lsn:?}, which was not sent")));
        }
        // It may have been told on an earlier connection: then it is over by now. What a site passes on it may have
        // forgotten, but not what its own clock gave.
        let complete = Timestamp(ack.complete_ns);
        if complete > stream.complete_said.max(stream.reader.position().timestamp)
            && self.volume.is_primary()
            && complete > self.volume.complete_through().1
        {
            return Err(Fault::protocol("an acknowledgement of an instant that was not told"));
        }
        while let Some((through, bytes)) = stream.unacknowledged.front().copied()
            && through <= lsn
        {
            stream.acknowledged_bytes = bytes;
            stream.unacknowledged.pop_front();
        }
        stream.window_bytes = ack.window_bytes.min(WINDOW_BYTES_MAX);
        self.ack = ack;
        self.volume.note_acknowledged(&self.address, lsn, Timestamp(ack.complete_ns))?;
        Ok(())
    }

    fn make_output(&mut self, now_ns: u64) -> Result<(), Fault> {
        if let Phase::Weighing(_) = &self.phase {
            // The other side waits for START, and says nothing.
            self.heard_ns = now_ns;
        }
        if now_ns.saturating_sub(self.heard_ns) > SILENCE_NS_MAX {
            return Err(Fault::new(FaultKind::Closing, "the other side has said nothing for 10 seconds"));
        }
        if let Phase::Copying(copying) = &mut self.phase {
            return copying.send(&mut self.writer, &mut self.out, now_ns);
        }
        if let Phase::Comparing(teller) = &mut self.phase {
            return teller.send(&mut self.writer, &mut self.out, now_ns);
        }
        match &mut self.phase {
            Phase::Weighing(_) => return self.weigh(now_ns),
            Phase::Telling(teller) => return teller.send(&mut self.writer, &mut self.out, now_ns),
            _ => {}
        }
        self.end_if_far_behind(now_ns)?;
        let Phase::Streaming(stream) = &mut self.phase else { return Ok(()) };
        if let Some(told) = &mut self.groups_told
            && *told != self.groups
            && stream.rest.is_none()
        {
            control::send(&mut self.writer, &mut self.out, &self.groups);
            told.clone_from(&self.groups);
        }
        while self.out.len() < OUTPUT_BYTES {
            let before = self.out.len();
            if let Some(rest) = &mut stream.rest {
                if rest.send(&mut self.writer, &mut self.out) {
                    stream.rest = None;
                }
            } else if stream.sent_bytes - stream.acknowledged_bytes < stream.window_bytes
                || stream.unacknowledged.is_empty()
            {
                let chain = stream.reader.position().chain;
                let records = stream.reader.read(FRAME_PAYLOAD_BYTES as u64, RECORDS_PER_FRAME)?;
                if records.is_empty() {
                    break;
                }
                let bytes = |record: &Verbatim| RECORD_HEADER_BYTES + record.payload.len();
                self.journal_bytes += records.iter().map(bytes).sum::<usize>() as u64;
                let coded = records.into_iter().map(|record| self.coder.code(&self.volume, record)).collect();
                stream.rest = records::send(&mut self.writer, &mut self.out, chain, coded);
            } else {
                break;
            }
            stream.sent_bytes += (self.out.len() - before) as u64;
            let newest = stream.reader.position().lsn;
            match stream.unacknowledged.back_mut() {
                Some(last) if last.0 == newest => last.1 = stream.sent_bytes,
                _ => stream.unacknowledged.push_back((newest, stream.sent_bytes)),
            }
        }
        if stream.complete.is_none() && now_ns.saturating_sub(stream.complete_at_ns) >= COMPLETE_NS {
            stream.complete = Some(self.volume.promise_complete());
        }
        if let Some((lsn, at)) = stream.complete
            && stream.rest.is_none()
            && stream.reader.position().lsn >= lsn
        {
            // Also when it is the same as before: it tells that this side lives.
            control::send(&mut self.writer, &mut self.out, &Complete { ns: at.0 });
            stream.complete_said = stream.complete_said.max(at);
            stream.complete_at_ns = now_ns;
            stream.complete = None;
        }
        Ok(())
    }
}
