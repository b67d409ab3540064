"""Makes the sets of speech enhancement: ``train``, to be mixed while training, ``valid``, ``test``.

Two protocols, one form. ``paper``: that of "Mamba in Speech", appendix C.1, for who owns the
corpora. ``so762``: the same on an hour of free speech and on noise that is computed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import corpora
import numpy as np
import synthesis
from corpora import CorpusError, Fault
from mixing import Array, Clip, Mixture, mix, read, write_clean, write_mixtures

from espnet_bimamba.errors import BiMambaError

#: Of the mixtures to validate on, in dB, both included; to test on.
VALID_SNRS = (-10, 20)
TEST_SNRS = (-5, 0, 5, 10, 15)

#: Seconds of a computed noise clip, of a test noise, and of the shortest clip that is tested on.
NOISE_SECONDS, TEST_SECONDS, SHORTEST_SPEECH = 15, 60, 2.0
VOICES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the sets; return the exit code."""
    args = _parse(argv)
    try:
        if args.protocol == "paper":
            paper(args)
        else:
            of_so762(args)
    except BiMambaError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="local/data.sh", description=__doc__)
    parser.add_argument("--protocol", choices=["paper", "so762"], required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="LibriSpeech, or so762")
    parser.add_argument("--noises", type=Path, help="folder of the noise sets; protocol paper")
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--data_seed", type=int, default=0, help="what is drawn, and computed")
    parser.add_argument("--valid", type=_count, help="mixtures to validate on; default: 1000, 100")
    parser.add_argument("--clips", type=_count, default=20, help="to test each noise on")
    parser.add_argument("--noise_clips", type=_count, default=25, help="of a kind; protocol so762")
    parser.add_argument("--without", default="", help="noise sets to do without: a,b")
    args = parser.parse_args(argv)
    if args.valid is None:
        args.valid = 1000 if args.protocol == "paper" else 100
    args.without = [name for name in args.without.split(",") if name]
    if unknown := sorted(set(args.without) - set(corpora.NOISE_SETS)):
        parser.error(f"no noise set {unknown[0]!r}; there are {', '.join(corpora.NOISE_SETS)}")
    if args.protocol == "paper" and args.noises is None:
        parser.error("the paper's protocol needs --noises: the folder of the noise sets")
    return args


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")


def paper(args: argparse.Namespace) -> None:
    """Prepare the paper's sets (appendix C.1): 1000 mixtures to validate, 400 to test on.

    What is validated on is held out of training, speech and noise alike.
    """
    train, test, recordings, testing = _paper_corpora(args)
    kept = {
        name: [path for path in files if path not in testing.values()]
        for name, files in recordings.items()
    }
    _check_enough(args, train, test, kept)
    random = _random(args, 0)
    noise_folder = args.out / "noise"
    clips = []
    for name, files in kept.items():
        clips += corpora.write_pieces(files, name, noise_folder)
    for number, alpha in enumerate(synthesis.ALPHAS):
        samples = 0.1 * synthesis.coloured(random, corpora.LONGEST * synthesis.RATE, alpha)
        clips.append(corpora.write_noise(samples, noise_folder / f"coloured-{number:04d}.wav"))

    held = random.permutation(len(train))[: args.valid].tolist()
    held_noise = random.permutation(len(clips))[: args.valid].tolist()
    valid = zip((train[i] for i in held), (clips[i] for i in held_noise), strict=True)
    _say(args, "valid", write_mixtures(_valid(valid, random), args.out / "valid"))
    noises = {name: _whole(path) for name, path in testing.items()}
    tested = [test[i] for i in random.permutation(len(test))]
    mixtures = test_mixtures(tested, noises, args.clips, random)
    _say(args, "test", write_mixtures(mixtures, args.out / "test"))
    trained = _without(train, held), _without(clips, held_noise)
    write_clean(*trained, args.out / "train")
    print(f"{args.out / 'train'}: {len(trained[0])} clips, {len(trained[1])} noise clips")


def _paper_corpora(
    args: argparse.Namespace,
) -> tuple[list[Clip], list[Clip], dict[str, list[Path]], dict[str, Path]]:
    """Return speech to train and test on, and noise recordings of both kinds; or say all faults."""
    faults: list[Fault] = []
    speech = [
        corpora.librispeech_clips(args.corpus, part) for part in ("train-clean-100", "test-clean")
    ]
    for part in speech:
        faults += [part] if isinstance(part, Fault) else corpora.unfit(part)
    recordings = corpora.noise_recordings(args.noises, args.without)
    if isinstance(recordings, list):
        raise CorpusError([*faults, *recordings])
    testing = corpora.test_recordings(recordings)
    if isinstance(testing, list):
        faults += testing
    faults += corpora.unreadable([path for files in recordings.values() for path in files])
    if faults:
        raise CorpusError(faults)
    train, test = speech
    assert not isinstance(train, Fault)
    assert not isinstance(test, Fault)
    assert not isinstance(testing, list)
    return train, test, recordings, testing


def _check_enough(
    args: argparse.Namespace, train: list[Clip], test: list[Clip], noises: dict[str, list[Path]]
) -> None:
    pieces = sum(corpora.count_pieces(path) for files in noises.values() for path in files)
    needs = {
        "clips in train-clean-100": (len(train), args.valid + 1),
        "noise clips": (pieces + len(synthesis.ALPHAS), args.valid + 1),
        "clips in test-clean": (len(test), args.clips * len(corpora.TEST_NOISES)),
    }
    faults = [
        Fault(f"only {there} {what}", f"at least {needed} (see --valid and --clips)")
        for what, (there, needed) in needs.items()
        if there < needed
    ]
    if faults:
        raise CorpusError(faults)


def _whole(path: Path) -> Array:
    return np.concatenate(list(corpora.pieces(path)))


def _without[T](items: Sequence[T], indices: Sequence[int]) -> list[T]:
    held = set(indices)
    return [item for index, item in enumerate(items) if index not in held]


def _valid(pairs: Iterator[tuple[Clip, Path]], random: np.random.Generator) -> Iterator[Mixture]:
    low, high = VALID_SNRS
    for clip, noise in pairs:
        kind = noise.stem.partition("-")[0]
        yield mix(clip, read(noise), kind, int(random.integers(low, high + 1)), random)


def test_mixtures(
    clips: Sequence[Clip],
    noises: dict[str, Array],
    count: int,
    random: np.random.Generator,
) -> Iterator[Mixture]:
    """Mix each noise, at each ratio, with ``count`` clips of its own."""
    for number, (name, noise) in enumerate(noises.items()):
        for clip in clips[number * count : (number + 1) * count]:
            for snr in TEST_SNRS:
                yield mix(clip, noise, name, snr, random)


test_mixtures.__test__ = False  # type: ignore[attr-defined]


def of_so762(args: argparse.Namespace) -> None:
    """Prepare the same of so762: other speakers in each set, other kinds of noise in testing."""
    speech = corpora.so762_clips(args.corpus)
    if faults := corpora.unfit(clip for clips in speech.values() for clip in clips):
        raise CorpusError(faults)
    spoken = one_of_each_speaker(speech["test"], _random(args, 1))
    needed = args.clips * (len(synthesis.TESTING) + 1) + VOICES
    if len(spoken) < needed or len(speech["dev"]) < args.valid:
        what = f"{len(spoken)} speakers in test and {len(speech['dev'])} clips in dev"
        raise CorpusError([Fault(what, f"{needed} and {args.valid} (see --clips and --valid)")])

    _say(args, "valid", write_mixtures(_computed(args, speech["dev"]), args.out / "valid"))
    # Who babbles is heard nowhere else.
    voices = [clip.read() for clip in spoken[-VOICES:]]
    noises = _test_noises(_random(args, 2), voices)
    mixtures = test_mixtures(spoken, noises, args.clips, _random(args, 3))
    _say(args, "test", write_mixtures(mixtures, args.out / "test"))

    random = _random(args, 4)
    files = []
    for name, kind in synthesis.TRAINING.items():
        for number in range(args.noise_clips):
            samples = 0.1 * kind(random, NOISE_SECONDS * synthesis.RATE)
            file = args.out / "noise" / f"{name}-{number:04d}.wav"
            files.append(corpora.write_noise(samples, file))
    write_clean(speech["train"], files, args.out / "train")
    print(f"{args.out / 'train'}: {len(speech['train'])} clips, {len(files)} noise clips")


def one_of_each_speaker(clips: Sequence[Clip], random: np.random.Generator) -> list[Clip]:
    """Draw a clip of each speaker, of those that are long enough, in random order."""
    spoken: dict[str, list[Clip]] = {}
    for clip in clips:
        if _seconds(clip) >= SHORTEST_SPEECH:
            spoken.setdefault(clip.speaker, []).append(clip)
    drawn = [of[random.integers(len(of))] for of in spoken.values()]
    return [drawn[index] for index in random.permutation(len(drawn))]


def _seconds(clip: Clip) -> float:
    import soundfile

    return soundfile.info(clip.path).duration


def _computed(args: argparse.Namespace, clips: Sequence[Clip]) -> Iterator[Mixture]:
    """Mix clips to validate on with noise of the kinds of training, computed for each."""
    random = _random(args, 5)
    kinds = list(synthesis.TRAINING.items())
    low, high = VALID_SNRS
    for number, index in enumerate(random.permutation(len(clips))[: args.valid]):
        name, kind = kinds[number % len(kinds)]
        noise = kind(random, NOISE_SECONDS * synthesis.RATE)
        yield mix(clips[index], noise, name, int(random.integers(low, high + 1)), random)


def _test_noises(random: np.random.Generator, voices: Sequence[Array]) -> dict[str, Array]:
    samples = TEST_SECONDS * synthesis.RATE
    found = {name: kind(random, samples) for name, kind in synthesis.TESTING.items()}
    return {"babble": synthesis.babble(random, samples, voices), **found}


def _random(args: argparse.Namespace, part: int) -> np.random.Generator:
    """Return a generator of a part's own: what one part draws moves no other."""
    return np.random.default_rng([args.data_seed, part])


def _say(args: argparse.Namespace, name: str, count: int) -> None:
    print(f"{args.out / name}: {count} mixtures")


if __name__ == "__main__":
    sys.exit(main())
