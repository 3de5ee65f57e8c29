"""Whatever stands in a column comes back from PostgreSQL as it was."""

from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.ledger.postgres.arrays import array


def back(server, kind, values):
    with psycopg.connect(server.url(user="admin")) as connection:
        rows = connection.execute(
            f"SELECT each FROM unnest(%s::{kind}[]) WITH ORDINALITY AS t(each, n) ORDER BY n",
            (array(values),),
        )
        return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", ["", "NULL", "null", " a b ", "a,b", "{a}", "\n\t", "é"]),
        ("text", ['say "no"', "back\\slash\\"]),
        ("text", [None, "a", None]),
        ("int8", [0, -1, 2**62, None]),
        ("bool", [True, False, None]),
        ("timestamptz", [datetime(2026, 11, 29, 12, 0, 0, 123456, tzinfo=UTC), None]),
    ],
)
def test_a_column_comes_back(postgres, kind, values):
    assert back(postgres, kind, values) == values


def test_any_texts_come_back(postgres):
    @given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
    def round_trip(values):
        assert back(postgres, "text", values) == values

    round_trip()


def test_what_postgres_can_not_store_is_refused(postgres):
    with pytest.raises(psycopg.DataError):
        back(postgres, "text", ["a\0b"])
