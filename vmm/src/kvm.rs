//! `/dev/kvm`: open it, or say why not and what helps.

use std::ffi::CStr;
use std::io;

use kvm_ioctls::{Cap, Kvm};

use crate::error::Error;

const DEVICE: &CStr = c"/dev/kvm";
/// The one version that ever was (`KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;

/// Opens `/dev/kvm` and checks that it is one Quire can use.
///
/// # Errors
/// One for each way it can be missing, each with a remedy.
pub fn open() -> Result<Kvm, Error> {
    let kvm = Kvm::new_with_path(DEVICE).map_err(|error| refused(error.errno()))?;
    match kvm.get_api_version() {
        API_VERSION => {}
        other => return Err(Error::KvmVersion(other)),
    }
    if !kvm.check_extension(Cap::UserMemory) {
        return Err(Error::KvmLacks("KVM_CAP_USER_MEMORY"));
    }
    Ok(kvm)
}

/// The error for an `errno` of opening the device.
fn refused(errno: i32) -> Error {
    let error = io::Error::from_raw_os_error(errno);
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::KvmMissing,
        libc::EACCES | libc::EPERM => Error::KvmForbidden(error),
        _ => Error::KvmOpen(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_its_remedy_and_means_a_lacking_host() {
        for (errno, words) in
            [(libc::ENOENT, "kvm_intel"), (libc::EACCES, "group kvm"), (libc::EMFILE, "does not open")]
        {
            let error = refused(errno);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit_code(), 4);
        }
    }
}
