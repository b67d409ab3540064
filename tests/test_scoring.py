# ruff: noqa: RUF001 (text as annotators write it: full-width signs and letters)
"""Mixed error rate: tokens by rule, counts by hand, by editdistance and by sclite."""

import json
import random
import re
import shutil
import subprocess
import sys
import unicodedata

import editdistance
import pytest

from espnet_bimamba import recipes, scoring
from espnet_bimamba.errors import TranscriptError
from espnet_bimamba.scoring import Counts, is_mandarin, score, tokenize

SCLITE = shutil.which("sclite") or shutil.which("sclite", path=recipes.DEBIAN_SCTK)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("我去KTV唱K歌", "我 去 ktv 唱 k 歌"),
        ("ｉ’ｍ　ＯＫ，２ 个！", "i'm ok 2 个"),
        ("i\u02bcm o\u2018clock", "i'm o'clock"),
        ("'quoted' students' rock'n'roll it´s", "quoted students rock'n'roll it s"),
        ("Wi-Fi, e.g. A&B a_b c++ 50%", "wi fi e g a b a b c 50"),
        ("100块 4S店 3.5 二〇一九 2019", "100 块 4s 店 3 5 二 〇 一 九 2019"),
        ("人人々 𠮷野家 㐀", "人 人 々 𠮷 野 家 㐀"),
        ("\ufa0e \u2f08 \uf900", "\ufa0e 人 豈"),
        ("café cafe\u0301 naïve", "café café naïve"),
        ("<NOISE> hello <unk>你", "<noise> hello <unk> 你"),
        ("한국 カラオケ ㄅㄆ", "한국 カラオケ ㄅㄆ"),
        ("，。？ ~ … — 「」", ""),
        ("हिन्दी में ไทย நன்றி", "हिन्दी में ไทย நன்றி"),
        ("meet\u200bing \ufeff我\u200d在 co\u00adop \u202aok\u202c", "meeting 我 在 coop ok"),
        ("葛\U000e0100城 ❤\ufe0f", "葛 城"),
    ],
)
def test_tokens(text, tokens):
    assert tokenize(text) == tokens.split()
    assert tokenize(" ".join(tokenize(text))) == tokenize(text)


def test_every_ideograph_of_unicode_is_a_mandarin_token():
    ideographs = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.name(chr(code), "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEO"))
    ]
    assert len(ideographs) > 90_000
    tokens = tokenize("".join(ideographs))
    assert len(tokens) == len(ideographs)
    assert all(map(is_mandarin, tokens))
    others = tokenize("a é ж あ カ 한 ㄅ 9 <unk> i'm")
    assert len(others) == 10
    assert not any(map(is_mandarin, others))


# Counts are hits, substitutions, deletions, insertions.
@pytest.mark.parametrize(
    ("reference", "hypothesis", "mandarin", "english"),
    [
        ("我在 meeting room", "我在 meeting room", (2, 0, 0, 0), (2, 0, 0, 0)),
        ("我在 meeting room", "我再 meeting", (1, 1, 0, 0), (1, 0, 1, 0)),
        ("我在 meeting", "", (0, 0, 2, 0), (0, 0, 1, 0)),
        ("", "你 ok ok", (0, 0, 0, 1), (0, 0, 0, 2)),
        # Across languages: the reference's token names the language.
        ("好 ok 好", "好 欧 好", (2, 0, 0, 0), (0, 1, 0, 0)),
        ("好 你 好", "好 you 好", (2, 1, 0, 0), (0, 0, 0, 0)),
        # An insertion has no token in the reference: the hypothesis's counts.
        ("好 好", "好 ok 好", (2, 0, 0, 0), (0, 0, 0, 1)),
        ("ok", "欧 ok", (0, 0, 0, 1), (1, 0, 0, 0)),
        ("K歌", "k 哥", (0, 1, 0, 0), (1, 0, 0, 0)),
    ],
)
def test_counts_worked_by_hand(reference, hypothesis, mandarin, english):
    result = score({"a": reference}, {"a": hypothesis})
    assert result.mandarin == Counts(*mandarin)
    assert result.english == Counts(*english)
    assert result.wrong_sentences == (tokenize(reference) != tokenize(hypothesis))


def test_rates_worked_by_hand():
    references = {"a": "我 在 meeting room", "b": "你 好", "c": "ok"}
    result = score(references, {"a": "我 再 meeting", "b": "你 们 好", "c": "ok"})
    assert result.mixed == Counts(hits=5, substitutions=1, deletions=1, insertions=1)
    assert result.mixed.rate == 3 / 7  # MER
    assert result.mandarin.rate == 2 / 4  # CER: 在 and the inserted 们
    assert result.english.rate == 1 / 3  # WER: room
    assert (result.sentences, result.wrong_sentences) == (3, 2)


def random_texts(seed, count):
    words = ["我", "在", "你", "好", "ok", "go", "meeting"]
    dice = random.Random(seed)
    texts = [" ".join(dice.choices(words, k=dice.randint(1, 9))) for _ in range(2 * count)]
    names = [f"s-{number:03d}" for number in range(count)]
    return dict(zip(names, texts, strict=False)), dict(zip(names, texts[count:], strict=True))


def test_fewest_errors_as_editdistance_counts_them_and_the_parts_add_up():
    references, hypotheses = random_texts(seed=1, count=300)
    result = score(references, hypotheses)
    fewest = sum(
        editdistance.eval(references[name].split(), hypotheses[name].split()) for name in references
    )
    assert result.mixed.errors == fewest
    assert result.mandarin.errors + result.english.errors == fewest
    words = " ".join(references.values()).split()
    assert result.mandarin.tokens == sum(len(word) == 1 for word in words)
    assert result.english.tokens == sum(len(word) > 1 for word in words)
    heard = result.mixed.hits + result.mixed.substitutions + result.mixed.insertions
    assert heard == len(" ".join(hypotheses.values()).split())


def sclite(folder, references, hypotheses):
    """What sclite counts on mixed tokens, with the options of SEAME's and ASRU's recipes."""
    if SCLITE is None:
        pytest.skip("no sclite here (Debian and Ubuntu have it in the package sctk)")
    for file, texts in (("ref.trn", references), ("hyp.trn", hypotheses)):
        lines = (f"{' '.join(tokenize(text))} ({name})\n" for name, text in texts.items())
        (folder / file).write_text("".join(lines), encoding="utf-8")
    command = [SCLITE, "-e", "utf-8", "-c", "NOASCII", "-i", "rm", "-o", "all", "stdout"]
    command += ["-r", str(folder / "ref.trn"), "trn", "-h", str(folder / "hyp.trn"), "trn"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = re.findall(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert len(rows) == len(references)
    return [Counts(*map(int, row)) for row in rows]


def test_sclite_counts_the_same_on_worked_examples(tmp_path):
    references = {"s-1": "我在 meeting room", "s-2": "我去KTV唱K歌", "s-3": "好 你 好 i'm"}
    hypotheses = {"s-1": "我再 meeting", "s-2": "我要去KTV唱歌", "s-3": "好 you 好 i'm 吗"}
    ours = [score({n: references[n]}, {n: hypotheses[n]}).mixed for n in references]
    assert ours == [Counts(2, 1, 1, 0), Counts(5, 0, 1, 1), Counts(3, 1, 0, 1)]
    assert sclite(tmp_path, references, hypotheses) == ours


def test_sclite_counts_as_many_errors_or_more(tmp_path):
    # It looks for the smallest 4 S + 3 (D + I), not for the fewest errors.
    references, hypotheses = random_texts(seed=2, count=300)
    references["s-999"], hypotheses["s-999"] = "a b c d e", "d e f g h"
    theirs = sclite(tmp_path, references, hypotheses)
    assert theirs[-1] == Counts(hits=2, deletions=3, insertions=3)  # rather than 5 substitutions
    ours = [score({n: references[n]}, {n: hypotheses[n]}).mixed for n in references]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.tokens == other.tokens
        assert mine.errors <= other.errors
        if mine.errors < other.errors:
            weighted = [
                4 * c.substitutions + 3 * (c.deletions + c.insertions) for c in (mine, other)
            ]
            assert weighted[1] < weighted[0]
    same = sum(mine.errors == other.errors for mine, other in zip(ours, theirs, strict=True))
    assert same >= 0.98 * len(ours)


def test_tokens_can_be_left_out_on_both_sides():
    texts = {"a": "<noise> 好 <unk>"}, {"a": "好 <noise> ok"}
    assert score(*texts).mixed.tokens == 3
    left = score(*texts, ignore=["<noise>", "<unk>"])
    assert left.mixed == Counts(hits=1, insertions=1)


@pytest.mark.parametrize("word", ["<NOISE>", "<noise>"])
def test_what_is_left_out_may_be_in_capitals(word):
    assert score({"a": "<NOISE> 好"}, {"a": "好"}, ignore=[word]).mixed == Counts(hits=1)


@pytest.mark.parametrize(
    ("word", "says"), [("[N] x", "not one token but 2: n x"), ("~", "not one token but none")]
)
def test_what_is_not_one_token_cannot_be_left_out(word, says):
    with pytest.raises(TranscriptError, match=says):
        score({"a": "好"}, {"a": "好"}, ignore=[word])


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "text").write_text("u1 你 好\n", encoding="utf-8-sig")
    assert list(scoring.read(tmp_path / "text")) == ["u1"]


def test_an_utterance_without_hypothesis_is_deleted_and_named():
    result = score({"a": "你 好", "b": "ok"}, {"b": "ok"})
    assert result.mixed == Counts(hits=1, deletions=2)
    assert result.missing == ("a",)


def test_a_hypothesis_without_reference_is_refused():
    with pytest.raises(TranscriptError, match="2 utterances without reference, x the first"):
        score({"a": "ok"}, {"a": "ok", "y": "", "x": ""})
    with pytest.raises(TranscriptError, match="references: hold no utterance"):
        score({}, {})


def test_without_jiwer_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(TranscriptError, match="pip install jiwer"):
        score({"a": "ok"}, {"a": "ok"})


def test_reads_kaldi_tables_and_transcripts_alike(tmp_path):
    (tmp_path / "text").write_text("u1 你 好 (笑)\nu2\n\nu3\tok  go\n", encoding="utf-8")
    (tmp_path / "a.trn").write_text("你 好 (笑) (u1)\n(u2)\nok go\t(u3)\n", encoding="utf-8")
    texts = [scoring.read(tmp_path / name) for name in ("text", "a.trn")]
    for found in texts:
        assert {name: tokenize(text) for name, text in found.items()} == {
            "u1": ["你", "好", "笑"],
            "u2": [],
            "u3": ["ok", "go"],
        }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", b"a x\na y\n", "names a twice, again in line 2"),
        ("text", "a 好".encode("gb18030"), "is not UTF-8"),
        ("x.trn", b"hello\n", r"has no \(utterance\) at the end of line 1"),
        ("nowhere/text", None, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TranscriptError, match=f"{name}: {message}"):
        scoring.read(tmp_path / name)


TABLE = """\
|dataset|measure|Snt|Tok|Corr|Sub|Del|Ins|Err|rate %|S.Err|
|---|---|---|---|---|---|---|---|---|---|---|
|{0}|MER, mixed|2|4|3|1|0|1|2|50.0|1|
|{0}|CER, Mandarin|2|4|3|1|0|0|1|25.0|-|
|{0}|WER, English|2|0|0|0|0|1|1|-|-|
"""


@pytest.fixture
def experiment(tmp_path):
    files = {
        "dump/raw/test/text": "u1 你 好\nu2 在 吗\n",
        "dump/raw/org/dev/text": "u1 你 好\nu2 在 吗\n",
        "exp/asr_x/decode/test/text": "u1 你 好\nu2 再 吗 ok\n",
        "exp/asr_x/decode/org/dev/text": "u1 你 好\nu2 再 吗 ok\n",
        "exp/asr_x/decode/test/logdir/output.1/1best_recog/text": "not a whole one\n",
        "exp/asr_x/decode/org/dev/logdir/x": "",
        "exp/asr_x/other/text": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def test_two_files_as_a_table_and_as_json(experiment, capsys):
    files = [str(experiment / "dump/raw/test/text"), str(experiment / "exp/asr_x/decode/test/text")]
    assert scoring.main(files) == 0
    assert capsys.readouterr() == (TABLE.format(files[1]), "")
    assert scoring.main([*files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[files[1]]
    assert found["mer"]["rate"] == 0.5
    assert found["cer"] == {
        "rate": 0.25, "tokens": 4, "hits": 3, "substitutions": 1, "deletions": 0, "insertions": 0
    }  # fmt: skip
    assert found["wer"]["rate"] is None
    assert (found["sentences"], found["wrong_sentences"], found["missing"]) == (2, 1, [])


def test_utterances_without_hypothesis_are_told(experiment, capsys):
    reference = experiment / "dump/raw/test/text"
    hypothesis = experiment / "exp/asr_x/decode/test/text"
    hypothesis.write_text("")
    assert scoring.main([str(reference), str(hypothesis)]) == 0
    out, err = capsys.readouterr()
    assert err == f"{hypothesis}: no hypothesis for 2 utterances, u1 the first\n"
    assert f"|{hypothesis}|MER, mixed|2|4|0|0|4|0|4|100.0|2|\n" in out


def test_an_experiment_is_scored_whole(experiment, capsys):
    exp = experiment / "exp" / "asr_x"
    assert scoring.main(["--experiment", str(exp), "--dump", str(experiment / "dump/raw")]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[2:] == [
        *TABLE.format("decode/org/dev").splitlines()[2:],
        *TABLE.format("decode/test").splitlines()[2:],
    ]
    assert (exp / "MER.md").read_text() == f"# Mixed error rate\n\n{printed}"
    assert [file.name for file in exp.iterdir() if file.name.startswith(".")] == []


def test_mistakes_end_with_2_and_a_reason(experiment, tmp_path, capsys):
    assert scoring.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "a: cannot be read: No such file or directory" in capsys.readouterr().err
    assert scoring.main(["--experiment", str(experiment / "dump")]) == 2
    assert "dump: holds nothing decoded: run stage 12 first" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        scoring.main(["only-one"])
    assert "give a reference and a hypothesis file, or --experiment" in capsys.readouterr().err
