//! Where everything lies, decided from facts alone.
//!
//! Invariant: every path is absolute; nothing is created or looked up here. Danger: a relative XDG
//! variable that would put the vault wherever the daemon was started.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, Error, HOME_VARIABLE};

/// Whose daemon it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Started by root; agents are separated by cgroups.
    System,
    /// Started by a person; mounts through `fusermount3`.
    User,
}

impl Mode {
    /// The mode of a process with this effective uid.
    pub fn of_uid(uid: u32) -> Self {
        if uid == 0 { Self::System } else { Self::User }
    }
}

/// What the process was started with, as far as it decides where things lie.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The effective uid.
    pub uid: u32,
    /// `--home`, else `STRONGROOM_HOME`.
    pub strongroom_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<OsString>,
}

impl Surroundings {
    /// Reads them from this process; `home` is the value of `--home`, which wins.
    pub fn of_this_process(home: Option<&Path>) -> Self {
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            strongroom_home: home
                .map(|h| h.as_os_str().to_owned())
                .or_else(|| std::env::var_os(HOME_VARIABLE)),
            home: std::env::var_os("HOME"),
            xdg_config_home: std::env::var_os("XDG_CONFIG_HOME"),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR"),
        }
    }
}

/// Where everything lies; all absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Paths {
    /// Whose daemon it is.
    pub mode: Mode,
    /// The one directory that holds everything, when one was named.
    pub home: Option<PathBuf>,
    /// `strongroom.toml`.
    pub config_file: PathBuf,
    /// What survives a reboot: vault, audit log, event store.
    pub state_dir: PathBuf,
    /// The encrypted store.
    pub vault_file: PathBuf,
    /// The audit log's directory.
    pub audit_dir: PathBuf,
    /// The event store.
    pub events_dir: PathBuf,
    /// What does not survive a reboot: socket, lock.
    pub runtime_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The mount point.
    pub mount: PathBuf,
}

impl Paths {
    /// Decides from facts alone.
    ///
    /// # Errors
    /// [`Error::NoPlace`] where a person's environment names no place.
    pub fn of(from: &Surroundings) -> Result<Self, Error> {
        let mode = Mode::of_uid(from.uid);
        if let Some(home) = given(from.strongroom_home.as_ref()) {
            let home = std::path::absolute(&home)
                .map_err(|source| Error::Read { path: home.clone(), source })?;
            return Ok(Self {
                mode,
                config_file: home.join("strongroom.toml"),
                vault_file: home.join("vault.redb"),
                audit_dir: home.join("audit"),
                events_dir: home.join("events"),
                runtime_dir: home.join("run"),
                socket: home.join("run/control.sock"),
                mount: home.join("mnt"),
                state_dir: home.clone(),
                home: Some(home),
            });
        }
        let (config, state, runtime, mount) = match mode {
            Mode::System => (
                PathBuf::from("/etc/strongroom"),
                PathBuf::from("/var/lib/strongroom"),
                PathBuf::from("/run/strongroom"),
                PathBuf::from("/run/secrets"),
            ),
            Mode::User => {
                let runtime = given(from.xdg_runtime_dir.as_ref()).ok_or(Error::NoPlace {
                    variable: "XDG_RUNTIME_DIR",
                    what: "the control socket",
                })?;
                (
                    below_home(
                        from.xdg_config_home.as_ref(),
                        from,
                        ".config",
                        "the configuration",
                    )?
                    .join("strongroom"),
                    below_home(from.xdg_state_home.as_ref(), from, ".local/state", "the vault")?
                        .join("strongroom"),
                    runtime.join("strongroom"),
                    runtime.join("secrets"),
                )
            }
        };
        Ok(Self {
            mode,
            home: None,
            config_file: config.join("strongroom.toml"),
            vault_file: state.join("vault.redb"),
            audit_dir: state.join("audit"),
            events_dir: state.join("events"),
            socket: runtime.join("control.sock"),
            state_dir: state,
            runtime_dir: runtime,
            mount,
        })
    }

    /// [`Paths::of`] this process; `home` is the value of `--home`.
    ///
    /// # Errors
    /// As [`Paths::of`].
    pub fn of_this_process(home: Option<&Path>) -> Result<Self, Error> {
        Self::of(&Surroundings::of_this_process(home))
    }

    /// The same with what the configuration moves elsewhere.
    #[must_use]
    pub fn with(mut self, config: &Config) -> Self {
        if let Some(mount) = &config.mount.path {
            self.mount = self.beside_config(mount);
        }
        if let Some(events) = &config.events.dir {
            self.events_dir = self.beside_config(events);
        }
        self
    }

    /// What the daemon itself reads and writes: none of it may lie beneath the mount.
    pub fn own(&self) -> [&Path; 7] {
        [
            &self.config_file,
            &self.state_dir,
            &self.vault_file,
            &self.audit_dir,
            &self.events_dir,
            &self.runtime_dir,
            &self.socket,
        ]
    }

    /// A path of the configuration: relative ones start at the configuration file's directory.
    pub fn beside_config(&self, path: &Path) -> PathBuf {
        self.config_file.parent().unwrap_or(Path::new("/")).join(path)
    }
}

/// A path from the environment; empty and relative ones count as unset, as XDG demands. The home
/// itself may be relative: it is what a person typed.
fn given(value: Option<&OsString>) -> Option<PathBuf> {
    value.filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn below_home(
    xdg: Option<&OsString>,
    from: &Surroundings,
    default: &str,
    what: &'static str,
) -> Result<PathBuf, Error> {
    if let Some(path) = given(xdg).filter(|p| p.is_absolute()) {
        return Ok(path);
    }
    let home = given(from.home.as_ref()).filter(|p| p.is_absolute());
    Ok(home.ok_or(Error::NoPlace { variable: "HOME", what })?.join(default))
}
