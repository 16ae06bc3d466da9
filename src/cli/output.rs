//! What a person or a script reads: aligned tables, or JSON.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::sys::terminal;

/// Prints a result as JSON, or as `text` says.
///
/// # Errors
/// When stdout is closed.
pub(super) fn show<T: Serialize>(
    json: bool,
    result: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, result)?;
        writeln!(out)?;
    } else {
        let text = text();
        if !text.is_empty() {
            writeln!(out, "{}", text.trim_end())?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Rows under a heading, each column as wide as its widest cell. On a terminal that is too narrow the
/// widest columns are broken at blanks; for scripts a row stays a line.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    table_within(heading, rows, terminal_columns())
}

/// How wide the terminal is that stdout goes to, if it does.
fn terminal_columns() -> Option<usize> {
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| terminal::size(out.as_fd()).ok()).flatten()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Below this a column of words is not narrowed, nor one of names: they would be torn.
const NARROWEST: [usize; 2] = [16, 12];
/// What stands before the last column where it has a line of its own.
const INDENT: &str = "    ";

fn table_within(heading: &[&str], rows: &[Vec<String>], columns: Option<usize>) -> String {
    if rows.is_empty() {
        return "(none)".to_owned();
    }
    let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
    let mut is_prose = vec![false; heading.len()];
    for row in rows {
        for ((width, prose), cell) in widths.iter_mut().zip(&mut is_prose).zip(row) {
            *width = (*width).max(cell.chars().count());
            *prose |= cell.contains(' ');
        }
    }
    // What is said of a row in words goes below it, where both do not fit side by side.
    let mut below = None;
    if let Some(columns) = columns {
        let last = widths.len() - 1;
        if !narrow(&mut widths, columns, |at| is_prose[at].then_some(NARROWEST[0])) {
            if last > 0 && is_prose[last] {
                below = Some(columns.saturating_sub(INDENT.len()));
                widths.truncate(last);
            }
            narrow(&mut widths, columns, |_| Some(NARROWEST[1]));
        }
    }
    let mut lines = Vec::new();
    let mut add = |cells: &[&str]| {
        let broken: Vec<_> =
            cells.iter().zip(&widths).map(|(cell, width)| broken(cell, *width)).collect();
        for at in 0..broken.iter().map(Vec::len).max().unwrap_or_default() {
            let mut text = String::new();
            for (parts, width) in broken.iter().zip(&widths) {
                let part = parts.get(at).map_or("", String::as_str);
                text.push_str(part);
                let blanks = (width + 2).saturating_sub(part.chars().count());
                text.extend(std::iter::repeat_n(' ', blanks));
            }
            lines.push(text.trim_end().to_owned());
        }
        if let (Some(width), Some(last)) = (below, cells.last())
            && !last.is_empty()
        {
            lines.extend(self::broken(last, width).iter().map(|part| format!("{INDENT}{part}")));
        }
    };
    add(heading);
    for row in rows {
        add(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    lines.join("\n")
}

/// Takes from the widest columns, down to what `least` says of each, until all fit into `columns`;
/// whether they do. Where they do not, nothing has changed.
fn narrow(widths: &mut [usize], columns: usize, least: impl Fn(usize) -> Option<usize>) -> bool {
    let between = widths.len().saturating_sub(1) * 2;
    let before = widths.to_vec();
    while widths.iter().sum::<usize>() + between > columns {
        let may = |(at, width): &(usize, &mut usize)| least(*at).is_some_and(|l| **width > l);
        match widths.iter_mut().enumerate().filter(may).max_by_key(|(_, width)| **width) {
            Some((_, widest)) => *widest -= 1,
            None => {
                widths.copy_from_slice(&before);
                return false;
            }
        }
    }
    true
}

/// A cell in pieces of at most `width`: broken at blanks, and in names behind a sign, before letters.
fn broken(cell: &str, width: usize) -> Vec<String> {
    let long = |text: &str| text.trim_end().chars().count();
    let (mut parts, mut part) = (Vec::new(), String::new());
    for word in cell.split_inclusive([' ', '/', ',', ':', '-', '_']) {
        if !part.is_empty() && part.chars().count() + long(word) > width {
            parts.push(std::mem::take(&mut part));
        }
        part.push_str(word);
        while long(&part) > width {
            let at = part.char_indices().nth(width.max(1)).map_or(part.len(), |(at, _)| at);
            let rest = part.split_off(at);
            parts.push(std::mem::replace(&mut part, rest));
        }
    }
    parts.push(part);
    parts.iter().map(|part| part.trim_end().to_owned()).collect()
}

/// A time for people, to the second: what `--json` has, it has in full.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A missing cell.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// A message that is no result.
pub(super) fn note(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".into(), "bbb".into()], vec!["cccc".into(), "d".into()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     bbb\ncccc  d");
        assert_eq!(table(&["X"], &[]), "(none)");
    }

    #[test]
    fn on_a_narrow_terminal_the_widest_column_is_broken_and_nothing_is_lost() {
        let why = "the kernel is older than 6.9: a request in flight fails when the worker dies";
        let path = "/var/lib/strongroom/events/deploy-pipeline/prod/nightly-4711/x".repeat(3);
        let rows = [
            vec!["survival".to_owned(), why.to_owned(), "partial".to_owned()],
            vec!["a".to_owned(), path.clone(), "\u{e4}\u{e4}".to_owned()],
        ];
        for columns in [60, 80, 200] {
            let text = table_within(&["NAME", "WHY", "HOLDS"], &rows, Some(columns));
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}:\n{text}");
            let letters = |text: &str| {
                let mut all: Vec<_> = text.chars().filter(|c| !c.is_whitespace()).collect();
                all.sort_unstable();
                all
            };
            let whole = table_within(&["NAME", "WHY", "HOLDS"], &rows, None);
            assert_eq!(letters(&text), letters(&whole), "{text}");
        }
        let wide = table_within(&["NAME", "WHY", "HOLDS"], &rows, None);
        assert_eq!(wide.lines().count(), 3);
        assert_eq!(broken(&path, 20).concat(), path);
        assert_eq!(broken("", 20), [""]);
        let why = "it is the narrowest that admits this agent here";
        let row = ["CodeAnalyzer", "staging", "OPENAI_API_KEY", "prod/OPENAI_API_KEY", "org", why];
        let row: Vec<_> = row.map(ToOwned::to_owned).to_vec();
        let heading = ["AGENT", "ENV", "FILE", "SECRET", "SCOPE", "WHY"];
        let text = table_within(&heading, &[row], Some(80));
        assert!(
            text.ends_with("  org\n    it is the narrowest that admits this agent here"),
            "{text}"
        );
        // Too many columns for the terminal: lines run over, and nothing is torn.
        let row = vec!["twelve-chars".to_owned(); 9];
        let text = table_within(&["C"; 9], &[row], Some(80));
        assert!(text.contains("twelve-chars  twelve-chars"), "{text}");
    }
}
