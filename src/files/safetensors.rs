//! Weights on disk: one `model.safetensors`, or shards with `model.safetensors.index.json`.
//!
//! The crate `safetensors` parses headers and refuses overlaps, holes and lengths that contradict shapes; this file adds
//! the file's own length, shards, sentences, and a writer that never holds more than one piece of a tensor.
//! It knows names, types and shapes, not what a tensor is for.

use super::{Access, Bytes, room_for};
use crate::cancel::PIECE;
use crate::{Cancel, Error, Result};
use dialoguellm_kernels::matrix::{Dtype, Matrix};
use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, Metadata};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The file of a model that is not sharded.
pub const SINGLE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// Hugging Face's own bound on a header; a real one is far smaller.
const HEADER_LIMIT: usize = 100_000_000;
/// Bytes of the little-endian length that a file begins with.
const PREFIX: usize = 8;

/// All tensors of a model folder or of one file, looked up by name.
#[derive(Debug)]
pub struct Tensors {
    files: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Stored,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor as it lies in its file: row-major, last index contiguous, any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// How each value is encoded.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Its values, little-endian.
    pub bytes: &'a [u8],
}

/// A tensor without its values.
#[derive(Clone, Debug)]
pub struct Described<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its type's: `bf16`, `i8`.
    pub type_name: String,
    /// Its type, where that is one of weights as numbers.
    pub dtype: Option<Dtype>,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// Bytes of its values.
    pub bytes: usize,
}

impl Tensors {
    /// The weights of a model folder: `model.safetensors` where it is there (as transformers prefers), else the shards
    /// that the index names.
    ///
    /// # Errors
    /// NotFound where the folder has neither; BadFile where a header contradicts itself, its file or the index.
    pub fn open(dir: &Path, access: Access) -> Result<Self> {
        if dir.join(SINGLE).exists() {
            return Self::open_file(&dir.join(SINGLE), access);
        }
        if dir.join(INDEX).exists() {
            return Self::open_shards(dir, access);
        }
        Err(Error::not_found(format!(
            "{} has neither {SINGLE} nor {INDEX}: name a model folder with weights in safetensors format",
            dir.display()
        )))
    }

    /// The tensors of one file.
    ///
    /// # Errors
    /// As [`Tensors::open`].
    pub fn open_file(path: &Path, access: Access) -> Result<Self> {
        let mut all = Self { files: Vec::new(), entries: BTreeMap::new() };
        all.entries = all.add_file(path, access)?;
        Ok(all)
    }

    fn open_shards(dir: &Path, access: Access) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index_path = dir.join(INDEX);
        let Index { weight_map } = super::read_json(&index_path)?;
        let mut all = Self { files: Vec::new(), entries: BTreeMap::new() };
        for file in weight_map.values().collect::<BTreeSet<_>>() {
            let mut found = all.add_file(&dir.join(plain_name(file, &index_path)?), access)?;
            for name in weight_map.iter().filter(|(_, f)| *f == file).map(|(name, _)| name) {
                let entry = found.remove(name).ok_or_else(|| {
                    Error::bad_file(&index_path, format_args!("says that {file} holds {name}, but {file} does not"))
                })?;
                all.entries.insert(name.clone(), entry);
            }
        }
        Ok(all)
    }

    fn add_file(&mut self, path: &Path, access: Access) -> Result<BTreeMap<String, Entry>> {
        let bytes = Bytes::open(path, access)?;
        let (start, metadata) = header(&bytes).map_err(|text| Error::bad_file(path, text))?;
        let file = self.files.len();
        let entry = |info: &safetensors::tensor::TensorInfo| Entry {
            file,
            dtype: info.dtype,
            shape: info.shape.clone(),
            // Within the file: `header` has checked the largest end.
            range: start + info.data_offsets.0..start + info.data_offsets.1,
        };
        let entries = metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect();
        self.files.push(Shard { path: path.to_owned(), bytes });
        Ok(entries)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// NotFound where there is none; Unsupported where its type is none of F32, F16 and BF16.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        self.find(name)?.ok_or_else(|| Error::not_found(format!("{} has no tensor {name}", self.place())))
    }

    /// The tensor called `name`, or `None`.
    ///
    /// # Errors
    /// Unsupported where its type is none of F32, F16 and BF16.
    pub fn find(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let Some((name, entry)) = self.entries.get_key_value(name) else { return Ok(None) };
        let file = &self.files[entry.file];
        let dtype = supported(entry.dtype).ok_or_else(|| {
            let text = format!("tensor {name} has type {}, supported are F32, F16 and BF16", entry.dtype);
            Error::unsupported(text).at(file.path.display())
        })?;
        Ok(Some(TensorView { name, dtype, shape: &entry.shape, bytes: &file.bytes[entry.range.clone()] }))
    }

    /// Gives back the memory of the tensor called `name`, if there is one, for as long as nobody reads it.
    pub(crate) fn release(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            self.files[entry.file].bytes.release(entry.range.clone());
        }
    }

    /// Type, shape and bytes of the tensor called `name`, whatever its type.
    pub(super) fn raw(&self, name: &str) -> Option<(Stored, &[usize], &[u8])> {
        let entry = self.entries.get(name)?;
        Some((entry.dtype, &entry.shape, &self.files[entry.file].bytes[entry.range.clone()]))
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The files behind the tensors and their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.files.iter().map(|f| (f.path.as_path(), f.bytes.len() as u64))
    }

    /// Each file's header, length prefix included: names, types, shapes and offsets.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|f| &f.bytes[..header_end(&f.bytes).unwrap_or(0)])
    }

    /// What each tensor is, whatever its type, in name order.
    pub fn described(&self) -> impl Iterator<Item = Described<'_>> {
        self.entries.iter().map(|(name, entry)| Described {
            name,
            type_name: entry.dtype.to_string().to_lowercase(),
            dtype: supported(entry.dtype),
            shape: &entry.shape,
            bytes: entry.range.len(),
        })
    }

    /// Each tensor's stored bytes whatever their type, in name order.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(name, e)| (name.as_str(), &self.files[e.file].bytes[e.range.clone()]))
    }

    fn place(&self) -> String {
        match self.files.as_slice() {
            [one] => one.path.display().to_string(),
            [first, .., last] => format!("{} to {}", first.path.display(), last.path.display()),
            [] => "an index without files".to_owned(),
        }
    }
}

impl<'a> TensorView<'a> {
    /// Itself as a `[rows, cols]` matrix, still as stored.
    ///
    /// # Errors
    /// BadFile where its shape is another: the sizes asked for come from config.json.
    pub fn matrix(&self, rows: usize, cols: usize) -> Result<Matrix<'a>> {
        let matrix = Matrix::new(self.dtype, self.bytes, rows, cols).filter(|_| self.shape == [rows, cols]);
        matrix.ok_or_else(|| self.misshapen(&[rows, cols]))
    }

    /// Its values as f32 (exact), where it is a vector of `len`.
    ///
    /// # Errors
    /// BadFile where its shape is another; OutOfMemory.
    pub fn vector(&self, len: usize) -> Result<Vec<f32>> {
        let row = Matrix::new(self.dtype, self.bytes, 1, len).filter(|_| self.shape == [len]);
        widened(row.ok_or_else(|| self.misshapen(&[len]))?, self.name)
    }

    /// Its values as f32 (exact), row-major, where it is a `[rows, cols]` matrix.
    ///
    /// # Errors
    /// As [`TensorView::matrix`]; OutOfMemory.
    pub fn values(&self, rows: usize, cols: usize) -> Result<Vec<f32>> {
        widened(self.matrix(rows, cols)?, self.name)
    }

    fn misshapen(&self, wanted: &[usize]) -> Error {
        let Self { name, shape, .. } = self;
        let text = format!("tensor {name} has shape {shape:?}, config.json needs {wanted:?}: are both of one model?");
        Error::new(crate::Code::BadFile, text)
    }
}

fn widened(matrix: Matrix<'_>, name: &str) -> Result<Vec<f32>> {
    let mut values = room_for(matrix.rows() * matrix.cols(), name)?;
    values.resize(matrix.rows() * matrix.cols(), 0.0);
    for (i, row) in values.chunks_exact_mut(matrix.cols().max(1)).enumerate() {
        matrix.read_row(i, 0, row);
    }
    Ok(values)
}

fn supported(dtype: Stored) -> Option<Dtype> {
    match dtype {
        Stored::F32 => Some(Dtype::F32),
        Stored::F16 => Some(Dtype::F16),
        Stored::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// A shard's name is joined to the folder, so it must not lead out of it.
fn plain_name<'a>(name: &'a str, index: &Path) -> Result<&'a str> {
    let plain = Path::new(name).file_name().is_some_and(|f| f == name);
    plain
        .then_some(name)
        .ok_or_else(|| Error::bad_file(index, format_args!("names {name:?}, which is no plain file name")))
}

/// Where the data begins, or `None` where the length prefix cannot be right.
fn header_end(bytes: &[u8]) -> Option<usize> {
    let len = usize::try_from(u64::from_le_bytes(*bytes.first_chunk::<PREFIX>()?)).ok()?;
    let end = PREFIX.checked_add(len)?;
    (len <= HEADER_LIMIT && end <= bytes.len()).then_some(end)
}

/// A checked header and where the data begins; otherwise what is wrong with it.
fn header(bytes: &[u8]) -> std::result::Result<(usize, Metadata), String> {
    let len = bytes.len();
    let start = header_end(bytes).ok_or_else(|| {
        let says = bytes.first_chunk::<PREFIX>().map(|b| u64::from_le_bytes(*b));
        let says = says.map_or("no header length".to_owned(), |n| format!("a header of {n} bytes"));
        format!("has {says} in a file of {len} bytes (a header may have {HEADER_LIMIT}): truncated, or not safetensors")
    })?;
    let json = &bytes[PREFIX..start];
    let metadata: Metadata = serde_json::from_slice(json).map_err(|e| liar(json).unwrap_or(e.to_string()))?;
    // Checked here and not by the crate, whose sum may overflow.
    let end = start.checked_add(metadata.data_len());
    if end != Some(len) {
        let needs = metadata.data_len() as u128 + start as u128;
        return Err(format!("needs {needs} bytes for its header and tensors, but has {len}: truncated, or padded"));
    }
    Ok((start, metadata))
}

/// Which tensor of a refused header contradicts itself, with both numbers; `None` where the JSON itself is at fault.
fn liar(json: &[u8]) -> Option<String> {
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json).ok()?;
    let infos = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let parsed =
        infos.map(|(name, v)| Some((serde_json::from_value::<safetensors::tensor::TensorInfo>(v).ok()?, name)));
    let mut tensors: Vec<_> = parsed.collect::<Option<_>>()?;
    tensors.sort_by_key(|(info, _)| info.data_offsets);
    let mut expected = 0;
    for (info, name) in tensors {
        let (from, to) = info.data_offsets;
        if from != expected || to < from {
            return Some(format!(
                "tensor {name} lies at bytes {from}..{to} of the data, but {expected} is where the last one ended"
            ));
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &s| n.checked_mul(s));
        if bits != (to - from).checked_mul(8) {
            let need = bits.map_or("more than 2^64".to_owned(), |b| (b / 8).to_string());
            return Some(format!(
                "tensor {name} of shape {:?} and type {} needs {need} bytes, its offsets give it {}",
                info.shape,
                info.dtype,
                to - from
            ));
        }
        expected = to;
    }
    None
}

/// Appends `values` as `dtype`. Rounds to nearest, ties to even; the first value that is not finite afterwards is the error.
pub(crate) fn encode(values: &[f32], dtype: Dtype, out: &mut Vec<u8>) -> std::result::Result<(), f32> {
    for &x in values {
        let finite = match dtype {
            Dtype::F32 => push(out, x.to_le_bytes(), x.is_finite()),
            Dtype::F16 => push(out, f16::from_f32(x).to_le_bytes(), f16::from_f32(x).is_finite()),
            Dtype::Bf16 => push(out, bf16::from_f32(x).to_le_bytes(), bf16::from_f32(x).is_finite()),
        };
        if !finite {
            return Err(x);
        }
    }
    Ok(())
}

fn push<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N], finite: bool) -> bool {
    out.extend(bytes);
    finite
}

/// A tensor to be written: name, type, shape.
pub type NewTensor<T = Dtype> = (String, T, Vec<usize>);

/// The type of a tensor to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Numbers.
    Number(Dtype),
    /// Whole numbers.
    I8,
    /// Whole numbers.
    I32,
    /// Whole numbers.
    I64,
}

impl From<Dtype> for Written {
    fn from(dtype: Dtype) -> Self {
        Written::Number(dtype)
    }
}

impl Written {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Written::Number(dtype) => dtype.size(),
            Written::I8 => 1,
            Written::I32 => 4,
            Written::I64 => 8,
        }
    }

    /// Its name in a header.
    fn name(self) -> &'static str {
        match self {
            Written::Number(Dtype::F32) => "F32",
            Written::Number(Dtype::F16) => "F16",
            Written::Number(Dtype::Bf16) => "BF16",
            Written::I8 => "I8",
            Written::I32 => "I32",
            Written::I64 => "I64",
        }
    }
}

/// Writes one safetensors file: the header first, then the tensors' bytes as they come, in the order announced.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    left: usize,
    cancel: Cancel,
}

impl Writer {
    /// Creates `path` and writes the header. Readers map the file, so put larger types before smaller ones to keep all
    /// aligned. `metadata` is the header's `__metadata__`; transformers wants `("format", "pt")` there.
    ///
    /// # Errors
    /// Io; InvalidArgument where sizes overflow or a name comes twice.
    pub fn create<T: Into<Written> + Copy>(
        path: &Path,
        entries: &[NewTensor<T>],
        metadata: &[(&str, &str)],
    ) -> Result<Self> {
        let (header, left) = new_header(entries, metadata).map_err(|e| e.at(path.display()))?;
        let file = File::create(path).map_err(|e| Error::io("create", path, &e))?;
        let mut writer = Self { path: path.to_owned(), file: BufWriter::new(file), left, cancel: Cancel::default() };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(header.as_bytes())?;
        Ok(writer)
    }

    /// The same, ended by a request to stop at the next piece.
    #[must_use]
    pub fn heeding(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Appends bytes: any piece of a tensor, several, or all.
    ///
    /// # Errors
    /// Io; Cancelled; Internal where they are more than the header announces.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| {
            let text =
                format!("{} was given {} bytes with {} left to write", self.path.display(), bytes.len(), self.left);
            Error::internal(text)
        })?;
        bytes.chunks(PIECE).try_for_each(|piece| {
            self.cancel.check()?;
            self.put(piece)
        })
    }

    /// Syncs the file to the disk.
    ///
    /// # Errors
    /// Io; Internal where bytes are missing.
    pub fn finish(mut self) -> Result<()> {
        if self.left != 0 {
            return Err(Error::internal(format!("{} lacks {} bytes of its tensors", self.path.display(), self.left)));
        }
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| Error::io("write", &self.path, &e))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, &e))
    }
}

fn new_header<T: Into<Written> + Copy>(entries: &[NewTensor<T>], metadata: &[(&str, &str)]) -> Result<(String, usize)> {
    let mut header = serde_json::Map::new();
    let about: serde_json::Map<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    if !about.is_empty() {
        header.insert("__metadata__".to_owned(), about.into());
    }
    let mut at = 0usize;
    for (name, dtype, shape) in entries {
        let dtype: Written = (*dtype).into();
        let len = shape.iter().try_fold(dtype.size(), |n, &s| n.checked_mul(s));
        let end = len.and_then(|n| at.checked_add(n));
        let end =
            end.ok_or_else(|| Error::invalid(format!("tensor {name} of shape {shape:?} is larger than any file")))?;
        let info = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [at, end]});
        if header.insert(name.clone(), info).is_some() {
            return Err(Error::invalid(format!("tensor {name} comes twice")));
        }
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    let padded = text.len().next_multiple_of(8); // so that the data begins on 8 bytes
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    Ok((text, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;
    use proptest::prelude::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..data).map(|i| i as u8));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Tensors> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SINGLE), bytes).unwrap();
        Tensors::open(dir.path(), Access::Read)
    }

    #[track_caller]
    fn refused(bytes: &[u8], words: &[&str]) {
        let error = open(bytes).unwrap_err();
        assert_eq!(error.code(), Code::BadFile, "{error}");
        assert!(words.iter().chain(&["model.safetensors"]).all(|w| error.text().contains(w)), "{error}");
    }

    const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}}"#;

    #[test]
    fn what_the_writer_writes_the_reader_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE);
        let entries = [("w".to_owned(), Dtype::F32, vec![2, 2]), ("v".to_owned(), Dtype::F16, vec![3])];
        let mut writer = Writer::create(&path, &entries, &[("format", "pt")]).unwrap();
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&bytes[..5]).unwrap();
        writer.write(&bytes[5..]).unwrap();
        writer.write(&[0x00, 0x3C, 0x00, 0x40, 0x00, 0xC2]).unwrap();
        writer.finish().unwrap();
        for access in [Access::Mapped, Access::Read] {
            let tensors = Tensors::open(dir.path(), access).unwrap();
            assert_eq!(tensors.get("w").unwrap().values(2, 2).unwrap(), [1.0, 2.0, 3.0, 4.0]);
            assert_eq!(tensors.get("v").unwrap().vector(3).unwrap(), [1.0, 2.0, -3.0]);
            assert_eq!(tensors.names().collect::<Vec<_>>(), ["v", "w"]);
            let data = tensors.get("w").unwrap().bytes.as_ptr() as usize;
            assert!(access == Access::Read || data.is_multiple_of(8), "mapped data is aligned");
        }
    }

    #[test]
    fn the_writer_refuses_too_many_and_too_few_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let create = || Writer::create(&dir.path().join("f"), &[("w".to_owned(), Dtype::F16, vec![2])], &[]).unwrap();
        assert_eq!(create().write(&[0; 5]).unwrap_err().code(), Code::Internal);
        assert_eq!(create().finish().unwrap_err().code(), Code::Internal);
    }

    #[test]
    fn lies_are_told_with_both_numbers() {
        open(&file(TWO, 30)).unwrap();
        refused(&file(TWO, 29), &["truncated", "needs"]);
        refused(&file(TWO, 31), &["padded"]);
        refused(&file(&TWO.replace("[24,30]", "[20,26]"), 26), &["tensor b", "20..26", "24"]);
        refused(&file(&TWO.replace("[24,30]", "[26,32]"), 32), &["tensor b", "26..32", "24"]);
        refused(&file(&TWO.replace("[2,3]", "[2,4]"), 30), &["tensor a", "[2, 4]", "32 bytes", "24"]);
        refused(&file(&TWO.replace("[2,3]", "[9223372036854775807,3]"), 30), &["tensor a", "2^64"]);
        refused(&file(&TWO.replace("[24,30]", "[24]"), 30), &["tuple of size 2"]);
        refused(&[7; 5], &["no header length", "5 bytes"]);
        refused(&u64::MAX.to_le_bytes(), &["18446744073709551615", "truncated"]);
    }

    #[test]
    fn an_end_past_64_bits_is_refused() {
        let most = usize::MAX / 8;
        let part = |i: usize| {
            format!(r#""t{i}":{{"dtype":"U8","shape":[{most}],"data_offsets":[{},{}]}}"#, i * most, (i + 1) * most)
        };
        let header = format!("{{{}}}", (0..8).map(part).collect::<Vec<_>>().join(","));
        refused(&file(&header, 0), &["truncated", "needs"]);
    }

    #[test]
    fn another_type_is_refused_by_name_when_asked_for() {
        let tensors = open(&file(&TWO.replace("BF16\",\"shape\":[3]", "I8\",\"shape\":[6]"), 30)).unwrap();
        let error = tensors.get("b").unwrap_err();
        assert!(error.code() == Code::Unsupported && error.text().contains("tensor b has type I8"), "{error}");
        tensors.get("a").unwrap();
    }

    #[test]
    fn another_shape_is_refused_with_both_and_a_missing_name_is_not_found() {
        let tensors = open(&file(TWO, 30)).unwrap();
        for error in
            [tensors.get("a").unwrap().matrix(3, 2).unwrap_err(), tensors.get("a").unwrap().vector(6).unwrap_err()]
        {
            assert!(error.text().contains("tensor a has shape [2, 3], config.json needs"), "{error}");
        }
        assert_eq!(tensors.get("c").unwrap_err().code(), Code::NotFound);
        assert!(tensors.find("c").unwrap().is_none());
    }

    #[test]
    fn shards_hold_what_the_index_says_and_nothing_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let index = |map: &str| std::fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map":{map}}}"#)).unwrap();
        let half = |name: &str| format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        std::fs::write(dir.path().join("1.safetensors"), file(&half("a"), 4)).unwrap();
        std::fs::write(dir.path().join("2.safetensors"), file(&half("b"), 4)).unwrap();
        index(r#"{"a":"1.safetensors","b":"2.safetensors"}"#);
        let tensors = Tensors::open(dir.path(), Access::Mapped).unwrap();
        assert_eq!((tensors.names().count(), tensors.files().count()), (2, 2));
        for (map, words) in [
            (r#"{"a":"2.safetensors"}"#, "2.safetensors does not"),
            (r#"{"a":"../1.safetensors"}"#, "no plain file name"),
            (r#"{"a":"3.safetensors"}"#, "3.safetensors"),
        ] {
            index(map);
            let error = Tensors::open(dir.path(), Access::Mapped).unwrap_err();
            assert!(error.text().contains(words), "{error}");
        }
    }

    #[test]
    fn a_folder_without_weights_says_what_it_looked_for() {
        let error = Tensors::open(tempfile::tempdir().unwrap().path(), Access::Mapped).unwrap_err();
        assert!(
            error.code() == Code::NotFound && error.text().contains(SINGLE) && error.text().contains(INDEX),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>()) {
            let mut bytes = file(TWO, 30);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for damaged in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                if let Ok(tensors) = open(damaged) {
                    for name in tensors.names().collect::<Vec<_>>() {
                        let _ = tensors.get(name).and_then(|t| t.vector(3));
                    }
                }
            }
        }
    }
}
