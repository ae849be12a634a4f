"""Parameters meet tensors: layouts against PyTorch, everything wrong in one error, any geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file

from optdiff.nn.abstract import abstract
from optdiff.nn.assign import LAYOUTS, Family, check, draft, fill, foreign_arrays
from optdiff.nn.tensorfile import CheckpointError, open_file


class Small(nnx.Module):
    """A convolution, a 1x1 convolution kept as a matrix, a linear map, a gain."""

    def __init__(self, config, dtype, rngs):
        self.config = config
        self.blocks = nnx.List(
            [nnx.Conv(3, 4, (3, 2), padding="VALID", param_dtype=dtype, rngs=rngs)]
        )
        self.mix = nnx.Linear(4, 5, use_bias=False, param_dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(5, 2, param_dtype=dtype, rngs=rngs)
        self.gain = nnx.Param(jnp.ones((), dtype))

    def __call__(self, x):
        return self.gain[...] * self.out(self.mix(self.blocks[0](x)))


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, (3, 2))
        self.mix = torch.nn.Conv2d(4, 5, 1, bias=False)
        self.out = torch.nn.Linear(5, 2)
        self.gain = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.gain * self.out(self.mix(self.conv(x)).permute(0, 2, 3, 1))


NAMES = {
    "blocks.0.kernel": ("conv.weight", "conv"),
    "blocks.0.bias": ("conv.bias", "same"),
    "mix.kernel": ("mix.weight", "conv1x1"),
    "out.kernel": ("out.weight", "linear"),
    "out.bias": ("out.bias", "same"),
    "gain": ("gain", "same"),
}
SMALL = Family(
    library="diffusers",
    config=dict,
    build=Small,
    names=lambda config: NAMES,
    canonical=lambda name: name.removeprefix("old."),
    spare="step",
)


def drafted(tensors, path, dtype=jnp.float32):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return draft(SMALL, {}, NAMES, open_file(path), dtype)


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return Torch()


def test_the_filled_module_computes_what_torch_computes_and_gives_its_tensors_back(
    theirs, tmp_path
):
    state = theirs.state_dict()
    work = drafted(state, tmp_path / "w.safetensors")
    check({"small": work})
    ours = fill(work)
    x = torch.randn(2, 3, 6, 5)
    expected = theirs(x).detach().numpy()
    np.testing.assert_allclose(ours(x.permute(0, 2, 3, 1).numpy()), expected, atol=1e-5)
    back = foreign_arrays(NAMES, ours)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor.numpy())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_any_float_on_disk_becomes_the_type_asked_for(theirs, tmp_path, stored, dtype):
    work = drafted(theirs.to(stored).state_dict(), tmp_path / "w.safetensors", dtype)
    check({"small": work})
    kernel = fill(work).out.kernel.get_value()
    assert isinstance(kernel, jax.Array) and kernel.dtype == dtype
    expected = theirs.out.weight.detach().double().numpy().T.astype(dtype)
    np.testing.assert_array_equal(kernel, expected)


def test_everything_that_is_wrong_is_told_at_once(theirs, tmp_path):
    state = theirs.state_dict() | {
        "step": torch.ones(1, dtype=torch.int64),  # to be passed over
        "old.gain": torch.ones(()),
        "extra.weight": torch.ones(2, 2),
        "mix.weight": torch.ones(5, 4, 1),
        "out.bias": torch.ones(2, dtype=torch.int32),
    }
    del state["conv.weight"]
    other = theirs.state_dict()
    del other["gain"]
    with pytest.warns(UserWarning, match=r"w\.safetensors: left out, .*: step$"):
        first = drafted(state, tmp_path / "w.safetensors")
    drafts = {
        "first": first,
        "second": drafted(other, tmp_path / "o.safetensors"),
    }
    with pytest.raises(CheckpointError) as error:
        check(drafts)
    told = str(error.value)
    for line in [
        "first does not match",
        "missing: conv.weight (4, 3, 3, 2)",
        "mis-shaped: mix.weight is (5, 4, 1), expected (5, 4, 1, 1)",
        "mistyped: out.bias is I32",
        "unexpected: extra.weight (2, 2) in w.safetensors",
        "and old.gain are both gain",
        "second does not match",
        "missing: gain ()",
    ]:
        assert line in told, told
    assert "step" not in told


def test_nothing_is_read_before_everything_fits(theirs, tmp_path, monkeypatch):
    from optdiff.nn import tensorfile

    monkeypatch.setattr(
        tensorfile.Tensor, "read_into", lambda self, out: pytest.fail("read too early")
    )
    drafted(theirs.state_dict(), tmp_path / "w.safetensors")


def test_a_cpu_holds_what_was_read_and_no_copy_of_it(theirs, tmp_path, monkeypatch):
    from optdiff.nn import tensorfile

    memory, read_into = set(), tensorfile.Tensor.read_into

    def noted(tensor, out):
        memory.add(out.__array_interface__["data"][0])
        read_into(tensor, out)

    monkeypatch.setattr(tensorfile.Tensor, "read_into", noted)
    module = fill(drafted(theirs.state_dict(), tmp_path / "w.safetensors"))
    leaves = jax.tree.leaves(nnx.state(module))
    assert {leaf.unsafe_buffer_pointer() for leaf in leaves} == memory and len(leaves) > 1
    # Memory that came from outside may be donated: it is not written over.
    kept = [np.array(leaf) for leaf in leaves]
    doubled = jax.jit(lambda *a: [2 * x for x in a], donate_argnums=range(len(leaves)))(*leaves)
    for once, twice in zip(kept, doubled, strict=True):
        np.testing.assert_array_equal(2 * once, twice)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_into_a_foreign_view_of_ours_lies_as_ours(name):
    ours = {"conv": (2, 3, 4, 5), "linear": (2, 3), "conv1x1": (2, 3), "same": (2, 3)}[name]
    array, layout = np.zeros(ours), LAYOUTS[name]
    view = layout.foreign(array)
    assert view.shape == layout.shape(ours) and np.shares_memory(view, array)
    view[...] = np.arange(view.size).reshape(view.shape)
    order = {"conv": "oihw->hwio", "linear": "oi->io", "conv1x1": "oihw->io", "same": "oi->oi"}
    np.testing.assert_array_equal(array, np.einsum(order[name], view))


def test_an_abstract_module_has_the_shapes_of_the_real_one_and_no_values():
    real = nnx.state(nnx.eval_shape(lambda: Small({}, jnp.float16, nnx.Rngs(0))))
    ghost = nnx.state(abstract(lambda rngs: Small({}, jnp.float16, rngs)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(ghost))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), real) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), ghost
    )
