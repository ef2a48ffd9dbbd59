"""The manifest's schema: one row per source file, checked by pandera, everything at once."""

from collections.abc import Iterator, Mapping

import pandas as pd
import pandera.pandas as pa

from vae.config.constants import SPLITS

_TYPES = dict.fromkeys(("path", "split", "label", "mode", "sha256", "status", "reason", "note"), "str")
_TYPES |= dict.fromkeys(("index", "width", "height", "bytes"), "Int64") | dict.fromkeys(("mean", "std"), "float64")
COLUMNS = tuple(_TYPES)
EMPTY = pd.DataFrame(columns=list(COLUMNS)).astype(_TYPES)

_OF_USABLE = ("bytes", "split", "index", "width", "height", "mode", "mean", "std")


def typed(manifest: pd.DataFrame) -> pd.DataFrame:
    """Restores the type of columns without a single value, which a file does not keep."""
    empty = [column for column in manifest.columns if column in COLUMNS and manifest[column].isna().all()]
    return manifest.reset_index(drop=True).astype({column: _TYPES[column] for column in empty})


def column_faults(manifest: pd.DataFrame) -> list[str]:
    """Columns that are missing, unknown or of another type than a `typed` manifest's."""
    faults = [f"column {column}: missing" for column in COLUMNS if column not in manifest]
    faults += [f"column {column}: unknown" for column in manifest if column not in COLUMNS]
    found = {column: manifest[column].dtype for column in COLUMNS if column in manifest}
    wrong = {column: dtype for column, dtype in found.items() if dtype != EMPTY[column].dtype}
    return faults + [f"column {column}: {dtype}, {_TYPES[column]} expected" for column, dtype in wrong.items()]


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
    faults = _faults(manifest)
    for rule, column, value, row in cases[["check", "column", "failure_case", "index"]].itertuples(index=False):
        match rule:
            case "complete_row":
                yield rule, row, ", ".join(faults.columns[faults.loc[row]])
            case "index_is_a_row":
                yield rule, row, f"index = {manifest['index'][row]}"
            case _:
                yield rule, row, f"{column} = {value}"


def _schema(lengths: Mapping[str, int]) -> pa.DataFrameSchema:
    columns = {
        "path": pa.Check(lambda paths: ~paths.duplicated(keep=False), error="path_unique"),
        "split": pa.Check.isin(SPLITS, error="known_split"),
        "width": pa.Check.ge(1, error="size_range"),
        "height": pa.Check.ge(1, error="size_range"),
        "bytes": pa.Check.ge(0, error="size_range"),
        "sha256": pa.Check.str_matches(r"[0-9a-f]{64}\Z", error="sha256_format"),
        "mean": pa.Check.in_range(0, 1, error="statistics_range"),
        "std": pa.Check.in_range(0, 0.5, error="statistics_range"),
        "status": pa.Check.isin(["ok", "quarantined"], error="known_status"),
    }
    return pa.DataFrameSchema(
        {name: pa.Column(nullable=True, checks=check) for name, check in columns.items()},
        checks=[
            pa.Check(lambda rows: ~_faults(rows).any(axis=1), error="complete_row", ignore_na=False),
            pa.Check(lambda rows: _index_is_a_row(rows, lengths), error="index_is_a_row", ignore_na=False),
        ],
    )


def _faults(rows: pd.DataFrame) -> pd.DataFrame:
    """For each row and each way to be incomplete: whether it is."""
    ok = rows["status"] == "ok"
    faults = {f"no {column}": rows[column].isna() for column in ("path", "status")}
    faults |= {f"no {column}": ok & rows[column].isna() for column in _OF_USABLE}
    faults |= {"no reason": ~ok & rows["reason"].isna()}
    return pd.DataFrame(faults | {"quarantined, but has an index": ~ok & rows["index"].notna()})


def _index_is_a_row(rows: pd.DataFrame, lengths: Mapping[str, int]) -> pd.Series:
    """Together with as many rows as images: the index is a permutation of the array's rows."""
    length = rows["split"].map(dict(lengths))
    used = (rows["status"] == "ok") & rows["index"].notna() & length.notna()
    index = rows["index"].astype("float64")
    twice = rows[used].duplicated(["split", "index"], keep=False).reindex(rows.index, fill_value=False)
    return ~used | ((index >= 0) & (index < length) & ~twice)
