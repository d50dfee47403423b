//! Structs that grow: their size is their first field, and what is not there is zero.

use crate::{Error, Result};
use std::mem::MaybeUninit;

/// Options and reports of any version.
///
/// # Safety
/// `repr(C)`; a `u32` of the struct's size is first; every bit pattern is a value; no padding.
pub(super) unsafe trait Growing: Copy {
    /// What it is called in errors.
    const NAME: &'static str;
    fn set_size(&mut self, bytes: u32);
    /// Where its fields begin.
    fn starts() -> &'static [usize];
}

/// More is no size but what happened to be in memory.
const LARGEST: usize = 4096;

/// All fields zero.
pub(super) fn zeroed<T: Growing>() -> T {
    // SAFETY: every bit pattern is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The size that the caller's version of the struct has.
///
/// # Safety
/// A struct of any version.
unsafe fn size<T: Growing>(at: *const T) -> Result<usize> {
    // SAFETY: the size is first in every version.
    let size = unsafe { at.cast::<u32>().read_unaligned() } as usize;
    let (known, name) = (size_of::<T>(), T::NAME);
    // half a field is of no version
    if !(4..=LARGEST).contains(&size) || (size < known && !T::starts().contains(&size)) {
        return Err(Error::invalid(format!("{name}.struct_size is {size}; set it to sizeof({name})")));
    }
    Ok(size)
}

/// The caller's options, of an older or a newer version; NULL is all defaults.
///
/// # Safety
/// NULL or a struct of any version.
pub(super) unsafe fn read<T: Growing>(at: *const T) -> Result<T> {
    let mut ours = zeroed::<T>();
    if at.is_null() {
        return Ok(ours);
    }
    let known = size_of::<T>();
    // SAFETY: as many bytes as the caller says there are, and no more than there is room for.
    unsafe {
        let theirs = size(at)?;
        std::ptr::copy_nonoverlapping(at.cast::<u8>(), (&raw mut ours).cast::<u8>(), theirs.min(known));
        if let Some(at) = (known..theirs).find(|&i| *at.cast::<u8>().add(i) != 0) {
            let text = format!(
                "{} has a value at byte {at}, this library knows {known}: it is older than your header",
                T::NAME
            );
            return Err(Error::unsupported(text));
        }
    }
    Ok(ours)
}

/// Writes a report as far as the caller's version of it goes; NULL: nobody wants it.
///
/// # Safety
/// NULL or a struct of any version.
pub(super) unsafe fn write<T: Growing>(at: *mut T, mut value: T) -> Result<()> {
    if at.is_null() {
        return Ok(());
    }
    // SAFETY: as many bytes as the caller says there are.
    unsafe {
        let theirs = size(at)?;
        value.set_size(theirs as u32);
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), at.cast::<u8>(), theirs.min(size_of::<T>()));
    }
    Ok(())
}

/// A struct's name and size, and its fields' names, offsets and sizes.
pub(super) type Layout = (&'static str, usize, Vec<(&'static str, usize, usize)>);

/// Every struct that C sees.
fn layout() -> Vec<Layout> {
    vec![
        super::dllm_str::layout(),
        super::dllm_turn::layout(),
        super::dllm_runtime_options::layout(),
        super::dllm_model_options::layout(),
        super::dllm_memory_report::layout(),
        super::dllm_generate_options::layout(),
        super::dllm_classifier_options::layout(),
        super::dllm_conversation_options::layout(),
        super::dllm_turn_report::layout(),
        super::dllm_trainer_options::layout(),
        super::dllm_train_report::layout(),
    ]
}

/// [`layout`] as text.
pub(super) fn layout_text() -> String {
    let field = |name: &str, (field, offset, bytes): (&str, usize, usize)| format!("{name}.{field} {offset} {bytes}\n");
    let all = layout().into_iter().map(|(name, size, fields)| {
        let fields: String = fields.into_iter().map(|at| field(name, at)).collect();
        format!("{name} {size}\n{fields}")
    });
    all.collect()
}

/// Says where the fields of structs lie, and for growing ones that they are as [`Growing`] wants them.
macro_rules! described {
    ($type:ident { $($field:ident),* }) => {
        impl $type {
            pub(super) fn layout() -> $crate::capi::options::Layout {
                let zero = std::mem::MaybeUninit::<Self>::zeroed();
                // SAFETY: zero is a value of every field: numbers, addresses, optional functions.
                let zero = unsafe { zero.assume_init() };
                let fields = vec![$((stringify!($field), std::mem::offset_of!($type, $field), size_of_val(&zero.$field))),*];
                (stringify!($type), size_of::<Self>(), fields)
            }
        }
    };
    (growing $type:ident { $($field:ident),* }) => {
        described!($type { struct_size, $($field),* });
        // SAFETY: repr(C) with the size first, and only numbers, addresses and optional functions; `layout`'s test finds padding.
        unsafe impl $crate::capi::options::Growing for $type {
            const NAME: &'static str = stringify!($type);
            fn set_size(&mut self, bytes: u32) {
                self.struct_size = bytes;
            }
            fn starts() -> &'static [usize] {
                &[$(std::mem::offset_of!($type, $field)),*]
            }
        }
    };
}
pub(super) use described;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_struct_has_padding_and_fields_follow_each_other() {
        for (name, size, fields) in layout() {
            let mut end = 0;
            for (field, offset, bytes) in fields {
                assert_eq!(offset, end, "{name}.{field}");
                end = offset + bytes;
            }
            assert_eq!(end, size, "{name}");
        }
    }

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct two {
        struct_size: u32,
        first: u32,
        second: u64,
    }
    described!(growing two { first, second });

    #[test]
    fn a_layout_is_where_the_fields_are() {
        assert_eq!(two::layout(), ("two", 16, vec![("struct_size", 0, 4), ("first", 4, 4), ("second", 8, 8)]));
    }

    #[test]
    fn a_shorter_struct_ends_in_defaults_and_a_longer_one_in_zeros() {
        let whole = [two { struct_size: 8, first: 7, second: 9 }; 2];
        // SAFETY: structs of the sizes that they say.
        unsafe {
            assert_eq!(read(&whole[0]).unwrap(), two { struct_size: 8, first: 7, second: 0 });
            assert_eq!(read::<two>(std::ptr::null()).unwrap(), two { struct_size: 0, first: 0, second: 0 });
            let longer = [two { struct_size: 32, first: 1, second: 2 }, two { struct_size: 0, first: 0, second: 0 }];
            assert_eq!(read(&longer[0]).unwrap().second, 2);
            let tail = [longer[0], two { struct_size: 0, first: 3, second: 0 }];
            let error = read(&tail[0]).unwrap_err();
            assert!(error.code() == crate::Code::Unsupported && error.text().contains("byte 20"), "{error}");
            for size in [0, 2, 6, 12, 5000] {
                let error = read(&two { struct_size: size, first: 0, second: 0 }).unwrap_err();
                assert!(error.text().contains("sizeof(two)"), "{size}: {error}");
            }
        }
    }

    #[test]
    fn a_report_is_written_no_further_than_the_caller_has_room() {
        let mut room = two { struct_size: 8, first: 0, second: 5 };
        // SAFETY: a struct of the size that it says.
        unsafe { write(&mut room, two { struct_size: 0, first: 4, second: 6 }).unwrap() };
        assert_eq!(room, two { struct_size: 8, first: 4, second: 5 });
    }
}
