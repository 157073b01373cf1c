"""The loop: what it learns, that it repeats itself to the bit, and that it stops as it promises."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scorer.errors import ModelError, OutputError, ResumeError, TrainingError
from tests.train.shards import recipe, videos
from train import checkpoint
from train.config import TrainConfig
from train.distillation.soft_labels import PASSES
from train.distributed import World
from train.evaluate import Record, evaluate
from train.gather import Resident, Streamed
from train.registry import names
from train.state import CURVES
from train.training import Data, Plan, Training, TrainingStopped, learning_rate

CPU = torch.device("cpu")


class Silent:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def step(self, done: int, steps: int) -> None:
        pass

    def epoch(self, record: Record) -> None:
        self.records.append(record)

    def log(self, line: str) -> None:
        pass


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(videos(100), videos(40, seed=1))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def training(name: str, data: Data, **train: Any) -> Training:
    return Training(*recipe(name, **train), data, CPU, World())


def never() -> bool:
    return False


def after(steps: int) -> Callable[[], bool]:
    """A stop that is asked for during step `steps`."""
    calls = iter(range(10_000))
    return lambda: next(calls) + 1 >= steps


def same(one: Path, other: Path) -> bool:
    """Whether two runs left the same tensors, in both their files."""
    for name in (checkpoint.BEST, checkpoint.LAST):
        first, second = checkpoint.read(one / name)[0], checkpoint.read(other / name)[0]
        if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True


def run_to_the_end(name: str, data: Data, folder: Path, **train: Any) -> Training:
    folder.mkdir(exist_ok=True)
    whole = training(name, data, **train)
    whole.run(folder, Silent(), never)
    return whole


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("loss", ["listwise", "softmax", "bce"])
def test_every_model_learns_with_every_loss(name: str, loss: str, data: Data, tmp_path: Path) -> None:
    run = run_to_the_end(name, data, tmp_path, epochs=25, lr=0.01, loss=loss, mixup=0.0)
    first, last = run.state.progress.log[0], run.state.progress.log[-1]
    assert last["loss"] < first["loss"]
    assert last["train_MAP@10"] > 0.6 > 0.5 > first["train_MAP@10"]


@pytest.mark.parametrize("name", ["bilstm", "dmrnet"])
@pytest.mark.parametrize("stop", [1, 6, 7, 8, 21])
def test_a_stopped_run_resumes_to_the_same_weights(name: str, stop: int, data: Data, tmp_path: Path) -> None:
    """In an epoch's first step, within one, in its last, in the next one's first, and in the run's last step: an epoch
    has 7 and the run 3 epochs. With dropout, mixup and average."""
    settings: dict[str, Any] = {"mixup": 0.4, "ema": 0.9, "schedule": "cosine", "warmup": 0.2, "weight_decay": 0.01}
    run_to_the_end(name, data, tmp_path / "whole", **settings)
    (tmp_path / "cut").mkdir()
    with pytest.raises(TrainingStopped):
        training(name, data, **settings).run(tmp_path / "cut", Silent(), after(stop))
    torch.manual_seed(99)
    resumed = training(name, data, **settings)
    resumed.state.restore(*checkpoint.read(tmp_path / "cut" / checkpoint.LAST))
    resumed.run(tmp_path / "cut", Silent(), never)
    assert same(tmp_path / "whole", tmp_path / "cut")


def overflowing(data: Data) -> Training:
    """A run in float16 whose losses are scaled by so much that its first steps overflow."""
    run = training("dmrnet", data, precision="fp16", soft=False)
    run.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=4)
    return run


def test_steps_in_float16_that_overflow_change_nothing(data: Data, tmp_path: Path) -> None:
    run = overflowing(data)
    before = run.model.get_parameter("classify.weight").clone()
    (inputs, targets), *_ = run.batches(run._order(0).unbind(), 0)
    run._step(inputs, targets, 0)
    assert torch.equal(run.model.get_parameter("classify.weight"), before)
    run = training("dmrnet", data, precision="fp16", epochs=25, lr=0.01)
    run.run(tmp_path, Silent(), never)
    first, last = run.state.progress.log[0], run.state.progress.log[-1]
    assert last["loss"] < first["loss"]
    assert last["train_MAP@10"] > 0.5


def test_a_stopped_run_in_float16_resumes_to_the_same_weights_and_scale(data: Data, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    overflowing(data).run(tmp_path / "whole", Silent(), never)
    with pytest.raises(TrainingStopped):
        overflowing(data).run(tmp_path / "cut", Silent(), after(9))
    resumed = overflowing(data)
    resumed.state.restore(*checkpoint.read(tmp_path / "cut" / checkpoint.LAST))
    resumed.run(tmp_path / "cut", Silent(), never)
    assert same(tmp_path / "whole", tmp_path / "cut")
    scale, _, taken = checkpoint.read(tmp_path / "cut" / checkpoint.LAST)[0]["scaling"].tolist()
    assert scale < 2.0**26
    assert 0 < taken < 21


def test_another_seed_gives_other_weights(data: Data, tmp_path: Path) -> None:
    for seed in (0, 1):
        run_to_the_end("lstm", data, tmp_path / str(seed), seed=seed, epochs=1)
    assert not same(tmp_path / "0", tmp_path / "1")


def test_what_a_run_leaves(data: Data, tmp_path: Path) -> None:
    run = run_to_the_end("lstm", data, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = checkpoint.load(tmp_path / checkpoint.BEST)
    assert lines == run.state.progress.log
    assert best.config == run.state.model_config
    assert best.metrics["MAP@10"] == max(line["MAP@10"] for line in lines)
    found = evaluate(best.model(), Resident(data.valid, CPU), run.config.loss)
    assert {name: found[name] for name in best.metrics} == best.metrics
    assert checkpoint.finished(checkpoint.metadata(tmp_path / checkpoint.LAST))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.jsonl",
    ]


def test_a_run_stopped_in_its_first_epoch_leaves_nothing_of_the_one_before(data: Data, tmp_path: Path) -> None:
    run_to_the_end("lstm", data, tmp_path, epochs=1)
    (tmp_path / CURVES).write_bytes(b"the earlier run's")
    with pytest.raises(TrainingStopped):
        training("lstm", data, seed=1).run(tmp_path, Silent(), after(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "last.safetensors", "metrics.jsonl"]


def test_standard_scaling_comes_from_the_training_videos(data: Data) -> None:
    model, config = recipe("lstm")
    run = Training(replace(model, scaling="standard"), config, data, CPU, World())
    mean = run.model.get_buffer("branches.0.scale.mean")
    torch.testing.assert_close(mean, torch.from_numpy(data.train.features[0]).mean(0))


def test_output_weights_start_where_the_recipe_says(data: Data) -> None:
    torch_s, he_s = (
        training("lstm", data, weights=start).model.get_parameter("classify.weight").var() for start in ("torch", "he")
    )
    assert (he_s / torch_s).item() == pytest.approx(6, rel=0.2)


def test_a_loss_that_is_not_finite_stops_the_run(data: Data, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = training("lstm", data, lr=1e-3)
    run.run(tmp_path / "run", Silent(), never)
    before = checkpoint.read(tmp_path / "run" / checkpoint.BEST)[0]
    run = training("lstm", data)
    run.train_data.features[0] = torch.full((100, 8), math.nan)
    with pytest.raises(TrainingError, match=r"lstm: the loss is nan at step \d of epoch 1"):
        run.run(tmp_path / "run", Silent(), never)
    kept = checkpoint.read(tmp_path / "run" / checkpoint.BEST)[0]
    assert all(torch.equal(before[name], kept[name]) for name in before)


def test_a_stop_after_a_bad_loss_saves_nothing(data: Data, tmp_path: Path) -> None:
    run = training("lstm", data)
    run.train_data.features[0] = torch.full((100, 8), math.nan)
    with pytest.raises(TrainingError):
        run.run(tmp_path, Silent(), after(2))
    assert not list(tmp_path.iterdir())


def test_other_videos_are_refused_on_resume(data: Data, tmp_path: Path) -> None:
    run_to_the_end("lstm", data, tmp_path)
    other = training("lstm", Data(videos(100, seed=2), data.valid))
    with pytest.raises(ResumeError, match="other videos"):
        other.state.restore(*checkpoint.read(tmp_path / checkpoint.LAST))


def test_a_counter_of_another_type_is_damage(data: Data, tmp_path: Path) -> None:
    """PyTorch would convert it, and warn."""
    run = training("lstm", data)
    run.state.save(tmp_path, force=True)
    tensors, metadata = checkpoint.read(tmp_path / checkpoint.LAST)
    name = next(name for name in tensors if name.endswith("num_batches_tracked"))
    with pytest.raises(ModelError, match=r"damaged training state: .* is torch\.complex64, not torch\.int64"):
        training("lstm", data).state.restore({**tensors, name: tensors[name].to(torch.complex64)}, metadata)


@pytest.mark.parametrize("missing", ["model.dense.weight", "exp_avg.dense.weight", "exp_avg_sq.dense.weight", "losses"])
def test_a_state_with_a_hole_is_damaged(missing: str, data: Data, tmp_path: Path) -> None:
    run_to_the_end("lstm", data, tmp_path)
    tensors, metadata = checkpoint.read(tmp_path / checkpoint.LAST)
    del tensors[missing]
    with pytest.raises(ModelError, match="damaged"):
        training("lstm", data).state.restore(tensors, metadata)


PROGRESS = {"epoch": 3, "step": 0, "seconds": 1.0, "best": 0.5, "log": [{"MAP@10": 0.5}] * 3}


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"progress": None},
        {"progress": "[" * 100_000},
        {"progress": "[]"},
        {"progress": json.dumps(PROGRESS | {"epoch": "3"})},
        {"progress": json.dumps(PROGRESS | {"epoch": 4})},
        {"progress": json.dumps(PROGRESS | {"step": 8})},
        {"progress": json.dumps(PROGRESS | {"step": -1})},
        {"progress": json.dumps(PROGRESS | {"best": None})},
        {"progress": json.dumps(PROGRESS | {"log": [{"loss": 1.0}] * 3})},
        {"progress": json.dumps(PROGRESS | {"log": 3})},
        {"progress": json.dumps(PROGRESS | {"more": 1})},
    ],
)
def test_a_state_with_other_metadata_is_damaged(change: dict[str, str | None], data: Data, tmp_path: Path) -> None:
    run_to_the_end("lstm", data, tmp_path)
    tensors, metadata = checkpoint.read(tmp_path / checkpoint.LAST)
    damaged = {name: text for name, text in (metadata | change).items() if text is not None}
    with pytest.raises(ModelError, match="damaged training state"):
        training("lstm", data).state.restore(tensors, damaged)


def test_a_full_disk_leaves_the_previous_checkpoint(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_to_the_end("lstm", data, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run_to_the_end("lstm", data, tmp_path, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("count", "batch", "size", "plan"),
    [(162, 4096, 1, Plan(1, 162)), (40_549, 4096, 1, Plan(10, 4048)), (100, 16, 1, Plan(7, 14)), (9, 4, 2, Plan(3, 2))],
)
def test_an_epoch_is_cut_into_equal_batches(count: int, batch: int, size: int, plan: Plan) -> None:
    if size == 2:
        with pytest.raises(TrainingError):
            Plan.of(count, batch, World(0, size))
    else:
        assert Plan.of(count, batch, World(0, size)) == plan


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_videos(count: int) -> None:
    with pytest.raises(TrainingError, match="too few"):
        Plan.of(count, 16, World())


def test_every_epoch_visits_the_videos_in_another_order(data: Data) -> None:
    run = training("lstm", data)
    first, second = run._order(0).flatten(), run._order(1).flatten()
    assert len(first.unique()) == len(first) == 98
    assert not torch.equal(first, second)
    assert torch.equal(first, training("lstm", data)._order(0).flatten())


def test_learning_rates() -> None:
    constant = TrainConfig(lr=1.0)
    assert [learning_rate(constant, step, 10) for step in range(10)] == [1.0] * 10
    cosine = replace(constant, schedule="cosine", warmup=0.2)
    rates = [learning_rate(cosine, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[6] == pytest.approx(0.5)
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.05


@pytest.mark.parametrize("epoch", [0, 7, PASSES + 7])
def test_each_point_gets_its_own_inputs_and_soft_labels(data: Data, epoch: int) -> None:
    run = training("dmrnet", data, soft=True)
    rows, number = torch.tensor([41, 3]), epoch % PASSES
    (((rgb, _), targets),) = run.batches([rows], epoch)
    soft = data.soft_labels(run.state.model_config.labels, CPU)
    (first, second), share = soft.others[number, rows].long().unbind(1), soft.share[number, rows, None]
    values = torch.from_numpy(data.train.features[0])
    torch.testing.assert_close(rgb, values[rows] + share * (values[first] - values[second]))
    assert torch.equal(targets.index_BP, soft.index[number, rows].long())
    assert torch.equal(targets.weight_BP, soft.weight[number, rows].float())


def test_the_average_follows_the_weights(data: Data) -> None:
    run = training("lstm", data, ema=0.5)
    order = run._order(0).unbind()
    batches = list(run.batches(order, 0))
    run._step(*batches[0], 0)
    run._step(*batches[1], 1)
    expected = run.state.average.get_parameter("dense.weight").clone()
    run._step(*batches[2], 100)
    torch.testing.assert_close(
        run.state.average.get_parameter("dense.weight"),
        (expected + run.model.get_parameter("dense.weight")) / 2,
    )


def test_streamed_videos_give_the_same_weights(data: Data, tmp_path: Path) -> None:
    run_to_the_end("dmrnet", data, tmp_path / "resident")
    (tmp_path / "streamed").mkdir()
    run = training("dmrnet", data)
    run.train_data = Streamed(data.train, CPU)
    run.run(tmp_path / "streamed", Silent(), never)
    assert same(tmp_path / "resident", tmp_path / "streamed")
