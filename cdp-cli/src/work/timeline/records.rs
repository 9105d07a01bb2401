//! Single records of a volume, as a person asks for them.

use std::collections::HashMap;
use std::ops::ControlFlow;

use cdp_core::error::Result;
use cdp_core::format::record::{RecordHeader, RecordKind};
use cdp_core::history::point::{Zone, escape_uri, format_utc};
use cdp_core::ids::{BLOCK_BYTES, Lsn, SessionId};
use cdp_core::store::Store;
use cdp_core::volume::Volume;
use cdp_core::volume::timeline::EventKind;
use serde::{Deserialize, Serialize};

use super::thinned::Thinned;
use super::{EVENTS_MAX, Log, chosen};
use crate::work::points;

/// The most records that are shown.
const RECORDS_MAX: usize = 1000;
/// Records shown on each side of an instant, and where nothing else is said.
const RECORDS: usize = 20;

/// Records of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// The volume.
    pub volume: String,
    /// What `around` resolved to.
    pub around: Option<points::PointInfo>,
    /// See [`super::Timeline::around_gone`].
    #[serde(default)]
    pub around_gone: Option<String>,
    /// First and last record of stretches that were thinned: of these there are no rows.
    #[serde(default)]
    pub thinned: Vec<(u64, u64)>,
    /// In the order of their LSNs.
    pub records: Vec<RecordRow>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRow {
    /// Its LSN.
    pub lsn: u64,
    /// When, RFC 3339 in UTC.
    pub utc: String,
    /// The same in Unix nanoseconds.
    pub ns: u64,
    /// What it is.
    pub kind: String,
    /// First byte that it changed.
    pub offset: Option<u64>,
    /// How many.
    pub len: Option<u64>,
    /// Which session asked for it; 0 is the store itself.
    pub session: u32,
    /// Who that is.
    pub peer: Option<String>,
    /// The state after it.
    pub point: String,
    /// The same, escaped for a URI.
    pub uri: String,
}

/// Single records: around an instant, or the newest ones.
pub fn records(store: &Store, log: &Log, zone: &Zone) -> Result<Vec<Records>> {
    let count = log.count.unwrap_or(RECORDS).min(RECORDS_MAX / 2) as u64;
    let mut answers = Vec::new();
    for (volume, around) in chosen(store, log, zone)? {
        let tip = volume.tip_lsn();
        let (from, to) = match &around {
            Some(around) => {
                let at = around.lsn.0;
                (Lsn(at.saturating_sub(count) + 1), Lsn((at + count).min(tip.0)))
            }
            None => (Lsn(tip.0.saturating_sub(2 * count) + 1), tip),
        };
        let peers = peers(&volume)?;
        let mut rows = Vec::new();
        volume.records(from, to, &mut |header| rows.push(record_row(&volume, header, &peers)))?;
        answers.push(Records {
            volume: volume.name().to_owned(),
            around_gone: around.as_ref().and_then(|around| around.gone.clone()),
            around: around.and_then(|around| around.info),
            thinned: Thinned::of(&volume).between(from, to),
            records: rows,
        });
    }
    Ok(answers)
}

/// Sessions by number, newest first: numbers begin anew at each opening of the volume.
type Peers = HashMap<SessionId, Vec<(Lsn, String)>>;

fn peer_of(header: &RecordHeader, peers: &Peers) -> Option<String> {
    let sessions = peers.get(&header.session)?;
    sessions.iter().find(|(opened, _)| *opened <= header.lsn).map(|(_, peer)| peer.clone())
}

fn record_row(volume: &Volume, header: &RecordHeader, peers: &Peers) -> RecordRow {
    let changes = header.kind.changes_blocks();
    let point = format!("{}@lsn:{}", volume.name(), header.lsn);
    let skipped = u64::from(header.head_skip) + u64::from(header.tail_skip);
    RecordRow {
        lsn: header.lsn.0,
        utc: format_utc(header.timestamp),
        ns: header.timestamp.0,
        kind: header.kind.word().to_owned(),
        offset: changes.then(|| header.lba.0 * BLOCK_BYTES + u64::from(header.head_skip)),
        len: changes.then(|| header.blocks * BLOCK_BYTES - skipped),
        session: header.session.0,
        peer: peer_of(header, peers),
        uri: escape_uri(&point),
        point,
    }
}

/// Who the sessions are.
fn peers(volume: &Volume) -> Result<Peers> {
    let mut peers = Peers::new();
    let mut looked = 0;
    volume.events_back(|part, row| {
        if row.kind == RecordKind::SessionOpen as u8 {
            looked += 1;
            if let Ok(event) = volume.event(part, row)
                && let EventKind::SessionOpen { session, peer } = event.what
            {
                peers.entry(session).or_default().push((row.lsn, peer));
            }
        }
        if looked < EVENTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(peers)
}
