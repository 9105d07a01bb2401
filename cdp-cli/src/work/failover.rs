//! Taking over from another site, stepping down for one, and making two histories one again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdp_core::error::{Error, Kind, Result};
use cdp_core::history::point::{Timeline, Zone, format_utc};
use cdp_core::ids::{EpochNumber, Lsn};
use cdp_core::volume::Volume;
use cdp_core::volume::replicas::Replica;
use cdp_core::volume::role::Role;
use cdp_core::volume::together::newest_of_all;
use serde::{Deserialize, Serialize};

use super::leaving::is_export_of;
use super::points::{self, Place};
use super::rewind::{LEAVE_TIME, clients, clients_of, in_use};
use super::{Progress, Site, Watch, newest, replicas};
use crate::serve::roles::HookRun;

/// How often it is looked whether the replicas have everything.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// A volume or a group to promote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// Which.
    pub target: String,
    /// The point to go on from; without it the newest instant that all members have completely.
    pub to: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Also where members of the group have not arrived here.
    #[serde(default)]
    pub partial: bool,
    /// From what history has, also where a newer state is shown while it is filled in: that one goes.
    #[serde(default)]
    pub give_up_newest: bool,
    /// Also where another site's epoch fenced this one.
    #[serde(default)]
    pub force: bool,
}

/// A volume that was promoted, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOver {
    /// Its name.
    pub volume: String,
    /// Number of the epoch that begins.
    pub epoch: u32,
    /// The record whose state it goes on from.
    pub to_lsn: u64,
    /// When that was, RFC 3339 in UTC.
    pub to_utc: String,
    /// The newest record that was here.
    pub tip_lsn: u64,
    /// Up to when it is known to have everything that the other site had then, RFC 3339 in UTC.
    pub complete_utc: String,
    /// It was done.
    pub done: bool,
    /// A newer state that is shown while history is filled in, and is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Place>,
    /// It goes on from a newest state whose history is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<AheadOf>,
    /// Of the first volume: the programs that were told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookRun>,
}

/// What it means to go on from a state whose history is not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AheadOf {
    /// The newest state of the history that is here.
    pub behind: Place,
    /// Records behind it, up to the state: what they made in between is no point that can be looked at, ever.
    pub lost_records: u64,
    /// Bytes that are written before clients can write.
    pub write_bytes: u64,
    /// The record here whose state it is, once that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here_lsn: Option<u64>,
}

/// Promotes a volume, or all members of a group, at one instant, and tells the programs that want to know of it.
pub fn failover(site: &Site, request: &Failover, zone: &Zone) -> Result<Vec<FailedOver>> {
    let votes = site.server.as_ref().map(|_| &site.votes);
    let heard = votes.map_or(EpochNumber(0), |votes| votes.heard(&site.store, &request.target));
    let told = told_so_far(site);
    let mut lines = failover_above(site, request, zone, heard)?;
    if !request.dry_run
        && let Some(first) = lines.first_mut()
    {
        first.hooks = tell(site, told);
    }
    Ok(lines)
}

/// As [`failover`], to an epoch above `heard`, and telling nobody.
pub fn failover_above(
    site: &Site,
    request: &Failover,
    zone: &Zone,
    heard: EpochNumber,
) -> Result<Vec<FailedOver>> {
    let (store, name) = (&site.store, &request.target);
    if name.contains('@') {
        return Err(Error::new(Kind::Invalid, "a failover names its point with --to"));
    }
    if !request.partial {
        store.refuse_partial(name).map_err(|error| {
            error.hint("`--partial` promotes those that are here, and leaves the others to the other site")
        })?;
    }
    // One that was cut off, where the disk was full, say. What keeps it from being done is said of its members.
    let unsettled = if request.dry_run { None } else { store.settle_promotion().err() };
    if let Some(why) = unsettled.filter(|_| !request.give_up_newest)
        && store.members(name)?.iter().any(|volume| volume.is_being_promoted())
    {
        return Err(why);
    }
    let complete: Vec<_> =
        store.members(name)?.into_iter().map(|volume| (volume.complete_through().1, volume)).collect();
    let members: Vec<(Arc<Volume>, Lsn)> = match &request.to {
        Some(to) => {
            let targets = points::targets(store, &format!("{name}@{to}"), zone)?;
            if targets.iter().any(|target| target.request.clone.is_some()) {
                return Err(Error::new(Kind::Invalid, "`+rw` has no meaning in a failover"));
            }
            targets.into_iter().map(|target| (target.volume, target.resolved.lsn)).collect()
        }
        None => {
            let volumes: Vec<Arc<Volume>> = complete.iter().map(|(_, volume)| volume.clone()).collect();
            newest_of_all(name, &volumes, request.give_up_newest)?.1
        }
    };
    if !request.force {
        let is_fenced = |volume: &Arc<Volume>| !volume.is_being_promoted();
        let mut fenced = members.iter().map(|(volume, _)| volume).filter(|volume| is_fenced(volume));
        fenced.try_for_each(|volume| refuse_where_fenced(name, volume))?;
    }
    let planned = store.plan_promotion(&members, heard)?;
    if !request.dry_run && !request.give_up_newest && request.to.is_some() {
        newest::refuse_where_shown(name, &members)?;
    }
    let mut lines = Vec::with_capacity(planned.len());
    for member in &planned {
        let volume = &member.volume;
        let at = complete.iter().find(|(_, other)| Arc::ptr_eq(other, volume)).map(|(at, _)| *at);
        let shown = volume.coalesced();
        let ahead = shown.as_ref().filter(|newest| newest.state().lsn == member.to);
        let to_at = match ahead {
            Some(newest) => newest.state().at,
            None => volume.timestamp_of(member.to)?,
        };
        let (tip, tip_at) = volume.tip();
        let ahead = match (ahead, volume.difference_to_newest()?) {
            (Some(newest), Some(difference)) => Some(AheadOf {
                behind: Place::new(tip, tip_at),
                lost_records: newest.state().lsn.0.saturating_sub(tip.0),
                write_bytes: difference.bytes,
                here_lsn: None,
            }),
            _ => None,
        };
        lines.push(FailedOver {
            volume: volume.name().to_owned(),
            epoch: member.number.0,
            to_lsn: member.to.0,
            to_utc: format_utc(to_at),
            tip_lsn: tip.0,
            complete_utc: format_utc(at.unwrap_or_default()),
            done: false,
            newest: shown
                .filter(|_| ahead.is_none())
                .map(|newest| Place::new(newest.state().lsn, newest.state().at)),
            ahead,
            hooks: Vec::new(),
        });
    }
    if request.dry_run {
        return Ok(lines);
    }
    // What is given up, before the promotion, so that no crash leaves both.
    for (volume, _) in members.iter().filter(|(volume, to)| *to <= volume.tip_lsn()) {
        // Of which half is written, that ends with the promotion itself.
        if !volume.is_half_taken_over() {
            volume.drop_coalesced()?;
        }
    }
    let asked = request.to.as_deref().unwrap_or("the newest instant that is complete");
    let done = store.promote(name, &members, heard, asked)?;
    for (line, promoted) in lines.iter_mut().zip(done) {
        line.epoch = promoted.epoch.number.0;
        line.tip_lsn = promoted.epoch.start.previous().0;
        line.done = true;
        if let Some(ahead) = &mut line.ahead {
            let course = store.volume(&line.volume)?.course();
            ahead.here_lsn = course.gaps().last().and_then(|gap| gap.end).map(|(lsn, _)| lsn.0);
        }
    }
    Ok(lines)
}

/// Whoever fenced this site has gone on, is alive for all we know, and has writes that are not here.
fn refuse_where_fenced(name: &str, volume: &Volume) -> Result<()> {
    let Role::Fenced { by, why, .. } = volume.role() else { return Ok(()) };
    let context = format!(
        "volume {} was fenced by epoch {}: {why}; that site has gone on, and what it wrote is not here",
        volume.name(),
        by.0
    );
    Err(Error::new(Kind::Refused, context).hint(format!(
        "`cdp resync {name}` here brings it up from there, and a failover after that loses nothing; --force goes on from what is here, and what the other site wrote becomes its orphan"
    )))
}

/// How often somebody was told of changed roles.
fn told_so_far(site: &Site) -> u64 {
    site.server.as_ref().map_or(0, |server| server.roles.count())
}

/// Whoever wants to know of changed roles is told. Gives what was said since `told`, also to the server's own look.
fn tell(site: &Site, told: u64) -> Vec<HookRun> {
    site.server.as_ref().map_or_else(Vec::new, |server| server.roles.look(&site.store, told))
}

/// A volume or a group to demote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demote {
    /// Which.
    pub target: String,
    /// Close the connections of its clients.
    pub force: bool,
    /// Wait so many seconds until the replicas have everything.
    pub drain_s: Option<u64>,
    /// Only until the one at this address has.
    #[serde(default)]
    pub to: Option<String>,
}

/// A volume that was demoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demoted {
    /// Its name.
    pub volume: String,
    /// Its newest record: what the other site must have before it goes on.
    pub lsn: u64,
    /// When that was, RFC 3339 in UTC.
    pub utc: String,
    /// A replica that has all of it.
    pub drained_to: Option<String>,
    /// Replicas that have not: with one of them going on, writes are lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
    /// Of the first volume: the programs that were told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookRun>,
}

/// Ends writing on a volume, or on all members of a group, so that another site can go on without losing a write.
pub fn demote(site: &Site, request: &Demote, watch: &mut Watch<'_>) -> Result<Vec<Demoted>> {
    let told = told_so_far(site);
    let volumes = site.store.members(&request.target)?;
    if let Some(to) = &request.to {
        for volume in &volumes {
            replicas::refuse_unless_fed(volume, to)?;
        }
    }
    // Nobody comes in while we look who is there.
    let bars: Vec<_> = volumes.iter().map(|volume| volume.bar()).collect();
    let using: Vec<Vec<String>> = volumes.iter().map(|volume| clients(site, volume)).collect();
    if using.iter().any(|clients| !clients.is_empty()) {
        if !request.force {
            return Err(in_use(&volumes, &using).hint(
                "unmount and detach first, so that nothing is left in its caches; or say --force, which closes their connections",
            ));
        }
        close_connections(site, &volumes)?;
    }
    let parts: Vec<&Volume> = volumes.iter().map(|volume| &**volume).collect();
    let until = request.drain_s.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let votes = site.server.as_ref().map(|_| &site.votes);
    let is_automatic = votes.is_some_and(|votes| votes.step_down(&site.store, &volumes, until));
    let through = Volume::demote_all(&parts)?;
    let ends = volumes.iter().map(|volume| volume.tip());
    drop(bars);
    // Before the wait: whoever moves an address takes it away now.
    let mut hooks = tell(site, told);
    let mut demoted = Vec::with_capacity(volumes.len());
    for (volume, (lsn, at)) in volumes.iter().zip(ends) {
        let look = || -> (Vec<String>, Vec<String>) {
            // Also of the instant: a group is promoted at one that is complete for all its members.
            let (having, lacking): (Vec<_>, Vec<_>) = volume.replicas().into_iter().partition(|replica| {
                replica.is_acknowledged && replica.held >= lsn && replica.complete >= through
            });
            let addresses = |all: Vec<Replica>| all.into_iter().map(|replica| replica.address).collect();
            (addresses(having), addresses(lacking))
        };
        let is_drained = |having: &[String], lacking: &[String]| match &request.to {
            Some(to) => having.contains(to),
            // The one that votes goes on when it has everything, and not before.
            None => !having.is_empty() && (is_automatic || lacking.is_empty()),
        };
        let (mut having, mut lacking) = look();
        while let (false, Some(until)) = (is_drained(&having, &lacking), until) {
            if Instant::now() >= until {
                let name = volume.name();
                if request.to.is_none() && !having.is_empty() {
                    let (with, without) = (having.join(", "), lacking.join(", "));
                    let context = format!(
                        "volume {name} takes no more writes, and {without} has not acknowledged {lsn:?} yet"
                    );
                    return Err(Error::new(Kind::Busy, context).hint(format!(
                        "go on at {with}, which has all of it; `cdp demote --drain SECONDS --to {}` waits for that one alone",
                        having[0]
                    )));
                }
                let who = request.to.as_deref().unwrap_or("no replica");
                let not = if request.to.is_some() { "has not acknowledged" } else { "has acknowledged" };
                let context = format!("volume {name} takes no more writes, and {who} {not} {lsn:?} yet");
                return Err(Error::new(Kind::Busy, context).hint(match is_automatic {
                    true => "the other site goes on within seconds, with what it has, if that is not older than its loss_max; `cdp demote --drain SECONDS` again makes it wait, `cdp failover` here goes on with all of it",
                    false => "look at `cdp replica list`, and wait before the other site is promoted; or `cdp failover` here goes on with it",
                }));
            }
            watch(Progress { what: format!("draining {}", volume.name()), done: 0, total: 0 })?;
            std::thread::sleep(DRAIN_POLL);
            (having, lacking) = look();
        }
        let drained_to =
            request.to.clone().filter(|to| having.contains(to)).or_else(|| having.first().cloned());
        demoted.push(Demoted {
            volume: volume.name().to_owned(),
            lsn: lsn.0,
            utc: format_utc(at),
            drained_to,
            lacking,
            hooks: std::mem::take(&mut hooks),
        });
    }
    Ok(demoted)
}

/// A volume or a group of the losing site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// Which.
    pub target: String,
    /// Close the connections of its clients.
    pub force: bool,
    /// Only say where the histories part.
    pub dry_run: bool,
    /// The other site, by the name in its certificate; also one that this site does not believe by itself.
    #[serde(default)]
    pub site: Option<String>,
}

/// A volume whose history is, or would be, one with the other site's again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resynced {
    /// Its name.
    pub volume: String,
    /// The last record that both sites have.
    pub common_lsn: u64,
    /// When that was, RFC 3339 in UTC.
    pub common_utc: String,
    /// The newest record that was here.
    pub tip_lsn: u64,
    /// The newest record there, as that site said last.
    pub their_tip_lsn: u64,
    /// The epoch there.
    pub their_epoch: u32,
    /// The other site.
    #[serde(default)]
    pub site: String,
    /// The volume with what only this site had, if there was anything.
    pub orphan: Option<String>,
    /// A newest state that is shown here ahead of its history, and goes: the other site does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Place>,
    /// It is a replica now. Where both sites are in one epoch there is nothing to make one again: a primary stays one.
    pub done: bool,
}

/// Sets aside what only this site has, and makes the volume, or all members of a group, replicas from the fork on.
pub fn resync(site: &Site, request: &Resync) -> Result<Vec<Resynced>> {
    let store = &site.store;
    let names: Vec<String> =
        store.members(&request.target)?.iter().map(|volume| volume.name().to_owned()).collect();
    let mut lines = Vec::with_capacity(names.len());
    for name in &names {
        let volume = store.volume(name)?;
        let other = volume.other_site(request.site.as_deref())?;
        let join = store.plan_resync(&volume, &other)?;
        lines.push(Resynced {
            volume: name.clone(),
            common_lsn: join.common.0,
            common_utc: format_utc(volume.timestamp_of(join.common)?),
            tip_lsn: volume.tip_lsn().0,
            their_tip_lsn: other.tip.0,
            their_epoch: other.epochs.newest().number.0,
            site: other.site.clone(),
            orphan: None,
            newest: store
                .newest_given_up(&volume, &other, &join)
                .map(|state| Place::new(state.lsn, state.at)),
            done: false,
        });
        if request.dry_run {
            continue;
        }
        drop(volume);
        // What is closed and opened anew takes its views and clones along; see `work::leaving`.
        let (shut, using): (Vec<_>, Vec<_>) = match join.ours_beyond {
            true => {
                let shut = store.shut_by_resync(name)?.into_iter();
                shut.map(|volume| {
                    let using = clients_of(site, |export| is_export_of(export, volume.name()));
                    (volume, using)
                })
                .unzip()
            }
            false => {
                let volume = store.volume(name)?;
                let using = clients(site, &volume);
                (vec![volume], vec![using])
            }
        };
        if using.iter().any(|clients| !clients.is_empty()) {
            if !request.force {
                return Err(in_use(&shut, &using)
                    .hint("unmount and detach first; or say --force, which closes their connections"));
            }
            close_connections(site, &shut)?;
        }
        drop(shut);
        let done = store.resync(name, &other)?;
        if let Some(line) = lines.last_mut() {
            line.orphan = done.orphan.map(|orphan| orphan.name().to_owned());
            line.done = !store.volume(name)?.is_primary();
        }
    }
    Ok(lines)
}

fn close_connections(site: &Site, volumes: &[Arc<Volume>]) -> Result<()> {
    let Some(server) = &site.server else { return Ok(()) };
    let is_meant = |export: &str| volumes.iter().any(|volume| volume.name() == export);
    if server.nbd.disconnect(is_meant, LEAVE_TIME) {
        return Ok(());
    }
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name()).collect();
    let context = format!("clients of {} do not leave; nothing was done", names.join(", "));
    Err(Error::new(Kind::Busy, context))
}
