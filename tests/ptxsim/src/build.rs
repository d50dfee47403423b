//! A function's body made into a [`Kernel`]: names to numbers, labels to places, calls to copies of what is called.

use crate::kernel::{Address, Fixed, Instruction, Kernel, Op, Predicate, Register, SINK, Source, TRUE};
use crate::lanes::ALL;
use crate::memory::Memory;
use crate::parse::{Function, Item, Reader, Variable, initial_value, items, number, without_comments};
use std::collections::HashMap;

/// How deep calls may lie in calls.
const DEPTH_MAX: usize = 16;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    /// A register of this many bytes.
    Register(Register, usize),
    /// A predicate.
    Predicate(Register),
    /// An offset in shared memory.
    Shared(usize),
    /// The start of dynamic shared memory.
    DynamicShared,
    /// An offset in a thread's own memory.
    Local(usize),
    /// An offset in the parameter buffer.
    Param(usize),
    /// An address in global memory.
    Global(u64),
}

/// The kernels and variables of one PTX text.
pub struct Module {
    kernels: Vec<Kernel>,
    globals: HashMap<String, (u64, usize)>,
}

impl Module {
    /// Reads PTX and puts its variables into the device's memory. The error names the line.
    pub fn load(ptx: &str, memory: &mut Memory) -> Result<Self, String> {
        let text = without_comments(ptx);
        let items = items(&text)?;
        let (mut names, mut globals, mut shared) = (HashMap::new(), HashMap::new(), 0);
        for item in &items {
            let Item::Variable(space, variable, initial) = item else { continue };
            let symbol = if *space == ".shared" {
                declare_shared(variable, &mut shared)
            } else {
                let at = allocate(variable, *initial, memory).map_err(|error| format!("{}: {error}", variable.name))?;
                globals.insert(variable.name.to_owned(), (at, variable.bytes));
                Symbol::Global(at)
            };
            names.insert(variable.name.to_owned(), symbol);
        }
        let entries = items.iter().filter_map(|item| match item {
            Item::Function(function) if function.entry => Some(function),
            _ => None,
        });
        let kernels = entries.map(|entry| Builder::kernel(entry, &items, &names, shared)).collect::<Result<_, _>>()?;
        Ok(Self { kernels, globals })
    }

    /// A kernel by its entry's name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// All kernels.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Address and size of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, usize)> {
        self.globals.get(name).copied()
    }

    /// Gives the variables' memory back.
    pub fn unload(self, memory: &mut Memory) {
        for (at, _) in self.globals.into_values() {
            memory.free(at);
        }
    }
}

/// A variable in global memory, zero where nothing else is said.
fn allocate(variable: &Variable, initial: Option<&str>, memory: &mut Memory) -> Result<u64, String> {
    let mut bytes = initial.map_or(Ok(Vec::new()), |value| initial_value(value, variable.element))?;
    bytes.resize(variable.bytes.max(bytes.len()), 0);
    let at = memory.alloc(bytes.len());
    memory.write(at, &bytes)?;
    Ok(at)
}

/// A place in shared memory; an array of unknown length is where the dynamic part starts.
fn declare_shared(variable: &Variable, used: &mut usize) -> Symbol {
    if variable.bytes == 0 {
        return Symbol::DynamicShared;
    }
    let at = used.next_multiple_of(variable.align);
    *used = at + variable.bytes;
    Symbol::Shared(at)
}

/// A body on its way to a kernel.
pub struct Builder<'a> {
    items: &'a [Item<'a>],
    scopes: Vec<HashMap<String, Symbol>>,
    fixed: HashMap<Fixed, Register>,
    /// Places by label; a copy of a called function has its number before its labels.
    labels: HashMap<(usize, String), u32>,
    /// Branches whose targets are to be filled in: instruction, and labels.
    branches: Vec<(usize, Vec<(usize, String)>)>,
    tables: HashMap<(usize, String), Vec<String>>,
    /// Which copy is read now, outermost first; how many there were.
    copies: Vec<usize>,
    copied: usize,
    source: Source,
    kernel: Kernel,
}

/// The label at the end of a copied function.
const END: &str = " end";

impl<'a> Builder<'a> {
    fn kernel(
        entry: &Function<'a>,
        items: &'a [Item<'a>],
        names: &HashMap<String, Symbol>,
        shared: usize,
    ) -> Result<Kernel, String> {
        let files = items.iter().filter_map(|item| match item {
            Item::File(number, path) => Some((*number, (*path).to_owned())),
            _ => None,
        });
        let kernel = Kernel {
            name: entry.name.to_owned(),
            instructions: Vec::new(),
            texts: Vec::new(),
            files: files.collect(),
            registers: SINK + 1,
            predicates: TRUE + 1,
            fixed: Vec::new(),
            params: Vec::new(),
            shared,
            local: 0,
            max_threads: max_threads(entry.directives),
        };
        let mut builder = Self {
            items,
            scopes: vec![names.clone()],
            fixed: HashMap::new(),
            labels: HashMap::new(),
            branches: Vec::new(),
            tables: HashMap::new(),
            copies: vec![0],
            copied: 0,
            source: Source::default(),
            kernel,
        };
        let mut at = 0usize;
        for param in &entry.params {
            at = at.next_multiple_of(param.align);
            builder.scopes[0].insert(param.name.to_owned(), Symbol::Param(at));
            builder.kernel.params.push((at, param.bytes));
            at += param.bytes;
        }
        builder.body(&mut entry.body.clone()).map_err(|error| format!("{}: {error}", entry.name))?;
        builder.finish()
    }

    fn finish(mut self) -> Result<Kernel, String> {
        // A body may end in a label, or in a call that does not come back.
        let line = self.kernel.instructions.last().map_or(0, |last| last.line);
        self.push(Op::Exit, Predicate { index: TRUE, flip: 0 }, line, "ret");
        for (instruction, labels) in std::mem::take(&mut self.branches) {
            let find = |label: &(usize, String)| {
                self.labels.get(label).copied().ok_or_else(|| format!("no label {}", label.1))
            };
            let targets = labels.iter().map(find).collect::<Result<Vec<_>, _>>()?;
            match &mut self.kernel.instructions[instruction].op {
                Op::Branch { to } => *to = targets[0],
                Op::Switch { to, .. } => *to = targets,
                _ => unreachable!("only branches have labels"),
            }
        }
        self.kernel.shared = self.kernel.shared.next_multiple_of(128);
        self.kernel.local = self.kernel.local.next_multiple_of(16);
        self.kernel.fixed = self.fixed.into_iter().map(|(fixed, register)| (register, fixed)).collect();
        Ok(self.kernel)
    }

    /// Reads `{ ... }`.
    fn body(&mut self, reader: &mut Reader<'a>) -> Result<(), String> {
        let depth = self.scopes.len();
        loop {
            match reader.peek().ok_or("the text ends in a body")? {
                '{' => {
                    self.scopes.push(HashMap::new());
                    reader.skip();
                }
                '}' => {
                    self.scopes.pop();
                    reader.skip();
                    if self.scopes.len() == depth {
                        return Ok(());
                    }
                }
                ';' => reader.skip(),
                _ => self.statement(reader)?,
            }
        }
    }

    fn statement(&mut self, reader: &mut Reader<'a>) -> Result<(), String> {
        if let Some(label) = reader.label() {
            reader.peek();
            if reader.is_at(".branchtargets") {
                let (targets, _) = reader.through(&[';'])?;
                let names = targets[".branchtargets".len()..].split(',').map(|name| name.trim().to_owned());
                self.tables.insert(self.own(label), names.collect());
            } else if reader.is_at(".callprototype") {
                return Err(format!("line {}: no support for calls of pointers", reader.line()));
            } else {
                self.label(label);
            }
            return Ok(());
        }
        if reader.is_at(".loc") {
            self.source = location(reader.rest_of_line());
            return Ok(());
        }
        let line = reader.line();
        let (text, _) = reader.through(&[';'])?;
        let result = if text.starts_with('.') { self.declaration(text) } else { self.instruction(text, line) };
        result.map_err(|error| format!("line {line}: {error} in `{text}`"))
    }

    /// A label of the copy that is read now.
    fn own(&self, label: &str) -> (usize, String) {
        (*self.copies.last().expect("never empty"), label.to_owned())
    }

    fn label(&mut self, label: &str) {
        self.labels.insert(self.own(label), self.kernel.instructions.len() as u32);
    }

    fn name(&mut self, name: &str, symbol: Symbol) {
        self.scopes.last_mut().expect("never empty").insert(name.to_owned(), symbol);
    }

    fn declaration(&mut self, text: &str) -> Result<(), String> {
        let (space, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match space {
            ".reg" => self.registers(rest),
            ".shared" => {
                let symbol = declare_shared(&Variable::parse(text)?, &mut self.kernel.shared);
                let name = Variable::parse(text)?.name;
                self.name(name, symbol);
                Ok(())
            }
            ".local" | ".param" => {
                let variable = Variable::parse(text)?;
                let at = self.room(&variable);
                self.name(variable.name, Symbol::Local(at));
                Ok(())
            }
            ".pragma" => Ok(()),
            _ => Err("no support for the declaration".to_owned()),
        }
    }

    /// Room in each thread's own memory.
    fn room(&mut self, variable: &Variable) -> usize {
        let at = self.kernel.local.next_multiple_of(variable.align.max(1));
        self.kernel.local = at + variable.bytes;
        at
    }

    /// `.b32 %r<12>, x, y`
    fn registers(&mut self, list: &str) -> Result<(), String> {
        let (of, names) = list.trim().split_once(char::is_whitespace).ok_or("no names")?;
        let of = crate::opcode::Type::parse(of.trim_start_matches('.')).ok_or("no such type")?;
        for name in names.split(',').map(str::trim) {
            match name.split_once('<') {
                Some((prefix, count)) => {
                    let count: usize = count.trim_end_matches('>').parse().map_err(|_| "no count")?;
                    for i in 0..count {
                        self.register(&format!("{prefix}{i}"), of);
                    }
                }
                None => self.register(name, of),
            }
        }
        Ok(())
    }

    fn register(&mut self, name: &str, of: crate::opcode::Type) {
        let symbol = if of == crate::opcode::Type::Pred {
            self.kernel.predicates += 1;
            Symbol::Predicate(self.kernel.predicates - 1)
        } else {
            self.kernel.registers += 1;
            Symbol::Register(self.kernel.registers - 1, of.bytes())
        };
        self.name(name, symbol);
    }

    fn instruction(&mut self, text: &str, line: u32) -> Result<(), String> {
        let mut guard = Predicate { index: TRUE, flip: 0 };
        let mut rest = text;
        if let Some(guarded) = text.strip_prefix('@') {
            let (predicate, behind) = guarded.split_once(char::is_whitespace).ok_or("only a guard")?;
            (guard, rest) = (self.predicate(predicate)?, behind.trim());
        }
        let (name, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let operands = split(operands);
        match name.split('.').next() {
            Some("bra") => {
                let label = self.own(operands.first().ok_or("no label")?);
                self.branch(Op::Branch { to: 0 }, vec![label], guard, line, text);
            }
            Some("brx") => {
                let by = self.source(operands.first().ok_or("no number")?)?;
                let table = self.tables.get(&self.own(operands.get(1).ok_or("no table")?)).ok_or("an unknown table")?;
                let labels = table.iter().map(|label| self.own(label)).collect();
                self.branch(Op::Switch { by, to: Vec::new() }, labels, guard, line, text);
            }
            Some("ret") if self.copies.len() > 1 => {
                let end = self.own(END);
                self.branch(Op::Branch { to: 0 }, vec![end], guard, line, text);
            }
            Some("call") => self.call(&operands, guard)?,
            _ => {
                let op = self.decode(name, &operands)?;
                self.push(op, guard, line, text);
            }
        }
        Ok(())
    }

    fn push(&mut self, op: Op, guard: Predicate, line: u32, text: &str) {
        self.kernel.instructions.push(Instruction { op, guard, line, source: self.source });
        self.kernel.texts.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    fn branch(&mut self, op: Op, labels: Vec<(usize, String)>, guard: Predicate, line: u32, text: &str) {
        self.branches.push((self.kernel.instructions.len(), labels));
        self.push(op, guard, line, text);
    }

    /// `call (result), name, (arguments)`: the function's body is copied here.
    fn call(&mut self, operands: &[&str], guard: Predicate) -> Result<(), String> {
        if guard.index != TRUE {
            return Err("no support for a guarded call".to_owned());
        }
        let is_list = |operand: &&str| operand.starts_with('(');
        let name = operands.iter().find(|operand| !is_list(operand)).ok_or("no name")?;
        let mut lists = operands.iter().copied().filter(is_list).map(|list| split(&list[1..list.len() - 1]));
        let items = self.items;
        let function = items.iter().find_map(|item| match item {
            Item::Function(function) if function.name == *name => Some(function),
            _ => None,
        });
        let function = function.ok_or_else(|| format!("no function {name}"))?;
        let results = if function.results.is_empty() { Vec::new() } else { lists.next().unwrap_or_default() };
        let arguments = lists.next().unwrap_or_default();
        if self.copies.len() > DEPTH_MAX {
            return Err("calls that lie too deep, or recursion".to_owned());
        }
        let formal = function.results.iter().chain(&function.params);
        let mut names = self.scopes[0].clone();
        for (formal, actual) in formal.zip(results.iter().chain(&arguments)) {
            names.insert(formal.name.to_owned(), self.symbol(actual)?);
        }
        self.copied += 1;
        self.copies.push(self.copied);
        let scopes = std::mem::replace(&mut self.scopes, vec![names]);
        self.body(&mut function.body.clone())?;
        self.label(END);
        self.scopes = scopes;
        self.copies.pop();
        Ok(())
    }

    // ---- operands, for `decode.rs` ----

    fn symbol(&self, name: &str) -> Result<Symbol, String> {
        let symbol = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        symbol.copied().ok_or_else(|| format!("unknown name `{name}`"))
    }

    /// A register that always holds this.
    pub fn fixed(&mut self, fixed: Fixed) -> Register {
        *self.fixed.entry(fixed).or_insert_with(|| {
            self.kernel.registers += 1;
            self.kernel.registers - 1
        })
    }

    /// What is read: a register, a number, the address of a variable.
    pub fn source(&mut self, operand: &str) -> Result<Register, String> {
        if let Some(value) = number(operand) {
            return Ok(self.fixed(Fixed::Constant(value)));
        }
        if let Some(special) = special(operand) {
            return Ok(self.fixed(special));
        }
        let (name, offset) = displaced(operand)?;
        let constant = match self.symbol(name)? {
            Symbol::Register(register, _) => return Ok(register),
            Symbol::DynamicShared => return Ok(self.fixed(Fixed::DynamicShared)),
            Symbol::Shared(at) | Symbol::Local(at) | Symbol::Param(at) => at as u64,
            Symbol::Global(at) => at,
            Symbol::Predicate(_) => return Err(format!("`{operand}` is a predicate")),
        };
        Ok(self.fixed(Fixed::Constant(constant.wrapping_add(offset as u64))))
    }

    /// A register that is written, and its bytes; `_` is written in vain.
    pub fn target(&self, operand: &str) -> Result<(Register, usize), String> {
        match operand {
            "_" => Ok((SINK, 8)),
            _ => match self.symbol(operand)? {
                Symbol::Register(register, bytes) => Ok((register, bytes)),
                _ => Err(format!("`{operand}` is no register")),
            },
        }
    }

    /// A predicate that is written.
    pub fn predicate_target(&self, operand: &str) -> Result<Register, String> {
        match operand {
            "_" => Ok(SINK),
            _ => match self.symbol(operand)? {
                Symbol::Predicate(index) => Ok(index),
                _ => Err(format!("`{operand}` is no predicate")),
            },
        }
    }

    /// A predicate that is read, perhaps turned over; a number is true unless it is 0.
    pub fn predicate(&self, operand: &str) -> Result<Predicate, String> {
        if let Some(value) = number(operand) {
            return Ok(Predicate { index: TRUE, flip: if value == 0 { ALL } else { 0 } });
        }
        let (name, flip) = operand.strip_prefix('!').map_or((operand, 0), |name| (name.trim(), ALL));
        Ok(Predicate { index: self.predicate_target(name)?, flip })
    }

    /// Whether an operand names a predicate.
    pub fn is_predicate(&self, operand: &str) -> bool {
        matches!(self.symbol(operand.trim_start_matches('!')), Ok(Symbol::Predicate(_)))
    }

    /// `[%rd1+16]`, and the variable in it if there is one.
    pub fn address(&mut self, operand: &str) -> Result<(Address, Option<Symbol>), String> {
        let inside = operand.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let inside = inside.ok_or_else(|| format!("`{operand}` is no address"))?.trim();
        if let Some(value) = number(inside) {
            return Ok((Address { base: self.fixed(Fixed::Constant(value)), offset: 0 }, None));
        }
        let (name, offset) = displaced(inside)?;
        let symbol = self.symbol(name)?;
        let base = self.source(name)?;
        Ok((Address { base, offset }, Some(symbol)))
    }
}

/// `name+16` or `name+-16`.
fn displaced(operand: &str) -> Result<(&str, i64), String> {
    let Some((name, offset)) = operand.split_once('+') else { return Ok((operand, 0)) };
    let offset = number(offset.trim()).ok_or_else(|| format!("distance `{offset}`"))?;
    Ok((name.trim(), offset as i64))
}

/// Operands between commas that lie in no brackets; `a|b` counts as two.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' | '|' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// The members of `{a, b}`, or the operand itself.
pub fn members(operand: &str) -> Vec<&str> {
    let inside = operand.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(operand);
    inside.split(',').map(str::trim).filter(|member| !member.is_empty()).collect()
}

fn special(name: &str) -> Option<Fixed> {
    let dimension = |name: &str| ["x", "y", "z"].iter().position(|dimension| *dimension == name);
    Some(match name.strip_prefix('%')?.split_once('.') {
        Some(("tid", rest)) => Fixed::Thread(dimension(rest)?),
        Some(("ntid", rest)) => Fixed::BlockSize(dimension(rest)?),
        Some(("ctaid", rest)) => Fixed::Block(dimension(rest)?),
        Some(("nctaid", rest)) => Fixed::GridSize(dimension(rest)?),
        Some(_) => return None,
        None => match &name[1..] {
            "laneid" => Fixed::Lane,
            "warpid" => Fixed::Warp,
            "nwarpid" => Fixed::Warps,
            "lanemask_lt" => Fixed::LanesLess,
            "lanemask_le" => Fixed::LanesLessEqual,
            "lanemask_eq" => Fixed::LanesEqual,
            "lanemask_ge" => Fixed::LanesGreaterEqual,
            "lanemask_gt" => Fixed::LanesGreater,
            "clock" | "clock64" | "globaltimer" | "smid" => Fixed::Zero,
            _ => return None,
        },
    })
}

/// `.maxntid 128, 1, 1`: the product.
fn max_threads(directives: &str) -> Option<u32> {
    let (_, rest) = directives.split_once(".maxntid").or_else(|| directives.split_once(".reqntid"))?;
    let sizes = rest.split('.').next()?.split(',').map(|size| size.trim().parse::<u32>());
    sizes.collect::<Result<Vec<_>, _>>().ok().map(|sizes| sizes.iter().product())
}

/// `.loc 1 22 5, function_name $name, inlined_at 1 30 9`
fn location(text: &str) -> Source {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut words = text.split_whitespace().map(|word| word.trim_end_matches(',').parse());
        Some((words.next()?.ok()?, words.next()?.ok()?))
    };
    let at = numbers(text.trim_start_matches(".loc")).unwrap_or_default();
    Source { at, called: text.split_once("inlined_at").and_then(|(_, call)| numbers(call)) }
}
