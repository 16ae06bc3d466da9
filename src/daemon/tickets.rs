//! Tickets: a launch that somebody without a role may redeem, once, as the user it was made for.
//!
//! Invariant: a ticket is used up before anything is given for it; the daemon keeps its digest alone.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalog::name::{AgentName, ChainName};
use crate::catalog::resolve::Asker;
use crate::clock::Timestamp;
use crate::control::Caller;
use crate::execution::journal::Kind;
use crate::execution::principal::Execution;
use crate::proto::{self, Code, Problem, Value};
use crate::secret::SecretBytes;
use crate::vault::crypto;

use super::launch::{Wanted, random};
use super::resolution::resolve_problem;
use super::right::Right;
use super::secrets::parse;
use super::{Daemon, user_of};

/// How long a ticket is good unless said otherwise.
const TICKET_TTL: Duration = Duration::from_secs(300);

/// A stored ticket.
#[derive(serde::Serialize, serde::Deserialize)]
struct Ticket {
    chain: String,
    agent: String,
    environment: Option<String>,
    execution: Option<String>,
    deliver: Option<String>,
    uid: u32,
    gid: u32,
    expires_at: crate::clock::Timestamp,
    uses: u32,
    user: String,
}

impl Daemon {
    pub(super) fn create_ticket(
        &self,
        who: &Caller,
        req: &proto::TicketCreate,
    ) -> Result<proto::TicketCreated, Problem> {
        self.core.unlocked()?;
        let chain: ChainName = parse(&req.chain)?;
        let agent: AgentName = parse(&req.agent)?;
        let environment = self.environment(req.environment.as_deref())?;
        // A ticket that could never be redeemed is an error now.
        let asker = Asker { chain: &chain, agent: &agent, environment: environment.as_ref() };
        self.core.catalog().resolve(asker).map_err(|e| resolve_problem(&e))?;
        let user = match req.as_user.as_deref() {
            None => (who.peer.uid, who.peer.gid),
            Some(name) => {
                let found = match name.parse::<u32>() {
                    Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
                    Err(_) => nix::unistd::User::from_name(name),
                };
                let user = found.ok().flatten().ok_or_else(|| {
                    Problem::new(Code::NotFound, format!("there is no user {name}"))
                })?;
                (user.uid.as_raw(), user.gid.as_raw())
            }
        };
        let ttl = req.ttl.map_or(TICKET_TTL, |p| p.0);
        let ticket = Ticket {
            chain: req.chain.clone(),
            agent: req.agent.clone(),
            environment: req.environment.clone(),
            execution: req.execution.clone(),
            deliver: req.deliver.clone(),
            uid: user.0,
            gid: user.1,
            expires_at: self.core.clock.now(),
            uses: req.uses.unwrap_or(1).max(1),
            user: user_of(who.peer.uid),
        };
        let (text, expires_at) = self.issue(ticket, ttl)?;
        Ok(proto::TicketCreated {
            ticket: Value::new(text),
            expires_at,
            execution: req.execution.clone(),
        })
    }

    /// A ticket of the daemon's own, for a step of a rotation chain.
    pub(super) fn issue_own(
        &self,
        execution: &Execution,
        agent: &AgentName,
        (uid, gid): (u32, u32),
        ttl: Duration,
    ) -> Result<SecretBytes, Problem> {
        let ticket = Ticket {
            chain: execution.chain.clone(),
            agent: agent.to_string(),
            environment: execution.environment.clone(),
            execution: Some(execution.id.to_string()),
            deliver: None,
            uid,
            gid,
            expires_at: self.core.clock.now(),
            uses: 1,
            user: execution.user.clone(),
        };
        Ok(self.issue(ticket, ttl)?.0)
    }

    fn issue(&self, ticket: Ticket, ttl: Duration) -> Result<(SecretBytes, Timestamp), Problem> {
        let text = SecretBytes::from_vec(crypto::hex(&random::<32>()?).into_bytes());
        let expires_at = self
            .core
            .clock
            .now()
            .checked_add(ttl)
            .map_err(|_| Problem::new(Code::Invalid, "the ticket's time is too long"))?;
        let stored = serde_json::to_vec(&Ticket { expires_at, ..ticket })
            .map_err(|_| Problem::new(Code::Internal, "the ticket cannot be stored"))?;
        self.registry
            .journal()
            .put(Kind::Ticket, &crypto::digest(&[text.expose()]), &stored)
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        Ok((text, expires_at))
    }

    pub(super) fn redeem_ticket(
        &self,
        who: &Caller,
        req: &proto::TicketRedeem,
    ) -> Result<proto::AgentLaunched, Problem> {
        let refuse = || {
            Problem::new(Code::Gone, "this ticket is not good: used, expired, or another user's")
                .with_hint("have a new one made for your user")
        };
        let key = crypto::digest(&[req.ticket.secret().expose()]);
        let _one_at_a_time =
            self.redeeming.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let journal = self.registry.journal();
        let stored = journal.get(Kind::Ticket, &key).ok_or_else(refuse)?;
        let mut ticket: Ticket = serde_json::from_slice(&stored).map_err(|_| refuse())?;
        if ticket.uid != who.peer.uid || ticket.expires_at <= self.core.clock.now() {
            return Err(refuse());
        }
        // Asked before it is used up: the starter tries again, isolated.
        self.require_isolation(
            &parse(&ticket.chain)?,
            &parse(&ticket.agent)?,
            "host",
            req.isolation.as_ref(),
        )?;
        ticket.uses -= 1;
        // Used up before anything is given for it.
        let noted = if ticket.uses == 0 {
            journal.remove(Kind::Ticket, &key)
        } else {
            serde_json::to_vec(&ticket)
                .map_err(|_| crate::execution::journal::Error::TooLong)
                .and_then(|bytes| journal.put(Kind::Ticket, &key, &bytes))
        };
        noted.map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        self.launch(
            who,
            &Wanted {
                chain: Some(&ticket.chain),
                agent: Some(&ticket.agent),
                environment: ticket.environment.as_deref(),
                execution: ticket.execution.as_deref(),
                secrets: &[],
                deliver: ticket.deliver.as_deref(),
                workspace: "host",
                secrets_path: req.secrets_path.as_deref(),
                how: req.how,
                uid: ticket.uid,
                gid: ticket.gid,
                pid: req.pid,
                keep_background: req.keep_background,
                isolation: req.isolation.as_ref(),
                deadline: None,
                labels: BTreeMap::new(),
                launch: None,
                right: Right::Ticket,
            },
            ticket.user.clone(),
        )
    }
}
