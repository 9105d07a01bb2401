//! Metadata contexts with dirty bitmaps, as QEMU's clients use them. A bitmap under another's number, or an extent
//! too few, and an incremental backup lacks blocks.

#![allow(missing_docs)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cdp_nbd::limits::{BITMAP_QUERIES_MAX, BITMAPS_MAX, STATUS_EXTENTS_MAX};
use cdp_nbd::proto::{command, command_flag, errno, option, reply, transmission_flag};
use cdp_nbd::{Options, Server};
use support::client::{Client, Statuses, meta_data};
use support::{MemoryDevice, MemoryExports};

const SIZE: u64 = 96 << 20;
const PAST: &str = "disk@-5m";

struct Setup {
    path: PathBuf,
    looked_for: Arc<AtomicUsize>,
    _server: Server,
    _directory: tempfile::TempDir,
}

fn setup() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let disk = Arc::new(MemoryDevice::new(SIZE));
    let past = Arc::new(MemoryDevice::read_only(SIZE));
    let exports = MemoryExports::new(vec![("disk", disk), (PAST, past)]);
    let looked_for = exports.looked_for.clone();
    let server = Server::start(Arc::new(exports), Options::default());
    server.listen_unix(&path).unwrap();
    Setup { path, looked_for, _server: server, _directory: directory }
}

/// Names and numbers in the answer, which must end well.
fn contexts(client: &mut Client, number: u32, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
    let replies = client.option(number, &meta_data(export, queries));
    let (last, rest) = replies.split_last().unwrap();
    assert_eq!(last.0, reply::ACK, "{}", String::from_utf8_lossy(&last.1));
    rest.iter()
        .map(|(kind, data)| {
            assert_eq!(*kind, reply::META_CONTEXT);
            let id = u32::from_be_bytes(data[..4].try_into().unwrap());
            (id, String::from_utf8(data[4..].to_vec()).unwrap())
        })
        .collect()
}

fn refused(client: &mut Client, number: u32, export: &str, queries: &[&str]) -> u32 {
    client.option(number, &meta_data(export, queries)).last().unwrap().0
}

/// A client that agreed on chunks, or on extended headers.
fn client(setup: &Setup, extended: bool) -> Client {
    let mut client = Client::connect(&setup.path);
    let number = if extended { option::EXTENDED_HEADERS } else { option::STRUCTURED_REPLY };
    client.option(number, &[]);
    client.structured = true;
    client.extended = extended;
    client
}

#[test]
fn lists_name_what_can_be_selected() {
    let setup = setup();
    let client = &mut client(&setup, false);
    let names = |client: &mut Client, queries: &[&str]| -> Vec<String> {
        let found = contexts(client, option::LIST_META_CONTEXT, PAST, queries);
        assert!(found.iter().all(|(id, _)| *id == 0));
        found.into_iter().map(|(_, name)| name).collect()
    };
    let (base, one, two) = ("base:allocation", "qemu:dirty-bitmap:4096", "qemu:dirty-bitmap:8192");
    assert_eq!(names(client, &[]), [base, one, two]);
    assert_eq!(names(client, &["base:"]), [base]);
    for wildcard in ["qemu:", "qemu:dirty-bitmap:"] {
        assert_eq!(names(client, &[wildcard]), [one, two]);
        assert_eq!(names(client, &[two, wildcard, two, wildcard]), [two, one]);
    }
    assert_eq!(
        names(client, &["qemu:dirty-bitmap:512", "qemu:allocation-depth", ""]),
        ["qemu:dirty-bitmap:512"]
    );
    assert_eq!(
        names(client, &["qemu:dirty-bitmap:0"]),
        [""; 0],
        "what is not there is not listed, and no error"
    );
    let invalid = refused(client, option::LIST_META_CONTEXT, PAST, &["qemu:dirty-bitmap:x"]);
    assert_eq!(invalid, reply::ERR_INVALID);
    assert_eq!(contexts(client, option::LIST_META_CONTEXT, "disk", &["qemu:", one]), []);
}

#[test]
fn every_selected_context_is_answered_under_its_own_number() {
    let setup = setup();
    for extended in [false, true] {
        let client = &mut client(&setup, extended);
        let queries =
            ["qemu:dirty-bitmap:8192", "base:allocation", "qemu:dirty-bitmap:65536", "qemu:dirty-bitmap:0"];
        let found = contexts(client, option::SET_META_CONTEXT, PAST, &queries);
        let id = |name: &str| found.iter().find(|(_, found)| found == name).map(|(id, _)| *id);
        let (base, small, large) =
            (id(queries[1]).unwrap(), id(queries[0]).unwrap(), id(queries[2]).unwrap());
        assert!(found.len() == 3 && base != small && small != large && base != large);
        let (size, flags) = client.go(PAST).unwrap();
        assert_eq!(size, SIZE);
        assert_eq!(flags & transmission_flag::BLOCK_STATUS_PAYLOAD != 0, extended);

        let expected = Statuses::from([
            (base, vec![(20480, 3)]),
            (small, vec![(4096, 1), (8192, 0), (8192, 1)]),
            (large, vec![(20480, 1)]),
        ]);
        assert_eq!(client.status_of_all(0, 4096, 20480), Ok(expected));
        let one = client.status_of_all(command_flag::REQ_ONE, 4096, 20480).unwrap();
        assert_eq!(
            one,
            Statuses::from([(base, vec![(20480, 3)]), (small, vec![(4096, 1)]), (large, vec![(20480, 1)])])
        );
        let many = client.status_of_all(0, 0, SIZE).unwrap();
        assert_eq!(many[&small].len() as u64, (SIZE / 8192).min(STATUS_EXTENTS_MAX as u64));
        assert_eq!(client.status_of_all(0, SIZE - 4096, 8192), Err(errno::EINVAL));
        if !extended {
            continue;
        }
        // With a payload, only the contexts that it names are answered.
        let filtered = |client: &mut Client, ids: &[u32]| {
            let mut payload = 20480u64.to_be_bytes().to_vec();
            payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
            let flags = command_flag::PAYLOAD_LEN;
            client.request(flags, command::BLOCK_STATUS, 4096, payload.len() as u64, &payload);
            client.status_chunks().map(|found| found.into_keys().collect::<Vec<_>>())
        };
        assert_eq!(filtered(client, &[small]), Ok(vec![small]));
        assert_eq!(filtered(client, &[large, base]), Ok(vec![base, large]));
        assert_eq!(filtered(client, &[base, base]), Err(errno::EINVAL));
        assert_eq!(filtered(client, &[9999]), Err(errno::EINVAL));
        assert_eq!(filtered(client, &[0]), Err(errno::EINVAL));
        assert_eq!(filtered(client, &[small; BITMAPS_MAX + 2]), Err(errno::EINVAL));
        assert_eq!(client.read(0, 512).unwrap(), [0; 512], "still in step");
    }
}

#[test]
fn a_bitmap_needs_no_other_context_and_holds_for_its_export_only() {
    let setup = setup();
    let one = ["qemu:dirty-bitmap:4096"];
    let mut alone = client(&setup, false);
    let found = contexts(&mut alone, option::SET_META_CONTEXT, PAST, &one);
    alone.go(PAST).unwrap();
    assert_eq!(alone.status_of_all(0, 4096, 4096), Ok(Statuses::from([(found[0].0, vec![(4096, 0)])])));

    let mut elsewhere = client(&setup, false);
    contexts(&mut elsewhere, option::SET_META_CONTEXT, PAST, &one);
    elsewhere.go("disk").unwrap();
    assert_eq!(elsewhere.status_of_all(0, 0, 4096), Err(errno::EINVAL));

    // What is selected last holds; a refused selection leaves none.
    let mut again = client(&setup, false);
    contexts(&mut again, option::SET_META_CONTEXT, PAST, &one);
    assert_eq!(
        refused(&mut again, option::SET_META_CONTEXT, PAST, &["qemu:dirty-bitmap:x"]),
        reply::ERR_INVALID
    );
    again.go(PAST).unwrap();
    assert_eq!(again.status_of_all(0, 0, 4096), Err(errno::EINVAL));
}

#[test]
fn a_client_cannot_ask_for_more_than_the_limits() {
    let setup = setup();
    let names: Vec<String> = (1..=4000).map(|number| format!("qemu:dirty-bitmap:{number}")).collect();
    let queries: Vec<&str> = names.iter().map(String::as_str).collect();
    let client = &mut client(&setup, true);
    for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        setup.looked_for.store(0, Ordering::SeqCst);
        assert_eq!(refused(client, number, PAST, &queries), reply::ERR_TOO_BIG);
        assert!(setup.looked_for.load(Ordering::SeqCst) <= BITMAP_QUERIES_MAX);
    }
    let set = option::SET_META_CONTEXT;
    assert_eq!(refused(client, set, PAST, &queries[..BITMAPS_MAX + 1]), reply::ERR_TOO_BIG);
    assert_eq!(contexts(client, set, PAST, &["qemu:dirty-bitmap:7"; 4000]).len(), 1, "one, asked for often");
    assert_eq!(contexts(client, set, PAST, &queries[..BITMAPS_MAX]).len(), BITMAPS_MAX);
    client.go(PAST).unwrap();
    assert_eq!(client.status_of_all(0, 0, 4096).unwrap().len(), BITMAPS_MAX);
}
