"""Tables 7, 8 and 15 to 21 of the paper, typed from it; its rows have our models' names.

Numbers stay as they are printed, 40 not as 40.0; ``?`` is one that is not legible.
"""

#: Table, corpora side by side, the columns of each, and the rows.
TABLES = [
    (
        7,  # "Reproduced Results"
        ("librispeech_100", "librispeech", "seame", "asru"),
        ("dev", "test"),
        """
        branchformer     6.3  6.4    2.2  2.4   16.3 23.2   12.5 11.8
        mamba           40.8 40     21.8 22.3   44.5 55.3   38.0 36.3
        innbimamba      39.6 38.2   21.8 22.5   44.3 55.4   38.4 37.9
        extbimamba      38.5 37.7   21.6 22.1   44.4 55.2   38.2 36.8
        transformer      8.0  8.4    2.8  3.2   17.7 24.5   13.7 13.1
        transmamba      10.9 11.2    3.2  3.5   20.7 29.5   24.2 23.1
        transinnbimamba  8.8  9.4    2.5  3.0   18.4 26.0   20.2 19.5
        transextbimamba  8.4  8.7    2.5  2.8   17.2 24.3   18.7 18.0
        conformer        6.3  6.5    2.3  2.6   16.9 23.6   12.8 12.2
        conmamba         6.6  6.9    2.6  2.9   17.7 24.9   13.5 12.9
        coninnbimamba    6.0  6.4    2.1  2.3   17.1 23.8   12.7 12.2
        conextbimamba    5.9  6.0    2.0  2.3   16.6 23.4   12.3 11.5
        """,
    ),
    (
        8,
        ("librispeech_100",),
        ("millions", "dev", "dev other", "test", "test other"),
        """
        transformer         29.38  8.0 20.0  8.4 20.2
        transinnbimamba     33.32  8.8 23.3  9.4 23.6
        transextbimamba     40.42  8.4 22.4  8.7 23.1
        conformer_large     42.17  6.2 17.4  6.4 17.3
        conformer           34.23  6.3 17.4  6.5 17.3
        coninnbimamba       36.89  6.0 17.4  6.4 17.6
        coninnbimamba_large 49.90  6.1 17.3  6.3 17.3
        conextbimamba       41.59  5.9 17.1  6.0 17.2
        """,
    ),
    (
        8,
        ("librispeech",),
        ("millions", "dev", "dev other", "test", "test other"),
        """
        transformer      99.36  2.8 7.6  3.2 7.5
        transinnbimamba 103.35  2.5 7.4  3.0 7.3
        transextbimamba 110.04  2.5 6.9  2.8 6.9
        conformer       116.15  2.3 5.5  2.6 ?
        coninnbimamba   118.81  2.1 5.6  2.4 5.5
        conextbimamba   123.51  2.0 5.4  2.3 5.4
        """,
    ),
    (
        15,
        ("librispeech_100", "seame"),
        ("millions", "dev", "test"),
        """
        conformer        34.23  6.3  6.5   47.27 16.9 23.6
        transformer      29.38  8.0  8.4   29.38 17.7 24.5
        mamba            20.41 40.8 40     20.41 44.5 55.3
        mamba_large      32.52 38.8 39.2   28.78 45.5 55
        extbimamba       25.79 38.5 37.7   25.79 44.4 55.2
        extbimamba_large 33.52 37.8 37.2   33.52 43.6 54.3
        """,
    ),
    (
        16,  # "+ FFN" in both readings
        ("librispeech_100",),
        ("dev", "test"),
        """
        transformer              8.0  8.4
        transformer_no_residual 45.7 54.8
        transformer_no_ffn      23.2 25.4
        extbimamba              38.5 37.7
        extbimamba_residual     42.1 41.7
        extbimamba_residual_ffn 34.9 36.1
        extbimamba_ffn          34.9 36.1
        """,
    ),
    (
        17,
        ("asru", "seame"),
        ("millions", "dev", "test"),
        """
        transformer     30.86 13.7 13.1   29.86 17.7 24.5
        transinnbimamba 34.80 20.2 19.5   33.81 18.4 26.0
        transextbimamba 44.24 18.7 18     43.25 17.2 24.3
        conformer       48.27 12.8 12.2   47.27 16.9 23.6
        coninnbimamba   50.10 12.7 12.2   49.11 17.1 23.8
        conextbimamba   56.40 12.3 11.5   55.40 16.6 23.4
        """,
    ),
    (
        18,
        ("librispeech_100",),
        ("minutes", "RTF"),
        """
        conformer     21.4 0.179
        coninnbimamba 18.3 0.174
        conextbimamba 19.8 0.177
        """,
    ),
    (
        19,
        ("librispeech_100",),
        ("dev", "dev other", "test", "test other"),
        """
        conextbimamba            5.9 17.1  6.0 17.3
        conextbimamba_d_state32  5.9 17.1  6.0 17.3
        conextbimamba_d_conv2    6.0 17.1  6.2 17.3
        conextbimamba_expand4    5.9 17.1  6.0 17.3
        conextbimamba_A_random   6.0 17.2  6.2 17.4
        conextbimamba_A_s4d_real 6.1 17.2  6.2 17.5
        """,
    ),
    (
        20,
        ("librispeech_100",),
        ("dev", "dev other", "test", "test other"),
        """
        conextbimamba            5.9 17.1  6.0 17.3
        conextbimamba_no_macaron 6.1 17.7  6.3 17.9
        conextbimamba_no_swish   6.2 17.7  6.4 18.1
        conextbimamba_no_dropout 6.0 17.1  6.0 17.4
        conextbimamba_abs_pos    6.0 17.1  6.0 17.3
        """,
    ),
    (
        21,
        ("an4",),
        ("2048", "233", "666", "1024", "3407", "mean", "variance"),
        """
        conformer     4.0 8.2 6.1 4.4 27.4 10.02 77.71
        conextbimamba 3.8 3.8 4.8 3.8  6.5  4.54  1.11
        """,
    ),
]
#: Table 7's upper rows, "ESPnet", which are quoted: LibriSpeech-100, LibriSpeech-960, SEAME, ASRU.
ESPNETS = {
    "Conformer": ["6.3 / 6.5", "2.1 / 2.4", "16.6 / 23.3", "- / 12.2"],
    "Branchformer": ["6.1 / 6.3", "2.2 / 2.4", "- / -", "- / -"],
}


def _cells():
    for table, corpora, columns, rows in TABLES:
        places = [(corpus, column) for corpus in corpora for column in columns]
        for row in rows.strip().splitlines():
            model, *values = row.split()
            for (corpus, column), value in zip(places, values, strict=True):
                yield (corpus, model), table, column, value


#: Corpus and model -> table -> column -> what is printed.
PRINTED = {}
for _system, _table, _column, _value in _cells():
    PRINTED.setdefault(_system, {}).setdefault(_table, {})[_column] = _value


def millions(system):
    """The parameters of a corpus's model as a table prints them, or None.

    Table 17 before Table 15, which repeats LibriSpeech-100's Transformer for SEAME.
    """
    tables = PRINTED.get(system, {})
    counts = [tables[table]["millions"] for table in (8, 17, 15) if table in tables]
    return counts[0] if counts else None


def rates(system):
    """The error rates of a corpus's model as docs/paper.md has them, of all tables in one."""
    tables = PRINTED[system]
    columns = [_rate(tables, column) for column in ("dev", "test", "dev other", "test other")]
    dev, test, *others = filter(None, columns)
    return f"{dev} / {test}" + (f" ({' / '.join(others)})" if others else "")


def _rate(tables, column):
    """One rate, and in brackets what is another number in other tables."""
    printed = {table: row[column] for table, row in tables.items() if column in row}
    if not printed:
        return None
    if "?" in printed.values():
        return "not legible"
    first, *_ = printed.values()
    others = {table: rate for table, rate in printed.items() if float(rate) != float(first)}
    if not others:
        return first
    [other] = set(others.values())
    return f"{first} [{', '.join(f'T{table}' for table in others)}: {other}]"
