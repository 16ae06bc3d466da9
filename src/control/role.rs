//! Who may do what over the control socket.
//!
//! Invariant: roles only add rights; a process of an execution has none, whatever its uid; a role
//! that is limited to chains or environments never grants what is about the whole daemon. Danger:
//! a pattern that matches more than it reads, so `*` is understood at the end only.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Mode, Permission, Role};
use crate::proto::Subject;
use crate::sys::peer::Peer;

/// All roles of the configuration, or the default of the mode.
#[derive(Debug, Clone)]
pub struct Roles {
    roles: Vec<Arc<Role>>,
}

impl Roles {
    /// The configured ones; where there are none, root alone (system mode) or `own_uid` (user
    /// mode) may do everything.
    pub fn new(configured: &[Role], mode: Mode, own_uid: u32) -> Self {
        if !configured.is_empty() {
            return Self { roles: configured.iter().cloned().map(Arc::new).collect() };
        }
        let uid = match mode {
            Mode::System => 0,
            Mode::User => own_uid,
        };
        Self {
            roles: vec![Arc::new(Role {
                name: "owner".to_owned(),
                uids: vec![uid],
                gids: Vec::new(),
                may: Permission::ALL.to_vec(),
                chains: Vec::new(),
                environments: Vec::new(),
            })],
        }
    }

    /// The roles that a peer has now.
    pub fn of(&self, peer: &Peer, is_agent: bool) -> Vec<Arc<Role>> {
        if is_agent || !peer.is_alive() {
            return Vec::new();
        }
        let has_group = |gid: &u32| *gid == peer.gid || peer.groups.contains(gid);
        self.roles
            .iter()
            .filter(|role| role.uids.contains(&peer.uid) || role.gids.iter().any(has_group))
            .cloned()
            .collect()
    }
}

/// Who asks, as judged for this one request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The process that connected.
    pub peer: Arc<Peer>,
    /// Whether it is a process of an execution.
    pub is_agent: bool,
    /// Its roles.
    pub roles: Vec<Arc<Role>>,
    /// The `Idempotency-Key` header, where the client sent one.
    pub idempotency_key: Option<String>,
}

impl Caller {
    /// Whether some role grants `permission` for what `subject` names.
    pub fn may(&self, permission: Permission, subject: Subject<'_>) -> bool {
        self.roles.iter().any(|role| role.may.contains(&permission) && covers(role, subject))
    }

    /// Whether some role grants `permission` at all, limited or not.
    pub fn may_somewhere(&self, permission: Permission) -> bool {
        self.roles.iter().any(|role| role.may.contains(&permission))
    }

    /// Whether some role grants `permission` in a chain and environment.
    pub fn may_in(
        &self,
        permission: Permission,
        chain: Option<&str>,
        environment: Option<&str>,
    ) -> bool {
        let environment = Some(environment.unwrap_or("-"));
        self.may(permission, Subject::Place { chain, environment })
    }

    /// Everything that its roles grant somewhere.
    pub fn permissions(&self) -> BTreeSet<Permission> {
        self.roles.iter().flat_map(|role| role.may.iter().copied()).collect()
    }

    /// Names of its roles.
    pub fn role_names(&self) -> Vec<String> {
        self.roles.iter().map(|role| role.name.clone()).collect()
    }
}

/// Whether a role reaches what a request is about. A limit that the request does not name is not
/// met: a role for one chain does not touch what belongs to no chain.
fn covers(role: &Role, subject: Subject<'_>) -> bool {
    match subject {
        Subject::Inside => true,
        Subject::Host => role.chains.is_empty() && role.environments.is_empty(),
        Subject::Place { chain, environment } => {
            let chains = role.chains.is_empty()
                || chain.is_some_and(|c| role.chains.iter().any(|p| matches(p, c)));
            let environments = role.environments.is_empty()
                || environment.is_some_and(|e| role.environments.iter().any(|p| p == e));
            chains && environments
        }
    }
}

/// A chain's name, or a beginning with `*` at the end.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid, groups: groups.to_vec(), pid: 1, pidfd: None }
    }

    fn role(uids: &[u32], gids: &[u32], may: &[Permission]) -> Role {
        Role {
            name: "r".to_owned(),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
            may: may.to_vec(),
            chains: Vec::new(),
            environments: Vec::new(),
        }
    }

    fn caller(role: Role) -> Caller {
        Caller {
            peer: Arc::new(peer(1, 1, &[])),
            is_agent: false,
            roles: vec![Arc::new(role)],
            idempotency_key: None,
        }
    }

    #[test]
    fn by_default_root_alone_or_the_own_uid_has_a_role() {
        let system = Roles::new(&[], Mode::System, 0);
        assert_eq!(system.of(&peer(0, 0, &[]), false).len(), 1);
        assert!(system.of(&peer(1000, 0, &[0]), false).is_empty());
        let user = Roles::new(&[], Mode::User, 1000);
        assert_eq!(user.of(&peer(1000, 5, &[]), false).len(), 1);
        assert!(user.of(&peer(0, 0, &[]), false).is_empty());
    }

    #[test]
    fn configured_roles_replace_the_default() {
        let roles = Roles::new(&[role(&[7], &[50], &[Permission::Audit])], Mode::System, 0);
        assert!(roles.of(&peer(0, 0, &[]), false).is_empty(), "root is not listed");
        assert_eq!(roles.of(&peer(7, 1, &[]), false).len(), 1);
        assert_eq!(roles.of(&peer(8, 50, &[]), false).len(), 1);
        assert_eq!(roles.of(&peer(8, 1, &[3, 50]), false).len(), 1);
        assert!(roles.of(&peer(8, 1, &[3]), false).is_empty());
    }

    #[test]
    fn an_agent_has_no_role_whatever_its_uid() {
        let system = Roles::new(&[], Mode::System, 0);
        assert!(system.of(&peer(0, 0, &[]), true).is_empty());
    }

    #[test]
    fn a_role_for_one_chain_reaches_that_chain_alone() {
        let mut limited = role(&[1], &[], &[Permission::Launch]);
        limited.chains = vec!["billing/*".to_owned(), "deploy".to_owned()];
        let who = caller(limited);
        let may = |chain| who.may_in(Permission::Launch, chain, Some("prod"));
        assert!(may(Some("deploy")));
        assert!(may(Some("billing/invoice")));
        assert!(!may(Some("deploy2")));
        assert!(!may(Some("billing")));
        assert!(!may(None));
        assert!(!who.may(Permission::Launch, Subject::Host));
        assert!(!who.may_in(Permission::Operate, Some("deploy"), None));
    }

    #[test]
    fn the_wall_between_environments_holds_for_roles() {
        let mut limited = role(&[1], &[], &[Permission::Operate]);
        limited.environments = vec!["dev".to_owned()];
        let who = caller(limited);
        assert!(who.may_in(Permission::Operate, None, Some("dev")));
        assert!(!who.may_in(Permission::Operate, None, Some("prod")));
        assert!(!who.may_in(Permission::Operate, None, None), "no environment is not dev");
        let any = Subject::Place { chain: None, environment: None };
        assert!(!who.may(Permission::Operate, any));
    }
}
