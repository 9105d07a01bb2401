//! Images in the formats of virtual machines, by way of QEMU's own tools: `qemu-nbd` reads them for us, and
//! `qemu-img` writes them from an export of ours.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cdp_core::error::{Error, IoContext, Kind, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::hooks::Interrupts;
use crate::host::command;
use crate::host::relay::Reader;

/// How long `qemu-nbd` may take until it serves.
const START_TIME: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// Writing an image may take so long: days.
const CONVERT_TIME: Duration = Duration::from_secs(7 * 86_400);

/// A format of images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// What QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vhdx => "vhdx",
        }
    }

    /// By the end of a file's name; raw if that says nothing.
    pub fn of_name(path: &Path) -> Format {
        let end = path.extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
        [Format::Qcow2, Format::Vmdk, Format::Vhdx]
            .into_iter()
            .find(|format| format.name() == end)
            .unwrap_or(Format::Raw)
    }

    /// By the first bytes of a file. A block device is always raw: what a guest wrote there must not be taken for
    /// an image that refers to other files.
    pub fn of_content(path: &Path) -> Result<Format> {
        if super::usage::is_block_device(path) {
            return Ok(Format::Raw);
        }
        let mut head = [0; 8];
        let mut file = std::fs::File::open(path).at(|| format!("opening {}", path.display()))?;
        let count = file.read(&mut head).at(|| format!("reading {}", path.display()))?;
        let magics: [(&[u8], Format); 3] =
            [(b"QFI\xfb", Format::Qcow2), (b"KDMV", Format::Vmdk), (b"vhdxfile", Format::Vhdx)];
        let found = magics.into_iter().find(|(magic, _)| head[..count].starts_with(magic));
        Ok(found.map_or(Format::Raw, |(_, format)| format))
    }
}

/// An image that is being read; ends with its `qemu-nbd`.
pub struct Opened {
    reader: Reader,
    child: Child,
    dir: PathBuf,
}

impl Opened {
    /// Opens it for reading. An image that refers to other files is [`Kind::Refused`]: whoever made it would choose
    /// which files of this machine come into the volume.
    pub fn open(path: &Path, format: Format) -> Result<Opened> {
        refuse_references(path, format)?;
        let dir = crate::reach::private_dir()?;
        let socket = dir.join("image.sock");
        let started = command::program("qemu-nbd").and_then(|mut command| {
            command.args(["--read-only", "--format", format.name(), "--socket"]).arg(&socket).arg(path);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().at(|| "starting qemu-nbd".to_owned())
        });
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                let _ = std::fs::remove_dir(&dir);
                return Err(error);
            }
        };
        let connected = connect(&mut child, &socket, path);
        match connected {
            Ok(reader) => Ok(Opened { reader, child, dir }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = std::fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    /// Fills the buffer from this offset on.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.reader.read_at(offset, buffer)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn connect(child: &mut Child, socket: &Path, path: &Path) -> Result<Reader> {
    let place = || format!("reading {} with qemu-nbd", path.display());
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let until = Instant::now() + START_TIME;
    loop {
        match Reader::connect(&uri) {
            Ok(reader) => return Ok(reader),
            Err(error) if Instant::now() > until => return Err(Error::io(error, place())),
            Err(_) => {}
        }
        if child.try_wait().at(place)?.is_some() {
            let mut said = String::new();
            if let Some(pipe) = child.stderr.take() {
                let _ = pipe.take(4096).read_to_string(&mut said);
            }
            return Err(Error::new(Kind::Invalid, format!("{}: {}", place(), said.trim())));
        }
        std::thread::sleep(POLL);
    }
}

fn refuse_references(path: &Path, format: Format) -> Result<()> {
    let arguments: [OsString; 5] =
        ["info".into(), "--output=json".into(), "-f".into(), format.name().into(), path.into()];
    let text = command::run("qemu-img", arguments)?;
    let info: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
        Error::new(Kind::Invalid, format!("what qemu-img says of {} makes no sense: {error}", path.display()))
    })?;
    let data = &info["format-specific"]["data"];
    let other = [&info["backing-filename"], &data["data-file"]].into_iter().find_map(|name| name.as_str());
    let Some(other) = other else { return Ok(()) };
    let context = format!("{} refers to another file, {other}", path.display());
    Err(Error::new(Kind::Refused, context)
        .hint(format!("if that is as it should be: qemu-img convert -O raw {} whole.img", path.display())))
}

/// Writes the export of a URI to an image, reads that back and compares, and gives it its name. [`Kind::Closed`], and nothing
/// left behind, when one of `interrupts` came.
pub fn write(uri: &str, path: &Path, format: Format, force: bool, interrupts: &Interrupts) -> Result<()> {
    // The file that is replaced, so that nobody begins to use it meanwhile.
    let mut _replaced = None;
    if path.exists() {
        super::usage::refuse_if_used(path)?;
        if super::usage::is_block_device(path) {
            let context = format!("{} is a block device, which takes raw bytes only", path.display());
            return Err(Error::new(Kind::Invalid, context).hint("--format raw"));
        }
        if !force {
            let context = format!("{} exists", path.display());
            return Err(Error::new(Kind::Exists, context).hint("--force replaces it"));
        }
        _replaced = Some(super::usage::lock_alone(path)?);
    }
    let draft = super::target::draft_of(path);
    let written = convert(uri, &draft, format, interrupts).and_then(|()| {
        let place = || format!("naming {}", path.display());
        std::fs::File::open(&draft).and_then(|file| file.sync_all()).at(place)?;
        std::fs::rename(&draft, path).at(place)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

fn convert(uri: &str, draft: &Path, format: Format, interrupts: &Interrupts) -> Result<()> {
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut arguments = words(&["convert", "-f", "raw", "-O", format.name(), uri]);
    arguments.push(draft.into());
    command::run_until("qemu-img", arguments, CONVERT_TIME, interrupts)?;
    let mut arguments = words(&["compare", "-q", "-f", "raw", "-F", format.name(), uri]);
    arguments.push(draft.into());
    command::run_until("qemu-img", arguments, CONVERT_TIME, interrupts).map(drop).map_err(|error| {
        if interrupts.came() {
            return error;
        }
        Error::new(Kind::Damaged, format!("the image is not what was written: {error}"))
            .hint("the target is bad, or somebody else writes to it; the volume is not touched")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // An old image taken for raw bytes makes a volume that no machine boots from.
    #[test]
    fn formats_are_told_by_content_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        for (content, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], Format::Qcow2),
            (b"KDMV\x01\0\0\0", Format::Vmdk),
            (b"vhdxfile", Format::Vhdx),
            (b"QFI", Format::Raw),
            (b"", Format::Raw),
        ] {
            std::fs::write(&file, content).unwrap();
            assert_eq!(Format::of_content(&file).unwrap(), format);
        }
        assert_eq!(Format::of_name(Path::new("a.QCOW2")), Format::Qcow2);
        assert_eq!(Format::of_name(Path::new("qcow2")), Format::Raw);
        assert_eq!(Format::of_name(Path::new("a.img")), Format::Raw);
    }
}
