//! One operation alone, for a tool that counts instructions: it collects between entry and exit of [`counted`].

use std::hint::black_box;

use quire::mapcount::{Accounting, Scheme, UnderScheme};

use crate::work::{Op, Probe, Shape, World};

/// Does one cycle to warm up, then another in which `op` goes through [`counted`].
pub(crate) fn run(op: Op, shape: Shape, scheme: Scheme) {
    scheme.run(Once { op, shape });
}

#[derive(Clone, Copy)]
struct Once {
    op: Op,
    shape: Shape,
}

impl UnderScheme for Once {
    type Output = ();

    fn run<A: Accounting>(self) {
        let world = World::<A>::new(self.shape);
        world.cycle(&mut Warm);
        world.cycle(&mut Count(self.op));
        world.end();
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
