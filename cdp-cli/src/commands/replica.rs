//! `cdp replica`.

use std::collections::BTreeMap;
use std::path::Path;

use cdp_core::error::{IoContext, Result};
use cdp_core::history::point::{format_duration, format_utc};
use cdp_core::ids::Timestamp;

use super::Context;
use crate::cli::ReplicaCommand;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::size;
use crate::work::newest::{Newest, NewestLine};
use crate::work::replicas::{AddReplica, CopyLine, ReplicaStatus};
use crate::work::reseed::{Reseed, ReseedLine};
use crate::work::{Request, Response};

/// Adds, lists, removes.
pub fn run(context: &Context, command: ReplicaCommand) -> Result<u8> {
    let request = match command {
        ReplicaCommand::Add { volume, address, limit, give_up_when_full, codec, coalesce } => {
            let gives_way = give_up_when_full;
            Request::AddReplica(AddReplica { volume, address, limit, gives_way, codec, coalesce })
        }
        ReplicaCommand::Coalesce { volume, address, size } => {
            Request::CoalesceReplica { volume, address, size }
        }
        ReplicaCommand::Newest { volume, drop } => return newest(context, volume, drop),
        ReplicaCommand::Limit { volume, address, limit } => Request::LimitReplica { volume, address, limit },
        ReplicaCommand::Codec { volume, address, codec } => {
            Request::CompressReplica { volume, address, codec }
        }
        ReplicaCommand::List { volume } => Request::Replicas { volume },
        ReplicaCommand::Copies { drop } => return copies(context, drop),
        ReplicaCommand::Reseed { volume, from, site, cancel } => {
            return reseed(context, Reseed { volume, from, site, cancel });
        }
        ReplicaCommand::Remove { volume, address } => Request::RemoveReplica { volume, address },
    };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Replicas(replicas) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || match replicas.is_empty() {
        true => "no replicas".to_owned(),
        false => {
            let each = replicas.iter().flat_map(|one| lines(one, &one.volume));
            groups(replicas).into_iter().chain(each).collect::<Vec<_>>().join("\n")
        }
    });
    Ok(report::DONE)
}

/// Groups as one: a line for each group at each address, where all of its shown members have a replica.
fn groups(replicas: &[ReplicaStatus]) -> Vec<String> {
    let mut together: BTreeMap<(&str, &str), Vec<&ReplicaStatus>> = BTreeMap::new();
    for replica in replicas {
        for group in &replica.groups {
            together.entry((group, &replica.address)).or_default().push(replica);
        }
    }
    let line = |((group, address), members): (&(&str, &str), &Vec<&ReplicaStatus>)| {
        let complete = members.iter().map(|member| member.complete_ns).min().unwrap_or(0);
        let lag = members.iter().map(|member| member.lag_ns).max().unwrap_or(0);
        let behind: Vec<&str> = members
            .iter()
            .filter(|member| member.state != "up-to-date")
            .map(|member| &member.volume[..])
            .collect();
        let state = match (behind.is_empty(), complete) {
            (true, _) => "all up-to-date".to_owned(),
            (false, _) => format!("not up-to-date: {}", behind.join(", ")),
        };
        let complete = match complete {
            0 => "not complete for all of them yet".to_owned(),
            ns => format!("complete for all of them through {}", format_utc(Timestamp(ns))),
        };
        let lag = format_duration(lag);
        format!("group {group}  at {address}: {} volumes, {state}; {complete}, lag {lag}", members.len())
    };
    together.iter().map(line).collect()
}

fn copies(context: &Context, drop: Option<String>) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::Copies { drop }, &mut |_| Ok(()))?;
    let Response::Copies(copies) = &answer else { return Err(unexpected()) };
    let line = |copy: &CopyLine| {
        let state = match (copy.active, &copy.touched) {
            (true, _) => "is being sent".to_owned(),
            (false, Some(touched)) => format!("went on last at {touched}"),
            (false, None) => "is not being sent".to_owned(),
        };
        format!("{}  {}: {} of {}, {state}", copy.name, copy.id, size(copy.done_bytes), size(copy.size_bytes))
    };
    context.show(&answer.json(), || match copies.is_empty() {
        true => "no unfinished first copies".to_owned(),
        false => copies.iter().map(line).collect::<Vec<_>>().join("\n"),
    });
    Ok(report::DONE)
}

fn newest(context: &Context, volume: Option<String>, drop: bool) -> Result<u8> {
    let request = Request::Newest(Newest { volume, drop });
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Newest(lines) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || match lines.is_empty() {
        true => "no newest states ahead of their history".to_owned(),
        false => {
            let line = |line: &NewestLine| format!("{}  {} {}", line.volume, line.word(), line.text());
            lines.iter().map(line).collect::<Vec<_>>().join("\n")
        }
    });
    Ok(report::DONE)
}

fn reseed(context: &Context, mut request: Reseed) -> Result<u8> {
    request.from = match request.from {
        // The server has a working directory of its own.
        Some(path) if path.contains('/') => {
            let full = Path::new(&path).canonicalize().at(|| format!("finding {path}"))?;
            Some(full.to_string_lossy().into_owned())
        }
        other => other,
    };
    let request = Request::Reseed(request);
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Reseeds(lines) = &answer else { return Err(unexpected()) };
    let line = |line: &ReseedLine| {
        if let Some(problem) = &line.problem {
            return format!("{}  {problem}", line.volume);
        }
        let then = match line.replaces {
            true => "; what is here steps aside when the new copy is whole",
            false => "",
        };
        format!("{}  is copied anew, compared with {}{then}", line.volume, line.compared_with)
    };
    context.show(&answer.json(), || match lines.is_empty() {
        true => "no reseeds".to_owned(),
        false => lines.iter().map(line).collect::<Vec<_>>().join("\n"),
    });
    Ok(report::DONE)
}

/// A replica in lines; `head` stands before the first.
pub fn lines(replica: &ReplicaStatus, head: &str) -> Vec<String> {
    let site = replica.site.as_ref().map(|site| format!(" ({site})")).unwrap_or_default();
    let mut lines =
        vec![format!("{head}  at {}{site}: {}, {}", replica.address, replica.state, replica.text)];
    let limit = replica.limit.as_ref().map_or(String::new(), |limit| format!(", at most {limit}"));
    let codec = match replica.codec.as_str() {
        "none" => "not compressed".to_owned(),
        word => format!("compressed by {word}"),
    };
    lines.push(format!(
        "    lag       {} records, {}, {}; sends {}/s, {codec}{limit}",
        replica.lag_records,
        size(replica.lag_bytes),
        format_duration(replica.lag_ns),
        size(replica.rate_bytes_per_s)
    ));
    for (name, place) in [("oldest", &replica.oldest), ("newest", &replica.newest)] {
        lines.extend(place.as_ref().map(|place| format!("    {name:9} lsn:{} at {}", place.lsn, place.utc)));
    }
    lines
}
