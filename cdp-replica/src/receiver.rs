//! The receiving side of a link: appends records to a replica, makes them durable, and acknowledges that.
//!
//! ```text
//! Greeting ─ HELLO ─▶ Opening ─ OPEN ─▶ Starting ─ START ─▶ Receiving
//!                                              └─ START ─▶ Copying ─ all of it ─▶ Receiving
//!                                    (what is here of it is compared, where somebody asked for that)
//!                                              └─ START ─▶ Taking ─ all of it ─▶ Receiving
//! ```
//!
//! There is no message by which the other side could shorten, delete or promote anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cdp_core::device::Device;
use cdp_core::format::epoch::Epoch;
use cdp_core::format::record::Chain;
use cdp_core::history::epochs::{Epochs, Standing};
use cdp_core::ids::*;
use cdp_core::store::Store;
use cdp_core::store::copies::ReplicaCopy;
use cdp_core::store::replicas::{Copied, Origin};
use cdp_core::store::seeds::SeedPlan;
use cdp_core::volume::Volume;
use cdp_core::volume::coalesced::{CoalescedState, Come, Progress};
use cdp_core::volume::epoch::Elsewhere;

use crate::coalesce::taker::Taker as AheadTaker;
use crate::fault::{Fault, FaultKind};
use crate::intake::{Intake, end_of};
use crate::limits::*;
use crate::reseed::taker::Taker;
use crate::syncer::Syncer;
use crate::wire::control::{
    self, Ack, CODING_RANGES, Complete, Groups, Hello, Open, Start, State, TAKES_AHEAD, WireAhead, WireEpoch,
    WireGroup, WireProgress,
};
use crate::wire::copy;
use crate::wire::frame::{FrameReader, FrameType, FrameWriter};
use crate::wire::ranges::Grid;

/// Which connection feeds which volume: of two for the same one the newer counts.
#[derive(Default)]
pub struct Feeding {
    newest: Mutex<BTreeMap<VolumeId, u64>>,
}

impl Feeding {
    fn take_over(&self, volume: VolumeId) -> u64 {
        let mut newest = self.newest.lock().expect("no panics under this lock");
        let number = newest.entry(volume).or_default();
        *number += 1;
        *number
    }

    pub(crate) fn is_newest(&self, volume: VolumeId, number: u64) -> bool {
        self.newest.lock().expect("no panics under this lock").get(&volume) == Some(&number)
    }
}

enum Phase {
    Greeting,
    Opening,
    Starting(Box<Starting>),
    Copying(Box<Copying>),
    Taking(Box<AheadTaker>),
    Receiving(Box<Intake>),
}

/// What was told, and is to begin.
struct Starting {
    name: String,
    origin: Origin,
    // None: it will be made.
    volume: Option<Arc<Volume>>,
    // It is copied anew, and compared with what this says.
    plan: Option<SeedPlan>,
}

/// A first copy that comes in.
struct Copying {
    name: String,
    // Whose place it takes.
    old: Option<Arc<Volume>>,
    taker: Option<Taker>,
    volume: VolumeId,
    number: u64,
    // None once it became a volume.
    copy: Option<ReplicaCopy>,
    // Everything before this byte has come.
    at: u64,
    size_bytes: u64,
    unsynced_bytes: u64,
    // Up to this byte it is being made durable.
    settling: Option<u64>,
    synced_at_ns: u64,
    acknowledged_at_ns: u64,
    is_whole: bool,
}

/// The receiving side of one connection.
pub struct Receiver {
    store: Arc<Store>,
    feeding: Arc<Feeding>,
    // The other site, as its certificate says.
    peer: String,
    phase: Phase,
    frames: FrameReader,
    writer: FrameWriter,
    out: Vec<u8>,
    heard_ns: u64,
    syncer: Syncer,
    // The other side can compare ranges.
    compares: bool,
    // It may send a newest state ahead of the history.
    may_coalesce: bool,
    // When somebody was looked for who wants the volume copied anew.
    looked_at_ns: u64,
}

impl Receiver {
    /// Begins with a client whose certificate says that it is the site `peer`, and that it may send.
    pub fn new(store: Arc<Store>, feeding: Arc<Feeding>, peer: &str, now_ns: u64) -> Receiver {
        let mut receiver = Receiver {
            store,
            feeding,
            peer: peer.to_owned(),
            phase: Phase::Greeting,
            frames: FrameReader::default(),
            writer: FrameWriter::default(),
            out: Vec::new(),
            heard_ns: now_ns,
            syncer: Syncer::Here,
            compares: false,
            may_coalesce: false,
            looked_at_ns: now_ns,
        };
        control::send(&mut receiver.writer, &mut receiver.out, &control::hello(TAKES_AHEAD));
        receiver
    }

    /// Records are synced on a thread of their own from now on.
    pub fn sync_beside(&mut self) -> Result<(), Fault> {
        self.syncer = Syncer::beside()?;
        Ok(())
    }

    /// What waits for the socket; whoever writes it takes it from the front.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// The volume that is fed, once it is known.
    pub fn volume(&self) -> Option<&Arc<Volume>> {
        match &self.phase {
            Phase::Receiving(intake) => Some(&intake.volume),
            Phase::Taking(taker) => Some(&taker.volume),
            _ => None,
        }
    }

    /// Takes in what the sender sent. After an error nothing but the output is of use; what was appended stays.
    pub fn receive(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Fault> {
        let outcome = self.take_in(bytes, now_ns);
        self.tell(outcome)
    }

    /// Appends and syncs what came, acknowledges it, looks at the time. To be called when all that came was taken in, and
    /// every few milliseconds.
    pub fn poll(&mut self, now_ns: u64) -> Result<(), Fault> {
        let outcome = self.settle(now_ns);
        self.tell(outcome)
    }

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
            self.take_frame(kind, body, now_ns)?;
        }
        self.frames = frames;
        Ok(())
    }

    fn take_frame(&mut self, kind: FrameType, body: &[u8], now_ns: u64) -> Result<(), Fault> {
        match (&mut self.phase, kind) {
            (_, FrameType::Error) => return Err(control::read_fault(body)),
            (Phase::Greeting, FrameType::Hello) => {
                let hello = control::read::<Hello>(body)?;
                control::check_hello(&hello)?;
                self.compares = hello.codings & CODING_RANGES != 0;
                self.may_coalesce = hello.codings & TAKES_AHEAD != 0;
                self.phase = Phase::Opening;
            }
            (Phase::Opening, FrameType::Open) => self.open(control::read(body)?)?,
            (Phase::Starting(..), FrameType::Start) => self.start(control::read(body)?)?,
            // It lives, and counts what differs.
            (Phase::Starting(..), FrameType::Complete) if self.may_coalesce => {
                let Complete { .. } = control::read(body)?;
            }
            (Phase::Taking(taker), FrameType::Ahead) => taker.take(body)?,
            (Phase::Taking(_), FrameType::Complete) => drop(control::read::<Complete>(body)?),
            (Phase::Copying(copying), FrameType::Copy) => copying.take(body)?,
            (Phase::Copying(copying), FrameType::Ranges) => copying.taker()?.ranges(body)?,
            (Phase::Copying(copying), FrameType::Patch) => copying.patch(body)?,
            // It lives.
            (Phase::Copying(_), FrameType::Complete) => drop(control::read::<Complete>(body)?),
            (Phase::Receiving(intake), FrameType::Records) => intake.records(body, &self.feeding, now_ns)?,
            (Phase::Receiving(intake), FrameType::Payload) => intake.payload(body, &self.feeding, now_ns)?,
            (Phase::Receiving(intake), FrameType::Complete) => {
                let Complete { ns } = control::read(body)?;
                intake.complete(Timestamp(ns))?;
            }
            (Phase::Receiving(intake), FrameType::Groups) => {
                let volume = intake.volume.clone();
                self.learn_groups(&volume, &control::read(body)?)?;
            }
            _ => return Err(Fault::protocol(format!("a {kind:?} frame out of turn"))),
        }
        Ok(())
    }

    /// The groups that the volume is in at the other site are made here of those members that are here. What stands in the way
    /// is for people to mend; records go on.
    fn learn_groups(&self, volume: &Volume, groups: &Groups) -> Result<(), Fault> {
        for WireGroup { name, members } in &groups.list {
            let ids: Vec<VolumeId> = members.iter().copied().map(VolumeId).collect();
            if !ids.contains(&volume.identity().id) {
                return Err(Fault::protocol(format!(
                    "a group {name:?} without the volume that it is told of"
                )));
            }
            match self.store.learn_group(&self.peer, name, &ids) {
                Ok(false) => {}
                Ok(true) => tracing::info!("the group {name} is as at {}", self.peer),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(())
    }

    fn open(&mut self, open: Open) -> Result<(), Fault> {
        let origin = Origin {
            id: VolumeId(open.volume),
            first_size_bytes: open.first_size_bytes,
            created: Timestamp(open.created_ns),
            marker_interval_ns: open.marker_interval_ns,
            // The store refuses to make a replica of other segments than its own.
            segment_bytes: open.segment_bytes,
            journal_cap_bytes: None,
            copied: None,
            epochs: control::read_epochs(VolumeId(open.volume), &open.epochs)?,
        };
        self.store.settle_reseed(origin.id)?;
        let volume = self.store.volume_by_id(origin.id);
        if volume.is_none() {
            self.store.refuse_replica(&open.name, origin.id)?;
        }
        let name = volume.as_ref().map_or(&open.name[..], |volume| volume.name()).to_owned();
        let plan = match volume.as_ref().is_some_and(|volume| volume.is_primary()) || !self.compares {
            true => None,
            false => self
                .store
                .seed_plan(&name)?
                .filter(|plan| plan.replaces == volume.as_ref().map(|_| origin.id)),
        };
        let state = match &volume {
            Some(volume) if plan.is_some() => {
                self.meet(volume, &origin.epochs, Lsn(open.durable_lsn))?;
                self.refuse_unless_source(volume)?;
                self.seeded(origin.id)?
            }
            None if plan.is_some() => self.seeded(origin.id)?,
            None => match self.store.copy_state(origin.id)? {
                Some(state) => State::Copying {
                    lsn: state.copied.lsn.0,
                    chain: state.copied.chain.0,
                    done_bytes: state.done_bytes,
                },
                None => State::Absent,
            },
            Some(volume) => {
                self.meet(volume, &origin.epochs, Lsn(open.durable_lsn))?;
                self.refuse_unless_ours(volume)?;
                // What is told is durable, so that it is true after a crash, too.
                volume.flush()?;
                let end = end_of(volume)?;
                let (durable_lsn, durable_ns, chain) = (end.lsn.0, end.timestamp.0, end.chain.0);
                let oldest_lsn = volume.oldest().0.0;
                let epochs = control::list_epochs(&volume.epochs());
                let ahead = volume.coalesced_state().filter(|state| self.may_coalesce && state.lsn > end.lsn);
                match ahead.as_ref().map(tell_ahead) {
                    Some(ahead) => State::Ahead { durable_lsn, durable_ns, chain, oldest_lsn, epochs, ahead },
                    None => State::Here { durable_lsn, durable_ns, chain, oldest_lsn, epochs },
                }
            }
        };
        control::send(&mut self.writer, &mut self.out, &state);
        self.phase = Phase::Starting(Box::new(Starting { name, origin, volume, plan }));
        Ok(())
    }

    /// Somebody wants the volume copied anew: the next connection does that.
    fn end_for_reseed(&self) -> Result<(), Fault> {
        let Some(volume) = self.volume() else { return Ok(()) };
        match self.store.seed_plan(volume.name())? {
            Some(plan) if plan.replaces == Some(volume.identity().id) => {
                let text = format!("volume {} is to be copied anew", volume.name());
                Err(Fault::new(FaultKind::Closing, text))
            }
            _ => Ok(()),
        }
    }

    /// Something is here to compare with, and perhaps a copy that was begun.
    fn seeded(&self, id: VolumeId) -> Result<State, Fault> {
        let begun = self.store.copy_state(id)?;
        Ok(begun.map_or(State::Seeded { lsn: 0, chain: [0; 16], done_bytes: 0 }, |state| State::Seeded {
            lsn: state.copied.lsn.0,
            chain: state.copied.chain.0,
            done_bytes: Grid::of(state.copied.size_bytes).edge_before(state.done_bytes),
        }))
    }

    /// The other side tells what it has. Noted before it is refused: `resync` goes by it. Where this site has nothing to do
    /// with that one, it is only noted: whoever holds a certificate could stop a primary with any copy of its store.
    fn meet(&mut self, volume: &Volume, epochs: &Epochs, tip: Lsn) -> Result<(), Fault> {
        let newest = epochs.newest();
        let other = Elsewhere { site: self.peer.clone(), epochs: epochs.clone(), tip };
        if volume.believes(&self.peer) {
            volume.note_elsewhere(other);
            return self.hear(volume, &newest);
        }
        volume.note_claim(other);
        match volume.epochs().standing(&newest) {
            Standing::Above => Err(self.fenced(volume)),
            Standing::Fenced | Standing::SplitBrain if !volume.is_replica() => {
                let (name, peer, number) = (volume.name(), &self.peer, newest.number.0);
                let text = format!(
                    "volume {name}: this site neither feeds {peer} nor was fed by it, and does not believe its epoch {number}; if it is {peer} that goes on, `cdp resync {name} --site {peer}` here says so"
                );
                tracing::warn!("{text}");
                Err(Fault::new(FaultKind::Rights, text))
            }
            _ => Ok(()),
        }
    }

    /// The other side tells its newest epoch: one with a lower one is told, and refused; one with a higher one is right,
    /// also where it means that this site's primary has to stop.
    fn hear(&mut self, volume: &Volume, theirs: &Epoch) -> Result<(), Fault> {
        match volume.hear_of(theirs, &self.peer)? {
            Standing::Same | Standing::Fenced => Ok(()),
            Standing::Above => Err(self.fenced(volume)),
            Standing::SplitBrain => {
                // The other side has to stop, too.
                let epoch = volume.epochs().newest();
                control::send(&mut self.writer, &mut self.out, &WireEpoch::from(&epoch));
                let text = format!(
                    "volume {} has two epochs of number {}: there were two primaries at once, both histories are kept",
                    volume.name(),
                    theirs.number.0
                );
                Err(Fault::new(FaultKind::Fork, text))
            }
        }
    }

    /// The other side hears of the epoch that fences it.
    fn fenced(&mut self, volume: &Volume) -> Fault {
        let epoch = volume.epochs().newest();
        control::send(&mut self.writer, &mut self.out, &WireEpoch::from(&epoch));
        let text =
            format!("volume {} has epoch {} here: what is older is fenced", volume.name(), epoch.number.0);
        Fault::new(FaultKind::Fenced, text)
    }

    fn refuse_unless_ours(&self, volume: &Volume) -> Result<(), Fault> {
        volume.refuse_unless_replica()?;
        self.refuse_unless_source(volume)
    }

    fn refuse_unless_source(&self, volume: &Volume) -> Result<(), Fault> {
        let name = volume.name();
        match volume.source() {
            Some(source) if !volume.may_be_fed_by(&self.peer) => {
                let text = format!(
                    "volume {name} is a replica of what {} sends; {} has no right to it before somebody says `cdp resync {name}` here",
                    source.peer, self.peer
                );
                Err(Fault::new(FaultKind::Rights, text))
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, start: Start) -> Result<(), Fault> {
        let Phase::Starting(starting) = std::mem::replace(&mut self.phase, Phase::Opening) else {
            unreachable!("the caller looked")
        };
        let (from_lsn, chain_before) = match start {
            Start::Log { from_lsn, chain_before } => (from_lsn, chain_before),
            Start::Copy { lsn, ns, chain, size_bytes, from_byte } => {
                let (lsn, at) = (Lsn(lsn), Timestamp(ns));
                let copied = Copied { lsn, at, chain: Chain(chain), size_bytes };
                return self.start_copy(*starting, copied, from_byte, false);
            }
            Start::Compare { lsn, ns, chain, size_bytes, from_byte } => {
                let (lsn, at) = (Lsn(lsn), Timestamp(ns));
                let copied = Copied { lsn, at, chain: Chain(chain), size_bytes };
                return self.start_copy(*starting, copied, from_byte, true);
            }
            Start::Ahead { lsn, ns, chain, size_bytes, from_lsn, chain_before, from_block } => {
                let wanted = CoalescedState {
                    from: Lsn(from_lsn),
                    from_chain: Chain(chain_before),
                    lsn: Lsn(lsn),
                    at: Timestamp(ns),
                    chain: Chain(chain),
                    size_bytes,
                    come: Come::default(),
                    progress: Progress::Begun,
                };
                return self.start_ahead(*starting, &wanted, from_block);
            }
        };
        let Starting { name, origin, volume, plan } = *starting;
        if plan.is_some() {
            return Err(Fault::protocol(format!("volume {name} is to be copied anew, and records came")));
        }
        let volume = match volume {
            Some(volume) => volume,
            None => self.store.create_replica(&name, &origin, None)?,
        };
        let number = self.feeding.take_over(origin.id);
        let end = end_of(&volume)?;
        if from_lsn != end.lsn.next().0 || chain_before != end.chain.0 {
            let text = format!("records from lsn:{from_lsn} on do not join {:?}", end.lsn);
            return Err(Fault::new(FaultKind::Fork, text));
        }
        if volume.coalesced_state().is_some_and(|state| state.progress == Progress::Begun) {
            // It lies over what was the end of the history, and nobody goes on with it.
            volume.drop_coalesced()?;
        }
        self.take_records(volume, number, 0)
    }

    fn start_ahead(
        &mut self,
        starting: Starting,
        wanted: &CoalescedState,
        from_block: u64,
    ) -> Result<(), Fault> {
        let Starting { name, origin, volume, plan } = starting;
        let Some(volume) = volume.filter(|_| plan.is_none() && self.may_coalesce) else {
            return Err(Fault::protocol(format!("volume {name}: no newest state is wanted")));
        };
        let number = self.feeding.take_over(origin.id);
        if volume.source().is_none_or(|source| source.peer != self.peer) {
            volume.set_source(&self.peer)?;
        }
        let taker = AheadTaker::new(volume, number, wanted, from_block)?;
        self.phase = Phase::Taking(Box::new(taker));
        Ok(())
    }

    /// Syncs what came of a newest state; records follow when it is shown.
    fn settle_ahead(&mut self, now_ns: u64) -> Result<(), Fault> {
        let Phase::Taking(taker) = &mut self.phase else { unreachable!("the caller looked") };
        let volume = taker.volume.clone();
        if !self.feeding.is_newest(volume.identity().id, taker.number) {
            let text = format!("another connection feeds volume {} now", volume.name());
            return Err(Fault::new(FaultKind::Closing, text));
        }
        if taker.settle(&mut self.syncer, now_ns)? {
            let number = taker.number;
            return self.take_records(volume, number, 0);
        }
        if let Some(ack) = taker.acknowledge(now_ns) {
            control::send(&mut self.writer, &mut self.out, &ack);
        }
        Ok(())
    }

    fn start_copy(
        &mut self,
        starting: Starting,
        copied: Copied,
        from_byte: u64,
        compares: bool,
    ) -> Result<(), Fault> {
        let Starting { name, origin, volume, plan } = starting;
        if plan.is_none() && (volume.is_some() || compares) {
            let text = format!("volume {name}: no such copy is wanted");
            return Err(Fault::protocol(text));
        }
        let origin = Origin { copied: Some(copied), ..origin };
        let number = self.feeding.take_over(origin.id);
        let copy = self.store.take_copy(&name, &origin)?;
        let state = copy.state();
        let size_bytes = state.copied.size_bytes;
        let next = match &plan {
            // What was told.
            Some(_) => Grid::of(size_bytes).edge_before(state.done_bytes),
            None => state.done_bytes,
        };
        if from_byte != next {
            let text = format!("a copy from byte {from_byte} on, and byte {next} is next");
            return Err(Fault::protocol(text));
        }
        let taker = match plan.filter(|_| compares) {
            Some(plan) => Some(Taker::new(self.store.open_seed(&plan)?, size_bytes, from_byte)?),
            None => None,
        };
        self.phase = Phase::Copying(Box::new(Copying {
            name,
            old: volume,
            taker,
            volume: origin.id,
            number,
            copy: Some(copy),
            at: from_byte,
            size_bytes,
            unsynced_bytes: 0,
            settling: None,
            synced_at_ns: 0,
            acknowledged_at_ns: 0,
            is_whole: false,
        }));
        Ok(())
    }

    /// Syncs what came of a copy, and makes a volume of it when it is whole.
    fn settle_copy(&mut self, now_ns: u64) -> Result<(), Fault> {
        let Phase::Copying(copying) = &mut self.phase else { unreachable!("the caller looked") };
        if !self.feeding.is_newest(copying.volume, copying.number) {
            let text = format!("another connection copies volume {} now", copying.name);
            return Err(Fault::new(FaultKind::Closing, text));
        }
        if let Some(old) = copying.old.clone().filter(|old| old.is_primary()) {
            // It was promoted: nothing takes its place.
            return Err(self.fenced(&old));
        }
        copying.compare(&mut self.writer, &mut self.out)?;
        if self.syncer.look()? {
            copying.note_settled();
        }
        if copying.is_whole
            && copying.settling.is_none()
            && let Some(copy) = copying.copy.take()
        {
            let number = copying.number;
            (copying.taker, copying.old) = (None, None);
            let copied_bytes = copying.size_bytes;
            let volume = self.store.finish_copy(&copying.name, copy)?;
            return self.take_records(volume, number, copied_bytes);
        }
        let Some(copy) = &mut copying.copy else { return Ok(()) };
        let is_time = now_ns.saturating_sub(copying.synced_at_ns) >= COPY_SYNC_NS;
        let is_due = is_time || copying.unsynced_bytes >= COPY_SYNC_BYTES;
        if copying.settling.is_none() && copying.at > copy.state().done_bytes && is_due {
            copying.synced_at_ns = now_ns;
            copying.unsynced_bytes = 0;
            copying.settling = Some(copying.at);
            let settlement = copy.begin_settling(copying.at);
            self.syncer.begin(Box::new(move || settlement.carry_out()))?;
            if self.syncer.look()? {
                copying.note_settled();
            }
        }
        let Some(copy) = &copying.copy else { return Ok(()) };
        if now_ns.saturating_sub(copying.acknowledged_at_ns) >= ACK_NS_MAX {
            copying.acknowledged_at_ns = now_ns.max(1);
            let copied_bytes = copy.state().done_bytes.min(copying.at);
            let ack = Ack { window_bytes: COPY_WINDOW_BYTES, copied_bytes, ..Ack::default() };
            control::send(&mut self.writer, &mut self.out, &ack);
        }
        Ok(())
    }

    /// From here on it takes records behind the newest one.
    fn take_records(&mut self, volume: Arc<Volume>, number: u64, copied_bytes: u64) -> Result<(), Fault> {
        if volume.source().is_none_or(|source| source.peer != self.peer) {
            volume.set_source(&self.peer)?;
        }
        self.phase = Phase::Receiving(Box::new(Intake::new(volume, number, copied_bytes)?));
        Ok(())
    }

    fn settle(&mut self, now_ns: u64) -> Result<(), Fault> {
        if now_ns.saturating_sub(self.heard_ns) > SILENCE_NS_MAX {
            return Err(Fault::new(FaultKind::Closing, "the other side has said nothing for 10 seconds"));
        }
        if let Some(volume) = self.volume().filter(|volume| !volume.is_replica()).cloned() {
            // It was promoted: whoever fed it must hear of that at once.
            return Err(self.fenced(&volume));
        }
        if let Phase::Copying(_) = &self.phase {
            return self.settle_copy(now_ns);
        }
        if self.compares && now_ns.saturating_sub(self.looked_at_ns) >= ACK_NS_MAX {
            self.looked_at_ns = now_ns;
            self.end_for_reseed()?;
        }
        if let Phase::Taking(_) = &self.phase {
            return self.settle_ahead(now_ns);
        }
        let Phase::Receiving(intake) = &mut self.phase else { return Ok(()) };
        intake.append(&self.feeding, now_ns)?;
        intake.sync(&mut self.syncer, now_ns)?;
        if self.out.len() < OUTPUT_BYTES
            && let Some(ack) = intake.acknowledge(now_ns)?
        {
            control::send(&mut self.writer, &mut self.out, &ack);
        }
        Ok(())
    }
}

fn tell_ahead(state: &CoalescedState) -> WireAhead {
    WireAhead {
        lsn: state.lsn.0,
        chain: state.chain.0,
        from_lsn: state.from.0,
        done_block: state.come.blocks,
        progress: match state.progress {
            Progress::Begun => WireProgress::Begun,
            Progress::Whole => WireProgress::Whole,
            Progress::GivenUp => WireProgress::GivenUp,
        },
    }
}

impl Copying {
    /// What was begun is durable now.
    fn note_settled(&mut self) {
        if let (Some(done), Some(copy)) = (self.settling.take(), &mut self.copy) {
            copy.note_settled(done);
            self.acknowledged_at_ns = 0;
        }
    }

    fn taker(&mut self) -> Result<&mut Taker, Fault> {
        self.taker.as_mut().ok_or_else(|| Fault::protocol("ranges of what is copied whole"))
    }

    fn patch(&mut self, body: &[u8]) -> Result<(), Fault> {
        if let (Some(taker), Some(copy)) = (&mut self.taker, &mut self.copy) {
            self.unsynced_bytes += taker.patch(body, copy)?;
            return Ok(());
        }
        self.taker().map(drop)
    }

    /// Of a reseed: some more of what was told.
    fn compare(&mut self, writer: &mut FrameWriter, out: &mut Vec<u8>) -> Result<(), Fault> {
        if let (Some(taker), Some(copy)) = (&mut self.taker, &mut self.copy) {
            self.unsynced_bytes += taker.work(copy, writer, out)?;
            self.at = taker.at();
            self.is_whole = taker.is_whole();
        }
        Ok(())
    }

    fn take(&mut self, body: &[u8]) -> Result<(), Fault> {
        let (first, blocks) = copy::read(body)?;
        let from = first.0.saturating_mul(BLOCK_BYTES);
        let copy = self.copy.as_mut().filter(|_| !self.is_whole && self.taker.is_none());
        let Some(copy) = copy.filter(|_| from >= self.at) else {
            return Err(Fault::protocol(format!(
                "a copy that goes back to block {first}, or on behind its end"
            )));
        };
        if blocks.is_empty() {
            self.is_whole = true;
            self.at = self.size_bytes;
            return Ok(());
        }
        copy.write(first, blocks)?;
        self.at = (from + blocks.len() as u64).min(self.size_bytes);
        self.unsynced_bytes += blocks.len() as u64;
        Ok(())
    }
}
