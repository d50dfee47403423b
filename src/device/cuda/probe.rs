//! Whether there is a GPU to compute on, and if not, why: a sentence, never a panic and never a line on the screen.

use super::driver;
use std::panic::catch_unwind;

/// The driver's version that the bindings are made for. Kernels compiled ahead of time need it; compiled at run time by
/// an older toolkit they run on older drivers too, so what is required is [`OLDEST`].
const OLDEST: u32 = 12_000;

/// The driver's version, where there are a driver and a GPU.
pub(super) fn probe() -> Result<u32, String> {
    // SAFETY: opening a library runs its initialisers; the driver's are made for that.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("there is no NVIDIA driver (libcuda.so.1) on this machine".to_owned());
    }
    // a driver without one of the functions makes the binding panic
    let answer = catch_unwind(|| {
        let version = driver::version().map_err(|error| error.to_string())?;
        if version < OLDEST {
            let (has, needs) = (shown(version), shown(OLDEST));
            return Err(format!("the NVIDIA driver is for CUDA {has}, {needs} or newer is needed"));
        }
        let count = driver::device_count().map_err(|error| error.to_string())?;
        if count == 0 { Err("the NVIDIA driver finds no GPU".to_owned()) } else { Ok(version) }
    });
    answer.unwrap_or_else(|_| Err("the NVIDIA driver lacks functions that are needed".to_owned()))
}

/// 13.0 of 13000.
pub(super) fn shown(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_reason_is_a_sentence() {
        if let Err(reason) = probe() {
            assert!(reason.contains("driver"), "{reason}");
        }
    }

    #[test]
    fn versions_are_shown_as_people_write_them() {
        assert_eq!([shown(13000), shown(12080)], ["13.0", "12.8"]);
    }
}
