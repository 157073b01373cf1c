"""Models that break the contract are refused: when they are opened, or at the batch in which they begin to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from scorer.cli import score
from scorer.errors import DeviceError, ModelError
from scorer.model.model import Model
from tests import shards
from tests.onnx_models import build_model
from tests.scorer.model.test_model import INPUTS, SMALL, features


def drop_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def set_metadata(**changes: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        helper.set_model_props(proto, entries | {f"yt8m.{key}": value for key, value in changes.items()})

    return change


def k_without_default(proto: onnx.ModelProto) -> None:
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name == "k"]:
        proto.graph.initializer.remove(tensor)


def k_fixed(proto: onnx.ModelProto) -> None:
    for value in [value for value in proto.graph.input if value.name == "k"]:
        proto.graph.input.remove(value)


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "probabilities_out"


def fixed_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def dynamic_width(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"


def integer_input(proto: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("extra", TensorProto.INT64, ["batch", 3])
    proto.graph.input.append(value)


def unbounded_scores(proto: onnx.ModelProto) -> None:
    proto.graph.node[-2].op_type = "Identity"


def fewer_labels(proto: onnx.ModelProto) -> None:
    set_metadata(labels="40")(proto)


def ascending(proto: onnx.ModelProto) -> None:
    for attribute in proto.graph.node[-1].attribute:
        if attribute.name == "largest":
            attribute.i = 0


def replace_sigmoid(proto: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put `nodes`, from "logits" to "changed", before the Sigmoid."""
    place = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "Sigmoid")
    proto.graph.node[place].input[0] = "changed"
    for node in reversed(nodes):
        proto.graph.node.insert(place, node)


def mean_of_the_batch(proto: onnx.ModelProto) -> None:
    mean = helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0], keepdims=1)
    replace_sigmoid(proto, mean, helper.make_node("Sub", ["logits", "mean"], ["changed"]))


def sum_of_those_before(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [], [0]))
    replace_sigmoid(proto, helper.make_node("CumSum", ["logits", "axis"], ["changed"]))


def sum_of_those_behind(proto: onnx.ModelProto) -> None:
    sum_of_those_before(proto)
    node = next(node for node in proto.graph.node if node.op_type == "CumSum")
    node.attribute.append(helper.make_attribute("reverse", 1))


def labels_moved_by_one(proto: onnx.ModelProto) -> None:
    move_labels(proto, "Add")


def one_label_for_all(proto: onnx.ModelProto) -> None:
    move_labels(proto, "Min")


def another_output(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["logits"], ["more"]))
    proto.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 30]))


def embeddings(
    *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, shape: tuple[str | int, ...] = ("batch", 12)
) -> Callable[[onnx.ModelProto], None]:
    """A third output of this type and shape, made of "x" by `nodes`, or "x" itself."""

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(helper.make_tensor("zeros", TensorProto.FLOAT, [1], [0]))
        proto.graph.node.extend(nodes or [helper.make_node("Identity", ["x"], ["embeddings"])])
        proto.graph.output.append(helper.make_tensor_value_info("embeddings", kind, shape))

    return change


def move_labels(proto: onnx.ModelProto, operator: str) -> None:
    """Combine them with 1."""
    proto.graph.node[-1].output[1] = "labels_"
    proto.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    proto.graph.node.append(helper.make_node(operator, ["labels_", "one"], ["labels"]))


def scaled_by_the_count(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
    shape = helper.make_node("Shape", ["logits"], ["shape"])
    count = helper.make_node("Gather", ["shape", "zero"], ["count"])
    cast = helper.make_node("Cast", ["count"], ["videos"], to=TensorProto.FLOAT)
    replace_sigmoid(proto, shape, count, cast, helper.make_node("Div", ["logits", "videos"], ["changed"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_metadata, "no yt8m.format"),
        (set_metadata(format="2"), "yt8m.format is '2', this scorer reads '1'"),
        (set_metadata(labels="many"), "yt8m.labels is 'many'"),
        (set_metadata(labels="-3"), "yt8m.labels"),
        (set_metadata(names="[1, 2]"), "not a list of 30 names"),
        (set_metadata(names="{oops"), "not a model for this scorer"),
        (set_metadata(names="[" + "1," * 29 + "2]"), "no name"),
        (set_metadata(names=json.dumps([None] * 30)), "no name"),
        (set_metadata(names=json.dumps(["\ud800"] * 30)), "no name"),
        (set_metadata(names="[" * 100_000), "nested too deeply"),
        (set_metadata(ranges="[1]"), "yt8m.ranges is not an object of a least and a greatest number"),
        (set_metadata(ranges='{"mean_rgb": [2, 1]}'), "yt8m.ranges is not an object"),
        (set_metadata(ranges='{"mean_rgb": [0, true]}'), "yt8m.ranges is not an object"),
        (set_metadata(ranges='{"mean_rgb": [NaN, 1e999]}'), "yt8m.ranges is not an object"),
        (set_metadata(ranges='{"mean_rgb": [0, 1' + "0" * 400 + "]}"), "yt8m.ranges is not an object"),
        (set_metadata(ranges="{" * 100_000), "yt8m.ranges is no JSON"),
        (set_metadata(labels="9" * 5000), "not a number of labels"),
        (k_without_default, "k has no default"),
        (k_fixed, "no overridable initializer k"),
        (rename_output, "no output scores"),
        (fixed_batch, "not \\[batch, width\\]"),
        (dynamic_width, "not \\[batch, width\\]"),
        (integer_input, "extra is tensor\\(int64\\), not float32"),
        (unbounded_scores, "do not descend within \\[0, 1\\]"),
        (fewer_labels, "does not run"),
        (ascending, "do not descend"),
        (mean_of_the_batch, r"a video's scores depend on the others in its batch, and differ by up to 0\.\d"),
        (sum_of_those_before, "a video's scores depend on the others in its batch"),
        (labels_moved_by_one, "its labels are not 0 to 29, each once"),
        (one_label_for_all, "its labels are not 0 to 29, each once"),
        (sum_of_those_behind, "a video's scores depend on the others in its batch"),
        (scaled_by_the_count, "a video's scores depend on the others in its batch"),
        (another_output, "it has an output more beside scores, labels and embeddings"),
        (
            embeddings(
                helper.make_node("Cast", ["zeros"], ["one_no"], to=TensorProto.BOOL),
                helper.make_node("Compress", ["x", "one_no"], ["embeddings"], axis=1),
                shape=("batch", "width"),
            ),
            r"its output embeddings is tensor\(float\) \['batch', 'width'\]",
        ),
        (embeddings(shape=(4, 12)), r"its output embeddings is tensor\(float\) \[4, 12\], not tensor\(float\) \[batch"),
        (
            embeddings(helper.make_node("Cast", ["x"], ["embeddings"], to=TensorProto.INT64), kind=TensorProto.INT64),
            r"its output embeddings is tensor\(int64\)",
        ),
        (
            embeddings(helper.make_node("Div", ["x", "zeros"], ["embeddings"])),
            "its embeddings of 3 videos .* not finite",
        ),
        (
            embeddings(
                helper.make_node("ReduceMean", ["x"], ["mean_x"], axes=[0], keepdims=1),
                helper.make_node("Sub", ["x", "mean_x"], ["embeddings"]),
            ),
            "a video's embedding depends on the others in its batch, by up to",
        ),
    ],
)
def test_a_broken_contract_is_named(tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    proto = build_model(**SMALL)
    change(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=message) as caught:
        Model.open(str(path), device="cpu")
    assert str(caught.value).startswith(str(path))
    assert "yt8m export" in str(caught.value)


def test_values_far_from_those_of_training_are_noted(tmp_path: Path) -> None:
    proto = build_model(**SMALL)
    set_metadata(ranges='{"mean_rgb": [-3.5, 3.5], "mean_audio": [-4, 4.0], "another": [0, 1]}')(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.open(str(tmp_path / "m.onnx"), device="cpu")
    assert model.facts.ranges == {"mean_rgb": (-3.5, 3.5), "mean_audio": (-4, 4)}
    given = features(300)
    model.run(given)
    assert not model.notes
    given["mean_rgb"] = np.full((300, 8), 255, np.float32)
    for _ in range(2):
        model.run(given)
    assert model.notes == [
        "mean_rgb has values from 255 to 255, training had them from -3.5 to 3.5: scores may mean nothing"
    ]


# ---- models that keep it when they are asked first, and not later

LOUD = 1e6
"""Times the features, and a model below breaks its contract."""


def unmasked(*nodes: onnx.NodeProto, scores: str = "scores_", labels: str = "labels_") -> onnx.ModelProto:
    """A model that gives the tensors of these names, made of "scores_", "labels_" and "loud" ([1], 0 or 1)."""
    proto = build_model(**SMALL)
    graph = proto.graph
    graph.node[-1].output[:] = ["scores_", "labels_"]
    graph.initializer.append(helper.make_tensor("much", TensorProto.FLOAT, [1], [1e4]))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["largest_"], keepdims=0),
            helper.make_node("Greater", ["largest_", "much"], ["is_loud"]),
            helper.make_node("Cast", ["is_loud"], ["loud"], to=TensorProto.INT64),
            *nodes,
            helper.make_node("Identity", [scores], ["scores"]),
            helper.make_node("Identity", [labels], ["labels"]),
        ]
    )
    return proto


def wrong_label() -> onnx.ModelProto:
    value = helper.make_node("Constant", [], ["far"], value=helper.make_tensor("", TensorProto.INT64, [1], [-(10**15)]))
    where = helper.make_node("Where", ["is_loud", "far", "labels_"], ["wrong"])
    return unmasked(value, where, labels="wrong")


def not_a_number() -> onnx.ModelProto:
    value = helper.make_node("Constant", [], ["nan"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [np.nan]))
    return unmasked(value, helper.make_node("Where", ["is_loud", "nan", "scores_"], ["wrong"]), scores="wrong")


def above_one() -> onnx.ModelProto:
    cast = helper.make_node("Cast", ["loud"], ["more"], to=TensorProto.FLOAT)
    return unmasked(cast, helper.make_node("Add", ["scores_", "more"], ["wrong"]), scores="wrong")


def ascending_later() -> onnx.ModelProto:
    cast = helper.make_node("Cast", ["loud"], ["times"], to=TensorProto.FLOAT)
    turn = helper.make_node("Sub", ["scores_", "times"], ["less"])
    return unmasked(cast, turn, helper.make_node("Abs", ["less"], ["wrong"]), scores="wrong")


def label_twice() -> onnx.ModelProto:
    """The first label, over and over."""
    zero = helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.INT64, [1], [0]))
    first = helper.make_node("Gather", ["labels_", "zero"], ["first"], axis=1)
    return unmasked(zero, first, helper.make_node("Where", ["is_loud", "first", "labels_"], ["wrong"]), labels="wrong")


def row_too_few() -> onnx.ModelProto:
    zero = helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.INT64, [1], [0]))
    nodes = [zero, helper.make_node("Shape", ["scores_"], ["shape"], start=0, end=1)]
    nodes += [helper.make_node("Sub", ["shape", "loud"], ["end"])]
    nodes += [helper.make_node("Slice", [f"{name}_", "zero", "end", "zero"], [f"{name}_cut"]) for name in OUTPUTS]
    return unmasked(*nodes, scores="scores_cut", labels="labels_cut")


def row_too_many() -> onnx.ModelProto:
    zero = helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.INT64, [1], [0]))
    nodes = [zero]
    for name in OUTPUTS:
        nodes.append(helper.make_node("Slice", [f"{name}_", "zero", "loud", "zero"], [f"{name}_first"]))
        nodes.append(helper.make_node("Concat", [f"{name}_", f"{name}_first"], [f"{name}_more"], axis=0))
    return unmasked(*nodes, scores="scores_more", labels="labels_more")


def embedding_infinite() -> onnx.ModelProto:
    return with_embeddings(helper.make_node("Where", ["is_loud", "infinite", "x"], ["embeddings"]))


def embedding_too_few() -> onnx.ModelProto:
    zero = helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("", TensorProto.INT64, [1], [0]))
    count = helper.make_node("Shape", ["x"], ["count"], start=0, end=1)
    less = helper.make_node("Sub", ["count", "loud"], ["less"])
    return with_embeddings(zero, count, less, helper.make_node("Slice", ["x", "zero", "less", "zero"], ["embeddings"]))


def with_embeddings(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    value = helper.make_tensor("", TensorProto.FLOAT, [1], [np.inf])
    proto = unmasked(helper.make_node("Constant", [], ["infinite"], value=value), *nodes)
    proto.graph.output.append(helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", 12]))
    return proto


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (embedding_infinite, "gave an embedding that is not finite"),
        (embedding_too_few, r"was asked for embeddings of 5 videos and gave \(4, 12\)"),
    ],
)
def test_embeddings_are_checked_in_every_batch(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], message: str
) -> None:
    onnx.save(make(), tmp_path / "m.onnx")
    model = Model.open(str(tmp_path / "m.onnx"), device="cpu")
    given = features(5)
    assert model.embed(given)[1].shape == (5, 12)
    with pytest.raises(ModelError, match=message):
        model.embed({name: values * np.float32(LOUD) for name, values in given.items()})


OUTPUTS = ("scores", "labels")
LATER = [
    (wrong_label, "gave the label -1000000000000000, which is outside 0 to 29"),
    (not_a_number, r"gave the score nan, which is outside \[0, 1\]"),
    (above_one, r"gave the score 2.0, which is outside \[0, 1\]"),
    (ascending_later, "gave scores that do not descend"),
    (label_twice, "gave a label twice for one video"),
    (row_too_few, r"was asked for 10 labels of 5 videos and gave \(4, 10\) scores and \(4, 10\) labels"),
    (row_too_many, r"was asked for 10 labels of 5 videos and gave \(6, 10\) scores and \(6, 10\) labels"),
]


@pytest.mark.parametrize(("make", "message"), LATER)
def test_a_contract_that_is_broken_in_a_batch_is_an_error(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make(), path)
    model = Model.open(str(path), device="cpu")
    given = features(5)
    assert model.run(given).scores.shape == (5, 10)
    loud = {name: values * np.float32(LOUD) for name, values in given.items()}
    with pytest.raises(ModelError, match=message):
        model.run(loud)
    records = [shards.example(f"{row}", None, {name: loud[name][row] for name in INPUTS}) for row in range(5)]
    shard = shards.write_shard(tmp_path / "a.tfrecord", records)
    assert score.main([shard, "-o", str(tmp_path / "x.csv"), "--model", str(path), "--device", "cpu", "--quiet"]) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"score: {path} ")


def test_a_model_that_memory_does_not_suffice_for_is_no_fault_of_the_model(tmp_path: Path) -> None:
    """It wants 4 TB on the way to its embeddings."""
    proto = build_model(**SMALL)
    proto.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 20, 1 << 20]))
    proto.graph.node.append(helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0))
    proto.graph.node.append(helper.make_node("Expand", ["largest", "shape"], ["many"]))
    proto.graph.node.append(helper.make_node("ReduceMin", ["many"], ["least"], keepdims=0))
    embeddings(helper.make_node("Add", ["x", "least"], ["embeddings"]))(proto)
    onnx.save(proto, tmp_path / "large.onnx")
    with pytest.raises(DeviceError, match="not enough memory to run the model"):
        Model.open(str(tmp_path / "large.onnx"), device="cpu")
