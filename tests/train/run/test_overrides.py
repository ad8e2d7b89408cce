"""What trainers override of a library's inside is there, or they say so before they train."""

import pytest
from typing_extensions import override

import seodang.data.versions as versions
from seodang.data.errors import UserError
from seodang.train import DiffusionTrainer, DpoTrainer, GrpoTrainer, KtoTrainer, PpoTrainer, RewardModelTrainer, RlooTrainer, SftTrainer
from seodang.train.run.overrides import check_overrides

OF_TRL = (RewardModelTrainer, KtoTrainer, GrpoTrainer, RlooTrainer)


@pytest.mark.parametrize("trainer", [SftTrainer, DiffusionTrainer, DpoTrainer, PpoTrainer, *OF_TRL])
def test_what_is_marked_is_what_a_library_has_too(trainer):
    theirs = [cls for cls in trainer.__mro__ if not cls.__module__.startswith("seodang")]
    inside = {
        (cls, name)
        for cls in trainer.__mro__
        if cls not in theirs
        for name in vars(cls)
        if name.startswith("_") and not name.endswith("__") and any(name in vars(base) for base in theirs)
    }
    marked = {(cls, name) for cls in trainer.__mro__ for name, each in vars(cls).items() if cls not in theirs and getattr(each, "__override__", False)}
    telemetry = {(cls, name) for cls, name in inside if name == "_send_telemetry"}  # which transformers' own trainer does not send
    assert inside - telemetry == marked and len(marked) >= 8
    assert bool(telemetry) == (trainer in OF_TRL)
    check_overrides(trainer)


def test_a_method_that_the_library_has_no_more_is_named_with_the_versions_that_work(monkeypatch):
    class Renamed(SftTrainer):
        @override
        def _gone(self) -> None: ...

    Renamed.__module__ = SftTrainer.__module__
    monkeypatch.setattr(versions, "version", lambda name: {"transformers": "5.40.1", "trl": "1.16.9"}.get(name, versions.KNOWN_TO_WORK[name][0] + ".0"))
    with pytest.raises(UserError) as refused:
        check_overrides(Renamed)
    assert str(refused.value) == (
        "transformers.trainer has no _gone any more, which Renamed hangs on: transformers 5.40.1 is installed "
        "(known to work: 5.23, 5.24): if this comes of the other version, pip install 'transformers==5.24.*'"
    )
