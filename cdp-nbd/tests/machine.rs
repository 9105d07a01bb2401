//! The machines alone: however the bytes are cut, and whatever they are.

#![allow(missing_docs)]

mod support;

use std::sync::Arc;

use cdp_nbd::machine::Machine;
use cdp_nbd::proto::{RequestHeader, command, command_flag, option};
use proptest::prelude::*;
use support::client::{info_data, meta_data};
use support::{MemoryDevice, MemoryExports};

const SIZE: u64 = 1 << 20;

fn machine(out: &mut Vec<u8>) -> (Machine, Arc<MemoryDevice>) {
    let device = Arc::new(MemoryDevice::new(SIZE));
    let exports = MemoryExports::new(vec![("disk", Arc::clone(&device))]);
    (Machine::new(Arc::new(exports), out), device)
}

fn put_option(out: &mut Vec<u8>, number: u32, data: &[u8]) {
    out.extend(b"IHAVEOPT");
    out.extend(number.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// How a client enters: which options it asks for before GO.
fn entry(form: u8) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    put_option(&mut bytes, option::LIST, &[]);
    put_option(&mut bytes, 999, &[1; 300]);
    if form >= 1 {
        let number = if form == 1 { option::STRUCTURED_REPLY } else { option::EXTENDED_HEADERS };
        put_option(&mut bytes, number, &[]);
        put_option(&mut bytes, option::SET_META_CONTEXT, &meta_data("disk", &["base:allocation"]));
    }
    put_option(&mut bytes, option::GO, &info_data("disk", &[3]));
    bytes
}

fn request(form: u8, cookie: u64, flags: u16, command: u16, offset: u64, len: u64) -> Vec<u8> {
    let extended = form == 2;
    let write = command == command::WRITE;
    let flags = if write && extended { flags | command_flag::PAYLOAD_LEN } else { flags };
    let mut bytes = RequestHeader { flags, command, cookie, offset, len }.encode(extended);
    if write {
        bytes.extend((0..len).map(|i| (i + cookie) as u8));
    }
    bytes
}

/// Replies by cookie: rounds may answer in another order.
fn sorted(out: &[u8], form: u8) -> Vec<Vec<u8>> {
    if form == 0 {
        // Simple replies without reads: 16 bytes each.
        let mut replies: Vec<Vec<u8>> = out.chunks(16).map(<[u8]>::to_vec).collect();
        replies.sort_by_key(|reply| reply[8..16].to_vec());
        return replies;
    }
    let mut replies = Vec::new();
    let mut rest = out;
    while !rest.is_empty() {
        let len = match rest[..4] {
            [0x67, ..] => 16,
            [0x66, ..] => 20 + u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize,
            _ => 32 + u64::from_be_bytes(rest[24..32].try_into().unwrap()) as usize,
        };
        replies.push(rest[..len].to_vec());
        rest = &rest[len..];
    }
    replies.sort_by_key(|reply| reply[8..16].to_vec());
    replies
}

fn run(pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>, bool) {
    let mut out = Vec::new();
    let (mut machine, device) = machine(&mut out);
    let open = pieces.iter().fold(true, |_, piece| machine.feed(piece, &mut out));
    (out, device.contents(0, SIZE as usize), open)
}

fn any_change() -> impl Strategy<Value = (u16, u16, u64, u64)> {
    let commands = prop_oneof![
        4 => Just(command::WRITE),
        1 => Just(command::TRIM),
        1 => Just(command::WRITE_ZEROES),
        1 => Just(command::CACHE),
        1 => Just(99)
    ];
    let flags = prop_oneof![4 => Just(0), 1 => Just(command_flag::FUA), 1 => Just(command_flag::NO_HOLE)];
    (flags, commands, 0..SIZE + 9000, prop_oneof![0..600u64, Just(4096), 4000..20_000u64])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// TCP cuts where it likes: a client must see the same disk and the same replies.
    #[test]
    fn any_cut_gives_the_same_disk_and_the_same_replies(
        form in 0..3u8,
        changes in prop::collection::vec(any_change(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut bytes = entry(form);
        let entered = run(&[&bytes]).0.len();
        for (cookie, (flags, command, offset, len)) in changes.iter().enumerate() {
            bytes.extend(request(form, cookie as u64, *flags, *command, *offset, *len));
        }
        if form > 0 {
            bytes.extend(request(form, 1000, 0, command::READ, 100, 300_000));
            bytes.extend(request(form, 1001, 0, command::BLOCK_STATUS, 0, SIZE));
        }
        let (out, disk, open) = run(&[&bytes]);
        prop_assert!(open);
        let mut positions: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        positions.sort_unstable();
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for (index, position) in positions.iter().enumerate() {
            let before = if index == 0 { 0 } else { positions[index - 1] };
            let (piece, tail) = rest.split_at(position - before);
            pieces.push(piece);
            rest = tail;
        }
        pieces.push(rest);
        let (cut_out, cut_disk, _) = run(&pieces);
        prop_assert!(cut_disk == disk);
        prop_assert_eq!(sorted(&cut_out[entered..], form), sorted(&out[entered..], form));
    }

    /// Whatever comes, the machine neither panics nor loops, nor answers with more than was asked for.
    #[test]
    fn garbage_is_harmless(form in 0..4u8, garbage in prop::collection::vec(any::<u8>(), 0..300), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
        let mut bytes = if form == 3 { Vec::new() } else { entry(form) };
        for (index, flip) in flips {
            if !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] ^= flip;
            }
        }
        for command in 0..9 {
            bytes.extend(request(form.min(2), 7, 0, command, 512, 4096));
            bytes.extend(&garbage);
        }
        let (out, _, _) = run(&[&bytes]);
        prop_assert!(out.len() < 64 << 20);
    }
}

#[test]
fn byte_by_byte_is_the_same_as_at_once() {
    for form in 0..3 {
        let mut bytes = entry(form);
        let entered = run(&[&bytes]).0.len();
        for cookie in 0..20 {
            bytes.extend(request(form, cookie, 0, command::WRITE, cookie * 700, 1000));
            bytes.extend(request(form, 100 + cookie, command_flag::FUA, command::TRIM, cookie * 5000, 4096));
            bytes.extend(request(form, 200 + cookie, 0, 77, 0, 0));
        }
        let at_once = run(&[&bytes]);
        let singly: Vec<&[u8]> = bytes.chunks(1).collect();
        let byte_by_byte = run(&singly);
        assert!(at_once.1 == byte_by_byte.1 && at_once.2 && byte_by_byte.2);
        assert_eq!(sorted(&at_once.0[entered..], form), sorted(&byte_by_byte.0[entered..], form));
    }
}

#[test]
fn what_arrives_in_part_is_never_applied() {
    for form in 0..3 {
        let mut bytes = entry(form);
        bytes.extend(request(form, 1, 0, command::WRITE, 0, 5000));
        let (_, disk, _) = run(&[&bytes[..bytes.len() - 1]]);
        assert!(disk.iter().all(|byte| *byte == 0));
        let (_, disk, _) = run(&[&bytes]);
        assert!(disk.iter().any(|byte| *byte != 0));
    }
}
