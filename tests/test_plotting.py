import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from context_diffusion import load_image_as_tensor
from context_diffusion.metrics import Estimate, estimate_rate
from context_diffusion.plotting import (
    bars,
    compare,
    estimates,
    flow_diagram,
    heatmap,
    lines,
    mean_and_interval,
    show,
)

RED, BLUE = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))


def visible(figure) -> list:
    return [axis for axis in figure.axes if axis.images]


def test_show_places_pictures_titles_and_captions_in_order():
    edges = torch.eye(6)
    figure = show(
        [RED, np.zeros((4, 4)), load_image_as_tensor(BLUE), edges], list("abcd"), captions=list("wxyz"), columns=3
    )
    assert [axis.get_title() for axis in visible(figure)] == list("abcd")
    assert [axis.texts[0].get_text() for axis in visible(figure)] == list("wxyz")
    assert len(figure.axes) == 6  # two rows of three, two of them empty
    shown = [axis.images[0].get_array() for axis in visible(figure)]
    assert tuple(shown[0][0, 0]) == (255, 0, 0) and tuple(shown[2][9, 9]) == (0, 0, 255)
    np.testing.assert_array_equal(shown[3], edges)


def test_one_picture_needs_no_list():
    assert len(visible(show(RED, "a"))) == 1


def test_texts_must_fit_the_pictures():
    with pytest.raises(ValueError, match=r"2 picture\(s\), 1 title"):
        show([RED, BLUE], ["a"])
    with pytest.raises(ValueError, match="same number of pictures"):
        compare({"ours": [RED], "theirs": [RED, BLUE]})


def test_compare_names_rows_and_heads_columns():
    figure = compare({"ours": [RED, BLUE], "theirs": [BLUE, RED]}, ["0", "1"])
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["ours", "", "theirs", ""]
    assert [axis.get_title() for axis in figure.axes] == ["0", "1", "", ""]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-6))
@settings(max_examples=30, deadline=None)
def test_the_interval_is_the_t_tests(values):
    mean, half = mean_and_interval(values, 0.9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-6, atol=1e-9)


def test_bars_show_means_and_every_value():
    samples = {"on": [1.0, 2.0, 3.0], "off": [4.0]}
    axis = bars(samples, label="score").axes[0]
    assert [patch.get_width() for patch in axis.patches] == [2.0, 4.0]
    dots = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "."]
    assert dots == list(samples.values())
    assert np.isnan(mean_and_interval([4.0])[1])
    with pytest.raises(ValueError, match="at least one value"):
        bars({"on": []})


def test_estimates_show_each_interval_where_it_lies():
    rates = {"some": estimate_rate([True, False, False, False]), "one": Estimate(0.5, np.nan, np.nan, np.nan, 1)}
    axis = estimates(rates, label="rate", chance=0.1).axes[0]
    assert [patch.get_width() for patch in axis.patches] == [0.25, 0.5]
    whisker, none = axis.collections[0].get_segments()
    assert whisker[:, 0].tolist() == pytest.approx([rates["some"].low, rates["some"].high]) and len(none) == 0
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [0.1]
    with pytest.raises(ValueError, match="no estimate"):
        estimates({})


def test_heatmap_writes_its_numbers_and_lines_their_names():
    axis = heatmap(torch.tensor([[0.0, 1.0]]), ["r"], ["a", "b"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.00", "1.00"]
    figure = lines({"a": [1, 2], "b": [2, 1]}, [0, 5], xlabel="step")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 5]


def test_logarithmic_axes_write_plain_numbers_that_do_not_overlap():
    figure = lines({"a": [0.3, 0.03], "b": [2, 0.1]}, [5, 20], log=True)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["5", "20"]
    assert {"0.1", "1"} <= {text.get_text() for text in axis.get_yticklabels()}
    assert not axis.xaxis.get_minorticklocs().size and (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    for wrong in ({"series": {"a": [1, 0]}, "x": [1, 2]}, {"series": {"a": [1, 2]}}):
        with pytest.raises(ValueError, match="positive"):
            lines(**wrong, log=True)


NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=5, unique=True).map(sorted)


@given(st.lists(NAMES, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_boxes_of_a_diagram_stand_apart_in_the_order_of_the_data(routes):
    figure = flow_diagram([" -> ".join(route) for route in routes])
    axis = figure.axes[0]
    boxes = {
        text.get_text(): box.get_bbox()
        for text, box in zip((t for t in axis.texts if t.get_text()), axis.patches, strict=True)
    }
    assert set(boxes) == {name for route in routes for name in route}
    for route in routes:
        for source, target in itertools.pairwise(route):
            assert boxes[source].x1 < boxes[target].x0
    names = sorted(boxes)
    assert not any(boxes[a].overlaps(boxes[b]) for a in names for b in names if a < b)
    for line in axis.lines:  # where an arrow passes a column, it passes its boxes
        for (x0, y0), (x1, _) in itertools.pairwise(line.get_xydata()[1:]):
            assert not any(box.y0 < y0 < box.y1 and x0 < box.x1 and box.x0 < x1 for box in boxes.values() if x1 > x0)


@pytest.mark.parametrize(
    ("paths", "rule"),
    [(["a"], "at least two"), ([], "at least two"), (["a -> "], "at least"), (["a -> b -> a"], "circle")],
)
def test_a_diagram_that_cannot_be_drawn_is_refused(paths, rule):
    with pytest.raises(ValueError, match=rule):
        flow_diagram(paths)
