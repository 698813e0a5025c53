"""Tensors of torch: dtypes, layouts, leases and loans, where torch is installed."""

import gc
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sample_arrays import free, leased

import shmq


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # what is tested here lies above the ring


Make = Callable[..., shmq.Queue]


# ---- torch ----

torch_dtypes = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def torch_sample(torch: Any, dtype: str, *shape: int) -> Any:
    kind = getattr(torch, dtype)
    if dtype == "bool":
        return torch.arange(math.prod(shape)).reshape(shape) % 2 == 0
    raw = torch.arange(math.prod(shape) * kind.itemsize, dtype=torch.int64).to(torch.uint8) % 120
    return raw.view(kind).reshape(shape)


def torch_bytes(torch: Any, tensor: Any) -> bytes:
    return (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.dim()
        else torch_bytes(torch, tensor[None])
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (40, 50)], ids=str)
@pytest.mark.parametrize("dtype", torch_dtypes)
def test_torch_tensors_of_every_dtype(q: shmq.Queue, torch: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    sent = torch_sample(torch, dtype, *shape)
    for copy in (False, True):
        for message in (sent, {"x": [sent]}):
            q.put(message)
            got = q.get(copy=copy)
            got = got["x"][0] if isinstance(got, dict) else got
            assert isinstance(got, torch.Tensor)
            assert got.dtype == sent.dtype
            assert got.shape == sent.shape
            assert torch_bytes(torch, got) == torch_bytes(torch, sent)
            assert not got.requires_grad
            assert leased(q) == (math.prod(shape) * sent.dtype.itemsize > 1024 and not copy)
            del got
    assert free(q)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_torch_layouts(q: shmq.Queue, torch: Any, dtype: str) -> None:
    base = torch_sample(torch, dtype, 40, 30)
    for sent in (base.T, base[::2], base[:, 1:3], base[0].expand(4, 30), base.permute(1, 0)[3:]):
        q.put(sent)
        got = q.get()
        assert got.dtype == sent.dtype
        assert torch_bytes(torch, got) == torch_bytes(torch, sent)
        if sent.T.is_contiguous():
            assert got.stride() == sent.stride()
        del got
    assert free(q)


def test_torch_conjugates_and_negatives(q: shmq.Queue, torch: Any) -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    for sent in (z.conj(), z.conj().imag, z.imag, z.real):
        q.put(sent)
        assert torch.equal(q.get(), sent.resolve_conj().resolve_neg())


def test_torch_gradients_and_parameters(q: shmq.Queue, torch: Any) -> None:
    for sent in (
        torch.ones(300, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(3, requires_grad=True) * 2,
    ):
        q.put(sent)
        got = q.get()
        assert type(got) is torch.Tensor
        assert not got.requires_grad
        assert torch.equal(got, sent.detach())


@pytest.mark.parametrize("layout", ["sparse", "csr", "meta", "quantized"])
def test_torch_tensors_that_do_not_travel(q: shmq.Queue, torch: Any, layout: str) -> None:
    dense = torch.eye(4)
    make_one: dict[str, tuple[Callable[[], Any], str]] = {
        "sparse": (dense.to_sparse, "to_dense"),
        "csr": (dense.to_sparse_csr, "to_dense"),
        "meta": (lambda: torch.empty(3, device="meta"), r"meta.*\.cpu\(\)"),
        "quantized": (lambda: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8), "travel"),
    }
    maker, word = make_one[layout]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that some of these are beta
            sent = maker()
    except (RuntimeError, NotImplementedError) as e:
        pytest.skip(f"this torch makes none: {e}")
    for message in (sent, [sent]):
        with pytest.raises(shmq.Unencodable, match=word):
            q.put(message)
    assert q.empty()
    assert free(q)


def test_torch_tensors_of_a_gpu_do_not_travel(q: shmq.Queue, torch: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    with pytest.raises(shmq.Unencodable, match=r"cuda.*\.cpu\(\)"):
        q.put(torch.ones(3, device="cuda"))


@pytest.mark.parametrize("arrays", ["auto", "numpy", "torch"])
def test_what_arrays_arrive_as(make: Make, torch: Any, arrays: Any) -> None:
    q = make(arrays=arrays)
    kinds = {"auto": (np.ndarray, torch.Tensor), "numpy": (np.ndarray,) * 2, "torch": (torch.Tensor,) * 2}[
        arrays
    ]
    for size in (3, 3000):
        for message in (np.ones(size, "f4"), [np.ones(size, "f4")]):
            q.put(message)
            got = q.get()
            got = got[0] if isinstance(got, list) else got
            assert type(got) is kinds[0]
            del got
        q.put(torch.ones(size, dtype=torch.bfloat16))
        got = q.get()
        assert type(got) is kinds[1]
        assert "bfloat16" in str(got.dtype)
        del got
    assert free(q)


def test_a_dtype_that_torch_has_not_loses_nothing(make: Make, torch: Any) -> None:
    q = make(arrays="torch")
    want = np.array(["2024-01-01"], "M8[s]")
    for message in (want, [want]):
        q.put(message)
        with pytest.raises(shmq.DecodeError) as caught:
            q.get()
        assert want.tobytes() in caught.value.payload


def test_torch_views_own_their_lease(q: shmq.Queue, torch: Any) -> None:
    q.put(torch.ones(100, 100))
    got = q.get()
    part = got[5:7].T
    array = part.numpy()
    del got, part
    gc.collect()
    assert leased(q) == 1
    array[:] = 2
    del array
    gc.collect()
    assert free(q)


def test_torch_takes_numpy_views_and_the_other_way(q: shmq.Queue, torch: Any) -> None:
    q.put(np.ones((100, 100), "f4"))
    view = q.get()
    address = view.ctypes.data
    tensor = torch.from_dlpack(view)
    assert tensor.data_ptr() == address
    del view
    gc.collect()
    assert leased(q) == 1
    del tensor
    gc.collect()
    assert free(q)
    q.put(torch.ones(100, 100))
    array = np.from_dlpack(q.get())
    gc.collect()
    assert leased(q) == 1
    del array
    gc.collect()
    assert free(q)


@pytest.mark.parametrize("dtype", torch_dtypes)
@pytest.mark.parametrize("spelled", ["torch", "name"])
def test_torch_loans(q: shmq.Queue, torch: Any, dtype: str, spelled: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    kind = getattr(torch, dtype)
    with q.loan((30, 20), kind if spelled == "torch" else dtype) as loan:
        tensor = loan.torch()
        assert tensor.dtype == kind
        assert tensor.shape == (30, 20)
        assert tensor.data_ptr() == loan.array.ctypes.data
        tensor.copy_(torch_sample(torch, dtype, 30, 20))
        del tensor
    got = q.get()
    assert isinstance(got, torch.Tensor)
    assert got.dtype == kind
    assert torch_bytes(torch, got) == torch_bytes(torch, torch_sample(torch, dtype, 30, 20))


def test_torch_loans_come_as_torch_without_a_look(q: shmq.Queue, torch: Any) -> None:
    with q.loan(5, torch.float32) as loan:
        loan.array[:] = 1
    assert torch.equal(q.get(), torch.ones(5))
    with q.loan(5, "float32") as loan:
        loan.array[:] = 1
    assert type(q.get()) is np.ndarray


def test_a_model_writes_into_a_loan(q: shmq.Queue, torch: Any) -> None:
    a, b = torch.ones(20, 30), torch.ones(30, 40)
    with q.loan((20, 40), torch.float32) as loan:
        torch.matmul(a, b, out=loan.torch())
    assert torch.equal(q.get(), a @ b)
