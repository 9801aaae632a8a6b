"""Whole flows on a real Prefect server over real digits: a clean window, then a scanner that has aged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pickles import find_pickles
from support.prefect_server import PrefectServer
from support.stream import AGED, Pipeline, make_pipeline

from everfresh.flows.digits import Scanner
from everfresh.flows.look import history, status
from everfresh.flows.monitor import monitor
from everfresh.flows.replay import replay
from everfresh.flows.retrain import retrain
from everfresh.flows.rollback import rollback
from everfresh.flows.rungs import advice
from everfresh.tasks import alias, decide, journal, publish, steps
from everfresh.tasks.errors import DataError, DigestMismatch, ObjectMissing, ReleaseError, StoreError
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves, find, stream
from everfresh.tasks.records import AliasMove, DriftReport, Evaluation, Release, Wish
from everfresh.tasks.store import FolderStore


def live(pipeline: Pipeline) -> dict[str, bytes]:
    """Everything of the live pipeline: all but what replays wrote."""
    return {key: data for key, data in pipeline.bytes_of().items() if not key.startswith("replays/")}


def failed_once(monkeypatch: pytest.MonkeyPatch, method: str, key: str, error: Exception) -> list[str]:
    """Let one call of a folder store fail, the first on a key that holds `key`; returns the keys it met after that too."""
    real: Callable[..., Any] = getattr(FolderStore, method)
    met: list[str] = []

    def faulty(self: FolderStore, at: str, *arguments: Any) -> Any:
        if key in at:
            met.append(at)
            if len(met) == 1:
                raise error
        return real(self, at, *arguments)

    monkeypatch.setattr(FolderStore, method, faulty)
    return met


def test_the_first_window_makes_version_1_and_an_aged_one_version_2(played: Pipeline) -> None:
    first, second = scheduled(played.store)
    assert (first.decision.action, first.version, first.drift) == ("bootstrap", 1, None)
    assert second.alarm
    assert (second.decision.action, second.version, second.champion_version) == ("retrain", 2, 2)
    assert second.gain is not None
    assert second.gain.value > 0
    assert second.measured_accuracy is not None
    assert second.challenger_accuracy is not None
    assert second.challenger_accuracy > second.measured_accuracy + 0.1


def test_no_object_of_the_store_is_a_pickle(played: Pipeline) -> None:
    assert find_pickles(played.store) == []


def test_nothing_new_is_nothing_done(pipeline: Pipeline) -> None:
    before = live(pipeline)
    assert retrain(pipeline.config) == []
    after = live(pipeline)
    assert b"idle_at" in after["state.json"]
    assert after == before | {"state.json": after["state.json"]}


def test_a_forced_tick_leaves_an_entry_of_its_own_with_request_and_reason(pipeline: Pipeline) -> None:
    entries = retrain(pipeline.config, force=True, reason="lens was cleaned", rung="head")
    assert len(entries) == 1
    forced = entries[0]
    assert (forced.seq, forced.decision.triggers) == (2, ("force",))
    assert forced.request
    assert forced.decision.reasons == ("forced by a person: lens was cleaned",)
    assert [t.rung for t in forced.tried] == ["head"]
    again = retrain(pipeline.config, force=True, reason="once more", rung="head")[0]
    assert again.request != forced.request
    assert again.tried[0].candidate != forced.tried[0].candidate
    assert [e.request for e in history(pipeline.store)[0]] == ["", "", forced.request, again.request]


def test_a_forced_tick_takes_in_what_is_new_first(pipeline: Pipeline) -> None:
    pipeline.rewrite(policy={"triggers": []})
    pipeline.arrives(3, AGED)
    entries = retrain(pipeline.config, force=True, rung="head")
    assert [(e.seq, bool(e.request)) for e in entries] == [(3, False), (3, True)]


def test_what_the_policy_has_just_retrained_on_is_not_forced_again(pipeline: Pipeline) -> None:
    pipeline.rewrite(policy={"triggers": [{"kind": "new_samples", "count": 1}]})
    pipeline.arrives(3, AGED)
    [entry] = retrain(pipeline.config, force=True, reason="to be sure")
    assert (entry.seq, entry.request, entry.decision.triggers) == (3, "", ("new_samples",))


def test_a_forced_run_that_is_started_again_goes_on_with_its_own_window(pipeline: Pipeline) -> None:
    """Not with the one that came in meanwhile; and once its tick is over nothing is left to force."""
    pipeline.rewrite(policy={"triggers": []})
    wish = Wish(reason="lens", rung="head")
    begun = steps.forced_window.fn(pipeline.config, "f0", wish)
    assert begun is not None
    assert begun.seq == 2
    pipeline.arrives(3)
    [newer] = retrain(pipeline.config)
    assert newer.seq == 3
    assert steps.forced_window.fn(pipeline.config, "f0", wish) == begun
    pipeline.store.put(journal.key_of(begun), b"{}")
    assert steps.forced_window.fn(pipeline.config, "f0", wish) is None


def test_status_tells_of_a_forced_tick(pipeline: Pipeline) -> None:
    retrain(pipeline.config, force=True, reason="lens was cleaned", rung="head")
    assert status(pipeline.config)["reasons"] == ["forced by a person: lens was cleaned"]


def test_force_on_an_empty_pipeline_does_nothing(server: PrefectServer, tmp_path: Path) -> None:
    assert retrain(make_pipeline(tmp_path, "empty").config, force=True) == []


def test_drain_goes_on_until_nothing_is_new(pipeline: Pipeline) -> None:
    pipeline.rewrite(window={"max_samples": 45}, policy={"triggers": []})
    pipeline.arrives(3, AGED)
    assert [(e.seq, e.samples) for e in retrain(pipeline.config, drain=True)] == [(3, 45), (4, 45)]


def test_monitor_commits_the_window_and_retrain_takes_it_up_with_the_same_measurement(pipeline: Pipeline) -> None:
    pipeline.arrives(3)
    drift = monitor(pipeline.config)
    assert drift is not None
    assert stream(pipeline.store).last_seq() == 3
    assert scheduled(pipeline.store).last_seq() == 2
    assert status(pipeline.config)["alarms_waiting"] == ([3] if drift.alarm else [])
    assert monitor(pipeline.config) is None
    [entry] = retrain(pipeline.config)
    assert (entry.seq, entry.drift, entry.alarm) == (3, drift.key, drift.alarm)
    records = [key for key in pipeline.bytes_of("drift") if key.endswith("/record.json")]
    assert len([key for key in records if find(pipeline.store, key, DriftReport).view == entry.view]) == 1  # type: ignore[union-attr]


def test_one_alarm_rings_once_though_monitor_retrain_and_a_rerun_see_it(pipeline: Pipeline, server: PrefectServer) -> None:
    pipeline.rewrite(policy={"triggers": []})
    pipeline.arrives(3, Scanner(contrast=0.3))
    drift = monitor(pipeline.config)
    assert drift is not None
    assert drift.alarm
    assert status(pipeline.config)["alarms_waiting"] == [3]
    [entry] = retrain(pipeline.config)
    assert (entry.drift, entry.alarm) == (drift.key, True)
    rollback(pipeline.config)
    assert server.events(pipeline.name, "everfresh.champion.rolled-back")  # what was emitted before has arrived by then
    assert server.every_event(pipeline.name) == ["everfresh.champion.rolled-back", "everfresh.drift.detected"]


def test_monitor_is_quiet_while_there_is_no_champion(server: PrefectServer, tmp_path: Path) -> None:
    empty = make_pipeline(tmp_path, "empty")
    assert monitor(empty.config) is None
    empty.arrives(1, samples=30)
    assert monitor(empty.config) is None
    assert stream(empty.store).last_seq() == 1


def test_a_replay_writes_only_under_its_name_and_goes_on_under_it(pipeline: Pipeline) -> None:
    before = live(pipeline)
    name, first = replay(pipeline.config, "trial", "head", 1)
    assert (name, [e.seq for e in first]) == ("trial", [1])
    name, rest = replay(pipeline.config, "trial", "head")
    assert (name, [(e.seq, [t.rung for t in e.tried]) for e in rest]) == ("trial", [(2, ["head"])])
    assert replay(pipeline.config, "trial", "head") == ("trial", [])
    assert live(pipeline) == before
    assert {key.split("/")[1] for key in pipeline.bytes_of("replays")} == {"trial"}


def test_a_replay_with_all_rungs_measures_each_and_goes_on_with_the_ladders_choice(pipeline: Pipeline) -> None:
    before = live(pipeline)
    _, entries = replay(pipeline.config, "all", all_rungs=True)
    assert [(e.decision.action, [t.rung for t in e.tried]) for e in entries] == [
        ("bootstrap", ["pretrained"]), ("retrain", ["head"]),
    ]  # fmt: skip
    assert entries[0].beside == ()
    measured = {t.rung: t for t in entries[1].beside}
    assert {"head", "full", "pretrained"} <= set(measured)
    assert all(t.gain is not None and t.failed_gates is not None and t.tune_gain is not None for t in measured.values())
    assert measured["head"].candidate == entries[1].tried[0].candidate
    assert measured["full"].cost.device_seconds > measured["head"].cost.device_seconds  # which it goes on from
    assert entries[1].cost == entries[1].tried[0].cost
    assert {k: d for k, d in live(pipeline).items() if k in before or not k.startswith("embeddings/")} == before
    assert "points a retraining for" in advice(entries)


def test_a_rung_without_an_answer_is_noted_and_the_next_one_tried(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from everfresh.tasks.fine_tune import recalibrate

    monkeypatch.setattr(recalibrate, "LEAST_GAIN", 10.0)
    pipeline.rewrite(policy={"ladder": ["recalibrate", "head"], "triggers": [{"kind": "new_samples", "count": 1}]})
    monkeypatch.setattr(decide, "_hopeless", lambda _policy, _drift: {})
    pipeline.arrives(3, AGED)
    [entry] = retrain(pipeline.config)
    assert entry.unfit == {"recalibrate": "neither a temperature nor new class shares lower the log loss on tune"}
    assert ([t.rung for t in entry.tried], entry.not_tried) == (["head"], ())


def test_a_replay_of_the_same_policy_decides_what_the_live_loop_decided(played: Pipeline, tmp_path: Path) -> None:
    copy = played.copy(tmp_path / "same", "same-policy")
    _, again = replay(copy.config)
    lived = list(scheduled(copy.store))
    assert [(e.drift, e.decision, e.champion) for e in again] == [(e.drift, e.decision, e.champion) for e in lived]
    assert [[t.weights_sha256 for t in e.tried] for e in again] == [[t.weights_sha256 for t in e.tried] for e in lived]


def test_rollback_goes_back_pins_and_tells(pipeline: Pipeline, server: PrefectServer) -> None:
    replay(pipeline.config, "silent", "head", 1)
    move = rollback(pipeline.config, reason="wrong on sevens")
    assert (move.kind, move.version, move.pinned) == ("rollback", 1, True)
    assert champion_moves(pipeline.store).last() == move
    [event] = server.events(pipeline.name, "everfresh.champion.rolled-back")
    assert event["payload"] == {
        "pipeline": pipeline.name, "window": None, "version": 1, "by": move.by, "reason": "wrong on sevens",
        "words": f"{pipeline.name}: the champion went back to v1 by {move.by}: wrong on sevens.",
    }  # fmt: skip
    assert server.every_event(pipeline.name) == ["everfresh.champion.rolled-back"]  # the replay emitted none


def test_a_rollback_whose_answer_is_lost_goes_back_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.rewrite(policy={"ladder": ["head"]}, gates=[{"kind": "floor", "minimum": 0.3}])
    retrain(pipeline.config, force=True, rung="head")
    real, lost = FolderStore.create, []

    def create(self: FolderStore, key: str, data: bytes) -> bool:
        made = real(self, key, data)
        if "aliases/champion/" in key and not lost:
            lost.append(key)
            raise StoreError("the connection was lost")
        return made

    monkeypatch.setattr(FolderStore, "create", create)
    assert rollback(pipeline.config).version == 2
    assert [(move.kind, move.version) for move in champion_moves(pipeline.store)][-2:] == [("publish", 3), ("rollback", 2)]


def test_a_rollback_that_cannot_be_fails_the_flow_with_its_sentence(pipeline: Pipeline) -> None:
    with pytest.raises(ReleaseError, match="version must be one of v1, v2, got v7"):
        rollback(pipeline.config, to=7)


def made(played: Pipeline) -> list[tuple[int, str]]:
    """Version and rung of each release."""
    return [(e.version, t.rung) for e in scheduled(played.store) if e.version for t in e.tried if t.failed_gates is not None]


def test_what_people_look_at_is_on_the_server(played: Pipeline, server: PrefectServer) -> None:
    [drift] = server.artifacts("played-drift")
    assert drift["type"] == "markdown"
    assert "**Drift alarm**" in drift["data"]
    pictures = re.findall(r"!\[([\w.]+)\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)", drift["data"])
    assert pictures == ["drift.png"]
    assert "evidently.html" in drift["data"]
    assert "| p, corrected |" in drift["data"]
    assert "| ≤ 0.005 |" in drift["data"]  # 199 permutations show no less
    newest, oldest = server.artifacts("played-tick")
    told = [f"window {n}: released v{n}, made by {rung}" for n, rung in made(played)]
    assert [oldest["description"], newest["description"]] == told
    assert re.findall(r"!\[([\w.]+)\]\(data:image/png", newest["data"]) == ["confusion.png"]


def test_a_long_training_is_watched_on_the_server(
    pipeline: Pipeline, server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everfresh.tasks.steps.UPDATE_SECONDS", 0)
    pipeline.rewrite(fine_tune={"full_replay": None})  # or the last that is seen is the refit of the head
    retrain(pipeline.config, force=True, reason="watched", rung="full")
    found = server.artifacts(f"{pipeline.name}-progress")
    assert {a["type"] for a in found} == {"progress"}
    assert found[0]["data"] == 100.0
    assert re.fullmatch(rf"{pipeline.name} · window 2 · full: train (\d+) of \1", found[0]["description"])


def test_a_run_is_named_for_what_it_did(played: Pipeline, server: PrefectServer) -> None:
    second = next(entry for entry in scheduled(played.store) if entry.seq == 2)
    names = [f"{played.name} · window 1 · released v1", f"{played.name} · window 2 · drift {second.score:.2f} · released v2"]
    runs = server.call("flow_runs/filter", flow_runs={"name": {"any_": names}}, sort="START_TIME_ASC")
    assert [run["name"] for run in runs] == names
    assert {"everfresh", f"pipeline:{played.name}", "window:2", "release:v2", "drift"} <= set(runs[1]["tags"])


def test_each_topic_has_a_timeline_of_artifacts(played: Pipeline, server: PrefectServer) -> None:
    told = {
        topic: [page["description"] for page in server.artifacts(f"{played.name}-{topic}")]
        for topic in ("drift", "decision", "evaluation", "release", "cost", "tick")
    }
    assert [len(told[topic]) for topic in told] == [1, 2, 2, 2, 2, 2]
    assert told["decision"][0].startswith("window 2: retrain (")
    assert told["release"][0].startswith("v2 of window 2, ")
    assert all("s of training" in words for words in told["cost"])


def test_drift_and_a_release_are_events(played: Pipeline, server: PrefectServer) -> None:
    entries = list(scheduled(played.store))
    [alarm] = server.events("played", "everfresh.drift.detected")
    assert (alarm["payload"]["window"], alarm["payload"]["key"]) == (2, entries[1].drift)
    assert alarm["related"][0]["prefect.resource.role"] == "flow-run"
    assert {"prefect.resource.role": "window", "prefect.resource.id": "everfresh.window.played.2"}.items() <= next(
        r for r in alarm["related"] if r["prefect.resource.role"] == "window"
    ).items()
    assert alarm["payload"]["words"].startswith("played, window 2: ")
    [decided] = server.events("played", "everfresh.retraining.decided")
    assert decided["payload"]["reasons"] == list(entries[1].decision.reasons)
    published = server.events("played", "everfresh.release.published")
    assert [e["payload"]["champion_version"] for e in published] == [2, 1]


def test_events_that_the_file_does_not_name_stay_silent(tmp_path: Path, server: PrefectServer) -> None:
    made = make_pipeline(tmp_path, "selective", alerts={"events": ["data.quarantined"]})
    made.arrives(1, samples=60)
    (tmp_path / "inbox" / "bad.png").write_bytes(b"no picture")
    [entry] = retrain(made.config)
    assert entry.version == 1
    [event] = server.events("selective", "everfresh.data.quarantined")
    assert event["payload"]["quarantined"] == 1
    assert server.every_event("selective") == ["everfresh.data.quarantined"]


def test_a_failing_step_fails_the_run_with_its_sentence(
    pipeline: Pipeline, server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DataError("evaluate: the hold-out must have labels, got none. Add labels.")

    pipeline.rewrite(policy={"triggers": [{"kind": "new_samples", "count": 1}]})
    pipeline.arrives(3)
    with monkeypatch.context() as patch:
        patch.setattr("everfresh.tasks.evaluate.evaluate", lambda *_, **__: broken())
        with pytest.raises(DataError, match="must have labels, got none"):
            retrain(pipeline.config)
    runs = server.call("flow_runs/filter", sort="START_TIME_DESC", limit=1, flows={"name": {"any_": ["retrain"]}})
    assert runs[0]["state"]["type"] == "FAILED"
    assert "the hold-out must have labels, got none. Add labels." in runs[0]["state"]["message"]
    assert [e.seq for e in retrain(pipeline.config)] == [3]  # the next run goes on where this one failed


def test_a_store_that_is_out_of_reach_for_a_moment_is_tried_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.arrives(3)
    met = failed_once(monkeypatch, "create", "stream/00000003.json", StoreError("store: refused (SlowDown)."))
    [entry] = retrain(pipeline.config)
    assert entry.seq == 3
    assert len(met) > 1


def test_a_tick_that_dies_at_its_end_has_told_its_release_and_does_so_once(
    tmp_path: Path, server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_pipeline(tmp_path, "dying")
    made.arrives(1, samples=150)
    with monkeypatch.context() as dying:
        failed_once(dying, "create", "journal/00000001-tick.json", ObjectMissing("the machine is gone"))
        with pytest.raises(ObjectMissing, match="the machine is gone"):
            retrain(made.config)
    assert [e["payload"]["window"] for e in server.events("dying", "everfresh.release.published")] == [1]
    [entry] = retrain(made.config)
    assert entry.version == 1
    made.arrives(2, samples=60)
    retrain(made.config)
    assert server.every_event("dying") == ["everfresh.release.published"]


@pytest.mark.parametrize("kind", [DigestMismatch, ObjectMissing])
def test_wrong_data_is_not_tried_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, kind: type[StoreError]) -> None:
    pipeline.arrives(3)
    met = failed_once(monkeypatch, "create", "stream/00000003.json", kind("the bytes are not what was recorded"))
    with pytest.raises(kind, match="not what was recorded"):
        retrain(pipeline.config)
    assert len(met) == 1


def moved_before_publish(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *moves: Callable[..., AliasMove]) -> None:
    """Let people move the champion after the evaluation, before the first publish."""
    real, left = publish.publish, list(moves)

    def late(*arguments: Any, **named: Any) -> AliasMove:
        while left:
            left.pop(0)(pipeline.store)
        return real(*arguments, **named)

    monkeypatch.setattr(publish, "publish", late)


def test_a_champion_that_moved_meanwhile_is_the_one_to_beat(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.rewrite(gates=[{"kind": "floor", "minimum": 0.1}])
    moved_before_publish(pipeline, monkeypatch, alias.rollback, alias.unpin)  # v2, then v1 pinned, then v1
    [entry] = retrain(pipeline.config, force=True, rung="head")
    proof = find(pipeline.store, f"evaluations/{entry.evaluation}/record.json", Evaluation)
    head = champion_moves(pipeline.store).last()
    assert proof is not None
    assert head is not None
    versions = {m.version: m.release for m in champion_moves(pipeline.store)}
    assert (proof.champion_move, proof.champion) == (4, versions[1])
    assert (head.seq, head.kind, head.version, entry.version) == (5, "publish", 3, 3)  # versions count releases, not moves
    assert versions[2] in head.barred
    assert find(pipeline.store, f"releases/{head.release}/release.json", Release).evaluation == proof.key  # type: ignore[union-attr]


def test_a_champion_that_was_pinned_meanwhile_stays(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    moved_before_publish(pipeline, monkeypatch, alias.pin)
    pipeline.rewrite(gates=[{"kind": "floor", "minimum": 0.1}])
    [entry] = retrain(pipeline.config, force=True, rung="head")
    assert (entry.version, entry.champion_version, entry.failed_gates) == (None, 2, ("pinned",))
    head = champion_moves(pipeline.store).last()
    assert head is not None
    assert (head.kind, head.seq) == ("pin", 3)
