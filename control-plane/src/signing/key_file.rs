//! Key files: PKCS#8 in PEM, as `openssl pkey` reads and writes them.
//!
//! With a passphrase a private key is encrypted (PBES2: scrypt, AES-256-CBC). The file does not say for which role its key
//! signs: root metadata does. Invariant: every buffer that held a secret is erased, and no error repeats a part of one.

use std::{fs, io, path::Path};

use pkcs8::{
    AlgorithmIdentifierRef, EncryptedPrivateKeyInfoOwned, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument,
    SubjectPublicKeyInfoRef,
    der::{
        Decode, EncodePem,
        asn1::{BitStringRef, OctetString, OctetStringRef},
        pem::PemLabel,
    },
    pkcs5::{
        EncryptionScheme,
        pbes2::{EncryptionScheme as Cipher, Parameters, Salt, ScryptParams},
    },
};
use skerry_tuf::{PublicKey, SigningKey};
use zeroize::Zeroizing;

use super::passphrase::Passphrase;

/// RFC 8410.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// An ed25519 private key is an octet string within the octet string.
const SEED_HEADER: [u8; 2] = [0x04, 0x20];
/// scrypt with N = 2^14, r = 8, p = 5: as strong as OWASP asks for, and 16 MiB, which OpenSSL accepts without options.
const SCRYPT_N: u64 = 1 << 14;
const SCRYPT_R: u16 = 8;
const SCRYPT_P: u16 = 5;
/// The most bytes of a key file: they have some hundred.
const FILE_BYTES_MAX: u64 = 16 * 1024;
/// What a stranger's file may make us compute at most: 64 MiB, a few seconds.
const SCRYPT_COST_MAX: u64 = 1 << 20;
/// The same for the other derivation that OpenSSL writes.
const PBKDF2_ITERATIONS_MAX: u32 = 10_000_000;

/// Why a key file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read key {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// Not PEM, not PKCS#8, or not ed25519. The parser's own words could repeat a part of the secret.
    #[error("{0} is no PEM file with an ed25519 key")]
    Malformed(String),
    /// The key is encrypted and there is no passphrase.
    #[error("{0} is encrypted: its passphrase is needed")]
    PassphraseNeeded(String),
    /// The passphrase does not open it.
    #[error("the passphrase does not open {0}")]
    WrongPassphrase(String),
    /// The system gives no randomness for the salt.
    #[error("no randomness from the system")]
    Randomness,
    /// The key cannot be encoded.
    #[error("cannot encode the key")]
    Encode,
}

/// Encodes a private key; with a passphrase it is encrypted.
///
/// # Errors
/// The system gives no randomness.
pub fn encode(key: &SigningKey, passphrase: Option<&Passphrase>) -> Result<Zeroizing<String>, KeyFileError> {
    let mut seed = Zeroizing::new([0; 34]);
    seed[..2].copy_from_slice(&SEED_HEADER);
    seed[2..].copy_from_slice(key.seed());
    let algorithm = AlgorithmIdentifierRef {
        oid: ED25519,
        parameters: None,
    };
    let private_key = OctetStringRef::new(&*seed).map_err(|_| KeyFileError::Encode)?;
    let info = PrivateKeyInfoRef::new(algorithm, private_key);
    let plain = SecretDocument::encode_msg(&info).map_err(|_| KeyFileError::Encode)?;
    let (label, document) = match passphrase {
        None => (PrivateKeyInfoRef::PEM_LABEL, plain),
        Some(passphrase) => (EncryptedPrivateKeyInfoOwned::PEM_LABEL, encrypted(&plain, passphrase)?),
    };
    document
        .to_pem(label, pkcs8::LineEnding::LF)
        .map_err(|_| KeyFileError::Encode)
}

fn encrypted(plain: &SecretDocument, passphrase: &Passphrase) -> Result<SecretDocument, KeyFileError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt)
        .and_then(|()| getrandom::fill(&mut iv))
        .map_err(|_| KeyFileError::Randomness)?;
    let scrypt = ScryptParams {
        salt: Salt::new(salt).map_err(|_| KeyFileError::Encode)?,
        cost_parameter: SCRYPT_N,
        block_size: SCRYPT_R,
        parallelization: SCRYPT_P,
        key_length: None,
    };
    let parameters = Parameters {
        kdf: scrypt.into(),
        encryption: Cipher::Aes256Cbc { iv },
    };
    let encrypted_data = parameters.encrypt(passphrase.as_bytes(), plain.as_bytes());
    let encrypted_data = encrypted_data.map_err(|_| KeyFileError::Encode)?;
    let info = EncryptedPrivateKeyInfoOwned {
        encryption_algorithm: EncryptionScheme::from(parameters),
        encrypted_data: OctetString::new(encrypted_data).map_err(|_| KeyFileError::Encode)?,
    };
    SecretDocument::encode_msg(&info).map_err(|_| KeyFileError::Encode)
}

/// Reads a private key. `passphrase` is asked only for an encrypted one.
///
/// # Errors
/// [`KeyFileError`].
pub fn read(
    path: &Path,
    passphrase: impl FnOnce() -> Result<Passphrase, KeyFileError>,
) -> Result<SigningKey, KeyFileError> {
    let pem = read_bounded(path)?;
    let malformed = || KeyFileError::Malformed(path.display().to_string());
    let text = std::str::from_utf8(&pem).map_err(|_| malformed())?;
    let (label, document) = SecretDocument::from_pem(text).map_err(|_| malformed())?;
    let plain = match label {
        PrivateKeyInfoRef::PEM_LABEL => document,
        EncryptedPrivateKeyInfoOwned::PEM_LABEL => {
            let info = EncryptedPrivateKeyInfoOwned::from_der(document.as_bytes()).map_err(|_| malformed())?;
            if !is_affordable(&info.encryption_algorithm) {
                return Err(malformed());
            }
            let wrong = || KeyFileError::WrongPassphrase(path.display().to_string());
            info.decrypt(passphrase()?.as_bytes()).map_err(|_| wrong())?
        }
        _ => return Err(malformed()),
    };
    let info = PrivateKeyInfoRef::from_der(plain.as_bytes()).map_err(|_| malformed())?;
    let seed = info.private_key.as_bytes().strip_prefix(&SEED_HEADER);
    let seed: Option<&[u8; 32]> = seed.and_then(|seed| seed.try_into().ok());
    match seed {
        Some(seed) if info.algorithm.oid == ED25519 => Ok(SigningKey::from_seed(seed)),
        _ => Err(malformed()),
    }
}

/// True when the parameters of a file do not ask for more work than a key of ours could.
fn is_affordable(scheme: &EncryptionScheme) -> bool {
    let Some(parameters) = scheme.pbes2() else { return false };
    match (parameters.kdf.scrypt(), parameters.kdf.pbkdf2()) {
        (Some(scrypt), _) => {
            let cost = scrypt.cost_parameter.saturating_mul(u64::from(scrypt.block_size));
            cost.saturating_mul(u64::from(scrypt.parallelization)) <= SCRYPT_COST_MAX
        }
        (None, Some(pbkdf2)) => pbkdf2.iteration_count <= PBKDF2_ITERATIONS_MAX,
        (None, None) => false,
    }
}

/// Encodes a public key.
///
/// # Errors
/// The key is not ed25519.
pub fn encode_public(key: &PublicKey) -> Result<String, KeyFileError> {
    let bytes = key.ed25519_bytes().ok_or(KeyFileError::Encode)?;
    let info = SubjectPublicKeyInfoRef {
        algorithm: AlgorithmIdentifierRef {
            oid: ED25519,
            parameters: None,
        },
        subject_public_key: BitStringRef::from_bytes(&bytes).map_err(|_| KeyFileError::Encode)?,
    };
    info.to_pem(pkcs8::LineEnding::LF).map_err(|_| KeyFileError::Encode)
}

/// Reads a public key.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_public(path: &Path) -> Result<PublicKey, KeyFileError> {
    let pem = read_bounded(path)?;
    let malformed = || KeyFileError::Malformed(path.display().to_string());
    let text = std::str::from_utf8(&pem).map_err(|_| malformed())?;
    let (label, document) = pkcs8::Document::from_pem(text).map_err(|_| malformed())?;
    let info = SubjectPublicKeyInfoRef::from_der(document.as_bytes()).map_err(|_| malformed())?;
    let bytes = info.subject_public_key.as_bytes();
    let bytes: Option<&[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
    match bytes {
        Some(bytes) if label == "PUBLIC KEY" && info.algorithm.oid == ED25519 => Ok(PublicKey::from_ed25519(bytes)),
        _ => Err(malformed()),
    }
}

fn read_bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let failed = |source| KeyFileError::Read {
        path: path.display().to_string(),
        source,
    };
    let size_bytes = fs::metadata(path).map_err(failed)?.len();
    if size_bytes > FILE_BYTES_MAX {
        return Err(KeyFileError::Malformed(path.display().to_string()));
    }
    Ok(Zeroizing::new(fs::read(path).map_err(failed)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Made by `openssl genpkey -algorithm ed25519`, and encrypted by `openssl pkcs8 -topk8 -scrypt`.
    const OPENSSL_PLAIN: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIEE2j6fkpBHpvo42Xu+Ahtuf3/bbOGUzkGFhwlEGHJUJ
-----END PRIVATE KEY-----
";
    const OPENSSL_ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGTME8GCSqGSIb3DQEFDTBCMCEGCSsGAQQB2kcECzAUBAi8BiqIQ2ae+QICQAAC
AQgCAQEwHQYJYIZIAWUDBAEqBBBKBVDAt8E6EJJsaZPd5kL1BEAXQ+2spzrYjWp/
HlpwsYtYeJC3qzsDH9LQpFx2JnvuevaKdeDt6bL03MmQBvQOAPaCpOjBV0KNRu/U
1+K2uhIo
-----END ENCRYPTED PRIVATE KEY-----
";
    const OPENSSL_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA8UqxSu1mTG2xk7GZ0Vc4h1+jBUvXWBeyoLZ0cLKbnVc=
-----END PUBLIC KEY-----
";

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.to_owned())).unwrap()
    }

    fn read_text(text: &str, with: Option<&str>) -> Result<SigningKey, KeyFileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        fs::write(&path, text).unwrap();
        read(&path, || match with {
            Some(with) => Ok(passphrase(with)),
            None => Err(KeyFileError::PassphraseNeeded("a.key".to_owned())),
        })
    }

    #[test]
    fn what_openssl_wrote_is_read() {
        let plain = read_text(OPENSSL_PLAIN, None).unwrap();
        assert_eq!(
            hex::encode(plain.seed()),
            "41368fa7e4a411e9be8e365eef8086db9fdff6db386533906161c251061c9509"
        );
        let encrypted = read_text(OPENSSL_ENCRYPTED, Some("correct-horse")).unwrap();
        assert_eq!(encrypted.seed(), plain.seed());
        assert_eq!(*encode(&plain, None).unwrap(), OPENSSL_PLAIN);
        assert_eq!(encode_public(&plain.public_key()).unwrap(), OPENSSL_PUBLIC);
    }

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_only() {
        let key = SigningKey::from_seed(&[9; 32]);
        let text = encode(&key, Some(&passphrase("correct horse"))).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{}", *text);
        let opened = read_text(&text, Some("correct horse")).unwrap();
        assert_eq!(opened.seed(), key.seed());
        let wrong = read_text(&text, Some("wrong horse")).unwrap_err();
        assert!(matches!(wrong, KeyFileError::WrongPassphrase(_)), "{wrong}");
        let needed = read_text(&text, None).unwrap_err();
        assert!(matches!(needed, KeyFileError::PassphraseNeeded(_)), "{needed}");
    }

    #[test]
    fn a_public_key_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pub");
        let public = SigningKey::from_seed(&[9; 32]).public_key();
        fs::write(&path, encode_public(&public).unwrap()).unwrap();
        assert_eq!(read_public(&path).unwrap(), public);
    }

    #[test]
    fn what_is_no_key_is_refused_without_its_content() {
        let garbage = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        for text in ["", "secret", garbage, OPENSSL_PUBLIC] {
            let error = read_text(text, None).unwrap_err();
            assert!(matches!(error, KeyFileError::Malformed(_)), "{error}");
            assert!(!format!("{error:?}").contains("secret"));
        }
    }

    #[test]
    fn a_scrypt_that_costs_too_much_is_not_computed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dear.key");
        let scrypt = ScryptParams {
            salt: Salt::new([7; 16]).unwrap(),
            cost_parameter: 1 << 40,
            block_size: 8,
            parallelization: 1,
            key_length: None,
        };
        let parameters = Parameters {
            kdf: scrypt.into(),
            encryption: Cipher::Aes256Cbc { iv: [0; 16] },
        };
        let info = EncryptedPrivateKeyInfoOwned {
            encryption_algorithm: EncryptionScheme::from(parameters),
            encrypted_data: OctetString::new(vec![0; 64]).unwrap(),
        };
        let document = SecretDocument::encode_msg(&info).unwrap();
        let pem = document.to_pem(EncryptedPrivateKeyInfoOwned::PEM_LABEL, pkcs8::LineEnding::LF);
        fs::write(&path, pem.unwrap()).unwrap();
        let error = read(&path, || panic!("nobody is asked for a passphrase")).unwrap_err();
        assert!(matches!(error, KeyFileError::Malformed(_)), "{error}");
    }

    #[test]
    fn nothing_that_is_printed_holds_the_secret() {
        let key = SigningKey::from_seed(&[0xAB; 32]);
        let passphrase = passphrase("correct horse");
        let printed = format!("{key:?} {passphrase:?}");
        assert!(
            !printed.contains("abab") && !printed.contains("171, 171") && !printed.contains("horse"),
            "{printed}"
        );
    }
}
