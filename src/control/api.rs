//! What the verbs do: the one trait behind the control interface.
//!
//! Invariant: a method is called only for a peer that the table of verbs admits; what the table
//! cannot see (an execution's chain, the items of a list) the method asks [`Caller::may`] about.
//! Methods block and run on a bounded pool; they answer within seconds, streams excepted.
#![forbid(unsafe_code)]

use super::role::Caller;
use crate::proto::stream::Scope;
use crate::proto::{self, Problem};
use crate::sys::peer::Peer;

/// The client of a stream has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

/// Where a stream's lines go, with bounded patience for a slow client.
pub trait Lines: Send {
    /// Sends one line, given without its newline.
    ///
    /// # Errors
    /// [`Gone`] when nobody listens any more; the stream is to end then.
    fn send(&mut self, line: &[u8]) -> Result<(), Gone>;

    /// Whether nobody listens any more: to be asked at least every second while waiting.
    fn is_gone(&self) -> bool;
}

/// Texts that are redacted as they come, one after the other. Blocks for microseconds; the first
/// call may read the vault.
pub trait Texts: Send {
    /// What is looked for.
    fn scope(&self) -> Scope;

    /// What a client shows to go on with another worker, where it is new since the last call.
    ///
    /// # Errors
    /// The problem that it cannot be sealed.
    fn session(&mut self) -> Answer<Option<Vec<u8>>>;

    /// Goes on where another worker was; as the first call, or never.
    ///
    /// # Errors
    /// The problem that session or state are not ours, not of this peer, or cannot be opened now.
    fn resume(&mut self, session: &[u8], state: &[u8]) -> Answer<()>;

    /// Takes input and appends the payload of an answer ([`proto::stream::Out`]).
    ///
    /// # Errors
    /// The problem that it cannot be redacted; nothing may pass then.
    fn take(&mut self, input: &[u8], end: bool, out: &mut Vec<u8>) -> Answer<()>;

    /// The client has gone and will not come back to what it has not ended.
    fn gone(&mut self);
}

/// The answer of a verb.
type Answer<T> = Result<T, Problem>;

/// A request under an `Idempotency-Key` that is begun now; to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed(pub [u8; 32]);

/// What is known of an `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The request was made before: its answer.
    Again(Vec<u8>),
    /// The request is new.
    Mine(Claimed),
}

/// How a claimed request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// With this answer.
    Answered(&'a [u8]),
    /// With a problem: it may be made again.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Everything that can be asked over the control socket, one method for each verb.
pub trait Api: Send + Sync + 'static {
    /// Asks for the answer to a request that was made before, or begins it.
    ///
    /// # Errors
    /// The problem that the key was used otherwise, or that its request has no answer.
    fn claim(&self, who: &Caller, verb: &str, key: &str, body: &[u8]) -> Answer<Claim>;
    /// Says how a claimed request ended.
    fn settle(&self, claimed: &Claimed, outcome: Outcome<'_>);

    /// Whether the peer is a process of any execution; such a peer has no role, whatever its uid.
    /// Must answer true when it cannot be told.
    fn is_agent(&self, peer: &Peer) -> bool;

    /// A verb was refused for want of a role: for the record.
    fn role_denied(&self, who: &Caller, verb: &str);

    /// Whether verbs that want the passphrase again are open to the caller now.
    fn is_confirmed(&self, who: &Caller) -> bool;

    /// `GET /v1/health`
    fn health(&self, who: &Caller) -> Answer<proto::Health>;
    /// `GET /v1/self`
    fn self_(&self, who: &Caller, req: proto::Self_) -> Answer<proto::SelfShown>;
    /// `GET /v1/status`
    fn status(&self, who: &Caller) -> Answer<proto::Status>;
    /// `GET /v1/doctor`
    fn doctor(&self, who: &Caller) -> Answer<proto::Doctor>;
    /// `GET /v1/metrics`: the `OpenMetrics` text.
    fn metrics(&self, who: &Caller) -> Answer<String>;
    /// `GET /v1/watch`: lines of [`proto::WatchEvent`].
    fn watch(&self, who: &Caller, req: proto::Watch, out: &mut dyn Lines) -> Answer<()>;
    /// `POST /v1/unlock`
    fn unlock(&self, who: &Caller, req: proto::Unlock) -> Answer<proto::Unlocked>;
    /// `POST /v1/confirm`
    fn confirm(&self, who: &Caller, req: proto::Confirm) -> Answer<proto::Done>;
    /// `POST /v1/lock`
    fn lock(&self, who: &Caller) -> Answer<proto::Done>;

    /// `POST /v1/secrets`
    fn secret_set(&self, who: &Caller, req: proto::SecretSet) -> Answer<proto::SecretShown>;
    /// `POST /v1/secrets/edit`
    fn secret_edit(&self, who: &Caller, req: proto::SecretEdit) -> Answer<proto::SecretShown>;
    /// `POST /v1/secrets/get`
    fn secret_get(&self, who: &Caller, req: proto::SecretGet) -> Answer<proto::SecretRevealed>;
    /// `GET /v1/secrets`
    fn secret_list(&self, who: &Caller, req: proto::SecretList) -> Answer<proto::SecretListed>;
    /// `GET /v1/secrets/show`
    fn secret_show(&self, who: &Caller, req: proto::SecretName) -> Answer<proto::SecretShown>;
    /// `POST /v1/secrets/rm`
    fn secret_rm(&self, who: &Caller, req: proto::SecretRm) -> Answer<proto::Done>;
    /// `POST /v1/secrets/rotate`
    fn secret_rotate(&self, who: &Caller, req: proto::SecretRotate) -> Answer<proto::Rotated>;
    /// `POST /v1/secrets/promote`
    fn secret_promote(&self, who: &Caller, req: proto::SecretPromote) -> Answer<proto::Rotated>;
    /// `POST /v1/secrets/rollback`
    fn secret_rollback(&self, who: &Caller, req: proto::SecretRollback) -> Answer<proto::Rotated>;
    /// `POST /v1/secrets/revoke`
    fn secret_revoke(&self, who: &Caller, req: proto::SecretRevoke) -> Answer<proto::Revoked>;
    /// `POST /v1/secrets/destroy`
    fn secret_destroy(&self, who: &Caller, req: proto::SecretDestroy)
    -> Answer<proto::SecretShown>;
    /// `GET /v1/secrets/exposures`
    fn secret_exposures(&self, who: &Caller, req: proto::SecretName)
    -> Answer<proto::ExposureList>;

    /// `POST /v1/groups/rotate`
    fn group_rotate(&self, who: &Caller, req: proto::GroupRotate) -> Answer<proto::Rotated>;
    /// `POST /v1/rotations`
    fn rotation_apply(
        &self,
        who: &Caller,
        req: proto::RotationApply,
    ) -> Answer<proto::RotationListed>;
    /// `GET /v1/rotations`
    fn rotation_list(
        &self,
        who: &Caller,
        req: proto::RotationList,
    ) -> Answer<proto::RotationListed>;
    /// `POST /v1/rotations/rm`
    fn rotation_rm(&self, who: &Caller, req: proto::RotationRm) -> Answer<proto::Done>;
    /// `POST /v1/rotations/run`: lines of [`proto::RotationStep`].
    fn rotation_run(
        &self,
        who: &Caller,
        req: proto::RotationRun,
        out: &mut dyn Lines,
    ) -> Answer<()>;
    /// `POST /v1/alerts/test`
    fn alert_test(&self, who: &Caller) -> Answer<proto::AlertTested>;
    /// `POST /v1/groups`
    fn group_set(&self, who: &Caller, req: proto::GroupSet) -> Answer<proto::GroupShown>;
    /// `GET /v1/groups`
    fn group_list(&self, who: &Caller, req: proto::GroupList) -> Answer<proto::GroupListed>;
    /// `GET /v1/groups/show`
    fn group_show(&self, who: &Caller, req: proto::GroupName) -> Answer<proto::GroupShown>;
    /// `POST /v1/groups/rm`
    fn group_rm(&self, who: &Caller, req: proto::GroupName) -> Answer<proto::Done>;

    /// `POST /v1/projects`
    fn project_set(&self, who: &Caller, req: proto::ProjectSet) -> Answer<proto::ProjectShown>;
    /// `POST /v1/projects/add`
    fn project_add(&self, who: &Caller, req: proto::ProjectChains) -> Answer<proto::ProjectShown>;
    /// `POST /v1/projects/remove`
    fn project_remove(
        &self,
        who: &Caller,
        req: proto::ProjectChains,
    ) -> Answer<proto::ProjectShown>;
    /// `GET /v1/projects`
    fn project_list(&self, who: &Caller, req: proto::ProjectList) -> Answer<proto::ProjectListed>;
    /// `POST /v1/projects/rm`
    fn project_rm(&self, who: &Caller, req: proto::ProjectName) -> Answer<proto::Done>;

    /// `POST /v1/import`
    fn import(&self, who: &Caller, req: proto::Import) -> Answer<proto::Imported>;

    /// `GET /v1/keys`
    fn key_list(&self, who: &Caller) -> Answer<proto::KeyListed>;
    /// `POST /v1/keys`
    fn key_add(&self, who: &Caller, req: proto::KeyAdd) -> Answer<proto::KeyAdded>;
    /// `POST /v1/keys/rm`
    fn key_rm(&self, who: &Caller, req: proto::KeyRm) -> Answer<proto::Done>;
    /// `POST /v1/keys/rekey`
    fn key_rekey(&self, who: &Caller, req: proto::KeyRekey) -> Answer<proto::KeyAdded>;

    /// `POST /v1/backup`
    fn backup_create(&self, who: &Caller, req: proto::BackupCreate)
    -> Answer<proto::BackupCreated>;
    /// `POST /v1/backup/verify`
    fn backup_verify(
        &self,
        who: &Caller,
        req: proto::BackupVerify,
    ) -> Answer<proto::BackupVerified>;
    /// `POST /v1/backup/restore`
    fn backup_restore(
        &self,
        who: &Caller,
        req: proto::BackupRestore,
    ) -> Answer<proto::BackupRestored>;

    /// `POST /v1/chains`
    fn chain_apply(&self, who: &Caller, req: proto::ChainApply) -> Answer<proto::ChainApplied>;
    /// `POST /v1/chains/check`
    fn chain_check(&self, who: &Caller, req: proto::ChainCheck) -> Answer<proto::ChainChecked>;
    /// `GET /v1/chains`
    fn chain_list(&self, who: &Caller, req: proto::ChainList) -> Answer<proto::ChainListed>;
    /// `GET /v1/chains/show`
    fn chain_show(&self, who: &Caller, req: proto::ChainName) -> Answer<proto::ChainShown>;
    /// `POST /v1/chains/rm`
    fn chain_rm(&self, who: &Caller, req: proto::ChainName) -> Answer<proto::Done>;

    /// `POST /v1/executions`
    fn execution_start(
        &self,
        who: &Caller,
        req: proto::ExecutionStart,
    ) -> Answer<proto::ExecutionShown>;
    /// `GET /v1/executions`
    fn execution_list(
        &self,
        who: &Caller,
        req: proto::ExecutionList,
    ) -> Answer<proto::ExecutionListed>;
    /// `GET /v1/executions/show`
    fn execution_show(
        &self,
        who: &Caller,
        req: proto::ExecutionName,
    ) -> Answer<proto::ExecutionShown>;
    /// `POST /v1/executions/extend`
    fn execution_extend(
        &self,
        who: &Caller,
        req: proto::ExecutionExtend,
    ) -> Answer<proto::ExecutionShown>;
    /// `POST /v1/executions/end`
    fn execution_end(
        &self,
        who: &Caller,
        req: proto::ExecutionEnd,
    ) -> Answer<proto::ExecutionShown>;

    /// `GET /v1/events`
    fn events_list(&self, who: &Caller, req: proto::EventsList) -> Answer<proto::EventsListed>;
    /// `GET /v1/events/path`
    fn events_path(&self, who: &Caller, req: proto::EventsPath) -> Answer<proto::EventsFolder>;
    /// `POST /v1/events/prune`
    fn events_prune(&self, who: &Caller, req: proto::EventsPrune) -> Answer<proto::EventsPruned>;

    /// `POST /v1/agents`
    fn agent_launch(&self, who: &Caller, req: proto::AgentLaunch) -> Answer<proto::AgentLaunched>;
    /// `POST /v1/agents/attach`
    fn agent_attach(&self, who: &Caller, req: proto::AgentAttach) -> Answer<proto::AgentAttached>;
    /// `POST /v1/agents/end`
    fn agent_end(&self, who: &Caller, req: proto::AgentEnd) -> Answer<proto::AgentEnded>;
    /// `POST /v1/tickets`
    fn ticket_create(&self, who: &Caller, req: proto::TicketCreate)
    -> Answer<proto::TicketCreated>;
    /// `POST /v1/tickets/redeem`
    fn ticket_redeem(&self, who: &Caller, req: proto::TicketRedeem)
    -> Answer<proto::AgentLaunched>;

    /// `POST /v1/allow`
    fn allow(&self, who: &Caller, req: proto::Allow) -> Answer<proto::AllowMade>;
    /// `POST /v1/redact`
    fn redact(&self, who: &Caller, req: proto::Redact) -> Answer<Box<dyn Texts>>;

    /// `GET /v1/access`
    fn access(&self, who: &Caller, req: proto::Access) -> Answer<proto::AccessShown>;
    /// `GET /v1/explain`
    fn explain(&self, who: &Caller, req: proto::Explain) -> Answer<proto::Explained>;

    /// `GET /v1/audit`: lines are records, as stored.
    fn audit_query(&self, who: &Caller, req: proto::AuditQuery, out: &mut dyn Lines) -> Answer<()>;
    /// `GET /v1/audit/verify`
    fn audit_verify(&self, who: &Caller, req: proto::AuditVerify) -> Answer<proto::AuditVerified>;
    /// `GET /v1/audit/head`
    fn audit_head(&self, who: &Caller) -> Answer<proto::AuditHead>;
    /// `POST /v1/audit/prune`
    fn audit_prune(&self, who: &Caller, req: proto::AuditPrune) -> Answer<proto::AuditPruned>;
}
