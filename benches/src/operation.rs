//! One operation alone, for a tool that counts instructions: it collects between entry and exit of [`counted`].

use std::hint::black_box;

use quire::mapcount::{Accounting, Scheme, UnderScheme};

use crate::library::SHAPES;
use crate::work::{Op, Probe, Shape, World};

/// What to do once, on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Once {
    op: Op,
    shape: Shape,
    scheme: Scheme,
}

impl Once {
    /// From the words of the command line, or why there is no such thing.
    pub(crate) fn parse(op: &str, order: &str, level: &str, scheme: &str) -> Result<Self, String> {
        let done = || Op::EACH.into_iter().filter(|op| !Op::OF_VMS.contains(op));
        let op = done().find(|known| known.name() == op).ok_or_else(|| {
            format!("no operation is called {op:?}: {}", done().map(Op::name).collect::<Vec<_>>().join(", "))
        })?;
        let is = |shape: &Shape| shape.order.get().to_string() == order && shape.leaf.get().to_string() == level;
        let shape = SHAPES.into_iter().filter(|shape| shape.has(op)).find(is).ok_or_else(|| {
            let each = |shape: Shape| format!("{} {}", shape.order.get(), shape.leaf.get());
            let all: Vec<_> = SHAPES.into_iter().filter(|shape| shape.has(op)).map(each).collect();
            format!("{} is not done at order and level {order} {level}: {}", op.name(), all.join(", "))
        })?;
        let scheme = scheme.parse().map_err(|error| format!("{scheme}: {error}"))?;
        Ok(Self { op, shape, scheme })
    }

    /// Does one cycle to warm up, then another in which the operation goes through [`counted`].
    ///
    /// # Errors
    /// When the scheme cannot count such leaves.
    pub(crate) fn run(self) -> Result<(), String> {
        self.scheme.run(self)
    }
}

impl UnderScheme for Once {
    type Output = Result<(), String>;

    fn run<A: Accounting>(self) -> Self::Output {
        // In a world of its own, so that what is counted is as warm as ever.
        let trial = World::<A>::new(self.shape);
        let is_possible = trial.is_possible();
        trial.end();
        if !is_possible {
            return Err(format!("{} cannot count folios of order {}", A::NAME, self.shape.order.get()));
        }
        let world = World::<A>::new(self.shape);
        world.cycle(&mut Warm);
        world.cycle(&mut Count(self.op));
        world.end();
        Ok(())
    }
}

struct Warm;

impl Probe for Warm {
    fn probe(&mut self, _op: Op, f: &mut dyn FnMut()) {
        f();
    }
}

struct Count(Op);

impl Probe for Count {
    fn probe(&mut self, op: Op, f: &mut dyn FnMut()) {
        if op == self.0 { counted(f) } else { f() }
    }
}

/// The name that is told to the tool.
#[inline(never)]
fn counted(f: &mut dyn FnMut()) {
    f();
    black_box(());
}

#[cfg(test)]
mod tests {
    use super::{Accounting, Once, Op, Probe, UnderScheme, World};
    use crate::golden;

    /// How often the operation came by.
    struct Seen(Op, usize);

    impl Probe for Seen {
        fn probe(&mut self, op: Op, f: &mut dyn FnMut()) {
            self.1 += usize::from(op == self.0);
            f();
        }
    }

    struct Often(Once);

    impl UnderScheme for Often {
        type Output = usize;
        fn run<A: Accounting>(self) -> usize {
            let world = World::<A>::new(self.0.shape);
            let mut seen = Seen(self.0.op, 0);
            world.cycle(&mut seen);
            world.end();
            seen.1
        }
    }

    #[test]
    fn what_is_admitted_is_done_once() {
        let mut admitted = 0;
        for op in Op::EACH {
            for (order, level) in (0..=20).flat_map(|order| (0..=4).map(move |level| (order, level))) {
                if let Ok(once) = Once::parse(op.name(), &order.to_string(), &level.to_string(), "total") {
                    assert_eq!(once.scheme.run(Often(once)), 1, "{once:?}");
                    once.run().unwrap();
                    admitted += 1;
                }
            }
        }
        assert!(admitted > 5 * 8, "{admitted}");
    }

    #[test]
    fn what_is_counted_for_the_file_is_admitted() {
        for (op, order, level) in golden::EACH {
            Once::parse(op.name(), &order.to_string(), &level.to_string(), "none").unwrap();
        }
    }

    #[test]
    fn what_is_not_done_is_refused_in_a_line() {
        for [op, order, level, scheme] in [
            ["map", "13", "1", "total"],
            ["map", "18", "1", "total"],
            ["map", "0", "2", "total"],
            ["ask", "18", "1", "per-page"],
            ["cow", "9", "2", "total"],
            ["stage2 fault", "0", "1", "total"],
            ["map", "0", "1", "best"],
            ["map", "x", "1", "total"],
            ["dance", "0", "1", "total"],
        ] {
            let error = Once::parse(op, order, level, scheme).unwrap_err();
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}
