//! What programs said of states of the past.

use cdp_core::error::Result;
use cdp_core::history::point::format_utc;
use cdp_core::ids::Lsn;
use cdp_core::store::Store;
use cdp_core::volume::proofs::Proof;
use serde::{Deserialize, Serialize};

use super::points::Place;

/// What to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepProof {
    /// Which volume.
    pub volume: String,
    /// The state after this record.
    pub lsn: u64,
    /// All is well; else it is not.
    pub good: bool,
    /// The program with its arguments.
    pub program: String,
}

/// A proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofLine {
    /// Of which state.
    #[serde(flatten)]
    pub place: Place,
    /// All is well; else it is not.
    pub good: bool,
    /// When the program said so, RFC 3339 in UTC.
    pub proved: String,
    /// Which program.
    pub program: String,
}

impl ProofLine {
    /// Of a proof.
    pub fn of(proof: &Proof) -> ProofLine {
        ProofLine {
            place: Place::new(proof.lsn, proof.at),
            good: proof.good,
            proved: format_utc(proof.proved),
            program: proof.program.clone(),
        }
    }
}

/// Keeps it.
pub fn keep(store: &Store, request: &KeepProof) -> Result<ProofLine> {
    let volume = store.volume(&request.volume)?;
    let proof = volume.keep_proof(Lsn(request.lsn), request.good, &request.program)?;
    Ok(ProofLine::of(&proof))
}
