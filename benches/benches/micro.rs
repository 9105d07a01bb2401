//! What one 4-KiB block costs in the steps that every write or read goes through.

use std::hint::black_box;

use cdp_core::format::record::block_crcs;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BLOCK: usize = 4096;
/// Larger than the caches, so that a block is met cold as in real traffic.
const COLD_BYTES: usize = 256 << 20;

fn block_steps(criterion: &mut Criterion) {
    let cold: Vec<u8> = (0..COLD_BYTES).map(|index| ((index * 31) >> 3) as u8).collect();
    let mut target = vec![0u8; COLD_BYTES];
    let mut at = 0;
    // A prime number of blocks ahead each time: neither the prefetcher nor the cache knows it.
    let mut next = move || {
        at = (at + 7919 * BLOCK) % (COLD_BYTES - BLOCK) / BLOCK * BLOCK;
        at..at + BLOCK
    };

    let mut group = criterion.benchmark_group("block-4k");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    group.bench_function("crc32-warm", |b| b.iter(|| crc32fast::hash(black_box(&cold[..BLOCK]))));
    group.bench_function("crc32-cold", |b| b.iter(|| crc32fast::hash(black_box(&cold[next()]))));
    group.bench_function("copy-warm", |b| {
        b.iter(|| target[..BLOCK].copy_from_slice(black_box(&cold[..BLOCK])))
    });
    group.bench_function("copy-cold", |b| {
        b.iter(|| {
            let range = next();
            target[range.clone()].copy_from_slice(black_box(&cold[range]));
        });
    });
    // The journal's own, as an append calls it.
    let mut crcs = Vec::new();
    group.bench_function("block-crcs-cold", |b| {
        b.iter(|| {
            crcs.clear();
            block_crcs(black_box(&cold[next()]), &mut crcs);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(1)).warm_up_time(std::time::Duration::from_millis(300));
    targets = block_steps
}
criterion_main!(benches);
