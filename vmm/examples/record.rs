//! Records a command: `record OUTPUT TITLE COMMAND [ARGUMENT]...`. What `quire record` does, without its options.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use quire_vmm::record::{RecordOptions, record};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(output), Some(title)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: record OUTPUT TITLE COMMAND [ARGUMENT]...");
        return ExitCode::from(2);
    };
    let command: Vec<OsString> = arguments.collect();
    let options = RecordOptions { title: Some(title.to_string_lossy().into_owned()), ..RecordOptions::default() };
    match record(&command, Path::new(&output), &options) {
        Ok(summary) => {
            eprintln!("{summary:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("record: {error}");
            ExitCode::from(if error.is_host_lack() { 4 } else { 1 })
        }
    }
}
