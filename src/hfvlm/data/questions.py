"""Questions about images on disk, with their answers."""

import json
from pathlib import Path
from typing import Any


def read_questions(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """Reads `vqa.jsonl`: a line a question, `{"image": relative path, "question": ..., "split": ...}`.

    With them comes an `"answer"`, a string, or `"answers"`, a list of what each of several people answered.

    Returns:
        the rows of `split` (all if None): `image` resolved against the file's folder, and `answers`, always a list.

    Raises:
        ValueError: a line that is not such an object, by file and line; or no row in the split.
    """
    path = Path(path)
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(_row(json.loads(line), path.parent))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        splits = ", ".join(sorted({str(row.get("split")) for row in rows}))
        raise ValueError(f"{path} has no row of split {split!r}; it has {splits or 'no rows at all'}")
    return chosen


def _row(row: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"not an object with image, question and answer or answers, but {type(row).__name__}")
    for name in ("image", "question"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"has no {name!r} that is a string; it has {', '.join(row) or 'nothing'}")
    if "answers" not in row and "answer" not in row:
        raise ValueError(f"has neither 'answer' nor 'answers'; it has {', '.join(row)}")
    answers = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("'answer' must be a string, or 'answers' a list of at least one")
    return {**row, "image": folder / row["image"], "answers": answers}
