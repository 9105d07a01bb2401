//! `cdp replica`.

use cdp_core::error::Result;
use cdp_core::history::point::format_duration;

use super::Context;
use crate::cli::ReplicaCommand;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::{parse_size, size};
use crate::work::replicas::{AddReplica, ReplicaStatus};
use crate::work::{Request, Response};

/// Adds, lists, removes.
pub fn run(context: &Context, command: ReplicaCommand) -> Result<u8> {
    let request = match command {
        ReplicaCommand::Add { volume, address, limit, give_up_when_full } => {
            let limit = limit.as_deref().map(|text| parse_size(text.strip_suffix("/s").unwrap_or(text)));
            let limit_bytes_per_s = limit.transpose()?.unwrap_or(0);
            let gives_way = give_up_when_full;
            Request::AddReplica(AddReplica { volume, address, limit_bytes_per_s, gives_way })
        }
        ReplicaCommand::List { volume } => Request::Replicas { volume },
        ReplicaCommand::Remove { volume, address } => Request::RemoveReplica { volume, address },
    };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Replicas(replicas) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || match replicas.is_empty() {
        true => "no replicas".to_owned(),
        false => replicas.iter().flat_map(|one| lines(one, &one.volume)).collect::<Vec<_>>().join("\n"),
    });
    Ok(report::DONE)
}

/// A replica in lines; `head` stands before the first.
pub fn lines(replica: &ReplicaStatus, head: &str) -> Vec<String> {
    let site = replica.site.as_ref().map(|site| format!(" ({site})")).unwrap_or_default();
    let mut lines =
        vec![format!("{head}  at {}{site}: {}, {}", replica.address, replica.state, replica.text)];
    let limit = match replica.limit_bytes_per_s {
        0 => String::new(),
        limit => format!(", at most {}/s", size(limit)),
    };
    lines.push(format!(
        "    lag       {} records, {}, {}; sends {}/s{limit}",
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
