//! TLS 1.3 with certificates on both sides. The only place that names `rustls`' configuration.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdp_core::error::{Error, Kind, Result};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use crate::fault::{Fault, FaultKind};
use crate::pki::{
    CA_FILE, RECEIVER_NAME, SITE_FILE, SITE_KEY_FILE, WITNESS_NAME, receiver_in, sender_in, witness_in,
};

/// A handshake takes no longer, or the connection is given up.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// TLS keeps no more than this between us and the socket, in bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// What a client says that it speaks (ALPN), where it wants a vote from a site; without a word it feeds a replica.
const VOTES: &[u8] = b"cdp-votes";

/// Behind what TLS finds wrong with a certificate.
const AUTHORITY_HINT: &str =
    "; both sites need certificates of one authority: `cdp pki issue` with the same AUTHORITY";

/// What a site needs to speak with others.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    // Its own name.
    site: String,
    is_sender: bool,
    is_receiver: bool,
    is_witness: bool,
}

impl Tls {
    /// Reads a site's certificate, its key, and the authority's certificate from a directory.
    pub fn load(dir: &Path) -> Result<Tls> {
        let unusable = |what: &str, error: &dyn std::fmt::Display| {
            let context = format!("{}: {error}", dir.join(what).display());
            Error::new(Kind::Invalid, context)
                .hint("`cdp pki issue` makes a directory with ca.crt, site.crt and site.key")
        };
        let ca = CertificateDer::from_pem_file(dir.join(CA_FILE)).map_err(|e| unusable(CA_FILE, &e))?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(dir.join(SITE_FILE))
            .and_then(Iterator::collect)
            .map_err(|e| unusable(SITE_FILE, &e))?;
        let key = || PrivateKeyDer::from_pem_file(dir.join(SITE_KEY_FILE));
        let mut roots = RootCertStore::empty();
        roots.add(ca).map_err(|e| unusable(CA_FILE, &e))?;
        let roots = Arc::new(roots);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let wrong = |e: rustls::Error| unusable(SITE_FILE, &e);
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key().map_err(|e| unusable(SITE_KEY_FILE, &e))?)
            .map_err(wrong)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| unusable(CA_FILE, &e))?;
        let own =
            webpki::EndEntityCert::try_from(chain.first().ok_or_else(|| unusable(SITE_FILE, &"empty"))?)
                .map_err(|e| unusable(SITE_FILE, &e))?;
        let names: Vec<&str> = own.valid_dns_names().collect();
        let sender = sender_in_names(&names).or_else(|| receiver_in_names(&names));
        let is_sender = sender_in_names(&names).is_some();
        let is_receiver = receiver_in_names(&names).is_some();
        let is_witness = witness_in_names(&names).is_some();
        let site = sender.or_else(|| witness_in_names(&names)).unwrap_or_default();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key().map_err(|e| unusable(SITE_KEY_FILE, &e))?)
            .map_err(wrong)?;
        server.alpn_protocols = vec![VOTES.to_vec()];
        Ok(Tls {
            client: Arc::new(client),
            server: Arc::new(server),
            site,
            is_sender,
            is_receiver,
            is_witness,
        })
    }

    /// What its own certificate calls it.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// Whether its certificate lets it feed others, and claim a lease from them.
    pub fn is_sender(&self) -> bool {
        self.is_sender
    }

    /// Whether its certificate is that of a site: it may send, or receive.
    pub fn is_site(&self) -> bool {
        self.is_sender || self.is_receiver
    }

    /// Whether its certificate is that of a witness.
    pub fn is_witness(&self) -> bool {
        self.is_witness
    }

    /// Greets a site as a voter; gives the connection and its name.
    pub fn connect_to_vote(&self, socket: &TcpStream) -> Result<(Connection, String), Fault> {
        self.connect_for_votes(socket, RECEIVER_NAME, receiver_in_names)
    }

    /// Greets a witness; gives the connection and its name.
    pub fn connect_to_witness(&self, socket: &TcpStream) -> Result<(Connection, String), Fault> {
        self.connect_for_votes(socket, WITNESS_NAME, witness_in_names)
    }

    fn connect_for_votes(
        &self,
        socket: &TcpStream,
        name: &'static str,
        site_in: fn(&[&str]) -> Option<String>,
    ) -> Result<(Connection, String), Fault> {
        let mut config = (*self.client).clone();
        config.alpn_protocols = vec![VOTES.to_vec()];
        let name = ServerName::try_from(name).expect("a DNS name");
        let connection = ClientConnection::new(Arc::new(config), name).map_err(refused)?;
        shake(socket, connection.into(), site_in)
    }

    /// Greets a receiver; gives the connection and the site that its certificate names.
    pub fn connect(&self, socket: &TcpStream) -> Result<(Connection, String), Fault> {
        let name = ServerName::try_from(RECEIVER_NAME).expect("a DNS name");
        let connection = ClientConnection::new(self.client.clone(), name).map_err(refused)?;
        shake(socket, connection.into(), receiver_in_names)
    }

    /// Greets a sender; gives the connection and the site that its certificate names.
    pub fn accept(&self, socket: &TcpStream) -> Result<(Connection, String), Fault> {
        let connection = ServerConnection::new(self.server.clone()).map_err(refused)?;
        shake(socket, connection.into(), sender_in_names)
    }
}

fn refused(error: rustls::Error) -> Fault {
    Fault::new(FaultKind::Rights, format!("TLS: {error}"))
}

fn sender_in_names(names: &[&str]) -> Option<String> {
    sender_in(names.iter().copied())
}

fn witness_in_names(names: &[&str]) -> Option<String> {
    witness_in(names.iter().copied())
}

/// Whether a client that was greeted wants a vote.
pub fn wants_vote(connection: &Connection) -> bool {
    connection.alpn_protocol() == Some(VOTES)
}

fn receiver_in_names(names: &[&str]) -> Option<String> {
    receiver_in(names.iter().copied())
}

fn shake(
    mut socket: &TcpStream,
    mut connection: Connection,
    site_in: fn(&[&str]) -> Option<String>,
) -> Result<(Connection, String), Fault> {
    let lost = |error: std::io::Error| {
        // What the other side finds wrong with a certificate is no trouble that passes.
        let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        let kind = if is_tls { FaultKind::Rights } else { FaultKind::Closing };
        // Ours or theirs is of another authority, or has ended; the words of TLS do not say what to do.
        let hint = if is_tls && error.to_string().contains("certificate") { AUTHORITY_HINT } else { "" };
        Fault::new(kind, format!("greeting the other side: {error}{hint}"))
    };
    socket.set_nonblocking(false).map_err(lost)?;
    socket.set_read_timeout(Some(HANDSHAKE_TIME)).map_err(lost)?;
    socket.set_write_timeout(Some(HANDSHAKE_TIME)).map_err(lost)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(lost)?;
    }
    socket.set_nonblocking(true).map_err(lost)?;
    connection.set_buffer_limit(Some(BUFFER_BYTES));
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or_else(|| Fault::new(FaultKind::Rights, "no certificate"))?;
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| Fault::new(FaultKind::Rights, format!("a certificate: {error}")))?;
    let names: Vec<&str> = parsed.valid_dns_names().collect();
    let site = site_in(&names).ok_or_else(|| {
        let text = format!("a certificate for {} has no right to this", names.join(", "));
        Fault::new(FaultKind::Rights, text)
    })?;
    Ok((connection, site))
}
