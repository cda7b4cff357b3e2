"""Files that torch and safetensors write are read here bit for bit, and what would run code in torch is refused."""

import pickle
import zipfile

import numpy as np
import pytest
from tiny import Evil

from agriclip_jax.errors import UserError
from agriclip_jax.weights.containers import open_weights

pytestmark = pytest.mark.parity

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")


def every_dtype(torch):
    values = torch.linspace(-3, 3, 12).reshape(3, 4)
    return {
        **{name: values.to(getattr(torch, name)) for name in FLOATS},
        **{name: (values + 3).to(getattr(torch, name)) for name in INTEGERS},
        "bool": values > 0,
    }


def assert_same_bits(torch, container, expected):
    """Every tensor is there under its name, with torch's shape, torch's dtype and torch's bits."""
    assert set(container.tensors) == set(expected)
    for name, tensor in expected.items():
        found = container.tensors[name]
        array = found.read()
        assert found.shape == array.shape == tuple(tensor.shape), name
        assert str(found.dtype) == str(array.dtype) == str(tensor.dtype).removeprefix("torch."), name
        assert array.flags.c_contiguous and array.flags.aligned, name
        flat = tensor.detach().contiguous().reshape(-1)
        np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), flat.view(torch.uint8).numpy(), name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_of_torch_is_read_whatever_the_pickle_protocol(torch, tmp_path, protocol):
    torch.save(every_dtype(torch), tmp_path / "a.pt", pickle_protocol=protocol)
    container = open_weights(tmp_path / "a.pt")
    assert container.format == "torch" and not container.values
    assert_same_bits(torch, container, every_dtype(torch))


def test_views_are_read_through_their_strides(torch, tmp_path):
    base = torch.arange(120.0).reshape(4, 5, 6)
    views = {
        "whole": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0),
        "sliced": base[1:3, ::2, 3:],
        "column": base[:, 2, 4],
        "scalar": base[3, 4, 5],
        "empty": base[:, :0],
        "new axis": base[1, :, None, 2:4],
        "parameter": torch.nn.Parameter(base[2].T),
        "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    torch.save(views, tmp_path / "a.pt")
    assert_same_bits(torch, open_weights(tmp_path / "a.pt"), views)


def test_a_training_checkpoint_gives_its_weights_and_plain_values(torch, tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    state = model.state_dict()
    assert state._metadata
    saved = {"model": state, "epoch": 3, "name": "vit", "lr": 0.5, "ema": True, "size": state["0.weight"].shape}
    torch.save(
        saved | {"optimiser": optimiser.state_dict(), "none": None, "device": torch.device("cpu")}, tmp_path / "a"
    )
    container = open_weights(tmp_path / "a")
    moments = {
        f"optimiser.state.{i}.{name}": tensor
        for i, of in optimiser.state_dict()["state"].items()
        for name, tensor in of.items()
    }
    assert_same_bits(torch, container, {f"model.{name}": tensor for name, tensor in state.items()} | moments)
    values = {name: value for name, value in container.values.items() if not name.startswith("optimiser")}
    sizes = {f"size.{i}": n for i, n in enumerate((4, 3, 2, 2))}
    assert values == {"epoch": 3, "name": "vit", "lr": 0.5, "ema": True} | sizes
    assert container.values["optimiser.param_groups.0.betas.1"] == 0.999


@pytest.mark.parametrize("make", ["script", "trace"])
def test_a_torchscript_module_is_read_with_its_attributes(torch, tmp_path, make):
    class Visual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = torch.nn.Parameter(torch.rand(3, 5))
            self.layers = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
            self.register_buffer("mask", torch.arange(4.0))
            self.input_resolution = 224
            self.sizes = [1, 2]
            self.scales = {"a": 0.5}

        def forward(self, x):
            return self.layers(x @ self.proj) * self.input_resolution * self.sizes[0] * self.scales["a"]

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Visual()
            self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))

        def forward(self, x):
            return self.visual(x) * self.logit_scale

    model = Clip().half().eval()
    x = torch.rand(2, 3).half()
    torch.jit.save(torch.jit.script(model) if make == "script" else torch.jit.trace(model, x), tmp_path / "ViT.pt")
    container = open_weights(tmp_path / "ViT.pt")
    assert container.format == "torchscript"
    assert container.tensors["visual.proj"].dtype == np.float16
    assert_same_bits(torch, container, model.state_dict())
    assert container.values["visual.training"] is False
    if make == "script":
        assert container.values["visual.input_resolution"] == 224
        assert container.values["visual.sizes.1"] == 2 and container.values["visual.scales.a"] == 0.5


def test_safetensors_are_read_as_their_library_wrote_them(torch, tmp_path):
    library = pytest.importorskip("safetensors.torch")
    tensors = every_dtype(torch) | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    library.save_file(tensors, tmp_path / "a", metadata={"format": "pt"})
    container = open_weights(tmp_path / "a")
    assert (container.format, container.values) == ("safetensors", {"format": "pt"})
    assert_same_bits(torch, container, tensors)


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_an_archive_of_torch_is_named_and_not_run(torch, tmp_path, protocol):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pt")
    evil = pickle.dumps(Evil(tmp_path / "ran"), protocol)
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, evil if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(
        UserError, match=r"evil.pt asks for \w+\.system, which is no tensor; .* save them as safetensors"
    ):
        open_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused_by_the_name_of_its_class(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear, which is no tensor"):
        open_weights(tmp_path / "a.pt")


def test_files_of_torch_before_1_6_are_refused_with_what_to_do(torch, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"as torch wrote before 1\.6.*save it anew"):
        open_weights(tmp_path / "a.pt")


def test_a_view_larger_than_its_storage_is_refused_although_torch_can_expand_it(torch, tmp_path):
    torch.save({"a": torch.zeros(1).expand(3)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="more elements than its storage has"):
        open_weights(tmp_path / "a.pt")


def test_a_negated_view_is_refused_rather_than_read_with_the_wrong_sign(torch, tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj().imag}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="negated"):
        open_weights(tmp_path / "a.pt")
