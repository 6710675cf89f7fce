"""Items that a limit draws: a sample by seed, each subject with its share, twins together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from lensprune.errors import UserError
from lensprune.tasks import load_task
from lensprune.tasks.item_choice import ItemChoice, draw_order
from tests.helpers.rows import RowsWriter, gsm8k_row


def winogrande_row(number: int, names: tuple[str, str], word: str) -> dict[str, str]:
    sentence = f"{names[0]} beat {names[1]} in race {number} since _ was {word}."
    return {"sentence": sentence, "option1": names[0], "option2": names[1], "answer": "1"}


def test_words() -> None:
    assert ItemChoice.parse("drawn") == ItemChoice("drawn")
    assert ItemChoice.parse("first") == ItemChoice("first")
    with pytest.raises(UserError, match=r"unknown choice of items 'firsts'.*did you mean first"):
        ItemChoice.parse("firsts")


def test_a_limit_draws_by_seed_and_a_larger_one_keeps_what_it_drew(tmp_path: Path, write_rows: RowsWriter) -> None:
    write_rows("gsm8k", "test", [gsm8k_row(number) for number in range(200)])
    write_rows("gsm8k", "train", [gsm8k_row(number) for number in range(300, 310)])

    def drawn(limit: int, seed: int = 0, **options: str) -> list[str]:
        items = load_task("gsm8k", data_dir=tmp_path, limit=limit, seed=seed, shots=2, **options).items
        return [item.id for item in items]

    few = drawn(20)
    assert few == drawn(20)
    assert len(set(few)) == 20
    assert few != sorted(few, key=int)
    assert drawn(50)[:20] == few
    assert len(set(few) & set(drawn(20, seed=1))) < 10
    assert drawn(20, items="first") == [str(number) for number in range(20)]
    assert drawn(200) == drawn(500) == [str(number) for number in range(200)]
    # Whichever others are drawn, a row has the same examples.
    everything = {item.id: item for item in load_task("gsm8k", data_dir=tmp_path, shots=2).items}
    assert len({str(item.fewshot) for item in everything.values()}) > 20
    for item in load_task("gsm8k", data_dir=tmp_path, limit=20, shots=2).items:
        assert item == everything[item.id]


def test_every_item_is_drawn_as_often() -> None:
    """Subjects of 6, 3 and 1 items, 4 of 10 taken: each item in 0.4 of the seeds, each subject by its share."""
    subjects = ["a"] * 6 + ["b"] * 3 + ["c"]
    seeds = 4000
    counts, shares = np.zeros(10), []
    for seed in range(seeds):
        places = ItemChoice().places(subjects, range(10), 4, str(seed))
        counts[places] += 1
        shares.append(Counter(subjects[place] for place in places)["a"])
    assert np.abs(counts / seeds - 0.4).max() < 4 * np.sqrt(0.24 / seeds) + 0.02
    assert set(shares) <= {1, 2, 3, 4}
    assert np.var(shares) < 0.5 * (4 * 0.6 * 0.4 * 6 / 9), "less than a draw without subjects"


def test_twins_are_drawn_together_but_for_the_last() -> None:
    twins = [place // 2 for place in range(20)]
    for seed in range(50):
        order = draw_order([None] * 20, twins, Random(seed))
        assert sorted(order) == list(range(20))
        pairs = [tuple(order[place : place + 2]) for place in range(0, 20, 2)]
        assert all(twins[one] == twins[other] for one, other in pairs)
    assert len({tuple(draw_order([None] * 20, twins, Random(seed))) for seed in range(50)}) == 50


def test_twins_of_winogrande(tmp_path: Path, write_rows: RowsWriter) -> None:
    ann, joe = ("Ann", "Bea"), ("Joe", "Kim")
    rows = [
        winogrande_row(0, ann, "fast"),
        winogrande_row(0, ann, "slow"),
        winogrande_row(1, ann, "fast"),
        winogrande_row(2, joe, "fast"),
        winogrande_row(3, ("Kim", "Joe"), "slow"),
        winogrande_row(4, ann, "slow"),
    ]
    write_rows("winogrande", "validation", rows)
    items = load_task("winogrande", data_dir=tmp_path).items
    assert [item.cluster for item in items] == ["0", "0", "2", "3", "3", "5"]
    assert [item.id for item in items] == [str(number) for number in range(6)]
    for seed in range(20):
        drawn = load_task("winogrande", data_dir=tmp_path, limit=3, seed=seed).items
        clusters = [item.cluster for item in drawn]
        assert len(set(clusters[:2])) == 1 or len(set(clusters[1:])) == 1 or len(set(clusters)) == 3


def test_rows_that_share_a_text_are_a_cluster(tmp_path: Path, write_rows: RowsWriter) -> None:
    rows = [{"passage": text, "question": f"is it {n}", "label": 1} for n, text in enumerate(["x", "y", "x", "z"])]
    write_rows("boolq", "validation", rows)
    assert [item.cluster for item in load_task("boolq", data_dir=tmp_path).items] == ["0", "1", "0", "3"]


def test_generated_rows_are_not_drawn() -> None:
    few = [item.doc for item in load_task("arithmetic", limit=5).items]
    assert few == [item.doc for item in load_task("arithmetic", limit=9).items[:5]]
    assert few == [item.doc for item in load_task("arithmetic", limit=5, items="first").items]
    assert [item.id for item in load_task("kv_retrieval", limit=4).items] == ["0", "1", "2", "3"]


def test_facts_of_every_subject_and_the_same_with_the_book_open() -> None:
    items = load_task("facts", limit=30).items
    assert set(Counter(item.cluster for item in items).values()) <= {1, 2, 3}
    assert len({item.cluster for item in items}) == 15
    assert [item.id for item in items] == [item.id for item in load_task("facts_open", limit=30).items]


def test_clusters_of_real_rows(data_dir: Path) -> None:
    """78 pairs of winogrande's validation rows stand one after the other."""
    clusters = Counter(item.cluster for item in load_task("winogrande", data_dir=data_dir, shots=0).items)
    assert Counter(clusters.values())[2] == 78
    assert set(clusters.values()) == {1, 2}

    def articles(limit: int | None, items: str) -> float:
        rows = load_task("hellaswag", data_dir=data_dir, limit=limit, items=items, shots=0).items
        return float(np.mean([item.doc["source_id"].startswith("wikihow") for item in rows]))

    assert articles(100, "first") == 0.0
    assert articles(100, "drawn") == pytest.approx(articles(None, "drawn"), abs=0.08)
