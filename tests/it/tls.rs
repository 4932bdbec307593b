//! TLS: real clients, errors of the files, and a new certificate without a restart.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use predict_otron_9000::config::{Limits, TlsFiles};
use predict_otron_9000::http::Tls;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Server, tls_server};

/// A self-signed certificate for `localhost` and its key, both as PEM.
fn certificate(until_year: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until_year, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Writes the files into `folder`.
fn write(folder: &Path, cert: &str, key: &str) -> TlsFiles {
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    fs::write(&files.cert, cert).unwrap();
    fs::write(&files.key, key).unwrap();
    files
}

/// A client that trusts `cert` alone.
fn client(server: &Server, cert: &str) -> reqwest::Client {
    let cert = reqwest::Certificate::from_pem(cert.as_bytes()).unwrap();
    let builder = reqwest::Client::builder().tls_certs_only([cert]).pool_max_idle_per_host(0);
    builder.resolve("localhost", server.address).build().unwrap()
}

fn url(server: &Server) -> String {
    format!("https://localhost:{}/livez", server.address.port())
}

#[tokio::test]
async fn a_new_certificate_is_loaded_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (old_cert, old_key) = certificate(2100);
    let tls = Tls::load(write(folder.path(), &old_cert, &old_key)).unwrap();
    let server = tls_server(Limits::default(), tls.clone()).await;
    let (old, url) = (client(&server, &old_cert), url(&server));
    let response = old.get(&url).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_11));

    let (new_cert, new_key) = certificate(2101);
    let new = client(&server, &new_cert);
    assert!(new.get(&url).send().await.is_err(), "it is not in use yet");
    // A file that cannot be used changes nothing.
    write(folder.path(), &new_cert, &old_key);
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("belong together"), "{error}");
    assert_eq!(old.get(&url).send().await.unwrap().status(), 200);
    write(folder.path(), &new_cert, &new_key);
    tls.reload().unwrap();
    assert_eq!(new.get(&url).send().await.unwrap().status(), 200);
    assert!(old.get(&url).send().await.is_err(), "the old one is not in use any more");
}

#[test]
fn unusable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(2100);
    let (expired, expired_key) = certificate(2021);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (cert, key, file, problem) in [
        ("", &*key, "cert.pem", "none in PEM format"),
        (&*cert, "", "key.pem", "none in PEM format"),
        (&*cert, &*cert, "key.pem", "none in PEM format"),
        (&*key, &*key, "cert.pem", "none in PEM format"),
        (garbage, &*key, "cert.pem", "cannot be used as a certificate"),
        (&*cert, &*expired_key, "key.pem", "belong together"),
        (&*expired, &*expired_key, "cert.pem", "expired"),
    ] {
        let error = Tls::load(write(folder.path(), cert, key)).err().unwrap().to_string();
        assert!(error.contains(file) && error.contains(problem), "{file}, {problem}: {error}");
    }
    let files = write(folder.path(), &cert, &key);
    fs::remove_file(&files.key).unwrap();
    let error = Tls::load(files).err().unwrap().to_string();
    assert!(error.contains("key.pem") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn clients_without_tls_and_silent_ones_are_disconnected() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(2100);
    let limits = Limits { head_timeout: Duration::from_millis(300), ..Limits::default() };
    let tls = Tls::load(write(folder.path(), &cert, &key)).unwrap();
    let server = tls_server(limits, tls).await;
    for bytes in ["GET /livez HTTP/1.1\r\nhost: x\r\n\r\n", ""] {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(bytes.as_bytes()).await.unwrap();
        let started = Instant::now();
        let mut received = Vec::new();
        let _ = client.read_to_end(&mut received).await;
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert!(!String::from_utf8_lossy(&received).contains("HTTP"));
    }
    assert_eq!(client(&server, &cert).get(url(&server)).send().await.unwrap().status(), 200);
}
