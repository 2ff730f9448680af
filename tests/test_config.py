"""Layer lists and command lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from train.cli import read_config
from train.config import (
    MODELS,
    RECIPES,
    STAGE1,
    STAGE2,
    CaptureConfig,
    Stage2Config,
    parse_layers,
    with_recipe,
)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("4,8,...,32", [4, 8, 12, 16, 20, 24, 28, 32]),
        ("4, 8, ..., 32", [4, 8, 12, 16, 20, 24, 28, 32]),
        ("0", [0]),
        ("4-8", [4, 5, 6, 7, 8]),
        ("0,4-6,16,20,...,32", [0, 4, 5, 6, 16, 20, 24, 28, 32]),
        ("32,1,1", [1, 32]),
        ("all", list(range(33))),
    ],
)
def test_layers_are_read_as_written(text, layers):
    assert parse_layers(text, 32) == layers


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("40", "40"),
        ("4,8..", "8.."),
        ("4,8,...", "..."),
        ("4,9,...,32", "..."),
        ("4,8,...,40", "40"),
        ("...,8", "..."),
        ("8-4", "8-4"),
        ("-1", "-1"),
        ("four", "four"),
        ("", "''"),
    ],
)
def test_a_bad_layer_is_named_with_the_depth(text, bad):
    with pytest.raises(ValueError, match="32") as error:
        parse_layers(text, 32)
    assert bad in str(error.value)


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: minigpt3d\nsteps: 7\nalign_layer: 15\n")
    config = read_config(STAGE2, arguments=["--config", str(file), "--steps", "9"])
    assert (config.preset, config.steps, config.align_layer) == ("minigpt3d", 9, 15)
    assert config.learning_rate == STAGE2["minigpt3d"].learning_rate


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--align-wieght", "1"], "--align-weight"),
        (["--steps", "many"], "--steps"),
        (["--preset", "huge"], "nano"),
        (["--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["--align-weight", "0"], "--align-weight"),
        (["--neighbours", "1;10"], "--neighbours"),
    ],
)
def test_a_wrong_call_ends_with_code_2_and_names_the_flag(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        read_config(STAGE2, arguments=arguments)
    assert stop.value.code == 2
    written = capsys.readouterr()
    assert said in written.out + written.err


@pytest.mark.parametrize("presets", [STAGE1, STAGE2, {"nano": CaptureConfig()}])
def test_flags_are_of_the_config_and_nothing_of_a_preset_is_lost(presets):
    preset = presets["nano"]
    assert read_config(presets, arguments=[]) == preset
    assert type(read_config(presets, arguments=[])) is type(preset)
    assert read_config(presets, arguments=["--seed", "4"]) == replace(preset, seed=4)


def test_an_unknown_key_in_a_config_file_ends_with_code_2(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("align_wieght: 0.2\n")
    with pytest.raises(SystemExit) as stop:
        read_config(STAGE2, arguments=["--config", str(file)])
    assert stop.value.code == 2
    written = capsys.readouterr()
    assert "align-wieght" in written.out + written.err


def test_the_nano_model_is_as_deep_as_the_published_one():
    assert MODELS["nano"].llm_depth == MODELS["minigpt3d"].llm_depth == 32
    assert MODELS["nano"].queries == MODELS["minigpt3d"].queries == 32


def test_the_release_recipe_sets_every_faithful_switch_and_flags_win():
    asked = ["--recipe", "release", "--fps-start", "first"]
    config = read_config(STAGE2, arguments=asked, recipe=with_recipe)
    assert (config.align_layer, config.align_positions) == (15, "release")
    assert (config.qformer_dropout, config.neighbour_precision) == (True, "float16")
    assert config.fps_start == "first"
    assert config.stochastic_front
    assert not STAGE2["nano"].stochastic_front


def test_the_paper_recipe_falls_linearly_from_3e_6_to_1e_6():
    asked = ["--recipe", "paper", "--preset", "minigpt3d"]
    config = read_config(STAGE2, arguments=asked, recipe=with_recipe)
    assert (config.learning_rate, config.floor_rate) == (3e-6, pytest.approx(1e-6))
    assert (config.decay, config.warmup_steps, config.align_layer) == ("linear", 0, 16)
    assert not config.train_norms and STAGE2["minigpt3d"].train_norms


def test_the_readme_has_a_row_for_everything_that_a_recipe_sets():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    section = text.split("### What the release does, what the paper says")[1].split("###")[0]
    rows = {row.split("|")[2].strip(" `") for row in section.splitlines() if row.startswith("| ")}
    flags = {f"--{name.replace('_', '-')}" for recipe in RECIPES.values() for name in recipe}
    assert flags - rows == {"--warmup-steps"}  # in the row of the rate
    assert rows - flags == {"flag", "--precision"}


def test_a_batch_has_one_size_or_one_for_each_kind():
    assert set(Stage2Config(batch_size="4").batch_sizes.values()) == {4}
    assert Stage2Config(batch_size="6,10,4").batch_sizes["single_round"] == 10
    with pytest.raises(ValueError, match="--batch-size '6,10'"):
        Stage2Config(batch_size="6,10")
