//! Entries of the allow list: made for who may administer, and told where they allow nothing.
//!
//! Invariant: nobody else makes one, or could try tokens against the list, and none leaves that is not
//! on record. Danger: an entry that quietly does nothing, since another vault's key made it.
#![forbid(unsafe_code)]

use crate::audit::record::Event;
use crate::control::Caller;
use crate::proto::{self, Code, Problem};
use crate::redact::allow::{self, MAX_TOKEN_BYTES, MIN_TOKEN_BYTES};

use super::{Daemon, user_of};

/// What to do about entries of another key.
const REMEDY: &str = "make them again of their tokens with strongroom allow, put them in place of the \
                      old ones under [redaction], then strongroom reload";

impl Daemon {
    /// The entry of a token.
    pub(super) fn make_entry(
        &self,
        who: &Caller,
        req: &proto::Allow,
    ) -> Result<proto::AllowMade, Problem> {
        let vault = self.core.unlocked()?;
        let token = req.token.secret().expose();
        let entry = self.core.needles.entry_of(&vault, token).ok_or_else(|| {
            let what = format!("a token has {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} bytes");
            Problem::new(Code::BadRequest, what)
                .with_hint("give it exactly as it is found, without what stands around it")
        })?;
        let (user, told) = (user_of(who.peer.uid), entry.told());
        let mut record = self.core.new_record(Event::AllowMade);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.pid = u32::try_from(who.peer.pid).ok();
        record.decision = Some("granted");
        record.reason = Some(&told);
        self.core.record(&record)?;
        let rule = allow::rule_of(&self.core.needles.detector(), token);
        let rule = rule.map(|rule| rule.to_string());
        Ok(proto::AllowMade { entry: entry.to_string(), rule })
    }

    /// What `doctor` says of the list: whether all of it counts, what there is, what to do. None
    /// where there is no list, or no key to tell.
    pub(super) fn allow_list(&self) -> Option<(bool, String, &'static str)> {
        let (all, foreign) = self.core.needles.entry_counts(&*self.core.vault()?);
        let found = match (all, foreign) {
            (0, _) => return None,
            (1, 0) => "1 entry".to_owned(),
            (all, 0) => format!("{all} entries"),
            (all, foreign) => {
                format!("{foreign} of {all} entries were made with another key, and allow nothing")
            }
        };
        Some((foreign == 0, found, REMEDY))
    }
}
