"""Emotion in conversation: a LLaMA that fits in your process.

    import dialoguellm as dllm

    with dllm.Model("model") as model, model.classifier("adapter") as classifier, classifier.conversation() as talk:
        print(talk.say("Ann", "We won! What a lovely day!"))

What functions do is said in the C header, dialoguellm.h. Handles are freed by their `with` block, by close(), or with the
object. The library releases the GIL: calls of several threads run side by side.
"""

from __future__ import annotations

import ctypes as c
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _c
from ._c import Error, call, lib, new

__all__ = [
    "Adapter", "Cancel", "Classifier", "Conversation", "Dataset", "Error", "Event", "Model", "Runtime", "Trainer", "Turn",
    "estimate", "import_gguf", "merge", "paired_bootstrap", "quantize", "version",
]  # fmt: skip

_Path = str | os.PathLike[str]
_DEVICES = {"auto": 0, "cpu": 1, "cuda": 2}
_PRECISIONS = {"bf16": 0, "f32": 1, "int8": 2, "int4": 3}


def version() -> str:
    """The library's version."""
    return lib.dllm_version().decode()


def _path(path: _Path) -> bytes:
    return os.fsencode(path)


def _one_of(known: Mapping[str, int], name: str, what: str) -> int:
    if name not in known:
        raise ValueError(f"{what} is {name!r}, must be one of {', '.join(known)}")
    return known[name]


class _Handle:
    """Owns one handle of the library's."""

    _kind: str

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def close(self) -> None:
        """Frees the handle; what was made from it keeps its own hold."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle:
            getattr(lib, f"dllm_{self._kind}_free")(handle)

    def __enter__(self):  # noqa: ANN204
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if lib is not None:
            self.close()


def _made(name: str, *arguments: object) -> int | None:
    out = c.c_void_p()
    call(name, *arguments, c.byref(out))
    return out.value


def _of(handle: _Handle | None) -> int | None:
    return None if handle is None else handle._handle


class Cancel(_Handle):
    """A request to stop, from any thread."""

    _kind = "cancel"

    def __init__(self) -> None:
        super().__init__(_made("cancel_new"))

    def set(self) -> None:
        lib.dllm_cancel_set(self._handle)

    def clear(self) -> None:
        lib.dllm_cancel_clear(self._handle)

    @property
    def is_set(self) -> bool:
        return bool(lib.dllm_cancel_is_set(self._handle))


class Runtime(_Handle):
    """Threads and device that models share. `log` hears lines, on the thread that calls the library."""

    _kind = "runtime"

    def __init__(self, threads: int = 0, device: str = "auto", log: Callable[[str], object] | None = None) -> None:
        options = new(_c.RuntimeOptions, threads=threads, device=_one_of(_DEVICES, device, "device"))
        if log is not None:
            self._log = _c.LOG_FN(lambda _, line: log(line.decode()))
            options.log = c.cast(self._log, c.c_void_p)
        super().__init__(_made("runtime_new", c.byref(options)))


@dataclass(frozen=True)
class Turn:
    """A turn of a dialogue."""

    speaker: str
    text: str
    visual: str | None = None
    emotion: str | None = None

    def _c(self) -> _c.Turn:
        return _c.Turn(*(_c.text_of(text) for text in (self.speaker, self.text, self.visual, self.emotion)))


def _turn(turn: Turn | tuple[str, str]) -> Turn:
    return turn if isinstance(turn, Turn) else Turn(*turn)


def _strs(texts: Iterable[str]) -> Any:
    texts = [_c.text_of(text) for text in texts]
    return (_c.Str * len(texts))(*texts)


class Model(_Handle):
    """Weights and tokenizer; immutable, for any number of threads at once."""

    _kind = "model"

    def __init__(
        self,
        dir: _Path,
        runtime: Runtime | None = None,
        precision: str = "bf16",
        cancel: Cancel | None = None,
        map: bool = True,
    ) -> None:
        options = new(_c.ModelOptions, precision=_one_of(_PRECISIONS, precision, "precision"), no_map=not map)
        self._runtime = runtime  # its log must live as long
        super().__init__(_made("model_open", _of(runtime), _path(dir), c.byref(options), _of(cancel)))

    @property
    def info(self) -> dict[str, Any]:
        return json.loads(_c.taken(c.c_void_p(_made("model_info", self._handle))))

    @property
    def vocab_size(self) -> int:
        return lib.dllm_model_vocab_size(self._handle)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        data, n = text.encode(), c.c_size_t()
        call("model_tokenize", self._handle, data, len(data), special, None, 0, c.byref(n))
        ids = (c.c_uint32 * n.value)()
        if n.value:
            call("model_tokenize", self._handle, data, len(data), special, ids, n.value, c.byref(n))
        return list(ids)

    def detokenize(self, ids: Iterable[int], skip_special: bool = True) -> str:
        ids = list(ids)
        array = (c.c_uint32 * len(ids))(*ids)
        return _c.taken(c.c_void_p(_made("model_detokenize", self._handle, array, len(ids), skip_special)))

    def logits(self, ids: Iterable[int], adapter: Adapter | None = None, cancel: Cancel | None = None) -> Any:
        """What comes after `ids`: a ctypes array of floats, which numpy.frombuffer takes without a copy."""
        ids = list(ids)
        array, logits = (c.c_uint32 * len(ids))(*ids), (c.c_float * self.vocab_size)()
        call("model_logits", self._handle, _of(adapter), array, len(ids), _of(cancel), logits, len(logits))
        return logits

    def score(self, prompt: str, continuations: Iterable[str], adapter: Adapter | None = None, cancel: Cancel | None = None) -> list[float]:
        """Log-probabilities of continuations."""
        data, texts = prompt.encode(), _strs(continuations)
        scores = (c.c_double * len(texts))()
        call("model_score", self._handle, _of(adapter), data, len(data), texts, len(texts), _of(cancel), scores)
        return list(scores)

    def generate(
        self,
        prompt: str,
        on_text: Callable[[str], object] | None = None,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stops: Iterable[str] = (),
        chat: bool = False,
        system: str | None = None,
        beams: int = 1,
        adapter: Adapter | None = None,
        cancel: Cancel | None = None,
    ) -> str:
        """The prompt's continuation. `on_text` hears it piece by piece and ends it by returning False. With `chat` the prompt is
        a message in the model's own chat format, behind a `system` message if there is one. More than one of `beams` find the
        likeliest text as a whole, which `on_text` hears at once, instead of drawing token by token."""
        stops = _strs(stops)
        options = new(
            _c.GenerateOptions, max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            repetition_penalty=repetition_penalty, seed=seed, stops=c.cast(stops, c.c_void_p), n_stops=len(stops), chat=chat,
            system=system.encode() if system is not None else None, beams=beams,
        )  # fmt: skip
        raised: list[BaseException] = []

        def hear(_: object, data: int, length: int) -> int:
            try:
                return int(on_text(c.string_at(data, length).decode()) is False)  # type: ignore[misc]
            except BaseException as error:  # it must not cross the library
                raised.append(error)
                return 1

        data, out = prompt.encode(), c.c_void_p()
        hearer = _c.TEXT_FN(hear) if on_text else _c.TEXT_FN(0)
        arguments = [self._handle, _of(adapter), data, len(data), c.byref(options), _of(cancel), hearer, None]
        call("model_generate", *arguments, c.byref(out))
        text = _c.taken(out)
        if raised:
            raise raised[0]
        return text

    def adapter(self, dir: _Path) -> Adapter:
        """The adapter of a PEFT folder."""
        return Adapter(_made("adapter_open", self._handle, _path(dir)))

    def classifier(
        self,
        dir: _Path | None = None,
        *,
        labels: Iterable[str] = (),
        words: Iterable[str] | None = None,
        template: str | None = None,
        window: int | None = None,
        adapter: Adapter | None = None,
    ) -> Classifier:
        """The classifier that the folder `dir` describes; without one, of labels and a template of one's own."""
        if dir is not None:
            return Classifier(_made("classifier_open", self._handle, _path(dir)))
        labels = list(labels)
        names, spoken = _strs(labels), _strs(words) if words is not None else None
        if spoken is not None and len(spoken) != len(labels):
            raise ValueError(f"{len(labels)} labels and {len(spoken)} words for them")
        options = new(_c.ClassifierOptions, template_text=template.encode() if template else None)
        if labels:
            options.labels, options.n_labels = c.cast(names, c.c_void_p), len(labels)
        if spoken is not None:
            options.words = c.cast(spoken, c.c_void_p)
        if window is not None:
            options.window = window + 1
        return Classifier(_made("classifier_new", self._handle, _of(adapter), c.byref(options)))

    def trainer(
        self,
        train: Dataset,
        dev: Dataset | None = None,
        recipe: str = "",
        *,
        resume: _Path | None = None,
        init_adapter: _Path | None = None,
        metrics: _Path | None = None,
        base_name: str | None = None,
        cancel: Cancel | None = None,
    ) -> Trainer:
        """A run on `train`, whose epoch `dev` chooses; `recipe` is TOML text."""
        paths = {"resume": resume, "init_adapter": init_adapter, "metrics": metrics}
        given = {name: _path(path) for name, path in paths.items() if path is not None}
        options = new(_c.TrainerOptions, base_name=base_name.encode() if base_name else None, cancel=_of(cancel), **given)
        data = recipe.encode()
        return Trainer(_made("trainer_new", self._handle, train._handle, _of(dev), data, len(data), c.byref(options)))


class Adapter(_Handle):
    """LoRA tensors; immutable, for any number of threads at once."""

    _kind = "adapter"

    @property
    def n_parameters(self) -> int:
        return lib.dllm_adapter_n_parameters(self._handle)

    def save(self, dir: _Path) -> None:
        call("adapter_save", self._handle, _path(dir))


class Dataset(_Handle):
    """Dialogues, or prompts with completions: "KIND:PATH", such as "meld:DIR" or "jsonl:FILE"; the header lists the kinds."""

    _kind = "dataset"

    def __init__(self, spec: str, split: str = "train", labels: Iterable[str] = (), cancel: Cancel | None = None) -> None:
        names = _strs(labels)
        super().__init__(_made("dataset_open", spec.encode(), split.encode(), names or None, len(names), _of(cancel)))

    @classmethod
    def parse(cls, json_lines: str, labels: Iterable[str] = (), cancel: Cancel | None = None) -> Dataset:
        """Dialogues from JSON lines in memory."""
        data, names, made = json_lines.encode(), _strs(labels), cls.__new__(cls)
        _Handle.__init__(made, _made("dataset_parse", data, len(data), names or None, len(names), _of(cancel)))
        return made

    def json_lines(self) -> str:
        """All dialogues, as parse() reads them."""
        return _c.taken(c.c_void_p(_made("dataset_json_lines", self._handle)))

    def __len__(self) -> int:
        return lib.dllm_dataset_n_dialogues(self._handle)

    def n_turns(self, dialogue: int | None = None) -> int:
        return lib.dllm_dataset_n_turns(self._handle, _c.NTS if dialogue is None else dialogue)

    def stats(self) -> dict[str, Any]:
        """Dialogues, turns, and turns of every label."""
        return json.loads(_c.taken(c.c_void_p(_made("dataset_stats", self._handle))))

    def baseline(self, judged: Dataset) -> dict[str, Any]:
        """The figures on `judged` of a bag of words that learned from this: the bar that a model has to clear."""
        return json.loads(_c.taken(c.c_void_p(_made("dataset_baseline", self._handle, judged._handle))))


def paired_bootstrap(
    n_labels: int,
    gold: Sequence[int],
    a: Sequence[int],
    b: Sequence[int],
    dialogue_turns: Sequence[int] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Weighted F1 of answers `b` minus that of `a`, its 95 % interval over resamples of whole dialogues (of single turns where
    `dialogue_turns` does not say how many each has), and the part in which `b` is not better."""
    if not len(gold) == len(a) == len(b):
        raise ValueError(f"{len(gold)} gold labels, {len(a)} and {len(b)} answers")
    numbers = [(c.c_uint32 * len(gold))(*each) for each in (gold, a, b)]
    turns = (c.c_size_t * len(dialogue_turns))(*dialogue_turns) if dialogue_turns else None
    made = _made("paired_bootstrap", n_labels, *numbers, len(gold), turns, len(dialogue_turns), resamples, seed)
    return json.loads(_c.taken(c.c_void_p(made)))


class Classifier(_Handle):
    """What names emotions; immutable, for any number of threads at once."""

    _kind = "classifier"

    @property
    def labels(self) -> list[str]:
        count = lib.dllm_classifier_n_labels(self._handle)
        return [lib.dllm_classifier_label(self._handle, label).decode() for label in range(count)]

    @property
    def temperature(self) -> float:
        return lib.dllm_classifier_temperature(self._handle)

    def _rows(self, name: str, turns: int, *arguments: object) -> list[dict[str, float]]:
        labels = self.labels
        p = (c.c_float * (turns * len(labels)))()
        call(name, self._handle, *arguments, p, len(p))
        return [dict(zip(labels, p[at : at + len(labels)])) for at in range(0, len(p), len(labels))]

    def predict(self, turns: Iterable[Turn | tuple[str, str]], cancel: Cancel | None = None) -> list[dict[str, float]]:
        """Probabilities by label of every turn of one dialogue."""
        turns = [_turn(turn)._c() for turn in turns]
        return self._rows("classifier_predict", len(turns), (_c.Turn * len(turns))(*turns), len(turns), _of(cancel))

    def predict_all(self, data: Dataset, cancel: Cancel | None = None) -> list[dict[str, float]]:
        """Probabilities by label of every turn of every dialogue."""
        return self._rows("classifier_predict_all", data.n_turns(), data._handle, _of(cancel))

    def why(
        self,
        turns: Iterable[Turn | tuple[str, str]],
        method: str = "turns",
        label: str | None = None,
        cancel: Cancel | None = None,
    ) -> dict[str, Any]:
        """What made the last turn's label (by default the likeliest): "turns" or "words" left out, or "gradients"."""
        turns = [_turn(turn)._c() for turn in turns]
        number = _c.ALL if label is None else self.labels.index(label)
        by = ["turns", "words", "gradients"].index(method)
        text = _made("classifier_why", self._handle, (_c.Turn * len(turns))(*turns), len(turns), number, by, _of(cancel))
        return json.loads(_c.taken(c.c_void_p(text)))

    def evaluate(self, data: Dataset, cancel: Cancel | None = None) -> dict[str, Any]:
        """Accuracy, F1, per label, confusion, NLL, ECE."""
        return json.loads(_c.taken(c.c_void_p(_made("classifier_evaluate", self._handle, data._handle, _of(cancel)))))

    def calibrated(self, data: Dataset, cancel: Cancel | None = None) -> Classifier:
        """The same with a temperature fitted on `data`: never those it is judged by."""
        return Classifier(_made("classifier_calibrate", self._handle, data._handle, _of(cancel)))

    def save(self, dir: _Path) -> None:
        call("classifier_save", self._handle, _path(dir))

    def conversation(self, context: int = 0, cancel: Cancel | None = None) -> Conversation:
        options = new(_c.ConversationOptions, context=context, cancel=_of(cancel))
        return Conversation(_made("conversation_new", self._handle, c.byref(options)), self.labels)

    def restore(self, saved: str, context: int = 0, cancel: Cancel | None = None) -> Conversation:
        """The conversation that save() wrote."""
        options, data, out = new(_c.ConversationOptions, context=context, cancel=_of(cancel)), saved.encode(), c.c_void_p()
        call("conversation_restore", self._handle, c.byref(options), data, len(data), c.byref(out), None)
        return Conversation(out.value, self.labels)


class Conversation(_Handle):
    """One dialogue as it happens; one call at a time."""

    _kind = "conversation"

    def __init__(self, handle: int | None, labels: list[str]) -> None:
        super().__init__(handle)
        self.labels = labels

    def add(
        self,
        turn: Turn | tuple[str, str],
        clip: _Path | None = None,
        describe: Callable[[str], str | None] | None = None,
    ) -> tuple[int, int]:
        """Listens to a turn; tokens computed, and oldest turns dropped. Where the template shows what is seen and the turn does
        not say it, `describe` is asked what there is in `clip`, once."""
        report, turn = new(_c.TurnReport), _turn(turn)._c()
        if (clip is None) != (describe is None):
            raise ValueError("clip and describe are given together")
        if clip is None or describe is None:
            call("conversation_add_turn", self._handle, c.byref(turn), c.byref(report))
            return report.computed, report.dropped
        seen: list[bytes] = []
        raised: list[BaseException] = []

        def see(_user, _turn, clip, description):
            try:
                if (text := describe(os.fsdecode(clip))) is not None:
                    seen.append(text.encode())  # stays until the call returns
                    description[0].data, description[0].len = seen[0], len(seen[0])
                return 0
            except BaseException as error:
                raised.append(error)
                return 1

        try:
            call("conversation_add_clip", self._handle, c.byref(turn), _path(clip), _c.DESCRIBE_FN(see), None, c.byref(report))
        except Error:
            if raised:
                raise raised[0] from None
            raise
        return report.computed, report.dropped

    def ask(self) -> dict[str, float]:
        """Probabilities by label of the last turn."""
        p = (c.c_float * len(self.labels))()
        call("conversation_ask", self._handle, p, len(p))
        return dict(zip(self.labels, p))

    def say(self, speaker: str, text: str) -> dict[str, float]:
        """Listens to a turn and asks about it."""
        self.add((speaker, text))
        return self.ask()

    def rollback(self, turns: int = 1) -> None:
        call("conversation_rollback", self._handle, turns)

    def save(self) -> str:
        return _c.taken(c.c_void_p(_made("conversation_save", self._handle)))

    @property
    def n_turns(self) -> int:
        return lib.dllm_conversation_n_turns(self._handle)

    @property
    def n_tokens(self) -> int:
        return lib.dllm_conversation_n_tokens(self._handle)


@dataclass(frozen=True)
class Event:
    """A step, or a dev score (`kind` "step" or "dev"); fields as dllm_train_report's."""

    kind: str
    step: int
    steps: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    linear_tokens: int
    seconds: float
    dev_score: float
    is_best: bool
    skipped: bool
    done: bool


class Trainer(_Handle):
    """An adapter that is being trained, one call at a time: for event in trainer: ..."""

    _kind = "trainer"

    def step(self) -> Event:
        """A step of the optimiser, or the dev score that is due."""
        report = new(_c.TrainReport)
        call("trainer_step", self._handle, c.byref(report))
        fields = {name: getattr(report, name) for name in Event.__dataclass_fields__ if name != "kind"}
        flags = {name: bool(fields[name]) for name in ("is_best", "skipped", "done")}
        return Event(kind=("step", "dev")[report.kind], **{**fields, **flags})

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self.step()
            yield event
            if event.done:
                return

    def save(self, dir: _Path) -> None:
        call("trainer_save", self._handle, _path(dir))

    def adapter(self) -> Adapter:
        """The adapter as it is now."""
        return Adapter(_made("trainer_adapter", self._handle))

    def finish(self, dir: _Path) -> dict[str, Any]:
        """Ends the run: `dir` becomes the folder for Model.classifier(); what the run did."""
        return json.loads(_c.taken(c.c_void_p(_made("trainer_finish", self._handle, _path(dir)))))


def estimate(dir: _Path, precision: str = "bf16") -> dict[str, int]:
    """What a model folder will need, in bytes, without opening it."""
    options = new(_c.ModelOptions, precision=_one_of(_PRECISIONS, precision, "precision"))
    report = new(_c.MemoryReport)
    call("model_estimate", _path(dir), c.byref(options), c.byref(report))
    return {name: getattr(report, name) for name in ("weights", "cache_per_token", "context")}


def _progress(hear: Callable[[int, int], object] | None) -> Any:
    return _c.PROGRESS_FN(lambda _, done, all: int(hear(done, all) is False)) if hear else _c.PROGRESS_FN(0)


def import_gguf(
    file: _Path, out: _Path, dtype: str = "bf16", on_progress: Callable[[int, int], object] | None = None, cancel: Cancel | None = None
) -> None:
    """Makes a model folder of a GGUF file."""
    kind = _one_of({"bf16": 0, "f16": 1, "f32": 2}, dtype, "dtype")
    call("import_gguf", _path(file), _path(out), kind, _progress(on_progress), None, _of(cancel))


def merge(
    model: _Path, adapter: _Path, out: _Path, on_progress: Callable[[int, int], object] | None = None, cancel: Cancel | None = None
) -> None:
    """Makes a model folder of a model with an adapter merged into it."""
    call("merge", _path(model), _path(adapter), _path(out), _progress(on_progress), None, _of(cancel))


def quantize(
    model: _Path, out: _Path, bits: int = 8, on_progress: Callable[[int, int], object] | None = None, cancel: Cancel | None = None
) -> None:
    """Makes a smaller copy of a model: linear maps in whole numbers of 8 or 4 bits."""
    call("quantize", _path(model), _path(out), bits, _progress(on_progress), None, _of(cancel))
