//! The relay between a filesystem and its server: which errors go through, and which are waited out.

mod host;

use cdp_cli::host::attach::{attach, detach};
use cdp_cli::host::command::find;
use cdp_cli::host::keeper::Keeper;
use host::{Bench, Server};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// A server that answers writes into the second MiB with this error, until a file named `well` appears beside it.
/// Reads of the third MiB always fail with EIO.
fn sick(bench: &Bench, error: &str) -> Server {
    let well = bench.path("well");
    let script = format!(
        r#"case "$1" in
get_size) echo 16M ;;
can_write|can_flush) exit 0 ;;
can_multi_conn) exit 0 ;;
thread_model) echo parallel ;;
flush) exit 0 ;;
pread) if [ "$4" -ge 2097152 ] && [ "$4" -lt 3145728 ]; then echo EIO rot >&2; exit 1; fi
       head -c "$3" /dev/zero ;;
pwrite) cat >/dev/null
        if [ "$4" -ge 1048576 ] && [ "$4" -lt 2097152 ] && [ ! -e '{}' ]; then echo '{error}' >&2; exit 1; fi ;;
*) exit 2 ;;
esac
"#,
        well.display()
    );
    Server::start_script(bench, "disk", &script)
}

fn uses_relay(bench: &Bench) -> bool {
    matches!(bench.keeper(), Keeper::Relay(_))
}

// One rotten block: reading it is an error at once, and everything else goes on. With a keeper that asks again,
// the reader would hang for a week and the filesystem with it.
#[test]
fn a_read_error_goes_through_to_that_read_alone() {
    let Some(bench) = Bench::new() else { return };
    if !uses_relay(&bench) {
        return;
    }
    let server = sick(&bench, "ENOSPC");
    let device = attach(&bench.options("disk", &server.uri())).unwrap().device;
    let file = File::options().read(true).write(true).open(device).unwrap();
    let started = Instant::now();
    let mut block = [1; 4096];
    file.read_exact_at(&mut block, 2 << 20).unwrap_err();
    file.read_exact_at(&mut block, 5 << 20).unwrap();
    assert_eq!(block, [0; 4096]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(file);
    detach(&bench.state(), "disk", false).unwrap();
    bench.assert_nothing_left();
}

// The journal is full: the filesystem waits, and goes on when there is space. An error would make it read-only.
// The same for a server that says goodbye before it restarts.
#[test]
fn a_full_or_leaving_server_is_waited_out() {
    for error in ["ENOSPC", "ESHUTDOWN"] {
        let Some(bench) = Bench::new() else { return };
        if !uses_relay(&bench) {
            return;
        }
        let server = sick(&bench, error);
        let device = attach(&bench.options("disk", &server.uri())).unwrap().device;
        let file = File::options().read(true).write(true).open(device).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                file.write_all_at(&[7; 8192], 1 << 20)?;
                file.sync_all()
            });
            std::thread::sleep(Duration::from_secs(2));
            assert!(!writer.is_finished(), "{error}: the write did not wait");
            std::fs::write(bench.path("well"), "").unwrap();
            writer.join().unwrap().unwrap_or_else(|problem| panic!("{error}: {problem}"));
        });
        drop(file);
        detach(&bench.state(), "disk", false).unwrap();
        bench.assert_nothing_left();
    }
}

// What cannot be followed by the relay is kept by nbdkit, and not refused.
#[test]
fn the_other_keeper_still_works() {
    let Some(bench) = Bench::new() else { return };
    assert!(find("nbdkit").is_some());
    let server = Server::start(&bench, "disk", 16 << 20);
    let mut options = bench.options("disk", &server.uri());
    options.keeper = Keeper::Nbdkit;
    attach(&options).unwrap();
    detach(&bench.state(), "disk", false).unwrap();
    bench.assert_nothing_left();
}
