"""Named chips, and the least time that operations and bytes can take on one: a roofline (doi:10.1145/1498765.1498785).

The figures are the makers' peaks: of dense matrix products, summed in float32, of the memory's bandwidth, and of what a
chip sends to the others of its host or slice, which is half of what NVLink, PCI Express and TPUs' interconnects are
said to carry both ways. Nobody reaches them: a bound says what is out of reach, not what will be measured.
"""

import dataclasses
import math

HALVES = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: what people call it.
        memory: bytes.
        bandwidth: of the memory, bytes a second.
        link: to its neighbours, bytes a second that it sends; None where it has none.
        halves: products of bfloat16 or float16, operations a second.
        floats: products of float32 as jax multiplies them by default: TF32 on NVIDIA's tensor cores, one pass of
            bfloat16 on a TPU, float32 elsewhere.
        source: of the figures.
    """

    name: str
    memory: float
    bandwidth: float
    link: float | None
    halves: float
    floats: float
    source: str

    def rate(self, dtype: str) -> float:
        """Operations a second of products of that type, as numpy has its name."""
        return self.halves if dtype in HALVES else self.floats

    def seconds(self, flops: float, nbytes: float, dtype: str, sent: float = 0.0) -> float:
        """The least time that so many operations and bytes take: the largest of the three, which may overlap.

        Args:
            flops: operations of matrix products.
            nbytes: that must be read or written.
            dtype: of the products' operands, as numpy has its name.
            sent: bytes to other chips; infinite where there is no link.
        """
        link = 0.0 if not sent else sent / self.link if self.link else math.inf
        return max(flops / self.rate(dtype), nbytes / self.bandwidth, link)


_G, _T = 1e9, 1e12
# Eight cores, each two fused multiply-adds of 8 floats (AVX2) a cycle at 3 GHz; halves are widened first.
_LAPTOP = 8 * 3e9 * 2 * 8 * 2
_SXM = "SXM, halved: it counts sparsity"
CHIPS = (
    Chip("laptop", 16 * _G, 89.6 * _G, None, _LAPTOP, _LAPTOP, "8 cores of AVX2 at 3 GHz, two channels of DDR5-5600"),
    Chip("L4", 24 * _G, 300 * _G, 32 * _G, 121 * _T, 60 * _T, "NVIDIA L4 datasheet, halved: it counts sparsity"),
    Chip("RTX 4090", 24 * _G, 1008 * _G, 32 * _G, 165.2 * _T, 82.6 * _T, "NVIDIA Ada architecture whitepaper"),
    Chip("A100", 80 * _G, 2039 * _G, 300 * _G, 312 * _T, 156 * _T, "NVIDIA A100 datasheet, 80 GB SXM"),
    Chip("H100", 80 * _G, 3350 * _G, 450 * _G, 989 * _T, 494 * _T, f"NVIDIA H100 datasheet, {_SXM}"),
    Chip("H200", 141 * _G, 4800 * _G, 450 * _G, 989 * _T, 494 * _T, f"NVIDIA H200 datasheet, {_SXM}"),
    Chip("v5e", 16 * _G, 819 * _G, 200 * _G, 197 * _T, 197 * _T, "docs.cloud.google.com/tpu/docs/v5e"),
    Chip("v5p", 95 * _G, 2765 * _G, 600 * _G, 459 * _T, 459 * _T, "docs.cloud.google.com/tpu/docs/v5p"),
    Chip("v6e", 32 * _G, 1638 * _G, 400 * _G, 918 * _T, 918 * _T, "docs.cloud.google.com/tpu/docs/v6e"),
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


# What jax calls a device (`jax.Device.device_kind`) begins or goes on with one of these, the longer names first.
_KINDS = (
    ("H100", "H100"),
    ("H200", "H200"),
    ("A100-SXM4-80GB", "A100"),
    ("RTX 4090", "RTX 4090"),
    ("NVIDIA L4", "L4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a device is, by the name that jax gives its kind; None for a CPU and what is not known here."""
    if "L40" in device_kind:
        return None
    return next((chip(name) for words, name in _KINDS if words in device_kind), None)
