"""The C interface by ctypes: structs, functions, errors. Checked against the library when it is loaded."""

from __future__ import annotations

import ctypes as c
import ctypes.util
import os
from pathlib import Path

ABI_VERSION = 1
NTS = 2**64 - 1
ALL = 2**64 - 1

_TYPES = {"u32": c.c_uint32, "u64": c.c_uint64, "f32": c.c_float, "f64": c.c_double, "ptr": c.c_void_p, "str": c.c_char_p}


class Str(c.Structure):
    _fields_ = [("data", c.c_char_p), ("len", c.c_uint64)]


class Turn(c.Structure):
    _fields_ = [(name, Str) for name in ("speaker", "text", "visual", "emotion")]


def _struct(name: str, fields: str) -> type[c.Structure]:
    pairs = (field.split(":") for field in fields.split())
    return type(name, (c.Structure,), {"_fields_": [("struct_size", c.c_uint32)] + [(n, _TYPES[t]) for n, t in pairs]})


RuntimeOptions = _struct("RuntimeOptions", "threads:u32 device:u32 reserved:u32 log:ptr log_user:ptr")
ModelOptions = _struct("ModelOptions", "precision:u32 no_map:u32 reserved:u32")
MemoryReport = _struct("MemoryReport", "reserved:u32 weights:u64 cache_per_token:u64 context:u64")
GenerateOptions = _struct(
    "GenerateOptions",
    "max_tokens:u32 temperature:f32 top_p:f32 top_k:u32 repetition_penalty:f32 seed:u64 stops:ptr n_stops:u64 chat:u32 beams:u32 "
    "system:str",
)
ClassifierOptions = _struct("ClassifierOptions", "n_labels:u32 labels:ptr words:ptr template_text:str window:u64")
ConversationOptions = _struct("ConversationOptions", "reserved:u32 context:u64 cancel:ptr")
TurnReport = _struct("TurnReport", "dropped:u32 computed:u64")
TrainerOptions = _struct("TrainerOptions", "reserved:u32 resume:str init_adapter:str metrics:str base_name:str cancel:ptr")
TrainReport = _struct(
    "TrainReport",
    "kind:u32 step:u64 steps:u64 epoch:u64 loss:f64 grad_norm:f64 learning_rate:f64 tokens:u64 linear_tokens:u64 "
    "seconds:f64 dev_score:f64 is_best:u32 skipped:u32 done:u32 reserved:u32",
)

STRUCTS = {
    "dllm_str": Str, "dllm_turn": Turn, "dllm_runtime_options": RuntimeOptions, "dllm_model_options": ModelOptions,
    "dllm_memory_report": MemoryReport, "dllm_generate_options": GenerateOptions,
    "dllm_classifier_options": ClassifierOptions, "dllm_conversation_options": ConversationOptions,
    "dllm_turn_report": TurnReport, "dllm_trainer_options": TrainerOptions, "dllm_train_report": TrainReport,
}  # fmt: skip

TEXT_FN = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p, c.c_size_t)
DESCRIBE_FN = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_void_p, c.c_char_p, c.POINTER(Str))
PROGRESS_FN = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint64, c.c_uint64)
LOG_FN = c.CFUNCTYPE(None, c.c_void_p, c.c_char_p)

_h, _s, _n, _u, _o = c.c_void_p, c.c_char_p, c.c_size_t, c.c_uint32, c.POINTER(c.c_void_p)

# Functions that answer a status; each takes a `dllm_error **` last, which `call` adds.
CALLS = {
    "cancel_new": [_o], "runtime_new": [_h, _o], "model_open": [_h, _s, _h, _h, _o], "model_info": [_h, _o],
    "model_estimate": [_s, _h, _h], "model_tokenize": [_h, _s, _n, _u, _h, _n, c.POINTER(_n)],
    "model_detokenize": [_h, _h, _n, _u, _o], "model_logits": [_h, _h, _h, _n, _h, _h, _n],
    "model_score": [_h, _h, _s, _n, _h, _n, _h, _h], "model_generate": [_h, _h, _s, _n, _h, _h, TEXT_FN, _h, _o],
    "adapter_open": [_h, _s, _o], "adapter_save": [_h, _s], "classifier_open": [_h, _s, _o],
    "classifier_new": [_h, _h, _h, _o], "classifier_predict": [_h, _h, _n, _h, _h, _n],
    "classifier_predict_all": [_h, _h, _h, _h, _n], "classifier_evaluate": [_h, _h, _h, _o],
    "classifier_why": [_h, _h, _n, _n, _u, _h, _o],
    "classifier_calibrate": [_h, _h, _h, _o], "classifier_save": [_h, _s], "conversation_new": [_h, _h, _o],
    "conversation_restore": [_h, _h, _s, _n, _o, _h], "conversation_add_turn": [_h, _h, _h],
    "conversation_add_clip": [_h, _h, _s, DESCRIBE_FN, _h, _h],
    "conversation_ask": [_h, _h, _n], "conversation_rollback": [_h, _n], "conversation_save": [_h, _o],
    "dataset_open": [_s, _s, _h, _n, _h, _o], "dataset_parse": [_s, _n, _h, _n, _h, _o],
    "dataset_stats": [_h, _o], "dataset_json_lines": [_h, _o], "dataset_baseline": [_h, _h, _o],
    "paired_bootstrap": [_n, _h, _h, _h, _n, _h, _n, _n, c.c_uint64, _o],
    "trainer_new": [_h, _h, _h, _s, _n, _h, _o], "trainer_step": [_h, _h], "trainer_save": [_h, _s],
    "trainer_adapter": [_h, _o], "trainer_finish": [_h, _s, _o], "import_gguf": [_s, _s, _u, PROGRESS_FN, _h, _h],
    "merge": [_s, _s, _s, PROGRESS_FN, _h, _h], "quantize": [_s, _s, _u, PROGRESS_FN, _h, _h],
}  # fmt: skip

# Functions that answer something else: what, and their arguments.
OTHERS = {
    "abi_version": (_u, []), "version": (_s, []), "layout": (_s, []), "status_name": (_s, [c.c_int32]),
    "error_status": (c.c_int32, [_h]), "error_message": (_s, [_h]), "string_data": (_h, [_h]), "string_len": (_n, [_h]),
    "cancel_set": (None, [_h]), "cancel_clear": (None, [_h]), "cancel_is_set": (c.c_int32, [_h]),
    "model_vocab_size": (_n, [_h]), "adapter_n_parameters": (_n, [_h]), "classifier_n_labels": (_n, [_h]),
    "classifier_label": (_s, [_h, _n]), "classifier_temperature": (c.c_double, [_h]),
    "conversation_n_turns": (_n, [_h]), "conversation_n_tokens": (_n, [_h]), "dataset_n_dialogues": (_n, [_h]),
    "dataset_n_turns": (_n, [_h, _n]),
}  # fmt: skip

HANDLES = "error string cancel runtime model adapter classifier conversation dataset trainer".split()


class Error(Exception):
    """A failure of the library: `status` is its class as a name such as "NOT_FOUND", the text its sentence."""

    def __init__(self, status: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def _find() -> str:
    named = os.environ.get("DLLM_LIBRARY")
    beside = Path(__file__).with_name("libdialoguellm.so")
    if named or beside.exists():
        return named or str(beside)
    found = ctypes.util.find_library("dialoguellm")
    if not found:
        raise ImportError("libdialoguellm.so is not in this package nor on the system; name it in DLLM_LIBRARY")
    return found


def _layout() -> str:
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f"{name} {c.sizeof(struct)}")
        for field, *_ in struct._fields_:
            at = getattr(struct, field)
            lines.append(f"{name}.{field} {at.offset} {at.size}")
    return "\n".join(lines) + "\n"


def _load() -> c.CDLL:
    library = c.CDLL(_find())
    for name, arguments in CALLS.items():
        function = getattr(library, f"dllm_{name}")
        function.restype, function.argtypes = c.c_int32, [*arguments, _o]
    for name, (result, arguments) in OTHERS.items():
        function = getattr(library, f"dllm_{name}")
        function.restype, function.argtypes = result, arguments
    for name in HANDLES:
        function = getattr(library, f"dllm_{name}_free")
        function.restype, function.argtypes = None, [_h]
    if library.dllm_abi_version() != ABI_VERSION:
        raise ImportError(f"libdialoguellm has ABI {library.dllm_abi_version()}, this package is for {ABI_VERSION}")
    theirs, ours = library.dllm_layout().decode(), _layout()
    if theirs != ours:
        differing = next(pair for pair in zip(theirs.splitlines(), ours.splitlines()) if pair[0] != pair[1])
        raise ImportError(f"libdialoguellm has {differing[0]!r}, this package {differing[1]!r}: they are of two versions")
    return library


lib = _load()


def call(name: str, *arguments: object) -> None:
    """Calls a function that answers a status; raises Error."""
    error = c.c_void_p()
    status = getattr(lib, f"dllm_{name}")(*arguments, c.byref(error))
    if status != 0:
        sentence = lib.dllm_error_message(error).decode()
        lib.dllm_error_free(error)
        raise Error(lib.dllm_status_name(status).decode(), sentence)


def taken(handle: c.c_void_p) -> str:
    """The text of a string that is handed out, which is freed."""
    text = c.string_at(lib.dllm_string_data(handle), lib.dllm_string_len(handle)).decode()
    lib.dllm_string_free(handle)
    return text


def new(struct: type[c.Structure], **fields: object) -> c.Structure:
    """A struct that knows its size."""
    return struct(struct_size=c.sizeof(struct), **fields)


def text_of(text: str | None) -> Str:
    if text is None:
        return Str(None, 0)
    data = text.encode()
    return Str(data, len(data))
