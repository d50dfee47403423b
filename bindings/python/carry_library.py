"""Puts the library that DLLM_LIBRARY names (default: cargo's release build) into the wheel, and its platform into the tag."""

import os
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CarryLibrary(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        library = Path(os.environ.get("DLLM_LIBRARY") or Path(self.root) / "../../target/release/libdialoguellm.so")
        if not library.exists():
            raise FileNotFoundError(f"{library} is not there: cargo build --release makes it, or name one in DLLM_LIBRARY")
        build_data["force_include"][str(library.resolve())] = "dialoguellm/libdialoguellm.so"
        build_data["pure_python"] = False
        # the oldest glibc whose symbols the library uses
        build_data["tag"] = "py3-none-manylinux_2_34_x86_64"
