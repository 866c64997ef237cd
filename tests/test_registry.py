"""The table of architectures: finding a row, adding one from outside, and what the Auto classes learn of it."""

import subprocess
import sys

import pytest
import torch
import transformers
from tiny import tiny_config, tiny_processor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

import hfvlm
from hfvlm import registry
from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration
from hfvlm.models.blip.processing_blip import BlipProcessor


class LinearConfig(PreTrainedConfig):
    """A stranger's architecture, defined outside hfvlm."""

    model_type = "test_linear"

    width: int = 3


class LinearModel(transformers.PreTrainedModel):
    """One matrix."""

    config_class = LinearConfig

    def __init__(self, config: LinearConfig):
        super().__init__(config)
        self.matrix = torch.nn.Linear(config.width, config.width)
        self.post_init()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.matrix(inputs)


class OtherConfig(PreTrainedConfig):
    """Wants the same name."""

    model_type = "test_linear"


@pytest.fixture
def table(monkeypatch):
    """The table, put back as it was at the end; so are the Auto classes' own."""
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    for auto in (AutoModel, AutoModelForImageTextToText):
        monkeypatch.setattr(auto._model_mapping, "_extra_content", dict(auto._model_mapping._extra_content))
    configs = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    monkeypatch.setattr(configs, "_extra_content", dict(configs._extra_content))
    return registry.ARCHITECTURES


@pytest.mark.parametrize("name", ["blip", "hfvlm_blip"])
def test_an_architecture_is_found_by_either_name(name):
    row = registry.find(name)
    assert (row.model_type, row.name, row.title) == ("hfvlm_blip", "blip", "BLIP")


@pytest.mark.parametrize("name", ["blipp", "bilp", "BLIP", "hfvlm-blip", "blip2"])
def test_an_unknown_name_suggests_the_nearest(name):
    with pytest.raises(
        ValueError, match=rf"unknown architecture '{name}'; did you mean '(hfvlm_)?blip'\?.*Known: .*blip"
    ):
        registry.find(name)


def test_a_name_like_no_other_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown architecture 'qqqq'\. Known: .*blip") as error:
        registry.find("qqqq")
    assert "did you mean" not in str(error.value)


def test_public_names_are_the_registered_classes():
    assert hfvlm.BlipForConditionalGeneration is BlipForConditionalGeneration
    assert {"BlipConfig", "BlipProcessor", "BlipModel", "pipeline", "register"} <= set(dir(hfvlm))
    rows = registry.ARCHITECTURES.values()
    classes = {name for row in rows for name, path in row.classes.items() if path.startswith("hfvlm.")}
    autos = {name for row in rows for name in row.heads if not hasattr(transformers, name)}
    functions = {"pipeline", "register", "load_model", "load_model_and_preprocess", "__version__"}
    assert set(hfvlm.__all__) == classes | autos | functions
    assert all(hasattr(hfvlm, name) for name in hfvlm.__all__)
    with pytest.raises(AttributeError, match="module 'hfvlm' has no attribute 'BlopModel'"):
        hfvlm.BlopModel  # noqa: B018


def test_a_strangers_classes_load_through_the_auto_classes(table, tmp_path):
    row = hfvlm.register(model_type="test_linear", config=LinearConfig, heads={"AutoModel": LinearModel})
    assert table["test_linear"] is row and registry.find("test_linear") is row
    model = LinearModel(LinearConfig(width=4))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is LinearModel and type(AutoConfig.from_pretrained(tmp_path)) is LinearConfig
    assert torch.equal(loaded.matrix.weight, model.matrix.weight)


def test_registering_again_replaces_but_another_config_is_refused(table):
    first = hfvlm.register(model_type="test_linear", config=LinearConfig)
    again = hfvlm.register(model_type="test_linear", config=LinearConfig, title="Linear")
    assert first.title == "test_linear" and table["test_linear"] is again
    with pytest.raises(ValueError, match="model_type 'test_linear' is already .*LinearConfig; give the new"):
        hfvlm.register(model_type="test_linear", config=OtherConfig)
    with pytest.raises(ValueError, match="model_type 'hfvlm_blip' is already"):
        hfvlm.register(model_type="hfvlm_blip", config=LinearConfig)
    assert table["test_linear"] is again


def test_transformers_own_blip_stays_what_it_was():
    assert AutoConfig.for_model("blip").__class__.__module__.startswith("transformers.")
    mapping = AutoModelForImageTextToText._model_mapping
    assert mapping[transformers.BlipConfig].__module__.startswith("transformers.")


def test_auto_classes_give_the_real_classes(tmp_path):
    config = tiny_config("blip")
    assert type(AutoModelForImageTextToText.from_config(config)) is BlipForConditionalGeneration
    config.save_pretrained(tmp_path)
    tiny_processor("blip").save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is BlipProcessor


def test_a_lazy_class_stands_in_for_the_real_one():
    lazy = registry.LazyClass("hfvlm.models.blip.modeling_blip:BlipModel")
    assert lazy.__name__ == "BlipModel" and "not loaded yet" in repr(lazy)
    assert lazy.base_model_prefix == "blip"
    assert type(lazy(tiny_config("blip"))) is hfvlm.BlipModel
    with pytest.raises(AttributeError):
        lazy.no_such_attribute  # noqa: B018


def test_importing_again_adds_no_second_finder():
    finders = [f for f in sys.meta_path if type(f).__name__ == "_AnnounceOnImport"]
    assert len(finders) == 1


def test_parts_that_the_readme_names_need_no_import_of_their_own():
    code = "import hfvlm; hfvlm.evaluation.metric; hfvlm.losses; hfvlm.grounding.ground"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
