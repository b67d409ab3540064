"""Files are there whole or not at all."""

import multiprocessing

import pytest

from espnet_bimamba import files


def test_a_file_is_written_as_it_is_meant(tmp_path):
    path = tmp_path / "text"
    files.write_whole(path, "你 好\r\n\n")
    assert path.read_bytes() == "你 好\r\n\n".encode()
    files.write_whole(path, "again")
    assert path.read_text() == "again"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=repr)
def test_after_a_failure_everything_is_as_it_was(tmp_path, error):
    path = tmp_path / "file.md"
    path.write_text("before")

    def fail():
        with files.draft_of(path) as draft:
            draft.write_text("half")
            assert draft.suffix == ".md", "by which matplotlib knows the format"
            assert path.read_text() == "before"
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_may_be_a_link(tmp_path):
    with files.draft_of(tmp_path / "link") as draft:
        draft.symlink_to("nowhere")
    assert (tmp_path / "link").readlink().name == "nowhere"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["none/file", "a file/file"])
def test_a_place_that_is_none_is_the_error(tmp_path, place):
    (tmp_path / "a file").touch()
    with pytest.raises(OSError, match=place.partition("/")[0]):
        files.write_whole(tmp_path / place, "x")


def write_often(path, letter):
    for _ in range(200):
        files.write_whole(path, letter * 10_000)


def test_two_processes_at_once_write_one_of_both(tmp_path):
    path = tmp_path / "file"
    writers = [multiprocessing.Process(target=write_often, args=(path, x)) for x in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {"a" * 10_000, "b" * 10_000}
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_picture_makes_the_same_bytes(tmp_path):
    from matplotlib.figure import Figure

    written = []
    for folder in ("one", "two"):
        figure = Figure()
        figure.subplots().plot([1, 2], label="x")
        saved = files.save_figure(figure, tmp_path / folder / "picture", dpi=50)
        assert [file.name for file in saved] == ["picture.png", "picture.svg"]
        assert sorted((tmp_path / folder).iterdir()) == saved
        written.append([file.read_bytes() for file in saved])
    assert written[0] == written[1]
    assert written[0][0].startswith(b"\x89PNG")
    assert b"<dc:date>" not in written[0][1]
