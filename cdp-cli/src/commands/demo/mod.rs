//! `cdp demo`: a file is written, destroyed and seen again, through NBD, in a store that is thrown away.

pub mod client;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::history::point::format_utc;
use cdp_core::store::{CreateOptions, Store};
use cdp_nbd::Peer;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::Context;
use crate::config::Config;
use crate::door::open_store;
use crate::report;
use crate::serve::Running;
use crate::work::{self, Mark, Request, Response};
use client::Client;

const VOLUME: &str = "disk";
const VOLUME_BYTES: u64 = 16 << 20;
const MARKER: &str = "before-accident";
const FILE: &str = "thesis.txt";
const TEXT: &str = "Chapter 1. The only copy of three years of work.";

/// The directory of the demo's store; gone when the demo is over.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Shows what it is good for.
pub fn run(context: &Context) -> Result<u8> {
    let begin = Instant::now();
    let scratch = Scratch(std::env::temp_dir().join(format!("cdp-demo-{}", std::process::id())));
    let config = Config {
        store: scratch.0.clone(),
        store_is_default: false,
        socket: None,
        listen: None,
        on_alarm: None,
        on_promote: None,
        on_demote: None,
        ..context.config.clone()
    };
    prepare(&config)?;
    let mut running = Running::start(&config, true)?;
    let told = Demo { running: &running, json: context.json, steps: Vec::new() }.play();
    running.stop()?;
    let steps = told?;
    let seconds = begin.elapsed().as_secs_f64();
    if context.json {
        report::print_json(&serde_json::json!({ "steps": steps, "seconds": seconds }));
    } else {
        report::print(&format!("\n{seconds:.1} seconds; the demo's store is removed. For real: cdp serve"));
    }
    Ok(report::DONE)
}

/// A store with one small volume.
fn prepare(config: &Config) -> Result<()> {
    let store: Store = open_store(config, true, "cdp demo")?;
    store.create_volume(VOLUME, &CreateOptions::new(VOLUME_BYTES), None)?;
    store.close()
}

struct Demo<'a> {
    running: &'a Running,
    json: bool,
    steps: Vec<String>,
}

impl Demo<'_> {
    fn play(mut self) -> Result<Vec<String>> {
        self.step(
            "A new volume, `disk`, 16 MiB. An NBD client connects, makes a FAT filesystem and writes a file.",
        );
        let mut disk = self.connect(VOLUME)?;
        let options = FormatVolumeOptions::new().fat_type(FatType::Fat16);
        fatfs::format_volume(&mut disk, options).at(|| "formatting".to_owned())?;
        write_file(disk, FILE, TEXT)?;
        self.quote(&format!("{FILE}: {TEXT}"));

        let mark = Mark {
            target: VOLUME.to_owned(),
            name: Some(MARKER.to_owned()),
            note: String::new(),
            tags: Vec::new(),
            application: None,
        };
        let Response::Marked(marked) =
            work::run(&self.running.site, None, &Request::Mark(mark), &mut |_| Ok(()))?
        else {
            return Err(Error::new(Kind::Invalid, "a marker gave no marker"));
        };
        let at = marked.first().map(|marked| marked.utc.clone()).unwrap_or_default();
        self.step(&format!("A marker: `cdp mark {VOLUME} {MARKER}`, at {at}."));
        std::thread::sleep(Duration::from_millis(300));

        self.step("Somebody adds a line. Nobody takes a snapshot, nobody sets a marker.");
        let longer = format!("{TEXT} Chapter 2, written after the marker.");
        write_file(self.connect(VOLUME)?, FILE, &longer)?;
        let instant = format_utc(self.running.site.store.clock().now());
        std::thread::sleep(Duration::from_millis(300));

        self.step("The accident: the whole disk is overwritten with garbage, then discarded.");
        let mut disk = self.connect(VOLUME)?;
        let garbage = vec![0xa5; VOLUME_BYTES as usize];
        disk.write_all(&garbage).and_then(|()| disk.trim_all()).at(|| "the accident".to_owned())?;
        drop(disk);
        let gone = match read_file(self.connect(VOLUME)?, FILE) {
            Ok(_) => return Err(Error::new(Kind::Invalid, "the accident did not destroy the file")),
            Err(error) => error,
        };
        self.quote(&format!("{VOLUME}: {gone}"));

        for (export, wanted) in
            [(format!("{VOLUME}@{MARKER}"), TEXT), (format!("{VOLUME}@{instant}"), longer.as_str())]
        {
            self.step(&format!("The past is an export like any other. A client opens {export}"));
            let text =
                read_file(self.connect(&export)?, FILE).at(|| format!("reading {FILE} from {export}"))?;
            if text != wanted {
                let context = format!("{export} holds {text:?} and not what was written then");
                return Err(Error::new(Kind::Damaged, context));
            }
            self.quote(&format!("{FILE}: {text}"));
        }
        self.step(
            "Nothing was restored or replayed, and no snapshot was taken. The live disk is still empty.",
        );
        self.quote("`cdp restore`, `cdp mount` or any NBD client brings back what you want of it.");
        Ok(self.steps)
    }

    fn step(&mut self, text: &str) {
        let number = self.steps.len() + 1;
        if !self.json {
            report::print(&format!("{}{number}. {text}", if number > 1 { "\n" } else { "" }));
        }
        self.steps.push(text.to_owned());
    }

    fn quote(&mut self, text: &str) {
        if let Some(step) = self.steps.last_mut() {
            step.push_str(&format!(" ({text})"));
        }
        if !self.json {
            report::print(&format!("     {text}"));
        }
    }

    /// Connects as any client would, only that the socket needs no name.
    fn connect(&self, export: &str) -> Result<Client> {
        let place = || format!("connecting to {export}");
        let (ours, theirs) = UnixStream::pair().at(place)?;
        self.running.server().nbd.serve_socket(theirs.into(), Peer::Stdio).at(place)?;
        Client::connect(ours, export).at(place)
    }
}

fn write_file(disk: Client, name: &str, text: &str) -> Result<()> {
    let written = (|| {
        let filesystem = FileSystem::new(disk, FsOptions::new())?;
        let mut file = filesystem.root_dir().create_file(name)?;
        file.truncate()?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
        drop(file);
        filesystem.unmount()
    })();
    written.at(|| format!("writing {name}"))
}

fn read_file(disk: Client, name: &str) -> std::io::Result<String> {
    let filesystem = FileSystem::new(disk, FsOptions::new())?;
    let mut text = String::new();
    filesystem.root_dir().open_file(name)?.read_to_string(&mut text)?;
    Ok(text)
}
