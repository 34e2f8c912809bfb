"""Saved networks are read; hostile files do nothing but raise."""

import codecs
import functools
import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict, deque
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from eeutils.errors import IntegrityError
from eeutils.weights import PickledTensors, read_pickled_tensors
from eeutils.weights.unpickler import InertUnpickler

codecs.lookup("cp437")  # zipfile's own encoding of names: imported now, not while a test watches what is imported

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Odd(nn.Module):
    """A module with everything that is not a plain parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1), tied=nn.Linear(4, 4)))
        self.inner.tied.weight = nn.Parameter(torch.arange(16.0).view(4, 4).t())  # strided
        self.tied = self.inner.tied
        self.register_buffer("kept", torch.tensor([True, False, True]))
        self.register_buffer("bytes", torch.tensor([0, 2, 255], dtype=torch.uint8))
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.register_buffer("part", torch.arange(10)[3:7])  # of a larger storage
        self.register_buffer("small", torch.ones(2, 2, dtype=torch.float16))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
        self.register_parameter("none", None)
        self.plain = torch.full((3,), 7.0)  # neither parameter nor buffer
        self.settings = {(1, 2): {"names", "of"}, "x": [1.5, None, b"bytes", -(2**70)]}


def saved(value, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def read(content: bytes, folder: Path) -> PickledTensors:
    (folder / "module.pt").write_bytes(content)
    return read_pickled_tensors(folder / "module.pt")


@FORMATS
@pytest.mark.parametrize(
    "net",
    [Odd(), ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, width_per_group=64), nn.DataParallel(nn.Linear(2, 2))],
    ids=["odd", "resnet", "data parallel"],
)
def test_read_pickled_tensors_gives_the_state_dict(net, zipped, tmp_path):
    tensors = read(saved(net, zipped), tmp_path)
    expected = net.state_dict()
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


@FORMATS
def test_read_pickled_tensors_takes_state_dicts_and_checkpoints(zipped, tmp_path):
    net = nn.Linear(2, 3)
    assert list(read(saved(net.state_dict(), zipped), tmp_path)) == ["weight", "bias"]
    for checkpoint in ({"model": net, "epoch": 3}, {"model": net.state_dict(), "epoch": 3}):
        assert list(read(saved(checkpoint, zipped), tmp_path)) == ["model.weight", "model.bias"]


@FORMATS
def test_read_pickled_tensors_imports_no_class(zipped, tmp_path, monkeypatch):
    # A module that exists while the file is written, and would leave a mark were it imported again.
    marker = tmp_path / "imported"
    (tmp_path / "upf_classes.py").write_text(
        f"from torch import nn\nclass Net(nn.Linear):\n    pass\nopen({str(marker)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import upf_classes

    content = saved(upf_classes.Net(2, 3), zipped)
    del sys.modules["upf_classes"]
    marker.unlink()
    before = set(sys.modules)
    assert list(read(content, tmp_path)) == ["weight", "bias"]
    assert set(sys.modules) == before
    assert not marker.exists()


# Hostile pickles, as the whole file's object in both formats.


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def with_pickle(content: bytes, zipped: bool, storage: bytes = b"") -> bytes:
    """A file of torch's whose object is `content`; a legacy file has no storage unless one is given."""
    if not zipped:
        head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        keys = pickle.dumps(["0"] if storage else [], 2)
        return head + content + keys + (struct.pack("<q", len(storage) // 4) + storage if storage else b"")
    return zipped_with(content)


def zipped_with(content: bytes, compression: int = zipfile.ZIP_STORED, byteorder: str = "little") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(64))
        archive.writestr("archive/byteorder", byteorder)
    return buffer.getvalue()


def module_with(parameter: bytes) -> bytes:
    """The pickle of a module whose one parameter is what the opcodes `parameter` push."""
    return b"\x80\x02cevil\nNet\n)\x81}X\x0b\x00\x00\x00_parameters}X\x01\x00\x00\x00w" + parameter + b"ssb."


def tensor_opcodes(offset=0, size=(2,), stride=(1,), numel=16, key="0", kind="FloatStorage") -> bytes:
    """Opcodes that push a tensor as torch pickles it."""

    def inner(value) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    reference = b"(" + inner("storage") + b"ctorch\n" + kind.encode() + b"\n" + inner(key) + inner("cpu")
    storage = reference + inner(numel) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + inner(offset) + inner(size) + inner(stride) + b"\x89NtR"


def hostile(marker: Path) -> dict[str, bytes]:
    leave_mark = f"open({str(marker)!r}, 'w').close()"
    called = {
        "os.system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, leave_mark),
        "exec": Calls(exec, leave_mark),
        "import": Calls(__import__, "antigravity"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "state": Calls(type, "X", (), {}, state={"__setstate__": Calls(eval, leave_mark)}),
    }
    opcodes = {
        "setstate of a class": b"\x80\x02cbuiltins\neval\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",
        "class attribute": b"\x80\x02ceeutils.errors\nIntegrityError\n}X\x03\x00\x00\x00bad\x88sb.",
        "inst": f"(S'{marker}'\nios\nmkdir\n.".encode(),
        "obj": b"(cos\nsystem\nX" + struct.pack("<I", len(f"touch {marker}")) + f"touch {marker}".encode() + b"o.",
        "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "huge memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "huge string": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "huge number": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\x00.",
        "deep tuple as a key": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
        "deep tuple as a size": module_with(tensor_opcodes().replace(b"K\x02\x85", b")" + b"\x85" * 100_000)),
        "exponential tuple": b"\x80\x02}" + b"X\x01\x00\x00\x00w)" + b"2\x86" * 80 + b"s.",
        "exponential size": module_with(tensor_opcodes().replace(b"K\x02\x85", b")" + b"2\x86" * 80)),
        "no end": b"\x80\x02" + b"N" * 100,
        "empty": b"",
        "nothing on the stack": b"\x80\x02.",
        "not a tensor": module_with(b"K\x01"),
        "tensor of a number": module_with(b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR"),
        "tensor of nothing": module_with(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
        "parameter of nothing": module_with(b"ctorch._utils\n_rebuild_parameter\n)R"),
    }
    tensors = {
        "beyond the storage": tensor_opcodes(offset=15),
        "negative offset": tensor_opcodes(offset=-1),
        "negative size": tensor_opcodes(size=(-2,)),
        "negative stride": tensor_opcodes(offset=8, stride=(-1,)),
        "negative length": tensor_opcodes(numel=-16),
        "no such storage": tensor_opcodes(key="1"),
        "a path as storage": tensor_opcodes(key="../../etc/passwd"),
        "huge storage": tensor_opcodes(numel=1 << 28),
        "huge size": tensor_opcodes(size=(1 << 62,)),
        "expanded": tensor_opcodes(size=(1 << 20, 2), stride=(0, 1)),
        "product overflows": tensor_opcodes(size=(1 << 30, 1 << 30, 1 << 30), stride=(0, 0, 0)),
        "lengths differ": tensor_opcodes(size=(2, 2)),
        "many dimensions": tensor_opcodes(size=(1,) * 70, stride=(1,) * 70),
        "unknown storage": tensor_opcodes(kind="EvilStorage"),
        "storage of two kinds": tensor_opcodes() + b"0" + tensor_opcodes(kind="LongStorage", numel=8),
    }
    calls = {name: pickle.dumps(value, 2) for name, value in called.items()}
    return calls | opcodes | {name: module_with(tensor) for name, tensor in tensors.items()}


@FORMATS
@pytest.mark.parametrize("name", hostile(Path("unused")))
def test_read_pickled_tensors_only_raises_on_a_hostile_file(name, zipped, tmp_path):
    marker = tmp_path / "executed"
    opcodes = hostile(marker)[name]
    content = with_pickle(opcodes, zipped, bytes(64) if b"storage" in opcodes else b"")
    before, attributes = set(sys.modules), dict(vars(IntegrityError))
    with pytest.raises(IntegrityError) as caught:
        read(content, tmp_path)
    assert len(str(caught.value)) < 1000
    assert not marker.exists()
    assert "antigravity" not in sys.modules
    assert set(sys.modules) == before
    assert dict(vars(IntegrityError)) == attributes


def test_inert_unpickler_reads_files_that_harm_pythons_own(tmp_path):
    assert torch.equal(read(with_pickle(module_with(tensor_opcodes()), zipped=True), tmp_path)["w"], torch.zeros(2))
    marker = tmp_path / "executed"
    for name in ("os.system", "eval", "exec"):
        pickle.loads(hostile(marker)[name])
        assert marker.exists(), name
        marker.unlink()


@FORMATS
def test_read_pickled_tensors_reports_foreign_names(zipped, tmp_path):
    net = Odd()
    net.harmless = os.system
    assert read(saved(net, zipped), tmp_path).foreign == ("posix.system", f"{Odd.__module__}.Odd")
    assert read(saved(nn.Linear(2, 3), zipped), tmp_path).foreign == ()


def test_read_pickled_tensors_passes_over_attributes_of_other_classes(tmp_path):
    net = nn.Linear(2, 3)
    net.device, net.size, net.function = torch.device("cpu"), torch.Size((1, 2)), functools.partial(len, [1])
    net.number, net.counts, net.others = np.float32(1.5), defaultdict(list, a=[1]), [frozenset((1,)), 1j, deque([1])]
    assert list(read(saved(net), tmp_path)) == ["weight", "bias"]


def test_read_pickled_tensors_ends_on_modules_that_contain_each_other(tmp_path):
    nets = [nn.Sequential()]
    for _ in range(40):  # 2 ** 40 paths
        outer = nn.Module()
        outer.a = outer.b = nets[-1]
        nets.append(outer)
    cycle = nn.Module()
    cycle._modules["self"] = cycle
    for net in (nets[-1], cycle):
        with pytest.raises(IntegrityError, match="nested without end"):
            read(saved(net), tmp_path)


# Work and memory stay in proportion to the file.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def bombs() -> dict[str, bytes]:
    """Small pickles that would take very long, or very much memory, if sharing were not counted."""
    net, numbers = b"cevil\nNet\n)\x81}", [text(f"{number:05}") for number in range(10_000)]
    entries = b"(" + b"".join(number + b"N" for number in numbers) + b"u"
    shared = b"".join(number + b"h\x01" for number in numbers)
    deep = (text("_modules") + b"}" + text("x" * 190) + net) * 90
    inner = text("a") + net + text("_parameters") + b"}" + entries + b"sbq\x01"
    call = b"cbuiltins\nset\nq\x000(" + b"N" * 100_000 + b"tq\x010"
    large = b"\x8b" + struct.pack("<I", 200_000) + b"\x01" * 200_000
    names = tensor_opcodes() + b"q\x010" + net + deep + text("_parameters") + b"}(" + shared[: len(shared) // 2] + b"u"
    bombs = {
        "a long tuple of arguments, many calls": call + b"h\x00h\x01R0" * 90_000 + b"}.",
        "a long state, many objects": b"}q\x00" + entries + b"0" + b"cevil\nNet\n)\x81h\x00b0" * 50_000 + b"}.",
        "a large dict of many parents": net + text("_modules") + b"}(" + inner + shared + b"usb.",
        "long names at great depth": names + b"sb" + b"ssb" * 90 + b".",
        "many marks": b"(" * 200_000 + b".",
        "many dicts": b"}" * 200_000 + b".",
        "large equal numbers as keys": b"}q\x00" + large + b"q\x010" + b"h\x00h\x01Ns" * 100_000 + b".",
    }
    return {name: b"\x80\x02" + content for name, content in bombs.items()} | {
        "many memos": b"\x80\x04N" + b"\x94" * 200_000 + b"."
    }


@FORMATS
@pytest.mark.parametrize("name", bombs())
def test_read_pickled_tensors_takes_little_memory_for_a_bomb(name, zipped, tmp_path):
    content = with_pickle(bombs()[name], zipped)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            read(content, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 200 * len(content)
    finally:
        tracemalloc.stop()


SOUND = module_with(tensor_opcodes())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        *((content, "pt|page") for content in (b"", b"PK\x03\x04 no zip", b"<html>quota</html>", bytes(1000))),
        (saved(nn.ReLU()), "no tensors"),
        (saved([torch.ones(2)]), "list"),
        (zipped_with(SOUND, zipfile.ZIP_DEFLATED), "compressed"),
        (zipped_with(SOUND, byteorder="big"), "big-endian"),
        (with_pickle(SOUND, zipped=False), "list of storages"),
        (with_pickle(module_with(tensor_opcodes(numel=1 << 28)), zipped=False), "larger than the file"),
    ],
)
def test_read_pickled_tensors_refuses_what_is_no_saved_network(content, named, tmp_path):
    with pytest.raises(IntegrityError, match=named):
        read(content, tmp_path)
    assert list(read(zipped_with(SOUND), tmp_path)) == ["w"]


SMALL = {zipped: saved(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), zipped) for zipped in (True, False)}


def survives(content: bytes, folder: Path) -> None:
    try:
        tensors = read(content, folder)
    except (IntegrityError, ValueError):
        return
    assert all(type(name) is str and type(tensor) is torch.Tensor for name, tensor in tensors.items())
    sum(float(tensor.double().sum()) for tensor in tensors.values())  # every element can be read


@FORMATS
@settings(max_examples=60)
@given(data=st.data())
def test_read_pickled_tensors_raises_or_gives_tensors_after_flipped_bits(zipped, data, tmp_path_factory):
    content = bytearray(SMALL[zipped])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    survives(bytes(content), tmp_path_factory.getbasetemp())


@FORMATS
@given(data=st.data())
def test_read_pickled_tensors_refuses_a_truncated_file(zipped, data, tmp_path_factory):
    content = SMALL[zipped][: data.draw(st.integers(0, len(SMALL[zipped]) - 1))]
    with pytest.raises(IntegrityError):
        read(content, tmp_path_factory.getbasetemp())


@settings(max_examples=80)
@given(content=st.binary(max_size=60), zipped=st.booleans())
def test_read_pickled_tensors_raises_or_gives_tensors_for_random_opcodes(content, zipped, tmp_path_factory):
    survives(with_pickle(b"\x80\x02" + content + b".", zipped), tmp_path_factory.getbasetemp())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=plain, protocol=st.integers(0, 5))
def test_inert_unpickler_gives_plain_values_as_pickle_does(value, protocol):
    assert InertUnpickler(io.BytesIO(pickle.dumps(value, protocol)), None).load() == value


@FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride", "fits"),
    [
        (0, (2, 8), (8, 1), True),
        (1, (2, 8), (8, 1), False),
        (15, (1,), (1,), True),
        (16, (1,), (1,), False),
        (16, (0,), (1,), True),
        (0, (16,), (0,), True),
        (0, (17,), (0,), False),
    ],
)
def test_read_pickled_tensors_keeps_tensors_within_a_storage_of_sixteen_numbers(
    offset, size, stride, fits, zipped, tmp_path
):
    content = with_pickle(module_with(tensor_opcodes(offset, size, stride)), zipped, bytes(64))
    with nullcontext() if fits else pytest.raises(IntegrityError, match="storage"):
        assert read(content, tmp_path)["w"].shape == size
