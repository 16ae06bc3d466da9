//! The exit statuses: an interface. A number is never reused.
#![forbid(unsafe_code)]

use crate::proto::Code;

/// All went well.
pub const OK: u8 = 0;
/// The request was refused or failed.
pub const FAILED: u8 = 1;
/// The command line was not understood.
pub const USAGE: u8 = 2;
/// No daemon answers.
pub const NO_DAEMON: u8 = 3;
/// The vault is locked or could not be unlocked.
pub const LOCKED: u8 = 4;
/// No role allows it.
pub const NO_ROLE: u8 = 5;
/// There is no such thing.
pub const NOT_FOUND: u8 = 6;
/// It exists already, or conflicts with what is there.
pub const CONFLICT: u8 = 7;
/// A check found something: `doctor`, `audit verify`, `chain check`, `scan`, ([`is_of`] has all).
pub const FOUND: u8 = 8;
/// `secret revoke`: a process that had the value could not be ended.
pub const INCOMPLETE: u8 = 9;
/// `scan`: nothing was found, but not everything could be read.
pub const UNREAD: u8 = 10;
/// `run`: strongroom itself failed.
pub const RUN_FAILED: u8 = 125;
/// `run`: the command cannot be executed.
pub const RUN_CANNOT: u8 = 126;
/// `run`: the command was not found.
pub const RUN_MISSING: u8 = 127;

/// The table, for the man page and the test.
pub const TABLE: &[(u8, &str)] = &[
    (OK, "all went well"),
    (FAILED, "the request was refused or failed"),
    (USAGE, "the command line was not understood"),
    (NO_DAEMON, "no daemon answers"),
    (LOCKED, "the vault is locked or could not be unlocked"),
    (NO_ROLE, "no role allows it"),
    (NOT_FOUND, "there is no such thing"),
    (CONFLICT, "it exists already, or conflicts with what is there"),
    (FOUND, "a check found something"),
    (INCOMPLETE, "secret revoke: a process that had the value could not be ended"),
    (UNREAD, "scan: nothing was found, but not everything could be read"),
    (RUN_FAILED, "run: strongroom itself failed"),
    (RUN_CANNOT, "run: the command cannot be executed"),
    (RUN_MISSING, "run: the command was not found"),
];

/// Whether a command, named by its words, can leave with a status of the table; none: any command.
pub fn is_of(path: &[&str], status: u8) -> bool {
    let is_run = matches!(path, ["run"] | ["chain", "run"]);
    match status {
        _ if path.is_empty() => true,
        USAGE => true,
        RUN_FAILED | RUN_CANNOT | RUN_MISSING => is_run,
        // What an agent leaves with stands for itself: 1 is its own.
        _ if is_run => false,
        FOUND => matches!(
            path,
            ["access" | "doctor" | "explain" | "redact" | "scan"]
                | ["alert", "test"]
                | ["audit", "verify"]
                | ["chain", "check"]
                | ["execution", "end"]
        ),
        INCOMPLETE => {
            matches!(path, ["drill", "revoke"] | ["secret" | "group", "revoke"])
        }
        UNREAD => matches!(path, ["scan"]),
        NO_DAEMON | LOCKED | NO_ROLE | NOT_FOUND | CONFLICT => {
            !matches!(path, ["completions" | "demo"])
        }
        _ => true,
    }
}

/// The status for a problem.
pub fn of_problem(code: Code) -> u8 {
    match code {
        Code::Unavailable => NO_DAEMON,
        Code::Locked | Code::UnlockFailed | Code::RollbackRefused => LOCKED,
        Code::NoRole | Code::AgentRefused => NO_ROLE,
        Code::NotFound | Code::Gone => NOT_FOUND,
        Code::Exists | Code::Conflict | Code::Widens | Code::Ambiguous => CONFLICT,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_has_two_meanings() {
        let mut seen = std::collections::BTreeSet::new();
        assert!(TABLE.iter().all(|(status, _)| seen.insert(*status)));
    }
}
