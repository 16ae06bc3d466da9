//! Leaves with the status that the command line decided, nothing else.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    strongroom::cli::main()
}
