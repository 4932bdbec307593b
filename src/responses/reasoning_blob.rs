//! Texts that clients keep and send back: reasoning (`encrypted_content`) and compacted conversations.
//!
//! A blob is the text with an HMAC-SHA256 (RFC 2104) by a key of the server and of the tenant, in base64. It is
//! opaque to clients, and cannot be changed or made by them; it is not secret from them, since the same response
//! shows the reasoning in the clear.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Length of the key and of the code.
const KEY_BYTES: usize = 32;

/// The block length of SHA-256.
const BLOCK_BYTES: usize = 64;

/// Signs texts of one tenant, and opens what it has signed.
#[derive(Clone)]
pub struct BlobSigner {
    key: [u8; KEY_BYTES],
}

impl BlobSigner {
    /// A signer for `tenant`, by the server's key.
    pub fn new(server_key: &[u8; KEY_BYTES], tenant: &str) -> Self {
        Self { key: hmac(server_key, tenant.as_bytes()) }
    }

    /// A signed text.
    pub fn seal(&self, text: &str) -> String {
        let code = hmac(&self.key, text.as_bytes());
        URL_SAFE_NO_PAD.encode([&code, text.as_bytes()].concat())
    }

    /// The text of a blob, unless this signer did not make it.
    pub fn open(&self, blob: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(blob).ok()?;
        let (code, text) = bytes.split_at_checked(KEY_BYTES)?;
        let is_ours: bool = subtle::ConstantTimeEq::ct_eq(&hmac(&self.key, text)[..], code).into();
        if is_ours { String::from_utf8(text.to_vec()).ok() } else { None }
    }
}

/// HMAC-SHA256.
fn hmac(key: &[u8; KEY_BYTES], message: &[u8]) -> [u8; KEY_BYTES] {
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_standard() {
        // Computed with Python's `hmac`.
        let code = hmac(&[b'k'; 32], b"message");
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "63a375b8a62b7025b0b00fb07b716b44a608692b5ff609e31bdc7e2219548646");
    }

    #[test]
    fn only_the_same_tenant_opens_a_blob() {
        let signer = BlobSigner::new(&[7; 32], "a");
        let blob = signer.seal("so be it");
        assert_eq!(signer.open(&blob).as_deref(), Some("so be it"));
        assert_eq!(BlobSigner::new(&[7; 32], "b").open(&blob), None);
        assert_eq!(BlobSigner::new(&[8; 32], "a").open(&blob), None);
        for broken in ["", "gAAAAA", &blob[1..], &format!("{blob}AAAA"), "not base64!"] {
            assert_eq!(signer.open(broken), None, "{broken}");
        }
    }
}
