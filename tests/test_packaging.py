"""The wheel: one top-level name, every package in it, and that is what the tests run against."""

import configparser
import importlib.metadata
from pathlib import Path

import burnish

ROOT = Path(__file__).resolve().parent.parent


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    options = config["options"]
    pairs = (line.split("=") for line in options["package_dir"].split("\n") if line)
    mapping = {name.strip(): folder.strip() for name, folder in pairs}
    on_disk = {
        ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
        for name, folder in mapping.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    listed = {name for name in options["packages"].split() if name != "#" and name.startswith("burnish")}
    assert listed == on_disk


def test_only_one_top_level_name_is_installed() -> None:
    files = importlib.metadata.files("burnish") or []
    tops = {file.parts[0] for file in files if file.suffix == ".py"}
    assert tops <= {"burnish", "__editable___burnish_0_1_0_finder.py"}


def test_the_version_is_that_of_the_package() -> None:
    assert importlib.metadata.version("burnish") == burnish.__version__


def test_the_type_marker_ships() -> None:
    assert (Path(burnish.__file__).parent / "py.typed").exists()


def test_requirements_are_pinned() -> None:
    for name in ("runtime.txt", "dev.txt", "peers.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert "==" in line, f"{name}: {line}"


def test_onnxruntime_is_never_installed_twice() -> None:
    for name in ("runtime.txt", "peers.txt"):
        names = [line.partition("==")[0] for line in (ROOT / "requirements" / name).read_text().splitlines()]
        assert "onnxruntime" not in names
