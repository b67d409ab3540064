# ruff: noqa: RUF001 (text as annotators write it: full-width signs and letters)
"""A tiny corpus laid out as the ASRU 2019 code-switching data; its sound is a tone a token."""

import wave

import numpy as np

PART = "200小时中英混读手机采集语音数据"
TRAIN = f"{PART}/data/category/{{speaker}}/session01/{{name}}"
DEV = "ASRU100-fixed-dev/data/category/{speaker}/session01/{name}"
TEST = "release/wav/{name}"

#: Name of the recording -> what its transcript says, as Datatang's annotators write.
SENTENCES = {
    TRAIN: {
        "T0001G0001_S01010001": "我在meeting room里[N]",
        "T0001G0001_S01010002": "你的PPT很good，ok？",
        "T0001G0001_S01010003": "我要去KTV唱K歌",
        "T0001G0002_S01010001": "今天的weather很好",
        "T0001G0002_S01010002": "Let’s go，我很忠心[S]",
        "T0001G0002_S01010003": "元旦在room里meeting",
        "T0001G0002_S01010004": "[N]",
    },
    DEV: {
        "T0392G0476_S01010001": "我在KTV",
        "T0392G0476_S01010002": "你很good",
        "T0392G0477_S01010001": "今天meeting",
    },
    TEST: {
        "T0500G0900_S01010001": "我去meeting room",
        "T0500G0900_S01010002": "weather很好，Ok",
        "T0500G0901_S01010001": "K歌要早",
    },
}

#: What of it is spoken, and in which order the recipe knows it.
SPOKEN = {
    "train": {
        "G0001-T0001G0001_S01010001": "我 在 meeting room 里",
        "G0001-T0001G0001_S01010002": "你 的 ppt 很 good ok",
        "G0001-T0001G0001_S01010003": "我 要 去 ktv 唱 k 歌",
        "G0002-T0001G0002_S01010001": "今 天 的 weather 很 好",
        "G0002-T0001G0002_S01010002": "let's go 我 很 忠 心",
        "G0002-T0001G0002_S01010003": "元 旦 在 room 里 meeting",
    },
    "dev": {
        "G0476-T0392G0476_S01010001": "我 在 ktv",
        "G0476-T0392G0476_S01010002": "你 很 good",
        "G0477-T0392G0477_S01010001": "今 天 meeting",
    },
    "test": {
        "G0900-T0500G0900_S01010001": "我 去 meeting room",
        "G0900-T0500G0900_S01010002": "weather 很 好 ok",
        "G0901-T0500G0901_S01010001": "k 歌 要 早",
    },
}
MANDARIN = sorted({c for text in SPOKEN["train"].values() for c in text if c > "一"})


def write_corpus(corpus):
    """Writes all parts: the test set with a table of transcripts, the others with one a file."""
    for pattern, sentences in SENTENCES.items():
        for name, text in sentences.items():
            stem = corpus / pattern.format(speaker=name[5:10], name=name)
            stem.parent.mkdir(parents=True, exist_ok=True)
            write_tones(stem.with_suffix(".wav"), text)
            if pattern != TEST:
                stem.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    table = "".join(f"{name}.wav {text}\n" for name, text in SENTENCES[TEST].items())
    (corpus / "release" / "ASRU_test-text.txt").write_text(table, encoding="utf-8")
    for text in (corpus / PART / "readme.txt", corpus / PART / "T0001G0001_S01010001_notes.txt"):
        text.write_text("what is not a transcript is left alone")
    return corpus


def write_tones(path, text, seconds=0.1, rate=16000, channels=1):
    time = np.arange(int(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * (200 + 37 * (ord(letter) % 97)) * time) for letter in text]
    samples = (8000 * np.concatenate(tones)).astype("<i2")
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, 2, rate, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
