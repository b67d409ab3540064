"""The sets of egs/se, made from made-up corpora: mixtures, and what no two sets share."""

import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from tests.egs.programs import modules_of

LOCAL = "se/enh1/local"
RATE = 16000
KINDS_OF_TRAINING = (
    *("coloured", "swelling", "band", "tones", "clicks", "hum"),
    *("shaped", "rustling", "knocks", "horns", "calls"),
)


@pytest.fixture(scope="module")
def local():
    with modules_of(LOCAL, "synthesis", "mixing", "corpora", "data") as modules:
        yield dict(zip(("synthesis", "mixing", "corpora", "data"), modules, strict=True))


def random(seed=0):
    return np.random.default_rng(seed)


def write_sound(path, seconds, rate=RATE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * random(seed).standard_normal(int(seconds * rate)), rate)
    return path


# -- noise ----------------------------------------------------------------------------------------


def test_training_and_testing_hear_kinds_of_their_own(local):
    synthesis = local["synthesis"]
    assert set(synthesis.TRAINING) == set(KINDS_OF_TRAINING)
    assert set(synthesis.TESTING) == {"music", "engine", "workshop"}
    assert not set(synthesis.TRAINING.values()) & set(synthesis.TESTING.values())


def test_every_kind_has_power_one_and_follows_its_seed(local):
    synthesis = local["synthesis"]
    for kind in (*synthesis.TRAINING.values(), *synthesis.TESTING.values()):
        first, again, other = (kind(random(seed), 3 * RATE) for seed in (1, 1, 2))
        assert np.mean(first**2) == pytest.approx(1)
        np.testing.assert_array_equal(first, again)
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.5


@pytest.mark.parametrize("alpha", [-2.0, -0.5, 0.0, 1.0, 2.0])
def test_coloured_noise_falls_as_it_says(local, alpha):
    noise = local["synthesis"].coloured(random(), 30 * RATE, alpha)
    power = abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)
    octaves = [(f, 2 * f) for f in (100, 200, 400, 800, 1600, 3200)]
    levels = [np.log(power[(frequencies >= f) & (frequencies < g)].mean()) for f, g in octaves]
    slope = np.polyfit(np.log([f for f, _ in octaves]), levels, 1)[0]
    assert slope == pytest.approx(-alpha, abs=0.05)


PARTS_OF_TRAINING = (*KINDS_OF_TRAINING, "_slow", "_drawn", "_gliding", "_faded")


@pytest.mark.parametrize("kind", ["music", "engine", "workshop"])
def test_what_testing_hears_is_made_of_nothing_that_training_hears(local, monkeypatch, kind):
    synthesis = local["synthesis"]
    made = synthesis.TESTING[kind]
    expected = made(random(), 2 * RATE)
    for part in PARTS_OF_TRAINING:
        monkeypatch.delattr(synthesis, part)
    np.testing.assert_array_equal(made(random(), 2 * RATE), expected)


def crookedness(noise):
    """How far the levels of third octaves from 100 Hz to 6 kHz lie from a straight line, in dB."""
    power = abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)
    edges = 100 * 2 ** (np.arange(19) / 3)
    bands = itertools.pairwise(edges)
    levels = [10 * np.log10(power[(frequencies >= f) & (frequencies < g)].mean()) for f, g in bands]
    thirds = np.arange(18)
    line = np.polyval(np.polyfit(thirds, levels, 1), thirds)
    return np.sqrt(np.mean((levels - line) ** 2))


def test_no_colour_of_training_is_near_what_testing_hears(local):
    synthesis = local["synthesis"]
    colours = [synthesis.coloured(random(), 10 * RATE, alpha) for alpha in synthesis.ALPHAS]
    assert max(map(crookedness, colours)) < 0.5
    for kind in synthesis.TESTING.values():
        for seed in range(5):
            assert crookedness(kind(random(seed), 10 * RATE)) > 3


def test_babble_is_its_voices_all_as_loud(local):
    voices = [scale * random(seed).standard_normal(RATE) for seed, scale in enumerate((1, 50))]
    noise = local["synthesis"].babble(random(), RATE, voices)
    shares = [
        abs(np.fft.ifft(np.fft.fft(noise) * np.fft.fft(voice).conj())).max()
        / np.linalg.norm(noise)
        / np.linalg.norm(voice)
        for voice in voices
    ]
    # Two unrelated voices of one loudness: either is the root of a half of the sum.
    assert shares == pytest.approx([0.5**0.5] * 2, abs=0.02)


# -- mixtures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr", [-10, 0, 15])
def test_a_mixture_has_its_ratio_and_its_reference_is_in_it(local, tmp_path, snr):
    mixing = local["mixing"]
    clip = mixing.Clip("c", "s", write_sound(tmp_path / "c.wav", 1.5))
    noise = 30 * random(5).standard_normal(4 * RATE)
    mixture = mixing.mix(clip, noise, "hiss", snr, random())
    added = mixture.noisy - mixture.speech
    ratio = 10 * np.log10(np.mean(mixture.speech**2) / np.mean(added**2))
    assert ratio == pytest.approx(snr, abs=1e-9)
    assert abs(mixture.noisy).max() <= 0.99
    scale = mixture.speech @ clip.read() / (clip.read() @ clip.read())
    np.testing.assert_allclose(mixture.speech, scale * clip.read(), atol=1e-12)
    assert (scale < 1) == (snr == -10), "only what would be clipped is made less loud"
    assert mixture.name == f"s-c-hiss-{snr}dB"


def test_a_silent_section_is_drawn_again(local, tmp_path):
    mixing = local["mixing"]
    clip = mixing.Clip("c", "s", write_sound(tmp_path / "c.wav", 0.01))
    noise = np.zeros(2000)
    noise[900:920] = 1.0
    # Nine of ten sections of 160 samples are silent.
    for seed in range(20):
        mixture = mixing.mix(clip, noise, "hiss", 5, random(seed))
        added = mixture.noisy - mixture.speech
        ratio = 10 * np.log10(np.mean(mixture.speech**2) / np.mean(added**2))
        assert ratio == pytest.approx(5, abs=1e-9)


@pytest.mark.parametrize(
    ("speech", "says"),
    [
        (0.0, "c.wav is silent: there is no ratio"),
        (0.1, "noise hiss: of 100 .* for c all are silen"),
    ],
)
def test_what_is_silent_throughout_is_refused(local, tmp_path, speech, says):
    mixing = local["mixing"]
    soundfile.write(tmp_path / "c.wav", np.full(1000, speech), RATE)
    with pytest.raises(mixing.SoundError, match=says):
        mixing.mix(mixing.Clip("c", "s", tmp_path / "c.wav"), np.zeros(9), "hiss", 5, random())


def test_sections_are_of_the_noise_and_of_any_part_of_it(local):
    section, noise = local["mixing"].section, np.arange(100.0)
    starts = {section(noise, 60, random(seed))[0] for seed in range(600)}
    assert starts == set(range(41))
    assert (np.diff(section(noise, 60, random())) == 1).all()
    repeated = section(noise, 250, random())
    assert set(np.diff(repeated)) <= {1.0, -99.0, 50.0, -49.0}
    assert len(repeated) == 250


# -- whole sets -----------------------------------------------------------------------------------


@pytest.fixture
def run(local, capsys, monkeypatch):
    """Calls the program, on noise of seconds; returns its exit code and what it says of errors."""
    for constant, seconds in (("TEST_SECONDS", 4), ("NOISE_SECONDS", 3)):
        monkeypatch.setattr(local["data"], constant, seconds)

    def call(out, *options):
        try:
            code = local["data"].main(["--out", str(out), *options])
        except SystemExit as ended:
            code = ended.code
        return SimpleNamespace(returncode=code, stderr=capsys.readouterr().err)

    return call


def table(file):
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines())


def mixtures(folder):
    rows = [line.split("\t") for line in (folder / "mixtures.tsv").read_text().splitlines()]
    assert rows[0] == ["utterance", "clip", "noise", "snr"]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def check_written(folder):
    """The ratio of what was written is what the table says."""
    noisy, clean = table(folder / "wav.scp"), table(folder / "spk1.scp")
    rows = mixtures(folder)
    assert list(noisy) == list(clean) == list(table(folder / "utt2spk")) == sorted(noisy)
    assert {row["utterance"] for row in rows} == set(noisy)
    for row in rows:
        signals = [soundfile.read(of[row["utterance"]])[0] for of in (noisy, clean)]
        added = signals[0] - signals[1]
        ratio = 10 * np.log10(np.mean(signals[1] ** 2) / np.mean(added**2))
        assert ratio == pytest.approx(float(row["snr"]), abs=0.05)


@pytest.fixture(scope="module")
def so762(tmp_path_factory):
    """Twelve speakers to test on, two of whom are too short, two each for the other sets."""
    corpus = tmp_path_factory.mktemp("so762")
    for split, speakers, seconds in (("train", 2, 1.0), ("dev", 2, 1.0), ("test", 14, 2.1)):
        rows = []
        for speaker in range(speakers):
            for clip in range(2):
                name = f"{split}{speaker:02d}-{clip}"
                length = 1.0 if speaker >= 12 else seconds
                write_sound(corpus / f"flac/{name}.flac", length, seed=len(rows))
                rows.append(f"{name}\tflac/{name}.flac\t{split}{speaker:02d}\t{length}\tA\n")
        (corpus / f"{split}.tsv").write_text("utt\tfile\tspeaker\tseconds\ttext\n" + "".join(rows))
    return corpus


def test_so762_makes_sets_that_share_no_speaker_and_no_kind_of_noise(run, so762, tmp_path):
    options = ["--protocol", "so762", "--corpus", str(so762), "--valid", "3"]
    done = run(tmp_path, *options, "--clips", "1", "--noise_clips", "2")
    assert done.returncode == 0, done.stderr
    valid, test = mixtures(tmp_path / "valid"), mixtures(tmp_path / "test")
    check_written(tmp_path / "valid")
    check_written(tmp_path / "test")
    assert len(test) == 4 * 5 * 1
    assert {row["noise"] for row in test} == {"babble", "music", "engine", "workshop"}
    assert sorted({int(row["snr"]) for row in test}) == [-5, 0, 5, 10, 15]
    # Each noise has a clip of its own, at all ratios.
    assert len({row["clip"] for row in test}) == 4
    assert len({(row["noise"], row["clip"]) for row in test}) == 4
    assert not {"test12", "test13"} & {row["clip"].partition("-")[0] for row in test}, "too short"
    noises = {name.partition("-")[0] for name in table(tmp_path / "train" / "noises.scp")}
    assert noises == set(KINDS_OF_TRAINING)
    assert {row["noise"] for row in valid} <= noises
    speakers = [set(table(tmp_path / part / "utt2spk").values()) for part in ("train", "valid")]
    assert speakers[0] == {"train00", "train01"}
    assert speakers[1] <= {"dev00", "dev01"}
    assert table(tmp_path / "train" / "wav.scp") == table(tmp_path / "train" / "spk1.scp")


def test_who_babbles_is_not_tested_on(local, so762, tmp_path, monkeypatch):
    heard = []

    def noises(_, voices):
        heard.extend(voices)
        return dict.fromkeys(("babble", "music", "engine", "workshop"), random().random(RATE))

    monkeypatch.setattr(local["data"], "_test_noises", noises)
    options = ["--protocol", "so762", "--corpus", str(so762), "--out", str(tmp_path)]
    options += ["--valid", "1", "--clips", "1", "--noise_clips", "1"]
    assert local["data"].main(options) == 0
    assert len(heard) == 8
    for row in mixtures(tmp_path / "test"):
        clip = soundfile.read(so762 / f"flac/{row['clip']}.flac")[0]
        assert not any(np.array_equal(clip, voice) for voice in heard)


def test_so762_must_have_speakers_enough(run, so762, tmp_path):
    done = run(tmp_path, "--protocol", "so762", "--corpus", str(so762), "--valid", "5")
    assert done.returncode == 2
    assert "12 speakers in test and 4 clips in dev; expected: 88 and 5" in done.stderr
    assert not list(tmp_path.iterdir())


def harmed(path, harm):
    """Spoil a recording; return what will be said of it."""
    if harm == "no sound":
        path.write_text("no sound")
        return f"recordings that cannot be read (1, the first is {path})"
    if harm == "rate":
        write_sound(path, 2, rate=8000)
        return f"speech of another rate (1, the first is {path}); expected: 16000 samples a second"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 100))
    return f"{path} cannot be read"


@pytest.mark.parametrize("harm", ["no sound", "rate"])
def test_speech_that_cannot_be_used_is_named_before_anything_is_written(run, so762, tmp_path, harm):
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(so762, corpus)
    says = harmed(corpus / "flac/dev01-0.flac", harm)
    done = run(out, "--protocol", "so762", "--corpus", str(corpus), "--valid", "1", "--clips", "1")
    assert done.returncode == 2
    assert says in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("harm", ["no sound", "rate"])
@pytest.mark.parametrize("part", ["train-clean-100", "test-clean"])
def test_so_is_librispeech(paper, corpora, tmp_path, part, harm):
    says = harmed(corpora[0] / part / "0/9/0-9-0000.flac", harm)
    done = paper()
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "data").exists()


def test_what_is_damaged_behind_its_head_is_named(paper, corpora):
    says = harmed(corpora[0] / "test-clean/1/9/1-9-0000.flac", "damage")
    done = paper()
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.parametrize("option", ["--valid", "--clips", "--noise_clips"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_counts_begin_at_one(run, so762, tmp_path, option, value):
    done = run(tmp_path, "--protocol", "so762", "--corpus", str(so762), f"{option}={value}")
    assert done.returncode == 2
    assert f"argument {option}: '{value}' is no number from 1 on" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def corpora(tmp_path):
    """LibriSpeech and noise sets in the layouts of the README, some seconds of each."""
    speech, noises = tmp_path / "LibriSpeech", tmp_path / "noises"
    for part, clips in (("train-clean-100", 6), ("test-clean", 4)):
        for clip in range(clips):
            write_sound(speech / part / f"{clip}/9/{clip}-9-0000.flac", 0.5, seed=clip)
    for name, rate, seconds in (
        ("musan/noise/free-sound/noise-free-sound-0000.wav", 16000, 1),
        ("RSG-10/babble.wav", 19980, 2),
        ("RSG-10/f16.wav", 19980, 2),
        ("RSG-10/factory1.wav", 19980, 2),
        ("RSG-10/factory2.wav", 19980, 2),
        ("environmental/office/1.wav", 48000, 1),
        ("UrbanSound/data/street_music/26270.wav", 44100, 2),
        ("UrbanSound/data/dog_bark/26270.wav", 44100, 2),
        ("QUT-NOISE/QUT-NOISE/CAFE-CAFE-1.wav", 48000, 61.5),
        ("Nonspeech/n1.wav", 20000, 0.3),
    ):
        write_sound(noises / name, seconds, rate)
    return speech, noises


@pytest.fixture
def paper(run, corpora, tmp_path):
    speech, noises = corpora
    required = ["--protocol", "paper", "--corpus", str(speech), "--noises", str(noises)]
    required += ["--valid", "2", "--clips", "1"]
    return lambda *options: run(tmp_path / "data", *required, *options)


def test_the_papers_sets_hold_validation_and_test_noise_out_of_training(paper, corpora, tmp_path):
    done = paper()
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    check_written(data / "valid")
    check_written(data / "test")
    written = {path.stem for path in (data / "noise").iterdir()}
    # Of 61.5 s two pieces of 30 s and the rest; what is tested with is not among them.
    kinds = [name.partition("-")[0] for name in written]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "musan": 1,
        "rsg10": 1,
        "environmental": 1,
        "urbansound": 1,
        "qut": 3,
        "nonspeech": 1,
        "coloured": 17,
    }
    trained = table(data / "train" / "noises.scp")
    assert len(trained) == 25 - 2
    assert set(trained) < written
    speakers = [set(table(data / part / "utt2spk").values()) for part in ("train", "valid")]
    assert [len(part) for part in speakers] == [4, 2]
    assert not speakers[0] & speakers[1]
    test = mixtures(data / "test")
    assert {row["noise"] for row in test} == {"babble", "f16", "factory", "music"}
    assert len(test) == 4 * 5
    # 19980 and 48000 samples a second have become 16000.
    lengths = [soundfile.info(path).frames for path in (data / "noise").glob("rsg10*")]
    assert lengths == [pytest.approx(2 * RATE, abs=2)]
    assert all(soundfile.info(path).samplerate == RATE for path in (data / "noise").iterdir())


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("RSG-10/f16.wav", "RSG-10: 0 recordings of f16, which testing needs; expected: one, f16"),
        ("musan", 'expected: {noises}/musan/noise or {noises}/MUSAN/noise (or --local_data_opts "'),
        ("UrbanSound/data/street_music", "0 recordings of music, which testing needs; expected: "),
    ],
)
def test_what_is_missing_is_said(paper, corpora, tmp_path, harm, says):
    path = corpora[1] / harm
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (corpora[1] / "QUT-NOISE/QUT-NOISE/broken.wav").write_text("no sound")
    shutil.rmtree(corpora[0] / "test-clean")
    done = paper()
    assert done.returncode == 2
    assert says.format(noises=corpora[1]) in done.stderr
    assert f"{corpora[0]}/test-clean holds no speech" in done.stderr
    if harm != "musan":
        assert "recordings that cannot be read (1, the first is" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_noise_set_may_be_done_without(paper, corpora, tmp_path):
    shutil.rmtree(corpora[1] / "environmental")
    done = paper()
    assert done.returncode == 2
    assert '--without environmental"' in done.stderr
    assert paper("--without", "environmental").returncode == 0
    done = paper("--without", "enviromental")
    assert done.returncode == 2
    assert "no noise set 'enviromental'; there are musan, rsg10, environmental" in done.stderr


def test_more_to_validate_on_than_there_is_is_refused(paper, corpora, tmp_path):
    done = paper("--valid", "30")
    assert done.returncode == 2
    assert "only 6 clips in train-clean-100; expected: at least 31" in done.stderr
    assert "only 25 noise clips; expected: at least 31" in done.stderr
