//! Searching time on the real binary: the write that broke it is found, by itself, after an interruption, by many
//! probes at a time, and a program that makes no sense is told so.

mod cli;

use std::os::unix::fs::PermissionsExt;

use cli::*;
use serde_json::Value;

const BLOCK: usize = 4096;

fn script(home: &Home, name: &str, body: &str) -> String {
    let path = home.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// 200 writes, each to a block of its own; the one at `breaks` says `bad` instead, at a place of its own. A marker
/// after every 10th.
fn history(home: &Home, breaks: usize) -> Served {
    home.json(&["create", "disk", "--size", "64M", "--marker-interval", "0s"]);
    let served = home.serve(&[]);
    let mut client = served.connect("disk").unwrap();
    home.json(&["mark", "disk", "begin"]);
    for number in 1..=200 {
        put(&mut client, (number * BLOCK) as u64, format!("write {number:8}").as_bytes()).unwrap();
        if number == breaks {
            put(&mut client, 0, b"BROKEN").unwrap();
        }
        if number % 10 == 0 {
            home.json(&["mark", "disk", &format!("m{number}")]);
        }
    }
    served
}

/// Looks at the state through NBD, as any program could, and counts itself.
fn judge(home: &Home) -> String {
    let cdp = env!("CARGO_BIN_EXE_cdp");
    script(
        home,
        "judge",
        &format!(
            "echo $CDP_POINT >>{0}/asked\n\
             {cdp} --store $CDP_STORE restore --force $CDP_VOLUME@$CDP_POINT {0}/state.$$ >/dev/null 2>&1 || exit 255\n\
             ! head -c 6 {0}/state.$$ | grep -q BROKEN; code=$?; rm {0}/state.$$; exit $code",
            home.dir.display()
        ),
    )
}

fn asked(home: &Home) -> usize {
    std::fs::read_to_string(home.path("asked")).unwrap_or_default().lines().count()
}

fn found(home: &Home, result: &Value) {
    let (good, bad) =
        (result["last_good"]["lsn"].as_u64().unwrap(), result["first_bad"]["lsn"].as_u64().unwrap());
    assert_eq!(bad, good + 1, "{result}");
    let head = |lsn: u64| {
        let file = home.path("check.img");
        let point = format!("disk@lsn:{lsn}");
        home.json(&["restore", "--force", &point, file.to_str().unwrap()]);
        std::fs::read(file).unwrap()[..6].to_vec()
    };
    assert_eq!((head(good), head(bad)), (vec![0; 6], b"BROKEN".to_vec()), "{result}");
    let changes = result["changes"].as_array().unwrap();
    assert_eq!(
        (changes.len(), &changes[0]["offset"], &changes[0]["len"]),
        (1, &0.into(), &6.into()),
        "{result}"
    );
}

/// The one write among hundreds that broke it, with few probes, with and without a server.
#[test]
fn the_write_that_broke_it_is_found() {
    let home = Home::new();
    let served = history(&home, 137);
    let judge = judge(&home);
    let bisect = ["bisect", "disk", "--good", "begin", "--", &judge];
    let with_json = [&bisect[..2], &["--json"], &bisect[2..]].concat();
    let run = || {
        let ran = home.run(&with_json);
        assert_eq!(ran.code, 0, "{ran:?}");
        found(&home, &serde_json::from_str(&ran.out).unwrap());
    };
    run();
    // Two ends, 19 markers, 10 writes.
    assert!(asked(&home) <= 2 + 5 + 4, "{} probes", asked(&home));
    served.stop();
    run();
}

/// It was a rollback that brought the damage back: named as such, with what was written before and after in place.
#[test]
fn a_rollback_that_broke_it_is_found() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "16M", "--marker-interval", "0s"]);
    let served = home.serve(&[]);
    let write = |text: &[u8], name: &str| {
        put(&mut served.connect("disk").unwrap(), 0, text).unwrap();
        home.json(&["mark", "disk", name]);
    };
    write(b"BROKEN", "broken");
    write(b"mended", "mended");
    home.json(&["rollback", "disk@broken"]);
    home.json(&["resume", "disk"]);
    put(&mut served.connect("disk").unwrap(), 8192, b"more").unwrap();
    let judge = judge(&home);
    let ran = home.run(&["bisect", "disk", "--json", "--good", "mended", "--", &judge]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    let changes = result["changes"].as_array().unwrap();
    assert_eq!(
        (changes.len(), &changes[0]["kind"], &changes[0]["len"]),
        (1, &"rollback".into(), &0.into()),
        "{result}"
    );
}

/// Four at a time find the same.
#[test]
fn many_probes_at_a_time_find_the_same() {
    let home = Home::new();
    let _served = history(&home, 42);
    let judge = judge(&home);
    let ran =
        home.run(&["bisect", "disk", "--json", "--good", "begin", "--bad", "m200", "-j", "4", "--", &judge]);
    assert_eq!(ran.code, 0, "{ran:?}");
    found(&home, &serde_json::from_str(&ran.out).unwrap());
}

/// Hours of probes are not lost when somebody stops the search, and it is not begun twice by mistake.
#[test]
fn a_stopped_search_goes_on_where_it_was() {
    let home = Home::new();
    let _served = history(&home, 99);
    let judge = judge(&home);
    // The fifth probe ends it.
    let body = format!(
        "[ $(cat {}/asked 2>/dev/null | wc -l) -ge 4 ] && [ ! -e {0}/go ] && exit 200; exec {judge}",
        home.dir.display()
    );
    let stopping = script(&home, "stopping", &body);
    let begin = ["bisect", "disk", "--good", "begin", "--", &stopping];
    assert_eq!(home.run(&begin).code, 1);
    assert_eq!(asked(&home), 4);
    assert_eq!(home.run(&begin).code, 4, "a search is under way");
    std::fs::write(home.path("go"), "").unwrap();
    found(&home, &home.json(&["bisect", "disk", "--continue"]));
    assert!(asked(&home) <= 2 + 5 + 4, "asked again what was known: {}", asked(&home));
    assert_eq!(home.run(&["bisect", "disk", "--continue"]).code, 5, "it is over");
    assert_eq!(home.run(&["bisect", "disk", "--reset"]).code, 0);
}

/// A program that cannot judge, or judges the ends otherwise than it was told, is noticed before anything else.
#[test]
fn a_search_that_makes_no_sense_is_refused() {
    let home = Home::new();
    let _served = history(&home, 5);
    let run = |arguments: &[&str]| home.run(&[&["bisect", "disk"], arguments].concat());
    for (arguments, code, word) in [
        (&["--good", "begin", "--", "false"][..], 2, "bad of lsn"),
        (&["--good", "begin", "--", "true"], 2, "good of lsn"),
        (&["--good", "begin", "--", "sh", "-c", "exit 125"], 2, "skip of lsn"),
        (&["--good", "begin", "--", "sh", "-c", "exit 130"], 1, "130"),
        (&["--good", "begin", "--", "/no/such/program"], 5, "no program"),
        (&["--good", "m200", "--bad", "begin", "--", "true"], 2, "not older"),
        (&["--good", "nope", "--", "true"], 5, "nope"),
        (&["--good", "begin"], 2, "no program"),
        (&["--", "true"], 2, "--good"),
    ] {
        let ran = run(arguments);
        assert!(ran.code == code && ran.err.contains(word), "{arguments:?}: {ran:?}");
    }
    assert!(home.run(&["bisect", "disk", "--continue"]).code == 5, "nothing is left of what made no sense");
    // Nothing on the disk tells the states apart: said, not guessed.
    let odd = script(&home, "odd", "[ $CDP_POINT = lsn:1 ] || [ ${CDP_POINT#lsn:} -lt 3 ]");
    let ran = run(&["--good", "lsn:1", "--bad", "begin", "--no-check", "--", &odd]);
    assert!(ran.code == 2, "{ran:?}");
}

/// States that cannot be judged: what is left is said, with another exit code.
#[test]
fn what_cannot_be_judged_is_narrowed_down() {
    let home = Home::new();
    let _served = history(&home, 55);
    let judge = judge(&home);
    let m50 = home.json(&["log", "disk", "--records", "--around", "m50", "--count", "1"]);
    let around =
        m50[0]["records"].as_array().unwrap().iter().map(|r| r["lsn"].as_u64().unwrap()).max().unwrap();
    // From m50 on nothing for a while can be judged.
    let body = format!(
        "n=${{CDP_POINT#lsn:}}; [ $n -gt {around} ] && [ $n -lt {} ] && exit 125; exec {judge}",
        around + 30
    );
    let skips = script(&home, "skips", &body);
    let ran = home.run(&["bisect", "disk", "--json", "--good", "begin", "--", &skips]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let result: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(result["exact"], false);
    let (good, bad) =
        (result["last_good"]["lsn"].as_u64().unwrap(), result["first_bad"]["lsn"].as_u64().unwrap());
    assert!(good <= around && bad >= around + 29 && bad < around + 40, "{good} {bad} around {around}");
}
