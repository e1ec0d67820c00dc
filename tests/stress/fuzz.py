"""Configurations and data files drawn at random, through the command line: taken as they say, or
refused in one line; nothing counted wrongly, nothing dropped silently, no traceback."""

import functools
import io
import json
import os
import shutil
import sys
import traceback

BATCH = 50
"""Cases that one forked child does, one after the other."""

ODD = [
    "", " ", "{", "[", "]", "'", '"', ":", "a: b: c", "*x", "&x", "%", "@a", "`",
    "!!python/object:os.system", "null", "~", "true", "False", "yes", "no", "0", "1", "-1", "2",
    "3", "0.5", "1e-3", "1e400", "-1e400", ".nan", "nan", ".inf", "-.inf", "inf", "1_000", "0x10",
    "007", "1,2", "[1, 2]", "{a: 1}", "None", "x", "é", "\u202eabc", "a\x1b[31mb", "a\nb", "a\tb",
    "ü" * 300, "9" * 40, "-0", "1.5", "100000000000000000000", "dpo", "kto", "auto", "all-linear",
    "bfloat16", "float32", "steps", "epoch", "best", "cosine", "linear",
]  # fmt: skip
"""Values that hardly anybody means."""


def kind_of(seed, count, shares):
    """Which kind a seed's case is: the kinds follow each other, each with its share of all."""
    place = (seed + 0.5) / count
    for kind, share in shares.items():
        if place < share:
            return kind
        place -= share
    raise AssertionError("the shares do not add up to 1")


class Began(SystemExit):
    """Training would begin now."""


def stop_where_training_begins(seen):
    """A trainer raises when it is asked to begin, and is left in ``seen``."""
    from trueline.diffusion import DiffusionTrainer
    from trueline.training import AlignmentTrainer

    def begin(self, *_, **__):
        seen.append(self)
        raise Began(0)

    AlignmentTrainer.begin = DiffusionTrainer.begin = begin


def begin_again():
    """Forget accelerate's state, of which a process has but one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def one_line(err):
    """Whether what was said is one clear line, or the command line's own usage."""
    errors = sum(line.startswith(("error: ", "Error: ")) for line in err.splitlines())
    usage = "no such option" in err.lower() or "Usage:" in err
    return (errors == 1 or usage) and "Traceback" not in err


@functools.cache
def built_once():
    """The command line's entry point; its parser, which hardly any case changes, is built once."""
    import typer

    from trueline.cli import app

    app.app = typer.main.get_command(app.app)
    return app.main


def in_this_process(words):
    """``trueline WORDS`` here: its exit code and what it said on stderr."""
    main = built_once()
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdout, sys.stderr, sys.argv
    sys.stdout, sys.stderr, sys.argv = out, err, ["trueline", *words]
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        code = 99
        err.write(traceback.format_exc())
    finally:
        sys.stdout, sys.stderr, sys.argv = before
    in_this_process.out = out.getvalue()
    return code, err.getvalue()


def in_batches(batch, folder, count, done, keep):
    """Rows of all seeds, each batch of them in a child and a folder of its own."""
    rows = list(done)
    had = {row["seed"] for row in rows}
    left = [seed for seed in range(count) if seed not in had]
    while left:
        seeds, left = left[:BATCH], left[BATCH:]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder.parent / f"{folder.name}.rows"
        log.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            with log.open("w") as file:
                for row in batch(seeds):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        made = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if status != 0 and len(made) < len(seeds):  # the child itself fell over at that one
            made.append(
                {"seed": seeds[len(made)], "ok": False, "said": f"the process ended: {status}"}
            )
            left = [*seeds[len(made) :], *left]
        for row in made:
            rows.append(row)
            keep(row)
    return rows
