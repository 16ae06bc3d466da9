//! Variables that a loader, shell or interpreter acts on: never made from a secret.
#![forbid(unsafe_code)]

/// Names that change what a process does, by program; see ld.so(8), bash(1), git(1) and others.
const NAMES: &[&str] = &[
    "BASH_ENV",
    "CDPATH",
    "CLASSPATH",
    "DYLD_INSERT_LIBRARIES",
    "EDITOR",
    "ENV",
    "GCONV_PATH",
    "GIT_ASKPASS",
    "GIT_EXTERNAL_DIFF",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LESSCLOSE",
    "LESSOPEN",
    "LOCALDOMAIN",
    "LOCPATH",
    "LOGNAME",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PAGER",
    "PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "PROMPT_COMMAND",
    "PS1",
    "PS4",
    "PYTHONHOME",
    "PYTHONINSPECT",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "RUBYLIB",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "BASHOPTS",
    "SSH_ASKPASS",
    "TMPDIR",
    "TZDIR",
    "USER",
    "VISUAL",
    "_JAVA_OPTIONS",
];
const PREFIXES: &[&str] = &["LD_", "BASH_FUNC_", "STRONGROOM_", "GIT_CONFIG_"];

/// Whether `name` may be a variable made from a secret: a valid name that nothing acts on.
pub fn may_be_injected(name: &str) -> bool {
    let mut bytes = name.bytes();
    let is_variable = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_variable
        && !NAMES.contains(&name)
        && name != "CREDENTIALS_DIRECTORY"
        && !PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && !name.to_ascii_lowercase().ends_with("_proxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_loader_acts_on_is_never_injected() {
        for name in [
            "LD_PRELOAD",
            "NODE_OPTIONS",
            "BASH_ENV",
            "IFS",
            "PATH",
            "https_proxy",
            "HTTP_PROXY",
            "STRONGROOM_HOME",
            "id.rsa",
            "A-B",
            "1A",
            "",
        ] {
            assert!(!may_be_injected(name), "{name}");
        }
        for name in ["OPENAI_API_KEY", "DATABASE_URL", "_x"] {
            assert!(may_be_injected(name), "{name}");
        }
    }
}
