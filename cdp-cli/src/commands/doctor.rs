//! `cdp doctor`.

use cdp_core::error::Result;

use super::Context;
use crate::host::doctor::{diagnose, install_all};
use crate::report;

/// Looks at the machine. Exit code 1 when something that is needed is missing.
pub fn run(context: &Context) -> Result<u8> {
    let findings = diagnose(&context.config.store);
    let install = install_all(&findings);
    let json = serde_json::json!({ "findings": findings, "install": install });
    context.show(&json, || {
        let mut lines = Vec::new();
        for finding in &findings {
            let word = match (finding.ok, finding.optional) {
                (true, _) => "ok",
                (false, true) => "could be better",
                (false, false) => "missing",
            };
            lines.push(format!("{word:16} {:22} {}", finding.name, finding.detail));
            lines.extend(finding.remedy_line.as_ref().map(|line| format!("{:40}{line}", "")));
        }
        if let Some(line) = &install {
            lines.push(format!("\nAll missing programs at once:\n    {line}"));
        }
        lines.join("\n")
    });
    let needed = findings.iter().any(|finding| !finding.ok && !finding.optional);
    Ok(if needed { report::FAILED } else { report::DONE })
}
