"""Snippets of film and shop reviews, each rated by twenty people from -4 to 4, out of the source archive of a package.

They are the ground truth of Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", in the
archive of vaderSentiment 0.5 on PyPI (MIT licence, C.J. Hutto). Nothing of the package itself is used, and none of its code is run here.
"""

import io
import os
import random
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

ARCHIVE = "vaderSentiment-0.5.zip"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")
GET = "pip download --no-deps --no-binary vaderSentiment vaderSentiment==0.5"  # in the clone .ci/setup does it, pinned by hash
CLEAR = 0.8  # from zero: what is nearer is neither good nor bad

Rated = tuple[str, float]  # a snippet, and the mean of its ratings


def archive_path() -> Path:
    """Where the set-up keeps the archive: beside the environment that runs."""
    return Path(sys.prefix) / "data" / ARCHIVE


def rated_snippets(archive: str | os.PathLike | None = None) -> list[Rated]:
    """All snippets with their mean ratings, in the order of the files. Raises UserError where the archive is not there, or is another."""
    path = archive_path() if archive is None else Path(archive)
    if not path.is_file():
        raise UserError(f"{path} is not there: `make setup` fetches it, or run `{GET}` and name the file with --archive")
    try:
        with zipfile.ZipFile(path) as outer, tarfile.open(fileobj=io.BytesIO(outer.read(INNER))) as inner:
            texts = [inner.extractfile(f"hutto_ICWSM_2014/{name}").read().decode("utf-8") for name in FILES]
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, OSError) as error:
        raise UserError(f"{path} is not the source archive of vaderSentiment 0.5 ({error}): fetch it anew with `{GET}`") from None
    lines = [line.split("\t", 2) for text in texts for line in text.split("\r\n") if line.strip()]
    return [(snippet.strip(), float(rating)) for _, rating, snippet in lines]


def clear_snippets(rated: Sequence[Rated], count: int, seed: int) -> list[Rated]:
    """So many of those that people found good or bad, each text once, drawn at random but the same for the same seed.

    Raises UserError where there are not so many.
    """
    clear = list({snippet: (snippet, rating) for snippet, rating in rated if abs(rating) >= CLEAR}.values())
    if count > len(clear):
        raise UserError(f"{count} snippets are asked for, but only {len(clear)} are rated {CLEAR} or more from zero: ask for fewer")
    return random.Random(seed).sample(clear, count)
