//! An instruction's name: `ld.global.nc.v4.f32` and its parts.

/// What a register or a place in memory holds. Untyped bits (`b32`) count as unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    Bf16,
    Pair,
    Tf32,
}

impl Type {
    /// By its name in PTX.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" | "u8" => Self::U8,
            "s8" => Self::I8,
            "b16" | "u16" => Self::U16,
            "s16" => Self::I16,
            "b32" | "u32" => Self::U32,
            "s32" => Self::I32,
            "b64" | "u64" => Self::U64,
            "s64" => Self::I64,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Pair,
            "tf32" => Self::Tf32,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        match self {
            Self::Pred | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 | Self::Pair | Self::Tf32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Whether a load extends its sign.
    pub fn signed(self) -> bool {
        matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }
}

/// A name split at its dots.
pub struct Opcode<'a> {
    parts: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    /// Splits a name.
    pub fn new(name: &'a str) -> Self {
        Self { parts: name.split('.').collect() }
    }
    /// The first part.
    pub fn name(&self) -> &'a str {
        self.parts[0]
    }
    /// All parts behind the first.
    pub fn parts(&self) -> impl Iterator<Item = &'a str> {
        self.parts[1..].iter().copied()
    }
    /// Part number `index`, empty past the last.
    pub fn part(&self, index: usize) -> &'a str {
        self.parts.get(index).copied().unwrap_or_default()
    }
    /// Whether a modifier is among the parts.
    pub fn has(&self, modifier: &str) -> bool {
        self.parts[1..].contains(&modifier)
    }
    /// Which of these is among the parts.
    pub fn one_of(&self, modifiers: &[&'static str]) -> Option<&'static str> {
        modifiers.iter().copied().find(|modifier| self.has(modifier))
    }
    /// The types among the parts.
    pub fn types(&self) -> impl Iterator<Item = Type> {
        self.parts[1..].iter().filter_map(|part| Type::parse(part))
    }
    /// The first type: the only one of most instructions, the result's where there are two.
    pub fn of(&self) -> Option<Type> {
        self.types().next()
    }
}
