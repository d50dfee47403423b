//! A kernel as it is run: instructions with their operands found, one behind the other.

use crate::arithmetic::Update;
use crate::lanes::{Map, Test};

/// Number of a register; of a predicate.
pub type Register = u32;
/// A register that is written and never read.
pub const SINK: Register = 0;
/// The predicate that holds in every lane; number 0 is a sink as well.
pub const TRUE: Register = 1;

/// A predicate as an operand: its lanes, all turned over if `flip` has all bits set.
#[derive(Clone, Copy)]
pub struct Predicate {
    pub index: Register,
    pub flip: u32,
}

/// Where a load or store goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Global,
    Shared,
    Local,
    /// The launch's parameter buffer.
    Param,
    /// As the address says.
    Generic,
}

/// A register and a distance.
#[derive(Clone, Copy)]
pub struct Address {
    pub base: Register,
    pub offset: i64,
}

/// What is done with the bytes of a memory access.
#[derive(Clone, Copy)]
pub enum Action {
    /// To registers; sign-extended if asked.
    Load {
        signed: bool,
    },
    Store,
    /// Old value to a register, the updated one to memory.
    Atomic {
        update: Update,
        operands: [Register; 2],
    },
}

/// A load, store or atomic instruction.
pub struct Transfer {
    pub place: Place,
    pub address: Address,
    /// Bytes of one element.
    pub bytes: usize,
    pub action: Action,
    /// One for each element.
    pub values: Vec<Register>,
}

/// A function of predicates, lane by lane.
pub type Logic = fn(u32, u32) -> u32;

/// How lanes exchange registers.
#[derive(Clone, Copy)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// A question to all lanes.
#[derive(Clone, Copy)]
pub enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Arguments of a barrier of the block.
pub struct Barrier {
    pub id: Register,
    /// Threads that take part; all of the block without it.
    pub threads: Option<Register>,
    /// Whether the warp waits.
    pub waits: bool,
    /// Of every thread's answer to a question, one for all.
    pub reduction: Option<(Reduction, Predicate)>,
}

/// What a barrier makes of the threads' answers.
#[derive(Clone, Copy)]
pub enum Reduction {
    /// Their number, to a register.
    Count(Register),
    /// Whether all hold, to a predicate.
    All(Register),
    /// Whether one holds, to a predicate.
    Any(Register),
}

/// Operand types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// k = 16, or 8 with half the registers.
    Bf16,
    /// k = 8, or 4.
    Tf32,
}

pub enum Op {
    Map {
        map: Map,
        to: Register,
        from: [Register; 4],
        flush: bool,
        saturate: bool,
    },
    Test {
        test: Test,
        from: [Register; 2],
        flush: bool,
        with: Option<(Logic, Predicate)>,
        to: [Register; 2],
    },
    Select {
        to: Register,
        from: [Register; 2],
        by: Predicate,
    },
    /// Of predicates.
    Logic {
        of: Logic,
        to: Register,
        from: [Predicate; 2],
    },
    /// A register's equal parts, the lowest first.
    Unpack {
        to: Vec<Register>,
        from: Register,
        bits: u32,
    },
    Pack {
        to: Register,
        from: Vec<Register>,
        bits: u32,
    },
    Transfer(Transfer),
    CopyAsync {
        to: Address,
        from: Address,
        bytes: usize,
        wanted: Option<Register>,
    },
    Commit,
    /// Until this many groups are under way; without a number, until nothing is.
    Wait(Option<usize>),
    Branch {
        to: u32,
    },
    /// To the target of a number.
    Switch {
        by: Register,
        to: Vec<u32>,
    },
    Exit,
    Trap,
    Barrier(Barrier),
    SyncWarp {
        mask: Register,
    },
    Shuffle {
        how: Shuffle,
        to: Register,
        found: Register,
        from: Register,
        by: Register,
        clamp: Register,
        mask: Register,
    },
    Vote {
        how: Vote,
        to: Register,
        of: Predicate,
        mask: Register,
    },
    /// Which lanes hold the same value.
    Match {
        all: bool,
        wide: bool,
        to: Register,
        found: Register,
        of: Register,
        mask: Register,
    },
    /// One value of all lanes'.
    Reduce {
        update: Update,
        to: Register,
        of: Register,
        mask: Register,
    },
    ActiveMask {
        to: Register,
    },
    Mma {
        factor: Factor,
        to: [Register; 4],
        a: Vec<Register>,
        b: Vec<Register>,
        c: [Register; 4],
    },
    LoadMatrices {
        to: Vec<Register>,
        from: Address,
        transposed: bool,
    },
    Nothing,
}

/// A place in the sources: of the code itself, and of the call that brought it here.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Source {
    pub at: (u32, u32),
    pub called: Option<(u32, u32)>,
}

pub struct Instruction {
    pub op: Op,
    pub guard: Predicate,
    /// Of the PTX text.
    pub line: u32,
    pub source: Source,
}

/// What a register that never changes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fixed {
    Constant(u64),
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    GridSize(usize),
    Lane,
    Warp,
    Warps,
    /// Lanes below, up to, equal to, from and above one's own.
    LanesLess,
    LanesLessEqual,
    LanesEqual,
    LanesGreaterEqual,
    LanesGreater,
    DynamicShared,
    /// A clock that stands still.
    Zero,
}

/// A kernel of a module.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) instructions: Vec<Instruction>,
    /// The text of each.
    pub(crate) texts: Vec<String>,
    pub(crate) files: Vec<(u32, String)>,
    pub(crate) registers: u32,
    pub(crate) predicates: u32,
    pub(crate) fixed: Vec<(Register, Fixed)>,
    /// (offset, size) of each.
    pub(crate) params: Vec<(usize, usize)>,
    /// Bytes of static shared memory, and of each thread's own.
    pub(crate) shared: usize,
    pub(crate) local: usize,
    /// `__launch_bounds__`: threads of a block at most.
    pub(crate) max_threads: Option<u32>,
}

impl Kernel {
    /// Its entry.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// (offset, size) of each parameter in the buffer.
    pub fn params(&self) -> &[(usize, usize)] {
        &self.params
    }

    /// `name.cu:12`, and where it was called if it is a function's.
    pub(crate) fn source_line(&self, source: Source) -> Option<String> {
        let place = |(file, line): (u32, u32)| {
            let (_, path) = self.files.iter().find(|(number, _)| *number == file)?;
            Some(format!("{}:{line}", path.rsplit('/').next().unwrap_or(path)))
        };
        let at = place(source.at)?;
        Some(source.called.and_then(place).map_or(at.clone(), |called| format!("{at}, called at {called}")))
    }
}
