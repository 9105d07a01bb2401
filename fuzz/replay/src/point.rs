//! Export names and points: anybody who can connect may send any text.
//!
//! The first two bytes choose the zone and the moment; the rest is an export name.

use cdp_core::error::Result;
use cdp_core::history::point::{
    MarkerAt, Now, Point, Resolved, Timeline, Zone, closest_names, escape_uri, parse, resolve, split_export,
    validate_marker_name, validate_volume_name,
};
use cdp_core::ids::{Lsn, Timestamp};

const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Pacific/Apia", "Africa/Monrovia"];
/// Moments: the epoch, either side of a change of clocks in Berlin, an ordinary day, the end of time.
const MOMENTS: [u64; 5] =
    [0, 1_774_746_000_000_000_000, 1_792_893_600_000_000_000, 1_763_719_200_000_000_000, u64::MAX];
/// One record of the little history every ten seconds.
const STEP_NS: u64 = 10_000_000_000;
const RECORDS: u64 = 1000;
const HORIZON: u64 = 100;
/// Errors are read by people.
const ERROR_BYTES_MAX: usize = 4000;

/// Runs one input.
pub fn run(data: &[u8]) {
    let [zone, moment, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let zone = Zone::named(ZONES[*zone as usize % ZONES.len()]).unwrap_or_else(|_| Zone::utc());
    let wall = MOMENTS[*moment as usize % MOMENTS.len()];
    let now = Now { wall: Timestamp(wall), zone };

    let (volume, point) = split_export(text);
    let _ = validate_volume_name(volume);
    assert!(escape_uri(text).bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~@:%".contains(&byte)));
    let Some(point) = point else { return };
    match parse(point, &now) {
        Err(error) => readable(&error.to_string()),
        Ok(request) => {
            if request.clone.is_none() {
                let is_marker = matches!(request.point, Point::Marker(_));
                assert_eq!(
                    is_marker,
                    validate_marker_name(point).is_ok(),
                    "a name is a marker and nothing else is"
                );
            }
            resolves(&request.point, &now);
        }
    }
}

/// A resolved point lies in the history, and its absolute name means the same record.
fn resolves(point: &Point, now: &Now) {
    let history = History { begin: now.wall.0.saturating_sub(RECORDS * STEP_NS) };
    let Resolved { lsn, absolute_name, .. } = match resolve(point, &history, now) {
        Ok(resolved) => resolved,
        Err(error) => return readable(&error.to_string()),
    };
    assert!((HORIZON..=RECORDS).contains(&lsn.0), "{lsn} is not in the history");
    let again = parse(&absolute_name, now).and_then(|request| resolve(&request.point, &history, now));
    match again {
        Ok(again) => assert_eq!(again.lsn, lsn, "`{absolute_name}` means another record"),
        Err(error) => panic!("`{absolute_name}` was given as an absolute name: {error}"),
    }
}

fn readable(error: &str) {
    assert!(error.len() < ERROR_BYTES_MAX, "an error of {} bytes", error.len());
    assert!(error.chars().all(|c| !c.is_control()), "{error:?}");
}

/// Records at regular times, the newest one now.
struct History {
    begin: u64,
}

impl History {
    fn at(&self, lsn: u64) -> Timestamp {
        Timestamp(self.begin + lsn * STEP_NS)
    }

    fn markers(&self) -> impl Iterator<Item = MarkerAt> {
        [("upgrade", 300), ("nightly", 700), ("old", 50)].into_iter().map(|(name, lsn)| MarkerAt {
            name: name.to_owned(),
            lsn: Lsn(lsn),
            at: self.at(lsn),
        })
    }
}

impl Timeline for History {
    fn tip(&self) -> (Lsn, Timestamp) {
        (Lsn(RECORDS), self.at(RECORDS))
    }

    fn horizon(&self) -> (Lsn, Timestamp) {
        (Lsn(HORIZON), self.at(HORIZON))
    }

    fn lsn_at(&self, at: Timestamp) -> Result<Lsn> {
        assert!(at >= self.horizon().1, "asked for what is before the horizon");
        Ok(Lsn(((at.0 - self.begin) / STEP_NS).min(RECORDS)))
    }

    fn timestamp_of(&self, lsn: Lsn) -> Result<Timestamp> {
        assert!((HORIZON..=RECORDS).contains(&lsn.0), "asked for {lsn}, which is not in the history");
        Ok(self.at(lsn.0))
    }

    fn marker(&self, name: &str) -> Result<Option<MarkerAt>> {
        Ok(self.markers().find(|marker| marker.name == name))
    }

    fn latest_application_marker(&self) -> Result<Option<MarkerAt>> {
        self.marker("nightly")
    }

    fn similar_markers(&self, name: &str) -> Vec<MarkerAt> {
        let markers: Vec<MarkerAt> = self.markers().collect();
        let names = closest_names(name, markers.iter().map(|marker| marker.name.as_str()), 3);
        markers.iter().filter(|marker| names.contains(&marker.name.as_str())).cloned().collect()
    }

    fn markers_near(&self, at: Timestamp) -> Vec<MarkerAt> {
        let mut near: Vec<MarkerAt> = self.markers().collect();
        near.sort_by_key(|marker| marker.at.0.abs_diff(at.0));
        near
    }

    fn elapsed_ago(&self, elapsed_ns: u64) -> Result<Timestamp> {
        Ok(Timestamp((self.begin + RECORDS * STEP_NS).saturating_sub(elapsed_ns)))
    }
}
