//! The `esker` program. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    esker::cli::main()
}
