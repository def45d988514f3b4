"""The GPU's kernels compile for GPUs, on a machine without one: Triton brings NVIDIA's assembler along."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from triton import compile as built  # noqa: E402
from triton.backends import backends  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from realsr_r1.models.lumina import gpu_attention as kernels  # noqa: E402
from realsr_r1.models.lumina.caches import INT8_MAX  # noqa: E402

pytestmark = pytest.mark.skipif("nvidia" not in backends,
                                reason="this Triton has no assembler for NVIDIA's GPUs")
SMALLEST = 99 * 1024  # bytes of shared memory for a program, of the cards of README's table (RTX 3090)
HEADS = {"KV_HEADS": 32, "HEAD_DIM": 128}  # of a 7B


def types_of(kernel, constants: dict, is_int8: bool) -> dict[str, str]:
    """Argument -> its type, as a rollout in bfloat16 gives it."""
    found = {}
    for name in kernel.arg_names:
        if name in constants:
            found[name] = "constexpr"
        elif name in ("positions", "columns", "prompt_lengths", "row_of_place"):
            found[name] = "*i64"
        elif name in ("parts", "peaks", "sums") or is_int8 and name.endswith("_scales"):
            found[name] = "*fp32"
        elif is_int8 and name.split("_")[0] in ("prompt", "own", "branch") and name.endswith(
                ("_keys", "_values")):
            found[name] = "*i8"
        elif name in ("query", "key", "value", "weight", "bias", "cos", "sin", "placed", "attended") or \
                name.split("_")[0] in ("prompt", "own", "branch") and name.split("_")[-1] in (
                    "keys", "values", "scales"):
            found[name] = "*bf16"
        else:
            found[name] = "i32"
    return found


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name, constants, warps", [
    ("_place", {"HEADS": 32, "KV_HEADS": 32, "HALF": 64, "EPS": 1e-5, "INT8": None, "MOST": INT8_MAX}, 1),
    ("_attend", {**HEADS, "GROUP": 1, "QUERIES": 64, "TILE": 64, "PIECE": kernels.PIECE, "INT8": None}, 4),
    ("_merge", {"HEADS": 32, "HEAD_DIM": 128, "MOST": 64}, 4)])
def test_a_kernel_compiles_for_bfloat16_and_fits(name, constants, warps, is_int8, capability, tmp_path,
                                                 monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, name)
    constants = {key: is_int8 if value is None else value for key, value in constants.items()}
    places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    source = ASTSource(fn=kernel, signature=types_of(kernel, constants, is_int8), constexprs=places)
    made = built(source, target=GPUTarget("cuda", capability, 32),
                 options={"num_warps": warps, "num_stages": 2})
    assert made.asm["cubin"] and made.metadata.shared <= SMALLEST
