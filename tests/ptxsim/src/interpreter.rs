//! A PTX interpreter: runs the code that NVRTC/nvcc really emitted, warp by warp, with shadow memory.
use std::collections::HashMap;
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ty {
    Pred,
    B8,
    B16,
    S16,
    B32,
    S32,
    B64,
    S64,
    F32,
    F64,
}
impl Ty {
    fn parse(s: &str) -> Option<Ty> {
        Some(match s {
            "pred" => Ty::Pred,
            "b8" | "u8" | "s8" => Ty::B8,
            "b16" | "u16" => Ty::B16,
            "s16" => Ty::S16,
            "b32" | "u32" => Ty::B32,
            "s32" => Ty::S32,
            "b64" | "u64" => Ty::B64,
            "s64" => Ty::S64,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }
    fn bytes(self) -> usize {
        match self {
            Ty::Pred | Ty::B8 => 1,
            Ty::B16 | Ty::S16 => 2,
            Ty::B32 | Ty::S32 | Ty::F32 => 4,
            _ => 8,
        }
    }
}
#[derive(Clone, Copy, Debug)]
pub enum O {
    R(u32),
    I(u64),
    Sp(u8),
    Addr(u32, i64),
    AbsAddr(i64),
    None,
}
#[derive(Clone, Copy, Debug, PartialEq)]
enum K {
    Mov,
    Add,
    Sub,
    Mul,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    Fma,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Not,
    Neg,
    Abs,
    Shl,
    Shr,
    Setp,
    Selp,
    Cvt,
    CvtBf16x2,
    CvtBf16,
    Sin,
    Cos,
    MadWide,
    Ex2,
    Lg2,
    Rcp,
    Sqrt,
    Rsqrt,
    Bfi,
    Ld,
    St,
    AtomAdd,
    RedAdd,
    Bra,
    Ret,
    Bar,
    WarpSync,
    Shfl,
    Mma,
    Ldsm,
    CpAsync,
    CpCommit,
    CpWait,
    Nop,
}
#[derive(Clone, Debug)]
struct Ins {
    k: K,
    t: Ty,
    t2: Ty,
    sub: u8,
    vec: u8,
    pred: Option<(u32, bool)>,
    o: Vec<O>,
    line: u32,
    space: u8,
}
pub struct Kernel {
    pub name: String,
    ins: Vec<Ins>,
    nreg: u32,
    params: Vec<(usize, usize)>,
    pub static_smem: usize,
    text: Vec<String>,
}
const SHARED: u8 = 1;
const GLOBAL: u8 = 2;
const PARAM: u8 = 3;
const GENERIC: u8 = 4;
const LOCAL: u8 = 5;
const SBASE: u64 = 0x7e00_0000_0000_0000;
pub fn parse(src: &str) -> Result<Vec<Kernel>, String> {
    let mut ks = vec![];
    let mut lines = src.lines().enumerate().peekable();
    let mut gsyms: HashMap<String, u64> = HashMap::new();
    let mut soff = 0usize;
    while let Some((_, l)) = lines.next() {
        let l = l.trim();
        if l.starts_with(".extern .shared") {
            let n = l.split_whitespace().last().unwrap().trim_end_matches("[];");
            gsyms.insert(n.into(), u64::MAX);
        }
        if l.starts_with(".shared") {
            let w: Vec<&str> = l.trim_end_matches(';').split_whitespace().collect();
            let al: usize = w[2].parse().unwrap();
            let (n, c) = w[4].trim_end_matches(']').split_once('[').unwrap();
            soff = (soff + al - 1) / al * al;
            gsyms.insert(n.into(), soff as u64);
            soff += c.parse::<usize>().unwrap();
        }
        if l.contains(".entry") {
            let name = l
                .split(".entry")
                .nth(1)
                .unwrap()
                .trim()
                .trim_end_matches('(')
                .trim_end_matches("()")
                .to_string();
            let mut params = vec![];
            let mut psym = HashMap::new();
            let mut off = 0usize;
            let mut done = l.ends_with("()");
            while !done {
                let (_, p) = lines.next().unwrap();
                let p = p.trim();
                if p.starts_with(')') {
                    break;
                }
                if p.ends_with(')') {
                    done = true;
                }
                let w: Vec<&str> = p
                    .trim_end_matches(',')
                    .trim_end_matches(')')
                    .split_whitespace()
                    .collect();
                if w.len() < 3 {
                    continue;
                }
                if w[1] == ".align" {
                    // A struct by value.
                    let al: usize = w[2].parse().unwrap();
                    let (n, c) = w[4].trim_end_matches(']').split_once('[').unwrap();
                    let c: usize = c.parse().unwrap();
                    off = off.next_multiple_of(al);
                    params.push((off, c));
                    psym.insert(n.to_string(), off);
                    off += c;
                    continue;
                }
                let t = Ty::parse(&w[1][1..]).ok_or(format!("param {p}"))?;
                off = (off + t.bytes() - 1) / t.bytes() * t.bytes();
                params.push((off, t.bytes()));
                psym.insert(w.last().unwrap().to_string(), off);
                off += t.bytes();
            }
            let mut regs: HashMap<String, u32> = HashMap::new();
            let mut labels = HashMap::new();
            let mut raw: Vec<(u32, String)> = vec![];
            let mut ssym: HashMap<String, u64> = HashMap::new();
            while let Some((_, b)) = lines.next() {
                if b.trim() == "{" {
                    break;
                }
            }
            let mut lsym: HashMap<String, u64> = HashMap::new();
            let mut loff = 0u64;
            let mut depth = 1;
            let mut nreg = 0u32;
            let mut pend = String::new();
            while let Some((ln, b)) = lines.next() {
                let b = b.split("//").next().unwrap().trim();
                if b.is_empty() {
                    continue;
                }
                if b == "{" {
                    depth += 1;
                    continue;
                }
                if b == "}" {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                    continue;
                }
                if b.starts_with(".reg") {
                    let w: Vec<&str> = b.trim_end_matches(';').split_whitespace().collect();
                    let n = w[2];
                    if let Some((p, c)) = n.split_once('<') {
                        for i in 0..c.trim_end_matches('>').parse::<u32>().unwrap() {
                            regs.insert(format!("{p}{i}"), nreg);
                            nreg += 1;
                        }
                    } else {
                        regs.insert(n.into(), nreg);
                        nreg += 1;
                    }
                    continue;
                }
                if b.starts_with(".local") {
                    let w: Vec<&str> = b.trim_end_matches(';').split_whitespace().collect();
                    let (n, c) = w[4].trim_end_matches(']').split_once('[').unwrap();
                    lsym.insert(n.to_string(), loff);
                    loff += (c.parse::<u64>().unwrap() + 15) & !15;
                    continue;
                }
                if b.starts_with(".shared") {
                    let w: Vec<&str> = b.trim_end_matches(';').split_whitespace().collect();
                    let al: usize = w[2].parse().unwrap();
                    let (n, c) = w[4].trim_end_matches(']').split_once('[').unwrap();
                    soff = (soff + al - 1) / al * al;
                    ssym.insert(n.into(), soff as u64);
                    soff += c.parse::<usize>().unwrap();
                    continue;
                }
                if b.starts_with('.') {
                    continue;
                }
                if b.ends_with(':') {
                    labels.insert(b[..b.len() - 1].to_string(), raw.len() as u32);
                    continue;
                }
                let b = b.strip_prefix("{ ").unwrap_or(b);
                pend.push_str(b);
                pend.push(' ');
                while let Some(i) = pend.find(';') {
                    let s = pend[..i].trim().trim_start_matches('}').trim().to_string();
                    if !s.is_empty() {
                        raw.push((ln as u32 + 1, s));
                    }
                    pend = pend[i + 1..].trim_start().to_string();
                }
            }
            soff = (soff + 127) & !127;
            let dynbase = soff as u64;
            let opnd = |s: &str| -> Result<O, String> {
                let s = s.trim();
                if let Some(&r) = regs.get(s) {
                    return Ok(O::R(r));
                }
                if let Some(b) = s.strip_prefix('[') {
                    let b = b.trim_end_matches(']');
                    let (base, off) = match b.find('+') {
                        Some(i) => (
                            &b[..i],
                            b[i + 1..].parse::<i64>().map_err(|e| e.to_string())?,
                        ),
                        None => (b, 0),
                    };
                    if let Some(&r) = regs.get(base) {
                        return Ok(O::Addr(r, off));
                    }
                    if let Some(&p) = psym.get(base) {
                        return Ok(O::AbsAddr(p as i64 + off));
                    }
                    if let Some(&p) = ssym.get(base) {
                        return Ok(O::AbsAddr(p as i64 + off));
                    }
                    if let Some(&g) = gsyms.get(base) {
                        return Ok(O::AbsAddr(
                            if g == u64::MAX { dynbase } else { g } as i64 + off,
                        ));
                    }
                    return Err(format!("address {s}"));
                }
                if let Some(h) = s.strip_prefix("0f") {
                    return Ok(O::I(u32::from_str_radix(h, 16).unwrap() as u64));
                }
                if let Some(h) = s.strip_prefix("0d") {
                    return Ok(O::I(u64::from_str_radix(h, 16).unwrap()));
                }
                if let Some(h) = s.strip_prefix("0x") {
                    return Ok(O::I(
                        u64::from_str_radix(h.trim_end_matches('U'), 16).unwrap(),
                    ));
                }
                if let Ok(i) = s.parse::<i64>() {
                    return Ok(O::I(i as u64));
                }
                if s.starts_with('%') {
                    let n = [
                        "%tid.x",
                        "%tid.y",
                        "%tid.z",
                        "%ctaid.x",
                        "%ctaid.y",
                        "%ctaid.z",
                        "%ntid.x",
                        "%ntid.y",
                        "%ntid.z",
                        "%nctaid.x",
                        "%nctaid.y",
                        "%nctaid.z",
                        "%laneid",
                    ];
                    if let Some(i) = n.iter().position(|x| *x == s) {
                        return Ok(O::Sp(i as u8));
                    }
                }
                if let Some(&p) = ssym.get(s) {
                    return Ok(O::I(p));
                }
                if let Some(&p) = lsym.get(s) {
                    return Ok(O::I(p));
                }
                if let Some(&p) = psym.get(s) {
                    return Ok(O::I(p as u64));
                }
                if let Some(&g) = gsyms.get(s) {
                    return Ok(O::I(if g == u64::MAX { dynbase } else { g }));
                }
                if let Some(&l) = labels.get(s) {
                    return Ok(O::I(l as u64));
                }
                if s == "_" {
                    return Ok(O::None);
                }
                Err(format!("operand {s}"))
            };
            let mut ins = vec![];
            let mut text = vec![];
            for (ln, s) in &raw {
                let mut s0 = s.as_str();
                let mut pred = None;
                if let Some(r) = s0.strip_prefix('@') {
                    let (p, rest) = r.split_once(char::is_whitespace).unwrap();
                    let (neg, p) = match p.strip_prefix('!') {
                        Some(x) => (true, x),
                        None => (false, p),
                    };
                    pred = Some((regs[p], neg));
                    s0 = rest.trim();
                }
                let (op, args) = s0.split_once(char::is_whitespace).unwrap_or((s0, ""));
                let parts: Vec<&str> = op.split('.').collect();
                let flat: String = args
                    .chars()
                    .map(|c| if "{}|".contains(c) { ',' } else { c })
                    .collect();
                let mut o = vec![];
                for a in flat.split(',') {
                    if !a.trim().is_empty() {
                        o.push(opnd(a).map_err(|e| format!("line {ln}: {e} in `{s}`"))?);
                    }
                }
                let ty: Vec<Ty> = parts.iter().filter_map(|p| Ty::parse(p)).collect();
                let t = *ty.first().unwrap_or(&Ty::B32);
                let t2 = *ty.get(1).unwrap_or(&t);
                let has = |x: &str| parts.contains(&x);
                let space = if has("shared") {
                    SHARED
                } else if has("global") {
                    GLOBAL
                } else if has("param") {
                    PARAM
                } else if has("local") {
                    LOCAL
                } else {
                    GENERIC
                };
                let vec = if has("v2") {
                    2
                } else if has("v4") {
                    4
                } else {
                    1
                };
                let mut sub = 0u8;
                let fl = t == Ty::F32 || t == Ty::F64;
                let k = match parts[0] {
                    "mov" => K::Mov,
                    "cvta" => {
                        if has("shared") {
                            sub = if has("to") { 2 } else { 1 };
                        }
                        K::Mov
                    }
                    "add" => K::Add,
                    "sub" => K::Sub,
                    "mul" if fl => K::Mul,
                    "mul" if has("wide") => K::MulWide,
                    "mul" if has("hi") => K::MulHi,
                    "mul" => K::MulLo,
                    "mad" if has("wide") => K::MadWide,
                    "mad" => K::MadLo,
                    "sin" => K::Sin,
                    "cos" => K::Cos,
                    "fma" => K::Fma,
                    "div" => K::Div,
                    "rem" => K::Rem,
                    "min" => K::Min,
                    "max" => K::Max,
                    "and" => K::And,
                    "or" => K::Or,
                    "xor" => K::Xor,
                    "not" => K::Not,
                    "neg" => K::Neg,
                    "abs" => K::Abs,
                    "shl" => K::Shl,
                    "shr" => K::Shr,
                    "bfi" => K::Bfi,
                    "selp" => K::Selp,
                    "setp" => {
                        sub = match parts[1] {
                            "eq" | "equ" => 0,
                            "ne" => 1,
                            "neu" => 11,
                            "lt" | "lo" => 2,
                            "le" | "ls" => 3,
                            "gt" | "hi" => 4,
                            "ge" | "hs" => 5,
                            "ltu" => 12,
                            "leu" => 13,
                            "gtu" => 14,
                            "geu" => 15,
                            "nan" => 16,
                            x => return Err(format!("setp {x}")),
                        };
                        if parts[1] == "equ" {
                            sub = 10;
                        }
                        K::Setp
                    }
                    "cvt" if op.contains("bf16x2") => K::CvtBf16x2,
                    "cvt" if op == "cvt.f32.bf16" => {
                        sub = 9;
                        K::CvtBf16
                    }
                    "cvt" if op.contains("bf16") => K::CvtBf16,
                    "cvt" => {
                        sub = if has("sat") {
                            5
                        } else if has("rni") {
                            4
                        } else if has("rzi") {
                            1
                        } else if has("rmi") {
                            2
                        } else if has("rpi") {
                            3
                        } else {
                            0
                        };
                        K::Cvt
                    }
                    "ex2" => K::Ex2,
                    "lg2" => K::Lg2,
                    "rcp" => K::Rcp,
                    "sqrt" => K::Sqrt,
                    "rsqrt" => K::Rsqrt,
                    "ld" => K::Ld,
                    "st" => K::St,
                    "atom" if has("add") => K::AtomAdd,
                    "red" if has("add") => K::RedAdd,
                    "bra" => K::Bra,
                    "ret" | "exit" => K::Ret,
                    "bar" if has("warp") => K::WarpSync,
                    "bar" | "barrier" => K::Bar,
                    "shfl" => {
                        sub = if has("bfly") {
                            0
                        } else if has("down") {
                            1
                        } else if has("up") {
                            2
                        } else {
                            3
                        };
                        K::Shfl
                    }
                    "mma" if op == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" => K::Mma,
                    "ldmatrix" if has("x4") => {
                        sub = has("trans") as u8;
                        K::Ldsm
                    }
                    "cp" if has("commit_group") => K::CpCommit,
                    "cp" if has("wait_group") => K::CpWait,
                    "cp" if has("wait_all") => {
                        o.push(O::I(0));
                        K::CpWait
                    }
                    "cp" if has("cg") || has("ca") => K::CpAsync,
                    "membar" | "fence" => K::Nop,
                    _ => return Err(format!("line {ln}: no support for `{s}`")),
                };
                ins.push(Ins {
                    k,
                    t,
                    t2,
                    sub,
                    vec,
                    pred,
                    o,
                    line: *ln,
                    space,
                });
                text.push(s.clone());
            }
            ks.push(Kernel {
                name,
                ins,
                nreg,
                params,
                static_smem: soff,
                text,
            });
        }
    }
    Ok(ks)
}
#[derive(Clone, Copy, Default)]
struct Acc {
    epoch: u32,
    tid: u32,
    ws: u32,
    block: u32,
}
#[derive(Clone, Copy, Default)]
struct Cell {
    w: Acc,
    r0: Acc,
    r1: Acc,
    init: bool,
    atom: bool,
}
pub struct Buf {
    pub data: Vec<u8>,
    sh: Vec<Cell>,
}
impl Buf {
    pub fn new(d: &[u8], init: bool) -> Buf {
        Buf {
            data: d.to_vec(),
            sh: vec![
                Cell {
                    init,
                    ..Default::default()
                };
                d.len()
            ],
        }
    }
}
struct Warp {
    regs: Vec<u64>,
    pc: [u32; 32],
    live: u32,
    at_bar: bool,
    ws: u32,
    loc: Vec<u8>,
    cp: Vec<Vec<(u32, u64, bool, u8)>>,
    open: Vec<(u32, u64, bool, u8)>,
    init: Vec<u32>,
}
fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}
fn u(x: f32) -> u64 {
    x.to_bits() as u64
}
fn bf16(x: f32) -> u32 {
    let b = x.to_bits();
    if x.is_nan() {
        0x7fff
    } else {
        (b.wrapping_add(0x7fff + ((b >> 16) & 1))) >> 16
    }
}
pub struct Opt {
    pub check: bool,
}
pub fn launch(
    k: &Kernel,
    grid: [u32; 3],
    block: u32,
    dynsm: usize,
    params: &[u8],
    bufs: &mut [Buf],
    opt: &Opt,
) -> Result<u64, String> {
    let nw = ((block + 31) / 32) as usize;
    let total = k.static_smem + dynsm;
    let mut pb = vec![0u8; 4096];
    let end = k.params.last().map_or(0, |(o, n)| o + n);
    if params.len() < end {
        return Err(format!("{} bytes of parameters, {end} wanted", params.len()));
    }
    pb[..params.len()].copy_from_slice(params);
    let ranges: Vec<(u64, u64)> = bufs
        .iter()
        .map(|b| (b.data.as_ptr() as u64, b.data.len() as u64))
        .collect();
    let mut count = 0u64;
    let mut epoch = 1u32;
    let mut errs: HashMap<(u32, &'static str), String> = HashMap::new();
    let mut smem = vec![0u8; total];
    let mut ssh = vec![Cell::default(); if opt.check { total } else { 0 }];
    let mut warps: Vec<Warp> = (0..nw)
        .map(|_| Warp {
            regs: vec![0; k.nreg as usize * 32],
            pc: [0; 32],
            live: 0,
            at_bar: false,
            ws: 0,
            loc: vec![0xff; 32 * 4096],
            cp: vec![],
            open: vec![],
            init: vec![0; k.nreg as usize],
        })
        .collect();
    for bz in 0..grid[2] {
        for by in 0..grid[1] {
            for bx in 0..grid[0] {
                let blk = (bz * grid[1] + by) * grid[0] + bx + 1;
                epoch += 1;
                smem.fill(0xff);
                if opt.check {
                    ssh.fill(Cell::default());
                }
                for (w, wp) in warps.iter_mut().enumerate() {
                    wp.pc = [0; 32];
                    let n = (block as usize - w * 32).min(32);
                    wp.live = if n == 32 { !0 } else { (1 << n) - 1 };
                    wp.at_bar = false;
                    wp.ws = 0;
                    wp.cp.clear();
                    wp.open.clear();
                    wp.init.fill(0);
                }
                loop {
                    let mut progressed = false;
                    for w in 0..nw {
                        let wp = &mut warps[w];
                        if wp.live == 0 || wp.at_bar {
                            continue;
                        }
                        progressed = true;
                        'run: loop {
                            if wp.live == 0 {
                                break;
                            }
                            let mut pc = u32::MAX;
                            for l in 0..32 {
                                if wp.live >> l & 1 == 1 && wp.pc[l] < pc {
                                    pc = wp.pc[l];
                                }
                            }
                            let mut m = 0u32;
                            for l in 0..32 {
                                if wp.live >> l & 1 == 1 && wp.pc[l] == pc {
                                    m |= 1 << l;
                                }
                            }
                            // run straight-line while the whole live set is together
                            loop {
                                let i = &k.ins[pc as usize];
                                count += 1;
                                let mut am = m;
                                if let Some((p, neg)) = i.pred {
                                    let r = &wp.regs[p as usize * 32..];
                                    for l in 0..32 {
                                        if (r[l] & 1 == 1) == neg {
                                            am &= !(1 << l);
                                        }
                                    }
                                }
                                macro_rules! err { ($($a:tt)*) => { return Err(format!("block {} warp {} line {} `{}`: {}", blk - 1, w, i.line, k.text[pc as usize], format!($($a)*))) } }
                                macro_rules! get {
                                    ($o:expr, $l:expr) => {
                                        match $o {
                                            O::R(r) => wp.regs[r as usize * 32 + $l],
                                            O::I(v) => v,
                                            O::Sp(s) => {
                                                let t = (w * 32 + $l) as u32;
                                                (match s {
                                                    0 => t,
                                                    3 => bx,
                                                    4 => by,
                                                    5 => bz,
                                                    6 => block,
                                                    7 | 8 => 1,
                                                    9 => grid[0],
                                                    10 => grid[1],
                                                    11 => grid[2],
                                                    12 => $l as u32,
                                                    _ => 0,
                                                }) as u64
                                            }
                                            O::Addr(r, off) => wp.regs[r as usize * 32 + $l]
                                                .wrapping_add(off as u64),
                                            O::AbsAddr(a) => a as u64,
                                            O::None => 0,
                                        }
                                    };
                                }
                                macro_rules! each { (|$l:ident| $e:expr) => {{ let d = match i.o[0] { O::R(r) => r as usize * 32, _ => usize::MAX }; for $l in 0..32 { if am >> $l & 1 == 1 { let v: u64 = $e; if d != usize::MAX { wp.regs[d + $l] = v; } } } }} }
                                macro_rules! touch { ($sh:expr, $o:expr, $n:expr, $wr:expr, $at:expr, $l:expr, $what:expr) => { if opt.check { let me = Acc { epoch, tid: (w * 32 + $l) as u32 + 1, ws: wp.ws, block: blk }; let ord = |p: &Acc| p.epoch == 0 || (p.block == blk && (p.tid == me.tid || p.epoch < epoch || ((p.tid - 1) / 32 == (me.tid - 1) / 32 && p.ws < me.ws)));
            for q in $o..$o + $n { let c: &mut Cell = &mut $sh[q]; let mut e: Option<(&'static str, Acc)> = None; if !$wr && !c.init { e = Some(("uninitialised read", me)); c.init = true; } if !ord(&c.w) && !($at && c.atom) { e = Some((if $wr { "write after write race" } else { "read after write race" }, c.w)); }
              if $wr { if !ord(&c.r0) || !ord(&c.r1) { e = Some(("write after read race", if !ord(&c.r0) { c.r0 } else { c.r1 })); } c.w = me; c.init = true; c.atom = $at; } else if c.r0.epoch == 0 || ord(&c.r0) { c.r0 = me; } else if c.r1.epoch == 0 || ord(&c.r1) { c.r1 = me; }
              if let Some((s, a)) = e { errs.entry((i.line, s)).or_insert_with(|| format!("{s} ({}+{q}): block {} thread {} against block {} thread {} at PTX line {} `{}`", $what, blk - 1, me.tid - 1, a.block - 1, a.tid - 1, i.line, k.text[pc as usize])); } } } } }
                                macro_rules! gidx { ($a:expr, $n:expr) => {{ let a: u64 = $a; match ranges.iter().position(|r| a >= r.0 && a + $n as u64 <= r.0 + r.1) { Some(b) => (b, (a - ranges[b].0) as usize), None => err!("global address {:#x} (+{}) outside every buffer; nearest {:?}", a, $n, ranges.iter().map(|r| a as i64 - (r.0 + r.1) as i64).filter(|d| *d >= -16).min()) } }} }
                                let cmpi = |a: u64, b: u64, t: Ty| match t {
                                    Ty::S32 => (a as i32).cmp(&(b as i32)),
                                    Ty::S64 => (a as i64).cmp(&(b as i64)),
                                    Ty::B32 => (a as u32).cmp(&(b as u32)),
                                    Ty::S16 => (a as i16).cmp(&(b as i16)),
                                    Ty::B16 => (a as u16).cmp(&(b as u16)),
                                    _ => a.cmp(&b),
                                };
                                let tr = |v: u64, t: Ty| match t.bytes() {
                                    8 => v,
                                    4 => v as u32 as u64,
                                    2 => v as u16 as u64,
                                    _ => v & 0xff,
                                };
                                let o = |n: usize| i.o[n];
                                let d = |x: u64| f64::from_bits(x);
                                match i.k {
                                    K::Nop => {}
                                    // f64 arithmetic
                                    K::Add if i.t == Ty::F64 => each!(|l| (d(get!(o(1), l)) + d(get!(o(2), l))).to_bits()),
                                    K::Sub if i.t == Ty::F64 => each!(|l| (d(get!(o(1), l)) - d(get!(o(2), l))).to_bits()),
                                    K::Div if i.t == Ty::F64 => each!(|l| (d(get!(o(1), l)) / d(get!(o(2), l))).to_bits()),
                                    K::Min if i.t == Ty::F64 => each!(|l| d(get!(o(1), l)).min(d(get!(o(2), l))).to_bits()),
                                    K::Max if i.t == Ty::F64 => each!(|l| d(get!(o(1), l)).max(d(get!(o(2), l))).to_bits()),
                                    K::Neg if i.t == Ty::F64 => each!(|l| (-d(get!(o(1), l))).to_bits()),
                                    K::Abs if i.t == Ty::F64 => each!(|l| d(get!(o(1), l)).abs().to_bits()),
                                    K::Sqrt if i.t == Ty::F64 => each!(|l| d(get!(o(1), l)).sqrt().to_bits()),
                                    K::Fma if i.t == Ty::F64 => {
                                        each!(|l| d(get!(o(1), l)).mul_add(d(get!(o(2), l)), d(get!(o(3), l))).to_bits())
                                    }
                                    K::Setp if i.t == Ty::F64 => each!(|l| {
                                        let (a, b) = (d(get!(o(1), l)), d(get!(o(2), l)));
                                        let un = a.is_nan() || b.is_nan();
                                        (match i.sub {
                                            0 => a == b,
                                            1 => a != b && !un,
                                            2 => a < b,
                                            3 => a <= b,
                                            4 => a > b,
                                            5 => a >= b,
                                            10 => a == b || un,
                                            11 => a != b,
                                            12 => !(a >= b),
                                            13 => !(a > b),
                                            14 => !(a <= b),
                                            15 => !(a < b),
                                            _ => un,
                                        }) as u64
                                    }),
                                    K::Mov => {
                                        if i.o.len() == 2 {
                                            each!(|l| {
                                                let v = get!(o(1), l);
                                                match i.sub {
                                                    1 => v | SBASE,
                                                    2 => v & !SBASE,
                                                    _ => v,
                                                }
                                            })
                                        } else if i.o.len() == 3 {
                                            if i.t == Ty::B32 || i.t == Ty::B64 {
                                                let half = i.t.bytes() as u32 * 4; // {a,b}=x or x={a,b}: decide by the text
                                                if k.text[pc as usize]
                                                    .split_once(|c: char| c.is_whitespace())
                                                    .unwrap()
                                                    .1
                                                    .trim_start()
                                                    .starts_with('{')
                                                {
                                                    for l in 0..32 {
                                                        if am >> l & 1 == 1 {
                                                            let v = get!(o(2), l);
                                                            if let O::R(r) = o(0) {
                                                                wp.regs[r as usize * 32 + l] =
                                                                    v & ((1 << half) - 1);
                                                            }
                                                            if let O::R(r) = o(1) {
                                                                wp.regs[r as usize * 32 + l] =
                                                                    v >> half & ((1 << half) - 1);
                                                            }
                                                        }
                                                    }
                                                } else {
                                                    each!(|l| get!(o(1), l) & ((1 << half) - 1)
                                                        | get!(o(2), l) << half)
                                                }
                                            }
                                        }
                                    }
                                    K::Add => match i.t {
                                        Ty::F32 => {
                                            each!(|l| u(f(get!(o(1), l)) + f(get!(o(2), l))))
                                        }
                                        t => each!(|l| tr(
                                            get!(o(1), l).wrapping_add(get!(o(2), l)),
                                            t
                                        )),
                                    },
                                    K::Sub => match i.t {
                                        Ty::F32 => {
                                            each!(|l| u(f(get!(o(1), l)) - f(get!(o(2), l))))
                                        }
                                        t => each!(|l| tr(
                                            get!(o(1), l).wrapping_sub(get!(o(2), l)),
                                            t
                                        )),
                                    },
                                    K::Mul => {
                                        if i.t == Ty::F64 {
                                            each!(|l| (f64::from_bits(get!(o(1), l))
                                                * f64::from_bits(get!(o(2), l)))
                                            .to_bits())
                                        } else {
                                            each!(|l| u(f(get!(o(1), l)) * f(get!(o(2), l))))
                                        }
                                    }
                                    K::MulLo => each!(|l| tr(
                                        get!(o(1), l).wrapping_mul(get!(o(2), l)),
                                        i.t
                                    )),
                                    K::MulWide => match i.t {
                                        Ty::S32 => each!(|l| (get!(o(1), l) as i32 as i64)
                                            .wrapping_mul(get!(o(2), l) as i32 as i64)
                                            as u64),
                                        _ => each!(|l| (get!(o(1), l) as u32 as u64)
                                            .wrapping_mul(get!(o(2), l) as u32 as u64)),
                                    },
                                    K::MulHi => match i.t {
                                        Ty::S32 => each!(|l| ((get!(o(1), l) as i32 as i64
                                            * (get!(o(2), l) as i32 as i64))
                                            >> 32)
                                            as u32
                                            as u64),
                                        _ => each!(|l| ((get!(o(1), l) as u32 as u64
                                            * (get!(o(2), l) as u32 as u64))
                                            >> 32)),
                                    },
                                    K::MadLo => each!(|l| tr(
                                        get!(o(1), l)
                                            .wrapping_mul(get!(o(2), l))
                                            .wrapping_add(get!(o(3), l)),
                                        i.t
                                    )),
                                    K::Fma => each!(|l| u(f(get!(o(1), l))
                                        .mul_add(f(get!(o(2), l)), f(get!(o(3), l))))),
                                    K::Div => match i.t {
                                        Ty::F32 => {
                                            each!(|l| u(f(get!(o(1), l)) / f(get!(o(2), l))))
                                        }
                                        Ty::S32 => each!(|l| {
                                            let b = get!(o(2), l) as i32;
                                            if b == 0 {
                                                err!("division by zero");
                                            }
                                            (get!(o(1), l) as i32).wrapping_div(b) as u32 as u64
                                        }),
                                        Ty::B32 => each!(|l| (get!(o(1), l) as u32
                                            / get!(o(2), l) as u32)
                                            as u64),
                                        Ty::S64 => each!(|l| (get!(o(1), l) as i64)
                                            .wrapping_div(get!(o(2), l) as i64)
                                            as u64),
                                        _ => each!(|l| get!(o(1), l) / get!(o(2), l)),
                                    },
                                    K::Rem => match i.t {
                                        Ty::S32 => each!(|l| (get!(o(1), l) as i32)
                                            .wrapping_rem(get!(o(2), l) as i32)
                                            as u32
                                            as u64),
                                        Ty::B32 => each!(|l| (get!(o(1), l) as u32
                                            % get!(o(2), l) as u32)
                                            as u64),
                                        _ => each!(|l| get!(o(1), l) % get!(o(2), l)),
                                    },
                                    K::Min | K::Max => {
                                        let mx = i.k == K::Max;
                                        if i.t == Ty::F32 {
                                            each!(|l| {
                                                let (a, b) = (f(get!(o(1), l)), f(get!(o(2), l)));
                                                u(if mx { a.max(b) } else { a.min(b) })
                                            })
                                        } else {
                                            each!(|l| {
                                                let (a, b) = (get!(o(1), l), get!(o(2), l));
                                                if (cmpi(a, b, i.t) == std::cmp::Ordering::Greater)
                                                    == mx
                                                {
                                                    a
                                                } else {
                                                    b
                                                }
                                            })
                                        }
                                    }
                                    K::And => each!(|l| get!(o(1), l) & get!(o(2), l)),
                                    K::Or => each!(|l| get!(o(1), l) | get!(o(2), l)),
                                    K::Xor => each!(|l| tr(get!(o(1), l) ^ get!(o(2), l), i.t)),
                                    K::Not => each!(|l| if i.t == Ty::Pred {
                                        get!(o(1), l) ^ 1
                                    } else {
                                        tr(!get!(o(1), l), i.t)
                                    }),
                                    K::Neg => match i.t {
                                        Ty::F32 => each!(|l| u(-f(get!(o(1), l)))),
                                        t => each!(|l| tr(get!(o(1), l).wrapping_neg(), t)),
                                    },
                                    K::Abs => match i.t {
                                        Ty::F32 => each!(|l| u(f(get!(o(1), l)).abs())),
                                        t => each!(|l| tr(
                                            (get!(o(1), l) as i32).wrapping_abs() as u64,
                                            t
                                        )),
                                    },
                                    K::Shl => each!(|l| {
                                        let s = get!(o(2), l);
                                        if s >= i.t.bytes() as u64 * 8 {
                                            0
                                        } else {
                                            tr(get!(o(1), l) << s, i.t)
                                        }
                                    }),
                                    K::Shr => each!(|l| {
                                        let s = (get!(o(2), l) as u32).min(63);
                                        match i.t {
                                            Ty::S32 => {
                                                ((get!(o(1), l) as i32) >> s.min(31)) as u32 as u64
                                            }
                                            Ty::S64 => ((get!(o(1), l) as i64) >> s) as u64,
                                            t => {
                                                if s as usize >= t.bytes() * 8 {
                                                    0
                                                } else {
                                                    tr(get!(o(1), l), t) >> s
                                                }
                                            }
                                        }
                                    }),
                                    K::Bfi => each!(|l| {
                                        let (a, b, p, n) = (
                                            get!(o(1), l),
                                            get!(o(2), l),
                                            get!(o(3), l),
                                            get!(o(4), l),
                                        );
                                        let m = if n >= 64 { !0u64 } else { (1u64 << n) - 1 } << p;
                                        tr(b & !m | a << p & m, i.t)
                                    }),
                                    K::Selp => each!(|l| if get!(o(3), l) & 1 == 1 {
                                        get!(o(1), l)
                                    } else {
                                        get!(o(2), l)
                                    }),
                                    K::Setp => each!(|l| {
                                        let (a, b) = (get!(o(1), l), get!(o(2), l));
                                        if i.t == Ty::F32 {
                                            let (a, b) = (f(a), f(b));
                                            let un = a.is_nan() || b.is_nan();
                                            (match i.sub {
                                                0 => a == b,
                                                1 => a != b && !un,
                                                2 => a < b,
                                                3 => a <= b,
                                                4 => a > b,
                                                5 => a >= b,
                                                10 => a == b || un,
                                                11 => a != b,
                                                12 => !(a >= b),
                                                13 => !(a > b),
                                                14 => !(a <= b),
                                                15 => !(a < b),
                                                _ => un,
                                            }) as u64
                                        } else {
                                            let c = cmpi(a, b, i.t);
                                            use std::cmp::Ordering::*;
                                            (match i.sub {
                                                0 => c == Equal,
                                                1 => c != Equal,
                                                2 => c == Less,
                                                3 => c != Greater,
                                                4 => c == Greater,
                                                _ => c != Less,
                                            }) as u64
                                        }
                                    }),
                                    K::Cvt => each!(|l| {
                                        let v = get!(o(1), l);
                                        let (d, s) = (i.t, i.t2);
                                        match (d, s) {
                                            (Ty::F32, Ty::S32) => u(v as i32 as f32),
                                            (Ty::F64, Ty::S64) => (v as i64 as f64).to_bits(),
                                            (Ty::F64, Ty::B64) => (v as f64).to_bits(),
                                            (Ty::F64, Ty::B32) => (v as u32 as f64).to_bits(),
                                            (Ty::B64, Ty::F64) => f64::from_bits(v) as u64,
                                            (Ty::B64, Ty::F32) => f(v) as u64,
                                            (Ty::F32, Ty::F64) => u(f64::from_bits(v) as f32),
                                            (Ty::F64, Ty::F32) => (f(v) as f64).to_bits(),
                                            (Ty::F32, Ty::F32) if i.sub == 5 => {
                                                u(f(v).clamp(0.0, 1.0))
                                            }
                                            (Ty::S32, Ty::F32) if i.sub == 4 => {
                                                f(v).round_ties_even() as i32 as u32 as u64
                                            }
                                            (Ty::F32, Ty::B32) => u(v as u32 as f32),
                                            (Ty::F32, Ty::S64) => u(v as i64 as f32),
                                            (Ty::F32, Ty::F32) => u(match i.sub {
                                                1 => f(v).trunc(),
                                                2 => f(v).floor(),
                                                3 => f(v).ceil(),
                                                _ => f(v),
                                            }),
                                            (Ty::S32, Ty::F32) => f(v) as i32 as u32 as u64,
                                            (Ty::B32, Ty::F32) => f(v) as u32 as u64,
                                            (_, Ty::S32) => tr(v as i32 as i64 as u64, d),
                                            (_, Ty::S16) => tr(v as i16 as i64 as u64, d),
                                            (_, s) => tr(tr(v, s), d),
                                        }
                                    }),
                                    K::CvtBf16x2 => each!(|l| (bf16(f(get!(o(1), l))) << 16
                                        | bf16(f(get!(o(2), l))))
                                        as u64),
                                    K::CvtBf16 => {
                                        if i.sub == 9 {
                                            each!(|l| (get!(o(1), l) & 0xffff) << 16)
                                        } else {
                                            each!(|l| bf16(f(get!(o(1), l))) as u64)
                                        }
                                    }
                                    K::Sin => each!(|l| u(f(get!(o(1), l)).sin())),
                                    K::Cos => each!(|l| u(f(get!(o(1), l)).cos())),
                                    K::MadWide => each!(|l| if i.t == Ty::S32 {
                                        ((get!(o(1), l) as i32 as i64)
                                            .wrapping_mul(get!(o(2), l) as i32 as i64)
                                            as u64)
                                            .wrapping_add(get!(o(3), l))
                                    } else {
                                        (get!(o(1), l) as u32 as u64)
                                            .wrapping_mul(get!(o(2), l) as u32 as u64)
                                            .wrapping_add(get!(o(3), l))
                                    }),
                                    K::Ex2 => each!(|l| u(f(get!(o(1), l)).exp2())),
                                    K::Lg2 => each!(|l| u(f(get!(o(1), l)).log2())),
                                    K::Rcp => each!(|l| u(1.0 / f(get!(o(1), l)))),
                                    K::Sqrt => each!(|l| u(f(get!(o(1), l)).sqrt())),
                                    K::Rsqrt => each!(|l| u(1.0 / f(get!(o(1), l)).sqrt())),
                                    K::Ld | K::St | K::AtomAdd | K::RedAdd => {
                                        let n = i.t.bytes();
                                        let vc = i.vec as usize;
                                        let (ai, di) = match i.k {
                                            K::Ld => (vc, 0),
                                            K::AtomAdd => (1, 0),
                                            K::RedAdd => (0, 1),
                                            _ => (0, 1),
                                        };
                                        for l in 0..32 {
                                            if am >> l & 1 == 0 {
                                                continue;
                                            }
                                            let a = get!(o(ai), l);
                                            if a % (n * vc) as u64 != 0 {
                                                err!("misaligned address {:#x}", a);
                                            }
                                            let shared = i.space == SHARED
                                                || (i.space == GENERIC && a & SBASE == SBASE);
                                            if i.space == PARAM {
                                                for j in 0..vc {
                                                    let p = a as usize + j * n;
                                                    let mut b = [0u8; 8];
                                                    b[..n].copy_from_slice(&pb[p..p + n]);
                                                    if let O::R(r) = o(j) {
                                                        wp.regs[r as usize * 32 + l] =
                                                            u64::from_le_bytes(b);
                                                    }
                                                }
                                                continue;
                                            }
                                            if i.space == LOCAL || (i.space == GENERIC && a < 4096)
                                            {
                                                for j in 0..vc {
                                                    let p = l * 4096 + a as usize + j * n;
                                                    if i.k == K::Ld {
                                                        let mut b = [0u8; 8];
                                                        b[..n].copy_from_slice(&wp.loc[p..p + n]);
                                                        if let O::R(r) = o(j) {
                                                            wp.regs[r as usize * 32 + l] =
                                                                u64::from_le_bytes(b);
                                                        }
                                                    } else {
                                                        let v = get!(o(di + j), l).to_le_bytes();
                                                        wp.loc[p..p + n].copy_from_slice(&v[..n]);
                                                    }
                                                }
                                                continue;
                                            }
                                            let wr = i.k != K::Ld;
                                            let atom = i.k == K::AtomAdd || i.k == K::RedAdd;
                                            let p: *mut u8 = if shared {
                                                let s = (a & !SBASE) as usize;
                                                if s + n * vc > total {
                                                    err!("shared address {} of {}", s, total);
                                                }
                                                touch!(ssh, s, n * vc, wr, atom, l, "shared");
                                                unsafe { smem.as_mut_ptr().add(s) }
                                            } else {
                                                let (b, off) = gidx!(a, n * vc);
                                                touch!(
                                                    bufs[b].sh,
                                                    off,
                                                    n * vc,
                                                    wr,
                                                    atom,
                                                    l,
                                                    "global"
                                                );
                                                unsafe { bufs[b].data.as_mut_ptr().add(off) }
                                            };
                                            for j in 0..vc {
                                                unsafe {
                                                    let q = p.add(j * n);
                                                    match i.k {
                                                        K::Ld => {
                                                            let mut b = [0u8; 8];
                                                            std::ptr::copy_nonoverlapping(
                                                                q,
                                                                b.as_mut_ptr(),
                                                                n,
                                                            );
                                                            if let O::R(r) = o(di + j) {
                                                                let v = u64::from_le_bytes(b);
                                                                wp.regs[r as usize * 32 + l] = v;
                                                            }
                                                        }
                                                        K::St => {
                                                            let v =
                                                                get!(o(di + j), l).to_le_bytes();
                                                            std::ptr::copy_nonoverlapping(
                                                                v.as_ptr(),
                                                                q,
                                                                n,
                                                            );
                                                        }
                                                        _ => {
                                                            let old = *(q as *const u32);
                                                            let v = get!(
                                                                o(if i.k == K::AtomAdd {
                                                                    2
                                                                } else {
                                                                    1
                                                                }),
                                                                l
                                                            );
                                                            let nv = if i.t == Ty::F32 {
                                                                (f32::from_bits(old) + f(v))
                                                                    .to_bits()
                                                            } else {
                                                                old.wrapping_add(v as u32)
                                                            };
                                                            *(q as *mut u32) = nv;
                                                            if let (K::AtomAdd, O::R(r)) =
                                                                (i.k, o(0))
                                                            {
                                                                wp.regs[r as usize * 32 + l] =
                                                                    old as u64;
                                                            }
                                                        }
                                                    }
                                                }
                                            }
                                        }
                                    }
                                    K::Bra => {
                                        let t = match o(0) {
                                            O::I(v) => v as u32,
                                            _ => unreachable!(),
                                        };
                                        for l in 0..32 {
                                            if m >> l & 1 == 1 {
                                                wp.pc[l] =
                                                    if am >> l & 1 == 1 { t } else { pc + 1 };
                                            }
                                        }
                                        if am == m && m == wp.live {
                                            pc = t;
                                            continue;
                                        }
                                        if am == 0 && m == wp.live {
                                            pc += 1;
                                            continue;
                                        }
                                        continue 'run;
                                    }
                                    K::Ret => {
                                        for l in 0..32 {
                                            if m >> l & 1 == 1 {
                                                wp.pc[l] = pc + 1;
                                            }
                                        }
                                        wp.live &= !am;
                                        if am == m {
                                            continue 'run;
                                        }
                                    }
                                    K::Bar => {
                                        if m != wp.live {
                                            err!(
                                                "bar.sync reached by lanes {:08x} of {:08x}",
                                                m,
                                                wp.live
                                            );
                                        }
                                        for l in 0..32 {
                                            wp.pc[l] = pc + 1;
                                        }
                                        wp.at_bar = true;
                                        break 'run;
                                    }
                                    K::WarpSync => {
                                        wp.ws += 1;
                                        if m != wp.live {
                                            err!(
                                                "bar.warp.sync by lanes {:08x} of {:08x}",
                                                m,
                                                wp.live
                                            );
                                        }
                                    }
                                    K::Shfl => {
                                        let mut v = [0u64; 32];
                                        let mask = get!(*i.o.last().unwrap(), 0) as u32;
                                        if mask & wp.live != am {
                                            err!("shfl mask {:08x} but lanes {:08x}", mask, am);
                                        }
                                        let si = if i.o.len() == 6 { 2 } else { 1 };
                                        for l in 0..32 {
                                            v[l] = get!(o(si), l);
                                        }
                                        each!(|l| {
                                            let b = get!(o(si + 1), l) as usize;
                                            let s = match i.sub {
                                                0 => l ^ b,
                                                1 => {
                                                    if l + b < 32 {
                                                        l + b
                                                    } else {
                                                        l
                                                    }
                                                }
                                                2 => {
                                                    if l >= b {
                                                        l - b
                                                    } else {
                                                        l
                                                    }
                                                }
                                                _ => b & 31,
                                            };
                                            if am >> s & 1 == 0 {
                                                0xffff_ffff
                                            } else {
                                                v[s]
                                            }
                                        });
                                        if si == 2 {
                                            if let O::R(r) = o(1) {
                                                for l in 0..32 {
                                                    wp.regs[r as usize * 32 + l] = 1;
                                                }
                                            }
                                        }
                                    }
                                    K::Ldsm => {
                                        if am != !0 {
                                            err!("ldmatrix by lanes {:08x}", am);
                                        }
                                        let mut mt = [[[0u16; 8]; 8]; 4];
                                        for l in 0..32 {
                                            let a = get!(o(4), l) as usize;
                                            if a % 16 != 0 || a + 16 > total {
                                                err!("ldmatrix address {}", a);
                                            }
                                            touch!(ssh, a, 16, false, false, l, "shared");
                                            for c in 0..8 {
                                                mt[l / 8][l % 8][c] = u16::from_le_bytes([
                                                    smem[a + 2 * c],
                                                    smem[a + 2 * c + 1],
                                                ]);
                                            }
                                        }
                                        for j in 0..4 {
                                            if let O::R(r) = o(j) {
                                                for l in 0..32 {
                                                    let (g, t) = (l / 4, l % 4 * 2);
                                                    wp.regs[r as usize * 32 + l] = if i.sub == 0 {
                                                        mt[j][g][t] as u64
                                                            | (mt[j][g][t + 1] as u64) << 16
                                                    } else {
                                                        mt[j][t][g] as u64
                                                            | (mt[j][t + 1][g] as u64) << 16
                                                    };
                                                }
                                            }
                                        }
                                    }
                                    K::Mma => {
                                        if am != !0 {
                                            err!("mma by lanes {:08x}", am);
                                        }
                                        let h = |x: u64, hi: usize| {
                                            f32::from_bits(((x >> (16 * hi)) as u32 & 0xffff) << 16)
                                        };
                                        let mut a = [[0f32; 16]; 16];
                                        let mut b = [[0f32; 8]; 16];
                                        for l in 0..32 {
                                            let (g, t) = (l / 4, l % 4);
                                            for e in 0..2 {
                                                let c = t * 2 + e;
                                                a[g][c] = h(get!(o(4), l), e);
                                                a[g + 8][c] = h(get!(o(5), l), e);
                                                a[g][c + 8] = h(get!(o(6), l), e);
                                                a[g + 8][c + 8] = h(get!(o(7), l), e);
                                                b[c][g] = h(get!(o(8), l), e);
                                                b[c + 8][g] = h(get!(o(9), l), e);
                                            }
                                        }
                                        let mut d = [[0f32; 8]; 16];
                                        for r in 0..16 {
                                            for kk in 0..16 {
                                                for c in 0..8 {
                                                    d[r][c] += a[r][kk] * b[kk][c];
                                                }
                                            }
                                        }
                                        for l in 0..32 {
                                            let (g, t) = (l / 4, l % 4 * 2);
                                            let c = [
                                                f(get!(o(10), l)),
                                                f(get!(o(11), l)),
                                                f(get!(o(12), l)),
                                                f(get!(o(13), l)),
                                            ];
                                            let v = [
                                                c[0] + d[g][t],
                                                c[1] + d[g][t + 1],
                                                c[2] + d[g + 8][t],
                                                c[3] + d[g + 8][t + 1],
                                            ];
                                            for j in 0..4 {
                                                if let O::R(r) = o(j) {
                                                    wp.regs[r as usize * 32 + l] = u(v[j]);
                                                }
                                            }
                                        }
                                    }
                                    K::CpAsync => {
                                        for l in 0..32 {
                                            if am >> l & 1 == 1 {
                                                let (s, g) =
                                                    (get!(o(0), l) as usize, get!(o(1), l));
                                                let ok = i.o.len() < 4 || get!(o(3), l) == 16;
                                                if s % 16 != 0 || g % 16 != 0 || s + 16 > total {
                                                    err!("cp.async {} <- {:#x}", s, g);
                                                }
                                                if ok {
                                                    let (b, off) = gidx!(g, 16);
                                                    touch!(
                                                        bufs[b].sh, off, 16, false, false, l,
                                                        "global"
                                                    );
                                                }
                                                touch!(ssh, s, 16, true, false, l, "shared");
                                                if opt.check {
                                                    for q in s..s + 16 {
                                                        ssh[q].init = false;
                                                    }
                                                }
                                                smem[s..s + 16].fill(0xff);
                                                wp.open.push((s as u32, g, ok, l as u8));
                                            }
                                        }
                                    }
                                    K::CpCommit => {
                                        let g = std::mem::take(&mut wp.open);
                                        wp.cp.push(g);
                                    } // groups are per thread; kept per warp here since it runs in step
                                    K::CpWait => {
                                        let n = match o(0) {
                                            O::I(v) => v as usize,
                                            _ => 0,
                                        };
                                        while wp.cp.len() > n {
                                            for (s, g, ok, l) in wp.cp.remove(0) {
                                                let s = s as usize;
                                                touch!(
                                                    ssh, s, 16, true, false, l as usize, "shared"
                                                );
                                                if ok {
                                                    unsafe {
                                                        std::ptr::copy_nonoverlapping(
                                                            g as *const u8,
                                                            smem.as_mut_ptr().add(s),
                                                            16,
                                                        );
                                                    }
                                                } else {
                                                    smem[s..s + 16].fill(0);
                                                }
                                            }
                                        }
                                    }
                                }
                                pc += 1;
                                if m != wp.live {
                                    for l in 0..32 {
                                        if m >> l & 1 == 1 {
                                            wp.pc[l] = pc;
                                        }
                                    }
                                    continue 'run;
                                }
                            }
                        }
                    }
                    if !progressed {
                        let waiting = warps.iter().filter(|w| w.live != 0).count();
                        if waiting == 0 {
                            break;
                        }
                        let exited = warps.iter().filter(|w| w.live == 0).count();
                        if exited > 0 {
                            return Err(format!("block {}: {waiting} warps wait at a barrier that {exited} warps never reach", blk - 1));
                        }
                        epoch += 1;
                        for w in warps.iter_mut() {
                            w.at_bar = false;
                        }
                    }
                }
            }
        }
    }
    if errs.is_empty() {
        Ok(count)
    } else {
        let mut v: Vec<_> = errs.into_values().collect();
        v.sort();
        Err(v[..v.len().min(6)].join("\n"))
    }
}
impl Buf {
    pub fn write(&mut self, o: usize, v: &[u8]) {
        self.data[o..o + v.len()].copy_from_slice(v);
        for c in &mut self.sh[o..o + v.len()] {
            c.init = true;
        }
    }
}
impl Buf {
    /// A launch has ended: what it did is ordered before all that follows.
    pub fn settle(&mut self) {
        for c in &mut self.sh {
            *c = Cell { init: c.init, ..Cell::default() };
        }
    }
}
