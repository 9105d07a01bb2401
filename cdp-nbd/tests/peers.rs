//! Clients and servers that others wrote: the `nbd` crate, which still speaks the protocol's oldest form, and the
//! stock programs.

#![allow(missing_docs)]

mod support;

use std::io::{BufReader, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cdp_nbd::{Options, Server};
use support::client::Client;
use support::{MemoryDevice, MemoryExports};

const SIZE: u64 = 64 << 20;

struct Setup {
    disk: Arc<MemoryDevice>,
    server: Server,
    path: PathBuf,
    directory: tempfile::TempDir,
}

fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let disk = Arc::new(MemoryDevice::new(SIZE));
    let past = Arc::new(MemoryDevice::read_only(SIZE));
    let exports = MemoryExports::new(vec![("disk", Arc::clone(&disk)), ("past", past)]);
    let server = Server::start(Arc::new(exports), Options::default());
    server.listen_unix(&path).unwrap();
    Setup { disk, server, path, directory }
}

impl Setup {
    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path.display())
    }

    /// A sparse image with data in three places.
    fn image(&self) -> PathBuf {
        let path = self.directory.path().join("image");
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_len(SIZE).unwrap();
        for (offset, len) in [(0, 100_000), (20 << 20, 5 << 20), (SIZE - 4096, 4096)] {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(&(0..len).map(|i| (i % 251) as u8 + 1).collect::<Vec<_>>()).unwrap();
        }
        path
    }
}

/// The program, or a loud excuse; with `CI=true` there is none.
fn stock(program: &str) -> Option<Command> {
    if Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Some(Command::new(program));
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{program} is needed in CI");
    eprintln!("SKIPPED: {program} is not installed, so nothing was tested with it");
    None
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

/// Buffered both ways, as the crate needs it.
struct Buffered(BufReader<UnixStream>, BufWriter<UnixStream>);

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1.flush()?;
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.1.flush()
    }
}

#[test]
fn the_nbd_crate_is_served() {
    // It enters by EXPORT_NAME, takes the 124 zero bytes and reads simple replies.
    let setup = setup();
    let stream = UnixStream::connect(&setup.path).unwrap();
    let mut stream = Buffered(BufReader::new(stream.try_clone().unwrap()), BufWriter::new(stream));
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!((export.size, export.readonly), (SIZE, false));
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    client.seek(SeekFrom::Start(5000)).unwrap();
    client.write_all(b"from an old friend").unwrap();
    client.seek(SeekFrom::Start(4998)).unwrap();
    let mut bytes = [0; 20];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0from an old friend");
    assert_eq!(setup.disk.contents(5000, 18), b"from an old friend");
}

#[test]
fn our_test_client_is_understood_by_the_nbd_crate() {
    // The client that judges our server in the other tests is judged by another server here.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut stream = theirs;
        let mut disk = Cursor::new(vec![0; 1 << 20]);
        nbd::server::handshake(&mut stream, |name| {
            assert_eq!(name, "disk");
            Ok(nbd::Export { size: 1 << 20, send_flush: true, ..nbd::Export::<()>::default() })
        })
        .unwrap();
        nbd::server::transmission(&mut stream, &mut disk).unwrap();
        disk.into_inner()
    });
    let mut client = Client::over(ours);
    client.send_option(cdp_nbd::proto::option::EXPORT_NAME, b"disk");
    assert_eq!(client.take(10)[..8], (1u64 << 20).to_be_bytes());
    assert_eq!(client.write(4096, b"over there"), 0);
    assert_eq!(client.read(4096, 10).unwrap(), b"over there");
    client.disconnect();
    assert_eq!(&thread.join().unwrap()[4096..4106], b"over there");
}

#[test]
fn nbdinfo_and_nbdcopy() {
    let setup = setup();
    let image = setup.image();
    if let Some(mut nbdinfo) = stock("nbdinfo") {
        let text = run(nbdinfo.arg(setup.uri("disk")));
        assert!(text.contains("export-size: 67108864") && text.contains("can_multi_conn: true"), "{text}");
        let text = run(Command::new("nbdinfo").arg("--list").arg(setup.uri("")));
        assert!(text.contains("export=\"disk\"") && text.contains("export=\"past\""), "{text}");
        let text = run(Command::new("nbdinfo").arg("--map").arg(setup.uri("past")));
        assert!(text.contains("67108864    3  hole,zero"), "{text}");
        assert!(!Command::new("nbdinfo").arg(setup.uri("nowhere")).output().unwrap().status.success());
    }
    if let Some(mut nbdcopy) = stock("nbdcopy") {
        run(nbdcopy.arg(&image).arg(setup.uri("disk")));
        let back = setup.directory.path().join("back");
        run(Command::new("nbdcopy").arg(setup.uri("disk")).arg(&back));
        assert!(same(&image, &back));
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&back).unwrap());
        assert!(blocks * 512 < SIZE / 2, "the copy is sparse");
        assert!(setup.server.latencies().write.count > 0);
    }
}

#[test]
fn qemu_reads_writes_and_compares() {
    let setup = setup();
    let image = setup.image();
    if let Some(mut convert) = stock("qemu-img") {
        run(convert.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&image).arg(setup.uri("disk")));
        let text = run(Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", "raw"])
            .arg(&image)
            .arg(setup.uri("disk")));
        assert!(text.contains("identical"), "{text}");
        let text =
            run(Command::new("qemu-img").args(["map", "--output=json", "-f", "raw"]).arg(setup.uri("disk")));
        assert!(text.contains("\"zero\": true"), "{text}");
    }
    if let Some(mut qemu_io) = stock("qemu-io") {
        let commands = [
            "write -P 1 0 4k",
            "write -f -P 2 1000 3000",
            "aio_write -P 3 1M 2M",
            "aio_flush",
            "flush",
            "write -z 1M 64k",
            "write -z -u 2M 64k",
            "discard 3M 1M",
            "read -P 1 0 1000",
            "read -P 2 1000 3000",
            "read -P 1 4000 96",
            "read -P 0 1M 64k",
            "read -P 3 1114112 64k",
            "read -P 0 2M 64k",
        ];
        qemu_io.args(["-f", "raw"]);
        for command in commands {
            qemu_io.args(["-c", command]);
        }
        let text = run(qemu_io.arg(setup.uri("disk")));
        assert!(!text.contains("fail"), "{text}");
        let mut read_only = Command::new("qemu-io");
        read_only.args(["-r", "-f", "raw", "-c", "read -P 0 0 1M"]).arg(setup.uri("past"));
        assert!(!run(&mut read_only).contains("fail"));
    }
}

#[test]
fn nbdsh_tries_every_command() {
    let setup = setup();
    let script = r#"
import nbd, errno
assert h.get_size() == 67108864 and h.can_df() and h.can_fua() and h.can_fast_zero() and h.can_cache()
assert h.can_meta_context("base:allocation") and h.get_block_size(nbd.SIZE_MINIMUM) == 1
h.pwrite(b"x" * 70000, 100)
assert h.pread(70000, 100) == b"x" * 70000
assert h.pread_structured(70000, 100, lambda *a: 0, nbd.CMD_FLAG_DF) == b"x" * 70000
h.pwrite(b"fua", 0, nbd.CMD_FLAG_FUA)
h.flush(); h.cache(4096, 0)
h.zero(8192, 4096, nbd.CMD_FLAG_NO_HOLE); h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO); h.trim(4096, 16384)
seen = []
h.block_status(65536, 0, lambda c, o, e, err: seen.extend(e) or 0)
assert sum(seen[::2]) == 65536 and 2 in seen[1::2] and 3 in seen[1::2] and 0 in seen[1::2], seen
h.set_strict_mode(0)
for call, wanted in [
    (lambda: h.pwrite(b"x", 67108864), errno.ENOSPC), (lambda: h.zero(2, 67108863), errno.ENOSPC),
    (lambda: h.pread(1, 67108864), errno.EINVAL), (lambda: h.trim(2, 67108863), errno.EINVAL),
    (lambda: h.pread(512, 0, 1 << 10), errno.EINVAL),
]:
    try: call()
    except nbd.Error as e: assert e.errnum == wanted, (e.errnum, wanted)
    else: raise AssertionError("no error")
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 512), i * 512) for i in range(64)]
while h.aio_in_flight() > 0: h.poll(-1)
for c in cookies: assert h.aio_command_completed(c)
assert h.pread(512, 63 * 512) == bytes([63]) * 512
"#;
    // The system's own Python is the one that has the binding.
    for python in ["/usr/bin/python3", "python3"] {
        let mut nbdsh = Command::new(python);
        if nbdsh.args(["-c", "import nbd"]).output().is_ok_and(|output| output.status.success()) {
            run(Command::new(python).args(["-m", "nbdsh", "-u", &setup.uri("disk"), "-c", script]));
            return;
        }
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "python3-libnbd is needed in CI");
    eprintln!("SKIPPED: python3-libnbd is not installed");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let setup = setup();
    let Some(mut fio) = stock("fio") else { return };
    let text = run(fio
        .args(["--name=t", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m"])
        .args(["--verify=crc32c", "--fsync=64"])
        .arg(format!("--uri={}", setup.uri("disk"))));
    assert!(text.contains("err= 0"), "{text}");
}

/// The example server, which `cargo test` builds beside the tests.
fn memory_server() -> Option<PathBuf> {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/memory");
    if program.exists() {
        return Some(program);
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "the example is built in CI");
    eprintln!("SKIPPED: {} is not built; run all tests of the crate", program.display());
    None
}

#[test]
fn a_client_can_start_its_own_server() {
    // `nbdcopy -- [ SERVER ] FILE` passes a listening socket as systemd does; others use the standard streams.
    let Some(program) = memory_server() else { return };
    if let Some(mut nbdinfo) = stock("nbdinfo") {
        let text = run(nbdinfo.args(["--size", "--", "["]).arg(&program).args(["--stdio", "64", "]"]));
        assert_eq!(text.trim(), "67108864");
    }
    if let Some(mut nbdcopy) = stock("nbdcopy") {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("copy");
        run(nbdcopy.args(["--", "["]).arg(&program).args(["--stdio", "64", "]"]).arg(&copy));
        assert_eq!(std::fs::metadata(&copy).unwrap().len(), SIZE);
    }

    let stdio = std::process::Stdio::piped;
    let mut server =
        Command::new(&program).args(["--stdio", "1"]).stdin(stdio()).stdout(stdio()).spawn().unwrap();
    let (mut input, mut output) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
    let mut greeting = [0; 18];
    output.read_exact(&mut greeting).unwrap();
    input.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    let mut entered = [0; 10];
    output.read_exact(&mut entered).unwrap();
    assert_eq!(entered[..8], (1u64 << 20).to_be_bytes());
    drop(input);
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty() && server.wait().unwrap().success(), "it ends with its client");

    // A socket as both streams, as inetd does it.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let both = || std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap()));
    let mut server =
        Command::new(&program).args(["--stdio", "1"]).stdin(both()).stdout(both()).spawn().unwrap();
    drop(theirs);
    let mut client = Client::over(ours);
    assert_eq!(client.go("disk").unwrap().0, 1 << 20);
    assert_eq!(client.write(0, b"through inetd"), 0);
    client.disconnect();
    assert!(server.wait().unwrap().success());
}
