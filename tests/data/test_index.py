"""The index: only what changed is embedded, nothing of two models is mixed, nothing is lost or half-written."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from two_towers import stock_clip, stock_processor

from hfvlm.data.fingerprint import fingerprint
from hfvlm.data.index import ImageIndex, ImageIndexError, Stamp, find_faiss
from hfvlm.data.indexing import INDEX_PATH, update_index
from hfvlm.data.sheet import write_sheet
from hfvlm.embedder import Embedder


class Counting(Embedder):
    """Notes what it is asked to embed, and can be interrupted."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: list[str] = []
        self.interrupt_after: int | None = None

    def image_batches(self, images, on_error=None):
        images = list(images)
        for number, batch in enumerate(super().image_batches(images, on_error)):
            if self.interrupt_after == number:
                raise KeyboardInterrupt
            self.seen += [images[position].name for position in batch[0]]
            yield batch


@pytest.fixture(scope="module")
def model():
    return stock_clip()


@pytest.fixture
def embedder(model):
    return Counting(model, stock_processor(), batch_size=2)


@pytest.fixture
def folder(tmp_path):
    """Five photos, one of them in a folder of its own."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png", "d.png", "more/é e.png")):
        photo(folder / name, number)
    return folder


def photo(path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)


def rows(index: ImageIndex) -> dict[str, torch.Tensor]:
    return dict(zip(index.paths, index.embeddings.float()))


def test_holds_the_embeddings_of_the_files(folder, embedder):
    index = update_index(folder, embedder, "tiny")
    assert index.paths == ["a.png", "b.png", "c.png", "d.png", "more/é e.png"]
    expected = embedder.images([folder / name for name in index.paths])
    torch.testing.assert_close(index.embeddings.float(), expected, atol=1e-3, rtol=0)
    saved = ImageIndex.load(folder / INDEX_PATH)
    assert saved.embeddings.dtype == torch.float16
    assert torch.equal(saved.embeddings, index.embeddings)
    assert (saved.files, saved.model, saved.fingerprint) == (index.files, "tiny", index.fingerprint)
    assert [path.name for path in (folder / INDEX_PATH).parent.iterdir()] == [INDEX_PATH.name]


def test_float32_on_disk(folder, embedder):
    index = update_index(folder, embedder, "tiny", dtype=torch.float32)
    torch.testing.assert_close(index.embeddings, embedder.images([folder / name for name in index.paths]))
    assert ImageIndex.load(folder / INDEX_PATH).embeddings.dtype == torch.float32


def test_embeds_only_what_changed(folder, embedder):
    before = rows(update_index(folder, embedder, "tiny"))
    written = os.stat(folder / INDEX_PATH).st_mtime_ns
    embedder.seen.clear()
    update_index(folder, embedder, "tiny")
    assert embedder.seen == []
    assert os.stat(folder / INDEX_PATH).st_mtime_ns == written  # a read-only folder can be searched

    photo(folder / "b.png", 7)
    photo(folder / "bb.png", 8)
    (folder / "d.png").unlink()
    (folder / "c.png").rename(folder / "z.png")
    after = rows(update_index(folder, embedder, "tiny"))
    assert embedder.seen == ["b.png", "bb.png", "z.png"]
    assert list(after) == ["a.png", "b.png", "bb.png", "z.png", "more/é e.png"]
    assert torch.equal(after["a.png"], before["a.png"])
    assert torch.equal(after["more/é e.png"], before["more/é e.png"])
    torch.testing.assert_close(after["z.png"], before["c.png"], atol=1e-3, rtol=0)
    expected = embedder.images([folder / name for name in after])
    torch.testing.assert_close(torch.stack(list(after.values())), expected, atol=1e-3, rtol=0)


def test_contact_sheets_of_earlier_searches_are_passed_over(folder, embedder):
    before = update_index(folder, embedder, "tiny").paths
    write_sheet(folder / "sheet.png", [(0.5, str(folder / "a.png"))], "a dog")
    write_sheet(folder / "b.png", [(0.5, str(folder / "a.png"))], "a dog")  # in the place of an image
    index = update_index(folder, embedder, "tiny")
    assert index.paths == [name for name in before if name != "b.png"]
    assert "sheet.png" not in embedder.seen
    written = os.stat(folder / INDEX_PATH).st_mtime_ns
    update_index(folder, embedder, "tiny")
    assert os.stat(folder / INDEX_PATH).st_mtime_ns == written


def test_only_removed_files(folder, embedder):
    update_index(folder, embedder, "tiny")
    (folder / "a.png").unlink()
    embedder.seen.clear()
    assert "a.png" not in update_index(folder, embedder, "tiny").paths
    assert "a.png" not in ImageIndex.load(folder / INDEX_PATH).paths
    assert embedder.seen == []


def test_same_size_but_another_time_is_another_file(folder, embedder):
    update_index(folder, embedder, "tiny")
    embedder.seen.clear()
    os.utime(folder / "a.png", ns=(1, 1))
    update_index(folder, embedder, "tiny")
    assert embedder.seen == ["a.png"]


@pytest.mark.parametrize("flush_seconds", [0.0, 1000.0])
def test_an_interrupted_index_goes_on_where_it_stopped(folder, embedder, flush_seconds):
    embedder.interrupt_after = 1
    with pytest.raises(KeyboardInterrupt):
        update_index(folder, embedder, "tiny", flush_seconds=flush_seconds)
    assert ImageIndex.load(folder / INDEX_PATH).paths == ["a.png", "b.png"]
    embedder.interrupt_after = None
    embedder.seen.clear()
    assert len(update_index(folder, embedder, "tiny")) == 5
    assert embedder.seen == ["c.png", "d.png", "é e.png"]


def test_writes_from_time_to_time(folder, embedder, monkeypatch):
    sizes, save = [], ImageIndex.save
    monkeypatch.setattr(ImageIndex, "save", lambda index, path: (sizes.append(len(index)), save(index, path)))
    update_index(folder, embedder, "tiny", flush_seconds=0.0)
    assert sizes == [2, 4, 5, 5]


def test_a_failed_write_leaves_the_old_index(folder, embedder, monkeypatch):
    update_index(folder, embedder, "tiny")
    before = (folder / INDEX_PATH).read_bytes()
    photo(folder / "new.png", 9)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hfvlm.data.index.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        update_index(folder, embedder, "tiny")
    assert (folder / INDEX_PATH).read_bytes() == before
    assert [path.name for path in (folder / INDEX_PATH).parent.iterdir()] == [INDEX_PATH.name]


def test_broken_images_are_reported_and_the_rest_indexed(folder, embedder):
    (folder / "aa.png").write_text("no image")
    (folder / "zz.png").touch()
    (folder / "link.png").symlink_to(folder / "gone")
    errors, progress = [], []
    index = update_index(
        folder, embedder, "tiny", on_error=errors.append, on_progress=lambda *done: progress.append(done)
    )
    assert len(index) == 5
    assert [name for name in ("aa.png", "zz.png", "link.png") if any(name in error for error in errors)] == [
        "aa.png",
        "zz.png",
        "link.png",
    ]
    assert progress[-1] == (7, 7)
    photo(folder / "aa.png", 5)  # mended
    assert "aa.png" in update_index(folder, embedder, "tiny").paths


def test_broken_images_are_opened_once(folder, embedder, monkeypatch):
    (folder / "aa.png").write_text("no image")
    first, again, opened = [], [], []
    before = update_index(folder, embedder, "tiny", on_error=first.append)
    written = os.stat(folder / INDEX_PATH).st_mtime_ns
    monkeypatch.setattr(embedder, "image_batches", lambda images, on_error: opened.extend(images) or iter(()))
    monkeypatch.setattr("hfvlm.data.indexing._check_writable", lambda path: pytest.fail("needs to write"))
    after = update_index(folder, embedder, "tiny", on_error=again.append)
    assert opened == []
    assert first == again == [f"{folder / 'aa.png'}: is not an image that can be read"]
    assert (after.files, after.broken) == (before.files, before.broken)
    assert os.stat(folder / INDEX_PATH).st_mtime_ns == written
    assert list(rows(after)) == ["a.png", "b.png", "c.png", "d.png", "more/é e.png"]


def test_a_broken_image_that_is_removed_or_replaces_a_good_one(folder, embedder):
    (folder / "aa.png").write_text("no image")
    update_index(folder, embedder, "tiny")
    (folder / "aa.png").unlink()
    (folder / "a.png").write_text("no image any more")
    errors = []
    assert "a.png" not in update_index(folder, embedder, "tiny", on_error=errors.append).paths
    assert errors == [f"{folder / 'a.png'}: is not an image that can be read"]
    saved = ImageIndex.load(folder / INDEX_PATH)
    assert (list(saved.broken), len(saved)) == (["a.png"], 4)


def test_what_the_system_refuses_is_tried_again_and_nothing_written(folder, embedder, monkeypatch):
    update_index(folder, embedder, "tiny")
    written = os.stat(folder / INDEX_PATH).st_mtime_ns
    photo(folder / "locked.png", 9)
    opened, image_open = [], Image.open

    def denied(source, *args, **kwargs):
        opened.append(source)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    for _ in range(2):
        assert len(update_index(folder, embedder, "tiny")) == 5
    assert opened == [folder / "locked.png"] * 2
    assert os.stat(folder / INDEX_PATH).st_mtime_ns == written
    monkeypatch.setattr(Image, "open", image_open)
    assert "locked.png" in update_index(folder, embedder, "tiny").paths


def test_another_model_is_refused_until_the_index_is_rebuilt(folder, embedder, tmp_path):
    update_index(folder, embedder, "first")
    other = Counting(stock_clip(seed=1), stock_processor())
    with pytest.raises(
        ImageIndexError, match=r"made by another model, 'first' .* not by 'second' .*--rebuild.*--index"
    ):
        update_index(folder, other, "second")
    assert ImageIndex.load(folder / INDEX_PATH).model == "first"
    assert update_index(folder, other, "second", path=tmp_path / "own" / "second.safetensors").model == "second"
    assert len(update_index(folder, embedder, "first")) == 5
    assert update_index(folder, other, "second", rebuild=True).model == "second"


@pytest.mark.parametrize("damage", [b"", b"nonsense", "cut", "foreign", "rows"])
def test_a_damaged_index_is_refused_until_it_is_rebuilt(folder, embedder, damage):
    index, path = update_index(folder, embedder, "tiny"), folder / INDEX_PATH
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "foreign":
        embedder.model.save_pretrained(folder / "saved")
        (folder / "saved" / "model.safetensors").rename(path)
    elif damage == "rows":
        index.embeddings = index.embeddings[:3]
        index.save(path)
    else:
        path.write_bytes(damage)
    with pytest.raises(ImageIndexError, match="--rebuild"):
        update_index(folder, embedder, "tiny")
    assert len(update_index(folder, embedder, "tiny", rebuild=True)) == 5


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_file_that_is_no_index_is_left_alone(folder, embedder, rebuild):
    embedder.model.save_pretrained(folder / "saved")
    for path in (folder / "a.png", folder / "saved" / "model.safetensors"):
        before = path.read_bytes()
        with pytest.raises(ImageIndexError, match="is not an index; name another file with --index"):
            update_index(folder, embedder, "tiny", path=path, rebuild=rebuild)
        assert path.read_bytes() == before
    assert embedder.seen == []


def test_a_damaged_index_elsewhere_is_rebuilt(folder, embedder, tmp_path):
    path = tmp_path / "own.safetensors"
    update_index(folder, embedder, "tiny", path=path)
    path.write_bytes(path.read_bytes()[:-10])
    assert len(update_index(folder, embedder, "tiny", path=path, rebuild=True)) == 5


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_embedded(folder, embedder):
    (folder / ".hfvlm").touch()  # a file where the index's folder should be
    with pytest.raises(OSError, match=r"the index cannot be written here .*--index PATH"):
        update_index(folder, embedder, "tiny")
    assert embedder.seen == []
    with pytest.raises(OSError, match="the index cannot be written here"):
        update_index(folder, embedder, "tiny", path=folder / "more")


def test_no_folder_and_no_image(tmp_path, embedder):
    with pytest.raises(NotADirectoryError, match="gone: is not a folder"):
        update_index(tmp_path / "gone", embedder, "tiny")
    index = update_index(tmp_path, embedder, "tiny")
    assert len(index) == 0
    with pytest.raises(ImageIndexError, match="holds no image"):
        index.search(torch.ones(1, 20), 1)
    with pytest.raises(FileNotFoundError, match="no index here"):
        ImageIndex.load(tmp_path / "gone")


class FlatProduct:
    """The part of faiss that the index uses, in NumPy."""

    def __init__(self, dim: int):
        self.rows = np.zeros((0, dim), np.float32)

    def add(self, rows: np.ndarray) -> None:
        assert rows.dtype == np.float32
        self.rows = np.concatenate([self.rows, rows])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.rows.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, 1), order


class StandIn:
    IndexFlatIP = FlatProduct


def test_faiss_and_the_matrix_product_find_the_same():
    faiss = find_faiss() or StandIn
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(300, 16, generator=generator), dim=-1).half()
    index = ImageIndex("f", "m", {f"{i}.png": Stamp(i, i) for i in range(300)}, vectors)
    queries = torch.nn.functional.normalize(torch.randn(4, 16, generator=generator), dim=-1)
    for top_k in (1, 12, 1000):
        scores, found = index.search(queries, top_k)
        faiss_scores, faiss_found = index.search(queries, top_k, faiss)
        assert torch.equal(found, faiss_found)
        torch.testing.assert_close(scores, faiss_scores, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        index.search(queries, 0, faiss)
    with pytest.raises(ValueError, match=r"must be \[q, 16\]"):
        index.search(torch.ones(1, 3), 1, faiss)


@pytest.mark.parametrize("broken", ["query", "index"])
@pytest.mark.parametrize("with_faiss", [False, True])
def test_nan_is_no_result(broken, with_faiss):
    faiss = (find_faiss() or StandIn) if with_faiss else None
    index = ImageIndex("f", "m", {"a.png": Stamp(1, 1), "b.png": Stamp(2, 2)}, torch.eye(2))
    query = torch.eye(2)[:1]
    (query if broken == "query" else index.embeddings)[0] = torch.nan
    with pytest.raises(ImageIndexError, match="hold NaN"):
        index.search(query, 2, faiss)


def test_faiss_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert find_faiss() is None


def test_fingerprint_tells_models_apart_and_nothing_else(model, tmp_path):
    image_processor = stock_processor().image_processor
    mark = fingerprint(model, image_processor)
    assert len(mark) == 16
    assert fingerprint(stock_clip(), image_processor) == mark
    model.save_pretrained(tmp_path)
    assert fingerprint(type(model).from_pretrained(tmp_path), image_processor) == mark
    assert fingerprint(type(model).from_pretrained(tmp_path, dtype=torch.bfloat16), image_processor) == mark
    assert fingerprint(stock_clip(seed=1), image_processor) != mark
    smaller = stock_processor().image_processor
    smaller.resample = 2
    assert fingerprint(model, smaller) != mark
    trained = stock_clip()
    with torch.no_grad():
        trained.visual_projection.weight += 0.01
    assert fingerprint(trained, image_processor) != mark
    trained = stock_clip()
    trained.config.vision_config.hidden_act = "gelu"
    assert fingerprint(trained, image_processor) != mark


def test_settings_of_training_make_no_other_model():
    image_processor = tiny_processor("hfvlm_clip").image_processor
    model = tiny_model("hfvlm_clip", "AutoModel")
    mark, config = fingerprint(model, image_processor), model.config
    for part, settings in (
        (config, {"micro_batch_size": 8, "loss_chunk_size": 8, "label_smoothing": 0.1, "objective": "sigmoid"}),
        (config, {"gather_features": False, "local_loss": True, "max_logit_scale": 50.0, "initializer_range": 0.1}),
        (config, {"logit_scale_init_value": 1.0, "id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}),
        (config.vision_config, {"attention_dropout": 0.1, "hidden_dropout_prob": 0.1}),
    ):
        for name, value in settings.items():
            setattr(part, name, value)
            assert fingerprint(model, image_processor) == mark, name
    for part, name, value in (
        (config.text_config, "causal", False),
        (config.text_config, "pooling", "eos"),
        (config.vision_config, "layer_norm_eps", 1e-3),
        (config.vision_config, "num_attention_heads", 2),
    ):
        before = getattr(part, name)
        setattr(part, name, value)
        assert fingerprint(model, image_processor) != mark, name
        setattr(part, name, before)
