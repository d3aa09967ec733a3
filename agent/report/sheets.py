"""A small table of texts, for the terminal and for Markdown alike."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from agent.report.markdown import prose
from agent.text import one_line


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
                table.add_column(name, overflow="fold", max_width=max(8, width - sum(wide[1:]) - gap * (len(wide) - 1)))
        for row in self.rows:
            table.add_row(*map(one_line, row))
        return table

    def markdown(self) -> str:
        lines = [map(prose, self.columns), ("---", *("---:" for _ in self.columns[1:]))]
        lines += [(prose(row[0]), *row[1:]) for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
