//! The checker: who wrote each byte last, who has read it since, and whether that is ordered before now.
//!
//! A warp's execution is cut into *segments* at every barrier it passes and every `bar.warp.sync`. An access is stamped
//! with its segment and lane. An earlier access happens before a later one if
//! - the same thread made both;
//! - the same warp made both, and a `bar.warp.sync` or a barrier lies between;
//! - warps of one block made them, and barriers lead from one to the other (each warp knows up to which of the others'
//!   barriers it has heard of: vector clocks, so that barriers of some warps only, and `bar.arrive`, count as what they are).
//!
//! Accesses of two blocks are never ordered within a launch; launches are. Atomic accesses do not race with each other.
//! What this does not see: order by fences and flags between blocks, a mask of `bar.warp.sync` smaller than the warp (it
//! counts for all lanes), and readers of one byte past the second warp.

use crate::lanes::LANES;

/// An access, in 32 bits: atomic or not, on the way (`cp.async`) or there, segment, lane.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u32);

const ATOMIC: u32 = 1 << 31;
const ON_THE_WAY: u32 = 1 << 30;
const LANE_BITS: u32 = 5;
/// Segments that fit in a stamp.
pub const SEGMENTS_MAX: u32 = 1 << (30 - LANE_BITS);

impl Stamp {
    /// No access.
    const NEVER: Self = Self(0);
    /// An access that everything now is ordered after: the host's, an earlier launch's.
    const LONG_AGO: Self = Self(1);
    fn segment(self) -> u32 {
        (self.0 & !(ATOMIC | ON_THE_WAY)) >> LANE_BITS
    }
    fn lane(self) -> u32 {
        self.0 & (LANES as u32 - 1)
    }
    fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// A piece of a warp's execution that no barrier divides.
#[derive(Clone, Copy)]
struct Segment {
    block: u32,
    warp: u32,
    /// How many barriers the warp has passed.
    time: u32,
    /// How many barriers or warp barriers.
    sync: u32,
}

/// A thread, as a report names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Number of the block.
    pub block: u32,
    /// Number of the thread in it.
    pub thread: u32,
}

/// What is wrong with an access, and who made the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// Nothing was ever written there.
    Uninitialised,
    /// A `cp.async` writes there that was not waited for.
    OnTheWay(Thread),
    /// A read that another thread's write is not ordered before.
    ReadAfterWrite(Thread),
    /// A write that another thread's read is not ordered before.
    WriteAfterRead(Thread),
    /// Two writes in no order.
    WriteAfterWrite(Thread),
}

/// How an access counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An ordinary load.
    Read,
    /// An ordinary store.
    Write,
    /// A read and a write in one, in some order with all others of its kind.
    Atomic,
    /// A store that begins now,
    Begin,
    /// and is done now.
    End,
}

/// The order of everything that happened in a launch.
pub struct History {
    /// The first segment of this launch: what is stamped before is long ago.
    launch: u32,
    /// The first segment of this block.
    block_first: u32,
    segments: Vec<Segment>,
    block: u32,
    /// For each warp of the block, up to which time it has heard of each warp.
    heard: Vec<Vec<u32>>,
    /// The current segment of each warp.
    current: Vec<u32>,
}

impl History {
    /// Of a launch of blocks of `warps`; segments before `launch` are used up.
    pub fn new(launch: u32, warps: usize) -> Self {
        let heard = vec![vec![0; warps]; warps];
        Self { launch, block_first: launch, segments: Vec::new(), block: 0, heard, current: vec![0; warps] }
    }

    /// The segment that the next launch may begin with.
    pub fn next(&self) -> u32 {
        self.launch + self.segments.len() as u32
    }

    /// Another block begins.
    pub fn begin_block(&mut self, block: u32) {
        (self.block, self.block_first) = (block, self.next());
        for warp in 0..self.heard.len() {
            self.heard[warp].fill(0);
            self.heard[warp][warp] = 1;
            self.push(Segment { block, warp: warp as u32, time: 1, sync: 0 });
        }
    }

    fn push(&mut self, segment: Segment) {
        self.current[segment.warp as usize] = self.next();
        self.segments.push(segment);
    }

    fn segment(&self, number: u32) -> Segment {
        self.segments[(number - self.launch) as usize]
    }

    /// A warp passes a barrier of its own lanes.
    pub fn sync_warp(&mut self, warp: usize) {
        let segment = self.segment(self.current[warp]);
        self.push(Segment { sync: segment.sync + 1, ..segment });
    }

    /// A warp passes a barrier of the block: what it does from here on is later than what others heard of it there.
    fn step(&mut self, warp: usize) {
        let segment = self.segment(self.current[warp]);
        let time = segment.time + 1;
        self.heard[warp][warp] = time;
        self.push(Segment { time, sync: segment.sync + 1, ..segment });
    }

    /// A warp reaches a barrier and does not wait: what others will hear of it there.
    pub fn arrive(&mut self, warp: usize) -> Vec<u32> {
        let known = self.heard[warp].clone();
        self.step(warp);
        known
    }

    /// `waiting` pass a barrier; `arrived`: what [`History::arrive`] said of those that did not wait.
    pub fn barrier(&mut self, waiting: &[usize], arrived: &[Vec<u32>]) {
        let mut joined = vec![0; self.heard.len()];
        for known in waiting.iter().map(|&warp| &self.heard[warp]).chain(arrived) {
            joined.iter_mut().zip(known).for_each(|(joined, &known)| *joined = (*joined).max(known));
        }
        for &warp in waiting {
            self.heard[warp].copy_from_slice(&joined);
            self.step(warp);
        }
    }

    fn stamp(&self, warp: usize, lane: usize) -> Stamp {
        Stamp(self.current[warp] << LANE_BITS | lane as u32)
    }

    fn thread(&self, stamp: Stamp) -> Thread {
        let segment = self.segment(stamp.segment());
        Thread { block: segment.block, thread: segment.warp * LANES as u32 + stamp.lane() }
    }

    /// Whether `before` happens before what `warp` and `lane` do now. `horizon`: what is stamped before does.
    fn ordered(&self, before: Stamp, me: Stamp, horizon: u32) -> bool {
        let number = before.segment();
        if number < horizon || before == me {
            return true;
        }
        let (then, now) = (self.segment(number), self.segment(me.segment()));
        if then.block != now.block {
            return false;
        }
        if then.warp == now.warp {
            return before.lane() == me.lane() || then.sync < now.sync;
        }
        self.heard[now.warp as usize][then.warp as usize] >= then.time
    }

    fn same_warp(&self, a: Stamp, b: Stamp) -> bool {
        let (a, b) = (self.segment(a.segment()), self.segment(b.segment()));
        (a.block, a.warp) == (b.block, b.warp)
    }
}

/// What memory the bytes are in: what is stamped before its horizon is long ago.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Outlives the launch.
    Global,
    /// A new one for every block: what an earlier one left does not count as written.
    Shared,
}

/// A history for every byte of some memory; it takes room when it is first touched.
pub struct Shadow {
    writes: Vec<u32>,
    /// Two readers since the last write, of different warps if there are such.
    reads: [Vec<u32>; 2],
}

impl Shadow {
    /// Of `len` bytes that were never written.
    pub fn new(len: usize) -> Self {
        Self { writes: vec![0; len], reads: [vec![0; len], vec![0; len]] }
    }

    /// The host has written these bytes.
    pub fn settle(&mut self, at: usize, len: usize) {
        self.writes[at..at + len].fill(Stamp::LONG_AGO.0);
        self.reads.iter_mut().for_each(|reads| reads[at..at + len].fill(0));
    }

    /// Whatever was written was written long ago.
    pub fn settle_written(&mut self) {
        self.writes.iter_mut().for_each(|stamp| *stamp = u32::from(*stamp != 0));
        self.reads.iter_mut().for_each(|reads| reads.fill(0));
    }

    /// A thread touches `len` bytes now.
    pub fn touch(
        &mut self,
        history: &History,
        space: Space,
        (at, len): (usize, usize),
        (warp, lane): (usize, usize),
        access: Access,
    ) -> Option<Hazard> {
        let me = history.stamp(warp, lane);
        let end = at + len;
        // The bytes of one access mostly have one history.
        let same = |stamps: &[u32]| stamps.iter().fold(0, |differs, &stamp| differs | (stamp ^ stamps[0])) == 0;
        let alike = same(&self.writes[at..end]) && self.reads.iter().all(|reads| same(&reads[at..end]));
        let step = if alike { len } else { 1 };
        let mut hazard = None;
        for at in (at..end).step_by(step) {
            let cell = Cell {
                write: Stamp(self.writes[at]),
                reads: [Stamp(self.reads[0][at]), Stamp(self.reads[1][at])],
                history,
                space,
                me,
            };
            let (found, write, reads) = cell.touch(access);
            hazard = hazard.or(found);
            self.writes[at..at + step].fill(write.0);
            self.reads[0][at..at + step].fill(reads[0].0);
            self.reads[1][at..at + step].fill(reads[1].0);
        }
        hazard
    }
}

/// One byte's history and one access to it.
struct Cell<'a> {
    write: Stamp,
    reads: [Stamp; 2],
    history: &'a History,
    space: Space,
    me: Stamp,
}

impl Cell<'_> {
    fn ordered(&self, before: Stamp) -> bool {
        let horizon = if self.space == Space::Shared { self.history.block_first } else { self.history.launch };
        self.history.ordered(Stamp(before.0 & !(ATOMIC | ON_THE_WAY)), self.me, horizon)
    }

    /// What is wrong, and the stamps afterwards.
    fn touch(&self, access: Access) -> (Option<Hazard>, Stamp, [Stamp; 2]) {
        let hazard = self.hazard(access);
        match access {
            Access::Read if hazard == Some(Hazard::Uninitialised) => (hazard, Stamp::LONG_AGO, self.reads),
            Access::Read => (hazard, self.write, self.readers()),
            Access::Write | Access::End => (hazard, self.me, [Stamp::NEVER; 2]),
            Access::Atomic => (hazard, Stamp(self.me.0 | ATOMIC), [Stamp::NEVER; 2]),
            Access::Begin => (hazard, Stamp(self.me.0 | ON_THE_WAY), [Stamp::NEVER; 2]),
        }
    }

    fn written(&self) -> bool {
        match self.space {
            Space::Global => self.write != Stamp::NEVER,
            Space::Shared => self.write.segment() >= self.history.block_first || self.write == Stamp::LONG_AGO,
        }
    }

    fn hazard(&self, access: Access) -> Option<Hazard> {
        if access == Access::End {
            return None; // What came between was told when it came.
        }
        let written = self.written();
        if matches!(access, Access::Read | Access::Atomic) && !written {
            return Some(Hazard::Uninitialised);
        }
        if written && self.write.is(ON_THE_WAY) {
            return Some(Hazard::OnTheWay(self.history.thread(self.write)));
        }
        let both_atomic = access == Access::Atomic && self.write.is(ATOMIC);
        if !both_atomic && !self.ordered(self.write) {
            let other = self.history.thread(self.write);
            let read = access == Access::Read;
            return Some(if read { Hazard::ReadAfterWrite(other) } else { Hazard::WriteAfterWrite(other) });
        }
        let reader = self.reads.iter().find(|&&read| access != Access::Read && !self.ordered(read))?;
        Some(Hazard::WriteAfterRead(self.history.thread(*reader)))
    }

    /// Who has read, now that this thread has too.
    fn readers(&self) -> [Stamp; 2] {
        let [first, second] = self.reads;
        if self.ordered(first) {
            [self.me, second]
        } else if self.ordered(second)
            || (self.history.same_warp(first, second) && !self.history.same_warp(first, self.me))
        {
            [first, self.me]
        } else {
            self.reads
        }
    }
}
