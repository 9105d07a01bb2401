//! Clients that lie, stall, flood and vanish; and the honest one beside them, who must not notice.

#![allow(missing_docs)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cdp_nbd::Options;
use cdp_nbd::proto::{RequestHeader, command, command_flag, errno, option, reply};
use support::client::{Client, info_data};
use support::stand::{eventually, honest, setup};

#[test]
fn who_breaks_the_protocol_is_disconnected_and_nobody_else() {
    let setup = setup(Options::default());
    let mut unknown_flags = UnixStream::connect(&setup.path).unwrap();
    unknown_flags.write_all(&0x8000_0003u32.to_be_bytes()).unwrap();
    let mut rest = Vec::new();
    unknown_flags.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 18, "only the greeting");

    let mut wrong_magic = Client::connect(&setup.path);
    wrong_magic.put(b"GET / HTTP/1.1\r\n\r\n");
    assert!(wrong_magic.is_closed());

    let mut endless_option = Client::connect(&setup.path);
    endless_option.put(b"IHAVEOPT");
    endless_option.put(&77u32.to_be_bytes());
    endless_option.put(&u32::MAX.to_be_bytes());
    assert!(endless_option.is_closed());

    let mut not_fixed = UnixStream::connect(&setup.path).unwrap();
    not_fixed.write_all(&0u32.to_be_bytes()).unwrap();
    not_fixed.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").unwrap();
    rest.clear();
    not_fixed.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 18, "LIST is not for clients without fixed newstyle");

    for mut client in [Client::simple(&setup.path, "disk"), Client::extended(&setup.path, "disk")] {
        client.put(&[0x25; 5]);
        assert!(client.is_closed(), "a wrong request magic");
    }
    // The other form's magic is wrong too.
    let mut client = Client::simple(&setup.path, "disk");
    client.put(&RequestHeader { flags: 0, command: 0, cookie: 1, offset: 0, len: 1 }.encode(true));
    assert!(client.is_closed());

    for (mut client, len) in [
        (Client::simple(&setup.path, "disk"), u64::from(u32::MAX)),
        (Client::structured(&setup.path, "disk"), 1 << 31),
        (Client::extended(&setup.path, "disk"), u64::MAX),
        (Client::extended(&setup.path, "disk"), (64 << 20) + 1),
    ] {
        let flags = if client.extended { command_flag::PAYLOAD_LEN } else { 0 };
        client.request(flags, command::WRITE, 0, len, b"and so on");
        assert_eq!(client.reply(0).errno, errno::EINVAL, "a payload of {len} bytes is refused at once");
        assert!(client.is_closed());
    }
    honest(&setup.path);
}

#[test]
fn abort_is_acknowledged() {
    let setup = setup(Options::default());
    let mut client = Client::connect(&setup.path);
    assert_eq!(client.option(option::ABORT, b"whatever"), [(reply::ACK, vec![])]);
    assert!(client.is_closed());
}

#[test]
fn thousands_of_options_are_only_options() {
    let setup = setup(Options::default());
    let mut client = Client::connect(&setup.path);
    let mut flood = Vec::new();
    for number in 0..5000u32 {
        flood.extend(b"IHAVEOPT");
        flood.extend((1000 + number).to_be_bytes());
        flood.extend(10u32.to_be_bytes());
        flood.extend([0; 10]);
    }
    let mut writer = client.stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || writer.write_all(&flood).unwrap());
    for number in 0..5000u32 {
        assert_eq!(client.option_reply(1000 + number).0, reply::ERR_UNSUP);
    }
    thread.join().unwrap();
    client.go("disk").unwrap();
    assert_eq!(client.write(0, b"after all that"), 0);
}

#[test]
fn a_handshake_has_a_deadline_also_for_those_who_trickle() {
    let options = Options { handshake_option_time: Duration::from_millis(300), ..Options::default() };
    let setup = setup(options);
    let began = Instant::now();
    let mut silent = UnixStream::connect(&setup.path).unwrap();
    let mut mute = Client::connect(&setup.path);
    let mut trickle = Client::connect(&setup.path);
    let mut writer = trickle.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        // A byte now and then does not count as progress.
        for byte in b"IHAVEOPT\0\0\0\x03\0\0\0\0".iter().cycle() {
            std::thread::sleep(Duration::from_millis(100));
            if writer.write_all(&[*byte]).is_err() {
                return;
            }
        }
    });
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert!(mute.is_closed() && trickle.is_closed());
    assert!(began.elapsed() > Duration::from_millis(290) && began.elapsed() < Duration::from_secs(10));

    // Those who have entered may be silent as long as they like.
    let mut quiet = Client::simple(&setup.path, "disk");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(quiet.write(0, b"still here"), 0);
}

#[test]
fn idle_clients_do_not_lock_out_others() {
    let options = Options { connections_max: 50, ..Options::default() };
    let setup = setup(options);
    let mut working = Client::simple(&setup.path, "disk");
    let idle: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(&setup.path).unwrap()).collect();
    honest(&setup.path);
    assert_eq!(working.write(0, b"undisturbed"), 0);
    eventually("a bounded number of connections", || setup.server.clients().len() <= 51);
    drop(idle);
    eventually("only one client left", || setup.server.clients().len() == 1);
}

#[test]
fn who_hoards_large_requests_gets_enomem_and_stays_in_step() {
    // Two clients stop in the middle of large writes and hold the whole budget; a third comes with its own.
    let options = Options { large_bytes_total: 80 << 20, ..Options::default() };
    let setup = setup(options);
    let mut hoarders: Vec<Client> = (0..2)
        .map(|_| {
            let mut client = Client::simple(&setup.path, "disk");
            client.request(0, command::WRITE, 0, 64 << 20, &vec![9; 38 << 20]);
            client
        })
        .collect();
    let mut third = Client::simple(&setup.path, "disk");
    let data = vec![3; 32 << 20];
    let mut answer = third.write(0, &data);
    if answer == errno::ENOMEM {
        // By now the stalled ones have lost theirs.
        answer = third.write(0, &data);
    }
    assert_eq!(answer, 0);
    assert_eq!(third.read(0, 4).unwrap(), [3; 4]);
    let mut refused = 0;
    for mut client in hoarders.drain(..) {
        client.put(&vec![9; 26 << 20]);
        let errno = client.reply(0).errno;
        assert!(errno == 0 || errno == errno::ENOMEM);
        refused += u32::from(errno == errno::ENOMEM);
        assert_eq!(client.read(64 << 20, 2).unwrap(), [0; 2], "in step");
    }
    assert!(refused >= 1, "the budget is kept");
}

#[test]
fn half_a_payload_is_never_written() {
    let setup = setup(Options::default());
    for (sent, len) in [(1, 4096), (4095, 4096), (1 << 20, (1 << 20) + 1), (40 << 20, 64 << 20)] {
        let mut client = Client::simple(&setup.path, "disk");
        client.request(0, command::WRITE, 0, len, &vec![5; sent]);
        honest(&setup.path);
        drop(client);
    }
    eventually("all gone", || setup.open.load(Ordering::SeqCst) == 0);
    assert!(setup.disk.contents(0, 64 << 20).iter().all(|byte| *byte == 0));
}

#[test]
fn who_does_not_read_its_replies_stops_only_itself() {
    let setup = setup(Options::default());
    let mut deaf = Client::structured(&setup.path, "disk");
    setup.disk.fill(0, &vec![1; 1 << 20]);
    for _ in 0..100 {
        deaf.request(0, command::READ, 0, 1 << 20, &[]);
    }
    honest(&setup.path);
    let began = Instant::now();
    assert!(setup.server.shutdown(Duration::from_millis(500)), "the deaf client cannot hold up a shutdown");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn resets_with_requests_in_flight_leave_nothing_behind() {
    let setup = setup(Options::default());
    *setup.disk.flush_takes.lock().unwrap() = Duration::from_millis(20);
    for round in 0..100u64 {
        let mut client = Client::simple(&setup.path, "disk");
        let mut bytes = Vec::new();
        for number in 0..20 {
            bytes.extend(client.encode(0, command::WRITE, number * 4096, 4096, &[7; 4096]).1);
            bytes.extend(client.encode(0, command::READ, 0, 65536, &[]).1);
        }
        bytes.extend(client.encode(0, command::FLUSH, 0, 0, &[]).1);
        bytes.truncate(bytes.len() - round as usize % 30);
        client.put(&bytes);
    }
    honest(&setup.path);
    eventually("all gone", || setup.server.clients().is_empty() && setup.open.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_goodbye_finishes_what_is_in_flight() {
    let setup = setup(Options::default());
    *setup.disk.flush_takes.lock().unwrap() = Duration::from_millis(100);
    let mut client = Client::simple(&setup.path, "disk");
    let mut bytes = client.encode(0, command::WRITE, 0, 4, b"last").1;
    bytes.extend(client.encode(0, command::FLUSH, 0, 0, &[]).1);
    bytes.extend(client.encode(0, command::DISC, 0, 0, &[]).1);
    client.put(&bytes);
    assert_eq!(client.reply(0).errno, 0);
    assert_eq!(client.reply(0).errno, 0);
    assert!(client.is_closed());
    assert_eq!(setup.disk.contents(0, 4), b"last");
}

#[test]
fn a_shutdown_answers_what_is_in_hand_and_refuses_what_comes() {
    let options = Options { shutdown_grace: Duration::from_millis(600), ..Options::default() };
    let setup = setup(options);
    *setup.disk.flush_takes.lock().unwrap() = Duration::from_millis(300);
    let mut in_hand = Client::structured(&setup.path, "disk");
    let mut late = Client::simple(&setup.path, "disk");
    let mut greeted = Client::connect(&setup.path);
    assert_eq!(in_hand.write(0, b"kept"), 0);
    in_hand.request(0, command::FLUSH, 0, 0, &[]);
    eventually("the flush has begun", || setup.disk.flushes.load(Ordering::SeqCst) == 1);
    std::thread::scope(|scope| {
        let server = &setup.server;
        let down = scope.spawn(move || server.shutdown(Duration::from_secs(10)));
        eventually("no more connections", || UnixStream::connect(&setup.path).is_err());
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(late.write(0, b"late"), errno::ESHUTDOWN);
        assert_eq!(late.read(0, 4), Err(errno::ESHUTDOWN), "in step after a refused payload");
        let refused = greeted.option(option::GO, &info_data("disk", &[]));
        assert_eq!(refused.last().unwrap().0, reply::ERR_SHUTDOWN);
        assert_eq!(in_hand.reply(0).errno, 0, "the flush that was in hand");
        assert!(late.is_closed() && in_hand.is_closed() && greeted.is_closed());
        assert!(down.join().unwrap());
    });
    assert_eq!(setup.disk.contents(0, 4), b"kept");
    assert_eq!(setup.open.load(Ordering::SeqCst), 0);
}

#[test]
fn an_export_can_be_taken_from_its_clients() {
    // After a rollback the clients' caches are stale: they must not go on.
    let setup = setup(Options::default());
    let mut first = Client::simple(&setup.path, "disk");
    let mut second = Client::simple(&setup.path, "");
    assert!(setup.server.disconnect(|export| export == "other", Duration::ZERO));
    assert_eq!(first.write(0, b"still"), 0);
    assert!(setup.server.disconnect(|export| export == "disk", Duration::from_secs(10)));
    assert!(first.is_closed() && second.is_closed());
    honest(&setup.path);
}

#[test]
fn tcp_works_the_same_and_stays_at_home() {
    let setup = setup(Options::default());
    let address = setup.server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x02\0\0\0\0").unwrap();
    let mut acknowledged = [0; 20];
    stream.read_exact(&mut acknowledged).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let outside = "192.0.2.1:10809".parse().unwrap();
    assert!(cdp_nbd::listen::check_plaintext(address, false).is_ok());
    let refused = cdp_nbd::listen::check_plaintext(outside, false).unwrap_err();
    assert_eq!(refused.kind(), cdp_core::error::Kind::Refused);
    assert!(cdp_nbd::listen::check_plaintext(outside, true).is_ok());
}
