//! `cdp status`.

use cdp_core::error::Result;
use cdp_core::history::point::format_duration;

use super::Context;
use super::replica::lines as replica_lines;
use super::retention::size_lines;
use crate::door::{Door, unexpected};
use crate::report;
use crate::serve::votes::{SeatStatus, voter_words};
use crate::units::{latency, size};
use crate::work::forecast::hours_text;
use crate::work::points::Place;
use crate::work::shared::describe;
use crate::work::status::{LatencyStatus, ServerStatus, Status, VolumeStatus};
use crate::work::{Request, Response};

/// Says how the store is doing.
pub fn run(context: &Context, target: Option<String>) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::Status { target }, &mut |_| Ok(()))?;
    let Response::Status(status) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || text(status));
    Ok(if status.act { report::ACT } else { report::DONE })
}

fn text(status: &Status) -> String {
    let mut lines = status.verdict.clone();
    lines.extend(status.warnings.iter().cloned());
    lines.push(String::new());
    lines.push(format!("store     {}, {} free, I/O by {}", status.store, size(status.free_bytes), status.io));
    lines.push(format!("index     {}", status.memory.text()));
    if let Some(server) = &status.server {
        lines.extend(server_lines(server));
    }
    for volume in &status.volumes {
        lines.push(String::new());
        lines.extend(volume_lines(volume));
    }
    lines.join("\n")
}

fn server_lines(server: &ServerStatus) -> Vec<String> {
    let mut lines = vec![format!("server    pid {}, since {}", server.pid, server.since)];
    let endpoints = &server.endpoints;
    let places = endpoints.socket.iter().map(|path| path.display().to_string()).chain(endpoints.tcp.clone());
    lines.extend(places.map(|place| format!("          {place}")));
    for (name, latency) in [("write", &server.acknowledge), ("flush", &server.flush), ("read", &server.read)]
    {
        lines.push(format!("{name:9} {}", quantiles(latency)));
    }
    lines.extend(server.votes.iter().flat_map(vote_lines));
    if server.clients.is_empty() {
        lines.push("clients   none".to_owned());
    }
    for (number, client) in server.clients.iter().enumerate() {
        let head = if number == 0 { "clients   " } else { "          " };
        let export = client.export.as_deref().unwrap_or("(in its handshake)");
        lines.push(format!(
            "{head}{export}: {}, since {}, read {}, wrote {}",
            client.peer,
            client.since,
            size(client.bytes_read),
            size(client.bytes_written)
        ));
    }
    for (number, clone) in server.clones.iter().enumerate() {
        let head = if number == 0 { "clones    " } else { "          " };
        lines.push(format!("{head}{}: {}, since {}", clone.export, describe(clone), clone.since));
    }
    lines
}

/// `automatic disk  holds, 5.2 s left: …`, and the voters below it.
fn vote_lines(seat: &SeatStatus) -> Vec<String> {
    let left = match seat.left_ns {
        0 => String::new(),
        ns => format!(", {} left", format_duration(ns / 100_000_000 * 100_000_000)),
    };
    let holder = match (&seat.holder, seat.state.as_str()) {
        (Some(holder), state) if state != "holds" => format!("; {holder} has the lease"),
        _ => String::new(),
    };
    let mut lines = vec![format!("automatic {}: {}{left}{holder}: {}", seat.target, seat.state, seat.text)];
    for voter in &seat.voters {
        let name = voter.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let address = voter.address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
        lines.push(format!("          {}{name}{address}: {}", voter_words(voter), voter.text));
    }
    lines
}

fn quantiles(l: &LatencyStatus) -> String {
    if l.count == 0 {
        return "none yet".to_owned();
    }
    format!(
        "p50 {}, p99 {}, p99.9 {}, slowest {} ({} requests)",
        latency(l.p50_ns),
        latency(l.p99_ns),
        latency(l.p999_ns),
        latency(l.max_ns),
        l.count
    )
}

fn volume_lines(volume: &VolumeStatus) -> Vec<String> {
    let mut lines = vec![format!("{}  {}, {}", volume.name, size(volume.size_bytes), volume.state)];
    if let Some(why) = &volume.why {
        lines.push(format!("  why         {why}"));
    }
    if let Some(remedy) = &volume.remedy {
        lines.push(format!("  remedy      {remedy}"));
    }
    let place =
        |place: &Option<Place>| place.as_ref().map(|place| format!("lsn:{} at {}", place.lsn, place.utc));
    for (name, value) in [
        ("tip", place(&volume.tip)),
        ("durable", place(&volume.durable)),
        ("horizon", place(&volume.horizon)),
    ] {
        lines.extend(value.map(|value| format!("  {name:11} {value}")));
    }
    if let Some(proof) = &volume.proven {
        let age = format_duration(volume.proven_age_ns.unwrap_or(0));
        lines.push(format!(
            "  proven      lsn:{} at {}, {age} ago, by {}",
            proof.place.lsn, proof.place.utc, proof.program
        ));
    }
    if let Some(cap) = volume.journal_cap_bytes {
        let full = match (volume.hours_until_full, volume.journal_rate) {
            (Some(hours), _) if hours <= 0.0 => "; full".to_owned(),
            (Some(hours), Some(rate)) if hours < 24.0 * 365.0 => {
                format!("; full in {} at {}/s", hours_text(hours), size(rate as u64))
            }
            _ => String::new(),
        };
        lines.push(format!("  journal     {} of {}{full}", size(volume.journal_bytes), size(cap)));
    }
    lines.extend(volume.clone_of.as_ref().map(|parent| format!("  clone of    {parent}")));
    if let Some(rollback) = &volume.rolled_back {
        let asked = match rollback.asked.as_str() {
            "" => "an undo".to_owned(),
            asked => format!("to {asked}"),
        };
        lines.push(format!(
            "  rolled back {asked} (lsn:{}), by lsn:{} at {}; the state before: {}@{}",
            rollback.to_lsn, rollback.at.lsn, rollback.at.utc, volume.name, rollback.marker
        ));
    }
    if volume.state != "failed" {
        lines.extend(size_lines(&volume.sizes, None));
        lines.push(format!("  keeps       {}", volume.retention));
    }
    for (number, pin) in volume.pins.iter().enumerate() {
        let head = if number == 0 { "held" } else { "" };
        lines.push(format!("  {head:11} lsn:{} by {}", pin.lsn, pin.holder));
    }
    if let Some(fed) = &volume.fed {
        lines.push(format!("  fed by      {}, complete through {}", fed.site, fed.complete_utc));
    }
    lines.extend(volume.newest.as_ref().map(|newest| format!("  {:11} {}", newest.word(), newest.text())));
    if volume.old_copy {
        lines.push("  old copy    a newer one took its place; `cdp delete` lets it go".to_owned());
    }
    if let Some(reseed) = &volume.reseed {
        let done = match reseed.size_bytes {
            0 => "asked for; its primary has not begun".to_owned(),
            all => format!("{} of {} are there", size(reseed.done_bytes), size(all)),
        };
        lines.push(format!("  reseed      compared with {}: {done}", reseed.compared_with));
    }
    lines.extend(volume.replicas.iter().flat_map(|replica| replica_lines(replica, "  replica   ")));
    for damage in &volume.damages {
        lines.push(format!("  damage      lsn:{}: blocks {}+{}", damage.lsn, damage.lba, damage.blocks));
    }
    lines.extend(volume.base_problems.iter().map(|problem| format!("  damage      {problem}")));
    lines.extend(volume.last_error.as_ref().map(|error| format!("  last error  {error}")));
    if !volume.recovery.is_empty() {
        lines.push(format!("  opened      {}", volume.recovery));
    }
    lines
}
