"""Files that are no models are refused, each named for what it is; so is what two readers could read differently."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import scorer.model.placement
from scorer.errors import ModelError
from scorer.model import onnx_file, runtime
from scorer.model.model import Model
from scorer.model.onnx_file import MESSAGES, ModelFile
from tests.onnx_models import build_model, save_model, save_ort
from tests.scorer.model.test_model import SMALL, features, same

# ---- files that are refused


def absent(path: Path) -> None:
    return


def folder(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("this is no model\n" * 100)


def cut_short(path: Path) -> None:
    save_model(path, **SMALL)
    path.write_bytes(path.read_bytes()[:-100])


def shard(path: Path) -> None:
    path.write_bytes((5).to_bytes(8, "little") + b"\x12\x34\x56\x78hello" + bytes(4))


def graphless(path: Path) -> None:
    onnx.save(helper.make_model(helper.make_graph([], "", [], [])), path)
    proto = onnx.load(path)
    proto.ClearField("graph")
    path.write_bytes(proto.SerializeToString())


def git_lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1\n")


def pytorch(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(26) + b"m/data.pkl" + bytes(100))


def old_pytorch(path: Path) -> None:
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc")


def safetensors(path: Path) -> None:
    header = b'{"__metadata__":{}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def run_folder(path: Path) -> None:
    path.mkdir()
    safetensors(path / "best.safetensors")


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress(build_model(**SMALL).SerializeToString()))


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html></html>")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(40 << 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (absent, "no such model file; export it"),
        (folder, "is a folder"),
        (empty, "is empty"),
        (text, "is text that begins .*, not an ONNX file"),
        (cut_short, "damaged or no ONNX file"),
        (shard, "no ONNX file"),
        (git_lfs, "is a Git LFS pointer, not an ONNX file; fetch the file itself"),
        (pytorch, "is a PyTorch checkpoint, not an ONNX file; `yt8m export --checkpoint RUN"),
        (old_pytorch, "is a Python pickle, not an ONNX file; `yt8m export"),
        (safetensors, "is a safetensors file, not an ONNX file; `yt8m export"),
        (run_folder, "is the folder of a trained run, not an ONNX file; `yt8m export --checkpoint RUN"),
        (gzipped, "is compressed with gzip, not an ONNX file; unpack it first"),
        (web_page, "is an HTML or XML page"),
        (pipe, "is not a regular file"),
        (sparse, "has 42,949,672,960 bytes, more than 2 GB"),
        (graphless, "it has no graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message) as caught:
        Model.open(str(tmp_path / "m.onnx"))
    assert str(tmp_path / "m.onnx") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL)
    open_cpu = runtime.open_cpu

    def replacing(*arguments: Any) -> Any:
        os.replace(save_model(tmp_path / "other.onnx", **SMALL, seed=2), path)
        return open_cpu(*arguments)

    monkeypatch.setattr(scorer.model.placement, "open_cpu", replacing)
    with pytest.raises(ModelError, match="changed while it was opened"):
        Model.open(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL)
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ModelError, match="cannot be read"):
        Model.open(path)


def opens(path: Path, data: bytes) -> Model | None:
    """The model of these bytes, or None where they were refused in one line."""
    path.write_bytes(data)
    try:
        return Model.open(str(path), device="cpu")
    except ModelError as error:
        line = str(error)
    assert line.startswith(str(path))
    assert "\n" not in line
    return None


def test_every_truncation_is_refused_or_lost_nothing_that_counts(tmp_path: Path) -> None:
    data = build_model(inputs={"mean_rgb": 2}, labels=3).SerializeToString()
    given = features(5, {"mean_rgb": 2})
    whole = opens(tmp_path / "m.onnx", data)
    assert whole
    models = [opens(tmp_path / "m.onnx", data[:length]) for length in range(0, len(data), 3)]
    assert all(same(model.run(given, 3), whole.run(given, 3)) for model in models if model)
    assert sum(model is None for model in models) > 0.95 * len(models)  # only the last of the metadata may go


def test_flipped_bits_are_refused_or_harmless(tmp_path: Path) -> None:
    data = bytearray(build_model(inputs={"mean_rgb": 2}, labels=3).SerializeToString())
    opened = []
    for bit in range(3, 8 * len(data), 41):
        data[bit // 8] ^= 1 << bit % 8
        model = opens(tmp_path / "m.onnx", bytes(data))
        data[bit // 8] ^= 1 << bit % 8
        opened.append(model is not None)
        if model and "mean_rgb" in model.facts.inputs:
            scores, labels = model.run(features(5, model.facts.inputs), model.facts.labels)
            assert np.isfinite(scores).all()
            assert ((labels >= 0) & (labels < model.facts.labels)).all()
    assert 0 < sum(opened) < len(opened)


def external(where: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        hidden = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        hidden.external_data.add(key="location", value="../../etc/passwd")
        inner = helper.make_graph([], "inner", [], [], [hidden])
        match where:
            case "initializer":
                proto.graph.initializer.append(hidden)
            case "constant":
                proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=hidden))
            case "subgraph":
                proto.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))
            case "function":
                node = helper.make_node("Constant", [], ["c"], value=hidden)
                proto.functions.append(helper.make_function("x", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))
            case "sparse":
                proto.graph.sparse_initializer.add(values=hidden, dims=[4])
            case "key alone":
                proto.graph.initializer[0].external_data.add(key="location", value="weights.bin")

    return change


@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph", "function", "sparse", "key alone"])
def test_data_outside_of_the_file_is_refused_wherever_it_hides(tmp_path: Path, where: str) -> None:
    proto = build_model(**SMALL)
    external(where)(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="keeps weights in another file"):
        Model.open(str(path))


def varint(value: int, length: int = 0) -> bytes:
    """`value`, in `length` bytes if that is longer than it need be."""
    text = bytearray()
    while value >= 0x80 or len(text) + 1 < length:
        text.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*text, value])


def field(number: int, content: bytes | int, *, above: int = 0, longer: int = 0) -> bytes:
    """A field as protobuf writes it, unless `above` bits of its key are set or the key is `longer` than it need be."""
    kind = 2 if isinstance(content, bytes) else 0
    key = varint(number << 3 | kind | above << 32, longer)
    return key + (varint(len(content)) + content if isinstance(content, bytes) else varint(content))


def with_tensor(tensor: bytes) -> bytes:
    """A model with a tensor of these bytes."""
    return build_model(**SMALL).SerializeToString() + field(7, field(5, tensor))


ENTRY = field(1, b"location") + field(2, b"/etc/passwd")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (field(13, ENTRY), "keeps weights in another file"),
        (field(14, 1), "keeps weights in another file"),
        (field(14, 1 | 1 << 32), "keeps weights in another file"),
        (field(14, (1 << 64) - 1), "keeps weights in another file"),
        (field(13, ENTRY, above=1), "no field number"),
        (field(14, 1, above=3), "no field number"),
        (field(13, ENTRY, longer=3), "longer than it need be"),
        (field(14, 1, longer=5), "longer than it need be"),
        (b"\x6b" + ENTRY + b"\x6c", "wire type 3"),
    ],
)
def test_data_outside_is_found_however_its_key_is_written(tmp_path: Path, tensor: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_tensor(tensor))
    with pytest.raises(ModelError, match=message):
        ModelFile(str(path))


def test_every_message_of_onnx_is_entered() -> None:
    found: dict[str, dict[int, str]] = {}

    def visit(message: Descriptor) -> None:
        name = message.full_name.removeprefix("onnx.")
        if name not in found:
            inner = {entry.number: entry.message_type for entry in message.fields if entry.message_type}
            found[name] = {number: kind.full_name.removeprefix("onnx.") for number, kind in inner.items()}
            for kind in inner.values():
                visit(kind)

    visit(onnx.ModelProto.DESCRIPTOR)
    assert found == MESSAGES


def refers_to_files(message: Message) -> bool:
    """Whether any tensor in a parsed message has data outside."""
    if isinstance(message, TensorProto) and (message.external_data or message.data_location == TensorProto.EXTERNAL):
        return True
    inner = [value for entry, value in message.ListFields() if entry.message_type]
    return any(refers_to_files(one) for value in inner for one in ([value] if isinstance(value, Message) else value))


@st.composite
def messages(draw: st.DrawFn, name: str = "ModelProto", depth: int = 0) -> bytes:
    """Bytes that are more or less a message: fields that it has and others, written well and otherwise."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        known = list(MESSAGES[name]) or [13, 14]
        number = draw(st.sampled_from(known) | st.sampled_from([13, 14, 16]) | st.integers(1, 30))
        content: bytes | int
        if number in MESSAGES[name] and depth < 8 and draw(st.integers(0, 9)):
            content = draw(messages(MESSAGES[name][number], depth + 1))
        else:
            content = draw(st.binary(max_size=6) | st.integers(0, 3) | st.integers(0, (1 << 70) - 1))
        plain = draw(st.integers(0, 5)) > 0
        above, longer = (0, 0) if plain else (draw(st.integers(0, 3)), draw(st.integers(0, 10)))
        parts.append(field(number, content, above=above, longer=longer))
    return b"".join(parts)


@settings(max_examples=500)
@given(messages(), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2))
def test_what_is_let_through_refers_to_no_file_however_protobuf_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, edits: list[tuple[int, int]]
) -> None:
    changed = bytearray(field(7, b"") + data)
    for place, value in edits:
        changed[place % len(changed)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.onnx"
    path.write_bytes(changed)
    try:
        ModelFile(str(path)).close()
    except ModelError:
        return
    try:
        parsed = onnx.ModelProto.FromString(bytes(changed))
    except DecodeError:
        return
    assert not refers_to_files(parsed)


@settings(max_examples=200)
@given(messages())
def test_what_protobuf_writes_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    try:
        parsed = onnx.ModelProto.FromString(data)
    except DecodeError:
        return
    parsed.DiscardUnknownFields()
    parsed.graph.name = "there is one"
    path = tmp_path_factory.getbasetemp() / "written.onnx"
    path.write_bytes(parsed.SerializeToString())
    if refers_to_files(parsed):
        with pytest.raises(ModelError, match="keeps weights in another file"):
            ModelFile(str(path))
    else:
        ModelFile(str(path)).close()


# ---- files that would take the machine's memory or another file's place


def test_many_small_fields_are_refused_in_flat_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MOST_FIELDS", 20_000)
    path = tmp_path / "m.onnx"
    path.write_bytes(field(7, field(1, b"") * 1_000_000))
    tracemalloc.start()
    with pytest.raises(ModelError, match="more than 20,000 fields"):
        ModelFile(str(path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    data = b""
    for _ in range(40):
        data = field(1, field(5, field(6, data)))
    path = tmp_path / "m.onnx"
    path.write_bytes(field(7, data))
    with pytest.raises(ModelError, match="more than 100 messages within each other"):
        ModelFile(str(path))


def test_a_file_cut_short_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "m.onnx", inputs={"mean_rgb": 300}, labels=300, hidden=300)
    really = os.pread

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        os.truncate(path, 1000)
        return really(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(ModelError, match="is damaged or no ONNX file: a number is cut short at byte"):
        ModelFile(path)


def test_what_was_hashed_is_what_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file takes its place, and leaves it again, while ONNX Runtime opens the path."""
    path, other = save_model(tmp_path / "m.onnx", **SMALL), save_model(tmp_path / "other.onnx", **SMALL, seed=2)
    expected = Model.open(path, device="cpu").run(features(3))
    really = runtime.open_cpu

    def swapped(*arguments: Any) -> Any:
        os.rename(path, tmp_path / "aside")
        os.rename(other, path)
        try:
            return really(*arguments)
        finally:
            os.rename(path, other)
            os.rename(tmp_path / "aside", path)

    monkeypatch.setattr(scorer.model.placement, "open_cpu", swapped)
    monkeypatch.setattr(ModelFile, "check_unchanged", lambda self: None)
    assert same(Model.open(path, device="cpu").run(features(3)), expected)


def test_onnx_runtimes_own_format_is_refused(tmp_path: Path) -> None:
    """Whatever it holds was not examined."""
    module = runtime.import_runtime()
    save_ort(save_model(tmp_path / "m.onnx", **SMALL), tmp_path / "m.ort")
    with pytest.raises(ModelError, match="the model does not open"):
        runtime.open_cpu(module, (tmp_path / "m.ort").read_bytes(), 1)


def ir_99(proto: onnx.ModelProto) -> None:
    proto.ir_version = 99


def opset_99(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ir_99, r"m.onnx has IR 99, ONNX Runtime [\d.]+ reads up to \d+; upgrade it: pip install"),
        (opset_99, r"m.onnx has opset 99 of ai.onnx, ONNX Runtime [\d.]+ reads up to \d+; upgrade it"),
    ],
)
def test_a_model_from_the_future_is_named(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    proto = build_model(**SMALL)
    change(proto)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=message):
        Model.open(str(tmp_path / "m.onnx"), device="cpu")
