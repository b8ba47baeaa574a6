//! The scenarios as traces, and how each is to be replayed.

use quire::addr::{Level, Order};
use quire::mapcount::Scheme;

use super::look::{self, Look, Told};
use super::report::Explained;
use crate::error::Error;
use crate::replay::{Backend, Config, Measured, Ring, replay};
use crate::workload::Workload;
use crate::{cpuid, kvm, nested};

/// A trace of `scenarios/`. It looks once for each scenario that it plays, and the comment above a look says what has happened.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// The name of its file, which all of its scenarios begin with.
    pub name: &'static str,
    /// The trace.
    pub text: &'static str,
    /// The largest order of anonymous folios.
    pub max_order: u8,
    /// The highest level of leaves.
    pub max_leaf: Level,
    /// Bytes of frames.
    pub memory: u64,
    /// Each scheme runs alone, not all at once: some refuse the shape, and then no scheme beside them sees it either.
    pub alone: bool,
}

macro_rules! script {
    ($name:literal) => {
        Script {
            name: $name,
            text: include_str!(concat!("../../scenarios/", $name, ".trace")),
            max_order: Order::HUGE.get(),
            max_leaf: Level::TWO,
            memory: 32 << 20,
            alone: false,
        }
    };
}

/// All of them, in the order of SCHEMES.md.
pub const SCRIPTS: [Script; 15] = [
    script!("S1"),
    script!("S3"),
    script!("S5"),
    script!("S6"),
    script!("S7"),
    Script { max_leaf: Level::ONE, ..script!("S8") },
    script!("S8c"),
    Script { max_leaf: Level::ONE, ..script!("S9") },
    script!("S10"),
    script!("S11"),
    Script { max_leaf: Level::THREE, memory: 2 << 30, ..script!("S12") },
    Script { max_order: 11, alone: true, ..script!("S13") },
    script!("S14"),
    Script { max_leaf: Level::ONE, ..script!("S15") },
    script!("S16"),
];

/// The scripts that play scenario `name`, each with the labels of its looks that are meant: one scenario, or all of a file, or all.
///
/// # Errors
/// [`Error::NoScenario`].
pub fn find(name: Option<&str>) -> Result<Vec<(Script, Vec<&'static str>)>, Error> {
    let all = || SCRIPTS.into_iter().map(|script| (script, script.labels()));
    let Some(name) = name else { return Ok(all().collect()) };
    let is = |label: &&str| label.eq_ignore_ascii_case(name);
    let one = all().find_map(|(script, labels)| labels.into_iter().find(is).map(|label| (script, vec![label])));
    match one.or_else(|| all().find(|(script, _)| is(&script.name))) {
        Some(found) => Ok(vec![found]),
        None => {
            let there_are = all().flat_map(|(_, labels)| labels).chain([nested::NAME]).collect();
            Err(Error::NoScenario { name: name.to_owned(), there_are })
        }
    }
}

/// One look of a script.
struct Scene {
    label: &'static str,
    title: &'static str,
    /// The lines of the trace up to it, comments included, other looks not.
    steps: Vec<&'static str>,
}

impl Script {
    /// The labels of its looks, in order.
    #[must_use]
    pub fn labels(&self) -> Vec<&'static str> {
        self.scenes().into_iter().map(|scene| scene.label).collect()
    }

    fn scenes(&self) -> Vec<Scene> {
        let (mut scenes, mut steps) = (Vec::new(), Vec::new());
        // Behind the first line and the title.
        for line in self.text.lines().skip(2) {
            let Some(look) = line.strip_prefix("look ") else {
                steps.push(line);
                continue;
            };
            let title = steps.last().and_then(|line: &&str| line.strip_prefix("# ")).unwrap_or_default();
            scenes.push(Scene { label: look.split(' ').nth(2).unwrap_or_default(), title, steps: steps.clone() });
        }
        scenes
    }

    /// Plays all of it and explains every look.
    ///
    /// # Errors
    /// When it cannot run, or does not run to its end.
    pub fn play(&self, backend: Backend, ring: Ring) -> Result<Vec<Explained>, Error> {
        let workload = Workload::parse(self.name, self.name, self.text.as_bytes(), 1)?;
        let lacks = self.max_leaf == Level::THREE
            && backend != Backend::Model
            && !kvm::open().and_then(|kvm| cpuid::has_gigabyte_leaves(&kvm))?;
        let config = Config {
            backend: if lacks { Backend::Model } else { backend },
            ring,
            scheme: if self.alone { Scheme::Total } else { Scheme::All },
            memory: Some(self.memory),
            orders: (2 << self.max_order) - 1,
            max_leaf: self.max_leaf,
            checkpoints: 1,
            floor: 0,
            ..Config::default()
        };
        let (measured, mut looks) = self.look(&workload, &config)?;
        if self.alone {
            for scheme in Scheme::EACH.into_iter().filter(|&s| s != Scheme::All && s != Scheme::Total) {
                let (_, others) = self.look(&workload, &Config { scheme, ..config })?;
                for (look, other) in looks.iter_mut().zip(others) {
                    look.schemes.push(look.told_alone(scheme.name(), other));
                }
            }
        }
        let lacks = lacks.then_some("this KVM has no leaves of 1 GiB");
        Ok(self
            .scenes()
            .into_iter()
            .zip(looks)
            .map(|(scene, look)| Explained::new((scene.label, scene.title, scene.steps), self, &measured, lacks, look))
            .collect())
    }

    fn look(&self, workload: &Workload, config: &Config) -> Result<(Measured, Vec<Look>), Error> {
        let fails = |what: String| Error::Scenario(self.name, what);
        let measured = replay(workload, config)?;
        if !measured.passed {
            return Err(fails(measured.log.lines().last().unwrap_or("no word about why it failed").to_owned()));
        }
        let looks = look::read(&measured.log).map_err(fails)?;
        let seen: Vec<_> = looks.iter().map(|look| look.label.as_str()).collect();
        if seen != self.labels() {
            return Err(fails(format!("it showed {seen:?}")));
        }
        Ok((measured, looks))
    }
}

impl Look {
    /// What a scheme told that ran alone and showed `other`: nothing about this folio, if it refused the shape and another folio stands there.
    fn told_alone(&self, scheme: &str, other: Self) -> Told {
        let same = (other.order, &other.truth) == (self.order, &self.truth);
        other.schemes.into_iter().next().filter(|_| same).unwrap_or_else(|| Told::refused(scheme))
    }
}
