"""Makes examples/tiny/model: a LLaMA of under a million parameters, so that tests and examples run offline in seconds.

    pip install -r ../../tests/golden/requirements.txt
    python make_tiny.py                      # writes model/ beside this script

Its only text is examples/quickstart/train.jsonl, written for this project: every dialogue as plain `Speaker: text` lines,
and every turn's question in the form of the built-in template `dialogue`, so that its labels are plausible. The held-out
dialogues are never read. One thread and fixed seeds: a second run with the same versions on the same processor gives the
same bytes.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "quickstart" / "train.jsonl"
LABELS = ["neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"]
INSTRUCTION = f"Classify the emotion of the last utterance as {', '.join(LABELS[:-1])} or {LABELS[-1]}."
END = "<|end|>"
VOCABULARY = 1024
CONTEXT = 512
EPOCHS = 16
BATCH = 16
RATE = 2e-3
IGNORED = -100
# A line per message; an answer ends where the model says END.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def line(turn):
    return f"{turn['speaker']}: {turn['text']}\n"


def question(turn):
    return f"Emotion of {turn['speaker']}:"


def prompt(turns, target, window):
    """The prompt about turns[target], as src/emotion/templates/dialogue.toml writes it."""
    shown = turns[max(0, target - window) : target + 1]
    return INSTRUCTION + "\n" + "".join(map(line, shown)) + question(turns[target])


def read_dialogues():
    return [json.loads(text)["turns"] for text in TEXT.read_text().splitlines()]


def make_tokenizer(dialogues):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = ["".join(map(line, turns)) for turns in dialogues]
    asked = [f'Emotion of {t["speaker"]}: {t["emotion"]}' for turns in dialogues for t in turns]
    tokenizer.train_from_iterator([INSTRUCTION, *plain, *asked], trainer)
    return tokenizer


def make_model(tokenizer):
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        attention_dropout=0.1,
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config)


def samples(dialogues, tokenizer, rng):
    """One epoch: every dialogue whole, and every turn asked with a random part of what was said before it."""
    end = tokenizer.token_to_id(END)
    for turns in dialogues:
        ids = tokenizer.encode("".join(map(line, turns))).ids + [end]
        yield ids, ids
        for target, turn in enumerate(turns):
            ids = tokenizer.encode(prompt(turns, target, rng.randrange(target + 1))).ids
            answer = tokenizer.encode(" " + turn["emotion"]).ids
            yield ids + answer, [IGNORED] * len(ids) + answer


def batches(dialogues, tokenizer, rng):
    """Batches of similar lengths in random order, padded at the end."""
    epoch = sorted(samples(dialogues, tokenizer, rng), key=lambda sample: len(sample[0]))
    cuts = [epoch[at : at + BATCH] for at in range(0, len(epoch), BATCH)]
    rng.shuffle(cuts)
    for cut in cuts:
        longest = max(len(ids) for ids, _ in cut)
        assert longest <= CONTEXT, "a prompt is longer than the context"
        yield (
            torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in cut]),
            torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in cut]),
        )


def train(model, dialogues, tokenizer, epochs):
    rng = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.98))
    steps = epochs * sum(1 for _ in batches(dialogues, tokenizer, random.Random(0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        started, total, count = time.time(), 0.0, 0
        for ids, labels in batches(dialogues, tokenizer, rng):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total, count = total + loss.item(), count + 1
        print(f"epoch {epoch + 1}  loss {total / count:.3f}  {time.time() - started:.0f} s", flush=True)


def write(model, tokenizer, out):
    model.config.attention_dropout = 0.0
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {"bos_token": END, "eos_token": END, "pad_token": END, "chat_template": CHAT_TEMPLATE}
    settings |= {"model_max_length": CONTEXT, "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(1)
    dialogues = read_dialogues()
    tokenizer = make_tokenizer(dialogues)
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {tokenizer.get_vocab_size()} tokens")
    train(model, dialogues, tokenizer, arguments.epochs)
    write(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
