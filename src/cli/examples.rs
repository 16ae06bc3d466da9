//! The examples at the end of each `--help`, taken apart: for the man pages and for the test that every
//! one of them is understood.
#![forbid(unsafe_code)]

use clap::Command;

/// What stands at the end of a command's help.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// Lines of the paragraph that begins with `Example`.
    pub(super) examples: Vec<String>,
    /// The other paragraphs.
    pub(super) notes: Vec<String>,
}

/// Takes the end of a command's help apart.
pub(super) fn parts(command: &Command) -> Parts {
    let mut parts = Parts::default();
    let Some(text) = command.get_after_help() else { return parts };
    for paragraph in text.to_string().split("\n\n") {
        match paragraph.strip_prefix("Examples:\n").or(paragraph.strip_prefix("Example:\n")) {
            Some(lines) => {
                let lines = lines.lines().map(|l| l.strip_prefix("  ").unwrap_or(l).to_owned());
                parts.examples.extend(lines);
            }
            None => parts.notes.push(paragraph.trim().to_owned()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::Cli;
    use super::*;

    /// The command, and all below it: nouns as well as their verbs.
    fn all(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        found.push((path.to_owned(), command.clone()));
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            all(sub, &format!("{path} {}", sub.get_name()), found);
        }
    }

    /// Words of a shell's line, commands apart; quotes keep blanks, redirections are left out.
    fn commands(line: &str) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new()];
        let (mut word, mut begun, mut quote) = (String::new(), false, None);
        let mut letters = line.chars().chain([' ']).peekable();
        while let Some(letter) = letters.next() {
            match (quote, letter) {
                (Some(q), l) if q == l => quote = None,
                (None, '"' | '\'') => (quote, begun) = (Some(letter), true),
                (None, ' ' | ';' | '|' | '&' | '(' | ')' | '<' | '>') => {
                    if begun {
                        all.last_mut().unwrap().push(std::mem::take(&mut word));
                        begun = false;
                    }
                    match letter {
                        ';' | '|' | '&' | '(' | ')' => all.push(Vec::new()),
                        '<' | '>' => all.last_mut().unwrap().push("<redirected>".to_owned()),
                        _ => {}
                    }
                }
                // A command inside a quoted "$(...)" is one as well.
                (_, '$') if letters.peek() == Some(&'(') && !line.contains("sh -c") => {
                    letters.next();
                    let inner: String = letters.by_ref().take_while(|l| *l != ')').collect();
                    all.splice(0..0, commands(&inner));
                    word.push('X');
                    begun = true;
                }
                (_, l) => {
                    word.push(l);
                    begun = true;
                }
            }
        }
        for words in &mut all {
            // `>>` is one of them.
            words.dedup_by(|a, b| a == b && *a == "<redirected>");
            while let Some(at) = words.iter().position(|w| w == "<redirected>") {
                words.drain(at..(at + 2).min(words.len()));
            }
        }
        all.retain(|words| !words.is_empty());
        all
    }

    /// Lines, joined where one ends in a backslash.
    fn joined(lines: &[String]) -> Vec<String> {
        lines.join("\n").replace("\\\n", " ").lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn every_command_shows_examples_of_itself_and_every_example_is_understood() {
        let mut found = Vec::new();
        all(&Cli::command(), "strongroom", &mut found);
        assert!(found.len() > 80, "{}", found.len());
        for (path, command) in &found {
            let parts = parts(command);
            assert!(!parts.examples.is_empty(), "{path} --help has no example");
            let mut own = 0;
            for line in joined(&parts.examples) {
                for words in commands(&line) {
                    if words[0] != "strongroom" {
                        continue;
                    }
                    own += usize::from(words.join(" ").starts_with(path.as_str()));
                    if let Err(error) = Cli::try_parse_from(&words) {
                        panic!("{path}: {line}\n{words:?}\n{error}");
                    }
                }
            }
            assert!(own > 0, "{path}: no example is of it: {:?}", parts.examples);
        }
    }

    #[test]
    fn lines_are_taken_apart_as_a_shell_would() {
        assert_eq!(
            commands("printf %s \"$A B\" | strongroom x 'c d' > f && echo"),
            [vec!["printf", "%s", "$A B"], vec!["strongroom", "x", "c d"], vec!["echo"]]
        );
        assert_eq!(commands("tail \"$(a b)\"/c"), [vec!["a", "b"], vec!["tail", "X/c"]]);
    }
}
