"""Tables of sizes: what is read, and what each broken table is told."""

from __future__ import annotations

import io

import pytest

from stowplan.errors import DataError
from stowplan.io.sizes import read_sizes

EXPECTED = {"atoms": [2, 3], "k": [9, 40]}


def lists(sizes):
    return {name: column.tolist() for name, column in sizes.items()}


@pytest.mark.parametrize(
    "text",
    [
        "atoms,k\n2,9\n3,40\n",
        "atoms;k\n2;9\n3;40",
        "atoms\tk\r\n2\t9\r\n3\t40\r\n",
        "\ufeffatoms,k\n2,9\n\n3,40\n\n",
        'atoms , k\n"2", 9\n3.0,4e1\n',
    ],
    ids=["comma", "semicolon", "tab", "bom and blank lines", "spaces, quotes and whole floats"],
)
def test_any_usual_csv_is_read(text, tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_bytes(text.encode())
    assert lists(read_sizes(path)) == EXPECTED
    assert all(column.dtype == "int64" for column in read_sizes(path).values())


def test_parquet_and_csv_give_the_same_sizes(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a table without a suffix"
    parquet.write_table(pa.table({**EXPECTED, "name": ["a", "b"]}), path)
    assert lists(read_sizes(path, ["k", "atoms"])) == EXPECTED


def test_columns_that_no_dim_names_may_hold_anything():
    assert lists(read_sizes(io.StringIO("name,k\nNaCl,7\n,8\n"), ["k", "k"])) == {"k": [7, 8]}


def test_a_table_of_no_items_gives_columns_of_no_items():
    assert lists(read_sizes(io.StringIO("atoms,k\n"))) == {"atoms": [], "k": []}


def test_the_largest_size_is_kept_exactly():
    assert lists(read_sizes(io.StringIO(f"k\n{2**63 - 1}\n"))) == {"k": [2**63 - 1]}


@pytest.mark.parametrize(
    "cell",
    ["-1", "2.5", "nan", "inf", "many", "", "1e300", str(2**63)],
    ids=lambda cell: cell or "-",
)
def test_a_cell_that_is_no_size_is_named_with_its_line(cell):
    table = io.StringIO(f"atoms,k\n1,1\n\n2,{cell}\n3,-7\n")
    with pytest.raises(
        DataError, match=r"column 'k': 2 of 3 entries are no size; line 4 "
    ) as error:
        read_sizes(table)
    assert (repr(cell) if cell else "is empty") in str(error.value)


@pytest.mark.parametrize("column", [[1, None], [1.0, 2.5], [True, False], [[1], [2]], [1, -1]])
def test_a_parquet_entry_that_is_no_size_is_named_with_its_row(column, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"k": column}), tmp_path / "sizes.parquet")
    with pytest.raises(DataError, match=r"sizes\.parquet: column 'k': \d of 2 .* row [12] "):
        read_sizes(tmp_path / "sizes.parquet")


def test_missing_columns_are_named_with_those_that_the_file_has():
    with pytest.raises(DataError, match="no columns 'q', 'z'; the file has atoms, k"):
        read_sizes(io.StringIO("atoms,k\n1,2\n"), ["atoms", "q", "z"])


@pytest.mark.parametrize(
    ("text", "reason"), [("", "empty"), ("k,k\n1,2\n", "two columns are named 'k'")]
)
def test_a_table_without_usable_names_is_refused(text, reason):
    with pytest.raises(DataError, match=reason):
        read_sizes(io.StringIO(text))


def test_an_unreadable_file_gives_its_name_and_the_reason(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: No such file"):
        read_sizes(tmp_path / "nowhere.csv")
    (tmp_path / "noise.csv").write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(DataError, match=r"noise\.csv: neither CSV nor Parquet"):
        read_sizes(tmp_path / "noise.csv")


def test_a_truncated_parquet_file_gives_its_name_and_the_reason(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1\x00\x00")
    with pytest.raises(DataError, match=r"cut\.parquet: unreadable Parquet file"):
        read_sizes(tmp_path / "cut.parquet")
