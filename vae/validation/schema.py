"""The manifest's schema: a row a source file, checked by pandera, everything at once."""

from collections.abc import Callable, Mapping

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


def failures(manifest: pd.DataFrame, lengths: Mapping[str, int]) -> pd.DataFrame:
    """Every row of the manifest that breaks a rule.

    lengths: how many images each split's array holds; a split without a readable array is left out.
    Returns the columns rule, row (position in the manifest, null for a whole column) and value (text).
    Where the rule `manifest_columns` is broken no other is judged: a column of the wrong type has no
    range worth naming.
    """
    manifest = typed(manifest)
    try:
        _schema(lengths).validate(manifest, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.astype(object)
    else:
        return pd.DataFrame({"rule": [], "row": [], "value": []})
    built_in = cases["check"].map({"column_in_dataframe": "missing", "column_in_schema": "unknown"})
    broken = built_in.notna() | (cases["check"] == "manifest_columns")
    if broken.any():
        values = [
            f"column {case}: {fault}"
            if isinstance(fault, str)
            else f"column {column}: {_dtype(manifest, column)}"
            for column, case, fault in zip(
                cases["column"][broken], cases["failure_case"][broken], built_in[broken], strict=True
            )
        ]
        return pd.DataFrame({"rule": "manifest_columns", "row": None, "value": values})
    # pandera names every cell of a row that breaks a rule on whole rows: one is enough.
    whole = cases["schema_context"] == "DataFrameSchema"
    cases = cases[~whole | ~cases.duplicated(["check", "index"])]
    values = [
        _DESCRIBE[check](manifest.loc[row]) if check in _DESCRIBE else f"{column} = {case}"
        for check, column, case, row in zip(
            cases["check"], cases["column"], cases["failure_case"], cases["index"], strict=True
        )
    ]
    return pd.DataFrame(
        {"rule": cases["check"].to_numpy(), "row": cases["index"].to_numpy(), "value": values}
    )


def typed(manifest: pd.DataFrame) -> pd.DataFrame:
    """A column without a single value has lost its type on the way through a file: it gets it back."""
    types = dict.fromkeys(_TEXT, "str") | dict.fromkeys(_WHOLE, "Int64") | dict.fromkeys(_REAL, "float64")
    empty = [column for column in manifest.columns if column in types and manifest[column].isna().all()]
    return manifest.reset_index(drop=True).astype({column: types[column] for column in empty})


def _dtype(manifest: pd.DataFrame, column: str) -> str:
    return f"{manifest[column].dtype}, where {'text' if column in _TEXT else 'a number'} belongs"


def _schema(lengths: Mapping[str, int]) -> pa.DataFrameSchema:
    def is_text(column: pd.Series) -> bool:
        return pd.api.types.is_string_dtype(column)

    def is_whole(column: pd.Series) -> bool:
        return pd.api.types.is_integer_dtype(column)

    def is_real(column: pd.Series) -> bool:
        return pd.api.types.is_float_dtype(column)

    def column(kind: Callable[[pd.Series], bool], *checks: pa.Check) -> pa.Column:
        return pa.Column(nullable=True, checks=[pa.Check(kind, name="manifest_columns"), *checks])

    def between(low: float, high: float, name: str) -> pa.Check:
        return pa.Check(lambda values: values.between(low, high), name=name)

    positive = between(1, np.inf, "size_range")
    return pa.DataFrameSchema(
        {
            "path": column(
                is_text, pa.Check(lambda paths: ~paths.duplicated(keep=False), name="path_unique")
            ),
            "split": column(is_text, pa.Check(lambda splits: splits.isin(SPLITS), name="known_split")),
            "label": column(is_text),
            "index": column(is_whole),
            "width": column(is_whole, positive),
            "height": column(is_whole, positive),
            "mode": column(is_text),
            "bytes": column(is_whole, between(0, np.inf, "size_range")),
            "sha256": column(
                is_text, pa.Check(lambda hashes: hashes.str.fullmatch("[0-9a-f]{64}"), name="sha256_format")
            ),
            "mean": column(is_real, between(0, 1, "statistics_range")),
            "std": column(is_real, between(0, 0.5, "statistics_range")),
            "status": column(
                is_text, pa.Check(lambda status: status.isin(["ok", "quarantined"]), name="known_status")
            ),
            "reason": column(is_text),
        },
        checks=[
            pa.Check(_complete, name="complete_row", ignore_na=False),
            pa.Check(lambda rows: _index_is_a_row(rows, lengths), name="index_is_a_row", ignore_na=False),
        ],
        strict=True,
    )


def _faults(row: pd.Series) -> str:
    ok = row["status"] == "ok"
    faults = [f"no {column}" for column in _ALWAYS + (_OK if ok else ["reason"]) if pd.isna(row[column])]
    if not ok and not pd.isna(row["index"]):
        faults.append("quarantined, yet it has an index")
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
