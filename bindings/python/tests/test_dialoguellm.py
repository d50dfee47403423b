"""One fact a test, named as a sentence. DLLM_LIBRARY names the library, DLLM_TINY the tiny model's folder, DLLM_BITS the
probability bits that every language gets with DLLM_ISA=portable."""

import os
import struct
import tempfile
import threading
import unittest
from pathlib import Path

import dialoguellm as dllm

TINY = os.environ.get("DLLM_TINY") or Path(__file__).parents[3] / "examples/tiny/model"
DATA = """{"turns":[{"speaker":"Ann","text":"We won!","emotion":"joy"},{"speaker":"Bo","text":"Leave me alone.","emotion":"anger"}]}
{"turns":[{"speaker":"Cy","text":"Oh! What was that?","emotion":"surprise"}]}
"""
RECIPE = "[lora]\nrank = 2\n[train]\nepochs = 2\nbatch = 1\n"


class Facts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = dllm.Model(TINY, dllm.Runtime(threads=2, device="cpu"))

    def test_a_turn_is_the_same_alone_and_in_a_conversation(self):
        with self.model.classifier() as classifier, classifier.conversation() as talk:
            alone = classifier.predict([("Ann", "We won!"), dllm.Turn("Bo", "Leave me alone.")])
            self.assertEqual(talk.say("Ann", "We won!"), alone[0])
            self.assertEqual(talk.say("Bo", "Leave me alone."), alone[1])
            self.assertAlmostEqual(sum(alone[0].values()), 1, places=5)
            self.assertEqual(list(alone[0]), classifier.labels)
            if bits := os.environ.get("DLLM_BITS"):
                got = [struct.pack(">f", p).hex() for p in alone[1].values()]
                self.assertEqual(got, Path(bits).read_text().split())
            saved = talk.save()
            talk.rollback()
            self.assertEqual((talk.n_turns, talk.ask()), (1, alone[0]))
            self.assertEqual(classifier.restore(saved).ask(), alone[1])

    def test_what_is_seen_is_asked_once_and_what_is_raised_goes_through(self):
        with self.model.classifier() as classifier, classifier.conversation() as talk, classifier.conversation() as told:
            asked = []
            talk.add(("Ann", "We won!"), Path("clip.mp4"), lambda clip: asked.append(clip) or "Ann jumps.")
            talk.add(("Bo", "Leave me alone."), "clip.mp4", lambda clip: None)
            told.add(dllm.Turn("Ann", "We won!", visual="Ann jumps."))
            told.add(("Bo", "Leave me alone."))
            self.assertEqual((asked, talk.ask()), (["clip.mp4"], told.ask()))

            def fail(clip):
                raise KeyError(clip)

            with self.assertRaises(KeyError):
                talk.add(("Ann", "Why?"), "broken", fail)
            with self.assertRaises(ValueError):
                talk.add(("Ann", "Why?"), "clip.mp4")
            self.assertEqual(talk.n_turns, 2)

    def test_data_are_counted_judged_and_compared(self):
        data = dllm.Dataset.parse(DATA)
        self.assertEqual(data.stats(), {"dialogues": 2, "turns": 3, "labels": {"anger": 1, "joy": 1, "surprise": 1}})
        lines = data.json_lines()
        self.assertEqual(dllm.Dataset.parse(lines, ["joy", "anger", "surprise"]).json_lines(), lines)
        with self.assertRaises(dllm.Error):
            dllm.Dataset.parse(lines, ["joy"])
        self.assertEqual(data.baseline(data)["accuracy"], 1)
        said = dllm.paired_bootstrap(2, [0, 1, 1], [0, 0, 0], [0, 1, 1], dialogue_turns=[2, 1], resamples=100)
        self.assertGreater(said["difference"], 0.5)
        self.assertEqual(set(said), {"difference", "low", "high", "not_better"})

    def test_a_failure_is_raised_with_status_and_sentence(self):
        with self.assertRaises(dllm.Error) as raised:
            dllm.Model("no/such/folder")
        self.assertEqual(raised.exception.status, "NOT_FOUND")
        self.assertIn("no/such/folder", str(raised.exception))
        with self.assertRaises(ValueError):
            dllm.Runtime(device="tpu")
        with self.assertRaises(ValueError):
            self.model.classifier(labels=["joy", "fear"], words=["glad"])

    def test_text_is_streamed_and_ended_and_what_is_raised_goes_through(self):
        pieces = []
        whole = self.model.generate("Ann: We", pieces.append, max_tokens=8)
        self.assertEqual("".join(pieces), whole)
        self.assertEqual(self.model.generate("Ann: We", lambda piece: False, max_tokens=8), pieces[0])

        def fail(piece):
            raise KeyError(piece)

        with self.assertRaises(KeyError):
            self.model.generate("Ann: We", fail)
        pieces.clear()
        best = self.model.generate("Ann: We", pieces.append, max_tokens=8, beams=3)
        self.assertEqual(pieces, [best])
        chat = self.model.generate("We won!", max_tokens=8, chat=True, system="Be kind.")
        plain = "System: Be kind.\nUser: We won!\nAssistant:"  # as the tiny model's template has it
        self.assertEqual(self.model.generate(plain, max_tokens=8), chat)
        self.assertEqual(self.model.detokenize(self.model.tokenize("We won!")), "We won!")
        self.assertEqual(len(self.model.logits([1, 2])), self.model.vocab_size)
        self.assertEqual(len(self.model.score("Is it?", [" yes", " no"])), 2)

    def test_training_is_a_loop_and_resumes_to_the_same_bits(self):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            data = dllm.Dataset.parse(DATA)
            self.assertEqual((len(data), data.n_turns(), data.n_turns(0)), (2, 3, 2))
            whole = self.model.trainer(data, data, RECIPE)
            events = list(whole)
            self.assertEqual([event.kind for event in events], ["step", "step", "dev", "step", "step", "dev"])
            self.assertEqual(whole.finish(work / "whole")["steps"], 4)
            first = self.model.trainer(data, data, RECIPE)
            first.step()
            first.save(work / "stopped")
            second = self.model.trainer(data, data, RECIPE, resume=work / "stopped", metrics=work / "metrics.jsonl")
            self.assertTrue(list(second)[-1].done)
            second.finish(work / "resumed")
            predict = lambda name: self.model.classifier(work / name).predict_all(data)  # noqa: E731
            self.assertEqual(predict("whole"), predict("resumed"))
            trained = self.model.classifier(work / "whole")
            self.assertIn("weighted_f1", trained.evaluate(data))
            for method in ["turns", "words", "gradients"]:
                why = trained.why([("Ann", "We won!"), ("Bo", "I see")], method, trained.labels[0])
                self.assertEqual((why["turn"], why["label"], "integral" in why), (1, trained.labels[0], method == "gradients"))
            self.assertGreater(trained.calibrated(data).temperature, 0)
            dllm.merge(TINY, work / "whole", work / "merged")
            self.assertEqual(dllm.Model(work / "merged").classifier(work / "merged").labels, trained.labels)
            heard = []
            dllm.quantize(work / "merged", work / "small", 4, on_progress=lambda done, all: heard.append((done, all)))
            self.assertEqual(heard, [(done, 28) for done in range(29)])
            self.assertEqual(dllm.Model(work / "small").classifier(work / "small").labels, trained.labels)
            self.assertEqual(dllm.Model(TINY, precision="int8").info["precision"], "int8")

    def test_a_cancel_from_another_thread_ends_a_call(self):
        cancel = dllm.Cancel()
        trainer = self.model.trainer(dllm.Dataset.parse(DATA), recipe="[train]\nepochs = 1000000\n", cancel=cancel)
        threading.Timer(0.05, cancel.set).start()
        with self.assertRaises(dllm.Error) as raised:
            for _ in trainer:
                pass
        self.assertEqual(raised.exception.status, "CANCELLED")

    def test_the_log_and_the_memory_are_told(self):
        lines = []
        runtime = dllm.Runtime(threads=1, device="cpu", log=lines.append)
        dllm.Model(TINY, runtime)
        self.assertIn("cpu", lines[0])
        self.assertGreater(dllm.estimate(TINY)["weights"], 100_000)
        self.assertEqual(self.model.info["shape"]["layers"], 4)


if __name__ == "__main__":
    unittest.main()
