//! End-to-end benchmark: ours beside plain NBD servers, the same load on each in turn, ratios from the same run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cdp_benches::host::{Disk, Machine};
use cdp_benches::load::{self, Target, Timing};
use cdp_benches::report::{Cell, Report, RowResult, Sample, ServerName};
use cdp_benches::rows::{ROWS, Row};
use cdp_benches::servers::{EXPORT, Kind, Server, VIEW};
use cdp_benches::stamp::Ledger;
use clap::Parser;

/// Measures cdp beside qemu-nbd and nbdkit, interleaved, on the same filesystem.
///
/// For quieter figures on a busy machine: `chrt -r 5 target/release/e2e …` (the servers inherit it).
#[derive(Parser)]
struct Flags {
    /// Small devices and short rows: about three minutes
    #[arg(long)]
    quick: bool,
    /// Only rows whose name contains one of these, comma-separated
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these peers, comma-separated: qemu-nbd, qemu-direct, nbdkit
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Interleaved rounds, each on fresh devices
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Device size in MiB (default: 512 with --quick, else 2048)
    #[arg(long, value_name = "MIB")]
    size: Option<u64>,
    /// Measured time of a row, in milliseconds (default: 600 with --quick, else 3000)
    #[arg(long, value_name = "MS")]
    time: Option<u64>,
    /// Read everything back after each row and compare it with what was answered
    #[arg(long)]
    verify: bool,
    /// Agree on structured replies where the server offers them
    #[arg(long)]
    structured: bool,
    /// Exit with 1 if a row of ours lies below its bar in every round, or failed
    #[arg(long)]
    check: bool,
    /// Where the devices go (default: beside this program)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The cdp binary (default: beside this program)
    #[arg(long, value_name = "PATH")]
    cdp: Option<PathBuf>,
    /// Seed of the random places
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the rows and stop
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.list {
        ROWS.iter().for_each(|row| println!("{:<22}{}", row.id, row.title));
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(report) => {
            print!("{}", report.text());
            let misses = report.misses();
            if !misses.is_empty() {
                println!("below the bar: {}", misses.join(", "));
            }
            if flags.check && !misses.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS }
        }
        Err(problem) => {
            eprintln!("e2e: {problem}");
            ExitCode::from(2)
        }
    }
}

/// What stays the same over all rounds.
struct Bench<'a> {
    flags: &'a Flags,
    size: u64,
    timing: Timing,
    dir: PathBuf,
    sockets: PathBuf,
    disk: Option<Disk>,
}

fn run(flags: &Flags) -> Result<Report, String> {
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from));
    let base = flags.dir.clone().or_else(|| beside.clone()).ok_or("no place for the devices; use --dir")?;
    let scratch = |builder: &mut tempfile::Builder<'_, '_>, base: &std::path::Path| {
        builder.tempdir_in(base).map_err(|error| format!("{}: {error}", base.display()))
    };
    let dir = scratch(tempfile::Builder::new().prefix("e2e-"), &base)?;
    let sockets = scratch(tempfile::Builder::new().prefix("e2e-"), &std::env::temp_dir())?;
    let default_ms = if flags.quick { 600 } else { 3000 };
    let bench = Bench {
        flags,
        size: flags.size.unwrap_or(if flags.quick { 512 } else { 2048 }).max(64) << 20,
        timing: Timing {
            warm_up: Duration::from_millis(if flags.quick { 100 } else { 300 }),
            measured: Duration::from_millis(flags.time.unwrap_or(default_ms).max(50)),
            seed: flags.seed,
        },
        disk: Disk::under(dir.path()),
        dir: dir.path().to_owned(),
        sockets: sockets.path().to_owned(),
    };
    let rows: Vec<&'static Row> = ROWS
        .iter()
        .filter(|row| flags.rows.is_empty() || flags.rows.iter().any(|part| row.id.contains(part.as_str())))
        .collect();
    let machine = Machine::here(dir.path());
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string();

    let cdp = flags.cdp.clone().or_else(|| beside.map(|dir| dir.join("cdp")));
    let kinds = bench.usable(cdp)?;
    let mut results: Vec<RowResult> =
        rows.iter().map(|row| RowResult { row, cells: vec![Cell::new(); kinds.len()] }).collect();
    let started = Instant::now();
    for round in 0..flags.rounds.max(1) {
        bench.round(round, &kinds, &mut results)?;
        eprintln!("round {} done after {:.0} s", round + 1, started.elapsed().as_secs_f64());
    }
    let servers = kinds
        .iter()
        .map(|kind| ServerName {
            name: kind.name(),
            version: kind.version().unwrap_or_default(),
            ours: kind.is_ours(),
        })
        .collect();
    let report = Report {
        date,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine,
        size: bench.size,
        rounds: flags.rounds.max(1),
        servers,
        rows: results,
    };
    if let Some(path) = &flags.json {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report)
}

impl Bench<'_> {
    /// Starts each server once: those that do not come up are named and left out.
    fn usable(&self, cdp: Option<PathBuf>) -> Result<Vec<Kind>, String> {
        let wanted = |kind: &Kind| {
            self.flags.peers.is_empty() || self.flags.peers.iter().any(|name| name == kind.name())
        };
        let mut kinds = vec![Kind::QemuWriteback, Kind::QemuUring, Kind::Nbdkit];
        kinds.retain(wanted);
        kinds.extend(cdp.map(Kind::Cdp));
        let mut usable = Vec::new();
        for kind in kinds {
            match Server::start(&kind, &self.dir, &self.sockets, self.size) {
                Ok(_) => usable.push(kind),
                Err(problem) => eprintln!("without {}: {problem}", kind.name()),
            }
        }
        if usable.is_empty() { Err("no server can be started".to_owned()) } else { Ok(usable) }
    }

    /// All rows on fresh devices; in each row the servers take turns, another one first in each round.
    fn round(&self, round: usize, kinds: &[Kind], results: &mut [RowResult]) -> Result<(), String> {
        let mut servers = Vec::new();
        for kind in kinds {
            let server = Server::start(kind, &self.dir, &self.sockets, self.size)?;
            let ledger = Ledger::new(self.size);
            load::fill(&self.target(&server, &ledger, EXPORT), self.size)
                .map_err(|error| format!("filling the device of {}: {error}", kind.name()))?;
            // Also what makes reads warm: whether a server keeps in memory what was written is its own affair.
            load::verify(&self.target(&server, &ledger, EXPORT), self.size)
                .map_err(|error| format!("reading the device of {} back: {error}", kind.name()))?;
            servers.push((server, ledger));
        }
        for (number, result) in results.iter_mut().enumerate() {
            for turn in 0..servers.len() {
                let index = (turn + round + number) % servers.len();
                let (server, ledger) = &servers[index];
                if result.row.view_of.is_some() && !server.kind.is_ours() {
                    continue;
                }
                let sample = self.measure(result.row, server, ledger, round);
                if let Err(problem) = &sample {
                    eprintln!("{} on {}: {problem}", result.row.id, server.kind.name());
                }
                result.cells[index].push(sample);
            }
        }
        Ok(())
    }

    fn measure(&self, row: &Row, server: &Server, ledger: &Ledger, round: usize) -> Result<Sample, String> {
        let export = if row.view_of.is_some() { VIEW } else { EXPORT };
        let target = self.target(server, ledger, export);
        let timing = Timing { seed: self.timing.seed + round as u64, ..self.timing };
        let outcome = load::run(&row.load, &target, timing).map_err(|error| error.to_string())?;
        if self.flags.verify {
            load::verify(&target, self.size).map_err(|error| error.to_string())?;
        }
        Ok(Sample::from(outcome))
    }

    fn target<'a>(&'a self, server: &'a Server, ledger: &'a Ledger, export: &'a str) -> Target<'a> {
        Target {
            address: &server.address,
            export,
            server_pid: server.pid(),
            disk: self.disk.as_ref(),
            ledger,
            structured: self.flags.structured,
        }
    }
}
