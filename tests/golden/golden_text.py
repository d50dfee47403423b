"""Text for the tokenizer and language-model goldens: all of it written for this project or put together by rule.

STORIES is plain prose and talk (the SentencePiece and BPE vocabularies are trained on it), PROBES are single awkward
strings, mixed_text() and random_strings() make bulk by seed.
"""

import random

STORIES = [
    """the rain had stopped by the time maria reached the harbour. she put her bag down on the wet stones and looked for
the boat with the green light. there were eleven boats and none of them had a green light. "you are early," said a voice
behind her. it was the old man from the ticket office, and he was holding two cups of tea. "the ferry does not leave until
six. sit down, drink this, and tell me why you are going to the island in november of all months." she laughed, because
nobody had asked her a question all week, and because the tea was hot. "my sister lives there," she said. "we have not
spoken since 2019. yesterday she sent me a letter with only three words in it." the old man waited. "come and see," said
maria. "that is all. come and see." he nodded as if this were the most natural letter in the world.""",
    """lena: did you hear what happened at the meeting today?
tom: no, i was stuck on the train for two hours. what happened?
lena: they cancelled the whole project. just like that. nobody even said thank you.
tom: that's terrible. after all the work you did? i can't believe it.
lena: i'm not even angry any more, i'm just tired. i went home and cooked soup and i didn't answer the phone.
tom: do you want me to come over? i'll bring bread and we won't talk about it at all.
lena: yes. no. maybe. yes, please come, and don't be late this time!
tom: i'm already putting on my shoes. give me 20 minutes, or 25 if the bridge is closed again.""",
    """a kettle is a simple machine. water goes in cold and comes out hot, and between the two lies everything that a student
of heat needs to know. first the metal warms, then the water at the bottom, then small bubbles rise and vanish with a sound
like rain on a roof. the sound is loudest just before the water boils, at about 95 degrees, because the bubbles collapse in
the cooler water above them. when all of the water has reached 100 degrees the bubbles no longer collapse, and the kettle
grows quiet again. this is why people who make tea every day listen to the kettle and do not watch it.""",
    """dear mr okafor, thank you for your letter of the 14th. we are sorry that the lamp you bought from our shop stopped
working after 12 days, and that the person you spoke with on the phone was not able to help you. we have sent you a new lamp
today and you do not need to return the old one. we would be glad to hear from you if anything is wrong with it. with kind
regards, the team at north street lamps.""",
    """to make the bread, weigh 500 grams of flour, 350 grams of water, 10 grams of salt and 100 grams of the sour dough that
you have kept from the last time. mix the flour and the water and wait for half an hour. then add the salt and the dough, fold
it four times in two hours, and leave it in a cool place over night. in the morning the oven should be as hot as it can be.
the bread needs 40 minutes, and then it needs another hour on the table, which is the hardest part, because the whole house
smells of it and everybody keeps asking whether it is ready.""",
]

PROBES = [
    "", " ", "  ", "   ", "a", " a", "a ", "  a  b   c  ", "hello", "Hello, world!", " hello", "the kettle is hot",
    "The Kettle Is HOT", "come and see.", "come  and   see", "\n", "\n\n", "a\nb", "a\n\nb", "a \n b", "a\r\nb", "\t", "\tindented",
    "tab\tbetween", "trailing newline\n", "0", "7", "42", "2019", "1234567890", "3.14159", "1,000,000", "12/11/2026 at 09:05", "room 4b, 5th floor",
    "I'm, you're, he's, we'll, they'd, I've, don't", "I’m sure it’s fine", "'S 'T 'RE 'VE 'M 'LL 'D", "what?!", "...", "!!!???",
    "(a) [b] {c} <d>", "x = y + 1; // z", "e-mail: someone@example.org", "https://example.org/a?b=c&d=1", "café crème brûlée",
    "cafe\u0301", "naïve coöperation", "straße", "Ελληνικά", "Привет, мир", "שלום", "مرحبا بالعالم", "नमस्ते", "สวัสดี", "你好，世界", "今日は良い天気ですね。",
    "안녕하세요", "😀", "a😀b", "😀😀 😀", "👩‍👩‍👧‍👦 family", "👍🏽", "🇩🇪🇫🇷", "½ ² Ⅷ ٣ ५", "a\u00a0b", "a\u3000b", "a\u200bb", "a\u2028b", "\ufeffbom", "▁", "a▁b",
    "zero\u0000byte", "\u001b[0m", "\U00010348 \U0001f9ff", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Lena: don't be late!\nTom: I won't.\n",
]

SCRIPTS = {  # first and last code point
    "greek": (0x3B1, 0x3C9), "cyrillic": (0x430, 0x44F), "hebrew": (0x5D0, 0x5EA), "arabic": (0x627, 0x64A), "devanagari": (0x915, 0x939),
    "thai": (0xE01, 0xE2E), "hiragana": (0x3041, 0x3093), "katakana": (0x30A1, 0x30F3), "cjk": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3),
}
EMOJI = ["😀", "😂", "😢", "😡", "🤔", "❤️", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇯🇵", "☕", "✨", "🧿", "🤷🏿‍♀️", "1️⃣"]
CONTRACTIONS = ["I'm", "you're", "she's", "we'll", "they'd", "I've", "don't", "can't", "I’m", "it’s", "WON'T", "Y'all'd've", "'tis", "rock 'n' roll", "o'clock"]
SPACES = [" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", "\u2009"]
MARKS = [".", ",", "!", "?", "...", "—", "–", "…", ":", ";", "“", "”", "(", ")", "?!", "--", "***", "#", "@", "%", "&", "€", "£", "/", "\\"]
NAMES = ["Lena", "Tom", "Maria", "Okafor", "Jun", "Priya", "Sven", "Amal"]
FEELINGS = ["happy", "angry", "sad", "afraid", "surprised", "disgusted", "calm", "tired", "proud", "worried"]
THINGS = ["the letter", "the train", "my sister", "the old lamp", "the soup", "the meeting", "your dog", "the bridge", "a green boat", "the news"]
SAYINGS = [
    "I can't believe {t} is gone!", "Well, {t} makes me {f}, to be honest.", "Why are you so {f}? Is it {t} again?", "Did you see {t} yesterday at {n}:30?",
    "No. I'm not {f}, I'm just hungry.", "{p}, please tell me that {t} didn't cost ${n}.", "We waited {n} hours for {t}, and nobody was {f}.",
    "That's what I said in {y}: leave {t} alone.", "You look {f}. Did {t} call?", "Honestly? {p} and I were {f} about it for weeks.",
]


def words() -> list:
    return " ".join(STORIES).split()


def saying(r: random.Random) -> str:
    text = r.choice(SAYINGS).format(t=r.choice(THINGS), f=r.choice(FEELINGS), p=r.choice(NAMES), n=r.randint(2, 60), y=r.randint(1900, 2030))
    return text[0].upper() + text[1:]


def dialogue(r: random.Random, turns: int) -> str:
    return "\n".join(f"{r.choice(NAMES)}: {saying(r)}" for _ in range(turns))


def script_word(r: random.Random) -> str:
    first, last = SCRIPTS[r.choice(sorted(SCRIPTS))]
    return "".join(chr(r.randint(first, last)) for _ in range(r.randint(1, 8)))


def made_up_word(r: random.Random) -> str:
    """Syllables in the manner of English: merges that no list of real words would reach."""
    syllables = [r.choice(["b", "br", "c", "ch", "d", "f", "gr", "h", "j", "k", "l", "m", "pl", "qu", "r", "s", "st", "th", "tr", "v", "w", "x", "z", ""])
                 + r.choice(["a", "e", "i", "o", "u", "ee", "ou", "ai", "io", "y"]) + r.choice(["", "n", "r", "st", "ng", "ck", "tion", "ment", "s", "ly", "ed"])
                 for _ in range(r.randint(1, 4))]
    word = "".join(syllables)
    return r.choice([word, word, word.capitalize(), word.upper()])


def number(r: random.Random) -> str:
    return r.choice([str(r.randint(0, 10 ** r.randint(1, 12))), f"{r.random():.{r.randint(1, 9)}f}", f"{r.randint(0, 23):02}:{r.randint(0, 59):02}",
                     f"{r.randint(1, 28)}/{r.randint(1, 12)}/{r.randint(1900, 2030)}", f"{r.randint(1, 999)},{r.randint(0, 999):03}", f"-{r.randint(1, 99)}°"])


def code(r: random.Random) -> str:
    a, b = r.choice(words()).strip(".,\"?!"), r.choice(NAMES).lower()
    return r.choice([f"for {b} in range({r.randint(1, 99)}):\n    {a}_{b} += 0x{r.randint(0, 65535):04x}", f"if ({a} != NULL) {{ return {b}->{a}; }}",
                     f"<p class=\"{a}\">{b}</p>", f"{{\"{a}\": [{r.randint(0, 9)}, null], \"{b}\": -1.5e-{r.randint(1, 30)}}}", f"https://example.org/{a}/{b}?id={r.randint(1, 9999)}"])


def mixed_text(size: int, seed: int) -> str:
    """At least `size` bytes of UTF-8, ends of pieces falling anywhere: words, talk, numbers, scripts, emoji, code, spaces."""
    r = random.Random(seed)
    vocabulary, pieces, length = words(), [], 0
    makers = [lambda: r.choice(vocabulary), lambda: r.choice(vocabulary).upper(), lambda: saying(r), lambda: number(r), lambda: script_word(r),
              lambda: r.choice(EMOJI), lambda: r.choice(CONTRACTIONS), lambda: r.choice(MARKS), lambda: code(r), lambda: made_up_word(r)]
    weights = [10, 1, 3, 3, 3, 2, 3, 3, 1, 6]
    while length < size:
        piece = r.choices(makers, weights)[0]() + (" " if r.random() < 0.6 else r.choice(SPACES) if r.random() < 0.5 else "")
        pieces.append(piece)
        length += len(piece.encode())
    return "".join(pieces)


def random_character(r: random.Random) -> str:
    kind = r.random()
    if kind < 0.3:
        return chr(r.randint(0x20, 0x7E))
    if kind < 0.4:
        return r.choice(SPACES)[0]
    if kind < 0.5:
        return chr(r.randint(0, 0x2FF))
    while True:  # any code point that is not half of a surrogate pair, assigned or not
        point = r.randint(0, 0xFFFF if kind < 0.85 else 0x10FFFF)
        if not 0xD800 <= point <= 0xDFFF:
            return chr(point)


def random_strings(count: int, seed: int) -> list:
    r = random.Random(seed)
    return ["".join(random_character(r) for _ in range(r.randint(0, 32))) for _ in range(count)]
