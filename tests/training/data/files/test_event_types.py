"""Logs in which something happened: views, carts, purchases; which count, and what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import sparse
from shop_files import REES46, RETAILROCKET, SHOP_COLUMNS, write_retailrocket

from training.config import InteractionsConfig
from training.data.embeddings import with_followers
from training.data.files.event_types import proposed
from training.data.interactions import k_core, load_dataset, read_interactions
from training.data.splits import Interactions, leave_last_out, split_by_time
from training.data.subsample import without_items
from training.errors import ConfigError, DataError
from training.fitting.neighbour_prior import follower_affinities
from training.pipeline import dataset_key
from training.preset import load_config

COLUMNS = {"user_id": "visitorid", "item_id": "itemid"}
EVENTS = {"view": 1.0, "addtocart": 2.0, "transaction": 3.0}
SHOP = InteractionsConfig(columns=COLUMNS, events=EVENTS, targets=("transaction",))


def told(log: Interactions) -> dict[str, list[tuple[str, bool, float]]]:
    """Of each user the items, whether each may be held out, and its weight as a multiple."""
    assert log.weights is not None
    assert log.targets is not None
    unit = log.weights.min()
    return {
        user_id: [
            (log.item_ids[log.rows[n]], bool(log.targets[n]), round(float(log.weights[n] / unit)))
            for n in range(log.indptr[user], log.indptr[user + 1])
        ]
        for user, user_id in enumerate(log.user_ids)
    }


# --- which count --------------------------------------------------------------------------------


def test_a_funnel_is_refused_with_what_to_say(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(RETAILROCKET)
    with pytest.raises(DataError) as error:
        read_interactions(path, InteractionsConfig(columns=COLUMNS))
    message = str(error.value)
    assert "the column 'event' has 'view' (3), 'addtocart' (1), 'transaction' (1)" in message
    for option in message.split("--set ")[1:]:
        assert option.startswith('"interactions.')
    overrides = [option.split('"')[1] for option in message.split("--set ")[1:]]
    config = load_config("tiny", overrides).interactions
    assert (config.events, config.targets) == (EVENTS, ("transaction",))


def test_what_was_bought_is_one_interaction_with_its_view(tmp_path: Path) -> None:
    """All of 248676 in a row is one, which counts as the transaction, whatever came first."""
    path = tmp_path / "events.csv"
    path.write_text(RETAILROCKET)
    assert told(read_interactions(path, SHOP)) == {
        "257597": [("355908", False, 1), ("248676", True, 3)]
    }
    kept = read_interactions(path, SHOP.model_copy(update={"collapse_repeats": False}))
    assert [weight for _, _, weight in told(kept)["257597"]] == [1, 3, 1, 2, 1]


def test_rees46_is_read_with_its_times(tmp_path: Path) -> None:
    path, notes = tmp_path / "2019-Oct.csv", []
    path.write_text(REES46)
    config = InteractionsConfig(
        columns={"item_id": "product_id", "timestamp": "event_time"},
        events={"view": 1, "purchase": 4},
        targets=("purchase",),
        split="time",
    )
    log = read_interactions(path, config, notes)
    assert told(log) == {"541312140": [("44600062", False, 1), ("3900821", True, 4)]}
    assert log.times is not None
    # of a run of one item the time of what may be held out, not that of the view
    assert [str(time)[:19] for time in log.times] == ["2019-10-01T00:00:00", "2019-10-01T00:00:09"]
    assert any(
        "left out, as interactions.events does not name them: 'cart' (1)" in n for n in notes
    )


def test_a_line_is_named_though_others_are_left_out(tmp_path: Path) -> None:
    header, *lines = RETAILROCKET.splitlines()
    for name, part in (("1.csv", lines[:2]), ("2.csv", lines[2:])):
        text = "\n".join([header, *part, ""])
        (tmp_path / name).write_text(text.replace("1433221337106,257597", "1433221337106,25/7597"))
    config = InteractionsConfig(columns=COLUMNS, events={"transaction": 1})
    with pytest.raises(DataError, match=r"line 4 of 2\.csv: user_id '25/7597' holds /"):
        read_interactions(tmp_path, config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"events": {"View": 1}}, "no line of .* has View as its 'event'; did you mean 'view'?"),
        ({"targets": ("transactions",)}, "did you mean 'transaction'?"),
        ({"events": {"view": 1}, "targets": ("transaction",)}, "transaction is none of interact"),
        ({"events": {"x": 1}, "columns": {**COLUMNS, "event_type": "evnt"}}, "mean event?"),
    ],
)
def test_event_types_that_are_not_there_are_refused(
    tmp_path: Path, setting: dict[str, object], message: str
) -> None:
    path = tmp_path / "events.csv"
    path.write_text(RETAILROCKET)
    with pytest.raises(ConfigError, match=message):
        read_interactions(path, InteractionsConfig(**{"columns": COLUMNS, **setting}))


def test_event_types_need_a_column(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,kind\nu,a,1,view\nu,b,2,buy\n")
    with pytest.raises(ConfigError, match="no column event_type or the like; it has user_id, "):
        read_interactions(path, InteractionsConfig(targets=("buy",)))
    config = InteractionsConfig(columns={"event_type": "kind"}, targets=("buy",))
    log = read_interactions(path, config)
    assert log.weights is None
    assert log.targets is not None
    assert log.targets.tolist() == [False, True]


@pytest.mark.parametrize("weight", [0, -1, "inf", "nan"])
def test_weights_are_positive_numbers(weight: object) -> None:
    with pytest.raises(ValidationError, match=r"events\.view"):
        InteractionsConfig(events={"view": weight})


def test_other_types_are_a_warning_and_one_type_is_as_before(tmp_path: Path) -> None:
    path, warnings = tmp_path / "log.csv", []
    path.write_text("user_id,item_id,timestamp,action\nu,a,1,web\nu,b,2,app\n")
    log = read_interactions(path, InteractionsConfig(), [], warnings)
    assert (log.weights, log.targets) == (None, None)
    assert "has 'web' (1), 'app' (1), and every line counts alike" in warnings[0]
    path.write_text("user_id,item_id,timestamp,event_type\nu,a,1,view\nu,b,2,view\n")
    notes: list[str] = []
    assert read_interactions(path, InteractionsConfig(), notes, warnings).targets is None
    assert len(warnings) == 1
    assert "'event_type' is not used; every line counts alike" in notes[-1]


def test_a_column_of_very_many_values_holds_something_else(tmp_path: Path) -> None:
    path, warnings = tmp_path / "log.csv", []
    lines = "".join(f"u,i{n},{n},{'purchase' if n else 'view'} {n}\n" for n in range(1100))
    path.write_text("user_id,item_id,timestamp,action\n" + lines)
    assert read_interactions(path, InteractionsConfig(), [], warnings).num_interactions == 1100
    assert warnings == []
    config = InteractionsConfig(targets=("purchase 7",))
    log = read_interactions(path, config)
    assert log.targets is not None
    assert np.flatnonzero(log.targets).tolist() == [7]


def test_feedback_of_gorse_is_read(tmp_path: Path) -> None:
    path, warnings = tmp_path / "feedback.jsonl", []
    line = (
        '{"FeedbackType": "%s", "UserId": "u", "ItemId": "%s", "Value": 0, '
        '"Timestamp": "2024-05-0%dT10:00:00Z", "Updated": "2024-05-01T10:00:00Z", "Comment": ""}\n'
    )
    path.write_text(line % ("read", "a", 2) + line % ("star", "b", 1) + line % ("read", "c", 3))
    hint = (
        r"--set interactions\.columns\.user_id=UserId --set interactions\.columns\.item_id=ItemId"
    )
    with pytest.raises(DataError, match=hint):
        read_interactions(path)
    columns = {"user_id": "UserId", "item_id": "ItemId"}
    log = read_interactions(path, InteractionsConfig(columns=columns), [], warnings)
    assert [log.item_ids[row] for row in log.rows] == ["b", "a", "c"]
    assert "the column 'FeedbackType' has 'read' (2), 'star' (1)" in warnings[0]
    weighed = InteractionsConfig(columns=columns, events={"read": 1, "star": 5}, targets=("star",))
    assert told(read_interactions(path, weighed))["u"][0] == ("b", True, 5)


def test_a_field_that_is_no_text_is_no_event_type(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = '{"user_id": "u", "item_id": "%s", "timestamp": %d, "event": {"name": "view"}}\n'
    path.write_text(line % ("a", 1) + line % ("b", 2))
    assert read_interactions(path).num_interactions == 2


@pytest.mark.parametrize(
    ("types", "targets"),
    [
        (["view", "cart", "purchase"], ["purchase"]),
        (["pv", "cart", "fav", "buy"], ["buy"]),
        (["Page View", "Add To Cart", "Order Completed"], ["Order Completed"]),
        (["view", "cart", "remove_from_cart", "purchase", "purchase_cancelled"], ["purchase"]),
        (["purchase", "review"], ["purchase"]),
        (["click", "impression"], []),
        (["web", "app"], []),
    ],
)
def test_steps_of_shops_are_known(types: list[str], targets: list[str]) -> None:
    weights, found = proposed(types)
    assert found == targets
    assert not weights.keys() & {"remove_from_cart", "purchase_cancelled", "review", "web", "app"}
    assert all(weights[name] == 3 for name in targets)


# --- what is held out ---------------------------------------------------------------------------

USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 9)), max_size=7), max_size=6
)


def log_with(users: list[list[tuple[int, bool, int]]]) -> Interactions:
    flat = [event for user in users for event in user]
    return Interactions(
        tuple(f"u{n}" for n in range(len(users))),
        tuple(f"i{n}" for n in range(5)),
        np.cumsum([0, *map(len, users)]).astype(np.int64),
        np.array([row for row, _, _ in flat], np.int32),
        np.array([time for _, _, time in flat], np.int64),
        np.array([1 + row for row, _, _ in flat], np.float32),
        np.array([target for _, target, _ in flat], bool),
    )


def found_in(windows: object) -> dict[int, tuple[list[int], int]]:
    return {
        int(user): (windows.history_of(n).tolist(), int(windows.targets[n]))
        for n, user in enumerate(windows.users)
    }


@settings(max_examples=100, deadline=None)
@given(USERS)
def test_only_targets_are_held_out_against_plain_python(
    users: list[list[tuple[int, bool, int]]],
) -> None:
    split = leave_last_out(log_with(users))
    test, validation, train = {}, {}, []
    for user, events in enumerate(users):
        rows = [row for row, _, _ in events]
        places = [n for n, (_, target, _) in enumerate(events) if target and n]
        if places:
            test[user] = (rows[: places[-1]], rows[places[-1]])
        if len(places) > 1:
            validation[user] = (rows[: places[-2]], rows[places[-2]])
        train += rows[: places[-2:][0]] if places else rows
    assert found_in(split.test) == test
    assert found_in(split.validation) == validation
    assert split.train.rows.tolist() == train
    # what is known of an interaction goes where it goes
    assert split.train.weights is not None
    assert split.train.weights.tolist() == [1 + row for row in train]


@settings(max_examples=60, deadline=None)
@given(USERS)
def test_a_split_by_time_holds_out_targets_against_plain_python(
    users: list[list[tuple[int, bool, int]]],
) -> None:
    users = [sorted(user, key=lambda event: event[2]) for user in users]
    times = sorted(time for user in users for _, _, time in user)
    if not times:
        return
    test_from, validation_from = (times[int(share * len(times))] for share in (0.75, 0.5))
    if not times[0] < validation_from < test_from:
        return
    split = split_by_time(log_with(users), 0.25, 0.25)
    for windows, start, until in (
        (split.validation, validation_from, test_from),
        (split.test, test_from, 99),
    ):
        expected = {}
        for user, events in enumerate(users):
            rows = [row for row, _, _ in events]
            places = [
                n for n, (_, target, time) in enumerate(events) if target and start <= time < until
            ]
            if places and places[0]:
                expected[user] = (rows[: places[0]], rows[places[0]])
        assert found_in(windows) == expected


def test_a_shop_is_split_by_what_was_bought(tmp_path: Path) -> None:
    path = write_retailrocket(tmp_path / "events.csv")
    dataset = load_dataset(interactions=path, config=SHOP)
    bought = {
        tuple(line.split(",")[1:4:2]) for line in path.read_text().split() if "transa" in line
    }
    split = dataset.split
    assert len(split.validation) > 20
    for windows in (split.validation, split.test):
        for user, target in zip(windows.users, windows.targets, strict=True):
            assert (split.train.user_ids[user], split.train.item_ids[target]) in bought
    assert any("had the target before" in note for note in dataset.notes)
    assert "event type that interactions.targets names" in split.sentence
    alike = load_dataset(interactions=path, config=SHOP.model_copy(update={"events": {}}))
    assert dataset_key(alike) != dataset_key(dataset)
    for core in (k_core(split.everything, 3), without_items(dataset, np.array([0])).split.train):
        assert core.weights is not None
        assert core.targets is not None
        assert len(core.weights) == len(core.targets) == core.num_interactions


def test_targets_that_nobody_has_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(RETAILROCKET)
    with pytest.raises(DataError, match="no user has two interactions of transaction with somethi"):
        load_dataset(interactions=path, config=SHOP)


# --- where weights count ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(USERS.filter(any), st.sampled_from([1.0, 0.25]))
def test_what_follows_counts_by_its_weight(
    users: list[list[tuple[int, bool, int]]], scale: float
) -> None:
    log = log_with(users)
    none = sparse.csr_array((5, 5), dtype=np.float32)
    expected = np.zeros((5, 5))
    for user in users:
        for first, (row, _, _) in enumerate(user):
            for distance, (later, _, _) in enumerate(user[first + 1 : first + 3], 1):
                expected[row, later] += (1 + later) * scale / distance
    log = Interactions(
        log.user_ids, log.item_ids, log.indptr, log.rows, weights=log.weights * np.float32(scale)
    )
    found = with_followers(none, log, [1.0, 0.5]).toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_prior_calls_for_what_was_bought() -> None:
    """After 0 came 1 as often as 2, but 2 was bought."""
    users = [[(0, False, 0), (1, False, 1)], [(0, False, 0), (2, True, 1)]]
    log = log_with(users)
    settings_of = {"window": 2, "gap_decay": 0.9, "rarity_power": 0.5}
    weighed = follower_affinities(log, **settings_of).toarray()
    assert weighed[0, 2] == pytest.approx(1.5 * weighed[0, 1])  # weights 3 and 2
    alike = Interactions(log.user_ids, log.item_ids, log.indptr, log.rows)
    plain = follower_affinities(alike, **settings_of).toarray()
    assert plain[0, 2] == plain[0, 1]


def test_a_preset_may_say_what_counts(tmp_path: Path) -> None:
    preset = tmp_path / "shop.toml"
    preset.write_text(
        "[interactions]\ntargets = ['transaction']\n[interactions.columns]\nuser_id = 'visitorid'\n"
        "[interactions.events]\nview = 1\naddtocart = 2\ntransaction = 3\n"
    )
    overrides = [f"interactions.columns.{SHOP_COLUMNS[1]}"]
    assert load_config(str(preset), overrides).interactions == SHOP


def test_what_users_refused_is_left_out_unless_it_is_named(tmp_path: Path) -> None:
    """A refusal is no interaction. An export of the service has both."""
    path = tmp_path / "events.csv"
    lines = ["u,a,1,click", "u,b,2,not_interested", "u,c,3,click", "u,b,4,undo_not_interested"]
    path.write_text("\n".join(["user_id,item_id,timestamp,event_type", *lines]))
    log = read_interactions(path, InteractionsConfig())
    assert [log.item_ids[row] for row in log.rows] == ["a", "c"]
    named = InteractionsConfig(events={"click": 1, "not_interested": 1})
    log = read_interactions(path, named)
    assert [log.item_ids[row] for row in log.rows] == ["a", "b", "c"]
