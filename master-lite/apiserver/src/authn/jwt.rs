//! The one form of JSON Web Token that service accounts have here: compact, ES256, with a key id (RFC 7515, 7518).
//!
//! Nothing of a token is believed before its signature holds, except the issuer, which only says whose token it
//! claims to be.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// SubjectPublicKeyInfo of a P-256 key up to the point itself (RFC 5480).
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A token longer than this is no token of ours: ours have a few hundred bytes of claims.
const MAX_TOKEN: usize = 16 * 1024;

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It isn't three base64url parts of JSON.
    #[error("token is malformed")]
    Malformed,
    /// Another algorithm than ES256, above all `none`.
    #[error("unexpected signature algorithm")]
    Algorithm,
    /// Signed by a key that isn't ours.
    #[error("invalid signature, no keys found")]
    UnknownKey,
    /// Changed, or never signed by us.
    #[error("invalid signature")]
    Signature,
    /// The signing key can't be used.
    #[error("signing key: {0}")]
    Key(String),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// The P-256 key that signs and checks tokens.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    public: Vec<u8>,
    key_id: String,
    random: SystemRandom,
}

impl TokenKey {
    /// From PKCS#8 PEM.
    ///
    /// # Errors
    /// [`JwtError::Key`] when it is no P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, JwtError> {
        let random = SystemRandom::new();
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| JwtError::Key(e.to_string()))?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
                .map_err(|e| JwtError::Key(e.to_string()))?;
        let public = pair.public_key().as_ref().to_vec();
        // As upstream derives it: the hash of the SubjectPublicKeyInfo.
        let mut hash = Sha256::new();
        hash.update(P256_SPKI_PREFIX);
        hash.update(&public);
        let key_id = URL_SAFE_NO_PAD.encode(hash.finalize());
        Ok(Self { pair, public, key_id, random })
    }

    /// Signs claims.
    ///
    /// # Errors
    /// [`JwtError::Key`] when the system has no randomness to give.
    pub fn sign(&self, claims: &Value) -> Result<String, JwtError> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let signature =
            self.pair.sign(&self.random, message.as_bytes()).map_err(|e| JwtError::Key(e.to_string()))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token whose signature holds. Times, issuer and audience are not looked at.
    ///
    /// # Errors
    /// See [`JwtError`].
    pub fn verify(&self, token: &str) -> Result<Value, JwtError> {
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Header = parse(header)?;
        if header.alg != "ES256" {
            return Err(JwtError::Algorithm);
        }
        if !header.kid.is_empty() && header.kid != self.key_id {
            return Err(JwtError::UnknownKey);
        }
        let signature = decode(signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public)
            .verify(message.as_bytes(), &signature)
            .map_err(|_unspecified| JwtError::Signature)?;
        parse(payload)
    }

    /// The public key as a JWK Set, for `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, then 32 bytes each of x and y.
        let (x, y) = self.public[1..].split_at(32);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

/// The issuer a token claims, unchecked; `None` if it is no JWT at all.
pub fn claimed_issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let claims: Value = parse(payload).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}

fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    if part.len() > MAX_TOKEN {
        return Err(JwtError::Malformed);
    }
    URL_SAFE_NO_PAD.decode(part).map_err(|_bad_base64| JwtError::Malformed)
}

fn parse<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, JwtError> {
    serde_json::from_slice(&decode(part)?).map_err(|_bad_json| JwtError::Malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key() -> TokenKey {
        TokenKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    #[test]
    fn signed_tokens_verify_and_forged_ones_do_not() {
        let (ours, other) = (key(), key());
        let claims = json!({"iss": "https://x", "sub": "a"});
        let token = ours.sign(&claims).unwrap();
        assert_eq!(ours.verify(&token), Ok(claims));
        assert_eq!(claimed_issuer(&token).as_deref(), Some("https://x"));
        assert_eq!(other.verify(&token), Err(JwtError::UnknownKey));

        let enc = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let parts: Vec<&str> = token.split('.').collect();
        let root = enc(json!({"iss": "https://x", "sub": "root"}));
        let check = |header: &str, payload: &str, signature: &str, want: JwtError| {
            assert_eq!(ours.verify(&format!("{header}.{payload}.{signature}")), Err(want), "{header}");
        };
        check(parts[0], &root, parts[2], JwtError::Signature);
        check(&enc(json!({"alg": "none"})), &root, "", JwtError::Algorithm);
        check(&enc(json!({"alg": "HS256"})), &root, parts[2], JwtError::Algorithm);
        check(&enc(json!({"alg": "ES256"})), parts[1], parts[2], JwtError::Signature);
        check("e30x", &root, parts[2], JwtError::Malformed);
        for bad in ["", "a", "a.b", "a.b.c", "....", "{}"] {
            assert!(ours.verify(bad).is_err(), "{bad}");
            assert_eq!(claimed_issuer(bad), None);
        }
        // Signed by another key under our key's name.
        let forged = format!("{}.{}", parts[0], root);
        let signature = other.pair.sign(&other.random, forged.as_bytes()).unwrap();
        check(parts[0], &root, &URL_SAFE_NO_PAD.encode(signature), JwtError::Signature);
    }

    #[test]
    fn the_key_set_is_public() {
        let jwk = key().jwks();
        assert_eq!(jwk["keys"][0]["x"].as_str().map(str::len), Some(43));
        assert!(jwk["keys"][0].get("d").is_none());
    }

    proptest::proptest! {
        #[test]
        fn nothing_made_up_is_accepted(token in "[A-Za-z0-9_.{}=-]{0,200}") {
            let _ = claimed_issuer(&token);
            proptest::prop_assert!(key().verify(&token).is_err());
        }

        #[test]
        fn no_changed_byte_goes_unseen(at in 0usize..400, to in "[A-Za-z0-9_-]") {
            let ours = key();
            let token = ours.sign(&json!({"iss": "https://x", "sub": "a"})).unwrap();
            let at = at % token.len();
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            // The last character of a part may hold bits that don't count; strict decoding refuses those too.
            proptest::prop_assert!(changed == token || ours.verify(&changed).is_err());
        }
    }
}
