//! What is wrong with a command line, in the two lines that every error has.
//!
//! Invariant: the first line says what was not understood, the second what would be: the nearest word,
//! the known ones, or the command's usage. Danger: the parser's own words, which come in paragraphs.
#![forbid(unsafe_code)]

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// What happened, and the hint; none where help or a version was asked for, or nothing was said.
pub(super) fn told(error: &Error) -> Option<(String, String)> {
    let is_page = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
    );
    if is_page {
        return None;
    }
    let texts = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let rendered = error.render().to_string();
    let first = rendered.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let what = match error.kind() {
        ErrorKind::MissingRequiredArgument => {
            format!("missing: {}", texts(ContextKind::InvalidArg).join(", "))
        }
        _ => first.trim_end_matches(':').to_owned(),
    };
    let near =
        [ContextKind::SuggestedValue, ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    // The parser tells the nearest word last.
    let near = near.into_iter().flat_map(texts).next_back();
    let known: Vec<_> =
        texts(ContextKind::ValidValue).into_iter().filter(|word| !word.is_empty()).collect();
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    // Named where STRONGROOM_HOME is set, as if it had been given.
    let usage = usage.replace(" --home <DIR>", "");
    let usage = usage.lines().next().and_then(|line| line.strip_prefix("Usage: "));
    let near = near.map(|near| format!("did you mean `{near}`?"));
    let known = (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")));
    let hint = match (near, known, usage) {
        (Some(near), Some(known), _) => format!("{near} {known}"),
        (Some(one), None, _) | (None, Some(one), _) => one,
        (None, None, Some(usage)) => format!("{usage} (--help shows more)"),
        (None, None, None) => "the command with --help shows what it takes".to_owned(),
    };
    Some((what, hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn told_of(args: &[&str]) -> Option<(String, String)> {
        let args = std::iter::once("strongroom").chain(args.iter().copied());
        told(&super::super::Cli::try_parse_from(args).map(|_| ()).unwrap_err())
    }

    #[test]
    fn what_is_wrong_with_a_command_line_is_told_in_two_lines() {
        let cases: [(&[&str], &str, &str); 8] = [
            (&["secrte"], "unrecognized subcommand 'secrte'", "did you mean `secret`?"),
            (
                &["scan", "--format", "sarf", "."],
                "invalid value 'sarf' for '--format <FORMAT>'",
                "did you mean `sarif`? known here: json, sarif, text",
            ),
            (
                &["scan", "--format", "x", "."],
                "invalid value 'x' for '--format <FORMAT>'",
                "known here: json, sarif, text",
            ),
            (
                &["scan", "--formt", "json"],
                "unexpected argument '--formt' found",
                "did you mean `--format`?",
            ),
            (&["events", "lst"], "unrecognized subcommand 'lst'", "did you mean `list`?"),
            (
                &["secret", "set"],
                "missing: <NAME>",
                "strongroom secret set <NAME> (--help shows more)",
            ),
            (
                &["audit", "head", "--what"],
                "unexpected argument '--what' found",
                "strongroom audit head [OPTIONS] (--help shows more)",
            ),
            (
                &["run", "--redact", "x", "--", "true"],
                "invalid value 'x' for '--redact <HOW MUCH>': values, formats, all or off",
                "the command with --help shows what it takes",
            ),
        ];
        for (args, what, hint) in cases {
            assert_eq!(told_of(args), Some((what.to_owned(), hint.to_owned())), "{args:?}");
        }
    }

    #[test]
    fn help_that_was_asked_for_is_no_error() {
        for args in [&["--help"][..], &["--version"], &["secret", "--help"], &["secret"], &[]] {
            assert_eq!(told_of(args), None, "{args:?}");
        }
    }

    #[test]
    fn every_list_of_known_words_is_told_of() {
        fn walk(command: &clap::Command, path: &[String], seen: &mut usize) {
            for argument in command.get_arguments().filter(|a| !a.get_possible_values().is_empty())
            {
                let Some(long) =
                    argument.get_long().filter(|_| argument.get_action().takes_values())
                else {
                    continue;
                };
                let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
                let flag = format!("--{long}");
                args.extend([flag.as_str(), "q8"]);
                let (what, hint) = told_of(&args).unwrap();
                assert!(what.starts_with("invalid value 'q8' for "), "{args:?}: {what}");
                assert!(hint.contains("known here: "), "{args:?}: {hint}");
                *seen += 1;
            }
            for below in command.get_subcommands() {
                walk(below, &[path, &[below.get_name().to_owned()]].concat(), seen);
            }
        }
        let mut seen = 0;
        let mut command = <super::super::Cli as clap::CommandFactory>::command();
        command.build();
        walk(&command, &[], &mut seen);
        assert!(seen > 0);
    }
}
