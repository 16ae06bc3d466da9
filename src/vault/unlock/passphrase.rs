//! A passphrase, stretched by Argon2id (RFC 9106).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

use super::super::crypto::{KEY_BYTES, Key, unhex};
use super::Error;

/// The least memory, in KiB (64 MiB), and passes that a slot may have.
const LEAST: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// The most that is accepted from a file: a forged slot or backup must not exhaust the machine, nor
/// keep it busy for minutes. Passes over [`LEAST`]'s memory, or the same work on more.
const MOST_MEMORY_KIB: u32 = 1 << 20;
const MOST_PASSES: u32 = 64;
/// Shorter ones are refused.
const LEAST_CHARACTERS: usize = 8;

/// What one guess costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// The least that a real vault may have.
    pub fn least() -> Self {
        LEAST
    }

    /// As many passes as take about `goal` on this host, never fewer than [`Cost::least`] has.
    pub fn tuned(goal: Duration) -> Self {
        let probe = Parameters { passes: 1, ..Parameters::new(LEAST, "00".repeat(16)) };
        let start = Instant::now();
        let outcome = stretch(b"how fast is this host", &probe);
        let one_pass = start.elapsed().max(Duration::from_millis(1));
        if outcome.is_err() {
            return LEAST;
        }
        let passes = u32::try_from(goal.as_millis() / one_pass.as_millis()).unwrap_or(LEAST.passes);
        Cost { passes: passes.clamp(LEAST.passes, MOST_PASSES), ..LEAST }
    }
}

/// How a stored slot stretches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    /// In hex.
    salt: String,
}

impl Parameters {
    /// Of a new slot.
    pub fn new(cost: Cost, salt: String) -> Self {
        Self { memory_kib: cost.memory_kib, passes: cost.passes, lanes: cost.lanes, salt }
    }
}

/// Refuses what is no passphrase.
///
/// # Errors
/// [`Error::Credential`].
pub fn check(text: &SecretBytes) -> Result<(), Error> {
    if text.len() < LEAST_CHARACTERS {
        return Err(Error::Credential { what: "a passphrase has at least 8 characters" });
    }
    Ok(())
}

/// The master key of a passphrase.
///
/// # Errors
/// [`Error::Refused`] for parameters that no slot of ours has.
pub fn master(text: &SecretBytes, parameters: &Parameters) -> Result<Key, Error> {
    stretch(text.expose(), parameters)
}

fn stretch(text: &[u8], parameters: &Parameters) -> Result<Key, Error> {
    let work = u64::from(parameters.memory_kib) * u64::from(parameters.passes);
    let most = u64::from(LEAST.memory_kib) * u64::from(MOST_PASSES);
    if parameters.memory_kib > MOST_MEMORY_KIB || work > most {
        return Err(Error::Refused);
    }
    let params =
        Params::new(parameters.memory_kib, parameters.passes, parameters.lanes, Some(KEY_BYTES))
            .map_err(|_| Error::Refused)?;
    let salt = unhex(&parameters.salt).ok_or(Error::Refused)?;
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(text, &salt, out.as_mut())
        .map_err(|_| Error::Refused)?;
    Key::from_bytes(out.as_ref()).ok_or(Error::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_passphrase_is_refused() {
        assert!(check(&SecretBytes::copy_of(b"1234567")).is_err());
        assert!(check(&SecretBytes::copy_of(b"12345678")).is_ok());
    }

    #[test]
    fn parameters_that_exhaust_the_machine_are_refused() {
        let usual = Parameters::new(LEAST, "00".repeat(16));
        let text = SecretBytes::copy_of(b"long enough");
        for parameters in [
            Parameters { memory_kib: u32::MAX, ..usual.clone() },
            Parameters { passes: u32::MAX, ..usual.clone() },
            // Neither is too much alone.
            Parameters { memory_kib: MOST_MEMORY_KIB, passes: MOST_PASSES, ..usual },
        ] {
            assert!(matches!(master(&text, &parameters), Err(Error::Refused)));
        }
    }

    #[test]
    fn a_tuned_cost_is_never_below_the_least() {
        let cost = Cost::tuned(Duration::ZERO);
        assert_eq!(cost, LEAST);
    }
}
