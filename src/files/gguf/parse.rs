//! GGUF's bytes to metadata and tensors, nothing copied.
//!
//! The format is ggml's docs/gguf.md: a header, key-value pairs, tensor descriptions, padding, data. Lengths and counts
//! come from a stranger: each is compared with what is left of the file before it is used, and nothing is allocated by a
//! count. This file does not know what a key or a tensor means.

use super::bad;
use super::blocks::Kind;
use crate::{Error, Result};
use std::collections::BTreeMap;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 20;
const MAX_DIMS: u32 = 4;
/// Arrays in arrays are legal but no LLaMA has them; the bound keeps the parser's stack small.
const MAX_NESTING: usize = 2;

/// A parsed file.
pub(super) struct Gguf<'a> {
    pub meta: Meta<'a>,
    /// By name.
    pub tensors: BTreeMap<&'a str, Tensor<'a>>,
}

/// One tensor, its bytes checked to lie within the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor<'a> {
    pub kind: Kind,
    /// Outermost first: GGUF has them the other way round.
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

/// Key-value pairs with typed access.
pub(super) struct Meta<'a>(BTreeMap<&'a str, Value<'a>>);

/// A value; numbers are widened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// Elements of one type, checked to lie within the file and read when asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array<'a> {
    element: u32,
    len: usize,
    cursor: Cursor<'a>,
}

/// Where reading is; `at` is for messages.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    left: &'a [u8],
    at: usize,
}

impl<'a> Gguf<'a> {
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        let mut cursor = Cursor { left: file, at: 0 };
        check_start(&mut cursor)?;
        let (n_tensors, n_pairs) = (cursor.u64()?, cursor.u64()?);
        let meta = Meta::parse(&mut cursor, n_pairs)?;
        let infos = infos(&mut cursor, n_tensors)?;
        let alignment = meta.size("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !(1..=MAX_ALIGNMENT).contains(&alignment) || !alignment.is_power_of_two() {
            return Err(bad(format!("general.alignment is {alignment}, must be a power of two up to {MAX_ALIGNMENT}")));
        }
        // The file may end right after its last description: then the padding, and every tensor's bytes, are not there.
        let data = file.get(cursor.at.next_multiple_of(alignment)..).unwrap_or_default();
        let tensors = infos.iter().map(|(name, info)| Ok((*name, info.tensor(name, data, alignment)?)));
        let tensors = tensors.collect::<Result<_>>()?;
        check_overlaps(&infos)?;
        Ok(Self { meta, tensors })
    }
}

fn check_start(cursor: &mut Cursor<'_>) -> Result<()> {
    let magic = cursor.take(4).map_err(|_| bad("is no GGUF file: it has fewer than 4 bytes"))?;
    if magic != MAGIC {
        return Err(bad(format!("is no GGUF file: it begins with {:?}", String::from_utf8_lossy(magic))));
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        v if (1..=3).contains(&v.swap_bytes()) => {
            Err(Error::unsupported("is a big-endian GGUF file, supported is little-endian"))
        }
        v => Err(Error::unsupported(format!("is GGUF version {v}, supported are 2 and 3"))),
    }
}

/// A tensor's description.
struct Info {
    kind: Kind,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

fn infos<'a>(cursor: &mut Cursor<'a>, n: u64) -> Result<BTreeMap<&'a str, Info>> {
    let mut infos = BTreeMap::new();
    for _ in 0..n {
        let name = cursor.text()?;
        let info = info(cursor).map_err(|e| e.at(format_args!("tensor {name}")))?;
        if infos.insert(name, info).is_some() {
            return Err(bad(format!("describes tensor {name} twice")));
        }
    }
    Ok(infos)
}

fn info(cursor: &mut Cursor<'_>) -> Result<Info> {
    let n_dims = cursor.u32()?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(bad(format!("has {n_dims} dimensions, must be 1 to {MAX_DIMS}")));
    }
    let mut shape = (0..n_dims).map(|_| cursor.size()).collect::<Result<Vec<_>>>()?;
    shape.reverse();
    let id = cursor.u32()?;
    let offset = cursor.size()?;
    let kind = Kind::from_id(id)?;
    let (values, bytes) = kind.block();
    let cols = shape.last().copied().unwrap_or(1);
    if !cols.is_multiple_of(values) {
        return Err(bad(format!("has rows of {cols} values, {kind:?} needs a multiple of {values}")));
    }
    let len = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).and_then(|n| (n / values).checked_mul(bytes));
    let len = len.ok_or_else(|| bad(format!("has shape {shape:?}, larger than any file")))?;
    Ok(Info { kind, shape, offset, len })
}

impl Info {
    fn tensor<'a>(&self, name: &str, data: &'a [u8], alignment: usize) -> Result<Tensor<'a>> {
        let Self { kind, ref shape, offset, len } = *self;
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!(
                "tensor {name} lies at byte {offset} of the data, no multiple of the alignment {alignment}"
            )));
        }
        let bytes = offset.checked_add(len).and_then(|end| data.get(offset..end));
        let bytes = bytes.ok_or_else(|| {
            let have = data.len();
            bad(format!("tensor {name} needs {len} bytes at byte {offset} of the data, which has {have}: truncated?"))
        })?;
        Ok(Tensor { kind, shape: shape.clone(), bytes })
    }
}

fn check_overlaps(infos: &BTreeMap<&str, Info>) -> Result<()> {
    let mut by_offset: Vec<_> = infos.iter().filter(|(_, i)| i.len > 0).collect();
    by_offset.sort_by_key(|(_, i)| i.offset);
    for pair in by_offset.windows(2) {
        let ((a, first), (b, second)) = (pair[0], pair[1]);
        if second.offset - first.offset < first.len {
            return Err(bad(format!("tensors {a} and {b} overlap: byte {} of the data is in both", second.offset)));
        }
    }
    Ok(())
}

impl<'a> Meta<'a> {
    fn parse(cursor: &mut Cursor<'a>, n: u64) -> Result<Self> {
        let mut pairs = BTreeMap::new();
        for _ in 0..n {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind, MAX_NESTING).map_err(|e| e.at(format_args!("key {key}")))?;
            if pairs.insert(key, value).is_some() {
                return Err(bad(format!("has key {key} twice")));
            }
        }
        Ok(Self(pairs))
    }

    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.0.get(key).copied()
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.as_type(key, "a whole number", |v| match v {
            Value::Unsigned(n) => usize::try_from(n).ok(),
            Value::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        })
    }

    pub fn need_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| bad(format!("lacks key {key}")))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.as_type(key, "a number", |v| if let Value::Float(x) = v { Some(x) } else { None })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.as_type(key, "true or false", |v| if let Value::Bool(b) = v { Some(b) } else { None })
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.as_type(key, "a text", |v| if let Value::Text(t) = v { Some(t) } else { None })
    }

    /// The elements of an array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.array(key, "texts", |v| if let Value::Text(t) = v { Some(t) } else { None })
    }

    /// The elements of an array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.array(key, "numbers", |v| if let Value::Float(x) = v { Some(x) } else { None })
    }

    /// The elements of an array of whole numbers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.array(key, "whole numbers", |v| match v {
            Value::Signed(n) => Some(n),
            Value::Unsigned(n) => i64::try_from(n).ok(),
            _ => None,
        })
    }

    fn as_type<T>(&self, key: &str, wanted: &str, convert: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<T>> {
        let converted = |v| convert(v).ok_or_else(|| bad(format!("key {key} is {}, must be {wanted}", v.name())));
        self.get(key).map(converted).transpose()
    }

    fn array<T>(&self, key: &str, wanted: &str, convert: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<Vec<T>>> {
        let wrong = || bad(format!("key {key} is no array of {wanted}"));
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                array.values().map(|v| convert(v?).ok_or_else(wrong)).collect::<Result<_>>().map(Some)
            }
            Some(_) => Err(wrong()),
        }
    }
}

impl Value<'_> {
    fn name(&self) -> String {
        match self {
            Value::Unsigned(n) => n.to_string(),
            Value::Signed(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::Text(_) => "a text".to_owned(),
            Value::Array(a) => format!("an array of {}", a.len),
        }
    }
}

impl<'a> Array<'a> {
    fn values(self) -> impl Iterator<Item = Result<Value<'a>>> {
        let mut cursor = self.cursor;
        (0..self.len).map(move |_| cursor.value(self.element, MAX_NESTING))
    }
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((taken, left)) = self.left.split_at_checked(n) else {
            let text =
                format!("ends too early: {n} bytes are needed at byte {}, {} are left", self.at, self.left.len());
            return Err(bad(text));
        };
        *self = Cursor { left, at: self.at + n };
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| Error::internal("a slice has another length than asked for"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize> {
        let at = self.at;
        usize::try_from(self.u64()?).map_err(|_| bad(format!("has a size beyond this machine's at byte {at}")))
    }

    fn text(&mut self) -> Result<&'a str> {
        let len = self.size()?;
        let at = self.at;
        std::str::from_utf8(self.take(len)?).map_err(|e| bad(format!("the text at byte {at} is not UTF-8: {e}")))
    }

    /// A value of the type with this number, by gguf.md's table.
    fn value(&mut self, kind: u32, nesting: usize) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes().map(u8::from_le_bytes)?.into()),
            1 => Value::Signed(self.bytes().map(i8::from_le_bytes)?.into()),
            2 => Value::Unsigned(self.bytes().map(u16::from_le_bytes)?.into()),
            3 => Value::Signed(self.bytes().map(i16::from_le_bytes)?.into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(self.bytes().map(i32::from_le_bytes)?.into()),
            6 => Value::Float(shortest(self.bytes().map(f32::from_le_bytes)?)),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => Value::Array(self.array(nesting)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(self.bytes().map(i64::from_le_bytes)?),
            12 => Value::Float(self.bytes().map(f64::from_le_bytes)?),
            _ => {
                return Err(bad(format!(
                    "the value before byte {} has type {kind}, which GGUF does not define",
                    self.at
                )));
            }
        })
    }

    /// Passes over an array, element by element, so that its end is known and its lengths are checked.
    fn array(&mut self, nesting: usize) -> Result<Array<'a>> {
        let nesting = nesting.checked_sub(1).ok_or_else(|| bad("has arrays in arrays in arrays"))?;
        let (element, len) = (self.u32()?, self.size()?);
        let array = Array { element, len, cursor: *self };
        for _ in 0..len {
            self.value(element, nesting)?;
        }
        Ok(array)
    }
}

/// The f64 with the same shortest decimal as `x`: 1e-5 was meant, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
