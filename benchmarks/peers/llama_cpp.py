"""The peer llama.cpp: llama-cpp-python built from source for this machine, models as GGUF."""

from __future__ import annotations

import tarfile
from pathlib import Path

from benchmarks.peers.context import Context, Opened
from benchmarks.peers.environment import FREE, TORCH, PeerEnvironment, ours
from benchmarks.peers.systems import Worker

NAME = "llama.cpp"
QUANTISED = "llama.cpp Q4_1"
PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
BUILD = ("CMAKE_ARGS=-DGGML_NATIVE=ON",)
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


def install(environment: PeerEnvironment) -> None:
    """The converters' needs, the source, and a build for this very processor (a quarter hour)."""
    environment.install_torch()
    constraint = str(environment.constraint())
    needs = [*CONVERTERS, ours("transformers"), ours("safetensors")]
    environment.pip("install", "-q", "-c", constraint, *needs)
    wanted = ("--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}")
    environment.pip("download", "-q", "-d", str(environment.folder), *wanted)
    archive = environment.folder / f"llama_cpp_python-{VERSION}.tar.gz"
    with tarfile.open(archive) as opened:
        opened.extractall(environment.folder, filter="data")
    environment.pip("install", "-q", str(source(environment)), environment=BUILD)


def model_file(environment: PeerEnvironment, model: str) -> Path:
    """The model as GGUF in bf16, converted once."""
    path = environment.folder / f"{Path(model).name}-bf16.gguf"
    if not path.exists():
        converter = source(environment) / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
        unfinished = path.with_suffix(".part")
        options = ("--outtype", "bf16", "--outfile", str(unfinished))
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
    environment = PeerEnvironment("llama", context.cache)
    recipe = " ".join([TORCH, VERSION, *BUILD, *CONVERTERS, ours("transformers")])
    environment.ensure(recipe, install)
    plain = model_file(environment, context.model)
    nothing = context.scratch / "no-adapters"
    nothing.mkdir()
    files = {
        NAME: (plain, convert_adapters(environment, context)),
        QUANTISED: (quantised_file(environment, plain), nothing),
    }
    numbers = [str(n) for n in (context.threads, context.clients, context.tokens)]
    systems = {}
    for name, (model, adapters) in files.items():
        worker = Worker(
            [
                *(*FREE, environment.python, "-m", "benchmarks.peers.workers.llama_cpp"),
                *(str(model), str(adapters), *numbers),
            ],
            environment.folder / "run.log",
            context.tokenize,
        )
        context.stack.callback(worker.close)
        systems[name] = worker
    return Opened(systems, {PACKAGE: VERSION})
