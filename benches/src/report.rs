//! From samples to medians, per-round ratios, tables and JSON.

use serde_json::{Value, json};

use crate::host::Machine;
use crate::load::{Outcome, Unit};
use crate::rows::Row;

/// What one server did in one row of one round.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Units per second.
    pub rate: f64,
    /// Median and 99th percentile of the time of a request or cycle, in microseconds.
    pub p50_us: f64,
    /// See `p50_us`.
    pub p99_us: f64,
    /// CPU of the client for each request, in microseconds.
    pub client_cpu_us: f64,
    /// CPU of the server for each request, in microseconds.
    pub server_cpu_us: f64,
    /// Bytes to disk for each byte written.
    pub disk_bytes_per_byte: Option<f64>,
    /// Length of the flush afterwards, in seconds.
    pub settle_s: f64,
}

impl From<Outcome> for Sample {
    fn from(outcome: Outcome) -> Sample {
        let quantile = |q| outcome.latency.value_at_quantile(q) as f64 / 1e3;
        Sample {
            rate: outcome.rate,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            client_cpu_us: outcome.client_cpu_us,
            server_cpu_us: outcome.server_cpu_us,
            disk_bytes_per_byte: outcome.disk_bytes_per_byte,
            settle_s: outcome.settle.as_secs_f64(),
        }
    }
}

/// A server's samples in a row, one for each round; `Err` where the row failed.
pub type Cell = Vec<Result<Sample, String>>;

/// A row with a cell for each server that ran it.
pub struct RowResult {
    /// Which row.
    pub row: &'static Row,
    /// In the order of the servers; empty where a server does not run the row.
    pub cells: Vec<Cell>,
}

/// A server as the report names it.
pub struct ServerName {
    /// Short name.
    pub name: &'static str,
    /// What `--version` says.
    pub version: String,
    /// Whether it is ours.
    pub ours: bool,
}

/// The ratio of ours to what it is measured against, over the rounds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ratio {
    /// The worst round.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The best round.
    pub max: f64,
}

impl Ratio {
    fn of(mut values: Vec<f64>) -> Option<Ratio> {
        values.sort_by(f64::total_cmp);
        Some(Ratio { min: *values.first()?, median: median(&values)?, max: *values.last()? })
    }
}

/// Everything that was measured.
pub struct Report {
    /// When it began, UTC.
    pub date: String,
    /// How it was called.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// Device size in bytes.
    pub size: u64,
    /// Rounds asked for.
    pub rounds: usize,
    /// Who.
    pub servers: Vec<ServerName>,
    /// What came out.
    pub rows: Vec<RowResult>,
}

/// The middle of the values; `None` when there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn median_of(cell: &Cell, field: impl Fn(&Sample) -> f64) -> Option<f64> {
    median(&cell.iter().flatten().map(field).collect::<Vec<_>>())
}

impl Report {
    fn ours(&self) -> Option<usize> {
        self.servers.iter().position(|server| server.ours)
    }

    /// The peer with the best median in a row.
    fn best_peer(&self, result: &RowResult) -> Option<usize> {
        let rate = |index: usize| median_of(&result.cells[index], |sample| sample.rate);
        (0..self.servers.len())
            .filter(|&index| !self.servers[index].ours && rate(index).is_some())
            .max_by(|&a, &b| rate(a).unwrap_or(0.0).total_cmp(&rate(b).unwrap_or(0.0)))
    }

    /// Ours ÷ the best peer, or a view of ours ÷ the live volume, round by round.
    pub fn ratio(&self, result: &RowResult) -> Option<Ratio> {
        let ours = &result.cells[self.ours()?];
        let against = match result.row.view_of {
            Some(id) => &self.rows.iter().find(|other| other.row.id == id)?.cells[self.ours()?],
            None => &result.cells[self.best_peer(result)?],
        };
        let rounds = ours.iter().zip(against);
        Ratio::of(rounds.filter_map(|(a, b)| Some(a.as_ref().ok()?.rate / b.as_ref().ok()?.rate)).collect())
    }

    /// Rows of ours that failed, or whose ratio lies below the bar in every round.
    pub fn misses(&self) -> Vec<&'static str> {
        let Some(ours) = self.ours() else { return Vec::new() };
        let missed = |result: &&RowResult| {
            let failed = result.cells[ours].iter().any(Result::is_err);
            let below = |(ratio, bar): (Ratio, f64)| ratio.max < bar;
            failed || self.ratio(result).zip(result.row.bar).is_some_and(below)
        };
        self.rows.iter().filter(missed).map(|result| result.row.id).collect()
    }

    /// The tables, for people.
    pub fn text(&self) -> String {
        let machine = &self.machine;
        let mut out = format!(
            "{}  {} CPUs ({}), kernel {}, {}, load before {}\n{}\ndevices of {} MiB, {} rounds; medians; peers' best *\n",
            self.date,
            machine.cpus,
            machine.cpu,
            machine.kernel,
            machine.filesystem,
            machine.load,
            self.command,
            self.size >> 20,
            self.rounds,
        );
        for server in &self.servers {
            out += &format!("  {:<12} {}\n", server.name, server.version);
        }
        out += &self.summary();
        out += &self.details();
        out
    }

    fn summary(&self) -> String {
        let mut out = format!("\n{:<50}", "row");
        for server in &self.servers {
            out += &format!(" {:>13}", server.name);
        }
        out += "   ours / best peer: min – median – max\n";
        for result in &self.rows {
            let best = self.best_peer(result);
            out += &format!("{:<50}", result.row.title);
            for (index, cell) in result.cells.iter().enumerate() {
                let star = if best == Some(index) { "*" } else { " " };
                let text = match median_of(cell, |sample| sample.rate) {
                    Some(rate) => amount(rate, result.row.load.unit),
                    None if cell.is_empty() => "–".to_owned(),
                    None => "failed".to_owned(),
                };
                out += &format!(" {text:>12}{star}");
            }
            if let Some(ratio) = self.ratio(result) {
                out += &format!("  {:.2} – {:.2} – {:.2}", ratio.min, ratio.median, ratio.max);
                if let Some(bar) = result.row.bar {
                    let verdict = match ratio {
                        Ratio { max, .. } if max < bar => "MISS",
                        Ratio { median, .. } if median < bar => "below in the median",
                        _ => "ok",
                    };
                    out += &format!("  (bar {bar:.2}: {verdict})");
                }
            }
            out.push('\n');
        }
        out
    }

    fn details(&self) -> String {
        let mut out = format!(
            "\n{:<22}{:<13}{:>10}{:>10}{:>12}{:>12}{:>12}{:>10}\n",
            "row", "server", "p50 µs", "p99 µs", "client µs", "server µs", "disk/byte", "settle s"
        );
        for result in &self.rows {
            for (server, cell) in self.servers.iter().zip(&result.cells) {
                if let Some(problem) = cell.iter().find_map(|sample| sample.as_ref().err()) {
                    out += &format!("{:<22}{:<13} failed: {problem}\n", result.row.id, server.name);
                }
                let value = |field: fn(&Sample) -> f64| median_of(cell, field).unwrap_or(f64::NAN);
                let disk: Vec<f64> = cell.iter().flatten().filter_map(|s| s.disk_bytes_per_byte).collect();
                if cell.iter().any(Result::is_ok) {
                    out += &format!(
                        "{:<22}{:<13}{:>10.1}{:>10.1}{:>12.2}{:>12.2}{:>12}{:>10.2}\n",
                        result.row.id,
                        server.name,
                        value(|sample| sample.p50_us),
                        value(|sample| sample.p99_us),
                        value(|sample| sample.client_cpu_us),
                        value(|sample| sample.server_cpu_us),
                        median(&disk).map_or("–".to_owned(), |disk| format!("{disk:.2}")),
                        value(|sample| sample.settle_s),
                    );
                }
            }
        }
        out +=
            "CPU is for each request; p50 and p99 are of requests, or of whole commits and transactions.\n";
        out
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|result| self.row_json(result)).collect();
        let servers: Vec<Value> = self
            .servers
            .iter()
            .map(|server| json!({"name": server.name, "version": server.version, "ours": server.ours}))
            .collect();
        json!({
            "date": self.date,
            "command": self.command,
            "machine": {
                "cpu": self.machine.cpu,
                "cpus": self.machine.cpus,
                "kernel": self.machine.kernel,
                "filesystem": self.machine.filesystem,
                "load_before": self.machine.load,
            },
            "device_bytes": self.size,
            "rounds": self.rounds,
            "servers": servers,
            "rows": rows,
            "misses": self.misses(),
        })
    }

    fn row_json(&self, result: &RowResult) -> Value {
        let unit = match result.row.load.unit {
            Unit::Requests => "requests/s",
            Unit::Cycles => "cycles/s",
            Unit::Bytes => "bytes/s",
        };
        let samples = |cell: &Cell| -> Vec<Value> {
            let one = |sample: &Result<Sample, String>| match sample {
                Err(error) => json!({"error": error}),
                Ok(sample) => json!({
                    "rate": sample.rate,
                    "p50_us": sample.p50_us,
                    "p99_us": sample.p99_us,
                    "client_cpu_us": sample.client_cpu_us,
                    "server_cpu_us": sample.server_cpu_us,
                    "disk_bytes_per_byte": sample.disk_bytes_per_byte,
                    "settle_s": sample.settle_s,
                }),
            };
            cell.iter().map(one).collect()
        };
        let servers: serde_json::Map<String, Value> = self
            .servers
            .iter()
            .zip(&result.cells)
            .map(|(server, cell)| {
                let rate = median_of(cell, |sample| sample.rate);
                (server.name.to_owned(), json!({"rate_median": rate, "rounds": samples(cell)}))
            })
            .collect();
        let ratio = self.ratio(result).map(|r| json!({"min": r.min, "median": r.median, "max": r.max}));
        json!({
            "id": result.row.id,
            "title": result.row.title,
            "unit": unit,
            "servers": servers,
            "best_peer": self.best_peer(result).map(|index| self.servers[index].name),
            "ratio": ratio,
            "bar": result.row.bar,
        })
    }
}

fn amount(rate: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{:.2} GB/s", rate / 1e9),
        Unit::Requests | Unit::Cycles => format!("{:.2}k/s", rate / 1e3),
    }
}
