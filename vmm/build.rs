//! Builds the bare-metal kernel `quire-kernel` of the package `quire`; `kernel.rs` embeds it.
//!
//! Always release with link-time optimisation, whatever this package is built as: a debug kernel takes minutes on hosts
//! that emulate ring 0, and only whole-program code generation keeps the precompiled `core` free of SSE. The target
//! folder is its own, so the outer cargo's lock is no obstacle; debug and release have it in common, as they embed the
//! same kernel.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const BARE: &str = "x86_64-unknown-none";
const HOSTED: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let guest = Path::new(&var("CARGO_MANIFEST_DIR")).join("../guest").canonicalize().unwrap_or_else(|error| {
        fail(&format!("the kernel's source should be in ../guest: {error}"));
    });
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
    let out_dir = PathBuf::from(var("OUT_DIR"));
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("kernel");
    for path in ["src", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", guest.join(path).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", guest.join("../Cargo.toml").display());

    let target = if has_target(BARE) { BARE } else { HOSTED };
    let script = guest.join("src/bin/kernel/kernel.ld");
    let output = Command::new(var("CARGO"))
        .current_dir(&guest)
        .args(["build", "--release", "--bin", "quire-kernel", "--features", "kernel", "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(["--config", "profile.release.panic='abort'", "--config", "profile.release.lto='fat'"])
        .args(["--config", "profile.release.codegen-units=1", "--config", "profile.release.opt-level=2"])
        .args(["--config", "profile.release.debug=false", "--config", "profile.release.strip='debuginfo'"])
        // The outer build's wrappers and flags are for the host (clippy's driver among them).
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(target, &script).join("\u{1f}"))
        .output()
        .unwrap_or_else(|error| fail(&format!("cannot run cargo for the kernel: {error}")));
    if !output.status.success() {
        fail(&format!("the kernel does not build:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let kernel: PathBuf = target_dir.join(target).join("release/quire-kernel");
    println!("cargo:rustc-env=QUIRE_KERNEL_ELF={}", kernel.display());
}

/// The kernel's code: no SSE, no red zone, at the top of the address space, and the linker's script.
fn flags(target: &str, script: &Path) -> Vec<String> {
    let mut flags = [
        "-Crelocation-model=static",
        "-Ccode-model=kernel",
        "-Cno-redzone=yes",
        "-Cforce-unwind-tables=no",
        "-Cforce-frame-pointers=no",
    ]
    .map(String::from)
    .to_vec();
    let link = |option: &str| if target == BARE { option.into() } else { format!("-Wl,{option}") };
    if target == HOSTED {
        flags.push("-Ctarget-feature=-sse,-sse2".into());
        flags.extend(["-nostartfiles", "-nostdlib", "-static", "-no-pie"].map(|arg| format!("-Clink-arg={arg}")));
    }
    let script = format!("--script={}", script.display());
    for option in [&script, "--build-id=none", "-zmax-page-size=4096", "-znorelro"] {
        flags.push(format!("-Clink-arg={}", link(option)));
    }
    flags
}

/// Whether the compiler has the core library of `target`.
fn has_target(target: &str) -> bool {
    Command::new(var("RUSTC"))
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| fail(&format!("{name}: {error}")))
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
