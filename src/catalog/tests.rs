//! Resolution by table: for every allow the neighbouring deny.
#![forbid(unsafe_code)]

use super::resolve::{Asker, Error as ResolveError, Resolution};
use super::secret::{Binding, NewVersion};
use super::*;

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn secret(key: &str, scope: &str) -> Secret {
    let mut secret = Secret {
        id: format!("{key}|{scope}"),
        key: key.parse().unwrap(),
        scope: scope.parse().unwrap(),
        description: None,
        group: None,
        plain: false,
        binding: Binding::Pinned,
        access_log_enabled: true,
        created_at: now(),
        created_by: "me".into(),
        rotated_at: None,
        expires_at: None,
        end_told: None,
        versions: Vec::new(),
    };
    secret.replace(NewVersion {
        value: "00".into(),
        size_bytes: 1,
        at: now(),
        by: "me".into(),
        valid_from: None,
        valid_until: None,
        generation: 0,
        drain: None,
        untested: false,
    });
    secret
}

fn catalog(secrets: &[(&str, &str)]) -> Catalog {
    let environments = ["dev", "staging", "prod"].iter().map(|e| e.parse().unwrap()).collect();
    let mut catalog = Catalog::new(environments);
    for (key, scope) in secrets {
        catalog.put_secret(secret(key, scope));
    }
    let definition = Definition::parse(
        r#"{"chain": "c", "agents": [{"name": "A", "secrets": ["KEY"]},
            {"name": "B", "secrets": ["OTHER"]}]}"#,
        false,
    )
    .unwrap();
    catalog.put_chain(Chain {
        id: "c".into(),
        definition,
        digest: String::new(),
        applied_at: now(),
        applied_by: "me".into(),
    });
    catalog
}

fn resolve(catalog: &Catalog, environment: Option<&str>) -> Resolution {
    let environment = environment.map(|e| e.parse::<EnvName>().unwrap());
    let asker = Asker {
        chain: &"c".parse().unwrap(),
        agent: &"A".parse().unwrap(),
        environment: environment.as_ref(),
    };
    catalog.resolve(asker).unwrap()
}

/// The secret that KEY resolves to, as "key scope".
fn taken(secrets: &[(&str, &str)], environment: Option<&str>) -> Option<String> {
    let resolution = resolve(&catalog(secrets), environment);
    let grant = resolution.granted.values().next();
    assert_eq!(grant.is_none(), resolution.unresolved.len() == 1);
    grant.map(|g| format!("{} {}", g.secret.key, g.secret.scope))
}

#[test]
fn the_environment_comes_first_and_then_the_narrowest_scope() {
    let some = |text: &str| Some(text.to_owned());
    let all = [
        ("prod/KEY", "org"),
        ("prod/KEY", "chain:c"),
        ("prod/KEY", "agent:c/A"),
        ("KEY", "agent:c/A"),
        ("dev/KEY", "agent:c/A"),
    ];
    assert_eq!(taken(&all, Some("prod")), some("prod/KEY agent:c/A"));
    assert_eq!(taken(&all[..2], Some("prod")), some("prod/KEY chain:c"));
    assert_eq!(taken(&all[..1], Some("prod")), some("prod/KEY org"));
    assert_eq!(taken(&all, None), some("KEY agent:c/A"));
    assert_eq!(
        taken(&[("prod/KEY", "org"), ("KEY", "agent:c/A")], Some("prod")),
        some("prod/KEY org")
    );
}

#[test]
fn scopes_of_others_do_not_admit() {
    assert_eq!(taken(&[("KEY", "chain:other")], None), None);
    assert_eq!(taken(&[("KEY", "agent:c/B")], None), None);
    assert_eq!(taken(&[("KEY", "project:p")], None), None);
    let mut catalog = catalog(&[("KEY", "project:p")]);
    catalog.put_project(Project {
        id: "p".into(),
        name: "p".parse().unwrap(),
        chains_allowed: vec!["c".parse().unwrap()],
        created_at: now(),
        created_by: "me".into(),
    });
    assert_eq!(resolve(&catalog, None).granted.len(), 1);
}

#[test]
fn nothing_crosses_the_wall_between_environments() {
    assert_eq!(taken(&[("prod/KEY", "org")], Some("dev")), None);
    assert_eq!(taken(&[("prod/KEY", "org")], None), None);
    // The name exists somewhere for this agent: the one without an environment is no fallback.
    assert_eq!(taken(&[("prod/KEY", "org"), ("KEY", "org")], Some("dev")), None);
    assert_eq!(taken(&[("KEY", "org")], Some("dev")), Some("KEY org".to_owned()));
    // It exists for others only: no obstacle.
    assert_eq!(
        taken(&[("prod/KEY", "chain:other"), ("KEY", "org")], Some("dev")),
        Some("KEY org".to_owned())
    );
}

#[test]
fn what_resolves_to_nothing_says_what_would_mend_it() {
    let resolution = resolve(&catalog(&[("dev/KEY", "org")]), Some("prod"));
    let unresolved = &resolution.unresolved[0];
    assert_eq!(
        unresolved.why.fix.as_deref(),
        Some("strongroom secret set prod/KEY --scope chain:c")
    );
    assert_eq!(unresolved.why.candidates.len(), 1);
    assert!(!unresolved.why.candidates[0].taken);
}

#[test]
fn a_group_gives_its_members_under_their_own_names() {
    let mut catalog = catalog(&[]);
    for key in ["prod/AWS_ID", "prod/AWS_KEY"] {
        let mut member = secret(key, "chain:c");
        member.group = Some("aws".parse().unwrap());
        catalog.put_secret(member);
    }
    catalog.put_group(Group {
        id: "g".into(),
        key: "prod/aws".parse().unwrap(),
        scope: "chain:c".parse().unwrap(),
        description: None,
        created_at: now(),
        created_by: "me".into(),
    });
    let definition = Definition::parse(
        r#"{"chain": "c", "agents": [{"name": "A", "secrets": [{"group": "aws"}]}]}"#,
        false,
    )
    .unwrap();
    let names = |environment: &str| {
        let environment: EnvName = environment.parse().unwrap();
        let asker = Asker {
            chain: &"c".parse().unwrap(),
            agent: &"A".parse().unwrap(),
            environment: Some(&environment),
        };
        let resolution = catalog.resolve_in(&definition, asker).unwrap();
        let names: Vec<_> = resolution.granted.keys().map(ToString::to_string).collect();
        (names, resolution.unresolved.len())
    };
    assert_eq!(names("prod"), (vec!["AWS_ID".to_owned(), "AWS_KEY".to_owned()], 0));
    assert_eq!(names("dev"), (vec![], 1));
    assert!(matches!(
        catalog.check_group(&Group {
            id: "h".into(),
            key: "x/aws".parse().unwrap(),
            scope: Scope::Org,
            description: None,
            created_at: now(),
            created_by: "me".into(),
        }),
        Err(Error::UnknownEnvironment { .. })
    ));
    assert!(matches!(
        catalog.check_secret(&secret("aws", "org")),
        Err(Error::NameClash { other: "group", .. })
    ));
}

#[test]
fn an_unknown_agent_or_chain_is_told_apart() {
    let catalog = catalog(&[]);
    let ask = |chain: &str, agent: &str| {
        catalog
            .resolve(Asker {
                chain: &chain.parse().unwrap(),
                agent: &agent.parse().unwrap(),
                environment: None,
            })
            .unwrap_err()
    };
    assert!(matches!(ask("x", "A"), ResolveError::NoChain { .. }));
    assert!(matches!(ask("c", "X"), ResolveError::NoAgent { .. }));
}

#[test]
fn a_bare_name_of_several_secrets_is_ambiguous() {
    let catalog = catalog(&[("KEY", "org"), ("KEY", "chain:c")]);
    let key = "KEY".parse().unwrap();
    assert!(matches!(catalog.find(&key, None), Err(Error::Ambiguous { .. })));
    assert_eq!(catalog.find(&key, Some(&Scope::Org)).unwrap().scope, Scope::Org);
    assert!(matches!(catalog.find(&"NONE".parse().unwrap(), None), Err(Error::Missing { .. })));
    assert!(matches!(
        catalog.check_secret(&Secret { id: "new".into(), ..secret("KEY", "org") }),
        Err(Error::Exists { .. })
    ));
}
