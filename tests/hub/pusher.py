"""Pushes to the Hub at HF_ENDPOINT with the real client; run as a script, in a process of its own.

    pusher.py with-hfvlm FOLDER WORK      pushes what lies in FOLDER
    pusher.py without-hfvlm NAME WORK     loads NAME from the Hub without hfvlm, saves and pushes it again

Writes what came back to WORK/<mode>.json.
"""

import json
import sys
from pathlib import Path


def attempt(function, *args, **kwargs) -> str:
    """The error that a call raises, or what it returns, as text."""
    try:
        return str(function(*args, **kwargs))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def with_hfvlm(folder: str, work: Path) -> dict:
    from huggingface_hub import constants
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import hfvlm  # noqa: F401

    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    seen = {
        "wrong_token": attempt(model.push_to_hub, "me/refused", token="hf_wrong"),
        "url": str(model.push_to_hub("me/captioner", processor=processor, private=True, tags=["dogs"])),
    }
    model.push_to_hub("me/captioner", commit_message="Better weights")
    model.push_to_hub("me/captioner", tags=["cats"], revision="v2")
    processor.push_to_hub("me/processor")
    seen["pull_request"] = model.push_to_hub("me/captioner", create_pr=True).pr_url

    # what else lies in the folder is not what was saved
    (work / "run").mkdir()
    (work / "run" / "optimizer.pt").write_bytes(b"of the training")
    model.save_pretrained(work / "run", push_to_hub=True, repo_id="me/run", commit_message="After training")
    processor.save_pretrained(work / "named-by-folder", push_to_hub=True)

    constants.ENDPOINT = "http://127.0.0.1:9"  # nothing listens there
    seen["unreachable"] = attempt(model.push_to_hub, "me/unreachable")
    return seen


def without_hfvlm(name: str, work: Path) -> dict:
    from clean import Warnings
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    with Warnings() as warnings:
        model.save_pretrained(work / "downloaded")
        processor.save_pretrained(work / "downloaded")
        model.push_to_hub("me/again", processor=processor)
    pipe = pipeline("image-to-text", model="me/again", trust_remote_code=True, device="cpu")
    return {
        "module": type(model).__module__,
        "warnings": warnings.messages,
        "caption": pipe(str(work / "photo.png"), max_new_tokens=6)[0]["generated_text"],
    }


if __name__ == "__main__":
    mode, what, work = sys.argv[1:]
    if mode == "without-hfvlm":
        import clean  # noqa: F401  (blocks hfvlm)
    seen = (with_hfvlm if mode == "with-hfvlm" else without_hfvlm)(what, Path(work))
    Path(work, f"{mode}.json").write_text(json.dumps(seen))
