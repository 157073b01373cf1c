"""The models against independent references: counts worked out by hand, the report's equations, torch.nn.LSTM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scorer.errors import ModelError, UsageError
from train.config import ModelConfig, TrainConfig
from train.layers import scalings
from train.models.dmrnet import AverageBlock, MergeAndRun, MergeAndRunBlock
from train.models.lstm import Recurrent
from train.registry import build, config_from_json, names, spec

SMALL: dict[str, Any] = {"embedding": 12, "hidden": 5, "head": 11, "width": 8, "labels": 7}


def dense(inputs: int, units: int) -> int:
    return inputs * units + units


def norm(units: int) -> int:
    return 2 * units


def cell(inputs: int, hidden: int) -> int:
    """Four gates, each with an input weight, a recurrent weight and (as torch.nn.LSTM and cuDNN have it) two biases."""
    return 4 * (inputs * hidden + hidden * hidden + 2 * hidden)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_parameters_of_the_reports_bilstm() -> None:
    branches = sum(dense(f, 1024) + norm(1024) + 2 * cell(1024, 1024) + norm(2048) for f in (1024, 128))
    head = dense(4096, 4096) + norm(4096) + dense(4096, 3862)
    with torch.device("meta"):
        assert count(build(spec("bilstm").published)) == branches + head == 67_393_302


def test_parameters_of_the_reports_lstm() -> None:
    branches = sum(dense(f, 512) + norm(512) + cell(512, 1024) + norm(1024) for f in (1024, 128))
    head = dense(2048, 4096) + norm(4096) + dense(4096, 3862)
    with torch.device("meta"):
        assert count(build(spec("lstm").published)) == branches + head == 37_419_798


@pytest.mark.parametrize(("form", "residuals"), [("average", 1), ("run", 2)])
def test_parameters_of_dmrnet(form: Any, residuals: int) -> None:
    def block(width: int) -> int:
        narrow = dense(width, width // 4) + norm(width // 4)
        return residuals * (narrow + dense(width // 4, width) + norm(width))

    branches = sum(dense(f, 1024) + norm(1024) + block(1024) for f in (1024, 128))
    rest = block(2048) + dense(2048, 1024) + norm(1024) + dense(1024, 3862)
    with torch.device("meta"):
        assert count(build(replace(spec("dmrnet").published, form=form))) == branches + rest


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    "inputs", [(("mean_rgb", 6),), (("mean_rgb", 6), ("mean_audio", 3)), (("a", 1), ("b", 2), ("c", 3))]
)
@pytest.mark.parametrize("scaling", ["raw", "l2", "standard"])
def test_any_inputs_give_logits(name: Any, inputs: tuple[tuple[str, int], ...], scaling: Any) -> None:
    for form in ("average", "run"):
        model = build(replace(spec(name).published, **SMALL, inputs=inputs, scaling=scaling, form=form))
        assert model(*(torch.randn(4, width) for _, width in inputs)).shape == (4, 7)


def reports_cell(x: Tensor, h: Tensor, c: Tensor, cell: Recurrent, suffix: str) -> tuple[Tensor, Tensor]:
    """The report's five equations, one gate at a time."""
    act = cell.activation
    w = dict(zip("ifgo", cell.get_parameter(f"weight_ih_l0{suffix}").chunk(4), strict=True))
    u = dict(zip("ifgo", cell.get_parameter(f"weight_hh_l0{suffix}").chunk(4), strict=True))
    bias = cell.get_parameter(f"bias_ih_l0{suffix}") + cell.get_parameter(f"bias_hh_l0{suffix}")
    b = dict(zip("ifgo", bias.chunk(4), strict=True))
    i = torch.sigmoid(x @ w["i"].T + h @ u["i"].T + b["i"])
    f = torch.sigmoid(x @ w["f"].T + h @ u["f"].T + b["f"])
    c = f * c + i * act(x @ w["g"].T + h @ u["g"].T + b["g"])
    o = torch.sigmoid(x @ w["o"].T + h @ u["o"].T + b["o"])
    return o * act(c), c


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["lstm", "bilstm"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_recurrent_layer_is_the_reports_equations(name: Any, steps: int, activation: Any) -> None:
    config = ModelConfig(name, embedding=3 * steps, hidden=5, steps=steps, cell=activation)
    recurrent = Recurrent(3, config, bidirectional=name == "bilstm")
    x = torch.randn(6, steps, 3)
    outputs = []
    for suffix in ("", "_reverse") if name == "bilstm" else ("",):
        h = c = torch.zeros(6, 5)
        for step in reversed(range(steps)) if suffix else range(steps):
            h, c = reports_cell(x[:, step], h, c, recurrent, suffix)
        outputs.append(h)
    torch.testing.assert_close(recurrent(x), torch.cat(outputs, dim=1))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layer_is_torch_lstm(steps: int, bidirectional: bool) -> None:
    config = ModelConfig("bilstm" if bidirectional else "lstm", embedding=4 * steps, hidden=5, steps=steps)
    recurrent = Recurrent(4, config, bidirectional=bidirectional)
    reference = nn.LSTM(4, 5, batch_first=True, bidirectional=bidirectional)
    reference.load_state_dict(recurrent.state_dict())
    x = torch.randn(6, steps, 4)
    output, _ = reference(x)
    expected = torch.cat([output[:, -1, :5], output[:, 0, 5:]], dim=1)
    torch.testing.assert_close(recurrent(x), expected)
    expected.square().sum().backward()
    recurrent(x).square().sum().backward()
    live = [name for name, _ in recurrent.named_parameters() if steps > 1 or "hh" not in name or "bias" in name]
    for name in live:
        torch.testing.assert_close(recurrent.get_parameter(name).grad, reference.get_parameter(name).grad)


def test_of_one_step_the_recurrent_weights_are_left_alone() -> None:
    recurrent = Recurrent(4, ModelConfig("bilstm", embedding=4, hidden=5), bidirectional=True)
    recurrent(torch.randn(6, 1, 4)).sum().backward()
    assert recurrent.weight_hh_l0.grad is None
    assert recurrent.weight_hh_l0_reverse.grad is None
    gradient = recurrent.get_parameter("weight_ih_l0").grad
    assert gradient is not None
    assert gradient.any()
    assert not gradient[5:10].any(), "the forget gate is dead"


def test_blocks_are_their_formulas() -> None:
    config = replace(spec("dmrnet").published, width=8)
    x = torch.randn(4, 8)
    average = AverageBlock(8, config).eval()
    torch.testing.assert_close(average(x), nn.functional.leaky_relu((x + average.residual(x)) / 2, 0.3))
    run = MergeAndRun(2, 8, config).eval()
    upper = lower = x
    for block in run.blocks:
        assert isinstance(block, MergeAndRunBlock)
        mean = (upper + lower) / 2
        upper, lower = (
            nn.functional.leaky_relu(branch(line) + mean, 0.3)
            for branch, line in ((block.upper, upper), (block.lower, lower))
        )
    torch.testing.assert_close(run(x), (upper + lower) / 2)


def test_scalings() -> None:
    x = torch.randn(4, 6) * 3 + 1
    (l2,) = scalings(build(replace(spec("lstm").published, **SMALL, inputs=(("x", 6),), scaling="l2")))
    torch.testing.assert_close(l2(x), nn.functional.normalize(x) * 6**0.5)
    assert not l2(torch.zeros(1, 6)).any()
    (standard,) = scalings(build(replace(spec("lstm").published, **SMALL, inputs=(("x", 6),), scaling="standard")))
    standard.set_statistics(x.mean(0), x.std(0))
    torch.testing.assert_close(standard(x).mean(0), torch.zeros(6), atol=1e-6, rtol=0)
    assert {"mean", "std"} <= set(standard.state_dict())


@pytest.mark.parametrize(
    "config", [config for name in names() for config in (*spec(name).recipe, spec(name).published)]
)
def test_configurations_survive_json(config: ModelConfig | TrainConfig) -> None:
    parse = TrainConfig.from_json if isinstance(config, TrainConfig) else config_from_json
    assert parse(config.to_json()) == config


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "mlp"}', '{"name": "lstm", "color": 1}', '{"name": "lstm", "steps": 3}']
)
def test_another_configuration_is_a_model_error(text: str) -> None:
    with pytest.raises(ModelError):
        config_from_json(text)


@pytest.mark.parametrize("values", [{"steps": 3}, {"steps": 0}, {"inputs": ()}, {"form": "walk"}, {"cell": "gru"}])
def test_impossible_models_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(spec("bilstm").published, **values)
