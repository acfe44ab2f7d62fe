"""What this machine's processor can do, as the kernel tells it."""

from pathlib import Path

# Instructions that multiply bfloat16. A processor without them is told float32 beforehand: where it
# has AVX-512, OpenVINO would imitate bfloat16, slower than float32.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's features by their kernel names; none where there is no such file."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    told = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(told, "").split())


def has_bfloat16(found: frozenset[str]) -> bool:
    """Whether a processor with these features multiplies bfloat16 itself."""
    return not _BFLOAT16.isdisjoint(found)
