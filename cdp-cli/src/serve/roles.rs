//! Programs of the user that run when volumes of this store become primaries, or are none any more: to move an address, to
//! start or stop machines.
//!
//! However the role changed: by a command, by what another site said, or while the server was down. What was told last
//! stands in the file `roles-told` of the store, written when the program has ended: so each change is told at least once,
//! and a program that is told twice must not mind.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cdp_core::error::{IoContext, Result};
use cdp_core::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use cdp_core::ids::VolumeId;
use cdp_core::io::{read_file, replace_file};
use cdp_core::store::Store;
use cdp_core::volume::role::Role;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::hooks::{Limit, run_program};

/// Name of the file in the store.
const FILE: &str = "roles-told";
const KIND: &str = "cdp-roles-told";
const VERSION: u32 = 1;
/// What the newest so many runs said is kept for whoever asked for the change.
const RUNS_KEPT: usize = 64;
/// So long a program may take.
const HOOK_TIME: Duration = Duration::from_secs(60);

/// A program that was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRun {
    /// The program.
    pub program: PathBuf,
    /// `promote` or `demote`, which was its argument.
    pub action: String,
    /// The volumes whose role had changed.
    pub volumes: Vec<String>,
    /// What it printed.
    pub output: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The programs, and what they were told.
#[derive(Default)]
pub struct RoleHooks {
    on_promote: Option<PathBuf>,
    on_demote: Option<PathBuf>,
    // Held while programs run: one change after another.
    told: Mutex<Told>,
    // How many programs were run. Beside the lock: who changes a role waits for no program.
    count: AtomicU64,
}

#[derive(Default)]
struct Told {
    // Whether each volume was a primary when somebody was told last.
    primaries: BTreeMap<VolumeId, bool>,
    // The newest programs that were run.
    runs: VecDeque<HookRun>,
}

impl RoleHooks {
    /// What a store that is opened for the first time with programs has is not news to anybody.
    pub fn start(config: &Config, store: &Store) -> Result<RoleHooks> {
        let hooks = RoleHooks {
            on_promote: config.on_promote.clone(),
            on_demote: config.on_demote.clone(),
            told: Mutex::default(),
            count: AtomicU64::new(0),
        };
        if hooks.is_wanted() {
            let mut told = hooks.told.lock().expect("no panics under this lock");
            told.primaries = read(store)?;
            for volume in store.volumes() {
                told.primaries.entry(volume.identity().id).or_insert(volume.role() == Role::Primary);
            }
            write(store, &told.primaries)?;
        }
        Ok(hooks)
    }

    /// Whether there is a program at all.
    pub fn is_wanted(&self) -> bool {
        self.on_promote.is_some() || self.on_demote.is_some()
    }

    /// How many programs were run so far; for [`RoleHooks::look`].
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Runs the programs for what has changed since they were told; gives what all said that were run behind the first
    /// `since`. Whoever changes a role takes [`RoleHooks::count`] before: the server's own look may come first.
    pub fn look(&self, store: &Store, since: u64) -> Vec<HookRun> {
        if !self.is_wanted() {
            return Vec::new();
        }
        let mut told = self.told.lock().expect("no panics under this lock");
        let (mut promoted, mut demoted) = (Vec::new(), Vec::new());
        let mut now = told.primaries.clone();
        for volume in store.volumes() {
            let is_primary = volume.role() == Role::Primary;
            match now.insert(volume.identity().id, is_primary) {
                Some(false) if is_primary => promoted.push(volume.name().to_owned()),
                Some(true) if !is_primary => demoted.push(volume.name().to_owned()),
                _ => {}
            }
        }
        if now != told.primaries {
            let changes = [("demote", &self.on_demote, demoted), ("promote", &self.on_promote, promoted)];
            for (action, program, volumes) in changes {
                if let (Some(program), false) = (program, volumes.is_empty()) {
                    let run = run(program, action, volumes, store);
                    told.runs.push_back(run);
                    self.count.fetch_add(1, Ordering::AcqRel);
                }
            }
            if let Err(error) = write(store, &now) {
                tracing::error!("{error}");
            }
            told.primaries = now;
            while told.runs.len() > RUNS_KEPT {
                told.runs.pop_front();
            }
        }
        let wanted = usize::try_from(self.count().saturating_sub(since)).unwrap_or(usize::MAX);
        let skipped = told.runs.len().saturating_sub(wanted);
        told.runs.iter().skip(skipped).cloned().collect()
    }
}

fn run(program: &std::path::Path, action: &str, volumes: Vec<String>, store: &Store) -> HookRun {
    let epoch = |name: &String| store.volume(name).ok().map(|volume| volume.epochs().newest().number.0);
    let environment = [
        ("CDP_STORE", store.path().as_os_str().to_owned()),
        ("CDP_VOLUMES", volumes.join(" ").into()),
        ("CDP_EPOCH", volumes.iter().filter_map(epoch).max().unwrap_or_default().to_string().into()),
    ];
    let limit = Limit { time: HOOK_TIME, hint: "it should start what takes long, and end" };
    let outcome = run_program(program, action, &environment, &limit, None);
    let names = volumes.join(", ");
    match &outcome {
        Ok(output) => tracing::info!("{action} hook for {names}: {}", output.trim()),
        Err(error) => tracing::error!("{action} hook for {names}: {error}"),
    }
    let (output, error) = match outcome {
        Ok(output) => (output, None),
        Err(error) => (String::new(), Some(error.to_string())),
    };
    HookRun { program: program.to_owned(), action: action.to_owned(), volumes, output, error }
}

fn read(store: &Store) -> Result<BTreeMap<VolumeId, bool>> {
    let path = store.path().join(FILE);
    let bytes = match read_file(&**store.files(), &path, MANIFEST_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        other => other.at(|| format!("reading {}", path.display()))?,
    };
    // One that cannot be read is as one that is missing: what there is now is taken for known.
    let manifest = Manifest::decode(&bytes).filter(|m| m.kind == KIND && m.version == VERSION);
    let values = manifest.map(|manifest| manifest.values).unwrap_or_default();
    let entry = |(key, value): (&String, &String)| {
        Some((VolumeId(u128::from_str_radix(key.strip_prefix("id.")?, 16).ok()?), value == "primary"))
    };
    Ok(values.iter().filter_map(entry).collect())
}

fn write(store: &Store, told: &BTreeMap<VolumeId, bool>) -> Result<()> {
    let mut manifest = Manifest::new(KIND, VERSION);
    for (id, is_primary) in told {
        manifest.set(&format!("id.{id}"), if *is_primary { "primary" } else { "other" });
    }
    let path = store.path().join(FILE);
    replace_file(&**store.files(), &path, &manifest.encode()).at(|| format!("writing {}", path.display()))
}
