"""Many runs, of which few are looked at."""

import pytest


@pytest.fixture(autouse=True)
def _quick(unpainted):
    pass
