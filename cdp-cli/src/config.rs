//! What a user sets once: the configuration file, under the environment, under the flags.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cdp_core::error::{Error, IoContext, Kind, Result};
use cdp_core::limits::INDEX_BUDGET_BYTES;
use serde::Deserialize;

use crate::bisect::probe::Form;
use crate::serve::prove::ProvePlan;
use crate::serve::votes::Automatic;
use crate::units;

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What a throw-away clone may hold where nothing else is said, in bytes.
pub const CLONE_CAP_BYTES: u64 = 1 << 30;

/// A replica promotes itself only where no more than so much time would be lost, where nothing else is said, in nanoseconds.
const LOSS_NS_MAX: u64 = 60 * 1_000_000_000;

/// The least memory for the indexes of a store, in bytes.
const INDEX_MEMORY_BYTES_MIN: u64 = 16 << 20;

/// The keys of the file; anything else in it is refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKeys {
    store: Option<PathBuf>,
    socket: Option<PathBuf>,
    listen: Option<SocketAddr>,
    insecure_plaintext: Option<bool>,
    io_uring: Option<bool>,
    on_alarm: Option<PathBuf>,
    on_promote: Option<PathBuf>,
    on_demote: Option<PathBuf>,
    clone_cap: Option<String>,
    index_memory: Option<String>,
    replica_listen: Option<SocketAddr>,
    pki: Option<PathBuf>,
    lag_alarm: Option<String>,
    #[serde(default)]
    automatic: BTreeMap<String, AutomaticKeys>,
    #[serde(default)]
    volume: BTreeMap<String, VolumeKeys>,
}

/// A volume or a group that fails over by itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AutomaticKeys {
    peer: String,
    witness: String,
    loss_max: Option<String>,
}

/// The keys of a volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeKeys {
    prove: Option<ProveKeys>,
}

/// What is proved on a schedule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProveKeys {
    every: String,
    program: Vec<String>,
    point: Option<String>,
    form: Option<Form>,
    partition: Option<u32>,
}

/// The settings that hold, after file, environment and flags.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the store.
    pub store: PathBuf,
    /// Whether somebody chose it.
    pub store_is_default: bool,
    /// Unix socket for NBD clients; without it one in the store.
    pub socket: Option<PathBuf>,
    /// TCP address for NBD clients; without it the usual port, or any other, on loopback.
    pub listen: Option<SocketAddr>,
    /// Listening beyond loopback is allowed.
    pub insecure_plaintext: bool,
    /// Use io_uring where it is allowed.
    pub io_uring: bool,
    /// Run when the verdict turns bad.
    pub on_alarm: Option<PathBuf>,
    /// Run when volumes become primaries.
    pub on_promote: Option<PathBuf>,
    /// Run when volumes are primaries no more.
    pub on_demote: Option<PathBuf>,
    /// What a throw-away clone may hold, in bytes.
    pub clone_cap_bytes: u64,
    /// What is proved on a schedule.
    pub prove: Vec<ProvePlan>,
    /// Memory for the indexes of the store, in bytes.
    pub index_memory_bytes: u64,
    /// Where replicas of other sites' volumes are taken; without it, nowhere.
    pub replica_listen: Option<SocketAddr>,
    /// Certificates for replication; without it, `pki` in the store.
    pub pki: Option<PathBuf>,
    /// A replica that is so far behind is a reason to act, in nanoseconds.
    pub lag_alarm_ns: Option<u64>,
    /// What fails over by itself.
    pub automatic: Vec<Automatic>,
}

/// What was said on the command line or in the environment; that wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// See [`Config::store`].
    pub store: Option<PathBuf>,
    /// The configuration file; without it the one in the usual place, if there is one.
    pub config: Option<PathBuf>,
    /// No io_uring.
    pub no_io_uring: bool,
}

impl Config {
    /// Reads the file and lays the overrides over it. What cannot be understood is [`Kind::Invalid`].
    pub fn load(overrides: &Overrides) -> Result<Config> {
        let keys = match &overrides.config {
            Some(path) => read(path)?,
            None => match default_file() {
                Some(path) if path.exists() => read(&path)?,
                _ => FileKeys::default(),
            },
        };
        let chosen = overrides.store.clone().or(keys.store);
        let store_is_default = chosen.is_none();
        let store = match chosen {
            Some(store) => store,
            None => default_store()?,
        };
        let clone_cap_bytes = match keys.clone_cap {
            Some(text) => units::parse_size(&text)?,
            None => CLONE_CAP_BYTES,
        };
        let prove = keys
            .volume
            .iter()
            .filter_map(|(volume, keys)| Some(plan(volume, keys.prove.as_ref()?)))
            .collect::<Result<_>>()?;
        let index_memory_bytes = match keys.index_memory {
            Some(text) => units::parse_size(&text)?,
            None => INDEX_BUDGET_BYTES as u64,
        };
        if index_memory_bytes < INDEX_MEMORY_BYTES_MIN {
            let context = format!("index_memory of {index_memory_bytes} bytes; at least 16 MiB are needed");
            return Err(Error::new(Kind::Invalid, context));
        }
        let automatic = keys.automatic.iter().map(|(target, keys)| automatic(target, keys));
        let automatic = automatic.collect::<Result<_>>()?;
        Ok(Config {
            automatic,
            prove,
            store,
            store_is_default,
            socket: keys.socket,
            listen: keys.listen,
            insecure_plaintext: keys.insecure_plaintext.unwrap_or(false),
            io_uring: keys.io_uring.unwrap_or(true) && !overrides.no_io_uring,
            on_alarm: keys.on_alarm,
            on_promote: keys.on_promote,
            on_demote: keys.on_demote,
            clone_cap_bytes,
            index_memory_bytes,
            replica_listen: keys.replica_listen,
            pki: keys.pki,
            lag_alarm_ns: keys.lag_alarm.as_deref().map(units::parse_duration).transpose()?,
        })
    }
}

fn automatic(target: &str, keys: &AutomaticKeys) -> Result<Automatic> {
    let is_address = |text: &str| {
        text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if let Some(wrong) = [&keys.peer, &keys.witness].into_iter().find(|address| !is_address(address)) {
        return Err(Error::new(Kind::Invalid, format!("[automatic.{target}]: {wrong:?} is not HOST:PORT")));
    }
    if keys.peer == keys.witness {
        let context =
            format!("[automatic.{target}]: the witness has to be a third machine, not the other site");
        return Err(Error::new(Kind::Invalid, context));
    }
    Ok(Automatic {
        target: target.to_owned(),
        peer: keys.peer.clone(),
        witness: keys.witness.clone(),
        loss_max_ns: keys.loss_max.as_deref().map_or(Ok(LOSS_NS_MAX), units::parse_duration)?,
    })
}

fn plan(volume: &str, keys: &ProveKeys) -> Result<ProvePlan> {
    let wrong = |why: &str| Error::new(Kind::Invalid, format!("[volume.{volume}.prove]: {why}"));
    let every_ns = units::parse_duration(&keys.every)?;
    if every_ns == 0 {
        return Err(wrong("`every` is no time at all"));
    }
    if keys.program.is_empty() {
        return Err(wrong("`program` is empty"));
    }
    Ok(ProvePlan {
        volume: volume.to_owned(),
        every_ns,
        point: keys.point.clone().unwrap_or_else(|| "latest".to_owned()),
        form: keys.form.unwrap_or_default(),
        partition: keys.partition,
        program: keys.program.clone(),
    })
}

fn read(path: &Path) -> Result<FileKeys> {
    let place = || format!("reading the configuration {}", path.display());
    let bytes = std::fs::metadata(path).at(place)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::new(Kind::Invalid, format!("{} is no configuration: too long", path.display())));
    }
    let text = std::fs::read_to_string(path).at(place)?;
    toml::from_str(&text).map_err(|error| {
        Error::new(Kind::Invalid, format!("{}: {}", path.display(), error.to_string().trim_end()))
            .hint("keys: store, socket, listen, insecure_plaintext, io_uring, on_alarm, on_promote, on_demote, clone_cap, index_memory, replica_listen, pki, lag_alarm, [automatic.NAME], [volume.NAME.prove]")
    })
}

/// An environment variable that names a directory, as the XDG rules want it: absolute, or it does not count.
fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn default_file() -> Option<PathBuf> {
    let base = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")))?;
    Some(base.join("cdp").join("config.toml"))
}

fn default_store() -> Result<PathBuf> {
    let base = directory("XDG_DATA_HOME").or_else(|| Some(directory("HOME")?.join(".local/share")));
    base.map(|base| base.join("cdp")).ok_or_else(|| {
        Error::new(Kind::Invalid, "there is no HOME, so no usual place for the store")
            .hint("say where it is: --store DIR, or CDP_STORE")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(&Overrides { config: Some(file), ..Overrides::default() })
    }

    // A misspelt `on_alarm` that is silently ignored is noticed on the day of the alarm.
    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = load("store = \"/s\"\non_alrm = \"/bin/true\"\n").unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("on_alrm"), "{error}");
    }

    // Whoever copies the example of the reference page must not be refused, and no key may be missing there.
    #[test]
    fn the_reference_page_knows_every_key() {
        let page = include_str!("../../docs/configuration.md");
        let example = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let config = load(example).unwrap();
        assert_eq!((config.automatic.len(), config.prove.len()), (1, 1));
        let error = load("no_such_key = 1\n").unwrap_err();
        let keys = error.hint_text().unwrap().strip_prefix("keys: ").unwrap();
        for key in keys.split(", ").filter(|key| !key.starts_with('[')) {
            assert!(page.contains(&format!("| `{key}` |")), "{key} is missing in docs/configuration.md");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "store = \"/from-file\"\nclone_cap = \"2G\"\nindex_memory = \"64M\"\n")
            .unwrap();
        let overrides = Overrides { config: Some(file), store: Some("/from-flag".into()), no_io_uring: true };
        let config = Config::load(&overrides).unwrap();
        assert_eq!(config.store, Path::new("/from-flag"));
        assert_eq!((config.clone_cap_bytes, config.io_uring), (2 << 30, false));
        assert_eq!(config.index_memory_bytes, 64 << 20);
    }
}
