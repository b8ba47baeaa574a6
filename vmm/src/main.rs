//! The `quire` program; see `quire --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    quire_vmm::cli::main()
}
