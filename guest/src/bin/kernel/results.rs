//! What the run leaves behind: words, log lines, panic text; and how it ends.
//!
//! All of it goes to the results region. Where no VMM of ours reads that, the same also goes out as text on the
//! emulators' port, every line with the prefix `quire: `, and the run ends by their ways to end.
#![expect(unsafe_code, reason = "the results region is memory by address")]

use core::fmt::{self, Write};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering::Relaxed};

use quire::abi::results::{self, status};
use quire::abi::{ALIAS_BASE, BootInfo, bell, boot, sample::Sample, survey};

use crate::{cpu, touch};

static REGION: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static TEXT: AtomicBool = AtomicBool::new(false);

/// How the manager's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// All was right.
    Pass,
    /// Something was wrong; the log says what.
    Fail,
}

/// The results region.
#[derive(Clone, Copy, Debug)]
pub struct Results {
    region: &'static [AtomicU64],
}

impl Results {
    /// The region that `boot` names, from now on also where panics and log lines go.
    ///
    /// # Safety
    /// The region must be memory in the alias map that nothing else uses.
    pub unsafe fn open(boot: &BootInfo) -> Self {
        let region = ptr::with_exposed_provenance_mut((ALIAS_BASE + boot[boot::RESULTS_GPA]) as usize);
        REGION.store(region, Relaxed);
        // SAFETY: by contract.
        unsafe { Self::at(region) }
    }

    /// The region, if it is known already.
    pub fn current() -> Option<Self> {
        let region = REGION.load(Relaxed);
        // SAFETY: only `open` sets it.
        (!region.is_null()).then(|| unsafe { Self::at(region) })
    }

    unsafe fn at(region: *mut u8) -> Self {
        // SAFETY: by `open`'s contract; the region has this length in every version of the contract.
        Self { region: unsafe { &*ptr::slice_from_raw_parts(region.cast(), results::REGION_BYTES as usize / 8) } }
    }

    /// A word of the header, by its index in [`results`].
    pub fn word(&self, index: usize) -> &'static AtomicU64 {
        &self.region[index]
    }

    /// One of the words that the manager gives a meaning, counted from 0.
    pub fn general(&self, index: usize) -> &'static AtomicU64 {
        assert!(index < results::GENERAL_COUNT);
        self.word(results::GENERAL + index)
    }

    /// One of the words of [`abi::stats`](mod@quire::abi::stats), counted from 0.
    pub fn stat(&self, index: usize) -> &'static AtomicU64 {
        assert!(index < results::STATS_WORDS);
        self.word(results::STATS_OFFSET as usize / 8 + index)
    }

    /// The words of the survey.
    pub fn survey(&self) -> &'static [AtomicU64] {
        &self.region[results::SURVEY_OFFSET as usize / 8..][..survey::WORDS]
    }

    /// Rings the doorbell and returns its answers.
    pub fn ring<const N: usize>(&self, command: u32, arguments: [u64; N]) -> [u64; results::REQUEST_COUNT] {
        let words = &self.region[results::REQUEST..][..results::REQUEST_COUNT];
        for (word, argument) in words.iter().zip(arguments) {
            word.store(argument, Relaxed);
        }
        cpu::out32(bell::PORT, command);
        core::array::from_fn(|i| words[i].load(Relaxed))
    }

    /// Sets pair `index` of the audit list.
    pub fn audit_pair(&self, index: u64, gva: u64, gpa: u64) {
        assert!(index < results::AUDIT_PAIRS);
        let at = (results::AUDIT_OFFSET / 8 + 2 * index) as usize;
        self.region[at].store(gva, Relaxed);
        self.region[at + 1].store(gpa, Relaxed);
    }

    /// Ends the run.
    pub fn finish(&self, finish: Finish) -> ! {
        let status = match finish {
            Finish::Pass => status::PASS,
            Finish::Fail => status::FAIL,
        };
        self.end(status)
    }

    /// Ends the run with one of [`status`].
    pub fn end(&self, status: u64) -> ! {
        let (samples, lost) = touch::samples();
        self.word(results::SAMPLES).store(samples, Relaxed);
        self.word(results::SAMPLES_LOST).store(lost, Relaxed);
        self.word(results::STATUS).store(status, Relaxed);
        if TEXT.load(Relaxed) {
            self.tell(samples);
        }
        leave(status)
    }

    /// Everything but the log and the panic text, as lines.
    fn tell(&self, samples: u64) {
        let mut text = Text;
        for (index, word) in self.region[..results::GENERAL + results::GENERAL_COUNT].iter().enumerate() {
            let word = word.load(Relaxed);
            if word != 0 {
                let _ = writeln!(text, "quire: word {index} {word}");
            }
        }
        for index in 0..samples.min(16) {
            if let Some(Sample { ticks, order, kind, .. }) = touch::sample(index) {
                let _ = writeln!(text, "quire: sample {index} kind {kind} order {order} ticks {ticks}");
            }
        }
    }

    /// Appends to a text of the region: `at..at + capacity`, with its length and what was lost in two words.
    fn append(&self, at: u64, capacity: u64, length: usize, lost: Option<usize>, bytes: &[u8]) {
        let have = self.word(length).load(Relaxed);
        let fit = bytes.len().min(capacity.saturating_sub(have) as usize);
        for (i, byte) in bytes[..fit].iter().enumerate() {
            let offset = at + have + i as u64;
            let word: *const AtomicU64 = &raw const self.region[(offset / 8) as usize];
            // SAFETY: a byte of that word; texts are used bytewise only.
            unsafe { &*word.cast::<AtomicU8>().add(offset as usize % 8) }.store(*byte, Relaxed);
        }
        self.word(length).store(have + fit as u64, Relaxed);
        if let Some(lost) = lost {
            self.word(lost).fetch_add((bytes.len() - fit) as u64, Relaxed);
        }
    }
}

/// Sends everything to the emulators' port as well.
pub fn speak() {
    TEXT.store(true, Relaxed);
}

/// Whether the run is told as text: nobody of ours reads the region.
pub fn speaks() -> bool {
    TEXT.load(Relaxed)
}

/// The log, for [`log!`](crate::log).
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(results) = Results::current() {
            let capacity = results::LOG_CAPACITY;
            results.append(results::LOG_OFFSET, capacity, results::LOG_BYTES, Some(results::LOG_LOST), text.as_bytes());
        }
        if TEXT.load(Relaxed) { Text.write_str(text) } else { Ok(()) }
    }
}

/// The panic text.
#[derive(Clone, Copy, Debug)]
pub struct Panic;

impl Write for Panic {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(results) = Results::current() {
            results.append(results::PANIC_OFFSET, results::PANIC_CAPACITY, results::PANIC_BYTES, None, text.as_bytes());
        }
        if TEXT.load(Relaxed) { Text.write_str(text) } else { Ok(()) }
    }
}

/// The emulators' port.
struct Text;

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| cpu::out8(bell::TEXT_PORT, byte));
        Ok(())
    }
}

/// Ends the run as VMM and emulators know it.
pub fn leave(status: u64) -> ! {
    if TEXT.load(Relaxed) {
        let pass = status == status::PASS;
        let _ = Text.write_str(match status {
            status::PASS => "quire: RESULT PASS\n",
            status::FAIL => "quire: RESULT FAIL\n",
            _ => "quire: RESULT PANIC\n",
        });
        cpu::out32(bell::QEMU_EXIT_PORT, if pass { bell::QEMU_PASS } else { bell::QEMU_FAIL });
        if pass {
            cpu::magic_break();
        }
        b"Shutdown".iter().for_each(|byte| cpu::out8(bell::BOCHS_EXIT_PORT, *byte));
    } else {
        cpu::out32(bell::PORT, bell::EXIT);
    }
    cpu::halt()
}

/// One line of log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => {{
        let mut log = $crate::results::Log;
        let _ = core::fmt::Write::write_fmt(&mut log, format_args!("quire: {}\n", format_args!($($argument)*)));
    }};
}
