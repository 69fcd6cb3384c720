import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from burnish.benchmarks import kit
from burnish.benchmarks.kit import KIT, KitError, Package, cache_root, fetch


def make_wheel(folder: Path, files: dict[str, bytes], name: str = "tiny-kit") -> Path:
    """A wheel with those files, made the same way every time."""
    folder.mkdir(exist_ok=True)
    stem = name.replace("-", "_")
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    info = f"{stem}-1.0.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for member, data in (files | meta).items():
            wheel.writestr(zipfile.ZipInfo(member), data)
    return path


def package_of(archive: Path, *members: str, **changes: object) -> Package:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    made = Package("tiny-kit", "1.0", frozenset({digest}), members, "MIT")
    return dataclasses.replace(made, **changes)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows: no network in these tests."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


FILES = {"tiny/data/a.txt": b"alpha", "tiny/data/b.txt": b"beta", "tiny/code.py": b"raise SystemExit"}


def test_only_the_members_are_kept(index: Path, tmp_path: Path) -> None:
    package = package_of(make_wheel(index, FILES), "tiny/data/")
    told: list[str] = []
    home = fetch(package, cache=tmp_path / "cache", tell=told.append)
    kept = sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file())
    assert kept == ["kit.json", "tiny/data/a.txt", "tiny/data/b.txt"]
    assert (home / "tiny/data/a.txt").read_bytes() == b"alpha"
    assert told == ["Fetching tiny-kit==1.0"]
    assert [p.name for p in home.parent.iterdir()] == ["tiny-kit-1.0"], "no temporary folder stays"


def test_second_time_nothing_is_downloaded(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, FILES)
    package = package_of(wheel, "tiny/data/a.txt")
    first = fetch(package, cache=tmp_path / "cache")
    wheel.unlink()
    told: list[str] = []
    assert fetch(package, cache=tmp_path / "cache", tell=told.append) == first
    assert told == []


def test_damaged_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    package = package_of(make_wheel(index, FILES), "tiny/data/a.txt")
    home = fetch(package, cache=tmp_path / "cache")
    (home / "tiny/data/a.txt").write_bytes(b"changed")
    again = fetch(package, cache=tmp_path / "cache")
    assert (again / "tiny/data/a.txt").read_bytes() == b"alpha"


def test_more_members_than_cached_are_fetched(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, FILES)
    fetch(package_of(wheel, "tiny/data/a.txt"), cache=tmp_path / "cache")
    home = fetch(package_of(wheel, "tiny/data/b.txt"), cache=tmp_path / "cache")
    assert (home / "tiny/data/b.txt").read_bytes() == b"beta"


def test_other_archive_is_refused(index: Path, tmp_path: Path) -> None:
    package = package_of(make_wheel(index, FILES), "tiny/data/")
    make_wheel(index, FILES | {"tiny/data/a.txt": b"evil"})
    with pytest.raises(KitError) as caught:
        fetch(package, cache=tmp_path / "cache")
    assert caught.value.code == "KIT_HASH"
    assert list((tmp_path / "cache" / "kit").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_without_the_package_the_error_says_so(tmp_path: Path) -> None:
    absent = Package("tiny-kit", "1.0", frozenset({"0" * 64}), ("a",), "MIT")
    with pytest.raises(KitError, match="Cannot download tiny-kit") as caught:
        fetch(absent, cache=tmp_path / "cache")
    assert caught.value.code == "KIT_FETCH"
    assert "network" in caught.value.hint


def test_missing_member(index: Path, tmp_path: Path) -> None:
    package = package_of(make_wheel(index, FILES), "tiny/data/", "tiny/absent.txt")
    with pytest.raises(KitError, match=r"has no 'tiny/absent.txt'") as caught:
        fetch(package, cache=tmp_path / "cache")
    assert caught.value.code == "KIT_MEMBER"


@pytest.mark.parametrize("name", ["data/../../evil.txt", "data/\\..\\evil.txt"])
def test_member_outside_the_folder(index: Path, tmp_path: Path, name: str) -> None:
    package = package_of(make_wheel(index, {name: b"evil"}), "data/")
    with pytest.raises(KitError) as caught:
        fetch(package, cache=tmp_path / "cache")
    assert caught.value.code == "KIT_MEMBER"
    assert not list(tmp_path.rglob("evil.txt"))


def test_archive_that_unpacks_to_too_much(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(make_wheel(index, FILES), "tiny/data/")
    monkeypatch.setattr(kit, "_MOST_BYTES", 6)
    with pytest.raises(KitError, match="unpacks to over 6 bytes"):
        fetch(package, cache=tmp_path / "cache")


def test_source_archive(tmp_path: Path) -> None:
    archive = tmp_path / "tiny-kit-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as bundle:
        for name in ("tiny-kit-1.0/data/a.txt", "tiny-kit-1.0/setup.py"):
            member = tarfile.TarInfo(name)
            member.size = 5
            bundle.addfile(member, io.BytesIO(b"alpha"))
        link = tarfile.TarInfo("tiny-kit-1.0/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    package = package_of(archive, "data/", source=True)
    kit._unpack(archive, package, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out/data").iterdir()] == ["a.txt"]


def packed(folder: str, files: dict[str, bytes]) -> bytes:
    """A .tar.gz whose files lie below a top folder."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as bundle:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            bundle.addfile(member, io.BytesIO(data))
    return held.getvalue()


def test_archive_inside_the_archive(index: Path, tmp_path: Path) -> None:
    inner = packed("inside", {"a.txt": b"alpha", "b.txt": b"beta"})
    package = package_of(make_wheel(index, {"tiny/data/more.tar.gz": inner}), "a.txt")
    # Of a wheel, names are whole; below the top folder only in what is inside.
    home = fetch(dataclasses.replace(package, inner="tiny/data/more.tar.gz"), cache=tmp_path / "cache")
    kept = sorted(p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file())
    assert kept == ["a.txt", "kit.json"]
    assert [p.name for p in home.parent.iterdir()] == ["tiny-kit-1.0"], "no temporary folder stays"


def test_archive_inside_a_source_archive(tmp_path: Path) -> None:
    archive = tmp_path / "tiny-kit-1.0.tar.gz"
    archive.write_bytes(packed("tiny-kit-1.0", {"data/more.tar.gz": packed("in", {"a.txt": b"alpha"})}))
    package = package_of(archive, "a.txt", source=True, inner="data/more.tar.gz")
    inner = kit._inner_archive(archive, package, tmp_path / "inner")
    kit._unpack(inner, package, tmp_path / "out")
    assert (tmp_path / "out/a.txt").read_bytes() == b"alpha"


def test_inner_archive_that_is_not_there(index: Path, tmp_path: Path) -> None:
    package = package_of(make_wheel(index, FILES), "a.txt", inner="tiny/data/absent.tar.gz")
    with pytest.raises(KitError, match=r"has no 'tiny/data/absent.tar.gz'") as caught:
        fetch(package, cache=tmp_path / "cache")
    assert caught.value.code == "KIT_MEMBER"


def test_cache_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    package = package_of(make_wheel(index, FILES), "tiny/data/")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(KitError) as caught:
        fetch(package, cache=tmp_path / "file")
    assert caught.value.code == "KIT_CACHE"
    assert "BURNISH_CACHE" in caught.value.hint


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(KitError, match="Did you mean 'minilm'"):
        fetch("minilmm")


def test_cache_root_follows_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("BURNISH_CACHE")
    assert cache_root() == Path.home() / ".cache" / "burnish"


@pytest.mark.parametrize("name", sorted(KIT))
def test_every_package_of_the_kit_is_pinned_by_hash(name: str) -> None:
    package = KIT[name]
    assert package.sha256
    assert all(len(digest) == 64 and int(digest, 16) for digest in package.sha256)
    assert package.members
    assert package.licence
