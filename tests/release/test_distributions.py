"""What is in the wheel and the source distribution, and whether all that names the version agrees."""

from __future__ import annotations

import email
import re
import tarfile
import tomllib
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import lightning_symmetry
from tests.release.index import DISTRIBUTIONS, ROOT, wheel

SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]
RAW = SOURCE.replace("https://github.com/", "https://raw.githubusercontent.com/")


@pytest.fixture(scope="module")
def metadata() -> Message:
    with ZipFile(wheel()) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def description(metadata: Message) -> str:
    text = metadata.get_payload()
    assert isinstance(text, str)
    return text


def links(metadata: Message) -> Iterator[str]:
    """The targets of all links and pictures in the long description."""
    yield from re.findall(r"\]\(([^)]+)\)", description(metadata))


def test_the_wheel_has_the_package_and_nothing_else() -> None:
    with ZipFile(wheel()) as archive:
        names = set(archive.namelist())
    info = f"lightning_symmetry-{lightning_symmetry.__version__}.dist-info/"
    ours = {str(file.relative_to(ROOT)) for file in files_of(ROOT / "lightning_symmetry")}
    assert {name for name in names if not name.startswith(info)} == ours
    assert {"lightning_symmetry/py.typed", "lightning_symmetry/tensorboard_plugin/static/index.js"} <= names


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_the_source_distribution_has_what_its_tests_need() -> None:
    (file,) = DISTRIBUTIONS.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    needed = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt", "tests/zoo.py")
    assert names >= set(needed)


def test_links_of_the_long_description_lead_to_files_of_the_release(metadata: Message) -> None:
    tag = f"v{lightning_symmetry.__version__}"
    places = {f"{SOURCE}/blob/{tag}/", f"{RAW}/{tag}/"}
    targets = list(links(metadata))
    assert len(targets) > 20
    for target in targets:
        assert target.startswith("https://"), target
        for place in places:
            if target.startswith(place):
                assert (ROOT / target.removeprefix(place).split("#")[0]).is_file(), target
    assert sum(target.startswith(tuple(places)) for target in targets) > 15


def test_pictures_of_the_long_description_are_raw_files(metadata: Message) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", description(metadata))
    assert pictures
    assert all(picture.startswith(f"{RAW}/v") and picture.endswith(".png") for picture in pictures)


def test_the_long_description_has_no_hidden_text(metadata: Message) -> None:
    assert "<!--" not in description(metadata)


def test_everything_that_names_the_version_agrees(metadata: Message) -> None:
    version = lightning_symmetry.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = re.search(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert (metadata["Version"], citation["version"], heading[1]) == (version, version, version)
    assert str(citation["date-released"]) == heading[2]
    assert citation["repository-code"] == SOURCE


@pytest.mark.parametrize("name", ["ci", "nightly", "release"])
def test_actions_of_the_forge_are_pinned(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"].values()
    used = [step["uses"] for job in jobs for step in job.get("steps", ()) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in used)
