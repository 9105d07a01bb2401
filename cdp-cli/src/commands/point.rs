//! What a point resolved to, in a line: instant, LSN, distance to the nearest marker.

use cdp_core::history::point::format_duration;

use crate::report;
use crate::work::PointInfo;

/// The line.
pub fn line(point: &PointInfo) -> String {
    let near = match &point.nearest_marker {
        None => "no marker yet".to_owned(),
        Some(marker) => {
            let name =
                marker.name.as_ref().map_or("a periodic marker".to_owned(), |name| format!("marker {name}"));
            match marker.records {
                0 => format!("at {name}"),
                records => {
                    let side = if records > 0 { "after" } else { "before" };
                    let plural = if records.abs() == 1 { "record" } else { "records" };
                    let distance = format_duration(marker.distance_ns.unsigned_abs());
                    format!("{} {plural} ({distance}) {side} {name}", records.abs())
                }
            }
        }
    };
    format!("{}@{} is {} (lsn:{}), {near}", point.volume, point.asked, point.utc, point.lsn)
}

/// Says it, for each point.
pub fn tell<'a>(points: impl IntoIterator<Item = &'a PointInfo>) {
    for point in points {
        report::say(&line(point));
    }
}
