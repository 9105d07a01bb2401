//! The crash suite: what the product promises after process death, power loss and every fault of a disk, held
//! against a naive model on the simulated disk. Each test prints its counts; each failure its seed.
//!
//! `CDP_SIM_SEED=n` repeats one seed; `CDP_SIM_SECONDS=n` goes on with fresh seeds for so long.

#[macro_use]
mod harness;

mod ages;
mod boundaries;
mod clones;
mod coalesced;
mod copies;
mod faults;
mod group_clones;
mod groups;
mod histories;
mod merges;
mod mix;
mod promotions;
mod proven;
mod regressions;
mod reopened;
mod restart;
mod resyncs;
mod rewind;
mod rights;
mod room;
mod simulates;
mod table;
mod takeovers;
mod thins;
mod threads;
