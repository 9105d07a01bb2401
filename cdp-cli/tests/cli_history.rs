//! The versions of a file on the real binary: each is shown once, from the first marker that has it.

mod cli;

use std::io::Write;

use cli::*;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

fn write(served: &Served, name: &str, text: &str) {
    let fs = FileSystem::new(served.connect("disk").unwrap(), FsOptions::new()).unwrap();
    let mut file = fs.root_dir().create_file(name).unwrap();
    file.truncate().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.flush().unwrap();
    drop(file);
    fs.unmount().unwrap();
}

/// Which version of the file is the one before somebody spoiled it? It is seen at a glance, with the hash to be sure
/// and a point to copy.
#[test]
fn every_version_is_shown_with_its_first_marker() {
    let home = Home::new();
    home.json(&["create", "disk", "--size", "16M", "--marker-interval", "0s"]);
    let served = home.serve(&[]);
    home.json(&["mark", "disk", "blank"]);
    let mut disk = served.connect("disk").unwrap();
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new()).unwrap();
    drop(disk);
    home.json(&["mark", "disk", "formatted"]);
    let mut number = 0;
    let mut mark = |times: usize| {
        for _ in 0..times {
            number += 1;
            write(&served, "other", &format!("something else {number}"));
            home.json(&["mark", "disk", &format!("m{number}")]);
        }
    };
    for text in ["one", "two!", "three, and longer"] {
        write(&served, "letter", text);
        mark(5);
    }
    let fs = FileSystem::new(served.connect("disk").unwrap(), FsOptions::new()).unwrap();
    fs.root_dir().remove("letter").unwrap();
    fs.unmount().unwrap();
    mark(5);

    let check = |arguments: &[&str]| {
        let history = home.json(&[&["history", "disk:/letter"], arguments].concat());
        let versions = history["versions"].as_array().unwrap();
        let told: Vec<_> = versions
            .iter()
            .map(|version| {
                let bytes = version["entry"]["bytes"].as_u64();
                (version["state"].as_str().unwrap(), version["marker"].as_str().unwrap_or(""), bytes)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("unreadable", "", None),
                ("absent", "formatted", None),
                ("file", "m1", Some(3)),
                ("file", "m6", Some(4)),
                ("file", "m11", Some(17)),
                ("absent", "m16", None),
            ],
            "{history}"
        );
        let hash = blake3::hash(b"two!").to_hex().to_string();
        assert_eq!(versions[3]["blake3"], hash.as_str());
        let point = versions[3]["first"]["export"].as_str().unwrap();
        assert_eq!(home.run(&["cat", &format!("{point}:/letter")]).out, "two!");
    };
    check(&[]);
    check(&["--every"]);
    served.stop();
    check(&[]);
    let since = home.json(&["history", "disk:/letter", "--since", "m7", "--until", "m12"]);
    assert_eq!(since["versions"].as_array().unwrap().len(), 2);
    let people = home.run(&["history", "disk:/letter"]);
    assert!(people.code == 0 && people.out.contains("m6") && people.out.contains("not there"), "{people:?}");
    assert_eq!(home.run(&["history", "disk:/never"]).code, 5);
    // What happened to the files between two points, from the same disk.
    let files = home.json(&["diff", "disk@m6", "disk@m11", "--files"]);
    let told: Vec<_> = files[0]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["path"].as_str().unwrap(), f["happened"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("/letter", "changed"), ("/other", "changed")], "{files}");
    let text = home.run(&["diff", "disk", "m15", "m16", "--files"]).out;
    assert!(text.contains("- /letter") && text.contains("1 removed"), "{text}");
    assert_eq!(home.run(&["diff", "disk", "blank", "m16", "--files"]).code, 2, "no filesystem at the first");
    assert_eq!(home.run(&["history", "disk@m1:/letter"]).code, 2);
}
