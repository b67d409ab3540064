"""`espnet-bimamba zoo`: small models, packed by ESPnet itself and then spoilt."""

import io
import json
import os
import pickle
import re
import shlex
import stat
import subprocess
import sys
import time
import zipfile
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.main_funcs.pack_funcs import UnsafeArchiveMemberError, pack, unpack
from espnet2.tasks.asr import ASRTask, encoder_choices
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from espnet_model_zoo.downloader import ModelDownloader
from huggingface_hub import ModelCard

from espnet_bimamba import __version__
from espnet_bimamba.cli import main
from espnet_bimamba.cli.zoo import archive, card, check, probe
from espnet_bimamba.errors import PackedModelError
from espnet_bimamba.registry import ENCODERS

DOCS = Path(__file__).parents[2] / "docs/zoo.md"
EXP = "exp/asr_tiny"
STATS = "exp/stats/feats_stats.npz"
OPTIONS = """\
token_list: [<blank>, <unk>, ▁, A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, <sos/eos>]
token_type: char
encoder: conbimamba
encoder_conf: {output_size: 8, linear_units: 8, num_blocks: 1, d_state: 2, input_layer: conv2d}
decoder: transformer
decoder_conf: {attention_heads: 2, linear_units: 8, num_blocks: 1}
frontend_conf: {fs: 8k, n_mels: 20}
normalize: global_mvn
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model that heard nothing yet, packed as stage 14 packs."""
    return pack_tiny(tmp_path_factory.mktemp("tiny"))


def pack_tiny(folder, **options):
    defaults = vars(ASRTask.get_parser().parse_args([]))
    config = defaults | yaml.safe_load(OPTIONS) | {"normalize_conf": {"stats_file": STATS}}
    config |= options
    with chdir(folder):
        (folder / EXP).mkdir(parents=True)
        (folder / STATS).parent.mkdir()
        np.savez(STATS, count=4, sum=np.zeros(20), sum_square=np.full(20, 4.0))
        (folder / EXP / "config.yaml").write_text(yaml_no_alias_safe_dump(config))
        (folder / EXP / "RESULTS.md").write_text("# RESULTS\n|dataset|Err|\n|---|---|\n|test|3|\n")
        torch.manual_seed(0)
        model, _ = ASRTask.build_model_from_file(f"{EXP}/config.yaml")
        torch.save(model.state_dict(), f"{EXP}/1epoch.pth")
        pack(
            files={"asr_model_file": f"{EXP}/1epoch.pth"},
            yaml_files={"asr_train_config": f"{EXP}/config.yaml"},
            option=[STATS, f"{EXP}/RESULTS.md"],
            outpath="tiny.zip",
        )
    return folder / "tiny.zip"


@pytest.fixture
def packed(tiny, tmp_path):
    """A copy of it that may be changed."""
    copy = tmp_path / "model.zip"
    copy.write_bytes(tiny.read_bytes())
    return copy


@pytest.fixture
def spoilt(tiny, tmp_path):
    """Write the model with some members changed, left out (None) or, as pairs, added."""

    def write(changes, added=()):
        path = tmp_path / "model.zip"
        with zipfile.ZipFile(tiny) as old, zipfile.ZipFile(path, "w") as new:
            for info in old.infolist():
                if (data := changes.get(info.filename, old.read(info))) is not None:
                    new.writestr(info.filename, data)
            for name, data in added:
                new.writestr(name, data)
        return path

    return write


def member(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def edited(tiny, name, edit):
    """The YAML of a member, changed by a function."""
    found = yaml.safe_load(zipfile.ZipFile(tiny).read(name))
    edit(found)
    return yaml.safe_dump(found)


@pytest.fixture
def no_process(monkeypatch):
    """What is not in order is never handed to ESPnet."""

    def start(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(check, "_in_fresh_process", start)


GOOD = probe.Report(
    step="transcribe",
    espnet="202611",
    encoder="espnet_bimamba.encoders.conbimamba.ConBiMambaEncoder",
    parameters=9,
    weights_only=True,
    text="A B",
)
REFUSED = probe.Report(
    step="load", espnet="202611", error="ValueError: --encoder must be one of: --encoder conbimamba"
)


@pytest.fixture
def seen(monkeypatch):
    """What the fresh processes would report: with this package, without it."""
    reports = {False: GOOD, True: REFUSED}
    monkeypatch.setattr(
        check, "_in_fresh_process", lambda path, speech, timeout, *, disabled: reports[disabled]
    )
    return reports


@pytest.fixture
def verdict(capsys):
    """Run `zoo check --json`; return the exit status and the failed checks with their details."""

    def run(path, *arguments):
        status = main(["zoo", "check", str(path), "--json", *arguments])
        report = json.loads(capsys.readouterr().out)
        assert report["model"] == str(path)
        assert report["passed"] is (status == 0)
        assert [line["name"] for line in report["checks"]] == list(check.NAMES)
        return status, {
            line["name"]: line["detail"] for line in report["checks"] if line["passed"] is False
        }

    return run


UNSAFE = {
    "/tmp/absolute": "is an absolute path",
    "../climbs": "points outside the folder",
    "exp/../../climbs": "points outside the folder",
    "..\\climbs": "is an absolute path or one of another system",
    "C:/drive": "is an absolute path or one of another system",
    member("link", stat.S_IFLNK | 0o777): "is a symbolic link",
    member("pipe", stat.S_IFIFO | 0o600): "is a special file",
}


@pytest.mark.parametrize(("name", "reason"), UNSAFE.items(), ids=str)
def test_an_unsafe_member_is_refused_before_anything_is_unpacked(
    spoilt, verdict, no_process, name, reason
):
    path = spoilt({}, added=[(name, "/etc/passwd")])
    shown = getattr(name, "filename", name)
    status, failed = verdict(path)
    assert status == 1
    assert failed == {"archive": failed["archive"]}
    assert failed["archive"].startswith(f"{shown!r} {reason}")


@pytest.mark.parametrize("name", ["/tmp/absolute", "../climbs"])
def test_espnet_refuses_names_that_climb_out_too(spoilt, tmp_path, name):
    with pytest.raises(UnsafeArchiveMemberError, match="outside"):
        unpack(spoilt({}, added=[(name, "x")]), tmp_path / "out")


def test_espnet_makes_a_plain_file_of_a_link(spoilt, tmp_path):
    link = member("link", stat.S_IFLNK | 0o777)
    unpack(spoilt({}, added=[(link, "/etc/passwd")]), tmp_path / "out")
    assert not (tmp_path / "out/link").is_symlink()
    assert (tmp_path / "out/link").read_text() == "/etc/passwd"


def test_espnet_follows_what_meta_yaml_names_outside_and_we_do_not(
    tiny, spoilt, tmp_path, verdict, no_process
):
    meta = edited(tiny, "meta.yaml", lambda m: m["files"].update(asr_model_file="/home/me/x.pth"))
    path = spoilt({"meta.yaml": meta})
    assert unpack(path, tmp_path / "out")["asr_model_file"] == "/home/me/x.pth"
    status, failed = verdict(path)
    assert status == 1
    assert (
        failed["meta.yaml"]
        == "meta.yaml: asr_model_file is '/home/me/x.pth', which is not in the archive"
    )


def test_from_the_hub_espnet_even_writes_where_meta_yaml_says(tiny, tmp_path):
    """Why `zoo check` looks at the names in meta.yaml, not only at those of the members."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (tmp_path / "outside.yaml").write_text("encoder: conbimamba\n")
    meta = edited(
        tiny, "meta.yaml", lambda m: m["yaml_files"].update(asr_train_config="../outside.yaml")
    )
    (snapshot / "meta.yaml").write_text(meta)
    ModelDownloader._unpack_cache_dir_for_huggingface(snapshot)
    assert (tmp_path / "outside.resolved.yaml").is_file()


def spoil_meta(name, value):
    return lambda meta: meta.update({name: value})


def of_config(**options):
    return {f"{EXP}/config.yaml": lambda config: config.update(options)}


#: Read as YAML, ten lists of ten: 10^10 items in the last, and all of them in its text.
ALIASES = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    + ["encoder: *a9", "espnet: *a9"]
)
CONFIG = f"{EXP}/config.yaml"
CONTRADICTIONS = [
    ({CONFIG: ALIASES}, (), "configuration", "is not valid YAML: found an alias, which ESPnet"),
    ({"meta.yaml": ALIASES}, (), "meta.yaml", "is not valid YAML: found an alias, which ESPnet"),
    # 10,000 digits, which Python does not write out, and what takes the longer to read.
    ({CONFIG: "a: 0x" + "f" * 10**4}, (), "configuration", "found a number of 10002 characters"),
    ({CONFIG: "a: 1" + ":1" * 10**6}, (), "configuration", "found a number of 2000001 characters"),
    ({CONFIG: "a: 1" + ":1" * 10**6 + ".0"}, (), "configuration", "number of 2000003 characters"),
    ({CONFIG: "a: !!bool x"}, (), "configuration", "is not valid YAML: 'x'"),
    ({CONFIG: "a: !!timestamp x"}, (), "configuration", "is not valid YAML: 'NoneType' object"),
    ({}, [("a/" * 501, "")], "archive", "... is a name of 1002 characters, more than 1000"),
    (
        {CONFIG: spoil_meta("encoder", "x" * 10**6)},
        (),
        "configuration",
        f"encoder is '{'x' * 199}..., none of ours",
    ),
    ({"meta.yaml": None}, (), "meta.yaml", "is not at the top of the archive"),
    ({"meta.yaml": "["}, (), "meta.yaml", "is not valid YAML"),
    ({"meta.yaml": "[]"}, (), "meta.yaml", "holds a list, not a mapping"),
    ({"meta.yaml": b"\xff"}, (), "meta.yaml", "is not UTF-8"),
    ({"meta.yaml": spoil_meta("files", {})}, (), "meta.yaml", "has no asr_model_file in files"),
    ({"meta.yaml": spoil_meta("espnet", "202511")}, (), "meta.yaml", "with espnet 202511; ours"),
    ({f"{EXP}/1epoch.pth": None}, (), "meta.yaml", "1epoch.pth', which is not in the archive"),
    ({STATS: None}, (), "configuration", f"normalize_conf.stats_file is '{STATS}', not in the"),
    (
        {f"{EXP}/config.yaml": spoil_meta("encoder", "conformer")},
        (),
        "configuration",
        f"encoder is 'conformer', none of ours: {', '.join(ENCODERS)}",
    ),
    (
        {f"{EXP}/config.yaml": lambda c: c.update(token_type="bpe", bpemodel="/home/me/bpe.model")},
        (),
        "configuration",
        "bpemodel is '/home/me/bpe.model', not in the archive; inference reads it",
    ),
    ({}, [("RESULTS.md", "1"), ("RESULTS.md", "2")], "archive", "'RESULTS.md' is in it more than"),
    ({}, [("exp//asr_tiny/./config.yaml", "")], "archive", f"'{EXP}/config.yaml' is in it more"),
    ({}, [("meta.yaml/x", "")], "archive", "'meta.yaml' is a file in it, and a folder for 'meta"),
    ({}, [("meta.yaml/", "")], "archive", "'meta.yaml' is in it more than once"),
    ({}, [("x/", ""), ("x", "")], "archive", "'x' is a file in it, and a folder for 'x/'"),
    ({"meta.yaml": "[" * 500}, (), "meta.yaml", "is not valid YAML"),
    ({"meta.yaml": "espnet: 2026-99-99"}, (), "meta.yaml", "is not valid YAML"),
    (
        {"meta.yaml": spoil_meta("files", {"asr_model_file": [1]})},
        (),
        "meta.yaml",
        "is a list, which is not in",
    ),
    (
        of_config(normalize_conf=["x"]),
        (),
        "configuration",
        "normalize_conf is a list, not a mapping",
    ),
    (of_config(frontend_conf=[1]), (), "configuration", "frontend_conf is a list, not a mapping"),
    (of_config(encoder_conf="x"), (), "configuration", "encoder_conf is 'x', not a mapping"),
    (of_config(encoder=["x"]), (), "configuration", "encoder is a list, none of ours"),
    (of_config(frontend_conf={"fs": "abc"}), (), "configuration", "frontend_conf.fs is 'abc', no"),
    (of_config(frontend_conf={"fs": 10**12}), (), "configuration", "is 1000000000000, no number"),
    (
        of_config(frontend_conf={"fs": "9" * 400}),
        (),
        "configuration",
        "99..., no number of samples",
    ),
    (of_config(frontend_conf={"fs": 10**90}), (), "configuration", "0000, no number of samples"),
    (of_config(frontend_conf={"fs": [8]}), (), "configuration", "frontend_conf.fs is a list, no"),
    (of_config(token_type="bpe", bpemodel=5), (), "configuration", "bpemodel is 5, not in the"),
    (of_config(token_list={"a": 1}), (), "configuration", "token_list is a dict, not in"),
    (
        of_config(normalize_conf={"stats_file": [1]}),
        (),
        "configuration",
        "stats_file is a list, not in",
    ),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("changes", "added", "name", "reason"), CONTRADICTIONS)
def test_an_archive_that_contradicts_itself_is_named(
    tiny, spoilt, verdict, no_process, capsys, changes, added, name, reason
):
    changes = {
        member: edited(tiny, member, change) if callable(change) else change
        for member, change in changes.items()
    }
    path = spoilt(changes, added)
    status, failed = verdict(path)
    assert status == 1
    assert list(failed) == [name]
    assert reason in failed[name]
    assert main(["zoo", "card", str(path)]) == 2
    assert reason in capsys.readouterr().err


def test_espnet_writes_no_aliases():
    """Why a configuration with one is refused."""
    twice = ["valid", "acc", "max"]
    written = yaml_no_alias_safe_dump({"best_model_criterion": [twice], "early_stopping": twice})
    assert "&" in yaml.safe_dump([twice, twice])
    assert "&" not in written
    assert "*" not in written


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("conformer", "'conformer'"),
        ("a\nb\x1b[0m\u202e", r"'a\nb\x1b[0m\u202e'"),
        ("x" * 1000, f"'{'x' * 199}..."),
        (16000, "16000"),
        (None, "None"),
        ([["x"]], "a list"),
        ({"a": "x"}, "a dict"),
    ],
)
def test_of_what_an_archive_holds_only_words_are_shown(value, words):
    assert archive.shown(value) == words


@pytest.mark.parametrize(
    ("noted", "shown"), [(["x"], "?"), (None, "?"), ("²", "²"), (202611, "202611")]
)
def test_versions_are_shown_if_they_are_such(tiny, spoilt, capsys, seen, noted, shown):
    path = spoilt({"meta.yaml": edited(tiny, "meta.yaml", spoil_meta("espnet", noted))})
    main(["zoo", "check", str(path)])
    assert f"made with espnet {shown}, torch {torch.__version__}\n" in capsys.readouterr().out
    main(["zoo", "card", str(path), "-o", str(path.with_name("card.md"))])
    written = "(version not noted)" if shown == "?" else shown
    assert f"(https://github.com/espnet/espnet/) {written}, with torch {torch.__version__}." in (
        path.with_name("card.md").read_text()
    )


FORGED = "2\nok      loading        \x1b[2K\r\u2028ok\u202e x"
SHOWN = r"2 ok      loading        \x1b[2K  ok\u202e x"


def test_an_archive_writes_no_line_of_its_own_into_the_list(tiny, spoilt, capsys, seen):
    seen[False] = probe.Report(step="load", error=f"OSError: {FORGED}")
    meta = edited(tiny, "meta.yaml", spoil_meta("torch", FORGED))
    path = spoilt({"meta.yaml": meta}, added=[(FORGED, "")])
    main(["zoo", "card", str(path), "-o", str(path.with_name("card.md"))])
    assert f", with torch {SHOWN}.\n" in path.with_name("card.md").read_text()
    capsys.readouterr()
    main(["zoo", "check", str(path)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [line[8:23].strip() for line in lines[:-2]] == list(check.NAMES)
    assert lines[1].endswith(f", torch {SHOWN}")
    assert lines[4] == f"FAILED  loading        OSError: {SHOWN}"
    assert all(char.isprintable() for char in out.replace("\n", ""))


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({}, [(f"/{FORGED}", "")]),
        ({}, [(FORGED, ""), (FORGED, "")]),
        ({"meta.yaml": f'"{FORGED[:1]}\\n{FORGED[2:10]}'}, []),
        ({"meta.yaml": spoil_meta("files", {"asr_model_file": FORGED})}, []),
        ({"meta.yaml": spoil_meta("files", {"asr_model_file": "meta.yaml", FORGED: "x"})}, []),
        ({CONFIG: spoil_meta("encoder", FORGED)}, []),
        (of_config(frontend_conf={"fs": FORGED}), []),
        (of_config(token_list=FORGED), []),
        (
            {"meta.yaml": spoil_meta("yaml_files", {"asr_train_config": f"{FORGED}.yaml"})},
            [(f"{FORGED}.yaml", "[]")],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_refusal_is_one_line_whatever_is_refused(
    tiny, spoilt, no_process, capsys, changes, added
):
    changes = {
        member: edited(tiny, member, change) if callable(change) else change
        for member, change in changes.items()
    }
    path = spoilt(changes, added)
    assert main(["zoo", "card", str(path)]) == 2
    assert main(["zoo", "check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert len(out.splitlines()) == len(check.NAMES) + 2
    assert all(char.isprintable() for char in (out + err).replace("\n", ""))


LM = "exp/lm/config.yaml"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("token_list: /etc/passwd", "token_list is '/etc/passwd', not in the archive; inference"),
        ("[]", "holds a list, not a mapping"),
    ],
)
def test_the_language_models_configuration_is_looked_at(
    tiny, spoilt, verdict, no_process, text, reason
):
    meta = edited(tiny, "meta.yaml", lambda m: m["yaml_files"].update(lm_train_config=LM))
    _, failed = verdict(spoilt({"meta.yaml": meta}, added=[(LM, text)]))
    assert list(failed) == ["configuration"]
    assert failed["configuration"].startswith(f"{LM}: {reason}")


@pytest.mark.parametrize("text", ["token_list: ./meta.yaml", "{token_list: [a], bpemodel: /x}"])
def test_a_language_model_with_packed_tokens_is_in_order(tiny, spoilt, verdict, seen, text):
    meta = edited(tiny, "meta.yaml", lambda m: m["yaml_files"].update(lm_train_config=LM))
    assert list(verdict(spoilt({"meta.yaml": meta}, added=[(LM, text)]))[1]) == ["card"]


def test_what_is_too_large_is_refused_before_it_is_unpacked(
    packed, verdict, no_process, monkeypatch
):
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("it was unpacked"))
    monkeypatch.setattr(archive, "LARGEST_ARCHIVE", 1000)
    reason = "unpacked, it would be 0 GiB, more than 0"
    assert verdict(packed)[1] == {"archive": reason}


def test_a_text_that_is_too_large_is_not_read(packed, verdict, no_process, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST_TEXT", 10)
    assert verdict(packed)[1] == {"meta.yaml": "meta.yaml: is no text: 0 MiB"}


def test_another_meta_yaml_that_comes_first_is_refused(tiny, tmp_path, verdict, no_process):
    """ESPnet reads the first file of that name, in whatever folder."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(tiny) as old, zipfile.ZipFile(path, "w") as new:
        new.writestr("exp/meta.yaml", "files: {}\nyaml_files: {}\n")
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert unpack(path, tmp_path / "out") == {}
    assert "ESPnet would read 'exp/meta.yaml'" in verdict(path)[1]["meta.yaml"]


def test_a_damaged_archive_is_refused(packed, verdict, no_process):
    with zipfile.ZipFile(packed) as found:
        info = found.getinfo(f"{EXP}/1epoch.pth")
    data = bytearray(packed.read_bytes())
    data[info.header_offset + 200] ^= 1
    packed.write_bytes(data)
    assert f"'{EXP}/1epoch.pth' is damaged" in verdict(packed)[1]["archive"]


def packed_so(method, *, spoil=lambda data, info: None):
    """An archive of one member, packed by a method, with some bytes spoilt."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        info = zipfile.ZipInfo("é")
        info.compress_type = method
        file.writestr(info, bytes(range(256)) * 40)
    data = bytearray(made.getvalue())
    spoil(data, data.index(b"PK\1\2"))
    return bytes(data)


def spoil_data(data, directory):
    data[36:76] = b"\xff" * 40


def spoil_bytes(local, central, value):
    """Overwrite a field of both headers of the member."""

    def spoil(data, directory):
        data[local : local + len(value)] = value
        data[directory + central : directory + central + len(value)] = value

    return spoil


def longer(data, directory):
    data[directory + 20 : directory + 28] = b"\xff\xff\x0f\0" * 2


UNREADABLE = {
    "encrypted": (zipfile.ZIP_STORED, spoil_bytes(6, 8, b"\1\x08"), "is encrypted, password"),
    "deflated": (zipfile.ZIP_DEFLATED, spoil_data, "Error -3 while decompressing data"),
    "lzma": (zipfile.ZIP_LZMA, spoil_data, "Invalid or unsupported options"),
    "bzip2": (zipfile.ZIP_BZIP2, spoil_data, "Invalid data stream"),
    "of an unknown kind": (zipfile.ZIP_STORED, spoil_bytes(8, 10, b"\x09"), "not supported"),
    "too short": (zipfile.ZIP_STORED, longer, "cannot be read: "),
    "of a name": (zipfile.ZIP_STORED, spoil_bytes(30, 46, b"\xff"), "codec can't decode"),
}


@pytest.mark.parametrize(("method", "spoil", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_unpacked_is_refused(
    tmp_path, verdict, no_process, capsys, method, spoil, reason
):
    path = tmp_path / "model.zip"
    path.write_bytes(packed_so(method))
    assert archive.safe_members(path) == ("é",), "as long as it is not spoilt"
    path.write_bytes(packed_so(method, spoil=spoil))
    failed = verdict(path)[1]
    assert failed["archive"].startswith("cannot be read: ")
    assert reason in failed["archive"]
    assert main(["zoo", "card", str(path)]) == 2
    assert reason in capsys.readouterr().err


def test_what_is_no_archive_is_refused(tmp_path, verdict, no_process):
    path = tmp_path / "model.zip"
    path.write_text("no zip")
    assert verdict(path)[1] == {"archive": "cannot be read: File is not a zip file"}


@pytest.mark.parametrize("action", ["check", "card"])
@pytest.mark.parametrize(
    ("name", "reason"), [("none.zip", "is no file"), ("model.tar", "is not called *.zip")]
)
def test_without_a_model_there_is_nothing_to_check(tmp_path, capsys, action, name, reason):
    (tmp_path / "model.tar").touch()
    assert main(["zoo", action, str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"espnet-bimamba: {tmp_path / name}: {reason}")


def test_a_model_without_card_is_not_in_order(packed, verdict, seen):
    status, failed = verdict(packed)
    assert status == 1
    command = f"`espnet-bimamba zoo card {packed} --source URL` does"
    assert failed == {"card": f"there is no README.md; {command}"}


def test_a_card_that_does_not_say_what_is_needed_is_not_in_order(spoilt, verdict, seen):
    path = spoilt({}, added=[("README.md", "uses `conbimamba`, pip install espnet")])
    assert verdict(path)[1]["card"].startswith("README.md does not say espnet-bimamba; ")


def test_a_card_without_a_source_is_not_in_order(packed, verdict, seen):
    assert main(["zoo", "card", str(packed)]) == 0
    says = "README.md does not say from where pip installs espnet-bimamba; "
    assert verdict(packed)[1]["card"].startswith(says)


@pytest.mark.parametrize("source", [".", "./espnet-bimamba", "/home/me/espnet-bimamba", "~/x", ""])
def test_a_source_is_for_others(packed, capsys, source):
    assert main(["zoo", "card", str(packed), "--source", source]) == 2
    assert f"--source={source!r} is not possible: allowed is what pip takes elsewhere" in (
        capsys.readouterr().err
    )


def test_a_source_is_quoted_for_the_shell(packed, verdict, seen):
    source = "git+https://x/it's here"
    main(["zoo", "card", str(packed), "--source", source])
    text = zipfile.ZipFile(packed).read("README.md").decode()
    [command] = [line for line in text.splitlines() if line.startswith("pip install")]
    assert shlex.split(command) == ["pip", "install", source]
    assert verdict(packed)[0] == 0


def test_a_model_with_card_is_in_order(packed, capsys, seen):
    assert main(["zoo", "card", str(packed), "--source", "git+https://x"]) == 0
    capsys.readouterr()
    assert main(["zoo", "check", str(packed)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[: len(check.NAMES)]] == ["ok"] * len(check.NAMES)
    assert lines[-1] == "In order."
    assert "encoder: conbimamba; packed: normalize_conf.stats_file" in out
    assert "heard 'A B'" in out
    assert lines[7] == (
        "ok      without us     ESPnet stops at --encoder conbimamba; "
        "which package has it is for the card to say"
    )


SPOILT_REPORTS = [
    ({"step": "load", "error": "OSError: gone"}, {"loading": "OSError: gone"}),
    (
        {"step": "load", "error": REFUSED.error},
        {"loading": f"{REFUSED.error}; ESPnet does not know our encoders: see"},
    ),
    ({"encoder": "espnet2.asr.X"}, {"loading": "built espnet2.asr.X, which is none of ours"}),
    ({"weights_only": False}, {"weights": "ESPnet asked torch.load for more than weights"}),
    ({"missing": ["a", "b"]}, {"weights": "they lack 2 of 9 tensors (a, b), which ESPnet leaves"}),
    ({"unexpected": list("abcd")}, {"weights": "they hold 4 of 9 tensors (a, b, c, ...), for"}),
    ({"error": "RuntimeError: no"}, {"transcribing": "RuntimeError: no"}),
]


@pytest.mark.parametrize(("changes", "expected"), SPOILT_REPORTS)
def test_what_the_process_saw_is_judged(packed, verdict, seen, changes, expected):
    card.add(packed, card.render(archive.read(packed), card.Labels(source="git+https://x")))
    seen[False] = probe.Report(**(vars(GOOD) | changes))
    status, failed = verdict(packed)
    assert status == 1
    assert list(failed) == list(expected)
    for name, detail in expected.items():
        assert detail in failed[name]


@pytest.mark.parametrize(
    ("report", "detail"),
    [
        (GOOD, "ESPnet 202611 loads it without this package"),
        (probe.Report(error="ImportError: x"), "fails in another way: ImportError: x"),
    ],
)
def test_without_us_it_must_fail_by_naming_the_encoder(packed, verdict, seen, report, detail):
    seen[True] = report
    assert detail in verdict(packed)[1]["without us"]


def test_espnet_makes_its_message_of_its_own_table_and_the_name():
    """Why the card has to name the package."""
    with pytest.raises(ValueError, match="must be one of") as raised:
        encoder_choices.get_class("no_encoder")
    shown = f"--encoder must be one of {encoder_choices.choices()}: --encoder no_encoder"
    assert str(raised.value) == shown


@pytest.mark.parametrize(
    ("rate", "channels", "shown"),
    [(16000, 1, "1 channels, 16000 Hz"), (8000, 2, "2 channels, 8000 Hz")],
)
def test_speech_that_does_not_fit_is_refused(packed, tmp_path, capsys, seen, rate, channels, shown):
    wav = tmp_path / "speech.wav"
    soundfile.write(wav, np.zeros((100, channels)), rate)
    assert main(["zoo", "check", str(packed), "--wav", str(wav)]) == 2
    err = capsys.readouterr().err
    assert shown in err
    assert "allowed is one channel at 8000 Hz" in err


def test_speech_that_is_not_there_is_refused_before_anything_is_checked(
    packed, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(archive, "safe_members", lambda _: pytest.fail("it was checked"))
    assert main(["zoo", "check", str(packed), "--wav", str(tmp_path / "none.wav")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"--wav='{tmp_path}/none.wav' is not possible: allowed is a sound file" in err


@pytest.fixture
def probed(tmp_path, monkeypatch):
    """Probe a model in this process, with a home of its own."""

    def run(path):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("ESPNET_BIMAMBA_BACKEND", "reference")  # of which nothing is compiled
        soundfile.write(tmp_path / "speech.wav", np.random.default_rng(0).normal(size=8000), 8000)
        with chdir(tmp_path):
            return probe.probe(path, tmp_path / "speech.wav")

    return run


def test_the_probe_loads_and_transcribes(packed, probed):
    report = probed(packed)
    assert report.error is None
    assert report.step == "transcribe"
    assert report.encoder == GOOD.encoder
    assert report.weights_only is True
    assert (report.missing, report.unexpected) == ([], [])
    assert report.parameters > 50
    assert isinstance(report.text, str)
    assert torch.load.__module__ == "torch.serialization", "torch.load is as it was"


def test_the_probe_sees_weights_that_espnet_would_replace_by_chance(tiny, spoilt, probed):
    name = f"{EXP}/1epoch.pth"
    weights = torch.load(io.BytesIO(zipfile.ZipFile(tiny).read(name)), weights_only=True)
    weights["no.such"] = weights.pop("ctc.ctc_lo.bias")
    changed = io.BytesIO()
    torch.save(weights, changed)
    report = probed(spoilt({name: changed.getvalue()}))
    assert report.error is None
    assert report.missing == ["ctc.ctc_lo.bias"]
    assert report.unexpected == ["no.such"]


def test_the_probe_takes_the_words_beside_those_of_intermediate_ctc(tiny, tmp_path_factory, probed):
    path = pack_tiny(
        tmp_path_factory.mktemp("interctc"),
        encoder_conf={
            **yaml.safe_load(OPTIONS)["encoder_conf"],
            "num_blocks": 2,
            "interctc_layer_idx": [1],
        },
        model_conf={"interctc_weight": 0.5},
    )
    report = probed(path)
    assert report.error is None
    assert isinstance(report.text, str)


@pytest.mark.parametrize(
    ("asked", "noted"),
    [({}, True), ({"weights_only": None}, True), ({"weights_only": False}, False)],
)
def test_the_probe_notes_what_torch_was_asked_for_and_reads_weights(tmp_path, asked, noted):
    torch.save({"x": torch.ones(2)}, tmp_path / "weights.pth")
    torch.save({"x": Malicious(tmp_path / "executed")}, tmp_path / "code.pth")
    with probe._watched_loads() as loads:
        read = torch.load(tmp_path / "weights.pth", **asked)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            torch.load(tmp_path / "code.pth", **asked)
    assert loads == [(noted, read)]
    assert not (tmp_path / "executed").exists()


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_among_the_weights_is_not_run(spoilt, probed, tmp_path, monkeypatch):
    marker = tmp_path / "executed"
    weights = io.BytesIO()
    torch.save({"x": Malicious(marker)}, weights)
    path = spoilt({f"{EXP}/1epoch.pth": weights.getvalue()})
    for allowed in ("0", "1"):
        monkeypatch.setenv("ESPNET_ALLOW_UNSAFE_TORCH_LOAD", allowed)
        report = probed(path)
        assert report.step == "load"
        assert "weights_only" in report.error or "Weights only" in report.error
        assert not marker.exists()


def test_a_fresh_process_gets_nothing_that_would_help_or_harm(monkeypatch, tmp_path):
    for name in (*check.UNSAFE_VARIABLES, check.DISABLE):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ESPNET_BIMAMBA_BACKEND", "reference")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    variables = check._environment(tmp_path, disabled=False)
    assert not {check.DISABLE, *check.UNSAFE_VARIABLES} & set(variables)
    assert variables["ESPNET_BIMAMBA_BACKEND"] == "reference", "as it was asked for"
    assert (variables["HOME"], variables["XDG_CACHE_HOME"]) == (str(tmp_path), "/cache")
    assert check._environment(tmp_path, disabled=True)[check.DISABLE] == "1"


@pytest.fixture
def something_to_read():
    """Standard input of this process is something that is not empty, as a terminal's is."""
    before, (reader, writer) = os.dup(0), os.pipe()
    os.write(writer, b"yes\n")
    os.close(writer)
    os.dup2(reader, 0)
    os.close(reader)
    yield
    os.dup2(before, 0)
    os.close(before)


def test_the_process_is_kept_from_this_environment(
    packed, monkeypatch, tmp_path, something_to_read
):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "seen = sys.flags.isolated, os.getcwd() == os.environ['HOME'], os.listdir(), "
        "sys.stdin.read()\n"
        "open(sys.argv[3], 'w').write(json.dumps({'text': repr(seen)}))\n"
    )
    monkeypatch.setattr(probe, "__file__", str(script))
    report = check._in_fresh_process(packed, packed, 60, disabled=False)
    assert report.text == repr((1, True, [], ""))


def test_a_process_that_dies_says_its_last_words(packed, monkeypatch, tmp_path):
    dying = tmp_path / "dying.py"
    dying.write_text("import sys; sys.exit('killed by the kernel')")
    monkeypatch.setattr(probe, "__file__", str(dying))
    report = check._in_fresh_process(packed, packed, 60, disabled=False)
    assert report.error == "the process ended with exit code 1: killed by the kernel"


#: Never ends, nor does what it starts, and writes down who that is.
STALLING = """\
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
open({pid!r}, "w").write(str(child.pid))
time.sleep(1000)
"""


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_process_that_stalls_is_ended_with_all_it_started(packed, verdict, monkeypatch, tmp_path):
    card.add(packed, card.render(archive.read(packed), card.Labels(source="git+https://x")))
    pid = tmp_path / "pid"
    stalling = tmp_path / "stalling.py"
    stalling.write_text(STALLING.format(pid=str(pid)))
    monkeypatch.setattr(probe, "__file__", str(stalling))
    status, failed = verdict(packed, "--timeout", "3")
    assert status == 1
    said = "not done after 3 s, which --timeout allows"
    assert failed == {"loading": said, "without us": f"fails in another way: {said}"}
    for _ in range(100):  # the kernel ends it in its own time
        if not is_running(pid.read_text()):
            break
        time.sleep(0.1)
    assert not is_running(pid.read_text())


@pytest.mark.parametrize("timeout", ["0", "-1", "1.5", "soon"])
def test_a_timeout_is_a_number_of_seconds(packed, capsys, timeout):
    with pytest.raises(SystemExit) as raised:
        main(["zoo", "check", str(packed), f"--timeout={timeout}"])
    assert raised.value.code == 2
    says = f"argument --timeout: {timeout!r} is not possible: allowed is a whole number of seconds"
    assert says in capsys.readouterr().err


def test_the_limits_of_the_guide_are_those_of_the_program():
    text = DOCS.read_text()
    documented = {
        "no larger than {} GiB when unpacked": archive.LARGEST_ARCHIVE / 2**30,
        "no name in it is longer than {} characters": archive.LONGEST_NAME,
        "of {} MiB at most": archive.LARGEST_TEXT / 2**20,
        "may take {} seconds": check.TIMEOUT,
    }
    for words, limit in documented.items():
        [said] = re.findall(words.format(r"([\d.]+)"), text)
        assert float(said) == limit, words


def test_the_card_says_what_is_needed_and_how_it_is_used(packed, capsys):
    arguments = [
        "--repo",
        "me/tiny",
        "--corpus",
        "an4",
        "--language",
        "en",
        "--source",
        "git+https://x",
    ]
    assert main(["zoo", "card", str(packed), *arguments]) == 0
    assert capsys.readouterr() == ("", f"README.md is in {packed}\n")
    text = zipfile.ZipFile(packed).read("README.md").decode()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "tags": ["espnet", "audio", "automatic-speech-recognition", "espnet-bimamba"],
        "language": "en",
        "datasets": ["an4"],
        "license": "cc-by-4.0",
        "pipeline_tag": "automatic-speech-recognition",
    }
    assert ModelCard(text).data.to_dict() == front, "as the Hub reads it"
    assert "### `me/tiny`\n" in text
    assert f"**espnet-bimamba** {__version__} or later" in text
    assert "\npip install git+https://x\n" in text
    assert "--encoder must be one of (...): --encoder conbimamba" in text
    assert 'Speech2Text.from_pretrained("me/tiny")' in text
    assert "# one channel, 8000 Hz" in text
    assert "--download_model me/tiny" in text
    assert "|test|3|" in text
    assert "\nencoder: conbimamba\n" in text


def test_what_nobody_knows_is_left_out_and_said(packed, capsys):
    assert main(["zoo", "card", str(packed), "--license", "mit"]) == 0
    err = capsys.readouterr().err
    for option in ("repo", "corpus", "language"):
        assert f"note: it does not name the {option}: --{option} does\n" in err
    assert "note: it does not say from where pip installs espnet-bimamba: --source does" in err
    text = zipfile.ZipFile(packed).read("README.md").decode()
    assert set(yaml.safe_load(text.split("---")[1])) == {"tags", "license", "pipeline_tag"}
    assert 'from_pretrained("model.zip")' in text
    assert "in a clone of espnet-bimamba\npip install .\n" in text
    assert "None" not in text.split("## ASR config")[0]


def test_corpus_and_language_are_those_of_the_recipe(tiny, spoilt, tmp_path, capsys):
    bpe = "data/zh_token_list/bpe_unigram30/bpe.model"
    config = edited(
        tiny, f"{EXP}/config.yaml", lambda c: c.update(token_type="bpe", bpemodel=f"./{bpe}"[2:])
    )
    path = spoilt({f"{EXP}/config.yaml": config}, added=[(bpe, "")])
    exp = tmp_path / "egs2/aishell/asr1/exp"
    exp.mkdir(parents=True)
    path = path.rename(exp / "model.zip")
    assert main(["zoo", "card", str(path)]) == 0
    text = zipfile.ZipFile(path).read("README.md").decode()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["datasets"], front["language"]) == (["aishell"], "zh")


OWN = {"asru": "egs/asru/asr1/run.sh", "so762": "egs/so762/asr1/run.sh"}


@pytest.mark.parametrize("corpus", OWN)
def test_a_recipe_of_ours_is_not_called_espnets(packed, tmp_path, corpus):
    exp = tmp_path / f"egs2/{corpus}/asr1/exp"
    exp.mkdir(parents=True)
    path = packed.rename(exp / "model.zip")
    assert main(["zoo", "card", str(path), "--repo", "me/tiny"]) == 0
    text = zipfile.ZipFile(path).read("README.md").decode()
    assert (
        f"This model was trained using the {corpus} recipe of espnet-bimamba, `{OWN[corpus]}`, "
        "with [ESPnet](https://github.com/espnet/espnet/) "
    ) in text
    assert "recipe in" not in text
    assert "recipe of ESPnet" not in text
    assert "--download_model" not in text, "ESPnet has no such recipe to run it in"


def test_a_stock_recipe_is_espnets(packed, capsys):
    assert main(["zoo", "card", str(packed), "--corpus", "an4", "--repo", "me/x", "-o", "-"]) == 0
    text = capsys.readouterr().out
    assert (
        "was trained using the an4 recipe in [ESPnet](https://github.com/espnet/espnet/) " in text
    )
    assert "In the an4 recipe of ESPnet:\n\n```bash\n./run.sh " in text


def test_without_a_recipe_espnet_is_named(packed, capsys):
    assert main(["zoo", "card", str(packed), "-o", "-"]) == 0
    assert "was trained in [ESPnet](https://github.com/espnet/espnet/) " in capsys.readouterr().out


def test_with_intermediate_ctc_the_usage_takes_both_results(tiny, spoilt):
    config = edited(
        tiny,
        f"{EXP}/config.yaml",
        lambda c: c["encoder_conf"].update(interctc_layer_idx=[1]),
    )
    text = card.render(archive.read(spoilt({f"{EXP}/config.yaml": config})), card.Labels())
    assert "nbest, _ = speech2text(speech)" in text


def test_a_second_card_takes_the_place_of_the_first(packed, tiny):
    main(["zoo", "card", str(packed), "--repo", "me/tiny"])
    first = packed.read_bytes()
    main(["zoo", "card", str(packed), "--repo", "me/tiny"])
    assert packed.read_bytes() == first, "the same card makes the same bytes"
    main(["zoo", "card", str(packed), "--repo", "me/other"])
    with zipfile.ZipFile(packed) as now, zipfile.ZipFile(tiny) as before:
        assert now.testzip() is None
        assert now.namelist() == [*before.namelist(), "README.md"]
        assert "me/other" in now.read("README.md").decode()
        for name in before.namelist():
            assert now.read(name) == before.read(name)


def test_a_card_is_as_old_as_what_was_packed(tmp_path):
    """Lest the bytes change with the clock."""
    path, date = tmp_path / "model.zip", (1999, 12, 31, 23, 59, 58)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(zipfile.ZipInfo("meta.yaml", date), "")
    card.add(path, "card")
    with zipfile.ZipFile(path) as found:
        assert {info.filename: info.date_time for info in found.infolist()} == {
            "meta.yaml": date,
            "README.md": date,
        }


def test_espnet_unpacks_a_model_with_card_as_before(packed, tmp_path):
    before = unpack(packed, tmp_path / "out")
    main(["zoo", "card", str(packed)])
    assert unpack(packed, tmp_path / "out", use_cache=False) == before
    assert (tmp_path / "out/README.md").is_file()


def test_a_card_may_go_elsewhere(packed, tiny, tmp_path):
    out = tmp_path / "README.md"
    assert main(["zoo", "card", str(packed), "-o", str(out)]) == 0
    assert out.read_text().startswith("---\ntags:\n- espnet\n")
    assert packed.read_bytes() == tiny.read_bytes()


def test_a_card_may_go_to_stdout(packed, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", "card", str(packed), "-o", "-"]) == 0
    out, err = capsys.readouterr()
    assert out == card.render(archive.read(packed), card.Labels())
    assert "README.md is in" not in err
    assert packed.read_bytes() == tiny.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_write_that_fails_leaves_everything_as_it_was(
    packed, tiny, tmp_path, monkeypatch, capsys, elsewhere
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    arguments = ["-o", str(tmp_path / "README.md")] if elsewhere else []
    assert main(["zoo", "card", str(packed), *arguments]) == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert packed.read_bytes() == tiny.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_an_archive_behind_a_link_stays_there(packed, tmp_path):
    link = tmp_path / "link.zip"
    link.symlink_to(packed)
    main(["zoo", "card", str(link)])
    assert link.is_symlink()
    assert "README.md" in zipfile.ZipFile(packed).namelist()


def test_no_card_is_written_for_an_unsafe_archive(spoilt, capsys):
    path = spoilt({}, added=[("../climbs", "x")])
    assert main(["zoo", "card", str(path)]) == 2
    assert f"{path}: '../climbs' points outside" in capsys.readouterr().err


@pytest.mark.parametrize("licence", ["", " "])
def test_a_card_has_a_licence(packed, capsys, licence):
    assert main(["zoo", "card", str(packed), "--license", licence]) == 2
    assert f"--license={licence!r} is not possible: allowed is a licence" in capsys.readouterr().err
    assert "README.md" not in zipfile.ZipFile(packed).namelist()


@pytest.mark.parametrize("language", ["english speech", "EN", "e", "engl", "zh, en", "zh,"])
def test_a_language_is_a_code(packed, capsys, language):
    assert main(["zoo", "card", str(packed), "--language", language]) == 2
    assert (
        f"--language={language!r} is not possible: allowed is a code of two or three letters, "
        "for example en, or several: zh,en."
    ) in capsys.readouterr().err
    assert "README.md" not in zipfile.ZipFile(packed).namelist()


@pytest.mark.parametrize(("language", "listed"), [("yue", "yue"), ("zh,en", ["zh", "en"])])
def test_several_languages_are_a_list(packed, capsys, language, listed):
    assert main(["zoo", "card", str(packed), "--language", language, "-o", "-"]) == 0
    front = yaml.safe_load(capsys.readouterr().out.split("---")[1])
    assert front["language"] == listed


def test_what_is_no_code_in_the_path_of_the_tokens_is_not_guessed(tiny, spoilt, capsys):
    bpe = "data/multilingual_token_list/bpe_unigram30/bpe.model"
    config = edited(tiny, f"{EXP}/config.yaml", lambda c: c.update(token_type="bpe", bpemodel=bpe))
    path = spoilt({f"{EXP}/config.yaml": config}, added=[(bpe, "")])
    assert main(["zoo", "card", str(path)]) == 0
    assert "note: it does not name the language" in capsys.readouterr().err


def test_a_repo_has_an_owner(packed, capsys):
    assert main(["zoo", "card", str(packed), "--repo", "tiny"]) == 2
    assert "--repo='tiny' is not possible: allowed is OWNER/NAME" in capsys.readouterr().err


def test_the_error_carries_its_part(packed):
    packed.write_text("no zip")
    with pytest.raises(PackedModelError) as raised:
        archive.read(packed)
    assert (raised.value.path, raised.value.part) == (packed, "archive")


HF = {" ".join(words.split()) for words in re.findall(r"`hf ((?:[a-z]+ ?)+)", DOCS.read_text())}


def test_the_hub_commands_of_the_guide_are_there(tmp_path):
    assert {"auth login", "repos create", "upload"} == HF
    program = (
        "from importlib.metadata import entry_points\n"
        "(hf,) = entry_points(group='console_scripts', name='hf')\n"
        "hf.load()()\n"
    )
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HOME": str(tmp_path)}
    for command in HF:
        done = subprocess.run(
            [sys.executable, "-c", program, *command.split(), "--help"],
            env=os.environ | quiet,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"{command} [OPTIONS]" in done.stdout
        if command == "auth login":
            assert "--add-to-git-credential" in done.stdout
