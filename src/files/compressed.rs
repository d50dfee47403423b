//! Quantised weights as the PyPI package compressed-tensors 0.20 has them, so that transformers and vLLM read what is written
//! here and the other way round.
//!
//! A weight `w` of 8 bits (`int-quantized`) is an I8 tensor of that name; one of 4 bits (`pack-quantized`) is the I32 tensor
//! `w_packed`, eight numbers a word, with its sizes in `w_shape`. Both have scales in `w_scale`: one a row, or one for each
//! group of columns.

use super::safetensors::Tensors;
use crate::{Code, Error, Result};
use dialoguellm_kernels::matrix::{Bits, Matrix, Scales};
use safetensors::tensor::Dtype as Stored;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What config.json calls it.
pub(crate) const FIELD: &str = "quantization_config";
/// Where `dialoguellm quantize` leaves the fingerprint of the model that it quantised.
pub(crate) const ORIGIN: &str = "dialoguellm_quantized_from";

/// The fingerprint of the model that this folder's was made of, where it was quantised by this library.
pub(crate) fn origin(dir: &Path) -> Result<Option<String>> {
    let settings: Map<String, Value> = super::read_json(&dir.join(super::config::FILE))?;
    Ok(settings.get(ORIGIN).and_then(Value::as_str).map(str::to_owned))
}

/// What a `quantization_config` must say; the error names the field and its value.
pub(super) fn check(config: &Value) -> std::result::Result<(), String> {
    only(config, "quant_method", &["compressed-tensors"])?;
    only(config, "format", &["int-quantized", "pack-quantized"])?;
    none(config, &["sparsity_config", "kv_cache_scheme"])?;
    let groups = config.get("config_groups").and_then(Value::as_object).into_iter().flatten();
    for (_, group) in groups {
        let weights = group.get("weights").unwrap_or(&Value::Null);
        only(weights, "num_bits", &[8, 4])?;
        only(weights, "type", &["int"])?;
        only(weights, "symmetric", &[true])?;
        only(weights, "strategy", &["channel", "group"])?;
        none(weights, &["actorder"])?;
        if config.get("format") == Some(&json!("pack-quantized")) {
            only(weights, "num_bits", &[4])?;
        }
    }
    Ok(())
}

fn only<T: Into<Value> + Clone>(map: &Value, field: &str, known: &[T]) -> std::result::Result<(), String> {
    let value = map.get(field).unwrap_or(&Value::Null);
    let known: Vec<Value> = known.iter().cloned().map(Into::into).collect();
    if known.contains(value) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(Value::to_string).collect();
    Err(format!("{field} is {value}, supported is {}", known.join(" or ")))
}

fn none(map: &Value, fields: &[&str]) -> std::result::Result<(), String> {
    let given = fields.iter().find_map(|field| Some((field, map.get(*field).filter(|v| !is_empty(v))?)));
    given.map_or(Ok(()), |(field, value)| Err(format!("{field} is {value}, supported is none")))
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// The `quantization_config` of a model whose linear maps are all of `bits`, in runs of `run` columns where they have 4.
pub(crate) fn config(bits: Bits, run: usize) -> Value {
    let (format, strategy, group) = match bits {
        Bits::Eight => ("int-quantized", "channel", None),
        Bits::Four => ("pack-quantized", "group", Some(run)),
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": null,
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "format": format,
            "input_activations": null,
            "output_activations": null,
            "weights": {
                "num_bits": bits.count(), "type": "int", "symmetric": true, "dynamic": false,
                "strategy": strategy, "group_size": group,
            },
        }},
    })
}

/// A tensor of numbers that belong to a quantised weight.
pub(crate) fn part(name: &str, part: &str) -> String {
    format!("{name}_{part}")
}

impl Tensors {
    /// The matrix `name`, stored as numbers or quantised.
    ///
    /// # Errors
    /// NotFound; BadFile where a shape is another than `[rows, cols]` needs; Unsupported where its type is none that is known.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix<'_>> {
        let packed = part(name, "packed");
        match (self.raw(name), self.raw(&packed)) {
            (Some((Stored::I8, shape, bytes)), _) => {
                self.quantized(Bits::Eight, (name, shape, bytes), name, [rows, cols], cols)
            }
            (None, Some((Stored::I32, shape, bytes))) => {
                self.quantized(Bits::Four, (&packed, shape, bytes), name, [rows, cols], cols.div_ceil(8))
            }
            _ => self.get(name)?.matrix(rows, cols),
        }
    }

    /// As [`Tensors::release`], of the matrix `name` in all its parts.
    pub(crate) fn release_matrix(&self, name: &str) {
        self.release(name);
        for other in ["packed", "scale"] {
            self.release(&part(name, other));
        }
    }

    fn quantized<'a>(
        &'a self,
        bits: Bits,
        (stored, shape, bytes): (&str, &[usize], &'a [u8]),
        name: &str,
        [rows, cols]: [usize; 2],
        width: usize,
    ) -> Result<Matrix<'a>> {
        let bad = |tensor: &str, shape: &[usize], wanted: String| {
            let text =
                format!("tensor {tensor} has shape {shape:?}, config.json needs {wanted}: are both of one model?");
            Error::new(Code::BadFile, text)
        };
        if shape != [rows, width] {
            return Err(bad(stored, shape, format!("[{rows}, {width}]")));
        }
        let scale = self.get(&part(name, "scale"))?;
        let runs = match *scale.shape {
            [n] if n == rows => 1,
            [n, runs] if n == rows && runs > 0 && cols.is_multiple_of(runs) => runs,
            _ => return Err(bad(scale.name, scale.shape, format!("[{rows}, a divisor of {cols}]"))),
        };
        let scales = Scales::new(scale.dtype, scale.bytes, rows, cols, cols / runs).ok_or_else(|| {
            let text =
                format!("{} has a scale for every {} columns, supported are multiples of 8", scale.name, cols / runs);
            Error::unsupported(text)
        })?;
        let matrix = Matrix::quantized(bits, bytes, scales, rows, cols);
        matrix.ok_or_else(|| bad(stored, shape, format!("{rows} rows of {} bytes", bits.row_bytes(cols))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Access;
    use crate::files::safetensors::SINGLE;
    use safetensors::tensor::TensorView;

    fn tensors(parts: &[(&str, Stored, &[usize], &[u8])]) -> Tensors {
        let dir = tempfile::tempdir().unwrap();
        let views = parts
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.path().join(SINGLE)).unwrap();
        Tensors::open(dir.path(), Access::Read).unwrap()
    }

    fn values(matrix: &Matrix) -> Vec<f32> {
        let all = (0..matrix.rows()).flat_map(|i| (0..matrix.cols()).map(move |j| (i, j)));
        all.map(|(i, j)| matrix.at(i, j)).collect()
    }

    fn f32s(x: &[f32]) -> Vec<u8> {
        x.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn eight_bits_are_bytes_and_four_are_words_of_eight() {
        let (two, one) = (f32s(&[0.5, 2.0]), f32s(&[0.5]));
        let t = tensors(&[
            ("w", Stored::I8, &[2, 3], &[1, 0xff, 127, 0, 2, 0x80]),
            ("w_scale", Stored::F32, &[2, 1], &two),
            ("v_packed", Stored::I32, &[1, 1], &[0x98, 0x7f, 0x80, 0x08]),
            ("v_scale", Stored::F32, &[1], &one),
        ]);
        assert_eq!(values(&t.matrix("w", 2, 3).unwrap()), [0.5, -0.5, 63.5, 0.0, 4.0, -256.0]);
        assert_eq!(values(&t.matrix("v", 1, 8).unwrap()), [0.0, 0.5, 3.5, -0.5, -4.0, 0.0, 0.0, -4.0]);
    }

    #[test]
    fn parts_that_do_not_fit_are_told_by_name_and_both_shapes() {
        let two = f32s(&[0.5, 2.0]);
        let of = |shape: &[usize], scale: &[usize]| {
            let (bytes, scales) = (vec![1; shape.iter().product()], vec![0; 4 * scale.iter().product::<usize>()]);
            let t = tensors(&[("w", Stored::I8, shape, &bytes), ("w_scale", Stored::F32, scale, &scales)]);
            t.matrix("w", 2, 24).map(|_| ()).unwrap_err().text().to_owned()
        };
        assert_eq!(
            of(&[2, 23], &[2, 1]),
            "tensor w has shape [2, 23], config.json needs [2, 24]: are both of one model?"
        );
        assert!(of(&[2, 24], &[3, 1]).contains("w_scale has shape [3, 1], config.json needs [2, a divisor of 24]"));
        assert!(of(&[2, 24], &[2, 5]).contains("w_scale has shape [2, 5]"));
        assert!(of(&[2, 24], &[2, 6]).contains("every 4 columns, supported are multiples of 8"));
        let t = tensors(&[("w", Stored::I8, &[2, 1], &[1, 2]), ("v_packed", Stored::F32, &[2], &two)]);
        assert_eq!(t.matrix("w", 2, 1).unwrap_err().code(), Code::NotFound, "no scale");
        assert_eq!(t.matrix("v", 2, 8).unwrap_err().code(), Code::NotFound, "packed in another type");
    }

    #[test]
    fn what_is_written_is_accepted_and_other_kinds_are_refused_by_field() {
        for bits in [Bits::Eight, Bits::Four] {
            check(&config(bits, 32)).unwrap();
        }
        let refused = |field: &str, value: Value| {
            let mut wrong = config(Bits::Four, 32);
            match wrong.get(field) {
                Some(_) => wrong[field] = value,
                None => wrong["config_groups"]["group_0"]["weights"][field] = value,
            }
            check(&wrong).unwrap_err()
        };
        assert_eq!(
            refused("quant_method", json!("gptq")),
            "quant_method is \"gptq\", supported is \"compressed-tensors\""
        );
        assert_eq!(refused("symmetric", json!(false)), "symmetric is false, supported is true");
        assert_eq!(refused("num_bits", json!(8)), "num_bits is 8, supported is 4");
        for (field, value) in [
            ("format", json!("float-quantized")),
            ("type", json!("float")),
            ("strategy", json!("tensor")),
            ("actorder", json!("group")),
            ("kv_cache_scheme", json!({"num_bits": 8})),
        ] {
            assert!(refused(field, value).contains(field));
        }
    }
}
