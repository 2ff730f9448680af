"""Figures of scores by depth: what stands in them is what the results hold, marked where sure."""

import numpy as np
import pytest
import xarray as xr

import store
from probe import plots_curves as of
from probe.objects import rebuilt
from probe.plots import difference_figure
from probe.plots_object import neighbours_figure, rebuilt_figure
from probe.plots_panels import Line, Panel, outside
from probe.plots_properties import SURE, properties_change_figure, properties_figure
from probe.plots_style import INK, INK_ON_DARK, colour, on_dark
from probe.published_figures import KNN, OBJECTS, beside_knn
from probe.sweep import sweep
from tests.test_dashboard import write_run

MAIN = {"comparison": "aligned - baseline"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of a small run, with one difference of each kind surely not noise."""
    run = store.open_run(write_run(tmp_path_factory.mktemp("runs") / "small"))
    found = sweep(run, ["knn", "drift", "dimension", "linear", "geometry", "variants"], k=(1, 10))
    p = found.geometry_difference_p_adjusted
    p[:] = 0.5
    p.loc[MAIN | {"property": "curvature", "layer": 4}] = 0.001
    found.effective_rank_difference_p_adjusted[:] = [[0.5, 0.001]]
    found.knn_difference_p_adjusted[:] = [[[0.5, 0.01], [0.5, 0.5]]]
    return found


def test_a_note_of_values_below_zero_reads_as_a_range():
    mean = xr.DataArray([[0.5, 0.6]], dims=("variant", "layer"), coords={"variant": ["a"]})
    line = Line("shuffled", np.array([-0.19, -0.07]), "dot")
    notes = outside(Panel("", "", mean, mean - 0.1, mean + 0.1, [line]))
    assert notes == {"below": "shuffled −0.19 to −0.07: below the axis"}


def test_below_a_panel_stands_its_paired_difference_filled_where_it_is_sure(swept):
    figure = of.curves_figure(of.curves(swept, of.DIMENSION), swept, of.gaps(swept, of.DIMENSION))
    first = next(trace for trace in figure.data if trace.name == "aligned - baseline")
    np.testing.assert_allclose(first.y, swept.effective_rank_difference.sel(MAIN))
    assert first.marker.symbol == ("diamond-open", "diamond")
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert "directions   (above 0: more in aligned)" in titles
    linear, *none = of.gaps(swept, of.LINEAR)
    np.testing.assert_allclose(linear.mean, 100 * swept.linear_difference.sel(MAIN))
    assert linear.axis == "points   (above 0: aligned is better)" and none == [None, None]


def test_what_is_drawn_can_be_saved_as_a_table(swept):
    panels, below = (make(swept, of.LINEAR) for make in (of.curves, of.gaps))
    table = of.as_table(panels, below)
    assert table.groupby("panel", sort=False).size().tolist() == [4, 4, 4, 2]
    own = table[(table.variant == "aligned") & (table.panel == panels[0].title)]
    np.testing.assert_allclose(own["mean"], 100 * swept.linear_mean.sel(variant="aligned"))
    gap = table[table.variant == "aligned - baseline"]
    np.testing.assert_allclose(gap.low, 100 * swept.linear_difference_low.sel(MAIN))


def test_differences_of_all_models_are_in_points_and_marked(swept):
    figure = difference_figure(swept.sel(k=[1]))
    band, in_legend, own = figure.data
    at = MAIN | {"k": 1}
    np.testing.assert_allclose(own.y, 100 * swept.knn_difference.sel(at))
    assert own.marker.symbol == ("diamond-open", "diamond")
    np.testing.assert_allclose(
        band.y - band.error_y.arrayminus, 100 * swept.knn_difference_wide_low.sel(at)
    )
    assert "over all layers at once" in in_legend.name and band.showlegend is False
    assert figure.layout.yaxis.title.text.startswith("points")


def test_a_colour_and_a_shape_stand_for_one_model_in_every_figure(swept):
    drawn = [
        of.curves_figure(of.curves(swept.sel(k=1), about), swept)
        for about in (of.DIMENSION, of.LINEAR, of.LOO)
    ] + [difference_figure(swept)]
    for figure in drawn:
        for trace in figure.data:
            for name in ("baseline", "aligned"):
                if trace.name.startswith(name):
                    assert trace.line.color == colour(name) != colour("stage1")


def test_selectivity_is_less_the_control_and_the_overview_has_the_best_told(swept):
    one = of.of_property(swept, "hull_area")
    plain, selective = of.curves(one, of.GEOMETRY)
    np.testing.assert_allclose(plain.mean - selective.mean, one.geometry_shuffled)
    np.testing.assert_allclose(plain.high - selective.high, one.geometry_shuffled)
    panels, gaps = of.overview(swept, None)
    best = swept.property.values[swept.geometry_target_mean.values.argmax()].replace("_", " ")
    assert (
        panels[-1].title.endswith(best) and len(panels) == len(gaps) == 1
    )  # 12 objects have no TwoNN


def test_heat_maps_of_properties_hold_r2_and_dots_where_alignment_surely_changes_it(swept):
    figure, selective = properties_figure(swept), properties_figure(swept, selective=True)
    order = swept.sortby("geometry_target_mean").property.values
    values = swept.sel(property=order, variant="baseline").transpose("property", "layer", ...)
    np.testing.assert_allclose(figure.data[0].z, values.geometry_mean)
    np.testing.assert_allclose(selective.data[0].z, values.geometry_mean - values.geometry_shuffled)
    assert [len(one.data) for one in (figure, selective)] == [3, 2]  # the target has no control
    change = properties_change_figure(swept).data[0]
    (place,) = np.argwhere(np.array(change.text) == SURE)
    assert (change.y[place[0]], change.x[place[1]]) == ("curvature", "4")
    with pytest.raises(ValueError, match="do not compare"):
        properties_change_figure(swept.drop_dims("comparison"))


def test_published_figures_are_shares_of_247_and_stand_only_beside_the_same_objects(swept):
    for one in KNN:
        assert one.value == round(100 * round(2.47 * one.value) / 247, 2)
    (ours,) = of.tenths(swept, 1)
    assert ours.published == () and beside_knn(swept, 10) == ()
    theirs = swept.assign_attrs(query_objects=OBJECTS, classes=40)
    (panel,) = of.tenths(theirs, 1)
    assert [one.value for one in panel.published] == [85.43, 83.40]
    assert beside_knn(theirs, 5) == ()
    stars = [t for t in of.curves_figure([panel], theirs).data if t.marker.symbol == "star"]
    assert [(t.x[0], t.y[0], t.marker.color) for t in stars] == [
        (20, 85.43, colour("aligned")),
        (20, 83.40, colour("baseline")),
    ]
    split = 100 * theirs.knn_test90_10.sel(k=1)
    np.testing.assert_allclose(panel.high, split.max("split"))


def test_what_is_rebuilt_of_an_object_is_judged_against_that_object():
    clouds = np.random.default_rng(0).normal(size=(2, 2, 20, 3))  # layer, shown
    results = xr.Dataset(
        {
            "cloud": (("variant", "layer", "shown", "point", "axis"), clouds[None]),
            "target_cloud": (("shown", "point", "axis"), clouds[1] + 1),
            "true_cloud": (("shown", "true_point", "axis"), clouds[1]),
        },
        {"variant": ["aligned"], "layer": [4, 8], "shown": ["a", "b"]},
    )
    found = rebuilt(results, "aligned", "b")
    assert [one.layer for one in found] == [None, 4, 8]
    assert found[2].chamfer == 0 < found[1].chamfer
    figure = rebuilt_figure([one.cloud for one in found], ["target", "<b>", "8"])
    assert figure.layout.annotations[1].text == "&lt;b&gt;" and len(figure.data) == 3
    assert on_dark(figure).data[0].marker.color is not None  # colours by point stay


def test_neighbours_of_every_layer_say_their_class_and_whether_it_is_right():
    names = [["cup", "<i>"], ["cup", "a very long name of a class"]]
    right = np.array([[True, False], [True, False]])
    figure = neighbours_figure(names, right, [0, 4], 4)
    assert list(figure.data[0].text[1]) == ["✓ cup", "✗ a very long n…"]
    assert figure.data[0].text[0][1] == "✗ &lt;i&gt;"
    assert [tuple(cell) for cell in figure.data[1].customdata][2] == (4, 0)
    frame = on_dark(figure.add_hline(y=0, line_color=INK)).layout.shapes
    assert [one.line.color for one in frame] == ["#000000", "#FFFFFF", INK_ON_DARK]
