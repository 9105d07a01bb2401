//! `cdp group`.

use cdp_core::error::Result;

use super::Context;
use crate::cli::{GroupCommand, GroupMembers};
use crate::door::{Door, unexpected};
use crate::report;
use crate::work::{Group, Request, Response};

/// Makes, extends or lists groups.
pub fn run(context: &Context, command: GroupCommand) -> Result<u8> {
    let group = |members: GroupMembers| Group { name: members.group, members: members.volumes };
    let request = match command {
        GroupCommand::Create(members) => Request::GroupCreate(group(members)),
        GroupCommand::Add(members) => Request::GroupAdd(group(members)),
        GroupCommand::Remove(members) => Request::GroupRemove(group(members)),
        GroupCommand::Delete { group: name } => Request::GroupDelete { name },
        GroupCommand::List => Request::GroupList,
    };
    let is_less = matches!(request, Request::GroupRemove(_) | Request::GroupDelete { .. });
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Groups(groups) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        if groups.is_empty() && is_less {
            return "the group is gone; its volumes stay".to_owned();
        }
        if groups.is_empty() {
            return "there are no groups; `cdp group create GROUP VOL…` makes one".to_owned();
        }
        let lines: Vec<String> =
            groups.iter().map(|group| format!("{}: {}", group.name, group.members.join(", "))).collect();
        lines.join("\n")
    });
    Ok(report::DONE)
}
