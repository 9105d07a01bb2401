//! Going through a state from its front: what is data, and what need not be looked at.

use cdp_core::device::{Content, Device, Stretch};
use cdp_core::error::Result;
use cdp_core::view::View;

/// What stands at this byte, which is before the end: data for at most `data_max` bytes, zeros as far as they go. To ask
/// how far data goes would be to look at all of it, and again at the next byte that is asked about.
pub(crate) fn stretch_at(view: &View, at: u64, data_max: u64) -> Result<Stretch> {
    let left = view.size_bytes() - at;
    let near = view.extents(at, left.min(data_max), 1)?[0];
    if near.content == Content::Data || near.len < left.min(data_max) {
        return Ok(near);
    }
    Ok(view.extents(at, left, 1)?[0])
}
