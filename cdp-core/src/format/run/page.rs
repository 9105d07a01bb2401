//! The pages behind the region: rows, and a checksum that knows its place.

use super::damaged;
use super::rows::{Row, u32_at};
use crate::error::Result;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Rows of a page lie within its first so many bytes.
pub const PAGE_ROWS_BYTES: usize = 4072;
/// Where the checksum stands.
pub(super) const CRC_AT: usize = PAGE_BYTES - 4;

/// A page's bytes.
pub type Page = [u8; PAGE_BYTES];

/// How many pages so many rows take.
pub fn pages_of<R: Row>(rows: u64) -> u64 {
    rows.div_ceil(R::PER_PAGE as u64)
}

/// Puts the checksum on a page behind the region.
pub fn seal_page(page: &mut Page, run_id: u64, number: u64) {
    let crc = page_crc(page, run_id, number);
    page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a page behind the region.
pub fn check_page(page: &Page, run_id: u64, number: u64) -> Result<()> {
    if u32_at(page, CRC_AT) != page_crc(page, run_id, number) {
        return Err(damaged(&format!("page {number} does not fit its checksum")));
    }
    Ok(())
}

fn page_crc(page: &Page, run_id: u64, number: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&run_id.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&page[..CRC_AT]);
    hasher.finalize()
}

/// The row in this slot of a page; `slot` is below `R::PER_PAGE`.
pub fn row_of<R: Row>(page: &Page, slot: usize) -> R {
    R::decode(&page[slot * R::BYTES..(slot + 1) * R::BYTES])
}
