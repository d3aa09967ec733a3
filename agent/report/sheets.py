"""A small table of texts, for the terminal and for Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from agent.report.markdown import prose
from agent.text import one_line

LEAST_NAME = 8
"""Columns of the terminal that the names get at least."""


@dataclass(frozen=True)
class Sheet:
    columns: tuple[str, ...]
    """The first one is of names, the others are of numbers."""
    rows: tuple[tuple[str, ...], ...]

    def table(self, *, width: int = 100) -> Table:
        """Names fold where `width` is too little; numbers never do."""
        wide = [max(len(row[place]) for row in (self.columns, *self.rows)) for place in range(len(self.columns))]
        gap = 2 if sum(wide) + 2 * (len(wide) - 1) <= width else 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for place, name in enumerate(self.columns):
            if place:
                table.add_column(name, justify="right", no_wrap=True, min_width=wide[place])
            else:
                table.add_column(
                    name, overflow="fold", max_width=max(LEAST_NAME, width - sum(wide[1:]) - gap * (len(wide) - 1))
                )
        for row in self.rows:
            table.add_row(*map(one_line, row))
        return table

    def parts(self, width: int) -> list[Sheet]:
        """As many sheets, each with the names and some of the columns, as it takes to stay within `width`."""
        wide = [max(len(row[place]) for row in (self.columns, *self.rows)) for place in range(len(self.columns))]
        names = min(wide[0], LEAST_NAME)
        blocks: list[list[int]] = [[]]
        room = width - names
        for place, cells in enumerate(wide[1:], start=1):
            if blocks[-1] and cells + 1 > room:
                blocks.append([])
                room = width - names
            blocks[-1].append(place)
            room -= cells + 1
        return [
            Sheet(_chosen(self.columns, block), tuple(_chosen(row, block) for row in self.rows)) for block in blocks
        ]

    def markdown(self) -> str:
        lines = [map(prose, self.columns), ("---", *("---:" for _ in self.columns[1:]))]
        lines += [(prose(row[0]), *row[1:]) for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _chosen(row: tuple[str, ...], places: list[int]) -> tuple[str, ...]:
    return (row[0], *(row[place] for place in places))
