"""A training's log as lines of what was said, without what loggers, ranks and progress bars put around it.

Out of it come the exception lines in order, each with the frames above it, and which of them belong to the end
of the run: a burst of exceptions without progress in between is one failure seen from several places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from agent.text import ANSI

BAR = re.compile(r"(\[\d+:\d+(?::\d+)?(?:<[^\]]*|,[^\]]*)\])(?=\S)")
"""End of a progress bar (`[00:00<?, ?it/s]`) with the next message glued to it."""
PREFIX = re.compile(
    r"""^(?:
        # [rank0]: [core.py:11] [ 12.345678] [1,0]<stderr>:
        \[(?!Errno|WinError|enforce)(?:[^\[\]]|\[[^\[\]]*\]){1,120}\](?:<std\w+>)?:?[ ]*
      | \([^()]{0,40}(?:pid|rank)=[^()]*\)[ ]*                         # (EngineCore pid=90), (head, rank=0, pid=4773)
      | \(raylet\)[ ]
      | [\w./-]+[ ](?=\[(?:stderr|stdout|rank|default))                          # the name of a node
      | [A-Z][a-z]{2}[ ]{1,2}\d{1,2}[ ]\d\d:\d\d:\d\d[ ]\S+[ ](?=\S+:)    # Nov 26 23:02:11 host of syslog
      | kernel:[ ]                                                     # syslog names who speaks
      | (?:python3?|run|worker|trainer)\[\d+\]:[ ]                      # python[2412]:
      | (?:rank|Rank)[ ]?\d+:[ ]*
      | \d{1,4}:[ ](?=\S)                                              # 3: of srun --label
      | [A-Za-z][\w.-]{0,39}[ ]+\|[ ]                                           # trainer-1  | of docker compose
      | [│┃║|][ ]                                                      # a console that draws boxes
      | >+[ ]?(?=\S)                                                   # quoted
      | std(?:err|out)(?:[ ]F|/[A-Z]+)[ ]+                             # of Kubernetes and of services
      | \w+/(?:ERROR|WARNING|INFO)[ ]+
      | (?:worker|node|host|ip-[\d-]+)[\w.-]*:[ ](?=\S)                 # worker-3: of pdsh
      | [\w.-]+:\d+:\d+[ ](?:\[\d+\][ ])?(?=NCCL|RCCL|\w+\.cc:|[\w/]+\.[ch]c?:)   # host:pid:tid [0] of NCCL
      | [EWIF]\d{4}[ ]\d\d:\d\d:\d\d\.\d+[ ]+\d+[ ](?=\S)                # E1118 10:00:00.000000 123 of glog
        # E xla/client.cc:96] of glog
      | (?:[EWIF][ ])?[\w./-]+\.(?:(?:py|cc|cpp|cu|h|rs|ts):\d+\]|(?:cc|cpp|ts):\d+:(?=[ ]))[ ]*
      | E[A-Z]\d{4}:?[ ]                                               # EI0006: of Ascend
      | \d{4}-\d\d-\d\d-\d\d:\d\d:[\d.]+[ ]
      | (?:INFO|WARNING|ERROR):\w+:(?=\S)                              # INFO:tensorflow:
      | (?:Last[ ]error|Failed|what\(\)):[ ]+(?=\S)
      | \d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)[ ]                   # of CI services
      | \d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:[+-]\d\d:?\d\d|Z)?[ ,|:-]*   # a time stamp
      | (?:\d\d-\d\d[ ])?\d\d:\d\d:\d\d(?:[.,]\d+)?[ ]                 # 03-06 06:49:30
      | \#\#\[error\]
        # ERROR:, ERROR |, ERROR 03-06 06:49:30
      | (?:ERROR|WARNING|CRITICAL|FATAL|INFO|Error)[ ]*(?:\||:|(?=\[)|-[ ]|(?=\d\d-\d\d[ ]\d\d:))[ ]*
      | [\w.]+:\w+:\d+[ ]-[ ]                                          # autotrain.trainers.common:wrapper:121 -
      | [\w.]+[ ]-[ ](?:ERROR|CRITICAL|WARNING)[ ]-[ ]                 # finetrainers - ERROR -
      | !!![ ][^!]*!!![ ]                                              # !!! Exception during processing !!!
      | Exception[ ]has[ ]occurred:[ ]                                 # a debugger
      | (?:FAILED|ERROR)[ ]\S+::\S+[ ]-[ ]                             # pytest
      | Error[ ]during[ ][\w ]+:[ ]
      | E[ ]{3,7}(?=\S)                                                # pytest's marker column
      | "(?:message|error)":[ ]*"(?=\w)                             # an error that was written as JSON
      | libc\+\+abi:[ ]terminating[ ](?:due[ ]to|with)[ ]uncaught[ ]exception[ ]of[ ]type[ ](?:\w+::)*
      | UnfilteredStackTrace:[ ]
      | (?:RuntimeError:[ ])?Error[ ]in[ ]model[ ]execution[^:]*:[ ]
      | (?:Process[ ]group|NCCL|HCCL)[ ]watchdog[ ]thread[ ]terminated[ ]with[ ]exception:[ ]
      | (?:RuntimeError:[ ])?NCCL[ ]communicator[ ]was[ ]aborted[ ]on[ ]rank[ ]\d+\.
        [ ]+Original[ ]reason[ ]for[ ]failure[ ]was:[ ]
    )""",
    re.VERBOSE,
)
BORDER = re.compile(r"\s*[│┃║]\s*$")
TWICE = re.compile(r"^(?P<type>[A-Z]\w*?(?:Error|Exception))(?P=type)+(?:: *)+")
"""Two processes that wrote at the same moment."""
BAR_ONLY = re.compile(r"^[^\S\n]*(?:[^\n|%]{0,80}[: ])?\s*\d{1,3}%\|[^|]*\|[^\n]*$")
"""A state of a progress bar and nothing else."""
LONGEST_LINE = 2000
"""Of a line that is looked at; an exception's type and the beginning of its message are within that."""
NOTEBOOK = re.compile(r"^(?P<type>\w+(?:Error|Exception)(?:\(\w+\))?)\s{3,}Traceback \(most recent call last\)")
"""A notebook begins with the type; what it said stands at the end, which may be cut off."""
EXCEPTION = re.compile(
    r"^(?P<type>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Failed|Failure|Timeout|Fault|OutOfResources"
    r"|Expired|OutOfMemory)(?:\([A-Za-z]\w*\))?)(?::(?P<message>.*)|\s*)$"
)
TRACEBACK = re.compile(r"^Traceback \(most recent call last\):")
FRAME = re.compile(r'^\s*File "?(?P<file>[^",]+)"?, line \d+')
CHAINED = re.compile(
    r"(?:During handling of the above exception|The above exception was the direct cause)\b", re.IGNORECASE
)
IGNORED = re.compile(r"^Exception ignored in")
STATED = re.compile(
    r"\b(?:error|errors|failed|fails?|failures?|fatal|exceptions?|abort\w*|cannot|can't|could not|couldn't|unable"
    r"|unavailable|killed|killing|exceeded|timed out|times out|timeout|invalid|abnormal|unsupported|not supported"
    r"|exhausted|detected|stalled|stuck|low on resource|is (?:inf|nan))\b|_(?:ERROR|EXCEEDED|EXHAUSTED|UNAVAILABLE)\b",
    re.IGNORECASE,
)
"""Words with which a line says that something went wrong."""
COUNTED = re.compile(r"\b(?:errors?|failed|failures|killed|timeouts?)\s*[=:]\s*0\b", re.IGNORECASE)
GUESS = re.compile(
    r"(?:potential root causes?|common causes|possible (?:causes?|reasons?)"
    r"|(?:might|may|could) (?:be (?:due|caused)|indicate)"
    r"|this (?:usually|typically) (?:happens|means)|solution:)",
    re.IGNORECASE,
)
"""What comes after it in a line is a program's list of guesses."""
QUIET = re.compile(r"\b(?:INFO|DEBUG|TRACE)\b")
RECOVERED = re.compile(
    r"(?<!not )\b(?:skipping (?:this |the )?(?:batch|step|row|sample|file|upload|push)|retrying|will retry|trying again"
    r"|retry \d+ ?(?:/|of) ?\d+|falling back|continuing|(?:does not|doesn't) fit, (?:using|trying)"
    r"|reduc(?:ing|ed) (?:the )?(?:batch|micro)\w*|trying (?:a )?smaller)\b",
    re.IGNORECASE,
)
PROGRESS = re.compile(
    r"^\s*(?:\d+%\|)|\d+(?:\.\d+)?(?:it/s|s/it)[\],]|^\{?['\"]?(?:train_)?loss['\"]?\s*[=:]\s*\d"
    r"|^(?:step|epoch|cycle|iteration)\b[ :=\[]*\d",
    re.IGNORECASE,
)
TELEMETRY = re.compile(
    r"\b(?:wandb[/\\](?:sdk|apis|wandb_run)|mlflow[/\\](?:tracking|store|utils)|tensorboard(?:X)?[/\\]|comet_ml[/\\]"
    r"|neptune[/\\](?:internal|new)|clearml[/\\]backend|aim[/\\](?:sdk|ext|storage))"
)
"""A tracker that cannot send does not end a training."""


@dataclass(frozen=True)
class Line:
    number: int
    """Its place in the list, from 0."""
    row: int
    """Line of the log that it stands on, from 0; states of a progress bar share one."""
    raw: str
    text: str
    """Without prefixes; indentation after them stays."""


@dataclass(frozen=True)
class Thrown:
    """One exception line, with the lines of the traceback above it."""

    line: Line
    type: str
    """Last part of the dotted name; `RayTaskError(KeyError)` is KeyError."""
    message: str
    frames: tuple[str, ...]
    """Files from the outermost call inward."""
    above: tuple[str, ...]
    """The traceback's own lines, and of a chained one only the last link's."""


def read_lines(log: str) -> list[Line]:
    """The log's lines, each state of a redrawn progress bar on its own; what is glued to a bar is split off."""
    lines: list[Line] = []
    for row, raw in enumerate(ANSI.sub("", log).replace("\r\n", "\n").split("\n")):
        drawn = [part[:LONGEST_LINE] for part in raw.split("\r") if part.strip()] or [""]
        for part in BAR.sub("\\1\n", "\n".join(drawn)).split("\n"):
            lines.append(Line(len(lines), row, part, strip_prefixes(part)))
    return lines


def is_bar(text: str) -> bool:
    """A progress bar, which other processes draw between the lines of a traceback."""
    return "%|" in text and BAR_ONLY.match(" ".join(text.split())) is not None


def strip_prefixes(text: str) -> str:
    """Take off what ranks, actors and loggers put in front, until nothing comes off. Plain indentation stays."""
    bare = BORDER.sub("", text)
    for _ in range(12):
        stripped = PREFIX.sub("", bare.lstrip() if PREFIX.match(bare.lstrip()) else bare, count=1)
        if stripped == bare:
            break
        bare = stripped
    return TWICE.sub(r"\g<type>: ", bare)


def exceptions(lines: list[Line]) -> list[Thrown]:
    """Exception lines that could have ended the run, in order."""
    found: list[Thrown] = []
    start = 0
    for position, line in enumerate(lines):
        if not is_exception(line):
            continue
        match = _exception(line)
        assert match is not None
        above = [earlier.text for earlier in lines[start:position] if not is_bar(earlier.text)]
        start = position + 1
        thrown = _thrown(line, match, above)
        if not _harmless(above, thrown) and not got_over(lines, position):
            found.append(thrown)
    return found


def is_exception(line: Line) -> bool:
    """An exception's type at the start, unless it is a warning or stands indented inside something else."""
    match = _exception(line)
    return match is not None and not match.group("type").endswith("Warning") and not line.text.startswith("    ")


def without_guesses(text: str) -> str:
    found = GUESS.search(text)
    return text[: found.start()] if found else text


def is_code(lines: list[Line], position: int) -> bool:
    """A line of source that a traceback shows."""
    return position > 0 and FRAME.match(lines[position - 1].text) is not None


def states_failure(line: Line) -> bool:
    """An error's message, as far as its words tell: not what a logger calls information, nor a count of none."""
    if QUIET.search(line.raw) and not re.search(r"[Ee]rror (?:reported|raised)|Exception", line.raw):
        return False
    if "Warning" in line.text[:60] or COUNTED.search(line.text):
        return False
    return is_exception(line) or STATED.search(line.text) is not None


def _exception(line: Line) -> re.Match[str] | None:
    text = line.text.strip()
    return EXCEPTION.match(text) or NOTEBOOK.match(text)


def got_over(lines: list[Line], position: int) -> bool:
    """The training says in the next lines that it skips, retries or goes on."""
    following = [line for line in lines[position + 1 : position + 12] if not is_bar(line.text)][:2]
    return any(RECOVERED.search(line.text) for line in following if not is_exception(line))


def last_progress(lines: list[Line]) -> int:
    """Position after the last place where two lines of progress stand within ten; 0 where there is none."""
    steps = [line.number for line in lines if PROGRESS.search(line.text)]
    pairs = [later for earlier, later in pairwise(steps) if later - earlier <= 10]
    return pairs[-1] + 1 if pairs else 0


def _thrown(line: Line, match: re.Match[str], above: list[str]) -> Thrown:
    name = match.group("type")
    wrapped = re.search(r"\(([A-Za-z]\w*)\)$", name)
    heads = [number for number, text in enumerate(above) if TRACEBACK.match(text)]
    own = above[heads[-1] :] if heads else above[-60:]
    frames = tuple(frame.group("file") for text in own if (frame := FRAME.match(text)))
    return Thrown(
        line=line,
        type=wrapped.group(1) if wrapped else name.rsplit(".", 1)[-1],
        message=(match.groupdict().get("message") or "").strip(),
        frames=frames,
        above=tuple(own),
    )


def _harmless(above: list[str], thrown: Thrown) -> bool:
    """Raised in a destructor, where Python goes on, or in a tracker that could not send."""
    if any(IGNORED.match(text) for text in above[-40:]):
        return True
    return bool(thrown.frames) and TELEMETRY.search(thrown.frames[-1]) is not None


def final_burst(thrown: list[Thrown], lines: list[Line]) -> list[Thrown]:
    """The exceptions of the end: those after which the training made no progress before the next."""
    burst: list[Thrown] = []
    for one in reversed(thrown):
        if burst:
            between = lines[one.line.number + 1 : burst[0].line.number]
            chained = any(CHAINED.match(line.text.strip()) for line in between)
            if not chained and sum(1 for line in between if PROGRESS.search(line.text)) >= 2:
                break
        burst.insert(0, one)
    return burst
