"""The peer llama.cpp: llama-cpp-python built from source for this machine, models as GGUF."""

from __future__ import annotations

import tarfile
from pathlib import Path

from adaptermix.bench import forced
from adaptermix.bench.peers.environment import FREE, TORCH, PeerEnvironment, ours
from adaptermix.bench.peers.systems import Context, Opened, Tokenize, Worker

NAME = "llama.cpp"
QUANTISED = "llama.cpp Q4_1"
HALF = "llama.cpp f16"  # faster than bf16 where the processor has no products of bf16
PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
LORA_TYPE = "f16"  # half as fast again as bf16 in llama.cpp's small products
# Of llama.cpp's converters, which lie in the source.
CONVERTERS = ("numpy", "sentencepiece", "protobuf", "pyyaml", "tqdm", "requests")

_QUANTISE = """
import ctypes, sys
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1
source, target = (path.encode() for path in sys.argv[1:])
sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(params)))
"""


def source(environment: PeerEnvironment) -> Path:
    """The unpacked source."""
    return environment.folder / f"llama_cpp_python-{VERSION}"


def home(cache: Path, isa: str | None) -> PeerEnvironment:
    """The environment of the build for this very processor, or of the one for `isa` alone."""
    return PeerEnvironment("llama" if isa is None else f"llama-{isa}", cache)


def recipe(isa: str | None) -> str:
    """The parts of an installation, in one line."""
    return " ".join([TORCH, VERSION, build(isa), *CONVERTERS, ours("transformers")])


def build(isa: str | None) -> str:
    """The variable that says how llama.cpp is compiled."""
    return f"CMAKE_ARGS={' '.join(forced.cmake_options(isa))}"


def install(environment: PeerEnvironment, isa: str | None) -> None:
    """The converters' needs, the source, and a build (a quarter hour)."""
    environment.install_torch()
    constraint = str(environment.constraint())
    needs = [*CONVERTERS, ours("transformers"), ours("safetensors")]
    environment.pip("install", "-q", "-c", constraint, *needs)
    wanted = ("--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}")
    environment.pip("download", "-q", "-d", str(environment.folder), *wanted)
    archive = environment.folder / f"llama_cpp_python-{VERSION}.tar.gz"
    with tarfile.open(archive) as opened:
        opened.extractall(environment.folder, filter="data")
    environment.pip("install", "-q", str(source(environment)), environment=[build(isa)])


def model_file(environment: PeerEnvironment, model: str, form: str = "bf16") -> Path:
    """The model as GGUF in bf16 or f16, converted once."""
    path = environment.folder / f"{Path(model).name}-{form}.gguf"
    if not path.exists():
        converter = source(environment) / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
        unfinished = path.with_suffix(".part")
        options = ("--outtype", form, "--outfile", str(unfinished))
        environment.run(environment.python, str(converter), model, *options)
        unfinished.rename(path)
    return path


def quantised_file(environment: PeerEnvironment, plain: Path) -> Path:
    """The same in Q4_1."""
    path = plain.with_name(plain.name.replace("bf16", "q4_1"))
    if not path.exists():
        unfinished = path.with_suffix(".part")
        environment.run(environment.python, "-c", _QUANTISE, str(plain), str(unfinished))
        unfinished.rename(path)
    return path


def convert_adapters(environment: PeerEnvironment, context: Context) -> Path:
    """A folder with every adapter as GGUF, under the PEFT folder's name."""
    folder = context.scratch / "gguf"
    folder.mkdir()
    converter = source(environment) / "vendor" / "llama.cpp" / "convert_lora_to_gguf.py"
    for adapter in context.adapters:
        target = str(folder / f"{adapter.name}.gguf")
        options = ("--base", context.model, "--outtype", LORA_TYPE, "--outfile", target)
        environment.run(environment.python, str(converter), *options, str(adapter))
    return folder


def open_peer(context: Context) -> Opened:
    """See `OpenPeer`."""
    environment = home(context.cache, context.isa)
    environment.ensure(recipe(context.isa), lambda one: install(one, context.isa))
    plain = model_file(environment, context.model)
    nothing = context.scratch / "no-adapters"
    nothing.mkdir()
    files = {
        NAME: (plain, convert_adapters(environment, context)),
        HALF: (model_file(environment, context.model, "f16"), nothing),
        QUANTISED: (quantised_file(environment, plain), nothing),
    }
    sizes = context.threads, context.clients, context.tokens
    systems = {}
    for name, (model, adapters) in files.items():
        worker = start(environment, model, adapters, sizes, context.tokenize)
        context.stack.callback(worker.close)
        systems[name] = worker
    return Opened(systems, {PACKAGE: VERSION})


def start(
    environment: PeerEnvironment,
    model: Path,
    adapters: Path,
    sizes: tuple[int, int, int],
    tokenize: Tokenize,
) -> Worker:
    """A worker with one model file; `sizes` are threads, clients and tokens of a sequence."""
    program = (*FREE, environment.python, "-m", "adaptermix.bench.peers.workers.llama_cpp")
    command = [*program, str(model), str(adapters), *map(str, sizes)]
    return Worker(command, environment.folder / "run.log", tokenize)
