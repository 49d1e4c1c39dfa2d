"""Figure files: formats, sameness, styles, and the figures of the paper."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

from grokscape.report import FigureError, figure, trajectories, write_figures
from grokscape.report.delays import survival_plate
from grokscape.report.drawing import draw, write_plate
from grokscape.report.interactive import plotly_figure
from grokscape.report.onsets import Outcomes, hero, key_arms
from grokscape.report.paper import RECIPES
from grokscape.report.plate import Axis, Band, Line, Missing, Panel, Plate, Points, Rule
from grokscape.report.run import read_run
from grokscape.report.trajectories import shown_steps, summarise
from grokscape.store import RunFolder


@pytest.fixture(scope="module")
def small() -> Plate:
    """A plate with a log axis, names that look like markup, and gaps."""
    line = Line([1, 10, 100], [0.5, None, 2.0], label="$x_1$ <b>", dash="dash")
    marks = Points([1, 2], [0, 1], x_ends=[(0.5, 2.0), (None, None)], label="marks", symbol="circle-open")
    first = Panel(Axis("κ̄", log=True), Axis("‖θ‖", log=True), (line,), title="$\\frac{1}{0}$ & <script>")
    second = Panel(Axis("steps"), Axis(categories=("a$b", "<i>c</i>")), (marks,))
    return Plate("small", "", "", "", (first, second), columns=2)


def test_every_figure_of_a_run_is_written(finished: RunFolder) -> None:
    paths = write_figures(finished, formats=("svg",))
    assert {path.stem for path in paths} >= {
        "hero",
        "trajectories",
        "survival",
        "dose-relative-flatness",
        "dose-cdnv",
        "lead-lag",
        "ranking",
        "theory",
    }
    assert all(path.parent == finished.path / "figures" and path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_the_same_plate_gives_the_same_bytes(small: Plate, tmp_path: Path, ending: str) -> None:
    first, second = (write_plate(small, tmp_path / name, "paper", (ending,))[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 1000


def test_fonts_are_in_the_files(small: Plate, tmp_path: Path) -> None:
    svg, pdf = (path.read_bytes() for path in write_plate(small, tmp_path, "paper", ("svg", "pdf")))
    assert b"<text" not in svg
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


def test_talk_is_larger_in_every_respect_and_kept_beside_paper(small: Plate, tmp_path: Path) -> None:
    paper, talk = draw(small, "paper"), draw(small, "talk")
    assert talk.get_figwidth() > 1.5 * paper.get_figwidth()
    sizes = [figure_.axes[0].xaxis.label.get_size() for figure_ in (paper, talk)]
    assert sizes[1] > 1.5 * sizes[0]
    assert write_plate(small, tmp_path, "talk", ("svg",))[0].name == "small-talk.svg"


@pytest.mark.parametrize("style", ["paper", "talk"])
def test_a_long_legend_takes_nothing_from_the_panel(style) -> None:
    def panel_of(arms: int) -> float:
        """Height of the panel in inches."""
        lines = tuple(Line([0, 1], [0, 1], label=f"Arm number {number}") for number in range(arms))
        drawn = draw(Plate("many", "", "", "", (Panel(Axis("step"), Axis("κ"), lines),)), style)
        drawn.draw_without_rendering()
        return drawn.axes[0].get_position().height * drawn.get_figheight()

    assert panel_of(60) > 0.9 * panel_of(2)


@pytest.mark.parametrize("style", ["paper", "talk"])
def test_a_long_axis_label_stays_beside_its_panel(style) -> None:
    title = "Within-class scatter over squared mean norm, settled level"
    panel = Panel(Axis(title), Axis(title), (Line([0, 1], [0, 1]),))
    drawn = draw(Plate("two", "", "", "", (panel, panel), columns=2), style)
    drawn.draw_without_rendering()
    first, second = (axes.xaxis.label.get_window_extent() for axes in drawn.axes)
    assert first.x1 < second.x0
    assert drawn.axes[0].yaxis.label.get_window_extent().height < drawn.bbox.height


def everything() -> Plate:
    """A panel with every kind of layer and a right axis, and one with names on its axis."""
    layers = (
        Band([1, 2, 4], [1, 2, 3], [2, 3, 5], opacity=0.3),
        Line([1, 2, 4], [1, None, 5], dash="dash", stairs=True),
        Line([1, 4], [0, 100], right=True),
        Points([2], [3], x_ends=[(1, 3)], y_ends=[(2, 5)], symbol="x"),
        Rule(3, label="memorised"),
        Rule(2, axis="y", label="held", dash="dot"),
    )
    steps, accuracy = Axis("step", log=True, limits=(1, 5)), Axis("accuracy", limits=(0, 200))
    names = Axis(categories=("first", "second"))
    first = Panel(steps, Axis("κ"), layers, "Title", right=accuracy)
    return Plate("all", "", "", "", (first, Panel(Axis("share", percent=True), names, (Points([0.5], [0]),))))


def test_all_that_a_panel_says_is_drawn() -> None:
    drawn = draw(everything())
    drawn.draw_without_rendering()
    axes, named, right = drawn.axes
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("Title", "step", "κ")
    assert (axes.get_xscale(), axes.get_xlim(), axes.get_yscale()) == ("log", (1, 5), "linear")
    assert (right.get_ylabel(), right.get_ylim(), right.spines["right"].get_visible()) == ("accuracy", (0, 200), True)
    assert [line.get_ydata().tolist() for line in right.lines] == [[0, 100]]
    curve, along, across, mark, memorised, held = axes.lines
    assert curve.get_drawstyle() == "steps-post"
    assert math.isnan(curve.get_ydata()[1])
    assert (list(along.get_xdata()), list(along.get_ydata())) == ([1, 3], [3, 3])
    assert (list(across.get_xdata()), list(across.get_ydata())) == ([2, 2], [2, 5])
    assert (mark.get_marker(), mark.get_markeredgewidth() > 0) == ("x", True)
    assert (list(memorised.get_xdata()), list(held.get_ydata())) == ([3, 3], [2, 2])
    assert all(line.is_dashed() for line in (curve, memorised, held))
    (band,) = axes.collections
    assert band.get_alpha() == 0.3
    assert {text.get_text(): text.xy for text in axes.texts} == {"memorised": (3, 1.0), "held": (1.0, 2)}
    assert [label.get_text() for label in named.get_yticklabels()] == ["first", "second"]
    assert named.get_ylim()[0] > named.get_ylim()[1]  # the first name stands at the top
    assert named.get_xticklabels()[0].get_text().endswith("%")


def test_the_page_shows_the_same() -> None:
    made = plotly_figure(everything())
    low, high, curve, other, mark, named = made["data"]
    layout = made["layout"]
    assert (low["y"], high["y"], high["fill"], high["fillcolor"][-4:]) == ([1, 2, 3], [2, 3, 5], "tonexty", "|0.3")
    assert (curve["y"], curve["line"]["shape"], curve["line"]["dash"]) == ([1, None, 5], "hv", "6px,3px")
    assert [trace["yaxis"] for trace in made["data"]] == ["y", "y", "y", "y101", "y", "y2"]
    assert (other["y"], layout["yaxis101"]["side"], layout["yaxis101"]["range"]) == ([0, 100], "right", [0, 200])
    assert (mark["error_x"]["array"], mark["error_x"]["arrayminus"]) == ([1], [1])
    assert (mark["error_y"]["array"], mark["error_y"]["arrayminus"]) == ([2], [1])
    assert (layout["xaxis"]["type"], layout["xaxis"]["range"]) == ("log", [0, pytest.approx(math.log10(5), abs=1e-4)])
    ends = [tuple(shape[key] for key in ("x0", "x1", "y0", "y1")) for shape in layout["shapes"]]
    assert ends == [(3, 3, 0, 1), (0, 1, 2, 2)]
    notes = {note["text"]: (note["x"], note["y"]) for note in layout["annotations"]}
    assert notes["memorised"] == (pytest.approx(math.log10(3)), 1)
    assert notes["held"] == (1, 2)
    assert "Title" in notes
    assert [text.split(">")[1].split("<")[0] for text in layout["yaxis2"]["ticktext"]] == ["first", "second"]
    assert layout["yaxis2"]["range"][0] > layout["yaxis2"]["range"][1]
    assert (named["y"], layout["xaxis2"]["tickformat"]) == ([0], ".0%")
    (left, right), (below, above) = layout["xaxis"]["domain"], layout["yaxis"]["domain"]
    assert (left, right, above) == (0, 1, 1)
    assert layout["yaxis2"]["domain"][1] < below  # panels do not overlap


def test_an_unknown_style_is_refused(small: Plate) -> None:
    with pytest.raises(ValueError, match="expected a style out of paper, talk, got 'poster'"):
        draw(small, "poster")


def test_an_arm_has_one_colour_everywhere(finished: RunFolder) -> None:
    run = read_run(finished)
    seen: dict[str, set[str]] = {}
    for plate in (hero(run, Outcomes.of(run)), survival_plate(run)):
        assert isinstance(plate, Plate)
        for layer in (layer for panel in plate.panels for layer in panel.layers):
            if getattr(layer, "arm", None):
                seen.setdefault(layer.arm, set()).add(layer.colour.light)
    assert set(seen) == {"baseline", "kappa3", "kappa30", "cdnv12", "cdnv16", "loss"}
    assert all(len(colours) == 1 for colours in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


def test_survival_shows_the_share_not_yet_generalised(finished: RunFolder) -> None:
    run = read_run(finished)
    plate = survival_plate(run)
    assert isinstance(plate, Plate)
    line = next(x for x in plate.panels[0].layers if isinstance(x, Line) and x.arm == "baseline")
    rows = Outcomes.of(run).rows("baseline")
    delays = sorted((rows["generalised"] - rows["memorised"]).to_list())
    assert list(line.x)[1:7] == pytest.approx(delays)
    assert list(line.y)[1:7] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


def test_the_baseline_s_curve_goes_on_though_the_first_arm_was_unplugged(finished: RunFolder) -> None:
    run = read_run(finished)
    first, *rest = run.of_kind("survival")
    short = {"steps": [0.0, 50.0], "share": [1.0, 1.0], "low": [1.0, 1.0], "high": [1.0, 1.0], "censored": [50.0] * 6}
    curves = {**first["data"]["kaplan_meier"], "baseline": short}
    for found in ([{**first, "data": {"kaplan_meier": curves}}, *rest], run.of_kind("survival")):
        plate = survival_plate(replace(run, findings=found))
        assert isinstance(plate, Plate)
        line = next(x for x in plate.panels[0].layers if isinstance(x, Line) and x.arm == "baseline")
        assert list(line.y)[-1] == 0  # all generalise in the end


def test_delays_that_are_all_zero_are_not_drawn(finished: RunFolder) -> None:
    run = read_run(finished)
    curve = {"steps": [0.0, 0.0], "share": [1.0, 0.0], "low": [1.0, None], "high": [1.0, None], "censored": []}
    found = run.of_kind("survival")
    findings = [{**f, "data": {"kaplan_meier": dict.fromkeys(f["data"]["kaplan_meier"], curve)}} for f in found]
    plate = survival_plate(replace(run, findings=findings))
    assert isinstance(plate, Missing)
    assert "Every seed that memorised had generalised by then" in plate.reason


def test_a_figure_of_the_paper_comes_in_three_formats(finished: RunFolder) -> None:
    assert [path.name for path in figure("fig1", finished)] == ["fig1.svg", "fig1.pdf", "fig1.png"]


@pytest.mark.parametrize(("name", "panels"), [("fig1", 2), ("fig2", 3), ("fig4", 3), ("fig5", 3), ("fig11", 3)])
def test_figures_of_the_paper_are_made_from_our_runs(finished: RunFolder, name: str, panels: int) -> None:
    plate = RECIPES[name].draw(read_run(finished), name)
    assert len(plate.panels) == panels
    arms = {layer.arm for panel in plate.panels for layer in panel.layers if isinstance(layer, Line)}
    assert "baseline" in arms
    assert ("kappa30" in arms) == (name in ("fig4", "fig11"))
    assert ("cdnv16" in arms) == (name in ("fig2", "fig5"))


def test_representativeness_is_drawn_beside_the_accuracies(finished: RunFolder) -> None:
    run, column = read_run(finished), "cross/representativeness"
    with pytest.raises(FigureError, match="Put representativeness among the study's measures"):
        RECIPES["fig20"].draw(run, "fig20")
    plate = RECIPES["fig20"].draw(replace(run, frame=run.frame.with_columns(pl.lit(0.5).alias(column)), columns={
        **run.columns, column: {"measure": "representativeness", "split": "cross", "title": "Representativeness"}}),
        "fig20")
    (panel,) = plate.panels
    (drawn,) = [layer for layer in panel.layers if isinstance(layer, Line) and layer.label == "Representativeness"]
    assert set(drawn.y) == {0.5}


def test_of_many_arms_the_first_figure_shows_those_that_decided() -> None:
    names = ["baseline", *(f"arm-{k}" for k in range(12))]
    arms = tuple(SimpleNamespace(name=name, role="manipulation" if k else "baseline") for k, name in enumerate(names))
    found = {"necessity": [{"data": {"deciding": ["arm-9", "arm-4"]}}],
             "sufficiency": [{"data": {"promoting": [{"arm": "arm-11"}]}}]}
    run: Any = SimpleNamespace(arms=arms, of_kind=found.__getitem__)
    shown = [arm.name for arm in key_arms(run)]
    assert shown == ["baseline", "arm-0", "arm-1", "arm-2", "arm-3", "arm-4", "arm-9", "arm-11"]
    run.arms = arms[:8]
    assert key_arms(run) == arms[:8]


def test_a_figure_that_cannot_be_drawn_says_what_is_missing(finished: RunFolder, make_run: Any, tmp_path: Path) -> None:
    with pytest.raises(FigureError, match=r"Put class_angle_max, .*, classes among the study's measures"):
        figure("fig3", finished)
    with pytest.raises(FigureError, match=r"expected one of fig1, .*, got 'fig99'"):
        figure("fig99", finished)
    alone = make_run(tmp_path / "alone", arms=[{"name": "baseline", "role": "baseline"}], seeds=2, every=100)
    with pytest.raises(FigureError, match="compares the baseline with arms that hold flatness back; alone has none"):
        figure("fig4", alone)


def test_angles_are_those_of_the_last_measurement_of_each_seed(finished: RunFolder) -> None:
    run = read_run(finished)
    step = pl.col("step") / 1500
    quantiles = {"min": 20.0, "q25": 70.0, "median": 90.0, "q75": 110.0, "max": 160.0}
    angles = [(value * step + pl.col("seed")).alias(f"train/class_angle_{part}") for part, value in quantiles.items()]
    diverged = (pl.col("arm") == "baseline") & (pl.col("seed") == 5) & (step == 1)
    lost = pl.when(diverged).then(math.nan).otherwise(angles[0]).alias("train/class_angle_min")
    frame = run.frame.with_columns(lost, *angles[1:], pl.lit(31.0).alias("train/classes"))
    plate = RECIPES["fig3"].draw(replace(run, frame=frame), "fig3")
    (panel,) = plate.panels
    assert panel.y.categories == ("Baseline", "CDNV held ≥ 1.2", "CDNV held ≥ 1.6")
    (simplex,) = (layer for layer in panel.layers if isinstance(layer, Rule))
    assert simplex.at == pytest.approx(math.degrees(math.acos(-1 / 30)))
    for place, (arm, seeds) in enumerate({"baseline": 5, "cdnv12": 6, "cdnv16": 6}.items()):  # one has no angles
        boxes = [layer for layer in panel.layers if isinstance(layer, Band) and layer.arm == arm]
        lines = [layer for layer in panel.layers if isinstance(layer, Line) and layer.arm == arm]
        assert [tuple(box.x) for box in boxes] == [(70.0 + seed, 110.0 + seed) for seed in range(seeds)]
        assert [tuple(line.x) for line in lines[::2]] == [(20.0 + seed, 160.0 + seed) for seed in range(seeds)]
        assert [tuple(line.x) for line in lines[1::2]] == [(90.0 + seed,) * 2 for seed in range(seeds)]
        heights = [value for box in boxes for value in (box.low[0], box.high[0])]
        assert heights == sorted(heights)
        assert place - 0.4 < heights[0] < heights[-1] < place + 0.4


def test_long_names_fit_into_the_picture(tmp_path: Path) -> None:
    names = Axis(categories=("Collapse suppressed, λ = 0.01", "Baseline"))
    plate = Plate("wide", "", "", "", (Panel(Axis("degrees"), names, (Points([40, 60], [0, 1]),)),))
    for style in ("paper", "talk"):
        (path,) = write_plate(plate, tmp_path, style, ("png",))
        picture = imread(path)
        assert (picture[:, 0, :3] == 1).all(), style


def test_a_released_arm_is_marked(make_run: Any, tmp_path: Path) -> None:
    held = {
        "name": "kappa30",
        "title": "κ held",
        "role": "manipulation",
        "interventions": [
            {"kind": "clamp", "measure": "relative_flatness", "at_least": 30.0},
            {"kind": "unplug", "step": 700},
        ],
    }
    run = read_run(make_run(tmp_path / "run", arms=[{"name": "baseline", "role": "baseline"}, held], seeds=2, every=50))
    plate = RECIPES["fig4"].draw(run, "fig4")
    rules = [layer for panel in plate.panels for layer in panel.layers if isinstance(layer, Rule)]
    assert {(rule.at, rule.label) for rule in rules} == {(700.0, "released")}
    assert len(rules) == 3


def test_what_falls_by_decades_is_drawn_by_ratio(finished: RunFolder) -> None:
    run = read_run(finished)
    steps = shown_steps(run)
    for measure in ("accuracy", "loss", "relative_flatness", "cdnv"):
        medians = [s.median for s in summarise(run, f"train/{measure}", steps).values()]
        wide = max(m.max() for m in medians) > 20 * min(m.min() for m in medians)
        drawn = trajectories.panel(run, measure, "train", steps)
        assert drawn is not None
        assert drawn.y.log == (wide and measure != "accuracy"), measure
    kappa = trajectories.panel(run, "relative_flatness", "train", steps)
    assert kappa is not None
    assert kappa.y.log
    rising = trajectories.summary_of(np.array([[0.0, 1.0, 30.0]]))
    assert not trajectories.is_logarithmic([rising]), "0 has no place on such an axis"
