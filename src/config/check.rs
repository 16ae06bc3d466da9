//! What no single value of a configuration shows: whether all of them make sense together.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::{Config, Error, MAX_HELD, Paths, UnlockMethod};

impl Config {
    /// Checks what no single value shows.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self, paths: &Paths) -> Result<(), Error> {
        let invalid = |problem: String, remedy: &str| {
            Err(Error::Invalid {
                path: paths.config_file.clone(),
                problem,
                remedy: remedy.to_owned(),
            })
        };
        for environment in &self.environments {
            if !is_environment(environment) {
                return invalid(
                    "environments: a name is [a-z][a-z0-9-]*, at most 64 characters".to_owned(),
                    "write them like environments = [\"dev\", \"staging\", \"prod\"]",
                );
            }
        }
        if !(1..=64).contains(&self.mount.threads) {
            return invalid("mount.threads is not 1 to 64".to_owned(), "4 is a good number");
        }
        if self.audit.checkpoint_records == 0 || self.audit.checkpoint.0.is_zero() {
            return invalid(
                "audit: a checkpoint after nothing would never end".to_owned(),
                "leave out checkpoint and checkpoint_records for the defaults",
            );
        }
        self.check_unlock().or_else(|(problem, remedy)| invalid(problem.to_owned(), remedy))?;
        match u32::from_str_radix(&self.events.mode, 8) {
            Ok(mode) if mode <= 0o777 => {}
            _ => {
                return invalid("events.mode is no octal mode".to_owned(), "write mode = \"0640\"");
            }
        }
        if self.events.max_held > MAX_HELD {
            return invalid(
                format!("events.max_held is more than {MAX_HELD} bytes"),
                "the memory is shared by all files that are written; the default is 16 MiB",
            );
        }
        let mut names =
            self.roles.iter().map(|r| &r.name).chain(self.alerts.iter().map(|a| &a.name));
        if !names.all(|name| is_name(name)) {
            return invalid(
                "a role's or alert's name is 1 to 64 of A-Z a-z 0-9 _ . -".to_owned(),
                "write it like name = \"ci\"",
            );
        }
        for role in &self.roles {
            if role.uids.is_empty() && role.gids.is_empty() {
                return invalid(
                    format!("role `{}` has neither uids nor gids", role.name),
                    "nobody could have it: add uids = [..] or remove the role",
                );
            }
            let known = |e: &String| e == "-" || self.environments.contains(e);
            if let Some(unknown) = role.environments.iter().find(|e| !known(e)) {
                let unknown = if is_environment(unknown) { unknown } else { "..." };
                return invalid(
                    format!("role `{}` names the environment `{unknown}`", role.name),
                    "list it under environments first (\"-\" stands for none)",
                );
            }
        }
        for alert in &self.alerts {
            if alert.command.is_empty() == alert.webhook.is_none() {
                return invalid(
                    format!("alert `{}` needs one of command and webhook", alert.name),
                    "write command = [\"/usr/local/bin/page-me\"] or webhook = \"https://..\"",
                );
            }
        }
        let moved = paths.clone().with(self);
        let key = self.unlock.path.as_ref().map(|p| moved.beside_config(p));
        let mount = without_dots(&moved.mount);
        for path in moved.own().into_iter().chain(key.as_deref()) {
            // Links are followed later, by the keeper: here the mount may be our own already.
            if without_dots(path).starts_with(&mount) {
                return invalid(
                    format!("{} lies beneath the mount {}", path.display(), moved.mount.display()),
                    "the daemon would wait for itself; move one of them",
                );
            }
        }
        Ok(())
    }

    fn check_unlock(&self) -> Result<(), (&'static str, &'static str)> {
        let unlock = &self.unlock;
        match unlock.method {
            Some(UnlockMethod::KeyFile) if unlock.path.is_none() => {
                Err(("unlock.method key-file without a path", "add path = \"/path/to/key\""))
            }
            Some(UnlockMethod::SystemdCredential) if unlock.path.is_none() => Err((
                "unlock.method systemd-credential without a path",
                "add path = \"NAME\", the credential's name in the unit",
            )),
            Some(UnlockMethod::Command) if unlock.command.is_empty() => Err((
                "unlock.method command without a command",
                "add command = [\"/usr/local/bin/unwrap\", \"ARG\"]",
            )),
            None if unlock.path.is_some() || !unlock.command.is_empty() => Err((
                "unlock has a path or a command, but no method",
                "add method = \"key-file\" or method = \"command\"",
            )),
            _ => Ok(()),
        }
    }
}

/// The path without `.` and `..`, as far as its text tells.
fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn is_environment(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}
