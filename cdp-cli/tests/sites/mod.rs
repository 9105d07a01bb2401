//! Two sites on the real binary.

#![allow(dead_code)] // each test binary uses its part

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::*;

/// Two homes with certificates of one authority.
pub struct Sites {
    pub a: Home,
    pub b: Home,
}

impl Sites {
    pub fn new() -> Sites {
        Sites::with_rights([&["--primary-only"], &["--replica-only"]])
    }

    /// Either may be the primary.
    pub fn both_ways() -> Sites {
        Sites::with_rights([&[], &[]])
    }

    fn with_rights(rights: [&[&str]; 2]) -> Sites {
        let (a, b) = (Home::new(), Home::new());
        assert_eq!(a.run(&["pki", "init", "authority"]).code, 0);
        for (home, site, rights) in [(&a, "site-a", rights[0]), (&b, "site-b", rights[1])] {
            let to = home.path("pki");
            let issue = ["pki", "issue", "authority", site, "--to", to.to_str().unwrap()];
            let ran = a.run(&[&issue, rights].concat());
            assert_eq!(ran.code, 0, "{ran:?}");
        }
        Sites { a, b }
    }

    pub fn serve_a(&self) -> Served {
        self.a.serve(&["--pki", "pki"])
    }

    pub fn serve_b(&self, address: &str) -> Served {
        let until = Instant::now() + PATIENCE;
        // The port of a server that was killed may be taken for a moment.
        while std::net::TcpListener::bind(address).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.b.serve(&["--pki", "pki", "--replica-listen", address])
    }

    /// Waits until the first replica that is listed has everything; gives its status.
    pub fn caught_up(&self) -> Value {
        let until = Instant::now() + PATIENCE * 2;
        loop {
            let replicas = self.a.json(&["replica", "list"]);
            if replicas[0]["lag_records"] == 0 && replicas[0]["newest"] != Value::Null {
                return replicas[0].clone();
            }
            assert!(Instant::now() < until, "it does not catch up: {replicas}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

pub fn address_of(server: &Served) -> String {
    server.ready["endpoints"]["replica"].as_str().expect("it listens").to_owned()
}
