//! A journal with a small cap that drops its oldest history, for as long as somebody writes.

mod cli;

use cli::*;

const MIB: usize = 1 << 20;
/// Writes go round so many places of 1 MiB.
const PLACES: u64 = 40;
const WRITES: u64 = 1400;
const MARK_EVERY: u64 = 50;

fn content(number: u64) -> Vec<u8> {
    (number | 1 << 40).to_le_bytes().repeat(MIB / 8)
}

/// What stands at a place after `newest` writes, numbered from 0.
fn expected(place: u64, newest: u64) -> Option<u64> {
    let last = newest.checked_sub(1)?;
    let round = (last / PLACES) * PLACES + place;
    if round <= last { Some(round) } else { round.checked_sub(PLACES) }
}

fn check(client: &mut cdp_cli::commands::demo::client::Client, writes: u64, step: usize) {
    for place in (0..PLACES).step_by(step) {
        let bytes = get(client, place * MIB as u64, MIB).unwrap();
        let wanted = expected(place, writes).map_or(vec![0; MIB], content);
        assert!(bytes == wanted, "place {place} after {writes} writes");
    }
}

/// The daily life of a small disk: it is written to for ever, never runs full, is killed in between, and every
/// state of its window is exact. Whoever runs this for months would otherwise find out at night.
#[test]
fn a_small_journal_goes_on_for_ever() {
    let home = Home::new();
    let mut served = home.serve(&[]);
    // Names go with the rest here.
    let policy = "named 1s, at most 512MiB, at cap drop-oldest";
    let shown = home.json(&["retention", "set", "disk", policy]);
    assert_eq!(shown["policy"], format!("every-write forever, {policy}"));
    let refused = home.run(&["retention", "set", "disk", "at most 5MiB, at cap drop-oldest"]);
    assert!(refused.code != 0 && refused.err.contains("segments"), "{refused:?}");

    let mut disk = served.connect("disk").unwrap();
    let mut marks = Vec::new();
    for number in 0..WRITES {
        put(&mut disk, number % PLACES * MIB as u64, &content(number)).unwrap();
        if number % MARK_EVERY == MARK_EVERY - 1 {
            let name = format!("after-{}", number + 1);
            let marked = home.json(&["mark", "disk", &name]);
            marks.push((name, number + 1, marked[0]["lsn"].as_u64().unwrap()));
        }
        if number == WRITES / 2 {
            served.signal(rustix::process::Signal::KILL);
            served.wait();
            served = home.serve(&[]);
            disk = served.connect("disk").unwrap();
            check(&mut disk, number + 1, 1);
        }
    }
    check(&mut disk, WRITES, 1);

    let shown = home.json(&["retention", "show", "disk"]);
    let horizon = shown["horizon"]["lsn"].as_u64().unwrap();
    assert!(shown["sizes"]["journal"].as_u64() <= Some(512 << 20), "{shown}");
    assert!(shown["base_lsn"].as_u64().unwrap() > 0 && horizon > 0, "{shown}");
    assert!(shown["sizes"]["base"].as_u64().unwrap() >= PLACES << 20, "{shown}");
    let mut exact = 0;
    for (name, writes, lsn) in &marks {
        match served.connect(&format!("disk@{name}")) {
            Ok(mut view) => {
                assert!(*lsn >= horizon, "{name} is before the horizon and opens");
                check(&mut view, *writes, 7);
                exact += 1;
            }
            Err(error) => {
                // Room for the next segment is made in the background: the horizon may have moved on meanwhile.
                let now = home.json(&["retention", "show", "disk"])["horizon"]["lsn"].as_u64().unwrap();
                assert!(*lsn < now, "{name} is in the window: {error}");
            }
        }
    }
    assert!(exact >= 2 && exact < marks.len(), "{exact} of {} marks are in the window", marks.len());

    // What is looked at stays, and status says by whom.
    let view = served.connect("disk@start").unwrap();
    let status = home.json(&["status"]);
    let of_disk = &status["volumes"][0];
    assert_eq!(of_disk["pins"][0]["lsn"], of_disk["horizon"]["lsn"], "{status}");
    assert!(of_disk["horizon"]["lsn"].as_u64() >= Some(horizon), "{status}");
    drop(view);

    let log = home.json(&["log", "disk"]).to_string();
    assert!(log.contains("the journal was full"), "the timeline shows why the horizon moved");
    let newest = &marks.last().unwrap().0;
    home.json(&["unmark", "disk", newest]);
    assert!(served.connect(&format!("disk@{newest}")).is_err());
    let verified = home.run(&["verify", "disk"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    served.stop();
    assert_eq!(home.json(&["status"])["act"], false);
}

/// Whoever names a state wants it back, also when the journal is full, and also after a restart: the named states stay
/// exact, what lay between them is refused with the kept states around it, and the timeline says why.
#[test]
fn named_states_outlive_a_full_journal() {
    let home = Home::new();
    let mut served = home.serve(&[]);
    home.json(&["retention", "set", "disk", "at most 640MiB, at cap drop-oldest"]);
    let mut disk = served.connect("disk").unwrap();
    let mut marks = Vec::new();
    let writes = 900;
    for number in 0..writes {
        put(&mut disk, number % PLACES * MIB as u64, &content(number)).unwrap();
        if number == 70 || number == 210 {
            let name = format!("after-{}", number + 1);
            let lsn = home.json(&["mark", "disk", &name])[0]["lsn"].as_u64().unwrap();
            marks.push((name, number + 1, lsn));
        }
    }
    for restarted in [false, true] {
        if restarted {
            drop(disk);
            served.signal(rustix::process::Signal::KILL);
            served.wait();
            served = home.serve(&[]);
            disk = served.connect("disk").unwrap();
        }
        check(&mut disk, writes, 1);
        for (name, writes, _) in &marks {
            check(&mut served.connect(&format!("disk@{name}")).unwrap(), *writes, 7);
        }
        // The state before the first one is before the horizon, which came to stand at that marker.
        let (name, writes, _) = &marks[1];
        check(&mut served.connect(&format!("disk@before:{name}")).unwrap(), *writes, 13);
    }
    let shown = home.json(&["retention", "show", "disk"]);
    // What is thinned, what its versions are, and what they take: these are words again and again.
    let sizes = |key: &str| shown["sizes"][key].as_u64().unwrap();
    assert!(sizes("folds") > 0 && sizes("thinned_stored") <= sizes("folds"), "{shown}");
    assert!(sizes("thinned_plain") > 4 * sizes("thinned_stored"), "{shown}");
    assert!(sizes("logical") >= PLACES << 20, "{shown}");
    let between = format!("lsn:{}", marks[0].2 + 5);
    let refused = home.run(&["diff", "disk", &between, "latest"]);
    assert!(refused.code != 0 && refused.err.contains("thinned"), "{refused:?}");
    assert!(refused.err.contains(&format!("lsn:{}", marks[0].2)), "{refused:?}");
    let log = home.json(&["log", "disk"]).to_string();
    assert!(log.contains("thinned") && log.contains("the journal was full"), "{log}");
    // Where single states are left, the timeline does not say that nobody wrote; it can be zoomed to, and names what can
    // be opened.
    let zoomed = home.json(&["log", "disk", "--around", &between]);
    assert!(zoomed[0]["around_gone"].as_str().unwrap().contains("thinned"), "{zoomed}");
    let stretch = |rows: &serde_json::Value| {
        let rows = rows[0]["rows"].as_array().unwrap().clone();
        rows.iter().any(|row| row["thinned"].is_object() || row["event"]["kind"] == "kept")
    };
    assert!(stretch(&zoomed) && stretch(&home.json(&["log", "disk"])), "{zoomed}");
    let text = home.run(&["log", "disk", "--around", &between]);
    assert!(text.code == 0 && text.out.contains("thinned"), "{text:?}");
    let records = home.json(&["log", "disk", "--records", "--around", &between]);
    assert!(records[0]["thinned"][0][0].is_u64(), "{records}");
    wait_until("every point of the timeline opens", || {
        let log = home.json(&["log", "disk"]);
        let rows = log[0]["rows"].as_array().unwrap();
        let points = rows.iter().filter_map(|row| {
            let kept = (row["event"]["kind"] == "kept").then(|| &row["event"]["point"]);
            kept.or_else(|| row["interval"].is_object().then(|| &row["interval"]["point_before"]))
        });
        points.take(20).all(|point| served.connect(point.as_str().unwrap()).is_ok())
    });
    let verified = home.run(&["verify", "disk"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    served.stop();
}

/// The same where history is thinned for room, and nothing is left to thin.
#[test]
fn a_journal_with_nothing_left_to_thin_is_called_full() {
    let home = Home::new();
    home.json(&["create", "small", "--size", "32M"]);
    let served = home.serve(&[]);
    home.json(&["retention", "set", "small", "at most 384MiB, at cap thin"]);
    let mut disk = served.connect("small").unwrap();
    // Named states of what does not compress, each of the whole disk: none of them may go.
    let refused = (0..800u64).find(|number| {
        let mut bytes = vec![0; MIB];
        let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for part in bytes.chunks_exact_mut(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            part.copy_from_slice(&word.to_le_bytes());
        }
        if number % 32 == 31 {
            home.run(&["mark", "small", &format!("n{number}")]);
        }
        put(&mut disk, number % 32 * MIB as u64, &bytes).is_err()
    });
    assert!(refused.is_some(), "a journal of 384 MiB took 25 states of 32 MiB");
    let ran = home.run(&["status"]);
    assert!(ran.code == 3 && ran.out.contains("nothing of it can be thinned: writes are refused"), "{ran:?}");
    served.stop();
}

/// Somebody gets ENOSPC for every write, looks at the status, and must not read that there are minutes left.
#[test]
fn a_full_journal_is_called_full() {
    let home = Home::new();
    home.json(&["create", "small", "--size", "256M", "--journal-cap", "128M"]);
    let served = home.serve(&[]);
    let mut disk = served.connect("small").unwrap();
    let refused =
        (0..200).find(|number| put(&mut disk, number % PLACES * MIB as u64, &content(*number)).is_err());
    assert!(refused.is_some(), "a journal of 128 MiB took 200 MiB");
    let ran = home.run(&["status"]);
    assert!(
        ran.code == 3 && ran.out.contains("the journal of volume small is full: writes are refused"),
        "{ran:?}"
    );
    assert!(!ran.out.contains("full in"), "{ran:?}");
    // There is room again, and nobody has to write for it to be seen.
    home.json(&["set", "small", "--journal-cap", "1G"]);
    assert!(!home.run(&["status"]).out.contains("is full:"));
    put(&mut disk, 0, &content(0)).unwrap();
    served.stop();
}

/// Whoever sets a cap wants to hear before it is reached what happens then, and when; in the status, where history is
/// shown, and on the timeline.
#[test]
fn the_cap_is_told_before_it_is_reached() {
    let began = std::time::Instant::now();
    let home = Home::new();
    let served = home.serve(&[]);
    let mut disk = served.connect("disk").unwrap();
    let status = home.run(&["status"]);
    assert!(
        status.code == 0 && status.out.contains("All is well"),
        "a burst on a new disk is no trend: {status:?}"
    );
    // More than half of what it may be.
    for number in 0..9 * PLACES {
        put(&mut disk, number % PLACES * MIB as u64, &content(number)).unwrap();
    }
    for (at_cap, then) in [
        ("block", "writes are refused"),
        ("thin", "keeps single states only"),
        ("drop-oldest", "the oldest history goes; now it begins at"),
    ] {
        home.json(&["retention", "set", "disk", &format!("at most 640MiB, at cap {at_cap}")]);
        let forecast = home.json(&["retention", "show", "disk"])["forecast"].clone();
        assert_eq!(forecast["at_cap"], at_cap, "{forecast}");
        let hours = forecast["hours"].as_f64().unwrap();
        assert!(hours > 0.0 && hours < 24.0, "{forecast}");
        // What went in since the volume was made, by that time.
        let told = forecast["bytes_per_s"].as_f64().unwrap() * began.elapsed().as_secs_f64();
        assert!(told > 8.9 * (PLACES as usize * MIB) as f64, "{forecast}");
        for command in [&["retention", "show", "disk"][..], &["status"], &["log", "disk"]] {
            let shown = home.run(command);
            let is_told = shown.out.contains(then) || at_cap == "block" && shown.out.contains("is full in");
            assert!(is_told, "{command:?} does not tell of the cap: {shown:?}");
        }
        // Its exit code says whether somebody should act.
        let status = home.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
        let said = [&status["verdict"], &status["warnings"]].map(|lines| lines.to_string()).concat();
        assert!(said.contains("the journal of volume disk"), "{status}");
        // What was asked for is no reason to get up at night.
        assert!(at_cap == "block" || status["act"] == false, "{status}");
    }
    served.stop();
}
