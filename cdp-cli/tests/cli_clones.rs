//! `disk@POINT+rw:NAME`: whoever prepares a disk with one tool and boots it with another must meet the same disk, and
//! nobody else's writes; and a forgotten clone must not eat the filesystem.

mod cli;

use cli::{Home, connect, get, put, wait_until};

const CLONE: &str = "disk@v1+rw:try";

#[test]
fn a_shared_clone_is_one_disk_until_it_is_closed() {
    let home = Home::new();
    std::fs::create_dir_all(home.path(".config/cdp")).unwrap();
    std::fs::write(home.path(".config/cdp/config.toml"), "clone_cap = \"256K\"\n").unwrap();
    home.json(&["create", "disk", "--size", "16M"]);
    let served = home.serve(&[]);
    let open = |export: &str| served.connect(export).unwrap_or_else(|error| panic!("{export}: {error}"));
    put(&mut open("disk"), 0, b"old").unwrap();
    home.json(&["mark", "disk", "v1"]);
    put(&mut open("disk"), 0, b"new").unwrap();

    let (mut one, mut two) = (open(CLONE), open(CLONE));
    put(&mut one, 0, b"own").unwrap();
    assert_eq!(get(&mut two, 0, 3).unwrap(), b"own", "what one wrote the other sees at once");
    put(&mut two, 8192, b"more").unwrap();
    assert_eq!(get(&mut one, 8192, 4).unwrap(), b"more");
    assert_eq!(get(&mut open("disk@v1+rw"), 0, 3).unwrap(), b"old", "a private one is another");
    assert_eq!(get(&mut open("disk@v1+rw:other"), 0, 3).unwrap(), b"old", "so is one of another name");
    assert_eq!(get(&mut open("disk@v1"), 0, 3).unwrap(), b"old");
    assert_eq!(get(&mut open("disk"), 0, 3).unwrap(), b"new");

    // What looks at a state must not answer for the state when it was asked about the clone.
    for arguments in [
        &["ls", CLONE][..],
        &["cat", "disk@v1+rw:try:/x"],
        &["cp", "disk@v1+rw:try:/x", "."],
        &["log", CLONE],
        &["log", "disk", "--around", "v1+rw:try"],
        &["log", CLONE, "--records"],
        &["mount", CLONE, "there"],
        &["prove", CLONE, "--", "true"],
        &["diff", CLONE],
        &["diff", "disk@v1", CLONE, "--files"],
        &["restore", CLONE, "x.img"],
        &["restore", CLONE, "x.img", "--follow"],
        &["rollback", CLONE],
        &["clone", CLONE, "copy"],
    ] {
        let refused = home.run(arguments);
        let is_told = refused.err.contains("clone") || refused.err.contains("+rw");
        assert!(refused.code == 2 && is_told, "{arguments:?}: {refused:?}");
    }

    // The cap is the clone's, whoever writes.
    assert!(put(&mut one, 1 << 20, &[1; 248 << 10]).is_ok());
    assert!(put(&mut two, 4 << 20, &[1; 4096]).is_err(), "the cap is 256 KiB");
    assert!(put(&mut two, 1 << 20, &[2; 4096]).is_ok(), "what it holds can be written again");

    let clones = || home.json(&["status"])["server"]["clones"].as_array().unwrap().clone();
    let mine = || clones().into_iter().find(|clone| clone["name"] == "try");
    let shown = mine().unwrap();
    assert_eq!((shown["connections"].as_u64(), shown["cap_bytes"].as_u64()), (Some(2), Some(256 << 10)));
    assert_eq!(shown["used_bytes"].as_u64(), Some(256 << 10));
    assert!(home.run(&["status"]).out.contains("+rw:try: shared throw-away clone, 256 KiB of 256 KiB used"));
    let refused = home.run(&["close", "disk+rw:try"]);
    assert_eq!(refused.code, 4, "{refused:?}");

    // Tools come and go: it stays while nobody has it open.
    drop((one, two));
    wait_until("the connections are gone", || mine().unwrap()["connections"] == 0);
    assert_eq!(get(&mut open(CLONE), 0, 3).unwrap(), b"own");
    let other = served.connect("disk@latest+rw:try").err().map(|error| error.to_string()).unwrap_or_default();
    assert!(
        other.contains("the shared clone `try`"),
        "of another state, and other words than those: {other}"
    );
    assert!(served.connect("disk@start+rw:fresh").is_ok());
    assert!(served.connect("disk@before:v1+rw:try").is_err(), "of another state, and so not what is meant");
    assert_eq!(get(&mut open(shown["export"].as_str().unwrap()), 0, 3).unwrap(), b"own");

    let mut held = open(CLONE);
    let closed = home.json(&["close", "disk@v1+rw:try", "--force"]);
    assert_eq!(closed["name"], "try");
    assert!(get(&mut held, 0, 3).is_err(), "the connection has been ended");
    assert!(mine().is_none());
    assert_eq!(home.run(&["close", "disk+rw:try"]).code, 5);
    assert_eq!(get(&mut open(CLONE), 0, 3).unwrap(), b"old", "a new one begins anew");

    // Deleting the volume takes its clones along, and the server's end all of them.
    let socket = served.socket();
    home.json(&["delete", "disk", "--yes", "--force"]);
    assert_eq!(clones().len(), 0);
    assert!(connect(&socket, CLONE).is_err());
    home.json(&["undelete", "disk"]);
    assert_eq!(get(&mut open(CLONE), 0, 3).unwrap(), b"old");
    served.stop();
    assert_eq!(home.run(&["close", "disk+rw:try"]).code, 5);
}
