//! The only table of error numbers that the mount answers with.
#![forbid(unsafe_code)]

use crate::broker::Refusal;

/// An error number of errno(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        Self(match refusal {
            // No record, no reveal.
            Refusal::AuditUnavailable | Refusal::Fault => libc::EIO,
            Refusal::Expired => libc::EKEYEXPIRED,
            // The holder of the descriptor knows that it exists, so nothing is told.
            Refusal::ForeignHandle | Refusal::Unattributable => libc::EACCES,
            Refusal::Locked => libc::ENOKEY,
            // A denied caller must not learn that the name exists.
            Refusal::Missing => libc::ENOENT,
            Refusal::NameTooLong => libc::ENAMETOOLONG,
            // Never ENOSYS, which the kernel remembers for the whole connection.
            Refusal::Os(libc::ENOSYS) => libc::EOPNOTSUPP,
            Refusal::Os(number) => number,
            Refusal::ReadOnly => libc::EROFS,
            Refusal::Revoked => libc::EKEYREVOKED,
            Refusal::TooManyOpen => libc::ENFILE,
            // Of the numbers tried, EINVAL alone makes every common tool fall back to read(2).
            Refusal::Uncacheable => libc::EINVAL,
            Refusal::Unsupported => libc::EOPNOTSUPP,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_is_enosys() {
        let all = [
            Refusal::AuditUnavailable,
            Refusal::Expired,
            Refusal::Fault,
            Refusal::ForeignHandle,
            Refusal::Locked,
            Refusal::Missing,
            Refusal::NameTooLong,
            Refusal::Os(libc::ENOSYS),
            Refusal::ReadOnly,
            Refusal::Revoked,
            Refusal::TooManyOpen,
            Refusal::Unattributable,
            Refusal::Uncacheable,
            Refusal::Unsupported,
        ];
        for refusal in all {
            assert_ne!(Errno::from(refusal), Errno(libc::ENOSYS), "{refusal}");
        }
    }
}
