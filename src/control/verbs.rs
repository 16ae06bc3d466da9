//! The table of verbs, in the order of the manual: method, path, permission, types.
//!
//! Invariant: a verb that is not in this table does not exist; one that is cannot be called without
//! the permission that stands beside it. Danger: a second list (router, document, manual) that
//! forgets a verb.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use bytes::Bytes;
use schemars::SchemaGenerator;

use super::route::{
    MAX_BACKUP_BYTES, MAX_BODY_BYTES, MAX_IMPORT_BYTES, MAX_TEXT_BYTES, Method, Needs,
    OPEN_METRICS, Reply, Route, Run, decode_and_judge, get, post, stream, stream_post,
};
use crate::config::Permission;
use crate::proto;

fn metrics() -> Route {
    Route {
        verb: "metrics",
        method: Method::Get,
        path: "/v1/metrics",
        needs: SEES,
        about: "Counters in the OpenMetrics text format.",
        idempotent: true,
        confirmed: false,
        kept: false,
        max_body_bytes: MAX_BODY_BYTES,
        request: SchemaGenerator::subschema_for::<proto::Empty>,
        response: SchemaGenerator::subschema_for::<String>,
        run: Run::Once(Box::new(|api, caller, input| {
            decode_and_judge::<proto::Empty>(caller, &input, "metrics", SEES)?;
            Ok(Reply { content_type: OPEN_METRICS, body: Bytes::from(api.metrics(caller)?) })
        })),
    }
}

fn redact() -> Route {
    Route {
        verb: "redact",
        method: Method::Post,
        path: "/v1/redact",
        needs: Needs::Anyone,
        about: "Redacts bytes: every value for `operate` and `audit`, what is looked for in the \
                events of one's own launch, else known formats. `Upgrade: strongroom-redact` \
                turns the connection into a stream.",
        idempotent: true,
        confirmed: false,
        kept: false,
        max_body_bytes: MAX_TEXT_BYTES,
        request: SchemaGenerator::subschema_for::<proto::Redact>,
        response: SchemaGenerator::subschema_for::<String>,
        run: Run::Bytes(Box::new(|api, caller, input| {
            let request =
                decode_and_judge::<proto::Redact>(caller, &input, "redact", Needs::Anyone)?;
            api.redact(caller, request)
        })),
    }
}

use Permission::{Audit, Launch, Operate, Reveal, Revoke};

const OPERATE: Needs = Needs::OneOf(&[Operate]);
const LAUNCH: Needs = Needs::OneOf(&[Launch]);
const AUDIT: Needs = Needs::OneOf(&[Audit]);
const SEES: Needs = Needs::OneOf(&[Operate, Audit]);
const SEES_CHAINS: Needs = Needs::OneOf(&[Launch, Operate, Audit]);

/// All verbs, in the order of the manual.
pub fn table() -> &'static [Route] {
    static TABLE: LazyLock<Vec<Route>> = LazyLock::new(|| {
        let mut all = daemon_verbs();
        all.extend(secret_verbs());
        all.extend(version_verbs());
        all.extend(vault_verbs());
        all.extend(chain_verbs());
        all.extend(seeing_verbs());
        all
    });
    &TABLE
}

/// The verb of that name.
pub fn find(verb: &str) -> Option<&'static Route> {
    table().iter().find(|route| route.verb == verb)
}

fn daemon_verbs() -> Vec<Route> {
    use proto::{Empty, Lock, Self_, Unlock, Watch, WatchEvent};
    vec![
        get::<Empty, _>(
            "health",
            "/v1/health",
            Needs::Anyone,
            "Whether the daemon is ready.",
            |a, w, _| a.health(w),
        ),
        get::<Self_, _>(
            "self",
            "/v1/self",
            Needs::Anyone,
            "Who the peer is to the daemon: its roles, or the agent it is.",
            |a, w, q| a.self_(w, q),
        ),
        get::<Empty, _>(
            "status",
            "/v1/status",
            Needs::AnyRole,
            "State of the daemon, the vault, the mount and waiting rotations.",
            |a, w, _| a.status(w),
        ),
        get::<Empty, _>(
            "doctor",
            "/v1/doctor",
            SEES,
            "How far each promise holds on this host.",
            |a, w, _| a.doctor(w),
        ),
        metrics(),
        stream::<Watch, WatchEvent>(
            "watch",
            "/v1/watch",
            SEES_CHAINS,
            "What happens, a line each, from a sequence number on.",
            |a, w, q, out| a.watch(w, q, out),
        ),
        post::<Unlock, _>("unlock", "/v1/unlock", OPERATE, "Unlocks the vault.", |a, w, q| {
            a.unlock(w, q)
        })
        .unkept(),
        post::<proto::Confirm, _>(
            "confirm",
            "/v1/confirm",
            Needs::AnyRole,
            "Shows the passphrase again, where [operator] confirm wants it.",
            |a, w, q| a.confirm(w, q),
        )
        .unkept()
        .idempotent(),
        post::<Lock, _>(
            "lock",
            "/v1/lock",
            OPERATE,
            "Forgets the vault's key until the next unlock.",
            |a, w, _| a.lock(w),
        )
        .idempotent(),
    ]
}

fn secret_verbs() -> Vec<Route> {
    vec![
        post("secret set", "/v1/secrets", OPERATE, "Creates a secret.", |a, w, q| {
            a.secret_set(w, q)
        })
        .confirmed(),
        post(
            "secret edit",
            "/v1/secrets/edit",
            OPERATE,
            "Changes the metadata of a secret.",
            |a, w, q| a.secret_edit(w, q),
        ),
        post(
            "secret get",
            "/v1/secrets/get",
            Needs::OneOf(&[Reveal]),
            "Reveals a value; recorded, and an exposure of the person.",
            |a, w, q| a.secret_get(w, q),
        )
        .unkept()
        .confirmed(),
        get("secret list", "/v1/secrets", SEES, "Lists secrets, never values.", |a, w, q| {
            a.secret_list(w, q)
        }),
        get("secret show", "/v1/secrets/show", SEES, "Shows one secret.", |a, w, q| {
            a.secret_show(w, q)
        }),
        post(
            "secret rm",
            "/v1/secrets/rm",
            OPERATE,
            "Removes a secret with all its versions.",
            |a, w, q| a.secret_rm(w, q),
        ),
        post(
            "group set",
            "/v1/groups",
            OPERATE,
            "Makes a group, all members in one commit.",
            |a, w, q| a.group_set(w, q),
        )
        .confirmed(),
        get("group list", "/v1/groups", SEES, "Lists groups.", |a, w, q| a.group_list(w, q)),
        get("group show", "/v1/groups/show", SEES, "Shows one group.", |a, w, q| {
            a.group_show(w, q)
        }),
        post("group rm", "/v1/groups/rm", OPERATE, "Removes a group and its members.", {
            |a, w, q| a.group_rm(w, q)
        }),
        post(
            "project set",
            "/v1/projects",
            OPERATE,
            "Makes a project, or replaces its list of chains.",
            |a, w, q| a.project_set(w, q),
        )
        .idempotent()
        .confirmed(),
        post(
            "project add",
            "/v1/projects/add",
            OPERATE,
            "Adds chains to a project's list.",
            |a, w, q| a.project_add(w, q),
        )
        .idempotent()
        .confirmed(),
        post(
            "project remove",
            "/v1/projects/remove",
            OPERATE,
            "Takes chains off a project's list.",
            |a, w, q| a.project_remove(w, q),
        )
        .idempotent(),
        get("project list", "/v1/projects", SEES, "Lists projects.", |a, w, q| {
            a.project_list(w, q)
        }),
        post("project rm", "/v1/projects/rm", OPERATE, "Removes a project.", |a, w, q| {
            a.project_rm(w, q)
        }),
    ]
}

fn version_verbs() -> Vec<Route> {
    vec![
        post(
            "secret rotate",
            "/v1/secrets/rotate",
            OPERATE,
            "Stages a version: new executions get it, running ones keep theirs.",
            |a, w, q| a.secret_rotate(w, q),
        ),
        post(
            "secret promote",
            "/v1/secrets/promote",
            OPERATE,
            "Makes the pending version of a secret or group current.",
            |a, w, q| a.secret_promote(w, q),
        ),
        post(
            "secret rollback",
            "/v1/secrets/rollback",
            OPERATE,
            "Gives up the pending version, or brings the previous one back.",
            |a, w, q| a.secret_rollback(w, q),
        ),
        post(
            "secret revoke",
            "/v1/secrets/revoke",
            Needs::OneOf(&[Revoke]),
            "Denies versions for good and ends the executions that obtained them.",
            |a, w, q| a.secret_revoke(w, q),
        )
        .confirmed(),
        post(
            "secret destroy",
            "/v1/secrets/destroy",
            OPERATE,
            "Removes the bytes of a version that nobody holds.",
            |a, w, q| a.secret_destroy(w, q),
        ),
        get(
            "secret exposures",
            "/v1/secrets/exposures",
            Needs::OneOf(&[Operate, Revoke, Audit]),
            "Who obtained which version, and how.",
            |a, w, q| a.secret_exposures(w, q),
        ),
        post(
            "group rotate",
            "/v1/groups/rotate",
            OPERATE,
            "Stages a version of every member of a group, in one commit.",
            |a, w, q| a.group_rotate(w, q),
        ),
        post(
            "rotation apply",
            "/v1/rotations",
            OPERATE,
            "Makes rotation policies hold, all or none of them.",
            |a, w, q| a.rotation_apply(w, q),
        ),
        get("rotation list", "/v1/rotations", SEES, "Which rotation is due when.", |a, w, q| {
            a.rotation_list(w, q)
        }),
        post("rotation rm", "/v1/rotations/rm", OPERATE, "Removes a policy.", |a, w, q| {
            a.rotation_rm(w, q)
        }),
        stream_post::<proto::RotationRun, proto::RotationStep>(
            "rotation run",
            "/v1/rotations/run",
            OPERATE,
            "Runs the rotation chain of a secret or group now, a line for each step.",
            |a, w, q, out| a.rotation_run(w, q, out),
        ),
        post::<proto::Empty, _>(
            "alert test",
            "/v1/alerts/test",
            OPERATE,
            "Delivers a test to every configured alert.",
            |a, w, _| a.alert_test(w),
        ),
    ]
}

fn vault_verbs() -> Vec<Route> {
    vec![
        post(
            "import",
            "/v1/import",
            OPERATE,
            "Takes values from a dotenv file, a JSON object, or a directory's files.",
            |a, w, q| a.import(w, q),
        )
        .up_to(MAX_IMPORT_BYTES)
        .confirmed(),
        get::<proto::KeyList, _>(
            "key list",
            "/v1/keys",
            SEES,
            "Lists the ways to open the vault.",
            |a, w, _| a.key_list(w),
        ),
        post("key add", "/v1/keys", OPERATE, "Adds a way to open the vault.", |a, w, q| {
            a.key_add(w, q)
        })
        .unkept()
        .confirmed(),
        post("key rm", "/v1/keys/rm", OPERATE, "Removes a way to open the vault.", |a, w, q| {
            a.key_rm(w, q)
        })
        .confirmed(),
        post("key rekey", "/v1/keys/rekey", OPERATE, "Changes a slot's master key.", |a, w, q| {
            a.key_rekey(w, q)
        })
        .unkept()
        .confirmed(),
        // Whoever makes a backup chooses its passphrase, and so can read every value in it.
        post(
            "backup create",
            "/v1/backup",
            Needs::AllOf(&[Operate, Reveal]),
            "The whole vault, encrypted under a passphrase of its own.",
            |a, w, q| a.backup_create(w, q),
        )
        .unkept()
        .confirmed(),
        post(
            "backup verify",
            "/v1/backup/verify",
            OPERATE,
            "Whether a backup is complete and unaltered.",
            |a, w, q| a.backup_verify(w, q),
        )
        .up_to(MAX_BACKUP_BYTES)
        .idempotent(),
        post(
            "backup restore",
            "/v1/backup/restore",
            Needs::AllOf(&[Operate, Reveal]),
            "Restores a backup; revocations since then hold.",
            |a, w, q| a.backup_restore(w, q),
        )
        .up_to(MAX_BACKUP_BYTES)
        .confirmed(),
    ]
}

fn chain_verbs() -> Vec<Route> {
    vec![
        post(
            "chain apply",
            "/v1/chains",
            OPERATE,
            "Makes a definition hold; a definition is a grant.",
            |a, w, q| a.chain_apply(w, q),
        )
        .confirmed(),
        post(
            "chain check",
            "/v1/chains/check",
            SEES_CHAINS,
            "What `chain apply` would say.",
            |a, w, q| a.chain_check(w, q),
        )
        .idempotent(),
        get("chain list", "/v1/chains", SEES_CHAINS, "Lists chains.", |a, w, q| a.chain_list(w, q)),
        get("chain show", "/v1/chains/show", SEES_CHAINS, "Shows one chain.", |a, w, q| {
            a.chain_show(w, q)
        }),
        post("chain rm", "/v1/chains/rm", OPERATE, "Removes a definition.", |a, w, q| {
            a.chain_rm(w, q)
        }),
        post(
            "execution start",
            "/v1/executions",
            LAUNCH,
            "Starts an execution; the same id again answers with the same one.",
            |a, w, q| a.execution_start(w, q),
        ),
        get("execution list", "/v1/executions", SEES_CHAINS, "Lists executions.", |a, w, q| {
            a.execution_list(w, q)
        }),
        get(
            "execution show",
            "/v1/executions/show",
            SEES_CHAINS,
            "Shows one execution.",
            |a, w, q| a.execution_show(w, q),
        ),
        post(
            "execution extend",
            "/v1/executions/extend",
            LAUNCH,
            "Moves an execution's deadline.",
            |a, w, q| a.execution_extend(w, q),
        )
        .idempotent(),
        post(
            "execution end",
            "/v1/executions/end",
            LAUNCH,
            "Ends an execution and its processes.",
            |a, w, q| a.execution_end(w, q),
        )
        .idempotent(),
        get("events list", "/v1/events", SEES_CHAINS, "Folders of the event store.", |a, w, q| {
            a.events_list(w, q)
        }),
        get(
            "events path",
            "/v1/events/path",
            SEES_CHAINS,
            "The folder of an execution.",
            |a, w, q| a.events_path(w, q),
        ),
        post(
            "events prune",
            "/v1/events/prune",
            OPERATE,
            "Removes event files of executions that have ended.",
            |a, w, q| a.events_prune(w, q),
        )
        .idempotent(),
        post(
            "agent launch",
            "/v1/agents",
            Needs::LaunchOrAgent,
            "Registers an agent before it runs.",
            |a, w, q| a.agent_launch(w, q),
        )
        .unkept(),
        post(
            // The launch's id is the right: 128 random bits that its maker alone was told, and the
            // verb asks for the launch's uid as well.
            "agent attach",
            "/v1/agents/attach",
            Needs::Anyone,
            "Makes the peer, or a stopped child of it, the agent's process.",
            |a, w, q| a.agent_attach(w, q),
        )
        .unkept()
        .idempotent(),
        post(
            "agent end",
            "/v1/agents/end",
            Needs::Anyone,
            "Says that the agent's main process has ended.",
            |a, w, q| a.agent_end(w, q),
        )
        .unkept()
        .idempotent(),
        post(
            "ticket create",
            "/v1/tickets",
            LAUNCH,
            "A launch that a process of another uid redeems.",
            |a, w, q| a.ticket_create(w, q),
        )
        .unkept(),
        post(
            "ticket redeem",
            "/v1/tickets/redeem",
            Needs::Anyone,
            "Redeems a ticket; the ticket is the proof.",
            |a, w, q| a.ticket_redeem(w, q),
        )
        .unkept(),
    ]
}

fn seeing_verbs() -> Vec<Route> {
    use proto::{AuditQuery, AuditVerify, Empty};
    vec![
        redact(),
        post(
            "allow",
            "/v1/allow",
            OPERATE,
            "Makes an entry for `[redaction] allow` of a token that may be shown.",
            |a, w, q| a.allow(w, q),
        )
        .unkept()
        .idempotent()
        .confirmed(),
        get(
            "access",
            "/v1/access",
            SEES_CHAINS,
            "Agents by secrets: what each resolves to, and why.",
            |a, w, q| a.access(w, q),
        ),
        get("explain", "/v1/explain", SEES, "Why a process cannot see a name.", |a, w, q| {
            a.explain(w, q)
        }),
        stream::<AuditQuery, serde_json::Value>(
            "audit query",
            "/v1/audit",
            AUDIT,
            "Records, a line each.",
            |a, w, q, out| a.audit_query(w, q, out),
        ),
        get::<AuditVerify, _>(
            "audit verify",
            "/v1/audit/verify",
            AUDIT,
            "Whether the log is as it was written.",
            |a, w, q| a.audit_verify(w, q),
        ),
        get::<Empty, _>(
            "audit head",
            "/v1/audit/head",
            AUDIT,
            "What to store elsewhere.",
            |a, w, _| a.audit_head(w),
        ),
        post::<proto::AuditPrune, _>(
            "audit prune",
            "/v1/audit/prune",
            OPERATE,
            "Removes the records of days gone by, and leaves a signed anchor.",
            |a, w, q| a.audit_prune(w, q),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_that_may_be_kept_has_a_place_for_a_value() {
        let mut kept = 0;
        for route in table().iter().filter(|route| route.kept) {
            assert_eq!(route.method, Method::Post, "{}", route.verb);
            assert!(matches!(route.run, Run::Once(_)), "{}", route.verb);
            let mut schemas = SchemaGenerator::default();
            let answer = (route.response)(&mut schemas);
            let all = format!("{answer:?} {:?}", schemas.take_definitions(true));
            for word in ["\"Value\"", "\"Blob\"", "$defs/Value", "$defs/Blob", "recovery", "ticket"]
            {
                assert!(!all.contains(word), "{} answers with {word}", route.verb);
            }
            kept += 1;
        }
        assert!(kept > 20, "{kept}");
        // What is looked for above is there where it should be.
        let reveal = find("secret get").unwrap();
        let mut schemas = SchemaGenerator::default();
        let answer = (reveal.response)(&mut schemas);
        let all = format!("{answer:?} {:?}", schemas.take_definitions(true));
        assert!(all.contains("Value"), "{all}");
        assert!(!reveal.kept);
    }
}
