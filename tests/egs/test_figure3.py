"""The points are what they are said to be, classifiers too, and the program counts right."""

import dataclasses
import json
import math

import pytest
import torch

from tests.egs.programs import HOME, modules_of

POINTS = 40_000


@pytest.fixture(scope="module")
def figure3():
    with modules_of("figure3", "figure3") as (module,):
        yield module


def drawn(figure3, boundary, seed=0, count=POINTS):
    points = figure3.BOUNDARIES[boundary](count, torch.Generator().manual_seed(seed))
    return points.xy.double(), points.labels.double()


def right(rule, labels):
    return (rule.double() == labels).double().mean().item()


def best_line(xy, labels):
    """Return the accuracy of the best of many lines, either side up."""
    best = 0.0
    for angle in torch.linspace(0, math.pi, 60):
        along = xy @ torch.tensor([angle.cos(), angle.sin()], dtype=torch.float64)
        for offset in torch.linspace(-2, 2, 41):
            found = right(along > offset, labels)
            best = max(best, found, 1 - found)
    return best


def test_on_the_blobs_the_best_line_is_as_right_as_two_gaussians_allow(figure3):
    xy, labels = drawn(figure3, "blobs")
    # The centres are sqrt(2) away from the line, at a deviation of 0.7.
    bayes = 0.5 * (1 + math.erf(math.sqrt(2) / 0.7 / math.sqrt(2)))
    assert bayes == pytest.approx(0.978, abs=5e-4)
    noise = math.sqrt(bayes * (1 - bayes) / POINTS)
    assert right(xy.sum(-1) > 0, labels) == pytest.approx(bayes, abs=4 * noise)


def test_on_the_spirals_the_nearer_arm_is_right_and_no_line_is(figure3):
    xy, labels = drawn(figure3, "spirals")
    angle, radius = torch.atan2(xy[:, 1], xy[:, 0]), xy.norm(dim=-1)
    # An arm of label 0 is at radius 2 when it has turned by four pi; the other is half a turn on.
    halves = (angle - 4 * math.pi * radius / 2) / math.pi
    assert right(halves.round().remainder(2), labels) > 0.99
    assert best_line(xy[:4000], labels[:4000]) < 0.65
    assert labels.mean() == 0.5


def test_on_the_checkerboard_the_field_is_right_and_no_line_is(figure3):
    xy, labels = drawn(figure3, "checkerboard")
    field = ((xy[:, 0] + 2).long() + (xy[:, 1] + 2).long()) % 2
    assert right(field, labels) == 1.0
    assert best_line(xy[:4000], labels[:4000]) < 0.6
    assert labels.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("boundary", ["blobs", "spirals", "checkerboard"])
def test_a_seed_fixes_the_points_and_test_points_are_others(figure3, boundary):
    training = figure3.Training(points=50)
    train, test = figure3.data(boundary, 3, training)
    again, _ = figure3.data(boundary, 3, training)
    other, _ = figure3.data(boundary, 4, training)
    assert train.xy.equal(again.xy)
    assert not train.xy.equal(other.xy)
    assert len(train.xy) == 50
    assert not train.xy.equal(test.xy[:50])


def test_classifiers_have_the_parameters_of_the_layers_they_name(figure3):
    designs = figure3.rows(variations=True)
    counts = {row: figure3.parameters(design) for row, design in designs.items()}
    # Embedding, last norm, output at a width of 16.
    around = (2 * 16 + 16) + 2 * 16 + (16 + 1)
    # in_proj, conv1d, x_proj, dt_proj, A_log and D, out_proj at 32 channels, 16 states, rank 1.
    mamba = 16 * 64 + 32 * 5 + 32 * 33 + 32 * 2 + 32 * 17 + 32 * 16
    ffn = 2 * 16 + (16 * 64 + 64) + (64 * 16 + 16)
    assert counts["no layer"] == around
    assert counts["BiMamba"] == counts["BiMamba, no residual"] == around + 2 * 16 + 2 * mamba
    assert counts["BiMamba + FFN"] == counts["BiMamba"] + ffn
    # One number less of input for each of 16.
    assert counts["BiMamba, 2 frames"] == counts["BiMamba"] - 16
    assert counts["attention"] == around + 2 * 16 + 4 * (16 * 16 + 16)


def test_as_large_means_the_nearest_width(figure3):
    designs = figure3.rows(variations=True)
    matched = [row for row in designs if row.endswith("as large")]
    assert len(matched) == 10
    for row in matched:
        family = row.removesuffix(", as large").removeprefix("2 ")
        wanted = figure3.parameters(designs[f"{family} + FFN"])

        def gap(width, design=designs[row], wanted=wanted):
            return abs(figure3.parameters(dataclasses.replace(design, width=width)) - wanted)

        width = designs[row].width
        assert gap(width) < min(gap(width - 1), gap(width + 1)), row
        assert gap(width) < 0.05 * wanted, row


def test_a_point_of_two_frames_gives_a_coordinate_to_each(figure3):
    torch.manual_seed(0)
    model = figure3.Classifier(figure3.Design(frames=2, layers=0))
    with torch.no_grad():
        one, other = model(torch.tensor([[0.3, -0.7], [-0.7, 0.3]]))
    # With no layer the frames do not meet: their order cannot matter.
    assert one.item() == pytest.approx(other.item(), abs=1e-6)
    mixed = figure3.Classifier(figure3.Design(frames=2))
    with torch.no_grad():
        one, other = mixed(torch.tensor([[0.3, -0.7], [-0.7, 0.3]]))
    assert abs(one.item() - other.item()) > 1e-4


@pytest.mark.parametrize("residual", [True, False])
def test_a_mixer_that_gives_nothing_leaves_the_residual_alone(figure3, residual):
    model = figure3.Classifier(figure3.Design(residual=residual))
    mixer = model.layers[0].self_attn.mixer
    x = torch.randn(3, 1, 16)
    with torch.no_grad():
        for mamba in (mixer.forward_mamba, mixer.backward_mamba):
            mamba.out_proj.weight.zero_()
        y, _ = model.layers[0](x, None)
    assert y.equal(x if residual else torch.zeros_like(x))


def test_accuracy_counts_the_points_on_their_side(figure3):
    points = figure3.Points(torch.tensor([[1.0, 0], [2, 0], [-1, 0], [3, 0]]), torch.ones(4))
    assert figure3.accuracy(lambda xy: xy[:, 0], points) == 0.75


def test_a_small_classifier_learns_the_blobs_and_a_seed_fixes_it(figure3):
    training = figure3.Training(updates=25)
    job = ("row", figure3.Design(width=4, ffn=True), "blobs", 1)
    first, grid = figure3.outcome(job, training)
    second, _ = figure3.outcome(job, training)
    assert first == second
    assert grid is None
    assert 0.95 < first.test_accuracy < 0.985


def test_a_seed_draws_the_initial_weights(figure3):
    points = figure3.BOUNDARIES["blobs"](100, torch.Generator().manual_seed(0))
    still = figure3.Training(updates=1, learning_rate=0.0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = figure3.Classifier(figure3.Design(layers=0)).state_dict()
        torch.manual_seed(0)
        found = figure3.trained(figure3.Design(layers=0), points, still, seed).state_dict()
        assert all(found[name].equal(value) for name, value in expected.items())


def test_the_rate_falls_linearly_to_zero(figure3, monkeypatch):
    rates = []

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    points = figure3.BOUNDARIES["blobs"](100, torch.Generator().manual_seed(0))
    training = figure3.Training(updates=4, learning_rate=0.2)
    figure3.trained(figure3.Design(layers=0), points, training, 0)
    assert rates == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_the_feed_forward_network_bends_by_relu(figure3):
    ffn = figure3.Classifier(figure3.Design(ffn=True)).layers[0].feed_forward
    x = torch.randn(5, 1, 16)
    with torch.no_grad():
        hidden = x @ ffn.w_1.weight.T + ffn.w_1.bias
        expected = hidden.clamp(min=0) @ ffn.w_2.weight.T + ffn.w_2.bias
        assert (hidden < -0.1).any()
        torch.testing.assert_close(ffn(x), expected)


def test_a_classifier_is_trained_on_some_points_and_tested_on_others(figure3, monkeypatch):
    train = figure3.Points(torch.tensor([[1.0, 0], [2, 0], [-1, 0], [3, 0]]), torch.ones(4))
    test = figure3.Points(torch.tensor([[1.0, 0], [-2, 0]]), torch.ones(2))
    learnt = []

    def rule(design, points, training, seed):
        learnt.append((points, seed))
        return lambda xy: xy[:, 0]

    monkeypatch.setattr(figure3, "data", lambda *_: (train, test))
    monkeypatch.setattr(figure3, "trained", rule)
    job = ("row", figure3.Design(), "blobs", 3)
    found, grid = figure3.outcome(job, figure3.Training())
    assert found == figure3.Outcome("row", "blobs", 3, train_accuracy=0.75, test_accuracy=0.5)
    assert learnt == [(train, 3)]
    assert grid is None


def test_a_grid_has_a_row_for_each_second_coordinate(figure3):
    grid = figure3.shares(lambda xy: xy[:, 1])
    edge = 1 / (1 + math.exp(-2.5))
    assert grid.shape == (120, 120)
    assert grid[-1].tolist() == pytest.approx([edge] * 120)
    assert grid[0].tolist() == pytest.approx([1 - edge] * 120)


def test_the_table_holds_mean_and_deviation_over_the_seeds(figure3):
    found = [
        figure3.Outcome("row", boundary, seed, 1.0, accuracy)
        for boundary, accuracies in {
            "blobs": (0.9, 1.0),
            "spirals": (0.5, 0.5),
            "checkerboard": (0.61, 0.65),
        }.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    lines = figure3.table(found, {"row": figure3.Design(layers=0)}).splitlines()
    assert lines[0] == "| | width | parameters | blobs | spirals | checkerboard |"
    # Two values lie 1 / sqrt(2) of their distance from their mean, by n - 1.
    assert lines[2] == "| row | 16 | 97 | 95.0 ± 7.1 | 50.0 ± 0.0 | 63.0 ± 2.8 |"


def test_gains_are_differences_of_the_same_seed_in_points(figure3):
    accuracies = {
        "BiMamba": (0.9, 0.8),
        "BiMamba + FFN": (0.95, 0.799),
        "BiMamba, as large": (0.95, 0.799),
        "2 BiMamba, as large": (1.0, 0.79904),
    }
    found = [
        figure3.Outcome(row, boundary, seed, 1.0, accuracy)
        for row, both in accuracies.items()
        for boundary in figure3.BOUNDARIES
        for seed, accuracy in enumerate(both)
    ]
    lines = figure3.gains(found).splitlines()
    assert lines[0] == "| BiMamba + FFN against | blobs | spirals | checkerboard |"
    assert lines[2].startswith("| BiMamba | +5.0, -0.1 (mean +2.5) |")
    assert lines[3].startswith("| BiMamba, as large | 0.0, 0.0 (mean 0.0) |")
    assert lines[4].startswith("| 2 BiMamba, as large | -5.0, 0.0 (mean -2.5) |")


def test_the_program_writes_table_outcomes_and_pictures(figure3, tmp_path, monkeypatch, capsys):
    drawn = ("BiMamba", "BiMamba + FFN")
    few = {row: figure3.rows()[row] for row in drawn}
    monkeypatch.setattr(figure3, "rows", lambda _: few)
    monkeypatch.setattr(figure3, "DRAWN", drawn)
    monkeypatch.setattr(figure3, "WITHOUT_FFN", ("BiMamba",))
    options = ["--seeds", "1", "--updates", "2", "--processes", "1", "--out", str(tmp_path)]
    assert figure3.main(options) == 0
    table = (tmp_path / "table.md").read_text()
    printed = capsys.readouterr().out
    assert table in printed
    assert "\n| BiMamba + FFN against | blobs | spirals | checkerboard |\n" in table
    assert printed.endswith(" s of CPU time\n")
    written = json.loads((tmp_path / "figure3.json").read_text())
    assert written["training"] == {
        "points": 1000,
        "batch": 100,
        "updates": 2,
        "learning_rate": 0.01,
    }
    outcomes = [figure3.Outcome(**outcome) for outcome in written["outcomes"]]
    assert {(o.row, o.boundary, o.seed) for o in outcomes} == {
        (row, boundary, 0) for row in drawn for boundary in figure3.BOUNDARIES
    }
    assert table == f"{figure3.table(outcomes, few)}\n\n{figure3.gains(outcomes)}\n"
    assert (tmp_path / "figure3.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figure3.svg").read_text().count("<image") >= 6


def published(figure3, name):
    """Return what the program wrote when the page was made: settings and outcomes."""
    written = json.loads((HOME / "docs/plots" / name).read_text())
    return written["training"], [figure3.Outcome(**outcome) for outcome in written["outcomes"]]


FILES = {"figure3.json": False, "figure3-variations.json": True}


@pytest.mark.parametrize(("name", "variations"), FILES.items())
def test_the_page_was_made_with_the_default_settings(figure3, name, variations):
    training, outcomes = published(figure3, name)
    assert training == dataclasses.asdict(figure3.Training())
    assert [(o.row, o.boundary, o.seed) for o in outcomes] == [
        (row, boundary, seed)
        for row in figure3.rows(variations)
        for boundary in figure3.BOUNDARIES
        for seed in range(figure3.SEEDS)
    ]


def test_the_page_holds_the_tables_of_its_outcomes(figure3):
    _, outcomes = published(figure3, "figure3.json")
    page = (HOME / "docs/figure3.md").read_text()
    assert f"\n\n{figure3.table(outcomes, figure3.rows())}\n\n" in page
    assert f"\n\n{figure3.gains(outcomes)}\n\n" in page


def test_the_page_holds_the_rows_of_its_variations(figure3):
    main = figure3.rows()
    more = {row: design for row, design in figure3.rows(True).items() if row not in main}
    _, outcomes = published(figure3, "figure3-variations.json")
    page = (HOME / "docs/figure3.md").read_text()
    assert f"\n\n{figure3.table(outcomes, more)}\n\n" in page


def test_the_page_counts_the_seeds_in_which_the_network_helps(figure3):
    _, outcomes = published(figure3, "figure3.json")
    reached = {(o.row, o.boundary, o.seed): 100 * o.test_accuracy for o in outcomes}
    counts = [
        sum(
            round(reached["BiMamba + FFN", boundary, s] - reached["BiMamba", boundary, s], 1) > 0
            for s in range(figure3.SEEDS)
        )
        for boundary in ("spirals", "checkerboard")
    ]
    page = (HOME / "docs/figure3.md").read_text().replace("\n", " ")
    first, second = (f"{count} of {figure3.SEEDS}" for count in counts)
    assert f"(spirals in {first} seeds, checkerboard in {second})" in page


def test_options_that_mean_nothing_are_refused(figure3, capsys):
    with pytest.raises(SystemExit) as ended:
        figure3.main(["--seeds", "0"])
    assert ended.value.code == 2
    assert "--seeds must be at least 1, not 0" in capsys.readouterr().err
