#!/bin/sh
# Proves that the kernels' NEON forms are right: builds the kernels crate's tests for aarch64 and runs them under
# qemu's user mode, with arguments passed on to the tests. Exit 77: a tool is missing, nothing was tested.
#
# On Debian 12:
#   dpkg --add-architecture arm64 && apt-get update
#   apt-get install rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu qemu-user-static
set -eu
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

# The default compiler if it has the target's standard library, else the distribution's.
for rustc in "${RUSTC:-rustc}" /usr/bin/rustc; do
    libdir=$("$rustc" --print target-libdir --target $target 2>/dev/null) || continue
    ls "$libdir"/libstd-*.rlib >/dev/null 2>&1 && break
    libdir=
done
missing=
[ -n "${libdir:-}" ] || missing="$missing the Rust standard library for $target,"
command -v aarch64-linux-gnu-gcc >/dev/null || missing="$missing aarch64-linux-gnu-gcc,"
command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-aarch64-static,"
if [ -n "$missing" ]; then
    echo "neon.sh: skipped, missing:${missing%,} (see the head of this script)" >&2
    exit 77
fi

export RUSTC="$rustc"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Static: the loader of the cross compiler beside the C library of another package hangs in pthread_create.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static -D warnings"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu max"
# A folder of its own: two compilers must not share one. The CUDA tests interpret PTX, which no NEON form is in, and the
# host's own run has them; under qemu they would take an hour.
exec cargo test -p dialoguellm-kernels --lib --target $target --target-dir target/neon -- --skip ::cuda:: "$@"
