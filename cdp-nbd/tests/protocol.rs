//! The protocol, sentence by sentence, over a real socket.

#![allow(missing_docs)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cdp_nbd::proto::{self, chunk, command, command_flag, errno, option, reply, transmission_flag};
use cdp_nbd::{Options, Server};
use support::client::{Client, info_data, meta_data};
use support::{MemoryDevice, MemoryExports};

const SIZE: u64 = 96 << 20;

struct Setup {
    disk: Arc<MemoryDevice>,
    past: Arc<MemoryDevice>,
    path: PathBuf,
    server: Server,
    _directory: tempfile::TempDir,
}

fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let disk = Arc::new(MemoryDevice::new(SIZE));
    let past = Arc::new(MemoryDevice::read_only(SIZE));
    let exports = MemoryExports::new(vec![("disk", Arc::clone(&disk)), ("disk@-5m", Arc::clone(&past))]);
    let server = Server::start(Arc::new(exports), Options::default());
    server.listen_unix(&path).unwrap();
    Setup { disk, past, path, server, _directory: directory }
}

fn all_forms(path: &std::path::Path) -> [Client; 3] {
    [Client::simple(path, "disk"), Client::structured(path, "disk"), Client::extended(path, "disk")]
}

#[test]
fn the_socket_is_its_owners() {
    // Whoever can connect can read and overwrite the disk.
    use std::os::unix::fs::PermissionsExt;
    let setup = setup();
    let mode = std::fs::metadata(&setup.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Server::start(Arc::new(MemoryExports::new(vec![])), Options::default());
    let refused = second.listen_unix(&setup.path).unwrap_err();
    assert_eq!(refused.kind(), cdp_core::error::Kind::Busy, "a socket that answers is not taken over");
    Client::simple(&setup.path, "disk").disconnect();
    drop(setup.server);
    assert!(!setup.path.exists(), "the socket file goes with its server");
    drop(std::os::unix::net::UnixListener::bind(&setup.path).unwrap());
    second.listen_unix(&setup.path).expect("a stale socket is replaced");
    let other = setup.path.with_extension("file");
    std::fs::write(&other, "precious").unwrap();
    assert_eq!(second.listen_unix(&other).unwrap_err().kind(), cdp_core::error::Kind::Exists);
    assert_eq!(std::fs::read(&other).unwrap(), b"precious");
}

#[test]
fn every_option_gets_its_reply() {
    let setup = setup();
    let mut client = Client::connect(&setup.path);
    let list = client.option(option::LIST, &[]);
    let names: Vec<_> = list
        .iter()
        .filter(|(kind, _)| *kind == reply::SERVER)
        .map(|(_, data)| String::from_utf8_lossy(&data[4..]).into_owned())
        .collect();
    assert_eq!(names, ["diskin memory", "disk@-5min memory"]);
    let only = |replies: Vec<(u32, Vec<u8>)>| {
        assert_eq!(replies.len(), 1);
        replies[0].0
    };
    assert_eq!(only(client.option(option::LIST, b"x")), reply::ERR_INVALID);
    assert_eq!(only(client.option(option::STARTTLS, &[])), reply::ERR_UNSUP);
    assert_eq!(only(client.option(4, &[])), reply::ERR_UNSUP);
    assert_eq!(only(client.option(0xdead_beef, &[7; 5000])), reply::ERR_UNSUP);
    assert_eq!(only(client.option(0xdead_beef, &vec![7; 1 << 20])), reply::ERR_UNSUP);
    assert_eq!(only(client.option(option::LIST, &vec![7; 1 << 20])), reply::ERR_TOO_BIG);
    assert_eq!(only(client.option(option::GO, &info_data("nowhere", &[]))), reply::ERR_UNKNOWN);
    assert_eq!(only(client.option(option::INFO, &info_data("nowhere", &[]))), reply::ERR_UNKNOWN);
    assert_eq!(only(client.option(option::GO, &info_data("a\0b", &[]))), reply::ERR_INVALID);
    assert_eq!(only(client.option(option::GO, &info_data(&"x".repeat(4097), &[]))), reply::ERR_INVALID);
    assert_eq!(only(client.option(option::GO, &[])), reply::ERR_INVALID);
    assert_eq!(only(client.option(option::GO, &[0, 0, 0, 4, b'd'])), reply::ERR_INVALID);
    assert_eq!(only(client.set_context("disk")), reply::ERR_INVALID, "needs structured replies");
    assert_eq!(only(client.option(option::STRUCTURED_REPLY, b"x")), reply::ERR_INVALID);
    assert_eq!(only(client.option(option::STRUCTURED_REPLY, &[])), reply::ACK);
    assert_eq!(only(client.option(option::STRUCTURED_REPLY, &[])), reply::ERR_INVALID);
    let info = client.option(option::INFO, &info_data("disk@-5m", &[1, 2, 3, 99]));
    let kinds: Vec<_> = info.iter().map(|(kind, data)| (*kind, data.get(1).copied())).collect();
    let expected = [Some(0), Some(1), Some(2), Some(3)].map(|number| (reply::INFO, number));
    assert_eq!(kinds[..4], expected);
    assert_eq!(kinds[4], (reply::ACK, None));
    assert_eq!(&info[1].1[2..], b"disk@-5m");
    assert_eq!(info[3].1[2..], [0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    let go = client.go("disk").unwrap();
    assert_eq!(go.0, SIZE);
}

#[test]
fn metadata_contexts_follow_the_spec() {
    let setup = setup();
    let mut client = Client::connect(&setup.path);
    client.option(option::STRUCTURED_REPLY, &[]);
    let count = |client: &mut Client, option, queries: &[&str]| {
        let replies = client.option(option, &meta_data("disk", queries));
        assert_eq!(replies.last().unwrap().0, reply::ACK);
        replies.iter().filter(|(kind, _)| *kind == reply::META_CONTEXT).count()
    };
    let (list, set) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    assert_eq!(count(&mut client, list, &[]), 1);
    assert_eq!(count(&mut client, list, &["base:"]), 1);
    assert_eq!(count(&mut client, list, &["base:allocation", "base:", "base:allocation"]), 1);
    assert_eq!(count(&mut client, list, &["base:nothing"]), 0);
    assert_eq!(count(&mut client, list, &["qemu:dirty-bitmap:x", "nonsense", ""]), 0);
    assert_eq!(count(&mut client, set, &[]), 0);
    assert_eq!(count(&mut client, set, &["base:"]), 0);
    assert_eq!(count(&mut client, set, &["base:allocation", "x-y:z", "base:allocation"]), 1);
    let unknown = client.option(set, &meta_data("nowhere", &["base:allocation"]));
    assert_eq!(unknown.last().unwrap().0, reply::ERR_UNKNOWN);
    let mut lying = meta_data("disk", &["base:allocation"]);
    let at = lying.len() - 16;
    lying[at] = 200;
    assert_eq!(client.option(set, &lying).last().unwrap().0, reply::ERR_INVALID);
    assert_eq!(client.option(list, &lying).last().unwrap().0, reply::ERR_INVALID);
    // A failed selection selects nothing.
    client.structured = true;
    client.go("disk").unwrap();
    assert_eq!(client.status(0, 0, 4096), Err(errno::EINVAL));

    // What was selected for one export does not hold for another.
    let mut client = Client::connect(&setup.path);
    client.option(option::STRUCTURED_REPLY, &[]);
    client.structured = true;
    client.set_context("disk@-5m");
    client.go("disk").unwrap();
    assert_eq!(client.status(0, 0, 4096), Err(errno::EINVAL));
    assert_eq!(client.write(0, b"still in step"), 0);
}

#[test]
fn flags_tell_what_an_export_can_do() {
    use transmission_flag as flag;
    let setup = setup();
    let flags = |prepare: &[u32], name: &str| {
        let mut client = Client::connect(&setup.path);
        for option in prepare {
            client.option(*option, &[]);
        }
        if !prepare.is_empty() {
            client.set_context(name);
        }
        client.go(name).unwrap().1
    };
    let both = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE | flag::CAN_MULTI_CONN;
    let writable = both | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    assert_eq!(flags(&[], "disk"), writable);
    assert_eq!(flags(&[], ""), writable, "the empty name is the default export");
    assert_eq!(flags(&[option::STRUCTURED_REPLY], "disk"), writable | flag::SEND_DF);
    assert_eq!(
        flags(&[option::EXTENDED_HEADERS], "disk"),
        writable | flag::SEND_DF | flag::BLOCK_STATUS_PAYLOAD
    );
    assert_eq!(flags(&[option::STRUCTURED_REPLY], "disk@-5m"), both | flag::READ_ONLY | flag::SEND_DF);
}

#[test]
fn old_clients_enter_by_export_name() {
    let setup = setup();
    for (flags, zeroes) in [(0u32, 124), (1, 124), (2, 0), (3, 0)] {
        let mut stream = std::os::unix::net::UnixStream::connect(&setup.path).unwrap();
        std::io::Write::write_all(&mut stream, &flags.to_be_bytes()).unwrap();
        let mut greeting = [0; 18];
        std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
        let mut client = raw(stream);
        client.send_option(option::EXPORT_NAME, b"disk");
        let answer = client.take(10 + zeroes);
        assert_eq!(answer[..8], SIZE.to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.write(4096, b"old"), 0);
        assert_eq!(client.read(4096, 3).unwrap(), b"old");
        client.disconnect();
    }
    // It cannot be told that something is wrong, except by hanging up.
    for name in [&b"nowhere"[..], b"a\0b", &[0xff], &[b'x'; 4097]] {
        let mut client = Client::connect(&setup.path);
        client.send_option(option::EXPORT_NAME, name);
        assert!(client.is_closed());
    }
    let mut client = Client::connect(&setup.path);
    client.option(option::EXTENDED_HEADERS, &[]);
    assert_eq!(client.option(option::STRUCTURED_REPLY, &[])[0].0, reply::ERR_EXT_HEADER_REQD);
    client.send_option(option::EXPORT_NAME, b"disk");
    assert!(client.is_closed(), "extended headers need GO");
}

/// A client whose handshake a test makes by hand.
fn raw(stream: std::os::unix::net::UnixStream) -> Client {
    // `over` reads a greeting; give it one from a pair and swap the stream.
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut theirs, b"NBDMAGICIHAVEOPT\0\x03").unwrap();
    let mut client = Client::over(ours);
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    client.stream = stream;
    client
}

#[test]
fn bytes_come_back_in_every_form_of_the_protocol() {
    let setup = setup();
    for mut client in all_forms(&setup.path) {
        for (offset, len) in
            [(0u64, 1usize), (511, 2), (4095, 4098), (1 << 20, 1 << 20), (3, 3 << 20), (8 << 20, 64 << 20)]
        {
            let data: Vec<u8> = (0..len).map(|i| (i * 7 + offset as usize) as u8).collect();
            assert_eq!(client.write(offset, &data), 0, "{len} bytes at {offset}");
            assert_eq!(setup.disk.contents(offset, len), data);
            assert!(client.read(offset, len).unwrap() == data, "{len} bytes at {offset}");
        }
        assert_eq!(client.call(0, command::FLUSH, 0, 0, &[]), 0);
        assert_eq!(client.call(0, command::CACHE, 0, SIZE, &[]), 0);
        assert_eq!(client.call(0, command::TRIM, 0, SIZE, &[]), 0);
        assert!(setup.disk.contents(0, SIZE as usize).iter().all(|byte| *byte == 0));
        client.disconnect();
    }
}

#[test]
fn errors_are_exact_and_the_connection_stays_in_step() {
    // A client that gets a wrong number, or loses step, loses the disk for a request that just was too long.
    let setup = setup();
    for mut client in all_forms(&setup.path) {
        let write = if client.extended { command_flag::PAYLOAD_LEN } else { 0 };
        let page = vec![1; 4096];
        assert_eq!(client.call(write, command::WRITE, SIZE - 1, 4096, &page), errno::ENOSPC);
        assert_eq!(client.call(write, command::WRITE, u64::MAX - 5, 4096, &page), errno::ENOSPC);
        assert_eq!(client.call(0, command::WRITE_ZEROES, SIZE - 1, 4096, &[]), errno::ENOSPC);
        assert_eq!(client.call(0, command::TRIM, SIZE, 4096, &[]), errno::EINVAL);
        assert_eq!(client.call(0, command::CACHE, SIZE, 4096, &[]), errno::EINVAL);
        assert_eq!(client.read(SIZE, 1), Err(errno::EINVAL));
        assert_eq!(client.read(u64::MAX, 4096), Err(errno::EINVAL));
        assert_eq!(client.read(0, (64 << 20) + 1), Err(errno::EINVAL), "more than 64 MiB");
        assert_eq!(client.call(0, 77, 0, 0, &[]), errno::EINVAL);
        assert_eq!(client.call(0, command::FLUSH, 4096, 0, &[]), errno::EINVAL);
        assert_eq!(client.call(write | 1 << 9, command::WRITE, 0, 4096, &page), errno::EINVAL);
        assert_eq!(client.call(command_flag::NO_HOLE, command::TRIM, 0, 4096, &[]), errno::EINVAL);
        assert_eq!(client.call(command_flag::REQ_ONE, command::FLUSH, 0, 0, &[]), errno::EINVAL);
        let df = client.read_flags(command_flag::DF, 0, 4096).map(drop);
        assert_eq!(df, if client.structured || client.extended { Ok(()) } else { Err(errno::EINVAL) });
        let large = vec![1; (64 << 20) + 1];
        if !client.extended {
            assert_eq!(client.call(write, command::WRITE, 0, large.len() as u64, &large), errno::EINVAL);
        } else {
            assert_eq!(
                client.call(0, command::WRITE, 0, 4096, &[]),
                errno::EINVAL,
                "must announce its payload"
            );
            assert_eq!(client.call(write, command::READ, 0, 4096, &page), errno::EINVAL);
            assert_eq!(client.call(write, 77, 0, 4096, &page), errno::EINVAL);
        }
        // Requests about nothing are answered, and FUA is accepted everywhere.
        assert_eq!(client.write(SIZE, &[]), 0);
        assert_eq!(client.call(0, command::TRIM, 0, 0, &[]), 0);
        assert_eq!(client.call(0, command::WRITE_ZEROES, SIZE, 0, &[]), 0);
        assert_eq!(client.call(0, command::READ, 0, 0, &[]), 0);
        assert_eq!(client.call(command_flag::FUA, command::FLUSH, 0, 0, &[]), 0);
        assert_eq!(client.read_flags(command_flag::FUA, 0, 512).unwrap().0, [0; 512]);
        setup.disk.full.store(true, Ordering::SeqCst);
        assert_eq!(client.write(0, &page), errno::ENOSPC);
        assert_eq!(client.call(command_flag::FUA, command::TRIM, 0, 4096, &[]), errno::ENOSPC);
        setup.disk.full.store(false, Ordering::SeqCst);
        setup.disk.flush_fails.store(true, Ordering::SeqCst);
        assert_eq!(client.call(0, command::FLUSH, 0, 0, &[]), errno::EIO);
        assert_eq!(client.call(write | command_flag::FUA, command::WRITE, 0, 4096, &[0; 4096]), errno::EIO);
        setup.disk.flush_fails.store(false, Ordering::SeqCst);
        assert!(setup.disk.contents(0, 4096).iter().all(|byte| *byte == 0), "nothing refused was written");
        assert_eq!(client.write(0, b"in step"), 0);
        assert_eq!(client.read(0, 7).unwrap(), b"in step");
        assert_eq!(client.call(0, command::TRIM, 0, 4096, &[]), 0);
    }
}

#[test]
fn the_past_cannot_be_written() {
    let setup = setup();
    setup.past.fill(0, b"as it was");
    let mut client = Client::structured(&setup.path, "disk@-5m");
    assert_eq!(client.write(0, b"rewritten"), errno::EPERM);
    assert_eq!(client.call(0, command::TRIM, 0, 4096, &[]), errno::EPERM);
    assert_eq!(client.call(0, command::WRITE_ZEROES, 0, 4096, &[]), errno::EPERM);
    assert_eq!(client.call(0, command::FLUSH, 0, 0, &[]), 0);
    assert_eq!(client.read(0, 9).unwrap(), b"as it was");
    let cookie = client.request(0, command::WRITE, 0, 3, b"new");
    let refused = client.reply(0);
    assert_eq!((refused.cookie, refused.kind), (cookie, Some(chunk::ERROR)));
    assert_eq!(&refused.payload[6..], b"the export is read-only", "structured replies say it in words");
}

#[test]
fn a_bad_sector_fails_its_own_request_only() {
    let setup = setup();
    setup.disk.fill(0, &vec![7; 4 << 20]);
    setup.disk.bad.lock().unwrap().push((3 << 20)..(3 << 20) + 512);
    for mut client in all_forms(&setup.path) {
        // The reads are sent at once, so that good and bad ones share a round and its reply buffer.
        let reads: [(u64, usize, bool); 7] = [
            (0, 4096, true),
            (3 << 20, 512, false),
            (4096, 100, true),
            (0, 4 << 20, false),
            (2 << 20, (1 << 20) + 4096, false),
            (0, 3 << 20, true),
            (512, 512, true),
        ];
        let mut bytes = Vec::new();
        let mut cookies = Vec::new();
        for (offset, len, _) in reads {
            let (cookie, request) = client.encode(0, command::READ, offset, len as u64, &[]);
            bytes.extend(request);
            cookies.push(cookie);
        }
        client.put(&bytes);
        for (cookie, (offset, len, good)) in cookies.into_iter().zip(reads) {
            match client.collect(cookie, offset, len) {
                Ok((data, _)) => assert!(good && data.iter().all(|byte| *byte == 7)),
                Err(errno) => assert!(!good && errno == errno::EIO, "{len} bytes at {offset}"),
            }
        }
        assert_eq!(client.read(0, 3).unwrap(), [7; 3]);
    }
}

#[test]
fn large_replies_are_whole_while_the_next_ones_are_made() {
    // A buffer that is sent while another is filled: a mix-up would hand one request's bytes to another.
    let setup = setup();
    let stamped: Vec<u8> =
        (0..1u32 << 20).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    setup.disk.fill(0, &stamped);
    for mut client in all_forms(&setup.path) {
        let mut bytes = Vec::new();
        let mut asked = Vec::new();
        for number in 0..60u64 {
            let offset = number * 50_021;
            let len = [1 << 20, 300_000, 4096, 512, 1 << 18, 3][number as usize % 6];
            let (cookie, request) = client.encode(0, command::READ, offset, len, &[]);
            bytes.extend(request);
            asked.push((cookie, offset as usize, len as usize));
        }
        client.put(&bytes);
        for (number, (cookie, offset, len)) in asked.into_iter().enumerate() {
            if number % 20 == 0 {
                // The socket is full by now, and the server waits with one buffer under way and one filled.
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let (data, _) = client.collect(cookie, offset as u64, len).unwrap();
            assert!(data == stamped[offset..offset + len], "request {number}: {len} bytes at {offset}");
        }
        assert_eq!(client.read(4, 4).unwrap(), stamped[4..8]);
    }
}

#[test]
fn holes_travel_as_holes() {
    let setup = setup();
    setup.disk.fill(1 << 20, &vec![7; 1 << 20]);
    let mut expected = vec![0; 3 << 20];
    expected[1 << 20..2 << 20].fill(7);
    let mut client = Client::structured(&setup.path, "disk");
    let (data, kinds) = client.read_flags(0, 0, 3 << 20).unwrap();
    assert!(data == expected);
    assert_eq!(kinds, [chunk::OFFSET_HOLE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE]);
    let (data, kinds) = client.read_flags(command_flag::DF, 0, 3 << 20).unwrap();
    assert!(data == expected);
    assert_eq!(kinds, [chunk::OFFSET_DATA], "one piece was asked for");
    let (data, kinds) = client.read_flags(command_flag::DF, 0, 64 << 20).unwrap();
    assert!(data[..3 << 20] == expected);
    assert_eq!(kinds, [chunk::OFFSET_DATA], "also a large one");
}

#[test]
fn block_status_tells_data_from_zeros_and_holes() {
    let setup = setup();
    setup.disk.fill(1 << 20, &vec![7; 1 << 20]);
    for mut client in [Client::structured(&setup.path, "disk"), Client::extended(&setup.path, "disk")] {
        assert_eq!(client.call(command_flag::NO_HOLE, command::WRITE_ZEROES, 2 << 20, 1 << 20, &[]), 0);
        let rest = SIZE - (3 << 20);
        let all = [(1 << 20, 3), (1 << 20, 0), (1 << 20, 2), (rest, 3)];
        assert_eq!(client.status(0, 0, SIZE).unwrap(), all);
        assert_eq!(client.status(command_flag::REQ_ONE, 0, SIZE).unwrap(), all[..1]);
        assert_eq!(client.status(command_flag::REQ_ONE, 100, 50).unwrap(), [(50, 3)]);
        assert_eq!(client.status(0, (1 << 20) - 1, 2).unwrap(), [(1, 3), (1, 0)]);
        assert_eq!(client.status(0, SIZE, 1), Err(errno::EINVAL));
        assert_eq!(client.status(0, 0, SIZE + 1), Err(errno::EINVAL));
        assert_eq!(client.status(0, 0, 0), Err(errno::EINVAL));
        assert_eq!(client.call(command_flag::FAST_ZERO, command::WRITE_ZEROES, 2 << 20, 1 << 20, &[]), 0);
        assert_eq!(client.status(0, 2 << 20, 1 << 20).unwrap(), [(1 << 20, 3)]);
    }
    let mut client = Client::extended(&setup.path, "disk");
    let query = |len: u64, ids: &[u32]| {
        let mut payload = len.to_be_bytes().to_vec();
        payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        payload
    };
    let flags = command_flag::PAYLOAD_LEN | command_flag::REQ_ONE;
    for (payload, expected) in [
        (query(4096, &[proto::BASE_ALLOCATION_ID]), Ok(vec![(4096, 3)])),
        (query(4096, &[99]), Err(errno::EINVAL)),
        (query(4096, &[1, 1]), Err(errno::EINVAL)),
        (query(SIZE + 1, &[1]), Err(errno::EINVAL)),
        (vec![1, 2, 3], Err(errno::EINVAL)),
    ] {
        client.request(flags, command::BLOCK_STATUS, 0, payload.len() as u64, &payload);
        assert_eq!(client.status_reply(), expected);
    }
}

#[test]
fn a_burst_is_one_batch_and_one_sync() {
    // This is where the speed at queue depth comes from: 32 writes and a flush are one call each.
    let setup = setup();
    let mut client = Client::simple(&setup.path, "disk");
    let mut bytes = Vec::new();
    for number in 0..32 {
        bytes.extend(client.encode(0, command::WRITE, number * 4096, 4096, &[number as u8; 4096]).1);
    }
    for _ in 0..3 {
        bytes.extend(client.encode(0, command::FLUSH, 0, 0, &[]).1);
    }
    bytes.extend(client.encode(command_flag::FUA, command::WRITE, 0, 1, b"x").1);
    bytes.extend(client.encode(0, command::READ, 0, 2, &[]).1);
    client.put(&bytes);
    let mut order = Vec::new();
    for _ in 0..37 {
        // Only the read carries data; it is answered before the flush, and sees the write before it.
        let header = client.take(16);
        assert_eq!(header[4..8], [0; 4]);
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        if cookie == 37 {
            assert_eq!(client.take(2), b"x\0");
        }
        order.push(cookie);
    }
    order.sort_unstable();
    assert_eq!(order, (1..=37).collect::<Vec<_>>());
    let (applies, flushes) =
        (setup.disk.applies.load(Ordering::SeqCst), setup.disk.flushes.load(Ordering::SeqCst));
    assert!(applies <= 4, "a burst that came in {applies} pieces should be applied in as many calls");
    assert!(flushes <= 2, "{flushes} syncs for one burst");
}

#[test]
fn overlapping_requests_keep_their_order() {
    let setup = setup();
    let mut client = Client::simple(&setup.path, "disk");
    let mut bytes = Vec::new();
    for number in 0..200u64 {
        bytes.extend(client.encode(0, command::WRITE, number % 7, 512, &[number as u8; 512]).1);
    }
    client.put(&bytes);
    for _ in 0..200 {
        assert_eq!(client.reply(0).errno, 0);
    }
    let mut expected = vec![0; 520];
    for number in 0..200usize {
        expected[number % 7..number % 7 + 512].fill(number as u8);
    }
    assert_eq!(setup.disk.contents(0, 520), expected);
}

#[test]
fn neighbours_in_one_block_both_survive() {
    // Two guests write 512-byte sectors of the same block at the same time.
    let setup = setup();
    std::thread::scope(|scope| {
        for half in 0..2u64 {
            let path = &setup.path;
            scope.spawn(move || {
                let mut client = Client::simple(path, "disk");
                for round in 0..500 {
                    for sector in (0..8).filter(|sector| sector % 2 == half) {
                        assert_eq!(client.write(sector * 512, &[round as u8; 512]), 0);
                    }
                }
            });
        }
    });
    assert_eq!(setup.disk.contents(0, 4096), [499u32 as u8; 4096]);
}

#[test]
fn who_is_connected_and_how_much_they_did() {
    let setup = setup();
    let mut client = Client::simple(&setup.path, "");
    assert_eq!(client.write(0, &[1; 1000]), 0);
    assert_eq!(client.read(0, 500).unwrap().len(), 500);
    assert_eq!(client.call(0, command::FLUSH, 0, 0, &[]), 0);
    // Counted just after the reply went out.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let info = loop {
        let [info] = &setup.server.clients()[..] else { panic!("one client") };
        if info.requests == 3 || std::time::Instant::now() > deadline {
            break info.clone();
        }
    };
    assert_eq!(info.export.as_deref(), Some("disk"));
    assert_eq!((info.requests, info.bytes_read, info.bytes_written), (3, 500, 1000));
    let cdp_nbd::Peer::Unix { pid, .. } = info.peer else { panic!("a Unix peer") };
    assert_eq!(pid, std::process::id());
    let latencies = setup.server.latencies();
    assert_eq!((latencies.read.count, latencies.write.count, latencies.flush.count), (1, 1, 1));
}
