"""A model's id counts every bit of it, and nothing else (R1, R2)."""

import os
import time

import pytest
import torch
from torch import nn

from tiny import tiny_llama
from trueline.errors import UserError
from trueline.models.fingerprint import (
    _WEIGHTS,
    BLOCK,
    VERSION,
    files_fingerprint,
    fingerprint,
    tensor_digest,
)

MANY = 28_311_552
"""SmolLM2's embedding: a float32 grid of positions rounds past its end here."""


class Holder(nn.Module):
    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def one(tensor):
    return fingerprint(Holder(x=tensor), "float32")


@pytest.mark.slow  # 110 MB are read five times
def test_r1_r2_a_large_tensor_with_one_flipped_bit_anywhere(record_property):
    tensor = torch.randn(49152, 576, generator=torch.Generator().manual_seed(0))
    assert tensor.numel() == MANY
    begin = time.process_time()
    before = tensor_digest(tensor)
    pace = tensor.numel() * 4 / (time.process_time() - begin) / 1e9
    record_property("gigabytes_per_processor_second", pace)
    print(f"fingerprint: {pace:.2f} GB for each second of processor time")
    bits = tensor.view(torch.int32).view(-1)
    for at, bit in ((0, 0), (MANY - 1, 31), (16_777_217, 7), (MANY // 2, 22)):
        bits[at] ^= -(2**31) if bit == 31 else 1 << bit
        assert tensor_digest(tensor) != before
        bits[at] ^= -(2**31) if bit == 31 else 1 << bit
    assert tensor_digest(tensor) == before


@pytest.mark.parametrize("length", [0, 1, 2, 511, 512, 513, 1025, 16_777_217])
def test_r1_any_size(length):
    tensor = torch.zeros(length, dtype=torch.uint8)
    before = one(tensor)
    assert before == one(tensor.clone())
    if length:
        tensor[-1] = 1
        assert one(tensor) != before


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool,
          torch.float8_e4m3fn, torch.complex64]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_r2_every_bit_counts(dtype):
    generator = torch.Generator().manual_seed(1)
    shape = (37, 61)
    raw = torch.randint(0, 2, (37, 61 * dtype.itemsize), generator=generator, dtype=torch.uint8)
    if dtype != torch.bool:
        raw = raw * 67
    tensor = raw.view(dtype) if dtype != torch.bool else raw.bool()
    assert tensor.shape == shape
    seen = {tensor_digest(tensor)}
    flat = raw.view(-1)
    places = torch.randint(0, len(flat), (200,), generator=generator).unique().tolist()
    for number, at in enumerate(places, 1):
        changed = flat.clone()
        changed[at] ^= 1 if dtype == torch.bool else 1 << (at % 8)
        other = changed.view(raw.shape)
        seen.add(tensor_digest(other.bool() if dtype == torch.bool else other.view(dtype)))
        assert len(seen) == number + 1


def test_r2_what_sums_would_not_see():
    """Exchanged rows and values, changes that cancel, signs, NaNs, shapes and types."""
    base = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    base[5, 5], base[7, 7] = 0.0, float("nan")
    nan = base.clone()
    nan.view(torch.int32)[7, 7] ^= 1
    swapped = base.clone()
    swapped[[3, 40]] = swapped[[40, 3]]
    variants = {
        "as it is": base,
        "-0.0": base.masked_fill(base == 0, -0.0),
        "another NaN": nan,
        "rows exchanged": swapped,
        "columns exchanged": base[:, [1, 0, *range(2, 96)]],
        "shifted": base.roll(1),
        "turned over": base.flip(0),
        "all signs": -base,
        "signs of two": base * torch.ones(96).index_fill(0, torch.tensor([8, 10]), -1),
        "another shape": base.view(96, 64),
        "as integers": base.view(torch.int32),
    }
    left = base.clone()
    left[0, 0] += 1.0
    left[0, 2] -= 1.0
    variants["changes that cancel"] = left
    seen = {one(tensor) for tensor in variants.values()}
    assert len(seen) == len(variants)
    assert fingerprint(Holder(y=base), "float32") not in seen, "the name counts"


def test_r2_two_flipped_bits_or_exchanged_values_never_cancel():
    """What the docstring of fingerprint promises follows from this of its weights: no two in one
    block are equal or opposite modulo 2^33 (and all are odd)."""
    for weights in _WEIGHTS:
        assert len(weights) == BLOCK
        assert bool((weights & 1).all())
        low = weights & (2**33 - 1)
        assert len(torch.cat([low, -low & (2**33 - 1)]).unique()) == 2 * BLOCK


def test_r2_same_bits_same_id_however_they_lie_in_memory(monkeypatch):
    base = torch.randn(300, 700, generator=torch.Generator().manual_seed(3))
    expected = one(base)
    apart = torch.empty(700, 300).T.copy_(base)
    assert not apart.is_contiguous()
    odd = torch.empty(base.numel() + 1)[1:].view(base.shape).copy_(base)
    assert odd.data_ptr() % 8 == 4
    assert one(apart) == one(odd) == one(base.clone()) == expected
    for slab in (512, 1024, 1 << 20):
        monkeypatch.setattr("trueline.models.fingerprint.CPU_SLAB", slab)
        assert one(base) == expected


def test_r2_a_value_for_good():
    """An id is written into folders: the same in every release until VERSION says otherwise."""
    tensor = torch.arange(5000, dtype=torch.int64)
    assert tensor_digest(tensor).hex() == "fd4d87800700f3006331cf4c908be414"
    assert one(tensor).startswith(f"{VERSION}-"), "ids of earlier releases are bare hex"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_r2_same_id_on_a_gpu():
    tensor = torch.randn(3000, 701)
    assert one(tensor.cuda()) == one(tensor)
    assert one(tensor.bfloat16().cuda().T) == one(tensor.bfloat16().T)


def test_r2_rows_of_an_embedding(tmp_path):
    """512 sampled values did not see these."""
    model = tiny_llama()
    before = fingerprint(model, "float32")
    assert fingerprint(tiny_llama(), "float32") == before
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 1] += 1.0
    assert fingerprint(model, "float32") != before
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert fingerprint(loaded, "float32") == before, "content counts, not where it came from"


def test_r2_offloaded_weights_are_refused():
    with pytest.raises(UserError, match=r"lm_head\.weight is not in memory"):
        fingerprint(nn.ModuleDict({"lm_head": nn.Linear(2, 2, device="meta", bias=False)}), "x")


def test_r2_quantized_state_counts():
    """Tensor subclasses are read by the tensors they are made of; scales in the state count."""
    from torch.testing._internal.two_tensor import TwoTensor

    first, second = torch.randn(4, 4), torch.randn(4, 4)
    assert one(TwoTensor(first, second)) != one(TwoTensor(first, second + 1))
    assert one(TwoTensor(first, second)) == one(TwoTensor(first.clone(), second.clone()))


def test_r2_an_adapter_counts_by_content_and_scale_not_by_name():
    from peft import LoraConfig, get_peft_model

    def adapted(name="default", alpha=8):
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"])
        return get_peft_model(tiny_llama(), config, adapter_name=name)

    expected = fingerprint(adapted(), "float32", adapters="default")
    assert expected == fingerprint(adapted("first"), "float32", adapters="first")
    assert expected != fingerprint(adapted(alpha=16), "float32", adapters="default")
    assert expected != fingerprint(tiny_llama(), "float32")
    assert fingerprint(adapted(), "float32") == fingerprint(tiny_llama(), "float32")
    two = adapted()
    two.add_adapter("other", LoraConfig(r=3, target_modules=["v_proj"]))
    assert fingerprint(two, "float32", adapters="default") == expected


def test_r2_files_are_hashed_whole_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(1 << 20))
    (folder / "config.json").write_text("{}")
    old = time.time() - 100
    for path in folder.iterdir():
        os.utime(path, (old, old))
    first = files_fingerprint(str(folder))
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 2
    monkeypatch.setattr("trueline.models.fingerprint.checksum", None)  # kept: no file is read again
    assert files_fingerprint(str(folder)) == first
    monkeypatch.undo()
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))
    with weights.open("r+b") as file:  # one byte in the middle, the same size, time and inode
        file.seek(1 << 19)
        file.write(b"x")
    os.utime(weights, (old, old))
    assert files_fingerprint(str(folder)) != first


def test_r2_sharded_tensors_are_gathered(tmp_path, monkeypatch):
    """FSDP's tensors, and parameters that ZeRO-3 leaves empty between steps."""
    import sys
    from contextlib import contextmanager
    from types import SimpleNamespace

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = torch.randn(6, 5)
    expected = fingerprint(nn.ParameterDict({"x": nn.Parameter(whole)}), "float32")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cut = distribute_tensor(whole, init_device_mesh("cpu", (1,)), [Shard(0)])
        sharded = nn.ParameterDict({"x": nn.Parameter(cut)})
        assert fingerprint(sharded, "float32") == expected
    finally:
        dist.destroy_process_group()

    empty = nn.Parameter(torch.empty(0))
    empty.ds_id = 0

    @contextmanager
    def gathered(parameters):
        (parameter,) = parameters
        parameter.data = whole
        yield
        parameter.data = torch.empty(0)

    zero = SimpleNamespace(GatheredParameters=gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    assert fingerprint(nn.ParameterDict({"x": empty}), "float32") == expected
    assert not empty.numel()
