//! What happened to the files between two states: nothing that changed may be left out, and nothing else be named.

mod images;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cdp_cli::files::compare::{CompareOptions, Difference, Happened, compare};
use cdp_cli::files::contain::Contained;
use cdp_cli::files::disk::Disk;
use cdp_cli::files::{self, shown, table};

fn open(image: &Path) -> Contained {
    let disk = Disk::new(std::fs::read(image).unwrap());
    let slots = table::read(&disk).unwrap();
    files::open(&disk, table::choose(&slots, None, "disk").unwrap()).unwrap()
}

fn differences(before: &Path, after: &Path, options: CompareOptions) -> Vec<(char, String, String)> {
    let mut found = Vec::new();
    compare(&mut open(before), &mut open(after), &[], options, &mut |difference: Difference| {
        let sign = match difference.happened {
            Happened::Created => '+',
            Happened::Removed => '-',
            Happened::Changed => '~',
        };
        found.push((sign, shown(&difference.path), difference.what.join(" ")));
        Ok(())
    })
    .unwrap();
    found
}

/// After an attack: which files are not what they were? Also the one whose size and time were set back.
#[test]
fn every_file_that_changed_is_named_and_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let before = temp.path().join("before.img");
    std::fs::rename(images::ext4(temp.path(), 32 << 20), &before).unwrap();
    let tree = temp.path().join("tree");
    let at = |name: &str| tree.join(name);

    let letter_time = std::fs::metadata(at("letter")).unwrap().modified().unwrap();
    std::fs::write(at("letter"), "dear reader\n").unwrap();
    std::fs::File::options().write(true).open(at("letter")).unwrap().set_modified(letter_time).unwrap();
    std::fs::write(at("deep/er/note"), "another, longer note\n").unwrap();
    std::fs::remove_file(at("many/file-007")).unwrap();
    std::fs::create_dir(at("new")).unwrap();
    std::fs::write(at("new/thing"), "x").unwrap();
    std::fs::set_permissions(at("many/file-008"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::remove_file(at("link")).unwrap();
    std::os::unix::fs::symlink("elsewhere", at("link")).unwrap();
    std::fs::remove_file(at("away")).unwrap();
    std::fs::write(at("away"), "a file now").unwrap();

    let after = temp.path().join("after.img");
    std::fs::File::create(&after).unwrap().set_len(32 << 20).unwrap();
    let arguments = ["-q", "-d", tree.to_str().unwrap(), after.to_str().unwrap()];
    cdp_cli::host::command::run("mkfs.ext4", arguments).unwrap();

    let found = differences(&before, &after, CompareOptions::default());
    let told: Vec<(char, &str)> = found.iter().map(|(sign, path, _)| (*sign, path.as_str())).collect();
    let expected = [
        ('~', "/away"),
        ('~', "/deep/er/note"),
        ('~', "/link"),
        ('-', "/many/file-007"),
        ('~', "/many/file-008"),
        ('+', "/new"),
        ('+', "/new/thing"),
    ];
    assert_eq!(told, expected);
    assert!(
        found[0].2.starts_with("kind") && found[1].2.starts_with("size") && found[4].2 == "permissions",
        "{found:?}"
    );
    let with_content = CompareOptions { content: true, ..CompareOptions::default() };
    let found = differences(&before, &after, with_content);
    assert!(found.contains(&('~', "/letter".into(), "content".into())) && found.len() == 8, "{found:?}");
    assert_eq!(differences(&before, &before, with_content), []);

    let few = CompareOptions { entries_max: 100, ..CompareOptions::default() };
    let refused = compare(&mut open(&before), &mut open(&after), &[], few, &mut |_| Ok(()));
    assert!(refused.unwrap_err().to_string().contains("more than 100"));
}
