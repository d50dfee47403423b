//! One statement made into one [`Op`].

use crate::arithmetic::{map_of, test_of, update_of};
use crate::build::{Builder, Symbol, members};
use crate::kernel::{
    Action, Barrier, Factor, Fixed, Logic, Op, Place, Reduction, Register, SINK, Shuffle, Transfer, Vote,
};
use crate::memory::{LOCAL, SHARED};
use crate::opcode::{Opcode, Type};

fn unsupported() -> String {
    "no support for the instruction".to_owned()
}

impl Builder<'_> {
    /// The operation of a statement that is no branch or call.
    pub fn decode(&mut self, name: &str, operands: &[&str]) -> Result<Op, String> {
        let op = Opcode::new(name);
        let operand = |index: usize| operands.get(index).copied().ok_or_else(|| format!("operand {index} is missing"));
        Ok(match op.name() {
            "ret" | "exit" => Op::Exit,
            "trap" => Op::Trap,
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "griddepcontrol" => Op::Nothing,
            "bar" | "barrier" if op.has("warp") => Op::SyncWarp { mask: self.source(operand(0)?)? },
            "bar" | "barrier" => self.barrier(&op, operands)?,
            "ld" | "ldu" | "st" | "atom" | "red" => self.transfer(&op, operands)?,
            "cp" => self.copy(&op, operands)?,
            "cvta" => self.convert_address(&op, operands)?,
            "mov" if operand(0)?.starts_with('{') => {
                let parts = members(operand(0)?);
                let to = parts.iter().map(|part| Ok(self.target(part)?.0)).collect::<Result<Vec<_>, String>>()?;
                let bits = op.of().ok_or_else(unsupported)?.bytes() as u32 * 8 / to.len() as u32;
                Op::Unpack { to, from: self.source(operand(1)?)?, bits }
            }
            "mov" if operand(1)?.starts_with('{') => {
                let parts = members(operand(1)?);
                let from = parts.iter().map(|part| self.source(part)).collect::<Result<Vec<_>, _>>()?;
                let bits = op.of().ok_or_else(unsupported)?.bytes() as u32 * 8 / from.len() as u32;
                Op::Pack { to: self.target(operand(0)?)?.0, from, bits }
            }
            "mov" | "and" | "or" | "xor" | "not" if op.of() == Some(Type::Pred) => {
                let from = [operand(1)?, operands.get(2).copied().unwrap_or(operand(1)?)];
                let from = [self.predicate(from[0])?, self.predicate(from[1])?];
                let of: Logic = match op.name() {
                    "or" => |a, b| a | b,
                    "xor" => |a, b| a ^ b,
                    "not" => |a, _| !a,
                    _ => |a, b| a & b,
                };
                Op::Logic { of, to: self.predicate_target(operand(0)?)?, from }
            }
            "setp" => self.set_predicate(&op, operands)?,
            "selp" => {
                let from = [self.source(operand(1)?)?, self.source(operand(2)?)?];
                Op::Select { to: self.target(operand(0)?)?.0, from, by: self.predicate(operand(3)?)? }
            }
            "shfl" => self.shuffle(&op, operands)?,
            "vote" => self.vote(&op, operands)?,
            "match" => self.match_lanes(&op, operands)?,
            "redux" => {
                let update = update_of(&op).ok_or_else(unsupported)?;
                let (of, mask) = (self.source(operand(1)?)?, self.source(operand(2)?)?);
                Op::Reduce { update, to: self.target(operand(0)?)?.0, of, mask }
            }
            "activemask" => Op::ActiveMask { to: self.target(operand(0)?)?.0 },
            "mma" => self.product(name, operands)?,
            "ldmatrix" => self.load_matrices(&op, operands)?,
            _ => self.arithmetic(&op, operands)?,
        })
    }

    fn arithmetic(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let map = map_of(op).ok_or_else(unsupported)?;
        let (to, sources) = operands.split_first().ok_or("no operands")?;
        let mut from = [SINK; 4];
        if sources.len() > from.len() {
            return Err("too many operands".to_owned());
        }
        for (from, source) in from.iter_mut().zip(sources) {
            *from = self.source(source)?;
        }
        let single = op.types().any(|of| of == Type::F32);
        Ok(Op::Map { map, to: self.target(to)?.0, from, flush: op.has("ftz") && single, saturate: op.has("sat") })
    }

    /// `setp.lt.and.f32 p|q, a, b, !c`: p is (a < b) and not c, q is not (a < b) and not c.
    fn set_predicate(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let test = test_of(op).ok_or_else(unsupported)?;
        let two = operands.get(1).is_some_and(|operand| self.is_predicate(operand));
        let sources = &operands[1 + usize::from(two)..];
        let [a, b, with @ ..] = sources else { return Err("too few operands".to_owned()) };
        let with = match (with.first(), op.one_of(&["and", "or", "xor"])) {
            (None, None) => None,
            (Some(operand), Some(how)) => {
                let logic: Logic = match how {
                    "and" => |a, b| a & b,
                    "or" => |a, b| a | b,
                    _ => |a, b| a ^ b,
                };
                Some((logic, self.predicate(operand)?))
            }
            _ => return Err(unsupported()),
        };
        let other = if two { self.predicate_target(operands[1])? } else { SINK };
        let to = [self.predicate_target(operands[0])?, other];
        Ok(Op::Test { test, from: [self.source(a)?, self.source(b)?], flush: op.has("ftz"), with, to })
    }

    fn place(op: &Opcode, symbol: Option<Symbol>) -> Place {
        match (op.one_of(&["global", "const", "shared", "shared::cta", "local", "param"]), symbol) {
            // Arguments of a call lie with the thread's own variables.
            (Some("param"), Some(Symbol::Local(_))) | (Some("local"), _) => Place::Local,
            (Some("param"), _) => Place::Param,
            (Some("shared" | "shared::cta"), _) => Place::Shared,
            (Some(_), _) => Place::Global,
            (None, _) => Place::Generic,
        }
    }

    fn transfer(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let of = op.of().ok_or_else(unsupported)?;
        let known = ["L1::cache_hint", "L2::cache_hint"].iter().all(|hint| !op.has(hint));
        if !known || matches!(of, Type::Pred) {
            return Err(unsupported());
        }
        let load = matches!(op.name(), "ld" | "ldu");
        let reads_back = op.name() == "atom";
        let at = usize::from(load || reads_back);
        let (address, symbol) = self.address(operands.get(at).ok_or("no address")?)?;
        let rest = operands.get(at + 1..).unwrap_or_default();
        let (action, values) = match op.name() {
            "ld" | "ldu" => {
                let targets = members(operands[0]).into_iter().map(|member| self.target(member));
                let targets = targets.collect::<Result<Vec<_>, _>>()?;
                let wider = targets.iter().any(|&(_, bytes)| bytes > of.bytes());
                let values = targets.into_iter().map(|(register, _)| register).collect();
                (Action::Load { signed: of.signed() && wider }, values)
            }
            "st" => {
                let values = members(rest.first().ok_or("no value")?).into_iter().map(|member| self.source(member));
                (Action::Store, values.collect::<Result<_, _>>()?)
            }
            _ => {
                let update = update_of(op).ok_or_else(unsupported)?;
                let first = self.source(rest.first().ok_or("no value")?)?;
                let second = rest.get(1).map_or(Ok(SINK), |operand| self.source(operand))?;
                let to = if reads_back { self.target(operands[0])?.0 } else { SINK };
                (Action::Atomic { update, operands: [first, second] }, vec![to])
            }
        };
        let expected = if op.has("v2") {
            2
        } else if op.has("v4") {
            4
        } else if op.has("v8") {
            8
        } else {
            1
        };
        if values.len() != expected {
            return Err(format!("{} values for a vector of {expected}", values.len()));
        }
        Ok(Op::Transfer(Transfer { place: Self::place(op, symbol), address, bytes: of.bytes(), action, values }))
    }

    /// `cp.async` and its groups.
    fn copy(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let constant = |operand: Option<&&str>| operand.and_then(|text| text.parse::<usize>().ok());
        if !op.has("async") || op.has("bulk") || op.has("mbarrier") || op.has("L2::cache_hint") {
            return Err(unsupported());
        }
        if op.has("commit_group") {
            return Ok(Op::Commit);
        }
        if op.has("wait_all") {
            return Ok(Op::Wait(None));
        }
        if op.has("wait_group") {
            return Ok(Op::Wait(Some(constant(operands.first()).ok_or("no number")?)));
        }
        let [to, from, bytes, wanted @ ..] = operands else { return Err("too few operands".to_owned()) };
        let bytes = constant(Some(bytes)).filter(|bytes| [4, 8, 16].contains(bytes)).ok_or("no such size")?;
        let (to, from) = (self.address(to)?.0, self.address(from)?.0);
        let wanted = wanted.first().map(|operand| self.source(operand)).transpose()?;
        Ok(Op::CopyAsync { to, from, bytes, wanted })
    }

    /// Between an address of one space and one of any.
    fn convert_address(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let [to, from] = operands else { return Err("not two operands".to_owned()) };
        let tag = match op.one_of(&["global", "const", "param", "shared", "shared::cta", "local"]) {
            Some("global" | "const") => 0,
            Some("shared" | "shared::cta") => SHARED,
            Some("local") => LOCAL,
            _ => return Err(unsupported()),
        };
        let map: crate::lanes::Map = if op.has("to") {
            |from, to| (0..to.len()).for_each(|lane| to[lane] = from[0][lane] & !from[1][lane])
        } else {
            |from, to| (0..to.len()).for_each(|lane| to[lane] = from[0][lane] | from[1][lane])
        };
        let from = [self.source(from)?, self.fixed(Fixed::Constant(tag)), SINK, SINK];
        Ok(Op::Map { map, to: self.target(to)?.0, from, flush: false, saturate: false })
    }

    /// `bar.sync id, threads`, `bar.arrive`, `bar.red.popc.u32 d, id, threads, p`.
    fn barrier(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let reduces = op.has("red");
        if !reduces && !op.has("sync") && !op.has("arrive") {
            return Err(unsupported());
        }
        let (mut rest, mut reduction) = (operands, None);
        if reduces {
            let [to, middle @ .., predicate] = operands else { return Err("too few operands".to_owned()) };
            let how = match op.one_of(&["popc", "and", "or"]) {
                Some("popc") => Reduction::Count(self.target(to)?.0),
                Some("and") => Reduction::All(self.predicate_target(to)?),
                Some(_) => Reduction::Any(self.predicate_target(to)?),
                None => return Err(unsupported()),
            };
            (rest, reduction) = (middle, Some((how, self.predicate(predicate)?)));
        }
        let id = self.source(rest.first().ok_or("no number")?)?;
        let threads = rest.get(1).map(|operand| self.source(operand)).transpose()?;
        Ok(Op::Barrier(Barrier { id, threads, waits: !op.has("arrive"), reduction }))
    }

    /// `shfl.sync.bfly.b32 d|p, a, b, c, mask`
    fn shuffle(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let how = match op.one_of(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            Some(_) if op.has("sync") => Shuffle::Index,
            _ => return Err(unsupported()),
        };
        let (found, sources) = match operands {
            [_, found, a, b, c, mask] => (self.predicate_target(found)?, [*a, *b, *c, *mask]),
            [_, a, b, c, mask] => (SINK, [*a, *b, *c, *mask]),
            _ => return Err("not five operands".to_owned()),
        };
        let [from, by, clamp, mask] = self.sources(sources)?;
        Ok(Op::Shuffle { how, to: self.target(operands[0])?.0, found, from, by, clamp, mask })
    }

    fn vote(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let [to, of, mask] = operands else { return Err("not three operands".to_owned()) };
        let how = match op.one_of(&["all", "any", "uni", "ballot"]) {
            Some("all") => Vote::All,
            Some("any") => Vote::Any,
            Some("uni") => Vote::Uniform,
            Some(_) => Vote::Ballot,
            None => return Err(unsupported()),
        };
        let to = if matches!(how, Vote::Ballot) { self.target(to)?.0 } else { self.predicate_target(to)? };
        Ok(Op::Vote { how, to, of: self.predicate(of)?, mask: self.source(mask)? })
    }

    fn match_lanes(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let (to, found, of, mask) = match operands {
            [to, found, of, mask] => (to, self.predicate_target(found)?, of, mask),
            [to, of, mask] => (to, SINK, of, mask),
            _ => return Err("not three operands".to_owned()),
        };
        let wide = op.of().is_some_and(|of| of.bytes() == 8);
        let (of, mask) = (self.source(of)?, self.source(mask)?);
        Ok(Op::Match { all: op.has("all"), wide, to: self.target(to)?.0, found, of, mask })
    }

    fn product(&mut self, name: &str, operands: &[&str]) -> Result<Op, String> {
        let (factor, a_len, b_len) = match name.strip_prefix("mma.sync.aligned.") {
            Some("m16n8k16.row.col.f32.bf16.bf16.f32") => (Factor::Bf16, 4, 2),
            Some("m16n8k8.row.col.f32.bf16.bf16.f32") => (Factor::Bf16, 2, 1),
            Some("m16n8k8.row.col.f32.tf32.tf32.f32") => (Factor::Tf32, 4, 2),
            Some("m16n8k4.row.col.f32.tf32.tf32.f32") => (Factor::Tf32, 2, 1),
            _ => return Err(unsupported()),
        };
        let [d, a, b, c] = operands else { return Err("not four operands".to_owned()) };
        let list = |builder: &mut Self, operand: &str, len: usize| -> Result<Vec<Register>, String> {
            let registers =
                members(operand).into_iter().map(|member| builder.source(member)).collect::<Result<Vec<_>, _>>()?;
            if registers.len() == len { Ok(registers) } else { Err(format!("`{operand}` is not {len} registers")) }
        };
        let four = |registers: Vec<Register>| registers.try_into().expect("four were asked for");
        let to = members(d).iter().map(|member| Ok(self.target(member)?.0)).collect::<Result<Vec<_>, String>>()?;
        if to.len() != 4 {
            return Err(format!("`{d}` is not 4 registers"));
        }
        let (a, b) = (list(self, a, a_len)?, list(self, b, b_len)?);
        Ok(Op::Mma { factor, to: four(to), a, b, c: four(list(self, c, 4)?) })
    }

    fn load_matrices(&mut self, op: &Opcode, operands: &[&str]) -> Result<Op, String> {
        let count = match op.one_of(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err(unsupported()),
        };
        let [to, from] = operands else { return Err("not two operands".to_owned()) };
        let to = members(to).iter().map(|member| Ok(self.target(member)?.0)).collect::<Result<Vec<_>, String>>()?;
        if !op.has("m8n8") || !op.has("b16") || to.len() != count {
            return Err(unsupported());
        }
        Ok(Op::LoadMatrices { to, from: self.address(from)?.0, transposed: op.has("trans") })
    }

    fn sources<const N: usize>(&mut self, operands: [&str; N]) -> Result<[Register; N], String> {
        let mut registers = [SINK; N];
        for (register, operand) in registers.iter_mut().zip(operands) {
            *register = self.source(operand)?;
        }
        Ok(registers)
    }
}
