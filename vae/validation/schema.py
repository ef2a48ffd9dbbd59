"""The manifest's schema: one row per source file, checked by pandera, everything at once."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import pandera.pandas as pa

from vae.config.constants import SPLITS

_TEXT = ("path", "split", "label", "mode", "sha256", "status", "reason")
_WHOLE = ("index", "width", "height", "bytes")
_REAL = ("mean", "std")
COLUMNS = _TEXT + _WHOLE + _REAL

_ALWAYS = ["path", "status"]
_OK = ["bytes", "split", "index", "width", "height", "mode", "mean", "std"]


def typed(manifest: pd.DataFrame) -> pd.DataFrame:
    """Restores the type of columns without a single value, which a file does not keep."""
    types = dict.fromkeys(_TEXT, "str") | dict.fromkeys(_WHOLE, "Int64") | dict.fromkeys(_REAL, "float64")
    empty = [column for column in manifest.columns if column in types and manifest[column].isna().all()]
    return manifest.reset_index(drop=True).astype({column: types[column] for column in empty})


def column_faults(manifest: pd.DataFrame) -> list[str]:
    """Columns that are missing, unknown or of another type than a `typed` manifest's."""
    faults = [f"column {column}: missing" for column in COLUMNS if column not in manifest]
    faults += [f"column {column}: unknown" for column in manifest if column not in COLUMNS]
    for columns, is_right, kind in (
        (_TEXT, pd.api.types.is_string_dtype, "text"),
        (_WHOLE, pd.api.types.is_integer_dtype, "whole numbers"),
        (_REAL, pd.api.types.is_float_dtype, "real numbers"),
    ):
        for column in columns:
            if column in manifest and not is_right(manifest[column]):
                faults.append(f"column {column}: {manifest[column].dtype}, {kind} expected")
    return faults


def failures(manifest: pd.DataFrame, lengths: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    """Rule, row and value of everything that breaks a rule in a manifest without column faults.

    lengths: the number of images in each split's array; a split without a readable array is absent.
    """
    try:
        _schema(lengths).validate(manifest, lazy=True)
        return
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.astype(object)
    # pandera lists every cell of a row that breaks a rule on whole rows: one is enough.
    whole = cases["schema_context"] == "DataFrameSchema"
    cases = cases[~whole | ~cases.duplicated(["check", "index"])]
    for rule, column, case, row in cases[["check", "column", "failure_case", "index"]].itertuples(index=False):
        describe = _DESCRIBE.get(rule)
        yield rule, row, describe(manifest.loc[row]) if describe else f"{column} = {case}"


def _schema(lengths: Mapping[str, int]) -> pa.DataFrameSchema:
    def column(name: str, is_allowed: Callable[[pd.Series], pd.Series]) -> pa.Column:
        return pa.Column(nullable=True, checks=pa.Check(is_allowed, name=name))

    def between(low: float, high: float, name: str) -> pa.Column:
        return column(name, lambda values: values.between(low, high))

    return pa.DataFrameSchema(
        {
            "path": column("path_unique", lambda paths: ~paths.duplicated(keep=False)),
            "split": column("known_split", lambda splits: splits.isin(SPLITS)),
            "width": between(1, np.inf, "size_range"),
            "height": between(1, np.inf, "size_range"),
            "bytes": between(0, np.inf, "size_range"),
            "sha256": column("sha256_format", lambda hashes: hashes.str.fullmatch("[0-9a-f]{64}")),
            "mean": between(0, 1, "statistics_range"),
            "std": between(0, 0.5, "statistics_range"),
            "status": column("known_status", lambda status: status.isin(["ok", "quarantined"])),
        },
        checks=[
            pa.Check(_complete, name="complete_row", ignore_na=False),
            pa.Check(lambda rows: _index_is_a_row(rows, lengths), name="index_is_a_row", ignore_na=False),
        ],
    )


def _faults(row: pd.Series) -> str:
    ok = row["status"] == "ok"
    faults = [f"no {column}" for column in _ALWAYS + (_OK if ok else ["reason"]) if pd.isna(row[column])]
    if not ok and not pd.isna(row["index"]):
        faults.append("quarantined, but has an index")
    return ", ".join(faults)


def _complete(rows: pd.DataFrame) -> pd.Series:
    ok = rows["status"] == "ok"
    return (
        rows[_ALWAYS].notna().all(axis=1)
        & (~ok | rows[_OK].notna().all(axis=1))
        & (ok | (rows["reason"].notna() & rows["index"].isna()))
    )


def _index_is_a_row(rows: pd.DataFrame, lengths: Mapping[str, int]) -> pd.Series:
    """Together with as many rows as images: the index is a permutation of the array's rows."""
    length = rows["split"].map(dict(lengths))
    used = (rows["status"] == "ok") & rows["index"].notna() & length.notna()
    index = rows["index"].astype("float64")
    twice = rows[used].duplicated(["split", "index"], keep=False).reindex(rows.index, fill_value=False)
    return ~used | ((index >= 0) & (index < length) & ~twice)


_DESCRIBE: dict[str, Callable[[pd.Series], str]] = {
    "complete_row": _faults,
    "index_is_a_row": lambda row: f"index = {row['index']}",
}
