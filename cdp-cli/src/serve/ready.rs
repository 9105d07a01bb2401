//! What `cdp serve` says when it is ready: only lines that work on this machine now.

use std::fs::File;
use std::path::{Path, PathBuf};

use cdp_core::device::Device;
use cdp_core::history::point::Timeline;
use cdp_core::volume::Volume;
use serde::Serialize;

use crate::config::Config;
use crate::host::command::find;
use crate::report;
use crate::units;
use crate::work::{Endpoints, Site};

const SECOND: u64 = 1_000_000_000;

/// The same for programs.
#[derive(Serialize)]
struct Ready<'a> {
    pid: u32,
    store: String,
    endpoints: &'a Endpoints,
    uris: Vec<String>,
    volumes: Vec<String>,
    news: &'a [String],
}

/// Prints it.
pub fn print(config: &Config, site: &Site, news: &[String], json: bool) {
    let Some(server) = &site.server else { return };
    let endpoints = &server.endpoints;
    let volumes = site.store.volumes();
    if json {
        let uris = volumes
            .iter()
            .flat_map(|volume| [endpoints.unix_uri(volume.name()), endpoints.tcp_uri(volume.name())])
            .flatten()
            .collect();
        report::print_json(&Ready {
            pid: std::process::id(),
            store: config.store.display().to_string(),
            endpoints,
            uris,
            volumes: volumes.iter().map(|volume| volume.name().to_owned()).collect(),
            news,
        });
        return;
    }
    let cdp = own_command(config);
    for line in news {
        report::print(line);
    }
    report::print(&format!("serving {}", config.store.display()));
    for volume in &volumes {
        report::print(&format!("\n  {}  {}", volume.name(), units::size(volume.size_bytes())));
        for uri in [endpoints.unix_uri(volume.name()), endpoints.tcp_uri(volume.name())].into_iter().flatten()
        {
            report::print(&format!("    {uri}"));
        }
    }
    let Some(volume) = volumes.iter().find(|volume| volume.name() == "disk").or(volumes.first()) else {
        report::print(&format!("\nThere is no volume yet:\n    {cdp} create disk --size 10G"));
        return;
    };
    report::print("\nPut a filesystem on it (in another terminal):");
    for line in filesystem_lines(volume, endpoints, &cdp) {
        report::print(&format!("    {line}"));
    }
    report::print("\nLook at the past:");
    for line in past_lines(volume, endpoints, &cdp, site.store.clock().now().0) {
        report::print(&format!("    {line}"));
    }
    report::print("\nCtrl-C ends it; nothing is lost.");
}

/// How this program is called so that it finds the same store.
fn own_command(config: &Config) -> String {
    let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("cdp"));
    let in_path = find("cdp").and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == exe);
    // The whole path: the other terminal may stand in another directory.
    let name = if in_path { "cdp".to_owned() } else { exe.display().to_string() };
    if config.store_is_default {
        quote(&name)
    } else {
        format!("{} --store {}", quote(&name), quote_path(&config.store))
    }
}

fn quote_path(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    quote(&path.display().to_string())
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@:=+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn can_write(path: &str) -> bool {
    File::options().read(true).write(true).open(path).is_ok()
}

fn can_attach() -> bool {
    rustix::process::geteuid().is_root()
        && can_write("/dev/fuse")
        && can_write("/dev/loop-control")
        && ["nbdfuse", "losetup", "mount", "setsid", "fusermount3", "nbdinfo"]
            .iter()
            .all(|program| find(program).is_some())
}

fn filesystem_lines(volume: &Volume, endpoints: &Endpoints, cdp: &str) -> Vec<String> {
    let name = quote(volume.name());
    let Some(uri) = endpoints.uri(volume.name()) else { return vec![format!("{cdp} demo")] };
    let uri = format!("'{uri}'");
    if find("mkfs.ext4").is_some() && can_attach() {
        return vec![
            format!("mkfs.ext4 \"$({cdp} attach {name})\" && {cdp} detach {name}"),
            format!("{cdp} attach {name} /mnt/{name}"),
        ];
    }
    let make = format!("truncate -s {} fs.img && mkfs.ext4 -q fs.img", volume.size_bytes());
    if find("mkfs.ext4").is_some() && find("nbdcopy").is_some() {
        return vec![format!("{make} && nbdcopy fs.img {uri}")];
    }
    if find("mkfs.ext4").is_some() && find("qemu-img").is_some() {
        return vec![format!("{make} && qemu-img convert -n -f raw -O raw fs.img {uri}")];
    }
    vec![
        format!("{cdp} demo      (no NBD client is installed here: this shows it without one)"),
        format!("{cdp} doctor    (says how to install one)"),
    ]
}

fn past_lines(volume: &Volume, endpoints: &Endpoints, cdp: &str, now_ns: u64) -> Vec<String> {
    let age = now_ns.saturating_sub(volume.horizon().1.0);
    let point = match age {
        age if age > 305 * SECOND => "-5m",
        age if age > 35 * SECOND => "-30s",
        _ => "start",
    };
    let export = format!("{}@{point}", volume.name());
    let mut lines = vec![format!("{cdp} log {}", quote(volume.name()))];
    if let Some(uri) = endpoints.uri(&export) {
        if find("nbdcopy").is_some() {
            lines.push(format!("nbdcopy '{uri}' past.img"));
        } else if find("qemu-img").is_some() {
            lines.push(format!("qemu-img convert -f raw -O raw '{uri}' past.img"));
        }
    }
    lines.push(format!("{cdp} restore {} past.img --force", quote(&export)));
    lines
}
