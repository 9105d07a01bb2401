//! What happens to a world: one random thing after the other.

use std::sync::Arc;

use cdp_core::device::{Change, Device};
use cdp_core::error::{Error, Kind};
use cdp_core::history::retention::{self, AtCap};
use cdp_core::ids::*;
use cdp_core::store::TRASH_NS;
use cdp_core::view::View;
use cdp_core::volume::Volume;
use cdp_core::volume::changed::Changes;
use cdp_core::volume::rollback::{Back, RolledBack};

use super::world::{GROUP, Member, OpenView, Place, World};
use crate::harness::check::{Depth, check_volume, read_blocks};
use crate::harness::model::Edit;
use crate::harness::rig::{self, marker};
use crate::harness::workload::content;
use crate::harness::{Model, Outcome, wrap};

/// So many volumes are live at most.
const LIVE_MAX: usize = 7;
/// So many views are open at most.
const VIEWS_MAX: usize = 4;
/// How large a volume gets.
const SIZE_BYTES_MAX: u64 = rig::VOLUME_BYTES + 64 * BLOCK_BYTES;

const POLICIES: [&str; 9] = [
    "at most {CAP}B, at cap drop-oldest",
    "at most {CAP}B, at cap drop-oldest",
    "at most {CAP}B, at cap thin",
    "every-write 4s, named 20s",
    "every-write 6s, every 3s for 40s, named 60s",
    "every-write 8s, every 2s for 20s, every 10s for 80s, at most {CAP}B, at cap thin",
    "every-write 3s, every 2s for 30s, at most {CAP}B, at cap drop-oldest",
    "at cap block",
    "at most {CAP}B, at cap block",
];

fn words(error: Error) -> String {
    format!("unexpected error: {error:?}")
}

impl World {
    fn pick(&mut self, names: &[String]) -> Option<String> {
        let at = self.chance.below(names.len().max(1) as u64) as usize;
        names.get(at).cloned()
    }

    /// A state of a volume that is there.
    fn pick_state(&mut self, volume: &Volume) -> Lsn {
        let (oldest, tip) = (volume.oldest().0, volume.tip_lsn());
        // Often a recent one.
        let span = tip.0 - oldest.0 + 1;
        let back =
            if self.chance.percent(40) { self.chance.below(span.min(12)) } else { self.chance.below(span) };
        let mut lsn = Lsn(tip.0 - back);
        while !volume.keeps(lsn) {
            lsn = lsn.next();
        }
        lsn
    }

    /// Does one thing, and gives what.
    pub fn step(&mut self) -> Outcome<&'static str> {
        let live = self.live();
        let Some(name) = self.pick(&live) else { return Err("no volume is left".to_owned()) };
        let draw = self.chance.below(1000);
        if self.short > 0 {
            self.short -= 1;
            if self.short == 0 {
                self.disk.set_capacity(None);
            }
        }
        let is_short = self.short > 0;
        let (what, done) = match draw {
            0..7 => ("purge", self.purge()),
            7..10 if !is_short => ("a week", self.a_week()),
            10..16 if !is_short => ("a full disk", self.fill_disk()),
            // What is half done for lack of room is others' to look at (`faults`, `group_clones`).
            868..874 | 890..908 if is_short => ("nothing", Ok(())),
            7..420 => ("write", self.write(&name)),
            420..470 => ("flush", self.flush(&name)),
            470..520 => ("tick", self.tick()),
            520..640 => ("maintain", self.maintain()),
            640..690 => {
                let ns = 1 + self.chance.below(1_500_000_000);
                self.clock.advance(ns);
                ("time", Ok(()))
            }
            690..696 => {
                let ns = self.chance.below(8_000_000_000) as i64 - 4_000_000_000;
                self.clock.step_wall(ns);
                ("wall", Ok(()))
            }
            696..726 => ("mark", self.mark(&name)),
            726..736 => ("mark group", self.mark_group()),
            736..744 => ("prove", self.prove(&name)),
            744..780 => ("rollback", self.rollback(&name)),
            780..800 => ("undo", self.undo(&name)),
            800..812 => ("group rollback", self.group_rollback()),
            812..820 => ("group undo", self.group_undo()),
            820..832 => ("grow", self.grow(&name)),
            832..840 => ("write the end", self.write_end(&name)),
            840..868 => ("clone", self.clone(&name)),
            868..874 => ("clone group", self.clone_group()),
            874..890 => ("hydrate", self.hydrate(&name)),
            890..898 => ("delete", self.delete(&name)),
            898..908 => ("undelete", self.undelete()),
            908..928 => ("open view", self.open_view(&name)),
            928..950 => ("look at views", self.look_at_views()),
            950..962 => ("close view", self.close_view()),
            962..984 => ("diff", self.diff(&name)),
            984..992 => ("policy", self.set_policy(&name)),
            992..994 => ("session", self.session(&name)),
            994..996 => ("close", self.close()),
            _ if self.immortal => ("nothing", Ok(())),
            996..998 => ("die", self.die()),
            _ => ("power loss", self.power_loss()),
        };
        if std::env::var("CDP_SIM_TELL").is_ok() {
            let tips = self.store().volumes();
            let tips: Vec<_> =
                tips.iter().map(|volume| (volume.name().to_owned(), volume.tip_lsn().0)).collect();
            println!("{what} {name}: {tips:?}, operation {}", self.disk.operations());
        }
        let done = match done {
            // Whatever needs room is refused, and nothing came of it.
            Err(broken) if is_short && broken.contains("NoSpace") => {
                self.tallied.full += 1;
                Ok(())
            }
            done => done,
        };
        done.map_err(|broken| format!("{broken}, at {what} ({name})"))?;
        self.note().map_err(|broken| format!("{broken}, after {what} ({name})"))?;
        Ok(what)
    }

    /// What never happens again must not keep a crash from being looked at: names that are let go are no promise.
    pub fn unmark_some(&mut self) -> Outcome {
        if self.short > 0 {
            return Ok(());
        }
        for name in self.live() {
            let volume = self.volume(&name)?;
            let names = volume.named_markers();
            if names.len() < 6 || self.chance.percent(70) {
                continue;
            }
            let at = self.chance.below(names.len() as u64) as usize;
            let text = names[at].0.name.clone();
            let (lsn, _) = volume.unmark(&text).map_err(words)?;
            let gone = self.member(&name).model.unname(&text);
            ensure!(gone == Some(lsn), "{name}: let {lsn:?} go, {gone:?} has that name");
        }
        self.note()
    }

    /// A change that was refused for lack of room, which is legal only where something holds what would have to go.
    fn refused(&mut self, volume: &Volume, error: Error) -> Outcome {
        ensure!(error.kind() == Kind::NoSpace, "unexpected error: {error:?}");
        let drops = volume.retention().at_cap == AtCap::DropOldest;
        // Of several changes the first one may have made them go who held it.
        let was_held = error.to_string().contains("is held by");
        let holds = was_held || !volume.pins().is_empty() || volume.parent().is_some() || self.short > 0;
        ensure!(!drops || holds, "{}: refused, though nothing holds its oldest: {error:?}", volume.name());
        self.tallied.refused += 1;
        // Somebody makes room.
        if drops && self.chance.percent(50) {
            self.views.clear();
        } else {
            volume.set_retention(retention::Policy::default()).map_err(words)?;
        }
        Ok(())
    }

    fn apply(&mut self, name: &str, edits: &[Edit]) -> Outcome {
        let volume = self.volume(name)?;
        let changes: Vec<Change<'_>> = edits.iter().map(|edit| edit.change()).collect();
        let mut results = Vec::new();
        volume.apply(SessionId(1), &changes, &mut results);
        ensure!(results.len() == edits.len(), "{} answers to {}", results.len(), edits.len());
        for (edit, result) in edits.iter().zip(results) {
            match result {
                Ok(lsn) => self.member(name).model.push(lsn, edit)?,
                Err(error) => self.refused(&volume, error)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, name: &str) -> Outcome {
        for _ in 0..1 + self.chance.below(4) {
            let count = if self.chance.percent(75) { 1 } else { 2 + self.chance.below(5) };
            let edits: Vec<Edit> = (0..count).map(|_| self.edits.edit()).collect();
            self.apply(name, &edits)?;
            self.note()?;
        }
        if self.chance.percent(15) {
            self.flush(name)?;
        }
        Ok(())
    }

    fn write_end(&mut self, name: &str) -> Outcome {
        let len = 1 + self.chance.below(3 * BLOCK_BYTES) as usize;
        let offset = self.volume(name)?.size_bytes() - len as u64;
        let data = content(self.chance.bits(), len);
        self.apply(name, &[Edit::Write { offset, data }])
    }

    fn flush(&mut self, name: &str) -> Outcome {
        self.volume(name)?.flush().map_err(words)?;
        let member = self.member(name);
        member.flushed = member.model.tip();
        Ok(())
    }

    /// A full journal has no room for the note of a clock's step either; that is told, and nothing else comes of it.
    fn tick(&mut self) -> Outcome {
        let errors = self.store().tick();
        ensure!(errors.iter().all(|error| error.kind() == Kind::NoSpace), "unexpected errors: {errors:?}");
        Ok(())
    }

    fn no_errors(&mut self, duty: impl Fn(&cdp_core::store::Store) -> Vec<Error>) -> Outcome {
        let errors = duty(self.store());
        let is_legal = |error: &Error| self.short > 0 && error.kind() == Kind::NoSpace;
        ensure!(errors.iter().all(is_legal), "unexpected errors: {errors:?}");
        Ok(())
    }

    fn maintain(&mut self) -> Outcome {
        let stands = |world: &World| {
            let volumes = world.store().volumes();
            let bases: u64 = volumes.iter().map(|volume| volume.base_point().lsn.0).sum();
            let lists = volumes.iter().map(|volume| volume.part_list());
            let folds =
                lists.map(|list| list.iter().filter(|part| part.segment.fold.is_some()).count() as u64);
            (bases, folds.sum::<u64>())
        };
        let before = stands(self);
        for _ in 0..1 + self.chance.below(3) {
            self.no_errors(|store| store.maintain())?;
        }
        let after = stands(self);
        self.tallied.advanced += u64::from(after.0 > before.0);
        self.tallied.folds += u64::from(after.1 > before.1);
        Ok(())
    }

    fn next_name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{:03}", self.made)
    }

    /// What is set without there being room for it is refused, as a write is.
    fn or_refused<T>(&mut self, name: &str, outcome: Result<T, Error>) -> Outcome<Option<T>> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                let volume = self.volume(name)?;
                self.refused(&volume, error).map(|()| None)
            }
        }
    }

    fn mark(&mut self, name: &str) -> Outcome {
        let text = self.next_name("mark");
        let outcome = self.volume(name)?.mark(&marker(&text));
        if let Some((lsn, _)) = self.or_refused(name, outcome)? {
            let member = self.member(name);
            member.model.name(lsn, &text);
            member.flushed = lsn;
        }
        Ok(())
    }

    fn session(&mut self, name: &str) -> Outcome {
        let volume = self.volume(name)?;
        let opened = volume.open_session("somebody");
        if let Some(session) = self.or_refused(name, opened)? {
            let closed = volume.close_session(session);
            self.or_refused(name, closed)?;
        }
        Ok(())
    }

    /// The group and its members, unless one of them is not there.
    fn group(&mut self) -> Option<(String, Vec<Arc<Volume>>)> {
        let groups: Vec<String> = self.store().groups().into_keys().collect();
        let group = if self.chance.percent(60) { GROUP.to_owned() } else { self.pick(&groups)? };
        let members = self.store().members(&group).ok()?;
        (members.len() > 1).then_some((group, members))
    }

    fn mark_group(&mut self) -> Outcome {
        let Some((group, members)) = self.group() else { return Ok(()) };
        let text = self.next_name("mark");
        match self.store().mark(&group, &marker(&text)) {
            Ok(marked) => {
                for (volume, lsn, _) in marked {
                    let member = self.member(volume.name());
                    member.model.name(lsn, &text);
                    member.flushed = lsn;
                }
                Ok(())
            }
            // Some of them may have it, as a marker of their own.
            Err(error) => {
                ensure!(error.kind() == Kind::NoSpace, "unexpected error: {error:?}");
                self.tallied.refused += 1;
                for volume in &members {
                    if let Some((found, _)) =
                        volume.named_markers().into_iter().find(|(found, _)| found.name == text)
                    {
                        self.member(volume.name()).model.name(found.lsn, &text);
                    }
                }
                let policy = retention::Policy::default();
                members.iter().try_for_each(|volume| volume.set_retention(policy.clone())).map_err(words)
            }
        }
    }

    fn prove(&mut self, name: &str) -> Outcome {
        let volume = self.volume(name)?;
        let lsn = self.pick_state(&volume);
        let good = self.chance.percent(70);
        volume.keep_proof(lsn, good, "a test").map_err(words)?;
        Ok(())
    }

    fn take_rollback(&mut self, name: &str, to: Lsn, done: &RolledBack) -> Outcome {
        ensure!(done.to == to, "set back to {:?}, not to {to:?}", done.to);
        let member = self.member(name);
        member.model.roll_back(done.lsn, to, &done.marker);
        member.flushed = done.lsn;
        Ok(())
    }

    fn rollback(&mut self, name: &str) -> Outcome {
        let volume = self.volume(name)?;
        let to = self.pick_state(&volume);
        match volume.rollback(Back::To(to), "lsn") {
            Ok(done) => {
                self.tallied.rollbacks += 1;
                self.take_rollback(name, to, &done)
            }
            // Where it goes holds all that could make room.
            Err(error) if error.kind() == Kind::NoSpace => Ok(()),
            Err(error) => Err(words(error)),
        }
    }

    /// Where an undo would go, if it can.
    fn undo_target(&self, volume: &Volume) -> Option<Lsn> {
        let newest = self.members[volume.name()].model.rolled_back()?;
        let to = newest.previous();
        (newest > volume.oldest().0 && volume.keeps(to)).then_some(to)
    }

    fn undo(&mut self, name: &str) -> Outcome {
        let volume = self.volume(name)?;
        let Some(to) = self.undo_target(&volume) else { return Ok(()) };
        match volume.rollback(Back::Undo, "") {
            Ok(done) => {
                self.tallied.undos += 1;
                self.take_rollback(name, to, &done)
            }
            Err(error) if error.kind() == Kind::NoSpace => Ok(()),
            Err(error) => Err(words(error)),
        }
    }

    fn group_turn(&mut self, group: &str, members: &[(Arc<Volume>, Back)], to: &[Lsn]) -> Outcome {
        let before: Vec<Lsn> = members.iter().map(|(volume, _)| volume.rolled_back()).collect();
        match self.store().rollback(group, members, "lsn") {
            Ok(done) => {
                self.tallied.group_turns += 1;
                let mut joint = Vec::new();
                for (((volume, _), to), done) in members.iter().zip(to).zip(&done) {
                    self.take_rollback(volume.name(), *to, done)?;
                    joint.push((volume.name().to_owned(), done.lsn));
                }
                self.joint.push(joint);
                Ok(())
            }
            Err(error) => {
                ensure!(matches!(error.kind(), Kind::NoSpace | Kind::Refused), "unexpected error: {error:?}");
                let same =
                    members.iter().zip(before).all(|((volume, _), before)| volume.rolled_back() == before);
                ensure!(same, "a group's rollback was refused, and done on some: {error:?}");
                Ok(())
            }
        }
    }

    fn group_rollback(&mut self) -> Outcome {
        let Some((group, volumes)) = self.group() else { return Ok(()) };
        let to: Vec<Lsn> = volumes.iter().map(|volume| self.pick_state(volume)).collect();
        let members: Vec<_> =
            volumes.into_iter().zip(&to).map(|(volume, to)| (volume, Back::To(*to))).collect();
        self.group_turn(&group, &members, &to)
    }

    fn group_undo(&mut self) -> Outcome {
        let Some((group, volumes)) = self.group() else { return Ok(()) };
        let to: Option<Vec<Lsn>> = volumes.iter().map(|volume| self.undo_target(volume)).collect();
        let Some(to) = to else { return Ok(()) };
        let members: Vec<_> = volumes.into_iter().map(|volume| (volume, Back::Undo)).collect();
        self.group_turn(&group, &members, &to)
    }

    fn grow(&mut self, name: &str) -> Outcome {
        let volume = self.volume(name)?;
        let bytes = volume.size_bytes() + (1 + self.chance.below(5)) * BLOCK_BYTES;
        if bytes > SIZE_BYTES_MAX {
            return Ok(());
        }
        let outcome = volume.grow(bytes);
        if let Some((lsn, _)) = self.or_refused(name, outcome)? {
            self.tallied.growths += 1;
            let member = self.member(name);
            member.model.grow(lsn, bytes);
            member.flushed = lsn;
        }
        Ok(())
    }

    fn adopt(&mut self, clone: &Arc<Volume>, parent: &str, lsn: Lsn) {
        let model = Model::beginning(clone, self.members[parent].model.state(lsn));
        let member = Member {
            model,
            flushed: Lsn::ZERO,
            place: Place::Live,
            hydrated: false,
            parent: Some(parent.to_owned()),
        };
        self.members.insert(clone.name().to_owned(), member);
    }

    /// What a clone stands on was made durable with it.
    fn settled(&mut self, parent: &str, lsn: Lsn) {
        let member = self.member(parent);
        member.flushed = member.flushed.max(lsn);
    }

    fn clone(&mut self, name: &str) -> Outcome {
        if self.live().len() >= LIVE_MAX {
            return Ok(());
        }
        let volume = self.volume(name)?;
        let lsn = self.pick_state(&volume);
        let clone_name = self.next_name("w");
        let clone = self.store().clone_volume(&volume, lsn, &clone_name).map_err(words)?;
        self.tallied.clones += 1;
        self.settled(name, lsn);
        self.adopt(&clone, name, lsn);
        Ok(())
    }

    fn clone_group(&mut self) -> Outcome {
        let Some((_, volumes)) = self.group() else { return Ok(()) };
        if self.live().len() + volumes.len() > LIVE_MAX {
            return Ok(());
        }
        let members: Vec<(Arc<Volume>, Lsn)> = volumes
            .into_iter()
            .map(|volume| {
                let lsn = self.pick_state(&volume);
                (volume, lsn)
            })
            .collect();
        let group = self.next_name("x");
        let clones = self.store().clone_group(&group, &members).map_err(words)?;
        self.tallied.group_clones += 1;
        for (clone, (parent, lsn)) in clones.iter().zip(&members) {
            let name = parent.name().to_owned();
            self.settled(&name, *lsn);
            self.adopt(clone, &name, *lsn);
        }
        self.joint.push(clones.iter().map(|clone| (clone.name().to_owned(), Lsn::ZERO)).collect());
        Ok(())
    }

    fn hydrate(&mut self, name: &str) -> Outcome {
        let copied = self.store().hydrate_volume(name, &mut |_, _| Ok(())).map_err(words)?;
        let member = self.member(name);
        ensure!(
            copied == 0 || !member.hydrated,
            "{name} had no parent any more, and {copied} bytes were copied"
        );
        if !std::mem::replace(&mut member.hydrated, true) {
            self.tallied.hydrated += 1;
        }
        let volume = self.volume(name)?;
        ensure!(volume.parent().is_none(), "{name} still has a parent");
        let id = volume.identity().id;
        for other in self.store().volumes() {
            let holds = other.held_by_clones().iter().any(|(clone, _)| *clone == id);
            ensure!(!holds, "{} is still held by {name}", other.name());
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Outcome {
        if self.live().len() < 3 {
            return Ok(());
        }
        // Whoever serves a volume ends its connections first.
        self.views.retain(|open| open.name != name);
        self.store().delete_volume(name).map_err(words)?;
        self.tallied.deleted += 1;
        let member = self.member(name);
        member.place = Place::Trash;
        member.flushed = member.model.tip();
        Ok(())
    }

    fn in_trash(&self) -> Vec<String> {
        let gone = self.members.iter().filter(|(_, member)| member.place == Place::Trash);
        gone.map(|(name, _)| name.clone()).collect()
    }

    /// One that was deleted goes for good, unless somebody reads from it.
    fn purge(&mut self) -> Outcome {
        let gone = self.in_trash();
        let Some(name) = self.pick(&gone) else { return Ok(()) };
        let readers = self.readers(&name);
        match self.store().purge_volume(&name) {
            Ok(1) if readers == 0 => {
                self.tallied.purged += 1;
                self.member(&name).place = Place::Gone;
            }
            Err(error) if error.kind() == Kind::Busy && readers > 0 => {}
            other => return Err(format!("{name}, from which {readers} read: {other:?}")),
        }
        self.held_by_readers()
    }

    /// What was deleted is over, and what nobody reads from goes by itself.
    fn a_week(&mut self) -> Outcome {
        // The store's clock may run ahead of a wall clock that was set back.
        self.clock.advance(TRASH_NS + 60_000_000_000);
        self.maintain()?;
        while let Some(name) = self.in_trash().into_iter().find(|name| self.readers(name) == 0) {
            self.tallied.emptied += 1;
            self.member(&name).place = Place::Gone;
        }
        let mut there: Vec<String> =
            self.store().trash().map_err(words)?.into_iter().map(|trashed| trashed.name).collect();
        there.sort();
        ensure!(there == self.in_trash(), "{there:?} are in the trash, not {:?}", self.in_trash());
        self.held_by_readers()
    }

    /// History is held for those who read it, and for nobody else.
    fn held_by_readers(&self) -> Outcome {
        for volume in self.store().volumes() {
            let (held, readers) = (volume.held_by_clones().len(), self.readers(volume.name()));
            ensure!(held == readers, "{held} clones hold {}, {readers} read from it", volume.name());
        }
        Ok(())
    }

    /// Others take nearly all that is left of the disk, for a while.
    fn fill_disk(&mut self) -> Outcome {
        let free = self.chance.below(5 * (64 << 10));
        self.disk.set_capacity(Some(self.disk.used_bytes() + free));
        self.short = 5 + self.chance.below(25);
        self.tallied.shorts += 1;
        Ok(())
    }

    fn undelete(&mut self) -> Outcome {
        let gone = self.in_trash();
        let Some(name) = self.pick(&gone) else { return Ok(()) };
        if self.live().len() >= LIVE_MAX {
            return Ok(());
        }
        self.store().undelete_volume(&name).map_err(words)?;
        self.tallied.undeleted += 1;
        self.member(&name).place = Place::Live;
        let (volume, mut chance) = (self.volume(&name)?, cdp_core::io::sim::Chance::new(self.made));
        let tip = volume.tip_lsn();
        ensure!(tip == self.members[&name].model.tip(), "{name} came back at {tip:?}");
        check_volume(&volume, &self.members[&name].model, Depth::Quick, &mut chance)?;
        Ok(())
    }

    fn open_view(&mut self, name: &str) -> Outcome {
        if self.views.len() >= VIEWS_MAX {
            return Ok(());
        }
        let volume = self.volume(name)?;
        let lsn = self.pick_state(&volume);
        let view = View::open(volume, lsn, "a test").map_err(words)?;
        self.views.push(OpenView { name: name.to_owned(), lsn, view });
        Ok(())
    }

    fn close_view(&mut self) -> Outcome {
        if !self.views.is_empty() {
            let at = self.chance.below(self.views.len() as u64) as usize;
            self.views.remove(at);
        }
        Ok(())
    }

    fn look_at_views(&mut self) -> Outcome {
        for open in &self.views {
            let blocks = open.view.size_bytes() / BLOCK_BYTES;
            let bytes = read_blocks(&open.view, 0, blocks).map_err(words)?;
            let found = self.members[&open.name].model.state(open.lsn).differs(0, &bytes);
            ensure!(found.is_none(), "block {found:?} of the view of {} at {:?}", open.name, open.lsn);
            self.tallied.views += 1;
        }
        Ok(())
    }

    /// A state, the one that it stands on, and so on, as far as they can be had by name.
    fn lineage(&self, name: &str, lsn: Lsn) -> Outcome<Vec<Arc<View>>> {
        let volume = self.volume(name)?;
        let mut views = vec![Arc::new(View::open(volume, lsn, "a diff").map_err(words)?)];
        while let Some(parent) = views.last().and_then(|view| view.volume().parent()) {
            let volume = self.store().volumes().into_iter().find(|volume| volume.identity().id == parent.id);
            let Some(volume) = volume else { break };
            views.push(Arc::new(View::open(volume, parent.lsn, "a diff").map_err(words)?));
        }
        Ok(views)
    }

    /// Which blocks differ between two states, of one volume or of two that have something in common.
    fn diff(&mut self, name: &str) -> Outcome {
        let live = self.live();
        let other =
            if self.chance.percent(50) { name.to_owned() } else { self.pick(&live).unwrap_or_default() };
        let (one, two) = (self.volume(name)?, self.volume(&other)?);
        let (from, to) = (self.pick_state(&one), self.pick_state(&two));
        let (a, b) = (self.lineage(name, from)?, self.lineage(&other, to)?);
        let shares = a.iter().any(|a| b.iter().any(|b| Arc::ptr_eq(a.volume(), b.volume())));
        let (before, after) = (self.members[name].model.state(from), self.members[&other].model.state(to));
        let wanted = before.differing(after);
        let both = before.bytes.min(after.bytes) / BLOCK_BYTES;
        for content in [false, true] {
            let changes = match Changes::across(&a, &b) {
                Err(error) if !shares && error.kind() == Kind::Invalid => return Ok(()),
                Err(error) => return Err(words(error)),
                Ok(changes) => changes,
            };
            ensure!(shares, "{name} and {other} have nothing in common");
            let changes = if content { changes.with_content() } else { changes };
            let mut found = std::collections::BTreeSet::new();
            for extent in changes.extents() {
                let extent = extent.map_err(words)?;
                found.extend(extent.start.0..extent.end());
            }
            let missed = wanted.iter().find(|lba| !found.contains(lba));
            ensure!(
                missed.is_none(),
                "block {missed:?} differs between {name} at {from:?} and {other} at {to:?}, and nobody says so"
            );
            let extra = found.iter().find(|lba| !wanted.contains(lba) && **lba < both);
            ensure!(
                !content || extra.is_none(),
                "block {extra:?} is the same in {name} at {from:?} and {other} at {to:?}"
            );
        }
        self.tallied.diffs += 1;
        Ok(())
    }

    pub fn set_policy(&mut self, name: &str) -> Outcome {
        let volume = self.volume(name)?;
        let cap = (5 + self.chance.below(8)) * volume.identity().segment_bytes;
        let text = self.chance.pick(&POLICIES).replace("{CAP}", &cap.to_string());
        let policy = retention::parse(&text).map_err(words)?;
        volume.set_retention(policy).map_err(words)
    }

    fn reopen(&mut self) -> Outcome {
        self.tallied.restarts += 1;
        let store = rig::open(&self.disk, &self.clock, &wrap::nothing())?;
        let failed = store.failed();
        ensure!(failed.is_empty(), "volumes do not open: {failed:?}");
        self.store = Some(store);
        Ok(())
    }

    fn down(&mut self) {
        self.views.clear();
        self.store = None;
    }

    /// An opening on a full disk opens what needs no room, and says of the others that there is none. Then there is.
    fn end_shortage(&mut self) -> Outcome {
        if self.short > 0 {
            if let Ok(store) = rig::open(&self.disk, &self.clock, &wrap::nothing()) {
                let failed = store.failed();
                let other = failed.iter().find(|(_, error)| error.kind() != Kind::NoSpace);
                ensure!(other.is_none(), "volumes do not open: {failed:?}");
            }
            self.short = 0;
            self.disk.set_capacity(None);
            self.disk = self.disk.crash_process();
        }
        Ok(())
    }

    fn all_there(&mut self) -> Outcome {
        for name in self.live() {
            let volume = self.volume(&name)?;
            rig::good(&volume)?;
            let (tip, known) = (volume.tip_lsn(), self.members[&name].model.tip());
            ensure!(tip == known, "{name}: {tip:?} after a restart, {known:?} was acknowledged");
            self.member(&name).flushed = known;
        }
        Ok(())
    }

    fn close(&mut self) -> Outcome {
        match self.store().close() {
            Err(error) if self.short > 0 && error.kind() == Kind::NoSpace => {}
            closed => closed.map_err(words)?,
        }
        self.down();
        self.end_shortage()?;
        self.reopen()?;
        self.all_there()
    }

    fn die(&mut self) -> Outcome {
        self.down();
        self.disk = self.disk.crash_process();
        self.end_shortage()?;
        self.reopen()?;
        self.all_there()
    }

    /// The power goes, and life goes on with what is there.
    fn power_loss(&mut self) -> Outcome {
        self.down();
        self.disk = self.disk.crash_power(self.chance.bits());
        self.end_shortage()?;
        self.reopen()?;
        let newest = self.newest().clone();
        let mut chance = cdp_core::io::sim::Chance::new(self.made);
        self.check(self.store(), (&newest, &newest), (true, false), Depth::Quick, &mut chance)?;
        for name in self.live() {
            let tip = self.volume(&name)?.tip_lsn();
            let member = self.member(&name);
            member.model = member.model.cut(tip);
            member.flushed = tip;
        }
        // What is known of before is of another course of things.
        self.joint.clear();
        Ok(())
    }
}
