"""``everfresh report``: one page of HTML with nothing to fetch, made from what the store says of a pipeline."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from jinja2 import Environment, PackageLoader

from everfresh.flows.look import history, share
from everfresh.flows.run_words import outcome
from everfresh.tasks.records import AliasMove, JournalEntry
from everfresh.tasks.store import Store

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 330, 46, 14, 22, 96
"""Of the picture, and what surrounds its plot, in its own units."""


@dataclass(frozen=True)
class Line:
    """A line of the picture, in pieces: a window without a value breaks it."""

    name: str
    kind: str
    """Class of its style."""
    pieces: tuple[str, ...]
    """Points of each piece."""
    dots: tuple[tuple[float, float, str], ...]
    """Where a value is, and its words."""


@dataclass(frozen=True)
class Retraining:
    """What one retraining cost, and what it bought on the same samples, on both of which the gates looked."""

    entry: JournalEntry
    words: str
    without: float | None
    """Accuracy of the champion before, on this window's hold-out."""
    served: int
    """Windows that the release has met since, its own left out; 0 if it was not published."""
    right_more: float | None
    """Answers that are right more, over the samples of those windows, if the gain of its own window held on them."""


def without_it(entry: JournalEntry) -> float | None:
    """Accuracy of the champion of before on the samples on which the challenger was proven; None where nothing was compared."""
    if entry.challenger_accuracy is None or entry.gain is None:
        return None
    return entry.challenger_accuracy - entry.gain.value


def met(entry: JournalEntry) -> float | None:
    """How the champion that met a window did on it: measured on labels, else estimated."""
    return entry.estimated_accuracy if entry.measured_accuracy is None else entry.measured_accuracy


def met_by(entries: Sequence[JournalEntry], moves: Sequence[AliasMove]) -> list[str | None]:
    """The champion from which each tick set out, whatever the order in which the ticks are given.

    A forced tick may go back to an old window long after newer ones, and people move the champion between ticks.
    """
    ends = [((e.finished_at, e.seq), e.champion) for e in entries]  # by window too: S3's clock has whole seconds
    by_hand = [((m.at, 0), m.release) for m in moves if m.kind != "publish"]
    changes = sorted([*ends, *by_hand], key=lambda change: change[0])
    places = [bisect_left(changes, (e.started_at, e.seq), key=lambda change: change[0]) for e in entries]
    return [changes[place - 1][1] if place else None for place in places]


def frozen(entries: Sequence[JournalEntry], moves: Sequence[AliasMove]) -> list[float | None]:
    """Accuracy of the first version on each window, as far as the store tells it.

    It does where version 1 was champion when the window came, and where a challenger was compared with it.
    """
    first = moves[0].release if moves else None
    found: list[float | None] = []
    for entry, champion in zip(entries, met_by(entries, moves), strict=True):
        if champion is None and entry.release == first and first is not None:
            found.append(entry.challenger_accuracy)  # the window that version 1 was made of
        elif champion == first and first is not None:
            compared = without_it(entry)
            found.append(met(entry) if compared is None or entry.measured_accuracy is not None else compared)
        else:
            found.append(None)
    return found


def retrainings(entries: Sequence[JournalEntry], moves: Sequence[AliasMove]) -> list[Retraining]:
    """Every tick that trained, the newest window first, with what its release has been worth so far."""
    made = []
    champions = met_by(entries, moves)
    for entry in entries:
        if not entry.tried:
            continue
        served = [e for e, champion in zip(entries, champions, strict=True) if champion and champion == entry.release]
        scheduled = [e for e in served if not e.request] if entry.version is not None else []
        gain = entry.gain.value if entry.gain else None
        right = None if gain is None or not scheduled else gain * sum(e.samples for e in scheduled)
        made.append(Retraining(entry, outcome(entry), without_it(entry), len(scheduled), right))
    return made[::-1]


def page(name: str, where: str, store: Store, at: datetime, without: str = "") -> str:
    """The page of a pipeline.

    Args:
        name: of the pipeline.
        where: address of its store.
        store: of the pipeline.
        at: the clock, as the page tells when it was made.
        without: a replay whose champion's accuracy stands for a model that nobody kept fresh; empty: what the store tells.
    """
    entries, moves = history(store)
    left = [e.measured_accuracy for e in _of_replay(store, entries, without)] if without else frozen(entries, moves)
    environment = Environment(loader=PackageLoader("everfresh.flows"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["share"] = share
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.1%}"
    head = moves[-1] if moves else None
    return environment.get_template("report.html.j2").render(
        name=name,
        where=where,
        at=at,
        entries=entries,
        last=entries[-1] if entries else None,
        head=head,
        by_hand=[(m, _told(m, before)) for before, m in pairwise([None, *moves]) if m and m.kind != "publish"][::-1],
        picture=Picture(entries, left),
        without=without,
        known=sum(value is not None for value in left),
        trained=retrainings(entries, moves),
        outcome=outcome,
        met=met,
        alarms=sum(e.alarm for e in entries),
        released=sum(e.version is not None for e in entries),
        cost=sum(e.cost.seconds for e in entries),
        devices=sum(e.cost.device_seconds for e in entries),
    )


def _of_replay(store: Store, entries: Sequence[JournalEntry], name: str) -> list[JournalEntry]:
    """Entries of a replay beside those of the pipeline; a window that it does not have stands as the pipeline's, unmeasured."""
    replayed = {e.seq: e for e in history(store.sub(f"replays/{name}"))[0]}
    return [replayed.get(e.seq, e.model_copy(update={"measured_accuracy": None})) for e in entries]


def _told(move: AliasMove, before: AliasMove | None) -> str:
    if move.kind not in {"rollback", "promote", "adopt"}:
        return f"{move.kind} {move.label}"
    came = f" from {before.label}" if before and before.label != move.label else ""
    return f"{move.kind}{came} to {move.label}"


class Picture:
    """Accuracy and what happened, tick by tick, in the units of one SVG; many ticks share a pixel and still show."""

    width, height, left, bottom = WIDTH, HEIGHT, LEFT, HEIGHT - BOTTOM

    def __init__(self, entries: Sequence[JournalEntry], left_alone: Sequence[float | None]) -> None:
        self.entries = entries
        self.step = (WIDTH - LEFT - RIGHT) / max(len(entries), 1)
        values = [v for v in (*map(met, entries), *(e.challenger_accuracy for e in entries), *left_alone) if v is not None]
        low = min(values, default=0.5)
        self.floor = max(0.0, min(0.9, int(low * 10) / 10))
        self.lines = [
            self._line("left alone", "frozen", left_alone, lambda _: "version 1"),
            self._line("champion that met the window", "champion", [met(e) for e in entries], _how),
        ]
        self.scale = [(self.y(tenth / 10), f"{tenth * 10}") for tenth in range(round(self.floor * 10), 11)]
        rows = (
            ("drift alarm", "alarm", [e.alarm for e in entries]),
            ("released", "new", [e.version is not None for e in entries]),
            ("rejected", "no", [bool(e.failed_gates or e.failure) for e in entries]),
        )
        self.rows = [
            (name, kind, self.bottom + 20 + 18 * place, [(self.x(i), self.title(i)) for i, yes in enumerate(where) if yes])
            for place, (name, kind, where) in enumerate(rows)
        ]
        every = max(1, -(-len(entries) // 16))
        self.ticks = [(self.x(i), entries[i].seq) for i in range(0, len(entries), every)]

    def x(self, place: int) -> float:
        """Middle of a tick."""
        return round(LEFT + (place + 0.5) * self.step, 1)

    def y(self, value: float) -> float:
        """Height of an accuracy."""
        return round(self.bottom - (value - self.floor) / (1 - self.floor) * (self.bottom - TOP), 1)

    def title(self, place: int) -> str:
        """What a tick says when it is pointed at."""
        entry = self.entries[place]
        drift = "" if entry.score is None else f", drift {entry.score:.2f}"
        return f"window {entry.seq}, {entry.finished_at:%Y-%m-%d %H:%M}{drift}: {outcome(entry)}"

    def _line(self, name: str, kind: str, values: Sequence[float | None], how: Callable[[JournalEntry], str]) -> Line:
        pieces: list[list[str]] = [[]]
        dots = []
        for place, value in enumerate(values):
            if value is None:
                pieces.append([])
                continue
            pieces[-1].append(f"{self.x(place)},{self.y(value)}")
            dots.append((self.x(place), self.y(value), f"{self.title(place)}; {how(self.entries[place])} {value:.1%}"))
        return Line(name, kind, tuple(" ".join(piece) for piece in pieces if len(piece) > 1), tuple(dots))


def _how(entry: JournalEntry) -> str:
    return "estimated" if entry.measured_accuracy is None else "measured"
