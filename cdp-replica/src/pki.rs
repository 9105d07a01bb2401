//! Certificates: a small authority for people who have none, and what a certificate allows. The only place that names
//! `rcgen`.
//!
//! ```text
//! AUTHORITY/ca.crt, ca.key             the authority; its key is needed to issue and nowhere else
//! SITE/ca.crt, site.crt, site.key      what a site needs, or a witness
//! ```

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cdp_core::error::{Error, IoContext, Kind, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// The authority's certificate, in its directory and in every site's.
pub const CA_FILE: &str = "ca.crt";
/// The authority's key.
pub const CA_KEY_FILE: &str = "ca.key";
/// A site's certificate.
pub const SITE_FILE: &str = "site.crt";
/// A site's key.
pub const SITE_KEY_FILE: &str = "site.key";
/// The name that a sender asks for, whatever address the receiver has.
pub const RECEIVER_NAME: &str = "replica.cdp.internal";
/// The name that a site asks for, whatever address the witness has.
pub const WITNESS_NAME: &str = "witness.cdp.internal";
const SENDER_SUFFIX: &str = ".primary.cdp.internal";
const RECEIVER_SUFFIX: &str = ".replica.cdp.internal";
const WITNESS_SUFFIX: &str = ".witness.cdp.internal";
/// Longest name of a site: a label of DNS.
const SITE_BYTES_MAX: usize = 63;
/// Certificates are good for so many years.
const YEARS: i32 = 20;
const SECONDS_PER_YEAR: u64 = 31_556_952;

/// What a site may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// It may send: append to replicas, and nothing else.
    pub primary: bool,
    /// It may receive.
    pub replica: bool,
    /// It may vote on which of two sites answers, and holds no data.
    pub witness: bool,
}

/// Whether a site can be called so: small letters, digits and hyphens.
pub fn check_site(name: &str) -> Result<()> {
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty()
        || name.len() > SITE_BYTES_MAX
        || !name.chars().all(is_good)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        return Err(Error::new(Kind::Invalid, format!("a site cannot be called {name:?}"))
            .hint("small letters, digits and hyphens, at most 63"));
    }
    Ok(())
}

/// The site that a certificate with these DNS names lets send.
pub fn sender_in<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<String> {
    site_in(names, SENDER_SUFFIX)
}

/// The site that a certificate with these DNS names lets receive.
pub fn receiver_in<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<String> {
    site_in(names, RECEIVER_SUFFIX)
}

/// The witness that a certificate with these DNS names is for.
pub fn witness_in<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<String> {
    site_in(names, WITNESS_SUFFIX)
}

fn site_in<'n>(names: impl IntoIterator<Item = &'n str>, suffix: &str) -> Option<String> {
    let sites = names.into_iter().filter_map(|name| name.strip_suffix(suffix));
    sites.into_iter().find(|site| check_site(site).is_ok()).map(str::to_owned)
}

/// Makes an authority in `dir`, which is made too. One that is there already is not touched.
pub fn make_authority(dir: &Path, name: &str) -> Result<()> {
    make_dir(dir)?;
    let mut params = params(name, Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(unmade)?;
    let certificate = params.self_signed(&key).map_err(unmade)?;
    write_new(dir, CA_KEY_FILE, &key.serialize_pem(), 0o600)?;
    write_new(dir, CA_FILE, &certificate.pem(), 0o644)
}

/// Issues what a site needs into `out`, which is made.
pub fn issue(authority: &Path, site: &str, rights: Rights, out: &Path) -> Result<()> {
    check_site(site)?;
    let read = |name: &str| {
        let path = authority.join(name);
        std::fs::read_to_string(&path).at(|| format!("reading {}", path.display())).map_err(|error| {
            match error.kind() {
                Kind::NotFound => error.hint("`cdp pki init DIR` makes an authority"),
                _ => error,
            }
        })
    };
    let (ca, ca_key) = (read(CA_FILE)?, read(CA_KEY_FILE)?);
    let ca_key = KeyPair::from_pem(&ca_key).map_err(unreadable)?;
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).map_err(unreadable)?;
    let mut names = Vec::new();
    let mut uses = Vec::new();
    if rights.primary {
        names.push(format!("{site}{SENDER_SUFFIX}"));
        uses.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if rights.replica {
        names.extend([format!("{site}{RECEIVER_SUFFIX}"), RECEIVER_NAME.to_owned()]);
        uses.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if rights.witness {
        names.extend([format!("{site}{WITNESS_SUFFIX}"), WITNESS_NAME.to_owned()]);
        if !uses.contains(&ExtendedKeyUsagePurpose::ServerAuth) {
            uses.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
    }
    let mut params = params(site, names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = uses;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(unmade)?;
    let certificate = params.signed_by(&key, &issuer).map_err(unmade)?;
    make_dir(out)?;
    write_new(out, SITE_KEY_FILE, &key.serialize_pem(), 0o600)?;
    write_new(out, SITE_FILE, &certificate.pem(), 0o644)?;
    write_new(out, CA_FILE, &ca, 0o644)
}

fn params(name: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names).map_err(unmade)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject.push(DnType::OrganizationName, "cdp");
    params.distinguished_name = subject;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let year = 1970 + i32::try_from(seconds / SECONDS_PER_YEAR).unwrap_or(0);
    // Clocks of two sites may differ, by more than they should.
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    Ok(params)
}

fn unmade(error: rcgen::Error) -> Error {
    Error::new(Kind::Invalid, format!("making a certificate: {error}"))
}

fn unreadable(error: rcgen::Error) -> Error {
    Error::new(Kind::Damaged, format!("reading the authority: {error}"))
}

fn make_dir(dir: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.at(|| format!("making {}", dir.display()))
}

fn write_new(dir: &Path, name: &str, text: &str, mode: u32) -> Result<()> {
    let path = dir.join(name);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(Kind::Exists, format!("there is a {} already", path.display()))
                .hint("nothing is overwritten here: whoever has it uses it; name another directory")
        }
        _ => Error::io(error, format!("writing {}", path.display())),
    })
}
