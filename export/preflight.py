"""Whether a Triton release will load a model repository on a given machine, and why not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import ModelProto
from pydantic import Field
from tritonclient.grpc import model_config_pb2 as triton

from export.agreement import config_problems
from export.memory import Memory, estimate
from export.operators import (
    contrib_operators,
    external_tensors,
    format_problems,
    inlined,
    opsets,
    unknown_operators,
)
from export.releases import onnxruntime_of, runtime_of
from tilesight.errors import BundleError, ConfigError, ManifestError
from tilesight.manifest import MODEL_NAME, Manifest, Strict
from tilesight.repository import Repository, State
from tilesight.triton_config import parse_config

# What Triton takes before it has a model: 34 MiB the server, 15 MiB ONNX Runtime's own code
# (measured; see docs/preflight.md), and room for the requests that wait.
SERVER_BYTES = 64 * 2**20

_CPUINFO = Path("/proc/cpuinfo")
# Names of one instruction family: without it x86 adds 8-bit products in three steps.
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
_FATAL_ONLY = 4

Verdict = Literal["yes", "no"]


class MemoryEstimate(Strict):
    """What a model is thought to take while it runs a full batch."""

    file_bytes: int
    weights_bytes: int
    activations_bytes: int = Field(description="most that is alive at once, at max_batch_size")
    batch: int
    instances: int
    total_bytes: int = Field(description="of all instances, with what the arena keeps in reserve")


class ModelReport(Strict):
    """The verdict on the promoted version of one model."""

    name: str
    version: int | None = Field(default=None, description="absent where none could be told")
    verdict: Verdict
    reasons: list[str] = Field(default=[], description="why not")
    warnings: list[str] = Field(default=[], description="what loads and is worth knowing")
    ir_version: int | None = None
    opsets: dict[str, int] = Field(default={}, description="by domain")
    contrib_operators: list[str] = Field(default=[], description="of ONNX Runtime's own set")
    instances: int | None = None
    threads: int | None = Field(default=None, description="of all instances together")
    memory: MemoryEstimate | None = None


class Report(Strict):
    """The verdict on a repository."""

    release: str
    onnxruntime: str
    cores: int
    memory_bytes: int | None = Field(description="of the machine, where it was told")
    gpu: bool
    verdict: Verdict
    reasons: list[str] = Field(description="why not, beside the models' own reasons")
    warnings: list[str]
    threads: int = Field(description="of all models together")
    estimated_bytes: int = Field(description="of all models together, the server included")
    models: list[ModelReport]


class _Target(NamedTuple):
    """Where the repository is to be loaded."""

    release: str
    cores: int
    gpu: bool


@dataclass
class _Findings:
    """Reasons and warnings, gathered while a model is looked at."""

    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(
    repository: Path,
    release: str,
    cores: int,
    memory_bytes: int | None = None,
    gpu: bool = False,
) -> Report:
    """The verdict on the promoted version of each model, and on all of them together.

    `memory_bytes` is the memory that Triton may take, of the GPU where `gpu` is set; without it
    the estimate is only told.

    Raises:
        ConfigError: the release is unknown.
        BundleError: there is no repository, or no model in it.
        ManifestError: `repository.json` cannot be read.
    """
    target = _Target(release, cores, gpu)
    runtime = onnxruntime_of(release)
    found = Repository(repository)
    state = found.state()
    names = found.models()
    if not names:
        raise BundleError(f"{repository}: no model with a version (folders named 1, 2, ...)")
    models = [_check_model(found, name, state, target) for name in names]
    threads = sum(model.threads or 0 for model in models)
    estimated = sum(model.memory.total_bytes for model in models if model.memory)
    estimated += 0 if gpu else SERVER_BYTES
    reasons = _memory_reasons(models, estimated, memory_bytes)
    refused = bool(reasons) or any(model.verdict == "no" for model in models)
    return Report(
        release=release,
        onnxruntime=runtime,
        cores=cores,
        memory_bytes=memory_bytes,
        gpu=gpu,
        verdict="no" if refused else "yes",
        reasons=reasons,
        warnings=_machine_warnings(threads, target),
        threads=threads,
        estimated_bytes=estimated,
        models=models,
    )


def _check_model(repository: Repository, name: str, state: State, target: _Target) -> ModelReport:
    version = None
    try:
        version = repository.current(name, state)
        manifest = repository.verified(name, version)
        path = repository.folder(name, version) / MODEL_NAME
        model = onnx.load(path, load_external_data=False)
    except (BundleError, ManifestError) as error:
        return ModelReport(name=name, version=version, verdict="no", reasons=[str(error)])
    except DecodeError:
        reason = f"{path}: not an ONNX file"
        return ModelReport(name=name, version=version, verdict="no", reasons=[reason])
    findings = _Findings()
    valid = _check_graph(model, path, manifest, target, findings)
    config = _check_config(repository, manifest, findings)
    if config and valid:
        place = repository.config_path(name)
        problems = config_problems(config, model.graph, target.gpu)
        findings.reasons += [f"{place}: {problem}" for problem in problems]
    instances = _instances(config) if config else None
    threads = _threads(config, target, findings) if config else None
    return ModelReport(
        name=name,
        version=version,
        verdict="no" if findings.reasons else "yes",
        reasons=findings.reasons,
        warnings=findings.warnings,
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": number for domain, number in opsets(model).items()},
        contrib_operators=contrib_operators(model),
        instances=instances,
        threads=threads,
        memory=_memory(model, config, findings) if config and valid else None,
    )


def _check_graph(
    model: ModelProto, path: Path, manifest: Manifest, target: _Target, findings: _Findings
) -> bool:
    """Notes what keeps the release's ONNX Runtime from opening the file; whether it is a graph."""
    outside = external_tensors(model)
    whole = inlined(model)
    # ONNX's own check would look for the other files.
    invalid = outside or _invalid(whole)
    findings.reasons += [
        *format_problems(whole, runtime_of(target.release)),
        *unknown_operators(whole),
        *outside,
        *_manifest_problems(model, manifest, target.release),
    ]
    contrib = contrib_operators(whole)
    if contrib:
        findings.warnings.append(
            f"needs the operators that ONNX Runtime alone has: {', '.join(contrib)}"
        )
    # What was refused already needs no second reason.
    if not findings.reasons:
        findings.reasons += invalid
    # What is only for the GPU does not open here.
    if not findings.reasons and not target.gpu:
        findings.reasons += _refusal(path)
    findings.warnings += _int8_warnings(manifest, target.gpu)
    return not invalid


def _invalid(model: ModelProto) -> list[str]:
    """What ONNX's own check says against the file; opsets are judged by the release's table."""
    try:
        onnx.checker.check_model(model, skip_opset_compatibility_check=True)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        return [f"not a valid graph: {error}"]
    return []


def _manifest_problems(model: ModelProto, manifest: Manifest, release: str) -> list[str]:
    """Where the manifest promises another graph, or needs a newer ONNX Runtime."""
    problems = []
    graph, runtime = manifest.graph, onnxruntime_of(release)
    found = (opsets(model).get(""), model.ir_version)
    if found != (graph.opset, graph.ir_version):
        problems.append(
            f"the manifest promises opset {graph.opset} and IR version {graph.ir_version}, "
            f"the graph has {found[0]} and {found[1]}"
        )
    if _numbers(runtime) < _numbers(graph.minimum_onnxruntime):
        problems.append(
            f"the manifest asks for ONNX Runtime {graph.minimum_onnxruntime}, "
            f"Triton {release} has {runtime}"
        )
    return problems


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def _refusal(path: Path) -> list[str]:
    """What the ONNX Runtime of this installation says against the file, tried for real."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime raises its own classes, all of them straight from Exception.
    except Exception as error:
        return [f"ONNX Runtime {ort.__version__}, which is installed here, refuses it: {error}"]
    return []


def _check_config(
    repository: Repository, manifest: Manifest, findings: _Findings
) -> triton.ModelConfig | None:
    """The model's `config.pbtxt`; notes where it is not the generated one."""
    path = repository.config_path(manifest.name)
    stale = repository.stale_configs([manifest.name])
    if stale:
        findings.reasons.append(
            f"{stale[manifest.name]}; `tilesight models promote "
            f"{manifest.name}@{manifest.version}` writes it anew"
        )
    if not path.is_file():
        return None
    try:
        return parse_config(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except ConfigError as error:
        findings.reasons.append(str(error))
        return None


def _instances(config: triton.ModelConfig) -> int:
    """Copies of the model that Triton makes: one where the configuration says nothing."""
    return sum(max(1, group.count) for group in config.instance_group) or 1


def _threads(config: triton.ModelConfig, target: _Target, findings: _Findings) -> int:
    """Threads of all instances; notes a model that is too many for the cores by itself."""
    written = config.parameters["intra_op_thread_count"].string_value
    each = int(written) if written.isdecimal() and int(written) else target.cores
    instances = _instances(config)
    threads = instances * each
    if threads > target.cores and not target.gpu:
        findings.reasons.append(
            f"{instances} x {each} threads on {counted(target.cores, 'core')}; "
            "`tilesight models configure` sets instances and threads"
        )
    return threads


def _memory(model: ModelProto, config: triton.ModelConfig, findings: _Findings) -> MemoryEstimate:
    batch = max(1, config.max_batch_size)
    memory: Memory = estimate(inlined(model), batch)
    if memory.unsized:
        findings.warnings.append(
            f"the memory of {len(memory.unsized)} tensors is not told by the graph and not in the "
            f"estimate, {memory.unsized[0]} among them"
        )
    instances = _instances(config)
    return MemoryEstimate(
        file_bytes=memory.file,
        weights_bytes=memory.weights,
        activations_bytes=memory.activations,
        batch=batch,
        instances=instances,
        total_bytes=instances * memory.total,
    )


def _memory_reasons(
    models: Sequence[ModelReport], estimated: int, memory_bytes: int | None
) -> list[str]:
    if memory_bytes is None or estimated <= memory_bytes:
        return []
    parts = [f"{m.name} {_gib(m.memory.total_bytes)}" for m in models if m.memory]
    return [
        f"needs an estimated {_gib(estimated)} GiB of the {_gib(memory_bytes)} GiB there are "
        f"({', '.join(parts)}); a smaller max_batch_size or fewer instances need less"
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _machine_warnings(threads: int, target: _Target) -> list[str]:
    if target.gpu:
        return ["the estimate of GPU memory leaves out CUDA's own context and work spaces"]
    if threads > target.cores:
        return [
            f"{threads} threads of all models on {counted(target.cores, 'core')}: models that are "
            "busy at the same time slow each other down"
        ]
    return []


def counted(number: int, noun: str) -> str:
    """The number with the noun, which is in the plural where it is not one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _int8_warnings(manifest: Manifest, gpu: bool) -> list[str]:
    if manifest.graph.precision != "int8":
        return []
    if gpu:
        return ["int8 is made for the CPU; on a GPU the float graph is seldom slower"]
    if not has_vnni(_CPUINFO):
        return ["int8, and the CPU here has no VNNI instructions: it may be slower than float32"]
    return []


def has_vnni(cpuinfo: Path) -> bool:
    """Whether the CPU multiplies 8-bit numbers in one step; True where nobody can tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return not flags or not _VNNI.isdisjoint(flags[0])
