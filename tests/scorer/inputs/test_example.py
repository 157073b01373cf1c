"""Decoding agrees with protobuf on every input, one record at a time or among others, known layout or not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.errors import RecordError
from scorer.inputs import protobuf
from scorer.inputs.example import Decoder
from scorer.inputs.records import Schema
from scorer.inputs.source import LocalFile
from scorer.inputs.tfrecord import Shard
from tests import shards
from tests.fuzz.check import agree, frames_of, videos
from tests.loops import loops  # noqa: F401
from tests.scorer.inputs import reference
from tests.shards import bytes_feature, entry, example_of, field, float_feature, int64_feature, varint

DATA = Path(__file__).parents[4] / "shared" / "data"
WIDTHS = {"rgb": 3, "audio": 2}
FLOATS = {"rgb": np.array([1, -0.0, 3e-45], np.float32), "audio": np.array([0.5, -7], np.float32)}
GOOD = shards.example("good", [1, 300], FLOATS)


def check(payloads: Sequence[bytes], widths: Mapping[str, int] = WIDTHS) -> None:
    """Decode twice, unknown and known layouts: as the reference both times."""
    agree(payloads, Schema(widths))


def reason(payload: bytes, widths: Mapping[str, int] = WIDTHS) -> str:
    """The one line about a bad record."""
    records = Decoder(Schema(widths)).decode("x.tfrecord", frames_of([GOOD, payload, GOOD]))
    rows = [np.zeros((3, width), np.float32) for width in widths.values()]
    if 1 not in records.bad:
        assert not records.copy(0, 3, rows)
    (error,) = records.bad.values()
    assert isinstance(error, RecordError)
    assert (error.record, error.offset) == (1, len(GOOD) + 16)
    return error.reason


def never(*_: object) -> None:
    raise AssertionError("this layout should not need protobuf")


keys = st.sampled_from(["rgb", "audio", "id", "video_id", "labels", "other", "rgc", "", "a" * 130])
floats32 = st.floats(width=32) | st.floats(-9, 9, width=32)
ids = st.text(max_size=9).map(str.encode) | st.sampled_from([b"ab", b"", b"\xff", b"\0", b"x" * 130, b"y" * 1025])
labels64 = st.integers(0, 4715) | st.integers(-(2**63), 2**63 - 1)
features = st.one_of(
    st.lists(floats32, min_size=2, max_size=4).map(float_feature),
    st.lists(floats32, max_size=4).map(lambda v: field(2, b"".join(field(1, np.float32(x).tobytes(), 5) for x in v))),
    st.lists(labels64, max_size=4).map(int64_feature),
    st.lists(labels64, max_size=4).map(lambda v: field(3, b"".join(field(1, varint(x), 0) for x in v))),
    st.lists(ids, max_size=2).map(lambda v: bytes_feature(*v)),
    st.just(b""),
)
ENTRIES = [
    entry("rgb", float_feature(FLOATS["rgb"])),
    entry("audio", float_feature(FLOATS["audio"])),
    entry("id", bytes_feature(b"good")),
    entry("labels", int64_feature([1, 300])),
]
good_entries = st.permutations(ENTRIES)
odd_entries = st.lists(st.builds(entry, keys, features) | st.builds(entry, ids, features), max_size=3)
loose_fields = st.builds(field, st.integers(1, 5), st.binary(max_size=9), st.sampled_from([0, 1, 2, 5, 3, 7]))


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Good records, with entries added, dropped and repeated, fields put in anywhere, and bytes changed."""
    entries = draw(good_entries) + draw(odd_entries)
    if draw(st.booleans()):
        del entries[draw(st.integers(0, 3))]
    entries = draw(st.permutations(entries))
    cut = draw(st.integers(0, len(entries)))
    payload = example_of(entries[:cut]) + example_of(entries[cut:]) if draw(st.booleans()) else example_of(entries)
    payload += draw(st.sampled_from([b"", b"\x12\x00"]) | loose_fields)
    if draw(st.integers(0, 2)) == 0:
        at = draw(st.integers(0, len(payload)))
        payload = payload[:at] + draw(st.binary(max_size=3)) + payload[at + draw(st.integers(0, 3)) :]
    return payload


@given(st.lists(payloads(), min_size=1, max_size=12))
@settings(max_examples=400)
def test_agrees_with_protobuf(payloads: list[bytes]) -> None:
    check(payloads)


@given(st.lists(st.builds(example_of, good_entries), min_size=1, max_size=9), payloads())
def test_neighbours_do_not_matter(good: list[bytes], irregular: bytes) -> None:
    check([*good, irregular, *good])


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_garbage_is_nothing_but_bad(payloads: list[bytes]) -> None:
    check(payloads)


@given(st.data())
def test_protobufs_own_serialisation(data: st.DataObject) -> None:
    message = reference.Example()
    for key in data.draw(st.lists(keys, unique=True)):
        feature = message.features.feature[key]
        kind = data.draw(st.sampled_from(["float_list", "int64_list", "bytes_list"]))
        values = {"float_list": floats32, "int64_list": labels64, "bytes_list": ids}[kind]
        getattr(feature, kind).value.extend(data.draw(st.lists(values, max_size=4)))
    check([GOOD, message.SerializeToString()])


VARINTS = [b"\1", b"\x80\1", b"\xff" * 9 + b"\1", b"\x80" * 9 + b"\0"]
BROKEN_VARINTS = [b"\xff" * 9 + b"\x7f", b"\xff" * 10 + b"\1", b"\x80" * 8, b"\x80", b"\xff" * 17]
varints = st.lists(st.sampled_from(VARINTS + BROKEN_VARINTS) | st.binary(max_size=3), max_size=12).map(b"".join)
values = st.one_of(
    st.builds(field, st.integers(1, 2), varints),
    st.builds(field, st.integers(1, 2), varints, st.just(0)),
    st.builds(field, st.integers(0, 20), st.binary(min_size=4, max_size=8), st.sampled_from([1, 2, 3, 4, 5, 7])),
    st.just(field(1, field(1, b"\1", 0) + field(1, b"", 4), 3)),  # a group
)
unasked_features = st.lists(st.builds(field, st.integers(1, 4), st.lists(values, max_size=4).map(b"".join)), max_size=3)
NOT_UTF8 = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
unasked_keys = st.sampled_from(["other", "ключ", "", "\U0010ffff", *NOT_UTF8])


@given(good_entries, st.lists(st.builds(entry, unasked_keys, unasked_features.map(b"".join)), min_size=1, max_size=3))
@settings(max_examples=400)
def test_a_feature_that_nobody_asks_for_is_valid_or_not_as_protobuf_says(good: list[bytes], more: list[bytes]) -> None:
    check([GOOD, example_of([*good, *more]), GOOD])


UNASKED = {
    "int64": int64_feature([5]),
    "int64s": int64_feature([0, -1, 2**63 - 1, *range(100)]),
    "int64s that are not packed": field(3, b"".join(field(1, varint(value), 0) for value in (-3, 300))),
    "int64s packed and not": field(3, field(1, b"\1\2") + field(1, b"\3", 0) + field(1, b"\4")),
    "floats that are not packed": field(2, b"".join(field(1, b"\0\0\x80\x3f", 5) for _ in range(3))),
    "strings": bytes_feature(b"a", b"", b"\xff" * 300),
    "no feature": b"",
    "two lists": int64_feature([5]) + bytes_feature(b"a"),
}


@pytest.mark.parametrize("kind", UNASKED)
@pytest.mark.parametrize("key", ["more", "ещё"])
def test_a_feature_that_nobody_asks_for_needs_no_protobuf(kind: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "parse", never)
    more = entry(key, UNASKED[kind])
    check([GOOD, example_of([more, *ENTRIES]), example_of([*ENTRIES, more, more])])


BROKEN = {
    "a varint of 11 bytes": field(3, field(1, b"\x80" * 10 + b"\1")),
    "a varint of 11 bytes among others": field(3, field(1, b"\1" * 6 + b"\x80" * 10 + b"\1" * 9)),
    "a varint that is cut": field(3, field(1, b"\1\x80")),
    "a varint of ten bytes that is cut": field(3, field(1, b"\x80" * 10)),
    "the last of many varints is cut": field(3, field(1, b"\1" * 30 + b"\x80")),
    "a varint of 11 bytes, not packed": field(3, field(1, b"\x80" * 10 + b"\1", 0)),
    "floats of 5 bytes": field(2, field(1, b"12345")),
    "a float of 3 bytes": field(2, field(1, b"123", 5)),
    "a string that is cut": field(1, b"\x0a\5abc"),
    "a second list that is cut": int64_feature([5]) + b"\x1a\5\x0a",
    "field 0": field(3, field(0, b"1")),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_feature_that_nobody_asks_for_makes_a_bad_record(kind: str) -> None:
    more = entry("more", BROKEN[kind])
    assert agree([GOOD, example_of([more, *ENTRIES]), example_of([*ENTRIES, more])], Schema(WIDTHS))[1:] == [None, None]


@pytest.mark.parametrize("key", NOT_UTF8)
def test_a_key_that_is_not_utf8_makes_a_bad_record(key: bytes) -> None:
    payload = example_of([*ENTRIES, entry(key + b" and some more", int64_feature([1]))])
    assert agree([GOOD, payload], Schema(WIDTHS))[1] is None


LAYOUTS = {
    "no labels": shards.example("abc", None, FLOATS),
    "empty labels": shards.example("abc", [], FLOATS),
    "2017's id": shards.example("abc", [3], FLOATS, id_key="video_id"),
    "tail of a SequenceExample": GOOD + b"\x12\x00",
    "negative labels": shards.example("abc", [-1, 3, -(2**63)], FLOATS),
    "an unknown feature": shards.example("abc", [3], FLOATS | {"more": [1.0]}),
    "many labels": shards.example("abc", range(0, 3000, 3), FLOATS),
    "large labels": shards.example("abc", [0, 127, 128, 16383, 16384, 2**21, 2**28 - 1], FLOATS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_common_layouts_need_no_protobuf(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "parse", never)
    check([GOOD, LAYOUTS[name], GOOD])


def test_mixed_layouts_need_no_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "parse", never)
    check([*LAYOUTS.values()] * 3)


def test_names_that_look_alike_need_no_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first eight bytes of these entries are equal."""
    monkeypatch.setattr(protobuf, "parse", never)
    widths = {f"feature_{letter}": 40 for letter in "abcdef"}
    values = {name: np.arange(40, dtype=np.float32) + i for i, name in enumerate(widths)}
    check([shards.example(f"id{i}", [i], values) for i in range(20)], widths)


@pytest.mark.parametrize("width", [1, 28, 31, 32, 4000, 4096, 500_000])
def test_any_width_needs_no_protobuf(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "parse", never)
    check([shards.example("abc", [1], {"x": np.full(width, i, np.float32)}) for i in range(3)], {"x": width})


def test_unpacked_split_and_repeated_layouts() -> None:
    rest = [entry("audio", float_feature(FLOATS["audio"])), entry("id", bytes_feature(b"abc"))]
    unpacked = field(2, b"".join(field(1, value.tobytes(), 5) for value in FLOATS["rgb"]))
    split = field(2, field(1, FLOATS["rgb"][:1].tobytes()) + field(1, FLOATS["rgb"][1:].tobytes()))
    merged = field(2, field(1, FLOATS["rgb"][:1].tobytes())) + field(2, field(1, FLOATS["rgb"][1:].tobytes()))
    irregular = [example_of([entry("rgb", feature), *rest]) for feature in (unpacked, split, merged)]
    irregular.append(
        example_of([entry("rgb", float_feature([9, 9, 9])), entry("rgb", float_feature([1, 2, 3])), *rest])
    )
    irregular.append(example_of(rest) + example_of([entry("rgb", float_feature([1, 2, 3]))]))
    check(irregular)
    assert None not in videos(Decoder(Schema(WIDTHS)).decode("x", frames_of(irregular)))


def test_unknown_fields_within_lists() -> None:
    rest = [entry("audio", float_feature(FLOATS["audio"])), entry("id", bytes_feature(b"abc"))]
    rgb = field(2, field(1, FLOATS["rgb"].tobytes()) + field(3, b"1234"))
    labels = [field(3, field(3, b"\1\2")), field(3, field(1, b"\1\2") + field(2, b"\3"))]
    check([example_of([entry("rgb", rgb), entry("labels", feature), *rest]) for feature in labels])


def test_cut_labels_do_not_run_into_the_next_record() -> None:
    rest = [entry(name, float_feature(values)) for name, values in FLOATS.items()] + [entry("id", bytes_feature(b"a"))]
    check([GOOD, example_of([entry("labels", field(3, field(1, b"\1\x82"))), *rest]), GOOD])


def test_id_goes_before_video_id() -> None:
    both = shards.example("2017", [1], FLOATS, id_key="video_id")
    both += example_of([entry("id", bytes_feature(b"2018"))])
    assert Decoder(Schema(WIDTHS)).decode("x", frames_of([both])).ids == [b"2018"]


def test_more_headers_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.inputs.layouts._MAX_HEADERS", 5)
    check([shards.example("i" * (1 + i % 20), [1] * (i % 7), FLOATS) for i in range(60)])


def test_headers_of_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.inputs.layouts._HASH", np.int64(0))
    monkeypatch.setattr(protobuf, "parse", never)
    check([*LAYOUTS.values()] * 2)


MISTAKES: dict[str, Callable[[], bytes]] = {
    "feature 'rgb' is missing; the record has 'audio', 'id'": lambda: shards.example("a", None, {"audio": [1, 2]}),
    "feature 'rgb' holds 2 values, the model wants 3": lambda: shards.example("a", [], FLOATS | {"rgb": [1, 2]}),
    "feature 'rgb' holds nan at index 1": lambda: shards.example("a", [], FLOATS | {"rgb": [1, np.nan, 2]}),
    "feature 'audio' holds -inf at index 0": lambda: shards.example("a", [], FLOATS | {"audio": [-np.inf, 2]}),
    "there is no 'id' or 'video_id'; the record has 'audio', 'labels', 'rgb'": lambda: shards.example(None, [], FLOATS),
    "feature 'id' is empty": lambda: shards.example("", [], FLOATS),
    r"feature 'id' contains the control character U+0000": lambda: shards.example("a\0b", [], FLOATS),
    r"feature 'id' contains the control character U+000A": lambda: shards.example("a\nb", [], FLOATS),
    r"feature 'id' contains the control character U+001B": lambda: shards.example("\x1b[2J", [], FLOATS),
    r"feature 'id' contains the control character U+007F": lambda: shards.example("a\x7f", [], FLOATS),
    r"feature 'id' contains the control character U+0085": lambda: shards.example("a\x85", [], FLOATS),
    r"feature 'id' contains the control character U+2028": lambda: shards.example("a\u2028b", [], FLOATS),
    r"feature 'id' contains the control character U+2029": lambda: shards.example("a\u2029", [], FLOATS),
    r"feature 'id' contains the control character U+009B": lambda: shards.example("\x9bb", [], FLOATS),
    "feature 'id' is not UTF-8: b'\\xff'": lambda: shards.example(b"\xff", [], FLOATS),
    "feature 'id' is 1025 bytes long, more than 1024": lambda: shards.example("x" * 1025, [], FLOATS),
    "feature 'id' holds 2 values, not one": lambda: (
        shards.example(None, [], FLOATS) + example_of([entry("id", bytes_feature(b"a", b"b"))])
    ),
    "feature 'id' is a float_list, not a bytes_list": lambda: shards.example(None, [], FLOATS | {"id": [1]}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_is_wrong_is_said(message: str) -> None:
    assert reason(MISTAKES[message]()) == message


@pytest.mark.parametrize(
    ("says", "record"),
    [
        (
            "feature 'labels' is a float_list, not a int64_list",
            shards.example("a", None, FLOATS | {"labels": [1]}),
        ),
        ("feature 'labels' holds 65537 values, more than 65536", shards.example("a", [0] * 65537, FLOATS)),
    ],
)
def test_labels_that_are_none_cost_the_labels_alone(says: str, record: bytes) -> None:
    check([GOOD, record, GOOD])
    records = Decoder(Schema(WIDTHS)).decode("x.tfrecord", frames_of([GOOD, record]))
    assert not records.bad
    assert {row: str(fault) for row, fault in records.label_faults.items()} == {
        1: f"x.tfrecord: record 1 at byte {len(GOOD) + 16}: {says}; write them as an int64 list"
    }
    assert records.labelled.tolist() == [True, False]


def test_not_an_example() -> None:
    assert reason(b"\xff\xff\xff").startswith("not a tf.Example (")


def test_good_floats_whose_squares_overflow() -> None:
    check([shards.example("a", [], FLOATS | {"rgb": [3e38, -3e38, 3e38]})])


def real_shards(pattern: str) -> list[Path]:
    found = sorted(DATA.glob(pattern))
    if not found:
        pytest.skip(f"no real shards: ../shared/data/{pattern} is absent")
    return found


@pytest.mark.parametrize("pattern", ["yt8m/*.tfrecord", "yt8m-2017/*.tfrecord"])
def test_real_shards_agree_and_need_no_protobuf(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "parse", never)
    widths = {"mean_rgb": 1024, "mean_audio": 128}
    decoder = Decoder(Schema(widths))
    for path in real_shards(pattern):
        with Shard(LocalFile.at(str(path))) as shard:
            for frames in shard.blocks():
                expected = [reference.decode(frames.payload(row), widths) for row in range(len(frames))]
                assert videos(decoder.decode("x", frames), Schema(widths)) == expected
                assert None not in expected


def test_a_model_with_one_input_reads_real_shards_without_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "parse", never)
    with Shard(LocalFile.at(str(real_shards("yt8m/*.tfrecord")[0]))) as shard:
        records = Decoder(Schema({"mean_rgb": 1024})).decode("x", next(iter(shard.blocks())))
    assert not records.bad


def test_protobuf_is_loaded_without_tfrecord_or_torch_or_warnings() -> None:
    code = 'import sys, scorer.inputs.protobuf as p; p.message_type("Example")()\n'
    code += "assert not {'torch', 'tfrecord'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_common_layouts_do_not_even_load_protobuf(tmp_path: Path) -> None:
    """Its import takes longer than to score a small shard."""
    path = shards.write_shard(tmp_path / "x.tfrecord", LAYOUTS.values())
    code = (
        "import sys\nfrom scorer.inputs.batching import batches\nfrom scorer.inputs.records import Schema\n"
        f"from scorer.inputs.source import LocalFile\nshards = [LocalFile.at({path!r})]\n"
        f"print(sum(map(len, batches(shards, Schema({WIDTHS!r}), 4))), 'google.protobuf' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert output.stdout == f"{len(LAYOUTS)} False\n"


def test_more_headers_of_one_hash_than_are_followed() -> None:
    widths = {"rgb": 3}
    names = [f"feature_{i:03}" for i in range(60)]
    payloads = [shards.example(f"id{i}", [i], {"rgb": [1, 2, i], name: [0.0] * 40}) for i, name in enumerate(names)]
    check(payloads * 2, widths)
