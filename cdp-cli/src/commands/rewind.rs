//! `cdp rollback`, `undo`, `resume` and `grow`.

use cdp_core::error::Result;

use super::{Context, point};
use crate::cli;
use crate::door::{Door, unexpected};
use crate::report;
use crate::units::{parse_size, size};
use crate::work::{Request, Response, Rewound, Rollback, Undo};

/// Sets a volume or a group back.
pub fn rollback(context: &Context, arguments: &cli::Rollback) -> Result<u8> {
    let request = Rollback { target: arguments.target.clone(), force: arguments.force };
    let name = cdp_core::history::point::split_export(&arguments.target).0;
    rewind(context, name, Request::Rollback(request))
}

/// Takes the newest rollback back.
pub fn undo(context: &Context, arguments: &cli::Undo) -> Result<u8> {
    let request = Undo { target: arguments.target.clone(), force: arguments.force };
    rewind(context, &arguments.target, Request::Undo(request))
}

fn rewind(context: &Context, name: &str, request: Request) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Rewound(rewound) = &answer else { return Err(unexpected()) };
    point::tell(rewound.iter().filter_map(|rewound| rewound.point.as_ref()));
    context.show(&answer.json(), || {
        let mut lines: Vec<String> = rewound.iter().map(line).collect();
        lines.push(format!("  take it back: cdp undo {name}"));
        if rewound.iter().any(|rewound| rewound.held) {
            lines.push(format!("  closed to clients until: cdp resume {name}"));
        }
        lines.join("\n")
    });
    Ok(report::DONE)
}

fn line(rewound: &Rewound) -> String {
    let Rewound { volume, lsn, to_lsn, export_before, .. } = rewound;
    let mut line = format!(
        "{volume} is as it was at lsn:{to_lsn}, from lsn:{lsn} on; the state before: {export_before}"
    );
    if rewound.size_before_bytes != rewound.size_bytes {
        line.push_str(&format!(
            "; its size is {} again, not {}",
            size(rewound.size_bytes),
            size(rewound.size_before_bytes)
        ));
    }
    for client in &rewound.disconnected {
        line.push_str(&format!("\n  disconnected: {client}"));
    }
    line
}

/// Opens a volume or a group to clients again.
pub fn resume(context: &Context, target: String) -> Result<u8> {
    let answer = Door::ask_once(&context.config, false, Request::Resume { target }, &mut |_| Ok(()))?;
    let Response::Resumed(volumes) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        volumes.iter().map(|line| format!("{} is open to clients", line.name)).collect::<Vec<_>>().join("\n")
    });
    Ok(report::DONE)
}

/// Makes a volume larger.
pub fn grow(context: &Context, arguments: &cli::Grow) -> Result<u8> {
    let request =
        Request::Grow { volume: arguments.volume.clone(), size_bytes: parse_size(&arguments.size)? };
    let answer = Door::ask_once(&context.config, false, request, &mut |_| Ok(()))?;
    let Response::Volume(volume) = &answer else { return Err(unexpected()) };
    context.show(&answer.json(), || {
        let now = volume.size_bytes.map_or(String::new(), size);
        format!("{}: {now}; clients see it when they connect again", volume.name)
    });
    Ok(report::DONE)
}
