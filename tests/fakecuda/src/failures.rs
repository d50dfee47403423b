//! `FAKECUDA_FAIL`: the n-th call of a class fails.

use crate::codes::Code;

/// What calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Allocations of device memory.
    Alloc,
    /// Kernel launches, those of a replayed graph among them.
    Launch,
    /// Products of cuBLASLt, those of a replayed graph among them.
    Product,
    /// Copies in any direction.
    Copy,
    /// Waits for a stream, an event or the context.
    Sync,
    /// What begins, ends, makes and runs a graph.
    Graph,
}

impl Class {
    /// By its name in `FAKECUDA_FAIL`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "alloc" => Self::Alloc,
            "launch" => Self::Launch,
            "product" => Self::Product,
            "copy" => Self::Copy,
            "sync" => Self::Sync,
            "graph" => Self::Graph,
            _ => return None,
        })
    }
}

/// Call number `at` (from 1) of `class` answers `code`.
#[derive(Debug)]
struct Planned {
    class: Class,
    at: u64,
    code: Code,
}

/// The failures to come, and how many calls of each class there were.
#[derive(Debug, Default)]
pub struct Failures {
    planned: Vec<Planned>,
    calls: [u64; 6],
}

impl Failures {
    /// From `class:n` or `class:n:code`, several separated by commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        let planned = text.split(',').filter(|part| !part.is_empty()).map(plan).collect::<Result<_, _>>()?;
        Ok(Self { planned, calls: [0; 6] })
    }

    /// Counts the calls of `class` anew: the `at`-th from now answers `code`, and no other but those of other classes. How
    /// many calls were counted.
    pub fn instead(&mut self, class: Class, at: u64, code: Code) -> u64 {
        self.planned.retain(|planned| planned.class != class);
        self.planned.push(Planned { class, at, code });
        std::mem::take(&mut self.calls[class as usize])
    }

    /// Counts a call; the code it must answer.
    pub fn next(&mut self, class: Class) -> Option<Code> {
        let call = &mut self.calls[class as usize];
        *call += 1;
        let planned = self.planned.iter().find(|planned| planned.class == class && planned.at == *call)?;
        Some(planned.code)
    }
}

fn plan(text: &str) -> Result<Planned, String> {
    let wrong = || {
        let classes = "alloc, launch, product, copy, sync or graph";
        format!("FAKECUDA_FAIL: \"{text}\" is not {classes}, a number and perhaps a code")
    };
    let mut parts = text.split(':');
    let class = parts.next().and_then(Class::named).ok_or_else(wrong)?;
    let code = match class {
        Class::Alloc => Code::OUT_OF_MEMORY,
        Class::Launch | Class::Product | Class::Sync => Code::LAUNCH_FAILED,
        Class::Copy => Code::ILLEGAL_ADDRESS,
        Class::Graph => Code::INVALID_VALUE,
    };
    let at = parts.next().and_then(|at| at.parse().ok()).ok_or_else(wrong)?;
    let code = match parts.next() {
        Some(code) => Code(code.parse().map_err(|_| wrong())?),
        None => code,
    };
    if parts.next().is_some() {
        return Err(wrong());
    }
    Ok(Planned { class, at, code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_of_its_class_fails_and_no_other() {
        let mut failures = Failures::parse("alloc:2,launch:1:1").unwrap();
        assert_eq!(failures.next(Class::Launch), Some(Code::INVALID_VALUE));
        let answers = [(); 3].map(|()| failures.next(Class::Alloc));
        assert_eq!(answers, [None, Some(Code::OUT_OF_MEMORY), None]);
        assert_eq!(failures.next(Class::Copy), None);
        assert_eq!(failures.instead(Class::Alloc, 1, Code::INVALID_VALUE), 3);
        assert_eq!([(); 2].map(|()| failures.next(Class::Alloc)), [Some(Code::INVALID_VALUE), None]);
        assert!(Failures::parse("read:1").is_err() && Failures::parse("copy").is_err());
    }
}
