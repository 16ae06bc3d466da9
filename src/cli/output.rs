//! What a person or a script reads: aligned tables, or JSON.
#![forbid(unsafe_code)]

use std::io::Write;

use serde::Serialize;

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

/// Rows under a heading, each column as wide as its widest cell.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return "(none)".to_owned();
    }
    let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut heading.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
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
}
