//! The daemon as the control interface sees it: each verb handed to the file of its noun.
#![forbid(unsafe_code)]

use crate::audit::record::Event;
use crate::control::{Api, Caller, Claim, Claimed, Lines, Outcome, Texts};
use crate::proto::{self, Problem};
use crate::sys::peer::Peer;

use super::{Daemon, NAME_AND_VERSION, user_of};

impl Api for Daemon {
    fn is_agent(&self, peer: &Peer) -> bool {
        // A peer that cannot be told is taken for an agent: it has no role then.
        match u32::try_from(peer.pid) {
            Ok(pid) if pid != 0 => self.principal_of_process(pid).is_some(),
            _ => true,
        }
    }

    fn role_denied(&self, who: &Caller, verb: &str) {
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::RoleDenied);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.pid = u32::try_from(who.peer.pid).ok();
        record.decision = Some("denied");
        record.reason = Some(verb);
        // The refusal stands whether or not it could be recorded.
        let _recorded = self.core.record(&record);
    }

    fn health(&self, _who: &Caller) -> Result<proto::Health, Problem> {
        Ok(proto::Health { state: self.state(), version: NAME_AND_VERSION.to_owned() })
    }

    fn self_(&self, who: &Caller, _req: proto::Self_) -> Result<proto::SelfShown, Problem> {
        Ok(self.who_is(who))
    }

    fn status(&self, _who: &Caller) -> Result<proto::Status, Problem> {
        Ok(self.full_status())
    }

    fn doctor(&self, _who: &Caller) -> Result<proto::Doctor, Problem> {
        Ok(self.examine())
    }

    fn metrics(&self, _who: &Caller) -> Result<String, Problem> {
        Ok(self.open_metrics())
    }

    fn watch(&self, who: &Caller, req: proto::Watch, out: &mut dyn Lines) -> Result<(), Problem> {
        self.watch_events(who, &req, out)
    }

    fn unlock(&self, who: &Caller, req: proto::Unlock) -> Result<proto::Unlocked, Problem> {
        self.unlock_vault(who, req)
    }

    fn is_confirmed(&self, who: &Caller) -> bool {
        Self::is_confirmed(self, who)
    }

    fn confirm(&self, who: &Caller, req: proto::Confirm) -> Result<proto::Done, Problem> {
        self.confirm_session(who, req)
    }

    fn lock(&self, who: &Caller) -> Result<proto::Done, Problem> {
        self.lock_vault(who)
    }

    fn secret_set(
        &self,
        who: &Caller,
        req: proto::SecretSet,
    ) -> Result<proto::SecretShown, Problem> {
        self.set_secret(who, req)
    }

    fn secret_edit(
        &self,
        who: &Caller,
        req: proto::SecretEdit,
    ) -> Result<proto::SecretShown, Problem> {
        self.edit_secret(who, req)
    }

    fn secret_get(
        &self,
        who: &Caller,
        req: proto::SecretGet,
    ) -> Result<proto::SecretRevealed, Problem> {
        self.reveal_secret(who, &req)
    }

    fn secret_list(
        &self,
        who: &Caller,
        req: proto::SecretList,
    ) -> Result<proto::SecretListed, Problem> {
        self.list_secrets(who, &req)
    }

    fn secret_show(
        &self,
        _who: &Caller,
        req: proto::SecretName,
    ) -> Result<proto::SecretShown, Problem> {
        self.show_secret(&req)
    }

    fn secret_rm(&self, who: &Caller, req: proto::SecretRm) -> Result<proto::Done, Problem> {
        self.remove_secret(who, &req)
    }

    fn secret_rotate(
        &self,
        who: &Caller,
        req: proto::SecretRotate,
    ) -> Result<proto::Rotated, Problem> {
        self.rotate_secret(who, req)
    }

    fn secret_promote(
        &self,
        who: &Caller,
        req: proto::SecretPromote,
    ) -> Result<proto::Rotated, Problem> {
        self.promote_secret(who, &req)
    }

    fn claim(&self, who: &Caller, verb: &str, key: &str, body: &[u8]) -> Result<Claim, Problem> {
        self.claim_answer(who, verb, key, body)
    }

    fn settle(&self, claimed: &Claimed, outcome: Outcome<'_>) {
        self.settle_answer(claimed, outcome);
    }

    fn secret_rollback(
        &self,
        who: &Caller,
        req: proto::SecretRollback,
    ) -> Result<proto::Rotated, Problem> {
        self.rollback_secret(who, &req)
    }

    fn secret_revoke(
        &self,
        who: &Caller,
        req: proto::SecretRevoke,
    ) -> Result<proto::Revoked, Problem> {
        self.revoke_secret(who, req)
    }

    fn secret_destroy(
        &self,
        who: &Caller,
        req: proto::SecretDestroy,
    ) -> Result<proto::SecretShown, Problem> {
        self.destroy_version(who, &req)
    }

    fn secret_exposures(
        &self,
        _who: &Caller,
        req: proto::SecretName,
    ) -> Result<proto::ExposureList, Problem> {
        self.list_exposures(&req)
    }

    fn group_rotate(
        &self,
        who: &Caller,
        req: proto::GroupRotate,
    ) -> Result<proto::Rotated, Problem> {
        self.rotate_group(who, req)
    }

    fn rotation_apply(
        &self,
        who: &Caller,
        req: proto::RotationApply,
    ) -> Result<proto::RotationListed, Problem> {
        self.apply_policies(who, &req)
    }

    fn rotation_list(
        &self,
        who: &Caller,
        _req: proto::RotationList,
    ) -> Result<proto::RotationListed, Problem> {
        self.list_policies(who)
    }

    fn rotation_rm(&self, who: &Caller, req: proto::RotationRm) -> Result<proto::Done, Problem> {
        self.remove_policy(who, &req)
    }

    fn rotation_run(
        &self,
        who: &Caller,
        req: proto::RotationRun,
        out: &mut dyn Lines,
    ) -> Result<(), Problem> {
        self.run_rotation(who, &req, out)
    }

    fn alert_test(&self, who: &Caller) -> Result<proto::AlertTested, Problem> {
        self.test_alerts(who)
    }

    fn group_set(&self, who: &Caller, req: proto::GroupSet) -> Result<proto::GroupShown, Problem> {
        self.set_group(who, req)
    }

    fn group_list(
        &self,
        who: &Caller,
        req: proto::GroupList,
    ) -> Result<proto::GroupListed, Problem> {
        self.list_groups(who, &req)
    }

    fn group_show(
        &self,
        _who: &Caller,
        req: proto::GroupName,
    ) -> Result<proto::GroupShown, Problem> {
        self.show_group(&req)
    }

    fn group_rm(&self, who: &Caller, req: proto::GroupName) -> Result<proto::Done, Problem> {
        self.remove_group(who, &req)
    }

    fn project_add(
        &self,
        who: &Caller,
        req: proto::ProjectChains,
    ) -> Result<proto::ProjectShown, Problem> {
        self.admit_chains(who, &req)
    }

    fn project_remove(
        &self,
        who: &Caller,
        req: proto::ProjectChains,
    ) -> Result<proto::ProjectShown, Problem> {
        self.exclude_chains(who, &req)
    }

    fn project_set(
        &self,
        who: &Caller,
        req: proto::ProjectSet,
    ) -> Result<proto::ProjectShown, Problem> {
        self.set_project(who, &req)
    }

    fn project_list(
        &self,
        _who: &Caller,
        _req: proto::ProjectList,
    ) -> Result<proto::ProjectListed, Problem> {
        self.list_projects()
    }

    fn project_rm(&self, who: &Caller, req: proto::ProjectName) -> Result<proto::Done, Problem> {
        self.remove_project(who, &req)
    }

    fn import(&self, who: &Caller, req: proto::Import) -> Result<proto::Imported, Problem> {
        self.import_secrets(who, req)
    }

    fn key_list(&self, _who: &Caller) -> Result<proto::KeyListed, Problem> {
        self.list_keys()
    }

    fn key_add(&self, who: &Caller, req: proto::KeyAdd) -> Result<proto::KeyAdded, Problem> {
        self.add_key(who, req)
    }

    fn key_rm(&self, who: &Caller, req: proto::KeyRm) -> Result<proto::Done, Problem> {
        self.remove_key(who, &req)
    }

    fn key_rekey(&self, who: &Caller, req: proto::KeyRekey) -> Result<proto::KeyAdded, Problem> {
        self.rekey(who, req)
    }

    fn backup_create(
        &self,
        who: &Caller,
        req: proto::BackupCreate,
    ) -> Result<proto::BackupCreated, Problem> {
        self.create_backup(who, &req)
    }

    fn backup_verify(
        &self,
        _who: &Caller,
        req: proto::BackupVerify,
    ) -> Result<proto::BackupVerified, Problem> {
        self.verify_backup(&req)
    }

    fn backup_restore(
        &self,
        who: &Caller,
        req: proto::BackupRestore,
    ) -> Result<proto::BackupRestored, Problem> {
        self.restore_backup(who, &req)
    }

    fn chain_apply(
        &self,
        who: &Caller,
        req: proto::ChainApply,
    ) -> Result<proto::ChainApplied, Problem> {
        self.apply_chain(who, &req)
    }

    fn chain_check(
        &self,
        _who: &Caller,
        req: proto::ChainCheck,
    ) -> Result<proto::ChainChecked, Problem> {
        self.check_chain(&req)
    }

    fn chain_list(
        &self,
        who: &Caller,
        _req: proto::ChainList,
    ) -> Result<proto::ChainListed, Problem> {
        self.list_chains(who)
    }

    fn chain_show(
        &self,
        _who: &Caller,
        req: proto::ChainName,
    ) -> Result<proto::ChainShown, Problem> {
        self.show_chain(&req)
    }

    fn chain_rm(&self, who: &Caller, req: proto::ChainName) -> Result<proto::Done, Problem> {
        self.remove_chain(who, &req)
    }

    fn execution_start(
        &self,
        who: &Caller,
        req: proto::ExecutionStart,
    ) -> Result<proto::ExecutionShown, Problem> {
        self.start_execution(who, &req)
    }

    fn execution_list(
        &self,
        who: &Caller,
        req: proto::ExecutionList,
    ) -> Result<proto::ExecutionListed, Problem> {
        Ok(self.list_executions(who, &req))
    }

    fn execution_show(
        &self,
        who: &Caller,
        req: proto::ExecutionName,
    ) -> Result<proto::ExecutionShown, Problem> {
        self.show_execution(who, &req.id)
    }

    fn execution_extend(
        &self,
        who: &Caller,
        req: proto::ExecutionExtend,
    ) -> Result<proto::ExecutionShown, Problem> {
        self.extend_execution(who, &req)
    }

    fn execution_end(
        &self,
        who: &Caller,
        req: proto::ExecutionEnd,
    ) -> Result<proto::ExecutionShown, Problem> {
        self.end_execution(who, &req)
    }

    fn events_list(
        &self,
        who: &Caller,
        req: proto::EventsList,
    ) -> Result<proto::EventsListed, Problem> {
        self.list_events(who, &req)
    }

    fn events_path(
        &self,
        who: &Caller,
        req: proto::EventsPath,
    ) -> Result<proto::EventsFolder, Problem> {
        self.path_of_events(who, &req)
    }

    fn events_prune(
        &self,
        who: &Caller,
        req: proto::EventsPrune,
    ) -> Result<proto::EventsPruned, Problem> {
        self.prune_events(who, &req)
    }

    fn agent_launch(
        &self,
        who: &Caller,
        req: proto::AgentLaunch,
    ) -> Result<proto::AgentLaunched, Problem> {
        self.launch_agent(who, req)
    }

    fn agent_attach(
        &self,
        who: &Caller,
        req: proto::AgentAttach,
    ) -> Result<proto::AgentAttached, Problem> {
        self.attach_agent(who, &req)
    }

    fn agent_end(&self, who: &Caller, req: proto::AgentEnd) -> Result<proto::AgentEnded, Problem> {
        self.end_agent(who, &req)
    }

    fn ticket_create(
        &self,
        who: &Caller,
        req: proto::TicketCreate,
    ) -> Result<proto::TicketCreated, Problem> {
        self.create_ticket(who, &req)
    }

    fn ticket_redeem(
        &self,
        who: &Caller,
        req: proto::TicketRedeem,
    ) -> Result<proto::AgentLaunched, Problem> {
        self.redeem_ticket(who, &req)
    }

    fn allow(&self, who: &Caller, req: proto::Allow) -> Result<proto::AllowMade, Problem> {
        self.make_entry(who, &req)
    }

    fn redact(&self, who: &Caller, req: proto::Redact) -> Result<Box<dyn Texts>, Problem> {
        Ok(Box::new(self.redact_texts(who, &req)?))
    }

    fn access(&self, who: &Caller, req: proto::Access) -> Result<proto::AccessShown, Problem> {
        self.access_matrix(who, &req)
    }

    fn explain(&self, who: &Caller, req: proto::Explain) -> Result<proto::Explained, Problem> {
        self.explain_process(who, &req)
    }

    fn audit_query(
        &self,
        who: &Caller,
        req: proto::AuditQuery,
        out: &mut dyn Lines,
    ) -> Result<(), Problem> {
        self.query_audit(who, &req, out)
    }

    fn audit_verify(
        &self,
        _who: &Caller,
        req: proto::AuditVerify,
    ) -> Result<proto::AuditVerified, Problem> {
        self.verify_log(&req)
    }

    fn audit_prune(
        &self,
        who: &Caller,
        req: proto::AuditPrune,
    ) -> Result<proto::AuditPruned, Problem> {
        self.prune_log(who, &req)
    }

    fn audit_head(&self, _who: &Caller) -> Result<proto::AuditHead, Problem> {
        Ok(self.log_head())
    }
}
