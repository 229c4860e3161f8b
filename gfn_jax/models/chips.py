"""Named chips, and the least time that operations and bytes can take on one: a roofline (doi:10.1145/1498765.1498785).

The figures are the makers' peaks of dense matrix products, summed in float32, and of the memory's bandwidth. Nobody
reaches them: a bound says what is out of reach, not what will be measured.
"""

import dataclasses

HALVES = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: what people call it.
        memory: bytes.
        bandwidth: of the memory, bytes a second.
        halves: products of bfloat16 or float16, operations a second.
        floats: products of float32 as jax multiplies them by default: TF32 on NVIDIA's tensor cores, one pass of
            bfloat16 on a TPU, float32 elsewhere.
        source: of the figures.
    """

    name: str
    memory: float
    bandwidth: float
    halves: float
    floats: float
    source: str

    def seconds(self, flops: float, nbytes: float, dtype: str) -> float:
        """The least time that so many operations and so many bytes take: the larger of the two.

        Args:
            flops: operations of matrix products.
            nbytes: that must be read or written.
            dtype: of the products' operands, as numpy has its name.
        """
        return max(flops / (self.halves if dtype in HALVES else self.floats), nbytes / self.bandwidth)


_G, _T = 1e9, 1e12
# Eight cores, each two fused multiply-adds of 8 floats (AVX2) a cycle at 3 GHz; halves are widened first.
_LAPTOP = 8 * 3e9 * 2 * 8 * 2
CHIPS = (
    Chip("laptop", 16 * _G, 89.6 * _G, _LAPTOP, _LAPTOP, "8 cores of AVX2 at 3 GHz, two channels of DDR5-5600"),
    Chip("L4", 24 * _G, 300 * _G, 121 * _T, 60 * _T, "NVIDIA L4 datasheet, halved: it counts sparsity"),
    Chip("RTX 4090", 24 * _G, 1008 * _G, 165.2 * _T, 82.6 * _T, "NVIDIA Ada architecture whitepaper"),
    Chip("A100", 80 * _G, 2039 * _G, 312 * _T, 156 * _T, "NVIDIA A100 datasheet, 80 GB SXM"),
    Chip("H100", 80 * _G, 3350 * _G, 989 * _T, 494 * _T, "NVIDIA H100 datasheet, SXM, halved: it counts sparsity"),
    Chip("H200", 141 * _G, 4800 * _G, 989 * _T, 494 * _T, "NVIDIA H200 datasheet, SXM, halved: it counts sparsity"),
    Chip("v5e", 16 * _G, 819 * _G, 197 * _T, 197 * _T, "docs.cloud.google.com/tpu/docs/v5e"),
    Chip("v5p", 95 * _G, 2765 * _G, 459 * _T, 459 * _T, "docs.cloud.google.com/tpu/docs/v5p"),
    Chip("v6e", 32 * _G, 1638 * _G, 918 * _T, 918 * _T, "docs.cloud.google.com/tpu/docs/v6e"),
)


def chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
        ValueError: there is none.
    """
    for known in CHIPS:
        if known.name == name:
            return known
    raise ValueError(f"no chip {name!r}; there are {', '.join(known.name for known in CHIPS)}")
