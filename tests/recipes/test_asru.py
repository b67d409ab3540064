# ruff: noqa: RUF001 (text as annotators write it: full-width signs and letters)
"""The ASRU recipe: its corpus checked and prepared, and all stages on a tiny one."""

import json
import os
import re
import shutil
import subprocess
import sys

import editdistance
import pytest
import yaml

from espnet_bimamba import scoring
from tests.recipes.asru_corpus import DEV, MANDARIN, SPOKEN, TRAIN, write_corpus, write_tones
from tests.recipes.conftest import HOME

RECIPE = HOME / "egs" / "asru" / "asr1"
ENGLISH_BPE = 24


def prepare(corpus, out, *options):
    command = [sys.executable, str(RECIPE / "local" / "data.py"), *options, str(corpus), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def table(path):
    return dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def test_prepares_what_asr_sh_reads(corpus, tmp_path):
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    for part, spoken in SPOKEN.items():
        folder = tmp_path / "data" / part
        assert table(folder / "text") == spoken
        assert list(table(folder / "wav.scp")) == list(spoken)
        assert all(
            wav.endswith(f"/{name[6:]}.wav") for name, wav in table(folder / "wav.scp").items()
        )
        assert table(folder / "utt2spk") == {name: name[:5] for name in spoken}
        speakers = {speaker: ids.split() for speaker, ids in table(folder / "spk2utt").items()}
        assert [name for ids in speakers.values() for name in ids] == list(spoken)
    assert "train: 6 utterances; 1 have no words" in done.stdout
    train = tmp_path / "data" / "train"
    assert (train / "mandarin").read_text(encoding="utf-8").split() == [f"▁{c}" for c in MANDARIN]
    assert table(train / "text.english")["G0002-T0001G0002_S01010002"] == "let's go"
    assert not [file for file in train.iterdir() if file.name.startswith(".")]


def test_folders_may_be_named_otherwise(corpus, tmp_path):
    (corpus / "release").rename(corpus / "ASRU-TEST")
    (corpus / "ASRU100-fixed-dev").rename(corpus / "mine")
    done = prepare(corpus, tmp_path / "data", "--dev", "mine")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "data" / "dev" / "text") == SPOKEN["dev"]


def part_of(corpus, pattern, name="x"):
    """The folder of a recording, whose speaker is in its name."""
    return (corpus / pattern.format(speaker=name[5:10], name=name)).parent


def rewrite(corpus, pattern, text):
    """Gives every recording of a part another transcript."""
    for file in (corpus / pattern.partition("/")[0]).rglob("*_S*.txt"):
        file.write_text(text, encoding="utf-8")


def refusal(corpus, tmp_path, *options):
    """The faults for which nothing was written."""
    done = prepare(corpus, tmp_path / "data", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "data").exists()
    lines = done.stderr.splitlines()
    assert "is not laid out as egs/asru/README.md describes" in lines[0]
    return [line.removeprefix("  - ") for line in lines if line.startswith("  - ")]


def test_a_byte_order_mark_is_no_part_of_a_transcript(corpus, tmp_path):
    file = part_of(corpus, TRAIN, "T0001G0001_S01010001") / "T0001G0001_S01010001.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    edit_table(corpus, lambda lines: [f"\ufeff{lines[0]}", *lines[1:]])
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    for part in ("train", "test"):
        assert table(tmp_path / "data" / part / "text") == SPOKEN[part]


def test_a_letter_in_brackets_marks_a_noise(corpus, tmp_path):
    file = part_of(corpus, TRAIN, "T0001G0001_S01010001") / "T0001G0001_S01010001.txt"
    file.write_text("[P]我在meeting[T]room里[*]", encoding="utf-8")
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "data" / "train" / "text") == SPOKEN["train"]


def test_a_name_of_another_pattern_is_its_own_speaker(corpus, tmp_path):
    folder = part_of(corpus, DEV, "T0392G0476_S01010001")
    for suffix in (".wav", ".txt"):
        (folder / f"T0392G0476_S01010001{suffix}").rename(folder / f"anna1{suffix}")
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "data" / "dev" / "text")["anna1-anna1"] == "我 在 ktv"
    assert table(tmp_path / "data" / "dev" / "utt2spk")["anna1-anna1"] == "anna1"


def test_a_recording_without_a_sample_is_no_sound(corpus, tmp_path):
    wav = part_of(corpus, DEV, "T0392G0476_S01010001") / "T0392G0476_S01010001.wav"
    write_tones(wav, "你", seconds=0)
    assert refusal(corpus, tmp_path) == [
        f"dev: files that are not sound (1, the first is {wav}); "
        "expected: PCM WAV, one channel, not empty"
    ]


@pytest.mark.parametrize("kind", ["dangling link", "folder"])
def test_a_transcript_that_cannot_be_read_is_named(corpus, tmp_path, kind):
    file = part_of(corpus, DEV, "T0392G0476_S01010001") / "T0392G0476_S01010001.txt"
    file.unlink()
    if kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("nowhere")
    fault = f"dev: transcripts that cannot be read (1, the first is {file}); expected: a text file"
    assert refusal(corpus, tmp_path) == [fault]
    done = prepare(corpus, tmp_path / "data", "--skip_faulty")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"left out: {fault}\n"
    assert len(table(tmp_path / "data" / "dev" / "text")) == 2


def test_a_part_may_lie_behind_links(corpus, tmp_path):
    """On another disk; a link back or a second one to the same must not harm."""
    part = corpus / "ASRU100-fixed-dev"
    (part / "data").rename(tmp_path / "disk")
    (part / "data").symlink_to(tmp_path / "disk")
    (part / "the same").symlink_to(tmp_path / "disk" / "category")
    (tmp_path / "disk" / "back").symlink_to(part)
    (tmp_path / "disk" / "itself").symlink_to("itself")
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "data" / "dev" / "text") == SPOKEN["dev"]
    assert all(
        wav.startswith(f"{part}/data/category/")
        for wav in table(tmp_path / "data" / "dev" / "wav.scp").values()
    )


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000"])
def test_a_name_with_whitespace_is_refused(corpus, tmp_path, blank):
    folder = part_of(corpus, DEV, "T0392G0476_S01010001")
    for suffix in (".wav", ".txt"):
        (folder / f"T0392G0476_S01010001{suffix}").rename(folder / f"my{blank}file{suffix}")
    assert refusal(corpus, tmp_path) == [
        f"dev: names with whitespace (1, the first is {folder}/my{blank}file.wav); "
        "expected: none in NAME.wav, which names the utterance"
    ]
    done = prepare(corpus, tmp_path / "data", "--skip_faulty")
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "data" / "dev" / "wav.scp")) == 2


@pytest.mark.parametrize(
    ("part", "text", "fault"),
    [
        (DEV, "[N]", "dev: no transcript has words; expected: one at least with more than marks"),
        (
            TRAIN,
            "我在[N]",
            "train: no transcript has English words; expected: some: BPE learns on them",
        ),
        (
            TRAIN,
            "meeting room",
            "train: no transcript has Mandarin; expected: some: its characters are the tokens",
        ),
    ],
    ids=["no words", "no English", "no Mandarin"],
)
def test_transcripts_of_which_nothing_can_be_made_are_refused(corpus, tmp_path, part, text, fault):
    rewrite(corpus, part, text)
    assert refusal(corpus, tmp_path) == [fault]
    assert refusal(corpus, tmp_path, "--skip_faulty") == [fault]


@pytest.mark.parametrize("spoken", ["我 在", "meeting room"])
def test_one_language_is_enough_to_test_on(corpus, tmp_path, spoken):
    rewrite(corpus, DEV, f"{spoken}[N]")
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert set(table(tmp_path / "data" / "dev" / "text").values()) == {spoken}


def test_a_place_that_cannot_be_written_to_is_named(corpus, tmp_path):
    (tmp_path / "file").touch()
    done = prepare(corpus, tmp_path / "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}/file/train cannot be written: Not a directory\n"


def break_layout(corpus):
    """One fault of each kind; returns the lines that must name them."""
    shutil.rmtree(corpus / "release")
    train = corpus / TRAIN.format(speaker="G0001", name="x").removesuffix("/x")
    dev = corpus / DEV.format(speaker="G0476", name="x").removesuffix("/x")
    first = "(1, the first is"
    (train / "T0001G0001_S01010001.txt").unlink()
    (train / "T0001G0001_S01010002.wav").unlink()
    (train / "T0001G0001_S01010003.txt").write_bytes("你好".encode("gb18030"))
    other = train.parents[1] / "G0002" / "session01"
    (train / "T0001G0002_S01010001.wav").write_bytes(
        (other / "T0001G0002_S01010001.wav").read_bytes()
    )
    (other / "T0001G0002_S01010002.txt").write_text(" \n")
    (dev / "T0392G0476_S01010001.wav").write_text("an error page")
    write_tones(dev / "T0392G0476_S01010002.wav", "你", channels=2)
    return [
        f"train: recordings without transcript {first} {train}/T0001G0001_S01010001.wav); "
        "expected: NAME.txt beside each NAME.wav",
        f"train: transcripts without recording {first} {train}/T0001G0001_S01010002.txt); "
        "expected: NAME.wav for each",
        f"train: transcripts that are not UTF-8 {first} {train}/T0001G0001_S01010003.txt); "
        "expected: UTF-8",
        f"train: recordings with another's name {first} {other}/T0001G0002_S01010001.wav); "
        "expected: a name once in each part",
        f"train: empty transcripts {first} {other}/T0001G0002_S01010002.txt); "
        "expected: the sentence that is spoken",
        f"dev: files that are not sound (2, the first is {dev}/T0392G0476_S01010001.wav); "
        "expected: PCM WAV, one channel, not empty",
        f"test: its folder is missing; expected: {corpus}/release or {corpus}/ASRU-TEST "
        '(other: --local_data_opts "--test_dir NAME")',
    ]


def test_a_broken_layout_is_refused_with_all_that_is_wrong(corpus, tmp_path):
    faults = break_layout(corpus)
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 2
    first, *listed = done.stderr.splitlines()
    assert first == (
        f"{corpus} is not laid out as egs/asru/README.md describes; nothing was written:"
    )
    assert sorted(listed) == sorted(f"  - {fault}" for fault in faults)
    assert not (tmp_path / "data").exists()


def test_an_empty_folder_lacks_everything(tmp_path):
    (tmp_path / "ZH+EN-200h").mkdir()
    done = prepare(tmp_path, tmp_path / "data")
    assert done.returncode == 2
    assert f"train: no recordings; expected: *.wav at any depth below {tmp_path}" in done.stderr
    assert "dev: its folder is missing" in done.stderr
    assert "test: its folder is missing" in done.stderr


def test_faulty_recordings_can_be_left_out_but_not_a_part(corpus, tmp_path):
    kept = corpus / "release"
    moved = kept.rename(tmp_path / "release")
    kept.mkdir()
    break_layout(corpus)
    done = prepare(corpus, tmp_path / "data", "--skip_faulty")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("  -")] == [
        done.stderr.splitlines()[-1]
    ]
    assert "test: its folder is missing" in done.stderr
    moved.rename(kept)
    done = prepare(corpus, tmp_path / "data", "--skip_faulty")
    assert done.returncode == 0, done.stderr
    assert list(table(tmp_path / "data" / "train" / "text")) == [
        "G0002-T0001G0002_S01010001",
        "G0002-T0001G0002_S01010003",
    ]
    assert list(table(tmp_path / "data" / "dev" / "text")) == ["G0477-T0392G0477_S01010001"]
    assert done.stderr.count("left out: ") == 6


def test_a_part_of_which_nothing_is_left_is_refused(corpus, tmp_path):
    for text in (corpus / "ASRU100-fixed-dev").rglob("*.txt"):
        text.unlink()
    done = prepare(corpus, tmp_path / "data", "--skip_faulty")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "  - dev: every recording is faulty; expected: one at least without a fault"
    )
    assert not (tmp_path / "data").exists()


def edit_table(corpus, edit):
    """The test set's table of transcripts, with its lines changed."""
    table = corpus / "release" / "ASRU_test-text.txt"
    lines = edit(table.read_text(encoding="utf-8").splitlines())
    table.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return table


def test_a_table_may_have_tabs_and_capitals(corpus, tmp_path):
    edit_table(corpus, lambda lines: [line.replace(" ", "\t", 1) for line in lines])
    for wav in (corpus / "release").rglob("*.wav"):
        wav.rename(wav.with_suffix(".WAV"))
    for text in (corpus / "ASRU100-fixed-dev").rglob("*.txt"):
        text.rename(text.with_suffix(".TXT"))
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    for part in ("dev", "test"):
        assert table(tmp_path / "data" / part / "text") == SPOKEN[part]


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (
            lambda lines: lines[1:],
            "recordings without transcript (1, the first is "
            "{0}/wav/T0500G0900_S01010001.wav); expected: a line NAME.wav SENTENCE for each in "
            "{0}/ASRU_test-text.txt",
        ),
        (
            lambda lines: [lines[0].split()[0], *lines[1:]],
            "empty transcripts (1, the first is {0}/ASRU_test-text.txt/T0500G0900_S01010001.wav); "
            "expected: the sentence that is spoken",
        ),
        (
            lambda lines: [*lines, lines[0]],
            "transcripts of another's recording (1, the first is "
            "{0}/ASRU_test-text.txt/T0500G0900_S01010001.wav); expected: a name once in the table",
        ),
    ],
    ids=["no line", "no sentence", "two lines"],
)
def test_a_faulty_table_is_named(corpus, tmp_path, edit, fault):
    edit_table(corpus, edit)
    done = prepare(corpus, tmp_path / "data")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [f"  - test: {fault.format(corpus / 'release')}"]


def test_two_tables_are_refused_even_if_faults_are_skipped(corpus, tmp_path):
    first = corpus / "release" / "ASRU_test-text.txt"
    (corpus / "release" / "more").mkdir()
    second = shutil.copy(first, corpus / "release" / "more")
    done = prepare(corpus, tmp_path / "data", "--skip_faulty")
    assert done.returncode == 2
    assert f"test: 2 tables of transcripts: {first}, {second}; expected: one" in done.stderr


def test_the_help_names_the_folders(tmp_path):
    done = prepare(tmp_path, tmp_path, "--help")
    assert "its folder, if not ASRU100-fixed-dev or ASRU-DEV" in " ".join(done.stdout.split())


def run_recipe(*options, check=True):
    environment = os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(HOME),
    }
    done = subprocess.run(
        [str(RECIPE / "run.sh"), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-6000:]
    return done


TRAINING = {
    "batch_type": "unsorted",
    "batch_size": 3,
    "max_epoch": 2,
    "num_iters_per_epoch": 20,
    "patience": "none",
    "init": "none",
    "best_model_criterion": [["valid", "acc", "max"]],
    "keep_nbest_models": 1,
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "encoder": "conbimamba",
    "encoder_conf": {
        "output_size": 32,
        "mamba_type": "extbimamba",
        "fusion": "concat",
        "linear_units": 64,
        "num_blocks": 1,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "input_layer": "conv2d",
        "macaron_style": True,
        "use_cnn_module": True,
        "cnn_module_kernel": 7,
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 4, "linear_units": 64, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.0},
    "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160},
    "optim": "adam",
    "optim_conf": {"lr": 0.005},
}


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """All stages on the tiny corpus; the working copy and what was printed."""
    root = tmp_path_factory.mktemp("asru")
    corpus = write_corpus(root / "a corpus")
    (root / "train.yaml").write_text(yaml.safe_dump(TRAINING))
    (root / "decode.yaml").write_text("beam_size: 2\nctc_weight: 0.3\n")
    printed = run_recipe(
        *("--corpus", str(corpus), "--work", str(root / "work")),
        *("--english_bpe", str(ENGLISH_BPE), "--speed_perturb_factors", ""),
        *("--asr_config", str(root / "train.yaml")),
        *("--inference_config", str(root / "decode.yaml")),
        *("--ngpu", "0", "--nj", "1", "--inference_nj", "1", "--audio_format", "wav"),
    ).stdout
    return root / "work" / "egs2" / "asru" / "asr1", printed


@pytest.fixture(scope="module")
def experiment(finished):
    (found,) = (finished[0] / "exp").glob("asr_train_raw_*")
    return found


@pytest.mark.recipe
def test_tokens_are_the_mandarin_characters_and_english_pieces(finished):
    size = ENGLISH_BPE + len(MANDARIN) + 3
    tokens = finished[0] / "data" / "token_list" / f"bpe_unigram{size}" / "tokens.txt"
    listed = tokens.read_text(encoding="utf-8").splitlines()
    assert (listed[:2], listed[-1]) == (["<blank>", "<unk>"], "<sos/eos>")
    mandarin = [token for token in listed if scoring.is_mandarin(token[-1])]
    assert sorted(mandarin) == [f"▁{character}" for character in MANDARIN]
    english = [token for token in listed[2:-1] if token not in mandarin]
    assert len(english) == ENGLISH_BPE
    assert all(re.fullmatch("▁?[a-z']*", token) for token in english)
    assert any(len(token.removeprefix("▁")) > 1 for token in english), english


def mixed(text):
    """Tokens of what a model with this vocabulary can write."""
    return re.findall("[\u4e00-\u9fff]|<unk>|[a-z']+", text)


@pytest.mark.recipe
def test_both_sets_are_decoded_and_scored(finished, experiment):
    _, printed = finished
    written = (experiment / "MER.md").read_text()
    assert written.partition("\n\n")[2].strip() in printed
    rows = [line.strip("|").split("|") for line in written.splitlines() if "MER, mixed" in line]
    counted = {row[0].partition("/")[2]: [int(cell) for cell in row[2:9]] for row in rows}
    assert set(counted) == {"org/dev", "test"}
    for name, part in (("org/dev", "dev"), ("test", "test")):
        (folder,) = experiment.glob(f"*/{name}")
        heard = {line.partition(" ")[0]: line.partition(" ")[2] for line in
                 (folder / "text").read_text(encoding="utf-8").splitlines()}  # fmt: skip
        assert set(heard) == set(SPOKEN[part])
        errors = sum(
            editdistance.eval(text.split(), mixed(heard[utterance]))
            for utterance, text in SPOKEN[part].items()
        )
        sentences, tokens, hits, substitutions, deletions, insertions, wrong = counted[name]
        assert sentences == 3
        assert tokens == sum(len(text.split()) for text in SPOKEN[part].values())
        assert tokens == hits + substitutions + deletions
        assert wrong == substitutions + deletions + insertions == errors
        assert sum(len(mixed(text)) for text in heard.values()) == hits + substitutions + insertions


@pytest.mark.recipe
def test_stage_13_and_ours_agree_or_sclite_is_said_to_be_missing(finished, experiment):
    _, printed = finished
    results = sorted(experiment.glob("*/**/score_wer/result.txt"))
    if not results:
        assert "no sclite here: stage 13 will give the MER only" in printed
        assert (experiment / "RESULTS.md").read_text() == (experiment / "MER.md").read_text()
        pytest.skip("no sclite here (Debian and Ubuntu have it in the package sctk)")
    assert len(results) == 2
    for result in results:
        rows = re.findall(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", result.read_text())
        theirs = [sum(int(row[kind]) for row in rows) for kind in range(4)]
        ours = scoring.score(
            scoring.read(result.with_name("ref.trn")), scoring.read(result.with_name("hyp.trn"))
        ).mixed
        assert ours.tokens == sum(theirs[:3])
        assert ours.errors <= sum(theirs[1:])


@pytest.mark.recipe
def test_a_later_run_starts_where_it_is_told(finished, experiment):
    recipe, _ = finished
    before = (experiment / "train.log").stat().st_mtime_ns
    (experiment / "MER.md").unlink()
    done = run_recipe(
        *("--work", str(recipe.parents[2]), "--english_bpe", str(ENGLISH_BPE)),
        *("--asr_config", str(recipe.parents[3] / "train.yaml"), "--stage", "13"),
        *("--inference_config", str(recipe.parents[3] / "decode.yaml")),
        *("--speed_perturb_factors", "", "--ngpu", "0", "--test_sets", "test"),
    )
    assert "Stage 1:" not in done.stdout
    assert (experiment / "MER.md").is_file()
    assert (experiment / "train.log").stat().st_mtime_ns == before


@pytest.mark.recipe
def test_seame_text_has_the_tokens_that_its_recipe_scores(tree, tmp_path):
    """ESPnet's SEAME recipe normalises the transcripts; its words are our tokens."""
    lines = [
        "okay 我们 去 那边(ppl) eat lah",
        "i'm 很 tired 了 <unk> 你 leh?",
        "ＮＵＳ 的 lecture，that one [oh] (ppb) 不 好",
        "k 歌k歌 don't want 啦",
    ]
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import preprocess; "
        "print(json.dumps([preprocess.normalize_text(line) for line in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree / "egs2" / "seame" / "asr1" / "local")],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    for text in json.loads(done.stdout):
        assert scoring.tokenize(text) == text.split(), text
