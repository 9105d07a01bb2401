//! Groups on the real binary: one instant for all members, and one command for all of them.

mod cli;

use cli::*;

/// A database on two volumes: marks, restores and relative points are one instant for both.
#[test]
fn a_group_is_one_instant() {
    let home = Home::new();
    for name in ["data", "wal", "other"] {
        home.json(&["create", name, "--size", "64M"]);
    }
    home.json(&["group", "create", "db", "data"]);
    home.json(&["group", "add", "db", "wal"]);
    assert_eq!(home.json(&["group", "list"])[0]["members"], serde_json::json!(["data", "wal"]));
    let served = home.serve(&[]);
    let mut data = served.connect("data").unwrap();
    let mut wal = served.connect("wal").unwrap();
    put(&mut wal, 0, b"1").unwrap();
    put(&mut data, 0, b"1").unwrap();
    let marked = home.json(&["mark", "db", "one"]);
    assert_eq!(marked.as_array().unwrap().len(), 2);
    put(&mut wal, 0, b"2").unwrap();
    for (point, wal_byte, data_byte) in
        [("one", b'1', b'1'), ("latest", b'2', b'1'), ("before:one", b'1', b'1'), ("start", 0, 0)]
    {
        let target = format!("db@{point}");
        let restored = home.json(&["restore", &target, "out", "--force"]);
        assert_eq!(restored[0]["point"]["ns"], restored[1]["point"]["ns"], "{point}");
        let byte = |name: &str| std::fs::read(home.path("out").join(name)).unwrap()[0];
        assert_eq!((byte("wal.img"), byte("data.img")), (wal_byte, data_byte), "{point}");
    }
    assert_eq!(home.run(&["restore", "db@lsn:1", "out", "--force"]).code, 2);
    // A marker that only one member has, or that they got one after the other, is no marker of the group.
    home.json(&["mark", "data", "alone"]);
    let refused = home.run(&["restore", "db@alone", "out", "--force"]);
    assert!(refused.code == 5 && refused.err.contains("wal, a member of the group"), "{refused:?}");
    put(&mut data, 4096, b"x").unwrap();
    home.json(&["mark", "wal", "alone"]);
    assert_eq!(home.run(&["restore", "db@alone", "out", "--force"]).code, 2);

    // What is about one volume says that this is none; and a group is no road without an end.
    for arguments in [&["delete", "db", "--yes"][..], &["grow", "db", "128M"]] {
        let refused = home.run(arguments);
        let is_told =
            refused.err.contains("db is a group of data, wal") && refused.err.contains("say one of them");
        assert!(refused.code == 5 && is_told, "{arguments:?}: {refused:?}");
    }
    home.json(&["group", "add", "db", "other"]);
    home.json(&["group", "create", "second", "other"]);
    let refused = home.run(&["delete", "other", "--yes"]);
    assert!(refused.code == 4 && refused.err.contains("cdp group remove db other"), "{refused:?}");
    let deleted = home.json(&["delete", "other", "--yes", "--force"]);
    assert_eq!(deleted["why"], "taken out of the group db, second");
    assert_eq!(home.json(&["mark", "db", "after"]).as_array().unwrap().len(), 2);
    assert_eq!(home.run(&["group", "remove", "db", "data", "other"]).code, 5, "not a member");
    let left = home.json(&["group", "remove", "db", "data"]);
    assert_eq!(left[0]["members"], serde_json::json!(["wal"]));
    assert_eq!(home.run(&["group", "delete", "db"]).code, 0);
    assert_eq!(home.json(&["group", "list"]), serde_json::json!([]));
    assert_eq!(home.run(&["group", "delete", "db"]).code, 5);
    drop((data, wal));
    served.stop();
    assert_eq!(home.json(&["group", "list"]), serde_json::json!([]));
}

/// Whoever keeps a database on two volumes does not want to type everything twice, and above all not once.
#[test]
fn what_is_asked_of_a_group_is_asked_of_its_members() {
    let home = Home::new();
    for name in ["data", "wal", "other"] {
        home.json(&["create", name, "--size", "64M"]);
    }
    home.json(&["group", "create", "db", "data", "wal"]);
    for served in [false, true] {
        let server = served.then(|| home.serve(&[]));
        let named = |answer: &serde_json::Value, key: &str| {
            let lines = answer.as_array().unwrap().iter();
            lines.map(|line| line[key].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(named(&home.json(&["status", "db"])["volumes"], "name"), ["data", "wal"]);
        assert_eq!(named(&home.json(&["verify", "db"]), "volume"), ["data", "wal"]);
        let policy = if served {
            "every-write 12h, at cap thin"
        } else {
            "every-write 1d, at most 20GiB, at cap thin"
        };
        assert_eq!(named(&home.json(&["retention", "set", "db", policy]), "volume"), ["data", "wal"]);
        let in_full = policy.replacen(',', ", named until removed,", 1);
        for shown in [home.json(&["retention", "show", "db"]), home.json(&["retention", "simulate", "db"])] {
            assert_eq!(named(&shown, "policy"), [in_full.clone(), in_full.clone()], "{shown}");
        }
        assert_eq!(
            home.json(&["retention", "show", "other"])["policy"],
            "every-write forever, named until removed, at cap block"
        );
        // All or none: what one of them cannot keep none of them gets.
        let refused = home.run(&["retention", "set", "db", "at most 1MiB"]);
        assert!(refused.code == 2 && refused.err.contains("data, a member of the group"), "{refused:?}");
        assert_eq!(
            named(&home.json(&["retention", "show", "db"]), "policy"),
            [in_full.clone(), in_full.clone()]
        );

        // A name goes wherever it is; where it is nowhere, that is said.
        home.json(&["mark", "db", "both"]);
        home.json(&["mark", "wal", "alone"]);
        assert_eq!(named(&home.json(&["unmark", "db", "both"]), "volume"), ["data", "wal"]);
        assert_eq!(named(&home.json(&["unmark", "db", "alone"]), "volume"), ["wal"]);
        let nowhere = home.run(&["unmark", "db", "alone"]);
        assert!(nowhere.code == 5 && nowhere.err.contains("no member of the group \"db\""), "{nowhere:?}");
        assert!(
            home.json(&["mark", "data", "one"]).is_array()
                && home.json(&["unmark", "data", "one"]).is_object()
        );
        if let Some(server) = server {
            server.stop();
        }
    }
    // One that cannot be opened is in the answer, and is no reason to say nothing of the others.
    let manifest = home.store().join("volumes/wal/volume");
    std::fs::write(&manifest, b"no manifest").unwrap();
    let status = home.run(&["status", "db"]);
    let told = status.out.contains("volume wal cannot be opened") && status.out.contains("data");
    assert!(status.code == 3 && told, "{status:?}");
    let verified = home.run(&["verify", "db"]);
    assert!(
        verified.code == 3 && verified.out.contains("data: good") && verified.out.contains("wal: DAMAGED")
    );
}
