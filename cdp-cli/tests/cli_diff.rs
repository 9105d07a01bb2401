//! `cdp diff`, offline and through the server: a backup script that gets other extents than were written copies the
//! wrong ones.

mod cli;

use cli::{Home, get, put};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn extents(diff: &Value) -> Vec<(u64, u64)> {
    let extents = diff[0]["extents"].as_array().unwrap();
    extents.iter().map(|e| (e["offset"].as_u64().unwrap(), e["bytes"].as_u64().unwrap())).collect()
}

#[test]
fn what_was_written_between_two_points_is_listed_with_and_without_a_server() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "16M"]);
    home.json(&["create", "other", "--size", "16M"]);
    let server = home.serve(&[]);
    let mut client = server.connect("disk").unwrap();
    put(&mut client, 0, &[1; 8192]).unwrap();
    home.json(&["mark", "disk", "a"]);
    put(&mut client, 4096, &[2; 4096]).unwrap();
    put(&mut client, MIB, &[3; 10]).unwrap();
    put(&mut client, 8192, &[0; 4096]).unwrap();
    home.json(&["mark", "disk", "b"]);
    put(&mut client, 5 * MIB, &[4; 65536]).unwrap();
    assert_eq!(get(&mut client, MIB, 1).unwrap(), [3]);

    let expected = [(4096, 8192), (MIB, 4096)];
    let by_content = [(4096, 4096), (MIB, 4096)];
    let check = |home: &Home| {
        let diff = home.json(&["diff", "disk@a", "disk@b"]);
        assert_eq!(extents(&diff), expected);
        assert_eq!((&diff[0]["extents_count"], &diff[0]["bytes"]), (&json!(2), &json!(12288)));
        assert_eq!((&diff[0]["volume"], &diff[0]["from"]["asked"]), (&json!("disk"), &json!("a")));
        assert_eq!(extents(&home.json(&["diff", "disk", "b", "a"])), expected);
        assert_eq!(extents(&home.json(&["diff", "disk", "a", "b", "--content"])), by_content);
        assert_eq!(extents(&home.json(&["diff", "disk@b"])), [(5 * MIB, 65536)]);
        assert_eq!(extents(&home.json(&["diff", "disk@b", "disk@b"])), []);
        assert_eq!(extents(&home.json(&["diff", "disk@a", "--summary"])), []);
        let ran = home.run(&["diff", "disk", "a", "b"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains("disk@a is ") && ran.err.contains("disk@b is "), "{ran:?}");
        assert!(ran.out.ends_with("2 extents, 12288 bytes (12 KiB)\n"), "{}", ran.out);
        assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
        let summary = home.run(&["diff", "disk", "-1h", "latest", "--summary"]);
        assert_eq!(summary.code, 5, "an hour ago there was no disk: {summary:?}");
        let summary = home.run(&["diff", "disk", "start", "latest", "--summary"]);
        assert_eq!(summary.out.lines().count(), 1, "{}", summary.out);

        let strangers = home.run(&["diff", "disk@a", "other@latest"]);
        assert_eq!(strangers.code, 2, "{strangers:?}");
        assert!(strangers.err.contains("no history in common"), "{strangers:?}");
        assert_eq!(strangers.out, "", "no header of a table that does not come");
        let strangers = home.run(&["diff", "disk@a", "other@latest", "--json"]);
        let error: serde_json::Value = serde_json::from_str(&strangers.out).unwrap();
        assert_eq!(error["error"]["kind"], "invalid", "{strangers:?}");
        assert_eq!(home.run(&["diff", "disk@nowhere", "disk@b"]).code, 5);
        assert_eq!(home.run(&["diff", "disk"]).code, 2);
    };
    check(&home);
    home.json(&["clone", "disk@b", "copy"]);
    let mut copy = server.connect("copy").unwrap();
    put(&mut copy, 9 * MIB, &[5; 4096]).unwrap();
    let both = [(5 * MIB, 65536), (9 * MIB, 4096)];
    assert_eq!(extents(&home.json(&["diff", "copy@latest", "disk@latest"])), both);
    assert_eq!(extents(&home.json(&["diff", "disk@b", "copy@latest", "--content"])), both[1..]);
    server.stop();
    check(&home);
    assert_eq!(extents(&home.json(&["diff", "copy@latest", "disk@latest"])), both);
}

/// More extents than fit into one answer of the server: none may be lost or come twice at the seams.
#[test]
fn many_extents_come_in_pages() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "512M"]);
    let server = home.serve(&[]);
    let mut client = server.connect("disk").unwrap();
    let count = 40_000u64;
    for number in 0..count {
        put(&mut client, number * 3 * 4096, &[5; 4096]).unwrap();
    }
    // One extent over several pages' ends.
    put(&mut client, count * 3 * 4096, &vec![6; 8 << 20]).unwrap();
    let found = extents(&home.json(&["diff", "disk", "start", "latest"]));
    let mut expected: Vec<(u64, u64)> = (0..count).map(|number| (number * 3 * 4096, 4096)).collect();
    expected.push((count * 3 * 4096, 8 << 20));
    assert_eq!(found.len(), expected.len());
    assert!(found == expected);
    server.stop();
}
