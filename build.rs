//! The shared library's name and version, which cargo sets none of.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let part = |name: &str| std::env::var(format!("CARGO_PKG_VERSION_{name}")).unwrap_or_default();
    // before 1.0 a minor version may break its callers, so it is part of the name
    let version = if part("MAJOR") == "0" { format!("0.{}", part("MINOR")) } else { part("MAJOR") };
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libdialoguellm.so.{version}");
        // its threads and thread-locals would outlive a dlclose
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
