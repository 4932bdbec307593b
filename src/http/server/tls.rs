//! TLS: a certificate and its key from PEM files, which can be replaced while the server runs.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;
use crate::error::{Error, Kind, Result};

/// The protocol that is offered to clients that ask (ALPN).
const PROTOCOL: &[u8] = b"http/1.1";

/// The server's certificate and key. Cheap to clone; all clones are reloaded together.
#[derive(Clone)]
pub struct Tls(Arc<Reloadable>);

struct Reloadable {
    files: TlsFiles,
    current: Mutex<Arc<ServerConfig>>,
}

impl Tls {
    /// Loads the certificate and its key.
    ///
    /// # Errors
    /// When a file cannot be read, has no certificate or no key, or when the two do not belong together, or the
    /// certificate has expired.
    pub fn load(files: TlsFiles) -> Result<Self> {
        let current = Mutex::new(Arc::new(server_config(&files)?));
        Ok(Self(Arc::new(Reloadable { files, current })))
    }

    /// Loads the files again, for connections from now on.
    ///
    /// # Errors
    /// The same as for [`Tls::load`]; what was loaded before stays in use.
    pub fn reload(&self) -> Result<()> {
        let config = server_config(&self.0.files)?;
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(())
    }

    /// Makes handshakes with the current certificate.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

/// Whether a handshake failed because the client does not speak TLS.
pub fn is_not_tls(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)))
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig> {
    let TlsFiles { cert, key } = files;
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(|e| unusable(cert, "a certificate", describe(&e)))?;
    let private_key =
        PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, "a private key", describe(&e)))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    check_expiry(&chain[0], &provider).map_err(|e| unusable(cert, "a certificate", e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("cannot set up TLS: {e}")))?
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let message = format!(
                    "the key in {} is not that of the certificate in {}; pass the two files that belong together",
                    key.display(),
                    cert.display()
                );
                Error::new(Kind::Config, message)
            }
            rustls::Error::InvalidCertificate(e) => unusable(cert, "a certificate", e),
            e => unusable(key, "a private key", e),
        })?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// Fails for a certificate that has expired or cannot be parsed. One that is not valid yet passes, for machines whose
/// clock is set later.
fn check_expiry(cert: &CertificateDer<'_>, provider: &CryptoProvider) -> Result<(), String> {
    let parsed = ParsedCertificate::try_from(cert).map_err(|e| e.to_string())?;
    let algorithms = provider.signature_verification_algorithms.all;
    // Without roots, no certificate is trusted, but its time is checked first.
    let roots = RootCertStore::empty();
    match verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], UnixTime::now(), algorithms) {
        Err(rustls::Error::InvalidCertificate(
            e @ (CertificateError::Expired | CertificateError::ExpiredContext { .. }),
        )) => Err(e.to_string()),
        _ => Ok(()),
    }
}

fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(e) => e.to_string(),
        pem::Error::NoItemsFound => "it has none in PEM format".to_owned(),
        e => e.to_string(),
    }
}

fn unusable(file: &Path, content: &str, problem: impl fmt::Display) -> Error {
    let message = format!("{} cannot be used as {content} for TLS: {problem}", file.display());
    Error::new(Kind::Config, message)
}
