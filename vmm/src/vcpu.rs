//! One virtual CPU: made, set to the entry, run until it exits.
#![expect(unsafe_code, reason = "reads the union that tells why an instruction failed")]

use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};

use crate::boot;
use crate::cpuid::{self, Guests};
use crate::error::Error;
use crate::exit::Exit;
use crate::layout::Layout;
use crate::watchdog::Watchdog;

/// How often in its limit the watchdog looks.
const LOOKS: u32 = 4;

/// A virtual CPU and the watch on it.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    limit: Duration,
    _watchdog: Watchdog,
    /// Exits so far, those of the watchdog apart.
    pub exits: u64,
}

impl Vcpu {
    /// The VM's only CPU. It may run for `limit` without an exit, its tables may hold leaves of 1 GiB if `gigabyte_leaves` says so, and it may
    /// have guests by `guests`.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn new(vm: &VmFd, limit: Duration, gigabyte_leaves: bool, guests: Option<&Guests>) -> Result<Self, Error> {
        let fd = vm.create_vcpu(0).map_err(Error::kvm("create a vCPU"))?;
        fd.set_cpuid2(&cpuid::baseline(gigabyte_leaves, guests)?).map_err(Error::kvm("set CPUID"))?;
        let watchdog = Watchdog::start((limit / LOOKS).max(Duration::from_millis(1)))?;
        Ok(Self { fd, limit, _watchdog: watchdog, exits: 0 })
    }

    /// Sets the CPU to the kernel's 64-bit entry.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn enter(&self, entry: u64, layout: &Layout) -> Result<(), Error> {
        let mut sregs = self.fd.get_sregs().map_err(Error::kvm("get system registers"))?;
        boot::enter_long_mode(&mut sregs, layout);
        self.fd.set_sregs(&sregs).map_err(Error::kvm("set system registers"))?;
        self.fd.set_regs(&boot::registers(entry)).map_err(Error::kvm("set registers"))
    }

    /// Runs until the guest wants something.
    ///
    /// # Errors
    /// When it hangs, or KVM cannot run it.
    pub fn run(&mut self) -> Result<Exit, Error> {
        let mut since = None;
        loop {
            let exit = match self.fd.run() {
                Ok(exit) => Exit::from(exit),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
                Err(error) if error.errno() == libc::EFAULT => return Err(Error::HostFault(None)),
                Err(error) => return Err(Error::Kvm { what: "run the guest", error }),
            };
            if exit != Exit::Interrupted {
                self.exits += 1;
                return Ok(exit);
            }
            // The first look starts the clock: an exit costs no time stamp.
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() + self.limit / LOOKS >= self.limit {
                let (rip, ring) = self.place()?;
                return Err(Error::Hang(self.limit, rip, ring));
            }
        }
    }

    /// Where the CPU is: `rip` and the ring.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn place(&self) -> Result<(u64, u64), Error> {
        let regs = self.fd.get_regs().map_err(Error::kvm("get registers"))?;
        let sregs = self.fd.get_sregs().map_err(Error::kvm("get system registers"))?;
        Ok((regs.rip, u64::from(sregs.cs.selector & 3)))
    }

    /// The root table in force.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn root(&self) -> Result<u64, Error> {
        Ok(self.fd.get_sregs().map_err(Error::kvm("get system registers"))?.cr3)
    }

    /// What KVM's own walk of the current tables says about `gva` (KVM_TRANSLATE). It ignores rights, and sets accessed
    /// bits on its way.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn translate(&self, gva: u64) -> Result<Option<u64>, Error> {
        let found = self.fd.translate_gva(gva).map_err(Error::kvm("translate an address"))?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }

    /// The error for an exit after which the guest cannot go on.
    pub fn stuck(&mut self, exit: Exit) -> Error {
        let (rip, ring) = match self.place() {
            Ok(place) => place,
            Err(error) => return error,
        };
        match exit {
            Exit::Halt => Error::Halted(rip),
            Exit::Shutdown => Error::Shutdown(rip),
            Exit::Mmio(gpa) => Error::NoMemory(gpa, rip),
            Exit::InternalError => {
                let run = self.fd.get_kvm_run();
                // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so this member of the union was filled in.
                let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
                // SAFETY: plain integers either way; whether they mean something stands in `ndata` and the flags.
                let (length, bytes) = unsafe {
                    let instruction = failure.__bindgen_anon_1.__bindgen_anon_1;
                    (instruction.insn_size, instruction.insn_bytes)
                };
                let length = if failure.ndata >= 3 { usize::from(length).min(bytes.len()) } else { 0 };
                let bytes = match length {
                    0 => "no instruction bytes were given".into(),
                    _ => bytes[..length].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
                };
                Error::Instruction { rip, ring, suberror: failure.suberror, bytes }
            }
            other => Error::Exit(format!("{other:?} at rip {rip:#x}")),
        }
    }

    /// The vCPU's descriptor.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }
}
