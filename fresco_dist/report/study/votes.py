"""The votes of a user study: read beside its key, counted per pair of methods and question, checked per rater.

The key (`study_key.json`) says which method each side of a pair was; votes (`votes-STUDY-RATER.json`) say left or
right. Intervals are Wilson's, J. Am. Stat. Assoc. 22 (1927), 209; they take all ratings as independent, those of one
rater too. Never writes a file. Standard library only.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, median
from typing import Any

from fresco_dist.config import InputError, require
from fresco_dist.report.table import Row

KEY_NAME = "study_key.json"
SIDES = ("left", "right")
ONE_SIDED = 0.05  # how often any rater at all may be flagged by chance


@dataclass(frozen=True)
class Vote:
    """One answer: `answer` is "left" or "right"; `seconds` since the question was shown."""

    pair: str
    question: str
    answer: str
    seconds: float


def study_id(key: dict) -> str:
    """The digest of a study's pairs, questions and videos: 12 hexadecimal digits."""
    content = {name: value for name, value in key.items() if name != "study"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def read_key(path: Path) -> dict:
    """The key in a file, or in the folder of a study. Raises InputError."""
    path = path / KEY_NAME if path.is_dir() else path
    key = _read_json(path)
    if not isinstance(key, dict) or key.get("study") != study_id(key):
        raise InputError(f"{path} must be the key of a study, unchanged; it is not. Write the study again.")
    return key


def read_votes(paths: Sequence[Path], key: dict) -> dict[str, list[Vote]]:
    """The votes of each rater. Raises InputError for what is no vote in this study and for a rater's second file."""
    files: dict[str, Path] = {}
    votes: dict[str, list[Vote]] = {}
    for path in paths:
        rater, found = _read_file(path, key)
        if rater in files:
            raise InputError(f"{files[rater]} and {path} are both of the rater {rater}. Give the one that counts.")
        files[rater], votes[rater] = path, found
    return votes


def _read_file(path: Path, key: dict) -> tuple[str, list[Vote]]:
    data = _read_json(path)
    try:
        study, rater = data["study"], str(data["rater"]).strip()
        votes = [Vote(**{name: vote[name] for name in Vote.__annotations__}) for vote in data["votes"]]
    except (LookupError, TypeError):
        raise InputError(f"{path} must be the votes that a study's page has saved; it is not. Leave it out.") from None
    require(study == key["study"], f"{path}: study", study, f"{key['study']}, the key's", "Leave it out.")
    require(rater != "", f"{path}: rater", '""', "a name", "Write one into it.")
    allowed = {
        "pair": ([pair["id"] for pair in key["pairs"]], "one of the study's"),
        "question": (list(key["questions"]), "one of the study's"),
        "answer": (SIDES, "left or right"),
    }
    for vote in votes:
        for name, (known, told) in allowed.items():
            value = getattr(vote, name)
            require(value in known, f"{path}: {name}", value, told, "Leave the file out.")
        timed = isinstance(vote.seconds, int | float) and 0 <= vote.seconds < math.inf
        require(timed, f"{path}: seconds", vote.seconds, "a number >= 0", "Leave the file out.")
    once = Counter((vote.pair, vote.question) for vote in votes)
    for (pair, question), count in once.items():
        require(count == 1, f"{path}: {question} of {pair}", f"{count} answers", "answered once", "Leave the file out.")
    return rater, votes


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except ValueError as error:
        raise InputError(f"{path} must be JSON; it is broken ({error}). Save it again or leave it out.") from None


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, both ends in [0, 1]; all of it if n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(a: int, b: int) -> float:
    """Two-sided p of a split of a + b that would be even by chance: the exact binomial test of one half."""
    n = a + b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(a, b) + 1)) / 2**n)


def preferences(key: dict, votes: dict[str, list[Vote]]) -> list[Row]:
    """Per pair of methods and question, in percent: how often the first was preferred, and the 95% interval.

    After the questions of a pair follows their average, without an interval: its answers come two by two.
    """
    shown = _methods_shown(key)
    table = []
    for match in key["matches"]:
        rows = []
        for question in key["questions"]:
            rated = [
                (rater, shown[vote.pair][vote.answer] == match[0])
                for rater, own in votes.items()
                for vote in own
                if vote.question == question and set(shown[vote.pair].values()) == set(match)
            ]
            wins, n = sum(won for _, won in rated), len(rated)
            rows.append(_row(match, question, wins / n if n else None, wilson(wins, n) if n else None, n))
            rows[-1]["raters"] = len({rater for rater, _ in rated})
        shares = [row["preferred_%"] for row in rows]
        average = fmean(shares) / 100 if None not in shares else None
        rows.append(_row(match, "average", average, None, sum(row["ratings"] for row in rows)))
        table += rows
    return table


def _row(match: Sequence[str], question: str, share: float | None, interval: tuple | None, num_ratings: int) -> Row:
    low, high = interval or (None, None)
    percent = {"preferred_%": share, "low_%": low, "high_%": high}
    row: Row = {"methods": f"{match[0]} over {match[1]}", "question": question}
    row |= {name: None if value is None else 100 * value for name, value in percent.items()}
    return row | {"ratings": num_ratings, "raters": None}


def checks(key: dict, votes: dict[str, list[Vote]]) -> list[Row]:
    """Per rater: answers given and asked for, share of left answers, its p, median seconds, and what is odd.

    Sides are balanced, so who looks takes both as often. The test counts a pair once, for the side that got more of
    its answers: the answers to one pair go together. With n raters, p below ONE_SIDED / n is flagged; where not even
    one who always takes the same side would be, there are too few pairs to tell.
    """
    asked = len(key["pairs"]) * len(key["questions"])
    table = []
    for rater, own in votes.items():
        lean: Counter[str] = Counter()
        for vote in own:
            lean[vote.pair] += 1 if vote.answer == "left" else -1
        left = sum(vote.answer == "left" for vote in own)
        p = sign_test(sum(net > 0 for net in lean.values()), sum(net < 0 for net in lean.values()))
        limit = ONE_SIDED / len(votes)
        notes = ["takes one side"] * (p < limit) + ["too few pairs to tell sides"] * (sign_test(len(lean), 0) >= limit)
        notes += ["partial"] * (len(own) < asked)
        table.append(
            {
                "rater": rater,
                "answers": len(own),
                "asked": asked,
                "left_%": 100 * left / len(own) if own else None,
                "p": p,
                "median_s": median(vote.seconds for vote in own) if own else None,
                "note": ", ".join(notes),
            }
        )
    return table


def _methods_shown(key: dict) -> dict[str, dict[str, str]]:
    """pair -> side -> method."""
    return {pair["id"]: {side: key["clips"][pair[side]]["method"] for side in SIDES} for pair in key["pairs"]}
