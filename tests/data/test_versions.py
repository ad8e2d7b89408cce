"""Which versions are known to work is said where another may have broken something, and nowhere else."""

import pytest

import seodang.data.versions as versions
from seodang.data.versions import KNOWN_TO_WORK, untried, versions_named


@pytest.fixture
def installed(monkeypatch):
    """The versions that are found, to be changed by name; those known to work where nothing is said."""
    found = {name: f"{known[-1]}.3" for name, known in KNOWN_TO_WORK.items()}
    monkeypatch.setattr(versions, "version", found.__getitem__)
    return found


def test_an_error_under_other_versions_names_those_that_work(installed):
    installed |= {"trl": "1.17.0", "torch": "2.130.0+cpu"}
    with pytest.raises(TypeError, match="^got an unexpected keyword") as raised, versions_named(), versions_named():
        raise TypeError("got an unexpected keyword")
    assert raised.value.__notes__ == [
        "torch 2.130.0+cpu is installed (known to work: 2.13, 2.14), trl 1.17.0 is installed (known to work: 1.16): "
        "if this comes of the other version, pip install 'torch==2.14.*' 'trl==1.16.*'"
    ]


@pytest.mark.parametrize("error", [ValueError("a value"), KeyError("a key")])
def test_a_value_is_no_matter_of_versions(installed, error):
    installed["trl"] = "1.17.0"
    with pytest.raises(type(error)) as raised, versions_named():
        raise error
    assert not hasattr(raised.value, "__notes__")


def test_nothing_is_said_under_versions_that_work(installed):
    installed |= {"torch": "2.13.0+cpu", "transformers": "5.24"}
    assert untried() == ""
    with pytest.raises(AttributeError) as raised, versions_named():
        raise AttributeError("no such name")
    assert not hasattr(raised.value, "__notes__")
