//! Promoting a volume, or all members of a group: all or none, whatever happens in between.
//!
//! What is going to be done is made durable in the file `promotion` before the first member acts, and removed when all
//! have. Legal states after a crash, and what the next opening makes of them:
//!
//! | the file | members with the epoch record | then |
//! |---|---|---|
//! | missing | all or none | nothing |
//! | there | none | nothing was done: the file goes, they stay what they were |
//! | there | some or all, with their rollback, the newer state that they go on from, and their role or without | what is missing follows; then the file goes |
//!
//! The file names the state that each member goes on from, and that is durable before the file is. Nothing is served
//! before this is settled. Where a member cannot follow, because it cannot be opened or takes no records, the others take
//! no writes until it can.

use std::io::ErrorKind;
use std::sync::Arc;

use super::{Store, VERSION, in_lock_order};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ids::*;
use crate::io::{read_file, replace_file};
use crate::volume::Volume;
use crate::volume::promote::{Member, Promoted, promote_all};
use crate::volume::role::Role;

const PROMOTION_FILE: &str = "promotion";
const PROMOTION_KIND: &str = "cdp-promotion";

/// What is done.
struct Promotion {
    id: u128,
    name: String,
    asked: String,
    members: Vec<(VolumeId, EpochNumber, Lsn)>,
}

impl Promotion {
    fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::new(PROMOTION_KIND, VERSION);
        manifest.set("id", VolumeId(self.id));
        manifest.set("name", &self.name);
        manifest.set("asked", self.asked.replace('\n', " "));
        for (place, (id, number, to)) in self.members.iter().enumerate() {
            manifest.set(&format!("member.{place:06}"), format!("{id}/{}/{to}", number.0));
        }
        manifest
    }

    fn from_manifest(manifest: &Manifest) -> Option<Promotion> {
        if manifest.kind != PROMOTION_KIND || manifest.version != VERSION {
            return None;
        }
        let mut members = Vec::new();
        for (_, value) in manifest.values.iter().filter(|(key, _)| key.starts_with("member.")) {
            let mut fields = value.split('/');
            let id = VolumeId(u128::from_str_radix(fields.next()?, 16).ok()?);
            let number = EpochNumber(fields.next()?.parse().ok()?);
            members.push((id, number, Lsn(fields.next()?.parse().ok()?)));
        }
        Some(Promotion {
            id: manifest.get_hex("id")?,
            name: manifest.get("name")?,
            asked: manifest.get("asked")?,
            members,
        })
    }

    /// The members that can be had, and whether that is all.
    fn members(&self, store: &Store) -> (Vec<Member>, bool) {
        let volumes = store.volumes();
        let member = |(id, number, to): &(VolumeId, EpochNumber, Lsn)| {
            let volume = volumes.iter().find(|volume| volume.identity().id == *id)?.clone();
            Some(Member { volume, number: *number, to: *to })
        };
        let mut members: Vec<Member> = self.members.iter().filter_map(member).collect();
        members.sort_by_key(|member| member.volume.identity().id);
        let is_all = members.len() == self.members.len();
        (members, is_all)
    }
}

impl Store {
    /// What a promotion would do: the epoch that would begin on each volume. Its number is above all
    /// that any of them had or heard of, and above `heard`, which somebody heard of elsewhere.
    ///
    /// # Errors
    /// `Refused`: a volume is the primary already; some members are fenced and others are not.
    pub fn plan_promotion(&self, members: &[(Arc<Volume>, Lsn)], heard: EpochNumber) -> Result<Vec<Member>> {
        let is_fenced = |(volume, _): &&(Arc<Volume>, Lsn)| matches!(volume.role(), Role::Fenced { .. });
        let fenced = members.iter().filter(is_fenced).count();
        if fenced > 0 && fenced < members.len() {
            let names: Vec<&str> =
                members.iter().filter(is_fenced).map(|(volume, _)| volume.name()).collect();
            let context = format!(
                "{} stands where another site's history parted from this one, and other members go on with that history: there is no instant of all",
                names.join(", ")
            );
            return Err(Error::new(Kind::Refused, context)
                .hint("`cdp resync` them first; or promote each volume by itself, as it is"));
        }
        let mut planned = Vec::with_capacity(members.len());
        for (volume, to) in members {
            volume.refuse_if_aside()?;
            let fenced_by = match volume.role() {
                Role::Primary => {
                    let context = format!("volume {} is the primary already", volume.name());
                    return Err(Error::new(Kind::Refused, context).hint("clients can write to it as it is"));
                }
                Role::Replica { .. } => heard,
                Role::Fenced { by, .. } => heard.max(by),
            };
            let fenced_by = fenced_by.max(volume.highest_elsewhere());
            let newest = volume.epochs().newest().number.max(fenced_by);
            let number = newest.0.checked_add(1).map(EpochNumber).ok_or_else(|| {
                Error::new(Kind::Invalid, format!("volume {} has had all epochs there can be", volume.name()))
            })?;
            planned.push(Member { volume: volume.clone(), number, to: *to });
        }
        // One number for all: what is in step stays in step.
        let number = planned.iter().map(|member| member.number).max().unwrap_or(EpochNumber(1));
        planned.iter_mut().for_each(|member| member.number = number);
        Ok(planned)
    }

    /// Makes a volume, or all members of a group, primaries that go on from the states at these records; `members` has each
    /// once. Durable when this returns; from then on clients can write.
    pub fn promote(
        &self,
        name: &str,
        members: &[(Arc<Volume>, Lsn)],
        heard: EpochNumber,
        asked: &str,
    ) -> Result<Vec<Promoted>> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        // Of one that failed half way: nothing else is done before it.
        self.finish_promotion()?;
        let planned = self.plan_promotion(members, heard)?;
        let done = self.promote_planned(name, &planned, asked);
        let id = self.promotion_id();
        for member in &planned {
            // Begun on others, it is gone on with: until then its newest state stays.
            let is_wanted = id.is_some_and(|id| !member.has_begun(id));
            if done.is_ok() || !is_wanted {
                member.volume.end_takeover(done.is_ok());
            }
        }
        done
    }

    fn promote_planned(&self, name: &str, planned: &[Member], asked: &str) -> Result<Vec<Promoted>> {
        for member in planned {
            // What it goes on from must be there after a crash.
            let volume = &member.volume;
            volume.settle(volume.tip_lsn())?;
            if volume.prepare_takeover(member.to)? {
                continue;
            }
            if volume.coalesced().is_some() {
                let context = format!("volume {} shows a newer state than its history has", volume.name());
                return Err(Error::new(Kind::Refused, context).hint("it has to be given up before"));
            }
            if member.to > volume.tip_lsn() {
                let context = format!("volume {} has no {:?}", volume.name(), member.to);
                return Err(Error::new(Kind::OutOfRange, context));
            }
        }
        let promotion = Promotion {
            id: self.shared.clock.random().max(1),
            name: name.to_owned(),
            asked: asked.to_owned(),
            members: planned
                .iter()
                .map(|member| (member.volume.identity().id, member.number, member.to))
                .collect(),
        };
        let path = self.path.join(PROMOTION_FILE);
        replace_file(&*self.shared.files, &path, &promotion.manifest().encode())
            .at(|| format!("writing {}", path.display()))?;
        let done = in_lock_order(
            planned,
            |member| member.volume.clone(),
            |members| promote_all(members, promotion.id, &promotion.asked),
        );
        // With something done the rest has to follow: at the next try, or the next opening.
        if done.is_ok() || planned.iter().all(|member| !member.has_begun(promotion.id)) {
            self.remove_promotion()?;
        }
        done
    }

    /// The id of one that is not done.
    fn promotion_id(&self) -> Option<u128> {
        let bytes =
            read_file(&*self.shared.files, &self.path.join(PROMOTION_FILE), MANIFEST_BYTES_MAX).ok()?;
        Manifest::decode(&bytes)?.get_hex("id")
    }

    fn remove_promotion(&self) -> Result<()> {
        let path = self.path.join(PROMOTION_FILE);
        let files = &self.shared.files;
        files
            .remove(&path)
            .and_then(|()| files.sync_dir(&self.path))
            .at(|| format!("removing {}", path.display()))
    }

    /// Goes on with a promotion that an error cut off, if there is one.
    ///
    /// # Errors
    /// Why it is not done yet.
    pub fn settle_promotion(&self) -> Result<()> {
        let _changing = self.changing.lock().expect("no panics under this lock");
        self.go_on_with_promotion()?.map_or(Ok(()), Err)
    }

    /// Settles what a crash, or an error, left of a promotion, or stops its members. Before anything is served.
    pub(super) fn finish_promotion(&self) -> Result<()> {
        self.go_on_with_promotion().map(drop)
    }

    /// What keeps it from being done, with its members stopped.
    fn go_on_with_promotion(&self) -> Result<Option<Error>> {
        let path = self.path.join(PROMOTION_FILE);
        let bytes = match read_file(&*self.shared.files, &path, MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.at(|| format!("reading {}", path.display()))?,
        };
        let promotion = Manifest::decode(&bytes).as_ref().and_then(Promotion::from_manifest);
        let promotion = promotion.ok_or_else(|| {
            Error::new(Kind::Damaged, format!("{} is damaged or of a newer version", path.display())).hint(
                "a promotion may be half done: look at the volumes with `cdp log`, then remove the file and promote again",
            )
        })?;
        let (members, is_all) = promotion.members(self);
        let has_begun = members.iter().any(|member| member.has_begun(promotion.id));
        if !has_begun && is_all {
            return self.remove_promotion().map(|()| None);
        }
        let why = match is_all {
            false => Error::new(Kind::Busy, "a member cannot be opened"),
            true => match promote_all(&members, promotion.id, &promotion.asked) {
                Ok(_) => {
                    members.iter().for_each(|member| member.volume.end_takeover(true));
                    return self.remove_promotion().map(|()| None);
                }
                Err(error) => error,
            },
        };
        // Not written down: whoever opens the store next is here before anybody is served.
        for member in members.iter().filter(|member| member.has_begun(promotion.id)) {
            member
                .stop(&format!("the promotion of {} is not done on all members yet: {why}", promotion.name));
        }
        Ok(Some(why))
    }
}
