//! Serves a disk in memory, to try stock clients by hand: `memory SOCKET SIZE_MIB [ADDR:PORT]`, or
//! `memory --stdio SIZE_MIB`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdp_nbd::{Options, Server};
use support::{MemoryDevice, MemoryExports};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, size, address @ ..] = &arguments[..] else {
        return Err("usage: memory SOCKET|--stdio SIZE_MIB [ADDR:PORT]".into());
    };
    let size = size.parse::<u64>()? << 20;
    let exports = MemoryExports::new(vec![
        ("disk", Arc::new(MemoryDevice::new(size))),
        ("past", Arc::new(MemoryDevice::read_only(size))),
    ]);
    let server = Server::start(Arc::new(exports), Options::default());
    if socket == "--stdio" {
        return Ok(server.serve_stdio()?);
    }
    server.listen_unix(Path::new(socket))?;
    if let [address, ..] = address {
        println!("{}", server.listen_tcp(address.parse()?)?);
    }
    // Until standard input is closed.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:?}", server.clients());
    println!("{:?}", server.latencies());
    server.shutdown(Duration::from_secs(5));
    Ok(())
}
