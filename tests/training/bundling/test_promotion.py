"""What is in service, and which old versions leave the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

from service.bundles.bundle import verify
from service.errors import BundleInvalid
from training.bundling import in_service, promote, prune, put_in_service

NAME = "tiny"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with six versions, 6 the newest."""
    for version in "123456":
        write_tiny_bundle(
            tmp_path / NAME / version, version=version, created_at=f"2026-11-0{version}T00:00:00Z"
        )
    return tmp_path


def there(store: Path) -> str:
    return "".join(sorted(path.name for path in (store / NAME).iterdir() if path.is_dir()))


def test_old_versions_leave_but_not_the_one_in_service_nor_the_one_before(store: Path) -> None:
    everything = set("123456")
    (store / NAME / "current").write_text("3\n")
    assert in_service(store, NAME) == store / NAME / "3"
    assert prune(store, NAME, 2, everything) == ["4", "1"]
    assert there(store) == "2356"
    assert prune(store, NAME, 2, everything) == []
    (store / NAME / "current").unlink()
    assert prune(store, NAME, 2, everything) == ["3", "2"]
    assert there(store) == "56"


def test_what_no_night_promoted_stays(store: Path) -> None:
    """An experiment, or a service with a version in UNMASK_BUNDLE, may need it."""
    assert prune(store, NAME, 2, {"1", "4", "7"}) == ["4", "1"]
    assert there(store) == "2356"


def test_a_replica_that_looked_before_the_promotion_finds_its_files(store: Path) -> None:
    """A night prunes and then promotes. What the name meant at any time of the night stays."""
    new = store / "new"
    write_tiny_bundle(new, version="7", created_at="2026-11-07T00:00:00Z")
    looked = in_service(store, NAME)
    assert looked is not None
    prune(store, NAME, 2, set("1234567"))
    verify(looked)
    _, target = promote(new, store)
    put_in_service(target)
    verify(looked)
    assert in_service(store, NAME) == target
    prune(store, NAME, 2, set("1234567"))  # the next night
    verify(looked)  # for a rollback, and for a replica that lags by a night


def test_a_removal_that_was_cut_off_is_ended_and_never_served(store: Path) -> None:
    (store / NAME / "1").rename(store / NAME / ".1.removed")
    assert in_service(store, NAME) == store / NAME / "6"
    assert prune(store, NAME, 9, set("123456")) == []
    assert not (store / NAME / ".1.removed").exists()
    assert there(store) == "23456"


def test_a_promoted_version_is_in_service_whatever_was_current_or_newer(store: Path) -> None:
    put_in_service(store / NAME / "6")
    assert not (store / NAME / "current").exists()  # its date says so
    put_in_service(store / NAME / "5")
    assert in_service(store, NAME) == store / NAME / "5"
    put_in_service(store / NAME / "6")
    assert (store / NAME / "current").read_text() == "6\n"


def test_a_damaged_manifest_does_not_hide_what_is_in_service(store: Path) -> None:
    """Else there would seem to be nothing to compare with."""
    for version in "123456":
        (store / NAME / version / "manifest.json").write_text("{")
    with pytest.raises(BundleInvalid, match=rf"{NAME}/1 has no readable manifest\.json"):
        in_service(store, NAME)
    (store / NAME / "current").write_text("6\n")
    assert in_service(store, NAME) == store / NAME / "6"


def test_nothing_is_in_service_in_an_empty_store(tmp_path: Path) -> None:
    assert in_service(tmp_path / "none", NAME) is None
    assert prune(tmp_path, NAME, 2, {"1"}) == []
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "current").write_text("1")
    assert in_service(tmp_path, NAME) == tmp_path / NAME / "1"  # loading it will say what is wrong
    (tmp_path / NAME / "current").unlink()
    (tmp_path / NAME / "current").mkdir()
    with pytest.raises(BundleInvalid):
        in_service(tmp_path, NAME)
