//! Copying a state to where most of it is already: PROTOCOL.md, "Reseed". The sender tells what ranges hash to, the receiver
//! takes those that fit from what stands there and is sent the blocks of the others.

pub(crate) mod taker;
pub(crate) mod teller;
