//! Values come in by stdin, file or a hidden prompt, never by argument.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use crate::secret::{MAX_VALUE_BYTES, SecretBytes};

use super::Failure;
use super::output::note;

/// What is read for commands that take `--exact`.
const KEEPS_NEWLINE: [&str; 3] = ["value", "new value", "replacement"];

/// Reads a value. One trailing newline of a single line is dropped, unless `exact`.
///
/// # Errors
/// A sentence with its hint.
pub(super) fn read(file: Option<&Path>, exact: bool, what: &str) -> Result<SecretBytes, Failure> {
    let unread = |e: io::Error| match e.kind() {
        io::ErrorKind::InvalidData => {
            Failure::new(format!("the {what} is longer than {MAX_VALUE_BYTES} bytes"))
                .hint("a value has at most 1 MiB: store a key to it, or parts of it")
        }
        _ => Failure::new(format!("the {what} cannot be read: {e}"))
            .hint("pipe it in, as in: printf %s \"$VALUE\" | strongroom secret set NAME"),
    };
    let (value, typed) = match file {
        Some(path) => {
            let file = File::open(path).map_err(|e| {
                Failure::new(format!("{}: {e}", path.display()))
                    .hint("give a file that you can read")
            })?;
            (SecretBytes::read_from(file, MAX_VALUE_BYTES).map_err(unread)?, false)
        }
        None if io::stdin().is_terminal() => (prompt(what)?, true),
        None => {
            (SecretBytes::read_from(io::stdin().lock(), MAX_VALUE_BYTES).map_err(unread)?, false)
        }
    };
    if value.is_empty() {
        return Err(Failure::new(format!("the {what} is empty"))
            .hint("pipe it in, as in: printf %s \"$VALUE\" | strongroom secret set NAME"));
    }
    let bytes = value.expose();
    let single = bytes.iter().filter(|b| **b == b'\n').count() == 1 && bytes.ends_with(b"\n");
    if exact || typed || !single || bytes.len() == 1 {
        return Ok(value);
    }
    // What a person would type has no newline, and nobody asks for one to be kept.
    if KEEPS_NEWLINE.contains(&what) {
        note("note: dropped one trailing newline (--exact keeps it)");
    }
    Ok(SecretBytes::copy_of(&bytes[..bytes.len() - 1]))
}

/// Asks at the terminal without showing what is typed.
///
/// # Errors
/// When there is no terminal.
pub(super) fn prompt(what: &str) -> Result<SecretBytes, Failure> {
    let no_terminal =
        |_| Failure::new(format!("no terminal to ask for the {what}")).hint("pipe it in on stdin");
    let mut terminal =
        File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let before = tcgetattr(&terminal).map_err(|e| no_terminal(e.into()))?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    // Before the question: what an expect(1) script answers at once must not be flushed away.
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &hidden).map_err(|e| no_terminal(e.into()))?;
    let asked = write!(terminal, "{what}: ");
    let mut line = zeroize::Zeroizing::new(Vec::with_capacity(MAX_LINE_BYTES));
    let read = asked.and_then(|()| read_line(&mut terminal, &mut line));
    // Whatever happened, the terminal shows again what is typed.
    let restored = tcsetattr(&terminal, SetArg::TCSAFLUSH, &before);
    writeln!(terminal).map_err(no_terminal)?;
    restored.map_err(|e| no_terminal(e.into()))?;
    read.map_err(no_terminal)?;
    if line.ends_with(b"\n") {
        line.pop();
    }
    Ok(SecretBytes::copy_of(&line))
}

/// What a terminal in canonical mode holds of one line (termios(3)).
const MAX_LINE_BYTES: usize = 4096;

/// One line, without a buffer of its own that nobody would wipe.
fn read_line(terminal: &mut File, line: &mut Vec<u8>) -> io::Result<()> {
    line.resize(MAX_LINE_BYTES, 0);
    let length = loop {
        match terminal.read(line) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    line.truncate(length);
    Ok(())
}
