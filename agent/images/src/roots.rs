//! CA certificates of the machine. The HTTP client of the registry client can't even be made without any, not for plain
//! HTTP either; a minimal Debian has none until `ca-certificates` is installed.

use std::path::Path;

use crate::ImageError;

/// Whether the machine has CA certificates where OpenSSL would look for them (`SSL_CERT_FILE`, `SSL_CERT_DIR` and the
/// usual places).
pub fn machine_has_roots() -> bool {
    !rustls_native_certs::load_native_certs().certs.is_empty()
}

/// Where the machine has no CA certificates, writes `<dir>/no-roots.pem`, a root certificate whose key nobody has, and
/// names it by `SSL_CERT_FILE`: no server is trusted by it, and registries over plain HTTP can be pulled from. Tells
/// whether it did so.
///
/// # Errors
/// The file can't be written, or no key pair can be made.
///
/// # Safety
/// The environment is changed: no other thread may run yet.
pub unsafe fn stand_in_if_missing(dir: &Path) -> Result<bool, ImageError> {
    if machine_has_roots() {
        return Ok(false);
    }
    let pem = trusts_nobody()
        .map_err(std::io::Error::other)
        .map_err(ImageError::io("make a certificate for", dir))?;
    std::fs::create_dir_all(dir).map_err(ImageError::io("make", dir))?;
    let file = dir.join("no-roots.pem");
    std::fs::write(&file, pem).map_err(ImageError::io("write", &file))?;
    // SAFETY: the caller promises that this is the only thread.
    unsafe { std::env::set_var("SSL_CERT_FILE", &file) };
    Ok(true)
}

fn trusts_nobody() -> Result<String, rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Ok(params.self_signed(&key)?.pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_is_a_certificate_authority() {
        assert!(trusts_nobody().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
