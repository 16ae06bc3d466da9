//! `setup`: from nothing to a daemon that answers, by options, at a terminal, and as root with the
//! service manager; a second run harms nothing, and one that fails leaves nothing half done.
#![forbid(unsafe_code)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::{Home, at_a_terminal, may_mount, text};

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn by_options_it_makes_all_says_what_to_do_next_and_may_be_run_again() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let made = home.json(&["setup", "--unlock", "key-file", "--yes"]);
    let key = home.dir.path().join("home.key");
    assert_eq!(made["key_file"], key.to_str().unwrap());
    assert_eq!((mode(&key), bytes(&key).len()), (0o600, 32));
    assert_eq!(mode(&home.home().join("strongroom.toml")), 0o600);
    assert_eq!(home.json(&["status"])["state"], "ready");
    // Its own words, typed as they stand.
    let next: Vec<_> = made["next"].as_array().unwrap().iter().flat_map(|l| l.as_str()).collect();
    assert_eq!(next.len(), 3, "{next:?}");
    let bin = Path::new(env!("CARGO_BIN_EXE_strongroom")).parent().unwrap().display().to_string();
    let typed = Command::new("sh")
        .args(["-ec", &next.join("\n")])
        .env("STRONGROOM_HOME", home.home())
        .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
        .env("OPENAI_API_KEY", "setup-0123456789abcdef")
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    let told = text(&typed);
    assert!(typed.status.success() && told.contains("[REDACTED:OPENAI_API_KEY]"), "{told}");
    assert!(told.contains("secret_accessed") && !told.contains("setup-0123456789"), "{told}");

    let vault = || {
        let shown = home.json(&["secret", "list"]);
        (bytes(&key), bytes(&home.home().join("strongroom.toml")), shown.to_string())
    };
    let before = vault();
    let again = home.json(&["setup", "--yes"]);
    assert!(again["steps"].as_array().unwrap().iter().all(|s| s["was_there"] == true), "{again}");
    home.ok(&["down"]);
    // A part of it is missing: that part is done.
    let started = home.json(&["setup", "--yes"]);
    let open = |s: &&serde_json::Value| s["was_there"] == false;
    assert_eq!(started["steps"].as_array().unwrap().iter().filter(open).count(), 1);
    assert_eq!(vault(), before);
}

#[test]
fn a_dry_run_says_what_would_be_and_does_nothing() {
    let home = Home::new();
    let output = home.run(&["setup", "--yes", "--dry-run", "--no-up"]);
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    for part in ["key file", "vault.redb", "strongroom.toml", "nothing was done"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(told.matches("would make:").count(), 3, "{told}");
    assert!(!home.home().exists() && !home.dir.path().join("home.key").exists());
}

#[test]
fn at_a_terminal_it_asks_what_no_option_says_and_a_slip_of_the_hand_makes_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let dir = home.home();
    let slip = [
        ("which? [1]", "2"),
        ("directory: ", dir.to_str().unwrap()),
        ("which? [1]", "passphrase"),
        ("[Y/n]", "y"),
        ("Go ahead?", ""),
        ("new passphrase: ", "nine blue horses 47"),
        ("the same again: ", "nine blue houses 47"),
    ];
    // No variable names the home: it is asked for.
    let told = at_a_terminal(&home, "unset STRONGROOM_HOME; strongroom setup", &slip);
    assert!(told.contains("error: the two passphrases differ"), "{told}");
    assert!(told.contains("unanswered 0 status 1") && !dir.join("vault.redb").exists(), "{told}");
    assert!(!dir.join("strongroom.toml").exists());

    let mut right = slip;
    right[6].1 = right[5].1;
    let told = at_a_terminal(&home, "unset STRONGROOM_HOME; strongroom setup", &right);
    assert!(told.contains("unanswered 0 status 0"), "{told}");
    assert!(told.contains("recovery key (write it down"), "{told}");
    assert!(told.contains(&format!("export STRONGROOM_HOME='{}'", dir.display())), "{told}");
    assert!(told.contains("strongroom unlock\n") && !told.contains("horses"), "{told}");
    let health = home.run(&["status"]);
    assert!(text(&health).contains("locked"), "{}", text(&health));
    home.ok_with(&["unlock"], right[5].1);

    let refused = Home::new();
    let answers = [("which? [1]", "x"), ("which? [1]", ""), ("recovery", "n"), ("ahead?", "n")];
    let told = at_a_terminal(&refused, "strongroom setup", &answers);
    assert!(told.contains("there is no such choice"), "{told}");
    assert!(told.contains("error: nothing was done") && !refused.home().exists(), "{told}");
    let told = at_a_terminal(&refused, "strongroom setup < /dev/null | cat", &[]);
    assert!(told.contains("done"), "without a terminal to ask at, it takes what is usual: {told}");
}

#[test]
fn what_is_there_stays_and_what_contradicts_it_is_refused_before_anything_is_made() {
    if !may_mount() {
        return;
    }
    // A configuration that came first decides.
    let home = Home::new();
    std::fs::create_dir(home.home()).unwrap();
    let own = "[unlock]\nmethod = \"key-file\"\npath = \"../own.key\"\n";
    std::fs::write(home.home().join("strongroom.toml"), own).unwrap();
    let told = home.refused(&["setup", "--unlock", "passphrase", "--yes"]);
    assert!(told.contains("--unlock says passphrase"), "{told}");
    assert!(!home.home().join("vault.redb").exists());
    home.ok(&["setup", "--yes", "--no-up"]);
    assert!(home.dir.path().join("own.key").exists());
    assert_eq!(bytes(&home.home().join("strongroom.toml")), own.as_bytes());
    // A vault whose key is gone gets no new key that cannot open it.
    std::fs::remove_file(home.dir.path().join("own.key")).unwrap();
    let told = home.refused(&["setup", "--yes"]);
    assert!(told.contains("no key file at") && told.contains("key-file:PATH"), "{told}");
    assert!(!home.dir.path().join("own.key").exists());
    // Beside the vault: refused, before it is made.
    let beside = Home::new();
    let place = format!("key-file:{}", beside.home().join("key").display());
    let told = beside.refused(&["setup", "--yes", "--unlock", &place]);
    assert!(told.contains("the vault's own directory") && !beside.home().exists(), "{told}");
    // The vault cannot be made: the key file goes again.
    let blocked = Home::new();
    std::fs::create_dir(blocked.home()).unwrap();
    std::fs::write(blocked.home().join("audit"), "in the way").unwrap();
    let output = blocked.run(&["setup", "--yes"]);
    let told = text(&output);
    assert!(!output.status.success() && told.contains("audit: "), "{told}");
    assert!(told.lines().last().unwrap().starts_with("hint: "), "{told}");
    assert!(!blocked.dir.path().join("home.key").exists());
    assert!(!blocked.home().join("vault.redb").exists());
}

/// A service manager that does what is needed of one: it starts the unit's program.
const SYSTEMCTL: &str = "#!/bin/sh
echo \"$@\" >> /run/asked
case $1 in enable) $(sed -n 's/^ExecStart=\\(.*\\) serve$/\\1/p' \\
    /etc/systemd/system/strongroom.service) up > /dev/null 2>&1;; esac
exit 0
";

#[test]
fn as_root_it_installs_the_unit_and_serves_the_host() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let dir = home.dir.path();
    std::fs::create_dir(dir.join("bin")).unwrap();
    std::fs::write(dir.join("bin/systemctl"), SYSTEMCTL).unwrap();
    std::fs::create_dir(dir.join("layers")).unwrap();
    // A host of its own: what is written to /etc, /var/lib and /run stays in this namespace.
    let script = r#"set -e
mount -t tmpfs layers layers
for at in /etc /usr/lib/systemd /var/lib; do
  name=layers$(echo $at | tr / -); mkdir $name-upper $name-work
  mount -t overlay -o lowerdir=$at,upperdir=$name-upper,workdir=$name-work overlay $at
done
mount -t tmpfs run /run; mkdir -p /run/systemd/system
chmod +x bin/systemctl; export PATH=$PWD/bin:$PATH
trap 'STRONGROOM down || true' EXIT
STRONGROOM setup --yes --dry-run --systemd
test ! -e /etc/strongroom
STRONGROOM setup --yes --systemd --unlock key-file --recovery
echo == again; STRONGROOM setup --yes --systemd
echo == state; stat -c '%a %n' /etc/strongroom/vault.key /etc/systemd/system/strongroom.service
cat /run/asked; STRONGROOM status; ls -d /run/secrets
grep ExecStart /etc/systemd/system/strongroom.service
echo changed >> /etc/systemd/system/strongroom.service
echo == other; STRONGROOM setup --yes --systemd || true
rm /etc/systemd/system/strongroom.service; mkdir -p /usr/lib/systemd/system
cp CONTRIB /usr/lib/systemd/system/strongroom.service
echo == packaged; STRONGROOM setup --yes --systemd 2>&1; test ! -e /etc/systemd/system/strongroom.service
"#;
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/systemd/strongroom.service");
    let script = script.replace("STRONGROOM", env!("CARGO_BIN_EXE_strongroom"));
    let script = script.replace("CONTRIB", unit);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .current_dir(dir)
        .env_remove("STRONGROOM_HOME")
        .output()
        .unwrap();
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    for line in [
        "600 /etc/strongroom/vault.key",
        "644 /etc/systemd/system/strongroom.service",
        "daemon-reload\nenable --now strongroom.service",
        "/run/secrets\n",
        "recovery key (write it down",
        concat!("ExecStart=", env!("CARGO_BIN_EXE_strongroom"), " serve"),
        "/etc/systemd/system/strongroom.service is there, and is another",
        "is there:   unit /usr/lib/systemd/system/strongroom.service",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(told.contains("state       ready"), "{told}");
    assert!(!Path::new("/etc/strongroom").exists(), "the host is as it was");
}
